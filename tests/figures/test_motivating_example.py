"""Figures 1 to 3 of [PWL] show what their networks compute."""

import re

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from tinyspur import Dense, Network, SquaredLoss, TrainingSet, certify_cell
from tinyspur.constructions.lattices import Lattice, connected_pieces, lattice_network
from tinyspur.constructions.piecewise_linear import Groups, fit_groups, gated_minimum
from tinyspur.figures.motivating_example import CurveFit, draw_motivating_example
from tinyspur.figures.style import MINUS, PLUS

LOSS = SquaredLoss()


def height(x):
    return x**2 + np.sin(3 * x) / 4


@pytest.fixture(scope="module")
def fits():
    """Two to four groups of 24 samples of a curve."""
    x = np.linspace(-1, 1, 24)
    data, found = TrainingSet(x[:, None, None], height(x)[:, None]), []
    for K in (2, 3, 4):
        groups = Groups.equal(data.x, [1.0], K)
        fit = fit_groups(data, groups, LOSS)
        pieces, regions = connected_pieces(fit, data.x)
        printed = lattice_network((1, 1), [Lattice.of(pieces, regions)], data.x)
        repaired = gated_minimum(Network((1, 1), [Dense(7), Dense(1)]), data, LOSS, groups)
        certificates = (certify_cell(theta, data, LOSS) for theta in (printed, repaired))
        found.append(CurveFit(data, fit, pieces, regions, printed, repaired, *certificates))
    return found


@pytest.fixture(scope="module")
def axes(fits, saved_once):
    figure, _ = saved_once(draw_motivating_example, fits)
    return figure.axes


def curves(ax):
    return {line.get_label(): line.get_xydata() for line in ax.lines}


def test_samples_lie_in_their_groups_and_on_the_curve(axes):
    for ax, K in zip(axes[:3], (2, 3, 4), strict=True):
        seen = curves(ax)
        groups = [seen[f"samples of group {k + 1}"] for k in range(K)]
        assert [len(points) for points in groups] == [24 // K] * K
        x, y = np.concatenate(groups).T
        np.testing.assert_allclose(x, np.linspace(-1, 1, 24))
        np.testing.assert_allclose(y, height(x))


def test_both_networks_are_drawn_with_what_is_proved_of_them(axes, fits):
    for letter, ax, fit in zip("abc", axes, fits, strict=False):
        seen = curves(ax)
        for name, theta in (("max-min", fit.printed), ("gates", fit.repaired)):
            x, o = seen[f"output o, {name}"].T
            assert (x[0], x[-1]) == (-1, 1)
            np.testing.assert_array_equal(o, theta.net.forward(theta, x[:, None, None])[:, 0])
        K = len(fit.fit.groups)
        assert ax.get_title(loc="left").splitlines() == [
            f"Figure 1({letter}): {K} groups, R = {fit.fit.risk:.3g}",
            f"max-min: {fit.printed_certificate.words}",
            f"gates: {fit.repaired_certificate.words}",
        ]


def test_pieces_without_samples_are_called_auxiliary(axes, fits):
    counts = []
    for ax, fit in zip(axes, fits, strict=False):
        red = [line for line in ax.lines if to_rgb(line.get_color()) == to_rgb("C3")]
        counts.append(len(red))
        assert [text.get_text() for text in ax.texts] == ["auxiliary"] * len(red)
        assert len(red) == len(fit.pieces) - len(fit.fit.groups)
        x = fit.data.x.ravel()
        for line in red:
            ends, values = line.get_xydata().T
            assert not ((x >= ends[0]) & (x <= ends[1])).any()
            outputs = fit.printed.net.forward(fit.printed, ends[:, None, None])[:, 0]
            np.testing.assert_allclose(values, outputs, atol=1e-12)
    assert max(counts) > 0


def test_the_maximum_of_minima_is_that_of_the_lines_beside_it(axes):
    *lines, curve, _, _ = axes[3].lines  # and where the regions end
    f = [np.interp(curve.get_xdata(), *line.get_xydata().T) for line in lines]
    head, words = axes[3].get_title(loc="left").splitlines()
    assert head == "Figure 2: the maximum of the minima over"
    sets = [re.findall(r"f_(\d)", part) for part in re.findall(r"{(.*?)}", words)]
    assert len(f) == len(sets) == 3
    minima = [np.min([f[int(k) - 1] for k in part], axis=0) for part in sets]
    np.testing.assert_allclose(curve.get_ydata(), np.max(minima, axis=0), atol=1e-12)


def test_the_gadgets_are_drawn_with_all_their_units_and_the_signs_of_their_weights(axes):
    gadgets, tree = axes[4:]
    for ax, names in ((gadgets, ["min(a, b)", "max(a, b)"]), (tree, ["min(a, b, c, d)"])):
        texts = [text.get_text() for text in ax.texts]
        assert [text for text in texts if "(" in text] == names
        lines = [line for line in ax.lines if line.get_linestyle() == "-"]
        colours = {to_rgb(line.get_color()) for line in lines}
        assert colours == {to_rgb(PLUS), to_rgb(MINUS)}
        units = [line for line in ax.lines if line.get_marker() == "o"]
        assert len(units) == len(texts) - len(names)
