"""The pictures of weight matrices show the entries where their labels say."""

import itertools
import re
import tracemalloc

import numpy as np
import pytest
import strict_device
from matplotlib import pyplot
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from shared import in_turn

from tinyspur.engine.network import Network
from tinyspur.figures.matrices import plot_matrix, plot_point
from tinyspur.fitting.training import kaiming_start
from tinyspur.layers import (
    AveragePool,
    AveragePoolingMatrix,
    Conv,
    ConvolutionMatrix,
    Dense,
    DenseMatrix,
    MaxPoolingMatrix,
    Residual,
)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def convolution(maps, channels, *map_shape, zeros=0.3):
    weights = normal(maps, channels, *(3 for _ in map_shape))
    weights[np.random.default_rng(1).random(weights.shape) < zeros] = 0
    return ConvolutionMatrix(weights, map_shape)


MATRICES = {
    "convolution 1-D": convolution(2, 3, 5),
    "convolution 2-D": convolution(3, 2, 4, 5),
    "convolution of one map": convolution(1, 1, 3, 3),
    "dense on maps": DenseMatrix(normal(3, 12), 2),
    "dense": DenseMatrix(normal(4, 5), 5),
    "dense of zeros": DenseMatrix(np.zeros((2, 3)), 3),
    "dense, transposed": DenseMatrix(normal(3, 12), 2).T,
    "average pooling": AveragePoolingMatrix(3, (4, 6), 2),
    "average pooling, transposed": AveragePoolingMatrix(2, (4, 4), 2).T,
    "max pooling at an input": MaxPoolingMatrix(2, (4, 4), 2).at(normal(32)),
}
LARGE = {
    "4704 x 3136": convolution(6, 4, 28, 28),
    "pooling": AveragePoolingMatrix(16, (28, 28), 2),
    "dense on maps": DenseMatrix(normal(10, 6 * 784), 6),
    "dense": DenseMatrix(normal(500, 600), 600),
    "convolution 1-D": convolution(30, 2, 100),
}
PAPER = Network(
    (3, 32, 32), [*map(Conv, (64, 64, 128, 128, 256, 256, 256)), AveragePool(2), Dense(10)]
)


@pytest.fixture(scope="module")
def paper():
    return kaiming_start(PAPER)


def drawn(figure):
    """Return the numbers in the picture, 0 where it is blank."""
    return figure.axes[0].images[0].get_array().filled(0)


def title(figure):
    return figure.axes[0].get_title(loc="left")


def rendered(figure):
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3] / 255


def labels(axis):
    """Return the numbers at the ticks of an axis, and the places of the ticks."""
    return [int(label.get_text()) for label in axis.get_ticklabels()], axis.get_ticklocs()


@pytest.mark.parametrize("W", MATRICES.values(), ids=MATRICES)
def test_a_small_matrix_is_drawn_whole_with_its_zeros_blank(W):
    figure = plot_matrix(W)
    np.testing.assert_array_equal(drawn(figure), W.toarray())
    mask = np.ma.getmaskarray(figure.axes[0].images[0].get_array())
    np.testing.assert_array_equal(mask, W.toarray() == 0)
    assert title(figure).replace("\n", " ") == repr(W)


@pytest.mark.parametrize(
    ("maps", "channels", "corner"),
    [(None, None, None), ([4, 1, 2], None, 7), (range(2, 5), [3, 0], None), (None, [1, 2], 20)],
)
def test_the_blocks_are_those_that_the_labels_name(maps, channels, corner):
    W = convolution(5, 4, 4, 5)
    figure = plot_matrix(W, maps=maps, channels=channels, corner=corner)
    ax, entries, p = figure.axes[0], W.toarray(), corner or 20
    rows, columns = labels(ax.yaxis), labels(ax.xaxis)
    assert rows[0] == list(range(5) if maps is None else maps)
    assert columns[0] == list(range(4) if channels is None else channels)
    picture = drawn(figure)
    assert picture.shape == (len(rows[0]) * p, len(columns[0]) * p)
    for (t, y), (c, x) in itertools.product(zip(*rows, strict=True), zip(*columns, strict=True)):
        top, left = round(y - (p - 1) / 2), round(x - (p - 1) / 2)
        np.testing.assert_array_equal(
            picture[top : top + p, left : left + p],
            entries[20 * t : 20 * t + p, 20 * c : 20 * c + p],
        )
    assert (ax.get_ylabel(), ax.get_xlabel()) == ("map", "channel")


