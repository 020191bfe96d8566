"""Small minima as fractions: theta, theta' and the lower point, with every claim checked exactly.

theta is the exact local minimum next to the stored one (`certificates.exact_fits`). In theta' the
dense layer reads the tracks A, B and r with the same weights w, so that its outputs differ from
those at theta by sums of w times differences of features; where these are the same for all samples,
biases take them off. The lower point has one bias moved.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING
from fractions import Fraction
from functools import cached_property
from pathlib import Path

import numpy as np

from ..certificates.exact import ExactPoint
from ..certificates.exact_changes import changes, risk_after
from ..certificates.exact_fits import check_exact, exact_minimum
from ..certificates.exact_kinks import exact_kinked_minimum, is_shallow
from ..certificates.proofs import CLAIMS, proof, save_proof
from ..datasets.samples import TrainingSet
from ..engine.losses import Loss
from ..engine.network import check_at
from ..engine.parameters import Parameters
from ..errors import AssumptionError
from ..fitting.rational import (
    Rational,
    digits,
    from_fractions,
    joined,
)
from ..fitting.settle import Settled
from ..shown import Shown
from .equal_risk import bias_below, case_above, case_below
from .piecewise_linear import SpuriousPair
from .spurious import SpuriousMinimum
from .witnesses import perturbed_biases

SHORT = 40  # digits of a fraction that is printed
STEP_BITS = 20  # to which the step of the lower point is rounded
SLACK = 2**30  # a share of 1 / SLACK is more than numbers are rounded by


@dataclass(frozen=True, repr=False)
class ExactPoints(Shown):
    """Points of fractions: "theta" is exactly a local minimum, and what else was asked for.

    `risks` has R of each point. "theta_prime" has the same outputs as theta for every sample, and
    "lower" a lower risk. `distance` is how far theta is from the stored point in max norm, `checks`
    what was checked in fractions. `points` has {"W1": ..., "b1": ...} for each name, arrays of
    Fraction in PyTorch's shapes, and `save` writes a proof file.
    """

    exact: Mapping[str, ExactPoint]
    data: TrainingSet
    risks: Mapping[str, Fraction]
    distance: Fraction
    checks: tuple[str, ...]
    kinks: Sequence[tuple[int, int, int]] = ()
    multipliers: Sequence[Fraction] = ()
    frozen: Sequence[tuple] = ()

    @cached_property
    def points(self) -> dict[str, dict[str, np.ndarray]]:
        return {name: point.arrays() for name, point in self.exact.items()}

    @property
    def risk(self) -> Fraction:
        """Return R(theta)."""
        return self.risks["theta"]

    @property
    def verdict(self) -> str:
        """Return what was proved."""
        if self.risk == 0:
            return "global minimum"
        return "spurious local minimum" if "lower" in self.risks else "local minimum"

    @property
    def bits(self) -> int:
        """Return the bits of the longest numerator or denominator."""
        return max(_lengths(point)[0] for point in self.exact.values())

    @property
    def claim(self) -> str:
        """Return what the proof file says: of theta, and of the lower point if there is one."""
        return "spurious-local-minimum" if "lower" in self.risks else "local-minimum"

    def file_size(self, claim: str | None = None) -> int:
        """Return about how many bytes the file of `save` takes."""
        bits = sum(_lengths(self.exact[name])[1] for name in CLAIMS[claim or self.claim])
        return int(bits * 0.302) + 22 * (self.data.x.size + self.data.y.size)

    def save(self, path: str | Path, claim: str | None = None) -> None:
        """Write a proof file, which `demos/check_proof.py` checks, of `claim` or "equal-risk".

        The latter is about theta and theta_prime. Raises ValueError where there is no theta_prime.
        """
        claim = claim or self.claim
        names = [name for name in CLAIMS[claim] if name in self.points]
        points = {name: self.points[name] for name in names}
        risks = {name: self.risks[name] for name in names}
        net, x, y = self.exact["theta"].theta.net, self.data.x, self.data.y
        parts = {"kinks": self.kinks, "multipliers": self.multipliers, "frozen": self.frozen}
        parts = parts if self.frozen and claim == self.claim else {}
        save_proof(path, proof(claim, net, x, y, points, risks=risks, **parts))

    def __str__(self) -> str:
        net = self.exact["theta"].theta.net
        lines = [
            f"exact points: {net.size:,} parameters, fractions of up to {self.bits:,} bits",
            f"theta is within {digits(self.distance, 2, ROUND_CEILING)} of the stored point",
            f"R(theta) = {_number(self.risk)}",
        ]
        if "theta_prime" in self.risks:
            lines.append("R(theta') = R(theta)")
        if "lower" in self.risks:
            decrease = self.risk - self.risks["lower"]
            lines.append(f"R(lower) = {_number(self.risks['lower'])}, lower by {_number(decrease)}")
        lines += [f"checked: {check}" for check in self.checks]
        return "\n  ".join([*lines, f"verdict: {self.verdict}, proved in fractions"])


def exact(
    found: object,
    data: TrainingSet,
    loss: Loss,
    kinks: Iterable[tuple[int, int]] | None = None,
) -> ExactPoints:
    """Return fractions for a minimum, checked exactly: that it is one, its risk, a lower point.

    `found` is what `find_spurious_minimum`, `spurious_pair` or `settle` returned, or a point. For
    the squared loss and ReLU or leaky ReLU. Numbers in float64 are fractions; those of one dense
    layer are replaced by what makes theta exactly a local minimum, all others stay. With one hidden
    layer and one output it may be at kinks: z = 0 for the (sample, unit) of `kinks`, by default
    where it is 0 up to rounding; then all incoming weights and biases are replaced.

    Fractions grow with the parameters that are replaced: thousands of bits for 50 inputs, in a
    second or two, and 16,000 bits for 784 pixels that are integers over a power of 2, in about a
    minute with python-flint (the extra `exact`). Without it some 100 inputs are the most.

    Raises ValueError for another loss or a smooth activation; AssumptionError where the point is
    not next to such a minimum, and where numbers are too long.
    """
    if isinstance(found, SpuriousMinimum):
        return _of_spurious(found, data, loss)
    if isinstance(found, SpuriousPair):
        return _of_pair(found, data, loss)
    if isinstance(found, Settled):
        held = [zip(kink.samples, kink.units, strict=True) for kink in found.kinks]
        kinks = [(int(sample), int(unit)) for members in held for sample, unit in members]
        found = found.theta
    check_at(found, data, loss)
    if kinks is not None or is_shallow(found.net):
        return _of_shallow(found, data, loss, kinks)
    return _of_fits(found, data, loss)


def _of_fits(theta: Parameters, data: TrainingSet, loss: Loss) -> ExactPoints:
    minimum = exact_minimum(theta, data, loss)
    points, risks = {"theta": minimum.point}, {"theta": minimum.risk}
    return ExactPoints(points, data, risks, minimum.distance, (_check(minimum),))


def _of_shallow(theta: Parameters, data: TrainingSet, loss: Loss, kinks) -> ExactPoints:
    """Return the point as one that is settled by fits, or as a strict minimum at kinks."""
    obstacle = ""
    if kinks is None:
        try:
            return _of_fits(theta, data, loss)
        except AssumptionError as error:
            obstacle = f"; {error}"
    try:
        found = exact_kinked_minimum(theta, data, loss, kinks)
    except AssumptionError as error:
        raise AssumptionError(f"{error}{obstacle}") from error
    checks = (
        f"units at kinks: {len(found.kinks)} and no others, each multiplier between its bounds",
        "the gradient with the multipliers is 0, the Hessian positive definite where kinks stay",
    )
    points, risks = {"theta": found.point}, {"theta": found.risk}
    parts = found.kinks, found.multipliers, found.frozen
    return ExactPoints(points, data, risks, found.distance, checks, *parts)


def _check(minimum) -> str:
    classes = f"{minimum.classes} pattern class{'es' * (minimum.classes > 1)}"
    return f"no unit at the kink, {classes}, G_s = 0 in each"


def _of_pair(found: SpuriousPair, data: TrainingSet, loss: Loss) -> ExactPoints:
    coarse, fine = (exact_minimum(theta, data, loss) for theta in (found.coarse, found.fine))
    points, risks = {"theta": coarse.point}, {"theta": coarse.risk}
    checks = [_check(coarse)]
    if fine.risk < coarse.risk:
        points["lower"], risks["lower"] = fine.point, fine.risk
        checks.append("R(lower) < R(theta)")
    return ExactPoints(points, data, risks, coarse.distance, tuple(checks))


def _of_spurious(found: SpuriousMinimum, data: TrainingSet, loss: Loss) -> ExactPoints:
    minimum = exact_minimum(found.theta, data, loss)
    prime, lower = (
        check_exact(theta, data, loss) for theta in (found.theta_prime, found.lower.theta)
    )
    theta, layer = minimum.point, minimum.layer
    points, risks = {"theta": theta}, {"theta": minimum.risk}
    checks, own = [_check(minimum)], {}
    read = _taken_over(found, theta, prime) if layer == found.pair.dense else None
    biases: dict[int, list[Fraction]] = {}
    if read is not None:
        biases = _equal_risk_biases(found, prime)
        exact_biases = {n: from_fractions(b) for n, b in biases.items()}
        moved = changes(theta, ExactPoint(prime, {layer: read}, exact_biases), layer, data)
        if not (moved.n == moved.n[:, :1]).all():
            raise AssumptionError("exact: expected theta' with the outputs of theta, got others")
        read = joined([read[:, :-1], read[:, -1:] - moved[:, :1]], axis=1)
        own = {layer: read.reduced()}
        points["theta_prime"] = ExactPoint(prime, own, exact_biases)
        risks["theta_prime"] = minimum.risk
        checks.append("all outputs of theta' are those of theta")
        held, maps = perturbed_biases(found.theta, found.pair, found.split)
        for m in maps:
            biases[held][m] += _short(found.lower.step)
    point = ExactPoint(lower, own, {n: from_fractions(b) for n, b in biases.items()})
    risk = risk_after(theta, point, layer, minimum.risk, data)
    if risk < minimum.risk:
        points["lower"], risks["lower"] = point, risk
        checks.append("R(lower) < R(theta)")
    return ExactPoints(points, data, risks, minimum.distance, tuple(checks))


def _short(step: float) -> Fraction:
    """Return a number of few binary digits near the step."""
    unit = Fraction(2) ** (int(np.frexp(step)[1]) - STEP_BITS)
    return round(Fraction(step) / unit) * unit


def _at_least(least: Fraction, size: Fraction) -> Fraction:
    """Return a short number that is not below `least`, a difference of rounded numbers, and 0.

    It is 0 where `least` is negative by more than these may be rounded, and their `size` is 0.
    """
    unit = size / SLACK
    if least < -unit or not unit:
        return Fraction(0)
    unit = Fraction(2) ** int(np.frexp(float(unit))[1])
    return (least // unit + 2) * unit


def _equal_risk_biases(found: SpuriousMinimum, prime: Parameters) -> dict[int, list[Fraction]]:
    """Return the biases of theta' in the layers L-3, L-2 and L-1, as the formulas make them.

    b' (or b, where the pair reads no bias) may be larger than what makes o_m + b' >= 0.
    """
    pair, split = found.pair, found.split
    holders = pair.tower.holders
    changed = [*([pair.below] if pair.biased else []), holders[pair.lower], holders[pair.upper]]
    biases = {n: [Fraction(float(v)) for v in prime.b[n]] for n in changed}
    kappa = Fraction(pair.kappa_lower), Fraction(pair.kappa_upper)
    eta, lowest, b_prime = Fraction(split.threshold), Fraction(split.lowest), Fraction(0)
    b = Fraction(bias_below(found.theta, pair, split))
    case = case_above if eta >= -b else case_below
    if pair.biased:
        D = _at_least(-lowest - b, abs(lowest) + abs(b))
        b_prime, kappa = b + D, (-D, sum(kappa))
        biases[pair.below][split.map] = b_prime
    else:
        b = _at_least(-lowest, abs(lowest))
    tracks = case(eta, b, b_prime, kappa)
    for place, track in zip((*pair.reserved, pair.relay_of(split.map)), tracks, strict=True):
        for layer, (_, bias) in ((pair.lower, track.lower), (pair.upper, track.upper)):
            for n in pair.tower.numbers(layer, place):
                biases[holders[layer]][n] = Fraction(bias)
    return biases


def _taken_over(found: SpuriousMinimum, theta: ExactPoint, prime: Parameters) -> Rational | None:
    """Return [W, b] of the dense layer where A and B take over the exact weights of r, b as it is.

    None where theta' was not made of theta, but after W^L was perturbed.
    """
    pair, split, layer = found.pair, found.split, found.pair.dense
    net = theta.theta.net
    b = bias_below(found.theta, pair, split)
    case = case_above if split.threshold >= -b else case_below
    shares = [track.share for track in case(split.threshold, b, b, (0.0, 0.0))]
    places = [pair.tower.columns(t) for t in (*pair.reserved, pair.relay_of(split.map))]
    outputs = slice(net.shapes[-1][0])

    def read(W: np.ndarray) -> np.ndarray:
        W = W.copy()
        w = W[split.output, places[-1]].copy()
        for columns in places[:2]:
            W[outputs, columns] = 0
        for share, columns in zip(shares, places, strict=True):
            W[split.output, columns] = share * w
        return W

    same = (read(theta.theta.W[layer].weights) == prime.W[layer].weights).all()
    above = range(layer + 1, net.depth + 1)
    same = same and all((theta.theta.W[n].weights == prime.W[n].weights).all() for n in above)
    same = same and all((theta.theta.b[n] == prime.b[n]).all() for n in above)
    stored = theta.dense(layer)
    return Rational(read(stored.n), stored.d) if same else None


# Words


def _lengths(point: ExactPoint) -> tuple[int, int]:
    """Return the bits of the longest numerator or denominator, and about those of all together."""
    longest, total = 1, 20 * point.theta.net.size
    for W in point.own.values():
        bits, d = [int(n).bit_length() for n in W.n.flat if n], W.d.bit_length()
        longest, total = max([longest, d, *bits]), total + sum(bits) + len(bits) * d
    return longest, total


def _number(value: Fraction) -> str:
    """Return a fraction as it is if it is short, and its first digits."""
    number = digits(value, 12)
    long = max(abs(value.numerator), value.denominator) >= 10**SHORT
    text = "" if long else str(value)
    return f"{text} = {number}" if 0 < len(text) <= SHORT and text != number else number
