"""Files: how they are written and read, and what of others they may replace.

Every file is written to a temporary name and renamed, so that it appears whole or not at all. A
function that is given a path replaces what is there, as those of NumPy do. A program that chooses
the names itself first makes sure that it replaces only what it wrote.
"""

from __future__ import annotations

import itertools
import json
import os
import tempfile
import zipfile
from collections.abc import Collection, Container, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np

MARK = "tinyspur"  # in figures: the program that wrote them
WRITTEN = "a file that can be written"
LONGEST = 600  # characters of what is wrong with data, which may be quoted in it


@contextmanager
def naming(cause: str) -> Iterator[None]:
    """Turn any exception that damaged data provoke into a ValueError of one line, `cause` first."""
    try:
        yield
    except Exception as error:
        said = str(error) if isinstance(error, ValueError) else f"{type(error).__name__} {error}"
        said = " ".join(said.split())
        said = said if len(said) <= LONGEST else f"{said[:LONGEST]} ..."
        raise ValueError(f"{cause} {said}") from error


def as_path(path: object) -> Path:
    """Return a path; ValueError for what is none, as the number of an open file."""
    if isinstance(path, str | os.PathLike):
        return Path(path)
    raise ValueError(f"path: expected a str or a Path, got a {type(path).__name__}")


@contextmanager
def whole_file(path: str | Path) -> Iterator[IO[bytes]]:
    """Open a file that gets the name `path` once it is complete; after an error nothing is left.

    Raises an OSError that names `path` where it can't be written, or is a folder, device or pipe.
    """
    path = as_path(path)
    with naming_the_file(path):
        check_file(path, WRITTEN)
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


def check_file(path: str | Path, expected: str) -> None:
    """Raise OSError for a folder, a device or a pipe: root could put a file in its place."""
    path = as_path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path}: expected {expected}, got a folder")
    if path.exists() and not path.is_file():
        raise OSError(f"{path}: expected {expected}, got a device or a pipe")


@contextmanager
def naming_the_file(path: Path) -> Iterator[None]:
    """Name `path` in the system's errors; others that are an OSError have words of their own."""
    try:
        yield
    except OSError as error:
        if error.strerror is None:
            raise
        got = f"'{error.strerror}'"
        if isinstance(error, FileExistsError | NotADirectoryError):
            got = "a file in place of its folder"
        elif isinstance(error, IsADirectoryError):
            got = "a folder"
        raise type(error)(f"{path}: expected {WRITTEN}, got {got}") from error


def kept_name(path: str | Path) -> Path:
    """Return the name that `keep` will give to `path`: earlier-1-NAME, or with the next number."""
    names = (Path(path).with_name(f"earlier-{n}-{Path(path).name}") for n in itertools.count(1))
    return next(name for name in names if not os.path.lexists(name))


def keep(path: str | Path) -> None:
    """Give what is at `path`, if anything, a name that no later file of that name replaces."""
    if os.path.lexists(path):
        os.rename(path, kept_name(path))


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


def check_outputs(folder: str | Path, files: Mapping[str, Collection[str]]) -> None:
    """Raise OSError unless these files can be written to `folder` and replace only their like.

    `files` are names, each with what `check_replaceable` knows such a file by.
    """
    check_writable(folder)
    for name, parts in files.items():
        check_replaceable(Path(folder) / name, parts)


def check_replaceable(path: str | Path, parts: Collection[str] = ()) -> None:
    """Raise OSError for a folder or device, and for a file that is not one of ours.

    A file of ours has all of these `parts`, arrays of an NPZ or keys of a JSON object; without any
    it is a figure. In an empty file there is nothing to lose.
    """
    path = Path(path)
    if not path.exists():
        return
    check_file(path, "a file")
    own = set(parts) <= _parts(path) if parts else MARK.encode() in path.read_bytes()
    if path.stat().st_size and not own:
        raise FileExistsError(
            f"{path}: expected no file, or one of an earlier run, which is replaced, got another "
            "one: move it away, or choose another place"
        )


def _parts(path: Path) -> set[str]:
    """Return the names of the arrays of an NPZ, or the keys of a JSON object, if it is either."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                return {name.removesuffix(".npy") for name in archive.namelist()}
        found = json.loads(path.read_bytes())
    except (ValueError, zipfile.BadZipFile, RecursionError):
        return set()
    return set(found) if isinstance(found, dict) else set()


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
            return {
                key: _plain(arrays, key) for key in arrays.files if wanted is None or key in wanted
            }


def _plain(arrays: Mapping[str, np.ndarray], key: str) -> np.ndarray:
    try:
        return arrays[key]
    except ValueError as error:
        if "Object arrays" not in str(error):
            raise
        raise ValueError(
            f"pickled objects as {key!r}; strings are saved as .astype(str)"
        ) from error


def _open_npz(path: str | Path) -> IO[bytes]:
    """Return the open file, or raise an OSError that says what is there instead."""
    path = as_path(path)
    try:
        other = path.exists() and not path.is_file() and not path.is_dir()
        if not other:
            return open(path, "rb")
    except OSError as error:
        got = f"'{error.strerror}'"
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            got = "a path that does not exist"
        elif isinstance(error, IsADirectoryError):
            got = "a folder"
        raise type(error)(f"{path}: expected an NPZ file, got {got}") from error
    raise OSError(f"{path}: expected an NPZ file, got a device or a pipe")  # it may never end


def write_json(path: str | Path, report: dict) -> None:
    """Write `report` as JSON; NaN and infinity are refused."""
    with whole_file(path) as file:
        file.write((json.dumps(report, indent=2, allow_nan=False) + "\n").encode())
