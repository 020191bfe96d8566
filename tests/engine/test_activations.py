"""Activations and their derivatives are PyTorch's, on hosts and devices, and name themselves."""

import re

import mpmath
import numpy as np
import pytest
import torch
import torch_twin
from activation_problems import ALL, BOUNDED, mish, mish_slope
from scipy.special import ndtr

from tinyspur.certificates import certify_cell, certify_relays
from tinyspur.constructions.embedding import (
    embed,
    linear_minimum,
    linear_subnetwork,
    subnetwork,
)
from tinyspur.constructions.nontrivial import nontrivial_minimum
from tinyspur.constructions.piecewise_linear import Groups, gated_minimum, spurious_pair
from tinyspur.constructions.relayed_pair import pair_tower
from tinyspur.constructions.relays import rescale
from tinyspur.constructions.towers import Tower
from tinyspur.constructions.witnesses import revive
from tinyspur.datasets.samples import TrainingSet
from tinyspur.engine.activations import (
    ELU,
    GELU,
    Activation,
    Arctan,
    ReLU,
    Sigmoid,
    SiLU,
    Sine,
    Softplus,
    Swish,
    Tanh,
    activation_named,
)
from tinyspur.engine.backend import to_numpy
from tinyspur.engine.floats import EPSILON
from tinyspur.engine.losses import SquaredLoss
from tinyspur.engine.network import Network
from tinyspur.engine.parameters import Parameters
from tinyspur.engine.passes import margins, steps
from tinyspur.engine.user_activations import SmoothActivation
from tinyspur.layers import AveragePool, Conv, Dense, MaxPool
from tinyspur.refutations.escapes import kink_escape

over_all = pytest.mark.parametrize("sigma", ALL, ids=repr)
over_smooth = pytest.mark.parametrize("sigma", ALL[2:], ids=repr)
FAR = np.array([20.5, 37.0, 100.0, 710.0, 745.5, 1e3, 1e4])
Z = np.concatenate([-FAR[::-1], np.linspace(-9, 9, 361), [1e-9, -1e-9, 1e-300], FAR])


def parts(sigma, z):
    """Return sigma, sigma' and sigma'' at z."""
    return sigma(z), sigma.derivative(z), sigma.second_derivative(z)


def torch_parts(sigma, z):
    """Return the same by PyTorch, differentiated twice."""
    z = torch.tensor(z, requires_grad=True)
    o = torch_twin.activation(**sigma.spec)(z)
    (first,) = torch.autograd.grad(o.sum(), z, create_graph=True)
    if not first.requires_grad:
        return o.detach().numpy(), first.numpy(), np.zeros(z.shape)
    (second,) = torch.autograd.grad(first.sum(), z, materialize_grads=True)
    return o.detach().numpy(), first.detach().numpy(), second.numpy()


# Values and derivatives


@over_all
def test_values_and_both_derivatives_are_those_of_pytorch(sigma):
    with np.errstate(all="raise", under="ignore"):
        found = parts(sigma, Z.reshape(1, -1))
    for values, expected in zip(found, torch_parts(sigma, Z), strict=True):
        assert values.shape == (1, len(Z))
        close = abs(values[0] - expected) <= 1e-12 * (1 + abs(expected))
        assert (close | (isinstance(sigma, ELU) & (Z == 0))).all()


