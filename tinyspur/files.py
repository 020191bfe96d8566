"""Files: how they are written and read.

Every file is written to a temporary name and renamed, so that it appears whole or not at all.
"""

from __future__ import annotations

import json
import os
import tempfile
import zipfile
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np


@contextmanager
def naming(cause: str) -> Iterator[None]:
    """Turn any exception that damaged data provoke into a ValueError of one line, `cause` first."""
    try:
        yield
    except Exception as error:
        said = str(error) if isinstance(error, ValueError) else f"{type(error).__name__} {error}"
        raise ValueError(f"{cause} {' '.join(said.split())}") from error


@contextmanager
def whole_file(path: str | Path) -> Iterator[IO[bytes]]:
    """Open a file that gets the name `path` once it is complete; after an error nothing is left."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    try:
        with open(name, "wb") as file:
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


def read_arrays(path: str | Path, wanted: Container[str] | None = None) -> dict[str, np.ndarray]:
    """Return the arrays of an NPZ file, those that are `wanted` or all of them.

    Raises ValueError if the file is damaged or one of these arrays is pickled, OSError if it can't
    be opened.
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
