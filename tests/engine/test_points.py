"""Points as NPZ files: what is read back is what was, and anything else is refused."""

import io
import json
import re
import time
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch_twin import Twin, from_npz

from tinyspur.engine.activations import ReLU, Swish, Tanh
from tinyspur.engine.network import Network
from tinyspur.engine.parameters import Parameters
from tinyspur.engine.points import load_point, save_point
from tinyspur.engine.user_activations import SmoothActivation
from tinyspur.layers import AveragePool, Conv, Dense

NETWORKS = {
    "convolutions and a pooling": Network((1, 4, 4), [Conv(2), AveragePool(2), Conv(3), Dense(3)]),
    "colour, filters of size 5": Network((3, 6, 4), [Conv(4, 5), Conv(2, 1), Dense(2)]),
    "one-dimensional": Network((2, 6), [Conv(3), AveragePool(3), Dense(4)]),
    "leaky": Network((1, 2, 2), [Dense(5), Dense(2)], ReLU(0.125)),
    "tanh": Network((1, 2, 2), [Dense(5), Dense(2)], Tanh()),
    "swish": Network((1, 6), [Conv(3), Conv(2), Dense(2)], Swish(1.5)),
    "one dense layer": Network((1, 3, 3), [Dense(4)]),
    "no parameters": Network((2, 4, 4), [AveragePool(2)]),
}
NET = NETWORKS["convolutions and a pooling"]


def point(net, seed=0, dtype=np.float64):
    theta = net.zeros(dtype=dtype)
    theta.vector[:] = np.random.default_rng(seed).standard_normal(net.size)
    return theta


# Points


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("net", NETWORKS.values(), ids=NETWORKS)
def test_a_point_comes_back_bit_for_bit(net, dtype, tmp_path):
    if net.size == 0:
        dtype = np.float64  # nothing in the file says another type
    theta = point(net, dtype=dtype)
    save_point(tmp_path / "point.npz", theta)
    loaded = load_point(tmp_path / "point.npz")
    assert loaded.net == net
    assert loaded.net.spec == net.spec
    assert loaded.vector.dtype == dtype
    assert loaded.vector.tobytes() == theta.vector.tobytes()


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=9, max_size=9))
@example([-0.0, 5e-324, -5e-324, 2.2250738585072014e-308, 1.7976931348623157e308, 1 / 3, 0, 1, -1])
def test_every_finite_number_comes_back_bit_for_bit(tmp_path, numbers):
    theta = Network((1, 2, 1), [Dense(3)]).zeros()
    theta.vector[:] = numbers
    save_point(tmp_path / "point.npz", theta)
    assert load_point(tmp_path / "point.npz").vector.tobytes() == theta.vector.tobytes()


@pytest.mark.parametrize("net", NETWORKS.values(), ids=NETWORKS)
def test_the_file_has_pytorch_shapes_and_no_keys_for_poolings(net, tmp_path):
    save_point(tmp_path / "point.npz", point(net))
    with np.load(tmp_path / "point.npz", allow_pickle=False) as file:
        shapes = {key: file[key].shape for key in file.files}
        spec = json.loads(file["spec"].item())
    assert shapes.pop("spec") == ()
    expected, channels = {}, net.input_shape[0]
    for layer, description in enumerate(net.layers, start=1):
        if isinstance(description, Conv):
            kernel = (description.kernel,) * (len(net.input_shape) - 1)
            expected[f"W{layer}"] = (description.maps, channels, *kernel)
            expected[f"b{layer}"] = (description.maps,)
            channels = description.maps
        elif isinstance(description, Dense):
            below = np.prod(net.shapes[layer - 1])
            expected[f"W{layer}"] = (description.width, below)
            expected[f"b{layer}"] = (description.width,)
    assert shapes == expected
    assert {key: tuple(p.shape) for key, p in Twin(spec).arrays().items()} == expected


def test_the_spec_is_the_documented_json(tmp_path):
    net = Network((3, 8, 8), [Conv(6), AveragePool(2), Dense(10)])
    save_point(tmp_path / "point.npz", net.zeros())
    with np.load(tmp_path / "point.npz", allow_pickle=False) as file:
        assert json.loads(file["spec"].item()) == {
            "input": [3, 8, 8],
            "activation": {"name": "relu"},
            "layers": [
                {"type": "conv", "maps": 6, "kernel": 3},
                {"type": "average_pool", "size": 2},
                {"type": "dense", "width": 10},
            ],
        }


@pytest.mark.parametrize(
    "name", ["convolutions and a pooling", "one-dimensional", "leaky", "tanh", "swish"]
)
def test_pytorch_computes_the_same_outputs_from_the_file(name, tmp_path):
    theta = point(NETWORKS[name])
    save_point(tmp_path / "point.npz", theta)
    x = np.random.default_rng(1).standard_normal((7, *theta.net.input_shape))
    outputs = from_npz(tmp_path / "point.npz")(x).detach().numpy()
    np.testing.assert_allclose(theta.net.forward(theta, x), outputs, rtol=1e-12, atol=1e-12)


