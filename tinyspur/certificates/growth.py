"""The growth of the risk around a stationary point at kinks: what the strict certificate proves.

theta* is a point with grad L = 0 in the free coordinates and v_K = 0, L = R_0 + sum_k lambda_k v_k,
where held units give 0. B is the box of all theta' within rho of theta*, in all coordinates, and of
what is passed on the way.

*Lemma.* R(theta') >= R(theta*) for all theta' in B, if

1. in B all units but those of K keep their pieces, whatever the held ones give: a_k between
   sigma of the least and of the largest y_k in B;
2. at all such points alpha C_k < lambda_k < C_k, by m_k at least, with C_k the derivative of L in
   a_k (for a kink of the loss alpha is -1 and C_k is the number of its members / N);
3. H + sum_k rho_k z_k z_k^T is positive definite for all H and z_k in the enclosures over B of the
   Hessian of L and of grad v_k in the free coordinates, for some rho_k >= 0 with rho_k M_k / 2 <=
   mu_k (see `penalised`): M_k is a bound of |v_k|, and sum_k mu_k |v_k| <= sum_k m_k |y_k| (see
   `shares`);
4. for each choice f' of the frozen coordinates in B there is a point m(f') like theta* in B, with
   R(m(f')) = R(theta*): see `free`.

Proof. Let z_k(theta', a) be the pre-activations when held units give a, r(theta', a) the rest of
the risk, L(theta', a) = r + sum_k lambda_k z_k, and y_k, a_k = sigma(y_k) those of the network
itself. Then R(theta') = L(theta', a) - sum_k lambda_k y_k, and L(theta', a) - L(theta', 0) = sum_k
D_k a_k, with the means D_k of dL/da_k on the way from 0 to a: as C_k in 2. So R(theta') -
L(theta') = sum_k D_k sigma(y_k) - lambda_k y_k >= sum_k m_k |y_k| >= sum_k mu_k |v_k|. This holds
for the multipliers of m = m(f'), f' the frozen coordinates of theta'. There v_K = 0 and grad L = 0
in the free coordinates, so with d = theta' - m, which is 0 in the others, L(theta') - L(m) = d.Hd /
2 > -sum_k rho_k (z_k.d)^2 / 2 = -sum_k rho_k v_k^2 / 2 >= -sum_k mu_k |v_k| for d != 0, where H is
a mean of Hessians on the way and z_k one of gradients, v_k = z_k.d. Hence R(theta') >= L(m) = R(m)
= R(theta*).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import scipy.linalg

from ..engine.parameters import Parameters
from ..layers import SelectionMatrix
from .box_hessians import Second, second_order
from .boxes import Box, First, first_order, forward, members_of, signal_bounds
from .enclosed_algebra import positive_definite, spectral_bound
from .enclosures import Enclosure, exact
from .free import Flow
from .stationary import Stationary
from .streams import streams

ROOM = 1.5  # times what x moves by to first order is what it may
TRIES = 16  # of a radius
CLOSE = 1.3  # times the radius found is no longer one
FLOOR = 1e-3  # of the largest radius: none is smaller
ROUNDS = 20  # of what the errors of the Hessian add to the radii
FAR = 1e3  # times the first step: what grows beyond is not expected to converge
LARGEST = 1e18  # factor of the squares of v_k that is tried
SMALL = 1 + 1e-9  # for rounding errors of bounds that are computed in few steps


class Proved(NamedTuple):
    """A box around `at` within which there is exactly one stationary point theta*.

    With the radii of the free coordinates and of the multipliers, what is enclosed over it, and
    which of the coordinates that move are free.
    """

    at: Stationary
    free_radius: np.ndarray
    multiplier_radius: np.ndarray
    first: First
    second: Second


def box_around(at: Stationary, free: np.ndarray, others: float, multipliers: np.ndarray) -> Box:
    """Return the box with these radii of the free coordinates, of all others, and of lambda."""
    radii = np.full(at.theta.net.size, others)
    radii[at.coordinates.free] = free
    return Box(at.theta, Parameters(at.theta.net, radii), Enclosure(at.multipliers, multipliers))


def exists(at: Stationary) -> Proved | str:
    """Prove that exactly one stationary point is near (Krawczyk), or say why not."""
    n, K = len(at.coordinates.free), len(at.held.kinks)
    thin = box_around(at, np.zeros(n), 0.0, np.zeros(K))
    seen = first_order(at.held, thin)
    if not seen.kept:
        return "a unit is so near its kink that rounding errors may change its pattern"
    F = _joined(seen.gradient[at.coordinates.free], seen.values)
    step = (exact(at.inverse) @ F).magnitude
    radii = 2 * _not_much_smaller(step, n)
    for _ in range(4):
        box = box_around(at, radii[:n], 0.0, radii[n:])
        second = second_order(at.held, box, at.coordinates.moving)
        E = _error(at, second).magnitude
        if np.isfinite(E).all() and ((step + E @ radii) * SMALL < radii).all():
            first = first_order(at.held, box)
            if not first.kept:
                return (
                    f"an exact stationary point is within {radii[:n].max(initial=0):.1e}, but a "
                    "unit may change its pattern on the way to it"
                )
            return Proved(at, radii[:n], radii[n:], first, second)
        needed = step
        for _ in range(ROUNDS):
            needed = step + E @ needed
        if not np.isfinite(needed).all() or needed.max() > FAR * step.max():
            needed = 4 * radii
        radii = 2 * _not_much_smaller(needed, n)
    return (
        "no exact stationary point was shown to be near: the Hessian is so close to singular that "
        f"rounding errors of up to {F.magnitude.max():.1e} of the gradient may move it by "
        f"{step.max():.1e}"
    )


def _not_much_smaller(sizes: np.ndarray, n: int) -> np.ndarray:
    """Return sizes, of n coordinates and of multipliers, none much smaller than the largest."""
    parts = [np.maximum(part, FLOOR * part.max(initial=0)) for part in (sizes[:n], sizes[n:])]
    return np.concatenate(parts)


def split(at: Stationary, second: Second) -> tuple[Enclosure, Enclosure]:
    """Return the parts of the Hessian and of grad v_K in the free coordinates."""
    free = np.flatnonzero(np.isin(at.coordinates.moving, at.coordinates.free))
    return second.hessian[np.ix_(free, free)], second.jacobian[:, free]


def _error(at: Stationary, second: Second) -> Enclosure:
    """Return I - C F' over a box."""
    H, Z = split(at, second)
    K = Z.shape[0]
    parts = [
        np.block([[getattr(H, name), getattr(Z, name).T], [getattr(Z, name), np.zeros((K, K))]])
        for name in ("middle", "radius")
    ]
    return exact(np.eye(len(at.inverse))) - exact(at.inverse) @ Enclosure(*parts)


