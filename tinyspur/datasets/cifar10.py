"""The official CIFAR-10 files: where they lie, how they are read safely, how they are fetched.

Both formats are read, from a folder or a tar archive, without unpacking anything to disk and
without running what a pickle names.
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import io
import os
import pickle
import posixpath
import re
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Container, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from ..files import naming

CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
CIFAR10_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
# fmt: off
CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)
# fmt: on
ARCHIVE_SUFFIXES = (".tar.gz", ".tgz", ".tar")

_RECORD_BYTES = 1 + 3 * 32 * 32
_MAX_FILE_BYTES = 64 * 2**20
_MAX_ARCHIVE_BYTES = 512 * 2**20

_ATTEMPTS = 5
_TIMEOUT_SECONDS = 30.0
_BACKOFF_SECONDS = 0.5


def search(path: Path) -> Path | None:
    """Return `path` if it is an archive, else where in this folder CIFAR-10 lies, or None.

    The binary format comes first, and folders come before archives.
    """
    if path.is_file() and path.name.lower().endswith(ARCHIVE_SUFFIXES):
        return path
    for place, batches in (
        (path, _BINARY.batches),
        (path / "cifar-10-batches-bin", _BINARY.batches),
        (path, _PYTHON.batches),
        (path / "cifar-10-batches-py", _PYTHON.batches),
    ):
        if any((place / name).is_file() for name in batches):
            return place
    stems = ("cifar-10-binary", "cifar-10-python")
    archives = [path / f"{stem}{suffix}" for stem in stems for suffix in ARCHIVE_SUFFIXES]
    return next((archive for archive in archives if archive.is_file()), None)


def read(path: Path) -> Iterator[tuple[str, np.ndarray, np.ndarray, tuple[str, ...]]]:
    """Yield name, images (n, 3, 32, 32), labels and the ten class names of each training batch.

    `path` is a folder or archive that `search` found. The labels are as they were stored, for
    the caller to check. ValueError if a batch is missing or damaged or an archive has unsafe
    members, OSError if it cannot be read.
    """
    files = _folder_files(path) if path.is_dir() else _archive_files(path)
    form, class_names = _format_of(files), CIFAR10_CLASSES
    with naming(f"{path}:"):
        if form.meta in files:
            with naming(f"{form.meta}:"):
                class_names = form.read_meta(files[form.meta])
                if len(class_names) != len(CIFAR10_CLASSES):
                    raise ValueError(f"expected ten class names, got {len(class_names)}")
        for name in form.batches:
            if name not in files:
                raise ValueError(f"expected all five training batches of CIFAR-10, got no {name}")
            with naming(f"{name}:"):
                images, labels = form.read_batch(files[name])
                images = images.reshape(-1, 3, 32, 32)
            yield name, images, labels, class_names


def _binary_batch(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    if not content or len(content) % _RECORD_BYTES:
        raise ValueError(
            f"truncated, expected a multiple of {_RECORD_BYTES} bytes, got {len(content)}"
        )
    records = np.frombuffer(content, dtype=np.uint8).reshape(-1, _RECORD_BYTES)
    return records[:, 1:], records[:, 0]


def _binary_meta(content: bytes) -> tuple[str, ...]:
    return tuple(line.strip() for line in content.decode().splitlines() if line.strip())


def _python_batch(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    data, labels = _unpickle(content, b"data", b"labels")
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape[1:] != (3072,):
        got = f"{data.dtype} {data.shape}" if isinstance(data, np.ndarray) else type(data).__name__
        raise ValueError(f"expected data to be a uint8 array (n, 3072), got {got}")
    return data, np.asarray(labels)


def _python_meta(content: bytes) -> tuple[str, ...]:
    (names,) = _unpickle(content, b"label_names")
    if not isinstance(names, list) or not all(isinstance(name, bytes) for name in names):
        raise ValueError(f"expected label_names to be a list of bytes, got {names!r:.80}")
    return tuple(name.decode() for name in names)


class _Format(NamedTuple):
    """The files of one of the two formats, and what reads their contents."""

    batches: tuple[str, ...]
    meta: str
    read_batch: Callable[[bytes], tuple[np.ndarray, np.ndarray]]
    read_meta: Callable[[bytes], tuple[str, ...]]


_NAMES = tuple(f"data_batch_{i}" for i in range(1, 6))
_PYTHON = _Format(_NAMES, "batches.meta", _python_batch, _python_meta)
_BINARY = _Format(
    tuple(f"{name}.bin" for name in _NAMES), "batches.meta.txt", _binary_batch, _binary_meta
)
_FILES = (*_BINARY.batches, _BINARY.meta, *_PYTHON.batches, _PYTHON.meta)


def _format_of(files: Container[str]) -> _Format:
    return _BINARY if any(name in files for name in _BINARY.batches) else _PYTHON


def _unpickle(content: bytes, *keys: bytes) -> tuple[Any, ...]:
    """Return some entries of a pickled dictionary without running anything that it names."""
    with naming("expected a pickle of numeric arrays and plain containers, got"):
        entries = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    if not isinstance(entries, dict) or any(key not in entries for key in keys):
        raise ValueError(f"expected a pickled dictionary with {keys}, got {entries!r:.80}")
    values = (entries[key] for key in keys)
    return tuple(value.value if isinstance(value, _Array) else value for value in values)


class _Unpickler(pickle.Unpickler):
    """Admits numeric arrays and plain containers; imports nothing."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("numpy", "dtype"):
            return _Dtype
        if (module, name) == ("numpy", "ndarray"):
            return _Array
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return _Array
        if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes for Python 2
            return lambda text, encoding: _latin1(text, encoding)  # fresh, as a pickle can alter it
        raise ValueError(f"{module}.{name}")


