"""Max-min lattices are the functions they stand for; their weights are seldom stationary."""

import itertools

import numpy as np
import pytest
from shared import (
    SQUARED,
    in_turn,
    outputs_of,
    random_direction,
    random_set,
    twin_gradient,
    twin_of,
)

from tinyspur.certificates import certify_cell
from tinyspur.constructions.lattices import (
    Lattice,
    connected_pieces,
    lattice_network,
    lattices_of,
    smallest_cases,
)
from tinyspur.constructions.piecewise_linear import Groups, fit_groups, gated_minimum
from tinyspur.datasets.samples import TrainingSet
from tinyspur.engine.losses import AbsoluteLoss
from tinyspur.engine.network import Network
from tinyspur.errors import AssumptionError
from tinyspur.fitting.affine import fit_affine
from tinyspur.layers import Dense


def random_fit(seed, dimensions=1, outputs=1, groups=3, samples=40):
    """Return random data and least squares fits of groups of equal size."""
    data = random_set((1, dimensions), samples, outputs, seed=seed)
    direction = random_direction((1, dimensions), seed)
    return data, fit_groups(data, Groups.equal(data.x, direction, groups), SQUARED)


def group_maps(data, labels):
    """Return the affine maps (K, d_x + 1, d_y) of least squares, without the package."""
    hats = np.c_[data.x.reshape(len(data.x), -1), np.ones(len(data.x))]
    return np.array(
        [np.linalg.lstsq(hats[labels == k], data.y[labels == k])[0] for k in np.unique(labels)]
    )


def fitted(data, labels):
    """Return what the samples' own group fits predict, (N, d_y), without the package."""
    hats = np.c_[data.x.reshape(len(data.x), -1), np.ones(len(data.x))]
    return np.einsum("ni,nik->nk", hats, group_maps(data, labels)[labels])


def piecewise(pieces, regions, x):
    """Return at x the line of the interval that x lies in."""
    joints = [region[0, 0] for _, region in regions[1:]]
    lines = np.array([pieces[piece] for piece, _ in regions])
    return np.array(
        [s * v + o for v, (s, o) in zip(x, lines[np.searchsorted(joints, x)], strict=True)]
    )


def inside_hull(x, count, seed=0):
    """Return random weighted means of the samples, of few of them and of many."""
    weights = np.random.default_rng(seed).dirichlet(np.full(len(x), 0.1), count)
    return np.tensordot(weights, x, 1)


def hidden_widths(theta):
    return [len(theta.b[layer]) for layer in range(1, theta.net.depth)]


def height(terms):
    return int(np.ceil(np.log2(terms)))


# Functions


def test_the_example_of_figure_2_has_the_sets_of_the_paper():
    # up to the first corner, down to the second, up again: f_1 > f_3 everywhere
    pieces = np.array([[1.6, 1.1], [-0.5, 0.6], [0.9, -0.1]])
    first, second = -0.5 / 2.1, 0.7 / 1.4
    ends = [-1, first, second, 1]
    regions = [(k, np.array([[a], [b]])) for k, (a, b) in enumerate(itertools.pairwise(ends))]
    lattice = Lattice.of(pieces, regions)
    assert lattice.sets == ((0, 1), (0, 2))  # S_1 = S_2 = {f_1, f_2}, S_3 = {f_1, f_3}
    assert lattice.depth == 3
    assert str(lattice) == "max over 2 minima of 3 pieces: {0, 1}, {0, 2}"
    x = np.linspace(-1, 1, 1001)
    bends = [x < first, (first <= x) & (x < second), x >= second]
    expected = np.piecewise(x, bends, [lambda v, s=s, o=o: s * v + o for s, o in pieces])
    assert np.allclose(lattice(x[:, None]), expected, rtol=0, atol=1e-12)