# Multipliers and the kinks below


def rooms(at: Stationary, signals: Enclosure, multipliers: Enclosure) -> np.ndarray:
    """Return lower bounds m_k of how far the multipliers are inside their bounds, (kinks,)."""
    slopes = np.array([at.held.slope(kink) for kink in at.held.kinks])
    inside = (signals - multipliers).low
    return np.minimum(inside, (multipliers - signals * slopes).low)


def multiplier_rates(at: Stationary, box: Box, flow: Flow) -> np.ndarray:
    """Return bounds of d lambda_k where frozen coordinates move by 1 at most, (kinks,).

    A field that adds map b to map a changes the multipliers of kinks of b by delta z_a there.
    """
    held, coordinates = at.held, at.coordinates
    rates, signals, known = np.zeros(len(held.kinks)), None, len(coordinates.generators)
    levels = {stream.writers[0]: stream.levels for stream in streams(held.net)}
    for row, rate in zip(coordinates.rows, flow.fields, strict=True):
        mixes = coordinates.generators[row].mixes if row < known else None
        for n, kink in enumerate(held.kinks):
            if mixes is None or kink.map != mixes[2] or kink.layer not in levels[mixes[0]]:
                continue
            size = float(box.multipliers.magnitude[n])
            if mixes[1] != mixes[2]:
                signals = signal_bounds(held, box) if signals is None else signals
                maps, P = held.net.shapes[kink.layer][0], held.net.positions(kink.layer)
                own = signals[kink.layer][: maps * P].reshape(maps, P, -1)
                size = float(own[mixes[1]][kink.units % P, kink.samples].sum())
            rates[n] += rate * size
    return rates * SMALL


