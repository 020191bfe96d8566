"""The program of trained minima: what it writes, how it ends after Ctrl-C and goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
from matplotlib.image import imread
from shared import ROOT, Pickling, load_program

from tinyspur.studies.trained_problems import teacher

PROGRAM = ROOT / "demos" / "trained_minima.py"


@pytest.fixture
def program(monkeypatch):
    program = load_program(PROGRAM)
    monkeypatch.setattr(program, "processes", Pickling)
    monkeypatch.setattr(
        program, "PROBLEMS", {f"teacher-{n}": partial(teacher, n, 40) for n in (2, 3)}
    )
    return program


def test_it_writes_a_report_a_figure_and_every_training(program, tmp_path, capsys):
    options = ["--runs", "2", "--workers", "2", "--out", str(tmp_path)]
    assert program.main(options) == 0
    printed = capsys.readouterr().out
    assert printed.count("2 trainings: ") == 2
    report = json.loads((tmp_path / "trained_minima.json").read_text())
    assert [problem["name"] for problem in report["problems"]] == ["teacher-2", "teacher-3"]
    assert [len(problem["ends"]) for problem in report["problems"]] == [2, 2]
    assert imread(tmp_path / "trained_minima.png").shape[1] > 1000
    names = ["0.json", "0.npz", "1.json", "1.npz", "data.npz", "known.npz"]
    for name in ("teacher-2", "teacher-3"):
        assert sorted(path.name for path in (tmp_path / name).iterdir()) == names
    before = (tmp_path / "trained_minima.json").read_bytes()
    assert program.main(options) == 0
    assert (tmp_path / "trained_minima.json").read_bytes() == before
    assert program.main([*options, "--problems", "teacher-3", "--seed", "1"]) == 2
    assert "of other samples or settings" in capsys.readouterr().err
    assert (tmp_path / "trained_minima.json").read_bytes() == before


def test_what_is_finished_is_kept_after_ctrl_c_and_no_worker_is_left(tmp_path):
    code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    code += f"sys.path.insert(0, {str(PROGRAM.parent)!r}); import trained_minima as program; "
    code += "sys.exit(program.main())"
    options = ["--problems", "teacher-6", "--runs", "200", "--workers", "1", "--out", str(tmp_path)]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *options],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("*/*.json")) and time.monotonic() < deadline:
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGINT)
        printed, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130 and b"Traceback" not in printed + errors
    done = sorted((tmp_path / "teacher-6").glob("*.json"))
    said = (
        f"interrupted: {len(done)} finished trainings are in {tmp_path}, the same command goes on"
    )
    assert errors.decode().splitlines()[-1] == said
    assert done and all(path.with_suffix(".npz").exists() for path in done)
    assert all(json.loads(path.read_text())["end"] for path in done)
    assert not list(tmp_path.rglob(".*"))
    with pytest.raises(ProcessLookupError):  # no process of the group is left
        os.killpg(process.pid, 0)


@pytest.mark.parametrize(
    "options",
    [
        ["--runs", "0"],
        ["--workers", "0"],
        ["--seed", "-1"],
        ["--problems", "none"],
        ["--starts", "1"],
    ],
)
def test_bad_options_end_in_one_line(options, program, tmp_path, capsys):
    try:
        status = program.main([*options, "--out", str(tmp_path)])
    except SystemExit as end:
        status = end.code
    errors = capsys.readouterr().err
    assert status == 2 and errors.startswith("error: ") and errors.count("\n") == 1
    assert not list(tmp_path.iterdir())
