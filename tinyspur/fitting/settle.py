"""From where training stopped to the strict local minimum that it was heading for."""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np

from ..console import Bar, step
from ..datasets.samples import TrainingSet
from ..engine.backend import namespace
from ..engine.held import HeldKink
from ..engine.losses import Loss, SquaredLoss
from ..engine.network import check_at
from ..engine.parameters import Parameters
from ..engine.plain import whole_number
from .kinked_newton import NULL, Conditions, KinkedNewton
from .training import descend

FIRST = 200  # L-BFGS steps before the first Newton step
ON_BOUND = 1e-8  # of the distance between the bounds: a multiplier that is nearer counts as on it
NOTHING = 1e-26  # of the targets' mean square: a squared loss below is 0 up to rounding


@dataclass(frozen=True)
class Settled:
    """Where a point settled: the local minimum, or what is missing for one.

    `theta` is the point, `risk_before` and `risk` those of the given point and of theta, `moved`
    the largest change of a parameter. At `kinks` units are held, equal ones as one, with the
    `multipliers` strictly between the bounds `low` and `high`, all (kinks,), where `settled`: then
    the conditions of a strict local minimum hold, up to rounding, but for `flat` directions in which
    the Hessian is 0. `residual` is the largest entry of the gradient, multipliers included,
    `eigenvalue` the least one that is not 0 of the Hessian on the tangent space of the kinks, after
    so many `steps`. `reason` says why it ended.
    """

    theta: Parameters
    settled: bool
    reason: str
    risk_before: float
    risk: float
    moved: float
    kinks: tuple[HeldKink, ...]
    multipliers: np.ndarray
    low: np.ndarray
    high: np.ndarray
    residual: float
    eigenvalue: float
    flat: int
    steps: int

    def __str__(self) -> str:
        lines = [
            f"{'settled' if self.settled else 'not settled'}: {self.reason}",
            f"risk {self.risk_before:.9g} before, {self.risk:.9g} after {self.steps} steps; "
            f"parameters moved by up to {self.moved:.3g}",
            f"gradient {self.residual:.1e}, least eigenvalue {self.eigenvalue:.3g}, "
            f"{self.flat} flat directions",
        ]
        if self.kinks:
            lines.append(f"at {len(self.kinks)} kinks, each with its multiplier and the bounds:")
        depth = self.theta.net.depth
        for kink, t, low, high in zip(
            self.kinks, self.multipliers, self.low, self.high, strict=True
        ):
            lines.append(f"  {_place(kink, depth)}: {low:.3g} < {t:.3g} < {high:.3g}")
        return "\n".join([lines[0], *(f"  {line}" for line in lines[1:])])


def _place(kink: HeldKink, depth: int) -> str:
    """Return in words where a kink is."""
    more = f" and {len(kink.units) - 1} equal ones" if len(kink.units) > 1 else ""
    if kink.layer > depth:
        return f"loss of output {kink.units[0]}, sample {kink.samples[0]}{more}"
    what = "tie of" if kink.pairs is not None else "unit"
    return (
        f"layer {kink.layer} map {kink.map}, {what} {kink.units[0]}, sample {kink.samples[0]}{more}"
    )


def settle(
    theta: Parameters,
    data: TrainingSet,
    loss: Loss,
    steps: int = 1000,
    seconds: float = math.inf,
    progress: bool | str = False,
) -> Settled:
    """Return the strict local minimum that theta is heading for, smooth or at kinks.

    Some L-BFGS steps, then at most `steps` Newton steps for a convex model in which all kinks that
    are near may be met at once; no new one is begun after so many `seconds`. The risk never ends
    higher than it began. All is computed in float64, on the host. `progress` shows on stderr how
    far it is, after a text of yours if it is one. Raises ValueError for settings out of range and
    where the risk at theta is not finite.
    """
    check_at(theta, data, loss)
    steps = whole_number("steps", steps)
    if not seconds > 0:
        raise ValueError(f"settle: expected seconds > 0, got {seconds}")
    text = progress if isinstance(progress, str) else "settling"
    end, start = time.monotonic() + seconds, theta.to(np, np.float64)
    with step(text, steps) if progress else nullcontext(Bar()) as bar:
        search = KinkedNewton(descend(start, data, loss, FIRST), data, loss)
        found, reason, taken = _searched(search, steps, end, bar)
    risk_before, risk = (theta.net.risk(point, data, loss) for point in (start, found.state.theta))
    if not risk <= risk_before:
        here = KinkedNewton(start, data, loss)
        found, reason, risk = here.polished(), "no lower point was found", risk_before
        found = found._replace(state=here.state)
    state, firm = found.state, found.eigenvalues[abs(found.eigenvalues) > NULL * found.size]
    return Settled(
        state.theta.to(namespace(theta.vector)),
        reason == SETTLED,
        reason,
        risk_before,
        risk,
        float(abs(state.theta.vector - start.vector).max()),
        tuple(state.kinks),
        state.multipliers,
        found.low,
        found.high,
        found.residual,
        float(firm.min(initial=math.inf)),
        found.flat,
        taken,
    )


SETTLED = "the conditions of a local minimum hold, up to rounding"


def _searched(
    search: KinkedNewton, steps: int, end: float, bar: Bar
) -> tuple[Conditions, str, int]:
    """Return what holds where the steps end, why they ended, and how many they were."""
    data, stuck = search.data, 0
    nothing = NOTHING * float((data.y**2).mean()) if type(search.loss) is SquaredLoss else 0.0
    for taken in range(1, steps + 1):
        lower = search.step()
        bar.advance(note=f"risk {search.state.risk:.9g}, {len(search.state.kinks)} kinks")
        if search.state.risk <= nothing:
            return search.polished(), "the risk is 0 up to rounding: a global minimum", taken
        if not lower or search.expected < 1e-12 * abs(search.state.risk):
            found = search.polished()
            reason = _verdict(search, found)
            if reason:
                return found, reason, taken
            stuck = 0 if lower else stuck + 1
            if stuck > 5:
                return found, "no lower point was found", taken
        if time.monotonic() > end:
            break
    return search.polished(), f"still falling after {taken} steps", taken


def _verdict(search: KinkedNewton, found: Conditions) -> str:
    """Return why the search ends here, or "" where it goes on, perhaps from another state."""
    state = search.state
    if not found.stationary or found.state.risk > state.risk + 1e-12 * abs(state.risk):
        search.mu = None
        return ""
    slack = found.slack
    if (slack < -ON_BOUND).any():
        inside = np.clip(found.state.multipliers, found.low, found.high)
        search.state, search.mu = found.state._replace(multipliers=inside), None
        return ""
    if search.leave_saddle(found):
        return ""
    if (slack < ON_BOUND).any():
        return "a multiplier is on its bound: not decided"
    if (found.eigenvalues < -NULL * found.size).any():
        return "a saddle that no lower point was found from"
    return SETTLED
