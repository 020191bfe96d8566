"""Curvature certificates: Hessians are PyTorch's, radii are sound, refusals say why."""

import json
import math
import re

import mpmath
import numpy as np
import pytest
import scipy.optimize
import strict_device
import torch
import torch_twin
from exact_algebra import fractions, solved
from shared import (
    LOG_COSH,
    SQUARED,
    UNBOUNDED_LOG_COSH,
    in_turn,
    torch_log_cosh,
    twin_gradient,
    twin_hessian,
    twin_risk,
)

from tinyspur.certificates.constant_outputs import ConstantOutputs, output_hessians
from tinyspur.certificates.curvature import (
    CurvatureCertificate,
    certify_curvature,
    curvature_radius,
)
from tinyspur.datasets.samples import TrainingSet
from tinyspur.engine.activations import (
    ELU,
    GELU,
    Arctan,
    ReLU,
    Sigmoid,
    SiLU,
    Sine,
    Softplus,
    Swish,
    Tanh,
)
from tinyspur.engine.losses import AbsoluteLoss, CrossEntropy, HuberLoss
from tinyspur.engine.network import Network
from tinyspur.engine.parameters import Parameters
from tinyspur.engine.user_activations import SmoothActivation
from tinyspur.layers import Conv, Dense, MaxPool
from tinyspur.refutations.escapes import find_escape

KNOWN = [
    *(Sigmoid(), Tanh(), Softplus(), SiLU(), GELU(), ELU(), ELU(0.5), Sine(), Arctan()),
    *(Swish(), Swish(2.5)),
]


ALL = [*KNOWN, LOG_COSH, UNBOUNDED_LOG_COSH]
over_all = pytest.mark.parametrize("sigma", ALL, ids=lambda s: f"{s!r}{'' if s.bounds else ' ?'}")


def network(sigma, widths, dimension=2):
    return Network((1, dimension), [*map(Dense, widths)], sigma)


def torch_activation(sigma):
    """Return sigma as PyTorch has it."""
    if sigma.name == "log cosh":
        return torch_log_cosh
    return torch_twin.activation(**sigma.spec)


def torch_above(theta, z):
    """Return the outputs (..., d_y) for z^1 (..., n_1), by PyTorch."""
    act = torch_activation(theta.net.activation)
    for layer in range(2, theta.net.depth + 1):
        W, b = (torch.tensor(a) for a in (theta.W[layer].weights, theta.b[layer]))
        z = act(z) @ W.T + b
    return z


def torch_output_hessians(theta, z):
    """Return the Hessian of each output in z^1 at z, by PyTorch, (d_y, n_1, n_1)."""
    outputs = range(len(theta.b[theta.net.depth]))
    return np.stack(
        [
            torch.autograd.functional.hessian(
                lambda z, k=k: torch_above(theta, z)[k], torch.tensor(z), vectorize=True
            ).numpy()
            for k in outputs
        ]
    )


def residuals(x, *moments):
    """Return e (N, d_y), short, with sum e = 0, sum e x = 0 and sum e x x^T = a moment each."""
    flat = x.reshape(len(x), -1)
    i, j = np.triu_indices(flat.shape[1])
    Q = np.hstack([np.ones((len(x), 1)), flat, flat[:, i] * flat[:, j]])
    zeros = np.zeros(1 + flat.shape[1])
    e = [np.linalg.lstsq(Q.T, np.r_[zeros, np.asarray(M)[i, j]])[0] for M in moments]
    basis = np.linalg.qr(Q[:, : len(zeros)])[0]
    return np.stack([v - basis @ (basis.T @ v) for v in e], axis=1)


def definite(rng, dimension):
    A = rng.normal(size=(dimension, dimension))
    return A @ A.T + 0.3 * np.eye(dimension)


def inputs(rng, samples=24, dimension=2):
    return rng.normal(size=(samples, 1, dimension))


def data_for(theta, x, e):
    """Return the data whose residuals at theta are e."""
    return TrainingSet(x, theta.net.forward(theta, x) - e)


def one_signed(sigma, widths, rng, dimension=2, a=0.6):
    """Return theta with W^1 = 0, z = about a in all layers, and H positive definite."""
    net = network(sigma, widths, dimension)
    theta = net.zeros()
    theta.b[1][...] = a + rng.uniform(-0.05, 0.05, widths[0])
    o = sigma(theta.b[1])
    for layer in range(2, net.depth + 1):
        last = layer == net.depth
        point = np.array([a])
        sign = float(np.sign((sigma.second_derivative if last else sigma.derivative)(point))[0])
        W = theta.W[layer].weights
        W[...] = sign * rng.uniform(0.3, 1.0, W.shape) / (1 if last else math.sqrt(W.size))
        theta.b[layer][...] = (rng.normal() if last else a) - W @ o
        if not last:
            o = sigma(W @ o + theta.b[layer])
    return theta


def certified(sigma, widths, seed=0, dimension=2, samples=24, a=0.6):
    """Return a point that the certificate should hold for, and its data."""
    rng = np.random.default_rng(seed)
    x = inputs(rng, samples, dimension)
    theta = one_signed(sigma, widths, rng, dimension, -a if isinstance(sigma, ELU) else a)
    e = residuals(x, *(definite(rng, dimension) for _ in range(widths[-1])))
    return theta, data_for(theta, x, e)


SMALL = [
    (Sigmoid(), (3, 1)),
    (Tanh(), (3, 2)),
    (Softplus(), (2, 3, 2)),
    (GELU(), (4, 1)),
    (ELU(), (2, 2, 1)),
    (Sine(), (3, 2, 2, 1)),
    (LOG_COSH, (2, 2, 2)),
]
over_small = pytest.mark.parametrize(("sigma", "widths"), SMALL, ids=str)


# Hessians of the outputs


@in_turn(
    over_all,
    pytest.mark.parametrize(
        "widths",
        [(5, 3), (1, 1), (4, 3, 2), (2, 5, 3, 2), (3, 3, 1, 4, 1), (2, 3, 4, 3, 2, 2)],
        ids=str,
    ),
)
def test_the_hessians_of_the_outputs_are_those_of_pytorch(sigma, widths):
    rng = np.random.default_rng(len(widths))
    theta = Parameters(network(sigma, widths), rng.normal(size=network(sigma, widths).size))
    found, expected = output_hessians(theta), torch_output_hessians(theta, theta.b[1])
    assert found.shape == (widths[-1], widths[0], widths[0])
    np.testing.assert_array_equal(found, found.swapaxes(1, 2))
    np.testing.assert_allclose(found, expected, atol=1e-11 * max(1, abs(expected).max()))


