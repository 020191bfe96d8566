"""Exact values at small points: numbers stored in float64 are fractions."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from ..datasets.samples import TrainingSet
from ..engine.activations import ReLU
from ..engine.parameters import Parameters

PRODUCTS = 200_000  # products of fractions up to which a point counts as small


def exact_outputs(theta: Parameters, x: np.ndarray) -> np.ndarray | None:
    """Return the outputs as fractions (N, d_y), or None where there are too many products.

    For ReLU and leaky ReLU, and any poolings; theta and x are on the host.
    """
    net = theta.net
    if type(net.activation) is not ReLU:
        return None
    products = sum(max(W.shape[0], 0 if W.selects else W.nnz) for W in theta.W.values())
    if products * len(x) > PRODUCTS:
        return None
    slope, rows = Fraction(net.activation.slope), []
    for sample in x.reshape(len(x), -1):
        o = [Fraction(float(value)) for value in sample]
        for layer, W in theta.W.items():
            if W.selects:
                windows = W.windows(np.arange(W.shape[1])[:, None])[..., 0]
                o = [max(o[i] for i in window) for window in windows.T]
                continue
            csr, z = W.tocsr(), []
            for i in range(W.shape[0]):
                entries = slice(*csr.indptr[i : i + 2].tolist())
                terms = zip(csr.indices[entries].tolist(), csr.data[entries].tolist(), strict=True)
                if layer in theta.b:
                    b = Fraction(float(theta.b[layer][i // W.positions_out]))
                    z.append(sum((Fraction(w) * o[j] for j, w in terms), b))
                else:
                    z.append(sum(o[j] for j, _ in terms) / W.fan_in)
            o = [v if v > 0 else slope * v for v in z] if net.is_active(layer) else z
        rows.append(o)
    return np.array(rows, dtype=object)


def meets_targets(theta: Parameters, data: TrainingSet) -> bool:
    """Return whether every output is its target exactly; False for too many products."""
    outputs = exact_outputs(theta.to(np), data.x)
    if outputs is None:
        return False
    return all(o == Fraction(float(y)) for o, y in zip(outputs.flat, data.y.flat, strict=True))


def rational_solution(A: list[list[float]], b: list[Fraction | float]) -> list[Fraction] | None:
    """Return an exact solution of A x = b by elimination, None where there is none.

    Unknowns that may be any number are 0.

    >>> rational_solution([[3, 1, 1]], [1])
    [Fraction(1, 3), Fraction(0, 1), Fraction(0, 1)]
    >>> rational_solution([[3], [1]], [1, 1])
    """
    rows = [[*map(Fraction, row), Fraction(value)] for row, value in zip(A, b, strict=True)]
    unknowns, pivots = len(A[0]), []
    for column in range(unknowns):
        done = len(pivots)
        pivot = next((i for i in range(done, len(rows)) if rows[i][column]), None)
        if pivot is None:
            continue
        rows[done], rows[pivot] = rows[pivot], rows[done]
        rows[done] = [value / rows[done][column] for value in rows[done]]
        for i, row in enumerate(rows):
            if i != done and row[column]:
                rows[i] = [v - row[column] * p for v, p in zip(row, rows[done], strict=True)]
        pivots.append(column)
    if any(row[-1] for row in rows[len(pivots) :]):
        return None
    found = [Fraction(0)] * unknowns
    for row, column in zip(rows, pivots, strict=False):
        found[column] = row[-1]
    return found
