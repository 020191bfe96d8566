"""The figure of theta and theta': the matrices around the reserved maps, and the risk beside."""

from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.image import AxesImage

from ..constructions.relayed_pair import RelayedPair
from ..constructions.spurious import SpuriousMinimum
from ..engine.backend import to_numpy
from ..engine.parameters import Parameters
from ..landscape.risks import Landscape
from .style import ENTRIES, open_frame, save_figure

DPI = 110  # dots per inch
CORNER = 10  # positions of each block of a matrix that are drawn
SIGNED = {"vmin": -2.5, "vmax": 2.5}  # of the colours of weights and biases


def draw_spurious_minimum(
    path: str | Path,
    found: SpuriousMinimum,
    steps: np.ndarray,
    risks: np.ndarray,
    along: Landscape | None = None,
) -> None:
    """Draw the matrices around the reserved maps at theta and theta', and the risk between them.

    `risks` are R at theta' with its perturbed bias moved by each of the `steps`. `along` has the
    risk on the line from theta, at 0, to where an escape ends, at 1. Writes a PNG.
    """
    figure = Figure(figsize=(12, 9.9), layout="constrained")
    matrices, curve = figure.subfigures(2, 1, height_ratios=[1.8, 1])
    above, below = matrices.subfigures(2, 1, height_ratios=[1, 1.12])
    at_theta = f"$\\theta$:  R = {found.risk:.9f};  the maps A and B are 0 for every sample"
    at_prime = (
        f"$\\theta'$:  R = {found.theta_prime_risk:.9f};  the outputs are those of $\\theta$, "
        "and A and B do the work of the relay"
    )
    _draw_matrices(above, found.theta, found, at_theta)
    _draw_matrices(below, found.theta_prime, found, at_prime)
    below.supxlabel(_what_is_drawn(found), x=0.01, ha="left", fontsize=9)
    axes = curve.subplots(1, 1 + (along is not None), squeeze=False)[0]
    _draw_curve(axes[0], found, np.asarray(steps), np.asarray(risks))
    if along is not None:
        _draw_escape(axes[1], found, along)
    words = textwrap.wrap(f"verdict: {found.verdict}", 150, max_lines=2)
    curve.suptitle("\n".join(words), x=0.01, ha="left", fontsize=11)
    save_figure(path, figure, DPI)


def _what_is_drawn(found: SpuriousMinimum) -> str:
    pair, split = found.pair, found.split
    (a, b), relay = pair.reserved, pair.relay_of(split.map)
    corner = min(CORNER, found.theta.net.positions(pair.lower))
    return (
        f"Rows of blocks are what a map computes, columns what it reads, of layers {pair.lower} "
        f"and {pair.upper}; the first {corner} rows and columns of each block are drawn.\nA and B "
        f"are the maps {a} and {b}, the relay is map {relay}, which hands map {split.map} of layer "
        f"{split.layer} on. At the right: the weights with which output {split.output} reads them, "
        "as images."
    )


def _draw_matrices(
    figure: SubFigure, theta: Parameters, found: SpuriousMinimum, title: str
) -> None:
    """Draw W^{L-2}, W^{L-1} and row k of W^L, cut to the reserved maps A, B and the relay of m."""
    pair, split = found.pair, found.split
    maps = {"A": pair.reserved[0], "B": pair.reserved[1], "relay": pair.relay_of(split.map)}
    widths = [1.6, 0.75, 3.2, 0.75, 2.1, 2.1, 2.1, 0.1]
    axes = figure.subplots(1, 8, gridspec_kw={"width_ratios": widths})
    figure.suptitle(title, x=0.01, ha="left", fontsize=12)
    below = {f"map {split.map}": split.map}
    _draw_blocks(axes[0], theta, pair.lower, maps, below)
    _draw_biases(axes[1], theta, pair.lower, maps)
    _draw_blocks(axes[2], theta, pair.upper, maps, maps)
    _draw_biases(axes[3], theta, pair.upper, maps)
    used = to_numpy(found.theta.W[pair.dense].weights[split.output])
    used = abs(used[used != 0])
    limit = float(np.quantile(used, 0.97)) if used.size else 1.0
    for ax, (label, t) in zip(axes[4:7], maps.items(), strict=True):
        image = _draw_image(ax, theta, pair, split.output, t, limit)
        ax.set_title(rf"$W^{{{pair.dense}}}$({split.output}, {label})", fontsize=10)
    figure.colorbar(image, cax=axes[7], extend="both")
    axes[7].set_box_aspect(14)


