"""Groups along a direction, the gates that give each its own fit, and refinements that go lower."""

import itertools
import re

import numpy as np
import pytest
import strict_device
from hypothesis import given, settings
from hypothesis import strategies as st
from shared import (
    SQUARED,
    LogCosh,
    in_turn,
    outputs_of,
    proved,
    random_direction,
    random_set,
    torch_risk,
    twin_gradient,
    twin_of,
    twin_risk,
)

from tinyspur import (
    AbsoluteLoss,
    AssumptionError,
    AveragePool,
    Conv,
    CrossEntropy,
    Dense,
    Groups,
    HuberLoss,
    Network,
    Parameters,
    ReLU,
    TrainingSet,
    certify_cell,
    datasets,
    fit_affine,
    fit_groups,
    gated_minimum,
    one_hot,
    spurious_pair,
)

ABSOLUTE, HUBER = AbsoluteLoss(), HuberLoss(0.3)
LOSSES = [SQUARED, CrossEntropy(), ABSOLUTE, HUBER, LogCosh()]
SMOOTH = [loss for loss in LOSSES if loss is not ABSOLUTE]
of_losses = pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)


# Groups


LINE = np.array([0.5, -1.0, 3.0, 7.0, 3.5, 2.0])[:, None]  # in order: 1 0 5 2 4 3
UP = [1.0]


def members(groups):
    """Return the samples of each group."""
    return [np.flatnonzero(groups.labels == k).tolist() for k in range(len(groups))]


def test_given_thresholds_in_any_order_cut_the_line():
    groups = Groups.at(LINE, UP, [3.2, 0.0])
    assert groups.thresholds.tolist() == [0.0, 3.2]
    assert members(groups) == [[1], [0, 2, 5], [3, 4]]
    assert len(groups) == 3
    assert str(groups) == "3 groups along a direction, of 1, 3, 2 samples"


def test_the_groups_count_upwards_along_the_direction():
    groups = Groups.at(LINE, [-2.0], [-6.4])
    assert members(groups) == [[3, 4], [0, 1, 2, 5]]
    assert groups.direction.tolist() == [-2.0]


def test_without_thresholds_there_is_one_group():
    for groups in (Groups.at(LINE, UP, []), Groups.equal(LINE, UP, 1), Groups.gaps(LINE, UP, 1)):
        assert members(groups) == [[0, 1, 2, 3, 4, 5]]
        assert len(groups) == 1


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (2, [[0, 1, 5], [2, 3, 4]]),
        (3, [[0, 1], [2, 5], [3, 4]]),
        (6, [[1], [0], [5], [2], [4], [3]]),
    ],
)
def test_equal_groups_split_the_line_midway_between_neighbours(count, expected):
    groups = Groups.equal(LINE, UP, count)
    assert members(groups) == expected
    places = np.sort(LINE.ravel())
    cuts = np.cumsum([len(group) for group in expected])[:-1]
    assert groups.thresholds.tolist() == ((places[cuts - 1] + places[cuts]) / 2).tolist()


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.data())
def test_equal_groups_differ_by_one_sample_at_most(seed, samples, data):
    rng = np.random.default_rng(seed)
    x, direction = rng.normal(size=(samples, 2, 3)), rng.normal(size=6)
    count = data.draw(st.integers(1, samples))
    groups = Groups.equal(x, direction, count)
    sizes = np.bincount(groups.labels)
    assert len(groups) == len(sizes) == count
    assert np.ptp(sizes) <= 1
    along = x.reshape(samples, 6) @ direction
    for k, (low, high) in enumerate(itertools.pairwise([-np.inf, *groups.thresholds, np.inf])):
        inside = along[groups.labels == k]
        assert ((low < inside) & (inside < high)).all()


def test_the_largest_gaps_part_the_groups():
    assert Groups.gaps(LINE, UP, 2).thresholds.tolist() == [5.25]
    assert Groups.gaps(LINE, UP, 4).thresholds.tolist() == [-0.25, 1.25, 5.25]
    assert members(Groups.gaps(LINE, UP, 4)) == [[1], [0], [2, 4, 5], [3]]


def test_ties_stay_together():
    x = np.array([0.0, 1, 1, 1, 2, 5])[:, None]
    assert members(Groups.equal(x, UP, 2)) == [[0, 1, 2, 3], [4, 5]]
    assert members(Groups.gaps(x, UP, 4)) == [[0], [1, 2, 3], [4], [5]]
    for split in (Groups.equal, Groups.gaps):
        with pytest.raises(ValueError, match="expected 5, but too many samples lie at the same"):
            split(x, UP, 5)


def test_ties_at_the_end_are_split_from_what_lies_below():
    assert members(Groups.equal(np.array([0.0, 1, 1, 1])[:, None], UP, 2)) == [[0], [1, 2, 3]]
    most_at_the_end = np.array([0.0, 1, 2, 2, 2, 2])[:, None]
    assert members(Groups.equal(most_at_the_end, UP, 3)) == [[0], [1], [2, 3, 4, 5]]


@pytest.mark.parametrize("count", [0, 7, -1])
@pytest.mark.parametrize("split", [Groups.equal, Groups.gaps])
def test_more_groups_than_samples_and_none_are_refused(split, count):
    with pytest.raises(ValueError, match=re.escape(f"a whole number in 1..6, got {count}")):
        split(LINE, UP, count)


def test_a_sample_on_a_threshold_is_refused_and_named():
    with pytest.raises(ValueError, match=r"no sample on a threshold, sample 4 is at 3\.5"):
        Groups.at(LINE, UP, [0.0, 3.5])


@pytest.mark.parametrize(
    ("thresholds", "empty"),
    [([-2.0], 0), ([8.0], 1), ([0.1, 0.2], 1), ([0.1, 0.1], 1), ([np.inf], 1), ([np.nan], 1)],
)
def test_an_empty_group_is_refused_and_named(thresholds, empty):
    count = len(thresholds) + 1
    with pytest.raises(ValueError, match=f"samples in each of {count}, group {empty} has none"):
        Groups.at(LINE, UP, thresholds)


