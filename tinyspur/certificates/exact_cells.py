"""The pattern classes of exact points: samples with the same pattern, and units at the kink."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ..datasets.samples import TrainingSet
from ..engine.parameters import Parameters
from ..engine.passes import unread
from ..errors import AssumptionError
from ..fitting.rational import Rational, rational
from .exact import ExactPoint, ExactStep, exact_steps, split
from .radius import counted

CHUNK = 2 * 10**6  # numbers of a layer that are looked at together


class Cell(NamedTuple):
    """A pattern class: its samples and its pattern, (n_l, 1) for each layer that has one.

    `dead` is the highest layer of which all units are inactive, or 0.
    """

    samples: np.ndarray
    pattern: dict[int, np.ndarray]
    dead: int


def columns_of(data: TrainingSet) -> Rational:
    """Return the inputs as columns (n_0, N)."""
    return rational(data.x.reshape(len(data), -1)).T


def find_cells(point: ExactPoint, data: TrainingSet) -> list[Cell]:
    """Return the pattern classes; AssumptionError where a unit that counts is at the kink."""
    net, x, found, kinks = point.theta.net, columns_of(data), {}, []
    last = max(net.depth - 1, *net.pattern_layers, 0)
    size = max(1, CHUNK // max(int(np.prod(shape)) for shape in net.shapes))
    for start in range(0, len(data), size):
        rows = range(start, min(start + size, len(data)))
        trace = list(exact_steps(point, x[:, rows.start : rows.stop], 1, last))
        dead = _dead_layers(point, trace, len(rows))
        counts = counted(net, dead)
        patterns = {s.layer: s.pattern for s in trace if s.layer in counts}
        for layer, undecided in _undecided(point, trace, x[:, rows.start : rows.stop]):
            at = np.argwhere((undecided & counts[layer]).T)
            kinks += [(start + int(i), layer, int(unit)) for i, unit in at]
        shown = {layer: p.astype(np.int32) * counts[layer] for layer, p in patterns.items()}
        keys = np.concatenate([dead[None].astype(np.int32), *shown.values()]).T
        for n, key in enumerate(map(bytes, np.ascontiguousarray(keys))):
            if key not in found:
                pattern = {layer: p[:, n : n + 1].copy() for layer, p in patterns.items()}
                found[key] = [], pattern, int(dead[n])
            found[key][0].append(start + n)
    if kinks:
        sample, layer, unit = kinks[0]
        raise AssumptionError(
            f"exact: expected no unit at the kink, got {len(kinks)}: the first is unit {unit} of "
            f"layer {layer} for sample {sample}"
        )
    return [Cell(np.array(rows), pattern, cut) for rows, pattern, cut in found.values()]


def _dead_layers(point: ExactPoint, trace: list[ExactStep], samples: int) -> np.ndarray:
    """Return for each sample the highest layer of which all units are inactive, or 0."""
    net, found = point.theta.net, np.zeros(samples, dtype=int)
    for step in trace:
        sigma = net.activation_of(step.layer)
        nothing_kept = len(net.states[step.layer]) == 1
        if sigma is not None and sigma.slope == 0 and nothing_kept:
            found[(step.z.n < 0).all(axis=0)] = step.layer
    return found


def _undecided(
    point: ExactPoint, trace: list[ExactStep], below: Rational
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the layers with units at the kink, and which these are, (n_l, N).

    Equal entries of a max pooling count where one of them can move: not below all layers with
    parameters, nor where all of them are outputs of inactive units. Units without biases that read
    nothing but such zeros, or zeros of the inputs `below`, are at no kink: they stay 0.
    """
    net, still = point.theta.net, None
    for step in trace:
        W, sigma = point.theta.W[step.layer], net.activation_of(step.layer)
        if step.layer in net.slots:
            moving = (below.n != 0).astype(float) if still is None else (~still).astype(float)
            still = unread(W, point.theta.b.get(step.layer), moving)
        elif still is not None and W.selects:
            (own, read, _), (_, inner, beside) = split(W, below), split(W, still)
            top = (own.windows(read.n) == step.o.n[: W.rows]).astype(bool)
            inner, inside = own.windows(inner), own.inside(top)
            top = top if inside is None else top & inside
            yield step.layer, (top.sum(axis=0) > 1) & (top & ~inner).any(axis=0)
            still = np.concatenate([(~top | inner).all(axis=0), *beside])
        elif still is not None:
            still = W @ (~still).astype(float) == 0
        if sigma is not None:
            zero = (step.z.n == 0).astype(bool) & ~still
            zero[W.rows :] = False
            yield step.layer, zero
            if sigma.slope == 0:
                still[: W.rows] |= ~step.pattern
        below = step.o


def samples_of(theta: Parameters, data: TrainingSet, cell: Cell) -> tuple[Rational, Rational]:
    """Return what the first layer with parameters reads, (x_i, 1), and y_i: rows of a class.

    Below a layer whose units are all inactive the inputs don't count: (0, 1).
    """
    v = columns_of(data)[:, cell.samples]
    for step in exact_steps(ExactPoint(theta), v, 1, theta.net.leading_poolings):
        v = step.o
    n = np.zeros_like(v.n) if cell.dead else v.n
    ones = np.full((1, len(cell.samples)), v.d, dtype=object if v.d >= 2**62 else np.int64)
    return Rational(np.concatenate([n, ones]).T, v.d), rational(data.y[cell.samples])


# Optimal affine fits


def same_cell(one: Cell, other: Cell) -> bool:
    """Return whether two classes have the same samples and the same pattern, where it counts."""
    layers = [n for n in one.pattern if n >= max(one.dead, 1)]
    return (
        one.dead == other.dead
        and np.array_equal(one.samples, other.samples)
        and all((one.pattern[n] == other.pattern[n]).all() for n in layers)
    )
