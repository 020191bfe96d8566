"""Free coordinates: what is frozen changes nothing, and it explains every flat direction."""

from dataclasses import replace

import numpy as np
import pytest
from certificate_problems import LAYOUTS
from strict_problems import at_kink

from tinyspur.certificates.boxes import Box
from tinyspur.certificates.enclosures import exact
from tinyspur.certificates.free import choose_coordinates, fields
from tinyspur.certificates.generators import whole_null_vectors
from tinyspur.certificates.stationary import near_kinks
from tinyspur.datasets.samples import TrainingSet
from tinyspur.engine.activations import ReLU
from tinyspur.engine.held import Held
from tinyspur.engine.losses import CrossEntropy, SquaredLoss
from tinyspur.engine.network import Network
from tinyspur.engine.parameters import Parameters
from tinyspur.layers import Conv, Dense, MaxPool

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
    for row in rows.middle:
        d = row / max(1.0, abs(row).max())
        moves = [theta.net.forward(moved(theta, t * d), x) - before for t in (STEP, -STEP)]
        first = (moves[0] - moves[1]) / (2 * STEP)
        if isinstance(held.loss, CrossEntropy):
            first = first - first.mean(axis=1, keepdims=True)
        assert abs(first).max() <= 1e-7 * (1 + abs(before).max())
    d = np.zeros(theta.net.size)
    d[found.idle] = STEP
    assert (theta.net.forward(moved(theta, d), x) == before).all()
    return found


def moved(theta, d):
    return Parameters(theta.net, theta.vector + d)


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if "last" not in name])
@pytest.mark.parametrize("slope", [0.0, 0.2])
def test_along_the_fields_the_outputs_do_not_move(layout, slope):
    net = Network(*LAYOUTS[layout], ReLU(slope))
    theta, held = problem(net, 7, 1)
    check_fields(theta, held)


def test_the_softmax_has_a_field_for_each_weight_that_all_outputs_share():
    theta, held = problem(Network((1, 3), (Dense(4),)), 20, 0, CrossEntropy())
    found = check_fields(theta, held)
    assert (len(found.free), len(found.frozen)) == (12, 4)


@pytest.mark.parametrize(
    "layers", [(Dense(3), Dense(2)), (Dense(4), Dense(3), Dense(2)), (Dense(5), Dense(1))]
)
@pytest.mark.parametrize("slope", [0.0, 0.2])
@pytest.mark.parametrize("seed", range(3))
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


def test_a_dead_unit_has_no_influence():
    theta, held = problem(Network((1, 3), (Dense(3), Dense(2))), 40, 0)
    theta.b[1][1] = -100
    found = choose_coordinates(held, theta, held.data)
    dead = set(found.idle.tolist())
    assert dead == {3, 4, 5, 10, 13, 16}  # its weights, its bias, and what reads it


def test_a_unit_that_is_active_on_few_samples_has_as_many_free_weights():
    net = Network((1, 6), (Dense(1), Dense(1)))
    theta, held = problem(net, 40, 0)
    z = held.data.x[:, 0] @ theta.W[1].weights[0]
    theta.b[1][0] = -np.sort(z)[-4:-2].mean()  # three samples are above it
    found = check_fields(theta, held)
    assert len(found.free) == 4 and len(found.frozen) == 5  # three values of it, and a constant
    assert len(found.free) == rank_of_outputs(theta, held.data)


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
