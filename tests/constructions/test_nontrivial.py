"""The nontrivial minimum: isolated samples with patterns of their own."""

import numpy as np
import pytest
from shared import in_turn, outputs_of, random_set, twin_of
from torch_twin import gradients

from tinyspur import (
    AssumptionError,
    AveragePool,
    Conv,
    CrossEntropy,
    Dense,
    Network,
    SquaredLoss,
    TrainingSet,
    certify_cell,
    datasets,
    embed,
    find_spurious_minimum,
    fit_affine,
    one_hot,
    subnetwork,
)
from tinyspur.constructions.nontrivial import nontrivial_minimum

LOSS = SquaredLoss()


def small_net(shape=(1, 5, 5), maps=(2,), classes=3):
    return Network(shape, [*map(Conv, maps), Dense(classes)])


@in_turn(
    pytest.mark.parametrize("isolated", [1, 2, 5]),
    pytest.mark.parametrize("maps", [(2,), (3, 4), (4, 4, 4)]),
    pytest.mark.parametrize("shape", [(1, 5, 5), (2, 3, 4), (1, 12)]),
    draws=3,
)
def test_it_is_certified_with_one_class_for_each_isolated_sample_and_one_for_the_rest(
    shape, maps, isolated
):
    data = random_set(shape, 120, 3)
    net = small_net(shape, [m + shape[0] - 1 for m in maps])
    theta = nontrivial_minimum(net, data, LOSS, isolated)
    certificate = certify_cell(theta, data, LOSS)
    assert certificate.holds
    assert certificate.classes == isolated + 1
    fired = net.patterns(theta, data.x)[1][:, : net.positions(1)]
    assert fired.sum() == isolated
    assert set(fired.sum(axis=0)) == set(fired.sum(axis=1)) == {0, 1}


def test_isolated_samples_are_exact_and_the_others_have_their_own_best_fit():
    data, isolated = random_set((1, 5, 5), 120, 3), 3
    net = small_net()
    theta = nontrivial_minimum(net, data, LOSS, isolated)
    alone = net.patterns(theta, data.x)[1][:, : net.positions(1)].any(axis=1)
    outputs = net.forward(theta, data.x)
    assert abs(outputs[alone] - data.y[alone]).max() < 1e-12
    others = data.x[~alone].reshape(-1, 25), data.y[~alone]
    fit = fit_affine(*others, LOSS)
    assert abs(outputs[~alone] - (others[0] @ fit.weights.T + fit.bias)).max() < 1e-12
    share = (~alone).mean()
    assert net.risk(theta, data, LOSS) == pytest.approx(share * fit.risk, rel=1e-12)


def test_it_is_lower_than_the_linear_minimum_on_images():
    images = datasets.bundled().subset(500, seed=0)
    pixels = images.pixels().reshape(500, 1, 14, 2, 14, 2).mean(axis=(3, 5))
    data = TrainingSet(pixels, one_hot(images.labels, images.classes))
    net = small_net((1, 14, 14), (3,), 10)
    theta = nontrivial_minimum(net, data, LOSS)
    assert certify_cell(theta, data, LOSS).holds
    linear = fit_affine(data.x.reshape(500, -1), data.y, LOSS).risk
    assert net.risk(theta, data, LOSS) < linear


def test_ties_of_the_pixels_are_broken_by_a_seeded_random_filter():
    data = random_set((1, 5, 5), 120, 3)
    saturated = TrainingSet(np.minimum(data.x, 0.5), data.y)
    net = small_net()
    theta = nontrivial_minimum(net, saturated, LOSS, seed=3)
    again = nontrivial_minimum(net, saturated, LOSS, seed=3)
    other = nontrivial_minimum(net, saturated, LOSS, seed=4)
    assert (theta.vector == again.vector).all()
    assert (theta.W[1].weights[0] != other.W[1].weights[0]).any()
    assert np.count_nonzero(theta.W[1].weights[0]) == 9
    assert certify_cell(theta, saturated, LOSS).holds


@pytest.mark.parametrize("isolated", [1, 3])
def test_a_sample_that_occurs_once_is_isolated_rather_than_a_repeated_one(isolated):
    data = random_set((1, 5, 5), 120, 3)
    brightest = np.argsort(-data.x.max(axis=(1, 2, 3)))
    drawn = np.concatenate([np.arange(120), brightest[:60]])
    data, net = TrainingSet(data.x[drawn], data.y[drawn]), small_net()
    theta = nontrivial_minimum(net, data, LOSS, isolated)
    certificate = certify_cell(theta, data, LOSS)
    assert certificate.holds
    assert certificate.classes == isolated + 1
    fired = net.patterns(theta, data.x)[1][:, :25].any(axis=1)
    assert fired.sum() == isolated
    assert not np.isin(drawn[fired], brightest[:60]).any()


