"""[SMOOTH]: minima for every activation with curvature, any widths; interpolation; refusals."""

import functools

import numpy as np
import pytest
import torch_twin
from shared import (
    LOG_COSH,
    SQUARED,
    UNBOUNDED_LOG_COSH,
    twin_hessian,
    twin_of,
    twin_risk,
)

from tinyspur import datasets
from tinyspur.certificates.curvature import certify_curvature
from tinyspur.constructions.smooth import interpolate, lower_point, smooth_minimum
from tinyspur.datasets.samples import TrainingSet
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
from tinyspur.engine.network import Network
from tinyspur.engine.parameters import Parameters
from tinyspur.engine.points import load_point, save_point
from tinyspur.engine.user_activations import SmoothActivation
from tinyspur.errors import AssumptionError
from tinyspur.layers import Conv, Dense
from tinyspur.refutations.escapes import find_escape

KNOWN = [
    *(Sigmoid(), Tanh(), Softplus(), SiLU(), GELU(), ELU(), ELU(0.5), Sine(), Arctan()),
    *(Swish(), Swish(2.0)),
]
ALL = [*KNOWN, LOG_COSH, UNBOUNDED_LOG_COSH]
over_all = pytest.mark.parametrize("sigma", ALL, ids=lambda s: f"{s!r}{'' if s.bounds else ' ?'}")
SHAPES = [  # widths, the last of the outputs; dimension of the inputs; samples
    ((1, 1), 1, 3),
    ((4, 1), 2, 15),
    ((1, 3), 3, 10),
    ((3, 2, 2), 2, 12),
    ((2, 5, 1), 5, 40),
    ((3, 1, 4, 2), 3, 30),
    ((2, 3, 2, 3, 2, 1), 2, 20),
]
WIDE = [((20, 1), 2, 20), ((25, 2), 3, 20), ((4, 20, 1), 2, 20), ((5, 5, 40, 3), 5, 30)]


def over_drawn(shapes):
    """Run a test with one of the shapes for every activation, another for the next one."""
    drawn = [(sigma, shapes[n % len(shapes)]) for n, sigma in enumerate(ALL)]
    return pytest.mark.parametrize("sigma, shape", drawn, ids=map(repr, ALL))


def network(sigma, widths, dimension):
    return Network((1, dimension), [*map(Dense, widths)], sigma)


def inputs(samples, dimension, seed=0):
    return np.random.default_rng(seed).normal(size=(samples, 1, dimension))


def new_minimum(sigma=None, widths=(4, 3, 1), dimension=3, samples=20, seed=0, **options):
    net = network(sigma or Tanh(), widths, dimension)
    return smooth_minimum(net, inputs(samples, dimension, seed), seed=seed, **options)


minimum = functools.cache(new_minimum)


# The minimum


@over_drawn(SHAPES)
def test_the_minimum_is_certified_and_has_the_risk_that_was_asked_for(sigma, shape):
    widths, dimension, samples = shape
    found = minimum(sigma, widths, dimension, samples, risk=0.7)
    c = found.certificate
    assert c.holds, found
    assert c == certify_curvature(found.theta, found.data, SQUARED)
    assert c.risk == pytest.approx(0.7, rel=1e-12)
    assert twin_risk(found.theta, found.data) == pytest.approx(0.7, rel=1e-12)
    assert c.radius > 1e-8
    assert c.bounded == (sigma.bounds is not None)
    assert found.data.y.shape == (samples, widths[-1])


