"""An array namespace as strict as a GPU, kept in host memory.

Importing this module in place of ``cupy`` shows whether code that should run
on a device would: its arrays refuse to meet ``numpy.ndarray`` anywhere, and
its functions are those of NumPy that CuPy 13 offers too.  Host data comes in
through :func:`array` and :func:`asarray` only and goes out through
:func:`asnumpy` and :meth:`ndarray.get` only.

Some habits of CuPy that differ from NumPy are kept: a reduction gives a 0-d
array rather than a scalar, ``x[i]`` with integers is a view even when 0-d, a
0-d array is no index of a Python sequence, ufuncs take no lists, reductions
take neither ``where`` nor ``initial``.  Where CuPy is more lenient than
useful (NumPy functions called on its arrays, NumPy index arrays, indices out
of bounds) this module raises.

:func:`transfers` counts the copies between host and device, the implicit ones
of CuPy included.  Numbers that a kernel takes as arguments are no copies.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import scipy.special

__all__ = ["array", "asarray", "asnumpy", "ndarray", "transfers"]

_SCALARS = (bool, int, float, complex, np.generic)

# Attributes of NumPy that are handed through unchanged.
_CONSTANTS = {"pi", "e", "euler_gamma", "inf", "nan", "newaxis"}
_CLASSES = {"dtype", "finfo", "generic", "iinfo"}

# Functions whose result lives on the host: types, shapes and yes-or-no questions.
_HOST_RESULT = {
    *("can_cast", "common_type", "issubdtype", "min_scalar_type", "promote_types", "result_type"),
    *("broadcast_shapes", "ndim", "shape", "size", "iscomplexobj", "isrealobj", "isscalar"),
    *("iterable", "may_share_memory", "shares_memory", "array_repr", "array_str", "array2string"),
}

# Functions of NumPy that CuPy 13 lacks, and some that call back, read or write on the host.
_ABSENT = {
    *("acos", "acosh", "asin", "asinh", "atan", "atan2", "atanh", "bitwise_count", "pow"),
    *("bitwise_invert", "bitwise_left_shift", "bitwise_right_shift", "concat", "permute_dims"),
    *("cumulative_prod", "cumulative_sum", "matrix_transpose", "matvec", "vecdot", "vecmat"),
    *("unique_all", "unique_counts", "unique_inverse", "unique_values", "unstack", "astype"),
    *("asmatrix", "bmat", "block", "einsum_path", "geomspace", "histogram_bin_edges", "insert"),
    *("isdtype", "isnat", "nanpercentile", "nanquantile", "polyder", "polydiv", "polyint"),
    *("put_along_axis", "spacing", "trapezoid", "busday_count", "busday_offset", "is_busday"),
    *("datetime_as_string", "datetime_data", "nested_iters", "get_include", "getbufsize"),
    *("geterr", "geterrcall", "setbufsize", "seterr", "seterrcall", "show_runtime", "info", "test"),
    *("apply_along_axis", "apply_over_axes", "frompyfunc", "fromfunction", "fromiter", "piecewise"),
    *("fromfile", "fromregex", "fromstring", "frombuffer", "from_dlpack", "genfromtxt", "loadtxt"),
    *("load", "save", "savetxt", "savez", "savez_compressed", "set_printoptions"),
}

# Keywords of NumPy's functions and methods that CuPy's do not take.
_NEVER_KEYWORDS = {"where", "initial", "subok", "like"}
_FUNCTION_KEYWORDS = {
    "copyto": {"subok"},
    "einsum": {*_NEVER_KEYWORDS, "out"},
    "packbits": {*_NEVER_KEYWORDS, "axis"},
    "unpackbits": {*_NEVER_KEYWORDS, "axis", "count"},
}
_METHOD_KEYWORDS = {
    "argsort": {*_NEVER_KEYWORDS, "kind"},
    "sort": {*_NEVER_KEYWORDS, "kind"},
    "take": {*_NEVER_KEYWORDS, "mode"},
}

# Methods of ufuncs: CuPy has `outer` for all of them and the rest only for these.
_UFUNC_METHODS = {
    "add": ("at", "reduce", "accumulate", "reduceat"),
    "multiply": ("reduce", "accumulate"),
    "maximum": ("at",),
    "minimum": ("at",),
}

# Functions other than ufuncs that are elementwise, and so take no lists.
_ELEMENTWISE = {"where", "clip", "searchsorted"}

# Functions whose first argument may be a list or tuple without any array in it.
_SEQUENCE_FIRST = {"zeros", "ones", "empty", "full", "indices", *_HOST_RESULT}

# Which argument is a shape or length, for which 0-d device arrays are no integers.
_SHAPE_ARGUMENT = {
    **dict.fromkeys(("zeros", "ones", "empty", "full", "indices", "eye", "identity"), 0),
    **dict.fromkeys(("reshape", "broadcast_to", "tile"), 1),
}

# Functions that CuPy copies lists of numbers to the device for.
_SENDING = {"compress", "delete", "percentile", "put", "quantile", "take"}

# Functions that read on the host how many entries the result has, or its text; counted once.
_READING = {
    *("argwhere", "bincount", "compress", "delete", "extract", "flatnonzero", "histogram"),
    *("intersect1d", "nonzero", "setdiff1d", "setxor1d", "trim_zeros", "union1d", "unique"),
    *("array_repr", "array_str", "array2string"),
}


@dataclass(eq=False)
class Transfers:
    """The numbers of copies to the device and of copies to the host."""

    to_device: int = 0
    to_host: int = 0


_counting: list[Transfers] = []


@contextmanager
def transfers() -> Iterator[Transfers]:
    """Count the transfers in a ``with`` block."""
    count = Transfers()
    _counting.append(count)
    try:
        yield count
    finally:
        _counting.remove(count)


def _to_device(copies: int = 1) -> None:
    for count in _counting:
        count.to_device += copies


def _to_host(copies: int = 1) -> None:
    for count in _counting:
        count.to_host += copies


class _Flags(NamedTuple):
    c_contiguous: bool
    f_contiguous: bool
    owndata: bool


def _new(data: Any) -> ndarray:
    """Return a device array around `data` itself, whose type a device must be able to hold."""
    data = np.asarray(data)
    kind, size = data.dtype.kind, data.dtype.itemsize
    if kind not in "biufc" or size > (16 if kind == "c" else 8):
        raise ValueError(f"Unsupported dtype {data.dtype}")
    self = object.__new__(ndarray)
    self._data = data
    return self


def _has_device_array(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(_has_device_array(item) for item in value)
    return isinstance(value, ndarray)


class _Call:
    """One call to NumPy: takes device arrays apart and puts results together.

    A host array that comes back as it went in (``out=``, or no copy needed)
    becomes the same device array again.
    """

    def __init__(self) -> None:
        self.owners: dict[int, ndarray] = {}

    def inside(self, value: Any) -> Any:
        """Return `value` with its device arrays replaced, refusing any other array."""
        if isinstance(value, ndarray):
            self.owners[id(value._data)] = value
            return value._data
        if isinstance(value, list | tuple):
            items = [self.inside(item) for item in value]
            return items if isinstance(value, list) else tuple(items)
        if hasattr(type(value), "__array__") and not isinstance(value, np.generic):
            raise TypeError(f"Unsupported type {type(value)}")
        return value

    def outside(self, value: Any) -> Any:
        """Return `value` with its arrays and numbers replaced by device arrays."""
        if isinstance(value, list | tuple):
            items = [self.outside(item) for item in value]
            return items if isinstance(value, list) else tuple(items)
        if id(value) in self.owners:
            return self.owners[id(value)]
        return _new(value) if isinstance(value, (np.ndarray, *_SCALARS)) else value

    def __call__(self, function: Callable, *args: Any, **kwargs: Any) -> Any:
        """Return the result of `function`, its arrays on the device."""
        return self.outside(self.raw(function, *args, **kwargs))

    def raw(self, function: Callable, *args: Any, **kwargs: Any) -> Any:
        """Return the result of `function` as NumPy gives it."""
        args = self.inside(args)
        return function(*args, **{key: self.inside(value) for key, value in kwargs.items()})


def _refuse_keywords(name: str, kwargs: dict[str, Any], absent: set[str]) -> None:
    for key in kwargs:
        if key in absent:
            raise TypeError(f"{name}() has no keyword {key!r} on the device")


def _refuse_lists(name: str, args: tuple) -> None:
    for arg in args:
        if isinstance(arg, list | tuple):
            raise TypeError(f"Unsupported type {type(arg)} in {name}()")


def _refuse_arrays(name: str, args: tuple) -> None:
    if _has_device_array(args):
        raise TypeError(f"{name}() takes Python integers, not arrays of type {ndarray}")


def _check_repeats(repeats: Any) -> None:
    if isinstance(repeats, ndarray):
        raise ValueError("repeats must be an int or a list of ints on the device")


class ndarray:
    """An array on the pretended device.

    Parameters
    ----------
    shape : int or tuple of int
        Shape of the new array, whose entries are arbitrary.
    dtype : data-type, optional
        Type of the entries.
    """

    __slots__ = ("__weakref__", "_data")

    __hash__ = None
    __array_priority__ = 100
    # None makes ufuncs raise TypeError, and `host_array + device_array` and
    # `host_scalar + device_array` come to the operators of this class.
    __array_ufunc__ = None

    def __init__(self, shape: int | tuple[int, ...], dtype: Any = float) -> None:
        self._data = _new(np.empty(shape, dtype))._data

    def __array_function__(self, func: Callable, types: Any, args: Any, kwargs: Any) -> Any:
        """Refuse to be an argument of a NumPy function."""
        raise TypeError(f"numpy.{func.__name__} does not take arrays of type {type(self)}")

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Refuse to become a NumPy array unasked."""
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Use .get()")

    def get(self, *, out: np.ndarray | None = None) -> np.ndarray:
        """Return a copy on the host.

        Parameters
        ----------
        out : numpy.ndarray, optional
            Host array to fill in place of a new one.
        """
        if out is None:
            out = np.empty(self.shape, self.dtype)
        if out.shape != self.shape or out.dtype != self.dtype:
            raise ValueError("out must have the shape and type of the device array")
        out[...] = self._data
        _to_host()
        return out

    def set(self, arr: np.ndarray) -> None:
        """Copy the host array `arr`, of equal shape and type, into this array."""
        if not isinstance(arr, np.ndarray):
            raise TypeError("Only a numpy.ndarray can be set to a device array")
        if arr.dtype != self.dtype or arr.shape != self.shape:
            raise ValueError("arr must have the shape and type of the device array")
        self._data[...] = arr
        _to_device()

    @property
    def shape(self) -> tuple[int, ...]:
        """Length of each axis."""
        return self._data.shape

    @property
    def strides(self) -> tuple[int, ...]:
        """Bytes from one entry to the next along each axis."""
        return self._data.strides

    @property
    def dtype(self) -> np.dtype:
        """Type of the entries."""
        return self._data.dtype

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return self._data.ndim

    @property
    def size(self) -> int:
        """Number of entries."""
        return self._data.size

    @property
    def itemsize(self) -> int:
        """Bytes of an entry."""
        return self._data.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of all entries."""
        return self._data.nbytes

    @property
    def flags(self) -> _Flags:
        """Memory layout."""
        flags = self._data.flags
        return _Flags(flags.c_contiguous, flags.f_contiguous, flags.owndata)

    @property
    def T(self) -> ndarray:
        """View with the axes in reverse order."""
        return _new(self._data.T)

    def item(self) -> bool | int | float | complex:
        """Return the only entry as a Python number."""
        return self.get().item()

    def tolist(self) -> Any:
        """Return nested lists of Python numbers."""
        return self.get().tolist()

    def __bool__(self) -> bool:
        return bool(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __complex__(self) -> complex:
        return complex(self.item())

    def __len__(self) -> int:
        return len(self._data)

    def __iter__(self) -> Iterator[ndarray]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        return f"strict_device.{self.get()!r}"

    def __str__(self) -> str:
        return str(self.get())

    def __format__(self, spec: str) -> str:
        return format(self.get(), spec)

    def __copy__(self) -> ndarray:
        return _new(self._data.copy())

    def __deepcopy__(self, memo: dict) -> ndarray:
        return _new(self._data.copy())

    def __getitem__(self, key: Any) -> ndarray:
        key = key if isinstance(key, tuple) else (key,)
        result = self._data[_index(key)]
        _count_index(key)
        return _new(result.copy() if any(isinstance(k, list | ndarray) for k in key) else result)

    def __setitem__(self, key: Any, value: Any) -> None:
        key = key if isinstance(key, tuple) else (key,)
        inside = value
        if isinstance(value, ndarray):
            inside = value._data
        elif not isinstance(value, _SCALARS) and not (
            isinstance(value, np.ndarray) and value.ndim == 0
        ):
            raise TypeError(f"Unsupported type {type(value)}")
        self._data[_index(key)] = inside
        _count_index(key, value)


def _index(key: tuple) -> tuple:
    """Return the index `key` for a host array, such that integers give 0-d views."""
    inside = _Call().inside(key)
    return inside if any(k is Ellipsis for k in key) else (*inside, Ellipsis)


def _count_index(key: tuple, value: Any = None) -> None:
    """Count the copies for indices that give no view, and for a number that is set there."""
    advanced = [k for k in key if isinstance(k, list | tuple | bool | np.bool_ | ndarray)]
    masks = [k for k in advanced if np.asarray(_Call().inside(k)).dtype == bool]
    number = bool(advanced) and isinstance(value, (np.ndarray, *_SCALARS))
    _to_device(sum(not _has_device_array(k) for k in advanced) + number)
    _to_host(len(masks))


def _count_call(name: str, args: tuple) -> None:
    """Count the copies for a call of CuPy's function or method `name`."""
    if name in _READING or (name == "where" and len(args) == 1):
        _to_host()
    if name in _SENDING:
        lists = (arg for arg in args if isinstance(arg, list | tuple))
        _to_device(sum(not _has_device_array(arg) for arg in lists))


