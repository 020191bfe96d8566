"""The pair of convolutions anywhere: layers of every kind below and above."""

import functools
import itertools
from dataclasses import replace

import numpy as np
import pytest
import strict_device
import torch
import torch_twin
from pairs_anywhere import (
    BELOW,
    CASES,
    NEGATIVE,
    PIXELS,
    POOLED,
    RULES,
    SQUARED,
    M,
    P,
    linear_problem,
    lower_of,
    net_of,
    over_cases,
    over_pairs,
    over_rules,
    over_some_random_points,
    over_variants,
    pooled_input,
    random_problem,
    run,
)
from shared import close, in_turn, outputs_of, random_pixels, refuses, twin_of, twin_risk

from tinyspur import (
    AssumptionError,
    CellCertificate,
    Conv,
    Dense,
    Network,
    ReLU,
    TrainingSet,
    certify_cell,
    embed,
    equal_risk_point,
    find_spurious_minimum,
    linear_minimum,
    linear_subnetwork,
    lower_point,
    nontrivial_minimum,
    rescale,
    split_data,
    subnetwork,
)
from tinyspur.constructions.split_terms import map_values, read_weights

STATIONARY = 1e-10  # share of the gradients that other targets give


def gradients(theta, data, loss):
    return torch_twin.gradients(twin_of(theta), data.x, data.y, loss.name)


def stationarity(theta, data, loss):
    """Return each gradient relative to the largest that the targets give in another order."""
    found = gradients(theta, data, loss)
    other = gradients(theta, TrainingSet(data.x, np.roll(data.y, 1, axis=0)), loss)
    scale = max(abs(values).max() for values in other.values())
    return {key: abs(values).max() / scale for key, values in found.items()}


# The linear minimum


def best_affine_outputs(x, y, loss):
    """Return the outputs of the best affine map; those of cross-entropy as probabilities."""
    x = np.hstack([x, np.ones((len(x), 1))])
    if loss is SQUARED:
        return x @ np.linalg.lstsq(x, y)[0]

    def risk(weights):
        return torch_twin.risk(x @ weights, y, "cross-entropy").item()

    weights, classes = np.zeros((x.shape[1], y.shape[1])), y.shape[1] - 1  # the last class: 0
    for _ in range(50):
        p = torch.softmax(torch.as_tensor(x @ weights), 1).numpy()
        gradient = (x.T @ (p - y))[:, :classes]
        hessian = np.block(
            [
                [(x.T * (p[:, k] * ((k == j) - p[:, j]))) @ x for j in range(classes)]
                for k in range(classes)
            ]
        )
        step = np.zeros_like(weights)
        step[:, :classes] = np.linalg.solve(hessian, gradient.T.ravel()).reshape(classes, -1).T
        while abs(step).max() > 1e-13 * abs(weights).max() and risk(weights - step) > risk(weights):
            step /= 2
        weights = weights - step
        if abs(gradient).max() < 1e-12 * len(x):
            break
    return torch.softmax(torch.as_tensor(x @ weights), 1).numpy()


def prediction(theta, data, loss):
    o = twin_of(theta)(data.x).detach()
    return (o if loss is SQUARED else torch.softmax(o, 1)).numpy()


@over_pairs
def test_the_linear_minimum_is_the_best_affine_map_and_a_spurious_local_minimum(name, loss):
    low = NEGATIVE if loss is SQUARED else PIXELS
    theta, pair, data = linear_problem(name, loss, low)
    expected = best_affine_outputs(pooled_input(theta.net, data.x), data.y, loss)
    close(prediction(theta, data, loss), expected, 1e-11)
    found = find_spurious_minimum(theta, pair, data, loss)
    assert found.verdict == "spurious local minimum"
    close(outputs_of(found.theta_prime, data.x), outputs_of(theta, data.x), 1e-11)
    assert twin_risk(found.lower.theta, data, loss) < twin_risk(theta, data, loss)
    assert found.lower.decrease > found.lower.rounding
    certificate = found.certificate
    assert isinstance(certificate, CellCertificate) and certificate.holds
    assert certificate.classes == 1
    assert certificate.margin >= 1 - 1e-12
    assert max(stationarity(theta, data, loss).values()) < STATIONARY
    kinds = [isinstance(layer, Conv) for layer in theta.net.layers]
    pairs = [n + 1 for n, two in enumerate(itertools.pairwise(kinds)) if all(two)]
    assert pair.lower == (lower_of(name) or max(pairs))
    assert not any(isinstance(a, Dense) for a in theta.net.layers[: pair.dense - 1])
    assert isinstance(theta.net.layers[pair.dense - 1], Dense)