def test_the_columns_of_a_dense_layer_are_grouped_by_map():
    weights = normal(10, 6 * 49)
    figure = plot_matrix(DenseMatrix(weights, 6), maps=[7, 2], channels=[5, 0], corner=9)
    np.testing.assert_array_equal(drawn(figure)[0, 9:], weights[7, :9])
    np.testing.assert_array_equal(drawn(figure)[1, :9], weights[2, 5 * 49 : 5 * 49 + 9])
    ax = figure.axes[0]
    assert (ax.get_ylabel(), ax.get_xlabel()) == ("neuron", "channel")
    np.testing.assert_array_equal(labels(ax.yaxis), [[7, 2], [0, 1]])
    np.testing.assert_array_equal(labels(ax.xaxis), [[5, 0], [4, 13]])


def test_in_a_single_block_the_positions_are_numbered():
    W = convolution(3, 2, 4, 5)
    figure = plot_matrix(W, maps=2, channels=[1])
    np.testing.assert_array_equal(drawn(figure), W.block(2, 1))
    ax = figure.axes[0]
    assert (ax.get_ylabel(), ax.get_xlabel()) == ("position of map 2", "position of channel 1")
    for axis in (ax.xaxis, ax.yaxis):
        numbers, places = labels(axis)
        assert len(numbers) >= 4
        np.testing.assert_array_equal(numbers, places)


@pytest.mark.parametrize("map_shape", [(6,), (5, 4)])
def test_filters_are_drawn_block_by_block(map_shape):
    W = convolution(3, 4, *map_shape)
    for maps, channels in ((range(3), range(4)), ([2, 0], [3, 1, 2])):
        picture = drawn(plot_matrix(W, maps=maps, channels=channels, filters=True))
        rows = [np.hstack([np.atleast_2d(W.filters[t, c]) for c in channels]) for t in maps]
        np.testing.assert_array_equal(picture, np.vstack(rows))


@pytest.mark.parametrize(
    ("W", "options", "rows", "columns"),
    [
        (convolution(3, 2, 4, 5), {}, [19.5, 39.5], [19.5]),
        (convolution(3, 2, 4, 5), {"corner": 7}, [6.5, 13.5], [6.5]),
        (convolution(3, 2, 4, 5), {"filters": True}, [2.5, 5.5], [2.5]),
        (convolution(3, 2, 6), {"filters": True}, [], [2.5]),
        (DenseMatrix(normal(3, 12), 2), {}, [], [5.5]),
        (DenseMatrix(normal(3, 12), 12), {}, [], []),
        (AveragePoolingMatrix(3, (4, 6), 2), {}, [5.5, 11.5], [23.5, 47.5]),
    ],
)
def test_lines_separate_the_blocks(W, options, rows, columns):
    lines = [line.get_xydata() for line in plot_matrix(W, **options).axes[0].lines]
    across = [line[0, 1] for line in lines if line[0, 1] == line[1, 1]]
    down = [line[0, 0] for line in lines if line[0, 0] == line[1, 0]]
    assert (across, down) == (rows, columns)


# Matrices that are larger than the picture


