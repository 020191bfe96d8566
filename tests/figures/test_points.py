"""The figure of theta and theta' shows entries of their matrices, and the risk between them."""

from dataclasses import replace

import numpy as np
import pytest
from matplotlib.image import imread
from paper_example import LOSS, build, readme_example

from tinyspur import Conv, Dense, Network, TrainingSet
from tinyspur.constructions.spurious import risk_along_bias
from tinyspur.figures.points import draw_spurious_minimum
from tinyspur.landscape.planes import Lines
from tinyspur.landscape.scan import scan

STEPS = np.linspace(-1, 1, 9)


@pytest.fixture(scope="module")
def found():
    return readme_example().repaired


@pytest.fixture(scope="module")
def figure(found, saved_once):
    return saved_once(draw_spurious_minimum, found, STEPS, STEPS)[0]


def shown(ax):
    [image] = ax.images
    return np.asarray(image.get_array())


def lines(ax):
    return {line.get_label(): line.get_xydata() for line in ax.lines}


def title(figure):
    return figure.get_suptitle()


def maps_of(found):
    """Return the numbers of A, B and the relay."""
    return [*found.pair.reserved, found.pair.relay_of(found.split.map)]


def test_blocks_and_biases_are_those_of_both_points(found, figure):
    pair, rows = found.pair, np.array(maps_of(found))
    for axes, theta in ((figure.axes[:8], found.theta), (figure.axes[8:16], found.theta_prime)):
        for n, (layer, columns) in enumerate(((pair.lower, [found.split.map]), (pair.upper, rows))):
            W = theta.W[layer].toarray()  # 49 positions of each map, of which ten are drawn
            down, across = (
                (49 * np.asarray(maps)[:, None] + range(10)).ravel() for maps in (rows, columns)
            )
            np.testing.assert_array_equal(shown(axes[2 * n]), W[np.ix_(down, across)])
            np.testing.assert_array_equal(shown(axes[2 * n + 1])[:, 0], theta.b[layer][rows])
            assert axes[2 * n].get_title() == f"$W^{{{layer}}}$"
            assert axes[2 * n + 1].get_title() == f"$b^{{{layer}}}$"
            texts = [text.get_text() for text in axes[2 * n + 1].texts]
            assert texts == [f"{bias:.3g}" for bias in theta.b[layer][rows]]


def test_what_a_relay_multiplies_with_is_written_beside_it(figure):
    at_theta, at_theta_prime = ([text.get_text() for text in figure.axes[n].texts] for n in (0, 8))
    assert at_theta == ["+1"]  # A and B are dead
    assert at_theta_prime == ["-1", "+1", "+1"]  # A reads the negative


def test_the_dense_layer_is_drawn_as_images_in_the_colours_of_theta(found, figure):
    k, dense = found.split.output, found.pair.dense
    used = abs(found.theta.W[dense].toarray()[k])
    limit = np.quantile(used[used > 0], 0.97)
    for axes, theta in ((figure.axes[4:7], found.theta), (figure.axes[12:15], found.theta_prime)):
        row = theta.W[dense].toarray()[k].reshape(-1, 7, 7)
        for ax, name, t in zip(axes, ("A", "B", "relay"), maps_of(found), strict=True):
            np.testing.assert_array_equal(shown(ax), row[t])
            assert ax.images[0].get_clim() == pytest.approx((-limit, limit))
            assert ax.get_title() == f"$W^{{{dense}}}$({k}, {name})"


