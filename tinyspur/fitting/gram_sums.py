"""Sums of products of features over many samples, block by block on all cores."""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from ..engine.threads import in_order

ROWS = 512  # samples whose products one product of matrices sums
TOGETHER = 4  # of these that are added up before they are added to the sum of all others
COLUMNS = 512  # of the features, at most, whose products with as many others a cache holds


def gram_sum(block: Callable[[slice], np.ndarray], samples: int) -> np.ndarray:
    """Return sum_i z_i z_i^T (k, k) for the features block(rows) = z (rows, k) of some samples.

    The order of the sum does not depend on the number of cores; see `gram_terms`.
    """
    total = np.zeros((0, 0))
    for start in range(0, samples, ROWS * TOGETHER):
        parts = list(in_order(block, _rows(start, samples), np))
        if not start:
            total = np.zeros((parts[0].shape[1],) * 2)
        _add_products(parts, total)
    return total


def _add_products(parts: list[np.ndarray], total: np.ndarray) -> None:
    """Add the products of features (rows, k) to their sum, a block of it and its mirror image."""

    def add(pair: tuple[slice, slice]) -> None:
        i, j = pair
        found = _total(z[:, i].T @ z[:, j] for z in parts)
        total[i, j] += found
        if i != j:
            total[j, i] += found.T

    for _ in in_order(add, _pairs(len(total)), np):
        pass


def _pairs(k: int) -> list[tuple[slice, slice]]:
    """Return the blocks (rows, columns) of the upper triangle of a matrix (k, k)."""
    width = -(-k // -(-k // COLUMNS)) if k else 1
    columns = [slice(n, min(n + width, k)) for n in range(0, k, width)]
    return list(itertools.combinations_with_replacement(columns, 2))


def block_sum(function: Callable[[slice], np.ndarray], samples: int) -> np.ndarray:
    """Return the sum of a function of rows over all samples, in the order of `gram_sum`."""

    def part(start: int) -> np.ndarray:
        return _total(map(function, _rows(start, samples)))

    return _total(in_order(part, range(0, samples, ROWS * TOGETHER), np))


def gram_terms(samples: int) -> int:
    """Return through how many roundings a product of two features goes in `gram_sum` at most."""
    together = min(TOGETHER, -(-samples // ROWS))
    return min(samples, ROWS) + together + -(-samples // (ROWS * TOGETHER))


def _rows(start: int, samples: int) -> Iterator[slice]:
    """Yield the blocks of the samples that are added up together from `start` on."""
    end = min(start + ROWS * TOGETHER, samples)
    return (slice(n, min(n + ROWS, end)) for n in range(start, end, ROWS))


def _total(parts: Iterable[np.ndarray]) -> np.ndarray:
    """Return the sum of arrays, in the memory of the first one."""
    return functools.reduce(operator.iadd, parts)
