"""Planes and lines go through the points that they should, and refuse what no scan can use."""

import re

import numpy as np
import pytest
import strict_device
from landscape_problems import (
    LOSS,
    NET,
    moved,
    network,
    over_networks,
    places,
    point,
    samples,
    twin_risk,
)

from tinyspur.engine.network import Network
from tinyspur.engine.parameters import Parameters
from tinyspur.landscape.directions import RandomDirections, random_direction
from tinyspur.landscape.planes import Lines, Plane
from tinyspur.landscape.scan import scan
from tinyspur.layers import Dense

OTHER = network("smooth")
MIXED = re.escape(f"expected points and directions of {NET}, got {OTHER}")


def test_points_have_the_numbers_of_their_risks():
    theta = point(network("dense"))
    for where in (Plane.random(theta, steps=3), Lines.random(theta, 3, steps=4)):
        numbers = [7, 0, 8, 4, 4]
        every = [there.vector for _, there in places(where)]
        found = list(where.points(numbers))
        assert len(found) == 5
        for n, there in zip(numbers, found, strict=True):
            assert there.net == theta.net
            assert np.array_equal(there.vector, every[n])


def test_random_planes_and_lines_are_grids_around_theta():
    theta = point(network("images"))
    plane = Plane.random(theta, 3, "layer", False, 0.5, 4)
    assert np.allclose(plane.alpha, [-0.5, -0.5 / 3, 0.5 / 3, 0.5])
    assert np.array_equal(plane.alpha, plane.beta)
    lines = Lines.random(theta, 6, 3, "layer", False, 2.0, 3)
    assert (plane.shape, lines.shape, lines.beta) == ((4, 4), (6, 3), None)
    assert np.array_equal(lines.alpha, [-2, 0, 2])
    for k in range(2):
        expected = random_direction(theta, (3, k), "layer", False).vector
        assert np.array_equal(plane.directions[k].vector, expected)
        assert np.array_equal(lines.directions[k].vector, expected)


@pytest.mark.parametrize("c", [0.5, 0.0, 2.0, -1.0])
def test_a_plane_through_three_points_contains_them(c):
    net = network("images")
    origin, a, across = point(net, 0), point(net, 1), point(net, 2)
    d = a.vector - origin.vector
    across = across.vector - (across.vector @ d) / (d @ d) * d
    b = Parameters(net, origin.vector + c * d + across)
    low, high = min(0, c), max(1, c)
    steps = 1 + round(4 * 1.5 * (high - low))  # ticks at all multiples of 1/4
    plane = Plane.through(origin, a, b, steps=steps)
    edge = (high - low) / 4
    assert np.allclose(plane.alpha, np.linspace(low - edge, high + edge, steps), atol=1e-12)
    assert np.allclose(plane.beta, np.linspace(-0.25, 1.25, steps), atol=1e-12)
    d1, d2 = (v.vector for v in plane.directions)
    assert abs(d1 @ d2) <= 1e-12 * (d1 @ d1)
    assert np.allclose(d2, across, atol=1e-12)
    for found, expected in ((origin, (0, 0)), (a, (1, 0)), (b, (c, 1))):
        assert plane.coordinates(found) == pytest.approx(expected, abs=1e-12)
    if steps == 7:
        data = samples(net)
        risks = scan(plane, data, LOSS).risks
        for there, place in ((origin, (1, 1)), (a, (5, 1)), (b, (round((c + 0.25) * 4), 5))):
            assert plane.alpha[place[0]] == pytest.approx(plane.coordinates(there)[0], abs=1e-12)
            assert risks[place] == pytest.approx(twin_risk(there, data, LOSS), rel=1e-11)


def test_margin_is_the_share_of_the_range_around_the_points():
    theta, a, b = (point(network("dense"), seed) for seed in range(3))
    tight, wide = (Plane.through(theta, a, b, 3, margin) for margin in (0, 1.5))
    low, high = tight.alpha[[0, -1]]
    assert tight.beta[[0, -1]].tolist() == [0, 1]
    assert wide.beta[[0, -1]].tolist() == [-1.5, 2.5]
    reach = 1.5 * (high - low)
    assert wide.alpha[[0, -1]] == pytest.approx([low - reach, high + reach])
    between = Lines.between(theta, a, 3, 1.5)
    assert between.alpha.tolist() == [-1.5, 0.5, 2.5]


