"""theta, the data split, theta', lower points and witnesses of convolutional networks."""

import itertools
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import strict_device
import torch
import torch_twin
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tinyspur.activations import ReLU
from tinyspur.backend import select, to_numpy
from tinyspur.certificates import certify_cell
from tinyspur.constructions import split_terms, steepest_gap
from tinyspur.constructions.data_split import DataSplit, largest_gaps, split_data
from tinyspur.constructions.embedding import (
    check_assumption_1,
    embed,
    linear_minimum,
    linear_subnetwork,
    subnetwork,
)
from tinyspur.constructions.equal_risk import equal_risk_point
from tinyspur.constructions.relays import outgoing, rescale
from tinyspur.constructions.split_terms import map_values, output_derivatives, read_weights
from tinyspur.constructions.spurious import find_spurious_minimum, risk_along_bias
from tinyspur.constructions.witnesses import lower_point, perturbed_map, revive
from tinyspur.escapes import kink_escape
from tinyspur.fitting import AssumptionError, fit_affine
from tinyspur.layers import AveragePool, Conv, Dense
from tinyspur.losses import CrossEntropy, SquaredLoss, one_hot
from tinyspur.network import Network
from tinyspur.parameters import Parameters
from tinyspur.samples import TrainingSet

SQUARED, ENTROPY = SquaredLoss(), CrossEntropy()

over_losses = pytest.mark.parametrize("loss", [SQUARED, ENTROPY], ids=["squared", "cross-entropy"])
over_rules = pytest.mark.parametrize("rule", ["steepest", "largest"])
over_devices = pytest.mark.parametrize(
    "where", ["stand-in", pytest.param("cupy", marks=pytest.mark.gpu)]
)
over_seeds = pytest.mark.parametrize("seed", range(3))


def twin_of(theta):
    return torch_twin.Twin(json.dumps(theta.net.spec)).load(theta.arrays())


def network(shape, maps, outputs, kernel=3):
    return Network(shape, [*(Conv(t, kernel) for t in maps), Dense(outputs)])


def targets_for(loss, rng, samples, outputs):
    if loss is SQUARED:
        return rng.normal(size=(samples, outputs))
    return one_hot(rng.integers(0, outputs, samples), outputs, smoothing=0.2)


def random_data(net, loss, samples, seed, low=0.0):
    """Return pixels from `low` to 1 and targets that no affine map fits."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(low, 1, (samples, *net.input_shape))
    return TrainingSet(x, targets_for(loss, rng, samples, net.shapes[-1][0]))


def random_embedding(
    seed,
    loss=SQUARED,
    outputs=3,
    maps=(3, 5, 6),
    shape=(1, 4, 4),
    samples=14,
    variant="repaired",
    quantised=False,
):
    """Return theta, its relays, the data and a random nonlinear subnetwork below the relays.

    `quantised`: small whole numbers, so that values tie exactly and nothing is rounded.
    """
    rng = np.random.default_rng(seed)
    net = network(shape, maps, outputs)
    phi = subnetwork(net).zeros()
    x = rng.normal(size=(samples, *shape))
    phi.vector[:] = rng.normal(size=phi.vector.size)
    if quantised:
        x, phi.vector[:] = np.round(x), np.round(phi.vector)
    below = phi.net.depth - 1
    for t in range(maps[-3]):  # half active: nonlinear, and no map is dead
        z = (phi.W[below] @ layer_input(phi, x, below)).reshape(maps[-3], -1)
        middle = np.quantile(z[t], 0.3 + 0.1 * t)
        phi.b[below][t] = -np.round(middle) if quantised else -middle
    theta, pair = embed(net, phi, x, variant)
    y = targets_for(loss, rng, samples, outputs)
    if quantised:
        # Whole residuals, of which many vanish or cancel: the sums of u over ties often are zero.
        u = rng.integers(-1, 2, (samples, outputs))
        y = net.forward(theta, x) - u
    return theta, pair, TrainingSet(x, y), phi


def layer_input(theta, x, layer):
    """Return what `layer` reads, as columns, by PyTorch."""
    if layer == 1:
        return x.reshape(len(x), -1).T
    z = twin_of(theta).preactivations(x)[layer - 1]
    return torch.relu(z).detach().numpy().T


def close(found, expected, tolerance=1e-12):
    """Whether arrays agree relative to the largest entry."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    assert abs(found - expected).max() <= tolerance * abs(expected).max()


def refuses(error, message):
    """Expect an error whose message is one line that contains `message`."""
    return pytest.raises(error, match=rf"^[^\n]*{re.escape(message)}[^\n]*$")


# theta, linear

LINEAR = {
    "three convolutions": {"shape": (1, 5, 5), "maps": (2, 3, 4)},
    "convolutions below": {"shape": (1, 4, 4), "maps": (3, 4, 5, 6, 6)},
    "colour": {"shape": (3, 8, 8), "maps": (4, 6, 5), "samples": 260},
    "one direction": {"shape": (2, 9), "maps": (3, 4, 5)},
    "filters of size 1": {"shape": (1, 4, 4), "maps": (2, 3, 3), "kernel": 1},
    "filters of size 5": {"shape": (1, 4, 4), "maps": (1, 2, 4, 4), "kernel": 5},
    "negative pixels": {"shape": (2, 3, 3), "maps": (2, 4, 4), "low": -4.0},
    "one output": {"shape": (1, 4, 4), "maps": (1, 3, 3), "outputs": 1},
}
over_linear = pytest.mark.parametrize("case", LINEAR)


def linear_case(case, loss, variant="repaired"):
    """Return theta, its relays, the data and the affine fit."""
    options = dict(LINEAR[case])
    low, samples = options.pop("low", 0.0), options.pop("samples", 70)
    net = network(**{"outputs": 3, **options})
    data = random_data(net, loss, samples, seed=1, low=low)
    if net.shapes[-1] == (1,) and loss is ENTROPY:  # one class would be fitted exactly
        net = network(**{**options, "outputs": 2})
        data = random_data(net, loss, samples, seed=1, low=low)
    fit = fit_affine(data.x.reshape(samples, -1), data.y, loss)
    theta, pair = linear_minimum(net, data, loss, variant)
    return theta, pair, data, fit


