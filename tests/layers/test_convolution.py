"""A convolution is the matrix of the paper and PyTorch's, in strips of any size."""

import re

import numpy as np
import pytest
import torch
from matrix_problems import convolution, operands, over_all_kinds, same

from tinyspur.engine.network import Network
from tinyspur.layers import Conv, ConvolutionMatrix
from tinyspur.layers import convolution_matrix as convolutions


def test_a_one_dimensional_convolution_is_the_matrix_of_equation_2():
    w1, w2, w3 = 2.0, 3.0, 5.0
    W = ConvolutionMatrix(np.array([[[w1, w2, w3]]]), (5,))
    expected = [
        [w2, w3, 0, 0, 0],
        [w1, w2, w3, 0, 0],
        [0, w1, w2, w3, 0],
        [0, 0, w1, w2, w3],
        [0, 0, 0, w1, w2],
    ]
    assert W.toarray().tolist() == expected
    a, b, c, d, e = 7.0, 11.0, 13.0, 17.0, 19.0
    assert (W @ np.array([a, b, c, d, e])).tolist() == [
        w2 * a + w3 * b,
        w1 * a + w2 * b + w3 * c,
        w1 * b + w2 * c + w3 * d,
        w1 * c + w2 * d + w3 * e,
        w1 * d + w2 * e,
    ]


