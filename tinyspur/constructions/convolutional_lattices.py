"""[PWL] 6.2: maxima of minima of pieces that a convolutional network computes, as printed.

A piece is one filter w: the first convolution applies it, all weights above are ones, up to the
first dense layer, which adds up the piece's map. With average pooling that is linear in the image,
with max pooling convex and piecewise linear. The layers above take minima and maxima, as in
`lattices`. Only the filters are fitted, so that the other gradients need not vanish (E11 of the
audit): the point is offered for what its certificate says.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.optimize

from ..datasets.samples import TrainingSet, check_data
from ..engine.losses import Loss, check_loss
from ..engine.network import Network
from ..engine.parameters import Parameters
from ..engine.plain import generator, plain_on_host, vectors_as_samples
from ..errors import AssumptionError
from ..fitting.affine import fit_affine
from ..layers import AveragePoolingMatrix, Conv, Dense, Pooling, WeightMatrix
from ..shown import Shown
from .lattices import Lattice, trees
from .piecewise_linear import Groups, check_groups
from .towers import MARGIN

STARTS = 4  # filters that a fit below a max pooling begins with
ROUNDED = 1e-10  # share of what a bias adds to a piece that is rounding
FLAT = 1e-12  # share of the largest variance of the features below which a direction has none
EXACT = 1e-6  # share of the outputs that they may differ from the fits by
STEEPEST = 30  # times that a cap's slope is doubled, or the bias of the first convolution


@dataclass(frozen=True, repr=False)
class ConvolutionalLattice(Shown):
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

    `layers` as in `convolutional_lattice`. Max poolings select what they do for the filter
    `direction`, which they need, where a large bias is added to its map.
    """
    stem = _Stem(layers, vectors_as_samples(plain_on_host("x", x)))
    if direction is None and stem.selects:
        raise ValueError("patch sums: expected a direction, a filter, for the max pooling")
    w = np.zeros(stem.filter) if direction is None else plain_on_host("direction", direction)
    if w.size != math.prod(stem.filter):
        raise ValueError(f"patch sums: expected a filter {stem.filter}, got {w.shape}")
    return stem.features(w.reshape(stem.filter))


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
    pieces are added along their direction. Below max poolings outputs are fitted one by one, which
    needs a loss that is a sum over them, by L-BFGS from a few filters, as `seed` draws them: the
    risk is not convex in the filter, and its minima are often where two entries tie.

    Raises ValueError for other layers, groups or losses; AssumptionError where a group has no fit
    or no lattice is found.
    """
    check_data(data)
    check_loss(loss, data.y.T)
    stem = _Stem(layers, data.x)
    check_groups(groups)
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
    found = [_with_caps(stem, pieces, groups) for pieces in _fits(stem, data, loss, groups, seed)]
    lattices = tuple(lattice for _, lattice in found)
    theta = _lifted(stem, [pieces for pieces, _ in found], lattices)
    fitted = np.array([p.values[groups.labels, np.arange(len(data))] for p, _ in found])
    off = abs(theta.net.forward(theta, data.x).T - fitted).max()
    size = abs(fitted).max() or 1.0
    if not off <= EXACT * size:
        raise AssumptionError(
            f"convolutional lattice: outputs of up to {size:.2g} are off by {off:.2g}: too small "
            "beside biases of 1, or beside steep pieces of groups too close along the direction"
        )
    return ConvolutionalLattice(theta, lattices, groups, theta.net.risk(theta, data, loss))


@dataclass(frozen=True)
class _Pieces:
    """Pieces of one output: `filters` (n, C, *k), `biases` (n,), `values` (n, N) on the samples."""

    filters: np.ndarray
    biases: np.ndarray
    values: np.ndarray


class _Stem:
    """What the layers below the first dense one, all weights 1, make of a filter's map.

    Max poolings select as they do where a bias of the first convolution outweighs everything: of
    the entries to which it adds most the largest. So the piece of a filter w and a bias b is
    phi . w + total b, where phi depends on w and the sample and `total` on nothing.
    """

    def __init__(self, layers: Sequence[int | Pooling], x: np.ndarray):
        if not layers or isinstance(layers[0], Pooling):
            raise ValueError(
                f"convolutional lattice: expected the size of a filter first, got {layers}"
            )
        self.layers, self.x, self.kept = tuple(layers), x, None
        self.selects = any(isinstance(layer, Pooling) and layer.selects for layer in layers)
        self.ones = Network(x.shape[1:], self._layers(1)).zeros()
        for layer in self.ones.b:
            self.ones.W[layer].weights[...] = 1
        self.filter = self.ones.W[1].weights.shape[1:]
        taps = math.prod(self.filter)
        self.taps = Network(x.shape[1:], [Conv(taps, layers[0])]).zeros()
        self.taps.W[1].weights[...] = np.eye(taps).reshape(taps, *self.filter)
        lift, self.lifted = np.ones((self.ones.W[1].shape[0], 1)), {}
        for layer, W in self._above():
            if W.weights is None and not W.tiles:
                raise ValueError(
                    "convolutional lattice: expected poolings whose windows cut the maps up, got "
                    f"{layers[layer - 1]}"
                )
            if W.selects:
                spread = AveragePoolingMatrix(1, W.map_shape, W.size).T
                most = spread @ (W @ lift) / (spread @ np.ones((W.shape[0], 1)))
                self.lifted[layer] = lift >= (1 - ROUNDED) * most
            lift = W @ lift
        self.total = float(lift.sum())

    def of(self, samples: np.ndarray) -> _Stem:
        """Return the same of some of the samples."""
        part = copy.copy(self)
        part.x, part.kept = self.x[samples], None
        return part

    def _layers(self, maps: int) -> list[Conv | Pooling]:
        return [layer if isinstance(layer, Pooling) else Conv(maps, layer) for layer in self.layers]

    def _above(self) -> list[tuple[int, WeightMatrix]]:
        return [(layer, self.ones.W[layer]) for layer in range(2, len(self.layers) + 1)]

    def _over(self, function: Callable) -> list:
        """Return function(rows, patches) for chunks of samples that keep the memory budget.

        The `patches` (C k^2, P, n) are what each tap of a filter reads; those of one chunk for all
        are kept.
        """
        if self.kept is not None:
            return [function(*self.kept)]

        def unfold(rows: slice, columns: np.ndarray) -> Any:
            taps, n = self.taps.W[1], columns.shape[1]
            patches = (taps @ columns).reshape(taps.maps_out, taps.positions_out, n)
            if n == len(self.x):
                self.kept = rows, patches
            return function(rows, patches)

        return list(self.taps.net.over(self.taps, self.x, unfold))

    def _sums(self, w: np.ndarray, patches: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the sum of what a filter w makes of each sample, (n,).

        And its derivative in the outputs of the first convolution, (P, n).
        """
        z, chain = np.tensordot(w.ravel(), patches, 1), []
        for layer, W in self._above():
            if layer in self.lifted:
                W = W.at(np.where(self.lifted[layer], z, -np.inf))
            chain.append(W)
            z = W @ z
        delta = np.ones_like(z)
        for W in reversed(chain):
            delta = W.T @ delta
        return z.sum(axis=0), delta

    def features(self, w: np.ndarray) -> np.ndarray:
        """Return phi (N, C k^2) with the selection for the filter w."""
        found = self._over(lambda _, p: np.einsum("tpn,pn->nt", p, self._sums(w, p)[1]))
        return np.concatenate(found)

    def pieces(self, filters: np.ndarray, biases: np.ndarray) -> _Pieces:
        """Return the pieces of filters (n, C, *k) and biases (n,)."""
        found = self._over(lambda _, p: np.array([self._sums(w, p)[0] for w in filters]))
        values = np.concatenate(found, axis=1) + self.total * biases[:, None]
        return _Pieces(filters, biases, values)

    def risk(self, v: np.ndarray, y: np.ndarray, loss: Loss) -> tuple[float, np.ndarray]:
        """Return the risk of the piece of the filter and constant v, and its derivative in v."""

        def chunk(rows: slice, patches: np.ndarray) -> tuple[float, np.ndarray]:
            values, delta = self._sums(v[:-1], patches)
            o, target = (values + v[-1])[None], y[rows].T
            g = loss.gradient(o, target)
            slopes = np.tensordot(patches, g * delta, 2)
            return loss.value(o, target).sum(), np.append(slopes, g.sum())

        values, slopes = zip(*self._over(chunk), strict=True)
        return sum(values) / len(y), sum(slopes) / len(y)

    def lowest(self, filters: np.ndarray, biases: np.ndarray) -> float:
        """Return the least output of the first convolution."""
        flat = filters.reshape(len(filters), -1)
        found = self._over(lambda _, p: np.tensordot(flat, p, 1).min(axis=(1, 2)))
        return float((np.min(found, axis=0) + biases).min())

    def network(
        self, filters: np.ndarray, biases: np.ndarray, lattices: Sequence[Lattice], lift: float
    ) -> Parameters:
        """Return the whole network: the stem once for each piece, their sums, and the trees.

        `lift` is added to the biases, and what it adds to the outputs is taken off.
        """
        n, above = len(filters), trees(lattices)
        dense = [Dense(n), *(Dense(len(matrix)) for matrix in above)]
        theta = Network(self.x.shape[1:], [*self._layers(n), *dense]).zeros()
        for layer in range(2, len(self.layers) + 1):
            for t in range(n if layer in theta.b else 0):
                theta.W[layer].weights[t, t] = 1
        theta.W[1].weights[...], theta.b[1][...] = filters, biases + lift
        first = len(self.layers) + 1
        theta.W[first].weights[...] = np.repeat(np.eye(n), theta.W[first].shape[1] // n, axis=1)
        for layer, matrix in enumerate(above, start=first + 1):
            theta.W[layer].weights[...] = matrix
        theta.b[theta.net.depth][...] = -lift * self.total
        return theta


def _lifted(stem: _Stem, outputs: Sequence[_Pieces], lattices: Sequence[Lattice]) -> Parameters:
    """Return the network with a bias that keeps all units active and adds the same to all pieces.

    AssumptionError where there is none.
    """
    filters, biases, values = (
        np.concatenate([getattr(pieces, name) for pieces in outputs])
        for name in ("filters", "biases", "values")
    )
    lift, first = max(MARGIN, MARGIN - stem.lowest(filters, biases)), len(stem.layers) + 1
    for _ in range(STEEPEST):
        theta = stem.network(filters, biases, lattices, lift)
        found = theta.net.over(
            theta, stem.x, lambda _, o, theta=theta: theta.net.layer_output(theta, o, first)
        )
        added = np.concatenate(list(found), axis=1) - values
        if abs(added / (lift * stem.total) - 1).max() <= ROUNDED:
            return theta
        lift *= 2
    raise AssumptionError(
        "convolutional lattice: no bias keeps the first convolution active and adds the same to "
        "all pieces"
    )


def _fits(stem: _Stem, data: TrainingSet, loss: Loss, groups: Groups, seed: int) -> list[_Pieces]:
    """Return for each output the pieces that are optimal for the groups."""
    d_y, K = data.y.shape[1], len(groups)
    maps = np.zeros((d_y, K, math.prod(stem.filter) + 1))  # filters and constants
    for r in range(K):
        inside = groups.labels == r
        part, y = stem.of(inside), data.y[inside]
        if stem.selects:
            maps[:, r] = [_descend(part, y[:, k : k + 1], loss, seed) for k in range(d_y)]
        else:
            fit = fit_affine(part.features(np.zeros(stem.filter)), y, loss)
            maps[:, r] = np.column_stack([fit.weights, fit.bias])
    return [
        stem.pieces(maps[k, :, :-1].reshape(K, *stem.filter), maps[k, :, -1] / stem.total)
        for k in range(d_y)
    ]


def _descend(stem: _Stem, y: np.ndarray, loss: Loss, seed: int) -> np.ndarray:
    """Return the filter and constant (C k^2 + 1,) of the lowest risk found below max poolings.

    L-BFGS starts from the constant fit, and from the optimum for the selection that a filter makes,
    of zeros and random ones, in coordinates u in which the features have unit covariance.
    """
    rng = generator(seed)
    directions = [np.zeros(stem.filter), *rng.standard_normal((STARTS - 1, *stem.filter))]
    features = [stem.features(w) for w in directions]
    fits = [fit_affine(phi, y, loss) for phi in (np.zeros_like(features[0]), *features)]
    rows = np.vstack([np.column_stack([phi, np.ones(len(phi))]) for phi in features])
    squares, axes = np.linalg.eigh(rows.T @ rows / len(rows))
    back = axes / np.sqrt(np.maximum(squares, FLAT * squares.max()))
    starts = [np.linalg.solve(back, np.append(fit.weights, fit.bias)) for fit in fits]
    size = stem.risk(back @ starts[0], y, loss)[0] or 1.0

    def risk(u: np.ndarray) -> tuple[float, np.ndarray]:
        value, slopes = stem.risk(back @ u, y, loss)
        return value / size, slopes @ back / size

    ended = [scipy.optimize.minimize(risk, u, jac=True, method="L-BFGS-B") for u in starts]
    return back @ min(ended, key=lambda end: end.fun).x


def _with_caps(stem: _Stem, fitted: _Pieces, groups: Groups) -> tuple[_Pieces, Lattice]:
    """Return the pieces and their lattice, with steep pieces that cut the fits off if need be."""
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
                cap = stem.pieces(w[None], b[None])
                low = float((fitted.values[r] - cap.values[0])[labels == r].max())
                high = float((selected - cap.values[0])[beyond].min())
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
    pieces = stem.pieces(np.array(filters), np.array(biases))
    return pieces, lattice(pieces.values)


def _is_sum(loss: Loss, y: np.ndarray) -> bool:
    """Return whether the gradient in each output depends on no other one, at random outputs."""
    rng = np.random.default_rng(0)
    o, other = rng.standard_normal((2, *y.T.shape))
    for k in range(len(o)):
        mixed = np.where(np.arange(len(o))[:, None] == k, o, other)
        if not np.array_equal(loss.gradient(mixed, y.T)[k], loss.gradient(o, y.T)[k]):
            return False
    return True
