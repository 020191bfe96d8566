"""Free coordinates: what is frozen changes nothing, and it explains every flat direction."""

import itertools
from dataclasses import replace

import block_problems
import numpy as np
import pytest
from certificate_problems import LAYOUTS
from shared import in_turn
from strict_problems import at_kink

from tinyspur.certificates.boxes import Box
from tinyspur.certificates.enclosures import exact
from tinyspur.certificates.families import Symmetry
from tinyspur.certificates.free import choose_coordinates, fields
from tinyspur.certificates.generators import incoming, whole_null_vectors
from tinyspur.certificates.interpolations import fewest_places
from tinyspur.certificates.stationary import near_kinks
from tinyspur.datasets.samples import TrainingSet
from tinyspur.engine.activations import Identity, ReLU, Sigmoid, Tanh
from tinyspur.engine.held import Held, HeldKink
from tinyspur.engine.losses import CrossEntropy, SquaredLoss
from tinyspur.engine.network import Network
from tinyspur.engine.parameters import Parameters
from tinyspur.layers import AveragePool, Conv, Dense, MaxPool, Residual

STEP = 1e-5


def problem(net, samples, seed, loss=None):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(samples, *net.input_shape))
    width = int(np.prod(net.shapes[-1]))
    soft = isinstance(loss, CrossEntropy)
    y = rng.dirichlet(np.ones(width), samples) if soft else rng.normal(size=(samples, width))
    data = TrainingSet(x, y)
    return Parameters(net, rng.normal(size=net.size)), Held(net, data, loss or SquaredLoss())


def fields_at(theta, held):
    found = choose_coordinates(held, theta, held.data)
    box = Box(theta, theta.net.zeros(), exact(np.zeros(len(held.kinks))))
    return found, fields(found.generators, found.interpolations, held, box)


def check_fields(theta, held):
    """Check that outputs move at second order along all fields, and not at all with idle ones."""
    found, rows = fields_at(theta, held)
    before, x = theta.net.forward(theta, held.data.x), held.data.x
    for d in in_few_sums(rows.middle):
        moves = [theta.net.forward(moved(theta, t * d), x) - before for t in (STEP, -STEP)]
        first = (moves[0] - moves[1]) / (2 * STEP)
        if isinstance(held.loss, CrossEntropy):
            first = first - first.mean(axis=1, keepdims=True)
        assert abs(first).max() <= 1e-7 * (1 + abs(before).max())
    d = np.zeros(theta.net.size)
    d[found.idle] = STEP
    assert (theta.net.forward(moved(theta, d), x) == before).all()
    return found


def in_few_sums(rows, count=8):
    """Yield the rows, where they are many a few sums of all of them with random signs."""
    rows = rows / np.maximum(1, abs(rows).max(axis=1, initial=0))[:, None]
    if len(rows) > count:
        rows = np.random.default_rng(0).choice([-1.0, 1.0], (count, len(rows))) @ rows
    for row in rows:
        yield row / max(1.0, abs(row).max())


def moved(theta, d):
    return Parameters(theta.net, theta.vector + d)


@in_turn(
    pytest.mark.parametrize("layout", [name for name in LAYOUTS if "last" not in name]),
    pytest.mark.parametrize("slope", [0.0, 0.2]),
)
def test_along_the_fields_the_outputs_do_not_move(layout, slope):
    net = Network(*LAYOUTS[layout], ReLU(slope))
    theta, held = problem(net, 7, 1)
    check_fields(theta, held)


@in_turn(
    pytest.mark.parametrize("kind", block_problems.KINDS),
    pytest.mark.parametrize("slope", [0.0, 0.2]),
)
def test_along_the_fields_of_blocks_and_of_all_layers_the_outputs_do_not_move(kind, slope):
    loss = CrossEntropy() if slope else SquaredLoss()
    check_fields(*block_problems.problem(kind, slope, loss, 40, seed=1, kinks=False))


