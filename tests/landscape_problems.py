"""Networks, data and scans that the tests of landscapes share."""

import math
import multiprocessing
import multiprocessing.forkserver
import pickle
from concurrent.futures import Executor

import numpy as np
import pytest
from shared import twin_risk

from tinyspur.datasets.samples import TrainingSet
from tinyspur.engine.activations import ReLU, Softplus, Tanh
from tinyspur.engine.losses import AbsoluteLoss, CrossEntropy, HuberLoss, SquaredLoss
from tinyspur.engine.network import Network
from tinyspur.engine.parameters import Parameters
from tinyspur.engine.user_activations import SmoothActivation
from tinyspur.landscape.directions import RandomDirections
from tinyspur.landscape.planes import Lines, Plane
from tinyspur.landscape.scan import scan
from tinyspur.layers import AveragePool, Conv, Dense, MaxPool

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


NET = network("dense")


def point(net, seed=0, size=0.5):
    return Parameters(net, size * np.random.default_rng(seed).normal(size=net.size))


def samples(net, n=7, seed=0):
    """Return n samples whose targets every loss accepts."""
    rng = np.random.default_rng(seed)
    width = math.prod(net.shapes[-1])
    return TrainingSet(rng.normal(size=(n, *net.input_shape)), rng.dirichlet(np.ones(width), n))


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


def problem(steps=15, seed=0):
    """Return a plane, data that are larger than its blocks, and the landscape."""
    net = network("dense")
    where, data = Plane.random(point(net, seed), seed, "filter", steps=steps), samples(net, 200)
    return where, data, scan(where, data, LOSS)


def same_bits(found, expected):
    assert found.risks.tobytes() == expected.risks.tobytes()
    assert (found.centre, found.rounding) == (expected.centre, expected.rounding)


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
    """Return a plane of a network that has an activation of the user's own."""
    net = Network(NET.input_shape, NET.layers, SmoothActivation("own", function, derivative))
    return Plane.random(Parameters(net, point(NET).vector), steps=3)


# scans that differ in little
PAIRS = {
    "delta": lambda: [
        (Plane.random(point(NET), steps=3), HuberLoss(d)) for d in (0.1, 0.1000000004)
    ],
    "activation": lambda: [
        (with_activation(f, g), LOSS) for f, g in ((np.arctan, bend), (twice_sin, twice))
    ],
    "loss": lambda: [(Plane.random(point(NET), steps=3), Weighted(w)) for w in (1.0, 2.0)],
}


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


def forkserver():
    """Return the context of a server whose processes have imported what they need."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tinyspur.landscape.scan", "distributed"])
    multiprocessing.forkserver.ensure_running()
    return context


PREPARE = """
import multiprocessing, sys, time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from tinyspur import SquaredLoss
from tinyspur.engine import executors
from tinyspur.landscape import store
from tinyspur.landscape.scan import scan
"""


def program(text, **values):
    """Start a process of its own that runs a text, in which the values have their names."""
    process = forkserver().Process(target=exec, args=(PREPARE + text, values))
    process.start()
    return process
