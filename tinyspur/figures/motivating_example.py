"""Figures 1 to 3 of [PWL]: fits of a curve by groups, and the networks of maxima and minima."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..certificates import Certificate
from ..constructions.lattices import Lattice, lattice_network
from ..constructions.piecewise_linear import PiecewiseFit
from ..datasets.samples import TrainingSet
from ..engine.backend import to_numpy
from ..engine.parameters import Parameters
from .style import (
    MINUS,
    PLUS,
    SCREEN,
    open_frame,
    ordered_colours,
    panel_letters,
    save_figure,
    set_title,
)


@dataclass(frozen=True)
class CurveFit:
    """A fit of a curve by groups, and both networks that compute it ([PWL] Figure 1).

    `pieces` (K, 2) are slopes and offsets, `regions` numbers of pieces and where each of them ends,
    (2, 1). `printed` computes the maximum of minima of the paper, `repaired` has gates.
    """

    data: TrainingSet
    fit: PiecewiseFit
    pieces: np.ndarray
    regions: list[tuple[int, np.ndarray]]
    printed: Parameters
    repaired: Parameters
    printed_certificate: Certificate
    repaired_certificate: Certificate


def draw_motivating_example(path: str | Path, fits: list[CurveFit]) -> None:
    """Draw [PWL] Figures 1 (a) to (c), 2 and 3, from networks that compute them. Writes a PNG."""
    figure = Figure(figsize=(15, 10), layout="constrained")
    axes = figure.subplots(2, 3)
    for ax, letter, fit in zip(axes[0], panel_letters(3), fits, strict=True):
        _draw_fit(ax, letter, fit)
    _draw_lattice(axes[1, 0])
    _draw_gadgets(axes[1, 1], axes[1, 2])
    save_figure(path, figure, SCREEN)


def _draw_fit(ax: Axes, letter: str, shown: CurveFit) -> None:
    """Draw the samples, the outputs of both networks and the auxiliary pieces."""
    x, y, groups = shown.data.x.ravel(), shown.data.y.ravel(), shown.fit.groups
    colors = ordered_colours(len(groups), 0.0, 0.85)
    for k in range(len(groups)):
        style = {"ls": "", "marker": "os^D"[k % 4], "ms": 5, "color": colors[k], "mfc": "w"}
        of_k = groups.labels == k
        ax.plot(x[of_k], y[of_k], **style, label=f"samples of group {k + 1}")
    dense = np.linspace(x.min(), x.max(), 2001)
    for theta, style, name in (
        (shown.printed, {"color": "0.8", "lw": 6, "zorder": 1}, "output o, max-min"),
        (shown.repaired, {"color": "k", "lw": 1.5, "ls": "--", "zorder": 1.5}, "output o, gates"),
    ):
        ax.plot(dense, theta.net.forward(theta, dense[:, None, None])[:, 0], **style, label=name)
    for piece, region in shown.regions:
        (slope, offset), ends = shown.pieces[piece], region[:, 0]
        if not ((x >= ends[0]) & (x <= ends[1])).any():  # it only joins its neighbours
            ax.plot(ends, slope * ends + offset, color="C3", lw=3, alpha=0.6)
            middle = ends.mean(), slope * ends.mean() + offset
            beside = {"xytext": (-12, 6), "textcoords": "offset points", "ha": "right"}
            ax.annotate("auxiliary", middle, **beside, fontsize=8, color="C3")
    ax.set_xlabel("input x")
    ax.set_ylabel("target y, output o")
    ax.legend(fontsize=8, loc="upper center")
    open_frame(ax)
    words = (
        f"Figure 1({letter}): {len(groups)} groups, R = {shown.fit.risk:.3g}\n"
        f"max-min: {shown.printed_certificate.words}\n"
        f"gates: {shown.repaired_certificate.words}"
    )
    set_title(ax, words, 10)


def _draw_lattice(ax: Axes) -> None:
    """Draw three affine functions and max-min of them, computed by a network ([PWL] Figure 2)."""
    pieces = np.array([[1.6, 1.1], [-0.5, 0.6], [0.9, -0.1]])
    ends = [-1.0, -0.5 / 2.1, 0.5, 1.0]
    regions = [(k, np.array([[a], [b]])) for k, (a, b) in enumerate(itertools.pairwise(ends))]
    lattice = Lattice.of(pieces, regions)
    sets = [Lattice.of(pieces, [region]).sets[0] for region in regions]
    x = np.linspace(-1, 1, 801)[:, None, None]
    theta = lattice_network((1, 1), [lattice], x)
    for k, (slope, offset) in enumerate(pieces):
        ax.plot([-1, 1], [offset - slope, offset + slope], color="0.6", lw=1)
        ax.annotate(f"$f_{k + 1}$", (1.02, offset + slope), va="center", color="0.4")
    ax.plot(x.ravel(), theta.net.forward(theta, x)[:, 0], color="C0", lw=3)
    for end in ends[1:-1]:
        ax.axvline(end, color="0.8", lw=0.8, ls=":")
    low = ax.get_ylim()[0]
    for n, (a, b) in enumerate(itertools.pairwise(ends)):
        ax.text((a + b) / 2, low, f"$\\Omega_{n + 1}$", ha="center", va="bottom")
    words = ",  ".join(
        f"$S_{n + 1}$ = {{" + ", ".join(f"$f_{k + 1}$" for k in s) + "}" for n, s in enumerate(sets)
    )
    ax.set(xlabel="input x", ylabel="output o")
    set_title(ax, f"Figure 2: the maximum of the minima over\n{words}", 10)
    open_frame(ax)


def _draw_gadgets(left: Axes, right: Axes) -> None:
    """Draw the networks of two minima and maxima, and of a tree ([PWL] Figure 3)."""
    two, four = np.eye(2), np.eye(4)
    x2, x4 = np.ones((1, 1, 2)), np.ones((1, 1, 4))
    low = lattice_network((1, 2), [Lattice(np.c_[two, [0, 0]], ((0, 1),))], x2)
    high = lattice_network((1, 2), [Lattice(np.c_[two, [0, 0]], ((0,), (1,)))], x2)
    tree = lattice_network((1, 4), [Lattice(np.c_[four, np.zeros(4)], ((0, 1, 2, 3),))], x4)
    _draw_network(left, low, 0.0, 1.0, "min(a, b)", "ab")
    _draw_network(left, high, 0.0, -1.6, "max(a, b)", "ab")
    _draw_network(right, tree, 0.0, 0.0, "min(a, b, c, d)", "abcd")
    for ax, name in ((left, "(a), (b): the gadgets"), (right, "(c): a tree of minima")):
        set_title(ax, f"Figure 3{name}; blue +1, red -1", 10)
        ax.set_axis_off()


def _draw_network(
    ax: Axes, theta: Parameters, left: float, middle: float, name: str, inputs: str
) -> None:
    """Draw the layers above the pieces as circles and their nonzero weights as lines."""
    sizes = [len(theta.b[layer]) for layer in theta.b]
    places = [
        [(left + 1.5 * n, middle + 0.9 * ((size - 1) / 2 - i)) for i in range(size)]
        for n, size in enumerate(sizes)
    ]
    for n, layer in enumerate(list(theta.b)[1:]):
        weights = to_numpy(theta.W[layer].weights)
        for i, j in np.argwhere(weights != 0):
            ends = zip(places[n][j], places[n + 1][i], strict=True)
            ax.plot(*ends, color=PLUS if weights[i, j] > 0 else MINUS, lw=1.5, zorder=1)
    for n, column in enumerate(places):
        for i, (x, y) in enumerate(column):
            ax.plot(x, y, "o", ms=22, color="k", mfc="w", zorder=2)
            words = inputs[i] if n == 0 else "+" if n == len(places) - 1 else "$\\sigma$"
            ax.text(x, y, words, ha="center", va="center", zorder=3)
    x, y = places[-1][0]
    ax.text(x + 0.35, y, name, va="center")
    ax.set_xlim(-0.5, places[-1][0][0] + 1.8)
    ax.margins(y=0.15)
