"""Threads and their memory: passes run on all cores, one thread each, and use memory again."""

from __future__ import annotations

import contextvars
import functools
import itertools
import math
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from types import ModuleType

import numpy as np
from threadpoolctl import ThreadpoolController

from .backend import Array, namespace

WORKERS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
KEPT_BYTES = 12 * 2**20  # what a thread keeps at most for each use
KEPT_IN_ALL = 64 * 2**20  # and for all uses together, which are more the deeper a network is


def in_order(function: Callable, items: Iterable, xp: ModuleType) -> Iterator:
    """Yield function(item) for all items, in their order.

    On the host this thread and one more for each other core work on them, or within `one_thread`
    this thread alone. BLAS is kept to one thread meanwhile, also for a single item, so that no bit
    of a result depends on the number of cores. At most one result more waits than there are cores.
    A function that itself runs items in order does so on its own thread; it must not do so on
    threads that it starts.
    """
    if xp is not np:
        yield from map(function, items)
        return
    function = functools.partial(_inside, function)
    items = iter(items)
    first = list(itertools.islice(items, 2))
    items = itertools.chain(first, items)
    waiting: deque[_Task] = deque()
    with _ONE_THREAD:
        if WORKERS == 1 or _ALONE.get() or len(first) < 2:
            yield from map(function, items)
            return
        here = os.getpid()
        try:
            for item in items:
                waiting.append(_Task(function, item))
                if len(waiting) > WORKERS:
                    yield _next(waiting)
            while waiting:
                yield _next(waiting)
        finally:
            if os.getpid() == here:  # a child has none of its parent's threads
                wait([task.result for task in waiting if not task.cancel()])


class _Task:
    """An item that a thread of the pool works on, unless the calling thread does it before.

    The pool may be busy for long with other passes, and has what it was given until then: so it is
    given `work`, which is empty as soon as somebody else has begun.
    """

    def __init__(self, function: Callable, item: object):
        self.work = [functools.partial(contextvars.copy_context().run, _alone, function, item)]
        self.result = _pool(WORKERS - 1).submit(lambda work=self.work: work.pop()())

    def cancel(self) -> bool:
        """Return whether nobody had begun: then nobody will."""
        if not self.result.cancel():
            return False
        self.work.clear()
        return True

    def do_here(self) -> bool:
        """Return whether no thread had begun: then it is done now."""
        if not self.result.cancel():
            return False
        self.result = Future()
        try:
            self.result.set_result(self.work.pop()())
        except Exception as error:
            self.result.set_exception(error)
            self = None  # which the error would hold, and be held by
        return True


def _next(waiting: deque[_Task]) -> object:
    """Return the result of the first task, and work on any of them until it is there."""
    while not waiting[0].result.done() and any(map(_Task.do_here, waiting)):
        pass
    wait([waiting[0].result])  # if this is interrupted, it still counts as one that runs
    return waiting.popleft().result.result()


def _alone(function: Callable, item: object) -> object:
    """Return function(item), in a context where passes run on the calling thread alone."""
    _ALONE.set(True)
    return function(item)


def _inside(function: Callable, item: object) -> object:
    """Return function(item); what this thread has in `scratch` elsewhere stays as it is."""
    _KEPT.inside += 1
    try:
        return function(item)
    finally:
        _KEPT.inside -= 1


@functools.cache
def _pool(workers: int) -> ThreadPoolExecutor:
    """Return the threads of all passes: they live on, and so does their memory, see `scratch`."""
    return ThreadPoolExecutor(workers)


_ALONE: contextvars.ContextVar[bool] = contextvars.ContextVar("one thread", default=False)


@contextmanager
def one_thread() -> Iterator[None]:
    """Run passes, and BLAS, on the calling thread alone, for workers that share the cores."""
    token = _ALONE.set(True)
    try:
        with _ONE_THREAD:
            yield
    finally:
        _ALONE.reset(token)


class _OneThread:
    """Limits BLAS to one thread from the first entry to the last exit, of passes that overlap."""

    def __init__(self):
        self.lock, self.inside, self.limit = threading.Lock(), 0, None

    def __enter__(self) -> None:
        with self.lock:
            if not self.inside:
                self.limit = _controller().limit(limits=1, user_api="blas")
            self.inside += 1  # last, for it may be interrupted before

    def __exit__(self, *error: object) -> None:
        with self.lock:
            self.inside -= 1
            if not self.inside:
                self.limit.__exit__(*error)


_ONE_THREAD = _OneThread()
if hasattr(os, "register_at_fork"):  # a child has none of the parent's threads that are inside
    os.register_at_fork(after_in_child=_ONE_THREAD.__init__)
    os.register_at_fork(after_in_child=_pool.cache_clear)


@functools.cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController()


@functools.cache
def blas() -> dict[str, object]:
    """Return what threadpoolctl says of NumPy's BLAS; nothing where it knows none."""
    found = [library for library in _controller().info() if library["user_api"] == "blas"]
    own = [library for library in found if "numpy" in library["filepath"]]
    return next(iter(own or found), {})


class _Kept(threading.local):
    """What a thread keeps for each use, and how many functions it runs one inside the other."""

    def __init__(self):
        self.held: dict[tuple[int, str], np.ndarray] = {}
        self.inside = 0


_KEPT = _Kept()


def scratch(shape: tuple[int, ...], like: Array, use: str, dtype: np.dtype | None = None) -> Array:
    """Return memory for one `use`: on the host what this thread had before, if large enough.

    A function that runs inside another one, see `in_order`, has memory of its own: a pass may use
    a loss that runs passes.
    """
    xp, dtype = namespace(like), like.dtype if dtype is None else dtype
    if xp is not np:
        return xp.empty(shape, dtype=dtype)
    kept, key, needed = _KEPT.held, (_KEPT.inside, use), math.prod(shape) * dtype.itemsize
    held = kept.get(key)
    if held is None or held.nbytes < needed:
        held = np.empty(needed, np.uint8)
        if needed <= KEPT_BYTES:
            kept[key] = held
            if sum(memory.nbytes for memory in kept.values()) > KEPT_IN_ALL:
                kept.clear()
    return held[:needed].view(dtype).reshape(shape)
