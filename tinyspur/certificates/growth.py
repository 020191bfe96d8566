"""The growth of the risk around a stationary point at kinks: what the strict certificate proves.

theta* is a point with grad L = 0 in the free coordinates and v_K = 0, L = R_0 + sum_k lambda_k v_k,
where held units give 0. B is the box of all theta' within rho of the point that is certified, which
is near theta*, in all coordinates, and of what is passed on the way.

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

from ..engine.floats import LEAST_NORMAL, slack
from ..engine.parameters import Parameters
from ..layers import SelectionMatrix
from .box_hessians import Second, second_order
from .boxes import Box, First, first_order, forward, members_of, signal_bounds
from .doubled_gradient import doubled_gradient
from .enclosed_algebra import positive_definite, spectral_bound
from .enclosures import QUIET, Enclosure, exact, narrower
from .free import Flow
from .stationary import Stationary, tangent_basis
from .streams import streams

ROOM = 1.5  # times what x moves by to first order is what it may
TRIES = 16  # of a radius
CLOSE = 1.3  # times the radius found is no longer one
FLOOR = 1e-3  # of the largest radius, in the units of the system: none is smaller
TINY = 1e-100  # in these units: the same where the gradient is exactly 0
ROUNDS = 20  # of what the errors of the Hessian add to the radii
FAR = 1e3  # times the first step: what grows beyond is not expected to converge
LEAST, LARGEST = 1e-6, 1e18  # factors of the squares of v_k that are tried
START = 1e-3  # of the least size of a parameter: the radius that is tried first


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


@np.errstate(**QUIET)
def exists(at: Stationary) -> Proved | str:
    """Prove that exactly one stationary point is near (Krawczyk), or say why not."""
    n, K = len(at.coordinates.free), len(at.held.kinks)
    thin = box_around(at, np.zeros(n), 0.0, np.zeros(K))
    seen = first_order(at.held, thin)
    if not seen.kept:
        return "a unit is so near its kink that rounding errors may change its pattern"
    F = _joined(seen.gradient[at.coordinates.free], seen.values)
    found = doubled_gradient(at.held, at.theta, at.multipliers)
    if found is not None:
        F = narrower(F, _joined(found[0][at.coordinates.free], found[1]))
    step = (exact(at.inverse) @ F).magnitude
    radii, more = 2 * _not_much_smaller(step, at.scale), slack(2 * len(step))
    for _ in range(4):
        box = box_around(at, radii[:n], 0.0, radii[n:])
        second = second_order(at.held, box, at.coordinates.moving)
        E = _error(at, second).magnitude
        if np.isfinite(E).all() and ((step + E @ radii) * more < radii).all():
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
        radii = 2 * _not_much_smaller(needed, at.scale)
    return (
        "no exact stationary point was shown to be near: the Hessian is so close to singular, up "
        f"to rounding, that a gradient of up to {F.magnitude.max():.1e} may move it by "
        f"{step[:n].max(initial=0.0):.1e}"
    )


def _not_much_smaller(radii: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Return the radii, none much smaller than the largest one in the units of the system."""
    return np.maximum(radii, max(FLOOR * (radii / scale).max(initial=0), TINY) * scale)


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
    members = max((len(kink.units) for kink in held.kinks), default=0)
    return rates * slack(len(coordinates.rows) + members)


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
            if step.activation is not None:  # with slopes of 0 where units are held
                slopes = step.slopes
                moved = moved * (slopes if isinstance(slopes, np.ndarray) else slopes.magnitude)
            moved = _down(step, moved)
    return found * slack(sum(len(kink.units) for kink in kinks))


def _down(step: object, moved: np.ndarray) -> np.ndarray:
    """Return |W|^T moved, for all W in a box."""
    more = slack(2 * step.W.shape[0] + 4)
    if isinstance(step.W, SelectionMatrix) or step.R is None:
        return (step.W.T @ moved) * more
    return (abs(step.W).T @ moved + step.R.T @ moved) * more


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
        left = left - share * taken  # no less than half: what was rounded counts twice
    return mu / slack(8 * (len(mu) + 1) * (len(set(layers)) + 1))


# The box


