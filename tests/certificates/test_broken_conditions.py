"""Each condition of a strict minimum at kinks is broken once, and the point refused."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
from settled_points import SETTLED
from strict_problems import SQUARED, at_kink, exact_risk, kinks_feeding_kinks, moved

from tinyspur.certificates import growth
from tinyspur.certificates.box_hessians import second_order
from tinyspur.certificates.boxes import Box, first_order
from tinyspur.certificates.enclosures import exact
from tinyspur.certificates.growth import (
    Growth,
    box_around,
    couplings,
    exists,
    multiplier_rates,
    penalised,
    rooms,
)
from tinyspur.certificates.stationary import find_stationary, members_are_equal, near_kinks
from tinyspur.certificates.strict import certify_strict, inside_by
from tinyspur.datasets.samples import TrainingSet
from tinyspur.engine.activations import ReLU
from tinyspur.engine.held import Held
from tinyspur.engine.losses import AbsoluteLoss
from tinyspur.engine.network import Network
from tinyspur.engine.parameters import Parameters
from tinyspur.layers import Conv, Dense, MaxPool


def kinks_of(theta, data):
    return near_kinks(theta, data, SQUARED, 1e-6)


def saddle_with_a_kink():
    """Return at_kink's point with another unit that reads u, with the outgoing weight 0.

    The residuals e = -1, 0, 2, -1, -1, 1 sum up to 0 where u > 0, as e u does, so all derivatives
    are 0; but e x sums up to 5 there: R changes by 5/6 da dw for its weights a on the output and w
    on x.
    """
    _, data = at_kink()
    u = np.array([0.5, 1, -1, -0.25, -0.25, 0.5])
    x = np.stack([data.x[:, 0, 0], u], axis=1)[:, None]
    net = Network((1, 2), (Dense(2), Dense(1)))
    theta = Parameters(net, np.array([1.0, 0, 0, 1, 0, 0, 1, 0, 0]))
    return theta, TrainingSet(x, data.y)


def test_a_stationary_saddle_with_a_kink_is_refused():
    theta, data = saddle_with_a_kink()
    kinks = kinks_of(theta, data)
    assert len(kinks) == 1
    found = certify_strict(theta, data, SQUARED, kinks)
    assert not found.holds and found.kinks == 0 and "eigenvalue" in found.obstacle
    lower = moved(theta, 1e-3 * np.array([0, 0, -10.0, 0, 0, 0, 0, 1, 0]))
    assert exact_risk(lower, data) < exact_risk(theta, data)
    at = find_stationary(*at_kink(), SQUARED, kinks_of(*at_kink()), True)
    assert Growth(exists(at), at.theta).tangents.min() > 0  # without the other unit it is none


def test_each_kink_counts():
    theta, data = kinks_feeding_kinks()
    kinks = kinks_of(theta, data)
    assert len(kinks) == 4 and certify_strict(theta, data, SQUARED, kinks).holds
    for n in range(4):
        fewer = kinks[:n] + kinks[n + 1 :]
        assert not certify_strict(theta, data, SQUARED, fewer).holds
    assert not certify_strict(theta, data, SQUARED, [*kinks, kinks[0]]).holds


def test_a_unit_that_is_not_at_its_kink_is_not_held():
    theta, data = at_kink()
    [kink] = kinks_of(theta, data)
    for sample in (1, 3):  # where z is -1 and 1
        other = replace(kink, samples=np.array([sample]))
        assert not certify_strict(theta, data, SQUARED, [other]).holds
        assert not certify_strict(theta, data, SQUARED, [kink, other]).holds


def test_multipliers_on_or_beyond_their_bounds_have_no_room():
    theta, data = at_kink()
    at = find_stationary(theta, data, SQUARED, kinks_of(theta, data), True)
    proved = exists(at)
    signals = proved.first.signals
    assert rooms(at, signals, box_around(at, 0, 0.0, np.zeros(1)).multipliers).min() > 0
    for multiplier in (0.0, 1 / 3, -0.1, 0.4):  # C = 1/3
        off = at._replace(multipliers=np.array([multiplier]))
        assert rooms(off, signals, box_around(off, 0, 0.0, np.zeros(1)).multipliers).max() <= 0


def test_the_risk_is_lower_where_a_condition_is_broken():
    """With the target of the kink on the other side of its output, moving b lowers R exactly."""
    theta, data = at_kink()
    y = data.y.copy()
    y[2] = 2.0
    data = TrainingSet(data.x, y)
    assert not certify_strict(theta, data, SQUARED, kinks_of(theta, data)).holds
    here, off = exact_risk(theta, data), 1e-3 * np.array([0, 1.0, 0, 0])
    assert min(exact_risk(moved(theta, s * off), data) for s in (1, -1)) < here
    assert here == Fraction(2, 3)


def test_a_vertex_of_kinks_is_certified_in_any_units():
    """A line of least absolute deviations meets two targets, so that no tangent is left."""
    x, y = np.array([0.0, 1, 2, 4, 8]), np.array([0.0, 2, 1, 3.5, 5])
    data, loss = TrainingSet(x[:, None, None], y[:, None]), AbsoluteLoss()
    net = Network((1, 1), (Dense(1), Dense(1)))
    start = Parameters(net, [0.625, 1, 1, -1])
    kinks = near_kinks(start, data, loss, 1e-12)
    assert certify_strict(start, data, loss, kinks).holds
    for s in (2.0**30, 2.0**-30):
        found = certify_strict(Parameters(net, [0.625 * s, s, 1 / s, -1]), data, loss, kinks)
        assert found.holds and found.kinks == 2


def test_a_point_off_theta_star_in_a_frozen_coordinate_has_a_smaller_radius():
    at = find_stationary(*at_kink(), SQUARED, kinks_of(*at_kink()), True)
    proved, room = exists(at), np.array([1 / 6])

    def radius(start):
        growth = Growth(proved, start)
        growth.weights = growth.choose_weights(room, 0.5)
        return growth.radius()

    here, off = radius(at.theta), np.zeros(4)
    [frozen] = at.coordinates.frozen
    off[frozen] = here / 2
    assert 0 < radius(moved(at.theta, off)) < 0.8 * here
    assert radius(moved(at.theta, 4 * off)) == 0


def test_members_of_another_map_or_with_other_ties_are_refused():
    theta, data = at_kink()
    [kink] = kinks_of(theta, data)
    found = certify_strict(theta, data, SQUARED, [replace(kink, map=1)])
    assert not found.holds and "not the same function" in found.obstacle
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 1, 4))
    data = TrainingSet(x, np.sin(2 * x[:, 0, :1]) + x[:, 0, 1:2])
    net = Network((1, 4), (Conv(2), MaxPool(2), Dense(1)))
    theta = Parameters(net, SETTLED["ties of max poolings"])
    kinks = kinks_of(theta, data)
    first, second = (n for n, kink in enumerate(kinks) if kink.pairs is not None and kink.map == 0)
    both = [
        np.concatenate([getattr(kinks[n], name) for n in (first, second)])
        for name in ("units", "samples", "pairs")
    ]
    assert certify_strict(theta, data, SQUARED, kinks).holds
    units, samples, pairs = both
    joined = replace(kinks[first], units=units, samples=samples, pairs=pairs)
    others = [kink for n, kink in enumerate(kinks) if n not in (first, second)]
    at = find_stationary(theta, data, SQUARED, kinks, True)
    assert members_are_equal(at.held, at.theta)
    assert not members_are_equal(Held(net, data, SQUARED, [joined, *others]), at.theta)


# The lemma of `growth`: where one of its conditions fails at a point of the box it does not hold


def growth_at(theta, data, **changes):
    """Return the growth around an exact minimum, with changes of what is proved of it."""
    at = find_stationary(theta, data, SQUARED, kinks_of(theta, data), True)
    proved = exists(at)._replace(**changes)
    found = Growth(proved, at.theta)
    found.weights = found.choose_weights(np.full(len(at.multipliers), 1 / 6), 0.5)
    return found


def without_biases(*values):
    """Return s(w x), or a s(w x), and samples at 1 and -8: the first one's target 1 is met."""
    last = Dense(1, bias=False, activation=ReLU() if len(values) == 1 else None)
    net = Network((1, 1), (*[Dense(1, bias=False)] * (len(values) - 1), last))
    data = TrainingSet(np.array([[[1.0]], [[-8]]]), np.array([[1.0], [2]]))
    return Parameters(net, np.array(values)), data


