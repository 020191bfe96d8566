"""The official CIFAR-10 files: where they lie, how they are read safely, how they are fetched.

Both formats are read, from a folder or a tar archive. Nothing is unpacked to disk, and nothing
that a pickle names is imported or run.
"""

from __future__ import annotations

import gzip
import io
import os
import pickle
import posixpath
import re
import sys
import tarfile
from collections.abc import Callable, Container, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..console import silent, step
from ..files import check_writable, keep, kept_name, naming, whole_file

CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
CIFAR10_ARCHIVE = "cifar-10-binary.tar.gz"
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
_TIMEOUT_SECONDS = 30.0


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
    the caller to check. ValueError if a batch is missing, damaged or of another length than the
    others, if it is CIFAR-100, or an archive has unsafe members; OSError if it cannot be read.
    """
    files = _folder_files(path) if path.is_dir() else _archive_files(path)
    form, class_names, length, found = _format_of(files), CIFAR10_CLASSES, None, {}
    with naming(f"{path}:"):
        if form.meta in files:
            with naming(f"{form.meta}:"):
                class_names, length = form.read_meta(files[form.meta])
                if len(class_names) != len(CIFAR10_CLASSES):
                    raise ValueError(f"expected ten class names, got {len(class_names)}")
        for name in form.batches:
            if name not in files:
                raise ValueError(f"expected all five training batches of CIFAR-10, got no {name}")
            with naming(f"{name}:"):
                images, labels = form.read_batch(files[name])
                found[name] = images.reshape(-1, 3, 32, 32), labels
        why = "as in another batch" if length is None else f"as {form.meta} says"
        length = max(len(images) for images, _ in found.values()) if length is None else length
        for name, (images, _) in found.items():
            if len(images) != length:
                raise ValueError(f"{name}: expected {length} images, {why}, got {len(images)}")
    for name, (images, labels) in found.items():
        yield name, images, labels, class_names


def _binary_batch(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    if content and not len(content) % (_RECORD_BYTES + 1):
        raise ValueError(f"expected CIFAR-10, got {len(content)} bytes, as records of CIFAR-100")
    if not content or len(content) % _RECORD_BYTES:
        raise ValueError(
            f"truncated, expected a multiple of {_RECORD_BYTES} bytes, got {len(content)}"
        )
    records = np.frombuffer(content, dtype=np.uint8).reshape(-1, _RECORD_BYTES)
    return records[:, 1:], records[:, 0]


def _binary_meta(content: bytes) -> tuple[tuple[str, ...], None]:
    return tuple(line.strip() for line in content.decode().splitlines() if line.strip()), None


def _python_batch(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    entries = _unpickle(content, "data", "labels")
    data, labels = entries["data"], entries["labels"]
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape[1:] != (3072,):
        got = f"{data.dtype} {data.shape}" if isinstance(data, np.ndarray) else type(data).__name__
        raise ValueError(f"expected data to be a uint8 array (n, 3072), got {got}")
    return data, np.asarray(labels)


def _python_meta(content: bytes) -> tuple[tuple[str, ...], int | None]:
    entries = _unpickle(content, "label_names")
    names, length = entries["label_names"], entries.get("num_cases_per_batch")
    if not isinstance(names, list) or not all(isinstance(name, bytes | str) for name in names):
        raise ValueError(f"expected label_names to be a list of strings, got {names!r:.80}")
    names = tuple(name.decode() if isinstance(name, bytes) else name for name in names)
    return names, None if length is None else int(length)


class _Format(NamedTuple):
    """The files of one of the two formats, and what reads their contents."""

    batches: tuple[str, ...]
    meta: str
    read_batch: Callable[[bytes], tuple[np.ndarray, np.ndarray]]
    read_meta: Callable[[bytes], tuple[tuple[str, ...], int | None]]  # and images of a batch


_NAMES = tuple(f"data_batch_{i}" for i in range(1, 6))
_PYTHON = _Format(_NAMES, "batches.meta", _python_batch, _python_meta)
_BINARY = _Format(
    tuple(f"{name}.bin" for name in _NAMES), "batches.meta.txt", _binary_batch, _binary_meta
)
_FILES = (*_BINARY.batches, _BINARY.meta, *_PYTHON.batches, _PYTHON.meta)


def _format_of(files: Container[str]) -> _Format:
    return _BINARY if any(name in files for name in _BINARY.batches) else _PYTHON


def _unpickle(content: bytes, *keys: str) -> dict[str, Any]:
    """Return a pickled dictionary that has these keys, without running anything that it names.

    Python 2 wrote keys as bytes; who pickled it again may have made them strings.
    """
    with naming("expected a pickle of numeric arrays and plain containers, got"):
        found = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    entries = found if isinstance(found, dict) else {}
    entries = {k.decode("latin1") if isinstance(k, bytes) else k: v for k, v in entries.items()}
    if not entries.keys() >= set(keys):
        if entries.keys() & {"fine_labels", "fine_label_names"}:
            raise ValueError("expected CIFAR-10, got CIFAR-100")
        raise ValueError(f"expected a pickled dictionary with {keys}, got {found!r:.80}")
    return {k: v.value if isinstance(v, _Array) else v for k, v in entries.items()}


class _Unpickler(pickle.Unpickler):
    """Admits numeric arrays and plain containers; imports nothing."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("numpy", "dtype"):
            return _Dtype
        if (module, name) == ("numpy", "ndarray"):
            return _Array
        place = module.replace("numpy._core.", "numpy.core."), name
        if place == ("numpy.core.multiarray", "_reconstruct"):
            return _Array
        # A new function each time, since a pickle could change the attributes of a shared one.
        if place == ("numpy.core.numeric", "_frombuffer"):  # protocol 5
            return lambda *state: _Array.of(*state)
        if place == ("numpy.core.multiarray", "scalar"):
            return lambda dtype, content: _Array.of(content, dtype, ()).value[()]
        if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes for Python 2
            return lambda text, encoding: _latin1(text, encoding)
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
        self.value = _Array.of(content, dtype, shape, "F" if fortran else "C").value

    @classmethod
    def of(cls, content: bytes, dtype: _Dtype, shape: tuple, order: str = "C") -> _Array:
        """Return the array of these bytes."""
        if not isinstance(dtype, _Dtype) or not isinstance(content, bytes | bytearray):
            raise ValueError("an array without plain bytes")
        array = cls()
        array.value = np.frombuffer(content, dtype=dtype.value).reshape(shape, order=order)
        return array


