"""Passes run on all cores, and leave everything else as it was."""

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
