"""Descent to a local minimum that may lie at kinks: Newton steps for a convex piecewise model."""

from __future__ import annotations

import numpy as np

from ..datasets.samples import TrainingSet
<<<<<<< HEAD
from ..engine.equal_kinks import EqualKinks
from ..engine.held import Held, HeldGradient, HeldKink, View
=======
from ..engine.held import Held, HeldGradient, View
>>>>>>> share
from ..engine.losses import Loss
from ..engine.parameters import Parameters
from .kink_model import DEPENDENT, Candidates, ModelStep, Quadratic, State
from .kinked_point import EPSILON, KinkedPoint, moved, rounding

CORRECTIONS = 4  # Newton steps at most, in directions of one steepness, back to a bent valley
STEEP = (1e-4, 1e-6, 1e-8)  # of the largest eigenvalue: directions that are taken as steep
ADDED = 8  # how often a model takes in kinks that its step has crossed
FEWEST, SHARE = 20, 4  # so many of them at once at most, or this share of the parameters


class KinkedNewton(KinkedPoint):
    """Steps from a point to one where the conditions of a strict local minimum hold.

    Each minimises a convex model in which all kinks that are near may be met at once, see
    `kink_model`, with a multiple `mu` of the identity added that adapts.
    """

    def __init__(self, theta: Parameters, data: TrainingSet, loss: Loss):
        super().__init__(theta, data, loss)
        self.expected, self.reach, self.equal, self.taken = np.inf, 1.0, None, 0

    def step(self) -> bool:
        """Move to a lower point; return whether one was found."""
        self.taken += 1
        held, found, seen = self._without_concave()
        state = self.state
        hessian = held.hessian(state.theta, state.multipliers)
        candidates = Candidates(state, held, found, seen, self.equal)
        quadratic = Quadratic(hessian, candidates.rows)
        size = quadratic.size or float(abs(found.gradient).max()) or 1.0
        if self.mu is None:
            self.mu, self.reach = (1e-3 if self.taken == 1 else 1e-10) * size, 1.0
        self.mu = max(self.mu, 1e-14 * size)
        added = 0
        for _ in range(100):
            move = quadratic.step(candidates, self.mu)
            self.expected = move.decrease
            length = float(np.linalg.norm(move.d))
            if length > 4 * self.reach or move.decrease < -1e-9 * abs(state.risk):
                self.mu *= 6
                continue
            nothing = not move.decrease > EPSILON * abs(state.risk)
            trial, about = self._trial(candidates, move)
            if (nothing or not state.risk - about > 0.5 * move.decrease) and added < ADDED:
                added += 1
                more = candidates.add_crossed(trial.seen, max(FEWEST, self.net.size // SHARE))
                self.equal = candidates.equal or self.equal
                if more:
                    continue
            if nothing:
                self._hold(candidates, move, trial)
                return False
            if not state.risk - about > 0.7 * move.decrease:
                trial, about = self._corrected(candidates, quadratic, move, trial, about)
            if state.risk - about > 0:
                trial = self._back(candidates, move, trial)
            ratio = (state.risk - trial.risk) / move.decrease
            if state.risk - about > 0 and ratio > 1e-2:
                self.state = trial
                self.mu *= 1 / 8 if ratio > 0.7 else 2 if ratio < 0.25 else 1
                self.reach = max(self.reach, 2 * length) if ratio > 0.7 else length
                if ratio > 0.7:
                    self._further(candidates, quadratic)
                return True
            if self._released(candidates, move):
                return True
            self.mu *= 6
            self.reach = length
        return False

    def _further(self, candidates: Candidates, quadratic: Quadratic) -> None:
        """Go on with the same model and a smaller `mu`, as long as that leads lower as it says.

        The candidates count from the state that the model is for.
        """
        start = candidates.risk
        while True:
            move = quadratic.step(candidates, self.mu)
            length = float(np.linalg.norm(move.d))
            if not move.decrease > 1.5 * (start - self.state.risk) or length > 16 * self.reach:
                return
            trial, about = self._trial(candidates, move)
            if not start - about > 0.7 * move.decrease:
                trial, about = self._corrected(candidates, quadratic, move, trial, about)
            if not start - about > 0.7 * move.decrease:
                return
            trial = self._back(candidates, move, trial)
            if not start - trial.risk > 0.7 * move.decrease:
                return
            if not trial.risk < self.state.risk:
                return
            self.state, self.expected = trial, move.decrease
            self.mu *= 1 / 8
            self.reach = max(self.reach, 2 * length)

    def _released(self, candidates: Candidates, move: ModelStep) -> bool:
        """Move a little along a step that leaves kinks at which the state is held.

        Beyond them the risk has another Hessian, perhaps a much larger one.
        """
        stay = move.held[move.held < len(self.state.kinks)]  # others are not met by a small step
        if len(stay) == len(self.state.kinks):
            return False
        for share in 0.1 ** np.arange(1, 7):
            small, least = move._replace(d=share * move.d, held=stay), 0.1 * share * move.decrease
            trial, about = self._trial(candidates, small)
            if not candidates.risk - about > least:
                continue
            trial = self._back(candidates, small, trial)
            if candidates.risk - trial.risk > least:
                self.state = trial
                return True
        return False

    def _hold(self, candidates: Candidates, move: ModelStep, trial: State) -> None:
        """Hold the state at the kinks at which it is already, where that raises no risk."""
        trial = self._back(candidates, move, trial)
        if trial.risk <= self.state.risk * (1 + 4 * EPSILON):
            self.state = trial

    def _without_concave(self) -> tuple[Held, HeldGradient, View]:
        """Release held kinks at which R is concave; return the pass at the state."""
        while True:
            state, held = self.state, self.held(self.state.kinks)
            found, seen = held.view(state.theta, state.multipliers)
            keep = np.flatnonzero(held.bounds(found.signals)[1] > 0)
            if len(keep) == len(state.kinks):
                return held, found, seen
            kinks = [state.kinks[n] for n in keep]
            self.state = state._replace(kinks=kinks, multipliers=state.multipliers[keep])

    def _trial(self, candidates: Candidates, move: ModelStep) -> tuple[State, float]:
        """Return the state after a step, and about what the risk is if brought back to its kinks.

        That is the risk of L, in which v_K counts with its multipliers.
        """
        kinks, multipliers = [candidates.kinks[n] for n in move.held], move.multipliers[move.held]
        theta = moved(candidates.theta, move.d)
        risk, values, seen = self.held(kinks).forward(theta)
        return State(theta, kinks, multipliers, risk, seen), risk + float(values @ multipliers)

    def _corrected(
        self,
        candidates: Candidates,
        quadratic: Quadratic,
        move: ModelStep,
        trial: State,
        about: float,
    ) -> tuple[State, float]:
        """Return the lowest that Newton steps in steep directions lead to from a trial point.

        A long step along a bent valley ends on its side: what the gradient differs by from that of
        the model is taken back, in the steepest directions first, all with the model's Hessian.
        """
        held, rows = self.held(trial.kinks), candidates.rows[move.held] @ quadratic.E
        found = held.gradient(trial.theta, trial.multipliers)
        for share in STEEP:
            inverse = quadratic.steep(share, self.mu)
            normal = np.linalg.pinv(rows * np.sqrt(inverse), rcond=DEPENDENT)
            for _ in range(CORRECTIONS):
                d = trial.theta.vector - candidates.theta.vector
                c = -inverse * (quadratic.E.T @ (found.gradient + self.mu * d))
                c -= np.sqrt(inverse) * (normal @ (found.values + rows @ c))
                if not np.linalg.norm(c) < 0.1 * np.linalg.norm(d):
                    return trial, about
                nearer = moved(trial.theta, quadratic.E @ c)
                there = held.gradient(nearer, trial.multipliers)
                risk = there.risk + float(there.values @ trial.multipliers)
                if not risk < about:
                    break
                gain, about = about - risk, risk
                trial, found = trial._replace(theta=nearer, risk=there.risk), there
                if gain < 0.1 * move.decrease:
                    break
        return trial, about

    def _back(self, candidates: Candidates, move: ModelStep, trial: State) -> State:
        """Return the state with v_K = 0 that is near a trial point, held at what can be met."""
        rows, kinks = candidates.rows[move.held], trial.kinks
        theta, values = self.restored(trial.theta, kinks, rows)
        met = np.flatnonzero(abs(values) <= 1e3 * rounding(rows, theta))
        return self.at(theta, [kinks[n] for n in met], trial.multipliers[met])
<<<<<<< HEAD

    def restored(
        self, theta: Parameters, kinks: list[HeldKink], rows: np.ndarray
    ) -> tuple[Parameters, np.ndarray]:
        """Bring v_K to 0 by a few steps with the gradients `rows`; return the point and v_K."""
        if not kinks:
            return theta, np.zeros(0)
        held, inverse = self.held(kinks), None
        values = held.values(theta)
        for _ in range(8):
            if not (abs(values) > rounding(rows, theta)).any():
                break
            inverse = np.linalg.pinv(rows, rcond=DEPENDENT) if inverse is None else inverse
            nearer = moved(theta, -(inverse @ values))
            then = held.values(nearer)
            if not abs(then).max() < 0.9 * abs(values).max():
                break
            theta, values = nearer, then
        return theta, values

    def polished(self) -> Conditions:
        """Take Newton steps on the kinks of the state, to rounding; return what holds there."""
        best, theta, kinks = None, self.state.theta, self.state.kinks
        for _ in range(8):
            found, d = self._conditions(theta, kinks)
            if best is not None and not _off(found) < 0.5 * _off(best):
                break
            best = found
            theta = moved(theta, d)
        return best

    def _conditions(
        self, theta: Parameters, kinks: list[HeldKink]
    ) -> tuple[Conditions, np.ndarray]:
        """Return the conditions at a point, and the Newton step to where they hold."""
        held = self.held(kinks)
        rows, multipliers = held.jacobian(theta), np.zeros(len(kinks))
        inverse = np.linalg.pinv(rows, rcond=DEPENDENT) if kinks else np.zeros((self.net.size, 0))
        plain = held.gradient(theta, multipliers)
        multipliers = -(plain.gradient @ inverse)
        found = held.gradient(theta, multipliers)
        _, tangent = split(rows)
        hessian = held.hessian(theta, multipliers)
        w, vectors = np.linalg.eigh(tangent.T @ hessian @ tangent)
        tangent = tangent @ vectors
        here = Conditions(
            self.at(theta, kinks, multipliers),
            float(abs(found.gradient).max()),
            found.values,
            *held.bounds(found.signals),
            w,
            tangent,
            max(float(abs(hessian).max()), 1e-3 * float(abs(plain.gradient).max())),
        )
        firm = abs(w) > NULL * here.size
        slopes = tangent.T @ found.gradient
        d = -tangent[:, firm] @ (slopes[firm] / abs(w[firm])) - inverse @ found.values
        return here, d

    def leave_bounds(self, found: Conditions, share: float) -> bool:
        """Move off the kinks whose multiplier is on its bound, if the risk stays the same.

        A multiplier counts as there if it is nearer than `share` of the distance to the other. Such
        a kink is met by chance, where flat directions lead: of a unit that is inactive for all
        samples, or one that is always active. It is left to the side that its multiplier is at.
        """
        state, slack = found.state, found.slack
        out, stay = np.flatnonzero(slack < share), np.flatnonzero(slack >= share)
        held = self.held(state.kinks)
        rows, hessian = (
            held.jacobian(state.theta),
            held.hessian(state.theta, state.multipliers),
        )
        _, tangent = split(rows[stay])
        w, vectors = np.linalg.eigh(tangent.T @ hessian @ tangent)
        flat = tangent @ vectors[:, abs(w) <= NULL * found.size]
        low = state.multipliers < (found.low + found.high) / 2
        away = flat @ (flat.T @ (np.where(low, -1.0, 1.0) * (slack < share) @ rows))
        kinks, size = [state.kinks[n] for n in stay], float(abs(state.theta.vector).max())
        for t in size * 0.1 * 0.25 ** np.arange(12):
            theta, values = self.restored(moved(state.theta, t * away), kinks, rows[stay])
            if (abs(values) <= 1e3 * rounding(rows[stay], theta)).all():
                trial = self.at(theta, kinks, state.multipliers[stay])
                if trial.risk <= state.risk * (1 + 16 * EPSILON) and len(out):
                    self.state, self.mu = trial, None
                    return True
        return False

    def others_at_kinks(self, found: Conditions) -> int:
        """Return how many units are at their kink, up to rounding, and not held there."""
        state, count = found.state, 0
        held, depth = [np.zeros(z.shape, dtype=bool) for z in state.seen.z], self.net.depth
        for kink in state.kinks:
            if kink.layer <= depth:
                held[kink.layer - 1][kink.units, kink.samples] = True
        equal = EqualKinks(state.theta, self.data, self.held(state.kinks), state.seen)
        for layer in self.net.bent_layers:
            moves = ~equal.never_moves(layer)
            z = state.seen.z[layer - 1][: len(moves)]
            near = (abs(z) <= 1e-13 * abs(z).max()) & moves
            count += int((near & ~held[layer - 1][: len(moves)]).sum())
        return count

    def leave_saddle(self, found: Conditions) -> bool:
        """Move along the least eigenvalue's direction, if it is negative, to a lower point."""
        if not found.eigenvalues.min(initial=0.0) < -1e3 * NULL * found.size:
            return False
        state, direction = found.state, found.tangent[:, 0]
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
=======
>>>>>>> share
