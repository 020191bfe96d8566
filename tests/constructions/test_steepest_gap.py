"""The search for the steepest gap finds what its definition says."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from shared import in_turn

from tinyspur.constructions import split_terms, steepest_gap

VALUES = {
    "all different": lambda rng, shape: rng.normal(size=shape),
    "few": lambda rng, shape: rng.integers(0, 4, shape) / 3,
    "many zeros": lambda rng, shape: rng.normal(size=shape) * (rng.random(shape) < 0.3),
    "of many sizes": lambda rng, shape: np.exp(10 * rng.normal(size=shape)),
    "almost ties": lambda rng, shape: rng.integers(0, 9, shape) + 1e-12 * rng.random(shape),
    "constant": lambda rng, shape: np.full(shape, -1.5),
    "tiny": lambda rng, shape: 1e-310 * rng.integers(-3, 4, shape),
}


SHAPES = [(1, 1), (1, 2), (2, 1), (1, 60), (60, 1), (3, 150), (150, 3)]


def gaps_by_definition(v, w, u):
    """Return low, high and S for each gap between neighbours of the sorted values."""
    pairs = itertools.pairwise(np.unique(v))
    wide = [(low, high) for low, high in pairs if high - low > split_terms.tie_of(v)]
    return [(low, high, w @ (v >= high) @ u / v.shape[1]) for low, high in wide]


@in_turn(
    pytest.mark.parametrize("bins", [2, 7, steepest_gap.BINS]),
    pytest.mark.parametrize("values", VALUES),
    draws=2,
)
def test_the_steepest_gap_is_the_one_that_a_search_of_all_gaps_finds(values, bins, monkeypatch):
    monkeypatch.setattr(steepest_gap, "BINS", bins)
    monkeypatch.setattr(steepest_gap, "BLOCK", 100)
    rng = np.random.default_rng(0)
    for shape in [*SHAPES, *rng.integers(1, 40, (4, 2))]:
        v = VALUES[values](rng, tuple(shape))
        w = rng.normal(size=(2, len(v))) * (rng.random((2, len(v))) < 0.8)
        u = rng.normal(size=(2, v.shape[1]))
        u -= u.mean(axis=1, keepdims=True)
        found = list(steepest_gap.steepest_gaps(v, w, u, np.full(2, 1e-13)))
        for w_k, u_k, gap in zip(w, u, found, strict=True):
            every = gaps_by_definition(v, w_k, u_k)
            steepest = max((abs(S) for *_, S in every), default=0)
            if steepest <= 1e-12:
                assert gap is None or abs(gap[2]) <= 1e-12
                continue
            low, high, slope = gap
            (there,) = (S for *ends, S in every if ends == [low, high])
            assert abs(slope) == pytest.approx(steepest, rel=1e-9)
            assert slope == pytest.approx(there, rel=1e-9)


whole = st.integers(-3, 3).map(float)


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(1, 6), st.integers(1, 6), st.sampled_from([1, 2, 5, 2**14]))
def test_of_whole_numbers_the_steepest_gap_is_found_without_rounding(data, P, N, bins):
    """Most of them tie, sums cancel, and an |S| that equals the noise counts as zero."""
    v, w, u = (
        data.draw(arrays(float, shape, elements=whole)) for shape in [(P, N), (1, P), (1, N)]
    )
    noise = data.draw(st.integers(0, 4)) / N
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steepest_gap, "BINS", bins)
        (gap,) = steepest_gap.steepest_gaps(v, w, u, np.array([noise]))
    every = gaps_by_definition(v, w[0], u[0])
    steepest = max((abs(S) for *_, S in every), default=0)
    assert (gap is None) == (steepest <= noise)
    if gap is not None:
        assert gap in every
        assert abs(gap[2]) == steepest


def test_ties_that_lie_in_two_bins_are_no_gap_although_s_is_largest_between_them(monkeypatch):
    monkeypatch.setattr(steepest_gap, "BINS", 17)  # 0, 1, ..., 16 are where bins begin
    rng = np.random.default_rng(0)
    for _ in range(200):
        pairs = rng.permutation(np.arange(1, 16))[: rng.integers(1, 4)].astype(float)
        alone = np.setdiff1d(np.append(rng.integers(0, 17, rng.integers(0, 12)), [0, 16]), pairs)
        v = np.concatenate([alone, pairs - 1e-9, pairs + 1e-9])[None]
        far = rng.integers(50, 100, len(pairs))
        small = rng.integers(-3, 4, v.size - len(pairs)).astype(float)
        u = np.concatenate([small[: len(alone)], -far, far + small[len(alone) :]])
        (gap,) = steepest_gap.steepest_gaps(v, np.ones((1, 1)), u[None], np.zeros(1))
        every = gaps_by_definition(v, np.ones(1), u)
        steepest = max(abs(S) for *_, S in every)
        assert (gap is None) == (steepest == 0)
        if gap is not None:
            assert gap in every
            assert abs(gap[2]) == steepest