@pytest.mark.parametrize(
    ("direction", "got"),
    [
        ([0.0, 0.0], "zeros"),
        ([np.nan, 1.0], "NaN or infinite ones"),
        ([np.inf, 1.0], "NaN or infinite ones"),
        ([1.0], "1 numbers"),
        ([1.0, 0.0, 0.0], "3 numbers"),
        ([], "0 numbers"),
    ],
)
def test_a_direction_of_another_size_or_without_one_is_refused(direction, got):
    x = np.arange(8.0).reshape(4, 2)
    for split in (
        lambda: Groups.at(x, direction, [1.0]),
        lambda: Groups.equal(x, direction, 2),
        lambda: Groups.gaps(x, direction, 2),
    ):
        expected = f"expected a finite direction of 2 numbers, not all 0, got {got}$"
        with pytest.raises(ValueError, match=expected):
            split()


# Labels


def separates(groups, x):
    """Return whether the thresholds part the groups strictly."""
    along = x.reshape(len(x), -1) @ groups.direction
    places = (along[:, None] > groups.thresholds).sum(axis=1)
    return (places == groups.labels).all() and not np.isin(along, groups.thresholds).any()


@in_turn(
    pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6]),
    pytest.mark.parametrize("seed", range(3)),
)
def test_labels_in_any_order_along_an_unknown_direction_are_found(count, seed):
    rng = np.random.default_rng(seed)
    x, direction = rng.normal(size=(60, 1, 4)), rng.normal(size=4)
    parts = Groups.equal(x, direction, count).labels
    labels = rng.permutation(count)[parts]
    groups = Groups.labelled(x, labels)
    assert len(groups) == count
    assert separates(groups, x)
    pairs = set(zip(labels.tolist(), groups.labels.tolist(), strict=True))
    assert len(pairs) == count  # the same partition
    assert groups.labels.tolist() in (parts.tolist(), (count - 1 - parts).tolist())


@pytest.mark.parametrize(("factor", "shift"), [(1e-8, 0.0), (1e8, 0.0), (1.0, 1e6), (1e6, -1e9)])
def test_scales_and_shifts_of_the_inputs_change_no_separation(factor, shift):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 3))
    labels = np.array(["low", "middle", "high"])[Groups.equal(x, [1, -2, 0.5], 3).labels]
    x = factor * x + shift
    assert separates(Groups.labelled(x, labels), x)


def test_more_than_six_labels_have_to_be_in_order():
    rng = np.random.default_rng(0)
    x, direction = rng.normal(size=(70, 3)), [1.0, -2.0, 0.5]
    labels = Groups.equal(x, direction, 7).labels
    assert separates(Groups.labelled(x, 10 * labels - 3), x)
    assert separates(Groups.labelled(x, -labels), x)
    with pytest.raises(AssumptionError, match=r"the 7 groups .* in the order of their labels"):
        Groups.labelled(x, (3 * labels) % 7)


def test_labels_that_no_direction_separates_are_refused():
    corners = np.array([[0.0, 0], [1, 1], [0, 1], [1, 0]])
    with pytest.raises(AssumptionError, match=r"2 groups \[0, 1\] from each other, in any order"):
        Groups.labelled(corners, [0, 0, 1, 1])
    twins = np.array([[0.0], [1], [1], [2]])
    with pytest.raises(AssumptionError, match="no direction separates"):
        Groups.labelled(twins, [0, 0, 1, 1])
    ring = np.array([[np.cos(t), np.sin(t)] for t in np.arange(60) * 2 * np.pi / 60])
    with pytest.raises(AssumptionError, match="3 groups"):  # each from the rest, but not in a row
        Groups.labelled(ring, np.arange(60) // 20)


@pytest.mark.parametrize("labels", [[0, 1], [0, 1, 0, 1, 0]])
def test_labels_of_another_number_of_samples_are_refused(labels):
    with pytest.raises(ValueError, match=re.escape("expected labels (4,), got")):
        Groups.labelled(np.zeros((4, 2)), labels)


# Refinement


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.data())
def test_a_refinement_isolates_the_sample_and_keeps_all_other_borders(seed, samples, data):
    rng = np.random.default_rng(seed)
    x, direction = rng.normal(size=(samples, 1, 3)), rng.normal(size=3)
    groups = Groups.equal(x, direction, data.draw(st.integers(1, samples)))
    sample = data.draw(st.integers(0, samples - 1))
    fine = groups.refine(x, sample)
    assert separates(fine, x)
    label = fine.labels[sample]
    assert (fine.labels == label).sum() == 1
    order = np.argsort(x.reshape(samples, 3) @ direction)
    was, now = groups.labels[order], fine.labels[order]
    place = order.tolist().index(sample)
    for n in range(samples - 1):  # between neighbours n and n + 1
        border = was[n] != was[n + 1] or place in (n, n + 1)
        assert (now[n] != now[n + 1]) == border
        if was[n] != was[n + 1] and place not in (n, n + 1):
            assert groups.thresholds[was[n]] in fine.thresholds
    assert fine.direction.tolist() == groups.direction.tolist()


@pytest.mark.parametrize(
    ("sample", "expected"),
    [
        (1, [[1], [0, 5], [2, 3, 4]]),  # the first of all
        (3, [[0, 1, 5], [2, 4], [3]]),  # the last
        (0, [[1], [0], [5], [2, 3, 4]]),  # in the middle of a group
        (5, [[0, 1], [5], [2, 3, 4]]),  # beside a threshold
        (2, [[0, 1, 5], [2], [3, 4]]),
    ],
)
def test_a_refinement_by_hand(sample, expected):
    assert members(Groups.equal(LINE, UP, 2).refine(LINE, sample)) == expected


def test_a_sample_that_is_alone_stays_so():
    groups = Groups.equal(LINE, UP, 6)
    assert members(groups.refine(LINE, 2)) == members(groups)


def test_a_sample_with_others_at_its_place_cannot_be_alone():
    x = np.array([0.0, 1, 1, 2])[:, None]
    groups = Groups.at(x, UP, [1.5])
    with pytest.raises(AssumptionError, match="sample 2 can't be alone, others lie at 1 too"):
        groups.refine(x, 2)
    assert members(groups.refine(x, 0)) == [[0], [1, 2], [3]]