@over_pairs
def test_the_literal_theta_is_stationary_only_without_a_pooling_above_filters(name, loss):
    """E6b: the dense layer is optimal for pooled features, the filters below a pooling aren't."""
    theta, _, data = linear_problem(name, loss, variant="literal")
    found, net = stationarity(theta, data, loss), theta.net
    pools = [n for n, layer in enumerate(net.layers, start=1) if isinstance(layer, P)]
    last = max(pools) if name in POOLED else 0
    off_centre = [
        layer
        for layer in theta.b
        if layer < last
        and isinstance(net.layers[layer - 1], Conv)
        and net.layers[layer - 1].kernel > 1
    ]
    assert bool(off_centre) == (name in POOLED)
    for layer in theta.b:
        if layer in off_centre:
            assert found[f"W{layer}"] > 1e-2
        else:
            assert found[f"W{layer}"] < STATIONARY
        assert found[f"b{layer}"] < STATIONARY
    certificate = certify_cell(theta, data, loss)
    assert not certificate.holds
    assert (certificate.stationarity > 1e-3) == (name in POOLED)


def test_filters_of_size_1_see_a_map_as_poolings_do():
    net = Network((1, 4, 4), [Conv(1, 1), Conv(3, 1), Conv(4, 1), P(2), Dense(2)])
    data = random_pixels(net, SQUARED, 40, low=PIXELS)
    theta, _ = linear_minimum(net, data, SQUARED, "literal")
    assert max(stationarity(theta, data, SQUARED).values()) < STATIONARY
    with refuses(AssumptionError, "filters too small: layer 3 has filters of size 1, expected"):
        linear_minimum(net, data, SQUARED)


# Any subnetwork


def strict_inside(theta, pair, x):
    """Return per layer from the pair upwards the least z of what relays and the largest of others.

    The relays of a dense layer are its first d_y neurons.
    """
    net, d_y = theta.net, theta.net.shapes[-1][0]
    for layer, z in twin_of(theta).preactivations(x).items():
        if layer < pair.lower:
            continue
        z = z.detach().numpy().reshape(len(x), net.shapes[layer][0], -1)
        relays = np.zeros(z.shape[1], bool)
        if layer < pair.dense:
            for m in pair.relayed:
                relays[pair.tower.maps(layer, pair.relay_of(m))] = True
        else:
            relays[:d_y] = True
        yield layer, z[:, relays].min(), z[:, ~relays].max(initial=-np.inf)


@in_turn(
    pytest.mark.parametrize("name", [*CASES, *BELOW]),
    pytest.mark.parametrize("low", [PIXELS, NEGATIVE]),
)
def test_an_embedded_point_has_the_outputs_of_its_subnetwork(name, low):
    theta, pair, data, phi = random_problem(name, SQUARED, low)
    outputs = outputs_of(phi, data.x)
    close(outputs_of(theta, data.x), outputs, 1e-11)
    close(theta.net.forward(theta, data.x), outputs, 1e-11)
    for z in twin_of(phi).preactivations(data.x).values():
        assert 0.1 < (z > 0).double().mean() < 0.9
    assert pair.relayed == tuple(range(phi.net.shapes[-2][0]))
    seen = list(strict_inside(theta, pair, data.x))
    assert [layer for layer, *_ in seen] == [n for n in theta.net.active_layers if n >= pair.lower]
    for _, active, dead in seen:
        assert active >= 0.5
        assert dead <= -0.5


@over_cases
def test_the_literal_theta_has_the_outputs_of_its_subnetwork(name):
    theta, pair, data, phi = random_problem(name, variant="literal")
    close(outputs_of(theta, data.x), outputs_of(phi, data.x), 1e-11)
    assert all((theta.b[layer] == 0).all() for layer in pair.tower.taps)
    for layer, z in twin_of(theta).preactivations(data.x).items():
        if layer in pair.tower.taps:
            z = z.detach().numpy().reshape(len(z), theta.net.shapes[layer][0], -1)
            assert (z[:, list(pair.reserved)] == 0).all()