@in_turn(
    pytest.mark.parametrize("samples", [24, 60]),
    pytest.mark.parametrize("groups", [1, 2, 3, 5, 8]),
    pytest.mark.parametrize("direction", [1.0, -0.5]),
    draws=2,
)
def test_max_min_is_the_connected_function_everywhere(samples, groups, direction):
    for seed in range(2):
        data = random_set((1, 1), samples, 1, seed=seed)
        parts = Groups.equal(data.x, [direction], groups)
        pieces, regions = connected_pieces(fit_groups(data, parts, SQUARED), data.x)
        lattice, x = Lattice.of(pieces, regions), data.x.ravel()
        assert np.allclose(lattice(data.x), fitted(data, parts.labels)[:, 0], rtol=0, atol=1e-8)
        dense = np.random.default_rng(seed).uniform(x.min(), x.max(), 3000)
        expected = piecewise(pieces, regions, dense)
        scale = 1 + abs(pieces).max()
        assert abs(lattice(dense[:, None, None]) - expected).max() < 1e-12 * scale**2


@pytest.mark.parametrize("groups", [1, 2, 3, 4, 7])
def test_connected_pieces_meet_and_are_added_only_where_neighbours_do_not(groups):
    met = apart = 0
    for seed in range(6):
        data = random_set((1, 1), 30, 1, seed=seed)
        x, sign = data.x.ravel(), [1.0, -1.0][seed % 2]
        parts = Groups.equal(data.x, [sign], groups)
        pieces, regions = connected_pieces(fit_groups(data, parts, SQUARED), data.x)
        assert [piece for piece, _ in regions] == list(range(len(pieces)))
        assert regions[0][1][0, 0] == x.min()
        assert regions[-1][1][1, 0] == x.max()
        for (k, left), (m, right) in itertools.pairwise(regions):
            joint = left[1, 0]
            assert left[0, 0] < joint == right[0, 0]
            values = pieces[[k, m], 0] * joint + pieces[[k, m], 1]
            assert abs(np.diff(values)) < 1e-9 * (1 + abs(pieces[[k, m]]).max())
        found = piecewise(pieces, regions, x)
        assert np.allclose(found, fitted(data, parts.labels)[:, 0], rtol=0, atol=1e-9)
        # which neighbours meet, by hand
        lines = group_maps(data, parts.labels)[:, :, 0]
        order = range(groups) if sign > 0 else range(groups)[::-1]
        auxiliary = 0
        for left, right in itertools.pairwise(order):
            a, b = x[parts.labels == left].max(), x[parts.labels == right].min()
            jump = (lines[right] - lines[left]) @ [[a, b], [1, 1]]
            auxiliary += jump[0] * jump[1] > 0  # one line is above the other in the whole gap
        assert len(pieces) == groups + auxiliary
        apart += auxiliary
        met += groups - 1 - auxiliary
    assert groups == 1 or apart > 0
    assert groups < 4 or met > 0


def test_auxiliary_pieces_lie_in_the_gap():
    data, fit = random_fit(0, groups=5)
    pieces, regions = connected_pieces(fit, data.x)
    assert len(pieces) > 5
    held = [((data.x >= low) & (data.x <= high)).any() for _, ((low,), (high,)) in regions]
    assert sum(held) == 5


@pytest.mark.parametrize(("dimensions", "outputs"), [(2, 1), (1, 2)])
def test_connected_pieces_are_for_one_dimension_and_one_output(dimensions, outputs):
    data, fit = random_fit(0, dimensions, outputs)
    with pytest.raises(ValueError, match=f"got {dimensions} and {outputs}"):
        connected_pieces(fit, data.x)


@pytest.mark.parametrize("step", [-1.0, 1.0])
def test_two_parallel_pieces_are_no_lattice_without_a_third(step):
    pieces = np.array([[0.0, 0.0], [0.0, step]])
    regions = [(0, np.array([[-1.0], [-0.1]])), (1, np.array([[0.1], [1.0]]))]
    with pytest.raises(AssumptionError, match="auxiliary pieces"):
        Lattice.of(pieces, regions)
    between = np.vstack([pieces, [5 * step, 0.5 * step]])
    lattice = Lattice.of(between, [*regions, (2, np.array([[-0.1], [0.1]]))])
    assert np.allclose(lattice([[-1], [-0.1], [0], [0.1], [1]]), [0, 0, step / 2, step, step])


