"""Settling: known minima at kinks are reached, and where it settles the risk grows on all sides."""

import dataclasses
import functools
import math

import numpy as np
import pytest
import scipy.optimize
from shared import random_theta
from strict_problems import noisy_teacher

from tinyspur.console import Bar
from tinyspur.datasets.samples import TrainingSet
from tinyspur.engine.activations import ReLU, Tanh
from tinyspur.engine.held import Held, HeldKink
from tinyspur.engine.losses import AbsoluteLoss, CrossEntropy, HuberLoss, SquaredLoss
from tinyspur.engine.network import Network
from tinyspur.engine.parameters import Parameters
from tinyspur.fitting.box_qp import minimise_in_box
from tinyspur.fitting.kink_model import Candidates, Quadratic
from tinyspur.fitting.kinked_newton import KinkedNewton
from tinyspur.fitting.settle import _stopped, settle
from tinyspur.fitting.training import kaiming_start
from tinyspur.layers import AveragePool, Conv, Dense, MaxPool


def risk_around(theta, data, loss, kinks):
    """Check that R is lower nowhere: along +- each direction that leaves one kink, and at random.

    Along the former it grows at first order.
    """
    net, rng = theta.net, np.random.default_rng(0)
    here = net.risk(theta, data, loss)

    def grown(d):
        return net.risk(Parameters(net, theta.vector + d), data, loss) - here

    if kinks:
        for away in np.linalg.pinv(Held(net, data, loss, kinks).jacobian(theta)).T:
            away = away / np.linalg.norm(away)
            for d in (away, -away):
                assert grown(1e-7 * d) > 0
                assert grown(1e-7 * d) == pytest.approx(2 * grown(5e-8 * d), rel=0.05)
    for size in (1e-3, 1e-4, 1e-5):
        for _ in range(12):
            assert grown(size * rng.normal(size=net.size)) >= -1e-15


# Minima that are known


def test_a_knot_stays_at_the_sample_that_both_pieces_push_it_to():
    """Y = 0, 0, -1, 1, 2 at x = -2..2: c + s max(x, 0) with c = -5/16, s = 19/16, R = 11/160."""
    net = Network((1, 1), [Dense(1), Dense(1)])
    data = TrainingSet([[-2.0], [-1.0], [0.0], [1.0], [2.0]], [0.0, 0.0, -1.0, 1.0, 2.0])
    found = settle(Parameters(net, np.array([1.0, 0.1, 1.0, 0.0])), data, SquaredLoss())
    assert found.settled and found.flat == 1 and found.symmetries.kinds == {"scaling": 1}
    assert found.risk == pytest.approx(11 / 160, abs=1e-15)
    (kink,) = found.kinks
    assert (kink.layer, kink.map, kink.samples.tolist()) == (1, 0, [2])
    w, b, v, c = found.theta.vector
    assert (w * v, b, c) == pytest.approx((19 / 16, 0, -5 / 16), abs=1e-14)
    # the kink gets v times the residual 11/16 of its sample, and the multiplier is what balances it
    assert found.high[0] == pytest.approx(v * 11 / 16 / 5, abs=1e-15)
    assert found.multipliers[0] == pytest.approx(v / 80, abs=1e-15)
    assert found.holds and found.risk_interval[0] <= 11 / 160 <= found.risk_interval[1]
    assert found.distance < 1e-12 < found.radius
    assert "layer 1 map 0, unit 0, sample 2: 0 <" in str(found)
    assert "scalings of 1 unit (1)" in str(found)
    assert "strict certificate: holds" in str(found)


def test_the_absolute_value_is_fitted_by_two_units_and_called_global():
    net = Network((1, 1), [Dense(2), Dense(1)])
    x = np.linspace(-1, 1, 9)[:, None]
    theta = Parameters(net, np.array([1.0, -1.2, 0.1, 0.2, 1.0, 0.8, 0.0]))
    found = settle(theta, TrainingSet(x, abs(x)), SquaredLoss())
    assert found.risk < 1e-30
    assert "global minimum" in found.reason
    assert found.certificate is None and found.radius == 0 and found.distance == math.inf


