"""A point is one thing: its vector, its matrices and its biases; and it belongs to its network."""

import copy
import pickle
import re

import numpy as np
import pytest
import strict_device
from hypothesis import given, settings
from hypothesis import strategies as st

import tinyspur as ts
from tinyspur.datasets.samples import TrainingSet
from tinyspur.engine.backend import to_numpy
from tinyspur.engine.losses import SquaredLoss
from tinyspur.engine.network import Network
from tinyspur.engine.parameters import Parameters
from tinyspur.layers import AveragePool, Conv, ConvolutionMatrix, Dense, MaxPool

NET = Network((2, 4, 4), [Conv(3), AveragePool(2), Conv(2), Dense(4), Dense(3)])


def random_point(seed=0, net=NET, dtype=np.float64):
    return Parameters(net, np.random.default_rng(seed).normal(size=net.size).astype(dtype))


def is_one_thing(theta):
    """Whether vector, weights and biases tell the same, in whatever order they are read."""
    parts = [part for n in theta.b for part in (theta.W[n].weights, theta.b[n])]
    flat = np.concatenate([to_numpy(part).ravel() for part in parts])
    again = Parameters(theta.net, theta.vector)
    other = [part for n in again.b for part in (again.W[n].weights, again.b[n])]
    other = np.concatenate([to_numpy(part).ravel() for part in other])
    return np.array_equal(flat, to_numpy(theta.vector)) and np.array_equal(flat, other)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.sampled_from(["b", "W", "weights", "vector"]), st.sampled_from([1, 3, 4, 5]), st.data())
def test_what_is_assigned_is_written_through(part, layer, data):
    theta, other = random_point(0), random_point(data.draw(st.integers(1, 9)))
    before = theta.vector
    if part == "b":
        theta.b[layer] = theta.b[layer] + other.b[layer]
        assert np.array_equal(theta.b[layer], random_point(0).b[layer] + other.b[layer])
    elif part == "W":
        matrix = data.draw(st.booleans())
        theta.W[layer] = other.W[layer] if matrix else other.W[layer].weights
        assert np.array_equal(theta.W[layer].weights, other.W[layer].weights)
    elif part == "weights":
        theta.W[layer].weights = 2 * other.W[layer].weights
        assert np.array_equal(theta.W[layer].weights, 2 * other.W[layer].weights)
    else:
        theta.vector = other.vector.tolist()
        assert np.array_equal(theta.vector, other.vector)
    assert theta.vector is before
    assert is_one_thing(theta)


def test_the_risk_and_the_certificate_are_those_of_the_point_that_was_assigned():
    rng, loss = np.random.default_rng(0), ts.SquaredLoss()
    data = ts.TrainingSet(rng.normal(size=(9, 2, 4, 4)), rng.normal(size=(9, 3)))
    theta = random_point()
    moved = theta.copy()
    moved.b[4] = moved.b[4] + 0.1
    expected = theta.vector.copy()
    slot = NET.slots[4]
    expected[slot.weights.stop : slot.all.stop] += 0.1
    assert np.array_equal(moved.vector, expected)
    again = Parameters(NET, expected)
    assert NET.risk(moved, data, loss) == NET.risk(again, data, loss)
    assert ts.certify_cell(moved, data, loss) == ts.certify_cell(again, data, loss)
    assert NET.risk(moved, data, loss) != NET.risk(theta, data, loss)


def test_operators_in_place_write_through():
    theta, before = random_point(), random_point()
    theta.b[1] += 1
    theta.W[3].weights *= 2
    theta.vector /= 4
    assert np.array_equal(theta.b[1], (before.b[1] + 1) / 4)
    assert np.array_equal(theta.W[3].weights, before.W[3].weights / 2)
    assert is_one_thing(theta)


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda t: t.b.__setitem__(4, np.zeros(5)), "theta.b[4]: expected numbers (4,), got (5,)"),
        (lambda t: t.b.__setitem__(4, np.zeros((4, 1))), "expected numbers (4,), got (4, 1)"),
        (lambda t: t.W.__setitem__(1, np.zeros((3, 2))), "expected numbers (3, 2, 3, 3), got (3, "),
        (lambda t: t.W.__setitem__(2, np.zeros(3)), "theta.W[2]: expected no weights"),
        (lambda t: setattr(t.W[2], "weights", np.zeros(3)), "expected no weights"),
        (lambda t: setattr(t.W[1], "weights", np.zeros(3)), "expected numbers (3, 2, 3, 3), got"),
        (lambda t: setattr(t, "vector", np.zeros(3)), f"expected numbers ({NET.size},), got (3,)"),
        (
            lambda t: setattr(t, "vector", 1j * t.vector),
            "expected plain real numbers, got complex128",
        ),
        (
            lambda t: setattr(t, "vector", "abc"),
            "theta.vector: expected plain real numbers, got <U3",
        ),
        (
            lambda t: t.b.__setitem__(4, None),
            "theta.b[4]: expected plain real numbers, got objects",
        ),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_written(write, words):
    theta = random_point()
    with pytest.raises(ValueError, match=re.escape(words)):
        write(theta)
    assert np.array_equal(theta.vector, random_point().vector)
    assert is_one_thing(theta)


