"""Tasks of one job, shared out to the workers of any `concurrent.futures.Executor`.

A job is a function with its data, ``job(argument)``; a worker process needs it once. It reads it
from a temporary file; one that can't, on another machine, says so and is sent the job with a task.
Which process takes a call is for the executor to choose: only the answers, which name their
process, tell who has the job.
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
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Executor, Future
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

from .threads import one_thread

Job = Callable[[Any], Any]

KEPT_JOBS = 2  # jobs that a worker keeps
PATIENCE = 1.0  # seconds without an answer after which tasks count as long ones
NAMED = 5  # tasks that failed, in an error
HOPELESS = 3  # tasks that fail before any is done: the others are not tried


class Task(NamedTuple):
    """What to do: the argument for the job, and a key by which the answer is known."""

    key: Any
    argument: Any


class ExecutorError(Exception):
    """What an executor raised, or a task in it, and the keys of the tasks that failed twice."""

    def __init__(self, error: Exception, keys: Sequence[Any] = ()):
        super().__init__(f"{type(error).__name__}: {error}")
        self.error, self.keys = error, keys


def answers(
    what: str,
    job: Job,
    tasks: Sequence[Task],
    executor: Executor | None,
    kept: Callable[[], str] = str,
    name: Callable[[Any], str] = str,
) -> Iterator[tuple[Any, Any]]:
    """Yield the key of each task and its answer as they come: from `executor`, or in their order.

    `what` is done, `kept` what there is to say of the answers so far, and the `name` of a key are
    for errors. A task that fails, as where its worker dies, is tried again; the others go on.
    Raises RuntimeError where tasks failed twice, which are named, or where the executor takes no
    more; without an executor errors pass unchanged. Raises ValueError for a job that can't be
    pickled, OSError where the file of the job can't be written.
    """
    if not tasks:
        return
    with shared(what, job, executor) as work, named(what, kept, name):
        yield from work.answers(tasks)


@contextmanager
def named(
    what: str, kept: Callable[[], str] = str, name: Callable[[Any], str] = str
) -> Iterator[None]:
    """Raise RuntimeError in the place of an ExecutorError, with the names of what failed."""
    try:
        yield
    except ExecutorError as error:
        names = [name(key) for key in error.keys]
        few, more = ", ".join(names[:NAMED]), len(names[NAMED:])
        where = f"failed at {few}" + f" and {more} more" * bool(more)
        where = where if names else "the executor failed"
        raise RuntimeError(f"{what}: {where} ({error}){kept()}") from error.error


def check_executor(what: str, executor: object) -> None:
    """Raise ValueError for what is no executor, nor None."""
    if executor is not None and not hasattr(executor, "submit"):
        raise ValueError(f"{what}: expected an executor, got a {type(executor).__name__}")


@contextmanager
def shared(what: str, job: Job, executor: Executor | None) -> Iterator[Alone | Shared]:
    """Yield what answers tasks of a job, several times if need be, see `answers`."""
    check_executor(what, executor)
    if executor is None:
        yield Alone(job)
        return
    with tempfile.TemporaryDirectory(prefix="tinyspur-", ignore_cleanup_errors=True) as folder:
        file = Path(folder) / uuid.uuid4().hex
        try:
            file.write_bytes(pickle.dumps(job))
        except OSError as error:
            raise OSError(f"{what}: the data can't be written to {folder}: {error}") from error
        except (pickle.PicklingError, AttributeError, TypeError, ValueError) as error:
            raise ValueError(
                f"{what}: expected a network, data and functions that can be pickled: {error}"
            ) from error
        try:
            yield Shared(job, executor, file)
        finally:
            with _LOADING:  # a thread of this process may still come late, and finds no file
                _KEPT.pop(file.name, None)
                file.unlink(missing_ok=True)


class Alone(NamedTuple):
    """A job that is done in this process; its errors pass unchanged."""

    job: Job

    def answers(self, tasks: Iterable[Task]) -> Iterator[tuple[Any, Any]]:
        """Yield the key of each task and its answer."""
        for key, argument in tasks:
            yield key, self.job(argument)


# Who has the job, who lacks it, and what waits


class _Call(NamedTuple):
    """A task that the executor was given."""

    task: Task
    receiver: str | None  # the process that the job with it is for; None if it was not sent
    asked: int  # how many answers had come by then
    again: bool  # whether an earlier call with it failed


class Shared:
    """Tasks of a job on their way to workers and back.

    A task without an answer is in one of three places: it is `waiting` for its turn, `running` as
    a call that the executor was given, or `held` until the job that is on its way arrives.

    A process that answers is `having` the job; when it last did so is kept, as the number of
    `answered` calls by then. One that has none is sent it, and `expecting` it until it arrives.
    Answers come in any order: one to a call from before it came may be the last to come.
    """

    def __init__(self, job: Job, executor: Executor, file: Path):
        self.job, self.executor, self.file = job, executor, file
        self.waiting: deque[Task] = deque()
        self.running: dict[Future, _Call] = {}
        self.held: list[Task] = []
        self.done: SimpleQueue[Future] = SimpleQueue()  # of those running
        self.answered, self.ahead = 0, 0
        self.threads: set[tuple[str, int]] = set()  # processes and threads that have answered
        self.having: dict[str, int] = {}
        self.expecting: set[str] = set()
        self.failed: list[tuple[Any, Exception]] = []

    def answers(self, tasks: Iterable[Task]) -> Iterator[tuple[Any, Any]]:
        """Yield the key of each task and its answer as they come.

        A call that fails is made a second time: a worker may have died, with Dask also while the
        answer of a finished call is on its way. Tasks that fail twice are in an ExecutorError in
        the end. It comes at once where the executor takes no more, as a process pool that lost a
        worker, and where a few tasks fail before any other is done.
        """
        self.waiting, self.failed = deque(tasks), []
        self.held, self.expecting = [], set()  # an earlier call may have ended before its tasks did
        try:
            self.submit_waiting()
            while self.running:
                call, answer = self.next_answer()
                if answer is None:
                    pass  # it failed
                elif answer.lacking:
                    self.ask_again(call, answer.process)
                else:
                    self.having[answer.process] = self.answered
                    yield call.task[0], answer.value
                if len(self.failed) >= HOPELESS and not self.having:
                    break
                self.submit_waiting()
        finally:
            for future in self.running:
                future.cancel()
            self.running.clear()
        if self.failed:
            raise ExecutorError(self.failed[0][1], [key for key, _ in self.failed])

    def submit_waiting(self) -> None:
        """Submit the tasks whose turn it is.

        One task alone is running until a process is known to have the job. Then there are two
        for each thread seen so far, so that none waits for its next one, and two more; and where
        tasks are long, so that answers say little of how many threads there are, some `ahead`.
        """
        most = (2 * len(self.threads) + 2 if self.having else 1) + self.ahead
        while self.waiting and len(self.running) < most:
            self.submit(self.waiting.popleft())

    def submit(self, task: Task, receiver: str | None = None, again: bool = False) -> None:
        """Give the executor a task, together with the job if it is for a `receiver`."""
        try:
            if receiver is None:
                future = self.executor.submit(_work, self.file, task[1], None)
            else:
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", "Sending large graph")  # Dask's, of the data
                    sent = pickle.dumps(self.job)
                    future = self.executor.submit(_work, self.file, task[1], sent)
        except Exception as error:
            raise ExecutorError(error) from error
        self.running[future] = _Call(task, receiver, self.answered, again)
        future.add_done_callback(self.done.put)  # also where a shutdown cancels, unlike `wait`

    def next_answer(self) -> tuple[_Call, _Answer | None]:
        """Wait for a call that ends; return it and its answer, None where it failed twice."""
        while True:
            try:
                future = self.done.get(timeout=PATIENCE)
            except Empty:
                if self.waiting:
                    self.ahead = 2 * self.ahead + 1
                    self.submit_waiting()
                continue
            call = self.running.pop(future, None)
            if call is None:  # of tasks that were given up
                continue
            try:
                answer = future.result()
            except CancelledError as error:
                raise ExecutorError(error) from error
            except Exception as error:
                if call.again:
                    self.failed.append((call.task[0], error))
                    if call.receiver is not None:
                        self.job_arrived(call.receiver, call.receiver)
                    return call, None
                self.submit(call.task, call.receiver, again=True)
                continue
            self.answered += 1
            self.threads.add((answer.process, answer.thread))
            if call.receiver is not None:
                self.job_arrived(call.receiver, answer.process)
            return call, answer

    def job_arrived(self, receiver: str, process: str) -> None:
        """Let go what was held: the job for `receiver` reached it, or `process` in its place."""
        self.expecting -= {receiver, process}
        self.waiting.extendleft(self.held)
        self.held.clear()

    def ask_again(self, call: _Call, process: str) -> None:
        """Find another way for a task whose process could not get the job."""
        if self.having.get(process, 0) > call.asked:  # it has got it since
            self.waiting.appendleft(call.task)
        elif process in self.expecting:  # it is on its way
            self.held.append(call.task)
        else:
            self.expecting.add(process)
            self.submit(call.task, receiver=process)


# In a worker

_KEPT: dict[str, Job] = {}  # the jobs that this process has, by the names of their files
_LOADING = threading.Lock()
if hasattr(os, "register_at_fork"):  # a thread of the parent that has it does not come along
    os.register_at_fork(after_in_child=lambda: globals().update(_LOADING=threading.Lock()))


class _Answer(NamedTuple):
    """What a worker answers: who it is, and a value; or that it is `lacking` the job."""

    process: str
    thread: int
    value: Any
    lacking: bool = False


def _work(file: Path, argument: Any, sent: bytes | None) -> _Answer:
    """Do the job in `file`, or the `sent` one, for an argument."""
    job = _kept(file, sent)
    with one_thread():
        value = None if job is None else job(argument)
    process = f"{socket.gethostname()} {os.getpid()}"
    return _Answer(process, threading.get_ident(), value, job is None)


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
