"""What a network inherits from its subnetwork where the layers above only relay."""

import json
from fractions import Fraction

import numpy as np
import pytest
import strict_device
from shared import in_turn, random_set

from tinyspur import (
    AveragePool,
    Conv,
    CrossEntropy,
    Dense,
    Network,
    Parameters,
    SquaredLoss,
    TrainingSet,
    certify_cell,
    certify_relays,
    embed,
    find_spurious_minimum,
    linear_minimum,
    nontrivial_minimum,
    one_hot,
    subnetwork,
)
from tinyspur.layers import MaxPool, Residual, Scale

LOSS = SquaredLoss()
TOP = [Conv(3), Conv(5), Conv(6), Dense(3)]
POOLED = [Conv(2), Conv(4), Conv(16), AveragePool(2), Conv(16), Dense(5), Dense(3)]


def nonlinear(layers=TOP, seed=0, variant="repaired"):
    """Return theta on a random subnetwork, its pair, the data and the subnetwork's point."""
    net, data = Network((1, 4, 4), layers), random_set((1, 4, 4), 90, 3, seed=seed)
    phi = subnetwork(net, variant=variant).zeros()
    phi.vector[:] = np.random.default_rng(seed + 1).normal(size=phi.vector.size)
    theta, pair = embed(net, phi, data.x, variant)
    return theta, pair, data, phi


@pytest.mark.parametrize("layers", [TOP, POOLED])
@pytest.mark.parametrize("loss", [LOSS, CrossEntropy()], ids=lambda loss: loss.name)
def test_a_certified_subnetwork_is_a_proof_for_the_whole(layers, loss):
    data = random_set((1, 4, 4), 90, 3)
    if loss.name == "cross-entropy":
        labels = np.random.default_rng(1).integers(0, 3, len(data))
        data = TrainingSet(data.x, one_hot(labels, 3, 0.2))
    theta, pair = linear_minimum(Network((1, 4, 4), layers), data, loss)
    found = certify_relays(theta, data, loss, pair.lower)
    assert found.holds
    assert found.structure
    assert not found.evidence_only
    assert found.evidence is None
    assert found.radius == certify_cell(theta, data, loss).radius > 0
    assert found.point.net.risk(found.point, data, loss) == pytest.approx(
        theta.net.risk(theta, data, loss), rel=1e-12
    )
    assert "holds, a local minimum" in str(found)


def test_active_and_dead_units_are_counted():
    data = random_set((1, 4, 4), 90, 3)
    theta, pair = linear_minimum(Network((1, 4, 4), TOP), data, LOSS)
    found = certify_relays(theta, data, LOSS, pair.lower)
    assert (found.active, found.dead, found.mixed) == (2 * 16, (4 + 5) * 16, 0)
    assert found.margin == pytest.approx(1.0)
    assert found.unread == ()


@pytest.mark.parametrize("isolated", [1, 2])
def test_a_nontrivial_subnetwork_is_a_proof_too(isolated):
    net, data = Network((1, 4, 4), TOP), random_set((1, 4, 4), 90, 3)
    phi = nontrivial_minimum(subnetwork(net), data, LOSS, isolated)
    theta, pair = embed(net, phi, data.x)
    found = certify_relays(theta, data, LOSS, pair.lower)
    assert found.holds
    assert found.classes == isolated + 1


@in_turn(
    pytest.mark.parametrize("layers", [TOP, POOLED]), pytest.mark.parametrize("seed", range(2))
)
def test_without_a_certified_subnetwork_there_is_evidence_only(layers, seed):
    theta, pair, data, phi = nonlinear(layers, seed)
    found = certify_relays(theta, data, LOSS, pair.lower)
    assert found.structure
    assert found.evidence_only
    assert not found.holds
    outputs = found.point.net.forward(found.point, data.x)
    expected = phi.net.forward(phi, data.x)
    assert abs(outputs - expected).max() < 1e-11 * abs(expected).max()
    assert found.stationarity == found.evidence.relative_gradient > 1e-4
    assert found.radius == 0
    report = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert report["kind"] == "relay"
    assert report["evidence_only"] is True
    assert report["holds"] is False
    text = str(found)
    assert "theta is a local minimum if its subnetwork is at one" in text
    assert "evidence, no proof" in text
    assert "holds, a local minimum" not in text


