"""The weight matrices multiply, transpose and show themselves as the matrices that they are."""

import numpy as np
import pytest
from matrix_problems import operands, over_all_kinds, same
from shared import close

from tinyspur.layers import AveragePoolingMatrix, ConvolutionMatrix, DenseMatrix, MaxPoolingMatrix


@over_all_kinds
def test_products_are_those_of_the_listed_entries(W):
    array, csr = W.toarray(), W.tocsr()
    assert array.shape == csr.shape == W.shape
    o, _ = operands(W)
    same(csr @ o, array @ o)
    same(W @ o, array @ o)
    same(W @ o[:, 0], array @ o[:, 0])
    same(W @ o[:, :1], array @ o[:, :1])
    same(W @ np.asfortranarray(o), array @ o)
    assert (W @ o[:, :0]).shape == (W.shape[0], 0)


@over_all_kinds
def test_products_leave_their_operand_alone(W):
    o, _ = operands(W)
    before = o.copy()
    product = W @ o
    assert not np.shares_memory(product, o)
    assert np.array_equal(o, before)


@over_all_kinds
def test_brief_products_are_products_until_the_next_of_the_same_use(W):
    o, _ = operands(W)
    first, other = W.brief_product(o, "one"), W.brief_product(2 * o, "another")
    assert first.tobytes() == (W @ o).tobytes() and first.flags.c_contiguous
    assert other.tobytes() == (W @ (2 * o)).tobytes()
    again = W.brief_product(-o, "one")
    assert again.tobytes() == (W @ -o).tobytes()
    assert np.shares_memory(again, first) == isinstance(W, ConvolutionMatrix)
    assert other.tobytes() == (W @ (2 * o)).tobytes()


@over_all_kinds
def test_the_transpose_is_the_transposed_matrix(W):
    assert W.T.shape == W.shape[::-1]
    assert np.array_equal(W.T.toarray(), W.toarray().T)
    _, delta = operands(W)
    same(W.T @ delta, W.toarray().T @ delta)
    same(W.T @ delta[:, 0], W.toarray().T @ delta[:, 0])


@over_all_kinds
def test_the_transpose_is_the_adjoint(W):
    x, y = operands(W)
    same(((W @ x) * y).sum(), (x * (W.T @ y)).sum())


@over_all_kinds
def test_transposing_twice_gives_the_matrix_back(W):
    again = W.T.T
    assert type(again) is type(W)
    assert np.array_equal(again.toarray(), W.toarray())
    if W.weights is None:
        assert again.weights is None
    else:
        assert np.array_equal(again.weights, W.weights)


@over_all_kinds
def test_the_blocks_of_the_transpose_are_the_transposed_blocks(W):
    assert (W.T.maps_out, W.T.maps_in) == (W.maps_in, W.maps_out)
    for t, c in np.ndindex(W.maps_out, W.maps_in):
        assert np.array_equal(W.T.block(c, t), W.block(t, c).T)
        assert np.array_equal(W.T.T.block(t, c), W.block(t, c))