@over_drawn(SHAPES)
def test_the_outputs_are_constant_and_the_residuals_see_the_curvature_alone(sigma, shape):
    widths, dimension, samples = shape
    found = minimum(sigma, widths, dimension, samples)
    outputs = twin_of(found.theta)(found.data.x).detach().numpy()
    assert not found.theta.W[1].weights.any()
    np.testing.assert_allclose(outputs, np.broadcast_to(outputs[0], outputs.shape), atol=1e-13)
    for k in range(widths[-1]):
        sums, sizes = np.zeros(dimension + 1), np.zeros(dimension + 1)
        M, S = np.zeros((dimension, dimension)), np.zeros((dimension, dimension))
        centre = found.data.x[:, 0].mean(axis=0)
        for x, y, o in zip(found.data.x[:, 0], found.data.y[:, k], outputs[:, k], strict=True):
            sums += (o - y) * np.r_[x, 1]
            sizes += abs(o - y) * abs(np.r_[x, 1])
            M += (o - y) * np.outer(x, x)
            S += np.outer(x - centre, x - centre)
        assert (abs(sums) < 1e-13 * sizes).all()
        scale = np.trace(M) / np.trace(S)
        assert scale > 0
        np.testing.assert_allclose(M, scale * S, atol=1e-10 * scale * abs(S).max())


@over_drawn([SHAPES[1], SHAPES[3], SHAPES[6]])
def test_pytorch_finds_no_slope_and_no_negative_curvature(sigma, shape):
    widths, dimension, samples = shape
    found = minimum(sigma, widths, dimension, samples)
    slopes = torch_twin.gradients(twin_of(found.theta), found.data.x, found.data.y, "squared")
    assert max(abs(slope).max() for slope in slopes.values()) < 1e-12
    values = np.linalg.eigvalsh(twin_hessian(found.theta, found.data))
    assert values[0] > -1e-12 * values[-1]


@over_drawn(SHAPES)
def test_every_hidden_unit_is_at_the_expansion_point(sigma, shape):
    found = minimum(sigma, *shape)
    for z in twin_of(found.theta).preactivations(found.data.x).values():
        np.testing.assert_allclose(z.detach(), found.expansion_point, atol=1e-13)


@over_drawn([SHAPES[1], SHAPES[3]])
def test_nothing_is_found_within_the_radius(sigma, shape):
    found = minimum(sigma, *shape)
    radius = found.certificate.radius
    search = {"starts": 2, "iterations": 20}
    assert find_escape(found.theta, found.data, SQUARED, radius, **search) is None
    rng = np.random.default_rng(0)
    for _ in range(10):
        move = radius * rng.choice([-1, 1], found.theta.net.size)
        near = Parameters(found.theta.net, found.theta.vector + move)
        assert near.net.risk(near, found.data, SQUARED) >= found.certificate.risk * (1 - 1e-13)


@pytest.mark.parametrize("dimension", [1, 2, 3, 4, 6, 9, 13, 20])
def test_any_dimension_will_do_with_as_many_samples_as_it_takes(dimension):
    needed = dimension * (dimension + 3) // 2 + 1
    for samples in (needed, needed + 3):
        found = minimum(SiLU(), (3, 2, 2), dimension, samples)
        assert found.certificate.holds, found
        assert found.certificate.radius > 0
    with pytest.raises(AssumptionError, match=rf"= {needed} for d = {dimension}, got {needed - 1}"):
        minimum(SiLU(), (3, 2, 2), dimension, needed - 1)


@pytest.mark.parametrize("width", [1, 2, 10, 100, 300, 1000])
def test_any_width_will_do(width):
    found = minimum(Tanh(), (width, 1), 2, 15)
    assert found.certificate.holds
    assert found.certificate.radius > 0
    assert found.certificate.risk == pytest.approx(1)


@pytest.mark.parametrize("hidden", range(1, 6))
def test_any_depth_will_do(hidden):
    widths = [7, 4, 20, 3, 5][:hidden]
    for sigma, outputs in ((Sigmoid(), 1), (Softplus(), 3), (Sine(), 1)):
        found = minimum(sigma, (*widths, outputs), 4, 40)
        assert found.certificate.holds, found
        assert found.certificate.radius > 0