def couplings(at: Stationary, box: Box) -> np.ndarray:
    """Return bounds of how much y_k moves with what a held unit below it gives, (kinks, kinks).

    For the first member of k, summed over the members of each other kink.
    """
    held, kinks = at.held, at.held.kinks
    found = np.zeros((len(kinks), len(kinks)))
    lowest: dict[int, int] = {}
    for kink in kinks:
        for sample in kink.samples:
            lowest[sample] = min(lowest.get(sample, kink.layer), kink.layer)
    upper = [n for n, kink in enumerate(kinks) if lowest[kink.samples[0]] < kink.layer]
    for n in upper:
        kink, sample = kinks[n], int(kinks[n].samples[0])
        x = held.data.x[sample].reshape(-1, 1).astype(np.float64)
        members = members_of(held, np.array([sample]))
        trace, _ = forward(held, box, np.ascontiguousarray(x), members)
        layer = kink.layer - 1
        if kink.pairs is not None:
            moved = np.zeros((trace[layer].W.shape[1], 1))
            moved[kink.pairs[0]] = 1
        else:
            moved = np.zeros(trace[min(layer, held.net.depth - 1)].z.shape)
            moved[kink.units[0]] = 1
            moved = moved if layer == held.net.depth else _down(trace[layer], moved)
        for step in reversed(trace[:layer]):
            some = members.get(step.layer)
            if some is not None:
                np.add.at(found[n], some.which, moved[some.units, 0])
                if some.pairs is None:  # a held pooling still hands on its entry b
                    moved[some.units] = 0
            if step.activation is not None:
                slopes = step.slopes
                moved = moved * (slopes if isinstance(slopes, np.ndarray) else slopes.magnitude)
            moved = _down(step, moved)
    return found * SMALL


def _down(step: object, moved: np.ndarray) -> np.ndarray:
    """Return |W|^T moved, for all W in a box."""
    if isinstance(step.W, SelectionMatrix) or step.R is None:
        return (step.W.T @ moved) * SMALL
    return (abs(step.W).T @ moved + step.R.T @ moved) * SMALL


def shares(at: Stationary, room: np.ndarray, coupled: np.ndarray) -> np.ndarray:
    """Return mu with sum_k mu_k |v_k| <= sum_k m_k |y_k| where |v - y|_k <= sum_j c_kj |y_j|.

    That is mu + c^T mu <= m: from the highest layer down each kink takes what leaves the ones below
    at least half of what they had.
    """
    layers = np.array([kink.layer for kink in at.held.kinks])
    left, mu = room.copy(), np.zeros(len(room))
    for layer in sorted(set(layers), reverse=True):
        here = np.where(layers == layer, left, 0.0)
        taken = coupled.T @ here
        below = taken > 0
        share = min(1.0, float((left[below] / (2 * taken[below])).min())) if below.any() else 1.0
        mu += share * here
        left = left - share * taken
    return mu / SMALL


# The box


