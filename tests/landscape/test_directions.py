"""Random directions are Gaussian, and as long as what they are normalised to."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from landscape_problems import network, over_networks, point

from tinyspur.engine.network import Network
from tinyspur.engine.parameters import Parameters
from tinyspur.landscape.directions import RandomDirections, random_direction
from tinyspur.landscape.planes import Lines
from tinyspur.layers import Dense


@over_networks
@pytest.mark.parametrize("biases", [True, False])
def test_a_plain_direction_has_length_one(name, biases):
    d = random_direction(point(network(name)), 3, biases=biases)
    assert np.linalg.norm(d.vector) == pytest.approx(1, rel=1e-14)
    assert all(weights.all() for weights in (d.W[n].weights for n in d.b))
    assert all(b.all() == biases and b.any() == biases for b in d.b.values())


def test_a_plain_direction_is_gaussian():
    d = random_direction(point(Network((1, 100), [Dense(50)])), 0)
    scaled = d.vector * math.sqrt(d.vector.size)
    assert scipy.stats.kstest(scaled, "norm").pvalue > 0.01


@over_networks
@pytest.mark.parametrize("biases", [True, False], ids=["biases", "weights"])
@pytest.mark.parametrize("normalization", ["filter", "layer"])
def test_normalised_directions_have_the_lengths_of_theta(name, normalization, biases):
    theta = point(network(name))
    found = random_direction(theta, 5, normalization, biases)
    start, plain = theta.arrays(), random_direction(theta, 5, biases=biases).arrays()
    for n in theta.b:
        if not biases:
            assert not found.b[n].any()
        w, b, own, shift = (
            torch.tensor(arrays[f"{kind}{n}"]) for arrays in (start, plain) for kind in "Wb"
        )
        wanted = torch.cat([w.flatten(1), b[:, None] * biases], dim=1)
        made = torch.cat([own.flatten(1), shift[:, None]], dim=1)
        if normalization == "filter":
            made *= (wanted.norm(dim=1) / made.norm(dim=1))[:, None]
        else:
            made *= wanted.norm() / made.norm()
        assert np.allclose(found.W[n].weights, made[:, :-1].reshape(w.shape), rtol=1e-12, atol=0)
        assert np.allclose(found.b[n], made[:, -1], rtol=1e-12, atol=0)


def test_the_dead_filters_of_a_construction_do_not_move_without_their_biases(certified):
    theta, _, _, _ = certified
    still = random_direction(theta, 0, "filter", biases=False)
    with_biases = random_direction(theta, 0, "filter")
    dead = 0
    for n, b in theta.b.items():
        filters = theta.W[n].weights.reshape(len(b), -1)
        for t, w in enumerate(filters):
            dead += not w.any()
            assert still.W[n].weights[t].any() == w.any()
            assert with_biases.W[n].weights[t].any() == bool(w.any() or b[t])
    assert dead >= 2


def test_the_seed_decides_on_a_direction():
    theta = point(network("images"))
    for normalization in (None, "filter", "layer"):
        once, again, other = (
            random_direction(theta, seed, normalization).vector for seed in (1, 1, 2)
        )
        assert np.array_equal(once, again)
        assert not np.any(once == other)
        assert np.array_equal(
            random_direction(theta, (1, 2), normalization).vector,
            random_direction(theta, [1, 2], normalization).vector,
        )


def test_a_direction_has_the_type_of_theta_and_is_its_rounding():
    theta = point(network("images"))
    single = Parameters(theta.net, theta.vector.astype(np.float32))
    for normalization in (None, "filter", "layer"):
        found = random_direction(single, 1, normalization)
        assert found.vector.dtype == np.float32
        expected = random_direction(single.to(np, np.float64), 1, normalization)
        assert np.array_equal(found.vector, expected.vector.astype(np.float32))


def test_random_directions_are_made_when_asked_for():
    theta = point(network("dense"))
    directions = RandomDirections(theta, 4, 7, "filter", biases=False)
    assert len(directions) == 4
    made = [d.vector for d in directions]
    assert len({v.tobytes() for v in made}) == len(made) == 4
    for k in range(4):
        expected = random_direction(theta, (7, k), "filter", biases=False).vector
        assert np.array_equal(made[k], expected)
        assert np.array_equal(directions[k - 4].vector, expected)
    other = RandomDirections(theta, 4, 8, "filter", biases=False)
    assert not np.array_equal(other[0].vector, made[0])
    for k in (4, -5):
        with pytest.raises(IndexError, match=rf"expected 0\.\.3, got {k}"):
            directions[k]


def test_directions_that_cannot_be_made_are_refused():
    net = network("dense")
    theta, zero, shifts = point(net), net.zeros(), net.zeros()
    for b in shifts.b.values():
        b[...] = 1
    with pytest.raises(ValueError, match="expected None, 'filter' or 'layer', got 'weight'"):
        random_direction(theta, normalization="weight")
    for normalization in ("filter", "layer"):
        for start, biases in ((zero, True), (zero, False), (shifts, False)):
            with pytest.raises(ValueError, match=f"'{normalization}': expected a theta .* not 0"):
                random_direction(start, 0, normalization, biases)
        assert random_direction(shifts, 0, normalization).vector.any()
        with pytest.raises(ValueError, match="expected a theta that is not 0"):
            Lines.random(zero, 2, normalization=normalization)
    assert random_direction(zero).vector.any()
    for count in (0, -1):
        with pytest.raises(ValueError, match=f"expected one or more, got {count}"):
            RandomDirections(theta, count)
