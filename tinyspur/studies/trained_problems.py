"""What the study of trained minima trains: small networks, each with its samples.

A teacher's network of Safran & Shamir (*Spurious Local Minima are Common in Two-Layer ReLU Neural
Networks*, ICML 2018), with samples in place of the expectation; and images of clothes, two classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from .. import datasets
from ..datasets.samples import TrainingSet
from ..engine.network import Network
from ..engine.parameters import Parameters
from ..layers import Conv, Dense, MaxPool

UNIT = 2.0**-20  # inputs of teachers are multiples of it, so that no sum of outputs is rounded
SHIRTS = 0, 6  # the classes of T-shirts and of shirts


@dataclass(frozen=True)
class Problem:
    """A network and samples, with a point that is known to be good, if there is one."""

    name: str
    title: str
    net: Network
    data: TrainingSet
    known: Parameters | None = None


def teacher(units: int, samples: int, seed: int) -> Problem:
    """Return a student of as many units as the teacher sum_j max(x_j, 0), which has R = 0.

    Inputs are standard normal, of as many dimensions. Unlike the source, the student has biases,
    trains its outgoing weights too, and sees so many samples.
    """
    x = np.random.default_rng(seed).standard_normal((samples, 1, units))
    x = np.round(x / UNIT) * UNIT
    net = Network((1, units), [Dense(units), Dense(1)])
    known = net.zeros()
    known.W[1].weights[...] = np.eye(units)
    known.W[2].weights[...] = 1
    y = np.maximum(x[:, 0], 0).sum(axis=1, keepdims=True)
    title = f"student and teacher of {units} units, {samples} normal inputs"
    return Problem(f"teacher-{units}", title, net, TrainingSet(x, y), known)


def shirts(name: str, words: str, size: int, samples: int, layers: list, seed: int) -> Problem:
    """Return T-shirts (0) against shirts (1): bundled images averaged to size x size pixels."""
    clothes = datasets.bundled()
    both = np.flatnonzero(np.isin(clothes.labels, SHIRTS))
    both = np.sort(np.random.default_rng(seed).choice(both, samples, replace=False))
    width = math.isqrt(math.prod(clothes.input_shape)) // size
    x = clothes.pixels()[both].reshape(-1, 1, size, width, size, width).mean(axis=(3, 5))
    y = (clothes.labels[both] == SHIRTS[1]).astype(float)
    title = f"T-shirts or shirts, {samples} images of {size} x {size} pixels, {words}"
    return Problem(name, title, Network((1, size, size), layers), TrainingSet(x, y))


PROBLEMS: dict[str, Callable[[int], Problem]] = {
    "teacher-6": partial(teacher, 6, 500),
    "teacher-8": partial(teacher, 8, 500),
    "shirts-4": partial(shirts, "shirts-4", "three units", 4, 200, [Dense(3), Dense(1)]),
    "shirts-7": partial(shirts, "shirts-7", "three units", 7, 400, [Dense(3), Dense(1)]),
    "convolution": partial(
        shirts,
        "convolution",
        "two filters, max pooling",
        4,
        200,
        [Conv(2), MaxPool(2), Dense(1)],
    ),
}
"""The problems of the study by their names, each made with a seed."""