def test_writing_the_same_point_twice_gives_the_same_bytes(tmp_path):
    save_point(tmp_path / "first.npz", point(NET))
    time.sleep(0.01)
    save_point(tmp_path / "second.npz", point(NET))
    assert (tmp_path / "first.npz").read_bytes() == (tmp_path / "second.npz").read_bytes()


def test_a_point_whose_activation_no_file_can_hold_is_not_written(tmp_path):
    own = SmoothActivation("own", np.sin, np.cos)
    theta = point(Network((1, 2, 2), [Dense(5), Dense(2)], own))
    path = tmp_path / "points" / "point.npz"
    with pytest.raises(ValueError, match=r"point.npz: not written, .*got {'name': 'own'}"):
        save_point(path, theta)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_point_that_is_not_finite_is_not_written(value, tmp_path):
    theta = point(NET)
    theta.W[3].weights[1, 0] = value
    with pytest.raises(ValueError, match=r"point.npz: not written, since W3 has NaN or infinite"):
        save_point(tmp_path / "points" / "point.npz", theta)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", [">f8", ">f4", np.float16, np.int64, np.longdouble, bool])
def test_a_point_of_numbers_of_any_type_comes_back(dtype, tmp_path):
    values = np.random.default_rng(0).integers(0, 2, NET.size).astype(dtype)
    save_point(tmp_path / "point.npz", Parameters(NET, values))
    assert np.array_equal(load_point(tmp_path / "point.npz").vector, values)


def test_a_point_that_cannot_be_written_keeps_the_older_one(tmp_path, monkeypatch):
    save_point(tmp_path / "point.npz", point(NET))
    before = (tmp_path / "point.npz").read_bytes()

    def stop(file, **arrays):
        file.write(b"PK")
        raise OSError("no space left")

    monkeypatch.setattr(np, "savez", stop)
    with pytest.raises(OSError, match="no space left"):
        save_point(tmp_path / "point.npz", point(NET, seed=1))
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"point.npz": before}


# Files that are no points


def loading_fails(path, *words):
    """Check that the file is refused by a ValueError of one line that names it."""
    with pytest.raises(ValueError) as caught:
        load_point(path)
    message = str(caught.value)
    assert str(path) in message
    assert len(message.splitlines()) == 1, message
    for word in words:
        assert word in message


def arrays():
    theta = point(NET)
    return {"spec": np.array(json.dumps(theta.net.spec)), **theta.arrays()}


def changed(key, value):
    return {**arrays(), key: value}


def without(key):
    return {k: v for k, v in arrays().items() if k != key}


def with_entry(key, value):
    found = arrays()
    found[key] = found[key].copy()
    found[key].flat[1] = value
    return found


def with_spec(**changes):
    return changed("spec", np.array(json.dumps({**NET.spec, **changes})))


DENSE = {"type": "dense", "width": 3}
WRONG_ARRAYS = {
    "no spec": (without("spec"), ["spec"]),
    "a bias is missing": (without("b3"), ["b3"]),
    "weights are missing": (without("W4"), ["W4"]),
    "only a spec": ({"spec": arrays()["spec"]}, ["W1"]),
    "an array too many": (changed("W5", np.ones(3)), ["W5"]),
    "an array for the pooling": (changed("W2", np.ones((2, 2))), ["W2"]),
    "another shape": (changed("W1", np.ones((2, 1, 3, 1))), ["W1", "(2, 1, 3, 3)", "(2, 1, 3, 1)"]),
    "a shape that broadcasts": (changed("b1", np.ones(1)), ["b1", "(2,)", "(1,)"]),
    "a scalar": (changed("b1", np.array(1.0)), ["b1", "(2,)", "()"]),
    "NaN": (with_entry("W3", np.nan), ["W3"]),
    "infinity": (with_entry("b4", np.inf), ["b4"]),
    "minus infinity": (with_entry("W4", -np.inf), ["W4"]),
    "strings": (changed("b1", np.array(["1", "2"])), []),
    "dates": (changed("b1", np.array([1, 2], "M8[s]")), []),
    "complex numbers": (changed("b1", np.array([1 + 1j, 2])), []),
    "pickled objects": (changed("b1", np.array([1.0, None], dtype=object)), ["pickle"]),
    "a pickled spec": (changed("spec", np.array({"input": [1]}, dtype=object)), ["pickle"]),
}
WRONG_SPECS = {
    "no JSON": changed("spec", np.array("{")),
    "no JSON, over several lines": changed("spec", np.array("{\n\n")),
    "no object": changed("spec", np.array("5")),
    "a number": changed("spec", np.array(5)),
    "no layers": changed("spec", np.array('{"input": [1, 4, 4], "activation": {"name": "relu"}}')),
    "an unknown layer": with_spec(layers=[{"type": "sigmoid"}, DENSE]),
    "an unknown layer, over several lines": with_spec(layers=[{"type": "a\n\nb"}, DENSE]),
    "a layer with another option": with_spec(layers=[{**DENSE, "stride": 2}]),
    "a layer that is no object": with_spec(layers=["dense"]),
    "a filter of even size": with_spec(layers=[{"type": "conv", "maps": 2, "kernel": 2}, DENSE]),
    "a pooling that does not fit": with_spec(layers=[{"type": "average_pool", "size": 3}, DENSE]),
    "a width that is not whole": with_spec(layers=[{"type": "dense", "width": 2.5}]),
    "an unknown activation": with_spec(activation={"name": "mish"}),
    "a parameter of the activation is missing": with_spec(activation={"name": "elu"}),
    "an activation that is no object": with_spec(activation="relu"),
    "a slope that is no number": with_spec(activation={"name": "leaky_relu", "slope": "a"}),
    "a slope that is NaN": with_spec(activation={"name": "leaky_relu", "slope": float("nan")}),
    "an input that is no list": with_spec(input=None),
    "an input of strings": with_spec(input="144"),
    "an input whose sizes are not whole": with_spec(input=[1, 4.0, 4]),
    "an input with one size": with_spec(input=[16]),
    "more parameters than memory": with_spec(layers=[{"type": "dense", "width": 10**13}]),
}


