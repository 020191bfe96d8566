"""Numbers near the ends of floating point: a certificate or a sentence, and no warning."""

import re
import warnings

import numpy as np
import pytest
from command_line import called

import tinyspur as ts
from tinyspur.refutations.evidence import hessian

LOSS = ts.SquaredLoss()
TOO_LARGE = "derivatives are too large for floating-point numbers"
X = np.array([[1.0, 0.5], [-2.0, 1.0], [0.5, -1.5], [3.0, 2.0], [-1.0, -1.0]])
Y = np.array([1.0, -1.0, 2.0, 0.5, 0.0])
SIZES = (1e-320, 1e-300, 1e-200, 1e-150, 1e150, 1e200, 1e300)
SCALES = [{name: size} for name in ("inputs", "first", "last", "targets") for size in SIZES]
SCALES += [{"first": size, "last": 1 / size} for size in (1e-200, 1e150, 1e200)]
RELU, TANH = ts.ReLU(), ts.Tanh()


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def problem(sigma, inputs=1.0, first=1.0, last=1.0, targets=1.0):
    """Return theta and data, with numbers that are so many times as large."""
    net = ts.Network((1, 2), [ts.Dense(3), ts.Dense(1)], sigma)
    theta = ts.Parameters(net, np.random.default_rng(0).normal(size=net.size))
    theta.W[1].weights[...] *= first
    theta.b[1][...] *= first
    theta.W[2].weights[...] *= last
    return theta, ts.TrainingSet(inputs * X, targets * Y)


def words(call, *arguments):
    with pytest.raises(ValueError) as caught:
        call(*arguments)
    return str(caught.value)


SEARCHES = {
    "certify": ts.certify,
    "certify_strict": ts.certify_strict,
    "certify_relays": lambda *given: ts.certify_relays(*given, 1),
    "find_escape": lambda *given: ts.find_escape(*given, 0.1, 2, 5),
    "find_descent_direction": ts.find_descent_direction,
    "gather_evidence": ts.gather_evidence,
    "Lanczos": lambda *given: ts.gather_evidence(*given, dense_up_to=0, lanczos_products=5),
    "settle": lambda *given: ts.settle(*given, 2),
}
OURS = r"(certificate|evidence|escape|descent direction|descent|settle|relay certificate): "


@pytest.mark.parametrize("name", SEARCHES)
@pytest.mark.parametrize("sigma", [RELU, TANH], ids=str)
def test_any_scale_ends_in_a_result_or_in_one_sentence_of_ours(sigma, name):
    for scales in SCALES:
        theta, data = problem(sigma, **scales)
        try:
            str(SEARCHES[name](theta, data, LOSS))
        except ValueError as error:
            first, *others = str(error).split("\n")
            assert not others
            assert first == TOO_LARGE or re.match(OURS, first), scales


@pytest.mark.parametrize("sigma", [RELU, TANH], ids=str)
def test_a_hessian_that_overflows_is_said_to(sigma):
    large, small = ("first", "last") if sigma == RELU else ("inputs", "first")
    theta, data = problem(sigma, **{large: 1e200, small: 1e-200})
    with np.errstate(all="ignore"):
        assert np.isfinite(theta.net.risk(theta, data, LOSS))
        assert not np.isfinite(hessian(theta, data, LOSS)).all()
    for name in ("gather_evidence", "Lanczos"):
        assert words(SEARCHES[name], theta, data, LOSS) == f"evidence: {TOO_LARGE}"
    assert words(SEARCHES["settle"], theta, data, LOSS).endswith(TOO_LARGE)
    assert TOO_LARGE in str(ts.certify_strict(theta, data, LOSS, ()))


def test_a_risk_that_is_infinite_has_no_escape():
    theta, data = problem(RELU, targets=1e200)
    said = "escape: expected a finite risk at theta, got NaN or infinity"
    assert words(SEARCHES["find_escape"], theta, data, LOSS) == said


