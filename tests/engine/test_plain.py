"""Numbers come in through one gate: plain and real, float32 or float64, or refused in words."""

import re

import numpy as np
import pytest
import strict_device
import torch

import tinyspur as ts
from tinyspur.engine.backend import to_numpy
from tinyspur.engine.plain import float_type, plain_array, plain_on_host, whole, whole_number

NET = ts.Network((1, 2), [ts.Dense(2), ts.Dense(1)])
NUMBERS = np.array([3.0, -1.0, 2.0, 0.5, -0.25, 1.0, 2.0, -4.0, 1.5])
WHOLE = np.arange(9) - 4


class Frame:
    """What pandas' DataFrame and Series are to NumPy: not arrays, but with `__array__`."""

    def __init__(self, values):
        self.values = values
        self.shape = values.shape

    def __array__(self, dtype=None, copy=None):
        return self.values.astype(self.values.dtype if dtype is None else dtype)


class Own(np.ndarray):
    """An array whose sums are not those of NumPy."""

    def sum(self, *args, **kwargs):
        return 7


FLOATS = {
    "native": (lambda v: v, np.float64),
    "float32": (lambda v: v.astype(np.float32), np.float32),
    "another byte order": (lambda v: v.astype(">f8"), np.float64),
    "float32 of another byte order": (lambda v: v.astype(">f4"), np.float32),
    "float16": (lambda v: v.astype(np.float16), np.float64),
    "longdouble": (lambda v: v.astype(np.longdouble), np.float64),
    "list": (lambda v: v.tolist(), np.float64),
    "frame": (Frame, np.float64),
    "subclass": (lambda v: v.view(Own), np.float64),
    "tensor": (torch.tensor, np.float64),
    "tensor with gradient": (lambda v: torch.tensor(v, requires_grad=True), np.float64),
    "nn.Parameter": (lambda v: torch.nn.Parameter(torch.tensor(v).float()), np.float32),
    "bfloat16": (lambda v: torch.tensor(v).bfloat16(), np.float64),
    "half": (lambda v: torch.tensor(v).half(), np.float64),
}
INTEGERS = {
    "int64": lambda v: v,
    "int8": lambda v: v.astype(np.int8),
    "list of int": lambda v: v.tolist(),
    "integer tensor": torch.tensor,
}


@pytest.mark.parametrize(("give", "dtype"), FLOATS.values(), ids=FLOATS)
def test_real_numbers_come_in_as_plain_arrays(give, dtype):
    found = plain_array("x", give(NUMBERS))
    assert type(found) is np.ndarray and found.dtype == dtype and found.dtype.isnative
    assert np.array_equal(found, NUMBERS)


def test_bool_single_numbers_and_matrices_come_in():
    assert np.array_equal(plain_array("x", [True, False]), [1.0, 0.0])
    assert plain_array("x", np.float64(2)).shape == plain_array("x", 2).shape == ()
    matrix = plain_array("x", np.matrix([[1.0, 2.0]]))
    assert type(matrix) is np.ndarray and (matrix * matrix).tolist() == [[1.0, 4.0]]


REFUSED = {
    "complex": (NUMBERS + 1j, "complex128"),
    "complex tensor": (torch.tensor(NUMBERS + 1j), "complex128"),
    "objects": (NUMBERS.astype(object), "objects in a ndarray, which .astype(float) may convert"),
    "None": (None, "objects in a NoneType"),
    "strings": ([str(v) for v in NUMBERS], "<U5"),
    "dates": (WHOLE.astype("M8[s]"), "datetime64[s]"),
    "masked": (np.ma.masked_array(NUMBERS, NUMBERS > 2), "a masked array"),
    "masked nowhere": (np.ma.masked_array(NUMBERS), "a masked array"),
    "rows of different lengths": ([[1.0], [1.0, 2.0]], "a list: setting an array element"),
    "sparse": (torch.eye(3).to_sparse(), "a Tensor: "),
    "records": (np.zeros(9, [("a", float)]), "[('a', '<f8')]"),
}


