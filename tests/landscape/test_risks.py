"""A landscape says what is lower, and is read as it was saved."""

import subprocess
import sys
from pathlib import Path

import meshio
import numpy as np
import pytest
import torch
from landscape_problems import LOSS, network, point, same_bits, samples
from shared import ROOT, load_program

from tinyspur.datasets.samples import TrainingSet
from tinyspur.engine.network import Network
from tinyspur.landscape.planes import Lines, Plane
from tinyspur.landscape.risks import Landscape
from tinyspur.landscape.scan import scan
from tinyspur.layers import Dense


def lines_found(risks):
    return Landscape(np.arange(3.0), None, np.array(risks), 1.0, 0.25)


def test_a_risk_is_lower_by_more_than_the_rounding_error():
    found = lines_found([[0.75, 1.0, 2.0], [0.7, 0.0, 1.0], [np.nan, 0.9, 0.76]])
    assert found.lower.tolist() == [[False] * 3, [True, True, False], [False] * 3]
    assert found.lower_lines == 1
    said = "1 of 3 lines reach a lower risk, by 1 at most; 1 of 9 risks are not finite"
    assert str(found) == f"R = 1 at the centre; {said}"
    plane = Landscape(np.arange(3.0), np.arange(2.0), found.risks[:, :2], 1.0, 0.05)
    assert plane.lower.tolist() == [[True, False], [True, True], [False, True]]
    said = "4 of 6 points are lower, by 1 at most; 1 of 6 risks are not finite"
    assert str(plane) == f"R = 1 at the centre; {said}"
    with pytest.raises(ValueError, match="lower lines: expected lines, got a plane"):
        _ = plane.lower_lines
    above = lines_found([[0.9, 1.0, 2.0]])
    assert str(above) == "R = 1 at the centre; 0 of 1 lines reach a lower risk"


def test_risks_that_are_not_finite_are_counted_and_never_lower():
    values = np.array([[np.nan, np.inf, -np.inf], [1.0, 0.5, 2.0]])
    for beta, counted in (
        (None, "1 of 2 lines reach a lower risk"),
        (np.arange(3), "1 of 6 points"),
    ):
        found = Landscape(np.arange(3.0), beta, values, 1.0, 0.25)
        assert found.not_finite == 3
        assert found.lower.tolist() == [[False] * 3, [False, True, False]]
        assert counted in str(found)
        assert str(found).endswith(", by 0.5 at most; 3 of 6 risks are not finite")
    assert lines_found([[0.9, 1.0, 2.0]]).not_finite == 0


def test_a_scan_that_overflows_says_that_nothing_counts_as_lower():
    net = Network((1, 1), [Dense(2), Dense(1)])
    theta = net.zeros()
    theta.vector[...] = 1
    data = TrainingSet(np.ones((5, 1, 1)), np.zeros((5, 1)))
    with np.errstate(over="ignore", invalid="ignore"):
        found = scan(Plane.random(theta, extent=1e170, steps=5), data, LOSS)
    assert np.isfinite(found.risks).sum() == 1
    assert str(found) == (
        f"R = {found.centre:.9g} at the centre; 0 of 25 points are lower; 24 of 25 risks are not "
        "finite; none counts as lower, since rounding errors after overflow have no bound"
    )


def test_only_what_is_lower_beyond_its_own_rounding_error_is_lower():
    net = Network((1, 1), [Dense(2), Dense(1)])
    theta, flat, down = net.zeros(), net.zeros(), net.zeros()
    theta.W[1].weights[...] = [[1.0], [3.1]]
    theta.W[2].weights[...] = [[0.3, 0.7]]
    flat.W[2].weights[...] = [[3.1, -1.0]]  # the output stays
    data = TrainingSet(np.random.default_rng(0).uniform(0.1, 1, (50, 1, 1)), np.zeros((50, 1)))
    down.b[2][...] = -1e-9
    found = scan(Lines(theta, (flat, down), np.linspace(-1e8, 1e8, 41)), data, LOSS)
    assert found.lower[1].any()
    assert not found.lower[0].any()


