"""The risk at the points of a plane or of lines: with any executor, resumed from files."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import socket
import tempfile
import threading
import time
import uuid
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future
from contextlib import closing, contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from ..backend import Array, all_to_numpy, namespace, one_thread, to_numpy
from ..losses import Loss
from ..parameters import Parameters
from ..reports import naming, read_arrays
from ..rounding import risk_rounding
from ..samples import TrainingSet
from .planes import Landscape, Lines, Plane, RandomDirections

TOGETHER = 4  # points whose first layers are one product; also what a worker gets at a time
SAVE_SECONDS = 1.0  # between two writings of what is finished
KEPT_JOBS = 2  # scans whose data a worker keeps


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
    ``client.get_executor()``, mpi4py's pool. Each worker process reads the data once, from a
    temporary file, however many points it evaluates (to one on another machine, which can't, they
    are sent, about once), and keeps those of the last two scans. It runs on one thread. The risks
    are the same bits with any executor and without one, where all cores work and a chunk holds up
    to twice the memory budget.

    To `path` (an NPZ) goes what is finished, as it comes. A scan that was killed goes on from there
    when it is called again, with the same numbers; of a finished one they are read. `progress`
    shows a bar, with a text of yours before it. Raises ValueError for a file of another scan,
    RuntimeError when workers die that the executor does not replace, and OSError where a file can't
    be written.
    """
    if not isinstance(where, Plane | Lines):
        raise ValueError(f"scan: expected a Plane or Lines, got a {type(where).__name__}")
    if executor is not None and not hasattr(executor, "submit"):
        raise ValueError(f"scan: expected an executor, got a {type(executor).__name__}")
    job = _Job(where, data, loss, _first_moved(where))
    store = _Store(path, job)
    total, numbers = store.done.size, store.numbers
    starts = range(0, len(numbers), TOGETHER)
    blocks = [slice(n, min(n + TOGETHER, len(numbers))) for n in starts]
    todo = [(block, numbers[block]) for block in blocks if not store.done[1:][block].all()]
    text = progress if isinstance(progress, str) else "risks"
    shown = {"total": total, "initial": int(store.done.sum()), "disable": not progress}
    with store, tqdm(desc=text, leave=False, **shown) as bar:
        if not store.done[0]:
            store.put(slice(0, 1), job.centre())
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

    def centre(self) -> float:
        """Return R(theta)."""
        return self.where.theta.net.risk(self.where.theta, self.data, self.loss)

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
        """Return a digest of what the risks depend on, but for functions of the user's own."""
        where, digest = self.where, hashlib.sha256()
        if isinstance(where.directions, RandomDirections):
            d = where.directions
            directions = [d.theta.vector]
            words = [d.seed, d.count, d.normalization, d.biases]
        else:
            directions, words = [d.vector for d in where.directions], []
        net = where.theta.net
        settings = getattr(self.loss, "__dict__", {}).items()
        settings = {name: value for name, value in settings if not callable(value)}
        words += [type(where).__name__, TOGETHER, net.spec, type(self.loss).__qualname__, settings]
        digest.update(json.dumps(words, default=repr).encode())
        vectors = all_to_numpy([where.theta.vector, *directions])
        ticks = [where.alpha] if where.beta is None else [where.alpha, where.beta]
        for array in (*vectors, *ticks, self.data.x, self.data.y):
            digest.update(f"{array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array))
        return digest.hexdigest()


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
            self._read(job)

    def _read(self, job: _Job) -> None:
        arrays = read_arrays(self.path)
        with naming(f"{self.path}:"):
            same = str(arrays.get("key")) == self.key
            if same and arrays["done"].any():  # functions of the user's own show in R(theta)
                eps = float(np.finfo(job.where.theta.vector.dtype).eps)
                same = np.isclose(arrays["centre"], job.centre(), eps**0.5, 0, equal_nan=True)
            if not same:
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
            self.landscape().save(self.path, key=np.array(self.key), done=self.done)
        self.changed, self.written = False, time.monotonic()

    def __enter__(self) -> _Store:
        return self

    def __exit__(self, *error: object) -> None:
        self.write()


# Executors

_KEPT: dict[str, _Job] = {}  # in a worker: the scans whose data it has
_LOADING = threading.Lock()
if hasattr(os, "register_at_fork"):  # a thread of the parent that has it does not come along
    os.register_at_fork(after_in_child=lambda: globals().update(_LOADING=threading.Lock()))


class _ExecutorError(Exception):
    """What an executor raised."""


def _work(
    file: Path, numbers: np.ndarray, job: bytes | None
) -> tuple[tuple[str, int], np.ndarray | None]:
    """Return which process and thread this is and the risks, or None if it can't get the data.

    They are in `file`, unless this is another machine: then they come as `job`.
    """
    key, name = file.name, (f"{socket.gethostname()} {os.getpid()}", threading.get_ident())
    with _LOADING:
        if key not in _KEPT:
            try:
                sent = file.read_bytes() if job is None else job
            except OSError:
                return name, None
            _KEPT[key] = pickle.loads(sent)
            for old in list(_KEPT)[:-KEPT_JOBS]:
                del _KEPT[old]
        kept = _KEPT[key]
    with one_thread():
        return name, kept.risks(numbers)


def _evaluated(
    job: _Job, blocks: list[tuple[slice, np.ndarray]], executor: Executor | None
) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield each block of points and its risks, with an executor as they come.

    Each process reads the data once from a temporary file. One that can't, on another machine, says
    so, and the block is sent again with them; until they have arrived somewhere, what else this
    process was given waits. Two blocks for each thread seen so far, and two more, are under way.
    """
    if executor is None or not blocks:
        for block, numbers in blocks:
            yield block, job.risks(numbers)
        return
    with tempfile.TemporaryDirectory(prefix="tinyspur-", ignore_cleanup_errors=True) as folder:
        file = Path(folder) / uuid.uuid4().hex
        try:
            file.write_bytes(pickle.dumps(job))
        except OSError as error:
            raise OSError(f"scan: the data can't be written to {folder}: {error}") from error
        except (pickle.PicklingError, AttributeError, TypeError, ValueError) as error:
            raise ValueError(
                f"scan: expected a network, data and a loss that can be pickled: {error}"
            ) from error
        try:
            yield from _shared_out(job, blocks, executor, file)
        finally:
            with _LOADING:  # a thread of this process may still come late, and finds no file
                _KEPT.pop(file.name, None)
                file.unlink(missing_ok=True)


def _shared_out(
    job: _Job, blocks: list[tuple[slice, np.ndarray]], executor: Executor, file: Path
) -> Iterator[tuple[slice, np.ndarray]]:
    waiting, held, answered = deque(blocks), [], SimpleQueue()
    running: dict[Future, tuple[tuple[slice, np.ndarray], str | None, int]] = {}
    threads: set[tuple[str, int]] = set()
    answers, having = 0, {}  # for processes with the data: the number of the latest answer
    lacking: set[str] = set()  # to these, or to another in their place, the data are on their way

    def submit(item: tuple[slice, np.ndarray], process: str | None = None) -> None:
        if process is None:
            with _failing():
                future = executor.submit(_work, file, item[1], None)
        else:
            with _failing(), warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Sending large graph")  # Dask's, of the data
                future = executor.submit(_work, file, item[1], pickle.dumps(job))
        running[future] = item, process, answers
        future.add_done_callback(answered.put)  # also where a shutdown cancels, unlike `wait`

    submit(waiting.popleft())
    try:
        while running:
            item, receiver, asked = running.pop(future := answered.get())
            with _failing():
                (process, thread), risks = future.result()
            threads.add((process, thread))
            answers += 1
            if receiver is not None:
                lacking -= {receiver, process}
                waiting.extendleft(held)
                held.clear()
            if risks is not None:
                having[process] = answers
                yield item[0], risks
            elif asked < having.get(process, 0):  # it was asked before they came
                waiting.appendleft(item)
            elif process in lacking:
                held.append(item)
            else:
                lacking.add(process)
                submit(item, process)
            most = 2 * len(threads) + 2 if having or not lacking else 0
            while waiting and len(running) < most:
                submit(waiting.popleft())
    finally:
        for future in running:
            future.cancel()


@contextmanager
def _failing() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        words = f"the executor failed ({type(error).__name__}: {error})"
        raise _ExecutorError(words) from error
