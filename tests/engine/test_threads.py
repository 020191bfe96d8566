"""Passes run on all cores, and leave everything else as it was."""

import contextlib
import gc
import os
import signal
import threading
import time
import weakref

import numpy as np
import pytest
from threadpoolctl import ThreadpoolController

from tinyspur.engine import threads


def test_passes_that_overlap_leave_blas_as_it_was(monkeypatch):
    monkeypatch.setattr(threads, "WORKERS", 2)

    def blas_threads():
        return [library["num_threads"] for library in ThreadpoolController().info()]

    before = blas_threads()
    for _ in zip(*(threads.in_order(str, range(5), np) for _ in range(2)), strict=True):
        pass
    assert blas_threads() == before


def test_threads_have_the_error_state_of_their_caller(monkeypatch):
    monkeypatch.setattr(threads, "WORKERS", 2)
    with np.errstate(over="raise"), pytest.raises(FloatingPointError):
        list(threads.in_order(lambda n: np.array([1e200]) * 1e200, range(3), np))


def test_an_error_in_a_thread_is_raised(monkeypatch):
    monkeypatch.setattr(threads, "WORKERS", 2)

    def fail(item):
        raise ValueError(f"item {item}")

    with pytest.raises(ValueError, match="item 0"):
        list(threads.in_order(fail, range(5), np))
    assert list(threads.in_order(str, range(5), np)) == list("01234")


def test_results_before_an_error_come_first_whoever_works(monkeypatch):
    monkeypatch.setattr(threads, "WORKERS", 3)

    def slow(item):
        time.sleep(0.01 * (item % 3))
        return 1 // (5 - item)

    found = []
    with pytest.raises(ZeroDivisionError):
        for result in threads.in_order(slow, range(9), np):
            found.append(result)
    assert found == [0, 0, 0, 0, 1]


def test_what_a_thread_runs_in_order_it_runs_alone(monkeypatch):
    monkeypatch.setattr(threads, "WORKERS", 2)
    inner = lambda n: list(threads.in_order(lambda k: (n, k), range(4), np))  # noqa: E731
    found = list(threads.in_order(inner, range(5), np))
    assert found == [[(n, k) for k in range(4)] for n in range(5)]


def test_after_an_error_nothing_runs_on(monkeypatch):
    monkeypatch.setattr(threads, "WORKERS", 2)
    running = []

    def function(n):
        running.append(n)
        if n == 0:
            raise ValueError("first")
        time.sleep(0.05)
        running.remove(n)

    with pytest.raises(ValueError, match="first"):
        list(threads.in_order(function, range(9), np))
    assert running == [0]


def test_a_child_lets_go_of_what_its_parent_runs(monkeypatch):
    monkeypatch.setattr(threads, "WORKERS", 2)
    found = threads.in_order(lambda n: time.sleep(0.05) or n, range(9), np)
    assert next(found) == 0
    child = os.fork()
    if not child:
        signal.alarm(20)  # a child that waits for ever ends
        found.close()
        os._exit(0 if list(threads.in_order(str, range(3), np)) == list("012") else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert list(found) == list(range(1, 9))


def test_what_was_done_here_is_not_held_by_threads_that_are_busy(monkeypatch):
    monkeypatch.setattr(threads, "WORKERS", 2)
    free, begun, freed = threading.Event(), threading.Event(), []

    def hold(n):
        begun.set()
        free.wait(20)

    other = threading.Thread(target=lambda: list(threads.in_order(hold, range(2), np)))
    other.start()  # it and the one thread of the pool are busy now
    while not (begun.is_set() and threads._pool(1)._work_queue.empty()):
        time.sleep(0.001)
    for early in (False, True):
        held = threading.local()  # which can be watched
        freed.append(weakref.ref(held))
        found = threads.in_order(lambda n, held=held: n, range(5), np)
        assert next(found) == 0
        del held
        assert early or list(found) == [1, 2, 3, 4]
        found.close()
        del found
    gc.collect()
    alive = [ref() for ref in freed]
    free.set()
    other.join()
    assert alive == [None, None]


def test_an_error_lets_go_of_what_its_function_had(monkeypatch):
    monkeypatch.setattr(threads, "WORKERS", 2)
    freed = []

    def fail(n):
        held = threading.local()
        freed.append(weakref.ref(held))
        raise ValueError("expected")

    gc.disable()
    try:
        for _ in range(20):
            with contextlib.suppress(ValueError):
                list(threads.in_order(fail, range(3), np))
        time.sleep(0.1)  # a thread of the pool may be about to let go
        alive = [ref for ref in freed if ref()]
    finally:
        gc.enable()
    assert freed and not alive


def test_an_interrupted_pass_leaves_nothing_running(monkeypatch):
    monkeypatch.setattr(threads, "WORKERS", 2)
    main, running, here = threading.get_ident(), threading.Event(), threading.Event()

    def items():
        yield from (0, 1)
        running.wait(20)
        yield 2

    def function(n):
        if n:  # on this thread, since the other one has the first
            here.set()
            time.sleep(10)
        running.set()
        here.wait(20)
        time.sleep(0.1)  # until it sleeps
        signal.pthread_kill(main, signal.SIGINT)
        time.sleep(0.2)
        running.clear()

    with pytest.raises(KeyboardInterrupt):
        list(threads.in_order(function, items(), np))
    assert not running.is_set() and not threads._ONE_THREAD.inside


def test_an_interrupt_before_blas_is_limited_counts_no_pass(monkeypatch):
    def interrupted():
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(threads, "_controller", interrupted)
        list(threads.in_order(str, range(3), np))
    assert not threads._ONE_THREAD.inside


def test_what_a_thread_keeps_is_bounded():
    def sizes():
        for n in range(40):
            threads.scratch((2**20,), np.zeros(1), f"use {n}")
            yield sum(memory.nbytes for memory in threads._KEPT.held.values())

    assert 2**25 < max(sizes()) <= threads.KEPT_IN_ALL
    kept = threads.scratch((8,), np.zeros(1), "again")
    assert np.shares_memory(kept, threads.scratch((4,), np.zeros(1), "again"))
    threads._KEPT.held.clear()
