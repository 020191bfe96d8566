"""The figures of landscapes show what the numbers say."""

import math
import re

import matplotlib.image
import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.contour import ContourSet
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from mpl_toolkits.mplot3d import proj3d
from paper_example import LOSS, readme_example
from shared import in_turn

from tinyspur.figures.landscapes import (
    INSIDE,
    TOO_SMALL,
    draw_level_sets,
    draw_lines,
    draw_surfaces,
    plot_landscape,
    plot_lines,
)
from tinyspur.figures.style import HIGHER, LOWER
from tinyspur.landscape.planes import Lines, Plane
from tinyspur.landscape.risks import Landscape
from tinyspur.landscape.scan import scan
from tinyspur.studies.paper_figures import Panel, scan_figures

THETA, THETA_PRIME, THETA_1 = r"$\theta$", r"$\theta'$", r"$\theta_1$"
DIRECTIONS = 4


@pytest.fixture(scope="module")
def example():
    return readme_example()


@pytest.fixture(scope="module")
def repaired(example, tmp_path_factory):
    """The panels around theta, theta' and theta_1."""
    folder = tmp_path_factory.mktemp("repaired")
    where = (example.data, LOSS, folder, 5, DIRECTIONS)
    return scan_figures(example.repaired, example.theta_1, *where)


@pytest.fixture(scope="module")
def literal(example, tmp_path_factory):
    """The panels around theta, which has an escape, and theta'; half of their extent is a tick."""
    folder = tmp_path_factory.mktemp("literal")
    return scan_figures(example.literal, None, example.data, LOSS, folder, 9, DIRECTIONS)


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


DRAW = {"level sets": draw_level_sets, "lines": draw_lines, "surfaces": draw_surfaces}
over_figures = pytest.mark.parametrize("draw", DRAW.values(), ids=DRAW)
TICKS = np.linspace(-1, 1, 9)
BOWL = TICKS[:, None] ** 2 + TICKS**2
SADDLE = TICKS[:, None] ** 2 - 0.5 * TICKS**2 - 0.3 * TICKS


def landscape(heights, extent=1.0, rounding=1e-12, lines=False):
    """Return risks 2 + heights, on a plane or on lines."""
    heights = np.asarray(heights, dtype=float)
    alpha = extent * np.linspace(-1, 1, heights.shape[1 if lines else 0])
    beta = None if lines else extent * np.linspace(-1, 1, heights.shape[1])
    return Landscape(alpha, beta, 2 + heights, 2.0, rounding)


def panel(heights, extent=1.0, rounding=1e-12, lines=False, symbol=THETA, **more):
    where, axes = landscape(heights, extent, rounding, lines), ("across", "up")
    return Panel(symbol, "some words", where, axes[:1] if lines else axes, **more)


def rows_for(draw):
    if draw is draw_lines:
        return [[panel([TICKS**2, TICKS], lines=True), panel([TICKS**2], lines=True)]]
    return [[panel(BOWL), panel(SADDLE)]]


@pytest.fixture
def drawn(saved):
    """Return what draws one row of panels: the figure's axes and its `pixels`, from above."""

    def call(draw, *row, pixels=True):
        figure, path = saved(draw, [row], rendered=pixels)
        return figure.axes, matplotlib.image.imread(path)[..., :3] if pixels else None

    return call


def is_orange(pixels):
    """Return which pixels have the hue of what is lower."""
    pixels = np.asarray(pixels)
    return pixels[..., 0] - pixels[..., 2] > 0.03


def is_purple(pixels):
    """Return which pixels have the hue of what is not lower."""
    pixels = np.asarray(pixels)
    return (pixels[..., 2] - pixels[..., 1] > 0.02) & ~is_orange(pixels)


def colours_at(picture, ax, x, y):
    """Return the pixels around a place in the axes."""
    column, row = ax.transData.transform((x, y))
    row, column = len(picture) - round(row), round(column)
    return picture[row - 1 : row + 2, column - 1 : column + 2]


def region(picture, ax):
    """Return the pixels within the axes, row by row from below, and how high each row is."""
    left, bottom, right, top = ax.get_window_extent().extents
    x, y = (
        np.arange(math.ceil(a) + 3, math.floor(b) - 3) for a, b in ((left, right), (bottom, top))
    )
    return picture[len(picture) - y][:, x], y


def filled(ax):
    return next(c for c in ax.collections if isinstance(c, ContourSet) and c.filled)


def parting(ax):
    """Return the levels of the contours that part what is lower from the rest."""
    lines = [c for c in ax.collections if isinstance(c, ContourSet) and not c.filled]
    return [c.levels[0] for c in lines if len(c.levels) == 1]


def words(ax):
    return [text.get_text() for text in ax.texts]


def dashed(ax):
    return [line for line in ax.lines if line.get_linestyle() == "--"]


def found_in_title(ax):
    return ax.get_title(loc="left").splitlines()[-1]