@pytest.mark.parametrize("dimensions", [1, 2, 3, 4])
@pytest.mark.parametrize("outputs", [1, 3])
def test_lattices_with_caps_are_the_fits_at_all_samples(dimensions, outputs):
    capped = 0
    for groups in (1, 2, 4, 6):
        for seed in range(1):
            data, fit = random_fit(seed, dimensions, outputs, groups)
            lattices = lattices_of(fit, data.x)
            assert len(lattices) == outputs
            values = np.stack([lattice(data.x) for lattice in lattices], axis=1)
            expected = fitted(data, fit.groups.labels)
            assert np.allclose(values, expected, rtol=0, atol=1e-8)
            for k, lattice in enumerate(lattices):
                own = lattice.pieces[:groups]  # the fits, then two caps for each threshold
                maps = group_maps(data, fit.groups.labels)[:, :, k]
                assert np.allclose(own, maps, rtol=1e-7, atol=1e-8)
                assert len(lattice.pieces) in (groups, groups + 2 * (groups - 1))
                capped += len(lattice.pieces) > groups
    assert capped > 0


def test_fits_that_meet_need_no_caps():
    x = np.linspace(-1, 1, 20)
    data = TrainingSet(x[:, None, None], abs(x)[:, None])
    fit = fit_groups(data, Groups.equal(data.x, [1.0], 2), SQUARED)
    (lattice,) = lattices_of(fit, data.x)
    assert len(lattice.pieces) == 2
    assert lattice.sets == ((0,), (1,))
    assert np.allclose(lattice(data.x), abs(x))


# Networks


def test_the_gadgets_have_the_weights_of_the_paper():
    pieces = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])  # a and b, positive on the samples
    x = np.array([[[1.0, 2.0]], [[5.0, 0.5]], [[3.0, 2.9]]])
    low = lattice_network((1, 2), [Lattice(pieces, ((0, 1),))], x)
    high = lattice_network((1, 2), [Lattice(pieces, ((0,), (1,)))], x)
    lift = low.b[1][0]
    for theta in (low, high):
        assert theta.net.depth == 3
        assert np.array_equal(theta.W[1].weights, np.eye(2))
        assert lift > 0
        assert np.array_equal(theta.b[1], [lift, lift])
        assert np.array_equal(theta.b[2], [0, 0])
        assert np.array_equal(theta.b[3], [-lift])
    # min(a, b) = sigma(b) - sigma(b - a), max(a, b) = sigma(b) + sigma(a - b)
    assert np.array_equal(low.W[2].weights, [[0, 1], [-1, 1]])
    assert np.array_equal(low.W[3].weights, [[1, -1]])
    assert np.array_equal(high.W[2].weights, [[0, 1], [1, -1]])
    assert np.array_equal(high.W[3].weights, [[1, 1]])
    assert np.allclose(outputs_of(low, x)[:, 0], [1, 0.5, 2.9], rtol=0, atol=1e-14)
    assert np.allclose(outputs_of(high, x)[:, 0], [2, 5, 3], rtol=0, atol=1e-14)
    # on every sample sigma(b) passes, and sigma of the difference as the order of a and b says
    assert np.array_equal(low.net.patterns(low, x)[2], [[True, True], [True, False], [True, False]])
    assert np.array_equal(
        high.net.patterns(high, x)[2], [[True, False], [True, True], [True, True]]
    )


