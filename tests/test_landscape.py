"""Landscapes are the risks of PyTorch, with any executor and after any interruption."""

import copy
import errno
import itertools
import json
import logging
import math
import multiprocessing
import operator
import os
import pickle
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter, deque
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import dask
import distributed
import numpy as np
import pytest
import scipy.stats
import strict_device
import torch
import torch_twin

from tinyspur import backend, find_spurious_minimum, linear_minimum, scanning
from tinyspur.activations import ReLU, Softplus, Tanh
from tinyspur.backend import select, to_numpy
from tinyspur.certificates import certify_cell
from tinyspur.landscape import (
    Landscape,
    Lines,
    Plane,
    RandomDirections,
    random_direction,
)
from tinyspur.layers import AveragePool, Conv, Dense, MaxPool
from tinyspur.losses import AbsoluteLoss, CrossEntropy, HuberLoss, SquaredLoss
from tinyspur.matrices import ConvolutionMatrix, WeightMatrix
from tinyspur.network import Network
from tinyspur.parameters import Parameters
from tinyspur.reports import save_point
from tinyspur.rounding import risk_rounding
from tinyspur.samples import TrainingSet
from tinyspur.scanning import scan
from tinyspur.user_activations import SmoothActivation

LOSS = SquaredLoss()
LOSSES = [LOSS, CrossEntropy(), AbsoluteLoss(), HuberLoss(0.7)]
NETWORKS = {
    "dense": ((1, 5), [Dense(4), Dense(6), Dense(3)], ReLU()),
    "one layer": ((1, 2, 3), [Dense(3)], ReLU()),
    "images": ((2, 4, 4), [Conv(3), AveragePool(2), Conv(4), Dense(5), Dense(3)], ReLU(0.1)),
    "series": ((2, 8), [Conv(3, 5), MaxPool(2), Conv(2), MaxPool(4), Dense(3)], Tanh()),
    "leading": ((1, 8, 4), [AveragePool(2), MaxPool(1), Conv(3), MaxPool(2), Dense(3)], ReLU()),
    "smooth": ((3, 6), [AveragePool(2), Conv(2, 1), Dense(3)], Softplus()),
    "no dense": ((1, 3, 3), [Conv(2), Conv(3), AveragePool(3)], ReLU()),
}
over_networks = pytest.mark.parametrize("name", NETWORKS)
over_losses = pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)


def network(name, budget=2**26):
    return Network(*NETWORKS[name], memory_budget=budget)


def point(net, seed=0, size=0.5):
    return Parameters(net, size * np.random.default_rng(seed).normal(size=net.size))


def samples(net, n=7, seed=0):
    """Return n samples whose targets every loss accepts."""
    rng = np.random.default_rng(seed)
    width = math.prod(net.shapes[-1])
    return TrainingSet(rng.normal(size=(n, *net.input_shape)), rng.dirichlet(np.ones(width), n))


def twin_risk(theta, data, loss):
    twin = torch_twin.Twin(json.dumps(theta.net.spec)).load(theta.arrays())
    with torch.no_grad():
        delta = getattr(loss, "delta", 1.0)
        return float(torch_twin.risk(twin(data.x), data.y, loss.name, delta))


def moved(theta, *moves):
    """Return theta plus all numbers times their directions."""
    vector = theta.vector
    for c, d in moves:
        vector = vector + float(c) * d.vector
    return Parameters(theta.net, vector)


def places(where):
    """Return the points of a plane or of lines, one by one, and where their risks are."""
    if isinstance(where, Plane):
        d1, d2 = where.directions
        for a, alpha in enumerate(where.alpha):
            for b, beta in enumerate(where.beta):
                yield (a, b), moved(where.theta, (alpha, d1), (beta, d2))
    else:
        for k, d in enumerate(where.directions):
            for a, alpha in enumerate(where.alpha):
                yield (k, a), moved(where.theta, (alpha, d))


def risks_are_pytorchs(where, data, loss):
    found = scan(where, data, loss)
    assert found.risks.shape == where.shape
    assert found.risks.dtype == np.float64
    assert found.centre == where.theta.net.risk(where.theta, data, loss)
    for place, there in places(where):
        expected = twin_risk(there, data, loss)
        for risk in (expected, there.net.risk(there, data, loss)):
            assert abs(found.risks[place] - risk) <= 1e-12 * max(1, expected)


# Directions


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


@pytest.fixture(scope="module")
def certified():
    """Return a certified minimum, its pair, its data and the radius, small enough for scans."""
    net = Network((1, 3, 3), [Conv(3), Conv(5), Conv(6), Dense(2)])
    rng = np.random.default_rng(0)
    data = TrainingSet(rng.normal(size=(40, 1, 3, 3)), rng.normal(size=(40, 2)))
    theta, pair = linear_minimum(net, data, LOSS)
    certificate = certify_cell(theta, data, LOSS)
    assert certificate.holds
    return theta, pair, data, certificate.radius


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


# Points and their risks


@over_losses
@over_networks
def test_risks_on_a_plane_are_pytorchs(name, loss):
    net = network(name)
    where = Plane(point(net), (point(net, 1), point(net, 2)), [-1.0, 0.0, 0.4], [0.0, 0.3, 2.0])
    risks_are_pytorchs(where, samples(net), loss)


@over_losses
@over_networks
def test_risks_on_lines_are_pytorchs(name, loss):
    net = network(name)
    data = samples(net)
    risks_are_pytorchs(
        Lines(point(net), [point(net, s) for s in (1, 2, 3)], [-1, 0, 2]), data, loss
    )
    risks_are_pytorchs(Lines.random(point(net), 2, 4, "filter", True, 0.7, 5), data, loss)


@pytest.fixture
def work(monkeypatch):
    """Record the layer and the point of each pass through a layer, and count the products."""
    passes, products = [], []
    neurons = Network.neurons

    def passing(net, theta, layer, *args, **options):
        passes.append((layer, theta.vector.tobytes()))
        return neurons(net, theta, layer, *args, **options)

    def count(kind, name):
        product = getattr(kind, name)

        def multiplying(W, *args):
            products.append(W)
            return product(W, *args)

        monkeypatch.setattr(kind, name, multiplying)

    monkeypatch.setattr(Network, "neurons", passing)
    count(WeightMatrix, "__matmul__")
    count(WeightMatrix, "brief_product")
    count(ConvolutionMatrix, "brief_product")
    monkeypatch.setattr(scanning, "risk_rounding", lambda *_: 0.0)
    return passes, products


@pytest.mark.parametrize("only", ["weights", "biases", "all"])
@over_networks
def test_where_only_upper_layers_move_the_layers_below_are_shared(name, only, work):
    net = network(name)
    data, (passes, products) = samples(net), work
    for first in net.zeros().b:
        directions = [point(net, 1), point(net, 2)]
        for d in directions:
            for n in d.b:
                d.W[n].weights[...] *= n > first or (n == first and only != "biases")
                d.b[n][...] *= n > first or (n == first and only != "weights")
        where = Plane(point(net), directions, [-1, 0.5], [0.3, 2, 0])
        risks_are_pytorchs(where, data, LOSS)
        passes.clear()
        products.clear()
        scan(where, data, LOSS)
        # theta, then six points in two groups: each passes the layers below `first` once
        expected = {n: 1 + (2 if n < first else 6) for n in range(1, net.depth + 1)}
        assert Counter(layer for layer, _ in passes) == expected
        assert len(products) == sum(expected.values()) - 6 + 2  # one of `first` for each group


def test_no_point_is_evaluated_twice_and_none_is_left_out(work):
    net = network("dense")
    theta, data, (passes, _) = point(net), samples(net), work
    for where, points in (
        (Lines.random(theta, 5, steps=5), 5 * 4 + 1),
        (Lines.random(theta, 3, steps=4), 3 * 4 + 1),
        (Plane.random(theta, steps=5), 25),
        (Plane.random(theta, steps=4), 17),
        (Plane.random(theta, steps=1), 1 + 1),
        (Plane(theta, (point(net, 1), point(net, 2)), [0.0], [0.0]), 1),
    ):
        passes.clear()
        scan(where, data, LOSS)
        seen = [there for layer, there in passes if layer == net.depth]
        assert len(seen) == len(set(seen)) == points
        expected = {there.vector.tobytes() for _, there in places(where)}
        assert set(seen) == expected | {theta.vector.tobytes()}


