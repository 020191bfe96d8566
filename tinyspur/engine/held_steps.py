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

    `slopes` are sigma'(z), 0 at held units; None without an activation.
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
            base = xp.zeros_like(below)
            if some is not None:
                base[some.pairs[:, 1], some.columns] = 1
            nothing = xp.zeros_like(below)
            W = W.at_limit([base, below, moves if moves is not None else base], [nothing] * 3)
        z, o = neurons(theta, layer, W @ below)
        sigma, slopes = theta.net.activation_of(layer), None
        if sigma is not None:
            slopes = sigma.derivative(z)
            if some is not None:
                o[some.units, some.columns] = 0
                slopes[some.units, some.columns] = 0
        if moves is not None:
            moves = W @ moves if layer not in theta.b else xp.ones_like(z)
            if sigma is not None and slopes is not None:
                moves = (slopes != 0).astype(z.dtype)
                if some is not None:
                    moves[some.units, some.columns] = 1
        trace.append(HeldStep(layer, W, theta.b.get(layer), below, z, o, slopes, sigma))
    return trace


def backward(
    trace: list[HeldStep],
    held: dict[int, Members],
    delta: Array,
    multipliers: Array,
) -> tuple[Array, list[Array], list[Array]]:
    """Return the signals C_K and, layer by layer from the first, delta z^l and delta o^l.

    `delta` is the derivative in o^L. At a held unit delta o is its signal, and delta z the
    multiplier in its place.
    """
    xp = namespace(delta)
    signals = xp.zeros(len(multipliers), dtype=delta.dtype)
    deltas, above = [], []
    some = held.get(len(trace) + 1)
    if some is not None:
        delta = delta.copy()
        signals += xp.bincount(some.which, minlength=len(signals)) / 1.0
        _put(delta, some.units, some, multipliers)
    for step in reversed(trace):
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
        if step.layer > 1:
            delta = step.W.T @ delta
            if some is not None and some.pairs is not None:
                _put(delta, some.pairs[:, 0], some, multipliers)
                _put(delta, some.pairs[:, 1], some, -multipliers)
    return signals, deltas[::-1], above[::-1]


def _put(delta: Array, units: Array, some: Members, multipliers: Array) -> None:
    """Add the multipliers to delta at the first members."""
    first = some.first
    places = units[first], some.columns[first]
    delta[places] += multipliers[some.which[first]]
