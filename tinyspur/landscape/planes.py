"""Directions, lines and planes through parameter space (Li et al. 2018), and the risks on them.

`scan.scan` evaluates the risk at the points of a `Plane` or of `Lines` and returns a
`Landscape`. What it shows is evidence: a scan samples, it proves nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..backend import all_to_numpy, namespace, to_numpy
from ..layers import is_positive
from ..parameters import Parameters
from ..reports import naming, read_arrays, whole_file

NORMALIZATIONS = (None, "filter", "layer")


# Directions


def random_direction(
    theta: Parameters,
    seed: int | Sequence[int] = 0,
    normalization: str | None = None,
    biases: bool = True,
) -> Parameters:
    """Return a Gaussian direction, normalised, in the type and on the device of theta.

    Without `normalization` its Euclidean length is 1. With ``"filter"`` each filter (of a dense
    layer: each neuron's row) has the length of the same filter of theta, with ``"layer"`` each
    layer that of theta's layer ([Li et al. 2018], Section 4). A bias belongs to its filter, as the
    papers absorb it into the weights; if `biases` are ignored those of the direction are 0, and
    lengths are those of the weights alone. Where theta is 0 so is a normalised direction: the dead
    filters of the constructions don't move without their biases. Raises ValueError for another
    normalization, and where nothing would move.
    """
    _same_network(theta)
    if normalization not in NORMALIZATIONS:
        raise ValueError(
            f"normalization: expected None, 'filter' or 'layer', got {normalization!r}"
        )
    net, rng = theta.net, np.random.default_rng(seed)
    start = theta.to(np, np.float64)
    d = Parameters(net, rng.standard_normal(net.size))
    for layer, b in d.b.items():
        w = d.W[layer].weights
        if not biases:
            b[...] = 0
        if normalization is not None:
            own, wanted = (
                np.c_[p.W[layer].weights.reshape(len(b), -1), biases * p.b[layer]]
                for p in (d, start)
            )
            axis = 1 if normalization == "filter" else None
            scale = np.linalg.norm(wanted, axis=axis) / np.linalg.norm(own, axis=axis)
            scale = np.broadcast_to(scale, len(b))
            w *= scale.reshape(-1, *(1,) * (w.ndim - 1))
            b *= scale
    if normalization is None:
        d.vector /= np.linalg.norm(d.vector)
    elif not d.vector.any():
        raise ValueError(f"normalization {normalization!r}: expected a theta that is not 0")
    return d.to(namespace(theta.vector), theta.vector.dtype)


class RandomDirections(Sequence):
    """`count` random directions around theta, each made from (seed, its number) when asked for."""

    def __init__(
        self,
        theta: Parameters,
        count: int,
        seed: int = 0,
        normalization: str | None = None,
        biases: bool = True,
    ):
        self.theta, self.count = theta, count
        self.seed, self.normalization, self.biases = seed, normalization, biases
        if not is_positive(count):
            raise ValueError(f"random directions: expected one or more, got {count!r}")
        self[0]  # refuses what is no point, and what it can't normalise

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, k: int) -> Parameters:
        if not -self.count <= k < self.count:
            raise IndexError(f"direction: expected 0..{self.count - 1}, got {k}")
        seed = (self.seed, k % self.count)
        return random_direction(self.theta, seed, self.normalization, self.biases)


# Where to evaluate the risk


@dataclass(frozen=True)
class Plane:
    """The points theta + alpha d_1 + beta d_2 for all `alpha` (A,) and `beta` (B,)."""

    theta: Parameters
    directions: Sequence[Parameters]
    alpha: np.ndarray
    beta: np.ndarray

    def __post_init__(self):
        _check(self, 2)

    @classmethod
    def random(
        cls,
        theta: Parameters,
        seed: int = 0,
        normalization: str | None = None,
        biases: bool = True,
        extent: float = 1.0,
        steps: int = 51,
    ) -> Plane:
        """Return a grid of steps x steps points, -extent <= alpha, beta <= extent, around theta."""
        ticks = _ticks(extent, steps)
        directions = RandomDirections(theta, 2, seed, normalization, biases)
        return cls(theta, tuple(directions), ticks, ticks)

    @classmethod
    def through(
        cls, origin: Parameters, a: Parameters, b: Parameters, steps: int = 51, margin: float = 0.25
    ) -> Plane:
        """Return the plane of three points: `origin` at (0, 0), `a` at (1, 0), `b` at beta = 1.

        d_2 is the part of b - origin orthogonal to a - origin. The grid covers the three points
        and `margin` times their range around them. Raises ValueError for points on one line.
        """
        _same_network(origin, a, b)
        d1, move = a.vector - origin.vector, b.vector - origin.vector
        noise = 8 * float(np.finfo(d1.dtype).eps) * float(b.vector @ b.vector) ** 0.5
        if not d1.any() or not _independent(to_numpy(d1), to_numpy(move), noise):
            raise ValueError("plane: expected three points that are not on one line")
        along = float(d1 @ move) / float(d1 @ d1)
        d2 = move - along * d1
        ticks = [
            np.linspace(low - margin * (high - low), high + margin * (high - low), steps)
            for low, high in ((min(0.0, along), max(1.0, along)), (0.0, 1.0))
        ]
        return cls(origin, tuple(Parameters(origin.net, d) for d in (d1, d2)), *ticks)

    @property
    def shape(self) -> tuple[int, int]:
        """Return the shape (A, B) of the risks."""
        return len(self.alpha), len(self.beta)

    def coordinates(self, point: Parameters) -> tuple[float, float]:
        """Return (alpha, beta) of the point of the plane that is nearest to `point`."""
        _same_network(self.theta, point)
        vectors = all_to_numpy([p.vector for p in (point, self.theta, *self.directions)])
        move, *directions = (v.astype(np.float64) for v in (vectors[0] - vectors[1], *vectors[2:]))
        alpha, beta = np.linalg.lstsq(np.stack(directions, axis=1), move, rcond=None)[0]
        return float(alpha), float(beta)

    def within(self, radius: float, corners: int = 360) -> np.ndarray:
        """Return (corners, 2): where max-norm distance `radius` from theta ends in the plane."""
        angles = np.linspace(0, 2 * np.pi, corners, endpoint=False)
        circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        d1, d2 = all_to_numpy([d.vector for d in self.directions])
        reach = np.array([abs(c * d1 + s * d2).max() for c, s in circle])
        return circle * (radius / reach)[:, None]

    def _moves(self) -> np.ndarray:
        grid = np.stack(np.meshgrid(self.alpha, self.beta, indexing="ij"), axis=-1)
        return grid.reshape(-1, 2)

    def points(self, numbers: Sequence[int]) -> Iterator[Parameters]:
        """Yield the points with these numbers, which count them row by row of the risks."""
        d1, d2 = (d.vector for d in self.directions)
        for n in numbers:
            a, b = divmod(int(n), len(self.beta))
            vector = self.theta.vector + float(self.alpha[a]) * d1 + float(self.beta[b]) * d2
            yield Parameters(self.theta.net, vector)

    @property
    def farthest(self) -> int:
        """Return the number of the point at the largest max-norm distance from theta."""
        d1, d2 = all_to_numpy([d.vector for d in self.directions])
        corners = np.ix_((0, len(self.alpha) - 1), (0, len(self.beta) - 1))
        numbers = np.arange(len(self.alpha) * len(self.beta)).reshape(self.shape)[corners].ravel()
        moves = self._moves()[numbers]
        return int(numbers[np.argmax([abs(a * d1 + b * d2).max() for a, b in moves])])


@dataclass(frozen=True)
class Lines:
    """The points theta + alpha d_k for all `directions` d_k, k < K, and all `alpha` (A,)."""

    theta: Parameters
    directions: Sequence[Parameters]
    alpha: np.ndarray

    beta = None

    def __post_init__(self):
        _check(self, None)

    @classmethod
    def random(
        cls,
        theta: Parameters,
        count: int = 200,
        seed: int = 0,
        normalization: str | None = None,
        biases: bool = True,
        extent: float = 1.0,
        steps: int = 51,
    ) -> Lines:
        """Return `count` lines through theta, `steps` points with |alpha| <= extent on each."""
        directions = RandomDirections(theta, count, seed, normalization, biases)
        return cls(theta, directions, _ticks(extent, steps))

    @classmethod
    def between(cls, a: Parameters, b: Parameters, steps: int = 51, margin: float = 0.25) -> Lines:
        """Return the line through `a`, at alpha = 0, and `b`, at alpha = 1, and `margin` beyond."""
        _same_network(a, b)
        move = Parameters(a.net, b.vector - a.vector)
        return cls(a, (move,), np.linspace(-margin, 1 + margin, steps))

    @property
    def shape(self) -> tuple[int, int]:
        """Return the shape (K, A) of the risks."""
        return len(self.directions), len(self.alpha)

    def within(self, radius: float) -> np.ndarray:
        """Return (K,): the alpha at which each line leaves max-norm distance `radius` of theta."""
        return np.array([radius / float(abs(to_numpy(d.vector)).max()) for d in self.directions])

    def _moves(self) -> np.ndarray:
        return np.tile(self.alpha, len(self.directions))[:, None]

    def points(self, numbers: Sequence[int]) -> Iterator[Parameters]:
        """Yield the points with these numbers, which count them row by row of the risks."""
        last = None
        for n in numbers:
            k, a = divmod(int(n), len(self.alpha))
            if k != last:
                last, direction = k, self.directions[k].vector
            vector = self.theta.vector + float(self.alpha[a]) * direction
            yield Parameters(self.theta.net, vector)

    @property
    def farthest(self) -> int:
        """Return the number of the point at the largest max-norm distance from theta."""
        k = int(np.argmax([float(abs(d.vector).max()) for d in self.directions]))
        return k * len(self.alpha) + int(abs(self.alpha).argmax())


def _ticks(extent: float, steps: int) -> np.ndarray:
    if not is_positive(steps) or not 0 < extent < np.inf:
        raise ValueError(
            f"expected an extent > 0 and one step or more, got {extent!r} and {steps!r}"
        )
    return np.linspace(-extent, extent, steps)


def _check(where: Plane | Lines, count: int | None) -> None:
    """Make the ticks arrays, and raise ValueError for what no scan can use."""
    name, theta, directions = type(where).__name__.lower(), where.theta, where.directions
    for axis in ("alpha", "beta") if count else ("alpha",):
        ticks = np.array(getattr(where, axis), dtype=np.float64)
        if ticks.ndim != 1 or not ticks.size or not np.isfinite(ticks).all():
            raise ValueError(f"{name}: expected finite numbers {axis} (n,), got {ticks}")
        object.__setattr__(where, axis, ticks)
    if not len(directions) or (count and len(directions) != count):
        raise ValueError(
            f"{name}: expected {count or 'one or more'} directions, got {len(directions)}"
        )
    if isinstance(directions, RandomDirections):
        _same_network(theta, directions.theta)
        vectors = [theta.vector]
    else:
        _same_network(theta, *directions)
        vectors = [theta.vector, *(d.vector for d in directions)]
    vectors = all_to_numpy(vectors)
    if not np.isfinite(vectors[0]).all():
        raise ValueError(f"{name}: expected a finite theta")
    for k, vector in enumerate(vectors[1:]):
        if not vector.any() or not np.isfinite(vector).all():
            raise ValueError(f"{name}: direction {k}: expected finite numbers, not all 0")
    if count and len(vectors) == 3 and not _independent(*vectors[1:]):
        raise ValueError(f"{name}: expected directions that are not parallel")


def _independent(d1: np.ndarray, d2: np.ndarray, noise: float = 0.0) -> bool:
    """Return whether d2 has a part orthogonal to d1 that is longer than rounding, or `noise`."""
    d1, d2 = d1.astype(np.float64), d2.astype(np.float64)
    rest = d2 - (d1 @ d2) / (d1 @ d1) * d1
    return np.linalg.norm(rest) > max(1e-12 * np.linalg.norm(d2), noise)


def _same_network(first: Parameters, *others: Parameters) -> None:
    """Raise ValueError for parameters of another network, type or device."""
    for other in (first, *others):
        if not isinstance(other, Parameters):
            raise ValueError(
                f"expected points and directions as Parameters, got a {type(other).__name__}"
            )
        if other.net != first.net:
            raise ValueError(f"expected points and directions of {first.net}, got {other.net}")
        kinds = [f"{namespace(p.vector).__name__} {p.vector.dtype}" for p in (first, other)]
        if kinds[0] != kinds[1]:
            raise ValueError(f"expected points and directions of {kinds[0]}, got {kinds[1]}")


# The risks


@dataclass(frozen=True)
class Landscape:
    """Risks on a plane (A, B), for `alpha` (A,) and `beta` (B,), or on K lines (K, A).

    `centre` is R(theta). A risk is called lower where it is so by more than `rounding`: the sum of
    the rounding errors estimated for theta and, whichever is larger, for the lowest point or the
    one farthest from theta.
    """

    alpha: np.ndarray
    beta: np.ndarray | None
    risks: np.ndarray
    centre: float
    rounding: float

    @property
    def lower(self) -> np.ndarray:
        """Return where the risk is lower than at theta, shaped as `risks`."""
        return self.risks < self.centre - self.rounding

    @property
    def lower_lines(self) -> int:
        """Return on how many of the lines a lower risk was found."""
        if self.beta is not None:
            raise ValueError("lower lines: expected lines, got a plane")
        return int(self.lower.any(axis=1).sum())

    def __str__(self) -> str:
        if self.beta is None:
            found = f"{self.lower_lines} of {len(self.risks)} lines reach a lower risk"
        else:
            found = f"{self.lower.sum()} of {self.risks.size} points are lower"
        if self.lower.any():
            found += f", by {self.centre - np.nanmin(self.risks):.3g} at most"
        return f"R = {self.centre:.9g} at the centre; {found}"

    def save(self, path: str | Path, **more: np.ndarray) -> None:
        """Write `alpha`, `beta` (of a plane), `risks`, `centre`, `rounding` and `more` as NPZ."""
        axes = {"alpha": self.alpha} | ({} if self.beta is None else {"beta": self.beta})
        numbers = {"centre": np.array(self.centre), "rounding": np.array(self.rounding)}
        with whole_file(path) as file:
            np.savez(file, **axes, risks=self.risks, **numbers, **more)

    @classmethod
    def load(cls, path: str | Path) -> Landscape:
        """Return the landscape that `save` or a finished `scan` wrote to `path`.

        Raises ValueError for another file and for that of a scan that isn't finished.
        """
        arrays = read_arrays(path)
        with naming(f"{path}:"):
            missing = {"alpha", "risks", "centre", "rounding"} - set(arrays)
            if missing:
                raise ValueError(f"expected arrays {sorted(missing)}, got {sorted(arrays)}")
            done = arrays.get("done", np.ones(1, bool))
            if not done.all() or np.isnan(arrays["rounding"]):
                raise ValueError(
                    f"expected a finished scan, got {done.sum()} of {done.size} risks"
                    + " without their rounding" * bool(done.all())
                )
            alpha, beta, risks = arrays["alpha"], arrays.get("beta"), arrays["risks"]
            lines = risks.shape[:1] + alpha.shape
            expected = lines if beta is None else alpha.shape + beta.shape
            if risks.shape != expected:
                raise ValueError(f"expected risks {expected}, got {risks.shape}")
            return cls(alpha, beta, risks, float(arrays["centre"]), float(arrays["rounding"]))
