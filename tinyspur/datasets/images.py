"""Labelled images and samples: the bundled ones, those of NPZ files, and CIFAR-10."""

from __future__ import annotations

import importlib.resources
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

from ..engine.plain import any_on_host, whole
from ..files import as_path, naming, read_arrays
from . import cifar10
from .cifar10 import cache_folder
from .samples import TrainingSet, draw

DATA_VARIABLE = "TINYSPUR_DATA"
BUNDLED_NAME = "Fashion-MNIST (4,000 bundled images)"

_MAX_UNNAMED_CLASSES = 100_000


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Labelled images: `images` (N, C, H, W), uint8 or floating, and `labels` (N,), int64.

    `notes` say in words how the arrays of a file were read, where that isn't plain. Raises
    ValueError for other shapes or types, for pixels that are not finite, and for a label without a
    class name.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        images = any_on_host("images", self.images)
        labels = any_on_host("labels", self.labels)
        names = tuple(self.class_names)
        floating = np.issubdtype(images.dtype, np.floating)
        if images.ndim != 4 or images.size == 0:
            raise ValueError(f"expected images of shape (N, C, H, W), none 0, got {images.shape}")
        if images.dtype != np.uint8 and not floating:
            raise ValueError(
                f"expected uint8 or floating images, got dtype {images.dtype}; "
                "pixels 0 to 255 are images.astype(np.uint8)"
            )
        bad = np.count_nonzero(~np.isfinite(images), axis=(1, 2, 3)) if floating else np.zeros(1)
        if bad.any():
            raise ValueError(
                f"expected finite images, got {bad.sum()} pixels that are NaN or infinite, "
                f"the first of them in sample {bad.nonzero()[0][0]}"
            )
        if labels.shape != (len(images),):
            one_hot = labels.ndim == 2 and len(labels) == len(images)
            hint = "; if they are one-hot, labels.argmax(axis=1)" * one_hot
            raise ValueError(f"expected labels of shape ({len(images)},), got {labels.shape}{hint}")
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

        Raises ValueError if `samples` is not an integer from 1 to N.
        """
        with naming(f"{self.name}:"):
            drawn = draw(len(self), samples, seed)
        if samples == len(self):
            return self
        return replace(self, images=self.images[drawn], labels=self.labels[drawn])

    def principal_components(self, dimensions: int) -> np.ndarray:
        """Return the scores (N, 1, d) of the first d principal components, the first of variance 1.

        ValueError unless d is an integer from 1 to the rank of the centred images.
        """
        flat = self.pixels().reshape(len(self), -1)
        scores, sizes, _ = np.linalg.svd(flat - flat.mean(axis=0), full_matrices=False)
        rank = int((sizes > 1e-9 * max(np.linalg.norm(flat), np.finfo(float).tiny)).sum())
        d = whole(dimensions)
        if d is None or not 1 <= d <= rank:
            raise ValueError(f"{self.name}: expected 1 to {rank} dimensions, got {dimensions!r}")
        scaled = scores[:, :d] * (sizes[:d] / sizes[0] * len(self) ** 0.5)
        return scaled[:, None]


def load(path: str | os.PathLike | None = None) -> Dataset:
    """Read an NPZ file, or CIFAR-10 from a folder or archive.

    Without `path` the data come from $TINYSPUR_DATA if that is set, else from CIFAR-10 in the cache
    folder, else from the bundled images; the name of the data set says which. Raises ValueError for
    data that are not valid, OSError where `path` or $TINYSPUR_DATA does not exist or can't be read.
    """
    given = _given(path)
    if given is not None and str(given).lower().endswith(".npz"):
        try:
            return load_npz(given)
        except OSError as error:
            if path is None:
                raise type(error)(f"{DATA_VARIABLE}={error}") from error
            raise
    found = find_cifar10(path)
    return bundled() if found is None else load_cifar10(found)


def _given(path: str | os.PathLike | None) -> str | os.PathLike | None:
    """Return `path`, else $TINYSPUR_DATA, else None."""
    return path if path is not None else os.environ.get(DATA_VARIABLE) or None


def bundled() -> Dataset:
    """Return the 4,000 bundled Fashion-MNIST images (4000, 1, 28, 28), 400 of each class.

    >>> bundled()
    Fashion-MNIST (4,000 bundled images): 4000 images (1, 28, 28), 10 classes
    """
    resource = importlib.resources.files(__package__) / "data" / "fashion_mnist_4000.npz"
    with importlib.resources.as_file(resource) as path:
        return replace(load_npz(path), name=BUNDLED_NAME)


def load_npz(path: str | os.PathLike) -> Dataset:
    """Read `images` (N, C, H, W), `labels` (N,) and, if there, `class_names` from an NPZ file.

    Images (N, H, W) get a channel. Channels come first, or last where only that can be meant: 3 or
    4 of them, or 1 on square images, with more than 4 rows and columns. Labels are whole numbers,
    also as floats or bool, or strings, and may be (N, 1). Strings, -1 and 1, and labels > 0 are
    numbered: their values are the names of the classes, unless there are K `class_names` and labels
    up to K. The data set's `notes` say so, and where floating pixels go from 0 to more than 1, as
    only uint8 is divided by 255. ValueError if the file is damaged, holds pickles, lacks
    an array or is no valid `Dataset`, OSError if it cannot be opened.
    """
    path = as_path(path).expanduser()
    arrays = read_arrays(path, ("images", "labels", "class_names"))
    with naming(f"{path}:"):
        for key in ("images", "labels"):
            if key not in arrays:
                raise ValueError(f"expected arrays 'images' and 'labels', got no {key!r}")
        for key, array in arrays.items():
            if not isinstance(array, np.ndarray):
                raise ValueError(f"expected an array {key!r}, got {type(array).__name__}")
        images, labels = arrays["images"], arrays["labels"]
        images, notes = _with_channels_first(images)
        notes += _scale(images)
        labels = labels[:, 0] if labels.shape[1:] == (1,) else labels
        labels, names, note = _from_zero(_plain_labels(labels), arrays.get("class_names"))
        notes += note
        names = _numbers(labels) if names is None else names
        if names.ndim != 1 or names.dtype.kind != "U":
            raise ValueError(
                f"expected class_names to be a list of strings, got {names.dtype} {names.shape}"
            )
        return Dataset(path.stem, images, labels, tuple(names.tolist()), notes)


def _with_channels_first(images: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return images (N, C, H, W), and in words what was done for that."""
    if images.ndim == 3:
        return images[:, None], (f"images {images.shape} are read as (N, H, W), of one channel",)
    if images.ndim != 4:
        return images, ()
    _, rows, columns, channels = images.shape
    last = channels in (3, 4) or (channels == 1 and rows == columns)
    if not (last and min(rows, columns) > 4):
        return images, ()
    first = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    return first, (f"images {images.shape} are read as (N, H, W, C), channels last",)