def test_biases_of_poolings_and_layers_that_are_not_there_are_refused():
    theta = random_point()
    with pytest.raises(KeyError, match=r"layer 2, .*Pool\(size=2\), has no biases"):
        theta.b[2] = 1.0
    with pytest.raises(KeyError, match=re.escape("expected a layer in 1..5, got 6")):
        theta.W[6] = 1.0


def test_a_matrix_of_another_kind_or_shape_is_refused_even_where_its_weights_fit():
    theta = random_point()
    W = theta.W[1]
    strided = ConvolutionMatrix(W.weights, W.map_shape, stride=2)
    larger = ConvolutionMatrix(W.weights, (9, 9))
    for matrix in (strided, larger, W.T, theta.W[2], strided.T):
        with pytest.raises(ValueError, match=r"theta\.W\[1\]: expected a matrix like Conv.*got "):
            theta.W[1] = matrix
    with pytest.raises(ValueError, match=r"expected a matrix like DenseMatrix.*got Conv"):
        theta.W[4] = W
    assert np.array_equal(theta.vector, random_point().vector)


@pytest.mark.parametrize("name", ["net", "W", "b", "other"])
def test_nothing_else_is_replaced_and_the_error_says_how_to_write(name):
    theta = random_point()
    with pytest.raises(AttributeError, match=re.escape("write theta.vector[...] = v")):
        setattr(theta, name, getattr(theta, name, None))
    with pytest.raises(AttributeError, match="to stay"):
        delattr(theta, name)
    with pytest.raises((AttributeError, TypeError)):
        del theta.b[1]


def test_a_network_can_not_be_changed():
    for name in ("layers", "input_shape", "activation", "memory_budget", "shapes", "size", "new"):
        with pytest.raises(AttributeError):
            setattr(NET, name, getattr(NET, name, None))
    with pytest.raises(AttributeError):
        del NET.layers
    with pytest.raises(TypeError):
        NET.slots[1] = 0, (1,)
    for again in (pickle.loads(pickle.dumps(NET)), copy.deepcopy(NET)):
        assert again == NET and again.slots == NET.slots
        assert again.memory_budget == NET.memory_budget
    assert len({NET, copy.copy(NET), Network(NET.input_shape, list(NET.layers))}) == 1


@pytest.mark.parametrize("again", [copy.deepcopy, lambda t: pickle.loads(pickle.dumps(t))])
def test_copies_are_one_thing_too(again):
    theta = random_point()
    other = again(theta)
    other.b[1] = 7.0
    other.W[4] = 2 * other.W[4].weights
    assert is_one_thing(other)
    assert np.array_equal(theta.vector, random_point().vector)


def test_points_on_a_device_are_one_thing():
    theta = random_point().to(strict_device)
    moved = theta.copy()
    moved.b[4] = moved.b[4] + 0.5
    moved.W[1] = np.ones((3, 2, 3, 3))
    moved.W[3].weights = theta.W[3].weights
    expected = random_point()
    expected.b[4] += 0.5
    expected.W[1].weights[...] = 1
    assert np.array_equal(to_numpy(moved.vector), expected.vector)


def test_float32_holds_what_is_assigned_rounded():
    theta = random_point(dtype=np.float32)
    theta.b[4] = np.full(4, 0.1)
    assert theta.b[4].tolist() == [np.float32(0.1)] * 4
    assert theta.vector.dtype == np.float32