def _draw_blocks(
    ax: Axes, theta: Parameters, layer: int, maps: dict[str, int], channels: dict[str, int]
) -> None:
    """Draw the corners of the blocks W(t, c), and the number of those that have only one."""
    W = theta.W[layer]
    corner = min(CORNER, W.positions_out)
    blocks = [[W.block(t, c)[:corner, :corner] for c in channels.values()] for t in maps.values()]
    ax.imshow(np.block(blocks), cmap=ENTRIES, **SIGNED, interpolation="nearest")
    for t, row in enumerate(blocks):
        for c, block in enumerate(row):
            values = np.unique(block[block != 0])
            if len(values) == 1:  # what a relay multiplies with
                place = (c + 0.93) * corner - 0.5, (t + 0.07) * corner - 0.5
                ax.text(*place, f"{values[0]:+.3g}", ha="right", va="top", fontsize=9)
    for n in range(1, len(maps)):
        ax.axhline(n * corner - 0.5, color="0.4", lw=0.8)
    for n in range(1, len(channels)):
        ax.axvline(n * corner - 0.5, color="0.4", lw=0.8)
    middle = (corner - 1) / 2
    ax.set_yticks([n * corner + middle for n in range(len(maps))], maps)
    ax.set_xticks([n * corner + middle for n in range(len(channels))], channels)
    ax.tick_params(length=0)
    ax.set_title(rf"$W^{{{layer}}}$", fontsize=10)


def _draw_biases(ax: Axes, theta: Parameters, layer: int, maps: dict[str, int]) -> None:
    biases = np.array([[float(theta.b[layer][t])] for t in maps.values()])
    ax.imshow(biases, cmap=ENTRIES, **SIGNED, aspect="auto")
    for n, bias in enumerate(biases[:, 0]):
        dark = abs(bias) > 1.6
        ax.text(0, n, f"{bias:.3g}", ha="center", va="center", color="w" if dark else "k")
    ax.set_xticks([])
    ax.set_yticks([])
    ax.set_title(rf"$b^{{{layer}}}$", fontsize=10)


def _draw_image(
    ax: Axes, theta: Parameters, pair: RelayedPair, output: int, t: int, limit: float
) -> AxesImage:
    """Draw what an output reads of map t, as an image (a strip in one dimension)."""
    net, P = theta.net, theta.net.positions(pair.upper)
    size = net.shapes[pair.upper][1:]
    picture = theta.W[pair.dense][output, t * P : (t + 1) * P]
    picture = picture.reshape(size if len(size) == 2 else (1, *size))
    ax.set_xticks([])
    ax.set_yticks([])
    return ax.imshow(picture, cmap="PuOr_r", vmin=-limit, vmax=limit)


def _draw_curve(ax: Axes, found: SpuriousMinimum, steps: np.ndarray, risks: np.ndarray) -> None:
    split, lower = found.split, found.lower
    half = (split.gap[1] - split.gap[0]) / 2
    ax.axvspan(-half, half, color="0.93", label="inside the gap of the data split")
    ax.axhline(0, color="0.5", lw=0.8)
    ax.plot(steps, risks - found.risk, "-", color="C0", lw=1.8, label="R of the network")
    inside = np.array([-half, half])
    slope = rf"slope S($\eta$) = {split.slope:.4g}"
    ax.plot(inside, inside * split.slope, "--", color="C1", lw=1.2, label=slope)
    ax.plot(0, found.theta_prime_risk - found.risk, "o", ms=9, color="k", label=r"$\theta'$")
    words = f"lower point: R lower by {lower.decrease:.3g}"
    if lower.decrease <= lower.rounding:
        words = "no lower point: R is not lower beyond rounding"
    ax.plot(lower.step, lower.risk - found.risk, "v", ms=10, color="C3", label=words)
    name = dict(zip(found.pair.reserved, "AB", strict=True)).get(lower.map, "relay")
    ax.set_xlabel(rf"change of the bias $b^{{{lower.layer}}}$ of map {lower.map} ({name})")
    ax.set_xlim(steps.min(), steps.max())
    low, high = np.min(risks - found.risk), np.max(risks - found.risk)
    ax.set_ylim(low - 0.08 * (high - low), high + 0.08 * (high - low))
    _finish(ax)


def _draw_escape(ax: Axes, found: SpuriousMinimum, along: Landscape) -> None:
    """Draw the risk along an escape from theta, in max-norm distance."""
    distance = along.alpha * found.escape.distance
    ax.axhline(0, color="0.5", lw=0.8)
    ax.plot(distance, along.risks[0] - found.risk, "-", color="C0", lw=1.8)
    ax.plot(0, 0, "o", ms=9, color="k", label=r"$\theta$, at the kink")
    words = f"escape: R lower by {found.escape.decrease:.3g}"
    end = found.escape.distance, -found.escape.decrease
    ax.plot(*end, "v", ms=10, color="C3", label=words)
    ax.set_xlabel(r"distance from $\theta$ along the escape")
    _finish(ax)


def _finish(ax: Axes) -> None:
    ax.set_ylabel(r"R $-$ R($\theta$)")
    ax.ticklabel_format(style="sci", scilimits=(-2, 3), axis="both")
    ax.legend(loc="best", fontsize=9)
    open_frame(ax)