def test_absolute_loss_regression_ends_where_the_linear_program_does():
    rng = np.random.default_rng(0)
    x, y, n = rng.normal(size=(20, 3)), rng.normal(size=20), 20
    net = Network((1, 3), [Dense(1)])
    found = settle(net.zeros(), TrainingSet(x, y), AbsoluteLoss())
    program = scipy.optimize.linprog(
        np.r_[np.zeros(4), np.ones(2 * n) / n],
        A_eq=np.c_[x, np.ones(n), np.eye(n), -np.eye(n)],
        b_eq=y,
        bounds=[(None, None)] * 4 + [(0, None)] * 2 * n,
    )
    assert found.settled and len(found.kinks) == 4
    assert {kink.layer for kink in found.kinks} == {2}
    assert found.risk == pytest.approx(program.fun, abs=1e-14)
    assert found.theta.vector == pytest.approx(program.x[:4], abs=1e-12)


# Minima that training leads to

CASES = {  # layers, inputs, samples, flat directions, seed
    "one hidden layer": (
        ([Dense(5), Dense(1)], (1, 4), ReLU(), SquaredLoss()),
        (200, 5, 0),
    ),
    "two hidden layers": (
        ([Dense(3), Dense(2), Dense(1)], (1, 2), ReLU(), SquaredLoss()),
        (20, None, 1),
    ),
    "Huber loss": (([Dense(4), Dense(2)], (1, 4), ReLU(0.1), HuberLoss(0.5)), (200, 4, 0)),
    "cross-entropy": (([Dense(4), Dense(3)], (1, 3), ReLU(), CrossEntropy()), (200, None, 0)),
    "average pooling": (
        ([Conv(2), AveragePool(2), Dense(2)], (1, 4), ReLU(), SquaredLoss()),
        (100, None, 0),
    ),
    "max pooling": (
        ([Conv(2), MaxPool(2), Dense(1)], (1, 4), ReLU(), SquaredLoss()),
        (100, None, 4),
    ),
    "smooth": (([Dense(3), Dense(1)], (1, 3), Tanh(), SquaredLoss()), (200, 0, 0)),
}


@functools.cache
def settled(case):
    """Return what settles, where it started, the data, the loss and the flat directions."""
    (layers, shape, activation, loss), (samples, flat, seed) = CASES[case]
    net = Network(shape, layers, activation)
    data = noisy_teacher(net, samples, seed, type(loss) is CrossEntropy)
    start = kaiming_start(net, seed)
    return settle(start, data, loss), start, data, loss, flat


@pytest.mark.parametrize("case", CASES)
def test_where_it_settles_the_risk_grows_on_all_sides(case):
    found, start, data, loss, flat = settled(case)
    net, activation = start.net, start.net.activation
    assert found.settled, found.reason
    assert found.risk == net.risk(found.theta, data, loss) < net.risk(start, data, loss)
    assert found.residual < 1e-12 and found.eigenvalue > 0
    assert found.flat == found.family.dimension  # all that is flat is explained
    assert flat is None or found.flat == flat  # of them one for each hidden unit that is scaled
    assert bool(found.kinks) == activation.piecewise_linear
    slope = getattr(activation, "slope", 0)
    assert (slope * found.high <= found.low + 1e-15).all()
    assert (found.low < found.multipliers).all() and (found.multipliers < found.high).all()
    risk_around(found.theta, data, loss, found.kinks)


def test_ties_of_max_pooling_are_met():
    found, _, data, *_ = settled("max pooling")
    ties = [kink for kink in found.kinks if kink.pairs is not None]
    assert ties
    below = found.theta.net.layer_output(found.theta, data.x.reshape(len(data), -1).T, 1)
    for tie in ties:
        (a, b), n = tie.pairs[0], tie.samples[0]
        assert below[a, n] == pytest.approx(below[b, n], abs=1e-13)
        assert below[a, n] > 0


def test_units_that_repeat_are_one_kink():
    """Each sample comes twice; the kinks have two members."""
    net = Network((1, 4), [Dense(4), Dense(1)])
    once = noisy_teacher(net, 100, 1)
    twice = TrainingSet(np.concatenate([once.x, once.x]), np.concatenate([once.y, once.y]))
    found = settle(kaiming_start(net, 1), twice, SquaredLoss())
    assert found.settled and found.kinks
    for kink in found.kinks:
        assert kink.samples.tolist() == [kink.samples[0], kink.samples[0] + 100]


