"""Held units: L, its gradient and its Hessian are those of the risk with slopes at the kinks."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from network_problems import problems
from shared import close, random_theta, twin_gradient

from tinyspur.datasets.samples import TrainingSet
from tinyspur.engine.activations import ReLU, Tanh
from tinyspur.engine.backend import to_numpy
from tinyspur.engine.equal_kinks import EqualKinks
from tinyspur.engine.held import Held, HeldKink
from tinyspur.engine.losses import AbsoluteLoss, CrossEntropy, HuberLoss, SquaredLoss
from tinyspur.engine.network import Network
from tinyspur.engine.parameters import Parameters
from tinyspur.layers import AveragePool, Conv, Dense, MaxPool

NOTHING = np.zeros(0)


def kink(layer, map_, unit, sample, pair=None):
    pairs = None if pair is None else np.array([pair])
    return HeldKink(layer, map_, np.array([unit]), np.array([sample]), pairs)


# Without kinks it is the risk


@settings(max_examples=12, deadline=None, derandomize=True)
@given(problem=problems())
def test_without_kinks_gradient_and_hessian_are_those_of_the_risk(problem):
    net, theta, data, loss = problem
    held = Held(net, data, loss)
    close(held.gradient(theta, NOTHING).gradient, twin_gradient(theta, data, loss), 1e-12, 1e-14)
    v = random_theta(net, 1)
    expected = net.hessian_product(theta, v, data, loss).vector
    close(held.hessian(theta, NOTHING) @ v.vector, expected, 1e-11, 1e-13)
    assert held.gradient(theta, NOTHING).risk == pytest.approx(net.risk(theta, data, loss), 1e-13)


# With kinks: against PyTorch, with slopes in place of multipliers


def risk_with_slopes(vector, x, y, slopes, widths):
    """Return the risk and each o_k of a dense network, with slope t at (layer, unit, sample)."""
    o, start, held = torch.as_tensor(x).T, 0, []
    for layer, (n, below) in enumerate(zip(widths[1:], widths, strict=False), start=1):
        W = vector[start : start + n * below].reshape(n, below)
        b = vector[start + n * below : start + n * (below + 1)]
        start += n * (below + 1)
        z = W @ o + b[:, None]
        if layer == len(widths) - 1:
            return 0.5 * ((z.T - torch.as_tensor(y)) ** 2).sum() / len(x), held
        rows = [list(row) for row in torch.relu(z)]
        for (at, unit, sample), t in slopes.items():
            if at == layer:
                rows[unit][sample] = t * z[unit, sample]
        for at, unit, sample in slopes:
            if at == layer:
                held.append(rows[unit][sample])
        o = torch.stack([torch.stack(row) for row in rows])


def two_layers_at_kinks():
    """Return a net, data and a point whose units at three kinks feed one another."""
    rng = np.random.default_rng(3)
    net = Network((1, 3), [Dense(4), Dense(3), Dense(2)])
    theta, x, y = random_theta(net, 4), rng.normal(size=(6, 3)), rng.normal(size=(6, 2))
    kinks = [kink(1, 0, 0, 2), kink(1, 3, 3, 2), kink(2, 1, 1, 2)]
    held = Held(net, TrainingSet(x, y), SquaredLoss(), kinks)
    for n, layer in enumerate((1, 1, 2)):  # by their biases
        theta.b[layer][kinks[n].map] -= held.forward(theta)[1][n]
    return held, theta, {(1, 0, 2): 0.3, (1, 3, 2): 0.6, (2, 1, 2): 0.45}


def test_values_of_kinks_alone_are_those_of_the_whole_pass():
    held, theta, _ = two_layers_at_kinks()
    away = Parameters(theta.net, theta.vector + 0.1)
    assert held.values(away) == pytest.approx(held.forward(away)[1], abs=1e-14)
    assert (abs(held.values(away)) > 1e-3).all()


def test_l_and_the_risk_with_slopes_have_one_gradient_and_one_hessian_along_the_kinks():
    held, theta, slopes = two_layers_at_kinks()
    x, y = held.data.x.reshape(6, 3), held.data.y
    vector = torch.tensor(theta.vector, requires_grad=True)

    def risk(v):
        return risk_with_slopes(v, x, y, slopes, (3, 4, 3, 2))

    value, outputs = risk(vector)
    signals = torch.stack(torch.autograd.grad(value, outputs, retain_graph=True)).numpy()
    gradient = torch.autograd.grad(value, vector)[0].numpy()
    found = held.gradient(theta, np.array(list(slopes.values())) * signals)
    assert found.risk == pytest.approx(value.item(), 1e-13)
    close(found.values, np.zeros(3), rounding=1e-15)
    close(found.signals, signals, 1e-13)
    close(found.gradient, gradient, 1e-13)
    hessian = torch.autograd.functional.hessian(lambda v: risk(v)[0], vector).numpy()
    rows = held.jacobian(theta)
    tangent = np.linalg.svd(rows)[2][3:]
    here = held.hessian(theta, np.array(list(slopes.values())) * signals)
    close(tangent @ here @ tangent.T, tangent @ hessian @ tangent.T, 1e-12)


def networks_with_kinks(activation):
    """Yield networks with kinks of every kind that they can have."""
    for layers in (
        [Conv(2), AveragePool(2), Conv(3, 3, 2), Dense(2)],
        [Conv(2), MaxPool(2), Dense(3), Dense(2)],
    ):
        net = Network((2, 4, 4), layers, activation)
        kinks = [kink(n, 1, net.positions(n) + n % 2, n) for n in net.kinked_layers]
        kinks += [kink(n, 0, 1, 2, (2, 7)) for n in net.max_layers]
        kinks.append(HeldKink(net.depth + 1, 1, np.array([1, 1]), np.array([4, 5])))
        yield net, kinks


@pytest.mark.parametrize("loss", [HuberLoss(0.7), AbsoluteLoss(), CrossEntropy()], ids=repr)
@pytest.mark.parametrize("activation", [ReLU(), ReLU(0.2)], ids=repr)
def test_gradient_jacobian_and_hessian_are_the_derivatives_of_l(activation, loss):
    rng = np.random.default_rng(0)
    for net, kinks in networks_with_kinks(activation):
        if type(loss) is not AbsoluteLoss:
            kinks = kinks[:-1]
        x, y = rng.normal(size=(6, 2, 4, 4)), rng.dirichlet(np.ones(2), 6)
        x[5], y[5] = x[4], y[4]
        held, theta = Held(net, TrainingSet(x, y), loss, kinks), random_theta(net, 1, 0.5)
        t, v = rng.normal(size=len(kinks)), rng.normal(size=net.size)
        v *= 1e-5 / np.linalg.norm(v)
        here = held.gradient(theta, t)
        above, below = (held.gradient(Parameters(net, theta.vector + s * v), t) for s in (1, -1))
        change = above.risk - below.risk + t @ (above.values - below.values)
        close(2 * here.gradient @ v, change, 1e-8)
        close(2 * held.jacobian(theta) @ v, above.values - below.values, 1e-8)
        close(2 * held.hessian(theta, t) @ v, above.gradient - below.gradient, 1e-7)


def test_signals_of_the_absolute_loss_are_the_shares_of_its_samples():
    net = Network((1, 1), [Dense(1)])
    data = TrainingSet([[1.0], [2.0], [1.0], [4.0]], [0.0, 1.0, 0.0, 2.0])
    both = HeldKink(2, 0, np.array([0, 0]), np.array([0, 2]))
    held = Held(net, data, AbsoluteLoss(), [both, kink(2, 0, 0, 3)])
    signals = held.gradient(net.zeros(), np.zeros(2)).signals
    close(signals, [0.5, 0.25], 0)
    close(held.bounds(signals)[0], [-0.5, -0.25], 0)


def test_units_that_idle_in_one_window_share_its_signal():
    """max(0, z_1, z_2) at z_1 = z_2 = 0: multipliers l_1, l_2 > 0 with l_1 + l_2 < C."""
    net = Network((1, 2), [Conv(1, 1), MaxPool(2), Dense(1)])
    theta = Parameters(net, np.array([1.0, 0.0, 2.0, 0.5]))
    data = TrainingSet(np.zeros((1, 1, 2)), [-1.0])
    held = Held(net, data, SquaredLoss(), [kink(1, 0, 0, 0), kink(1, 0, 1, 0)])
    signals = held.gradient(theta, np.array([0.5, 0.75])).signals
    close(signals, [3.0 - 0.75, 3.0], 1e-15)  # dR/do = 2 * (0.5 + 1)


def test_the_memory_budget_changes_nothing_but_rounding():
    held, theta, _ = two_layers_at_kinks()
    small = Network((1, 3), held.net.layers, memory_budget=2000)
    other = Held(small, held.data, held.loss, held.kinks)
    t, there = np.array([0.1, -0.2, 0.3]), Parameters(small, theta.vector)
    close(other.hessian(there, t), held.hessian(theta, t), 1e-13)
    close(other.jacobian(there), held.jacobian(theta), 1e-13)
    for one, two in zip(other.gradient(there, t), held.gradient(theta, t), strict=True):
        close(one, two, 1e-13)


def test_held_units_on_a_device_are_those_of_numpy(device):
    net, kinks = list(networks_with_kinks(ReLU(0.2)))[1]
    rng = np.random.default_rng(0)
    data = TrainingSet(rng.normal(size=(6, 2, 4, 4)), rng.normal(size=(6, 2)))
    held, theta, t = Held(net, data, AbsoluteLoss(), kinks), random_theta(net, 1), np.ones(4)
    there, t_there = theta.to(device), device.asarray(t)
    found = [*held.gradient(there, t_there)[1:], held.jacobian(there), held.hessian(there, t_there)]
    expected = [*held.gradient(theta, t)[1:], held.jacobian(theta), held.hessian(theta, t)]
    for one, two in zip(found, expected, strict=True):
        assert isinstance(one, device.ndarray)
        close(to_numpy(one), two, 1e-12)


class TwiceReLU(ReLU):
    """An activation of a user."""


def test_kinks_of_unknown_slopes_are_refused():
    for activation in (ReLU(1.0), TwiceReLU()):
        net = Network((1, 2), [Dense(2), Dense(1)], activation)
        with pytest.raises(ValueError, match="expected ReLU, leaky ReLU with a slope below 1"):
            Held(net, TrainingSet(np.ones((1, 2)), [1.0]), SquaredLoss())
    Held(Network((1, 2), [Dense(1)], Tanh()), TrainingSet(np.ones((1, 2)), [1.0]), SquaredLoss())


# Equal kinks


@pytest.mark.parametrize("activation", [ReLU(), ReLU(0.1)], ids=repr)
def test_labels_agree_exactly_where_pre_activations_do_at_all_points_nearby(activation):
    rng = np.random.default_rng(1)
    x = rng.integers(0, 2, size=(6, 1, 4, 4)).astype(float)
    x[:, :, :2] = 0
    data = TrainingSet(x, np.zeros((6, 2)))
    for layers in ([Dense(3), Dense(4), Dense(2)], [Conv(2), MaxPool(2), Conv(2), Dense(2)]):
        net = Network((1, 4, 4), layers, activation)
        theta, seen = random_theta(net, 2), []
        labels = EqualKinks(theta, data, Held(net, data, SquaredLoss())).labels
        for _ in range(3):
            near = Parameters(net, theta.vector + 1e-6 * rng.normal(size=net.size))
            seen.append(Held(net, data, SquaredLoss()).forward(near)[2].z)
        for n in net.kinked_layers:
            z = np.concatenate([z[n - 1].reshape(-1, labels[n].size) for z in seen])
            same = abs(z[:, :, None] - z[:, None]).max(axis=0) < 1e-12
            assert (same == (labels[n].ravel()[:, None] == labels[n].ravel())).all()


def test_equal_patches_and_samples_without_active_units_are_members_of_one_kink():
    x = np.zeros((3, 1, 3))
    x[2] = [[1.0, 0.0, 0.0]]
    net = Network((1, 3), [Conv(2), Dense(2), Dense(1)])
    theta, data = net.zeros(), TrainingSet(x, np.zeros(3))
    theta.vector[:] = 1.0
    theta.b[1][:] = -5.0  # all units are inactive for all samples
    equal = EqualKinks(theta, data, Held(net, data, SquaredLoss()))
    background = equal.kink(1, 5, 0)  # map 1, position 2: of the last sample, too
    assert background.map == 1
    places = {(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1), (2, 2)}
    found = zip(background.units - 3, background.samples, strict=True)
    assert {(int(p), int(n)) for p, n in found} == places
    assert equal.kink(2, 1, 2).samples.tolist() == [0, 1, 2]


def test_entries_that_tie_are_on_the_map_and_not_in_the_padding():
    net = Network((1, 3), [Conv(1, 1), MaxPool(3, 1, padding=1), Dense(1)])
    theta, data = net.zeros(), TrainingSet([[1.0, 1.5, 0.5]], [0.0])
    theta.vector[:] = 1.0
    held = Held(net, data, SquaredLoss())
    o = held.forward(theta)[2].o[0]
    tie = EqualKinks(theta, data, held).tie(2, theta.W[2], o, 0, 1, 0)
    assert tie.units.tolist() == [0, 1]
    assert [sorted(pair) for pair in tie.pairs.tolist()] == [[0, 1], [0, 1]]
