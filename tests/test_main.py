"""The command line: what it prints and writes is what the functions return, no input breaks it."""

import json
import os
import re
import sys
import tempfile
import tracemalloc
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from shared import run_python
from torch_twin import from_npz, gradients, risk

import tinyspur as ts
from tinyspur import __main__ as command
from tinyspur import datasets
from tinyspur.refutations.escapes import REACH, find_descent_direction

SQUARED = ts.SquaredLoss()
NET = ts.Network((1, 3, 3), [ts.Conv(1), ts.Conv(3), ts.Conv(3), ts.Dense(2)])
QUICK = ["--no-evidence", "--no-search"]


def draw_data(samples=40, seed=0):
    rng = np.random.default_rng(seed)
    return ts.TrainingSet(rng.random((samples, 1, 3, 3)), rng.standard_normal((samples, 2)))


def odd_targets(linear):
    """Inputs in pairs x, -x, and targets of mean 0: uncorrelated with x unless `linear`."""
    x = np.random.default_rng(1).standard_normal((15, 1, 2))
    x = np.concatenate([x, -x])
    flat = np.hstack([x.reshape(30, 2), np.ones((30, 1))])
    y = flat[:, :1] ** 3
    return ts.TrainingSet(x, y if linear else y - flat @ np.linalg.lstsq(flat, y)[0])


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with points, data sets and files that are neither."""
    folder = tmp_path_factory.mktemp("files")
    data = draw_data()

    def save(name, theta, data=None):
        ts.save_point(folder / f"{name}.npz", theta)
        if data is not None:
            np.savez(folder / f"{name}_data.npz", x=data.x, y=data.y)

    certified, _ = ts.linear_minimum(NET, data, SQUARED)
    save("certified", certified, data)
    save("single", certified.to(np, np.float32))
    save("literal", ts.linear_minimum(NET, data, SQUARED, variant="literal")[0])
    save("random", ts.kaiming_start(NET, 0))
    huber = ts.linear_minimum(NET, data, ts.HuberLoss(0.3))[0]
    save("huber", huber)
    save("absolute", ts.linear_minimum(NET, data, ts.AbsoluteLoss())[0])
    wide = ts.Network((1, 2), [ts.Dense(4), ts.Dense(1)], ts.Tanh())
    found = ts.smooth_minimum(wide, np.random.default_rng(0).standard_normal((40, 1, 2)))
    save("smooth", found.theta, found.data)
    save("saddle", wide.zeros(), odd_targets(linear=True))
    save("flat", wide.zeros(), odd_targets(linear=False))
    save("convolution", ts.Network((1, 2), [ts.Conv(2), ts.Dense(1)], ts.Tanh()).zeros())
    save("pools", ts.Network((1, 4, 4), [ts.AveragePool(2), ts.MaxPool(2)]).zeros())
    rng = np.random.default_rng(2)
    mixed = [ts.Conv(2), ts.MaxPool(2), ts.Conv(3, 1), ts.AveragePool(2), ts.Dense(5)]
    mixed = ts.kaiming_start(ts.Network((1, 4, 4), mixed), 3)
    mixed.b[1][...] = -0.5, 1.25
    mixed.W[3].weights[1] = 0
    save("mixed", mixed)

    labels = rng.integers(3, size=90)
    images = rng.integers(256, size=(90, 1, 3, 3)).astype(np.uint8)
    np.savez(folder / "images.npz", images=images, labels=labels)
    dataset = datasets.load(folder / "images.npz").subset(60, 5)
    soft = ts.TrainingSet(dataset.pixels(), ts.one_hot(dataset.labels, 3, 0.2))
    net = ts.Network((1, 3, 3), [ts.Conv(1), ts.Conv(3), ts.Conv(3), ts.Dense(3)])
    save("classes", ts.linear_minimum(net, soft, ts.CrossEntropy())[0])
    save("bundled", ts.kaiming_start(ts.Network((1, 28, 28), [ts.Dense(10)]), 0))

    x, y = data.x, data.y
    bad = np.where(np.arange(x.size).reshape(x.shape) == 30, np.nan, x)
    for name, arrays in {
        "nan": {"x": bad, "y": y},
        "wide": {"x": x, "y": np.hstack([y, y])},
        "larger": {"x": np.zeros((5, 1, 4, 4)), "y": y[:5]},
        "flat_x": {"x": x.reshape(40, 9), "y": y},
        "integers": {"x": images[:40], "y": y},
        "fewer": {"x": x, "y": y[:5]},
        "only_x": {"x": x},
        "both": {"x": x, "y": y, "images": images, "labels": labels},
        "huge": {"x": x, "y": 1e200 * y},
        "huge_x": {"x": 1e300 * x, "y": y},
        "pickle": {"x": np.array([None]), "y": y},
        "negative_label": {"images": images, "labels": labels - 1},
        "two_classes": {"images": images, "labels": labels % 2},
        "big_images": {"images": np.zeros((3, 1, 4, 4)), "labels": np.arange(3)},
    }.items():
        np.savez(folder / f"{name}.npz", **arrays)
    arrays = dict(np.load(folder / "certified.npz"))
    np.savez(folder / "nan_point.npz", **{**arrays, "b1": np.array([np.nan])})
    np.savez(folder / "int_point.npz", **{**arrays, "b1": np.array([1])})
    (folder / "text.npz").write_text("no archive")
    (folder / "folder.npz").mkdir()
    return folder


@pytest.fixture(autouse=True)
def in_the_folder(surroundings, files, monkeypatch):
    monkeypatch.chdir(files)


@pytest.fixture
def run(capsys, tmp_path):
    """Call the program; what it returns has its `status`, `lines`, `errors`, and the `report`."""

    def call(*options, report=False):
        path = tmp_path / "new" / "report.json"
        try:
            status = command.main([*map(str, options), *(["--json", str(path)] if report else [])])
        except SystemExit as end:
            status = end.code
        out, errors = capsys.readouterr()
        assert "Traceback" not in errors
        content = json.loads(path.read_text()) if report else None
        return SimpleNamespace(
            status=status, text=out, lines=out.splitlines(), errors=errors, report=content
        )

    return call


def same(found, expected):
    """Return whether `found`, read from JSON, is what `expected` becomes there."""
    return found == json.loads(json.dumps(expected))


def data_of(name):
    return datasets.load_samples(f"{name}.npz")


def test_a_certified_point(run, files):
    done = run("certify", "certified.npz", "--data", "certified_data.npz", report=True)
    theta, data = ts.load_point("certified.npz"), data_of("certified_data")
    certificate, evidence = (
        check(theta, data, SQUARED) for check in (ts.certify_cell, ts.gather_evidence)
    )
    assert done.status == 0, done.errors
    assert f"\n{certificate}\n" in done.text
    assert f"\n{evidence}\n" in done.text
    assert done.lines[-1] == f"verdict: {certificate.words}"
    assert done.lines[-1].startswith("verdict: certified local minimum")
    assert "distance 0.0" in done.lines[-2] and done.lines[-2].endswith("nothing lower found")
    report = done.report
    assert same(report["certificate"], certificate.as_dict())
    assert same(report["evidence"], evidence.as_dict())
    assert (report["verdict"], report["reason"]) == ("certified", certificate.words)
    assert report["escape"] is report["descent_direction"] is None
    assert report["radius"] == certificate.radius
    assert report["network"] == NET.spec
    assert report["loss"] == {"name": "squared"}
    about = {"name": "certified_data", "samples": 40, "input_shape": [1, 3, 3], "classes": None}
    assert report["dataset"] == about
    outputs = from_npz("certified.npz")(torch.as_tensor(data.x)).detach()
    assert report["risk"] == pytest.approx(float(risk(outputs, data.y, "squared")), rel=1e-12)
    assert set(report["seconds"]) == {"certificate", "evidence", "search"}


def test_evidence_and_search_can_be_left_out(run):
    done = run("certify", "certified.npz", "--data", "certified_data.npz", *QUICK, report=True)
    assert done.status == 0
    assert set(done.report["seconds"]) == {"certificate"}
    assert done.report["evidence"] is done.report["escape"] is done.report["radius"] is None
    assert "evidence" not in done.text and "search" not in done.text


def test_a_lower_point_beyond_the_certified_radius_contradicts_nothing(run):
    done = run(
        *("certify", "certified.npz", "--data", "certified_data.npz", "--radius", 2),
        *("--no-evidence", "--seed", 1),
        report=True,
    )
    theta, data = ts.load_point("certified.npz"), data_of("certified_data")
    escape = ts.find_escape(theta, data, SQUARED, 2, seed=1)
    assert done.status == 0
    assert done.report["verdict"] == "certified"
    assert done.report["escape"]["decrease"] == escape.decrease > 0
    assert done.report["escape"]["distance"] > done.report["certificate"]["radius"]
    assert f"search within max-norm distance 2: {escape}" in done.lines


def test_a_lower_point_within_the_certified_radius_is_a_contradiction(run, monkeypatch):
    theta, data = ts.load_point("certified.npz"), data_of("certified_data")
    found = replace(ts.find_escape(theta, data, SQUARED, 2), distance=1e-3)
    monkeypatch.setattr(command, "find_escape", lambda *_, **__: found)
    done = run("certify", "certified.npz", "--data", "certified_data.npz", "--no-evidence")
    assert done.status == 1
    assert done.lines[-1].startswith("verdict: contradiction: certified local minimum")
    assert "at distance 0.001 a point is lower by" in done.lines[-1]


def test_the_literal_point_is_refuted_at_second_order(run):
    done = run(
        *("certify", "literal.npz", "--data", "certified_data.npz", "--no-evidence"), report=True
    )
    theta, data = ts.load_point("literal.npz"), data_of("certified_data")
    escape = ts.find_escape(theta, data, SQUARED, REACH)
    assert done.status == 1
    assert f"\n{ts.certify_cell(theta, data, SQUARED)}\n" in done.text
    assert done.report["verdict"] == "refuted"
    assert done.report["gradient_norm"] < 1e-12
    assert done.report["escape"]["decrease"] == escape.decrease > escape.rounding
    assert done.report["descent_direction"]["order"] == 2
    assert done.lines[-1].startswith(
        "verdict: refuted: not a local minimum, the risk falls along a direction from the kink, by "
    )
    rate = done.report["descent_direction"]["rate"]
    assert f"by {rate:.3g} t^2 at max-norm distances t -> 0; at distance" in done.lines[-1]
    assert f"a point is lower by {escape.decrease:.3g}" in done.lines[-1]


def test_a_random_point_is_refuted_by_its_gradient(run):
    done = run("certify", "random.npz", "--data", "certified_data.npz", *QUICK, report=True)
    data = data_of("certified_data")
    parts = gradients(from_npz("random.npz"), data.x, data.y, "squared").values()
    g = np.concatenate([np.ravel(part) for part in parts])
    assert done.status == 1
    assert done.report["gradient_norm"] == pytest.approx(np.linalg.norm(g), rel=1e-10)
    found = done.report["descent_direction"]
    assert (found["name"], found["order"]) == ("minus the gradient", 1)
    assert found["rate"] == pytest.approx((g**2).sum() / abs(g).max(), rel=1e-9)
    assert done.lines[-1] == (
        "verdict: refuted: not a local minimum, the risk falls along minus the gradient, by "
        f"{found['rate']:.3g} t at max-norm distances t -> 0"
    )


@pytest.mark.parametrize("name", ["literal", "random", "saddle"])
def test_the_rate_is_that_of_the_risk_along_the_direction(name):
    theta = ts.load_point(f"{name}.npz")
    data = data_of("saddle_data" if name == "saddle" else "certified_data")
    escape = ts.find_escape(theta, data, SQUARED, 0.1) if name == "saddle" else None
    found = find_descent_direction(theta, data, SQUARED, escape)
    assert found.order == (1 if name == "random" else 2)
    assert abs(found.direction.vector).max() == pytest.approx(1)
    before = theta.net.risk(theta, data, SQUARED)

    def fall(t):
        nearby = ts.Parameters(theta.net, theta.vector + t * found.direction.vector)
        return (before - theta.net.risk(nearby, data, SQUARED)) / t**found.order

    t = 1e-4 if found.order == 2 else 1e-7
    assert 2 * fall(t) - fall(2 * t) == pytest.approx(found.rate, rel=1e-4)


def test_flat_directions_are_no_descent():
    theta, data = ts.load_point("flat.npz"), data_of("flat_data")
    for seed in range(20):
        nearby = ts.kaiming_start(theta.net, seed)
        assert find_descent_direction(theta, data, SQUARED, SimpleNamespace(theta=nearby)) is None


def test_a_smooth_minimum(run):
    done = run("certify", "smooth.npz", "--data", "smooth_data.npz", report=True)
    theta, data = ts.load_point("smooth.npz"), data_of("smooth_data")
    certificate = ts.certify_curvature(theta, data, SQUARED)
    assert done.status == 0, done.text
    assert f"\n{certificate}\n" in done.text
    assert f"\n{ts.gather_evidence(theta, data, SQUARED)}\n" in done.text
    assert same(done.report["certificate"], certificate.as_dict())
    assert done.lines[-1] == f"verdict: {certificate.words}"
    assert done.report["radius"] == certificate.radius


def test_a_smooth_saddle_is_refuted_by_the_line_to_a_lower_point(run):
    done = run("certify", "saddle.npz", "--data", "saddle_data.npz", "--no-evidence", report=True)
    assert done.status == 1
    assert done.report["gradient_norm"] < 1e-12
    assert done.report["verdict"] == "refuted"
    found = done.report["descent_direction"]
    assert (found["name"], found["order"]) == ("the line to the lower point", 2)


def test_a_lower_point_at_a_distance_alone_decides_nothing(run):
    done = run("certify", "flat.npz", "--data", "flat_data.npz", "--radius", "0.5", report=True)
    certificate = ts.certify_curvature(ts.load_point("flat.npz"), data_of("flat_data"), SQUARED)
    assert done.status == 1
    assert done.report["verdict"] == "undecided"
    assert done.report["escape"]["decrease"] > done.report["escape"]["rounding"]
    assert done.report["descent_direction"] is None
    found = done.report["escape"]
    assert done.lines[-1] == (
        f"verdict: undecided: {certificate.words}; at distance {found['distance']:.3g} a point is "
        f"lower by {found['decrease']:.3g}: so far from theta, this does not refute a local minimum"
    )


def test_a_smooth_network_without_certificate_is_undecided(run):
    done = run("certify", "convolution.npz", "--data", "flat_data.npz", report=True)
    assert done.status == 1
    assert done.report["verdict"] == "undecided"
    assert done.report["certificate"] is None
    assert done.report["evidence"]["evidence_only"] is True
    words = "; curvature: expected dense layers, at least one of them hidden, got "
    (said,) = (line for line in done.lines if line.startswith("no certificate: cell certificate: "))
    assert words in said
    assert done.lines[-1] == f"verdict: undecided: {said}"
    claims = [line for line in done.lines if "local minimum" in line]
    assert all("evidence, no proof" in c or "not refute a local minimum" in c for c in claims)


def test_a_smooth_network_with_another_loss_has_no_certificate(run):
    done = run("certify", "smooth.npz", "--data", "smooth_data.npz", "--loss", "huber", *QUICK)
    assert done.status == 1
    words = "; curvature certificate: expected the squared loss, got HuberLoss(1)"
    assert any(line.startswith("no certificate: ") and words in line for line in done.lines)


@pytest.mark.parametrize(
    ("name", "options", "loss"),
    [
        ("huber", ["--loss", "huber", "--delta", "0.3"], ts.HuberLoss(0.3)),
        ("absolute", ["--loss", "absolute"], ts.AbsoluteLoss()),
    ],
)
def test_other_losses(run, name, options, loss):
    point = f"{name}.npz"
    done = run("certify", point, "--data", "certified_data.npz", "--no-search", *options)
    certificate = ts.certify_cell(ts.load_point(point), data_of("certified_data"), loss)
    assert done.status == 0
    assert f"\n{certificate}\n" in done.text
    assert ("no evidence: the loss has kinks, hence no Hessian" in done.lines) == (
        name == "absolute"
    )
    plain = run("certify", point, "--data", "certified_data.npz", *QUICK)
    assert plain.status == 1  # at no minimum of the squared loss


def test_delta_is_in_the_report(run):
    options = ["--data", "certified_data.npz", "--loss", "huber", "--delta", "0.3", *QUICK]
    done = run("certify", "huber.npz", *options, report=True)
    assert done.report["loss"] == {"name": "huber", "delta": 0.3}


def test_a_float32_point_is_taken_for_its_numbers(run):
    done = run("certify", "single.npz", "--data", "certified_data.npz", *QUICK, report=True)
    theta = ts.load_point("single.npz").to(np, np.float64)
    certificate = ts.certify_cell(theta, data_of("certified_data"), SQUARED)
    assert same(done.report["certificate"], certificate.as_dict())
    assert done.report["dtype"] == "float32"
    assert "float32, taken as it is: a minimum may lie next to it" in done.text
    assert (done.status, done.report["verdict"]) == (1, "refuted")
    assert done.report["descent_direction"]["rate"] < 1e-3
    exact = theta.net.risk(theta, data_of("certified_data"), SQUARED)
    assert done.report["risk"] == pytest.approx(exact, rel=1e-12)


def test_images_with_labels(run):
    done = run(
        *("certify", "classes.npz", "--data", "images.npz", "--samples", 60, "--seed", 5),
        *("--loss", "cross-entropy", "--label-smoothing", "0.2", *QUICK),
        report=True,
    )
    assert done.status == 0
    dataset = {"name": "images", "samples": 60, "input_shape": [1, 3, 3], "classes": 3}
    assert done.report["dataset"] == dataset
    assert done.report["label_smoothing"] == 0.2
    for other in (["--seed", 6], ["--seed", 5, "--label-smoothing", "0.1"]):
        options = ["--samples", 60, "--loss", "cross-entropy", "--label-smoothing", "0.2", *other]
        assert run("certify", "classes.npz", "--data", "images.npz", *options, *QUICK).status == 1


def test_samples_are_drawn_as_those_of_images(run):
    options = ["--samples", 9, "--seed", 4, *QUICK]
    done = run("certify", "random.npz", "--data", "certified_data.npz", *options, report=True)
    data, labels = data_of("certified_data"), np.zeros(40, int)
    drawn = datasets.Dataset("", data.x, labels, ("a",)).subset(9, 4).images
    rows = [int((data.x == image).all(axis=(1, 2, 3)).argmax()) for image in drawn]
    some = ts.TrainingSet(data.x[rows], data.y[rows])
    theta = ts.load_point("random.npz")
    assert done.report["risk"] == pytest.approx(theta.net.risk(theta, some, SQUARED), rel=1e-12)
    assert done.report["dataset"]["samples"] == 9


def test_without_data_the_bundled_images_are_taken(run):
    done = run("certify", "bundled.npz", "--samples", 20, *QUICK, report=True)
    assert done.status == 1
    assert done.report["dataset"]["name"] == datasets.BUNDLED_NAME
    some = datasets.bundled().subset(20, 0)
    data = ts.TrainingSet(some.pixels(), ts.one_hot(some.labels, 10))
    theta = ts.load_point("bundled.npz")
    assert done.report["risk"] == pytest.approx(theta.net.risk(theta, data, SQUARED), rel=1e-12)


POINT = ["certify", "certified.npz", "--data", "certified_data.npz"]
BAD = [
    (
        ["certify", "missing.npz"],
        "point: missing.npz: expected an NPZ file, got a path that does not exist$",
    ),
    (["certify", "text.npz/point.npz"], "point: text.npz/point.npz: .* a path that does not exist"),
    (["certify", "."], "point: .: expected an NPZ file, got a folder$"),
    (["certify", ""], "argument point: expected a path, got an empty one$"),
    (["certify", "text.npz"], "text.npz: expected an NPZ"),
    (["certify", "certified_data.npz"], "expected an array 'spec'"),
    (["certify", "nan_point.npz"], "b1 has NaN or infinite values"),
    (["certify", "int_point.npz"], "expected arrays all float64 or all float32"),
    (["certify", "pools.npz"], "expected a network with parameters"),
    (
        ["certify", "certified.npz", "--data", "missing.npz"],
        "--data: missing.npz: expected an NPZ file, got a path that does not exist$",
    ),
    (["certify", "certified.npz", "--data", "missing"], "--data: missing: .* does not exist$"),
    (["certify", "certified.npz", "--data", "folder.npz"], "--data: folder.npz: .* got a folder$"),
    (["certify", "certified.npz", "--data", ""], "argument --data: expected a path, got an empty"),
    (["certify", "certified.npz", "--data", "text.npz"], "text.npz: expected an NPZ"),
    (["certify", "certified.npz", "--data", "nan.npz"], "x has NaN or infinite values"),
    (["certify", "certified.npz", "--data", "wide.npz"], "wide: the .* width 2, got 4$"),
    (
        ["certify", "certified.npz", "--data", "larger.npz"],
        r"larger: the network expects samples x of shape \(1, 3, 3\), got \(1, 4, 4\)$",
    ),
    (["certify", "certified.npz", "--data", "flat_x.npz"], r"flat_x.npz: .*got \(40, 9\)"),
    (["certify", "certified.npz", "--data", "integers.npz"], "floats 'x', got uint8"),
    (["certify", "certified.npz", "--data", "fewer.npz"], "with the same N"),
    (["certify", "certified.npz", "--data", "only_x.npz"], "x and y, or images and labels, got x$"),
    (["certify", "certified.npz", "--data", "both.npz"], "x and y, or images and labels, got im"),
    (
        ["certify", "certified.npz", "--data", "pickle.npz"],
        "pickle.npz: expected an NPZ of plain arrays",
    ),
    (
        ["certify", "certified.npz", "--data", "huge.npz"],
        "certified.npz with the data huge.npz: expected finite risk, gradient, got inf",
    ),
    (
        ["certify", "certified.npz", "--data", "huge_x.npz"],
        "certified.npz with the data huge_x.npz: expected finite risk, gradient, got inf",
    ),
    (["certify", "classes.npz", "--data", "negative_label.npz"], "labels from 0 to 1, got -1"),
    (["certify", "classes.npz", "--data", "two_classes.npz"], "expects classes, .* 3, got 2"),
    (["certify", "certified.npz", "--data", "images.npz"], "expects classes, .* 2, got 3"),
    (["certify", "classes.npz", "--data", "big_images.npz"], r"expects images .* got \(1, 4, 4\)"),
    (["certify", "certified.npz"], r"expects images of shape \(1, 3, 3\), got \(1, 28, 28\)"),
    ([*POINT, "--loss", "cross-entropy"], "cross-entropy: expected targets >= 0 that sum to 1"),
    ([*POINT, "--loss", "hinge"], "argument --loss: invalid choice: 'hinge'"),
    ([*POINT, "--delta", "1"], "--delta: expected --loss huber, got --loss squared"),
    ([*POINT, "--delta", "-1", "--loss", "huber"], "Huber loss: expected a finite delta > 0"),
    ([*POINT, "--label-smoothing", "0.1"], "--label-smoothing: expected labels, got targets y"),
    ([*POINT, "--label-smoothing", "nan"], "--label-smoothing: expected labels, got targets y"),
    (["certify", "classes.npz", "--data", "images.npz", "--label-smoothing", "1"], "0 <= s < 1"),
    ([*POINT, "--samples", "41"], "certified_data: expected 1 to 40 samples, got 41"),
    ([*POINT, "--samples", "0"], "certified_data: expected 1 to 40 samples, got 0"),
    (["certify", "classes.npz", "--data", "images.npz", "--samples", "91"], "images: expected 1 "),
    ([*POINT, "--samples", "many"], "argument --samples: invalid int value: 'many'"),
    ([*POINT, "--seed", "-1"], "--seed: expected 0 or more, got -1"),
    ([*POINT, "--radius", "0"], "--radius: expected a finite number > 0, got 0"),
    ([*POINT, "--radius", "nan"], "--radius: expected a finite number > 0, got nan"),
    ([*POINT, "--json", "."], "--json: expected a file, got the folder"),
    ([*POINT, "--json", os.devnull], "--json: expected a file, got a device or a pipe, /dev/null"),
    ([*POINT, "--json", ""], "argument --json: expected a path, got an empty one"),
    ([*POINT, "--json", "text.npz/report.json"], "text.npz is not a folder"),
    ([*POINT, "--colour"], "unrecognized arguments: --colour"),
    (["certify"], "the following arguments are required: point"),
    (["prove", "certified.npz"], "invalid choice: 'prove'"),
    (["inspect"], "the following arguments are required: point"),
    (["inspect", "missing.npz"], "point: missing.npz: expected .*, got a path that does not exist"),
    (["inspect", ""], "argument point: expected a path, got an empty one"),
    (["inspect", "text.npz"], "text.npz: expected an NPZ"),
    (["inspect", "mixed.npz", "--layer", "0"], r"--layer: expected 1\.\.5, got 0"),
    (["inspect", "mixed.npz", "--layer", "6"], r"--layer: expected 1\.\.5, got 6"),
    (["inspect", "mixed.npz", "--layer", "2"], "MaxPoolingMatrix.* only for a given input"),
    (["inspect", "mixed.npz", "--layer", "3", "--size", "0"], r"--size: expected 1\.\.1000"),
    (["inspect", "mixed.npz", "--layer", "3", "--size", "1001"], r"--size: expected 1\.\.1000"),
    (["inspect", "mixed.npz", "--layer", "3", "--block", "3", "0"], r"map in 0\.\.2, got 3"),
    (["inspect", "mixed.npz", "--layer", "3", "--block", "0", "-1"], r"channel in 0\.\.1, got -1"),
    (["inspect", "mixed.npz", "--layer", "3", "--block", "0"], "--block: expected 2 arguments"),
    (["inspect", "mixed.npz", "--block", "0", "0"], "--block: expected --layer too"),
    (["inspect", "mixed.npz", "--size", "3"], "--size: expected --layer too"),
]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("options", "message"), BAD, ids=[" ".join(o) for o, _ in BAD])
def test_bad_input_is_one_line(run, options, message):
    done = run(*options)
    assert done.status == 2
    (line,) = done.errors.splitlines()
    assert line.startswith("error: ")
    assert re.search(message, line)
    assert "verdict" not in done.text


@pytest.mark.parametrize("name", ["wide", "larger"])
def test_data_that_do_not_fit_are_refused_before_they_are_shown(run, name):
    assert run("certify", "certified.npz", "--data", f"{name}.npz").text == ""


def test_a_report_that_cannot_be_written_is_refused_before_the_run(run, monkeypatch):
    def refuse(**_):
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    done = run(*POINT, *QUICK, "--json", "report.json")
    assert (done.status, done.text) == (2, "")
    assert "error: output folder .: expected one that files can be written to, got " in done.errors


# A report of the main program beside the point

SAID = {
    "dataset": {"name": "images", "samples": 60, "input_shape": [1, 3, 3], "classes": 3},
    "loss": "cross-entropy",
    "label_smoothing": 0.2,
    "seed": 5,
    "points": {"theta": {"risk": 1.0, "file": "theta.npz"}},
}
SAME = {"data": "images.npz", "samples": 60, "seed": 5, "loss": "cross-entropy"}
SAME |= {"label-smoothing": 0.2}
NOTE = "note:    the report.json beside this point is for {} (a certificate belongs to its data "


@pytest.fixture
def note(run, tmp_path, files):
    """Certify with a report.json of this text beside the point; return the note, if there is one.

    Options that are None are left out.
    """

    def call(text, name="theta.npz", **changes):
        (tmp_path / name).write_bytes((files / "classes.npz").read_bytes())
        (tmp_path / "report.json").write_bytes(text if isinstance(text, bytes) else text.encode())
        options = {**SAME, **{key.replace("_", "-"): value for key, value in changes.items()}}
        given = [(f"--{key}", value) for key, value in options.items() if value is not None]
        done = run("certify", tmp_path / name, *sum(given, ()), *QUICK)
        assert done.status == (1 if changes else 0), done.errors
        found = [line for line in done.lines if "note" in line]
        assert len(found) <= 1
        return found[0] if found else None

    return call


def test_no_note_where_the_report_has_the_same_data(note):
    assert note(json.dumps(SAID)) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"samples": None}, "60 samples"),
        ({"samples": 59}, "60 samples"),
        ({"seed": 6}, "seed 5"),
        ({"loss": "squared"}, "the cross-entropy loss"),
        ({"label_smoothing": None}, "label smoothing 0.2"),
        ({"data": "others.npz"}, "the data set images"),
        (
            {"data": "others.npz", "samples": 30, "seed": 0, "loss": None, "label_smoothing": 0.1},
            "60 samples of images, the cross-entropy loss, label smoothing 0.2, seed 5",
        ),
        (
            {"data": "own.npz", "samples": 40, "label_smoothing": None, "loss": "squared"},
            "60 samples of images, the cross-entropy loss",
        ),
    ],
    ids=str,
)
def test_a_note_names_what_differs_from_the_report(note, files, changes, words):
    images = dict(np.load("images.npz"))
    np.savez(files / "others.npz", images=images["images"][::-1], labels=images["labels"])
    np.savez(files / "own.npz", x=images["images"] / 255, y=np.eye(3)[images["labels"]])
    assert note(json.dumps(SAID), **changes) == f"{NOTE.format(words)}and loss)"


def test_the_seed_does_not_matter_where_the_report_has_all_samples(note):
    said = {**SAID, "dataset": {**SAID["dataset"], "samples": 90}, "seed": 1}
    assert note(json.dumps(said), samples=None) is None
    assert note(json.dumps(said), samples=50) == f"{NOTE.format('90 samples')}and loss)"


def test_a_report_of_other_points_or_of_another_kind_is_passed_over(note):
    other = {**SAID, "seed": 6}
    assert note(json.dumps(other)) is not None
    assert note(json.dumps(other), name="lower.npz") is None
    for key in SAID:
        assert note(json.dumps({k: v for k, v in other.items() if k != key})) is None
    for change in (
        {"dataset": {"name": "images"}},
        {"dataset": "images"},
        {"points": ["theta.npz"]},
        {"points": {"theta": 3}},
        {"loss": {"name": "squared"}},
        {"label_smoothing": "0.1"},
        {"seed": None},
    ):
        assert note(json.dumps({**other, **change})) is None
    for text in ("", "{", "[]", "3", "null", "[" * 10**5, b"\xff\xfe"):
        assert note(text) is None


def test_a_folder_named_report_is_passed_over(run, tmp_path, files):
    (tmp_path / "certified.npz").write_bytes((files / "certified.npz").read_bytes())
    (tmp_path / "report.json").mkdir()
    done = run("certify", tmp_path / "certified.npz", *POINT[2:], *QUICK)
    assert (done.status, "note" in done.text) == (0, False)


def test_cupy_where_there_is_none(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    done = run(*POINT, "--backend", "cupy")
    assert (done.status, done.errors) == (2, "error: backend 'cupy': CuPy is not installed\n")


def test_ctrl_c(run, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "certify_cell", interrupt)
    done = run(*POINT)
    assert done.status == 130
    assert done.errors.endswith("\ninterrupted\n")


# inspect


def test_inspect_prints_every_layer(run):
    done, theta = run("inspect", "mixed.npz"), ts.load_point("mixed.npz")
    assert done.status == 0
    assert done.lines[0] == f"{theta.net}, {theta.net.activation}, float64"
    start = next(n for n, line in enumerate(done.lines) if line.startswith("layer"))
    rows = [re.split("  +", line) for line in done.lines[start : start + 6]]
    head = ["layer", "kind", "output", "matrix", "filters", "nonzeros", "weights", "biases"]
    assert rows[0] == head
    kinds = ["conv", "max_pool", "conv", "average_pool", "dense"]
    outputs = ["2x4x4", "2x2x2", "3x2x2", "3x1x1", "5"]
    filters = ["2x1x3x3", "-", "3x2x1x1", "-", "-"]
    arrays = dict(np.load("mixed.npz"))
    for layer, row in enumerate(rows[1:], start=1):
        W = theta.W[layer]
        if layer == 2:
            W = W.at(np.zeros(W.shape[1]))
        matrix = W.toarray()
        expected = {
            "layer": str(layer),
            "kind": kinds[layer - 1],
            "output": outputs[layer - 1],
            "matrix": f"{matrix.shape[0]} x {matrix.shape[1]}",
            "filters": filters[layer - 1],
            "nonzeros": str(np.count_nonzero(matrix)),
            "weights": "-",
            "biases": "-",
        }
        for name, key in (("weights", f"W{layer}"), ("biases", f"b{layer}")):
            if key in arrays:
                expected[name] = f"{arrays[key].min():.4g} .. {arrays[key].max():.4g}"
        assert dict(zip(head, row, strict=True)) == expected
        assert f"theta.W[{layer}]  {theta.W[layer]!r}" in done.lines
    assert rows[1][-1] == "-0.5 .. 1.25"
    total = sum(array.size for key, array in arrays.items() if key != "spec")
    assert done.lines[-1] == f"{total} parameters"


def printed(matrix):
    """Return what NumPy prints of a whole matrix on lines as long as they need."""
    with np.printoptions(threshold=10**9, linewidth=10**9):
        return str(matrix)


@pytest.mark.parametrize("layer", [1, 3, 4, 5])
@pytest.mark.parametrize("size", [None, 1, 7, 40])
def test_a_corner_is_that_of_the_dense_picture(run, layer, size):
    options = [] if size is None else ["--size", size]
    done = run("inspect", "mixed.npz", "--layer", layer, *options)
    W, n = ts.load_point("mixed.npz").W[layer], size or 10
    rows, columns = (min(n, length) for length in W.shape)
    head = f"theta.W[{layer}]  {W}\nrows 0..{rows - 1}, columns 0..{columns - 1}\n"
    assert done.text == head + printed(W.toarray()[:n, :n]) + "\n"


@pytest.mark.parametrize(
    ("layer", "t", "c", "where"),
    [(3, 2, 1, "8..10, columns 4..6"), (4, 2, 2, "2..2, columns 8..10")],
)
def test_a_block_is_that_of_the_matrix(run, layer, t, c, where):
    done = run("inspect", "mixed.npz", "--layer", layer, "--block", t, c, "--size", 3)
    W = ts.load_point("mixed.npz").W[layer]
    assert done.text == (
        f"theta.W[{layer}]  {W}\nrows {where} of the block from channel {c} to map {t}\n"
        f"{printed(W.block(t, c)[:3, :3])}\n"
    )
    assert W.block(t, c).any()


def test_a_large_corner_is_printed_in_full(run):
    done = run("inspect", "bundled.npz", "--layer", 1, "--size", 200)
    entries = ts.load_point("bundled.npz").W[1].toarray()[:, :200]
    assert done.text.endswith(f"\n{printed(entries)}\n")


def test_no_array_of_the_size_of_a_matrix_is_built(run, tmp_path):
    large = ts.Network((3, 160, 160), [ts.Conv(16), ts.Conv(16), ts.Dense(2)])
    ts.save_point(tmp_path / "large.npz", ts.kaiming_start(large, 0))
    tracemalloc.start()
    try:
        for options in ([], ["--layer", 2], ["--layer", 2, "--block", 15, 15]):
            assert run("inspect", tmp_path / "large.npz", *options).status == 0
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 100e6  # a block has 5.2e9 bytes, the nonzeros of W[2] 9.4e8


# The program itself


def test_without_a_command_it_prints_help(run):
    done, asked = run(), run("--help")
    assert (done.status, asked.status) == (2, 0)
    assert done.text == asked.text
    assert "python -m tinyspur certify" in done.text and "python -m tinyspur inspect" in done.text
    assert not done.errors


@pytest.mark.parametrize("name", ["certify", "inspect"])
def test_help_has_examples_that_parse(run, name):
    done = run(name, "--help")
    assert done.status == 0
    examples = re.findall(rf"^  python -m tinyspur ({name} .*)$", done.text, re.M)
    assert len(examples) > 2
    for example in examples:
        assert command.parser().parse_args(example.split()).command == name


def test_examples_certify_with_the_loss_and_the_data_that_made_the_point(run):
    lines = [line.split() for line in run("certify", "--help").text.splitlines()]
    made = {}
    for line in lines:
        if line[:2] == ["python", "demos/cifar_spurious.py"]:
            made[line[-1]] = line[2:-2]
        elif line[:3] == ["python", "-m", "tinyspur"] and line[4].startswith("out"):
            given = made[os.path.dirname(line[4])]
            assert line[5 : 5 + len(given)] == given
    assert len(made) > 2


def test_help_says_what_the_seed_draws_and_which_folder_is_made(run):
    text = " ".join(run("certify", "--help").text.split())
    assert "of all random choices, also of the samples that are drawn (default: 0)" in text
    assert "a folder that does not exist is made" in text


def test_version(run, monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", lambda name: f"1.2.3 of {name}")
    assert run("--version").lines == ["tinyspur 1.2.3 of tinyspur"]


def test_version_where_nothing_is_installed(run, monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", missing)
    done = run("--version")
    assert (done.status, done.lines) == (0, ["tinyspur (not installed)"])


def test_the_module_runs(run):
    done = run_python("-m", "tinyspur", *POINT, *QUICK)
    assert done.returncode == 0, done.stderr
    assert done.stdout == run(*POINT, *QUICK).text
    wrong = run_python("-m", "tinyspur", "inspect", "missing.npz")
    assert wrong.returncode == 2
    assert wrong.stderr.splitlines() == [run("inspect", "missing.npz").errors.strip()]
