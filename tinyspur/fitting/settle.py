"""From where training stopped to the strict local minimum that it was heading for."""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
from scipy.special import entr

from ..certificates.families import Family
from ..certificates.fixed_sums import fixed_sum
from ..certificates.free import choose_coordinates
from ..certificates.strict import StrictCertificate, certify_strict
from ..console import Bar, step
from ..datasets.samples import TrainingSet
from ..engine.backend import namespace
from ..engine.floats import QUIET
from ..engine.held import Held, HeldKink
from ..engine.losses import KNOWN, CrossEntropy, Loss, SquaredLoss
from ..engine.network import check_at
from ..engine.parameters import Parameters
from ..engine.plain import real, whole_number
from ..errors import within_floats
from ..shown import Shown
from .kink_model import split
from .kinked_newton import KinkedNewton
from .kinked_point import NULL, Conditions
from .training import descend

FIRST, CHUNKS = 200, 20  # L-BFGS steps in a row, and how often, before the first Newton step
SLOW = 1e-4  # of the risk: L-BFGS steps in a row that lower it by less are the last
LARGEST = 10_000  # parameters: the Hessian is a dense matrix
GROWN = 10_000  # times what they were at first: the parameters seem to grow for ever
ON_BOUND = 1e-8  # of the distance between the bounds: a multiplier that is nearer counts as on it
MANY, IN_VAIN, GROWING = 100, 1e-5, 1.05  # steps in which R falls by less and parameters grow more
NOTHING = 1e-26  # of the targets' mean square: a squared loss below is 0 up to rounding
ENTROPY = (
    1e-9  # of the targets' entropy, or 1e-12: a cross-entropy that is nearer is heading for it
)


GLOBAL = "the risk is 0 up to rounding: a global minimum"
FITTED = f"the risk is the least of all, the entropy of the targets, up to {ENTROPY:g}: global"
NEVER = "the risk falls to the entropy of the targets as outputs grow for ever: no minimum"
INTERRUPTED = "interrupted"
NO_LOWER = "no lower point was found, which does not make a minimum: not decided"
SETTLED = "the conditions of a local minimum hold, up to rounding"


