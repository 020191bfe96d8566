"""The weight matrices multiply, transpose and show themselves as the matrices that they are."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tinyspur.layers import (
    AveragePoolingMatrix,
    ConvolutionMatrix,
    DenseMatrix,
    MaxPoolingMatrix,
    wide_products,
)
from tinyspur.layers import convolution as convolutions

# Entries are small whole numbers: sums come out the same in every order, and many are zero.


def whole(rng, *shape, zeros=0.3):
    values = rng.integers(1, 5, size=shape) * rng.choice([-1.0, 1.0], size=shape)
    return values * (rng.random(shape) >= zeros)


def convolution(filters, map_shape, seed, zero_maps=(), zero_channels=(), zero_taps=()):
    """Return a convolution, some of whose maps, channels and taps (flat indices) are zero."""
    weights = whole(np.random.default_rng(seed), *filters)
    weights[list(zero_maps)] = 0
    weights[:, list(zero_channels)] = 0
    weights.reshape(*filters[:2], -1)[:, :, list(zero_taps)] = 0
    return ConvolutionMatrix(weights, map_shape)


def dense(shape, maps_in, seed):
    return DenseMatrix(whole(np.random.default_rng(seed), *shape), maps_in)


def selection(maps, map_shape, size, seed):
    """Return what a max pooling is for one sample with many ties."""
    W = MaxPoolingMatrix(maps, map_shape, size)
    return W.at(whole(np.random.default_rng(seed), W.shape[1]))


CORNERS = {
    "dense": dense((3, 6), 2, seed=0),
    "dense, one neuron": dense((1, 1), 1, seed=1),
    "dense, zero": DenseMatrix(np.zeros((2, 3))),
    "convolution 1-D": convolution((2, 3, 3), (5,), seed=2),
    "convolution 1-D, filters larger than the maps": convolution((2, 1, 7), (3,), seed=3),
    "convolution 1-D on one position": convolution((1, 2, 3), (1,), seed=4),
    "convolution 2-D": convolution((2, 3, 3, 3), (4, 5), seed=5),
    "convolution 2-D, filters of size 1": convolution((3, 2, 1, 1), (2, 3), seed=6),
    "convolution 2-D, filters of size 5": convolution((2, 2, 5, 5), (4, 6), seed=7),
    "convolution 2-D, filters larger than the maps": convolution((2, 2, 7, 7), (3, 2), seed=8),
    "convolution 2-D, filters not square": convolution((2, 2, 1, 5), (4, 3), seed=9),
    "convolution 2-D, zero": ConvolutionMatrix(np.zeros((2, 3, 3, 3)), (3, 4)),
    "convolution 2-D, gaps": convolution((4, 4, 3, 3), (4, 3), 10, [1], [0, 2], [1, 2, 3, 6, 7]),
    "convolution 2-D, gaps at the ends": convolution((4, 5, 3, 3), (3, 3), 11, [0, 3], [0, 3, 4]),
    "convolution 2-D, outer taps only": convolution((2, 2, 3, 3), (1, 1), 12, (), (), [4]),
    "pooling 1-D": AveragePoolingMatrix(2, (6,), 3),
    "pooling 2-D": AveragePoolingMatrix(3, (4, 6), 2),
    "pooling 2-D to one position": AveragePoolingMatrix(2, (3, 3), 3),
    "pooling by one": AveragePoolingMatrix(2, (2, 3), 1),
    "selection 1-D": selection(2, (6,), 3, seed=13),
    "selection 2-D": selection(3, (4, 6), 2, seed=14),
    "selection 2-D to one position": selection(2, (3, 3), 3, seed=15),
    "selection by one": selection(2, (2, 3), 1, seed=16),
}
CORNERS.update({f"{name}, transposed": W.T for name, W in list(CORNERS.items())})


@st.composite
def weight_matrices(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = draw(st.sampled_from(["dense", "convolution", "pooling", "selection"]))
    size = st.integers(1, 3)
    if kind == "dense":
        maps, positions = draw(size), draw(size)
        shape = (draw(st.integers(1, 5)), maps * positions)
        W = DenseMatrix(whole(rng, *shape, zeros=draw(st.sampled_from([0, 0.5]))), maps)
    elif kind == "convolution":
        directions = draw(st.integers(1, 2))
        kernel = [draw(st.sampled_from([1, 3, 5, 7])) for _ in range(directions)]
        map_shape = [draw(st.integers(1, 5)) for _ in range(directions)]
        filters = whole(rng, draw(size), draw(size), *kernel, zeros=draw(st.sampled_from([0, 0.7])))
        for axis in range(2 + directions):
            filters *= (rng.random(filters.shape[axis]) >= draw(st.sampled_from([0, 0.5]))).reshape(
                [-1 if other == axis else 1 for other in range(2 + directions)]
            )
        W = ConvolutionMatrix(filters, tuple(map_shape))
    else:
        window = draw(st.integers(1, 3))
        windows = [draw(size) for _ in range(draw(st.integers(1, 2)))]
        maps, map_shape = draw(size), tuple(window * n for n in windows)
        if kind == "pooling":
            W = AveragePoolingMatrix(maps, map_shape, window)
        else:
            W = selection(maps, map_shape, window, draw(st.integers(0, 9)))
    return W.T if draw(st.booleans()) else W


def over_all_kinds(test):
    """Run a test of one matrix on every corner case and on matrices drawn at random."""
    test = given(W=weight_matrices())(test)
    for name, W in CORNERS.items():
        test = example(W=W).via(name)(test)
    checks = [HealthCheck.too_slow]
    return settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=checks)(
        test
    )


def operands(W, columns=3, seed=0):
    """Return o (n_{l-1}, columns) and delta (n_l, columns)."""
    rng = np.random.default_rng(seed)
    return whole(rng, W.shape[1], columns, zeros=0.1), whole(rng, W.shape[0], columns, zeros=0.1)


def same(actual, expected):
    """Whether the shapes are equal and the entries too, up to the rounding of a mean."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=1e-14, atol=1e-12)


