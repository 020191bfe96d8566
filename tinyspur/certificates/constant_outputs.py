"""Where W^1 = 0: the outputs, their Hessians in z^1, and how far these change nearby."""

from __future__ import annotations

import numpy as np

from ..engine.activations import Activation
from ..engine.backend import to_numpy
from ..engine.floats import gamma
from ..engine.network import Network
from ..engine.parameters import Parameters
from ..layers import Dense
from .enclosed_algebra import least_eigenvalue
from .enclosed_functions import activated
from .enclosures import QUIET, Enclosure, concatenate, exact

TINY = 1e-290  # added to each step of a bound: more than what underflows in it


def check_smooth(net: Network) -> None:
    """Raise ValueError unless the curvature certificate knows the layers, naming one that it can't.

    These are dense layers, convolutions, average poolings, scales and residual blocks, under smooth
    activations. The last is dense with biases, below it there is an activation.
    """
    for n, link in enumerate(net.chain, 1):
        kind = getattr(link, "layer", link)
        if kind.selects:
            raise ValueError(
                f"curvature: expected no max pooling, got {kind} as layer {n}: where all samples "
                "have the same outputs the entries of a window may be equal"
            )
        sigma = net.activation_of(n)
        if sigma is not None and sigma.piecewise_linear:
            raise ValueError(
                f"curvature: expected an activation with sigma'' != 0, got {sigma} after layer "
                f"{n}, {kind}"
            )
    last = net.chain[-1]
    if not (isinstance(last, Dense) and last.bias and not net.is_active(net.depth)):
        raise ValueError(
            "curvature: expected a dense layer with biases, and without activation, at the end, "
            f"got {last} as layer {net.depth}"
        )
    if not net.active_layers:
        raise ValueError(f"curvature: expected a hidden layer with an activation, got {net}")


