"""Figures."""

from __future__ import annotations

import itertools
import textwrap
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from .atlas import Atlas
from .backend import to_numpy
from .certificates import CellCertificate
from .constructions.lattices import Lattice, lattice_network
from .constructions.piecewise_linear import PiecewiseFit
from .constructions.spurious import SpuriousMinimum
from .findings import Finding
from .parameters import Parameters
from .reports import save_figure
from .samples import TrainingSet

CORNER = 10  # positions of each block of a matrix that are drawn
SIGNED = {"vmin": -2.5, "vmax": 2.5}  # of the colours of weights and biases
AUDIT_LEGEND = (
    "Each panel takes a statement of [CNN] or [PWL] at its word (red) and as repaired (blue),\n"
    "on images of clothes averaged to 4 x 4 pixels (E10: on a curve).\n\n"
    "Where R - R(theta) is drawn, the red curve follows a move from the literal theta: where it\n"
    "falls below 0, theta is no local minimum. The blue curve makes the same move from the\n"
    "repaired theta (E10, another network: a random one), which is certified: near theta it\n"
    "can't fall below 0.\n"
    "E9: red, cross-entropy, which is refused; blue, the squared loss, which has a minimiser.",
    "R  empirical risk;  u  derivative of a sample's loss in one output\n"
    "theta  what is said to be a local minimum; its upper layers relay the features of a smaller\n"
    "    network, and two unused maps wait in them\n"
    "theta'  the same outputs by another route, through the unused maps\n"
    "theta_1  a point where one map fires for a few samples I only\n"
    "eta, h  the threshold and the place in a map that split the samples\n"
    "lambda  the weight that reads an isolated sample",
)


def draw_spurious_minimum(
    path: str | Path, found: SpuriousMinimum, steps: np.ndarray, risks: np.ndarray
) -> None:
    """Draw the matrices around the reserved maps at theta and theta', and the risk between them.

    `risks` are R at theta' with the perturbed bias moved by each of `steps`. Writes a PNG.
    """
    figure = Figure(figsize=(12, 9.6), layout="constrained")
    matrices, curve = figure.subfigures(2, 1, height_ratios=[1.7, 1])
    rows = matrices.subfigures(2, 1)
    _draw_matrices(rows[0], found.theta, found, r"$\theta$", True)
    _draw_matrices(rows[1], found.theta_prime, found, r"$\theta'$", False)
    pair, split = found.pair, found.split
    (a, b), relay = pair.reserved, pair.relay_of(split.map)
    corner = min(CORNER, found.theta.net.positions(pair.lower))
    words = (
        f"A and B are the maps {a} and {b}, the relay is map {relay}; of a block $W^l(t, c)$ of "
        f"$W^{{{pair.lower}}}$ and $W^{{{pair.upper}}}$ the first {corner} rows and columns are "
        f"drawn; $W^{{{pair.dense}}}$: row {split.output}, as images"
    )
    rows[0].text(0.995, 0.985, words, ha="right", va="top", fontsize=9)
    _draw_curve(curve, found, np.asarray(steps), np.asarray(risks))
    save_figure(path, figure, 110)


