"""The whole construction: theta is a spurious local minimum, or what is said instead."""

from dataclasses import replace

import numpy as np
import pytest
import strict_device
import torch_twin
from construction_problems import (
    SQUARED,
    moved,
    network,
    over_devices,
    over_losses,
    over_rules,
    over_seeds,
    random_embedding,
    small_problem,
)
from shared import close, in_turn, outputs_of, random_pixels, refuses, twin_of

from tinyspur.constructions.data_split import split_data
from tinyspur.constructions.embedding import embed, linear_minimum, linear_subnetwork, subnetwork
from tinyspur.constructions.equal_risk import equal_risk_point
from tinyspur.constructions.nontrivial import nontrivial_minimum
from tinyspur.constructions.piecewise_linear import Groups, gated_minimum
from tinyspur.constructions.relays import rescale
from tinyspur.constructions.split_terms import map_values, output_derivatives, read_weights
from tinyspur.constructions.spurious import find_spurious_minimum, risk_along_bias
from tinyspur.constructions.witnesses import lower_point, revive
from tinyspur.datasets.samples import TrainingSet
from tinyspur.engine.activations import ReLU
from tinyspur.engine.backend import select, to_numpy
from tinyspur.engine.losses import AbsoluteLoss
from tinyspur.engine.network import Network
from tinyspur.engine.parameters import Parameters


@over_losses
def test_the_risk_along_the_bias_passes_through_theta_prime(loss):
    net = network((1, 4, 4), (2, 4, 4), 3)
    data = random_pixels(net, loss, 50, seed=0)
    theta, pair = linear_minimum(net, data, loss)
    found = find_spurious_minimum(theta, pair, data, loss)
    steps, risks = risk_along_bias(found, data, loss, points=9, width=2.0)
    assert len(risks) == 9
    assert steps[4] == 0
    close(risks[4], found.theta_prime_risk)
    reach = 2 * abs(found.lower.step)
    assert steps[-1] == -steps[0] == pytest.approx(reach, rel=1e-12)
    for step, risk in zip(steps, risks, strict=True):
        point = moved(found.theta_prime, found.lower.layer, found.lower.map, step)
        close(risk, torch_twin.risk(twin_of(point)(data.x), data.y, loss.name).item())
    assert np.sign(risks[5] - risks[3]) == np.sign(found.split.slope)


def test_the_risk_along_the_bias_is_the_networks_where_the_moved_map_meets_others():
    net = network((1, 4, 4), (2, 4, 4), 3)
    data = random_pixels(net, SQUARED, 20, seed=0)
    theta, pair = linear_minimum(net, data, SQUARED)
    found = find_spurious_minimum(theta, pair, data, SQUARED)
    others = set(range(4)) - {found.lower.map}
    for target, source in [(found.lower.map, min(others)), (max(others), found.lower.map)]:
        prime = found.theta_prime.copy()
        prime.W[pair.upper].weights[target, source] += 0.25
        steps, risks = risk_along_bias(replace(found, theta_prime=prime), data, SQUARED, 3)
        for step, risk in zip(steps, risks, strict=True):
            point = moved(prime, found.lower.layer, found.lower.map, step)
            close(risk, net.risk(point, data, SQUARED))
        assert np.ptp(risks) > 0


@in_turn(over_losses, over_rules, over_seeds, draws=2)
def test_the_repaired_point_is_a_spurious_local_minimum(loss, rule, seed):
    theta, pair, data = small_problem(loss, seed)
    found = find_spurious_minimum(theta, pair, data, loss, rule=rule)
    assert found.verdict == "spurious local minimum"
    assert found.certificate.holds
    assert found.escape is None
    assert found.risk == theta.net.risk(theta, data, loss)
    close(found.theta_prime_risk, found.risk)
    assert found.lower.risk < found.risk
    assert str(found).endswith("verdict: spurious local minimum")
    for line in (found.certificate, found.split, found.lower):
        assert str(line) in str(found)