@over_linear
@over_losses
@pytest.mark.parametrize("variant", ["repaired", "literal"])
def test_the_linear_minimum_computes_the_affine_fit(case, loss, variant):
    theta, pair, data, fit = linear_case(case, loss, variant)
    affine = data.x.reshape(len(data), -1) @ fit.weights.T + fit.bias
    tolerance = 1e-12 * max(1, abs(fit.weights).sum(axis=1).max())
    assert abs(theta.net.forward(theta, data.x) - affine).max() <= tolerance
    close(theta.net.risk(theta, data, loss), fit.risk)
    assert pair.lower == theta.net.depth - 2
    assert pair.reserved == (0, 1)
    assert theta.vector.dtype == np.float64


@over_linear
@over_losses
def test_the_repaired_linear_minimum_is_certified(case, loss):
    theta, pair, data, _ = linear_case(case, loss)
    assert theta.net.risk(theta, data, loss) > 1e-6
    certificate = certify_cell(theta, data, loss)
    assert certificate.holds
    assert certificate.classes == 1
    assert certificate.margin >= 1 - 1e-12
    found = torch_twin.gradients(twin_of(theta), data.x, data.y, loss.name)
    assert max(abs(values).max() for values in found.values()) < 1e-9
    patterns = theta.net.patterns(theta, data.x)
    for layer in range(1, theta.net.depth):
        P = theta.net.positions(layer)
        relays = {pair.relay_of(m) for m in pair.relayed} if layer >= pair.lower else pair.relayed
        for t in range(theta.net.shapes[layer][0]):
            assert (patterns[layer][:, t * P : (t + 1) * P] == (t in relays)).all()


def test_the_gradient_at_the_literal_point_is_zero_too():
    theta, _, data, _ = linear_case("three convolutions", SQUARED, "literal")
    found = torch_twin.gradients(twin_of(theta), data.x, data.y, "squared")
    assert max(abs(values).max() for values in found.values()) < 1e-12
    certificate = certify_cell(theta, data, SQUARED)
    assert not certificate.holds
    kinks = {(kink.layer, kink.map) for kink in certificate.kinks}
    assert {(2, 0), (2, 1), (3, 0), (3, 1)} <= kinks
    assert certificate.radius == 0


@pytest.mark.parametrize("variant", ["repaired", "literal"])
def test_the_linear_minimum_does_not_depend_on_the_scale_of_the_targets(variant):
    net = network((1, 4, 4), (2, 4, 4), 2)
    data = random_data(net, SQUARED, 60, seed=3)
    small = TrainingSet(data.x, data.y * 2.0**-44)
    risks = [
        net.risk(linear_minimum(net, d, SQUARED, variant)[0], d, SQUARED) for d in (data, small)
    ]
    close(risks[1], risks[0] * 2.0**-88)


# theta, from any subnetwork


@over_seeds
@pytest.mark.parametrize("variant", ["repaired", "literal"])
@pytest.mark.parametrize("maps", [(3, 5, 6), (2, 4, 6, 6), (1, 3, 3)])
@pytest.mark.parametrize("shape", [(1, 4, 4), (2, 7)])
def test_an_embedded_point_has_the_outputs_of_its_subnetwork(seed, variant, maps, shape):
    theta, pair, data, phi = random_embedding(seed, maps=maps, shape=shape, variant=variant)
    expected = twin_of(phi)(data.x).detach().numpy()
    close(theta.net.forward(theta, data.x), expected)
    close(twin_of(theta)(data.x).detach().numpy(), expected)
    assert pair.relayed == tuple(range(maps[-3]))
    below = theta.net.patterns(theta, data.x)[pair.below]
    assert 0.1 < below.mean() < 0.9  # the subnetwork is not linear


@over_seeds
@pytest.mark.parametrize("maps", [(3, 6, 7), (2, 2, 4, 5)])
def test_relays_are_strictly_active_and_the_rest_of_the_pair_is_dead(seed, maps):
    theta, pair, data, _ = random_embedding(seed, maps=maps)
    before = twin_of(theta).preactivations(data.x)
    relays = {pair.relay_of(m) for m in pair.relayed}
    assert not relays & set(pair.reserved)
    for layer in (pair.lower, pair.upper):
        z = before[layer].detach().numpy().reshape(len(data), theta.net.shapes[layer][0], -1)
        for t in range(z.shape[1]):
            assert (z[:, t] >= 0.5).all() if t in relays else (z[:, t] <= -0.5).all()


def test_a_dead_map_of_the_subnetwork_needs_no_relay():
    theta, pair, data, phi = random_embedding(0, maps=(3, 6, 6))
    net = network((1, 4, 4), (3, 4, 4), 3)
    with refuses(AssumptionError, "too few maps"):
        embed(net, phi, data.x)
    phi.b[1][1] = -1e3
    theta, pair = embed(net, phi, data.x)
    assert pair.relayed == (0, 2)
    assert [pair.relay_of(m) for m in pair.relayed] == [2, 3]
    close(net.forward(theta, data.x), phi.net.forward(phi, data.x))
    with refuses(ValueError, "map 1 of layer 1 is not relayed; expected one of (0, 2)"):
        pair.relay_of(1)
    with refuses(ValueError, "map 1 of layer 1 is not relayed"):
        split_data(theta, pair, data, SQUARED, map=1)


# The data split


def slopes_by_hand(v, w, u):
    """Return the values, and S = (1/N) sum_j w^j sum_{i: v_i^j > eta} u_i for each gap."""
    values = sorted(set(v.ravel().tolist()))
    slopes = []
    for low, high in itertools.pairwise(values):
        eta, total = (low + high) / 2, 0.0
        for j in range(v.shape[0]):
            for i in range(v.shape[1]):
                if v[j, i] > eta:
                    total += w[j] * u[i]
        slopes.append(total / v.shape[1])
    return values, slopes


