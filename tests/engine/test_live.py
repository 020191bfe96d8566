"""The point without dead maps: the same outputs, gradients and radii from a smaller network."""

import numpy as np
import pytest
import strict_device

import tinyspur as ts
from tinyspur.certificates import certify_cell
from tinyspur.certificates.rounding import risk_rounding, rounded_risk
from tinyspur.engine.activations import ReLU, Tanh
from tinyspur.engine.live import Live, live_part
from tinyspur.fitting.training import descend

LOSS = ts.SquaredLoss()
LAYERS = [ts.Conv(4), ts.AveragePool(2), ts.Conv(5), ts.MaxPool(2), ts.Dense(6), ts.Dense(2)]
DEAD = {1: [1, 3], 3: [0, 2], 5: [5]}


def point(layers=LAYERS, dead=DEAD, seed=0, activation=None):
    """Return a random point with dead maps, and data."""
    rng = np.random.default_rng(seed)
    net = ts.Network((2, 8, 8), layers, activation)
    theta = net.zeros()
    theta.vector[...] = rng.standard_normal(net.size) / 3
    for layer, maps in dead.items():
        theta.W[layer].weights[maps] = 0
        theta.b[layer][maps] = -rng.uniform(1, 2, len(maps))
    return theta, ts.TrainingSet(rng.random((30, 2, 8, 8)), rng.random((30, 2)))


def test_a_point_without_its_dead_maps_has_the_same_outputs_and_gradient():
    theta, data = point()
    live = live_part(theta)
    assert [shape[0] for shape in live.point.net.shapes] == [2, 2, 2, 3, 3, 5, 2]
    assert [kept.tolist() for kept in live.kept[1:4]] == [[0, 2], [0, 2], [1, 3, 4]]
    expected = theta.net.forward(theta, data.x)
    np.testing.assert_allclose(live.point.net.forward(live.point, data.x), expected, atol=1e-14)
    gradient = theta.net.gradient(theta, data, LOSS).vector.copy()
    small = live.point.net.gradient(live.point, data, LOSS)
    np.testing.assert_allclose(small.vector, gradient[live.places], atol=1e-15)
    gradient[live.places] = 0
    assert not gradient.any()


def test_another_point_of_the_smaller_network_is_put_in_its_places():
    theta, data = point()
    live = live_part(theta)
    assert live.widened(live.point) == theta
    other = live.widened(live.point * 1.5)
    assert other.b[1][1] == theta.b[1][1] and other.b[1][0] == 1.5 * theta.b[1][0]
    expected = (live.point * 1.5).net.forward(live.point * 1.5, data.x)
    np.testing.assert_allclose(other.net.forward(other, data.x), expected, atol=1e-13)


def test_the_idle_map_of_a_layer_is_the_one_that_is_activated_first():
    theta, _ = point()
    theta.b[1][[1, 3]] = -0.5, -0.25
    theta.W[3].weights[...], theta.b[3][...] = 0, -np.arange(1.0, 6.0)
    live = live_part(theta)
    assert live.kept[3].tolist() == [0]  # a layer keeps one
    assert live.idle == {1: -0.25, 3: -2.0, 5: theta.b[5][DEAD[5]].max()}
    assert not Live.all(theta).idle


@pytest.mark.parametrize(
    "layers",
    [
        [ts.Conv(4), ts.Conv(4, groups=2), ts.Dense(2)],
        [ts.Conv(4), ts.Residual([ts.Conv(4)]), ts.Dense(2)],
        [ts.Conv(4, activation=ReLU(0.5)), ts.Conv(4), ts.Dense(2)],
        [ts.Conv(4), ts.AveragePool(2, activation=Tanh()), ts.Dense(2)],
    ],
    ids=["groups", "residual", "leaky", "smooth"],
)
def test_a_point_is_kept_whole_where_dead_maps_may_matter(layers):
    theta, _ = point(layers, {1: [1, 3]})
    assert live_part(theta).point is theta


def test_maps_at_the_kink_and_numbers_that_are_not_finite_are_kept():
    theta, _ = point()
    theta.b[1][1] = 0.0
    assert live_part(theta).kept[1].tolist() == [0, 1, 2]
    theta.W[3].weights[1, 3, 0, 0] = np.nan  # which reads a dead map
    assert live_part(theta).point is theta


def test_the_risk_of_the_live_part_is_that_of_the_point_up_to_its_rounding():
    theta, data = point()
    risk, rounding = rounded_risk(theta, data, LOSS)
    assert rounding == risk_rounding(theta, data, LOSS)
    assert abs(risk - theta.net.risk(theta, data, LOSS)) <= 2 * rounding < 1e-13


