"""Figures of landscapes: level sets, lines through a point, surfaces.

Risks are drawn as differences to that of theta: what is lower is orange, and only that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import BoundaryNorm, ListedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from .experiments import Panel
from .landscape import Landscape
from .reports import whole_file

HIGHER, LOWER = "#5e3c99", "#d95f02"  # purple and orange, which the colour-blind tell apart
UP, DOWN = 9, 4  # levels above and below theta; the roots of their risks are equally far apart
WIDTH, DPI = 7.2, 200  # inches of a page's text
SMALL, LARGE = 6.5, 7.5  # points of fonts
DATELESS = {"png": {}, "pdf": {"CreationDate": None}}  # the same numbers give the same bytes
INSIDE = "all within the certified radius"


def draw_level_sets(path: str | Path, rows: Sequence[Sequence[Panel]]) -> None:
    """Draw the level sets of planes ([CNN] Figure 2). Writes a PNG or, by its suffix, a PDF."""
    figure = Figure(figsize=(WIDTH, 2.72 * len(rows)), layout="constrained")
    for ax, panel, letter in _panels(figure, rows):
        _level_sets(ax, panel)
        points = panel.landscape.risks.size
        _title(ax, panel, letter, f"{panel.landscape.lower.sum()} of {points} points are lower")
    _write(path, figure)


def draw_lines(path: str | Path, rows: Sequence[Sequence[Panel]]) -> None:
    """Draw the risk on lines through a point ([CNN] Figure 3). Writes a PNG or a PDF."""
    figure = Figure(figsize=(WIDTH, 2.6 * len(rows)), layout="constrained")
    for ax, panel, letter in _panels(figure, rows):
        _lines(ax, panel)
        random = panel.landscape.lower[: -1 if panel.escape else None]
        found = f"{random.any(axis=1).sum()} of {len(random)} directions are lower"
        _title(ax, panel, letter, f"{found} in places" if random.any() else found)
    _write(path, figure)


def draw_surfaces(path: str | Path, rows: Sequence[Sequence[Panel]]) -> None:
    """Draw planes as surfaces in three dimensions. Writes a PNG or a PDF."""
    figure = Figure(figsize=(WIDTH, 2.8 * len(rows)), layout="constrained")
    for ax, panel, letter in _panels(figure, rows, projection="3d"):
        _surface(ax, panel)
        height, _ = ax.get_zlabel(), ax.set_zlabel("")
        _title(ax, panel, letter, f"height {height}")
    _write(path, figure)


def _panels(figure: Figure, rows: Sequence[Sequence[Panel]], **options):
    """Yield axes, panel and letter."""
    axes = figure.subplots(len(rows), max(map(len, rows)), squeeze=False, subplot_kw=options)
    letters = iter("abcdefghijklmnopqrstuvwxyz")
    for places, row in zip(axes, rows, strict=True):
        for ax in places[len(row) :]:
            ax.set_axis_off()
        for ax, panel in zip(places, row, strict=False):
            ax.tick_params(labelsize=SMALL, length=2, pad=1.5)
            yield ax, panel, next(letters)


def _title(ax, panel: Panel, letter: str, found: str) -> None:
    ax.set_title(f"({letter}) {panel.title}\n{found}", fontsize=LARGE, loc="left", linespacing=1.3)


def _heights(landscape: Landscape) -> np.ndarray:
    """Return R - R(theta), and 0 for what rounding alone makes lower."""
    heights = landscape.risks - landscape.centre
    return np.where(landscape.lower, heights, np.maximum(heights, 0))


def _levels(heights: np.ndarray) -> tuple[np.ndarray, ListedColormap, BoundaryNorm]:
    """Return the levels, 0 among them, and the colours between them."""
    low, high = min(float(heights.min()), 0.0), max(float(heights.max()), 0.0)
    up = high * (np.arange(high > 0, UP + 1) / UP) ** 2 if high else np.zeros(0)
    down = low * (np.arange(DOWN, 0, -1) / DOWN) ** 2 if low else np.zeros(0)
    levels = np.concatenate([down, [0.0], up])
    colors = [_shade(LOWER, n / DOWN) for n in range(len(down), 0, -1)]
    colors += [_shade(HIGHER, n / UP) for n in range(len(up))]
    return levels, ListedColormap(colors), BoundaryNorm(levels, len(levels) - 1)


def _shade(color: str, strength: float) -> np.ndarray:
    return 1 + (np.array(to_rgb(color)) - 1) * (0.06 + 0.9 * strength)


def _level_sets(ax, panel: Panel) -> None:
    landscape, heights = panel.landscape, _heights(panel.landscape)
    levels, colors, norm = _levels(heights)
    grid = landscape.alpha, landscape.beta, heights.T
    ax.contourf(*grid, levels, cmap=colors, norm=norm)
    lines = ax.contour(*grid, levels[levels != 0], colors="0.35", linewidths=0.4)
    shown = [level for level in lines.levels[::-1][::3] if level > 0]
    ax.clabel(lines, shown, fmt="%.1g", fontsize=SMALL - 1, colors="k")
    if levels[0] < 0:
        ax.contour(*grid, [0.0], colors="k", linewidths=1.1)
    ax.plot(0, 0, "k.", ms=4)
    if isinstance(panel.escape, tuple):
        ax.annotate("", panel.escape, (0, 0), arrowprops={"arrowstyle": "->", "lw": 1.2})
    if panel.certified is not None:
        corners = np.vstack([panel.certified, panel.certified[:1]])
        limits = np.array([abs(landscape.alpha).max(), abs(landscape.beta).max()])
        if (abs(corners) > limits).any(axis=1).all():
            ax.text(0.5, 0.03, INSIDE, transform=ax.transAxes, ha="center", fontsize=SMALL)
        else:
            ax.plot(*corners.T, "--", color="k", lw=1, label="certified radius")
            ax.legend(loc="lower center", fontsize=SMALL, framealpha=0.8, borderpad=0.3)
    _scale(ax.xaxis, panel.axes[0], landscape.alpha)
    _scale(ax.yaxis, panel.axes[1], landscape.beta)


def _scale(axis, label: str, values: np.ndarray, bins: int = 4) -> None:
    """Set limits and ticks of an axis, with the power of ten in its label."""
    low, high = float(np.min(values)), float(np.max(values))
    power = math.floor(math.log10(max(abs(low), abs(high)) or 1.0))
    power = 0 if -2 < power < 3 else power
    getattr(axis.axes, f"set_{axis.axis_name}lim")(low, high)
    axis.set_major_locator(MaxNLocator(bins, symmetric=low == -high))
    axis.set_major_formatter(
        lambda value, _: f"{value / 10.0**power:.3g}".replace("-", "\N{MINUS SIGN}")
    )
    unit = rf" [$10^{{{power}}}$]" if power else ""
    axis.set_label_text(label + unit, fontsize=LARGE)
    axis.labelpad = 2


def _lines(ax, panel: Panel) -> None:
    landscape, alpha = panel.landscape, panel.landscape.alpha
    heights = landscape.risks - landscape.centre
    random = heights[:-1] if panel.escape else heights
    low, high = float(heights.min()), float(random.max())
    for bottom, color in ((0.0, HIGHER), (-1.0, LOWER)):  # each cut to its side of 0
        segments = [np.c_[alpha, y] for y in random]
        lines = LineCollection(segments, colors=color, linewidths=0.5, alpha=0.3)
        half = Rectangle((alpha[0], bottom * 1e9), alpha[-1] - alpha[0], 1e9)
        ax.add_collection(lines).set_clip_path(
            half.get_path(), half.get_patch_transform() + ax.transData
        )
    if panel.escape:
        ax.plot(alpha, heights[-1], color="k", lw=1.4, label="escape")
        ax.set_yscale("symlog", linthresh=-low / 30, linscale=1)
        ax.set_ylabel(panel.axes[1], fontsize=LARGE)
        ax.legend(loc="lower left", fontsize=SMALL, frameon=False)
    else:  # what falls below 0 fills a fifth at least
        lower = landscape.lower.any()
        ends = (1.1 * low, min(1.05 * high, -4 * low)) if lower else (-0.05 * high, 1.05 * high)
        _scale(ax.yaxis, panel.axes[1], np.array(ends), 6)
    ax.axhline(0, color="k", lw=0.9, zorder=3)
    if panel.certified is not None and panel.certified.min() >= abs(alpha).max():
        ax.text(0.5, 0.93, INSIDE, transform=ax.transAxes, ha="center", fontsize=SMALL)
    _scale(ax.xaxis, panel.axes[0], alpha)
    ax.spines[["top", "right"]].set_visible(False)


def _surface(ax, panel: Panel) -> None:
    landscape, heights = panel.landscape, _heights(panel.landscape)
    _, colors, norm = _levels(heights)
    x, y = np.meshgrid(landscape.alpha, landscape.beta, indexing="ij")
    ax.plot_surface(
        x,
        y,
        heights,
        facecolors=colors(norm(heights)),
        shade=False,
        rcount=200,
        ccount=200,
        edgecolor="0.4",
        linewidth=0.15,
    )
    _scale(ax.xaxis, r"$\alpha$", landscape.alpha)
    _scale(ax.yaxis, r"$\beta$", landscape.beta)
    _scale(ax.zaxis, r"$R - R(\theta)$", heights)
    ax.tick_params(labelsize=SMALL, pad=-2)
    ax.set_box_aspect(None, zoom=0.84)


def _write(path: str | Path, figure: Figure) -> None:
    kind = Path(path).suffix.removeprefix(".").lower()
    if kind not in ("png", "pdf"):
        raise ValueError(f"figure: expected a name that ends in .png or .pdf, got {path}")
    FigureCanvasAgg(figure)
    with whole_file(path) as file:
        figure.savefig(file, format=kind, dpi=DPI, metadata=DATELESS[kind])
