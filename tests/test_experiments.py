"""The paper's landscapes: the numbers are PyTorch's, and the figures show what the numbers say."""

import json
import math
import re
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import matplotlib.image
import numpy as np
import pytest
import torch
import torch_twin
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.contour import ContourSet
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from mpl_toolkits.mplot3d import proj3d

from tinyspur import (
    Conv,
    Dense,
    Network,
    TrainingSet,
    datasets,
    experiments,
    find_spurious_minimum,
    linear_minimum,
    one_hot,
)
from tinyspur.activations import ReLU
from tinyspur.certificates import certify_cell
from tinyspur.constructions.embedding import embed, subnetwork
from tinyspur.constructions.nontrivial import nontrivial_minimum
from tinyspur.experiments import (
    FINE,
    STEPS,
    Panel,
    falling_distance,
    points_of,
    read_figures,
    scan_figures,
)
from tinyspur.figures.landscapes import INSIDE, draw_level_sets, draw_lines, draw_surfaces
from tinyspur.figures.style import HIGHER, LOWER
from tinyspur.landscape import Landscape, random_direction
from tinyspur.losses import AbsoluteLoss, CrossEntropy, SquaredLoss
from tinyspur.parameters import Parameters

LOSS = SquaredLoss()
GRID, DIRECTIONS = 5, 4
THETA, THETA_PRIME, THETA_1 = r"$\theta$", r"$\theta'$", r"$\theta_1$"
CERTIFIED = ((THETA, "certified local minimum"), (THETA_1, "certified local minimum"))
PRIME = (THETA_PRIME, r"same outputs as $\theta$")
ESCAPED, OPEN = (THETA, "not a local minimum"), (THETA, "not certified")


def twin_risk(theta, data, loss=LOSS):
    twin = torch_twin.Twin(json.dumps(theta.net.spec)).load(theta.arrays())
    with torch.no_grad():
        return float(torch_twin.risk(twin(data.x), data.y, loss.name))


def moved(theta, *moves):
    """Return theta plus all numbers times their directions."""
    vector = theta.vector + sum(float(c) * d.vector for c, d in moves)
    return Parameters(theta.net, vector)


def build(net, data, variant, dtype=np.float64):
    theta, pair = linear_minimum(net, data, LOSS, variant=variant)
    return find_spurious_minimum(theta.to(np, dtype), pair, data, LOSS, variant=variant)


@pytest.fixture(scope="module")
def example():
    """The README's network on images of 7 x 7 pixels, and the points of both variants."""
    images = datasets.bundled().subset(200, seed=0)
    x = images.pixels().reshape(200, 1, 7, 4, 7, 4).mean(axis=(3, 5))
    data = TrainingSet(x, one_hot(images.labels, images.classes))
    net = Network((1, 7, 7), [Conv(4), Conv(6), Conv(6), Dense(10)])
    theta_1 = embed(net, nontrivial_minimum(subnetwork(net), data, LOSS, 1, 0), data.x)[0]
    found = {variant: build(net, data, variant) for variant in ("repaired", "literal")}
    return SimpleNamespace(net=net, data=data, theta_1=theta_1, **found)


@pytest.fixture(scope="module")
def repaired(example, tmp_path_factory):
    """The figures around theta, theta' and theta_1, and their folder."""
    folder = tmp_path_factory.mktemp("repaired")
    where = (example.data, LOSS, folder, GRID, DIRECTIONS)
    return scan_figures(example.repaired, example.theta_1, *where), folder


@pytest.fixture(scope="module")
def literal(example, tmp_path_factory):
    """The figures around theta, which has an escape, and theta'; half of their extent is a tick."""
    folder = tmp_path_factory.mktemp("literal")
    return scan_figures(example.literal, None, example.data, LOSS, folder, 9, DIRECTIONS), folder


@pytest.fixture(scope="module")
def tiny():
    """A spurious minimum on 40 samples of 3 x 3 pixels, and its data."""
    rng = np.random.default_rng(0)
    data = TrainingSet(rng.normal(size=(40, 1, 3, 3)), rng.normal(size=(40, 2)))
    net = Network((1, 3, 3), [Conv(3), Conv(5), Conv(6), Dense(2)])
    return SimpleNamespace(net=net, data=data, found=build(net, data, "repaired"))


def scan_tiny(tiny, folder, grid=4, directions=2, seed=3, **options):
    return scan_figures(
        tiny.found, None, tiny.data, LOSS, folder, grid, directions, seed, **options
    )


def panels(figures):
    return [panel for rows in figures for row in rows for panel in row]


def named(row):
    """Return the symbols and words of points or panels."""
    return [(p.symbol, p.words) for p in row]


def same_landscape(first, second):
    for name in ("alpha", "beta", "risks", "centre", "rounding"):
        one, other = getattr(first, name), getattr(second, name)
        np.testing.assert_array_equal(one, other)
        assert type(one) is type(other)


def same(first, second):
    """Check that two results hold the same panels, bit by bit."""
    for rows, others in zip(first, second, strict=True):
        assert [len(row) for row in rows] == [len(row) for row in others]
    for a, b in zip(panels(first), panels(second), strict=True):
        assert (a.symbol, a.words, a.axes) == (b.symbol, b.words, b.axes)
        if isinstance(a.escape, Landscape):
            same_landscape(a.escape, b.escape)
        else:
            assert a.escape == b.escape
        assert (a.certified is None) == (b.certified is None)
        np.testing.assert_array_equal(a.certified, b.certified)
        same_landscape(a.landscape, b.landscape)


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# Points and what is proved of them


