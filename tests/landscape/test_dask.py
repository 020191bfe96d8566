"""Dask finds the same bits, with workers that die."""

import logging
import os
import signal
import warnings
from unittest import mock

import dask
import distributed
import pytest
from landscape_problems import LOSS, NET, Recorder, forkserver, point, problem, same_bits, samples

from tinyspur.engine.shared_gradient import shared_gradient
from tinyspur.landscape.scan import scan


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    forkserver()  # where workers, the first and those that replace them, come from
    with (
        mock.patch.dict(os.environ),  # where Dask leaves what its workers need
        dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"}),
        distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            dashboard_address=None,
            silence_logs=logging.CRITICAL,
            local_directory=str(tmp_path_factory.mktemp("dask")),
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


def test_dask_finds_the_same_bits_without_a_warning(client):
    where, data, expected = problem()
    executor = Recorder(client.get_executor())
    with (
        dask.config.set({"distributed.admin.large-graph-warning-threshold": "1 kB"}),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("error")
        same_bits(scan(where, data, LOSS, executor), expected)
    assert set(executor.points) == set(range(225)) - {112}
    assert executor.payloads(data) == 0 < len(executor.bytes) == 56


def test_dask_replaces_workers_that_die_and_the_bits_are_the_same(client):
    client.wait_for_workers(2, timeout=120)
    where, data, expected = problem()
    first, second = client.run(os.getpid).values()
    executor = Recorder(
        client.get_executor(),
        before={
            5: lambda: os.kill(first, signal.SIGKILL),
            20: lambda: os.kill(second, signal.SIGKILL),
        },
    )
    same_bits(scan(where, data, LOSS, executor), expected)
    assert len(executor.bytes) == 56  # Dask itself gives others what was lost
    assert executor.payloads(data) == 0
    client.wait_for_workers(2, timeout=120)
    assert {first, second}.isdisjoint(client.run(os.getpid).values())


def test_gradients_of_dask_have_the_same_bits_when_a_worker_dies(client):
    client.wait_for_workers(2, timeout=120)
    theta, data = point(NET), samples(NET, 500)
    with shared_gradient(NET, data, LOSS) as risk_and_gradient:
        risk, gradient = risk_and_gradient(theta)
    first = min(client.run(os.getpid).values())
    executor = Recorder(client.get_executor(), before={20: lambda: os.kill(first, signal.SIGKILL)})
    with shared_gradient(NET, data, LOSS, executor) as risk_and_gradient:
        for _ in range(2):
            found = risk_and_gradient(theta)
            assert (found[0], found[1].vector.tobytes()) == (risk, gradient.vector.tobytes())
    assert len(executor.bytes) == 2 * 64 and executor.payloads(data) == 0
