"""The PyTorch networks agree with sums written out by hand."""

import json

import numpy as np
import pytest
from torch_twin import Twin, from_npz, gradients, risk

SPEC = {
    "input": [2, 4],
    "activation": {"name": "leaky_relu", "slope": 0.1},
    "layers": [
        {"type": "conv", "maps": 3, "kernel": 3},
        {"type": "average_pool", "size": 2},
        {"type": "dense", "width": 2},
    ],
}
SHAPES = {"W1": (3, 2, 3), "b1": (3,), "W3": (2, 6), "b3": (2,)}
N = 5


@pytest.fixture
def arrays(rng):
    return {key: rng.normal(size=shape) for key, shape in SHAPES.items()}


def by_hand(arrays, x):
    """Outputs and preactivations of the network `SPEC`."""
    before = np.empty((len(x), 3, 4))
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1)))
    for t in range(3):
        for i in range(4):
            window = padded[:, :, i : i + 3]
            before[:, t, i] = (arrays["W1"][t] * window).sum((1, 2)) + arrays["b1"][t]
    after = np.where(before > 0, before, 0.1 * before)
    pooled = (after[:, :, 0::2] + after[:, :, 1::2]) / 2
    return pooled.reshape(len(x), 6) @ arrays["W3"].T + arrays["b3"], before.reshape(len(x), 12)


def by_hand_risk(outputs, targets, loss):
    if loss == "squared":
        return 0.5 * ((outputs - targets) ** 2).sum() / len(outputs)
    return -(targets * (outputs - np.log(np.exp(outputs).sum(1, keepdims=True)))).sum() / N


def test_outputs_and_preactivations(arrays, rng):
    x = rng.normal(size=(N, 2, 4))
    twin = Twin(json.dumps(SPEC)).load(arrays)
    outputs, before = by_hand(arrays, x)
    np.testing.assert_allclose(twin(x).detach(), outputs, rtol=1e-12)
    assert list(twin.preactivations(x)) == [1]
    np.testing.assert_allclose(twin.preactivations(x)[1].detach(), before, rtol=1e-12)


@pytest.mark.parametrize("loss", ["squared", "cross-entropy"])
def test_risk_and_gradients(arrays, rng, loss):
    x, targets = rng.normal(size=(N, 2, 4)), rng.dirichlet([1, 1], size=N)
    twin = Twin(SPEC).load(arrays)
    here = by_hand_risk(by_hand(arrays, x)[0], targets, loss)
    assert risk(twin(x), targets, loss).item() == pytest.approx(here, rel=1e-12)
    found = gradients(twin, x, targets, loss)
    assert {key: value.shape for key, value in found.items()} == SHAPES
    step = {key: rng.normal(size=shape) for key, shape in SHAPES.items()}
    ahead, behind = (
        by_hand_risk(by_hand({k: arrays[k] + h * step[k] for k in step}, x)[0], targets, loss)
        for h in (1e-6, -1e-6)
    )
    slope = sum((found[key] * step[key]).sum() for key in step)
    assert slope == pytest.approx((ahead - behind) / 2e-6, rel=1e-6)


def test_two_dimensional_network_from_a_file(tmp_path, rng):
    spec = {
        "input": [1, 2, 4],
        "activation": {"name": "relu"},
        "layers": [{"type": "dense", "width": 3}, {"type": "conv", "maps": 1, "kernel": 1}],
    }
    with pytest.raises(ValueError, match="no layer"):
        Twin(spec)
    spec["layers"] = [
        {"type": "conv", "maps": 2, "kernel": 1},
        {"type": "average_pool", "size": 2},
    ]
    weight, bias = rng.normal(size=(2, 1, 1, 1)), rng.normal(size=2)
    path = tmp_path / "network.npz"
    np.savez(path, spec=json.dumps(spec), W1=weight, b1=bias, note=np.arange(3))
    x = rng.normal(size=(N, 1, 2, 4))
    after = np.maximum(x * weight[:, 0] + bias[:, None, None], 0)
    expected = np.stack([after[..., :2].mean((2, 3)), after[..., 2:].mean((2, 3))], axis=2)
    np.testing.assert_allclose(from_npz(path)(x).detach(), expected.reshape(N, 4), rtol=1e-12)


@pytest.mark.parametrize(
    "change", [{"W2": np.zeros((1, 1))}, {"b3": None}, {"W1": np.zeros((3, 2, 1))}]
)
def test_parameters_must_fit(arrays, change):
    merged = {key: value for key, value in (arrays | change).items() if value is not None}
    with pytest.raises(ValueError, match=r"parameters|shape"):
        Twin(SPEC).load(merged)
