"""Pictures of weight matrices, for looking at them."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from ..engine.backend import to_numpy
from ..engine.parameters import Parameters
from ..engine.plain import real
from ..layers import BlockMatrix, ConvolutionMatrix, DenseMatrix, WeightMatrix, is_positive
from .style import ENTRIES, PAGE, NotebookFigure, figure_kind, save_figure, set_title, window

EXTENT = 400  # the most rows and columns of a picture by default
LARGEST = 800  # and where it is
FEWEST = 40  # positions of a block: if fewer would fit, maps are left out instead
STRIP = 2**22  # entries of a dense matrix that are looked at in one go
LONGEST, SHORTEST = 900, 260  # dots of the frame
COARSEST = 60  # the most dots of an entry, unless a small frame needs more
MARGINS = {"left": 0.58, "right": 0.9, "bottom": 0.42, "top": 0.08}  # inches around the frame
SIDE_BY_SIDE = 3  # matrices of a point
NARROWEST = 3.4  # inches of a figure, for its title
LETTER, LINE = 0.063, 0.13  # inches of a letter and of a line of the title


@dataclass(frozen=True)
class _Side:
    """What is drawn along one side: the first `shown` of the `positions` of each of `maps`.

    In a picture of filters these are the taps.
    """

    name: str
    maps: np.ndarray
    total: int
    shown: int
    positions: int
    unit: str = "position"

    @property
    def size(self) -> int:
        return len(self.maps) * self.shown

    @property
    def indices(self) -> np.ndarray:
        return (self.maps[:, None] * self.positions + np.arange(self.shown)).ravel()

    @property
    def words(self) -> str:
        """Return which maps are drawn, nothing if all are."""
        if np.array_equal(self.maps, np.arange(self.total)):
            return ""
        first, last = self.maps[0], self.maps[-1]
        if len(self.maps) > 1 and np.array_equal(self.maps, np.arange(first, last + 1)):
            return f"{self.name}s {first} to {last} of {self.total:,}"
        if len(self.maps) > 6:
            return f"{len(self.maps)} of {self.total:,} {self.name}s"
        s = "s" * (len(self.maps) > 1)
        return f"{self.name}{s} {', '.join(map(str, self.maps))} of {self.total:,}"


def plot_matrix(
    W: WeightMatrix,
    ax: Axes | None = None,
    *,
    maps: Sequence[int] | None = None,
    channels: Sequence[int] | None = None,
    corner: int | None = None,
    filters: bool = False,
    limit: float | None = None,
    path: str | Path | None = None,
) -> Figure:
    """Draw the entries of W: blue is negative, red positive, and what is 0 is white.

    The lines separate the blocks W.block(t, c): map t, or neuron t of a dense layer, is a strip of
    rows, channel c a strip of columns. Of a matrix with more than 400 rows or columns a part is
    drawn, and the title says which: the first positions of each block or, if these would be too
    few, of the first maps and channels only. Choose others with `maps` and `channels`, and the
    number of positions with `corner`, which counts along the longer side of a block (the shorter
    side is cut to the same share). Up to 800 rows and columns can be drawn. Only entries that are
    drawn are computed.

    Of a layer in a residual block its own matrix is drawn, without what it carries along or adds.
    With `filters` the blocks of a convolution are its filters, k x k each. The colours end at
    -`limit` and `limit`, by default the largest modulus of an entry that is drawn.

    Draws in `ax`, or in a figure of its own, 6 inches wide at most; returns the figure. A notebook
    shows it; ``.savefig(name)`` writes it, as does `path`, a PNG or a PDF by its suffix. For a
    window take `ax` from ``matplotlib.pyplot.subplots(layout="constrained")`` and call ``show()``.

    Raises ValueError for what is not a weight matrix, maps or positions that it does not have,
    entries that are not finite and files of another kind; TypeError for max pooling, which has
    entries only ``.at(o)``.

    >>> W = ConvolutionMatrix(np.array([[[1.0, 0.0, -2.0]], [[0.0, 3.0, 0.0]]]), (5,))
    >>> print(plot_matrix(W).axes[0].get_title(loc="left"))
    ConvolutionMatrix(10 x 5, 2 maps from 1,
    filters 3, 13 nonzeros)
    """
    if not isinstance(W, WeightMatrix):
        got = type(W).__name__
        raise ValueError(f"plot_matrix: expected a weight matrix as theta.W[2], got {got}")
    if path is not None:
        figure_kind(path)
    if limit is not None and not 0 < real(limit) < math.inf:
        raise ValueError(f"plot_matrix limit: expected a positive number, got {limit!r}")
    W = _own(W)
    if filters:
        rows, columns = _filter_sides(W, maps, channels, corner)
        entries = _finite(W, _filters(W, rows, columns))
    else:
        rows, columns = _sides(W, maps, channels, corner)
        entries = _finite(W, _entries(W, rows, columns))
    parts = _title(W, rows, columns, filters)
    if ax is None:
        ax, bar = _frame(rows, columns, parts)
        place = {"cax": bar}
    else:
        width = ax.bbox.width / ax.figure.dpi
        set_title(ax, _wrapped(parts, width), 8)
        place = {"ax": ax, "aspect": 30, "pad": 0.03}
    _draw(ax, entries, limit, place)
    _separate(ax, rows, columns)
    figure = ax.figure.figure  # not the part of it that `ax` may be in
    if path is not None:
        save_figure(path, figure, PAGE)
    return figure


def plot_point(
    theta: Parameters, axes: Sequence[Axes] | None = None, *, path: str | Path | None = None
) -> list[Axes]:
    """Draw the weight matrix and the biases of every layer that has some; return the axes.

    The matrices are drawn as by `plot_matrix`, large ones in part. The column beside each has the
    bias of every row, in colours of its own.

    Draws in `axes`, one for each layer with weights, or in a new figure of pyplot; writes a PNG or
    PDF to `path`, if given. Raises ValueError for another number of axes.
    """
    if not isinstance(theta, Parameters):
        raise ValueError(f"plot_point: expected Parameters, got {type(theta).__name__}")
    layers = list(theta.net.slots)
    if axes is None:
        side = min(SIDE_BY_SIDE, len(layers))
        rows = -(-len(layers) // side)
        places = window(3.6 * side, 3.2 * rows).subplots(rows, side, squeeze=False).ravel()
        axes, unused = np.split(places, [len(layers)])
        for ax in unused:
            ax.remove()
    axes = np.ravel(np.asarray(axes, dtype=object)).tolist()
    if [isinstance(ax, Axes) for ax in axes] != [True] * len(layers):
        raise ValueError(f"plot_point: expected {len(layers)} Axes, one for each W, got {axes}")
    for layer, ax in zip(layers, axes, strict=True):
        W = _own(theta.W[layer])
        rows, columns = _sides(W, None, None, None)
        first, *others = _title(W, rows, columns, False)
        set_title(ax, _wrapped([f"{layer}: {first}", *others], ax.bbox.width / ax.figure.dpi), 8)
        entries = _finite(W, _entries(W, rows, columns))
        _draw(ax, entries, None, {"ax": ax, "aspect": 30, "pad": 0.1})
        _separate(ax, rows, columns)
        if layer in theta.b:
            biases = _finite(W, to_numpy(theta.b[layer]))
            _draw_biases(ax, layer, np.repeat(biases[rows.maps], rows.shown))
    if path is not None:
        save_figure(path, axes[0].figure.figure, PAGE)
    return axes


def _draw_biases(ax: Axes, layer: int, biases: np.ndarray) -> None:
    """Draw the bias of each row that is drawn in `ax` beside it."""
    limit, beside = float(abs(biases).max()) or 1.0, ax.inset_axes((1.015, 0, 0.035, 1))
    column = np.ma.masked_equal(biases[:, None].astype(np.float64), 0)
    beside.imshow(column, cmap=_colours(), vmin=-limit, vmax=limit, aspect="auto")
    ends = f"\N{PLUS-MINUS SIGN}{limit:.2g}" if biases.any() else "= 0"
    beside.set(xticks=[], yticks=[], xlabel=f"$b^{{{layer}}}$\n{ends}")
    beside.xaxis.label.set_size(7)
    beside.spines[:].set(linewidth=0.6, color="0.3")


# What is drawn


def _own(W: WeightMatrix) -> WeightMatrix:
    """Return the layer's own matrix, with its weights on the host."""
    if isinstance(W, BlockMatrix):
        W = W.own_matrix
    return W if W.weights is None else W.with_weights(to_numpy(W.weights))


