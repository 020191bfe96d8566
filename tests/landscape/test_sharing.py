"""Who is sent the data and what waits, in whatever order workers answer, forget and die."""

import os
import random
import signal
from collections import deque
from concurrent.futures import Executor, Future
from pathlib import Path

import numpy as np
import pytest
from landscape_problems import LOSS, Recorder, problem, same_bits
from shared import in_turn

from tinyspur.engine import executors
from tinyspur.landscape import job
from tinyspur.landscape.risks import Landscape
from tinyspur.landscape.scan import scan


class Simulated(Executor):
    """Workers on other machines, with memories of their own, that take calls in a random order.

    Before a call a worker dies, and a new one is in its place, with the chance `dying`. Where it
    is known to die before the call `dead`, calls are taken in their order.
    """

    def __init__(self, workers, seed, monkeypatch, dying=0.0, dead=None):
        self.random, self.patch, self.dying = random.Random(seed), monkeypatch, dying
        self.workers = [(n, {}) for n in range(workers)]
        self.started, self.waiting, self.most = workers, [], 0
        self.dead, self.calls, self.answered = dead, 0, deque()
        monkeypatch.setattr(executors, "SimpleQueue", lambda: self)

    def put(self, future):
        self.answered.append(future)

    def submit(self, function, *args):
        future = Future()
        self.waiting.append((future, function, args))
        self.most = max(self.most, len(self.waiting))
        return future

    def get(self, timeout):
        for _ in range(0 if self.answered else self.random.randint(1, len(self.waiting))):
            last = len(self.waiting) if self.dead is None else 1
            future, function, args = self.waiting.pop(self.random.randrange(last))
            k = self.random.randrange(len(self.workers))
            if self.random.random() < self.dying or self.calls == self.dead:
                self.workers[k] = self.started, {}
                self.started += 1
            self.calls += 1
            number, memory = self.workers[k]
            with self.patch.context() as patch:
                patch.setattr(os, "getpid", lambda number=number: number)
                patch.setattr(executors, "_KEPT", memory)
                patch.setattr(Path, "read_bytes", nowhere)
                future.set_result(function(*args))
        return self.answered.popleft()


def nowhere(path):
    raise FileNotFoundError(path)


@in_turn(
    pytest.mark.parametrize("dying", [0.0, 0.1]), pytest.mark.parametrize("workers", [1, 2, 5])
)
def test_in_whatever_order_workers_answer_or_die_the_bits_are_the_same(workers, dying, monkeypatch):
    where, data, expected = problem()
    for seed in range(4):
        simulated = Simulated(workers, seed, monkeypatch, dying)
        executor = Recorder(simulated)
        same_bits(scan(where, data, LOSS, executor), expected)
        assert not simulated.waiting
        assert simulated.most <= 2 * simulated.started + 2
        if simulated.started == 1:
            assert executor.payloads(data) == 1
            again = len(executor.points) - (where.alpha.size**2 - 1)
            assert 4 <= again <= 2 * 4  # one or two blocks before the data had arrived
        assert executor.payloads(data) <= 4 * simulated.started


def test_what_a_new_worker_was_given_waits_for_the_data(monkeypatch):
    where, data, expected = problem()
    for seed in range(5):
        simulated = Simulated(1, seed, monkeypatch, dead=20)
        executor = Recorder(simulated)
        same_bits(scan(where, data, LOSS, executor), expected)
        assert simulated.started == 2
        assert executor.payloads(data) == 2


class Told(Executor):
    """Answer calls as the steps say: which call, which process took it, and whether it has data.

    Of the calls it knows the point of each, which carried the data, and how many there were at each
    answer.
    """

    def __init__(self, steps, monkeypatch):
        self.steps, self.futures, self.answered = deque(steps), [], deque()
        self.points, self.sent, self.made = [], [], []
        monkeypatch.setattr(executors, "SimpleQueue", lambda: self)

    def put(self, future):
        self.answered.append(future)

    def submit(self, function, file, numbers, sent):
        self.futures.append(Future())
        self.points.append(int(numbers[0]))
        self.sent.append(sent is not None)
        return self.futures[-1]

    def get(self, timeout):
        call, process, has = self.steps.popleft()
        self.made.append(len(self.futures))
        risks = np.array([self.points[call]])
        self.futures[call].set_result(executors._Answer(process, 0, risks, not has))
        return self.answered.popleft()


def shared_out(points, steps, monkeypatch):
    """Share out blocks of one point each."""
    told = Told(steps, monkeypatch)
    blocks = [job.Block(slice(n, n + 1), np.array([n])) for n in range(points)]
    found = list(executors.Shared("a job", told, Path("a file")).answers(blocks))
    assert all(risks == [place.start] for place, risks in found)
    assert sorted(place.start for place, _ in found) == list(range(points))
    assert not told.steps
    return told


def test_nothing_else_is_asked_before_a_process_has_the_data(monkeypatch):
    steps = [(0, "a", False), (1, "a", True), (2, "a", True), (3, "a", True)]
    told = shared_out(3, steps, monkeypatch)
    assert told.made == [1, 2, 4, 4]
    assert told.points == [0, 0, 1, 2]
    assert told.sent == [False, True, False, False]


def test_a_process_that_forgets_the_data_is_sent_them_once_more(monkeypatch):
    steps = [(0, "a", True), (1, "a", False), (2, "a", False), (3, "a", True), (4, "a", True)]
    told = shared_out(3, steps, monkeypatch)
    assert told.points == [0, 1, 2, 1, 2]  # what it was given beside waits for them
    assert told.made == [1, 3, 4, 4, 5]
    assert told.sent == [False, False, False, True, False]


def test_an_answer_from_before_the_data_came_does_not_send_them_again(monkeypatch):
    steps = [
        *((0, "a", True), (1, "b", False), (5, "b", True)),  # the data came to b with call 5
        *((2, "b", False), (3, "a", True), (4, "a", True), (6, "b", True)),
    ]
    told = shared_out(5, steps, monkeypatch)
    assert told.points == [0, 1, 2, 3, 4, 1, 2]
    assert told.sent == [False] * 5 + [True, False]


def test_what_waits_for_data_goes_on_where_another_process_takes_them(monkeypatch):
    steps = [
        *((0, "a", True), (1, "b", False), (2, "b", False)),  # call 5 has the data for b
        *((5, "a", True), (6, "b", False), (7, "b", True), (3, "a", True), (4, "a", True)),
    ]
    told = shared_out(5, steps, monkeypatch)
    assert told.points == [0, 1, 2, 3, 4, 1, 2, 2]
    assert told.sent == [False] * 5 + [True, False, True]


def test_what_is_under_way_is_cancelled_when_the_scan_is_interrupted(monkeypatch, tmp_path):
    where, data, _ = problem()
    simulated = Simulated(2, 0, monkeypatch)
    executor = Recorder(simulated, before={9: lambda: signal.raise_signal(signal.SIGINT)})
    with pytest.raises(KeyboardInterrupt):
        scan(where, data, LOSS, executor, tmp_path / "scan.npz")
    assert simulated.waiting
    assert all(future.cancelled() for future, *_ in simulated.waiting)
    with pytest.raises(ValueError, match="expected a finished scan"):
        Landscape.load(tmp_path / "scan.npz")