def test_a_point_is_certified_where_its_certificate_holds(example):
    found, data = example.repaired, example.data
    points = points_of(found, example.theta_1, data, LOSS)
    assert [p.name for p in points] == ["theta", "theta_prime", "theta_1"]
    assert named(points) == [CERTIFIED[0], PRIME, CERTIFIED[1]]
    assert [p.theta for p in points] == [found.theta, found.theta_prime, example.theta_1]
    radii = [certify_cell(p.theta, data, LOSS).radius for p in (points[0], points[2])]
    assert [p.radius for p in points] == [radii[0], 0, radii[1]]
    assert min(radii) > 0
    assert [p.name for p in points_of(found, None, data, LOSS)] == ["theta", "theta_prime"]


@pytest.mark.parametrize("holds", [True, False])
@pytest.mark.parametrize("evidence_only", [True, False])
def test_neither_evidence_nor_a_certificate_that_fails_counts(holds, evidence_only, tiny):
    certificate = SimpleNamespace(holds=holds, evidence_only=evidence_only, radius=0.25)
    found = replace(tiny.found, certificate=certificate)
    point, _ = points_of(found, None, tiny.data, LOSS)
    if holds and not evidence_only:
        assert (named([point]), point.radius) == ([CERTIFIED[0]], 0.25)
    else:
        assert (named([point]), point.radius) == ([OPEN], 0)


def test_a_theta_1_that_is_no_minimum_is_not_certified(tiny, example):
    for found, data in ((tiny.found, tiny.data), (example.literal, example.data)):
        *_, point = points_of(found, found.lower.theta, data, LOSS)
        assert (point.name, point.radius) == ("theta_1", 0)
        assert named([point]) == [(THETA_1, "not certified")]  # whatever theta is


def test_the_literal_theta_is_no_local_minimum(example):
    points = points_of(example.literal, None, example.data, LOSS)
    assert (named(points), [p.radius for p in points]) == ([ESCAPED, PRIME], [0, 0])


@pytest.mark.parametrize(
    ("decrease", "falls"), [(None, False), (-1.0, False), (0.5, False), (1.0, False), (1.5, True)]
)
def test_a_fall_within_rounding_is_no_escape(decrease, falls, example):
    escape = decrease and replace(example.literal.escape, decrease=decrease, rounding=1.0)
    found = replace(example.literal, escape=escape)
    assert found.escapes == falls
    assert found.verdict.startswith("not a local minimum" if falls else "not certified")
    theta, _ = points_of(found, None, example.data, LOSS)
    assert named([theta]) == [ESCAPED if falls else OPEN]


# How far the risk falls


def test_the_risk_of_an_affine_map_falls_as_far_as_its_parabola():
    rng = np.random.default_rng(1)
    net = Network((1, 4), [Dense(3)])
    data = TrainingSet(rng.normal(size=(9, 1, 4)), rng.normal(size=(9, 3)))
    theta = Parameters(net, rng.normal(size=net.size))
    x, distances = np.c_[data.x.reshape(9, 4), np.ones(9)], []
    residual = x @ np.c_[theta.W[1].weights, theta.b[1]].T - data.y
    for k in range(8):
        d = random_direction(theta, (5, k))
        move = x @ np.c_[d.W[1].weights, d.b[1]].T
        distances.append(abs((residual * move).sum() / (move**2).sum()))
    assert falling_distance(theta, data, LOSS, 5) == pytest.approx(np.median(distances), rel=1e-12)
    assert falling_distance(theta, data, LOSS, 6) != falling_distance(theta, data, LOSS, 5)


@pytest.mark.parametrize("loss", [LOSS, CrossEntropy()], ids=lambda loss: loss.name)
def test_the_parabola_has_the_slope_and_curvature_of_differences(loss):
    rng = np.random.default_rng(2)
    net = Network((1, 3, 3), [Conv(2), Conv(2), Dense(2)], ReLU(0.3))
    targets = rng.dirichlet([0.2, 0.2], 12) if loss.name == "cross-entropy" else np.full((12, 2), 9)
    data = TrainingSet(rng.normal(size=(12, 1, 3, 3)), targets.astype(float))
    theta = Parameters(net, 0.5 * rng.normal(size=net.size))
    found, h = [], 1e-4
    for k in range(8):
        d = random_direction(theta, (0, k))
        down, here, up = (twin_risk(moved(theta, (c, d)), data, loss) for c in (-h, 0, h))
        found.append(((up - down) / (2 * h), (up - 2 * here + down) / h**2))
    if loss is LOSS:  # far from the targets some directions bend down, which must not count
        assert 0 < sum(curvature > 0 for _, curvature in found) < 8
    expected = np.median([abs(slope) / curvature for slope, curvature in found if curvature > 0])
    assert falling_distance(theta, data, loss) == pytest.approx(expected, rel=1e-4)


def test_without_curvature_the_distance_is_zero(tiny):
    net = Network((1, 3, 3), [Dense(2)])
    theta = Parameters(net, np.random.default_rng(0).normal(size=net.size))
    assert falling_distance(theta, tiny.data, AbsoluteLoss()) == 0


# What is scanned


def test_three_points_are_seen_from_afar_and_from_nearby(repaired, example):
    figures, _ = repaired
    expected = [CERTIFIED[0], PRIME, CERTIFIED[1]]
    assert list(map(named, figures.level_sets)) == [expected, expected]
    assert list(map(named, figures.lines)) == [expected]
    thetas = [example.repaired.theta, example.repaired.theta_prime, example.theta_1]
    nearby = 2.5 * falling_distance(thetas[1], example.data, LOSS, 0)
    for row in (*figures.level_sets, *figures.lines):
        for panel, theta in zip(row, thetas, strict=True):
            assert panel.landscape.centre == theta.net.risk(theta, example.data, LOSS)
            assert panel.escape is None
    for row in figures.level_sets:
        for panel in row:
            assert panel.landscape.risks.shape == (GRID, GRID)
            assert panel.axes == ("$d_1$", "$d_2$")
            assert np.array_equal(panel.landscape.alpha, panel.landscape.beta)
    for panel in figures.level_sets[1]:
        np.testing.assert_allclose(panel.landscape.alpha, nearby * np.linspace(-1, 1, GRID))
    for panel in figures.lines[0]:
        assert panel.landscape.risks.shape == (DIRECTIONS, STEPS)
        np.testing.assert_allclose(panel.landscape.alpha, nearby * np.linspace(-1, 1, STEPS))
        assert panel.axes == ("$d_k$",)
    # From afar, half as far again as the certified radius; theta' as far as theta.
    ends = [panel.landscape.alpha.max() for panel in figures.level_sets[0]]
    for end, panel in zip(ends[::2], figures.level_sets[0][::2], strict=True):
        assert end == pytest.approx(1.5 * abs(panel.certified).max(), rel=1e-12)
    assert ends[1] == pytest.approx(ends[0], rel=1e-12)


