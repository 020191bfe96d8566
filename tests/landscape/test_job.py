"""Points share what they have in common, and none is evaluated twice."""

import copy
import math
import pickle
from collections import Counter

import numpy as np
import pytest
from landscape_problems import (
    LOSS,
    LOSSES,
    network,
    over_networks,
    places,
    point,
    problem,
    risks_are_pytorchs,
    samples,
)
from shared import in_turn

from tinyspur.certificates.rounding import risk_rounding
from tinyspur.engine.parameters import Parameters
from tinyspur.engine.passes import steps
from tinyspur.landscape.planes import Lines, Plane
from tinyspur.landscape.scan import scan


@in_turn(pytest.mark.parametrize("only", ["weights", "biases", "all"]), over_networks)
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


@in_turn(
    pytest.mark.parametrize("loss", LOSSES[:2], ids=lambda loss: loss.name),
    pytest.mark.parametrize("name", ["dense", "images", "leading"]),
)
def test_risks_do_not_depend_on_the_chunks(name, loss):
    data = samples(network(name), 20)
    found, chunks = [], []
    seven = 7 * 16 * sum(map(math.prod, network(name).shapes))  # bytes for as many samples
    for budget in (1, seven, 2**30):
        net = network(name, budget)
        theta = point(net)
        chunks.append(len(list(net.chunks(theta, data.x))))
        found.append(scan(Plane.random(theta, 1, "filter", steps=3), data, loss))
    assert chunks[0] == 20 > chunks[1] > chunks[2] == 1
    for other in found[:2]:
        assert np.allclose(other.risks, found[2].risks, rtol=1e-12, atol=0)
        assert other.centre == pytest.approx(found[2].centre, rel=1e-12)


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
    outputs = [columns, *(step.o for step in steps(theta, columns))]
    for above in range(net.depth + 1):
        start = outputs[above].copy()
        layers = range(above, net.depth + 1)
        found = [net.layer_output(theta, start, layer, above=above) for layer in layers]
        for layer, o in zip(layers, found, strict=True):  # after all, none has another's memory
            assert np.array_equal(o, outputs[layer])
        assert np.array_equal(start, outputs[above])
