"""A max pooling selects the largest entry of each window, and knows the gap to the next."""

import numpy as np
import pytest
from matrix_problems import operands

from tinyspur.layers import DenseMatrix, MaxPoolingMatrix


def max_poolings():
    """Yield max poolings with two terms on few values, so that many entries are equal, (n, N)."""
    rng = np.random.default_rng(0)
    for map_shape, *options in [
        ((6,), 3),
        ((4,), 1),
        ((4, 6), 2),
        ((3, 3), 3),
        ((5, 4), 3, 2, 1),
        ((5,), 2, 1, 1),
        ((5,), 2, None, 0, True),
        ((7,), 3, 2, 1, False, 2),
    ]:
        W = MaxPoolingMatrix(2, map_shape, *options)
        yield W, *rng.integers(-1, 2, (3, W.shape[1], 40)).astype(float)


def windows(W):
    """Return for each neuron of a pooling the neurons that it reads, row by row."""
    read = [[int(q) for q in row if q >= 0] for row in W.grid.neighbours()]
    return [[t * W.positions_in + q for q in row] for t in range(W.maps_in) for row in read]


def test_the_selection_of_several_samples_is_that_of_each():
    for W, o, other, _ in max_poolings():
        S, delta = W.at(o), operands(W, o.shape[1])[1]
        assert np.array_equal(S @ o, W @ o)
        assert (S.shape, S.nnz, S.T.shape) == (W.shape, W.shape[0], W.shape[::-1])
        for i in range(o.shape[1]):
            one = W.at(o[:, i]).toarray()
            assert np.array_equal((S @ other)[:, i], one @ other[:, i])
            assert np.array_equal((S.T @ delta)[:, i], one.T @ delta[:, i])
            assert one.argmax(axis=1).tolist() == [w[o[w, i].argmax()] for w in windows(W)]
        assert ((S @ other) * delta).sum() == (other * (S.T @ delta)).sum()


def test_the_gap_is_that_of_the_largest_entry_to_the_next():
    for W, o, moves, change in max_poolings():
        change = abs(change)
        for still in (moves < 2, moves == 2, moves == 0):  # all, none and some of them
            slack = np.where(still, 0, change)
            gaps, left = W.gaps(o, still), W.gaps(o, still, slack)
            for (n, i), gap in np.ndenumerate(gaps):
                window = windows(W)[n]
                best = window[o[window, i].argmax()]
                others = [j for j in window if j != best and not (still[j, i] and still[best, i])]
                distances = [o[best, i] - o[j, i] for j in others]
                assert gap == min(distances, default=np.inf)
                reach = [slack[best, i] + slack[j, i] for j in others]
                moved = [a - b for a, b in zip(distances, reach, strict=True)]
                assert left[n, i] == min(moved, default=np.inf)


def test_the_selection_in_the_limit_is_that_of_small_steps():
    for W, *terms in max_poolings():
        none = [np.zeros_like(terms[0])] * 3
        S, step = W.at_limit(terms, none), 2.0**-10
        near = sum(step**k * term for k, term in enumerate(terms))
        assert np.array_equal(S @ near, W @ near)
        assert np.array_equal(S.choice, W.choice(near))
        assert W.size == 1 or (S.choice != W.choice(terms[0])).any()
        assert np.array_equal(W.at_limit(terms[:1], none[:1]).choice, W.choice(terms[0]))


def test_entries_that_are_equal_up_to_the_tolerances_leave_the_choice_to_the_next_term():
    W = MaxPoolingMatrix(1, (4,), 4)
    terms = [np.array([[3.0], [3.1], [2.0], [2.9]]), np.array([[1.0], [0.0], [9.0], [2.0]])]
    for tolerance, choice in ((0.0, 1), (0.06, 0), (0.11, 3), (0.6, 2)):
        slack = [np.full((4, 1), tolerance), np.zeros((4, 1))]
        assert W.at_limit(terms, slack).choice == choice
    slack[0][:, 0] = 0, 0.3, 0, 0  # one tolerance is enough for two entries
    assert W.at_limit(terms, slack).choice == 3


def test_a_max_pooling_has_entries_only_for_an_input():
    W = MaxPoolingMatrix(2, (4,), 2)
    for show in (W.tocsr, W.toarray, lambda: W[0, 0], lambda: W[:, 0], lambda: W.block(0, 0)):
        with pytest.raises(TypeError, match=r"only for an input o: expected W\.at\(o\)"):
            show()
    with pytest.raises(TypeError, match=r"only for an input o: expected W\.at\(o\)\.T"):
        _ = W.T
    S = W.at(np.zeros((8, 3)))
    for show in (S.tocsr, S.toarray, S.T.tocsr, lambda: S[0, 0], lambda: S.block(0, 0)):
        with pytest.raises(TypeError, match="only for one sample, got those of 3"):
            show()
    for matrix in (W, S):
        with pytest.raises(TypeError, match="has no weights"):
            matrix.gradient(np.zeros((4, 3)), np.zeros((8, 3)))
        with pytest.raises(ValueError, match="expected o of shape"):
            matrix @ np.zeros((9, 3))
        assert abs(matrix) is matrix.with_weights(None) is matrix
        assert matrix.support_sums(np.zeros((8, 3))) is None
    for other in (S, DenseMatrix(np.ones((2, 3)))):
        assert other.at(np.zeros((8, 3))) is other
