"""Passes in which chosen units are held at their kinks, with multipliers.

At a local minimum of a network with kinks some units are exactly at the kink for some samples. Let
K be these, with v_k = z_k for a unit of ReLU or leaky ReLU, a - b for two equal entries of a max
pooling, and o_k - y_k for the absolute loss. R_0 is the risk in which the held unit gives 0, the
pooling b, and the loss 0 there, all others their own piece: a smooth function near theta. What is
computed here is L(theta, lambda) = R_0 + sum_k lambda_k v_k, its gradient, its Hessian, and the
signals C_k: what backpropagation brings to the output of a held unit. Where grad L = 0, v_K = 0,
each lambda_k is strictly between alpha C_k and C_k, and the Hessian of L is positive definite on
{d : grad v_k . d = 0}, theta is a strict local minimum. Without kinks, as for smooth activations,
L is the risk itself.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..datasets.samples import TrainingSet
from .activations import ReLU
from .backend import Array, namespace
from .held_steps import HeldStep, Members, backward, steps
from .losses import AbsoluteLoss, Loss
from .network import Network, check_problem
from .parameters import Parameters
from .passes import even_slices
from .sweeps import Moved, jacobian, products, sweep, widest
from .threads import in_order

SWEPT = 8 * 2**20  # bytes of derivatives of a layer that are held at once, if the budget allows
TOTALS = 8  # at most so many parts of the samples have a Hessian of their own


@dataclass(frozen=True, eq=False)
class HeldKink:
    """A kink at which units are held: v_k is the same function of theta for all its members.

    `layer` is that of the activation or the max pooling, L + 1 for the loss; `map` the map, the
    dense neuron or the output. The members are `units` (rows of z^l, windows of a max pooling, or
    outputs) at `samples`, both (members,); the first of them stands for all. For a max pooling
    `pairs` (members, 2) are the rows a, b of o^{l-1}, with v_k = a - b.
    """

    layer: int
    map: int
    units: np.ndarray
    samples: np.ndarray
    pairs: np.ndarray | None = None

    def __repr__(self) -> str:
        more = f", {len(self.units)} equal ones" if len(self.units) > 1 else ""
        place = f"layer {self.layer}, map {self.map}, unit {self.units[0]}"
        return f"HeldKink({place}, sample {self.samples[0]}{more})"


class HeldGradient(NamedTuple):
    """R_0, the gradient of L in the parameters (p,), v_K and the signals C_K, both (kinks,)."""

    risk: float
    gradient: Array
    values: Array
    signals: Array


class View(NamedTuple):
    """What is at each unit for each sample, layer by layer from the first, (n_l, N) each.

    z^l, o^l, the derivatives of L in o^l, and the choices of max poolings (None elsewhere).
    """

    z: list[Array]
    o: list[Array]
    signals: list[Array]
    choices: list[Array | None]

    def below(self, layer: int) -> Array:
        """Return what a layer above the first one reads, (n_{l-1}, N)."""
        return self.o[: layer - 1][-1]


class Held:
    """The function L(theta, lambda) of a network on data, with units held at `kinks`.

    All its methods take points of `net` and the multipliers (kinks,), and return arrays where the
    point is. Raises ValueError for leaky ReLU with a slope of 1 or more, and for piecewise linear
    activations of your own.
    """

    def __init__(self, net: Network, data: TrainingSet, loss: Loss, kinks: Sequence[HeldKink] = ()):
        check_problem(net, data, loss)
        for sigma in net.activations:
            if sigma.piecewise_linear and (type(sigma) is not ReLU or sigma.slope >= 1):
                raise ValueError(
                    "held kinks: expected ReLU, leaky ReLU with a slope below 1 or a smooth "
                    f"activation, got {sigma!r}"
                )
        self.net, self.data, self.loss, self.kinks = net, data, loss, tuple(kinks)
        self._members = _by_layer(self.kinks)

    def at_kinks(self, kinks: Sequence[HeldKink]) -> Held:
        """Return the same with units held at other kinks."""
        other = copy.copy(self)
        other.kinks = tuple(kinks)
        other._members = _by_layer(other.kinks)
        return other

    def members(self, samples: np.ndarray) -> dict[int, Members]:
        """Return the members of all kinks among some samples, ascending, in columns of these."""
        return _among(self._members, samples, np)

    def bounds(self, signals: Array) -> tuple[Array, Array]:
        """Return the bounds of the multipliers for signals C: alpha C and C; -C and C of a loss."""
        own = np.array([self.slope(kink) for kink in self.kinks])
        return namespace(signals).asarray(own) * signals, signals

    def slope(self, kink: HeldKink) -> float:
        """Return alpha, the lower one of the slopes of a kink; the upper one is 1."""
        if kink.layer > self.net.depth:
            return -1.0
        return 0.0 if kink.pairs is not None else float(self.net.activation_of(kink.layer).slope)

    def gradient(self, theta: Parameters, multipliers: Array) -> HeldGradient:
        """Return R_0, the gradient of L, v_K and the signals by one backward pass."""
        risk, totals = 0.0, None
        for value, *parts, _ in self._over(theta, multipliers):
            risk += value
            totals = parts if totals is None else list(map(operator.add, totals, parts))
        return HeldGradient(risk, *totals)

    def view(self, theta: Parameters, multipliers: Array) -> tuple[HeldGradient, View]:
        """Return what `gradient` does, and what is at each unit for each sample."""
        risk, totals, seen = 0.0, None, []
        for value, *parts, layers in self._over(theta, multipliers):
            risk += value
            totals = parts if totals is None else list(map(operator.add, totals, parts))
            seen.append(layers)
        return HeldGradient(risk, *totals), _joined(seen)

    def forward(self, theta: Parameters) -> tuple[float, Array, View]:
        """Return R_0, v_K and what is at each unit for each sample, without signals."""
        y = self.net.targets(theta, self.data, self.loss)

        def chunk(rows: slice, columns: Array) -> tuple:
            trace, held = self._steps(theta, columns, rows), self._within(rows, namespace(columns))
            value, _ = self._loss(trace[-1].o, y[:, rows], held)
            return value, self._values(trace, held, y[:, rows]), _layers(trace)

        parts = list(self.net.over(theta, self.data.x, chunk))
        values = sum(part[1] for part in parts)
        return sum(part[0] for part in parts), values, _joined([part[2] for part in parts])

    def values(self, theta: Parameters) -> Array:
        """Return v_K by a pass for the samples of the kinks alone."""
        xp = namespace(theta.vector)
        some = np.unique(np.array([kink.samples[0] for kink in self.kinks], dtype=int))
        y = xp.asarray(self.data.y[some].T, dtype=theta.vector.dtype)
        held = _among(self._members, some, xp)
        trace = steps(theta, self._columns(theta, some), held)
        return self._values(trace, held, y)

    def jacobian(self, theta: Parameters, of: Sequence[HeldKink] | None = None) -> Array:
        """Return the gradients of v_K in the parameters, (kinks, p).

        With `of` they are those of other kinks, at which no unit needs to be held.
        """
        net, xp, of = self.net, namespace(theta.vector), self.kinks if of is None else of
        rows = xp.zeros((len(of), net.size), dtype=theta.vector.dtype)
        standing, members = np.array([k.samples[0] for k in of], dtype=int), _by_layer(of)
        samples, top = np.unique(standing), max((k.layer for k in of), default=0)
        for part in _parts(len(samples), self._swept(theta)):
            some = samples[part]
            columns = self._columns(theta, some)
            trace = steps(theta, columns, _among(self._members, some, xp))[:top]
            asked = _among(members, some, xp)
            for step, below, moved in sweep(trace):
                self._take(rows, step.layer, asked, below, moved)
            if top > net.depth:  # the sweep has ended, these are the derivatives of o^L
                self._take(rows, top, asked, below, moved)
        return rows

    def hessian(self, theta: Parameters, multipliers: Array) -> Array:
        """Return the Hessian of L in the parameters, (p, p).

        It is J^T C J with the Jacobian J of the outputs and the curvature C of the loss, what
        sigma'' adds, and the terms that are linear in two layers: the derivative of
        W.gradient(delta z^l, o^{l-1}) in the parameters below. Parts of the samples, on all cores,
        take up to about four times the memory budget, and each core a matrix (p, p).
        """
        net, xp = self.net, namespace(theta.vector)
        y = net.targets(theta, self.data, self.loss)
        parts = even_slices(len(self.data), self._swept(theta))

        def chunk(rows: slice) -> Array:
            total = xp.zeros((net.size, net.size), dtype=theta.vector.dtype)
            for some in parts[rows]:
                columns = self._columns(theta, some)
                self._add_hessian(theta, columns, y[:, some], some, multipliers, total)
            return total

        return sum(in_order(chunk, even_slices(len(parts), -(-len(parts) // TOTALS)), xp))

    # The pieces

    def _columns(self, theta: Parameters, some: slice | np.ndarray) -> Array:
        """Return some of the samples as columns (n_0, samples)."""
        xp, x = namespace(theta.vector), self.data.x[some]
        return xp.ascontiguousarray(xp.asarray(x.reshape(len(x), -1), theta.vector.dtype).T)

    def _over(self, theta: Parameters, multipliers: Array) -> Iterator[tuple]:
        """Yield the losses / N, their gradient, v_K, the signals and the layers of chunks."""
        net, xp = self.net, namespace(theta.vector)
        y = net.targets(theta, self.data, self.loss)

        def chunk(rows: slice, columns: Array) -> tuple:
            trace, held = self._steps(theta, columns, rows), self._within(rows, xp)
            value, delta = self._loss(trace[-1].o, y[:, rows], held)
            part = net.zeros(like=theta.vector)
            signals, deltas, above = backward(trace, held, delta, multipliers, len(self.data))
            for step, dz in zip(trace, deltas, strict=True):
                if step.W.weights is not None:
                    weights = part.W[step.layer].weights
                    weights += step.W.gradient(dz, step.below)
                if step.b is not None:
                    biases = part.b[step.layer]
                    biases += step.W.by_map(dz).sum(axis=1)
            values = self._values(trace, held, y[:, rows])
            return value, part.vector, values, signals, _layers(trace, above)

        return net.over(theta, self.data.x, chunk)

    def _add_hessian(self, theta, columns, y, rows, multipliers, total) -> None:
        """Add the Hessian of some samples to `total`."""
        trace, held = self._steps(theta, columns, rows), self._within(rows, namespace(columns))
        _, delta = self._loss(trace[-1].o, y, held)
        _, deltas, above = backward(trace, held, delta, multipliers, len(self.data))
        moved: list[Moved] = []
        for (step, below, moved), dz, do in zip(sweep(trace), deltas, above, strict=True):
            for part in below if step.W.weights is not None else ():
                slot = self.net.slots[step.layer]
                block = products(step.W, slot.shape, dz, part)
                own, other = slot.weights, slice(part.start, part.stop)
                total[own, other] += block
                total[other, own] += block.T
            if step.activation is not None and not step.activation.piecewise_linear:
                bend, full = do * step.activation.second_derivative(step.z), jacobian(moved)
                _add_square(total, full, bend[:, :, None] * full)
        full = jacobian(moved)
        _add_square(total, full, self._curved(trace[-1].o, y, full))

    def _curved(self, o: Array, y: Array, moved: Array) -> Array:
        """Return the loss's Hessian / N times the derivatives (d_y, N, q) of the outputs."""
        if type(self.loss) is AbsoluteLoss:
            return 0 * moved
        xp, found = namespace(o), namespace(o).zeros_like(moved)
        for k in range(len(o)):
            unit = xp.zeros_like(o)
            unit[k] = 1 / len(self.data)
            column = self.loss.curvature(o, y, unit)
            for j in range(len(o)):
                if j == k or bool(column[j].any()):
                    found[j] += column[j][:, None] * moved[k]
        return found

    def _loss(self, o: Array, y: Array, held: dict[int, Members]) -> tuple[float, Array]:
        """Return the losses' sum / N and their derivative in o, both 0 at held outputs."""
        some = held.get(self.net.depth + 1)
        if some is not None:
            o = o.copy()
            o[some.units, some.columns] = y[some.units, some.columns]
        N = len(self.data)
        return float(self.loss.value(o, y).sum()) / N, self.loss.gradient(o, y) / N

    def _values(self, trace: list[HeldStep], held: dict[int, Members], y: Array) -> Array:
        """Return v_k of the kinks whose first member is among the samples, 0 for the others."""
        xp = namespace(y)
        values = xp.zeros(len(self.kinks), dtype=y.dtype)
        for layer, (units, columns, which, first, pairs) in held.items():
            units, columns, which = units[first], columns[first], which[first]
            if layer > len(trace):
                values[which] = (trace[-1].o - y)[units, columns]
            elif pairs is None:
                values[which] = trace[layer - 1].z[units, columns]
            else:
                (a, b), below = pairs[first].T, trace[layer - 1].below
                values[which] = below[a, columns] - below[b, columns]
        return values

    def _take(self, rows, layer, members, below, moved) -> None:
        """Write the gradients of v_k at one layer to `rows`; `moved` are those of z^l."""
        some = members.get(layer)
        if some is None:
            return
        first = some.first
        columns, which = some.columns[first], some.which[first]
        for part in moved if some.pairs is None else below:
            if some.pairs is None:
                found = part.at(some.units[first], columns)
            else:
                a, b = some.pairs[first].T
                found = part.at(a, columns) - part.at(b, columns)
            rows[which, part.start : part.stop] = found

    def _steps(self, theta: Parameters, columns: Array, rows: slice) -> list[HeldStep]:
        return steps(theta, columns, self._within(rows, namespace(columns)))

    def _within(self, rows: slice, xp) -> dict[int, Members]:
        """Return the members among consecutive samples."""
        found = {}
        for layer, some in self._members.items():
            inside = (some.columns >= rows.start) & (some.columns < rows.stop)
            if inside.any():
                found[layer] = _part(some, inside, some.columns[inside] - rows.start, xp)
        return found

    def _swept(self, theta: Parameters) -> int:
        """Return of how many samples the derivatives are held at once."""
        bytes_of_one = theta.vector.itemsize * widest(theta)
        return max(1, min(SWEPT, self.net.memory_budget) // bytes_of_one)


def _add_square(total: Array, moved: Array, weighted: Array) -> None:
    """Add sum over units and samples of moved^T weighted to `total`."""
    q = moved.shape[2]
    total[:q, :q] += moved.reshape(-1, q).T @ weighted.reshape(-1, q)


def _layers(trace: list[HeldStep], signals: Sequence[Array] = ()) -> View:
    choices = [getattr(step.W.inner, "choice", None) for step in trace]
    choices = [None if callable(choice) else choice for choice in choices]
    return View([step.z for step in trace], [step.o for step in trace], list(signals), choices)


def _joined(seen: list[View]) -> View:
    """Return the views of chunks of samples as one."""
    if len(seen) == 1:
        return seen[0]

    def joined(parts: tuple) -> Array | None:
        return None if parts[0] is None else namespace(parts[0]).concatenate(parts, axis=1)

    return View(
        *([joined(p) for p in zip(*lists, strict=True)] for lists in zip(*seen, strict=True))
    )


def _among(members: dict[int, Members], samples: np.ndarray, xp) -> dict[int, Members]:
    """Return the members among samples, which ascend."""
    found = {}
    for layer, some in members.items():
        inside = np.isin(some.columns, samples)
        if inside.any():
            columns = np.searchsorted(samples, some.columns[inside])
            found[layer] = _part(some, inside, columns, xp)
    return found


def _by_layer(kinks: Sequence[HeldKink]) -> dict[int, Members]:
    """Return the members of kinks by layer, on the host."""
    found: dict[int, list] = {}
    for number, kink in enumerate(kinks):
        count = len(kink.units)
        first = np.arange(count) == 0
        which = np.full(count, number)
        found.setdefault(kink.layer, []).append(
            (kink.units, kink.samples, which, first, kink.pairs)
        )
    return {
        layer: Members(
            *(
                None if part[0] is None else np.concatenate(part)
                for part in zip(*parts, strict=True)
            )
        )
        for layer, parts in found.items()
    }


def _part(some: Members, inside: np.ndarray, columns: np.ndarray, xp) -> Members:
    pairs = None if some.pairs is None else xp.asarray(some.pairs[inside])
    units, which, first = (
        xp.asarray(part[inside]) for part in (some.units, some.which, some.first)
    )
    return Members(units, xp.asarray(columns), which, first, pairs)


def _parts(count: int, size: int) -> list[slice]:
    return [slice(n, min(count, n + size)) for n in range(0, count, size)]