# What a certificate says


@over_small
def test_a_certificate_reports_what_pytorch_and_plain_sums_give(sigma, widths):
    theta, data = certified(sigma, widths)
    c = certify_curvature(theta, data, SQUARED)
    assert c.holds, c
    assert (c.obstacle, c.kind, c.evidence_only, c.bounded) == ("", "curvature", False, True)
    assert c.risk == pytest.approx(twin_risk(theta, data), rel=1e-13)
    outputs = torch_above(theta, torch.tensor(theta.b[1])).numpy()
    least_H, least_M, largest = [], [], 0.0
    for k, H in enumerate(torch_output_hessians(theta, theta.b[1])):
        M, sums, sizes = np.zeros((2, 2)), np.zeros(3), np.zeros(3)
        for x, y in zip(data.x[:, 0], data.y[:, k], strict=True):
            e = outputs[k] - y
            M += e * np.outer(x, x)
            sums += e * np.r_[x, 1]
            sizes += abs(e) * abs(np.r_[x, 1])
        least_H.append(np.linalg.eigvalsh(H)[0])
        least_M.append(np.linalg.eigvalsh(M)[0])
        largest = max(largest, (abs(sums) / sizes).max())
    assert c.hessian == pytest.approx(min(least_H), rel=1e-10)
    assert c.moment == pytest.approx(min(least_M), rel=1e-10)
    assert 0 <= c.orthogonality < 1e-13
    assert largest < 1e-13
    assert 0 <= c.targets < 1e-14
    assert 0 < c.distance < 1e-14
    assert c.radius > 1e-9


@over_small
def test_a_certified_point_is_critical_and_its_hessian_has_no_negative_eigenvalue(sigma, widths):
    theta, data = certified(sigma, widths)
    assert certify_curvature(theta, data, SQUARED).holds
    assert abs(twin_gradient(theta, data)).max() < 1e-13
    values = np.linalg.eigvalsh(twin_hessian(theta, data))
    assert values[0] > -1e-12 * values[-1]


def test_the_report_has_its_keys_and_is_json():
    theta, data = certified(Softplus(), (3, 2, 2))
    keys = ["kind", "holds", "classes", "margin", "radius", "stationarity", "evidence_only"]
    for targets in (data.y, data.y + data.x[:, 0]):
        c = certify_curvature(theta, TrainingSet(data.x, targets), SQUARED)
        found = c.as_dict()
        assert list(found) == [*keys, "lambda_min_H", "lambda_min_M", "radius_proved"]
        assert list(c.bounds()) == ["proves", "delta", "distance", "distance_of_targets"]
        assert json.loads(json.dumps(found, allow_nan=False)) == found
        assert found == {
            "kind": "curvature",
            "holds": c.holds,
            "classes": 1,
            "margin": None,
            "radius": c.radius,
            "stationarity": c.orthogonality,
            "evidence_only": False,
            "lambda_min_H": c.hessian,
            "lambda_min_M": c.moment,
            "radius_proved": True,
        }


def test_a_certificate_prints_as_a_short_block():
    theta, data = certified(Softplus(), (3, 1))
    c = certify_curvature(theta, data, SQUARED)
    lines = str(c).splitlines()
    assert lines[0] == "curvature certificate: holds, a local minimum"
    assert len(lines) == 5
    assert re.search(r"an exact local minimum is within \S+e-1\d, for targets within ", lines[3])
    assert re.search(r"certified local minimum, for targets within \S+e-1\d of the stored", c.words)
    c = certify_curvature(theta, TrainingSet(data.x, data.y + data.x[:, 0, :1]), SQUARED)
    lines = str(c).splitlines()
    assert lines[0] == "curvature certificate: does not hold"
    assert lines[-1].strip() == c.obstacle
    assert c.words == f"not certified, {c.obstacle}"
    theta, data = certified(UNBOUNDED_LOG_COSH, (3, 1))
    c = certify_curvature(theta, data, SQUARED)
    assert c.holds
    assert c.words.startswith("certified local minimum")
    assert str(c).splitlines()[2].endswith("an estimate")
    assert "has the derivatives that it returns" in str(c).splitlines()[-1]


def test_without_bounds_of_the_activation_the_radius_is_an_estimate():
    for widths in ((3, 1), (2, 3, 2)):
        proved, estimate = (
            certify_curvature(*certified(sigma, widths), SQUARED)
            for sigma in (LOG_COSH, UNBOUNDED_LOG_COSH)
        )
        assert (proved.bounded, estimate.bounded) == (True, False)
        assert estimate.as_dict()["radius_proved"] is False
        assert proved.words.endswith("to a few units in the last place, and keeps its bounds")
        assert estimate.words.endswith("and changes near z as at a few points")
        assert estimate.holds
        assert estimate.hessian == pytest.approx(proved.hessian, rel=1e-9)
        assert proved.radius <= estimate.radius < 20 * proved.radius


# The radius


def perturbed(theta, rho, rng, corner):
    """Return theta with all parameters above layer 1 and b^1 moved by at most rho."""
    moves = rng.uniform(-1, 1, theta.net.size)
    return Parameters(theta.net, theta.vector + rho * (np.sign(moves) if corner else moves))


