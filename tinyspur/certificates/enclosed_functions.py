"""Functions of enclosures: those of NumPy and SciPy that activations and losses are written with.

This module is the namespace of enclosures, so that ``sigma.derivative(z)`` takes one. The errors of
library functions are those that `floats` states. `activated` is for boxes that are not thin: values
are no further from those at the middle than the mean value theorem says, with the bounds of the
second and the third derivative that each activation has.

What is assumed of a user's activation: that it and its derivatives are within the errors of a
library function, and that its bounds are bounds. Without bounds what is beyond first order in the
width of the box is left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from ..engine.activations import ELU, KNOWN, Activation
from ..engine.architecture import Beside
from ..engine.backend import Array, namespace, special
from ..engine.floats import LIBRARY, SMALLEST, library_error, ndtr_units
from .enclosures import QUIET, WIDER, Enclosure, between, concatenate, exact, sound

Function = Callable[[Array], Array]


@np.errstate(**QUIET)
def computed(f: Function, z: Array, units: Array | float = LIBRARY) -> Enclosure:
    """Return an enclosure of f(z), which is computed within so many units in the last place."""
    values = f(z)
    return sound(values, library_error(values, units) * WIDER)


def increasing(at: Callable[[Array], Enclosure], x: Enclosure) -> Enclosure:
    """Return an enclosure of an increasing function of x, from its enclosures `at` numbers.

    Where nothing is known of x it is between the limits of the function.
    """
    if namespace(x.middle) is np and not np.any(x.radius):
        return at(x.middle)
    return between(at(x.low).low, at(x.high).high)


def exp(x: Enclosure) -> Enclosure:
    """Return an enclosure of exp x."""
    return increasing(lambda z: computed(namespace(z).exp, z), x)


def log(x: Enclosure) -> Enclosure:
    """Return an enclosure of log x."""
    return increasing(lambda z: computed(namespace(z).log, z), x)


def log1p(x: Enclosure) -> Enclosure:
    """Return an enclosure of log(1 + x)."""
    return increasing(lambda z: computed(namespace(z).log1p, z), x)


def expm1(x: Enclosure) -> Enclosure:
    """Return an enclosure of exp(x) - 1."""
    return increasing(lambda z: computed(namespace(z).expm1, z), x)


def tanh(x: Enclosure) -> Enclosure:
    """Return an enclosure of tanh x."""
    return increasing(lambda z: computed(namespace(z).tanh, z), x)


def arctan(x: Enclosure) -> Enclosure:
    """Return an enclosure of arctan x."""
    return increasing(lambda z: computed(namespace(z).arctan, z), x)


def expit(x: Enclosure) -> Enclosure:
    """Return an enclosure of 1 / (1 + exp(-x))."""
    return increasing(lambda z: computed(special(z).expit, z), x)


def ndtr(x: Enclosure) -> Enclosure:
    """Return an enclosure of the normal distribution function."""
    return increasing(lambda z: computed(special(z).ndtr, z, ndtr_units(z)), x)


def sin(x: Enclosure) -> Enclosure:
    """Return an enclosure of sin x, whose slope is at most 1."""
    return computed(namespace(x.middle).sin, x.middle).wider(x.radius)


def cos(x: Enclosure) -> Enclosure:
    """Return an enclosure of cos x, whose slope is at most 1."""
    return computed(namespace(x.middle).cos, x.middle).wider(x.radius)


def maximum(x: Enclosure, bound: float) -> Enclosure:
    """Return an enclosure of the larger one of x and a number."""
    return Enclosure(namespace(x.middle).maximum(x.middle, bound), x.radius)


def minimum(x: Enclosure, bound: float) -> Enclosure:
    """Return an enclosure of the smaller one of x and a number."""
    return Enclosure(namespace(x.middle).minimum(x.middle, bound), x.radius)


def clip(x: Enclosure, low: float, high: float) -> Enclosure:
    """Return an enclosure of x cut to [low, high]."""
    cut = namespace(x.middle).clip
    return between(cut(x.low, low, high), cut(x.high, low, high))


def sign(x: Enclosure) -> Enclosure:
    """Return an enclosure of the slope of |x|: of -1 to 1 where x may be 0."""
    where = namespace(x.middle).where
    return between(where(x.low > 0, 1.0, -1.0), where(x.high < 0, -1.0, 1.0))


# Activations


def activated(sigma: Activation, z: Enclosure, order: int = 0) -> Enclosure:
    """Return an enclosure of sigma(z), or of its first or second derivative, over all of z.

    Where z may be on both sides of the kink of ReLU, leaky ReLU or ELU the first derivative is
    anything between those of both sides. The second one is that of the pieces; of ELU infinite
    where sigma' jumps. Of z that is at most 0, the kink included, they are those of the left side.
    """
    if isinstance(sigma, Beside):
        own, rest = activated(sigma.sigma, z[: sigma.rows], order), z[sigma.rows :]
        if order:
            rest = exact(0 * rest.middle + (order == 1))
        return concatenate([own, rest])
    if sigma.piecewise_linear:
        return _piecewise(sigma, z, order)
    if type(sigma) is ELU:
        return _elu(sigma, z, order)
    kinds = (sigma, sigma.derivative, sigma.second_derivative)

    def thin(order: int) -> Enclosure:
        known = type(sigma) in KNOWN.values()
        return kinds[order](exact(z.middle)) if known else computed(kinds[order], z.middle)

    bend, turn = sigma.bounds or (0.0, 0.0)
    with np.errstate(**QUIET):
        if order == 2:
            return thin(2).wider(turn * WIDER * z.radius)
        steepest = thin(order + 1).magnitude + (turn if order else bend) * WIDER * z.radius
        return thin(order).wider(steepest * WIDER * z.radius + SMALLEST)


@np.errstate(**QUIET)
def spread(sigma: Activation, z: Array, o: Array, errors: Array) -> Array:
    """Return how far o, computed as sigma(z) in their type, may be off if z is by `errors`."""
    if isinstance(sigma, Beside):
        own = spread(sigma.sigma, *(a[: sigma.rows] for a in (z, o, errors)))
        return namespace(z).concatenate([own, errors[sigma.rows :]])
    if not sigma.piecewise_linear:
        found = activated(sigma, Enclosure(z.astype(np.float64), errors.astype(np.float64)))
        return (abs(o - found.middle) + found.radius) * WIDER
    xp, slope, unit = namespace(z), float(sigma.slope), np.finfo(z.dtype)
    if not slope:  # nothing rounds
        return errors if xp is np and z.min(initial=0) >= 0 else xp.where(z < -errors, 0.0, errors)
    off = xp.where(z > errors, errors, max(1.0, slope) * errors)
    off = xp.where(z < -errors, slope * errors, off)
    rounding = 2 * float(unit.eps) * abs(slope * z) + 4 * float(unit.smallest_subnormal)
    return (off + (z != 0) * rounding) * (1 + 8 * float(unit.eps))


def _piecewise(sigma: Activation, z: Enclosure, order: int) -> Enclosure:
    xp, slope, value = namespace(z.middle), float(sigma.slope), sigma(z.middle)
    if order == 0:
        return sound(value, spread(sigma, z.middle, value, z.radius))
    if order == 2:
        return exact(xp.zeros_like(value))
    low, high = (xp.where(z.high <= 0, slope, f(1.0, slope)) for f in (min, max))
    return between(xp.where(z.low > 0, 1.0, low), xp.where(z.low > 0, 1.0, high))


def _elu(sigma: ELU, z: Enclosure, order: int) -> Enclosure:
    xp, alpha = namespace(z.middle), float(sigma.alpha)

    def left(z: Array) -> Enclosure:
        return computed(xp.exp if order else xp.expm1, xp.minimum(z, 0.0)) * alpha

    def value(z: Array) -> Enclosure:
        below = left(z)
        return Enclosure(xp.where(z > 0, z, below.middle), xp.where(z > 0, 0.0, below.radius))

    if order == 0:
        return increasing(value, z)
    below, beyond = increasing(left, z), 2.0 - order
    low = xp.where(z.high > 0, xp.minimum(below.low, beyond), below.low)
    high = xp.where(z.high > 0, xp.maximum(below.high, beyond), below.high)
    if order == 2 and alpha != 1:  # sigma' jumps
        high = xp.where(z.high > 0, math.inf, high)
    return between(xp.where(z.low > 0, beyond, low), xp.where(z.low > 0, beyond, high))