def _scale(images: np.ndarray) -> tuple[str, ...]:
    """Return in words that floating pixels from 0 to more than 1, as of 8 bits, are not scaled."""
    if images.dtype.kind != "f" or not images.size or not images.min() >= 0 or images.max() <= 1:
        return ()
    return (f"floating pixels up to {images.max():.6g} are taken as they are, not divided by 255",)


def _plain_labels(labels: np.ndarray) -> np.ndarray:
    """Return bool, and floats that are all whole, as int64; other labels as they are."""
    if labels.dtype.kind not in "bf":
        return labels
    numbers = labels.astype(np.float64)
    exact = ((numbers == np.trunc(numbers)) & (abs(numbers) < 2**53)).all()
    return numbers.astype(np.int64) if exact else labels


def _from_zero(
    labels: np.ndarray, names: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray | None, tuple[str, ...]]:
    """Return labels that begin with 0, and the names of the classes; in words what was done.

    Labels that could mean something else are returned as they are.
    """
    if labels.ndim != 1 or not labels.size:
        return labels, names, ()
    values, numbers = np.unique(labels, return_inverse=True)
    said, kind = f"labels {values[0]}..{values[-1]}", labels.dtype.kind
    positive = kind in "iu" and values[0] > 0
    if names is None and (positive or kind in "US" or values.tolist() == [-1, 1]):
        note = f"{said}, {len(values)} of them, are classes 0..{len(values) - 1} with these names"
        return numbers, values.astype(str), (note,)
    if names is not None and positive and names.shape == (values[-1],):
        return labels - 1, names, (f"{said} count from 1, they are classes 0..{values[-1] - 1}",)
    return labels, names, ()