@pytest.mark.parametrize("risk", [1e-12, 1e-3, 1, 50.0, 1e8])
def test_any_risk_will_do(risk):
    found = minimum(Sigmoid(), risk=risk)
    assert found.certificate.holds, found
    assert twin_risk(found.theta, found.data) == pytest.approx(risk, rel=1e-6)


@pytest.mark.parametrize("scale", [1e-5, 1e4])
def test_inputs_may_have_any_scale(scale):
    x = inputs(20, 3) * scale * [1.0, 2.0, 5.0]
    found = smooth_minimum(network(Softplus(), (3, 2, 1), 3), x)
    assert found.certificate.holds, found


@pytest.mark.parametrize("point", [-1.3, 0.7])
@over_all
def test_the_expansion_point_may_be_chosen(sigma, point):
    if isinstance(sigma, ELU) and point > 0:
        with pytest.raises(AssumptionError, match="got 1 and 0 for ELU"):
            minimum(sigma, expansion_point=point)
        return
    found = minimum(sigma, expansion_point=point)
    assert found.expansion_point == point
    assert found.certificate.holds, found
    assert found.certificate.radius > 0


@over_all
def test_the_chosen_expansion_point_is_far_from_where_curvature_or_slope_vanish(sigma):
    a = minimum(sigma).expansion_point
    assert -3 <= a <= 3
    z = np.linspace(a - 0.25, a + 0.25, 51)
    for f in (sigma.derivative, sigma.second_derivative):
        values = f(z)
        assert (values > 0.02).all() or (values < -0.02).all()


def test_float32_and_integer_inputs_are_taken():
    x = np.random.default_rng(0).integers(-4, 5, (30, 1, 2))
    net = network(Tanh(), (3, 1), 2)
    expected = smooth_minimum(net, x.astype(np.float64))
    for dtype in (np.float32, np.int64, np.int8):
        found = smooth_minimum(net, x.astype(dtype))
        assert found.certificate.holds
        np.testing.assert_array_equal(found.data.y, expected.data.y)


def test_images_are_inputs_too():
    x = np.random.default_rng(0).normal(size=(40, 2, 2, 1))
    found = smooth_minimum(Network((2, 2, 1), [Dense(3), Dense(2)], GELU()), x)
    assert found.certificate.holds
    flat = smooth_minimum(network(GELU(), (3, 2), 4), x.reshape(40, 1, 4))
    np.testing.assert_array_equal(found.theta.vector, flat.theta.vector)


def test_principal_components_of_images_are_inputs():
    x = datasets.bundled().subset(100, 0).principal_components(5)
    for sigma in (Tanh(), GELU(), ELU()):
        found = smooth_minimum(network(sigma, (7, 5, 4, 1), 5), x)
        c = found.certificate
        assert c.holds, found
        assert twin_risk(found.theta, found.data) == pytest.approx(1, rel=1e-12)
        assert find_escape(found.theta, found.data, SQUARED, c.radius, starts=2) is None


def test_the_same_seed_gives_the_same_bytes():
    first, again, other = (new_minimum(seed=seed) for seed in (3, 3, 4))
    x = inputs(20, 3, 3)
    elsewhere = smooth_minimum(first.theta.net, x, seed=5)
    assert first.theta.vector.tobytes() == again.theta.vector.tobytes()
    assert first.data.y.tobytes() == again.data.y.tobytes()
    assert first.certificate == again.certificate
    for different in (other, elsewhere):
        assert first.theta.vector.tobytes() != different.theta.vector.tobytes()
        assert first.data.y.tobytes() != different.data.y.tobytes()
    np.testing.assert_array_equal(first.data.x, x)


def test_arguments_are_not_changed():
    x = inputs(20, 3)
    smooth_minimum(network(Tanh(), (3, 1), 3), x)
    np.testing.assert_array_equal(x, inputs(20, 3))


