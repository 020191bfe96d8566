"""Proof files say what was given, in fractions, and nothing that does not fit the network."""

import json
from fractions import Fraction

import numpy as np
import pytest

import tinyspur as ts
from tinyspur.certificates.proofs import (
    as_fractions,
    as_parameters,
    load_proof,
    proof,
    save_proof,
)

NET = ts.Network((1, 4), [ts.Conv(2), ts.AveragePool(2), ts.Dense(3), ts.Dense(1)])


def random_point(seed=0):
    return ts.Parameters(NET, np.random.default_rng(seed).normal(size=NET.size))


def random_proof(**parts):
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(3, 1, 4)), rng.integers(-3, 4, (3, 1))
    points = {"theta": random_point(), "lower": random_point(2)}
    return proof("spurious-local-minimum", NET, x, y, points, **parts)


def test_the_fractions_are_the_stored_numbers_and_come_back_to_the_last_bit():
    theta = random_point()
    exact = as_fractions(theta)
    for name, array in theta.arrays().items():
        assert exact[name].shape == array.shape
        assert all(
            Fraction(float(a)) == b for a, b in zip(array.flat, exact[name].flat, strict=True)
        )
    assert (as_parameters(NET, exact).vector == theta.vector).all()


def test_what_is_saved_is_loaded(tmp_path):
    parts = {
        "kinks": [(0, 1, 3), (2, 3, 1)],
        "multipliers": [Fraction(1, 3), 2],
        "frozen": [(1, "W", 1, 0, 2), (3, "b", 2)],
        "direction": random_point(3),
        "order": 2,
        "coefficient": Fraction(-1, 9),
        "risks": {"theta": 1, "lower": Fraction(1, 2)},
    }
    found = random_proof(**parts)
    save_proof(tmp_path / "p.json", found)
    assert load_proof(tmp_path / "p.json") == found == json.loads((tmp_path / "p.json").read_text())
    assert found["multipliers"] == ["1/3", "2"] and found["coefficient"] == "-1/9"
    loaded = as_parameters(NET, load_proof(tmp_path / "p.json")["points"]["lower"])
    assert (loaded.vector == random_point(2).vector).all()


def test_numbers_of_ten_thousand_digits_are_kept(tmp_path):
    net = ts.Network((1, 1), [ts.Dense(1)])
    long = Fraction(10**10_000 + 1, 3**20_958)
    found = proof("local-minimum", net, [[[1]]], [[0]], {"theta": {"W1": [[long]], "b1": [0]}})
    save_proof(tmp_path / "p.json", found)
    text = load_proof(tmp_path / "p.json")["points"]["theta"]["W1"][0][0]
    assert text.startswith("1000") and len(text) > 20_000
    assert as_parameters(net, found["points"]["theta"]).W[1].weights[0, 0] == float(long)
    with pytest.raises(ValueError, match="float64"):
        as_parameters(net, {"W1": [[10**400]], "b1": [0]})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda p: p.update(format="other"), "format"),
        (lambda p: p.update(claim="minimum"), "claim"),
        (lambda p: p.update(loss="absolute"), "loss"),
        (lambda p: p.update(surplus=1), "surplus"),
        (lambda p: p.pop("data"), "data"),
        (lambda p: p["points"].pop("lower"), "lower"),
        (lambda p: p["points"]["theta"].pop("b3"), "b3"),
        (lambda p: p["points"]["theta"].update(b4=["1", "2"]), r"\(1,\)"),
        (lambda p: p["points"]["theta"].update(b4=["1/0"]), "1/0"),
        (lambda p: p["points"]["theta"].update(b4=["1e9"]), "1e9"),
        (lambda p: p["points"]["theta"].update(b4=[0.5]), "0.5"),
        (lambda p: p["data"]["x"].pop(), r"\(2, 1\)"),
        (lambda p: p["network"]["layers"].append({"type": "norm"}), "norm"),
        (lambda p: p.update(frozen=[[1, "W", 2, 0, 0]]), "frozen"),
        (lambda p: p.update(kinks=[[0, 1, -1]]), "-1"),
        (lambda p: p.update(risks={"other": "1"}), "other"),
    ],
)
def test_a_file_whose_parts_do_not_fit_is_refused_in_one_line(tmp_path, change, words):
    found = random_proof()
    change(found)
    path = tmp_path / "p.json"
    path.write_text(json.dumps(found))
    with pytest.raises(ValueError, match=words) as caught:
        load_proof(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=words):
        save_proof(tmp_path / "q.json", found)
    assert not (tmp_path / "q.json").exists()


def test_what_is_quoted_of_a_file_is_short(tmp_path):
    found = random_proof() | {"claim": "9" * 100_000}
    (tmp_path / "p.json").write_text(json.dumps(found))
    with pytest.raises(ValueError, match=r"expected a claim of .*999 \.\.\.$") as caught:
        load_proof(tmp_path / "p.json")
    assert len(str(caught.value)) < 800 + len(str(tmp_path))


def test_a_file_that_is_no_json_is_refused_and_a_missing_one_is_an_os_error(tmp_path):
    (tmp_path / "p.json").write_bytes(b"\x00{")
    with pytest.raises(ValueError, match="proof file"):
        load_proof(tmp_path / "p.json")
    with pytest.raises(OSError):
        load_proof(tmp_path / "none.json")


def test_smooth_activations_are_refused_whose_outputs_are_no_fractions():
    net = ts.Network((1, 4), [ts.Dense(2, activation=ts.Tanh()), ts.Dense(1)])
    with pytest.raises(ValueError, match=r"^proof: expected ReLU.*got Tanh\(\)"):
        proof("local-minimum", net, np.zeros((2, 1, 4)), [[0], [1]], {"theta": net.zeros()})


def test_numbers_of_layers_with_all_options_are_kept(tmp_path):
    block = ts.Residual([ts.Conv(2, 1), ts.Scale()], [ts.Conv(2, (1, 2), bias=False)])
    layers = [ts.Conv(2, 2, 2, padding=((0, 1), 1), groups=2), block, ts.MaxPool(2, 1), ts.Dense(1)]
    net = ts.Network((2, 4, 4), layers)
    theta = ts.Parameters(net, np.random.default_rng(0).normal(size=net.size))
    found = proof("local-minimum", net, np.zeros((2, 2, 4, 4)), [[0], [1]], {"theta": theta})
    save_proof(tmp_path / "p.json", found)
    loaded = load_proof(tmp_path / "p.json")
    assert ts.Network.from_spec(loaded["network"]) == net
    assert (as_parameters(net, loaded["points"]["theta"]).vector == theta.vector).all()
