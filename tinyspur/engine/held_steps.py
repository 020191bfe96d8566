"""Passes in which units are held at their kinks: forward, and backward with multipliers."""

from __future__ import annotations

from typing import NamedTuple

from ..layers import WeightMatrix
from .activations import Activation
from .backend import Array, namespace
from .parameters import Parameters
from .passes import neurons


class Members(NamedTuple):
    """The members of all kinks of one layer among some samples, in columns of these.

    `which` is the number of the kink, `first` whether the member stands for it.
    """

    units: Array
    columns: Array
    which: Array
    first: Array
    pairs: Array | None


class HeldStep(NamedTuple):
    """One layer of a pass with held units: what a `Step` is, the matrix that W is at `below`.

    `slopes` are sigma'(z), 0 at held units; None without an activation, and where it changes
    nothing.
    """

    layer: int
    W: WeightMatrix
    b: Array | None
    below: Array
    z: Array
    o: Array
    slopes: Array | None
    activation: Activation | None


def steps(
    theta: Parameters, columns: Array, held: dict[int, Members] | None = None
) -> list[HeldStep]:
    """Return the steps of a pass in which the members of kinks give 0, poolings their entry b.

    Among equal entries of a max pooling it takes one that moves with theta, if there is one: a
    held unit, and not an inactive one.
    """
    trace, xp, held, o = [], namespace(columns), held or {}, columns
    moves = xp.zeros_like(columns) if theta.net.max_layers else None
    for layer, W in theta.W.items():
        below, some = o, held.get(layer)
        if W.selects:
            nothing = xp.zeros_like(below)
            terms = [below, nothing if moves is None else moves]
            pooling, W = W, W.at_limit(terms, [nothing] * 2)
            if some is not None:
                entries = xp.arange(len(below))[W.read, None]
                places = pooling.inner.windows(entries, -1)[:, some.units, 0]
                choice = (places == some.pairs[:, 1]).argmax(axis=0)
                W.inner.choice[some.units, some.columns] = choice
        z, o = neurons(theta, layer, W @ below)
        sigma, slopes = theta.net.bend_at(layer), None
        if sigma is not None:
            slopes = sigma.derivative(z)
            if some is not None:
                o[some.units, some.columns] = 0
                slopes[some.units, some.columns] = 0
        if moves is not None:
            moves = carried(W, moves, xp.ones_like(z)) if W.weights is not None else W @ moves
            if slopes is not None:
                moves = moves * (slopes != 0)
                if some is not None:
                    moves[some.units, some.columns] = 1
        trace.append(HeldStep(layer, W, theta.b.get(layer), below, z, o, slopes, sigma))
    return trace


def carried(W: WeightMatrix, below: Array, values: Array) -> Array:
    """Return values (n_l, N) of a layer, with those of `below` where a block carries them along."""
    if W.rows < len(values):
        values[W.rows :] = (W @ below)[W.rows :]
    return values


def backward(
    trace: list[HeldStep],
    held: dict[int, Members],
    delta: Array,
    multipliers: Array,
    samples: int,
) -> tuple[Array, list[Array], list[Array]]:
    """Return the signals C_K and, layer by layer from the first, delta z^l and delta o^l.

    `delta` is the derivative in o^L of the losses / `samples`. At a held unit delta o is its
    signal, and delta z the multiplier in its place. Where all units that a max pooling reads in a
    window give 0, held or not, each has its signal: see `_idle_windows`. Not
    where windows overlap.
    """
    xp = namespace(delta)
    signals = xp.zeros(len(multipliers), dtype=delta.dtype)
    deltas, above = [], []
    some = held.get(len(trace) + 1)
    if some is not None:
        delta = delta.copy()
        signals += xp.bincount(some.which, minlength=len(signals)) / samples
        _put(delta, some.units, some, multipliers)
    for step, below in zip(reversed(trace), [*trace[-2::-1], None], strict=True):
        some = held.get(step.layer)
        if some is not None:
            met = delta[some.units, some.columns]
            signals += xp.bincount(some.which, weights=met, minlength=len(signals))
        above.append(delta)
        if step.activation is not None:
            delta = delta * step.slopes
            if some is not None:
                _put(delta, some.units, some, multipliers)
        deltas.append(delta)
        if below is not None:
            signal, delta = delta, step.W.T @ delta
            W, pools = step.W, hasattr(step.W.inner, "pooling")
            if pools and W.inner.fan_out == 1 and W.reads_alone and below.slopes is not None:
                members = held.get(below.layer)
                delta[W.read] = _idle_windows(
                    W, below, members, signal[: W.rows], delta[W.read], multipliers
                )
            if some is not None and some.pairs is not None:
                _put(delta, some.pairs[:, 0], some, multipliers)
                _put(delta, some.pairs[:, 1], some, -multipliers)
    return signals, deltas[::-1], above[::-1]


def _idle_windows(
    W: WeightMatrix,
    below: HeldStep,
    held: Members | None,
    signal: Array,
    delta: Array,
    multipliers: Array,
) -> Array:
    """Return delta o below a max pooling, changed in windows of units that all give 0.

    There the pooling gives max(0, z_1, z_2, ...) = y_1 + y_2 + ... with the kinks v_1 = z_1, v_2 =
    z_2 - y_1, v_3 = z_3 - y_1 - y_2, ...: the signal of unit i is that of the pooling without the
    multipliers of the held units behind i. Units that are not held let nothing pass.
    """
    xp, pooling = namespace(delta), W.inner.pooling
    passed = xp.zeros_like(delta)
    if held is not None:
        _put(passed, held.units, held, multipliers)
    passed = pooling.windows(passed)
    behind = passed.sum(axis=0) - xp.cumsum(passed, axis=0)
    idle = (pooling.windows(below.slopes[W.read]) == 0).all(axis=0)
    idle = pooling.from_windows(xp.broadcast_to(idle, behind.shape))
    return xp.where(idle, pooling.from_windows(signal - behind), delta)


def _put(delta: Array, units: Array, some: Members, multipliers: Array) -> None:
    """Add the multipliers to delta at the first members."""
    first, xp = some.first, namespace(delta)
    numbers = units[first] * delta.shape[1] + some.columns[first]
    weights = multipliers[some.which[first]]  # of several kinks, where windows overlap
    delta += xp.bincount(numbers, weights=weights, minlength=delta.size).reshape(delta.shape)
