"""Models and networks compute the same, come back bit for bit, and are refused by name."""

import copy
import re
import warnings
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import pytest
import strict_device
import torch
from shared import close, run_python
from torch import nn
from torch.nn.utils import prune

import tinyspur as ts
from tinyspur import interop
from tinyspur.datasets.samples import TrainingSet
from tinyspur.engine.losses import CrossEntropy, SquaredLoss
from tinyspur.engine.network import Network
from tinyspur.interop import from_torch, to_torch

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


# The same function


@over_networks
def test_outputs_risks_and_gradients_are_those_of_the_model(net):
    theta, *cases = problem(net)
    model = to_torch(theta)
    o = model(torch.tensor(cases[0].x)).detach().numpy()
    close(net.forward(theta, cases[0].x), o, 1e-12)
    for loss, data in zip((SquaredLoss(), CrossEntropy()), cases, strict=True):
        risk = torch_risk(model, data, loss)
        assert net.risk(theta, data, loss) == pytest.approx(risk.item(), rel=1e-12)
        gradient = numbers(torch.autograd.grad(risk, list(model.parameters())))
        close(net.gradient(theta, data, loss).vector, gradient, 1e-12)


OPTIONS = {
    "stride of one direction": nn.Conv2d(2, 3, 3, (1, 2), 1),
    "no padding": nn.Conv2d(2, 3, 5),
    "valid": nn.Conv2d(2, 3, 3, padding="valid"),
    "even, same": nn.Conv2d(2, 3, (2, 4), padding="same"),
    "even": nn.Conv2d(2, 3, 4, 2, 1),
    "not square": nn.Conv2d(2, 3, (3, 5), padding=(1, 0)),
    "dilation": nn.Conv2d(2, 3, 3, padding=2, dilation=(2, 1)),
    "groups": nn.Conv2d(2, 4, 3, groups=2),
    "no bias": nn.Conv2d(2, 3, 3, bias=False),
    "zeros around": nn.Sequential(nn.ZeroPad2d((0, 1, 2, 0)), nn.Conv2d(2, 3, 3, 2)),
    "zeros around, then its own": nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(2, 3, 9, padding=1)),
    "overlapping": nn.MaxPool2d(3, 2, 1),
    "max pooling of all options": nn.MaxPool2d((2, 3), (1, 2), (1, 0), (2, 1), ceil_mode=True),
    "average": nn.AvgPool2d((3, 2), 2, 1, ceil_mode=True, count_include_pad=False),
    "padding counts": nn.AvgPool2d(3, 2, 1),
    "left out": nn.AvgPool2d(3),
    "global": nn.AdaptiveAvgPool2d(1),
    "adaptive": nn.AdaptiveMaxPool2d((4, None)),
}


@pytest.mark.parametrize("module", OPTIONS.values(), ids=OPTIONS)
def test_a_layer_of_any_options_comes_in_and_goes_out(module):
    x = torch.randn(5, 2, 8, 8, dtype=torch.float64)
    first = nn.Sequential(nn.Conv2d(2, 2, 1), nn.ReLU(), module, nn.ReLU()).double()
    first = first if list(module.parameters()) else first[:-1]
    width = first(x).flatten(1).shape[1]
    model = nn.Sequential(first, nn.Flatten(), nn.Linear(width, 2, bias=False)).double()
    theta = from_torch(model, (2, 8, 8))
    expected = model(x).detach().numpy()
    close(theta.net.forward(theta, x.numpy()), expected, 1e-12)
    again = to_torch(theta)
    close(again(x).detach().numpy(), expected, 1e-12)
    back = from_torch(again, (2, 8, 8))
    assert back.net == theta.net and back.vector.tobytes() == theta.vector.tobytes()


@pytest.mark.parametrize("sigma", [ts.ReLU(), *ACTIVATIONS], ids=str)
def test_activations_agree_far_from_zero_too(sigma):
    z = np.concatenate([np.linspace(-60, 60, 4001), [-700.0, 19.9, 20.1, 39.9, 40.1, 700.0]])
    net = Network((1, 1), [D(1), D(1)], sigma)
    identity = net.zeros()
    identity.vector[[0, 2]] = 1
    found = to_torch(identity)(torch.tensor(z[:, None, None])).detach().numpy()[:, 0]
    np.testing.assert_allclose(found, sigma(z), rtol=1e-15, atol=1e-15)


