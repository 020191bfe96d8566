"""The risk on lines and planes through parameter space (Li et al. 2018), on any executor.

`scan` evaluates the risk at the points of a `Plane` or of `Lines` and returns a `Landscape`. What
it shows is evidence: a scan samples, it proves nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import socket
import threading
import time
import uuid
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from .backend import Array, all_to_numpy, namespace, one_thread, to_numpy
from .losses import Loss
from .parameters import Parameters
from .reports import naming, read_arrays, whole_file
from .rounding import risk_rounding
from .samples import TrainingSet

NORMALIZATIONS = (None, "filter", "layer")
TOGETHER = 4  # points whose first layers are one product; also what a worker gets at a time
SAVE_SECONDS = 1.0  # between two writings of what is finished
KEPT_JOBS = 2  # scans whose data a worker keeps


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
        if count < 1:
            raise ValueError(f"random directions: expected one or more, got {count}")
        self[0]  # refuses what it can't normalise

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
        ticks = np.linspace(-extent, extent, steps)
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
        return cls(theta, directions, np.linspace(-extent, extent, steps))

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
    for other in others:
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

    def save(self, path: str | Path) -> None:
        """Write the arrays `alpha`, `beta` (of a plane), `risks`, `centre`, `rounding` as NPZ."""
        _write(path, self)

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


def _write(path: str | Path, landscape: Landscape, **more: np.ndarray) -> None:
    axes = {"alpha": landscape.alpha}
    axes |= {} if landscape.beta is None else {"beta": landscape.beta}
    numbers = {name: np.array(getattr(landscape, name)) for name in ("centre", "rounding")}
    with whole_file(path) as file:
        np.savez(file, **axes, risks=landscape.risks, **numbers, **more)


def scan(
    where: Plane | Lines,
    data: TrainingSet,
    loss: Loss,
    executor: Executor | None = None,
    path: str | Path | None = None,
    progress: bool | str = False,
) -> Landscape:
    """Return the risks at the points of a plane or of lines.

    No point is evaluated twice (theta lies on every line), and points share what they have in
    common: the layers below the first one that the directions move, and the patches of that one.
    Passes stream over the samples in chunks, as everywhere.

    `executor` is any `concurrent.futures.Executor`: a process pool, Dask's
    ``client.get_executor()``, mpi4py's pool. The data travel to each worker once (now and then
    twice), however many points it evaluates, and it keeps those of the last two scans; it runs on
    one thread. The risks are the same bits with any executor and without one, where all cores work
    and a chunk holds up to twice the memory budget.

    To `path` (an NPZ) goes what is finished, as it comes. A scan that was killed goes on from there
    when it is called again, with the same numbers; of a finished one they are read. `progress`
    shows a bar, with a text of yours before it. Raises ValueError for a file of another scan, and
    RuntimeError when workers die that the executor does not replace.
    """
    job = _Job(where, data, loss, _first_moved(where))
    store = _Store(path, job)
    total, numbers = store.done.size, store.numbers
    starts = range(0, len(numbers), TOGETHER)
    blocks = [slice(n, min(n + TOGETHER, len(numbers))) for n in starts]
    todo = [(block, numbers[block]) for block in blocks if not store.done[1:][block].all()]
    text = progress if isinstance(progress, str) else "risks"
    with store, tqdm(total=total, desc=text, leave=False, disable=not progress) as bar:
        bar.update(int(store.done.sum()))
        if not store.done[0]:
            store.put(slice(0, 1), where.theta.net.risk(where.theta, data, loss))
            bar.update()
        with closing(_evaluated(job, todo, executor)) as found:
            try:
                for block, risks in found:
                    store.put(slice(block.start + 1, block.stop + 1), risks)
                    bar.update(len(risks))
            except _ExecutorError as error:
                kept = f"; {store.done.sum()} of {total} risks are in {path}, from which the same "
                raise RuntimeError(
                    f"scan: {error}" + (f"{kept}call goes on" if path is not None else "")
                ) from error.__cause__
        if np.isnan(store.rounding):
            store.rounding = job.rounding(store.risks)
            store.changed = True
    return store.landscape()


class _Job(NamedTuple):
    """What a worker needs: where, of what, and the first layer that differs between points."""

    where: Plane | Lines
    data: TrainingSet
    loss: Loss
    first: int

    def risks(self, numbers: Sequence[int]) -> np.ndarray:
        """Return the risks at some points; what the first layer reads is the same for them."""
        points = list(self.where.points(numbers))
        theta, net, first, loss = self.where.theta, self.where.theta.net, self.first, self.loss
        y, xp = net.targets(theta, self.data, loss), namespace(theta.vector)
        W = theta.W[first].with_weights(xp.concatenate([p.W[first].weights for p in points]))

        def chunk(rows: slice, columns: Array) -> list[Array]:
            z = W @ net.layer_output(theta, columns, first - 1)
            z, losses = z.reshape(len(points), -1, z.shape[1]), []
            for k, point in enumerate(points):
                _, o = net.neurons(point, first, z[k], overwrite=True)
                losses.append(
                    loss.value(net.layer_output(point, o, net.depth, above=first), y[:, rows])
                )
            return xp.stack(losses)

        losses = xp.concatenate(list(net.over(theta, self.data.x, chunk)), axis=1)
        return to_numpy(losses).mean(axis=1).astype(np.float64)

    def rounding(self, risks: np.ndarray) -> float:
        """Return what of a difference to theta rounding may account for, see `Landscape`."""
        numbers = [self.where.farthest]
        if np.isfinite(risks).any():
            numbers.append(int(np.nanargmin(risks)))
        errors = [
            risk_rounding(point, self.data, self.loss)
            for point in (self.where.theta, *self.where.points(numbers))
        ]
        total = errors[0] + max(errors[1:])
        return total if np.isfinite(total) else np.inf  # after overflow nothing counts as lower

    def key(self) -> str:
        """Return a digest of everything that the risks depend on."""
        where, digest = self.where, hashlib.sha256()
        if isinstance(where.directions, RandomDirections):
            d = where.directions
            directions = [d.theta.vector]
            words = [d.seed, d.count, d.normalization, d.biases]
        else:
            directions, words = [d.vector for d in where.directions], []
        net = where.theta.net
        words += [type(where).__name__, TOGETHER, net.spec]
        words += [_described(self.loss), _described(net.activation)]
        digest.update(json.dumps(words, default=repr).encode())
        vectors = all_to_numpy([where.theta.vector, *directions])
        ticks = [where.alpha] if where.beta is None else [where.alpha, where.beta]
        for array in (*vectors, *ticks, self.data.x, self.data.y):
            digest.update(f"{array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array))
        return digest.hexdigest()


def _described(value: object) -> object:
    """Return what tells a loss or an activation from others, the same in every process."""
    if hasattr(value, "__code__"):
        code = value.__code__
        cells = [_described(cell.cell_contents) for cell in value.__closure__ or ()]
        return [value.__qualname__, code.co_code.hex(), repr(code.co_consts), cells]
    if hasattr(value, "__dict__") and not callable(getattr(value, "__array_ufunc__", None)):
        numbers = {key: _described(part) for key, part in sorted(vars(value).items())}
        return [type(value).__module__, type(value).__qualname__, numbers]
    return repr(value)


def _first_moved(where: Plane | Lines) -> int:
    """Return the lowest layer that some direction moves; of random ones it may be all."""
    directions, net = where.directions, where.theta.net
    if isinstance(directions, RandomDirections):
        return min(where.theta.b)
    moved = np.any([v != 0 for v in all_to_numpy([d.vector for d in directions])], axis=0)
    by_layer = Parameters(net, moved)
    return min(n for n, b in by_layer.b.items() if b.any() or by_layer.W[n].weights.any())


class _Store:
    """The risks found so far, theta's first, and the file that holds them."""

    def __init__(self, path: str | Path | None, job: _Job):
        self.where, self.path = job.where, path
        moves = job.where._moves().any(axis=1)
        self.numbers = np.flatnonzero(moves)  # of the points that are not theta
        self.places = np.where(moves, np.cumsum(moves), 0)  # of each point in `values`
        self.values = np.full(len(self.numbers) + 1, np.nan)
        self.done = np.zeros(len(self.values), bool)
        self.rounding, self.changed, self.written = np.nan, False, time.monotonic()
        self.key = "" if path is None else job.key()
        if path is not None and Path(path).exists():
            self._read()

    def _read(self) -> None:
        arrays = read_arrays(self.path)
        with naming(f"{self.path}:"):
            if str(arrays.get("key")) != self.key:
                raise ValueError(
                    "expected no file, or that of the same scan, got another one: remove it first"
                )
            if arrays["done"].shape != self.done.shape:
                raise ValueError(f"expected {self.done.size} risks, got {arrays['done'].size}")
            self.done, self.rounding = arrays["done"], float(arrays["rounding"])
            self.values[self.places] = arrays["risks"].ravel()
            self.values[0] = arrays["centre"]

    @property
    def risks(self) -> np.ndarray:
        return self.values[self.places].reshape(self.where.shape)

    def landscape(self) -> Landscape:
        where, centre = self.where, float(self.values[0])
        return Landscape(where.alpha, where.beta, self.risks, centre, float(self.rounding))

    def put(self, block: slice, risks: np.ndarray | float) -> None:
        self.values[block], self.done[block], self.changed = risks, True, True
        if time.monotonic() - self.written > SAVE_SECONDS:
            self.write()

    def write(self) -> None:
        if self.path is not None and self.changed:
            _write(self.path, self.landscape(), key=np.array(self.key), done=self.done)
        self.changed, self.written = False, time.monotonic()

    def __enter__(self) -> _Store:
        return self

    def __exit__(self, *error: object) -> None:
        self.write()


