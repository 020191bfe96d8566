"""Every test of the data sets has a cache folder of its own."""

import numpy as np
import pytest
from data_files import ARCHIVE, batches, write_archive
from shared import CIFAR10_SAMPLE


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch):
    """An empty cache folder, no variable."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("TINYSPUR_DATA", raising=False)


@pytest.fixture(scope="module")
def sample():
    """Return the arrays of 20 images of CIFAR-10."""
    with np.load(CIFAR10_SAMPLE) as npz:
        return {key: npz[key] for key in npz.files}


@pytest.fixture
def archive(tmp_path, sample):
    """Return a binary archive of them."""
    return write_archive(tmp_path / ARCHIVE, batches(sample, "bin"))
