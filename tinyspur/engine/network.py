"""Networks: outputs, risk, gradient, Hessian products and patterns at a point.

Samples are rows outside, (N, C, H, W) and (N, d_y), and columns inside, (n_l, N). A `Network`
describes; the numbers live in `Parameters`. Layers count from 1 to L as in the papers. What a pass
over the layers computes is in `passes`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ..datasets.samples import TrainingSet, check_data
from . import passes
from .activations import ReLU, check_piecewise_linear
from .architecture import Architecture
from .backend import Array, all_to_numpy, namespace, to_numpy
from .losses import Loss, check_loss, gradient_at, values_at
from .parameters import Parameters, check_points
from .plain import float_type, is_array, plain_like, plain_on_host


@dataclass(frozen=True, repr=False)
class Network(Architecture):
    """A network's description: the input shape, the layers, the activation. It can't be changed.

    `input_shape` is (C, H, W) or, for 1-D inputs, (C, W). The activation, ReLU by default, follows
    every convolution and dense layer but the last layer, as in o^L = z^L. `memory_budget` bounds,
    in bytes, the activations that each thread of a pass holds at once: passes stream over the
    samples. Every function that takes a point raises ValueError for one of another network.

    >>> from tinyspur.layers import AveragePool, Conv, Dense
    >>> net = Network((1, 4, 4), [Conv(2), AveragePool(2), Dense(3)])
    >>> net.shapes
    ((1, 4, 4), (2, 4, 4), (2, 2, 2), (3,))
    """

    def zeros(self, like: Array | None = None, dtype: type = np.float64) -> Parameters:
        """Return parameters that are all zero, in the namespace and type of `like` if given.

        Without it they are NumPy's, of `dtype` float32 or float64; ValueError for another one.
        """
        if like is None:
            return Parameters(self, np.zeros(self.size, dtype=float_type("dtype", dtype)))
        if not is_array(like):
            raise ValueError(f"zeros: expected like to be an array, got a {type(like).__name__}")
        return Parameters(self, namespace(like).zeros(self.size, dtype=like.dtype))

    def forward(self, theta: Parameters, x: ArrayLike) -> Array:
        """Return the outputs (N, d_y) for the inputs x (N, *input_shape), or (N, d) for (1, d)."""
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
            lambda rows, o: values_at(loss, self.layer_output(theta, o, self.depth), y[:, rows]),
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
            trace = list(passes.steps(theta, columns, self._overwrites))
            o, part = trace[-1].o, self.zeros(like=theta.vector)
            passes.add_gradient(trace, gradient_at(loss, o, y[:, rows]), part)
            return values_at(loss, o, y[:, rows]), part.vector

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

        It is exact (Pearlmutter 1994): the forward and the backward pass are differentiated along
        v, term by term. A unit at the kink counts as inactive. A chunk takes up to twice the memory
        budget.
        """
        check_points(self, direction)
        y = self.targets(theta, data, loss)

        def chunk(rows: slice, columns: Array) -> Array:
            trace = list(passes.steps(theta, columns, self._overwrites))
            product = self.zeros(like=theta.vector)
            o, moved = trace[-1].o, passes.moves(trace, direction)
            delta = loss.gradient(o, y[:, rows])
            change = loss.curvature(o, y[:, rows], moved[-1].o)
            passes.add_hessian_product(trace, moved, direction, delta, change, product)
            return product.vector

        total = self.zeros(like=theta.vector)
        for part in self.over(theta, data.x, chunk):
            total.vector += part
        total.vector /= len(data)
        return total

    def patterns(self, theta: Parameters, x: ArrayLike) -> dict[int, np.ndarray]:
        """Return I^{l,i}: for each active layer l a boolean (N, n_l), true where z > 0.

        For each max pooling it has integers (N, n_l): the number of the largest entry of each
        window, counted row by row. A smooth activation has no pattern.
        """

        def chunk(_: slice, columns: Array) -> dict[int, Array]:
            return passes.patterns(list(passes.steps(theta, columns)))

        found: dict[int, list] = {}
        for patterns in self.over(theta, x, chunk):
            for layer, pattern in zip(patterns, all_to_numpy(patterns.values()), strict=True):
                found.setdefault(layer, []).append(pattern.T)
        return {layer: np.concatenate(parts) for layer, parts in found.items()}

    def affine_map(self, theta: Parameters, x: ArrayLike, above: int = 0) -> Array:
        """Return F_s, shape (d_y, d_x + 1), with o = F_s (x, 1) near the one input `x` ([CNN] (4)).

        `x` has the input's shape, and the map is that of its activation pattern s. With `above` it
        is the map from the features o^above of that input instead: o = F (o^above, 1). Raises
        ValueError for a smooth activation.
        """
        check_points(self, theta)
        check_piecewise_linear(self.activations, "affine map")
        _, columns = next(self.chunks(theta, plain_on_host("inputs", x)[None]))
        rows = namespace(columns).eye(math.prod(self.shapes[-1]), dtype=theta.vector.dtype)
        return passes.affine_map(list(passes.steps(theta, columns)), rows, above)

    # The pieces of a pass

    def over(self, theta: Parameters, x: ArrayLike, function: Callable, held: int = 1) -> Iterator:
        """Yield function(rows, columns) for all `chunks` in their order, on all cores.

        Chunks are smaller by the factor `held`, for functions that hold so many times as much
        memory as a pass.
        """
        check_points(self, theta)
        return passes.over(theta, x, function, held)

    def chunks(self, theta: Parameters, x: ArrayLike) -> Iterator[tuple[slice, Array]]:
        """Yield slices of samples and their columns (n_0, chunk), on the device of `theta`."""
        check_points(self, theta)
        return passes.chunks(theta, x)

    def layer_output(self, theta: Parameters, columns: Array, layer: int, above: int = 0) -> Array:
        """Return o^layer for the columns (n_above, N) of o^above; o^0 is the input."""
        check_points(self, theta)
        return passes.layer_output(theta, columns, layer, above)

    def filter_responses(
        self, theta: Parameters, layer: int, filters: Array, x: np.ndarray
    ) -> np.ndarray:
        """Return what `filters` (T, ...) make of o^{layer-1}, shape (T * P, N), on the host."""
        check_points(self, theta)
        own = theta.W[layer].weights
        filters = plain_like("filters", filters, theta.vector)
        if own is None or filters.shape[1:] != own.shape[1:]:
            expected = "a layer with filters" if own is None else f"(T, {str(own.shape[1:])[1:]}"
            raise ValueError(f"filters: expected {expected}, got {filters.shape}")
        W = theta.W[layer].trained.with_weights(filters)
        parts = self.over(
            theta, x, lambda _, o: (W @ self.layer_output(theta, o, layer - 1))[: W.rows]
        )
        return np.concatenate([to_numpy(part) for part in parts], axis=1)

    @property
    def _overwrites(self) -> bool:
        """Return whether all that derivatives need of z^l can be read off o^l, see `neurons`."""
        return all(type(sigma) is ReLU for sigma in self.activations)

    def targets(self, theta: Parameters, data: TrainingSet, loss: Loss) -> Array:
        """Return the targets as columns (d_y, N), on the device of `theta`, checked."""
        check_points(self, theta)
        check_problem(self, data, loss)
        return namespace(theta.vector).asarray(data.y, dtype=theta.vector.dtype).T


def check_at(theta: Parameters, data: TrainingSet, loss: Loss) -> None:
    """Raise ValueError for what is no point, and as `check_problem` does for its network."""
    check_points(None, theta)
    check_problem(theta.net, data, loss)


def check_network(net: object) -> None:
    """Raise ValueError for what is no network."""
    if not isinstance(net, Network):
        raise ValueError(f"network: expected a Network, got a {type(net).__name__}")


def check_problem(net: Network, data: TrainingSet, loss: Loss) -> None:
    """Raise ValueError for what is no network, training set or loss, and where they don't fit.

    The inputs must have the network's shape, the targets its width, and be the loss's.
    """
    check_network(net)
    check_data(data)
    check_loss(loss)
    passes.as_inputs(net, data.x)
    width = math.prod(net.shapes[-1])
    if data.y.shape[1] != width:
        labels = data.y.shape[1] == 1 and (data.y == np.floor(data.y)).all()
        hint = "; give labels as one_hot(labels)" if labels else ""
        raise ValueError(f"targets: expected (N, {width}), got {data.y.shape}{hint}")
    check_loss(loss, data.y.T)
