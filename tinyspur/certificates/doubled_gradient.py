"""The gradient of L at a point as if computed in about twice the bits.

Where the least eigenvalue of the Hessian is 1e-9, rounding errors of 1e-14 of the gradient move the
stationary point by 1e-5. So all numbers are sums of two here, with a bound of what is missing. For
the squared loss, the cross-entropy and piecewise linear activations, off max poolings and residual
blocks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from ..engine.floats import EPSILON, SMALLEST, gamma, slack
from ..engine.held import Held
from ..engine.held_steps import HeldStep, steps
from ..engine.losses import CrossEntropy, FixedSumLoss, Loss, SquaredLoss
from ..engine.parameters import Parameters
from ..layers import DenseMatrix
from .boxes import members_of
from .enclosed_algebra import in_two, slices, two_sum
from .enclosures import QUIET, Enclosure, sound

SPLIT = 2.0**27 + 1
SAMPLES = 256  # at a time
LN_2 = 0.6931471805592082, 7.371002565167799e-13  # 40 bits and the rest, but for 2e-31
HALVED, TERMS = 8, 10  # exp x is the power 2^8 of exp(x / 2^8), a sum of so many terms
LEAST = -2000.0  # exp x is 0 below, but for less than the smallest number


class Doubled(NamedTuple):
    """Numbers within `radius` of `high` + `low`, of one shape."""

    high: np.ndarray
    low: np.ndarray
    radius: np.ndarray

    @property
    def size(self) -> np.ndarray:
        """Return bounds of the sizes."""
        return (abs(self.high) + abs(self.low) + self.radius) * slack(2)

    def enclosure(self) -> Enclosure:
        """Return the enclosure of the numbers."""
        middle, rest = two_sum(self.high, self.low)
        return sound(middle, (self.radius + abs(rest)) * slack(2))


def as_it_is(values: np.ndarray) -> Doubled:
    """Return numbers that are stored as they are."""
    return Doubled(values, np.zeros_like(values), np.zeros_like(values))


def plus(a: Doubled, b: Doubled) -> Doubled:
    """Return the sum."""
    high, off = two_sum(a.high, b.high)
    low = off + (a.low + b.low)
    rounded = 2 * EPSILON * (abs(off) + abs(a.low) + abs(b.low))
    return Doubled(high, low, (a.radius + b.radius + rounded) * slack(4))


def by_numbers(a: Doubled, factors: np.ndarray) -> Doubled:
    """Return the products with numbers that are stored as they are."""
    high, off = two_product(a.high, factors)
    more = a.low * factors
    rounded = 2 * EPSILON * (abs(off) + abs(more)) + 4 * SMALLEST * (factors != 0)
    return Doubled(high, off + more, (a.radius * abs(factors) + rounded) * slack(4))


def divided(a: Doubled, n: np.ndarray | float) -> Doubled:
    """Return the quotients by whole numbers."""
    high = a.high / n
    product, off = two_product(high, n * np.ones_like(high))
    low = ((a.high - product) - off + a.low) / n
    rounded = 8 * EPSILON * (abs(off) + abs(a.low) + abs(a.high - product)) / n + 4 * SMALLEST
    return Doubled(high, low, (a.radius / n + rounded) * slack(4))


def product(a: Doubled, b: Doubled) -> Doubled:
    """Return the products of numbers."""
    high, off = two_product(a.high, b.high)
    first, second = a.high * b.low, a.low * b.high
    size = abs(off) + abs(first) + abs(second)
    missing = a.size * b.radius + a.radius * b.size + abs(a.low * b.low)
    rounded = 4 * EPSILON * size + 8 * SMALLEST
    return Doubled(high, off + (first + second), (missing + rounded) * slack(6))


def quotient(a: Doubled, b: Doubled) -> Doubled:
    """Return the quotients of numbers, by those that are 1/2 or more."""
    first = a.high / b.high
    rest = plus(a, by_numbers(b, -first))
    second = (rest.high + rest.low) / b.high
    share = 4 * EPSILON + 2 * (abs(b.low) + b.radius)  # of b that is not in b.high, b >= 1/2
    missing = rest.radius / b.high + abs(second) * share + 4 * SMALLEST
    return Doubled(first, second, missing * (1 + 2 * share))


def exponential(x: Doubled) -> Doubled:
    """Return exp x of numbers up to about 0.

    With k the nearest whole number to x / log 2 it is 2^k exp(x - k log 2). What remains is divided
    by 2^8, and the sum of its powers / n!, but for 1, squared eight times: s becomes 2 s + s^2.
    """
    x = Doubled(np.maximum(x.high, LEAST), np.where(x.high < LEAST, 0.0, x.low), x.radius)
    k = np.rint(x.high / math.log(2))
    r = plus(x, as_it_is(-k * LN_2[0]))  # nothing rounds
    r = plus(r, by_numbers(as_it_is(np.full_like(k, -LN_2[1])), k))
    share = 2.0**-HALVED
    r = Doubled(r.high * share, r.low * share, (r.radius + 2e-31 * abs(k)) * share + 4 * SMALLEST)
    total = as_it_is(np.zeros_like(k))
    for n in range(TERMS, 0, -1):
        total = product(plus(total, _inverse_factorial(n)), r)
    total = Doubled(*total[:2], total.radius + 1e-36)  # r^11 / 11! and beyond, |r| < 0.00136
    for _ in range(HALVED):
        total = plus(Doubled(*(2 * part for part in total)), product(total, total))
    total = plus(total, as_it_is(np.ones_like(k)))
    powers = [np.ldexp(part, k.astype(int)) for part in total]
    return Doubled(*powers[:2], powers[2] * slack(1) + 4 * SMALLEST)


def _inverse_factorial(n: int) -> Doubled:
    """Return 1 / n!."""
    high = 1 / math.factorial(n)
    low = float(Fraction(1, math.factorial(n)) - Fraction(high))
    return Doubled(np.array(high), np.array(low), np.array(abs(low) * EPSILON))


def two_product(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the rounded product and its rounding error, off by a few `SMALLEST` (Dekker)."""
    (a1, a2), (b1, b2) = _halves(a), _halves(b)
    product = a * b
    return product, ((a1 * b1 - product) + a1 * b2 + a2 * b1) + a2 * b2