def test_the_two_hues_are_told_apart():
    assert is_orange(to_rgb(LOWER)) and not is_purple(to_rgb(LOWER))
    assert is_purple(to_rgb(HIGHER)) and not is_orange(to_rgb(HIGHER))
    assert not (is_orange([0.5] * 3) or is_purple([0.5] * 3))


@in_turn(
    over_figures,
    pytest.mark.parametrize(
        ("name", "start"),
        [("a.png", b"\x89PNG\r\n\x1a\n"), ("a.PDF", b"%PDF-")],
        ids=["png", "pdf"],
    ),
)
def test_the_same_numbers_give_the_same_bytes(draw, name, start, tmp_path):
    for folder in ("first", "second"):
        draw(tmp_path / folder / name, rows_for(draw))
        assert [p.name for p in (tmp_path / folder).iterdir()] == [name]
    first = (tmp_path / "first" / name).read_bytes()
    assert first.startswith(start)
    assert len(first) > 5000
    assert first == (tmp_path / "second" / name).read_bytes()
    assert b"CreationDate" not in first
    draw(str(tmp_path / name), [rows_for(draw)[0][1:]])
    assert (tmp_path / name).read_bytes() != first


@in_turn(over_figures, pytest.mark.parametrize("name", ["figure.svg", "figure", "figure.png.txt"]))
def test_other_kinds_of_files_are_refused(draw, name, tmp_path):
    with pytest.raises(
        ValueError, match=rf"a name with \.png or \.pdf, got '.*{re.escape(name)}'$"
    ):
        draw(tmp_path / "folder" / name, rows_for(draw))
    assert not list(tmp_path.iterdir())


@over_figures
def test_an_error_leaves_the_earlier_figure_and_nothing_else(draw, tmp_path, monkeypatch):
    def fail(figure, file, **options):
        file.write(b"half")
        raise OSError("no space left")

    draw(tmp_path / "figure.png", rows_for(draw))
    before = files(tmp_path)
    monkeypatch.setattr(Figure, "savefig", fail)
    for name in ("figure.png", "figure.pdf"):
        with pytest.raises(OSError, match="no space"):
            draw(tmp_path / name, rows_for(draw))
    assert files(tmp_path) == before


def test_level_sets_are_orange_where_the_risk_is_lower(drawn, repaired, literal):
    row = [panel(BOWL), panel(SADDLE), panel(-BOWL), repaired.level_sets[1][1]]
    row.append(literal.level_sets[0][1])
    axes, picture = drawn(draw_level_sets, *row)
    for ax, shown in zip(axes, row, strict=True):
        seen, heights = {True: 0, False: 0}, shown.landscape.risks - shown.landscape.centre
        size = abs(heights).max()
        for i, j in np.ndindex(heights.shape):
            if not (0 < i < len(heights) - 1 and 0 < j < heights.shape[1] - 1):
                continue  # at the border
            if abs(heights[i, j]) < 0.05 * size:
                continue  # under the contour of 0, or next to it
            lower = shown.landscape.lower[i, j]
            place = (shown.landscape.alpha[i], shown.landscape.beta[j])
            pixels = colours_at(picture, ax, *place)
            assert not (is_purple if lower else is_orange)(pixels).any()
            seen[lower] += (is_orange if lower else is_purple)(pixels).any()
        for lower, count in seen.items():
            among = (shown.landscape.lower == lower) & (abs(heights) >= 0.05 * size)
            assert count >= 0.8 * among[1:-1, 1:-1].sum()  # the others are under words
        whole, _ = region(picture, ax)
        assert is_orange(whole).any() == shown.landscape.lower.any()


def test_one_level_parts_the_colours(drawn):
    plateau = np.where(abs(TICKS) < 0.6, 0, -BOWL)
    row = [panel(BOWL), panel(SADDLE), panel(-BOWL), panel(plateau), panel(0 * BOWL)]
    axes, _ = drawn(draw_level_sets, *row, pixels=False)
    for ax, shown in zip(axes, row, strict=True):
        heights, bands = shown.landscape.risks - 2, filled(ax)
        lower, levels = heights[shown.landscape.lower], bands.levels
        middle = 0.0
        if len(lower):
            [middle] = parting(ax)
            assert lower.max() < middle < 0  # and nothing is between them and 0
        else:
            assert parting(ax) == []
        assert middle in levels
        assert levels[0] == pytest.approx(min(heights.min(), 0))
        if (heights > 0).any():
            assert levels[-1] == pytest.approx(heights.max())
        colours = bands.cmap(bands.norm((levels[1:] + levels[:-1]) / 2))[:, :3]
        np.testing.assert_array_equal(is_orange(colours), levels[1:] <= middle)
        np.testing.assert_array_equal(is_purple(colours), levels[1:] > 0)
        assert sum(levels > 0) >= 4
        assert (sum(levels < middle) >= 3) == bool(len(lower))
        for side in (colours[levels[1:] > middle], colours[levels[1:] <= middle][::-1]):
            assert (np.diff(side.sum(axis=1)) < 0).all()  # the further from 0 the darker