def test_spare_maps_below_the_pair_are_dead():
    net = Network((1, 4, 4), [Conv(6), P(2), Conv(4), Conv(12), P(2), Dense(2)])
    data = random_pixels(net, SQUARED, 12, low=PIXELS)
    phi = subnetwork(net, all_relayed=True).zeros()
    assert phi.net.layers[0].maps == 1
    phi.vector[:] = np.random.default_rng(0).normal(size=phi.vector.size)
    theta, pair = embed(net, phi, data.x)
    assert pair.relayed == (0,)
    z = twin_of(theta).preactivations(data.x)[1].detach().numpy().reshape(12, 6, 16)
    assert (z[:, 1:] == -1).all()
    close(outputs_of(theta, data.x), outputs_of(phi, data.x), 1e-11)


@in_turn(over_cases, over_variants)
def test_a_subnetwork_that_is_all_relayed_has_no_more_maps_than_there_is_room_for(name, variant):
    net, lower = net_of(name), lower_of(name)
    whole, narrow = (subnetwork(net, lower, variant, every) for every in (False, True))
    _, pair, _, phi = random_problem(name, variant=variant)
    assert phi.net == narrow
    assert len(pair.relayed) == narrow.shapes[-2][0] <= whole.shapes[-2][0]
    tracks = len(pair.relayed) + 2
    top = {layer: tracks * pair.tower.copies[layer] for layer in pair.tower.taps}
    assert all(needed <= net.shapes[layer][0] for layer, needed in top.items())
    if narrow.shapes[-2][0] < whole.shapes[-2][0]:  # one more would not have a place
        assert any(
            needed + pair.tower.copies[layer] > net.shapes[layer][0]
            for layer, needed in top.items()
        )
    assert [type(a) for a in narrow.layers] == [type(a) for a in whole.layers]


# theta'


class ByHand:
    """What PyTorch says of theta and of map m: v (P, N), w (d_y, P), b or None, u (d_y, N).

    w is the derivative of the outputs in what the pair reads, u that of the loss in the outputs.
    """

    def __init__(self, theta, pair, data, loss, m):
        below, net, x = pair.below, theta.net, torch.as_tensor(data.x)
        features = run(theta, x, 1, below).detach().requires_grad_()
        outputs = run(theta, features, below + 1, net.depth)
        self.w, self.b, self.map = [], None, m
        self.v = features.detach().flatten(2)[:, m].numpy().T
        active = (self.v > 0).T | (pair.kappa_lower > 0)  # literal relays of 0 are at the kink
        for k in range(outputs.shape[1]):
            (rows,) = torch.autograd.grad(outputs[:, k].sum(), features, retain_graph=True)
            rows = rows.flatten(2)[:, m].numpy()
            w = rows[active.argmax(axis=0), np.arange(rows.shape[1])]
            close(rows[active], np.tile(w, (len(rows), 1))[active], 1e-9)
            self.w.append(w)
        self.w = np.array(self.w)
        if below in net.active_layers:
            self.b = float(theta.b[below][m])
            z = twin_of(theta).preactivations(x)[below].detach().numpy()
            self.v = z.reshape(len(x), -1, len(self.v))[:, m].T - self.b
        self.outputs = outputs.detach()
        leaf = outputs.detach().requires_grad_()
        risk = torch_twin.risk(leaf, data.y, loss.name)
        self.u = len(x) * torch.autograd.grad(risk, leaf)[0].numpy().T
        self.risk = risk.item()

    def slope(self, eta, k):
        """Return S(eta) = (1/N) sum_j w^j sum_{i: v_i^j > eta} u_i."""
        return float(self.w[k] @ ((self.v > eta) @ self.u[k])) / self.v.shape[1]

    def size(self, k):
        """Return the sum of the terms of S without their signs."""
        return abs(np.outer(self.w[k], self.u[k])).sum() / self.v.shape[1]

    def first_case(self, eta):
        """Return whether eta >= -b in Lemma 9; where the pair reads no activation it is."""
        return self.b is None or eta >= -self.b