def test_coordinates_are_those_of_the_nearest_point_of_the_plane():
    net = network("images")
    theta, d1, d2, away = (point(net, seed) for seed in range(4))
    plane = Plane(theta, (d1, d2), [0.0], [0.0])
    for alpha, beta in ((0.3, -2.0), (0.0, 0.0), (5.0, 1.0)):
        inside = moved(theta, (alpha, d1), (beta, d2))
        assert plane.coordinates(inside) == pytest.approx((alpha, beta), abs=1e-12)
    found = plane.coordinates(moved(theta, (1, away)))
    missed = moved(theta, (1, away), (-found[0], d1), (-found[1], d2)).vector - theta.vector
    assert abs(missed @ d1.vector) + abs(missed @ d2.vector) <= 1e-12 * (missed @ missed)


def test_a_line_between_two_points_ends_in_them():
    net, data = network("series"), samples(network("series"))
    a, b = point(net, 0), point(net, 1)
    line = Lines.between(a, b, steps=7)
    assert np.allclose(line.alpha, [-0.25, 0, 0.25, 0.5, 0.75, 1, 1.25])
    found = scan(line, data, LOSS)
    assert found.risks.shape == (1, 7)
    assert found.risks[0, 1] == pytest.approx(twin_risk(a, data, LOSS), rel=1e-12)
    assert found.risks[0, 5] == pytest.approx(twin_risk(b, data, LOSS), rel=1e-11)
    assert found.centre == net.risk(a, data, LOSS)
    middle = Parameters(net, (a.vector + b.vector) / 2)
    assert found.risks[0, 3] == pytest.approx(twin_risk(middle, data, LOSS), rel=1e-11)


def test_by_default_the_given_points_are_among_those_of_a_line_and_of_a_plane():
    theta, a, b = (point(network("dense"), seed) for seed in range(3))
    assert {0.0, 1.0} <= {*Lines.between(theta, a).alpha}
    b.vector[:] = theta.vector + b.vector - (b.vector @ a.vector) / (a.vector @ a.vector) * a.vector
    a.vector[:] += theta.vector
    plane = Plane.through(theta, a, b)  # a right angle: 0 <= alpha, beta <= 1
    for ticks in (plane.alpha, plane.beta):
        assert np.isclose(ticks, 0, atol=1e-15).any() and np.isclose(ticks, 1, atol=1e-15).any()


