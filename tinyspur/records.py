"""Results in a file, a line for each, and back: a later call finds there what is done.

Numbers, text, arrays, points, and what this package returns become JSON and the same again, to the
last bit. Nothing is pickled: to read a file runs none of what is in it.
"""

from __future__ import annotations

import base64
import hashlib
import importlib
import json
import os
import pickle
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .engine.backend import namespace, to_numpy
from .engine.network import Network
from .engine.parameters import Parameters
from .engine.plain import is_array
from .files import as_path, naming, naming_the_file

HEAD = b"tinyspur results 1\n"


def encoded(value: object) -> object:
    """Return in JSON's types a number, text, None, an array, a point, or a result of this package.

    Also lists, tuples and dictionaries of these. Raises ValueError for anything else: arrays of
    objects or on a device, points of networks with an activation of your own.
    """
    value = value.item() if isinstance(value, np.generic) else value
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list):
        return list(map(encoded, value))
    if isinstance(value, dict):
        return {"dict": [[encoded(key), encoded(part)] for key, part in value.items()]}
    if is_array(value) and namespace(value) is np and value.dtype.kind in "fiub":
        numbers = base64.b64encode(np.ascontiguousarray(value)).decode()
        return {"array": [value.dtype.str, list(value.shape), numbers]}
    if isinstance(value, Parameters):
        with naming("results: expected a network that can be read from JSON:"):
            Network.from_spec(json.dumps(value.net.spec))
        return {"point": [value.net.spec, value.net.memory_budget, encoded(value.vector)]}
    if _ours(type(value)):
        parts = {name: encoded(getattr(value, name)) for name in _names(type(value))}
        return {"result": [f"{type(value).__module__}:{type(value).__qualname__}", parts]}
    if isinstance(value, tuple):
        return {"tuple": list(map(encoded, value))}
    raise ValueError(
        "results: expected numbers, text, arrays on the host, points or what tinyspur returns, got "
        f"a {type(value).__name__}"
    )


def decoded(value: Any) -> Any:
    """Return what `encoded` made the value from."""
    if isinstance(value, list):
        return list(map(decoded, value))
    if not isinstance(value, dict):
        return value
    [(kind, parts)] = value.items()
    if kind == "dict":
        return {decoded(key): decoded(part) for key, part in parts}
    if kind == "array":
        dtype, shape, numbers = parts
        return np.frombuffer(bytearray(base64.b64decode(numbers)), dtype).reshape(shape)
    if kind == "point":
        spec, budget, vector = parts
        net = Network.from_spec(json.dumps(spec))
        net = Network(net.input_shape, net.layers, net.activation, budget)
        return Parameters(net, decoded(vector))
    if kind == "tuple":
        return tuple(map(decoded, parts))
    module, name = parts[0].split(":")
    found = getattr(importlib.import_module(module), name) if _inside(module) else None
    if kind != "result" or not _ours(found):
        raise ValueError(f"expected what tinyspur returns, got {parts[0]}")
    return found(**{name: decoded(part) for name, part in parts[1].items()})


def _inside(module: str) -> bool:
    return module.startswith(f"{__package__}.")


def _ours(kind: Any) -> bool:
    """Return whether a type is a dataclass or a named tuple of this package."""
    named = isinstance(kind, type) and (is_dataclass(kind) or hasattr(kind, "_fields"))
    return named and _inside(kind.__module__)


def _names(kind: Any) -> Sequence[str]:
    return [f.name for f in fields(kind) if f.init] if is_dataclass(kind) else kind._fields


def digest(value: object) -> str:
    """Return what tells a value from others: a function and its data, or one of its arguments.

    Raises ValueError for parts that can't be pickled, as functions within functions.
    """
    found = hashlib.sha256()
    _update(found, value)
    return found.hexdigest()