def other_splits(split, hand):
    """Yield the widest gaps above and below eta = -b; where there is no b, above 0."""
    values = np.unique(hand.v)
    middles, widths = (values[1:] + values[:-1]) / 2, np.diff(values)
    for side in [middles > 0] if hand.b is None else [middles > -hand.b, middles < -hand.b]:
        if side.any():
            n = np.flatnonzero(side)[widths[side].argmax()]
            slope, gap = hand.slope(middles[n], split.output), (values[n], values[n + 1])
            yield replace(split, threshold=middles[n], gap=gap, slope=slope)


def check_theta_prime(theta, pair, data, loss, split, hand):
    """Check the split, and outputs, slope and lower point of theta' by PyTorch."""
    k, eta = split.output, split.threshold
    assert (split.layer, split.map) == (pair.below, hand.map)
    assert split.gap[0] < eta < split.gap[1]
    assert not ((hand.v > split.gap[0] + 1e-9) & (hand.v < split.gap[1] - 1e-9)).any()
    assert abs(split.lowest - hand.v.min()) < 1e-11 * abs(hand.v).max()
    slope, size = hand.slope(eta, k), hand.size(k)
    assert abs(split.slope - slope) < 1e-10 * size
    prime = equal_risk_point(theta, pair, split)
    close(outputs_of(prime, data.x), hand.outputs, 1e-11)
    target = pair.reserved[1 if hand.first_case(eta) else 0]
    found = gradients(prime, data, loss)[f"b{pair.lower}"][target]
    assert abs(found - slope) < 1e-9 * abs(slope) + 1e-11 * size
    lower = lower_point(theta, prime, pair, split, data, loss)
    assert (lower.layer, lower.map) == (pair.lower, target)
    assert twin_risk(lower.theta, data, loss) < hand.risk
    close(lower.risk, twin_risk(lower.theta, data, loss), 1e-11)
    assert lower.step * slope < 0
    assert abs(lower.step) < (split.gap[1] - split.gap[0]) / 2
    moved = prime.copy()
    moved.b[pair.lower][target] += lower.step
    assert np.array_equal(moved.vector, lower.theta.vector)


@over_some_random_points
def test_theta_prime_of_a_random_point_keeps_every_output_in_both_cases(name, loss):
    theta, pair, data, _ = random_problem(name, loss, NEGATIVE if loss is SQUARED else PIXELS)
    cases = set()
    for n, m in enumerate(pair.relayed[:2]):
        hand = ByHand(theta, pair, data, loss, m)
        close(map_values(theta, pair, m, data.x), hand.v, 1e-11)
        close(read_weights(theta, pair, m), hand.w, 1e-10)
        chosen = split_data(theta, pair, data, loss, RULES[n], map=m, output=n % len(hand.w))
        for split in [chosen, *(() if len(cases) > 1 else other_splits(chosen, hand))]:
            check_theta_prime(theta, pair, data, loss, split, hand)
            cases.add(hand.first_case(split.threshold))
    assert cases == ({True, False} if pair.below in theta.net.active_layers else {True})


@pytest.mark.parametrize(
    "name", ["one output", "pool above", "pools below and above, two channels"]
)
def test_the_literal_theta_prime_keeps_the_output_if_there_is_one(name):
    shape, layers, lower = CASES[name]
    net = Network(shape, [*layers[:-1], Dense(1)])
    phi = subnetwork(net, lower, "literal", all_relayed=True).zeros()
    phi.vector[:] = np.random.default_rng(0).normal(size=phi.vector.size)
    data, cases = random_pixels(net, SQUARED, 12, low=PIXELS), set()
    theta, pair = embed(net, phi, data.x, "literal", lower)
    for m in pair.relayed:
        hand = ByHand(theta, pair, data, SQUARED, m)
        for split in other_splits(split_data(theta, pair, data, SQUARED, map=m), hand):
            prime = equal_risk_point(theta, pair, split, "literal")
            close(outputs_of(prime, data.x), hand.outputs, 1e-11)
            cases.add(hand.first_case(split.threshold))
    assert cases == {True, False}


# A device


ON_A_DEVICE = [
    "pool above",
    "pools below and above",
    "pair reads a leading pool",
    "pair reads the input",
    "1-D, pool of 3",
]


