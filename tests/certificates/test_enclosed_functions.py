"""Enclosures of functions, activations, losses and passes hold what mpmath and fractions give."""

from fractions import Fraction

import mpmath
import numpy as np
import pytest
import scipy.special
import strict_device
from rounding_problems import parameters

from tinyspur.certificates import enclosed_functions as functions
from tinyspur.certificates.enclosed_functions import activated, spread
from tinyspur.certificates.enclosed_losses import loss_curvature, loss_gradient, loss_value, softmax
from tinyspur.certificates.enclosed_passes import enclosed_steps
from tinyspur.certificates.enclosures import Enclosure, exact, product
from tinyspur.certificates.exact import exact_outputs
from tinyspur.engine.activations import (
    ELU,
    GELU,
    Arctan,
    ReLU,
    Sigmoid,
    SiLU,
    Sine,
    Softplus,
    Swish,
    Tanh,
)
from tinyspur.engine.floats import EPSILON, LEAST_NORMAL, LIBRARY, ndtr_units
from tinyspur.engine.losses import AbsoluteLoss, CrossEntropy, HuberLoss, SquaredLoss
from tinyspur.engine.network import Network
from tinyspur.engine.parameters import Parameters
from tinyspur.engine.user_activations import SmoothActivation
from tinyspur.layers import AveragePool, Conv, Dense, MaxPool

mp = mpmath.mp.clone()
mp.prec = 200
deep = mpmath.mp.clone()
deep.prec = 1300  # for tails of 1e-300 that are differences


def ndtr(x, mp=mp):
    return mp.erfc(-x / mp.sqrt(2)) / 2


def expit(x, mp=mp):
    return 1 / (1 + mp.exp(-x))


def spaced(low, high, count=60):
    return np.concatenate(
        [np.linspace(low, high, count), np.random.default_rng(0).uniform(low, high, count)]
    )


def sized(low, high, count=50):
    """Return numbers of both signs, their sizes from 10^low to 10^high."""
    sizes = 10.0 ** np.random.default_rng(1).uniform(low, high, count)
    return np.concatenate([sizes, -sizes])


EVERYWHERE = np.concatenate([spaced(-3, 3), spaced(-40, 40), sized(-320, 0), [0.0, -0.0]])
LIBRARY_FUNCTIONS = {
    "exp": (np.exp, mp.exp, np.concatenate([EVERYWHERE, spaced(-750, 709.7)])),
    "expm1": (np.expm1, mp.expm1, np.concatenate([EVERYWHERE, spaced(-750, 709.7)])),
    "log": (np.log, mp.log, np.concatenate([spaced(1, 1e4), 1 + abs(sized(-16, 0))])),
    "log1p": (np.log1p, mp.log1p, np.concatenate([spaced(0, 1), abs(sized(-320, 3))])),
    "tanh": (np.tanh, mp.tanh, np.concatenate([EVERYWHERE, sized(0, 308)])),
    "sin": (np.sin, mp.sin, np.concatenate([EVERYWHERE, sized(0, 308)])),
    "cos": (np.cos, mp.cos, np.concatenate([EVERYWHERE, sized(0, 308)])),
    "arctan": (np.arctan, mp.atan, np.concatenate([EVERYWHERE, sized(0, 308)])),
    "expit": (scipy.special.expit, expit, np.concatenate([EVERYWHERE, spaced(-760, 760)])),
    "ndtr": (scipy.special.ndtr, ndtr, np.concatenate([EVERYWHERE, spaced(-39, -3)])),
}


@pytest.mark.parametrize("name", LIBRARY_FUNCTIONS)
def test_library_functions_are_within_the_units_that_are_stated(name):
    function, known, z = LIBRARY_FUNCTIONS[name]
    units = ndtr_units(z) if name == "ndtr" else np.full(z.shape, LIBRARY)
    with np.errstate(under="ignore", over="ignore"):
        values = function(z)
    for x, value, allowed in zip(z, values, units, strict=True):
        expected = known(mp.mpf(float(x)))
        bound = allowed * EPSILON * abs(value) + LEAST_NORMAL
        assert abs(expected - mp.mpf(float(value))) <= bound, x


