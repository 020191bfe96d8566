"""The fit of a pattern class: of its features, or of its samples one by one.

Features may be constant, equal, or dependent in ways that floats show exactly; samples may be
equal, and fewer than the features.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import scipy.linalg

from ..datasets.duplicates import identical
from ..engine.architecture import Architecture
from ..engine.floats import SMALLEST, gamma
from ..engine.losses import Loss
from .enclosed_algebra import doubled_product
from .enclosures import Enclosure, concatenate, exact
from .fits import FITS
from .gram import Samples

LARGEST = 2 * 10**8  # numbers of a matrix up to which it is enclosed
WIDEST = 4500  # features up to which their Gram matrix is inverted
BITS = 10  # behind the point, of coefficients of columns that depend on others
FIRST = 256  # samples that mostly tell all columns apart, and those that are not constant
DEPENDENT = 1e-9  # a column counts as dependent up to this share of its length


class ClassFit(NamedTuple):
    """How an optimal fit of a class differs from the map that the class has.

    All outputs F x + D z, with features x = `basis` z of z of size k, are those of the optimal fit;
    `change` encloses D (d_y, k). These z are the `kept` features, or, where that is None, each is
    1 for one sample and 0 for the others.
    """

    basis: Enclosure
    change: Enclosure
    kept: np.ndarray | None


def class_fit(loss: Loss, F: Enclosure, samples: Samples) -> ClassFit | None:
    """Return how an optimal fit of samples differs from a map F (d_y, n + 1), or None.

    The last feature is the constant 1. Columns that are constant, or copies of another, are
    combinations of the rest. Where there are no more samples than columns these are the `basis`,
    and each of them is fitted for itself, equal ones together. None where the optimal fit is not
    shown to be near, and for a loss of a user's.
    """
    if type(loss) not in FITS or samples.z.size > LARGEST or samples.z.shape[1] > WIDEST:
        return None
    kept, basis = distinct_columns(samples.z, samples.inexact)
    found = _of_columns(loss, F, samples, kept, basis)
    if found is None and len(kept) > 1:
        own, combined = independent_columns(samples.z[:, kept], samples.columns(kept).inexact)
        if len(own) < len(kept):
            found = _of_columns(loss, F, samples, kept[own], basis @ combined)
    if found is not None:
        return found
    numbers = identical(samples.inputs)
    if numbers.max() >= samples.z.shape[1]:
        return None
    return _one_by_one(loss, F, samples, numbers)


def _of_columns(
    loss: Loss, F: Enclosure, samples: Samples, kept: np.ndarray, basis: np.ndarray
) -> ClassFit | None:
    if len(kept) > len(samples):
        return None
    compact = _of_distinct(F, kept, basis)
    change = FITS[type(loss)](loss, compact.middle, samples.columns(kept))
    return (
        None
        if change is None
        else ClassFit(exact(basis), change - (compact - compact.middle), kept)
    )


def _of_distinct(F: Enclosure, kept: np.ndarray, basis: np.ndarray) -> Enclosure:
    """Return F B for a `basis` B of distinct columns; exact where a column has no copies."""
    alone = (np.count_nonzero(basis, axis=0) == 1) & (basis[kept, range(len(kept))] == 1)
    middle, radius = F.middle[:, kept], F.radius[:, kept]
    if not alone.all():
        found = doubled_product(F.middle, basis[:, ~alone])
        off = F.radius @ abs(basis[:, ~alone]) * (1 + 2 * gamma(len(basis)))
        found = found.wider(off)
        middle[:, ~alone], radius[:, ~alone] = found.middle, found.radius
    return Enclosure(middle, radius)


def _one_by_one(loss: Loss, F: Enclosure, samples: Samples, numbers: np.ndarray) -> ClassFit | None:
    """Return the fit of samples that are fitted one by one, those with equal `numbers` together."""
    some = samples.of(np.unique(numbers, return_index=True)[1])
    x = Enclosure(some.z.T, np.broadcast_to(some.inexact, some.z.shape).T)
    o = some.outputs(F.middle).wider(F.radius @ x.magnitude * (1 + 2 * gamma(len(x))))
    changes = []
    for n in range(len(some)):
        group = samples.of(np.flatnonzero(numbers == n))
        group = replace(group, z=np.ones((len(group), 1)), inexact=np.zeros((1, 1)))
        change = FITS[type(loss)](loss, o.middle[:, [n]], group)
        if change is None:
            return None
        changes.append(change)
    return ClassFit(x, concatenate(changes, axis=1) - (o - o.middle), None)


def distinct_columns(hats: np.ndarray, inexact: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return k columns of (N, n + 1), and the matrix (n + 1, k) that makes all of them of these.

    Left out are constant columns but the last one, and copies; not those that are `inexact`. The
    last one holds ones.
    """
    n = hats.shape[1] - 1
    sure = ~np.broadcast_to(inexact.any(axis=0), n + 1)
    constant = (hats[:FIRST] == hats[0]).all(axis=0) & sure
    constant[constant] = (hats[:, constant] == hats[0, constant]).all(axis=0)
    numbers = identical(hats[:FIRST].T)
    if numbers.max() < n:  # some may be copies
        numbers = identical(hats.T)
    own = np.unique(numbers, return_index=True)[1][numbers]
    own = np.where(sure & sure[own], own, np.arange(n + 1))
    kept = np.append(np.unique(own[~constant]), n)
    basis = np.zeros((n + 1, len(kept)))
    basis[constant, -1] = hats[0, constant]
    others = np.flatnonzero(~constant)
    basis[others, np.searchsorted(kept, own[others])] = 1
    return kept, basis