def test_the_risks_are_pytorchs(repaired, example):
    figures, data = repaired[0], example.data
    thetas = [example.repaired.theta, example.repaired.theta_prime, example.theta_1]
    for row in figures.level_sets:
        for panel, theta in zip(row, thetas, strict=True):
            d1, d2 = (random_direction(theta, (0, k)) for k in range(2))
            ticks = panel.landscape.alpha
            for i, j in ((0, 0), (4, 1), (1, 3)):
                there = moved(theta, (ticks[i], d1), (ticks[j], d2))
                risk = panel.landscape.risks[i, j]
                assert risk == pytest.approx(twin_risk(there, data), rel=1e-12)
                assert risk == pytest.approx(theta.net.risk(there, data, LOSS), rel=1e-13)
    for panel, theta in zip(figures.lines[0], thetas, strict=True):
        for k, a in ((0, 0), (3, STEPS - 1), (2, 3)):
            there = moved(theta, (panel.landscape.alpha[a], random_direction(theta, (0, k))))
            risk = panel.landscape.risks[k, a]
            assert risk == pytest.approx(twin_risk(there, data), rel=1e-12)


def test_nothing_within_the_certified_radius_is_lower(repaired, example):
    figures, data = repaired[0], example.data
    for column, theta in ((0, example.repaired.theta), (2, example.theta_1)):
        radius = certify_cell(theta, data, LOSS).radius
        directions = [random_direction(theta, (0, k)).vector for k in range(DIRECTIONS)]
        for row, inside in zip(figures.level_sets, (1, GRID**2), strict=True):
            panel = row[column]
            for a, b in panel.certified[::40]:
                reach = abs(a * directions[0] + b * directions[1]).max()
                assert reach == pytest.approx(radius, rel=1e-12)
            found, ticks = 0, panel.landscape.alpha
            for i, j in np.ndindex(GRID, GRID):
                move = ticks[i] * directions[0] + ticks[j] * directions[1]
                if abs(move).max() <= radius:
                    found += 1
                    assert not panel.landscape.lower[i, j]
            assert found >= inside
        assert found == GRID**2  # from nearby all are within
        panel = figures.lines[0][column]
        expected = [radius / abs(d).max() for d in directions]
        np.testing.assert_allclose(panel.certified, expected, rtol=1e-12)
        assert panel.certified.min() > panel.landscape.alpha.max()
        assert not panel.landscape.lower.any()


