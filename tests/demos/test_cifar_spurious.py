"""The main program: what it writes is what PyTorch finds, and what it says is what was proved."""

import functools
import io
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import tarfile

import matplotlib.image
import numpy as np
import pytest
import torch
from shared import CIFAR10_SAMPLE, ROOT, in_turn, load_program, run_python, twin_of
from torch_twin import Twin, from_npz, gradients, risk

from tinyspur import datasets
from tinyspur.certificates import relays
from tinyspur.console import Bar
from tinyspur.constructions.embedding import subnetwork
from tinyspur.engine.network import Network
from tinyspur.fitting.cost import training_flops
from tinyspur.landscape import risks
from tinyspur.layers import Conv, Dense
from tinyspur.studies.paper_figures import STEPS

PROGRAM = ROOT / "demos" / "cifar_spurious.py"
SPURIOUS = "spurious local minimum"
NO_CIFAR10 = "No CIFAR-10 found"

pytestmark = pytest.mark.usefixtures("surroundings")


@pytest.fixture(scope="session")
def demo():
    return load_program(PROGRAM)


class Run:
    """A run that has ended: its `status`, what it printed and the folder it wrote to."""

    def __init__(self, status, printed, errors, out):
        self.status, self.printed, self.errors, self.out = status, printed, errors, out

    @property
    def report(self):
        return json.loads((self.out / "report.json").read_text())

    @property
    def files(self):
        found = (p for p in self.out.rglob("*") if p.is_file())
        return {str(p.relative_to(self.out)): p.read_bytes() for p in found}

    @property
    def theta(self):
        return self.arrays("theta")

    def arrays(self, point):
        with np.load(self.out / f"{point}.npz", allow_pickle=False) as file:
            return {key: file[key] for key in file.files}


def save_time(demo, patch):
    """Write an empty figure, and gather little evidence where nothing is proved."""
    little = functools.partial(relays.gather_evidence, dense_up_to=0, lanczos_products=2)
    patch.setattr(demo, "draw_spurious_minimum", lambda path, *_: path.write_bytes(b""))
    patch.setattr(relays, "gather_evidence", little)


@pytest.fixture
def program(demo, tmp_path, capsys, monkeypatch):
    """The program in this process; with `figure` it draws, otherwise see `save_time`."""

    def call(*options, out=None, figure=False):
        out = tmp_path / "out" if out is None else out
        capsys.readouterr()
        with monkeypatch.context() as patch:
            if not figure:
                save_time(demo, patch)
            status = demo.main([*map(str, options), "--out", str(out)])
        return Run(status, *capsys.readouterr(), out)

    return call


def images_and_labels(samples=150, shape=(1, 6, 6), classes=3, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=samples)
    labels[:classes] = np.arange(classes)[:samples]
    return rng.random((samples, *shape)), labels


@pytest.fixture
def small(tmp_path):
    images, labels = images_and_labels()
    np.savez(tmp_path / "small.npz", images=images, labels=labels)
    return tmp_path / "small.npz"


QUICK = ["--descend", "1", "--backend", "numpy"]


def training_arrays(images, labels, classes, smoothing):
    """Return pixels and targets, worked out anew."""
    pixels = images / 255 if images.dtype == np.uint8 else images.astype(np.float64)
    targets = np.full((len(labels), classes), smoothing / classes)
    targets[np.arange(len(labels)), labels] += 1 - smoothing
    return pixels, targets


@torch.no_grad()
def outputs_of(twin, x):
    return torch.cat([twin(part) for part in torch.as_tensor(x).split(50)])


