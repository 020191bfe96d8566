"""How points, matrices and results show themselves: as readable blocks, in notebooks as HTML.

The HTML has no script, and no colours of its own but those of pictures, which are transparent where
there is nothing: it is read on light pages and on dark ones.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

CELLS = 48  # of a picture in each direction
LISTED = 10**7  # nonzeros of a matrix that are listed at most for a picture
ENTRIES = (214, 56, 52), (42, 125, 225)  # above 0 red, below blue, as figures.plot_matrix has them
RISKS = (140, 100, 210), (232, 89, 12)  # above 0 purple, below orange, as plot_landscape has them
LINE = (128, 128, 128)


class Shown:
    """A result that prints as a readable block: its `repr` is that block, too."""

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return block(type(self).__name__, str(self))


def block(title: str, text: str, *more: str) -> str:
    """Return text as HTML, line by line, below a title and above what is HTML already.

    >>> block("Escape", "lower by > 0")
    '<div><strong>Escape</strong><pre style="margin:0">lower by &gt; 0</pre></div>'
    """
    lines = f'<pre style="margin:0">{escape(text)}</pre>' if text else ""
    return f"<div><strong>{escape(title)}</strong>{lines}{''.join(more)}</div>"


def table(rows: Sequence[Sequence[str]], pictures: Sequence[str] = ()) -> str:
    """Return rows of text, the first of them headings, as HTML; with a picture at the end of each.

    >>> table([["layer", "kind"], ["1", "conv"]])
    '<table><tr><th>layer</th><th>kind</th></tr><tr><td>1</td><td>conv</td></tr></table>'
    """
    found = []
    for n, row in enumerate(rows):
        cells = [*map(escape, row), *([("", *pictures)[n]] if pictures else [])]
        kind = "td" if n else "th"
        found.append("".join(f"<{kind}>{cell}</{kind}>" for cell in cells))
    return f"<table>{''.join(f'<tr>{row}</tr>' for row in found)}</table>"


def picture(
    values: np.ndarray,
    words: str,
    scale: int = 4,
    colours: tuple[tuple[int, int, int], ...] = ENTRIES,
) -> str:
    """Return numbers (rows, columns) as an image: red above 0, blue below, large ones dense.

    Or in other `colours`, above and below 0. Zeros are transparent, so are numbers that are not
    finite; infinite ones are grey lines.
    """
    import matplotlib.image

    known = np.where(np.isfinite(values), values, 0)
    strength = np.sqrt(abs(known) / (abs(known).max() or 1))
    pixels = np.zeros((*values.shape, 4), np.uint8)
    pixels[..., :3] = np.where((known > 0)[..., None], *colours)
    pixels[..., 3] = np.where(known == 0, 0, 55 + 200 * strength)
    pixels[np.isinf(values)] = *LINE, 90
    file = io.BytesIO()
    matplotlib.image.imsave(file, pixels, format="png")
    data = base64.b64encode(file.getvalue()).decode()
    height, width = (scale * n for n in values.shape)
    style = "image-rendering:pixelated;border:1px solid;margin:2px;max-width:none"
    return (
        f'<img alt="{escape(words)}" title="{escape(words)}" width="{width}" height="{height}" '
        f'style="{style}" src="data:image/png;base64,{data}">'
    )


# Weight matrices


def cells(maps: int, positions: int) -> np.ndarray:
    """Return for each neuron of a layer its cell in a picture, (maps * positions,).

    A cell is one position or several of one map; for maps that don't fit it is -1.

    >>> cells(2, 5), cells(40, 3)[-3:]
    (array([0, 1, 2, 3, 4, 5, 6, 7, 8, 9]), array([39, 39, 39]))
    """
    each = max(1, min(positions, CELLS // maps))
    found = np.arange(maps)[:, None] * each + np.arange(positions) * each // positions
    return np.where(found < CELLS, found, -1).ravel()


def _side(maps: int, positions: int, total: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the cells of one side of a matrix, and where maps of several cells begin."""
    maps, positions = (maps, positions) if maps * positions == total else (1, total)
    found = cells(maps, positions)
    several = found[positions - 1] > 0
    return found, found[::positions][1:] if several else found[:0]


