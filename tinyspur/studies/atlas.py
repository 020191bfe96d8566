"""How many local minima there are: one network and data set, a certified minimum per partition.

[PWL] section 4: every partition of the samples into groups along a direction gives a local minimum
of its own; finer ones have lower risks, hence the coarser ones are spurious. Each minimum here is
built as a point of one fixed network and certified.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ..certificates import certify
from ..console import Bar, silent
from ..constructions.piecewise_linear import Groups, gated_minimum
from ..datasets.samples import TrainingSet
from ..engine.losses import Loss
from ..engine.network import Network
from ..engine.parameters import Parameters
from ..files import whole_file
from ..fitting.settle import settle
from ..fitting.training import descend, kaiming_start
from ..shown import Shown
from ..tasks import run_tasks

CHUNK = 100  # partitions that a worker gets at once
SETTLING = 200  # steps from the end of training towards a minimum
MISSES = 1000  # draws in a row without a new partition, after which no more are looked for


@dataclass(frozen=True, repr=False)
class Atlas(Shown):
    """Minima of one network: for each its partition, its risk and whether it was certified.

    There is one row in `labels` (n, N), the group of each sample, and one entry for each minimum
    in `risks`, `groups` (their number K), `certified`, `margins`, `widths` (how many neurons of
    the first dense layer it needs) and `there` (how many partitions into K groups the directions
    give, those counted twice that two of them give), (n,) each. `linear` is the risk of the affine
    fit (K = 1), `trained` holds the risks at which training from random starts ends, `settled`
    those of the minima that it was heading for (see `settle`), and `proved` whether that is proved:
    an exact strict local minimum is next to the point, with its risk up to rounding.
    """

    labels: np.ndarray
    risks: np.ndarray
    groups: np.ndarray
    certified: np.ndarray
    margins: np.ndarray
    widths: np.ndarray
    there: np.ndarray
    linear: float
    trained: np.ndarray
    settled: np.ndarray
    proved: np.ndarray

    def __str__(self) -> str:
        lines = [
            f"{self.certified.sum()} certified local minima of {len(self.risks)} partitions, "
            f"linear fit R = {self.linear:.6g}"
        ]
        for K in np.unique(self.groups):
            of_K = (self.groups == K) & self.certified
            if not of_K.any():
                lines.append(f"  {K} groups: none certified")
                continue
            lines.append(
                f"  {K} groups, {self.widths[self.groups == K][0]} neurons: {of_K.sum()} "
                f"certified, R from {self.risks[of_K].min():.4g} to {self.risks[of_K].max():.4g}"
            )
        if len(self.trained):
            lines.append(
                f"  {len(self.trained)} trainings from random starts end between R = "
                f"{self.trained.min():.4g} and {self.trained.max():.4g}"
            )
        if self.proved.any():
            risks = self.settled[self.proved]
            lines.append(
                f"  {len(risks)} of them lead to proved strict local minima, "
                f"R from {risks.min():.4g} to {risks.max():.4g}"
            )
        return "\n".join(lines)

    def save(self, path: str | Path) -> None:
        """Write all arrays as NPZ."""
        with whole_file(path) as file:
            np.savez_compressed(file, **vars(self))


def partitions(
    x: np.ndarray, directions: np.ndarray, most_groups: int, count: int, seed: int = 0
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return `count` pairs (direction, thresholds), each with other groups, 2 to `most_groups`.

    A direction and the number of groups are drawn first, then thresholds midway between neighbours
    along the direction. Fewer pairs are returned where no more are found.
    """
    if most_groups < 2:
        raise ValueError(f"partitions: expected at least two groups, got {most_groups}")
    rng, found, flat = np.random.default_rng(seed), {}, x.reshape(len(x), -1)
    middles = [_middles(flat @ p) for p in directions]
    usable = [n for n, available in enumerate(middles) if len(available)]
    if not usable:
        raise ValueError("partitions: expected inputs that differ along some direction")
    misses = 0
    while len(found) < count and misses < MISSES:
        which = usable[int(rng.integers(len(usable)))]
        available = middles[which]
        K = int(rng.integers(2, min(most_groups, len(available) + 1) + 1))
        thresholds = np.sort(rng.choice(available, K - 1, replace=False))
        labels = np.searchsorted(thresholds, flat @ directions[which])
        names, first = np.unique(labels, return_index=True)  # the groups without their order
        key = np.argsort(np.argsort(first))[np.searchsorted(names, labels)].astype(np.uint8)
        misses = misses + 1 if key.tobytes() in found else 0
        found.setdefault(key.tobytes(), (directions[which], thresholds))
    return list(found.values())