def test_around_theta_prime_there_are_lower_points_nearby(repaired, example):
    figures, data, prime = repaired[0], example.data, example.repaired.theta_prime
    assert all(row[1].certified is None for row in (*figures.level_sets, *figures.lines))
    plane, lines = figures.level_sets[1][1].landscape, figures.lines[0][1].landscape
    assert 0 < plane.lower.sum() < GRID**2
    assert lines.lower_lines > 0
    assert not lines.lower[:, STEPS // 2].any()  # that is theta' itself
    i, j = np.unravel_index(plane.risks.argmin(), plane.risks.shape)
    moves = [(plane.alpha[n], random_direction(prime, (0, k))) for k, n in enumerate((i, j))]
    assert twin_risk(moved(prime, *moves), data) < twin_risk(example.repaired.theta, data)


def test_the_literal_figures_show_the_escape(literal, example):
    figures, found, data = literal[0], example.literal, example.data
    assert list(map(named, figures.level_sets)) == [[ESCAPED, ESCAPED, PRIME]]
    assert list(map(named, figures.lines)) == [[ESCAPED, PRIME]]
    assert all(panel.certified is None for panel in panels(figures))
    theta, prime, length = found.theta, found.theta_prime, found.escape.length
    random, plane, around = figures.level_sets[0]
    assert (random.escape, plane.escape, around.escape) == (None, (length, 0.0), None)
    assert plane.axes == ("the escape", "$d_1$")
    assert random.axes == around.axes == ("$d_1$", "$d_2$")
    nearby = 2.5 * falling_distance(prime, data, LOSS, 0)
    for panel, end in ((random, 2 * length), (plane, 2 * length), (around, nearby)):
        np.testing.assert_allclose(panel.landscape.alpha, end * np.linspace(-1, 1, 9))
    move = Parameters(theta.net, (found.escape.theta.vector - theta.vector) / length)
    assert np.linalg.norm(move.vector) == pytest.approx(1, rel=1e-12)
    d1, d2 = (random_direction(theta, (0, k)) for k in range(2))
    for panel, directions in ((random, (d1, d2)), (plane, (move, d1))):
        ticks = panel.landscape.alpha, panel.landscape.beta
        for i, j in ((0, 0), (6, 4), (8, 3)):
            there = moved(theta, (ticks[0][i], directions[0]), (ticks[1][j], directions[1]))
            expected = twin_risk(there, data)
            assert panel.landscape.risks[i, j] == pytest.approx(expected, rel=1e-12)
    # Half way to the border is the end of the escape.
    assert plane.landscape.risks[6, 4] == pytest.approx(found.escape.risk, rel=1e-13)
    assert plane.landscape.lower[6, 4]
    assert not random.landscape.lower.any()
    # At the end of the other axis the risk is higher about 8 times as much as it falls.
    rise = twin_risk(moved(theta, (plane.landscape.beta[-1], d1)), data) - found.risk
    assert rise == pytest.approx(8 * found.escape.decrease, rel=0.2)


def test_where_nothing_curves_the_plane_of_the_escape_is_a_square(example, tmp_path):
    # Of the absolute loss the second derivative is 0.
    found = example.literal
    figures = scan_figures(found, None, example.data, AbsoluteLoss(), tmp_path, 2, 1)
    _, plane, _ = figures.level_sets[0]
    ends = [-2 * found.escape.length, 2 * found.escape.length]
    np.testing.assert_allclose(plane.landscape.alpha, ends, rtol=1e-12)
    np.testing.assert_allclose(plane.landscape.beta, ends, rtol=1e-12)


def test_beside_the_literal_lines_there_is_one_along_the_escape(literal, example):
    figures, found = literal[0], example.literal
    lines, around = figures.lines[0]
    assert around.escape is None
    assert lines.axes == around.axes == ("$d_k$",)
    assert lines.landscape.risks.shape == (DIRECTIONS, FINE)
    assert around.landscape.risks.shape == (DIRECTIONS, STEPS)
    escape = lines.escape
    assert escape.beta is None
    assert escape.risks.shape == (1, FINE)
    assert escape.centre == lines.landscape.centre == pytest.approx(found.risk, rel=1e-13)
    move = Parameters(found.theta.net, found.escape.theta.vector - found.theta.vector)
    for scanned in (escape, lines.landscape):
        lengths = scanned.alpha / found.escape.length
        np.testing.assert_allclose(lengths, np.linspace(-2, 2, FINE), atol=1e-12)
    for length, risk in zip(lengths, escape.risks[0], strict=True):
        there = moved(found.theta, (length, move))
        assert risk == pytest.approx(twin_risk(there, example.data), rel=1e-12)
    np.testing.assert_array_equal(escape.lower[0], lengths > 1e-9)
    assert not lines.landscape.lower.any()
    for k, a in ((0, 3), (3, 20)):
        d = random_direction(found.theta, (0, k))
        there = moved(found.theta, (lines.landscape.alpha[a], d))
        expected = twin_risk(there, example.data)
        assert lines.landscape.risks[k, a] == pytest.approx(expected, rel=1e-12)
    assert around.landscape.lower_lines > 0


def test_an_escape_within_the_rounding_of_float32_is_not_followed(tiny, tmp_path):
    found = build(tiny.net, tiny.data, "literal", np.float32)
    assert 0 < found.escape.decrease < found.escape.rounding
    figures = scan_figures(found, None, tiny.data, LOSS, tmp_path, 3, 1)
    assert list(map(named, figures.level_sets)) == [[OPEN, PRIME]] * 2
    assert list(map(named, figures.lines)) == [[OPEN, PRIME]]
    assert all(panel.escape is None for panel in panels(figures))
    assert not any("escape" in name for name in files(tmp_path))


@pytest.mark.parametrize("grid", [1, 0, -3])
def test_a_grid_of_one_point_is_refused_before_any_scan(grid, tiny, tmp_path):
    cause = f"figures: expected a grid of 2 x 2 or more, got {grid}"
    with pytest.raises(ValueError, match=f"^{cause}$"):
        scan_tiny(tiny, tmp_path / "figures", grid)
    assert not files(tmp_path)


def test_without_theta_1_there_are_two_columns(tiny, tmp_path):
    figures = scan_tiny(tiny, tmp_path / "figures")
    expected = [CERTIFIED[0], PRIME]
    assert list(map(named, figures.level_sets)) == [expected, expected]
    assert list(map(named, figures.lines)) == [expected]
    names = {f"{n}_{kind}.npz" for n in ("theta", "theta_prime") for kind in KINDS}
    assert set(files(tmp_path / "figures")) == {"figures.json", *names}
    theta, plane = tiny.found.theta, figures.level_sets[1][0].landscape
    assert plane.risks.shape == (4, 4)
    moves = [(plane.alpha[n], random_direction(theta, (3, k))) for k, n in enumerate((0, 2))]
    expected = twin_risk(moved(theta, *moves), tiny.data)
    assert plane.risks[0, 2] == pytest.approx(expected, rel=1e-12)


def test_without_a_certificate_afar_is_a_hundred_times_nearby(tiny, tmp_path):
    found = build(tiny.net, tiny.data, "repaired", np.float32)
    figures = scan_figures(found, None, tiny.data, LOSS, tmp_path, 3, 1)
    assert named(figures.lines[0]) == [OPEN, PRIME]
    assert all(panel.certified is None for panel in panels(figures))
    for far, near in zip(*figures.level_sets, strict=True):
        ratio = far.landscape.alpha.max() / near.landscape.alpha.max()
        assert ratio == pytest.approx(150, rel=1e-12)


def test_where_the_risk_falls_nowhere_nearby_is_the_step_of_the_lower_point(
    tiny, tmp_path, monkeypatch
):
    monkeypatch.setattr(experiments, "falling_distance", lambda *_: 0.0)
    figures = scan_tiny(tiny, tmp_path, 3, 1)
    step = abs(tiny.found.lower.step)
    for panel in (*figures.level_sets[1], *figures.lines[0]):
        assert panel.landscape.alpha.max() == pytest.approx(step, rel=1e-12)


# Files

KINDS = ("afar", "nearby", "lines")


class Counting(Executor):
    """Do each call at once and count it; interrupt the one after `calls`."""

    def __init__(self, calls=math.inf):
        self.calls, self.count = calls, 0

    def submit(self, function, *args):
        if self.count == self.calls:
            raise KeyboardInterrupt
        self.count += 1
        future = Future()
        future.set_result(function(*args))
        return future


def test_the_numbers_are_in_the_files(repaired, literal):
    points = ("theta", "theta_prime", "theta_1")
    names = {f"{point}_{kind}.npz" for point in points for kind in KINDS}
    assert set(files(repaired[1])) == {"figures.json", *names}
    names = {f"theta_{kind}.npz" for kind in ("random", "escape", "lines", "escape_line")}
    names |= {f"theta_prime_{kind}.npz" for kind in ("nearby", "lines")}
    assert set(files(literal[1])) == {"figures.json", *names}
    for figures, folder in (repaired, literal):
        written = json.loads((folder / "figures.json").read_text())
        assert set(written) == {"level_sets", "lines"}
        entries = [e for name in ("level_sets", "lines") for row in written[name] for e in row]
        for entry, panel in zip(entries, panels(figures), strict=True):
            assert set(entry) == {"symbol", "words", "file", "axes", "certified", "escape"}
            assert (entry["symbol"], entry["words"]) == (panel.symbol, panel.words)
            assert entry["axes"] == list(panel.axes)
            with np.load(folder / entry["file"], allow_pickle=False) as arrays:
                assert np.array_equal(arrays["risks"], panel.landscape.risks)
                assert np.array_equal(arrays["alpha"], panel.landscape.alpha)
                assert ("beta" in arrays) == (panel.landscape.beta is not None)
                assert arrays["centre"] == panel.landscape.centre


def test_what_is_read_is_what_was_scanned(repaired, literal, tmp_path):
    for number, (figures, folder) in enumerate((repaired, literal)):
        same(read_figures(folder), figures)
        copy = folder.rename(tmp_path / str(number))
        same(read_figures(str(copy)), figures)
        copy.rename(folder)


def test_after_an_interruption_the_scans_go_on(tiny, tmp_path):
    whole, counting = tmp_path / "whole", Counting()
    expected = scan_tiny(tiny, whole, executor=counting)
    blocks = left = (4 * 16 + 2 * 2 * (STEPS - 1)) // 4
    assert counting.count == blocks
    folder = tmp_path / "broken"
    for calls in (6, 15):  # in the second scan, then from there in the fifth or sixth
        with pytest.raises(KeyboardInterrupt):
            scan_tiny(tiny, folder, executor=Counting(calls))
        with pytest.raises(ValueError, match=r"numbers of an earlier run, there is no .*\.json"):
            read_figures(folder)
        with pytest.raises(ValueError, match=r"expected a finished scan, got \d+ of \d+ risks"):
            for path in folder.iterdir():
                Landscape.load(path)
        found = [np.load(path)["done"][1:].reshape(-1, 4).all(axis=1) for path in folder.iterdir()]
        before, left = left, blocks - sum(done.sum() for done in found)
        assert left < before
    last = Counting()
    same(scan_tiny(tiny, folder, executor=last), expected)
    assert 0 < last.count == left
    assert files(folder) == files(whole)
    again = Counting()
    same(scan_tiny(tiny, folder, executor=again), expected)
    assert again.count == 0
    assert files(folder) == files(whole)


def test_threads_give_the_same_bits(tiny, tmp_path):
    with ThreadPoolExecutor(2) as executor:
        threads = scan_tiny(tiny, tmp_path / "threads", executor=executor)
    same(threads, scan_tiny(tiny, tmp_path / "none"))


@pytest.mark.parametrize(
    "other",
    [{"seed": 4}, {"grid": 5}, {"directions": 3}, "data"],
    ids=["seed", "grid", "directions", "data"],
)
def test_files_of_another_run_are_refused_and_kept(other, tiny, tmp_path):
    scan_tiny(tiny, tmp_path)
    before = files(tmp_path)
    file = "theta_lines" if other == {"directions": 3} else "theta_afar"
    cause = rf"{file}\.npz: expected .* same scan, got another one: remove it first$"
    with pytest.raises(ValueError, match=cause):
        if other == "data":
            data = TrainingSet(tiny.data.x[::-1], tiny.data.y[::-1])
            scan_figures(tiny.found, None, data, LOSS, tmp_path, 4, 2, 3)
        else:
            scan_tiny(tiny, tmp_path, **other)
    assert files(tmp_path) == before


def test_progress_names_the_scans(tiny, tmp_path, capsys):
    scan_tiny(tiny, tmp_path / "silent")
    assert capsys.readouterr() == ("", "")
    scan_tiny(tiny, tmp_path / "loud", progress=True)
    printed = capsys.readouterr()
    assert printed.out == ""
    for point in ("theta", "theta_prime"):
        for kind in KINDS:
            assert f"{point}_{kind}.npz: " in printed.err


@pytest.fixture
def written(repaired, tmp_path):
    """A copy of the files, to be damaged."""
    for name, content in files(repaired[1]).items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


@pytest.mark.parametrize("missing", ["folder", "figures.json", "a file in its place"])
def test_numbers_that_are_not_there_are_named(missing, written):
    folder = written
    if missing == "folder":
        folder = written / "none"
    elif missing == "figures.json":
        (written / "figures.json").unlink()
    else:
        folder = written / "theta_afar.npz"
    cause = f"expected the numbers of an earlier run, there is no {folder / 'figures.json'}"
    with pytest.raises(ValueError, match=re.escape(cause)):
        read_figures(folder)


def changed(figure="level_sets", **changes):
    """Return what changes the numbers of theta'."""

    def change(text):
        numbers = json.loads(text)
        numbers[figure][0][1].update(changes)
        return json.dumps(numbers)

    return change


def without(key, figure="level_sets"):
    def change(text):
        numbers = json.loads(text)
        del numbers[figure][0][1][key]
        return json.dumps(numbers)

    return change


def replaced(**figures):
    return lambda text: json.dumps({**json.loads(text), **figures})


DAMAGES = {
    "nothing": (lambda text: "", "line 1"),
    "cut": (lambda text: text[: len(text) // 2], "line"),
    "no JSON": (lambda text: "level sets", "line 1"),
    "no text": (lambda text: b"\xff\xfe\x00", "decode"),
    "a list": (lambda text: "[]", "TypeError"),
    "no lines": (lambda text: text.replace('"lines":', '"line":'), "'lines'"),
    "a number of rows": (replaced(level_sets=3), "'int'"),
    "a number in place of a row": (replaced(level_sets=[3]), "'int'"),
    "no rows": (replaced(level_sets=[]), "expected rows of panels, got none"),
    "an empty row": (replaced(lines=[[]]), "expected rows of panels, got none"),
    "an empty panel": (replaced(lines=[[{}]]), "'file'"),
    "no panel": (replaced(level_sets=[[3]]), "'int'"),
    "no name of a file": (changed(file=3), "'int'"),
    "no such file": (changed(file="theta_beyond.npz"), "theta_beyond.npz"),
    "a folder": (changed(file="."), "IsADirectoryError"),
    "lines in place of a plane": (
        changed(file="theta_prime_lines.npz"),
        "theta_prime_lines.npz: expected a plane, got lines",
    ),
    "a plane in place of lines": (
        changed("lines", file="theta_prime_afar.npz"),
        "theta_prime_afar.npz: expected lines, got a plane",
    ),
    "one direction in a plane": (
        changed(axes=["$d_1$"]),
        "theta_prime_afar.npz: expected symbol, words and 2 axes",
    ),
    "letters in place of directions": (changed(axes=[1, 2]), "expected symbol, words and 2 axes"),
    "a number in place of a symbol": (changed(symbol=3), "expected symbol, words and 2 axes"),
    "two directions of lines": (
        changed("lines", axes=["$d_1$", "$d_2$"]),
        "theta_prime_lines.npz: expected symbol, words and 1 axes",
    ),
    "corners of three numbers": (
        changed(certified=[[1, 2, 3]] * 4),
        "expected finite certified (4, 2), got (4, 3)",
    ),
    "corners of a line": (changed(certified=[1, 2]), "expected finite certified (3, 2), got (2,)"),
    "no corners": (changed(certified=[]), "expected finite certified (3, 2), got (0,)"),
    "corners that are nowhere": (changed(certified=[[1, None]] * 4), "expected finite certified"),
    "an escape of three numbers": (
        changed(escape=[1, 2, 3]),
        "theta_prime_afar.npz: too many values",
    ),
    "a plane in place of an escape": (
        changed("lines", escape="theta_prime_afar.npz"),
        "theta_prime_afar.npz: expected lines, got a plane",
    ),
    "many lines in place of an escape": (
        changed("lines", escape="theta_prime_lines.npz"),
        f"expected one line along the escape, got {DIRECTIONS}",
    ),
    "one alpha too many": (
        changed("lines", certified=[1] * (DIRECTIONS + 1)),
        f"expected finite certified ({DIRECTIONS},), got ({DIRECTIONS + 1},)",
    ),
    "an alpha for all lines": (
        changed("lines", certified=1.5),
        f"expected finite certified ({DIRECTIONS},), got ()",
    ),
    "certified words": (changed("lines", certified=["yes"] * DIRECTIONS), "'yes'"),
    "no such line of an escape": (changed("lines", escape="none.npz"), "none.npz"),
}
for missing in ("symbol", "words", "file", "axes", "certified", "escape"):
    DAMAGES |= {f"no {missing}": (without(missing), f"'{missing}'")}


@pytest.mark.parametrize(("damage", "words"), DAMAGES.values(), ids=DAMAGES)
def test_damaged_numbers_are_refused(damage, words, written):
    path = written / "figures.json"
    text = damage(path.read_text())
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=f"^{re.escape(f'{path}: ')}") as caught:
        read_figures(written)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def unfinished(path):
    with np.load(path) as file:
        arrays = dict(file)
    arrays["done"][-3:] = False
    np.savez(path, **arrays)


NPZ_DAMAGES = {
    "missing": lambda path: path.unlink(),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-40]),
    "empty": lambda path: path.write_bytes(b""),
    "another NPZ": lambda path: np.savez(path, a=np.ones(3)),
    "unfinished": unfinished,
}
NPZ_WORDS = {"unfinished": "expected a finished scan, got 22 of 25", "another NPZ": "'risks'"}


