"""From where training stopped to the strict local minimum that it was heading for."""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np

from ..certificates.families import Family
from ..certificates.strict import StrictCertificate, certify_strict
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


SETTLED = "the conditions of a local minimum hold, up to rounding"


@dataclass(frozen=True)
class Settled:
    """Where a point settled: the local minimum, or what is missing for one.

    `theta` is the point, `risk_before` and `risk` those of the given point and of theta, `moved`
    the largest change of a parameter. At `kinks` units are held, equal ones as one, with the
    `multipliers` between the bounds `low` and `high`, all (kinks,). Where it is `settled` the
    conditions of a strict local minimum hold, up to rounding, but for `flat` directions in which
    the Hessian is 0. `residual` is the largest entry of the gradient, multipliers included, and
    `eigenvalue` the least one that is not 0 of the Hessian on the tangent space of the kinks, after
    so many `steps`. `reason` says why it ended.

    `certificate` is the proof of all that, flat directions included, where it was tried: the point
    `holds` where an exact strict local minimum is within `distance` of theta, and no point within
    `radius` is lower than it; its risk is in `risk_interval`.
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
    certificate: StrictCertificate | None

    @property
    def holds(self) -> bool:
        """Return whether it is proved that a strict local minimum is near theta."""
        return self.certificate is not None and self.certificate.holds

    @property
    def family(self) -> Family | None:
        """Return the family of minima around theta, see `move_along`; None if not proved."""
        return self.certificate.family if self.holds else None

    @property
    def distance(self) -> float:
        """Return within which distance of theta the exact minimum is; infinite if not proved."""
        return self.certificate.distance if self.holds else math.inf

    @property
    def radius(self) -> float:
        """Return within which distance of theta no point is lower than it; 0 if not proved."""
        return self.certificate.radius if self.holds else 0.0

    @property
    def risk_interval(self) -> tuple[float, float]:
        """Return two numbers with the risk of the exact minimum between; NaN if not proved."""
        return self.certificate.risk if self.holds else (math.nan, math.nan)

    def __str__(self) -> str:
        lines = [
            f"{'settled' if self.settled else 'not settled'}: {self.reason}",
            f"risk {self.risk_before:.9g} before, {self.risk:.9g} after {self.steps} steps, "
            f"parameters moved by up to {self.moved:.3g}",
            f"largest entry of the gradient {self.residual:.1e}, least eigenvalue about "
            f"{self.eigenvalue:.3g}, flat directions {self.flat}",
        ]
        depth = self.theta.net.depth
        if self.kinks:
            lines.append("at kinks, each with its multiplier between its bounds:")
        for kink, *numbers in zip(self.kinks, self.low, self.multipliers, self.high, strict=True):
            lines.append(f"  {_place(kink, depth)}: {' < '.join(f'{n:.3g}' for n in numbers)}")
        found = [lines[0], *(f"  {line}" for line in lines[1:])]
        return "\n".join(found + ([str(self.certificate)] if self.certificate else []))


def _place(kink: HeldKink, depth: int) -> str:
    """Return in words where a kink is."""
    unit, more = f"{kink.units[0]}, sample {kink.samples[0]}", len(kink.units) - 1
    equal = f" and {more} equal one{'s' * (more > 1)}" if more else ""
    if kink.layer > depth:
        return f"loss of output {unit}{equal}"
    what = "unit" if kink.pairs is None else "tie in window"
    return f"layer {kink.layer} map {kink.map}, {what} {unit}{equal}"


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
    are near may be met at once; no new one is begun after so many `seconds`, the proof not counted.
    The risk never ends higher than it began, but for rounding. Where the conditions of a strict
    local minimum hold, up to rounding, it tries to prove it, see `certify_strict`. All is computed
    in float64, on the host. `progress` shows on stderr how far it is, after a text of yours if it
    is one. Raises
    ValueError for settings out of range, for piecewise linear activations of your own, leaky ReLU
    with a slope of 1 or more, and where the risk at theta is not finite.

    A hinge is fitted to five samples; its knot stays at x = 0, although no gradient vanishes there:

    >>> from tinyspur import Network
    >>> from tinyspur.layers import Dense
    >>> net = Network((1, 1), [Dense(1), Dense(1)])
    >>> data = TrainingSet([[-2], [-1], [0], [1], [2]], [0, 0, -1, 1, 2])
    >>> found = settle(Parameters(net, [1.0, 0.1, 1.0, 0.0]), data, SquaredLoss())
    >>> print(f"{found.risk:.4f}", found.holds, found.kinks)
    0.0688 True (HeldKink(layer 1, map 0, unit 0, sample 2),)
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
    if not risk <= risk_before * (1 + 1e-14):
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
        _certificate(found, data, loss) if reason == SETTLED else None,
    )


def _certificate(found: Conditions, data: TrainingSet, loss: Loss) -> StrictCertificate | None:
    """Return the proof at a point, or None for networks and losses that it is not for."""
    theta, kinks = found.state.theta, found.state.kinks
    if not StrictCertificate.applies(theta, loss):
        return None
    return certify_strict(theta, data, loss, kinks)


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
    size, plural = float(abs(search.state.theta.vector).max()), "s" * (taken > 1)
    falling = f"still falling after {taken} step{plural}, with parameters up to {size:.3g}"
    return search.polished(), falling, taken


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
        left = search.leave_bounds(found, ON_BOUND)
        return "" if left else "a multiplier is on its bound: not decided"
    if (found.eigenvalues < -NULL * found.size).any():
        return "a saddle that no lower point was found from"
    others = search.others_at_kinks(found)
    return f"{others} more units are at their kinks: not decided" if others else SETTLED
