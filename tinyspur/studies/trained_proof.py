"""A spurious local minimum in which training ends, in small fractions.

With one hidden layer and one output such minima are fractions: scale each unit so that its outgoing
weight is 1 or -1, then outputs and pre-activations are affine in the other parameters as long as no
sign changes, and the conditions of a minimum are linear equations.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np

from ..certificates.exact import ExactPoint
from ..constructions.exact_points import ExactPoints, exact
from ..constructions.relays import rescale
from ..datasets.samples import TrainingSet
from ..engine.losses import SquaredLoss
from ..engine.network import Network
from ..engine.parameters import Parameters
from ..errors import AssumptionError
from ..fitting.settle import Settled, settle
from ..fitting.training import descend, kaiming_start
from ..layers import Dense

INPUTS = ((3, 1), (1, 2), (-2, -1), (-2, -3), (0, 1), (3, -2), (3, 2), (0, -1))
STARTS, STEPS = 20, 200  # trainings that are tried, and L-BFGS steps of each


def trained_proof() -> ExactPoints:
    """Return the first minimum at kinks that training ends in, and the teacher, which is lower.

    Two units are trained on eight samples of the teacher max(x_1, 0) + max(x_2, 0). All weights are
    determined but for the scales of the units. Raises AssumptionError where no training ends so.
    """
    loss, net = SquaredLoss(), Network((1, 2), [Dense(2), Dense(1)])
    x = np.array(INPUTS, dtype=float)[:, None]
    data = TrainingSet(x, np.maximum(x, 0).sum(axis=2))
    teacher = net.zeros()
    teacher.W[1].weights[...] = np.eye(2)
    teacher.W[2].weights[...] = 1
    for seed in range(STARTS):
        end = settle(descend(kaiming_start(net, seed), data, loss, STEPS), data, loss)
        if not (end.holds and end.kinks):
            continue
        points = exact(_scaled(end), data, loss)
        risk = Fraction(net.risk(teacher, data, loss))  # of small integers, hence not rounded
        if len(points.frozen) == 2 and risk < points.risk:
            return replace(
                points,
                exact={**points.exact, "lower": ExactPoint(teacher)},
                risks={**points.risks, "lower": risk},
                checks=(*points.checks, "R(lower) < R(theta)"),
            )
    raise AssumptionError(f"no minimum at kinks was found by {STARTS} trainings")


def _scaled(end: Settled) -> Settled:
    """Return the same point with units scaled so that outgoing weights are 1 or -1."""
    theta: Parameters = end.theta
    for unit, weight in enumerate(end.theta.W[2].weights[0]):
        theta = rescale(theta, 1, abs(weight), unit) if weight else theta
    return replace(end, theta=theta)
