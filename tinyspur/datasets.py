"""Image classification sets: the bundled Fashion-MNIST images, CIFAR-10, and NPZ files.

Damaged or unsafe files are refused with a ValueError of one line that names the file.
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import importlib.resources
import io
import os
import pickle
import posixpath
import re
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike
from tqdm import tqdm

CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
CIFAR10_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
# fmt: off
CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)
# fmt: on
DATA_VARIABLE = "TINYSPUR_DATA"

_PYTHON_BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))
_BINARY_BATCHES = tuple(f"{name}.bin" for name in _PYTHON_BATCHES)
_PYTHON_META, _BINARY_META = "batches.meta", "batches.meta.txt"
_FILES = (*_BINARY_BATCHES, _BINARY_META, *_PYTHON_BATCHES, _PYTHON_META)
_ARCHIVE_SUFFIXES = (".tar.gz", ".tgz", ".tar")
_RECORD_BYTES = 1 + 3 * 32 * 32
_MAX_FILE_BYTES = 64 * 2**20
_MAX_ARCHIVE_BYTES = 512 * 2**20
_MAX_UNNAMED_CLASSES = 100_000

_ATTEMPTS = 5
_TIMEOUT_SECONDS = 30.0
_BACKOFF_SECONDS = 0.5


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Labelled images: `images` (N, C, H, W), uint8 or floating, and `labels` (N,), int64.

    ValueError if a shape or type is another, a pixel not finite or a label without class name.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        images, labels = np.asarray(self.images), np.asarray(self.labels)
        names = tuple(self.class_names)
        floating = np.issubdtype(images.dtype, np.floating)
        if images.ndim != 4 or images.size == 0:
            raise ValueError(f"expected images of shape (N, C, H, W), none 0, got {images.shape}")
        if images.dtype != np.uint8 and not floating:
            raise ValueError(f"expected uint8 or floating images, got dtype {images.dtype}")
        bad = np.count_nonzero(~np.isfinite(images), axis=(1, 2, 3)) if floating else np.zeros(1)
        if bad.any():
            raise ValueError(
                f"expected finite images, got {bad.sum()} pixels that are NaN or infinite, "
                f"the first of them in sample {bad.nonzero()[0][0]}"
            )
        if labels.shape != (len(images),):
            raise ValueError(f"expected labels of shape ({len(images)},), got {labels.shape}")
        if not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(f"expected integer labels, got dtype {labels.dtype}")
        if not names or not all(isinstance(name, str) for name in names):
            raise ValueError(f"expected one or more class names, all str, got {names!r}")
        outside = np.flatnonzero((labels < 0) | (labels >= len(names)))
        if outside.size:
            raise ValueError(
                f"expected labels from 0 to {len(names) - 1}, "
                f"got {labels[outside[0]]} in sample {outside[0]}"
            )
        object.__setattr__(self, "images", images)
        object.__setattr__(self, "labels", labels.astype(np.int64))
        object.__setattr__(self, "class_names", names)

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        return f"{self.name}: {len(self)} images {self.input_shape}, {self.classes} classes"

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """The shape (C, H, W) of one image."""
        return self.images.shape[1:]

    @property
    def classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)

    def pixels(self, dtype: DTypeLike = np.float64) -> np.ndarray:
        """Return the images as a new float array (N, C, H, W), uint8 ones divided by 255.

        ValueError if `dtype` is not floating, or too narrow for a pixel.
        """
        dtype = np.dtype(dtype)
        if not np.issubdtype(dtype, np.floating):
            raise ValueError(f"{self.name}: expected a floating dtype for pixels, got {dtype}")
        with np.errstate(over="ignore"):
            pixels = self.images.astype(dtype)
        if not np.isfinite(pixels).all():
            raise ValueError(f"{self.name}: expected pixels within {dtype}, got larger ones")
        if self.images.dtype == np.uint8:
            pixels /= 255
        return pixels

    def subset(self, samples: int, seed: int) -> Dataset:
        """Return `samples` distinct samples drawn with `seed`, in their original order.

        ValueError if `samples` is not an integer from 1 to N.
        """
        if not isinstance(samples, int | np.integer) or not 1 <= samples <= len(self):
            raise ValueError(f"{self.name}: expected 1 to {len(self)} samples, got {samples!r}")
        if samples == len(self):
            return self
        drawn = np.random.default_rng(seed).choice(len(self), size=samples, replace=False)
        drawn.sort()
        return replace(self, images=self.images[drawn], labels=self.labels[drawn])


def load(path: str | os.PathLike | None = None) -> Dataset:
    """Read an NPZ file, or CIFAR-10 from a folder or archive.

    Without `path` it is $TINYSPUR_DATA, else CIFAR-10 in the cache folder, else the bundled images;
    the name of the data set says which. ValueError if what is read is not valid, OSError if
    `path` or $TINYSPUR_DATA does not exist or cannot be read.
    """
    given = path if path is not None else os.environ.get(DATA_VARIABLE)
    if given and str(given).lower().endswith(".npz"):
        return load_npz(given)
    found = find_cifar10(path)
    return bundled() if found is None else load_cifar10(found)


def bundled() -> Dataset:
    """Return the 4,000 bundled Fashion-MNIST images (4000, 1, 28, 28), 400 of each class.

    >>> bundled()
    Fashion-MNIST (4,000 bundled images): 4000 images (1, 28, 28), 10 classes
    """
    resource = importlib.resources.files(__package__) / "data" / "fashion_mnist_4000.npz"
    with importlib.resources.as_file(resource) as path:
        return replace(load_npz(path), name="Fashion-MNIST (4,000 bundled images)")


def load_npz(path: str | os.PathLike) -> Dataset:
    """Read `images` (N, C, H, W), `labels` (N,) and, if there, `class_names` from an NPZ file.

    ValueError if it is damaged, holds pickles, lacks an array or is no valid `Dataset`, OSError
    if it cannot be opened.
    """
    path = Path(path).expanduser()
    with open(path, "rb") as file, _naming(f"{path}:"):
        with (
            _naming("expected an NPZ file of plain arrays, got"),
            np.load(file, allow_pickle=False) as npz,
        ):
            wanted = {"images", "labels", "class_names"} & set(npz.files)
            arrays = {key: npz[key] for key in wanted}
        for key in ("images", "labels"):
            if key not in arrays:
                raise ValueError(f"expected arrays 'images' and 'labels', got no {key!r}")
        for key, array in arrays.items():
            if not isinstance(array, np.ndarray):
                raise ValueError(f"expected an array {key!r}, got {type(array).__name__}")
        images, labels = arrays["images"], arrays["labels"]
        names = arrays["class_names"] if "class_names" in arrays else _numbers(labels)
        if names.ndim != 1 or names.dtype.kind != "U":
            raise ValueError(
                f"expected class_names to be a list of strings, got {names.dtype} {names.shape}"
            )
        return Dataset(path.stem, images, labels, tuple(names.tolist()))


def _numbers(labels: np.ndarray) -> np.ndarray:
    """Return the strings "0", "1", ... up to the largest label."""
    largest = int(labels.max()) if labels.size and labels.dtype.kind in "iu" else 0
    if largest >= _MAX_UNNAMED_CLASSES:
        raise ValueError(
            f"expected labels below {_MAX_UNNAMED_CLASSES} without class_names, "
            f"got {largest} in sample {labels.argmax()}"
        )
    return np.arange(max(largest, 0) + 1).astype(str)


def cache_folder() -> Path:
    """Return the folder for downloads, $XDG_CACHE_HOME/tinyspur or ~/.cache/tinyspur."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "tinyspur"