@pytest.mark.parametrize("sample", [-1, 6])
def test_a_sample_that_does_not_exist_is_refused(sample):
    with pytest.raises(ValueError, match=re.escape(f"expected a sample in 0..5, got {sample}")):
        Groups.equal(LINE, UP, 2).refine(LINE, sample)


# Fits of groups


@of_losses
def test_each_group_has_its_own_fit_and_the_risk_is_that_of_all(loss):
    data = random_set((1, 3), loss=loss)
    groups = Groups.equal(data.x, random_direction((1, 3)), 3)
    fit = fit_groups(data, groups, loss)
    assert fit.groups is groups
    outputs, total = fit.predict(data.x), 0.0
    for k, each in enumerate(fit.fits):
        inside = groups.labels == k
        x, y = data.x[inside].reshape(-1, 3), data.y[inside]
        expected = fit_affine(x, y, loss)
        assert (each.weights == expected.weights).all()
        assert (outputs[inside] == x @ each.weights.T + each.bias).all()
        total += loss.value(outputs[inside].T, y.T).sum()
    assert fit.risk == pytest.approx(total / 40, rel=1e-14)
    assert fit.risk == pytest.approx(torch_risk(outputs, data.y, loss).item(), rel=1e-13)
    assert fit.risk < fit_affine(data.x.reshape(40, 3), data.y, loss).risk
    assert str(fit) == f"piecewise linear fit: {groups}, risk {fit.risk:.9g}"


# The gated minimum


def needed(count, outputs):
    """Return how many units the first dense layer has to have."""
    return outputs + (count - 1) * (outputs + 1)


def independent_outputs(data, groups, loss, x=None):
    """Return the outputs of the best affine map of each group."""
    x = (data.x if x is None else x).reshape(len(data), -1)
    outputs = np.zeros(data.y.shape)
    for k in set(groups.labels):
        inside = groups.labels == k
        if loss is SQUARED:
            features = np.hstack([x[inside], np.ones((inside.sum(), 1))])
            outputs[inside] = features @ np.linalg.lstsq(features, data.y[inside])[0]
        else:
            fit = fit_affine(x[inside], data.y[inside], loss)
            outputs[inside] = x[inside] @ fit.weights.T + fit.bias
    return outputs


def torch_gradients(theta, data, loss):
    """Return PyTorch's gradient, and that of every second sample, as vectors."""
    half = TrainingSet(data.x[::2], data.y[::2])
    return [twin_gradient(theta, part, loss) for part in (data, half)]


def check_gated(theta, data, loss, groups, x=None):
    """The outputs are the fits, PyTorch's gradients vanish, and the certificate holds."""
    expected = independent_outputs(data, groups, loss, x)
    outputs = outputs_of(theta, data.x)
    assert abs(outputs - expected).max() <= 1e-10 * (1 + abs(expected).max())
    if loss is not ABSOLUTE:
        gradient, of_half = torch_gradients(theta, data, loss)
        assert abs(gradient).max() <= 1e-9 * abs(of_half).max()
    certificate = certify_cell(theta, data, loss)
    assert proved(certificate)
    assert certificate.classes == len(groups)
    assert not certificate.evidence_only
    assert certificate.margin >= 1 - 1e-9
    before = twin_of(theta).preactivations(data.x)
    patterns = np.hstack([(z > 0).numpy() for z in before.values()])
    assert len({row.tobytes() for row in patterns}) == len(groups)
    for k in range(len(groups)):
        assert len({row.tobytes() for row in patterns[groups.labels == k]}) == 1
    assert min(abs(z).min().item() for z in before.values()) == pytest.approx(
        certificate.margin, rel=1e-6
    )
    return certificate


DENSE = {  # input, groups, outputs, widths above the first dense layer, spare units of that
    "the smallest": ((1, 1), 1, 1, [], 0),
    "two groups on a line": ((1, 1), 2, 1, [], 0),
    "five groups on a line, just enough units": ((1, 1), 5, 2, [], 0),
    "spare units": ((1, 2), 3, 2, [], 4),
    "three layers": ((1, 3), 2, 3, [3], 0),
    "four layers with spare units": ((1, 4), 3, 2, [5, 4], 3),
    "five layers": ((1, 5), 4, 1, [1, 3, 1], 0),
    "six inputs": ((1, 6), 2, 2, [2], 1),
    "images": ((2, 2, 3), 2, 3, [4], 2),
    "one group, five layers": ((1, 3), 1, 2, [2, 3, 2], 1),
}


@in_turn(
    of_losses,
    pytest.mark.parametrize("name", DENSE),
)
def test_dense_networks_are_at_the_fits_of_all_groups_and_certified(name, loss):
    shape, count, outputs, above, spare = DENSE[name]
    if loss.name == "cross-entropy":
        outputs = max(outputs, 2)
        above = [max(width, outputs) for width in above]
    widths = [needed(count, outputs) + spare, *above, outputs]
    net = Network(shape, [*map(Dense, widths)])
    data = random_set(shape, 20 * count + 20, outputs, loss)
    groups = Groups.equal(data.x, random_direction(shape), count)
    theta = gated_minimum(net, data, loss, groups)
    assert theta.vector.dtype == np.float64
    check_gated(theta, data, loss, groups)


CONVOLUTIONS = {
    "one convolution": ((1, 3, 3), [Conv(1)], 1),
    "two convolutions with spare maps": ((2, 3, 2), [Conv(3), Conv(4, 1)], 1),
    "one dimension": ((2, 6), [Conv(2), Conv(3, 5)], 1),
    "pooling": ((1, 4, 4), [Conv(4), AveragePool(2)], 1),
    "pooling of two channels between convolutions": (
        (2, 4, 2),
        [Conv(3), Conv(9), AveragePool(2), Conv(8)],
        1,
    ),
    "pooling in one dimension": ((1, 6), [Conv(3, 5), AveragePool(3)], 1),
    "pooling twice": ((1, 4, 4), [Conv(5), Conv(5), AveragePool(2), Conv(17), AveragePool(2)], 1),
    "pooling first": ((1, 4, 4), [AveragePool(2)], 2),
    "pooling first and last": ((1, 8, 4), [AveragePool(2), Conv(4), AveragePool(2)], 2),
}


