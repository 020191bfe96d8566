"""Stationary points at kinks, found in floats: what the strict certificate starts from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import scipy.linalg

from ..datasets.samples import TrainingSet
from ..engine.equal_kinks import EqualKinks
from ..engine.held import Held, HeldKink
from ..engine.held_steps import HeldStep, Members, carried, steps
from ..engine.losses import AbsoluteLoss, Loss
from ..engine.network import check_at
from ..engine.parameters import Parameters
from ..layers import WeightMatrix
from .boxes import Box, first_order, members_of
from .enclosures import exact
from .free import Coordinates, choose_coordinates

NEAR = (1e-12, 1e-9, 1e-6)  # of the largest parameter of a layer: a move by that reaches a kink
STEPS = 12  # of Newton's method
FLAT = 1e-13  # of the largest eigenvalue: those below are 0 up to rounding
NEGATIVE = 1e-9  # of the largest eigenvalue
FAR = 1e-6  # relative to the parameters: larger steps must get smaller quickly
DROPPED = 40  # kinks that are given up, one by one, at most
LEVEL = 1e-4  # a move by all parameters that changes R by this share: more is not stationary


class Stationary(NamedTuple):
    """A point at which grad L = 0 in the free coordinates and v_K = 0, up to rounding.

    `inverse` is that of F' there, F = (grad L, v_K) in the free coordinates and the multipliers;
    `hessian` and `jacobian` are those in all coordinates.
    """

    held: Held
    theta: Parameters
    multipliers: np.ndarray
    coordinates: Coordinates
    inverse: np.ndarray
    hessian: np.ndarray
    jacobian: np.ndarray


def candidates(theta: Parameters, data: TrainingSet, loss: Loss) -> Iterator[list[HeldKink]]:
    """Yield sets of kinks that theta may be at, the nearest ones first."""
    check_at(theta, data, loss)
    before = None
    for share in NEAR:
        kinks = near_kinks(theta, data, loss, share)
        if before is None or len(kinks) > before:
            yield kinks
        before = len(kinks)


def find_stationary(
    theta: Parameters, data: TrainingSet, loss: Loss, kinks: Sequence[HeldKink], fixed: bool
) -> Stationary | str:
    """Return the stationary point near theta at these kinks, or why there is none, in words.

    Unless they are `fixed` those are given up, one by one, whose multiplier is not strictly inside
    its bounds.
    """
    check_at(theta, data, loss)
    kinks = list(kinks)
    for _ in range(DROPPED):
        if len(kinks) > theta.net.size:
            return f"more kinks than parameters, {len(kinks)} and {theta.net.size}"
        held = Held(theta.net, data, loss, kinks)
        found = ("" if fixed else _slope(held, theta)) or _newton(held, theta)
        if isinstance(found, str):
            return found
        slack = slacks(found)
        if fixed or not len(slack) or slack.min() > 0:
            return found
        del kinks[int(slack.argmin())]
    return "no set of kinks was found with all multipliers inside their bounds"


def near_kinks(theta: Parameters, data: TrainingSet, loss: Loss, share: float) -> list[HeldKink]:
    """Return the kinks that theta is near, equal ones as one, from the first layer on.

    Those of units, ties of two entries in windows of max poolings, and targets that are met by the
    outputs of the absolute loss.
    """
    check_at(theta, data, loss)
    net, kinks = theta.net, []
    columns = np.ascontiguousarray(data.x.reshape(len(data), -1).T, dtype=np.float64)
    layers = sorted(net.bent_layers + net.max_layers)
    for layer in (*layers, *([net.depth + 1] * isinstance(loss, AbsoluteLoss))):
        held = Held(net, data, loss, kinks)
        members = members_of(held, slice(None))
        trace = steps(theta, columns, members)[:layer]
        reach = _reach(trace[: layer - 1], members, columns)
        if layer in net.max_layers:
            equal = EqualKinks(theta, data, held)
            found = _near_ties(trace[-1], theta.W[layer], reach, equal, share)
        else:
            top = layer > net.depth
            z, reach = (trace[-1].o - data.y.T, reach) if top else _own(trace[-1], reach)
            near = np.argwhere((abs(z) <= share * reach) & (reach > 0))
            equal = EqualKinks(theta, data, held) if len(near) else None
            found = _near_units(near, layer, equal)
        known = np.zeros((math.prod(net.shapes[min(layer, net.depth)]), len(data)), dtype=bool)
        for unit, sample, find in found:
            if not known[unit, sample]:
                kink = find()
                known[unit, sample] = True
                if kink is not None:
                    known[kink.units, kink.samples] = True
                    kinks.append(kink)
            if len(kinks) > net.size:  # their gradients are dependent
                return kinks
    return kinks


Near = Iterator[tuple[int, int, Callable[[], HeldKink | None]]]


def _near_units(near: np.ndarray, layer: int, equal: EqualKinks | None) -> Near:
    """Yield unit and sample of the places where units are near, and their kink."""
    for unit, sample in near:
        yield unit, sample, partial(equal.kink, layer, int(unit), int(sample))


def _near_ties(
    step: HeldStep, matrix: WeightMatrix, reach: np.ndarray, equal: EqualKinks, share: float
) -> Near:
    """Yield window and sample where the two largest entries are about equal; their tie.

    Among the entries that are not 0 and not the same function of theta as the largest one. `matrix`
    is that of the max pooling, `reach` that of the outputs below.
    """
    W, below, read = matrix.inner, step.below, matrix.read
    values = W.windows(below[read], -math.inf)
    tokens = W.windows(equal.tokens[step.layer - 1][read])
    rows = W.windows(np.arange(len(below))[read, None], -1)[..., 0]
    reach = W.windows(reach[read])
    best = values.argmax(axis=0)[None]
    largest = np.take_along_axis(values, best, axis=0)
    apart = (tokens != np.take_along_axis(tokens, best, axis=0)) & (values != 0) & (largest != 0)
    gaps = np.where(apart, largest - values, math.inf)
    other = gaps.argmin(axis=0)[None]
    both = sum(np.take_along_axis(reach, entry, axis=0) for entry in (best, other))
    near = np.take_along_axis(gaps, other, axis=0) <= share * both
    for unit, sample in np.argwhere(near[0]):
        a, b = (int(rows[entry[0, unit, sample], unit]) for entry in (best, other))
        yield unit, sample, partial(equal.tie, step.layer, matrix, below, a, b, int(sample))


def _reach(trace: list[HeldStep], members: dict[int, Members], below: np.ndarray) -> np.ndarray:
    """Return by how much o^l moves if the nearest weights and biases do by as much as they are.

    `below` are the inputs, which do not move.
    """
    reach = np.zeros_like(below)
    for step in trace:
        reach = _reached(step, reach)
        if step.slopes is not None and step.activation.piecewise_linear:
            moves, some = step.slopes != 0, members.get(step.layer)
            if some is not None:
                moves[some.units, some.columns] = True
            reach = reach * moves
    return reach


def _own(step: HeldStep, reach: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return z^l without what a block keeps, and its reach, for that of the outputs below."""
    own = slice(step.W.rows)
    return step.z[own], _reached(step, reach)[own]