@pytest.mark.parametrize("name", NPZ_DAMAGES)
@pytest.mark.parametrize("file", ["theta_nearby.npz", "theta_1_lines.npz"])
def test_damaged_scans_are_refused_by_name(file, name, written):
    NPZ_DAMAGES[name](written / file)
    words = NPZ_WORDS.get(name, "").replace("22 of 25", r"\d+ of \d+")
    with pytest.raises(ValueError, match=rf"{re.escape(str(written / file))}.*{words}"):
        read_figures(written)


@pytest.mark.parametrize("name", NPZ_DAMAGES)
def test_a_damaged_escape_is_refused_by_name(name, literal, tmp_path):
    for file, content in files(literal[1]).items():
        (tmp_path / file).write_bytes(content)
    NPZ_DAMAGES[name](tmp_path / "theta_escape_line.npz")
    with pytest.raises(ValueError, match=r"figures\.json: .*theta_escape_line\.npz"):
        read_figures(tmp_path)


# Figures


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
def drawn(tmp_path, monkeypatch):
    """Return what draws one row of panels: the figure's axes and its pixels, from above."""

    def call(draw, *row):
        seen, save = [], Figure.savefig

        def savefig(figure, *args, **options):
            seen.append(figure)
            return save(figure, *args, **options)

        with monkeypatch.context() as patch:
            patch.setattr(Figure, "savefig", savefig)
            draw(tmp_path / "drawn.png", [row])
        [figure] = seen
        figure.set_dpi(200)
        return figure.axes, matplotlib.image.imread(tmp_path / "drawn.png")[..., :3]

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