@in_turn(
    pytest.mark.parametrize("name", ON_A_DEVICE),
    pytest.mark.parametrize("problem", [random_problem, linear_problem], ids=["random", "linear"]),
    over_rules,
)
def test_a_device_finds_the_same_points(name, problem, rule):
    theta, pair, data, *_ = problem(name)
    there = theta.to(strict_device)
    split, on_device = (split_data(p, pair, data, SQUARED, rule) for p in (theta, there))
    assert (split.map, split.output) == (on_device.map, on_device.output)
    assert split.location == on_device.location
    close(on_device.threshold, split.threshold, 1e-11)
    close(on_device.slope, split.slope, 1e-11)
    prime = equal_risk_point(theta, pair, split)
    prime_there = equal_risk_point(there, pair, on_device)
    assert isinstance(prime_there.vector, strict_device.ndarray)
    close(prime_there.vector.get(), prime.vector, 1e-11)
    lower = lower_point(theta, prime, pair, split, data, SQUARED)
    lower_there = lower_point(there, prime_there, pair, on_device, data, SQUARED)
    assert isinstance(lower_there.theta.vector, strict_device.ndarray)
    close(lower_there.theta.vector.get(), lower.theta.vector, 1e-11)
    close(lower_there.risk, lower.risk, 1e-11)


@in_turn(
    pytest.mark.parametrize("name", ON_A_DEVICE),
    over_variants,
)
def test_a_subnetwork_on_a_device_is_embedded_there(name, variant):
    theta, pair, data, phi = random_problem(name, variant=variant)
    found, relays = embed(theta.net, phi.to(strict_device), data.x, variant, lower_of(name))
    assert isinstance(found.vector, strict_device.ndarray)
    assert relays == pair
    close(found.vector.get(), theta.vector, 1e-14)


# Symmetries


@functools.cache
def certified_problem(kind):
    """Return a certified theta with its data: of one class, or of three."""
    net = Network((1, 4, 4), [Conv(3), Conv(5), Conv(20), P(2), Dense(4), Dense(3)])
    data = random_pixels(net, SQUARED, 40, low=NEGATIVE)
    if kind == "linear":
        return linear_minimum(net, data, SQUARED)[0], data
    phi = nontrivial_minimum(subnetwork(net), data, SQUARED, isolated=2)
    return embed(net, phi, data.x)[0], data


over_kinds = pytest.mark.parametrize(("kind", "classes"), [("linear", 1), ("nontrivial", 3)])


def permuted(theta, layer, order):
    """Return theta with the maps of a layer in another order, and what reads them."""
    net, point = theta.net, theta.copy()
    point.W[layer].weights[...] = theta.W[layer].weights[order]
    point.b[layer][...] = theta.b[layer][order]
    above = next(n for n in theta.b if n > layer)
    weights = theta.W[above].weights
    by_map = weights.reshape(len(weights), net.shapes[above - 1][0], -1)
    point.W[above].weights[...] = by_map[:, order].reshape(weights.shape)
    return point


@over_kinds
def test_the_certificate_does_not_depend_on_the_order_of_the_samples(kind, classes):
    theta, data = certified_problem(kind)
    before = certify_cell(theta, data, SQUARED)
    assert before.holds and before.classes == classes
    for seed in range(2):
        order = np.random.default_rng(seed).permutation(len(data))
        after = certify_cell(theta, TrainingSet(data.x[order], data.y[order]), SQUARED)
        assert after.holds and after.classes == classes
        close(after.margin, before.margin, 1e-11)
        close(after.radius, before.radius, 0.02)


@over_kinds
def test_the_certificate_does_not_depend_on_the_order_of_the_maps(kind, classes):
    theta, data = certified_problem(kind)
    outputs, margin = outputs_of(theta, data.x), certify_cell(theta, data, SQUARED).margin
    rng, everywhere = np.random.default_rng(0), theta
    for layer in theta.net.active_layers:
        order = rng.permutation(theta.net.shapes[layer][0])
        everywhere = permuted(everywhere, layer, order)
        close(outputs_of(everywhere, data.x), outputs, 1e-11)
        certificate = certify_cell(everywhere, data, SQUARED)
        assert certificate.holds and certificate.classes == classes
        close(certificate.margin, margin, 1e-11)
    assert (everywhere.vector != theta.vector).any()