def _middles(values: np.ndarray) -> np.ndarray:
    """Return the thresholds midway between neighbours that differ by more than rounding."""
    values = np.unique(values)
    apart = np.diff(values) > 1e-9 * np.ptp(values)
    return ((values[1:] + values[:-1]) / 2)[apart]


def map_minima(
    net: Network,
    data: TrainingSet,
    loss: Loss,
    found: list[tuple[np.ndarray, np.ndarray]],
    starts: int = 20,
    iterations: int = 500,
    seed: int = 0,
    executor: Executor | None = None,
    path: str | Path | None = None,
    stage: Callable[[str, str, int, int], AbstractContextManager[Bar]] = silent,
) -> Atlas:
    """Return the atlas of the given partitions, and of trainings from random starts.

    Trainings take `iterations` of L-BFGS, then up to 200 steps of `settle`, which proves what it
    can. Parts of the work go to `executor`, and to the file `path` when they are done, as in
    `run_each`. `stage`, such as `console.Stages`, is entered for each of the two with its name, a
    text, the number of parts and how many of them are done. Raises ValueError where there is no
    partition, and what `run_each` raises.
    """
    if not found:
        raise ValueError("atlas: expected partitions, got none")
    parts = [found[n : n + CHUNK] for n in range(0, len(found), CHUNK)]
    seeds = range(seed, seed + starts)
    where, train = (executor, path), partial(_train, net, data, loss, iterations)
    shown = partial(stage, "certificates", f"certifying {len(found)} minima")
    certified = run_tasks("atlas", partial(_certify, net, data, loss), parts, *where, shown)
    rows = [row for part in certified for row in part]
    shown = partial(stage, "trainings", f"training from {starts} random starts")
    ends = run_tasks("atlas", train, seeds, *where, shown)
    linear = Groups.at(data.x, np.eye(data.x[0].size)[0], [])
    labels, risks, groups, certified, margins = map(np.array, zip(*rows, strict=True))
    d_y, flat = data.y.shape[1], data.x.reshape(len(data), -1)
    directions = {p.tobytes(): p for p, _ in found}.values()
    places = [len(_middles(flat @ p)) for p in directions]
    return Atlas(
        labels=labels.astype(np.uint8),
        risks=risks,
        groups=groups,
        certified=certified,
        margins=margins,
        widths=d_y + (groups - 1) * (d_y + 1),
        there=np.array([float(sum(math.comb(n, K - 1) for n in places)) for K in groups.tolist()]),
        linear=net.risk(gated_minimum(net, data, loss, linear), data, loss),
        trained=np.array([end[0] for end in ends]),
        settled=np.array([end[1] for end in ends]),
        proved=np.array([end[2] for end in ends], dtype=bool),
    )


def _certify(net, data, loss, part) -> list[tuple]:
    rows = []
    for direction, thresholds in part:
        groups = Groups.at(data.x, direction, thresholds)
        theta = gated_minimum(net, data, loss, groups)
        certificate = certify(theta, data, loss)
        risk = net.risk(theta, data, loss)
        rows.append((groups.labels, risk, len(groups), certificate.holds, certificate.margin))
    return rows


def _train(
    net: Network, data: TrainingSet, loss: Loss, iterations: int, seed: int
) -> tuple[float, float, bool]:
    theta: Parameters = descend(kaiming_start(net, seed), data, loss, iterations)
    found = settle(theta, data, loss, SETTLING)
    return found.risk_before, found.risk, found.holds
