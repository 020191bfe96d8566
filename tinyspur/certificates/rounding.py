"""Estimates of the rounding errors of pre-activations, outputs and risks.

They decide what counts as zero. Every sum is taken to be off by a few units in the last place, and
these errors are carried through the layers. Where sums have very many terms that is no bound.
"""

from __future__ import annotations

import numpy as np

from ..datasets.samples import TrainingSet
from ..engine.backend import Array, to_numpy
from ..engine.losses import Loss
from ..engine.network import check_at
from ..engine.parameters import Parameters
from ..engine.passes import Step, by_map, steps

ROUNDING = 4  # error of each sum, in units in the last place of its terms
AT_THE_KINK = 1000  # z counts as 0 up to so many times its rounding error
EPSILON = float(np.finfo(np.float64).eps)


def preactivation_rounding(magnitudes: Parameters, trace: list[Step], dtype: type) -> list[Array]:
    """Return for each layer an estimate of the rounding errors of z^l in `dtype`, (n_l, N).

    `magnitudes` is |theta|, which is the same for all samples, `trace` a pass at theta.
    It is |W^l| (delta^{l-1} + c |o^{l-1}|) + c |b^l|, with the errors delta of the layer below and
    c a few units in the last place, which is no bound for sums of very many terms. To first order
    the activation turns an error delta into |sigma'(z)| delta.
    """
    c = ROUNDING * float(np.finfo(dtype).eps)
    found, reach = [], c * abs(trace[0].below)
    for step in trace:
        errors = magnitudes.W[step.layer] @ reach
        if step.b is not None:
            maps = by_map(errors, step.b)
            maps += c * magnitudes.b[step.layer][:, None]
        found.append(errors)
        if step.activation is not None:
            errors = abs(step.slopes) * errors
        reach = errors + c * abs(step.o)
    return found


def output_rounding(theta: Parameters, x: np.ndarray) -> np.ndarray:
    """Return an estimate of the rounding errors of the outputs in theta's type, (d_y, N)."""
    magnitudes, dtype = abs(theta), theta.vector.dtype

    def chunk(_: slice, columns: Array) -> np.ndarray:
        trace = list(steps(theta, columns))
        return to_numpy(preactivation_rounding(magnitudes, trace, dtype)[-1])

    errors = list(theta.net.over(theta, x, chunk))
    return np.concatenate(errors, axis=1).astype(np.float64)


def risk_rounding(theta: Parameters, data: TrainingSet, loss: Loss) -> float:
    """Return an estimate of the rounding error of R(theta), to first order.

    Two risks that differ by less than the sum of their errors can't be told apart.
    """
    check_at(theta, data, loss)
    o = theta.net.forward(theta, data.x).T
    g = to_numpy(loss.gradient(o, theta.net.targets(theta, data, loss))).astype(np.float64)
    losses = float(abs(loss.value(to_numpy(o).astype(np.float64), data.y.T)).mean())
    own = ROUNDING * float(np.finfo(theta.vector.dtype).eps) * losses
    return float((abs(g) * output_rounding(theta, data.x)).sum()) / len(data) + own
