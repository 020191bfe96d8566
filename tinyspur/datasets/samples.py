"""The samples of a training set."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ..engine.plain import generator, plain_on_host, vectors_as_samples, whole


@dataclass(frozen=True, repr=False)
class TrainingSet:
    """Inputs x (N, C, H, W) or (N, C, W) and targets y (N, d_y); finite, N >= 1.

    Vectors x (N, d) become (N, 1, d), the inputs of a network that reads (1, d), and numbers y (N,)
    become (N, 1). Both are arrays, lists, PyTorch's tensors, DataFrames or Series. float32 and
    float64 stay; integers, bool, float16 and longdouble become float64. Raises ValueError for other
    shapes, for values that are not finite, and for complex numbers, objects, strings, dates and
    masked arrays.

    >>> TrainingSet([[1, 2], [3, 4], [5, 6]], [0, 1, 0])
    TrainingSet(3 samples (1, 2), targets (1,))
    """

    x: np.ndarray
    y: np.ndarray

    def __init__(self, x: ArrayLike, y: ArrayLike):
        x, y = plain_on_host("x", x), plain_on_host("y", y)
        got = f"{x.shape} and {y.shape}"
        x, y = vectors_as_samples(x), y[:, None] if y.ndim == 1 else y
        if x.ndim < 3 or y.ndim != 2 or len(x) != len(y) or not len(x):
            raise ValueError(
                "training set: expected x (N, C, H, W), (N, C, W) or (N, d) and y (N, d_y) or (N,) "
                f"with the same N >= 1, got {got}"
            )
        for name, values in (("x", x), ("y", y)):
            bad = ~np.isfinite(values).reshape(len(values), -1).all(axis=1)
            if bad.any():
                raise ValueError(
                    f"training set: {name} has NaN or infinite values in {bad.sum()} of "
                    f"{bad.size} samples, the first is sample {bad.argmax()}"
                )
            object.__setattr__(self, name, values)

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


def check_data(data: object) -> None:
    """Raise ValueError for what is no training set."""
    if not isinstance(data, TrainingSet):
        raise ValueError(f"data: expected a TrainingSet, got a {type(data).__name__}")


def flattened(x: object) -> np.ndarray:
    """Return samples x (N, ...) as rows of numbers (N, n), in float64."""
    x = plain_on_host("x", x).astype(np.float64, copy=False)
    if not x.ndim:
        raise ValueError(f"x: expected samples (N, ...), got one number, {x}")
    return x.reshape(len(x), -1)


def draw(total: int, samples: int, seed: int) -> np.ndarray:
    """Return `samples` distinct indices below `total` drawn with `seed`, ascending, or ValueError.

    >>> draw(9, 4, seed=0)
    array([2, 4, 5, 7])
    """
    number = whole(samples)
    if number is None or not 1 <= number <= total:
        raise ValueError(f"expected 1 to {total} samples, got {samples!r}")
    drawn = generator(seed).choice(total, size=number, replace=False)
    drawn.sort()
    return drawn
