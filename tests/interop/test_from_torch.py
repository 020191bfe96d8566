"""Models come in as they are, bit for bit, and go out again."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from interop_problems import NETWORKS, A, C, D, M, Written, cnn, over_networks, problem, torch_risk
from shared import close
from torch import nn

import tinyspur as ts
from tinyspur.datasets.samples import TrainingSet
from tinyspur.engine.losses import CrossEntropy, SquaredLoss
from tinyspur.engine.network import Network
from tinyspur.interop import from_torch, to_torch

# There and back


def test_float32_stays_float32():
    theta, data, _ = problem(NETWORKS["max pooling"], dtype=np.float32)
    model = to_torch(theta)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    back = from_torch(model, (2, 4, 8))
    assert back.vector.dtype == np.float32
    assert back.vector.tobytes() == theta.vector.tobytes()
    close(theta.net.forward(theta, data.x), model(torch.tensor(data.x)).detach().numpy(), 1e-5)


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


@pytest.mark.parametrize("padding", ["same", "valid", 0])
def test_a_convolution_of_size_one_needs_no_padding_in_any_words(padding):
    model = nn.Sequential(nn.Conv2d(2, 3, 1, padding=padding), nn.Flatten()).double()
    x = torch.randn(4, 2, 3, 5).double()
    theta = from_torch(model, (2, 3, 5))
    assert np.allclose(theta.net.forward(theta, x), model(x).detach(), rtol=1e-13)


# What changes nothing


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


def test_weights_may_be_buffers_and_say_the_type_as_parameters_do():
    model, weight = Written(lambda m, x: F.linear(x.flatten(1), m.weight)), torch.randn(3, 32)
    for name in ("conv", "other", "linear", "small"):
        delattr(model, name)
    model.register_buffer("weight", weight.double())
    assert from_torch(model, (2, 4, 4)).vector.tobytes() == model.weight.numpy().tobytes()


def test_models_come_in_and_go_out_on_the_host_whatever_the_default_device():
    model = cnn(first=nn.BatchNorm2d(3)).double().eval()
    torch.set_default_device("meta")
    try:
        again = to_torch(from_torch(model, (2, 8, 8)))
    finally:
        torch.set_default_device(None)
    numbers = [*again.parameters(), *again.buffers()]
    assert {tensor.device.type for tensor in numbers} == {"cpu"}
    x = torch.randn(3, 2, 8, 8).double()
    close(again(x).detach().numpy(), model(x).detach().numpy())


# Forward passes of any form


def of_a_list(model, x):
    x = model.conv(x)
    return model.top(sum([x, model.other(x)]))


def in_place(model, x):
    x = model.conv(x)
    y = model.other(F.relu_(x))  # x is positive from here on
    y += x
    return model.top(y)


def with_notes(model, x):
    assert x.dim() == 4 and x.size(1) == 2 and x.dtype == model.conv.weight.dtype
    model.seen = model.conv(x.to(model.conv.weight.device))
    return model.top(model.seen.contiguous().clone())


N, R = ts.Identity, ts.Residual
CONV, DENSE = C(3, activation=N()), D(4)
WAYS = {
    "functions": (lambda m, x: m.top(torch.relu(m.conv(x))), [C(3), DENSE]),
    "methods": (lambda m, x: m.top(m.conv(x).relu()), [C(3), DENSE]),
    "a view": (lambda m, x: m.linear(m.conv(x).view(-1, 48)), [CONV, DENSE]),
    "a reshape": (lambda m, x: m.linear(m.conv(x).reshape(len(x), -1)), [CONV, DENSE]),
    "nothing between": (lambda m, x: m.top(m.other(m.conv(x))), [CONV, CONV, DENSE]),
    "different activations": (
        lambda m, x: m.top(torch.tanh(m.other(F.elu(m.conv(x), 0.5)))),
        [C(3), C(3, activation=ts.Tanh()), DENSE],
    ),
    "two activations": (
        lambda m, x: m.top(torch.tanh(torch.relu(m.conv(x)))),
        [C(3), ts.Same(activation=ts.Tanh()), DENSE],
    ),
    "an activation at the end": (
        lambda m, x: torch.sigmoid(m.top(torch.relu(m.conv(x)))),
        [C(3), D(4, activation=ts.Sigmoid())],
    ),
    "an activation after pooling": (
        lambda m, x: m.small(F.relu(F.max_pool2d(m.conv(x), 4)).flatten(1)),
        [CONV, M(4, activation=ts.ReLU()), DENSE],
    ),
    "a mean": (lambda m, x: m.small(m.conv(x).mean((2, 3))), [CONV, A(4), DENSE]),
    "a mean that keeps axes": (
        lambda m, x: m.small(m.conv(x).mean((-1, -2), keepdim=True).squeeze(3).squeeze(2)),
        [CONV, A(4), DENSE],
    ),
    "a pooling to one entry": (
        lambda m, x: m.small(F.adaptive_max_pool2d(m.conv(x), 1).squeeze()),
        [CONV, M(4), DENSE],
    ),
    "a sum": (
        lambda m, x: m.top((y := m.conv(x)) + m.other(y)),
        [CONV, R([C(3)], activation=N()), DENSE],
    ),
    "a sum of a list": (of_a_list, [CONV, R([C(3)], activation=N()), DENSE]),
    "a sum of functions": (
        lambda m, x: m.top(F.relu(torch.add(y := F.relu(m.conv(x)), F.max_pool2d(y, 3, 1, 1)))),
        [C(3), R([M(3, 1, 1)]), DENSE],
    ),
    "a shortcut with an activation": (
        lambda m, x: m.top(m.other(y := m.conv(x)) + torch.relu(y)),
        [CONV, R([C(3)], [ts.Same(activation=ts.ReLU())], activation=N()), DENSE],
    ),
    "a sum changed in place": (in_place, [C(3), R([C(3)], activation=N()), DENSE]),
    "what changes no numbers": (with_notes, [CONV, DENSE]),
    "padding as a function": (
        lambda m, x: m.top(F.conv2d(F.pad(x, (1, 1, 1, 1)), m.conv.weight, m.conv.bias)),
        [CONV, DENSE],
    ),
    "dropout in evaluation mode": (
        lambda m, x: m.top(F.dropout(m.conv(x), 0.5, m.training)),
        [CONV, DENSE],
    ),
    "no gradients": (torch.inference_mode()(lambda m, x: m.top(m.conv(x))), [CONV, DENSE]),
}


@pytest.mark.parametrize("name", WAYS)
def test_a_forward_pass_of_known_functions_comes_in(name):
    way, layers = WAYS[name]
    model = Written(way).double().eval()
    x = torch.randn(4, 2, 4, 4).double()
    theta = from_torch(model, (2, 4, 4))
    with torch.no_grad():
        close(theta.net.forward(theta, x.numpy()), model(x).numpy(), 1e-12)
        again = to_torch(theta)
        close(again(x).numpy(), model(x).numpy(), 1e-12)
    back = from_torch(again, (2, 4, 4))
    assert back.net == theta.net and back.vector.tobytes() == theta.vector.tobytes()
    assert theta.net == Network((2, 4, 4), layers, theta.net.activation)


def test_hooks_run_and_may_look():
    model, seen = cnn().double(), []
    model.upper.register_forward_hook(lambda _module, _inputs, out: seen.append(out.shape))
    theta = from_torch(model, (2, 8, 8))
    assert theta.net == from_torch(cnn(), (2, 8, 8)).net
    assert seen


def test_vectors_need_no_maps_around_them():
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 1)).double()
    theta, x = from_torch(model, (4,)), torch.randn(5, 4).double()
    assert theta.net == Network((1, 4), [D(3), D(1)])
    close(theta.net.forward(theta, x.numpy()), model(x).detach().numpy(), 1e-12)


def test_the_model_keeps_its_mode_its_numbers_and_its_memory():
    model = cnn().double().train()
    before = [p.detach().clone() for p in model.parameters()]
    theta = from_torch(model, (2, 8, 8))
    theta.vector += 1
    assert model.training and all(module.training for module in model.modules())
    for parameter, numbers in zip(model.parameters(), before, strict=True):
        assert torch.equal(parameter, numbers) and parameter.grad is None


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