def test_float32_stays_float32():
    theta, data, _ = problem(NETWORKS["max pooling"], dtype=np.float32)
    model = to_torch(theta)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    back = from_torch(model, (2, 4, 8))
    assert back.vector.dtype == np.float32
    assert back.vector.tobytes() == theta.vector.tobytes()
    close(theta.net.forward(theta, data.x), model(torch.tensor(data.x)).detach().numpy(), 1e-5)


def test_modules_are_pytorchs_own():
    names = [type(module).__name__ for module in to_torch(problem(NETWORKS["max pooling"])[0])]
    assert names == [
        *("Conv2d", "ReLU", "MaxPool2d", "Conv2d", "ReLU", "Conv2d", "ReLU", "MaxPool2d"),
        *("Flatten", "Linear"),
    ]
    own = {"sine": "Sine", "arctan": "Arctan", "swish": "Swish"}
    for sigma in ACTIVATIONS:
        module = to_torch(problem(Network((1, 2), [D(2), D(1)], sigma))[0])[2]
        mine = type(module).__module__ == "tinyspur.interop"
        assert mine == (getattr(sigma, "name", None) in own)
    assert type(to_torch(problem(NETWORKS["one-dimensional"])[0])[2]) is nn.AvgPool1d
    assert repr(to_torch(problem(NETWORKS["swish"])[0])[1]) == "Swish(beta=1.7)"


# There and back


@over_networks
def test_a_point_comes_back_bit_for_bit(net):
    theta = problem(net)[0]
    back = from_torch(to_torch(theta), net.input_shape)
    assert back.net == net
    assert back.net.spec == net.spec
    assert back.vector.tobytes() == theta.vector.tobytes()


@over_networks
def test_a_model_comes_back_bit_for_bit(net):
    theta, data, _ = problem(net)
    model = to_torch(theta)
    again = to_torch(from_torch(model, net.input_shape))
    assert repr(again) == repr(model)
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
    x = torch.tensor(data.x)
    assert torch.equal(again(x), model(x))


def test_no_memory_is_shared():
    theta = problem(NETWORKS["average pooling"])[0]
    before = theta.vector.copy()
    model = to_torch(theta)
    back = from_torch(model, (1, 4, 4))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1
    assert (theta.vector == before).all()
    assert (back.vector == before).all()
    theta.vector += 3
    assert (numbers(model.parameters()) == before + 1).all()


def test_pytorchs_random_numbers_stay_as_they_were():
    state = torch.get_rng_state()
    to_torch(problem(NETWORKS["max pooling"])[0])
    assert torch.equal(torch.get_rng_state(), state)


def test_a_point_on_a_device_becomes_a_model_on_the_host():
    theta = problem(NETWORKS["max pooling"])[0]
    with strict_device.transfers() as count:
        model = to_torch(theta.to(strict_device))
    assert count.to_host == 1
    assert (numbers(model.parameters()) == theta.vector).all()


def test_nested_models_dropout_and_identities_change_nothing():
    theta, data, _ = problem(NETWORKS["max pooling"])
    a, b, c, d, e, f, g, h, flat, top = to_torch(theta)
    model = nn.Sequential(
        nn.Sequential(a, nn.Sequential(nn.Identity(), nn.Dropout2d(0.3), b), c),
        nn.Sequential(),
        nn.Sequential(d, e, f, g),
        h,
        nn.Sequential(flat, nn.Flatten(), nn.Dropout(0.5), top, nn.Dropout(0.9)),
    ).eval()
    back = from_torch(model, (2, 4, 8))
    assert back.net == theta.net
    assert (back.vector == theta.vector).all()
    close(back.net.forward(back, data.x), model(torch.tensor(data.x)).detach().numpy(), 1e-12)
    model = nn.Sequential(a, b, nn.Dropout(0), c, d, e, f, g, h, flat, top)
    assert from_torch(model, (2, 4, 8)).net == theta.net


def test_one_activation_module_may_serve_all_layers():
    relu = nn.ReLU()
    net = from_torch(cnn(first=relu, second=relu), (2, 8, 8)).net
    assert net == Network((2, 8, 8), [C(3), M(2), C(4, 5), A(4), D(3)])


