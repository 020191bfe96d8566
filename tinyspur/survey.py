"""Local minima for each activation and each width, beside what training finds ([SMOOTH])."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from .activations import Activation
from .constructions.smooth import LOSS, SmoothMinimum, lower_point, smooth_minimum
from .figures.style import save_figure
from .layers import Dense
from .network import Network
from .parameters import Parameters
from .rounding import risk_rounding

STEPS = np.linspace(0, 6, 31)  # Euclidean distances along random directions
FLOOR = 1e-32  # what is drawn of a risk that is less, or zero
MINIMUM, LOWER = "#0072B2", "#D55E00"  # told apart by the colour-blind too


@dataclass(frozen=True)
class SmoothRow:
    """A minimum, the lowest risk that was `reached` elsewhere in the same network, and lines.

    `rounding` is what of the difference of the two may be. `lines` (D, len(STEPS)) are the risks at
    the distances STEPS along random directions.
    """

    name: str
    found: SmoothMinimum
    reached: float
    rounding: float
    lines: np.ndarray

    @property
    def lowest(self) -> float:
        """Return the lowest risk on the lines, but for the minimum itself."""
        return float(self.lines[:, 1:].min())

    @property
    def verdict(self) -> str:
        """Return what was proved."""
        if not self.found.certificate.holds:
            return "not certified"
        if self.reached < self.found.certificate.risk - self.rounding:
            return "spurious local minimum"
        return "local minimum, not shown to be spurious"

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
            "verdict": self.verdict,
        }

    def __str__(self) -> str:
        c = self.found.certificate
        return (
            f"{self.name:<12}a {self.found.expansion_point:+.2f}  R {c.risk:.3g}  "
            f"lambda_min(H) {c.hessian:8.2g}  lambda_min(M) {c.moment:8.2g}  "
            f"radius {c.radius:8.1e}  lowest of {len(self.lines)} lines R"
            f"{self.lowest - c.risk:+.0e}  elsewhere {self.reached:.1e}  {self.verdict}"
        )


def survey(
    x: np.ndarray,
    networks: Iterable[tuple[str, Activation, Sequence[int]]],
    directions: int = 40,
    starts: int = 3,
    iterations: int = 500,
    seed: int = 0,
    progress: Callable[[SmoothRow], None] | None = None,
) -> list[SmoothRow]:
    """Return a row for each (name, activation, widths of the hidden layers); one output each."""
    rows = []
    for name, sigma, widths in networks:
        net = Network(x.shape[1:], [*map(Dense, widths), Dense(1)], sigma)
        found = smooth_minimum(net, x, seed=seed)
        lower = lower_point(found, starts, iterations, seed)
        lines = risks_along(found, directions, seed)
        reached, points = net.risk(lower, found.data, LOSS), (found.theta, lower)
        rounding = sum(risk_rounding(point, found.data, LOSS) for point in points)
        rows.append(SmoothRow(name, found, reached, rounding, lines))
        if progress is not None:
            progress(rows[-1])
    return rows


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


def draw_activations(path: str | Path, rows: list[SmoothRow]) -> None:
    """Draw a panel for each row: risks along lines, the minimum, what training reached. A PNG."""
    columns = min(3, len(rows))
    height = -(-len(rows) // columns)
    figure = Figure(figsize=(4.2 * columns, 2.6 * height + 0.5), layout="constrained")
    axes = figure.subplots(height, columns, sharex=True, sharey=True, squeeze=False)
    for ax in axes.ravel()[len(rows) :]:
        ax.set_visible(False)
    for ax, row in zip(axes.ravel(), rows, strict=False):
        c = row.found.certificate
        lines = ax.semilogy(STEPS, row.lines.T, color="0.65", lw=0.8)
        (here,) = ax.semilogy(STEPS, np.full(len(STEPS), c.risk), color=MINIMUM, lw=2)
        (elsewhere,) = ax.semilogy(
            STEPS, np.full(len(STEPS), max(row.reached, FLOOR)), color=LOWER, lw=2, ls="--"
        )
        proved = "certified" if c.holds else "not certified"
        ax.set_title(
            f"{row.name}: {proved}, $\\lambda_{{\\min}}(H)$ = {c.hessian:.2g}",
            loc="left",
            fontsize=10,
        )
        ax.spines[["top", "right"]].set_visible(False)
    for ax in axes[:, 0]:
        ax.set_ylabel("empirical risk R")
    for ax in axes[-1]:
        ax.set_xlabel("Euclidean distance")
    figure.legend(
        [here, lines[0], elsewhere],
        [
            "the local minimum" if _all_certified(rows) else "the point that was built",
            f"{len(rows[0].lines)} random directions from it",
            "lowest risk that training reached elsewhere",
        ],
        loc="outside upper left",
        ncols=3,
        frameon=False,
        fontsize=10,
    )
    save_figure(path, figure, 100)


def draw_widths(path: str | Path, rows: list[SmoothRow]) -> None:
    """Draw the risks of minima and of lower points against the width, and H and radius. A PNG."""
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    widths = [row.found.theta.net.shapes[1][0] for row in rows]
    samples, proved = len(rows[0].found.data), _all_certified(rows)
    left.loglog(
        widths,
        [row.found.certificate.risk for row in rows],
        "o-",
        color=MINIMUM,
        label="certified local minimum" if proved else "point that was built, not all certified",
    )
    left.loglog(
        widths,
        [max(row.reached, FLOOR) for row in rows],
        "v--",
        color=LOWER,
        label="lowest risk found elsewhere",
    )
    left.axvline(samples, color="0.6", lw=1, ls=":")
    left.annotate(
        f"N = {samples} samples", (samples, 1e-12), xytext=(4, 0), textcoords="offset points"
    )
    left.set_ylabel("empirical risk R")
    title = "The bad minimum stays, however wide the network" if proved else "Risks of both"
    left.set_title(title, loc="left", fontsize=11)
    left.legend(loc="center left", frameon=False)
    for values, style, label in (
        ([row.found.certificate.hessian for row in rows], "o-", "$\\lambda_{\\min}(H)$"),
        ([row.found.certificate.radius for row in rows], "s--", "radius of the certificate"),
    ):
        right.loglog(widths, values, style, color="0.2", label=label)
    right.set_title("What its certificate rests on", loc="left", fontsize=11)
    right.legend(frameon=False)
    for ax in (left, right):
        ax.set_xlabel("units of the hidden layer")
        ax.spines[["top", "right"]].set_visible(False)
    save_figure(path, figure, 100)


def _all_certified(rows: list[SmoothRow]) -> bool:
    return all(row.found.certificate.holds for row in rows)