@pytest.mark.parametrize(("values", "got"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_real_number_is_refused_everywhere_in_the_same_words(values, got):
    x, y = np.zeros((9, 1, 2)), np.zeros(9)
    theta = NET.zeros()
    data = ts.TrainingSet(x, y)
    groups = ts.Groups.equal(np.arange(18).reshape(9, 2), [1.0, 0.0], 2)
    calls = {
        "x": lambda: ts.TrainingSet(values, y),
        "y": lambda: ts.TrainingSet(x, values),
        "parameters": lambda: ts.Parameters(NET, values),
        "theta.vector": lambda: setattr(theta, "vector", values),
        "theta.b[1]": lambda: theta.b.__setitem__(1, values),
        "theta.W[1].weights": lambda: theta.W.__setitem__(1, values),
        "DenseMatrix.weights": lambda: setattr(theta.W[1], "weights", values),
        "inputs": lambda: NET.forward(theta, values),
        "inputs ": lambda: NET.patterns(theta, values),
        "inputs  ": lambda: NET.affine_map(theta, values),
        "filters": lambda: NET.filter_responses(theta, 1, values, x),
        "labels": lambda: ts.one_hot(values),
        "x ": lambda: ts.Groups.at(values, [1.0, 0.0], []),
        "direction": lambda: ts.Groups.at(data.x, values, []),
        "thresholds": lambda: ts.Groups.at(np.arange(18).reshape(9, 2), [1, 0], values),
        "x  ": lambda: ts.fit_affine(values, data.y, ts.SquaredLoss()),
        "y ": lambda: ts.fit_affine(data.x[:, 0], values, ts.SquaredLoss()),
        "inputs   ": lambda: ts.smooth_minimum(ts.Network((1, 2), NET.layers, ts.Tanh()), values),
        "alpha": lambda: ts.Lines(theta, [ts.random_direction(theta)], values),
        "inputs    ": lambda: ts.check_assumption_1(theta, values),
    }
    assert len(groups) == 2
    for name, call in calls.items():
        words = f"^{re.escape(name.strip())}: expected plain real numbers, got {re.escape(got)}"
        with pytest.raises(ValueError, match=words):
            call()
    assert not theta.vector.any()


@pytest.mark.parametrize(
    "give", [*(give for give, _ in FLOATS.values()), *INTEGERS.values()], ids=[*FLOATS, *INTEGERS]
)
def test_points_and_data_of_any_type_have_the_risk_of_pytorch(give):
    rng = np.random.default_rng(0)
    vector = WHOLE if give in INTEGERS.values() else NUMBERS
    x, y = rng.integers(-3, 4, (9, 2)).astype(vector.dtype), vector
    theta, data = ts.Parameters(NET, give(vector)), ts.TrainingSet(give(x), give(y))
    W1, b1, W2, b2 = torch.tensor(vector.astype(float)).split((4, 2, 2, 1))
    o = torch.relu(torch.tensor(x).double() @ W1.reshape(2, 2).T + b1) @ W2 + b2
    expected = float(((o - torch.tensor(y)) ** 2).mean() / 2)
    assert NET.risk(theta, data, ts.SquaredLoss()) == pytest.approx(expected, rel=1e-6)
    assert theta.vector.dtype in (np.float32, np.float64)
    escape = ts.find_escape(theta, data, ts.SquaredLoss(), 0.01, starts=1, iterations=2)
    assert escape is None or escape.theta.vector.dtype == theta.vector.dtype


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_vector_of_a_point_is_the_array_that_is_given(dtype):
    vector = NUMBERS.astype(dtype)
    assert ts.Parameters(NET, vector).vector is vector
    there = strict_device.array(vector)
    assert ts.Parameters(NET, there).vector is there


def test_other_vectors_are_copied():
    tensor, given = torch.tensor(NUMBERS), NUMBERS.copy().view(Own)
    for values in (tensor, given):
        theta = ts.Parameters(NET, values)
        theta.vector[:] = 0
        assert np.array_equal(np.asarray(values), NUMBERS)


def test_numbers_on_a_device_stay_there_or_come_to_the_host_where_data_are():
    there = strict_device.array(WHOLE)
    found = plain_array("x", there)
    assert isinstance(found, strict_device.ndarray) and found.dtype == np.float64
    assert np.array_equal(plain_on_host("x", there), WHOLE)
    assert np.array_equal(to_numpy(ts.Parameters(NET, there).vector), WHOLE)
    with pytest.raises(ValueError, match="got complex128"):
        plain_array("x", strict_device.array(NUMBERS + 1j))


@pytest.mark.parametrize("dtype", [np.int64, np.float16, ">f8", complex, "int", torch.float32, []])
def test_types_other_than_float32_and_float64_are_refused(dtype):
    theta = NET.zeros()
    for name, call in {
        "dtype": lambda: NET.zeros(dtype=dtype),
        "theta.to": lambda: theta.to(np, dtype),
    }.items():
        with pytest.raises(ValueError, match=f"^{name}: expected float32 or float64, got "):
            call()
    assert float_type("dtype", "f4") == theta.to(np, np.float32).vector.dtype == np.float32


@pytest.mark.parametrize("xp", [np.float32, "cuda", torch, None])
def test_a_point_moves_to_numpy_or_cupy_only(xp):
    with pytest.raises(ValueError, match=r"^theta.to: expected the module numpy or cupy first"):
        NET.zeros().to(xp)


def test_whole_numbers_of_any_type_are_one():
    for n in (2, np.int8(2), np.uint64(2), np.array(2), torch.tensor(2)):
        assert type(whole(n)) is int and whole(n) == whole_number("n", n) == 2
    for n in (2.0, True, np.True_, "2", None, [2], np.array([2, 3])):
        assert whole(n) is None
        with pytest.raises(ValueError, match=r"^n: expected a whole number in 1\.\.3, got "):
            whole_number("n", n, 1, 3)
    with pytest.raises(ValueError, match=r"^n: expected a whole number, 0 or more, got -1$"):
        whole_number("n", -1, 0)
