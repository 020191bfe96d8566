"""Options out of range, or of another kind, are refused in one sentence, in every function."""

import math

import numpy as np
import pytest
from misuse_problems import DATA, FOUND, LOSS, NET, PAIR, THETA

import tinyspur as ts

PROBLEM = THETA, DATA, LOSS
CERTIFICATE = ts.certify(*PROBLEM)
LINE = ts.TrainingSet(np.arange(5.0)[:, None], np.arange(5.0) ** 2)
WIDE = ts.Network((1, 4), [ts.Dense(50), ts.Dense(3)], ts.Tanh())
VECTORS = ts.TrainingSet(DATA.x.reshape(40, 4), DATA.y)
ANGLE = ts.Network((1, 1), [ts.Dense(9), ts.Dense(1)], ts.Sigmoid())

ANYTHING = [None, "a", "2", [1], 1j, object(), {}]
NUMBERS = [*ANYTHING, math.nan, -math.inf]
POSITIVE = [*NUMBERS, -1, 0, 0.0, np.float32(-1)]
FINITE = [*POSITIVE, math.inf]
WHOLE = [*FINITE, 1.5, 2.0, True, np.float64(2)]
SEEDS = ["a", 1.5, math.nan, -1, 1j, object()]
OPTIONS = {  # a call, and what it refuses
    "HuberLoss": (ts.HuberLoss, FINITE),
    "one_hot, smoothing": (lambda v: ts.one_hot([0, 1], 2, smoothing=v), [*NUMBERS, -0.1, 1]),
    "Network, memory_budget": (
        lambda v: ts.Network((1, 2, 2), NET.layers, memory_budget=v),
        POSITIVE,
    ),
    "Adam, learning_rate": (lambda v: ts.Adam(v), FINITE),
    "Adam, weight_decay": (lambda v: ts.Adam(weight_decay=v), [*NUMBERS, -1, math.inf]),
    "Adam, beta1": (lambda v: ts.Adam(beta1=v), [*NUMBERS, -0.1, 1.0]),
    "Adam, beta2": (lambda v: ts.Adam(beta2=v), [*NUMBERS, -0.1, 1.0]),
    "Adam, epsilon": (lambda v: ts.Adam(epsilon=v), [*NUMBERS, -1e-9, math.inf]),
    "descend, goal": (lambda v: ts.descend(*PROBLEM, 1, gradient_goal=v), [*NUMBERS, -1]),
    "polish, share": (lambda v: ts.polish(*PROBLEM, 1, v), [*NUMBERS, -1]),
    "find_escape, radius": (lambda v: ts.find_escape(*PROBLEM, v), FINITE),
    "kink_escape, step": (lambda v: ts.kink_escape(*PROBLEM, v), FINITE),
    "settle, seconds": (lambda v: ts.settle(*PROBLEM, 1, v), POSITIVE),
    "rescale, factor": (lambda v: ts.rescale(THETA, 1, v), FINITE),
    "risk_along_bias, width": (lambda v: ts.risk_along_bias(FOUND, DATA, LOSS, 3, v), FINITE),
    "risk_along_bias, points": (lambda v: ts.risk_along_bias(FOUND, DATA, LOSS, v), WHOLE),
    "Plane, extent": (lambda v: ts.Plane.random(THETA, extent=v, steps=3), FINITE),
    "Lines, extent": (lambda v: ts.Lines.random(THETA, count=2, extent=v, steps=3), FINITE),
    "Lines, margin": (lambda v: ts.Lines.between(THETA, FOUND.theta_prime, 3, v), NUMBERS),
    "plot_matrix, limit": (
        lambda v: ts.plot_matrix(THETA.W[1], limit=v),
        [v for v in FINITE if v is not None],
    ),
    "verdict, rounding": (lambda v: CERTIFICATE.verdict(0.1, v), [-1e-9]),
    "gather_evidence, dense_up_to": (lambda v: ts.gather_evidence(*PROBLEM, 0, v), ["a", 1.5, -1]),
    "certify_relays, lower": (lambda v: ts.certify_relays(*PROBLEM, v), WHOLE),
    "check_assumption_1": (
        lambda v: ts.check_assumption_1(THETA, DATA.x, v),
        [v for v in WHOLE if v not in (None, 0)],
    ),
    "linear_minimum, lower": (
        lambda v: ts.linear_minimum(NET, DATA, LOSS, lower=v),
        [v for v in WHOLE if v is not None],
    ),
    "rescale, layer": (lambda v: ts.rescale(THETA, v, 2.0), WHOLE),
    "rescale, target": (lambda v: ts.rescale(THETA, 1, 2.0, v), ["a", 1.5, True, -1, 4, [1]]),
    "revive, map": (lambda v: ts.revive(*PROBLEM, 2, v), ["a", 1.5, True, -1, 4, [1], None]),
    "smallest_cases, starts": (lambda v: ts.smallest_cases(LINE, LOSS, v), WHOLE),
    "find_spurious_minimum, rule": (
        lambda v: ts.find_spurious_minimum(THETA, PAIR, DATA, LOSS, rule=v),
        [*NUMBERS, "steep"],
    ),
    "fit_groups": (lambda v: ts.fit_groups(DATA, v, LOSS), [*WHOLE, 2]),
    "gated_minimum": (lambda v: ts.gated_minimum(NET, DATA, LOSS, v), [*WHOLE, 2]),
    "spurious_pair": (lambda v: ts.spurious_pair(NET, DATA, LOSS, v), [2, "a", [1]]),
    "convolutional_lattice": (lambda v: ts.convolutional_lattice([3], DATA, LOSS, v), [2, "a"]),
    "lattices_of": (lambda v: ts.lattices_of(v, DATA.x), WHOLE),
    "Groups.equal, x": (lambda v: ts.Groups.equal(v, [1.0], 2), [1.0, "a", None]),
    "equal_risk_point, split": (lambda v: ts.equal_risk_point(THETA, PAIR, v), WHOLE),
    "risk_along_bias, found": (lambda v: ts.risk_along_bias(v, DATA, LOSS), WHOLE),
    "find_descent_direction, escape": (
        lambda v: ts.find_descent_direction(*PROBLEM, v),
        [0, "a", THETA],
    ),
    "Lines, directions": (lambda v: ts.Lines(THETA, v, [0.0, 1.0]), [0, None, THETA]),
    "subset": (lambda v: DATA.subset(3, v), SEEDS),
    "kaiming_start": (lambda v: ts.kaiming_start(NET, v), SEEDS),
    "random_direction": (lambda v: ts.random_direction(THETA, v), SEEDS),
    "find_descent_direction": (lambda v: ts.find_descent_direction(*PROBLEM, None, v), SEEDS),
    "find_escape": (lambda v: ts.find_escape(*PROBLEM, 0.1, 1, 1, v), SEEDS),
    "gather_evidence": (lambda v: ts.gather_evidence(*PROBLEM, v), SEEDS),
    "interpolate": (lambda v: ts.interpolate(WIDE, VECTORS, v), SEEDS),
    "nontrivial_minimum": (lambda v: ts.nontrivial_minimum(NET, DATA, LOSS, 1, v), SEEDS),
    "smooth_minimum": (lambda v: ts.smooth_minimum(ANGLE, LINE.x, seed=v), SEEDS),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_that_makes_no_sense_is_refused_in_one_sentence(name):
    call, values = OPTIONS[name]
    for value in values:
        with pytest.raises(ValueError, match=r"^[^\n]*expected [^\n]*$"):
            call(value)
            pytest.fail(f"{name} took {value!r}")


@pytest.mark.parametrize("sample", ["a", 1.5, -1, 40, None, True])
def test_a_sample_has_a_whole_number(sample):
    groups = ts.Groups.equal(DATA.x, np.ones(4), 2)
    with pytest.raises(ValueError, match=r"^groups: expected a sample in 0\.\.39, got "):
        groups.refine(DATA.x, sample)


@pytest.mark.parametrize("index", ["a", 1.5, -1, 4, None])
def test_a_block_has_whole_numbers(index):
    with pytest.raises(IndexError, match=r"^expected a map in 0\.\.3, got "):
        THETA.W[1].block(index, 0)


def test_one_hot_takes_the_memory_of_its_targets_alone():
    assert ts.one_hot([0, 99_999], 100_000).sum() == 2


def test_numbers_of_any_real_type_are_options():
    assert ts.HuberLoss(np.float32(0.5)).delta == ts.HuberLoss(np.array(0.5)).delta == 0.5
    assert ts.rescale(THETA, 1, np.int64(2)) == ts.rescale(THETA, np.int64(1), 2.0)
