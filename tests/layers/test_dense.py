"""A dense matrix is its weights, which fit the maps below them."""

import numpy as np
import pytest
import torch
from matrix_problems import same

from tinyspur.layers import DenseMatrix


def test_a_dense_matrix_and_its_derivatives_are_those_of_pytorch():
    rng = np.random.default_rng(0)
    W = DenseMatrix(rng.normal(size=(3, 8)), 2)
    x, delta = rng.normal(size=(4, 8)), rng.normal(size=(4, 3))
    weights, inputs = (torch.tensor(v, requires_grad=True) for v in (W.weights, x))
    outputs = torch.nn.functional.linear(inputs, weights)
    same(W.toarray(), W.weights)
    same(W @ x.T, outputs.detach().T)
    expected = torch.autograd.grad((outputs * torch.tensor(delta)).sum(), [weights, inputs])
    same(W.gradient(delta.T, x.T), expected[0])
    same(W.T @ delta.T, expected[1].T)


@pytest.mark.parametrize(
    ("shape", "maps_in"), [((2, 5), 2), ((4,), 1), ((1, 2, 2), 1), ((0, 4), 1)]
)
def test_dense_weights_of_another_shape_are_refused(shape, maps_in):
    with pytest.raises(ValueError, match="dense"):
        DenseMatrix(np.ones(shape), maps_in)