@pytest.mark.parametrize("name", LIBRARY_FUNCTIONS)
@pytest.mark.parametrize("radius", [0.0, 1e-12, 0.3])
def test_functions_of_all_numbers_inside_are_inside(name, radius):
    _, known, z = LIBRARY_FUNCTIONS[name]
    z = z[::9]
    radii = radius * (z / 2 if name in ("log", "log1p") else np.ones_like(z))
    E = getattr(functions, name)(Enclosure(z, radii))
    for x, r, middle, size in zip(z, radii, E.middle, E.radius, strict=True):
        for t in (-1, 0.4, 1):
            value = known(mp.mpf(float(x)) + t * mp.mpf(float(r)))
            assert size == np.inf or abs(value - mp.mpf(float(middle))) <= size, x


# Activations


def logistic(beta, mp=deep):
    """Return z s(beta z) with the sigmoid s, and its derivatives."""
    b = mp.mpf(beta)

    def slope(z):
        return expit(z, mp) * expit(-z, mp)

    def bend(z):
        return slope(z) * (1 - 2 * expit(z, mp))

    return (
        lambda z: z * expit(b * z, mp),
        lambda z: expit(b * z, mp) + b * z * slope(b * z),
        lambda z: b * (2 * slope(b * z) + b * z * bend(b * z)),
        slope,
        bend,
    )


def density(z):
    return deep.exp(-z * z / 2) / deep.sqrt(2 * deep.pi)


def left_or(alpha, right):
    """Return ELU's derivative: alpha exp z for z <= 0, else a number."""
    return lambda z: right if z > 0 else deep.mpf(alpha) * deep.exp(z)


def elu(alpha):
    def value(z):
        return z if z > 0 else deep.mpf(alpha) * deep.expm1(z)

    return value, left_or(alpha, 1), left_or(alpha, 0)


def leaky(slope):
    a = deep.mpf(slope)
    return lambda z: z if z > 0 else a * z, lambda z: 1 if z > 0 else a, lambda z: 0


SLOPE, BEND = logistic(1)[3:]
ACTIVATIONS = {
    Sigmoid(): (lambda z: expit(z, deep), SLOPE, BEND),
    Tanh(): (deep.tanh, lambda z: 4 * SLOPE(2 * z), lambda z: 8 * BEND(2 * z)),
    Softplus(): (lambda z: deep.log1p(deep.exp(z)), lambda z: expit(z, deep), SLOPE),
    SiLU(): logistic(1)[:3],
    Swish(1.7): logistic(1.7)[:3],
    GELU(): (
        lambda z: z * ndtr(z, deep),
        lambda z: ndtr(z, deep) + z * density(z),
        lambda z: (2 - z * z) * density(z),
    ),
    ELU(): elu(1),
    ELU(0.3): elu(0.3),
    Sine(): (deep.sin, deep.cos, lambda z: -deep.sin(z)),
    Arctan(): (
        deep.atan,
        lambda z: 1 / (1 + z * z),
        lambda z: -2 * z / (1 + z * z) ** 2,
    ),
    ReLU(): leaky(0),
    ReLU(0.3): leaky(0.3),
}
SMOOTH_USER = SmoothActivation("own", np.tanh, lambda z: 1 - np.tanh(z) ** 2, bounds=(0.77, 2.0))


