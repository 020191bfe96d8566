"""The benchmark runs, and its table says what its file says."""

import json
import sys

import pytest
import torch
from shared import ROOT, load_program

from tinyspur.studies import speed

PROGRAM = ROOT / "demos" / "benchmark.py"


@pytest.fixture(scope="module")
def benchmark():
    return load_program(PROGRAM)


def test_every_row_is_measured_and_written(benchmark, tmp_path, capsys, monkeypatch):
    """With narrower convolutions, smaller products and fewer threads than a user measures."""
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    monkeypatch.setattr(speed, "GEMM", 64)
    monkeypatch.setattr(speed, "COPIED", 64)
    monkeypatch.setattr(speed, "WARM", 0.0)
    monkeypatch.setattr(benchmark, "MANY", 1)
    monkeypatch.setattr(benchmark, "SIDE", 4)
    monkeypatch.setattr(benchmark, "PAPER", (2, 2, 3, 3, 4, 4, 4))
    narrow = tuple((min(C, 3), T // 16) for C, T in benchmark.WIDE)
    monkeypatch.setattr(benchmark, "WIDE", tuple((C, T + n) for n, (C, T) in enumerate(narrow)))
    path = tmp_path / "table.json"
    options = ["--repeats", "1", "--batch", "1", "--samples", "20", "--plane", "2"]
    assert benchmark.main([*options, "--json", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
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
        assert any(line.startswith(row["name"]) for line in lines)
    found = report["certified"]
    assert found["samples"] == 50 and found["step"] > 0
    said = f"{found['certificate'] / found['step']:.1f} times a risk and gradient"
    assert any(said in line for line in lines if line.startswith("cell certificate, 50 images"))


@pytest.mark.parametrize("option", ["--repeats", "--batch", "--samples", "--plane"])
def test_a_number_that_is_too_small_is_refused_in_one_line(option, benchmark, capsys):
    assert benchmark.main([option, "0"]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1


@pytest.mark.parametrize("python", ["none", sys.executable])
def test_a_python_without_landscaper_is_refused_before_anything_is_timed(
    python, benchmark, tmp_path, capsys
):
    assert benchmark.main(["--landscaper", str(tmp_path / python)]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: --landscaper: expected a Python")
    assert printed.err.count("\n") == 1
    assert not printed.out


def test_each_of_two_is_timed_after_it_ran_for_long_enough(monkeypatch):
    """By a clock of our own: what spins for 30 ms after the other doubles no time."""
    now, ran, other = [0.0], [], [0.0]
    monkeypatch.setattr(speed.time, "perf_counter", lambda: now[0])

    def first():
        spins = now[0] < other[0] + 0.03
        now[0] += 0.002 if spins else 0.001
        ran.append(spins)

    def second():
        now[0] += 0.004
        other[0] = now[0]

    assert speed.in_turn(first, second, 3) == pytest.approx((0.001, 0.004))
    assert any(ran)