@in_turn(
    pytest.mark.parametrize("rho", [1e-4, 1e-2, 0.3]),
    pytest.mark.parametrize(
        "widths", [(3, 2), (3, 2, 1), (2, 3, 3, 2), (3, 2, 2, 2, 2, 1)], ids=str
    ),
)
def test_no_hessian_in_reach_differs_by_more_than_the_row_sums_allow(widths, rho):
    for seed, sigma in enumerate(KNOWN):
        rng = np.random.default_rng(seed)
        net = network(sigma, widths)
        theta = Parameters(net, rng.normal(size=net.size))
        theta.W[1].weights[...] = 0
        at, reach = ConstantOutputs(theta), 2.5
        before = output_hessians(theta)
        with np.errstate(invalid="ignore"):  # beyond the kink of ELU there are no bounds
            bounds = [
                at.row_sums(k, rho, reach) - at.row_sums(k, 0.0, reach) for k in range(widths[-1])
            ]
        assert isinstance(sigma, ELU) or np.isfinite(bounds).all()
        for trial in range(2):
            near = perturbed(theta, rho, rng, corner=trial % 2)
            z = theta.b[1] + rho * reach * rng.choice([-1, 1], widths[0])
            after = torch_output_hessians(near, z)
            for k, bound in enumerate(bounds):
                assert not (abs(after[k] - before[k]).sum(axis=1) > bound * (1 + 1e-9)).any()


@pytest.mark.parametrize("sigma", [s for s in KNOWN if not isinstance(s, ELU)], ids=repr)
def test_row_sums_are_not_far_from_what_some_parameters_reach(sigma):
    rng, rho, reach = np.random.default_rng(0), 1e-4, 2.5
    theta = one_signed(sigma, (1, 1, 1), rng)
    at, before = ConstantOutputs(theta), output_hessians(theta)[0]
    bound = (at.row_sums(0, rho, reach) - at.row_sums(0, 0.0, reach))[0]
    seen = 0.0
    for trial in range(60):
        near = perturbed(theta, rho, rng, corner=True)
        z = theta.b[1] + rho * reach * (-1) ** trial
        seen = max(seen, abs(torch_output_hessians(near, z)[0] - before).max())
    assert bound / 12 < seen <= bound


@pytest.mark.parametrize("widths", [(3, 2), (2, 3, 1), (2, 3, 2, 2), (1, 2, 3, 1, 2)], ids=str)
def test_row_sums_are_exact_to_first_order_where_all_factors_grow_at_once(widths):
    def square(z):
        return z + z * z / 2

    sigma = SmoothActivation("square", square, lambda z: 1 + z, lambda z: 1 + 0 * z, (1.0, 0.0))
    rng, reach = np.random.default_rng(0), 2.5
    net = network(sigma, widths)
    theta = Parameters(net, rng.uniform(0.1, 1, net.size))
    theta.W[1].weights[...] = 0
    at = ConstantOutputs(theta)
    for rho, rtol in ((1e-6, 1e-4), (0.7, 1e-12)):
        near = Parameters(net, theta.vector + rho)
        near.b[1][...] = theta.b[1] + rho * reach  # z^1, which the inputs move too
        for k, (before, after) in enumerate(
            zip(output_hessians(theta), output_hessians(near), strict=True)
        ):
            change = (after - before).sum(axis=1)
            bound = at.row_sums(k, rho, reach) - at.row_sums(k, 0.0, reach)
            assert (change <= bound + 1e-12).all()
            if rho < 0.1 or net.depth == 2:  # else to first order only
                np.testing.assert_allclose(bound, change, rtol=rtol, atol=1e-13)


@over_small
def test_the_radius_is_the_largest_for_which_the_hessian_may_not_change_too_much(sigma, widths):
    theta, data = certified(sigma, widths)
    c, x = certify_curvature(theta, data, SQUARED), data.x[:, 0]
    at, reach, u = ConstantOutputs(theta), 1 + abs(x).sum(axis=1).max(), x - x.mean(axis=0)
    e = theta.net.forward(theta, data.x) - data.y
    ratios = []
    for factor in (1.0, 1.02):
        worst = 0.0
        for k, H in enumerate(torch_output_hessians(theta, theta.b[1])):
            M, A = ((w * u.T) @ u for w in (e[:, k], abs(e[:, k])))
            limit = np.linalg.eigvalsh(H)[0] / np.linalg.eigvals(np.linalg.solve(M, A)).real.max()
            change = at.row_sums(k, factor * c.radius, reach) - at.row_sums(k, 0.0, reach)
            worst = max(worst, change.max() / limit)
        ratios.append(worst)
    assert ratios[0] <= 1
    if not isinstance(sigma, ELU):  # there the kink may be the border
        assert 1 < ratios[1] < 1.05


@in_turn(
    over_small,
    pytest.mark.parametrize("seed", range(3)),
)
def test_nothing_within_the_radius_is_lower(sigma, widths, seed):
    theta, data = certified(sigma, widths, seed)
    c, rng = certify_curvature(theta, data, SQUARED), np.random.default_rng(seed)
    assert c.radius > 0
    for trial in range(20):
        near = perturbed(theta, c.radius, rng, corner=trial % 2)
        assert near.net.risk(near, data, SQUARED) >= c.risk * (1 - 1e-13)
    assert find_escape(theta, data, SQUARED, c.radius, starts=2, iterations=30, seed=seed) is None


def test_nothing_within_the_radius_is_lower_to_another_optimiser():
    theta, data = certified(Softplus(), (2, 2, 1), seed=4)
    c = certify_curvature(theta, data, SQUARED)

    def risk(vector):
        near = Parameters(theta.net, theta.vector + c.radius * vector)
        scale = c.risk * c.radius**2
        rise, slope = twin_risk(near, data) - c.risk, twin_gradient(near, data)
        return rise / scale, c.radius * slope / scale

    rng = np.random.default_rng(0)
    for _ in range(2):
        found = scipy.optimize.minimize(
            risk, rng.uniform(-1, 1, theta.net.size), jac=True, bounds=[(-1, 1)] * theta.net.size
        )
        assert found.fun * c.radius**2 > -1e-13


def test_far_enough_away_there_are_lower_points():
    for sigma, widths in (SMALL[0], SMALL[-1]):
        theta, data = certified(sigma, widths)
        c = certify_curvature(theta, data, SQUARED)
        assert c.radius < 2
        assert find_escape(theta, data, SQUARED, 6.0, starts=3, iterations=100) is not None


def test_the_radius_has_no_sense_of_the_scale_of_the_outputs():
    theta, data = certified(Tanh(), (3, 2, 1))
    c = certify_curvature(theta, data, SQUARED)
    e = theta.net.forward(theta, data.x) - data.y
    for scale in (1e-6, 1e6):
        again = certify_curvature(theta, data_for(theta, data.x, scale * e), SQUARED)
        assert again.holds
        assert again.radius == pytest.approx(c.radius, rel=1e-3)
        assert again.moment == pytest.approx(scale * c.moment, rel=1e-8)
        assert again.risk == pytest.approx(scale**2 * c.risk, rel=1e-8)