@pytest.mark.parametrize("layers", [TOP, POOLED])
def test_near_theta_the_risk_is_that_of_the_layers_below_with_a_free_dense_layer(layers):
    """The identity behind the proof, R(theta') = R_sub(lower', V', c'), at random points."""
    theta, pair, data, _ = nonlinear(layers)
    rng = np.random.default_rng(5)
    near = Parameters(theta.net, theta.vector + 1e-3 * rng.normal(size=theta.vector.size))
    found = certify_relays(near, data, LOSS, pair.lower)
    assert found.structure
    expected = near.net.risk(near, data, LOSS)
    assert found.point.net.risk(found.point, data, LOSS) == pytest.approx(expected, rel=1e-11)


def test_literal_relays_are_at_the_kink():
    theta, pair, data, _ = nonlinear(variant="literal")
    found = certify_relays(theta, data, LOSS, pair.lower)
    assert not found.structure
    assert not found.evidence_only
    assert not found.holds
    assert found.evidence is None
    assert {kink.layer for kink in found.kinks} == {2, 3}
    assert "at the kink" in str(found)


def test_a_relay_that_a_sample_switches_off_breaks_the_structure():
    theta, pair, data, _ = nonlinear()
    relay = pair.relay_of(0)
    features = theta.net.layer_output(theta, data.x.reshape(len(data), -1).T, 1)[:16]
    theta.b[pair.lower][relay] = -features.max() / 2
    found = certify_relays(theta, data, LOSS, pair.lower)
    assert found.mixed == ((features > features.max() / 2).any(axis=1)).sum() > 0
    assert not found.structure
    assert "active for some samples only" in str(found)
    net = Network(theta.net.input_shape, theta.net.layers, memory_budget=1)
    one_by_one = certify_relays(Parameters(net, theta.vector), data, LOSS, pair.lower)
    counts = (found.mixed, found.active, found.dead, found.unread)
    assert (one_by_one.mixed, one_by_one.active, one_by_one.dead, one_by_one.unread) == counts


def test_a_live_map_that_is_not_relayed_is_named_and_not_stationary():
    """E3: the free dense layer of the subnetwork reads it, with weights zero that want to move."""
    data = random_set((1, 4, 4), 90, 3)
    theta, pair = linear_minimum(Network((1, 4, 4), TOP), data, LOSS)
    theta.W[1].weights[2] = np.random.default_rng(0).normal(size=(1, 3, 3))
    theta.b[1][2] = 0.1
    found = certify_relays(theta, data, LOSS, pair.lower)
    assert found.unread == (2,)
    assert found.evidence_only
    assert found.evidence.relative_gradient > 1e-3
    assert "maps 2 of layer 1" in str(found)


def test_the_search_for_a_minimum_falls_back_on_it():
    theta, pair, data, _ = nonlinear()
    found = find_spurious_minimum(theta, pair, data, LOSS)
    assert found.certificate.kind == "relay"
    assert found.verdict == f"undecided: {found.certificate.words}"
    assert found.verdict.endswith("relays from layer 2 on, evidence only of those below")
    assert "local minimum" not in found.verdict
    assert found.theta_prime_risk == pytest.approx(found.risk, rel=1e-12)
    assert found.lower.decrease > 0


# Max pooling above the relays


def under_max_pooling(last=()):
    """Return a nonlinear layer 1, a relay of its map 0 and a dead map, a max pooling, and data.

    The first entry of all windows is the largest, but for samples `last`: there it is the last.
    """
    net = Network((1, 4, 4), [Conv(2), Conv(2), MaxPool(2), Dense(4), Dense(3)])
    rng = np.random.default_rng(0)
    theta = Parameters(net, 0.3 * rng.normal(size=net.size))
    theta.W[1].weights[0], theta.W[2].weights[...] = 0, 0
    theta.W[1].weights[0, 0, 1, 1] = theta.W[2].weights[0, 0, 1, 1] = 1
    theta.b[1][:], theta.b[2][:], theta.b[4][:] = 0, [50, -50], 500
    data = random_set((1, 4, 4), 90, 3)
    data.x[:, :, ::2, ::2] += 20
    data.x[list(last)] = data.x[list(last), :, ::-1, ::-1]
    return theta, data