@in_turn(
    of_losses,
    pytest.mark.parametrize("name", CONVOLUTIONS),
)
def test_convolutions_relay_the_image_to_the_gates(name, loss):
    shape, below, size = CONVOLUTIONS[name]
    net = Network(shape, [*below, Dense(needed(3, 2) + 1), Dense(3), Dense(2)])
    data = random_set(shape, 120, 2, loss, seed=3)
    x = data.x  # poolings before the first weights make the input: the groups are theirs
    if size == 2:
        x = x.reshape(120, 1, shape[1] // 2, 2, shape[2] // 2, 2).mean(axis=(3, 5))
    groups = Groups.equal(x, random_direction(x.shape[1:], 3), 3)
    theta = gated_minimum(net, data, loss, groups)
    check_gated(theta, data, loss, groups, x)


def test_spare_units_and_maps_are_dead():
    data = random_set((1, 3, 3), 60)
    net = Network((1, 3, 3), [Conv(3), Dense(needed(2, 2) + 5), Dense(4), Dense(2)])
    theta = gated_minimum(net, data, SQUARED, Groups.equal(data.x, np.ones(9), 2))
    before = twin_of(theta).preactivations(data.x)
    dead = {layer: (z < 0).all(0).numpy() for layer, z in before.items()}
    assert dead[1].reshape(3, 9).all(axis=1).tolist() == [False, True, True]
    assert np.flatnonzero(dead[2]).tolist() == list(range(5, 10))
    assert np.flatnonzero(dead[3]).tolist() == [2, 3]


def test_largest_gaps_labels_and_refinements_serve_as_groups():
    data = random_set((1, 2), 60)
    net = Network((1, 2), [Dense(30), Dense(2)])
    direction = random_direction((1, 2))
    labels = np.array([2, 0, 1])[Groups.equal(data.x, direction, 3).labels]
    for groups in (
        Groups.gaps(data.x, direction, 4),
        Groups.labelled(data.x, labels),
        Groups.equal(data.x, direction, 3).refine(data.x, 17),
        Groups.at(data.x, direction, [0.1, -0.2]),
    ):
        check_gated(gated_minimum(net, data, SQUARED, groups), data, SQUARED, groups)


@in_turn(
    of_losses,
    pytest.mark.parametrize(("scale", "shift"), [(1e3, 0.0), (1.0, 100.0), (1.0, -1e3)]),
)
def test_inputs_of_other_sizes_are_certified_too(scale, shift, loss):
    data = random_set((1, 3), 60, loss=loss, seed=1)
    data = TrainingSet(scale * data.x + shift, data.y)
    net = Network((1, 3), [Dense(12), Dense(2)])
    groups = Groups.equal(data.x, random_direction((1, 3)), 3)
    theta = gated_minimum(net, data, loss, groups)
    certificate = certify_cell(theta, data, loss)
    assert proved(certificate)
    assert certificate.classes == 3
    expected = fit_groups(data, groups, loss).risk
    assert twin_risk(theta, data, loss) == pytest.approx(expected, rel=1e-9)


@in_turn(
    of_losses,
    pytest.mark.parametrize(
        ("shape", "layers"),
        [
            ((1, 2), [Dense(6), Dense(2)]),
            ((1, 3), [Dense(5), Dense(3), Dense(2)]),
            ((1, 2, 2), [Conv(4), AveragePool(2), Dense(7), Dense(2)]),
        ],
        ids=["two layers", "three layers", "pooling"],
    ),
)
def test_within_the_certified_radius_nothing_lowers_the_risk(shape, layers, loss):
    net = Network(shape, layers)
    data = random_set(shape, 60, 2, loss, seed=5)
    groups = Groups.equal(data.x, random_direction(shape), 2)
    theta = gated_minimum(net, data, loss, groups)
    radius = certify_cell(theta, data, loss).radius
    assert radius > 0
    start, rng = (
        twin_risk(theta, data, loss),
        np.random.default_rng(0),
    )
    patterns = {layer: z > 0 for layer, z in twin_of(theta).preactivations(data.x).items()}
    risks = []
    for n in range(18):
        move = rng.uniform(-1, 1, net.size)
        if n % 3 == 1:
            move = np.sign(move)  # a corner of the cell
        elif n % 3 == 2:
            move *= rng.uniform(size=net.size) < 3 / net.size  # few parameters
        twin = twin_of(Parameters(net, theta.vector + 0.999 * radius * move))
        risks.append(torch_risk(twin(data.x), data.y, loss).item())
        for layer, z in twin.preactivations(data.x).items():
            assert ((z > 0) == patterns[layer]).all()
    assert min(risks) >= start - 1e-12 * (1 + start)
    assert max(risks) >= start + 1e-9  # the moves are not too small to be seen


def test_the_certificate_is_the_same_on_a_device():
    for loss in (SQUARED, ABSOLUTE, HUBER):
        data = random_set((1, 2, 2), 40)
        net = Network((1, 2, 2), [Conv(1), Dense(8), Dense(2)])
        theta = gated_minimum(net, data, loss, Groups.equal(data.x, np.ones(4), 3))
        here = certify_cell(theta, data, loss)
        there = certify_cell(theta.to(strict_device), data, loss)
        assert (there.holds, there.classes) == (here.holds, here.classes) == (True, 3)
        assert there.radius == pytest.approx(here.radius, rel=1e-12)


@pytest.mark.parametrize("loss", LOSSES[:3], ids=lambda loss: loss.name)
def test_images_in_three_groups_along_their_first_principal_component(loss):
    images = datasets.bundled().subset(210 if loss is ABSOLUTE else 450, seed=0)
    pixels = images.pixels().reshape(-1, 1, 4, 7, 4, 7).mean(axis=(3, 5))
    data = TrainingSet(pixels, one_hot(images.labels, images.classes, smoothing=0.1))
    flat = pixels.reshape(len(pixels), 16)
    direction = np.linalg.svd(flat - flat.mean(axis=0), full_matrices=False)[2][0]
    groups = Groups.equal(data.x, direction, 3)
    net = Network((1, 4, 4), [Conv(4), AveragePool(2), Dense(32), Dense(12), Dense(10)])
    theta = gated_minimum(net, data, loss, groups)
    certificate = certify_cell(theta, data, loss)
    assert proved(certificate)
    assert certificate.classes == 3
    expected = independent_outputs(data, groups, loss)
    assert abs(outputs_of(theta, data.x) - expected).max() < 1e-8
    assert net.risk(theta, data, loss) < fit_affine(flat, data.y, loss).risk


# What cannot be built


LAYERS = [Dense(8), Dense(2)]


@pytest.mark.parametrize(
    ("net", "error", "cause"),
    [
        (
            Network((1, 4), [Dense(7), Dense(2)]),
            AssumptionError,
            "too few neurons: the dense layer 1 has 7, expected at least 8 for 3 groups and 2 out",
        ),
        (
            Network((1, 4), [Conv(1), Dense(7), Dense(2)]),
            AssumptionError,
            "the dense layer 2 has 7, expected at least 8",
        ),
        (
            Network((1, 4), [Dense(8), Dense(1), Dense(2)]),
            AssumptionError,
            "the dense layer 2 has 1, expected at least 2",
        ),
        (
            Network((1, 4), [Conv(1), AveragePool(2), *LAYERS]),
            AssumptionError,
            "too few maps: layer 1 has 1, expected at least 2",
        ),
        (
            Network((1, 4), [Conv(2), Conv(3), AveragePool(2), Conv(1), *LAYERS]),
            AssumptionError,
            "too few maps: layer 4 has 1, expected at least 2",
        ),
        (
            Network((1, 4), [Conv(4), AveragePool(4), *LAYERS]),
            AssumptionError,
            "filters too small: layer 1 has filters of size 3, expected at least 5",
        ),
        (Network((1, 4), LAYERS, ReLU(1.0)), ValueError, "expected an activation with a kink, got"),
        (Network((1, 4), [Dense(2)]), ValueError, "expected a hidden dense layer below the last"),
        (Network((1, 4), [Conv(4), Dense(2)]), ValueError, "expected a hidden dense layer"),
        (Network((1, 4), [Conv(2), AveragePool(4)]), ValueError, "a dense layer at the end"),
    ],
)
def test_networks_without_room_or_of_another_kind_are_refused(net, error, cause):
    data = random_set((1, 4))
    groups = Groups.equal(data.x, np.ones(4), 3)
    with pytest.raises(error, match=re.escape(cause)) as caught:
        gated_minimum(net, data, SQUARED, groups)
    assert "\n" not in str(caught.value)


def test_channels_without_a_map_are_refused():
    data = random_set((2, 3))
    net = Network((2, 3), [Conv(2), Conv(1), *LAYERS])
    with pytest.raises(AssumptionError, match="too few maps: layer 2 has 1, expected at least 2"):
        gated_minimum(net, data, SQUARED, Groups.equal(data.x, np.ones(6), 2))


def test_a_group_of_one_class_has_no_minimiser_and_is_named():
    data = random_set((1, 3), 60)
    groups = Groups.equal(data.x, random_direction((1, 3)), 3)
    labels = np.random.default_rng(0).integers(0, 2, 60)
    net, loss = Network((1, 3), LAYERS), CrossEntropy()
    mixed = TrainingSet(data.x, one_hot(labels, 2))
    check_gated(gated_minimum(net, mixed, loss, groups), mixed, loss, groups)
    labels[groups.labels == 1] = 0
    pure = TrainingSet(data.x, one_hot(labels, 2))
    for build in (fit_groups, lambda *_: gated_minimum(net, pure, loss, groups)):
        with pytest.raises(AssumptionError, match=r"^group 1 of 3: .* no minimiser") as caught:
            build(pure, groups, loss)
        assert "\n" not in str(caught.value)
    smoothed = TrainingSet(data.x, one_hot(labels, 2, smoothing=0.1))
    check_gated(gated_minimum(net, smoothed, loss, groups), smoothed, loss, groups)


def test_a_direction_of_another_size_is_refused():
    data = random_set((1, 4))
    pooled = Network((1, 4), [AveragePool(2), *LAYERS])
    with pytest.raises(ValueError, match=r"expected a direction \(2,\), got \(4,\)"):
        gated_minimum(pooled, data, SQUARED, Groups.equal(data.x, np.ones(4), 2))


def test_groups_of_another_number_of_samples_are_refused():
    data = random_set((1, 4))
    groups = Groups.equal(data.x, np.ones(4), 2)
    fewer = TrainingSet(data.x[:30], data.y[:30])
    with pytest.raises(ValueError, match="groups: expected those of 30 samples, got 40"):
        fit_groups(fewer, groups, SQUARED)
    with pytest.raises(ValueError, match="groups: expected those of 30 samples, got 40"):
        gated_minimum(Network((1, 4), LAYERS), fewer, SQUARED, groups)


def test_groups_of_other_samples_are_refused():
    data = random_set((1, 4))
    groups = Groups.equal(data.x, np.ones(4), 2)
    with pytest.raises(ValueError, match="groups of these samples, got those of other ones"):
        gated_minimum(Network((1, 4), LAYERS), random_set((1, 4), seed=1), SQUARED, groups)


@pytest.mark.parametrize("outputs", [1, 3])
def test_targets_of_another_width_than_the_outputs_are_refused(outputs):
    data = random_set((1, 4), outputs=outputs)
    groups = Groups.equal(data.x, np.ones(4), 2)
    with pytest.raises(ValueError, match=re.escape(f"expected (N, 2), got (40, {outputs})")):
        gated_minimum(Network((1, 4), [Dense(20), Dense(2)]), data, SQUARED, groups)


# Spurious pairs


@in_turn(
    of_losses,
    pytest.mark.parametrize("count", [1, 2, 3]),
    pytest.mark.parametrize(
        ("shape", "below", "above"),
        [((1, 3), [], []), ((1, 2), [], [3, 2]), ((1, 4, 2), [Conv(5), AveragePool(2)], [2])],
        ids=["two layers", "four layers", "pooling"],
    ),
)
def test_one_network_holds_the_groups_and_a_refinement_of_lower_risk(
    shape, below, above, count, loss
):
    net = Network(shape, [*below, Dense(needed(count + 2, 2)), *map(Dense, above), Dense(2)])
    data = random_set(shape, 40 * count, 2, loss, seed=7)
    coarse = Groups.equal(data.x, random_direction(shape), count)
    theta = gated_minimum(net, data, loss, coarse)
    losses = loss.value(outputs_of(theta, data.x).T, data.y.T)
    if loss.name == "cross-entropy":  # above the least, the entropy of the target
        losses += (data.y * np.log(data.y)).sum(axis=1)
    sample = int(losses.argmax())
    fine = coarse.refine(data.x, sample)
    assert len(fine) in (count + 1, count + 2)
    lower = gated_minimum(net, data, loss, fine)
    for point, groups in ((theta, coarse), (lower, fine)):
        certificate = certify_cell(point, data, loss)
        assert proved(certificate)
        assert certificate.classes == len(groups)
    risks = [twin_risk(point, data, loss) for point in (theta, lower)]
    assert losses[sample] > 0.01
    assert risks[1] <= risks[0] - losses[sample] / len(data) + 1e-9  # its loss is gone, at least
    assert abs(lower.vector - theta.vector).max() > 1


def test_every_refinement_of_least_squares_is_lower_unless_the_sample_was_met():
    data = random_set((1, 2), 20, 1)
    y = data.y.copy()
    coarse = Groups.equal(data.x, UP * 2, 2)
    for k in (0, 1):  # make sample 4 of the first group an exact one
        inside = np.flatnonzero(coarse.labels == k)
        features = np.hstack([data.x[inside, 0], np.ones((len(inside), 1))])
        if k == 0:
            met = inside[4]
            others = np.delete(np.arange(len(inside)), 4)
            rest = np.linalg.lstsq(features[others], y[inside[others]])[0]
            y[met] = features[4] @ rest  # the fit of the others goes through it
    data = TrainingSet(data.x, y)
    start = fit_groups(data, coarse, SQUARED)
    residuals = abs(start.predict(data.x) - data.y).ravel()
    assert residuals[met] < 1e-12
    for sample in range(20):
        lower = fit_groups(data, coarse.refine(data.x, sample), SQUARED).risk
        assert lower <= start.risk - residuals[sample] ** 2 / 2 / 20 + 1e-15
        if sample != met:
            assert lower < start.risk


def test_every_choice_of_thresholds_is_another_minimum_of_one_network():
    data = random_set((1, 1), 7, 1)
    net = Network((1, 1), [Dense(needed(3, 1)), Dense(1)])
    places = np.sort(data.x.ravel())
    middles = (places[1:] + places[:-1]) / 2
    points = []
    for pair in itertools.combinations(middles, 2):
        theta = gated_minimum(net, data, SQUARED, Groups.at(data.x, UP, pair))
        certificate = certify_cell(theta, data, SQUARED)
        assert certificate.holds
        assert certificate.classes == 3
        points.append(theta.vector)
    assert len(points) == 15  # C(6, 2)
    assert min(abs(a - b).max() for a, b in itertools.combinations(points, 2)) > 1e-3


# The certificate of the absolute loss


def constant(value, outputs=1):
    """Return a network without a hidden layer whose output is constant."""
    theta = Network((1, 1), [Dense(outputs)]).zeros()
    theta.b[1][:] = value
    return theta


@pytest.mark.parametrize(
    ("targets", "medians", "others"),
    [
        ([5.0, 1, 2], [2.0], [1.0, 5.0, 1.5, 2.1, 2 + 1e-9, 0.0, 6.0]),
        ([5.0, 1, 2, 4], [2.0, 4.0, 3.0, 2.5], [1.0, 5.0, 1.9, 2 - 1e-9, 4 + 1e-9, 9.0]),
        ([5.0, 2, 2, 2, 1, -7], [2.0], [1.0, 1.9, 2.1, 5.0]),
        ([3.0], [3.0], [2.0, 3.1]),
        ([1.0, 2], [1.0, 1.3, 2.0], [0.9, 2.1]),
    ],
)
def test_the_medians_and_no_other_constants_are_certified(targets, medians, others):
    y = np.array(targets)[:, None]
    data = TrainingSet(np.zeros((len(y), 1, 1)), y)
    for value, holds in [(m, True) for m in medians] + [(o, False) for o in others]:
        certificate = certify_cell(constant(value), data, ABSOLUTE)
        assert certificate.holds == holds, value
        assert certificate.classes == 1
        moved = [
            ABSOLUTE.value(y.T + step, np.full((1, len(y)), value)) for step in (1e-10, -1e-10)
        ]
        start = ABSOLUTE.value(y.T, np.full((1, len(y)), value)).mean()
        assert (min(np.mean(m) for m in moved) >= start - 1e-13) == holds


def test_each_output_has_its_own_median():
    y = np.array([[1.0, 10], [2, 30], [3, 20]])
    data = TrainingSet(np.zeros((3, 1, 1)), y)
    assert certify_cell(constant([2, 20], 2), data, ABSOLUTE).holds
    assert not certify_cell(constant([2, 10], 2), data, ABSOLUTE).holds
    assert not certify_cell(constant([1, 20], 2), data, ABSOLUTE).holds


def affine(weights, bias, hidden):
    """Return the affine map as a network, with a hidden layer of strictly active units or not."""
    d_y, d_x = weights.shape
    net = Network((1, d_x), [*([Dense(d_y + 1)] if hidden else []), Dense(d_y)])
    theta = net.zeros()
    theta.W[1].weights[:d_y], theta.b[1][:d_y] = weights, bias
    if hidden:
        theta.b[1][:d_y] += 100
        theta.b[1][d_y] = -1
        theta.W[2].weights[:, :d_y] = np.eye(d_y)
        theta.b[2][:] = -100
    return theta


@in_turn(
    pytest.mark.parametrize("hidden", [False, True]), pytest.mark.parametrize("seed", range(2))
)
def test_least_deviations_are_certified_and_nothing_near_them_is(seed, hidden):
    rng = np.random.default_rng(seed)
    data = random_set((1, 3), 25, 2, seed=seed)
    x = data.x.reshape(25, 3)
    fit = fit_affine(x, data.y, ABSOLUTE)
    assert certify_cell(affine(fit.weights, fit.bias, hidden), data, ABSOLUTE).holds
    residuals = abs(x @ fit.weights.T + fit.bias - data.y)
    for step in (1e-1, 1e-4, 1e-7):
        for k, n in itertools.product(range(2), range(4)):  # one coefficient
            weights, bias = fit.weights.copy(), fit.bias.copy()
            if n < 3:
                weights[k, n] += step * rng.choice([-1, 1])
            else:
                bias[k] += step * rng.choice([-1, 1])
            certificate = certify_cell(affine(weights, bias, hidden), data, ABSOLUTE)
            assert not certificate.holds
            assert certificate.stationarity > 1e-3
        for k in range(2):  # along an edge: all but one of the targets that were met still are
            met = np.flatnonzero(residuals[:, k] < 1e-10)
            assert len(met) == 4
            kept = np.hstack([x[met[1:]], np.ones((3, 1))])
            edge = step * np.linalg.svd(kept)[2][-1] * rng.choice([-1, 1])
            weights, bias = fit.weights.copy(), fit.bias.copy()
            weights[k] += edge[:3]
            bias[k] += edge[3]
            still = abs(x[met] @ weights[k] + bias[k] - data.y[met, k]) < 1e-12
            assert still.tolist() == [False, True, True, True]
            assert not certify_cell(affine(weights, bias, hidden), data, ABSOLUTE).holds


def test_gates_with_one_map_off_its_fit_are_not_certified():
    data = random_set((1, 3), 60, seed=2)
    net = Network((1, 3), [Dense(8), Dense(2)])
    theta = gated_minimum(net, data, ABSOLUTE, Groups.equal(data.x, np.ones(3), 3))
    assert certify_cell(theta, data, ABSOLUTE).holds
    start = twin_risk(theta, data, ABSOLUTE)
    for n in (0, 1, 3, 4, 6):  # F_1 and the units of V_1 and V_2
        moved = theta.copy()
        moved.b[1][n] += 1e-5
        certificate = certify_cell(moved, data, ABSOLUTE)
        assert not certificate.holds
        assert certificate.classes == 3
        assert twin_risk(moved, data, ABSOLUTE) > start


@settings(max_examples=12, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1), st.integers(2, 12), st.integers(1, 3))
def test_among_the_vertices_exactly_the_best_are_certified(seed, samples, features):
    """Integers: many ties, and targets that more maps meet than need to."""
    rng = np.random.default_rng(seed)
    x = rng.integers(-2, 3, size=(samples, 1, features)).astype(float)
    y = rng.integers(-3, 4, size=(samples, 1)) + 0.5
    data, flat = TrainingSet(x, y), np.hstack([x[:, 0], np.ones((samples, 1))])
    least = fit_affine(x[:, 0], y, ABSOLUTE).risk
    for _ in range(5):
        chosen = rng.choice(samples, min(samples, features + 1), replace=False)
        found = np.linalg.lstsq(flat[chosen], y[chosen])[0].T
        found = np.where(abs(found) < 1e-12, 0, found)
        theta = affine(found[:, :-1], found[:, -1], hidden=True)
        best = abs(flat @ found.T - y).mean() <= least + 1e-9
        met = abs(flat @ found.T - y).max() < 1e-9
        assert met or certify_cell(theta, data, ABSOLUTE).holds == best