def by_hand(theta, pair, data, loss, m, k):
    """Return v (P, N), w (P,) and u (N,) from PyTorch."""
    P, N = theta.net.positions(pair.below), len(data)
    z = twin_of(theta).preactivations(data.x)[pair.below].detach().numpy()
    v = z.reshape(N, -1, P)[:, m].T - theta.b[pair.below][m]
    r = pair.relay_of(m)
    w = theta.W[pair.dense].weights[k, r * P : (r + 1) * P]
    outputs = twin_of(theta)(data.x).detach().requires_grad_()
    risk = N * torch_twin.risk(outputs, data.y, loss.name)
    (u,) = torch.autograd.grad(risk, outputs)
    return v, w, u.numpy()[:, k]


@over_losses
def test_values_weights_and_derivatives_are_those_of_pytorch(loss):
    theta, pair, data, _ = random_embedding(0, loss, maps=(2, 3, 5, 6))
    u = output_derivatives(theta, data, loss)
    for m in pair.relayed:
        for k in range(3):
            v, w, derivative = by_hand(theta, pair, data, loss, m, k)
            close(map_values(theta, pair, m, data.x), v)
            close(read_weights(theta, pair, m)[k], w)
            close(u[k], derivative)


@over_losses
@over_rules
@over_seeds
@pytest.mark.parametrize("quantised", [False, True], ids=["generic", "ties"])
def test_the_split_of_a_given_map_and_output_is_what_it_says(loss, rule, seed, quantised):
    loss = SQUARED if quantised else loss
    theta, pair, data, _ = random_embedding(seed, loss, quantised=quantised)
    for m in pair.relayed:
        for k in range(3):
            v, w, u = by_hand(theta, pair, data, loss, m, k)
            split = split_data(theta, pair, data, loss, rule, map=m, output=k)
            assert (split.layer, split.map, split.output) == (pair.below, m, k)
            low, high = split.gap
            assert low < split.threshold < high
            assert split.threshold == (low + high) / 2
            assert not ((v > low + 1e-9) & (v < high - 1e-9)).any()
            assert min(abs(v - low).min(), abs(v - high).min()) < 1e-12
            assert abs(split.lowest - v.min()) < 1e-12
            values, slopes = slopes_by_hand(np.round(v, 10), w, u)
            gap = np.searchsorted(values, split.threshold) - 1
            assert abs(split.slope - slopes[gap]) < 1e-12 * abs(np.outer(w, u)).sum()
            above = v[split.location] > split.threshold
            assert split.above == above.sum()
            assert split.above + split.below == len(data)
            assert abs(split.partial_sum - u[above].sum()) < 1e-12
            assert abs(w[split.location] * split.partial_sum) > 0
            if rule == "steepest":
                assert abs(split.slope) >= max(map(abs, slopes)) * (1 - 1e-9)


@over_rules
@over_seeds
@pytest.mark.parametrize("quantised", [False, True], ids=["generic", "ties"])
def test_the_best_split_over_maps_and_outputs_is_taken(rule, seed, quantised):
    theta, pair, data, _ = random_embedding(seed, quantised=quantised)
    each = [
        split_data(theta, pair, data, SQUARED, rule, map=m, output=k)
        for m in pair.relayed
        for k in range(3)
    ]
    best = split_data(theta, pair, data, SQUARED, rule)
    assert best in each
    if rule == "steepest":
        assert abs(best.slope) == max(abs(split.slope) for split in each)
    else:
        assert best.threshold == max(split.threshold for split in each)
    for k in range(3):
        assert split_data(theta, pair, data, SQUARED, rule, output=k).output == k


def first_groups(v, u):
    """Return for each location the first value, from the top, whose samples' sum of u is not 0."""
    found = []
    for row in v:
        starts = [
            value
            for value in sorted(set(row.tolist()), reverse=True)
            if abs(u[row == value].sum()) > 1e-9
        ]
        found.append(starts[0] if starts else -np.inf)
    return np.array(found)


VALUES = {
    "all different": lambda rng, shape: rng.normal(size=shape),
    "few": lambda rng, shape: rng.integers(0, 4, shape) / 3,
    "many zeros": lambda rng, shape: rng.normal(size=shape) * (rng.random(shape) < 0.3),
    "of many sizes": lambda rng, shape: np.exp(10 * rng.normal(size=shape)),
    "almost ties": lambda rng, shape: rng.integers(0, 9, shape) + 1e-12 * rng.random(shape),
    "constant": lambda rng, shape: np.full(shape, -1.5),
    "tiny": lambda rng, shape: 1e-310 * rng.integers(-3, 4, shape),
}


SHAPES = [(1, 1), (1, 2), (2, 1), (1, 60), (60, 1), (3, 150), (150, 3)]


def gaps_by_definition(v, w, u):
    """Return low, high and S for each gap between neighbours of the sorted values."""
    pairs = itertools.pairwise(np.unique(v))
    wide = [(low, high) for low, high in pairs if high - low > split_terms.tie_of(v)]
    return [(low, high, w @ (v >= high) @ u / v.shape[1]) for low, high in wide]


@pytest.mark.parametrize("bins", [2, 7, steepest_gap.BINS])
@pytest.mark.parametrize("values", VALUES)
def test_the_steepest_gap_is_the_one_that_a_search_of_all_gaps_finds(values, bins, monkeypatch):
    monkeypatch.setattr(steepest_gap, "BINS", bins)
    monkeypatch.setattr(steepest_gap, "BLOCK", 100)
    rng = np.random.default_rng(0)
    for shape in [*SHAPES, *rng.integers(1, 40, (30, 2))]:
        v = VALUES[values](rng, tuple(shape))
        w = rng.normal(size=(2, len(v))) * (rng.random((2, len(v))) < 0.8)
        u = rng.normal(size=(2, v.shape[1]))
        u -= u.mean(axis=1, keepdims=True)
        found = list(steepest_gap.steepest_gaps(v, w, u, np.full(2, 1e-13)))
        for w_k, u_k, gap in zip(w, u, found, strict=True):
            every = gaps_by_definition(v, w_k, u_k)
            steepest = max((abs(S) for *_, S in every), default=0)
            if steepest <= 1e-12:
                assert gap is None or abs(gap[2]) <= 1e-12
                continue
            low, high, slope = gap
            (there,) = (S for *ends, S in every if ends == [low, high])
            assert abs(slope) == pytest.approx(steepest, rel=1e-9)
            assert slope == pytest.approx(there, rel=1e-9)


