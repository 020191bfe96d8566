"""Scans in single precision and on a device: the same risks, and few transfers."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import strict_device
from landscape_problems import (
    LOSS,
    LOSSES,
    moved_to,
    network,
    over_networks,
    point,
    problem,
    same_bits,
    samples,
)
from shared import in_turn

from tinyspur.engine.activations import ReLU
from tinyspur.engine.backend import select, to_numpy
from tinyspur.engine.losses import CrossEntropy
from tinyspur.engine.network import Network
from tinyspur.landscape.directions import RandomDirections, random_direction
from tinyspur.landscape.planes import Lines, Plane
from tinyspur.landscape.scan import scan
from tinyspur.layers import AveragePool, Conv, Dense, MaxPool


@over_networks
def test_single_precision_is_single_precision(name):
    net = network(name)
    theta = point(net).to(np, np.float32)
    data = samples(net)
    found = scan(Plane.random(theta, 1, "filter", steps=3), data, LOSS)
    double = theta.to(np, np.float64)
    directions = RandomDirections(theta, 2, 1, "filter")
    ticks = [-1.0, 0.0, 1.0]
    wide = Plane(double, [d.to(np, np.float64) for d in directions], ticks, ticks)
    expected = scan(wide, data, LOSS)
    off = abs(found.risks - expected.risks).max()
    assert 0 < off <= 1e-5 * expected.risks.max()
    assert found.risks.dtype == np.float64
    assert found.rounding > 1e6 * expected.rounding
    assert found.centre == net.risk(theta, data, LOSS)


@pytest.fixture(params=["stand-in", pytest.param("cupy", marks=pytest.mark.gpu)])
def device(request):
    return strict_device if request.param == "stand-in" else select("cupy").xp


@in_turn(
    pytest.mark.parametrize("budget", [1, 2**26]),
    pytest.mark.parametrize(
        ("name", "loss"),
        [
            *(("dense", LOSSES[0]), ("images", LOSSES[1]), ("series", LOSSES[2])),
            *(("leading", LOSSES[3]), ("smooth", LOSSES[0]), ("no dense", LOSSES[1])),
        ],
    ),
)
def test_risks_on_a_device_are_those_of_numpy(name, loss, budget, device):
    net = network(name, budget)
    theta, a, b = (point(net, seed) for seed in range(3))
    data = samples(net, 2)
    for host in (
        Plane.through(theta, a, b, 2),
        Lines.between(a, b, 3),
        Lines.random(theta, 2, 0, "filter", steps=3),
    ):
        expected, found = (scan(where, data, loss) for where in (host, moved_to(host, device)))
        assert isinstance(found.risks, np.ndarray)
        assert np.allclose(found.risks, expected.risks, rtol=1e-12, atol=1e-13)
        assert found.centre == pytest.approx(expected.centre, rel=1e-12)
        assert found.rounding == pytest.approx(expected.rounding, rel=0.1, abs=0)
    host, on_device = (
        Plane.through(*(p.to(xp) for p in (theta, a, b)), steps=3) for xp in (np, device)
    )
    assert isinstance(on_device.directions[1].vector, device.ndarray)
    for d, e in zip(on_device.directions, host.directions, strict=True):
        assert np.allclose(to_numpy(d.vector), e.vector, rtol=1e-12, atol=1e-14)
    assert np.allclose(on_device.alpha, host.alpha, rtol=1e-12)
    assert np.allclose(on_device.within(0.1, 5), host.within(0.1, 5), rtol=1e-12)
    lines = Lines.between(theta, a)
    assert np.allclose(moved_to(lines, device).within(0.1), lines.within(0.1), rtol=1e-12)
    assert on_device.coordinates(b.to(device)) == pytest.approx(host.coordinates(b), rel=1e-9)
    for normalization in (None, "filter", "layer"):
        d = random_direction(theta.to(device), 3, normalization)
        assert isinstance(d.vector, device.ndarray)
        expected = random_direction(theta, 3, normalization).vector
        assert np.array_equal(to_numpy(d.vector), expected)


def test_a_scan_on_a_device_resumes_and_runs_in_threads(device, tmp_path):
    where, data, _ = problem(5, seed=9)
    where, path = moved_to(where, device), tmp_path / "scan.npz"
    expected = scan(where, data, LOSS, path=path)
    with ThreadPoolExecutor(2) as executor:
        same_bits(scan(where, data, LOSS, executor), expected)
    same_bits(scan(where, data, LOSS, path=path), expected)


@pytest.mark.parametrize(
    ("loss", "pooling"), [(LOSS, []), (CrossEntropy(), [AveragePool(1)]), (LOSS, [MaxPool(1)])]
)
def test_transfers_of_a_scan_grow_with_blocks_and_chunks_and_not_with_layers(loss, pooling):
    found = {}
    for convolutions in (1, 2):
        for budget in (1, 2**26):
            layers = [Conv(2), *pooling] * convolutions
            net = Network((1, 8), [*layers, Dense(3)], ReLU(), budget)
            data, three = samples(net, 2), [point(net, seed) for seed in range(3)]
            for steps in (3, 5):
                where = moved_to(Plane.through(*three, steps), strict_device)
                with strict_device.transfers() as count:
                    scan(where, data, loss)
                found.setdefault((budget, steps), set()).add((count.to_device, count.to_host))
    assert all(len(counts) == 1 for counts in found.values())
    more = 25 // 4 - 9 // 4  # blocks; one point alone is left in both
    for budget, chunks in ((1, 2), (2**26, 1)):
        ((sent, read),), ((more_sent, more_read),) = (found[budget, n] for n in (3, 5))
        assert (more_sent - sent, more_read - read) == (more * (chunks + 1), more)
