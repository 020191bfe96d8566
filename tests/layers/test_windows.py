"""What both poolings share: they are PyTorch's, with all options."""

import numpy as np
import pytest
import torch
from matrix_problems import same

from tinyspur.engine.network import Network
from tinyspur.layers import AveragePool, AveragePoolingMatrix, MaxPool, MaxPoolingMatrix

over_windows = pytest.mark.parametrize(
    ("map_shape", "size"), [((6,), 3), ((4,), 4), ((4, 6), 2), ((3, 6), 3), ((2, 2), 1)]
)
POOLINGS = {
    (AveragePoolingMatrix, 1): torch.nn.functional.avg_pool1d,
    (AveragePoolingMatrix, 2): torch.nn.functional.avg_pool2d,
    (MaxPoolingMatrix, 1): torch.nn.functional.max_pool1d,
    (MaxPoolingMatrix, 2): torch.nn.functional.max_pool2d,
}


@over_windows
@pytest.mark.parametrize("kind", [AveragePoolingMatrix, MaxPoolingMatrix])
@pytest.mark.parametrize("ties", [False, True], ids=["", "ties"])
def test_pooling_and_its_derivative_are_those_of_pytorch(kind, map_shape, size, ties):
    rng = np.random.default_rng(0)
    W = kind(3, map_shape, size)
    x, delta = rng.normal(size=(4, 3, *map_shape)), rng.normal(size=(4, W.shape[0]))
    x = np.round(x) if ties else x
    inputs = torch.tensor(x, requires_grad=True)
    outputs = POOLINGS[kind, len(map_shape)](inputs, size).flatten(1)
    o = x.reshape(4, -1).T
    same(W @ o, outputs.detach().T)
    same(W @ o[:, 0], outputs[0].detach())
    (expected,) = torch.autograd.grad((outputs * torch.tensor(delta)).sum(), inputs)
    same(W.at(o).T @ delta.T, expected.flatten(1).T)


