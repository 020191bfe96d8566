"""The losses, their gradients and curvatures are those of PyTorch and of finite differences."""

import re

import mpmath
import numpy as np
import pytest
import torch

from tinyspur.certificates import certify
from tinyspur.datasets.samples import TrainingSet
from tinyspur.engine.backend import to_numpy
from tinyspur.engine.losses import (
    AbsoluteLoss,
    CrossEntropy,
    HuberLoss,
    SquaredLoss,
    loss_named,
    one_hot,
    softmax,
)
from tinyspur.engine.network import Network
from tinyspur.fitting.training import kaiming_start
from tinyspur.layers import Dense

HUBERS = [HuberLoss(), HuberLoss(0.25), HuberLoss(20)]
LOSSES = [SquaredLoss(), CrossEntropy(), AbsoluteLoss(), *HUBERS]
TARGETS = ["hard", "soft", "smoothed", "one class"]
SAMPLES = 7


def targets(kind, rng, classes=5):
    """Return columns (classes, SAMPLES), each a distribution."""
    labels = rng.integers(0, classes, SAMPLES)
    if kind == "hard":
        return one_hot(labels, classes).T
    if kind == "soft":
        return rng.dirichlet(np.ones(classes), SAMPLES).T
    if kind == "smoothed":
        return one_hot(labels, classes, smoothing=0.1).T
    return np.ones((1, SAMPLES))


def in_torch(loss, o, y):
    """Return the loss of each column, as PyTorch has it."""
    if loss.name == "squared":
        return 0.5 * torch.nn.functional.mse_loss(o.T, y.T, reduction="none").sum(1)
    if loss.name == "absolute":
        return torch.nn.functional.l1_loss(o.T, y.T, reduction="none").sum(1)
    if loss.name == "huber":
        return torch.nn.functional.huber_loss(o.T, y.T, reduction="none", delta=loss.delta).sum(1)
    return torch.nn.functional.cross_entropy(o.T, y.T, reduction="none")


