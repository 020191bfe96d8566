"""The cost of a training is that of its operations, and a measurement changes nothing."""

import re

import pytest
import strict_device
import torch
from shared import random_set
from torch.utils.flop_counter import FlopCounterMode
from torch_twin import Twin

from tinyspur.engine.losses import SquaredLoss
from tinyspur.engine.network import Network
from tinyspur.fitting.cost import TrainingCost, seconds_per_batch, training_cost, training_flops
from tinyspur.fitting.training import kaiming_start
from tinyspur.layers import AveragePool, Conv, Dense, MaxPool

NETWORKS = {
    "convolutions": Network((1, 4, 4), [Conv(3), Conv(4), Dense(3)]),
    "pooling": Network((2, 4, 4), [Conv(3), AveragePool(2), Dense(3)]),
    "max pooling": Network((1, 4, 8), [Conv(3), MaxPool(2), Conv(2), MaxPool(2), Dense(3)]),
    "one-dimensional": Network((1, 6), [Conv(2), Dense(3)]),
}


def training_problem():
    return NETWORKS["convolutions"], random_set((1, 4, 4), 50, outputs=3)


def test_the_operations_of_a_training_by_hand():
    net = Network((3, 4, 6), [Conv(2), AveragePool(2), Conv(5, 5), Dense(7), Dense(3)])
    first = 2 * 2 * 3 * 9 * 24  # 2 T C k^2 P
    second = 2 * 5 * 2 * 25 * 6
    dense = 2 * 30 * 7 + 2 * 7 * 3
    assert training_flops(net, 1, 1) == 3 * (first + second + dense)
    assert training_flops(net, 50, 4) == 50 * 4 * training_flops(net, 1, 1)
    pools = Network((3, 4, 6), [Conv(2), MaxPool(2), Conv(5, 5), Dense(7), Dense(3)])
    assert training_flops(pools, 1, 1) == training_flops(net, 1, 1)  # comparisons don't count
    line = Network((2, 8), [Conv(3), Dense(4)])
    assert training_flops(line, 1, 1) == 3 * (2 * 3 * 2 * 3 * 8 + 2 * 24 * 4)


@pytest.mark.parametrize("net", NETWORKS.values(), ids=NETWORKS)
def test_the_operations_of_a_pass_forward_and_back_are_those_that_pytorch_counts(net):
    x = torch.rand(5, *net.input_shape, dtype=torch.float64, requires_grad=True)
    twin = Twin(net.spec)
    with FlopCounterMode(display=False) as counter:
        twin(x).sum().backward()
    assert training_flops(net, 5, 1) == counter.get_total_flops()


def test_measuring_a_batch_changes_nothing():
    net, data = training_problem()
    theta = kaiming_start(net)
    before = [a.tobytes() for a in (theta.vector, data.x, data.y)]
    assert 0 < seconds_per_batch(theta, data, SquaredLoss(), 16) < 10
    training_cost(theta, data, SquaredLoss(), 3, 128, 10)
    assert [a.tobytes() for a in (theta.vector, data.x, data.y)] == before


def test_the_cost_is_that_of_all_batches():
    net, data = training_problem()
    cost = training_cost(kaiming_start(net), data, SquaredLoss(), 3, 128, 10)
    assert (cost.epochs, cost.polish, cost.samples, cost.backend) == (3, 10, 50, "numpy")
    assert cost.batch == 50
    assert cost.flops_per_epoch == training_flops(net, 50, 1)
    cost = TrainingCost(150, 300, 50_000, 100, 2 * 10**14, 0.72, "numpy")
    lines = str(cost).splitlines()
    assert re.search(r"150 epochs of 50,000 samples: 3e\+16 .* about 15\.0 h with numpy", lines[0])
    assert re.search(r"300 steps at most: 6e\+16, about 1\.2 days", lines[1])
    assert "0.72 s for a mini-batch of 100, 5.6e+11 operations/s" in lines[2]
    assert lines[3].endswith("sustains 10 TFLOP/s in float32: 50.0 min and 1.7 h")
    on_device = TrainingCost(150, 300, 50_000, 100, 2 * 10**14, 0.72, "cupy")
    assert str(on_device).splitlines() == [lines[0].replace("numpy", "cupy"), *lines[1:3]]


def test_a_device_is_named():
    net, data = training_problem()
    theta = kaiming_start(net).to(strict_device)
    assert training_cost(theta, data, SquaredLoss(), 1, 16, 1).backend == "strict_device"