@pytest.mark.parametrize("loss", LOSSES[:2], ids=lambda loss: loss.name)
@pytest.mark.parametrize("name", ["dense", "images", "leading"])
def test_risks_do_not_depend_on_the_chunks(name, loss):
    data = samples(network(name), 40)
    found, chunks = [], []
    seven = 7 * 16 * sum(map(math.prod, network(name).shapes))  # bytes for as many samples
    for budget in (1, seven, 2**30):
        net = network(name, budget)
        theta = point(net)
        chunks.append(len(list(net.chunks(theta, data.x))))
        found.append(scan(Plane.random(theta, 1, "filter", steps=5), data, loss))
    assert chunks[0] == 40 > chunks[1] > chunks[2] == 1
    for other in found[:2]:
        assert np.allclose(other.risks, found[2].risks, rtol=1e-12, atol=0)
        assert other.centre == pytest.approx(found[2].centre, rel=1e-12)


def test_points_have_the_numbers_of_their_risks():
    theta = point(network("dense"))
    for where in (Plane.random(theta, steps=3), Lines.random(theta, 3, steps=4)):
        numbers = [7, 0, 8, 4, 4]
        every = [there.vector for _, there in places(where)]
        found = list(where.points(numbers))
        assert len(found) == 5
        for n, there in zip(numbers, found, strict=True):
            assert there.net == theta.net
            assert np.array_equal(there.vector, every[n])


def test_random_planes_and_lines_are_grids_around_theta():
    theta = point(network("images"))
    plane = Plane.random(theta, 3, "layer", False, 0.5, 4)
    assert np.allclose(plane.alpha, [-0.5, -0.5 / 3, 0.5 / 3, 0.5])
    assert np.array_equal(plane.alpha, plane.beta)
    lines = Lines.random(theta, 6, 3, "layer", False, 2.0, 3)
    assert (plane.shape, lines.shape, lines.beta) == ((4, 4), (6, 3), None)
    assert np.array_equal(lines.alpha, [-2, 0, 2])
    for k in range(2):
        expected = random_direction(theta, (3, k), "layer", False).vector
        assert np.array_equal(plane.directions[k].vector, expected)
        assert np.array_equal(lines.directions[k].vector, expected)


# Planes through points, lines between them


@pytest.mark.parametrize("c", [0.5, 0.0, 2.0, -1.0])
def test_a_plane_through_three_points_contains_them(c):
    net = network("images")
    origin, a, across = point(net, 0), point(net, 1), point(net, 2)
    d = a.vector - origin.vector
    across = across.vector - (across.vector @ d) / (d @ d) * d
    b = Parameters(net, origin.vector + c * d + across)
    low, high = min(0, c), max(1, c)
    steps = 1 + round(4 * 1.5 * (high - low))  # ticks at all multiples of 1/4
    plane = Plane.through(origin, a, b, steps=steps)
    edge = (high - low) / 4
    assert np.allclose(plane.alpha, np.linspace(low - edge, high + edge, steps), atol=1e-12)
    assert np.allclose(plane.beta, np.linspace(-0.25, 1.25, steps), atol=1e-12)
    d1, d2 = (v.vector for v in plane.directions)
    assert abs(d1 @ d2) <= 1e-12 * (d1 @ d1)
    assert np.allclose(d2, across, atol=1e-12)
    for found, expected in ((origin, (0, 0)), (a, (1, 0)), (b, (c, 1))):
        assert plane.coordinates(found) == pytest.approx(expected, abs=1e-12)
    if steps == 7:
        data = samples(net)
        risks = scan(plane, data, LOSS).risks
        for there, place in ((origin, (1, 1)), (a, (5, 1)), (b, (round((c + 0.25) * 4), 5))):
            assert plane.alpha[place[0]] == pytest.approx(plane.coordinates(there)[0], abs=1e-12)
            assert risks[place] == pytest.approx(twin_risk(there, data, LOSS), rel=1e-11)


def test_margin_is_the_share_of_the_range_around_the_points():
    theta, a, b = (point(network("dense"), seed) for seed in range(3))
    tight, wide = (Plane.through(theta, a, b, 3, margin) for margin in (0, 1.5))
    low, high = tight.alpha[[0, -1]]
    assert tight.beta[[0, -1]].tolist() == [0, 1]
    assert wide.beta[[0, -1]].tolist() == [-1.5, 2.5]
    reach = 1.5 * (high - low)
    assert wide.alpha[[0, -1]] == pytest.approx([low - reach, high + reach])
    between = Lines.between(theta, a, 3, 1.5)
    assert between.alpha.tolist() == [-1.5, 0.5, 2.5]


def test_coordinates_are_those_of_the_nearest_point_of_the_plane():
    net = network("images")
    theta, d1, d2, away = (point(net, seed) for seed in range(4))
    plane = Plane(theta, (d1, d2), [0.0], [0.0])
    for alpha, beta in ((0.3, -2.0), (0.0, 0.0), (5.0, 1.0)):
        inside = moved(theta, (alpha, d1), (beta, d2))
        assert plane.coordinates(inside) == pytest.approx((alpha, beta), abs=1e-12)
    found = plane.coordinates(moved(theta, (1, away)))
    missed = moved(theta, (1, away), (-found[0], d1), (-found[1], d2)).vector - theta.vector
    assert abs(missed @ d1.vector) + abs(missed @ d2.vector) <= 1e-12 * (missed @ missed)


def test_a_line_between_two_points_ends_in_them():
    net, data = network("series"), samples(network("series"))
    a, b = point(net, 0), point(net, 1)
    line = Lines.between(a, b, steps=7)
    assert np.allclose(line.alpha, [-0.25, 0, 0.25, 0.5, 0.75, 1, 1.25])
    found = scan(line, data, LOSS)
    assert found.risks.shape == (1, 7)
    assert found.risks[0, 1] == pytest.approx(twin_risk(a, data, LOSS), rel=1e-12)
    assert found.risks[0, 5] == pytest.approx(twin_risk(b, data, LOSS), rel=1e-11)
    assert found.centre == net.risk(a, data, LOSS)
    middle = Parameters(net, (a.vector + b.vector) / 2)
    assert found.risks[0, 3] == pytest.approx(twin_risk(middle, data, LOSS), rel=1e-11)


@over_networks
def test_within_ends_at_the_radius_in_the_maximum_norm(name):
    net = network(name)
    theta = point(net)
    plane = Plane(theta, (point(net, 1), point(net, 2)), [0.0], [0.0])
    edge = plane.within(0.3, corners=8)
    assert edge.shape == (8, 2)
    angles = np.arctan2(edge[:, 1], edge[:, 0])
    assert np.allclose(np.exp(1j * (angles - np.arange(8) * np.pi / 4)), 1)
    for alpha, beta in edge:
        there = moved(theta, (alpha, plane.directions[0]), (beta, plane.directions[1]))
        assert abs(there.vector - theta.vector).max() == pytest.approx(0.3, rel=1e-12)
    assert len(plane.within(1.0)) == 360
    lines = Lines.random(theta, 3, 1, "filter")
    ends = lines.within(0.3)
    assert ends.shape == (3,)
    assert (ends > 0).all()
    for alpha, d in zip(ends, lines.directions, strict=True):
        assert abs(alpha * d.vector).max() == pytest.approx(0.3, rel=1e-12)


@pytest.mark.parametrize("normalization", [None, "filter", "layer"])
def test_no_risk_is_lower_within_the_radius_of_a_certificate(certified, normalization):
    theta, _, data, radius = certified
    for seed in range(5):
        flat = Plane.random(theta, seed, normalization)
        extent = abs(flat.within(radius)).max()
        ticks = np.linspace(-extent, extent, 9)
        plane = Plane(theta, flat.directions, ticks, ticks)
        found = scan(plane, data, LOSS)
        inside = np.zeros(plane.shape, bool)
        for place, there in places(plane):
            inside[place] = abs(there.vector - theta.vector).max() <= radius
        assert 10 < inside.sum() < inside.size
        assert not found.lower[inside].any()
        assert (found.risks[inside] > found.centre + found.rounding).any()