@in_turn(
    pytest.mark.parametrize("kind", block_problems.KINDS),
    pytest.mark.parametrize("slope", [0.0, 0.2]),
)
def test_at_kinks_l_and_v_do_not_change_along_the_fields_whatever_the_multipliers(kind, slope):
    theta, held = block_problems.problem(kind, slope, samples=9, seed=2)
    theta = block_problems.at_its_kinks(theta, held)
    _, rows = fields_at(theta, held)
    rows = rows.middle / np.maximum(1, abs(rows.middle).max(axis=1, initial=0))[:, None]
    for seed in range(2):
        multipliers = np.random.default_rng(seed).normal(size=len(held.kinks))
        gradient = held.gradient(theta, multipliers).gradient
        assert (abs(rows @ gradient) <= 1e-12 * (1 + abs(gradient).max())).all()
    Z = held.jacobian(theta)
    assert (abs(rows @ Z.T) <= 1e-12 * (1 + abs(Z).max(initial=0))).all()


EXPLAINED = [
    "projected block",
    "block in a block",
    "activation after poolings",
    "deep linear",
    "activation last",
    "several activations",
    "scale",
    "overlapping windows",
    "strides and groups",
]


@pytest.mark.parametrize("kind", EXPLAINED)
def test_what_is_frozen_in_layers_of_all_kinds_explains_all_flat_directions(kind):
    theta, held = block_problems.problem(kind, 0.2, None, 70, seed=0, kinks=False)
    found = choose_coordinates(held, theta, held.data)
    assert len(found.frozen) and len(found.free) == rank_of_outputs(theta, held.data)


def test_layers_without_activations_can_be_mixed_by_all_regular_matrices():
    theta, held = block_problems.problem("deep linear", 0.0, None, 40, kinks=False)
    found = choose_coordinates(held, theta, held.data)
    assert found.family.kinds == {"scaling": 4, "mixing": 4, "shift": 4}


def parallel(net, change=None):
    """Return how many dimensions linear ways have, with a unit (layer, number) always active."""
    theta, held = problem(net, 60, 0)
    if change is not None:
        layer, unit = change
        theta.b[layer][unit] += 100
        theta.b[layer + 1] -= 100 * theta.W[layer + 1].weights[:, unit]
    return check_fields(theta, held).family.kinds.get("parallel", 0)


def test_linear_ways_beside_a_shortcut_are_frozen():
    none, sigma = Identity(), ReLU(0.1)
    for layers, change, count in (
        ([Residual([Dense(3)])], None, 3),  # a layer and the identity: z_c is scaled
        ([Residual([Dense(2)], [Dense(2)])], None, 6),  # two layers that read the same
        ([Residual([Dense(2, activation=none), Dense(3)], activation=none)], None, 2 * 3),
        ([Residual([Dense(2), Dense(2)], [Dense(2)])], (2, 1), 3),
        ([Residual([Dense(2), Dense(3)])], (2, 1), 0),  # the sum has several patterns
    ):
        assert parallel(Network((1, 3), [Dense(3), *layers, Dense(4)], sigma), change) == count
    for shape, first, block in (  # convolutions of neighbours; a bent one
        ((1, 5), Conv(2), [Conv(2, 1, activation=none), Conv(2)]),
        ((1, 5), Conv(2), [Conv(2, 2, dilation=2, padding=1)]),
        ((1, 3), Dense(3), [Dense(2, activation=none), Dense(3, activation=sigma)]),
    ):
        net = Network(shape, [first, Residual(block, activation=none), Dense(4)], sigma)
        assert parallel(net) == 0
    behind = [Dense(3), Residual([Dense(2), Dense(3)], activation=none), Dense(4)]
    assert parallel(Network((1, 3), behind, sigma), (2, 1)) == 3
    behind = [Conv(2), Residual([Conv(2, 3)], [Conv(2, 1)]), Dense(4)]
    assert parallel(Network((1, 5), behind, sigma)) == 4
    behind = [Conv(2), Residual([Conv(2, 2, 2, "valid")], [Conv(2, 1, 2)]), Dense(4)]
    assert parallel(Network((1, 4), behind, sigma)) == 4


