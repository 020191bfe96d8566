"""Proof files: a claim about a network, and all its numbers as fractions, in JSON.

A file says everything that is needed to check the claim, and `demos/check_proof.py` checks it with
nothing of this package. Nothing is checked here but that the parts fit together. Numbers are
strings "p/q" or "p", arrays nested lists in PyTorch's shapes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from decimal import Decimal
from fractions import Fraction
from math import prod
from pathlib import Path

import numpy as np

from ..engine.activations import ReLU
from ..engine.backend import to_numpy
from ..engine.network import Network, check_network
from ..engine.parameters import Parameters, check_points
from ..files import as_path, naming, whole_file

FORMAT = "tinyspur-proof-1"
CLAIMS = {  # each with the points that it is about
    "local-minimum": ["theta"],
    "spurious-local-minimum": ["theta", "lower"],
    "not-a-local-minimum": ["theta"],
    "equal-risk": ["theta", "theta_prime"],
}
PARTS = ("kinks", "multipliers", "frozen", "direction", "order", "coefficient", "risks")

Point = Mapping[str, object] | Parameters


def proof(
    claim: str,
    net: Network,
    data_x: object,
    data_y: object,
    points: Mapping[str, Point],
    *,
    kinks: Iterable | None = None,
    multipliers: Iterable | None = None,
    frozen: Iterable | None = None,
    direction: Point | None = None,
    order: int | None = None,
    coefficient: object = None,
    risks: Mapping[str, object] | None = None,
) -> dict:
    """Return what a proof file says, as `save_proof` writes it; the loss is the squared one.

    Numbers may be fractions, integers, strings "p/q" or finite floats, which are taken as the
    fractions that they are.

    Parameters
    ----------
    claim
        "local-minimum", "spurious-local-minimum" (also of a point "lower"), "not-a-local-minimum"
        (along `direction`), or "equal-risk" (theta and "theta_prime" have the same outputs).
    data_x, data_y
        Inputs (N, *net.input_shape) and targets (N, d_y).
    points
        By their names, as `Parameters` or as {"W1": ..., "b1": ...} in PyTorch's shapes.
    kinks, multipliers
        Triples (sample, layer, unit) with z = 0, units numbered map-major as rows of W^layer, and
        for each the multiplier lambda, the derivative of the risk with its slope at the kink.
    frozen
        Coordinates (layer, "W" or "b", *index) that are held fixed, in PyTorch's shapes.
    direction, order, coefficient
        R(theta + t direction) - R(theta) = coefficient t^order + ... for t -> 0+.
    risks
        R by the names of points.

    Raises ValueError for other claims and names, for shapes that do not fit the network, and for
    activations other than ReLU and leaky ReLU.

    >>> from tinyspur.layers import Dense
    >>> net = Network((1, 1), [Dense(1)])
    >>> fit = {"W1": [[0]], "b1": ["1/3"]}
    >>> found = proof("local-minimum", net, [[[0]], [[1]], [[2]]], [[0], [1], [0]], {"theta": fit})
    >>> found["points"]
    {'theta': {'W1': [['0']], 'b1': ['1/3']}}
    """
    check_network(net)
    _check_activations(net)
    if claim not in CLAIMS:
        raise ValueError(f"proof: expected a claim of {', '.join(CLAIMS)}, got {claim!r}")
    missing = [name for name in CLAIMS[claim] if name not in points]
    if missing:
        raise ValueError(f"proof: expected the points {CLAIMS[claim]}, got {list(points)}")
    x = _array(data_x, "data x")
    if not len(x) or x.shape[1:] != net.input_shape:
        raise ValueError(f"proof: expected data x (N, *{net.input_shape}), got {x.shape}")
    y = _array(data_y, "data y", (len(x), prod(net.shapes[-1])))
    found = {
        "format": FORMAT,
        "claim": claim,
        "network": net.spec,
        "loss": "squared",
        "data": {"x": _texts(x), "y": _texts(y)},
        "points": {name: _point_texts(net, point, name) for name, point in points.items()},
    }
    if kinks is not None:
        found["kinks"] = [list(map(_whole, kink)) for kink in kinks]
    if multipliers is not None:
        found["multipliers"] = [_text(_number(value, "multipliers")) for value in multipliers]
    if frozen is not None:
        found["frozen"] = [_coordinate(net, *place) for place in frozen]
    if direction is not None:
        found["direction"] = _point_texts(net, direction, "direction")
    if order is not None:
        found["order"] = _whole(order)
    if coefficient is not None:
        found["coefficient"] = _text(_number(coefficient, "coefficient"))
    if risks is not None:
        if not set(risks) <= set(points):
            raise ValueError(f"proof: expected risks of {list(points)}, got {list(risks)}")
        found["risks"] = {name: _text(_number(risk, "risks")) for name, risk in risks.items()}
    return found


def _check_activations(net: Network) -> None:
    """Raise ValueError for activations that do not make fractions of fractions."""
    for sigma in net.activations:
        if type(sigma) is not ReLU:
            raise ValueError(f"proof: expected ReLU, leaky ReLU or none after layers, got {sigma}")


def save_proof(path: str | Path, proof: dict) -> None:
    """Write what `proof` returned: a line for each array; the file is whole or not there.

    Raises ValueError for what is no such dictionary, OSError where it can't be written.
    """
    path = as_path(path)
    with naming(f"{path}: not written:"):
        _checked(proof)
    with whole_file(path) as file:
        file.write((_layout(proof) + "\n").encode())


def load_proof(path: str | Path) -> dict:
    """Return the proof of a file, its numbers as strings; `as_parameters` reads a point of it.

    Raises ValueError for a file that is no proof file or whose parts do not fit together, OSError
    if it can't be opened.
    """
    path = as_path(path)
    text = path.read_bytes()
    with naming(f"{path}: expected a proof file, got"):
        return _checked(json.loads(text))


def as_fractions(theta: Parameters) -> dict[str, np.ndarray]:
    """Return {"W1": ..., "b1": ...}, arrays of the fractions that the stored numbers are."""
    check_points(None, theta)
    arrays = {name: to_numpy(array) for name, array in theta.arrays().items()}
    return {name: _array(array, name) for name, array in arrays.items()}


def as_parameters(net: Network, point: Mapping[str, object]) -> Parameters:
    """Return a point of fractions, or of strings as in a file, rounded to float64.

    Raises ValueError for names and shapes that are not the network's, and for numbers that are too
    large.
    """
    check_network(net)
    theta = net.zeros()
    for name, array in _point(net, point, "point").items():
        with naming(f"point {name}: expected numbers that float64 can hold, got"):
            (theta.W if name[0] == "W" else theta.b)[int(name[1:])] = array.astype(float)
    return theta


def _checked(found: object) -> dict:
    """Return a proof as `proof` makes it from its parts, or raise ValueError."""
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ValueError(f"no object of the format {FORMAT}")
    needed = {"format", "claim", "network", "loss", "data", "points"}
    if not needed <= set(found) <= needed | set(PARTS):
        raise ValueError(f"the keys {', '.join(found)}, expected {', '.join(sorted(needed))}")
    if found["loss"] != "squared":
        raise ValueError(f"the loss {found['loss']!r}, expected squared")
    for name in ("data", "points", "direction", "multipliers", "coefficient", "risks"):
        if name in found:
            _refuse_floats(found[name])
    data, net = found["data"], Network.from_spec(found["network"])
    parts = {name: found[name] for name in PARTS if name in found}
    return proof(found["claim"], net, data["x"], data["y"], found["points"], **parts)


def _refuse_floats(value: object) -> None:
    """Raise ValueError for numbers in a file that are neither strings nor whole."""
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            _refuse_floats(part)
    elif not isinstance(value, str) and type(value) is not int:
        raise ValueError(f'the number {value!r}, expected a string "p/q"')


def _point(net: Network, point: Point, name: str) -> dict[str, np.ndarray]:
    """Return the arrays of a point, of fractions, in the order of the layers."""
    if isinstance(point, Parameters):
        check_points(net, point)
        return as_fractions(point)
    shapes = {}
    for layer, slot in net.slots.items():
        shapes[f"W{layer}"] = slot.shape
        if slot.biases:
            shapes[f"b{layer}"] = (slot.biases,)
    if not isinstance(point, Mapping) or set(point) != set(shapes):
        got = list(point) if isinstance(point, Mapping) else type(point).__name__
        raise ValueError(f"{name}: expected arrays {list(shapes)}, got {got}")
    return {key: _array(point[key], f"{name} {key}", shape) for key, shape in shapes.items()}


def _point_texts(net: Network, point: Point, name: str) -> dict[str, list]:
    return {key: _texts(array) for key, array in _point(net, point, name).items()}


def _coordinate(net: Network, layer: object, kind: object, *index: object) -> list:
    """Return [layer, "W" or "b", *index] where the network has such a coordinate."""
    layer, index = _whole(layer), tuple(map(_whole, index))
    shape, slot = (), net.slots.get(layer)
    if slot is not None:
        shapes = {"W": slot.shape, "b": (slot.biases,) * (slot.biases > 0)}
        shape = shapes.get(kind, ()) if isinstance(kind, str) else ()
    if (
        not shape
        or len(index) != len(shape)
        or any(i >= n for i, n in zip(index, shape, strict=True))
    ):
        raise ValueError(f"frozen: expected (layer, 'W' or 'b', *index), got {layer, kind, *index}")
    return [layer, kind, *index]


def _array(values: object, name: str, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """Return an array of fractions; ValueError for what is no number, and for another shape."""
    array = np.array(values, dtype=object)
    if shape is not None and array.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {array.shape}")
    fractions = np.empty(array.shape, dtype=object)
    for place, value in np.ndenumerate(array):
        fractions[place] = _number(value, name)
    return fractions


def _number(value: object, name: str) -> Fraction:
    """Return the fraction that a number is, of any length."""
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]+(/0*[1-9][0-9]*)?", value):
        return Fraction(*(int(Decimal(part)) for part in value.split("/")))
    if isinstance(value, Fraction):
        return value
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return Fraction(int(value))
    if isinstance(value, float | np.floating) and np.isfinite(value):
        return Fraction(*value.as_integer_ratio())
    raise ValueError(f"{name}: expected finite numbers, got {value!r}")


def _text(value: Fraction) -> str:
    """Return "p/q" or "p"; Decimal writes numbers of any length."""
    p, q = (str(Decimal(part)) for part in (value.numerator, value.denominator))
    return p if q == "1" else f"{p}/{q}"


def _texts(array: np.ndarray) -> list:
    texts = np.empty(array.shape, dtype=object)
    for place, value in np.ndenumerate(array):
        texts[place] = _text(value)
    return texts.tolist()


def _whole(value: object) -> int:
    if isinstance(value, int | np.integer) and not isinstance(value, bool) and value >= 0:
        return int(value)
    raise ValueError(f"proof: expected a whole number of 0 or more, got {value!r}")


def _layout(value: object, indent: str = "") -> str:
    """Return JSON with a line for every entry of a dictionary."""
    if not isinstance(value, dict):
        return json.dumps(value, allow_nan=False)
    inner = indent + " "
    entries = (f"{inner}{json.dumps(key)}: {_layout(v, inner)}" for key, v in value.items())
    return "{\n" + ",\n".join(entries) + "\n" + indent + "}"