def test_levels_on_both_sides_are_labelled(drawn):
    for scale in (1, 4e3):
        [ax], _ = drawn(draw_level_sets, panel(scale * SADDLE), pixels=False)
        labels = [text.replace("\N{MINUS SIGN}", "-") for text in words(ax)]
        assert not any("e" in label for label in labels)
        found = np.array(labels, dtype=float)
        assert (found < 0).any()
        assert (found > 0).any()
        for number in found:
            assert abs(number - filled(ax).levels).min() <= 0.05 * abs(number)


def test_a_plateau_of_zero_is_not_orange(drawn):
    # Two steps down at one side of the plane, and all the rest at the height of the middle.
    heights = np.zeros((41, 41))
    heights[:6], heights[6:12] = -1, -1e-6
    [ax], picture = drawn(draw_level_sets, panel(heights))
    orange = np.array(
        [[is_orange(colours_at(picture, ax, x, y)).any() for y in TICKS[1:-1]] for x in TICKS[1:-1]]
    )
    lower = TICKS[1:-1] < 0.05 * 12 - 1
    assert orange[lower].mean() > 0.8  # the others are under words
    assert not orange[~lower].any()
    [ax], _ = drawn(draw_surfaces, panel(heights), pixels=False)
    [surface] = ax.collections
    assert is_orange(surface.get_facecolor()[:, :3]).sum() == 12 * 40


def test_what_rounding_alone_makes_lower_is_not_orange(drawn):
    heights = TICKS[:, None] ** 2 - 0.05 * (TICKS > 0)
    for draw in (draw_level_sets, draw_surfaces):
        (below, beyond), picture = drawn(
            draw, panel(heights, rounding=0.06), panel(heights, rounding=0.01)
        )
        half = picture.shape[1] // 2
        assert not is_orange(picture[:, :half]).any()
        assert is_orange(picture[:, half:]).any()
        if draw is draw_level_sets:
            assert (len(parting(below)), len(parting(beyond))) == (0, 1)
            assert found_in_title(below) == "0 of 81 points are lower"
            assert found_in_title(beyond) == "4 of 81 points are lower"


def test_the_line_that_parts_the_colours_follows_the_risk_and_not_the_cells(drawn):
    slope = TICKS[:, None] + 0.4 * TICKS
    [ax], picture = drawn(draw_level_sets, panel(slope, rounding=0.33))
    [line] = [c for c in ax.collections if isinstance(c, ContourSet) and len(c.levels) == 1]
    x, y = np.concatenate([path.vertices for path in line.get_paths()]).T
    np.testing.assert_allclose(x + 0.4 * y, line.levels[0], atol=1e-12)
    assert -0.4 < line.levels[0] < -0.33
    assert not is_orange(colours_at(picture, ax, -0.25, 0.1)).any()
    assert is_orange(colours_at(picture, ax, -0.45, 0.1)).any()


def test_lines_are_orange_below_what_rounding_explains(drawn):
    falls = -TICKS
    [ax], picture = drawn(draw_lines, panel([falls], lines=True, rounding=0.5))
    for collection in (c for c in ax.collections if isinstance(c, LineCollection)):
        np.testing.assert_array_equal(collection.get_segments()[0][:, 1], falls)
    pixels, rows = region(picture, ax)
    cut = ax.transData.transform((0, -0.5))[1]
    assert is_orange(pixels[rows < cut - 3]).any() and not is_orange(pixels[rows > cut + 3]).any()
    assert is_purple(pixels[rows > cut + 3]).any() and not is_purple(pixels[rows < cut - 3]).any()


def test_dips_of_lines_within_rounding_are_not_orange(drawn):
    dips = TICKS**2 - 0.2 * (TICKS > 0)
    (below, beyond), picture = drawn(
        draw_lines,
        panel([dips], lines=True, rounding=0.15),
        panel([dips], lines=True, rounding=0.01),
    )
    half = picture.shape[1] // 2
    assert not is_orange(picture[:, :half]).any()
    assert is_orange(picture[:, half:]).any()
    assert found_in_title(below) == "0 of 1 lines lead lower"
    assert found_in_title(beyond) == "1 of 1 lines lead lower"
    for ax, lowest in ((below, 0.0), (beyond, dips.min())):
        for collection in (c for c in ax.collections if isinstance(c, LineCollection)):
            [segment] = collection.get_segments()
            np.testing.assert_allclose(segment[:, 1], np.maximum(dips, lowest), atol=1e-15)


