"""[CNN] Lemma 11: where S(eta) vanishes throughout, moved read weights split the data."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..certificates.rounding import enclosed_outputs
from ..certificates.sizes import powers_of_two
from ..datasets.duplicates import identical
from ..datasets.samples import TrainingSet
from ..engine.backend import namespace, to_numpy
from ..engine.losses import Loss
from ..engine.parameters import Parameters
from ..errors import AssumptionError
from .data_split import DataSplit, split_at, split_data
from .relayed_pair import RelayedPair
from .split_terms import (
    map_values,
    output_derivatives,
    read_weights,
    sums_rounding,
    tie_of,
)

INEXACT = 1e-6  # of sum |u|: with larger rounding errors these are named as the reason
HALVINGS = 12  # of a perturbation that raises R more than the step along the bias lowers it


def perturb_read_weights(
    theta: Parameters,
    pair: RelayedPair,
    data: TrainingSet,
    loss: Loss,
    rule: str = "steepest",
    output: int | None = None,
) -> Iterator[tuple[Parameters, DataSplit]]:
    """Yield points with W^L(k, .) moved by less and less, and a split of each ([CNN] Lemma 11).

    For a theta where S(eta) vanishes throughout although sums of u do not. Of all maps, outputs,
    thresholds and locations j it takes those for which the sum of u over {v^j > eta}, times the gap
    around eta, is largest. The weights w of that map move by t along the vector of the sums of all
    locations at that eta: where w was 0, |S(eta)| becomes t |sums| to first order (otherwise the
    change of u adds a term of the same order, so the split is looked for anew). R rises by O(t^2),
    since the dense layer is optimal at theta, and moving the bias later lowers it by about t |sums|
    times half the gap. t starts where the second less the first is largest, and is halved from
    there. Raises AssumptionError where the sums of u vanish too.
    """
    u = output_derivatives(theta, data, loss).astype(np.float64)
    m, k, low, high, v = _greatest_gain(theta, pair, data, loss, u, output)
    above, gap = v > (low + high) / 2, high - low
    sums = above @ u[k] / len(data)
    net, tower, move = theta.net, pair.tower, theta.net.zeros()
    shares = sums / powers_of_two(abs(sums).max())  # whose squares are no subnormal numbers
    along = (tower.matrix @ shares if tower.pooled else shares) / np.linalg.norm(shares)
    track = tower.columns(pair.relay_of(m))
    read = np.concatenate(
        list(
            net.over(
                theta,
                data.x,
                lambda _, o: along @ to_numpy(net.layer_output(theta, o, tower.last)[track]),
            )
        )
    )
    move.W[pair.dense].weights[k, track] = along
    move.b[pair.dense][k] = -read.mean()  # the output keeps its mean, so that R rises less
    direction = namespace(theta.vector).asarray(move.vector, dtype=theta.vector.dtype)
    o = to_numpy(net.forward(theta, data.x)).T.astype(np.float64)
    change = np.zeros_like(o)
    change[k] = read - read.mean()
    bend = float((change * loss.curvature(o, data.y.T, change)).sum()) / len(data)
    rate = abs(float(tower.seen(along) @ sums))
    t = rate * gap / 2 / bend if bend > 0 else 1.0
    for _ in range(HALVINGS):
        start = Parameters(net, theta.vector + t * direction)
        split = split_data(start, pair, data, loss, rule, m, k)
        if rule == "steepest":  # S may be larger in a gap that is too narrow to gain by
            w, u_k = read_weights(start, pair, m)[k], output_derivatives(start, data, loss)[k]
            slope = float(w @ (above @ u_k)) / len(data)
            wide = split_at(pair, m, k, v, w, u_k, (low, high, slope))
            split = max(split, wide, key=lambda s: abs(s.slope) * (s.gap[1] - s.gap[0]))
        yield start, split
        t /= 2


def _greatest_gain(
    theta: Parameters,
    pair: RelayedPair,
    data: TrainingSet,
    loss: Loss,
    u: np.ndarray,
    output: int | None,
) -> tuple[int, int, float, float, np.ndarray]:
    """Return the map, the output and the gap for which |sum of u| times its width is largest.

    The sum is over the samples with v above the gap at some location. The gap is given by its ends;
    the values v of the map follow. Raises AssumptionError where all sums vanish.
    """
    o, errors = enclosed_outputs(theta, data.x)
    zero = sums_rounding(loss, o, errors, np.ascontiguousarray(data.y.T, np.float64), u)
    best = None
    for m in pair.divisible:
        v = map_values(theta, pair, m, data.x)
        values, order, tie = np.unique(v), np.argsort(-v, axis=1), tie_of(v)
        ranked = np.take_along_axis(v, order, axis=1)
        below = values[np.maximum(np.searchsorted(values, ranked - tie) - 1, 0)]
        gaps = np.where(ranked - below > tie, ranked - below, 0)
        ends = np.hstack([ranked[:, :-1] - ranked[:, 1:] > tie, np.ones((len(v), 1), bool)])
        for k in range(len(u)) if output is None else [output]:
            sums = np.where(ends, abs(np.cumsum(u[k][order], axis=1)), 0)
            gain = np.where(sums > zero[k], sums * gaps, 0)
            j, n = np.unravel_index(gain.argmax(), gain.shape)
            if gain[j, n] > 0 and (best is None or gain[j, n] > best[0]):
                best = gain[j, n], m, k, below[j, n], ranked[j, n], v
    if best is None:
        raise AssumptionError(
            "no data split: S(eta) and the sums of u vanish, up to rounding, for every threshold "
            f"of the maps {pair.relayed} and "
            f"{'every output' if output is None else f'output {output}'}: "
            f"{_reason(data, u, zero)}"
        )
    return best[1:]


def _reason(data: TrainingSet, u: np.ndarray, zero: np.ndarray) -> str:
    """Return why all sums of u are `zero` (d_y,), and what to change."""
    if (zero > INEXACT * abs(u).sum(axis=1)).any():
        return (
            f"outputs are exact up to {zero.max() / len(data):.1g} only, since the weights are "
            "large; expected features that are less dependent, or fewer"
        )
    numbers = identical(data.x)
    if all(
        (abs(np.bincount(numbers, u_k)) <= zero_k).all()
        for u_k, zero_k in zip(u, zero, strict=True)
    ):
        return (
            "those over equal samples do, so that no function of the samples has a lower risk; "
            f"expected more samples that differ, got {numbers.max() + 1}"
        )
    return (
        "so it is at a linear minimum for images of two values; expected more values, or a "
        "subnetwork that is not linear"
    )