@in_turn(over_losses, over_rules, over_seeds)
def test_in_a_bootstrap_sample_equal_samples_count_as_one_with_the_sum_of_their_u(loss, rule, seed):
    theta, pair, once = small_problem(loss, seed)
    net, drawn = theta.net, np.random.default_rng(seed).integers(len(once), size=2 * len(once))
    data = TrainingSet(once.x[drawn], np.roll(once.y[drawn], np.arange(len(drawn)) < 9, axis=1))
    theta, pair = linear_minimum(net, data, loss)
    found = find_spurious_minimum(theta, pair, data, loss, rule=rule)
    assert found.verdict == "spurious local minimum"
    numbers, twins = np.unique(drawn, return_inverse=True)
    assert found.duplicates.samples == (np.bincount(twins)[twins] > 1).sum() > 0
    assert f"features at layer {pair.upper}: {found.duplicates}\n" in str(found)
    split, after = found.split, twin_of(found.lower.theta)(data.x)
    assert torch_twin.risk(after, data.y, loss.name).item() < found.risk
    u = output_derivatives(theta, data, loss)[split.output]
    of_one = np.bincount(twins, u)
    above = map_values(theta, pair, split.map, once.x[numbers]) > split.threshold
    w = read_weights(theta, pair, split.map)[split.output]
    assert split.slope == pytest.approx(float(w @ (above @ of_one)) / len(data), rel=1e-9)


@over_rules
@pytest.mark.parametrize("seed", [0, 2])
def test_where_one_rule_gives_no_lower_point_the_other_is_tried(rule, seed):
    """The absolute loss need not fall at the rate S: the fit meets some of the targets."""
    loss = AbsoluteLoss()
    theta, pair, data = small_problem(loss, seed, outputs=1)
    steepest = split_data(theta, pair, data, loss, "steepest")
    prime = equal_risk_point(theta, pair, steepest)
    alone = lower_point(theta, prime, pair, steepest, data, loss)
    assert alone.decrease < alone.rounding
    found = find_spurious_minimum(theta, pair, data, loss, rule=rule)
    assert found.verdict == "spurious local minimum"
    assert found.split == split_data(theta, pair, data, loss, "largest")
    before, after = (outputs_of(point, data.x) for point in (theta, found.lower.theta))
    assert abs(after - data.y).mean() < abs(before - data.y).mean() - 1e-9


@in_turn(over_losses, over_seeds)
def test_the_literal_point_is_not_a_local_minimum(loss, seed):
    theta, pair, data = small_problem(loss, seed, variant="literal")
    found = find_spurious_minimum(theta, pair, data, loss, variant="literal", seed=seed)
    assert found.verdict.startswith("refuted: not a local minimum")
    assert found.escape.decrease > 0
    assert str(found.escape) in str(found)


def test_the_verdict_needs_both_a_certificate_and_a_lower_point():
    theta, pair, data = small_problem(SQUARED)
    found = find_spurious_minimum(theta, pair, data, SQUARED)
    nearly = replace(found.certificate, holds=False, delta=1e-12)
    assert replace(found, certificate=nearly).verdict == "spurious up to 1.0e-12"
    nearly = replace(nearly, delta=found.lower.decrease)
    assert replace(found, certificate=nearly).verdict.startswith("undecided: not certified")
    uncertified = replace(found, certificate=replace(nearly, delta=np.inf))
    assert uncertified.verdict.startswith("undecided: not certified")
    for decrease in (0.0, -1e-3, 1e-15 * found.risk):
        level = replace(found, lower=replace(found.lower, decrease=decrease))
        assert level.verdict == "local minimum, not shown to be spurious"
        neither = replace(level, certificate=uncertified.certificate)
        assert neither.verdict.startswith("undecided: not certified")
    literal, pair, data = small_problem(SQUARED, variant="literal")
    refuted = find_spurious_minimum(literal, pair, data, SQUARED, variant="literal")
    assert replace(refuted, escape=None).verdict.startswith("undecided: not certified")
    risen = replace(refuted, escape=replace(refuted.escape, decrease=-1.0))
    assert risen.verdict.startswith("undecided: not certified")


