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
from ..errors import TOO_LARGE, AssumptionError
from ..layers import WeightMatrix
from .boxes import Box, first_order, members_of
from .doubled_gradient import doubled_gradient
from .enclosures import exact
from .free import Coordinates, choose_coordinates
from .sizes import balance, parameter_sizes, powers_of_two

NEAR = (1e-12, 1e-9, 1e-6)  # of the sizes of parameters: a move by that reaches a kink
STEPS = 12  # of Newton's method
REFINED = 4  # of these with gradients of doubled precision, at most
FLAT = 1e-13  # of the largest eigenvalue: those below are 0 up to rounding
NEGATIVE = 1e-9  # of the largest eigenvalue
FAR = 1e-6  # of the sizes of parameters: larger steps must get smaller quickly
NEAREST = 1e-15  # of these: smaller steps are rounding errors
SMALL = 1e-9  # of these: where such steps don't get smaller any more they are rounding errors
DROPPED = 40  # kinks that are given up, one by one, at most
LEVEL = 1e-4  # a move by the size of a parameter that changes R by this share: not stationary


class Stationary(NamedTuple):
    """A point at which grad L = 0 in the free coordinates and v_K = 0, up to rounding.

    `inverse` is that of F' there, F = (grad L, v_K) in the free coordinates and the multipliers;
    `scale` are powers of two for these: with x = scale y rows and columns of F' are about 1 in the
    units of y. `hessian` and `jacobian` are those in all coordinates.
    """

    held: Held
    theta: Parameters
    multipliers: np.ndarray
    coordinates: Coordinates
    inverse: np.ndarray
    scale: np.ndarray
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
    columns = np.ascontiguousarray(data.x.reshape(len(data), -1).T, dtype=np.float64)
    sizes = parameter_sizes(theta, steps(theta, columns)).vector
    for _ in range(DROPPED):
        if len(kinks) > theta.net.size:
            return f"more kinks than parameters, {len(kinks)} and {theta.net.size}"
        held = Held(theta.net, data, loss, kinks)
        found = ("" if fixed else _slope(held, theta, sizes)) or _newton(held, theta)
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
    sizes = parameter_sizes(theta, steps(theta, columns))
    layers = sorted(net.bent_layers + net.max_layers)
    for layer in (*layers, *([net.depth + 1] * isinstance(loss, AbsoluteLoss))):
        held = Held(net, data, loss, kinks)
        members = members_of(held, slice(None))
        trace = steps(theta, columns, members)[:layer]
        reach = _reach(trace[: layer - 1], members, columns, sizes)
        if layer in net.max_layers:
            equal = EqualKinks(theta, data, held)
            found = _near_ties(trace[-1], theta.W[layer], reach, equal, share)
        else:
            top = layer > net.depth
            z, reach = (trace[-1].o - data.y.T, reach) if top else _own(trace[-1], reach, sizes)
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


def _reach(
    trace: list[HeldStep], members: dict[int, Members], below: np.ndarray, sizes: Parameters
) -> np.ndarray:
    """Return by how much o^l moves if the nearest weights and biases move by their sizes.

    `below` are the inputs, which do not move.
    """
    reach = np.zeros_like(below)
    for step in trace:
        reach = _reached(step, reach, sizes)
        if step.slopes is not None and step.activation.piecewise_linear:
            moves, some = step.slopes != 0, members.get(step.layer)
            if some is not None:
                moves[some.units, some.columns] = True
            reach = reach * moves
    return reach


def _own(step: HeldStep, reach: np.ndarray, sizes: Parameters) -> tuple[np.ndarray, np.ndarray]:
    """Return z^l without what a block keeps, and its reach, for that of the outputs below."""
    own = slice(step.W.rows)
    return step.z[own], _reached(step, reach, sizes)[own]


def _reached(step: HeldStep, reach: np.ndarray, sizes: Parameters) -> np.ndarray:
    """Return the reach of z^l for that of the outputs below."""
    W = step.W
    if W.weights is None:
        return W @ reach
    moved = sizes.W[step.layer].trained @ abs(step.below)
    if step.b is not None:
        moved = moved + W.spread(sizes.b[step.layer])[:, None]
    return carried(W, reach, moved)


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


def tangent_basis(jacobian: np.ndarray) -> np.ndarray:
    """Return orthonormal columns d with grad v_K . d = 0, (n, n - kinks), none if there are not."""
    K, n = jacobian.shape
    if not K:
        return np.eye(n)
    return scipy.linalg.qr(jacobian.T)[0][:, K:]


def _flat(hessian: np.ndarray, jacobian: np.ndarray) -> str:
    """Return in words where the Hessian is 0 on the tangent space, up to rounding, or ""."""
    basis = tangent_basis(jacobian)
    values = np.linalg.eigvalsh(basis.T @ hessian @ basis)
    largest = abs(values).max(initial=0.0)
    flat = int((abs(values) <= FLAT * largest).sum())
    if not flat:
        return ""
    found = flat_words(flat)
    if values[0] < -NEGATIVE * largest:
        found += (
            f", and an eigenvalue of the Hessian is {values[0] / largest:.2g} times the largest"
        )
    return found


