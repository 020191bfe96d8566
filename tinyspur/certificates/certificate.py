"""What all certificates have in common: which points they apply to, and how they are read."""

from __future__ import annotations

import decimal
import math
from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np

from ..engine.backend import namespace
from ..engine.losses import Loss
from ..engine.parameters import Parameters
from ..shown import Shown


class Certificate(Shown, ABC):
    """A proof that there is a local minimum at a stored point, or what is missing for one.

    Numbers in float64 are exact, and hardly ever exactly stationary. Where the certificate `holds`
    it proves

    - P1: within max-norm distance `distance` of the stored point, which is stationary as far as
      rounding lets one see, there is one that is exactly a local minimum, and no point within
      `radius` of the stored one has a lower risk than it;

    and otherwise, where it `proves` "P2", only

    - P2: no point within `radius` is lower than the stored one by more than `delta`.

    P2 holds with P1 too. `classes` counts the activation patterns of the samples, `margin` is how
    far the units are from another one, `stationarity` how far the point is from being stationary,
    as its kind measures that. `assumes` says what is taken from objects of users without proof. Of
    a certificate that is `evidence_only` a part is proved, and for the rest there is evidence.

    A kind of certificate is a frozen dataclass in a module of its own, with these fields or
    properties, `require`, `words` and `lines`.
    """

    kind: ClassVar[str]
    """Its name in reports."""
    holds: bool
    classes: int
    margin: float
    radius: float
    stationarity: float
    delta: float
    distance: float
    assumes: str
    evidence_only: bool = False

    @classmethod
    @abstractmethod
    def require(cls, theta: Parameters, loss: Loss) -> None:
        """Raise ValueError unless this kind of certificate is for such a network and loss."""

    @classmethod
    def applies(cls, theta: Parameters, loss: Loss) -> bool:
        """Return whether this kind of certificate is for such a network and loss."""
        try:
            cls.require(theta, loss)
        except ValueError:
            return False
        return True

    @property
    @abstractmethod
    def words(self) -> str:
        """Return what was found in half a line."""

    @abstractmethod
    def lines(self) -> list[str]:
        """Return what was found and what it rests on, as lines of text."""

    def as_dict(self) -> dict:
        """Return what a report holds; None stands for an infinite number: nothing has a kink."""
        keys = ("kind", "holds", "classes", "margin", "radius", "stationarity", "evidence_only")
        found = {key: getattr(self, key) for key in keys}
        return {key: None if value == np.inf else value for key, value in found.items()}

    @property
    def proves(self) -> str:
        """Return "P1", "P2" or "": which of the statements about the stored point is proved."""
        if self.holds:
            return "P1"
        return "P2" if self.radius > 0 and self.delta < math.inf else ""

    @property
    def changed(self) -> str:
        """Return for which other problem than the given one P1 is proved, as ", for ...", or ""."""
        return ""

    def bounds(self) -> dict:
        """Return what is proved, for a report: `delta` and `distance`, None where infinite."""
        found = {"proves": self.proves, "delta": self.delta, "distance": self.distance}
        return {key: None if value == math.inf else value for key, value in found.items()}

    def bound_lines(self) -> list[str]:
        """Return P1 and P2 as lines of text, with their numbers, and what they assume."""
        near = f"an exact local minimum is within {round_up(self.distance)}{self.changed}"
        below = f"no point within the radius is lower by more than {round_up(self.delta)}"
        beside = near if self.distance < math.inf else "none is shown to be an exact local minimum"
        lines = {
            "P1": [f"P1: {near}", f"P2: {below}"],
            "P2": [f"P2: {below}; {beside}"],
        }.get(self.proves, [])
        return [*lines, f"not proved, and assumed: {self.assumes}"] if self.assumes else lines

    def verdict(self, decrease: float, rounding: float) -> str:
        """Return what this proves together with a point that is lower by `decrease`.

        Of that, rounding errors may explain up to `rounding`. A point that is lower by more than
        `delta`, too, is lower than the exact local minimum (P3): "spurious local minimum". With P2
        only it is "spurious up to" delta.
        """
        if rounding < 0:
            raise ValueError(f"verdict: expected a rounding error >= 0, got {rounding}")
        lower = decrease - rounding > self.delta
        if self.holds:
            found = "spurious local minimum" if lower else "local minimum, not shown to be spurious"
        elif self.proves and lower:
            found = f"spurious up to {round_up(self.delta)}"
        else:
            return f"undecided: {self.words}"
        return f"{found}, if {self.assumes}" if self.assumes else found

    def __str__(self) -> str:
        found = "holds, a local minimum" if self.holds else "does not hold"
        return "\n".join([f"{self.kind} certificate: {found}", *(f"  {s}" for s in self.lines())])


def in_float64(theta: Parameters, xp: object = None) -> Parameters:
    """Return a copy in float64, of the numbers that theta holds; ValueError if they aren't finite.

    In the array namespace `xp` if given.
    """
    theta = theta.to(namespace(theta.vector) if xp is None else xp, np.float64)
    if not bool(namespace(theta.vector).isfinite(theta.vector).all()):
        raise ValueError("certificate: expected finite parameters, got NaN or infinite ones")
    return theta


def round_down(value: float) -> str:
    """Return a number >= 0 with three digits, never more than it is."""
    if not 0 < value < np.inf:
        return f"{value:.3g}"
    unit = 10.0 ** (np.floor(np.log10(value)) - 2)
    return f"{np.floor(value / unit) * unit:.3g}"


def round_up(value: float) -> str:
    """Return a number >= 0 with two digits, never less than it is."""
    up = decimal.Context(prec=2, rounding=decimal.ROUND_CEILING)
    digits = ".1e" if 0 < value < 1e-4 else ".2g"
    return f"{up.create_decimal_from_float(value):{digits}}" if value < np.inf else "inf"
