"""Exact minima of one hidden layer: planted at kinks, found again, and checked by the checker."""

import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import scipy.optimize
from shared import in_turn

import tinyspur as ts
from tinyspur.errors import AssumptionError

CHECK = Path(__file__).resolve().parents[2] / "demos" / "check_proof.py"
LOSS = ts.SquaredLoss()


def hinge(slope=0.0, outgoing=1.0, off=1e-13):
    """Return sigma(x), at the kink for x = 0, where its residuals 1, 1, -3, 2, -1 keep it.

    They sum up to 0, as x times those for x > 0 does; lambda = 1/5 and C = 3/5.
    """
    x, y = np.array([[-2.0], [-1], [0], [1], [2]]), np.array([1.0, 1, -3, 3, 1])
    net = ts.Network((1, 1), [ts.Dense(1), ts.Dense(1)], ts.ReLU(slope))
    theta = net.zeros()
    theta.W[1].weights[:], theta.W[2].weights[:] = 1 / outgoing, outgoing
    theta.b[1][:] = theta.b[2][:] = off
    return theta, ts.TrainingSet(x, y)


def planted(seed, slope, dead=0, copies=0):
    """Return a minimum with units at kinks: first the point, then targets that make it one."""
    rng, e = np.random.default_rng(seed), None
    while e is None:
        theta, x, outputs, kinks, e = attempt(rng, slope, dead, copies)
    return theta, ts.TrainingSet(x, outputs - e), kinks


def attempt(rng, slope, dead, copies):
    """Return a point at kinks, and residuals that make it a minimum, or None for these."""
    x = np.round(rng.uniform(-1, 1, (30, 2)) * 64) / 64
    x[:copies] = x[copies : 2 * copies]
    W = np.round(rng.standard_normal((3, 2)) * 8) / 8
    a, b = np.array([1.5, -2.0, 0.75]), -(W[:2] * x[[0, 1]]).sum(axis=1)
    W, a = np.vstack([W, np.ones((dead, 2))]), np.append(a, np.ones(dead))
    b = np.concatenate([b, [0.1], [-9.0] * dead])
    z, hats = W @ x.T + b[:, None], np.hstack([x, np.ones((len(x), 1))])
    slopes = np.where(z > 0, 1, np.where(z < 0, slope, (1 + slope) / 2))
    J = [(a_j * s)[:, None] * hats for a_j, s in zip(a, slopes, strict=True)]
    bounds = [[-3.0, 3.0] for _ in x]
    for j, i in np.argwhere(z == 0):
        bounds[i][int(a[j] < 0)] = 0.5 * np.sign(a[j])
    costs, J = rng.standard_normal(len(x)), np.hstack([*J, np.ones((len(x), 1))])
    e = scipy.optimize.linprog(costs, A_eq=J.T, b_eq=0 * J[0], bounds=bounds).x
    net = ts.Network((1, 2), [ts.Dense(len(a)), ts.Dense(1)], ts.ReLU(slope))
    theta = net.zeros()
    theta.W[1].weights[:], theta.b[1][:] = W + 1e-12 * rng.standard_normal(W.shape), b
    theta.W[2].weights[:] = a
    outputs = a @ np.where(z > 0, z, slope * z)
    return theta, x, outputs, int((z == 0).sum()), e