def indices(n):
    """Return ways to choose among n rows or columns."""
    few = [n - 1, 0, n // 2]
    return [
        *(0, n - 1, -1, -n, np.int64(n // 2)),
        *(slice(None), slice(0, 0), slice(1, None), slice(None, None, 2), slice(None, None, -1)),
        *(few, [-1], [], np.array(few), np.array(few) - n, np.arange(n) % 2 == 0),
    ]


@over_all_kinds
def test_entries_are_shown_as_those_of_the_array(W):
    array, (of_rows, of_columns) = W.toarray(), (indices(n) for n in W.shape)
    for n, i in enumerate(of_rows):  # with other columns for every row, and for every shape
        j = of_columns[(n * (1 + W.shape[0] % 7) + W.shape[1]) % len(of_columns)]
        rows, columns = np.arange(W.shape[0])[i], np.arange(W.shape[1])[j]
        expected = array[np.ix_(np.ravel(rows), np.ravel(columns))]
        assert np.array_equal(W[i, j], expected.reshape(rows.shape + columns.shape))
    assert isinstance(W[0, 0], float)


@over_all_kinds
def test_the_array_is_made_of_the_blocks(W):
    blocks = [[W.block(t, c) for c in range(W.maps_in)] for t in range(W.maps_out)]
    assert blocks[0][0].shape == (W.positions_out, W.positions_in)
    assert np.array_equal(np.block(blocks), W.toarray())


@over_all_kinds
def test_nonzeros_are_counted_right(W):
    assert W.nnz == W.tocsr().nnz == np.count_nonzero(W.toarray())
    assert type(W.nnz) is int


@over_all_kinds
def test_the_absolute_value_is_taken_entry_by_entry(W):
    assert type(abs(W)) is type(W)
    assert np.array_equal(abs(W).toarray(), abs(W.toarray()))


@over_all_kinds
def test_other_weights_take_the_place_of_the_old(W):
    if W.weights is None:
        assert W.with_weights(None) is W
        return
    other = W.with_weights(2 * W.weights + 1)
    assert (type(other), other.shape, other.maps_in) == (type(W), W.shape, W.maps_in)
    assert np.array_equal(other.weights, 2 * W.weights + 1)
    ones = W.with_weights(np.ones_like(W.weights))
    assert np.array_equal(other.toarray(), 2 * W.toarray() + ones.toarray())


@over_all_kinds
def test_support_sums_add_what_the_trainable_entries_see(W):
    a, _ = operands(W)
    if W.weights is None:
        assert W.support_sums(a) is None
        return
    support = W.with_weights(np.ones_like(W.weights)).toarray()
    assert set(np.unique(support)) <= {0, 1}
    sums = W.support_sums(a)
    assert (sums.ndim == 3) == (W.groups > 1)
    for t, rows in enumerate(np.split(support, W.maps_out)):
        same(sums if W.groups == 1 else sums[t], rows @ a)


@over_all_kinds
def test_the_gradient_holds_the_derivative_in_each_weight(W):
    o, delta = operands(W)
    if W.weights is None:
        for function in (W.gradient, W.pullback):
            with pytest.raises(TypeError, match=type(W).__name__):
                function(delta, o)
        return
    expected = np.empty_like(W.weights)
    for index in np.ndindex(W.weights.shape):
        unit = np.zeros_like(W.weights)
        unit[index] = 1
        expected[index] = (delta * (W.with_weights(unit).tocsr() @ o)).sum()
    same(W.gradient(delta, o), expected)
    for found, known in zip(W.pullback(delta, o), (expected, W.tocsr().T @ delta), strict=True):
        same(found, known)


@over_all_kinds
def test_single_precision_stays_single(W):
    if W.weights is not None:
        W = W.with_weights(W.weights.astype(np.float32))
    o, delta = (v.astype(np.float32) for v in operands(W))
    results = [W @ o, W @ o[:, 0], W.T @ delta, abs(W) @ o]
    if W.weights is not None:
        assert W.T.weights.dtype == np.float32
        results += [W.gradient(delta, o), W.support_sums(o)]
    assert [r.dtype for r in results] == [np.float32] * len(results)
    np.testing.assert_allclose(W @ o, W.toarray() @ o, rtol=1e-5, atol=1e-5)


@over_all_kinds
def test_the_representation_says_kind_shape_and_nonzeros(W):
    rows, columns = W.shape
    assert repr(W).startswith(f"{type(W).__name__}({rows} x {columns}")
    assert repr(W).endswith(f", {np.count_nonzero(W.toarray())} nonzeros)")


def test_the_representation_says_the_maps_and_the_filters():
    W = ConvolutionMatrix(np.ones((2, 4, 3, 5)), (6, 7))
    assert "2 maps from 4, filters 3x5" in repr(W)
    assert "1 map from 1, filters 3," in repr(ConvolutionMatrix(np.ones((1, 1, 3)), (4,)))
    assert "3 maps, size 2" in repr(AveragePoolingMatrix(3, (4,), 2))
    W = MaxPoolingMatrix(3, (4,), 2)
    assert repr(W) == "MaxPoolingMatrix(6 x 12, 3 maps, size 2, 6 nonzeros)"
    o = np.zeros((12, 2))
    assert "3 maps, size 2, of 2 samples, 6 nonzeros" in repr(W.at(o))
    assert "3 maps, size 2, of 1 sample, 6 nonzeros" in repr(W.at(o[:, 0]))


# Errors


@over_all_kinds
def test_operands_of_another_shape_are_refused(W):
    n = W.shape[1]
    for shape in [(n + 1,), (n + 1, 2), (n - 1,), (n, 2, 1), ()]:
        with pytest.raises(ValueError, match="expected o of shape"):
            W @ np.ones(shape)


@over_all_kinds
def test_indices_outside_the_matrix_are_refused(W):
    rows, columns = W.shape
    for key in [
        *((rows, 0), (-rows - 1, 0), (0, columns), (slice(None), [columns]), ([-rows - 1], 0)),
        *(0, slice(None), (0,), (0, 0, 0), (0.5, 0), ("a", 0)),
    ]:
        with pytest.raises(IndexError):
            W[key]
    for key in (0, slice(2), [0, 1]):
        with pytest.raises(IndexError, match=r"two indices W\[i, j\], got .*; row i is W\[i, :\]"):
            W[key]


@over_all_kinds
def test_blocks_outside_the_matrix_are_refused(W):
    for t in (-1, W.maps_out):
        with pytest.raises(IndexError, match="map"):
            W.block(t, 0)
    for c in (-1, W.maps_in):
        with pytest.raises(IndexError, match="channel"):
            W.block(0, c)


@over_all_kinds
@pytest.mark.parametrize("kind", [object, complex, "U8", "M8[s]"])
def test_what_is_no_plain_real_array_is_refused_as_an_operand(W, kind):
    o = operands(W)[0].astype(kind) if kind != "M8[s]" else np.zeros(W.shape[1], kind)
    with pytest.raises(ValueError, match="W @ o: expected plain real numbers, got "):
        W @ o


@over_all_kinds
def test_whole_numbers_are_multiplied_as_float64(W):
    o = np.arange(W.shape[1], dtype=np.int8)
    product = W @ o
    assert product.dtype == np.float64 and np.array_equal(product, W @ o.astype(float))


# What positions read


@pytest.mark.parametrize("stride", [1, 2])
def test_weights_times_what_positions_read_is_the_product(stride):
    rng = np.random.default_rng(0)
    o = rng.normal(size=(2 * 12, 3))
    for W in (
        ConvolutionMatrix(rng.normal(size=(4, 2, 3, 3)), (3, 4), stride),
        DenseMatrix(rng.normal(size=(5, 24)), maps_in=2),
    ):
        read = np.concatenate([W.gathered(channel) for channel in o.reshape(2, 12, 3)])
        flat = W.weights.reshape(len(W.weights), -1)
        close(np.einsum("tk,kpn->tpn", flat, read).reshape(W.shape[0], 3), W @ o, 1e-13)


def test_poolings_read_their_windows():
    o = np.random.default_rng(0).normal(size=(2 * 16, 3))
    for W, taken in (
        (AveragePoolingMatrix(2, (4, 4), 2), np.mean),
        (MaxPoolingMatrix(2, (4, 4), 2), np.max),
    ):
        read = np.concatenate([W.gathered(channel) for channel in o.reshape(2, 16, 3)], axis=1)
        close(taken(read, axis=0), W @ o, 1e-15)


def test_a_selection_for_repeated_columns_selects_in_each_as_in_the_first():
    o = np.random.default_rng(0).normal(size=(16, 3))
    W = MaxPoolingMatrix(1, (4, 4), 2).at(o)
    close(W.repeated(2) @ o.repeat(2, axis=1), (W @ o).repeat(2, axis=1), 0)