@pytest.mark.parametrize("scale", [1.0, 1e2, 1e4])
@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_values_and_gradients_are_those_of_pytorch(loss, kind, scale, rng):
    y = targets(kind, rng)
    o = scale * rng.normal(size=y.shape)
    outputs = torch.tensor(o, requires_grad=True)
    values = in_torch(loss, outputs, torch.tensor(y))
    (gradient,) = torch.autograd.grad(values.sum(), outputs)
    assert loss.value(o, y).shape == (SAMPLES,)
    np.testing.assert_allclose(loss.value(o, y), values.detach(), rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(loss.gradient(o, y), gradient, rtol=1e-13, atol=1e-15)


def test_the_squared_loss_is_half_the_squared_distance():
    o, y = np.array([[1.0, 0.0], [2.0, 0.0]]), np.array([[4.0, 0.0], [6.0, 1.0]])
    assert SquaredLoss().value(o, y).tolist() == [12.5, 0.5]
    assert SquaredLoss().gradient(o, y).tolist() == [[-3, 0], [-4, -1]]


def test_the_absolute_loss_is_the_sum_of_the_distances():
    o, y = np.array([[1.0, 0.0], [2.0, 0.0]]), np.array([[4.0, 0.0], [6.0, 1.0]])
    assert AbsoluteLoss().value(o, y).tolist() == [7, 1]
    assert AbsoluteLoss().gradient(o, y).tolist() == [[-1, 0], [-1, -1]]


def test_the_huber_loss_is_half_a_square_up_to_delta_and_a_line_beyond():
    o, y = np.array([[1.0, 0.0], [2.0, 0.0]]), np.array([[4.0, 0.0], [6.0, 1.0]])
    loss = HuberLoss(2)
    assert loss.value(o, y).tolist() == [(2 * 3 - 2) + (2 * 4 - 2), 0.5]
    assert loss.gradient(o, y).tolist() == [[-2, 0], [-2, -1]]
    assert loss.curvature(o, y, np.full((2, 2), 7.0)).tolist() == [[0, 7], [0, 7]]


def test_the_huber_loss_lies_between_the_squared_and_the_absolute_one(rng):
    o, y = rng.normal(size=(2, 3, SAMPLES))
    wide, narrow = HuberLoss(100), HuberLoss(1e-6)
    np.testing.assert_allclose(wide.value(o, y), SquaredLoss().value(o, y), rtol=1e-14)
    np.testing.assert_allclose(wide.gradient(o, y), SquaredLoss().gradient(o, y), rtol=1e-14)
    distance = AbsoluteLoss().value(o, y)
    np.testing.assert_allclose(narrow.value(o, y) / 1e-6, distance - 3 * 0.5e-6, rtol=1e-12)
    assert (narrow.gradient(o, y) / 1e-6 == AbsoluteLoss().gradient(o, y)).all()


def test_the_cross_entropy_of_equal_outputs_is_the_logarithm_of_the_number_of_classes(rng):
    for kind in ("hard", "soft"):
        values = CrossEntropy().value(np.full((5, SAMPLES), 3.0), targets(kind, rng))
        np.testing.assert_allclose(values, np.log(5), rtol=1e-14)


@pytest.mark.parametrize("size", [1e4, 1e300])
@pytest.mark.filterwarnings("error")
def test_large_outputs_do_not_overflow(size):
    o = np.array([[size, -size, size], [-size, size, size]])
    y = np.array([[1.0, 1.0, 0.5], [0.0, 0.0, 0.5]])
    loss = CrossEntropy()
    np.testing.assert_allclose(loss.value(o, y), [0, 2 * size, np.log(2)], rtol=1e-15)
    assert loss.gradient(o, y).tolist() == [[0, -1, 0], [0, 1, 0]]
    expected = [[0, 0, 0.25], [0, 0, -0.25]]
    assert loss.curvature(o, y, np.array([[1.0], [0.0]]) + 0 * o).tolist() == expected


@pytest.mark.filterwarnings("error")
def test_far_outliers_do_not_overflow():
    o, y = np.array([[1e300, -1e300]]), np.zeros((1, 2))
    for loss, slope in ((AbsoluteLoss(), 1.0), (HuberLoss(3), 3.0)):
        np.testing.assert_allclose(loss.value(o, y), slope * 1e300, rtol=1e-15)
        assert loss.gradient(o, y).tolist() == [[slope, -slope]]
        assert loss.curvature(o, y, np.ones((1, 2))).tolist() == [[0, 0]]


def test_the_cross_entropy_ignores_a_shift_of_all_outputs(rng):
    y = targets("soft", rng)
    o, shift = rng.normal(size=y.shape), rng.normal(size=SAMPLES)
    loss = CrossEntropy()
    np.testing.assert_allclose(loss.value(o + shift, y), loss.value(o, y), rtol=1e-13)
    np.testing.assert_allclose(loss.gradient(o + shift, y), loss.gradient(o, y), atol=1e-14)
    flat = loss.curvature(o, y, np.ones_like(o))
    np.testing.assert_allclose(flat, 0, atol=1e-15)


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_the_gradient_is_the_slope_of_the_value(loss, kind, rng):
    y = targets(kind, rng)
    o, d = rng.normal(size=y.shape), rng.normal(size=y.shape)
    step = 1e-5
    slope = (loss.value(o + step * d, y) - loss.value(o - step * d, y)) / (2 * step)
    np.testing.assert_allclose((loss.gradient(o, y) * d).sum(axis=0), slope, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_the_curvature_is_the_change_of_the_gradient(loss, kind, rng):
    y = targets(kind, rng)
    o, d = rng.normal(size=y.shape), rng.normal(size=y.shape)
    step = 1e-5
    change = (loss.gradient(o + step * d, y) - loss.gradient(o - step * d, y)) / (2 * step)
    np.testing.assert_allclose(loss.curvature(o, y, d), change, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_the_curvature_is_pytorchs_hessian_times_the_direction(loss, kind, rng):
    y = targets(kind, rng)
    o, d = rng.normal(size=y.shape), rng.normal(size=y.shape)
    product = loss.curvature(o, y, d)
    for i in range(SAMPLES):
        target = torch.tensor(y[:, i : i + 1])

        def value(column, target=target):
            return in_torch(loss, column[:, None], target)[0]

        hessian = torch.autograd.functional.hessian(value, torch.tensor(o[:, i]))
        np.testing.assert_allclose(product[:, i], hessian.numpy() @ d[:, i], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_the_losses_are_convex(loss, kind, rng):
    for scale in (1e-3, 1.0, 30.0):
        y = targets(kind, rng)
        a, b = y + scale * rng.normal(size=(2, *y.shape))
        for t in rng.uniform(size=20):
            chord = t * loss.value(a, y) + (1 - t) * loss.value(b, y)
            assert (loss.value(t * a + (1 - t) * b, y) <= chord + 1e-14 * (1 + scale**2)).all()
        tangent = loss.value(a, y) + (loss.gradient(a, y) * (b - a)).sum(axis=0)
        assert (loss.value(b, y) >= tangent - 1e-14 * (1 + scale**2)).all()
        d = rng.normal(size=y.shape)
        bent = (d * loss.curvature(a, y, d)).sum(axis=0)
        assert (bent >= -1e-14).all()


def test_at_a_kink_the_subgradients_are_all_slopes_of_lines_below(rng):
    y = rng.normal(size=(3, SAMPLES))
    met = rng.integers(0, 2, size=y.shape).astype(bool)
    o = np.where(met, y, rng.normal(size=y.shape))
    loss = AbsoluteLoss()
    low, high = loss.subgradients(o, y, np.zeros_like(o))
    assert (low[met] == -1).all()
    assert (high[met] == 1).all()
    signs = np.sign(o - y)[~met]
    assert (low[~met] == signs).all()
    assert (high[~met] == signs).all()
    for t in rng.uniform(size=(20, *y.shape)):
        g, other = low + t * (high - low), o + rng.normal(size=y.shape)
        below = loss.value(o, y) + (g * (other - o)).sum(axis=0)
        assert (loss.value(other, y) >= below - 1e-13).all()


def test_a_target_is_met_within_the_errors_of_its_own_output():
    o, y = np.array([[1.5, 1.5, -1.0, 1.0]]), np.ones((1, 4))
    errors = np.array([[0.4, 0.5, 1.9, 0.0]])
    low, high = AbsoluteLoss().subgradients(o, y, errors)
    assert low.tolist() == [[1, -1, -1, -1]]
    assert high.tolist() == [[1, 1, -1, 1]]


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_the_curvature_is_a_new_array(loss, rng):
    y = targets("soft", rng)
    o, d = rng.normal(size=y.shape), rng.normal(size=y.shape)
    assert not np.shares_memory(loss.curvature(o, y, d), d)


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_single_precision_stays_single(loss, rng):
    y = targets("soft", rng).astype(np.float32)
    o = rng.normal(size=y.shape).astype(np.float32)
    results = [loss.value(o, y), loss.gradient(o, y), loss.curvature(o, y, o)]
    if isinstance(loss, AbsoluteLoss):
        results += loss.subgradients(o, y, abs(o))
    assert [result.dtype for result in results] == [np.float32] * len(results)


def test_a_numpy_number_as_delta_keeps_single_precision():
    o, loss = np.ones((1, 2), np.float32), HuberLoss(np.float64(0.5))
    results = (loss.value(o, 0 * o), loss.gradient(o, 0 * o), loss.curvature(o, 0 * o, o))
    assert [result.dtype for result in results] == [np.float32] * 3


@pytest.mark.parametrize("loss", [AbsoluteLoss(), *HUBERS], ids=repr)
def test_on_a_device_they_are_those_of_numpy(loss, device, rng):
    o, d, y = rng.normal(size=(3, 4, SAMPLES))
    o[0] = y[0]
    there = [device.asarray(v) for v in (o, y, d)]
    pairs = [
        (loss.value(*there[:2]), loss.value(o, y)),
        (loss.gradient(*there[:2]), loss.gradient(o, y)),
        (loss.curvature(*there), loss.curvature(o, y, d)),
    ]
    if isinstance(loss, AbsoluteLoss):
        errors = 0.5 * abs(d)
        bounds = loss.subgradients(*there[:2], device.asarray(errors))
        pairs += zip(bounds, loss.subgradients(o, y, errors), strict=True)
    for actual, expected in pairs:
        assert isinstance(actual, device.ndarray)
        assert actual.dtype == np.float64
        np.testing.assert_allclose(to_numpy(actual), expected, rtol=1e-14)
    loss.check_targets(there[1])


@pytest.mark.parametrize("scale", [1e-9, 1.0, 30.0, 700.0, 1e5])
def test_the_cross_entropy_has_the_value_and_the_gradient_of_many_digits(scale, rng):
    y = targets("smoothed", rng)
    o = scale * rng.normal(size=y.shape)
    with mpmath.workdps(60):
        exps = np.vectorize(mpmath.exp)(np.vectorize(mpmath.mpf, otypes=[object])(o))
        p = exps / exps.sum(axis=0)
        value = -(y * np.vectorize(mpmath.log)(p)).sum(axis=0)
        gradient = p - y
    np.testing.assert_allclose(CrossEntropy().value(o, y), value.astype(float), rtol=1e-15)
    np.testing.assert_allclose(softmax(o), p.astype(float), rtol=1e-13)
    found = CrossEntropy().gradient(o, y)
    np.testing.assert_allclose(found, gradient.astype(float), rtol=1e-13, atol=1e-16)


def test_the_softmax_is_pytorchs(rng):
    o = 10 * rng.normal(size=(4, SAMPLES))
    np.testing.assert_allclose(softmax(o), torch.softmax(torch.tensor(o), 0), rtol=1e-13)
    np.testing.assert_allclose(softmax(o).sum(axis=0), 1, rtol=1e-14)


# Targets


def test_one_hot_targets_mark_the_label():
    assert one_hot(np.array([2, 0]), 3).tolist() == [[0, 0, 1], [1, 0, 0]]
    assert one_hot(np.array([1], dtype=np.uint8), 2).dtype == np.float64
    assert one_hot(np.array([], dtype=int), 3).shape == (0, 3)


def test_smoothing_by_a_tenth_over_ten_classes_gives_091_and_001():
    y = one_hot(np.array([3]), 10, smoothing=0.1)[0]
    np.testing.assert_allclose(y[3], 0.91, rtol=1e-14)
    np.testing.assert_allclose(np.delete(y, 3), 0.01, rtol=1e-14)
    np.testing.assert_allclose(y.sum(), 1, rtol=1e-14)


def test_smoothed_targets_give_the_loss_of_pytorchs_label_smoothing(rng):
    labels, o = rng.integers(0, 5, SAMPLES), rng.normal(size=(5, SAMPLES))
    expected = torch.nn.functional.cross_entropy(
        torch.tensor(o.T), torch.tensor(labels), reduction="none", label_smoothing=0.3
    )
    values = CrossEntropy().value(o, one_hot(labels, 5, smoothing=0.3).T)
    np.testing.assert_allclose(values, expected, rtol=1e-13)


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, 2.0, np.nan])
def test_smoothing_outside_0_to_1_is_refused(smoothing):
    with pytest.raises(ValueError, match="smoothing"):
        one_hot(np.array([0]), 2, smoothing=smoothing)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([0, 3], "expected 0..2, got 0..3; number them by labels = np.unique("),
        ([-1, 0], "expected 0..2, got -1..0"),
        ([0.5, 1.0], "expected whole numbers (N,), got 0.5"),
        ([np.nan, 1.0], "expected whole numbers (N,), got nan"),
        ([[0, 1], [1, 0]], "expected whole numbers (N,), got (2, 2)"),
        (1, "expected whole numbers (N,), got ()"),
        (
            ["cat", "dog"],
            "expected plain real numbers, got <U3; number them by labels = np.unique(",
        ),
    ],
)
def test_labels_that_are_no_classes_are_refused(labels, words):
    for given in (labels, np.array(labels)):
        with pytest.raises(ValueError, match=f"^labels: {re.escape(words)}"):
            one_hot(given, 3)