whole = st.integers(-3, 3).map(float)


@settings(max_examples=300, deadline=None)
@given(st.data(), st.integers(1, 6), st.integers(1, 6), st.sampled_from([1, 2, 5, 2**14]))
def test_of_whole_numbers_the_steepest_gap_is_found_without_rounding(data, P, N, bins):
    """Most of them tie, sums cancel, and an |S| that equals the noise counts as zero."""
    v, w, u = (
        data.draw(arrays(float, shape, elements=whole)) for shape in [(P, N), (1, P), (1, N)]
    )
    noise = data.draw(st.integers(0, 4)) / N
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steepest_gap, "BINS", bins)
        (gap,) = steepest_gap.steepest_gaps(v, w, u, np.array([noise]))
    every = gaps_by_definition(v, w[0], u[0])
    steepest = max((abs(S) for *_, S in every), default=0)
    assert (gap is None) == (steepest <= noise)
    if gap is not None:
        assert gap in every
        assert abs(gap[2]) == steepest


def test_ties_that_lie_in_two_bins_are_no_gap_although_s_is_largest_between_them(monkeypatch):
    monkeypatch.setattr(steepest_gap, "BINS", 17)  # 0, 1, ..., 16 are where bins begin
    rng = np.random.default_rng(0)
    for _ in range(200):
        pairs = rng.permutation(np.arange(1, 16))[: rng.integers(1, 4)].astype(float)
        alone = np.setdiff1d(np.append(rng.integers(0, 17, rng.integers(0, 12)), [0, 16]), pairs)
        v = np.concatenate([alone, pairs - 1e-9, pairs + 1e-9])[None]
        far = rng.integers(50, 100, len(pairs))
        small = rng.integers(-3, 4, v.size - len(pairs)).astype(float)
        u = np.concatenate([small[: len(alone)], -far, far + small[len(alone) :]])
        (gap,) = steepest_gap.steepest_gaps(v, np.ones((1, 1)), u[None], np.zeros(1))
        every = gaps_by_definition(v, np.ones(1), u)
        steepest = max(abs(S) for *_, S in every)
        assert (gap is None) == (steepest == 0)
        if gap is not None:
            assert gap in every
            assert abs(gap[2]) == steepest


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("quantised", [False, True], ids=["generic", "ties"])
def test_the_largest_threshold_is_that_of_the_lemma(seed, quantised):
    theta, pair, data, _ = random_embedding(seed, quantised=quantised)
    for m in pair.relayed:
        for k in range(3):
            v, w, u = by_hand(theta, pair, data, SQUARED, m, k)
            v = np.round(v, 10)
            starts = np.where(w != 0, first_groups(v, u), -np.inf)
            highest = starts.max()
            split = split_data(theta, pair, data, SQUARED, "largest", map=m, output=k)
            tied = np.flatnonzero(starts == highest)
            group = [(v[j] == highest) for j in tied]
            slope = sum(w[j] * u[s].sum() for j, s in zip(tied, group, strict=True)) / len(data)
            if abs(slope) < 1e-9:  # the ties at v* cancel: the next value has to do
                assert split.gap[1] < highest
                continue
            smaller = v[v < highest].max()
            assert abs(split.gap[1] - highest) < 1e-9
            assert abs(split.gap[0] - smaller) < 1e-9
            assert split.location in tied
            assert abs(split.slope - slope) < 1e-12 * abs(np.outer(w, u)).sum()
            # (8): at every other location the samples above eta add up to nothing.
            for j in np.flatnonzero(w != 0):
                total = u[v[j] > split.threshold].sum()
                assert (abs(total) > 1e-9) == (j in tied)


@pytest.mark.parametrize("seed", range(30))
def test_the_largest_threshold_is_the_one_that_a_search_of_all_values_finds(seed):
    """Among locations without weight, values that tie up to rounding, and u that cancel."""
    rng = np.random.default_rng(seed)
    v = rng.integers(0, 5, size=(4, 12)) + 1e-12 * rng.standard_normal((4, 12))
    w = rng.integers(-1, 2, size=(3, 4)).astype(float)
    u = rng.integers(-1, 2, size=(3, 12)).astype(float)
    found = list(largest_gaps(v, w, u, np.full(3, 1e-13)))
    level = np.round(v)
    for w_k, u_k, gap in zip(w, u, found, strict=True):
        firsts = set()
        for j in np.flatnonzero(w_k):  # the first value of each location with a sum of u
            for high in sorted(set(level[j]), reverse=True):
                if u_k[level[j] >= high].sum():
                    firsts.add(high)
                    break
        expected = None
        for high in sorted(firsts, reverse=True):
            slope = w_k @ (level >= high) @ u_k / 12
            if slope and (level < high).any():
                expected = level[level < high].max(), high, slope
                break
        if expected is None:
            assert gap is None
        else:
            low, high, slope = gap
            assert (round(low), round(high)) == expected[:2]
            assert slope == pytest.approx(expected[2], abs=1e-12)


def test_groups_without_a_sum_are_passed_over():
    """The top values belong to samples whose u vanishes or cancels."""
    theta, pair, data, _ = random_embedding(1, outputs=1, maps=(1, 3, 3))
    v, w, _ = by_hand(theta, pair, data, SQUARED, 0, 0)
    order = np.argsort(-v.max(axis=0))
    u = np.linspace(1, 2, len(data))
    u[order[:4]] = 0
    data = TrainingSet(data.x, theta.net.forward(theta, data.x) - u[:, None])
    split = split_data(theta, pair, data, SQUARED, "largest")
    expected = v[:, order[4:]].max()
    assert abs(split.gap[1] - expected) < 1e-12
    assert split.above < len(data)
    assert abs(split.slope) == pytest.approx(
        abs(w[split.location] * split.partial_sum) / len(data), rel=1e-9
    )