def _finite(W: WeightMatrix, entries: np.ndarray) -> np.ndarray:
    if not np.isfinite(entries).all():
        raise ValueError(f"picture: expected finite entries, got NaN or infinity in {W!r}")
    return entries


def _sides(W: WeightMatrix, maps, channels, corner) -> tuple[_Side, _Side]:
    """Return the rows and the columns to draw, with the number of positions that fits."""
    totals, positions = (W.maps_out, W.maps_in), (W.positions_out, W.positions_in)
    asked = [_asked("maps", maps, W.maps_out), _asked("channels", channels, W.maps_in)]
    pooling = not isinstance(W, (ConvolutionMatrix, DenseMatrix))  # map t reads channel t alone
    if pooling:
        asked = [asked[side] if asked[side] is not None else asked[1 - side] for side in (0, 1)]
    most = max(positions)
    if corner is None:
        corner = most
        for some, total, n in zip(asked, totals, positions, strict=True):
            fitting = max(1, EXTENT // (total if some is None else len(some))) * most // n
            corner = min(corner, max(fitting, FEWEST) if some is None else fitting)
    elif not is_positive(corner) or corner > most:
        raise ValueError(f"plot_matrix corner: expected a number in 1..{most}, got {corner!r}")
    shown = [-(-n * corner // most) for n in positions]
    first = [min(total, max(1, EXTENT // n)) for total, n in zip(totals, shown, strict=True)]
    if pooling:
        first = [min(first)] * 2
    sides = [
        _Side(name, np.arange(first[side]) if some is None else some, *counts)
        for side, (name, some, *counts) in enumerate(
            zip(_names(W), asked, totals, shown, positions, strict=True)
        )
    ]
    return _checked(*sides)


def _filter_sides(W: WeightMatrix, maps, channels, corner) -> tuple[_Side, _Side]:
    """Return the same for the filters, which are drawn whole."""
    if not isinstance(W, ConvolutionMatrix):
        raise ValueError(f"plot_matrix filters: expected a convolution, got {W!r}")
    if corner is not None:
        raise ValueError(f"plot_matrix filters: expected no corner of them, got {corner!r}")
    *height, width = W.weights.shape[2:]
    sides = []
    for name, argument, asked, total, k in (
        ("map", "maps", maps, W.maps_out, math.prod(height)),
        ("channel", "channels", channels, W.weights.shape[1], width),  # of a group
    ):
        some = _asked(argument, asked, total)
        if some is None:
            some = np.arange(min(total, max(1, EXTENT // (2 * k))))
        sides.append(_Side(name, some, total, k, k, "tap"))
    return _checked(*sides)


def _names(W: WeightMatrix) -> tuple[str, str]:
    """Return what the blocks of rows and of columns are."""
    dense = isinstance(W, DenseMatrix)
    return (
        "neuron" if dense and W.positions_out == 1 else "map",
        "input" if dense and W.positions_in == 1 else "channel",
    )


def _asked(name: str, asked, total: int) -> np.ndarray | None:
    if asked is None:
        return None
    numbers = np.atleast_1d(np.asarray(asked))
    whole = numbers.ndim == 1 and numbers.size and numbers.dtype.kind in "iu"
    if not whole or numbers.min() < 0 or numbers.max() >= total:
        raise ValueError(f"plot_matrix {name}: expected numbers in 0..{total - 1}, got {asked!r}")
    return numbers.astype(int)


def _checked(rows: _Side, columns: _Side) -> tuple[_Side, _Side]:
    for what, side in (("rows", rows), ("columns", columns)):
        if side.size > LARGEST:
            raise ValueError(
                f"plot_matrix: expected at most {LARGEST} {what}, got {side.size}: "
                f"{len(side.maps)} {side.name}s, {side.shown} positions of each"
            )
    return rows, columns


def _entries(W: WeightMatrix, rows: _Side, columns: _Side) -> np.ndarray:
    """Return the entries to draw, strip by strip: a row of W may be long."""
    height = max(1, STRIP // W.shape[1])
    strips = (rows.indices[top : top + height] for top in range(0, rows.size, height))
    return np.concatenate([W.tocsr(strip)[:, columns.indices].toarray() for strip in strips])


def _filters(W: ConvolutionMatrix, rows: _Side, columns: _Side) -> np.ndarray:
    some = W.weights[np.ix_(rows.maps, columns.maps)]
    blocks = some.reshape(*some.shape[:2], rows.shown, columns.shown)
    return blocks.swapaxes(1, 2).reshape(rows.size, columns.size)


# How it is drawn


def _draw(ax: Axes, entries: np.ndarray, limit: float | None, place: dict) -> None:
    largest = float(abs(entries).max())
    m, n = entries.shape
    dots = ax.bbox.height / m, ax.bbox.width / n
    if min(dots) <= 1.5 < max(dots):  # smoothing one side would blur the other
        entries = entries.repeat(math.ceil(max(dots)), axis=int(dots[1] > dots[0]))
    limit = largest or 1.0 if limit is None else float(limit)
    image = ax.imshow(
        np.ma.masked_equal(entries.astype(np.float64), 0),
        cmap=_colours(),
        vmin=-limit,
        vmax=limit,
        aspect="auto",
        extent=(-0.5, n - 0.5, m - 0.5, -0.5),
        interpolation="nearest" if min(dots) > 1.5 else "antialiased",  # else some may vanish
        interpolation_stage="rgba",
    )
    extend = "both" if largest > limit else "neither"
    bar = ax.figure.colorbar(image, extend=extend, **place)
    ticks = limit * np.linspace(-1, 1, 5)
    bar.set_ticks(ticks, labels=[f"{tick:.3g}".replace("-", "\N{MINUS SIGN}") for tick in ticks])
    bar.ax.tick_params(labelsize=7, length=2, width=0.5)
    bar.ax.axhline(0, color="white", lw=3)  # as is what is 0
    bar.outline.set(linewidth=0.6, edgecolor="0.3")


def _colours() -> ListedColormap:
    """Return RdBu_r without its pale middle: the smallest entries show their sign."""
    shades = np.concatenate([np.linspace(0.02, 0.36, 128), np.linspace(0.64, 0.98, 128)])
    return ListedColormap(colormaps[ENTRIES](shades)).with_extremes(bad="white")


def _separate(ax: Axes, rows: _Side, columns: _Side) -> None:
    """Draw the lines between the blocks and number the maps."""
    inches = np.array([ax.bbox.height, ax.bbox.width]) / ax.figure.dpi
    for side, line, axis, length, letters in (
        (rows, ax.axhline, ax.yaxis, inches[0], 1.5),
        (
            columns,
            ax.axvline,
            ax.xaxis,
            inches[1],
            1 + len(str(max(columns.size, columns.maps.max()))),
        ),
    ):
        step, numbers, name = length / len(side.maps), side.maps, side.name
        places = np.arange(len(side.maps)) * side.shown + (side.shown - 1) / 2
        if side.shown > 1:
            for n in range(1, len(side.maps)):
                line(n * side.shown - 0.5, color="0.55", lw=min(0.6, 0.1 * 72 * step))
        if len(side.maps) == 1 and side.shown > 1:
            step, numbers = length / side.shown, np.arange(side.shown)
            places, name = numbers, f"{side.unit} of {side.name} {side.maps[0]}"
        kept = slice(None, None, _every(letters * 0.075 / step))
        axis.set_ticks(places[kept], numbers[kept])
        axis.set_label_text(name, fontsize=8)
    ax.tick_params(length=0, labelsize=7, pad=2)
    ax.spines[:].set(linewidth=0.6, color="0.3")


def _every(least: float) -> int:
    """Return the smallest of 1, 2, 5, 10, 20, 50, ... that is no less than `least`."""
    return next(m * 10**e for e in range(9) for m in (1, 2, 5) if m * 10**e >= least)


def _frame(rows: _Side, columns: _Side, parts: list[str]) -> tuple[Axes, Axes]:
    """Return the axes of a new figure whose dots are a multiple of the entries, and of its bar."""
    scale = min(COARSEST, max(1, LONGEST // max(rows.size, columns.size)))
    inner, height = (
        max(scale, SHORTEST // side.size) * side.size / PAGE for side in (columns, rows)
    )
    width = max(NARROWEST, MARGINS["left"] + inner + MARGINS["right"])
    title = _wrapped(parts, width - MARGINS["left"])
    top = MARGINS["top"] + LINE * (title.count("\n") + 1.8)
    whole = MARGINS["bottom"] + height + top
    figure = NotebookFigure(figsize=(width, whole), dpi=PAGE)
    left, bottom = MARGINS["left"] / width, MARGINS["bottom"] / whole
    ax = figure.add_axes((left, bottom, inner / width, height / whole))
    bar = figure.add_axes((left + (inner + 0.1) / width, bottom, 0.1 / width, height / whole))
    set_title(ax, title, 8)
    return ax, bar


def _title(W: WeightMatrix, rows: _Side, columns: _Side, filters: bool) -> list[str]:
    """Return the lines of the title: W, and what of it is drawn."""
    shown = [rows.words, columns.words]
    p, q = (
        f"0 to {side.shown - 1} of {side.positions:,}" if side.shown < side.positions else ""
        for side in (rows, columns)
    )
    if p or q:
        shown.append(f"positions {f'{p} from {q}' if p and q and p != q else p or q}")
    shown = ", ".join(part for part in shown if part)
    return [f"{'filters of ' * filters}{W!r}", *([f"drawn: {shown}"] if shown else [])]


def _wrapped(parts: list[str], width: float) -> str:
    """Return the lines of a title of `width` inches, broken after commas where they are longer."""
    lines = []
    for part in parts:
        words = part.replace(" ", "\N{NO-BREAK SPACE}").replace(",\N{NO-BREAK SPACE}", ", ")
        lines += textwrap.wrap(words, max(20, int(width / LETTER)), break_long_words=False)
    return "\n".join(lines).replace("\N{NO-BREAK SPACE}", " ")
