"""The survey of activations and widths: its rows, its lines, its program."""

import io
import json
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.image import imread
from shared import ROOT, SQUARED, Pickling, load_program

from tinyspur import datasets
from tinyspur.certificates.curvature import certify_curvature
from tinyspur.constructions.smooth import lower_point, smooth_minimum
from tinyspur.engine.activations import ELU, GELU, Softplus, Tanh
from tinyspur.engine.network import Network
from tinyspur.studies.smooth_survey import STEPS, moved_targets, risks_along, survey

PROGRAM = ROOT / "demos" / "smooth_activations.py"
FILES = ["smooth_activations.json", "smooth_activations.png", "smooth_widths.png"]
RESULTS = "smooth_activations.results"
NAMES = ["sigmoid", "tanh", "softplus", "SiLU", "GELU", "ELU", "sine", "arctan", "swish, beta=2"]
SPECS = ["sigmoid", "tanh", "softplus", "silu", "gelu", "elu", "sine", "arctan", "swish"]
VERDICTS = ("  spurious local minimum", "  local minimum, not shown to be spurious")
SMALL = {"samples": 40, "dimensions": 2, "directions": 4, "starts": 1, "iterations": 50}


def options_of(settings):
    return [str(part) for name, value in settings.items() for part in (f"--{name}", value)]


def main(*options):
    """Run the program in this process; return its exit status."""
    try:
        program = load_program(PROGRAM)
        program.processes = Pickling
        return program.main([*map(str, options)])
    except SystemExit as end:
        return end.code


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """The program on images: what it printed, its folder, its JSON."""
    out = tmp_path_factory.mktemp("images")
    options = [*options_of(SMALL), "--hidden", 4, 3, "--widths", 1, 50, "--out", out]
    with redirect_stdout(io.StringIO()) as printed, redirect_stderr(io.StringIO()) as errors:
        assert main(*options) == 0, errors.getvalue()
    ran = SimpleNamespace(stdout=printed.getvalue(), stderr=errors.getvalue())
    return ran, out, json.loads((out / FILES[0]).read_text())


def random_inputs(samples=30, dimension=2, seed=0):
    return np.random.default_rng(seed).normal(size=(samples, 1, dimension))


def risk_of(outputs, y):
    """Return the risk by a plain sum."""
    return sum(((o - t) ** 2).sum() / 2 for o, t in zip(np.asarray(outputs), y, strict=True)) / len(
        y
    )


# The program


def test_the_program_prints_a_row_for_each_activation_and_each_width(images):
    ran, out, _ = images
    assert re.fullmatch(r"minima of 11 networks \.\.\. \d+\.\d s\n", ran.stderr)
    lines = ran.stdout.splitlines()
    assert lines[0] == "40 inputs of dimension 2, hidden layers [4, 3]"
    assert lines[10] == "one hidden layer, tanh"
    rows = lines[1:10] + lines[11:13]
    assert [row[:14].strip() for row in rows] == [*NAMES, "width 1", "width 50"]
    for row in rows:
        assert "R 1 " in row
        assert "lowest of 4 lines R" in row
        assert row.endswith(VERDICTS)
    assert lines[-1].endswith(f"smooth_activations.json and two figures in {out}")
    said = " ".join(lines[13:15])
    words = r"each certified point is within (\S+) of an exact local minimum, for targets within "
    distance, targets = map(float, re.match(words + r"(\S+) of", said).groups())
    assert 0 < distance < 1e-11
    assert 0 < targets < 1e-13
    assert len(lines) == 16


def test_what_the_program_writes_is_there_and_no_more(images):
    _, out, _ = images
    assert sorted(path.name for path in out.iterdir()) == sorted([*FILES, RESULTS])


@pytest.mark.parametrize("part", ["activations", "widths"])
def test_the_rows_of_the_report_can_be_rebuilt_and_checked(images, part):
    report = images[2][part]
    x = datasets.bundled().subset(40, 0).principal_components(2)
    names = NAMES if part == "activations" else ["width 1", "width 50"]
    assert [row["name"] for row in report] == names
    for row in report:
        found = smooth_minimum(Network.from_spec(row["network"]), x, seed=0)
        assert certify_curvature(found.theta, found.data, SQUARED).as_dict() == row["certificate"]
        assert row["certificate"]["holds"] is True
        assert row["certificate"]["radius"] > 0
        assert row["certificate"]["lambda_min_H"] > 0
        assert row["certificate"]["lambda_min_M"] > 0
        assert row["samples"] == 40
        assert row["expansion_point"] == found.expansion_point
        assert row["risk"] == pytest.approx(1, rel=1e-12)
        outputs = found.theta.net.forward(found.theta, x)
        assert risk_of(outputs, found.data.y) == pytest.approx(row["risk"], rel=1e-12)
        lower = lower_point(found, starts=1, iterations=50, seed=0)
        reached = risk_of(lower.net.forward(lower, x), found.data.y)
        assert reached == pytest.approx(row["reached"], rel=1e-9, abs=1e-25)
        lowest = risks_along(found, 4)[:, 1:].min()  # without the minimum itself
        assert row["lowest_along_directions"] == pytest.approx(lowest, rel=1e-12)
        assert row["verdict"] == VERDICTS[int(reached > 0.99)].strip()
        assert reached < 0.99 or row["name"] == "width 1"  # one start does not find what is lower