def scaled_layers(net, seed=0):
    """Return the layers that the scaling of each stream moves, by the one that writes it first."""
    theta, held = problem(net, 40, seed)
    generators = choose_coordinates(held, theta, held.data).generators
    of = {n: layer for layer, slot in net.slots.items() for n in range(slot.start, slot.all.stop)}
    found = {}
    for one in generators:
        if one.symmetry.kind == "scaling":
            moved = {of[int(n)] for n in one.at[one.factor != 0]}
            found.setdefault(one.symmetry.layer, set()).update(moved)
    return found


def test_what_a_block_adds_is_scaled_with_all_that_writes_and_reads_it():
    blocks = [Residual([Dense(2), Dense(3)]), Residual([Dense(2), Dense(3)])]
    net = Network((1, 3), [Dense(3), *blocks, Dense(2)], ReLU(0.1))
    assert scaled_layers(net) == {1: {1, 2, 3, 5, 6, 8}, 2: {2, 3}, 5: {5, 6}}
    projected = Residual([Dense(2), Dense(3)], [Dense(3)])
    net = Network((1, 3), [Dense(3), projected, Dense(2)], ReLU(0.1))
    assert scaled_layers(net) == {1: {1, 2, 4}, 2: {2, 3}, 3: {3, 4, 6}}


def test_a_block_that_ends_in_the_outputs_has_no_scaling_of_its_stream():
    net = Network((1, 3), [Dense(2), Residual([Dense(3), Dense(2)])], ReLU(0.1))
    assert scaled_layers(net) == {2: {2, 3}}


def test_what_a_smooth_activation_bends_in_a_block_is_not_scaled():
    block = Residual([Dense(2), Dense(3)], activation=Tanh())
    net = Network((1, 3), [Dense(3), block, Dense(2)], ReLU(0.1))
    assert scaled_layers(net) == {2: {2, 3}}


def test_outputs_of_the_softmax_behind_an_activation_are_not_shifted():
    for sigma, count in ((None, 4), (ReLU(0.1), 0)):
        theta, held = problem(Network((1, 3), (Dense(4, activation=sigma),)), 20, 0, CrossEntropy())
        assert check_fields(theta, held).family.kinds.get("outputs", 0) == count
    averaged = Network((1, 8), (Conv(2), Conv(3, activation=Identity()), AveragePool(8)))
    theta, held = problem(averaged, 20, 0, CrossEntropy())
    assert check_fields(theta, held).family.kinds["outputs"] == 7


def test_outputs_of_the_softmax_behind_a_max_pooling_are_not_shifted():
    layers = Conv(2), Conv(3, activation=Identity()), MaxPool(4)
    theta, held = problem(Network((1, 4), layers), 20, 0, CrossEntropy())
    assert "outputs" not in check_fields(theta, held).family.kinds


def test_weights_that_read_sigmoids_of_0_have_an_influence():
    """A layer without biases gives 0 for the image that is 0, its sigmoid is 1/2."""
    net = Network((1, 2), (Dense(2, bias=False), Dense(1)), Sigmoid())
    theta, held = problem(net, 5, 0)
    held.data.x[:] = 0
    found = choose_coordinates(held, theta, held.data)
    assert {int(n) for n in found.idle} == {0, 1, 2, 3}


def test_the_softmax_has_a_field_for_each_weight_that_all_outputs_share():
    theta, held = problem(Network((1, 3), (Dense(4),)), 20, 0, CrossEntropy())
    found = check_fields(theta, held)
    assert (len(found.free), len(found.frozen)) == (12, 4)


@in_turn(
    pytest.mark.parametrize(
        "layers", [(Dense(3), Dense(2)), (Dense(4), Dense(3), Dense(2)), (Dense(5), Dense(1))]
    ),
    pytest.mark.parametrize("slope", [0.0, 0.2]),
    pytest.mark.parametrize("seed", range(3)),
    draws=2,
)
def test_what_is_frozen_explains_all_flat_directions(layers, slope, seed):
    theta, held = problem(Network((1, 3), layers, ReLU(slope)), 80, seed)
    found = choose_coordinates(held, theta, held.data)
    assert len(found.free) == rank_of_outputs(theta, held.data)


