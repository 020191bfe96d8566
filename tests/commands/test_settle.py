"""Settle brings a point to a local minimum, proves it, and writes it."""

import numpy as np
import pytest
from command_line import SQUARED, is_refused_in_one_line, over_bad_input, same

import tinyspur as ts

pytestmark = pytest.mark.usefixtures("in_the_folder")


def hinge(samples=60):
    """Return a trained point, and data |x| with noise, for which it is heading for kinks."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(samples, 1, 3))
    data = ts.TrainingSet(x, abs(x[:, 0, :1]) + 0.3 * rng.normal(size=(samples, 1)))
    net = ts.Network((1, 3), [ts.Dense(4), ts.Dense(1)])
    return ts.descend(ts.kaiming_start(net, 1), data, SQUARED, 60), data


@pytest.fixture
def trained(in_the_folder):
    theta, data = hinge()
    ts.save_point("trained.npz", theta)
    np.savez("trained_data.npz", x=data.x, y=data.y)
    return theta, data


def test_a_trained_point_settles_at_a_proved_minimum_with_kinks(run, trained):
    theta, data = trained
    problem = ("trained.npz", "--data", "trained_data.npz")
    done = run("settle", *problem, "--out", "end.npz", report=True)
    found = ts.settle(theta, data, SQUARED)
    assert done.status == 0, done.errors
    assert f"{found}\n" in done.text
    assert np.array_equal(ts.load_point("end.npz").vector, found.theta.vector)
    assert done.report["settled"] and found.kinks
    assert len(done.report["kinks"]) == len(found.kinks) == len(done.report["multipliers"])
    assert same(done.report["certificate"], found.certificate.as_dict())
    low, high = done.report["risk_interval"]
    assert low <= found.risk <= high < done.report["risk_before"]
    certified = run("certify", "end.npz", *problem[1:], "--no-evidence", "--no-search")
    assert certified.status == 0
    assert certified.lines[-1].startswith("verdict: local minimum: certified strict local minimum")


def test_a_point_at_no_minimum_is_told_what_may_come_next(run, trained):
    done = run("certify", "trained.npz", "--data", "trained_data.npz", "--no-evidence")
    assert done.status == 1
    words = ["settle", "trained.npz", "--data", "trained_data.npz"]
    said = f"next:    python -m tinyspur {' '.join(words)} goes on downhill from here"
    assert done.lines[-2] == said
    assert run(*words).status == 0
    options = ("--loss", "huber", "--delta", "0.5", "--samples", "50", "--seed", "3")
    done = run("certify", *words[1:], *options, "--no-evidence", "--no-search")
    named = done.lines[-2].removeprefix("next:    python -m tinyspur ").split(" goes on")[0]
    words = named.split()
    assert dict(zip(words[2::2], words[3::2], strict=True)) == {
        "--data": "trained_data.npz",
        **dict(zip(options[::2], options[1::2], strict=True)),
    }


def test_without_time_the_best_point_is_written_and_not_called_a_minimum(run, trained):
    problem = ("trained.npz", "--data", "trained_data.npz")
    done = run("settle", *problem, "--steps", 1, report=True)
    assert done.status == 1
    assert done.report["certificate"] is done.report["risk_interval"] is None
    assert ts.load_point("settled.npz").net == ts.load_point("trained.npz").net
    assert "local minimum" not in done.text


BAD = [
    (["settle", "missing.npz"], "point: missing.npz: expected an NPZ file"),
    (["settle", "pools.npz"], "expected a network with parameters"),
    (["settle", "random.npz", "--steps", "0"], "--steps: expected 1 or more, got 0"),
    (["settle", "random.npz", "--seconds", "nan"], "--seconds: expected a number > 0, got nan"),
    (["settle", "random.npz", "--seed", "-1"], "--seed: expected 0 or more, got -1"),
    (
        ["settle", "random.npz", "--delta", "1"],
        "--delta: expected --loss huber, got --loss squared",
    ),
    (
        ["settle", "random.npz", "--out", "new.npz", "--json", "new.npz"],
        "--json: expected another file than --out, got new.npz for both",
    ),
    (["settle", "random.npz", "--out", "."], "--out: .: expected a file, got a folder"),
    (["settle", "random.npz", "--out", "text.npz"], "--out: text.npz: expected no file, or one of"),
]


@over_bad_input(BAD)
def test_bad_input_is_one_line(run, options, message):
    is_refused_in_one_line(run(*options), message)