@over_all
def test_the_derivatives_are_those_of_differences(sigma):
    z, h = Z[(abs(Z) > 1e-3) & (abs(Z) < 25)], 1e-5
    for before, after in ((sigma, sigma.derivative), (sigma.derivative, sigma.second_derivative)):
        differences = (before(z + h) - before(z - h)) / (2 * h)
        np.testing.assert_allclose(after(z), differences, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("far", [False, True])
def test_values_are_those_of_many_digits(far):
    z = np.concatenate([-FAR[:-2], FAR]) if far else 10.0 ** np.linspace(-12, 1.5, 60)
    z = z if far else np.concatenate([z, -z])
    functions = {
        Sigmoid(): lambda t: 1 / (1 + mpmath.exp(-t)),
        Tanh(): mpmath.tanh,
        Softplus(): lambda t: mpmath.log1p(mpmath.exp(t)),
        SiLU(): lambda t: t / (1 + mpmath.exp(-t)),
        GELU(): lambda t: t * mpmath.ncdf(t),
        ELU(): lambda t: t if t > 0 else mpmath.expm1(t),
    }
    with mpmath.workdps(400), np.errstate(all="raise", under="ignore"):
        for sigma, function in functions.items():
            expected = np.array([float(function(mpmath.mpf(t))) for t in z])
            slack = 2 * z * z if isinstance(sigma, GELU) else 0  # of exp(-z^2 / 2)
            close = abs(sigma(z) - expected) <= (4 + slack) * EPSILON * abs(expected)
            assert (close | (abs(expected) < 1e-300)).all()


def test_tails_keep_their_digits():
    z = np.array([-40.0])
    tail, two = np.exp(z), np.exp(2 * z)
    for values, expected in (
        (Sigmoid()(z), tail),
        (Sigmoid().derivative(-z), tail),
        (Sigmoid().second_derivative(-z), -tail),
        (Tanh().derivative(-z), 4 * two),
        (Tanh().second_derivative(z), 8 * two),
        (Softplus()(z), tail),
        (SiLU()(z), z * tail),
        (SiLU().derivative(z), (1 + z) * tail),
        (GELU()(z / 2), z / 2 * ndtr(z / 2)),
        (ELU()(z * 1e-15), z * 1e-15),
    ):
        np.testing.assert_allclose(values, expected, rtol=1e-12)


@over_all
def test_single_precision_stays_single(sigma):
    z = np.array([*np.linspace(-6, 6, 49), -1e4, -100, 100, 1e4], np.float32)
    with np.errstate(all="raise", under="ignore"):
        found = parts(sigma, z)
    for values, expected in zip(found, parts(sigma, z.astype(np.float64)), strict=True):
        assert values.dtype == np.float32
        np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-6)


def test_relu_alone_is_piecewise_linear():
    assert [sigma.piecewise_linear for sigma in ALL] == [True] * 2 + [False] * (len(ALL) - 2)
    assert not ReLU(0.2).second_derivative(Z).any()


def test_the_activation_leaves_positive_numbers_and_flattens_the_others():
    z = np.array([-2.0, 0.0, 3.0])
    assert ReLU()(z).tolist() == [0, 0, 3]
    assert ReLU().derivative(z).tolist() == [0, 0, 1]
    assert ReLU(0.5)(z).tolist() == [-1, 0, 3]
    assert ReLU(0.5).derivative(z).tolist() == [0.5, 0.5, 1]


# Bounds and changes


def torch_third(sigma, z):
    """Return sigma'' and sigma''' at z, by PyTorch."""
    z = torch.tensor(z, requires_grad=True)
    o, found = torch_twin.activation(**sigma.spec)(z), []
    for _ in range(3):
        (o,) = torch.autograd.grad(o.sum(), z, create_graph=True)
        found.append(o.detach().numpy())
    return found[1:]


@pytest.mark.parametrize("sigma", BOUNDED, ids=repr)
def test_bounds_are_those_of_the_second_and_third_derivatives_to_a_percent(sigma):
    z = np.linspace(-30, 30, 600_001)
    for bound, values in zip(sigma.bounds, torch_third(sigma, z), strict=True):
        largest = abs(values).max()
        assert largest <= bound <= 1.01 * largest
        assert abs(values[abs(z) > 25]).max() <= bound


@pytest.mark.parametrize("sigma", BOUNDED, ids=repr)
def test_changes_bound_what_happens_to_derivatives_nearby(sigma):
    rng = np.random.default_rng(0)
    z, r = rng.uniform(-6, 6, 300), 10.0 ** rng.uniform(-6, 1, 300)
    slopes, bends = sigma.changes(z, r)
    assert slopes.shape == bends.shape == z.shape
    near = z + r * np.linspace(-1, 1, 401)[:, None]
    for bound, f in ((slopes, sigma.derivative), (bends, sigma.second_derivative)):
        change = abs(f(near) - f(z)).max(axis=0)
        assert (change <= bound * (1 + 1e-9) + 1e-15).all()
        assert (change > 0.5 * bound).any()
        assert not sigma.changes(z, 0 * r)[0].any()