def test_widths_and_patterns_of_trees_by_hand():
    # minima of 3, 1 and 2 pieces: 2 + 1, 1 and 2 units, then 2, 1 and 1; maxima: 2 + 1, then 2
    rng = np.random.default_rng(0)
    lattice = Lattice(rng.normal(size=(6, 3)), ((0, 1, 2), (3,), (4, 5)))
    x = rng.normal(size=(50, 1, 2))
    theta = lattice_network((1, 2), [lattice], x)
    assert hidden_widths(theta) == [6, 6, 4, 3, 2]
    assert lattice.depth == 5
    switching, compared = [], {1: [], 2: [1, 5], 3: [1], 4: [1], 5: [1]}  # second units
    for layer, z in twin_of(theta).preactivations(x).items():
        z = z.detach().numpy()
        fixed = np.delete(z, compared[layer], axis=1)
        assert (fixed > 0).all()
        switching += [0 < (z[:, unit] > 0).sum() < len(x) for unit in compared[layer]]
    assert sum(switching) >= 4
    values = np.c_[x[:, 0], np.ones(len(x))] @ lattice.pieces.T
    a, b, c, d, e, f = values.T
    expected = np.maximum(np.maximum(np.minimum(np.minimum(a, b), c), d), np.minimum(e, f))
    assert np.allclose(outputs_of(theta, x)[:, 0], expected, rtol=0, atol=1e-13)
    assert np.allclose(lattice(x), expected, rtol=0, atol=1e-15)


def test_every_weight_of_the_trees_is_zero_or_one_in_size():
    data, fit = random_fit(1, 2, 2, 4)
    theta = lattice_network((1, 2), lattices_of(fit, data.x), data.x)
    for layer in range(2, theta.net.depth + 1):
        assert set(np.unique(theta.W[layer].weights)) <= {-1.0, 0.0, 1.0}
        if layer < theta.net.depth:
            assert not theta.b[layer].any()
    assert len(set(theta.b[theta.net.depth])) == 1