def proved(points, path):
    points.save(path)
    done = subprocess.run([sys.executable, CHECK, path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("outgoing", [1.0, -1.0, 4.0])
def test_the_smallest_minimum_at_a_kink_is_found_to_the_last_digit(outgoing, tmp_path):
    theta, data = hinge(outgoing=abs(outgoing))
    if outgoing < 0:
        theta.W[2].weights[:] = -1
        data.y[:] *= -1
    points = ts.exact(theta, data, LOSS)
    assert points.points["theta"]["W1"][0, 0] == 1 / abs(Fraction(outgoing))
    assert points.points["theta"]["b1"][0] == points.points["theta"]["b2"][0] == 0
    assert points.kinks == [(2, 1, 0)] and points.risk == Fraction(8, 5)
    assert points.multipliers == [abs(Fraction(outgoing)) / 5]
    assert points.frozen == [(2, "W", 0, 0)]
    assert "R(theta) = 8/5 = 1.6" in str(points)
    assert "multipliers of 1 kink(s)" in proved(points, tmp_path / "proof.json")


@in_turn(
    pytest.mark.parametrize("slope, dead, copies", [(0.0, 0, 0), (0.0, 2, 3), (0.1, 0, 3)]),
    pytest.mark.parametrize("seed", [0, 1]),
)
def test_planted_minima_at_kinks_are_found_and_proved(seed, slope, dead, copies, tmp_path):
    theta, data, kinks = planted(seed, slope, dead, copies)
    points = ts.exact(theta, data, LOSS)
    assert points.distance < Fraction(1, 10**10)
    assert 2 <= len(points.kinks) <= kinks
    assert len(points.kinks) == kinks or copies  # those of equal samples count as one
    proved(points, tmp_path / "proof.json")
    named = [(i, j) for i, _, j in points.kinks]
    if not copies:
        assert ts.exact(theta, data, LOSS, named).risk == points.risk
        with pytest.raises(AssumptionError, match=r"^exact: expected"):
            ts.exact(theta, data, LOSS, named[:1])


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_strict_minimum_without_kinks_is_found_and_proved(sign, tmp_path):
    theta, data = hinge()
    data.x[2] = -0.5
    data.y[:, 0] = [1, 0, -1, sign, 3 * sign]  # sigma(2x - 1), and the mean 0 of the rest
    theta.W[1].weights[:], theta.b[1][:], theta.W[2].weights[:] = 2, -1 + 1e-12, sign
    points = ts.exact(theta, data, LOSS)
    assert points.kinks == [] and points.risk == Fraction(1, 5)
    assert points.points["theta"]["b1"][0] == -1
    proved(points, tmp_path / "proof.json")


def test_what_is_no_minimum_is_refused_with_the_reason():
    theta, data = hinge(off=0.05)
    with pytest.raises(AssumptionError, match=r"^exact: expected a point next to a local minimum"):
        ts.exact(theta, data, LOSS)
    theta, data = hinge()
    theta.W[2].weights[:] = 0
    with pytest.raises(AssumptionError, match=r"^exact: expected outgoing weights that are not 0"):
        ts.exact(theta, data, LOSS)
    with pytest.raises(ValueError, match=r"^exact: expected kinks \(sample, unit\) below 5 and 1"):
        ts.exact(hinge()[0], data, LOSS, [(5, 0)])
    wide = ts.Network((1, 300), [ts.Dense(9), ts.Dense(1)])
    images = ts.TrainingSet(np.random.default_rng(0).random((3, 300)), np.zeros(3))
    with pytest.raises(AssumptionError, match=r"^exact: expected at most \d+ unknowns with coeff"):
        ts.exact(ts.kaiming_start(wide, 0), images, LOSS, [])
    deep = ts.Network((1, 1), [ts.Dense(1), ts.Dense(1), ts.Dense(1)]).zeros()
    with pytest.raises(ValueError, match=r"^exact: expected one hidden layer and one output, got"):
        ts.exact(deep, data, LOSS, [(0, 0)])


@pytest.mark.parametrize("residual", [0.5, -0.5])
def test_a_multiplier_out_of_its_bounds_is_named(residual):
    theta, data = hinge()  # lambda = 1/5, and C a fifth of the residual at the kink
    data.y[:, 0] = [-1 + residual, 0, -residual, 3, 1]
    C = residual / 5
    words = f"multiplier strictly between 0 and {C:.3g} at the kink of unit 0 for sample 2, got 0.2"
    with pytest.raises(AssumptionError, match=words):
        ts.exact(theta, data, LOSS)
