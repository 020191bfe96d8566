"""Enclosures: arrays of midpoints and radii between which exact values are proved to lie.

(m, r) says that the exact value is in [m - r, m + r], entry by entry. Every operation adds to the
radius what its own rounding and underflow may do, and what they may do to the radius itself
(Rump, Verification methods, Acta Numerica 2010). No directed rounding is needed: any BLAS serves,
any number of threads, and CuPy. Where numbers overflow the radius is infinite.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

import numpy as np

from ..engine.backend import Array, namespace
from ..engine.floats import EPSILON, QUIET, SMALLEST, gamma
from ..layers import WeightMatrix

WIDER = 1 + 8 * EPSILON  # a sum of up to ten rounded sizes is no smaller than the exact one by more


@dataclass(frozen=True, eq=False)
class Enclosure:
    """The exact values are within `radius` of `middle`, entry by entry; both are float64.

    Arrays and numbers that meet an enclosure in ``+ - * / @`` are taken to be exact, as float64.
    Radii are never negative and never NaN; where one is infinite nothing is known.

    >>> third = exact(np.array([1.0])) / 3
    >>> float(third.middle[0]), 1e-17 < third.radius[0] < 1e-15
    (0.3333333333333333, np.True_)
    """

    middle: Array
    radius: Array

    __array_ufunc__ = None  # makes `array + enclosure` come to the operators of this class
    namespace = "tinyspur.certificates.enclosed_functions"  # the module whose functions take it

    # What it looks like

    @property
    def shape(self) -> tuple[int, ...]:
        return self.middle.shape

    def __len__(self) -> int:
        return len(self.middle)

    def __getitem__(self, key: object) -> Enclosure:
        return Enclosure(self.middle[key], self.radius[key])

    @property
    def T(self) -> Enclosure:
        return Enclosure(self.middle.T, self.radius.T)

    def reshape(self, *shape: int) -> Enclosure:
        return Enclosure(self.middle.reshape(*shape), self.radius.reshape(*shape))

    # What is known of the exact values

    @property
    @np.errstate(**QUIET)
    def magnitude(self) -> Array:
        """Return upper bounds of their sizes."""
        return (abs(self.middle) + self.radius) * WIDER

    @property
    def low(self) -> Array:
        """Return lower bounds."""
        return -(-self).high

    @property
    @np.errstate(**QUIET)
    def high(self) -> Array:
        """Return upper bounds."""
        end = self.middle + self.radius
        return namespace(end).where(self.radius > 0, end + EPSILON * abs(end), self.middle)

    # Arithmetic

    def __neg__(self) -> Enclosure:
        return Enclosure(-self.middle, self.radius)

    def __abs__(self) -> Enclosure:
        return Enclosure(abs(self.middle), self.radius)  # | |a| - |m| | <= |a - m|

    @np.errstate(**QUIET)
    def __add__(self, other: Enclosure | Array | float) -> Enclosure:
        other = self._with(other)
        middle = self.middle + other.middle
        off = self.radius + other.radius + EPSILON / 2 * abs(middle)  # sums don't underflow
        return sound(middle, off * WIDER)

    def __sub__(self, other: Enclosure | Array | float) -> Enclosure:
        return self + -self._with(other)

    def __rsub__(self, other: Array | float) -> Enclosure:
        return -self + other

    @np.errstate(**QUIET)
    def __mul__(self, other: Enclosure | Array | float) -> Enclosure:
        other = self._with(other)
        size, middle = abs(self.middle), self.middle * other.middle
        off = size * other.radius + self.radius * (abs(other.middle) + other.radius)
        off = off + EPSILON / 2 * abs(middle)
        off = off + 2 * SMALLEST * (self._somewhere() & other._somewhere())
        return sound(middle, off * WIDER)

    __radd__, __rmul__ = __add__, __mul__

    @np.errstate(**QUIET)
    def __truediv__(self, other: Enclosure | Array | float) -> Enclosure:
        """Return an enclosure of the quotients, infinite where the divisor may be 0."""
        other = self._with(other)
        middle, least = self.middle / other.middle, abs(other).low
        size = abs(middle) + SMALLEST * (self.middle != 0)
        share = self.radius + (size * other.radius + SMALLEST * (size * other.radius >= 0))
        # a / b - m / d = ((a - m) - m / d (b - d)) / b
        off = share * WIDER / least + (EPSILON / 2 * size + 2 * SMALLEST * self._somewhere())
        off = off * WIDER
        return sound(middle, namespace(off).where(least > 0, off, math.inf))

    def __rtruediv__(self, other: Array | float) -> Enclosure:
        return self._with(other) / self

    @np.errstate(**QUIET)
    def __pow__(self, exponent: int) -> Enclosure:
        """Return an enclosure of the squares; the exponent is 2."""
        if exponent != 2:
            raise ValueError(f"enclosure: expected the exponent 2, got {exponent}")
        size, middle = abs(self.middle), self.middle * self.middle
        off = (2 * size + self.radius) * self.radius + EPSILON / 2 * middle
        return sound(middle, (off + 2 * SMALLEST * self._somewhere()) * WIDER)

    def __matmul__(self, other: Enclosure | Array) -> Enclosure:
        """Return an enclosure of the matrix product, of vectors and of stacks too."""
        return _matrix_product(self, self._with(other))

    def __rmatmul__(self, other: Array) -> Enclosure:
        return _matrix_product(self._with(other), self)

    @np.errstate(**QUIET)
    def sum(self, axis: int | tuple[int, ...] | None = None) -> Enclosure:
        """Return an enclosure of the sums along `axis`, of all entries by default."""
        middle = self.middle.sum(axis=axis)
        share = gamma(self.middle.size // max(1, middle.size))
        off = inexact(abs(self.middle), self.radius, share).sum(axis=axis)
        return sound(middle, off * (1 + 2 * share))

    def max(self, axis: int) -> Enclosure:
        """Return an enclosure of the largest entries along `axis`."""
        return Enclosure(self.middle.max(axis=axis), self.radius.max(axis=axis))

    @np.errstate(**QUIET)
    def wider(self, more: Array | float) -> Enclosure:
        """Return an enclosure of what is up to `more` away from the exact values."""
        return sound(self.middle, (self.radius + more) * WIDER)

    def rounded(self, value: float) -> Enclosure:
        """Return an enclosure of a number that is rounded to `value`, in the namespace of this."""
        xp = namespace(self.middle)
        return Enclosure(xp.array(value), xp.array(2 * EPSILON * abs(value)))

    def _with(self, other: Enclosure | Array | float) -> Enclosure:
        """Return the other operand as an enclosure."""
        if isinstance(other, Enclosure):
            return other
        if isinstance(other, (int, float)):
            return _of_number(other, namespace(self.middle))
        return exact(other)

    def _somewhere(self) -> Array:
        """Return where the exact value may be other than 0."""
        return (self.middle != 0) | (self.radius != 0)


def exact(values: Array) -> Enclosure:
    """Return the enclosure of numbers that are stored as they are, of radius 0.

    Raises ValueError for what float64 may not hold: for other types than floats of up to 64 bits.
    """
    if values.dtype.kind != "f" or values.dtype.itemsize > 8:
        raise ValueError(f"exact: expected floats of up to 64 bits, got {values.dtype}")
    values = values.astype(np.float64, copy=False)
    return sound(values, namespace(values).zeros_like(values))


@np.errstate(**QUIET)
def between(low: Array, high: Array) -> Enclosure:
    """Return the enclosure of what is at least `low` and at most `high`."""
    xp, middle = namespace(low), low / 2 + high / 2
    off = xp.maximum(high - middle, middle - low)  # rounded to nearest, each
    return sound(middle, off * WIDER)


def narrower(a: Enclosure, b: Enclosure) -> Enclosure:
    """Return of two enclosures of the same values the narrower one, entry by entry."""
    xp, first = namespace(a.middle), a.radius <= b.radius
    return Enclosure(xp.where(first, a.middle, b.middle), xp.where(first, a.radius, b.radius))


def concatenate(parts: Sequence[Enclosure], axis: int = 0) -> Enclosure:
    """Return the enclosures joined along an axis."""
    xp = namespace(parts[0].middle)
    return Enclosure(
        xp.concatenate([part.middle for part in parts], axis=axis),
        xp.concatenate([part.radius for part in parts], axis=axis),
    )


def _of_number(number: float, xp: ModuleType) -> Enclosure:
    if float(number) != number:
        raise ValueError(f"enclosure: expected a number that float64 holds, got {number}")
    return exact(xp.array(float(number)))


def sound(middle: Array, radius: Array) -> Enclosure:
    """Return the enclosure, with an infinite radius where either is not finite."""
    xp = namespace(middle)
    if xp is np and math.isfinite(middle.sum() + radius.sum()):
        return Enclosure(middle, radius)
    known = xp.isfinite(middle) & xp.isfinite(radius)
    return Enclosure(xp.where(known, middle, 0.0), xp.where(known, radius, math.inf))


@np.errstate(**QUIET)
def _matrix_product(A: Enclosure, B: Enclosure) -> Enclosure:
    """Return an enclosure of A B: its radius is |A| r_B + r_A (|B| + r_B) + gamma |A| |B|."""
    xp, share = namespace(A.middle), gamma(A.shape[-1])
    middle = A.middle @ B.middle
    size, sizes = abs(A.middle), abs(B.middle)
    off = share * (size @ sizes)
    if xp is not np or B.radius.any():
        off = off + size @ B.radius
    if xp is not np or A.radius.any():
        off = off + A.radius @ (sizes + B.radius)
    rows, columns = A._somewhere().any(axis=-1), B._somewhere().any(axis=max(-2, -B.middle.ndim))
    if A.middle.ndim > 1 and B.middle.ndim > 1:
        rows, columns = rows[..., None], columns[..., None, :]
    off = off + 2 * A.shape[-1] * SMALLEST * (rows & columns)  # where products may underflow
    return sound(middle, off * (1 + 2 * share))


def inexact(size: Array, radius: Array, share: float) -> Array:
    """Return `radius` + `share` * `size`: what a factor of a product, or a term, is off by.

    What underflows in that share may be multiplied with a large number, so it is rounded up.
    """
    return radius + (share * size + SMALLEST * (size > 0))


@np.errstate(**QUIET)
def product(W: WeightMatrix, x: Enclosure, radii: WeightMatrix | None = None) -> Enclosure:
    """Return an enclosure of W @ x for columns x (n, N).

    With `radii`, the same kind of matrix, of all matrices whose weights are within these of W's.
    """
    if W.selects:  # the largest entry is off by no more than the largest error
        return sound(W @ x.middle, W @ x.radius)
    return sound(W @ x.middle, product_radius(abs(W), abs(x.middle), x.radius, radii))


def product_radius(
    magnitude: WeightMatrix, size: Array, radius: Array, radii: WeightMatrix | None = None
) -> Array:
    """Return how far W @ x, computed in the type of x, may be off, (m, N).

    It is |W| (r + gamma |x|) + R (|x| + r) and what underflows, with `magnitude` |W|, `size` |x|,
    x off by `radius` r, and W by `radii` R. Where nothing can underflow a sum of zeros is exact.
    """
    terms = max(magnitude.fan_in, 0 if radii is None else radii.fan_in) + 2
    xp, share, reach = namespace(size), gamma(terms, size.dtype), size + radius
    factors = [magnitude.weights, None if radii is None else radii.weights, reach]
    smallest = _underflow(*(some for some in factors if some is not None))
    grown = share * size
    grown += radius
    if xp is not np or smallest:
        grown += smallest * (size > 0)
    off = magnitude @ grown
    if radii is not None:
        off += radii @ reach
    if xp is not np or smallest:
        off = off + 2 * terms * smallest
    off *= 1 + 2 * share
    return off


def _underflow(*sizes: Array) -> Array | float:
    """Return the smallest number where products of two of these, or shares of them, may underflow.

    Otherwise, where all of them are 0 or not small, 0: what is exactly 0 is known to be then.
    """
    smallest = float(np.finfo(sizes[-1].dtype).smallest_subnormal)
    small = smallest**0.3
    found = [_has_between(some, small) for some in sizes]
    return namespace(sizes[-1]).where(functools.reduce(operator.or_, found), smallest, 0.0)


def _has_between(sizes: Array, small: float) -> Array | bool:
    """Return whether one of these is above 0 and below `small`."""
    if namespace(sizes) is np and sizes.min(initial=np.inf) >= small:
        return False
    return ((sizes > 0) & (sizes < small)).any()