@pytest.mark.parametrize(("kind", "classes", "copies"), [("linear", 1, 4), ("nontrivial", 3, 2)])
def test_rescaled_copies_are_as_many_certified_minima(kind, classes, copies):
    theta, data = certified_problem(kind)
    risk, rng, seen = twin_risk(theta, data, SQUARED), np.random.default_rng(0), []
    for _ in range(copies):
        point = theta
        for layer in theta.net.active_layers:
            point = rescale(point, layer, rng.uniform(0.5, 2))
            target = int(rng.integers(theta.net.shapes[layer][0]))
            point = rescale(point, layer, rng.uniform(0.5, 2), target)
        close(twin_risk(point, data, SQUARED), risk, 1e-12)
        close(point.net.risk(point, data, SQUARED), risk, 1e-12)
        certificate = certify_cell(point, data, SQUARED)
        assert certificate.holds and certificate.classes == classes
        seen.append(point.vector.tobytes())
    assert len(set(seen)) == copies


# Errors


NET = Network((1, 4, 4), [Conv(3), Conv(5), Conv(5), Dense(3)])
POOLED_NET = Network((1, 4, 4), [Conv(3), Conv(5), Conv(20), P(2), Dense(3)])


def build(net, variant="repaired", lower=None, low=PIXELS):
    return linear_minimum(net, random_pixels(net, SQUARED, 60, low=low), SQUARED, variant, lower)


COPIES, RESERVED = "in 4 shifted copies each", "two reserved ones and one for each map in use"


@pytest.mark.parametrize(
    ("shape", "layers", "named"),
    [
        (
            (1, 4, 4),
            [Conv(3), Conv(2), Conv(5), Dense(3)],
            "layer 2 has 2, expected at least 3: two",
        ),
        (
            (1, 4, 4),
            [Conv(3), Conv(3), Conv(2), Conv(3), Dense(3)],
            "layer 3 has 2, expected at least 3",
        ),
        (
            (2, 4, 4),
            [Conv(1), Conv(4), Conv(4), Dense(3)],
            "layer 1 has 1, expected at least 2: one",
        ),
        (
            (2, 4, 4),
            [Conv(2), Conv(4), Conv(3), Dense(3)],
            "layer 3 has 3, expected at least 4: two",
        ),
        ((2, 4, 4), [Conv(2), Conv(16), P(2), Dense(3)], "layer 1 has 2, expected at least 3: two"),
        ((2, 4, 4), [Conv(3), Conv(16), P(2), Dense(3)], "layer 1 has 3, expected at least 4: two"),
        (
            (1, 4, 4),
            [Conv(3), Conv(3), Conv(11), P(2), Dense(3)],
            f"layer 3 has 11, expected at least 12: {RESERVED} of the layer below {COPIES}",
        ),
        (
            (1, 4, 4),
            [Conv(3), P(2), Conv(12), Conv(12), Dense(3)],
            "layer 1 has 3, expected at least 4: one for each input channel that the linear "
            "subnetwork relays",
        ),
        (
            (1, 4, 4),
            [Conv(4), P(2), Conv(6), Conv(5), Dense(3)],
            f"layer 4 has 5, expected at least 6: {RESERVED} of layer 2 (0, 1, 2, 3)",
        ),
        (
            (1, 8, 8),
            [Conv(1), Conv(3), Conv(12), P(2), Conv(47), P(2), Dense(3)],
            f"layer 5 has 47, expected at least 48: {RESERVED} of the layer below in 16 shifted",
        ),
        ((1, 6), [Conv(1), Conv(3), Conv(8), P(3), Dense(3)], "layer 3 has 8, expected at least 9"),
    ],
)
def test_too_few_maps_are_named_with_the_copies(shape, layers, named):
    lower = 2 if len(layers) > 6 else None
    with refuses(AssumptionError, "too few maps: " + named):
        build(Network(shape, layers), lower=lower)


