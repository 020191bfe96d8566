"""Descent of the empirical risk: Kaiming start, Adam with mini-batches, L-BFGS."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import scipy.optimize

from .backend import namespace, to_numpy
from .losses import Loss
from .network import Network, Parameters, TrainingSet
from .reports import read_arrays, whole_file


def kaiming_start(net: Network, seed: int = 0) -> Parameters:
    """Return parameters drawn as in He et al. (2015): weights N(0, 2 / fan-in), biases 0.

    For leaky ReLU of slope a the variance is 2 / (1 + a^2) / fan-in, as in PyTorch.
    """
    rng, theta = np.random.default_rng(seed), net.zeros()
    for layer in theta.b:
        weights = theta.W[layer].weights
        fan_in = math.prod(weights.shape[1:])
        scale = math.sqrt(2 / (1 + net.activation.slope**2) / fan_in)
        weights[...] = scale * rng.standard_normal(weights.shape)
    return theta


@dataclass(frozen=True)
class Adam:
    """The settings of Adam with L2 weight decay, as in ``torch.optim.Adam``."""

    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8

    def step(self, theta: Parameters, gradient: Parameters, memory: list, number: int) -> None:
        """Move theta and the two moments in `memory` by step `number` (from 1), in place."""
        xp = namespace(theta.vector)
        g = gradient.vector + self.weight_decay * theta.vector
        mean, square = memory
        mean *= self.beta1
        mean += (1 - self.beta1) * g
        square *= self.beta2
        square += (1 - self.beta2) * g * g
        size = xp.sqrt(square) / math.sqrt(1 - self.beta2**number) + self.epsilon
        vector = theta.vector
        vector -= self.learning_rate / (1 - self.beta1**number) * mean / size


def train(
    theta: Parameters,
    data: TrainingSet,
    loss: Loss,
    epochs: int,
    batch_size: int = 128,
    optimiser: Adam | None = None,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    progress: Callable[[int, float], None] | None = None,
) -> Parameters:
    """Return the point that Adam reaches from theta in `epochs` passes over mini-batches.

    The batches of an epoch depend on `seed` and its number alone. With `checkpoint` the state is
    written there after each epoch, whole or not at all, and `resume` goes on from it, to the same
    bytes as an unbroken run. `progress` is called with the epoch and the mean risk of its batches.
    Raises ValueError for settings out of range and for a checkpoint of another run.
    """
    optimiser = optimiser or Adam()
    if epochs < 1 or batch_size < 1:
        raise ValueError(f"training: expected epochs, batch size >= 1, got {epochs}, {batch_size}")
    if resume and checkpoint is None:
        raise ValueError("training: expected a checkpoint to resume from")
    net, xp = theta.net, namespace(theta.vector)
    run = {
        "network": net.spec,
        "loss": loss.name,
        "inputs": _digest(data.x, data.y, to_numpy(theta.vector)),
        "batch_size": batch_size,
        "seed": seed,
        "optimiser": asdict(optimiser),
    }
    theta = theta.copy()
    memory = [xp.zeros_like(theta.vector), xp.zeros_like(theta.vector)]
    batches = math.ceil(len(data) / batch_size)
    done = _read_checkpoint(checkpoint, run, theta, memory) if resume else 0
    if done > epochs:
        raise ValueError(
            f"training: expected epochs >= {done}, as the checkpoint has, got {epochs}"
        )
    for epoch in range(done, epochs):
        order = np.random.default_rng([seed, epoch]).permutation(len(data))
        risks = []
        for n in range(batches):
            rows = np.sort(order[n * batch_size : (n + 1) * batch_size])
            risk, gradient = net.risk_and_gradient(
                theta, TrainingSet(data.x[rows], data.y[rows]), loss
            )
            optimiser.step(theta, gradient, memory, epoch * batches + n + 1)
            risks.append(risk)
        if checkpoint is not None:
            with whole_file(checkpoint) as file:
                mean, square = map(to_numpy, memory)
                vector, settings = to_numpy(theta.vector), np.array(json.dumps(run))
                np.savez(
                    file, run=settings, epochs=epoch + 1, theta=vector, mean=mean, square=square
                )
        if progress is not None:
            progress(epoch + 1, float(np.mean(risks)))
    return theta


def _read_checkpoint(path, run: dict, theta: Parameters, memory: list) -> int:
    """Set theta and the moments to what the checkpoint holds; return the epochs that are done."""
    arrays = read_arrays(path)
    keys = {"run", "epochs", "theta", "mean", "square"}
    if set(arrays) != keys or json.loads(str(arrays["run"])) != run:
        raise ValueError(
            f"{path}: expected a checkpoint of this run (same data, start and settings)"
        )
    xp = namespace(theta.vector)
    for target, key in zip((theta.vector, *memory), ("theta", "mean", "square"), strict=True):
        if arrays[key].shape != target.shape or arrays[key].dtype != target.dtype:
            raise ValueError(f"{path}: expected {key} {target.dtype} {target.shape}")
        target[...] = xp.asarray(arrays[key])
    return int(arrays["epochs"])


def _digest(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()


def descend(
    theta: Parameters,
    data: TrainingSet,
    loss: Loss,
    iterations: int,
    progress: Callable[[float], None] | None = None,
) -> Parameters:
    """Return the point that L-BFGS (SciPy) reaches from theta in at most `iterations`.

    `progress` is called with the risk after each iteration. The risk never ends higher than it
    began. Raises ValueError for fewer than one iteration.
    """
    if iterations < 1:
        raise ValueError(f"descent: expected at least one iteration, got {iterations}")
    net, xp, dtype = theta.net, namespace(theta.vector), theta.vector.dtype
    best: list = [np.inf, theta.copy()]

    def risk_and_gradient(vector: np.ndarray) -> tuple[float, np.ndarray]:
        point = Parameters(net, xp.asarray(vector, dtype=dtype))
        risk, gradient = net.risk_and_gradient(point, data, loss)
        if risk < best[0]:
            best[:] = risk, point.copy()
        return risk, to_numpy(gradient.vector).astype(np.float64)

    scipy.optimize.minimize(
        risk_and_gradient,
        to_numpy(theta.vector).astype(np.float64),
        jac=True,
        method="L-BFGS-B",
        callback=None if progress is None else lambda _: progress(best[0]),
        options={"maxiter": iterations, "maxcor": 20, "ftol": 0.0, "gtol": 0.0},
    )
    return best[1]
