"""Certify prints and writes what certificate, evidence and search return, and its verdict."""

import os
import sys
import tempfile
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from command_line import (
    NET,
    POINT,
    QUICK,
    SQUARED,
    data_of,
    is_refused_in_one_line,
    over_bad_input,
    same,
)
from torch_twin import from_npz, gradients, risk

import tinyspur as ts
from tinyspur.commands import certify as command
from tinyspur.refutations.descent import find_descent_direction
from tinyspur.refutations.escapes import REACH

pytestmark = pytest.mark.usefixtures("in_the_folder")


def test_a_certified_point(run, files):
    done = run("certify", "certified.npz", "--data", "certified_data.npz", report=True)
    theta, data = ts.load_point("certified.npz"), data_of("certified_data")
    certificate, evidence = (
        check(theta, data, SQUARED) for check in (ts.certify_cell, ts.gather_evidence)
    )
    assert done.status == 0, done.errors
    assert f"\n{certificate}\n" in done.text
    assert f"\n{evidence}\n" in done.text
    assert done.lines[-1] == f"verdict: local minimum: {certificate.words}"
    within = ts.certificates.round_up(certificate.distance)
    assert f"\n  P1: an exact local minimum is within {within}\n" in done.text
    assert "distance 0.0" in done.lines[-2] and done.lines[-2].endswith("nothing lower found")
    report = done.report
    assert same(report["certificate"], certificate.as_dict())
    assert same(report["evidence"], evidence.as_dict())
    assert (report["verdict"], report["reason"]) == ("local minimum", certificate.words)
    assert same(report["bounds"], certificate.bounds())
    assert report["bounds"]["proves"] == "P1"
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
    assert done.report["verdict"] == "spurious local minimum"
    assert done.report["escape"]["decrease"] == escape.decrease > 0
    assert done.report["escape"]["distance"] > done.report["certificate"]["radius"]
    assert f"search within max-norm distance 2: {escape}" in done.lines


def test_a_point_that_is_said_to_be_lower_shows_it_spurious(run):
    quick = ("certify", "certified.npz", "--data", "certified_data.npz", *QUICK)
    data = data_of("certified_data")
    theta = ts.load_point("certified.npz")
    lower = ts.descend(ts.kaiming_start(theta.net, 1), data, SQUARED, 200)
    ts.save_point("lower.npz", lower)
    decrease = theta.net.risk(theta, data, SQUARED) - theta.net.risk(lower, data, SQUARED)
    done = run(*quick, "--lower", "lower.npz", report=True)
    assert (done.status, done.report["verdict"]) == (0, "spurious local minimum")
    assert done.report["lower"]["decrease"] == pytest.approx(decrease, rel=1e-9)
    assert any(line.startswith("P3: lower.npz: ") for line in done.lines)
    same_point = run(*quick, "--lower", "certified.npz", report=True)
    assert (same_point.status, same_point.report["verdict"]) == (0, "local minimum")
    assert any(line.startswith("not lower, up to rounding: ") for line in same_point.lines)
    other = run(*quick, "--lower", "smooth.npz")
    is_refused_in_one_line(other, "--lower: expected a point of Network")
    is_refused_in_one_line(run(*quick, "--lower", "none.npz"), "--lower: none.npz: expected an NPZ")


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