def test_an_escape_within_rounding_does_not_go_down(drawn):
    escape = landscape([-0.05 * TICKS], rounding=0.06, lines=True)
    [ax], _ = drawn(draw_lines, panel([TICKS**2], lines=True, escape=escape), pixels=False)
    [line] = [line for line in ax.lines if line.get_label() == "escape"]
    np.testing.assert_allclose(line.get_ydata(), np.maximum(-0.05 * TICKS, 0), atol=1e-15)


def test_surfaces_are_orange_where_the_risk_is_lower(drawn):
    row = [panel(BOWL), panel(-BOWL - 0.1), panel(np.where(TICKS < 0, -1, 1.0) * (BOWL + 0.1))]
    axes, picture = drawn(draw_surfaces, *row)
    for ax, orange, purple in zip(axes, (False, True, True), (True, False, True), strict=True):
        pixels, rows = region(picture, ax)
        assert (is_orange(pixels).sum() > 500, is_purple(pixels).sum() > 500) == (orange, purple)
        assert is_orange(pixels).any() == orange
    low, high = (rows[np.nonzero(found(pixels))[0]].mean() for found in (is_orange, is_purple))
    assert low < high - 100


@pytest.mark.parametrize("edge", [(0, 0), (-1, 0), (0, -1), (-1, -1)])
def test_an_edge_that_is_lower_is_orange_on_the_surface(edge, drawn):
    place, flipped = edge
    heights = np.full((9, 7), 0.5)
    (heights.T if flipped else heights)[place] = -0.5
    [ax], picture = drawn(draw_surfaces, panel(heights))
    [surface] = ax.collections
    shades = surface.get_facecolor()[:, :3]
    assert len(shades) == 8 * 6
    assert is_orange(shades).sum() == (8 if flipped else 6)
    assert is_orange(region(picture, ax)[0]).sum() > 100


def test_each_cell_of_a_surface_has_the_colour_of_its_lowest_corner(drawn):
    heights = BOWL.copy()
    heights[2, 5] = -0.2
    [ax], _ = drawn(draw_surfaces, panel(heights), pixels=False)
    [surface] = ax.collections
    assert len(surface.get_facecolor()) == 64
    assert is_orange(surface.get_facecolor()[:, :3]).sum() == 4  # those that meet in the point


@pytest.mark.parametrize("end", [(0, 0), (0, -1), (-1, 0), (-1, -1)])
def test_the_lowest_end_of_a_surface_is_in_front(end, drawn):
    heights = BOWL.copy()
    heights[end] = -0.1
    [ax], _ = drawn(draw_surfaces, panel(heights), pixels=False)
    floor = {
        (i, j): proj3d.proj_transform(TICKS[i], TICKS[j], -0.1, ax.get_proj())[1]
        for i in (0, -1)
        for j in (0, -1)
    }
    assert min(floor, key=floor.get) == end


def test_surfaces_have_the_heights_of_the_risks(drawn):
    row = [panel(SADDLE), panel(1e-5 * SADDLE, 1e-3, symbol=THETA_PRIME)]
    (ax, small), _ = drawn(draw_surfaces, *row, pixels=False)
    assert words(ax) == ["(a) $\\theta$: some words\nheight $R - R(\\theta)$"]
    assert words(small) == ["(b) $\\theta'$: some words\nheight $R - R(\\theta')$ [$10^{-5}$]"]
    assert [ax.get_xlabel(), ax.get_ylabel()] == ["along across", "along up"]
    assert [small.get_xlabel(), small.get_ylabel()] == [
        f"along {name} [$10^{{-3}}$]" for name in ("across", "up")
    ]
    assert ax.get_zlabel() == small.get_zlabel() == ""
    assert ax.get_zlim() == pytest.approx((SADDLE.min(), SADDLE.max()))
    assert (ax.get_xlim(), ax.get_ylim()) == ((-1, 1), (-1, 1))


def test_lines_are_orange_below_zero_only(drawn, repaired):
    rng = np.random.default_rng(0)
    row = [
        panel([TICKS**2, 2 * TICKS**2], lines=True),
        panel(rng.normal(size=(6, 1)) * TICKS + TICKS**2, lines=True),
        panel([-(TICKS**2), -2 * TICKS**2], lines=True),
        repaired.lines[0][1],
    ]
    axes, picture = drawn(draw_lines, *row)
    for ax, shown in zip(axes, row, strict=True):
        heights = shown.landscape.risks - shown.landscape.centre
        lines = [c for c in ax.collections if isinstance(c, LineCollection)]
        for collection in lines:
            assert len(collection.get_segments()) == len(heights)
            for segment, line in zip(collection.get_segments(), heights, strict=True):
                np.testing.assert_array_equal(segment, np.c_[shown.landscape.alpha, line])
        pixels, rows = region(picture, ax)
        zero = ax.transData.transform((0, 0))[1]
        above, below = pixels[rows > zero + 3], pixels[rows < zero - 3]
        assert not is_orange(above).any()
        assert not is_purple(below).any()
        assert is_purple(above).any() == (heights > 0).any()
        assert is_orange(below).any() == shown.landscape.lower.any()
        assert ax.get_xlim() == (shown.landscape.alpha[0], shown.landscape.alpha[-1])


