"""NumPy or CuPy: the only module that knows both."""

from __future__ import annotations

import contextvars
import functools
import importlib
import itertools
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import scipy.special
from threadpoolctl import ThreadpoolController

Array = Any  # numpy.ndarray or cupy.ndarray
WORKERS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Backend(NamedTuple):
    """An array namespace and the sentence that says why it was taken."""

    name: str
    xp: ModuleType
    reason: str


def select(name: str = "auto") -> Backend:
    """Return the backend called `name`: ``numpy``, ``cupy`` or ``auto``.

    ``auto`` takes CuPy when it is installed and finds a device, NumPy otherwise; `reason` says
    which and why. Raises ValueError for another name, or for ``cupy`` where it can't run.
    """
    if name not in ("auto", "numpy", "cupy"):
        raise ValueError(f"backend: expected 'auto', 'numpy' or 'cupy', got {name!r}")
    if name == "numpy":
        return Backend("numpy", np, "NumPy, as asked")
    obstacle = None
    try:
        import cupy

        devices = cupy.cuda.runtime.getDeviceCount()
        if not devices:
            obstacle = "CuPy finds no device"
    except ImportError:
        obstacle = "CuPy is not installed"
    except Exception as error:  # CuPy's CUDARuntimeError can't be named without CuPy
        obstacle = f"CuPy finds no device ({type(error).__name__})"
    if obstacle is None:
        return Backend("cupy", cupy, f"CuPy, {devices} device{'s' * (devices > 1)} found")
    if name == "cupy":
        raise ValueError(f"backend 'cupy': {obstacle}")
    return Backend("numpy", np, f"NumPy: {obstacle}")


def namespace(x: Array) -> ModuleType:
    """Return the module whose functions take `x`: the one that defines its type."""
    return sys.modules[type(x).__module__.partition(".")[0]]


def special(x: Array) -> ModuleType:
    """Return the module of special functions that take `x`: SciPy's or CuPy's."""
    if isinstance(x, (np.ndarray, np.generic)):
        return scipy.special
    return importlib.import_module("cupyx.scipy.special")


def in_order(function: Callable, items: Iterable, xp: ModuleType) -> Iterator:
    """Yield function(item) for all items, in their order.

    On the host one thread for each core works on them, or within `one_thread` this thread alone.
    BLAS is kept to one thread meanwhile, also for a single item, so that no bit of a result depends
    on the number of cores. At most as many results wait as there are cores.
    """
    if xp is not np:
        yield from map(function, items)
        return
    items = iter(items)
    first = list(itertools.islice(items, 2))
    items = itertools.chain(first, items)
    waiting: deque = deque()
    with _ONE_THREAD:
        if WORKERS == 1 or _ALONE.get() or len(first) < 2:
            yield from map(function, items)
            return
        with ThreadPoolExecutor(WORKERS) as pool:
            for item in items:  # in a copy of this context, where np.errstate is the same
                waiting.append(pool.submit(contextvars.copy_context().run, function, item))
                if len(waiting) > WORKERS:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()


_ALONE: contextvars.ContextVar[bool] = contextvars.ContextVar("one thread", default=False)


@contextmanager
def one_thread() -> Iterator[None]:
    """Run passes on the calling thread alone, for workers that share the cores."""
    token = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(token)


class _OneThread:
    """Limits BLAS to one thread from the first entry to the last exit, of passes that overlap."""

    def __init__(self):
        self.lock, self.inside, self.limit = threading.Lock(), 0, None

    def __enter__(self) -> None:
        with self.lock:
            self.inside += 1
            if self.inside == 1:
                self.limit = _blas().limit(limits=1, user_api="blas")
                self.limit.__enter__()

    def __exit__(self, *error: object) -> None:
        with self.lock:
            self.inside -= 1
            if not self.inside:
                self.limit.__exit__(*error)


_ONE_THREAD = _OneThread()
if hasattr(os, "register_at_fork"):  # a child has none of the parent's threads that are inside
    os.register_at_fork(after_in_child=_ONE_THREAD.__init__)


@functools.cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController()


def to_numpy(x: Array) -> np.ndarray:
    """Return `x` on the host; an explicit transfer for a device array, `x` itself otherwise."""
    return x if isinstance(x, (np.ndarray, np.generic)) else x.get()


def all_to_numpy(arrays: Iterable[Array]) -> list[np.ndarray]:
    """Return `arrays` on the host; device arrays in one transfer for each of their types."""
    found = list(arrays)
    xp = namespace(found[0]) if found else np
    if xp is np:
        return found
    for dtype in {x.dtype for x in found}:
        places = [n for n, x in enumerate(found) if x.dtype == dtype]
        ends = np.cumsum([found[n].size for n in places])
        flat = xp.concatenate([found[n].ravel() for n in places])
        for n, part in zip(places, np.split(to_numpy(flat), ends[:-1]), strict=True):
            found[n] = part.reshape(found[n].shape)
    return found


def overwrite(name: str, memory: Array, values: object) -> None:
    """Write values of the same shape, or one number, to `memory`; ValueError for others."""
    if not isinstance(values, type(memory)):
        values = namespace(memory).asarray(values)
    if not np.can_cast(values.dtype, memory.dtype, "same_kind"):
        raise ValueError(f"{name}: expected {memory.dtype} numbers, got {values.dtype}")
    if values.shape not in (memory.shape, ()):
        raise ValueError(f"{name}: expected numbers {memory.shape}, got {values.shape}")
    memory[...] = values