def test_multipliers_that_follow_a_frozen_weight_must_stay_inside():
    """At w = a = 1 - r and c = -r it is 6 lambda = 1 / w for the minimum, 6 C = a (c + 2)."""
    found = growth_at(*at_kink())
    assert found.at.coordinates.frozen.tolist() == [0]
    for r, inside in ((0.01, True), (0.25, False)):
        assert ((1 - r) * (2 - r) > 1 / (1 - r)) == inside
        assert found.holds(r) == inside
    assert found.obstacle.startswith("a multiplier may leave its bounds beyond, of")


def test_rates_of_multipliers_in_the_box_must_leave_them_where_they_are_expected(monkeypatch):
    """They are expected at most 3/2 times as fast as at the minimum."""
    found, factors = growth_at(*at_kink()), []

    def faster(*arguments):
        return factors.pop(0) * multiplier_rates(*arguments)

    monkeypatch.setattr(growth, "multiplier_rates", faster)
    for factor, holds in ((1.0, True), (1.4, True), (2.0, False)):
        factors[:] = 1.0, factor
        assert found.holds(0.01) == holds and not factors


def test_a_multiplier_that_is_hardly_known_is_not_inside():
    theta, data = at_kink()
    assert growth_at(theta, data, multiplier_radius=np.array([0.1])).holds(0.01)
    found = growth_at(theta, data, multiplier_radius=np.array([0.17]))  # it is 1 / 6
    assert not found.holds(0.01) and found.obstacle.startswith("a multiplier may leave")