@pytest.mark.parametrize("sigma", ACTIVATIONS, ids=repr)
@pytest.mark.parametrize("order", [0, 1, 2])
def test_activations_and_their_derivatives_hold_over_boxes(sigma, order):
    known, z = ACTIVATIONS[sigma][order], np.concatenate([spaced(-40, 40, 3), spaced(-3, 3, 3)])
    z = np.concatenate([z, sized(-300, -1, 2), sized(1, 2.8, 2), [0.0]])
    for radius in (0.0, 1e-12, 0.2):
        radii = radius * np.maximum(abs(z), 1e-3)
        E = activated(sigma, Enclosure(z, radii), order)
        for x, r, middle, size in zip(z, radii, E.middle, E.radius, strict=True):
            for t in (-1, 0.3, 1) if radius else (0,):
                value = known(deep.mpf(float(x)) + t * deep.mpf(float(r)))
                assert size == np.inf or abs(value - deep.mpf(float(middle))) <= size, x
        assert np.isfinite(E.radius).all() or (sigma == ELU(0.3) and order == 2)


@pytest.mark.parametrize("sigma", ACTIVATIONS, ids=repr)
def test_enclosures_of_activations_are_not_absurdly_wide(sigma):
    z, ratios = spaced(-8, 8, 8), []
    for order, known in enumerate(ACTIVATIONS[sigma]):
        thin, box = (activated(sigma, Enclosure(z, np.full(z.shape, r)), order) for r in (0, 1e-9))
        for x, middle, size, wide in zip(z, thin.middle, thin.radius, box.radius, strict=True):
            value, slope = known(deep.mpf(float(x))), 1e-9
            if order < 2:
                slope = 1e-9 * float(abs(ACTIVATIONS[sigma][order + 1](deep.mpf(float(x)))))
            off = float(abs(value - deep.mpf(float(middle))))
            ratios += [size / off] if off else []
            assert wide <= 1.1 * slope * (1 if order < 2 else 2) + 2 * size + 1e-14
    assert not ratios or np.median(ratios) < 50


def test_a_users_activation_is_taken_for_what_it_returns():
    z = np.linspace(-3, 3, 50)
    for order in (0, 1):
        own, tanh = (activated(s, Enclosure(z, 0.1 + 0 * z), order) for s in (SMOOTH_USER, Tanh()))
        assert np.allclose(own.middle, tanh.middle, rtol=1e-12)
        assert np.allclose(own.radius, tanh.radius, rtol=1e-2)


@pytest.mark.parametrize("sigma", [*ACTIVATIONS, SMOOTH_USER], ids=repr)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_computed_activations_are_no_further_off_than_their_spread(sigma, dtype):
    rng = np.random.default_rng(0)
    z = (rng.normal(size=300) * 10.0 ** rng.uniform(-4, 1.5, size=300)).astype(dtype)
    errors = (abs(z) * 10.0 ** rng.uniform(-9, 0.5, size=300)).astype(dtype)
    found = spread(sigma, z, sigma(z), errors)
    for t in (-1, -0.5, 0, 1):
        moved = z.astype(np.float64) + t * errors.astype(np.float64)
        off = abs(sigma(z).astype(np.float64) - sigma(moved))
        assert (off <= found * (1 + 1e-6)).all()


# Losses

LOSSES = [SquaredLoss(), CrossEntropy(), AbsoluteLoss(), HuberLoss(0.5)]


def mp_softmax(o):
    powers = [deep.exp(v - max(o)) for v in o]
    return [v / sum(powers) for v in powers]


