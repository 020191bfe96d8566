"""The blocks of a scan, shared out to the workers of any `concurrent.futures.Executor`.

A worker process needs the data of a scan once. It reads them from a temporary file; one that can't,
on another machine, says so and is sent them with a block. Which process takes a call is for the
executor to choose: only the answers, which name their process, tell who has the data.
"""

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
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

import numpy as np

from ..engine.threads import one_thread
from .job import Block, Job

KEPT_JOBS = 2  # scans whose data a worker keeps


class ExecutorError(Exception):
    """What an executor raised."""


def evaluated(
    job: Job, blocks: list[Block], executor: Executor | None
) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield the place of each block and its risks, with an executor as they come.

    Raises ExecutorError for what the executor and its workers raise, OSError where the file of the
    data can't be written, and ValueError for a job that can't be pickled.
    """
    if executor is None or not blocks:
        for place, numbers in blocks:
            yield place, job.risks(numbers)
    else:
        with _file_of(job) as file:
            yield from _Sharing(job, blocks, executor, file).risks()


@contextmanager
def _file_of(job: Job) -> Iterator[Path]:
    """Write a job to a temporary file, which is there until the end."""
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
            yield file
        finally:
            with _LOADING:  # a thread of this process may still come late, and finds no file
                _KEPT.pop(file.name, None)
                file.unlink(missing_ok=True)


# Who has the data, who lacks them, and what waits


class _Call(NamedTuple):
    """A block that the executor was given."""

    block: Block
    receiver: str | None  # the process that the data with it are for; None if none were sent
    asked: int  # how many answers had come by then
    again: bool  # whether an earlier call with it failed


class _Sharing:
    """Blocks on their way to workers and back.

    A block that has no risks yet is in one of three places: it is `waiting` for its turn, `running`
    as a call that the executor was given, or `held` until data that are on their way arrive.

    A process that answers with risks is `having` the data; when it last did so is kept, as the
    number of `answers` by then. One that has none is sent them, and `expecting` them until they
    arrive. Answers come in any order: one to a call from before they came may be the last to come.
    """

    def __init__(self, job: Job, blocks: list[Block], executor: Executor, file: Path):
        self.job, self.executor, self.file = job, executor, file
        self.waiting = deque(blocks)
        self.running: dict[Future, _Call] = {}
        self.held: list[Block] = []
        self.answered: SimpleQueue[Future] = SimpleQueue()  # of those running
        self.answers = 0
        self.threads: set[tuple[str, int]] = set()  # processes and threads that have answered
        self.having: dict[str, int] = {}
        self.expecting: set[str] = set()

    def risks(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield the place of each block and its risks as they come."""
        try:
            self.submit_waiting()
            while self.running:
                call, answer = self.next_answer()
                if answer.risks is None:
                    self.ask_again(call, answer.process)
                else:
                    self.having[answer.process] = self.answers
                    yield call.block.place, answer.risks
                self.submit_waiting()
        finally:
            for future in self.running:
                future.cancel()

    def submit_waiting(self) -> None:
        """Submit the blocks whose turn it is.

        One block alone is running until a process is known to have the data. Then there are two
        for each thread seen so far, so that none waits for its next one, and two more.
        """
        most = 2 * len(self.threads) + 2 if self.having else 1
        while self.waiting and len(self.running) < most:
            self.submit(self.waiting.popleft())

    def submit(self, block: Block, receiver: str | None = None, again: bool = False) -> None:
        """Give the executor a block, together with the data if they are for a `receiver`."""
        try:
            if receiver is None:
                future = self.executor.submit(_work, self.file, block.numbers, None)
            else:
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", "Sending large graph")  # Dask's, of the data
                    sent = pickle.dumps(self.job)
                    future = self.executor.submit(_work, self.file, block.numbers, sent)
        except Exception as error:
            raise _failure(error) from error
        self.running[future] = _Call(block, receiver, self.answers, again)
        future.add_done_callback(self.answered.put)  # also where a shutdown cancels, unlike `wait`

    def next_answer(self) -> tuple[_Call, _Answer]:
        """Wait for an answer, and return it and its call.

        A call that fails is made a second time: a future of Dask fails too where the worker of a
        finished call dies while its answer is on the way.
        """
        answer = None
        while answer is None:
            future = self.answered.get()
            call = self.running.pop(future)
            try:
                answer = future.result()
            except Exception as error:
                if call.again or isinstance(error, BrokenExecutor | CancelledError):
                    raise _failure(error) from error
                self.submit(call.block, call.receiver, again=True)
        self.answers += 1
        self.threads.add((answer.process, answer.thread))
        if call.receiver is not None:
            self.data_arrived(call.receiver, answer.process)
        return call, answer

    def data_arrived(self, receiver: str, process: str) -> None:
        """Let go what was held: data for `receiver` reached it, or `process` in its place."""
        self.expecting -= {receiver, process}
        self.waiting.extendleft(self.held)
        self.held.clear()

    def ask_again(self, call: _Call, process: str) -> None:
        """Find another way for a block whose process could not get the data."""
        if self.having.get(process, 0) > call.asked:  # it has got them since
            self.waiting.appendleft(call.block)
        elif process in self.expecting:  # they are on their way
            self.held.append(call.block)
        else:
            self.expecting.add(process)
            self.submit(call.block, receiver=process)


def _failure(error: Exception) -> ExecutorError:
    return ExecutorError(f"the executor failed ({type(error).__name__}: {error})")


# In a worker

_KEPT: dict[str, Job] = {}  # the scans whose data this process has, by the names of their files
_LOADING = threading.Lock()
if hasattr(os, "register_at_fork"):  # a thread of the parent that has it does not come along
    os.register_at_fork(after_in_child=lambda: globals().update(_LOADING=threading.Lock()))


class _Answer(NamedTuple):
    """What a worker answers: who it is, and the risks, None if it can't get the data."""

    process: str
    thread: int
    risks: np.ndarray | None


def _work(file: Path, numbers: np.ndarray, sent: bytes | None) -> _Answer:
    """Return the risks at the points with these numbers, of the job in `file` or the `sent` one."""
    job = _kept(file, sent)
    with one_thread():
        risks = None if job is None else job.risks(numbers)
    return _Answer(f"{socket.gethostname()} {os.getpid()}", threading.get_ident(), risks)


def _kept(file: Path, sent: bytes | None) -> Job | None:
    """Return the job, which this process keeps from now on; None if it can't read it."""
    with _LOADING:
        if file.name not in _KEPT:
            try:
                pickled = file.read_bytes() if sent is None else sent
            except OSError:
                return None
            _KEPT[file.name] = pickle.loads(pickled)
            for old in list(_KEPT)[:-KEPT_JOBS]:
                del _KEPT[old]
        return _KEPT[file.name]
