"""Moves along a family: outputs and patterns stay, and the point that is found is certified."""

from dataclasses import replace

import numpy as np
import pytest
from shared import in_turn
from strict_problems import at_kink, kinks_feeding_kinks, with_background

from tinyspur.certificates.certificate import Certificate
from tinyspur.certificates.families import KINDS
from tinyspur.certificates.free import choose_coordinates
from tinyspur.certificates.strict import certify_strict
from tinyspur.datasets.samples import TrainingSet
from tinyspur.engine.activations import ReLU, Tanh
from tinyspur.engine.held import Held
from tinyspur.engine.losses import CrossEntropy, SquaredLoss
from tinyspur.engine.network import Network
from tinyspur.engine.parameters import Parameters
from tinyspur.fitting.members import _moved, move_along
from tinyspur.fitting.settle import settle
from tinyspur.fitting.training import kaiming_start
from tinyspur.layers import AveragePool, Conv, Dense, Residual

SQUARED = SquaredLoss()


def problem(layers, shape, samples, slope=0.0, loss=SQUARED):
    rng = np.random.default_rng(0)
    net = Network(shape, layers, ReLU(slope))
    x = rng.normal(size=(samples, *shape))
    y = rng.dirichlet(np.ones(net.shapes[-1][0]), samples)
    return Parameters(net, rng.normal(size=net.size)), Held(net, TrainingSet(x, y), loss)


def dead_unit():
    theta, held = problem((Dense(3), Dense(2)), (1, 3), 40)
    theta.b[1][1] = -100
    return theta, held


def unread_unit():
    theta, held = problem((Dense(2), Dense(1), Dense(1)), (1, 2), 20)
    theta.b[2][0] = -100
    return theta, held


def active_units():
    theta, held = problem((Dense(3), Dense(2)), (1, 3), 40, 0.2)
    theta.b[1][:2] = 100
    return theta, held


def equal_inputs():
    theta, held = problem((Dense(2), Dense(1)), (1, 4), 40)
    x = held.data.x.copy()
    x[:, 0, 1], x[:, 0, 3] = x[:, 0, 0], 0.7
    return theta, Held(held.net, TrainingSet(x, held.data.y), SQUARED)


def rarely_active_unit():
    theta, held = problem((Dense(1), Dense(1)), (1, 6), 40)
    z = held.data.x[:, 0] @ theta.W[1].weights[0]
    theta.b[1][0] = -np.sort(z)[-4:-2].mean()
    return theta, held


def nearly_equal_units():
    theta, held = problem((Dense(2), Dense(1), Dense(1)), (1, 6), 40)
    theta.W[1].weights[1] = theta.W[1].weights[0] + 0.03 * theta.W[1].weights[1]
    theta.b[1][1] = theta.b[1][0] + 0.01
    return theta, held


def above_rarely_active_units():
    theta, held = problem((Dense(3), Dense(2), Dense(1)), (1, 4), 40)
    theta.b[1][:], theta.b[2][:] = 3, 0
    z = theta.net.layer_output(theta, held.data.x[:, 0].T, 1).T @ theta.W[2].weights.T
    theta.b[2][:] = -np.sort(z, axis=0)[-3:-1].mean(axis=0)  # active for two samples each
    return theta, held


CASES = {
    "scaling": lambda: problem((Conv(2), AveragePool(2), Dense(3), Dense(2)), (1, 6), 9),
    "mixing": active_units,
    "shift": active_units,
    "few samples": rarely_active_unit,
    "few values": above_rarely_active_units,
    "exchange": nearly_equal_units,
    "dependent inputs": equal_inputs,
    "parallel": lambda: problem(
        (Dense(3), Residual([Dense(2)], [Dense(2)]), Dense(2)), (1, 3), 20, 0.1
    ),
    "outputs": lambda: problem((Dense(2), Dense(3)), (1, 3), 20, loss=CrossEntropy()),
    "dead": dead_unit,
    "unread": unread_unit,
    "reads nothing": dead_unit,
}


def patterns(theta, data):
    return [layer.tobytes() for layer in theta.net.patterns(theta, data.x).values()]


def test_there_is_a_case_of_each_kind():
    assert tuple(CASES) == KINDS


@in_turn(
    pytest.mark.parametrize("kind", CASES),
    pytest.mark.parametrize("distance", [0.1, 10.0]),
)
def test_each_kind_of_symmetry_moves_the_point_and_nothing_that_counts(kind, distance):
    theta, held = CASES[kind]()
    family = choose_coordinates(held, theta, held.data).family
    assert family.kinds[kind] == sum(s.kind == kind for s in family.symmetries.values()) > 0
    point = _moved(held, theta, distance, np.random.default_rng(1), {kind})
    move = abs(point.vector - theta.vector)
    assert 1e-3 < move.max() <= distance
    named = [n for n, one in family.symmetries.items() if one.kind == kind]
    assert move[named].max() > 1e-3  # the coordinates that are named after it
    before, after = (theta.net.forward(at, held.data.x) for at in (theta, point))
    if kind == "outputs":
        before, after = (o - o.mean(axis=1, keepdims=True) for o in (before, after))
    assert abs(after - before).max() < 1e-11 * (1 + distance) * (1 + abs(before).max())
    assert patterns(point, held.data) == patterns(theta, held.data)


