"""Dense networks in which large terms cancel, and points next to theirs."""

import numpy as np

from tinyspur.datasets.samples import TrainingSet
from tinyspur.engine.network import Network
from tinyspur.engine.parameters import Parameters
from tinyspur.layers import Dense

LARGE = 1e4


def dense(sigma):
    return Network((1, 1, 8), [Dense(6), Dense(5), Dense(2)], sigma)


def parameters(net, rng, cancel):
    """Return random parameters; with `cancel` large terms of z^1 cancel near x = (1, ..., 1)."""
    theta = Parameters(net, rng.normal(size=net.size))
    if cancel:
        theta.W[1].weights[...] *= LARGE
        theta.b[1][:] -= theta.W[1].weights.sum(axis=1)
    return theta


def samples(rng):
    x = 1 + rng.normal(size=(20, 1, 1, 8)) / LARGE
    return TrainingSet(x, rng.normal(size=(20, 2)))


def shaken(theta, rng):
    """Return theta with every number changed in its last place."""
    ends = rng.choice([-np.inf, np.inf], theta.net.size)
    return Parameters(theta.net, np.nextafter(theta.vector, ends))