@pytest.mark.parametrize(
    "labels",
    [
        [2, 0, 1, 0],
        np.array([[2], [0], [1], [0]], np.uint8),
        np.array([2.0, 0.0, 1.0, 0.0], np.float32),
        torch.tensor([2, 0, 1, 0]),
    ],
    ids=["list", "column", "floats", "tensor"],
)
def test_one_hot_finds_the_classes_of_labels_from_anywhere(labels):
    expected = torch.nn.functional.one_hot(torch.tensor([2, 0, 1, 0])).double().numpy()
    assert np.array_equal(one_hot(labels), expected)
    assert np.array_equal(one_hot(labels, np.int64(4))[:, :3], expected)


def test_truth_values_are_two_classes():
    assert one_hot(np.array([True, False])).tolist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (range(1, 11), "expected 0..9, got 1..10; give classes=11, or number them by"),
        ([3, 5], "expected 0..1, got 3..5; give classes=6, or number them by"),
        ([0, 2], "expected 0..1, got 0..2; give classes=3, or number them by"),
        ([-1, 1], "expected 0..1, got -1..1; number them by"),
    ],
)
def test_labels_with_gaps_need_the_number_of_classes_or_new_numbers(labels, words):
    labels = np.array(labels)
    with pytest.raises(ValueError, match=f"^labels: {re.escape(words)}"):
        one_hot(labels)
    again = np.unique(labels, return_inverse=True)[1]
    assert one_hot(again).shape == (len(labels), len(set(labels.tolist())))