def test_an_activation_may_follow_its_flattened_maps():
    model = nn.Sequential(nn.Conv1d(1, 2, 1), nn.Flatten(), nn.Tanh(), nn.Linear(6, 2)).double()
    theta = from_torch(model, (1, 3))
    assert theta.net == Network((1, 3), [C(2, 1), D(2)], ts.Tanh())
    x = np.random.default_rng(0).standard_normal((4, 1, 3))
    close(theta.net.forward(theta, x), model(torch.tensor(x)).detach().numpy(), 1e-12)


def test_pytorchs_softplus_is_within_the_stated_difference():
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 1), nn.Softplus(), nn.Linear(1, 1)).double()
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), (1, 0, 1, 0), strict=True):
            parameter.fill_(value)
    theta = from_torch(model, (1, 1))
    x = np.linspace(-30, 30, 60001)[:, None, None]
    difference = abs(theta.net.forward(theta, x) - model(torch.tensor(x)).detach().numpy())
    assert 2e-9 < difference.max() <= 2.1e-9
    assert difference[x[:, 0] <= 20].max() < 1e-14


def test_without_activations_the_network_has_relu():
    theta = from_torch(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), (1, 2, 2))
    assert theta.net == Network((1, 2, 2), [D(2)])
    assert from_torch(nn.Sequential(nn.MaxPool1d(2), nn.Flatten()), (2, 4)).vector.shape == (0,)


def test_channels_last_and_frozen_weights_are_fine():
    model = cnn().double().to(memory_format=torch.channels_last).requires_grad_(False)
    x = np.random.default_rng(0).standard_normal((3, 2, 8, 8))
    theta = from_torch(model, (2, 8, 8))
    close(theta.net.forward(theta, x), model(torch.tensor(x)).numpy(), 1e-12)


# Trained in PyTorch, inspected here


def test_a_cnn_trained_in_pytorch_is_taken_over():
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    data = TrainingSet(rng.uniform(size=(40, 2, 8, 8)), ts.one_hot(np.arange(40) % 3, 3))
    model = cnn().double()
    before = torch_risk(model, data, CrossEntropy()).item()
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(15):
        optimiser.zero_grad()
        torch_risk(model, data, CrossEntropy()).backward()
        optimiser.step()
    risk = torch_risk(model, data, CrossEntropy()).item()
    assert risk < before
    theta = from_torch(model, (2, 8, 8))
    net = theta.net
    assert net.risk(theta, data, CrossEntropy()) == pytest.approx(risk, rel=1e-12)
    seen = {}
    for name, layer in (("lower", 1), ("upper", 3)):
        hook = lambda _module, _inputs, z, layer=layer: seen.update({layer: z.clone()})  # noqa: E731
        model.get_submodule(name).register_forward_hook(hook)
    model(torch.tensor(data.x))
    patterns = net.patterns(theta, data.x)
    assert patterns.keys() == {1, 2, 3}
    for layer, z in seen.items():
        assert (patterns[layer] == (z.flatten(1) > 0).numpy()).all()
    assert not ts.certify_cell(theta, data, CrossEntropy()).holds


def test_a_certified_minimum_survives_the_journey():
    rng = np.random.default_rng(0)
    data = TrainingSet(rng.uniform(size=(40, 1, 3, 3)), rng.standard_normal((40, 2)))
    net, loss = Network((1, 3, 3), [C(3), C(4), C(4), D(2)]), SquaredLoss()
    theta, _ = ts.linear_minimum(net, data, loss)
    model = to_torch(theta)
    assert torch_risk(model, data, loss).item() == pytest.approx(net.risk(theta, data, loss))
    certificate = ts.certify_cell(theta, data, loss)
    assert certificate.holds
    assert ts.certify_cell(from_torch(model, (1, 3, 3)), data, loss) == certificate


# What is refused


class Doubled(nn.Sequential):
    def forward(self, x):
        return 2 * super().forward(x)


def filled(layer, value):
    with torch.no_grad():
        layer.bias[0] = value
    return layer


def without(*names):
    return cnn(**dict.fromkeys(names, nn.Identity()))


def hooked(model, place="upper"):
    model.get_submodule(place).register_forward_hook(lambda *_: None)
    return model


def spectral():
    """Return a model whose weights a hook computes before each pass."""
    return cnn(upper=nn.utils.spectral_norm(nn.Conv2d(3, 4, 1)))