def flat_words(flat: int) -> str:
    """Return in words that the Hessian is 0 in so many directions, up to rounding."""
    return f"{flat} flat direction{'s' * (flat > 1)} that no symmetry explains"


def _slope(held: Held, theta: Parameters, sizes: np.ndarray) -> str:
    """Return in words how large the gradient is for any multipliers, or "" where it is about 0."""
    seen = held.gradient(theta, np.zeros(len(held.kinks)))
    left = seen.gradient
    if held.kinks:
        left = left + held.jacobian(theta).T @ _multipliers(held, theta, sizes, left)
    if not (abs(left) * sizes).max() > LEVEL * seen.risk:
        return ""
    return f"not stationary, the gradient is up to {abs(left).max():.2g}: settle it first"


def _multipliers(
    held: Held, theta: Parameters, sizes: np.ndarray, gradient: np.ndarray
) -> np.ndarray:
    """Return the multipliers for which the gradient of L, times sizes, is least; (kinks,)."""
    Z = held.jacobian(theta) * sizes
    lengths = powers_of_two(abs(Z).max(axis=1))
    if not np.isfinite(Z).all():
        raise AssumptionError(TOO_LARGE)
    return np.linalg.lstsq((Z / lengths[:, None]).T, -gradient * sizes, rcond=None)[0] / lengths


def _scales(hessian: np.ndarray, jacobian: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return powers of two d for which d_i [[H, Z^T], [Z, 0]]_ij d_j is balanced; see `balance`."""
    H, Z = hessian * sizes * sizes[:, None], jacobian * sizes
    level = np.sqrt(powers_of_two(abs(H).max(initial=0.0)))
    lengths = powers_of_two(abs(Z).max(axis=1, initial=0.0))
    first = np.concatenate([sizes / level, level / lengths])
    A = system(hessian, jacobian) * first * first[:, None]
    return powers_of_two(first * balance(A))


def _newton(held: Held, theta: Parameters, rounds: int = 2) -> Stationary | str:
    """Return what Newton's method converges to from theta, or why it does not, in words."""
    theta, K = theta.copy(), len(held.kinks)
    coordinates = choose_coordinates(held, theta, held.data)
    free, sizes = coordinates.free, coordinates.sizes
    multipliers = np.zeros(K)
    if K:
        g = held.gradient(theta, multipliers).gradient
        only = np.where(np.isin(np.arange(len(g)), free), sizes, 0.0)
        multipliers = _multipliers(held, theta, only, g)
    last = np.inf
    for n in range(STEPS):
        seen = held.gradient(theta, multipliers)
        H, Z = held.hessian(theta, multipliers), held.jacobian(theta)
        F = np.concatenate([seen.gradient[free], seen.values])
        if not (np.isfinite(F).all() and np.isfinite(H).all()):
            return TOO_LARGE
        within = H[np.ix_(free, free)], Z[:, free]
        if n == 0:
            scale = _scales(*within, sizes[free])
            d = scale[: len(free)]
            flat = _flat(within[0] * d * d[:, None], within[1] * d)
            if flat:
                return flat
        try:
            inverse = np.linalg.inv(system(*within) * scale * scale[:, None])
        except np.linalg.LinAlgError:
            return "the gradients of the kinks are dependent"
        inverse = inverse * scale * scale[:, None]
        step = inverse @ F
        size = float((abs(step[: len(free)]) / sizes[free]).max(initial=0.0))
        if not np.isfinite(step).all():
            return "the gradients of the kinks are dependent"
        theta.vector[free] -= step[: len(free)]
        multipliers = multipliers - step[len(free) :]
        if size <= NEAREST or (size < SMALL and size > last / 4):
            theta, multipliers = _refined(held, theta, multipliers, free, inverse)
            again = choose_coordinates(held, theta, held.data)
            if not np.array_equal(again.free, free):  # patterns are others than where it began
                return _newton(held, theta, rounds - 1) if rounds else "patterns do not settle"
            return Stationary(held, theta, multipliers, again, inverse, scale, H, Z)
        if n > 2 and size > last / 2 and size > FAR:
            break
        last = size
    return (
        f"no stationary point was found near: Newton's last step is {size:.1e} of the sizes of "
        "parameters"
    )


def _refined(
    held: Held, theta: Parameters, multipliers: np.ndarray, free: np.ndarray, inverse: np.ndarray
) -> tuple[Parameters, np.ndarray]:
    """Return the point and multipliers after steps with gradients of doubled precision.

    Along small eigenvalues rounding errors of the gradient count most.
    """
    least = np.inf
    for _ in range(REFINED):
        found = doubled_gradient(held, theta, multipliers)
        if found is None:
            break
        step = inverse @ np.concatenate([found[0].middle[free], found[1].middle])
        size = float(abs(step[: len(free)]).max(initial=0.0))
        if not size < least / 2:
            break
        least, theta, multipliers = size, theta.copy(), multipliers - step[len(free) :]
        theta.vector[free] -= step[: len(free)]
    return theta, multipliers
