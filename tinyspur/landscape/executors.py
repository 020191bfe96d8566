"""The blocks of a scan, shared out to the workers of any `concurrent.futures.Executor`."""

from __future__ import annotations

import os
import pickle
import socket
import tempfile
import threading
import uuid
import warnings
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue

import numpy as np

from ..backend import one_thread
from .job import Job

KEPT_JOBS = 2  # scans whose data a worker keeps

_KEPT: dict[str, Job] = {}  # in a worker: the scans whose data it has
_LOADING = threading.Lock()
if hasattr(os, "register_at_fork"):  # a thread of the parent that has it does not come along
    os.register_at_fork(after_in_child=lambda: globals().update(_LOADING=threading.Lock()))


class ExecutorError(Exception):
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


def evaluated(
    job: Job, blocks: list[tuple[slice, np.ndarray]], executor: Executor | None
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
    job: Job, blocks: list[tuple[slice, np.ndarray]], executor: Executor, file: Path
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
        raise ExecutorError(words) from error
