"""Bounds of the rounding errors of pre-activations, outputs, gradients and risks.

They are the radii of enclosures around what the engine computed, so that a pass needs no other one.
The errors of a layer are those of its own sums and those that it reads.

Of losses and activations of users only estimates are known; see `enclosed_losses` and
`enclosed_functions`. What rests on them says so: `assumptions.assumed`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from ..datasets.samples import TrainingSet
from ..engine.backend import Array, to_numpy
from ..engine.floats import EPSILON, gamma
from ..engine.live import live_part
from ..engine.losses import Loss
from ..engine.network import check_at
from ..engine.parameters import Parameters
from ..engine.passes import Step, steps
from .enclosed_functions import spread
from .enclosed_losses import loss_gradient, loss_value
from .enclosures import QUIET, WIDER, Enclosure, product_radius


@np.errstate(**QUIET)
def preactivation_rounding(magnitudes: Parameters, trace: list[Step], dtype: type) -> list[Array]:
    """Return for each layer a bound of the rounding errors of z^l in `dtype`, (n_l, N).

    `magnitudes` is |theta|, which is the same for all samples, `trace` a pass at theta. The bound
    is |W^l| (delta^{l-1} + gamma |o^{l-1}|) + gamma |b^l| with the errors delta of the layer below,
    and those of the inputs where `dtype` can't hold them.
    """
    reach = 0 * trace[0].below if dtype == np.float64 else gamma(1, dtype) * abs(trace[0].below)
    found = []
    for step in trace:
        if step.W.selects:  # the largest entry is off by no more than the largest error
            errors = step.W @ reach
        else:
            errors = product_radius(magnitudes.W[step.layer], abs(step.below), reach)
        if step.b is not None:
            maps = step.W.by_map(errors)
            maps += gamma(step.W.fan_in + 2, dtype) * magnitudes.b[step.layer][:, None]
        found.append(errors)
        known = step.activation is None
        reach = errors if known else spread(step.activation, step.z, step.o, errors)
    return found


@np.errstate(**QUIET)
def gradient_rounding(loss: Loss, o: Array, y: Array, errors: Array) -> Array:
    """Return how far gradients of the loss may be off if outputs are by `errors`, (d_y, N)."""
    found = loss_gradient(loss, Enclosure(o, errors), y)
    return (abs(loss.gradient(o, y) - found.middle) + found.radius) * WIDER


def enclosed_outputs(theta: Parameters, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return outputs and bounds of their rounding errors in theta's type, (d_y, N) each.

    Both are float64 on the host.
    """
    o, errors, _ = _seen(live_part(theta).point, x)
    return o, errors


def output_rounding(theta: Parameters, x: np.ndarray) -> np.ndarray:
    """Return a bound of the rounding errors of the outputs in theta's type, (d_y, N)."""
    return enclosed_outputs(theta, x)[1]


def risk_rounding(theta: Parameters, data: TrainingSet, loss: Loss) -> float:
    """Return a bound of the error of R(theta) as `Network.risk` computes it.

    Two risks that differ by more than the sum of their errors are so in exact arithmetic.
    """
    return rounded_risk(theta, data, loss)[1]


def rounded_risk(theta: Parameters, data: TrainingSet, loss: Loss) -> tuple[float, float]:
    """Return R(theta), and a bound of its error, by one pass.

    Maps that are dead whatever they read add nothing to either, see `live_part`.
    """
    check_at(theta, data, loss)
    point, y = live_part(theta).point, theta.net.targets(theta, data, loss)
    o, errors, values = _seen(point, data.x, lambda rows, o: loss.value(o, y[:, rows]))
    return float(np.mean(values)), mean_rounding(loss, o, data.y.T, values, errors)


def risk_of_outputs(
    o: np.ndarray, errors: np.ndarray, targets: np.ndarray, loss: Loss
) -> tuple[float, float]:
    """Return the risk of float64 outputs that may be off by `errors`, and a bound of its error.

    Both are (d_y, N), as `enclosed_outputs` returns them, and the targets (N, d_y).
    """
    y = np.ascontiguousarray(targets.T, np.float64)
    values = loss.value(o, y)
    return float(np.mean(values)), mean_rounding(loss, o, y, values, errors)


def _seen(
    theta: Parameters, x: np.ndarray, function: Callable = lambda rows, o: o[0]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return outputs and bounds of their errors, (d_y, N), and function(rows, outputs), (N,)."""
    magnitudes, dtype = abs(theta), theta.vector.dtype

    def chunk(rows: slice, columns: Array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        trace = list(steps(theta, columns))
        errors, o = preactivation_rounding(magnitudes, trace, dtype)[-1], trace[-1].o
        return tuple(map(to_numpy, (o, errors, function(rows, o))))

    found = zip(*theta.net.over(theta, x, chunk), strict=True)
    o, errors, values = (np.concatenate(parts, axis=-1) for parts in found)
    return o.astype(np.float64), errors.astype(np.float64), values


@np.errstate(**QUIET)
def mean_rounding(
    loss: Loss, o: np.ndarray, y: np.ndarray, values: np.ndarray, errors: np.ndarray
) -> float:
    """Return a bound of the error of the mean of loss `values` (N,) of outputs that are off.

    The mean is compared with a sum that is rounded only once.
    """
    o, y, errors = map(np.ascontiguousarray, (o, y, errors))  # the same sums for any layout
    found = loss_value(loss, Enclosure(o, errors), y)
    if not np.isfinite(values.sum() + found.radius.sum()):
        return math.inf
    mean = math.fsum(found.middle) / len(values)
    off = float(found.radius.mean()) * (1 + 2 * gamma(len(values)))
    return (off + abs(float(np.mean(values)) - mean) + 2 * EPSILON * abs(mean)) * WIDER
