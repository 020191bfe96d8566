"""An architecture knows its shapes, survives JSON, and refuses layers that do not fit."""

import json
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from network_problems import networks, over_networks

from tinyspur.engine.activations import ReLU, Tanh
from tinyspur.engine.network import Network
from tinyspur.layers import AveragePool, Conv, Dense, MaxPool


@over_networks
@given(networks())
def test_a_description_survives_json(net):
    for spec in (net.spec, json.loads(json.dumps(net.spec)), json.dumps(net.spec)):
        again = Network.from_spec(spec)
        assert again == net
        assert hash(again) == hash(net)
        assert (again.shapes, again.layers, again.size) == (net.shapes, net.layers, net.size)
        assert again.activation == net.activation


def test_a_description_reads_as_written():
    net = Network((3, 8, 6), [Conv(6, 5), AveragePool(2), MaxPool(1), Dense(10)], ReLU(0.25))
    assert net.spec == {
        "input": [3, 8, 6],
        "activation": {"name": "leaky_relu", "slope": 0.25},
        "layers": [
            {"type": "conv", "maps": 6, "kernel": 5},
            {"type": "average_pool", "size": 2},
            {"type": "max_pool", "size": 1},
            {"type": "dense", "width": 10},
        ],
    }
    assert Network((1, 2), [Dense(1)]).spec["activation"] == {"name": "relu"}
    assert net.shapes == ((3, 8, 6), (6, 8, 6), (6, 4, 3), (6, 4, 3), (10,))
    assert (net.depth, net.positions(0), net.positions(1), net.positions(4)) == (4, 48, 48, 1)
    arrows = "3x8x6 -> 6x8x6 -> 6x4x3 -> 6x4x3 -> 10"
    assert repr(net) == f"Network({arrows}, {net.size} parameters)"


def test_the_layers_with_a_pattern_are_those_that_parameters_move():
    A, M = AveragePool(2), MaxPool(2)
    for layers, leading, active, poolings in (
        ([Conv(2), M, Conv(2), A, M, Dense(2)], 0, (1, 3), (2, 5)),
        ([M, A, Conv(2), M, Dense(2), Dense(2)], 2, (3, 5), (4,)),
        ([A, M], 2, (), ()),
        ([M, Conv(2)], 1, (), ()),
        ([Conv(2), M, M], 0, (1,), (2, 3)),
    ):
        net = Network((1, 16), layers)
        assert (net.leading_poolings, net.active_layers) == (leading, active)
        assert net.max_layers == poolings
        assert net.pattern_layers == tuple(sorted(active + poolings))


@pytest.mark.parametrize(
    "whole", [np.int8, np.uint64, np.array, torch.tensor], ids=lambda kind: kind.__name__
)
def test_whole_numbers_of_any_type_describe_the_same_network(whole):
    n = whole
    layers = [Conv(n(2), n(3), n(2)), AveragePool(n(2)), MaxPool(n(1)), Dense(n(3))]
    net = Network([n(1), n(8), n(8)], layers)
    expected = Network((1, 8, 8), [Conv(2, 3, 2), AveragePool(2), MaxPool(1), Dense(3)])
    assert net == expected and hash(net) == hash(expected) and repr(net) == repr(expected)
    assert json.dumps(net.spec) == json.dumps(expected.spec)
    for layer, same in zip(net.layers, expected.layers, strict=True):
        assert list(map(type, vars(layer).values())) == list(map(type, vars(same).values()))


@pytest.mark.parametrize("wrong", [True, np.True_, 2.0, "2", None, 0, -1])
def test_what_is_no_positive_whole_number_is_refused(wrong):
    for layer in (Conv(wrong), Conv(2, wrong), Conv(2, 3, wrong), AveragePool(wrong), Dense(wrong)):
        with pytest.raises(ValueError, match=r"layer 1, .* expected positive whole numbers"):
            Network((1, 4, 4), [layer])
    with pytest.raises(ValueError, match=r"expected an input \(C, H, W\) or \(C, W\), for vectors"):
        Network((1, wrong), [Dense(1)])


def test_a_size_or_a_layer_alone_is_refused_in_words():
    with pytest.raises(ValueError, match=r"^network: expected an input .*\(C, W\), got 4$"):
        Network(4, [Dense(1)])
    with pytest.raises(ValueError, match=r"^network: expected a list of layers, got Dense"):
        Network((1, 4), Dense(1))


def test_networks_that_differ_are_not_equal():
    net = Network((1, 4), [Conv(2), Dense(1)])
    others = [
        Network((1, 5), [Conv(2), Dense(1)]),
        Network((1, 4), [Conv(2), Dense(2)]),
        Network((1, 4), [Conv(2, 1), Dense(1)]),
        Network((1, 4), [Conv(2), Dense(1)], ReLU(0.1)),
        Network((1, 4), [Conv(2), Dense(1)], Tanh()),
    ]
    assert all(net != other for other in others)
    assert net != net.spec
    assert net == Network((1, 4), [Conv(2), Dense(1)], memory_budget=1)


# Errors


