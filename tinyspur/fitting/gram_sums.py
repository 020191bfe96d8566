"""Sums of products of features over many samples, block by block on all cores."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable

import numpy as np

from ..engine.threads import in_order

ROWS = 512  # samples whose products one product of matrices sums
TOGETHER = 4  # of these that one thread adds up before the sums of all threads are added


def gram_sum(block: Callable[[slice], np.ndarray], samples: int) -> np.ndarray:
    """Return sum_i z_i z_i^T (k, k) for the features block(rows) = z (rows, k) of some samples.

    The order of the sum does not depend on the number of cores; see `gram_terms`.
    """

    def product(rows: slice) -> np.ndarray:
        z = block(rows)
        return z.T @ z

    return block_sum(product, samples)


def block_sum(function: Callable[[slice], np.ndarray], samples: int) -> np.ndarray:
    """Return the sum of a function of rows over all samples, in the order of `gram_sum`."""

    def part(start: int) -> np.ndarray:
        ends = range(start, min(start + ROWS * TOGETHER, samples), ROWS)
        return _total(function(slice(n, min(n + ROWS, samples))) for n in ends)

    return _total(in_order(part, range(0, samples, ROWS * TOGETHER), np))


def gram_terms(samples: int) -> int:
    """Return through how many roundings a product of two features goes in `gram_sum` at most."""
    together = min(TOGETHER, -(-samples // ROWS))
    return min(samples, ROWS) + together + -(-samples // (ROWS * TOGETHER))


def _total(parts: Iterable[np.ndarray]) -> np.ndarray:
    """Return the sum of arrays, in the memory of the first one."""
    return functools.reduce(operator.iadd, parts)
