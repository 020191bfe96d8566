"""Networks that go to PyTorch and back, points of them, and a model to change."""

from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

import tinyspur as ts
from tinyspur.datasets.samples import TrainingSet
from tinyspur.engine.losses import CrossEntropy
from tinyspur.engine.network import Network

C, D, A, M = ts.Conv, ts.Dense, ts.AveragePool, ts.MaxPool
ARCHITECTURES = {
    "convolutions and a dense layer": ((3, 4, 6), [C(2), C(3, 5), C(4, 1), D(3)]),
    "average pooling": ((1, 4, 4), [C(2), A(2), C(3), D(3), D(2)]),
    "max pooling": ((2, 4, 8), [C(3), M(2), C(2), C(2), M(2), D(4)]),
    "leading poolings": ((2, 8, 4), [A(2), M(2), C(2), D(3)]),
    "dense only": ((1, 2, 3), [D(5), D(4), D(2)]),
    "vectors": ((1, 5), [D(4), D(1)]),
    "one-dimensional": ((2, 12), [C(3), A(2), C(2, 5), M(3), D(4)]),
    "ends in a convolution": ((1, 4, 3), [C(3), C(2)]),
    "ends in a pooling": ((2, 6), [C(3), C(2), M(2)]),
}
ACTIVATIONS = [
    ts.ReLU(0.125),
    ts.Sigmoid(),
    ts.Tanh(),
    ts.Softplus(),
    ts.SiLU(),
    ts.Swish(1.7),
    ts.GELU(),
    ts.ELU(0.5),
    ts.Sine(),
    ts.Arctan(),
]
NETWORKS = {name: Network(*parts) for name, parts in ARCHITECTURES.items()} | {
    sigma.name if sigma != ts.ReLU(0.125) else "leaky": Network(
        (2, 4, 4), [C(3), M(2), C(2), A(2), D(4), D(2)], sigma
    )
    for sigma in ACTIVATIONS
}
over_networks = pytest.mark.parametrize("net", NETWORKS.values(), ids=NETWORKS)


def problem(net, samples=7, dtype=np.float64):
    """Return parameters, data for the squared loss and for the cross-entropy."""
    rng, width = np.random.default_rng(0), int(np.prod(net.shapes[-1]))
    theta = net.zeros(dtype=dtype)
    theta.vector[:] = rng.standard_normal(net.size)
    x = rng.standard_normal((samples, *net.input_shape)).astype(dtype)
    regression = TrainingSet(x, rng.standard_normal((samples, width)).astype(dtype))
    return theta, regression, TrainingSet(x, rng.dirichlet(np.ones(width), samples).astype(dtype))


def numbers(tensors):
    """Return all numbers of some tensors, in one vector."""
    return torch.cat([tensor.detach().flatten() for tensor in tensors]).numpy()


def torch_risk(model, data, loss):
    """Return the risk as PyTorch finds it."""
    o, y = model(torch.tensor(data.x)), torch.tensor(data.y)
    if isinstance(loss, CrossEntropy):
        return nn.functional.cross_entropy(o, y)
    return nn.functional.mse_loss(o, y, reduction="sum") / (2 * len(data))


def cnn(**changes):
    """Return a model for (2, 8, 8), its modules by name, some of them changed."""
    modules = OrderedDict(
        lower=nn.Conv2d(2, 3, 3, padding=1),
        first=nn.ReLU(),
        pool=nn.MaxPool2d(2),
        upper=nn.Conv2d(3, 4, 5, padding="same"),
        second=nn.ReLU(inplace=True),
        mean=nn.AvgPool2d(4),
        flat=nn.Flatten(),
        top=nn.Linear(4, 3),
    )
    return nn.Sequential(OrderedDict((modules | changes).items()))


class Written(nn.Module):
    """A model for (2, 4, 4) with a forward pass of its own: `way`(model, x)."""

    def __init__(self, way):
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3, padding=1)
        self.other = nn.Conv2d(3, 3, 3, padding=1)
        self.linear = nn.Linear(48, 4)
        self.small = nn.Linear(3, 4)
        self.way, self.times = way, 0

    def forward(self, x):
        return self.way(self, x)

    def top(self, x):
        """Return what the linear layer makes of maps."""
        return self.linear(x.flatten(1))
