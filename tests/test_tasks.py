"""Many tasks of one function: on any executor, and on from what a file has."""

import math
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
from landscape_problems import NET, point, samples

from tinyspur import run_each
from tinyspur.certificates import certify
from tinyspur.engine.losses import SquaredLoss
from tinyspur.engine.network import Network
from tinyspur.engine.parameters import Parameters
from tinyspur.engine.user_activations import SmoothActivation
from tinyspur.fitting.settle import settle
from tinyspur.fitting.training import kaiming_start
from tinyspur.layers import Dense
from tinyspur.records import HEAD, Records, decoded, digest, encoded
from tinyspur.refutations.escapes import find_escape
from tinyspur.studies.processes import processes

LOSS = SquaredLoss()
SMALL = Network((1, 2), [Dense(2), Dense(1)])
CALLS = []


def half(n):
    CALLS.append(n)
    return n / 2


def interrupted(n):
    if n == 2:
        raise KeyboardInterrupt
    return half(n)


def killed(n):
    if n == 2 and not os.path.exists("killed"):
        open("killed", "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return n / 2


@pytest.fixture(autouse=True)
def forgotten():
    CALLS.clear()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "new" / "half.results"


def test_results_are_in_the_order_of_the_items():
    with ThreadPoolExecutor(3) as pool:
        assert run_each(half, range(20), pool) == [n / 2 for n in range(20)]
    assert run_each(half, iter([3, 1])) == [1.5, 0.5]
    assert run_each(half, []) == []


def test_points_settle_on_workers_as_they_do_here():
    data, points = samples(SMALL, 12), [kaiming_start(SMALL, seed) for seed in range(3)]
    job = partial(settle, data=data, loss=LOSS)
    alone = run_each(job, points)
    with processes(2) as pool:
        found = run_each(job, points, pool)
    assert [str(end) for end in found] == [str(end) for end in alone]
    assert [end.theta for end in found] == [end.theta for end in alone]


# Files


def test_a_second_call_does_what_is_missing(path):
    with pytest.raises(KeyboardInterrupt):
        run_each(interrupted, range(5), path=path)
    assert CALLS == [0, 1]
    with pytest.raises(KeyboardInterrupt):
        run_each(interrupted, [4, 3, 1, 2, 0], path=path)
    assert CALLS == [0, 1, 4, 3]
    assert run_each(interrupted, [3, 3, 0], path=path) == [1.5, 1.5, 0.0]
    assert CALLS == [0, 1, 4, 3]
    assert run_each(half, [1, 1, 5], path=path) == [0.5, 0.5, 2.5]  # another function, once each
    assert CALLS == [0, 1, 4, 3, 1, 5]


def test_a_worker_that_is_killed_costs_nothing(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with processes(2) as pool:
        assert run_each(killed, range(6), pool, path) == [n / 2 for n in range(6)]
    assert (tmp_path / "killed").exists()


def test_a_line_that_a_kill_cut_off_is_done_again(path):
    assert run_each(half, range(4), path=path) == [0, 0.5, 1, 1.5]
    whole = path.read_bytes()
    for cut in (1, 20, len(whole) - len(HEAD) - 5, len(whole) - 3):
        path.write_bytes(whole[:-cut])
        assert run_each(half, range(4), path=path) == [0, 0.5, 1, 1.5]
        assert path.read_bytes() == whole


@pytest.mark.parametrize("tail", [b"", b"cut off"])
def test_two_calls_at_once_lose_none_of_their_results(path, tail):
    run_each(math.isqrt, [1], path=path)
    path.write_bytes(path.read_bytes() + tail)
    one, other = Records(path, math.isqrt, [1, 4, 9]), Records(path, math.factorial, [1, 2])
    one.add(1, 2)
    one.add(2, 3)
    other.add(0, 1)
    one, other = Records(path, math.isqrt, [1, 4, 9]), Records(path, math.factorial, [1, 2])
    assert (one.missing, other.missing) == ([], [1])


def test_other_data_are_told_apart(path):
    theta, loss, data = point(NET), LOSS, samples(NET, 9)
    other = samples(NET, 9, seed=1)
    risks = [
        run_each(partial(NET.risk, data=d, loss=loss), [theta], path=path) for d in (data, other)
    ]
    assert risks[0] != risks[1]
    assert len(path.read_bytes().splitlines()) == 3
    pairs = [(1, True), (1, 1.0), ("1", 1), ([1], (1,)), ([[1], 2], [[1, 2]]), (data, other)]
    pairs += [(theta, theta.vector), (theta, point(NET, 1)), (np.ones(2), np.ones((2, 1)))]
    pairs += [(partial(half, 1), partial(half, 2)), (half, interrupted), ({"a": 1}, {"a": 2})]
    assert [digest(a) != digest(b) for a, b in pairs] == [True] * len(pairs)
    assert digest([data, theta]) == digest([samples(NET, 9), point(NET)])


def test_files_of_another_kind_are_left(path):
    path.parent.mkdir()
    path.write_text("mine\n")
    with pytest.raises(ValueError, match=r"half\.results: expected no file, or one with results"):
        run_each(half, [1], path=path)
    assert path.read_text() == "mine\n" and not CALLS
    with pytest.raises(OSError, match=r"new: expected a file that can be written, got a folder"):
        run_each(half, [1], path=path.parent)
    path.unlink()
    run_each(half, [1], path=path)
    path.write_bytes(path.read_bytes().replace(b" 0.5", b" {0"))
    with pytest.raises(ValueError, match=r"half\.results: damaged:"):
        run_each(half, [1], path=path)


def test_functions_within_functions_cannot_be_known_again(path):
    with pytest.raises(ValueError, match="results: expected what can be pickled"):
        run_each(lambda n: n, [1], path=path)
    assert run_each(lambda n: n, [1]) == [1]


# What can be in a file


def test_numbers_arrays_and_points_are_the_same_to_the_last_bit():
    theta = point(NET)
    values = [None, True, 3, 0.1, math.inf, "text", [1, [2]], (1, (2.5, "x")), {"a": 1, 2: (3,)}]
    values += [theta, theta.to(np, np.float32), samples(NET, 3)]
    for value in values:
        again = decoded(encoded(value))
        assert type(again) is type(value)
        if not isinstance(value, type(samples(NET, 3))):
            assert again == value
    for array in (np.arange(6.0).reshape(2, 3).T, np.array([True]), np.zeros((0, 2), np.float32)):
        again = decoded(encoded(array))
        assert again.dtype == array.dtype and np.array_equal(again, array)
        again[...] = 1  # it can be written to
    assert math.isnan(decoded(encoded(math.nan)))
    assert decoded(encoded(np.float64(0.1))) == 0.1


def test_what_is_proved_comes_back_as_it_was(path):
    data = samples(SMALL, 12)
    ends = run_each(
        partial(settle, data=data, loss=LOSS), map(partial(kaiming_start, SMALL), (0, 1))
    )
    for end in ends:
        again = decoded(encoded(end))
        assert str(again) == str(end) and again.theta == end.theta
        assert again.certificate == end.certificate and again.family == end.family
    certificate = certify(ends[0].theta, data, LOSS)
    assert decoded(encoded(certificate)) == certificate


class Secret:
    pass


OWN = Network((1, 2), [Dense(2), Dense(1)], SmoothActivation("own", np.sin, np.cos))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (Secret(), "got a Secret"),
        (np.array([Secret()]), "got a ndarray"),
        ({1, 2}, "got a set"),
        (1j, "got a complex"),
        (Parameters(OWN, np.ones(OWN.size)), "a network that can be read from JSON"),
    ],
)
def test_other_results_are_refused(value, words):
    with pytest.raises(ValueError, match=words):
        encoded(value)


@pytest.mark.parametrize("name", ["os:system", "tinyspur.files:keep", "tinyspurious.x:Y"])
def test_a_file_can_name_nothing_but_results_of_the_package(name):
    with pytest.raises(ValueError, match="expected what tinyspur returns, got"):
        decoded({"result": [name, {}]})


# Searches


def test_a_search_from_many_starts_is_the_same_on_workers_and_goes_on_from_its_file(path):
    theta, data = point(NET), samples(NET, 9)
    settings = {"radius": 0.1, "starts": 6, "iterations": 5, "seed": 3}
    alone = find_escape(theta, data, LOSS, **settings)
    with ThreadPoolExecutor(2) as pool:
        found = find_escape(theta, data, LOSS, **settings, executor=pool, path=path)
    lines = path.read_bytes().splitlines()
    assert len(lines) == 1 + 6
    again = find_escape(theta, data, LOSS, **settings, path=path)
    for other in (found, again):
        assert other.theta == alone.theta and str(other) == str(alone)
    find_escape(theta, data, LOSS, **settings | {"starts": 8}, path=path)
    assert path.read_bytes().splitlines()[:7] == lines
