"""The download of CIFAR-10 from a server on this machine: a whole archive or nothing, and why."""

import errno
import hashlib
import http.server
import io
import os
import re
import signal
import stat
import subprocess
import sys
import threading
import time

import pooch
import pytest
from data_files import ALONE, ARCHIVE, batches, check_sample, refused, write_archive

from tinyspur import console, datasets
from tinyspur.datasets import cifar10, load

LEFT_OUT = 20_000  # bytes at the end of an archive that is cut


class Server(http.server.ThreadingHTTPServer):
    """Serves `body`, or answers with `status`, the first `cuts` times without its end.

    An answer waits until the clients are `together`, and one without its end for `release`.
    """

    daemon_threads = True

    def __init__(self, body):
        super().__init__(("127.0.0.1", 0), Handler)
        self.body, self.status, self.cuts, self.length = body, 200, 0, True
        self.requests, self.lock = 0, threading.Lock()
        self.together, self.release = threading.Barrier(1), threading.Event()
        self.release.set()
        self.while_cut = lambda: None
        self.url = f"http://127.0.0.1:{self.server_port}/{ARCHIVE}"
        self.md5 = hashlib.md5(body).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """One answer of `Server`."""

    def log_message(self, *args):
        pass

    def do_GET(self):
        server = self.server
        with server.lock:
            server.requests += 1
            cut = server.requests <= server.cuts
        server.together.wait(60)
        if server.status != 200:
            self.send_error(server.status)
            return
        self.send_response(200)
        if server.length:
            self.send_header("Content-Length", str(len(server.body)))
        self.end_headers()
        self.wfile.write(server.body[: -LEFT_OUT if cut else None])
        self.wfile.flush()
        if cut:
            server.while_cut()
            server.release.wait(10)
        self.close_connection = True


