"""How far, in the max-norm, parameters may move while all activation patterns stay."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..engine.architecture import Architecture
from ..engine.backend import Array, all_to_numpy, namespace
from ..engine.floats import EPSILON, slack
from ..engine.parameters import Parameters
from ..engine.passes import Step
from ..engine.threads import scratch

FEW = 64  # units that are looked at first
LARGEST = 1e300  # no radius above this is looked for
RADIUS_ACCURACY = 1e-2  # the radius is the largest rho found, up to this relative error


class Fixed(NamedTuple):
    """What the check of a layer's pattern needs that is the same for every rho.

    `free` are the samples (N,) for which the pattern does not count, `inexact` bounds the rounding
    errors of what the layer reads, `sums` are S (a + inexact), None without weights. A unit's z may
    move by less than `room`, and the `share` of its move goes on; None where all of it does.
    """

    free: Array
    inexact: Array | None
    sums: Array | None
    room: Array | None
    share: Array | None


@dataclass(eq=False)
class Chunk:
    """A pass of some samples at theta, with |theta|, bounds of the rounding errors of each z, the
    `highest_dead_layer` of each sample, below which nothing counts, and the margins. In some layers
    theta has idle maps besides, without weights, the bias of each at most the number in `idle`.
    """

    magnitudes: Parameters
    trace: list[Step]
    rounding: list[Array]
    cut: Array
    margins: dict[int, Array]
    idle: dict[int, float]

    @functools.cached_property
    def counted(self) -> dict[int, Array]:
        """Return for each layer with a pattern which samples it counts for, (N,)."""
        return counted(self.magnitudes.net, self.cut)

    @functools.cached_property
    def fixed(self) -> list[Fixed]:
        """Return what is the same for every rho, for each layer up to the last with a pattern."""
        found: list[Fixed] = []
        inexact, last = None, max(self.magnitudes.net.pattern_layers, default=0)
        for step, rounding in zip(self.trace[:last], self.rounding, strict=False):
            sums = room = share = None
            counts = self.counted.get(step.layer, self.cut <= step.layer)
            if step.W.weights is not None:
                reach = abs(step.below)
                if inexact is not None:
                    reach += inexact
                sums = step.W.support_sums(reach)
            if step.kinked:
                with np.errstate(invalid="ignore"):
                    room = (step.heights - rounding) * (1 - 2 * EPSILON)
                share = self._share(step, counts)
                if share is not None:
                    slope = step.activation.slope
                    rounding = rounding * share if slope == 0 else max(1.0, slope) * rounding
            found.append(Fixed(~counts, inexact, sums, room, share))
            inexact = rounding
        return found

    def _share(self, step: Step, counts: Array) -> Array | None:
        """Return 1 where z > 0, the slope elsewhere, and the larger where no pattern counts."""
        slope, active = step.activation.slope, step.z > 0
        active = active & counts if slope > 1 else active | ~counts
        active[step.W.rows :] = True  # what a residual block keeps
        xp = namespace(active)
        if xp is np and active.all():
            return None
        return active if slope == 0 else xp.where(active, 1.0, slope)


def highest_dead_layer(trace: list[Step], rounding: list[Array]) -> Array:
    """Return for each sample the highest layer of which every unit is strictly inactive, or 0.

    Near theta the outputs of a sample don't depend on what is below that layer.
    """
    xp = namespace(trace[0].below)
    cut = xp.zeros(trace[0].below.shape[1], dtype=np.min_scalar_type(len(trace)))
    for step, inexact in zip(trace, rounding, strict=True):
        nothing_kept = step.W.rows == step.W.shape[0]
        if step.kinked and step.activation.slope == 0 and nothing_kept:
            few = step.z[:FEW]  # one that is not inactive settles it for most samples
            if xp is not np or (few.max(axis=0) < 0).any():
                cut = xp.where((step.z < -inexact).all(axis=0), step.layer, cut)
    return cut


def counted(net: Architecture, cut: Array) -> dict[int, Array]:
    """Return for each layer with a pattern the samples (N,) for which it counts.

    Not for those with a dead layer above it. The first layer above a dead one has only its biases:
    all positions of a map are equal there for all parameters nearby, and so a max pooling between
    it and the next layer with parameters has nothing to choose.
    """
    found, trainable = {}, [*net.slots, net.depth + 1]
    for layer in net.pattern_layers:
        found[layer] = cut <= layer
        if layer in net.max_layers:
            below = [n for n in trainable if n < layer]
            for dead in below[:-1]:  # then below[-1] reads zeros if it is the next above
                constant = all(some.keeps_constants for some in net.chain[below[-1] : layer - 1])
                if constant and trainable[trainable.index(dead) + 1] == below[-1]:
                    found[layer] = found[layer] & (cut != dead)
    return found


def shrink(radius: float, at: Chunk) -> float:
    """Return the largest rho <= radius found to keep the patterns of these samples too."""
    xp = namespace(at.trace[0].below)
    counts = at.counted
    kinked = [s.layer for s in at.trace if s.kinked]
    least = [xp.where(counts[n], at.margins[n], np.inf).min() for n in kinked]
    high = min([radius, *map(float, all_to_numpy(least))])  # a bias alone moves z by rho
    if high == np.inf and at.magnitudes.net.max_layers:  # no unit has a kink, but windows choose
        high = 1.0
        while high < LARGEST and keeps_patterns(high, at):
            high *= 2
    if high in (0, np.inf) or keeps_patterns(high, at):
        return high
    if not keeps_patterns(1e-300, at):
        return 0.0
    low = high / 2
    while low >= 1e-300 and not keeps_patterns(low, at):
        high, low = low, low / 2
    if low < 1e-300:
        return 0.0
    while high - low > RADIUS_ACCURACY * high:
        middle = (low + high) / 2
        if keeps_patterns(middle, at):
            low = middle
        else:
            high = middle
    return low


def keeps_patterns(rho: float, at: Chunk) -> bool:
    """Return whether no z can change its sign for any parameters within max-norm distance rho.

    What lies below a layer that stays dead may.
    """
    kept = _kept_patterns(rho, at)
    if namespace(at.trace[0].below) is np:
        return all(kept)  # up to the first layer where one can
    return bool(functools.reduce(operator.and_, kept, True))  # one transfer for all layers


def _kept_patterns(rho: float, at: Chunk) -> Iterator[Array]:
    """Yield for each layer with a pattern whether it can't change.

    Per sample, with |o^{l-1}| <= a and |change of o^{l-1}| <= d, z moves by at most
    e = |W| d + rho S (a + d) + rho, S the support of the trainable entries. The rounding errors of
    z are added, and those of this computation itself.
    """
    xp, d = namespace(at.trace[0].below), None
    grow = slack(2 * sum(W.shape[1] + 4 for W in at.magnitudes.W.values()))
    for step, fixed in zip(at.trace, at.fixed, strict=False):
        W, below, free, use = step.W, step.below, fixed.free, f"radius {step.layer % 2}"
        if W.selects and d is not None:
            change = xp.where(d > 0, d * grow + fixed.inexact, 0)
            yield (free | (W.gaps(below, d == 0, change) > 0)).all()
        if d is None:
            e = scratch(step.z.shape, step.z, use)
            e[W.rows if W.weights is not None else 0 :] = 0
        else:
            e = at.magnitudes.W[step.layer].at(below).brief_product(d, use)
        if W.selects and d is not None:  # where the selection may change
            e = xp.where(free, W @ d, e)
        if W.weights is not None:
            sums = fixed.sums if d is None else fixed.sums + W.support_sums(d)
            maps = e[: W.rows].reshape(W.maps_out, W.positions_out, -1)
            change = rho * sums + (0 if step.b is None else rho)
            if d is None:
                maps[...] = change
            else:
                maps += change
            if step.layer in at.idle:  # nothing of d comes in
                room = -at.idle[step.layer] * (1 - 2 * EPSILON)
                yield (free | (change * grow < room)).all()
            if step.b is None:  # a unit that reads nothing but zeros is 0 for all parameters
                nothing = xp.zeros(e.shape, dtype=bool)
                nothing[: W.rows].reshape(maps.shape)[...] = sums == 0
                free = free | nothing
        if step.kinked:
            still = False if step.b is not None else e == 0
            yield (free | still | (e * grow < fixed.room)).all()
            if fixed.share is not None:
                e *= fixed.share
        d = e