def test_members_that_have_left_a_kink_are_left_out_so_that_the_risk_is_that_of_the_point():
    net, data = (
        Network((1, 1), [Dense(1), Dense(1), Dense(1)]),
        TrainingSet([[0], [1], [2.0]], [1.0] * 3),
    )
    theta = Parameters(net, np.array([1.0, -1.0, 3.0, 0.0, 1.0, 0.0]))  # z^2 = 0, 0, 3
    kink = HeldKink(2, 0, np.zeros(3, dtype=int), np.arange(3))
    state = KinkedNewton(theta, data, SquaredLoss()).at(theta, [kink], np.zeros(1))
    assert state.kinks[0].samples.tolist() == [0, 1]
    assert state.risk == net.risk(theta, data, SquaredLoss()) == 1


# Multipliers on their bound

HINGE = TrainingSet([[-2.0], [-1.0], [0.0], [1.0], [2.0]], [0.0, 0.0, -1.0, 1.0, 2.0])


def test_a_unit_that_touches_its_kink_by_chance_is_moved_off_to_where_it_is_inactive():
    """Beside the hinge a unit max(-x - 2, 0), which is 0 for all samples, and -0 for the first."""
    net = Network((1, 1), [Dense(2), Dense(1)])
    theta = Parameters(net, [1.0, -1.0, 0.0, -2.0, 19 / 16, -0.5, -5 / 16])
    search = KinkedNewton(theta, HINGE, SquaredLoss())
    kinks = [HeldKink(1, t, np.array([t]), np.array([n])) for t, n in ((0, 2), (1, 0))]
    search.state = search.at(theta, kinks, np.zeros(2))
    found = search.polished()
    assert found.stationary and found.slack[0] > 0.01 and found.slack[1] == 0 < found.high[1]
    assert search.leave_bounds(found, 1e-8, [])
    assert len(search.state.kinks) == 1 and search.state.risk == pytest.approx(11 / 160, abs=1e-15)
    z = net.layer_output(search.state.theta, HINGE.x.reshape(5, 1).T, 1)
    assert (search.state.seen.z[0][1] < -1e-3).all() and (z[1] == 0).all()


def test_a_kink_on_its_bound_that_no_flat_direction_leads_off_is_kept():
    """Y = 0, 1, -1 and x beyond: max(x, 0) leaves no slope on its right, so that lambda = 0."""
    net = Network((1, 1), [Dense(1), Dense(1)])
    data = TrainingSet(HINGE.x, [0.0, 1.0, -1.0, 1.0, 2.0])
    theta = Parameters(net, [1.0, 0.0, 1.0, 0.0])
    search = KinkedNewton(theta, data, SquaredLoss())
    kink = HeldKink(1, 0, np.array([0]), np.array([2]))
    search.state = search.at(theta, [kink], np.zeros(1))
    found = search.polished()
    assert found.stationary and abs(found.slack[0]) < 1e-14
    assert not search.leave_bounds(found, 1e-8, [])
    assert len(search.state.kinks) == 1
    found = settle(theta, data, SquaredLoss())
    assert not found.settled and found.reason == "1 more unit is at its kink: not decided"


@pytest.mark.parametrize("v", [-1.0, 1.0])
def test_a_unit_at_its_kink_for_the_last_sample_is_used_where_that_lowers_the_risk(v):
    """Beside the hinge v max(x - 2, 0) is 0 for all samples; the last one is 1 / 16 too high."""
    net = Network((1, 1), [Dense(2), Dense(1)])
    theta = Parameters(net, [1.0, 1.0, 0.0, -2.0, 19 / 16, v, -5 / 16])
    search = KinkedNewton(theta, HINGE, SquaredLoss())
    hinge = HeldKink(1, 0, np.array([0]), np.array([2]))
    search.state = search.at(theta, [hinge], np.zeros(1))
    found = search.polished()
    (other,) = search.others_at_kinks(found)
    assert (other.layer, other.units.tolist(), other.samples.tolist()) == (1, [1], [4])
    assert search.leave_concave(found, [other]) == (v < 0)
    lower = net.risk(search.state.theta, HINGE, SquaredLoss()) < 11 / 160 - 1e-9
    assert lower == (v < 0)


# Bent valleys