@pytest.fixture
def server(archive, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Server(archive.read_bytes())
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.release.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "got"
    path.mkdir()
    return path


@pytest.fixture
def fetch(server, folder):
    def fetch(**options):
        options = {"url": server.url, "md5": server.md5, "progress": False, **options}
        return datasets.download_cifar10(folder, **options)

    return fetch


def names(folder):
    return [path.name for path in folder.iterdir()]


def test_official_address():
    assert datasets.CIFAR10_URL == "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
    assert datasets.CIFAR10_MD5 == "c32a1d4ab5d03f1284b67883e8d87530"


# What arrives


@pytest.mark.parametrize("kind", ["bin", "py"])
def test_download(server, tmp_path, sample, kind, capsys):
    server.body = write_archive(tmp_path / "other", batches(sample, kind)).read_bytes()
    md5 = hashlib.md5(server.body).hexdigest()
    path = datasets.download_cifar10(url=server.url, md5=md5.upper())
    assert path == datasets.cache_folder() / ARCHIVE
    assert names(path.parent) == [ARCHIVE]
    assert path.read_bytes() == server.body
    assert re.fullmatch(rf"downloading {ARCHIVE} \.\.\. \d+\.\d s\n", capsys.readouterr().err)
    check_sample(load(), sample)


def test_quiet_download(fetch, capsys):
    fetch()
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("length", [True, False], ids=["length", "no length"])
def test_a_terminal_shows_how_much_has_come(length, server, fetch, monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream := io.StringIO())
    stream.isatty = lambda: True
    shown, close = [], console.tqdm.close

    def look(bar):
        if not bar.disable:  # a bar of an earlier test, closed again when its memory is collected
            shown.append(str(bar))
        close(bar)

    monkeypatch.setattr(console.tqdm, "close", look)
    server.length = length
    assert fetch(progress=True).read_bytes() == server.body
    assert shown[0].startswith(f"downloading {ARCHIVE}: ")
    assert ("100%" in shown[0]) == length
    assert "B/s" in shown[0] and " 0.00B" not in shown[0]


def test_a_download_has_the_permissions_of_the_umask(fetch):
    before = os.umask(0o027)
    try:
        assert stat.S_IMODE(fetch().stat().st_mode) == 0o640
    finally:
        os.umask(before)


def test_an_archive_that_is_there_and_right_is_not_asked_for(server, fetch, folder, capsys):
    (folder / ARCHIVE).write_bytes(server.body)
    before = (folder / ARCHIVE).stat()
    assert fetch(progress=True) == folder / ARCHIVE
    assert fetch(md5=server.md5.upper(), url="http://127.0.0.1:1/") == folder / ARCHIVE
    after = (folder / ARCHIVE).stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert server.requests == 0
    assert capsys.readouterr() == ("", "")


def test_a_wrong_archive_is_kept_beside_the_right_one(server, fetch, folder, capsys):
    (folder / ARCHIVE).write_bytes(b"wrong")
    assert fetch(progress=True).read_bytes() == server.body
    assert (folder / f"earlier-1-{ARCHIVE}").read_bytes() == b"wrong"
    assert sorted(names(folder)) == [ARCHIVE, f"earlier-1-{ARCHIVE}"]
    assert server.requests == 1
    said = f"{folder / ARCHIVE}, another archive, is kept as earlier-1-{ARCHIVE}"
    assert capsys.readouterr().err.splitlines()[-1] == said


# What does not


@pytest.fixture(params=[None, b"an older archive"], ids=["empty folder", "older archive"])
def untouched(request, folder):
    """Check that the folder has at the end what it had before."""
    if request.param is not None:
        (folder / ARCHIVE).write_bytes(request.param)
    yield
    assert names(folder) == [ARCHIVE] * (request.param is not None)
    assert all(path.read_bytes() == request.param for path in folder.iterdir())


def test_an_archive_with_another_md5_is_removed(server, fetch, untouched):
    with refused(f"{server.url}: expected MD5 {'0' * 32}, got {server.md5}; the download was"):
        fetch(md5="0" * 32)


@pytest.mark.parametrize(("status", "words"), [(404, "Not Found"), (500, "Internal Server Error")])
def test_a_server_that_refuses(server, fetch, folder, untouched, status, words):
    server.status = status
    expected = f"{folder / ARCHIVE}: expected the archive from {server.url}, got {status} "
    with refused(expected, words, error=OSError):
        fetch()


def test_no_server(fetch, folder, untouched):
    url = "http://127.0.0.1:1/"
    expected = f"{folder / ARCHIVE}: expected the archive from {url}, got "
    with refused(expected, "Connection refused", error=OSError):
        fetch(url=url)


@pytest.mark.parametrize("url", ["no address", "gopher://127.0.0.1/", "http://"])
def test_what_is_no_address(fetch, folder, untouched, url):
    with refused(f"{folder / ARCHIVE}: expected the archive from {url}, got ", error=OSError):
        fetch(url=url)


def test_a_transfer_that_ends_early(server, fetch, folder, untouched, capsys):
    server.cuts = 1
    expected = f"{folder / ARCHIVE}: expected the archive from {server.url}, got "
    with refused(expected, f"{LEFT_OUT} more expected", error=OSError):
        fetch(progress=True)
    assert capsys.readouterr().err.endswith("\n"), "an error begins on a line of its own"


def test_a_transfer_that_ends_early_without_a_length_has_another_md5(server, fetch, untouched):
    server.cuts, server.length = 1, False
    got = hashlib.md5(server.body[:-LEFT_OUT]).hexdigest()
    with refused(f"{server.url}: expected MD5 {server.md5}, got {got}"):
        fetch()


def test_a_connection_that_stalls(server, fetch, folder, untouched, monkeypatch):
    monkeypatch.setattr(cifar10, "_TIMEOUT_SECONDS", 0.1)
    server.cuts = 1
    server.release.clear()
    begun = time.monotonic()
    with refused(folder / ARCHIVE, "timed out", error=OSError):
        fetch()
    assert time.monotonic() - begun < 9, "the server gives up after 10 seconds"


def test_after_a_broken_download_the_next_one_is_whole(server, fetch, folder):
    server.cuts = 1
    with refused(folder / ARCHIVE, error=OSError):
        fetch()
    assert fetch().read_bytes() == server.body
    assert names(folder) == [ARCHIVE]


def test_an_interrupted_download(server, fetch, untouched):
    server.cuts = 1
    server.release.clear()
    server.while_cut = lambda: signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in background jobs
    try:
        with pytest.raises(KeyboardInterrupt):
            fetch()
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_disk_that_is_full(server, fetch, folder, untouched, monkeypatch):
    def full(self, url, file, *_):
        file.write(b"begun")
        file.flush()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", full)
    expected = f"{folder / ARCHIVE}: expected the archive from {server.url}, got "
    with refused(f"{expected}No space left on device", error=OSError):
        fetch()


@pytest.mark.parametrize("name", ["file", "file/folder"])
def test_where_no_folder_can_be_nothing_is_asked_for(server, tmp_path, name):
    (tmp_path / "file").write_bytes(b"kept")
    with refused(f"output folder {tmp_path / name}: ", "is not a folder", error=OSError):
        datasets.download_cifar10(tmp_path / name, server.url, server.md5, progress=False)
    assert (tmp_path / "file").read_bytes() == b"kept"
    assert server.requests == 0


def test_a_folder_without_permission_is_named(server, fetch, folder, untouched, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
    with refused(f"output folder {folder}: no permission to write", error=PermissionError):
        fetch()
    assert server.requests == 0


def test_a_folder_of_the_name_of_the_archive_is_kept(server, fetch, folder):
    (folder / ARCHIVE).mkdir()
    with refused(f"{folder / ARCHIVE}: expected", "got a folder", error=OSError):
        fetch()
    assert names(folder) == [ARCHIVE] and (folder / ARCHIVE).is_dir()


# Two at once


def started(folder, url, md5):
    """Start a process that downloads into a folder."""
    program = (
        f"{ALONE}from tinyspur import datasets\n"
        "from tinyspur.console import exit_status\n"
        "folder, url, md5 = sys.argv[1:]\n"
        "fetch = lambda: datasets.download_cifar10(folder, url, md5, progress=False)\n"
        "sys.exit(exit_status(lambda: print(fetch())))"
    )
    command = [sys.executable, "-c", program, str(folder), url, md5]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(processes):
    """Return what each process printed on stdout and stderr, and its status."""
    return [(*process.communicate(timeout=120), process.returncode) for process in processes]


def test_two_processes_that_download_at_once_both_end_well(server, folder):
    server.together = threading.Barrier(2)
    done = ended([started(folder, server.url, server.md5) for _ in range(2)])
    assert done == [(f"{folder / ARCHIVE}\n", "", 0)] * 2
    assert server.requests == 2
    assert names(folder) == [ARCHIVE]
    assert (folder / ARCHIVE).read_bytes() == server.body


def test_one_that_fails_leaves_the_archive_to_the_other(server, folder):
    server.together = threading.Barrier(3)
    server.cuts = 1
    md5s = (server.md5, server.md5, "0" * 32)
    done = ended([started(folder, server.url, md5) for md5 in md5s])
    assert server.requests == 3
    assert sorted(status for *_, status in done) in ([0, 2, 2], [0, 0, 2])
    for _, said, status in done:
        assert len(said.splitlines()) == (status != 0)
    assert names(folder) == [ARCHIVE]
    assert (folder / ARCHIVE).read_bytes() == server.body