def test_as_many_maps_as_are_asked_for_are_enough():
    for shape, layers in (
        ((2, 4, 4), [Conv(4), Conv(16), P(2), Dense(3)]),
        ((1, 4, 4), [Conv(1), Conv(3), Conv(12), P(2), Dense(3)]),
        ((1, 4, 4), [Conv(4), P(2), Conv(4), Conv(6), Conv(6), Dense(3)]),
        ((1, 8), [Conv(1), Conv(3), Conv(6), P(2), Conv(12), P(2), Dense(3)]),
    ):
        assert build(Network(shape, layers), lower=2 if len(layers) == 7 else None)


def test_too_few_maps_for_a_point_are_named():
    phi = subnetwork(POOLED_NET).zeros()
    phi.vector[:] = 1
    x = np.ones((2, 1, 4, 4))
    assert embed(POOLED_NET, phi, x)[1].relayed == (0, 1, 2)
    net = Network((1, 4, 4), [Conv(3), Conv(5), Conv(19), P(2), Dense(3)])
    use = f"{RESERVED} of layer 1 (0, 1, 2) {COPIES}"
    with refuses(AssumptionError, f"too few maps: layer 3 has 19, expected at least 20: {use}"):
        embed(net, phi, x)
    phi.b[1][1] = -1e3
    assert embed(net, phi, x)[1].relayed == (0, 2)


@pytest.mark.parametrize(
    ("layers", "named"),
    [
        ([Conv(3), Conv(3, 1), Conv(12, 1), P(2), Dense(3)], (3, 1, 3)),
        ([Conv(3), Conv(3), Conv(48), P(4), Dense(3)], (3, 3, 5)),
        ([Conv(3), Conv(3), Conv(48), P(2), P(2), Dense(3)], (3, 3, 5)),
        ([Conv(16, 1), P(2), Conv(18), Conv(18), Dense(3)], (1, 1, 3)),
    ],
)
def test_filters_too_small_for_a_pooling_are_refused(layers, named):
    layer, size, needed = named
    message = (
        f"filters too small: layer {layer} has filters of size {size}, expected at least {needed}"
    )
    with refuses(AssumptionError, message):
        build(Network((1, 4, 4), layers))


def test_max_poolings_that_would_have_to_be_relayed_are_refused():
    for layers, layer in (
        ([Conv(3), Conv(5), Conv(17), M(2), Dense(3)], 4),
        ([Conv(3), Conv(5), Conv(17), P(2), M(2), Dense(3)], 5),
        ([P(2), Conv(5), Conv(17), M(1), Conv(20), Dense(3)], 4),
        ([M(2), Conv(5), Conv(17), M(2), Dense(3)], 4),
    ):
        net = Network((1, 4, 4), layers)
        message = f"layers that can relay a map, got {layers[layer - 1]} as layer {layer}"
        lower = 2 if len(layers) > 5 else None
        for make in (lambda net=net, at=lower: subnetwork(net, at), lambda net=net: build(net)):
            with refuses(ValueError, f"construction: expected {message}"):
                make()
    for name in BELOW:  # here the linear subnetwork needs relays below the pair
        message = f"layers that can relay a map, got {net_of(name).layers[1]} as layer 2"
        for variant in ("repaired", "literal"):
            with refuses(ValueError, f"construction: expected {message}"):
                build(net_of(name), variant)
        with refuses(ValueError, f"construction: expected {message}"):
            nontrivial_minimum(net_of(name), random_pixels(net_of(name), SQUARED, 9), SQUARED)


def test_a_dense_layer_narrower_than_the_outputs_is_refused():
    message = "too few neurons: the dense layer 5 has 2, expected at least 3, one for each output"
    for tail in ([Dense(4), Dense(2), Dense(3)], [Dense(3), Dense(2), Dense(3)]):
        with refuses(AssumptionError, message):
            build(Network((1, 4, 4), [Conv(1), Conv(3), Conv(3), *tail]))


@pytest.mark.parametrize(
    ("lower", "named"),
    [
        (3, "layers 3 and 4, got Conv, AveragePool"),
        (4, "layers 4 and 5, got AveragePool, Dense"),
        (0, "layers 0 and 1, got none"),
        (5, "layers 5 and 6, got Dense"),
        (6, "layers 6 and 7, got"),
        (-1, "layers -1 and 0, got"),
    ],
)
@over_variants
def test_a_lower_layer_that_begins_no_pair_is_refused(lower, named, variant):
    with refuses(ValueError, "construction: expected convolutions as " + named):
        build(POOLED_NET, variant, lower)
    with refuses(ValueError, "construction: expected convolutions as " + named):
        subnetwork(POOLED_NET, lower, variant)