def test_a_step_that_is_too_long_for_a_bent_valley_is_brought_back_to_its_bottom():
    """Of the model's steps, longer and longer ones, some lower the risk if corrected only."""
    net = Network((1, 4), [Dense(4), Dense(3), Dense(1)], Tanh())
    data, loss = noisy_teacher(net, 100, 0), SquaredLoss()
    search = KinkedNewton(kaiming_start(net, 0), data, loss)
    while search.taken < 40:
        search.step()
    state, held = search.state, search.held([])
    found, seen = held.view(state.theta, np.zeros(0))
    candidates = Candidates(state, held, found, seen, None)
    quadratic = Quadratic(held.hessian(state.theta, np.zeros(0)), candidates.rows)
    saved = 0
    for search.mu in quadratic.size * 0.1 ** np.arange(2, 12):
        move = quadratic.step(candidates, search.mu)
        trial, about = search._trial(candidates, move)
        there, risk = search._corrected(candidates, quadratic, move, trial, about)
        assert risk <= about
        assert risk == pytest.approx(net.risk(there.theta, data, loss), rel=1e-13)
        saved += risk < state.risk < about
    assert saved


# Where it does not settle


def test_a_start_that_is_a_minimum_is_left_where_it_is():
    first, _, data, *_ = settled("one hidden layer")
    again = settle(first.theta, data, SquaredLoss())
    assert again.settled and again.moved < 1e-12
    assert len(again.kinks) == len(first.kinks)


def test_a_search_that_is_broken_off_says_so_and_has_not_raised_the_risk():
    net = Network((1, 6), [Dense(6), Dense(5), Dense(2)])
    data, start = noisy_teacher(net, 300, 0), random_theta(net, 1)
    found = settle(start, data, SquaredLoss(), steps=1, seconds=1e-9)
    assert not found.settled and not found.holds
    assert found.reason.startswith("still falling after 1 step")
    assert found.risk < net.risk(start, data, SquaredLoss())
    assert str(found).startswith("not settled: still falling after 1 step")


def test_a_point_that_is_not_settled_does_not_say_that_multipliers_are_between_their_bounds():
    net = Network((1, 1), [Dense(1), Dense(1)])
    data = TrainingSet([[-2], [-1], [0], [1], [2]], [0, 0, -1, 1, 2])
    found = settle(Parameters(net, [1.0, 0.1, 1.0, 0.0]), data, SquaredLoss())
    assert found.settled and "with its multiplier between its bounds:" in str(found)
    numbers = (found.low[0], found.multipliers[0], found.high[0])
    assert " < ".join(f"{n:.3g}" for n in numbers) in str(found)
    outside = dataclasses.replace(found, settled=False, multipliers=-found.high, certificate=None)
    assert "its multiplier and the bounds that it needs to be between:" in str(outside)
    assert f"sample 2: {-found.high[0]:.3g}, 0 and {found.high[0]:.3g}" in str(outside)


def test_a_point_as_low_as_the_targets_allow_is_called_global():
    net, y = Network((1, 1), [Dense(2)]), np.array([[0.9, 0.1], [0.2, 0.8]])
    found = settle(net.zeros(), TrainingSet([[0.0], [1.0]], y), CrossEntropy())
    assert not found.settled and found.reason.endswith(
        "the entropy of the targets, up to 1e-09: global"
    )
    assert found.risk == pytest.approx(-(y * np.log(y)).sum() / 2, rel=1e-9)


