"""Descent to a local minimum that may lie at kinks: Newton steps for a convex piecewise model."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ..datasets.samples import TrainingSet
from ..engine.held import Held, HeldKink, View
from ..engine.losses import Loss
from ..engine.parameters import Parameters
from .kink_model import Candidates, ModelStep, Quadratic, split

EPSILON = float(np.spacing(1.0))


@dataclass
class State:
    """A point, the kinks at which it is held, their multipliers and its risk."""

    theta: Parameters
    kinks: list[HeldKink]
    multipliers: np.ndarray
    risk: float
    seen: View


@dataclass
class Ending:
    """Where the descent ended, and what holds there.

    `residual` is the largest entry of grad L and `values` v_K; `low` and `high` bound the
    multipliers; `eigenvalues` are those of the Hessian of L on the tangent space.
    """

    state: State
    reason: str
    stationary: bool
    residual: float
    values: np.ndarray
    signals: np.ndarray
    low: np.ndarray
    high: np.ndarray
    eigenvalues: np.ndarray
    tangent: np.ndarray = field(repr=False)
    steps: int = 0


class KinkedNewton:
    """Steps from a point to one where the conditions of a strict local minimum hold."""

    def __init__(self, theta: Parameters, data: TrainingSet, loss: Loss):
        self.net, self.data, self.loss = theta.net, data, loss
        risk, _, seen = self.held(()).forward(theta)
        self.state = State(theta, [], np.zeros(0), risk, seen)
        self.mu: float | None = None
        self.pause = False  # whether no step is worth it any more

    def held(self, kinks) -> Held:
        return Held(self.net, self.data, self.loss, kinks)

    def step(self) -> bool:
        """Move to a lower point; return whether one was found."""
        state = self.state
        held, found, seen = self._convex()
        hessian = held.hessian(state.theta, state.multipliers)
        candidates = Candidates(state.theta, held, state.multipliers, found, seen)
        quadratic = Quadratic(hessian, candidates.rows)
        size = quadratic.size or float(abs(found.gradient).max()) or 1.0
        self.mu = 1e-3 * size if self.mu is None else max(self.mu, 1e-14 * size)
        rounds = 0
        for _ in range(60):
            move = quadratic.step(candidates, self.mu)
            self.expected = move.decrease
            if not move.decrease > EPSILON * abs(state.risk):
                return False
            trial = self._trial(candidates, move)
            ratio = (state.risk - trial.risk) / move.decrease
            if ratio < 0.5 and rounds < 8:
                rounds += 1
                if candidates.add_crossed(trial.seen, self.net.size):
                    continue
            if ratio > 1e-2:
                self.state = trial
                if ratio > 0.7:
                    self.mu /= 8
                elif ratio < 0.25:
                    self.mu *= 2
                return True
            self.mu *= 6
        return False

    def _convex(self):
        """Release held kinks that are concave; return the pass at the state."""
        state = self.state
        while True:
            held = self.held(state.kinks)
            found, seen = held.view(state.theta, state.multipliers)
            keep = np.flatnonzero(np.asarray(held.bounds(found.signals)[1]) > 0)
            if len(keep) == len(state.kinks):
                return held, found, seen
            state.kinks = [state.kinks[n] for n in keep]
            state.multipliers = state.multipliers[keep]

    def _trial(self, candidates: Candidates, move: ModelStep) -> State:
        """Return the state after a step, brought back to the kinks at which it is to end."""
        kinks = [candidates.kinks[n] for n in move.held]
        rows, held = candidates.rows[move.held], self.held(kinks)
        theta = self._moved(self.state.theta, move.d)
        risk, values, seen = held.forward(theta)
        if len(kinks):
            theta, risk, values, seen = self._restored(held, rows, theta, risk, values, seen)
            tolerance = self.rounding(rows, theta)
            met = abs(values) <= 1e3 * tolerance
            if not met.all():
                some = np.flatnonzero(met)
                kinks, held = [kinks[n] for n in some], self.held([kinks[n] for n in some])
                move = move._replace(held=move.held[some])
                risk, values, seen = held.forward(theta)
        return State(theta, kinks, move.multipliers[move.held], risk, seen)

    def _restored(self, held, rows, theta, risk, values, seen):
        """Bring v_K to 0 by a few steps with the gradients `rows`, as far as that goes."""
        inverse, tolerance = None, self.rounding(rows, theta)
        for _ in range(8):
            if not (abs(values) > tolerance).any():
                break
            if inverse is None:
                inverse = np.linalg.pinv(rows, rcond=1e-10)
            nearer = self._moved(theta, -(inverse @ values))
            trial = held.forward(nearer)
            if not abs(trial[1]).max() < 0.9 * abs(values).max():
                break
            theta, (risk, values, seen) = nearer, trial
        return theta, risk, values, seen

    def rounding(self, rows: np.ndarray, theta: Parameters) -> np.ndarray:
        """Return what v_K may be by rounding alone."""
        return 4 * EPSILON * (abs(rows) @ abs(theta.vector) + 1e-300)

    @staticmethod
    def _moved(theta: Parameters, d: np.ndarray) -> Parameters:
        return Parameters(theta.net, theta.vector + d)

    def polish(self) -> Ending:
        """Newton steps on the kinks where the state is, to rounding; return what holds there."""
        state, best = self.state, None
        theta, kinks = state.theta, list(state.kinks)
        held = self.held(kinks)
        for _ in range(8):
            rows = held.jacobian(theta)
            plain, values, _ = held.gradient(theta, np.zeros(len(kinks)))[1:]
            multipliers = -np.linalg.pinv(rows.T, rcond=1e-10) @ plain if kinks else np.zeros(0)
            found = held.gradient(theta, multipliers)
            hessian = held.hessian(theta, multipliers)
            normal, tangent = split(rows)
            w, vectors = np.linalg.eigh(tangent.T @ hessian @ tangent)
            tangent = tangent @ vectors
            residual = float(abs(found.gradient).max())
            off = float(abs(values).max(initial=0.0))
            if best is None or residual + off < 0.5 * (
                best.residual + abs(best.values).max(initial=0)
            ):
                low, high = held.bounds(found.signals)
                risk, _, seen = held.forward(theta)
                here = State(theta, kinks, multipliers, risk, seen)
                best = Ending(
                    here, "", True, residual, values, found.signals, low, high, w, tangent
                )
            else:
                break
            size = abs(w).max(initial=0.0)
            firm = abs(w) > 1e-9 * size
            slope = tangent.T @ found.gradient
            d = -tangent[:, firm] @ (slope[firm] / abs(w[firm]))
            if kinks:
                d -= np.linalg.pinv(rows, rcond=1e-10) @ values
            theta = self._moved(theta, d)
        return best
