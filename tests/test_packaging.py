"""What is installed: the console command, the types, the versions, and how to cite it."""

import configparser
import importlib
import os
import re
import subprocess
import sys

import pytest
import yaml
from shared import ROOT

import tinyspur as ts

SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")
WITHOUT_TYPES = "torch,matplotlib,scipy,distributed,flint,tqdm,pooch,threadpoolctl,cupy"


def test_the_console_command_is_the_program(monkeypatch, capsys):
    name, _, target = SETUP["options.entry_points"]["console_scripts"].strip().partition(" = ")
    module, _, function = target.partition(":")
    assert name == "tinyspur" and callable(getattr(importlib.import_module(module), function))
    monkeypatch.setattr(sys, "argv", ["bin/tinyspur", "inspect", "--help"])
    monkeypatch.setattr("signal.signal", lambda *_: None)  # of this process it changes nothing
    with pytest.raises(SystemExit) as end:
        getattr(importlib.import_module(module), function)()
    assert capsys.readouterr().out.startswith("usage: tinyspur inspect ") and not end.value.code


def test_a_program_with_types_is_accepted_and_its_mistakes_are_not(tmp_path):
    settings = "[mypy]\nstrict = True\nfollow_imports = silent\n"
    skipped = ",".join(f"{name}.*" for name in WITHOUT_TYPES.split(","))
    (tmp_path / "mypy.ini").write_text(f"{settings}[mypy-{skipped}]\nfollow_imports = skip\n")
    command = [sys.executable, "-m", "mypy", "--config-file", tmp_path / "mypy.ini"]
    command += ["--cache-dir", os.devnull, ROOT / "tests" / "user_program.py"]
    there = os.environ | {"MYPYPATH": str(ROOT)}
    done = subprocess.run(command, env=there, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "Success: no issues found in 1 source file\n", done.stdout + done.stderr
    assert (ROOT / "tinyspur" / "py.typed").is_file()
    assert SETUP["options.package_data"]["tinyspur"] == "py.typed"


def test_the_papers_to_cite_are_the_references_of_the_derivations():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    readme = " ".join((ROOT / "tinyspur" / "constructions" / "README.md").read_text().split())
    assert len(citation["references"]) == 3
    for paper in citation["references"]:
        assert f"title = {{{paper['title']}}}" in readme.replace("  ", " ")
        authors = (f"{a['given-names']} {a['family-names']}" for a in paper["authors"])
        assert f"author = {{{' and '.join(authors)}}}" in readme
        assert f"year = {{{paper['year']}}}" in readme
        assert paper.get("doi", paper.get("url")) in readme
    assert citation["license"] == SETUP["metadata"]["license"]


def test_the_changes_begin_with_this_version():
    first = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert first[1].rstrip(",") == ts.__version__


def test_the_versions_of_python_are_those_from_the_least_that_is_required():
    named = re.findall(r"Python :: 3\.(\d+)$", SETUP["metadata"]["classifiers"], re.MULTILINE)
    least = int(SETUP["options"]["python_requires"].removeprefix(">=3."))
    assert [int(minor) for minor in named] == list(range(least, least + len(named)))
    assert least <= sys.version_info.minor


def test_the_run_with_the_lowest_versions_takes_each_from_the_setup():
    pattern = re.search(r"sed -nE '(.*)' setup.cfg", (ROOT / ".ci" / "lowest").read_text())[1]
    lines = [*SETUP["options"]["install_requires"].split("\n")]
    lines += SETUP["options.extras_require"]["test"].split("\n")
    needed = [line for line in lines if line and "==" not in line and line[0] != "#"]
    command = ["sed", "-nE", pattern, ROOT / "setup.cfg"]
    pinned = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    for line in needed:
        name, least = re.match(r"([\w-]+)>=([\d.]+)", line).groups()
        assert f"{name}=={least}" in pinned
