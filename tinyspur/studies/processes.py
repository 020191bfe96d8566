"""Processes for a program's tasks, which Ctrl-C in the program ends quietly."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from concurrent.futures import (
    BrokenExecutor,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
)
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any


class Processes(Executor):
    """So many processes, each a pool of its own: where one dies, only its task fails.

    Another process takes its place. A `ProcessPoolExecutor` would be of no use any more.
    """

    def __init__(self, count: int):
        self._threads = ThreadPoolExecutor(count)  # each waits for a process
        self._idle: SimpleQueue[ProcessPoolExecutor] = SimpleQueue()
        for _ in range(count):
            self._idle.put(_process())

    def submit(self, function: Callable, /, *args: Any, **more: Any) -> Future:
        """Return the future of function(*args, **more) in one of the processes."""
        return self._threads.submit(self._call, function, *args, **more)

    def _call(self, function: Callable, /, *args: Any, **more: Any) -> Any:
        process = self._idle.get()
        try:
            return process.submit(function, *args, **more).result()
        except BrokenExecutor:
            process.shutdown()
            process = _process()
            raise
        finally:
            self._idle.put(process)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the processes, when they have done what they do."""
        self._threads.shutdown(wait, cancel_futures=cancel_futures)
        while not self._idle.empty():
            self._idle.get().shutdown(wait)


def _process() -> ProcessPoolExecutor:
    """Return a pool of one process, which leaves Ctrl-C to this one, and begin to start it."""
    quiet = {"initializer": signal.signal, "initargs": (signal.SIGINT, signal.SIG_IGN)}
    pool = ProcessPoolExecutor(1, **quiet)
    pool.submit(int)
    return pool


@contextmanager
def processes(count: int) -> Iterator[Processes]:
    """Yield so many processes; an error, or Ctrl-C, leaves out what they have not begun."""
    with Processes(count) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
