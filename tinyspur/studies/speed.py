"""Times of the engine beside those of PyTorch, on the same cores or on the same GPU."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import ModuleType

import numpy as np

from ..certificates.cell import certify_cell
from ..constructions.embedding import embed, linear_subnetwork, subnetwork
from ..datasets.samples import TrainingSet
from ..engine.losses import SquaredLoss
from ..engine.network import Network
from ..engine.parameters import Parameters
from ..engine.threads import WORKERS, in_order
from ..fitting.cost import training_flops
from ..fitting.training import kaiming_start

BATCHES = (8, 16, 50, 100, 250, 500)  # of PyTorch, whose fastest counts
LOSS = SquaredLoss()
WARM = 0.05  # seconds of runs that are not counted before each one that is
GEMM, COPIED = 2048, 2**24  # rows of the products, numbers of the copies, that measure the machine


@dataclass(frozen=True)
class Row:
    """Median seconds of the engine and of what it is compared with, and what one run takes.

    `bytes` are those of inputs, outputs and their derivatives, each written or read once for each
    layer that does: what has to come from memory where the caches are small.
    """

    name: str
    dtype: str
    seconds: float
    other: float
    flops: float
    bytes: float

    @property
    def ratio(self) -> float:
        """Return how many times faster than the other the engine is."""
        return self.other / self.seconds

    def text(self, peak: float, bandwidth: float) -> str:
        """Return the row of the table; operations and bytes per second are at most these."""
        mine, other = (self.flops / s / 1e9 for s in (self.seconds, self.other))
        product, memory = self.flops / self.seconds / peak, self.bytes / self.seconds / bandwidth
        return (
            f"{self.name:<42}{self.dtype:>8}{1e3 * self.seconds:10.1f} ms{mine:8.0f}{other:8.0f}"
            f"{self.ratio:8.2f}{product:8.0%}{memory:8.0%}"
        )


def in_turn(first: Callable, second: Callable, repeats: int) -> tuple[float, float]:
    """Return the median seconds of both, in turn, each after runs of at least `WARM` seconds.

    Without them each would run while the other's threads still spin and its data fill the caches:
    on two cores those of PyTorch double the time of what takes a few milliseconds.
    """
    times: tuple[list, list] = ([], [])
    for _ in range(repeats):
        for function, found in zip((first, second), times, strict=True):
            warm = seconds(function)
            while warm < WARM:
                warm += seconds(function)
            found.append(seconds(function))
    return statistics.median(times[0]), statistics.median(times[1])


def streamed(function: Callable, chunks: list) -> None:
    """Run on all threads as a pass does, which keeps what one chunk gives until the next."""
    for _ in in_order(function, chunks, np):
        pass


def peak(dtype: type, repeats: int) -> float:
    """Return the operations per second of large matrix products, one on each core."""
    A = np.ones((GEMM, GEMM), dtype)
    products = lambda: list(in_order(lambda _: A @ A, range(2 * WORKERS), np))  # noqa: E731
    return 4 * WORKERS * GEMM**3 / in_turn(products, lambda: None, repeats)[0]


def bandwidth(repeats: int) -> float:
    """Return the bytes per second that copies of large arrays read and write, one on each core."""
    arrays = [(np.zeros(COPIED), np.ones(COPIED)) for _ in range(WORKERS)]
    copies = partial(streamed, lambda pair: np.copyto(*pair), arrays)
    return 2 * WORKERS * arrays[0][0].nbytes / in_turn(copies, lambda: None, repeats)[0]


def seconds(function: Callable) -> float:
    """Return the seconds that one call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def finish(xp: ModuleType) -> None:
    """Wait until the device of `xp`, if it has one, has done all that it was asked for."""
    if xp is not np:
        xp.cuda.Device().synchronize()


def step_row(
    torch,
    name: str,
    net: Network,
    data: TrainingSet,
    dtype: type,
    repeats: int,
    xp: ModuleType = np,
) -> Row:
    """Return risk and gradient of a whole network; PyTorch with the fastest of some batch sizes.

    With CuPy as `xp` both are on the GPU.
    """
    from .. import interop

    theta = Parameters(net, kaiming_start(net).vector.astype(dtype))
    data = TrainingSet(data.x.astype(dtype), data.y.astype(dtype))
    place = "cpu" if xp is np else "cuda"
    twin = interop.to_torch(theta).to(place)
    x, y = (torch.tensor(part).to(place) for part in (data.x, data.y))
    theta = theta.to(xp)

    def mine() -> None:
        net.risk_and_gradient(theta, data, LOSS)
        finish(xp)

    def other(batch: int) -> None:
        for part in range(0, len(data), batch):
            o = twin(x[part : part + batch])
            ((o - y[part : part + batch]) ** 2).sum().div(2 * len(data)).backward()
        twin.zero_grad()
        if xp is not np:
            torch.cuda.synchronize()

    batches = sorted({min(n, len(data)) for n in BATCHES})
    times = [in_turn(partial(other, n), lambda: None, 3)[0] for n in batches]
    fastest = partial(other, batches[int(np.argmin(times))])
    seconds = in_turn(mine, fastest, repeats)
    flops, moved = training_flops(net, len(data), 1), 5 * activation_bytes(theta, data)
    return Row(name, np.dtype(dtype).name, *seconds, flops, moved)


def activation_bytes(theta: Parameters, data: TrainingSet) -> int:
    """Return the bytes of o^0..o^L: a risk moves them twice, a gradient three more times."""
    net = theta.net
    return len(data) * sum(map(net.rows, range(net.depth + 1))) * theta.vector.dtype.itemsize


def certificate_seconds(net: Network, data: TrainingSet, repeats: int) -> tuple[float, float]:
    """Return the seconds of the cell certificate of the linear theta, and of R and its gradient.

    Raises RuntimeError where that does not prove a minimum nearby, P1.
    """
    theta, _ = embed(net, linear_subnetwork(subnetwork(net), data, LOSS), data.x)
    found = certify_cell(theta, data, LOSS)
    if found.proves != "P1":
        raise RuntimeError(f"the certificate to be timed: expected P1, got: {found.words}")
    step = partial(net.risk_and_gradient, theta, data, LOSS)
    return in_turn(partial(certify_cell, theta, data, LOSS), step, repeats)