def test_no_split_exists_where_nothing_is_left_to_fit():
    theta, pair, data, _ = random_embedding(0, quantised=True)
    data = TrainingSet(data.x, theta.net.forward(theta, data.x))
    for rule in ("steepest", "largest"):
        with refuses(AssumptionError, "S(eta) vanishes, up to rounding, for every threshold"):
            split_data(theta, pair, data, SQUARED, rule)


# theta'


def all_splits(theta, pair, data, loss, m, k, width):
    """Yield a split for each gap of map m that is wider than `width` of the range."""
    v, w, u = by_hand(theta, pair, data, loss, m, k)
    values = np.unique(v)
    some = split_data(theta, pair, data, loss)
    for low, high in itertools.pairwise(values):
        if high - low <= width * (values[-1] - values[0]):
            continue
        eta = (low + high) / 2
        above = v[0] > eta
        yield replace(
            some,
            map=m,
            output=k,
            location=0,
            threshold=eta,
            gap=(low, high),
            lowest=values[0],
            slope=(w * ((v > eta) @ u)).sum() / len(data),
            above=int(above.sum()),
            below=int((~above).sum()),
            partial_sum=u[above].sum(),
        )


def moved(theta, layer, target, step):
    point = theta.copy()
    point.b[layer][target] += step
    return point


@over_losses
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("maps", [(3, 5, 6), (2, 2, 4, 5)])
def test_theta_prime_keeps_every_output_and_has_the_slope_of_the_split(loss, seed, maps):
    theta, pair, data, _ = random_embedding(seed, loss, maps=maps)
    outputs, risk = theta.net.forward(theta, data.x), theta.net.risk(theta, data, loss)
    cases = {True: 0, False: 0}
    for m in pair.relayed:
        b = theta.b[pair.below][m]
        for k in range(3):
            for split in all_splits(theta, pair, data, loss, m, k, width=4e-3):
                prime = equal_risk_point(theta, pair, split)
                close(theta.net.forward(prime, data.x), outputs)
                close(theta.net.risk(prime, data, loss), risk)
                target = perturbed_map(theta, pair, split)
                assert target == pair.reserved[1 if split.threshold >= -b else 0]
                h = min(1e-4, 0.25 * (split.gap[1] - split.gap[0]))
                up, down = (
                    theta.net.risk(moved(prime, pair.lower, target, s), data, loss) for s in (h, -h)
                )
                rounding = 1e-14 * risk / h
                assert (
                    abs((up - down) / (2 * h) - split.slope) <= 1e-5 * abs(split.slope) + rounding
                )
                cases[bool(split.threshold >= -b)] += 1
    assert min(cases.values()) >= 20


@over_seeds
def test_theta_prime_is_equal_for_every_gap_between_tied_values(seed):
    theta, pair, data, _ = random_embedding(seed, quantised=True)
    outputs = theta.net.forward(theta, data.x)
    cases = set()
    for m in pair.relayed:
        for split in all_splits(theta, pair, data, SQUARED, m, 1, width=1e-6):
            prime = equal_risk_point(theta, pair, split)
            assert np.array_equal(theta.net.forward(prime, data.x), outputs)
            cases.add(bool(split.threshold >= -theta.b[pair.below][m]))
    assert cases == {True, False}


@over_seeds
def test_theta_prime_changes_only_what_the_lemma_names(seed):
    theta, pair, data, _ = random_embedding(seed, maps=(2, 2, 5, 5))
    split = split_data(theta, pair, data, SQUARED)
    before = theta.vector.copy()
    prime = equal_risk_point(theta, pair, split)
    assert np.array_equal(theta.vector, before)
    for layer in range(1, pair.below):
        assert np.array_equal(prime.W[layer].weights, theta.W[layer].weights)
        assert np.array_equal(prime.b[layer], theta.b[layer])
    assert np.array_equal(prime.W[pair.below].weights, theta.W[pair.below].weights)
    P = theta.net.positions(pair.upper)
    changed = (prime.W[pair.dense].weights != theta.W[pair.dense].weights).any(axis=1)
    assert changed.tolist() == [k == split.output for k in range(3)]
    r = pair.relay_of(split.map)
    free = [t for t in range(5) if t not in (*pair.reserved, r)]
    for layer in (pair.lower, pair.upper):
        assert np.array_equal(prime.W[layer].weights[free], theta.W[layer].weights[free])
        assert np.array_equal(prime.b[layer][free], theta.b[layer][free])
    for t in free:
        block = slice(t * P, (t + 1) * P)
        assert np.array_equal(
            prime.W[pair.dense].weights[:, block], theta.W[pair.dense].weights[:, block]
        )


@over_seeds
def test_the_literal_theta_prime_keeps_the_risk_with_one_output(seed):
    options = {"outputs": 1, "maps": (3, 5, 6), "variant": "literal"}
    theta, pair, data, _ = random_embedding(seed, **options)
    outputs = theta.net.forward(theta, data.x)
    cases = {True: 0, False: 0}
    for m in pair.relayed:
        for split in all_splits(theta, pair, data, SQUARED, m, 0, width=4e-3):
            prime = equal_risk_point(theta, pair, split, "literal")
            close(theta.net.forward(prime, data.x), outputs)
            case = bool(split.threshold >= -theta.b[pair.below][m])
            target = perturbed_map(theta, pair, split)
            h = 0.25 * (split.gap[1] - split.gap[0])
            up, down = (
                theta.net.risk(moved(prime, pair.lower, target, s), data, SQUARED) for s in (h, -h)
            )
            assert (up - down) / (2 * h) == pytest.approx(split.slope, rel=1e-5, abs=1e-10)
            cases[case] += 1
    assert min(cases.values()) >= 10