@pytest.mark.parametrize("W", LARGE.values(), ids=LARGE)
def test_of_a_large_matrix_the_title_says_what_is_drawn(W):
    figure = plot_matrix(W)
    picture, words = drawn(figure), title(figure).replace("\n", " ")
    assert max(picture.shape) <= 400
    assert words.startswith(f"{W!r} drawn: ")
    sides, ax = [], figure.axes[0]
    for name, count in ((ax.get_ylabel(), W.maps_out), (ax.get_xlabel(), W.maps_in)):
        found = re.search(rf" {name}s 0 to (\d+) of {count}\b", words)
        sides.append(int(found[1]) + 1 if found else count)
    p, q = picture.shape[0] // sides[0], picture.shape[1] // sides[1]
    assert (p * sides[0], q * sides[1]) == picture.shape
    for n, of in ((p, W.positions_out), (q, W.positions_in)):
        assert (n == of) or f"0 to {n - 1} of {of}" in words
    t = np.repeat(np.arange(sides[0]), p) * W.positions_out + np.tile(np.arange(p), sides[0])
    c = np.repeat(np.arange(sides[1]), q) * W.positions_in + np.tile(np.arange(q), sides[1])
    np.testing.assert_array_equal(picture, W.tocsr()[t][:, c].toarray())


def test_all_maps_are_drawn_as_far_as_blocks_of_forty_positions_fit():
    assert drawn(plot_matrix(LARGE["4704 x 3136"])).shape == (6 * 66, 4 * 66)
    assert drawn(plot_matrix(convolution(12, 3, 8, 8))).shape == (10 * 40, 3 * 40)
    asked = plot_matrix(convolution(12, 3, 8, 8), maps=range(12))
    assert drawn(asked).shape == (12 * 33, 3 * 33)


def test_a_pooling_is_drawn_along_its_diagonal():
    W = AveragePoolingMatrix(16, (28, 28), 2)
    for options, maps in (({}, range(10)), ({"maps": [3, 12]}, [3, 12]), ({"channels": 5}, [5])):
        ax = plot_matrix(W, **options, corner=40).axes[0]
        expected = [W.block(t, t)[:10, :40] for t in maps]
        picture = ax.images[0].get_array().filled(0)
        blocks = picture.reshape(len(maps), 10, len(maps), 40)
        np.testing.assert_array_equal(np.einsum("tptq->tpq", blocks), expected)


def test_the_last_convolution_of_the_paper_is_drawn_without_being_built(paper):
    W = paper.W[7]
    assert W.shape == (262144, 262144)
    tracemalloc.start()
    figure = plot_matrix(W, maps=[3, 255], channels=[0, 17, 200], corner=70)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60 * 2**20
    expected = np.zeros((2, 70, 3, 70))
    for p, q in itertools.product(range(70), range(70)):
        i, j = q // 32 - p // 32 + 1, q % 32 - p % 32 + 1
        if 0 <= i <= 2 and 0 <= j <= 2:
            expected[:, p, :, q] = W.filters[np.ix_([3, 255], [0, 17, 200])][..., i, j]
    np.testing.assert_array_equal(drawn(figure), expected.reshape(140, 210))
    assert "\ndrawn: maps 3, 255 of 256, channels 0, 17, 200 of 256" in title(figure)


def test_a_long_dense_layer_is_drawn_in_little_memory():
    weights = np.broadcast_to(np.arange(1.0, 2**16 + 1), (1000, 2**16))  # dense: 500 MiB
    for W, turned in ((DenseMatrix(weights, 64), False), (DenseMatrix(weights, 64).T, True)):
        tracemalloc.start()
        picture = drawn(plot_matrix(W, corner=40))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 200 * 2**20
        expected = (1024 * np.arange(10)[:, None] + np.arange(1, 41)).ravel()
        np.testing.assert_array_equal(
            picture.T if turned else picture, np.broadcast_to(expected, (400, 400))
        )


# Colours and layout


def test_zeros_are_white_and_the_smallest_entries_are_not():
    tiny = 1e-15
    figure = plot_matrix(DenseMatrix(np.array([[0.0, tiny, -tiny, -2.0, 1.0]]), 5))
    image = figure.axes[0].images[0]
    assert image.get_clim() == (-2, 2)
    zero, plus, minus, lowest, high = image.to_rgba(image.get_array())[0, :, :3]
    assert (zero == 1).all()
    for colour, main in ((plus, 0), (minus, 2), (lowest, 2), (high, 0)):
        assert colour.argmax() == main
        assert abs(1 - colour).max() > 0.25
    assert lowest.sum() < minus.sum() and high.sum() < plus.sum()