def test_the_networks_are_those_that_were_asked_for(images):
    report = images[2]
    assert set(report) == {"activations", "widths"}
    for row in report["activations"]:
        assert [layer["width"] for layer in row["network"]["layers"]] == [4, 3, 1]
    names = [row["network"]["activation"]["name"] for row in report["activations"]]
    assert names == SPECS
    widths = [[layer["width"] for layer in row["network"]["layers"]] for row in report["widths"]]
    assert widths == [[1, 1], [50, 1]]
    assert {row["network"]["activation"]["name"] for row in report["widths"]} == {"tanh"}


def test_networks_wider_than_there_are_samples_have_points_without_risk(images):
    one, wide = images[2]["widths"]
    assert wide["reached"] < 1e-20
    assert 1e-3 < one["reached"] <= one["risk"]
    assert wide["risk"] == pytest.approx(1)


@pytest.mark.parametrize("name", FILES[1:])
def test_the_figures_show_something_in_every_panel(images, name):
    picture = imread(images[1] / name)[..., :3]
    assert picture.shape[0] > 400
    assert picture.shape[1] > 1000
    rows, columns = (3, 3) if name == FILES[1] else (1, 2)
    for row in np.array_split(picture, rows):
        for panel in np.array_split(row, columns, axis=1):
            assert panel.std() > 0.05
    colours = (picture * 255).round().astype(int)
    for colour in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)):  # the minimum, and what is lower
        assert (colours == colour).all(axis=-1).any()


def test_random_inputs_are_normal_and_follow_the_seed(tmp_path, monkeypatch):
    quick = options_of(SMALL | {"directions": 1, "iterations": 3})
    reports = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda *_, **__: None)  # slow
    for seed, folder in ((0, "a"), (0, "b"), (1, "c")):
        out = tmp_path / folder
        assert main("--data", "random", *quick, "--seed", seed, "--widths", 2, "--out", out) == 0
        reports.append(json.loads((out / FILES[0]).read_text()))
    assert reports[0] == reports[1] != reports[2]
    for seed, report in ((0, reports[0]), (1, reports[2])):
        x = np.random.default_rng(seed).standard_normal((40, 1, 2))
        for row in report["activations"]:
            assert [layer["width"] for layer in row["network"]["layers"]] == [7, 5, 4, 1]
            found = smooth_minimum(Network.from_spec(row["network"]), x, seed=seed)
            assert found.certificate.as_dict() == row["certificate"]


@pytest.mark.parametrize(
    "options",
    [
        ["--data", "cifar"],
        ["--samples", "1"],
        ["--samples", "many"],
        ["--samples", "5", "--dimensions", "2"],  # d(d+3)/2 + 1 = 6
        ["--samples", "4001"],
        ["--samples", "40", "--dimensions", "40"],
        ["--dimensions", "0"],
        ["--hidden", "4", "0"],
        ["--hidden"],
        ["--widths", "-1"],
        ["--directions", "0"],
        ["--starts", "0"],
        ["--iterations", "0"],
        ["--seed", "-1"],
        ["--batch", "3"],
    ],
    ids=" ".join,
)
def test_bad_options_end_in_one_line(options, tmp_path, capsys):
    assert main(*options, "--out", tmp_path) == 2
    printed = capsys.readouterr()
    assert re.fullmatch(r"(minima of 16 networks \.\.\.\n)?error: .*\n", printed.err)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_a_file_is_an_error_and_stays(tmp_path, capsys):
    (tmp_path / "file").write_text("kept")
    assert main("--out", tmp_path / "file") == 2
    assert re.fullmatch(r"error: .*\n", capsys.readouterr().err)
    assert (tmp_path / "file").read_text() == "kept"


# Rows


@pytest.fixture(scope="module")
def rows():
    networks = [("a", Softplus(), [3]), ("b", ELU(), [2, 3]), ("c", Tanh(), [30])]
    return survey(random_inputs(), networks, 5, 1, 40, seed=2)