def test_a_held_unit_that_gives_something_may_push_its_multiplier_out():
    """With s(z) = z / 2 for z < 0: 6 lambda = 64 must be above 6 C / 2 = 32 (64 b / 2 + 15 / 8),
    the mean on the way from b = 0; that ends at b = 1 / 256.
    """
    net = Network((1, 1), (Dense(1), Dense(1)), ReLU(0.5))
    residuals = np.array([0, -7 / 4, 15 / 8, 5 / 8, -3 / 4, 0])
    x, theta = np.arange(-2.0, 4)[:, None, None], Parameters(net, np.array([1 / 64, 0, 64, 0]))
    data = TrainingSet(x, net.forward(theta, x) - residuals[:, None])
    assert certify_strict(theta, data, SQUARED).kinks == 1
    found = growth_at(theta, data)
    assert found.holds(2.0**-16)
    assert not found.holds(1.25 / 256) and found.obstacle.startswith("a multiplier may leave")


def test_the_minimum_itself_is_in_the_box():
    theta, data = without_biases(1.0)
    assert growth_at(theta, data, free_radius=np.array([0.5])).holds(0.2)
    found = growth_at(theta, data, free_radius=np.array([1.1]))
    assert not found.holds(0.2) and found.obstacle.startswith("a unit")


def test_the_hessian_is_that_of_all_that_is_passed(monkeypatch):
    theta, data = at_kink()
    found = growth_at(theta, data, free_radius=np.full(3, 0.001))
    free, r, boxes = found.at.coordinates.free, 0.01, []

    def noted(held, box, coordinates):
        boxes.append(box)
        return second_order(held, box, coordinates)

    monkeypatch.setattr(growth, "second_order", noted)
    assert found.holds(r)
    rates = multiplier_rates(found.at, boxes[0], found.at.coordinates.flow(found.at.held, boxes[0]))
    assert boxes[0].radii.vector[free].min() >= 0.011 and boxes[0].radii.vector.min() >= r
    assert (boxes[0].multipliers.radius >= rates * r).all()


