"""The checker computes every kind of layer as PyTorch does, and proves what holds of it alone."""

import json
from fractions import Fraction

import numpy as np
import pytest
import torch
from shared import ROOT, load_program, replaced

import tinyspur as ts
from tinyspur import interop
from tinyspur.certificates.proofs import proof

LOSS, LINE, LEAKY = ts.SquaredLoss(), ts.Identity(), ts.ReLU(0.25)
Conv, Dense, Scale, Residual = ts.Conv, ts.Dense, ts.Scale, ts.Residual
NETWORKS = {
    "filters": ts.Network(
        (4, 5, 6),
        [
            Conv(6, (3, 2), (2, 1), padding=(1, (0, 2)), dilation=(1, 2), groups=2, bias=False),
            Scale(),
            Conv(3, 2, padding="valid"),
            Dense(3, bias=False),
            Dense(2),
        ],
    ),
    "windows": ts.Network(
        (2, 9, 8),
        [
            ts.AveragePool(3, 2, 1),
            Conv(2, 2, activation=LINE),
            ts.MaxPool(2, 1, dilation=(1, 2)),
            ts.MaxPool(3, 2, 1, ceil_mode=True, activation=LEAKY),
            ts.AveragePool(2, 1, 1, count_include_pad=False),
            ts.AveragePool(3, 2, 1, ceil_mode=True),
            Dense(2),
        ],
    ),
    "blocks": ts.Network(
        (2, 6),
        [
            Conv(2, activation=LINE),
            Residual([Conv(4, stride=2), Scale(), Conv(4)], [Conv(4, 1, stride=2, bias=False)]),
            Residual([Conv(4), ts.MaxPool(3, 1, 1)]),
            Residual([Residual([Conv(4)], activation=LEAKY), Scale(bias=False)]),
            ts.AveragePool(3),
            Dense(2),
        ],
    ),
    "scales": ts.Network(
        (2, 6), [Scale(), Conv(2), Scale(), Scale(), Dense(3), Scale(), Dense(2), Scale()]
    ),
    "a block first, and ReLU last": ts.Network(
        (2, 6), [Residual([Conv(2), Conv(2)], [ts.AveragePool(1)]), Dense(2, activation=ts.ReLU())]
    ),
    "lines": ts.Network((2, 6), [ts.MaxPool(2), Conv(2), ts.AveragePool(3), Dense(2)], LINE),
}


@pytest.fixture(scope="module")
def checker():
    return load_program(ROOT / "demos" / "check_proof.py")


def stated(net, seed=0):
    """Return a point, data and the true statement that a point has its own risk, in fractions."""
    rng = np.random.default_rng(seed)
    theta = ts.Parameters(net, rng.integers(-4, 5, net.size) / 4)
    x, y = rng.integers(-3, 4, (2, *net.input_shape)), rng.integers(-2, 3, (2, 2))
    points = {"theta": theta, "theta_prime": theta}
    return theta, x.astype(float), y, proof("equal-risk", net, x, y, points)


def refusal(checker, found):
    """Return in which words the checker refuses a proof, None if it accepts it."""
    try:
        checker.check(json.loads(json.dumps(found)))
    except Exception as error:
        return str(error) or type(error).__name__
    return None


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_risk_and_patterns_are_those_of_pytorch_and_of_the_package(checker, name):
    net = NETWORKS[name]
    theta, x, y, found = stated(net)
    network = checker.Network(found["network"])
    point = network.point(found["points"]["theta"])
    samples = [checker.numbers(v, found["network"]["input"]) for v in found["data"]["x"]]
    traces = [checker.forward(network, point, v) for v in samples]
    outputs = [trace[-1][1] for trace in traces]
    expected = interop.to_torch(theta)(torch.tensor(x)).detach().numpy()
    assert abs(np.array(outputs, float) - expected).max() <= 1e-13 * abs(expected).max()
    risk = ((expected - y) ** 2).sum() / 4
    targets = [checker.numbers(v, [2]) for v in found["data"]["y"]]
    assert float(checker.risk(outputs, targets)) == pytest.approx(risk, rel=1e-13)
    for layer, patterns in net.patterns(theta, x).items():
        for trace, active in zip(traces, patterns.reshape(len(x), -1), strict=True):
            sides = np.array(trace[layer][2])  # empty below a dead layer
            if active.dtype == bool:
                assert ((sides > 0) == active[: len(sides)])[sides != 0].all()


