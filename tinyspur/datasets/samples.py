"""The samples of a training set."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, repr=False)
class TrainingSet:
    """Inputs x (N, C, H, W) or (N, C, W) and targets y (N, d_y); finite, N >= 1.

    Raises ValueError for other shapes and for values that are not finite.
    """

    x: np.ndarray
    y: np.ndarray

    def __post_init__(self):
        for name, values in (("x", self.x), ("y", self.y)):
            if not isinstance(values, np.ndarray):
                kind = type(values).__name__
                raise ValueError(f"training set: expected {name} as a NumPy array, got a {kind}")
        if self.x.ndim < 3 or self.y.ndim != 2 or len(self.x) != len(self.y) or not len(self.x):
            raise ValueError(
                "training set: expected x (N, C, H, W) and y (N, d_y) with the same N >= 1, "
                f"got {self.x.shape} and {self.y.shape}"
            )
        for name, values in (("x", self.x), ("y", self.y)):
            bad = ~np.isfinite(values).reshape(len(values), -1).all(axis=1)
            if bad.any():
                raise ValueError(
                    f"training set: {name} has NaN or infinite values in {bad.sum()} of "
                    f"{bad.size} samples, the first is sample {bad.argmax()}"
                )

    def __len__(self) -> int:
        return len(self.x)

    def __repr__(self) -> str:
        return f"TrainingSet({len(self)} samples {self.x.shape[1:]}, targets {self.y.shape[1:]})"

    def subset(self, samples: int, seed: int) -> TrainingSet:
        """Return `samples` distinct samples drawn with `seed`, in their original order.

        Raises ValueError if `samples` is not an integer from 1 to N.
        """
        drawn = draw(len(self), samples, seed)
        return TrainingSet(self.x[drawn], self.y[drawn])


def flattened(x: np.ndarray) -> np.ndarray:
    """Return samples x (N, ...) as rows of numbers (N, n), in float64."""
    return np.asarray(x, np.float64).reshape(len(x), -1)


def draw(total: int, samples: int, seed: int) -> np.ndarray:
    """Return `samples` distinct indices below `total` drawn with `seed`, ascending, or ValueError.

    >>> draw(9, 4, seed=0)
    array([2, 4, 5, 7])
    """
    if not isinstance(samples, int | np.integer) or not 1 <= samples <= total:
        raise ValueError(f"expected 1 to {total} samples, got {samples!r}")
    drawn = np.random.default_rng(seed).choice(total, size=samples, replace=False)
    drawn.sort()
    return drawn