X, Y = np.zeros((3, 2, 4, 4)), np.ones((3, 3))
DATA, LOSS = ts.TrainingSet(X, Y), ts.SquaredLoss()
FOREIGN = [
    Network((2, 4, 4), [Conv(3), AveragePool(2), Conv(2), Dense(4), Dense(3)], ts.ReLU(0.1)),
    Network((2, 4, 4), [Conv(3), MaxPool(2), Conv(2), Dense(4), Dense(3)]),
    Network((2, 4, 4), [Conv(3), AveragePool(2), Conv(3), Dense(4), Dense(3)]),
]
CALLS = {
    "forward": lambda t: NET.forward(t, X),
    "layer_output": lambda t: NET.layer_output(t, X.reshape(3, -1).T, 2),
    "a gradient": lambda t: ts.Adam().step(NET.zeros(), t, [0.0, 0.0], 1),
    "risk": lambda t: NET.risk(t, DATA, LOSS),
    "sample_losses": lambda t: NET.sample_losses(t, DATA, LOSS),
    "gradient": lambda t: NET.gradient(t, DATA, LOSS),
    "risk_and_gradient": lambda t: NET.risk_and_gradient(t, DATA, LOSS),
    "patterns": lambda t: NET.patterns(t, X),
    "affine_map": lambda t: NET.affine_map(t, X[0]),
    "hessian_product": lambda t: NET.hessian_product(t, NET.zeros(), DATA, LOSS),
    "direction": lambda t: NET.hessian_product(NET.zeros(), t, DATA, LOSS),
    "one_sided_derivative": lambda t: ts.one_sided_derivative(NET.zeros(), t, DATA, LOSS),
    "lines": lambda t: ts.Lines.between(NET.zeros(), t),
    "plane": lambda t: ts.Plane.through(NET.zeros(), NET.zeros(), t),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
@pytest.mark.parametrize("net", FOREIGN, ids=["activation", "layers", "shapes"])
def test_a_point_of_another_network_is_refused_everywhere(call, net):
    words = f"expected points and directions of {NET}, got {net}"
    with pytest.raises(ValueError, match=re.escape(words)):
        call(random_point(net=net))


ALONE = {  # functions of a point that bring its network along
    "certify": lambda t: ts.certify(t, DATA, LOSS),
    "certify_cell": lambda t: ts.certify_cell(t, DATA, LOSS),
    "certify_relays": lambda t: ts.certify_relays(t, DATA, LOSS, 2),
    "certify_curvature": lambda t: ts.certify_curvature(t, DATA, LOSS),
    "evidence": lambda t: ts.gather_evidence(t, DATA, LOSS),
    "find_escape": lambda t: ts.find_escape(t, DATA, LOSS, 0.1),
    "find_descent_direction": lambda t: ts.find_descent_direction(t, DATA, LOSS),
    "rescale": lambda t: ts.rescale(t, 1, 2.0),
    "save_point": lambda t: ts.save_point("nowhere.npz", t),
    "train": lambda t: ts.train(t, DATA, LOSS, 1),
    "descend": lambda t: ts.descend(t, DATA, LOSS, 1),
    "polish": lambda t: ts.polish(t, DATA, LOSS, 1),
    "embed": lambda t: ts.embed(NET, t, X),
    "random direction": lambda t: ts.Lines.random(t),
}


@pytest.mark.parametrize("call", [*CALLS.values(), *ALONE.values()], ids=[*CALLS, *ALONE])
def test_what_is_no_point_is_refused_everywhere(call):
    with pytest.raises(ValueError, match="expected points and directions as Parameters, got a "):
        call(np.zeros(NET.size))


def test_a_point_of_an_equal_network_is_not_foreign():
    other = Network(NET.input_shape, NET.layers, memory_budget=1)
    assert other.risk(random_point(), DATA, LOSS) == NET.risk(random_point(), DATA, LOSS)


@pytest.mark.parametrize("vector", [[0.0], np.zeros(3), np.zeros((NET.size, 1))])
def test_a_vector_that_does_not_fit_is_refused(vector):
    with pytest.raises(ValueError, match=re.escape(f"expected a vector ({NET.size},), got ")):
        Parameters(NET, vector)
    with pytest.raises(ValueError, match="expected a Network, got a str"):
        Parameters("net", np.zeros(3))


# How numbers are laid out


SHAPES = {
    **{"W1": (3, 2, 3, 3), "b1": (3,), "W3": (2, 3, 1, 1), "b3": (2,)},
    **{"W4": (5, 8), "b4": (5,), "W5": (2, 5), "b5": (2,)},
}


def test_the_vector_holds_weights_and_biases_layer_by_layer(net, theta):
    arrays = theta.arrays()
    assert {name: values.shape for name, values in arrays.items()} == SHAPES
    laid_out = np.concatenate([values.ravel() for values in arrays.values()])
    assert np.array_equal(laid_out, theta.vector)
    assert net.size == sum(np.prod(shape) for shape in SHAPES.values())


def test_writing_weights_or_biases_changes_the_vector(theta):
    for layer in theta.b:
        for view in (theta.W[layer].weights, theta.b[layer]):
            assert np.shares_memory(view, theta.vector)
            before = theta.vector.copy()
            view[...] = -1
            assert (theta.vector != before).sum() == view.size
    assert (theta.vector == -1).all()


def test_writing_the_vector_changes_the_outputs(net, theta):
    x = np.ones((1, 2, 4, 4))
    theta.vector[:] = 0
    assert net.forward(theta, x).tolist() == [[0, 0]]
    theta.vector[-2:] = 3, 4
    assert net.forward(theta, x).tolist() == [[3, 4]]


def test_the_gradient_is_laid_out_as_the_parameters(net):
    rng = np.random.default_rng(0)
    theta = Parameters(net, rng.normal(size=net.size))
    data = TrainingSet(rng.normal(size=(3, 2, 4, 4)), rng.normal(size=(3, 2)))
    gradient = net.gradient(theta, data, SquaredLoss())
    assert isinstance(gradient, Parameters)
    assert gradient.net is net
    for name, values in gradient.arrays().items():
        assert values.shape == SHAPES[name]
        assert np.shares_memory(values, gradient.vector)
    product = net.hessian_product(theta, gradient, data, SquaredLoss())
    assert isinstance(product, Parameters)
    assert product.net is net
    before = theta.vector.copy()
    gradient.vector[:] = 0
    assert np.array_equal(theta.vector, before)


def test_a_copy_is_independent(theta):
    copy = theta.copy()
    assert copy.net is theta.net
    assert np.array_equal(copy.vector, theta.vector)
    copy.W[1].weights[...] = -1
    copy.b[5][...] = -1
    assert np.array_equal(theta.vector, np.arange(float(theta.net.size)))


def test_pooling_has_a_weight_matrix_and_no_biases(theta):
    assert theta.W[2].shape == (3 * 4, 3 * 16)
    assert sorted(theta.W) == [1, 2, 3, 4, 5]
    assert sorted(theta.b) == [1, 3, 4, 5]
    with pytest.raises(KeyError, match=r"layer 2, .*Pool\(size=2\), has no biases"):
        theta.b[2]


@pytest.mark.parametrize("layer", [0, 6, -1, "W1", 1.0, True, [1], None])
def test_layers_that_do_not_exist_are_named(theta, layer):
    for view in (theta.W, theta.b):
        with pytest.raises(KeyError, match=re.escape(f"expected a layer in 1..5, got {layer!r}")):
            view[layer]
        with pytest.raises(KeyError, match=re.escape("1..5, got slice(1, 2, None)")):
            view[1:2]
        assert view[np.int64(1)] is view[1]


@pytest.mark.parametrize("shape", [(0,), (124,), (123, 1), ()])
def test_a_vector_of_another_size_is_refused(net, shape):
    assert shape != (net.size,)
    with pytest.raises(ValueError, match=rf"vector \({net.size},\)"):
        Parameters(net, np.zeros(shape))


def test_dense_layers_know_the_maps_below_them(theta):
    assert [theta.W[layer].maps_in for layer in (4, 5)] == [2, 5]
    assert np.array_equal(theta.W[4].block(3, 1), theta.W[4].weights[3:4, 4:8])


def test_zero_parameters_are_zero(net, theta):
    for zeros in (net.zeros(), net.zeros(like=theta.vector)):
        assert zeros.vector.dtype == np.float64
        assert not zeros.vector.any()


# Points of a network are a vector space


def test_points_are_added_and_scaled_as_their_vectors():
    a, b, s = random_point(0), random_point(1), 0.3
    x, y = a.vector.copy(), b.vector.copy()
    for found, expected in [
        *((a + b, x + y), (a - b, x - y), (-a, -x), (a / 2, x / 2), (a * 3, 3 * x)),
        *(((1 - s) * a + s * b, (1 - s) * x + s * y), (np.float64(0.5) * a, x / 2)),
        *((np.array(2) * a, 2 * x), (sum([a, b], NET.zeros()), x + y), (abs(a), abs(x))),
    ]:
        assert found.net is NET and np.array_equal(found.vector, expected)
        assert is_one_thing(found) and not np.shares_memory(found.vector, a.vector)
    assert np.array_equal(a.vector, x) and np.array_equal(b.vector, y)


def test_a_number_keeps_the_type_of_a_point():
    theta = random_point(dtype=np.float32)
    for found in (2 * theta, np.float64(2) * theta, theta / 3, -theta, theta - theta):
        assert found.vector.dtype == np.float32
    assert (theta + random_point()).vector.dtype == np.float64


def test_the_change_of_the_risk_along_the_gradient_is_its_length_squared():
    rng, loss, t = np.random.default_rng(0), ts.SquaredLoss(), 1e-7
    data = ts.TrainingSet(rng.normal(size=(5, 2, 4, 4)), rng.normal(size=(5, 3)))
    theta = random_point() / 2
    g = NET.gradient(theta, data, loss)
    change = NET.risk(theta - t * g, data, loss) - NET.risk(theta, data, loss)
    assert abs(change + t * g.norm() ** 2) <= 1e-4 * t * g.norm() ** 2


def test_norms_are_those_of_the_vector_at_all_scales():
    theta = random_point()
    for scale in (1, 1e-200, 1e200, 0):
        for order in (2, np.inf):
            expected = scale * np.linalg.norm(theta.vector, order)
            assert (scale * theta).norm(order) == pytest.approx(expected, rel=1e-14)
    assert np.isnan((theta * np.nan).norm()) and np.isnan((theta * np.nan).norm(np.inf))
    for order in (1, "fro", None):
        with pytest.raises(ValueError, match=r"theta\.norm: expected the order 2 or inf, got"):
            theta.norm(order)


def test_points_are_equal_if_their_networks_and_numbers_are():
    theta, other = random_point(), random_point()
    assert theta == other and theta == random_point().to(strict_device)
    assert theta == Parameters(Network(NET.input_shape, NET.layers, memory_budget=1), theta.vector)
    other.b[1][0] += 1e-15
    assert theta != other
    assert all(random_point(net=net) != random_point(net=net).vector for net in FOREIGN)
    assert Parameters(FOREIGN[0], theta.vector) != theta
    assert theta != theta * np.nan and theta * np.nan != theta * np.nan
    with pytest.raises(TypeError, match="unhashable"):
        hash(theta)


def test_what_is_no_point_or_number_is_refused():
    theta = random_point()
    for net in FOREIGN:
        words = f"expected points and directions of {NET}, got {net}"
        for operation in (lambda a, b: a + b, lambda a, b: a - b):
            with pytest.raises(ValueError, match=re.escape(words)):
                operation(theta, random_point(net=net))
    for other in (1.0, theta.vector, None):
        with pytest.raises(ValueError, match="expected points and directions as Parameters, got"):
            theta + other
        with pytest.raises(ValueError, match="expected points and directions as Parameters, got"):
            other + theta
    for s, words in [
        (theta.vector, r"s \* theta: expected a number, got an array"),
        ("2", "expected plain real numbers, got <U1"),
        (2j, "expected plain real numbers, got complex128"),
        (theta, "expected plain real numbers, got"),
    ]:
        with pytest.raises(ValueError, match=words):
            s * theta
    with pytest.raises(TypeError, match="unsupported operand"):
        theta.vector - theta


def test_points_on_a_device_stay_there():
    a, b = random_point(0), random_point(1)
    there, other = a.to(strict_device), b.to(strict_device)
    for found, expected in [
        *((there + other, a + b), (there - other, a - b), (2 * there, 2 * a)),
        *((there / 3, a / 3), (-there, -a), (abs(there), abs(a))),
    ]:
        assert isinstance(found.vector, strict_device.ndarray)
        assert np.array_equal(to_numpy(found.vector), expected.vector)
    assert there.norm() == pytest.approx(a.norm(), rel=1e-14)
    assert there.norm(np.inf) == a.norm(np.inf)
    with pytest.raises(ValueError, match="expected both in numpy, got one in strict_device"):
        a + there
