"""Figures of the studies: audit, atlas of minima, trained minima, smooth activations."""

from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ..studies.atlas import Atlas
from ..studies.findings import Finding
from ..studies.smooth_survey import STEPS, SmoothRow
from ..studies.trained_minima import End, TrainedMinima
from .style import (
    ELSEWHERE,
    MINIMUM,
    PRINTED,
    REACHED,
    REPAIRED,
    SCREEN,
    open_frame,
    ordered_colours,
    save_figure,
    set_title,
)

FLOOR = 1e-32  # a risk that is lower, or zero, is drawn here
LEAST_MOVE = 1e-8  # a parameter that moves less is drawn here
ENDS = {  # of trainings: how they are drawn, and what they are
    "spurious": (
        {"marker": "o", "color": MINIMUM, "ms": 6},
        "proved spurious: a strict local minimum, and a lower point",
    ),
    "lowest": (
        {"marker": "s", "color": REACHED, "ms": 6},
        "proved strict local minimum, none lower found",
    ),
    "zero": ({"marker": "v", "color": ELSEWHERE, "ms": 6}, "R = 0 up to rounding"),
    "open": ({"marker": "o", "color": "0.55", "mfc": "none", "ms": 6}, "not proved"),
}
AUDIT_LEGEND = (
    "Each panel takes a statement of [CNN] or [PWL] at its word (red) and as repaired (blue), on\n"
    "images of clothes averaged to 4 x 4 pixels (E10: on a curve). What fails is below 0.\n\n"
    "Where R - R(theta) is drawn, the red curve follows a move from the literal theta along which\n"
    "the risk falls: theta is no local minimum. The blue curve makes the same move from the\n"
    "repaired theta, which is certified (E10, another network: a random move). It is flat where\n"
    "the move changes only maps that are 0 for every sample there.\n"
    "E9: red, cross-entropy, which is refused; blue, the squared loss, which has a minimiser.",
    "R  empirical risk;  u  derivative of a sample's loss in one output\n"
    "theta  what is said to be a local minimum; its upper layers relay the features of a smaller\n"
    "    network, and two unused maps wait in them\n"
    "theta'  the same outputs by another route, through the unused maps\n"
    "theta_1  a point where one map fires for a few samples I only\n"
    "eta, h  the threshold and the place in a map that split the samples\n"
    "lambda  the weight that reads an isolated sample",
)