def first_layer(net: Network) -> int:
    """Return the layer of W^1: the first with weights. Poolings below it are part of W^1."""
    return net.leading_poolings + 1


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

    They are the same for all samples; `unbiased` are the outputs (d_y,) without their biases. `W`
    are the matrices of all layers as arrays: a convolution is a matrix whose entries are shared,
    and what is proved for all changes of the entries is proved for changes of shared ones. What can
    change is in `support`: None for all entries, else an array of zeros and ones, all zeros for a
    pooling. `read` (n_1,) says which units of the first layer reach the outputs through weights.
    """

    def __init__(self, theta: Parameters):
        net, first = theta.net, first_layer(theta.net)
        layers = range(first, net.depth + 1)
        self.sigmas = [net.activation_of(n) for n in layers]
        self.rows = [theta.W[n].rows for n in layers]  # others are kept for the sum of a block
        self.W = [_array(theta, n) for n in layers]
        self.support = [_support(theta, n) for n in layers]
        self.read = _read(self.W, self.support)
        z, self.z, self.o, self.slopes, self.bends = exact(_biases(theta, first)), [], [], [], []
        for n, sigma, W in zip(layers[1:], self.sigmas, self.W[1:], strict=False):
            rows = self.rows[n - first - 1]
            o, slopes, bends = (_activated(sigma, z, order, rows) for order in range(3))
            self.z.append(z)
            self.o.append(o)
            self.slopes.append(slopes)
            if sigma is not None and sigma.bounds is None:  # only known from samples beside z
                more = np.zeros(len(z.middle))
                more[:rows] = sigma.changes(z.middle[:rows], z.radius[:rows])[1]
                bends = bends.wider(more)
            self.bends.append(bends)
            z = W @ o
            if n < net.depth and n in theta.b:
                z = z + _biases(theta, n)
        self.unbiased = z

    @property
    def hidden(self) -> list[tuple[Activation, Enclosure]]:
        """Return the activations and what they are applied to."""
        layers = zip(self.sigmas, self.z, self.rows, strict=False)
        return [(sigma, z[:rows]) for sigma, z, rows in layers if sigma]

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
            if self.sigmas[n] is not None:
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

        def product(W: np.ndarray, support: np.ndarray | None, v: np.ndarray) -> np.ndarray:
            return abs(W) @ v + rho * (v.sum() if support is None else support @ v) + tiny

        def transposed(n: int, v: np.ndarray) -> np.ndarray:
            support = self.support[n]
            return product(self.W[n].T, None if support is None else support.T, v)

        slopes, bends, r = [], [], np.full(len(self.z[0]), rho * reach + tiny)
        sums = [np.ones(len(r))]  # of the rows of |J_l|
        for n, z in enumerate(self.z):
            more, bent = self._changes(n, z, r) if rho else (0.0, 0.0)
            slopes.append(self.slopes[n].magnitude + more + tiny)
            bends.append(self.bends[n].magnitude + bent + tiny)
            W, support, size = self.W[n + 1], self.support[n + 1], self.o[n].magnitude
            r = product(W, support, slopes[n] * r + tiny)
            r = r + rho * ((size.sum() if support is None else support @ size) + 1)
            sums.append(product(W, support, slopes[n] * sums[n] + tiny))
        p, rows = abs(self.W[-1][output]) + rho, 0.0
        for n in reversed(range(len(slopes))):
            rows = rows + bends[n] * p * sums[n] + tiny
            if n:
                rows = slopes[n - 1] * transposed(n, rows) + tiny
                p = transposed(n, slopes[n] * p + tiny)
        return rows

    def _changes(self, n: int, z: Enclosure, r: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return how far sigma' and sigma'' may be from those at the exact z, `r` away from it."""
        sigma, own = self.sigmas[n], slice(self.rows[n])
        changes = np.zeros((2, len(r)))
        if sigma is None:
            return tuple(changes)
        radii = (r[own] * (1 + 2 * self.rounding) + z.radius[own], z.radius[own])
        near, here = (sigma.changes(z.middle[own], radius) for radius in radii)
        for found, a, b in zip(changes, near, here, strict=True):
            found[own] = (a + b) * (1 + 1e-12)
        return tuple(changes)


def _activated(sigma: Activation | None, z: Enclosure, order: int, rows: int) -> Enclosure:
    """Return a derivative of sigma at z, in so many rows; in others, and without one, of z."""
    still = z if order == 0 else exact(np.full(len(z.middle), float(order == 1)))
    if sigma is None:
        return still
    if rows == len(z.middle):
        return activated(sigma, z, order)
    return concatenate([activated(sigma, z[:rows], order), still[rows:]])


def _array(theta: Parameters, n: int) -> np.ndarray:
    W = theta.W[n]
    return to_numpy(W.weights) if isinstance(theta.net.chain[n - 1], Dense) else W.toarray()


def _support(theta: Parameters, n: int) -> np.ndarray | None:
    """Return which entries of a matrix weights can change, (n_l, n_{l-1}); None for all."""
    W = theta.W[n]
    if isinstance(theta.net.chain[n - 1], Dense):
        return None
    if W.weights is None:
        return np.zeros(W.shape)
    return W.trained.with_weights(np.ones(W.weights.shape)).toarray()


def _read(W: list[np.ndarray], support: list[np.ndarray | None]) -> np.ndarray:
    """Return which units of the first layer the outputs can depend on, (n_1,)."""
    read = np.ones(len(W[-1]), bool)
    for matrix, some in zip(W[:0:-1], support[:0:-1], strict=True):
        entries = np.ones(matrix.shape, bool) if some is None else (some != 0) | (matrix != 0)
        read = (entries & read[:, None]).any(axis=0)
    return read


def _biases(theta: Parameters, n: int) -> np.ndarray:
    """Return the biases of a layer, (n_l,), 0 where it has none."""
    W = theta.W[n]
    return to_numpy(W.spread(theta.b[n])) if n in theta.b else np.zeros(W.shape[0])
