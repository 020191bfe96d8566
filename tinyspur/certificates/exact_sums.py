"""Exact differences from means, and sums of products, of numbers that are stored in floats.

Floats are integers times powers of 2: sums of their products need no rounding.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from ..engine.floats import SMALLEST


class Scaled(NamedTuple):
    """Columns `floats` (N, n) times 2^`exponents` (n,), each entry rounded once.

    The largest |floats| of a column is from 1/4 to 1, unless all are 0.
    """

    floats: np.ndarray
    exponents: np.ndarray


def integers(values: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """Return integers (N, n), as objects, and places p: a column is its integers times 2^-p."""
    mantissas, exponents = np.frexp(np.asarray(values, dtype=np.float64))
    whole, found, places = np.ldexp(mantissas, 53).astype(np.int64), [], []
    for numbers, exponent in zip(whole.T, (exponents - 53).T, strict=True):
        used = numbers != 0
        least = int(exponent[used].min()) if used.any() else 0
        shifts = np.where(used, exponent - least, 0)
        column = zip(numbers.tolist(), shifts.tolist(), strict=True)
        found.append([number << shift for number, shift in column])
        places.append(-least)
    return np.array(found, dtype=object).T, places


def centred(values: np.ndarray) -> Scaled:
    """Return values (N, n) less the mean of each column; exact but for one rounding."""
    columns, places = integers(values)
    floats, exponents, count = np.zeros(columns.shape), [], len(columns)
    for j, place in enumerate(places):
        differences = count * columns[:, j] - columns[:, j].sum()
        largest = max(abs(d) for d in differences)
        bits = largest.bit_length() - count.bit_length() + 1  # largest / count is below 2^bits
        up, down = max(-bits, 0), max(bits, 0)
        floats[:, j] = [(d << up) / (count << down) for d in differences]
        exponents.append(bits - place)
    return Scaled(floats, np.array(exponents))


def means(values: np.ndarray, origin: np.ndarray) -> np.ndarray:
    """Return mean - `origin` (n,) of each column of values (N, n); exact but for one rounding."""
    columns, places = integers(values)
    found = np.zeros(len(origin))
    for k, (total, place) in enumerate(zip(columns.sum(axis=0), places, strict=True)):
        mean = Fraction(total, len(columns)) / Fraction(2) ** place
        found[k] = _rounded(mean - Fraction(float(origin[k])))
    return found


def centred_products(
    x: np.ndarray, y: np.ndarray, inputs: np.ndarray, outputs: np.ndarray
) -> np.ndarray:
    """Return sum_i x_i (y_i - mean y)^T (d, d_y) for x (N, d) and y (N, d_y), each rounded once.

    x is in units of 2^`inputs` (d,) and y of 2^`outputs` (d_y,). An entry is 0 exactly where the
    sum is 0.
    """
    (X, x_places), (Y, y_places), count = integers(x), integers(y), len(x)
    products = count * (X.T @ Y) - np.outer(X.sum(axis=0), Y.sum(axis=0))
    found = np.zeros(products.shape)
    for (j, k), product in np.ndenumerate(products):
        places = x_places[j] + y_places[k] + int(inputs[j]) + int(outputs[k])
        found[j, k] = _rounded(Fraction(product, count) / Fraction(2) ** places)
    return found


def _rounded(value: Fraction) -> float:
    """Return the nearest float, but only of 0 itself 0."""
    return float(value) or (value != 0) * math.copysign(SMALLEST, value)
