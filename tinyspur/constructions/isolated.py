"""Two minima that need no relays: all units dead, and all but those that one sample activates.

Where every unit is dead the outputs are the best constant ones. Let one unit of each layer fire for
one sample alone; then that sample is fitted exactly, and the others by their best constant. Both
are local minima, of whatever layers the network is made: max poolings, strides, filters that keep
little of an image.
"""

from __future__ import annotations

import numpy as np
import scipy.optimize

from ..datasets.samples import TrainingSet
from ..engine.backend import to_numpy
from ..engine.losses import AbsoluteLoss, CrossEntropy, HuberLoss, Loss, SquaredLoss
from ..engine.network import Network, check_problem
from ..engine.parameters import Parameters
from ..engine.plain import generator
from ..errors import AssumptionError
from ..fitting.affine import fit_affine
from ..layers import Conv, ConvolutionMatrix, Residual, Scale, WeightMatrix
from .embedding import first_features
from .paths import can_be_dead
from .towers import MARGIN

EXACT = SquaredLoss, AbsoluteLoss, HuberLoss  # losses that are least at the target
FILTERS = 60  # that are tried
WIDE = 1e-3  # the response that is apart is apart by this share of the range of all
LEAST = 1e-300  # a smaller response is not raised to 1 by finite weights
SMOOTHED = 0.01  # share of equal probabilities in a label that the cross-entropy is to fit


def check_dead(net: Network) -> None:
    """Raise ValueError unless all units of a network can be dead."""
    if not can_be_dead(net):
        hint = "smooth_minimum has those of smooth activations"
        if any(isinstance(layer, Residual) for layer in net.layers):
            hint = "linear_minimum takes residual blocks above two convolutions in a row"
        raise ValueError(
            "spurious pair: expected ReLU alone, biases in every layer that it follows, no "
            f"residual blocks, and a dense layer with biases at the end, got {net.layers} with "
            f"{net.activation}; {hint}"
        )


def constant_minimum(net: Network, data: TrainingSet, loss: Loss) -> Parameters:
    """Return the point where all hidden units are dead and the outputs the best constant ones.

    Raises ValueError for other networks than those that `check_dead` takes, AssumptionError where
    no constant is best.
    """
    check_problem(net, data, loss)
    check_dead(net)
    theta = net.zeros()
    for layer in net.slots:
        if isinstance(net.chain[layer - 1], Scale):
            theta.W[layer].weights[...] = 1
        if layer in theta.b and net.is_active(layer):
            theta.b[layer][...] = -MARGIN
    theta.b[net.depth][...] = fit_affine(np.zeros((len(data), 1)), data.y, loss).bias
    return theta


def isolating_point(
    net: Network, data: TrainingSet, loss: Loss, seed: int = 0
) -> tuple[Parameters, np.ndarray, float]:
    """Return the point that sets a sample apart, and the direction and threshold that do so.

    One filter of the first layer, shifted to one position, is the direction (n,) of the inputs, or
    of what poolings make of them: the sample is above the threshold and all others are below. Of
    the samples that some filter sets apart it is the one that a constant fits worst. Its outputs
    are its targets, those of the others the best constant. With the cross-entropy, where no output
    is best for a label, they have a little of all classes: such a point is no minimum. Raises as
    `constant_minimum` does, and AssumptionError where no filter sets a sample apart.
    """
    check_problem(net, data, loss)
    check_dead(net)
    if len(data) < 2:
        raise AssumptionError("spurious pair: expected two samples or more, got 1")
    x, first = first_features(net, data.x), net.leading_poolings + 1
    constant = fit_affine(np.zeros((len(data), 1)), data.y, loss).bias
    losses = loss.value(np.tile(constant[:, None], len(data)), data.y.T)
    W = net.zeros().W[first]
    for p, responses in _apart(W, x, losses, generator(seed)):
        values = np.sort(responses, axis=None)[-2:]
        threshold = float(values.mean())
        position, sample = np.unravel_index(responses.argmax(), responses.shape)
        theta = _raised(net, data, loss, int(sample), p, threshold)
        if theta is not None:
            row = alone(W, p) if isinstance(net.chain[first - 1], Conv) else None
            direction = p if row is None else row[int(position), :]
            return theta, np.ravel(direction), threshold
    raise AssumptionError(
        f"spurious pair: none of {FILTERS} filters of layer {first}, {net.chain[first - 1]}, has "
        "its largest response to one sample alone, apart from all others, and hands it on; "
        "expected samples that differ more"
    )


