"""What the audit finds: a row, both sides of it, and how two points are put to the same test."""

from __future__ import annotations

import itertools
import textwrap
from dataclasses import asdict, dataclass, field

import numpy as np

from ..certificates import certify
from ..datasets.samples import TrainingSet
from ..engine.losses import SquaredLoss
from ..engine.parameters import Parameters
from ..refutations.escapes import (
    REACH,
    Escape,
    find_escape,
    first_order_directions,
    second_order_directions,
)
from ..refutations.expansion import expand_risk

POINTS = 21  # of a curve
STATIONARY = 1e-9  # with a larger gradient a curve follows minus it, else the escape from the kink
HALVINGS = 30  # of a move until the risk falls along it
LOSS = SquaredLoss()


@dataclass(frozen=True)
class Side:
    """What one variant comes to: a verdict, a sentence with the numbers, the numbers.

    `holds` where a certificate proves that the point is a local minimum.
    """

    verdict: str
    text: str
    values: dict[str, float | int | bool] = field(default_factory=dict)
    holds: bool = False


@dataclass(frozen=True)
class Finding:
    """A row of the audit: a statement, what it measures as printed and as repaired.

    `axes` are the names of x and y, `curves` the points (x, y) to draw for each variant.
    """

    name: str
    source: str
    statement: str
    literal: Side
    repaired: Side
    axes: tuple[str, str]
    curves: dict[str, tuple[np.ndarray, np.ndarray]]

    def as_dict(self) -> dict:
        """Return what the report of the audit holds."""
        return {
            "name": self.name,
            "source": self.source,
            "statement": self.statement,
            "literal": asdict(self.literal),
            "repaired": asdict(self.repaired),
        }


def table(findings: list[Finding]) -> str:
    """Return the findings as text: for each the statement, and what both variants measure."""
    lines = []
    for finding in findings:
        lines += [
            f"{finding.name:<4} {finding.statement} ({finding.source})",
            *_wrapped("as printed", finding.literal),
            *_wrapped("repaired", finding.repaired),
            "",
        ]
    return "\n".join(lines[:-1])


def _wrapped(name: str, side: Side) -> list[str]:
    text = f"{side.verdict}: {side.text}"
    return textwrap.wrap(text, 96, initial_indent=f"     {name:<11}", subsequent_indent=" " * 16)


def compare(
    name: str,
    source: str,
    statement: str,
    literal: Parameters,
    repaired: Parameters,
    data: TrainingSet,
    seed: int,
) -> Finding:
    """Return what a search finds near both points, and the risk along a move that lowers one.

    Raises RuntimeError where nothing lower is found near the literal point.
    """
    printed, escape, kink = _attack(literal, data, seed)
    mended, *_ = _attack(repaired, data, seed)
    if escape is None:
        raise RuntimeError(f"{name}: expected a lower point within {REACH:g} of the literal point")
    steep = kink
    if steep is None or printed.values["gradient"] > STATIONARY:
        steep = -literal.net.gradient(literal, data, LOSS).vector
    move = REACH / abs(steep).max() * steep
    for _ in range(HALVINGS):
        if _risk_at(literal, move, data) < literal.net.risk(literal, data, LOSS):
            break
        move = move / 2
    else:
        move = escape.theta.vector - literal.vector
    shares, curves = np.linspace(0, 1, POINTS), {}
    for variant, theta in (("literal", literal), ("repaired", repaired)):
        if theta.net != literal.net:  # no such move there: a random one of the same size
            size = min(float(abs(move).max()), mended.values["radius"])
            move = size * np.random.default_rng(seed).uniform(-1, 1, theta.vector.size)
        risks = np.array([_risk_at(theta, share * move, data) for share in shares])
        curves[variant] = shares * abs(move).max(), risks - risks[0]
    axes = ("largest change of a parameter", "R - R(theta)")
    return Finding(name, source, statement, printed, mended, axes, curves)


def _risk_at(theta: Parameters, move: np.ndarray, data: TrainingSet) -> float:
    """Return the risk of the point `move` away from theta."""
    return theta.net.risk(Parameters(theta.net, theta.vector + move), data, LOSS)


def _attack(
    theta: Parameters, data: TrainingSet, seed: int
) -> tuple[Side, Escape | None, np.ndarray | None]:
    """Return what certificate and search say of theta, the lower point, and an escape's direction.

    The search covers the radius of the certificate if it holds, where there is nothing to be found,
    and `REACH` otherwise. The direction is the steepest one from a kink, in closed form, if any.
    """
    certificate = certify(theta, data, LOSS)
    radius = certificate.radius if certificate.holds else REACH
    gradient = float(np.linalg.norm(theta.net.gradient(theta, data, LOSS).vector))
    escape = find_escape(theta, data, LOSS, radius, seed=seed)
    values = {
        "gradient": gradient,
        "classes": certificate.classes,
        "margin": certificate.margin,
        "radius": radius,
        "lower_point_found": escape is not None,
    }
    if certificate.holds:
        text = (
            f"{certificate.classes} pattern class{'es' * (certificate.classes > 1)}, "
            f"gradient {gradient:.0e}, "
        )
        if escape is None or escape.decrease - escape.rounding <= certificate.delta:
            text += f"nothing lower within {radius:.2g}"
            return Side("certified local minimum", text, values, True), None, None
        return Side("contradiction", text + f"lower by {escape.decrease:.2g}", values), escape, None
    first = list(first_order_directions(theta, data, LOSS))
    kink, slope = min(first, key=lambda found: found[1], default=(None, 0.0))
    downhill = Parameters(theta.net, -theta.net.gradient(theta, data, LOSS).vector)
    along = expand_risk(theta, downhill, data, LOSS)  # exact at kinks too
    rates = [along] + ([expand_risk(theta, kink, data, LOSS)] if kink else [])
    text = f"gradient {gradient:.1e}"
    if slope:
        values["one_sided_derivative"] = slope
        text += f", one-sided derivative {slope:.2g} at a kink"
    for direction, rate in itertools.islice(second_order_directions(theta, data, LOSS, seed), 1):
        kink = kink or direction
        values["second_order_rate"] = rate
        text += f", R changes by {rate:.2g} eps^2 from the kink"
        rates.append(expand_risk(theta, direction, data, LOSS))
    if escape is not None:
        values |= {"decrease": escape.decrease, "distance": escape.distance}
        text += f": lower by {escape.decrease:.2g} at distance {escape.distance:.2g}"
    falls = [rate.beyond for rate in rates if rate.order]
    if falls and min(falls):  # the stored point may be next to the kink of the printed one
        text += f", falling from distance {min(falls):.0e} on"
    verdict = "not a local minimum" if falls else "not certified"
    return Side(verdict, text, values), escape, None if kink is None else kink.vector
