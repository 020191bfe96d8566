"""[CNN] Theorems 2 and 3: a local minimum whose samples have different activation patterns.

One map fires for a few isolated samples, each at one position of its own, and lets the dense layer
fit these exactly; the other maps relay the image, and the dense layer fits the other samples.
"""

from __future__ import annotations

import numpy as np

from ..fitting import AssumptionError, fit_affine
from ..losses import Loss, SquaredLoss
from ..matrices import ConvolutionMatrix
from ..network import Conv, Dense, Network, Parameters, TrainingSet
from .embedding import MARGIN
from .relays import set_constant, set_relay

RANDOM_FILTERS = 100
TIE = 1e-9  # responses closer than this share of their range count as equal
WIDE = 1e-3  # a gap of this share of the range is taken at once; else the widest of all is


def nontrivial_minimum(
    net: Network, data: TrainingSet, loss: Loss, isolated: int = 1, seed: int = 0
) -> Parameters:
    """Return theta_1, where map 0 isolates samples and the rest fits the others, in float64.

    Map 0 of layer 1 has a filter p and a bias between the `isolated` largest responses p . patch
    over all samples and positions and the next one, so that one neuron of it fires for each of as
    many samples ([CNN] Theorem 3, repaired: the paper looks at one position only). p is the centre
    tap of the first channel; where its largest responses nearly tie, or share a sample or a
    position, a seeded random filter that does better. Maps 1.. relay the channels, their dense
    weights are the least squares fit of the other samples, and those of map 0 make the isolated
    samples exact: isolated + 1 pattern classes, each stationary.

    Raises AssumptionError for the cross-entropy, where no minimiser exists for an isolated sample,
    for too few maps and where no filter isolates samples; ValueError for another kind of network.
    """
    channels, *_ = net.input_shape
    if not isinstance(loss, SquaredLoss):
        raise AssumptionError(
            "nontrivial minimum: expected the squared loss; with the cross-entropy the weight of "
            "an isolated sample grows without end, so no minimiser exists"
        )
    kinds = [type(layer) for layer in net.layers]
    if kinds != [Conv] * (net.depth - 1) + [Dense] or net.depth < 2 or net.activation.slope:
        raise ValueError(
            f"nontrivial minimum: expected convolutions, one dense layer and ReLU, got {net}"
        )
    if not 1 <= isolated < len(data):
        raise ValueError(f"isolated samples: expected 1..{len(data) - 1}, got {isolated}")
    for layer in range(1, net.depth):
        if net.shapes[layer][0] < channels + 1:
            raise AssumptionError(
                f"too few maps: layer {layer} has {net.shapes[layer][0]}, the nontrivial minimum "
                f"needs {channels + 1}: one, and one for each input channel"
            )
    theta, x = net.zeros(), data.x.reshape(len(data), -1)
    p, threshold, positions, samples, heights = _isolate(theta.W[1], x, isolated, seed)
    others = np.setdiff1d(np.arange(len(data)), samples)
    fit = fit_affine(x[others], data.y[others], loss)
    bias = MARGIN - min(0.0, float(data.x.min()))
    for layer in range(1, net.depth):
        for t in range(net.shapes[layer][0]):
            if t > channels:
                set_constant(theta, layer, t, -MARGIN)
            elif layer == 1 and t:
                set_relay(theta, layer, t - 1, t, bias)
            elif layer > 1:
                set_relay(theta, layer, t, t, MARGIN)
    theta.W[1].weights[0] = p
    theta.b[1][0] = -threshold
    P, added = net.positions(1), MARGIN * (net.depth - 2)
    read = theta.W[net.depth].weights
    read[:, P : (channels + 1) * P] = fit.weights
    missing = data.y[samples] - (x[samples] @ fit.weights.T + fit.bias)
    for q, height, residual in zip(positions, heights, missing, strict=True):
        read[:, q] = residual / height
    theta.b[net.depth][:] = fit.bias - bias * fit.weights.sum(axis=1) - added * read.sum(axis=1)
    return theta


def _isolate(W: ConvolutionMatrix, x: np.ndarray, isolated: int, seed: int):
    """Return p, the threshold, and the positions, samples and heights of the responses above it."""
    rng = np.random.default_rng(seed)
    shape = W.weights.shape[1:]
    centre = np.zeros(shape)
    centre[(0, *W.centre)] = 1
    best = (TIE, None)
    for trial in range(1 + RANDOM_FILTERS):
        p = rng.standard_normal(shape) if trial else centre
        responses = W.with_weights(p[None]) @ x.T
        top = np.argpartition(responses, -isolated - 1, axis=None)[-isolated - 1 :]
        top = top[np.argsort(responses.ravel()[top])]
        positions, samples = np.unravel_index(top[1:], responses.shape)
        values = responses.ravel()[top]
        gap = (values[1] - values[0]) / (values[-1] - responses.min() or 1.0)
        apart = len(set(positions.tolist())) == len(set(samples.tolist())) == isolated
        if apart and gap > best[0]:
            threshold = (values[0] + values[1]) / 2
            best = gap, (p, threshold, positions, samples, values[1:] - threshold)
        if best[0] > WIDE:
            break
    if best[1] is None:
        raise AssumptionError(
            f"nontrivial minimum: none of {1 + RANDOM_FILTERS} filters has its {isolated} largest "
            "responses at different samples and different positions, apart from the next"
        )
    return best[1]