GOOD = {
    "input": [1, 4, 4],
    "activation": {"name": "relu"},
    "layers": [{"type": "dense", "width": 2}],
}


@pytest.mark.parametrize("missing", ["input", "activation", "layers"])
def test_a_description_without_a_part_is_refused(missing):
    parts = {key: value for key, value in GOOD.items() if key != missing}
    expected = "expected a JSON object with input, activation, layers, got one with "
    with pytest.raises(ValueError, match=f"^network spec: {expected}{', '.join(parts)}$"):
        Network.from_spec(parts)


def test_a_description_with_a_part_too_many_is_refused():
    with pytest.raises(ValueError, match=r"got one with input, activation, layers, bias$"):
        Network.from_spec({**GOOD, "bias": False})
    layer = {"type": "dense", "width": 2, "size": 2}
    with pytest.raises(ValueError, match=r"with type, width, bias, activation, got \{.*'size'"):
        Network.from_spec({**GOOD, "layers": [layer]})


@pytest.mark.parametrize(
    "layer",
    [
        {"type": "max_pool", "size": 7},
        {"type": "dense"},
        {"type": "dense", "size": 2},
        {"type": "dense", "width": 0},
        {"type": "dense", "width": 2.5},
        {"type": "dense", "width": "2"},
        {"type": "conv", "maps": 2, "kernel": 7, "padding": 0},
        {"type": "conv", "maps": 2, "kernel": 3, "padding": "full"},
        {"type": "conv", "maps": 2, "kernel": 3, "padding": [[1, 2], "same"]},
        {"type": "conv", "maps": -1, "kernel": 3},
        {"type": "average_pool", "size": 7},
        {"type": "average_pool", "size": [2, 2, 3]},
        {"width": 2},
        "dense",
        None,
    ],
    ids=str,
)
def test_a_description_with_a_wrong_layer_is_refused(layer):
    with pytest.raises(ValueError, match="expected") as caught:
        Network.from_spec({**GOOD, "layers": [layer]})
    assert not re.search("Error|NoneType|object is not|argument", str(caught.value))


@pytest.mark.parametrize(
    "change",
    [
        {"input": [4]},
        {"input": [1, 1, 4, 4]},
        {"input": [1, 0, 4]},
        {"input": [1, 4.5, 4]},
        {"input": 4},
        {"input": "144"},
        {"activation": {"name": "mish"}},
        {"activation": {"slope": 0.1}},
        {"activation": {"name": "leaky_relu", "steepness": 0.1}},
        {"activation": {"name": "leaky_relu", "slope": "steep"}},
        {"activation": "relu"},
        {"layers": []},
        {"layers": 3},
    ],
    ids=str,
)
def test_a_description_with_a_wrong_part_is_refused(change):
    assert Network.from_spec(GOOD).size == 34
    with pytest.raises(ValueError, match="expected") as caught:
        Network.from_spec({**GOOD, **change})
    assert not re.search("Error|NoneType|object is not|argument", str(caught.value))


@pytest.mark.parametrize("spec", ["", "{", "[]", "null", "3", '"relu"', None, [], 3])
def test_what_is_no_description_is_refused(spec):
    expected = "^network spec: expected a JSON object with input, activation, layers, got "
    with pytest.raises(ValueError, match=expected) as caught:
        Network.from_spec(spec)
    assert "Error" not in str(caught.value)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([], "at least one layer"),
        ([Conv(2, 5, padding=0)], r"layer 1, .*padding=0\): expected maps of 5 or more, .* got 4"),
        ([Conv(2), AveragePool(5)], r"layer 2, AveragePool\(size=5\): expected maps of 5 or more"),
        ([AveragePool(2, padding=2)], "layer 1, .*expected padding of half the size"),
        ([Dense(4), Conv(2)], "layer 2, .*expected maps below it"),
        ([Dense(4), AveragePool(1)], "layer 2, .*expected maps below it"),
        ([Dense(0)], "layer 1, .*positive whole numbers"),
        ([Conv(2, -3)], "layer 1, .*positive whole numbers"),
        ([AveragePool(2.0)], "layer 1, .*positive whole numbers"),
        ([MaxPool(0)], "layer 1, .*positive whole numbers"),
        ([Conv(2), MaxPool(5)], r"layer 2, MaxPool\(size=5\): expected maps of 5 or more"),
        ([Dense(4), MaxPool(1)], "layer 2, .*expected maps below it"),
    ],
)
def test_layers_that_do_not_fit_are_refused(layers, message):
    with pytest.raises(ValueError, match=message):
        Network((1, 4, 6), layers)


@pytest.mark.parametrize("input_shape", [(), (4,), (1, 1, 4, 4), (0, 4), (1, -4)])
def test_input_shapes_other_than_maps_are_refused(input_shape):
    with pytest.raises(ValueError, match="expected an input"):
        Network(input_shape, [Dense(1)])


@pytest.mark.parametrize("slope", [-0.5, np.nan])
def test_a_slope_below_zero_is_refused(slope):
    with pytest.raises(ValueError, match="slope"):
        Network((1, 4), [Dense(2), Dense(1)], ReLU(slope))
