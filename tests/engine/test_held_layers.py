"""Units held in residual blocks, after poolings and in windows that overlap."""

import numpy as np
import pytest
import strict_device
import torch
from block_problems import KINDS, at_its_kinks, network, problem
from shared import close, random_theta

from tinyspur import interop
from tinyspur.datasets.samples import TrainingSet
from tinyspur.engine.activations import Identity, ReLU
from tinyspur.engine.backend import to_numpy
from tinyspur.engine.equal_kinks import EqualKinks
from tinyspur.engine.held import Held
from tinyspur.engine.losses import AbsoluteLoss, CrossEntropy, SquaredLoss
from tinyspur.engine.network import Network
from tinyspur.engine.parameters import Parameters
from tinyspur.layers import AveragePool, Conv, Dense, MaxPool, Residual


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_jacobian_and_hessian_are_the_derivatives_of_l(kind):
    number = list(KINDS).index(kind)
    loss = [SquaredLoss(), AbsoluteLoss(), CrossEntropy()][number % 3]
    theta, held = problem(kind, 0.2 * (number % 2), loss, seed=1)
    net, rng = theta.net, np.random.default_rng(3)
    t, v = rng.normal(size=len(held.kinks)), rng.normal(size=net.size)
    v *= 1e-5 / np.linalg.norm(v)
    here = held.gradient(theta, t)
    above, below = (held.gradient(Parameters(net, theta.vector + s * v), t) for s in (1, -1))
    change = above.risk - below.risk + t @ (above.values - below.values)
    close(2 * here.gradient @ v, change, 1e-7, 1e-12)
    close(2 * held.jacobian(theta) @ v, above.values - below.values, 1e-7, 1e-11)
    close(2 * held.hessian(theta, t) @ v, above.gradient - below.gradient, 1e-6, 1e-11)


def torch_risk(theta, data, slopes):
    """Return R_t in PyTorch, with slopes t at (layer, unit, sample), as a function of a vector."""
    model, x, y = interop.to_torch(theta).double(), *map(torch.as_tensor, (data.x, data.y))
    parameters, kinds = dict(model.named_parameters()), torch.nn.ReLU | torch.nn.LeakyReLU
    activations = [m for m in model.modules() if isinstance(m, kinds | torch.nn.Tanh)]

    def risk(vector):
        parts = vector.split([p.numel() for p in parameters.values()])
        pairs = zip(parameters.items(), parts, strict=True)
        parts = {name: part.reshape(p.shape) for (name, p), part in pairs}
        called = iter(theta.net.active_layers)

        def hook(module, given, out):
            layer, z = next(called), given[0].flatten(1)
            for (at, unit, sample), t in slopes.items():
                if at == layer:
                    one = torch.zeros_like(z)
                    one[sample, unit] = 1
                    out = out + (one * (t * z - out.flatten(1))).reshape(out.shape)
            return out

        hooks = [module.register_forward_hook(hook) for module in activations]
        o = torch.func.functional_call(model, parts, (x,))
        for one in hooks:
            one.remove()
        return 0.5 * ((o - y) ** 2).sum() / len(x)

    return risk


OF_UNITS = [kind for kind in KINDS if not network(kind).max_layers]


@pytest.mark.parametrize("kind", OF_UNITS)
def test_l_is_the_risk_with_slopes_along_the_kinks_as_pytorch_has_it(kind):
    start, held = problem(kind, 0.1, seed=2)
    theta, net, K = at_its_kinks(start, held), start.net, len(held.kinks)
    multipliers = np.random.default_rng(0).normal(size=K)
    here = held.gradient(theta, multipliers)
    slopes = {
        (kink.layer, kink.units[0], kink.samples[0]): t
        for kink, t in zip(held.kinks, multipliers / here.signals, strict=True)
    }
    risk = torch_risk(theta, held.data, slopes)
    vector = torch.tensor(theta.vector, requires_grad=True)
    close(here.gradient, torch.autograd.grad(risk(vector), vector)[0].numpy(), 1e-11, 1e-13)
    hessian = torch.autograd.functional.hessian(risk, vector).numpy()
    tangent = np.linalg.svd(held.jacobian(theta))[2][K:] if K else np.eye(net.size)
    found = held.hessian(theta, multipliers)
    close(tangent @ found @ tangent.T, tangent @ hessian @ tangent.T, 1e-10, 1e-12)