@over_seeds
def test_the_literal_theta_prime_changes_the_other_outputs_where_a_bias_was_raised(seed):
    """E6: it keeps the risk with several outputs only where eta < -b or no bias was raised."""
    theta, pair, data, phi = random_embedding(seed, variant="literal")
    repaired, relays = embed(theta.net, phi, data.x)
    risk, outputs = theta.net.risk(theta, data, SQUARED), theta.net.forward(theta, data.x)
    close(repaired.net.risk(repaired, data, SQUARED), risk)
    seen = set()
    for m in pair.relayed:
        b = theta.b[pair.below][m]
        for k in range(3):
            for split in all_splits(theta, pair, data, SQUARED, m, k, width=4e-3):
                prime = equal_risk_point(theta, pair, split, "literal")
                found = theta.net.forward(prime, data.x)
                close(found[:, k], outputs[:, k])
                kept = abs(found - outputs).max() < 1e-12 * abs(outputs).max()
                assert kept == (split.threshold < -b)
                if not kept:
                    assert abs(theta.net.risk(prime, data, SQUARED) - risk) > 1e-3 * risk
                other = equal_risk_point(repaired, relays, split)
                close(theta.net.forward(other, data.x), outputs)
                seen.add(kept)
    assert seen == {True, False}


def test_the_literal_theta_prime_keeps_every_output_where_no_bias_is_raised():
    theta, pair, data, _ = random_embedding(2, variant="literal")
    theta.b[pair.below][:] = 50
    outputs = theta.net.forward(theta, data.x)
    for m in pair.relayed:
        for split in all_splits(theta, pair, data, SQUARED, m, 0, width=4e-3):
            prime = equal_risk_point(theta, pair, split, "literal")
            close(theta.net.forward(prime, data.x), outputs)


# The lower point


@over_losses
@over_rules
@over_seeds
@pytest.mark.parametrize("kind", ["linear", "nonlinear"])
def test_the_lower_point_is_strictly_lower(loss, rule, seed, kind):
    if kind == "linear":
        net = network((1, 4, 4), (2, 4, 4), 3)
        data = random_data(net, loss, 50, seed)
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


@over_losses
def test_the_risk_along_the_bias_passes_through_theta_prime(loss):
    net = network((1, 4, 4), (2, 4, 4), 3)
    data = random_data(net, loss, 50, seed=0)
    theta, pair = linear_minimum(net, data, loss)
    found = find_spurious_minimum(theta, pair, data, loss)
    seen = []
    steps, risks = risk_along_bias(
        found, data, loss, points=9, width=2.0, progress=lambda s: seen.append(len(s)) or s
    )
    assert seen == [9] and len(risks) == 9
    assert steps[4] == 0
    assert risks[4] == found.theta_prime_risk
    reach = found.split.gap[1] - found.split.gap[0]
    assert steps[-1] == -steps[0] == pytest.approx(reach, rel=1e-12)
    for step, risk in zip(steps, risks, strict=True):
        point = moved(found.theta_prime, found.lower.layer, found.lower.map, step)
        close(risk, torch_twin.risk(twin_of(point)(data.x), data.y, loss.name).item())
    assert np.sign(risks[5] - risks[3]) == np.sign(found.split.slope)


# Shorter witnesses


@over_losses
@pytest.mark.parametrize("layer", ["below", "lower", "upper"])
def test_reviving_a_dead_map_lowers_the_risk(loss, layer):
    net = network((1, 4, 4), (2, 4, 4), 3)
    data = random_data(net, loss, 60, seed=1)
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


@over_losses
@over_seeds
def test_the_literal_point_is_a_saddle(loss, seed):
    net = network((1, 4, 4), (2, 4, 4), 3)
    data = random_data(net, loss, 60, seed)
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


@over_losses
@over_seeds
def test_the_same_move_does_not_lower_the_risk_at_the_repaired_point(loss, seed):
    net = network((1, 4, 4), (2, 4, 4), 3)
    data = random_data(net, loss, 60, seed)
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


# Rescaling


RESCALED = [
    Network((1, 4, 4), [Conv(2), AveragePool(2), Conv(3, 1), Dense(4), Dense(2)], ReLU(0.1)),
    Network((2, 6), [Conv(3), Conv(2), AveragePool(3), Dense(2)]),
    Network((1, 4, 4), [Conv(2), AveragePool(2), AveragePool(2), Dense(3), Dense(1)]),
]


@pytest.mark.parametrize("net", RESCALED, ids=repr)
@pytest.mark.parametrize("factor", [1e-3, 3.0])
def test_rescaling_keeps_every_output(net, factor):
    rng = np.random.default_rng(0)
    theta = Parameters(net, rng.normal(size=net.size))
    x = rng.normal(size=(7, *net.input_shape))
    before, outputs = theta.vector.copy(), net.forward(theta, x)
    for layer in net.active_layers:
        for target in (None, *range(theta.W[layer].maps_out)):
            point = rescale(theta, layer, factor, target)
            close(net.forward(point, x), outputs)
            chosen = slice(None) if target is None else target
            close(point.W[layer].weights[chosen], factor * theta.W[layer].weights[chosen], 1e-15)
            close(point.b[layer][chosen], factor * theta.b[layer][chosen], 1e-15)
            others = [t for t in range(theta.W[layer].maps_out) if target not in (None, t)]
            assert np.array_equal(point.W[layer].weights[others], theta.W[layer].weights[others])
            # What reads the layer is divided; the other way round gives theta back.
            close(rescale(point, layer, 1 / factor, target).vector, theta.vector, 1e-14)
            close(
                outgoing(point, layer, target or 0)[0],
                outgoing(theta, layer, target or 0)[0] / factor,
                1e-14,
            )
    assert np.array_equal(theta.vector, before)


def test_rescaling_a_spurious_minimum_gives_another():
    theta, pair, data, _ = linear_case("three convolutions", SQUARED)
    risk = theta.net.risk(theta, data, SQUARED)
    for layer in theta.net.active_layers:
        other = rescale(theta, layer, 5.0)
        assert certify_cell(other, data, SQUARED).holds
        close(other.net.risk(other, data, SQUARED), risk)
        assert revive(other, data, SQUARED, pair.upper, 0).decrease > 0