@pytest.mark.parametrize("alpha", [1.0, 0.5, 3.0])
def test_changes_of_elu_are_exact_up_to_its_kink_and_infinite_from_there(alpha):
    sigma, rng = ELU(alpha), np.random.default_rng(0)
    z = rng.uniform(-4, 4, 300)
    r = abs(z) * rng.uniform(0.01, 0.99, 300)
    near = z + r * np.linspace(-1, 1, 401)[:, None]
    for bound, f in zip(
        sigma.changes(z, r), (sigma.derivative, sigma.second_derivative), strict=True
    ):
        change = abs(f(near) - f(z)).max(axis=0)
        np.testing.assert_allclose(bound, change, rtol=1e-9, atol=1e-15)
        assert not bound[z > 0].any()
        assert bound[z < 0].all()
    for reach in (abs(z), 1.01 * abs(z), 100 + 0 * z):
        for bound in sigma.changes(z, reach):
            assert np.isinf(bound).all()
    for bound in sigma.changes(np.zeros(1), np.array([1e-300])):
        assert np.isinf(bound).all()
    assert sigma.bounds == (
        np.inf,
        np.inf,
    )  # its second derivative jumps, with alpha != 1 the first


@pytest.mark.parametrize("beta", [0.1, 1.0, 7.0])
def test_bounds_of_swish_scale_with_beta(beta):
    for bound, values in zip(
        Swish(beta).bounds,
        torch_third(Swish(beta), np.linspace(-30, 30, 300_001) / beta),
        strict=True,
    ):
        assert abs(values).max() <= bound <= 1.01 * abs(values).max()


# Descriptions


@over_all
def test_a_description_gives_the_activation_back(sigma):
    again = activation_named(sigma.spec)
    assert again == sigma
    assert type(again) is type(sigma)
    assert again.spec == sigma.spec
    assert [other for other in ALL if other == sigma] == [sigma]
    assert isinstance(sigma, Activation)
    assert hash(sigma) == hash(again)


def test_descriptions_are_the_documented_ones():
    assert [ReLU().spec, ReLU(0.2).spec] == [{"name": "relu"}, {"name": "leaky_relu", "slope": 0.2}]
    assert ELU().spec == {"name": "elu", "alpha": 1.0}
    assert Swish(2.5).spec == {"name": "swish", "beta": 2.5}
    names = ["sigmoid", "tanh", "softplus", "silu", "gelu", "sine", "arctan"]
    plain = (Sigmoid(), Tanh(), Softplus(), SiLU(), GELU(), Sine(), Arctan())
    assert [sigma.spec for sigma in plain] == [{"name": name} for name in names]


@pytest.mark.parametrize(
    "spec",
    [
        {"name": "mish"},
        {"name": "Tanh"},
        {"name": "tanh", "alpha": 1.0},
        {"name": "elu"},
        {"name": "elu", "beta": 1.0},
        {"name": "swish", "beta": 1.0, "alpha": 1.0},
        {"name": "relu", "slope": 0.0},
        {"name": "relu", "slope": 0.5},
        {"name": "leaky_relu"},
        {"name": ["tanh"]},
        {"slope": 0.1},
        {},
        "tanh",
        None,
        Tanh(),
    ],
    ids=str,
)
def test_a_wrong_description_is_refused_with_those_that_are_known(spec):
    for read in (activation_named, network_of):
        with pytest.raises(
            ValueError, match=r"expected one of relu, leaky_relu \(slope\), sig.*got"
        ):
            read(spec)


def network_of(spec):
    layers = [{"type": "dense", "width": 2}]
    return Network.from_spec({"input": [1, 3], "activation": spec, "layers": layers})


@pytest.mark.parametrize("value", [0, -1.0, np.inf, np.nan, "1", None])
def test_parameters_out_of_range_are_refused(value):
    for spec in ({"name": "elu", "alpha": value}, {"name": "swish", "beta": value}):
        with pytest.raises(ValueError, match=r"finite (alpha|beta) > 0, got"):
            network_of(spec)


@pytest.mark.parametrize("wrong", [np.tanh, Tanh, "tanh", 0, {"name": "tanh"}], ids=str)
def test_a_network_takes_activations_only(wrong):
    with pytest.raises(ValueError, match="expected an activation as ReLU"):
        Network((1, 3), [Dense(2)], wrong)


# Devices


OWN = SmoothActivation("mish", mish, mish_slope)


