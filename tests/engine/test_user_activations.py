"""Activations of users have the derivatives that they give, or those of differences."""

import numpy as np
import pytest
import torch
from activation_problems import ALL, BOUNDED, mish, mish_bend, mish_slope

from tinyspur.engine.activations import ELU, KNOWN
from tinyspur.engine.network import Network
from tinyspur.engine.user_activations import SmoothActivation
from tinyspur.layers import Dense


def test_an_activation_of_your_own_has_the_derivatives_that_you_give():
    z = np.linspace(-5, 5, 31)
    sigma = SmoothActivation("mish", mish, mish_slope, mish_bend)
    expected = torch.tensor(z, requires_grad=True)
    (slope,) = torch.autograd.grad(torch.nn.functional.mish(expected).sum(), expected)
    np.testing.assert_allclose(sigma(z), torch.nn.functional.mish(torch.tensor(z)), atol=1e-14)
    np.testing.assert_allclose(sigma.derivative(z), slope, atol=1e-14)
    assert np.array_equal(sigma.second_derivative(z), mish_bend(z))
    assert not sigma.piecewise_linear
    assert repr(sigma) == "SmoothActivation(name='mish')"
    assert sigma == SmoothActivation("mish", mish, mish_slope)
    assert sigma != SmoothActivation("mish", mish, lambda z: mish_slope(z))


@pytest.mark.parametrize("known", [s for s in ALL[2:] if not isinstance(s, ELU)], ids=repr)
def test_differences_of_the_derivative_are_as_accurate_as_they_say(known):
    sigma = SmoothActivation("own", known, known.derivative)
    z, h = np.linspace(-6, 6, 121), 2.0**-5
    ends = (known.second_derivative(z + k * h) for k in range(-2, 3))
    fifth = abs(sum(c * end for c, end in zip((1, -4, 6, -4, 1), ends, strict=True))).max() / h**4
    error = abs(sigma.second_derivative(z) - known.second_derivative(z)).max()
    assert 1e-15 < error < 1e-12 * abs(known.derivative(z)).max() + 4e-14 * fifth
    single = sigma.second_derivative(z.astype(np.float32))
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, known.second_derivative(z), atol=1e-6)


@pytest.mark.parametrize("known", BOUNDED, ids=repr)
def test_without_bounds_changes_are_an_estimate_from_samples(known):
    own = SmoothActivation("own", known, known.derivative, known.second_derivative)
    given = SmoothActivation("own", known, known.derivative, known.second_derivative, known.bounds)
    assert own.bounds is None
    rng = np.random.default_rng(0)
    z, r = rng.uniform(-4, 4, 200), 10.0 ** rng.uniform(-4, 0, 200)
    near = z + r * np.linspace(-1, 1, 2001)[:, None]
    found, proved = own.changes(z, r), given.changes(z, r)
    for estimate, bound, f in zip(
        found, proved, (known.derivative, known.second_derivative), strict=True
    ):
        change = abs(f(near) - f(z)).max(axis=0)
        assert (estimate <= bound * (1 + 1e-9) + 1e-13).all()
        assert (estimate <= change * (1 + 1e-9) + 1e-13).all()
        assert (estimate >= 0.99 * change).all()
    assert [c.tolist() for c in proved] == [c.tolist() for c in known.changes(z, r)]


@pytest.mark.parametrize(
    ("functions", "message"),
    [
        ((np.tanh, np.cos), "expected the derivative at z = -3 to be 0.0098660"),
        ((np.sin, np.cos, np.sin), "expected the second derivative at z = -3 to be 0.14112"),
        ((np.sin, lambda z: np.cos(z) + 1e-4 * (z == 0.4)), "the derivative at z = 0.4"),
        ((abs, np.sign), "the second derivative at z = 0 to be"),
        ((lambda z: z**3 / z, lambda z: 2 * z), "expected finite values .* nan"),
        ((np.exp, lambda z: np.where(z < 2, np.exp(z), np.nan)), "expected finite .* nan"),
        ((np.sin, lambda z: 1.0), r"shape of z, \(7, 1\), got array\(1.\)"),
        ((np.sum, np.cos), r"shape of z, \(7, 1\), got array\("),
    ],
    ids=range(8),
)
def test_derivatives_that_differences_contradict_are_refused(functions, message):
    with (
        np.errstate(all="ignore"),
        pytest.raises(ValueError, match=rf"^SmoothActivation\(name='own'\): .*{message}"),
    ):
        SmoothActivation("own", *functions)


@pytest.mark.parametrize("name", [*KNOWN, None, 3])
def test_the_name_of_another_activation_is_refused(name):
    with pytest.raises(ValueError, match=f"a name other than relu, .*, got {name!r}"):
        SmoothActivation(name, np.sin, np.cos)


def test_networks_with_other_functions_of_the_same_name_are_not_equal():
    one, other = (
        Network((1, 3), [Dense(2)], SmoothActivation("own", f, slope))
        for f, slope in ((np.sin, np.cos), (np.exp, np.exp))
    )
    assert one.spec == other.spec
    assert one != other
    assert one == Network((1, 3), [Dense(2)], SmoothActivation("own", np.sin, np.cos))
