"""Points that are lower than theta: next to theta', and with a dead map revived."""

import numpy as np
import pytest
import torch_twin
from construction_problems import (
    SQUARED,
    linear_case,
    moved,
    network,
    over_losses,
    over_rules,
    over_seeds,
    random_embedding,
)
from shared import close, in_turn, random_pixels, refuses, twin_of

from tinyspur.certificates import certify_cell
from tinyspur.constructions.data_split import split_data
from tinyspur.constructions.embedding import linear_minimum
from tinyspur.constructions.equal_risk import equal_risk_point
from tinyspur.constructions.relays import outgoing
from tinyspur.constructions.witnesses import lower_point, perturbed_map, revive
from tinyspur.datasets.samples import TrainingSet
from tinyspur.engine.activations import ReLU
from tinyspur.engine.network import Network
from tinyspur.engine.parameters import Parameters
from tinyspur.errors import AssumptionError
from tinyspur.layers import Conv, Dense, Scale
from tinyspur.refutations.escapes import kink_escape

# The lower point


@in_turn(
    over_losses,
    over_rules,
    over_seeds,
    pytest.mark.parametrize("kind", ["linear", "nonlinear"]),
    draws=2,
)
def test_the_lower_point_is_strictly_lower(loss, rule, seed, kind):
    if kind == "linear":
        net = network((1, 4, 4), (2, 4, 4), 3)
        data = random_pixels(net, loss, 50, seed)
        theta, pair = linear_minimum(net, data, loss)
    else:
        theta, pair, data, _ = random_embedding(seed, loss)
        net = theta.net
    for output in (None, 0, 2):
        split = split_data(theta, pair, data, loss, rule, output=output)
        prime = equal_risk_point(theta, pair, split)
        lower = lower_point(theta, prime, pair, split, data, loss)
        risk = net.risk(theta, data, loss)
        assert lower.risk < risk
        assert lower.risk == net.risk(lower.theta, data, loss)
        close(lower.risk, torch_twin.risk(twin_of(lower.theta)(data.x), data.y, loss.name).item())
        assert lower.decrease == risk - lower.risk
        assert lower.decrease > 0
        assert lower.step * split.slope < 0
        assert abs(lower.step) < (split.gap[1] - split.gap[0]) / 2
        assert (lower.layer, lower.map) == (pair.lower, perturbed_map(theta, pair, split))
        expected = moved(prime, lower.layer, lower.map, lower.step)
        assert np.array_equal(lower.theta.vector, expected.vector)
        assert (lower.theta.vector != prime.vector).sum() == 1
        # No step of the same sign within the gap is better.
        for step in lower.step * np.array([0.1, 0.5, 0.9, 1.1, 2.0]):
            if abs(step) < 0.999 * (split.gap[1] - split.gap[0]) / 2:
                other = net.risk(moved(prime, lower.layer, lower.map, step), data, loss)
                assert other >= lower.risk - 1e-13 * risk


# Shorter witnesses


@over_losses
@pytest.mark.parametrize("layer", ["below", "lower", "upper"])
def test_reviving_a_dead_map_lowers_the_risk(loss, layer):
    net = network((1, 4, 4), (2, 4, 4), 3)
    data = random_pixels(net, loss, 60, seed=1)
    theta, pair = linear_minimum(net, data, loss)
    number, target = getattr(pair, layer), 1
    found = revive(theta, data, loss, number, target)
    risk = net.risk(theta, data, loss)
    assert found.risk < risk
    assert found.risk == net.risk(found.theta, data, loss)
    close(found.risk, torch_twin.risk(twin_of(found.theta)(data.x), data.y, loss.name).item())
    assert found.decrease == risk - found.risk
    assert found.distance == abs(found.theta.vector - theta.vector).max()
    close(found.length, np.linalg.norm(found.theta.vector - theta.vector))
    # With outgoing weights zero, the revived map changes nothing although it is active.
    silent = found.theta.copy()
    outgoing(silent, number, target)[0][...] = 0
    P = net.positions(number)
    active = net.patterns(silent, data.x)[number][:, target * P : (target + 1) * P]
    assert 0.2 < active.mean() < 0.8
    close(net.forward(silent, data.x), net.forward(theta, data.x))
    # Only the map itself and what reads it have moved.
    expected = found.theta.copy()
    expected.W[number].weights[target] = theta.W[number].weights[target]
    expected.b[number][target] = theta.b[number][target]
    outgoing(expected, number, target)[0][...] = outgoing(theta, number, target)[0]
    assert np.array_equal(expected.vector, theta.vector)


def test_theta_itself_is_above_what_a_revived_map_reaches_for_every_seed():
    theta, pair, data, _ = linear_case("three convolutions", SQUARED)
    risks = [revive(theta, data, SQUARED, pair.upper, 0, seed=s).risk for s in range(5)]
    assert max(risks) < theta.net.risk(theta, data, SQUARED)
    assert len(set(risks)) == 5
    again = revive(theta, data, SQUARED, pair.upper, 0, seed=4)
    assert again.risk == risks[4]


