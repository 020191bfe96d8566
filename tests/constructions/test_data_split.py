"""The data split: the rules and what they choose."""

import itertools
import json
from fractions import Fraction

import numpy as np
import pytest
from construction_problems import (
    SQUARED,
    by_hand,
    over_losses,
    over_rules,
    over_seeds,
    random_embedding,
    small_problem,
)
from shared import in_turn, refuses

from tinyspur.certificates.exact import exact_outputs
from tinyspur.certificates.rounding import enclosed_outputs
from tinyspur.constructions.data_split import (
    DataSplit,
    largest_gaps,
    slope_rounding,
    split_data,
)
from tinyspur.constructions.split_terms import (
    map_values,
    read_weights,
    sums_rounding,
)
from tinyspur.constructions.spurious import find_spurious_minimum
from tinyspur.datasets.samples import TrainingSet
from tinyspur.errors import AssumptionError


def slopes_by_hand(v, w, u):
    """Return the values, and S = (1/N) sum_j w^j sum_{i: v_i^j > eta} u_i for each gap."""
    values = sorted(set(v.ravel().tolist()))
    slopes = []
    for low, high in itertools.pairwise(values):
        eta, total = (low + high) / 2, 0.0
        for j in range(v.shape[0]):
            for i in range(v.shape[1]):
                if v[j, i] > eta:
                    total += w[j] * u[i]
        slopes.append(total / v.shape[1])
    return values, slopes


@in_turn(
    over_losses,
    over_rules,
    over_seeds,
    pytest.mark.parametrize("quantised", [False, True], ids=["generic", "ties"]),
    draws=3,
)
def test_the_split_of_a_given_map_and_output_is_what_it_says(loss, rule, seed, quantised):
    loss = SQUARED if quantised else loss
    theta, pair, data, _ = random_embedding(seed, loss, quantised=quantised)
    for m in pair.relayed:
        for k in {m % 3, (m + seed) % 3}:
            v, w, u = by_hand(theta, pair, data, loss, m, k)
            split = split_data(theta, pair, data, loss, rule, map=m, output=k)
            assert (split.layer, split.map, split.output) == (pair.below, m, k)
            low, high = split.gap
            assert low < split.threshold < high
            assert split.threshold == (low + high) / 2
            assert not ((v > low + 1e-9) & (v < high - 1e-9)).any()
            assert min(abs(v - low).min(), abs(v - high).min()) < 1e-12
            assert abs(split.lowest - v.min()) < 1e-12
            values, slopes = slopes_by_hand(np.round(v, 10), w, u)
            gap = np.searchsorted(values, split.threshold) - 1
            assert abs(split.slope - slopes[gap]) < 1e-12 * abs(np.outer(w, u)).sum()
            above = v[split.location] > split.threshold
            assert split.above == above.sum()
            assert split.above + split.below == len(data)
            assert abs(split.partial_sum - u[above].sum()) < 1e-12
            assert abs(w[split.location] * split.partial_sum) > 0
            if rule == "steepest":
                assert abs(split.slope) >= max(map(abs, slopes)) * (1 - 1e-9)


@in_turn(
    over_rules,
    over_seeds,
    pytest.mark.parametrize("quantised", [False, True], ids=["generic", "ties"]),
)
def test_the_best_split_over_maps_and_outputs_is_taken(rule, seed, quantised):
    theta, pair, data, _ = random_embedding(seed, quantised=quantised)
    each = [
        split_data(theta, pair, data, SQUARED, rule, map=m, output=k)
        for m in pair.relayed
        for k in range(3)
    ]
    best = split_data(theta, pair, data, SQUARED, rule)
    assert best in each
    if rule == "steepest":
        assert abs(best.slope) == max(abs(split.slope) for split in each)
    else:
        assert best.threshold == max(split.threshold for split in each)
    for k in range(3):
        assert split_data(theta, pair, data, SQUARED, rule, output=k).output == k


@over_seeds
def test_the_exact_slope_is_within_its_bound_and_known(seed):
    theta, pair, data, _ = random_embedding(seed)
    (o, errors), y = enclosed_outputs(theta, data.x), np.ascontiguousarray(data.y.T)
    u = SQUARED.gradient(o, y)
    off = sums_rounding(SQUARED, o, errors, y, u)
    split = split_data(theta, pair, data, SQUARED)
    k, exact = split.output, exact_outputs(theta, data.x)
    v, w = map_values(theta, pair, split.map, data.x), read_weights(theta, pair, split.map)
    total = sum(
        Fraction(float(w[k, j])) * (exact[i, k] - Fraction(float(data.y[i, k])))
        for j, i in zip(*np.nonzero(v > split.threshold), strict=True)
    )
    slope = float(w[k] @ ((v > split.threshold) @ u[k])) / len(data)
    bound = float(slope_rounding(w, u, off)[k])
    assert abs(total / len(data) - Fraction(slope)) <= Fraction(bound) < abs(slope) / 10**6


def test_a_sum_counts_as_zero_only_where_rounding_explains_it():
    v, w, u = np.array([[3.0, 3.0, 1.0]]), np.ones((1, 1)), np.array([[1, 2.0**-42 - 1, 5]])
    for off, expected in ((1e-15, (1.0, 3.0)), (2.0**-41, None)):
        (found,) = largest_gaps(v, w, u, np.array([off]))
        assert (found and found[:2]) == expected