@over_figures
@pytest.mark.parametrize(
    ("name", "start"), [("a.png", b"\x89PNG\r\n\x1a\n"), ("a.PDF", b"%PDF-")], ids=["png", "pdf"]
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


@over_figures
@pytest.mark.parametrize("name", ["figure.svg", "figure", "figure.png.txt"])
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
    row = [panel(BOWL), panel(SADDLE), panel(-BOWL), repaired[0].level_sets[1][1]]
    row.append(literal[0].level_sets[0][1])
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
    axes, _ = drawn(draw_level_sets, *row)
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
        [ax], _ = drawn(draw_level_sets, panel(scale * SADDLE))
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
    [ax], _ = drawn(draw_surfaces, panel(heights))
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
    [ax], _ = drawn(draw_lines, panel([TICKS**2], lines=True, escape=escape))
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
    [ax], _ = drawn(draw_surfaces, panel(heights))
    [surface] = ax.collections
    assert len(surface.get_facecolor()) == 64
    assert is_orange(surface.get_facecolor()[:, :3]).sum() == 4  # those that meet in the point


@pytest.mark.parametrize("end", [(0, 0), (0, -1), (-1, 0), (-1, -1)])
def test_the_lowest_end_of_a_surface_is_in_front(end, drawn):
    heights = BOWL.copy()
    heights[end] = -0.1
    [ax], _ = drawn(draw_surfaces, panel(heights))
    floor = {
        (i, j): proj3d.proj_transform(TICKS[i], TICKS[j], -0.1, ax.get_proj())[1]
        for i in (0, -1)
        for j in (0, -1)
    }
    assert min(floor, key=floor.get) == end


def test_surfaces_have_the_heights_of_the_risks(drawn):
    row = [panel(SADDLE), panel(1e-5 * SADDLE, 1e-3, symbol=THETA_PRIME)]
    (ax, small), _ = drawn(draw_surfaces, *row)
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
        repaired[0].lines[0][1],
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
    (ax, other), _ = drawn(draw_lines, steep, even)
    low, high = ax.get_ylim()
    assert low <= -1
    assert -low / (high - low) >= 0.2
    assert other.get_ylim()[1] >= 2


def test_titles_count_what_is_lower(drawn):
    some = panel(SADDLE, rounding=1e-3)
    (bowl, saddle), _ = drawn(draw_level_sets, panel(BOWL), some)
    assert bowl.get_title(loc="left") == "(a) $\\theta$: some words\n0 of 81 points are lower"
    count = (SADDLE < -1e-3).sum()
    assert 0 < count < 81
    title = f"(b) $\\theta$: some words\n{count} of 81 points are lower"
    assert saddle.get_title(loc="left") == title
    lines = np.stack([TICKS**2, TICKS, -TICKS, 1e-4 * TICKS])
    row = [panel(lines[:1], lines=True), panel(lines, lines=True, rounding=1e-3)]
    row.append(panel(lines[[0, 1, 0]], lines=True, escape=landscape(lines[2:3], lines=True)))
    row.append(panel(lines[[0]], lines=True, escape=landscape(lines[1:2], lines=True)))
    axes, _ = drawn(draw_lines, *row)
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
    axes, _ = drawn(draw_lines, *row)
    difference = rf"$R - R({symbol.strip('$')})$"
    assert [ax.get_ylabel() for ax in axes] == [difference] * 2
    [ax], _ = drawn(draw_surfaces, panel(SADDLE, symbol=symbol))
    assert words(ax) == [f"(a) {symbol}: some words\nheight {difference}"]
    [ax], _ = drawn(draw_level_sets, panel(SADDLE, symbol=symbol))
    assert ax.get_title(loc="left").startswith(f"(a) {symbol}: some words\n")


def test_the_certified_radius_is_an_outline_or_words(drawn):
    side = np.linspace(-1, 1, 41)[:-1]
    ones = np.ones(40)
    square = np.r_[np.c_[ones, side], np.c_[-side, ones], np.c_[-ones, -side], np.c_[side, -ones]]
    cases = {None: "none", 0.5: "outline", 0.99: "outline", 1.01: "words", 30.0: "words"}
    row = [panel(BOWL, certified=None if size is None else size * square) for size in cases]
    row.append(panel(BOWL, certified=square * [0.9, 8]))  # it leaves the plane upwards only
    axes, _ = drawn(draw_level_sets, *row)
    for ax, shown, expected in zip(axes, row, [*cases.values(), "outline"], strict=True):
        assert (INSIDE in words(ax)) == (expected == "words")
        assert bool(dashed(ax)) == (ax.get_legend() is not None) == (expected == "outline")
        if expected == "outline":
            [line] = dashed(ax)
            outline = shown.certified
            np.testing.assert_array_equal(line.get_xydata(), [*outline, outline[0]])
            [label] = ax.get_legend().get_texts()
            assert label.get_text() == "certified radius"
    lines = [TICKS**2] * 3
    row = [panel(lines, lines=True)]
    ends = ([1.1, 1.2, 9], [1.1, 0.9, 9], [0.1, 0.2, 0.3])
    row += [panel(lines, lines=True, certified=np.array(end)) for end in ends]
    axes, _ = drawn(draw_lines, *row)
    assert [INSIDE in words(ax) for ax in axes] == [False, True, False, False]


def test_all_is_within_the_radius_where_the_corners_are(drawn):
    diamond = np.array([(1, 0), (0, 1), (-1, 0), (0, -1)])  # its corners are outside the plane
    slanted = diamond @ [[3, 2], [2, 3]]  # two corners of the plane are within
    row = [panel(BOWL, certified=outline) for outline in (1.9 * diamond, slanted, 2.1 * diamond)]
    axes, _ = drawn(draw_level_sets, *row)
    assert [INSIDE in words(ax) for ax in axes] == [False, False, True]
    assert [len(dashed(ax)) for ax in axes] == [1, 1, 0]


def test_the_words_about_the_radius_are_those_of_the_paper_s_figures(drawn, repaired):
    figures, _ = repaired
    for row, expected in zip(figures.level_sets, ([0, 0, 0], [1, 0, 1]), strict=True):
        axes, _ = drawn(draw_level_sets, *row)
        assert [INSIDE in words(ax) for ax in axes] == expected
        assert [bool(dashed(ax)) for ax in axes] == [not sum(expected), 0, not sum(expected)]
    axes, _ = drawn(draw_lines, *figures.lines[0])
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
    [(1.0, 0), (0.2, 0), (0.02, -2), (3e-3, -3), (5e-7, -7), (50, 0), (900, 0), (2e4, 4)],
)
def test_labels_have_the_power_of_ten(extent, power, drawn):
    lines = extent * np.stack([TICKS**2, TICKS])
    for draw, shown in (
        (draw_level_sets, panel(SADDLE, extent)),
        (draw_lines, panel(lines, extent, lines=True, rounding=0)),
    ):
        [ax], _ = drawn(draw, shown)
        unit = rf" [$10^{{{power}}}$]" if power else ""
        up = "$R - R(\\theta)$" if draw is draw_lines else "distance along up"
        assert (ax.get_xlabel(), ax.get_ylabel()) == ("distance along across" + unit, up + unit)
        for axis in (ax.xaxis, ax.yaxis):
            places, numbers = tick_numbers(axis)
            assert len(numbers) >= 3
            assert 0 in numbers
            np.testing.assert_allclose(numbers * 10.0**power, places, rtol=5e-3, atol=1e-12)