def test_the_radius_function_gives_the_radius_of_the_certificate(monkeypatch):
    seen = []

    def spy(*arguments):
        seen.append(curvature_radius(*arguments))
        return seen[-1]

    monkeypatch.setattr("tinyspur.certificates.curvature.curvature_radius", spy)
    theta, data = certified(Tanh(), (3, 1))
    assert [certify_curvature(theta, data, SQUARED).radius] == seen
    theta.W[1].weights[...] = 1e-9
    assert certify_curvature(theta, data, SQUARED).radius == 0
    assert len(seen) == 1


# What does not matter


def close(found, expected, rel=1e-8):
    assert found.holds == expected.holds
    for name in ("risk", "hessian", "moment"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=rel)


def test_the_order_of_the_samples_does_not_matter():
    for sigma, widths in SMALL:
        theta, data = certified(sigma, widths)
        c, order = certify_curvature(theta, data, SQUARED), np.random.default_rng(0).permutation(24)
        again = certify_curvature(theta, TrainingSet(data.x[order], data.y[order]), SQUARED)
        close(again, c)
        assert again.radius == pytest.approx(c.radius, rel=3e-3)


def test_the_order_of_the_hidden_units_does_not_matter():
    theta, data = certified(Tanh(), (4, 3, 5, 2), samples=30)
    c, rng, other = certify_curvature(theta, data, SQUARED), np.random.default_rng(0), theta.copy()
    for layer in range(1, 4):
        order = rng.permutation(len(other.b[layer]))
        other.W[layer].weights[...] = other.W[layer].weights[order]
        other.b[layer][...] = other.b[layer][order]
        other.W[layer + 1].weights[...] = other.W[layer + 1].weights[:, order]
    assert not np.array_equal(other.vector, theta.vector)
    again = certify_curvature(other, data, SQUARED)
    close(again, c)
    assert again.radius == pytest.approx(c.radius, rel=3e-3)


def test_the_order_of_the_outputs_does_not_matter():
    theta, data = certified(Sigmoid(), (3, 4, 3))
    other, order = theta.copy(), [2, 0, 1]
    other.W[3].weights[...], other.b[3][...] = theta.W[3].weights[order], theta.b[3][order]
    c = certify_curvature(theta, data, SQUARED)
    close(certify_curvature(other, TrainingSet(data.x, data.y[:, order]), SQUARED), c)


@pytest.mark.parametrize("budget", [1, 600, 2000])
def test_the_memory_budget_does_not_matter(budget):
    theta, data = certified(GELU(), (3, 2, 2))
    net = theta.net
    little = Parameters(Network(net.input_shape, net.layers, net.activation, budget), theta.vector)
    assert len(list(little.net.chunks(little, data.x))) > 1
    c, again = (certify_curvature(t, data, SQUARED) for t in (theta, little))
    close(again, c, rel=1e-10)
    assert again.radius == pytest.approx(c.radius, rel=3e-3)


@pytest.mark.parametrize("shift", [1.0, 30.0, -300.0])
def test_a_shift_of_the_inputs_changes_the_radius_alone(shift):
    theta, data = certified(Softplus(), (3, 2, 1))
    c = certify_curvature(theta, data, SQUARED)
    again = certify_curvature(theta, TrainingSet(data.x + shift, data.y), SQUARED)
    assert again.holds, again
    close(again, c)
    assert 0 < again.radius < c.radius


def test_a_linear_map_of_the_inputs_acts_on_the_moments():
    theta, data = certified(Softplus(), (3, 2, 1))
    A = np.array([[2.0, 0.5], [-1.0, 0.25]])
    c, moved = certify_curvature(theta, data, SQUARED), TrainingSet(data.x @ A.T + 0.3, data.y)
    again = certify_curvature(theta, moved, SQUARED)
    e = (theta.net.forward(theta, data.x) - data.y).ravel()
    M = (e * data.x[:, 0].T) @ data.x[:, 0]
    assert again.holds
    assert again.hessian == c.hessian
    assert again.moment == pytest.approx(np.linalg.eigvalsh(A @ M @ A.T)[0], rel=1e-9)


def test_inputs_of_any_shape_are_flattened():
    theta, data = certified(Softplus(), (3, 1), dimension=4, samples=30)
    net = Network((2, 1, 2), theta.net.layers, theta.net.activation)
    c = certify_curvature(theta, data, SQUARED)
    x = data.x.reshape(30, 2, 1, 2)
    assert certify_curvature(Parameters(net, theta.vector), TrainingSet(x, data.y), SQUARED) == c


def test_samples_twice_are_the_same_proof():
    theta, data = certified(Softplus(), (3, 2, 1))
    twice = TrainingSet(np.vstack([data.x, data.x]), np.vstack([data.y, data.y]))
    c, again = (certify_curvature(theta, d, SQUARED) for d in (data, twice))
    assert again.holds
    assert again.risk == pytest.approx(c.risk, rel=1e-12)
    assert again.moment == pytest.approx(2 * c.moment, rel=1e-12)
    assert again.radius == pytest.approx(c.radius, rel=3e-3)


def test_an_output_without_residuals_may_bend_as_it_likes():
    rng = np.random.default_rng(2)
    theta, x = one_signed(Softplus(), (3, 2), rng), inputs(rng)
    theta.W[2].weights[1] = [1.0, -1.0, 0.5]
    e = np.c_[residuals(x, np.eye(2)), np.zeros(24)]
    y = theta.net.forward(theta, x)
    y[:, 0] -= e[:, 0]
    c = certify_curvature(theta, TrainingSet(x, y), SQUARED)
    assert c.holds, c
    assert c.hessian == pytest.approx(np.linalg.eigvalsh(output_hessians(theta)[0])[0])
    assert find_escape(theta, TrainingSet(x, y), SQUARED, c.radius, starts=2) is None
    y[:, 1] -= e[:, 0]
    assert not certify_curvature(theta, TrainingSet(x, y), SQUARED).holds


