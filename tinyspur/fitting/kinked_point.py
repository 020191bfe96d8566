"""A point that is held at kinks: what holds there, and the ways off it that lead no higher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import linprog

from ..certificates.free import choose_coordinates
from ..datasets.samples import TrainingSet
from ..engine.equal_kinks import EqualKinks
from ..engine.held import Held, HeldKink, View
from ..engine.losses import Loss
from ..engine.parameters import Parameters
from .kink_model import DEPENDENT, State, split

EPSILON = float(np.spacing(1.0))
NULL = 1e-11  # of the largest eigenvalue: those below count as 0
EQUAL = 1e-9  # of the largest |z| of a layer: members of a kink that are nearer are at it


class Conditions(NamedTuple):
    """What holds at a point: the numbers of the conditions of a strict local minimum.

    `residual` is the largest entry of grad L, `values` are v_K, `low` and `high` the bounds of the
    multipliers, `eigenvalues` those of the Hessian of L on the tangent space, ascending, and
    `tangent` (p, dimension) its eigenvectors. `size` is that of the Hessian or of the gradients.
    """

    state: State
    residual: float
    values: np.ndarray
    low: np.ndarray
    high: np.ndarray
    eigenvalues: np.ndarray
    tangent: np.ndarray
    size: float

    @property
    def stationary(self) -> bool:
        """Return whether grad L and v_K are 0 up to rounding."""
        scale = max(1.0, float(abs(self.state.theta.vector).max()))
        off = float(abs(self.values).max(initial=0.0))
        small = min(1e-13 * scale * max(self.size, 1e-3), 1e-10 * max(1.0, self.state.risk))
        return self.residual <= small and off <= 1e-12 * scale

    @property
    def slack(self) -> np.ndarray:
        """Return how far multipliers are inside their bounds, as a share of what is between."""
        inside = np.minimum(self.state.multipliers - self.low, self.high - self.state.multipliers)
        width = self.high - self.low
        return np.where(width > 0, inside / np.where(width > 0, width, 1), -1.0)

    @property
    def flat(self) -> int:
        """Return the number of eigenvalues that are 0, up to rounding."""
        return int((abs(self.eigenvalues) <= NULL * self.size).sum())


class KinkedPoint:
    """A point with the kinks at which it is held, its `state`, of a network on data.

    What moves the state sets `mu` to None: a search from there begins anew.
    """

    def __init__(self, theta: Parameters, data: TrainingSet, loss: Loss):
        self.net, self.data, self.loss = theta.net, data, loss
        self.plain = Held(theta.net, data, loss)
        self.state, self.mu = self.at(theta, (), np.zeros(0)), None

    def held(self, kinks: Sequence[HeldKink]) -> Held:
        """Return the passes in which units are held at kinks."""
        return self.plain.at_kinks(kinks)

    def at(self, theta: Parameters, kinks: Sequence[HeldKink], multipliers: np.ndarray) -> State:
        """Return the state at a point.

        Members of a kink that are no longer at it are left out: units below have got another piece.
        """
        risk, _, seen = self.held(kinks).forward(theta)
        still = [_still_equal(kink, seen) for kink in kinks]
        if [len(kink.units) for kink in still] != [len(kink.units) for kink in kinks]:
            risk, _, seen = self.held(still).forward(theta)
        return State(theta, still, multipliers, risk, seen)

    def restored(
        self, theta: Parameters, kinks: list[HeldKink], rows: np.ndarray
    ) -> tuple[Parameters, np.ndarray]:
        """Bring v_K to 0 by a few steps with the gradients `rows`; return the point and v_K.

        After each the inverse of the gradients is updated, as Broyden (1965) does.
        """
        if not kinks:
            return theta, np.zeros(0)
        held, inverse = self.held(kinks), None
        values = held.values(theta)
        for _ in range(8):
            if not (abs(values) > rounding(rows, theta)).any():
                break
            inverse = np.linalg.pinv(rows, rcond=DEPENDENT) if inverse is None else inverse
            step = -(inverse @ values)
            nearer = moved(theta, step)
            then = held.values(nearer)
            if not abs(then).max() < 0.9 * abs(values).max():
                break
            back, change = step @ inverse, then - values
            inverse = inverse + np.outer(step - inverse @ change, back) / (back @ change)
            theta, values = nearer, then
        return theta, values

    def polished(self) -> Conditions:
        """Take Newton steps on the kinks of the state, to rounding; return what holds there.

        They are taken in the free coordinates: along symmetries, where nothing changes, the Hessian
        is not quite 0 as long as the gradient is not, and steps would be long.
        """
        theta, kinks = self.state.theta, self.state.kinks
        free = choose_coordinates(self.held(kinks), theta, self.data).free
        best, last = None, np.inf
        for _ in range(12):
            found, d = self._conditions(theta, kinks, free)
            if best is None or _off(found) < _off(best):
                best = found
            length = float(np.linalg.norm(d))
            if not length < 0.5 * last:
                break
            theta, last = moved(theta, d), length
        return best

    def _conditions(
        self, theta: Parameters, kinks: list[HeldKink], free: np.ndarray
    ) -> tuple[Conditions, np.ndarray]:
        """Return the conditions at a point, and the Newton step in `free` to where they hold."""
        held = self.held(kinks)
        rows, multipliers = held.jacobian(theta), np.zeros(len(kinks))
        plain = held.gradient(theta, multipliers)
        if kinks:
            multipliers = -(plain.gradient @ np.linalg.pinv(rows, rcond=DEPENDENT))
        found = held.gradient(theta, multipliers)
        _, tangent = split(rows)
        hessian = held.hessian(theta, multipliers)
        w, vectors = np.linalg.eigh(tangent.T @ hessian @ tangent)
        size = max(float(abs(hessian).max()), 1e-3 * float(abs(plain.gradient).max()))
        here = Conditions(
            self.at(theta, kinks, multipliers),
            float(abs(found.gradient).max()),
            found.values,
            *held.bounds(found.signals),
            w,
            tangent @ vectors,
            size,
        )
        d, hessian = np.zeros(self.net.size), hessian[np.ix_(free, free)]
        _, tangent = split(rows[:, free])
        w, vectors = np.linalg.eigh(tangent.T @ hessian @ tangent)
        tangent = (tangent @ vectors)[:, abs(w) > NULL / 100 * size]
        if kinks:
            d[free] = -(np.linalg.pinv(rows[:, free], rcond=DEPENDENT) @ found.values)
        slopes = tangent.T @ (found.gradient[free] + hessian @ d[free])
        d[free] -= tangent @ (slopes / abs(w[abs(w) > NULL / 100 * size]))
        return here, d

    def leave_bounds(self, found: Conditions, share: float, others: Sequence[HeldKink]) -> bool:
        """Move off the kinks whose multiplier is on its bound, if the risk stays the same.

        A multiplier counts as there if it is nearer than `share` of the distance to the other. Such
        a kink is met by chance, where flat directions lead: of a unit that is inactive for all
        samples, or one that is always active. It is left to the side that its multiplier is at.
        The `others`, at which the state is but not held, are left to where the units are inactive.
        As many as can be are left at once.
        """
        state = found.state
        low = state.multipliers < (found.low + found.high) / 2
        out = [n for n, slack in enumerate(found.slack) if slack < share]
        stay = [n for n in range(len(state.kinks)) if n not in out]
        leave = [*(state.kinks[n] for n in out), *others]
        if not leave:
            return False
        side = np.array([*(-1.0 if low[n] else 1.0 for n in out), *(-1.0 for _ in others)])
        held = self.held(state.kinks)
        hessian = held.hessian(state.theta, state.multipliers)
        _, tangent = split(held.jacobian(state.theta, [state.kinks[n] for n in stay]))
        w, vectors = np.linalg.eigh(tangent.T @ hessian @ tangent)
        flat = tangent @ vectors[:, abs(w) <= NULL * found.size]
        away = held.jacobian(state.theta, leave)
        direction, gone = _risen(side[:, None] * (away @ flat))
        stay += [n for n, off in zip(out, gone, strict=False) if not off]
        out = [kink for kink, off in zip(leave, gone, strict=True) if off]
        return bool(out) and self._leave(found, sorted(stay), out, side[gone], flat @ direction)

    def _leave(
        self,
        found: Conditions,
        stay: list[int],
        out: list[HeldKink],
        side: np.ndarray,
        direction: np.ndarray,
    ) -> bool:
        """Move along a direction, off some kinks, each to its side, if the risk stays the same."""
        state = found.state
        kinks, multipliers = [state.kinks[n] for n in stay], state.multipliers[stay]
        both = self.held([*kinks, *out])
        rows, away = np.split(both.jacobian(state.theta), [len(kinks)])
        size = float(abs(state.theta.vector).max())
        for t in size * 0.1 * 0.25 ** np.arange(12):
            theta, values = self.restored(moved(state.theta, t * direction), kinks, rows)
            off = side * both.values(theta)[len(kinks) :]
            if not (off > 1e3 * rounding(away, theta)).all():
                break
            if (abs(values) <= 1e3 * rounding(rows, theta)).all():
                trial = self.at(theta, kinks, multipliers)
                if trial.risk <= state.risk * (1 + 16 * EPSILON):
                    self.state, self.mu = trial, None
                    return True
        return False

    def others_at_kinks(self, found: Conditions) -> list[HeldKink]:
        """Return the kinks, equal ones as one, at which units are up to rounding but not held."""
        state, others = found.state, []
        held, depth = self.held(state.kinks), self.net.depth
        known = [np.zeros(z.shape, dtype=bool) for z in state.seen.z]
        for kink in state.kinks:
            if kink.layer <= depth:
                known[kink.layer - 1][kink.units, kink.samples] = True
        equal = EqualKinks(state.theta, self.data, held, state.seen)
        for layer in self.net.bent_layers:
            moves = ~equal.never_moves(layer)
            z = state.seen.z[layer - 1][: len(moves)]
            for unit, sample in np.argwhere((abs(z) <= 1e-13 * abs(z).max()) & moves):
                if not known[layer - 1][unit, sample]:
                    kink = equal.kink(layer, int(unit), int(sample))
                    known[layer - 1][kink.units, kink.samples] = True
                    others.append(kink)
        return others

    def leave_concave(self, found: Conditions, others: Sequence[HeldKink]) -> bool:
        """Move off a kink at which R is concave, and the state not held, to a lower point."""
        state, held = found.state, self.held(found.state.kinks)
        signals = held.view(state.theta, state.multipliers)[1].signals
        for kink in others:
            if signals[kink.layer - 1][kink.units, kink.samples].sum() < 0:
                row = held.jacobian(state.theta, [kink])[0]
                away = found.tangent @ (found.tangent.T @ row)
                if away.any() and self._lower_along(found, away / np.linalg.norm(away)):
                    return True
        return False

    def leave_saddle(self, found: Conditions) -> bool:
        """Move along the least eigenvalue's direction, if it is negative, to a lower point."""
        if not found.eigenvalues.min(initial=0.0) < -1e3 * NULL * found.size:
            return False
        return self._lower_along(found, found.tangent[:, 0])

    def _lower_along(self, found: Conditions, direction: np.ndarray) -> bool:
        """Move along a direction, or against it, to a lower point on the same kinks, if any."""
        state = found.state
        rows = self.held(state.kinks).jacobian(state.theta)
        for t in 0.1 * 0.5 ** np.arange(24):
            for sign in (1, -1):
                start = moved(state.theta, sign * t * direction)
                theta, values = self.restored(start, state.kinks, rows)
                if (abs(values) > 1e3 * rounding(rows, theta)).any():
                    continue
                trial = self.at(theta, state.kinks, state.multipliers)
                if trial.risk < state.risk - 8 * EPSILON * abs(state.risk):
                    self.state, self.mu = trial, None
                    return True
        return False