# The examples of the paper


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


def test_average_pooling_is_the_matrix_of_equation_11():
    W = AveragePoolingMatrix(1, (4,), 2)
    assert W.toarray().tolist() == [[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]]


@pytest.mark.parametrize(
    ("kernel", "map_shape"), [((1,), (4,)), ((5,), (3,)), ((3, 3), (3, 4)), ((7, 5), (2, 3))]
)
def test_the_identity_filter_is_the_identity_matrix(kernel, map_shape):
    filters = np.zeros((1, 1, *kernel))
    W = ConvolutionMatrix(filters, map_shape)
    filters[(0, 0, *W.centre)] = 1
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


# What all kinds share


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
    array = W.toarray()
    for i, j in itertools.product(*(indices(n) for n in W.shape)):
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
    for rows in np.split(support, W.maps_out):
        same(W.support_sums(a), rows @ a)


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


@pytest.mark.parametrize("columns", [1, 255, 256, 1024, 2999, 3000, 4096, 6 * 1024 + 1, 9991])
@pytest.mark.parametrize("shape", [(1, 1), (4, 9), (6, 54), (60, 60), (100, 200)], ids=str)
def test_products_in_parts_are_products(shape, columns):
    rng = np.random.default_rng(0)
    A, B = whole(rng, *shape), whole(rng, shape[1], 2 * columns)[:, ::2]
    wide = whole(rng, shape[0], columns)
    out = np.full((shape[0], columns), np.nan)
    wide_products.product(A, B, out)
    assert np.array_equal(out, A @ B)
    assert np.array_equal(wide_products.outer(wide, B), wide @ B.T)


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
    box = (slice(0, 3), slice(0, 3))

    def sizes():
        return [patches.nbytes for patches, _ in W._patches(images, box)]

    (whole_size,) = sizes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convolutions, "STRIP_BYTES", whole_size // 3)
        assert len(sizes()) == 4
        assert max(sizes()) <= whole_size // 3
        assert sum(sizes()) == whole_size


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


# PyTorch


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


# Max pooling


def max_poolings():
    """Yield max poolings with two terms on few values, so that many entries are equal, (n, N)."""
    rng = np.random.default_rng(0)
    for map_shape, size in [((6,), 3), ((4,), 1), ((4, 6), 2), ((3, 3), 3)]:
        W = MaxPoolingMatrix(2, map_shape, size)
        yield W, *rng.integers(-1, 2, (3, W.shape[1], 40)).astype(float)