def rank_of_outputs(theta, data, softmax=False):
    """Return the rank of the derivatives of all outputs in the parameters, by differences."""
    rows = [
        (theta.net.forward(moved(theta, d), data.x) - theta.net.forward(moved(theta, -d), data.x))
        for d in 1e-6 * np.eye(theta.net.size)
    ]
    rows = np.array(rows)
    rows = rows - rows.mean(axis=2, keepdims=True) if softmax else rows
    sizes = np.linalg.svd(rows.reshape(len(rows), -1), compute_uv=False)
    return int((sizes > 1e-7 * sizes[0]).sum())


def test_few_values_explain_what_no_symmetry_does():
    """Of a layer that is active for few samples, and of linear units that read fewer ones."""
    theta, held = problem(Network((1, 4), (Dense(3), Dense(2), Dense(1))), 40, 0)
    theta.b[1][:], theta.b[2][:] = 3, 0
    z = theta.net.layer_output(theta, held.data.x[:, 0].T, 1).T @ theta.W[2].weights.T
    theta.b[2][:] = -np.sort(z, axis=0)[-3:-1].mean(axis=0)  # active for two samples each
    found = check_fields(theta, held)
    assert found.family.kinds["few values"] > 0
    assert len(found.free) == rank_of_outputs(theta, held.data) == 5
    net = Network((1, 4), (Dense(2), Dense(4), Dense(5), Dense(3)), ReLU(0.1))
    theta, held = problem(net, 80, 0)
    theta.b[2][:3] += 100  # linear, and fewer than two inputs and a constant need
    theta.b[3][:] -= 100 * theta.W[3].weights[:, :3].sum(axis=1)
    found = check_fields(theta, held)
    assert found.family.kinds["few values"] > 0
    assert len(found.free) == rank_of_outputs(theta, held.data)


@pytest.mark.parametrize("biases", [0, 3, 5, 6, 7])
def test_few_values_of_linear_units_count_the_constant_only_where_there_are_biases(biases):
    with_biases = [bool(biases & 1 << n) for n in range(3)]
    layers = [Dense(n, bias) for n, bias in zip((2, 4, 3), with_biases, strict=True)]
    theta, held = problem(Network((1, 3), [*layers, Dense(2)], ReLU(0.1)), 60, 0)
    theta.vector[:] = abs(theta.vector)
    held.data.x[:] = abs(held.data.x)  # all units are active, so all outputs are affine
    assert len(check_fields(theta, held).free) >= rank_of_outputs(theta, held.data)


def test_a_dead_unit_has_no_influence():
    theta, held = problem(Network((1, 3), (Dense(3), Dense(2))), 40, 0)
    theta.b[1][1] = -100
    found = choose_coordinates(held, theta, held.data)
    dead = set(found.idle.tolist())
    assert dead == {3, 4, 5, 10, 13, 16}  # its weights, its bias, and what reads it
    assert found.family.of_kinds("dead") == {3, 4, 5, 10}
    assert found.family.of_kinds("reads nothing") == {13, 16}


def test_a_unit_that_is_active_on_few_samples_has_as_many_free_weights():
    net = Network((1, 6), (Dense(1), Dense(1)))
    theta, held = problem(net, 40, 0)
    z = held.data.x[:, 0] @ theta.W[1].weights[0]
    theta.b[1][0] = -np.sort(z)[-4:-2].mean()  # three samples are above it
    found = check_fields(theta, held)
    assert len(found.free) == 4 and len(found.frozen) == 5  # three values of it, and a constant
    assert len(found.free) == rank_of_outputs(theta, held.data)