def _halves(a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    high = SPLIT * a
    high = high - (high - a)
    return high, a - high


Bilinear = Callable[[np.ndarray, np.ndarray], np.ndarray]


def multiplied(f: Bilinear, a: Doubled, b: Doubled, terms: int) -> Doubled:
    """Return f(a, b) for a sum f of so many products of entries, at most, in each entry."""
    high, low, off = in_two(a.high, b.high) if f is np.matmul else _sliced(f, a.high, b.high, terms)
    first, second, both = f(a.high, b.low), f(a.low, b.high), f(abs(a.low), abs(b.low))
    share = 2 * gamma(terms)
    off = off + share * (f(abs(a.high), abs(b.low)) + f(abs(a.low), abs(b.high))) + both
    off = off + f(a.size, b.radius) + f(a.radius, b.size)
    size = abs(low) + abs(first) + abs(second)
    return Doubled(high, low + (first + second), (off + 4 * EPSILON * size) * slack(8 + terms))


def _sliced(f: Bilinear, a: np.ndarray, b: np.ndarray, n: int) -> tuple:
    """Return two arrays whose sum is f(a, b) up to the third; see `doubled_product`."""
    exponents = [int(np.frexp(abs(part).max(initial=0.0))[1]) for part in (a, b)]
    a, b = np.ldexp(a, -exponents[0]), np.ldexp(b, -exponents[1])
    bits = (55 - math.ceil(math.log2(n + 1))) // 2
    (a1, a2, a3), (b1, b2, b3) = slices(a, bits), slices(b, bits)
    high, low = two_sum(f(a1, b1), f(a1, b2))
    size = abs(low)
    for part in (f(a2, b1), f(a2, b2)):
        high, more = two_sum(high, part)
        low, size = low + more, size + abs(more)
    rest = f(a1 + a2, b3) + f(a3, b)
    low, size = low + rest, size + abs(rest)
    missing = float(abs(b3).max(initial=0.0)) + float(abs(a3).max(initial=0.0))
    off = 2 * gamma(n) * n * missing + 4 * EPSILON * size + 8 * n * SMALLEST
    back = sum(exponents)
    return np.ldexp(high, back), np.ldexp(low, back), np.ldexp(off, back) + 4 * SMALLEST


# The passes


@np.errstate(**QUIET)
def doubled_gradient(
    held: Held, theta: Parameters, multipliers: np.ndarray
) -> tuple[Enclosure, Enclosure] | None:
    """Return the gradient of L in all parameters and v_K at a point, None for other networks.

    With the pieces of the activation that the point has in floats.
    """
    net, count = held.net, len(held.data)
    plain = all(not W.selects and W.trained is W for W in theta.W.values())
    if not isinstance(held.loss, SquaredLoss | CrossEntropy) or not plain:
        return None
    if not all(sigma.piecewise_linear for sigma in net.activations):
        return None
    x, y = held.data.x.reshape(count, -1), held.data.y.T.astype(np.float64)
    total, values = as_it_is(np.zeros(net.size)), as_it_is(np.zeros(len(held.kinks)))
    for start in range(0, count, SAMPLES):
        rows = slice(start, min(count, start + SAMPLES))
        columns, members = np.ascontiguousarray(x[rows].T, dtype=float), members_of(held, rows)
        trace = steps(theta, columns, members)
        o, z = _forward(trace)
        for step in trace:
            some = members.get(step.layer)
            if some is not None:
                at = some.units[some.first], some.columns[some.first]
                for part, into in zip(z[step.layer - 1], values, strict=True):
                    into[some.which[some.first]] = part[at]
        delta = divided(_loss_gradient(held.loss, o[-1], y[:, rows]), count)
        total = plus(total, _backward(theta, trace, members, o[:-1], delta, multipliers))
    return total.enclosure(), values.enclosure()


def _loss_gradient(loss: Loss, o: Doubled, y: np.ndarray) -> Doubled:
    """Return the gradient of the loss in the outputs."""
    targets, minus = as_it_is(y), as_it_is(-y)
    if isinstance(loss, CrossEntropy):
        powers = exponential(plus(o, as_it_is(-o.high.max(axis=0, keepdims=True))))
        p = quotient(powers, _summed(powers))
        return plus(product(p, _summed(targets)), minus)
    residuals = plus(o, minus)
    return plus(residuals, _summed(residuals)) if isinstance(loss, FixedSumLoss) else residuals


def _summed(o: Doubled) -> Doubled:
    """Return the sum of all rows."""
    total = as_it_is(np.zeros(o.high.shape[1:]))
    for k in range(len(o.high)):
        total = plus(total, Doubled(*(part[k] for part in o)))
    return total


def _forward(trace: list[HeldStep]) -> tuple[list[Doubled], list[Doubled]]:
    """Return o^0 to o^L, and z^1 to z^L."""
    os, zs = [as_it_is(trace[0].below)], []
    for step in trace:
        z = _times(step, os[-1])
        if step.b is not None:
            z = plus(z, as_it_is(step.W.spread(step.b)[:, None] * np.ones_like(z.high)))
        zs.append(z)
        os.append(z if step.slopes is None else by_numbers(z, step.slopes))  # 0 at held units
    return os, zs


def _backward(theta, trace, members, below, delta: Doubled, multipliers: np.ndarray) -> Doubled:
    """Return the part of the gradient of some samples."""
    parts = []
    for step, o in zip(reversed(trace), reversed(below), strict=True):
        if step.slopes is not None:
            delta = by_numbers(delta, step.slopes)
        some = members.get(step.layer)
        if some is not None:
            for part in delta:
                part[some.units, some.columns] = 0
            delta.high[some.units, some.columns] = multipliers[some.which] * some.first
        if step.layer in theta.net.slots:
            found = []
            if step.b is not None:
                ones = np.ones((1, delta.high.shape[1] * step.W.positions_out))
                flat = Doubled(*(step.W.by_map(part) for part in delta))
                found.append(multiplied(np.matmul, flat, as_it_is(ones.T), ones.size))
            terms = delta.high.shape[1] * step.W.positions_out
            if isinstance(step.W, DenseMatrix):
                transposed = Doubled(*(part.T for part in o))
                found.insert(0, multiplied(np.matmul, delta, transposed, terms))
            else:
                found.insert(0, multiplied(step.W.gradient, delta, o, terms))
            parts = found + parts
        if step.layer > 1:
            delta = _times(step, delta, transposed=True)
    return Doubled(
        *(np.concatenate([p.ravel() for p in some]) for some in zip(*parts, strict=True))
    )


def _times(step: HeldStep, o: Doubled, transposed: bool = False) -> Doubled:
    """Return W @ o, or W.T @ o."""
    W = step.W
    terms = W.shape[0] if transposed else W.shape[1]
    if isinstance(W, DenseMatrix):
        weights = W.weights.T if transposed else W.weights
        return multiplied(np.matmul, as_it_is(weights), o, terms)
    if W.weights is not None:

        def f(weights: np.ndarray, o: np.ndarray) -> np.ndarray:
            matrix = W.with_weights(weights)
            return (matrix.T if transposed else matrix) @ o

        return multiplied(f, as_it_is(W.weights), o, terms)
    csr = W.tocsr()
    sizes = np.repeat(np.round(1 / csr.data[csr.indptr[:-1]])[:, None], o.high.shape[1], axis=1)
    csr.data = np.ones_like(csr.data)
    ones = as_it_is(np.ones(1))
    if transposed:
        return multiplied(lambda a, b: (csr.T @ b) * a, ones, divided(o, sizes), terms)
    return divided(multiplied(lambda a, b: (csr @ b) * a, ones, o, terms), sizes)