def draw_audit(path: str | Path, findings: list[Finding]) -> None:
    """Draw a panel for each finding: the statement, both verdicts, both curves. Writes a PNG."""
    columns = 4
    rows = -(-len(findings) // columns) + 1  # the legend is in the last one
    heights = [1.0] * (rows - 1) + [0.6]
    figure = Figure(figsize=(17, 4.3 * sum(heights) + 0.4), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.14)  # inches between a title and the axis above it
    axes = figure.subplots(rows, columns, squeeze=False, height_ratios=heights).ravel()
    for ax, finding in zip(axes, findings, strict=False):
        _draw_finding(ax, finding)
    for ax in axes[len(findings) :]:
        ax.set_axis_off()
    places = axes[-columns], axes[-columns + 2]
    for ax, text in zip(places, AUDIT_LEGEND, strict=True):
        words = ax.text(0, 0.95, text, va="top", fontsize=11, transform=ax.transAxes)
        words.set_in_layout(False)  # it runs into the empty place beside it
    save_figure(path, figure, SCREEN)


def _draw_finding(ax: Axes, finding: Finding) -> None:
    title = "\n".join(textwrap.wrap(f"{finding.name}: {finding.statement}", 48))
    set_title(ax, title, 10, y=1.25)  # above the verdicts; fixed, so that a row has one height
    lowest, logarithmic = 0.0, False
    for variant, side, name, color, height in (
        ("literal", finding.literal, "as printed", PRINTED, 1.19),
        ("repaired", finding.repaired, "repaired", REPAIRED, 1.1),
    ):
        x, y = finding.curves[variant]
        ax.plot(x, y, color=color, marker="o" if len(x) < 15 else None, ms=4, lw=2)
        lowest = min(lowest, float(y.min()))
        logarithmic = bool(x.min() > 0 and x.max() > 100 * x.min())
        words = f"{name}: {side.verdict}"
        ax.text(0, height, words, color=color, transform=ax.transAxes, fontsize=10)
    ax.axhline(0, color="0.6", lw=0.8, zorder=0)
    ax.set_xlabel(finding.axes[0], fontsize=9)
    ax.set_ylabel(finding.axes[1], fontsize=9)
    ax.tick_params(labelsize=8)
    open_frame(ax)
    if logarithmic:
        ax.set_xscale("log")
        ax.set_yscale("linear" if lowest < 0 else "log")
    else:
        ax.ticklabel_format(style="sci", scilimits=(-2, 3), axis="both", useMathText=True)
    if lowest < 0:  # it fills half of the panel
        ax.set_ylim(1.15 * lowest, max(-1.15 * lowest, 0))


def draw_atlas(path: str | Path, atlas: Atlas) -> None:
    """Draw the risks of certified minima, where training ends, and their number. Writes a PNG.

    Raises ValueError where no minimum is certified.
    """
    if not atlas.certified.any():
        raise ValueError("atlas: expected certified minima to draw, got none")
    figure = Figure(figsize=(14, 5.6), layout="constrained")
    left, right = figure.subplots(1, 2, gridspec_kw={"width_ratios": [2, 1]})
    _draw_risks(left, atlas)
    _draw_numbers(right, atlas)
    save_figure(path, figure, SCREEN)


def _draw_risks(ax: Axes, atlas: Atlas) -> None:
    """Draw how many certified minima have which risk, by the number of their groups."""
    kept, counts = atlas.certified, np.unique(atlas.groups)
    least = 1e-6 * atlas.linear  # what is drawn of a risk that is less
    lowest = max(min([*atlas.risks[kept], *atlas.settled]), least)
    edges = np.geomspace(0.8 * lowest, 1.25 * atlas.linear, 60)
    risks = [np.maximum(atlas.risks[kept & (atlas.groups == K)], lowest) for K in counts]
    colors, labels = ordered_colours(len(counts), 0.05, 0.95), [f"{K} groups" for K in counts]
    ax.hist(risks, edges, stacked=True, color=colors, label=labels)
    ax.axvline(atlas.linear, color="k", lw=1.2, ls="--", label="linear fit (one group)")
    top = ax.get_ylim()[1]
    for some, face, height, label in (
        (atlas.proved, "k", 1.04, "trainings, in proved strict local minima"),
        (~atlas.proved, "none", 1.1, "trainings, not proved where they end"),
    ):
        if some.any():
            ends, above = np.maximum(atlas.settled[some], lowest), np.full(some.sum(), height * top)
            label = f"{some.sum()} {label}"
            ax.plot(ends, above, "v", color="k", ms=7, mfc=face, label=label)
    ax.set_ylim(0, 1.15 * top)
    ax.set_xscale("log")
    ax.set_xlabel("empirical risk R")
    ax.set_ylabel("certified local minima")
    ax.legend(fontsize=9, loc="center left")
    open_frame(ax)
    samples = len(atlas.labels[0])
    words = f"{kept.sum():,} certified local minima of one network, {samples} samples"
    set_title(ax, words, 11)


def _draw_numbers(ax: Axes, atlas: Atlas) -> None:
    """Draw how many partitions into so many groups there are, and how many of them were taken."""
    counts = np.unique(atlas.groups)
    taken = [(atlas.groups == K).sum() for K in counts]
    proved = [(atlas.certified & (atlas.groups == K)).sum() for K in counts]
    places = np.arange(len(counts))
    there = [atlas.there[atlas.groups == K][0] for K in counts]
    style = {"width": 0.7, "edgecolor": "0.5", "lw": 1}
    ax.bar(places, there, color="none", **style, label="partitions along the directions")
    ax.bar(places, proved, color="0.6", **style, label="taken, and certified as minima")
    widths = [atlas.widths[atlas.groups == K][0] for K in counts]
    ax.set_xticks(places, [f"{K}\n({w})" for K, w in zip(counts, widths, strict=True)])
    for x, some, of in zip(places, proved, taken, strict=True):
        words = f"{some:,}" if some == of else f"{some:,} of {of:,}"
        ax.text(x, max(some, 1) * 0.9, words, ha="center", va="top", fontsize=9)
    ax.set_yscale("log")
    ax.set_ylim(0.5, 8 * max(there))
    ax.set_xlabel("groups (hidden neurons that they need)")
    ax.legend(fontsize=9, loc="upper left", frameon=False)
    open_frame(ax)
    set_title(ax, "partitions, each a minimum: how many there are", 11)


def draw_trained_minima(path: str | Path, found: list[TrainedMinima]) -> None:
    """Draw for each problem the risks at which training ends, kinks and moves. Writes a PNG."""
    figure = Figure(figsize=(14, 2.7 * len(found) + 0.9), layout="constrained")
    axes = figure.subplots(len(found), 3, squeeze=False, width_ratios=[2.4, 1, 1])
    for row, minima in zip(axes, found, strict=True):
        _draw_ends(row[0], minima)
        _draw_kinks(row[1], minima)
        _draw_moves(row[2], minima)
    axes[-1, 0].set_xlabel("trainings, by their risks")
    axes[-1, 1].set_xlabel("kinks of a proved minimum")
    axes[-1, 2].set_xlabel("change since the end of training")
    marks = [Line2D([], [], ls="none", **style) for style, _ in ENDS.values()]
    words = [label for _, label in ENDS.values()]
    figure.legend(marks, words, loc="outside upper left", ncols=4, frameon=False, fontsize=10)
    save_figure(path, figure, SCREEN)


def _draw_ends(ax: Axes, minima: TrainedMinima) -> None:
    """Draw the risks of all trainings in their order: those of the same minimum make a step."""
    ends = sorted(minima.ends, key=lambda end: end.risk)
    kinds = np.array([_kind_of(minima, end) for end in ends])
    ranks, risks = np.arange(1, len(ends) + 1), np.array([end.risk for end in ends])
    size = float(np.clip(300 / len(ends), 2, 6))
    for kind in np.unique(kinds):
        some, style = kinds == kind, ENDS[kind][0] | {"ms": size}
        ax.plot(ranks[some], risks[some], ls="none", clip_on=False, **style)
    ax.set_ylim(0 if "zero" in kinds else None, None)
    ax.set_ylabel("empirical risk R")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    open_frame(ax)
    n = minima.counts
    words = f"{n['proved']} of {n['trainings']} proved, {n['spurious']} spurious"
    words += f"; {n['zero']} at R = 0" * bool(n["zero"])
    words += f"; {n['not_proved']} not proved" * bool(n["not_proved"])
    set_title(ax, f"{minima.problem.title}\n{words}", 10)


def _kind_of(minima: TrainedMinima, end: End) -> str:
    """Return which of ENDS it is."""
    if end.proved:
        return "spurious" if minima.spurious(end) else "lowest"
    return "zero" if end.zero else "open"


def _draw_kinks(ax: Axes, minima: TrainedMinima) -> None:
    """Draw how many trainings end in proved minima with so many kinks."""
    kinks = [end.kinks for end in minima.ends if end.proved]
    ax.bar(*np.unique(kinks, return_counts=True), color=MINIMUM)
    ax.set_xlim(-0.8, max([*kinks, 4]) + 0.8)  # a few whole numbers, even if all are 0
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_ylabel("trainings")
    open_frame(ax)


def _draw_moves(ax: Axes, minima: TrainedMinima) -> None:
    """Draw how far the proved minima are from where training ended."""
    moves = [max(end.moved, LEAST_MOVE) for end in minima.ends if end.proved]
    edges = np.arange(np.log10(LEAST_MOVE), 4.5, 0.5)
    ax.hist(moves, 10.0**edges, color=MINIMUM)
    ax.set_xscale("log")
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_ylabel("trainings")
    open_frame(ax)


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
            STEPS, np.full(len(STEPS), max(row.reached, FLOOR)), color=ELSEWHERE, lw=2, ls="--"
        )
        proved = "certified" if c.holds else "not certified"
        set_title(ax, f"{row.name}: {proved}, $\\lambda_{{\\min}}(H)$ = {c.hessian:.2g}", 10)
        open_frame(ax)
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
    save_figure(path, figure, SCREEN)


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
        color=ELSEWHERE,
        label="lowest risk found elsewhere",
    )
    left.axvline(samples, color="0.6", lw=1, ls=":")
    last = samples >= max(widths)  # then the words are on its left
    left.annotate(
        f"N = {samples} samples",
        (samples, 0.62),
        xycoords=left.get_xaxis_transform(),  # at this share of the height
        xytext=(-4 if last else 4, 0),
        textcoords="offset points",
        ha="right" if last else "left",
    )
    left.set_ylabel("empirical risk R")
    title = "The bad minimum stays, however wide the network" if proved else "Risks of both"
    set_title(left, title, 11)
    left.legend(loc="center left", frameon=False)
    for values, style, label in (
        ([row.found.certificate.hessian for row in rows], "o-", "$\\lambda_{\\min}(H)$"),
        ([row.found.certificate.radius for row in rows], "s--", "radius of the certificate"),
    ):
        right.loglog(widths, values, style, color="0.2", label=label)
    set_title(right, "What its certificate rests on", 11)
    right.legend(frameon=False)
    for ax in (left, right):
        ax.set_xlabel("units of the hidden layer")
        open_frame(ax)
    save_figure(path, figure, SCREEN)


def _all_certified(rows: list[SmoothRow]) -> bool:
    return all(row.found.certificate.holds for row in rows)