def _unary(name: str) -> Callable:
    function = getattr(operator, name)
    return lambda self: _new(function(self._data))


def _binary(ufunc: np.ufunc, reflected: bool = False) -> Callable:
    def operation(self: ndarray, other: Any) -> Any:
        _refuse_lists(ufunc.__name__, (other,))
        if not isinstance(other, ndarray) and getattr(other, "__array_ufunc__", other) is None:
            return NotImplemented  # it has operators of its own for arrays
        return _Call()(ufunc, *((other, self) if reflected else (self, other)))

    return operation


def _in_place(ufunc: np.ufunc) -> Callable:
    def operation(self: ndarray, other: Any) -> ndarray:
        _refuse_lists(ufunc.__name__, (other,))
        return _Call()(ufunc, self, other, out=self)

    return operation


def _method(name: str) -> Callable:
    def method(self: ndarray, *args: Any, **kwargs: Any) -> Any:
        _refuse_keywords(name, kwargs, _METHOD_KEYWORDS.get(name, _NEVER_KEYWORDS))
        if name == "repeat":
            _check_repeats(kwargs.get("repeats", args[0] if args else None))
        if name == "reshape":
            _refuse_arrays(name, args)
        result = _Call()(getattr(np.ndarray, name), self, *args, **kwargs)
        _count_call(name, args)
        return result

    method.__name__ = name
    return method