def test_the_point_below_a_spurious_minimum_is_found_to_be_lower(certified):
    theta, pair, data, _ = certified
    found = find_spurious_minimum(theta, pair, data, LOSS)
    line = Lines.between(found.theta_prime, found.lower.theta, 7)
    assert scan(line, data, LOSS).lower_lines == 1
    ahead = scan(Lines.between(theta, found.theta_prime, 7), data, LOSS)
    assert not ahead.lower[0, [1, 5]].any()  # theta' has theta's risk


NET = network("dense")
OTHER = network("smooth")
MIXED = re.escape(f"expected points and directions of {NET}, got {OTHER}")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p, d: Plane(p, (d, d, d), [0.0], [0.0]), "plane: expected 2 directions, got 3"),
        (lambda p, d: Plane(p, (d,), [0.0], [0.0]), "plane: expected 2 directions, got 1"),
        (lambda p, d: Lines(p, (), [0.0]), "lines: expected one or more directions, got 0"),
        (lambda p, d: Lines(p, (d,), []), r"lines: expected finite numbers alpha \(n,\)"),
        (lambda p, d: Lines(p, (d,), 1.0), r"lines: expected finite numbers alpha \(n,\)"),
        (lambda p, d: Lines(p, (d,), [[1.0]]), r"lines: expected finite numbers alpha \(n,\)"),
        (lambda p, d: Lines(p, (d,), [1.0, np.nan]), "numbers alpha .* nan"),
        (lambda p, d: Plane(p, (d, d), [1.0], [np.inf]), "plane: .* numbers beta .*inf"),
        (lambda p, d: Plane(p, (d, d), [], [1.0]), "plane: expected finite numbers alpha"),
        (lambda p, d: Lines.random(p, 2, steps=0), "expected an extent > 0 and one .* 1.0 and 0"),
        (lambda p, d: Lines.random(p, 2, extent=0), "expected an extent > 0 and one .* got 0 and"),
        (lambda p, d: Plane.random(p, steps=2.5), "expected an extent > 0 and one .* and 2.5"),
        (lambda p, d: Lines.random(p.vector), "expected points .* as Parameters, got a ndarray"),
        (lambda p, d: Plane.through(p, d, None), "expected points .* as Parameters, got a None"),
        (lambda p, d: scan(p, samples(NET), LOSS), "expected a Plane or Lines, got a Parameters"),
        (
            lambda p, d: scan(Lines(p, (d,), [1.0]), samples(NET), LOSS, executor=3),
            "expected an executor, got a int",
        ),
        (lambda p, d: scan(Lines(p, (d,), [1.0]), samples(NET).x, LOSS), "expected a TrainingSet"),
        (lambda p, d: scan(Lines(p, (d,), [1.0]), samples(NET), "squared"), "got 'squared'"),
        (lambda p, d: scan(Lines(p, (d,), [1.0]), samples(NET), SquaredLoss), "got <class"),
        (lambda p, d: Plane.random(p, extent=np.nan), "expected an extent > 0 and one .* nan"),
        (lambda p, d: Lines(p, (d, NET.zeros()), [1.0]), "lines: direction 1: .* not all 0"),
        (lambda p, d: Plane(p, (NET.zeros(), d), [1.0], [1.0]), "plane: direction 0"),
        (lambda p, d: Lines(p, (moved(d, (np.nan, d)),), [1.0]), "direction 0: expected finite"),
        (lambda p, d: Lines(p, (d, OTHER.zeros()), [1.0]), MIXED),
        (lambda p, d: Plane(p, (OTHER.zeros(), d), [1.0], [0]), MIXED),
        (lambda p, d: Lines.between(p, OTHER.zeros()), MIXED),
        (lambda p, d: Plane.through(p, d, OTHER.zeros()), MIXED),
        (lambda p, d: Plane.through(p, OTHER.zeros(), d), MIXED),
        (lambda p, d: Plane.random(p).coordinates(OTHER.zeros()), MIXED),
        (lambda p, d: Lines.between(p, p), "direction 0: .* not all 0"),
        (lambda p, d: Plane.through(p, p, d), "expected three points that are not on one line"),
        (lambda p, d: Plane.through(p, d, p), "expected three points that are not on one line"),
        (lambda p, d: Plane.through(p, d, d), "expected three points that are not on one line"),
        (lambda p, d: Plane.through(p, p, p), "expected three points that are not on one line"),
        (
            lambda p, d: Plane.through(p, moved(p, (1, d)), moved(p, (-3, d))),
            "expected three points that are not on one line",
        ),
    ],
)
def test_what_no_scan_can_use_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make(point(NET), point(NET, 1))


def test_data_that_do_not_fit_are_refused():
    theta = point(NET)
    line, data = Lines.between(theta, point(NET, 1)), samples(NET)
    with pytest.raises(ValueError, match=r"inputs: expected \(N, 1, 5\), got \(7, 1, 4\)"):
        scan(line, TrainingSet(data.x[..., :4], data.y), LOSS)
    with pytest.raises(ValueError, match=r"targets: expected \(N, 3\), got \(7, 2\)"):
        scan(line, TrainingSet(data.x, data.y[:, :2]), LOSS)
    with pytest.raises(ValueError, match=r"cross-entropy: .* sample 0"):
        scan(line, TrainingSet(data.x, data.y + 1), CrossEntropy())


# Executors


class Recorder(Executor):
    """Pass calls on to `inner`, and remember how many bytes and which points each one has.

    `instead` has calls to make in the place of some, by number, and `before` what to do first.
    """

    def __init__(self, inner, instead=None, before=None):
        self.inner, self.instead, self.before = inner, instead or {}, before or {}
        self.bytes, self.points = [], []

    def submit(self, function, *args):
        number = len(self.bytes)
        self.bytes.append(len(pickle.dumps(args)))
        self.points += [int(n) for arg in args if isinstance(arg, np.ndarray) for n in arg]
        self.before.get(number, int)()
        function, args = self.instead.get(number, (function, args))
        return self.inner.submit(function, *args)

    def payloads(self, data):
        """Return how many calls carried the data."""
        return sum(size > data.x.nbytes for size in self.bytes)


def same_bits(found, expected):
    assert found.risks.tobytes() == expected.risks.tobytes()
    assert (found.centre, found.rounding) == (expected.centre, expected.rounding)


def problem(steps=15, seed=0):
    """Return a plane, data that are larger than its blocks, and the landscape."""
    net = network("dense")
    where, data = Plane.random(point(net, seed), seed, "filter", steps=steps), samples(net, 200)
    return where, data, scan(where, data, LOSS)


def processes():
    """Return two processes; the server that they come from has imported what they need."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tinyspur.scanning"])
    return ProcessPoolExecutor(2, context)


def threads():
    return ThreadPoolExecutor(3)


@pytest.mark.parametrize("pool", [threads, processes])
def test_pools_find_the_same_bits_and_no_call_carries_the_data(pool):
    where, data, expected = problem()
    with pool() as inner:
        executor = Recorder(inner)
        same_bits(scan(where, data, LOSS, executor), expected)
        blocks = len(executor.bytes)
        assert set(executor.points) == set(range(225)) - {112}
        assert executor.payloads(data) == 0 < blocks == 56
        # other scans in between, more than the workers keep the data of
        for seed in (1, 2, 3):
            there, _, there_expected = problem(5, seed)
            same_bits(scan(there, data, LOSS, inner), there_expected)
        lines = Lines.random(where.theta, 5, 1, steps=5)
        same_bits(scan(lines, data, LOSS, inner), scan(lines, data, LOSS))
        same_bits(scan(where, data, LOSS, inner), expected)


PREPARE = """
import multiprocessing, os, sys, time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
import numpy as np
from tinyspur import scanning, load_point, SquaredLoss, TrainingSet
from tinyspur.landscape import Landscape, Plane
from tinyspur.scanning import scan
folder = sys.argv[1]
with np.load(folder + "/data.npz") as arrays:
    data = TrainingSet(arrays["x"], arrays["y"])
where = Plane.random(load_point(folder + "/theta.npz"), 0, "filter", steps=15)
"""


def script(folder, where, data, text, **options):
    """Start a program that has the plane of `problem` and its data."""
    save_point(folder / "theta.npz", where.theta)
    np.savez(folder / "data.npz", x=data.x, y=data.y)
    command = [sys.executable, "-c", PREPARE + text, str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options)


def test_forked_workers_find_the_same_bits(tmp_path):
    where, data, expected = problem()
    text = """
with ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as executor:
    scan(where, data, SquaredLoss(), executor).save(folder + "/found.npz")