@pytest.mark.parametrize("scale", [1e-2, 1e-4])
def test_least_deviations_from_small_features_are_certified(scale):
    for seed in range(3):
        data = random_set((1, 3), 60, seed=seed)
        data = TrainingSet(scale * data.x, data.y)
        groups = Groups.equal(data.x, np.ones(3), 3)
        theta = gated_minimum(Network((1, 3), LAYERS), data, ABSOLUTE, groups)
        assert certify_cell(theta, data, ABSOLUTE).holds


def test_least_deviations_of_images_are_certified():
    """Many features, of different sizes, and groups that miss classes: most targets are met."""
    images = datasets.bundled().subset(300, seed=0)
    pixels = images.pixels().reshape(-1, 1, 7, 4, 7, 4).mean(axis=(3, 5))
    data = TrainingSet(pixels, one_hot(images.labels, images.classes, smoothing=0.1))
    flat = pixels.reshape(300, 49)
    direction = np.linalg.svd(flat - flat.mean(axis=0), full_matrices=False)[2][0]
    groups = Groups.equal(data.x, direction, 3)
    theta = gated_minimum(Network((1, 7, 7), [Dense(32), Dense(10)]), data, ABSOLUTE, groups)
    assert certify_cell(theta, data, ABSOLUTE).holds


