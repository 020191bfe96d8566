"""Tasks on executors: those that fail are tried again and named, long ones are given out ahead."""

import itertools
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from landscape_problems import Recorder

from tinyspur.engine import executors
from tinyspur.engine.executors import Task, answers
from tinyspur.studies.processes import Processes


def square(n):
    return n * n


def dying(n):
    """Return the square of n, but for 3, at which the process dies."""
    if n == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return n * n


def divided(n):
    return 1 // n


def tasks(*numbers):
    return [Task(n, n) for n in numbers]


def test_without_an_executor_tasks_are_done_in_their_order_and_errors_pass():
    assert list(answers("work", square, tasks(3, 1, 2), None)) == [(3, 9), (1, 1), (2, 4)]
    with pytest.raises(ZeroDivisionError):
        list(answers("work", divided, tasks(1, 0), None))


def test_a_process_that_dies_takes_no_other_task_along_and_its_task_is_named():
    found = []
    words = r"^work: failed at task 3 \(BrokenProcessPool: .*\); kept$"
    with Processes(2) as pool, pytest.raises(RuntimeError, match=words):
        for key, value in answers(
            "work", dying, tasks(*range(12)), pool, lambda: "; kept", "task {}".format
        ):
            found.append((key, value))
    assert sorted(found) == [(n, n * n) for n in range(12) if n != 3]


def test_a_worker_that_dies_once_is_replaced_and_nothing_is_missing():
    with Processes(2) as pool:
        pids = {pool.submit(os.getpid).result() for _ in range(8)}
        recorder = Recorder(pool, before={3: lambda: os.kill(min(pids), signal.SIGKILL)})
        found = dict(answers("work", square, tasks(*range(12)), recorder))
        now = {pool.submit(os.getpid).result() for _ in range(8)}
    assert found == {n: n * n for n in range(12)}
    assert min(pids) not in now


def test_where_no_task_succeeds_a_few_are_tried():
    with ThreadPoolExecutor(1) as inner:
        recorder = Recorder(inner)
        with pytest.raises(RuntimeError, match=r"^work: failed at 0, a, b \(ZeroDivisionError"):
            list(answers("work", divided, [Task(k, 0) for k in (0, "a", "b", "c", "d")], recorder))
    assert len(recorder.bytes) == 2 * executors.HOPELESS


def test_many_that_fail_are_counted():
    found = []
    work = [Task(n, n % 2) for n in range(1, 18)]
    with (
        ThreadPoolExecutor(2) as pool,
        pytest.raises(RuntimeError, match=r"failed at (\d+, ){4}\d+ and 3 more \("),
    ):
        found += answers("work", divided, work[:1], pool)
        for answer in answers("work", divided, work, Recorder(pool)):
            found.append(answer)
    assert sorted(found) == sorted([(1, 1), *((n, 1) for n in range(1, 18, 2))])


def test_long_tasks_are_given_to_all_workers_without_waiting_for_the_first(monkeypatch):
    """None of these ends before all have begun."""
    monkeypatch.setattr(executors, "PATIENCE", 0.01)
    together = threading.Barrier(8)
    monkeypatch.setattr(executors.pickle, "dumps", lambda job: b"")
    monkeypatch.setattr(executors.pickle, "loads", lambda job: lambda n: together.wait(60) >= 0)
    with ThreadPoolExecutor(8) as pool:
        assert dict(answers("work", square, tasks(*range(8)), pool)) == dict.fromkeys(
            range(8), True
        )


def test_what_a_call_left_unfinished_does_not_come_up_in_the_next():
    with ThreadPoolExecutor(2) as pool, executors.shared("work", square, pool) as work:
        first = work.answers(tasks(*range(50)))
        assert len(list(itertools.islice(first, 3))) == 3
        first.close()
        assert dict(work.answers(tasks(60, 61))) == {60: 3600, 61: 3721}