OPTIONS = {  # map_shape, size, stride, padding, ceil_mode
    "overlapping": ((5, 6), 3, 2, 1, False),
    "overlapping, cut": ((6, 5), 3, 2, 1, True),
    "left out": ((5, 7), 2, None, 0, False),
    "cut": ((5, 7), 2, None, 0, True),
    "not square": ((6, 4), (1, 3), (2, 1), (0, 1), False),
    "far apart": ((7,), 2, 5, 1, True),
    "no window in the padding after": ((3,), 1, 2, 0, True),
    "one-dimensional": ((9,), 4, 1, 2, False),
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("ties", [False, True], ids=["", "ties"])
@pytest.mark.parametrize(
    ("kind", "more"),
    [
        (AveragePoolingMatrix, {}),
        (AveragePoolingMatrix, {"count_include_pad": False}),
        (MaxPoolingMatrix, {}),
    ],
    ids=["average", "average without padding", "max"],
)
def test_every_option_is_that_of_pytorch(kind, more, options, ties):
    rng, (map_shape, *options) = np.random.default_rng(0), options
    W = kind(3, map_shape, *options, **more)
    x, delta = rng.normal(size=(4, 3, *map_shape)), rng.normal(size=(4, W.shape[0]))
    x = np.round(x) - 3 if ties else x - 3
    inputs, (size, stride, padding, ceil) = torch.tensor(x, requires_grad=True), options
    pool = POOLINGS[kind, len(map_shape)]
    outputs = pool(inputs, size, stride, padding, ceil_mode=ceil, **more).flatten(1)
    o = x.reshape(4, -1).T
    same(W @ o, outputs.detach().T)
    (expected,) = torch.autograd.grad((outputs * torch.tensor(delta)).sum(), inputs)
    same(W.at(o).T @ delta.T, expected.flatten(1).T)


def test_a_dilated_max_pooling_is_that_of_pytorch():
    x = np.random.default_rng(0).normal(size=(4, 2, 6, 7))
    W = MaxPoolingMatrix(2, (6, 7), (2, 3), (1, 2), (1, 1), False, (2, 1))
    pool = torch.nn.MaxPool2d((2, 3), (1, 2), (1, 1), (2, 1))
    same(W @ x.reshape(4, -1).T, pool(torch.tensor(x)).flatten(1).T)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_windows_hold_their_own_first_entry_where_there_is_padding(options):
    map_shape, *options = options
    W = MaxPoolingMatrix(1, map_shape, *options)
    places = W.windows(np.arange(W.shape[1])[:, None])[:, :, 0]
    neighbours = W.grid.neighbours().T
    for window, read, first in zip(places.T, neighbours.T, W.first_taps, strict=True):
        assert first == np.flatnonzero(read >= 0)[0]
        assert window.tolist() == np.where(read < 0, read[first], read).tolist()
    inside = W.inside(np.zeros(0))
    found = np.ones(neighbours.shape, bool) if inside is None else inside[:, :, 0]
    assert np.array_equal(found, neighbours >= 0)


@pytest.mark.parametrize(
    ("map_shape", "options", "words"),
    [
        ((4,), (8,), "expected maps of 8 or more, padding included, got 4"),
        ((4,), (0,), "expected a size of 1 or more, got 0"),
        ((4,), (-2,), "expected a size of 1 or more, got -2"),
        ((4, 4), (2, 0), "expected a stride of 1 or more, got 0"),
        ((4, 4), ((2, 2, 3),), "expected size for 2 directions"),
        ((4, 4), (3, 1, 2), "expected padding of half the size at most, got 2"),
        ((4, 4), (3, 1, "same"), "expected padding of whole numbers of 0 or more, got 'same'"),
    ],
)
def test_windows_that_do_not_fit_are_refused(map_shape, options, words):
    for kind in (AveragePoolingMatrix, MaxPoolingMatrix):
        with pytest.raises(ValueError, match=words):
            kind(1, map_shape, *options)


def test_windows_without_an_entry_are_refused():
    with pytest.raises(ValueError, match="each of which has an entry of the map"):
        MaxPoolingMatrix(1, (1,), 2, 1, 1, False, 2)


def test_options_that_mean_the_same_make_equal_layers():
    assert AveragePool(2, (2, 2)) == AveragePool((2, 2), 2) == AveragePool(2)
    assert MaxPool((2, 3), (2, 3)) == MaxPool([2, 3])
    assert MaxPool(3, 2, 1).spec == {"type": "max_pool", "size": 3, "stride": 2, "padding": 1}
    assert repr(AveragePool(2)) == "AveragePool(size=2)"
    assert "size 3, stride 2, padding 1," in repr(AveragePoolingMatrix(1, (5, 5), 3, 2, 1))


@pytest.mark.parametrize(
    "layer", [AveragePool(2, padding=-1), MaxPool(2, ceil_mode=1), MaxPool(2, dilation=0)]
)
def test_options_that_no_pooling_has_are_refused(layer):
    with pytest.raises(ValueError, match="expected p"):
        Network((1, 4, 4), [layer])


@pytest.mark.parametrize("kind", [AveragePoolingMatrix, MaxPoolingMatrix])
def test_maps_are_pooled_alike_all_at_once_and_one_by_one(kind, monkeypatch):
    rng, W = np.random.default_rng(0), kind(3, (5, 6), 3, 2, 1, True)
    o, delta = (rng.normal(size=(n, 4)).astype(np.float32) for n in W.shape[::-1])
    S = W.at(o)
    whole = W @ o, S.T @ delta, W.choice(o)
    monkeypatch.setattr("tinyspur.layers.windows.PART", 1)
    for found, expected in zip((W @ o, S.T @ delta, W.choice(o)), whole, strict=True):
        assert np.array_equal(found, expected)
        assert found is None or found.dtype == expected.dtype
    assert whole[0].dtype == whole[1].dtype == np.float32


def test_one_selection_is_transposed_for_many_columns():
    rng, W = np.random.default_rng(0), MaxPoolingMatrix(2, (4, 5), 3, 1, 1)
    S, delta = W.at(rng.normal(size=W.shape[1])), rng.normal(size=(W.shape[0], 3))
    same(S.T @ delta, S.toarray().T @ delta)
    assert (S.T @ delta[:, :0]).shape == (W.shape[1], 0)
