"""Enclosures at constant outputs hold what 40 digits give, and eigenvalues are bounded."""

import mpmath as mp
import numpy as np
import pytest
from exact_algebra import fractions, pivots
from shared import SMOOTH

from tinyspur.certificates.constant_outputs import ConstantOutputs, lower_eigenvalue
from tinyspur.certificates.enclosures import Enclosure, exact
from tinyspur.engine.network import Network
from tinyspur.engine.parameters import Parameters
from tinyspur.layers import Dense

EXACT = {
    "sigmoid": lambda z: 1 / (1 + mp.exp(-z)),
    "tanh": mp.tanh,
    "softplus": lambda z: mp.log(1 + mp.exp(z)),
    "silu": lambda z: z / (1 + mp.exp(-z)),
    "gelu": lambda z: z * mp.ncdf(z),
    "elu": lambda z: z if z > 0 else mp.expm1(z),
    "sine": mp.sin,
    "arctan": mp.atan,
    "swish": lambda z: z / (1 + mp.exp(-mp.mpf(1.7) * z)),
}


def encloses(found, expected):
    middle, radius = (getattr(found, name).ravel().tolist() for name in ("middle", "radius"))
    for m, r, value in zip(middle, radius, np.ravel(expected), strict=True):
        assert abs(value - mp.mpf(m)) <= mp.mpf(r) <= 1e-10 * (1 + abs(value))


@pytest.mark.parametrize("sigma", SMOOTH, ids=str)
@pytest.mark.parametrize("size", [1.0, 6.0])
def test_layers_and_hessians_are_enclosed(sigma, size):
    net = Network((1, 2), [Dense(2), Dense(3), Dense(2), Dense(1)], sigma)
    rng = np.random.default_rng(int(size))
    theta = Parameters(net, rng.normal(size=net.size))
    theta.b[1][...] *= size
    at, f = ConstantOutputs(theta), EXACT[sigma.name]
    with mp.workdps(40):
        W = [fractions(theta.W[n].weights) for n in range(2, 5)]
        W = [np.vectorize(lambda w: mp.mpf(w.numerator) / w.denominator, otypes="O")(w) for w in W]
        z, J = np.array([mp.mpf(b) for b in theta.b[1].tolist()]), np.eye(2, dtype=object)
        layers = []
        for n, weights in enumerate(W):
            slopes, bends = (np.array([mp.diff(f, v, order) for v in z]) for order in (1, 2))
            encloses(at.z[n], z)
            encloses(at.slopes[n], slopes)
            encloses(at.bends[n], bends)
            layers.append((J, slopes, bends, weights))
            J = weights @ (slopes[:, None] * J)
            z = weights @ np.array([f(v) for v in z])
            if n < 2:
                z = z + np.array([mp.mpf(b) for b in theta.b[n + 2].tolist()])
        encloses(at.unbiased, z)
        p, H = np.array([mp.mpf(1)]), np.zeros((2, 2), dtype=object)
        for J, slopes, bends, weights in reversed(layers):
            p = p @ weights
            H = H + J.T @ ((bends * p)[:, None] * J)
            p = p * slopes
        encloses(at.hessian(0), H)


@pytest.mark.parametrize("off", [2.0**-20, 2.0**-48, 2.0**-52, 0.0, -(2.0**-52), -(2.0**-30)])
def test_no_matrix_is_called_definite_that_is_not(off):
    v = np.random.default_rng(0).integers(-8, 9, (3, 4))
    H = (v.T @ v).astype(float) * 2.0**-10 + off * np.eye(4)  # of rank 3 where off is 0
    for matrix in (H, H * [[1], [1], [1], [2.0**-30]] * [1, 1, 1, 2.0**-30]):
        least = lower_eigenvalue(exact(matrix))
        assert (least > 0) <= (len(p := pivots(fractions(matrix))) == 4 and min(p) > 0)
        assert least <= np.linalg.eigvalsh(matrix)[0] + 1e-15
    assert off < 1e-10 or lower_eigenvalue(exact(H)) > 0.9 * off


def test_diagonal_matrices_have_the_bound_of_their_least_entry():
    H = np.diag([1.0, 1e-200, 3e7])
    assert 0.99e-200 < lower_eigenvalue(exact(H)) <= 1e-200
    assert lower_eigenvalue(Enclosure(H, 2e-200 * np.eye(3))) <= -0.99e-200
    assert lower_eigenvalue(Enclosure(H, np.full((3, 3), np.inf))) == -np.inf
    apart = 0.4 * (1 - np.eye(3))  # of I - apart: 1 - 0.8
    assert 0.19 < lower_eigenvalue(Enclosure(np.eye(3), apart)) <= 0.2
