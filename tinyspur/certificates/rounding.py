"""Bounds of the rounding errors of pre-activations, outputs, gradients and risks.

A product of n terms, computed in any order, in blocks, with or without fused additions, is off by
at most gamma_n = n u / (1 - n u) times the sum of the sizes of its terms, u half a unit in the last
place (Higham, Accuracy and Stability of Numerical Algorithms, 3.1), and by n times the smallest
number where terms underflow. The errors of a layer are those of its own sums and those that it
reads. Exponentials and other functions are taken to be within four units in the last place; of
losses and activations of users only estimates are known.
"""

from __future__ import annotations

import math

import numpy as np

from ..datasets.samples import TrainingSet
from ..engine.backend import Array, namespace, to_numpy
from ..engine.floats import EPSILON, SMALLEST, gamma
from ..engine.losses import KNOWN as KNOWN_LOSSES
from ..engine.losses import CrossEntropy, HuberLoss, Loss
from ..engine.network import check_at
from ..engine.parameters import Parameters
from ..engine.passes import Step, by_map, steps


def preactivation_rounding(magnitudes: Parameters, trace: list[Step], dtype: type) -> list[Array]:
    """Return for each layer a bound of the rounding errors of z^l in `dtype`, (n_l, N).

    `magnitudes` is |theta|, which is the same for all samples, `trace` a pass at theta. The bound
    is |W^l| (delta^{l-1} + gamma |o^{l-1}|) + gamma |b^l| with the errors delta of the layer below,
    and those of the inputs where `dtype` can't hold them.
    """
    smallest = float(np.finfo(dtype).smallest_subnormal)
    reach = 0 * trace[0].below if dtype == np.float64 else gamma(1, dtype) * abs(trace[0].below)
    found = []
    for step in trace:
        terms, size = step.W.fan_in + 2, abs(step.below)
        share = gamma(terms, dtype)
        if step.W.selects:  # the largest entry is off by no more than the largest error
            errors = step.W @ reach
        else:
            errors = magnitudes.W[step.layer] @ (reach + share * size)
        errors += terms * _underflow(magnitudes.W[step.layer].weights, size, smallest)
        if step.b is not None:
            maps = by_map(errors, step.b)
            maps += share * magnitudes.b[step.layer][:, None]
        errors = errors * (1 + 2 * share)
        found.append(errors)
        reach = errors if step.activation is None else step.activation.spread(step.z, errors)
    return found


def _underflow(weights: Array | None, below: Array, smallest: float) -> Array | float:
    """Return the smallest number where a product of these sizes, or its rounding, may underflow.

    Otherwise 0: a sum of zeros is exactly 0 then.
    """
    xp = namespace(below)
    found = [
        xp.min(sizes, where=sizes > 0, initial=np.inf) if xp is np else _least(sizes)
        for sizes in ((below,) if weights is None else (weights, below))
    ]
    return xp.where(math.prod(found) > smallest**0.6, 0.0, smallest)


def _least(sizes: Array) -> Array:
    xp = namespace(sizes)
    return xp.where(sizes > 0, sizes, xp.inf).min()


def gradient_rounding(loss: Loss, o: Array, y: Array, errors: Array) -> Array:
    """Return how far gradients of the loss may be off if outputs are by `errors`, (d_y, N).

    A bound for the losses of this package, an estimate of first order for those of users.
    """
    if type(loss) in KNOWN_LOSSES:
        return loss.gradient_rounding(o, y, errors)
    xp, total = namespace(o), gamma(len(o)) * abs(loss.gradient(o, y))
    for k in range(len(o)):
        one = xp.zeros_like(o)
        one[k] = errors[k]
        total += abs(loss.curvature(o, y, one))
    return total


def curvature_rounding(loss: Loss, o: Array, y: Array, d: Array, errors: Array) -> Array:
    """Return an estimate of how far Hessian products of the loss with `d` may be off, (d_y, N).

    At a corner of the Huber loss they may be `d` or 0: that depends on the side.
    """
    share = 2 * errors.max(axis=0) + (2 * len(o) + 16) * EPSILON
    size = loss.curvature_size if isinstance(loss, CrossEntropy) else loss.curvature
    off = share * abs(size(o, y, abs(d)))
    if isinstance(loss, HuberLoss):
        corner = abs(abs(o - y) - loss.delta) <= loss.gradient_rounding(o, y, errors)
        off = off + corner * abs(d)
    return off


def output_rounding(theta: Parameters, x: np.ndarray) -> np.ndarray:
    """Return a bound of the rounding errors of the outputs in theta's type, (d_y, N)."""
    magnitudes, dtype = abs(theta), theta.vector.dtype

    def chunk(_: slice, columns: Array) -> np.ndarray:
        trace = list(steps(theta, columns))
        return to_numpy(preactivation_rounding(magnitudes, trace, dtype)[-1])

    errors = list(theta.net.over(theta, x, chunk))
    return np.concatenate(errors, axis=1).astype(np.float64)


def risk_rounding(theta: Parameters, data: TrainingSet, loss: Loss) -> float:
    """Return a bound of the error of R(theta) as `Network.risk` computes it.

    Two risks that differ by more than the sum of their errors are so in exact arithmetic.
    """
    check_at(theta, data, loss)
    y = theta.net.targets(theta, data, loss)
    o = theta.net.forward(theta, data.x).T
    values, dtype = to_numpy(loss.value(o, y)), theta.vector.dtype
    o, errors = to_numpy(o).astype(np.float64), output_rounding(theta, data.x)
    if dtype != np.float64:  # targets are rounded too
        errors = errors + gamma(1, dtype) * (abs(o) + abs(data.y.T))
    return mean_rounding(loss, o, data.y.T, values, errors)


def mean_rounding(
    loss: Loss, o: np.ndarray, y: np.ndarray, values: np.ndarray, errors: np.ndarray
) -> float:
    """Return a bound of the error of the mean of loss `values` (N,) of outputs that are off.

    By the mean value theorem a loss is off by at most sum_k (|g_k| + its change) |do_k|, and by the
    rounding of its own value. The mean is compared with a sum that is rounded only once.
    """
    o, y, errors = map(np.ascontiguousarray, (o, y, errors))  # the same sums for any layout
    dtype, off = values.dtype, gradient_rounding(loss, o, y, errors)
    size = loss.value_size(o, y) if type(loss) in KNOWN_LOSSES else abs(values)
    with np.errstate(over="ignore", invalid="ignore"):
        off = ((abs(loss.gradient(o, y)) + off) * errors).sum(axis=0)
        off = off + gamma(len(o) + 16, dtype) * size + len(o) * SMALLEST
        if not np.isfinite(values.sum() + off.sum()):
            return math.inf
        mean = math.fsum(values.astype(np.float64)) / len(values)
        off = float(off.mean()) * (1 + gamma(len(off))) + abs(float(np.mean(values)) - mean)
    return off + 4 * EPSILON * abs(mean)
