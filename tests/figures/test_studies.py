"""The figures of the studies show what was found, and claim no more than was proved."""

from dataclasses import replace

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Text

from tinyspur.engine.activations import ELU, Softplus, Tanh
from tinyspur.figures.studies import (
    FLOOR,
    LEAST_MOVE,
    draw_activations,
    draw_atlas,
    draw_audit,
    draw_trained_minima,
    draw_widths,
)
from tinyspur.figures.style import ELSEWHERE, MINIMUM, PRINTED, REPAIRED
from tinyspur.studies.atlas import Atlas
from tinyspur.studies.findings import Finding, Side
from tinyspur.studies.smooth_survey import survey
from tinyspur.studies.trained_minima import End, TrainedMinima
from tinyspur.studies.trained_problems import teacher

# The audit

TICKS = np.linspace(0, 1, 21)


def finding(name, printed, repaired, x=TICKS, axes=("distance", "R - R(theta)")):
    sides = Side("not a local minimum", ""), Side("certified local minimum", "")
    curves = {"literal": (x, printed), "repaired": (x, repaired)}
    return Finding(name, "[CNN] Lemma 1", f"statement of {name}", *sides, axes, curves)


def test_each_finding_has_a_panel_with_both_curves_and_verdicts(saved):
    findings = [finding(f"E{n}", -n * TICKS**2, n * TICKS**2) for n in range(1, 6)]
    figure, _ = saved(draw_audit, findings)
    assert len(figure.axes) == 12  # two rows of four, and that of the legend
    for ax, shown in zip(figure.axes, findings, strict=False):
        for n, (variant, colour) in enumerate((("literal", PRINTED), ("repaired", REPAIRED))):
            np.testing.assert_array_equal(ax.lines[n].get_xydata().T, shown.curves[variant])
            assert to_rgb(ax.lines[n].get_color()) == to_rgb(colour)
        texts = {text.get_text(): to_rgb(text.get_color()) for text in ax.texts}
        assert texts == {
            "as printed: not a local minimum": to_rgb(PRINTED),
            "repaired: certified local minimum": to_rgb(REPAIRED),
        }
        assert ax.get_title(loc="left").strip() == f"{shown.name}: statement of {shown.name}"
        assert (ax.get_xlabel(), ax.get_ylabel()) == shown.axes
    assert [ax.axison for ax in figure.axes] == [True] * 5 + [False] * 7


def test_the_statements_of_a_row_are_at_one_height(saved):
    small, large = finding("E1", -1e-6 * TICKS, TICKS), finding("E2", -TICKS, TICKS)
    figure, _ = saved(draw_audit, [small, large])
    figure.draw_without_rendering()
    heights = [ax._left_title.get_window_extent().y0 for ax in figure.axes[:2]]
    assert heights[0] == heights[1]


def test_what_falls_below_zero_has_half_of_its_panel(saved):
    steep = finding("E1", -1e-3 * TICKS, 100 * TICKS)
    level = finding("E2", TICKS, 100 * TICKS)
    figure, _ = saved(draw_audit, [steep, level])
    low, high = figure.axes[0].get_ylim()
    assert low == -high == pytest.approx(-1.15e-3)
    assert figure.axes[1].get_ylim()[1] > 100


def test_no_title_touches_the_axis_above(saved):
    figure, _ = saved(draw_audit, [finding(f"E{n}", -TICKS, TICKS) for n in range(8)])
    figure.draw_without_rendering()
    for above, below in zip(figure.axes[:4], figure.axes[4:8], strict=True):
        label = above.xaxis.label.get_window_extent()
        assert below.title.get_window_extent().y1 < label.y0 or not below.get_title()
        assert below._left_title.get_window_extent().y1 < label.y0 - 5


def test_what_spans_a_factor_of_a_hundred_is_drawn_on_logarithmic_axes(saved):
    wide, narrow = np.geomspace(1, 101, 9), np.geomspace(1, 99, 9)
    figure, _ = saved(draw_audit, [finding("E", x, 2 * x, x) for x in (wide, narrow)])
    scales = [(ax.get_xscale(), ax.get_yscale()) for ax in figure.axes[:2]]
    assert scales == [("log", "log"), ("linear", "linear")]


# The atlas