def test_a_sample_that_is_met_and_pulls_nowhere_is_no_obstacle():
    """At x = 0 the pulls of two samples cancel; the one at x = 1 is met with subgradient 0."""
    data = TrainingSet(
        np.array([1.0, 0, 0]).reshape(3, 1, 1), np.array([[0.245], [1.047], [0.473]])
    )
    fit = fit_affine(data.x[:, 0], data.y, ABSOLUTE)
    for theta in (affine(fit.weights, fit.bias, hidden) for hidden in (False, True)):
        assert certify_cell(theta, data, ABSOLUTE).holds


@pytest.mark.parametrize(
    ("seed", "grid"),
    [(0, True), (1, False), (260, True), (151, False)],
)
def test_least_deviations_from_any_vertex_are_certified_without_a_hidden_layer(seed, grid):
    rng = np.random.default_rng(seed)
    samples, features = rng.integers(6, 25), int(rng.integers(1, 5))
    x, y = rng.integers(-3, 4, size=(samples, 1, features)), rng.normal(size=(samples, 1))
    data = TrainingSet(x.astype(float) if grid else rng.normal(size=x.shape), y)
    fit = fit_affine(data.x[:, 0], data.y, ABSOLUTE)
    assert certify_cell(affine(fit.weights, fit.bias, hidden=False), data, ABSOLUTE).holds


