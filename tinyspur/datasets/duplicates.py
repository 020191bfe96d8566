"""Samples that are not distinct, as large real sets and bootstrap samples have them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from ..shown import Shown


@dataclass(frozen=True, repr=False)
class Duplicates(Shown):
    """How many `samples` equal another one, and how many of these have `differing_targets`.

    The latter equal a sample whose target is another.
    """

    samples: int
    differing_targets: int

    @classmethod
    def of(cls, numbers: np.ndarray, y: np.ndarray) -> Duplicates:
        """Return those of samples with `numbers` (N,), equal for equal ones, and targets y."""
        twins = np.bincount(numbers)[numbers]
        alike = np.unique(np.stack([numbers, identical(y)]), axis=1)[0]  # a column for each target
        return cls(int((twins > 1).sum()), int((np.bincount(alike)[numbers] > 1).sum()))

    def __str__(self) -> str:
        return f"{self.samples} not distinct, {self.differing_targets} of them differ in targets"


def identical(rows: np.ndarray) -> np.ndarray:
    """Return for each row (N, ...) a number from 0 on, the same for rows that are equal.

    >>> identical(np.array([[1.0, 2.0], [0.0, 3.0], [1.0, 2.0]]))
    array([0, 1, 0])
    """
    found: dict[bytes, int] = {}
    rows = rows if rows.dtype.kind in "biu" else (row + 0.0 for row in rows)  # -0 is 0
    digests = (hashlib.blake2b(row.tobytes()).digest() for row in rows)
    return np.array([found.setdefault(digest, len(found)) for digest in digests])


def find_duplicates(x: np.ndarray, y: np.ndarray) -> Duplicates:
    """Return how many samples x (N, ...) are not distinct; y (N, ...) are their targets.

    >>> x, y = np.array([[0.5], [0.7], [0.5], [0.7]]), np.array([[1], [0], [2], [0]])
    >>> print(find_duplicates(x, y))
    4 not distinct, 2 of them differ in targets
    """
    return Duplicates.of(identical(x), y)