def test_the_scale_is_symmetric_and_ends_at_the_limit():
    W = DenseMatrix(np.array([[0.5, -0.25, 0.0]]), 3)
    for limit, extend in ((None, "neither"), (0.5, "neither"), (2, "neither"), (0.3, "both")):
        image = plot_matrix(W, limit=limit).axes[0].images[0]
        assert image.get_clim() == (-(limit or 0.5), limit or 0.5)
        assert image.colorbar.extend == extend
    words = [label.get_text() for label in image.colorbar.ax.get_yticklabels()]
    assert words == ["−0.3", "−0.15", "0", "0.15", "0.3"]
    assert plot_matrix(DenseMatrix(np.zeros((2, 2)))).axes[0].images[0].get_clim() == (-1, 1)


@pytest.mark.parametrize(
    "W", [convolution(4, 3, 6, 6), convolution(6, 4, 28, 28), LARGE["dense on maps"]]
)
def test_every_entry_has_dots_of_its_colour(W):
    figure = plot_matrix(W)
    picture, image = rendered(figure), figure.axes[0].images[0]
    expected = image.to_rgba(image.get_array())[..., :3]
    rows, columns = np.indices(expected.shape[:2]).reshape(2, -1)
    x, y = figure.axes[0].transData.transform(np.c_[columns, rows]).T
    dots = picture[(len(picture) - y).astype(int), x.astype(int)].reshape(expected.shape)
    differ = (abs(dots - expected) > 0.01).any(axis=2)
    edges = {
        round(n + d)
        for line in figure.axes[0].lines
        for d in (-0.5, 0.5)
        for n in (line.get_xdata()[0], line.get_ydata()[0])
    }
    inside = np.ones_like(differ)
    inside[list(edges & set(range(len(inside))))] = False
    inside[:, list(edges & set(range(inside.shape[1])))] = False
    inside[[0, -1]] = inside[:, [0, -1]] = False
    assert inside.mean() > 0.5
    assert not differ[inside].any()


EXTREMES = [
    *LARGE.values(),
    *MATRICES.values(),
    DenseMatrix(-1.2345e-105 * normal(3, 700), 350),
    DenseMatrix(normal(300, 1), 1),
    convolution(1, 1, 1),
]


@in_turn(
    pytest.mark.parametrize("W", EXTREMES, ids=map(repr, EXTREMES)),
    pytest.mark.parametrize("column", [False, True]),
)
def test_words_stay_inside_and_apart(W, column):
    if column:
        figure = Figure(figsize=(3.5, 3.5), layout="constrained")
        assert plot_matrix(W, figure.subplots()) is figure
    else:
        figure = plot_matrix(W)
        assert figure.get_figwidth() <= 6
    rendered(figure)
    ax, bar = figure.axes
    groups = [axis.get_ticklabels() for axis in (ax.xaxis, ax.yaxis, bar.yaxis)]
    groups.append([ax.xaxis.label, ax.yaxis.label, ax.title, ax._left_title])
    frame = ax.get_window_extent()
    boxes = [[word.get_window_extent() for word in group if word.get_text()] for group in groups]
    for box in itertools.chain(*boxes):
        assert min(box.x0, box.y0) >= -1  # a pixel: Matplotlib 3.10 draws some fonts wider
        assert box.x1 <= figure.bbox.width + 1 and box.y1 <= figure.bbox.height + 1
        assert not box.overlaps(frame)
    for a, b in itertools.combinations(itertools.chain(*boxes), 2):
        assert not a.overlaps(b)


