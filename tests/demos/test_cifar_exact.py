"""The option --exact of the main program: what it prints and writes is proved in fractions."""

import json
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from shared import ROOT, load_program

from tinyspur.fitting import rational
from tinyspur.studies import exact_files

CHECK = ROOT / "demos" / "check_proof.py"
QUICK = ["--descend", "0", "--backend", "numpy", "--maps", "3", "3"]

pytestmark = pytest.mark.usefixtures("surroundings")


@pytest.fixture
def program(tmp_path, monkeypatch):
    """The program in this process, on 20 images of 2 x 2 pixels; it draws an empty figure."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (20, 1, 2, 2), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images=images, labels=np.arange(20) % 2)
    demo = load_program(ROOT / "demos" / "cifar_spurious.py")
    monkeypatch.setattr(demo, "draw_spurious_minimum", lambda path, *_: path.write_bytes(b""))
    given = ["--data", tmp_path / "images.npz", "--out", tmp_path / "out", *QUICK]
    return lambda *options: demo.main([*map(str, given), *options])


def test_exact_points_are_printed_written_and_proved(program, tmp_path, capsys):
    assert program("--exact") == 0
    printed, report = (
        capsys.readouterr().out,
        json.loads((tmp_path / "out/report.json").read_text()),
    )
    assert report["pixels"] == "k/256"
    found, file = report["exact"], tmp_path / "out" / "proof.json"
    risks = {name: Fraction(risk) for name, risk in found["risks"].items()}
    assert risks["lower"] < risks["theta"] == risks["theta_prime"]
    assert float(risks["theta"]) == pytest.approx(report["points"]["theta"]["risk"], rel=1e-12)
    assert found["verdict"] == "spurious local minimum" and 0 < found["distance"] < 1e-12
    assert found["file_size"] == file.stat().st_size and found["file"] == file.name
    assert "verdict: spurious local minimum, proved in fractions\n" in printed
    assert "proof.json: 0.00" in printed and "MB, to be checked by demos/check_proof.py" in printed
    done = subprocess.run([sys.executable, CHECK, file], capture_output=True, text=True)
    assert done.returncode == 0 and "spurious-local-minimum: 20 sample(s)" in done.stdout
    assert program() == 0  # the proof is not for these points
    assert not file.exists()
    assert "exact" not in json.loads((tmp_path / "out/report.json").read_text())


def test_a_proof_that_is_too_large_is_not_written_and_the_program_says_so(
    program, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(exact_files, "LARGEST_FILE", 100)
    assert program("--exact", "--theta", "nontrivial", "--maps", "4", "4", "4") == 0
    assert "proof.json: not written, it would take 0.0" in capsys.readouterr().out
    found = json.loads((tmp_path / "out/report.json").read_text())["exact"]
    assert found["file"] is None and found["file_size"] > 100
    assert not (tmp_path / "out" / "proof.json").exists()


def test_too_many_pixels_are_refused_before_any_work(program, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(rational, "flint", None)
    monkeypatch.setattr(rational, "WORK", {False: 2000})
    assert program("--exact") == 2
    words = "expected at most 4 unknowns with coefficients of 21 bits without python-flint, the ext"
    assert f"error: exact: {words}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_file_of_another_kind_in_the_place_of_the_proof_is_kept(program, tmp_path, capsys):
    file = tmp_path / "out" / "proof.json"
    file.parent.mkdir()
    file.write_text('{"a": 1}')
    assert program("--exact") == 2
    assert f"{file}: expected no file, or one of an earlier run" in capsys.readouterr().err
    assert file.read_text() == '{"a": 1}'


@pytest.mark.parametrize(
    "option, got",
    [
        (["--loss", "cross-entropy"], "--exact: expected --loss squared, got cross-entropy"),
        (["--variant", "literal"], "--exact: expected --variant repaired, got literal"),
        (["--theta", "trained"], "--exact: expected --theta linear or nontrivial, got trained"),
    ],
)
def test_what_has_no_exact_points_is_refused_before_any_work(option, got, program, capsys):
    with pytest.raises(SystemExit) as ended:
        program("--exact", *option)
    assert ended.value.code == 2 and capsys.readouterr().err == f"error: {got}\n"