@pytest.mark.parametrize("lower", [2, 4])
def test_a_max_pooling_that_selects_the_same_for_all_samples_is_affine(lower):
    theta, data = under_max_pooling()
    rng = np.random.default_rng(5)
    near = Parameters(theta.net, theta.vector + 1e-3 * rng.normal(size=theta.vector.size))
    found = certify_relays(near, data, LOSS, lower)
    assert found.structure and found.evidence_only
    expected = near.net.risk(near, data, LOSS)
    assert found.point.net.risk(found.point, data, LOSS) == pytest.approx(expected, rel=1e-11)
    theta.b[1][:] = 50  # one class: its best affine map is a proof
    x = np.column_stack([data.x.reshape(len(data), -1), np.ones(len(data))])
    residuals = data.y - x @ np.linalg.lstsq(x, data.y)[0]
    fitted = TrainingSet(data.x, theta.net.forward(theta, data.x) - residuals)
    found = certify_relays(theta, fitted, LOSS, lower)
    assert (found.active, found.dead) == ((20, 16) if lower == 2 else (4, 0))
    assert found.proves and not found.evidence_only
    assert found.radius == certify_cell(theta, fitted, LOSS).radius > 0


def test_a_max_pooling_whose_choice_varies_breaks_the_structure():
    theta, data = under_max_pooling(last=(3, 4, 80))
    found = certify_relays(theta, data, LOSS, 2)
    assert not found.structure
    assert not found.holds
    assert (found.mixed, found.kinks) == (4, ())  # the dead map has no largest entry
    assert certify_relays(theta, data, LOSS, 4).structure  # above it there is nothing mixed


def test_weights_that_only_rounding_makes_optimal_prove_nothing():
    x = np.array([-1.0, -1, 1, 1]).reshape(4, 1, 1, 1)
    data = TrainingSet(x, x.reshape(4, 1) + np.array([[0.5], [-0.5], [0.5], [-0.5]]))
    theta = Network((1, 1, 1), [Dense(1), Dense(2), Dense(1)]).zeros()
    theta.W[1].weights[...], theta.b[1][...] = 1, 4
    a, b = 12345678.9, 87654321.7  # V is a b - (a b - 1), which is far from 1
    theta.W[2].weights[:, 0], theta.b[2][...] = (a, 1e8), 1
    theta.W[3].weights[...] = b, -(a * b - 1) / 1e8
    for _ in range(3):
        theta.b[3][...] -= 4 + theta.net.affine_map(theta, x[0], 1)[0, 1]
    assert theta.net.affine_map(theta, x[0], 1).tolist() == [[1, -4]]
    (w, v), (upper, lower) = theta.W[3].weights[0], theta.W[2].weights[:, 0]
    exact = Fraction(w) * Fraction(upper) + Fraction(v) * Fraction(lower)
    assert abs(exact - 1) > 1e-3
    found = certify_relays(theta, data, LOSS, 2)
    assert found.structure and found.subnetwork.holds
    assert not found.holds


def test_a_tie_above_the_relays_breaks_the_structure():
    theta, data = under_max_pooling()
    data.x[7] = 1.0
    theta.W[2].weights[0] = 0
    found = certify_relays(theta, data, LOSS, 2)
    assert {(kink.layer, kink.map, kink.samples) for kink in found.kinks} == {(3, 0, len(data))}
    assert not found.structure


def test_poolings_of_the_input_are_no_relays():
    net = Network((1, 8, 8), [MaxPool(2), *TOP])
    data = random_set((1, 8, 8), 60, 3)
    theta, pair = linear_minimum(net, data, LOSS)
    assert certify_relays(theta, data, LOSS, pair.lower).holds
    assert certify_relays(theta, data, LOSS, 2).structure  # the features are the pooled input
    with pytest.raises(ValueError, match="expected a layer above the poolings of the input, got 1"):
        certify_relays(theta, data, LOSS, 1)