def test_what_refutes_a_point_at_once_is_said_before_what_takes_long(run, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    for name in ("gather_evidence", "find_escape"):
        with monkeypatch.context() as patch:
            patch.setattr(command, name, interrupt)
            done = run("certify", "random.npz", "--data", "certified_data.npz")
        assert done.status == 130
        refuted = [line for line in done.lines if line.startswith("refuted: ")]
        assert len(refuted) == 1
        assert refuted[0].startswith("refuted: the risk falls along minus the gradient, by ")


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
    assert done.lines[-1] == f"verdict: local minimum: {certificate.words}"
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
    certificate = done.report["certificate"]
    assert (certificate["kind"], certificate["holds"]) == ("curvature", False)
    assert done.report["evidence"]["evidence_only"] is True
    found = done.report["escape"]
    assert done.lines[-1].startswith("verdict: undecided: not certified, ")
    assert done.lines[-1].endswith(
        f"; at distance {found['distance']:.3g} a point is lower by "
        f"{found['decrease']:.3g}: so far from theta, this does not refute a local minimum"
    )
    claims = [line for line in done.lines if "local minimum" in line]
    assert all("evidence, no proof" in c or "not refute a local minimum" in c for c in claims)


def test_a_smooth_network_with_another_loss_has_the_strict_certificate_only(run):
    done = run("certify", "smooth.npz", "--data", "smooth_data.npz", "--loss", "huber", *QUICK)
    assert done.status == 1
    assert any(line.startswith("strict certificate: does not hold") for line in done.lines)


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
    moved = ts.load_point("certified.npz").vector - theta.vector
    assert 0.1 * abs(moved).max() < done.report["bounds"]["distance"] < 1e-3
    exact = theta.net.risk(theta, data_of("certified_data"), SQUARED)
    assert done.report["risk"] == pytest.approx(exact, rel=1e-12)


def test_cupy_where_there_is_none(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    done = run(*POINT, "--backend", "cupy")
    assert (done.status, done.errors) == (2, "error: backend 'cupy': CuPy is not installed\n")


# Errors


BAD = [
    (["certify", "pools.npz"], "expected a network with parameters"),
    (
        ["certify", "certified.npz", "--data", "huge.npz"],
        "certified.npz with the data huge.npz: expected finite risk, gradient, got inf",
    ),
    (
        ["certify", "certified.npz", "--data", "huge_x.npz"],
        "certified.npz with the data huge_x.npz: expected finite risk, gradient, got inf",
    ),
    ([*POINT, "--loss", "cross-entropy"], "cross-entropy: expected targets >= 0 that sum to 1"),
    ([*POINT, "--delta", "1"], "--delta: expected --loss huber, got --loss squared"),
    ([*POINT, "--delta", "-1", "--loss", "huber"], "Huber loss: expected a finite delta > 0"),
    ([*POINT, "--seed", "-1"], "--seed: expected 0 or more, got -1"),
    ([*POINT, "--radius", "0"], "--radius: expected a finite number > 0, got 0"),
    ([*POINT, "--radius", "nan"], "--radius: expected a finite number > 0, got nan"),
    (
        [*POINT, "--json", "new.json", "--proof", "./new.json"],
        "--proof: expected another file than --json, got new.json for both",
    ),
    ([*POINT, "--json", "."], "--json: .: expected a file, got a folder"),
    ([*POINT, "--json", os.devnull], "--json: /dev/null: expected a file, got a device or a pipe"),
    ([*POINT, "--json", "text.npz/report.json"], "text.npz is not a folder"),
]


@over_bad_input(BAD)
def test_bad_input_is_one_line(run, options, message):
    is_refused_in_one_line(run(*options), message)


@pytest.mark.parametrize("name", ["certified.npz", "certified_data.npz", "text.npz"])
def test_a_report_takes_the_place_of_no_other_file(name, run, files):
    before = (files / name).read_bytes()
    done = run(*POINT, *QUICK, "--json", name)
    assert done.text == ""
    is_refused_in_one_line(done, f"--json: {name}: expected no file, or one of an earlier run")
    assert (files / name).read_bytes() == before


def test_a_report_takes_the_place_of_an_earlier_one(run):
    first = run(*POINT, *QUICK, report=True)
    second = run(*POINT, *QUICK, "--seed", 1, report=True)
    assert (first.report["seed"], second.report["seed"]) == (0, 1)


def test_a_report_that_cannot_be_written_is_refused_before_the_run(run, monkeypatch):
    def refuse(**_):
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    done = run(*POINT, *QUICK, "--json", "report.json")
    assert (done.status, done.text) == (2, "")
    assert (
        "error: --json: output folder .: expected one that files can be written to, got "
        in done.errors
    )
