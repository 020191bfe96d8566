"""Networks of every kind, each with a point, data and a loss, drawn at random."""

import numpy as np
import torch
import torch_twin
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from shared import SMOOTH, twin_of

from tinyspur.datasets.samples import TrainingSet
from tinyspur.engine.activations import ReLU
from tinyspur.engine.losses import CrossEntropy, SquaredLoss, one_hot
from tinyspur.engine.network import Network
from tinyspur.engine.parameters import Parameters
from tinyspur.layers import AveragePool, Conv, Dense, MaxPool, Pooling

over_networks = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
WITH_KINKS = st.sampled_from([0.0, 0.01, 0.3]).map(ReLU)
WITHOUT_KINKS = st.sampled_from(SMOOTH)


@st.composite
def networks(draw, activations=WITH_KINKS | WITHOUT_KINKS):
    """Return a network with at least one layer of weights."""
    directions = draw(st.integers(1, 2))
    sizes = st.sampled_from([1, 2, 3, 4, 6, 8])
    input_shape = (draw(st.integers(1, 3)), *(draw(sizes) for _ in range(directions)))
    layers, size = [], input_shape[1:]
    for _ in range(draw(st.integers(0, 4))):
        kind = draw(st.sampled_from(["conv", "conv", "average_pool", "max_pool", "dense"]))
        if kind == "dense" or not size:
            layers.append(Dense(draw(st.integers(1, 5))))
            size = ()
        elif kind == "conv":
            stride = draw(st.sampled_from([1, 1, 2, 3]))
            layers.append(Conv(draw(st.integers(1, 3)), draw(st.sampled_from([1, 3, 5])), stride))
            size = tuple(-(-n // stride) for n in size)
        else:
            window = draw(
                st.sampled_from([w for w in (1, 2, 3, 4) if not any(n % w for n in size)])
            )
            layers.append((AveragePool if kind == "average_pool" else MaxPool)(window))
            size = tuple(n // window for n in size)
    if all(isinstance(layer, Pooling) for layer in layers) or draw(st.booleans()):
        layers.append(Dense(draw(st.integers(1, 4))))
    return Network(input_shape, layers, draw(activations))


@st.composite
def problems(draw, activations=WITH_KINKS | WITHOUT_KINKS):
    """Return a network, parameters, data and a loss."""
    net = draw(networks(activations))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    samples, width = draw(st.integers(1, 5)), int(np.prod(net.shapes[-1]))
    x = rng.normal(size=(samples, *net.input_shape))
    kind = draw(st.sampled_from(["squared", "hard", "soft"]))
    if kind == "squared":
        loss, y = SquaredLoss(), rng.normal(size=(samples, width))
    elif kind == "hard":
        loss, y = CrossEntropy(), one_hot(rng.integers(0, width, samples), width)
    else:
        loss, y = CrossEntropy(), rng.dirichlet(np.ones(width), samples)
    return net, Parameters(net, rng.normal(size=net.size)), TrainingSet(x, y), loss


def torch_hessian_product(theta, direction, data, loss):
    """Return the Hessian of the risk times `direction`, by name, by double backward in PyTorch."""
    twin, v = twin_of(theta), direction.arrays()
    parameters = twin.arrays()
    risk = torch_twin.risk(twin(data.x), data.y, loss.name)
    first = torch.autograd.grad(risk, list(parameters.values()), create_graph=True)
    slope = sum((g * torch.as_tensor(v[name])).sum() for name, g in zip(v, first, strict=True))
    second = torch.autograd.grad(slope, list(parameters.values()), materialize_grads=True)
    return {name: h.numpy() for name, h in zip(parameters, second, strict=True)}
