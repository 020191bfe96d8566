"""Where numbers of users come in: plain real arrays of float32 or float64, and whole numbers."""

from __future__ import annotations

import math
import operator
import sys
from numbers import Real

import numpy as np

from .backend import Array, namespace, to_numpy

FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


def plain_array(name: str, values: object) -> Array:
    """Return `values` as an array of float32 or float64 of the machine's byte order.

    Arrays of these types, NumPy's or CuPy's, are returned as they are. Integers, bool, float16 and
    longdouble become float64. Whatever ``np.asarray`` takes comes in: lists, single numbers,
    DataFrames and Series, np.matrix and other subclasses, whose numbers are read as a plain array;
    and PyTorch's tensors, on any device and with or without gradient. Raises ValueError for complex
    numbers, objects, strings, dates and masked arrays.

    >>> plain_array("x", [[1, 2], [3, 4]])
    array([[1., 2.],
           [3., 4.]])
    """
    if type(values) is np.ndarray and values.dtype in FLOATS:
        return values
    array = values if is_array(values) else any_on_host(name, values)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{name}: expected plain real numbers, got {_kind(values, array)}")
    native = array.dtype.newbyteorder("=")
    return array.astype(native if native in FLOATS else np.float64, copy=False)


def plain_on_host(name: str, values: object) -> np.ndarray:
    """Return `values` as `plain_array` does, on the host."""
    return to_numpy(plain_array(name, values))


def number(name: str, value: object) -> float:
    """Return one real number as Python's, so that it leaves the type of arrays as it is."""
    if np.ndim(value):
        raise ValueError(f"{name}: expected a number, got an array {np.shape(value)}")
    return float(plain_array(name, value))


def real(value: object) -> float:
    """Return one real number as Python's, NaN for all else: no comparison holds for that.

    >>> real(np.float32(0.5)), real("0.5"), real([0.5])
    (0.5, nan, nan)
    """
    try:
        return float(value) if isinstance(value, Real) else number("", value)
    except (ValueError, OverflowError):
        return math.nan


def generator(seed: object) -> np.random.Generator:
    """Return the random numbers of a seed; ValueError for what is none."""
    try:
        return np.random.default_rng(seed)
    except (TypeError, ValueError) as error:
        raise ValueError(f"seed: expected a whole number, 0 or more, got {seed!r}") from error


def plain_like(name: str, values: object, memory: Array) -> Array:
    """Return `values` as `plain_array` does, where `memory` is."""
    array, xp = plain_array(name, values), namespace(memory)
    return array if namespace(array) is xp else xp.asarray(to_numpy(array))


def vectors_as_samples(x: np.ndarray) -> np.ndarray:
    """Return samples (N, ...) as they are, but vectors (N, d) as (N, 1, d)."""
    return x[:, None] if x.ndim == 2 else x


def is_array(values: object) -> bool:
    """Return whether `values` is an array of NumPy itself or of CuPy, and of no subclass."""
    module = sys.modules.get(type(values).__module__.partition(".")[0])
    return type(values) is getattr(module, "ndarray", None)


def any_on_host(name: str, values: object) -> np.ndarray:
    """Return values of any type as a NumPy array; ValueError for what is none, or masked."""
    if isinstance(values, np.ma.MaskedArray):
        raise ValueError(f"{name}: expected plain real numbers, got a masked array")
    try:
        if hasattr(values, "detach") and hasattr(
            values, "cpu"
        ):  # PyTorch's, of which NumPy has no type below float16
            values = values.detach().cpu()
            short = values.is_floating_point() and values.element_size() < 4
            values = values.double() if short else values
        return np.asarray(values)
    except Exception as error:
        said = " ".join(str(error).split())
        got = f"a {type(values).__name__}: {said}"
        raise ValueError(f"{name}: expected plain real numbers, got {got}") from error


def _kind(values: object, array: Array) -> str:
    """Return in words what came instead of numbers."""
    if array.dtype.kind != "O":
        return str(array.dtype)
    hint = ", which .astype(float) may convert" if hasattr(values, "astype") else ""
    return f"objects in a {type(values).__name__}{hint}"


def float_type(name: str, dtype: object) -> np.dtype:
    """Return float32 or float64 as a type of NumPy; ValueError for any other.

    >>> float_type("dtype", "float32")
    dtype('float32')
    """
    try:
        found = np.dtype(object if dtype is None else dtype)
    except TypeError:
        found = np.dtype(object)
    if found not in FLOATS:
        got = getattr(dtype, "__name__", dtype)
        raise ValueError(f"{name}: expected float32 or float64, got {got}")
    return found


def overwrite(name: str, memory: Array, values: object) -> None:
    """Write values of the same shape, or one number, to `memory`; ValueError for others."""
    values = plain_like(name, values, memory)
    if values.shape not in (memory.shape, ()):
        raise ValueError(f"{name}: expected numbers {memory.shape}, got {values.shape}")
    memory[...] = values


def whole(n: object) -> int | None:
    """Return the whole number that `n` is, as Python's; None for bool, floats and all else.

    >>> whole(np.int64(2)), whole(2.0), whole(True)
    (2, None, None)
    """
    try:
        return None if isinstance(n, bool | np.bool_) else operator.index(n)
    except TypeError:
        return None


def whole_number(name: str, n: object, low: int = 1, high: int | None = None) -> int:
    """Return a whole number from `low` to `high` as Python's, or raise ValueError."""
    found = whole(n)
    if found is None or found < low or (high is not None and found > high):
        expected = f", {low} or more" if high is None else f" in {low}..{high}"
        raise ValueError(f"{name}: expected a whole number{expected}, got {n!r}")
    return found
