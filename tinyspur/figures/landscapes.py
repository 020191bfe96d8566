"""Figures of landscapes: level sets, lines through a point, surfaces.

The figures show the risk less the risk of the point in the middle. Orange means lower by more than
rounding, and is used for nothing else. An escape is black.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import LineCollection
from matplotlib.colors import BoundaryNorm, ListedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.path import Path as Outline
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from ..certificates import Certificate
from ..landscape.risks import Landscape
from ..studies.paper_figures import Panel
from .style import (
    HIGHER,
    LOWER,
    PAGE,
    figure_kind,
    open_frame,
    panel_letters,
    save_figure,
    set_title,
    window,
)

UP, DOWN = 9, 4  # levels above and below; their distances from 0 grow as squares
WIDTH = 7.2  # inches of a page's text
SMALL, LARGE = 6.5, 7.5  # points of fonts
FEWEST = 9  # points along a side of a plane for contours; between fewer they'd show false islands
CONTOURS = (
    "Contours: the risk less that of the point in the middle, orange where it is lower by more "
    "than rounding; each panel has its own shades"
)
INSIDE = "all within the certified radius"
TOO_SMALL = "the certified radius is too small to be seen"
SEEN = 0.016  # of the way to the end of the axes: less is hidden by the dot in the middle
SHORT = 2.9  # inches of axes: in narrower ones the title takes two lines
HIGH = 100  # times as high as low: heights are drawn on a scale that has powers of ten
FEW = 15  # lines that are drawn at full strength


def draw_level_sets(path: str | Path, rows: Sequence[Sequence[Panel]]) -> None:
    """Draw the level sets of planes ([CNN] Figure 2). Writes a PNG or, by its suffix, a PDF."""
    figure = Figure(figsize=(WIDTH, 2.72 * len(rows) + 0.2), layout="constrained")
    for ax, panel, letter in _panels(figure, rows):
        _level_sets(ax, panel)
        lower = panel.landscape.lower
        _title(ax, panel, letter, f"{lower.sum()} of {lower.size} points are lower")
    figure.supxlabel(CONTOURS, fontsize=SMALL, x=0.01, ha="left")
    save_figure(path, figure, PAGE)


def draw_lines(path: str | Path, rows: Sequence[Sequence[Panel]]) -> None:
    """Draw the risk on lines through a point ([CNN] Figure 3). Writes a PNG or a PDF."""
    figure = Figure(figsize=(WIDTH, 2.6 * len(rows)), layout="constrained")
    for ax, panel, letter in _panels(figure, rows):
        _lines(ax, panel)
        lower = panel.landscape.lower_lines
        _title(ax, panel, letter, f"{lower} of {len(panel.landscape.risks)} lines lead lower")
    save_figure(path, figure, PAGE)


def draw_surfaces(path: str | Path, rows: Sequence[Sequence[Panel]]) -> None:
    """Draw planes as surfaces in three dimensions, all seen from the same side. A PNG or a PDF.

    The lowest of the four ends of the plane that falls deepest is in front, where it hides nothing.
    """
    figure = Figure(figsize=(WIDTH, 2.75 * len(rows)))
    deepest = min((_heights(p.landscape) for row in rows for p in row), key=_depth)
    side = int(deepest[[-1, -1, 0, 0], [0, -1, -1, 0]].argmin())
    for ax, panel, letter in _panels(figure, rows, projection="3d"):
        unit = _surface(ax, panel, side)
        words = f"({letter}) {panel.symbol}: {panel.words}\nheight {_difference(panel)}{unit}"
        ax.text2D(0.04, 1.0, words, transform=ax.transAxes, fontsize=LARGE, va="top")
    figure.subplots_adjust(0.0, 0.03, 0.97, 0.97, 0.04, 0.08)
    save_figure(path, figure, PAGE)


def plot_landscape(
    landscape: Landscape,
    certificate: Certificate | None = None,
    ax: Axes | None = None,
    *,
    path: str | Path | None = None,
) -> Axes:
    """Draw the risks of a plane, less that of theta; return the axes.

    Orange is lower by more than rounding, purple is not; a black line parts them. With a
    certificate of theta, which a dot marks, a dashed line shows where its radius ends: within it
    nothing is lower, up to the certificate's `delta`. Of fewer than 9 x 9 risks each is a cell of
    its own: contours between so few would show islands that aren't there.

    Draws in `ax`, or in a new figure of pyplot, which a notebook or ``pyplot.show()`` shows. Writes
    a PNG or PDF to `path`, if given. Raises ValueError for lines, for risks that are not finite,
    and for a certificate that proves nothing.

    >>> ticks = np.linspace(-1, 1, 21)
    >>> bowl = Landscape(ticks, ticks, ticks[:, None] ** 2 + ticks**2, 0.0, 0.0)
    >>> plot_landscape(bowl, ax=Figure().subplots()).get_title(loc="left")
    'R(θ) = 0; 0 of 441 points are lower'
    """
    return _plot("plot_landscape", landscape, certificate, ax, path)


def plot_lines(
    landscape: Landscape,
    certificate: Certificate | None = None,
    ax: Axes | None = None,
    *,
    path: str | Path | None = None,
) -> Axes:
    """Draw the risks on lines through a point, less that of the point; return the axes.

    Orange is lower by more than rounding. With a certificate of the point, what is between the
    dashed lines is within its radius on every line. Else as `plot_landscape`.
    """
    return _plot("plot_lines", landscape, certificate, ax, path)


def _plot(
    name: str,
    landscape: Landscape,
    certificate: Certificate | None,
    ax: Axes | None,
    path: str | Path | None,
) -> Axes:
    """Draw a plane or lines, whichever function of the name is for."""
    if not isinstance(landscape, Landscape):
        raise ValueError(
            f"{name}: expected a Landscape as of ts.scan, got {type(landscape).__name__}"
        )
    lines = landscape.beta is None
    if lines != (name == "plot_lines"):
        of_plane, of_lines = "the risks of a plane", "the risks on lines"
        wanted, found = (of_plane, of_lines) if lines else (of_lines, of_plane)
        other = "plot_lines" if lines else "plot_landscape"
        raise ValueError(f"{name}: expected {wanted}, got {found}, which {other} draws")
    certified = None
    if certificate is not None:
        if not isinstance(certificate, Certificate) or not certificate.proves:
            got = getattr(certificate, "words", type(certificate).__name__)
            raise ValueError(f"{name}: expected a certificate with a radius, got {got}")
        if landscape.unit_ball is None:
            raise ValueError(f"{name}: expected directions, got a file without them: scan again")
        certified = certificate.radius * landscape.unit_ball
    if path is not None:
        figure_kind(path)
    axes, along = ("$d_k$",) if lines else ("$d_1$", "$d_2$"), "coefficient of"
    panel = Panel(r"$\theta$", "", landscape, axes, certified, along=along)
    _check_finite(name, panel)
    if ax is None:
        ax = window(3.8, 3.5).subplots()
    if lines:
        _lines(ax, panel)
        found = f"{landscape.lower_lines} of {len(landscape.risks)} lines lead lower"
    else:
        _level_sets(ax, panel)
        found = f"{landscape.lower.sum()} of {landscape.risks.size} points are lower"
    ax.tick_params(labelsize=SMALL)
    after = "; " if ax.bbox.width / ax.figure.dpi >= SHORT else "\n"
    set_title(ax, f"R(θ) = {landscape.centre:.6g}{after}{found}", LARGE)
    if path is not None:
        save_figure(path, ax.figure.figure, PAGE)
    return ax


def _panels(figure: Figure, rows: Sequence, **options) -> Iterator[tuple[Axes, Panel, str]]:
    """Yield axes, panel and letter."""
    axes = figure.subplots(len(rows), max(map(len, rows)), squeeze=False, subplot_kw=options)
    letters = iter(panel_letters(sum(map(len, rows))))
    for places, row in zip(axes, rows, strict=True):
        for ax in places[len(row) :]:
            ax.set_axis_off()
        for ax, panel in zip(places, row, strict=False):
            _check_finite(f"figure of {panel.symbol}", panel)
            ax.tick_params(labelsize=SMALL, length=2, pad=1.5)
            yield ax, panel, next(letters)


def _check_finite(name: str, panel: Panel) -> None:
    for d in (panel.landscape, *[panel.escape] * isinstance(panel.escape, Landscape)):
        if d.not_finite or not np.isfinite(d.centre):
            raise ValueError(
                f"{name}: expected finite risks, got {d.not_finite} of {d.risks.size} that are "
                f"not, and {d.centre:.3g} in the middle"
            )


def _title(ax: Axes, panel: Panel, letter: str, found: str) -> None:
    words = f"({letter}) {panel.symbol}: {panel.words}\n{found}"
    set_title(ax, words, LARGE, linespacing=1.3)


def _difference(panel: Panel) -> str:
    return f"$R - R({panel.symbol.strip('$')})$"


def _heights(landscape: Landscape) -> np.ndarray:
    """Return the risks less that in the middle; 0 at least where none is lower beyond rounding."""
    heights = landscape.risks - landscape.centre
    return heights if landscape.lower.any() else np.maximum(heights, 0)


def _levels(landscape: Landscape) -> tuple[np.ndarray, ListedColormap, BoundaryNorm]:
    """Return the levels and the colours between them; one level parts what is lower from the rest.

    It lies between the highest of the lower risks and what rounding may explain.
    """
    heights, lower = _heights(landscape), landscape.lower
    low, high = float(heights.min()), max(float(heights.max()), 0.0)
    up = (high or 1.0) * (np.arange(1, UP + 1) / UP) ** 2
    middle, down = 0.0, np.zeros(0)
    if lower.any():
        middle = float(heights[lower].max() - landscape.rounding) / 2
        down = middle + (low - middle) * (np.arange(DOWN, 0, -1) / DOWN) ** 2
    levels = np.unique(np.concatenate([down, [middle], up]))
    below = int((levels < middle).sum())
    colors = [_shade(LOWER, n / DOWN) for n in range(below, 0, -1)]
    colors += [_shade(HIGHER, n / UP) for n in range(len(levels) - 1 - below)]
    return levels, ListedColormap(colors), BoundaryNorm(levels, len(levels) - 1)


def _number(level: float) -> str:
    return f"{level:.0f}" if abs(level) >= 100 else f"{level:.2g}"


def _shade(color: str, strength: float) -> np.ndarray:
    return 1 + (np.array(to_rgb(color)) - 1) * (0.06 + 0.9 * strength)


def _level_sets(ax: Axes, panel: Panel) -> None:
    landscape, heights = panel.landscape, _heights(panel.landscape)
    if min(heights.shape) < 2:
        raise ValueError(f"level sets: expected 2 x 2 points or more, got {heights.shape}")
    levels, colors, norm = _levels(landscape)
    grid = landscape.alpha, landscape.beta, heights.T
    contours = min(heights.shape) >= FEWEST
    if contours:
        ax.contourf(*grid, levels, cmap=colors, norm=norm)
    else:
        ax.pcolormesh(*grid, cmap=colors, norm=norm, shading="nearest", edgecolors="w", lw=0.3)
    if np.ptp(heights) and contours:
        middle = levels[levels <= 0][-1]
        lines = ax.contour(*grid, levels[levels != middle], colors="0.35", linewidths=0.4)
        higher, lower = (lines.levels[sign * lines.levels > 0] for sign in (1, -1))
        lower = lower[::2] if panel.escape is None else lower[:0]  # they'd hide the arrow
        ax.clabel(
            lines, [*lower, *higher[::-3]], fmt=_number, fontsize=SMALL - 1, colors="k", zorder=4
        )
        for label in lines.labelTexts:  # readable on the outline of a certified radius, too
            label.set_path_effects([withStroke(linewidth=2, foreground="w", alpha=0.8)])
        if middle < 0:
            ax.contour(*grid, [middle], colors="k", linewidths=1.1, linestyles="solid")
    ax.plot(0, 0, "k.", ms=4)
    if panel.escape is not None:
        arrow = {"arrowstyle": "->", "lw": 1.2, "shrinkA": 0, "shrinkB": 0}
        ax.annotate("", panel.escape, (0, 0), arrowprops=arrow)
    if panel.certified is not None:
        ends = np.stack(np.meshgrid(landscape.alpha[[0, -1]], landscape.beta[[0, -1]]), axis=-1)
        if Outline(panel.certified).contains_points(ends.reshape(-1, 2)).all():
            _say(ax, 0.04, INSIDE)
        elif (abs(panel.certified) < SEEN * abs(ends).max(axis=(0, 1))).all():
            _say(ax, 0.04, TOO_SMALL)
        else:
            outline = np.vstack([panel.certified, panel.certified[:1]])
            ax.plot(*outline.T, "--", color="k", lw=1, label="certified radius")
            ax.legend(loc="best", fontsize=SMALL, framealpha=0.8, borderpad=0.3)
    for axis, label, ticks in zip(
        (ax.xaxis, ax.yaxis), panel.axes, (landscape.alpha, landscape.beta), strict=True
    ):
        _scale(axis, f"{panel.along} {label}", ticks)
        if not contours:
            _show_cells(axis, ticks)


def _show_cells(axis: Axis, places: np.ndarray) -> None:
    """Show the cells around these places whole, and put up to five ticks in their middles."""
    first, _, last = np.diff(places[[0, 1, -2, -1]]) / 2
    getattr(axis.axes, f"set_{axis.axis_name}lim")(places[0] - first, places[-1] + last)
    step = -(-len(places) // 5)
    axis.set_ticks(places[len(places) // 2 % step :: step])


def _say(ax: Axes, height: float, words: str) -> None:
    """Write a remark in the middle of the axes, at this share of their height."""
    box = {"facecolor": "w", "alpha": 0.8, "edgecolor": "0.8", "pad": 2}
    place = {"transform": ax.transAxes, "ha": "center"}
    ax.text(0.5, height, words, fontsize=SMALL, bbox=box, **place)


def _scale(axis: Axis, label: str, values: np.ndarray, bins: int = 4) -> str:
    """Set limits, ticks and label of an axis; return the power of ten, which ends the label."""
    low, high = float(np.min(values)), float(np.max(values))
    high = high if high > low else low + 1
    power = math.floor(math.log10(max(abs(low), abs(high))))
    power = 0 if -2 < power < 3 else power
    getattr(axis.axes, f"set_{axis.axis_name}lim")(low, high)
    axis.set_major_locator(MaxNLocator(bins, symmetric=low == -high))
    axis.set_major_formatter(
        lambda value, _: f"{value / 10.0**power:.3g}".replace("-", "\N{MINUS SIGN}")
    )
    unit = rf" [$10^{{{power}}}$]" if power else ""
    axis.set_label_text(label + unit, fontsize=LARGE)
    axis.labelpad = 2
    return unit


def _lines(ax: Axes, panel: Panel) -> None:
    alpha, heights = panel.landscape.alpha, _heights(panel.landscape)
    low, high = float(heights.min()), float(heights.max())
    strength = min(1.0, max(0.3, FEW / len(heights)))
    cut = -panel.landscape.rounding if low < 0 else 0.0
    for end, color in ((2 * high, HIGHER), (2 * low, LOWER)):  # drawn twice, each time cut off
        segments = [np.c_[alpha, y] for y in heights]
        style = {"linewidths": 0.35 + strength / 2, "alpha": strength}
        lines = LineCollection(segments, colors=color, **style)
        half = Rectangle((alpha[0], cut), np.ptp(alpha), end - cut)
        clip = half.get_patch_transform() + ax.transData
        ax.add_collection(lines).set_clip_path(half.get_path(), clip)
    least = low
    if panel.escape is not None:
        escape = _heights(panel.escape)[0]
        ax.plot(panel.escape.alpha, escape, color="k", lw=1.4, label="escape")
        least = min(escape.min(), low)
    small = -low > panel.landscape.rounding and high > HIGH * -low
    if panel.escape is not None or small:
        least = abs(least) or high or 1.0
        ax.set_yscale("symlog", linthresh=10.0 ** math.floor(math.log10(least) - 1))
        ax.set_ylabel(_difference(panel), fontsize=LARGE)
    else:  # at least a fifth of the height is for what falls below 0
        ends = (1.1 * low, min(1.05 * high, -4 * low)) if low < 0 else (-0.05 * high, 1.05 * high)
        _scale(ax.yaxis, _difference(panel), np.array(ends), 6)
    ax.axhline(0, color="k", lw=0.9, zorder=3)
    if panel.certified is not None:
        nearest = float(panel.certified.min()) / abs(alpha).max()
        if nearest >= 1 or nearest < SEEN:
            _say(ax, 0.93, INSIDE if nearest >= 1 else TOO_SMALL)
        else:
            for end, label in ((-1, None), (1, "certified radius")):
                ax.axvline(end * panel.certified.min(), color="k", lw=1, ls="--", label=label)
    if ax.get_legend_handles_labels()[0]:
        loc = "upper center" if panel.escape is None else "lower left"
        ax.legend(loc=loc, fontsize=SMALL, framealpha=0.8, borderpad=0.3)
    _scale(ax.xaxis, f"{panel.along} {panel.axes[0]}", alpha)
    open_frame(ax)


def _depth(heights: np.ndarray) -> float:
    """Return how deep a plane falls, as a share of how high it rises: 0 or less."""
    return min(float(heights.min()), 0.0) / (float(heights.max()) or 1.0)


def _surface(ax: Axes, panel: Panel, side: int) -> str:
    """Draw a surface, each cell in the colour of its lowest corner; return the unit of height."""
    landscape, heights = panel.landscape, _heights(panel.landscape)
    if min(heights.shape) < 2:
        raise ValueError(f"surface: expected 2 x 2 points or more, got {heights.shape}")
    _, colors, norm = _levels(landscape)
    lowest = np.lib.stride_tricks.sliding_window_view(heights, (2, 2)).min(axis=(2, 3))
    shades = colors(norm(np.pad(lowest, ((0, 1), (0, 1)), mode="edge")))
    x, y = np.meshgrid(landscape.alpha, landscape.beta, indexing="ij")
    counts = {"rcount": len(x), "ccount": len(y.T)}
    edges = {"edgecolor": "0.4", "linewidth": 0.15, "shade": False}
    ax.plot_surface(x, y, heights, facecolors=shades, **counts, **edges)
    _scale(ax.xaxis, f"along {panel.axes[0]}", landscape.alpha, 3)
    _scale(ax.yaxis, f"along {panel.axes[1]}", landscape.beta, 3)
    unit = _scale(ax.zaxis, "", heights)
    ax.set_zlabel("")
    ax.tick_params(labelsize=SMALL, pad=-2)
    ax.set_box_aspect((1, 1, 0.75), zoom=0.86)
    ax.view_init(azim=-60 + 90 * side)
    return unit