def test_an_arrow_shows_the_escape_in_its_plane(drawn, literal):
    plane = literal[0].level_sets[0][1]
    axes, _ = drawn(draw_level_sets, plane, panel(BOWL))
    arrows = [[t for t in ax.texts if isinstance(t, Annotation)] for ax in axes]
    assert [len(found) for found in arrows] == [1, 0]
    [[arrow], _] = arrows
    assert to_rgb(arrow.arrow_patch.get_edgecolor()) == (0, 0, 0)
    assert (arrow.xy, arrow.xyann) == (plane.escape, (0, 0))
    assert arrow.arrow_patch is not None
    assert axes[0].get_xlabel().startswith("distance along the escape")


def test_the_escape_is_a_line_of_its_own(drawn, literal):
    lines = literal[0].lines[0][0]
    (ax, other), picture = drawn(draw_lines, lines, literal[0].lines[0][1])
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


def test_places_without_a_panel_stay_empty(tmp_path, monkeypatch):
    seen, save = [], Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda figure, *a, **o: (seen.append(figure), save(figure, *a, **o))
    )
    draw_level_sets(tmp_path / "a.png", [[panel(BOWL), panel(BOWL)], [panel(SADDLE)]])
    assert [ax.axison for ax in seen[0].axes] == [True, True, True, False]
    letters = [ax.get_title(loc="left")[:3] for ax in seen[0].axes]
    assert letters == ["(a)", "(b)", "(c)", ""]


