"""What is enclosed over a box of parameters holds at its points."""

from types import SimpleNamespace

import block_problems
import numpy as np
import pytest
from certificate_problems import LAYOUTS
from shared import in_turn
from strict_problems import at_kink, kinks_feeding_kinks

from tinyspur.certificates.box_hessians import second_order
from tinyspur.certificates.boxes import LARGEST, Box, first_order, signal_bounds
from tinyspur.certificates.enclosures import Enclosure, exact
from tinyspur.certificates.free import choose_coordinates, fields
from tinyspur.certificates.growth import (
    box_around,
    couplings,
    multiplier_rates,
    penalised,
    shares,
)
from tinyspur.certificates.stationary import find_stationary, near_kinks
from tinyspur.datasets.samples import TrainingSet
from tinyspur.engine.activations import GELU, Identity, ReLU, Tanh
from tinyspur.engine.held import Held, HeldKink
from tinyspur.engine.losses import AbsoluteLoss, CrossEntropy, HuberLoss, SquaredLoss
from tinyspur.engine.network import Network
from tinyspur.engine.parameters import Parameters
from tinyspur.layers import AveragePool, Conv, Dense, MaxPool

LOSSES = [SquaredLoss(), CrossEntropy(), AbsoluteLoss(), HuberLoss(1.0)]
SLACK = 1e-12  # what the float results that are compared may be off by
SAMPLES = 6


def problem(layout, sigma, loss, seed=0):
    """Return a point and units held at arbitrary places, as the passes allow."""
    rng = np.random.default_rng(seed)
    net = Network(*LAYOUTS[layout], sigma)
    width = int(np.prod(net.shapes[-1]))
    soft = isinstance(loss, CrossEntropy)
    y = rng.dirichlet(np.ones(width), SAMPLES) if soft else rng.normal(size=(SAMPLES, width))
    data = TrainingSet(rng.normal(size=(SAMPLES, *net.input_shape)), y)
    kinks = []
    if sigma.piecewise_linear:
        first, *others = (n for n in net.slots if n < net.depth)
        kinks.append(HeldKink(first, 1, np.array([net.positions(first)] * 2), np.array([1, 2])))
        kinks += [HeldKink(n, 0, np.array([0]), np.array([3])) for n in others]
    if isinstance(loss, AbsoluteLoss):
        kinks.append(HeldKink(net.depth + 1, 0, np.array([0]), np.array([4])))
    return Parameters(net, rng.normal(size=net.size)), Held(net, data, loss, kinks)


def check_inside(found, value):
    off = abs(found.middle - value) - found.radius
    assert (off <= SLACK * (1 + abs(value))).all()


@in_turn(
    pytest.mark.parametrize("layout", LAYOUTS),
    pytest.mark.parametrize("sigma", [ReLU(), ReLU(0.2), Tanh(), GELU()], ids=str),
)
def test_gradients_hessians_and_signals_are_in_their_enclosures(layout, sigma):
    check_enclosures(*problem(layout, sigma, LOSSES[list(LAYOUTS).index(layout) % 4]))


@in_turn(
    pytest.mark.parametrize("kind", block_problems.KINDS),
    pytest.mark.parametrize("slope", [0.0, 0.2]),
)
def test_in_blocks_and_after_all_layers_they_are_in_their_enclosures(kind, slope):
    loss = LOSSES[list(block_problems.KINDS).index(kind) % 4]
    check_enclosures(*block_problems.problem(kind, slope, loss, seed=1))


