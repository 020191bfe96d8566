"""Certify with --proof writes the exact minimum next to a point, and says how far that is."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command_line import POINT, QUICK, SQUARED, data_of, is_refused_in_one_line
from shared import ROOT

import tinyspur as ts

pytestmark = pytest.mark.usefixtures("in_the_folder")


def checked(file):
    program = ROOT / "demos" / "check_proof.py"
    return subprocess.run([sys.executable, program, file], capture_output=True, text=True)


@pytest.mark.parametrize("name", ["certified", "single"])
def test_a_proof_of_the_exact_minimum_next_to_a_point_is_written(name, run):
    file = f"{name}.json"
    given = ["certify", f"{name}.npz", "--data", "certified_data.npz", *QUICK]
    done = run(*given, "--proof", file)
    points = ts.exact(ts.load_point(f"{name}.npz"), data_of("certified_data"), SQUARED)
    near = f"within {float(points.distance):.2g} of the stored point"
    assert done.lines[-1].startswith(f"proof:   {file} holds an exact local minimum, {near}, in fr")
    assert done.status == 0 and done.lines[-2].startswith("verdict: ")
    proved = checked(file)
    assert proved.returncode == 0, proved.stderr
    assert "local-minimum: 40 sample(s)" in proved.stdout
    assert run(*given, "--proof", file).status == 0  # its own file is replaced


def test_a_stored_point_that_is_exactly_a_minimum_is_named_so(run):
    net = ts.Network((1, 1), [ts.Dense(1)])
    theta = net.zeros()
    theta.b[1][:] = 0.5
    ts.save_point("mean.npz", theta)
    np.savez("mean_data.npz", x=np.array([[[-1.0]], [[0]], [[0]], [[1]]]), y=[[1.0], [0], [0], [1]])
    given = ["certify", "mean.npz", "--data", "mean_data.npz", *QUICK]
    done = run(*given, "--proof", "mean.json")
    held = "the stored point, which is exactly a local minimum, in fractions of up to 2 bits"
    assert done.lines[-1] == f"proof:   mean.json holds {held}"
    assert json.loads(Path("mean.json").read_text())["risks"] == {"theta": "1/8"}
    assert checked("mean.json").returncode == 0


def test_without_a_minimum_there_is_no_proof(run):
    done = run("certify", "random.npz", *POINT[2:], *QUICK, "--proof", "none.json")
    assert done.status == 1 and not Path("none.json").exists()
    assert done.lines[-1].startswith(
        "proof:   not written: exact: expected a point next to one whe"
    )
    refused = run(*POINT, *QUICK, "--loss", "huber", "--proof", "none.json")
    is_refused_in_one_line(refused, "--proof: expected --loss squared, got --loss huber")
    refused = run(*POINT, *QUICK, "--proof", "text.npz")
    is_refused_in_one_line(refused, r"--proof: text.npz: expected no file, or one of an earlier")