def independent_columns(z: np.ndarray, inexact: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return m of distinct columns (N, k), and the matrix (k, m) that makes all of them of these.

    The others are combinations with coefficients that are multiples of 2^-10, as indicators of all
    categories add up to 1; numbers are multiples of so large a power of two that sums are exact.
    All columns are returned where this is not seen. The last one holds ones.
    """
    every = np.arange(z.shape[1]), np.eye(z.shape[1])
    centred = z[:, :-1] - z[:, :-1].mean(axis=0)
    centred /= np.maximum(np.linalg.norm(centred, axis=0), SMALLEST)
    _, r, order = scipy.linalg.qr(centred, mode="economic", pivoting=True, check_finite=False)
    rank = int((abs(np.diag(r)) > DEPENDENT).sum())
    own = np.append(np.sort(order[:rank]), len(every[0]) - 1)
    coefficients = np.round(np.linalg.lstsq(z[:, own], z)[0] * 2**BITS) / 2**BITS
    coefficients[:, own] = np.eye(len(own))
    for j in np.setdiff1d(every[0], own):
        of_j = coefficients[:, j] != 0
        used = np.append(own[of_j], j)
        values = z[:, used] * _unit(z[:, used])
        size = abs(values[:, :-1]) @ abs(coefficients[of_j, j])
        same = values[:, :-1] @ coefficients[of_j, j] == values[:, -1]
        whole = (values == np.round(values)).all() and 2**BITS * size.max(initial=0) < 2**52
        if not (whole and same.all()) or inexact[:, used % inexact.shape[1]].any():
            return every
    return own, coefficients.T


def _unit(z: np.ndarray) -> float:
    """Return a power of two that makes integers of all z where one up to 2^30 does."""
    powers = 2.0 ** np.arange(31)
    return next((p for p in powers if (z * p == np.round(z * p)).all()), 1.0)


def first_read(net: Architecture) -> np.ndarray | None:
    """Return which features the first layer with weights reads, (n,), or None for all of them.

    A stride, or no padding, may leave some out: outputs depend on no such one, at any point.
    """
    number = net.leading_poolings + 1
    grid = getattr(net.chain[number - 1], "grid", None) if net.slots else None
    if grid is None:
        return None
    (maps, *size), read = net.shapes[number - 1], np.zeros(net.positions(number - 1), bool)
    neighbours = grid((maps, *size)).neighbours()
    read[neighbours[neighbours >= 0]] = True
    return None if read.all() else np.tile(read, maps)


def pooled_parts(net: Architecture, x: np.ndarray) -> np.ndarray:
    """Return what the features of inputs (N, ...) are made of: where it is equal these are.

    Below average poolings that come first the entries of each window count in any order.
    """
    first = net.chain[: net.leading_poolings]
    apart = (layer.grid(shape).tiles for layer, shape in zip(first, net.shapes, strict=False))
    if any(layer.selects or type(layer.size) is tuple for layer in first) or not all(apart):
        return x
    size, axes = math.prod(layer.size for layer in first), x.ndim - 2
    split = x.reshape(*x.shape[:2], *(m for n in x.shape[2:] for m in (n // size, size)))
    windows = np.moveaxis(split, range(3, 3 + 2 * axes, 2), range(-axes, 0))
    return np.sort(windows.reshape(*windows.shape[:-axes], -1), axis=-1)