def test_the_curve_is_the_risk_less_that_of_theta(found, saved):
    steps = np.linspace(-2, 2, 11) * found.lower.step
    risks = found.risk + np.arange(11.0)
    figure, _ = saved(draw_spurious_minimum, found, steps, risks)
    ax, seen = figure.axes[16], lines(figure.axes[16])
    np.testing.assert_allclose(seen["R of the network"], np.c_[steps, np.arange(11.0)])
    [slope] = [points for label, points in seen.items() if label.startswith("slope")]
    half = np.diff(found.split.gap)[0] / 2
    np.testing.assert_allclose(slope, np.outer([-half, half], [1, found.split.slope]))
    np.testing.assert_array_equal(seen[r"$\theta'$"], [[0, found.theta_prime_risk - found.risk]])
    [lower] = [points for label, points in seen.items() if label.startswith("lower point")]
    assert lower[0, 0] == found.lower.step
    assert lower[0, 1] == pytest.approx(-found.lower.decrease)
    assert title(figure.subfigs[1]) == "verdict: spurious local minimum"
    assert ax.get_xlim() == pytest.approx((steps[0], steps[-1]))
    name = {found.pair.reserved[0]: "A", found.pair.reserved[1]: "B"}[found.lower.map]
    assert ax.get_xlabel().endswith(f"of map {found.lower.map} ({name})")


@pytest.mark.parametrize("decrease", [-1e-6, 1e-6])
def test_a_point_that_is_not_lower_beyond_rounding_is_not_called_lower(decrease, found, saved):
    lower = replace(found.lower, decrease=decrease, rounding=2e-6)
    figure, _ = saved(draw_spurious_minimum, replace(found, lower=lower), STEPS, STEPS)
    said = [label for label in lines(figure.axes[16]) if "lower" in label]
    assert said == ["no lower point: R is not lower beyond rounding"]


def test_both_risks_and_what_is_drawn_are_in_words(found, figure):
    above, below = figure.subfigs[0].subfigs
    assert title(above).startswith(rf"$\theta$:  R = {found.risk:.9f};")
    assert title(below).startswith(rf"$\theta'$:  R = {found.theta_prime_risk:.9f};")
    a, b, relay = maps_of(found)
    words = below.get_supxlabel().replace("\n", " ")
    assert f"A and B are the maps {a} and {b}, the relay is map {relay}, which hands" in words
    assert "the first 10 rows and columns of each block are drawn" in words


def test_maps_of_one_dimension_are_drawn_as_strips(saved):
    rng = np.random.default_rng(0)
    data = TrainingSet(rng.normal(size=(60, 1, 6)), rng.normal(size=(60, 2)))
    net = Network((1, 6), [Conv(3), Conv(5), Conv(6), Dense(2)])
    found = build(net, data, "repaired")
    along = risk_along_bias(found, data, LOSS, 5)
    figure, path = saved(draw_spurious_minimum, found, *along, rendered=True)
    assert [shown(ax).shape for ax in figure.axes[4:7]] == [(1, 6)] * 3
    words = figure.subfigs[0].subfigs[1].get_supxlabel()
    assert "the first 6 rows and columns of each block are drawn" in words
    assert imread(path).shape[:2] == (1089, 1320)


def test_the_escape_of_the_literal_point_is_drawn_beside(saved):
    example = readme_example()
    found = example.literal
    along = scan(Lines.between(found.theta, found.escape.theta, 5, margin=0.5), example.data, LOSS)
    figure, _ = saved(draw_spurious_minimum, found, STEPS, STEPS, along)
    seen = figure.axes[17].lines[1].get_xydata()
    np.testing.assert_allclose(seen[:, 0], found.escape.distance * along.alpha)
    np.testing.assert_allclose(seen[:, 1], along.risks[0] - found.risk)
    [end] = [p for label, p in lines(figure.axes[17]).items() if label.startswith("escape")]
    np.testing.assert_allclose(end, [[found.escape.distance, -found.escape.decrease]])
    assert title(figure.subfigs[1]).startswith("verdict: refuted: not a local minimum")


def test_the_curve_reaches_three_times_as_far_as_the_lower_point(found):
    steps, risks = risk_along_bias(found, readme_example().data, LOSS, 7)
    np.testing.assert_allclose(steps, abs(found.lower.step) * np.arange(-3, 4))
    assert found.lower.risk in risks[[2, 4]]
