"""Files are whole or absent and replace only their like, and JSON has finite numbers."""

import errno
import json
import os
import re
import stat
import tempfile
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from tinyspur.datasets import load_npz, load_samples
from tinyspur.figures.style import figure_kind, save_figure
from tinyspur.files import (
    check_outputs,
    check_replaceable,
    check_writable,
    keep,
    kept_name,
    read_arrays,
    whole_file,
    write_json,
)


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


def test_no_file_takes_the_place_of_a_pipe_or_a_device(tmp_path):
    os.mkfifo(path := tmp_path / "report.json")
    words = "expected a file that can be written, got a device or a pipe"
    with pytest.raises(OSError, match=f"^{re.escape(str(path))}: {words}$"):
        write_json(path, {"risk": 1.0})
    assert path.is_fifo() and len(list(tmp_path.iterdir())) == 1


def test_a_file_has_the_permissions_of_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        with whole_file(tmp_path / "file.txt") as file:
            file.write(b"")
        assert stat.S_IMODE((tmp_path / "file.txt").stat().st_mode) == 0o640
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)


def failing(code):
    def fail(*_, **__):
        raise OSError(code, os.strerror(code), "/somewhere/else")

    return fail


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS])
@pytest.mark.parametrize("where", ["mkdir", "mkstemp", "chmod", "replace", "write"])
def test_an_error_of_the_disk_names_the_file_and_leaves_what_was_there(
    code, where, tmp_path, monkeypatch
):
    path = tmp_path / "file.txt"
    path.write_bytes(b"old")
    places = {"mkdir": Path, "mkstemp": tempfile, "chmod": os, "replace": os}
    words = f"{path}: expected a file that can be written, got '{os.strerror(code)}'"
    with monkeypatch.context() as patch:
        if where in places:
            patch.setattr(places[where], where, failing(code))
        refused = pytest.raises(OSError, match=f"^{re.escape(words)}$")
        with refused as caught, whole_file(path) as file:
            file.write(b"new")
            if where == "write":
                failing(code)()
    assert type(caught.value) is type(OSError(code, ""))
    assert content(tmp_path) == {Path("file.txt"): b"old"}


def test_a_file_or_a_folder_in_place_of_the_other_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    for name, got in (
        ("file/new.txt", "a file in place of its folder"),
        ("file/new/new.txt", "a file in place of its folder"),
        ("folder", "a folder"),
        (".", "a folder"),
    ):
        words = f"{tmp_path / name}: expected a file that can be written, got {got}"
        with pytest.raises(OSError, match=re.escape(words)), whole_file(tmp_path / name) as file:
            file.write(b"new")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "folder"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a /dev/full")
def test_a_full_disk_is_noticed_where_the_last_bytes_are_written(tmp_path, monkeypatch):
    def full(**_):
        (tmp_path / "link").symlink_to("/dev/full")
        return os.open(os.devnull, os.O_RDONLY), str(tmp_path / "link")

    monkeypatch.setattr(tempfile, "mkstemp", full)
    with pytest.raises(OSError, match=r"report\.json: expected .*, got 'No space left on device'$"):
        write_json(tmp_path / "report.json", {"risk": 1.0})
    assert not list(tmp_path.iterdir())


# What is kept


def test_what_is_kept_never_takes_the_place_of_what_was_kept_before(tmp_path):
    path = tmp_path / "checkpoint.npz"
    keep(path)
    assert not content(tmp_path)
    for n in (1, 2, 3):
        path.write_bytes(bytes([n]))
        assert kept_name(path) == tmp_path / f"earlier-{n}-checkpoint.npz"
        keep(str(path))
    kept = {Path(f"earlier-{n}-checkpoint.npz"): bytes([n]) for n in (1, 2, 3)}
    assert content(tmp_path) == kept


# What is replaced


def test_only_files_of_the_same_kind_are_replaced(tmp_path):
    np.savez(tmp_path / "point.npz", spec="{}", W1=np.ones(1))
    np.savez(tmp_path / "data.npz", images=np.ones(1), labels=np.ones(1))
    write_json(tmp_path / "report.json", {"rows": [], "seconds": {}})
    save_figure(tmp_path / "figure.png", Figure(), 50)
    save_figure(tmp_path / "figure.pdf", Figure(), 50)
    Figure().savefig(tmp_path / "other.png")
    (tmp_path / "text").write_text("notes")
    (tmp_path / "list").write_text("[1, 2]")
    (tmp_path / "cut").write_bytes((tmp_path / "point.npz").read_bytes()[:100])
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    before = content(tmp_path)
    kinds = {"point.npz": ["spec"], "report.json": ["rows", "seconds"]}
    kinds |= {"figure.png": [], "figure.pdf": []}
    for kind in kinds.values():
        for name in ("missing", "empty", "dangling"):
            check_replaceable(tmp_path / name, kind)
        for name in before:
            if kinds.get(str(name)) == kind or str(name) == "empty":
                check_replaceable(tmp_path / name, kind)
                continue
            words = f"{tmp_path / name}: expected no file, or one of an earlier run"
            with pytest.raises(FileExistsError, match=re.escape(words)):
                check_replaceable(tmp_path / name, kind)
    assert content(tmp_path) == before


def test_folders_and_devices_are_not_replaced(tmp_path):
    with pytest.raises(OSError, match="expected a file, got a folder"):
        check_replaceable(tmp_path)
    with pytest.raises(OSError, match=f"{os.devnull}: expected a file, got a device or a pipe"):
        check_replaceable(os.devnull)


def test_outputs_are_checked_one_by_one(tmp_path):
    files = {"audit.json": ["rows"], "figures/audit.png": []}
    check_outputs(tmp_path / "new", files)
    assert not list(tmp_path.iterdir())
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "audit.png").write_bytes(b"another")
    with pytest.raises(FileExistsError, match=r"figures/audit\.png: expected no file"):
        check_outputs(tmp_path, files)
    with pytest.raises(NotADirectoryError):
        check_outputs(tmp_path / "figures" / "audit.png", files)


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


@pytest.mark.parametrize("path", [0, True, None, 2.5, ["a.npz"], b"a.npz"])
def test_what_is_no_path_is_refused_and_not_taken_for_an_open_file(path):
    expected = f"path: expected a str or a Path, got a {type(path).__name__}"
    for function in (read_arrays, figure_kind, load_npz, load_samples):
        with pytest.raises(ValueError, match=expected):
            function(path)
    with pytest.raises(ValueError, match=expected), whole_file(path):
        pass


def test_a_device_or_a_pipe_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (os.devnull, tmp_path / "pipe"):
        with pytest.raises(OSError, match=f"{path}: expected an NPZ file, got a device or a pipe"):
            read_arrays(path)