def _update(found, value: Any) -> None:
    found.update(f"{type(value).__module__}.{type(value).__qualname__} ".encode())
    if is_array(value) and value.dtype.kind != "O":
        found.update(f"{value.dtype} {value.shape} ".encode())
        found.update(np.ascontiguousarray(to_numpy(value)))
        return
    if isinstance(value, Parameters):
        parts: Sequence = [value.net, value.vector]
    elif isinstance(value, partial):
        parts = [value.func, value.args, value.keywords]
    elif isinstance(value, dict):
        parts = list(value.items())
    elif type(value) in (list, tuple):
        parts = value
    elif is_dataclass(value) and not isinstance(value, type):
        parts = [getattr(value, field.name) for field in fields(value)]
    else:
        try:
            found.update(pickle.dumps(value))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise ValueError(f"results: expected what can be pickled: {error}") from error
        return
    found.update(f"{len(parts)} ".encode())
    for part in parts:
        _update(found, part)


def kept_in(path: Path) -> str:
    """Return what a program says after Ctrl-C of the results in its file, "" for none."""
    lines = path.read_bytes().count(b"\n") - 1 if path.exists() else 0
    return f"{lines} results are in {path}, the same command goes on" if lines > 0 else ""


class Records:
    """The results of some tasks, in memory and, with a `path`, in a file to which each is added.

    A task is known by the digest of its function and argument, so that a file may have results of
    other calls, too, which are left there. A line that a kill has cut off is overwritten.
    """

    def __init__(self, path: str | Path | None, function: object, arguments: Sequence):
        self.path = path if path is None else as_path(path)
        self.keys: Sequence = range(len(arguments))
        self.found: dict[Any, Any] = {}
        self.cut: tuple[int, int] | None = None  # from where to where a line has been cut off
        if path is not None:
            own = [_version(), digest(function)]
            self.keys = [digest([*own, digest(argument)]) for argument in arguments]
            with naming_the_file(self.path):
                self._read()

    def _read(self) -> None:
        if not self.path.exists():
            return
        wanted = {key.encode(): key for key in self.keys}
        with open(self.path, "rb") as file:
            head = file.readline()
            if not HEAD.startswith(head):
                raise ValueError(
                    f"{self.path}: expected no file, or one with results of an earlier call, got "
                    "another one: move it away, or choose another name"
                )
            if head != HEAD:
                self.cut = (0, len(head)) if head else None
                return
            end = len(head)
            for line in file:
                if not line.endswith(b"\n"):
                    self.cut = end, end + len(line)
                    return
                end += len(line)
                key, _, text = line.partition(b" ")
                if key in wanted:
                    with naming(f"{self.path}: damaged:"):
                        self.found[wanted[key]] = decoded(json.loads(text))

    @property
    def missing(self) -> list[int]:
        """Return the numbers of the tasks without a result, of equal ones the first."""
        numbers: dict[Any, int] = {}
        for number, key in enumerate(self.keys):
            numbers.setdefault(key, number)
        return [number for key, number in numbers.items() if key not in self.found]

    @property
    def done(self) -> int:
        """Return how many tasks have a result."""
        return sum(key in self.found for key in self.keys)

    @property
    def results(self) -> list:
        """Return the results of all tasks, in their order."""
        return [self.found[key] for key in self.keys]

    def add(self, number: int, result: object) -> None:
        """Take the result of a task, and write it."""
        key = self.keys[number]
        if self.path is not None:
            line = f"{key} {json.dumps(encoded(result))}\n".encode()
            with naming_the_file(self.path):
                self._write(line)
        self.found[key] = result

    def _write(self, line: bytes) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab") as file:
            size = file.seek(0, os.SEEK_END)
            if self.cut and size == self.cut[1]:  # else another call has gone on with the file
                size = file.truncate(self.cut[0])
            file.write(line if size else HEAD + line)
        self.cut = None

    def kept(self) -> str:
        """Return words that say what is in the file, for the end of an error message."""
        if self.path is None or not self.done:
            return ""
        found = f"{self.done} of {len(self.keys)} results are in {self.path}"
        return f"; {found}, from which the same call goes on"


def _version() -> str:
    from . import __version__  # of the package, which imports this module

    return __version__