def test_parameters_on_a_device_have_the_certificate_of_the_host():
    for sigma, widths in SMALL[2:5]:
        theta, data = certified(sigma, widths)
        there = theta.to(strict_device)
        assert isinstance(there.vector, strict_device.ndarray)
        c = certify_curvature(theta, data, SQUARED)
        assert certify_curvature(there, data, SQUARED) == c
        np.testing.assert_array_equal(output_hessians(there), output_hessians(theta))


def test_single_precision_is_certified_for_the_numbers_that_it_holds():
    theta, data = certified(Tanh(), (3, 2, 1))
    e = theta.net.forward(theta, data.x) - data.y
    single = Parameters(theta.net, theta.vector.astype(np.float32))
    double = Parameters(theta.net, single.vector.astype(np.float64))
    rebuilt = data_for(double, data.x, e)
    c = certify_curvature(single, rebuilt, SQUARED)
    assert c.holds, c
    assert c == certify_curvature(double, rebuilt, SQUARED)
    other = certify_curvature(single, data, SQUARED)  # those that the numbers were rounded from
    assert 1e-9 < other.distance < 1e-6
    assert other.holds == (other.distance <= other.radius / 100)


def test_nothing_is_changed_by_a_certificate():
    theta, data = certified(Tanh(), (3, 2, 1))
    before = [a.copy() for a in (theta.vector, data.x, data.y)]
    certify_curvature(theta, data, SQUARED)
    for a, b in zip((theta.vector, data.x, data.y), before, strict=True):
        np.testing.assert_array_equal(a, b)


# Either sign


@pytest.mark.parametrize("widths", [(3, 1), (2, 3, 2), (2, 2, 2, 1)], ids=str)
def test_negative_definite_both_is_a_minimum_too(widths):
    theta, data = certified(Softplus(), widths)
    c = certify_curvature(theta, data, SQUARED)
    last = theta.net.depth
    theta.W[last].weights[...] *= -1
    theta.b[last][...] *= -1
    data = TrainingSet(data.x, -data.y)
    assert (np.linalg.eigvalsh(torch_output_hessians(theta, theta.b[1])) < 0).all()
    again = certify_curvature(theta, data, SQUARED)
    assert again.holds
    assert (again.hessian, again.moment, again.radius) == (c.hessian, c.moment, c.radius)
    assert find_escape(theta, data, SQUARED, again.radius, starts=2) is None


def test_outputs_may_have_signs_of_their_own():
    theta, data = certified(Softplus(), (3, 2, 3))
    theta.W[3].weights[1] *= -1
    theta.b[3][1] *= -1
    y = data.y * [1, -1, 1]
    c = certify_curvature(theta, TrainingSet(data.x, y), SQUARED)
    assert c.holds
    assert find_escape(theta, TrainingSet(data.x, y), SQUARED, c.radius, starts=2) is None
    assert np.linalg.eigvalsh(twin_hessian(theta, TrainingSet(data.x, y)))[0] > -1e-12


@pytest.mark.parametrize("widths", [(3, 1), (2, 3, 2)], ids=str)
def test_opposite_signs_are_no_minimum(widths):
    theta, data = certified(Softplus(), widths)
    e = theta.net.forward(theta, data.x) - data.y
    data = data_for(theta, data.x, -e)
    c = certify_curvature(theta, data, SQUARED)
    assert (c.holds, c.radius) == (False, 0.0)
    assert c.obstacle == "H is not shown to be definite with the sign of M"
    assert c.moment > 0 > c.hessian
    assert_saddle(theta, data)


# Broken conditions


def assert_saddle(theta, data):
    """Check that PyTorch finds descent in second order, and that there are lower points nearby."""
    assert abs(twin_gradient(theta, data)).max() < 1e-12
    values = np.linalg.eigvalsh(twin_hessian(theta, data))
    assert values[0] < -1e-4 * values[-1]
    found = find_escape(theta, data, SQUARED, 0.02, starts=2)
    assert found is not None
    risks = [twin_risk(t, data) for t in (theta, found.theta)]
    assert risks[1] < risks[0]


@pytest.mark.parametrize(("sigma", "widths"), SMALL, ids=str)
def test_moments_of_both_signs_are_refused_and_something_lower_is_near(sigma, widths):
    theta, data = certified(sigma, widths)
    mixed = [np.diag([40.0, -30.0])] * widths[-1]
    data = data_for(theta, data.x, residuals(data.x, *mixed))
    c = certify_curvature(theta, data, SQUARED)
    assert (c.holds, c.radius) == (False, 0.0)
    assert c.obstacle == "M is not shown to be definite"
    assert c.moment == pytest.approx(-30 if c.hessian > 0 else -40, rel=1e-9)  # either sign
    assert_saddle(theta, data)


@pytest.mark.parametrize(("sigma", "widths"), SMALL, ids=str)
def test_hessians_of_both_signs_are_refused_and_something_lower_is_near(sigma, widths):
    theta, data = certified(sigma, widths)
    last = theta.net.depth
    theta.W[last].weights[0, 0] *= -20.0  # alone it outweighs the others
    data = data_for(theta, data.x, 5000 * residuals(data.x, *[np.eye(2)] * widths[-1]))
    values = np.linalg.eigvalsh(torch_output_hessians(theta, theta.b[1])[0])
    assert values[0] < 0
    c = certify_curvature(theta, data, SQUARED)
    assert (c.holds, c.radius) == (False, 0.0)
    assert c.obstacle == "H is not shown to be definite with the sign of M"
    assert c.hessian == pytest.approx(values[0], rel=1e-9)
    assert c.moment > 0
    assert_saddle(theta, data)