class Growth:
    """Whether the lemma holds around a stationary point that is proved to exist.

    For all points within rho of `start` in max norm: `moved` (p,) is how far that is from the
    middle of the box that theta* is in.
    """

    def __init__(self, proved: Proved, start: Parameters):
        self.proved, self.at = proved, proved.at
        at, free = proved.at, proved.at.coordinates.free
        self.moved = abs(at.theta.vector - start.vector) * slack(1)
        H, Z = split(at, proved.second)
        self.H, self.Z, self.units = H.middle, Z.middle, at.scale[: len(free)]
        thin = box_around(at, 0 * proved.free_radius, 0.0, 0 * proved.multiplier_radius)
        self.flow = at.coordinates.flow(at.held, thin)
        self.tangents = self._tangents(self.units)
        self.weights, self.obstacle = None, ""

    def _tangents(self, units: np.ndarray) -> np.ndarray:
        """Return the eigenvalues of the Hessian on the tangent space, in floats and these units."""
        basis = tangent_basis(self.Z * units)
        return np.linalg.eigvalsh(basis.T @ _scaled(self.H, units) @ basis)

    def choose_weights(
        self, mu: np.ndarray, share: float, units: np.ndarray | None = None
    ) -> np.ndarray:
        """Return rho_k in proportion to mu_k / |grad v_k|, for which the matrix is definite.

        No eigenvalue is below a share of the least one on the tangent space, in floats, in other
        units than those of the system if these are given.
        """
        if not len(mu):
            return mu
        tangents = self.tangents if units is None else self._tangents(units)
        units = self.units if units is None else units
        H, Z = _scaled(self.H, units), self.Z * units
        unit = mu / np.maximum(abs(Z).sum(axis=1), LEAST_NORMAL)
        square = (Z.T * (unit / 2)) @ Z
        largest = float(abs(H).max(initial=0))
        factor = LEAST * (largest or 1.0) / max(float(abs(square).max(initial=0)), LEAST_NORMAL)
        highest = factor * (LARGEST / LEAST)
        H = H - (share * tangents[0] if len(tangents) else 1e-3 * largest) * np.eye(len(H))
        while factor < highest and not _factored(H + factor * square):
            factor *= 16
        for _ in range(3):
            if _factored(H + factor / 2 * square):
                factor /= 2
        return factor * unit

    def holds(self, rho: float) -> bool:
        """Return whether the lemma is shown for all parameters within rho of `start`."""
        at, proved, few = self.at, self.proved, slack(4)
        self.obstacle = "the frozen coordinates do not follow from the others beyond"
        if self.flow is None:
            return False
        apart = (rho + self.moved) * few  # how far theta' is from the middle in each coordinate
        own, others = apart[at.coordinates.free], np.delete(apart, at.coordinates.free)
        others = float(others.max(initial=rho))
        reach = np.maximum(ROOM * self.flow.free * others, own)
        thin = box_around(at, reach, others, proved.multiplier_radius)
        more = ROOM * multiplier_rates(at, thin, self.flow) * others
        radii = (reach + proved.free_radius) * few, (more + proved.multiplier_radius) * few
        box = box_around(at, radii[0], others, radii[1])
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
        if flow is None or not (flow.free * others * few <= reach).all():
            return False
        if not (multiplier_rates(at, box, flow) * others * few <= more).all():
            return False
        second = second_order(at.held, box, at.coordinates.free)
        mu = shares(at, room, couplings(at, box))
        H, Z = second.hessian, second.jacobian
        apart = own + proved.free_radius  # how far theta' is from m in each coordinate
        if len(at.coordinates.frozen):
            apart = apart + flow.free * others
        largest = Z.magnitude @ apart * slack(len(apart) + 8)
        self.obstacle = "the Hessian may have an eigenvalue of 0 beyond"
        weights = self.weights.copy()
        moves = largest > 0  # v_k, and its square is to be outweighed
        most = weights[moves] * (1 if len(self.tangents) else LARGEST)  # at a vertex any will do
        weights[moves] = np.minimum(most, 2 * mu[moves] / largest[moves]) / few
        if not len(H):
            return True
        matrix = penalised(H, Z, weights)
        matrix = Enclosure(*(_scaled(part, self.units) for part in (matrix.middle, matrix.radius)))
        least = float(np.linalg.eigvalsh(matrix.middle)[0])
        self.expected = 0.8 * rho * least / max(spectral_bound(matrix.radius), LEAST_NORMAL)
        return positive_definite(matrix)

    def radius(self) -> float:
        """Return the largest rho found for which the lemma holds, 0 if none.

        Radii of enclosures grow with rho about linearly, which gives a guess where the matrix is
        the obstacle.
        """
        coordinates = self.at.coordinates
        sizes = coordinates.sizes[coordinates.moving]
        rho, low, high = START * float(sizes.min(initial=coordinates.sizes.max())), 0.0, math.inf
        for n in range(TRIES):
            self.expected = 0.0
            if self.holds(rho):
                low = rho
            else:
                high = rho
            if high < CLOSE * low:
                break
            if n == 0 and not low and not self.holds(0.0):
                break
            if low * CLOSE < self.expected < high / CLOSE:
                rho = self.expected
            elif low and high < math.inf:
                rho = math.sqrt(low * high)
            else:
                rho = 8 * low if low else high / 8
        return low


def _scaled(A: np.ndarray, units: np.ndarray) -> np.ndarray:
    return A * units * units[:, None]


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
    return found.wider((Z.radius.T * weights) @ Z.radius * slack(2 * len(weights)))


def _joined(a: Enclosure, b: Enclosure) -> Enclosure:
    return Enclosure(np.concatenate([a.middle, b.middle]), np.concatenate([a.radius, b.radius]))
