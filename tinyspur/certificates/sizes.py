"""Units of measurement that a problem brings along: sizes of parameters, and of linear systems.

Data in other units, units of ReLU of another scale and columns of inputs of another scale are the
same problem with other numbers. What is decided in floats (which units are near their kink, what
counts as 0, which coordinates are frozen) is decided in units that move along. All sizes are powers
of two, so that going over to them rounds nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..engine.held_steps import HeldStep
from ..engine.parameters import Parameters

BALANCED = 8  # rounds of dividing rows and columns by the roots of their largest entries


def parameter_sizes(theta: Parameters, trace: Sequence[HeldStep]) -> Parameters:
    """Return how large a change of each parameter is large for its map, as powers of two.

    With c the mean size of what a weight reads, 1 for a bias, and L the largest |w| c of its map,
    that is L / c: all weights would contribute as much as the largest one. Where L is 0 it is that
    of another map of the layer. `trace` has the steps of a pass for all samples, those of the
    layers with parameters at least.
    """
    sizes = Parameters(theta.net, np.ones(theta.net.size))
    for step in trace:
        if step.layer not in theta.net.slots:
            continue
        W, b = step.W.trained, step.b
        below, ones = abs(step.below), np.ones((W.shape[0], step.below.shape[1]))
        read = W.gradient(ones, below) / (W.positions_out * below.shape[1])
        weights = abs(theta.W[step.layer].weights) * read
        largest = weights.reshape(len(weights), -1).max(axis=1)
        if b is not None:
            largest = np.maximum(largest, abs(b))
        largest = np.where(largest > 0, largest, largest.max())
        if b is not None:
            sizes.b[step.layer][:] = powers_of_two(largest)
        largest = largest.reshape(-1, *(1,) * (read.ndim - 1))
        sizes.W[step.layer].weights = powers_of_two(largest / np.where(read > 0, read, 1))
    return sizes


def powers_of_two(sizes: np.ndarray) -> np.ndarray:
    """Return the powers of two that are nearest by their logarithms, 1 for 0."""
    sizes = np.where(sizes > 0, sizes, 1.0)
    return np.ldexp(1.0, np.round(np.log2(sizes)).astype(int))


def balance(A: np.ndarray) -> np.ndarray:
    """Return powers of two d with which the entries of d_i A_ij d_j are about 1 at most.

    In each row the largest one is about 1, for a symmetric A (Ruiz's equilibration); rows of 0
    stay as they are.
    """
    d = np.ones(len(A))
    for _ in range(BALANCED):
        rows = (abs(A) * d).max(axis=1, initial=0.0) * d
        d = d / np.sqrt(np.where(rows > 0, rows, 1.0))
    return powers_of_two(d)