@pytest.mark.parametrize("scale", [1e-30, 1e6, 1e12])
def test_lines_are_cut_at_zero_at_any_scale(scale, drawn):
    heights = scale * np.stack([TICKS, TICKS**2])
    shown = Landscape(TICKS, None, heights, 0.0, 0.0)
    [ax], picture = drawn(draw_lines, Panel(THETA, "some words", shown, ("across",)))
    pixels, rows = region(picture, ax)
    zero = ax.transData.transform((0, 0))[1]
    above, below = pixels[rows > zero + 3], pixels[rows < zero - 3]
    assert is_orange(below).any() and not is_purple(below).any()
    assert is_purple(above).any() and not is_orange(above).any()


def test_what_falls_below_zero_fills_a_fifth_at_least(drawn):
    steep = panel([100 * TICKS**2, -(TICKS**2)], lines=True)
    even = panel([2 * TICKS**2, -(TICKS**2)], lines=True)
    (ax, other), _ = drawn(draw_lines, steep, even, pixels=False)
    low, high = ax.get_ylim()
    assert low <= -1
    assert -low / (high - low) >= 0.2
    assert other.get_ylim()[1] >= 2


def test_what_falls_little_under_what_rises_high_is_seen_with_all_of_it(drawn):
    heights = np.append(np.abs(TICKS), -1e-6)
    shown = Landscape(np.append(TICKS, 2.0), None, heights[None], 0.0, 0.0)
    [ax], picture = drawn(draw_lines, Panel(THETA, "some words", shown, ("across",)))
    low, high = ax.get_ylim()
    assert low <= -1e-6 and high >= 1
    pixels, rows = region(picture, ax)
    cut = ax.transData.transform((0, 0))[1]
    below = rows < cut - 3
    assert below.mean() > 0.1 and is_orange(pixels[below]).any()


def test_titles_count_what_is_lower(drawn):
    some = panel(SADDLE, rounding=1e-3)
    (bowl, saddle), _ = drawn(draw_level_sets, panel(BOWL), some, pixels=False)
    assert bowl.get_title(loc="left") == "(a) $\\theta$: some words\n0 of 81 points are lower"
    count = (SADDLE < -1e-3).sum()
    assert 0 < count < 81
    title = f"(b) $\\theta$: some words\n{count} of 81 points are lower"
    assert saddle.get_title(loc="left") == title
    lines = np.stack([TICKS**2, TICKS, -TICKS, 1e-4 * TICKS])
    row = [panel(lines[:1], lines=True), panel(lines, lines=True, rounding=1e-3)]
    row.append(panel(lines[[0, 1, 0]], lines=True, escape=landscape(lines[2:3], lines=True)))
    row.append(panel(lines[[0]], lines=True, escape=landscape(lines[1:2], lines=True)))
    axes, _ = drawn(draw_lines, *row, pixels=False)
    assert [found_in_title(ax) for ax in axes] == [
        "0 of 1 lines lead lower",
        "2 of 4 lines lead lower",
        "1 of 3 lines lead lower",
        "0 of 1 lines lead lower",
    ]
    titles = [f"({letter}) $\\theta$: some words" for letter in "abcd"]
    assert [ax.get_title(loc="left").splitlines()[0] for ax in axes] == titles


@pytest.mark.parametrize("symbol", [THETA, THETA_PRIME, THETA_1])
def test_the_heights_are_above_the_point_of_the_panel(symbol, drawn):
    lines = {"lines": True, "symbol": symbol}
    escape = landscape([-TICKS], lines=True)
    row = [panel([TICKS], **lines), panel([TICKS], escape=escape, **lines)]
    axes, _ = drawn(draw_lines, *row, pixels=False)
    difference = rf"$R - R({symbol.strip('$')})$"
    assert [ax.get_ylabel() for ax in axes] == [difference] * 2
    [ax], _ = drawn(draw_surfaces, panel(SADDLE, symbol=symbol), pixels=False)
    assert words(ax) == [f"(a) {symbol}: some words\nheight {difference}"]
    [ax], _ = drawn(draw_level_sets, panel(SADDLE, symbol=symbol), pixels=False)
    assert ax.get_title(loc="left").startswith(f"(a) {symbol}: some words\n")