def twin_risk(path, x, y, loss):
    twin, parts = from_npz(path), np.array_split(x, -(-len(x) // 100))  # all at once take longer
    return float(risk(np.concatenate([outputs_of(twin, part) for part in parts]), y, loss))


def check_files(run):
    """Check that the folder holds what the report names, a figure, and nothing else."""
    named = {point["file"] for point in run.report["points"].values()}
    assert set(run.files) == named | {"figure.png", "report.json"}
    assert named == {f"{name}.npz" for name in run.report["points"]}
    for name in run.report["points"]:
        assert json.loads(run.arrays(name)["spec"].item()) == run.report["network"]


def check_risks(run, x, y, rel=1e-10):
    """Check every risk and difference of risks in the report against PyTorch."""
    report = run.report
    risks = {
        name: twin_risk(run.out / point["file"], x, y, report["loss"])
        for name, point in report["points"].items()
    }
    theta = risks["theta"]
    for name, point in report["points"].items():
        assert point["risk"] == pytest.approx(risks[name], rel=rel), name
        if "decrease" in point:
            assert point["decrease"] == pytest.approx(theta - risks[name], abs=rel * theta), name
    difference = report["points"]["theta_prime"]["risk_difference"]
    assert difference == pytest.approx(risks["theta_prime"] - theta, abs=rel * theta)
    return risks


REPORT_KEYS = {
    *("dataset", "network", "loss", "label_smoothing", "seed", "backend", "dtype", "variant"),
    *("points", "split", "verdict", "seconds"),
}
POINT_KEYS = {
    "theta": {"risk", "gradient_norm", "certificate", "file"},
    "theta_prime": {"risk", "risk_difference", "file"},
    "lower": {"risk", "decrease", "layer", "map", "step", "file"},
    "descended": {"risk", "file"},
    "escape": {"kind", "risk", "decrease", "step", "distance", "file"},
}
CERTIFICATE_KEYS = {
    *("kind", "holds", "classes", "margin", "radius", "stationarity", "evidence_only")
}
SPLIT_KEYS = {*("layer", "map", "location", "output", "threshold", "above", "below", "partial_sum")}


def check_keys(report, points):
    assert set(report) == REPORT_KEYS
    assert set(report["dataset"]) == {"name", "samples", "input_shape", "classes"}
    assert set(report["points"]) == set(points)
    for name, point in report["points"].items():
        assert set(point) == POINT_KEYS[name]
    assert set(report["points"]["theta"]["certificate"]) == CERTIFICATE_KEYS
    assert set(report["split"]) == SPLIT_KEYS
    assert report["seconds"]
    assert all(isinstance(s, float) and s >= 0 for s in report["seconds"].values())


def check_spurious(run):
    """Check that the run ended well and that its numbers bear out its verdict."""
    assert run.status == 0, run.errors
    assert "Traceback" not in run.errors
    report = run.report
    theta, prime, lower = (report["points"][n] for n in ("theta", "theta_prime", "lower"))
    assert report["verdict"] == SPURIOUS
    assert run.printed.splitlines()[-1] == f"verdict: {SPURIOUS}"
    certificate = theta["certificate"]
    assert certificate["holds"] is True
    assert certificate["evidence_only"] is False
    assert certificate["margin"] > 0
    assert certificate["radius"] > 0
    assert theta["gradient_norm"] < 1e-8
    assert abs(prime["risk"] - theta["risk"]) <= 1e-12 * theta["risk"]
    assert prime["risk_difference"] == prime["risk"] - theta["risk"]
    assert 0 < lower["decrease"] == theta["risk"] - lower["risk"]
    convolutions = len(report["network"]["layers"]) - 1
    assert lower["layer"] == convolutions - 1
    assert report["split"]["layer"] == convolutions - 2
    check_lower(run)


def check_lower(run):
    """Check that the lower point is theta' with the one bias that the report names moved."""
    lower = run.report["points"]["lower"]
    prime, moved = run.arrays("theta_prime"), run.arrays("lower")
    key, t = f"b{lower['layer']}", lower["map"]
    assert moved[key][t] == pytest.approx(prime[key][t] + lower["step"], rel=1e-12, abs=1e-15)
    assert moved[key][t] != prime[key][t]
    moved[key][t] = prime[key][t]
    for name, array in prime.items():
        assert np.array_equal(array, moved[name]), name


def check_split(run, x, y):
    """Check the split against PyTorch: who is above the threshold, and the sum of u over them."""
    split, loss = run.report["split"], run.report["loss"]
    twin = from_npz(run.out / "theta.npz")
    with torch.no_grad():
        o = twin(x).numpy()
        layer = twin.preactivations(x)[split["layer"]].numpy()
    bias = run.theta[f"b{split['layer']}"]
    maps = layer.reshape(len(x), len(bias), -1)
    v = maps[:, split["map"], split["location"]] - bias[split["map"]]
    above = v > split["threshold"]
    assert (split["above"], split["below"]) == (above.sum(), (~above).sum())
    if loss == "cross-entropy":
        o = torch.softmax(torch.as_tensor(o), 1).numpy()
    u = (o - y)[:, split["output"]]
    assert split["partial_sum"] == pytest.approx(u[above].sum(), rel=1e-7, abs=1e-10)
    assert split["partial_sum"] != 0


def check_figure(path):
    picture = matplotlib.image.imread(path)
    height, width = picture.shape[:2]
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert 500 <= height <= 4000
    assert 500 <= width <= 4000
    grey = picture[..., :3].mean(axis=2)
    assert grey.max() - grey.min() > 0.5
    assert 0.02 < (grey < 0.9).mean() < 0.9  # neither blank nor black
    for half in (grey[: height // 2], grey[height // 2 :]):
        assert half.std() > 0.02


# The bundled images


@pytest.fixture(scope="module")
def default_run(tmp_path_factory):
    """The program as a user starts it, with a short descent."""
    folder = tmp_path_factory.mktemp("default")
    environment = {k: v for k, v in os.environ.items() if k != "TINYSPUR_DATA"}
    environment |= {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(folder / "cache")}
    # With one thread the time does not depend on what else is running.
    environment |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, PROGRAM, "--descend", "1"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    return Run(ended.returncode, ended.stdout, ended.stderr, folder / "out")


def test_by_default_a_spurious_minimum_of_the_bundled_images_is_proved(default_run):
    check_spurious(default_run)
    report = default_run.report
    check_keys(report, ["theta", "theta_prime", "lower", "descended"])
    assert report["dataset"] == {
        "name": "Fashion-MNIST (4,000 bundled images)",
        "samples": 4000,
        "input_shape": [1, 28, 28],
        "classes": 10,
    }
    convolutions = [{"type": "conv", "maps": maps, "kernel": 3} for maps in (4, 6, 6)]
    assert report["network"] == {
        "input": [1, 28, 28],
        "activation": {"name": "relu"},
        "layers": [*convolutions, {"type": "dense", "width": 10}],
    }
    assert (report["loss"], report["label_smoothing"], report["seed"]) == ("squared", 0, 0)
    assert (report["dtype"], report["variant"]) == ("float64", "repaired")
    assert report["backend"] in ("numpy", "cupy")
    assert report["points"]["descended"]["risk"] < report["points"]["lower"]["risk"]
    check_files(default_run)
    check_figure(default_run.out / "figure.png")


def test_by_default_one_line_says_that_no_cifar10_was_found(default_run):
    lines = [line for line in default_run.printed.splitlines() if "CIFAR-10" in line]
    assert len(lines) == 1
    assert lines[0].startswith(NO_CIFAR10)
    assert "Fashion-MNIST" in lines[0]


def test_pytorch_finds_the_risks_of_the_default_run(default_run):
    data = datasets.bundled()
    x, y = training_arrays(data.images, data.labels, 10, 0.0)
    risks = check_risks(default_run, x, y)
    assert risks["descended"] < risks["lower"] < risks["theta"]


def test_the_default_run_prints_the_risks_of_its_report(default_run):
    points = default_run.report["points"]
    for name, digits in (("theta", 12), ("lower", 9), ("descended", 9)):
        assert f"{points[name]['risk']:.{digits}g}" in default_run.printed


def test_hard_labels_that_are_separable_have_no_minimiser(program):
    run = program("--loss", "cross-entropy", "--samples", 700, "--backend", "numpy")
    check_refused(run, "no minimiser", "separates classes")
    assert NO_CIFAR10 in run.printed


# Every point in PyTorch


VARIETY = {
    "squared": [],
    "squared, smoothed, largest split": ["--label-smoothing", "0.3", "--split", "largest"],
    "cross-entropy": ["--loss", "cross-entropy", "--label-smoothing", "0.1"],
    "cross-entropy, largest split": [
        *["--loss", "cross-entropy", "--label-smoothing", "0.1", "--split", "largest"]
    ],
    "hard labels, just enough maps": ["--loss", "cross-entropy", "--maps", "1", "3", "3"],
    "more convolutions": ["--maps", "3", "5", "4", "7", "3"],
    "fewer samples, one output": ["--samples", "100", "--seed", "3", "--output-unit", "2"],
}


@pytest.mark.parametrize("options", VARIETY.values(), ids=VARIETY)
def test_the_points_are_spurious_minima_and_lower_points_in_pytorch(options, program, small):
    run = program("--data", small, *QUICK, *options)
    check_spurious(run)
    check_keys(run.report, ["theta", "theta_prime", "lower", "descended"])
    check_files(run)
    report = run.report
    data = datasets.load_npz(small).subset(report["dataset"]["samples"], report["seed"])
    x, y = training_arrays(data.images, data.labels, 3, report["label_smoothing"])
    risks = check_risks(run, x, y)
    assert risks["descended"] <= risks["lower"] < risks["theta"]
    check_split(run, x, y)
    twins = {name: from_npz(run.out / f"{name}.npz") for name in ("theta", "theta_prime")}
    torch.testing.assert_close(
        outputs_of(twins["theta"], x), outputs_of(twins["theta_prime"], x), rtol=0, atol=1e-11
    )
    gradient = gradients(twins["theta"], x, y, report["loss"])
    assert max(abs(g).max() for g in gradient.values()) < 1e-9
    norm = sum((g**2).sum() for g in gradient.values()) ** 0.5
    assert report["points"]["theta"]["gradient_norm"] == pytest.approx(norm, abs=1e-9)
    before = twins["theta"].preactivations(x).values()
    margin = min(abs(z).min().item() for z in before)
    assert report["points"]["theta"]["certificate"]["margin"] == pytest.approx(margin, rel=1e-9)


@pytest.mark.parametrize("loss", ["squared", "cross-entropy"])
def test_no_step_within_the_radius_lowers_the_risk_in_pytorch(loss, program, small):
    run = program("--data", small, *QUICK, "--loss", loss, "--label-smoothing", "0.1")
    check_spurious(run)
    data = datasets.load_npz(small)
    x, y = training_arrays(data.images, data.labels, 3, 0.1)
    twin, rng = from_npz(run.out / "theta.npz"), np.random.default_rng(0)
    radius = run.report["points"]["theta"]["certificate"]["radius"]
    least = twin_risk(run.out / "theta.npz", x, y, loss)
    theta = run.theta
    for scale in (1.0, 1e-1, 1e-3):
        for _ in range(5):
            moved = {
                key: a + scale * radius * rng.choice([-1, 1], a.shape) if a.ndim else a
                for key, a in theta.items()
            }
            assert float(risk(outputs_of(twin.load(moved), x), y, loss)) >= least * (1 - 1e-12)


# Variants and options


@pytest.mark.parametrize(("loss", "split"), [("squared", "largest"), ("cross-entropy", "steepest")])
def test_the_literal_variant_is_no_local_minimum(loss, split, program, small):
    options = ["--variant", "literal", "--split", split, "--label-smoothing", "0.1"]
    drawn = loss == "squared"
    run = program("--data", small, *QUICK, "--loss", loss, *options, figure=drawn)
    assert run.status == 0, run.errors
    report = run.report
    assert report["variant"] == "literal"
    assert report["verdict"].startswith("refuted: not a local minimum")
    assert SPURIOUS not in report["verdict"]
    assert SPURIOUS not in run.printed
    assert run.printed.splitlines()[-1] == f"verdict: {report['verdict']}"
    assert report["points"]["theta"]["certificate"]["holds"] is False
    check_keys(report, ["theta", "theta_prime", "lower", "descended", "escape"])
    check_files(run)
    if drawn:
        check_figure(run.out / "figure.png")
    data = datasets.load_npz(small)
    x, y = training_arrays(data.images, data.labels, 3, 0.1)
    risks = check_risks(run, x, y)
    escape = report["points"]["escape"]
    assert escape["decrease"] > 0
    assert risks["escape"] < risks["theta"]
    assert escape["step"] > 0
    theta, reached = run.theta, run.arrays("escape")
    moves = [abs(reached[key] - theta[key]).max() for key in theta if key != "spec"]
    assert escape["distance"] == pytest.approx(max(moves), rel=1e-12)
    assert 0 < escape["distance"] < 0.1


def test_the_largest_threshold_is_above_the_steepest(program, small, tmp_path):
    splits = {
        rule: program("--data", small, *QUICK, "--split", rule, out=tmp_path / rule).report["split"]
        for rule in ("steepest", "largest")
    }
    assert splits["largest"]["threshold"] > splits["steepest"]["threshold"]
    assert 0 < splits["largest"]["above"] < splits["steepest"]["above"]


@pytest.mark.parametrize("unit", [0, 1, 2])
def test_the_split_is_for_the_output_that_was_asked_for(unit, program, small):
    run = program("--data", small, *QUICK, "--output-unit", unit)
    check_spurious(run)
    assert run.report["split"]["output"] == unit


def test_more_convolutions_put_the_pair_at_the_top(program, small):
    run = program("--data", small, "--descend", 0, "--maps", 3, 5, 4, 7, 3)
    check_spurious(run)
    assert [layer.get("maps") for layer in run.report["network"]["layers"]] == [3, 5, 4, 7, 3, None]
    assert (run.report["split"]["layer"], run.report["points"]["lower"]["layer"]) == (3, 4)


def test_many_images_take_fewer_steps_down(program, small, demo, monkeypatch):
    monkeypatch.setattr(demo, "MANY", 10)
    monkeypatch.setattr(demo, "BRIEF", 2)
    said = program("--data", small).printed
    assert "after at most 2 L-BFGS steps from the lower point" in said
    said = program("--data", small, "--descend", 1).printed
    assert "after at most 1 L-BFGS steps from the lower point" in said


def test_without_descent_no_descended_point_is_written(program, small):
    run = program("--data", small, "--descend", 0)
    check_spurious(run)
    check_keys(run.report, ["theta", "theta_prime", "lower"])
    check_files(run)
    assert "L-BFGS" not in run.printed


def test_samples_and_their_seed_choose_the_images(program, small, tmp_path):
    runs = [
        program("--data", small, *QUICK, "--samples", 100, "--seed", seed, out=tmp_path / str(i))
        for i, seed in enumerate((0, 0, 1))
    ]
    first, same, other = runs
    assert [run.report["dataset"]["samples"] for run in runs] == [100] * 3
    assert [run.report["seed"] for run in runs] == [0, 0, 1]
    assert first.theta["W4"].tobytes() == same.theta["W4"].tobytes()
    assert first.theta["W4"].tobytes() != other.theta["W4"].tobytes()


@pytest.mark.parametrize("variant", ["repaired", "literal"])
def test_the_same_seed_gives_the_same_bytes(variant, program, small, tmp_path):
    options = ["--data", small, *QUICK, "--seed", 5, "--samples", 140, "--variant", variant]
    first, second = (program(*options, out=tmp_path / name) for name in ("first", "second"))
    assert first.status == second.status == 0
    reports = [run.report for run in (first, second)]
    for report in reports:
        del report["seconds"]
    assert reports[0] == reports[1]
    names = {name for name in first.files if name.endswith(".npz")}
    assert len(names) >= 4
    for name in names:
        assert first.files[name] == second.files[name], name


def test_what_a_run_prints_does_not_depend_on_the_time(program, small, tmp_path):
    printed = {program("--data", small, *QUICK, out=tmp_path / name).printed for name in "ab"}
    assert len(printed) == 1


def test_progress_goes_to_stderr(program, small):
    run = program("--data", small, *QUICK)
    for text in ("linear subnetwork ...", "certifying theta", "splitting the data", "writing to"):
        assert text in run.errors
        assert text not in run.printed


def test_a_second_run_replaces_the_files_of_the_first(program, small):
    program("--data", small, *QUICK)
    run = program("--data", small, *QUICK, "--label-smoothing", 0.2)
    check_spurious(run)
    assert run.report["label_smoothing"] == 0.2
    check_files(run)
    words = "the files of an earlier run, which has another label_smoothing, will be replaced"
    assert run.errors.splitlines().count(f"{run.out}: {words}") == 1
    same = program("--data", small, *QUICK, "--label-smoothing", 0.2)
    assert "earlier run" not in same.errors
    program("--data", small, *TRAINED)
    run = program("--data", small, *QUICK, "--maps", 3, 5, 5)
    assert f"{run.out}: the files of an earlier run, which has another theta, " in run.errors


# Precision


@pytest.mark.parametrize("options", [[], ["--loss", "cross-entropy"], ["--split", "largest"]])
def test_a_point_in_float32_is_at_no_local_minimum(options, program, small):
    options = [*options, "--label-smoothing", "0.1", "--dtype", "float32"]
    run = program("--data", small, *QUICK, *options)
    assert run.status == 0, run.errors
    assert run.report["dtype"] == "float32"
    assert run.report["verdict"].startswith(("spurious up to", "undecided: "))
    assert run.report["points"]["theta"]["certificate"]["holds"] is False
    assert SPURIOUS not in run.printed
    assert {a.dtype for key, a in run.theta.items() if key != "spec"} == {np.dtype("float32")}
    data = datasets.load_npz(small)
    check_risks(run, *training_arrays(data.images, data.labels, 3, 0.1), rel=1e-5)


@in_turn(
    pytest.mark.parametrize("seed", [0, 1, 2]), pytest.mark.parametrize("brightness", [1.0, 1e-3])
)
def test_an_escape_in_float32_is_one_in_pytorch_too(brightness, seed, program, tmp_path):
    images, labels = images_and_labels(seed=seed)
    np.savez(tmp_path / "faint.npz", images=brightness * images, labels=labels)
    options = ["--variant", "literal", "--dtype", "float32", "--seed", seed]
    run = program("--data", tmp_path / "faint.npz", *QUICK, *options)
    assert run.status == 0, run.errors
    assert SPURIOUS not in run.report["verdict"]
    x, y = training_arrays(brightness * images, labels, 3, 0.0)
    theta, escape = (twin_risk(run.out / f"{n}.npz", x, y, "squared") for n in ("theta", "escape"))
    if run.report["verdict"].startswith("refuted: not a local minimum"):
        assert escape < theta
    else:
        assert run.report["verdict"].startswith("undecided: not certified")


@in_turn(
    pytest.mark.parametrize("split", ["steepest", "largest"]),
    pytest.mark.parametrize("offset", [0.0, 1e4, 1e5]),
)
def test_images_of_two_values_have_no_split(offset, split, program, tmp_path):
    # In the one gap between the values the network of the lower point is an affine map of the
    # image, and none has a lower risk than theta.
    for seed in range(2):
        images, labels = images_and_labels(seed=seed)
        np.savez(tmp_path / "two.npz", images=np.round(images) + offset, labels=labels)
        run = program("--data", tmp_path / "two.npz", "--descend", 0, "--split", split)
        assert SPURIOUS not in run.printed, seed
        assert run.status == 2 or run.report["verdict"] != SPURIOUS


@in_turn(
    pytest.mark.parametrize("brightness", [1e6, 1.0, 1e-4]),
    pytest.mark.parametrize("offset", [-0.5, 0.0, 100.0]),
    draws=2,
)
def test_the_scale_of_the_pixels_does_not_matter(brightness, offset, program, tmp_path):
    images, labels = images_and_labels()
    images = brightness * (images + offset)
    np.savez(tmp_path / "scaled.npz", images=images, labels=labels)
    run = program("--data", tmp_path / "scaled.npz", *QUICK)
    assert run.status == 0, run.errors
    x, y = training_arrays(images, labels, 3, 0.0)
    check_risks(run, x, y)
    if brightness >= 1 and offset <= 0:
        check_spurious(run)


# CIFAR-10


def cifar10_images(samples=100, seed=0):
    """Return coarse pictures made of pieces of real images, as (N, 3, 32, 32) bytes, and labels.

    They have 4 x 4 flat squares, so that an affine map of them has 49 dimensions and not 3,073.
    """
    with np.load(CIFAR10_SAMPLE) as npz:
        images, labels = npz["images"], npz["labels"]
    rng = np.random.default_rng(seed)
    found = []
    for i in range(samples):
        y, x = rng.integers(0, 17, size=2)
        piece = images[i % 20, :, y : y + 16, x : x + 16][..., :: rng.choice([-1, 1])]
        means = piece.reshape(3, 4, 4, 4, 4).mean(axis=(2, 4))
        means = np.clip(means + rng.integers(-9, 10, means.shape), 0, 255)  # no two alike
        found.append(np.kron(means, np.ones((8, 8))).astype(np.uint8))
    return np.array(found), labels[np.arange(samples) % 20]


def write_archive(path, images, labels):
    """Write the official binary format: five batches of records of a label and 3,072 pixels."""
    records = np.hstack([labels[:, None].astype(np.uint8), images.reshape(len(images), -1)])
    with tarfile.open(path, "w:gz") as archive:
        for i, part in enumerate(np.array_split(records, 5), start=1):
            member = tarfile.TarInfo(f"cifar-10-batches-bin/data_batch_{i}.bin")
            member.size = part.size
            archive.addfile(member, io.BytesIO(part.tobytes()))
    return path


@pytest.fixture
def archive(tmp_path):
    (tmp_path / "cifar").mkdir()
    return write_archive(tmp_path / "cifar" / "cifar-10-binary.tar.gz", *cifar10_images())


def check_cifar10(run):
    check_spurious(run)
    assert NO_CIFAR10 not in run.printed
    assert run.report["dataset"] == {
        "name": "CIFAR-10",
        "samples": 100,
        "input_shape": [3, 32, 32],
        "classes": 10,
    }
    assert run.report["network"]["input"] == [3, 32, 32]


@pytest.fixture
def data_of(demo, program, monkeypatch):
    """Call the program with some options; return what it says of the data that it has read."""

    def stop(*_):
        raise ValueError("far enough")

    def call(*options):
        monkeypatch.setattr(demo, "linear_subnetwork", stop)
        run = program(*options)
        check_refused(run, "far enough")
        assert NO_CIFAR10 not in run.printed
        [line] = re.findall("^data: +(.*)$", run.printed, re.M)
        return line

    return call


CIFAR10_DATA = "CIFAR-10: 100 images (3, 32, 32), 10 classes"


def test_an_archive_of_cifar10_is_read(program, archive):
    run = program("--data", archive, *QUICK, figure=True)
    check_cifar10(run)
    check_files(run)
    images, labels = cifar10_images()
    x, y = training_arrays(images, labels, 10, 0.0)
    check_risks(run, x, y)
    check_split(run, x, y)
    check_figure(run.out / "figure.png")


@pytest.mark.parametrize("place", ["archive", "folder"])
def test_the_variable_says_where_cifar10_is(place, data_of, archive, monkeypatch):
    monkeypatch.setenv("TINYSPUR_DATA", str(archive if place == "archive" else archive.parent))
    assert data_of() == CIFAR10_DATA


def test_cifar10_in_the_cache_folder_is_found(data_of, archive, monkeypatch):
    archive.parent.rename(archive.parent.with_name("tinyspur"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(archive.parent.parent))
    assert data_of() == CIFAR10_DATA


def test_an_option_counts_more_than_the_variable(data_of, small, archive, monkeypatch):
    monkeypatch.setenv("TINYSPUR_DATA", str(archive))
    assert data_of("--data", small) == "small: 150 images (1, 6, 6), 3 classes"


def test_an_npz_in_the_variable_is_read(data_of, small, monkeypatch):
    monkeypatch.setenv("TINYSPUR_DATA", str(small))
    assert data_of() == "small: 150 images (1, 6, 6), 3 classes"


def test_colour_images_in_an_npz_are_read(program, tmp_path):
    images, labels = cifar10_images(260)
    images = images[:, :, 4::8, 4::8]
    np.savez(tmp_path / "tiny.npz", images=images, labels=labels)
    run = program("--data", tmp_path / "tiny.npz", *QUICK, "--maps", 3, 5, 5)
    check_spurious(run)
    assert run.report["dataset"]["input_shape"] == [3, 4, 4]
    check_risks(run, *training_arrays(images, labels, 10, 0.0))


def test_a_download_that_fails_is_an_error(program, monkeypatch):
    def fail():
        raise ConnectionError("https://example.org: the server\nrefuses")

    monkeypatch.setattr(datasets, "download_cifar10", fail)
    check_refused(program("--download"), "https://example.org", "refuses")


def test_what_was_downloaded_is_used(data_of, archive, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def fetch():
        (tmp_path / "cache").mkdir()
        archive.parent.rename(tmp_path / "cache" / "tinyspur")

    monkeypatch.setattr(datasets, "download_cifar10", fetch)
    assert data_of("--download") == CIFAR10_DATA


# A trained subnetwork

TRAINED = [
    *["--theta", "trained", "--epochs", "2", "--batch-size", "40", "--polish", "20"],
    *["--maps", "3", "5", "5", *QUICK],
]
TRAINING_KEYS = {
    *("epochs", "batch_size", "learning_rate", "weight_decay", "risk_after_training"),
    *("polish", "flops"),
}


def subnetwork_spec(spec):
    """Return the description without the two convolutions below the dense layer."""
    return {**spec, "layers": [*spec["layers"][:-3], spec["layers"][-1]]}


def checkpoint_twin(run):
    """Return the subnetwork after the training, from the checkpoint, in PyTorch."""
    twin = Twin(subnetwork_spec(run.report["network"]))
    vector, arrays, start = run.arrays("checkpoint")["theta"], {}, 0
    for key, parameter in twin.arrays().items():
        arrays[key] = vector[start : start + parameter.numel()].reshape(parameter.shape)
        start += parameter.numel()
    assert start == vector.size
    return twin.load(arrays)


def check_trained(run, x, y, rel=1e-10):
    """Check what a trained run wrote against PyTorch."""
    assert run.status == 0, run.errors
    report = run.report
    assert set(report) == REPORT_KEYS | {"training"}
    training = report["training"]
    assert set(training) == TRAINING_KEYS
    assert set(training["polish"]) == {"iterations", "gradient"}
    named = {point["file"] for point in report["points"].values()}
    assert set(run.files) == named | {"figure.png", "report.json", "checkpoint.npz"}
    certificate = report["points"]["theta"]["certificate"]
    assert set(certificate) >= CERTIFICATE_KEYS
    assert (report["verdict"] == SPURIOUS) <= certificate["holds"]
    assert run.printed.splitlines()[-1] == f"verdict: {report['verdict']}"
    risks = check_risks(run, x, y, rel=rel)
    trained = float(risk(outputs_of(checkpoint_twin(run), x), y, report["loss"]))
    assert training["risk_after_training"] == pytest.approx(trained, rel=rel)
    assert risks["theta"] < trained
    found = re.search(r"trained: risk (\S+) after training, (\S+) after (\d+) L-BFGS", run.printed)
    for printed, number in zip(found.groups(), (trained, risks["theta"]), strict=False):
        assert float(printed) == pytest.approx(number, rel=max(rel, 1e-8))
    assert int(found[3]) == training["polish"]["iterations"]
    check_lower(run)
    return risks


@pytest.mark.parametrize("loss", ["squared", "cross-entropy"])
def test_a_trained_subnetwork_comes_to_the_end(loss, program, small):
    run = program("--data", small, *TRAINED, "--loss", loss, figure=loss == "squared")
    data = datasets.load_npz(small)
    x, y = training_arrays(data.images, data.labels, 3, 0.0)
    check_trained(run, x, y)
    training, theta = run.report["training"], run.theta
    assert (training["epochs"], training["batch_size"]) == (2, 40)
    assert (training["learning_rate"], training["weight_decay"]) == (1e-3, 5e-4)
    assert 1 <= training["polish"]["iterations"] <= 20
    # 3 passes over 150 images; 3 maps of 9 weights on 36 positions and 108 inputs of 3 outputs
    assert training["flops"] == 2 * 150 * 3 * (2 * 3 * 9 * 36 + 2 * 108 * 3)
    # the polished subnetwork is what theta relays; a live map has one relay, of bias 1 twice
    read, offset = np.zeros((3, 3, 36)), theta["b4"].copy()
    for m, r in np.argwhere(theta["W2"].any(axis=(2, 3)).T):
        read[:, m] = theta["W4"].reshape(3, 5, 36)[:, r]
        offset += 2 * read[:, m].sum(axis=1)
    assert read.any()
    arrays = {"W1": theta["W1"], "b1": theta["b1"], "W2": read.reshape(3, -1), "b2": offset}
    phi = Twin(subnetwork_spec(run.report["network"])).load(arrays)
    largest = max(abs(g).max() for g in gradients(phi, x, y, loss).values())
    assert training["polish"]["gradient"] == pytest.approx(largest, rel=1e-7)
    assert f"largest entry of the gradient {largest:.3g}, goal" in run.printed


def test_the_literal_variant_takes_a_trained_subnetwork(program, small):
    run = program("--data", small, *TRAINED, "--variant", "literal")
    data = datasets.load_npz(small)
    check_trained(run, *training_arrays(data.images, data.labels, 3, 0.0))
    assert run.report["verdict"].startswith("refuted: not a local minimum")
    assert not run.theta["b2"].any()


def test_training_in_float32(program, small):
    run = program("--data", small, *TRAINED, "--dtype", "float32")
    assert run.arrays("checkpoint")["theta"].dtype == np.float32
    data = datasets.load_npz(small)
    check_trained(run, *training_arrays(data.images, data.labels, 3, 0.0), rel=1e-5)
    assert run.report["points"]["theta"]["certificate"]["holds"] is False


def test_without_a_polish_the_trained_point_is_taken(program, small):
    run = program("--data", small, *TRAINED, "--polish", 0)
    assert run.status == 0, run.errors
    training, theta = run.report["training"], run.report["points"]["theta"]
    assert training["polish"]["iterations"] == 0
    assert theta["risk"] == pytest.approx(training["risk_after_training"], rel=1e-12)


def test_other_subnetworks_leave_no_training_in_the_report(program, small):
    run = program("--data", small, *QUICK)
    assert "training" not in run.report
    assert "operations" not in run.errors + run.printed


def test_the_cost_is_printed_before_the_training(program, small):
    run = program("--data", small, *TRAINED, "--epochs", 4, "--polish", 10)
    operations = 150 * 3 * (2 * 3 * 9 * 36 + 2 * 108 * 3)
    cost, _, rest = run.errors.partition("Adam ...")
    assert f"training, 4 epochs of 150 samples: {4 * operations:.4g} floating-point" in cost
    assert f"polish, 10 steps at most: {10 * operations:.4g}, about" in cost
    assert re.search(r"measured: [\d.e-]+ s for a mini-batch of 40, [\d.e+]+ operations/s", cost)
    assert "a GPU that sustains 10 TFLOP/s in float32: " in cost
    assert "floating-point" not in rest
    assert "L-BFGS ..." in rest


def test_measuring_the_cost_does_not_change_the_training(demo, program, small, monkeypatch):
    first = program("--data", small, *TRAINED)
    monkeypatch.setattr(demo, "training_cost", lambda *_: "not measured")
    second = program("--data", small, *TRAINED)
    assert second.files["theta.npz"] == first.files["theta.npz"]
    assert second.files["checkpoint.npz"] == first.files["checkpoint.npz"]


LONG = [*TRAINED, "--epochs", "4"]
BREAKING = """
import signal, sys
from tinyspur.console import Bar

advance, stop = Bar.advance, getattr(signal, sys.argv.pop(1))

def advancing(bar, done=1, note=""):
    if note.startswith("epoch 4"):
        signal.raise_signal(stop)
    advance(bar, done, note)

Bar.advance = advancing
"""
RUNNING = """
import runpy
runpy.run_path(sys.argv.pop(1), run_name="__main__")
"""


@pytest.fixture(scope="module")
def unbroken(demo, tmp_path_factory):
    """A longer training without a break: the images and the folder that it wrote to."""
    folder = tmp_path_factory.mktemp("unbroken")
    images, labels = images_and_labels()
    np.savez(folder / "small.npz", images=images, labels=labels)
    options = ["--data", folder / "small.npz", "--out", folder / "out", *LONG]
    with pytest.MonkeyPatch.context() as patch:
        save_time(demo, patch)
        assert demo.main([*map(str, options)]) == 0
    return folder


@pytest.mark.parametrize("stop", ["SIGKILL", "SIGINT"])
def test_a_broken_training_goes_on_to_the_same_bytes(stop, unbroken, program, tmp_path):
    out, options = tmp_path / "out", ["--data", unbroken / "small.npz", *LONG]
    if stop == "SIGINT":
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Bar, "advance", Bar.advance)
            patch.setattr(sys, "argv", ["-c", stop])
            exec(BREAKING, {})
            broken = program(*options)
    else:
        ended = run_python("-c", f"{BREAKING}{RUNNING}", stop, PROGRAM, *options, "--out", out)
        broken = Run(ended.returncode, ended.stdout, ended.stderr, out)
    assert broken.arrays("checkpoint")["epochs"] == 3
    assert "Traceback" not in broken.errors
    assert not (out / "theta.npz").exists()
    if stop == "SIGINT":
        assert broken.status == 130
        line = broken.errors.splitlines()[-1]
        assert line == (
            f"interrupted: the same command with --resume goes on from {out / 'checkpoint.npz'}"
        )
    else:
        assert broken.status == -signal.SIGKILL
    resumed = program(*options, "--resume")
    assert resumed.status == 0, resumed.errors
    assert resumed.files["theta.npz"] == (unbroken / "out" / "theta.npz").read_bytes()
    assert resumed.files["checkpoint.npz"] == (unbroken / "out" / "checkpoint.npz").read_bytes()


def test_an_interrupt_says_whether_there_is_something_to_resume(
    demo, program, small, tmp_path, monkeypatch
):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    for name, options, words in (
        ("training_cost", TRAINED, "nothing to resume"),
        (
            "polish",
            [*TRAINED, "--epochs", 1],
            f"--resume goes on from {tmp_path / 'polish' / 'checkpoint.npz'}",
        ),
        ("find_spurious_minimum", QUICK, "nothing to resume"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(demo, name, interrupt)
            run = program("--data", small, *options, out=tmp_path / name)
        assert run.status == 130
        assert run.errors.splitlines()[-1].startswith("interrupted: ")
        assert run.errors.splitlines()[-1].endswith(words)
    options = ["--data", small, *TRAINED, "--epochs", 1]
    resumed = program(*options, "--resume", out=tmp_path / "polish")
    assert resumed.status == 0
    assert "training, 0 epochs of 150 samples: 0 floating-point" in resumed.errors
    assert resumed.files["theta.npz"] == program(*options).files["theta.npz"]


def test_a_finished_training_goes_on_for_more_epochs(program, small, tmp_path):
    program("--data", small, *TRAINED)
    longer = program("--data", small, *TRAINED, "--epochs", 4, "--resume")
    assert "training, 2 epochs of 150 samples" in longer.errors
    assert longer.report["training"]["epochs"] == 4
    whole = program("--data", small, *TRAINED, "--epochs", 4, out=tmp_path / "whole")
    assert longer.files["theta.npz"] == whole.files["theta.npz"]
    assert longer.report["training"] == whole.report["training"]


def test_the_checkpoint_of_an_earlier_run_is_kept_and_named(program, small):
    first = program("--data", small, *TRAINED)
    assert "earlier run" not in first.errors
    kept = {"earlier-1-checkpoint.npz": first.files["checkpoint.npz"]}
    second = program("--data", small, *TRAINED, "--seed", 1)
    assert second.status == 0, second.errors
    [line] = [text for text in second.errors.splitlines() if "--resume" in text]
    assert line == (
        f"{second.out / 'checkpoint.npz'} is of an earlier run, from which --resume goes on: kept "
        "as earlier-1-checkpoint.npz once there is a new one"
    )
    assert second.files.items() >= kept.items()
    kept["earlier-2-checkpoint.npz"] = second.files["checkpoint.npz"]
    third = program("--data", small, *TRAINED, "--seed", 1)
    assert "kept as earlier-2-checkpoint.npz" in third.errors
    assert third.files.items() >= kept.items()
    names = third.files.keys()
    resumed = program("--data", small, *TRAINED, "--seed", 1, "--resume")
    assert "kept as" not in resumed.errors
    assert resumed.files.keys() == names


def test_an_interrupt_before_the_first_epoch_leaves_the_earlier_checkpoint(
    demo, program, small, monkeypatch
):
    first = program("--data", small, *TRAINED)
    before = first.files

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo.Bar, "advance", interrupt)
    run = program("--data", small, *TRAINED, "--seed", 1)
    assert run.status == 130
    checkpoint = first.out / "checkpoint.npz"
    assert run.errors.splitlines()[-1] == (
        f"interrupted: {checkpoint} is still that of the earlier run"
    )
    assert run.files == before


def test_the_architecture_of_the_paper(demo):
    options = demo.parse(["--architecture", "paper", "--theta", "trained"])
    assert options.maps == [64, 64, 128, 128, 256, 256, 256]
    assert (options.epochs, options.learning_rate, options.weight_decay) == (150, 1e-3, 5e-4)
    net = Network((3, 32, 32), [*map(Conv, options.maps), Dense(10)])
    maps = [64, 64, 128, 128, 254]  # two maps of the pair are reserved
    sub = subnetwork(net, variant="repaired", all_relayed=True)
    assert [shape[0] for shape in sub.shapes] == [3, *maps, 10]
    per_image = sum(2 * t * c * 9 * 1024 for c, t in zip([3, *maps], maps, strict=False))
    per_image += 2 * 254 * 1024 * 10
    assert training_flops(sub, 50_000, 150) == 3 * per_image * 50_000 * 150


@pytest.mark.parametrize(
    ("options", "maps", "epochs", "samples"),
    [
        ([], [4, 6, 6], 20, 4000),
        (["--architecture", "paper"], [64, 64, 128, 128, 256, 256, 256], 150, 4100),
        (["--architecture", "paper", "--samples", 30], [64, 64, 128, 128, 256, 256, 256], 150, 30),
        (["--architecture", "paper", "--maps", 2, 5, 6, "--epochs", 3], [2, 5, 6], 3, 4100),
        (["--maps", 2, 5, 6, "--samples", 30], [2, 5, 6], 20, 30),
    ],
)
def test_what_is_trained(options, maps, epochs, samples, demo, program, tmp_path, monkeypatch):
    images, labels = images_and_labels(samples=4100, shape=(1, 2, 2))
    np.savez(tmp_path / "many.npz", images=images, labels=labels)
    seen = []

    def stop(options, net, training_set, *_):
        seen.append((options.epochs, net, len(training_set)))
        raise ValueError("far enough")

    monkeypatch.setattr(demo, "trained_point", stop)
    run = program("--data", tmp_path / "many.npz", "--theta", "trained", *options)
    check_refused(run, "far enough")
    assert " -> ".join(f"{m}x2x2" for m in maps) in run.printed
    [(found, net, used)] = seen
    assert (found, used) == (epochs, samples)
    assert [shape[0] for shape in net.shapes[1:-2]] == maps[:-3]
    assert net.shapes[-2][0] == min(maps[-3], min(maps[-2:]) - 2)


@pytest.mark.parametrize("theta", ["linear", "nontrivial"])
@pytest.mark.parametrize(
    "option",
    [
        *(["--epochs", "3"], ["--batch-size", "128"], ["--learning-rate", "1e-3"]),
        *(["--weight-decay", "0"], ["--polish", "300"], ["--resume"]),
    ],
    ids=lambda option: option[0],
)
def test_options_of_a_training_are_refused_without_one(option, theta, demo, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        demo.main(["--theta", theta, *option, "--out", str(tmp_path / "out")])
    assert caught.value.code == 2
    printed = capsys.readouterr()
    assert printed.err == f"error: {option[0]}: expected --theta trained, got --theta {theta}\n"
    assert printed.out == ""


BAD_TRAINING = {
    "no epochs": (["--epochs", "0"], ["--epochs: expected 1 or more, got 0"]),
    "an empty batch": (["--batch-size", "0"], ["--batch-size: expected 1 or more, got 0"]),
    "a negative rate": (["--learning-rate", "-1"], ["learning rate > 0", "-1.0"]),
    "a rate that is NaN": (["--learning-rate", "nan"], ["learning rate > 0", "nan"]),
    "a negative decay": (["--weight-decay", "-0.1"], ["weight decay >= 0", "-0.1"]),
    "a negative polish": (["--polish", "-1"], ["--polish: expected 0 or more, got -1"]),
    "nothing to resume": (["--resume"], ["--resume: expected a checkpoint", "checkpoint.npz"]),
}


@pytest.mark.parametrize(("options", "words"), BAD_TRAINING.values(), ids=BAD_TRAINING)
def test_bad_options_of_a_training_are_refused_before_any_work(options, words, program, tmp_path):
    run = program("--data", tmp_path / "never read.npz", *TRAINED, *options)
    check_refused(run, *words)
    assert run.printed == ""
    assert len(run.errors.splitlines()) == 1


def test_a_checkpoint_that_does_not_fit_is_refused(program, small):
    before = program("--data", small, *TRAINED)
    for options, words in (
        (["--epochs", 1], ["--epochs: expected 2 or more", "got 1"]),
        (["--seed", 1], ["checkpoint of this run"]),
        (["--batch-size", 7], ["checkpoint of this run"]),
        (["--learning-rate", 1e-4], ["checkpoint of this run"]),
        (["--label-smoothing", 0.1], ["checkpoint of this run"]),
        (["--maps", 2, 5, 5], ["checkpoint of this run"]),
        (["--dtype", "float32"], ["checkpoint of this run"]),
    ):
        run = program("--data", small, *TRAINED, "--resume", *options)
        assert run.status == 2
        for word in words:
            assert word in run.errors.splitlines()[-1]
        assert run.files == before.files
    whole = before.files["checkpoint.npz"]
    (before.out / "checkpoint.npz").write_bytes(whole[: len(whole) // 2])
    run = program("--data", small, *TRAINED, "--resume")
    assert run.status == 2
    assert "expected an NPZ" in run.errors
    assert "Traceback" not in run.errors


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_training_that_diverges_is_an_error(program, small):
    run = program("--data", small, *TRAINED, "--learning-rate", 1e90)
    check_refused(run, "training diverged", "smaller learning rate")


# Bad input


def check_refused(run, *words):
    """Check for status 2, one line that says why as the last of stderr, and no files."""
    assert run.status == 2
    lines = run.errors.splitlines()
    assert lines[-1].startswith("error: ")
    assert sum("error:" in line for line in lines) == 1
    assert "Traceback" not in run.errors + run.printed
    for word in words:
        assert word in lines[-1]
    assert not run.out.exists() or not run.files


def bad_images(name):
    images, labels = images_and_labels()
    if name == "flat":
        images = images.reshape(150, -1)
    elif name == "empty":
        images, labels = images[:0], labels[:0]
    elif name == "NaN":
        images[17, 0, 2, 3] = np.nan
    elif name == "infinite":
        images[17, 0, 2, 3] = -np.inf
    elif name == "whole numbers":
        images = (images * 9).astype(int)
    elif name == "all alike":
        images[:] = images[0]
    elif name == "two values":
        images = np.round(images)
    elif name == "few repeated":
        images, labels = np.tile(images[:30], (5, 1, 1, 1)), np.tile(labels[:30], 5)
    elif name == "few":
        images, labels = images[:30], labels[:30]
    elif name == "one class":
        labels[:] = 0
    elif name == "affine":
        labels = (images[:, 0, 0, 0] > 0.5).astype(int)
        images[:, 0, 0, 0] = labels
    elif name == "too many labels":
        labels = np.append(labels, 0)
    elif name == "negative label":
        labels[23] = -1
    elif name == "fractional labels":
        labels = labels + 0.5
    elif name == "pickled":
        images = images.astype(object)
    return {"images": images, "labels": labels}


BAD_IMAGES = {
    "flat": ["(150, 36)"],
    "empty": ["(0, 1, 6, 6)"],
    "NaN": ["NaN", "sample 17"],
    "infinite": ["infinite", "sample 17"],
    "whole numbers": ["int64"],
    "all alike": ["no data split", "expected more samples that differ, got 1"],
    "two values": ["no data split", "two values"],
    "few": ["fits all 30 samples exactly", "more than 37 samples that differ, or fewer pixels"],
    "few repeated": ["fits all 150 samples exactly", "or fewer pixels; 30 of them differ"],
    "one class": ["fits all 150 samples exactly", "targets that are not all equal"],
    "affine": ["fits all 150 samples exactly"],
    "too many labels": ["labels", "(151,)"],
    "negative label": ["-1", "sample 23"],
    "fractional labels": ["labels", "float64"],
    "pickled": ["pickled objects as 'images'"],
}


@pytest.mark.parametrize(("name", "words"), BAD_IMAGES.items(), ids=BAD_IMAGES)
def test_bad_images_are_refused(name, words, program, tmp_path):
    path = tmp_path / "bad.npz"
    np.savez(path, **bad_images(name))
    inside = ("all alike", "two values", "few", "few repeated", "one class", "affine")
    about_the_file = name not in inside
    check_refused(program("--data", path, *QUICK), *words, *[str(path)] * about_the_file)


def test_a_label_without_a_class_name_is_refused(program, tmp_path):
    images, labels = images_and_labels()
    labels[23] = 3
    path = tmp_path / "bad.npz"
    np.savez(path, images=images, labels=labels, class_names=["a", "b", "c"])
    check_refused(program("--data", path), str(path), "3", "sample 23")


@pytest.mark.parametrize("key", ["images", "labels"])
def test_an_npz_without_an_array_is_refused(key, program, tmp_path):
    found = bad_images("")
    del found[key]
    np.savez(tmp_path / "bad.npz", **found)
    check_refused(program("--data", tmp_path / "bad.npz"), "bad.npz", repr(key))


@pytest.mark.parametrize("name", ["", "text", "cut", "damaged"])
def test_a_damaged_npz_is_refused(name, program, small):
    whole = small.read_bytes()
    contents = {
        "": b"",
        "text": b"images\nlabels\n",
        "cut": whole[:-100],
        "damaged": whole[:3000] + b"\0" * 8 + whole[3008:],
    }
    small.write_bytes(contents[name])
    check_refused(program("--data", small), str(small))


def test_pixels_near_the_limits_of_float64_end_whole_or_with_nothing(program, tmp_path):
    for brightness in (1e150, 1e300):
        images, labels = images_and_labels()
        np.savez(tmp_path / "huge.npz", images=brightness * images, labels=labels)
        run = program("--data", tmp_path / "huge.npz", *QUICK, out=tmp_path / str(brightness))
        if run.status:
            check_refused(run)
        else:
            check_files(run)


BAD_OPTIONS = {
    "one sample": (["--samples", "1"], ["Assumption 1", "at least two samples, got 1"]),
    "no samples": (["--samples", "0"], ["1 to 150 samples, got 0"]),
    "fewer than no samples": (["--samples", "-3"], ["1 to 150 samples, got -3"]),
    "more samples than there are": (["--samples", "151"], ["1 to 150 samples, got 151"]),
    "too few samples": (["--samples", "20"], ["error: an affine map fits all 20 samples"]),
    "an output too far": (["--output-unit", "3"], ["output unit", "0..2", "got 3"]),
    "a negative output": (["--output-unit", "-1"], ["output unit", "0..2", "got -1"]),
    "too few maps to reserve": (["--maps", "4", "2", "2"], ["too few maps", "at least 3"]),
    "one map too few": (["--maps", "4", "6", "2"], ["too few maps", "at least 3"]),
    "no maps": (["--maps", "4", "0", "6"], ["layer 2", "positive"]),
    "negative maps": (["--maps", "-4", "6", "6"], ["layer 1", "positive"]),
    "one convolution": (["--maps", "4"], ["two consecutive convolutions"]),
    "smoothing above 1": (["--label-smoothing", "1.5"], ["label smoothing", "1.5"]),
    "smoothing of 1": (["--label-smoothing", "1"], ["label smoothing", "1.0"]),
    "negative smoothing": (["--label-smoothing", "-0.1"], ["label smoothing", "-0.1"]),
    "smoothing that is NaN": (["--label-smoothing", "nan"], ["label smoothing", "nan"]),
    "a negative descent": (["--descend", "-1"], ["-1"]),
    "a negative seed": (["--seed", "-1"], ["seed", "-1"]),
    "a negative seed for samples": (["--seed", "-1", "--samples", "100"], ["seed", "-1"]),
}


@pytest.mark.parametrize(("options", "words"), BAD_OPTIONS.values(), ids=BAD_OPTIONS)
def test_bad_options_are_refused(options, words, program, small):
    check_refused(program("--data", small, *QUICK, *options), *words)


def test_too_few_maps_for_the_channels_are_refused(program, tmp_path):
    images, labels = images_and_labels(shape=(3, 3, 3))
    np.savez(tmp_path / "colour.npz", images=images, labels=labels)
    options = ["--data", tmp_path / "colour.npz", "--maps", 2, 6, 6]
    check_refused(program(*options), "too few maps", "layer 1 has 2", "at least 3")
    check_refused(program(*options[:3], 3, 4, 6), "too few maps", "layer 2 has 4", "at least 5")


@pytest.mark.parametrize(
    "option", [["--split", "best"], ["--loss", "hinge"], ["--samples", "few"], ["--unknown"]]
)
def test_options_that_do_not_exist_are_refused(option, demo, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        demo.main([*option, "--out", str(tmp_path / "out")])
    assert caught.value.code == 2
    assert option[0] in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["none.npz", "none", "none.tar.gz", "none/deeper"])
def test_a_missing_path_is_refused(name, program, tmp_path):
    check_refused(program("--data", tmp_path / name), str(tmp_path / name))


def test_a_missing_path_in_the_variable_is_refused(program, tmp_path, monkeypatch):
    monkeypatch.setenv("TINYSPUR_DATA", str(tmp_path / "none"))
    check_refused(program(), "TINYSPUR_DATA", str(tmp_path / "none"), "does not exist")


def test_a_folder_without_images_is_refused(program, tmp_path):
    (tmp_path / "empty").mkdir()
    check_refused(program("--data", tmp_path / "empty"), str(tmp_path / "empty"), "CIFAR-10")


@pytest.mark.parametrize("length", [0, 10, 1000, -1000, -9])
def test_a_truncated_archive_is_refused(length, program, archive):
    archive.write_bytes(archive.read_bytes()[:length])
    check_refused(program("--data", archive), str(archive))


@pytest.mark.parametrize("change", ["byte", "label", "record", "batch"])
def test_a_tampered_archive_is_refused(change, program, archive):
    if change == "byte":
        content = bytearray(archive.read_bytes())
        content[len(content) // 2] ^= 0x55
        archive.write_bytes(content)
        return check_refused(program("--data", archive), str(archive))
    with tarfile.open(archive) as opened:
        files = {m.name: bytearray(opened.extractfile(m).read()) for m in opened}
    name = "cifar-10-batches-bin/data_batch_3.bin"
    if change == "label":
        files[name][3073] = 10
    elif change == "record":
        del files[name][5000]
    else:
        del files[name]
    with tarfile.open(archive, "w:gz") as opened:
        for member, content in files.items():
            info = tarfile.TarInfo(member)
            info.size = len(content)
            opened.addfile(info, io.BytesIO(content))
    words = ["10", "sample 1"] if change == "label" else []
    return check_refused(program("--data", archive), str(archive), "data_batch_3.bin", *words)


@pytest.mark.parametrize("below", ["", "deeper", "deeper/and/deeper"])
def test_an_output_folder_at_or_below_a_file_is_refused(below, program, small, tmp_path):
    (tmp_path / "file").write_bytes(b"kept")
    run = program("--data", small, *QUICK, out=tmp_path / "file" / below)
    assert run.status == 2
    assert re.fullmatch(r"error: .*\n", run.errors)
    assert str(tmp_path / "file") in run.errors
    assert (tmp_path / "file").read_bytes() == b"kept"
    assert run.printed == ""


def test_cupy_is_refused_where_it_is_not_installed(program, small, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    check_refused(program("--data", small, "--backend", "cupy"), "cupy", "CuPy is not installed")


def test_numpy_is_taken_where_cupy_is_not_installed(program, small, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    run = program("--data", small, "--descend", 0)
    check_spurious(run)
    assert run.report["backend"] == "numpy"
    assert "CuPy is not installed" in run.printed


FOREIGN = {
    "a report of something else": ("report.json", b'{"points": [], "grade": "A"}'),
    "data": ("lower.npz", "small.npz"),
    "data that are given": ("out/theta.npz", "small.npz"),
    "a figure": ("figure.png", b"\x89PNG of another program"),
    "a text": ("escape.npz", b"notes"),
    "a figure of the landscapes": ("figure3.pdf", b"%PDF-1.4"),
    "numbers of the landscapes": ("figures/figures.json", b"[1, 2]"),
}


@pytest.mark.parametrize(("name", "content"), FOREIGN.values(), ids=FOREIGN)
def test_a_file_that_is_not_of_this_program_is_not_replaced(name, content, program, small):
    if isinstance(content, str):
        content = small.read_bytes()
    data, out = small, small.parent / "out"
    path = out / name.removeprefix("out/")
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    if name.startswith("out/"):
        data = path
    run = program("--data", data, *QUICK, "--figures")
    assert run.status == 2
    assert run.errors == (
        f"error: {path}: expected no file, or one of an earlier run, which is replaced, got "
        "another one: move it away, or choose another place\n"
    )
    assert run.files == {str(path.relative_to(out)): content}


def test_a_figure_of_another_program_that_would_not_be_drawn_does_not_matter(program, small):
    (small.parent / "out").mkdir()
    (small.parent / "out" / "figure2.png").write_bytes(b"another")
    run = program("--data", small, *QUICK)
    assert run.status == 0
    assert run.files["figure2.png"] == b"another"


def test_a_file_in_place_of_the_folder_of_figures_is_refused_before_any_work(program, small):
    (small.parent / "out").mkdir()
    (small.parent / "out" / "figures").write_bytes(b"a file")
    run = program("--data", small, *QUICK, "--figures")
    assert run.status == 2
    assert re.fullmatch(r"error: output folder .*figures is not a folder\n", run.errors)
    assert run.files == {"figures": b"a file"}


def test_an_error_keeps_the_files_of_an_earlier_run(program, small):
    before = program("--data", small, *QUICK).files
    for options in (["--output-unit", 7], ["--samples", 1], ["--label-smoothing", 2]):
        run = program("--data", small, *QUICK, *options)
        assert run.status == 2
        assert run.files == before


def test_separable_hard_labels_have_no_minimiser_and_smoothed_ones_have(program, small):
    options = ["--data", small, *QUICK, "--loss", "cross-entropy", "--samples", 60]
    check_refused(program(*options), "no minimiser", "Smooth the labels")
    check_spurious(program(*options, "--label-smoothing", 0.1))


def test_hard_labels_that_overlap_have_a_minimiser(program, small):
    check_spurious(program("--data", small, *QUICK, "--loss", "cross-entropy"))


@pytest.mark.parametrize("isolated", [1, 2])
def test_a_nontrivial_subnetwork_has_a_class_for_each_isolated_image(
    isolated, program, small, tmp_path
):
    run = program("--data", small, "--theta", "nontrivial", "--isolated", isolated, *QUICK)
    assert run.status == 0, run.errors
    certificate = run.report["points"]["theta"]["certificate"]
    assert certificate["holds"]
    assert certificate["classes"] == isolated + 1
    assert run.report["verdict"] == SPURIOUS
    data = datasets.load_npz(small)
    check_risks(run, *training_arrays(data.images, data.labels, 3, 0.0))


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        (["--variant", "literal"], "expected --variant repaired"),
        (["--isolated", 150], "isolated samples: expected a whole number in 1"),
        (["--loss", "cross-entropy", "--label-smoothing", 0.1], "expected the squared loss"),
    ],
)
def test_a_nontrivial_subnetwork_that_cannot_be_built_is_refused(options, cause, program, small):
    check_refused(program("--data", small, "--theta", "nontrivial", *options), cause)


# The paper's figures

FIGURES = ["--figures", "--grid", "4", "--directions", "3", "--samples", "120", *QUICK]
DRAWN = {f"{name}.{kind}" for name in ("figure2", "figure3", "surfaces") for kind in ("png", "pdf")}
KINDS = ("afar", "nearby", "lines")
DRAWING = ("draw_level_sets", "draw_lines", "draw_surfaces")


def figure_files(run):
    """Return the names and bytes of the figures and of their numbers."""
    named = {point["file"] for point in run.report["points"].values()} | {"report.json"}
    return {k: v for k, v in run.files.items() if k not in named | {"figure.png"}}


@pytest.fixture
def undrawn(demo, monkeypatch):
    """What would have been drawn, by the name of the file."""
    found = {}
    for name in DRAWING:
        monkeypatch.setattr(demo, name, lambda path, rows: found.update({path.name: rows}))
    return found


def recorded(demo, patch, folder, draw=False):
    """Record what is drawn in files of the same names in a folder; draw it, or do not."""
    folder.mkdir()

    def recording(drawing):
        def drawn(path, rows):
            (folder / path.name).write_bytes(pickle.dumps(rows))
            if draw:
                drawing(path, rows)

        return drawn

    for name in DRAWING:
        patch.setattr(demo, name, recording(getattr(demo, name)))


@pytest.fixture(scope="module")
def with_figures(demo, tmp_path_factory):
    """A run with figures: what it printed, and its files."""
    folder = tmp_path_factory.mktemp("figures")
    images, labels = images_and_labels()
    np.savez(folder / "small.npz", images=images, labels=labels)
    options = ["--data", folder / "small.npz", "--out", folder / "out", *FIGURES]
    with pytest.MonkeyPatch.context() as patch:
        recorded(demo, patch, folder / "drawn", draw=True)
        printed, errors = io.StringIO(), io.StringIO()
        patch.setattr(demo, "draw_spurious_minimum", lambda path, *_: path.write_bytes(b""))
        patch.setattr(sys, "stdout", printed)
        patch.setattr(sys, "stderr", errors)
        status = demo.main([*map(str, options)])
    return Run(status, printed.getvalue(), errors.getvalue(), folder / "out")


def test_the_figures_and_their_numbers_are_written(with_figures):
    check_spurious(with_figures)
    check_keys(with_figures.report, ["theta", "theta_prime", "lower", "descended"])
    points = ("theta", "theta_prime", "theta_1")
    names = {f"figures/{point}_{kind}.npz" for point in points for kind in KINDS}
    written = figure_files(with_figures)
    assert set(written) == DRAWN | names | {"figures/figures.json"}
    for name in DRAWN:
        start = b"%PDF" if name.endswith("pdf") else b"\x89PNG\r\n\x1a\n"
        assert written[name].startswith(start)
    for name in names:
        with np.load(with_figures.out / name) as arrays:
            assert arrays["risks"].shape == ((3, STEPS) if "lines" in name else (4, 4))
            assert arrays["done"].all()
    for name in ("figure2.png", "figure3.png", "surfaces.png"):
        check_figure(with_figures.out / name)


def test_it_prints_what_the_lines_show(with_figures):
    found = re.findall(r"^around (.*?): R = (\S+) .*; (\d) of 3 lines", with_figures.printed, re.M)
    assert [symbol for symbol, _, _ in found] == ["theta", "theta'", "theta_1"]
    risk = with_figures.report["points"]["theta"]["risk"]
    for _, printed, _ in found[:2]:
        assert float(printed) == pytest.approx(risk, rel=1e-8)
    assert [int(lower) > 0 for _, _, lower in found] == [False, True, False]
    assert "without theta_1" not in with_figures.printed


def test_the_figures_show_theta_and_theta_prime_in_pytorch(with_figures):
    data = datasets.load_npz(with_figures.out.parent / "small.npz").subset(120, 0)
    x, y = training_arrays(data.images, data.labels, 3, 0.0)
    for point in ("theta", "theta_prime"):
        expected = twin_risk(with_figures.out / f"{point}.npz", x, y, "squared")
        for kind in KINDS:
            with np.load(with_figures.out / "figures" / f"{point}_{kind}.npz") as arrays:
                assert arrays["centre"] == pytest.approx(expected, rel=1e-12)
                lower = arrays["risks"] < arrays["centre"] - arrays["rounding"]
                assert lower.any() == (point == "theta_prime" and kind != "afar")


def test_replot_draws_the_same_numbers_without_evaluating_anything(
    demo, program, with_figures, tmp_path, monkeypatch
):
    def never(*_, **__):
        raise AssertionError("evaluated")

    for name in ("risk", "forward", "gradient", "over"):
        monkeypatch.setattr(Network, name, never)
    for name in ("load", "find_spurious_minimum", "scan_figures"):
        monkeypatch.setattr(demo, name, never)
    for name, content in with_figures.files.items():
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_bytes(content)
    recorded(demo, monkeypatch, tmp_path / "drawn")
    run = program("--replot")
    assert run.status == 0, run.errors
    assert run.files == with_figures.files
    before = {path.name: path.read_bytes() for path in (run.out.parent / "drawn").iterdir()}
    drawn = (with_figures.out.parent / "drawn").iterdir()
    assert before == {path.name: path.read_bytes() for path in drawn}
    assert before.keys() == DRAWN
    around = [line for line in with_figures.printed.splitlines() if line.startswith("around")]
    assert run.printed.splitlines() == around


@pytest.mark.parametrize("there", ["nothing", "an empty folder", "damaged numbers", "no scan"])
def test_replot_without_numbers_is_refused(there, program, with_figures, tmp_path):
    out = tmp_path / "other"
    words = ["expected the numbers of an earlier run, there is no", str(out / "figures")]
    if there != "nothing":
        (out / "figures").mkdir(parents=True)
    numbers = (with_figures.out / "figures" / "figures.json").read_text()
    if there == "damaged numbers":
        (out / "figures" / "figures.json").write_text(numbers[:-30])
        words = ["figures.json: ", "(char "]
    elif there == "no scan":
        (out / "figures" / "figures.json").write_text(numbers)
        words = ["theta_afar.npz"]
    before = sorted(tmp_path.rglob("*"))
    run = program("--replot", out=out)
    assert run.status == 2
    assert run.printed == ""
    [line] = run.errors.splitlines()
    assert line.startswith("error: ")
    for word in words:
        assert word in line
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        (["--grid", 2], "--grid: expected 3 or more, got 2"),
        (["--grid", -25], "--grid: expected 3 or more, got -25"),
        (["--directions", 0], "--directions: expected 1 or more, got 0"),
    ],
)
def test_bad_sizes_of_figures_are_refused_before_any_work(options, cause, program, tmp_path):
    run = program("--data", tmp_path / "never read.npz", "--figures", *options)
    check_refused(run, cause)
    assert run.errors == f"error: {cause}\n"
    assert run.printed == ""


@pytest.mark.parametrize("option", ["--grid", "--directions"])
def test_sizes_of_figures_are_whole_numbers(option, demo, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        demo.main(["--figures", option, "2.5", "--out", str(tmp_path / "out")])
    assert caught.value.code == 2
    assert option in capsys.readouterr().err


WITHOUT_THETA_1 = {
    "cross-entropy": (["--loss", "cross-entropy", "--label-smoothing", "0.1"], "squared loss"),
    "nontrivial": (["--theta", "nontrivial"], "--theta linear"),
    "literal": (["--variant", "literal"], "--variant repaired"),
    "too few maps": (["--maps", "1", "3", "3"], "too few maps"),
}


@pytest.mark.parametrize(("options", "words"), WITHOUT_THETA_1.values(), ids=WITHOUT_THETA_1)
def test_it_says_why_there_is_no_theta_1(options, words, program, small, undrawn):
    run = program("--data", small, *FIGURES, *options)
    assert run.status == 0, run.errors
    [line] = [text for text in run.printed.splitlines() if "without theta_1" in text]
    assert line.startswith("figures: without theta_1: ")
    assert words in line
    assert set(undrawn) == DRAWN
    names = {path.split("/")[1] for path in run.files if path.startswith("figures/")}
    assert not any(file.startswith("theta_1") for file in names)
    figure2, figure3 = undrawn["figure2.png"], undrawn["figure3.pdf"]
    [surfaces] = undrawn["surfaces.png"]
    assert surfaces is figure2[-1]
    if "literal" in options:
        assert [len(row) for row in (*figure2, *figure3)] == [3, 2]
        assert "theta_escape_line.npz" in names
        escape = run.report["points"]["escape"]
        theta, reached = run.theta, run.arrays("escape")
        moves = [reached[key] - theta[key] for key in theta if key != "spec"]
        length = sum((move**2).sum() for move in moves) ** 0.5
        assert figure2[0][1].escape == (pytest.approx(length, rel=1e-9), 0)
        line = figure3[0][0].escape
        assert line.alpha[-1] == pytest.approx(2 * length, rel=1e-9)
        assert line.risks[0, 15] == pytest.approx(escape["risk"], rel=1e-12)  # half way
        words = "not a local minimum"
    else:
        assert [len(row) for row in (*figure2, *figure3)] == [2, 2, 2]
        assert run.report["verdict"] == SPURIOUS
        words = "certified local minimum"
    for row in (*figure2, *figure3):
        assert (row[0].symbol, row[0].words) == (r"$\theta$", words)
        assert row[-1].symbol == r"$\theta'$"
    assert re.search(r"^around theta: R = .*; 0 of 3 lines", run.printed, re.M)


def test_the_seed_and_the_isolated_samples_are_those_of_the_figures(demo, program, small, undrawn):
    seen = {}

    def stop(found, theta_1, data, loss, folder, grid, directions, seed, progress):
        seen.update(theta_1=theta_1, rest=(folder, grid, directions, seed))
        raise ValueError("far enough")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "scan_figures", stop)
        run = program("--data", small, *FIGURES, "--seed", 7, "--isolated", 2)
    assert run.status == 2
    assert run.errors.splitlines()[-1] == "error: far enough"
    assert seen["rest"] == (run.out / "figures", 4, 3, 7)
    data = datasets.load_npz(small).subset(120, 7)
    x, y = training_arrays(data.images, data.labels, 3, 0.0)
    twin = twin_of(seen["theta_1"])
    with torch.no_grad():
        exact = (abs(twin(x).numpy() - y).max(axis=1) < 1e-9).sum()
    assert exact == 2


def test_figures_after_an_interruption_are_the_same(
    demo, program, with_figures, undrawn, monkeypatch, tmp_path
):
    scanned, write = [], risks.whole_file

    def interrupt(path):
        scanned.append(path)
        if len(scanned) == 5:
            raise KeyboardInterrupt
        return write(path)

    options = ["--data", with_figures.out.parent / "small.npz", *FIGURES]
    with monkeypatch.context() as patch:
        patch.setattr(risks, "whole_file", interrupt)
        broken = program(*options)
    assert broken.status == 130
    words = f"interrupted: the same command goes on from {broken.out / 'figures'}"
    assert broken.errors.splitlines()[-1] == words
    assert "Traceback" not in broken.errors
    assert broken.report["verdict"] == SPURIOUS
    assert broken.files["theta.npz"] == with_figures.files["theta.npz"]
    assert len(list((broken.out / "figures").iterdir())) == 4
    run = program(*options)
    assert run.status == 0, run.errors
    numbers = {k: v for k, v in with_figures.files.items() if k.startswith("figures/")}
    assert {k: v for k, v in run.files.items() if k.startswith("figures/")} == numbers


@pytest.mark.parametrize("stop", ["theta_1", "draw_figures"])
def test_an_interrupt_says_that_the_figures_go_on_once_they_have_begun(
    stop, demo, program, small, undrawn, tmp_path, monkeypatch
):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, stop, interrupt)
    run = program("--data", small, *FIGURES)
    assert run.status == 130
    words = "nothing to resume"
    if stop == "draw_figures":
        words = f"the same command goes on from {tmp_path / 'out' / 'figures'}"
    assert run.errors.splitlines()[-1] == f"interrupted: {words}"
    assert run.report["verdict"] == SPURIOUS


@pytest.mark.parametrize("options", [["--seed", 1], ["--grid", 5]], ids=["seed", "grid"])
def test_numbers_of_another_run_are_refused_and_kept(
    options, program, with_figures, undrawn, tmp_path
):
    for name, content in with_figures.files.items():
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_bytes(content)
    images = with_figures.out.parent / "small.npz"
    run = program("--data", images, *FIGURES, *options)
    assert run.status == 2
    lines = run.errors.splitlines()
    assert lines[-1].startswith(f"error: {run.out / 'figures' / 'theta_afar.npz'}: ")
    assert lines[-1].endswith("remove it first")
    kept = [name for name in with_figures.files if name.startswith("figures/") or name in DRAWN]
    for name in kept:
        assert run.files[name] == with_figures.files[name]
    assert not undrawn
    # The points and the report are those of the second run.
    seed = int("--seed" in options)
    assert run.report["seed"] == seed
    assert (run.files["theta.npz"] == with_figures.files["theta.npz"]) == (seed == 0)
    check_keys(run.report, ["theta", "theta_prime", "lower", "descended"])
    data = datasets.load_npz(images).subset(120, seed)
    check_risks(run, *training_arrays(data.images, data.labels, 3, 0.0))


def test_a_run_without_figures_says_that_those_there_are_of_an_earlier_one(program, small):
    before = program("--data", small, *QUICK)
    assert "earlier run" not in before.errors
    (before.out / "figures").mkdir()
    run = program("--data", small, *QUICK)
    assert run.status == 0
    words = f"figures: those in {run.out} are of an earlier run"
    assert run.errors.splitlines().count(words) == 1
    assert run.printed == before.printed
    assert not list((run.out / "figures").iterdir())


def test_a_run_with_figures_says_nothing_of_earlier_ones(program, with_figures, undrawn, tmp_path):
    (tmp_path / "out" / "figures").mkdir(parents=True)
    run = program("--data", with_figures.out.parent / "small.npz", *FIGURES)
    assert run.status == 0
    assert "earlier run" not in run.errors + with_figures.errors


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        (["--grid", "5"], "--grid: expected --figures too"),
        (["--directions", "5"], "--directions: expected --figures too"),
        (["--grid", "21", "--directions", "200"], "--grid: expected --figures too"),
        (["--replot", "--directions", "5"], "--directions: expected --figures too"),
        (["--replot", "--figures"], "--replot: expected no --figures, got both"),
        (["--figures", "--grid", "5", "--replot"], "--replot: expected no --figures, got both"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, cause, demo, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        demo.main([*options, "--out", str(tmp_path / "out")])
    assert caught.value.code == 2
    assert capsys.readouterr() == ("", f"error: {cause}\n")
    assert not (tmp_path / "out").exists()


def test_the_sizes_of_figures_have_defaults(demo, program, small, monkeypatch):
    seen = []

    def stop(*options, **_):
        seen.extend(options[5:7])
        raise ValueError("far enough")

    monkeypatch.setattr(demo, "scan_figures", stop)
    run = program("--data", small, "--figures", *QUICK)
    assert run.errors.splitlines()[-1] == "error: far enough"
    assert seen == [21, 200]


@pytest.mark.parametrize("others", [["--theta", "nontrivial"], ["--figures"]])
@pytest.mark.parametrize("isolated", [0, -1])
def test_no_isolated_sample_is_refused_before_any_work(isolated, others, program, tmp_path):
    options = [*others, "--isolated", isolated]
    run = program("--data", tmp_path / "never read.npz", *options)
    check_refused(run, f"--isolated: expected 1 or more, got {isolated}")
    assert (run.printed, len(run.errors.splitlines())) == ("", 1)


@pytest.mark.parametrize("theta", ["linear", "trained"])
def test_isolated_samples_that_nothing_would_use_are_refused(theta, demo, capsys):
    with pytest.raises(SystemExit) as caught:
        demo.main(["--theta", theta, "--isolated", "2"])
    assert caught.value.code == 2
    message = f"error: --isolated: expected --theta nontrivial, got --theta {theta}\n"
    assert capsys.readouterr() == ("", message)


def test_without_the_option_there_are_no_figures(program, small):
    run = program("--data", small, *QUICK)
    assert not figure_files(run)
    assert "around" not in run.printed
    assert "figures" not in run.report["seconds"]


# Data as people have them


def smooth_images(shape, samples=150, seed=0):
    """Return images whose neighbouring pixels are alike."""
    x = np.random.default_rng(seed).random((samples, *shape[:-2], shape[-2] + 1, shape[-1] + 1))
    return (x[..., 1:, 1:] + x[..., :-1, 1:] + x[..., 1:, :-1] + x[..., :-1, :-1]) / 4


def photo_patches():
    """Patches of photographs: the background is flat, so that many are equal."""
    rng, photos = np.random.default_rng(0), datasets.bundled()
    corners = rng.integers(23, size=(250, 2))
    chosen = photos.subset(250, seed=0)
    images = [
        image[:, r : r + 5, c : c + 5] for image, (r, c) in zip(chosen.images, corners, strict=True)
    ]
    return np.array(images), chosen.labels % 3


def peoples_data(name):
    """Return images, labels, and how many images are not distinct, or None where chance decides."""
    rng = np.random.default_rng(7)
    images, labels, equal = smooth_images((1, 4, 4)), rng.integers(3, size=150), 0
    if name == "patches":
        (images, labels), equal = photo_patches(), None
    elif name == "black borders":
        images = np.pad((255 * images).astype(np.uint8), ((0, 0), (0, 0), (2, 2), (2, 2)))
    elif name == "bootstrap":
        drawn = rng.integers(60, size=150)
        images, labels = images[drawn], labels[drawn]
        equal = (np.bincount(drawn)[drawn] > 1).sum()
    elif name == "oversampled":
        images, labels = np.tile(images, (3, 1, 1, 1)), np.tile(labels, 3)
        equal = 450
    elif name == "relabelled copies":
        images, labels = np.tile(images, (2, 1, 1, 1)), np.append(labels, (labels + 1) % 3)
        labels[150:200] = labels[:50]
        equal = 300
    elif name == "black images":
        images[::5], equal = 0, 30
    elif name == "constant images":
        images[::5] = rng.integers(3, size=(30, 1, 1, 1)) / 2
        equal = 30
    elif name == "sensors":
        images = np.round(rng.normal(size=(150, 1, 1, 6)), 2)
        images[..., 2], images[..., 4] = 20, 1.8 * images[..., 0] + 32
        labels = (images[:, 0, 0, 0] * images[:, 0, 0, 1] > 0).astype(int)
    elif name == "spectra":
        peaks = 20 * rng.random((150, 1, 1, 1))
        images = np.exp(-((np.arange(20) - peaks) ** 2) / 8) + 0.01 * rng.random((150, 1, 1, 20))
        labels = (peaks.ravel() // 7).astype(int)
    elif name == "categories and a number":
        images = np.eye(3)[rng.integers(3, size=(150, 2))].reshape(150, 1, 1, 6)
        images = np.concatenate([images, rng.integers(4, size=(150, 1, 1, 1))], axis=3)
        equal = None
    elif name == "one of a class":
        labels = (np.arange(150) == 17) + 2 * (np.arange(150) % 3 == 0)
    elif name == "a class is missing":
        labels = 3 * (labels // 2)
    elif name == "quantised":
        images = np.round(2 * smooth_images((1, 2, 5))) / 2
        equal = None
    elif name == "saturated":
        images = np.clip(3 * images - 1, 0, 1)
    elif name == "colour crops":
        images = (255 * smooth_images((3, 2, 5))).astype(np.uint8)
    elif name == "one pixel":
        images, equal = rng.integers(256, size=(150, 1, 1, 1)).astype(np.uint8), None
    elif name == "five numbers":
        images, labels = rng.random((5, 1, 1, 1)), np.array([0, 1, 0, 1, 1])
    elif name == "images and their negatives":
        images, labels = np.concatenate([images, 1 - images]), np.tile(labels, 2)
    return images, labels, equal


PEOPLES_DATA = [
    *("patches", "black borders", "bootstrap", "oversampled", "relabelled copies", "black images"),
    *("constant images", "sensors", "categories and a number", "spectra", "one of a class"),
    *("a class is missing", "quantised", "saturated", "colour crops", "one pixel", "five numbers"),
    "images and their negatives",
]
SMOOTHED = ["--loss", "cross-entropy", "--label-smoothing", "0.1"]
SETTINGS = [[], ["--theta", "nontrivial"], SMOOTHED, ["--split", "largest"]]


@pytest.mark.parametrize("name", PEOPLES_DATA)
def test_real_data_are_not_refused_and_duplicates_are_counted(name, program, tmp_path):
    images, labels, equal = peoples_data(name)
    np.savez(tmp_path / "data.npz", images=images, labels=labels)
    setting = SETTINGS[PEOPLES_DATA.index(name) % len(SETTINGS)]
    run = program("--data", tmp_path / "data.npz", "--descend", 0, "--backend", "numpy", *setting)
    assert run.status == 0, run.errors
    report = run.report
    if name == "sensors":  # of Celsius and Fahrenheit no exact optimum is near
        assert report["verdict"].startswith("spurious up to ")
    else:
        assert report["verdict"] == SPURIOUS
    rows = [image.tobytes() for image in images]
    twins = np.array([[a == b for a in rows] for b in rows])
    np.fill_diagonal(twins, False)
    found = report["dataset"].get("duplicates", {"samples": 0, "differing_targets": 0})
    assert found["samples"] == twins.any(axis=1).sum()
    assert equal is None or found["samples"] == equal
    other = twins & (labels[:, None] != labels)
    assert found["differing_targets"] == other.any(axis=1).sum()
    said = f"{found['samples']} not distinct, {found['differing_targets']} of them differ"
    assert (said in run.printed) == (found["samples"] > 0)
    x, y = training_arrays(images, labels, labels.max() + 1, report["label_smoothing"])
    risks = [twin_risk(run.out / f"{p}.npz", x, y, report["loss"]) for p in ("theta", "lower")]
    assert risks[1] < risks[0]


def test_samples_that_no_function_fits_better_are_no_spurious_minimum(program, tmp_path):
    images, labels = np.repeat(smooth_images((1, 4, 4), 10), 9, axis=0), np.arange(90) % 4 // 2
    np.savez(tmp_path / "data.npz", images=images, labels=labels)
    for setting in SETTINGS:
        run = program("--data", tmp_path / "data.npz", *QUICK, *setting)
        check_refused(run, "no data split", "no function of the samples", "differ, got 10")
