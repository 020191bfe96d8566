"""Activations of users: functions whose derivatives are given, or taken from differences."""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from .activations import KNOWN, Activation
from .backend import Array

STEP = 2.0**-10  # of differences: truncation and rounding are about equal
POINTS = (-3.0, -1.7, -0.6, 0.0, 0.4, 1.1, 2.3)  # where a user's derivatives are checked
GRID = 8  # how far from 0 a user's bounds are checked
CHECKED_TO = 1e-6  # the relative error that they may have there


@dataclass(frozen=True)
class SmoothActivation(Activation):
    """An activation of your own, from its `function` and `derivative`, smooth everywhere.

    They take arrays z of the backend, NumPy's at least, and return arrays of the same shape.
    If there is no `second_derivative`, central differences of the derivative with one Richardson
    extrapolation take its place, in float64. Their error is about 1e-12 times sigma' plus 3e-14
    times its fifth derivative. `bounds` are those of the second and the third derivative, for
    proofs of a radius. A network with such an activation can't be saved: JSON holds its `name`
    only. Raises ValueError where a derivative is not what differences give at a few points or is
    beyond its bound on a grid, and for the name of an activation that exists.

    >>> square = SmoothActivation("square", lambda z: z * z, lambda z: 2 * z)
    >>> square.second_derivative(np.array([0.5, 3.0])).round(9)
    array([2., 2.])
    """

    name: str
    function: Callable[[Array], Array] = field(repr=False)
    derivative: Callable[[Array], Array] = field(repr=False)
    second_derivative: Callable[[Array], Array] | None = field(
        default=None, repr=False, compare=False
    )
    bounds: tuple[float, float] | None = field(default=None, repr=False)

    def __post_init__(self):
        if not isinstance(self.name, str) or self.name in KNOWN:
            raise ValueError(
                f"activation: expected a name other than {', '.join(KNOWN)}, got {self.name!r}"
            )
        if self.second_derivative is None:
            differences = functools.partial(_differences, self.derivative)
            object.__setattr__(self, "second_derivative", differences)
        check_derivatives(self, np.array(POINTS))
        if self.bounds is not None:
            self._check_bounds()

    def _check_bounds(self) -> None:
        """Raise ValueError unless `bounds` are two numbers that the derivatives keep on a grid."""
        z = np.linspace(-GRID, GRID, 4001)[:, None]
        bend = self.second_derivative(z)
        found = abs(bend).max(), abs(np.diff(bend, axis=0) / np.diff(z, axis=0)).max()
        try:
            kept = [0 <= f <= b * (1 + CHECKED_TO) for f, b in zip(found, self.bounds, strict=True)]
        except (TypeError, ValueError):
            kept = [False]
        if not all(kept):
            raise ValueError(
                f"{self}: expected bounds of the second and the third derivative, at least "
                f"{found[0]:.4g} and {found[1]:.4g} as in [-{GRID}, {GRID}], got {self.bounds!r}"
            )

    def __call__(self, z: Array) -> Array:
        """Return sigma(z)."""
        return self.function(z)

    @property
    def spec(self) -> dict:
        """Return the name; a description in JSON can't hold the functions."""
        return {"name": self.name}


def check_derivatives(sigma: Activation, z: np.ndarray) -> None:
    """Raise ValueError unless both derivatives are what differences give at the numbers z (n,)."""
    z, kinds = z[:, None], ("derivative", "second derivative")
    functions = (sigma, sigma.derivative, sigma.second_derivative)
    for kind, function, derivative in zip(kinds, functions, functions[1:], strict=False):
        for values in (function(z), derivative(z)):
            if np.shape(values) != z.shape or not np.isfinite(values).all():
                got = textwrap.shorten(np.array_repr(np.asarray(values)), 300)
                raise ValueError(
                    f"{sigma}: expected finite values of the shape of z, {z.shape}, got {got}"
                )
        found, expected = derivative(z).ravel(), _differences(function, z, STEP / 4).ravel()
        wrong = ~(abs(found - expected) <= CHECKED_TO * (1 + abs(expected)))
        if wrong.any():
            n = int(wrong.argmax())
            raise ValueError(
                f"{sigma}: expected the {kind} at z = {z[n, 0]:g} to be {expected[n]:.7g}, as "
                f"differences give it, got {found[n]:.7g}"
            )


def _differences(function: Callable, z: Array, step: float = STEP) -> Array:
    """Return (4 D(h) - D(2h)) / 3 with D(h) = (f(z + h) - f(z - h)) / 2h."""
    x = z.astype(np.float64)
    once, twice = (function(x + h) - function(x - h) for h in (step, 2 * step))
    return ((8 * once - twice) / (12 * step)).astype(z.dtype)