def test_the_certified_radius_is_an_outline_or_words(drawn):
    side = np.linspace(-1, 1, 41)[:-1]
    ones = np.ones(40)
    square = np.r_[np.c_[ones, side], np.c_[-side, ones], np.c_[-ones, -side], np.c_[side, -ones]]
    cases = {None: "none", 0.5: "outline", 0.99: "outline", 1.01: "words", 30.0: "words"}
    row = [panel(BOWL, certified=None if size is None else size * square) for size in cases]
    row.append(panel(BOWL, certified=square * [0.9, 8]))  # it leaves the plane upwards only
    axes, _ = drawn(draw_level_sets, *row, pixels=False)
    for ax, shown, expected in zip(axes, row, [*cases.values(), "outline"], strict=True):
        assert (INSIDE in words(ax)) == (expected == "words")
        assert bool(dashed(ax)) == (ax.get_legend() is not None) == (expected == "outline")
        if expected == "outline":
            [line] = dashed(ax)
            outline = shown.certified
            np.testing.assert_array_equal(line.get_xydata(), [*outline, outline[0]])
            [label] = ax.get_legend().get_texts()
            assert label.get_text() == "certified radius"
    axes, _ = drawn(
        draw_level_sets, *[panel(BOWL, certified=r * square) for r in (0.02, 0.01)], pixels=False
    )
    assert [(TOO_SMALL in words(ax), len(dashed(ax))) for ax in axes] == [(False, 1), (True, 0)]
    lines = [TICKS**2] * 3
    row = [panel(lines, lines=True)]
    ends = ([1.1, 1.2, 9], [1.1, 0.9, 9], [0.1, 0.2, 0.3], [1e-3, 0.2, 0.3])
    row += [panel(lines, lines=True, certified=np.array(end)) for end in ends]
    axes, _ = drawn(draw_lines, *row, pixels=False)
    assert [INSIDE in words(ax) for ax in axes] == [False, True, False, False, False]
    assert [TOO_SMALL in words(ax) for ax in axes] == [False, False, False, False, True]
    found = [[line.get_xdata()[0] for line in dashed(ax)] for ax in axes]
    assert found == [[], [], [-0.9, 0.9], [-0.1, 0.1], []]


def test_all_is_within_the_radius_where_the_corners_are(drawn):
    diamond = np.array([(1, 0), (0, 1), (-1, 0), (0, -1)])  # its corners are outside the plane
    slanted = diamond @ [[3, 2], [2, 3]]  # two corners of the plane are within
    row = [panel(BOWL, certified=outline) for outline in (1.9 * diamond, slanted, 2.1 * diamond)]
    axes, _ = drawn(draw_level_sets, *row, pixels=False)
    assert [INSIDE in words(ax) for ax in axes] == [False, False, True]
    assert [len(dashed(ax)) for ax in axes] == [1, 1, 0]


def test_the_words_about_the_radius_are_those_of_the_paper_s_figures(drawn, repaired):
    for row, expected in zip(repaired.level_sets, ([0, 0, 0], [1, 0, 1]), strict=True):
        axes, _ = drawn(draw_level_sets, *row, pixels=False)
        assert [INSIDE in words(ax) for ax in axes] == expected
        assert [bool(dashed(ax)) for ax in axes] == [not sum(expected), 0, not sum(expected)]
    axes, _ = drawn(draw_lines, *repaired.lines[0], pixels=False)
    assert [INSIDE in words(ax) for ax in axes] == [1, 0, 1]


def tick_numbers(axis):
    axis.figure.draw_without_rendering()
    low, high = axis.get_view_interval()
    places = axis.get_ticklocs()
    labels = [t.get_text().replace("\N{MINUS SIGN}", "-") for t in axis.get_ticklabels()]
    inside = [(p, float(t)) for p, t in zip(places, labels, strict=True) if low <= p <= high]
    return np.array(inside).T


@pytest.mark.parametrize(
    ("extent", "power"),
    [(0.02, -2), (5e-7, -7), (900, 0)],
)
def test_labels_have_the_power_of_ten(extent, power, drawn):
    lines = extent * np.stack([TICKS**2, TICKS])
    for draw, shown in (
        (draw_level_sets, panel(SADDLE, extent)),
        (draw_lines, panel(lines, extent, lines=True, rounding=0)),
    ):
        [ax], _ = drawn(draw, shown, pixels=False)
        unit = rf" [$10^{{{power}}}$]" if power else ""
        up = "$R - R(\\theta)$" if draw is draw_lines else "distance along up"
        assert (ax.get_xlabel(), ax.get_ylabel()) == ("distance along across" + unit, up + unit)
        for axis in (ax.xaxis, ax.yaxis):
            places, numbers = tick_numbers(axis)
            assert len(numbers) >= 3
            assert 0 in numbers
            np.testing.assert_allclose(numbers * 10.0**power, places, rtol=5e-3, atol=1e-12)


def test_an_arrow_shows_the_escape_in_its_plane(drawn, literal):
    plane = literal.level_sets[0][1]
    axes, _ = drawn(draw_level_sets, plane, panel(BOWL), pixels=False)
    arrows = [[t for t in ax.texts if isinstance(t, Annotation)] for ax in axes]
    assert [len(found) for found in arrows] == [1, 0]
    [[arrow], _] = arrows
    assert to_rgb(arrow.arrow_patch.get_edgecolor()) == (0, 0, 0)
    assert (arrow.xy, arrow.xyann) == (plane.escape, (0, 0))
    assert arrow.arrow_patch is not None
    assert axes[0].get_xlabel().startswith("distance along the escape")