# Executors

_KEPT: dict[str, _Job] = {}  # in a worker: the scans whose data it has


class _ExecutorError(Exception):
    """What an executor raised."""


def _work(
    key: str, numbers: np.ndarray, job: bytes | None
) -> tuple[tuple[str, int], np.ndarray | None]:
    """Return which process and thread this is and the risks, or None if it has not got the data."""
    name = f"{socket.gethostname()} {os.getpid()}", threading.get_ident()
    if job is not None and key not in _KEPT:
        _KEPT[key] = pickle.loads(job)
        for old in list(_KEPT)[:-KEPT_JOBS]:
            _KEPT.pop(old, None)
    kept = _KEPT.get(key)
    if kept is None:
        return name, None
    with one_thread():
        return name, kept.risks(numbers)


def _evaluated(
    job: _Job, blocks: list[tuple[slice, np.ndarray]], executor: Executor | None
) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield each block of points and its risks, with an executor as they come.

    A process that has not got the data says so, and the block is sent again with them. Until they
    have arrived somewhere, what else this process was given waits. Two blocks for each thread seen
    so far, and two more, are under way.
    """
    if executor is None or not blocks:
        for block, numbers in blocks:
            yield block, job.risks(numbers)
        return
    key = uuid.uuid4().hex
    try:
        sent = pickle.dumps(job)
    except Exception as error:
        raise ValueError(
            f"scan: expected a network, data and a loss that can be pickled: {error}"
        ) from error
    waiting, held = deque(blocks), []
    running: dict[Future, tuple[tuple[slice, np.ndarray], str | None]] = {}
    threads: set[tuple[str, int]] = set()
    having: set[str] = set()  # processes that have shown that they have the data
    lacking: set[str] = set()  # to these, or to another in their place, the data are on their way

    def submit(item: tuple[slice, np.ndarray], process: str | None = None) -> None:
        with warnings.catch_warnings(), _failing():  # Dask's, of arguments sent only once
            warnings.filterwarnings("ignore", "Sending large graph")
            future = executor.submit(_work, key, item[1], None if process is None else sent)
        running[future] = item, process

    submit(waiting.popleft(), "the first")
    try:
        while running:
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                item, receiver = running.pop(future)
                with _failing():
                    (process, thread), risks = future.result()
                threads.add((process, thread))
                if receiver is not None:
                    lacking -= {receiver, process}
                    waiting.extendleft(held)
                    held.clear()
                if risks is not None:
                    having.add(process)
                    yield item[0], risks
                elif process in having:  # it said so before they came, or has forgotten them
                    having.remove(process)
                    waiting.appendleft(item)
                elif process in lacking:
                    held.append(item)
                else:
                    lacking.add(process)
                    submit(item, process)
            while waiting and len(running) < 2 * len(threads) + 2:
                submit(waiting.popleft())
    finally:
        for future in running:
            future.cancel()
        _KEPT.pop(key, None)  # of an executor in this process


@contextmanager
def _failing() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        words = f"the executor failed ({type(error).__name__}: {error})"
        raise _ExecutorError(words) from error