@pytest.mark.parametrize("constant", [1e12, 1e15])
def test_large_errors_of_the_outputs_are_no_excuse(constant):
    data = random_set((1, 2), 30, 1)
    theta = affine(np.array([[0.3, -0.2]]), np.zeros(1), hidden=True)
    theta.b[1][0], theta.b[2][0] = constant, -constant
    assert not certify_cell(theta, data, ABSOLUTE).holds


@in_turn(
    pytest.mark.parametrize("slope", [0.01, 0.6, 2.0]),
    pytest.mark.parametrize("K", [1, 2, 4]),
    pytest.mark.parametrize(
        ("shape", "layers"),
        [
            ((1, 3), [Dense(12), Dense(5), Dense(2)]),
            ((1, 4, 4), [Conv(1), Conv(4), AveragePool(2), Dense(14), Dense(2)]),
        ],
    ),
)
def test_leaky_gates_are_certified_too(slope, K, shape, layers):
    rng = np.random.default_rng(K)
    data = TrainingSet(rng.normal(size=(120, *shape)), rng.normal(size=(120, 2)))
    groups = Groups.equal(data.x, rng.normal(size=data.x[0].size), K)
    theta = gated_minimum(Network(shape, layers, ReLU(slope)), data, SQUARED, groups)
    expected = independent_outputs(data, groups, SQUARED)
    assert abs(outputs_of(theta, data.x) - expected).max() < 1e-9
    certificate = certify_cell(theta, data, SQUARED)
    assert certificate.holds
    assert certificate.classes == K