for _name in ("neg", "pos", "abs", "invert"):
    setattr(ndarray, f"__{_name}__", _unary(_name))

for _name, _ufunc in {
    "lt": np.less,
    "le": np.less_equal,
    "eq": np.equal,
    "ne": np.not_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}.items():
    setattr(ndarray, f"__{_name}__", _binary(_ufunc))

for _name, _ufunc in {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "truediv": np.true_divide,
    "floordiv": np.floor_divide,
    "mod": np.remainder,
    "pow": np.power,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "lshift": np.left_shift,
    "rshift": np.right_shift,
    "divmod": np.divmod,
    "matmul": np.matmul,
}.items():
    setattr(ndarray, f"__{_name}__", _binary(_ufunc))
    setattr(ndarray, f"__r{_name}__", _binary(_ufunc, reflected=True))
    if _name not in ("divmod", "matmul"):
        setattr(ndarray, f"__i{_name}__", _in_place(_ufunc))

for _name in (
    *("all", "any", "argmax", "argmin", "argpartition", "argsort", "astype", "clip", "conj"),
    *("copy", "cumprod", "cumsum", "diagonal", "dot", "fill", "flatten", "max", "mean", "min"),
    *("nonzero", "partition", "prod", "ravel", "repeat", "reshape", "round", "sort", "squeeze"),
    *("std", "sum", "swapaxes", "take", "trace", "transpose", "var", "view"),
):
    setattr(ndarray, _name, _method(_name))


