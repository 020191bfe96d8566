"""Attacks on proved minima: moves that should lower the risk most, judged with 1,000 bits.

Sums and products of float64 numbers need fewer bits than that, so nothing is decided by rounding;
exponentials and square roots come with their error bounds (python-flint's balls).
"""

import itertools

import flint
import numpy as np
import scipy.linalg

from tinyspur.certificates.stationary import find_stationary
from tinyspur.engine.activations import ReLU, Sigmoid, Softplus, Tanh
from tinyspur.engine.losses import AbsoluteLoss, CrossEntropy, HuberLoss, SquaredLoss
from tinyspur.engine.parameters import Parameters

BITS = 1000
arb = flint.arb


class ExactRisk:
    """R(theta), and L(theta, lambda) with units held at kinks, as balls of BITS bits.

    Computed sample by sample from the entries of the weight matrices alone.
    """

    def __init__(self, net, data, loss):
        self.net, self.loss, self.N = net, loss, len(data)
        flint.ctx.prec = BITS
        self.x = np.array([[arb(v) for v in row] for row in data.x.reshape(len(data), -1)]).T
        self.y = np.array([[arb(v) for v in row] for row in data.y.reshape(len(data), -1)]).T

    def __call__(self, theta):
        """Return R(theta)."""
        return self._sum(self._outputs(theta, {}, {}), ())

    def held(self, theta, kinks, multipliers):
        """Return R_0 + sum_k lambda_k v_k."""
        by_layer, values = {}, {}
        for n, kink in enumerate(kinks):
            by_layer.setdefault(kink.layer, []).append((n, kink))
        o = self._outputs(theta, by_layer, values)
        skipped = by_layer.get(self.net.depth + 1, ())
        for n, kink in skipped:
            at = kink.units[0], kink.samples[0]
            values[n] = o[at] - self.y[at]
        places = {(u, s) for _, k in skipped for u, s in zip(k.units, k.samples, strict=True)}
        parts = [arb(float(multipliers[n])) * value for n, value in values.items()]
        return self._sum(o, places) + sum(parts, arb(0))

    def _outputs(self, theta, by_layer, values):
        flint.ctx.prec = BITS
        o = self.x
        for layer, W in theta.W.items():
            held, below = by_layer.get(layer, ()), o
            own, read = W.inner, below[W.read]
            if W.selects:
                o = _pooled(W, below, held, values)
            elif W.weights is None:  # of ones, and a division that is exact or has an error bound
                o = _times(own.tocsr() * own.nnz / own.shape[0], read)
                o = o / arb(own.nnz // own.shape[0])
            else:
                o = _times(own.tocsr(), read)
            if layer in theta.b:
                o = o + np.repeat([arb(v) for v in theta.b[layer]], W.positions_out)[:, None]
            if getattr(W, "added", None) is not None:
                o = o + below[W.added]
            if theta.net.is_active(layer):
                for n, kink in held:
                    values[n] = o[kink.units[0], kink.samples[0]]
                o = _applied(theta.net.activation_of(layer), o)
                for _, kink in held:
                    o[kink.units, kink.samples] = arb(0)
            o = np.concatenate([o, *(below[part] for part in getattr(W, "carried", ()))])
        return o

    def _sum(self, o, skipped):
        total = arb(0)
        for n in range(self.N):
            pairs = [(o[k, n], self.y[k, n]) for k in range(len(o)) if (k, n) not in skipped]
            total += _loss(self.loss, *zip(*pairs, strict=True)) if pairs else arb(0)
        return total / self.N


def _times(csr, o):
    product = flint.arb_mat(csr.toarray().tolist()) * flint.arb_mat(o.tolist())
    return np.array(product.tolist(), dtype=object).reshape(csr.shape[0], o.shape[1])


def _pooled(W, o, held, values):
    places = W.inner.windows(np.arange(W.shape[1])[W.read, None], -1)[..., 0]
    lowest = np.full((1, o.shape[1]), arb("-1e1000"), dtype=object)  # what padding has
    padded = np.concatenate([o, lowest])
    found = padded[places[0]]
    for row in places[1:]:
        found = np.frompyfunc(lambda a, b: a.max(b), 2, 1)(found, padded[row])
    for n, kink in held:
        (a, b), sample = kink.pairs[0], kink.samples[0]
        values[n] = o[a, sample] - o[b, sample]
        found[kink.units, kink.samples] = o[kink.pairs[:, 1], kink.samples]
    return found


def _applied(sigma, z):
    functions = {
        ReLU: lambda v: v.max(v * arb(getattr(sigma, "slope", 0.0))),
        Tanh: lambda v: v.tanh(),
        Sigmoid: lambda v: 1 / (1 + (-v).exp()),
        Softplus: lambda v: (1 + v.exp()).log(),
    }
    return np.frompyfunc(functions[type(sigma)], 1, 1)(z)


def _loss(loss, o, y):
    if isinstance(loss, SquaredLoss):
        return sum(((a - b) ** 2 for a, b in zip(o, y, strict=True)), arb(0)) / 2
    if isinstance(loss, AbsoluteLoss):
        return sum((abs(a - b) for a, b in zip(o, y, strict=True)), arb(0))
    if isinstance(loss, HuberLoss):
        delta = arb(loss.delta)
        sizes = [abs(a - b) for a, b in zip(o, y, strict=True)]
        return sum((r * r / 2 if r <= delta else delta * (r - delta / 2) for r in sizes), arb(0))
    assert isinstance(loss, CrossEntropy)
    total = sum((v.exp() for v in o), arb(0)).log()
    return sum((b * (total - a) for a, b in zip(o, y, strict=True)), arb(0))


def attack(theta, kinks, data, loss, radius, count):
    """Return the least R - R(theta*) of so many attacks, and R(theta*).

    That is L at the stationary point in floats, which differs from it at second order.
    """
    at = find_stationary(theta, data, loss, kinks, True)
    risk = ExactRisk(theta.net, data, loss)
    least = risk.held(at.theta, at.held.kinks, at.multipliers)
    tried = [near for _, near in attacks(at, theta, data, loss, radius, count)]
    assert len(tried) > 0.9 * count
    assert all(abs(near.vector - theta.vector).max() < radius for near in tried)
    return min(float((risk(near) - least).mid()) for near in tried), least


def attacks(at, theta, data, loss, radius, count, seed=0):
    """Yield (name, point) within max-norm distance `radius` of theta, `count` of them in turn.

    `at` is the stationary point near theta, see `find_stationary`.
    """
    ways = _ways(at, theta, data, loss, radius, np.random.default_rng(seed))
    sizes = itertools.cycle([1.0, 0.5, 0.1, 1e-2, 1e-4])
    for (name, d), size in zip(itertools.islice(ways, count), sizes, strict=False):
        largest = abs(d).max()
        if not 0 < largest < np.inf:
            continue
        step = d * (size * radius * (1 - 1e-9) / largest)
        yield name, Parameters(theta.net, np.clip(theta.vector + step, *_box(theta, radius)))


def _box(theta, radius):
    low, high = theta.vector - radius, theta.vector + radius
    return np.nextafter(low, high), np.nextafter(high, low)


def _ways(at, theta, data, loss, radius, rng):
    """Yield names and directions (p,) for ever, the most dangerous ones first."""
    p, Z, H = theta.net.size, at.jacobian, at.hessian
    away = np.linalg.pinv(Z).T if len(Z) else np.zeros((0, p))  # each leaves one kink alone
    basis = scipy.linalg.null_space(Z) if len(Z) else np.eye(p)
    values, vectors = np.linalg.eigh(basis.T @ H @ basis)
    tangents = (basis @ vectors).T
    free = np.zeros((len(at.coordinates.free), p))
    free[:, at.coordinates.free] = np.eye(len(free))
    inside = scipy.linalg.null_space(Z[:, at.coordinates.free]) if len(Z) else np.eye(len(free))
    H_free = H[np.ix_(at.coordinates.free, at.coordinates.free)]
    own = (inside @ np.linalg.eigh(inside.T @ H_free @ inside)[1]).T @ free if len(free) else free
    fixed = [("kink", s * d) for d in away for s in (1, -1)]
    fixed += [("normal", s * d) for d in Z for s in (1, -1)]
    fixed += [("sign of normal", s * np.sign(d)) for d in Z for s in (1, -1)]
    fixed += [("eigenvector", s * d) for d in tangents for s in (1, -1)]
    fixed += [("free eigenvector", s * d) for d in own for s in (1, -1)]
    fixed += [("sign of eigenvector", s * np.sign(d)) for d in own for s in (1, -1)]
    fixed += [("coordinate", s * d) for d in np.eye(p) for s in (1, -1)]
    order = rng.permutation(len(fixed))
    lowest = [own[:3], tangents[: 1 + int((values < 1e-9 * abs(values).max()).sum())]]
    lowest = np.concatenate(lowest)
    for n in itertools.count():
        yield fixed[order[n % len(fixed)]]
        yield "corner", rng.choice([-1.0, 1.0], p)
        yield "random", rng.normal(size=p)
        mixed = rng.normal(size=len(lowest)) @ lowest
        yield "low curvature", mixed
        yield "valley", _valley(at, mixed, radius, rng)
        yield (
            "away and along",
            mixed / abs(mixed).max() + 10.0 ** rng.uniform(-8, 0) * _some(away, rng, p),
        )
        yield "downhill", _downhill(theta, data, loss, radius, rng)


def _some(away, rng, p):
    return rng.choice([-1.0, 0, 1], len(away)) @ away if len(away) else rng.normal(size=p)


def _valley(at, d, radius, rng):
    """Return a move along d that stays on the kinks to second order, with v_K = 0."""
    move = d * (radius * rng.uniform(0.1, 1) / max(abs(d).max(), 1e-300))
    if not at.held.kinks:
        return move
    for _ in range(2):
        theta = Parameters(at.theta.net, at.theta.vector + move)
        v = at.held.gradient(theta, at.multipliers).values
        move = move - np.linalg.pinv(at.held.jacobian(theta)) @ v
    return move


def _downhill(theta, data, loss, radius, rng):
    """Return where a few sign steps along minus the gradient lead from a random point near."""
    net, step = theta.net, radius / 4
    move = rng.uniform(-radius, radius, net.size)
    for _ in range(6):
        g = net.gradient(Parameters(net, theta.vector + move), data, loss).vector
        move = np.clip(move - step * np.sign(g), -radius, radius)
        step /= 2
    return move
