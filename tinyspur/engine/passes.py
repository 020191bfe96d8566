"""Passes over the layers of a network: steps o^l = sigma(W^l o^{l-1} + b^l), and what folds them.

A pass over some samples, which are columns, is a list of steps: the trace. The gradient, the
Hessian product, patterns and margins are loops over its steps, upwards or downwards; none of them
looks up what lies below a layer, since a step knows what it read.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from ..layers import WeightMatrix
from .activations import KNOWN, Activation
from .architecture import Architecture
from .backend import Array, namespace
from .parameters import Parameters
from .plain import plain_on_host, vectors_as_samples
from .threads import in_order

CACHED = 20 * 2**20  # bytes of activations of a chunk: more would leave the caches
FEWEST = 8  # the fewest samples of a chunk, if the budget allows as many
SHARED = 4 * 2**20  # bytes of activations that are worth a thread of their own
AT_LEAST = 4  # chunks where there is as much to share


class Step(NamedTuple):
    """One layer of a pass: o = sigma(z) with z = W below + b, all columns (n, N).

    `b` is None for a layer without biases, `activation` None where none follows: then z and o
    are one array, as they are in a pass that overwrites.
    """

    layer: int
    W: WeightMatrix
    b: Array | None
    below: Array
    z: Array
    o: Array
    activation: Activation | None

    @property
    def matrix(self) -> WeightMatrix:
        """Return the matrix that W is at `below`: for max pooling the one that selects."""
        return self.W.at(self.below)

    @property
    def slopes(self) -> Array:
        """Return sigma'(z)."""
        return self.activation.derivative(self.z)

    @property
    def own_z(self) -> Array:
        """Return z without what a residual block keeps beside it."""
        return self.z[: self.W.rows]

    @property
    def heights(self) -> Array:
        """Return how far z is from the kink of an activation, |z|; infinite where it has none."""
        found = abs(self.z)
        found[self.W.rows :] = np.inf
        return found

    @property
    def kinked(self) -> bool:
        """Return whether an activation with a kink follows."""
        return self.activation is not None and self.activation.piecewise_linear


def neurons(
    theta: Parameters, layer: int, products: Array, overwrite: bool = False
) -> tuple[Array, Array]:
    """Return z^l and o^l = sigma(z^l) for the products W^l o^{l-1}, in their memory.

    Without an activation z^l and o^l are one array. With `overwrite` they are one array in every
    layer: o^l may take the memory of z^l, since the slopes of ReLU and leaky ReLU can be read off
    o^l too.
    """
    z, sigma = products, theta.net.activation_at(layer)
    if layer in theta.b:
        maps = theta.W[layer].by_map(z)
        maps += theta.b[layer][:, None]
    if sigma is None:
        return z, z
    o = sigma.in_place(z) if overwrite else sigma(z)
    return o if overwrite else z, o


def unread(W: WeightMatrix, b: Array | None, size: Array) -> Array:
    """Return which z of a layer with weights are 0 for all parameters, (n, N).

    Those of a layer without biases that read nothing but zeros; `size` (n_below, N) is 0 there.
    """
    found = namespace(size).zeros((W.shape[0], size.shape[1]), dtype=bool)
    if b is None:
        maps = found[: W.rows].reshape(W.maps_out, W.positions_out, -1)
        maps[...] = W.support_sums(size) == 0
    return found


def steps(theta: Parameters, columns: Array, overwrite: bool = False) -> Iterator[Step]:
    """Yield the steps of a pass, for l = 1..L; `columns` (n_0, N) are the inputs.

    With `overwrite`, see `neurons`, those below the last hold until this thread's next such pass.
    """
    o = columns
    for layer, W in theta.W.items():
        below = o
        brief = overwrite and layer < theta.net.depth
        products = W.brief_product(below, f"trace {layer}") if brief else W @ below
        z, o = neurons(theta, layer, products, overwrite)
        b = theta.b.get(layer)
        yield Step(layer, W, b, below, z, o, theta.net.activation_at(layer))


def layer_output(theta: Parameters, columns: Array, layer: int, above: int = 0) -> Array:
    """Return o^layer for the columns (n_above, N) of o^above; o^0 is the input.

    Layers between have no memory of their own, unless an activation of the user's may keep it.
    """
    o, own = columns, all(type(sigma) in KNOWN.values() for sigma in theta.net.activations)
    for n in range(above + 1, layer + 1):
        W, brief = theta.W[n], own and n < layer
        products = W.brief_product(o, f"neurons {n % 2}") if brief else W @ o
        _, o = neurons(theta, n, products, overwrite=True)
    return o


