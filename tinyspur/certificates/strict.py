"""The strict certificate: a strict local minimum is near, smooth or at kinks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..datasets.samples import TrainingSet
from ..engine.activations import KNOWN as KNOWN_ACTIVATIONS
from ..engine.floats import EPSILON, LEAST_NORMAL, QUIET, slack
from ..engine.held import HeldKink
from ..engine.held_steps import steps
from ..engine.losses import KNOWN, Loss
from ..engine.network import check_at
from ..engine.parameters import Parameters, check_points
from ..errors import AssumptionError, within_floats
from .boxes import first_order, members_of
from .certificate import Certificate, in_float64, round_down, round_up
from .enclosed_algebra import positive_bound
from .enclosures import Enclosure, exact
from .families import Family
from .fixed_sums import FixedSum, fixed_sum
from .growth import Growth, Proved, box_around, exists, penalised, rooms, split
from .rounding import risk_rounding
from .stationary import (
    FLAT,
    NEGATIVE,
    Stationary,
    candidates,
    find_stationary,
    flat_words,
    members_are_equal,
)

LARGEST = 3000  # parameters: the Hessian is a dense matrix


@dataclass(frozen=True, repr=False)
class StrictCertificate(Certificate):
    """The strict certificate: the risk grows in all directions that change what is computed.

    With the kinks K at which units are held, L = R_0 + sum_k lambda_k v_k: in a box of the
    multipliers and the `free` coordinates, which is within `distance` of theta, the others being as
    in its middle, there is exactly one point theta* with grad L = 0 and v_K = 0; each multiplier is
    inside its bounds alpha C_k < lambda_k < C_k; and the Hessian of L is positive definite on {d :
    grad v_K . d = 0}. The certificate `holds` where that is proved, and that no point within
    max-norm distance `radius` of theta, in all coordinates, has a lower risk than theta* (see
    `certificates.growth`). Points with the same outputs as theta* are related to it by what the
    `frozen` coordinates stand for, see `certificates.free`; the `idle` ones have no influence.

    Where the loss is the squared one and all targets have one sum, all that is shown of the network
    without its last output, whose parameters `follow` from the others, see `fixed_sums`; of the
    network as it is only where numbers that are added to all outputs cancel, so they do not follow.

    `family` says why each coordinate is frozen or idle: which symmetries lead from theta* to the
    points with the same outputs.

    `kinks` is the number of different ones, `held` that of all units and samples that are held,
    `eigenvalue` a lower bound of the least eigenvalue of the Hessian on the tangent space, `inside`
    one of how far the multipliers are inside their bounds, relative to C_k, `risk` encloses R at
    theta*. At the point in floats around which the box is, `margin` is the least |z| of units that
    are not held, but those that are 0, and `stationarity` the largest entry of grad L in the free
    coordinates.
    """

    holds: bool
    classes: int
    margin: float
    radius: float
    stationarity: float
    kinks: int = 0
    held: int = 0
    free: int = 0
    frozen: int = 0
    idle: int = 0
    follow: int = 0
    family: Family | None = None
    eigenvalue: float = 0.0
    inside: float = math.inf
    risk: tuple[float, float] = (math.nan, math.nan)
    delta: float = math.inf
    distance: float = math.inf
    assumes: str = ""
    obstacle: str = ""

    kind = "strict"

    @classmethod
    def require(cls, theta: Parameters, loss: Loss) -> None:
        """Raise ValueError unless activation and loss are this package's and there are few weights.

        Few are up to 3,000 parameters; a slope of leaky ReLU must be below 1.
        """
        check_points(None, theta)
        for sigma in theta.net.activations:
            if type(sigma) not in KNOWN_ACTIVATIONS.values() or getattr(sigma, "slope", 0) >= 1:
                raise ValueError(
                    "strict certificate: expected an activation of this package, of a slope below "
                    f"1, got {sigma}"
                )
        if type(loss) not in KNOWN:
            raise ValueError(f"strict certificate: expected a loss of this package, got {loss!r}")
        if not 0 < theta.net.size <= LARGEST:
            raise ValueError(
                f"strict certificate: expected 1 to {LARGEST:,} parameters, got {theta.net.size:,}"
            )

    @property
    def words(self) -> str:
        """Return what was found in half a line."""
        if not self.holds:
            return f"not certified, {self.obstacle}"
        kinks = f" at {self.kinks} kink{'s' * (self.kinks > 1)}" if self.kinks else ""
        return f"certified strict local minimum{kinks}"

    def lines(self) -> list[str]:
        """Return what was found and what it rests on, as lines of text."""
        if not self.holds:
            return [f"not decided: {self.obstacle}"]
        inside = f"multipliers inside their bounds by a share of {round_down(self.inside)}, "
        places = f" (at {self.held} places)" * (self.held > self.kinks)
        return [
            f"kinks {self.kinks}{places}, free coordinates {self.free}, "
            f"frozen {self.frozen}, without influence {self.idle}"
            + f", {self.follow} of the last output follow from its sum with others"
            * bool(self.follow),
            str(self.family),
            f"least eigenvalue at least {round_down(self.eigenvalue)}, "
            f"{inside * bool(self.kinks)}margin {self.margin:.3g}, "
            f"radius {round_down(self.radius)}",
            f"R(theta*) is between {self.risk[0]!r} and {self.risk[1]!r}",
            *self.bound_lines(),
        ]


@np.errstate(**QUIET)  # in large boxes bounds are infinite
def certify_strict(
    theta: Parameters,
    data: TrainingSet,
    loss: Loss,
    kinks: Sequence[HeldKink] | None = None,
) -> StrictCertificate:
    """Prove that a strict local minimum is near theta, smooth or at kinks.

    For any network with an activation of this package, and any loss of it. `kinks` are those at
    which units are held, by default those that theta is near; a point that ends at kinks should be
    within some 1e-6 of them. The Hessian is a dense matrix over all parameters. A float32 theta is
    taken for the numbers that it holds, in float64 arithmetic on the host. Raises ValueError for
    other activations and losses, and where parameters or outputs are not finite.
    """
    check_at(theta, data, loss)
    StrictCertificate.require(theta, loss)
    theta = in_float64(theta, np)
    if not np.isfinite(theta.net.forward(theta, data.x)).all():
        raise ValueError("certificate: expected finite outputs, got NaN or infinite ones")
    fewer = fixed_sum(theta, data, loss)
    if fewer is None:
        return _first(theta, data, loss, kinks)[0]
    found, at = _first(*fewer[:3], kinks)
    lifted = _with_last_output(found, fewer, at, data, loss)
    if lifted.holds or not found.holds:
        return lifted
    whole, _ = _first(theta, data, loss, kinks)
    return whole if whole.holds else lifted


def _first(
    theta: Parameters, data: TrainingSet, loss: Loss, kinks: Sequence[HeldKink] | None
) -> tuple[StrictCertificate, Stationary | str]:
    """Return the first certificate that holds or the last one, and what it is of."""
    for some in candidates(theta, data, loss) if kinks is None else (kinks,):
        try:
            with within_floats():
                at = find_stationary(theta, data, loss, some, kinks is not None)
                found = _undecided(at) if isinstance(at, str) else _certified(at, theta, data, loss)
        except AssumptionError as error:
            at = str(error)
            found = _undecided(at)
        if found.holds:
            break
    return found, at


def _with_last_output(
    found: StrictCertificate,
    fewer: FixedSum,
    at: Stationary | str,
    data: TrainingSet,
    loss: Loss,
) -> StrictCertificate:
    """Return the certificate at the given point from that without its last output."""
    theta, outputs, family = fewer.given, fewer.given.net.shapes[-1][0], found.family
    if family is not None:
        family = fewer.lifted_family(family)
        idle = found.idle + family.dimension - found.family.dimension
        follow = theta.net.size - found.free - found.frozen - idle
        found = replace(found, family=family, idle=idle, follow=follow)
    if not found.holds:
        return found
    off = fewer.off(family)
    distance = (off + (outputs - 1) * found.distance) * slack(4)
    radius = (found.radius - off / outputs * slack(2)) * outputs / (2 * (outputs - 1)) / slack(4)
    if not radius > 0:
        obstacle = f"the outputs do not sum to what the targets do, as numbers are off by {off:.2g}"
        return replace(found, holds=False, radius=0.0, distance=math.inf, obstacle=obstacle)
    whole = fewer.whole_family(family, at.held.kinks, data, distance)
    if whole is None:
        obstacle = "whether all outputs have a flat direction in common is not decided"
        return replace(found, holds=False, radius=0.0, distance=math.inf, obstacle=obstacle)
    more = whole.dimension - family.dimension
    return replace(
        found,
        radius=radius,
        family=whole,
        frozen=found.frozen + more,
        follow=found.follow - more,
        distance=distance,
        delta=_above(theta, data, loss, found.risk[0]),
    )


def _above(theta: Parameters, data: TrainingSet, loss: Loss, risk: float) -> float:
    """Return by how much R(theta) may be above a risk."""
    highest = theta.net.risk(theta, data, loss) + risk_rounding(theta, data, loss)
    return max(0.0, float(np.nextafter(highest - risk, math.inf)))


def _certified(
    found: Stationary, theta: Parameters, data: TrainingSet, loss: Loss
) -> StrictCertificate:
    """Return the certificate of theta by a stationary point that seems to be near."""
    counts = _counts(found)
    if not members_are_equal(found.held, found.theta):
        return _undecided("the members of a kink are not the same function of theta", **counts)
    proved = exists(found)
    if isinstance(proved, str):
        return _undecided(proved, **counts)
    box = box_around(found, proved.free_radius, 0.0, proved.multiplier_radius)
    room = rooms(found, proved.first.signals, box.multipliers)
    growth, counts["inside"] = Growth(proved, theta), inside_by(room, proved.first.signals)
    if not (room > 0).all():
        worst = found.held.kinks[int(room.argmin())]
        return _undecided(f"a multiplier is not inside its bounds, of {worst}", **counts)
    counts["eigenvalue"] = _eigenvalue(growth, room) if _is_positive(growth) else 0.0
    if not counts["eigenvalue"] > 0:
        return _undecided(_flatness(growth), **counts)
    growth.weights = growth.choose_weights(room, 0.5)
    off = growth.moved.copy()
    off[found.coordinates.free] += proved.free_radius
    distance = float(off.max()) * slack(1)
    radius, risk = growth.radius(), _risk(proved)
    counts["risk"] = risk
    if not radius > 0:
        far = (
            f"an exact stationary point is within {round_up(distance)}, but that it is a minimum "
            f"is not shown as far as here, as {growth.obstacle}"
        )
        return _undecided(far, **counts)
    return StrictCertificate(
        holds=True,
        radius=radius,
        distance=distance,
        delta=_above(theta, data, loss, risk[0]),
        **counts,
    )


def inside_by(room: np.ndarray, signals: Enclosure) -> float:
    """Return the least share of the signals by which multipliers are inside their bounds."""
    shares = room / np.maximum(signals.magnitude, LEAST_NORMAL)
    return float(shares.min(initial=math.inf))


def _undecided(obstacle: str, **counts: object) -> StrictCertificate:
    counts = {"classes": 0, "margin": 0.0, "stationarity": math.inf} | counts
    return StrictCertificate(holds=False, radius=0.0, obstacle=obstacle, **counts)


def _counts(at: Stationary) -> dict:
    """Return the numbers of classes, kinks and coordinates, and the margin."""
    held, coordinates = at.held, at.coordinates
    x = held.data.x.reshape(len(held.data), -1).astype(np.float64)
    members = members_of(held, slice(None))
    margin, patterns = math.inf, []
    for step in steps(at.theta, np.ascontiguousarray(x.T), members):
        if step.activation is not None and step.activation.piecewise_linear:
            z, some = abs(step.z), members.get(step.layer)
            z[step.W.rows :] = math.inf
            z[z == 0] = math.inf  # held, or 0 for all parameters
            if some is not None:
                z[some.units, some.columns] = math.inf
            margin = min(margin, float(z.min()))
            patterns.append(step.slopes)
    classes = len(np.unique(np.concatenate(patterns), axis=1).T) if patterns else 1
    moved = at.held.gradient(at.theta, at.multipliers).gradient[coordinates.free]
    return {
        "classes": classes,
        "margin": margin,
        "stationarity": float(abs(moved).max(initial=0)),
        "kinks": len(held.kinks),
        "held": sum(len(kink.units) for kink in held.kinks),
        "free": len(coordinates.free),
        "frozen": len(coordinates.frozen),
        "idle": len(coordinates.idle),
        "family": coordinates.family,
    }


def _is_positive(growth: Growth) -> bool:
    return growth.tangents.min(initial=math.inf) > 0


def _eigenvalue(growth: Growth, room: np.ndarray) -> float:
    """Return a lower bound of the eigenvalues of the Hessian on the tangent space, 0 if none > 0.

    As it is or, where that shows nothing, by those in the units of the system: x^T H x >= m |y|^2
    with x_i = units_i y_i is at least m |x|^2 / units_i^2 for the largest one.
    """
    H, Z = split(growth.at, growth.proved.second)
    if not len(H):
        return math.inf
    found = positive_bound(penalised(H, Z, growth.choose_weights(room, 0.9, np.ones(len(H)))))
    if found > 0:
        return found
    units = growth.units
    matrix = penalised(H, Z, growth.choose_weights(room, 0.9)) * units[:, None] * units
    return positive_bound(matrix) / float(units.max()) ** 2 * (1 - EPSILON)


def _flatness(growth: Growth) -> str:
    """Return in words why the Hessian is not positive definite on the tangent space.

    Its eigenvalues are those in the units of the system, relative to the largest one.
    """
    values = growth.tangents / abs(growth.tangents).max(initial=1e-300)
    if not len(values):
        return "the gradients of the kinks may be dependent, up to rounding"
    if (values < -NEGATIVE).any():
        return f"a saddle: an eigenvalue of the Hessian is {values.min():.2g} times the largest one"
    flat = int((values <= FLAT).sum())
    if flat:
        return flat_words(flat)
    return (
        f"the least eigenvalue of the Hessian is {values.min():.1g} times the largest one, which "
        "is too little to show that it is not 0"
    )


def _risk(proved: Proved) -> tuple[float, float]:
    """Return bounds of R(theta*): L at the middle, from which L(theta*) differs quadratically."""
    at = proved.at
    thin = first_order(
        at.held,
        box_around(at, 0 * proved.free_radius, 0.0, 0 * proved.multiplier_radius),
    )
    multipliers = Enclosure(at.multipliers, proved.multiplier_radius)
    H, _ = split(at, proved.second)
    off = float(proved.free_radius @ H.magnitude @ proved.free_radius) * slack(2 * len(H))
    total = thin.risk + (multipliers * thin.values).sum()
    total = total + exact(np.zeros(1)).wider(off)
    return float(total.low[0]), float(total.high[0])
