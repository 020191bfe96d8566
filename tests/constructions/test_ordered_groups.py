"""The ordered groups of a map ([CNN] Lemma 3), and what is true of the lemma."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyspur import Conv, Dense, Network, SquaredLoss, TrainingSet, linear_minimum, ordered_groups
from tinyspur.constructions.data_split import split_data
from tinyspur.constructions.split_terms import output_derivatives
from tinyspur.errors import AssumptionError

NET = Network((1, 2, 3), [Conv(1), Conv(3), Conv(3), Dense(2)])
LOSS = SquaredLoss()


def quantised(levels, seed, samples=40):
    """Return distinct images whose pixels take few values, so that many tie exactly."""
    rng = np.random.default_rng(seed)
    every = np.stack(np.meshgrid(*[np.arange(levels)] * 6), axis=-1).reshape(-1, 6)
    x = every[rng.permutation(len(every))[:samples]].astype(float)
    return TrainingSet(x.reshape(-1, 1, 2, 3), rng.standard_normal((len(x), 2)))


@settings(max_examples=25, deadline=None)
@given(levels=st.integers(2, 4), seed=st.integers(0, 10**6), output=st.integers(0, 1))
def test_the_groups_are_those_of_a_count_by_hand(levels, seed, output):
    data = quantised(levels, seed)
    theta, pair = linear_minimum(NET, data, LOSS)
    groups = ordered_groups(theta, pair, data, LOSS, 0, output)
    u = output_derivatives(theta, data, LOSS)[output]
    for j, pixels in enumerate(data.x.reshape(-1, 6).T):
        expected = sorted(set(pixels), reverse=True)
        assert groups.values[j].tolist() == expected
        assert groups.sizes[j].tolist() == [(pixels == v).sum() for v in expected]
        sums = [u[pixels == v].sum() for v in expected]
        assert groups.sums[j] == pytest.approx(sums, abs=1e-12)


@settings(max_examples=25, deadline=None)
@given(levels=st.integers(3, 5), seed=st.integers(0, 10**6))
def test_with_three_values_or_more_some_sum_is_not_zero_and_a_split_exists(levels, seed):
    data = quantised(levels, seed)
    theta, pair = linear_minimum(NET, data, LOSS)
    groups = [ordered_groups(theta, pair, data, LOSS, 0, k) for k in (0, 1)]
    assert any(n is not None for group in groups for n in group.first)
    split = split_data(theta, pair, data, LOSS, "largest")
    n = groups[split.output].first[split.location]
    assert groups[split.output].values[split.location][n] >= split.gap[1]


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_images_of_two_values_refute_the_lemma_at_a_linear_minimum(seed):
    data = quantised(2, seed)
    theta, pair = linear_minimum(NET, data, LOSS)
    assert NET.risk(theta, data, LOSS) > 0.05
    for output in (0, 1):
        groups = ordered_groups(theta, pair, data, LOSS, 0, output)
        assert groups.first == [None] * 6
        assert max(abs(sums).max() for sums in groups.sums) < 1e-11
    with pytest.raises(AssumptionError, match="no data split"):
        split_data(theta, pair, data, LOSS)


def test_it_prints_a_line_for_each_location():
    data = quantised(3, 0)
    theta, pair = linear_minimum(NET, data, LOSS)
    groups = ordered_groups(theta, pair, data, LOSS, 0, 1)
    lines = str(groups).splitlines()
    assert lines[0].startswith("layer 1 map 0, output 1")
    assert len(lines) == 2 + 6
    location, count, first, value, size, total = lines[2].split()
    n = groups.first[0]
    assert (int(location), int(count), int(first)) == (0, len(groups.values[0]), n)
    assert float(value) == groups.values[0][n]
    assert int(size) == groups.sizes[0][n]
    assert float(total) == pytest.approx(groups.sums[0][n], rel=1e-7)
    assert groups.table([3]).splitlines()[2].split()[0] == "3"


def test_maps_and_outputs_that_do_not_exist_are_refused():
    data = quantised(3, 0)
    theta, pair = linear_minimum(NET, data, LOSS)
    with pytest.raises(ValueError, match="map 1 of layer 1 is not relayed"):
        ordered_groups(theta, pair, data, LOSS, 1, 0)
    with pytest.raises(ValueError, match=r"expected a whole number in 0\.\.1, got 2"):
        ordered_groups(theta, pair, data, LOSS, 0, 2)
