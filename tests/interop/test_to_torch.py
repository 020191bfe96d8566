"""Networks become models that compute the same, of PyTorch's own modules where it has them."""

import re
from dataclasses import dataclass

import numpy as np
import pytest
import strict_device
import torch
from interop_problems import ACTIVATIONS, NETWORKS, D, numbers, over_networks, problem, torch_risk
from shared import close, run_python
from torch import nn

import tinyspur as ts
from tinyspur import interop
from tinyspur.engine.losses import CrossEntropy, SquaredLoss
from tinyspur.engine.network import Network
from tinyspur.interop import from_torch, to_torch


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


@pytest.mark.parametrize("sigma", [ts.ReLU(), *ACTIVATIONS], ids=str)
def test_activations_agree_far_from_zero_too(sigma):
    z = np.concatenate([np.linspace(-60, 60, 4001), [-700.0, 19.9, 20.1, 39.9, 40.1, 700.0]])
    net = Network((1, 1), [D(1), D(1)], sigma)
    identity = net.zeros()
    identity.vector[[0, 2]] = 1
    found = to_torch(identity)(torch.tensor(z[:, None, None])).detach().numpy()[:, 0]
    np.testing.assert_allclose(found, sigma(z), rtol=1e-15, atol=1e-15)


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


def test_without_pytorch_one_line_says_how_to_install_it():
    ran = run_python("-c", "import sys; sys.modules['torch'] = None\nfrom tinyspur import interop")
    assert ran.returncode == 1
    last = ran.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: tinyspur.interop needs PyTorch (pip install torch): ")


def test_every_activation_that_can_be_saved_has_a_module():
    from tinyspur.engine.activations import KNOWN, Identity

    kinds = {Identity, *(type(sigma) for sigma in ACTIVATIONS)}
    assert set(interop.ACTIVATIONS) == set(KNOWN.values()) == kinds