# The spurious pair


@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("K", [1, 2, 3])
def test_setting_the_worst_sample_apart_gives_a_lower_certified_minimum(K, outputs):
    rng = np.random.default_rng(K)
    data = TrainingSet(rng.normal(size=(40, 1, 3)), rng.normal(size=(40, outputs)))
    net = Network((1, 3), [Dense(outputs + (K + 1) * (outputs + 1)), Dense(4), Dense(outputs)])
    groups = Groups.equal(data.x, rng.normal(size=3), K)
    pair = spurious_pair(net, data, SQUARED, groups)
    assert pair.verdict == "spurious local minimum"
    assert pair.coarse.net == pair.fine.net == net
    assert [certificate.classes for certificate in pair.certificates] == [K, len(pair.groups[1])]
    for point, stated in zip((pair.coarse, pair.fine), pair.risks, strict=True):
        outputs_found = outputs_of(point, data.x)
        assert stated == pytest.approx(0.5 * ((outputs_found - data.y) ** 2).sum(axis=1).mean())
    assert pair.risks[1] < pair.risks[0]
    worst = ((outputs_of(pair.coarse, data.x) - data.y) ** 2).sum(axis=1).argmax()
    assert abs(outputs_of(pair.fine, data.x)[worst] - data.y[worst]).max() < 1e-9
    assert "verdict: spurious local minimum" in str(pair)


def test_a_pair_of_exact_fits_is_not_called_spurious():
    x = np.linspace(-1, 1, 12)
    data = TrainingSet(x[:, None, None], (2 * x + 1)[:, None])
    net = Network((1, 1), [Dense(7), Dense(1)])
    pair = spurious_pair(net, data, SQUARED, Groups.equal(data.x, [1.0], 2))
    assert pair.verdict != "spurious local minimum"


def test_of_repeated_samples_none_is_set_apart_but_the_next_one_is():
    rng = np.random.default_rng(3)
    drawn = np.array([*range(30), *range(20)])  # the last ten occur once
    data = TrainingSet(rng.normal(size=(30, 1, 3))[drawn], rng.normal(size=(50, 1)))
    data.y[:20] += 9 * (-1) ** np.arange(20)[:, None]
    net = Network((1, 3), [Dense(9), Dense(1)])
    pair = spurious_pair(net, data, SQUARED, Groups.equal(data.x, rng.normal(size=3), 2))
    assert pair.verdict == "spurious local minimum"
    losses = (outputs_of(pair.coarse, data.x) - data.y)[:, 0] ** 2
    once = np.bincount(drawn)[drawn] == 1
    assert losses.argmax() not in np.flatnonzero(once)
    labels = pair.groups[1].labels
    alone = np.flatnonzero(np.bincount(labels)[labels] == 1)
    assert alone.tolist() == [np.where(once, losses, -1).argmax()]


def test_places_that_differ_by_rounding_only_are_the_same():
    """Sums of many whole numbers over 255, added in another order."""
    rng = np.random.default_rng(0)
    x = rng.integers(256, size=(200, 1, 30)) / 255
    x = np.concatenate([x, x[..., rng.permutation(30)]])
    places = x.reshape(400, 30) @ np.ones(30)
    assert (places[:200] != places[200:]).any()
    for groups in (Groups.equal(x, np.ones(30), 7), Groups.gaps(x, np.ones(30), 7)):
        assert (groups.labels[:200] == groups.labels[200:]).all()
        assert abs(places[:, None] - groups.thresholds).min() > 1e-9
    for sample in (3, 203):
        with pytest.raises(AssumptionError, match=f"sample {sample} can't be alone"):
            Groups.equal(x, np.ones(30), 2).refine(x, sample)


def test_samples_that_share_their_places_leave_no_pair():
    x = np.repeat(np.linspace(-1, 1, 6), 2)
    data = TrainingSet(x[:, None, None], np.random.default_rng(0).normal(size=(12, 1)))
    net = Network((1, 1), [Dense(7), Dense(1)])
    with pytest.raises(AssumptionError, match="no sample has a place of its own"):
        spurious_pair(net, data, SQUARED, Groups.equal(data.x, [1.0], 2))