# Equal kinks


@pytest.mark.parametrize("kind", [k for k in KINDS if "scale" not in k])
def test_what_stands_for_functions_agrees_only_where_they_do_nearby(kind):
    rng = np.random.default_rng(1)
    net = network(kind, 0.0)
    x = rng.integers(0, 2, size=(8, *net.input_shape)).astype(float)
    x[3:] = x[:5]
    x[0] = 0
    data, theta = TrainingSet(x, np.zeros((8, 2))), random_theta(net, 2)
    check_functions(theta, data)


def check_functions(theta, data):
    """Check that z^l agree, or are 0, at points nearby where what stands for them does or is 0."""
    held, rng, seen = Held(theta.net, data, SquaredLoss()), np.random.default_rng(0), []
    equal = EqualKinks(theta, data, held)
    for _ in range(3):
        near = Parameters(theta.net, theta.vector + 1e-7 * rng.normal(size=theta.net.size))
        seen.append(held.forward(near)[2].z)
    for layer in theta.net.bent_layers:
        functions, P = equal.functions[layer], theta.net.positions(layer)
        z = np.stack([z[layer - 1][: len(functions)] for z in seen])
        assert (z[:, functions == 0] == 0).all()
        for first in range(0, len(functions), P):
            labels, values = functions[first : first + P].ravel(), z[:, first : first + P]
            values = values.reshape(3, -1)
            same = labels[:, None] == labels
            assert (abs(values[:, :, None] - values[:, None])[:, same] < 1e-12).all()
    return equal


def test_an_average_that_is_not_0_is_not_taken_for_padding():
    """All averages are one function: next to the padding a convolution reads another one."""
    net = Network((1, 6), [Conv(1, 3, padding="valid"), AveragePool(2), Conv(1), Dense(1)])
    theta = Parameters(net, np.random.default_rng(0).uniform(0.5, 1.0, net.size))
    equal = check_functions(theta, TrainingSet(np.ones((1, 1, 6)), [0.0]))
    assert len(equal.kink(3, 0, 0).units) == 1


def test_equal_samples_have_equal_kinks_in_sums_and_after_poolings():
    rng = np.random.default_rng(0)
    for layers in (
        [Dense(3), Residual([Dense(2), Dense(3)]), Dense(1)],
        [Conv(2, activation=None), AveragePool(3, activation=ReLU(0.1)), Dense(1)],
    ):
        net = Network((1, 6), layers, ReLU(0.1))
        x = np.repeat(rng.normal(size=(4, 1, 6)), 2, axis=0)
        data, theta = TrainingSet(x, np.zeros((8, 1))), random_theta(net, 1)
        equal, layer = check_functions(theta, data), net.bent_layers[-1]
        assert equal.kink(layer, 1, 3).samples.tolist() == [2, 3]


def test_relu_changes_nothing_where_poolings_and_sums_hand_on_what_is_0_or_more():
    relu, none = ReLU(), Identity()
    chain = [Conv(2), AveragePool(2, activation=relu), Conv(2, activation=none)]
    net = Network((1, 8), [*chain, MaxPool(2, activation=relu), Dense(2)])
    assert net.kinked_layers == (1, 2, 5) and net.bent_layers == (1, 5)
    blocks = [Residual([Dense(3)]), Residual([Dense(3, activation=relu)]), Dense(2)]
    net = Network((1, 3), [Dense(3), *blocks])
    assert net.kinked_layers == (1, 3, 4, 5) and net.bent_layers == (1, 3, 4)
    net = Network((1, 8), chain, ReLU(0.1))
    assert net.kinked_layers == net.bent_layers == (1, 2)


@pytest.mark.parametrize("kind", ["pooling in a block", "overlapping windows", "block in a block"])
def test_units_held_on_a_device_are_those_of_numpy(kind):
    theta, held = problem(kind, 0.2, seed=1)
    t, there = np.ones(len(held.kinks)), theta.to(strict_device)
    for find in (lambda at, t: held.gradient(at, t).gradient, held.hessian):
        found = find(there, strict_device.asarray(t))
        assert isinstance(found, strict_device.ndarray)
        close(to_numpy(found), find(theta, t), 1e-12)
    close(to_numpy(held.jacobian(there)), held.jacobian(theta), 1e-12)
