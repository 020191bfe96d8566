"""Risk and gradient by parts: the same bits for any number of workers."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from landscape_problems import NETWORKS, over_losses, point, samples

from tinyspur.engine import shared_gradient as module
from tinyspur.engine.losses import SquaredLoss
from tinyspur.engine.network import Network
from tinyspur.engine.parameters import Parameters
from tinyspur.engine.shared_gradient import shared_gradient
from tinyspur.fitting.training import descend
from tinyspur.studies.processes import processes

NET = Network(*NETWORKS["images"])


def bits(found):
    risk, gradient = found
    return risk, gradient.vector.tobytes()


@over_losses
@pytest.mark.parametrize("n", [1, 7, 150])
def test_it_is_the_risk_and_the_gradient_up_to_rounding(n, loss):
    theta, data = point(NET), samples(NET, n)
    risk, gradient = NET.risk_and_gradient(theta, data, loss)
    with shared_gradient(NET, data, loss) as risk_and_gradient:
        found = risk_and_gradient(theta)
    assert found[0] == pytest.approx(risk, rel=1e-14)
    assert abs(found[1].vector - gradient.vector).max() <= 1e-14 * abs(gradient.vector).max()


def test_any_number_of_workers_gives_the_same_bits_and_gets_the_data_once():
    points, data = [point(NET, seed) for seed in range(2)], samples(NET, 70)
    with shared_gradient(NET, data, SquaredLoss()) as risk_and_gradient:
        expected = [bits(risk_and_gradient(theta)) for theta in points]
    for workers in (1, 2, 3):
        with (
            processes(workers) as pool,
            shared_gradient(NET, data, SquaredLoss(), pool) as risk_and_gradient,
        ):
            assert [bits(risk_and_gradient(theta)) for theta in points] == expected


def test_answers_in_any_order_give_the_same_bits(monkeypatch):
    theta, data = point(NET), samples(NET, 150)
    with shared_gradient(NET, data, SquaredLoss()) as risk_and_gradient:
        expected = bits(risk_and_gradient(theta))

    class Backwards(module._Parts):
        def answers(self, tasks):
            return ((key, self(argument)) for key, argument in reversed(tasks))

    class Given:
        def __enter__(self):
            return Backwards(NET, data, SquaredLoss())

        def __exit__(self, *error):
            pass

    monkeypatch.setattr(module, "shared", lambda *_: Given())
    with shared_gradient(NET, data, SquaredLoss()) as risk_and_gradient:
        assert bits(risk_and_gradient(theta)) == expected


def test_every_sample_is_in_one_part():
    for n in (1, 63, 64, 65, 1000):
        parts = module._Parts(NET, samples(NET, n), SquaredLoss())
        rows = [parts.rows(k) for k in range(min(n, module.PARTS))]
        assert [k for part in rows for k in range(n)[part]] == list(range(n))
        assert all(part.stop > part.start for part in rows)


def test_a_device_keeps_its_arrays(device):
    theta, data = point(NET), samples(NET, 20)
    there = theta.to(device)
    with ThreadPoolExecutor(2) as pool, shared_gradient(NET, data, SquaredLoss(), pool) as shared:
        risk, gradient = shared(there)
    assert type(gradient.vector) is type(there.vector)
    assert risk == pytest.approx(NET.risk(theta, data, SquaredLoss()), rel=1e-12)


def test_a_descent_on_workers_is_that_of_one_process_up_to_rounding():
    theta, data = point(NET), samples(NET, 40)
    alone = descend(theta, data, SquaredLoss(), 5)
    with ThreadPoolExecutor(2) as pool:
        found = descend(theta, data, SquaredLoss(), 5, executor=pool)
    assert np.allclose(found.vector, alone.vector, rtol=0, atol=1e-9)
    assert NET.risk(found, data, SquaredLoss()) < NET.risk(theta, data, SquaredLoss())


def test_foreign_points_and_failing_parts_are_told_in_words():
    data = samples(NET, 20)
    other = Network((2, 4, 4), NETWORKS["one layer"][1])
    with (
        shared_gradient(NET, data, SquaredLoss()) as shared,
        pytest.raises(ValueError, match="expected points and directions of"),
    ):
        shared(other.zeros())
    with pytest.raises(ValueError, match="shared gradient: expected an executor, got a int"):
        shared_gradient(NET, data, SquaredLoss(), 3).__enter__()
    pool = ThreadPoolExecutor(1)
    pool.shutdown()
    with (
        shared_gradient(NET, data, SquaredLoss(), pool) as shared,
        pytest.raises(RuntimeError, match=r"^shared gradient: the executor failed \(RuntimeError"),
    ):
        shared(Parameters(NET, np.ones(NET.size)))
