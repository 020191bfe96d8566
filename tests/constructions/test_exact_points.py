"""Exact points: minima as fractions, which a program that imports nothing of ours checks."""

import functools
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import strict_device

import tinyspur as ts
from tinyspur.certificates.exact import ExactPoint
from tinyspur.certificates.exact_changes import changes
from tinyspur.certificates.exact_fits import (
    check_minimum,
    exact_minimum,
    find_cells,
    fit_class,
    samples_of,
)
from tinyspur.errors import AssumptionError
from tinyspur.fitting import rational
from tinyspur.fitting.rational import Rational

CHECK = Path(__file__).resolve().parents[2] / "demos" / "check_proof.py"
LOSS = ts.SquaredLoss()


def samples(seed, number, shape, width, grid=4):
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(-1, 1, (number, *shape)), rng.standard_normal((number, width))
    return ts.TrainingSet(np.round(x * grid) / grid, np.round(y * grid) / grid)


def pair(layers, data):
    net = ts.Network(data.x.shape[1:], layers)
    theta, relays = ts.linear_minimum(net, data, LOSS)
    return ts.find_spurious_minimum(theta, relays, data, LOSS)


def dense(data, *widths, slope=0.0):
    return ts.Network(data.x.shape[1:], [ts.Dense(n) for n in widths], ts.ReLU(slope))


def gates(data, groups, *widths, slope=0.0):
    net = dense(data, *widths, slope=slope)
    along = np.ones(data.x[0].size)
    return ts.gated_minimum(net, data, LOSS, ts.Groups.equal(data.x, along, groups))


@functools.cache
def linear():
    data = samples(0, 12, (1, 2, 2), 2)
    return pair([ts.Conv(3), ts.Conv(3), ts.Dense(2)], data), data


def proved(points, path, claim=None):
    """Return what the checker prints of the proof file, which has to be proved."""
    points.save(path, claim)
    assert 0.4 < path.stat().st_size / points.file_size(claim) < 2.5
    return checked(path)


