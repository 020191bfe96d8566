"""What a REPL user sees of the package first."""

import re

import numpy as np
from shared import ROOT, run_python

import tinyspur as ts


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
    done = run_python("-m", "tinyspur", "--version")
    assert done.stdout == f"tinyspur {ts.__version__}\n"
    assert f'__version__ = "{ts.__version__}"' in (ROOT / "tinyspur" / "__init__.py").read_text()
    assert "version = attr: tinyspur.__version__" in (ROOT / "setup.cfg").read_text()


def test_the_data_sets_are_there_without_another_import():
    done = run_python("-c", "import tinyspur as ts; print(len(ts.datasets.bundled()))")
    assert done.stdout == "4000\n"


def test_no_import_of_the_package_needs_pytorch_or_matplotlibs_windows():
    code = "import sys, tinyspur; print('torch' in sys.modules, 'matplotlib.pyplot' in sys.modules)"
    assert run_python("-c", code).stdout == "False False\n"


def test_a_star_import_gives_what_dir_shows():
    found = {}
    exec("from tinyspur import *", found)
    assert set(ts.__all__) <= set(found)
    assert isinstance(found["one_hot"]([0, 1], 2), np.ndarray)