def mp_loss(loss, o, y, d):
    """Return value, gradient and Hessian times d for mpf numbers of one sample."""
    r = [a - b for a, b in zip(o, y, strict=True)]
    if isinstance(loss, SquaredLoss):
        return sum(v * v for v in r) / 2, r, d
    if isinstance(loss, AbsoluteLoss):
        return sum(map(abs, r)), [deep.sign(v) for v in r], [0 * v for v in d]
    if isinstance(loss, HuberLoss):
        c = loss.delta
        value = sum(v * v / 2 if abs(v) < c else c * (abs(v) - deep.mpf(c) / 2) for v in r)
        bent = [w if abs(v) < c else 0 * w for v, w in zip(r, d, strict=True)]
        return value, [min(max(v, -c), c) for v in r], bent
    p, Y, top = mp_softmax(o), sum(y), max(o)
    total = Y * deep.log(sum(deep.exp(v - top) for v in o))
    value = total - sum(b * (a - top) for a, b in zip(o, y, strict=True))
    mean = sum(a * b for a, b in zip(p, d, strict=True))
    bent = [Y * a * (b - mean) for a, b in zip(p, d, strict=True)]
    return value, [Y * a - b for a, b in zip(p, y, strict=True)], bent


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
@pytest.mark.parametrize("radius", [0.0, 1e-13, 1e-2, 20.0])
@pytest.mark.parametrize("height", [1e-3, 1.0, 300.0])
def test_losses_and_their_derivatives_hold_over_boxes(loss, radius, height):
    rng = np.random.default_rng(0)
    o, d = height * rng.normal(size=(3, 6)), rng.normal(size=(3, 6))
    y = rng.dirichlet(np.ones(3), 6).T
    y[:, :2] = np.eye(3)[:, :2]
    E = Enclosure(o, radius * rng.uniform(0, 1, size=o.shape))
    value, gradient = loss_value(loss, E, y), loss_gradient(loss, E, y)
    bent = loss_curvature(loss, E, y, d)
    for t in (-1, -0.5, 0, 1):
        sides = t * rng.choice([-1, 1], size=o.shape)
        for i in range(6):
            at = [
                deep.mpf(float(a)) + s * deep.mpf(float(r))
                for a, r, s in zip(o[:, i], E.radius[:, i], sides[:, i], strict=True)
            ]
            known = mp_loss(loss, at, [*map(deep.mpf, y[:, i])], [*map(deep.mpf, d[:, i])])
            for values, found in zip(known, (value[i], gradient[:, i], bent[:, i]), strict=True):
                for k, one in enumerate(values if isinstance(values, list) else [values]):
                    middle = np.atleast_1d(found.middle)[k]
                    assert abs(one - deep.mpf(float(middle))) <= np.atleast_1d(found.radius)[k]
    if not radius:
        assert value.radius.max() <= 1e-13 * (1 + value.middle.max() + height)
        assert gradient.radius.max() <= (1e-12 * (1 + height))


def test_the_softmax_of_anything_is_between_0_and_1():
    p = softmax(Enclosure(np.array([[0.0], [5.0], [-3e5]]), np.array([[1e6], [np.inf], [0.0]])))
    assert (p.low >= -1e-15).all() and (p.high <= 1 + 1e-15).all()


# Passes

NETS = {
    "dense": Network((1, 1, 5), [Dense(4), Dense(3), Dense(2)], ReLU(0.3)),
    "conv": Network((1, 4, 4), [Conv(2), AveragePool(2), Conv(2), MaxPool(2), Dense(2)]),
    "strided": Network((2, 4, 4), [Conv(3, stride=2), Conv(2), Dense(2)]),
}


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("radius", [0.0, 1e-9, 0.1])
def test_outputs_of_all_parameters_in_a_box_are_inside(name, radius):
    net, rng = NETS[name], np.random.default_rng(0)
    theta = parameters(net, rng, False)
    x, radii = rng.normal(size=(3, *net.input_shape)), Parameters(net, radius * abs(theta.vector))
    columns = np.ascontiguousarray(x.reshape(3, -1).T)
    *_, last = enclosed_steps(theta, columns, radii if radius else None)
    assert np.isfinite(last.o.radius).all()
    for t in (-1, -0.5, 0, 0.5, 1):
        sides = np.sign(rng.normal(size=net.size)) if t else 0
        near = Parameters(net, theta.vector + t * sides * radii.vector * (1 - 1e-6))
        for value, middle, size in zip(
            exact_outputs(near, x).T.flat, last.o.middle.flat, last.o.radius.flat, strict=True
        ):
            assert abs(value - Fraction(float(middle))) <= Fraction(float(size))
    boxed = list(enclosed_steps(theta, exact(columns), radii))
    assert [step.layer for step in boxed] == [*theta.W]
    assert (boxed[-1].z.radius >= last.z.radius * (1 - 1e-6)).all()