def test_a_survey_has_a_row_for_each_network(rows):
    assert [row.name for row in rows] == ["a", "b", "c"]
    assert [row.found.theta.net.shapes[1:] for row in rows] == [
        ((3,), (1,)),
        ((2,), (3,), (1,)),
        ((30,), (1,)),
    ]
    for row in rows:
        assert row.found.certificate.holds
        assert row.verdict == "spurious local minimum"
        assert row.reached < 0.9
        assert str(row).startswith(f"{row.name:<14}a ")
        assert json.loads(json.dumps(row.as_dict())) == row.as_dict()
    assert rows[2].reached < 1e-20


def test_an_executor_finds_the_same_rows_and_a_second_call_reads_them(rows, tmp_path):
    networks = [("a", Softplus(), [3]), ("b", ELU(), [2, 3]), ("c", Tanh(), [30])]
    where = {"path": tmp_path / "survey.results", "seed": 2}
    with ThreadPoolExecutor(2) as executor:
        found = survey(random_inputs(), networks, 5, 1, 40, executor=executor, **where)
    read = survey(random_inputs(), networks, 5, 1, 40, **where)
    assert (tmp_path / "survey.results").read_bytes().count(b"\n") == 1 + 3
    for row, other, again in zip(rows, found, read, strict=True):
        assert str(row) == str(other) == str(again)
        assert row.found.theta == other.found.theta == again.found.theta
        assert np.array_equal(row.lines, again.lines) and row.as_dict() == again.as_dict()


def test_the_risks_along_lines_are_those_at_the_distances(rows):
    for row in rows:
        theta, data, rng = row.found.theta, row.found.data, np.random.default_rng(2)
        assert row.lines.shape == (5, len(STEPS))
        assert STEPS[0] == 0
        np.testing.assert_allclose(row.lines[:, 0], 1, rtol=1e-12)
        for line in row.lines:
            d = rng.standard_normal(theta.net.size)
            for n in (1, 7, 30):
                moved = theta.copy()
                moved.vector[...] += STEPS[n] * d / np.linalg.norm(d)
                outputs = theta.net.forward(moved, data.x)
                assert line[n] == pytest.approx(risk_of(outputs, data.y), rel=1e-10)


def test_along_lines_nothing_near_the_minimum_is_lower():
    x = random_inputs()
    for sigma in (Softplus(), GELU(), Tanh()):
        (row,) = survey(x, [("n", sigma, [3, 2])], 20, 1, 1)
        near = max(STEPS[1], row.found.certificate.radius) >= STEPS
        assert near.sum() >= 2
        assert (row.lines[:, near] >= row.found.certificate.risk * (1 - 1e-12)).all()


def test_the_verdict_says_no_more_than_was_proved(rows):
    row = rows[0]
    higher = replace(row, reached=2.0)
    assert higher.verdict == "local minimum, not shown to be spurious"
    equal = replace(row, reached=row.found.certificate.risk)
    assert equal.verdict == "local minimum, not shown to be spurious"
    broken = smooth_minimum(row.found.theta.net, row.found.data.x)
    broken.theta.W[1].weights[...] = 0.1
    broken = type(broken)(
        broken.theta,
        broken.data,
        broken.expansion_point,
        certify_curvature(broken.theta, broken.data, SQUARED),
    )
    assert replace(row, found=broken, reached=0.1).verdict.startswith("undecided: ")


def test_a_risk_that_is_lower_by_rounding_alone_shows_nothing(rows):
    for row in rows:
        below = row.found.certificate.risk * (1 - 2e-16)
        assert below < row.found.certificate.risk
        assert replace(row, reached=below).verdict != "spurious local minimum"


def test_targets_that_move_are_no_reason_to_call_a_point_lower():
    x = random_inputs()
    (row,) = survey(x, [("n", Tanh(), [3, 2])], 1, 1, 5)
    found, lower = row.found, lower_point(row.found, 1, 5)
    rng = np.random.default_rng(0)
    for size in (1e-3, 1.0):
        moved = replace(found, certificate=replace(found.certificate, targets=size))
        for point in (found.theta, lower):
            risks = [risk_of(point.net.forward(point, x), found.data.y)]
            for _ in range(20):
                change = size * rng.choice([-1, 1], found.data.y.shape)
                risks.append(risk_of(point.net.forward(point, x), found.data.y + change))
            assert max(abs(r - risks[0]) for r in risks) <= moved_targets(point, moved)
    refused = replace(found, certificate=replace(found.certificate, targets=np.inf))
    assert moved_targets(lower, refused) == np.inf
    assert row.rounding >= moved_targets(lower, found)