def test_the_command_goes_on_without_evidence(tmp_path, capsys):
    theta, data = problem(RELU, first=1e200, last=1e-200)  # the gradient is about 0:
    data = ts.TrainingSet(data.x, theta.net.forward(theta, data.x))
    ts.save_point(tmp_path / "theta.npz", theta)
    np.savez(tmp_path / "data.npz", x=data.x, y=data.y)
    options = "certify", tmp_path / "theta.npz", "--data", tmp_path / "data.npz"
    done = called(capsys, None, *options)
    assert f"no evidence: {TOO_LARGE}" in done.lines
    assert done.lines[-1].startswith("verdict: ")
    assert "error" not in done.errors


# Constructions

LINE = np.linspace(-1, 1, 12)[:, None]


@pytest.mark.parametrize("loss", [LOSS, ts.AbsoluteLoss(), ts.HuberLoss()], ids=repr)
@pytest.mark.parametrize("size", [1e-320, 1e-305, 1e-250, 1e-160])
def test_a_fit_to_small_features_is_that_to_large_ones_or_refused(loss, size):
    expected = ts.fit_affine(LINE, LINE**2 + LINE, loss)
    if size < 1e-305:
        said = words(ts.fit_affine, size * LINE, LINE**2 + LINE, loss)
        assert said.startswith("fit: expected features so large that weights are finite, got ")
    else:
        found = ts.fit_affine(size * LINE, LINE**2 + LINE, loss)
        assert found.risk == pytest.approx(expected.risk, rel=1e-9)
        assert found.weights * size == pytest.approx(expected.weights, rel=1e-9)
        assert found.rank == expected.rank == 2


@pytest.mark.parametrize("size", [1e-320, 1e-307, 1e-200])
def test_points_are_finite_or_refused(size):
    data = ts.TrainingSet(size * LINE, LINE**2)
    net = ts.Network((1, 1), [ts.Dense(9), ts.Dense(1)])
    groups = ts.Groups.at(data.x, [1.0], [size * 1e-3])
    for build in (
        lambda: ts.gated_minimum(net, data, LOSS, groups),
        lambda: ts.spurious_pair(net, data, LOSS).fine,
    ):
        try:
            assert np.isfinite(build().vector).all()
        except ValueError:
            assert size < 1e-200


def test_targets_whose_squares_underflow_have_no_split():
    rng, layers = np.random.default_rng(1), [ts.Conv(4), ts.Conv(4), ts.Dense(1)]
    x, y = rng.uniform(size=(12, 1, 2, 2)), rng.normal(size=12)
    data = ts.TrainingSet(x, 1e-250 * y)
    theta, pair = ts.linear_minimum(ts.Network((1, 2, 2), layers), data, LOSS)
    said = words(ts.find_spurious_minimum, theta, pair, data, LOSS)
    assert said.startswith("no data split: ")


def test_a_lattice_of_outputs_that_biases_swallow_is_refused():
    x, y = np.random.default_rng(3).uniform(size=(8, 1, 4)), np.random.default_rng(4).normal(size=8)
    groups = ts.Groups.equal(ts.patch_sums([2], x), np.array([1.0, 0.5]), 2)

    def built(size):
        data = ts.TrainingSet(x, size * y)
        found = ts.convolutional_lattice([2], data, LOSS, groups)
        return found.theta.net.risk(found.theta, data, LOSS) / size**2

    assert built(1e-6) == pytest.approx(built(1.0), rel=1e-6)
    assert re.match(
        r"convolutional lattice: outputs of up to .*e-20 are off by", words(built, 1e-20)
    )


def test_a_map_whose_derivatives_overflow_is_not_revived():
    theta, data = problem(RELU, inputs=1e200, targets=1e150)
    theta.W[1].weights[0], theta.b[1][0] = 0, -1.0
    assert words(ts.revive, theta, data, LOSS, 1, 0) == f"revive: {TOO_LARGE}"


def test_a_map_that_overflows_though_the_outputs_do_not_is_certified_or_not_decided():
    theta = ts.Parameters(ts.Network((1, 2), [ts.Dense(1), ts.Dense(1)]), [1e200, 0, 1, 1e200, 0])
    x = np.array([[1e-300, 1.0], [2e-300, 1.0], [3e-300, 1.0], [3e-300, 2.0]])
    y = theta.net.forward(theta, x) + np.array([[0.0], [0.0], [0.0], [1e200]])
    found = ts.certify_cell(theta, ts.TrainingSet(x, y), ts.AbsoluteLoss())
    assert not found.holds
