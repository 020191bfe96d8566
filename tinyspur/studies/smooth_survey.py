"""Local minima for each activation and each width, beside what training finds ([SMOOTH])."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ..certificates.rounding import risk_rounding
from ..console import Bar, silent
from ..constructions.smooth import LOSS, SmoothMinimum, lower_point, smooth_minimum
from ..engine.activations import Activation
from ..engine.network import Network
from ..engine.parameters import Parameters
from ..layers import Dense
from ..shown import Shown
from ..tasks import run_tasks

STEPS = np.linspace(0, 6, 31)  # Euclidean distances along random directions


@dataclass(frozen=True, repr=False)
class SmoothRow(Shown):
    """A minimum, the lowest risk that was `reached` elsewhere in the same network, and lines.

    Rounding errors, and targets that are no farther from the stored ones than the certificate says,
    may explain up to `rounding` of the difference between the two risks. `lines` (D, len(STEPS))
    are the risks at the distances STEPS along random directions.
    """

    name: str
    found: SmoothMinimum
    reached: float
    rounding: float
    lines: np.ndarray

    @property
    def lowest(self) -> float:
        """Return the lowest finite risk on the lines, leaving out the minimum itself."""
        risks = self.lines[:, 1:]
        return float(risks[np.isfinite(risks)].min(initial=np.inf))

    @property
    def verdict(self) -> str:
        """Return what was proved."""
        certificate = self.found.certificate
        return certificate.verdict(certificate.risk - self.reached, self.rounding)

    def as_dict(self) -> dict:
        """Return what the program writes as JSON."""
        return {
            "name": self.name,
            "network": self.found.theta.net.spec,
            "samples": len(self.found.data),
            "expansion_point": self.found.expansion_point,
            "risk": self.found.certificate.risk,
            "reached": self.reached,
            "lowest_along_directions": self.lowest,
            "certificate": self.found.certificate.as_dict(),
            "bounds": self.found.certificate.bounds(),
            "verdict": self.verdict,
        }

    def __str__(self) -> str:
        c, not_finite = self.found.certificate, int((~np.isfinite(self.lines)).sum())
        besides = f" ({not_finite} of {self.lines.size} risks not finite)" * bool(not_finite)
        return (
            f"{self.name:<14}a {self.found.expansion_point:+.2f}  R {c.risk:.3g}  "
            f"lambda_min(H) {c.hessian:8.2g}  lambda_min(M) {c.moment:8.2g}  "
            f"radius {c.radius:8.1e}  lowest of {len(self.lines)} lines R"
            f"{self.lowest - c.risk:+.0e}{besides}  elsewhere {self.reached:.1e}  {self.verdict}"
        )


def survey(
    x: np.ndarray,
    networks: Sequence[tuple[str, Activation, Sequence[int]]],
    directions: int = 40,
    starts: int = 3,
    iterations: int = 500,
    seed: int = 0,
    executor: Executor | None = None,
    path: str | Path | None = None,
    stage: Callable[[str, str, int, int], AbstractContextManager[Bar]] = silent,
) -> list[SmoothRow]:
    """Return a row for each (name, activation, widths of the hidden layers); one output each.

    Rows go to `executor`, and to the file `path` when they are done, as in `run_each`, which says
    what is raised. `stage`, such as `console.Stages`, is entered with the name "survey", a text,
    the number of rows and how many of them are done.
    """
    shown = partial(stage, "survey", f"minima of {len(networks)} networks")
    job = partial(_row, x, directions, starts, iterations, seed)
    return run_tasks("survey", job, networks, executor, path, shown)


def _row(
    x: np.ndarray,
    directions: int,
    starts: int,
    iterations: int,
    seed: int,
    network: tuple[str, Activation, Sequence[int]],
) -> SmoothRow:
    name, sigma, widths = network
    net = Network(x.shape[1:], [*map(Dense, widths), Dense(1)], sigma)
    found = smooth_minimum(net, x, seed=seed)
    lower = lower_point(found, starts, iterations, seed)
    lines = risks_along(found, directions, seed)
    reached, points = net.risk(lower, found.data, LOSS), (found.theta, lower)
    rounding = sum(
        risk_rounding(point, found.data, LOSS) + moved_targets(point, found) for point in points
    )
    return SmoothRow(name, found, reached, rounding, lines)


def moved_targets(point: Parameters, found: SmoothMinimum) -> float:
    """Return by how much R(point) may change where the targets move as the certificate allows.

    With all targets t away it is at most t times the mean of |o - y|, and t^2 / 2 for each output.
    """
    moved, data = found.certificate.targets, found.data
    if not math.isfinite(moved):
        return math.inf
    sizes = abs(point.net.forward(point, data.x) - data.y).sum(axis=1)
    return moved * (float(sizes.mean()) * (1 + 1e-6) + moved * data.y.shape[1])


def risks_along(found: SmoothMinimum, directions: int, seed: int = 0) -> np.ndarray:
    """Return R(theta + t d) for random d of Euclidean length 1 and t in STEPS."""
    theta, rng = found.theta, np.random.default_rng(seed)
    lines = np.empty((directions, len(STEPS)))
    for line in lines:
        d = rng.standard_normal(theta.net.size)
        d /= np.linalg.norm(d)
        for n, t in enumerate(STEPS):
            point = Parameters(theta.net, theta.vector + t * d)
            line[n] = theta.net.risk(point, found.data, LOSS)
    return lines
