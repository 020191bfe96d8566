"""Points of [CNN] that the tests of its constructions share: random subnetworks, linear minima."""

import functools
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch_twin
from shared import random_pixels, targets_for, twin_of

from tinyspur.constructions.data_split import split_data
from tinyspur.constructions.embedding import embed, linear_minimum, subnetwork
from tinyspur.datasets.samples import TrainingSet
from tinyspur.engine.losses import CrossEntropy, SquaredLoss
from tinyspur.engine.network import Network
from tinyspur.fitting.affine import fit_affine
from tinyspur.layers import Conv, Dense

SQUARED, ENTROPY = SquaredLoss(), CrossEntropy()

over_losses = pytest.mark.parametrize("loss", [SQUARED, ENTROPY], ids=["squared", "cross-entropy"])
over_rules = pytest.mark.parametrize("rule", ["steepest", "largest"])
over_devices = pytest.mark.parametrize(
    "where", ["stand-in", pytest.param("cupy", marks=pytest.mark.gpu)]
)
over_seeds = pytest.mark.parametrize("seed", range(3))


def network(shape, maps, outputs, kernel=3):
    return Network(shape, [*(Conv(t, kernel) for t in maps), Dense(outputs)])


def random_embedding(*options, **others):
    """Return theta, its relays, the data and a random nonlinear subnetwork below the relays.

    The points are copies, which a test may change.
    """
    theta, pair, data, phi = _random_embedding(*options, **others)
    return theta.copy(), pair, data, phi.copy()


@functools.cache
def _random_embedding(
    seed,
    loss=SQUARED,
    outputs=3,
    maps=(3, 5, 6),
    shape=(1, 4, 4),
    samples=14,
    variant="repaired",
    quantised=False,
):
    """Build them.

    `quantised`: small whole numbers, so that values tie exactly and nothing is rounded.
    """
    rng = np.random.default_rng(seed)
    net = network(shape, maps, outputs)
    phi = subnetwork(net).zeros()
    x = rng.normal(size=(samples, *shape))
    phi.vector[:] = rng.normal(size=phi.vector.size)
    if quantised:
        x, phi.vector[:] = np.round(x), np.round(phi.vector)
    below = phi.net.depth - 1
    for t in range(maps[-3]):  # half active: nonlinear, and no map is dead
        z = (phi.W[below] @ layer_input(phi, x, below)).reshape(maps[-3], -1)
        middle = np.quantile(z[t], 0.3 + 0.1 * t)
        phi.b[below][t] = -np.round(middle) if quantised else -middle
    theta, pair = embed(net, phi, x, variant)
    y = targets_for(loss, rng, samples, outputs)
    if quantised:
        # Whole residuals, of which many vanish or cancel: the sums of u over ties often are zero.
        u = rng.integers(-1, 2, (samples, outputs))
        y = net.forward(theta, x) - u
    return theta, pair, TrainingSet(x, y), phi


def layer_input(theta, x, layer):
    """Return what `layer` reads, as columns, by PyTorch."""
    if layer == 1:
        return x.reshape(len(x), -1).T
    z = twin_of(theta).preactivations(x)[layer - 1]
    return torch.relu(z).detach().numpy().T


LINEAR = {
    "three convolutions": {"shape": (1, 5, 5), "maps": (2, 3, 4)},
    "convolutions below": {"shape": (1, 4, 4), "maps": (3, 4, 5, 6, 6)},
    "colour": {"shape": (3, 8, 8), "maps": (4, 6, 5), "samples": 260},
    "one direction": {"shape": (2, 9), "maps": (3, 4, 5)},
    "filters of size 1": {"shape": (1, 4, 4), "maps": (2, 3, 3), "kernel": 1},
    "filters of size 5": {"shape": (1, 4, 4), "maps": (1, 2, 4, 4), "kernel": 5},
    "negative pixels": {"shape": (2, 3, 3), "maps": (2, 4, 4), "low": -4.0},
    "one output": {"shape": (1, 4, 4), "maps": (1, 3, 3), "outputs": 1},
}
over_linear = pytest.mark.parametrize("case", LINEAR)


def linear_case(case, loss, variant="repaired"):
    """Return theta, its relays, the data and the affine fit."""
    options = dict(LINEAR[case])
    low, samples = options.pop("low", 0.0), options.pop("samples", 70)
    net = network(**{"outputs": 3, **options})
    data = random_pixels(net, loss, samples, seed=1, low=low)
    if net.shapes[-1] == (1,) and loss is ENTROPY:  # one class would be fitted exactly
        net = network(**{**options, "outputs": 2})
        data = random_pixels(net, loss, samples, seed=1, low=low)
    fit = fit_affine(data.x.reshape(samples, -1), data.y, loss)
    theta, pair = linear_minimum(net, data, loss, variant)
    return theta, pair, data, fit


def by_hand(theta, pair, data, loss, m, k):
    """Return v (P, N), w (P,) and u (N,) from PyTorch."""
    P, N = theta.net.positions(pair.below), len(data)
    z = twin_of(theta).preactivations(data.x)[pair.below].detach().numpy()
    v = z.reshape(N, -1, P)[:, m].T - theta.b[pair.below][m]
    r = pair.relay_of(m)
    w = theta.W[pair.dense].weights[k, r * P : (r + 1) * P]
    outputs = twin_of(theta)(data.x).detach().requires_grad_()
    risk = N * torch_twin.risk(outputs, data.y, loss.name)
    (u,) = torch.autograd.grad(risk, outputs)
    return v, w, u.numpy()[:, k]


def all_splits(theta, pair, data, loss, m, k, width, every=1):
    """Yield a split for each gap of map m that is wider than `width` of the range, or for some."""
    v, w, u = by_hand(theta, pair, data, loss, m, k)
    values = np.unique(v)
    some = split_data(theta, pair, data, loss)
    wide = width * (values[-1] - values[0])
    gaps = [(low, high) for low, high in itertools.pairwise(values) if high - low > wide]
    for low, high in gaps[::every]:
        eta = (low + high) / 2
        above = v[0] > eta
        yield replace(
            some,
            map=m,
            output=k,
            location=0,
            threshold=eta,
            gap=(low, high),
            lowest=values[0],
            slope=(w * ((v > eta) @ u)).sum() / len(data),
            above=int(above.sum()),
            below=int((~above).sum()),
            partial_sum=u[above].sum(),
        )


def moved(theta, layer, target, step):
    point = theta.copy()
    point.b[layer][target] += step
    return point


@functools.cache
def small_problem(loss, seed=0, outputs=3, variant="repaired"):
    net = network((1, 4, 4), (2, 4, 4), outputs)
    data = random_pixels(net, loss, 50, seed)
    theta, pair = linear_minimum(net, data, loss, variant)
    return theta, pair, data
