"""Any executor finds the same bits, whatever its workers can read and whenever they die."""

import errno
import itertools
import operator
import os
import pickle
import shutil
import tempfile
import threading
import time
from concurrent.futures import CancelledError, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import strict_device
from landscape_problems import (
    LOSS,
    NET,
    PAIRS,
    Recorder,
    forkserver,
    moved_to,
    network,
    point,
    problem,
    program,
    same_bits,
    samples,
)

from tinyspur.engine import executors
from tinyspur.engine import threads as engine_threads
from tinyspur.engine.losses import SquaredLoss
from tinyspur.engine.network import Network
from tinyspur.engine.parameters import Parameters
from tinyspur.engine.user_activations import SmoothActivation
from tinyspur.landscape import job, store
from tinyspur.landscape.planes import Lines, Plane
from tinyspur.landscape.risks import Landscape
from tinyspur.landscape.scan import scan


def processes():
    return ProcessPoolExecutor(2, forkserver())


def threads():
    return ThreadPoolExecutor(3)


@pytest.mark.parametrize("pool", [threads, processes])
def test_pools_find_the_same_bits_and_no_call_carries_the_data(pool):
    where, data, expected = problem()
    with pool() as inner:
        executor = Recorder(inner)
        same_bits(scan(where, data, LOSS, executor), expected)
        blocks = len(executor.bytes)
        assert set(executor.points) == set(range(225)) - {112}
        assert executor.payloads(data) == 0 < blocks == 56
        # other scans in between, more than the workers keep the data of
        for seed in (1, 2, 3):
            there, _, there_expected = problem(5, seed)
            same_bits(scan(there, data, LOSS, inner), there_expected)
        lines = Lines.random(where.theta, 5, 1, steps=5)
        same_bits(scan(lines, data, LOSS, inner), scan(lines, data, LOSS))
        same_bits(scan(where, data, LOSS, inner), expected)


def test_forked_workers_find_the_same_bits(tmp_path):
    where, data, expected = problem()
    text = """
with ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as executor:
    scan(where, data, SquaredLoss(), executor).save(path)
"""
    process = program(text, where=where, data=data, path=tmp_path / "found.npz")
    process.join(120)
    assert process.exitcode == 0
    same_bits(Landscape.load(tmp_path / "found.npz"), expected)


class Read:
    """A loss that writes down which process has read it, once pickled."""

    def __init__(self, log):
        self.log = str(log)

    def __reduce__(self):
        noted = f"open({self.log!r}, 'a').write(f'{{__import__(\"os\").getpid()}}\\n')"
        return eval, (f"({noted}, __import__('tinyspur').SquaredLoss())[1]",)

    def __getattr__(self, name):
        return getattr(LOSS, name)


@pytest.mark.parametrize("pool", [threads, processes])
def test_each_process_reads_the_data_once(pool, tmp_path):
    where, data, expected = problem()
    with pool() as executor:
        found = scan(where, data, Read(tmp_path / "log"), executor)
    assert found.risks.tobytes() == expected.risks.tobytes()
    assert found.rounding == pytest.approx(expected.rounding)  # a bound only for known losses
    readers = (tmp_path / "log").read_text().split()
    assert 1 <= len(readers) == len(set(readers)) <= 2
    assert (str(os.getpid()) in readers) == (pool is threads)


def test_no_data_are_left_behind(monkeypatch, tmp_path):
    where, data, _ = problem(5)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with threads() as executor:
        scan(where, data, LOSS, executor)
    assert not list(tmp_path.iterdir()) and not executors._KEPT
    # workers that begin only while a scan that failed ends
    work, number, late = executors._work, itertools.count(), []
    begun, ending = threading.Event(), threading.Event()

    class Kept(dict):
        def pop(self, *args):
            found = super().pop(*args)
            ending.set()
            time.sleep(0.1)
            return found

    def begin_late(*args):
        n = next(number)
        if n == 1:
            assert begun.wait(60)
            raise CancelledError("a failure of the test's")  # which ends the scan
        if n:
            begun.set()
            assert ending.wait(60)
        answer = work(*args)
        late.append(answer.value)
        return answer

    monkeypatch.setattr(executors, "_KEPT", Kept())
    monkeypatch.setattr(executors, "_work", begin_late)
    with ThreadPoolExecutor(8) as executor, pytest.raises(RuntimeError, match="of the test's"):
        scan(where, data, LOSS, executor)
    assert late[0] is not None and late[1:] and all(risks is None for risks in late[1:])
    assert not list(tmp_path.iterdir()) and not executors._KEPT


