"""The benchmark runs, and its table says what its file says."""

import json

import pytest
from shared import ROOT, run_python

PROGRAM = ROOT / "demos" / "benchmark.py"


def test_every_row_is_measured_and_written(tmp_path):
    path = tmp_path / "table.json"
    options = ("--repeats", 1, "--batch", 1, "--samples", 20, "--plane", 2)
    ran = run_python(PROGRAM, *options, "--json", path)
    assert ran.returncode == 0, ran.stderr
    report = json.loads(path.read_text())
    assert report["cores"] >= 1
    assert report["peaks"].keys() == {"float64", "float32"}
    names = [(row["name"], row["dtype"]) for row in report["rows"]]
    assert len(names) == len(set(names)) == 2 * ((6 + 10 + 6) * 2 + 2 + 2) + 3
    assert sum("loss-landscapes" in name for name, _ in names) == 2
    for row in report["rows"]:
        assert row["seconds"] > 0
        assert row["flops"] > 0
        assert row["ratio"] == pytest.approx(row["other"] / row["seconds"])
        assert any(line.startswith(row["name"]) for line in ran.stdout.splitlines())


@pytest.mark.parametrize("option", ["--repeats", "--batch", "--samples", "--plane"])
def test_a_number_that_is_too_small_is_refused_in_one_line(option):
    ran = run_python(PROGRAM, option, 0)
    assert ran.returncode == 2
    assert ran.stderr.startswith("error: ")
    assert ran.stderr.count("\n") == 1