@pytest.mark.parametrize("kind", ["plane", "lines"])
def test_landscapes_are_read_as_they_were_saved(kind, tmp_path):
    net = network("images")
    theta, data = point(net), samples(net)
    where = Plane.random(theta, steps=3) if kind == "plane" else Lines.random(theta, 4, steps=3)
    found = scan(where, data, LOSS, path=tmp_path / "scan.npz")
    found.save(tmp_path / "saved.npz")
    with np.load(tmp_path / "saved.npz", allow_pickle=False) as arrays:
        beta = {"beta"} if kind == "plane" else set()
        other = {"loss", "coordinates"} if kind == "plane" else set()  # as landscaper reads them
        assert (
            set(arrays.files)
            == {"alpha", "risks", "centre", "rounding", "unit_ball"} | beta | other
        )
        assert np.array_equal(arrays["unit_ball"], where.within(1.0))
    for name in ("scan.npz", "saved.npz"):
        read = Landscape.load(str(tmp_path / name))
        same_bits(read, found)
        assert np.array_equal(read.alpha, where.alpha)
        assert (read.beta is None) == (kind == "lines")
        assert kind == "lines" or np.array_equal(read.beta, where.beta)
        assert (type(read.centre), type(read.rounding)) == (float, float)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"risks": None}, r"expected arrays \['risks'\], got \['alpha', 'beta', 'centre', 'rou"),
        ({"alpha": None, "centre": None}, r"expected arrays \['alpha', 'centre'\]"),
        ({"rounding": None}, r"expected arrays \['rounding'\]"),
        ({"risks": np.zeros((3, 2))}, r"expected risks \(2, 3\), got \(3, 2\)"),
        ({"beta": None}, r"expected risks \(2, 2\), got \(2, 3\)"),
        ({"alpha": np.zeros(3)}, r"expected risks \(3, 3\), got \(2, 3\)"),
        ({"risks": np.float64(1)}, r"expected risks \(2, 3\), got \(\)"),
        ({"done": np.array([True, False])}, "expected a finished scan, got 1 of 2 risks"),
        ({"centre": np.zeros(2)}, "TypeError only"),
    ],
)
def test_files_that_hold_no_landscape_are_refused(change, message, tmp_path):
    arrays = {"alpha": np.zeros(2), "beta": np.zeros(3), "risks": np.zeros((2, 3))}
    arrays |= {"centre": np.array(1.0), "rounding": np.array(0.0)}
    path = tmp_path / "file.npz"
    np.savez(path, **arrays)
    assert Landscape.load(path).risks.shape == (2, 3)
    np.savez(path, **{k: v for k, v in (arrays | change).items() if v is not None})
    with pytest.raises(ValueError, match=rf"file\.npz: {message}"):
        Landscape.load(path)
    path.write_bytes(b"PK no archive")
    with pytest.raises(ValueError, match=r"file\.npz: expected an NPZ of plain arrays"):
        Landscape.load(path)


def test_a_plane_is_read_back_from_vtk(tmp_path):
    alpha, beta = np.array([-1.0, 0.0, 2.0]), np.array([0.0, 0.5])
    found = Landscape(alpha, beta, np.arange(6.0).reshape(3, 2), 0.0, 0.0)
    found.save_vtk(tmp_path / "plane.vtu")
    read = meshio.read(tmp_path / "plane.vtu")
    for (a, b, height), risk in zip(read.points, read.point_data["risk"], strict=True):
        assert height == 0
        assert found.risks[alpha.tolist().index(a), beta.tolist().index(b)] == risk
    [quads] = read.cells
    assert quads.type == "quad"
    corners = read.points[quads.data][..., :2]
    x, y = corners[..., 0], corners[..., 1]
    areas = (x * np.roll(y, -1, axis=1) - np.roll(x, -1, axis=1) * y).sum(axis=1) / 2
    assert areas.tolist() == [0.5, 1.0]


def test_what_vtk_cannot_hold_is_refused(tmp_path):
    plane = Landscape(np.arange(2.0), np.arange(2.0), np.zeros((2, 2)), 0.0, 0.0)
    with pytest.raises(ValueError, match=r"expected a name with .vtu, got '.*plane.vtk'"):
        plane.save_vtk(tmp_path / "plane.vtk")
    lines = Landscape(np.arange(2.0), None, np.zeros((2, 2)), 0.0, 0.0)
    with pytest.raises(ValueError, match="expected a plane, got lines"):
        lines.save_vtk(tmp_path / "lines.vtu")
    assert not list(tmp_path.iterdir())


LANDSCAPER = """
import sys
import numpy as np
from landscaper import LossLandscape
found = LossLandscape.load_from_npz(sys.argv[1])
print(*found.coords[found.loss.ravel().argmin()], *found.coords[found.loss.ravel().argmax()])
print(len(found.get_sublevel_tree().leaves))
"""


BESIDE = ["coloraide", "drawsvg", "gudhi", "joblib", "narwhals", "networkx<3", "nglpy"]
BESIDE += ["scikit-learn", "topopy", "treelib"]


@pytest.mark.landscaper
def test_a_scan_is_read_by_landscaper(tmp_path):
    """In an environment of its own, as it needs NumPy 1, with what its import needs beside ours."""
    theta = Network((1, 1), [Dense(1)]).zeros()
    data = TrainingSet([[1.0], [2.0]], [1.0, 1.5])  # best at weight 1/2, bias 1/2
    weight, bias = theta.copy(), theta.copy()
    weight.vector[:], bias.vector[:] = [1.0, 0.0], [0.0, 1.0]
    ticks = np.linspace(-1, 1, 5)
    found = scan(Plane(theta, (weight, bias), ticks, ticks), data, LOSS, path=tmp_path / "scan.npz")
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "env"], check=True)
    [site] = (tmp_path / "env").glob("lib/python*/site-packages")
    (site / "ours.pth").write_text(str(Path(torch.__file__).parent.parent))
    install = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-compile"]
    subprocess.run([*install, "--no-deps", "landscaper==1.3.1", "numpy<2", *BESIDE], check=True)
    assert (site / "numpy").is_dir() and not (site / "torch").exists()
    ran = subprocess.run(
        [python, "-c", LANDSCAPER, tmp_path / "scan.npz"],
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    places, leaves = ran.stdout.splitlines()
    assert [float(number) for number in places.split()] == [0.5, 0.5, -1.0, -1.0]
    assert found.risks[3, 3] == found.risks.min() and found.risks[0, 0] == found.risks.max()
    assert int(leaves) >= 1
    model, x = torch.nn.Linear(1, 1), torch.zeros(4, 1)  # the benchmark's row beside it
    benchmark = load_program(ROOT / "demos" / "benchmark.py")
    assert benchmark.landscaper_seconds(torch, python, model, x, x, 2, 3) > 0
