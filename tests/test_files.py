"""Files are whole or absent, folders are known to be writable, and JSON has finite numbers."""

import json
import os
import re
import stat
from pathlib import Path

import numpy as np
import pytest

from tinyspur.files import check_writable, whole_file, write_json


def content(folder):
    """Return the files below a folder and their bytes."""
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# Whole files


def test_a_file_appears_when_it_is_complete(tmp_path):
    path = tmp_path / "new" / "folder" / "file.txt"
    with whole_file(path) as file:
        file.write(b"half")
        file.flush()
        assert not path.exists()
        file.write(b" and half")
    assert content(tmp_path) == {Path("new/folder/file.txt"): b"half and half"}


def test_a_file_is_replaced_when_the_new_one_is_complete(tmp_path):
    path = tmp_path / "file.txt"
    path.write_bytes(b"old")
    with whole_file(str(path)) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert content(tmp_path) == {Path("file.txt"): b"new"}


@pytest.mark.parametrize("error", [ValueError, OSError, KeyboardInterrupt])
@pytest.mark.parametrize("older", [{}, {Path("file.txt"): b"old"}], ids=["new", "older file"])
def test_an_error_leaves_what_was_there(error, older, tmp_path):
    for name, old in older.items():
        (tmp_path / name).write_bytes(old)
    with pytest.raises(error, match="stop"), whole_file(tmp_path / "file.txt") as file:
        file.write(b"half of the new")
        raise error("stop")
    assert content(tmp_path) == older


def test_a_folder_of_the_same_name_is_not_replaced(tmp_path):
    (tmp_path / "file.txt").mkdir()
    with pytest.raises(OSError), whole_file(tmp_path / "file.txt") as file:
        file.write(b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["file.txt"]
    assert (tmp_path / "file.txt").is_dir()


def test_a_file_has_the_permissions_of_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        with whole_file(tmp_path / "file.txt") as file:
            file.write(b"")
        assert stat.S_IMODE((tmp_path / "file.txt").stat().st_mode) == 0o640
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)


# Folders


@pytest.mark.parametrize("name", ["", "new", "new/and/deeper"])
def test_a_folder_that_can_be_made_is_writable_and_not_made(name, tmp_path):
    check_writable(tmp_path / name)
    check_writable(str(tmp_path / name))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["file", "file/folder", "file/folder/deeper"])
def test_a_path_at_or_below_a_file_is_not_writable(name, tmp_path):
    (tmp_path / "file").write_bytes(b"kept")
    with pytest.raises(NotADirectoryError, match=re.escape(str(tmp_path / "file"))):
        check_writable(tmp_path / name)
    assert content(tmp_path) == {Path("file"): b"kept"}


def test_a_folder_without_permission_is_not_writable(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
    with pytest.raises(PermissionError, match=re.escape(str(tmp_path))):
        check_writable(tmp_path / "new")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a /proc")
def test_a_folder_that_takes_no_files_is_not_writable():
    for folder in ("/proc", "/proc/new"):
        with pytest.raises(OSError, match=f"output folder {folder}: .* /proc"):
            check_writable(folder)


def test_a_relative_folder_is_taken_from_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").write_bytes(b"")
    check_writable("out")
    with pytest.raises(NotADirectoryError):
        check_writable("file/out")


# JSON


def test_a_report_comes_back(tmp_path):
    report = {"risk": 0.1 + 0.2, "name": "Fashion", "points": {"theta": [1, 2.5, None, True]}}
    write_json(tmp_path / "report.json", report)
    text = (tmp_path / "report.json").read_text()
    assert json.loads(text) == report
    assert text.endswith("}\n")


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_a_report_with_a_number_that_is_not_finite_is_refused(number, tmp_path):
    write_json(tmp_path / "report.json", {"risk": 1.0})
    before = content(tmp_path)
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "report.json", {"points": {"theta": [{"risk": number}]}})
    assert content(tmp_path) == before


def test_a_report_with_an_array_is_refused_and_leaves_nothing(tmp_path):
    with pytest.raises(TypeError):
        write_json(tmp_path / "report.json", {"risks": np.ones(2)})
    assert not list(tmp_path.iterdir())