@pytest.mark.parametrize("sigma", [*ALL, OWN], ids=repr)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_activations_on_a_device_are_those_of_numpy(sigma, dtype, device):
    z = Z.astype(dtype).reshape(14, -1)
    for there, here in zip(parts(sigma, device.asarray(z)), parts(sigma, z), strict=True):
        assert isinstance(there, device.ndarray)
        assert there.dtype == here.dtype == dtype
        rounding = 20 * np.finfo(dtype).eps
        np.testing.assert_allclose(to_numpy(there), here, rtol=rounding, atol=rounding)


@pytest.mark.parametrize("sigma", [*ALL, OWN], ids=repr)
def test_networks_on_a_device_are_those_of_numpy(sigma, device):
    rng, loss = np.random.default_rng(0), SquaredLoss()
    net = Network((2, 4, 4), [Conv(3), MaxPool(2), Conv(2), AveragePool(2), Dense(3)], sigma)
    theta, v = (Parameters(net, rng.normal(size=net.size)) for _ in range(2))
    data = TrainingSet(rng.normal(size=(5, *net.input_shape)), rng.normal(size=(5, 3)))
    there, along = theta.to(device), v.to(device)
    for found, expected in (
        (net.forward(there, data.x), net.forward(theta, data.x)),
        (net.gradient(there, data, loss).vector, net.gradient(theta, data, loss).vector),
        (
            net.hessian_product(there, along, data, loss).vector,
            net.hessian_product(theta, v, data, loss).vector,
        ),
    ):
        assert isinstance(found, device.ndarray)
        np.testing.assert_allclose(to_numpy(found), expected, atol=1e-12 * abs(expected).max())


# What needs kinks


@over_smooth
def test_what_needs_pieces_refuses_smooth_activations(sigma):
    rng, loss = np.random.default_rng(0), SquaredLoss()
    net = Network((1, 4, 4), [Conv(3), Conv(4), Conv(4), Dense(2)], sigma)
    gates = Network((1, 4, 4), [Conv(3), Dense(20), Dense(2)], sigma)
    data = TrainingSet(rng.normal(size=(30, 1, 4, 4)), rng.normal(size=(30, 2)))
    theta, phi = net.zeros(), Network((1, 4, 4), [Conv(3), Dense(2)], sigma)
    groups, got = Groups.equal(data.x, np.ones(16), 2), re.escape(repr(sigma))
    for what, build in (
        ("affine map", lambda: net.affine_map(theta, data.x[0])),
        ("cell certificate", lambda: certify_cell(theta, data, loss)),
        ("relay certificate", lambda: certify_relays(theta, data, loss, 2)),
        ("escape from the kink", lambda: kink_escape(theta, data, loss)),
        ("construction", lambda: Tower(net, 1, 3)),
        ("construction", lambda: pair_tower(net)),
        ("construction", lambda: subnetwork(net)),
        ("construction", lambda: linear_minimum(net, data, loss)),
        ("construction", lambda: linear_minimum(net, data, loss, "literal")),
        ("construction", lambda: linear_subnetwork(phi, data, loss)),
        ("construction", lambda: embed(net, phi.zeros(), data.x)),
        ("construction", lambda: nontrivial_minimum(net, data, loss)),
        ("gates", lambda: gated_minimum(gates, data, loss, groups)),
        ("gates", lambda: spurious_pair(gates, data, loss, groups)),
        ("rescale", lambda: rescale(theta, 1, 2.0)),
        ("revive", lambda: revive(theta, data, loss, 1, 0)),
    ):
        with pytest.raises(ValueError, match=rf"^{what}: expected .*ReLU.*, got {got}"):
            build()


@over_smooth
def test_a_smooth_activation_has_no_pattern_and_max_pooling_keeps_its_own(sigma):
    rng = np.random.default_rng(0)
    net = Network((1, 4, 4), [Conv(3), MaxPool(2), Conv(2), Dense(2)], sigma)
    theta = Parameters(net, rng.normal(size=net.size))
    x = rng.normal(size=(5, 1, 4, 4))
    assert (net.active_layers, net.kinked_layers, net.pattern_layers) == ((1, 3), (), (2,))
    assert list(net.patterns(theta, x)) == [2]
    _, columns = next(net.chunks(theta, x))
    found = margins(list(steps(theta, columns)))
    assert list(found) == [2]
    assert np.isfinite(found[2]).all()  # whatever is below moves
    plain = Network((1, 4, 4), [Conv(3), AveragePool(2), Dense(2)], sigma).zeros()
    assert plain.net.patterns(plain, x) == {}
    assert margins(list(steps(plain, columns))) == {}