@pytest.mark.parametrize("lower", [-2, -3])
def test_layers_count_from_1(lower):
    named = f"layers {lower} and {lower + 1}"
    with refuses(ValueError, "construction: expected convolutions as " + named):
        build(NET, lower=lower)


def test_a_point_of_another_subnetwork_is_refused():
    x = np.ones((2, 1, 4, 4))
    for net, lower, variant, phi in (
        (NET, None, "repaired", NET),
        (NET, 1, "repaired", subnetwork(NET)),
        (NET, None, "repaired", Network((1, 4, 4), [Conv(4), Dense(3)])),
        (NET, None, "repaired", Network((1, 4, 4), [Conv(3), Dense(2)])),
        (NET, None, "repaired", Network((1, 4, 4), [Conv(3, 5), Dense(3)])),
        (NET, None, "repaired", Network((1, 2, 8), [Conv(3), Dense(3)])),
        (POOLED_NET, None, "repaired", subnetwork(POOLED_NET, variant="literal")),
        (POOLED_NET, None, "literal", subnetwork(POOLED_NET)),
    ):
        expected = subnetwork(net, lower, variant)
        with refuses(ValueError, f"embed: expected a point of {expected}, got one of {phi}"):
            embed(net, phi.zeros(), x, variant, lower)


@over_variants
def test_networks_without_a_dense_layer_at_the_end_and_leaky_ones_are_refused(variant):
    for tail, named in (([], "Conv(maps=3, kernel=3)"), ([P(4)], "AveragePool(size=4)")):
        net = Network((1, 4, 4), [Conv(1), Conv(3), Conv(3), *tail])
        with refuses(ValueError, f"construction: expected a dense layer at the end, got {named}"):
            subnetwork(net, variant=variant)
    leaky = Network(NET.input_shape, NET.layers, ReLU(0.1))
    with refuses(ValueError, "construction: expected ReLU, got ReLU(slope=0.1)"):
        build(leaky, variant)


def test_the_literal_theta_relays_no_negative_inputs():
    net = Network((1, 4, 4), [Conv(3), Conv(3), Dense(3)])
    with refuses(AssumptionError, "literal theta: expected inputs >= 0 for relays of the input"):
        build(net, "literal", low=NEGATIVE)
    assert build(net, "repaired", low=NEGATIVE)
    pooled = Network((1, 8, 8), [P(2), *net.layers])
    with refuses(AssumptionError, "literal theta: expected inputs >= 0 for relays of the input"):
        build(pooled, "literal", low=NEGATIVE)


def test_a_linear_subnetwork_has_one_dense_layer():
    net = Network((1, 4, 4), [Conv(1), Dense(3), Dense(3)])
    with refuses(ValueError, "linear subnetwork: expected one dense layer, at the end, got"):
        linear_subnetwork(net, random_pixels(net, SQUARED, 60, low=PIXELS), SQUARED)


def test_a_linear_subnetwork_ends_in_a_dense_layer():
    net = Network((1, 4, 4), [Conv(3), Conv(3)])
    x = random_pixels(net, SQUARED, 60, low=PIXELS).x
    data = TrainingSet(x, np.random.default_rng(0).normal(size=(60, 3)))
    with refuses(ValueError, "expected"):
        linear_subnetwork(net, data, SQUARED)


def test_a_point_of_a_leaky_subnetwork_is_refused():
    leaky = Network((1, 4, 4), [Conv(3), Dense(3)], ReLU(0.1))
    with refuses(ValueError, "expected"):
        embed(NET, leaky.zeros(), np.ones((2, 1, 4, 4)))


def test_a_map_that_is_dead_everywhere_leaves_nothing_to_relay():
    phi = subnetwork(POOLED_NET).zeros()
    phi.b[1][:] = -1
    with refuses(AssumptionError, "every map of layer 1 is dead: there is none to relay"):
        embed(POOLED_NET, phi, np.ones((2, 1, 4, 4)))
