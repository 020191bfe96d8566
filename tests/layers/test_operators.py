"""Weight matrices calculate as the CSR matrices that they are, for every kind."""

import numpy as np
import pytest
import scipy.sparse
import strict_device
from matrix_problems import CORNERS, operands, same
from scipy.sparse.linalg import aslinearoperator, svds

import tinyspur as ts
from tinyspur.engine.backend import to_numpy
from tinyspur.engine.parameters import Parameters
from tinyspur.layers import BlockMatrix, ConvolutionMatrix, DenseMatrix, ScaleMatrix

NET = ts.Network(
    (2, 4, 3),
    [
        ts.Conv(3),
        ts.Residual([ts.Conv(4), ts.Scale(), ts.Conv(3)]),
        ts.Scale(),
        ts.AveragePool(2, ceil_mode=True),
        ts.Dense(2),
    ],
)
POINT = Parameters(NET, np.random.default_rng(0).integers(-3, 4, NET.size).astype(float))
SOME = [
    *("dense", "dense, zero", "convolution 1-D, strided", "convolution 2-D, gaps"),
    *("convolution 2-D, unread rows", "convolution 2-D, all options", "convolution 2-D, depthwise"),
    *("pooling, overlapping", "pooling without padding counted", "selection, overlapping"),
]
KINDS = {name: CORNERS[name] for name in SOME}
KINDS |= {f"{name}, transposed": W.T for name, W in list(KINDS.items())[::2]}
KINDS |= {f"layer {n} of a network": W for n, W in POINT.W.items()}
KINDS |= {f"layer {n} of a network, transposed": POINT.W[n].T for n in (2, 4)}
over_kinds = pytest.mark.parametrize("W", KINDS.values(), ids=KINDS)


def is_csr(found):
    return isinstance(found, scipy.sparse.csr_array)


def test_blocks_and_scales_are_among_the_kinds():
    assert {BlockMatrix, ScaleMatrix} <= {type(W) for W in POINT.W.values()}


@over_kinds
def test_products_with_rows_from_the_left_are_those_of_the_entries(W):
    _, delta = operands(W)
    for v in (delta[:, 0], delta.T, delta.T.tolist(), delta.T[:0]):
        same(v @ W, np.asarray(v) @ W.tocsr().toarray())
    for shape in [(len(W) + 1,), (2, len(W) + 1), (1, 1, len(W))]:
        with pytest.raises(ValueError, match=r"^v @ .*: expected v \(\d+,\) or \(N, \d+\), got "):
            np.ones(shape) @ W


@over_kinds
def test_products_of_two_matrices_are_sparse(W):
    csr = W.tocsr()
    for other in (W.T, DenseMatrix(np.arange(2.0 * W.shape[1]).reshape(-1, 2))):
        assert is_csr(W @ other)
        same((W @ other).toarray(), (csr @ other.tocsr()).toarray())
    for other in (csr.T.tocoo(), scipy.sparse.csr_matrix(csr.T)):
        assert is_csr(W @ other)
        same((W @ other).toarray(), (csr @ csr.T).toarray())
    same(csr.T @ W, (csr.T @ csr).toarray())
    wrong = DenseMatrix(np.ones((W.shape[1] + 1, 2)))
    with pytest.raises(ValueError, match=rf"@ V: expected {W.shape[1]} rows, got \(.*, 2\)"):
        W @ wrong


@over_kinds
def test_numbers_multiply_and_divide_all_entries(W):
    entries = W.toarray()
    for found, expected in [
        (W * 3, 3 * entries),
        (np.float64(0.5) * W, entries / 2),
        (np.int8(2) * W, 2 * entries),
        (W / 4, entries / 4),
        (-W, -entries),
    ]:
        assert is_csr(found) or type(found) is type(W)
        assert np.array_equal(found.toarray(), expected)
    for wrong, words in [(np.ones(3), r"got an array \(3,\)"), ("2", "got <U1"), (1j, "complex")]:
        with pytest.raises(ValueError, match=words):
            W * wrong
        with pytest.raises(ValueError, match=words):
            W / wrong


@over_kinds
def test_matrices_of_equal_shape_are_added_and_subtracted(W):
    csr, entries = W.tocsr(), W.toarray()
    dense = DenseMatrix(np.arange(float(entries.size)).reshape(W.shape))
    for other in (W, dense, csr, csr.tocoo(), scipy.sparse.csc_matrix(csr)):
        added = other.toarray()
        for found, expected in [
            *((W + other, entries + added), (other + W, entries + added)),
            *((W - other, entries - added), (other - W, added - entries)),
        ]:
            assert is_csr(found) or type(found) is type(W) or isinstance(W, DenseMatrix)
            assert np.array_equal(found.toarray(), expected)
    assert np.array_equal(W + entries, 2 * entries)
    assert np.array_equal(entries - W, 0 * entries)
    for wrong in (1.0, np.ones(W.shape[1]), DenseMatrix(np.ones((len(W) + 1, 2)))):
        with pytest.raises(ValueError, match=r"\+ V: expected a matrix \(.*\), got \("):
            W + wrong


