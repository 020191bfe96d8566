"""Fixtures that several files use; tests that need what isn't there are left out.

That is a device that CuPy finds, or a version of Python. The header says so.
"""

import functools
import gc
import os
import signal
import sys
from pathlib import Path

# What is imported and collected is kept: to look for garbage among it takes a third of the time.
gc.disable()

# The arrays are small: a second thread costs more than it gives, and much more on busy cores.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import pytest
import strict_device
import torch

from tinyspur.engine.backend import select

pytest.register_assert_rewrite("command_line", "matrix_problems", "shared")
import command_line

torch.set_num_threads(1)

# What tests share has no examples of its own: to look for some would import it a second time.
HERE = Path(__file__).parent
collect_ignore = [path.name for path in HERE.glob("*.py") if not path.name.startswith("test_")]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(params=["stand-in", pytest.param("cupy", marks=pytest.mark.gpu)])
def device(request, monkeypatch):
    """The namespace of a device: CuPy, or a stand-in that refuses hidden transfers."""
    if request.param == "cupy":
        return select("cupy").xp
    monkeypatch.setitem(sys.modules, "cupyx.scipy.special", strict_device.special)
    return strict_device


@pytest.fixture
def surroundings(tmp_path, monkeypatch):
    """An empty cache folder and no variable that names other data."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("TINYSPUR_DATA", raising=False)


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """A folder with points, data sets and files that are neither."""
    folder = tmp_path_factory.mktemp("files")
    command_line.write_files(folder)
    return folder


@pytest.fixture
def in_the_folder(surroundings, files, monkeypatch):
    monkeypatch.chdir(files)


@pytest.fixture
def run(in_the_folder, capsys, tmp_path):
    """Call the program in the folder of the files, see `command_line.called`."""
    return functools.partial(command_line.called, capsys, tmp_path / "new" / "report.json")


def obstacle():
    """Return why there is no device, None if there is one."""
    backend = select("auto")
    return None if backend.name == "cupy" else backend.reason.removeprefix("NumPy: ")


@pytest.fixture(autouse=True)
def special_functions(request, monkeypatch):
    """Take those of the stand-in for a device in all tests but those of a device."""
    if not request.node.get_closest_marker("gpu"):
        monkeypatch.setitem(sys.modules, "cupyx.scipy.special", strict_device.special)


@pytest.fixture(autouse=True)
def one_thread_of_pytorch():
    """Expect that PyTorch still has one after a test: more slow down all that follow."""
    yield
    assert torch.get_num_threads() == 1


def pytest_configure():
    """Let tests raise Ctrl-C, which a shell has ignored by what it starts in the background."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish():
    gc.freeze()
    gc.enable()


def reasons():
    """Return the marks of the tests that are left out, and why."""
    python = "it needs Python before 3.13" if sys.version_info >= (3, 13) else None
    found = {"gpu": obstacle(), "landscaper": python}
    return {mark: reason for mark, reason in found.items() if reason}


def pytest_report_header():
    """Say that tests are left out, and why."""
    return [f"{mark} tests deselected: {reason}" for mark, reason in reasons().items()]


def pytest_collection_modifyitems(config, items):
    """Leave out the tests with a mark whose needs aren't met."""
    marks = reasons()
    left_out = [item for item in items if any(map(item.get_closest_marker, marks))]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
