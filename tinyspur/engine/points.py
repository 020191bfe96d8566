"""Points as NPZ files, with the network that they belong to."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from ..files import naming, read_arrays, whole_file
from .network import Network
from .parameters import Parameters, check_points


def save_point(path: str | Path, theta: Parameters) -> None:
    """Write a point as NPZ: `spec` (JSON) and W1, b1, W2, ... in PyTorch's shapes.

    Raises ValueError, and writes nothing, for what `load_point` could not read again: a network
    with an activation of your own, and numbers that are NaN or infinite.
    """
    check_points(None, theta)
    for key, array in theta.arrays().items():
        if not np.isfinite(array).all():
            raise ValueError(f"{path}: not written, since {key} has NaN or infinite values")
    spec = json.dumps(theta.net.spec)
    with naming(f"{path}: not written, since its network can't be read from JSON:"):
        Network.from_spec(spec)
    with whole_file(path) as file:
        np.savez(file, spec=np.array(spec), **theta.arrays())


def load_point(path: str | Path) -> Parameters:
    """Return the point that `save_point` wrote; its network is ``theta.net``.

    Raises ValueError for a file that is damaged, holds pickles, or whose arrays are missing,
    surplus, not finite, or of other shapes or types; OSError if it can't be opened.
    """
    arrays = read_arrays(path)
    if "spec" not in arrays:
        raise ValueError(f"{path}: expected an array 'spec', got {sorted(arrays)}")
    with naming(f"{path}:"):
        net = Network.from_spec(str(arrays.pop("spec")))
        types = {array.dtype for array in arrays.values()}
        if not types <= {np.dtype(np.float64), np.dtype(np.float32)} or len(types) > 1:
            raise ValueError(
                f"expected arrays all float64 or all float32, got {sorted(map(str, types))}"
            )
        theta = net.zeros(dtype=types.pop() if types else np.float64)
        expected = theta.arrays()
        if set(arrays) != set(expected):
            raise ValueError(f"expected arrays {sorted(expected)}, got {sorted(arrays)}")
        for key, view in expected.items():
            if arrays[key].shape != view.shape:
                raise ValueError(f"expected {key} {view.shape}, got {arrays[key].shape}")
            if not np.isfinite(arrays[key]).all():
                raise ValueError(f"{key} has NaN or infinite values")
            view[...] = arrays[key]
    return theta
