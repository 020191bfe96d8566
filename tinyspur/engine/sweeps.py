"""The derivatives of all z^l in all parameters below, by one forward sweep.

Below a dense layer m the derivative of z^l_i in W^m_{ab} is D_{ia} o^{m-1}_b with the derivative D
of z^l in z^m: two factors, of which only D changes from layer to layer. Below a convolution there
is a direction for each parameter.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..layers import WeightMatrix
from .backend import Array, namespace
from .held_steps import HeldStep
from .parameters import Parameters


@dataclass(frozen=True)
class Moved:
    """The derivatives of units in the parameters `start` to `stop` of the vector, those of a layer.

    With directions `values` (n, N, q) in the q parameters themselves; or, with `factor` (b, N), in
    the products of `values` (n, N, a) with (factor, 1): weights (a, b), then biases (a,).
    """

    start: int
    stop: int
    values: Array
    factor: Array | None

    def full(self) -> Array:
        """Return the derivatives in the parameters, (n, N, stop - start)."""
        if self.factor is None:
            return self.values
        xp, (n, N, _) = namespace(self.values), self.values.shape
        weights = self.values[:, :, :, None] * self.factor.T[:, None, :]
        return xp.concatenate([weights.reshape(n, N, -1), self.values], axis=2)

    def at(self, units: Array, columns: Array) -> Array:
        """Return the derivatives of some units, each at one of the columns, (units, q)."""
        values = self.values[units, columns]
        if self.factor is None:
            return values
        weights = values[:, :, None] * self.factor[:, columns].T[:, None, :]
        return namespace(values).concatenate([weights.reshape(len(values), -1), values], axis=1)


def sweep(trace: list[HeldStep]) -> Iterator[tuple[HeldStep, list[Moved], list[Moved]]]:
    """Yield each step with the derivatives of o^{l-1} and of z^l in the parameters, by their layer.

    What was yielded before a step is overwritten.
    """
    below: list[Moved] = []
    start = 0
    for step in trace:
        moved = [Moved(m.start, m.stop, _product(step.W, m.values), m.factor) for m in below]
        if step.b is not None:
            moved.append(_own(step, start))
            start = moved[-1].stop
        yield step, below, moved
        if step.slopes is not None:
            for part in moved:
                values = part.values
                values *= step.slopes[:, :, None]
        below = moved


def _product(W: WeightMatrix, values: Array) -> Array:
    """Return W times each direction of `values` (n_{l-1}, N, q)."""
    _, N, q = values.shape
    return (W.repeated(q) @ values.reshape(len(values), -1)).reshape(-1, N, q)


def _own(step: HeldStep, start: int) -> Moved:
    """Return the derivatives of z^l in the layer's own parameters, which begin at `start`."""
    xp, (n, N), T = namespace(step.z), step.z.shape, len(step.b)
    patches = patches_of(step.W, step.below)
    K = len(patches)
    stop = start + T * (K + 1)
    if n == T:  # each unit has weights of its own
        values = xp.zeros((n, N, n), dtype=step.z.dtype)
        values[xp.arange(n), :, xp.arange(n)] = 1
        return Moved(start, stop, values, patches[:, 0])
    values = xp.zeros((T, n // T, N, T * (K + 1)), dtype=step.z.dtype)
    patches = patches.transpose(1, 2, 0)
    for t in range(T):
        values[t, :, :, t * K : (t + 1) * K] = patches
        values[t, :, :, T * K + t] = 1
    return Moved(start, stop, values.reshape(n, N, -1), None)


def jacobian(moved: list[Moved]) -> Array:
    """Return the derivatives in all parameters, (n, N, p)."""
    full = [part.full() for part in moved]
    return full[0] if len(full) == 1 else namespace(full[0]).concatenate(full, axis=2)


def patches_of(W: WeightMatrix, o: Array) -> Array:
    """Return what the weights of one map multiply at each position, (weights, positions, N)."""
    maps = o.reshape(W.maps_in, W.positions_in, -1)
    found = [W.gathered(maps[c]) for c in range(len(maps))]
    return found[0] if len(found) == 1 else namespace(o).concatenate(found)


def products(W: WeightMatrix, shape: tuple[int, ...], delta: Array, moved: Moved) -> Array:
    """Return W.gradient(delta, d) for the derivatives d in each parameter, as (weights, q).

    `shape` is that of the weights.
    """
    xp, (n, N, q), T = namespace(delta), moved.values.shape, shape[0]
    if moved.factor is not None and n * T == W.weights.size:  # a dense layer above another one
        ones = xp.ones_like(delta[:1])
        factor = xp.concatenate([moved.factor, ones])
        read = (delta[:, None] * factor).reshape(-1, N)  # (T * (b + 1), N)
        found = (read @ moved.values.transpose(1, 0, 2).reshape(N, -1)).reshape(T, -1, n, q)
        weights = found[:, :-1].transpose(0, 2, 3, 1).reshape(T * n, -1)
        return xp.concatenate([weights, found[:, -1].reshape(T * n, q)], axis=1)
    values = moved.full()
    q = values.shape[2]
    maps, delta, found = values.reshape(W.maps_in, W.positions_in, N * q), delta.reshape(T, -1), []
    for c in range(W.maps_in):
        read = W.gathered(maps[c])
        found.append(delta @ read.reshape(len(read), -1, q))  # (K, T, q)
    return xp.concatenate(found).transpose(1, 0, 2).reshape(-1, q)


def widest(theta: Parameters) -> int:
    """Return how many numbers for one sample are in the largest derivatives of a layer."""
    largest, directions, parameters = 1, 0, 0
    for layer, W in theta.W.items():
        if layer in theta.b:
            own = W.weights.size + len(theta.b[layer])
            parameters += own
            directions += len(theta.b[layer]) if W.positions_out == 1 else own
        last = parameters if layer == theta.net.depth else directions
        largest = max(largest, W.shape[0] * last)
    return largest