def test_it_runs_on_a_device():
    theta, pair, data, _ = nonlinear([Conv(1), Conv(3), Conv(3), Dense(3)])
    expected = certify_relays(theta, data, LOSS, pair.lower)
    found = certify_relays(theta.to(strict_device), data, LOSS, pair.lower)
    assert (found.active, found.dead, found.margin) == (
        expected.active,
        expected.dead,
        expected.margin,
    )
    assert found.evidence.gradient_norm == pytest.approx(expected.evidence.gradient_norm)


def test_bad_input_is_refused():
    theta, _, data, _ = nonlinear()
    for lower in (0, 5):
        with pytest.raises(ValueError, match=f"relays: expected a layer in 1..4, got {lower}"):
            certify_relays(theta, data, LOSS, lower)
    theta.vector[0] = np.nan
    with pytest.raises(ValueError, match="expected finite parameters"):
        certify_relays(theta, data, LOSS, 2)


@pytest.mark.parametrize("below", [[Dense(2)], [Dense(2), Residual([Dense(2)])]])
def test_below_a_scale_the_subnetwork_has_no_activation_either(below):
    net, rng = Network((1, 1), [*below, Scale(), Dense(2)]), np.random.default_rng(1)
    theta = Parameters(net, rng.uniform(-1, 1, net.size))
    scale = net.depth - 1
    theta.b[scale][:] = 9
    data = TrainingSet([[-2.0], [-1], [1], [3]], rng.normal(size=(4, 2)))
    found = certify_relays(theta, data, LOSS, scale)
    assert found.structure
    ((_, columns),) = net.chunks(theta, data.x)
    assert net.layer_output(theta, columns, scale - 1).min() < 0
    outputs = (point.net.forward(point, data.x) for point in (theta, found.point))
    assert np.allclose(*outputs, rtol=1e-13)


def test_layers_inside_a_block_are_refused_and_the_first_of_one_is_not():
    net = Network((1, 2), [Dense(2), Residual([Dense(2), Dense(2)]), Dense(1)])
    theta = Parameters(net, np.random.default_rng(0).normal(size=net.size))
    data = TrainingSet(np.eye(2), np.ones(2))
    for layer in (3, 4):
        with pytest.raises(ValueError, match=f"relays: .* not inside a block, got {layer}"):
            certify_relays(theta, data, LOSS, layer)
    for layer in (1, 2, 5):
        assert certify_relays(theta, data, LOSS, layer).lower == layer


def chain_of_three(weights):
    """Return theta of units x -> w x + 1, one in each of three layers, and samples x > 0."""
    net = Network((1, 1), [Dense(1), Dense(1), Dense(1)])
    theta = Parameters(net, [number for w in weights for number in (w, 1.0)])
    return theta, TrainingSet([[1.0], [2.0], [4.0]], [1.0, 3.0, 2.0])


@pytest.mark.parametrize("weights", [(1.0, 2.0, 3.0), (1e160, 1e-160, 3.0)])
def test_it_says_how_far_rounding_puts_the_outputs_of_the_subnetwork_off(weights):
    theta, data = chain_of_three(weights)
    found = certify_relays(theta, data, LOSS, 2)
    off = found.point.net.forward(found.point, data.x) - theta.net.forward(theta, data.x)
    assert abs(off).max() <= found.apart * abs(theta.net.forward(theta, data.x)).max() < 1e-12
    assert found.evidence_only
    assert f"V and c are rounded: the outputs are off by {found.apart:.2g}" in str(found)


def test_a_subnetwork_whose_weights_underflow_is_not_taken_for_theta():
    theta, data = chain_of_three((1e170, 1e-160, 1e-165))
    theta.b[3][:] = 0
    found = certify_relays(theta, data, LOSS, 2)
    assert not found.point.W[2].weights.any()
    assert np.ptp(theta.net.forward(theta, data.x)) > 1e-155
    assert found.structure
    assert found.apart > 0.5
    assert not found.evidence_only
    assert found.evidence is None
    assert "is a local minimum if" not in str(found)
    assert found.words.endswith("rounding puts the outputs of those below off by a share of 1")