"""
    with script(tmp_path, where, data, text) as program:
        assert program.wait(120) == 0
    same_bits(Landscape.load(tmp_path / "found.npz"), expected)


class Read:
    """A loss that writes down which process has read it, once pickled."""

    def __init__(self, log):
        self.log = str(log)

    def __reduce__(self):
        noted = f"open({self.log!r}, 'a').write(f'{{__import__(\"os\").getpid()}}\\n')"
        return eval, (f"({noted}, __import__('tinyspur').SquaredLoss())[1]",)

    def __getattr__(self, name):
        return getattr(LOSS, name)


@pytest.mark.parametrize("pool", [threads, processes])
def test_each_process_reads_the_data_once(pool, tmp_path):
    where, data, expected = problem()
    with pool() as executor:
        same_bits(scan(where, data, Read(tmp_path / "log"), executor), expected)
    readers = (tmp_path / "log").read_text().split()
    assert 1 <= len(readers) == len(set(readers)) <= 2
    assert (str(os.getpid()) in readers) == (pool is threads)


def test_no_data_are_left_behind(monkeypatch, tmp_path):
    where, data, _ = problem(5)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with threads() as executor:
        scan(where, data, LOSS, executor)
    assert not list(tmp_path.iterdir()) and not scanning._KEPT
    # workers that begin only while a scan that failed ends
    work, number, late = scanning._work, itertools.count(), []
    begun, ending = threading.Event(), threading.Event()

    class Kept(dict):
        def pop(self, *args):
            found = super().pop(*args)
            ending.set()
            time.sleep(0.1)
            return found

    def begin_late(*args):
        n = next(number)
        if n == 1:
            assert begun.wait(60)
            raise ValueError("a failure of the test's")
        if n:
            begun.set()
            assert ending.wait(60)
        answer = work(*args)
        late.append(answer[1])
        return answer

    monkeypatch.setattr(scanning, "_KEPT", Kept())
    monkeypatch.setattr(scanning, "_work", begin_late)
    with threads() as executor, pytest.raises(RuntimeError, match="of the test's"):
        scan(where, data, LOSS, executor)
    assert late[0] is not None and late[1:] and all(risks is None for risks in late[1:])
    assert not list(tmp_path.iterdir()) and not scanning._KEPT


def test_a_pool_that_is_shut_down_is_an_error(monkeypatch, tmp_path):
    """Its futures that are cancelled count as done only when a worker has seen that."""
    where, data, expected = problem(4)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    submitted, risks, number = threading.Semaphore(0), scanning._Job.risks, itertools.count()

    class Counted(ThreadPoolExecutor):
        def submit(self, *args):
            future = super().submit(*args)
            submitted.release()
            return future

    def shutting_down(job, points):
        if next(number) == 1:
            for _ in range(4):  # there are four blocks
                assert submitted.acquire(timeout=60)
            pool.shutdown(wait=False, cancel_futures=True)
        return risks(job, points)

    with monkeypatch.context() as patch:
        patch.setattr(scanning._Job, "risks", shutting_down)
        with (
            Counted(1) as pool,
            pytest.raises(RuntimeError, match=r"the executor failed \(CancelledError"),
        ):
            scan(where, data, LOSS, pool, tmp_path / "scan.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["scan.npz"] and not scanning._KEPT
    same_bits(scan(where, data, LOSS, path=tmp_path / "scan.npz"), expected)


@pytest.mark.parametrize("pool", [threads, processes])
def test_data_that_a_cleaner_removes_are_sent(pool, monkeypatch, tmp_path):
    where, data, expected = problem()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def clean():
        for folder in tmp_path.glob("tinyspur-*"):
            shutil.rmtree(folder)

    with pool() as inner:
        executor = Recorder(inner, before={1: clean})
        same_bits(scan(where, data, LOSS, executor), expected)
        assert executor.payloads(data) <= 2 * (pool is processes)
    assert not scanning._KEPT


class Broken(SquaredLoss):
    """A loss that can't be unpickled for want of a file."""

    def __reduce__(self):
        return open, ("/no/such/file",)


@pytest.mark.parametrize("pool", [threads, processes])
def test_a_loss_that_a_worker_cannot_read_is_an_error(pool):
    where, data, _ = problem(5)
    with (
        pool() as executor,
        pytest.raises(RuntimeError, match=r"FileNotFoundError: .*/no/such/file"),
    ):
        scan(where, data, Broken(), executor)


def test_a_full_disk_is_an_error(monkeypatch, tmp_path):
    where, data, _ = problem(5)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with (
        threads() as executor,
        pytest.raises(OSError, match=f"scan: .* written to {tmp_path}/.*: .*No space"),
    ):
        scan(where, data, LOSS, executor)
    assert not list(tmp_path.iterdir())


def test_workers_forked_beside_a_running_pass_can_work(tmp_path):
    where, data, _ = problem(5)
    text = """
from tinyspur import backend
with scanning._LOADING, backend._ONE_THREAD.lock:  # as threads of this process may
    worker = multiprocessing.get_context("fork").Process(
        target=scan, args=(where, data, SquaredLoss(), ThreadPoolExecutor(1))
    )
    worker.start()
    worker.join(30)
sys.exit(worker.exitcode != 0 and (worker.kill() or 1))
"""
    with script(tmp_path, where, data, text) as program:
        assert program.wait(120) == 0


class Simulated(Executor):
    """Workers on other machines, with memories of their own, that take calls in a random order.

    Before a call a worker dies, and a new one is in its place, with the chance `dying`. Where it
    is known to die before the call `dead`, calls are taken in their order.
    """

    def __init__(self, workers, seed, monkeypatch, dying=0.0, dead=None):
        self.random, self.patch, self.dying = random.Random(seed), monkeypatch, dying
        self.workers = [(n, {}) for n in range(workers)]
        self.started, self.waiting, self.most = workers, [], 0
        self.dead, self.calls, self.answered = dead, 0, deque()
        monkeypatch.setattr(scanning, "SimpleQueue", lambda: self)

    def put(self, future):
        self.answered.append(future)

    def submit(self, function, *args):
        future = Future()
        self.waiting.append((future, function, args))
        self.most = max(self.most, len(self.waiting))
        return future

    def get(self):
        for _ in range(0 if self.answered else self.random.randint(1, len(self.waiting))):
            last = len(self.waiting) if self.dead is None else 1
            future, function, args = self.waiting.pop(self.random.randrange(last))
            k = self.random.randrange(len(self.workers))
            if self.random.random() < self.dying or self.calls == self.dead:
                self.workers[k] = self.started, {}
                self.started += 1
            self.calls += 1
            number, memory = self.workers[k]
            with self.patch.context() as patch:
                patch.setattr(os, "getpid", lambda number=number: number)
                patch.setattr(scanning, "_KEPT", memory)
                patch.setattr(Path, "read_bytes", nowhere)
                future.set_result(function(*args))
        return self.answered.popleft()


def nowhere(path):
    raise FileNotFoundError(path)


@pytest.mark.parametrize("dying", [0.0, 0.1])
@pytest.mark.parametrize("workers", [1, 2, 5])
def test_in_whatever_order_workers_answer_or_die_the_bits_are_the_same(workers, dying, monkeypatch):
    where, data, expected = problem()
    for seed in range(8):
        simulated = Simulated(workers, seed, monkeypatch, dying)
        executor = Recorder(simulated)
        same_bits(scan(where, data, LOSS, executor), expected)
        assert not simulated.waiting
        assert simulated.most <= 2 * simulated.started + 2
        if simulated.started == 1:
            assert executor.payloads(data) == 1
            again = len(executor.points) - (where.alpha.size**2 - 1)
            assert 4 <= again <= 2 * 4  # one or two blocks before the data had arrived
        assert executor.payloads(data) <= 4 * simulated.started


def test_what_a_new_worker_was_given_waits_for_the_data(monkeypatch):
    where, data, expected = problem()
    for seed in range(8):
        simulated = Simulated(1, seed, monkeypatch, dead=20)
        executor = Recorder(simulated)
        same_bits(scan(where, data, LOSS, executor), expected)
        assert simulated.started == 2
        assert executor.payloads(data) == 2


