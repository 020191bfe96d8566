"""Residual connections, as matrices that carry along what a block adds to its output.

The state of a network inside a block is (o, kept), what the block has computed so far and what is
kept for the sum. Its first layer is the matrix [W; I], the ones in between are [W 0; 0 I], a layer
of a shortcut that changes what is kept is [0 W; I 0], and the sum itself is [I I]. So every layer
is z = W o + b as elsewhere; biases and activations are those of W's own rows, which come first.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse

from ..engine.activations import Identity
from ..engine.backend import Array, namespace
from .layer import Layer, Shape
from .matrix import TransposedMatrix, WeightMatrix

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, repr=False)
class Residual(Layer):
    """A block of `layers` whose output is added to its input, or to what `shortcut` makes of it.

    o = sigma(layers(x) + shortcut(x)) (He et al. 2016). The activation follows the sum; after the
    last layer of the block and those of the shortcut there is none, unless they name one. Layers
    are numbered as they come: those of the block, of the shortcut, then the sum.
    """

    layers: Sequence[Layer]
    shortcut: Sequence[Layer] = ()

    type = "residual"
    trainable = False
    always = ("layers",)

    def __post_init__(self):
        super().__post_init__()
        for name in ("layers", "shortcut"):
            given = getattr(self, name)
            listed = tuple(given) if isinstance(given, Iterable) else None
            if listed is None or not all(isinstance(layer, Layer) for layer in listed):
                raise ValueError(f"residual block: expected {name} as a list, got {given!r}")
            object.__setattr__(self, name, listed)
        if not self.layers:
            raise ValueError("residual block: expected at least one layer")

    def check(self) -> None:
        """Do nothing: the layers are checked one by one."""

    def links(self) -> list[Link]:
        """Return the layers in the order in which they are computed, and the sum."""
        *inner, last = self.layers
        silent = [*inner, quiet(last)], map(quiet, self.shortcut)
        block, shortcut = ([_linked(part) for part in chain_of(layers)] for layers in silent)
        block[0] = replace(block[0], forks=block[0].forks + 1)
        if shortcut:
            shortcut[0] = replace(shortcut[0], swaps=True)
        return [*block, *shortcut, Link(Same(activation=self.activation), joins=True)]

    def output_shape(self, below: Shape) -> Shape:
        state: tuple[Shape, ...] = (below,)
        for link in self.links():
            state = link.state_above(state)
        return state[0]

    def matrix(self, below: Shape, weights: None = None) -> WeightMatrix:
        raise TypeError("a residual block is several matrices, one for each of its layers")

    def to_torch(self, below: Shape) -> nn.Module:
        raise TypeError("a residual block is several modules")


@dataclass(frozen=True, repr=False)
class Same(Layer):
    """A layer that hands on what it reads, for an activation or a sum of its own."""

    type = "same"
    trainable = False
    spatial = False

    def check(self) -> None:
        """Do nothing: it has no options."""

    def output_shape(self, below: Shape) -> Shape:
        return below

    def matrix(self, below: Shape, weights: None = None) -> IdentityMatrix:
        return IdentityMatrix(below)

    def to_torch(self, below: Shape) -> nn.Module:
        from torch import nn

        return nn.Identity()


@dataclass(frozen=True)
class Link:
    """A layer of a block: how it is arranged among what is kept, the latest first.

    First it `swaps` what was computed and the latest that is kept, then it keeps `forks` copies of
    what it reads; where it `joins` it adds the latest that is kept to its output.
    """

    layer: Layer
    swaps: bool = False
    forks: int = 0
    joins: bool = False

    type = property(lambda self: "sum" if self.joins else self.layer.type)
    trainable = property(lambda self: self.layer.trainable)
    selects = property(lambda self: self.layer.selects)
    spatial = property(lambda self: self.layer.spatial)
    activation = property(lambda self: self.layer.activation)
    activated = property(lambda self: self.layer.activated)
    bias = property(lambda self: self.layer.bias)
    precedes_activation = property(lambda self: self.layer.precedes_activation)
    keeps_constants = property(lambda self: self.layer.keeps_constants)

    def arranged(self, state: tuple) -> tuple:
        """Return what the layer reads, and then what is kept, of the state below."""
        if self.swaps:
            state = (state[1], state[0], *state[2:])
        return state[:1] * self.forks + state

    def state_above(self, state: tuple[Shape, ...]) -> tuple[Shape, ...]:
        """Return the shapes that the layer makes of those below it; ValueError if none fit."""
        read, *kept = self.arranged(state)
        found = self.layer.output_shape(read)
        if self.joins:
            if found != kept[0]:
                raise ValueError(f"expected a sum of equal shapes, got {found} and {kept[0]}")
            kept = kept[1:]
        return found, *kept

    def matrix(self, state: tuple[Shape, ...], weights: Array | None) -> WeightMatrix:
        """Return the matrix of the layer, of all that it reads and hands on."""
        own = self.layer.matrix(self.arranged(state)[0], weights)
        ends = np.cumsum([0, *map(math.prod, state)]).tolist()
        read, *kept = self.arranged(tuple(map(slice, ends, ends[1:])))
        added = kept.pop(0) if self.joins else None
        return BlockMatrix(own, ends[-1], read, added, tuple(kept))


def chain_of(layers: Iterable[Layer]) -> tuple[Layer | Link, ...]:
    """Return the layers one by one, blocks and all; the numbers of layers are places in it.

    A pooling that selects and names an activation is two layers, since each has a pattern.
    """
    found: list[Layer | Link] = []
    for layer in layers:
        if isinstance(layer, Residual):
            found += layer.links()
        elif getattr(layer, "selects", False) and layer.activation not in (None, Identity()):
            found += [replace(layer, activation=None), Same(activation=layer.activation)]
        else:
            found.append(layer)
    return tuple(found)


def _linked(part: Layer | Link) -> Link:
    return part if isinstance(part, Link) else Link(part)


def quiet(layer: Layer | Link) -> Layer | Link:
    """Return a layer with no activation, unless it names one."""
    if isinstance(layer, Link):
        return replace(layer, layer=quiet(layer.layer))
    return replace(layer, activation=layer.activation or Identity())


class IdentityMatrix(WeightMatrix):
    """The identity on outputs of a shape."""

    def __init__(self, shape: Shape):
        self.maps_in = self.maps_out = shape[0]
        self.positions_in = self.positions_out = math.prod(shape[1:])

    @property
    def fan_in(self) -> int:
        """Return 1."""
        return 1

    @property
    def fan_out(self) -> int:
        """Return 1."""
        return 1

    def tocsr(self, rows: np.ndarray | None = None) -> scipy.sparse.csr_array:
        csr = scipy.sparse.eye_array(self.shape[0], format="csr")
        return csr if rows is None else csr[rows]

    @property
    def T(self) -> IdentityMatrix:
        return self

    @property
    def nnz(self) -> int:
        return self.shape[0]

    def gathered(self, o: Array) -> Array:
        return o[None]

    def _product(self, o: Array) -> Array:
        return o.copy()


class BlockMatrix(WeightMatrix):
    """A matrix W and what is added to its rows and carried beside them: [W I; I 0] and its like.

    The first rows are those of `own`, W, at the columns `read`, with the identity at the columns
    `added` if any; then come the columns `carried`, one after the other. All of them are slices
    of `width` columns. Weights, maps and positions are those of W. With `alone` there are zeros in
    place of all identities.

    >>> W = BlockMatrix(IdentityMatrix((2,)), 2, slice(0, 2), None, (slice(0, 2),))
    >>> W
    BlockMatrix(4 x 2, IdentityMatrix 2 x 2, 2 carried, 4 nonzeros)
    >>> W.toarray()
    array([[1., 0.],
           [0., 1.],
           [1., 0.],
           [0., 1.]])
    """

    def __init__(
        self,
        own: WeightMatrix,
        width: int,
        read: slice,
        added: slice | None,
        carried: tuple[slice, ...],
        alone: bool = False,
    ):
        self.alone, self.own_matrix, self.width, self.read = alone, own, width, read
        self.added, self.carried, self._weights = added, carried, own.weights
        self.maps_in, self.maps_out = own.maps_in, own.maps_out
        self.positions_in, self.positions_out = own.positions_in, own.positions_out
        self.selects, self.groups = own.selects, own.groups

    @property
    def rows(self) -> int:
        return self.own_matrix.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """Return (n_l, n_{l-1}), with what is carried."""
        return self.rows + sum(part.stop - part.start for part in self.carried), self.width

    def _with(self, own: WeightMatrix) -> BlockMatrix:
        return BlockMatrix(own, self.width, self.read, self.added, self.carried, self.alone)

    @property
    def inner(self) -> WeightMatrix:
        return self.own_matrix

    @property
    def trained(self) -> BlockMatrix:
        return BlockMatrix(self.own_matrix, self.width, self.read, None, self.carried, True)

    def with_weights(self, weights: Array) -> WeightMatrix:
        return self if self.weights is None else self._with(self.own_matrix.with_weights(weights))

    def is_like(self, other: WeightMatrix) -> bool:
        if type(self) is not type(other) or not self.own_matrix.is_like(other.own_matrix):
            return False
        mine, its = ((m.width, m.read, m.added, m.carried, m.alone) for m in (self, other))
        return mine == its

    @property
    def fan_in(self) -> int:
        """Return how many terms an entry of W @ o has at most."""
        return self.own_matrix.fan_in + (self.added is not None)

    @property
    def fan_out(self) -> int:
        """Return how many terms an entry of W.T @ delta has at most."""
        return self.own_matrix.fan_out + (self.added is not None) + len(self.carried)

    def at(self, o: Array) -> WeightMatrix:
        return self._with(self.own_matrix.at(o[self.read])) if self.selects else self

    def choice(self, o: Array) -> Array | None:
        return self.own_matrix.choice(o[self.read])

    def gaps(self, o: Array, still: Array, change: Array | float = 0) -> Array | None:
        """Return the gaps of W's own rows, infinite for what is carried."""
        if not self.selects:
            return None
        xp, change = namespace(o), change if np.isscalar(change) else change[self.read]
        found = xp.full((self.shape[0], o.shape[1]), np.inf, dtype=o.dtype)
        found[: self.rows] = self.own_matrix.gaps(o[self.read], still[self.read], change)
        return found

    def at_limit(self, terms: list[Array], tolerances: list[Array]) -> WeightMatrix:
        if not self.selects:
            return self
        return self._with(
            self.own_matrix.at_limit(*([t[self.read] for t in s] for s in (terms, tolerances)))
        )

    def repeated(self, times: int) -> WeightMatrix:
        return self._with(self.own_matrix.repeated(times))

    def tocsr(self, rows: np.ndarray | None = None) -> scipy.sparse.csr_array:
        eye = scipy.sparse.eye_array(self.width, format="csr")
        own = self.own_matrix.tocsr() @ eye[self.read]
        if self.added is not None:
            own = own + eye[self.added]
        parts = [eye[part] * (not self.alone) for part in self.carried]
        csr = scipy.sparse.csr_array(scipy.sparse.vstack([own, *parts]))
        csr.eliminate_zeros()
        return csr if rows is None else csr[rows]

    @property
    def T(self) -> TransposedMatrix:
        return TransposedMatrix(self)

    @property
    def nnz(self) -> int:
        if not self.selects:
            return int(self.tocsr().nnz)
        kept = 0 if self.alone else self.shape[0] - self.rows
        return self.own_matrix.nnz + self.rows * (self.added is not None) + kept

    def gradient(self, delta: Array, o: Array) -> Array:
        return self.own_matrix.gradient(delta[: self.rows], o[self.read])

    def pullback(self, delta: Array, o: Array, use: str | None = None) -> tuple[Array, Array]:
        change, below = self.own_matrix.pullback(delta[: self.rows], o[self.read], use)
        return change, self._below(delta, below)

    def adjoint(self, delta: Array) -> Array:
        return self._below(delta, self.own_matrix.T @ delta[: self.rows])

    def gathered(self, o: Array) -> Array:
        return self.own_matrix.gathered(o)

    @property
    def reads_alone(self) -> bool:
        alone = all(self.read.stop <= part.start for part in self.carried)
        return alone and self.read.start == 0 and self.added is None

    def block(self, t: int, c: int) -> np.ndarray:
        """Return the block of W that leads from map c of what it reads to map t."""
        return self.own_matrix.block(t, c)

    def readers(self, c: int) -> slice:
        return self.own_matrix.readers(c)

    def outgoing(self, c: int) -> Array:
        if not self.reads_alone:
            raise ValueError(f"{self!r}: map {c} is read by another layer of its block too")
        return self.own_matrix.outgoing(c)

    def support_sums(self, a: Array) -> Array | None:
        return self.own_matrix.support_sums(a[self.read])

    def _below(self, delta: Array, below: Array) -> Array:
        """Return W.T @ delta, given what W's own rows make of it."""
        xp = namespace(delta)
        found = xp.zeros((self.width, delta.shape[1]), dtype=below.dtype)
        found[self.read] += below
        if self.added is not None:
            found[self.added] += delta[: self.rows]
        start = self.rows
        for part in () if self.alone else self.carried:
            stop = start + part.stop - part.start
            found[part] += delta[start:stop]
            start = stop
        return found

    def _product(self, o: Array) -> Array:
        own = self.own_matrix @ o[self.read]
        if self.added is not None:
            own += o[self.added]
        parts = [0 * o[part] if self.alone else o[part] for part in self.carried]
        return namespace(o).concatenate([own, *parts]) if parts else own

    def _details(self) -> str:
        own, (rows, columns) = type(self.own_matrix).__name__, self.own_matrix.shape
        more = "" if self.added is None else " and what is kept"
        carried = self.shape[0] - self.rows
        return f", {own} {rows} x {columns}{more}{f', {carried} carried' if carried else ''}"
