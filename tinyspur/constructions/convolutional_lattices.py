"""[PWL] 6.2: maxima of minima of pieces that a convolutional network computes, as printed.

A piece is one filter w: the first convolution applies it, all weights above are ones, up to the
first dense layer, which adds up the piece's map. With average pooling that is linear in the image,
with max pooling convex and piecewise linear. The layers above take minima and maxima, as in
`lattices`. Only the filters are fitted, so that the other gradients need not vanish (E11 of the
audit): whether the point is a local minimum, only its certificate can tell.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.optimize

from ..datasets.samples import TrainingSet
from ..engine.activations import ReLU
from ..engine.losses import Loss
from ..engine.network import Network
from ..engine.parameters import Parameters
from ..errors import AssumptionError
from ..fitting.affine import fit_affine
from ..layers import (Conv, Dense, Layer, Pooling)
from .lattices import (Lattice, trees)
from .piecewise_linear import Groups
from .towers import MARGIN

STARTS = 4  # filters that a fit below a max pooling begins with
ROUNDED = 1e-12  # what a bias adds to the pieces is the same up to this share of it
EXACT = 1e-6  # outputs may differ from the fits by this share of their size
ITERATIONS = 200  # of L-BFGS in such a fit
STEEPEST = 30  # how often the slope of a cap, or the bias of the first convolution, is doubled


@dataclass(frozen=True)
class ConvolutionalLattice:
    """The network `theta` of a lattice for each output, in float64, and its `risk`.

    The lattices are functions of the values of their pieces: their `pieces` are unit vectors.
    """

    theta: Parameters
    lattices: tuple[Lattice, ...]
    groups: Groups
    risk: float

    def __str__(self) -> str:
        fit = f"{self.groups}, risk {self.risk:.9g}"
        lines = [f"convolutional lattice: {fit}", f"  {self.theta.net}"]
        return "\n".join([*lines, *(f"  output {k}: {f}" for k, f in enumerate(self.lattices))])


def patch_sums(
    layers: Sequence[int | Pooling], x: np.ndarray, direction: np.ndarray | None = None
) -> np.ndarray:
    """Return phi (N, C k^2): a filter w gives the piece phi . w, for groups along a filter.

    `layers` are as in `convolutional_lattice`. With max poolings a filter `direction` is needed,
    and they select the entries that they select for this filter.
    """
    stem = _Stem(layers, x)
    if direction is None and stem.selects:
        raise ValueError("patch sums: expected a direction, a filter, for the max pooling")
    w = np.zeros(stem.filter) if direction is None else np.asarray(direction, np.float64)
    if w.size != math.prod(stem.filter):
        raise ValueError(f"patch sums: expected a filter {stem.filter}, got {w.shape}")
    return stem.features(w.reshape(stem.filter), 0.0)[0]


def convolutional_lattice(
    layers: Sequence[int | Pooling],
    data: TrainingSet,
    loss: Loss,
    groups: Groups,
    seed: int = 0,
) -> ConvolutionalLattice:
    """Return the network whose predictor fits every group of samples by pieces of its own.

    `layers` are those below the dense ones: sizes of filters, a convolution first, and poolings.
    `groups` are groups of the `patch_sums`; where the fits alone are no lattice, steep auxiliary
    pieces are added along their direction. Below max poolings the outputs are fitted one by one,
    which needs a loss that is a sum over them. The risk is not convex in the filter, and its minima
    are often where two entries tie: L-BFGS starts from a few filters, drawn with `seed`.

    Raises ValueError for other layers, groups or losses; AssumptionError where a group has no fit
    or no lattice is found.
    """
    stem, lift = _Stem(layers, data.x), MARGIN
    if len(groups.labels) != len(data) or groups.direction.size != math.prod(stem.filter):
        raise ValueError(
            f"groups: expected {len(data)} samples along a filter {stem.filter}, got "
            f"{len(groups.labels)} along {groups.direction.shape}"
        )
    if stem.selects and not _is_sum(loss, data.y):
        raise ValueError(
            "convolutional lattice: expected a loss that is a sum over the outputs below a max "
            f"pooling, got {loss!r}"
        )
    for _ in range(STEEPEST):
        found = [
            _with_caps(stem, pieces, groups, lift)
            for pieces in _fits(stem, data, loss, groups, lift, seed)
        ]
        filters = np.concatenate([pieces.filters for pieces, _ in found])
        biases = np.concatenate([pieces.biases for pieces, _ in found])
        needed = MARGIN - float((stem.convolved(filters).min(axis=1) + biases).min())
        lattices = tuple(lattice for _, lattice in found if lattice is not None)
        if needed <= lift and len(lattices) == len(found):
            break
        lift = max(2 * lift, needed)
    else:
        raise AssumptionError(
            "convolutional lattice: no bias keeps the first convolution active and adds the same "
            "to all pieces"
        )
    theta = stem.network(filters, biases + lift, lattices, lift)
    fitted = np.array([p.values[groups.labels, np.arange(len(data))] for p, _ in found])
    off = abs(theta.net.forward(theta, data.x).T - fitted).max()
    if off > EXACT * (1 + abs(fitted).max()):
        raise AssumptionError(
            "convolutional lattice: groups too close along the direction, the steep pieces between "
            f"them put the outputs off by {off:.2g}"
        )
    return ConvolutionalLattice(theta, lattices, groups, theta.net.risk(theta, data, loss))


@dataclass(frozen=True)
class _Pieces:
    """Pieces of one output: `filters` (n, C, *k), `biases` (n,), `values` (n, N) on the samples.

    `uniform` tells whether a bias of the first convolution adds the same to all of them.
    """

    filters: np.ndarray
    biases: np.ndarray
    values: np.ndarray
    uniform: bool


class _Stem:
    """What the layers below the first dense one, all weights 1, make of a filter's map."""

    def __init__(self, layers: Sequence[int | Pooling], x: np.ndarray):
        if not layers or isinstance(layers[0], Pooling):
            raise ValueError(
                f"convolutional lattice: expected the size of a filter first, got {layers}"
            )
        self.layers = tuple(layers)
        self.alone = Network(x.shape[1:], self._stack(1), ReLU(slope=1.0))  # sigma(z) = z
        self.theta = self.alone.zeros()
        for layer in self.theta.b:
            self.theta.W[layer].weights[...] = layer > 1
        self.filter = self.theta.W[1].weights.shape[1:]
        self.selects = any(isinstance(layer, Layer) and layer.selects for layer in layers)
        taps = np.eye(math.prod(self.filter)).reshape(-1, *self.filter)
        patches = self.alone.filter_responses(self.theta, 1, taps, x)
        self.patches = patches.reshape(len(taps), -1, len(x))

    def _stack(self, maps: int) -> list:
        return [layer if isinstance(layer, Pooling) else Conv(maps, layer) for layer in self.layers]

    def convolved(self, filters: np.ndarray, samples: np.ndarray | slice = slice(None)):
        """Return what the first convolution makes of the samples, (n, P * samples)."""
        patches = self.patches[..., samples]
        return filters.reshape(len(filters), -1) @ patches.reshape(len(patches), -1)

    def features(
        self, w: np.ndarray, bias: float, samples: np.ndarray | slice = slice(None)
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return phi (N, C k^2) and s (N,): phi . v + s beta is the piece of filter v, bias beta.

        With the selection that max poolings make for the filter w and `bias`.
        """
        P = self.patches.shape[1]
        below = self.convolved(w[None], samples).reshape(P, -1) + bias
        chain = []
        for layer in range(2, self.alone.depth + 1):
            chain.append(self.theta.W[layer].at(below))
            below = chain[-1] @ below
        delta = np.ones_like(below)
        for W in reversed(chain):
            delta = W.T @ delta
        return (self.patches[..., samples] * delta).sum(axis=1).T, delta.sum(axis=0)

    def pieces(self, filters: np.ndarray, biases: np.ndarray, lift: float) -> _Pieces:
        """Return the pieces of filters and biases where `lift` is added to the latter."""
        values, uniform, total = [], True, self.total
        for w, b in zip(filters, biases, strict=True):
            phi, s = self.features(w, b + lift)
            values.append(phi @ w.ravel() + s * b)
            uniform = uniform and bool((abs(s - total) <= ROUNDED * total).all())
        return _Pieces(np.asarray(filters), np.asarray(biases), np.array(values), uniform)

    @property
    def total(self) -> float:
        """Return what a bias of 1 adds to every piece where max poolings select the most of it."""
        zero = np.zeros(self.filter)
        return float(self.features(zero, 1.0, slice(0, 1))[1][0])

    def network(
        self, filters: np.ndarray, biases: np.ndarray, lattices: Sequence[Lattice], lift: float
    ) -> Parameters:
        """Return the whole network: the stem once for each piece, their sums, and the trees."""
        n, above = len(filters), trees(lattices)
        dense = [Dense(n), *(Dense(len(matrix)) for matrix in above)]
        theta = Network(self.alone.input_shape, [*self._stack(n), *dense]).zeros()
        for layer in range(2, len(self.layers) + 1):
            for t in range(n if layer in theta.b else 0):
                theta.W[layer].weights[t, t] = 1
        theta.W[1].weights[...], theta.b[1][...] = filters, biases
        first = len(self.layers) + 1
        theta.W[first].weights[...] = np.repeat(np.eye(n), theta.W[first].shape[1] // n, axis=1)
        for layer, matrix in enumerate(above, start=first + 1):
            theta.W[layer].weights[...] = matrix
        theta.b[theta.net.depth][...] = -lift * self.total
        return theta


def _fits(
    stem: _Stem, data: TrainingSet, loss: Loss, groups: Groups, lift: float, seed: int
) -> list[_Pieces]:
    """Return for each output the pieces that are optimal for the groups."""
    d_y, K = data.y.shape[1], len(groups)
    filters, biases = np.zeros((d_y, K, *stem.filter)), np.zeros((d_y, K))
    for r in range(K):
        inside = np.flatnonzero(groups.labels == r)
        if not stem.selects:
            phi, _ = stem.features(np.zeros(stem.filter), lift, inside)
            fit = fit_affine(phi, data.y[inside], loss)
            filters[:, r] = fit.weights.reshape(d_y, *stem.filter)
            biases[:, r] = fit.bias / stem.total
            continue
        for k in range(d_y):
            one = data.y[inside, k : k + 1]
            filters[k, r], biases[k, r] = _descend(stem, one, inside, loss, lift, seed)
    return [stem.pieces(*pair, lift) for pair in zip(filters, biases, strict=True)]


def _descend(
    stem: _Stem, y: np.ndarray, inside: np.ndarray, loss: Loss, lift: float, seed: int
) -> tuple[np.ndarray, float]:
    """Return the filter and bias of the lowest risk that L-BFGS finds below max poolings.

    It starts from the constant fit, and from the optimal fits for the selections that the zero
    filter and random filters make.
    """
    rng, scale = np.random.default_rng(seed), abs(stem.patches).max() or 1.0

    def risk(v: np.ndarray) -> tuple[float, np.ndarray]:
        phi, s = stem.features(v[:-1].reshape(stem.filter) / scale, v[-1] + lift, inside)
        o = (phi @ v[:-1] / scale + s * v[-1])[None]
        g = loss.gradient(o, y.T)[0] / len(y)
        return float(loss.value(o, y.T).mean()), np.append(g @ phi / scale, g @ s)

    found = []
    for start in range(-1, STARTS):
        w = rng.standard_normal(stem.filter) if start > 0 else np.zeros(stem.filter)
        phi, _ = stem.features(w, lift, inside)
        fit = fit_affine(phi if start >= 0 else np.zeros_like(phi), y, loss)
        v = np.append(scale * fit.weights, fit.bias / stem.total)
        options = {"maxiter": ITERATIONS, "ftol": 0.0, "gtol": 1e-12}
        ended = scipy.optimize.minimize(risk, v, jac=True, method="L-BFGS-B", options=options)
        found.append((ended.fun, start, ended.x))
    best = min(found)[2]
    return best[:-1].reshape(stem.filter) / scale, float(best[-1])


def _with_caps(
    stem: _Stem, fitted: _Pieces, groups: Groups, lift: float
) -> tuple[_Pieces, Lattice | None]:
    """Return the pieces and their lattice, with steep pieces that cut the fits off if need be.

    The lattice is None where `lift` is so small that it does not add the same to all pieces.
    """
    if not fitted.uniform:
        return fitted, None
    labels, direction = groups.labels, groups.direction.reshape(stem.filter)

    def lattice(values: np.ndarray) -> Lattice:
        pieces = np.eye(len(values), len(values) + 1)
        return Lattice.of(pieces, [(r, values[:, labels == r].T) for r in range(len(groups))])

    try:
        return fitted, lattice(fitted.values)
    except AssumptionError:
        pass
    filters, biases = list(fitted.filters), list(fitted.biases)
    selected = fitted.values[labels, np.arange(len(labels))]
    for r in range(len(groups)):
        for side, beyond in ((-1, labels > r), (1, labels < r)):
            if not beyond.any():
                continue
            for slope in 2.0 ** np.arange(STEEPEST):
                w, b = fitted.filters[r] + side * slope * direction, fitted.biases[r]
                cap = stem.pieces(w[None], b[None], lift)
                low = float((fitted.values[r] - cap.values[0])[labels == r].max())
                high = float((selected - cap.values[0])[beyond].min())
                if not cap.uniform:
                    return cap, None
                if low < high:
                    break
            else:
                raise AssumptionError(
                    f"convolutional lattice: no steep piece cuts group {r} of {len(groups)} off "
                    f"{'above' if side < 0 else 'below'}; with max pooling, expected groups that "
                    "the direction and its negative both put in order"
                )
            filters.append(w)
            biases.append(b + (low + high) / 2 / stem.total)
    pieces = stem.pieces(np.array(filters), np.array(biases), lift)
    return pieces, lattice(pieces.values) if pieces.uniform else None


def _is_sum(loss: Loss, y: np.ndarray) -> bool:
    """Return whether, at random outputs, the gradient in each of them depends on no other."""
    rng = np.random.default_rng(0)
    o, other = rng.standard_normal((2, *y.T.shape))
    for k in range(len(o)):
        mixed = np.where(np.arange(len(o))[:, None] == k, o, other)
        if not np.array_equal(loss.gradient(mixed, y.T)[k], loss.gradient(o, y.T)[k]):
            return False
    return True