# Downwards


def add_gradient(trace: list[Step], delta: Array, gradient: Parameters) -> None:
    """Add to `gradient` the derivative of the losses in the parameters; `delta` is that in o^L."""
    turns = itertools.cycle(("pulled", "pulled next"))  # none is written while it is read
    for step in reversed(trace):
        if step.activation is not None:
            delta = delta * step.slopes
        W = step.matrix
        if W.weights is None:
            delta = W.T @ delta if step.layer > 1 else None
            continue
        if step.b is not None:
            biases = gradient.b[step.layer]
            biases += W.by_map(delta).sum(axis=1)
        weights = gradient.W[step.layer].weights
        if step.layer > 1:
            change, delta = W.pullback(delta, step.below, next(turns))
        else:
            change = W.gradient(delta, step.below)
        weights += change


class Move(NamedTuple):
    """The derivatives of a step along a direction: of what it reads, of o, and of sigma'(z).

    `below` is None at the input, `bend` for activations that are linear between kinks.
    """

    below: Array | None
    o: Array
    bend: Array | None


def moves(trace: list[Step], direction: Parameters) -> list[Move]:
    """Return for each step how it moves along `direction`, until this thread's next such call."""
    found: list[Move] = []
    for step in trace:
        below, sigma, bend = found[-1].o if found else None, step.activation, None
        own, use = direction.W[step.layer].trained, f"moved {step.layer}"
        if below is not None:
            move = step.matrix.brief_product(below, use)
            if own.weights is not None:
                move += own.brief_product(step.below, "moves")
        elif own.weights is not None:
            move = own.brief_product(step.below, use)
        else:
            move = namespace(step.z).zeros_like(step.z)
        if step.b is not None:
            maps = step.W.by_map(move)
            maps += direction.b[step.layer][:, None]
        if sigma is not None:
            if not sigma.piecewise_linear:
                bend = sigma.second_derivative(step.z) * move
            move *= step.slopes
        found.append(Move(below, move, bend))
    return found


def add_hessian_product(
    trace: list[Step],
    moved: list[Move],
    direction: Parameters,
    delta: Array,
    change: Array,
    product: Parameters,
) -> None:
    """Add to `product` the derivative of the gradient along `direction` (Pearlmutter 1994).

    `delta` is the derivative of the losses in o^L, `change` its own derivative along the direction.
    """
    for step, move in zip(reversed(trace), reversed(moved), strict=True):
        W = step.matrix
        if step.activation is not None:
            slopes = step.slopes
            change = change * slopes
            if move.bend is not None:
                change += delta * move.bend
            delta = delta * slopes
        if W.weights is not None:
            weights = product.W[step.layer].weights
            weights += W.gradient(change, step.below)
            if move.below is not None:
                weights += W.gradient(delta, move.below)
        if step.b is not None:
            biases = product.b[step.layer]
            biases += W.by_map(change).sum(axis=1)
        if step.layer > 1:
            change = W.T @ change
            if W.weights is not None:
                change += direction.W[step.layer].trained.T.brief_product(delta, "moves")
            delta = W.T @ delta


def affine_map(trace: list[Step], rows: Array, above: int = 0) -> Array:
    """Return (rows F, rows c) for o^L = F o^above + c on the pattern of a single sample."""
    offset = namespace(rows).zeros(len(rows), dtype=rows.dtype)
    for step in reversed(trace[above:]):
        if step.activation is not None:
            rows = rows * step.slopes[:, 0]
        if step.b is not None:
            maps = step.W.by_map(rows.T).reshape(len(step.b), -1, len(rows))
            offset = offset + step.b @ maps.sum(axis=1)
        rows = (step.matrix.T @ rows.T).T
    return namespace(rows).concatenate([rows, offset[:, None]], axis=1)


# Patterns


def patterns(trace: list[Step]) -> dict[int, Array]:
    """Return the pattern of each layer that has one, (n_l, N) without what a block keeps.

    True where z > 0, at a kink; in max pooling the number of the selected entry of each window.
    """
    found = {
        step.layer: step.own_z > 0 if step.kinked else step.W.choice(step.below) for step in trace
    }
    return {layer: pattern for layer, pattern in found.items() if pattern is not None}