@pytest.mark.parametrize("power", [-100, 50])
def test_weights_of_few_samples_are_frozen_in_any_units_of_the_inputs(power):
    theta, held = problem(Network((1, 6), (Dense(2), Dense(1))), 4, 0)
    plain, units = choose_coordinates(held, theta, held.data), np.ones(6)
    units[3:] = 2.0**power
    theta.W[1].weights /= units
    held = Held(theta.net, TrainingSet(held.data.x * units, held.data.y), SquaredLoss())
    found, rows = fields_at(theta, held)
    assert rows is not None
    assert len(found.frozen) == len(plain.frozen) > 4 and len(found.idle) == len(plain.idle)


@pytest.mark.parametrize("power", [0, -600])
def test_fields_may_be_so_long_that_their_squares_overflow(power):
    net, w = Network((1, 3), [Dense(2), Dense(1), Dense(2)], ReLU(0.25)), 2.0**power
    first = [0.0625, 0.375, -1.25, 0.25, -1.5, -0.0625, 0.0, 0.0, 0.125, -0.625, 0.125]
    theta = Parameters(net, np.array([*first, -3 * w, 3 * w, w, 1]))
    data = TrainingSet(np.array([[[1.0, 1, 1]], [[2, 1, 1]]]), np.array([[0.0, 1], [1, 1]]))
    with np.errstate(over="raise"):
        found = choose_coordinates(Held(net, data, SquaredLoss()), theta, data)
    assert found.family.dimension == 11  # of 15: there are four outputs


def test_units_with_equal_patterns_can_be_mixed_and_shifted():
    theta, held = problem(Network((1, 3), (Dense(2), Dense(2))), 40, 0)
    theta.b[1][:] = 100
    found = check_fields(theta, held)
    assert len(found.frozen) == 6  # four mixings and two shifts
    assert len(found.free) == rank_of_outputs(theta, held.data)


NEARLY = [  # layers, loss, units that are nearly equal: one more than what reads them
    ((Dense(2), Dense(1), Dense(2)), None, 2),
    ((Dense(4), Dense(2)), None, 3),
    ((Dense(5), Dense(3)), CrossEntropy(), 3),
    ((Dense(3), Dense(2)), CrossEntropy(), 2),
]


@pytest.mark.parametrize(("layers", "loss", "equal"), NEARLY)
def test_what_one_unit_more_than_its_readers_can_exchange_is_frozen(layers, loss, equal):
    """The rank of the outputs, less their mean for the softmax, says how many directions count."""
    net = Network((1, 8), layers, ReLU(0.1))
    theta, held = problem(net, 80, 1, loss)
    near = 1e-2 * np.random.default_rng(2).normal(size=(equal, 8))
    theta.W[1].weights[:equal] = theta.W[1].weights[0] + near
    theta.b[1][:equal] = theta.b[1][0]
    patterns = next(iter(net.patterns(theta, held.data.x).values()))[:equal]
    assert 1 <= (patterns != patterns[0]).any(axis=0).sum() < 9
    found = check_fields(theta, held)
    assert found.family.kinds["exchange"] > 0
    rank = rank_of_outputs(theta, held.data, softmax=loss is not None)
    assert len(found.free) == rank < net.size


def test_equal_and_constant_inputs_are_frozen():
    net = Network((1, 4), (Dense(2), Dense(1)))
    theta, held = problem(net, 40, 0)
    data, x = held.data, held.data.x.copy()
    x[:, 0, 1], x[:, 0, 3] = x[:, 0, 0], 0.7
    held = Held(net, TrainingSet(x, data.y), SquaredLoss())
    found = check_fields(theta, held)
    assert len(found.frozen) == 2 + 2 * 2
    assert len(found.free) == rank_of_outputs(theta, held.data)


def test_three_units_can_be_exchanged_where_two_are_active_in_turn():
    theta, held = problem(Network((1, 6), (Dense(3), Dense(1))), 60, 0)
    theta.W[1].weights[1] = -theta.W[1].weights[0] + 0.03 * theta.W[1].weights[1]
    theta.b[1][:2], theta.b[1][2] = (0.1, -0.08), 10
    found = check_fields(theta, held)
    assert found.family.kinds["exchange"] > 2
    assert {s.maps for s in found.family.symmetries.values() if s.kind == "exchange"} == {(0, 1, 2)}
    assert len(found.free) == rank_of_outputs(theta, held.data)


