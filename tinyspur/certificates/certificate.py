"""What all certificates have in common: which points they apply to, and how they are read."""

from __future__ import annotations

import decimal
from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np

from ..engine.backend import namespace
from ..engine.losses import Loss
from ..engine.parameters import Parameters


class Certificate(ABC):
    """A proof that a point is a local minimum, or what is missing for one.

    Where it `holds`, no point within max-norm distance `radius` has a lower risk, but for what
    `bounds` says that rounding may hide. `classes` counts the activation patterns of the samples,
    `margin` is how far the units are from another one, `stationarity` how far the point is from
    being stationary, relative to the gradients' size. Of a certificate that is `evidence_only` a
    part is proved, and for the rest there is evidence.

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

    def bounds(self) -> dict:
        """Return further numbers that are proved, beside the radius."""
        return {}

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
    return f"{up.create_decimal_from_float(value):.2g}" if value < np.inf else "inf"
