"""The numbers of a network: one vector, and its weights and biases layer by layer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from ..layers import WeightMatrix
from ..shown import point_html
from .activations import ReLU
from .architecture import Architecture
from .backend import Array, namespace, to_numpy
from .plain import float_type, is_array, number, overwrite, plain_array, whole

if TYPE_CHECKING:
    from .. import Network  # its methods take points

Part = TypeVar("Part")


class Parameters:
    """One point theta: a contiguous `vector` with views `W[l]` and `b[l]`, l = 1..L.

    `W[l]` is the weight matrix of layer l, pooling included; `W[l].weights` (PyTorch's shape) and
    `b[l]` (one number for each map or neuron) are views of the vector. All of them are one point,
    always: writing to a view changes the vector, and what is assigned to ``theta.vector``,
    ``theta.b[l]``, ``theta.W[l]`` or ``theta.W[l].weights`` is copied into it. To swap two of them,
    copy one first: ``first = theta.b[1].copy()``.

    A `vector` of float32 or float64, NumPy's or CuPy's, is taken as it is, not copied. Any other
    real numbers are copied, to float64 where they are neither float32 nor float64: integers, bool,
    float16, longdouble, lists, PyTorch's tensors. Raises ValueError for numbers of another shape
    and for those that `plain_array` refuses: complex ones, objects, masked arrays, strings.

    The points of a network are a vector space, with directions and gradients among them. Those of
    another network are a ValueError. Two points are equal if their network and all numbers are.

    >>> from tinyspur import Dense, Network
    >>> net = Network((1, 2), [Dense(1)])
    >>> a, b = Parameters(net, [1, 2, 3]), Parameters(net, [3, 2, 1])
    >>> [((1 - s) * a + s * b).vector.tolist() for s in (0, 0.5, 1)]
    [[1.0, 2.0, 3.0], [2.0, 2.0, 2.0], [3.0, 2.0, 1.0]]
    >>> (a - b).norm(), (a - b).norm(np.inf), a + b == b + a
    (2.82842..., 2.0, True)
    """

    __array_ufunc__ = None  # leaves `number * theta` to this class, also for numbers of NumPy
    __hash__ = None  # since what is equal can change

    net: Network
    vector: Array
    W: Matrices
    b: Biases

    def __init__(self, net: Architecture, vector: Array):
        if not isinstance(net, Architecture):
            raise ValueError(f"parameters: expected a Network, got a {type(net).__name__}")
        given, vector = vector, plain_array("parameters", vector)
        vector = vector if is_array(given) else vector.copy()
        if vector.shape != (net.size,):
            raise ValueError(f"parameters: expected a vector ({net.size},), got {vector.shape}")
        matrices: dict[int, WeightMatrix] = {}
        biases: dict[int, Array] = {}
        for layer in range(1, net.depth + 1):
            slot = net.slots.get(layer)
            if slot is None:
                matrices[layer] = net.without_weights[layer]
                continue
            matrices[layer] = net.matrix(layer, vector[slot.weights].reshape(slot.shape))
            if slot.biases:
                biases[layer] = vector[slot.weights.stop : slot.all.stop]
        parts = {"net": net, "vector": vector}
        parts |= {"W": Matrices("W", net, matrices), "b": Biases("b", net, biases)}
        vars(self).update(parts)

    def __setattr__(self, name: str, value: object) -> None:
        """Copy into the vector what is assigned to it; refuse to replace anything else."""
        if name != "vector":
            raise AttributeError(
                f"parameters: expected theta.{name} to stay as it is; write theta.vector[...] = v, "
                "theta.W[l].weights[...] = w or theta.b[l][...] = c, or make Parameters(net, v)"
            )
        overwrite("theta.vector", self.vector, value)

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"parameters: expected theta.{name} to stay")

    def __repr__(self) -> str:
        return f"Parameters({self.net}, {self.vector.dtype})"

    def _repr_html_(self) -> str:
        return point_html(self)

    def __reduce__(self) -> tuple:
        return Parameters, (self.net, self.vector)  # so that a pickled point has its views again

    def copy(self) -> Parameters:
        """Return an independent copy."""
        return Parameters(self.net, self.vector.copy())

    def to(self, xp: ModuleType, dtype: type | str | None = None) -> Parameters:
        """Return a copy in the array namespace `xp`, of `dtype` float32 or float64 if given.

        Raises ValueError for another `xp` than NumPy or CuPy, and another `dtype`.
        """
        if not isinstance(xp, ModuleType) or not hasattr(xp, "ndarray"):
            raise ValueError(f"theta.to: expected the module numpy or cupy first, got {xp!r}")
        dtype = self.vector.dtype if dtype is None else float_type("theta.to", dtype)
        return Parameters(self.net, xp.array(to_numpy(self.vector), dtype=dtype))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Parameters):
            return NotImplemented
        return self.net == other.net and np.array_equal(*map(to_numpy, (self.vector, other.vector)))

    def __add__(self, other: Parameters) -> Parameters:
        self._check(other)
        return Parameters(self.net, self.vector + other.vector)

    __radd__ = __add__

    def __sub__(self, other: Parameters) -> Parameters:
        self._check(other)
        return Parameters(self.net, self.vector - other.vector)

    def __mul__(self, s: float) -> Parameters:
        return Parameters(self.net, self.vector * number("s * theta", s))

    __rmul__ = __mul__

    def __truediv__(self, s: float) -> Parameters:
        return Parameters(self.net, self.vector / number("theta / s", s))

    def __neg__(self) -> Parameters:
        return Parameters(self.net, -self.vector)

    def norm(self, order: float = 2) -> float:
        """Return the Euclidean length of the vector, or for ``np.inf`` its largest absolute value.

        Radii and distances of certificates are in the latter, the max norm. Raises ValueError for
        another order.
        """
        if order not in (2, np.inf):
            raise ValueError(f"theta.norm: expected the order 2 or inf, got {order!r}")
        largest = float(abs(self.vector).max())
        if order == np.inf or not 0 < largest < np.inf:
            return largest
        return largest * math.sqrt(((self.vector.astype(np.float64) / largest) ** 2).sum())

    def _check(self, other: Parameters) -> None:
        check_points(self.net, other)
        mine, its = (namespace(point.vector).__name__ for point in (self, other))
        if mine != its:
            raise ValueError(f"points: expected both in {mine}, got one in {its}; see theta.to")

    def __abs__(self) -> Parameters:
        """Return |theta|, entry by entry."""
        return Parameters(self.net, abs(self.vector))

    def reader(self, layer: int) -> int:
        """Return the next layer with weights, if what it reads scales with the maps of `layer`.

        Raises ValueError where no layer with weights follows, where a residual block reads the
        maps twice or adds others to them, and for another activation between than ReLU, leaky or
        not.
        """
        net = self.net
        above = next((n for n in net.slots if n > layer), None)
        if above is None:
            raise ValueError(f"layer {layer}: expected a layer with weights above it")
        between = range(layer + 1, above + 1)
        if not all(self.W[n].reads_alone for n in between):
            raise ValueError(
                f"layer {layer}: expected one reader, got a residual block that keeps or adds to it"
            )
        for n in between[:-1]:
            if not isinstance(sigma := net.activation_of(n), ReLU | None):
                raise ValueError(
                    f"layer {layer}: expected ReLU or no activation below layer {above}, which "
                    f"reads it, got {sigma} after layer {n}"
                )
        return above

    def arrays(self) -> dict[str, np.ndarray]:
        """Return {"W1": ..., "b1": ...} on the host, in PyTorch's shapes; no b without biases."""
        named = {}
        for layer in self.net.slots:
            named[f"W{layer}"] = to_numpy(self.W[layer].weights)
            if layer in self.b:
                named[f"b{layer}"] = to_numpy(self.b[layer])
        return named


class ByLayer(Mapping[int, Part]):
    """What a point has at each layer, by its number. What is assigned is copied into the point."""

    def __init__(self, name: str, net: Architecture, parts: dict[int, Part]):
        self._name, self._net, self._parts = name, net, parts

    def __getitem__(self, layer: int) -> Part:
        number, depth = layer if type(layer) is int else whole(layer), self._net.depth
        if number in self._parts:
            return self._parts[number]
        if number is not None and 1 <= number <= depth:
            raise KeyError(f"layer {number}, {self._net.chain[number - 1]}, has no biases")
        raise KeyError(f"expected a layer in 1..{depth}, got {layer!r}")

    def __iter__(self) -> Iterator[int]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def __repr__(self) -> str:
        return f"{{{', '.join(f'{layer}: {part!r}' for layer, part in self.items())}}}"


class Biases(ByLayer[Array]):
    """The biases of a point by layer, one number for each map or neuron."""

    def __setitem__(self, layer: int, values: Array) -> None:
        overwrite(f"theta.{self._name}[{layer}]", self[layer], values)


class Matrices(ByLayer[WeightMatrix]):
    """The weight matrices of a point by layer; assigned are weights, or a matrix that has them."""

    def __setitem__(self, layer: int, values: Array | WeightMatrix) -> None:
        if self[layer].weights is None:
            raise ValueError(
                f"theta.{self._name}[{layer}]: expected no weights for a layer that has none, "
                f"{self._net.chain[whole(layer) - 1]}"
            )
        weights = values.weights if isinstance(values, WeightMatrix) else values
        if isinstance(values, WeightMatrix) and not values.is_like(self[layer]):
            raise ValueError(
                f"theta.{self._name}[{layer}]: expected a matrix like {self[layer]}, got {values}"
            )
        overwrite(f"theta.{self._name}[{layer}].weights", self[layer].weights, weights)


def check_points(net: Architecture | None, *points: Parameters) -> None:
    """Raise ValueError for what is no point or direction, or one of another network.

    Of any network, but all of the same one, where `net` is None.
    """
    for point in points:
        if not isinstance(point, Parameters):
            raise ValueError(
                f"expected points and directions as Parameters, got a {type(point).__name__}"
            )
        net = point.net if net is None else net
        if point.net is not net and point.net != net:
            other = str(point.net)
            same = " of other layers or another activation" if other == str(net) else ""
            raise ValueError(f"expected points and directions of {net}, got {other}{same}")