@in_turn(
    pytest.mark.parametrize("size", [1e-9, 1e-3]),
    pytest.mark.parametrize("what", ["x", "1"]),
    pytest.mark.parametrize(("sigma", "widths"), SMALL, ids=str),
)
def test_residuals_that_are_not_orthogonal_are_refused(sigma, widths, what, size):
    theta, data = certified(sigma, widths)
    hats = np.c_[data.x[:, 0], np.ones(24)]
    v, others = (hats[:, 0], hats[:, 1:]) if what == "x" else (hats[:, 2], hats[:, :2])
    v = v - others @ np.linalg.lstsq(others, v)[0]  # orthogonal to the others
    data = TrainingSet(data.x, data.y + size * v[:, None])
    c = certify_curvature(theta, data, SQUARED)
    assert not c.holds
    assert c.obstacle == "the residuals are not orthogonal to (x, 1)"
    assert c.words == "not certified, the residuals are not orthogonal to (x, 1)"
    assert abs(twin_gradient(theta, data)).max() > 1e-3 * size
    fitted = hats @ np.linalg.lstsq(hats, v)[0]
    assert c.targets == pytest.approx(size * abs(fitted - v.mean()).max(), rel=2)
    lost = widths[-1] * size**2 * (fitted**2).sum() / 48
    assert lost * (1 - 1e-6) <= c.delta <= lost * (1 + 1e-3) + 1e-25
    if size > 1e-6:
        assert find_escape(theta, data, SQUARED, 0.02, starts=1) is not None
        inside = find_escape(theta, data, SQUARED, c.radius, starts=2)
        assert 0 < inside.decrease <= c.delta


@pytest.mark.parametrize("size", [1e-300, 1e-6, 1.0])
def test_first_weights_that_are_not_zero_are_refused(size):
    theta, data = certified(Tanh(), (3, 2, 1))
    theta.W[1].weights[1, 0] = size
    c = certify_curvature(theta, data, SQUARED)
    assert (c.holds, c.radius, c.obstacle) == (False, 0.0, "W^1 is not 0")


def test_no_residuals_are_a_global_minimum_and_not_this_one():
    theta, data = certified(Tanh(), (3, 2, 2))
    c = certify_curvature(theta, data_for(theta, data.x, 0.0), SQUARED)
    assert (c.holds, c.radius, c.obstacle) == (False, 0.0, "all targets of an output are equal")
    assert (c.risk, c.orthogonality) == (0, 0)


def test_residuals_of_the_size_of_rounding_errors_are_refused():
    theta, data = certified(Tanh(), (3, 2, 1))
    rng = np.random.default_rng(0)
    y = theta.net.forward(theta, data.x)
    y += np.spacing(y) * rng.integers(-1, 2, y.shape)
    c = certify_curvature(theta, TrainingSet(data.x, y), SQUARED)
    assert not c.holds
    assert c.risk < 1e-30
    assert c.obstacle == "M is not shown to be definite"
    assert (c.radius, c.bounds()["delta"]) == (0.0, None)


def test_a_unit_without_curvature_is_refused():
    theta, data = certified(Tanh(), (3, 1))
    e = theta.net.forward(theta, data.x) - data.y
    for change in ("bias", "weight"):
        other = theta.copy()
        if change == "bias":
            other.b[1][1] = 0.0  # tanh'' = 0
        else:
            other.W[2].weights[0, 1] = 0.0
        c = certify_curvature(other, data_for(other, data.x, e), SQUARED)
        assert (c.holds, c.hessian) == (False, 0.0)
        assert c.obstacle == "H is not shown to be definite with the sign of M"


def test_moments_without_full_rank_are_refused():
    for seed in range(8):
        theta, data = certified(Tanh(), (3, 1), seed)
        v = np.random.default_rng(seed).normal(size=2)
        c = certify_curvature(
            theta, data_for(theta, data.x, residuals(data.x, np.outer(v, v))), SQUARED
        )
        assert not c.holds
        assert c.obstacle == "M is not shown to be definite"
        assert abs(c.moment) < 1e-13


# What rounding must not decide


@pytest.mark.parametrize("dimension", [1, 2, 3])
def test_moments_that_are_zero_up_to_rounding_prove_nothing(dimension):
    escapes = 0
    for seed in range(3):
        rng = np.random.default_rng(seed)
        x = inputs(rng, 24, dimension)
        theta = network(Sigmoid(), (2, 1), dimension).zeros()
        theta.b[1][...], theta.W[2].weights[...] = [-1, -2], [1, 2]
        i, j = np.triu_indices(dimension)
        flat = x[:, 0]
        Q = np.linalg.qr(np.hstack([np.ones((24, 1)), flat, flat[:, i] * flat[:, j]]))[0]
        e = 10 * rng.normal(size=24)
        for _ in range(3):
            e -= Q @ (Q.T @ e)
        data = data_for(theta, x, e[:, None])
        c = certify_curvature(theta, data, SQUARED)
        assert not c.holds, f"seed {seed}: {c}"
        escapes += find_escape(theta, data, SQUARED, 0.3, starts=2) is not None
    assert escapes  # some of these are not minima


def test_a_hessian_that_is_zero_up_to_rounding_proves_nothing():
    for seed in range(12):
        rng = np.random.default_rng(seed)
        theta, data = certified(Softplus(), (2, 4, 1), seed)
        e = theta.net.forward(theta, data.x) - data.y
        theta.W[2].weights[...] = np.tile(rng.normal(size=(2, 2)), (2, 1))
        theta.b[2][...] = np.tile(rng.normal(size=2), 2)
        v = 1e6 * rng.normal(size=2)
        theta.W[3].weights[...] = np.r_[v, -v]  # what two units add the other two take away
        theta.b[3][...] = 0
        c = certify_curvature(theta, data_for(theta, data.x, e), SQUARED)
        assert not c.holds, f"seed {seed}: {c}"


@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_at_the_kink_of_elu_nothing_is_proved(alpha):
    x = np.array([-2.0, -1, 1, 2, 3])
    Q = np.stack([np.ones(5), x, np.minimum(x, 0) ** 2, np.maximum(x, 0) ** 2])
    e = np.linalg.lstsq(Q, np.array([0, 0, -100.0, 300.0]))[0]  # M = 200, but -100 on the left
    theta = network(ELU(alpha), (1, 1), 1).zeros()
    theta.W[2].weights[...] = 1
    data = data_for(theta, x.reshape(5, 1, 1), e[:, None])
    assert find_escape(theta, data, SQUARED, 0.01, starts=3) is not None
    c = certify_curvature(theta, data, SQUARED)
    assert not c.holds, c


def test_a_certificate_that_holds_has_a_radius():
    for shift in 10.0 ** np.arange(0, 9, 2):
        theta, data = certified(Softplus(), (3, 2, 1))
        x = data.x + shift
        flat = np.c_[np.ones(24), x[:, 0]]
        e = (theta.net.forward(theta, data.x) - data.y).ravel()
        for _ in range(3):
            e = e - flat @ np.linalg.lstsq(flat, e)[0]
        c = certify_curvature(theta, data_for(theta, x, e[:, None]), SQUARED)
        assert not c.holds or c.radius > 0, f"{shift:g}: {c}"