@dataclass(frozen=True, repr=False)
class Settled(Shown):
    """Where a point settled: the local minimum, or what is missing for one.

    `theta` is the point, `risk_before` and `risk` those of the given point and of theta, `moved`
    the largest change of a parameter. At `kinks` units are held, equal ones as one, with the
    `multipliers` between the bounds `low` and `high`, all (kinks,). Where it is `settled` the
    conditions of a strict local minimum hold, up to rounding, but for `flat` directions in which
    the Hessian is 0, all of which symmetries explain: `symmetries` are those that are known, where
    the gradient is 0. `residual` is the largest entry of the
    gradient, multipliers included, and `eigenvalue` the least one that is not 0 of the Hessian on
    the tangent space of the kinks, after so many `steps`. `reason` says why it ended. With the
    squared loss and targets of one sum they are those without the last output, which follows from
    it.

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
    symmetries: Family | None
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
            f"risk {self.risk_before:.9g} before, {self.risk:.9g} after {self.steps} "
            f"step{'s' * (self.steps != 1)}, "
            f"parameters moved by up to {self.moved:.3g}",
            f"largest entry of the gradient {self.residual:.1e}, least eigenvalue about "
            f"{self.eigenvalue:.3g}, flat directions {self.flat}",
        ]
        if self.symmetries and not self.holds:  # else the certificate says so
            lines.append(f"symmetries known: {self.symmetries}")
        depth = self.theta.net.depth
        if self.kinks:
            words = ("between its bounds", "and the bounds that it needs to be between")
            lines.append(f"at kinks, each with its multiplier {words[not self.settled]}:")
        for kink, *numbers in zip(self.kinks, self.low, self.multipliers, self.high, strict=True):
            low, found, high = (f"{number:.3g}" for number in numbers)
            shown = f"{low} < {found} < {high}" if self.settled else f"{found}, {low} and {high}"
            lines.append(f"  {_place(kink, depth)}: {shown}")
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


@np.errstate(**QUIET)
@within_floats("settle: ")
def settle(
    theta: Parameters,
    data: TrainingSet,
    loss: Loss,
    steps: int = 1000,
    seconds: float = math.inf,
    progress: bool | str = False,
) -> Settled:
    """Return the strict local minimum that theta is heading for, smooth or at kinks.

    L-BFGS steps until these get hardly lower, then at most `steps` Newton steps for a convex model
    in which all kinks that are near may be met at once; no new one is begun after so many
    `seconds`, the proof not counted. It gives up where the parameters grow to 10,000 times their
    size, or by 5 % in 100 steps that lower the risk by less than 1e-5 of it. The risk never ends
    higher than it began, but for rounding. Where the conditions of a strict local minimum hold, up
    to rounding, it tries to prove it, see `certify_strict`. All is computed in float64, on the
    host, with the Hessian as a dense matrix: some 3,000 parameters are the most that is quick.
    `progress` shows on stderr how far it is, after a text of yours if it is one. Ctrl-C ends the
    search: the best point comes back, and `reason` says so. Raises ValueError for more than 10,000
    parameters, for settings out of range, for piecewise linear activations of your own, leaky ReLU
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
    if not real(seconds) > 0:
        raise ValueError(f"settle: expected seconds > 0, got {seconds!r}")
    if theta.net.size > LARGEST:
        raise ValueError(
            f"settle: expected at most {LARGEST:,} parameters, as the Hessian is a dense matrix, "
            f"got {theta.net.size:,}"
        )
    text = progress if isinstance(progress, str) else "settling"
    end, start = time.monotonic() + seconds, theta.to(np, np.float64)
    fewer = fixed_sum(start, data, loss)
    problem = (start, data, loss) if fewer is None else (fewer.projected(), *fewer[1:3])
    risk_before = theta.net.risk(start, data, loss)
    with step(text, steps) if progress else nullcontext(Bar()) as bar:
        found, reason, taken = _searched(*problem, steps, end, bar)
    point = found.state.theta if fewer is None else fewer.lifted(found.state.theta)
    risk = theta.net.risk(point, data, loss)
    if not risk <= risk_before * (1 + 1e-14):
        here = KinkedNewton(*problem)
        found, reason, risk, point = here.polished(), NO_LOWER, risk_before, start
        found = found._replace(state=here.state)
    settled, certificate = reason == SETTLED, None
    try:
        certificate = _certificate(point, data, loss, found.state.kinks) if settled else None
    except KeyboardInterrupt:
        reason = f"{reason}; the proof was {INTERRUPTED}"
    state, firm = found.state, found.eigenvalues[abs(found.eigenvalues) > NULL * found.size]
    symmetries = _symmetries(found, *problem[1:]) if found.stationary else None
    if symmetries and fewer is not None:
        symmetries = fewer.lifted_family(symmetries)
    return Settled(
        point.to(namespace(theta.vector)),
        settled,
        reason,
        risk_before,
        risk,
        float(abs(point.vector - start.vector).max()),
        tuple(state.kinks),
        state.multipliers,
        found.low,
        found.high,
        found.residual,
        float(firm.min(initial=math.inf)),
        found.flat,
        symmetries,
        taken,
        certificate,
    )


def _certificate(
    theta: Parameters, data: TrainingSet, loss: Loss, kinks: list[HeldKink]
) -> StrictCertificate | None:
    """Return the proof at a point, or None for networks and losses that it is not for."""
    if not StrictCertificate.applies(theta, loss):
        return None
    return certify_strict(theta, data, loss, kinks)


def _searched(
    theta: Parameters, data: TrainingSet, loss: Loss, steps: int, end: float, bar: Bar
) -> tuple[Conditions, str, int]:
    """Return what holds where the search ends, why it ended, and after how many Newton steps."""
    search, reason = KinkedNewton(theta, data, loss), ""
    try:
        theta = _descended(theta, data, loss, end)
        search = KinkedNewton(theta, data, loss)
        reason = _stopped(search, steps, end, bar)
    except KeyboardInterrupt:
        reason = INTERRUPTED
    found = search.polished()
    if found.state.risk > search.state.risk * (1 + 1e-12):
        found = found._replace(state=search.state)
    if reason not in ("", INTERRUPTED):
        return found, reason, search.taken
    falling = f"{reason or 'still falling'} after {search.taken} step{'s' * (search.taken != 1)}"
    before, size = _size(theta), _size(search.state.theta)
    if size > 2 * before:
        grown = f"weights grow, from {before:.3g} to {size:.3g}; the infimum may be at infinity"
        return found, f"{falling}: {grown}", search.taken
    return found, f"{falling}, with parameters up to {size:.3g}", search.taken


