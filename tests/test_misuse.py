"""A wrong point, data set, loss or shape is refused in the words of `net.risk`, everywhere."""

import importlib
import inspect
import pkgutil

import numpy as np
import pytest
from misuse_problems import DATA, FOUND, LOSS, NET, PAIR, THETA
from torch import nn

import tinyspur as ts
from tinyspur.certificates.assumptions import check_at_point
from tinyspur.certificates.exact_fits import check_exact, exact_minimum
from tinyspur.certificates.exact_kinks import exact_kinked_minimum
from tinyspur.certificates.fixed_sums import fixed_sum
from tinyspur.certificates.rounding import risk_rounding, rounded_risk
from tinyspur.certificates.stationary import candidates, find_stationary, near_kinks
from tinyspur.constructions import isolated
from tinyspur.constructions.perturbed_split import perturb_read_weights
from tinyspur.constructions.split_terms import output_derivatives
from tinyspur.fitting.cost import seconds_per_batch, training_cost
from tinyspur.refutations.escapes import (
    first_order_directions,
    measure_escape,
    second_order_directions,
)
from tinyspur.refutations.evidence import hessian
from tinyspur.refutations.expansion import coordinate_rates, expand_risk

GROUPS = ts.Groups.equal(DATA.x, np.ones(4), 2)
SETTLED = ts.settle(THETA, DATA, LOSS, 1)
MOVE = ts.random_direction(THETA)
WHERE = ts.Lines(THETA, [MOVE], [0.0, 1.0])

OF_A_NETWORK = {  # (net, data, loss)
    "linear_minimum": ts.linear_minimum,
    "linear_subnetwork": ts.linear_subnetwork,
    "nontrivial_minimum": ts.nontrivial_minimum,
    "gated_minimum": lambda net, data, loss: ts.gated_minimum(net, data, loss, GROUPS),
    "spurious_pair": lambda net, data, loss: ts.spurious_pair(net, data, loss, GROUPS),
    "constant_minimum": isolated.constant_minimum,
    "isolating_point": isolated.isolating_point,
}
OF_A_POINT = {  # (theta, data, loss)
    "certify": ts.certify,
    "certify_cell": ts.certify_cell,
    "certify_curvature": ts.certify_curvature,
    "certify_strict": ts.certify_strict,
    "candidates": lambda t, data, loss: next(candidates(t, data, loss)),
    "check_at_point": check_at_point,
    "fixed_sum": fixed_sum,
    "certify_relays": lambda t, data, loss: ts.certify_relays(t, data, loss, 1),
    "coordinate_rates": coordinate_rates,
    "check_exact": check_exact,
    "descend": lambda t, data, loss: ts.descend(t, data, loss, 1),
    "exact": ts.exact,
    "exact_kinked_minimum": exact_kinked_minimum,
    "exact_minimum": exact_minimum,
    "expand_risk": lambda t, data, loss: expand_risk(t, MOVE, data, loss),
    "find_descent_direction": ts.find_descent_direction,
    "find_escape": lambda t, data, loss: ts.find_escape(t, data, loss, 0.1),
    "find_stationary": lambda t, data, loss: find_stationary(t, data, loss, (), True),
    "near_kinks": lambda t, data, loss: near_kinks(t, data, loss, 1e-9),
    "settle": lambda t, data, loss: ts.settle(t, data, loss, 1),
    "find_spurious_minimum": lambda t, data, loss: ts.find_spurious_minimum(t, PAIR, data, loss),
    "first_order_directions": lambda t, data, loss: next(first_order_directions(t, data, loss)),
    "gather_evidence": ts.gather_evidence,
    "hessian": hessian,
    "kink_escape": ts.kink_escape,
    "lower_point": lambda t, data, loss: ts.lower_point(
        t, FOUND.theta_prime, PAIR, FOUND.split, data, loss
    ),
    "measure_escape": lambda t, data, loss: measure_escape(THETA, t, "", 1.0, data, loss),
    "one_sided_derivative": lambda t, data, loss: ts.one_sided_derivative(t, MOVE, data, loss),
    "ordered_groups": lambda t, data, loss: ts.ordered_groups(t, PAIR, data, loss, 0, 0),
    "output_derivatives": output_derivatives,
    "perturb_read_weights": lambda t, data, loss: next(perturb_read_weights(t, PAIR, data, loss)),
    "polish": lambda t, data, loss: ts.polish(t, data, loss, 1),
    "revive": lambda t, data, loss: ts.revive(t, data, loss, 2, 0),
    "risk_rounding": risk_rounding,
    "rounded_risk": rounded_risk,
    "second_order_directions": lambda t, data, loss: next(second_order_directions(t, data, loss)),
    "seconds_per_batch": seconds_per_batch,
    "split_data": lambda t, data, loss: ts.split_data(t, PAIR, data, loss),
    "train": lambda t, data, loss: ts.train(t, data, loss, 1),
    "training_cost": lambda t, data, loss: training_cost(t, data, loss, 1, 1, 1),
}
AT_A_POINT = {  # (data, loss)
    "move_along": lambda data, loss: ts.move_along(SETTLED, data, loss),
    "risk_along_bias": lambda data, loss: ts.risk_along_bias(FOUND, data, loss, 3),
    "scan": lambda data, loss: ts.scan(WHERE, data, loss),
}
WITHOUT = {  # (data, loss), of no network
    "convolutional_lattice": lambda data, loss: ts.convolutional_lattice([3], data, loss, GROUPS),
    "fit_groups": lambda data, loss: ts.fit_groups(data, GROUPS, loss),
    "smallest_cases": ts.smallest_cases,
}
LOSSES = {
    "array": np.ones((3, 40)),
    "a class": ts.SquaredLoss,
    "PyTorch's": nn.MSELoss(),
    "a name": "squared",
    "None": None,
    "a function": np.square,
}
X, Y = DATA.x, DATA.y
SETS = {
    "a tuple": (X, Y),
    "None": None,
    "an array": X,
    "a name": "data",
    "other inputs": ts.TrainingSet(np.zeros((40, 1, 2, 3)), Y),
    "vectors": ts.TrainingSet(X.reshape(40, 4), Y),
    "other targets": ts.TrainingSet(X, Y[:, :2]),
    "labels": ts.TrainingSet(X, Y.argmax(axis=1)),
}


