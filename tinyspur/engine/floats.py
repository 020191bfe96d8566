"""What rounding does at most: the constants of all bounds of rounding errors.

Arithmetic rounds to nearest, with or without fused additions. Sums may be taken in any order and in
blocks, but their products must be products of entries: not those of Strassen or Winograd, nor TF32.
"""

from __future__ import annotations

import math

import numpy as np

EPSILON = float(np.finfo(np.float64).eps)
SMALLEST = float(np.finfo(np.float64).smallest_subnormal)


def gamma(terms: int, dtype: type = np.float64) -> float:
    """Return gamma_n = n u / (1 - n u) for n = `terms` + 4, u half a unit in the last place.

    A sum of n products, or of n numbers, is off by at most gamma_n times the sum of the sizes of
    its terms (Higham, Accuracy and Stability of Numerical Algorithms, 3.1); infinite where n u >
    1/4. A sum of sizes that is rounded itself is enough: it is too small by a share of at most
    gamma_n. Where products may underflow each of them is off by half of `SMALLEST` more.
    """
    share = (terms + 4) * float(np.finfo(dtype).eps) / 2
    return share / (1 - 2 * share) if share <= 0.25 else math.inf
