"""Image classification sets: the bundled Fashion-MNIST images, CIFAR-10, and NPZ files.

Damaged or unsafe files are refused with a ValueError of one line that names the file.
"""

from .cifar10 import CIFAR10_MD5, CIFAR10_URL, cache_folder, download_cifar10
from .images import (
    BUNDLED_NAME,
    DATA_VARIABLE,
    Dataset,
    bundled,
    find_cifar10,
    load,
    load_cifar10,
    load_npz,
    load_samples,
)

__all__ = [
    "BUNDLED_NAME",
    "CIFAR10_MD5",
    "CIFAR10_URL",
    "DATA_VARIABLE",
    "Dataset",
    "bundled",
    "cache_folder",
    "download_cifar10",
    "find_cifar10",
    "load",
    "load_cifar10",
    "load_npz",
    "load_samples",
]