@pytest.mark.parametrize("classes", [0, -1, 2.0, True, "3"])
def test_a_number_of_classes_that_is_none_is_refused(classes):
    with pytest.raises(ValueError, match=r"^classes: expected a whole number, 1 or more, got "):
        one_hot([0, 1], classes)
    with pytest.raises(ValueError, match=r"^classes: expected a whole number, 1 or more, got 0"):
        one_hot([])


@pytest.mark.parametrize("kind", TARGETS)
def test_distributions_are_targets_of_the_cross_entropy(kind, rng):
    CrossEntropy().check_targets(targets(kind, rng))
    CrossEntropy().check_targets(targets(kind, rng).astype(np.float32))


@pytest.mark.parametrize("wrong", [[0.5, 0.4], [1.5, -0.5], [0.0, 0.0], [1.0, 1.0]])
def test_other_targets_of_the_cross_entropy_are_refused_and_the_first_is_named(wrong):
    y = np.array([[1.0, 0.0], [0.5, 0.5], wrong, [2.0, 2.0]]).T
    with pytest.raises(ValueError, match=r"sample 2 has \["):
        CrossEntropy().check_targets(y)


def test_one_output_of_two_classes_gets_advice_that_holds():
    labels = np.array([0, 1, 1])
    with pytest.raises(ValueError, match=r"; two classes are two outputs, .* one_hot\(labels\)$"):
        CrossEntropy().check_targets(labels[None].astype(float))
    CrossEntropy().check_targets(one_hot(labels, 2).T)