def test_an_arbitrary_subnetwork_is_not_called_a_minimum():
    theta, pair, data, _ = random_embedding(0)
    found = find_spurious_minimum(theta, pair, data, SQUARED)
    assert found.lower.decrease > 0
    assert not found.certificate.holds
    assert found.verdict.startswith("undecided: not certified")
    assert "local minimum" not in found.verdict


def test_the_output_of_the_split_can_be_chosen():
    theta, pair, data = small_problem(SQUARED)
    for k in (0, 2):
        assert find_spurious_minimum(theta, pair, data, SQUARED, output=k).split.output == k


def test_the_stages_are_entered_in_order():
    theta, pair, data = small_problem(SQUARED, variant="literal")
    entered = []

    class Stage:
        def __init__(self, name, text):
            entered.append(name)
            assert text

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

    find_spurious_minimum(theta, pair, data, SQUARED, variant="literal", stage=Stage)
    assert entered == ["certificate", "split", "escape"]


@in_turn(
    over_losses,
    over_rules,
    pytest.mark.parametrize("variant", ["repaired", "literal"]),
    draws=2,
)
@over_devices
def test_a_device_finds_the_same_points(loss, rule, variant, where):
    xp = strict_device if where == "stand-in" else select("cupy").xp
    theta, pair, data = small_problem(loss, variant=variant)
    net = theta.net
    host = find_spurious_minimum(theta, pair, data, loss, variant=variant, rule=rule)
    phi = linear_subnetwork(subnetwork(net, variant=variant), data, loss, variant)
    on_device, relays = embed(net, phi.to(xp), data.x, variant)
    assert relays == pair
    close(on_device.vector.get(), theta.vector)
    close(net.forward(on_device, data.x).get(), net.forward(theta, data.x))
    device = find_spurious_minimum(on_device, pair, data, loss, variant=variant, rule=rule)
    gradients = (net.gradient(found.theta_prime, data, loss) for found in (device, host))
    close(*(to_numpy(gradient.vector) for gradient in gradients))
    close(device.risk, host.risk)
    for name in ("layer", "map", "location", "output", "above", "below"):
        assert getattr(device.split, name) == getattr(host.split, name)
    for name in ("threshold", "partial_sum", "slope", "lowest", "gap"):
        close(getattr(device.split, name), getattr(host.split, name))
    assert isinstance(device.theta_prime.vector, xp.ndarray)
    close(device.theta_prime.vector.get(), host.theta_prime.vector)
    close(device.lower.theta.vector.get(), host.lower.theta.vector)
    close(device.lower.risk, host.lower.risk)
    assert device.certificate.holds == host.certificate.holds
    assert device.certificate.kinks == host.certificate.kinks
    close(device.certificate.radius, host.certificate.radius, 1e-9)
    assert device.verdict[:20] == host.verdict[:20]
    if variant == "literal":
        close(device.escape.theta.vector.get(), host.escape.theta.vector)
    else:
        for layer in (pair.lower, pair.upper):
            close(
                revive(on_device, data, loss, layer, 0).theta.vector.get(),
                revive(theta, data, loss, layer, 0).theta.vector,
                1e-6,
            )
    _, risks = risk_along_bias(device, data, loss, points=3)
    close(risks, risk_along_bias(host, data, loss, points=3)[1])
    rescaled = rescale(on_device, 1, 2.0, target=0).vector.get()
    assert np.array_equal(rescaled, rescale(theta, 1, 2.0, target=0).vector)


@in_turn(over_losses, pytest.mark.parametrize("convolutions", [3, 6]))
def test_a_risk_on_the_way_takes_the_same_transfers_at_any_depth(loss, convolutions):
    net = network((1, 4, 4), (4,) * convolutions, 3)
    data = random_pixels(net, loss, 50, seed=0)
    theta, pair = linear_minimum(net, data, loss)
    found = find_spurious_minimum(theta.to(strict_device), pair, data, loss)
    for point in (found.theta, found.theta_prime, found.lower.theta):
        with strict_device.transfers() as count:
            net.risk(point, data, loss)
        assert (count.to_device, count.to_host) == (2, 1)