class _Dtype:
    """What a pickle gets for numpy.dtype: numbers only."""

    def __init__(self, kind: str | bytes, *_: object) -> None:
        kind = kind.decode("latin1") if isinstance(kind, bytes) else kind
        if not re.fullmatch("[biuf][0-9]{1,2}", kind):
            raise ValueError(f"an array of dtype {kind!r}")
        self.value = np.dtype(kind)

    def __setstate__(self, state: tuple) -> None:
        order = state[1].decode("latin1") if isinstance(state[1], bytes) else state[1]
        self.value = self.value.newbyteorder(order)


class _Array:
    """What a pickle gets for numpy.ndarray, so that NumPy sees no unchecked state."""

    value: np.ndarray | None = None

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, content = state
        if not isinstance(dtype, _Dtype) or not isinstance(content, bytes):
            raise ValueError("an array without plain bytes")
        flat = np.frombuffer(content, dtype=dtype.value)
        self.value = flat.reshape(shape, order="F" if fortran else "C")


def _latin1(text: str, encoding: str) -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise ValueError(f"_codecs.encode to {encoding!r}")
    return text.encode("latin1")


def _folder_files(folder: Path) -> dict[str, bytes]:
    """Read the training batches and meta file of one format, the binary one if it is there."""
    present = [name for name in _FILES if (folder / name).is_file()]
    form = _format_of(present)
    paths = [folder / name for name in present if name in (*form.batches, form.meta)]
    for path in paths:
        _check_size(path.stat().st_size, path)
    return {path.name: path.read_bytes() for path in paths}


def _check_size(size: int, where: object) -> None:
    if size > _MAX_FILE_BYTES:
        raise ValueError(f"{where}: expected at most {_MAX_FILE_BYTES} bytes, got {size}")


def _archive_files(path: Path) -> dict[str, bytes]:
    """Read the training batches and meta files of a tar archive, all of whose members are safe."""
    files: dict[str, bytes] = {}
    with open(path, "rb") as file, naming(f"{path}:"):
        with naming("truncated or tampered, expected a tar archive, got"):
            content = _unpacked(file)
            with tarfile.open(fileobj=content, mode="r:") as archive:
                members = archive.getmembers()
                content.seek(archive.offset)
            rest = content.read()
            if not rest or rest.strip(b"\0"):
                raise ValueError(f"no end of the archive after {members[-1].name!r}")
        for member in members:
            _check_member(member)
        for member in members:
            name = posixpath.basename(member.name)
            if name not in _FILES:
                continue
            if not member.isreg() or member.issparse() or name in files:
                raise ValueError(f"expected {name} once, as a plain file, got {member.name!r}")
            _check_size(member.size, name)
            content.seek(member.offset_data)
            files[name] = content.read(member.size)
    return files