ATLAS = Atlas(
    labels=np.zeros((6, 4), dtype=np.uint8),
    risks=np.array([0.3, 0.2, 0.1, 0.05, 0.02, 0.01]),
    groups=np.array([2, 2, 3, 3, 4, 4]),
    certified=np.array([True, True, True, False, True, True]),
    margins=np.ones(6),
    widths=np.array([3, 3, 5, 5, 7, 7]),
    there=np.array([3.0, 3.0, 2.0, 2.0, 9.0, 9.0]),
    linear=0.4,
    trained=np.array([0.26, 1e-8, 0.15]),
    settled=np.array([0.25, 1e-9, 0.13]),
    proved=np.array([True, False, True]),
)


def test_the_atlas_counts_what_is_certified_only(saved):
    figure, _ = saved(draw_atlas, ATLAS)
    left, right = figure.axes
    assert [bar.get_height() for bar in right.patches] == [3, 2, 9, 2, 1, 2]
    assert [text.get_text() for text in right.texts] == ["2", "1 of 2", "2"]
    ticks = [label.get_text() for label in right.get_xticklabels()]
    assert ticks == ["2\n(3)", "3\n(5)", "4\n(7)"]
    title = "5 certified local minima of one network, 4 samples"
    assert left.get_title(loc="left") == title
    for groups, bars in zip((2, 3, 4), left.containers, strict=True):
        assert bars[0].get_label() == f"{groups} groups"
        full = [bar for bar in bars if bar.get_height()]
        risks = ATLAS.risks[ATLAS.certified & (ATLAS.groups == groups)]
        assert [bar.get_height() for bar in full] == [1] * len(risks)
        for bar, risk in zip(full, sorted(risks), strict=True):
            assert bar.get_x() <= risk < bar.get_x() + bar.get_width()


def test_trainings_are_where_they_settle_or_at_the_least_that_is_drawn(saved):
    figure, _ = saved(draw_atlas, ATLAS)
    proved, others = (line for line in figure.axes[0].lines if line.get_marker() == "v")
    np.testing.assert_allclose(proved.get_xdata(), [0.25, 0.13])
    assert proved.get_label() == "2 trainings, in proved strict local minima"
    np.testing.assert_allclose(others.get_xdata(), [1e-6 * 0.4])
    assert others.get_label() == "1 trainings, not proved where they end"
    assert proved.get_markerfacecolor() == "k" and others.get_markerfacecolor() == "none"
    none = {"trained": np.zeros(0), "settled": np.zeros(0), "proved": np.zeros(0, dtype=bool)}
    figure, _ = saved(draw_atlas, replace(ATLAS, **none))
    assert not [line for line in figure.axes[0].lines if line.get_marker() == "v"]


def test_without_a_certified_minimum_there_is_no_atlas_to_draw(tmp_path):
    none = replace(ATLAS, certified=np.zeros(6, dtype=bool))
    cause = "^atlas: expected certified minima to draw, got none$"
    with pytest.raises(ValueError, match=cause):
        draw_atlas(tmp_path / "atlas.png", none)
    assert not list(tmp_path.iterdir())


# Trained minima


def trained_minima():
    """Return ends of all kinds, by their risks: two at R = 0, two proved, not decided."""
    ends = [
        End(0, 0.31, 0.3, 0.3, 1e-3, 4, False, (0.299, 0.301), 1e-12, 1e-3, ""),
        End(1, 0, 0, 1e-30, 0, 0, True, None, None, None, "R = 0"),
        End(2, 0.2, 0.1, 0.1, 1e-12, 4, False, (0.099, 0.101), 1e-12, 1e-3, ""),
        End(3, 0.2, 0.2, 0.2, 1, 7, False, None, None, None, "not decided"),
        End(4, 0, 0, 1e-30, 0, 0, True, None, None, None, "R = 0"),
    ]
    return TrainedMinima(teacher(2, 5, 0), tuple(ends))


