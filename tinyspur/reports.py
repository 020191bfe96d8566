"""What a run writes: points as NPZ, the report as JSON, and the progress of its stages.

Every file is written to a temporary name and renamed, so that it appears whole or not at all.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np

from .network import Network
from .parameters import Parameters


@contextmanager
def naming(cause: str) -> Iterator[None]:
    """Turn any exception that damaged data provokes into a one-line ValueError, `cause` first."""
    try:
        yield
    except Exception as error:
        said = str(error) if isinstance(error, ValueError) else f"{type(error).__name__} {error}"
        raise ValueError(f"{cause} {' '.join(said.split())}") from error


@contextmanager
def whole_file(path: str | Path) -> Iterator[IO[bytes]]:
    """Open a file that takes the name `path` once it is complete; on an error nothing stays."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)  # it may have its new name already
        raise


def check_writable(folder: str | Path) -> None:
    """Raise OSError unless `folder` is, or can become, a folder that files can be written to."""
    folder = Path(folder)
    existing = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    if not existing.is_dir():
        raise NotADirectoryError(f"output folder {folder}: {existing} is not a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise PermissionError(f"output folder {folder}: no permission to write in {existing}")
    try:
        tempfile.TemporaryFile(dir=existing).close()
    except OSError as error:
        raise type(error)(
            f"output folder {folder}: expected one that files can be written to, got "
            f"'{error.strerror}' in {existing}"
        ) from error


def save_point(path: str | Path, theta: Parameters) -> None:
    """Write a point as NPZ: `spec` (JSON) and W1, b1, W2, ... in PyTorch's shapes.

    Raises ValueError, and writes nothing, for a network that `load_point` could not read again:
    one with an activation of your own.
    """
    spec = json.dumps(theta.net.spec)
    with naming(f"{path}: not written, since its network can't be read from JSON:"):
        Network.from_spec(spec)
    with whole_file(path) as file:
        np.savez(file, spec=np.array(spec), **theta.arrays())


def load_point(path: str | Path) -> Parameters:
    """Return the point that `save_point` wrote; its network is ``theta.net``.

    Raises ValueError for a file that is not such an NPZ: damaged, with pickles, with arrays
    missing, surplus, of other shapes or types or not finite; OSError if it can't be opened.
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


def read_arrays(path: str | Path, wanted: Container[str] | None = None) -> dict[str, np.ndarray]:
    """Return the arrays of an NPZ file, those that are `wanted` or all of them.

    ValueError if the file is damaged, or if one of these arrays is pickled, OSError if it can't be
    opened.
    """
    with _open_npz(path) as file, naming(f"{path}: expected an NPZ of plain arrays, got"):
        if not zipfile.is_zipfile(file):
            raise ValueError("a file of another kind, or a damaged one")
        file.seek(0)
        with np.load(file, allow_pickle=False) as arrays:
            return {key: arrays[key] for key in arrays.files if wanted is None or key in wanted}


def _open_npz(path: str | Path) -> IO[bytes]:
    """Return the open file, or raise an OSError that says what is there instead."""
    try:
        return open(path, "rb")
    except OSError as error:
        got = f"'{error.strerror}'"
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            got = "a path that does not exist"
        elif isinstance(error, IsADirectoryError):
            got = "a folder"
        raise type(error)(f"{path}: expected an NPZ file, got {got}") from error


def write_json(path: str | Path, report: dict) -> None:
    """Write `report` as JSON; NaN and infinity are refused."""
    with whole_file(path) as file:
        file.write((json.dumps(report, indent=2, allow_nan=False) + "\n").encode())


def exit_status(run: Callable[[], None]) -> int:
    """Run a program; return 0, or 2 after one line on stderr for an error in its input."""
    try:
        run()
    except (ValueError, RuntimeError, OSError, MemoryError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


class Stages:
    """Names the stages of a run on stderr as they start, and keeps the seconds that each took.

    On a terminal the seconds count up while a stage runs.
    """

    def __init__(self, stream: IO[str] | None = None):
        self.stream = stream or sys.stderr
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str, text: str, own_line: bool = False) -> Iterator[None]:
        """Time the stage `name`; `own_line` leaves the line to a progress bar."""
        start, done = time.perf_counter(), threading.Event()

        def count() -> None:
            while not done.wait(1):
                seconds = time.perf_counter() - start
                print(f"\r{text} ... {seconds:.0f} s", end="", file=self.stream, flush=True)

        counter = threading.Thread(target=count, daemon=True)
        if not own_line:
            print(f"{text} ...", end="", file=self.stream, flush=True)
            if self.stream.isatty():
                counter.start()
        try:
            yield
            self.seconds[name] = time.perf_counter() - start
        finally:
            done.set()
            if counter.is_alive():
                counter.join()
            if not own_line:
                back = f"\r{text} ..." if self.stream.isatty() else ""
                took = f" {self.seconds[name]:.1f} s" if name in self.seconds else ""
                print(f"{back}{took}", file=self.stream, flush=True)