def array(
    obj: Any,
    dtype: Any = None,
    copy: bool | None = True,
    *,
    order: str | None = "K",
    ndmin: int = 0,
) -> ndarray:
    """Return a device array made from numbers, nested lists, host or device arrays.

    Parameters
    ----------
    obj : array_like
        Where the entries come from; host and device arrays do not mix.
    dtype : data-type, optional
        Type of the entries, by default that of `obj`.
    copy : bool or None, optional
        Whether a device array is copied, or only if needed (None).
        Anything from the host always is.
    order : {"K", "A", "C", "F"}, optional
        Memory layout.
    ndmin : int, optional
        Least number of axes.
    """
    if _has_device_array(obj):
        return _Call()(np.array, obj, dtype=dtype, copy=copy, order=order, ndmin=ndmin)
    result = _new(np.array(obj, dtype=dtype, order=order, ndmin=ndmin))
    _to_device()
    return result


def asarray(a: Any, dtype: Any = None, order: str | None = None) -> ndarray:
    """Return `a` itself if it is a device array of that type and layout, else a new one.

    Parameters
    ----------
    a : array_like
        Where the entries come from.
    dtype : data-type, optional
        Type of the entries, by default that of `a`.
    order : {"K", "A", "C", "F"}, optional
        Memory layout.
    """
    if _has_device_array(a):
        return _Call()(np.asarray, a, dtype=dtype, order=order)
    return array(a, dtype, order=order)