@pytest.mark.parametrize("factor", [0, -1.0, np.nan, np.inf])
def test_rescaling_needs_a_positive_factor(factor):
    theta = RESCALED[0].zeros()
    with refuses(ValueError, f"rescale: expected a finite factor > 0, got {factor}"):
        rescale(theta, 1, factor)


@pytest.mark.parametrize("layer", [0, 2, 5, 6])
def test_rescaling_needs_a_layer_with_an_activation(layer):
    with refuses(ValueError, f"rescale: expected a layer in (1, 3, 4), got {layer}"):
        rescale(RESCALED[0].zeros(), layer, 2.0)


# The whole construction


def small_problem(loss, seed=0, outputs=3, variant="repaired"):
    net = network((1, 4, 4), (2, 4, 4), outputs)
    data = random_data(net, loss, 50, seed)
    theta, pair = linear_minimum(net, data, loss, variant)
    return theta, pair, data


@over_losses
@over_rules
@over_seeds
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


@over_losses
@over_seeds
def test_the_literal_point_is_not_a_local_minimum(loss, seed):
    theta, pair, data = small_problem(loss, seed, variant="literal")
    found = find_spurious_minimum(theta, pair, data, loss, variant="literal", seed=seed)
    assert found.verdict.startswith("not a local minimum")
    assert found.escape.decrease > 0
    assert str(found.escape) in str(found)


def test_the_verdict_needs_both_a_certificate_and_a_lower_point():
    theta, pair, data = small_problem(SQUARED)
    found = find_spurious_minimum(theta, pair, data, SQUARED)
    uncertified = replace(found, certificate=replace(found.certificate, holds=False))
    assert uncertified.verdict.startswith("not certified")
    for decrease in (0.0, -1e-3, 1e-15 * found.risk):
        level = replace(found, lower=replace(found.lower, decrease=decrease))
        assert level.verdict == "local minimum, not shown to be spurious"
        neither = replace(level, certificate=uncertified.certificate)
        assert neither.verdict.startswith("not certified")
    literal, pair, data = small_problem(SQUARED, variant="literal")
    refuted = find_spurious_minimum(literal, pair, data, SQUARED, variant="literal")
    assert replace(refuted, escape=None).verdict.startswith("not certified")
    risen = replace(refuted, escape=replace(refuted.escape, decrease=-1.0))
    assert risen.verdict.startswith("not certified")


def test_an_arbitrary_subnetwork_is_not_called_a_minimum():
    theta, pair, data, _ = random_embedding(0)
    found = find_spurious_minimum(theta, pair, data, SQUARED)
    assert found.lower.decrease > 0
    assert not found.certificate.holds
    assert found.verdict.startswith("not certified")


def test_the_output_of_the_split_can_be_chosen():
    theta, pair, data = small_problem(SQUARED)
    for k in range(3):
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


@over_losses
@over_rules
@pytest.mark.parametrize("variant", ["repaired", "literal"])
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


@over_losses
@pytest.mark.parametrize("convolutions", [3, 6])
def test_a_risk_on_the_way_takes_the_same_transfers_at_any_depth(loss, convolutions):
    net = network((1, 4, 4), (4,) * convolutions, 3)
    data = random_data(net, loss, 50, seed=0)
    theta, pair = linear_minimum(net, data, loss)
    found = find_spurious_minimum(theta.to(strict_device), pair, data, loss)
    for point in (found.theta, found.theta_prime, found.lower.theta):
        with strict_device.transfers() as count:
            net.risk(point, data, loss)
        assert (count.to_device, count.to_host) == (2, 2 if loss is ENTROPY else 1)


@over_devices
def test_a_subnetwork_on_a_device_is_embedded_there(where):
    xp = strict_device if where == "stand-in" else select("cupy").xp
    theta, pair, data, phi = random_embedding(0)
    found, relays = embed(theta.net, phi.to(xp), data.x)
    assert relays == pair
    assert np.array_equal(found.vector.get(), theta.vector)


# Errors


@pytest.mark.parametrize("variant", ["repaired", "literal"])
@pytest.mark.parametrize(
    ("maps", "named"),
    [
        ((1, 4, 5, 5), "layer 1 has 1"),
        ((3, 1, 5, 5), "layer 2 has 1"),
        ((3, 3, 3, 5), "layer 3 has 3, expected at least 4"),
        ((3, 3, 5, 3), "layer 4 has 3, expected at least 4"),
        ((2, 2, 2, 2), "layer 3 has 2, expected at least 3"),
        ((2, 2, 1, 1), "layer 3 has 1, expected at least 3"),
    ],
)
def test_too_few_maps_are_named(maps, named, variant):
    net = network((2, 3, 3), maps, 2)
    data = random_data(net, SQUARED, 40, seed=0)
    with refuses(AssumptionError, "too few maps: " + named):
        linear_minimum(net, data, SQUARED, variant)


@over_losses
def test_one_sample_is_not_enough(loss):
    net = network((1, 3, 3), (1, 3, 3), 2)
    data = random_data(net, loss, 1, seed=0)
    with refuses(AssumptionError, "Assumption 1 needs at least two samples, got 1"):
        linear_minimum(net, data, loss)


@pytest.mark.parametrize("budget", [1, 2**26])
def test_identical_samples_are_named(budget):
    net = Network((1, 3, 3), [Conv(1), Conv(3), Conv(3), Dense(2)], memory_budget=budget)
    data = random_data(net, SQUARED, 30, seed=0)
    theta, _ = linear_minimum(net, data, SQUARED)
    check_assumption_1(theta, data.x)
    data.x[17] = data.x[4]
    theta, pair = linear_minimum(net, data, SQUARED)
    message = "Assumption 1 fails: samples 4 and 17 have identical features at layer 3"
    with refuses(AssumptionError, message):
        check_assumption_1(theta, data.x)
    with refuses(AssumptionError, message):
        find_spurious_minimum(theta, pair, data, SQUARED)


