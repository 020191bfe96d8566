"""Planes and lines through parameter space: the points at which a scan evaluates the risk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..engine.backend import all_to_numpy, to_numpy
from ..engine.parameters import Parameters
from ..engine.plain import plain_on_host, real, whole, whole_number
from ..layers import is_positive
from .directions import RandomDirections, same_network


@dataclass(frozen=True, repr=False)
class Plane:
    """The points theta + alpha d_1 + beta d_2 for all `alpha` (A,) and `beta` (B,)."""

    theta: Parameters
    directions: Sequence[Parameters]
    alpha: np.ndarray
    beta: np.ndarray

    def __post_init__(self):
        _check(self, 2)

    def __repr__(self) -> str:
        points = f"{len(self.alpha)} x {len(self.beta)} points"
        ends = f"alpha {_ends(self.alpha)}, beta {_ends(self.beta)}"
        return f"Plane({points}, {ends}, {self.theta})"

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
        cls, origin: Parameters, a: Parameters, b: Parameters, steps: int = 49, margin: float = 0.25
    ) -> Plane:
        """Return the plane of three points: `origin` at (0, 0), `a` at (1, 0), `b` at beta = 1.

        d_2 is the part of b - origin orthogonal to a - origin. The grid covers the three points
        and `margin` times their range around them; by default the ends of the ranges are on it.
        Raises ValueError for points on one line.
        """
        same_network(origin, a, b)
        steps = whole_number("steps", steps)
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
        same_network(self.theta, point)
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

    def moves(self) -> np.ndarray:
        """Return (A B, 2): how far along the directions each point is, in the points' order."""
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
        moves = self.moves()[numbers]
        return int(numbers[np.argmax([abs(a * d1 + b * d2).max() for a, b in moves])])


@dataclass(frozen=True, repr=False)
class Lines:
    """The points theta + alpha d_k for all `directions` d_k, k < K, and all `alpha` (A,)."""

    theta: Parameters
    directions: Sequence[Parameters]
    alpha: np.ndarray

    beta = None

    def __post_init__(self):
        _check(self, None)

    def __repr__(self) -> str:
        lines = f"{len(self.directions)} line{'s' * (len(self.directions) > 1)}"
        ends = f"{len(self.alpha)} points, alpha {_ends(self.alpha)}"
        return f"Lines({lines} of {ends}, {self.theta})"

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
    def between(cls, a: Parameters, b: Parameters, steps: int = 49, margin: float = 0.25) -> Lines:
        """Return the line through `a`, at alpha = 0, and `b`, at alpha = 1, and `margin` beyond.

        By default both are among the points; with other `steps` they need not be.
        """
        same_network(a, b)
        steps = whole_number("steps", steps)
        if not abs(real(margin)) < np.inf:
            raise ValueError(f"margin: expected a finite number, got {margin!r}")
        move = Parameters(a.net, b.vector - a.vector)
        return cls(a, (move,), np.linspace(-margin, 1 + margin, steps))

    @property
    def shape(self) -> tuple[int, int]:
        """Return the shape (K, A) of the risks."""
        return len(self.directions), len(self.alpha)

    def within(self, radius: float) -> np.ndarray:
        """Return (K,): the alpha at which each line leaves max-norm distance `radius` of theta."""
        return np.array([radius / float(abs(to_numpy(d.vector)).max()) for d in self.directions])

    def moves(self) -> np.ndarray:
        """Return (K A, 1): how far along its line each point is, in the points' order."""
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


def _ends(ticks: np.ndarray) -> str:
    return f"{ticks[0]:.4g} to {ticks[-1]:.4g}"


def _ticks(extent: float, steps: int) -> np.ndarray:
    if not is_positive(steps) or not 0 < real(extent) < np.inf:
        raise ValueError(
            f"expected an extent > 0 and one step or more, got {extent!r} and {steps!r}"
        )
    return np.linspace(-real(extent), real(extent), whole(steps))


def _check(where: Plane | Lines, count: int | None) -> None:
    """Make the ticks arrays, and raise ValueError for what no scan can use."""
    name, theta, directions = type(where).__name__.lower(), where.theta, where.directions
    for axis in ("alpha", "beta") if count else ("alpha",):
        ticks = plain_on_host(axis, getattr(where, axis)).astype(np.float64)
        if ticks.ndim != 1 or not ticks.size or not np.isfinite(ticks).all():
            raise ValueError(f"{name}: expected finite numbers {axis} (n,), got {ticks}")
        object.__setattr__(where, axis, ticks)
    if not isinstance(directions, Sequence):
        got = type(directions).__name__
        raise ValueError(f"{name}: expected directions in a list, got a {got}")
    if not len(directions) or (count and len(directions) != count):
        raise ValueError(
            f"{name}: expected {count or 'one or more'} directions, got {len(directions)}"
        )
    if isinstance(directions, RandomDirections):
        same_network(theta, directions.theta)
        vectors = [theta.vector]
    else:
        same_network(theta, *directions)
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