def test_the_escape_is_a_line_of_its_own(drawn, literal):
    lines = literal.lines[0][0]
    (ax, other), picture = drawn(draw_lines, lines, literal.lines[0][1])
    heights = lines.landscape.risks - lines.landscape.centre
    [escape] = [line for line in ax.lines if line.get_label() == "escape"]
    assert to_rgb(escape.get_color()) == (0, 0, 0)
    expected = lines.escape.risks[0] - lines.escape.centre
    np.testing.assert_array_equal(escape.get_xydata(), np.c_[lines.escape.alpha, expected])
    [label] = ax.get_legend().get_texts()
    assert label.get_text() == "escape"
    assert ax.get_yscale() == "symlog"
    low, high = ax.get_ylim()
    assert low <= expected.min() < 0 < heights.max() <= high
    down = ax.transAxes.inverted().transform(ax.transData.transform([(0, expected.min()), (0, 0)]))
    assert np.ptp(down[:, 1]) > 0.1  # the fall is seen beside the steep lines
    for collection in (c for c in ax.collections if isinstance(c, LineCollection)):
        assert len(collection.get_segments()) == DIRECTIONS
    assert other.get_legend() is None
    assert other.get_yscale() == "linear"
    assert not is_orange(region(picture, ax)[0]).any()  # no random direction is lower


def test_places_without_a_panel_stay_empty(saved):
    figure, _ = saved(draw_level_sets, [[panel(BOWL), panel(BOWL)], [panel(SADDLE)]])
    assert [ax.axison for ax in figure.axes] == [True, True, True, False]
    letters = [ax.get_title(loc="left")[:3] for ax in figure.axes]
    assert letters == ["(a)", "(b)", "(c)", ""]


def test_more_panels_than_letters_are_refused(tmp_path):
    cause = "figure: expected at most 26 panels, got 27"
    with pytest.raises(ValueError, match=f"^{cause}$"):
        draw_lines(tmp_path / "figure.png", [[panel([TICKS], lines=True)] * 9] * 3)
    assert not files(tmp_path)


FLAT_PLANES = {
    "a flat plane": np.zeros((9, 9)),
    "the least that is lower": np.where(BOWL == 0, -1e-11, 0),
    "two heights": np.where(TICKS < 0, 0, -1) * np.ones((9, 1)),
    "2 x 2": np.array([[1, 1.01], [1.02, 1]]),
    "a flat 2 x 2": np.ones((2, 2)),
    "all of 2 x 2 lower": np.array([[-1, -1.01], [-1.02, -1]]),
}


@pytest.mark.filterwarnings("error::UserWarning", "error::RuntimeWarning")
@in_turn(
    pytest.mark.parametrize("heights", FLAT_PLANES.values(), ids=FLAT_PLANES),
    pytest.mark.parametrize("draw", [draw_level_sets, draw_surfaces], ids=["sets", "surfaces"]),
)
def test_planes_with_little_to_see_are_drawn(heights, draw, drawn):
    [ax], picture = drawn(draw, panel(heights))
    cells = draw is draw_level_sets and len(heights) == 2
    assert ax.get_xlim() == ((-2, 2) if cells else (-1, 1))
    assert is_orange(region(picture, ax)[0]).any() == (heights < 0).any()
    if draw is draw_surfaces:
        low, high = ax.get_zlim()
        assert low == pytest.approx(heights.min(), rel=1e-6)
        assert high == pytest.approx(heights.max() if np.ptp(heights) else low + 1)


@pytest.mark.filterwarnings("error::UserWarning", "error::RuntimeWarning")
@in_turn(
    pytest.mark.parametrize("escape", [None, 0 * TICKS, TICKS**2, -TICKS], ids=range(4)),
    pytest.mark.parametrize("height", [0.0, 1.0]),
)
def test_lines_with_little_to_see_are_drawn(height, escape, drawn):
    more = {} if escape is None else {"escape": landscape([escape], lines=True)}
    [ax], picture = drawn(draw_lines, panel([0 * TICKS, height * TICKS**2], lines=True, **more))
    low, high = ax.get_ylim()
    assert low <= 0 < high
    assert height <= high
    assert not is_orange(region(picture, ax)[0]).any()
    black = [line for line in ax.lines if line.get_label() == "escape"]
    assert len(black) == (escape is not None)
    if black:
        np.testing.assert_array_equal(black[0].get_ydata(), escape)


