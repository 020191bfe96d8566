"""Tests that need a device run where CuPy finds one; elsewhere the header says that they don't."""

import os
import sys

# The arrays are small: a second thread costs more than it gives, and much more on busy cores.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import pytest
import strict_device
import torch

from tinyspur.backend import select

torch.set_num_threads(1)


def obstacle():
    """Return why there is no device, None if there is one."""
    backend = select("auto")
    return None if backend.name == "cupy" else backend.reason.removeprefix("NumPy: ")


@pytest.fixture(autouse=True)
def special_functions(request, monkeypatch):
    """Take those of the stand-in for a device in all tests but those of a device."""
    if not request.node.get_closest_marker("gpu"):
        monkeypatch.setitem(sys.modules, "cupyx.scipy.special", strict_device.special)


def pytest_report_header():
    """Say that tests are left out, and why."""
    reason = obstacle()
    return f"gpu tests deselected: {reason}" if reason else None


def pytest_collection_modifyitems(config, items):
    """Leave out the tests marked ``gpu`` if there is no device."""
    left_out = [item for item in items if item.get_closest_marker("gpu")]
    if left_out and obstacle():
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
