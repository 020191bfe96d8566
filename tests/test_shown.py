"""What points, matrices and results show: readable blocks, and in notebooks HTML of the same."""

import base64
import dataclasses
import importlib
import inspect
import io
import pkgutil
import re
from html.parser import HTMLParser

import matplotlib.image
import numpy as np
import pytest
import strict_device

import tinyspur as ts
from tinyspur import shown
from tinyspur.engine.parameters import Parameters
from tinyspur.landscape.risks import Landscape
from tinyspur.layers import BlockMatrix, ConvolutionMatrix, DenseMatrix

NET = ts.Network(
    (2, 4, 4), [ts.Conv(3), ts.Residual([ts.Conv(3)]), ts.MaxPool(2), ts.Dense(2), ts.Scale()]
)
DATA = ts.TrainingSet(*(np.random.default_rng(0).normal(size=s) for s in [(6, 2, 4, 4), (6, 2)]))


def point(seed=0):
    return Parameters(NET, np.random.default_rng(seed).normal(size=NET.size))


class Tags(HTMLParser):
    """Collects the tags and the text, and checks that what is opened is closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.seen, self.text = [], [], ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))
        self.open += [tag] * (tag != "img")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data + "\n"


def images(tags):
    return [attributes for tag, attributes in tags.seen if tag == "img"]


def pixels(attributes):
    data = attributes["src"].removeprefix("data:image/png;base64,")
    return matplotlib.image.imread(io.BytesIO(base64.b64decode(data)), format="png")


def classes():
    for module in pkgutil.walk_packages(ts.__path__, "tinyspur."):
        if not module.name.endswith("__main__"):
            for _, found in inspect.getmembers(
                importlib.import_module(module.name), inspect.isclass
            ):
                if found.__module__ == module.name:
                    yield found


def test_every_result_that_prints_a_block_is_shown_as_that_block():
    blocks = [c for c in classes() if dataclasses.is_dataclass(c) and c.__str__ != object.__str__]
    assert len(blocks) > 25
    for found in blocks:
        assert found.__repr__ is shown.Shown.__repr__, found
        assert found._repr_html_, found


def results():
    theta, loss = point(), ts.SquaredLoss()
    yield ts.certify_cell(theta, DATA, loss)
    yield ts.find_descent_direction(theta, DATA, loss)
    yield ts.scan(ts.Plane.through(theta, point(1), point(2), steps=3), DATA, loss)


@pytest.mark.parametrize("found", list(results()), ids=lambda found: type(found).__name__)
def test_results_are_the_same_block_in_print_repr_and_html(found):
    assert repr(found) == str(found) and len(repr(found).split("\n")[0]) < 200
    text = Tags(found._repr_html_()).text
    assert text.startswith(f"{type(found).__name__}\n{found}")


def test_html_has_no_script_and_no_colours_outside_pictures():
    for thing in (NET, point(), *point().W.values(), *results()):
        html = thing._repr_html_()
        assert not re.search(r"<script|javascript|\bon\w+=|color|background", html)
        tags = {tag for tag, _ in Tags(html).seen}
        assert tags <= {"div", "strong", "pre", "table", "tr", "th", "td", "img"}


def test_text_is_escaped_everywhere():
    nasty = '<b a="1">&\'</b>'
    for html in (
        *(shown.block(nasty, nasty), shown.table([[nasty], [nasty]], [""])),
        shown.picture(np.ones((1, 1)), nasty),
    ):
        assert "<b a" not in html
        tags = Tags(html)
        assert nasty in (images(tags)[0]["alt"] if images(tags) else tags.text)


def test_a_network_is_a_table_of_its_layers():
    text = Tags(NET._repr_html_()).text
    assert f"{NET.size:,} parameters" in text
    for words in ("2x4x4", "Conv(3)", "Same() + what is kept", "MaxPool(size=2)", "3x2x2", "ReLU"):
        assert words.replace("Conv(3)", str(ts.Conv(3))) in text
    sizes = [int(n) for n in re.findall(r"<td>(\d+)</td></tr>", NET._repr_html_())]
    assert sum(sizes) == NET.size


def test_a_point_is_a_table_of_its_layers_with_a_picture_of_each_matrix():
    theta = point()
    tags = Tags(theta._repr_html_())
    assert repr(theta) in tags.text
    low, high = (f"{v:.4g}" for v in (theta.W[1].weights.min(), theta.W[1].weights.max()))
    assert f"{low} .. {high}" in tags.text
    assert len(images(tags)) == len(theta.W) - 1  # max pooling has no entries
    there = theta.to(strict_device)
    assert there._repr_html_() == theta._repr_html_()


def test_a_small_matrix_is_drawn_entry_by_entry():
    W = DenseMatrix(np.array([[1.0, 0.0, -2.0], [0.0, 2.0, 0.0]]))
    tags = Tags(W._repr_html_())
    assert "DenseMatrix(2 x 3, 3 nonzeros)" in tags.text
    drawn = pixels(images(tags)[0])
    assert np.array_equal(drawn[..., 3] > 0, W.toarray() != 0)
    assert (drawn[1, 1, 0] > drawn[1, 1, 2]) and (drawn[0, 2, 2] > drawn[0, 2, 0])  # red, blue
    assert drawn[0, 0, 3] < drawn[1, 1, 3] == 1
    assert images(tags)[0]["width"] == "12"


@pytest.mark.parametrize("entry", [-2.0, 2.0])
def test_a_matrix_has_the_same_colours_in_a_notebook_as_in_a_figure(entry):
    W = DenseMatrix(np.array([[entry]]))
    small = pixels(images(Tags(W._repr_html_()))[0])[0, 0]
    image = ts.plot_matrix(W).axes[0].images[0]
    drawn = image.cmap(image.norm(entry))
    assert (small[0] > small[2]) == (drawn[0] > drawn[2])


def test_lines_part_the_maps_of_a_picture():
    W = ConvolutionMatrix(np.random.default_rng(0).normal(size=(2, 3, 3)), (5,))
    found = shown.entries(W)
    assert found.shape == (2 * 5 + 1, 3 * 5 + 2)
    lines = np.isinf(found)
    assert lines[5].all() and lines[:, [5, 11]].all() and lines.sum() == 17 + 2 * 10
    assert np.array_equal(found[~lines].reshape(10, 15), W.toarray())


@pytest.mark.parametrize(
    ("maps", "channels", "size"), [(4, 2, 50), (1, 100, 3), (100, 1, 7), (3, 5, 40)]
)
def test_cells_of_large_matrices_hold_their_largest_entries(maps, channels, size):
    W = DenseMatrix(np.random.default_rng(0).normal(size=(maps * size, channels * size)), channels)
    W = DenseMatrix(W.weights, channels, maps)
    found = shown.entries(W)
    found = found[~np.isinf(found).all(axis=1)][:, ~np.isinf(found).all(axis=0)]
    rows, columns = shown.cells(maps, size), shown.cells(channels, size)
    assert found.shape == (rows.max() + 1, columns.max() + 1) and max(found.shape) <= 48
    entries = W.toarray()
    for i, j in np.ndindex(*found.shape):
        inside = entries[np.flatnonzero(rows == i)[0], columns == j]
        assert found[i, j] == inside[abs(inside).argmax()]


def test_a_matrix_of_many_nonzeros_is_drawn_from_a_few_rows():
    W = ConvolutionMatrix(np.ones((200, 100, 3, 3)), (32, 32))
    assert W.nnz > shown.LISTED
    assert "of the first 48 maps" in images(Tags(W._repr_html_()))[0]["alt"]


def test_what_has_no_entries_is_shown_without_a_picture():
    W, o = ts.MaxPoolingMatrix(1, (4,), 2), np.array([3.0, 1.0, 2.0, 5.0])
    for matrix in (W, W.at(np.stack([o, -o], axis=1)), W.at(np.stack([o, -o], axis=1)).T):
        tags = Tags(matrix._repr_html_())
        assert repr(matrix) in tags.text and not images(tags)
    assert images(Tags(W.at(o)._repr_html_()))
    assert images(Tags(W.at(o).T._repr_html_()))
    blocks = [W for W in point().W.values() if isinstance(W, BlockMatrix)]
    assert blocks and all(images(Tags(W._repr_html_())) for W in blocks)


def test_a_landscape_is_orange_where_it_is_lower_and_clear_where_it_is_not_finite():
    risks = np.array([[2.0, 1.0, 0.5], [np.nan, np.inf, 3.0]])
    land = Landscape(np.arange(2.0), np.arange(3.0), risks, 1.0, 1e-9)
    drawn = pixels(images(Tags(land._repr_html_()))[0])
    assert (drawn[..., 3] > 0).tolist() == [[True, False, True], [False, False, True]]
    assert drawn[0, 0, 2] > drawn[0, 0, 0] and drawn[0, 2, 0] > drawn[0, 2, 2]


def test_what_is_lower_by_rounding_only_is_not_orange():
    risks = np.array([[2.0, 1.0 - 1e-12, 1.0 - 1e-8]])
    land = Landscape(np.arange(1.0), np.arange(3.0), risks, 1.0, 1e-9)
    drawn = pixels(images(Tags(land._repr_html_()))[0])
    assert (drawn[..., 3] > 0).tolist() == [[True, False, True]]


def test_numbers_that_are_all_zero_or_not_finite_are_drawn_clear():
    for values in (np.zeros((2, 2)), np.full((2, 2), np.nan)):
        assert not pixels(images(Tags(shown.picture(values, "none")))[0])[..., 3].any()