def _draw_matrices(figure, theta: Parameters, found: SpuriousMinimum, name: str, first: bool):
    """Draw W^{L-2}, W^{L-1} and row k of W^L, cut to the reserved maps A, B and the relay of m."""
    pair, split = found.pair, found.split
    maps = {"A": pair.reserved[0], "B": pair.reserved[1], "relay": pair.relay_of(split.map)}
    widths = [1.6, 0.75, 3.2, 0.75, 2.1, 2.1, 2.1, 0.1]
    axes = figure.subplots(1, 8, gridspec_kw={"width_ratios": widths})
    figure.suptitle(
        f"{name}:  R = {found.risk if first else found.theta_prime_risk:.9f}",
        x=0.01,
        ha="left",
        fontsize=13,
    )
    lower, upper, dense = pair.lower, pair.upper, pair.dense
    for i, (layer, columns) in enumerate(((lower, {f"map {split.map}": split.map}), (upper, maps))):
        W = theta.W[layer]
        corner = min(CORNER, W.positions_out)
        blocks = [
            [W.block(t, c)[:corner, :corner] for c in columns.values()] for t in maps.values()
        ]
        ax = axes[2 * i]
        ax.imshow(np.block(blocks), cmap="RdBu_r", **SIGNED, interpolation="nearest")
        for t, row in enumerate(blocks):
            for c, block in enumerate(row):
                values = np.unique(block[block != 0])
                if len(values) == 1:  # what a relay multiplies with
                    place = (c + 0.93) * corner - 0.5, (t + 0.07) * corner - 0.5
                    ax.text(*place, f"{values[0]:+.3g}", ha="right", va="top", fontsize=9)
        for n in range(1, len(maps)):
            ax.axhline(n * corner - 0.5, color="0.4", lw=0.8)
        for n in range(1, len(columns)):
            ax.axvline(n * corner - 0.5, color="0.4", lw=0.8)
        middle = (corner - 1) / 2
        ax.set_yticks([n * corner + middle for n in range(len(maps))], maps)
        ax.set_xticks([n * corner + middle for n in range(len(columns))], columns)
        ax.tick_params(length=0)
        ax.set_title(rf"$W^{{{layer}}}$", fontsize=10)
        _draw_biases(axes[2 * i + 1], theta, layer, maps)
    W, P = theta.W[dense], theta.net.positions(upper)
    size = theta.net.shapes[upper][1:]
    shape = size if len(size) == 2 else (1, *size)
    shown = to_numpy(found.theta.W[dense].weights[split.output])
    used = abs(shown[shown != 0])
    limit = float(np.quantile(used, 0.97)) if used.size else 1.0
    for ax, (label, t) in zip(axes[4:7], maps.items(), strict=True):
        picture = W[split.output, t * P : (t + 1) * P].reshape(shape)
        image = ax.imshow(picture, cmap="PuOr_r", vmin=-limit, vmax=limit)
        ax.set_xticks([])
        ax.set_yticks([])
        ax.set_title(rf"$W^{{{dense}}}$({split.output}, {label})", fontsize=10)
    figure.colorbar(image, cax=axes[7], extend="both")
    axes[7].set_box_aspect(14)


def _draw_biases(ax, theta: Parameters, layer: int, maps: dict[str, int]) -> None:
    biases = np.array([[float(theta.b[layer][t])] for t in maps.values()])
    ax.imshow(biases, cmap="RdBu_r", **SIGNED, aspect="auto")
    for n, bias in enumerate(biases[:, 0]):
        dark = abs(bias) > 1.6
        ax.text(0, n, f"{bias:.3g}", ha="center", va="center", color="w" if dark else "k")
    ax.set_xticks([])
    ax.set_yticks([])
    ax.set_title(rf"$b^{{{layer}}}$", fontsize=10)


def _draw_curve(figure, found: SpuriousMinimum, steps: np.ndarray, risks: np.ndarray) -> None:
    split, lower = found.split, found.lower
    ax = figure.subplots()
    low, high = split.gap
    half = (high - low) / 2
    ax.axvspan(-half, half, color="0.93", label="inside the gap of the data split")
    ax.axhline(0, color="0.5", lw=0.8)
    ax.plot(steps, risks - found.risk, "-", color="C0", lw=1.8, label="R of the network")
    inside = np.array([-half, half])
    ax.plot(
        inside,
        inside * split.slope,
        "--",
        color="C1",
        lw=1.2,
        label=rf"slope S($\eta$) = {split.slope:.4g}",
    )
    ax.plot(0, found.theta_prime_risk - found.risk, "o", ms=9, color="k", label=r"$\theta'$")
    ax.plot(
        lower.step,
        lower.risk - found.risk,
        "v",
        ms=10,
        color="C3",
        label=f"lower point: R lower by {lower.decrease:.3g}",
    )
    name = dict(zip(found.pair.reserved, "AB", strict=True)).get(lower.map, "relay")
    ax.set_xlabel(rf"change of the bias $b^{{{lower.layer}}}$ of map {lower.map} ({name})")
    ax.set_ylabel(r"R $-$ R($\theta$)")
    ax.ticklabel_format(style="sci", scilimits=(-2, 3), axis="both")
    ax.legend(loc="best", fontsize=9)
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_title(f"verdict: {found.verdict}", fontsize=11, loc="left")