OPTIONS = [
    ("filters", 0, "stride", 2),
    ("filters", 0, "stride", [1, 1]),
    ("filters", 0, "padding", [1, [1, 1]]),
    ("filters", 0, "padding", [1, [0, 1, 1]]),
    ("filters", 0, "padding", "same"),
    ("filters", 0, "dilation", [2, 2]),
    ("filters", 0, "groups", 1),
    ("filters", 0, "groups", 4),
    ("filters", 0, "bias", True),
    ("filters", 0, "bias", 0),
    ("filters", 0, "activation", {"name": "relu"}),
    ("filters", 1, "activation", {"name": "identity"}),
    ("filters", 1, "bias", False),
    ("filters", 2, "padding", 0.0),
    ("filters", 2, "kernel", [2, 2, 1]),
    ("filters", 4, "activation", {"name": "tanh"}),
    ("windows", 0, "padding", 0),
    ("windows", 0, "count_include_pad", False),
    ("windows", 2, "dilation", [2, 1]),
    ("windows", 3, "ceil_mode", False),
    ("windows", 3, "activation", {"name": "leaky_relu", "slope": 0.5}),
    ("windows", 4, "count_include_pad", True),
    ("windows", 4, "stride", 2),
    ("windows", 5, "ceil_mode", False),
    ("windows", 5, "surplus", 1),
    ("blocks", 1, "shortcut", []),
    ("blocks", 1, "activation", {"name": "identity"}),
    ("blocks", 3, "layers", [{"type": "scale", "bias": False}]),
    ("blocks", 4, "type", "max_pool"),
]


@pytest.mark.parametrize("name, layer, option, value", OPTIONS)
def test_with_another_option_the_stated_risk_is_refused(checker, name, layer, option, value):
    *_, found = stated(NETWORKS[name], seed=1)
    network = checker.Network(found["network"])
    point = network.point(found["points"]["theta"])
    samples = [checker.numbers(v, found["network"]["input"]) for v in found["data"]["x"]]
    targets = [checker.numbers(v, [2]) for v in found["data"]["y"]]
    outputs = [checker.forward(network, point, v)[-1][1] for v in samples]
    risk = str(checker.risk(outputs, targets))
    found["risks"] = {"theta": risk}
    assert refusal(checker, found) is None
    assert refusal(checker, replaced(found, ("network", "layers", layer, option), value))
    if option == "activation":
        assert refusal(checker, replaced(found, ("risks", "theta"), f"{risk}1"))


# Local minima of networks with all these layers


def positive(net, seed=0):
    """Return a point at which all units are active, so that layers without maxima are linear."""
    rng = np.random.default_rng(seed)
    theta = ts.Parameters(net, rng.integers(1, 9, net.size) / 8)
    for number, b in theta.b.items():
        b[:] = 20 if number < net.depth else 0
    return theta


def fitted(theta, x, y):
    """Return the point with the last layer fitted to the targets."""
    net, (*_, last) = theta.net, theta.W
    o = net.layer_output(theta, x.reshape(len(x), -1).T.copy(), last - 1)
    V = np.linalg.lstsq(np.vstack([o, np.ones(len(x))]).T, y, rcond=None)[0]
    theta.W[last].weights[...], theta.b[last][...] = V[:-1].T, V[-1]
    return theta


whole = {"stride": 2, "padding": 0}  # of four filters: all that there is to know of an image
MINIMA = {
    "stride and scale": [Conv(4, 2, **whole, bias=False), Scale(), Dense(2)],
    "groups": [Conv(4, 2, **whole), Conv(8, 3, groups=2), Scale(bias=False), Dense(2)],
    "blocks": [
        Conv(4, 2, **whole),
        Residual([Conv(4), Scale(), Conv(4)]),
        Residual([Conv(8)], [Conv(8, 1, bias=False)]),
        Dense(2),
    ],
    "a max pooling in a block": [
        Conv(4, 2, **whole),
        Residual([Conv(4), ts.MaxPool(1), Conv(4)]),
        Dense(2),
    ],
    "overlapping means": [
        Conv(4, activation=LEAKY),
        ts.AveragePool(2, 1, 1, count_include_pad=False),
        Dense(2),
    ],
    "ReLU after the last layer": [Conv(4, 2, **whole), Dense(2, activation=ts.ReLU())],
    "a scale before the first activation": [
        Conv(4, 2, **whole, activation=LINE),
        Residual([Scale(), Conv(4)], activation=LINE),
        Dense(2),
    ],
}


@pytest.mark.parametrize("name", MINIMA)
def test_exact_local_minima_are_proved_and_not_with_another_weight_or_target(
    checker, name, tmp_path
):
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 5, (18, 1, 4, 4)).astype(float), rng.integers(20, 25, (18, 2))
    net, data = ts.Network((1, 4, 4), MINIMA[name]), ts.TrainingSet(x, y.astype(float))
    points = ts.exact(fitted(positive(net), x, y), data, LOSS)
    points.save(tmp_path / "proof.json")
    found = json.loads((tmp_path / "proof.json").read_text())
    assert refusal(checker, found) is None
    wrong = replaced(found, ("risks", "theta"), "1/3")
    assert "another number" in refusal(checker, wrong)
    del found["risks"]
    key = next(key for key in reversed(found["points"]["theta"]) if key[0] == "W")
    value = Fraction(found["points"]["theta"][key][0][0]) + Fraction(1, 10**6)
    wrong = replaced(found, ("points", "theta", key, 0, 0), str(value))
    assert "G_s is not 0" in refusal(checker, wrong)
    assert "G_s is not 0" in refusal(checker, replaced(found, ("data", "y", 0, 0), "19"))


