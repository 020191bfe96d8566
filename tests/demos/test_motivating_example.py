"""The figures of the paper, drawn from networks that compute them."""

import re

import numpy as np
import pytest
from matplotlib.image import imread
from shared import ROOT, run_here

PROGRAM = ROOT / "demos" / "motivating_example.py"


def least_risk(samples, groups):
    """Return the risk of least squares in groups of equal size, without the package."""
    x = np.linspace(-1, 1, samples)
    y = x**2 + np.sin(3 * x) / 4
    parts = np.split(np.arange(samples), [round(k * samples / groups) for k in range(1, groups)])
    residuals = [y[part] - np.polyval(np.polyfit(x[part], y[part], 1), x[part]) for part in parts]
    return (np.concatenate(residuals) ** 2).sum() / 2 / samples


def test_the_program_draws_three_fits_and_says_what_holds(tmp_path, capsys):
    ran = run_here(PROGRAM, capsys, "--samples", 24, "--out", tmp_path)
    assert ran.returncode == 0, ran.err
    assert not ran.err
    heads = re.findall(r"Figure 1\((.)\): (\d) groups, (\w+) auxiliary .*R = (\S+)", ran.out)
    assert [head[:2] for head in heads] == [("a", "2"), ("b", "3"), ("c", "4")]
    assert heads[0][2] == "no"
    assert "1" in [head[2] for head in heads[1:]]
    risks = [float(head[3]) for head in heads]
    assert risks[1:] == pytest.approx([least_risk(24, 3), least_risk(24, 4)], rel=1e-5)
    assert risks == sorted(risks, reverse=True)
    printed = re.findall(r"max-min as printed: (.*)", ran.out)
    gates = re.findall(r"gates: +(.*)", ran.out)
    assert gates == [f"certified local minimum, {K} pattern classes" for K in (2, 3, 4)]
    assert printed[0] == gates[0]
    assert any(words.startswith("not certified") for words in printed)
    assert len(printed) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["motivating_example.png"]
    picture = imread(tmp_path / "motivating_example.png")
    assert picture.shape[0] > 600
    assert picture.shape[1] > 1000
    rows, columns = np.array_split(np.arange(picture.shape[0]), 2), 3
    for row in rows:  # every one of the six places has something in it
        for part in np.array_split(picture[row, :, :3], columns, axis=1):
            assert part.std() > 0.05


@pytest.mark.parametrize(
    "options", [["--samples", "7"], ["--samples", "many"], ["--groups", "3"], ["--samples", "-1"]]
)
def test_bad_options_end_in_one_line(options, tmp_path, capsys):
    ran = run_here(PROGRAM, capsys, *options, "--out", tmp_path)
    assert ran.returncode == 2
    assert ran.err.startswith("error: ")
    assert ran.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_a_file_is_an_error(tmp_path, capsys):
    (tmp_path / "file").write_text("kept")
    ran = run_here(PROGRAM, capsys, "--out", tmp_path / "file")
    assert ran.returncode == 2
    assert ran.err.startswith("error: ")
    assert ran.err.count("\n") == 1
    assert (tmp_path / "file").read_text() == "kept"
