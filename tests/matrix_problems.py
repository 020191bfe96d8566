"""Weight matrices of every kind: corner cases, and others drawn at random."""

import numpy as np
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tinyspur.layers import (
    AveragePoolingMatrix,
    ConvolutionMatrix,
    DenseMatrix,
    MaxPoolingMatrix,
)

# Entries are small whole numbers: sums come out the same in every order, and many are zero.


def whole(rng, *shape, zeros=0.3):
    values = rng.integers(1, 5, size=shape) * rng.choice([-1.0, 1.0], size=shape)
    return values * (rng.random(shape) >= zeros)


def convolution(filters, map_shape, seed, zero_maps=(), zero_channels=(), zero_taps=(), **options):
    """Return a convolution, some of whose maps, channels and taps (flat indices) are zero."""
    weights = whole(np.random.default_rng(seed), *filters)
    weights[list(zero_maps)] = 0
    weights[:, list(zero_channels)] = 0
    weights.reshape(*filters[:2], -1)[:, :, list(zero_taps)] = 0
    return ConvolutionMatrix(weights, map_shape, **options)


def dense(shape, maps_in, seed):
    return DenseMatrix(whole(np.random.default_rng(seed), *shape), maps_in)


def selection(maps, map_shape, size, *options, seed):
    """Return what a max pooling is for one sample with many ties."""
    W = MaxPoolingMatrix(maps, map_shape, size, *options)
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
    "convolution 1-D, strided": convolution((2, 3, 3), (7,), seed=17, stride=3),
    "convolution 2-D, strided": convolution((3, 2, 3, 3), (4, 5), seed=18, stride=2),
    "convolution 2-D, strided, gaps": convolution(
        (4, 3, 3, 3), (4, 3), 19, [1], [0], [1, 2], stride=2
    ),
    "convolution 2-D, valid": convolution((2, 3, 3, 5), (5, 6), seed=20, padding="valid"),
    "convolution 2-D, even": convolution((2, 1, 2, 4), (3, 5), seed=21),
    "convolution 2-D, wide padding": convolution((2, 1, 2, 1), (2, 3), seed=22, padding=(4, 3)),
    "convolution 2-D, dilated, gaps": convolution(
        (3, 3, 3, 3), (6, 4), 23, [1], [0], [0, 1, 2], dilation=(2, 1), padding=((0, 2), 1)
    ),
    "convolution 2-D, unread rows": convolution((2, 2, 2, 2), (6, 5), 24, stride=4, padding=0),
    "convolution 2-D, all options": convolution(
        (4, 2, 2, 3), (5, 7), 25, stride=(1, 2), padding=(1, 2), dilation=(2, 3), groups=2
    ),
    "convolution 2-D, depthwise": convolution((3, 1, 3, 3), (4, 3), seed=26, groups=3),
    "convolution 1-D, groups": convolution((4, 2, 3), (6,), seed=27, groups=2, zero_maps=[1]),
    "pooling, overlapping": AveragePoolingMatrix(2, (5, 4), 3, 2, 1),
    "pooling without padding counted": AveragePoolingMatrix(2, (5, 4), 3, 2, 1, True, False),
    "pooling with a last window that is cut": AveragePoolingMatrix(2, (5,), 2, 2, 0, True),
    "pooling that leaves entries out": AveragePoolingMatrix(1, (5, 7), (2, 3), (3, 2)),
    "selection, overlapping": selection(2, (5, 4), 3, 2, 1, seed=28),
    "selection, dilated": selection(1, (7,), 3, 1, 1, True, 2, seed=29),
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


def each(directions, numbers):
    """Return what draws an option with one for each direction."""
    return st.tuples(*[numbers] * directions)


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
        kernel = [draw(st.sampled_from([1, 2, 3, 5, 7])) for _ in range(directions)]
        map_shape = [draw(st.integers(1, 5)) for _ in range(directions)]
        filters = whole(rng, draw(size), draw(size), *kernel, zeros=draw(st.sampled_from([0, 0.7])))
        for axis in range(2 + directions):
            filters *= (rng.random(filters.shape[axis]) >= draw(st.sampled_from([0, 0.5]))).reshape(
                [-1 if other == axis else 1 for other in range(2 + directions)]
            )
        groups = draw(st.sampled_from([g for g in (1, 2, 3) if len(filters) % g == 0]))
        stride, dilation = (draw(each(directions, st.integers(1, 3))) for _ in range(2))
        span = max(d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True))
        least = st.integers(max(0, span - min(map_shape)), span + 1)
        padding = draw(st.just("same") | each(directions, st.tuples(least, st.integers(0, 4))))
        W = ConvolutionMatrix(filters, tuple(map_shape), stride, padding, dilation, groups)
    else:
        window = draw(st.integers(1, 3))
        windows = [draw(size) for _ in range(draw(st.integers(1, 2)))]
        maps, map_shape = draw(size), tuple(window * n for n in windows)
        stride = draw(st.none() | st.integers(1, 3))
        options = window, stride, draw(st.integers(0, window // 2)), draw(st.booleans())
        if kind == "pooling":
            W = AveragePoolingMatrix(maps, map_shape, *options, draw(st.booleans()))
        else:
            W = selection(maps, map_shape, *options, seed=draw(st.integers(0, 9)))
    return W.T if draw(st.booleans()) else W


def over_all_kinds(test):
    """Run a test of one matrix on every corner case and on matrices drawn at random."""
    test = given(W=weight_matrices())(test)
    for name, W in CORNERS.items():
        test = example(W=W).via(name)(test)
    checks = [HealthCheck.too_slow]
    return settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=checks)(
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