def windows(W):
    """Return for each neuron of a pooling the neurons that it reads, row by row."""
    shape = (W.maps_in, *W.map_shape)
    coarse = (W.maps_in, *(n // W.size for n in W.map_shape))
    found = []
    for t, *position in np.ndindex(coarse):
        offsets = np.ndindex((W.size,) * len(position))
        places = [[W.size * p + k for p, k in zip(position, of, strict=True)] for of in offsets]
        found.append([np.ravel_multi_index((t, *place), shape) for place in places])
    return found


def test_the_selection_of_several_samples_is_that_of_each():
    for W, o, other, _ in max_poolings():
        S, delta = W.at(o), operands(W, o.shape[1])[1]
        assert np.array_equal(S @ o, W @ o)
        assert (S.shape, S.nnz, S.T.shape) == (W.shape, W.shape[0], W.shape[::-1])
        for i in range(o.shape[1]):
            one = W.at(o[:, i]).toarray()
            assert np.array_equal((S @ other)[:, i], one @ other[:, i])
            assert np.array_equal((S.T @ delta)[:, i], one.T @ delta[:, i])
            assert one.argmax(axis=1).tolist() == [w[o[w, i].argmax()] for w in windows(W)]
        assert ((S @ other) * delta).sum() == (other * (S.T @ delta)).sum()


def test_the_gap_is_that_of_the_largest_entry_to_the_next():
    for W, o, moves, change in max_poolings():
        change = abs(change)
        for still in (moves < 2, moves == 2, moves == 0):  # all, none and some of them
            slack = np.where(still, 0, change)
            gaps, left = W.gaps(o, still), W.gaps(o, still, slack)
            for (n, i), gap in np.ndenumerate(gaps):
                window = windows(W)[n]
                best = window[o[window, i].argmax()]
                others = [j for j in window if j != best and not (still[j, i] and still[best, i])]
                distances = [o[best, i] - o[j, i] for j in others]
                assert gap == min(distances, default=np.inf)
                reach = [slack[best, i] + slack[j, i] for j in others]
                moved = [a - b for a, b in zip(distances, reach, strict=True)]
                assert left[n, i] == min(moved, default=np.inf)


def test_the_selection_in_the_limit_is_that_of_small_steps():
    for W, *terms in max_poolings():
        none = [np.zeros_like(terms[0])] * 3
        S, step = W.at_limit(terms, none), 2.0**-10
        near = sum(step**k * term for k, term in enumerate(terms))
        assert np.array_equal(S @ near, W @ near)
        assert np.array_equal(S.choice, W.choice(near))
        assert W.size == 1 or (S.choice != W.choice(terms[0])).any()
        assert np.array_equal(W.at_limit(terms[:1], none[:1]).choice, W.choice(terms[0]))


def test_entries_that_are_equal_up_to_the_tolerances_leave_the_choice_to_the_next_term():
    W = MaxPoolingMatrix(1, (4,), 4)
    terms = [np.array([[3.0], [3.1], [2.0], [2.9]]), np.array([[1.0], [0.0], [9.0], [2.0]])]
    for tolerance, choice in ((0.0, 1), (0.06, 0), (0.11, 3), (0.6, 2)):
        slack = [np.full((4, 1), tolerance), np.zeros((4, 1))]
        assert W.at_limit(terms, slack).choice == choice
    slack[0][:, 0] = 0, 0.3, 0, 0  # one tolerance is enough for two entries
    assert W.at_limit(terms, slack).choice == 3


def test_a_max_pooling_has_entries_only_for_an_input():
    W = MaxPoolingMatrix(2, (4,), 2)
    for show in (W.tocsr, W.toarray, lambda: W[0, 0], lambda: W[:, 0], lambda: W.block(0, 0)):
        with pytest.raises(TypeError, match=r"only for an input o: expected W\.at\(o\)"):
            show()
    with pytest.raises(TypeError, match=r"only for an input o: expected W\.at\(o\)\.T"):
        _ = W.T
    S = W.at(np.zeros((8, 3)))
    for show in (S.tocsr, S.toarray, S.T.tocsr, lambda: S[0, 0], lambda: S.block(0, 0)):
        with pytest.raises(TypeError, match="only for one sample, got those of 3"):
            show()
    for matrix in (W, S):
        with pytest.raises(TypeError, match="has no weights"):
            matrix.gradient(np.zeros((4, 3)), np.zeros((8, 3)))
        with pytest.raises(ValueError, match="expected o of shape"):
            matrix @ np.zeros((9, 3))
        assert abs(matrix) is matrix.with_weights(None) is matrix
        assert matrix.support_sums(np.zeros((8, 3))) is None
    for other in (S, DenseMatrix(np.ones((2, 3)))):
        assert other.at(np.zeros((8, 3))) is other


# Errors


@pytest.mark.parametrize("kernel", [(2,), (4,), (2, 3), (3, 2)])
def test_filters_of_even_size_are_refused(kernel):
    with pytest.raises(ValueError, match="odd"):
        ConvolutionMatrix(np.ones((1, 1, *kernel)), (4,) * len(kernel))


@pytest.mark.parametrize(
    ("filters", "map_shape"), [((1, 1, 3), (4, 4)), ((1, 1, 3, 3), (4,)), ((1, 1), ())]
)
def test_filters_that_do_not_fit_the_maps_are_refused(filters, map_shape):
    with pytest.raises(ValueError, match="filters"):
        ConvolutionMatrix(np.ones(filters), map_shape)


@pytest.mark.parametrize(("shape", "maps_in"), [((2, 5), 2), ((4,), 1), ((1, 2, 2), 1)])
def test_dense_weights_of_another_shape_are_refused(shape, maps_in):
    with pytest.raises(ValueError, match="dense"):
        DenseMatrix(np.ones(shape), maps_in)


@pytest.mark.parametrize(
    ("map_shape", "size"), [((5,), 2), ((4, 5), 2), ((5, 4), 2), ((4,), 8), ((4,), 0), ((4,), -2)]
)
def test_pooling_windows_that_do_not_divide_the_maps_are_refused(map_shape, size):
    for kind in (AveragePoolingMatrix, MaxPoolingMatrix):
        with pytest.raises(ValueError, match="divides"):
            kind(1, map_shape, size)


@over_all_kinds
def test_operands_of_another_shape_are_refused(W):
    n = W.shape[1]
    for shape in [(n + 1,), (n + 1, 2), (n - 1,), (n, 2, 1), ()]:
        with pytest.raises(ValueError, match="expected o of shape"):
            W @ np.ones(shape)


@over_all_kinds
def test_an_array_times_a_matrix_is_refused(W):
    with pytest.raises(TypeError, match="unsupported operand"):
        np.ones(W.shape[0]) @ W
    with pytest.raises(TypeError, match="unsupported operand"):
        np.ones((2, W.shape[0])) @ W


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