@pytest.mark.parametrize("kind", CASES)
def test_frozen_coordinates_have_a_reason_each(kind):
    theta, held = CASES[kind]()
    found = choose_coordinates(held, theta, held.data)
    frozen = sorted([*found.frozen.tolist(), *found.idle.tolist()])
    assert list(found.family.reasons) == frozen
    assert found.family.dimension == len(frozen) == sum(found.family.kinds.values())
    assert set(found.idle.tolist()) == {
        n
        for n, one in found.family.symmetries.items()
        if one.kind in ("dead", "unread", "reads nothing")
    }


def test_families_are_named_in_words():
    theta, held = dead_unit()
    family = choose_coordinates(held, theta, held.data).family
    assert str(family) == (
        "family of dimension 8: scalings of 2 units (2), incoming weights of 1 dead unit (4), "
        "weights that read only inactive units or zeros (2)"
    )
    assert family.reasons[3] == "incoming weight of a dead unit, unit 1 of layer 1"
    theta, held = active_units()
    family = choose_coordinates(held, theta, held.data).family
    assert "mixings of 2 units of one pattern (2), shifts of 2 units of one slope (2)" in str(
        family
    )
    assert "mixing of units 0 and 1 of layer 1" in family.reasons.values()


# Minima


@pytest.mark.parametrize(
    ("case", "distance"),
    [(at_kink, 0.1), (at_kink, 4.0), (with_background, 4.0), (kinks_feeding_kinks, 0.1)],
)
def test_members_are_certified_minima_of_the_same_risk(case, distance):
    theta, data = case()
    found = settle(theta, data, SQUARED)
    seed = int(distance > 1)
    member = move_along(found, data, SQUARED, distance, seed)
    assert 0.01 < member.moved <= distance and member.change < 1e-12
    assert member.moved == abs(member.theta.vector - found.theta.vector).max()
    assert member.certificate.holds and member.certificate.kinks == len(found.kinks)
    low, high = member.certificate.risk
    assert low <= found.risk_interval[1] and found.risk_interval[0] <= high
    assert member.certificate.family.kinds == found.family.kinds
    assert move_along(member, data, SQUARED, distance, seed + 5).certificate.holds
    assert str(member).startswith("moved by ")


@pytest.fixture(scope="module")
def trained():
    """Return a settled network with a dead unit, and its data."""
    rng = np.random.default_rng(0)
    net = Network((1, 4), [Dense(3), Dense(1)])
    x = rng.normal(size=(60, 1, 4))
    data = TrainingSet(x, rng.normal(size=(60, 1)))
    start = kaiming_start(net, 0)
    start.b[1][0] = -30
    return settle(start, data, SQUARED), data


def test_moves_of_one_kind_leave_the_rest_alone(trained):
    found, data = trained
    assert found.holds and set(found.family.kinds) == {"scaling", "dead", "reads nothing"}
    member = move_along(found, data, SQUARED, distance=2, kinds=["dead"])
    moved = np.flatnonzero(member.theta.vector != found.theta.vector)
    dead = [n for n, one in found.family.symmetries.items() if one.kind == "dead"]
    assert len(dead) == 5 and set(moved) == set(dead)
    assert member.change == 0 and member.moved > 0.5
    scaled = move_along(found, data, SQUARED, kinds="scaling").theta
    assert (scaled.vector[dead] == found.theta.vector[dead]).all()


def test_the_same_seed_gives_the_same_member_and_another_one_another():
    theta, data = at_kink()
    found = settle(theta, data, SQUARED)
    points = [move_along(found, data, SQUARED, 0.5, seed).theta.vector for seed in (0, 0, 2)]
    assert (points[0] == points[1]).all() and not (points[0] == points[2]).all()


def test_a_point_that_is_no_minimum_in_a_family_is_refused():
    theta, data = at_kink()
    with pytest.raises(
        ValueError, match="move_along: expected what settle returns, got Parameters"
    ):
        move_along(theta, data, SQUARED)
    found = settle(theta, data, SQUARED)
    with pytest.raises(ValueError, match=r"kinds: expected some of \['scaling'\], got \['dead'\]"):
        move_along(found, data, SQUARED, kinds=["dead"])
    for distance in (0, -1, np.nan, np.inf):
        with pytest.raises(ValueError, match="move_along: expected a distance > 0, got"):
            move_along(found, data, SQUARED, distance)
    with pytest.raises(ValueError, match="seed: expected a whole number, 0 or more, got -1"):
        move_along(found, data, SQUARED, seed=-1)
    unsettled = replace(found, certificate=None)
    with pytest.raises(ValueError, match="a minimum that is proved, got one without a certificate"):
        move_along(unsettled, data, SQUARED)
    net, x = (
        Network((1, 2), (Dense(1), Dense(1)), Tanh()),
        np.random.default_rng(3).normal(size=(40, 3)),
    )
    data = TrainingSet(x[:, None, :2], np.tanh(x[:, :1] - 0.5) + 0.3 * x[:, 2:])
    alone = settle(kaiming_start(net, 1), data, SQUARED)
    assert alone.holds and alone.family.dimension == 0
    with pytest.raises(
        ValueError, match="expected a minimum in a family, got family of dimension 0"
    ):
        move_along(alone, data, SQUARED)


def test_members_are_where_the_point_is(device):
    theta, data = at_kink()
    found = settle(theta.to(device), data, SQUARED)
    member = move_along(found, data, SQUARED)
    assert isinstance(member.theta.vector, device.ndarray) and member.certificate.holds


def test_the_certificate_is_the_one_of_the_point(trained):
    found, data = trained
    member = move_along(found, data, SQUARED, 3.0, seed=3)
    again = certify_strict(member.theta, data, SQUARED, member.kinks)
    assert isinstance(again, Certificate) and again == member.certificate
