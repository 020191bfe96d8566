"""Descent of the empirical risk: Kaiming start, Adam with mini-batches, L-BFGS."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import scipy.optimize

from ..datasets.samples import TrainingSet
from ..engine.backend import namespace, to_numpy
from ..engine.live import live_part
from ..engine.losses import Loss
from ..engine.network import Network, check_at, check_network
from ..engine.parameters import Parameters, check_points
from ..engine.plain import generator, real, whole_number
from ..engine.shared_gradient import shared_gradient
from ..files import check_file, keep, read_arrays, whole_file
from ..layers import Scale
from ..shown import Shown


def kaiming_start(net: Network, seed: int = 0) -> Parameters:
    """Return parameters drawn as in He et al. (2015): weights N(0, 2 / fan-in), biases 0, scales 1.

    For leaky ReLU of slope a the variance is 2 / (1 + a^2) / fan-in, as in PyTorch; for smooth
    activations it is that of ReLU.
    """
    check_network(net)
    rng, theta = generator(seed), net.zeros()
    for layer in net.slots:
        sigma = net.activation_of(layer) or net.activation
        slope = sigma.slope if sigma.piecewise_linear else 0.0
        weights = theta.W[layer].weights
        if isinstance(net.chain[layer - 1], Scale):
            weights[...] = 1
            continue
        fan_in = math.prod(weights.shape[1:])
        scale = math.sqrt(2 / (1 + slope**2) / fan_in)
        weights[...] = scale * rng.standard_normal(weights.shape)
    return theta


@dataclass(frozen=True)
class Adam:
    """The settings of Adam with L2 weight decay, as in ``torch.optim.Adam``.

    Raises ValueError for a learning rate that is not positive, a negative weight decay or epsilon,
    and betas outside [0, 1).
    """

    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8

    def __post_init__(self):
        rate, decay = real(self.learning_rate), real(self.weight_decay)
        if not (0 < rate < math.inf and 0 <= decay < math.inf):
            raise ValueError(
                "Adam: expected a learning rate > 0 and a weight decay >= 0, got "
                f"{self.learning_rate!r} and {self.weight_decay!r}"
            )
        first, second, least = self.beta1, self.beta2, self.epsilon
        if not (0 <= real(first) < 1 and 0 <= real(second) < 1 and 0 <= real(least) < math.inf):
            raise ValueError(
                "Adam: expected 0 <= beta1, beta2 < 1 and a finite epsilon >= 0, got "
                f"{first!r}, {second!r} and {least!r}"
            )

    def step(self, theta: Parameters, gradient: Parameters, memory: list, number: int) -> None:
        """Move theta and the two moments in `memory` by step `number` (from 1), in place."""
        check_points(theta.net, gradient)
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
    progress: Callable[[int, int, float], None] | None = None,
) -> Parameters:
    """Return the point that Adam reaches from theta in `epochs` passes over mini-batches.

    The batches of an epoch depend on `seed` and its number alone. With `checkpoint` the state is
    written there after each epoch, whole or not at all, and `resume` goes on from it, to the same
    bytes as an unbroken run. Without it a file that is there is kept under another name, see
    `files.keep`. `progress` is called after each batch with the number of the epoch, from 1, how
    many samples of it are done, and the mean loss that those had when their turn came.
    Raises ValueError for settings out of range and for a checkpoint of another run, RuntimeError
    where the risk is no longer finite.
    """
    check_at(theta, data, loss)
    optimiser = optimiser or Adam()
    if not isinstance(optimiser, Adam):
        raise ValueError(f"training: expected an optimiser as Adam(), got {optimiser!r}")
    epochs, batch_size = whole_number("epochs", epochs), whole_number("batch size", batch_size)
    seed = whole_number("seed", seed, 0)
    if resume and checkpoint is None:
        raise ValueError("training: expected a checkpoint to resume from")
    if checkpoint is not None:
        check_file(checkpoint, "a checkpoint")
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
        total = 0.0
        for n in range(batches):
            rows = np.sort(order[n * batch_size : (n + 1) * batch_size])
            risk, gradient = net.risk_and_gradient(
                theta, TrainingSet(data.x[rows], data.y[rows]), loss
            )
            optimiser.step(theta, gradient, memory, epoch * batches + n + 1)
            total += risk * len(rows)
            if progress is not None:
                samples = min(len(data), (n + 1) * batch_size)
                progress(epoch + 1, samples, total / samples)
        if not math.isfinite(total):
            raise RuntimeError(
                f"training diverged: the risk of epoch {epoch + 1} is {total / len(data)}; "
                "expected a smaller learning rate"
            )
        if checkpoint is not None:
            with whole_file(checkpoint) as file:
                mean, square = map(to_numpy, memory)
                vector, settings = to_numpy(theta.vector), np.array(json.dumps(run))
                np.savez(
                    file, run=settings, epochs=epoch + 1, theta=vector, mean=mean, square=square
                )
                if epoch == 0:
                    keep(checkpoint)
    return theta


def finished_epochs(checkpoint: str | Path) -> int:
    """Return after how many epochs `train` wrote `checkpoint`; ValueError if it did not."""
    return int(_checkpoint_arrays(checkpoint)["epochs"])


def _checkpoint_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """Return the arrays of a checkpoint, or raise ValueError."""
    arrays = read_arrays(path)
    keys = {"run", "epochs", "theta", "mean", "square"}
    if set(arrays) != keys:
        raise ValueError(f"{path}: expected a checkpoint, got the arrays {sorted(arrays)}")
    return arrays


def _read_checkpoint(path, run: dict, theta: Parameters, memory: list) -> int:
    """Set theta and the moments to what the checkpoint holds; return the epochs that are done."""
    arrays = _checkpoint_arrays(path)
    if json.loads(str(arrays["run"])) != run:
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
    gradient_goal: float = 0.0,
    executor: Executor | None = None,
) -> Parameters:
    """Return the point that L-BFGS (SciPy) reaches from theta in at most `iterations`.

    It stops where no entry of the gradient is larger than `gradient_goal`, or where it finds no
    lower point, as at a kink. `progress` is called with the risk after each iteration. The risk
    never ends higher than it began. With `executor` its workers compute risk and gradient, see
    `shared_gradient`. Raises ValueError for fewer than one iteration, for a negative goal, and
    where the risk at theta is not finite, RuntimeError where workers fail.
    """
    check_at(theta, data, loss)
    iterations = whole_number("iterations", iterations)
    if not real(gradient_goal) >= 0:
        raise ValueError(f"descent: expected a gradient goal >= 0, got {gradient_goal!r}")
    live = live_part(theta)  # no step moves the rest, whose gradient is 0
    theta = live.point
    net, xp, dtype = theta.net, namespace(theta.vector), theta.vector.dtype
    best: list = [np.inf, theta.copy()]

    def risk_and_gradient(vector: np.ndarray) -> tuple[float, np.ndarray]:
        point = Parameters(net, xp.array(vector, dtype=dtype))
        risk, gradient = evaluated(point)
        if risk < best[0]:
            best[:] = risk, point
        return risk, to_numpy(gradient.vector).astype(np.float64)

    here = nullcontext(lambda point: net.risk_and_gradient(point, data, loss))
    with here if executor is None else shared_gradient(net, data, loss, executor) as evaluated:
        ended = scipy.optimize.minimize(
            risk_and_gradient,
            to_numpy(theta.vector).astype(np.float64),
            jac=True,
            method="L-BFGS-B",
            callback=None if progress is None else lambda _: progress(best[0]),
            options={
                "maxiter": iterations,
                "maxfun": 100 * iterations,
                "maxcor": 20,
                "ftol": 0.0,
                "gtol": gradient_goal,
            },
        )
    if best[0] == np.inf:
        raise ValueError("descent: expected a finite risk at theta, got NaN or infinity")
    if abs(ended.jac).max() <= gradient_goal:
        return live.widened(Parameters(net, xp.asarray(ended.x, dtype=dtype)))
    return live.widened(best[1])


@dataclass(frozen=True, repr=False)
class Polish(Shown):
    """What L-BFGS without weight decay made of a trained point.

    `theta`, its `risk` and the largest entry of its `gradient`, in absolute value, after so many
    `iterations`; the `goal` for that entry; `stopped` says why it ended. `risk_before` is the risk
    of the trained point.
    """

    theta: Parameters
    risk_before: float
    risk: float
    iterations: int
    gradient: float
    goal: float
    stopped: str

    def __str__(self) -> str:
        return (
            f"risk {self.risk_before:.9g} after training, {self.risk:.9g} after "
            f"{self.iterations} L-BFGS steps without weight decay\n"
            f"  largest entry of the gradient {self.gradient:.3g}, goal {self.goal:.3g}: "
            f"{self.stopped}"
        )


def polish(
    theta: Parameters,
    data: TrainingSet,
    loss: Loss,
    iterations: int,
    share: float = 1e-6,
    progress: Callable[[float], None] | None = None,
) -> Polish:
    """Return the point that L-BFGS reaches from the trained `theta`, with its gradient.

    It takes at most `iterations` steps, 0 for none. The goal is a gradient whose largest entry is
    `share` times that at `theta`. `progress` is called with the risk after each iteration.
    """
    check_at(theta, data, loss)
    iterations = whole_number("iterations", iterations, 0)
    if not real(share) >= 0:
        raise ValueError(f"polish: expected a share >= 0, got {share!r}")
    risk_before, before = _risk_and_slope(theta, data, loss)
    goal, taken = share * before, 0

    def count(risk: float) -> None:
        nonlocal taken
        taken += 1
        if progress is not None:
            progress(risk)

    if iterations:
        theta = descend(theta, data, loss, iterations, count, goal)
    risk, slope = _risk_and_slope(theta, data, loss)
    if slope <= goal:
        stopped = "reached"
    elif taken == iterations:
        stopped = "not reached in so many steps"
    else:
        stopped = "not reached, no lower point was found, as at a kink"
    return Polish(theta, risk_before, risk, taken, slope, goal, stopped)


def _risk_and_slope(theta: Parameters, data: TrainingSet, loss: Loss) -> tuple[float, float]:
    risk, gradient = theta.net.risk_and_gradient(theta, data, loss)
    slope = float(abs(gradient.vector).max())
    if not np.isfinite([risk, slope]).all():
        raise ValueError(f"polish: expected finite risk and gradient, got {risk} and {slope}")
    return risk, slope