def test_samples_that_differ_where_the_network_is_blind_are_named():
    """Distinct images whose features are the same: only the centre tap of the relays is read."""
    theta, _, data, phi = random_embedding(0)
    x = np.abs(data.x)
    phi.W[1].weights[...] = np.abs(phi.W[1].weights)
    phi.b[1][:] = 0
    x[3], x[9] = -1.0, -2.0
    theta, _ = embed(theta.net, phi, x)
    with refuses(AssumptionError, "samples 3 and 9 have identical features"):
        check_assumption_1(theta, x)


def test_data_that_an_affine_map_fits_exactly_are_refused():
    net = network((1, 3, 3), (1, 3, 3), 2)
    few = random_data(net, SQUARED, 10, seed=0)
    with refuses(AssumptionError, "an affine map fits all 10 samples exactly"):
        linear_minimum(net, few, SQUARED)
    data = random_data(net, SQUARED, 11, seed=0)
    assert linear_minimum(net, data, SQUARED)[0].net == net
    rng = np.random.default_rng(0)
    affine = data.x.reshape(11, 9) @ rng.normal(size=(9, 2)) + 3
    with refuses(AssumptionError, "an affine map fits all 11 samples exactly"):
        linear_minimum(net, TrainingSet(data.x, affine), SQUARED)


def test_separable_classes_are_refused():
    net = network((1, 3, 3), (1, 3, 3), 2)
    data = random_data(net, SQUARED, 30, seed=0)
    labels = (data.x.reshape(30, 9)[:, 2] > 0.5).astype(int)
    with refuses(AssumptionError, "softmax regression has no minimiser"):
        linear_minimum(net, TrainingSet(data.x, one_hot(labels, 2)), ENTROPY)


@pytest.mark.parametrize("output", [-1, 3])
def test_an_output_that_does_not_exist_is_refused(output):
    theta, pair, data = small_problem(SQUARED)
    with refuses(ValueError, f"output unit: expected 0..2, got {output}"):
        split_data(theta, pair, data, SQUARED, output=output)
    with refuses(ValueError, f"output unit: expected 0..2, got {output}"):
        find_spurious_minimum(theta, pair, data, SQUARED, output=output)


def test_unknown_names_are_refused():
    theta, pair, data = small_problem(SQUARED)
    with refuses(ValueError, "split: expected one of ('steepest', 'largest'), got 'best'"):
        split_data(theta, pair, data, SQUARED, "best")
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


@pytest.mark.parametrize("m", [1, -1, 7])
def test_a_split_needs_a_map_that_is_relayed(m):
    theta, pair, data = small_problem(SQUARED)
    with refuses(ValueError, f"map {m} of layer 1 is not relayed; expected one of (0,)"):
        split_data(theta, pair, data, SQUARED, map=m)


@pytest.mark.parametrize(
    ("layers", "named"),
    [
        ([Conv(3), Dense(2)], "two consecutive convolutions, got Network(1x3x3 -> 3x3x3 -> 2"),
        (
            [Conv(3), AveragePool(3), Conv(3), Dense(2)],
            "two consecutive convolutions, got Network(",
        ),
        ([Dense(3), Dense(2)], "two consecutive convolutions, got Network(1x3x3 -> 3 -> 2"),
        ([AveragePool(3), Dense(2)], "two consecutive convolutions, got Network("),
        ([Conv(3), Conv(3), Conv(3), Conv(2)], "a dense layer at the end, got Conv(maps=2"),
        ([Conv(3), Conv(3), AveragePool(3)], "a dense layer at the end, got AveragePool(size=3)"),
    ],
)
def test_networks_of_another_kind_are_refused(layers, named):
    net = Network((1, 3, 3), layers)
    with refuses(ValueError, "construction: expected " + named):
        subnetwork(net)
    data = random_data(Network((1, 3, 3), [Dense(2)]), SQUARED, 30, seed=0)
    with refuses(ValueError, "construction: expected " + named):
        linear_minimum(net, data, SQUARED)
    with refuses(ValueError, "construction: expected " + named):
        embed(net, Network((1, 3, 3), [Dense(2)]).zeros(), data.x)


def test_other_activations_are_refused():
    layers = [Conv(3), Conv(3), Conv(3), Dense(2)]
    data = random_data(Network((1, 4, 4), [Dense(2)]), SQUARED, 40, seed=0)
    for below in ([], [AveragePool(2)]):
        net = Network((1, 4, 4), [*below, *layers], ReLU(0.01))
        with refuses(ValueError, "construction: expected ReLU, got ReLU(slope=0.01)"):
            subnetwork(net)
        with refuses(ValueError, "construction: expected ReLU, got ReLU(slope=0.01)"):
            linear_minimum(net, data, SQUARED)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_pixels_that_are_not_finite_are_refused(value):
    data = random_data(network((1, 3, 3), (1, 3, 3), 2), SQUARED, 20, seed=0)
    x = data.x.copy()
    x[6, 0, 1, 1] = value
    with refuses(ValueError, "x has NaN or infinite values in 1 of 20 samples, the first is"):
        TrainingSet(x, data.y)


def test_targets_of_another_width_are_refused():
    net = network((1, 3, 3), (1, 3, 3), 2)
    theta, pair = linear_minimum(net, random_data(net, SQUARED, 30, seed=0), SQUARED)
    data = random_data(network((1, 3, 3), (1, 3, 3), 3), SQUARED, 30, seed=0)
    with refuses(ValueError, "targets: expected (N, 2), got (30, 3)"):
        find_spurious_minimum(theta, pair, data, SQUARED)


def test_a_split_is_listed_for_reports():
    theta, pair, data = small_problem(SQUARED)
    split = split_data(theta, pair, data, SQUARED)
    assert isinstance(split, DataSplit)
    listed = split.as_dict()
    assert listed["threshold"] == split.threshold
    assert json.loads(json.dumps(listed)) == listed


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
