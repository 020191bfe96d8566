"""Streams of maps, and the fields along which they move without any change.

A layer with parameters writes maps. Poolings, activations and identities hand them on, map by map,
and the sum of a residual block adds those of two. All that are tied so are a stream: some layers
write it, others read it. Without blocks it is what one layer writes and the next one reads.

With delta = dL/dz, o = slope z off the kinks, o = 0 and z = v at held units, two kinds of
generators move a stream (sums over samples and positions; c = 0 but for mixings):

- *mixing* of maps a, b, a = b being the scaling: in each layer that writes the stream the incoming
  (w, b)_a += (w, b)_b, in each that reads it the outgoing weights of b -= those of a. Its product
  with grad L is sum delta_a z_b over the former, minus sum (dL/do_a) o_b over the latter. Sums,
  averages and copies keep sum delta_a o_b. At an activation it changes by delta_a z_b - (dL/do_a)
  o_b: 0 where both have the same slope, and c_k v_k with c_k = delta_a where b is held; so each
  place where a is held must be one where b is. Max poolings may choose otherwise in a and b, so
  they allow the scaling alone, with c_k = lambda_k.
- *shifts* of maps: bias += 1 in a layer that writes the stream, or in two of them by numbers that
  cancel. It reaches the layers that read it times the slopes of activations on the way, which must
  be one for all places; there each bias -= the shift times the sum of the weights on the map.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from ..engine.architecture import Architecture
from ..engine.held import Held
from ..engine.held_steps import HeldStep, steps
from ..engine.losses import CrossEntropy
from ..engine.parameters import Parameters
from ..layers import ConvolutionMatrix, DenseMatrix, Link, ScaleMatrix, WeightMatrix
from .boxes import influence, members_of
from .families import Symmetry


class Generator(NamedTuple):
    """A field: at coordinates `at` it is factor * theta[source] * theta[times], 1 in place of -1.

    Coordinates that come more than once are summed; `times` is -1 everywhere if it is not given.
    """

    at: np.ndarray
    source: np.ndarray
    factor: np.ndarray
    symmetry: Symmetry
    times: np.ndarray | None = None

    @property
    def mixes(self) -> tuple[int, int, int] | None:
        """Return (layer, a, b) of a mixing or scaling, None for others."""
        kind, layer, maps = self.symmetry
        return (layer, maps[0], maps[-1]) if kind in ("scaling", "mixing") else None


class Stream(NamedTuple):
    """The layers that write, read and hand on a stream, ascending; writers hand it on too.

    `ends` is whether the input or the outputs are in it, `last` whether the outputs are.
    """

    writers: tuple[int, ...]
    readers: tuple[int, ...]
    levels: tuple[int, ...]
    ends: bool
    last: bool


def streams(net: Architecture) -> list[Stream]:
    """Return the streams of a network that some layer with parameters writes."""
    joined, state = [0], (0,)  # numbers of nodes; 0 is the input

    def root(node: int) -> int:
        return node if joined[node] == node else root(joined[node])

    writers, readers, levels = [], [], []
    for layer, link in enumerate(_links(net), start=1):
        own, *kept = link.arranged(state)
        if link.trainable:
            readers.append((own, layer))
            own = len(joined)
            joined.append(own)
            writers.append((own, layer))
        if link.joins:
            joined[root(kept.pop(0))] = root(own)
        levels.append((own, layer))
        state = own, *kept
    first, last = root(0), root(state[0])
    found = []
    for stream in dict.fromkeys(root(node) for node, _ in writers):
        parts = ([n for node, n in part if root(node) == stream] for part in (writers, readers))
        own = tuple(n for node, n in levels if root(node) == stream)
        ends = stream in (first, last)
        found.append(Stream(*map(tuple, parts), own, ends, stream == last))
    return found


def downstream(net: Architecture, layer: int) -> tuple[list[int], list[int], bool]:
    """Return which layers hand on what a layer writes, which read it, and whether there is more to
    it: it gets to the top, or is added to itself behind a pooling.
    """
    between, readers, state, more = [], [], (False,), False
    for n, link in enumerate(_links(net), start=1):
        own, *kept = link.arranged(state)
        if link.trainable:
            readers += [n] * own
            own = n == layer
        if link.joins:
            other = kept.pop(0)
            own, more = own or other, more or (own and other)
        between += [n] * (own and n != layer)
        state = own, *kept
    return between, readers, more or state[0]


def _links(net: Architecture) -> Iterator[Link]:
    return (part if isinstance(part, Link) else Link(part) for part in net.chain)


class Level(NamedTuple):
    """What a layer does to its maps: `slopes` of the activation, (maps, places), None without one.

    They are NaN at units that are held or do not matter; `held` says which are held. `matters`
    (maps, places): z has an influence on L.
    """

    step: HeldStep
    slopes: np.ndarray | None
    held: np.ndarray | None
    matters: np.ndarray

    @property
    def is_smooth(self) -> bool:
        """Return whether a smooth activation follows."""
        return self.step.activation is not None and self.slopes is None

    def slope(self, a: int) -> float | None:
        """Return the slope of a map where it matters, 0 if nowhere; None if there are several."""
        if self.slopes is None or self.held[a].any():
            return None if self.step.activation is not None else 1.0
        values = np.unique(self.slopes[a][~np.isnan(self.slopes[a])])
        return None if len(values) > 1 else float(values.sum())

    def mixes(self, a: int, b: int) -> bool:
        """Return whether delta_a z_b = (dL/do_a) o_b at each place, but for held units of b."""
        if self.slopes is None:
            return True
        counts = ~np.isnan(self.slopes[a]) | self.held[a]  # where the signal reaches a
        same = (self.slopes[a] == self.slopes[b]) | self.held[b]
        return bool(same[counts].all())


def levels_of(held: Held, theta: Parameters) -> dict[int, Level]:
    """Return the level of each layer at theta."""
    x = held.data.x.reshape(len(held.data), -1).astype(np.float64)
    members = members_of(held, slice(None))
    trace = steps(theta, np.ascontiguousarray(x.T), members)
    found = {}
    for step, matters in zip(trace, influence(trace, members), strict=True):
        own, some, slopes, at_kink = slice(step.W.rows), members.get(step.layer), None, None
        matters, maps = matters[own], step.W.maps_out
        if step.activation is not None and step.activation.piecewise_linear:
            slopes = np.where(matters, step.slopes[own], np.nan)
            matters, at_kink = matters & (step.slopes[own] != 0), np.zeros(matters.shape, bool)
            if some is not None:
                slopes[some.units, some.columns] = np.nan
                matters[some.units, some.columns] = at_kink[some.units, some.columns] = True
            slopes, at_kink = slopes.reshape(maps, -1), at_kink.reshape(maps, -1)
        found[step.layer] = Level(step, slopes, at_kink, matters.reshape(maps, -1))
    return found


def incoming(held: Held, layer: int, t: int) -> np.ndarray:
    """Return the coordinates of the weights of a map, in order, and of its bias if any."""
    return held.net.slots[layer].of_map(t)


def outgoing(held: Held, W: WeightMatrix, layer: int, t: int) -> np.ndarray:
    """Return the coordinates of the weights of a layer that read a map, (readers, ...)."""
    slot = held.net.slots[layer]
    numbers = slot.start + np.arange(math.prod(slot.shape), dtype=float).reshape(slot.shape)
    found = W.inner.with_weights(numbers).outgoing(t)
    return found.reshape(len(found), -1).astype(int)


def group_read(W: WeightMatrix, t: int) -> int:
    """Return the group of maps below that map t reads."""
    return t * W.groups // W.maps_out


def stream_symmetries(held: Held, levels: dict[int, Level]) -> list[Generator]:
    """Return the generators that move streams: mixings, shifts, and those of all outputs."""
    found: list[Generator] = []
    for stream in streams(held.net):
        if not stream.ends:
            found += mixings(held, levels, stream)
        for a in range(levels[stream.writers[0]].step.W.maps_out):
            found += shifts(held, levels, stream, a)
        if stream.last:
            found += output_shifts(held, levels, stream)
    return found


# Mixings


def mixings(held: Held, levels: dict[int, Level], stream: Stream) -> list[Generator]:
    """Return the generators that mix maps of a stream, scalings among them."""
    here = [levels[n] for n in stream.levels]
    if not stream.readers or any(level.is_smooth for level in here):
        return []
    writers, readers = ([levels[n].step.W for n in part] for part in stream[:2])
    chooses = any(held.net.chain[n - 1].selects for n in stream.levels)
    maps, found = range(writers[0].maps_out), []
    alive = [any(level.matters[t].any() for level in here) for t in maps]
    for a, b in itertools.product(maps, maps):
        if not (alive[a] and alive[b]):
            continue
        if a != b and (chooses or not all(level.mixes(a, b) for level in here)):
            continue
        if any(group_read(W, a) != group_read(W, b) for W in writers):
            continue
        if any(W.inner.readers(a) != W.inner.readers(b) for W in readers):
            continue
        parts = []
        for n in stream.writers:
            parts.append((incoming(held, n, a), incoming(held, n, b), 1.0))
        for n, W in zip(stream.readers, readers, strict=True):
            out, back = (outgoing(held, W, n, t).ravel() for t in (b, a))
            parts.append((out, back, -1.0))
        kind, units = ("scaling", (a,)) if a == b else ("mixing", (a, b))
        found.append(_summed(parts, Symmetry(kind, stream.writers[0], units)))
    return found


def _summed(parts: list[tuple], symmetry: Symmetry) -> Generator:
    """Return the generator of parts (at, source, factor), each pair of coordinates once."""
    pairs = np.concatenate([np.stack([at, source]) for at, source, _ in parts], axis=1)
    factors = np.concatenate([np.full(len(at), factor) for at, _, factor in parts])
    (at, source), inverse = np.unique(pairs, axis=1, return_inverse=True)
    factor = np.bincount(inverse.reshape(-1), weights=factors)
    return Generator(at, source, factor, symmetry)


# Shifts

Shift = dict[int, Fraction]  # what a shift by 1 in each layer that writes a stream adds to a map


def shifts(held: Held, levels: dict[int, Level], stream: Stream, a: int) -> list[Generator]:
    """Return the generators that shift a map of a stream, where the layers that read take it back.

    Each moves one bias of those that write the stream, or two.
    """
    none, absorbed = _reached(held, levels, stream, a)
    writers = [n for n in stream.writers if held.net.slots[n].biases]
    alone = {n for n in writers if not any(shift.get(n) for shift in none)}
    found = [{n: Fraction(1)} for n in alone]
    for first, second in itertools.combinations([n for n in writers if n not in alone], 2):
        pairs = [(s.get(first, Fraction(0)), s.get(second, Fraction(0))) for s in none]
        p, q = next(pair for pair in pairs if any(pair))
        if p and q and all(u * q == v * p for u, v in pairs):
            found.append({first: Fraction(1), second: -p / q})
    return [_shift(held, levels, a, moved, absorbed) for moved in found]


def _reached(
    held: Held, levels: dict[int, Level], stream: Stream, a: int
) -> tuple[list[Shift], list[tuple[int, Shift]]]:
    """Return which shifts of a map must cancel, and which ones biases of which layers take back."""
    none, absorbed = [], []
    state: tuple[Shift, ...] = ({},)
    for layer, link in enumerate(_links(held.net), start=1):
        own, *kept = link.arranged(state)
        level = levels[layer]
        if link.trainable:
            if _absorbs(held, layer, level.step.W.inner):
                absorbed.append((layer, own))
            else:
                none.append(own)
            writes = layer in stream.writers and held.net.slots[layer].biases
            own = {layer: Fraction(1)} if writes else {}
        elif not link.keeps_constants:
            none.append(own)
        if link.joins:
            other = kept.pop(0)
            own = {n: own.get(n, 0) + other.get(n, 0) for n in own | other}
        if any(own.values()):
            slope = level.slope(a)
            if slope is None:
                none.append(own)
            else:
                own = {n: shift * Fraction(slope) for n, shift in own.items()}
        state = own, *kept
    return [*none, state[0]], absorbed


def _absorbs(held: Held, layer: int, W: WeightMatrix) -> bool:
    """Return whether biases of a layer can take back a constant on a map that it reads."""
    if not held.net.slots[layer].biases:
        return False
    if isinstance(W, ConvolutionMatrix):  # all positions read the map alone
        return max(W.grid.before + W.grid.after) <= 0
    return isinstance(W, DenseMatrix | ScaleMatrix)


def _shift(
    held: Held, levels: dict[int, Level], a: int, moved: Shift, absorbed: list[tuple[int, Shift]]
) -> Generator:
    """Return the generator that moves biases by so much, and takes it back."""
    at = [incoming(held, n, a)[-1:] for n in moved]
    source, factor = [np.array([-1])] * len(moved), [np.array([float(x)]) for x in moved.values()]
    for layer, shift in absorbed:
        total = sum(x * shift.get(n, 0) for n, x in moved.items())
        if not total:
            continue
        W = levels[layer].step.W.inner
        out = outgoing(held, W, layer, a)
        maps = range(held.net.slots[layer].shape[0])[W.readers(a)]
        biases = np.array([incoming(held, layer, h)[-1] for h in maps])
        at.append(np.repeat(biases, out.shape[1]))
        source.append(out.ravel())
        factor.append(np.full(out.size, -float(total)))
    symmetry = Symmetry("shift", min(moved), (a,))
    return Generator(*map(np.concatenate, (at, source, factor)), symmetry)


def output_shifts(held: Held, levels: dict[int, Level], stream: Stream) -> list[Generator]:
    """Return the generators that shift all outputs of the softmax by one number each."""
    net = held.net
    chooses = any(net.chain[n - 1].selects for n in stream.levels)
    bent = any(levels[n].step.activation is not None for n in stream.levels)
    if type(held.loss) is not CrossEntropy or chooses or bent or net.positions(net.depth) > 1:
        return []
    found = []
    for n in stream.writers:
        columns = np.array([incoming(held, n, h) for h in range(levels[n].step.W.maps_out)])
        if levels[n].step.W.groups > 1:  # maps read others below: of their biases alone
            columns = columns[:, columns.shape[1] - bool(net.slots[n].biases) :]
        nothing, ones = np.full(len(columns), -1), np.ones(len(columns))
        symmetry = Symmetry("outputs", n, tuple(range(len(columns))))
        found += [Generator(column, nothing, ones, symmetry) for column in columns.T]
    return found
