"""theta': every output is kept, and the slope along one bias is that of the split."""

import numpy as np
import pytest
from construction_problems import (
    SQUARED,
    all_splits,
    moved,
    over_losses,
    over_seeds,
    random_embedding,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from shared import close, in_turn

from tinyspur.constructions.data_split import split_data
from tinyspur.constructions.embedding import embed
from tinyspur.constructions.equal_risk import case_above, case_below, equal_risk_point
from tinyspur.constructions.witnesses import perturbed_map

sizes = st.integers(-8, 8).map(float)


@settings(max_examples=150, deadline=None)
@given(v=sizes, eta=sizes.map(lambda n: n + 0.5), b=sizes, raised=st.integers(0, 8))
def test_the_tracks_of_a_single_number_are_those_of_the_lemma(v, eta, b, raised):
    """A + B = sigma(v + b) + (eta + b), or A - B = 0, with the slope [v > eta] in a bias of L-2."""

    def sigma(z):
        return max(z, 0.0)

    b_prime = max(b, -v) + raised
    o_m = sigma(v + b_prime)
    tracks = (case_above if eta >= -b else case_below)(eta, b, b_prime, (b - b_prime, 2.0))

    def output(lift):
        """Return what output k reads, in units of w, with more bias of B, or A, in L-2."""
        total = 0.0
        for n, ((sign_2, bias_2), (sign_1, bias_1), share) in enumerate(tracks):
            lifted = bias_2 + (lift if n == (1 if eta >= -b else 0) else 0)
            total += share * sigma(sign_1 * sigma(sign_2 * o_m + lifted) + bias_1)
        return total

    (sign_2, bias_2), (sign_1, bias_1), share = tracks[2]
    assert sigma(sign_1 * sigma(sign_2 * o_m + bias_2) + bias_1) == sigma(v + b) + 2.0
    assert output(0.0) == sigma(v + b) + (eta + b if eta >= -b else 2.0)
    assert share == (0 if eta >= -b else 1)
    for lift in (-0.25, 0.25):
        assert output(lift) - output(0.0) == lift * (v > eta)


@in_turn(
    over_losses,
    pytest.mark.parametrize("seed", range(2)),
    pytest.mark.parametrize("maps", [(3, 5, 6), (2, 2, 4, 5)]),
)
def test_theta_prime_keeps_every_output_and_has_the_slope_of_the_split(loss, seed, maps):
    theta, pair, data, _ = random_embedding(seed, loss, maps=maps)
    outputs, risk = theta.net.forward(theta, data.x), theta.net.risk(theta, data, loss)
    cases = {True: 0, False: 0}
    for m in pair.relayed:
        b = theta.b[pair.below][m]
        for k in {m % 3, (m + 1) % 3}:
            for split in all_splits(theta, pair, data, loss, m, k, width=4e-3, every=16):
                prime = equal_risk_point(theta, pair, split)
                close(theta.net.forward(prime, data.x), outputs)
                close(theta.net.risk(prime, data, loss), risk)
                target = perturbed_map(theta, pair, split)
                assert target == pair.reserved[1 if split.threshold >= -b else 0]
                h = min(1e-4, 0.25 * (split.gap[1] - split.gap[0]))
                up, down = (
                    theta.net.risk(moved(prime, pair.lower, target, s), data, loss) for s in (h, -h)
                )
                rounding = 1e-14 * risk / h
                assert (
                    abs((up - down) / (2 * h) - split.slope) <= 1e-5 * abs(split.slope) + rounding
                )
                cases[bool(split.threshold >= -b)] += 1
    assert min(cases.values()) >= 3


@over_seeds
def test_theta_prime_is_equal_for_every_gap_between_tied_values(seed):
    theta, pair, data, _ = random_embedding(seed, quantised=True)
    outputs = theta.net.forward(theta, data.x)
    cases = set()
    for m in pair.relayed:
        for split in all_splits(theta, pair, data, SQUARED, m, 1, width=1e-6, every=3):
            prime = equal_risk_point(theta, pair, split)
            assert np.array_equal(theta.net.forward(prime, data.x), outputs)
            cases.add(bool(split.threshold >= -theta.b[pair.below][m]))
    assert cases == {True, False}


@over_seeds
def test_theta_prime_changes_only_what_the_lemma_names(seed):
    theta, pair, data, _ = random_embedding(seed, maps=(2, 2, 5, 5))
    split = split_data(theta, pair, data, SQUARED)
    before = theta.vector.copy()
    prime = equal_risk_point(theta, pair, split)
    assert np.array_equal(theta.vector, before)
    for layer in range(1, pair.below):
        assert np.array_equal(prime.W[layer].weights, theta.W[layer].weights)
        assert np.array_equal(prime.b[layer], theta.b[layer])
    assert np.array_equal(prime.W[pair.below].weights, theta.W[pair.below].weights)
    P = theta.net.positions(pair.upper)
    changed = (prime.W[pair.dense].weights != theta.W[pair.dense].weights).any(axis=1)
    assert changed.tolist() == [k == split.output for k in range(3)]
    r = pair.relay_of(split.map)
    free = [t for t in range(5) if t not in (*pair.reserved, r)]
    for layer in (pair.lower, pair.upper):
        assert np.array_equal(prime.W[layer].weights[free], theta.W[layer].weights[free])
        assert np.array_equal(prime.b[layer][free], theta.b[layer][free])
    for t in free:
        block = slice(t * P, (t + 1) * P)
        assert np.array_equal(
            prime.W[pair.dense].weights[:, block], theta.W[pair.dense].weights[:, block]
        )


@over_seeds
def test_the_weights_that_read_the_dead_tracks_before_do_not_matter(seed):
    theta, pair, data, _ = random_embedding(seed)
    outputs, other = theta.net.forward(theta, data.x), theta.copy()
    for track in pair.reserved:
        other.W[pair.dense].weights[:, pair.tower.columns(track)] = 1.0
    close(theta.net.forward(other, data.x), outputs)
    for split in all_splits(theta, pair, data, SQUARED, 0, 1, width=0.02, every=3):
        prime = equal_risk_point(other, pair, split)
        assert np.array_equal(prime.vector, equal_risk_point(theta, pair, split).vector)


@over_seeds
def test_the_literal_theta_prime_keeps_the_risk_with_one_output(seed):
    options = {"outputs": 1, "maps": (3, 5, 6), "variant": "literal"}
    theta, pair, data, _ = random_embedding(seed, **options)
    outputs = theta.net.forward(theta, data.x)
    cases = {True: 0, False: 0}
    for m in pair.relayed:
        for split in all_splits(theta, pair, data, SQUARED, m, 0, width=4e-3, every=9):
            prime = equal_risk_point(theta, pair, split, "literal")
            close(theta.net.forward(prime, data.x), outputs)
            case = bool(split.threshold >= -theta.b[pair.below][m])
            target = perturbed_map(theta, pair, split)
            h = 0.25 * (split.gap[1] - split.gap[0])
            up, down = (
                theta.net.risk(moved(prime, pair.lower, target, s), data, SQUARED) for s in (h, -h)
            )
            assert (up - down) / (2 * h) == pytest.approx(split.slope, rel=1e-5, abs=1e-10)
            cases[case] += 1
    assert min(cases.values()) >= 2


@pytest.mark.parametrize("seed", range(2))
def test_the_literal_theta_prime_changes_the_other_outputs_where_a_bias_was_raised(seed):
    """E6: it keeps the risk with several outputs only where eta < -b or no bias was raised."""
    theta, pair, data, phi = random_embedding(seed, variant="literal")
    repaired, relays = embed(theta.net, phi, data.x)
    risk, outputs = theta.net.risk(theta, data, SQUARED), theta.net.forward(theta, data.x)
    close(repaired.net.risk(repaired, data, SQUARED), risk)
    seen = set()
    for m in pair.relayed:
        b = theta.b[pair.below][m]
        for k in {m % 3, (m + seed) % 3}:
            for split in all_splits(theta, pair, data, SQUARED, m, k, width=4e-3, every=24):
                prime = equal_risk_point(theta, pair, split, "literal")
                found = theta.net.forward(prime, data.x)
                close(found[:, k], outputs[:, k])
                kept = abs(found - outputs).max() < 1e-12 * abs(outputs).max()
                assert kept == (split.threshold < -b)
                if not kept:
                    assert abs(theta.net.risk(prime, data, SQUARED) - risk) > 1e-3 * risk
                other = equal_risk_point(repaired, relays, split)
                close(theta.net.forward(other, data.x), outputs)
                seen.add(kept)
    assert seen == {True, False}


def test_the_literal_theta_prime_keeps_every_output_where_no_bias_is_raised():
    theta, pair, data, _ = random_embedding(2, variant="literal")
    theta.b[pair.below][:] = 50
    outputs = theta.net.forward(theta, data.x)
    for m in pair.relayed:
        for split in all_splits(theta, pair, data, SQUARED, m, 0, width=4e-3, every=12):
            prime = equal_risk_point(theta, pair, split, "literal")
            close(theta.net.forward(prime, data.x), outputs)
