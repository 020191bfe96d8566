"""Fields that move linear ways through a residual block against what runs beside them.

A block z = x + F(x), or S(x) + F(x), whose F is linear in x on the way through a layer p alone, or
through a unit u of a hidden layer q that has one slope s wherever it matters, for all c and d:

- beside a shortcut S of one layer: W_q[u, d] += 1 / s and W_S[c, d] -= W_p[c, u] for all c; where p
  is the only layer of F, W_p[c, d] += 1 and W_S[c, d] -= 1. Neither changes z.
- beside the identity, z_c += z_d where p is the only layer: W_p[c, d] += 1 and (w, b)_c += (w, b)_d
  in p. Through u it is z += z_d w with the weights w = W_p[:, u]: W_q[u, d] += 1 / s, and (w, b)_c
  += w_c (w, b)_d in p for all c. The layers that read z take it back, as they do with a mixing, and
  those that later blocks add to z move along: so c and d need one slope there, and no held unit.

Of convolutions that is so for weights that read the same place.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ..engine.architecture import Architecture
from ..engine.held import Held
from ..layers import ConvolutionMatrix, DenseMatrix, Link, WeightMatrix
from .families import Symmetry
from .streams import Generator, Level, group_read, incoming, outgoing

Way = tuple[int, ...]  # the layers of a branch


class Above(NamedTuple):
    """What is above the sum of a block: the layers that later blocks add to it, those that hand it
    on, and those that read it.
    """

    added: tuple[int, ...]
    between: tuple[int, ...]
    readers: tuple[int, ...]


def branches(net: Architecture) -> Iterator[tuple[Way, Way]]:
    """Yield the layers of the two branches of each residual block, the longer ones first."""
    state: tuple[Way, ...] = ((),)
    for layer, part in enumerate(net.chain, start=1):
        link = part if isinstance(part, Link) else Link(part)
        own, *kept = link.arranged(state)
        if link.joins:
            other = kept.pop(0)
            both = set(own) & set(other)
            ways = (tuple(n for n in way if n not in both) for way in (own, other))
            first, second = sorted(ways, key=len)
            yield second, first
        state = (*own, layer), *kept


def parallel_ways(held: Held, levels: dict[int, Level]) -> list[Generator]:
    """Return the generators that move linear ways of blocks against their shortcuts."""
    found: list[Generator] = []
    for own, other in branches(held.net):
        if len(own) not in (1, 2) or len(other) > 1:
            continue
        if not all(_is_linear(held, levels, n) for n in other):
            continue
        if len(own) == 1 and _is_linear(held, levels, own[0]):
            beside = _layers_beside if other else _layer_beside_identity
            found += beside(held, levels, own[0], *other)
        elif _is_dense(held, levels, own + other) and _is_linear(held, levels, own[-1]):
            beside = _units_beside if other else _units_beside_identity
            found += beside(held, levels, *own, *other)
    return found


def _is_linear(held: Held, levels: dict[int, Level], layer: int) -> bool:
    """Return whether a layer of a branch is a dense one or a convolution without an activation."""
    step, link = levels[layer].step, held.net.chain[layer - 1]
    usual = isinstance(step.W.inner, DenseMatrix | ConvolutionMatrix) and step.W.groups == 1
    return usual and step.activation is None and not link.joins


def _is_dense(held: Held, levels: dict[int, Level], way: Way) -> bool:
    """Return whether all layers are dense ones that read neurons."""
    kinds = [levels[n].step.W.inner for n in way]
    dense = all(isinstance(W, DenseMatrix) and W.positions_in == 1 for W in kinds)
    return dense and not any(held.net.chain[n - 1].joins for n in way)


def _layers_beside(held: Held, levels: dict[int, Level], p: int, s: int) -> Iterator[Generator]:
    """Yield the generators of two layers that read the same."""
    W, S = (levels[n].step.W.inner for n in (p, s))
    for c in range(W.maps_out):
        own, other = incoming(held, p, c), incoming(held, s, c)
        for k, j in _same_places(W, S):
            yield _generator(p, c, [(own[[k]], [-1], [-1], 1.0), (other[[j]], [-1], [-1], -1.0)])


def _units_beside(
    held: Held, levels: dict[int, Level], q: int, p: int, s: int
) -> Iterator[Generator]:
    """Yield the generators of units of a layer q and a shortcut of one layer s."""
    for u, slope in _linear_units(levels, q):
        ways = outgoing(held, levels[p].step.W, p, u)[:, 0]
        for k in range(levels[s].step.W.weights[0].size):
            beside = np.array([incoming(held, s, c)[k] for c in range(len(ways))])
            none = np.full(len(ways), -1)
            first = (incoming(held, q, u)[[k]], [-1], [-1], 1 / slope)
            yield _generator(q, u, [first, (beside, ways, none, -1.0)])


def _layer_beside_identity(held: Held, levels: dict[int, Level], p: int) -> Iterator[Generator]:
    """Yield the generators of a layer and the identity."""
    W, above = levels[p].step.W.inner, layers_above(held.net, p)
    centre = _centre(W)
    if above is None or centre is None:
        return
    for c, d in itertools.product(range(W.maps_out), repeat=2):
        if not _mixes(held, levels, above, c, d):
            continue
        place = incoming(held, p, c)[[d * math.prod(W.weights.shape[2:]) + centre]]
        parts = [(place, [-1], [-1], 1.0)]
        for at, source, sign in _mixed(held, levels, p, above, c, d):
            parts.append((at, source, np.full(len(at), -1), sign))
        yield _generator(p, c, parts)


def _units_beside_identity(
    held: Held, levels: dict[int, Level], q: int, p: int
) -> Iterator[Generator]:
    """Yield the generators of units of a layer q and the identity."""
    above, maps = layers_above(held.net, p), range(levels[p].step.W.maps_out)
    pairs = itertools.product(maps, maps)
    if above is None or not all(_mixes(held, levels, above, c, d) for c, d in pairs):
        return
    for u, slope in _linear_units(levels, q):
        ways = outgoing(held, levels[p].step.W, p, u)[:, 0]
        for d in maps:
            parts = [(incoming(held, q, u)[[d]], [-1], [-1], 1 / slope)]
            for c in maps:
                for at, source, sign in _mixed(held, levels, p, above, c, d):
                    parts.append((at, source, np.full(len(at), ways[c]), sign))
            yield _generator(q, u, parts)


def _linear_units(levels: dict[int, Level], q: int) -> list[tuple[int, float]]:
    """Return the units of a layer that are linear wherever they matter, and their slopes."""
    slopes = [(u, levels[q].slope(u)) for u in range(levels[q].step.W.maps_out)]
    return [(u, slope) for u, slope in slopes if slope]


def layers_above(net: Architecture, p: int) -> Above | None:
    """Return what is above the sum that p writes, or None where it is not taken back: the outputs
    are such a sum, or something is added that comes from below.
    """
    moved = {p}
    while True:
        state: tuple[frozenset[int], ...] = (frozenset([0]),)  # which layers wrote it, 0: the input
        between, readers, more, summed = [], [], set(moved), False
        for n, part in enumerate(net.chain, start=1):
            link = part if isinstance(part, Link) else Link(part)
            own, *kept = link.arranged(state)
            if link.trainable:
                readers += [n] * bool(own & moved)
                own = frozenset([n])
            if link.joins:
                own = own | kept.pop(0)
                if p in own and not summed:  # the sum z of its own block
                    own, summed = frozenset([p]), True
            if own & moved:
                between += [n] * (n != p)
                more |= own
            state = own, *kept
        if more == moved:
            break
        moved = more
    if min(moved) < p or state[0] & moved:
        return None
    return Above(tuple(sorted(moved - {p})), tuple(between), tuple(readers))


def _mixes(held: Held, levels: dict[int, Level], above: Above, c: int, d: int) -> bool:
    """Return whether the sum of a block may be mixed, z_c += z_d."""
    here = [levels[n] for n in above.between]
    if any(level.is_smooth for level in here):
        return False
    if any(kink.layer in above.between and kink.map in (c, d) for kink in held.kinks):
        return False
    if c != d and any(held.net.chain[n - 1].selects for n in above.between):
        return False
    writers, readers = ([levels[n].step.W for n in part] for part in (above.added, above.readers))
    if any(group_read(W, c) != group_read(W, d) for W in writers):
        return False
    same = all(W.inner.readers(c) == W.inner.readers(d) for W in readers)
    return same and all(c == d or level.mixes(c, d) for level in here)


def _mixed(
    held: Held, levels: dict[int, Level], p: int, above: Above, c: int, d: int
) -> Iterator[tuple[np.ndarray, np.ndarray, float]]:
    """Yield the parts of a mixing z_c += z_d: coordinates, by which they move, and the sign.

    Those that write the sum and what is added to it, and those that read it.
    """
    for n in (p, *above.added):
        yield incoming(held, n, c), incoming(held, n, d), 1.0
    for n in above.readers:
        W = levels[n].step.W
        yield outgoing(held, W, n, d).ravel(), outgoing(held, W, n, c).ravel(), -1.0


def _centre(W: WeightMatrix) -> int | None:
    """Return the tap that reads the place of the output; None if there is none."""
    if isinstance(W, DenseMatrix):
        return 0 if W.positions_in == 1 else None
    grid = W.grid
    taps = [n / step for n, step in zip(grid.before, grid.dilation, strict=True)]
    inside = all(t == int(t) and 0 <= t < k for t, k in zip(taps, grid.size, strict=True))
    if set(grid.stride) != {1} or not inside:
        return None
    return int(np.ravel_multi_index([int(t) for t in taps], grid.size))


def _same_places(W: WeightMatrix, S: WeightMatrix) -> Iterator[tuple[int, int]]:
    """Yield the numbers of weights of the two that read the same for each output."""
    if isinstance(W, DenseMatrix) and isinstance(S, DenseMatrix):
        yield from ((k, k) for k in range(W.weights[0].size))
    if not (isinstance(W, ConvolutionMatrix) and isinstance(S, ConvolutionMatrix)):
        return
    if W.grid.stride != S.grid.stride:
        return
    places = [
        {
            tuple(n * d - b for n, d, b in zip(tap, M.grid.dilation, M.grid.before, strict=True)): k
            for k, tap in enumerate(np.ndindex(*M.grid.size))
        }
        for M in (W, S)
    ]
    sizes = [math.prod(M.grid.size) for M in (W, S)]
    for place in places[0].keys() & places[1].keys():
        for c in range(W.maps_in):
            yield c * sizes[0] + places[0][place], c * sizes[1] + places[1][place]


def _generator(layer: int, t: int, parts: list[tuple]) -> Generator:
    """Return the field of parts: at coordinates it is factor * theta[source] * theta[times]."""
    at, source, times = (np.concatenate([part[n] for part in parts]) for n in range(3))
    factor = np.concatenate([np.full(len(part[0]), part[3]) for part in parts])
    return Generator(at, source, factor, Symmetry("parallel", layer, (t,)), times)