@pytest.mark.parametrize(
    ("kernel", "map_shape"), [((1,), (4,)), ((5,), (3,)), ((3, 3), (3, 4)), ((7, 5), (2, 3))]
)
def test_the_identity_filter_is_the_identity_matrix(kernel, map_shape):
    filters = np.zeros((1, 1, *kernel))
    W = ConvolutionMatrix(filters, map_shape)
    filters[(0, 0, *(k // 2 for k in filters.shape[2:]))] = 1
    assert np.array_equal(W.toarray(), np.eye(np.prod(map_shape)))
    o, _ = operands(W)
    assert np.array_equal(W @ o, o)


def test_neurons_are_numbered_map_by_map_and_row_by_row():
    filters = np.zeros((2, 3, 3, 3))
    filters[1, 2, 2, 1] = 1  # map 1 shows channel 2, one row further down
    W = ConvolutionMatrix(filters, (2, 4))
    o = np.zeros(24)
    o[2 * 8 + 1 * 4 + 3] = 1
    assert np.flatnonzero(W @ o).tolist() == [1 * 8 + 0 * 4 + 3]


@pytest.mark.parametrize(
    ("filters", "map_shape"),
    [
        ((2, 3, 3), (7,)),
        ((3, 1, 7), (4,)),
        ((2, 3, 3, 3), (5, 6)),
        ((3, 2, 5, 1), (4, 7)),
        ((1, 2, 7, 7), (3, 4)),
    ],
)
def test_convolution_and_its_derivatives_are_those_of_pytorch(filters, map_shape):
    rng = np.random.default_rng(0)
    W = ConvolutionMatrix(rng.normal(size=filters), map_shape)
    x, delta = rng.normal(size=(4, filters[1], *map_shape)), rng.normal(size=(4, W.shape[0]))
    weights, inputs = (torch.tensor(v, requires_grad=True) for v in (W.weights, x))
    convolve = {1: torch.conv1d, 2: torch.conv2d}[len(map_shape)]
    outputs = convolve(inputs, weights, padding=[k // 2 for k in filters[2:]]).flatten(1)
    same(W @ x.reshape(4, -1).T, outputs.detach().T)
    expected = torch.autograd.grad((outputs * torch.tensor(delta)).sum(), [weights, inputs])
    same(W.gradient(delta.T, x.reshape(4, -1).T), expected[0])
    same(W.T @ delta.T, expected[1].flatten(1).T)


@over_all_kinds
def test_the_size_of_the_strips_changes_nothing(W):
    o, delta = operands(W, columns=2)
    with pytest.MonkeyPatch.context() as patch:
        for size in (1, 300, 2000):
            patch.setattr(convolutions, "STRIP_BYTES", size)
            same(W @ o, W.toarray() @ o)
            if W.weights is not None:
                gradient = W.gradient(delta, o)
                patch.undo()
                assert np.array_equal(gradient, W.gradient(delta, o))


def test_strips_bound_the_patches():
    W = convolution((2, 3, 3, 3), (8, 4), seed=13)
    images = operands(W, columns=2)[0].reshape(3, 8, 4, 2)
    box = W.grid.taps

    def sizes():
        found = [patches for patches, _ in W._patches(images, box)]
        return [(len(v) - 1) * v.strides[0] + v[0].nbytes for v in found]  # they overlap

    (whole_size,) = sizes()  # of 10 rows of the input, with those in the padding
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convolutions, "STRIP_BYTES", whole_size // 2)
        assert sizes() == [whole_size // 2] * 2 + [4 * whole_size // 10]  # 3, 3 and 2 of the output


OPTIONS = {
    "valid": ((3, 2, 5, 5), (6, 7), {"padding": "valid"}),
    "even, as PyTorch's same": ((3, 2, 2, 4), (5, 6), {"padding": "same"}),
    "dilated, as PyTorch's same": ((3, 2, 4), (9,), {"padding": "same", "dilation": 3}),
    "stride 2": ((3, 2, 3, 3), (8, 7), {"stride": 2, "padding": 1}),
    "even, stride 2": ((3, 2, 4, 4), (8, 6), {"stride": 2, "padding": 1}),
    "for each direction": (
        (2, 3, 2, 3),
        (7, 8),
        {"stride": (3, 1), "padding": (2, 0), "dilation": (1, 2)},
    ),
    "groups": ((6, 2, 3, 3), (5, 4), {"padding": 1, "groups": 3}),
    "depthwise": ((4, 1, 3, 3), (5, 4), {"padding": 1, "groups": 4}),
    "depthwise, two maps each, stride 2": ((6, 1, 3), (9,), {"stride": 2, "groups": 3}),
}


@pytest.mark.parametrize(("filters", "map_shape", "options"), OPTIONS.values(), ids=OPTIONS)
def test_every_option_is_that_of_pytorch(filters, map_shape, options):
    rng = np.random.default_rng(0)
    options = {"padding": 0} | options
    W = ConvolutionMatrix(rng.normal(size=filters), map_shape, **options)
    x, delta = rng.normal(size=(4, W.maps_in, *map_shape)), rng.normal(size=(4, W.shape[0]))
    weights, inputs = (torch.tensor(v, requires_grad=True) for v in (W.weights, x))
    convolve = {1: torch.conv1d, 2: torch.conv2d}[len(map_shape)]
    outputs = convolve(inputs, weights, **options).flatten(1)
    same(W @ x.reshape(4, -1).T, outputs.detach().T)
    expected = torch.autograd.grad((outputs * torch.tensor(delta)).sum(), [weights, inputs])
    gradient, back = W.pullback(delta.T, x.reshape(4, -1).T)
    same(gradient, expected[0])
    same(back, expected[1].flatten(1).T)
    same(W.T @ delta.T, back)


def test_padding_of_each_side_is_that_of_padded_maps():
    rng = np.random.default_rng(0)
    filters, x = rng.normal(size=(2, 3, 2, 3)), rng.normal(size=(4, 3, 5, 6))
    W = ConvolutionMatrix(filters, (5, 6), stride=2, padding=((2, 1), (0, 3)))
    wide = torch.nn.functional.pad(torch.tensor(x), (0, 3, 2, 1))
    expected = torch.conv2d(wide, torch.tensor(filters), stride=2).flatten(1).T
    same(W @ x.reshape(4, -1).T, expected)


def test_options_that_mean_the_same_make_equal_layers():
    assert Conv(2, (3, 3), (1, 1), 1, (1,)) == Conv(2)
    assert Conv(2, [3, 5], padding=[1, 2]) == Conv(2, (3, 5))
    assert Conv(2, 1, padding="valid") == Conv(2, 1)
    assert Conv(2, 3, padding="valid") == Conv(2, 3, padding=((0, 0), (0, 0)))
    assert Conv(2, 3, padding=2, dilation=2) == Conv(2, dilation=2)
    assert Conv(2, 2, padding=((0, 1), (0, 1))) == Conv(2, 2)
    assert Conv(2, 2, padding=1) != Conv(2, 2)
    assert Conv(2).spec == {"type": "conv", "maps": 2, "kernel": 3}
    assert Conv(2, (3, 4), padding=((0, 1), 2), bias=False).spec == {
        "type": "conv",
        "maps": 2,
        "kernel": [3, 4],
        "padding": [[0, 1], 2],
        "bias": False,
    }


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (Conv(2, 5, padding=0), "expected maps of 5 or more, padding included, got 4"),
        (Conv(2, 3, groups=2), "expected groups that divide 3 maps below and 2, got 2"),
        (Conv(4, 3, groups=3), "expected groups that divide 3 maps below and 4, got 3"),
        (Conv(2, (3, 3, 5)), "expected size for 2 directions, got (3, 3, 5)"),
        (Conv(2, (3,), (2, 1, 3)), "expected stride for 2 directions, got (2, 1, 3)"),
        (Conv(2, padding=-1), "whole numbers of 0 or more, got -1"),
        (Conv(2, padding="full"), "whole numbers of 0 or more, got 'full'"),
        (Conv(2, padding=((1, 2, 3), 1)), "whole numbers of 0 or more, got ((1, 2, 3), 1)"),
        (Conv(2, padding=0.5), "whole numbers of 0 or more, got 0.5"),
        (Conv(2, (3, 0)), "expected positive whole numbers"),
        (Conv(2, dilation=0), "expected positive whole numbers"),
        (Conv(2, groups=0), "expected positive whole numbers"),
        (Conv(2, bias=1), "expected bias True or False, got 1"),
    ],
)
def test_options_that_no_convolution_has_are_refused(layer, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        Network((3, 4, 4), [layer])


@pytest.mark.parametrize(
    ("filters", "map_shape"),
    [((1, 1, 3), (4, 4)), ((1, 1, 3, 3), (4,)), ((1, 1), ()), ((0, 1, 3), (4,))],
)
def test_filters_that_do_not_fit_the_maps_are_refused(filters, map_shape):
    with pytest.raises(ValueError, match="filters"):
        ConvolutionMatrix(np.ones(filters), map_shape)


@pytest.mark.parametrize("stride", [0, -1, 1.5, None, "2", True])
def test_a_stride_that_is_no_positive_whole_number_is_refused(stride):
    with pytest.raises(ValueError, match="expected a stride of 1 or more, got "):
        ConvolutionMatrix(np.ones((1, 1, 3)), (5,), stride)
    words = re.escape(f"stride={stride!r}): expected positive whole numbers")
    with pytest.raises(ValueError, match=words):
        Network((1, 5), [Conv(1, 3, stride)])


@pytest.mark.parametrize("kernel", [(2.0, 1), (2, True), np.array([2, 1]), {2: 1}])
def test_a_layer_takes_no_option_because_it_took_an_equal_one_before(kernel):
    assert Conv(2, (2, 1)).output_shape((1, 5, 5)) == (2, 5, 5)
    with pytest.raises(ValueError, match="expected positive whole numbers"):
        Conv(2, kernel).output_shape((1, 5, 5))


def test_a_convolution_is_printed_with_what_was_given():
    assert repr(Conv(2)) == "Conv(maps=2, kernel=3)"
    assert repr(Conv(2, 5, 3)) == "Conv(maps=2, kernel=5, stride=3)"
    assert repr(Conv(2, padding=0, bias=False)) == "Conv(maps=2, kernel=3, padding=0, bias=False)"
    W = ConvolutionMatrix(np.ones((2, 1, 2, 3)), (4, 4), (1, 2), ((0, 1), 2), 2, 2)
    assert "filters 2x3, stride (1, 2), padding ((0, 1), 2), dilation 2, 2 groups," in repr(W)
    with pytest.raises(ValueError, match=re.escape("Conv(maps='3', kernel=3): expected positive")):
        Network((1, 5), [Conv("3")])
