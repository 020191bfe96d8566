"""NumPy or CuPy: the only module that knows both."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import scipy.special

Array = Any  # numpy.ndarray or cupy.ndarray


class Backend(NamedTuple):
    """An array namespace and the sentence that says why it was taken."""

    name: str
    xp: ModuleType
    reason: str


def select(name: str = "auto") -> Backend:
    """Return the backend called `name`: ``numpy``, ``cupy`` or ``auto``.

    ``auto`` takes CuPy when it is installed and finds a device, NumPy otherwise; `reason` says
    which and why. Raises ValueError for another name, or for ``cupy`` where it can't run.
    """
    if name not in ("auto", "numpy", "cupy"):
        raise ValueError(f"backend: expected 'auto', 'numpy' or 'cupy', got {name!r}")
    if name == "numpy":
        return Backend("numpy", np, "NumPy, as asked")
    obstacle = None
    try:
        import cupy

        devices = cupy.cuda.runtime.getDeviceCount()
        if not devices:
            obstacle = "CuPy finds no device"
    except ImportError:
        obstacle = "CuPy is not installed"
    except Exception as error:  # CuPy's CUDARuntimeError can't be named without CuPy
        obstacle = f"CuPy finds no device ({type(error).__name__})"
    if obstacle is None:
        return Backend("cupy", cupy, f"CuPy, {devices} device{'s' * (devices > 1)} found")
    if name == "cupy":
        raise ValueError(f"backend 'cupy': {obstacle}")
    return Backend("numpy", np, f"NumPy: {obstacle}")


def namespace(x: Array) -> ModuleType:
    """Return the module whose functions take `x`: the one that defines its type, or it names."""
    named = getattr(x, "namespace", None)
    if named is None:
        return sys.modules[type(x).__module__.partition(".")[0]]
    return importlib.import_module(named)


def special(x: Array) -> ModuleType:
    """Return the module of special functions that take `x`: SciPy's or CuPy's."""
    if isinstance(x, (np.ndarray, np.generic)):
        return scipy.special
    if hasattr(x, "namespace"):
        return namespace(x)
    return importlib.import_module("cupyx.scipy.special")


def to_numpy(x: Array) -> np.ndarray:
    """Return `x` on the host; an explicit transfer for a device array, `x` itself otherwise."""
    return x if isinstance(x, (np.ndarray, np.generic)) else x.get()


def all_to_numpy(arrays: Iterable[Array]) -> list[np.ndarray]:
    """Return `arrays` on the host; device arrays in one transfer for each of their types."""
    found = list(arrays)
    xp = namespace(found[0]) if found else np
    if xp is np:
        return found
    for dtype in {x.dtype for x in found}:
        places = [n for n, x in enumerate(found) if x.dtype == dtype]
        ends = np.cumsum([found[n].size for n in places])
        flat = xp.concatenate([found[n].ravel() for n in places])
        for n, part in zip(places, np.split(to_numpy(flat), ends[:-1]), strict=True):
            found[n] = part.reshape(found[n].shape)
    return found