def asnumpy(a: Any) -> np.ndarray:
    """Return `a`, which may be a device array, as an array on the host."""
    return a.get() if isinstance(a, ndarray) else np.asarray(a)


def _check_arguments(name: str, args: tuple, kwargs: dict[str, Any]) -> None:
    """Raise for arguments that the NumPy function `name` takes and CuPy's does not."""
    _refuse_keywords(name, kwargs, _FUNCTION_KEYWORDS.get(name, _NEVER_KEYWORDS))
    if name in _ELEMENTWISE or isinstance(getattr(np, name), np.ufunc):
        _refuse_lists(name, args)
    elif name not in _SEQUENCE_FIRST and not _has_device_array(args[:1]):
        _refuse_lists(name, args[:1])
    if name in _SHAPE_ARGUMENT:
        _refuse_arrays(name, args[_SHAPE_ARGUMENT[name] :][:1])
    if name in ("sort", "argsort") and kwargs.get("kind") not in (None, "stable"):
        raise ValueError("kind can only be None or 'stable'")
    if name == "searchsorted" and not all(isinstance(arg, ndarray) for arg in args[:2]):
        raise TypeError("searchsorted() takes device arrays only")
    if name == "repeat":
        _check_repeats(kwargs.get("repeats", args[1] if len(args) > 1 else None))


@cache
def _function(name: str) -> Callable:
    """Return NumPy's function `name` for device arrays."""
    function = getattr(np, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        _check_arguments(name, args, kwargs)
        call = _Call()
        result = (call.raw if name in _HOST_RESULT else call)(function, *args, **kwargs)
        _count_call(name, args)
        return result

    wrapped.__name__ = name
    if isinstance(function, np.ufunc) and function.signature is None:
        for method in ("outer", *_UFUNC_METHODS.get(name, ())):
            setattr(wrapped, method, _ufunc_method(function, method))
    return wrapped


def _ufunc_method(ufunc: np.ufunc, name: str) -> Callable:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        _refuse_keywords(name, kwargs, _NEVER_KEYWORDS)
        _refuse_lists(name, args[:1])
        result = _Call()(getattr(ufunc, name), *args, **kwargs)
        if name == "at":
            _count_index(args[1] if isinstance(args[1], tuple) else args[1:2], *args[2:])
        return result

    return wrapped


def _special(ufunc: np.ufunc) -> Callable:
    def wrapped(*args: Any) -> ndarray:
        _refuse_lists(ufunc.__name__, args)
        return _Call()(ufunc, *args)

    return wrapped


def _softmax(x: ndarray, axis: int | tuple[int, ...] | None = None) -> ndarray:
    _refuse_lists("softmax", (x,))
    return _Call()(scipy.special.softmax, x, axis=axis)


# In the place of ``cupyx.scipy.special``.
special = SimpleNamespace(
    **{name: _special(getattr(scipy.special, name)) for name in ("erf", "erfc", "expit", "ndtr")},
    softmax=_softmax,
)


def _as_strided(x: ndarray, shape: Any = None, strides: Any = None) -> ndarray:
    return _Call()(np.lib.stride_tricks.as_strided, x, shape, strides)


lib = SimpleNamespace(stride_tricks=SimpleNamespace(as_strided=_as_strided))


def _is_device_type(value: Any) -> bool:
    """Whether `value` is a scalar type of NumPy that arrays on a device can have."""
    if not isinstance(value, type) or not issubclass(value, np.bool_ | np.number):
        return False
    return value not in (np.longdouble, np.clongdouble)


def __getattr__(name: str) -> Any:
    value = getattr(np, name, None)
    if name in _CONSTANTS or name in _CLASSES or _is_device_type(value):
        return value
    private = name.startswith("_") or name in _ABSENT
    if private or not callable(value) or isinstance(value, type):
        raise AttributeError(f"the device has no attribute {name!r}")
    return _function(name)
