"""What changes from one exact point to another that shares the weights of a dense layer.

Weights of thousands of bits are multiplied with few numbers: with differences of features, most of
which are the same for all samples.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import scipy.sparse

from ..datasets.samples import TrainingSet
from ..fitting.rational import (
    FITS,
    Rational,
    joined,
    product,
    rational,
    size_of,
    sum_of_products,
    times,
)
from .exact import ExactPoint, activated, exact_steps
from .exact_cells import CHUNK, columns_of


def read_features(point: ExactPoint, layer: int, data: TrainingSet) -> tuple[np.ndarray, Rational]:
    """Return which (o^{layer-1}, 1) a dense layer reads with weights that are not 0, and these."""
    used = np.flatnonzero((point.dense(layer).n != 0).any(axis=0))
    net, x, parts = point.theta.net, columns_of(data), []
    size = max(1, CHUNK // max(int(np.prod(shape)) for shape in net.shapes))
    for start in range(0, len(data), size):
        o = x[:, start : start + size]
        for step in exact_steps(point, o, 1, layer - 1):
            o = step.o
        ones = Rational(np.ones((1, o.n.shape[1]), dtype=np.int64), 1)
        parts.append(joined([o, ones], axis=0)[used])
    return used, joined(parts, axis=1)


def changes(theta: ExactPoint, other: ExactPoint, layer: int, data: TrainingSet) -> Rational:
    """Return the change of z^layer from theta to another point for all samples, (n_l, N).

    Weights of the same size come once, with the sum of what they read: of that, what is the same
    for all samples is counted once, so that there are few products of long numbers.
    """
    features, weights = [], []
    for point, sign in ((other, 1), (theta, -1)):
        used, h = read_features(point, layer, data)
        W = point.dense(layer)[:, used]
        features.append(h)
        weights.append(Rational(times(W.n, sign), W.d))
    h, W = joined(features, axis=0), joined(weights, axis=1)
    found = np.zeros((len(W.n), len(data)), dtype=object)
    for row, weights_of in zip(found, W.n, strict=True):
        sizes, terms = _by_size(weights_of, h.n)
        same = terms[:, :1]
        differing = np.flatnonzero((terms != same).any(axis=1))
        row += int(product(sizes[None], same)[0, 0])
        if differing.size:
            row += product(sizes[None, differing], terms[differing] - same[differing])[0]
    return Rational(found, W.d * h.d)


def _by_size(weights: np.ndarray, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the different sizes |w| > 0, and for each the sum of sign(w) times its features."""
    numbers, places, signs, columns = {}, [], [], []
    for j, w in enumerate(weights.tolist()):
        if w:
            places.append(numbers.setdefault(abs(w), len(numbers)))
            signs.append(1 if w > 0 else -1)
            columns.append(j)
    sizes = np.empty(len(numbers), dtype=object)
    sizes[:] = list(numbers)
    if features.dtype != object and size_of(features) * len(features) < FITS:
        shape = len(numbers), len(features)
        return sizes, scipy.sparse.csr_array((signs, (places, columns)), shape=shape) @ features
    terms = np.zeros((len(numbers), features.shape[1]), dtype=object)
    for place, sign, column in zip(places, signs, columns, strict=True):
        terms[place] += sign * features[column]
    return sizes, terms


def risk_after(
    theta: ExactPoint, other: ExactPoint, layer: int, risk: Fraction, data: TrainingSet
) -> Fraction:
    """Return the risk of a point from that of theta, where z^layer changes and all above may.

    In the last layer sum_i |e + c|^2 - |e|^2 = sum_i c (2 e + c) for residuals e and changes c.
    """
    change = changes(theta, other, layer, data)
    net = theta.theta.net
    rows = np.flatnonzero((change.n != 0).any(axis=1)) if layer == net.depth else slice(None)
    used, h = read_features(theta, layer, data)
    z, y = theta.dense(layer)[rows][:, used] @ h, rational(data.y).T
    if layer == net.depth:
        c, e = change[rows], z - y[rows]
        twice = e + e + c
        return risk + Fraction(sum_of_products(c.n, twice.n), c.d * twice.d * 2 * len(data))
    o = z + change
    if net.is_active(layer):
        o = activated(net.activation_of(layer), o, (o.n > 0).astype(bool))
    for step in exact_steps(other, o, layer + 1, net.depth):
        o = step.o
    e = o - y
    return Fraction(sum_of_products(e.n, e.n), e.d**2 * 2 * len(data))