def test_separable_classes_have_no_minimum():
    net, y = Network((1, 1), [Dense(2)]), [[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]
    found = settle(net.zeros(), TrainingSet([[-1.0], [1.0], [2.0]], y), CrossEntropy())
    assert not found.settled and found.reason.endswith("as outputs grow for ever: no minimum")


def test_flat_directions_that_no_symmetry_explains_are_counted():
    """The second input is pi times the first one, rounded: no symmetry of the network."""
    net, x = Network((1, 2), [Dense(1)]), np.arange(6.0)
    found = settle(net.zeros(), TrainingSet(np.c_[x, np.pi * x], x**2), SquaredLoss())
    assert not found.settled and found.flat == 1
    assert found.reason == "1 flat direction that no symmetry explains: not decided"
    assert found.risk == pytest.approx(28 / 9, abs=1e-13)


@pytest.mark.parametrize(("factor", "steps"), [(101.0, 2), (1.001, 100)])
def test_a_search_is_given_up_where_parameters_only_grow(monkeypatch, factor, steps):
    """A step of this search multiplies all parameters by a factor, as if that were lower."""

    def step(search):
        search.taken += 1
        theta = Parameters(net, factor * search.state.theta.vector)
        search.state = search.state._replace(theta=theta)
        return True

    net = Network((1, 3), [Dense(3), Dense(1)])
    monkeypatch.setattr(KinkedNewton, "step", step)
    data = noisy_teacher(net, 50, 0)
    search = KinkedNewton(kaiming_start(net, 0), data, SquaredLoss())
    assert _stopped(search, 1000, math.inf, Bar()) == "" and search.taken == steps
    found = settle(random_theta(net, 1), data, SquaredLoss(), steps=5)
    words = f"after {min(steps, 5)} steps"
    assert found.reason.startswith("no lower point" if factor > 2 else f"still falling {words}")


def test_a_search_that_found_nothing_starts_again_with_a_long_reach():
    net = Network((1, 4), [Dense(4), Dense(1)])
    search = KinkedNewton(kaiming_start(net, 0), noisy_teacher(net, 100, 0), SquaredLoss())
    search.mu, search.reach = None, 1e-16
    assert search.step() and search.reach > 1e-3


def test_an_interrupt_ends_the_search_at_the_best_point(monkeypatch):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(KinkedNewton, "step", interrupted)
    net = Network((1, 3), [Dense(3), Dense(1)])
    data, start = noisy_teacher(net, 50, 0), random_theta(net, 1)
    found = settle(start, data, SquaredLoss())
    assert not found.settled and found.reason.startswith("interrupted after 0 steps")
    assert found.risk == net.risk(found.theta, data, SquaredLoss())
    assert found.risk < net.risk(start, data, SquaredLoss())


def test_an_interrupted_proof_leaves_the_settled_point(monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("tinyspur.fitting.settle.certify_strict", interrupted)
    net = Network((1, 3), [Dense(1)])
    found = settle(net.zeros(), noisy_teacher(net, 20, 0), SquaredLoss())
    assert found.settled and found.reason.endswith("; the proof was interrupted")
    assert found.certificate is None and not found.holds


def test_a_network_of_zeros_settles_where_all_units_are_inactive():
    net = Network((1, 3), [Dense(4), Dense(1)])
    data = noisy_teacher(net, 20, 0)
    found = settle(net.zeros(), data, SquaredLoss())
    z = net.layer_output(found.theta, data.x.reshape(20, 3).T, 1)
    assert found.holds and (z == 0).all() and found.kinks == ()
    assert found.risk == pytest.approx(data.y.var() / 2, rel=1e-12)  # the best constant


def test_settings_out_of_range_are_refused():
    net = Network((1, 3), [Dense(1)])
    data = noisy_teacher(net, 20, 0)
    with pytest.raises(ValueError, match="seconds > 0, got 0"):
        settle(net.zeros(), data, SquaredLoss(), seconds=0)
    with pytest.raises(ValueError, match="steps: expected a whole number, 1 or more, got 0"):
        settle(net.zeros(), data, SquaredLoss(), steps=0)


def test_more_parameters_than_a_dense_hessian_can_have_are_refused_at_once():
    theta = Network((1, 200), [Dense(50), Dense(1)]).zeros()
    data = TrainingSet(np.ones((2, 200)), [0.0, 1.0])
    with pytest.raises(ValueError, match=r"at most 10,000 parameters, .* got 10,101"):
        settle(theta, data, SquaredLoss())


def test_progress_names_the_step(capsys):
    net = Network((1, 3), [Dense(1)])
    settle(net.zeros(), noisy_teacher(net, 20, 0), SquaredLoss(), progress="to the minimum")
    assert capsys.readouterr().err.startswith("to the minimum")


def test_points_on_a_device_come_back_there(device):
    net = Network((1, 3), [Dense(3), Dense(1)])
    data = noisy_teacher(net, 50, 0)
    found = settle(kaiming_start(net, 0).to(device), data, SquaredLoss(), steps=5)
    assert isinstance(found.theta.vector, device.ndarray)


# The program in the multipliers


def test_minima_in_a_box_are_those_of_scipy():
    rng = np.random.default_rng(0)
    for m, rank in ((1, 1), (6, 6), (9, 4)):
        A, q = rng.normal(size=(rank, m)), rng.normal(size=m)
        low, high = -rng.random(m), rng.random(m)
        found = minimise_in_box(A.T @ A, q, low, high, np.zeros(m))
        expected = scipy.optimize.minimize(
            lambda x, A=A, q=q: ((A @ x) @ (A @ x) / 2 - q @ x, A.T @ (A @ x) - q),
            np.zeros(m),
            jac=True,
            bounds=list(zip(low, high, strict=True)),
            options={"ftol": 1e-15, "gtol": 1e-12},
        )
        assert (low <= found).all() and (found <= high).all()
        assert (A @ found) @ (A @ found) / 2 - q @ found <= expected.fun + 1e-12