def test_what_is_under_way_is_cancelled_when_the_scan_is_interrupted(monkeypatch, tmp_path):
    where, data, _ = problem()
    simulated = Simulated(2, 0, monkeypatch)
    executor = Recorder(simulated, before={9: lambda: signal.raise_signal(signal.SIGINT)})
    with pytest.raises(KeyboardInterrupt):
        scan(where, data, LOSS, executor, tmp_path / "scan.npz")
    assert simulated.waiting
    assert all(future.cancelled() for future, *_ in simulated.waiting)
    with pytest.raises(ValueError, match="expected a finished scan"):
        Landscape.load(tmp_path / "scan.npz")


def test_workers_run_on_one_thread_each(monkeypatch):
    where, data, expected = problem(5, seed=8)
    threads, value = [], SquaredLoss.value

    def watched(loss, o, y):
        threads.append(threading.get_ident())
        return value(loss, o, y)

    monkeypatch.setattr(SquaredLoss, "value", watched)
    monkeypatch.setattr(backend, "WORKERS", 4)
    monkeypatch.setattr(scanning, "risk_rounding", lambda *_: 0.0)
    where.theta.net.memory_budget = 1
    scan(where, data, LOSS)
    assert len(set(threads)) > 1
    assert threading.get_ident() not in threads
    threads.clear()
    with ThreadPoolExecutor(1) as executor:
        worker = executor.submit(threading.get_ident).result()
        found = scan(where, data, LOSS, executor)
    assert np.allclose(found.risks, expected.risks, rtol=1e-12, atol=0)
    assert len(threads) == 25 * 200
    assert threads.count(worker) == 24 * 200


class RaisingLoss(SquaredLoss):
    """A loss that raises in its third call."""

    calls = 0

    def value(self, o, y):
        self.calls += 1
        if self.calls == 3:
            raise ArithmeticError("third call")
        return super().value(o, y)


def test_errors_pass_unchanged_without_an_executor(tmp_path):
    where, data, _ = problem(5)
    path = tmp_path / "scan.npz"
    with pytest.raises(ArithmeticError, match=r"^third call$"):
        scan(where, data, RaisingLoss(), path=path)
    with pytest.raises(ValueError, match="expected a finished scan, got 1 of 25 risks"):
        Landscape.load(path)


@pytest.mark.parametrize(
    ("pool", "failure", "words"),
    [
        (processes, (os._exit, (1,)), "BrokenProcessPool"),
        (threads, (operator.truediv, (1, 0)), "ZeroDivisionError: division by zero"),
    ],
    ids=["dies", "raises"],
)
def test_what_was_found_before_a_pool_failed_is_kept(pool, failure, words, tmp_path):
    where, data, expected = problem()
    path = tmp_path / "scan.npz"
    with (
        pool() as executor,
        pytest.raises(RuntimeError, match=rf"^scan: the executor failed \({words}") as raised,
    ):
        scan(where, data, LOSS, Recorder(executor, {9: failure}), path)
    assert raised.value.__cause__ is not None
    with np.load(path) as arrays:
        done, risks = int(arrays["done"].sum()), arrays["risks"]
    assert f"; {done} of 225 risks are in {path}, from which the same call goes on" in str(
        raised.value
    )
    with pytest.raises(ValueError, match=f"expected a finished scan, got {done} of 225 risks"):
        Landscape.load(path)
    kept = ~np.isnan(risks)
    assert 5 <= done == kept.sum() < 225
    assert np.array_equal(risks[kept], expected.risks[kept])
    with pool() as executor:
        again = Recorder(executor)
        same_bits(scan(where, data, LOSS, again, path), expected)
    assert set(again.points) == set(np.flatnonzero(~kept))
    same_bits(Landscape.load(path), expected)


def test_a_pool_that_failed_is_named_without_a_file_too():
    where, data, _ = problem(5)
    pool = ThreadPoolExecutor(1)
    pool.shutdown()
    with pytest.raises(RuntimeError, match=r"executor failed \(RuntimeError: [^;]*\)$"):
        scan(where, data, LOSS, pool)


