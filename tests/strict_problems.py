"""Points of small networks at strict local minima, smooth and at kinks, some of them exact."""

from fractions import Fraction

import numpy as np

from tinyspur.certificates.exact import exact_outputs
from tinyspur.datasets.samples import TrainingSet
from tinyspur.engine.activations import ReLU
from tinyspur.engine.losses import SquaredLoss, one_hot
from tinyspur.engine.network import Network
from tinyspur.engine.parameters import Parameters
from tinyspur.fitting.training import kaiming_start
from tinyspur.layers import AveragePool, Conv, Dense

SQUARED = SquaredLoss()
AT_KINK = Fraction(2, 3)  # the risk of sigma(x) below; the residuals are -1, 0, 2, -1, -1, 1


def at_kink(repeats=1, slope=0.0):
    """Return sigma(w x + b) a + c with w = a = 1, b = c = 0: its unit is at the kink for x = 0.

    There N C = 2 and N lambda = 1: moving b up or down raises the risk.
    """
    net = Network((1, 1), (Dense(1), Dense(1)), ReLU(slope))
    x = np.arange(-2.0, 4)[:, None, None]
    y = np.array([1.0, 0, -2, 2, 3, 2])[:, None]
    data = TrainingSet(np.repeat(x, repeats, axis=0), np.repeat(y, repeats, axis=0))
    return Parameters(net, np.array([1.0, 0, 1, 0])), data


def with_background():
    """Return the same as a convolution of images with two more pixels, all 0."""
    net = Network((1, 3), (Conv(1, 1), AveragePool(3), Dense(1)))
    _, data = at_kink()
    x = np.zeros((len(data), 1, 3))
    x[:, :, 0] = data.x[:, :, 0]
    return Parameters(net, np.array([1.0, 0, 3, 0])), TrainingSet(x, data.y)


def kinks_feeding_kinks():
    """Return a point with kinks in both hidden layers, of which one reads a unit at its kink."""
    rng = np.random.default_rng(41)
    count = int(rng.integers(12, 30))
    x = rng.integers(-5, 6, size=(count, 1, 2)).astype(float)
    y = rng.integers(-4, 5, size=(count, 1)).astype(float)
    net = Network((1, 2), (Dense(3), Dense(2), Dense(1)), ReLU(0.1))
    numbers = """
        -3.50099493687 1.92067140749 0.827679071951 1.32428651512 -3.64444162348 1.91664462782
        2.84257063363 0.16553581439 -1.15073164974 1.30821818667 -1.26819199267 -1.4764145184
        -2.96409588487 -0.67649917979 3.28031403713 -4.00933397384 2.52984526764 4.47979560693
        -3.39246331096 2.15099513378"""
    return Parameters(net, np.array(numbers.split(), dtype=float)), TrainingSet(x, y)


def noisy_teacher(net, samples, seed, classes=False):
    """Return data of a teacher with noise, smoothed labels if they are classes."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(samples, *net.input_shape))
    o = net.forward(kaiming_start(net, seed + 100), x)
    o = o + 0.3 * rng.normal(size=o.shape)
    return TrainingSet(x, one_hot(o.argmax(axis=1), o.shape[1], smoothing=0.1) if classes else o)


def exact_risk(theta, data):
    """Return R(theta) of the squared loss as a fraction."""
    off = exact_outputs(theta, data.x) - np.vectorize(Fraction)(data.y)
    return (off**2).sum() / (2 * len(data))


def moved(theta, d):
    """Return theta + d."""
    return Parameters(theta.net, theta.vector + d)


def corners(theta, radius, count, seed=0):
    """Yield points in the corners and on the sides of the box of this radius."""
    rng = np.random.default_rng(seed)
    for n in range(count):
        d = rng.choice([-1.0, 1.0] if n % 2 else [-1.0, 0, 1], size=theta.vector.shape)
        yield moved(theta, radius * d)
