"""What both poolings share: they are PyTorch's, and their windows divide the maps."""

import numpy as np
import pytest
import torch
from matrix_problems import same

from tinyspur.layers import AveragePoolingMatrix, MaxPoolingMatrix

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


@pytest.mark.parametrize(
    ("map_shape", "size"), [((5,), 2), ((4, 5), 2), ((5, 4), 2), ((4,), 8), ((4,), 0), ((4,), -2)]
)
def test_pooling_windows_that_do_not_divide_the_maps_are_refused(map_shape, size):
    for kind in (AveragePoolingMatrix, MaxPoolingMatrix):
        with pytest.raises(ValueError, match="divides"):
            kind(1, map_shape, size)