def draw_audit(path: str | Path, findings: list[Finding]) -> None:
    """Draw a panel for each finding: the statement, both verdicts, both curves. Writes a PNG."""
    columns = 4
    rows = -(-len(findings) // columns) + 1  # the legend is in the last one
    heights = [1.0] * (rows - 1) + [0.6]
    figure = Figure(figsize=(17, 4.1 * sum(heights) + 0.4), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, height_ratios=heights).ravel()
    for ax, finding in zip(axes, findings, strict=False):
        lowest, logarithmic = 0.0, False
        for variant, color in (("literal", "C3"), ("repaired", "C0")):
            x, y = finding.curves[variant]
            ax.plot(x, y, color=color, marker="o" if len(x) < 15 else None, ms=4, lw=2)
            lowest = min(lowest, float(y.min()))
            logarithmic = bool(x.min() > 0 and x.max() > 100 * x.min())
        title = "\n".join(textwrap.wrap(f"{finding.name}: {finding.statement}", 48))
        ax.set_title(f"{title}\n\n\n\n", fontsize=10, loc="left")
        for side, color, height in ((finding.literal, "C3", 1.19), (finding.repaired, "C0", 1.1)):
            name = "as printed" if color == "C3" else "repaired"
            ax.text(
                0,
                height,
                f"{name}: {side.verdict}",
                color=color,
                transform=ax.transAxes,
                fontsize=10,
            )
        ax.axhline(0, color="0.6", lw=0.8, zorder=0)
        ax.set_xlabel(finding.axes[0], fontsize=9)
        ax.set_ylabel(finding.axes[1], fontsize=9)
        ax.tick_params(labelsize=8)
        ax.spines[["top", "right"]].set_visible(False)
        if logarithmic:
            ax.loglog()
        else:
            ax.ticklabel_format(style="sci", scilimits=(-2, 3), axis="both", useMathText=True)
        if lowest < 0 and finding.axes[1] == "R - R(theta)":  # what falls below 0 fills half of it
            ax.set_ylim(1.15 * lowest, max(-1.15 * lowest, 0))
    for ax in axes[len(findings) :]:
        ax.set_axis_off()
    places = axes[-columns], axes[-columns + 2]
    for ax, text in zip(places, AUDIT_LEGEND, strict=True):
        words = ax.text(0, 0.95, text, va="top", fontsize=11, transform=ax.transAxes)
        words.set_in_layout(False)  # it runs into the empty place beside it
    save_figure(path, figure, 100)


@dataclass(frozen=True)
class Panel:
    """A fit of a curve by groups, and both networks that compute it ([PWL] Figure 1)."""

    data: TrainingSet
    fit: PiecewiseFit
    pieces: np.ndarray
    regions: list
    printed: Parameters
    repaired: Parameters
    printed_certificate: CellCertificate
    repaired_certificate: CellCertificate


def draw_motivating_example(path: str | Path, panels: list[Panel]) -> None:
    """Draw [PWL] Figures 1 (a) to (c), 2 and 3, from networks that compute them. Writes a PNG."""
    figure = Figure(figsize=(15, 10), layout="constrained")
    axes = figure.subplots(2, 3)
    for ax, letter, panel in zip(axes[0], "abc", panels, strict=True):
        _draw_fit(ax, letter, panel)
    for ax in axes[0]:
        ax.legend(fontsize=8, loc="upper center")
    _draw_lattice(axes[1, 0])
    _draw_gadgets(axes[1, 1], axes[1, 2])
    save_figure(path, figure, 100)


def _draw_fit(ax, letter: str, panel: Panel) -> None:
    x, y = panel.data.x.ravel(), panel.data.y.ravel()
    dense = np.linspace(x.min(), x.max(), 2001)
    groups = panel.fit.groups
    colors = colormaps["viridis"](np.linspace(0.0, 0.85, len(groups)))
    for k in range(len(groups)):
        inside = groups.labels == k
        style = {"marker": "os^D"[k % 4], "color": colors[k], "mfc": "w"}
        ax.plot(x[inside], y[inside], ls="", ms=5, **style, label=f"samples of group {k + 1}")
    for points, theta, style, name in (
        (dense, panel.printed, {"color": "k", "lw": 2}, "output o, max-min"),
        (dense, panel.repaired, {"color": "0.7", "lw": 1, "ls": "--"}, "output o, gates"),
    ):
        ax.plot(points, theta.net.forward(theta, points[:, None, None])[:, 0], **style, label=name)
    for piece, region in panel.regions:
        slope, offset = panel.pieces[piece]
        ends = region[:, 0]
        middle = ends.mean()
        inside = ((x >= ends[0]) & (x <= ends[1])).any()
        if not inside:
            ax.plot(ends, slope * ends + offset, color="C3", lw=3, alpha=0.6)
            ax.annotate(
                "auxiliary",
                (middle, slope * middle + offset),
                (-12, 6),
                textcoords="offset points",
                ha="right",
                fontsize=8,
                color="C3",
            )
    ax.set_xlabel("input x")
    ax.set_ylabel("target y, output o")
    words = []
    for name, certificate in (
        ("max-min", panel.printed_certificate),
        ("gates", panel.repaired_certificate),
    ):
        words.append(f"{name}: {certificate.words}")
    ax.set_title(
        f"Figure 1({letter}): {len(groups)} groups, R = {panel.fit.risk:.3g}\n" + "\n".join(words),
        fontsize=10,
        loc="left",
    )
    ax.spines[["top", "right"]].set_visible(False)


def _draw_lattice(ax) -> None:
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
    ax.set_title(f"Figure 2: the maximum of the minima over\n{words}", fontsize=10, loc="left")
    ax.spines[["top", "right"]].set_visible(False)


def _draw_gadgets(left, right) -> None:
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
        ax.set_title(f"Figure 3{name}; blue +1, red -1", fontsize=10, loc="left")
        ax.set_axis_off()


def _draw_network(
    ax, theta: Parameters, left: float, middle: float, name: str, inputs: str
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
            (x0, y0), (x1, y1) = places[n][j], places[n + 1][i]
            ax.plot([x0, x1], [y0, y1], color="C0" if weights[i, j] > 0 else "C3", lw=1.5, zorder=1)
    for n, column in enumerate(places):
        for i, (x, y) in enumerate(column):
            ax.plot(x, y, "o", ms=22, color="k", mfc="w", zorder=2)
            words = inputs[i] if n == 0 else "+" if n == len(places) - 1 else "$\\sigma$"
            ax.text(x, y, words, ha="center", va="center", zorder=3)
    x, y = places[-1][0]
    ax.text(x + 0.35, y, name, va="center")
    ax.set_xlim(-0.5, places[-1][0][0] + 1.8)
    ax.margins(y=0.15)


def draw_atlas(path: str | Path, atlas: Atlas) -> None:
    """Draw the risks of certified minima, where training ends, and their number. Writes a PNG."""
    figure = Figure(figsize=(14, 5.6), layout="constrained")
    left, right = figure.subplots(1, 2, gridspec_kw={"width_ratios": [2, 1]})
    kept = atlas.certified
    if not kept.any():
        raise ValueError("atlas: expected certified minima to draw, got none")
    lowest = max(atlas.risks[kept].min(), 1e-6 * atlas.linear)
    if len(atlas.trained):
        lowest = min(lowest, max(atlas.trained.min(), 1e-6 * atlas.linear))
    edges = np.geomspace(0.8 * lowest, 1.25 * atlas.linear, 60)
    counts = np.unique(atlas.groups)
    colors = colormaps["viridis"](np.linspace(0.05, 0.95, len(counts)))
    risks = [np.maximum(atlas.risks[kept & (atlas.groups == K)], lowest) for K in counts]
    labels = [f"{K} groups" for K in counts]
    left.hist(risks, edges, stacked=True, color=colors, label=labels)
    left.axvline(atlas.linear, color="k", lw=1.2, ls="--", label="linear fit (one group)")
    top = left.get_ylim()[1]
    if len(atlas.trained):
        left.plot(
            np.maximum(atlas.trained, lowest),
            np.full(len(atlas.trained), 1.04 * top),
            "v",
            color="k",
            ms=7,
            mfc="none",
            label=f"ends of {len(atlas.trained)} trainings",
        )
    left.set_ylim(0, 1.1 * top)
    left.set_xscale("log")
    left.set_xlabel("empirical risk R")
    left.set_ylabel("certified local minima")
    left.legend(fontsize=9, loc="center left")
    left.set_title(
        f"{kept.sum():,} certified local minima of one network, {len(atlas.labels[0])} samples",
        loc="left",
        fontsize=11,
    )
    numbers = [(kept & (atlas.groups <= K)).sum() for K in counts]
    widths = [atlas.widths[atlas.groups == K][0] for K in counts]
    right.bar(np.arange(len(counts)), numbers, color="0.6")
    ticks = [f"{width}\n({K})" for width, K in zip(widths, counts, strict=True)]
    right.set_xticks(np.arange(len(counts)), ticks)
    for n, number in enumerate(numbers):
        right.text(n, number, f"{number:,}", ha="center", va="bottom", fontsize=9)
    right.set_xlabel("neurons of the hidden layer (groups that they allow)")
    right.set_title("certified minima, one for each partition", loc="left", fontsize=11)
    for ax in (left, right):
        ax.spines[["top", "right"]].set_visible(False)
    save_figure(path, figure, 100)
