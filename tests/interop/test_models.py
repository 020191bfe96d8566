"""Models as people write them come in: what PyTorch computes of them is what the engine does."""

import functools
import math

import numpy as np
import pytest
import torch
from shared import close, in_turn
from torch import nn
from torch.overrides import TorchFunctionMode
from torch_models import MODELS, model_of

import tinyspur as ts
from tinyspur.engine.parameters import Parameters
from tinyspur.interop import from_torch, to_torch

SAMPLES, CLOSE = 3, 1e-10
LOSSES = {"squared": ts.SquaredLoss(), "cross-entropy": ts.CrossEntropy()}
over_models = pytest.mark.parametrize("name", MODELS)
over_losses = pytest.mark.parametrize("loss", LOSSES)


@functools.cache
def taken_over(name):
    """Return a model, its point, and samples as PyTorch's and as this package's."""
    model, shape = model_of(name)
    theta, rng = from_torch(model, shape), np.random.default_rng(1)
    x = rng.normal(size=(SAMPLES, *shape))
    y = rng.dirichlet(np.ones(math.prod(theta.net.shapes[-1])), SAMPLES)
    data = ts.TrainingSet(x.reshape(SAMPLES, *theta.net.input_shape), y)
    return model, theta, torch.tensor(x), data


def torch_risk(model, x, y, loss):
    o, y = model(x), torch.tensor(y)
    if loss == "squared":
        return ((o - y) ** 2).sum() / (2 * len(x))
    return nn.functional.cross_entropy(o, y)


def named_like(model, theta):
    """Return the names of the model's parameters in the order of the network's numbers.

    The numbers are random: equal arrays are the same parameter.
    """
    given = {name: p.detach().numpy() for name, p in model.named_parameters()}
    order = []
    for layer in theta.net.slots:
        for values in (theta.W[layer].weights, theta.b.get(layer)):
            found = [
                n for n, p in given.items() if values is not None and np.array_equal(p, values)
            ]
            assert len(found) == (values is not None)
            order += found
    assert sorted(order) == sorted(given)
    return order


def in_order(tensors, order):
    return torch.cat([tensors[name].detach().flatten() for name in order]).numpy()


class Kinks(TorchFunctionMode):
    """Collects the patterns of a run, and how far each unit is from where its pattern changes."""

    def __init__(self):
        super().__init__()
        self.patterns, self.distances = [], []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, z = kwargs or {}, args[0] if args else None
        name = func.__name__.rstrip("_")
        if name in ("relu", "leaky_relu"):
            self._take(z > 0, z)
        elif name.startswith("max_pool"):
            self._take(*largest(z, *args[1:], **kwargs))
        elif name != "boolean_dispatch":
            return func(*args, **kwargs)
        with torch._C.DisableTorchFunction():
            return func(*args, **kwargs)

    def _take(self, pattern, distance):
        self.patterns.append(pattern.flatten(1).numpy())
        self.distances.append(distance.clone())


def largest(z, kernel_size, stride=None, padding=0, **_):
    """Return the place of the largest entry of each window, counted row by row, and its lead."""
    rows = z.ndim == 4  # maps of one direction have one row
    size, step, around = (
        (n if rows else 1, n) if isinstance(n, int) else n
        for n in (kernel_size, stride or kernel_size, padding if rows else (0, padding))
    )
    top, left = (around, around) if isinstance(around, int) else around
    z = nn.functional.pad(z if rows else z[:, :, None], (left, left, top, top), value=-1e300)
    windows = nn.functional.unfold(z.flatten(0, 1)[:, None], size, stride=step)
    values, places = windows.topk(2, dim=1).values, windows.argmax(1)
    return places.reshape(len(z), -1), (values[:, 0] - values[:, 1]).reshape(len(z), -1)


@over_models
def test_outputs_are_the_models(name):
    model, theta, x, data = taken_over(name)
    close(theta.net.forward(theta, data.x), model(x).detach().numpy(), CLOSE)


@in_turn(
    over_models,
    over_losses,
)
def test_risk_and_gradient_are_those_of_pytorch_by_name(name, loss):
    model, theta, x, data = taken_over(name)
    risk = torch_risk(model, x, data.y, loss)
    found, gradient = theta.net.risk_and_gradient(theta, data, LOSSES[loss])
    assert found == pytest.approx(risk.item(), rel=CLOSE)
    names = dict(model.named_parameters())
    expected = dict(zip(names, torch.autograd.grad(risk, list(names.values())), strict=True))
    order = named_like(model, theta)
    close(gradient.vector, in_order(expected, order), CLOSE)
    for layer, W in gradient.W.items():
        if W.weights is not None:
            close(W.weights, expected[order.pop(0)].numpy(), CLOSE, 1e-15)
            if layer in gradient.b:
                close(gradient.b[layer], expected[order.pop(0)].numpy(), CLOSE, 1e-15)


@in_turn(
    over_models,
    over_losses,
)
def test_hessian_products_are_those_of_double_backward(name, loss):
    model, theta, x, data = taken_over(name)
    names, rng = dict(model.named_parameters()), np.random.default_rng(2)
    v = {n: torch.tensor(rng.normal(size=p.shape)) for n, p in names.items()}
    order, risk = named_like(model, theta), torch_risk(model, x, data.y, loss)
    first = torch.autograd.grad(risk, list(names.values()), create_graph=True)
    along = sum((g * d).sum() for g, d in zip(first, v.values(), strict=True))
    second = torch.autograd.grad(along, list(names.values()), materialize_grads=True)
    direction = Parameters(theta.net, in_order(v, order))
    found = theta.net.hessian_product(theta, direction, data, LOSSES[loss])
    close(found.vector, in_order(dict(zip(names, second, strict=True)), order), CLOSE)