# Dask


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    with (
        mock.patch.dict(os.environ),  # where Dask leaves what its workers need
        distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            dashboard_address=None,
            silence_logs=logging.CRITICAL,
            local_directory=str(tmp_path_factory.mktemp("dask")),
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


def test_dask_finds_the_same_bits_without_a_warning(client):
    where, data, expected = problem()
    executor = Recorder(client.get_executor())
    with (
        dask.config.set({"distributed.admin.large-graph-warning-threshold": "1 kB"}),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("error")
        same_bits(scan(where, data, LOSS, executor), expected)
    assert set(executor.points) == set(range(225)) - {112}
    assert executor.payloads(data) == 0 < len(executor.bytes) == 56


def test_dask_replaces_workers_that_die_and_the_bits_are_the_same(client):
    client.wait_for_workers(2, timeout=120)
    where, data, expected = problem()
    first, second = client.run(os.getpid).values()
    executor = Recorder(
        client.get_executor(),
        before={
            5: lambda: os.kill(first, signal.SIGKILL),
            20: lambda: os.kill(second, signal.SIGKILL),
        },
    )
    same_bits(scan(where, data, LOSS, executor), expected)
    assert len(executor.bytes) == 56  # Dask itself gives others what was lost
    assert executor.payloads(data) == 0
    client.wait_for_workers(2, timeout=120)
    assert {first, second}.isdisjoint(client.run(os.getpid).values())


# Interruptions and files


@pytest.fixture
def evaluated(monkeypatch):
    """Record the numbers of the points that are evaluated."""
    numbers, risks = [], scanning._Job.risks

    def recording(job, points):
        numbers.extend(map(int, points))
        return risks(job, points)

    monkeypatch.setattr(scanning._Job, "risks", recording)
    return numbers


def test_a_scan_that_was_killed_goes_on(tmp_path, evaluated):
    where, data, expected = problem()
    text = """
value, calls = SquaredLoss.value, []
def stuck(loss, o, y):
    calls.append(1)
    if len(calls) == 60:
        print("stuck", flush=True)
        time.sleep(600)
    return value(loss, o, y)
SquaredLoss.value, scanning.SAVE_SECONDS = stuck, -1
scan(where, data, SquaredLoss(), path=folder + "/scan.npz")
"""
    path = tmp_path / "scan.npz"
    with script(tmp_path, where, data, text) as program:
        try:
            assert program.stdout.readline() == "stuck\n"
        finally:
            program.kill()
        assert program.wait() == -signal.SIGKILL
    with pytest.raises(
        ValueError, match=r"scan\.npz: expected a finished scan, got 57 of 225 risks"
    ):
        Landscape.load(path)
    evaluated.clear()
    same_bits(scan(where, data, LOSS, path=path), expected)
    assert len(evaluated) == len(set(evaluated)) == 225 - 57
    same_bits(Landscape.load(path), expected)


def test_an_interrupted_scan_is_saved_and_goes_on(tmp_path, evaluated, monkeypatch):
    where, data, expected = problem()
    path, risks = tmp_path / "new" / "scan.npz", scanning._Job.risks
    evaluated.clear()

    def interrupted(job, points):
        if len(evaluated) == 20:
            raise KeyboardInterrupt
        return risks(job, points)

    with monkeypatch.context() as patch:
        patch.setattr(scanning._Job, "risks", interrupted)
        with pytest.raises(KeyboardInterrupt):
            scan(where, data, LOSS, path=path)
    assert evaluated == list(range(20))
    with pytest.raises(ValueError, match="expected a finished scan, got 21 of 225 risks"):
        Landscape.load(path)
    same_bits(scan(where, data, LOSS, path=path), expected)
    assert evaluated == [n for n in range(225) if n != 112]
    assert list(path.parent.iterdir()) == [path]


def test_a_finished_scan_is_read(tmp_path, work):
    where, data, _ = problem(5)
    passes, products = work
    first = scan(where, data, LOSS, path=str(tmp_path / "scan.npz"))
    before = (tmp_path / "scan.npz").read_bytes()
    again, again_data, _ = problem(5)  # equal, not the same
    passes.clear()
    products.clear()
    with ThreadPoolExecutor(1) as executor:
        for pool in (None, executor):
            same_bits(scan(again, again_data, LOSS, pool, tmp_path / "scan.npz"), first)
    # R(theta) tells that it is the same scan, nothing else is evaluated
    layers = [1, 2, 3]
    assert passes == 2 * [(layer, where.theta.vector.tobytes()) for layer in layers]
    assert len(products) == 2 * len(layers)
    assert (tmp_path / "scan.npz").read_bytes() == before


def test_the_rounding_error_is_that_of_theta_and_of_the_lowest_or_farthest_point(tmp_path):
    where, data, found = problem(7)
    lowest = min(places(where), key=lambda item: found.risks[item[0]])[1]
    distances = [abs(p.vector - where.theta.vector).max() for _, p in places(where)]
    farthest = list(places(where))[int(np.argmax(distances))][1]
    assert where.farthest == int(np.argmax(distances))
    expected = risk_rounding(where.theta, data, LOSS) + max(
        risk_rounding(p, data, LOSS) for p in (lowest, farthest)
    )
    assert found.rounding == pytest.approx(expected, rel=1e-12, abs=0)
    assert found.rounding < 1e-12


OTHERS = {
    "theta": lambda p, t, x: (Lines(point(NET, 5), p, t), x, LOSS),
    "direction": lambda p, t, x: (Lines(point(NET), (p[0], point(NET, 5)), t), x, LOSS),
    "order": lambda p, t, x: (Lines(point(NET), p[::-1], t), x, LOSS),
    "ticks": lambda p, t, x: (Lines(point(NET), p, [*t[:-1], 0.75]), x, LOSS),
    "fewer ticks": lambda p, t, x: (Lines(point(NET), p, t[:-1]), x, LOSS),
    "plane": lambda p, t, x: (Plane(point(NET), p, t, t), x, LOSS),
    "x": lambda p, t, x: (Lines(point(NET), p, t), TrainingSet(x.x + 1, x.y), LOSS),
    "y": lambda p, t, x: (Lines(point(NET), p, t), TrainingSet(x.x, x.y[::-1]), LOSS),
    "samples": lambda p, t, x: (Lines(point(NET), p, t), TrainingSet(x.x[1:], x.y[1:]), LOSS),
    "loss": lambda p, t, x: (Lines(point(NET), p, t), x, CrossEntropy()),
    "delta": lambda p, t, x: (Lines(point(NET), p, t), x, HuberLoss(0.5)),
    "activation": lambda p, t, x: (Lines(*leaky(point(NET), *p), t), x, LOSS),
    "random": lambda p, t, x: (Lines(point(NET), RandomDirections(point(NET), 2), t), x, LOSS),
}


def leaky(theta, *directions):
    net = Network(NET.input_shape, NET.layers, ReLU(0.1))
    first, *others = (Parameters(net, p.vector) for p in (theta, *directions))
    return first, others


@pytest.mark.parametrize("other", OTHERS)
def test_the_file_of_another_scan_is_refused(other, tmp_path):
    directions, ticks, data = (point(NET, 1), point(NET, 2)), [0.0, 0.5, 1.0], samples(NET)
    path = tmp_path / "scan.npz"
    loss = HuberLoss(0.7) if other == "delta" else LOSS
    scan(Lines(point(NET), directions, ticks), data, loss, path=path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"scan\.npz: expected no file, or that of the same scan"):
        scan(*OTHERS[other](directions, ticks, data), path=path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"normalization": "layer"},
        {"biases": False},
        {"theta": point(NET, 1)},
        {"count": 3},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_file_of_other_random_directions_is_refused(change, tmp_path):
    drawn = {"theta": point(NET), "count": 2, "seed": 0, "normalization": "filter", "biases": True}
    path, data = tmp_path / "scan.npz", samples(NET)
    scan(Lines(point(NET), RandomDirections(**drawn), [0.5]), data, LOSS, path=path)
    with pytest.raises(ValueError, match=r"scan\.npz: expected no file, or that of the same scan"):
        scan(Lines(point(NET), RandomDirections(**drawn | change), [0.5]), data, LOSS, path=path)
    scan(Lines(point(NET), RandomDirections(**drawn), [0.5]), data, LOSS, path=path)


def test_a_file_that_is_damaged_or_no_scan_is_refused_and_kept(tmp_path):
    where, data, found = problem(3)
    path = tmp_path / "scan.npz"
    scan(where, data, LOSS, path=path)
    whole = path.read_bytes()
    found.save(tmp_path / "saved.npz")
    saved = (tmp_path / "saved.npz").read_bytes()
    with np.load(path) as arrays:
        arrays = dict(arrays)
    np.savez(tmp_path / "less.npz", **{k: v for k, v in arrays.items() if k != "centre"})
    np.savez(tmp_path / "short.npz", **arrays | {"risks": arrays["risks"][1:]})
    less, short = ((tmp_path / f"{name}.npz").read_bytes() for name in ("less", "short"))
    for content in (whole[:-30], whole[:100], b"", b"no zip", saved, less, short):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=re.escape(f"{path}: ")):
            scan(where, data, LOSS, path=path)
        assert path.read_bytes() == content


def test_the_progress_is_shown_if_asked_for(capsys, tmp_path):
    where, data, _ = problem(3)
    scan(where, data, LOSS)
    assert capsys.readouterr().err == ""
    scan(where, data, LOSS, progress=True)
    assert "risks: " in (shown := capsys.readouterr().err)
    assert "/9 " in shown
    scan(where, data, LOSS, path=tmp_path / "scan.npz", progress="the plane")
    assert " 0/9 " in (shown := capsys.readouterr().err)
    assert "the plane: " in shown
    scan(where, data, LOSS, path=tmp_path / "scan.npz", progress=True)
    assert " 9/9 " in (shown := capsys.readouterr().err)  # what is in the file is not done again
    assert " 0/9 " not in shown


# What was found


def lines_found(risks):
    return Landscape(np.arange(3.0), None, np.array(risks), 1.0, 0.25)


def test_a_risk_is_lower_by_more_than_the_rounding_error():
    found = lines_found([[0.75, 1.0, 2.0], [0.7, 0.0, 1.0], [np.nan, 0.9, 0.76]])
    assert found.lower.tolist() == [[False] * 3, [True, True, False], [False] * 3]
    assert found.lower_lines == 1
    assert str(found) == "R = 1 at the centre; 1 of 3 lines reach a lower risk, by 1 at most"
    plane = Landscape(np.arange(3.0), np.arange(2.0), found.risks[:, :2], 1.0, 0.05)
    assert plane.lower.tolist() == [[True, False], [True, True], [False, True]]
    assert str(plane) == "R = 1 at the centre; 4 of 6 points are lower, by 1 at most"
    with pytest.raises(ValueError, match="lower lines: expected lines, got a plane"):
        _ = plane.lower_lines
    above = lines_found([[0.9, 1.0, 2.0]])
    assert str(above) == "R = 1 at the centre; 0 of 1 lines reach a lower risk"


@pytest.mark.parametrize("kind", ["plane", "lines"])
def test_landscapes_are_read_as_they_were_saved(kind, tmp_path):
    net = network("images")
    theta, data = point(net), samples(net)
    where = Plane.random(theta, steps=3) if kind == "plane" else Lines.random(theta, 4, steps=3)
    found = scan(where, data, LOSS, path=tmp_path / "scan.npz")
    found.save(tmp_path / "saved.npz")
    with np.load(tmp_path / "saved.npz", allow_pickle=False) as arrays:
        beta = {"beta"} if kind == "plane" else set()
        assert set(arrays.files) == {"alpha", "risks", "centre", "rounding"} | beta
    for name in ("scan.npz", "saved.npz"):
        read = Landscape.load(str(tmp_path / name))
        same_bits(read, found)
        assert np.array_equal(read.alpha, where.alpha)
        assert (read.beta is None) == (kind == "lines")
        assert kind == "lines" or np.array_equal(read.beta, where.beta)
        assert (type(read.centre), type(read.rounding)) == (float, float)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"risks": None}, r"expected arrays \['risks'\], got \['alpha', 'beta', 'centre', 'rou"),
        ({"alpha": None, "centre": None}, r"expected arrays \['alpha', 'centre'\]"),
        ({"rounding": None}, r"expected arrays \['rounding'\]"),
        ({"risks": np.zeros((3, 2))}, r"expected risks \(2, 3\), got \(3, 2\)"),
        ({"beta": None}, r"expected risks \(2, 2\), got \(2, 3\)"),
        ({"alpha": np.zeros(3)}, r"expected risks \(3, 3\), got \(2, 3\)"),
        ({"risks": np.float64(1)}, r"expected risks \(2, 3\), got \(\)"),
        ({"done": np.array([True, False])}, "expected a finished scan, got 1 of 2 risks"),
        ({"centre": np.zeros(2)}, "TypeError only"),
    ],
)
def test_files_that_hold_no_landscape_are_refused(change, message, tmp_path):
    arrays = {"alpha": np.zeros(2), "beta": np.zeros(3), "risks": np.zeros((2, 3))}
    arrays |= {"centre": np.array(1.0), "rounding": np.array(0.0)}
    path = tmp_path / "file.npz"
    np.savez(path, **arrays)
    assert Landscape.load(path).risks.shape == (2, 3)
    np.savez(path, **{k: v for k, v in (arrays | change).items() if v is not None})
    with pytest.raises(ValueError, match=rf"file\.npz: {message}"):
        Landscape.load(path)
    path.write_bytes(b"PK no archive")
    with pytest.raises(ValueError, match=r"file\.npz: expected an NPZ of plain arrays"):
        Landscape.load(path)