def test_a_descent_leaves_dead_maps_as_they_are():
    theta, data = point()
    found, live = descend(theta, data, LOSS, 3), live_part(theta)
    moved = found.vector != theta.vector
    assert found.net.risk(found, data, LOSS) < theta.net.risk(theta, data, LOSS)
    assert moved[live.places].any() and moved.sum() == moved[live.places].sum()


@pytest.mark.parametrize(("layer", "maps"), [(1, [1, 3]), (3, [0, 2])])
def test_the_radius_counts_dead_maps_that_are_left_out(layer, maps, monkeypatch):
    theta, data = point()
    theta.b[layer][maps] = -1e-10, -1e-9  # these are activated first
    found = certify_cell(theta, data, LOSS)
    monkeypatch.setattr("tinyspur.certificates.cell.live_part", Live.all)
    whole = certify_cell(theta, data, LOSS)
    assert found.margin == 1e-10 > found.radius > 0
    assert found.radius == pytest.approx(whole.radius, rel=0.02)
    assert (found.margin, found.classes) == (whole.margin, whole.classes)


def test_a_device_leaves_out_the_same_maps():
    theta, _ = point()
    host, device = live_part(theta), live_part(theta.to(strict_device))
    assert all(map(np.array_equal, host.kept, device.kept))
    assert np.array_equal(device.point.vector.get(), host.point.vector)
    on_device, on_host = (live.widened(live.point * 2).vector for live in (device, host))
    assert np.array_equal(on_device.get(), on_host)


def test_outputs_of_the_last_layer_are_never_left_out():
    net = ts.Network((1, 2), [ts.Dense(2), ts.Dense(3, activation=ReLU())])
    theta = net.zeros()
    theta.W[1].weights[...], theta.b[1][...], theta.W[2].weights[0] = 1, 1, 1
    theta.b[2][...] = 1, -1, -2
    data = ts.TrainingSet([[1, 2], [2, 1]], [[1, 1, 0], [1, 0, 1]])
    assert live_part(theta).point == theta
    assert rounded_risk(theta, data, LOSS)[0] == net.risk(theta, data, LOSS)


def test_maps_that_poolings_hand_on_to_the_outputs_are_never_left_out():
    net = ts.Network((1, 6), [ts.Conv(4), ts.Conv(2), ts.AveragePool(2), ts.MaxPool(3)])
    theta = net.zeros()
    theta.W[1].weights[0], theta.W[2].weights[0, 0] = 1, 1
    theta.b[1][...], theta.b[2][...] = (1, -1, -2, -3), (1, -1)
    data = ts.TrainingSet(np.arange(12.0).reshape(2, 1, 6), [[1, 1], [1, 0]])
    assert [kept.tolist() for kept in live_part(theta).kept] == [[0], [0], [0, 1], [0, 1], [0, 1]]
    assert live_part(theta).idle == {1: -1.0}
    assert rounded_risk(theta, data, LOSS)[0] == net.risk(theta, data, LOSS) > 0


def test_below_a_dead_layer_every_dead_map_counts():
    """The second unit, once it is active, wakes the dead layer by its weight of 64."""
    net = ts.Network((1, 1), [ts.Dense(2), ts.Dense(1), ts.Dense(1)])
    theta = net.zeros()
    theta.b[1][...], theta.W[2].weights[0], theta.b[2][0] = (-0.25, -0.5), (0, 64), -1
    theta.W[3].weights[0] = theta.b[3][0] = 1
    data = ts.TrainingSet([[0], [1]], [0, 2])
    found, lower = certify_cell(theta, data, LOSS), theta.copy()
    lower.W[1].weights[1] += 0.265
    lower.b[1][1] += 0.265
    assert net.risk(lower, data, LOSS) < net.risk(theta, data, LOSS) - 0.1
    assert found.holds and 0.007 < found.radius < 0.265


@pytest.mark.parametrize("bias", [-5e-324, -1e-310])
def test_a_point_as_near_a_kink_as_numbers_can_be_has_radius_0(bias):
    net = ts.Network((1, 1), [ts.Dense(2), ts.Dense(1)])
    theta = net.zeros()
    theta.b[1][...], theta.b[2][0] = (bias, -1), 1
    assert certify_cell(theta, ts.TrainingSet([[0], [1]], [0, 2]), LOSS).radius == 0