def _size(theta: Parameters) -> float:
    return float(abs(theta.vector).max())


def _descended(theta: Parameters, data: TrainingSet, loss: Loss, end: float) -> Parameters:
    """Return where L-BFGS does not get much lower, as at kinks: Newton steps may leave its way."""
    for _ in range(CHUNKS):
        before, theta = theta, descend(theta, data, loss, FIRST)
        risks = [theta.net.risk(point, data, loss) for point in (before, theta)]
        if risks[0] - risks[1] <= SLOW * abs(risks[0]) or time.monotonic() > end:
            break
    return theta


def _stopped(search: KinkedNewton, steps: int, end: float, bar: Bar) -> str:
    """Take Newton steps; return why the search ends where it does, "" if the risk still falls."""
    least, near, lowest = _least_risk(search.data, search.loss)
    largest, stuck, before = GROWN * _size(search.state.theta), 0, search.state
    while search.taken < steps and _size(search.state.theta) <= largest:
        lower = search.step()
        if search.taken % MANY == 0:
            fallen, grown = before.risk - search.state.risk, _size(before.theta) * GROWING
            if fallen < IN_VAIN * abs(before.risk) and _size(search.state.theta) > grown:
                break
            before = search.state
        bar.advance(note=f"risk {search.state.risk:.9g}, {len(search.state.kinks)} kinks")
        if search.state.risk - least <= near:
            return lowest
        if not lower or search.expected < 1e-12 * abs(search.state.risk):
            reason = _verdict(search, search.polished())
            stuck = 0 if lower else stuck + 1
            if reason or stuck > 5:
                return reason or NO_LOWER
        if time.monotonic() > end:
            break
    return ""


def _least_risk(data: TrainingSet, loss: Loss) -> tuple[float, float, str]:
    """Return the least that the risk can be for any outputs, what counts as there, and words.

    It is 0, for the cross-entropy the mean entropy of the targets; where some of these are 0 no
    outputs reach that. Of a loss of a user's it is not known.
    """
    if type(loss) is CrossEntropy:
        least = float(entr(data.y).sum(axis=1).mean())
        return least, ENTROPY * max(least, 1e-3), FITTED if (data.y > 0).all() else NEVER
    nothing = NOTHING * float((data.y**2).mean()) if type(loss) is SquaredLoss else 0.0
    return (0.0 if type(loss) in KNOWN else -math.inf), nothing, GLOBAL


def _symmetries(found: Conditions, data: TrainingSet, loss: Loss) -> Family:
    """Return the symmetries that move a point, each with the coordinate that it freezes."""
    held = Held(found.state.theta.net, data, loss, found.state.kinks)
    return choose_coordinates(held, found.state.theta, data).family


def unexplained(search: KinkedNewton, found: Conditions) -> int:
    """Return in how many directions the Hessian is 0 that no symmetry explains.

    It is that of L in the free coordinates, on the tangent space of the kinks.
    """
    state = found.state
    held = search.held(state.kinks)
    free = choose_coordinates(held, state.theta, search.data).free
    _, tangent = split(held.jacobian(state.theta)[:, free])
    hessian = held.hessian(state.theta, state.multipliers)[np.ix_(free, free)]
    eigenvalues = np.linalg.eigvalsh(tangent.T @ hessian @ tangent)
    return int((eigenvalues <= NULL * found.size).sum())


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
    others = search.others_at_kinks(found)
    if (slack < ON_BOUND).any():
        left = search.leave_bounds(found, ON_BOUND, others)
        return "" if left else "a multiplier is on its bound: not decided"
    if (found.eigenvalues < -NULL * found.size).any():
        return "a saddle that no lower point was found from"
    if search.leave_concave(found, others) or search.leave_bounds(found, ON_BOUND, others):
        return ""
    if others:
        count = sum(len(kink.units) for kink in others)
        many = "units are at their kinks" if count > 1 else "unit is at its kink"
        return f"{count} more {many}: not decided"
    flat = unexplained(search, found)
    if flat:
        return f"{flat} flat direction{'s' * (flat > 1)} that no symmetry explains: not decided"
    return SETTLED