def check_enclosures(theta, held):
    rng = np.random.default_rng(1)
    multipliers = rng.normal(size=len(held.kinks))
    coordinates = np.sort(rng.permutation(theta.net.size)[: 2 * theta.net.size // 3])
    for size in (0.0, 1e-7):
        middle = theta.vector + size * rng.uniform(-1, 1, theta.net.size)
        box = Box(
            Parameters(theta.net, middle),
            Parameters(theta.net, np.full(theta.net.size, size)),
            Enclosure(multipliers + 0.9 * size, np.full(len(multipliers), size)),
        )
        first, second = first_order(held, box), second_order(held, box, coordinates)
        exact = held.gradient(theta, multipliers)
        check_inside(first.gradient, exact.gradient)
        check_inside(first.values, exact.values)
        check_inside(first.signals, exact.signals)
        check_inside(first.risk, exact.risk)
        check_inside(first_order(held, box, released=True).gradient, exact.gradient)
        part = np.ix_(coordinates, coordinates)
        hessian = held.hessian(theta, multipliers)[part]
        check_inside(second.hessian, hessian)
        check_inside(second.jacobian, held.jacobian(theta)[:, coordinates])
        if not size:
            assert second.hessian.radius.max() < 1e-9 * max(1, abs(hessian).max())


def test_an_average_of_a_held_unit_and_inactive_ones_stays_the_largest_of_its_window():
    net = Network((1, 4), (Conv(1, 1), AveragePool(2), MaxPool(2), Dense(1)))
    x = np.array([[[0.0, -1, -1, -1]], [[1.0, 2, 1, 3]]])
    held = Held(
        net,
        TrainingSet(x, np.ones((2, 1))),
        SquaredLoss(),
        [HeldKink(1, 0, np.zeros(1, int), np.zeros(1, int))],
    )
    radii = Parameters(net, np.full(net.size, 1e-9))
    box = Box(Parameters(net, np.array([1.0, 0, 1, 0])), radii, Enclosure(np.zeros(1), np.ones(1)))
    assert first_order(held, box, released=True).kept
    held.data.x[0, 0, 0] = 1e-9  # as if held far from its kink: others may be larger
    held.data.x[0, 0, 2] = 1e-9
    assert not first_order(held, box, released=True).kept


def test_a_pattern_that_may_change_is_noticed():
    theta, held = problem("shallow", ReLU(), SquaredLoss())
    held, nothing = Held(theta.net, held.data, SquaredLoss()), Enclosure(np.zeros(0), np.zeros(0))
    x = held.data.x.reshape(SAMPLES, -1)
    z = x @ theta.W[1].weights.T + theta.b[1]
    reach = (abs(z) / (abs(x).sum(axis=1, keepdims=True) + 1)).min()
    for share, kept in ((0.9, True), (1.1, False)):
        radii = theta.net.zeros()
        radii.W[1].weights[:], radii.b[1][:] = share * reach, share * reach
        assert first_order(held, Box(theta, radii, nothing)).kept == kept


def test_signals_are_bounded():
    theta, held = problem("dense", ReLU(0.2), SquaredLoss())
    multipliers = np.array([0.3, -0.2])
    box = Box(theta, theta.net.zeros(), Enclosure(multipliers, np.zeros(2)))
    biases = held.gradient(theta, multipliers).gradient
    for layer, bound in signal_bounds(held, box).items():
        gradient = Parameters(theta.net, biases).b[layer]
        assert (abs(gradient) <= bound.sum(axis=1) * (1 + 1e-12)).all()


def test_pieces_of_the_first_of_many_samples_count():
    net, x = Network((1, 1), (Dense(1, activation=ReLU()),)), np.ones((LARGEST + 1, 1, 1))
    x[0] = -0.5
    held = Held(net, TrainingSet(x, np.ones((len(x), 1))), SquaredLoss())
    for reach, kept in ((0.3, True), (0.4, False)):  # z is 1/2 and may be off by 3/2 times that
        radii = Parameters(net, np.full(2, reach))
        box = Box(Parameters(net, np.ones(2)), radii, exact(np.zeros(0)))
        assert first_order(held, box).kept == kept


@pytest.mark.parametrize(("loss", "corner"), [(AbsoluteLoss(), 0), (HuberLoss(2.0), 2)])
@pytest.mark.parametrize("side", [1, -1])
def test_pieces_of_the_loss_are_kept_up_to_its_corners(loss, corner, side):
    net = Network((1, 1), (Dense(1, bias=False),))
    for off, kept in ((0.3, True), (0.2, False), (-0.2, False), (-0.3, True)):
        y = np.array([[1 - side * corner - off]])
        held = Held(net, TrainingSet(np.ones((1, 1, 1)), y), loss)
        box = Box(
            Parameters(net, np.ones(1)), Parameters(net, np.full(1, 0.25)), exact(np.zeros(0))
        )
        assert first_order(held, box).kept == kept


@pytest.mark.parametrize("tied", [0, 1])
def test_a_choice_is_kept_up_to_where_another_entry_may_be_the_largest(tied):
    """Of the entries 3, 3 or 0, and 5 / 2, which move by 3 r and 5 r / 2."""
    net = Network((2, 3), (Conv(1, 1, bias=False, activation=Identity()), MaxPool(3), Dense(1)))
    x = np.array([[[3.0, 3.0 * tied, 2], [0, 0, 0.5]]])
    pair = HeldKink(2, 0, np.zeros(1, int), np.zeros(1, int), np.array([[0, 1]]))
    held = Held(net, TrainingSet(x, np.ones((1, 1))), SquaredLoss(), [pair] if tied else [])
    theta = Parameters(net, np.ones(net.size))
    for reach, kept in ((0.9 / 11, True), (1.1 / 11, False)):
        radii = Parameters(net, np.full(net.size, reach))
        assert first_order(held, Box(theta, radii, exact(np.zeros(tied)))).kept == kept


# The lemma's parts


def test_couplings_are_sums_over_ways_that_pass_no_other_held_unit():
    rng = np.random.default_rng(0)
    net = Network((1, 2), [Dense(3), Dense(3), Dense(2), Dense(1)], ReLU(0.2))
    theta = Parameters(net, rng.normal(size=net.size))
    data = TrainingSet(rng.normal(size=(5, 1, 2)), np.zeros((5, 1)))
    places = [(1, 0), (1, 2), (2, 1), (3, 0)]
    kinks = [HeldKink(layer, unit, np.array([unit]), np.array([3])) for layer, unit in places]
    held = Held(net, data, SquaredLoss(), kinks)
    sizes, thin = [abs(theta.W[layer].weights) for layer in range(1, 5)], np.zeros(4)
    slopes, o = [], data.x[3, 0].copy()
    for layer in range(1, 4):
        z = theta.W[layer].weights @ o + theta.b[layer]
        slopes.append(np.where(z > 0, 1, 0.2))
        for at, unit in places:
            if at == layer:
                slopes[-1][unit], z[unit] = 0, 0
        o = z * slopes[-1]
    expected = np.zeros((4, 4))
    expected[2, :2] = sizes[1][1, [0, 2]]
    expected[3, 2] = sizes[2][0, 1]
    expected[3, :2] = (sizes[2][0] * slopes[1]) @ sizes[1][:, [0, 2]]
    for reach in (0.0, 1e-3):
        box = Box(theta, Parameters(net, np.full(net.size, reach)), exact(thin))
        found = couplings(SimpleNamespace(held=held), box)
        far = theta.copy()  # with weights as large as they can be in the box
        for layer in range(1, 5):
            far.W[layer].weights += reach * np.sign(far.W[layer].weights)
        farther = far.W[2].weights[1, [0, 2]], far.W[3].weights[0, 1]
        assert (found[2, :2] >= abs(farther[0])).all() and found[3, 2] >= abs(farther[1])
        assert (found >= expected).all() and (found <= expected + 10 * reach + 1e-12).all()


def test_couplings_pass_the_second_entry_of_a_tie_and_reach_both():
    rng = np.random.default_rng(3)
    net = Network((1, 4), [Conv(2, 1), Conv(2, 1), MaxPool(2), Dense(2), Dense(1)], ReLU(0.2))
    theta, nothing = Parameters(net, rng.normal(size=net.size)), exact(np.zeros(3))
    data = TrainingSet(rng.normal(size=(4, 1, 4)), np.zeros((4, 1)))
    at = np.array([3])
    kinks = [
        HeldKink(1, 0, np.array([1]), at),
        HeldKink(3, 0, np.array([0]), at, np.array([[0, 1]])),
        HeldKink(4, 0, np.array([0]), at),
    ]
    held = Held(net, data, SquaredLoss(), kinks)
    z = theta.W[1] @ data.x[3].T + np.repeat(theta.b[1], 4)[:, None]
    o = np.where(z > 0, z, 0.2 * z)
    o[1] = 0
    z = theta.W[2] @ o + np.repeat(theta.b[2], 4)[:, None]
    slopes = np.where(z > 0, 1, 0.2)[:, 0]
    o = (z[:, 0] * slopes).reshape(2, 2, 2)
    reads = slopes[[1, 5]] * abs(theta.W[2].weights[:, 0, 0])  # what the held unit moves of o^2
    reads[1] *= o[1, 0].argmax() == 1  # chosen of the other map
    up = abs(theta.W[4].weights[0, [0, 2]])
    found = couplings(SimpleNamespace(held=held), Box(theta, net.zeros(), nothing))
    expected = np.zeros((3, 3))
    expected[1, 0], expected[2, 1], expected[2, 0] = reads[0], up[0], up @ reads
    assert np.allclose(found, expected, rtol=1e-12) and (found >= expected).all()


def test_multipliers_of_a_family_move_no_faster_than_their_rates():
    """With w from 1 to 1 + t the multiplier of `at_kink`, 1 / 6, becomes 1 / (6 + 6 t)."""
    theta, data = at_kink()
    kinks = near_kinks(theta, data, SquaredLoss(), 1e-9)
    at = find_stationary(theta, data, SquaredLoss(), kinks, False)
    for t in (1e-6, 0.1):
        box = box_around(at, np.full(3, 2 * t), t, np.full(1, t))
        [rate] = multiplier_rates(at, box, at.coordinates.flow(at.held, box))
        moves = [abs(1 / (6 + 6 * s) - 1 / 6) for s in (t, -t)]
        assert max(moves) <= rate * t <= (1 + 20 * t) * max(moves) * (1 + 1e-4)


def mixed_units(samples=12, seed=0):
    """Return a stationary point with a unit at its kink for a sample where another one is active.

    Both are active for all others, so that the first one can be added to the second.
    """
    rng = np.random.default_rng(seed)
    net = Network((1, 3), (Dense(2), Dense(1)))
    x, theta = rng.normal(size=(samples, 1, 3)), Parameters(net, rng.normal(size=net.size))
    z = x[:, 0] @ theta.W[1].weights.T
    theta.b[1][:] = -z.min(axis=0) + (0, 3)  # the first is 0 for one sample
    at = int(z[:, 0].argmin())
    kinks = [HeldKink(1, 0, np.zeros(1, int), np.array([at]))]
    theta.W[2].weights[:] = 0.1, 10
    # Residuals and a multiplier with grad L = 0: it is linear in both.
    o, columns = net.forward(theta, x), []
    for n in range(samples):
        held = Held(net, TrainingSet(x, o - np.eye(samples)[:, [n]]), SquaredLoss(), kinks)
        columns.append(held.gradient(theta, np.zeros(1)).gradient)
    columns.append(held.jacobian(theta)[0])
    found = np.linalg.svd(np.array(columns).T)[2][-1]
    data = TrainingSet(x, o - found[:-1, None])
    return theta, Held(net, data, SquaredLoss(), kinks), found[-1:]


def test_multipliers_of_units_that_are_mixed_move_no_faster_than_their_rates():
    """Where b is added to a, the multiplier of a kink of b moves by what reaches a there."""
    theta, held, multipliers = mixed_units()
    net, coordinates = theta.net, choose_coordinates(held, theta, held.data)
    assert (0, 1) not in [one.mixes[1:] for one in coordinates.generators if one.mixes]
    assert (1, 0) in [one.mixes[1:] for one in coordinates.generators if one.mixes]
    at = SimpleNamespace(held=held, coordinates=coordinates)
    box = Box(theta, net.zeros(), exact(multipliers))
    rows = fields(coordinates.generators, coordinates.interpolations, held, box)
    rows = rows.middle[coordinates.rows]

    def multiplier(point):
        gradient, Z = held.gradient(point, np.zeros(1)).gradient, held.jacobian(point)
        found, *_ = np.linalg.lstsq(Z.T, -gradient, rcond=None)
        return found[0]

    assert np.isclose(multiplier(theta), multipliers[0], rtol=1e-9)
    moves, t = 0.0, 1e-6
    for d in np.linalg.inv(rows[:, coordinates.frozen]) @ rows:
        ends = [multiplier(Parameters(net, theta.vector + s * d)) for s in (t, -t)]
        moves += abs(ends[0] - ends[1]) / (2 * t)
    [rate] = multiplier_rates(at, box, coordinates.flow(held, box))
    assert moves * (1 - 1e-6) <= rate <= 1.2 * moves
    [sample], N = held.kinks[0].samples, len(held.data)
    off = net.forward(theta, held.data.x)[sample] - held.data.y[sample]
    reach = {0: abs(multipliers[0]), 1: abs(off[0]) * 10 / N}  # at unit 0 itself, and at the other
    c = abs(np.linalg.inv(rows[:, coordinates.frozen])).sum(axis=0)
    mixes = [coordinates.generators[n].mixes if n < 4 else None for n in coordinates.rows]
    parts = [c[k] * reach[m[1]] for k, m in enumerate(mixes) if m is not None and m[2] == 0]
    assert len(parts) == 2 and rate == pytest.approx(sum(parts), rel=1e-9)


def test_rates_of_multipliers_over_a_box_are_no_smaller_than_at_its_points():
    theta, held, multipliers = mixed_units()
    coordinates, rng = choose_coordinates(held, theta, held.data), np.random.default_rng(0)
    at, largest = SimpleNamespace(held=held, coordinates=coordinates), 0.0

    def rate(point, reach):
        box = Box(point, Parameters(theta.net, reach), exact(multipliers))
        [found] = multiplier_rates(at, box, coordinates.flow(held, box))
        return found

    reach = 1e-3 * abs(theta.vector)
    bound = rate(theta, reach)
    for _ in range(20):
        near = Parameters(theta.net, theta.vector + reach * rng.choice([-1.0, 1.0], len(reach)))
        largest = max(largest, rate(near, 0 * reach))
    assert rate(theta, 0 * reach) < largest <= bound


def test_couplings_bound_what_a_kink_does_to_those_above():
    theta, data = kinks_feeding_kinks()
    kinks = near_kinks(theta, data, SquaredLoss(), 1e-6)
    found = find_stationary(theta, data, SquaredLoss(), kinks, False)
    box = Box(found.theta, theta.net.zeros(), Enclosure(found.multipliers, 0 * found.multipliers))
    coupled = couplings(found, box)
    upper, lower = np.argwhere(coupled)[0]
    below, above = found.held.kinks[lower], found.held.kinks[upper]
    assert (below.layer, above.layer) == (1, 2) and below.samples[0] == above.samples[0]
    weight = found.theta.W[2].weights[above.units[0], below.units[0]]
    assert np.isclose(coupled[upper, lower], abs(weight), rtol=1e-6)
    assert (coupled != 0).sum() == 1


def test_shares_leave_room_for_what_feeds_the_kinks():
    theta, data = kinks_feeding_kinks()
    kinks = near_kinks(theta, data, SquaredLoss(), 1e-6)
    found = find_stationary(theta, data, SquaredLoss(), kinks, False)
    layers = np.array([kink.layer for kink in found.held.kinks])
    rng = np.random.default_rng(0)
    for scale in (0.1, 10.0):
        room = rng.uniform(0.1, 1, len(layers))
        coupled = scale * rng.random((len(layers),) * 2) * (layers[:, None] > layers)
        mu = shares(found, room, coupled)
        assert (mu > 0).all() and (mu + coupled.T @ mu <= room).all()
    assert np.allclose(shares(found, room, 0 * coupled), room)


def test_a_penalised_matrix_is_no_larger_than_any_in_the_box():
    rng = np.random.default_rng(0)
    A, Z = rng.normal(size=(5, 5)), rng.normal(size=(2, 5))
    H, weights, R = A @ A.T, np.array([3.0, 40.0]), 0.05 * rng.random((2, 5))
    found = penalised(Enclosure(H, 0 * H), Enclosure(Z, R), weights)
    for _ in range(50):
        near = Z + R * rng.uniform(-1, 1, R.shape)
        more = H + (near.T * weights) @ near
        least = np.linalg.eigvalsh(more - found.middle)[0]
        assert least >= -np.linalg.norm(found.radius, 2)


@pytest.mark.parametrize("kind", block_problems.KINDS)
def test_pieces_and_choices_in_blocks_and_after_poolings_are_kept_until_they_may_change(kind):
    theta, held = block_problems.problem(kind, 0.2, seed=1, kinks=False)
    net, rng, nothing = theta.net, np.random.default_rng(0), exact(np.zeros(0))
    patterns = net.patterns(theta, held.data.x)
    for size in 10.0 ** np.arange(-12, 2, 3):
        moves = size * rng.choice([-1.0, 1.0], (8, net.size))
        near = [net.patterns(Parameters(net, theta.vector + d), held.data.x) for d in moves]
        same = all((one[n] == patterns[n]).all() for one in near for n in patterns)
        box = Box(theta, Parameters(net, np.full(net.size, size)), nothing)
        kept = first_order(held, box).kept
        assert same or not kept
        assert kept or size > 1e-9
        if not same:
            return
    assert not patterns