def margins(trace: list[Step]) -> dict[int, Array]:
    """Return how far each unit is from where its pattern changes, (n_l, N).

    After an activation with a kink that is |z|, after max pooling half the gap between the selected
    entry and the next one. It is infinite where nothing can move: where all that is read is
    inactive under ReLU, and where z is 0 for all parameters.
    """
    found, moves = {}, None  # `moves` is 0 where o is the same for all parameters nearby
    for step, above in zip(trace, [*trace[1:], None], strict=True):
        if step.W.selects and moves is not None:
            found[step.layer] = step.W.gaps(step.below, still=moves == 0) / 2
        xp, biased = namespace(step.z), step.b is not None  # then every unit moves
        if step.W.weights is None:
            moves = None if moves is None else step.W @ moves
        else:
            below, moves = moves, xp.ones_like(step.z)
            if not biased:
                reach = abs(step.below) if below is None else abs(step.below) + below
                moves = xp.where(unread(step.W, step.b, reach), 0.0, moves)
        if step.kinked and moves is not None:
            found[step.layer] = (
                step.heights if biased else xp.where(moves == 0, np.inf, step.heights)
            )
            if above is not None and (above.W.weights is None or above.b is None):  # that read it
                moves = xp.where(step.z < 0, step.slopes * moves, moves)
    return found


# Samples in chunks


def over(theta: Parameters, x: object, function: Callable, held: int = 1) -> Iterator:
    """Yield function(rows, columns) for all `chunks` in their order, see `in_order`.

    `held` is how many times as much memory as a pass the function needs for a sample.
    """
    x = as_inputs(theta.net, x)
    return in_order(
        lambda rows: function(rows, _columns(theta, x, rows)),
        _slices(theta, x, held),
        namespace(theta.vector),
    )


def chunks(theta: Parameters, x: object) -> Iterator[tuple[slice, Array]]:
    """Yield slices of samples and their columns (n_0, chunk), on the device of `theta`."""
    x = as_inputs(theta.net, x)
    return ((rows, _columns(theta, x, rows)) for rows in _slices(theta, x))


def as_inputs(net: Architecture, x: object) -> np.ndarray:
    """Return samples x (N, *input_shape), or vectors (N, d) for (1, d), plain and on the host.

    Raises ValueError for another shape and for what `plain_array` refuses.
    """
    given = plain_on_host("inputs", x)
    x = vectors_as_samples(given)
    if x.shape[1:] != net.input_shape or not len(x):
        expected = ", ".join(map(str, net.input_shape))
        hint = _hint(given.shape, net.input_shape)
        raise ValueError(f"inputs: expected (N, {expected}), got {given.shape}{hint}")
    return x


def _hint(given: tuple[int, ...], expected: tuple[int, ...]) -> str:
    """Return how inputs of this shape would come in, where that is plain."""
    channels, *positions = expected
    if given == expected:
        return "; one input is x[None]"
    if given[1:] == (*positions, channels):
        return "; with channels last they are np.moveaxis(x, -1, 1)"
    if channels == 1 and given[1:] == (*positions,):
        return "; without channels they are x[:, None]"
    vectors = len(given) == 2 or (len(given) == 3 and given[1] == 1)
    flat = channels == len(positions) == 1
    if (vectors or flat) and np.prod(given[1:]) == np.prod(expected):
        return f"; in that shape they are x.reshape(-1, {', '.join(map(str, expected))})"
    if vectors:
        return f"; vectors (N, {given[-1]}) are inputs (1, {given[-1]})"
    return ""


def _slices(theta: Parameters, x: np.ndarray, held: int = 1) -> list[slice]:
    net = theta.net
    sample = 2 * held * sum(map(net.rows, range(net.depth + 1))) * theta.vector.dtype.itemsize
    size = min(net.memory_budget // sample, max(CACHED // sample, FEWEST))
    shared = max(-(-len(x) // AT_LEAST), SHARED // sample)
    return even_slices(len(x), max(1, min(size, shared)))


def even_slices(count: int, size: int) -> list[slice]:
    """Return slices of up to `size` samples: a power of two gives each core as much to do."""
    needed = -(-count // size)
    parts = min(count, 1 << (needed - 1).bit_length())
    ends = [count * n // parts for n in range(parts + 1)]
    return list(map(slice, ends, ends[1:]))


def _columns(theta: Parameters, x: np.ndarray, rows: slice) -> Array:
    xp = namespace(theta.vector)
    chunk = xp.asarray(x[rows], dtype=theta.vector.dtype)
    return xp.ascontiguousarray(chunk.reshape(rows.stop - rows.start, -1).T)