class Growth:
    """Whether the lemma holds for a rho, around a stationary point that is proved to exist."""

    def __init__(self, proved: Proved):
        self.proved, at = proved, proved.at
        self.at = at
        H, Z = split(at, proved.second)
        self.H, self.Z = H.middle, Z.middle
        thin = box_around(at, 0 * proved.free_radius, 0.0, 0 * proved.multiplier_radius)
        self.flow = at.coordinates.flow(at.held, thin)
        self.tangents = self._tangents()
        self.tangent = float(self.tangents.min(initial=np.inf))
        self.weights, self.obstacle = None, ""

    def _tangents(self) -> np.ndarray:
        """Return the eigenvalues of the Hessian on the tangent space, in floats."""
        basis = scipy.linalg.null_space(self.Z) if len(self.Z) else np.eye(len(self.H))
        return np.linalg.eigvalsh(basis.T @ self.H @ basis)

    def choose_weights(self, mu: np.ndarray, share: float = 0.5) -> np.ndarray:
        """Return rho_k in proportion to mu_k / |grad v_k|, for which the matrix is definite."""
        unit = mu / np.maximum(abs(self.Z).sum(axis=1), 1e-300)
        goal, factor = share * self.tangent, 1e-6
        if not len(self.tangents):
            goal, factor = 1e-3 * float(abs(self.H).max(initial=0)), 1.0
        H, square = self.H - goal * np.eye(len(self.H)), (self.Z.T * (unit / 2)) @ self.Z
        while factor < LARGEST and not _factored(H + factor * square):
            factor *= 16
        for _ in range(3):
            if _factored(H + factor / 2 * square):
                factor /= 2
        return factor * unit

    def holds(self, rho: float) -> bool:
        """Return whether the lemma is shown for all parameters within rho of theta*."""
        at, proved = self.at, self.proved
        self.obstacle = "the frozen coordinates do not follow from the others beyond"
        if self.flow is None:
            return False
        reach = np.maximum(ROOM * self.flow.free, 1.0) * rho
        thin = box_around(at, reach, rho, proved.multiplier_radius)
        more = ROOM * multiplier_rates(at, thin, self.flow) * rho
        box = box_around(
            at, (reach + proved.free_radius) * SMALL, rho, (more + proved.multiplier_radius) * SMALL
        )
        first = first_order(at.held, box, released=True)
        room = rooms(at, first.signals, box.multipliers)
        if not first.kept:
            self.obstacle = "a unit or a max pooling may change its piece beyond"
            return False
        if not (room > 0).all():
            worst = at.held.kinks[int(room.argmin())]
            self.obstacle = f"a multiplier may leave its bounds beyond, of {worst}"
            return False
        flow = at.coordinates.flow(at.held, box)
        if flow is None or not (flow.free * rho <= reach).all():
            return False
        if not (multiplier_rates(at, box, flow) * rho <= more).all():
            return False
        second = second_order(at.held, box, at.coordinates.free)
        mu = shares(at, room, couplings(at, box))
        H, Z = second.hessian, second.jacobian
        apart = rho + proved.free_radius  # how far theta' is from m in each coordinate
        if len(at.coordinates.frozen):
            apart = apart + flow.free * rho
        largest = Z.magnitude @ apart * SMALL
        self.obstacle = "the Hessian may have an eigenvalue of 0 beyond"
        weights = np.minimum(self.weights, 2 * mu / np.maximum(largest, 1e-300)) / SMALL
        if not len(H):
            return True
        matrix = penalised(H, Z, weights)
        least = float(np.linalg.eigvalsh(matrix.middle)[0])
        self.expected = 0.8 * rho * least / spectral_bound(matrix.radius)
        return positive_definite(matrix)

    def radius(self, start: float) -> float:
        """Return the largest rho found for which the lemma holds, 0 if none.

        Radii of enclosures grow with rho about linearly, which gives a guess where the matrix is
        the obstacle.
        """
        rho, low, high = start, 0.0, math.inf
        for _ in range(TRIES):
            self.expected = 0.0
            if self.holds(rho):
                low = rho
            else:
                high = rho
            if high < CLOSE * low:
                break
            if low * CLOSE < self.expected < high / CLOSE:
                rho = self.expected
            elif low and high < math.inf:
                rho = math.sqrt(low * high)
            else:
                rho = 8 * low if low else high / 8
        return low


def _factored(A: np.ndarray) -> bool:
    """Return whether A has a Cholesky factor, in floats."""
    try:
        np.linalg.cholesky(A)
    except np.linalg.LinAlgError:
        return False
    return True


def penalised(H: Enclosure, Z: Enclosure, weights: np.ndarray) -> Enclosure:
    """Return an enclosure of matrices no larger than H + Z^T diag(weights) Z.

    For Z = M + E with |E| <= R it is (M + E)^T W (M + E) >= M^T W M / 2 - E^T W E, by Cauchy's
    inequality. The last term is of second order in the size of a box, which the enclosure of the
    product is not.
    """
    M = exact(Z.middle)
    found = H + (M.T * (weights / 2)) @ M
    return found.wider((Z.radius.T * weights) @ Z.radius * SMALL)


def _joined(a: Enclosure, b: Enclosure) -> Enclosure:
    return Enclosure(np.concatenate([a.middle, b.middle]), np.concatenate([a.radius, b.radius]))
