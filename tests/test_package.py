"""What a REPL user sees of the package first."""

import contextlib
import io
import re

import numpy as np
from shared import ROOT, run_python

import tinyspur as ts
from tinyspur import __main__ as command


def test_dir_shows_the_forty_names_that_matter():
    names = [name for name in dir(ts) if not name.startswith("_")]
    assert names == sorted(names)
    assert names == ts.__all__
    assert len(names) <= 40
    assert all(hasattr(ts, name) for name in names)
    assert all(getattr(ts, name).__doc__ for name in names)


def test_every_name_of_the_readmes_is_there():
    files = ["README.md", "demos/README.md", "tests/README.md", "tinyspur/constructions/README.md"]
    text = "".join((ROOT / name).read_text(encoding="utf-8") for name in files)
    named = set(re.findall(r"\bts\.([A-Za-z_]\w*)", text))
    assert len(named) > 40
    assert not [name for name in named if not hasattr(ts, name)]


def test_the_version_is_that_of_the_distribution():
    assert re.fullmatch(r"\d+\.\d+\.\d+", ts.__version__)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert command.main(["--version"]) == 0
    assert printed.getvalue() == f"tinyspur {ts.__version__}\n"
    assert f'__version__ = "{ts.__version__}"' in (ROOT / "tinyspur" / "__init__.py").read_text()
    assert "version = attr: tinyspur.__version__" in (ROOT / "setup.cfg").read_text()


def test_the_data_sets_are_there_and_what_few_need_is_not_imported():
    """Neither PyTorch nor matplotlib's windows, nor what downloads."""
    code = "import sys, tinyspur as ts; print(ts.datasets.bundled()); "
    code += "print(*{'torch', 'matplotlib.pyplot', 'pooch', 'requests'} & set(sys.modules))"
    done = run_python("-c", code)
    assert (done.stdout, done.stderr) == (f"{ts.datasets.bundled()}\n\n", "")


def test_a_star_import_gives_what_dir_shows():
    found = {}
    exec("from tinyspur import *", found)
    assert set(ts.__all__) <= set(found)
    assert isinstance(found["one_hot"]([0, 1], 2), np.ndarray)
