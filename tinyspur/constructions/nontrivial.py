"""[CNN] Theorems 2 and 3: a local minimum whose samples have different activation patterns.

One map fires for a few isolated samples, each at one position of its own, and lets the dense layer
fit these exactly; the other maps relay the image, and the dense layer fits the other samples.
"""

from __future__ import annotations

import numpy as np

from ..datasets.samples import TrainingSet
from ..engine.activations import ReLU
from ..engine.losses import Loss, SquaredLoss
from ..engine.network import Network, check_problem
from ..engine.parameters import Parameters
from ..engine.plain import generator, whole_number
from ..errors import AssumptionError
from ..fitting.affine import fit_affine
from .embedding import (
    carry_outputs,
    check_not_exact,
    first_features,
    identical_features,
)
from .isolated import alone
from .paths import instead, kind_of
from .relayed_pair import check_printed, check_variant, first_dense
from .towers import MARGIN, Tower, middle_tap, set_relay

RANDOM_FILTERS = 100
TIE = 1e-9  # responses closer than this share of their range count as equal
WIDE = 1e-3  # the first gap above this share of the range is taken, or else the widest of all


def nontrivial_minimum(
    net: Network,
    data: TrainingSet,
    loss: Loss,
    isolated: int = 1,
    seed: int = 0,
    variant: str = "repaired",
) -> Parameters:
    """Return theta_1, where map 0 isolates samples and the rest fits the others, in float64.

    Repaired: map 0 of the first convolution has a filter p and a bias between the `isolated`
    largest responses p . patch over all samples and positions and the next one, so that one neuron
    of it fires for each of as many samples. p is the centre tap of the first channel, or a seeded
    random filter where the largest responses of the centre tap nearly tie or share a sample or a
    position. The maps above relay map 0, and also the channels, as the linear subnetwork does, in
    shifted copies below poolings. The dense weights of the channels are the least squares fit of
    the other samples, and those of map 0 fit the isolated samples exactly: there are isolated + 1
    pattern classes, each stationary. Equal samples count as one, with the mean of their targets,
    and one that occurs once is isolated where a filter does that.

    Literal: the samples are those with the largest values of one pixel of the first channel, the
    bias of map 0 lets that pixel pass for them only, and one weight for each output reads it
    ([CNN] Theorem 3, (15) to (22)). The map fires at other positions too.

    Raises AssumptionError for the cross-entropy, where no minimiser exists for an isolated sample,
    for too few maps, where no filter isolates samples and where all are fitted exactly (R = 0);
    ValueError for another kind of network.
    """
    check_problem(net, data, loss)
    check_variant(variant)
    channels, *_ = net.input_shape
    if type(loss) is not SquaredLoss:
        raise AssumptionError(
            f"nontrivial minimum: expected the squared loss, got {loss}; with the cross-entropy "
            "the weight of an isolated sample grows without end, so no minimiser exists"
        )
    dense, repaired = first_dense(net), variant == "repaired"
    tower = Tower(net, net.leading_poolings + 1, dense - 1, repaired, offset=1)
    if not tower.taps or not _ends_in_relu(tower):
        raise ValueError(
            f"nontrivial minimum: expected a convolution and ReLU, got {net} with {net.activation}"
            f"{instead(net)}"
        )
    if tower.pooled and not repaired:
        raise ValueError(f"literal theta_1: [CNN] prints no formulas with pooling, got {net}")
    check_printed(tower, variant, "theta_1")
    if tower.bare or tower.first not in tower.holders:
        layer = tower.bare[0] if tower.bare else tower.first
        raise AssumptionError(
            f"nontrivial minimum: layer {layer}, {kind_of(net, layer)}, has no biases, expected "
            f"some, of its own or in a scale above it{instead(net)}"
        )
    tower.check_room(channels, "one that isolates samples, and one for each input channel")
    theta, x = net.zeros(), first_features(net, data.x)
    numbers = np.arange(len(x))
    if repaired:
        numbers = identical_features(theta, data.x, net.leading_poolings)
    _, firsts, counts = np.unique(numbers, return_index=True, return_counts=True)
    if len(firsts) < 2:
        raise AssumptionError(
            f"nontrivial minimum: expected two samples that differ, or more, got {len(firsts)}"
        )
    isolated = whole_number("isolated samples", isolated, 1, len(firsts) - 1)
    if repaired:
        found = _isolate(theta, tower, x[firsts], counts == 1, isolated, seed)
    else:
        found = _pixel(theta, tower, x, isolated)
    p, threshold, chosen, responses = found
    others = ~np.isin(numbers, chosen)
    fit = fit_affine(x[others], data.y[others], loss)
    outputs = x @ fit.weights.T + fit.bias
    # Each isolated sample i reads its own neurons: responses (N_I, P) @ weights (P, d_y) = residual
    residuals = [(data.y - outputs)[numbers == i].mean(axis=0) for i in chosen]
    missing = np.linalg.pinv(responses) @ np.array(residuals)
    for i, response in zip(chosen, responses, strict=True):
        outputs[numbers == i] += response @ missing
    check_not_exact(outputs - data.y, x, data.y)
    biases, offset = tower.biases(float(x.min())), fit.bias
    if repaired:  # the relays of map 0, in every convolution but the first
        added = _above(tower).constants(dict.fromkeys(list(tower.holders)[1:], MARGIN))
        same = (added == added[0]).all()
        offset = offset - (added[0] * missing.sum(axis=0) if same else added @ missing)
    weights = fit.weights.reshape(len(fit.bias), channels, -1)
    tower.read(theta, weights, offset, biases, -MARGIN if repaired else 0.0)
    for layer in tower.taps:
        set_relay(theta, layer, 0, 0)
    for layer in tower.holders.values():
        theta.b[layer][0] = MARGIN if repaired else 0.0
    theta.W[tower.first].weights[0] = p
    theta.b[tower.holders[tower.first]][0] = -threshold
    theta.W[dense].weights[: len(fit.bias), : net.positions(dense - 1)] = missing.T
    if dense < net.depth:
        carry_outputs(theta, dense, outputs)
    return theta


