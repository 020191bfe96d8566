"""Training sets: shapes and numbers are checked where they come in."""

import pickle
import re

import numpy as np
import pytest
import torch

from tinyspur.datasets.samples import TrainingSet, draw
from tinyspur.engine.losses import SquaredLoss
from tinyspur.engine.network import Network
from tinyspur.engine.parameters import Parameters
from tinyspur.layers import Dense


@pytest.mark.parametrize(
    ("x", "y"),
    [
        ((3, 1, 4), (2, 1)),
        ((0, 1, 4), (0, 1)),
        ((3,), (3, 1)),
        ((3, 4), (4,)),
        ((), (1,)),
        ((3, 1, 4), (3, 1, 1)),
    ],
)
def test_training_sets_of_wrong_shapes_are_refused(x, y):
    with pytest.raises(ValueError, match=re.escape(f"got {x} and {y}")):
        TrainingSet(np.zeros(x), np.zeros(y))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_and_the_first_sample_is_named(value):
    x, y = np.zeros((9, 1, 2, 2)), np.zeros((9, 3))
    assert len(TrainingSet(x, y)) == 9
    for name, values in (("x", x), ("y", y)):
        wrong = values.copy()
        wrong[4].flat[2] = wrong[7].flat[0] = wrong[7].flat[1] = value
        data = {"x": x, "y": y, name: wrong}
        with pytest.raises(ValueError, match=f": {name} .* in 2 of 9 .*the first is sample 4"):
            TrainingSet(**data)


def test_a_training_set_shows_its_sizes_and_is_pickled():
    data = TrainingSet(np.zeros((200, 1, 7, 7)), np.ones((200, 10)))
    assert repr(data) == "TrainingSet(200 samples (1, 7, 7), targets (10,))"
    again = pickle.loads(pickle.dumps(data))
    assert np.array_equal(again.x, data.x) and np.array_equal(again.y, data.y)


def test_vectors_are_inputs_of_one_channel_and_numbers_are_targets_of_width_one():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(5, 3)), rng.normal(size=5)
    data = TrainingSet(x, y)
    assert np.array_equal(data.x, x[:, None]) and np.array_equal(data.y, y[:, None])
    net = Network((1, 3), [Dense(4), Dense(1)])
    theta = Parameters(net, rng.normal(size=net.size))
    (W1, b1, W2, b2) = (torch.tensor(a) for a in theta.arrays().values())
    o = torch.relu(torch.tensor(x) @ W1.T + b1) @ W2.T + b2
    assert np.allclose(net.forward(theta, x), o, rtol=1e-14)
    assert np.allclose(
        net.risk(theta, data, SquaredLoss()), ((o[:, 0] - torch.tensor(y)) ** 2).mean() / 2
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_plain_arrays_are_not_copied(dtype):
    x, y = np.zeros((3, 1, 4), dtype), np.zeros((3, 2), dtype)
    data = TrainingSet(x, y)
    assert data.x is x and data.y is y


def test_a_subset_has_distinct_samples_in_order_with_their_targets():
    x = np.arange(50.0).reshape(50, 1, 1)
    subset = TrainingSet(x, -x[:, 0]).subset(20, seed=3)
    kept = subset.x.ravel()
    assert len(subset) == 20 and (np.diff(kept) > 0).all()
    np.testing.assert_array_equal(subset.y.ravel(), -kept)
    np.testing.assert_array_equal(kept, draw(50, 20, seed=3))
    assert not np.array_equal(kept, draw(50, 20, seed=4))


@pytest.mark.parametrize("samples", [0, -1, 4, 1.5, "2", None, True])
def test_a_number_of_samples_that_there_are_not_is_refused(samples):
    with pytest.raises(ValueError, match=f"^expected 1 to 3 samples, got {samples!r}$"):
        TrainingSet(np.zeros((3, 1, 2)), np.zeros((3, 1))).subset(samples, seed=0)
    assert len(draw(3, 3, seed=0)) == len(draw(3, np.int64(3), seed=0)) == 3