@pytest.mark.parametrize(
    ("sets", "widths"),
    [
        ([((0,),)], [1]),
        ([((0, 1),)], [2, 2]),
        ([((0,), (1,))], [2, 2]),
        ([((0, 1, 2, 3),)], [4, 4, 2]),
        ([((0,), (1,), (2,), (3,), (4,))], [5, 5, 3, 2]),
        ([((0, 1), (0, 2))], [3, 4, 2]),
        ([((0, 1), (0, 2), (3,))], [4, 5, 3, 2]),
        # several outputs, side by side: shallower trees hand their value on
        ([((0, 1),), ((0,), (1,))], [4, 4, 3]),
        ([((0, 1, 2, 3),), ((0,),)], [5, 5, 3]),
        ([((0, 1, 2, 3),), ((0,), (1,), (2,), (3,))], [8, 8, 6, 5, 3]),
    ],
)
def test_depth_and_widths_of_small_cases(sets, widths):
    rng = np.random.default_rng(1)
    lattices = [Lattice(rng.normal(size=(1 + max(map(max, s)), 4)), s) for s in sets]
    x = rng.normal(size=(30, 1, 3))
    theta = lattice_network((1, 3), lattices, x)
    assert hidden_widths(theta) == widths
    longest = max(len(s) for of_output in sets for s in of_output)
    assert len(widths) == 1 + height(longest) + height(max(map(len, sets)))
    if len(lattices) == 1:
        assert lattices[0].depth == len(widths)
    near = np.concatenate([x, inside_hull(x, 500)])
    expected = np.stack([lattice(near) for lattice in lattices], axis=1)
    assert np.allclose(outputs_of(theta, near), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dimensions", [1, 2, 3, 4])
@pytest.mark.parametrize("outputs", [1, 3])
def test_the_network_is_the_lattice_on_and_between_the_samples(dimensions, outputs):
    for groups in (2, 3, 5):
        data, fit = random_fit(groups, dimensions, outputs, groups)
        lattices = lattices_of(fit, data.x)
        theta = lattice_network((1, dimensions), lattices, data.x)
        assert np.allclose(
            outputs_of(theta, data.x), fitted(data, fit.groups.labels), rtol=0, atol=1e-8
        )
        near = inside_hull(data.x, 400)
        expected = np.stack([lattice(near) for lattice in lattices], axis=1)
        scale = max(abs(lattice(data.x) - p).max() for lattice in lattices for p in (0.0,))
        steep = max(abs(lattice.pieces).max() for lattice in lattices)
        assert abs(outputs_of(theta, near) - expected).max() < 1e-12 * (1 + scale + steep)
        assert (twin_of(theta).preactivations(data.x)[1] > 0).all()
        assert hidden_widths(theta)[0] == sum(len(lattice.pieces) for lattice in lattices)
        longest = max(len(s) for lattice in lattices for s in lattice.sets)
        most = max(len(lattice.sets) for lattice in lattices)
        assert theta.net.depth - 1 == 1 + height(longest) + height(most)


def test_images_are_inputs_too():
    rng = np.random.default_rng(0)
    data = TrainingSet(rng.normal(size=(30, 2, 2, 2)), rng.normal(size=(30, 2)))
    fit = fit_groups(data, Groups.equal(data.x, rng.normal(size=8), 2), SQUARED)
    theta = lattice_network((2, 2, 2), lattices_of(fit, data.x), data.x)
    assert np.allclose(
        outputs_of(theta, data.x), fitted(data, fit.groups.labels), rtol=0, atol=1e-8
    )


# E10


@pytest.mark.parametrize(
    ("dimensions", "outputs", "groups"),
    [(1, 1, 4), (2, 1, 4), (3, 1, 5), (4, 1, 4), (1, 2, 3), (2, 3, 3), (4, 2, 4)],
)
def test_the_predictor_is_right_and_the_weights_are_not_stationary(dimensions, outputs, groups):
    seeds, refuted = range(2), 0
    for seed in seeds:
        data, fit = random_fit(seed, dimensions, outputs, groups)
        printed = lattice_network((1, dimensions), lattices_of(fit, data.x), data.x)
        expected = fitted(data, fit.groups.labels)
        assert np.allclose(outputs_of(printed, data.x), expected, rtol=0, atol=1e-8)
        certificate = certify_cell(printed, data, SQUARED)
        refuted += not certificate.holds and abs(twin_gradient(printed, data)).max() > 1e-3
        width = outputs + (groups - 1) * (outputs + 1)
        net = Network((1, dimensions), [Dense(width), Dense(outputs)])
        repaired = gated_minimum(net, data, SQUARED, fit.groups)
        assert np.allclose(outputs_of(repaired, data.x), expected, rtol=0, atol=1e-8)
        certificate = certify_cell(repaired, data, SQUARED)
        assert certificate.holds
        assert certificate.classes == groups
        assert abs(twin_gradient(repaired, data)).max() < 1e-7
    assert refuted >= len(seeds) - 1


def test_auxiliary_pieces_of_a_curve_are_not_stationary_either():
    refuted = 0
    for seed in range(6):
        data = random_set((1, 1), 30, 1, seed=seed)
        fit = fit_groups(data, Groups.equal(data.x, [1.0], 4), SQUARED)
        lattice = Lattice.of(*connected_pieces(fit, data.x))
        theta = lattice_network((1, 1), [lattice], data.x)
        holds = certify_cell(theta, data, SQUARED).holds
        refuted += not holds and abs(twin_gradient(theta, data)).max() > 1e-4
    assert refuted >= 4


def test_two_groups_that_meet_are_certified():
    found = {}
    for seed, sign in itertools.product(range(9, 17), (1, -1)):
        data, fit = random_fit(seed, 3, 1, 2, samples=12)
        data = TrainingSet(data.x, sign * data.y)  # turns minima into maxima
        fit = fit_groups(data, fit.groups, SQUARED)
        pieces = np.array([np.append(f.weights[0], f.bias) for f in fit.fits])
        regions = [(k, data.x[fit.groups.labels == k]) for k in (0, 1)]
        try:
            lattice = Lattice.of(pieces, regions)
        except AssumptionError:
            continue
        theta = lattice_network((1, 3), [lattice], data.x)
        assert hidden_widths(theta) == [2, 2]
        certificate = certify_cell(theta, data, SQUARED)
        assert certificate.holds
        assert certificate.classes == 2
        assert abs(twin_gradient(theta, data)).max() < 1e-8
        found[seed, sign] = lattice.sets
    assert set(found.values()) == {((0,), (1,)), ((0, 1),)}


# The smallest case


def cases_of(seed, dimensions=1, samples=20):
    data = random_set((1, dimensions), samples, 1, seed=seed)
    return data, smallest_cases(data, SQUARED)


@pytest.mark.parametrize(("dimensions", "seeds"), [(1, 4), (2, 2), (3, 2)])
def test_smallest_cases_are_self_consistent_and_certified(dimensions, seeds):
    kinds, nets, several = set(), set(), 0
    for seed in range(seeds):
        data, cases = cases_of(seed, dimensions)
        risks = [case.risk for case in cases]
        assert risks == sorted(risks)
        several += max(risks) - min(risks) > 1e-3
        partitions = set()
        for case in cases:
            nets.add(case.theta.net)
            assert hidden_widths(case.theta) == [2, 2]
            hats = np.c_[data.x[:, 0], np.ones(len(data.x))]
            # not by lstsq: a group of few samples has many optimal maps
            halves = [case.labels == k for k in (0, 1)]
            fits = [fit_affine(data.x[half, 0], data.y[half], SQUARED) for half in halves]
            values = np.stack([hats @ np.append(f.weights[0], f.bias) for f in fits], axis=1)
            best = fitted(data, case.labels)[:, 0]
            assert np.allclose(best, values[range(len(hats)), case.labels], rtol=0, atol=1e-9)
            chosen = values.argmax(axis=1) if case.maximum else values.argmin(axis=1)
            assert np.array_equal(chosen, case.labels)
            best = values.max(axis=1) if case.maximum else values.min(axis=1)
            assert np.allclose(outputs_of(case.theta, data.x)[:, 0], best, rtol=0, atol=1e-9)
            assert case.risk == pytest.approx(((best - data.y[:, 0]) ** 2).mean() / 2, rel=1e-9)
            certificate = certify_cell(case.theta, data, SQUARED)
            assert certificate.holds
            assert certificate.classes == 2
            assert certificate.margin > 0
            assert abs(twin_gradient(case.theta, data)).max() < 1e-8
            kinds.add(case.maximum)
            partitions.add((case.maximum, frozenset(np.flatnonzero(case.labels == 0))))
        assert len(partitions) == len(cases)
    assert len(nets) == 1  # risks differ within one network: the higher ones are spurious
    assert several > 0
    assert kinds == {True, False}


def test_the_least_absolute_deviations_have_smallest_cases():
    x = np.linspace(-1, 1, 16)
    noise = np.random.default_rng(0).normal(0, 0.05, 16)
    data = TrainingSet(x[:, None, None], (abs(x) + noise)[:, None])
    cases = smallest_cases(data, AbsoluteLoss(), starts=2)
    for case in cases:
        certificate = certify_cell(case.theta, data, AbsoluteLoss())
        assert certificate.holds
        assert certificate.classes == 2


def test_seeds_reproduce_smallest_cases():
    data = random_set((1, 1), 20, 1, seed=3)
    first, again = (smallest_cases(data, SQUARED, starts=4, seed=7) for _ in range(2))
    assert len(first) == len(again)
    for one, other in zip(first, again, strict=True):
        assert np.array_equal(one.theta.vector, other.theta.vector)


def test_smallest_cases_are_for_one_output():
    data = random_set((1, 1), 40, 2, seed=0)
    with pytest.raises(ValueError, match="expected one output, got 2"):
        smallest_cases(data, SQUARED)


@pytest.mark.parametrize(
    "x",
    [np.zeros(6), np.array([0.0, 1.0])],
    ids=["all at one place", "two samples: each line passes through its own"],
)
def test_data_without_a_self_consistent_start_are_refused(x):
    data = TrainingSet(x[:, None, None], np.arange(float(len(x)))[:, None])
    with pytest.raises(AssumptionError, match="none of 10 starts is self-consistent"):
        smallest_cases(data, SQUARED, starts=5)