def _latin1(text: str, encoding: str) -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise ValueError(f"_codecs.encode to {encoding!r}")
    return text.encode("latin1")


def _folder_files(folder: Path) -> dict[str, bytes]:
    """Read the training batches and meta file of one format, the binary one if both are there."""
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
        if not files and any(_of_cifar100(part) for m in members for part in m.name.split("/")):
            raise ValueError("expected CIFAR-10, got CIFAR-100")
    return files


def is_cifar100(path: Path) -> bool:
    """Return whether a folder or file is one of CIFAR-100, by its name and those beside it."""
    inside = [p.name for p in path.iterdir()] if path.is_dir() else [path.parent.name]
    return any(map(_of_cifar100, (path.name, *inside))) or {"train", "meta"} <= set(inside)


def _of_cifar100(name: str) -> bool:
    return name.startswith("cifar-100") or name == "fine_label_names.txt"


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


def cache_folder() -> Path:
    """Return the folder for downloads, $XDG_CACHE_HOME/tinyspur or ~/.cache/tinyspur."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "tinyspur"


def download_cifar10(
    folder: str | os.PathLike | None = None,
    url: str = CIFAR10_URL,
    md5: str = CIFAR10_MD5,
    progress: bool = True,
) -> Path:
    """Fetch the binary CIFAR-10 archive into `folder`, by default the cache folder.

    Nothing is fetched where it is there with the right MD5. What is fetched takes its name once its
    MD5 is right: a download that fails leaves nothing behind, and what was there as it was. Another
    archive that was there is kept under another name, see `files.keep`.
    ValueError if the MD5 is another, OSError if the server refuses, the connection breaks or the
    folder cannot be written.
    """
    import pooch  # with requests, not needed by those who only read

    target = (cache_folder() if folder is None else Path(folder).expanduser()) / CIFAR10_ARCHIVE
    if target.is_file() and pooch.file_hash(str(target), "md5") == md5.lower():
        return target
    check_writable(target.parent)
    with whole_file(target) as file:
        with step(f"downloading {target.name}", 0, unit="B") if progress else silent() as bar:
            options = {"chunk_size": 2**16, "timeout": _TIMEOUT_SECONDS}
            try:
                pooch.HTTPDownloader(bar.drawn or False, **options)(url, file, None)
            except OSError as error:  # as all that requests raises
                got = error.strerror or error
                expected = f"{target}: expected the archive from {url}"
                raise type(error)(f"{expected}, got {got}") from error
        file.flush()
        got = pooch.file_hash(file.name, "md5")
        if got != md5.lower():
            raise ValueError(f"{url}: expected MD5 {md5}, got {got}; the download was removed")
        if target.is_file() and pooch.file_hash(str(target), "md5") != got:
            if progress:
                print(
                    f"{target}, another archive, is kept as {kept_name(target).name}",
                    file=sys.stderr,
                )
            keep(target)
    return target