def _risen(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a direction along which no row falls and as many as can be rise, and which do."""
    n, lengths = rows.shape[1], np.linalg.norm(rows, axis=1)
    rises = lengths > 1e-9
    if not rises.any():
        return np.zeros(n), rises
    rows = rows[rises] / lengths[rises, None]
    m = len(rows)
    found = linprog(  # the largest sum of shares that are at most what rows rise by, and 0.1
        np.append(np.zeros(n), -np.ones(m)),
        A_ub=np.hstack([-rows, np.eye(m)]),
        b_ub=np.zeros(m),
        bounds=[(-1, 1)] * n + [(0, 0.1)] * m,
    )
    if not found.success:
        return np.zeros(n), np.zeros(len(lengths), dtype=bool)
    rise = rows @ found.x[:n]
    rises[rises] = rise > 1e-6
    return np.linalg.pinv(rows, rcond=DEPENDENT) @ rise, rises


def _still_equal(kink: HeldKink, seen: View) -> HeldKink:
    """Return the kink with those members alone that are at it, as the first one is."""
    if len(kink.units) == 1 or kink.pairs is not None or kink.layer > len(seen.z):
        return kink
    z = seen.z[kink.layer - 1]
    near = abs(z[kink.units, kink.samples]) <= EQUAL * abs(z).max()
    near[0] = True
    return HeldKink(kink.layer, kink.map, kink.units[near], kink.samples[near])


def _off(found: Conditions) -> float:
    return found.residual + float(abs(found.values).max(initial=0.0))


def moved(theta: Parameters, d: np.ndarray) -> Parameters:
    """Return the point theta + d."""
    return Parameters(theta.net, theta.vector + d)


def rounding(rows: np.ndarray, theta: Parameters) -> np.ndarray:
    """Return what v_K may be by rounding alone, with their gradients `rows`."""
    size = abs(theta.vector)
    return 4 * EPSILON * (abs(rows) @ (size + 1e-6 * size.max()))