def entries(W: Any) -> np.ndarray:
    """Return one row of W for each cell, with the entry of largest absolute value in each cell.

    Between two maps is a line of infinite numbers.
    """
    below, columns = _side(W.maps_in, W.positions_in, W.shape[1])
    own, rows = _side(W.maps_out, W.positions_out, W.shape[0])
    drawn = np.unique(own, return_index=True)[1][-1 - own.max() :]
    coo = W.tocsr(drawn).tocoo()
    inside = below[coo.col] >= 0
    places, values = (coo.row[inside], below[coo.col[inside]]), coo.data[inside]
    found = np.zeros((2, len(drawn), below.max() + 1))
    np.maximum.at(found[0], places, values)
    np.minimum.at(found[1], places, values)
    largest = np.where(found[0] >= -found[1], *found)
    return np.insert(np.insert(largest, rows, np.inf, axis=0), columns, np.inf, axis=1)


def matrix_picture(W: Any, scale: int = 4) -> str:
    """Return a small picture of the blocks of W; nothing for what has no entries or too many."""
    if not _is_listed(W):
        return ""
    words = f"{type(W).__name__} {W.shape[0]} x {W.shape[1]}: blocks from map to map"
    words += f", of the first {CELLS} maps" * (max(W.maps_in, W.maps_out) > CELLS)
    try:
        return picture(entries(W), words, scale)
    except TypeError:  # its entries depend on what it is multiplied with
        return ""


def _is_listed(W: Any) -> bool:
    """Return whether some rows of W can be listed without too many others."""
    inner = getattr(W, "matrix", getattr(W, "own_matrix", None))  # of a transpose, of a block
    if inner is None:
        return type(W).__name__ in ("ConvolutionMatrix", "DenseMatrix") or W.nnz <= LISTED
    return inner.nnz <= LISTED if not hasattr(inner, "own_matrix") else _is_listed(inner)


def matrix_html(W: Any) -> str:
    """Return the kind, shape and nonzeros of W, and its picture, as HTML."""
    return block(type(W).__name__, repr(W), matrix_picture(W))


# Networks, points and landscapes


def layer_rows(theta: Any) -> list[tuple[str, ...]]:
    """Return headings, and for each layer shapes and the range of its numbers."""
    rows = [("layer", "kind", "output", "matrix", "filters", "weights", "biases")]
    for layer, kind in enumerate(theta.net.chain, start=1):
        W, filters, ranges = theta.W[layer], "-", ["-", "-"]
        if W.weights is not None:
            filters = "x".join(map(str, W.weights.shape)) if kind.type == "conv" else "-"
            numbers = W.weights, theta.b.get(layer)
            ranges = ["-" if v is None else f"{v.min():.4g} .. {v.max():.4g}" for v in numbers]
        output, shape = "x".join(map(str, theta.net.shapes[layer])), "{} x {}".format(*W.shape)
        rows.append((str(layer), kind.type, output, shape, filters, *ranges))
    return rows


def point_html(theta: Any) -> str:
    """Return the layers of a point as a table with a picture of each matrix."""
    pictures = [matrix_picture(W, 2) for W in theta.W.values()]
    return block("Parameters", repr(theta), table(layer_rows(theta), pictures))


def network_html(net: Any) -> str:
    """Return the layers of a network as a table: what they are, their outputs and parameters."""
    rows = [("layer", "", "activation", "output", "parameters")]
    rows.append(("0", "input", "", "x".join(map(str, net.input_shape)), ""))
    for layer, kind in enumerate(net.chain, start=1):
        slot = net.slots.get(layer)
        size = f"{slot.all.stop - slot.all.start:,}" if slot else ""
        sigma = net.activation_of(layer)
        output = "x".join(map(str, net.shapes[layer]))
        own = str(getattr(kind, "layer", kind)) + " + what is kept" * (kind.type == "sum")
        rows.append((str(layer), own, str(sigma or ""), output, size))
    return block(type(net).__name__, f"{net.size:,} parameters", table(rows))


def landscape_html(landscape: Any) -> str:
    """Return what a landscape found, and its risks as a picture, orange where they are lower."""
    above = landscape.risks - landscape.centre
    above = np.where((above < 0) & ~landscape.lower, 0, above)  # by rounding only
    above = above[np.ix_(*(np.arange(0, n, -(-n // (2 * CELLS))) for n in above.shape))]
    words = "the risks less that at the centre: purple is higher, orange is lower"
    drawn = picture(np.where(np.isfinite(above), above, np.nan), words, colours=RISKS)
    return block("Landscape", f"{landscape}\n{words}", drawn)
