"""The derivatives of all z^l in all parameters below, by one forward sweep.

Below a dense layer m the derivative of z^l_i in W^m_{ab} is D_{ia} o^{m-1}_b with the derivative D
of z^l in z^m: two factors, of which only D changes from layer to layer. Below a convolution there
is a direction for each parameter; up to the next layer with weights units of a map move with the
parameters of that map alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from ..layers import DenseMatrix, WeightMatrix
from .backend import Array, namespace
from .held_steps import HeldStep
from .parameters import Parameters


@dataclass(frozen=True)
class Moved:
    """The derivatives of units in the parameters `start` to `stop` of the vector, those of a layer.

    With directions `values` (n, N, q) in the q parameters themselves; with `factor` (b, N) in the
    products of `values` (n, N, a) with (factor, 1): weights (a, b), then biases (a,); or, of `maps`
    maps, in the weights and the bias of its own map alone, (n, N, weights + 1). Where the layer has
    no biases `stop` leaves them out.
    """

    start: int
    stop: int
    values: Array
    factor: Array | None = None
    maps: int = 0

    def full(self) -> Array:
        """Return the derivatives in the parameters, (n, N, stop - start)."""
        n, N, _ = self.values.shape
        if self.maps:
            return self._spread(self.values, namespace(self.values).arange(n))
        if self.factor is None:
            return self.values
        weights = self.values[:, :, :, None] * self.factor.T[:, None, :]
        parts = [weights.reshape(n, N, -1), self.values]
        return namespace(self.values).concatenate(parts, axis=2)[:, :, : self.size]

    @property
    def size(self) -> int:
        """Return the number of parameters."""
        return self.stop - self.start

    def at(self, units: Array, columns: Array) -> Array:
        """Return the derivatives of some units, each at one of the columns, (units, q)."""
        values = self.values[units, columns]
        if self.maps:
            return self._spread(values[:, None], units)[:, 0]
        if self.factor is None:
            return values
        weights = values[:, :, None] * self.factor[:, columns].T[:, None, :]
        full = namespace(values).concatenate([weights.reshape(len(values), -1), values], axis=1)
        return full[:, : self.size]

    def _spread(self, values: Array, units: Array) -> Array:
        """Return `values` (n, N, weights + 1) of the units in the parameters of all maps."""
        xp, (n, N, own) = namespace(values), values.shape
        weights = xp.zeros((n, N, self.maps, own - 1), dtype=values.dtype)
        biases = xp.zeros((n, N, self.maps), dtype=values.dtype)
        rows, maps = xp.arange(n), units // (len(self.values) // self.maps)
        weights[rows, :, maps] = values[:, :, :-1]
        biases[rows, :, maps] = values[:, :, -1]
        return xp.concatenate([weights.reshape(n, N, -1), biases], axis=2)[:, :, : self.size]


def sweep(trace: list[HeldStep]) -> Iterator[tuple[HeldStep, list[Moved], list[Moved]]]:
    """Yield each step with the derivatives of o^{l-1} and of z^l in the parameters, by their layer.

    What was yielded before a step is overwritten.
    """
    below: list[Moved] = []
    start = 0
    for step in trace:
        moved = [_product(step.W, part) for part in below]
        if step.W.weights is not None:
            moved.append(_own(step, start))
            start = moved[-1].stop
        yield step, below, moved
        if step.slopes is not None:
            for part in moved:
                values = part.values
                values *= step.slopes[:, :, None]
        below = moved


def _product(W: WeightMatrix, part: Moved) -> Moved:
    """Return W times the derivatives of what it reads."""
    if part.maps and W.inner is not W:  # of a block, whose rows are no longer those of maps
        part = Moved(part.start, part.stop, part.full())
    values, (n, N, q) = part.values, part.values.shape
    if not part.maps or W.weights is None:
        product = (W.repeated(q) @ values.reshape(n, -1)).reshape(-1, N, q)
        return Moved(part.start, part.stop, product, part.factor, part.maps)
    xp, T = namespace(values), part.maps
    weights = xp.empty((W.shape[0], N, T, q - 1), dtype=values.dtype)
    biases = xp.empty((W.shape[0], N, T), dtype=values.dtype)
    for t, columns in enumerate(values.reshape(T, n // T, -1)):
        product = (W.of_map(t) @ columns).reshape(-1, N, q)
        weights[:, :, t], biases[:, :, t] = product[:, :, :-1], product[:, :, -1]
    spread = xp.concatenate([weights.reshape(len(weights), N, -1), biases], axis=2)
    return Moved(part.start, part.stop, spread[:, :, : part.size])


def _own(step: HeldStep, start: int) -> Moved:
    """Return the derivatives of z^l in the layer's own parameters, which begin at `start`."""
    xp, (n, N), T = namespace(step.z), step.z.shape, step.W.maps_out
    if step.W.inner is not step.W:
        W, rows = step.W, step.W.rows
        own = _own(step._replace(W=W.inner, below=step.below[W.read], z=step.z[:rows]), start)
        found = own.values if own.factor is not None else own.full()
        nothing = xp.zeros((n - rows, *found.shape[1:]), dtype=found.dtype)
        return Moved(start, own.stop, xp.concatenate([found, nothing]), own.factor)
    patches = patches_of(step.W, step.below)
    groups, K = patches.shape[:2]
    stop = start + step.W.weights.size + (0 if step.b is None else T)
    if n == T and groups == 1:  # each unit has weights of its own
        values = xp.zeros((n, N, n), dtype=step.z.dtype)
        values[xp.arange(n), :, xp.arange(n)] = 1
        return Moved(start, stop, values, patches[0, :, 0])
    values = xp.empty((groups, T // groups, n // T, N, K + 1), dtype=step.z.dtype)
    values[..., :K] = patches.transpose(0, 2, 3, 1)[:, None]
    values[..., K] = 1
    return Moved(start, stop, values.reshape(n, N, K + 1), maps=T)


def jacobian(moved: list[Moved]) -> Array:
    """Return the derivatives in all parameters, (n, N, p)."""
    full = [part.full() for part in moved]
    return full[0] if len(full) == 1 else namespace(full[0]).concatenate(full, axis=2)


def patches_of(W: WeightMatrix, o: Array) -> Array:
    """Return what the weights of a map multiply, by groups: (groups, weights, positions, N)."""
    maps = o[W.read].reshape(W.maps_in, W.positions_in, -1)
    found = [W.gathered(maps[c]) for c in range(len(maps))]
    found = found[0] if len(found) == 1 else namespace(o).concatenate(found)
    return found.reshape(W.groups, -1, *found.shape[1:])


def products(W: WeightMatrix, shape: tuple[int, ...], delta: Array, moved: Moved) -> Array:
    """Return W.gradient(delta, d) for the derivatives d in each parameter, as (weights, q).

    `shape` is that of the weights.
    """
    moved = replace(moved, values=moved.values[W.read])
    W, delta = W.inner, delta[: W.rows]
    xp, (n, N, q), T = namespace(delta), moved.values.shape, shape[0]
    if moved.factor is not None and isinstance(W, DenseMatrix):  # above another one
        ones = xp.ones_like(delta[:1])
        factor = xp.concatenate([moved.factor, ones])
        read = (delta[:, None] * factor).reshape(-1, N)  # (T * (b + 1), N)
        found = (read @ moved.values.transpose(1, 0, 2).reshape(N, -1)).reshape(T, -1, n, q)
        weights = found[:, :-1].transpose(0, 2, 3, 1).reshape(T * n, -1)
        full = xp.concatenate([weights, found[:, -1].reshape(T * n, q)], axis=1)
        return full[:, : moved.size]
    own = moved.maps == W.maps_in  # each map below has parameters of its own
    values = moved.values if own else moved.full()
    q = values.shape[2]
    maps, delta, found = values.reshape(W.maps_in, W.positions_in, N * q), delta.reshape(T, -1), []
    for c in range(W.maps_in):
        read = W.gathered(maps[c])
        block = delta[W.readers(c)] @ read.reshape(len(read), -1, q)  # (K, readers, q)
        if own:
            parts = block.reshape(-1, 1, q)
            block = moved._spread(parts, xp.full(len(parts), c * (n // moved.maps)))
        found.append(block.reshape(len(read), T // W.groups, -1))
    found = xp.concatenate(found)
    found = found.reshape(W.groups, -1, *found.shape[1:]).swapaxes(1, 2)
    return found.reshape(math.prod(shape), -1)


def widest(theta: Parameters) -> int:
    """Return how many numbers for one sample are in the largest derivatives of a layer."""
    largest, directions, parameters = 1, 0, 0
    for layer, W in theta.W.items():
        if W.weights is not None:
            own = theta.net.slots[layer].all.stop - theta.net.slots[layer].start
            parameters += own
            directions += W.maps_out if W.positions_out == 1 and W.groups == 1 else own
        last = parameters if layer == theta.net.depth else directions
        largest = max(largest, W.shape[0] * last)
    return largest