def test_a_file_keeps_the_certificate(tmp_path):
    for sigma in KNOWN:
        found = minimum(sigma)
        save_point(tmp_path / "theta.npz", found.theta)
        theta = load_point(tmp_path / "theta.npz")
        assert theta.net == found.theta.net
        assert certify_curvature(theta, found.data, SQUARED) == found.certificate
        twin = torch_twin.from_npz(tmp_path / "theta.npz")
        risk = torch_twin.risk(twin(found.data.x).detach(), found.data.y, "squared")
        assert float(risk) == pytest.approx(1, rel=1e-12)


def test_a_minimum_prints_its_risk_and_its_certificate():
    found = minimum(Swish(2.0))
    first, *rest = str(found).splitlines()
    assert first == f"R = 1, Swish(beta=2.0) at a = {found.expansion_point:.3g}"
    assert "\n".join(rest) == str(found.certificate)


# Lower points


@over_all
def test_a_lower_point_is_found_elsewhere(sigma):
    found = minimum(sigma, (6, 5, 1), 2, 20)
    lower = lower_point(found, starts=1, iterations=60)
    assert lower.net == found.theta.net
    assert twin_risk(lower, found.data) < 0.7 * found.certificate.risk


def test_more_starts_are_no_worse_and_the_seed_decides():
    found = minimum(Tanh(), (4, 1), 2, 20)
    risks = [
        twin_risk(lower_point(found, starts, iterations=20, seed=1), found.data)
        for starts in (1, 2, 4)
    ]
    assert risks == sorted(risks, reverse=True)
    first, again = (lower_point(found, 1, 20, seed=1) for _ in range(2))
    assert first.vector.tobytes() == again.vector.tobytes()


def test_where_the_last_hidden_layer_is_wide_the_lower_point_interpolates():
    found = minimum(Tanh(), (3, 20, 2), 2, 20)
    assert twin_risk(lower_point(found, starts=1, iterations=5), found.data) < 1e-20


