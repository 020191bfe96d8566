"""The download of CIFAR-10."""

import hashlib
import http.server
import threading
import time
import urllib.request

import pytest
from data_files import ARCHIVE, check_sample, refused

from tinyspur import datasets
from tinyspur.datasets import cifar10, load


class Server(http.server.ThreadingHTTPServer):
    """Serves `body`; `breaks` requests are cut after `cut` bytes, `mode` spoils the answers."""

    daemon_threads = True

    def __init__(self, body):
        super().__init__(("127.0.0.1", 0), Handler)
        self.body, self.mode, self.breaks, self.cut = body, "range", 0, 10_000
        self.requests, self.release = [], threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}/{ARCHIVE}"
        self.md5 = hashlib.md5(body).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """One answer of `Server`."""

    def log_message(self, *args):
        pass

    def do_GET(self):
        server, asked = self.server, self.headers.get("Range")
        server.requests.append(asked)
        size, start = len(server.body), 0
        if server.mode == "missing":
            self.send_error(404)
            return
        if asked and server.mode != "no range":
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= size:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{size}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206)
            said = 0 if server.mode == "wrong range" else start
            self.send_header("Content-Range", f"bytes {said}-{size - 1}/{size}")
        else:
            self.send_response(200)
        if server.mode != "no length":
            self.send_header("Content-Length", str(size - start))
        self.end_headers()
        body = server.body[start:]
        if server.breaks:
            server.breaks -= 1
            body = body[: server.cut]
        self.wfile.write(body)
        if server.mode == "stall":
            self.wfile.flush()
            server.release.wait(5)
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
def fetch(server, tmp_path):
    def fetch(**options):
        options = {"url": server.url, "md5": server.md5, "progress": False, **options}
        return datasets.download_cifar10(tmp_path / "got", **options)

    return fetch


@pytest.fixture
def part(tmp_path):
    path = tmp_path / "got" / f"{ARCHIVE}.part"
    path.parent.mkdir()
    return path


def test_official_address():
    assert datasets.CIFAR10_URL == "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
    assert datasets.CIFAR10_MD5 == "c32a1d4ab5d03f1284b67883e8d87530"


def test_download(server, sample, capsys):
    path = datasets.download_cifar10(url=server.url, md5=server.md5.upper())
    assert path == datasets.cache_folder() / ARCHIVE
    assert [p.name for p in path.parent.iterdir()] == [ARCHIVE]
    assert "100%" in capsys.readouterr().err
    check_sample(load(), sample)
    assert datasets.download_cifar10(url=server.url, md5=server.md5) == path
    assert server.requests == [None]


def test_quiet_download(fetch, capsys):
    fetch()
    assert capsys.readouterr() == ("", "")


def test_download_replaces_a_wrong_file(server, fetch, part):
    part.with_name(ARCHIVE).write_bytes(b"wrong")
    assert fetch().read_bytes() == server.body
    assert server.requests == [None]


def test_broken_download_goes_on(server, fetch):
    server.breaks = 3
    assert fetch().read_bytes() == server.body
    assert server.requests == [None, "bytes=10000-", "bytes=20000-", "bytes=30000-"]


def test_connection_that_stalls(server, fetch, monkeypatch):
    monkeypatch.setattr(cifar10, "_TIMEOUT_SECONDS", 0.1)
    server.mode, server.breaks = "stall", 1
    begun = time.monotonic()
    assert fetch().read_bytes() == server.body
    assert len(server.requests) == 2
    assert time.monotonic() - begun < 4, "the server gives up after 5 seconds"


def test_download_that_never_finishes_can_be_resumed(server, fetch, part):
    server.breaks, server.cut = 10**6, 5000
    with refused(
        server.url, f"expected {len(server.body)} bytes", "got 25000", "resumes", error=OSError
    ):
        fetch()
    assert part.read_bytes() == server.body[:25000]
    assert not part.with_name(ARCHIVE).exists()
    server.breaks = 0
    assert fetch().read_bytes() == server.body
    assert server.requests[-1] == "bytes=25000-"
    assert not part.exists()


@pytest.mark.parametrize(
    ("mode", "begin", "requests"),
    [
        ("no range", lambda body: b"begun" * 100, ["bytes=500-"]),
        ("wrong range", lambda body: body[:500], ["bytes=500-", None]),
        ("no length", None, [None]),
        ("range", lambda body: body, ["bytes={size}-"]),
        ("range", lambda body: body + b"more", ["bytes={size}-", None]),
    ],
    ids=["no range", "wrong range", "no length", "complete part", "part of something else"],
)
def test_part_files_and_unusual_servers(server, fetch, part, mode, begin, requests):
    server.mode = mode
    if begin:
        part.write_bytes(begin(server.body))
    size = part.stat().st_size if begin else 0
    assert fetch().read_bytes() == server.body
    assert server.requests == [asked and asked.format(size=size) for asked in requests]


def test_wrong_checksum_leaves_nothing(server, fetch, part):
    with refused(server.url, "MD5", "0" * 32, server.md5):
        fetch(md5="0" * 32)
    assert list(part.parent.iterdir()) == []
    part.write_bytes(b"x" * 500)
    with refused(server.url, "MD5", server.md5):
        fetch()
    assert list(part.parent.iterdir()) == []


def test_http_error(server, fetch, part):
    server.mode = "missing"
    part.write_bytes(b"begun")
    with refused(server.url, "404", error=OSError):
        fetch()
    assert server.requests == ["bytes=5-"]
    assert part.read_bytes() == b"begun"


def test_no_server(server, fetch):
    with refused("http://127.0.0.1:1/", "got 0", error=OSError):
        fetch(url="http://127.0.0.1:1/")


def test_interrupted_download_keeps_the_part(server, fetch, part, monkeypatch):
    urlopen = urllib.request.urlopen

    def interrupted(*args, **kwargs):
        response, read = urlopen(*args, **kwargs), 0
        original = response.read

        def reading(size):
            nonlocal read
            read += 1
            if read == 2:
                raise KeyboardInterrupt
            return original(1000)

        response.read = reading
        return response

    monkeypatch.setattr(urllib.request, "urlopen", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch()
    assert part.read_bytes() == server.body[:1000]
    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    assert fetch().read_bytes() == server.body
    assert server.requests == [None, "bytes=1000-"]