def checked(path):
    done = subprocess.run([sys.executable, CHECK, path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_linear_minimum_and_a_lower_point_are_proved(tmp_path):
    found, data = linear()
    points = ts.exact(found, data, LOSS)
    out = proved(points, tmp_path / "proof.json")
    assert out.startswith(f"{tmp_path / 'proof.json'}:\nspurious-local-minimum: 12 sample(s)")
    assert f"R(theta) = {points.risk}," in out
    assert "all outputs are equal" in proved(points, tmp_path / "equal.json", "equal-risk")
    assert points.verdict == "spurious local minimum" and points.risk > points.risks["lower"]
    assert float(points.risk) == pytest.approx(found.risk, rel=1e-12)
    assert float(points.risks["lower"]) == pytest.approx(found.lower.risk, rel=1e-6)


@pytest.mark.parametrize("name", ["theta", "theta_prime", "lower"])
def test_exact_points_are_next_to_the_stored_ones(name):
    found, data = linear()
    points = ts.exact(found, data, LOSS)
    stored = found.lower.theta if name == "lower" else getattr(found, name)
    for key, array in stored.arrays().items():
        exact = points.points[name][key]
        assert exact.shape == array.shape and isinstance(exact.flat[0], Fraction)
        assert abs(exact.astype(float) - array).max() < 1e-6
    if name == "theta":
        apart = max(
            abs(a - Fraction(float(b)))
            for key, array in stored.arrays().items()
            for a, b in zip(points.points[name][key].flat, array.flat, strict=True)
        )
        assert points.distance == apart > 0


def test_points_print_what_was_checked():
    found, data = linear()
    points = ts.exact(found, data, LOSS)
    lines = str(points).split("\n  ")
    assert lines[0].startswith("exact points: 140 parameters, fractions of up to ")
    assert f"R(theta) = {points.risk} = {float(points.risk):.12g}" in lines
    assert "R(theta') = R(theta)" in lines
    assert "checked: all outputs of theta' are those of theta" in lines
    assert lines[-1] == "verdict: spurious local minimum, proved in fractions"
    assert repr(points) == str(points)
    longest = max(
        max(v.numerator.bit_length(), v.denominator.bit_length())
        for point in points.points.values()
        for array in point.values()
        for v in array.flat
    )
    assert longest <= points.bits


def test_a_point_that_is_not_lower_is_none_of_the_points():
    found, data = linear()
    step, theta = -found.lower.step, found.theta_prime.copy()
    theta.b[found.lower.layer][found.lower.map] += step  # to the other side
    points = ts.exact(
        replace(found, lower=replace(found.lower, theta=theta, step=step)), data, LOSS
    )
    assert set(points.risks) == set(points.points) == {"theta", "theta_prime"}
    assert (points.verdict, points.claim) == ("local minimum", "local-minimum")
    assert "R(lower)" not in str(points)


POOLED = [ts.Conv(4), ts.Conv(6), ts.Conv(6), ts.AveragePool(2), ts.Dense(2)]
CASES = {
    "average pooling": lambda d: pair(POOLED, d),
    "windows of 3": lambda d: pair([ts.AveragePool(3), ts.Conv(3), ts.Conv(3), ts.Dense(2)], d),
    "max pooling first": lambda d: pair([ts.MaxPool(2), ts.Conv(3), ts.Conv(3), ts.Dense(2)], d),
    "dense layers above": lambda d: pair(
        [ts.Conv(3, kernel=1), ts.Conv(3, kernel=1), ts.Dense(3), ts.Dense(4), ts.Dense(2)], d
    ),
    "nontrivial": lambda d: ts.nontrivial_minimum(
        ts.Network(d.x.shape[1:], [ts.Conv(4), ts.Dense(2)]), d, LOSS, isolated=2
    ),
    "gates": lambda d: gates(d, 2, 10, 3, 2),
    "leaky gates": lambda d: gates(d, 3, 9, 2, slope=0.1),
    "few samples": lambda d: gates(d, 7, 24, 2),
    "refined gates": lambda d: ts.spurious_pair(
        dense(d, 14, 2), d, LOSS, ts.Groups.equal(d.x, np.ones(d.x[0].size), 2)
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_minima_of_all_constructions_are_proved(name, tmp_path):
    data = samples(1, 20, (1, 6), 2)
    found = CASES[name](data)
    points = ts.exact(found, data, LOSS)
    out = proved(points, tmp_path / "proof.json")
    assert ("R(lower) is below R(theta)" in out) == (not isinstance(found, ts.Parameters))


@pytest.mark.parametrize("library", ["python-flint", "without"])
def test_constant_and_dependent_pixels_and_equal_images_are_no_obstacle(
    library, tmp_path, monkeypatch
):
    if library == "without":
        monkeypatch.setattr(rational, "flint", None)
    data = samples(2, 14, (1, 2, 2), 2)
    data.x[:, 0, 0, 0] = 0.3
    data.x[:, 0, 0, 1] = 2 * data.x[:, 0, 1, 1] + 1  # exact on this grid
    data.x[5] = data.x[6]
    found = pair([ts.Conv(3), ts.Conv(3), ts.Dense(2)], data)
    points = ts.exact(found, data, LOSS)
    assert "R(lower) is below" in proved(points, tmp_path / "proof.json")
    kept = ts.exact(found.theta, data, LOSS)
    assert kept.risk == points.risk and kept.distance == points.distance < Fraction(1, 10**12)


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e7])
def test_pixels_of_very_different_sizes_are_no_obstacle(scale, tmp_path):
    data = samples(3, 10, (1, 3), 1)
    data = ts.TrainingSet(data.x * [scale, 1.0, 1e3], data.y * 1e4)
    theta, _ = ts.linear_minimum(
        ts.Network((1, 3), [ts.Conv(3, kernel=1), ts.Conv(3, kernel=1), ts.Dense(1)]), data, LOSS
    )
    proved(ts.exact(theta, data, LOSS), tmp_path / "proof.json")


def test_a_float32_point_is_next_to_an_exact_minimum_too(tmp_path):
    found, data = linear()
    theta = found.theta.to(np, np.float32)
    points = ts.exact(theta, data, LOSS)
    assert Fraction(1, 10**9) < points.distance < Fraction(1, 10**6)
    proved(points, tmp_path / "proof.json")


def test_points_on_a_device_are_the_same_fractions():
    found, data = linear()
    theta, relays = found.theta.to(strict_device), found.pair
    there = ts.find_spurious_minimum(theta, relays, data, LOSS)
    points = ts.exact(there, data, LOSS)
    assert points.risks == ts.exact(found, data, LOSS).risks


@pytest.mark.parametrize("layers", [[ts.Dense(1)], [ts.Dense(2), ts.Dense(1)]])
def test_where_the_read_weights_had_to_be_moved_the_lower_point_is_still_lower(layers, tmp_path):
    half = np.random.default_rng(0).integers(-4, 5, (8, 1, 2)).astype(float)
    even = (half**2).sum(axis=(1, 2))
    data = ts.TrainingSet(np.concatenate([half, -half]), np.concatenate([even, even]))
    found = pair([ts.Conv(2, kernel=1), ts.Conv(3, kernel=1), ts.Conv(3, kernel=1), *layers], data)
    assert found.theta_prime_risk > found.risk
    points = ts.exact(found, data, LOSS)
    assert set(points.risks) == {"theta", "lower"}
    proved(points, tmp_path / "proof.json")
    with pytest.raises(ValueError, match=r"^proof: expected the points \['theta', 'theta_prime'"):
        points.save(tmp_path / "equal.json", "equal-risk")


def test_max_pooling_above_relays_is_exact_where_it_selects_the_same_entries(tmp_path):
    data = samples(4, 10, (1, 4), 1)
    data.x[:, 0, [0, 3]] += 3
    data.x[:, 0, [1, 2]] = 0.5
    net = ts.Network((1, 4), [ts.Conv(2, kernel=1), ts.MaxPool(2), ts.Dense(1)])
    theta, fit = net.zeros(), ts.fit_affine(data.x[:, 0, [0, 3]] + 1, data.y, LOSS)
    theta.W[1].weights[0], theta.b[1][:] = 1, [1, -1]
    theta.W[3].weights[:, :2], theta.b[3][:] = fit.weights, fit.bias
    proved(ts.exact(theta, data, LOSS), tmp_path / "proof.json")
    data.x[0, 0, :2] = 3
    with pytest.raises(AssumptionError, match=r"^exact: expected no unit at the kink, got 1: the"):
        ts.exact(theta, data, LOSS)


def test_a_dead_network_is_at_a_minimum(tmp_path):
    data = samples(5, 8, (1, 2), 2)
    theta = dense(data, 3, 2, 2).zeros()
    for b in theta.b.values():
        b[:] = -1
    theta.b[3][:] = data.y.mean(axis=0)
    points = ts.exact(theta, data, LOSS)
    y = [[Fraction(float(v)) for v in column] for column in data.y.T]
    squares = sum((v - sum(column) / 8) ** 2 for column in y for v in column)
    assert points.risk == squares / 16
    proved(points, tmp_path / "proof.json")


def test_a_dead_output_is_at_a_minimum_whatever_is_below(tmp_path):
    """The output is 0 nearby, the mean of the targets; units below are active or at their kink."""
    data = ts.TrainingSet([[1.0], [2], [4]], [2.0, -5, 3])
    net = ts.Network((1, 1), [ts.Dense(2, bias=False), ts.Dense(1, activation=ts.ReLU())])
    theta = ts.Parameters(net, np.array([1.0, 0, -1, 3, -2]))
    points = ts.exact(theta, data, LOSS)
    assert points.risk == Fraction(38, 6)
    points.save(tmp_path / "proof.json")
    checked(tmp_path / "proof.json")


def test_a_risk_of_any_size_is_printed_and_a_distance_never_less_than_it_is(tmp_path):
    data = ts.TrainingSet([[1.0], [2], [4]], [0.0, 0, 3e200])
    theta = ts.Parameters(dense(data, 1), np.array([1e200, -1.5e200]))
    theta.vector[:] = np.polyfit(data.x.ravel(), data.y.ravel(), 1)
    points = ts.exact(theta, data, LOSS)
    assert "\n  R(theta) = 1.07142857143e+399\n" in str(points)
    said = str(points).split("theta is within ")[1].split()[0]
    assert points.distance <= Fraction(said) < points.distance * 2
    points.save(tmp_path / "proof.json")
    assert "R(theta) = about 1.07142857e+399" in checked(tmp_path / "proof.json")


def test_what_was_solved_for_is_checked_again():
    found, data = linear()
    minimum = exact_minimum(found.theta, data, LOSS)
    cells = find_cells(minimum.point, data)
    fits = [fit_class(*samples_of(found.theta, data, cell)) for cell in cells]
    assert check_minimum(minimum.point, 3, data, cells, fits) == minimum.risk
    own = minimum.point.own[3]
    wrong = ExactPoint(found.theta, {3: Rational(own.n + (own.n == own.n[0, -1]), own.d)})
    with pytest.raises(AssumptionError, match=r"^exact: expected G_s = 0 in every class"):
        check_minimum(wrong, 3, data, cells, fits)
    others = [cell._replace(samples=cell.samples[1:]) for cell in cells]
    with pytest.raises(AssumptionError, match=r"^exact: expected the patterns of the stored point"):
        check_minimum(minimum.point, 1, data, others, fits)
    prime = ts.exact(found, data, LOSS).exact["theta_prime"]
    assert changes(minimum.point, prime, 3, data).is_zero()
    b = prime.own_biases[2]
    off = prime.own_biases | {2: Rational(b.n + (np.arange(3) == found.lower.map), b.d)}
    moved = ExactPoint(prime.theta, prime.own, off)
    assert not changes(minimum.point, moved, 3, data).is_zero()


def moved(theta, by):
    theta = theta.copy()
    theta.b[theta.net.depth][0] += by
    return theta


def test_points_at_no_minimum_are_refused_with_the_reason():
    found, data = linear()
    near = "exact: expected a point next to one where the weights of a dense layer make the outputs"
    for by in (0.01, 3.0):
        with pytest.raises(AssumptionError) as caught:
            ts.exact(moved(found.theta, by), data, LOSS)
        assert str(caught.value).startswith(near)
        assert str(caught.value).endswith(f"got one at distance {by:.2g} from it")
    with pytest.raises(AssumptionError, match="in each of 12 pattern classes, got one"):
        ts.exact(ts.kaiming_start(found.theta.net, 0), data, LOSS)
    literal, _ = ts.linear_minimum(
        found.theta.net, ts.TrainingSet(abs(data.x), data.y), LOSS, variant="literal"
    )
    with pytest.raises(AssumptionError, match=r"^exact: expected no unit at the kink, got \d+:"):
        ts.exact(literal, data, LOSS)


def test_what_has_no_fractions_or_too_long_ones_is_refused_in_words(monkeypatch):
    found, data = linear()
    with pytest.raises(ValueError, match=r"^exact: expected the squared loss, got absolute"):
        ts.exact(found, data, ts.AbsoluteLoss())
    tanh = ts.Network((1, 2, 2), [ts.Dense(2), ts.Dense(2)], ts.Tanh()).zeros()
    with pytest.raises(ValueError, match=r"^exact: expected a piecewise linear activation"):
        ts.exact(tanh, data, LOSS)
    monkeypatch.setattr(rational, "WORK", {True: 1000, False: 1000})
    with pytest.raises(AssumptionError, match=r"^exact: expected at most 3 unknowns with coeff"):
        ts.exact(found, data, LOSS)


def test_what_settled_at_a_kink_is_a_point_of_fractions():
    rng = np.random.default_rng(0)
    x = np.round(rng.normal(size=(25, 1, 2)), 2)
    y = np.round(abs(x[:, 0, :1]) + 0.3 * rng.normal(size=(25, 1)), 2)
    net, data = ts.Network((1, 2), [ts.Dense(2), ts.Dense(1)]), ts.TrainingSet(x, y)
    found = ts.settle(ts.kaiming_start(net, 0), data, ts.SquaredLoss())
    assert found.holds and found.kinks
    points = ts.exact(found, data, ts.SquaredLoss())
    low, high = found.risk_interval
    assert low <= points.risk <= high
    assert points.distance <= found.distance