def test_units_are_exchanged_although_one_of_them_alone_reads_an_input():
    """The last input is not 0 for two samples, for which one of two like units alone is active."""
    theta, held = problem(Network((1, 6), (Dense(2), Dense(1))), 40, 0)
    theta.W[1].weights[1] = theta.W[1].weights[0]
    theta.b[1][:] = 0
    x, z = held.data.x.copy(), held.data.x[:, 0] @ theta.W[1].weights[0]
    x[:, 0, 5] = 0
    z = x[:, 0] @ theta.W[1].weights[0]
    least = np.argsort(np.where(z > 0, z, np.inf))[:3]
    theta.b[1][1] = -z[least].mean()  # not all of the three
    alone = least[(z + theta.b[1][1])[least] < 0]
    x[alone, 0, 5] = 0.01
    held = Held(theta.net, TrainingSet(x, held.data.y), SquaredLoss())
    found = check_fields(theta, held)
    assert incoming(held, 1, 1)[5] in found.idle and incoming(held, 1, 0)[5] not in found.idle
    assert len(found.free) == rank_of_outputs(theta, held.data)


def test_weights_that_read_0_but_at_fewer_places_than_they_are_can_be_undone():
    theta, held = problem(Network((1, 6), (Dense(1), Dense(1))), 40, 0)
    x = held.data.x.copy()
    x[:, 0, 3:] = 0
    x[:2, 0, 3:] = 1 + held.data.x[:2, 0, 3:] ** 2
    theta.W[1].weights[:] = abs(theta.W[1].weights)
    theta.b[1][:] = 0.5
    held = Held(theta.net, TrainingSet(x, held.data.y), SquaredLoss())
    found = check_fields(theta, held)
    assert found.family.kinds["few samples"] == 1
    assert len(found.free) == rank_of_outputs(theta, held.data)


@pytest.mark.parametrize("seed", range(8))
def test_the_fewest_places_gain_as_much_as_any_choice_of_columns(seed):
    rng = np.random.default_rng(seed)
    moves = rng.random((7, 5)) < rng.random()
    columns, places = fewest_places(moves)
    assert (np.flatnonzero(moves[columns].any(axis=0)) == places).all()
    choices = itertools.product([False, True], repeat=7)
    gains = [sum(some) - moves[list(some)].any(axis=0).sum() for some in choices]
    assert len(columns) - len(places) == max(gains)


def one_hot_features(samples):
    """Return three features that sum up to 1, another, and 3 times it plus the first."""
    rng = np.random.default_rng(0)
    x = np.eye(3)[rng.integers(0, 3, samples)]
    numbers = rng.integers(-64, 65, samples) / 32
    return np.column_stack([x, numbers, 3 * numbers + x[:, 0]])[:, None]


def test_dependent_inputs_are_frozen():
    net = Network((1, 5), (Dense(2), Dense(1)), ReLU(0.1))
    theta, held = problem(net, 60, 0)
    held = Held(net, TrainingSet(one_hot_features(60), held.data.y), SquaredLoss())
    found = check_fields(theta, held)
    assert found.family.kinds == {"scaling": 2, "dependent inputs": 2 * 2}
    assert len(found.free) == rank_of_outputs(theta, held.data)


def test_inputs_of_a_convolution_that_are_dependent_are_frozen():
    net = Network((3, 4), (Conv(1), Dense(2)), ReLU(0.1))
    theta, held = problem(net, 60, 0)
    x = np.round(held.data.x * 64) / 64
    x[:, 2] = 2 * x[:, 0] - x[:, 1]
    held = Held(net, TrainingSet(x, held.data.y), SquaredLoss())
    found = check_fields(theta, held)
    assert found.family.kinds == {"scaling": 1, "dependent inputs": 3}
    assert len(found.free) == rank_of_outputs(theta, held.data)


