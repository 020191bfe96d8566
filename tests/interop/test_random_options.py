"""Networks with options of all layers drawn together compute what PyTorch computes of them."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shared import close
from torch import nn

import tinyspur as ts
from tinyspur.interop import from_torch, to_torch

CLOSE, SAMPLES = 1e-10, 3
KINKED = ts.ReLU(), ts.ReLU(0.25), ts.Identity()
ACTIVATIONS = st.sampled_from([None, None, *KINKED, ts.Tanh(), ts.SiLU(), ts.GELU(), ts.ELU(0.5)])
truth, one_or_two = st.booleans(), st.integers(1, 2)


@st.composite
def convolutions(draw, directions):
    each = st.tuples(*[st.integers(1, 3)] * directions)
    sides = st.tuples(*[st.tuples(st.integers(0, 2), st.integers(0, 2))] * directions)
    return ts.Conv(
        draw(st.sampled_from([2, 4])),
        draw(each),
        draw(st.tuples(*[one_or_two] * directions)),
        draw(st.one_of(st.just("same"), st.integers(0, 1), sides)),
        draw(st.tuples(*[one_or_two] * directions)),
        draw(one_or_two),
        draw(truth),
        activation=draw(ACTIVATIONS),
    )


@st.composite
def poolings(draw, kind, directions):
    size = draw(st.tuples(*[st.sampled_from([3, 2, 1])] * directions))
    stride = draw(st.one_of(st.none(), one_or_two, st.tuples(*[one_or_two] * directions)))
    padding = min(size) // 2 * draw(st.integers(0, 1))
    activation = draw(st.sampled_from([None, None, *KINKED, ts.Tanh()]))
    options = size, stride, padding, draw(truth)
    if kind == "max":
        return ts.MaxPool(*options, draw(one_or_two), activation=activation)
    return ts.AveragePool(*options, draw(truth), activation=activation)


@st.composite
def blocks(draw, maps):
    """Draw residual blocks above so many maps, with a projection or without."""
    own, stride = draw(st.sampled_from([(maps, 1), (2, 2), (4, 1)]))
    layers = [ts.Conv(own, 3, stride, groups=draw(one_or_two), bias=draw(truth))]
    layers += [ts.Scale(), ts.MaxPool(3, 1, 1), ts.Conv(own, 1)][draw(st.integers(0, 3)) :]
    shortcut = [ts.Conv(own, 1, stride, bias=False), ts.Scale()][: draw(one_or_two)]
    if (own, stride) == (maps, 1):
        shortcut = shortcut * draw(truth)
    return ts.Residual(layers, shortcut, activation=draw(ACTIVATIONS))


def with_layer(net, layer):
    """Return a network with one more layer, or as it is where that does not fit."""
    try:
        return ts.Network(net.input_shape, [*net.layers, layer], net.activation)
    except ValueError:
        return net


@st.composite
def networks(draw, directions):
    shape = (draw(st.sampled_from([2, 4])), *draw(st.tuples(*[st.integers(5, 8)] * directions)))
    sigma = draw(st.sampled_from([ts.ReLU(), ts.ReLU(0.1), ts.Sigmoid()]))
    first = [ts.AveragePool(2, 1)] * draw(st.integers(0, 1))
    net = ts.Network(shape, [*first, ts.Scale(), ts.Conv(4, 3, groups=2)], sigma)
    for kind in draw(st.permutations(["conv", "max", "average", "block", "scale"])):
        if kind == "conv":
            net = with_layer(net, draw(convolutions(directions)))
        elif kind == "block":
            net = with_layer(net, draw(blocks(net.shapes[-1][0])))
        else:
            net = with_layer(
                net, draw(poolings(kind, directions)) if kind != "scale" else ts.Scale()
            )
    if draw(truth):
        net = with_layer(net, ts.Dense(3, draw(truth), activation=draw(ACTIVATIONS)))
    return with_layer(net, ts.Dense(2, draw(truth)))


def drawn_point(net, seed):
    rng, theta = np.random.default_rng(seed), net.zeros()
    theta.vector[:] = rng.normal(size=net.size)
    for W in theta.W.values():
        if W.weights is not None and W.weights.ndim > 1:
            W.weights[...] /= np.sqrt(W.weights[0].size)
    return theta


def with_statistics(model, seed):
    """Give each batch normalisation the statistics of some training."""
    generator = torch.Generator().manual_seed(seed)
    for norm in model.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            norm.eps = 1e-3
            norm.running_mean.normal_(generator=generator)
            norm.running_var.uniform_(0.5, 2, generator=generator)
    return model


def torch_patterns(model, x):
    """Return what activations with a kink and max poolings read, or where, in their order."""
    found = []

    def active(_, given, __):
        found.append(given[0] > 0)

    def largest(pool, given, _):
        options = pool.kernel_size, pool.stride, pool.padding, pool.dilation, pool.ceil_mode
        dimension = "1d" if isinstance(pool, nn.MaxPool1d) else "2d"
        pick = getattr(nn.functional, f"max_pool{dimension}_with_indices")
        found.append(pick(given[0], *options)[1])

    hooks = {nn.ReLU: active, nn.LeakyReLU: active, nn.MaxPool1d: largest, nn.MaxPool2d: largest}
    handles = [m.register_forward_hook(hooks[type(m)]) for m in model.modules() if type(m) in hooks]
    model(x)
    for handle in handles:
        handle.remove()
    return [pattern.flatten(1).numpy() for pattern in found]


def own_patterns(theta, x):
    """Return the same of a network; entries of windows by their places on the map."""
    for layer, pattern in theta.net.patterns(theta, x).items():
        W = theta.W[layer]
        W = getattr(W, "own_matrix", W)
        if W.selects:
            starts, steps = W.grid.flat_places()
            pattern = steps[pattern] + np.tile(starts, W.maps_out)
        yield pattern


@pytest.mark.parametrize("directions", [1, 2])
@settings(max_examples=10, deadline=None, derandomize=True, database=None)
@given(data=st.data(), seed=st.integers(0, 99))
def test_all_options_together_are_those_of_pytorch(directions, data, seed):
    net, rng = data.draw(networks(directions)), np.random.default_rng(seed)
    x, y = rng.normal(size=(SAMPLES, *net.input_shape)), rng.normal(size=(SAMPLES, 2))
    data, loss, inputs = ts.TrainingSet(x, y), ts.SquaredLoss(), torch.tensor(x)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Using padding='same'")
        normed = with_statistics(to_torch(drawn_point(net, seed)), seed)
        theta = from_torch(normed, net.input_shape)
        close(theta.net.forward(theta, x), normed(inputs).detach().numpy(), CLOSE)
        model = to_torch(theta)
        weights = list(model.parameters())
        outputs = model(inputs)
        risk = ((outputs - torch.tensor(y)) ** 2).sum() / (2 * SAMPLES)
        gradient = torch.autograd.grad(risk, weights, create_graph=True, materialize_grads=True)
        v = [torch.tensor(rng.normal(size=p.shape)) for p in weights]
        along = sum((g * d).sum() for g, d in zip(gradient, v, strict=True))
        product = torch.autograd.grad(along, weights, materialize_grads=True)
        expected = torch_patterns(model, inputs)
    net = theta.net
    found, slopes = net.risk_and_gradient(theta, data, loss)
    close(net.forward(theta, x), outputs.detach().numpy(), CLOSE)
    close(found, risk.item(), CLOSE)
    close(slopes.vector, vector(gradient), CLOSE, 1e-13)
    direction = ts.Parameters(net, vector(v))
    curved = net.hessian_product(theta, direction, data, loss)
    close(curved.vector, vector(product), CLOSE, 1e-13)
    for own, read in zip(own_patterns(theta, x), expected, strict=True):
        assert np.array_equal(own, read)


def vector(parts):
    return torch.cat([part.detach().flatten() for part in parts]).numpy()