@pytest.mark.parametrize("loss", [SquaredLoss(), AbsoluteLoss(), HuberLoss()], ids=repr)
def test_the_losses_of_regression_take_every_target(loss):
    loss.check_targets(np.array([[-3.0, 1e9]]))


@pytest.mark.parametrize("delta", [0, -1.0, np.nan, np.inf])
def test_a_huber_loss_needs_a_positive_finite_delta(delta):
    with pytest.raises(ValueError, match=re.escape(f"expected a finite delta > 0, got {delta}")):
        HuberLoss(delta)


# Names


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_losses_have_names(loss):
    assert type(loss_named(loss.name)) is type(loss)
    assert repr(loss).startswith(f"{type(loss).__name__}(")


def test_losses_say_what_they_are():
    names = ("squared", "cross-entropy", "absolute", "huber")
    shown = ["SquaredLoss()", "CrossEntropy()", "AbsoluteLoss()", "HuberLoss(1)"]
    assert [repr(loss_named(name)) for name in names] == shown
    assert repr(HuberLoss(0.25)) == "HuberLoss(0.25)"


@pytest.mark.parametrize("name", ["hinge", "Squared", ""])
def test_other_names_are_refused(name):
    with pytest.raises(ValueError, match=f"squared.*absolute, huber, got '{name}'"):
        loss_named(name)


SHAPES = {  # what a user's loss returns for two outputs and five samples, and the words
    "a mean": (lambda r: (r**2).mean(), "value(o, y) to return an array (5,), got a float64"),
    "a sum of samples": (lambda r: (r**2).sum(axis=1), "an array (5,), got (2,)"),
    "a list": (lambda r: (r**2).sum(axis=0).tolist(), "an array (5,), got a list"),
}


class Users(SquaredLoss):
    """The squared loss, of a user's: `made`(o - y) takes the place of one of its functions."""

    def __init__(self, name, made):
        setattr(self, name, lambda o, y: made(o - y))


@pytest.mark.parametrize("name", SHAPES)
def test_a_loss_that_returns_another_shape_is_refused_in_words(name):
    made, words = SHAPES[name]
    net = Network((1, 3), [Dense(4), Dense(2)])
    data = TrainingSet(np.ones((5, 3)), np.ones((5, 2)))
    loss, theta = Users("value", made), kaiming_start(net)
    for function in (net.risk, net.risk_and_gradient, certify):
        with pytest.raises(ValueError, match=f"^loss: expected .*{re.escape(words)}$"):
            function(theta, data, loss)
    loss, words = Users("gradient", lambda r: r.sum(axis=0)), r"an array \(2, 5\), got \(5,\)$"
    for function in (net.gradient, certify):
        with pytest.raises(
            ValueError, match=r"^loss: expected gradient\(o, y\) to return " + words
        ):
            function(theta, data, loss)