def test_long_numbers_stay_apart():
    weights = np.broadcast_to(1.0, (400_000, 90))
    last = range(399_910, 400_000)
    for W, asked in (
        (DenseMatrix(weights, 90), {"maps": last}),
        (DenseMatrix(weights.T, 400_000), {"channels": last}),
    ):
        figure = plot_matrix(W, **asked)
        rendered(figure)
        words = figure.axes[0].xaxis.get_ticklabels() + figure.axes[0].yaxis.get_ticklabels()
        assert any(word.get_text() == "399910" for word in words)
        boxes = [word.get_window_extent() for word in [*words, figure.axes[0].yaxis.label]]
        assert min(box.x0 for box in boxes) >= 0
        assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


# What it draws on and writes


def test_a_device_array_gives_the_same_picture():
    net = Network((2, 4, 4), [Conv(3), AveragePool(2), Dense(4)])
    theta = kaiming_start(net)
    device = theta.to(strict_device)
    for layer in theta.W:
        figure = plot_matrix(device.W[layer])
        np.testing.assert_array_equal(drawn(figure), theta.W[layer].toarray())
        assert title(figure).replace("\n", " ") == repr(theta.W[layer])
    np.testing.assert_array_equal(
        drawn(plot_matrix(device.W[1], filters=True)), drawn(plot_matrix(theta.W[1], filters=True))
    )
    o, W = normal(32), MaxPoolingMatrix(2, (4, 4), 2)
    on_device = W.at(strict_device.asarray(o))
    np.testing.assert_array_equal(drawn(plot_matrix(on_device)), W.at(o).toarray())


def test_it_draws_in_given_axes():
    W = convolution(2, 3, 5)
    figure = Figure(figsize=(7, 3))
    left, right = figure.subfigures(1, 2)
    ax = right.subplots()
    left.subplots()
    assert plot_matrix(W, ax) is figure
    np.testing.assert_array_equal(ax.images[0].get_array().filled(0), W.toarray())
    assert len(left.axes[0].get_children()) == len(Figure().subplots().get_children())


@pytest.mark.parametrize(
    ("name", "start"), [("W.png", b"\x89PNG"), ("W.PNG", b"\x89PNG"), ("W.pdf", b"%PDF")]
)
def test_it_writes_the_same_bytes_again(tmp_path, name, start):
    for folder in ("a", "b"):
        plot_matrix(MATRICES["convolution 2-D"], path=tmp_path / folder / name)
    first = (tmp_path / "a" / name).read_bytes()
    assert first.startswith(start)
    assert first == (tmp_path / "b" / name).read_bytes()
    assert b"Date" not in first


def test_a_notebook_shows_it():
    assert plot_matrix(MATRICES["dense"])._repr_png_().startswith(b"\x89PNG")


# Errors

CONVOLUTION = convolution(3, 2, 4, 5)