@over_drawn(WIDE)
def test_interpolation_has_no_risk(sigma, shape):
    widths, dimension, samples = shape
    net = network(sigma, widths, dimension)
    rng = np.random.default_rng(1)
    data = TrainingSet(inputs(samples, dimension), rng.normal(size=(samples, widths[-1])))
    theta = interpolate(net, data)
    assert net.risk(theta, data, SQUARED) < 1e-20
    assert twin_risk(theta, data) < 1e-20
    found = minimum(sigma, widths, dimension, max(samples, dimension * (dimension + 3) // 2 + 1))
    if len(found.data) <= widths[-2]:
        assert twin_risk(interpolate(net, found.data), found.data) < 1e-20


def test_interpolation_takes_inputs_of_any_scale_and_shift_and_images():
    rng = np.random.default_rng(0)
    net = network(Tanh(), (4, 25, 1), 2)
    for scale, shift in ((1e-6, 0), (1e6, 0), (1.0, 100.0)):
        data = TrainingSet(inputs(20, 2) * scale + shift, rng.normal(size=(20, 1)))
        assert twin_risk(interpolate(net, data), data) < 1e-20
    images = datasets.bundled().subset(60, 0).pixels()
    data = TrainingSet(images, rng.normal(size=(60, 3)))
    net = Network((1, 28, 28), [Dense(10), Dense(60), Dense(3)], GELU())
    assert twin_risk(interpolate(net, data), data) < 1e-20


def test_a_single_sample_is_interpolated():
    net = network(Tanh(), (3, 2), 2)
    data = TrainingSet(inputs(1, 2), np.array([[1.0, -2.0]]))
    assert twin_risk(interpolate(net, data), data) < 1e-20


def test_interpolations_repeat_with_the_seed():
    data = TrainingSet(inputs(20, 2), np.random.default_rng(0).normal(size=(20, 1)))
    net = network(Tanh(), (20, 1), 2)
    first, again, other = (interpolate(net, data, seed).vector.tobytes() for seed in (1, 1, 2))
    assert first == again != other


def test_fewer_units_than_samples_do_not_interpolate():
    data = TrainingSet(inputs(20, 2), np.ones((20, 1)))
    for widths in ((19, 1), (50, 19, 1)):
        with pytest.raises(AssumptionError, match=r"at least 20 units, .* got 19$"):
            interpolate(network(Tanh(), widths, 2), data)


def test_equal_samples_do_not_interpolate():
    x = inputs(20, 2)
    x[13] = x[4]
    data = TrainingSet(x, np.random.default_rng(0).normal(size=(20, 1)))
    with pytest.raises(AssumptionError, match="expected samples that are all different"):
        interpolate(network(Tanh(), (30, 1), 2), data)


def test_equal_samples_with_equal_targets_interpolate_with_a_unit_for_each_that_differs():
    drawn = np.random.default_rng(1).integers(20, size=40)
    distinct = len(set(drawn.tolist()))
    data = TrainingSet(inputs(20, 2)[drawn], np.random.default_rng(0).normal(size=(20, 1))[drawn])
    assert twin_risk(interpolate(network(Tanh(), (distinct, 1), 2), data), data) < 1e-20
    with pytest.raises(AssumptionError, match=rf"at least {distinct} units"):
        interpolate(network(Tanh(), (distinct - 1, 1), 2), data)


def test_a_minimum_at_repeated_inputs_has_lower_points_without_an_interpolation():
    x = inputs(30, 2)[np.random.default_rng(1).integers(30, size=50)]
    found = smooth_minimum(network(Tanh(), (60, 1), 2), x)
    assert found.certificate.holds
    with pytest.raises(AssumptionError, match="the equal samples"):
        interpolate(found.theta.net, found.data)
    assert twin_risk(lower_point(found, 1, 20), found.data) < found.certificate.risk


def test_other_networks_do_not_interpolate():
    data = TrainingSet(inputs(5, 2), np.ones((5, 1)))
    for layers, sigma, words in (
        ([Dense(9), Dense(1)], ReLU(), "curvature: expected"),
        ([Conv(9), Dense(1)], Tanh(), "interpolation: expected dense layers"),
    ):
        with pytest.raises(ValueError, match=rf"^{words}"):
            interpolate(Network((1, 2), layers, sigma), data)


# Refusals


@pytest.mark.parametrize("dimension", [1, 2, 5, 20])
def test_too_few_samples_are_refused_with_the_number_needed(dimension):
    needed = {1: 3, 2: 6, 5: 21, 20: 231}[dimension]
    with pytest.raises(AssumptionError, match=rf"at least d\(d\+3\)/2 \+ 1 = {needed} for"):
        minimum(Tanh(), (3, 1), dimension, needed - 1)


def degenerate():
    rng = np.random.default_rng(0)
    flat = rng.normal(size=(60, 3))
    angles = rng.uniform(0, 2 * np.pi, 60)
    spread = "degenerate inputs: expected samples that span"
    quadric = "degenerate inputs: .*the samples lie on a quadric"
    t, s = rng.normal(size=60), rng.choice([-1.0, 1.0], 60)
    yield "a plane", np.c_[flat[:, :2], flat @ [1, 2, 0] + 1], spread
    yield "a point", np.ones((60, 3)), spread
    yield "a circle", np.c_[np.cos(angles), np.sin(angles)], quadric
    yield "an ellipse elsewhere", np.c_[3 * np.cos(angles) + 7, np.sin(angles) - 2], quadric
    yield "a sphere", flat / np.linalg.norm(flat, axis=1, keepdims=True), quadric
    yield "corners of a box", rng.choice([-1.0, 1.0], (60, 3)), quadric
    yield "corners of a box elsewhere", rng.choice([0.0, 2.0], (60, 3)) * [1, 2, 3], quadric
    yield "a parabola", np.c_[t, t**2], quadric
    yield "a hyperbola", np.c_[s * np.cosh(t), np.sinh(t)], quadric
    yield "a cone", np.c_[t * np.cos(s * t), t * np.sin(s * t), t], quadric
    yield "two values", rng.choice([0.0, 1.0], (60, 1)), quadric


@pytest.mark.parametrize(
    ("flat", "message"), [pytest.param(x, why, id=name) for name, x, why in degenerate()]
)
def test_degenerate_inputs_are_refused(flat, message):
    with pytest.raises(AssumptionError, match=f"^{message}"):
        smooth_minimum(network(Tanh(), (3, 1), flat.shape[1]), flat[:, None])


@pytest.mark.parametrize(
    ("sigma", "point", "message"),
    [
        (Tanh(), 0.0, "got 1 and -?0 for Tanh.* at a = 0$"),
        (Sigmoid(), 0.0, "got 0.25 and -?0 for Sigmoid"),
        (Arctan(), 0, "got 1 and -?0 for Arctan"),
        (Sine(), np.pi / 2, "got 6.12e-17 and -1 for Sine.* at a = 1.5708$"),
        (Sine(), 0.0, "got 1 and -?0 for Sine"),
        (LOG_COSH, 0.0, "got 0 and 1 for SmoothActivation"),
        (ELU(), 1.0, "got 1 and 0 for ELU"),
        (Tanh(), 40.0, "got 7.2.*e-35 and -1.4.*e-34 for Tanh.* at a = 40$"),
        (Softplus(), -60.0, "got 8.7.*e-27 and 8.7.*e-27 for Softplus"),
    ],
    ids=str,
)
def test_expansion_points_without_slope_or_curvature_are_refused(sigma, point, message):
    with pytest.raises(
        AssumptionError, match=rf"expected sigma'\(a\) != 0 and sigma''\(a\) != 0, {message}"
    ):
        minimum(sigma, expansion_point=point)


def test_an_activation_that_is_a_line_is_refused():
    line = SmoothActivation("line", lambda z: 2 * z, lambda z: 2 + 0 * z, lambda z: 0 * z, (0, 0))
    with pytest.raises(AssumptionError, match=r"found no point in \[-3, 3\] where Smooth.*line"):
        minimum(line)


def test_other_networks_are_refused():
    x = inputs(20, 2)
    for layers, sigma, words in (
        ([Dense(3), Dense(1)], ReLU(), "sigma'' != 0, got ReLU"),
        ([Dense(3), Dense(1)], ReLU(0.2), "sigma'' != 0, got ReLU"),
        ([Conv(3), Dense(1, bias=False)], Tanh(), "expected a dense layer with biases"),
        ([Dense(1)], Tanh(), "expected a hidden layer with an activation"),
    ):
        with pytest.raises(ValueError, match=words):
            smooth_minimum(Network((1, 2), layers, sigma), x)


def test_inputs_of_other_shapes_or_not_finite_are_refused():
    net, x = network(Tanh(), (3, 1), 2), inputs(20, 2)
    wrong = [x[:, 0, 0], x[:, 0, :1], x[:, :, :1], x.reshape(20, 2, 1), x.reshape(10, 1, 4), x[:0]]
    for value in (np.nan, np.inf):
        wrong.append(x.copy())
        wrong[-1][3, 0, 1] = value
    for bad in wrong:
        with pytest.raises(ValueError, match=r"^inputs: expected "):
            smooth_minimum(net, bad)


@pytest.mark.parametrize("risk", [0, -1.0, np.nan, np.inf])
def test_a_risk_that_is_not_positive_is_refused(risk):
    with pytest.raises(ValueError, match=r"^risk: expected a finite number > 0, got"):
        minimum(risk=risk)


@pytest.mark.parametrize("point", [np.nan, np.inf, [0.5, 0.5]])
def test_an_expansion_point_that_is_no_finite_number_is_refused(point):
    for sigma in (Tanh(), Softplus(), Sine()):
        with np.errstate(all="ignore"), pytest.raises(ValueError, match=r"expan|smooth minimum"):
            new_minimum(sigma, expansion_point=point)