# Refusals


def test_other_networks_are_refused():
    data = TrainingSet(np.ones((4, 1, 4)), np.ones((4, 1)))
    for layers, sigma, words in (
        ([Dense(3), Dense(1)], ReLU(), r"expected an activation with sigma'' != 0, got ReLU"),
        ([Dense(3), Dense(1)], ReLU(0.1), "expected an activation with sigma'' != 0, got ReLU"),
        ([Conv(2), MaxPool(2), Dense(1)], Tanh(), r"no max pooling, got MaxPool\(size=2\) as lay"),
        ([Dense(2), Dense(1, bias=False)], Tanh(), "a dense layer with biases, .*as layer 2"),
        ([Dense(2), Dense(1, activation=Tanh())], Tanh(), "without activation, at the end, got"),
        ([Dense(3), Dense(2, activation=ReLU()), Dense(1)], Tanh(), "after layer 2, Dense"),
        ([Dense(1)], Tanh(), "a hidden layer with an activation, got Network"),
    ):
        theta = Network((1, 4), layers, sigma).zeros()
        with pytest.raises(ValueError, match=rf"^curvature: .*{words}"):
            certify_curvature(theta, data, SQUARED)


@pytest.mark.parametrize("loss", [CrossEntropy(), AbsoluteLoss(), HuberLoss(1.0)], ids=repr)
def test_other_losses_are_refused(loss):
    theta, data = certified(Tanh(), (3, 1))
    data = TrainingSet(data.x, np.ones_like(data.y))  # targets of each of these losses
    with pytest.raises(ValueError, match="curvature certificate: expected the squared loss, got"):
        certify_curvature(theta, data, loss)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused(value):
    theta, data = certified(Softplus(), (3, 1))
    for index in (0, -1):
        wrong = theta.copy()
        wrong.vector[index] = value
        with pytest.raises(ValueError, match="expected finite parameters"):
            certify_curvature(wrong, data, SQUARED)
    theta.b[1][...], theta.W[2].weights[...] = 1e300, 1e300
    with np.errstate(all="ignore"), pytest.raises(ValueError, match="expected finite outputs"):
        certify_curvature(theta, data, SQUARED)


def test_data_of_other_shapes_are_refused():
    theta, data = certified(Tanh(), (3, 2))
    with pytest.raises(ValueError, match=r"targets: expected \(N, 2\), got \(24, 1\)"):
        certify_curvature(theta, TrainingSet(data.x, data.y[:, :1]), SQUARED)
    with pytest.raises(ValueError, match=r"inputs: expected \(N, 1, 2\), got \(24, 1, 1\)"):
        certify_curvature(theta, TrainingSet(data.x[:, :, :1], data.y), SQUARED)


def test_a_certificate_is_frozen():
    c = certify_curvature(*certified(Tanh(), (3, 1)), SQUARED)
    assert isinstance(c, CurvatureCertificate)
    with pytest.raises(AttributeError):
        c.holds = False


@pytest.mark.parametrize("off", [2.0**-11, 2.0**-11 + 2.0**-10, 0.25])
def test_outputs_that_are_not_the_means_are_lower_by_delta_at_most(off):
    x, e = np.array([-1.0, 0, 1]), np.array([1.0, -2, 1])
    theta = Network((1, 1), [Dense(1), Dense(1)], Softplus()).zeros()
    theta.b[1][...], theta.W[2].weights[...], theta.b[2][...] = -0.5, 1, 2.0**40
    o = theta.net.forward(theta, x.reshape(3, 1, 1))[:, 0]
    data = TrainingSet(x.reshape(3, 1, 1), (o - e - off)[:, None])
    c = certify_curvature(theta, data, SQUARED)
    with mpmath.workdps(60):
        exact = mpmath.log1p(mpmath.exp(mpmath.mpf(-0.5))) + 2**40
        mean = sum(mpmath.mpf(float(y)) for y in data.y[:, 0]) / 3
        risks = [
            sum((outputs - mpmath.mpf(float(y))) ** 2 for y in data.y[:, 0]) / 6
            for outputs in (exact, mean)
        ]
        distance = abs(exact - mean)
    assert off - 2.0**-12 <= distance <= c.distance <= distance * (1 + 1e-3)
    assert risks[0] - risks[1] <= c.delta <= (risks[0] - risks[1]) * (1 + 1e-2)
    assert c.targets == 0
    assert c.radius > 0.1
    assert c.holds == (off < 0.01)
    assert c.obstacle == (
        "" if c.holds else "the mean of the residuals is too large for the radius"
    )


# Proofs, not estimates


def at_one_unit(x, e, sigma=None, outputs=0.0):
    """Return theta with one hidden unit, H > 0, and targets `outputs` - e (N,)."""
    theta = Network((1, x.shape[1]), [Dense(1), Dense(1)], sigma or Softplus()).zeros()
    theta.b[1][...], theta.W[2].weights[...] = -0.5, 1
    theta.b[2][...] = outputs - theta.net.forward(theta, x[:1, None])[0]
    return theta, TrainingSet(x[:, None], (outputs - e)[:, None])


SQUARE = np.array([[-1.0, -1], [1, 1], [1, -1], [-1, 1], [0, 0]])


@pytest.mark.parametrize("unit", [1.0, 1e-150, 1e120, 2.0**-400], ids=str)
def test_inputs_and_targets_may_be_huge_or_tiny(unit):
    e = np.array([1.0, 1, 0.5, 0.5, -3])
    for x, size in ((SQUARE * unit, 1.0), (SQUARE, unit), (SQUARE * [unit, 1], 1.0)):
        theta, data = at_one_unit(x, e * size)
        c = certify_curvature(theta, data, SQUARED)
        assert c.targets == 0
        assert 1e-2 < c.radius * (1 + abs(x).sum(axis=1).max()) < 10
        assert c.holds == (c.distance <= c.radius / 100)  # b^2 has a rounding of its own
        assert c.distance < 2e-15 * max(1, size)
        json.dumps(c.as_dict() | c.bounds(), allow_nan=False)