@pytest.mark.parametrize(("found", "words"), WRONG_ARRAYS.values(), ids=WRONG_ARRAYS)
def test_arrays_that_are_no_point_are_refused(found, words, tmp_path):
    np.savez(tmp_path / "point.npz", **found)
    loading_fails(tmp_path / "point.npz", *words)


@pytest.mark.parametrize("found", WRONG_SPECS.values(), ids=WRONG_SPECS)
def test_a_spec_that_describes_no_network_is_refused(found, tmp_path):
    np.savez(tmp_path / "point.npz", **found)
    loading_fails(tmp_path / "point.npz")


def not_an_npz(name):
    file = io.BytesIO()
    if name == "an .npy":
        np.save(file, np.ones(3))
    elif name == "an .npy with pickles":
        np.save(file, np.array([None]), allow_pickle=True)
    elif name == "text":
        file.write(b"W1 b1\n" * 100)
    elif name == "a zip of other things":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("spec.npy", "no array")
    return file.getvalue()


@pytest.mark.parametrize(
    "name", ["nothing", "an .npy", "an .npy with pickles", "text", "a zip of other things"]
)
def test_a_file_that_is_no_npz_is_refused(name, tmp_path):
    (tmp_path / "point.npz").write_bytes(not_an_npz(name))
    loading_fails(tmp_path / "point.npz")


def test_a_point_cut_off_anywhere_is_refused(tmp_path):
    save_point(tmp_path / "point.npz", point(NET))
    whole = (tmp_path / "point.npz").read_bytes()
    for length in np.linspace(0, len(whole) - 1, 60, dtype=int):
        (tmp_path / "cut.npz").write_bytes(whole[:length])
        loading_fails(tmp_path / "cut.npz")


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_a_damaged_point_is_read_as_it_was_or_refused(write, tmp_path):
    write(tmp_path / "point.npz", **arrays())
    whole = (tmp_path / "point.npz").read_bytes()
    rng, refused = np.random.default_rng(0), 0
    for _ in range(400):
        damaged = bytearray(whole)
        damaged[rng.integers(len(whole))] ^= 1 << rng.integers(8)
        (tmp_path / "damaged.npz").write_bytes(damaged)
        try:
            loaded = load_point(tmp_path / "damaged.npz")
        except ValueError as error:
            assert str(tmp_path / "damaged.npz") in str(error)
            assert len(str(error).splitlines()) == 1
            refused += 1
        else:
            assert loaded.net == NET
            assert loaded.vector.tobytes() == point(NET).vector.tobytes()
    assert refused > 200


@pytest.mark.parametrize(
    ("name", "error", "got"),
    [
        ("none.npz", FileNotFoundError, "a path that does not exist"),
        ("file/none.npz", NotADirectoryError, "a path that does not exist"),
        ("folder", IsADirectoryError, "a folder"),
        ("n" * 300, OSError, "'File name too long'"),
    ],
)
def test_a_point_that_cannot_be_opened_says_what_is_there(name, error, got, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"")
    said = re.escape(f"{tmp_path / name}: expected an NPZ file, got {got}")
    with pytest.raises(error, match=f"^{said}$"):
        load_point(tmp_path / name)


def test_a_spec_of_another_kind_is_refused_by_what_it_is(tmp_path):
    np.savez(tmp_path / "point.npz", **changed("spec", np.array(3.0)))
    loading_fails(tmp_path / "point.npz", "object with input, activation, layers, got 3.0")