def test_slopes_and_bends_of_a_step_are_those_of_its_activation():
    net, rng = Network((1, 1, 5), [Dense(4), Dense(2)], Tanh()), np.random.default_rng(0)
    step = next(enclosed_steps(parameters(net, rng, False), rng.normal(size=(5, 3))))
    for found, value in (
        (step.slopes, Tanh().derivative(step.z.middle)),
        (step.bends, Tanh().second_derivative(step.z.middle)),
    ):
        assert (abs(found.middle - value) <= found.radius + 1e-15).all()
        assert found.radius.max() < 1e-13


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("scale", [1.0, 1e-200, 1e200])
def test_products_with_matrices_and_their_transposes_hold(name, scale):
    net, rng = NETS[name], np.random.default_rng(1)
    theta = Parameters(net, rng.normal(size=net.size) * scale)
    radii = Parameters(net, 1e-3 * abs(theta.vector))
    for layer, W in theta.W.items():
        below = rng.normal(size=(W.shape[1], 2)) / scale * 1e-100
        W = W.at(below[:, :1])
        R = None if W.weights is None else radii.W[layer]
        for M, N, rows in ((W, R, W.shape[1]), (W.T, R and R.T, W.shape[0])):
            x = Enclosure(*(f(rng.normal(size=(rows, 2))) * 1e-150 for f in (np.array, abs)))
            plain, box = product(M, x), product(M, x, N)
            entries = [[Fraction(float(v)) for v in row] for row in M.toarray()]
            if "AveragePooling" in repr(M):
                share = Fraction(1, W.fan_in)
                entries = [[share if v else v for v in row] for row in entries]
            wide = entries if N is None else [[v * Fraction(1.0009) for v in r] for r in entries]
            for i in range(2):
                column = [
                    Fraction(float(m)) + Fraction(float(r)) / 2
                    for m, r in zip(x.middle[:, i], x.radius[:, i], strict=True)
                ]
                for matrix, E in ((entries, plain), (wide, box)):
                    for j, row in enumerate(matrix):
                        value = sum(a * b for a, b in zip(row, column, strict=True))
                        middle, size = float(E.middle[j, i]), float(E.radius[j, i])
                        assert abs(value - Fraction(middle)) <= Fraction(size)


def test_a_device_gives_what_the_host_gives():
    rng = np.random.default_rng(0)
    z, y = rng.normal(size=(3, 4)), np.eye(3)[:, [0, 1, 2, 0]]
    host, device = (
        [
            *(activated(s, Enclosure(v, r), n) for s in ACTIVATIONS for n in range(3)),
            *(f(loss, Enclosure(v, r), t) for f in (loss_value, loss_gradient) for loss in LOSSES),
            *(loss_curvature(loss, Enclosure(v, r), t, v) for loss in LOSSES),
        ]
        for v, r, t in (
            (z, 1e-3 * abs(z), y),
            tuple(map(strict_device.asarray, (z, 1e-3 * abs(z), y))),
        )
    )
    for one, other in zip(host, device, strict=True):
        assert np.allclose(one.middle, other.middle.get(), rtol=1e-12, atol=1e-300)
        assert np.allclose(one.radius, other.radius.get(), rtol=1e-6, atol=1e-300)
    theta = parameters(NETS["conv"], rng, False)
    x = rng.normal(size=(16, 2))
    *_, host = enclosed_steps(theta, x, abs(theta))
    *_, device = enclosed_steps(
        theta.to(strict_device), strict_device.asarray(x), abs(theta).to(strict_device)
    )
    assert np.allclose(host.o.radius, device.o.radius.get(), rtol=1e-6)