def test_zeros_around_an_image_are_at_no_kink_of_a_convolution_without_biases(checker, tmp_path):
    rng = np.random.default_rng(0)
    x, y = np.zeros((12, 1, 6, 6)), rng.integers(20, 25, (12, 2)).astype(float)
    x[:, :, 2:4, 2:4] = rng.integers(1, 5, (12, 1, 2, 2))
    net = ts.Network((1, 6, 6), [Conv(4, 2, **whole, bias=False), Dense(2)])
    points = ts.exact(fitted(positive(net), x, y), ts.TrainingSet(x, y), LOSS)
    points.save(tmp_path / "proof.json")
    assert refusal(checker, json.loads((tmp_path / "proof.json").read_text())) is None


def test_without_biases_no_constant_has_to_be_fitted(checker):
    net = ts.Network((1, 1), [Dense(1, bias=False)])
    theta = {"W1": [[Fraction(1, 5)]]}
    x, y = [[[0]], [[1]], [[2]]], [[5], [1], [0]]
    found = proof("local-minimum", net, x, y, {"theta": theta})
    assert refusal(checker, found) is None
    biased = ts.Network((1, 1), [Dense(1)])
    found = proof("local-minimum", biased, x, y, {"theta": theta | {"b1": [0]}})
    assert "G_s is not 0" in refusal(checker, found)


def test_zeros_of_a_layer_without_activation_are_a_tie(checker):
    """The entries 0 and 0 of x w + b, x = (1, -1) + 3: which is larger depends on w."""
    net = ts.Network((1, 2), [Conv(1, 1), ts.MaxPool(2), Dense(1)], LINE)
    theta = {"W1": [[[0]]], "b1": [0], "W3": [[1]], "b3": [Fraction(1, 3)]}
    found = proof("local-minimum", net, [[[4, 2]]] * 3, [[0], [1], [0]], {"theta": theta})
    assert "kink" in refusal(checker, found)


def test_a_unit_that_reads_zeros_without_a_bias_is_at_no_kink(checker):
    net = ts.Network((1, 2), [Conv(1, 1, bias=False), Dense(1)])
    theta = {"W1": [[[1]]], "W2": [[0, 0]], "b2": [Fraction(1, 2)]}
    found = proof("local-minimum", net, [[[0, 1]]] * 2, [[0], [1]], {"theta": theta})
    assert refusal(checker, found) is None
    biased = ts.Network((1, 2), [Conv(1, 1), Dense(1)])
    found = proof(
        "local-minimum", biased, [[[0, 1]]] * 2, [[0], [1]], {"theta": theta | {"b1": [0]}}
    )
    assert "kink" in refusal(checker, found)


def test_a_dead_layer_hides_nothing_that_a_block_leads_past_it(checker):
    """The block adds a dead unit to x w + b, whose slope in w is not 0."""
    net = ts.Network((1, 1), [Dense(1, activation=LINE), Residual([Dense(1), Dense(1)])])
    theta = {"W1": [[0]], "b1": [1], "W2": [[1]], "b2": [-9], "W3": [[1]], "b3": [Fraction(-2, 3)]}
    x, y = [[[0]], [[1]], [[2]]], [[0], [0], [1]]
    found = proof("local-minimum", net, x, y, {"theta": theta})
    assert "G_s is not 0" in refusal(checker, found)
    plain = ts.Network((1, 1), [Dense(1, activation=LINE), Dense(1), Dense(1)])
    theta |= {"b3": [Fraction(1, 3)]}
    assert refusal(checker, proof("local-minimum", plain, x, y, {"theta": theta})) is None


def test_features_that_a_block_leads_past_the_first_weights_are_refused(checker):
    *_, found = stated(NETWORKS["a block first, and ReLU last"])
    block = {"type": "residual", "layers": [{"type": "average_pool", "size": 1}]}
    block["shortcut"] = [
        {"type": "conv", "maps": 2, "kernel": 3, "activation": {"name": "identity"}}
    ]
    found = replaced(found, ("network", "layers", 0), block)
    assert "first residual block" in refusal(checker, found)


def test_scaling_a_map_does_not_give_back_a_weight_within_a_block(checker):
    """The outputs w x + (v w x)^+ are 2 w x and w x with v = 1, and should both be x."""
    block = Residual([Dense(1, bias=False, activation=ts.ReLU())])
    net = ts.Network((1, 1), [Dense(1, bias=False, activation=LINE), block])
    theta = {"W1": [[Fraction(3, 5)]], "W2": [[1]]}
    parts = {"kinks": [], "multipliers": [], "frozen": [(2, "W", 0, 0)]}
    found = proof("local-minimum", net, [[[1]], [[-1]]], [[1], [-1]], {"theta": theta}, **parts)
    assert "scaling does not give back" in refusal(checker, found)
    net = ts.Network((1, 1), [Dense(1, bias=False), Dense(1, bias=False)])
    theta = {"W1": [[1]], "W2": [[1]]}
    found = proof("local-minimum", net, [[[1]], [[1]]], [[1], [1]], {"theta": theta}, **parts)
    assert refusal(checker, found) is None