def overridden():
    model = cnn()
    model.first.forward = torch.tanh
    return model


def convolved_otherwise():
    model = cnn()
    model.first._conv_forward = lambda x, *_: x
    return model


class Called(nn.Sequential):
    """Has outputs that its modules and its forward do not have."""

    def __call__(self, x):
        return 2 * super().__call__(x)


def narrow():
    model = cnn()
    model.top.bias = nn.Parameter(torch.zeros(1))  # PyTorch would add it to all
    return model


def tied():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    model[3].weight = model[1].weight
    return model


def normed(model):
    nn.utils.parametrizations.weight_norm(model.lower)
    return model


def by_hook():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(nn.Conv2d(2, 3, 3, padding=1))


def pruned(model):
    prune.random_unstructured(model.upper, "weight", amount=0.5)
    return model


def parts(layer, input_shape=(2, 8, 8)):
    """Return a model that begins with one layer, and its input."""
    return nn.Sequential(layer, nn.Flatten()), input_shape


def whole(model, input_shape=(2, 8, 8)):
    return model, input_shape


conv, pool = nn.Conv2d, nn.MaxPool2d
REFUSED = {
    "a module of another kind": (
        whole(nn.Sequential(nn.Sequential(conv(2, 3, 1), nn.Sequential(nn.PReLU())))),
        r"module '0\.1\.0' \(PReLU\(num_parameters=1\)\): expected nn.Sequential of Conv2d, ",
    ),
    "batch norm": (
        whole(nn.Sequential(conv(2, 3, 1), nn.BatchNorm2d(3))),
        r"module '1' \(BatchNorm2d\(3.*expected no batch normalisation; .* folded into module '0'",
    ),
    "a forward of its own": (
        whole(Doubled(conv(2, 3, 1))),
        r"model \(Doubled\(.*: expected nn.Seq",
    ),
    "not a model": (whole([conv(2, 3, 1)]), r"model: expected a torch.nn.Sequential, got list"),
    "nothing": (whole(nn.Sequential()), r"model: network: expected at least one layer"),
    "a hook": (whole(hooked(cnn())), r"module 'upper' .*expected no hooks"),
    "a hook of the whole": (whole(hooked(cnn(), "")), r"^model .*expected no hooks"),
    "a hook before": (whole(spectral()), r"module 'upper' .*expected no hooks"),
    "a forward of the module's own": (whole(overridden()), r"'first' .*no forward of its own"),
    "a convolution of its own": (whole(convolved_otherwise()), r"'first' .*no forward of its own"),
    "a call of its own": (whole(Called(conv(2, 3, 1))), r"^model .*no forward of its own"),
    "a bias of one number": (whole(narrow()), r"'top' .*expected bias of shape \(3,\), got \(1,\)"),
    "weight norm": (whole(normed(cnn())), r"module 'lower' \(Param.*a parametrization of weight: "),
    "weight norm by a hook": (whole(cnn(lower=by_hook())), r"'lower' .*hooks.*remove_weight_norm"),
    "pruned": (whole(pruned(cnn())), r"module 'upper' .*expected no hooks.*prune.remove"),
    "lazy": (parts(nn.LazyConv2d(3, 1)), r"module '0' \(LazyConv2d.*run the model on one batch"),
    "padding mode": (
        parts(conv(2, 3, 3, padding=1, padding_mode="circular")),
        r"expected padding_mode zeros, got circular",
    ),
    "channels": (parts(conv(3, 4, 1)), r"'0' .*expected in_channels 2, got 3"),
    "channels between": (
        whole(cnn(upper=conv(2, 4, 1))),
        r"'upper' .*expected in_channels 3, got 2",
    ),
    "features": (whole(cnn(top=nn.Linear(5, 3))), r"'top' .*expected in_features 4, got 5"),
    "another input": (whole(cnn(), (2, 16, 8)), r"'top' .*expected in_features 8, got 4"),
    "one-dimensional for images": (
        parts(nn.Conv1d(2, 3, 1)),
        r"'0' .*expected input_shape of two numbers \(C, W\), got three numbers \(C, H, W\): "
        r"\(2, 8, 8\)$",
    ),
    "images for one dimension": (
        parts(nn.AvgPool2d(2), (2, 8)),
        r"'0' .*expected input_shape of three numbers \(C, H, W\), got two numbers \(C, W\): "
        r"\(2, 8\)$",
    ),
    "an unknown module in one dimension": (
        parts(nn.PReLU(), (2, 8)),
        r"'0' .*expected nn.Sequential of Conv1d, AvgPool1d, MaxPool1d, .* GELU, interop.Sine, "
        r"interop.Arctan, ELU, interop.Swish, ",
    ),
    "adaptive": (
        parts(nn.AdaptiveAvgPool2d(3)),
        r"expected an output_size that divides the maps \(8, 8\)",
    ),
    "zeros before a pooling": (
        parts(nn.Sequential(nn.ZeroPad2d(1), pool(2))),
        r"expected a convolution after zero padding, got MaxPool",
    ),
    "indices": (parts(pool(2, return_indices=True)), r"expected return_indices False, got True"),
    "divisor": (
        parts(nn.AvgPool2d(2, divisor_override=3)),
        r"expected divisor_override None, got 3",
    ),
    "flatten in part": (whole(cnn(flat=nn.Flatten(2))), r"'flat' .*expected start_dim 1, got 2"),
    "flatten up to": (whole(cnn(flat=nn.Flatten(1, 2))), r"expected end_dim -1, got 2"),
    "no flatten": (whole(without("flat")), r"'top' .*expected nn.Flatten\(\) before it"),
    "maps at the end": (
        whole(nn.Sequential(conv(2, 3, 1))),
        r"model: expected nn.Flatten\(\) at the end, after maps \(3, 8, 8\)",
    ),
    "maps from a vector": (
        whole(nn.Sequential(nn.Flatten(), conv(2, 3, 1))),
        r"'1' .*expected maps before it, got them flattened",
    ),
    "pooling of a vector": (
        whole(nn.Sequential(nn.Flatten(), nn.AvgPool1d(2)), (2, 8)),
        r"'1' .*expected maps before it, got them flattened",
    ),
    "no activation": (
        whole(without("second", "mean", "flat", "top", "first", "pool")),
        r"'upper' .*expected the activation between module 'lower' and this$",
    ),
    "after max pooling": (
        whole(cnn(first=pool(2), pool=nn.ReLU())),
        r"'first' \(MaxPool2d.*expected the activation between module 'lower' and this; a monotone "
        r"one, then MaxPool, is the same function",
    ),
    "after average pooling": (
        whole(cnn(second=nn.AvgPool2d(4), mean=nn.ReLU())),
        r"'second' \(AvgPool2d.*expected the activation between module 'upper' and this$",
    ),
    "no activation before the last": (
        whole(without("second", "mean")),
        r"'top' .*expected the activation between module 'upper' and this$",
    ),
    "two": (
        whole(nn.Sequential(conv(2, 3, 1), nn.ReLU(), nn.ReLU())),
        r"'2' .*expected an activation only after a convolution or nn.Linear",
    ),
    "before the first": (
        whole(nn.Sequential(nn.ReLU(), conv(2, 3, 1))),
        r"'0' .*expected an activation only after",
    ),
    "after a pooling": (
        whole(cnn(flat=nn.Sequential(nn.ReLU(), nn.Flatten()))),
        r"'flat.0' .*expected an activation only after",
    ),
    "different ones": (
        whole(cnn(second=nn.Tanh())),
        r"'second' \(Tanh\(\)\): expected ReLU\(slope=0.0\), .*got Tanh\(\)",
    ),
    "different slopes": (
        whole(cnn(first=nn.LeakyReLU(0.1), second=nn.LeakyReLU(0.2))),
        r"'second' .*expected ReLU\(slope=0.1\), .*got ReLU\(slope=0.2\)",
    ),
    "after the last": (
        whole(nn.Sequential(nn.Flatten(), nn.Linear(128, 2), nn.Sigmoid())),
        r"model: expected no activation after the last layer, module '1'",
    ),
    "negative slope": (
        whole(cnn(first=nn.LeakyReLU(-0.1))),
        r"'first' .*expected a finite slope >= 0, got -0.1",
    ),
    "alpha": (whole(cnn(first=nn.ELU(0.0))), r"'first' .*expected a finite alpha > 0, got 0.0"),
    "GELU by tanh": (
        whole(cnn(first=nn.GELU("tanh"))),
        r"'first' .*expected approximate none, got tanh",
    ),
    "softplus of another beta": (
        whole(cnn(first=nn.Softplus(beta=2))),
        r"'first' .*expected beta 1, got 2",
    ),
    "softplus of another threshold": (
        whole(cnn(first=nn.Softplus(threshold=5))),
        r"'first' .*expected a threshold within \(20, 80\), got 5",
    ),
    "dropout": (
        whole(cnn(mean=nn.Sequential(nn.Dropout(0.5), nn.AvgPool2d(4)))),
        r"'mean.0' \(Dropout\(p=0.5.*expected evaluation mode: call .eval\(\)",
    ),
    "half": (
        whole(cnn().half()),
        r"'lower' .*expected a weight of torch.float64 or .*got .*float16",
    ),
    "bfloat16": (whole(cnn().bfloat16()), r"'lower' .*got torch.bfloat16"),
    "mixed": (
        whole(cnn(upper=conv(3, 4, 1).double())),
        r"'upper' .*expected a weight of torch.float32, got torch.float64",
    ),
    "NaN": (
        whole(cnn(top=filled(nn.Linear(4, 3), torch.nan))),
        r"'top' .*expected finite numbers in its bias, got NaN or infinity",
    ),
    "infinity": (whole(cnn(lower=filled(conv(2, 3, 1), torch.inf))), r"'lower' .*expected finite"),
    "no numbers": (whole(cnn().to("meta")), r"'lower' .*meta tensor"),
    "tied": (whole(tied(), (1, 4)), r"'3' .*expected a weight of its own, got that of module '1'"),
    "vectors": (
        whole(nn.Sequential(nn.Linear(4, 2)), (4,)),
        r"^input_shape: expected \(C, H, W\) or \(C, W\), got \(4,\); for vectors give \(1, 4\)",
    ),
    "an input of another kind": (whole(cnn(), (8, 2, 8, 8)), r"^network: expected an input \(C, H"),
    "a number for the input": (whole(cnn(), 8), r"^input_shape: expected \(C, H, W\) .*, got 8$"),
    "an empty input": (whole(cnn(), (2, 0, 8)), r"^network: expected an input \(C, H, W\)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_the_model_is_refused_and_the_error_says_where_and_why(name):
    (model, input_shape), message = REFUSED[name]
    with pytest.raises(ValueError, match=message) as caught:
        from_torch(model, input_shape)
    assert "\n" not in str(caught.value)


def test_the_model_that_the_refused_ones_change_is_accepted():
    assert from_torch(cnn(), (2, 8, 8)).net.depth == 5


@pytest.mark.parametrize("padding", ["same", "valid", 0])
def test_a_convolution_of_size_one_needs_no_padding_in_any_words(padding):
    model = nn.Sequential(nn.Conv2d(2, 3, 1, padding=padding), nn.Flatten()).double()
    x = torch.randn(4, 2, 3, 5).double()
    theta = from_torch(model, (2, 3, 5))
    assert np.allclose(theta.net.forward(theta, x), model(x).detach(), rtol=1e-13)


@pytest.mark.parametrize("kind", ["forward_hook", "forward_pre_hook"])
def test_hooks_on_all_modules_are_refused(kind):
    def change(_module, values, output=None):
        return values if output is None else output + 1

    register = getattr(nn.modules.module, f"register_module_{kind}")
    handle = register(change)
    try:
        with pytest.raises(ValueError, match=r"^model: expected no hooks on all modules"):
            from_torch(cnn(), (2, 8, 8))
    finally:
        handle.remove()
    assert from_torch(cnn(), (2, 8, 8)).net.depth == 5


def trained_norm(kind, width):
    """Return a batch normalisation whose numbers are no defaults, in evaluation mode."""
    norm = kind(width).double().eval()
    for values in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        nn.init.uniform_(values, 0.5, 2.0)
    return norm


def folded_after(norm, layer):
    """Follow the advice: fold a normalisation into the layer after it."""
    s = norm.weight / (norm.running_var + norm.eps).sqrt()
    shape, layer = (1, -1, *(1,) * (layer.weight.ndim - 2)), copy.deepcopy(layer)
    grown = (layer.weight * (norm.bias - s * norm.running_mean).view(shape)).flatten(1).sum(1)
    layer.bias = nn.Parameter(layer.bias + grown)
    layer.weight = nn.Parameter(layer.weight * s.view(shape))
    return layer


CONV, POINTWISE = nn.Conv2d(2, 3, 3, padding=1), [nn.Conv2d(3, 2, 1), nn.Flatten()]
DENSE, TOP = [nn.Flatten(), nn.Linear(32, 5)], [nn.ReLU(), nn.Linear(5, 2)]


@pytest.mark.parametrize(
    ("before", "norm", "after", "advice"),
    [
        ([CONV], (nn.BatchNorm2d, 3), [nn.ReLU(), nn.Flatten(), nn.Linear(48, 2)], "conv_bn"),
        (DENSE, (nn.BatchNorm1d, 5), TOP, "linear_bn"),
        ([CONV, nn.ReLU()], (nn.BatchNorm2d, 3), POINTWISE, None),
        ([CONV, nn.ReLU(), nn.MaxPool2d(2)], (nn.BatchNorm2d, 3), POINTWISE, None),
        ([CONV, nn.ReLU(), nn.Flatten()], (nn.BatchNorm1d, 48), [nn.Linear(48, 2)], None),
        ([], (nn.BatchNorm2d, 2), [nn.Conv2d(2, 2, 1), nn.Flatten()], None),
    ],
    ids=["convolution", "linear", "ReLU", "pooling", "flatten", "first"],
)
def test_the_advice_for_batch_normalisation_keeps_the_outputs(before, norm, after, advice):
    torch.manual_seed(0)
    norm = trained_norm(*norm)
    before, after = (copy.deepcopy(nn.Sequential(*p)).double().eval() for p in (before, after))
    model, x = nn.Sequential(*before, norm, *after), torch.rand(5, 2, 4, 4).double()
    with pytest.raises(ValueError) as caught:
        from_torch(model, (2, 4, 4))
    if advice is None:
        assert "folded into the layer after it" in str(caught.value)
        folded = nn.Sequential(*before, folded_after(norm, after[0]), *after[1:])
    else:
        fuse = f"fuse_{advice}_eval"
        where = f"module '{len(before) - 1}', by torch.nn.utils.{fuse}"
        assert f"folded into {where}" in str(caught.value)
        fused = getattr(nn.utils, fuse)(before[-1], norm)
        folded = nn.Sequential(*before[:-1], fused, *after)
    theta = from_torch(folded, (2, 4, 4))
    assert np.allclose(theta.net.forward(theta, x), model(x).detach(), rtol=1e-12)


def test_a_module_that_serves_two_layers_is_refused():
    layer = nn.Linear(4, 4)
    model = nn.Sequential(nn.Flatten(), layer, nn.Tanh(), layer)
    with pytest.raises(ValueError, match=r"'3' .*expected a weight of its own, got that of .* '1'"):
        from_torch(model, (1, 4))
    model[3] = copy.deepcopy(layer)
    assert from_torch(model, (1, 4)).net.depth == 2


@dataclass(frozen=True)
class Bent(ts.ReLU):
    """A ReLU that is another function."""

    def __call__(self, z):
        return abs(z)


@pytest.mark.parametrize(
    "sigma", [ts.SmoothActivation("cube", lambda z: z**3, lambda z: 3 * z * z), Bent()], ids=str
)
def test_an_activation_of_the_users_own_is_refused_by_name(sigma):
    theta = Network((1, 2), [D(2), D(1)], sigma).zeros()
    with pytest.raises(ValueError, match=f"activation: expected .* got {re.escape(str(sigma))}"):
        to_torch(theta)


# PyTorch is optional


def test_the_package_does_not_import_pytorch():
    ran = run_python("-c", "import sys, tinyspur; sys.exit('torch' in sys.modules)")
    assert ran.returncode == 0, ran.stderr


def test_without_pytorch_one_line_says_how_to_install_it():
    ran = run_python("-c", "import sys; sys.modules['torch'] = None\nfrom tinyspur import interop")
    assert ran.returncode == 1
    last = ran.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: tinyspur.interop needs PyTorch (pip install torch): ")


def test_every_activation_that_can_be_saved_has_a_module():
    from tinyspur.engine.activations import KNOWN, Identity

    kinds = {Identity, *(type(sigma) for sigma in ACTIVATIONS)}
    assert set(interop.ACTIVATIONS) == set(KNOWN.values()) == kinds