@pytest.mark.parametrize("isolated", [1, 2])
@pytest.mark.parametrize("pooled", [False, True])
def test_where_every_sample_is_repeated_equal_ones_are_isolated_with_the_mean_of_their_targets(
    isolated, pooled
):
    once = random_set((1, 4, 4), 60, 3)
    x, y = np.tile(once.x, (3, 1, 1, 1)), np.concatenate([once.y, once.y[::-1], once.y])
    if pooled:  # what the pooling makes of an image is equal up to rounding
        x = np.repeat(np.repeat(x, 2, axis=2), 2, axis=3)
        x[60:] += np.tile(np.array([[0.25, -0.25], [-0.25, 0.25]]), (4, 4))
    data = TrainingSet(x, y)
    net = Network(x.shape[1:], [*[AveragePool(2)] * pooled, Conv(2), Dense(3)])
    theta = nontrivial_minimum(net, data, LOSS, isolated)
    certificate = certify_cell(theta, data, LOSS)
    assert certificate.proves == ("P2" if pooled else "P1")
    assert certificate.classes == isolated + 1
    fired = net.patterns(theta, x)[1 + pooled][:, :16].any(axis=1)
    assert fired.reshape(3, 60).all(axis=0).sum() == isolated == fired.sum() / 3
    means = y.reshape(3, 60, 3).mean(axis=0)[np.flatnonzero(fired) % 60]
    assert abs(outputs_of(theta, x)[fired] - means).max() < 1e-9


def test_where_all_is_fitted_exactly_there_is_no_nontrivial_minimum():
    data = random_set((1, 5, 5), 20, 3)
    for repeats in (1, 4):
        same = TrainingSet(np.tile(data.x, (repeats, 1, 1, 1)), np.tile(data.y, (repeats, 1)))
        with pytest.raises(AssumptionError, match=r"R\(theta\) > 0 fails.* more than 26 samples"):
            nontrivial_minimum(small_net(), same, LOSS)
    alike = TrainingSet(np.tile(data.x[:1], (5, 1, 1, 1)), data.y[:5])
    with pytest.raises(AssumptionError, match="two samples that differ, or more, got 1"):
        nontrivial_minimum(small_net(), alike, LOSS)


WITH_POOLING = {
    "above": ((1, 4, 4), [Conv(5), AveragePool(2), Dense(3)]),
    "between": ((1, 4, 4), [Conv(2), Conv(5), AveragePool(2), Conv(5), Dense(3)]),
    "below": ((2, 8, 8), [AveragePool(2), Conv(9), AveragePool(2), Conv(9), Dense(4), Dense(3)]),
    "twice": ((1, 8, 8), [Conv(2), Conv(5), AveragePool(2), Conv(17), AveragePool(2), Dense(3)]),
    "1-D": ((1, 12), [Conv(4, 5), AveragePool(3), Dense(4), Dense(3)]),
}


@pytest.mark.parametrize("isolated", [1, 3])
@pytest.mark.parametrize("name", WITH_POOLING)
def test_with_average_pooling_it_is_certified_and_fits_the_others_in_every_pixel(name, isolated):
    shape, layers = WITH_POOLING[name]
    net, data = Network(shape, layers), random_set(shape, 180, 3)
    theta = nontrivial_minimum(net, data, LOSS, isolated)
    certificate = certify_cell(theta, data, LOSS)
    assert certificate.holds
    assert certificate.classes == isolated + 1
    outputs = outputs_of(theta, data.x)
    exact = abs(outputs - data.y).max(axis=1) < 1e-9
    assert exact.sum() == isolated
    x = data.x
    if name == "below":  # the first pooling is no layer of the network: its means are the input
        x = x.reshape(180, 2, 4, 2, 4, 2).mean(axis=(3, 5))
    x = np.hstack([x.reshape(180, -1), np.ones((180, 1))])
    fit = np.linalg.lstsq(x[~exact], data.y[~exact])[0]
    assert abs(outputs[~exact] - x[~exact] @ fit).max() < 1e-9


@pytest.mark.parametrize(
    ("layers", "named"),
    [
        ([Conv(4), AveragePool(2), Dense(3)], "layer 1 has 4, expected at least 5"),
        (
            [Conv(2), Conv(5), AveragePool(2), Conv(4), Dense(3)],
            "layer 4 has 4, expected at least 5",
        ),
        ([Conv(5), AveragePool(2), Conv(16), AveragePool(2), Dense(3)], "layer 3 has 16, expected"),
    ],
)
def test_missing_copies_are_named(layers, named):
    with pytest.raises(AssumptionError, match=f"too few maps: {named}"):
        nontrivial_minimum(Network((1, 4, 4), layers), random_set((1, 4, 4), 180, 3), LOSS)


# As printed