def _apart(W: WeightMatrix, x: np.ndarray, losses: np.ndarray, rng: np.random.Generator):
    """Yield filters with their responses (P, N), those first whose sample has the largest loss."""
    shape, found = W.weights.shape[1:], []
    for _ in range(FILTERS):
        p = rng.standard_normal(shape)
        responses = alone(W, p) @ x.T if len(shape) > 1 else (p @ x.T)[None]
        low, high = np.partition(responses, -2, axis=None)[-2:]
        if high - low > WIDE * np.ptp(responses):
            sample = int(responses.max(axis=0).argmax())
            found.append((losses[sample], p))
    for _, p in sorted(found, key=lambda pair: -pair[0]):
        yield p, alone(W, p) @ x.T if len(shape) > 1 else (p @ x.T)[None]


def alone(W: WeightMatrix, p: np.ndarray) -> ConvolutionMatrix:
    """Return the convolution with the filter p (C, *k) alone, of the first group where there are.

    It reads all maps.
    """
    filters = np.zeros((1, W.maps_in, *p.shape[1:]))
    filters[0, : len(p)] = p
    return ConvolutionMatrix.on(W.grid, filters)


def _raised(
    net: Network, data: TrainingSet, loss: Loss, sample: int, p: np.ndarray, threshold: float
) -> Parameters | None:
    """Return the point where one unit of each layer is at 1 for the sample, and at -1 for others.

    None where it is not handed on, since a pooling or a stride leaves out where it is.
    """
    others = np.arange(len(data)) != sample
    theta = constant_minimum(net, TrainingSet(data.x[others], data.y[others]), loss)
    _, column = next(net.chunks(theta, data.x[sample : sample + 1]))
    begins, least = True, threshold  # of a stage, up to an activation; what its values exceed
    for layer in net.slots:
        o, W = to_numpy(net.layer_output(theta, column, layer - 1))[:, 0], theta.W[layer]
        place = int(o.argmax())
        if layer == net.leading_poolings + 1:
            t, W.weights[0] = 0, p
            rise = float((W @ o)[: W.positions_out].max()) - threshold
            if not rise > LEAST:
                return None
            factor = MARGIN / rise
            W.weights[0], least = factor * p, factor * threshold
        elif not o[place] > 0:
            return None
        elif layer == net.depth:
            value = _fitted(loss, theta.b[layer], data.y[sample])
            W.weights[:, place] = (value - theta.b[layer]) / o[place]
            return theta
        else:
            factor, least = (2 * MARGIN / float(o[place]), MARGIN) if begins else (1.0, least)
            t = _read(W, place, factor)
        begins = net.is_active(layer)
        if begins:
            theta.b[layer][t] = -least
    return None


def _read(W: WeightMatrix, place: int, factor: float) -> int:
    """Let one map read `factor` times an entry of the layer below, in place; return the map."""
    c, position = divmod(place, W.positions_in)
    if W.weights.ndim == 1:  # a scale
        W.weights[c] = factor
        return c
    if not isinstance(W, ConvolutionMatrix):
        W.weights[0, place] = factor
        return 0
    t, taps = W.readers(c).start, np.flatnonzero((W.grid.neighbours() == position).any(axis=0))
    if taps.size:  # else nothing reads it
        tap = np.unravel_index(taps[len(taps) // 2], W.grid.size)
        W.weights[(t, c % W.weights.shape[1], *tap)] = factor
    return t


def _fitted(loss: Loss, constant: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return outputs that fit one sample, exactly if there are any."""
    if type(loss) in EXACT:
        return y
    if type(loss) is CrossEntropy:
        return np.log(y if (y > 0).all() else (1 - SMOOTHED) * y + SMOOTHED / len(y))
    found = scipy.optimize.minimize(
        lambda o: float(loss.value(o[:, None], y[:, None])[0]),
        constant,
        jac=lambda o: loss.gradient(o[:, None], y[:, None])[:, 0],
    )
    return found.x
