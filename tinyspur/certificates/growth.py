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
   mu_k: M_k is a bound of |v_k|, and sum_k mu_k |v_k| <= sum_k m_k |y_k|, see `shares`;
4. for each choice f' of the frozen coordinates in B there is a point m(f') like theta* in the box,
   and the gradient of L is 0 there in the frozen coordinates, too.

Proof. Let z_k(theta', a) be the pre-activations when held units give a, r(theta', a) the rest of
the risk, L(theta', a) = r + sum_k lambda_k z_k, and y_k, a_k = sigma(y_k) those of the network
itself. Then R(theta') = L(theta', a) - sum_k lambda_k y_k, and L(theta', a) - L(theta', 0) = sum_k
D_k a_k, with the means D_k of dL/da_k on the way from 0 to a: as C_k in 2. So R(theta') -
L(theta') = sum_k D_k sigma(y_k) - lambda_k y_k >= sum_k m_k |y_k| >= sum_k mu_k |v_k|. This holds
for the multipliers of m = m(f'), f' the frozen coordinates of theta'. There v_K = 0 and grad L = 0
in the free coordinates, so with d = theta' - m, which is 0 in the others, L(theta') - L(m) = d.Hd /
2 > -sum_k rho_k (z_k.d)^2 / 2 = -sum_k rho_k v_k^2 / 2 >= -sum_k mu_k |v_k| for d != 0, where H is
a mean of Hessians on the way and z_k one of gradients, v_k = z_k.d. Hence R(theta') >= L(m) = R(m),
and R(m) = R(theta*): along m(f) the derivative of L is its gradient in the frozen coordinates, 0.

m(f') is continued from theta*: with F = (grad L, v_K), x = (free coordinates, lambda), F' in the
enclosure over B, a float matrix C, and E = |I - C F'|, x moves by at most b if E b + |C dF/df| rho
< b, and never leaves B if b is no larger than B.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.linalg

from ..engine.parameters import Parameters
from ..layers import SelectionMatrix
from .boxes import Box, First, Second, first_order, forward, second_order
from .enclosed_algebra import positive_definite
from .enclosures import Enclosure, exact
from .stationary import Stationary

ROOM = 1.5  # times what x moves by to first order is what it may
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
        return "rounding errors may change the pattern of a unit"
    F = _joined(seen.gradient[at.coordinates.free], seen.values)
    step = (exact(at.inverse) @ F).magnitude
    sizes = [2 * float(part.max()) if len(part) else 0.0 for part in (step[:n], step[n:])]
    for _ in range(4):
        radii = np.repeat(sizes, (n, K))
        box = box_around(at, radii[:n], 0.0, radii[n:])
        second = second_order(at.held, box, at.coordinates.moving)
        E = _error(at, second).magnitude
        if np.isfinite(E).all() and ((step + E @ radii) * SMALL < radii).all():
            first = first_order(at.held, box)
            if not first.kept:
                return "a unit may change its pattern before the stationary point is reached"
            return Proved(at, radii[:n], radii[n:], first, second)
        sizes = [8 * size for size in sizes]
    return "no exact stationary point was shown to be near"


def split(at: Stationary, second: Second) -> tuple[Enclosure, Enclosure, Enclosure, Enclosure]:
    """Return H and Z in the free coordinates, and those parts that mix them with the frozen."""
    inside = np.isin(at.coordinates.moving, at.coordinates.free)
    free, frozen = np.flatnonzero(inside), np.flatnonzero(~inside)
    H, Z = second.hessian, second.jacobian
    return H[np.ix_(free, free)], Z[:, free], H[np.ix_(free, frozen)], Z[:, frozen]


def _error(at: Stationary, second: Second) -> Enclosure:
    """Return I - C F' over a box."""
    H, Z, _, _ = split(at, second)
    K = Z.shape[0]
    parts = [
        np.block([[getattr(H, name), getattr(Z, name).T], [getattr(Z, name), np.zeros((K, K))]])
        for name in ("middle", "radius")
    ]
    return exact(np.eye(len(at.inverse))) - exact(at.inverse) @ Enclosure(*parts)


# Multipliers and the kinks below


def rooms(at: Stationary, signals: Enclosure, multipliers: Enclosure) -> np.ndarray:
    """Return lower bounds m_k of how far the multipliers are inside their bounds, (kinks,)."""
    slopes = np.array([own_slope(at, kink) for kink in at.held.kinks])
    inside = (signals - multipliers).low
    return np.minimum(inside, (multipliers - signals * slopes).low)


def own_slope(at: Stationary, kink: object) -> float:
    """Return alpha of a kink: that of the activation, 0 of a max pooling, -1 of the loss."""
    if kink.layer > at.held.net.depth:
        return -1.0
    return float(at.held.slope) if kink.pairs is None else 0.0


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
        members = held._among(np.array([sample]), np)
        trace, _ = forward(held, box, np.ascontiguousarray(x), members)
        level = min(kink.layer, held.net.depth)
        if kink.pairs is not None:
            moved, layer = np.zeros((trace[level - 1].W.shape[1], 1)), level - 1
            moved[kink.pairs[0]] = 1
        else:
            moved, layer = np.zeros(trace[level - 1].z.shape), level
            moved[kink.units[0]] = 1
            moved, layer = _down(trace[level - 1], moved), level - 1
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
        H, Z, mixed, frozen = split(at, proved.second)
        self.H, self.Z = H.middle, Z.middle
        F = np.concatenate([mixed.middle, frozen.middle])
        moved = abs(at.inverse @ F).sum(axis=1)
        n = len(at.coordinates.free)
        self.moved_free, self.moved_multipliers = moved[:n], moved[n:]
        self.tangents = self._tangents()
        self.tangent = float(self.tangents.min(initial=np.inf))
        self.weights = None

    def _tangents(self) -> np.ndarray:
        """Return the eigenvalues of the Hessian on the tangent space, in floats."""
        basis = scipy.linalg.null_space(self.Z) if len(self.Z) else np.eye(len(self.H))
        return np.linalg.eigvalsh(basis.T @ self.H @ basis)

    def choose_weights(self, mu: np.ndarray, share: float = 0.5) -> np.ndarray:
        """Return rho_k in proportion to mu_k / |grad v_k|, for which the matrix is definite."""
        unit = mu / np.maximum(abs(self.Z).sum(axis=1), 1e-300)
        goal, factor = share * min(self.tangent, 1e300), 1e-6
        largest = float(np.linalg.eigvalsh(self.H)[-1]) if len(self.H) else 1.0
        if not np.isfinite(self.tangent):
            goal = 1e-3 * abs(largest)
        for _ in range(80):
            least = np.linalg.eigvalsh(self.H + (self.Z.T * (factor * unit)) @ self.Z)[0]
            if least >= goal:
                break
            factor *= 2
        return factor * unit

    def holds(self, rho: float) -> bool:
        """Return whether the lemma is shown for all parameters within rho of theta*."""
        at, n = self.at, len(self.at.coordinates.free)
        own = self.proved.free_radius, self.proved.multiplier_radius
        frozen = len(at.coordinates.frozen) > 0
        reach = np.full(n, rho)
        multipliers = np.zeros(len(self.Z))
        if frozen:
            reach = np.maximum(reach, ROOM * self.moved_free * rho)
            more = 0.1 * self.moved_multipliers.max(initial=0)
            more += 1e-3 * abs(at.multipliers).max(initial=0)
            multipliers = rho * (ROOM * self.moved_multipliers + more)
        box = box_around(at, (reach + own[0]) * SMALL, rho, (multipliers + own[1]) * SMALL)
        first = first_order(at.held, box, released=True)
        room = rooms(at, first.signals, box.multipliers)
        if not first.kept or not (room > 0).all():
            return False
        second = second_order(at.held, box, at.coordinates.moving)
        if frozen and not self._continues(second, reach, multipliers, rho, box):
            return False
        mu = shares(at, room, couplings(at, box))
        H, Z, _, _ = split(at, second)
        apart = (rho + (reach if frozen else 0) + own[0]) * SMALL  # |theta' - m|
        largest = Z.magnitude @ apart * SMALL
        weights = np.minimum(self.weights, 2 * mu / np.maximum(largest, 1e-300)) / SMALL
        return positive_definite(H + _transposed(Z, weights) @ Z) if n else True

    def _continues(
        self, second: Second, reach: np.ndarray, multipliers: np.ndarray, rho: float, box: Box
    ) -> bool:
        """Return whether m(f) is in the box for all frozen f within rho, and stationary in them."""
        _, _, mixed, frozen = split(self.at, second)
        F = Enclosure(
            np.concatenate([mixed.middle, frozen.middle]),
            np.concatenate([mixed.radius, frozen.radius]),
        )
        moved = (exact(self.at.inverse) @ F).magnitude.sum(axis=1) * rho
        E, b = _error(self.at, second).magnitude, np.concatenate([reach, multipliers])
        if not np.isfinite(E).all() or not ((moved + E @ b) * SMALL < b).all():
            return False
        return self.at.coordinates.explained(self.at.held, box)

    def radius(self, start: float, tries: int = 7) -> float:
        """Return the largest rho found for which the lemma holds, 0 if none."""
        rho, low, high = start, 0.0, np.inf
        for _ in range(tries):
            if self.holds(rho):
                low = rho
                rho = rho * 8 if high == np.inf else (low * high) ** 0.5
            else:
                high = rho
                rho = rho / 8 if low == 0 else (low * high) ** 0.5
            if high < 1.25 * low:
                break
        return low


def _joined(a: Enclosure, b: Enclosure) -> Enclosure:
    return Enclosure(np.concatenate([a.middle, b.middle]), np.concatenate([a.radius, b.radius]))


def _transposed(Z: Enclosure, weights: np.ndarray) -> Enclosure:
    """Return Z^T diag(weights)."""
    return Z.T * weights