@over_models
def test_patterns_are_what_the_models_activations_read(name):
    model, theta, x, data = taken_over(name)
    with torch.no_grad(), Kinks() as kinks:
        model(x)
    patterns = theta.net.patterns(theta, data.x)
    assert tuple(patterns) == theta.net.pattern_layers
    assert len(kinks.patterns) == len(patterns)
    for expected, layer in zip(kinks.patterns, patterns, strict=True):
        assert np.array_equal(patterns[layer], expected)


@over_models
def test_the_affine_map_of_a_sample_is_its_jacobian_and_its_output(name):
    model, theta, x, data = taken_over(name)
    jacobian = torch.autograd.functional.jacobian(model, x[:1]).reshape(-1, x[0].numel())
    constant = model(x[:1])[0].detach() - jacobian @ x[0].flatten()
    expected = torch.cat([jacobian, constant[:, None]], 1).numpy()
    close(theta.net.affine_map(theta, data.x[0]), expected, CLOSE)


@over_models
def test_a_point_goes_to_pytorch_and_comes_back_bit_for_bit(name):
    model, theta, x, _ = taken_over(name)
    again = to_torch(theta)
    shape = theta.net.input_shape
    given = x.reshape(len(x), *shape)
    close(again(given).detach().numpy(), model(x).detach().numpy(), CLOSE)
    back = from_torch(again, shape)
    assert back.net == theta.net and back.net.spec == theta.net.spec
    assert back.vector.tobytes() == theta.vector.tobytes()


# Certificates


def pattern_of(theta, x):
    return np.concatenate([p.ravel() for p in theta.net.patterns(theta, x).values()] or [[]])


def attacks(model, theta, x):
    """Return the signs of the moves that bring a unit of each layer to its kink soonest."""
    names, order = dict(model.named_parameters()), named_like(model, theta)
    with Kinks() as kinks:
        model(x)
    found = []
    for distance in kinks.distances:
        least = distance.flatten()[abs(distance).argmin()]
        parts = torch.autograd.grad(
            least, list(names.values()), retain_graph=True, materialize_grads=True
        )
        downhill = -in_order(dict(zip(names, parts, strict=True)), order)
        found.append(np.sign(downhill) * np.sign(least.item()))
    return found


@in_turn(
    over_models,
    over_losses,
)
def test_patterns_stay_and_risks_fall_no_further_than_the_certificate_says(name, loss):
    model, theta, x, data = taken_over(name)
    net, rng = theta.net, np.random.default_rng(3)
    certificate = ts.certify_cell(theta, data, LOSSES[loss])
    radius, before = certificate.radius, pattern_of(theta, data.x)
    risk, gradient = net.risk_and_gradient(theta, data, LOSSES[loss])
    assert radius > 0 and certificate.delta < math.inf
    assert all(pattern.any(axis=1).all() for pattern in net.patterns(theta, data.x).values())
    for sign in (
        -np.sign(gradient.vector),
        *rng.choice([-1.0, 1.0], (4, net.size)),
        *attacks(model, theta, x),
    ):
        other = Parameters(net, theta.vector + (1 - 1e-12) * min(radius, 1.0) * sign)
        assert np.array_equal(pattern_of(other, data.x), before)
        assert risk - net.risk(other, data, LOSSES[loss]) <= certificate.delta
    assert (radius == math.inf) == (not net.pattern_layers)


def test_running_statistics_are_in_the_numbers_of_scales():
    """Gamma (x - mean) / std + beta is (gamma / std) x + (beta - gamma mean / std)."""
    model, shape = model_of("ResNet-8")
    model.train()
    with torch.no_grad():
        for seed in range(3):
            model(torch.randn(20, *shape, generator=torch.Generator().manual_seed(seed)).double())
    model.eval()
    theta = from_torch(model, shape)
    x = np.random.default_rng(5).normal(size=(4, *shape))
    close(theta.net.forward(theta, x), model(torch.tensor(x)).detach().numpy(), CLOSE)
    norm = next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    std = torch.sqrt(norm.running_var + norm.eps)
    layer = next(n for n, part in enumerate(theta.net.chain, 1) if isinstance(part, ts.Scale))
    close(theta.W[layer].weights, (norm.weight / std).detach().numpy(), CLOSE)
    again = to_torch(theta)
    close(again(torch.tensor(x)).detach().numpy(), model(torch.tensor(x)).detach().numpy(), CLOSE)


@pytest.mark.parametrize(
    "name", ["ResNet-8", "VGG-11", "MobileNet", "ResNet with activations first"]
)
def test_scales_are_folded_into_the_layers_below(name):
    _, theta, _, data = taken_over(name)
    folded = ts.fold_scales(theta)
    assert folded.net.size < theta.net.size
    close(folded.net.forward(folded, data.x), theta.net.forward(theta, data.x), CLOSE)
    left = sum(isinstance(part, ts.Scale) for part in folded.net.layers)
    assert left == 0 or name == "ResNet with activations first"
    assert ts.fold_scales(folded).net == folded.net