def test_inputs_that_are_dependent_up_to_rounding_are_not_frozen():
    net = Network((1, 3), (Dense(1), Dense(1)), ReLU(0.1))
    theta, held = problem(net, 40, 0)
    x = held.data.x.copy()
    x[:, 0, 2] = x[:, 0, 0] + 0.1 * x[:, 0, 1]
    data = TrainingSet(x, held.data.y)
    found = choose_coordinates(Held(net, data, SquaredLoss()), theta, data)
    assert found.family.kinds == {"scaling": 1}


def test_whole_null_vectors_are_exact():
    x = one_hot_features(20)[:, 0]
    A = np.column_stack([x, np.ones(20)])
    found = np.array(whole_null_vectors(A))
    assert found.shape == (2, 6) and np.linalg.matrix_rank(found) == 2
    assert not (A @ found.T).any()
    assert whole_null_vectors(A[:, 1:4]) == [] == whole_null_vectors(np.zeros((3, 2)))
    A[3, 3] += 2.0**-40
    assert len(whole_null_vectors(A)) == 1


def test_the_gradient_is_zero_in_all_coordinates_where_it_is_in_the_free_ones():
    theta, data = at_kink()
    held = Held(theta.net, data, SquaredLoss(), near_kinks(theta, data, SquaredLoss(), 1e-9))
    multipliers = np.array([1 / 6])
    found, rows = fields_at(theta, held)
    assert len(found.frozen) == 1
    assert abs(held.gradient(theta, multipliers).gradient).max() < 1e-15
    assert abs(rows.middle @ held.jacobian(theta).T).max() < 1e-15  # v_K stays 0


@pytest.mark.parametrize("kind", EXPLAINED)
def test_a_flow_moves_one_frozen_coordinate_at_a_time(kind):
    """By e_f = sum_j c_fj xi_j in the frozen ones: the rates are the sums of |c_fj|, and of what
    the free ones move by.
    """
    theta, held = block_problems.problem(kind, 0.2, None, 70, seed=0, kinks=False)
    found, rows = fields_at(theta, held)
    rows = rows.middle[found.rows]
    flow = found.flow(held, Box(theta, theta.net.zeros(), exact(np.zeros(0))))
    c = np.linalg.inv(rows[:, found.frozen])
    for bound, expected in (
        (flow.fields, abs(c).sum(axis=0)),
        (flow.free, abs(c @ rows[:, found.free]).sum(axis=0)),
    ):
        assert bound == pytest.approx(expected, rel=1e-6, abs=1e-9)
        assert (bound >= expected * (1 - 1e-9)).all()


@pytest.mark.parametrize("kind", [*EXPLAINED, "products"])
def test_fields_over_a_box_are_those_at_its_points(kind):
    if kind == "products":
        block = Residual([Dense(2, activation=Identity()), Dense(3)], activation=Identity())
        theta, held = problem(Network((1, 3), [Dense(3), block, Dense(4)]), 40, 0)
    else:
        theta, held = block_problems.problem(kind, 0.2, None, 70, seed=0, kinks=False)
    generators = choose_coordinates(held, theta, held.data).generators
    products = (np.minimum(one.source, one.times) for one in generators if one.times is not None)
    assert any((both >= 0).any() for both in products) == (kind == "products")
    reach, rng, tight = 0.3 * abs(theta.vector), np.random.default_rng(0), 0.0
    box = Box(theta, Parameters(theta.net, reach), exact(np.zeros(0)))
    rows = fields(generators, [], held, box)
    for d in (reach, -reach, *(reach * rng.choice([-1.0, 1.0], (20, theta.net.size)))):
        near = Box(moved(theta, d), theta.net.zeros(), exact(np.zeros(0)))
        here = fields(generators, [], held, near)
        off = abs(here.middle - rows.middle)
        assert (off <= rows.radius + here.radius + 1e-12).all()
        tight = np.maximum(tight, off)
    assert (rows.radius.sum(axis=1) <= 2.5 * tight.sum(axis=1) + 1e-9).all()