def _isolate(
    theta: Parameters, tower: Tower, x: np.ndarray, once: np.ndarray, isolated: int, seed: int
):
    """Return p, the threshold, the isolated samples, and their values of map 0 at the top.

    The samples x are distinct; a filter that isolates such as occur `once`, (N,), goes first.
    """
    rng, W = generator(seed), theta.W[tower.first]
    shape = W.weights.shape[1:]
    centre = np.zeros(shape)
    centre[(0, *middle_tap(theta, tower.first))] = 1
    best, most = None, (False, TIE)
    pool, enough = _above(tower).matrix, bool(once.sum() >= isolated)
    for trial in range(1 + RANDOM_FILTERS):
        p = rng.standard_normal(shape) if trial else centre
        responses = alone(W, p) @ x.T
        top = np.argpartition(responses, -isolated - 1, axis=None)[-isolated - 1 :]
        top = top[np.argsort(responses.ravel()[top])]
        positions, samples = np.unravel_index(top[1:], responses.shape)
        values = responses.ravel()[top]
        gap = (values[1] - values[0]) / (values[-1] - responses.min() or 1.0)
        apart = len(set(samples.tolist())) == isolated
        apart = apart and np.linalg.matrix_rank(pool[:, positions]) == isolated
        rank = bool(gap > WIDE and once[samples].all()), gap
        if apart and rank > most:
            threshold = (values[0] + values[1]) / 2
            fired = np.maximum(responses[:, samples] - threshold, 0)
            best, most = (p, threshold, samples, (pool @ fired).T), rank
        if most > (enough, WIDE):
            break
    if best is None:
        raise AssumptionError(
            f"nontrivial minimum: none of {1 + RANDOM_FILTERS} filters has its {isolated} largest "
            "responses at different samples and different positions, apart from the next; expected "
            "fewer isolated samples, or patches that differ more"
        )
    return best


def _above(tower: Tower) -> Tower:
    """Return the layers above the first one, where map 0 has one copy."""
    return Tower(tower.net, tower.first + 1, tower.last, spread=False)


def _ends_in_relu(tower: Tower) -> bool:
    """Return whether the first activation is ReLU, above one layer of relays."""
    net = tower.net
    active = next((n for n in tower.path.layers if net.is_active(n)), None)
    below = [n for n in tower.taps if active is not None and n <= active]
    return active is not None and net.activation_of(active) == ReLU() and len(below) == 1


def _pixel(theta: Parameters, tower: Tower, x: np.ndarray, isolated: int):
    """Return p, -c_p, the samples I, and x^k + c_p at the pixel k that sets them apart most."""
    P = theta.W[tower.first].positions_in
    ranked = np.sort(x[:, :P], axis=0)
    gaps = ranked[-isolated] - ranked[-isolated - 1]
    k = int(gaps.argmax())
    if gaps[k] <= TIE * np.ptp(x[:, :P]):
        raise AssumptionError(f"literal theta_1: no pixel sets {isolated} samples apart")
    threshold = float(ranked[-isolated, k] - gaps[k] / 2)
    samples = np.flatnonzero(x[:, k] > threshold)
    responses = np.zeros((isolated, P))
    responses[:, k] = x[samples, k] - threshold
    p = np.zeros(theta.W[tower.first].weights.shape[1:])
    p[(0, *middle_tap(theta, tower.first))] = 1
    return p, threshold, samples, responses