def find_cifar10(path: str | os.PathLike | None = None) -> Path | None:
    """Find the folder or archive with CIFAR-10 in `path`, $TINYSPUR_DATA or the cache folder.

    The first of the three that is given decides; None says that the cache folder holds none.
    FileNotFoundError if `path` or $TINYSPUR_DATA does not exist, ValueError if it holds none.
    """
    variable = os.environ.get(DATA_VARIABLE)
    if path is None and not variable:
        return _search(cache_folder())
    where, asked = (Path(path), "") if path is not None else (Path(variable), f"{DATA_VARIABLE}=")
    where = where.expanduser()
    if where.is_file() and where.name.lower().endswith(_ARCHIVE_SUFFIXES):
        return where
    found = _search(where)
    if found is None:
        error, got = ValueError, "a folder with none of them" if where.is_dir() else "another file"
        if not where.exists():
            error, got = FileNotFoundError, "a path that does not exist"
        raise error(
            f"{asked}{where}: expected a CIFAR-10 archive ({', '.join(_ARCHIVE_SUFFIXES)}) or a "
            "folder with data_batch_1.bin or data_batch_1, cifar-10-batches-bin, "
            f"cifar-10-batches-py, cifar-10-binary.tar.gz or cifar-10-python.tar.gz, got {got}"
        )
    return found


def _search(folder: Path) -> Path | None:
    """Return where in `folder` CIFAR-10 lies, the binary format first, or None."""
    for place, batches in (
        (folder, _BINARY_BATCHES),
        (folder / "cifar-10-batches-bin", _BINARY_BATCHES),
        (folder, _PYTHON_BATCHES),
        (folder / "cifar-10-batches-py", _PYTHON_BATCHES),
    ):
        if any((place / name).is_file() for name in batches):
            return place
    stems = ("cifar-10-binary", "cifar-10-python")
    archives = [folder / f"{stem}{suffix}" for stem in stems for suffix in _ARCHIVE_SUFFIXES]
    return next((archive for archive in archives if archive.is_file()), None)