def test_what_changes_weights_alone_keeps_its_kind_and_its_type():
    filters = np.random.default_rng(0).normal(size=(2, 3, 3, 3)).astype(np.float32)
    W = ConvolutionMatrix(filters, (4, 5), stride=2)
    for matrix in (W, W.T, ScaleMatrix(filters[0, 0, 0], 2), DenseMatrix(filters[0, 0])):
        for found in (
            2 * matrix,
            matrix / np.float64(3),
            -matrix,
            matrix + matrix,
            matrix - matrix,
        ):
            assert type(found) is type(matrix)
            assert found.dtype == matrix.dtype == np.float32
    assert np.array_equal((W - W / 2).weights, filters / 2)
    assert np.array_equal(W.weights, filters)
    other = ConvolutionMatrix(filters, (4, 5), stride=2, dilation=1, padding=((0, 2), 1))
    assert W.shape == other.shape and is_csr(W + other)
    assert is_csr(ScaleMatrix(np.ones(2), 2) + ScaleMatrix(np.ones(4), 1))


@over_kinds
def test_a_matrix_is_an_array_of_its_entries(W):
    array = np.asarray(W)
    assert np.array_equal(array, W.tocsr().toarray())
    assert (array.shape, array.ndim, len(array)) == (W.shape, W.ndim, len(W))
    assert array.dtype == W.dtype == np.float64
    assert np.asarray(W, dtype=np.float32).dtype == np.float32
    assert np.array_equal(np.array(list(W)), array)
    assert np.linalg.matrix_rank(W) == np.linalg.matrix_rank(array)
    array[...] = 7
    assert np.array_equal(np.array(W, copy=True), W.toarray())
    with pytest.raises(ValueError, match="expected copy=None or True"):
        np.asarray(W, copy=False)


@over_kinds
def test_a_matrix_is_a_linear_operator_of_scipy(W):
    operator, csr, (o, delta) = aslinearoperator(W), W.tocsr(), operands(W)
    assert (operator.shape, operator.dtype) == (W.shape, W.dtype)
    same(operator.matvec(o[:, 0]), csr @ o[:, 0])
    same(operator.matmat(o), csr @ o)
    same(operator.rmatvec(delta[:, 0]), csr.T @ delta[:, 0])
    same(operator.rmatmat(delta), csr.T @ delta)
    same(W.matmat(o), csr @ o)
    same((operator.H @ operator).matvec(o[:, 0]), csr.T @ (csr @ o[:, 0]))


def test_singular_values_are_those_of_the_entries():
    W = ConvolutionMatrix(np.random.default_rng(0).normal(size=(2, 3, 3, 3)), (4, 4))
    found = svds(aslinearoperator(W), k=3, return_singular_vectors=False, random_state=0)
    expected = np.linalg.svd(W.toarray(), compute_uv=False)[2::-1]
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_max_pooling_calculates_at_an_input_only():
    W, o = ts.MaxPoolingMatrix(1, (4,), 2), np.array([3.0, 1.0, 2.0, 5.0])
    for use in (
        *(lambda: W @ W.at(o).T, lambda: np.ones(2) @ W, lambda: 2 * W, lambda: W + W),
        *(lambda: -W, lambda: aslinearoperator(W).matvec(o), lambda: np.asarray(W)),
    ):
        with pytest.raises(TypeError, match=r"expected W\.at\(o\)"):
            use()
    assert (np.array([1.0, 2.0]) @ W.at(o)).tolist() == [1, 0, 0, 2]


@over_kinds
def test_on_a_device_products_with_arrays_stay_and_other_results_are_on_the_host(W):
    if W.weights is None:
        return
    there = W.with_weights(strict_device.asarray(W.weights))
    o, delta = operands(W)
    rows = strict_device.asarray(delta.T)
    assert isinstance(rows @ there, strict_device.ndarray)
    same(to_numpy(rows @ there), delta.T @ W)
    same(to_numpy(rows[0] @ there), delta[:, 0] @ W)
    same(to_numpy(there.matmat(strict_device.asarray(o))), W @ o)
    for found, expected in [
        *((there @ there.T, W @ W.T), (2 * there, 2 * W), (there / 4, W / 4), (-there, -W)),
        *((there + there, W + W), (there - W, W - W), (there + W.tocsr(), W + W)),
    ]:
        assert is_csr(found) or isinstance(found.weights, strict_device.ndarray)
        assert np.array_equal(found.toarray(), expected.toarray())
    assert np.array_equal(np.asarray(there), W.toarray())