@pytest.mark.parametrize("bits", [20, 40, 50, 52])
def test_a_moment_that_is_not_definite_by_little_is_told(bits):
    for sign in (1, -1):
        e = np.array([1, 1, sign * 2.0**-bits, sign * 2.0**-bits, 0])
        e[4] = -e[:4].sum()
        c = certify_curvature(*at_one_unit(SQUARE, e), SQUARED)
        assert c.holds == (sign == 1)
        if sign == -1:
            assert c.obstacle == "M is not shown to be definite"
            assert (c.radius, c.bounds()["delta"]) == (0, None)


@pytest.mark.parametrize("relative", [1e-10, 1e-12, 3e-13])
def test_targets_that_are_farther_than_their_rounding_are_refused(relative):
    e = np.array([1.0, 1, 0.5, 0.5, -3]) + relative * np.array([-1.0, 1, 1, -1, 0])
    theta, data = at_one_unit(SQUARE, e)
    c = certify_curvature(theta, data, SQUARED)
    assert c.obstacle == "the residuals are not orthogonal to (x, 1)"
    assert relative * (1 - 1e-3) <= c.targets <= 2.5 * relative
    assert c.radius > 0
    assert re.search(r"an exact local minimum is within \S+, for targets within ", str(c))
    assert 0.39 * relative**2 < c.delta < 0.5 * relative**2


def test_targets_that_are_off_by_the_smallest_numbers_are_not_called_exact():
    smallest = 2.0**-1074
    e = np.array([1.0, 1, 0.5, 0.5, -3]) * 2.0**-1020 + smallest * np.array([0, 2, 2, -4, 0])
    c = certify_curvature(*at_one_unit(SQUARE, e), SQUARED)
    assert smallest <= c.targets < 10 * smallest
    assert c.words.startswith("certified local minimum, for targets within ")
    assert 0 < c.delta < 1e-29


def test_a_large_share_of_all_targets_hides_no_gradient():
    e = np.array([1.0, 1, 0.5, 0.5, -3]) + 2.0**-6 * np.array([-1.0, 1, 1, -1, 0])
    theta, data = at_one_unit(SQUARE, e, outputs=2.0**40)
    assert 1e-13 * 2.0**40 > 2.0**-6
    c = certify_curvature(theta, data, SQUARED)
    assert c.obstacle == "the residuals are not orthogonal to (x, 1)"
    assert c.targets > 2.0**-6


def test_the_certificate_says_for_which_targets_it_is():
    theta, data = at_one_unit(SQUARE, np.array([1.0, 1, 0.5, 0.5, -3]))
    c = certify_curvature(theta, data, SQUARED)
    assert c.holds
    assert c.words.startswith("certified local minimum, lambda_min(H)")
    assert "targets" not in str(c).splitlines()[3]
    data.y[...] += 1e-15 * data.x[:, 0, :1]
    c = certify_curvature(theta, data, SQUARED)
    assert c.holds
    assert 5e-16 < c.targets < 1e-14
    said = re.search(r"for targets within (\S+) of the stored ones, lambda_min", c.words)
    assert c.targets <= float(said[1]) <= 1.1 * c.targets
    assert str(c).splitlines()[3].endswith(f"for targets within {said[1]} of the stored ones")


def test_the_hessian_is_bounded_from_below():
    for sigma, widths in SMALL:
        theta, data = certified(sigma, widths)
        c = certify_curvature(theta, data, SQUARED)
        least = min(np.linalg.eigvalsh(H)[0] for H in torch_output_hessians(theta, theta.b[1]))
        assert least * (1 - 1e-10) <= c.hessian <= least * (1 + 1e-14)


def test_units_of_very_different_sizes_have_a_definite_hessian():
    theta, data = certified(Softplus(), (3, 1))
    e = theta.net.forward(theta, data.x) - data.y
    theta.W[2].weights[0, 1] *= 2.0**-60
    c = certify_curvature(theta, data_for(theta, data.x, e), SQUARED)
    assert 0 < c.hessian < 2.0**-58


@pytest.mark.parametrize("seed", range(3))
def test_the_exact_minimum_is_one_in_60_digits(seed):
    theta, data = certified(Softplus(), (2, 1), seed, samples=8)
    c = certify_curvature(theta, data, SQUARED)
    assert c.holds
    X, Y = fractions(data.x[:, 0]), fractions(data.y[:, 0])
    u, mean = X - X.sum(axis=0) / 8, Y.sum() / 8
    moved = Y - u @ solved(u.T @ u, u.T @ (Y - mean)[:, None])[:, 0]  # y*
    assert abs(moved - Y).max() <= c.targets
    rng = np.random.default_rng(seed)
    with mpmath.workdps(60):
        x, y = (
            np.vectorize(lambda f: mpmath.mpf(f.numerator) / f.denominator)(a) for a in (X, moved)
        )

        def risk(W1, b1, W2, b2):
            z = x @ W1.T + b1
            o = np.vectorize(lambda v: mpmath.log(1 + mpmath.exp(v)))(z) @ W2 + b2
            return ((o - y) ** 2).sum() / 16

        def exact(array):
            return np.vectorize(mpmath.mpf, otypes="O")(array)

        parts = [theta.W[1].weights, theta.b[1], theta.W[2].weights[0], theta.b[2]]
        W1, b1, W2, b2 = map(exact, parts)
        constant = (np.vectorize(lambda v: mpmath.log(1 + mpmath.exp(v)))(b1) @ W2) + b2
        best = b2 + y.sum() / 8 - constant  # the biases of theta*
        assert abs(best - b2)[0] <= c.distance
        least = risk(W1, b1, W2, best)
        for trial in range(24):
            size = c.radius * 10.0 ** (-2 * (trial % 12))
            moves = [exact(size * rng.uniform(-1, 1, part.shape)) for part in parts]
            if trial % 2:  # the outputs stay close, so that what is left is of second order
                moves[1] = -moves[0] @ (x.sum(axis=0) / 8)
                moves[2], moves[3] = 0 * W2, 0 * best
            changed = (part + move for part, move in zip((W1, b1, W2, best), moves, strict=True))
            assert risk(*changed) >= least