# Types and devices


@over_networks
def test_single_precision_is_single_precision(name):
    net = network(name)
    theta = point(net).to(np, np.float32)
    data = samples(net)
    found = scan(Plane.random(theta, 1, "filter", steps=3), data, LOSS)
    double = theta.to(np, np.float64)
    directions = RandomDirections(theta, 2, 1, "filter")
    ticks = [-1.0, 0.0, 1.0]
    wide = Plane(double, [d.to(np, np.float64) for d in directions], ticks, ticks)
    expected = scan(wide, data, LOSS)
    off = abs(found.risks - expected.risks).max()
    assert 0 < off <= 1e-5 * expected.risks.max()
    assert found.risks.dtype == np.float64
    assert found.rounding > 1e6 * expected.rounding
    assert found.centre == net.risk(theta, data, LOSS)


@pytest.fixture(params=["stand-in", pytest.param("cupy", marks=pytest.mark.gpu)])
def device(request):
    return strict_device if request.param == "stand-in" else select("cupy").xp


def moved_to(where, xp):
    """Return the same plane or lines on a device."""
    theta = where.theta.to(xp)
    if isinstance(where.directions, RandomDirections):
        d = where.directions
        directions = RandomDirections(theta, d.count, d.seed, d.normalization, d.biases)
        return Lines(theta, directions, where.alpha)
    directions = tuple(d.to(xp) for d in where.directions)
    axes = (where.alpha,) if where.beta is None else (where.alpha, where.beta)
    return type(where)(theta, directions, *axes)


@pytest.mark.parametrize("budget", [1, 2**26])
@pytest.mark.parametrize(
    ("name", "loss"),
    [
        *(("dense", LOSSES[0]), ("images", LOSSES[1]), ("series", LOSSES[2])),
        *(("leading", LOSSES[3]), ("smooth", LOSSES[0]), ("no dense", LOSSES[1])),
    ],
)
def test_risks_on_a_device_are_those_of_numpy(name, loss, budget, device):
    net = network(name, budget)
    theta, a, b = (point(net, seed) for seed in range(3))
    data = samples(net, 3)
    for host in (
        Plane.through(theta, a, b, 3),
        Lines.between(a, b, 4),
        Lines.random(theta, 2, 0, "filter", steps=3),
    ):
        expected, found = (scan(where, data, loss) for where in (host, moved_to(host, device)))
        assert isinstance(found.risks, np.ndarray)
        assert np.allclose(found.risks, expected.risks, rtol=1e-12, atol=1e-13)
        assert found.centre == pytest.approx(expected.centre, rel=1e-12)
        assert found.rounding == pytest.approx(expected.rounding, rel=1e-6, abs=0)
    host, on_device = (
        Plane.through(*(p.to(xp) for p in (theta, a, b)), steps=3) for xp in (np, device)
    )
    assert isinstance(on_device.directions[1].vector, device.ndarray)
    for d, e in zip(on_device.directions, host.directions, strict=True):
        assert np.allclose(to_numpy(d.vector), e.vector, rtol=1e-12, atol=1e-14)
    assert np.allclose(on_device.alpha, host.alpha, rtol=1e-12)
    assert np.allclose(on_device.within(0.1, 5), host.within(0.1, 5), rtol=1e-12)
    lines = Lines.between(theta, a)
    assert np.allclose(moved_to(lines, device).within(0.1), lines.within(0.1), rtol=1e-12)
    assert on_device.coordinates(b.to(device)) == pytest.approx(host.coordinates(b), rel=1e-9)
    for normalization in (None, "filter", "layer"):
        d = random_direction(theta.to(device), 3, normalization)
        assert isinstance(d.vector, device.ndarray)
        expected = random_direction(theta, 3, normalization).vector
        assert np.array_equal(to_numpy(d.vector), expected)


def test_a_scan_on_a_device_resumes_and_runs_in_threads(device, tmp_path):
    where, data, _ = problem(5, seed=9)
    where, path = moved_to(where, device), tmp_path / "scan.npz"
    expected = scan(where, data, LOSS, path=path)
    with ThreadPoolExecutor(2) as executor:
        same_bits(scan(where, data, LOSS, executor), expected)
    same_bits(scan(where, data, LOSS, path=path), expected)


@pytest.mark.parametrize(
    ("loss", "pooling"), [(LOSS, []), (CrossEntropy(), [AveragePool(1)]), (LOSS, [MaxPool(1)])]
)
def test_transfers_of_a_scan_grow_with_blocks_and_chunks_and_not_with_layers(loss, pooling):
    found = {}
    for convolutions in (1, 6):
        for budget in (1, 2**26):
            layers = [Conv(2), *pooling] * convolutions
            net = Network((1, 8), [*layers, Dense(3)], ReLU(), budget)
            data, three = samples(net, 4), [point(net, seed) for seed in range(3)]
            for steps in (3, 5):
                where = moved_to(Plane.through(*three, steps), strict_device)
                with strict_device.transfers() as count:
                    scan(where, data, loss)
                found.setdefault((budget, steps), set()).add((count.to_device, count.to_host))
    assert all(len(counts) == 1 for counts in found.values())
    more = 25 // 4 - 9 // 4  # blocks; one point alone is left in both
    checks = loss.name == "cross-entropy"  # of the targets
    for budget, chunks in ((1, 4), (2**26, 1)):
        ((sent, read),), ((more_sent, more_read),) = (found[budget, n] for n in (3, 5))
        assert (more_sent - sent, more_read - read) == (more * (chunks + 1), more * (1 + checks))


# Parameters and passes that begin above the input


@over_networks
def test_points_keep_their_views_when_they_are_pickled_and_copied(name):
    theta = point(network(name))
    for made in (
        pickle.loads(pickle.dumps(theta)),
        pickle.loads(pickle.dumps(theta, protocol=5)),
        copy.deepcopy(theta),
    ):
        assert made.net == theta.net
        assert np.array_equal(made.vector, theta.vector)
        assert not np.shares_memory(made.vector, theta.vector)
        for n in theta.b:
            assert np.shares_memory(made.W[n].weights, made.vector)
            assert np.shares_memory(made.b[n], made.vector)
        made.vector[...] = np.arange(made.vector.size)
        for name, array in made.arrays().items():
            assert np.array_equal(array, Parameters(theta.net, made.vector).arrays()[name])


@over_networks
def test_passes_that_begin_above_the_input_are_the_upper_part_of_those_that_do_not(name):
    net = network(name)
    theta, data = point(net), samples(net)
    columns = data.x.reshape(len(data), -1).T.copy()
    trace = list(net.layerwise(theta, columns))
    outputs = [columns, *(o for _, o in trace)]
    for above in range(net.depth + 1):
        start = outputs[above].copy()
        layers = range(above, net.depth + 1)
        found = [net.layer_output(theta, start, layer, above=above) for layer in layers]
        for layer, o in zip(layers, found, strict=True):  # after all, none has another's memory
            assert np.array_equal(o, outputs[layer])
        assert np.array_equal(start, outputs[above])


class Weighted(SquaredLoss):
    def __init__(self, weight):
        self.weight = weight

    def value(self, o, y):
        return self.weight * super().value(o, y)


def bend(z):
    return 1 / (1 + z * z)


def twice(z):
    return 2 * np.cos(z)


def twice_sin(z):
    return 2 * np.sin(z)