def load_cifar10(path: str | os.PathLike | None = None) -> Dataset:
    """Read the CIFAR-10 training images (50000, 3, 32, 32) that `find_cifar10` finds.

    ValueError if a batch is missing or damaged or an archive has unsafe members, OSError if
    CIFAR-10 is not found or cannot be read.
    """
    found = find_cifar10(path)
    if found is None:
        raise FileNotFoundError(f"{cache_folder()}: expected CIFAR-10 in this folder, got none")
    files = _folder_files(found) if found.is_dir() else _archive_files(found)
    binary = any(name in files for name in _BINARY_BATCHES)
    meta, parse_meta = (_BINARY_META, _binary_meta) if binary else (_PYTHON_META, _python_meta)
    names, parts = CIFAR10_CLASSES, []
    with _naming(f"{found}:"):
        if meta in files:
            with _naming(f"{meta}:"):
                names = parse_meta(files[meta])
                if len(names) != len(CIFAR10_CLASSES):
                    raise ValueError(f"expected ten class names, got {len(names)}")
        for name in _BINARY_BATCHES if binary else _PYTHON_BATCHES:
            if name not in files:
                raise ValueError(f"expected all five training batches of CIFAR-10, got no {name}")
            with _naming(f"{name}:"):
                images, labels = (_binary_batch if binary else _python_batch)(files[name])
                parts.append(Dataset(name, images.reshape(-1, 3, 32, 32), labels, names))
    images, labels = (np.concatenate([getattr(p, k) for p in parts]) for k in ("images", "labels"))
    return Dataset("CIFAR-10", images, labels, names)


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


def _unpickle(content: bytes, *keys: bytes) -> tuple[Any, ...]:
    """Return some entries of a pickled dictionary without running anything that it names."""
    with _naming("expected a pickle of numeric arrays and plain containers, got"):
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
    binary = any((folder / name).is_file() for name in _BINARY_BATCHES)
    names = _FILES[:6] if binary else _FILES[6:]
    paths = [folder / name for name in names if (folder / name).is_file()]
    for path in paths:
        _check_size(path.stat().st_size, path)
    return {path.name: path.read_bytes() for path in paths}


def _check_size(size: int, where: object) -> None:
    if size > _MAX_FILE_BYTES:
        raise ValueError(f"{where}: expected at most {_MAX_FILE_BYTES} bytes, got {size}")


def _archive_files(path: Path) -> dict[str, bytes]:
    """Read the training batches and meta files of a tar archive, all of whose members are safe."""
    files: dict[str, bytes] = {}
    with open(path, "rb") as file, _naming(f"{path}:"):
        with _naming("truncated or tampered, expected a tar archive, got"):
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


@contextmanager
def _naming(cause: str) -> Iterator[None]:
    """Turn any exception that damaged data provokes into a one-line ValueError, `cause` first."""
    try:
        yield
    except Exception as error:
        said = str(error) if isinstance(error, ValueError) else f"{type(error).__name__} {error}"
        raise ValueError(f"{cause} {' '.join(said.split())}") from error


def download_cifar10(
    folder: str | os.PathLike | None = None,
    url: str = CIFAR10_URL,
    md5: str = CIFAR10_MD5,
    progress: bool = True,
) -> Path:
    """Fetch the binary CIFAR-10 archive into `folder`, by default the cache folder.

    What a broken download left is resumed, and the file gets its name only once its checksum is
    right. ValueError if the checksum is another, OSError if the server refuses, the connection
    keeps breaking or the folder cannot be written.
    """
    folder = cache_folder() if folder is None else Path(folder).expanduser()
    target = folder / "cifar-10-binary.tar.gz"
    part = folder / "cifar-10-binary.tar.gz.part"
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
    failure: object = None
    for attempt in range(_ATTEMPTS):
        time.sleep(_BACKOFF_SECONDS * attempt)
        have = part.stat().st_size if part.exists() else 0
        try:
            with _connect(url, have) as response:
                span = response.headers.get("Content-Range", "")
                partial = response.status == 206
                if response.status == 416 or (partial and not span.startswith(f"bytes {have}-")):
                    if have and _md5(part) == md5:
                        return
                    part.unlink(missing_ok=True)
                    failure = f"asked for the bytes from {have}, got {span!r}"
                    continue
                start = have if partial else 0
                length = response.headers.get("Content-Length", "")
                total = start + int(length) if length.isdigit() else None
                _save(response, part, start, total, progress)
                return
        except ConnectionError as error:
            failure = error
    have = part.stat().st_size if part.exists() else 0
    raise ConnectionError(
        f"{url}: expected {total or 'an unknown number of'} bytes, got {have} ({failure}); "
        f"running again resumes from {part}"
    )


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
