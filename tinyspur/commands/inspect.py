"""The command inspect: the layers of a point, or entries of one of its weight matrices."""

from __future__ import annotations

import argparse
import sys

import numpy as np

from ..engine.parameters import Parameters
from ..layers import BlockMatrix
from ..shown import layer_rows
from .inputs import read_point

LARGEST_CORNER = 1000  # rows and columns that are shown at most


def layer_table(theta: Parameters) -> str:
    """Return a line for each layer: shapes, nonzeros, and the range of weights and biases."""
    counts = ["nonzeros", *(str(W.nnz) for W in theta.W.values())]
    rows = [(*row[:5], n, *row[5:]) for row, n in zip(layer_rows(theta), counts, strict=True)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def corner(options: argparse.Namespace, theta: Parameters) -> str:
    """Return the first rows and columns of W[L], or of one block of it, as NumPy prints them."""
    depth, layer = theta.net.depth, options.layer
    size = 10 if options.size is None else options.size
    for name, value, last in (("layer", layer, depth), ("size", size, LARGEST_CORNER)):
        if not 1 <= value <= last:
            raise ValueError(f"--{name}: expected 1..{last}, got {value}")
    W, where = theta.W[layer], ""
    if W.selects:
        raise ValueError(f"--layer: {W} has entries only for a given input, as W.at(o)")
    rows, columns = map(range, W.shape)
    if options.block is not None:
        t, c = options.block
        for name, value, maps in (("map", t, W.maps_out), ("channel", c, W.maps_in)):
            if not 0 <= value < maps:
                raise ValueError(f"--block: expected a {name} in 0..{maps - 1}, got {value}")
        rows = rows[t * W.positions_out : (t + 1) * W.positions_out]
        first = c * W.positions_in + (W.read.start if isinstance(W, BlockMatrix) else 0)
        columns = columns[first : first + W.positions_in]
        where = f" of the block from channel {c} to map {t}"
    rows, columns = rows[:size], columns[:size]
    with np.printoptions(threshold=sys.maxsize, linewidth=sys.maxsize):
        entries = W[rows.start : rows.stop, columns.start : columns.stop]
        head = f"rows {rows[0]}..{rows[-1]}, columns {columns[0]}..{columns[-1]}{where}"
        return f"theta.W[{layer}]  {W}\n{head}\n{entries}"


def inspect(options: argparse.Namespace) -> int:
    """Print the layers of a point, or entries of one of its matrices; return 0."""
    theta = read_point(options)
    if options.layer is not None:
        print(corner(options, theta))
        return 0
    for name in ("block", "size"):
        if getattr(options, name) is not None:
            raise ValueError(f"--{name}: expected --layer too")
    print(f"{theta.net}, {theta.net.activation}, {theta.vector.dtype}")
    print(f"\n{layer_table(theta)}\n")
    for layer, W in theta.W.items():
        print(f"theta.W[{layer}]  {W}")
    print(f"\n{theta.net.size} parameters")
    return 0
