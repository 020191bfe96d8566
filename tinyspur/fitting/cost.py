"""What a training costs: floating-point operations, and a mini-batch that is timed here."""

from __future__ import annotations

import time
from dataclasses import dataclass

from ..datasets.samples import TrainingSet
from ..engine.backend import namespace, to_numpy
from ..engine.losses import Loss
from ..engine.network import Network, check_at
from ..engine.parameters import Parameters
from ..shown import Shown
from .training import Adam

GPU_RATE = 10e12  # floating-point operations per second, sustained, of the estimate for a GPU


def training_flops(net: Network, samples: int, epochs: int) -> int:
    """Return the floating-point operations of `epochs` passes, forward and back, over `samples`.

    A multiplication and an addition for each weight at each position: 2 T C k^2 P for a convolution
    and 2 in out for a dense layer. A backward pass counts as two forward passes.
    """
    theta = net.zeros()
    forward = sum(2 * theta.W[layer].weights.size * net.positions(layer) for layer in net.slots)
    return 3 * forward * samples * epochs


def seconds_per_batch(
    theta: Parameters, data: TrainingSet, loss: Loss, batch_size: int = 128
) -> float:
    """Return the seconds that a step of `train` takes here, the least of a few steps."""
    check_at(theta, data, loss)
    theta = theta.copy()
    memory = [namespace(theta.vector).zeros_like(theta.vector) for _ in range(2)]

    def seconds(samples: int) -> float:
        batch = TrainingSet(data.x[:samples], data.y[:samples])
        start = time.perf_counter()
        _, gradient = theta.net.risk_and_gradient(theta, batch, loss)
        Adam().step(theta, gradient, memory, 1)
        to_numpy(theta.vector[:1])  # waits for the device
        return time.perf_counter() - start

    seconds(1)  # compiles what a device has to compile
    times = [seconds(batch_size)]
    while len(times) < 5 and sum(times) < 0.5:
        times.append(seconds(batch_size))
    return min(times)


@dataclass(frozen=True, repr=False)
class TrainingCost(Shown):
    """The estimated cost of `epochs` of training and of at most `polish` passes of L-BFGS.

    It prints as floating-point operations and as time, which is estimated from the `seconds` that a
    mini-batch of `batch` samples takes here on `backend`.
    """

    epochs: int
    polish: int
    samples: int
    batch: int
    flops_per_epoch: int
    seconds: float
    backend: str

    def __str__(self) -> str:
        passes = self.epochs, self.polish
        flops = [n * self.flops_per_epoch for n in passes]
        here = [duration(n * self.samples / self.batch * self.seconds) for n in passes]
        lines = [
            f"training, {self.epochs} epochs of {self.samples:,} samples: {flops[0]:.4g} "
            f"floating-point operations, about {here[0]} with {self.backend} here",
            f"polish, {self.polish} steps at most: {flops[1]:.4g}, about {here[1]}",
            f"measured: {self.seconds:.2g} s for a mini-batch of {self.batch}, "
            f"{self.batch * self.flops_per_epoch / self.samples / self.seconds:.2g} operations/s",
        ]
        if self.backend == "numpy":
            gpu = [duration(n / GPU_RATE) for n in flops]
            lines.append(
                f"a GPU that sustains {GPU_RATE / 1e12:g} TFLOP/s in float32: {gpu[0]} and {gpu[1]}"
            )
        return "\n".join(lines)


def training_cost(
    theta: Parameters, data: TrainingSet, loss: Loss, epochs: int, batch_size: int, polish: int
) -> TrainingCost:
    """Return the cost of training from `theta` on and of the polish, after timing a mini-batch."""
    check_at(theta, data, loss)
    batch = min(batch_size, len(data))
    seconds = seconds_per_batch(theta, data, loss, batch)
    flops = training_flops(theta.net, len(data), 1)
    backend = namespace(theta.vector).__name__
    return TrainingCost(epochs, polish, len(data), batch, flops, seconds, backend)


def duration(seconds: float) -> str:
    """Return a time for people to read, in the one unit that fits (tqdm's has no days).

    >>> duration(0.0123), duration(59), duration(200), duration(9000), duration(5e5)
    ('0.012 s', '59 s', '3.3 min', '2.5 h', '5.8 days')
    """
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.2g} s"