def test_a_pool_that_is_shut_down_is_an_error(monkeypatch, tmp_path):
    """Its futures that are cancelled count as done only when a worker has seen that."""
    where, data, expected = problem(4)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    submitted, risks, number = threading.Semaphore(0), job.Job.risks, itertools.count()

    class Counted(ThreadPoolExecutor):
        def submit(self, *args):
            future = super().submit(*args)
            submitted.release()
            return future

    def shutting_down(job, points):
        if next(number) == 1:
            for _ in range(4):  # there are four blocks
                assert submitted.acquire(timeout=60)
            pool.shutdown(wait=False, cancel_futures=True)
        return risks(job, points)

    with monkeypatch.context() as patch:
        patch.setattr(job.Job, "risks", shutting_down)
        with (
            Counted(1) as pool,
            pytest.raises(RuntimeError, match=r"the executor failed \(CancelledError"),
        ):
            scan(where, data, LOSS, pool, tmp_path / "scan.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["scan.npz"] and not executors._KEPT
    same_bits(scan(where, data, LOSS, path=tmp_path / "scan.npz"), expected)


@pytest.mark.parametrize("pool", [threads, processes])
def test_data_that_a_cleaner_removes_are_sent(pool, monkeypatch, tmp_path):
    where, data, expected = problem()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def clean():
        for folder in tmp_path.glob("tinyspur-*"):
            shutil.rmtree(folder)

    with pool() as inner:
        executor = Recorder(inner, before={1: clean})
        same_bits(scan(where, data, LOSS, executor), expected)
        # to a process about once: the other one may take what it is sent
        assert executor.payloads(data) <= 10 * (pool is processes)
    assert not executors._KEPT


class Broken(SquaredLoss):
    """A loss that can't be unpickled for want of a file."""

    def __reduce__(self):
        return open, ("/no/such/file",)


@pytest.mark.parametrize("pool", [threads, processes])
def test_a_loss_that_a_worker_cannot_read_is_an_error(pool):
    where, data, _ = problem(5)
    with (
        pool() as executor,
        pytest.raises(RuntimeError, match=r"FileNotFoundError: .*/no/such/file"),
    ):
        scan(where, data, Broken(), executor)


def test_a_full_disk_is_an_error(monkeypatch, tmp_path):
    where, data, _ = problem(5)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with (
        threads() as executor,
        pytest.raises(OSError, match=f"scan: .* written to {tmp_path}/.*: .*No space"),
    ):
        scan(where, data, LOSS, executor)
    assert not list(tmp_path.iterdir())


def test_workers_forked_beside_a_running_pass_can_work():
    where, data, _ = problem(5)
    text = """
from tinyspur.engine.threads import _ONE_THREAD
with executors._LOADING, _ONE_THREAD.lock:  # as threads of this process may
    worker = multiprocessing.get_context("fork").Process(
        target=scan, args=(where, data, SquaredLoss(), ThreadPoolExecutor(1))
    )
    worker.start()
    worker.join(30)
sys.exit(worker.exitcode != 0 and (worker.kill() or 1))
"""
    process = program(text, where=where, data=data)
    process.join(120)
    assert process.exitcode == 0


def test_a_process_keeps_the_data_of_the_last_two_scans(monkeypatch, tmp_path):
    monkeypatch.setattr(executors, "_KEPT", {})
    files = [tmp_path / name for name in "abc"]
    for file in files:
        file.write_bytes(pickle.dumps(f"the job in {file.name}"))
        for _ in range(2):
            assert executors._kept(file, None) == f"the job in {file.name}"
            file.unlink(missing_ok=True)  # it is read once
    assert [executors._kept(file, None) for file in files] == [
        *(None, "the job in b", "the job in c")
    ]


def test_workers_run_on_one_thread_each(monkeypatch):
    where, data, expected = problem(5, seed=8)
    threads, value = [], SquaredLoss.value

    def watched(loss, o, y):
        threads.append(threading.get_ident())
        return value(loss, o, y)

    monkeypatch.setattr(SquaredLoss, "value", watched)
    monkeypatch.setattr(engine_threads, "WORKERS", 4)
    monkeypatch.setattr(job, "risk_rounding", lambda *_: 0.0)
    net = network("dense", budget=1)
    moved = [Parameters(net, d.vector) for d in where.directions]
    where = Plane(Parameters(net, where.theta.vector), moved, where.alpha, where.beta)
    scan(where, data, LOSS)
    assert len(set(threads)) > 1
    threads.clear()
    with ThreadPoolExecutor(1) as executor:
        worker = executor.submit(threading.get_ident).result()
        found = scan(where, data, LOSS, executor)
    assert np.allclose(found.risks, expected.risks, rtol=1e-12, atol=0)
    assert len(threads) == 25 * 200
    assert threads.count(worker) == 24 * 200


@pytest.mark.parametrize(
    ("pool", "failure", "words"),
    [
        (processes, (os._exit, (1,)), r"the executor failed \(BrokenProcessPool"),
        (
            threads,
            (operator.truediv, (1, 0)),
            r"failed at risks \d+ to \d+, .* more \(ZeroDivisionError: division by zero\)",
        ),
    ],
    ids=["dies", "raises"],
)
def test_what_was_found_before_a_pool_failed_is_kept(pool, failure, words, tmp_path):
    where, data, expected = problem()
    path = tmp_path / "scan.npz"
    with (
        pool() as executor,
        pytest.raises(RuntimeError, match=rf"^scan: {words}") as raised,
    ):
        scan(where, data, LOSS, Recorder(executor, dict.fromkeys(range(9, 99), failure)), path)
    assert raised.value.__cause__ is not None
    with np.load(path) as arrays:
        done, risks = int(arrays["done"].sum()), arrays["risks"]
    assert f"; {done} of 225 risks are in {path}, from which the same call goes on" in str(
        raised.value
    )
    with pytest.raises(ValueError, match=f"expected a finished scan, got {done} of 225 risks"):
        Landscape.load(path)
    kept = ~np.isnan(risks)
    assert 5 <= done == kept.sum() < 225
    assert np.array_equal(risks[kept], expected.risks[kept])
    with pool() as executor:
        again = Recorder(executor)
        same_bits(scan(where, data, LOSS, again, path), expected)
    assert set(again.points) == set(np.flatnonzero(~kept))
    same_bits(Landscape.load(path), expected)


def test_a_call_that_fails_once_is_made_again():
    """As where a worker dies while its answer is on the way."""
    where, data, expected = problem()
    with threads() as inner:
        executor = Recorder(inner, dict.fromkeys((0, 9, 20), (operator.truediv, (1, 0))))
        same_bits(scan(where, data, LOSS, executor), expected)


def test_a_pool_that_failed_is_named_without_a_file_too():
    where, data, _ = problem(5)
    pool = ThreadPoolExecutor(1)
    pool.shutdown()
    with pytest.raises(RuntimeError, match=r"executor failed \(RuntimeError: [^;]*\)$"):
        scan(where, data, LOSS, pool)


@pytest.mark.parametrize("pair", PAIRS)
def test_other_losses_and_activations_are_told_apart_in_a_pool(pair):
    data = samples(NET)
    with ThreadPoolExecutor(1) as executor:
        for where, loss in PAIRS[pair]():
            same_bits(scan(where, data, loss, executor), scan(where, data, loss))


def test_a_pool_does_not_answer_with_chunks_or_arrays_of_an_earlier_scan():
    """The first scan's job has the same key: its memory budget and its device are not in it."""
    data, theta = samples(NET, 200), point(NET)
    seen, value = [], SquaredLoss.value
    with ThreadPoolExecutor(1) as executor:
        scan(Plane.random(theta, steps=3), data, LOSS, executor)
        small = Parameters(network("dense", 1), theta.vector)
        SquaredLoss.value = lambda loss, o, y: (
            seen.append((type(o), o.shape[1])) or value(loss, o, y)
        )
        try:
            scan(Plane.random(small, steps=3), data, LOSS, executor)
            chunks = {n for _, n in seen}
            seen.clear()
            scan(moved_to(Plane.random(theta, steps=3), strict_device), data, LOSS, executor)
            types = [t for t, _ in seen]
        finally:
            SquaredLoss.value = value
    assert chunks - {200} == {1} and types.count(strict_device.ndarray) >= 9


def test_what_cannot_be_pickled_is_bad_input():
    net = Network(NET.input_shape, NET.layers, SmoothActivation("own", lambda z: z, np.ones_like))
    where = Plane.random(Parameters(net, point(NET).vector), steps=3)
    with ThreadPoolExecutor(1) as executor, pytest.raises(ValueError, match="can be pickled"):
        scan(where, samples(NET), LOSS, executor)


def test_a_file_that_cannot_be_written_is_no_failure_of_the_executor(tmp_path, monkeypatch):
    where, data, _ = problem(5)
    write, calls = Landscape.save, []

    def full(*args, **more):
        calls.append(1)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        return write(*args, **more)

    monkeypatch.setattr(Landscape, "save", full)
    monkeypatch.setattr(store, "SAVE_SECONDS", -1)
    with ThreadPoolExecutor(1) as executor, pytest.raises(OSError, match="No space left"):
        scan(where, data, LOSS, executor, tmp_path / "scan.npz")


def test_all_threads_of_a_worker_have_something_to_do(monkeypatch):
    where, data, expected = problem()
    risks, number = job.Job.risks, itertools.count()
    together = dict.fromkeys(range(1, 5), threading.Barrier(4))
    together |= dict.fromkeys(range(5, 15), threading.Barrier(10))  # two for each of four, and two

    def meeting(job, points):
        n = next(number)
        if n in together:
            together[n].wait(60)
        return risks(job, points)

    monkeypatch.setattr(job.Job, "risks", meeting)
    with ThreadPoolExecutor(12) as executor:
        same_bits(scan(where, data, LOSS, executor), expected)


def test_a_finished_scan_is_not_pickled(tmp_path, monkeypatch):
    where, data, expected = problem(3)
    scan(where, data, LOSS, path=tmp_path / "scan.npz")

    def refuse(*_):
        raise AssertionError("pickled")

    monkeypatch.setattr(executors.pickle, "dumps", refuse)
    with ThreadPoolExecutor(1) as executor:
        same_bits(scan(where, data, LOSS, executor, tmp_path / "scan.npz"), expected)