def test_ends_of_trainings_are_drawn_by_their_risks_and_by_what_is_proved(saved):
    found = trained_minima()
    figure, _ = saved(draw_trained_minima, [found, replace(found, ends=found.ends[2:4])])
    ends, kinks, moves = figure.axes[:3]
    drawn = {
        line.get_marker() + line.get_color(): line.get_xydata().tolist() for line in ends.lines
    }
    assert drawn == {
        "v" + ELSEWHERE: [[1, 0], [2, 0]],
        "o" + MINIMUM: [[3, 0.1], [5, 0.3]],
        "o0.55": [[4, 0.2]],
    }
    title = "student and teacher of 2 units, 5 normal inputs\n2 of 5 proved, 2 spurious; 2 at R = 0"
    assert ends.get_title(loc="left") == f"{title}; 1 not proved"
    assert [(bar.get_x() + 0.4, bar.get_height()) for bar in kinks.patches] == [(4, 2)]
    full = [bar for bar in moves.patches if bar.get_height()]
    assert [bar.get_height() for bar in full] == [1, 1]
    for bar, move in zip(full, (LEAST_MOVE, 1e-3), strict=True):
        assert bar.get_x() <= move * (1 + 1e-9) < bar.get_x() + bar.get_width()
    assert (
        figure.axes[3].get_title(loc="left").endswith("\n1 of 2 proved, 1 spurious; 1 not proved")
    )


def test_minima_without_kinks_are_counted_at_zero_among_whole_numbers(saved):
    found = trained_minima()
    ends = tuple(replace(end, kinks=0) for end in found.ends)
    figure, _ = saved(draw_trained_minima, [replace(found, ends=ends)])
    kinks = figure.axes[1]
    assert [(bar.get_x() + 0.4, bar.get_height()) for bar in kinks.patches] == [(0, 2)]
    ticks = [tick for tick in kinks.get_xticks() if kinks.get_xlim()[0] <= tick]
    assert ticks[0] == 0 and all(tick == int(tick) for tick in ticks)


def test_the_lowest_proved_minimum_without_a_lower_point_has_a_mark_of_its_own(saved):
    found = trained_minima()
    problem, ends = replace(found.problem, known=None), (found.ends[0], found.ends[2])
    figure, _ = saved(draw_trained_minima, [TrainedMinima(problem, ends)])
    [lowest] = [line for line in figure.axes[0].lines if line.get_marker() == "s"]
    assert lowest.get_xydata().tolist() == [[1, 0.1]]


# The survey of smooth activations


@pytest.fixture(scope="module")
def rows():
    x = np.random.default_rng(0).normal(size=(30, 1, 2))
    networks = [("a", Softplus(), [3]), ("b", ELU(), [2, 3]), ("c", Tanh(), [30])]
    return survey(x, networks, 5, 1, 40, seed=2)


def test_figures_are_drawn_for_one_row(rows, tmp_path):
    for draw in (draw_activations, draw_widths):
        draw(tmp_path / "figure.png", rows[:1])
        assert imread(tmp_path / "figure.png")[..., :3].std() > 0.05


def test_panels_without_a_row_stay_empty(rows, tmp_path):
    draw_activations(tmp_path / "figure.png", [*rows, rows[0]])
    picture = imread(tmp_path / "figure.png")[..., :3]
    height, width = picture.shape[:2]
    assert picture[height // 2 :, : width // 3].std() > 0.05
    assert picture[height * 3 // 4 :, width // 2 :].min() == 1


def test_a_risk_of_zero_is_drawn_at_the_floor(rows, tmp_path):
    assert FLOOR > 0
    zero = [replace(row, reached=0.0) for row in rows[:1]]
    for draw in (draw_activations, draw_widths):
        draw(tmp_path / "figure.png", zero)
        assert imread(tmp_path / "figure.png")[..., :3].std() > 0.05


@pytest.mark.parametrize("reached", [0.5, 1e-31])
def test_the_number_of_samples_is_named_inside_the_panel(rows, saved, reached):
    shown = [replace(row, reached=reached) for row in rows]
    left = saved(draw_widths, shown)[0].axes[0]
    [words] = left.texts
    assert words.get_text() == "N = 30 samples"
    box, panel = words.get_window_extent(), left.get_window_extent()
    assert panel.y0 < box.y0 and box.y1 < panel.y1
    assert box.x1 < panel.x1  # the widest network has as many units as there are samples


def test_the_figures_call_a_minimum_only_what_is_certified(rows, tmp_path, monkeypatch):
    texts = []

    def keep(figure, *_, **__):
        texts.append(" ".join(text.get_text() for text in figure.findobj(Text)))

    monkeypatch.setattr(Figure, "savefig", keep)
    refused = replace(rows[0].found.certificate, holds=False, obstacle="for the test")
    other = replace(rows[0], found=replace(rows[0].found, certificate=refused))
    for draw in (draw_activations, draw_widths):
        for shown in (rows[:1], [rows[0], other]):
            draw(tmp_path / "figure.png", shown)
    claims = ["minimum" in text for text in texts]
    assert claims == [True, False, True, False]
