"""What rounding does at most: the constants of all bounds of rounding errors, and what they assume.

- Arithmetic rounds to nearest, with or without fused additions. Sums may be taken in any order and
  in blocks, but products must be those of entries: not Strassen's or Winograd's, nor in TF32.
- exp, expm1, log, log1p, tanh, sin, cos, arctan and expit are within `LIBRARY` units in the last
  place, ndtr within `ndtr_units`, and below the least normal number within that number: subnormal
  results may be 0. NumPy states 4 units for its functions, CUDA 1 or 2 for all of them and 5 for
  ndtr; SciPy's ndtr loses as many as its argument's rounding costs. The tests compare those of
  NumPy and SciPy with mpmath.
"""

from __future__ import annotations

import math

import numpy as np

from .backend import Array, namespace

EPSILON = float(np.finfo(np.float64).eps)
SMALLEST = float(np.finfo(np.float64).smallest_subnormal)
LEAST_NORMAL = float(np.finfo(np.float64).tiny)
LIBRARY = 4.0  # units in the last place
QUIET = {"over": "ignore", "under": "ignore", "invalid": "ignore", "divide": "ignore"}


def gamma(terms: int, dtype: type = np.float64) -> float:
    """Return gamma_n = n u / (1 - n u) for n = `terms` + 4, u half a unit in the last place.

    A sum of n products, or of n numbers, is off by at most gamma_n times the sum of the sizes of
    its terms (Higham, Accuracy and Stability of Numerical Algorithms, 3.1); infinite where n u >
    1/4. A sum of sizes that is rounded itself is enough: it is too small by a share of at most
    gamma_n. Where products may underflow each of them is off by half of `SMALLEST` more.
    """
    share = (terms + 4) * float(np.finfo(dtype).eps) / 2
    return share / (1 - 2 * share) if share <= 0.25 else math.inf


def slack(terms: int) -> float:
    """Return by which factor a bound has to grow if it comes of sums of so many terms in all.

    All terms are nonnegative; the sums may be taken one after another, as in the layers of a pass.
    """
    return 1 + 2 * gamma(terms)


def library_error(values: Array, units: Array | float = LIBRARY) -> Array:
    """Return how far the float64 `values` of a library function may be off."""
    return units * EPSILON * abs(values) + LEAST_NORMAL


def ndtr_units(z: Array) -> Array:
    """Return within how many units in the last place ndtr(z) is.

    ndtr is erfc(-z / sqrt 2) / 2: in its tail a rounded argument counts z^2 times as much.
    """
    return 2 * LIBRARY + 2 * namespace(z).clip(z, -40.0, 0.0) ** 2  # at -40 it is below any number


def irrational(value: float, x: Array) -> float:
    """Return a rounded number; where it meets an enclosure x, an enclosure of the exact one."""
    return x.rounded(value) if hasattr(x, "rounded") else value