def load_samples(path: str | os.PathLike) -> TrainingSet | None:
    """Read arrays x and y from an NPZ file, unscaled; None if `path` is no file of this kind.

    ValueError if it is damaged, holds x and y beside images and labels, or is no valid
    `TrainingSet`, OSError if it cannot be opened.
    """
    path = as_path(path).expanduser()
    if path.suffix.lower() != ".npz":
        return None
    arrays = read_arrays(path)
    with naming(f"{path}:"):
        samples = arrays.keys() >= {"x", "y"}
        if samples == (arrays.keys() >= {"images", "labels"}):
            raise ValueError(
                f"expected arrays x and y, or images and labels, got {', '.join(sorted(arrays))}"
            )
        if not samples:
            return None
        if arrays["x"].dtype == np.uint8:  # nothing would scale them
            raise ValueError(
                "expected an array of floats 'x', got uint8: bytes of images go into images, with "
                "labels"
            )
        found = TrainingSet(arrays["x"], arrays["y"])
        return TrainingSet(found.x.astype(np.float64), found.y.astype(np.float64))


def _numbers(labels: np.ndarray) -> np.ndarray:
    """Return the strings "0", "1", ... up to the largest label."""
    largest = int(labels.max()) if labels.size and labels.dtype.kind in "iu" else 0
    if largest >= _MAX_UNNAMED_CLASSES:
        raise ValueError(
            f"expected labels below {_MAX_UNNAMED_CLASSES} without class_names, "
            f"got {largest} in sample {labels.argmax()}"
        )
    return np.arange(max(largest, 0) + 1).astype(str)


def find_cifar10(path: str | os.PathLike | None = None) -> Path | None:
    """Find the folder or archive with CIFAR-10 in `path`, $TINYSPUR_DATA or the cache folder.

    It looks only in the first of the three that is given, and returns None if that is the cache
    folder and holds no CIFAR-10. Raises FileNotFoundError if `path` or $TINYSPUR_DATA does not
    exist, ValueError if it holds no CIFAR-10.
    """
    given = _given(path)
    if given is None:
        return cifar10.search(cache_folder())
    where = as_path(given).expanduser()
    found = cifar10.search(where)
    if found is None:
        error, got = ValueError, "another file (load reads an .npz of images, too)"
        got = "a folder with none of them" if where.is_dir() else got
        if not where.exists():
            error, got = FileNotFoundError, "a path that does not exist"
        elif cifar10.is_cifar100(where):
            got = "CIFAR-100"
        raise error(
            f"{DATA_VARIABLE + '=' if path is None else ''}{where}: expected a CIFAR-10 archive "
            f"({', '.join(cifar10.ARCHIVE_SUFFIXES)}) or a folder with data_batch_1.bin or "
            "data_batch_1, cifar-10-batches-bin, cifar-10-batches-py, cifar-10-binary.tar.gz or "
            f"cifar-10-python.tar.gz, got {got}"
        )
    return found


def load_cifar10(path: str | os.PathLike | None = None) -> Dataset:
    """Read the CIFAR-10 training images (50000, 3, 32, 32) that `find_cifar10` finds.

    ValueError if a batch is missing or damaged or an archive has unsafe members, OSError if
    CIFAR-10 is not found or cannot be read.
    """
    found = find_cifar10(path)
    if found is None:
        raise FileNotFoundError(f"{cache_folder()}: expected CIFAR-10 in this folder, got none")
    parts = []
    for name, images, labels, class_names in cifar10.read(found):
        with naming(f"{found}: {name}:"):
            parts.append(Dataset(name, images, labels, class_names))
    images, labels = (np.concatenate([getattr(p, k) for p in parts]) for k in ("images", "labels"))
    return Dataset("CIFAR-10", images, labels, parts[0].class_names)
