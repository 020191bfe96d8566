"""Descent to a local minimum that may lie at kinks: Newton steps for a convex piecewise model."""

from __future__ import annotations

import numpy as np

from ..datasets.samples import TrainingSet
from ..engine.held import Held, HeldGradient, View
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
