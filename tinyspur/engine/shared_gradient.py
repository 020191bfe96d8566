"""The risk of one large data set and its gradient, by parts on any executor."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from typing import NamedTuple

from ..datasets.samples import TrainingSet
from .backend import Array
from .executors import Task, named, shared
from .losses import Loss
from .network import Network, check_problem
from .parameters import Parameters, check_points

PARTS = 64  # of the samples at most, however many workers there are


class _Parts(NamedTuple):
    """What a worker needs; the argument is a point's vector and the number of a part."""

    net: Network
    data: TrainingSet
    loss: Loss

    def rows(self, number: int) -> slice:
        N = len(self.data)
        parts = min(PARTS, N)
        return slice(N * number // parts, N * (number + 1) // parts)

    def __call__(self, task: tuple[Array, int]) -> tuple[float, Array]:
        """Return the sum of the losses of a part, and of their gradients (size,)."""
        vector, number = task
        rows = self.rows(number)
        part = TrainingSet(self.data.x[rows], self.data.y[rows])
        risk, gradient = self.net.risk_and_gradient(Parameters(self.net, vector), part, self.loss)
        return risk * len(part), gradient.vector * len(part)


@contextmanager
def shared_gradient(
    net: Network, data: TrainingSet, loss: Loss, executor: Executor | None = None
) -> Iterator[Callable[[Parameters], tuple[float, Parameters]]]:
    """Yield a function of theta that returns R(theta) and its gradient, from all workers.

    `executor` is any `concurrent.futures.Executor`, see `run_each`; each worker process gets the
    data once, and then theta with each part. The samples are cut into up to 64 parts, and their
    sums are added in order, so that no bit depends on how many workers there are, nor on whether
    there is an executor; `net.risk_and_gradient` differs from it by rounding. Workers have to be
    alike in processor and libraries for that, and have a device for a theta on one. Raises
    ValueError for data and losses that don't fit the network or can't be pickled, RuntimeError
    where a part failed twice or workers died that the executor does not replace.

    >>> import tinyspur as ts
    >>> net = ts.Network((1, 1), [ts.Dense(1)])
    >>> data = ts.TrainingSet([[0], [1], [2]], [0, 1, 0])
    >>> with ts.shared_gradient(net, data, ts.SquaredLoss()) as risk_and_gradient:
    ...     risk, gradient = risk_and_gradient(net.zeros())
    >>> print(f"{risk:.4f}", gradient.vector.round(4))
    0.1667 [-0.3333 -0.3333]
    """
    check_problem(net, data, loss)
    job = _Parts(net, data, loss)
    with shared("shared gradient", job, executor) as work:

        def risk_and_gradient(theta: Parameters) -> tuple[float, Parameters]:
            check_points(net, theta)
            tasks = [Task(n, (theta.vector, n)) for n in range(min(PARTS, len(data)))]
            with named("shared gradient", name="part {}".format):
                found = dict(work.answers(tasks))
            total = net.zeros(like=theta.vector)
            for n in range(len(found)):
                total.vector += found[n][1]
            total.vector /= len(data)
            return math.fsum(risk for risk, _ in found.values()) / len(data), total

        yield risk_and_gradient
