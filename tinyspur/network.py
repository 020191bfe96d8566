"""Networks o^l = sigma(W^l o^{l-1} + b^l): layers, risk, backprop, patterns.

Samples are rows outside, (N, C, H, W) and (N, d_y), and columns inside, (n_l, N). A `Network`
describes; the numbers live in `Parameters`. Layers count from 1 to L as in the papers.
"""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Callable, Iterator

import numpy as np

from .activations import KNOWN, Activation, ReLU, activation_named, check_piecewise_linear
from .backend import Array, all_to_numpy, in_order, namespace, to_numpy
from .datasets.samples import TrainingSet
from .layers import Layer, MaxPool, Pooling, is_positive, layer_of, shapes_of, slots_of, spec_of
from .losses import Loss
from .parameters import Parameters

MEMORY_BUDGET = 64 * 2**20  # bytes of activations that each thread of a pass holds at once
CACHED = 20 * 2**20  # of these, what a chunk has: more would leave the caches
FEWEST = 8  # samples, though, that a chunk has at least where the budget allows


class Network:
    """A network's description: the input shape, the layers, the activation.

    `input_shape` is (C, H, W) or, for 1-D inputs, (C, W). The activation follows every
    convolution and dense layer but the last layer, as in o^L = z^L. `memory_budget` bounds, in
    bytes, the activations that each thread of a pass holds at once: passes stream over the samples.

    >>> from tinyspur.layers import AveragePool, Conv, Dense
    >>> net = Network((1, 4, 4), [Conv(2), AveragePool(2), Dense(3)])
    >>> net.shapes
    ((1, 4, 4), (2, 4, 4), (2, 2, 2), (3,))
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        layers: list[Layer] | tuple[Layer, ...],
        activation: Activation | None = None,
        memory_budget: int = MEMORY_BUDGET,
    ):
        self.input_shape = tuple(input_shape)
        self.layers = tuple(layers)
        self.activation = ReLU() if activation is None else activation
        self.memory_budget = memory_budget
        if len(self.input_shape) not in (2, 3) or not all(map(is_positive, self.input_shape)):
            raise ValueError(f"network: expected an input (C, H, W) or (C, W), got {input_shape}")
        if not self.layers:
            raise ValueError("network: expected at least one layer")
        if not isinstance(self.activation, Activation):
            raise ValueError(f"network: expected an activation as ReLU(), got {activation!r}")
        self.shapes = shapes_of(self.input_shape, self.layers)
        self._slots, self.size = slots_of(self.layers, self.shapes)

    def __repr__(self) -> str:
        arrows = " -> ".join("x".join(map(str, shape)) for shape in self.shapes)
        return f"Network({arrows}, {self.size} parameters)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Network) and self._parts == other._parts

    def __hash__(self) -> int:
        return hash(self._parts)

    @property
    def _parts(self) -> tuple:
        return self.input_shape, self.layers, self.activation

    @property
    def depth(self) -> int:
        """Return L, the number of layers."""
        return len(self.layers)

    @property
    def spec(self) -> dict:
        """Return the JSON description that is written beside parameters."""
        return {
            "input": list(self.input_shape),
            "activation": self.activation.spec,
            "layers": list(map(spec_of, self.layers)),
        }

    @classmethod
    def from_spec(cls, spec: dict | str) -> Network:
        """Return the network that `spec` (a dictionary or its JSON) describes, or ValueError."""
        expected = "network spec: expected a JSON object with input, activation, layers"
        try:
            parts = json.loads(spec) if isinstance(spec, str) else spec
        except json.JSONDecodeError:
            parts = spec
        if not isinstance(parts, dict):
            raise ValueError(f"{expected}, got {reprlib.repr(parts)}")
        if parts.keys() != {"input", "activation", "layers"}:
            raise ValueError(f"{expected}, got one with {', '.join(map(str, parts)) or 'nothing'}")
        for name in ("input", "layers"):
            if not isinstance(parts[name], list | tuple):
                got = reprlib.repr(parts[name])
                raise ValueError(f"network spec: expected {name} as a list, got {got}")
        layers = list(map(layer_of, parts["layers"]))
        return cls(tuple(parts["input"]), layers, activation_named(parts["activation"]))

    def zeros(self, like: Array | None = None, dtype: type = np.float64) -> Parameters:
        """Return parameters that are all zero, in the namespace and type of `like` if given."""
        if like is None:
            return Parameters(self, np.zeros(self.size, dtype=dtype))
        return Parameters(self, namespace(like).zeros(self.size, dtype=like.dtype))

    def is_active(self, layer: int) -> bool:
        """Return whether the activation follows `layer`."""
        return layer < self.depth and not isinstance(self.layers[layer - 1], Pooling)

    @property
    def active_layers(self) -> tuple[int, ...]:
        """Return the layers that the activation follows."""
        return tuple(layer for layer in range(1, self.depth + 1) if self.is_active(layer))

    @property
    def max_layers(self) -> tuple[int, ...]:
        """Return the max poolings whose choice depends on the parameters: all but leading ones."""
        return tuple(
            layer
            for layer in range(self.leading_poolings + 1, self.depth + 1)
            if isinstance(self.layers[layer - 1], MaxPool)
        )

    @property
    def kinked_layers(self) -> tuple[int, ...]:
        """Return the layers that an activation with a kink follows."""
        return self.active_layers if self.activation.piecewise_linear else ()

    @property
    def pattern_layers(self) -> tuple[int, ...]:
        """Return the layers whose pattern depends on the parameters."""
        return tuple(sorted(self.kinked_layers + self.max_layers))

    @property
    def leading_poolings(self) -> int:
        """Return how many poolings come before the first layer with parameters."""
        kinds = [isinstance(layer, Pooling) for layer in self.layers]
        return kinds.index(False) if False in kinds else len(kinds)

    def positions(self, layer: int) -> int:
        """Return the number of positions of a map of `layer`; 0 is the input."""
        return math.prod(self.shapes[layer][1:])

    # Passes over the samples

    def forward(self, theta: Parameters, x: np.ndarray) -> Array:
        """Return the outputs (N, d_y) for the inputs x (N, *input_shape)."""
        outputs = self.over(theta, x, lambda _, o: self.layer_output(theta, o, self.depth))
        return namespace(theta.vector).concatenate(list(outputs), axis=1).T

    def risk(self, theta: Parameters, data: TrainingSet, loss: Loss) -> float:
        """Return R(theta) = (1/N) sum_i l(o_i, y_i) ([CNN] (5))."""
        return float(np.mean(to_numpy(self.sample_losses(theta, data, loss))))

    def sample_losses(self, theta: Parameters, data: TrainingSet, loss: Loss) -> Array:
        """Return l(o_i, y_i), shape (N,)."""
        y = self.targets(theta, data, loss)
        losses = self.over(
            theta,
            data.x,
            lambda rows, o: loss.value(self.layer_output(theta, o, self.depth), y[:, rows]),
        )
        return namespace(theta.vector).concatenate(list(losses))

    def gradient(self, theta: Parameters, data: TrainingSet, loss: Loss) -> Parameters:
        """Return the gradient of the risk, laid out as the parameters are."""
        return self.risk_and_gradient(theta, data, loss)[1]

    def risk_and_gradient(
        self, theta: Parameters, data: TrainingSet, loss: Loss
    ) -> tuple[float, Parameters]:
        """Return R(theta) and its gradient by backpropagation; a kink counts as inactive."""
        y = self.targets(theta, data, loss)

        def chunk(rows: slice, columns: Array) -> tuple[Array, Array]:
            trace = list(self.layerwise(theta, columns, type(self.activation) is ReLU))
            part = self.zeros(like=theta.vector)
            o = trace[-1][1]
            self._backward(theta, columns, trace, loss.gradient(o, y[:, rows]), part)
            return loss.value(o, y[:, rows]), part.vector

        gradient, losses = self.zeros(like=theta.vector), []
        for values, part in self.over(theta, data.x, chunk):
            losses.append(to_numpy(values))
            gradient.vector += part
        gradient.vector /= len(data)
        return float(np.mean(np.concatenate(losses))), gradient

    def hessian_product(
        self, theta: Parameters, direction: Parameters, data: TrainingSet, loss: Loss
    ) -> Parameters:
        """Return H v, the Hessian of the risk at theta times `direction`, laid out as both are.

        Exact (Pearlmutter 1994): forward and backward pass are differentiated along v, term by
        term; a kink counts as inactive. A chunk holds up to twice the memory budget. Raises
        ValueError for a direction of another network.
        """
        if direction.net != self:
            raise ValueError(
                f"Hessian product: expected a direction of {self}, got one of {direction.net}"
            )
        y = self.targets(theta, data, loss)

        def chunk(rows: slice, columns: Array) -> Array:
            product = self.zeros(like=theta.vector)
            trace = list(self.layerwise(theta, columns))
            moves, bends = self._moves(theta, direction, columns, trace)
            delta = loss.gradient(trace[-1][1], y[:, rows])
            change = loss.curvature(trace[-1][1], y[:, rows], moves[-1])  # of delta, along v
            for layer in range(self.depth, 0, -1):
                below = trace[layer - 2][1] if layer > 1 else columns
                W = theta.W[layer].at(below)
                if self.is_active(layer):
                    slopes = self.activation.derivative(trace[layer - 1][0])
                    change = change * slopes
                    if layer in bends:
                        change += delta * bends[layer]
                    delta = delta * slopes
                if layer in theta.b:
                    weights, biases = product.W[layer].weights, product.b[layer]
                    weights += W.gradient(change, below)
                    if layer > 1:
                        weights += W.gradient(delta, moves[layer - 2])
                    biases += change.reshape(len(biases), -1).sum(axis=1)
                if layer > 1:
                    change = W.T @ change
                    if layer in theta.b:
                        change += direction.W[layer].T @ delta
                    delta = W.T @ delta
            return product.vector

        total = self.zeros(like=theta.vector)
        for part in self.over(theta, data.x, chunk):
            total.vector += part
        total.vector /= len(data)
        return total

    def patterns(self, theta: Parameters, x: np.ndarray) -> dict[int, np.ndarray]:
        """Return I^{l,i}: for each active layer l a boolean (N, n_l), true where z > 0.

        For each max pooling integers (N, n_l): which entry of its window, counted row by row, is
        the largest. A smooth activation has no pattern.
        """

        def chunk(_: slice, columns: Array) -> dict[int, Array]:
            return self.pattern(theta, columns, list(self.layerwise(theta, columns)))

        found: dict[int, list] = {}
        for patterns in self.over(theta, x, chunk):
            for layer, pattern in zip(patterns, all_to_numpy(patterns.values()), strict=True):
                found.setdefault(layer, []).append(pattern.T)
        return {layer: np.concatenate(parts) for layer, parts in found.items()}

    def pattern(self, theta: Parameters, columns: Array, trace: list) -> dict[int, Array]:
        """Return the same of one chunk, (n_l, N), from its (z, o) of each layer."""
        found, kinked = {}, self.kinked_layers
        for layer, (z, _) in enumerate(trace, start=1):
            if layer in kinked:
                found[layer] = z > 0
            elif isinstance(self.layers[layer - 1], MaxPool):
                found[layer] = theta.W[layer].choice(trace[layer - 2][1] if layer > 1 else columns)
        return found

    def margins(self, theta: Parameters, trace: list) -> dict[int, Array]:
        """Return how far each unit of a chunk is from where its pattern changes, (n_l, N).

        That is |z| at a kink, and in max pooling half the gap between the selected entry and the
        next. Infinite where these can't move, as both are inactive under ReLU.
        """
        found, moves = {}, None  # `moves` is 0 where o is the same for all parameters nearby
        kinked = self.kinked_layers
        for layer, (z, _) in enumerate(trace, start=1):
            if layer in kinked:
                found[layer] = abs(z)
                moves = namespace(z).where(z < 0, self.activation.slope, 1.0)
            elif self.is_active(layer):
                moves = namespace(z).ones_like(z)
            elif layer in self.max_layers:
                below = trace[layer - 2][1]
                found[layer] = theta.W[layer].gaps(below, still=moves == 0) / 2
            if isinstance(self.layers[layer - 1], Pooling) and moves is not None:
                moves = theta.W[layer] @ moves
        return found

    def affine_map(self, theta: Parameters, x: np.ndarray, above: int = 0) -> Array:
        """Return F_s, shape (d_y, d_x + 1), with o = F_s (x, 1) near the one input `x` ([CNN] (4)).

        `x` has the input's shape. The map is that of the sample's activation pattern s. Of the
        layers `above` another one than the input only it is the map of the features o^above.
        Raises ValueError for a smooth activation.
        """
        check_piecewise_linear(self.activation, "affine map")
        xp = namespace(theta.vector)
        _, columns = next(self.chunks(theta, x[None]))
        trace = list(self.layerwise(theta, columns))
        rows = xp.eye(math.prod(self.shapes[-1]), dtype=theta.vector.dtype)
        offset = xp.zeros(len(rows), dtype=theta.vector.dtype)
        for layer in range(self.depth, above, -1):
            if self.is_active(layer):
                rows = rows * self.activation.derivative(trace[layer - 1][0])[:, 0]
            if layer in theta.b:
                offset = (
                    offset
                    + rows.reshape(len(rows), len(theta.b[layer]), -1).sum(axis=2) @ theta.b[layer]
                )
            below = trace[layer - 2][1] if layer > 1 else columns
            rows = (theta.W[layer].at(below).T @ rows.T).T
        return xp.concatenate([rows, offset[:, None]], axis=1)

    # The pieces of a pass

    def over(self, theta: Parameters, x: np.ndarray, function: Callable) -> Iterator:
        """Yield function(rows, columns) for all `chunks` in their order, see `in_order`."""
        return in_order(
            lambda rows: function(rows, self._columns(theta, x, rows)),
            self._slices(theta, x),
            namespace(theta.vector),
        )

    def chunks(self, theta: Parameters, x: np.ndarray) -> Iterator[tuple[slice, Array]]:
        """Yield slices of samples and their columns (n_0, chunk), on the device of `theta`."""
        return ((rows, self._columns(theta, x, rows)) for rows in self._slices(theta, x))

    def _slices(self, theta: Parameters, x: np.ndarray) -> list[slice]:
        if x.shape[1:] != self.input_shape or not len(x):
            raise ValueError(
                f"inputs: expected (N, {', '.join(map(str, self.input_shape))}), got {x.shape}"
            )
        neurons = 2 * sum(math.prod(shape) for shape in self.shapes)
        sample = neurons * theta.vector.dtype.itemsize
        size = max(1, min(self.memory_budget // sample, max(CACHED // sample, FEWEST)))
        needed = -(-len(x) // size)  # a power of two gives each core as much to do
        parts = min(len(x), 1 << (needed - 1).bit_length())
        ends = [len(x) * n // parts for n in range(parts + 1)]
        return list(map(slice, ends, ends[1:]))

    def _columns(self, theta: Parameters, x: np.ndarray, rows: slice) -> Array:
        xp = namespace(theta.vector)
        chunk = xp.asarray(x[rows], dtype=theta.vector.dtype)
        return xp.ascontiguousarray(chunk.reshape(rows.stop - rows.start, -1).T)

    def layerwise(
        self, theta: Parameters, columns: Array, overwrite: bool = False
    ) -> Iterator[tuple[Array, Array]]:
        """Yield (z^l, o^l) for l = 1..L; `columns` (n_0, N) are the inputs.

        Without an activation the two are one array. With `overwrite` they are that in every layer:
        o^l, from which the slopes of ReLU and leaky ReLU follow as from z^l, may take its memory.
        """
        o = columns
        for layer in range(1, self.depth + 1):
            z, o = self.neurons(theta, layer, theta.W[layer] @ o, overwrite)
            yield z, o

    def neurons(
        self, theta: Parameters, layer: int, products: Array, overwrite: bool
    ) -> tuple[Array, Array]:
        """Return (z^l, o^l) of one layer, as `layerwise` does, in the memory of W^l o^{l-1}."""
        z = products
        if layer in theta.b:
            maps = z.reshape(len(theta.b[layer]), -1)
            maps += theta.b[layer][:, None]
        o = z
        if self.is_active(layer):
            o = self.activation.in_place(z) if overwrite else self.activation(z)
        return o if overwrite else z, o

    def layer_output(self, theta: Parameters, columns: Array, layer: int, above: int = 0) -> Array:
        """Return o^layer for the columns (n_above, N) of o^above; o^0 is the input."""
        o, own = columns, type(self.activation) in KNOWN.values()  # a user's may keep what it gets
        for n in range(above + 1, layer + 1):
            W, brief = theta.W[n], own and n < layer
            products = W.brief_product(o, f"neurons {n % 2}") if brief else W @ o
            _, o = self.neurons(theta, n, products, overwrite=True)
        return o

    def filter_responses(
        self, theta: Parameters, layer: int, filters: Array, x: np.ndarray
    ) -> np.ndarray:
        """Return what `filters` (T, ...) make of o^{layer-1}, shape (T * P, N), on the host."""
        W = theta.W[layer].with_weights(filters)
        parts = self.over(theta, x, lambda _, o: W @ self.layer_output(theta, o, layer - 1))
        return np.concatenate([to_numpy(part) for part in parts], axis=1)

    def _backward(self, theta, columns, trace, delta, gradient) -> None:
        """Add to `gradient` what the derivative `delta` of the losses in o^L gives."""
        for layer in range(self.depth, 0, -1):
            if self.is_active(layer):
                delta = delta * self.activation.derivative(trace[layer - 1][0])
            below = trace[layer - 2][1] if layer > 1 else columns
            W = theta.W[layer].at(below)
            if layer not in theta.b:
                delta = W.T @ delta if layer > 1 else None
                continue
            biases = gradient.b[layer]
            biases += delta.reshape(len(biases), -1).sum(axis=1)
            weights = gradient.W[layer].weights
            if layer > 1:
                change, delta = W.pullback(delta, below)
            else:
                change = W.gradient(delta, below)
            weights += change

    def _moves(self, theta, direction, columns, trace) -> tuple[list[Array], dict[int, Array]]:
        """Return the derivatives of o^1, ..., o^L along `direction`, and those of sigma'(z^l).

        The latter for smooth activations alone: they are 0 between kinks.
        """
        moves: list[Array] = []
        bends: dict[int, Array] = {}
        sigma = self.activation
        for layer, (z, _) in enumerate(trace, start=1):
            below = trace[layer - 2][1] if layer > 1 else columns
            move = theta.W[layer].at(below) @ moves[-1] if moves else namespace(z).zeros_like(z)
            if layer in theta.b:
                move += direction.W[layer] @ below
                maps = move.reshape(len(theta.b[layer]), -1)
                maps += direction.b[layer][:, None]
            if self.is_active(layer) and not sigma.piecewise_linear:
                bends[layer] = sigma.second_derivative(z) * move
            moves.append(move * sigma.derivative(z) if self.is_active(layer) else move)
        return moves, bends

    def targets(self, theta: Parameters, data: TrainingSet, loss: Loss) -> Array:
        """Return the targets as columns (d_y, N), on the device of `theta`, checked."""
        width = math.prod(self.shapes[-1])
        if not isinstance(data, TrainingSet):
            raise ValueError(f"data: expected a TrainingSet, got a {type(data).__name__}")
        if isinstance(loss, type) or not hasattr(loss, "check_targets"):
            raise ValueError(f"loss: expected one as SquaredLoss(), got {loss!r}")
        if data.y.shape[1] != width:
            raise ValueError(f"targets: expected (N, {width}), got {data.y.shape}")
        y = namespace(theta.vector).asarray(data.y, dtype=theta.vector.dtype).T
        loss.check_targets(y)
        return y
