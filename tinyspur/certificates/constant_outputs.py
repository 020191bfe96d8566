"""Where W^1 = 0: the outputs, their Hessians in z^1, and how far these change nearby."""

from __future__ import annotations

import numpy as np

from ..engine.backend import to_numpy
from ..engine.floats import gamma
from ..engine.network import Network, check_usual
from ..engine.parameters import Parameters
from ..layers import Dense
from .enclosed_algebra import least_eigenvalue
from .enclosed_functions import activated
from .enclosures import QUIET, Enclosure, exact

TINY = 1e-290  # added to each step of a bound: more than what underflows in it


def check_smooth(net: Network) -> None:
    """Raise ValueError unless the network is fully connected, with a smooth activation."""
    check_usual(net, "curvature")
    if net.activation.piecewise_linear:
        raise ValueError(
            f"curvature: expected an activation with sigma'' != 0, got {net.activation}"
        )
    dense = all(isinstance(layer, Dense) and layer.bias for layer in net.chain)
    if net.depth < 2 or not dense:
        raise ValueError(
            f"curvature: expected dense layers with biases, at least one of them hidden, got {net}"
        )


def output_hessians(theta: Parameters) -> np.ndarray:
    """Return the Hessian of each output in z^1 where W^1 = 0, shape (d_y, n_1, n_1), on the host.

    See `ConstantOutputs.hessian` for the formula.
    """
    at = ConstantOutputs(theta)
    return np.stack([at.hessian(k).middle for k in range(len(at.W[-1]))])


def lower_eigenvalue(H: Enclosure) -> float:
    """Return a lower bound of the eigenvalues of all symmetric matrices in H.

    That of a Cholesky factor or that of Gershgorin, which is the better one for diagonal matrices
    with entries of very different sizes.
    """
    apart = np.where(np.eye(len(H), dtype=bool), 0.0, H.magnitude).sum(axis=1)
    discs = Enclosure(np.diag(H.middle), np.diag(H.radius)) - apart * (1 + gamma(len(H)))
    return max(float(discs.low.min()), least_eigenvalue(H))


class ConstantOutputs:
    """Enclosures of z, o, sigma'(z) and sigma''(z) in the hidden layers (n_l,), where W^1 = 0.

    They are the same for all samples; `unbiased` are the outputs (d_y,) without their biases.
    """

    def __init__(self, theta: Parameters):
        net = theta.net
        self.sigma = net.activation
        self.W = [to_numpy(theta.W[n].weights) for n in range(1, net.depth + 1)]
        z, self.z, self.o, self.slopes, self.bends = exact(to_numpy(theta.b[1])), [], [], [], []
        for n in range(2, net.depth + 1):
            o, slopes, bends = (activated(self.sigma, z, order) for order in range(3))
            self.z.append(z)
            self.o.append(o)
            self.slopes.append(slopes)
            if self.sigma.bounds is None:  # what it does beside z is only known from samples
                bends = bends.wider(self.sigma.changes(z.middle, z.radius)[1])
            self.bends.append(bends)
            z = self.W[n - 1] @ o
            if n < net.depth:
                z = z + to_numpy(theta.b[n])
        self.unbiased = z

    def hessian(self, output: int) -> Enclosure:
        """Return an enclosure of the Hessian of an output in z^1, (n_1, n_1).

        H = sum_l J_l^T diag(sigma''(z^l) p^l) J_l over the hidden layers, with J_l = dz^l / dz^1
        and p^l = do / do^l.
        """
        p = [exact(self.W[-1][output])]
        for slopes, W in zip(self.slopes[:0:-1], self.W[-2:0:-1], strict=True):
            p.insert(0, (slopes * p[0]) @ W)
        first = self.bends[0] * p[0]
        H, J = Enclosure(np.diag(first.middle), np.diag(first.radius)), None
        for n in range(1, len(p)):
            below = self.slopes[n - 1]
            J = exact(self.W[n]) * below if J is None else self.W[n] @ (below.reshape(-1, 1) * J)
            H = H + J.T @ ((self.bends[n] * p[n]).reshape(-1, 1) * J)
        return (H + H.T) * 0.5

    @property
    def rounding(self) -> float:
        """Return by what share numbers of `row_sums` may be off, but for what underflows."""
        return gamma(3 * sum(sum(W.shape) + 20 for W in self.W))

    @np.errstate(**QUIET)  # beyond a kink the bounds are infinite
    def row_sums(self, output: int, rho: float, reach: float) -> np.ndarray:
        """Return bounds of the row sums of |H'|, shape (n_1,), for parameters up to rho away.

        All factors |sigma'|, |sigma''| and |W| are taken as large as they can be, at any z^1 within
        `reach` times rho of b^1. The sums for rho less those for 0 bound the row sums of |H' - H|,
        up to `rounding` of both.
        """
        tiny = TINY if rho else 0.0

        def product(W: np.ndarray, v: np.ndarray) -> np.ndarray:
            return abs(W) @ v + rho * v.sum() + tiny

        slopes, bends, r = [], [], np.full(len(self.z[0]), rho * reach + tiny)
        sums = [np.ones(len(r))]  # of the rows of |J_l|
        for n, z in enumerate(self.z):
            more, bent = self._changes(z, r) if rho else (0.0, 0.0)
            slopes.append(self.slopes[n].magnitude + more + tiny)
            bends.append(self.bends[n].magnitude + bent + tiny)
            r = product(self.W[n + 1], slopes[n] * r + tiny)
            r = r + rho * (self.o[n].magnitude.sum() + 1)
            sums.append(product(self.W[n + 1], slopes[n] * sums[n] + tiny))
        p, rows = abs(self.W[-1][output]) + rho, 0.0
        for n in reversed(range(len(slopes))):
            rows = rows + bends[n] * p * sums[n] + tiny
            if n:
                rows = slopes[n - 1] * product(self.W[n].T, rows) + tiny
                p = product(self.W[n].T, slopes[n] * p + tiny)
        return rows

    def _changes(self, z: Enclosure, r: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return how far sigma' and sigma'' may be from those at the exact z, `r` away from it."""
        radii = (r * (1 + 2 * self.rounding) + z.radius, z.radius)
        near, here = (self.sigma.changes(z.middle, radius) for radius in radii)
        return tuple((a + b) * (1 + 1e-12) for a, b in zip(near, here, strict=True))
