"""Lemma 11 as a fallback: data where S(eta) vanishes for every map, output and threshold."""

import numpy as np
import pytest
from shared import in_turn, twin_risk

from tinyspur import (
    AssumptionError,
    AveragePool,
    Conv,
    CrossEntropy,
    Dense,
    Network,
    SquaredLoss,
    TrainingSet,
    find_spurious_minimum,
    fit_affine,
    linear_minimum,
    one_hot,
)
from tinyspur.constructions.data_split import split_data
from tinyspur.constructions.perturbed_split import perturb_read_weights
from tinyspur.constructions.split_terms import map_values, output_derivatives

LOSS = SquaredLoss()
NETWORKS = {
    "top": [Conv(2), Conv(4), Conv(4), Dense(2)],
    "pooling and dense above": [Conv(2), Conv(4), Conv(16), AveragePool(2), Dense(3), Dense(2)],
}


def mirrored(loss=LOSS, seed=0):
    """Return images with their negatives and targets that are even: the best fit is constant."""
    rng = np.random.default_rng(seed)
    half = rng.integers(-4, 5, size=(60, 1, 4, 4)).astype(float)
    y = np.stack([(half**2).sum(axis=(1, 2, 3)), abs(half[:, 0, 1, 1])], axis=1)
    if loss.name == "cross-entropy":
        y = one_hot((y[:, 0] > np.median(y[:, 0])).astype(int), 2, 0.1)
    return TrainingSet(np.concatenate([half, -half]), np.concatenate([y, y]))


@pytest.mark.parametrize("loss", [LOSS, CrossEntropy()], ids=lambda loss: loss.name)
@pytest.mark.parametrize("name", NETWORKS)
def test_where_every_sum_vanishes_the_perturbed_point_still_leads_lower(name, loss):
    net, data = Network((1, 4, 4), NETWORKS[name]), mirrored(loss)
    assert abs(fit_affine(data.x.reshape(120, -1), data.y, loss).weights).max() < 1e-9
    theta, pair = linear_minimum(net, data, loss)
    found = find_spurious_minimum(theta, pair, data, loss)
    assert found.verdict == "spurious local minimum"
    before, prime, lower = (
        twin_risk(point, data, loss) for point in (theta, found.theta_prime, found.lower.theta)
    )
    assert prime > before  # (64) is true to first order only
    assert prime - before == pytest.approx(found.theta_prime_risk - found.risk, rel=1e-6)
    assert lower < before - 1e-9 * before
    assert before - lower == pytest.approx(found.lower.decrease, rel=1e-6)


@in_turn(
    pytest.mark.parametrize("rule", ["steepest", "largest"]),
    pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4]),
)
def test_weights_that_are_rounding_give_no_split_and_moved_ones_gain_at_any_scale(scale, rule):
    half = scale * np.random.default_rng(1).random((60, 1, 4, 4))
    y = one_hot(np.arange(60) % 2, 2)
    data = TrainingSet(np.concatenate([half, scale - half]), np.concatenate([y, y]))
    theta, pair = linear_minimum(Network((1, 4, 4), NETWORKS["top"]), data, LOSS)
    assert 0 < abs(theta.W[4].weights).max() * scale < 1e-13
    with pytest.raises(AssumptionError, match=r"S.eta. vanishes, up to rounding"):
        split_data(theta, pair, data, LOSS, rule)
    found = find_spurious_minimum(theta, pair, data, LOSS, rule=rule)
    assert found.verdict == "spurious local minimum"
    decrease = twin_risk(theta, data) - twin_risk(found.lower.theta, data)
    assert decrease == pytest.approx(found.lower.decrease, rel=1e-3)
    assert decrease > (1e-8 if rule == "steepest" else 5e-14)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_rise_is_of_second_order_and_the_slope_of_first(name):
    net, data = Network((1, 4, 4), NETWORKS[name]), mirrored()
    theta, pair = linear_minimum(net, data, LOSS)
    risk = twin_risk(theta, data)
    steps, rises, slopes = [], [], []
    for _, (start, split) in zip(
        range(4), perturb_read_weights(theta, pair, data, LOSS), strict=False
    ):
        steps.append(np.linalg.norm(start.vector - theta.vector))
        rises.append(twin_risk(start, data) - risk)
        slopes.append(abs(split.slope))
    steps, rises, slopes = map(np.array, (steps, rises, slopes))
    assert np.allclose(steps[:-1] / steps[1:], 2)
    assert np.allclose(rises / steps**2, rises[0] / steps[0] ** 2, rtol=1e-4)
    assert np.allclose(slopes / steps, slopes[-1] / steps[-1], rtol=0.05)
    assert rises[0] > 0


def test_sums_of_u_do_not_vanish_where_s_does():
    net, data = Network((1, 4, 4), NETWORKS["top"]), mirrored()
    theta, pair = linear_minimum(net, data, LOSS)
    u, v = output_derivatives(theta, data, LOSS), map_values(theta, pair, 0, data.x)
    sums = [abs((v > eta) @ u.T).max() for eta in (-2.5, -0.5, 1.5)]
    assert min(sums) > 1
    weights = theta.W[4].weights
    assert abs(weights).max() < 1e-12  # hence S = (1/N) sum_j w^j sums vanishes


def test_images_of_two_values_have_no_split_at_all():
    """There the sums of u vanish too, by the normal equations."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 2, size=(120, 1, 3, 3)).astype(float)
    x = np.unique(x, axis=0)
    data = TrainingSet(x, rng.normal(size=(len(x), 2)))
    theta, pair = linear_minimum(Network((1, 3, 3), NETWORKS["top"]), data, LOSS)
    with pytest.raises(AssumptionError, match=r"no data split: S.eta. and the sums of u vanish"):
        find_spurious_minimum(theta, pair, data, LOSS)