def test_what_follows_a_frozen_weight_stays_in_the_box():
    """With w = 1/2 it is a = 2, which is farther than 3/2 times as far as to first order."""
    theta, data = without_biases(1.0, 1.0)
    found = growth_at(theta, data)
    assert found.holds(0.1) and not found.holds(0.5)
    assert found.obstacle == "the frozen coordinates do not follow from the others beyond"


def test_weights_of_squares_leave_what_a_kink_has_of_room(monkeypatch):
    """At x = 1 it is v = w + b: by moves of r it becomes 2 r, half of it by the frozen one."""
    theta, data = at_kink()
    data, seen = TrainingSet(data.x + 1, data.y), []
    found = growth_at(moved(theta, [0, -1, 0, 0]), data)
    assert found.at.coordinates.frozen.tolist()[0] in (0, 1)
    found.weights = np.full(1, 1e9)

    def noted(H, Z, weights):
        seen.append(weights)
        return penalised(H, Z, weights)

    monkeypatch.setattr(growth, "penalised", noted)
    r = 2.0**-10
    found.holds(r)
    assert 0.9 / 6 < seen[0] * 2 * r / 2 <= 1 / 6  # lambda = 1 / 6 and C - lambda = 1 / 6


def test_kinks_of_units_that_feed_others_take_of_their_room(monkeypatch):
    theta, data = kinks_feeding_kinks()
    before = certify_strict(theta, data, SQUARED, kinks_of(theta, data)).radius

    def more(at, box):
        free = at.coordinates.free
        assert not free.size or box.radii.vector[free].min() > 0
        return 1e6 * couplings(at, box)

    monkeypatch.setattr(growth, "couplings", more)
    assert certify_strict(theta, data, SQUARED, kinks_of(theta, data)).radius < before / 10


def test_a_box_with_a_second_stationary_point_is_not_one_of_exactly_one():
    """From 0.4 a step of Newton's method leads to 1; there is another minimum at -1/4."""
    theta, data = without_biases(1.0)
    at = find_stationary(theta, data, SQUARED, [], True)
    found = exists(at._replace(theta=moved(theta, [-0.1])))
    assert 0.1 <= found.free_radius[0] < 1
    found = exists(at._replace(theta=moved(theta, [-0.7])))
    assert isinstance(found, str) and "a unit may change its pattern on the way" in found


def test_signals_at_held_units_are_those_of_all_that_the_units_may_give():
    """C_k = a (a s(b) + c - y) / 6 of `at_kink`, where held units give 0 and released ones s(b)."""
    theta, data = at_kink()
    held, radii = Held(theta.net, data, SQUARED, kinks_of(theta, data)), theta.net.zeros()
    radii.b[1][:] = 0.3
    box = Box(theta, radii, exact(np.array([1 / 6])))
    signals = [first_order(held, box, released).signals for released in (False, True)]
    assert 2 / 6 - 1e-12 < signals[0].low[0] < signals[0].high[0] < 2 / 6 + 1e-12
    assert signals[1].low[0] <= 2 / 6 and 2.3 / 6 <= signals[1].high[0] < 2.31 / 6


def test_a_leaky_unit_that_is_released_may_give_less_than_0():
    """There s(-0.3) is -0.15 and s(0.3) is 0.3."""
    theta, data = at_kink(slope=0.5)
    held, radii = Held(theta.net, data, SQUARED, kinks_of(theta, data)), theta.net.zeros()
    radii.b[1][:] = 0.3
    C = first_order(held, Box(theta, radii, exact(np.array([1 / 6]))), True).signals
    assert 1.84 / 6 < C.low[0] <= 1.85 / 6 and 2.3 / 6 <= C.high[0] < 2.31 / 6


def test_signals_of_0_leave_no_room_and_are_no_division_by_0():
    with np.errstate(divide="raise", invalid="raise"):
        assert inside_by(np.array([0.0, 1.0]), exact(np.array([0.0, 4.0]))) == 0
        share = inside_by(np.array([1.0, 1.0]), exact(np.array([2.0, 4.0])))
    assert 0.25 - 1e-12 < share <= 0.25