def test_only_dead_maps_are_revived():
    theta, pair, data, _ = linear_case("three convolutions", SQUARED)
    with refuses(AssumptionError, "map 2 of layer 3 is not dead: 70 samples activate it"):
        revive(theta, data, SQUARED, pair.upper, pair.relay_of(0))
    for layer, target in ((pair.upper, 4), (pair.upper, -1), (pair.dense, 0), (0, 0)):
        with refuses(ValueError, f"got {layer}, {target}"):
            revive(theta, data, SQUARED, layer, target)
    one = theta.copy()
    # A single pixel of a single sample activates the map.
    one.W[pair.below].weights[1, 0, 1, 1] = 1
    one.b[pair.below][1] = -np.sort(data.x.ravel())[-2:].mean()
    with refuses(AssumptionError, "is not dead: 1 samples activate it"):
        revive(one, data, SQUARED, pair.below, 1)


@in_turn(over_losses, over_seeds)
def test_the_literal_point_is_a_saddle(loss, seed):
    net = network((1, 4, 4), (2, 4, 4), 3)
    data = random_pixels(net, loss, 60, seed)
    literal, _ = linear_minimum(net, data, loss, "literal")
    gradient = torch_twin.gradients(twin_of(literal), data.x, data.y, loss.name)
    assert max(abs(values).max() for values in gradient.values()) < 1e-9
    curvatures = []
    for step in (1e-2, 1e-3):
        escape = kink_escape(literal, data, loss, step=step)
        assert escape.decrease > 0
        assert escape.step == step
        assert escape.distance <= step * 16
        assert net.risk(escape.theta, data, loss) == escape.risk
        curvatures.append(escape.decrease / step**2)
    assert curvatures[0] == pytest.approx(curvatures[1], rel=0.05)


@in_turn(over_losses, over_seeds)
def test_the_same_move_does_not_lower_the_risk_at_the_repaired_point(loss, seed):
    net = network((1, 4, 4), (2, 4, 4), 3)
    data = random_pixels(net, loss, 60, seed)
    literal, _ = linear_minimum(net, data, loss, "literal")
    theta, _ = linear_minimum(net, data, loss)
    radius = certify_cell(theta, data, loss).radius
    risk = net.risk(theta, data, loss)
    for step in (1e-2, 1e-3):
        escape = kink_escape(literal, data, loss, step=step)
        move = escape.theta.vector - literal.vector
        for sign in (1, -1):
            size = radius / max(radius, escape.distance)
            nearby = Parameters(net, theta.vector + sign * size * move)
            assert abs(nearby.vector - theta.vector).max() <= radius * (1 + 1e-12)
            assert net.risk(nearby, data, loss) >= risk * (1 - 1e-13)


def test_a_dead_neuron_of_a_hidden_dense_layer_is_revived():
    data = TrainingSet(np.random.default_rng(0).random((40, 1, 2, 3)), np.eye(2)[np.arange(40) % 2])
    net = Network((1, 2, 3), [Dense(4), Dense(3), Dense(2)])
    theta = net.zeros()
    theta.vector[:] = np.random.default_rng(1).random(net.size)
    theta.W[2].weights[1] = 0
    theta.b[2][1] = -1.0
    revived = revive(theta, data, SQUARED, 2, 1)
    assert revived.decrease > revived.rounding > 0
    assert abs(revived.theta.W[2].weights[1]).min() > 0


def test_there_is_no_kink_to_escape_from_at_the_repaired_theta():
    data = TrainingSet(np.random.default_rng(0).random((40, 1, 2, 3)), np.eye(2)[np.arange(40) % 2])
    net = Network((1, 2, 3), [Conv(1), Conv(3), Conv(3), Dense(2)])
    theta, _ = linear_minimum(net, data, SQUARED)
    with pytest.raises(AssumptionError, match="no escape from the kink"):
        kink_escape(theta, data, SQUARED)


@pytest.mark.parametrize("last", [Scale(), Scale(activation=ReLU()), Dense(3, activation=ReLU())])
def test_a_dead_map_below_a_scale_or_an_activation_of_the_outputs_is_revived(last):
    net = Network((1, 4), [Dense(3, activation=ReLU()), last])
    rng = np.random.default_rng(0)
    theta = Parameters(net, rng.uniform(0.5, 1.0, net.size))
    theta.b[1][0] = -100.0
    data = TrainingSet(rng.uniform(size=(20, 1, 4)), rng.uniform(2, 4, size=(20, 3)))
    found = revive(theta, data, SQUARED, 1, 0)
    close(found.decrease, net.risk(theta, data, SQUARED) - net.risk(found.theta, data, SQUARED))
    assert found.decrease > 0.01