@pytest.mark.parametrize(
    ("W", "options", "message"),
    [
        (np.eye(3), {}, "expected a weight matrix as theta.W.2., got ndarray"),
        (CONVOLUTION, {"maps": [3]}, r"maps: expected numbers in 0..2, got \[3\]"),
        (CONVOLUTION, {"channels": [-1]}, r"channels: expected numbers in 0..1, got \[-1\]"),
        (CONVOLUTION, {"maps": []}, "maps: expected numbers"),
        (CONVOLUTION, {"maps": [0.5]}, "maps: expected numbers"),
        (CONVOLUTION, {"maps": [True]}, "maps: expected numbers"),
        (CONVOLUTION, {"maps": [[0, 1]]}, "maps: expected numbers"),
        (CONVOLUTION, {"maps": "01"}, "maps: expected numbers"),
        (CONVOLUTION, {"corner": 0}, "corner: expected a number in 1..20, got 0"),
        (CONVOLUTION, {"corner": 21}, "corner: expected a number in 1..20, got 21"),
        (CONVOLUTION, {"corner": 2.5}, "corner: expected a number in 1..20, got 2.5"),
        (CONVOLUTION, {"filters": True, "maps": [3]}, "maps: expected numbers in 0..2"),
        (CONVOLUTION, {"filters": True, "corner": 2}, "filters: expected no corner"),
        (MATRICES["dense"], {"filters": True}, "filters: expected a convolution, got DenseM"),
        (CONVOLUTION, {"limit": 0}, "limit: expected a positive number, got 0"),
        (CONVOLUTION, {"limit": np.nan}, "limit: expected a positive number, got nan"),
        (CONVOLUTION, {"limit": np.inf}, "limit: expected a positive number, got inf"),
        (CONVOLUTION, {"path": "W.svg"}, "expected a name with .png or .pdf, got 'W.svg'"),
        (CONVOLUTION, {"path": "png"}, "expected a name with .png or .pdf, got 'png'"),
        (
            convolution(2, 1, 41, 10),
            {"maps": [0, 1], "corner": 401},
            "at most 800 rows, got 802: 2 maps, 401 positions of each",
        ),
        (LARGE["dense"], {"channels": [1] * 801}, "at most 800 columns, got 801: 801 inputs"),
        (DenseMatrix(np.array([[1.0, np.nan]])), {}, "expected finite entries"),
        (DenseMatrix(np.array([[1.0, -np.inf]])), {}, "expected finite entries"),
    ],
)
def test_errors_say_what_is_expected(W, options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ax = Figure().subplots()
    untouched = len(ax.get_children())
    with pytest.raises(ValueError, match=message):
        plot_matrix(W, ax, **options)
    assert len(ax.get_children()) == untouched
    assert not list(tmp_path.iterdir())


def test_max_pooling_needs_an_input():
    with pytest.raises(TypeError, match=r"expected W.at\(o\)"):
        plot_matrix(MaxPoolingMatrix(2, (4, 4), 2))


def test_of_a_layer_in_a_block_its_own_matrix_is_drawn():
    block = Residual([Conv(2), Conv(3)], [Conv(3, 1)])
    theta = kaiming_start(Network((1, 3, 3), [Conv(2), block, Dense(2)]))
    for layer in (2, 4, 5):
        W = theta.W[layer]
        drawn, own = (plot_matrix(part).axes[0].images[0].get_array() for part in (W, W.own_matrix))
        assert np.array_equal(drawn, own) and drawn.shape == W.own_matrix.shape


def test_a_point_is_drawn_layer_by_layer_with_its_biases():
    net = Network((1, 4, 4), [Conv(2), AveragePool(2), Dense(3, bias=False), Dense(2)])
    theta = kaiming_start(net, 0)
    theta.b[1][:] = [-1.0, 2.0]
    places = Figure().subplots(1, 3)
    axes = plot_point(theta, places)
    assert axes == list(places)
    for layer, ax in zip((1, 3, 4), axes, strict=True):
        np.testing.assert_array_equal(ax.images[0].get_array().filled(0), theta.W[layer].toarray())
        assert ax.get_title(loc="left").startswith(f"{layer}: ")
    beside = [[child for child in ax.child_axes if child.images] for ax in axes]
    assert list(map(len, beside)) == [1, 0, 1]
    np.testing.assert_array_equal(
        beside[0][0].images[0].get_array().ravel(), np.repeat([-1.0, 2.0], 16)
    )
    assert beside[0][0].get_xlabel().endswith("\N{PLUS-MINUS SIGN}2")
    assert beside[2][0].get_xlabel().endswith("= 0")
    with pytest.raises(ValueError, match="expected 3 Axes, one for each W, got"):
        plot_point(theta, places[:2])
    with pytest.raises(ValueError, match="expected Parameters, got DenseMatrix"):
        plot_point(theta.W[4])


def test_a_point_is_drawn_in_a_figure_of_pyplot_and_written(tmp_path):
    theta = kaiming_start(Network((1, 2), [Dense(2), Dense(2), Dense(2), Dense(1)]), 0)
    axes = plot_point(theta, path=tmp_path / "point.png")
    assert axes[0].figure.number in pyplot.get_fignums()
    pyplot.close(axes[0].figure)
    assert len(axes) == 4 and (tmp_path / "point.png").stat().st_size > 1000