def _reached(step: HeldStep, reach: np.ndarray) -> np.ndarray:
    """Return the reach of z^l for that of the outputs below."""
    W, b = step.W, step.b
    if W.weights is None:
        return W @ reach
    largest = max(float(abs(part).max()) for part in (W.weights, b) if part is not None)
    sizes = largest * (W.support_sums(abs(step.below)) + (b is not None))
    found = np.zeros(step.z.shape)
    W.by_map(found).reshape(W.maps_out, W.positions_out, -1)[...] = sizes
    return carried(W, reach, found)


def members_are_equal(held: Held, theta: Parameters) -> bool:
    """Return whether v is the same function of the parameters near theta for all members of each
    kink, with the pieces that units have at theta.
    """
    equal = EqualKinks(theta, held.data, held)
    for kink in held.kinks:
        level = min(kink.layer, held.net.depth)
        if (kink.units // held.net.positions(level) != kink.map).any():
            return False
        if kink.pairs is not None:
            tokens = equal.tokens[kink.layer - 1][kink.pairs.T, kink.samples]
            if (tokens != tokens[:, :1]).any():
                return False
        elif len(kink.units) > 1:
            same = equal.kink(kink.layer, int(kink.units[0]), int(kink.samples[0]))
            found = set(zip(same.units.tolist(), same.samples.tolist(), strict=True))
            if not found.issuperset(zip(kink.units.tolist(), kink.samples.tolist(), strict=True)):
                return False
    return True


def slacks(at: Stationary) -> np.ndarray:
    """Return how far the multipliers are inside their bounds, relative to the signals; (kinks,)."""
    box = Box(at.theta, at.theta.net.zeros(), exact(at.multipliers))
    signals = first_order(at.held, box).signals.middle
    low, high = at.held.bounds(signals)
    room = np.minimum(at.multipliers - low, high - at.multipliers)
    return np.where(signals > 0, room / np.maximum(abs(signals), 1e-300), -np.inf)


def system(hessian: np.ndarray, jacobian: np.ndarray) -> np.ndarray:
    """Return [[H, Z^T], [Z, 0]]."""
    K = len(jacobian)
    return np.block([[hessian, jacobian.T], [jacobian, np.zeros((K, K))]])


def _flat(hessian: np.ndarray, jacobian: np.ndarray) -> str:
    """Return in words where the Hessian is 0 on the tangent space, up to rounding, or ""."""
    basis = scipy.linalg.null_space(jacobian) if len(jacobian) else np.eye(len(hessian))
    values = np.linalg.eigvalsh(basis.T @ hessian @ basis)
    largest = abs(values).max(initial=0.0)
    flat = int((abs(values) <= FLAT * largest).sum())
    if not flat:
        return ""
    found = f"{flat} flat direction{'s' * (flat > 1)} that no symmetry explains"
    if values[0] < -NEGATIVE * largest:
        found += f", and an eigenvalue of the Hessian is {values[0]:.2g}"
    return found


def _slope(held: Held, theta: Parameters) -> str:
    """Return in words how large the gradient is for any multipliers, or "" where it is about 0."""
    seen = held.gradient(theta, np.zeros(len(held.kinks)))
    left = seen.gradient
    if held.kinks:
        Z = held.jacobian(theta).T
        left = left - Z @ np.linalg.lstsq(Z, left, rcond=None)[0]
    if abs(left).max() * abs(theta.vector).max() <= LEVEL * seen.risk:
        return ""
    return f"not stationary, the gradient is up to {abs(left).max():.2g}: settle it first"


def _newton(held: Held, theta: Parameters, rounds: int = 2) -> Stationary | str:
    """Return what Newton's method converges to from theta, or why it does not, in words."""
    theta, K = theta.copy(), len(held.kinks)
    coordinates = choose_coordinates(held, theta, held.data)
    free = coordinates.free
    multipliers = np.zeros(K)
    if K:
        g = held.gradient(theta, multipliers).gradient[free]
        multipliers = np.linalg.lstsq(held.jacobian(theta)[:, free].T, -g, rcond=None)[0]
    last = np.inf
    for n in range(STEPS):
        seen = held.gradient(theta, multipliers)
        H, Z = held.hessian(theta, multipliers), held.jacobian(theta)
        F = np.concatenate([seen.gradient[free], seen.values])
        flat = _flat(H[np.ix_(free, free)], Z[:, free]) if n == 0 else ""
        if flat:
            return flat
        try:
            inverse = np.linalg.inv(system(H[np.ix_(free, free)], Z[:, free]))
        except np.linalg.LinAlgError:
            return "the gradients of the kinks are dependent"
        step = inverse @ F
        size = float(abs(step[: len(free)]).max(initial=0.0))
        if not np.isfinite(step).all():
            return "the gradients of the kinks are dependent"
        theta.vector[free] -= step[: len(free)]
        multipliers = multipliers - step[len(free) :]
        if size <= 1e-15 * (1 + float(abs(theta.vector).max())) or (
            size < 1e-9 and size > last / 4
        ):
            again = choose_coordinates(held, theta, held.data)
            if not np.array_equal(again.free, free):  # patterns are others than where it began
                return _newton(held, theta, rounds - 1) if rounds else "patterns do not settle"
            return Stationary(held, theta, multipliers, again, inverse, H, Z)
        if n > 2 and size > last / 2 and size > FAR * (1 + float(abs(theta.vector).max())):
            break
        last = size
    return f"no stationary point was found near: Newton's last step is {size:.1e}"