def test_the_printed_point_fires_elsewhere_too_and_is_not_stationary():
    """E7: other positions of map 1 fire, for other samples, and their weights want to move."""
    data = random_set((1, 4, 4), 60, 3)
    net = small_net((1, 4, 4), (3, 3))
    theta = nontrivial_minimum(net, data, LOSS, variant="literal")
    arrays = theta.arrays()
    pixel = np.unravel_index(abs(arrays["W3"][0, :16]).argmax(), (4, 4))
    assert np.count_nonzero(arrays["W3"][:, :16].any(axis=0)) == 1
    assert (data.x[(slice(None), 0, *pixel)] + arrays["b1"][0] > 0).sum() == 1
    fired = net.patterns(theta, data.x)[1][:, :16]
    assert fired.any(axis=1).sum() > 1
    gradient = gradients(twin_of(theta), data.x, data.y, "squared")
    others = np.delete(gradient["W3"][:, :16], np.ravel_multi_index(pixel, (4, 4)), axis=1)
    assert abs(others).max() > 1e-3
    assert not certify_cell(theta, data, LOSS).holds


def test_with_two_samples_the_printed_weights_leave_the_other_fit_at_first_order():
    """E8: lambda is optimal, and nothing else fires, and yet the dense layer is not stationary."""
    data = random_set((1, 4, 4), 60, 3)
    x = np.minimum(data.x, 1.5)
    x[:2, 0, 1, 2] = 2.0, 2.3
    data = TrainingSet(x, data.y)
    net = small_net((1, 4, 4), (2, 2))
    theta = nontrivial_minimum(net, data, LOSS, 2, variant="literal")
    fired = net.patterns(theta, data.x)[2][:, :16]
    assert np.argwhere(fired).tolist() == [[0, 6], [1, 6]]
    gradient = gradients(twin_of(theta), data.x, data.y, "squared")
    assert abs(gradient["W3"][:, :16]).max() < 1e-12  # lambda minimises the loss of the two, (16)
    assert abs(gradient["W3"][:, 16:]).max() > 1e-3
    assert not certify_cell(theta, data, LOSS).holds


def test_what_the_paper_does_not_print_is_refused():
    net = Network((1, 4, 4), [Conv(5), AveragePool(2), Dense(3)])
    with pytest.raises(ValueError, match="prints no formulas with pooling"):
        nontrivial_minimum(net, random_set((1, 4, 4), 120, 3), LOSS, variant="literal")
    with pytest.raises(ValueError, match="variant: expected one of"):
        nontrivial_minimum(net, random_set((1, 4, 4), 120, 3), LOSS, variant="printed")
    flat = TrainingSet(np.ones((20, 1, 4, 4)), np.zeros((20, 3)))
    with pytest.raises(AssumptionError, match="no pixel sets 1 samples apart"):
        nontrivial_minimum(small_net((1, 4, 4)), flat, LOSS, variant="literal")


@pytest.mark.parametrize("isolated", [1, 3])
def test_it_serves_as_the_subnetwork_of_a_spurious_minimum(isolated):
    data = random_set((1, 4, 4), 120, 3)
    net = Network((1, 4, 4), [Conv(3), Conv(5), Conv(5), Dense(3)])
    phi = nontrivial_minimum(subnetwork(net), data, LOSS, isolated)
    theta, pair = embed(net, phi, data.x)
    found = find_spurious_minimum(theta, pair, data, LOSS)
    assert found.verdict == "spurious local minimum"
    assert found.certificate.classes == isolated + 1
    assert found.theta_prime_risk == pytest.approx(found.risk, rel=1e-12)


@pytest.mark.parametrize(
    ("net", "loss", "isolated", "error", "cause"),
    [
        (small_net(), CrossEntropy(), 1, AssumptionError, "cross-entropy"),
        (small_net(maps=(1,)), LOSS, 1, AssumptionError, "too few maps: layer 1 has 1"),
        (small_net(), LOSS, 0, ValueError, "expected a whole number in 1..119, got 0"),
        (small_net(), LOSS, 30, AssumptionError, "different positions"),
        (
            Network((1, 5, 5), [Conv(2), AveragePool(5), Dense(3)]),
            LOSS,
            1,
            AssumptionError,
            "filters too small: layer 1 has filters of size 3, expected at least 5",
        ),
        (
            Network((1, 5, 5), [AveragePool(5), Dense(3)]),
            LOSS,
            1,
            ValueError,
            "expected a convolution and ReLU",
        ),
    ],
)
def test_what_cannot_be_built_is_refused_with_the_reason(net, loss, isolated, error, cause):
    data = random_set((1, 5, 5), 120, 3)
    if isinstance(loss, CrossEntropy):
        data = TrainingSet(data.x, np.full((120, 3), 1 / 3))
    with pytest.raises(error, match=cause) as caught:
        nontrivial_minimum(net, data, loss, isolated)
    assert "\n" not in str(caught.value)