def words(call, *arguments):
    with pytest.raises(ValueError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("data", SETS.values(), ids=SETS)
def test_data_that_do_not_fit_are_refused_in_the_same_words(data):
    expected = words(NET.risk, THETA, data, LOSS)
    assert expected.startswith(("data: expected", "inputs: expected", "targets: expected"))
    for name, call in OF_A_NETWORK.items():
        assert (name, words(call, NET, data, LOSS)) == (name, expected)
    for name, call in OF_A_POINT.items():
        assert (name, words(call, THETA, data, LOSS)) == (name, expected)
    for name, call in AT_A_POINT.items():
        assert (name, words(call, data, LOSS)) == (name, expected)
    if not isinstance(data, ts.TrainingSet):
        for name, call in WITHOUT.items():
            assert (name, words(call, data, LOSS)) == (name, expected)
        tanh = ts.Network((1, 2, 2), [ts.Dense(9), ts.Dense(3)], ts.Tanh())
        assert words(ts.interpolate, tanh, data) == expected


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_what_is_no_loss_is_refused_in_the_same_words(loss):
    expected = words(NET.risk, THETA, DATA, loss)
    assert expected.startswith("loss: expected one as SquaredLoss(), got ")
    for name, call in OF_A_NETWORK.items():
        assert (name, words(call, NET, DATA, loss)) == (name, expected)
    for name, call in OF_A_POINT.items():
        assert (name, words(call, THETA, DATA, loss)) == (name, expected)
    for name, call in (AT_A_POINT | WITHOUT).items():
        assert (name, words(call, DATA, loss)) == (name, expected)
    assert words(ts.fit_affine, X.reshape(40, 4), Y, loss) == expected


def test_targets_that_a_loss_is_not_defined_for_are_refused_in_the_same_words():
    data, loss = ts.TrainingSet(X, 2 * Y), ts.CrossEntropy()
    expected = words(NET.risk, THETA, data, loss)
    assert expected.startswith("cross-entropy: expected targets >= 0 that sum to 1, sample 0 has")
    assert expected.endswith("; one_hot(labels, classes) makes such targets")
    for name, call in OF_A_NETWORK.items():
        assert (name, words(call, NET, data, loss)) == (name, expected)
    for name, call in OF_A_POINT.items():
        assert (name, words(call, THETA, data, loss)) == (name, expected)


@pytest.mark.parametrize("theta", [NET, THETA.vector, None, "theta", nn.Linear(2, 2)])
def test_what_is_no_point_is_refused_in_the_same_words(theta):
    expected = words(NET.risk, theta, DATA, LOSS)
    assert expected.startswith("expected points and directions as Parameters, got a ")
    for name, call in OF_A_POINT.items():
        assert (name, words(call, theta, DATA, LOSS)) == (name, expected)
    for call in (ts.check_assumption_1, lambda t, x: ts.embed(NET, t, x)):
        assert words(call, theta, X) == expected


@pytest.mark.parametrize("net", [THETA, NET.layers, None, nn.Linear(2, 2)])
def test_what_is_no_network_is_refused_in_the_same_words(net):
    expected = f"network: expected a Network, got a {type(net).__name__}"
    for name, call in OF_A_NETWORK.items():
        assert (name, words(call, net, DATA, LOSS)) == (name, expected)
    for call in (ts.kaiming_start, ts.subnetwork):
        assert words(call, net) == expected
    assert words(ts.embed, net, THETA, X) == words(ts.smooth_minimum, net, X) == expected
    assert words(ts.interpolate, net, DATA) == expected


@pytest.mark.parametrize("pair", [None, THETA, DATA, (THETA, PAIR)])
def test_what_is_no_pair_is_refused_in_the_same_words(pair):
    expected = "pair: expected the RelayedPair that linear_minimum or embed returned, got a "
    expected += type(pair).__name__
    for call in (ts.split_data, ts.find_spurious_minimum):
        assert words(call, THETA, pair, DATA, LOSS) == expected
    assert words(ts.equal_risk_point, THETA, pair, FOUND.split) == expected
    assert words(ts.ordered_groups, THETA, pair, DATA, LOSS, 0, 0) == expected
    lower = (THETA, FOUND.theta_prime, pair, FOUND.split, DATA, LOSS)
    assert words(ts.lower_point, *lower) == expected


def test_labels_as_targets_get_the_hint_to_one_hot_and_vectors_that_to_the_inputs_shape():
    labels = words(ts.linear_minimum, NET, SETS["labels"], LOSS)
    assert labels == "targets: expected (N, 3), got (40, 1); give labels as one_hot(labels)"
    vectors = words(ts.linear_minimum, NET, SETS["vectors"], LOSS)
    hint = "in that shape they are x.reshape(-1, 1, 2, 2)"
    assert vectors == f"inputs: expected (N, 1, 2, 2), got (40, 1, 4); {hint}"
    given = words(NET.forward, THETA, X.reshape(40, 4))
    assert given == f"inputs: expected (N, 1, 2, 2), got (40, 4); {hint}"
    three = words(NET.forward, THETA, X.reshape(40, 4)[:, :3])
    assert three.endswith("got (40, 3); vectors (N, 3) are inputs (1, 3)")


def test_one_image_and_images_without_channels_or_with_channels_last_get_a_hint_that_helps():
    inputs = np.arange(60.0).reshape(5, 3, 2, 2)
    net = ts.Network((3, 2, 2), [ts.Dense(1)])
    for one, x, hint in (
        (net, inputs[0], "one input is x[None]"),
        (net, np.moveaxis(inputs, 1, -1), "with channels last they are np.moveaxis(x, -1, 1)"),
        (NET, inputs[0], "without channels they are x[:, None]"),
        (NET, inputs[:, 0].reshape(5, 4), "in that shape they are x.reshape(-1, 1, 2, 2)"),
        (ts.Network((1, 12), [ts.Dense(1)]), inputs, "in that shape they are x.reshape(-1, 1, 12)"),
    ):
        said = words(one.forward, one.zeros(), x)
        assert said.endswith(f", got {x.shape}; {hint}")
        expression = hint.split(" is " if " is " in hint else " are ")[1]
        mended = eval(expression, {"x": x, "np": np})
        assert one.forward(one.zeros(), mended).shape == (len(mended), one.shapes[-1][0])
    assert words(net.forward, net.zeros(), inputs[:, :2]).endswith("got (5, 2, 2, 2)")


def test_no_function_of_data_and_a_loss_is_left_out():
    found = set()
    for module in pkgutil.walk_packages(ts.__path__, "tinyspur."):
        if module.name.split(".")[1] in ("studies", "figures", "commands", "__main__", "engine"):
            continue
        for name, function in vars(importlib.import_module(module.name)).items():
            own = inspect.isfunction(function) and function.__module__ == module.name
            if own and not name.startswith("_"):
                found |= (
                    {name}
                    if {"data", "loss"} <= {*inspect.signature(function).parameters}
                    else set()
                )
    assert found == {*OF_A_NETWORK, *OF_A_POINT, *AT_A_POINT, *WITHOUT}