FLAT_PLANES = {
    "a flat plane": np.zeros((9, 9)),
    "the least that is lower": np.where(BOWL == 0, -1e-11, 0),
    "two heights": np.where(TICKS < 0, 0, -1) * np.ones((9, 1)),
    "2 x 2": np.array([[1, 1.01], [1.02, 1]]),
    "a flat 2 x 2": np.ones((2, 2)),
    "all of 2 x 2 lower": np.array([[-1, -1.01], [-1.02, -1]]),
}


@pytest.mark.filterwarnings("error::UserWarning", "error::RuntimeWarning")
@pytest.mark.parametrize("draw", [draw_level_sets, draw_surfaces], ids=["level sets", "surfaces"])
@pytest.mark.parametrize("heights", FLAT_PLANES.values(), ids=FLAT_PLANES)
def test_planes_with_little_to_see_are_drawn(heights, draw, drawn):
    [ax], picture = drawn(draw, panel(heights))
    assert ax.get_xlim() == (-1, 1)
    assert is_orange(region(picture, ax)[0]).any() == (heights < 0).any()
    if draw is draw_surfaces:
        low, high = ax.get_zlim()
        assert low == pytest.approx(heights.min(), rel=1e-6)
        assert high == pytest.approx(heights.max() if np.ptp(heights) else low + 1)


@pytest.mark.filterwarnings("error::UserWarning", "error::RuntimeWarning")
@pytest.mark.parametrize("escape", [None, 0 * TICKS, TICKS**2, -TICKS], ids=lambda y: y is not None)
@pytest.mark.parametrize("height", [0.0, 1.0])
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


@over_figures
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_risks_that_are_not_finite_are_refused(draw, value, tmp_path):
    lines = draw is draw_lines
    heights = np.stack([TICKS**2, TICKS]) if lines else BOWL.copy()
    heights[1, 2] = value
    row = [panel(heights[:1] if lines else BOWL, lines=lines)]
    row.append(panel(heights, lines=lines, symbol=THETA_PRIME))
    cause = f"figure of {THETA_PRIME}: expected finite risks"
    with pytest.raises(ValueError, match=f"^{re.escape(cause)}$"):
        draw(tmp_path / "figure.png", [row])
    assert not files(tmp_path)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (4, 1)])
def test_planes_of_less_than_two_by_two_points_are_refused(shape, tmp_path):
    for draw, name in ((draw_level_sets, "level sets"), (draw_surfaces, "surface")):
        cause = f"{name}: expected 2 x 2 points or more, got {shape}"
        with pytest.raises(ValueError, match=f"^{re.escape(cause)}$"):
            draw(tmp_path / "figure.png", [[panel(np.zeros(shape))]])
    assert not files(tmp_path)
