"""The paper's landscapes: the numbers are PyTorch's, and what is read is what was scanned."""

import json
import math
import re
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch_twin
from paper_example import build, readme_example

from tinyspur import Conv, Dense, Network, TrainingSet
from tinyspur.certificates import certify_cell
from tinyspur.engine.activations import ReLU
from tinyspur.engine.losses import AbsoluteLoss, CrossEntropy, SquaredLoss
from tinyspur.engine.parameters import Parameters
from tinyspur.landscape.directions import random_direction
from tinyspur.landscape.risks import Landscape
from tinyspur.studies import paper_figures as experiments
from tinyspur.studies.paper_figures import (
    FINE,
    STEPS,
    falling_distance,
    points_of,
    read_figures,
    scan_figures,
)

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


@pytest.fixture(scope="module")
def example():
    """The README's network on images of 7 x 7 pixels, and the points of both variants."""
    return readme_example()


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
    assert found.verdict.startswith("refuted: " if falls else "undecided: not certified")
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
            assert f"{point}_{kind}.npz ... " in printed.err


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