def first_groups(v, u):
    """Return for each location the first value, from the top, whose samples' sum of u is not 0."""
    found = []
    for row in v:
        starts = [
            value
            for value in sorted(set(row.tolist()), reverse=True)
            if abs(u[row == value].sum()) > 1e-9
        ]
        found.append(starts[0] if starts else -np.inf)
    return np.array(found)


@in_turn(
    pytest.mark.parametrize("seed", range(6)),
    pytest.mark.parametrize("quantised", [False, True], ids=["generic", "ties"]),
)
def test_the_largest_threshold_is_that_of_the_lemma(seed, quantised):
    theta, pair, data, _ = random_embedding(seed, quantised=quantised)
    for m in pair.relayed:
        for k in {m % 3, (m + seed) % 3}:
            v, w, u = by_hand(theta, pair, data, SQUARED, m, k)
            v = np.round(v, 10)
            starts = np.where(w != 0, first_groups(v, u), -np.inf)
            highest = starts.max()
            split = split_data(theta, pair, data, SQUARED, "largest", map=m, output=k)
            tied = np.flatnonzero(starts == highest)
            group = [(v[j] == highest) for j in tied]
            slope = sum(w[j] * u[s].sum() for j, s in zip(tied, group, strict=True)) / len(data)
            if abs(slope) < 1e-9:  # the ties at v* cancel: the next value has to do
                assert split.gap[1] < highest
                continue
            smaller = v[v < highest].max()
            assert abs(split.gap[1] - highest) < 1e-9
            assert abs(split.gap[0] - smaller) < 1e-9
            assert split.location in tied
            assert abs(split.slope - slope) < 1e-12 * abs(np.outer(w, u)).sum()
            # (8): at every other location the samples above eta add up to nothing.
            for j in np.flatnonzero(w != 0):
                total = u[v[j] > split.threshold].sum()
                assert (abs(total) > 1e-9) == (j in tied)


@pytest.mark.parametrize("seed", range(30))
def test_the_largest_threshold_is_the_one_that_a_search_of_all_values_finds(seed):
    """Among locations without weight, values that tie up to rounding, and u that cancel."""
    rng = np.random.default_rng(seed)
    v = rng.integers(0, 5, size=(4, 12)) + 1e-12 * rng.standard_normal((4, 12))
    w = rng.integers(-1, 2, size=(3, 4)).astype(float)
    u = rng.integers(-1, 2, size=(3, 12)).astype(float)
    found = list(largest_gaps(v, w, u, np.full(3, 1e-13)))
    level = np.round(v)
    for w_k, u_k, gap in zip(w, u, found, strict=True):
        firsts = set()
        for j in np.flatnonzero(w_k):  # the first value of each location with a sum of u
            for high in sorted(set(level[j]), reverse=True):
                if u_k[level[j] >= high].sum():
                    firsts.add(high)
                    break
        expected = None
        for high in sorted(firsts, reverse=True):
            slope = w_k @ (level >= high) @ u_k / 12
            if slope and (level < high).any():
                expected = level[level < high].max(), high, slope
                break
        if expected is None:
            assert gap is None
        else:
            low, high, slope = gap
            assert (round(low), round(high)) == expected[:2]
            assert slope == pytest.approx(expected[2], abs=1e-12)


def test_groups_without_a_sum_are_passed_over():
    """The top values belong to samples whose u vanishes or cancels."""
    theta, pair, data, _ = random_embedding(1, outputs=1, maps=(1, 3, 3))
    v, w, _ = by_hand(theta, pair, data, SQUARED, 0, 0)
    order = np.argsort(-v.max(axis=0))
    u = np.linspace(1, 2, len(data))
    u[order[:4]] = 0
    data = TrainingSet(data.x, theta.net.forward(theta, data.x) - u[:, None])
    split = split_data(theta, pair, data, SQUARED, "largest")
    expected = v[:, order[4:]].max()
    assert abs(split.gap[1] - expected) < 1e-12
    assert split.above < len(data)
    assert abs(split.slope) == pytest.approx(
        abs(w[split.location] * split.partial_sum) / len(data), rel=1e-9
    )


def test_no_split_exists_where_nothing_is_left_to_fit():
    theta, pair, data, _ = random_embedding(0, quantised=True)
    data = TrainingSet(data.x, theta.net.forward(theta, data.x))
    for rule in ("steepest", "largest"):
        with refuses(AssumptionError, "S(eta) vanishes, up to rounding, for every threshold"):
            split_data(theta, pair, data, SQUARED, rule)


@pytest.mark.parametrize("output", [-1, 3])
def test_an_output_that_does_not_exist_is_refused(output):
    theta, pair, data = small_problem(SQUARED)
    with refuses(ValueError, f"output unit: expected a whole number in 0..2, got {output}"):
        split_data(theta, pair, data, SQUARED, output=output)
    with refuses(ValueError, f"output unit: expected a whole number in 0..2, got {output}"):
        find_spurious_minimum(theta, pair, data, SQUARED, output=output)


@pytest.mark.parametrize("m", [1, -1, 7])
def test_a_split_needs_a_map_that_is_relayed(m):
    theta, pair, data = small_problem(SQUARED)
    with refuses(ValueError, f"map {m} of layer 1 is not relayed; expected one of (0,)"):
        split_data(theta, pair, data, SQUARED, map=m)


def test_a_split_is_listed_for_reports():
    theta, pair, data = small_problem(SQUARED)
    split = split_data(theta, pair, data, SQUARED)
    assert isinstance(split, DataSplit)
    listed = split.as_dict()
    assert listed["threshold"] == split.threshold
    assert json.loads(json.dumps(listed)) == listed
