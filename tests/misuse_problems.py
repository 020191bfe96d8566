"""A small spurious minimum, for calls that are refused."""

import numpy as np

import tinyspur as ts

NET = ts.Network((1, 2, 2), [ts.Conv(4), ts.Conv(4), ts.Dense(9), ts.Dense(3)])
RNG = np.random.default_rng(0)
DATA = ts.TrainingSet(RNG.uniform(size=(40, 1, 2, 2)), ts.one_hot(RNG.integers(0, 3, 40), 3))
LOSS = ts.SquaredLoss()
THETA, PAIR = ts.linear_minimum(NET, DATA, LOSS)
FOUND = ts.find_spurious_minimum(THETA, PAIR, DATA, LOSS)
