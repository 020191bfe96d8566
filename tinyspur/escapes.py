"""Searches for lower points near a given one: what they find refutes that it is a local minimum.

A search that finds nothing proves nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .backend import namespace
from .certificates import risk_rounding
from .constructions.data_split import output_derivatives
from .constructions.relays import RelayedPair, outgoing
from .fitting import AssumptionError
from .losses import Loss
from .network import Parameters, TrainingSet


@dataclass(frozen=True)
class Escape:
    """A point reached from theta, whose risk is lower by `decrease` if that is positive.

    Where it can be reached with any `step` > 0, however small, theta is not a local minimum; the
    function that returns it says so. `step` is the size of the move as the construction scales it,
    `distance` its largest and `length` its Euclidean size, `decrease` = R(theta) - `risk`, and
    `rounding` what of it rounding may account for.
    """

    kind: str
    step: float
    distance: float
    length: float
    risk: float
    decrease: float
    rounding: float
    theta: Parameters

    def __str__(self) -> str:
        return (
            f"{self.kind}: step {self.step:g}, largest change {self.distance:.3g}, "
            f"Euclidean {self.length:.3g}, risk {self.risk:.9g}, lower by {self.decrease:.3g}"
        )


def measure_escape(
    theta: Parameters, nearby: Parameters, kind: str, step: float, data: TrainingSet, loss: Loss
) -> Escape:
    """Evaluate a point near theta and return it with its distance and its decrease."""
    move = nearby.vector - theta.vector
    before, after = theta.net.risk(theta, data, loss), theta.net.risk(nearby, data, loss)
    return Escape(
        kind=kind,
        step=step,
        distance=float(abs(move).max()),
        length=float((move**2).sum()) ** 0.5,
        risk=after,
        decrease=before - after,
        rounding=risk_rounding(theta, data, loss) + risk_rounding(nearby, data, loss),
        theta=nearby,
    )


def kink_escape(
    theta: Parameters,
    pair: RelayedPair,
    data: TrainingSet,
    loss: Loss,
    step: float = 1e-2,
    seed: int = 0,
) -> Escape:
    """Return the escape from the literal theta, whose reserved maps sit exactly at the kink.

    The reserved map A of L-2 gets the filter eps d and the bias eps beta, and the one outgoing
    weight of L-1's map A with the largest |s| becomes -eps sign(s), where s = (1/N) sum_i u_i
    sigma(d . patch_i + beta). The risk changes by -eps^2 |s| + O(eps^4), eps = `step`: the gradient
    is zero, and yet theta is a saddle. d is the best of a few random filters. Raises
    AssumptionError unless map A of both layers sits at the kink without any use.
    """
    A, rng = pair.reserved[0], np.random.default_rng(seed)
    zero = (theta.W[pair.lower].weights[A], outgoing(theta, pair.upper, A)[0])
    biases = (theta.b[layer][A] for layer in (pair.lower, pair.upper))
    if any(bool(part.any()) for part in zero) or any(float(bias) != 0 for bias in biases):
        raise AssumptionError(
            f"no escape from the kink: map {A} of layers {pair.lower} and {pair.upper} is not at "
            "z = 0 with zero outgoing weights, as it is in the literal theta"
        )
    u = output_derivatives(theta, data, loss)
    trials = []
    for _ in range(8):
        d, beta, z = random_unit(theta, pair.lower, data.x, rng)
        s = u @ np.maximum(z, 0).T / len(data)
        trials.append((abs(s).max(), d, beta, s))
    _, d, beta, s = max(trials, key=lambda trial: trial[0])
    k, j = np.unravel_index(abs(s).argmax(), s.shape)
    near = theta.copy()
    filters = near.W[pair.lower].weights
    filters[A] = namespace(filters).asarray(step * d, dtype=filters.dtype)
    near.b[pair.lower][A] = step * beta
    outgoing(near, pair.upper, A)[0][int(k), int(j)] = -step * float(np.sign(s[k, j]))
    return measure_escape(theta, near, "escape from the kink, second order", step, data, loss)


def random_unit(
    theta: Parameters, layer: int, x: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, float, np.ndarray]:
    """Return a random filter d of `layer`, beta, and z = d . patch + beta (P, N), half positive.

    A map that is active everywhere would add nothing that the affine fit does not have already.
    """
    weights = theta.W[layer].weights
    d = rng.uniform(-1, 1, weights.shape[1:])
    row = namespace(weights).asarray(d[None], dtype=weights.dtype)
    z = theta.net.filter_responses(theta, layer, row, x)
    beta = -float(np.median(z))
    return d, beta, z + beta
