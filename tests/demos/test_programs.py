"""What holds for every program: how it ends after Ctrl-C, and what it does not replace."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from shared import ROOT, load_program

CHECKER = ROOT / "demos" / "check_proof.py"  # it needs nothing of the package and writes nothing
PROGRAMS = sorted(set((ROOT / "demos").glob("*.py")) - {CHECKER})
OUTPUTS = [
    *[("atlas", name) for name in ("atlas.npz", "atlas.png")],
    *[("audit", name) for name in ("audit.json", "audit.png")],
    ("benchmark", "report.json"),
    *[("cifar_spurious", name) for name in ("report.json", "figure.png", "theta.npz")],
    ("motivating_example", "motivating_example.png"),
    *[("smooth_activations", f"smooth_activations.{kind}") for kind in ("json", "png")],
    ("smooth_activations", "smooth_widths.png"),
    *[("trained_minima", f"trained_minima.{kind}") for kind in ("json", "png")],
]


def where(name, folder):
    """Return the options that make a program write to a folder."""
    return (
        ["--json", str(folder / "report.json")] if name == "benchmark" else ["--out", str(folder)]
    )


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_ctrl_c_ends_each_program_in_one_line_with_status_130(path, tmp_path, monkeypatch, capsys):
    def interrupt(options):
        raise KeyboardInterrupt

    program = load_program(path)
    monkeypatch.setattr(program, "run", interrupt)
    assert program.main(where(path.stem, tmp_path / "out")) == 130
    assert re.fullmatch(r"interrupted(: .*)?\n", capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_the_help_of_each_program_names_defaults_as_they_are_typed(path, capsys):
    with pytest.raises(SystemExit):
        load_program(path).parse(["-h"])
    text = " ".join(capsys.readouterr().out.split())
    assert "(default: " in text
    assert not re.findall(r"\(default: (?:None|False|\[)", text)


COMMANDS = [*PROGRAMS, "-m tinyspur certify theta.npz"]
ALIKE = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); "
ALIKE += (
    "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"  # not ignored in the background
)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: str(command).split("/")[-1])
def test_ctrl_c_ends_each_program_in_one_line_while_it_imports(command, tmp_path):
    words = str(command).split() if command not in PROGRAMS else [str(command)]
    process = subprocess.Popen(
        [sys.executable, "-c", ALIKE, *words],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=tmp_path,
    )
    maps = Path(f"/proc/{process.pid}/maps")
    deadline = time.monotonic() + 60
    while "numpy" not in maps.read_text() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    printed, errors = process.communicate(timeout=60)
    assert (process.returncode, printed, errors) == (130, b"", b"interrupted\n")
    assert not list(tmp_path.iterdir())


def test_ctrl_c_ends_the_workers_too_and_leaves_what_is_done(tmp_path):
    code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    code += f"sys.path.insert(0, {str(ROOT / 'demos')!r}); import atlas; sys.exit(atlas.main())"
    options = ["--minima", "5000", "--workers", "2", "--out", tmp_path]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, options)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        said = os.read(process.stderr.fileno(), 1000)
        time.sleep(1)  # the workers are at work
        os.killpg(process.pid, signal.SIGINT)
        printed, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    file = tmp_path / "atlas.results"
    done = file.read_bytes().count(b"\n") - 1 if file.exists() else 0
    words = f": {done} results are in {file}, the same command goes on" * bool(done)
    assert said + errors == f"certifying 5000 minima ...\ninterrupted{words}\n".encode()
    assert process.returncode == 130
    assert b"Traceback" not in printed
    assert list(tmp_path.iterdir()) == [file] * bool(done)
    with pytest.raises(ProcessLookupError):  # no process of the group is left
        os.killpg(process.pid, 0)


@pytest.mark.parametrize(("name", "file"), OUTPUTS, ids=" ".join)
def test_a_file_that_no_program_of_ours_wrote_is_not_replaced(name, file, tmp_path, capsys):
    (tmp_path / file).write_bytes(b'{"notes": "mine"}')
    program = load_program(ROOT / "demos" / f"{name}.py")
    assert program.main(where(name, tmp_path)) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"error: {tmp_path / file}: expected no file, or one of an ear")
    assert printed.err.count("\n") == 1
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b'{"notes": "mine"}']