@in_turn(over_figures, pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf]))
def test_risks_that_are_not_finite_are_refused(draw, value, tmp_path):
    lines = draw is draw_lines
    heights = np.stack([TICKS**2, TICKS]) if lines else BOWL.copy()
    heights[1, 2] = value
    row = [panel(heights[:1] if lines else BOWL, lines=lines)]
    row.append(panel(heights, lines=lines, symbol=THETA_PRIME))
    size = row[1].landscape.risks.size
    cause = f"figure of {THETA_PRIME}: expected finite risks, got 1 of {size} that are not, and 2 "
    with pytest.raises(ValueError, match=f"^{re.escape(cause)}in the middle$"):
        draw(tmp_path / "figure.png", [row])
    assert not files(tmp_path)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (4, 1)])
def test_planes_of_less_than_two_by_two_points_are_refused(shape, tmp_path):
    for draw, name in ((draw_level_sets, "level sets"), (draw_surfaces, "surface")):
        cause = f"{name}: expected 2 x 2 points or more, got {shape}"
        with pytest.raises(ValueError, match=f"^{re.escape(cause)}$"):
            draw(tmp_path / "figure.png", [[panel(np.zeros(shape))]])
    assert not files(tmp_path)


@pytest.fixture
def axes():
    return Figure().subplots()


def test_a_plane_is_plotted_with_the_radius_of_its_certificate(example, axes):
    theta, certificate = example.repaired.theta, example.repaired.certificate
    where = Plane.random(theta, extent=30 * certificate.radius, steps=9)
    found = scan(where, example.data, LOSS)
    assert plot_landscape(found, certificate, axes) is axes
    dashed = next(line for line in axes.lines if line.get_linestyle() == "--").get_xydata()
    d1, d2 = (d.vector for d in where.directions)
    for alpha, beta in dashed[::30]:
        assert abs(alpha * d1 + beta * d2).max() == pytest.approx(certificate.radius)
    assert axes.get_title(loc="left") == f"R(θ) = {found.centre:.6g}; 0 of 81 points are lower"
    for label, d in ((axes.get_xlabel(), "d_1"), (axes.get_ylabel(), "d_2")):
        assert label.startswith(f"coefficient of ${d}$")  # which may have any length
    plot_landscape(found, ax=axes)
    assert len([line for line in axes.lines if line.get_linestyle() == "--"]) == 1


def test_lines_are_plotted_in_a_figure_of_pyplot_and_written(example, tmp_path):
    found = scan(Lines.random(example.repaired.theta, 3, extent=1e-3), example.data, LOSS)
    ax = plot_lines(found, example.repaired.certificate, path=tmp_path / "lines.png")
    assert ax.figure.number in pyplot.get_fignums()
    pyplot.close(ax.figure)
    assert ax.texts[0].get_text() == INSIDE
    assert matplotlib.image.imread(tmp_path / "lines.png").ndim == 3


def test_a_coarse_plane_is_drawn_as_cells_without_contours(axes):
    plot_landscape(landscape(BOWL[::2, ::2]), ax=axes)
    assert not any(isinstance(c, ContourSet) for c in axes.collections)
    [cells] = axes.collections
    assert cells.get_array().size == 25
    assert (axes.get_xlim(), axes.get_ylim()) == ((-1.25, 1.25), (-1.25, 1.25))  # whole cells
    np.testing.assert_array_equal(axes.get_xticks(), [-1, -0.5, 0, 0.5, 1])


def test_the_title_of_narrow_axes_takes_two_lines():
    for count, lines in ((1, 1), (2, 2)):
        axes = np.ravel(Figure(figsize=(6, 3)).subplots(1, count))
        title = plot_landscape(landscape(BOWL), ax=axes[0]).get_title(loc="left")
        assert title.count("\n") + 1 == lines


def test_few_lines_are_drawn_stronger_than_many(drawn):
    few, many = panel([TICKS**2] * 2, lines=True), panel([TICKS**2] * 60, lines=True)
    axes, _ = drawn(draw_lines, few, many, pixels=False)
    assert [ax.collections[0].get_alpha() for ax in axes] == [1.0, 0.3]


@pytest.mark.parametrize(
    ("plot", "where", "certificate", "words"),
    [
        (plot_lines, landscape(BOWL), None, "on lines, got the risks of a plane, which plot_l"),
        (
            plot_landscape,
            landscape(BOWL, lines=True),
            None,
            "of a plane, got the risks on lines, which plot_l",
        ),
        (plot_landscape, BOWL, None, "expected a Landscape as of ts.scan, got ndarray"),
        (plot_landscape, landscape(BOWL * np.nan), None, "expected finite risks, got 81 of 81"),
        (plot_landscape, landscape(BOWL), 0.1, "a certificate with a radius, got float"),
    ],
)
def test_what_cannot_be_plotted_is_refused_in_words(plot, where, certificate, words, axes):
    with pytest.raises(ValueError, match=words):
        plot(where, certificate, axes)
    assert not axes.collections


def test_a_radius_without_directions_is_refused(example, axes):
    with pytest.raises(ValueError, match="got a file without them"):
        plot_landscape(landscape(BOWL), example.repaired.certificate, axes)