def test_unknown_names_are_refused():
    theta, pair, data = small_problem(SQUARED)
    with refuses(ValueError, "split: expected one of ('steepest', 'largest'), got 'best'"):
        split_data(theta, pair, data, SQUARED, "best")
    with refuses(ValueError, "split: expected one of ('steepest', 'largest'), got 'best'"):
        find_spurious_minimum(theta, pair, data, SQUARED, rule="best")
    split = split_data(theta, pair, data, SQUARED)
    expected = "variant: expected one of ('repaired', 'literal'), got 'Literal'"
    with refuses(ValueError, expected):
        linear_minimum(theta.net, data, SQUARED, "Literal")
    with refuses(ValueError, expected):
        linear_subnetwork(subnetwork(theta.net), data, SQUARED, "Literal")
    with refuses(ValueError, expected):
        embed(theta.net, linear_subnetwork(subnetwork(theta.net), data, SQUARED), data.x, "Literal")
    with refuses(ValueError, expected):
        equal_risk_point(theta, pair, split, "Literal")
    with refuses(ValueError, expected):
        find_spurious_minimum(theta, pair, data, SQUARED, variant="Literal")


def test_targets_of_another_width_are_refused():
    net = network((1, 3, 3), (1, 3, 3), 2)
    theta, pair = linear_minimum(net, random_pixels(net, SQUARED, 30, seed=0), SQUARED)
    data = random_pixels(network((1, 3, 3), (1, 3, 3), 3), SQUARED, 30, seed=0)
    with refuses(ValueError, "targets: expected (N, 2), got (30, 3)"):
        find_spurious_minimum(theta, pair, data, SQUARED)


def test_relays_of_another_network_are_refused():
    theta, pair, data = small_problem(SQUARED)
    split = split_data(theta, pair, data, SQUARED)
    net = Network(theta.net.input_shape, theta.net.layers, ReLU(0.5))
    other = Parameters(net, theta.vector)
    words = f"expected points and directions of {theta.net}, got {net}"
    for call in (
        lambda: split_data(other, pair, data, SQUARED),
        lambda: equal_risk_point(other, pair, split),
        lambda: find_spurious_minimum(other, pair, data, SQUARED),
        lambda: lower_point(other, theta, pair, split, data, SQUARED),
    ):
        with refuses(ValueError, words):
            call()


def test_a_point_whose_layers_do_not_relay_is_refused():
    net = network((1, 4, 4), (2, 4, 4), 3)
    data, other = (random_pixels(net, SQUARED, 20, seed=seed) for seed in (0, 1))
    theta, pair = linear_minimum(net, data, SQUARED)
    turned, trained, read = theta.copy(), theta.copy(), theta.copy()
    turned.W[pair.upper].weights[pair.relay_of(0)] *= -1
    trained.b[pair.lower][pair.relay_of(0)] += 1e-3
    said = "pair: expected the point that it was returned with, got one whose layer {} does not"
    for point, layer in ((turned, pair.upper), (trained, pair.lower), (net.zeros(), pair.lower)):
        for call in (find_spurious_minimum, split_data):
            with refuses(ValueError, said.format(layer)):
                call(point, pair, data, SQUARED)
    read.W[net.depth].weights[...] *= 2  # is no relay, nor is a point of other data
    for point in (read, linear_minimum(net, other, SQUARED)[0]):
        found = find_spurious_minimum(point, pair, data, SQUARED)
        close(found.theta_prime_risk, net.risk(point, data, SQUARED))


@pytest.mark.parametrize("slope", [0.0, 0.25])
def test_networks_with_an_activation_of_the_outputs_have_no_linear_minimum(slope):
    net = network((1, 4, 4), (2, 4, 4), 3)
    layers = [*net.layers[:-1], replace(net.layers[-1], activation=ReLU(slope))]
    net = Network(net.input_shape, layers)
    data = random_pixels(net, SQUARED, 20, seed=0)
    for build in (linear_minimum, linear_subnetwork, nontrivial_minimum):
        with refuses(ValueError, "construction: expected no activation of the outputs, got ReLU"):
            build(net, data, SQUARED)
    with refuses(ValueError, "construction: expected no activation of the outputs, got ReLU"):
        gated_minimum(net, data, SQUARED, Groups.equal(data.x, np.ones(16), 2))