@over_networks
def test_within_ends_at_the_radius_in_the_maximum_norm(name):
    net = network(name)
    theta = point(net)
    plane = Plane(theta, (point(net, 1), point(net, 2)), [0.0], [0.0])
    edge = plane.within(0.3, corners=8)
    assert edge.shape == (8, 2)
    angles = np.arctan2(edge[:, 1], edge[:, 0])
    assert np.allclose(np.exp(1j * (angles - np.arange(8) * np.pi / 4)), 1)
    for alpha, beta in edge:
        there = moved(theta, (alpha, plane.directions[0]), (beta, plane.directions[1]))
        assert abs(there.vector - theta.vector).max() == pytest.approx(0.3, rel=1e-12)
    assert len(plane.within(1.0)) == 360
    lines = Lines.random(theta, 3, 1, "filter")
    ends = lines.within(0.3)
    assert ends.shape == (3,)
    assert (ends > 0).all()
    for alpha, d in zip(ends, lines.directions, strict=True):
        assert abs(alpha * d.vector).max() == pytest.approx(0.3, rel=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p, d: Plane(p, (d, d, d), [0.0], [0.0]), "plane: expected 2 directions, got 3"),
        (lambda p, d: Plane(p, (d,), [0.0], [0.0]), "plane: expected 2 directions, got 1"),
        (lambda p, d: Lines(p, (), [0.0]), "lines: expected one or more directions, got 0"),
        (lambda p, d: Lines(p, (d,), []), r"lines: expected finite numbers alpha \(n,\)"),
        (lambda p, d: Lines(p, (d,), 1.0), r"lines: expected finite numbers alpha \(n,\)"),
        (lambda p, d: Lines(p, (d,), [[1.0]]), r"lines: expected finite numbers alpha \(n,\)"),
        (lambda p, d: Lines(p, (d,), [1.0, np.nan]), "numbers alpha .* nan"),
        (lambda p, d: Plane(p, (d, d), [1.0], [np.inf]), "plane: .* numbers beta .*inf"),
        (lambda p, d: Plane(p, (d, d), [], [1.0]), "plane: expected finite numbers alpha"),
        (lambda p, d: Lines.random(p, 2, steps=0), "expected an extent > 0 and one .* 1.0 and 0"),
        (lambda p, d: Lines.random(p, 2, extent=0), "expected an extent > 0 and one .* got 0 and"),
        (lambda p, d: Plane.random(p, steps=2.5), "expected an extent > 0 and one .* and 2.5"),
        (lambda p, d: Lines.random(p.vector), "expected points .* as Parameters, got a ndarray"),
        (lambda p, d: Plane.through(p, d, None), "expected points .* as Parameters, got a None"),
        (lambda p, d: Plane.random(p, extent=np.nan), "expected an extent > 0 and one .* nan"),
        (lambda p, d: Lines(p, (d, NET.zeros()), [1.0]), "lines: direction 1: .* not all 0"),
        (lambda p, d: Plane(p, (NET.zeros(), d), [1.0], [1.0]), "plane: direction 0"),
        (lambda p, d: Lines(p, (moved(d, (np.nan, d)),), [1.0]), "direction 0: expected finite"),
        (lambda p, d: Lines(p, (d, OTHER.zeros()), [1.0]), MIXED),
        (lambda p, d: Plane(p, (OTHER.zeros(), d), [1.0], [0]), MIXED),
        (lambda p, d: Lines.between(p, OTHER.zeros()), MIXED),
        (lambda p, d: Plane.through(p, d, OTHER.zeros()), MIXED),
        (lambda p, d: Plane.through(p, OTHER.zeros(), d), MIXED),
        (lambda p, d: Plane.random(p).coordinates(OTHER.zeros()), MIXED),
        (lambda p, d: Lines.between(p, p), "direction 0: .* not all 0"),
        (lambda p, d: Plane.through(p, p, d), "expected three points that are not on one line"),
        (lambda p, d: Plane.through(p, d, p), "expected three points that are not on one line"),
        (lambda p, d: Plane.through(p, d, d), "expected three points that are not on one line"),
        (lambda p, d: Plane.through(p, p, p), "expected three points that are not on one line"),
        (
            lambda p, d: Plane.through(p, moved(p, (1, d)), moved(p, (-3, d))),
            "expected three points that are not on one line",
        ),
    ],
)
def test_what_no_scan_can_use_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make(point(NET), point(NET, 1))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_points_on_one_line_are_so_up_to_rounding(dtype):
    size = 1e-5 if dtype == np.float64 else 1.0
    theta, d = point(NET).to(np, dtype), dtype(size) * point(NET, 1).vector.astype(dtype)
    a, b = (Parameters(NET, theta.vector + dtype(c) * d) for c in (1, 3))
    with pytest.raises(ValueError, match="not on one line"):
        Plane.through(theta, a, b)


def test_points_and_directions_of_other_types_or_places_are_refused():
    theta, d = point(NET), point(NET, 1)
    for other in (d.to(np, np.float32), d.to(strict_device)):
        for make in (
            lambda o: Lines(theta, (o,), [1.0]),
            lambda o: Lines.between(theta, o),
            lambda o: Plane.through(theta, d, o),
        ):
            with pytest.raises(ValueError, match="expected"):
                make(other)


def test_random_directions_of_another_network_are_refused():
    # 1x5 -> 4 -> 6 -> 3 and a net of as many parameters: its directions would be taken as they are
    twin = Network((1, 5), [Dense(6), Dense(3), Dense(3), Dense(4)])
    for net in (OTHER, twin):
        with pytest.raises(ValueError, match="expected points and directions of"):
            Lines(point(NET), RandomDirections(point(net), 2), [1.0])


def test_a_plane_has_two_dimensions():
    theta, d = point(NET), point(NET, 1)
    with pytest.raises(ValueError, match="plane"):
        Plane(theta, (d, Parameters(NET, -2 * d.vector)), [1.0], [1.0])


def test_a_point_that_is_not_finite_is_refused():
    theta = point(NET)
    theta.vector[3] = np.nan
    with pytest.raises(ValueError, match="finite"):
        Lines(theta, (point(NET, 1),), [1.0])


def test_they_show_themselves_in_one_line():
    theta = point(network("dense"))
    plane, lines = Plane.random(theta, extent=0.5, steps=3), Lines.random(theta, 4, steps=5)
    assert repr(plane) == f"Plane(3 x 3 points, alpha -0.5 to 0.5, beta -0.5 to 0.5, {theta})"
    assert repr(lines) == f"Lines(4 lines of 5 points, alpha -1 to 1, {theta})"
    between = repr(Lines.between(theta, 2 * theta))
    assert between.startswith("Lines(1 line of 49 points, alpha -0.25 to 1.25, ")