def test_a_frozen_coordinate_too_many_or_another_one_has_no_flow():
    theta, data = at_kink()
    held = Held(theta.net, data, SquaredLoss())
    found = choose_coordinates(held, theta, held.data)
    box = Box(theta, theta.net.zeros(), exact(np.zeros(0)))
    assert found.flow(held, box).free.max() < 1.1
    constant = np.array([3])  # the last bias, which no field moves
    assert replace(found, free=np.arange(3), frozen=constant).flow(held, box) is None
    wide = Box(theta, Parameters(theta.net, np.full(4, 1.5)), exact(np.zeros(0)))
    assert found.flow(held, wide) is None  # the frozen weight may be 0


def test_maps_below_a_max_pooling_are_scaled_only():
    net = Network(*LAYOUTS["max pooling"], ReLU(0.5))
    theta, held = problem(net, 6, 0)
    theta.b[1][:] = 100  # all maps have one pattern
    mixed = [g.mixes for g in choose_coordinates(held, theta, held.data).generators if g.mixes]
    assert {(a, b) for layer, a, b in mixed if layer == 1} == {(0, 0), (1, 1), (2, 2)}
    assert any(isinstance(layer, MaxPool) for layer in net.layers)


def test_units_of_a_block_that_one_unit_reads_behind_its_sum_are_exchanged():
    net = Network((1, 3), [Dense(2), Residual([Dense(3), Dense(2)]), Dense(1)], ReLU(0.1))
    theta, held = problem(net, 40, 0)
    theta.b[3][:] = 100  # the sum is positive
    found = check_fields(theta, held)
    assert {s for s in found.family.symmetries.values() if s.kind == "exchange"} == {
        Symmetry("exchange", 3, (0, 1))
    }


@pytest.mark.parametrize("activation", [Identity(), ReLU(0.1)])
@pytest.mark.parametrize(
    "later",
    [
        Residual([Conv(3, 1), Conv(2, 1)]),
        Residual([Conv(3, 1), Conv(2, 1)], [AveragePool(1)]),
        Residual([Conv(2, 1, activation=ReLU(0.1))]),
        Residual([Conv(2, 1)], [Conv(2, 1)]),
    ],
)
def test_what_later_blocks_add_moves_with_a_layer_beside_the_identity(activation, later):
    blocks = [replace(block, activation=activation) for block in (Residual([Conv(2, 1)]), later)]
    net = Network((1, 2), [Conv(2, 2, padding="valid"), *blocks, Dense(1)], ReLU(0.1))
    found = check_fields(*problem(net, 40, 0))
    assert found.family.kinds["parallel"] >= 2


def test_a_sum_to_which_an_outer_block_adds_what_is_below_is_not_mixed():
    inner = Residual([Dense(3)], activation=Identity())
    net = Network((1, 2), [Dense(3), Residual([inner], activation=Identity()), Dense(4)])
    theta, held = problem(net, 40, 0)
    assert "parallel" not in check_fields(theta, held).family.kinds


def test_a_sum_with_a_tie_above_is_not_scaled():
    """Else the multiplier of the tie would follow, which is not accounted for."""
    block = Residual([Conv(2, 1)], activation=Identity())
    net = Network((1, 4), [Conv(2, 1), block, MaxPool(2), Dense(1)], ReLU(0.1))
    theta, held = problem(net, 40, 0)
    tie = HeldKink(4, 1, np.array([2]), np.array([3]), np.array([[4, 5]]))
    for kinks, maps in (((), {(0,), (1,)}), ((tie,), {(0,)})):
        found = choose_coordinates(held.at_kinks(kinks), theta, held.data).generators
        assert {g.symmetry.maps for g in found if g.symmetry.kind == "parallel"} == maps


def test_units_that_a_pooling_of_a_block_adds_to_themselves_are_not_exchanged():
    block = Residual([AveragePool(1, activation=ReLU())], activation=Identity())
    net = Network((1, 2), [Conv(3, 2, padding="valid"), block, Dense(1)], ReLU(0.25))
    for seed in range(3):
        theta, held = problem(net, 6, seed)
        assert "exchange" not in check_fields(theta, held).family.kinds
