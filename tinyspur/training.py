"""Descent of the empirical risk."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.optimize

from .backend import namespace, to_numpy
from .losses import Loss
from .network import Parameters, TrainingSet


def descend(
    theta: Parameters,
    data: TrainingSet,
    loss: Loss,
    iterations: int,
    progress: Callable[[float], None] | None = None,
) -> Parameters:
    """Return the point that L-BFGS (SciPy) reaches from theta in at most `iterations`.

    `progress` is called with the risk after each iteration. The risk never ends higher than it
    began. Raises ValueError for fewer than one iteration.
    """
    if iterations < 1:
        raise ValueError(f"descent: expected at least one iteration, got {iterations}")
    net, xp, dtype = theta.net, namespace(theta.vector), theta.vector.dtype
    best: list = [np.inf, theta]

    def risk_and_gradient(vector: np.ndarray) -> tuple[float, np.ndarray]:
        point = Parameters(net, xp.asarray(vector, dtype=dtype))
        risk, gradient = net.risk_and_gradient(point, data, loss)
        if risk < best[0]:
            best[:] = risk, point.copy()
        return risk, to_numpy(gradient.vector).astype(np.float64)

    scipy.optimize.minimize(
        risk_and_gradient,
        to_numpy(theta.vector).astype(np.float64),
        jac=True,
        method="L-BFGS-B",
        callback=None if progress is None else lambda _: progress(best[0]),
        options={"maxiter": iterations, "maxcor": 20, "ftol": 0.0, "gtol": 0.0},
    )
    return best[1]