def with_activation(function, derivative):
    net = Network(NET.input_shape, NET.layers, SmoothActivation("own", function, derivative))
    return Plane.random(Parameters(net, point(NET).vector), steps=3)


PAIRS = {
    "delta": lambda: [
        (Plane.random(point(NET), steps=3), HuberLoss(d)) for d in (0.1, 0.1000000004)
    ],
    "activation": lambda: [
        (with_activation(f, g), LOSS) for f, g in ((np.arctan, bend), (twice_sin, twice))
    ],
    "loss": lambda: [(Plane.random(point(NET), steps=3), Weighted(w)) for w in (1.0, 2.0)],
}


@pytest.mark.parametrize("pair", PAIRS)
def test_other_losses_and_activations_are_told_apart_in_a_pool(pair):
    data = samples(NET)
    with ThreadPoolExecutor(1) as executor:
        for where, loss in PAIRS[pair]():
            same_bits(scan(where, data, loss, executor), scan(where, data, loss))


@pytest.mark.parametrize("pair", PAIRS)
def test_other_losses_and_activations_are_told_apart_in_a_file(pair, tmp_path):
    (where, loss), (other, other_loss) = PAIRS[pair]()
    scan(where, samples(NET), loss, path=tmp_path / "scan.npz")
    with pytest.raises(ValueError, match="that of the same scan"):
        scan(other, samples(NET), other_loss, path=tmp_path / "scan.npz")


def test_the_key_of_an_own_loss_has_no_address(tmp_path):
    where, data, path = Plane.random(point(NET), steps=3), samples(NET), tmp_path / "scan.npz"

    class Own(SquaredLoss):  # the same in another process, or made once more
        __repr__ = object.__repr__

    kept = Own()
    scan(where, data, kept, path=path)
    scan(where, data, Own(), path=path)


def test_a_pool_does_not_answer_with_chunks_or_arrays_of_an_earlier_scan():
    """The first scan's job has the same key: its memory budget and its device are not in it."""
    data, theta = samples(NET, 200), point(NET)
    seen, value = [], SquaredLoss.value
    with ThreadPoolExecutor(1) as executor:
        scan(Plane.random(theta, steps=3), data, LOSS, executor)
        small = Parameters(network("dense", 1), theta.vector)
        SquaredLoss.value = lambda loss, o, y: (
            seen.append((type(o), o.shape[1])) or value(loss, o, y)
        )
        try:
            scan(Plane.random(small, steps=3), data, LOSS, executor)
            chunks = {n for _, n in seen}
            seen.clear()
            scan(moved_to(Plane.random(theta, steps=3), strict_device), data, LOSS, executor)
            types = [t for t, _ in seen]
        finally:
            SquaredLoss.value = value
    assert chunks - {200} == {1} and types.count(strict_device.ndarray) >= 9


def test_a_file_without_a_rounding_error_is_not_finished(tmp_path, monkeypatch):
    where, data, expected = problem(5)

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(scanning, "risk_rounding", stop)
        scan(where, data, LOSS, path=tmp_path / "scan.npz")
    with pytest.raises(ValueError, match="expected a finished scan"):
        Landscape.load(tmp_path / "scan.npz")
    same_bits(scan(where, data, LOSS, path=tmp_path / "scan.npz"), expected)


def test_what_cannot_be_pickled_is_bad_input():
    net = Network(NET.input_shape, NET.layers, SmoothActivation("own", lambda z: z, np.ones_like))
    where = Plane.random(Parameters(net, point(NET).vector), steps=3)
    with ThreadPoolExecutor(1) as executor, pytest.raises(ValueError, match="can be pickled"):
        scan(where, samples(NET), LOSS, executor)


def test_a_file_that_cannot_be_written_is_no_failure_of_the_executor(tmp_path, monkeypatch):
    where, data, _ = problem(5)
    write, calls = Landscape.save, []

    def full(*args, **more):
        calls.append(1)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        return write(*args, **more)

    monkeypatch.setattr(Landscape, "save", full)
    monkeypatch.setattr(scanning, "SAVE_SECONDS", -1)
    with ThreadPoolExecutor(1) as executor, pytest.raises(OSError, match="No space left"):
        scan(where, data, LOSS, executor, tmp_path / "scan.npz")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_points_on_one_line_are_so_up_to_rounding(dtype):
    size = 1e-5 if dtype == np.float64 else 1.0
    theta, d = point(NET).to(np, dtype), dtype(size) * point(NET, 1).vector.astype(dtype)
    a, b = (Parameters(NET, theta.vector + dtype(c) * d) for c in (1, 3))
    with pytest.raises(ValueError, match="not on one line"):
        Plane.through(theta, a, b)


def test_points_and_directions_of_other_types_or_places_are_refused():
    theta, d = point(NET), point(NET, 1)
    for other in (d.to(np, np.float32), d.to(strict_device)):
        for make in (
            lambda o: Lines(theta, (o,), [1.0]),
            lambda o: Lines.between(theta, o),
            lambda o: Plane.through(theta, d, o),
        ):
            with pytest.raises(ValueError, match="expected"):
                make(other)


def test_random_directions_of_another_network_are_refused():
    # 1x5 -> 4 -> 6 -> 3 and a net of as many parameters: its directions would be taken as they are
    twin = Network((1, 5), [Dense(6), Dense(3), Dense(3), Dense(4)])
    for net in (OTHER, twin):
        with pytest.raises(ValueError, match="expected points and directions of"):
            Lines(point(NET), RandomDirections(point(net), 2), [1.0])


def test_a_plane_has_two_dimensions():
    theta, d = point(NET), point(NET, 1)
    with pytest.raises(ValueError, match="plane"):
        Plane(theta, (d, Parameters(NET, -2 * d.vector)), [1.0], [1.0])


def test_a_point_that_is_not_finite_is_refused():
    theta = point(NET)
    theta.vector[3] = np.nan
    with pytest.raises(ValueError, match="finite"):
        Lines(theta, (point(NET, 1),), [1.0])


def test_errors_name_the_path_once(tmp_path):
    path = tmp_path / "scan.npz"
    path.write_bytes(b"no zip")
    for read in (
        Landscape.load,
        lambda p: scan(Plane.random(point(NET), steps=2), samples(NET), LOSS, path=p),
    ):
        with pytest.raises(ValueError) as raised:
            read(path)
        assert str(raised.value).count(str(path)) == 1
    with pytest.raises(FileNotFoundError):
        Landscape.load(tmp_path / "none.npz")


def test_all_threads_of_a_worker_have_something_to_do(monkeypatch):
    where, data, expected = problem()
    risks, number = scanning._Job.risks, itertools.count()
    together = dict.fromkeys(range(1, 5), threading.Barrier(4))
    together |= dict.fromkeys(range(5, 15), threading.Barrier(10))  # two for each of four, and two

    def meeting(job, points):
        n = next(number)
        if n in together:
            together[n].wait(60)
        return risks(job, points)

    monkeypatch.setattr(scanning._Job, "risks", meeting)
    with ThreadPoolExecutor(12) as executor:
        same_bits(scan(where, data, LOSS, executor), expected)


def test_a_finished_scan_is_not_pickled(tmp_path, monkeypatch):
    where, data, expected = problem(3)
    scan(where, data, LOSS, path=tmp_path / "scan.npz")

    def refuse(*_):
        raise AssertionError("pickled")

    monkeypatch.setattr(scanning.pickle, "dumps", refuse)
    with ThreadPoolExecutor(1) as executor:
        same_bits(scan(where, data, LOSS, executor, tmp_path / "scan.npz"), expected)


def test_only_what_is_lower_beyond_its_own_rounding_error_is_lower():
    net = Network((1, 1), [Dense(2), Dense(1)])
    theta, flat, down = net.zeros(), net.zeros(), net.zeros()
    theta.W[1].weights[...] = [[1.0], [3.1]]
    theta.W[2].weights[...] = [[0.3, 0.7]]
    flat.W[2].weights[...] = [[3.1, -1.0]]  # the output stays
    data = TrainingSet(np.random.default_rng(0).uniform(0.1, 1, (50, 1, 1)), np.zeros((50, 1)))
    down.b[2][...] = -1e-9
    found = scan(Lines(theta, (flat, down), np.linspace(-1e8, 1e8, 41)), data, LOSS)
    assert found.lower[1].any()
    assert not found.lower[0].any()