def _unpacked(file: io.BufferedReader) -> io.BytesIO:
    """Return a tar archive in memory, decompressed if need be with its checksum verified."""
    compressed = file.peek(2)[:2] == b"\x1f\x8b"
    content = io.BytesIO()
    with gzip.GzipFile(fileobj=file) if compressed else file as stream:
        while chunk := stream.read(2**20):
            content.write(chunk)
            if content.tell() > _MAX_ARCHIVE_BYTES:
                raise ValueError(f"more than {_MAX_ARCHIVE_BYTES} bytes")
    content.seek(0)
    return content


def _check_member(member: tarfile.TarInfo) -> None:
    """Refuse a device, or a member whose name or link points out of the archive."""
    name, link = member.name.replace("\\", "/"), member.linkname.replace("\\", "/")
    if not (member.isreg() or member.isdir() or member.issym() or member.islnk()):
        raise ValueError(f"expected files and folders, got {member.name!r}, a device or pipe")
    if member.issym():  # relative to the folder that it lies in; a hard link to the archive
        link = posixpath.normpath(posixpath.join(posixpath.dirname(name), link))
    for target in (name, link):
        if re.match(r"/|[A-Za-z]:", target) or ".." in target.split("/"):
            linked = f" linked to {member.linkname!r}" if member.linkname else ""
            raise ValueError(f"expected members inside the archive, got {member.name!r}{linked}")


def download(folder: Path, url: str, md5: str, progress: bool) -> Path:
    """Fetch `url`, the binary archive, into `folder` and return its path there.

    It is written to a .part file, which a later call resumes, and gets its name once its MD5 is
    `md5`. ValueError if it is another, OSError if the server refuses, the connection keeps
    breaking or the folder cannot be written.
    """
    target = folder / "cifar-10-binary.tar.gz"
    part = folder / f"{target.name}.part"
    if target.is_file() and _md5(target) == md5.lower():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    _fetch(url, part, md5.lower(), progress)
    actual = _md5(part)
    if actual != md5.lower():
        part.unlink()
        raise ValueError(f"{url}: expected MD5 {md5}, got {actual}; the download was removed")
    os.replace(part, target)
    return target


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def _fetch(url: str, part: Path, md5: str, progress: bool) -> None:
    """Bring `url` into the file `part`, resuming what is there and retrying broken connections."""
    total: int | None = None
    for attempt in range(_ATTEMPTS):
        time.sleep(_BACKOFF_SECONDS * attempt)
        have = _size(part)
        try:
            with _connect(url, have) as response:
                span = response.headers.get("Content-Range", "")
                partial = response.status == 206
                if response.status == 416 or (partial and not span.startswith(f"bytes {have}-")):
                    if have and _md5(part) == md5:
                        return
                    part.unlink(missing_ok=True)
                    raise ConnectionError(f"asked for the bytes from {have}, got {span!r}")
                start = have if partial else 0
                length = response.headers.get("Content-Length", "")
                total = start + int(length) if length.isdigit() else None
                _save(response, part, start, total, progress)
                return
        except ConnectionError as error:
            failure = error
    raise ConnectionError(
        f"{url}: expected {total or 'an unknown number of'} bytes, got {_size(part)} ({failure}); "
        f"running again resumes from {part}"
    )


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _connect(url: str, have: int) -> Any:
    """Ask for the bytes of `url` from `have` on; ConnectionError where a retry may help."""
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        return urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:
            return error
        error.close()
        raise OSError(f"{url}: expected an archive, got HTTP status {error.code}") from error
    except (OSError, http.client.HTTPException) as error:
        raise ConnectionError(f"{type(error).__name__}: {error}") from error


def _save(response: Any, part: Path, start: int, total: int | None, progress: bool) -> None:
    """Write a response into `part` from byte `start` on."""
    with (
        open(part, "ab" if start else "wb") as file,
        tqdm(total=total, initial=start, unit="B", unit_scale=True, disable=not progress) as bar,
    ):
        while True:
            try:
                chunk = response.read(2**16)
            except (OSError, http.client.HTTPException) as error:
                raise ConnectionError(f"{type(error).__name__}: {error}") from error
            if not chunk:
                break
            file.write(chunk)
            bar.update(len(chunk))
    if total is not None and part.stat().st_size != total:
        raise ConnectionError("the connection closed early")
