"""Data sets: validation, NPZ files, CIFAR-10 in both formats, downloads, damaged files."""

import contextlib
import gzip
import hashlib
import http.server
import io
import os
import pickle
import pickletools
import struct
import tarfile
import threading
import time
import urllib.request
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tinyspur import cifar10, datasets
from tinyspur.datasets import Dataset, load, load_cifar10, load_npz

SAMPLE = Path(__file__).parent / "cifar10_sample_20.npz"
ARCHIVE = "cifar-10-binary.tar.gz"


@contextlib.contextmanager
def refused(*words, error=ValueError):
    """Expect an error whose message is one line that contains `words`."""
    with pytest.raises(error) as caught:
        yield caught
    message = str(caught.value)
    assert len(message.splitlines()) == 1, message
    for word in words:
        assert str(word) in message


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch):
    """An empty cache folder, no variable, no waiting between attempts."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("TINYSPUR_DATA", raising=False)
    monkeypatch.setattr(cifar10, "_BACKOFF_SECONDS", 0.0)


@pytest.fixture(scope="module")
def sample():
    with np.load(SAMPLE) as npz:
        return {key: npz[key] for key in npz.files}


# What Python 2 wrote for a batch: GLOBAL opcodes, byte strings as SHORT_BINSTRING and BINSTRING.


def py2_string(text):
    if len(text) < 256:
        return b"U" + bytes([len(text)]) + text
    return b"T" + struct.pack("<i", len(text)) + text


def py2_array(array, dtype=b"u1", order=b"|"):
    state = b"(K\x01(" + b"".join(b"J" + struct.pack("<i", n) for n in array.shape) + b"t"
    state += b"cnumpy\ndtype\n(" + py2_string(dtype) + b"K\x00K\x01tR"
    state += b"(K\x03" + py2_string(order) + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    state += b"I00\n" + py2_string(array.tobytes()) + b"t"
    head = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t" + py2_string(b"b")
    return head + b"tR" + state + b"b"


def py2_dict(**items):
    pairs = b"".join(py2_string(key.encode()) + value for key, value in items.items())
    return b"\x80\x02}(" + pairs + b"u."


def py2_batch(images, labels):
    labels = b"](" + b"".join(b"K" + bytes([n]) for n in labels) + b"e"
    name = py2_string(b"training batch")
    return py2_dict(data=py2_array(images.reshape(len(images), -1)), labels=labels, label=name)


def py3_batch(images, labels, protocol=2):
    data = images.reshape(len(images), -1)
    batch = {b"batch_label": b"some", b"data": data, b"labels": [int(n) for n in labels]}
    return pickle.dumps(batch, protocol=protocol)


def binary_batch(images, labels):
    return np.hstack([labels[:, None], images.reshape(len(images), -1)]).tobytes()


def batches(sample, kind, write=None):
    """Return the files of one format, four records a batch."""
    names = [name.encode() for name in sample["class_names"].tolist()]
    write = write or (binary_batch if kind == "bin" else py2_batch)
    suffix = ".bin" if kind == "bin" else ""
    files = {
        f"data_batch_{i + 1}{suffix}": write(sample["images"][s], sample["labels"][s])
        for i, s in enumerate(slice(k, k + 4) for k in range(0, 20, 4))
    }
    if kind == "bin":
        files["batches.meta.txt"] = b"\n".join(names) + b"\n\n"
    else:
        listed = b"](" + b"".join(map(py2_string, names)) + b"e"
        files["batches.meta"] = py2_dict(num_cases_per_batch=b"K\x04", label_names=listed)
    files["test_batch" + suffix] = b"not read"
    return files


def write_folder(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def member(name, content=b"", kind=tarfile.REGTYPE, link=""):
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(content), kind, link
    return info, content


def tar_bytes(files, extra=(), folder="cifar-10-batches-bin"):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        archive.addfile(member(folder, kind=tarfile.DIRTYPE)[0])
        for info, content in [*(member(f"{folder}/{n}", c) for n, c in files.items()), *extra]:
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def write_archive(path, files, extra=()):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(tar_bytes(files, extra), compresslevel=1))
    return path


@pytest.fixture
def archive(tmp_path, sample):
    return write_archive(tmp_path / ARCHIVE, batches(sample, "bin"))


def check_sample(dataset, sample):
    assert dataset.name == "CIFAR-10"
    assert dataset.images.dtype == np.uint8
    assert dataset.labels.dtype == np.int64
    np.testing.assert_array_equal(dataset.images, sample["images"])
    np.testing.assert_array_equal(dataset.labels, sample["labels"])
    assert dataset.class_names == tuple(sample["class_names"].tolist())


# Dataset


def small(images=None, labels=(0, 1, 1), class_names=("a", "b")):
    images = np.zeros((3, 1, 2, 2), np.uint8) if images is None else images
    return Dataset("small", images, np.asarray(labels), class_names)


def test_dataset_facts():
    dataset = small()
    assert len(dataset) == 3
    assert dataset.input_shape == (1, 2, 2)
    assert dataset.classes == 2
    assert str(dataset) == repr(dataset) == "small: 3 images (1, 2, 2), 2 classes"
    assert small(labels=np.array([0, 1, 1], np.uint8)).labels.dtype == np.int64


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"images": np.zeros((3, 4))}, ["(N, C, H, W)", "(3, 4)"]),
        ({"images": np.zeros((0, 1, 2, 2)), "labels": np.zeros(0, int)}, ["(0, 1, 2, 2)"]),
        ({"images": np.zeros((3, 1, 0, 2))}, ["(3, 1, 0, 2)"]),
        ({"images": np.zeros((3, 1, 2, 2), np.int32)}, ["uint8 or floating", "int32"]),
        ({"images": np.zeros((3, 1, 2, 2), object)}, ["dtype object"]),
        ({"images": np.zeros((3, 1, 2, 2), complex)}, ["complex128"]),
        ({"labels": [0, 1]}, ["(3,)", "(2,)"]),
        ({"labels": [[0], [1], [1]]}, ["(3,)", "(3, 1)"]),
        ({"labels": [0.0, 1.0, 1.0]}, ["integer labels", "float64"]),
        ({"labels": [False, True, True]}, ["integer labels", "bool"]),
        ({"labels": [0, 1, 2]}, ["0 to 1", "got 2 in sample 2"]),
        ({"labels": [0, -1, 2]}, ["0 to 1", "got -1 in sample 1"]),
        ({"labels": np.array([0, 1, 2**64 - 1], np.uint64)}, [2**64 - 1, "sample 2"]),
        ({"class_names": ()}, ["class names"]),
        ({"class_names": (0, 1)}, ["class names", "(0, 1)"]),
    ],
)
def test_dataset_refuses(changes, words):
    with refused(*words):
        small(**changes)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_dataset_refuses_pixels_that_are_not_finite(value):
    images = np.zeros((3, 1, 2, 2), np.float32)
    images[1, 0, 0, :] = value
    images[2, 0, 0, 0] = value
    with refused("3 pixels", "NaN or infinite", "sample 1"):
        small(images)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_pixels(dtype):
    images = np.arange(12, dtype=np.uint8).reshape(3, 1, 2, 2) + 244
    pixels = small(images).pixels(dtype)
    assert pixels.dtype == dtype
    np.testing.assert_array_equal(pixels, images.astype(dtype) / dtype(255))
    assert pixels.max() == 1
    floats = images * 3.5 - 7
    np.testing.assert_array_equal(small(floats).pixels(dtype), floats.astype(dtype))


def test_pixels_are_a_copy():
    dataset = small(np.zeros((3, 1, 2, 2)))
    dataset.pixels()[:] = 1
    assert not dataset.images.any()


def test_pixels_refuses():
    with refused("floating", "int64"):
        small().pixels(np.int64)
    with refused("float16", "larger"):
        small(np.full((3, 1, 2, 2), 1e9)).pixels(np.float16)


def test_subset_is_deterministic_and_in_order():
    images = np.arange(50, dtype=np.uint8).reshape(50, 1, 1, 1)
    dataset = small(images, np.arange(50) % 2)
    first, again, other = (dataset.subset(20, seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.images, again.images)
    assert not np.array_equal(first.images, other.images)
    kept = first.images.ravel()
    assert len(first) == 20 and np.all(np.diff(kept.astype(int)) > 0)
    np.testing.assert_array_equal(first.labels, kept % 2)
    assert first.class_names == dataset.class_names and first.name == dataset.name
    expected = np.sort(np.random.default_rng(3).choice(50, 20, replace=False))
    np.testing.assert_array_equal(kept, expected)


def test_subset_of_all_is_the_whole_set():
    dataset = small()
    np.testing.assert_array_equal(dataset.subset(3, 0).labels, dataset.labels)


@pytest.mark.parametrize("samples", [0, -1, 4, 1.5])
def test_subset_refuses(samples):
    with refused("1 to 3 samples", samples):
        small().subset(samples, seed=0)


# Principal components


def many_pixels(samples=30, shape=(2, 3, 4), seed=0):
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(samples, *shape)) * np.linspace(0.2, 3, np.prod(shape)).reshape(shape)
    return Dataset("t", images + 5, np.zeros(samples, np.int64), ("a",))


@pytest.mark.parametrize("dimensions", [1, 3, 24, np.int64(5)])
def test_principal_components_are_those_of_the_covariance(dimensions):
    dataset = many_pixels()
    found = dataset.principal_components(dimensions)
    assert found.shape == (30, 1, dimensions)
    assert found.dtype == np.float64
    flat = dataset.images.reshape(30, -1)
    values, vectors = np.linalg.eigh(np.cov(flat.T, bias=True))
    expected = (flat - flat.mean(axis=0)) @ vectors[:, ::-1] / np.sqrt(values[-1])
    for n in range(dimensions):
        sign = np.sign(found[:, 0, n] @ expected[:, n])
        np.testing.assert_allclose(found[:, 0, n], sign * expected[:, n], atol=1e-10)
    assert found[:, 0, 0].var() == pytest.approx(1)
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=1e-12)


def test_principal_components_of_bytes_do_not_depend_on_their_scale():
    dataset = datasets.bundled().subset(50, 1)
    floats = Dataset("t", dataset.images.astype(np.float64), dataset.labels, dataset.class_names)
    found, expected = (abs(d.principal_components(4)) for d in (dataset, floats))
    np.testing.assert_allclose(found, expected, atol=1e-9)
    covariance = np.cov(dataset.principal_components(4)[:, 0].T, bias=True)
    np.testing.assert_allclose(covariance, np.diag(covariance.diagonal()), atol=1e-12)
    assert (np.diff(covariance.diagonal()) < 0).all()


@pytest.mark.parametrize("dimensions", [0, -1, 25, 2.0, "2", None])
def test_principal_components_refuses(dimensions):
    with refused("t: expected 1 to 24 dimensions, got", repr(dimensions)):
        many_pixels().principal_components(dimensions)


def test_principal_components_refuses_more_than_the_rank():
    with refused("t: expected 1 to 9 dimensions, got 10"):
        many_pixels(samples=10).principal_components(10)
    line = np.arange(8.0)[:, None, None, None] * np.ones((1, 2, 3))
    dataset = Dataset("t", line, np.zeros(8, np.int64), ("a",))
    assert dataset.principal_components(1).shape == (8, 1, 1)
    with refused("t: expected 1 to 1 dimensions, got 2"):
        dataset.principal_components(2)


def test_principal_components_of_equal_images_do_not_exist():
    dataset = Dataset("t", np.full((5, 1, 2, 2), 7, np.uint8), np.zeros(5, np.int64), ("a",))
    with refused("t: expected", "dimensions, got 1"):
        dataset.principal_components(1)


def test_bundled():
    dataset = datasets.bundled()
    assert "bundled" in dataset.name and "Fashion-MNIST" in dataset.name
    assert dataset.images.shape == (4000, 1, 28, 28) and dataset.images.dtype == np.uint8
    np.testing.assert_array_equal(np.bincount(dataset.labels), np.full(10, 400))
    assert dataset.classes == 10 and dataset.class_names[9] == "Ankle boot"
    assert str(dataset).endswith("4000 images (1, 28, 28), 10 classes")


# NPZ


def npz(path, **arrays):
    arrays = {"images": np.zeros((3, 1, 2, 2), np.uint8), "labels": np.array([0, 2, 1]), **arrays}
    np.savez_compressed(path, **{key: a for key, a in arrays.items() if a is not None})
    return path


def test_load_npz(sample, tmp_path):
    dataset = load_npz(SAMPLE)
    np.testing.assert_array_equal(dataset.images, sample["images"])
    np.testing.assert_array_equal(dataset.labels, sample["labels"])
    assert dataset.name == "cifar10_sample_20" and dataset.class_names[3] == "cat"
    path = npz(tmp_path / "own.npz")
    assert load_npz(path).class_names == ("0", "1", "2")
    assert load(str(path)).name == "own"


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"images": None}, ["'images'"]),
        ({"labels": None}, ["'labels'"]),
        ({"images": np.full((3, 1, 2, 2), np.nan)}, ["12 pixels", "sample 0"]),
        ({"images": np.full((3, 1, 2, 2), np.inf)}, ["12 pixels", "sample 0"]),
        ({"images": np.zeros((3, 2, 2))}, ["(3, 2, 2)"]),
        ({"images": np.zeros((3, 1, 2, 2), np.int64)}, ["int64"]),
        ({"images": np.array([None, 1, 2])}, ["plain arrays", "allow_pickle"]),
        ({"labels": np.array([0, 1, None])}, ["plain arrays", "allow_pickle"]),
        ({"labels": np.array([0, -2, 1])}, ["-2 in sample 1"]),
        ({"labels": np.array([-1, -2, -1])}, ["-1 in sample 0"]),
        ({"labels": np.array([0, 1])}, ["(3,)", "(2,)"]),
        ({"labels": np.array([0.0, 1, 2])}, ["float64"]),
        ({"labels": np.array(["0", "1", "2"])}, ["integer labels"]),
        ({"labels": np.array([0, 10**12, 1])}, [10**12, "sample 1"]),
        ({"class_names": np.array(["a", "b"])}, ["0 to 1", "2 in sample 1"]),
        ({"class_names": np.array([1, 2, 3])}, ["class_names", "int64"]),
        ({"class_names": np.array("abc")}, ["class_names", "()"]),
        ({"class_names": np.array(["a", None])}, ["plain arrays", "allow_pickle"]),
    ],
)
def test_load_npz_refuses(tmp_path, arrays, words):
    path = npz(tmp_path / "own.npz", **arrays)
    with refused(path, *words):
        load_npz(path)


def test_load_npz_refuses_other_files(tmp_path):
    path = tmp_path / "own.npz"
    array = io.BytesIO()
    np.save(array, np.zeros(3))
    damaged = (b"", b"text", b"PK\x03\x04", pickle.dumps([1]), b"\x93NUMPY\x01\x00")
    for content in (*damaged, array.getvalue()):
        path.write_bytes(content)
        with refused(path, "NPZ"):
            load_npz(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images", b"not an array")
        archive.writestr("labels", b"not an array")
    with refused(path, "bytes"):
        load_npz(path)
    with refused(tmp_path / "none.npz", error=FileNotFoundError):
        load_npz(tmp_path / "none.npz")


def test_load_npz_refuses_truncated_and_tampered_files(tmp_path):
    content = SAMPLE.read_bytes()
    path = tmp_path / "own.npz"
    spoilt = [content[:length] for length in range(1, len(content), 5003)]
    for at in (2000, 20000, 40000):
        spoilt.append(content[:at] + bytes([content[at] ^ 0x55]) + content[at + 1 :])
    for damaged in spoilt:
        path.write_bytes(damaged)
        with refused(path, "NPZ"):
            load_npz(path)


# CIFAR-10


@pytest.mark.parametrize(
    ("kind", "write"),
    [
        ("bin", None),
        ("py", None),
        ("py", py3_batch),
        ("py", lambda images, labels: py3_batch(images, labels, protocol=4)),
    ],
)
def test_cifar10_formats_agree(tmp_path, sample, kind, write):
    files = batches(sample, kind, write)
    folder = write_folder(tmp_path / "a" / f"cifar-10-batches-{kind}", files)
    name = f"cifar-10-{'binary' if kind == 'bin' else 'python'}.tar.gz"
    archive = write_archive(tmp_path / "b" / name, files)
    other = write_archive(tmp_path / "other.tgz", files)
    plain = tmp_path / "plain.tar"
    plain.write_bytes(tar_bytes(files))
    for path in (folder, folder.parent, archive, archive.parent, other, plain, str(folder)):
        check_sample(load(path), sample)


def test_python_2_pickles_are_what_the_official_files_hold(sample):
    content = py2_batch(sample["images"][:4], sample["labels"][:4])
    batch = pickle.loads(content, encoding="bytes")
    np.testing.assert_array_equal(batch[b"data"], sample["images"][:4].reshape(4, -1))
    assert batch[b"labels"] == sample["labels"][:4].tolist()
    assert "BINSTRING" in {opcode.name for opcode, _, _ in pickletools.genops(content)}


def test_binary_format_comes_first(tmp_path, sample):
    write_folder(tmp_path / "cifar-10-batches-py", batches(sample, "py"))
    write_folder(tmp_path / "cifar-10-batches-bin", batches(sample, "bin"))
    assert datasets.find_cifar10(tmp_path) == tmp_path / "cifar-10-batches-bin"


@pytest.mark.parametrize(("kind", "meta"), [("bin", "batches.meta.txt"), ("py", "batches.meta")])
def test_class_names(tmp_path, sample, kind, meta):
    files = batches(sample, kind)
    files[meta] = files[meta].replace(b"airplane", b"aircraft")
    assert load(write_folder(tmp_path, files)).class_names[:2] == ("aircraft", "automobile")
    nine = [b"one"] * 9
    text, pickled = b"\n".join(nine), pickle.dumps({b"label_names": nine}, protocol=4)
    files[meta] = text if kind == "bin" else pickled
    with refused(tmp_path, meta, "ten class names", 9):
        load(write_folder(tmp_path, files))
    files[meta] = b"\xff\xfe"
    with refused(tmp_path, meta):
        load(write_folder(tmp_path, files))
    (tmp_path / meta).unlink()
    check_sample(load(tmp_path), sample)


@pytest.mark.parametrize("kind", ["bin", "py"])
@pytest.mark.parametrize("missing", [1, 3, 5])
def test_missing_batch(tmp_path, sample, kind, missing):
    name = f"data_batch_{missing}" + (".bin" if kind == "bin" else "")
    files = batches(sample, kind)
    del files[name]
    archive = write_archive(tmp_path / "some.tar.gz", files)
    for path in (write_folder(tmp_path / "folder", files), archive):
        with refused(path, f"got no {name}"):
            load(path)


def test_archive_without_batches(tmp_path):
    path = write_archive(tmp_path / "some.tar.gz", {"readme.html": b"hello"})
    with refused(path, "data_batch_1"):
        load(path)


@pytest.mark.parametrize("cut", [1, 3073 * 4, 5000])
def test_truncated_binary_batch(tmp_path, sample, cut):
    files = batches(sample, "bin")
    files["data_batch_2.bin"] = files["data_batch_2.bin"][:-cut]
    length = len(files["data_batch_2.bin"])
    with refused(tmp_path, "data_batch_2.bin", "truncated", 3073, f"got {length}"):
        load(write_folder(tmp_path, files))


@pytest.mark.parametrize("kind", ["bin", "py"])
def test_label_above_nine(tmp_path, sample, kind):
    labels = sample["labels"].copy()
    labels[6] = 10
    files = batches({**sample, "labels": labels}, kind)
    with refused(tmp_path, "data_batch_2", "0 to 9", "10 in sample 2"):
        load(write_folder(tmp_path, files))


def test_size_of_a_batch_is_limited(tmp_path, sample, archive, monkeypatch):
    folder = write_folder(tmp_path / "folder", batches(sample, "bin"))
    monkeypatch.setattr(cifar10, "_MAX_FILE_BYTES", 10_000)
    for path in (folder, archive):
        with refused(path, "data_batch_1.bin", "at most 10000 bytes", 4 * 3073):
            load(path)
    monkeypatch.setattr(cifar10, "_MAX_ARCHIVE_BYTES", 10_000)
    with refused(archive, "more than 10000 bytes"):
        load(archive)


# Pickles


def python_folder(tmp_path, sample, batch):
    return write_folder(tmp_path, {**batches(sample, "py"), "data_batch_3": batch})


class Attack:
    """A pickle that would create a file when it is read."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize(
    ("function", "name"), [(os.system, "system"), (eval, "eval"), (os.mkdir, "mkdir")]
)
def test_malicious_pickle_is_refused(tmp_path, sample, protocol, function, name):
    trace = tmp_path / "trace"
    argument = {"system": f"touch {trace}", "eval": f"open({str(trace)!r}, 'w')"}
    attack = Attack(function, argument.get(name, str(trace)))
    batch = {b"data": sample["images"][:4].reshape(4, -1), b"labels": [0] * 4, b"x": attack}
    folder = python_folder(tmp_path, sample, pickle.dumps(batch, protocol=protocol))
    with refused(folder, "data_batch_3", f".{name}"):
        load(folder)
    assert not trace.exists()


def test_other_globals_are_refused(tmp_path, sample):
    for module, name in (
        ("numpy", "load"),
        ("numpy.core.multiarray", "fromstring"),
        ("builtins", "getattr"),
        ("copyreg", "_reconstructor"),
        ("_codecs", "decode"),
    ):
        batch = f"\x80\x02c{module}\n{name}\n.".encode("latin1")
        with refused(tmp_path, "data_batch_3", f"{module}.{name}", "plain containers"):
            load(python_folder(tmp_path, sample, batch))


def test_message_stays_on_one_line(tmp_path, sample):
    batch = b"\x80\x04\x8c\x05a\nb\rc\x8c\x03d\ne\x93."
    with refused(tmp_path, "data_batch_3", "a b c.d e"):
        load(python_folder(tmp_path, sample, batch))


def test_encode_is_limited_to_latin1(tmp_path, sample):
    batch = b"\x80\x02c_codecs\nencode\nX\x03\x00\x00\x00abcX\x05\x00\x00\x00rot13\x86R."
    with refused(tmp_path, "data_batch_3", "_codecs.encode", "rot13"):
        load(python_folder(tmp_path, sample, batch))
    batch = b"\x80\x02c_codecs\nencode\n]X\x06\x00\x00\x00latin1\x86R."
    with refused(tmp_path, "data_batch_3", "_codecs.encode"):
        load(python_folder(tmp_path, sample, batch))


def test_a_pickle_cannot_alter_the_module(tmp_path, sample):
    for target in (b"_codecs\nencode", b"numpy\ndtype", b"numpy\nndarray"):
        state = b"N}(X\x0c\x00\x00\x00__setstate__NX\x04\x00\x00\x00evilK\x01u\x86b"
        batch = b"\x80\x02c" + target + b"\n" + state + b"."
        with refused(tmp_path, "data_batch_3"):
            load(python_folder(tmp_path, sample, batch))
    assert not any(hasattr(f, "evil") for f in (cifar10._latin1, cifar10._Array, cifar10._Dtype))
    check_sample(load(write_folder(tmp_path, batches(sample, "py"))), sample)


def test_object_arrays_are_refused(tmp_path, sample):
    data = np.array([[1, "two"]] * 4, dtype=object)
    for protocol in (2, 4):
        batch = pickle.dumps({b"data": data, b"labels": [0] * 4}, protocol=protocol)
        with refused(tmp_path, "data_batch_3", "dtype 'O8'"):
            load(python_folder(tmp_path, sample, batch))
    batch = py2_dict(data=py2_array(np.zeros((2, 8), np.uint8), dtype=b"O8"), labels=b"]")
    with refused(tmp_path, "data_batch_3", "dtype 'O8'"):
        load(python_folder(tmp_path, sample, batch))
    structured = np.zeros((4, 3072), dtype=[("a", "u1")])
    batch = pickle.dumps({b"data": structured, b"labels": [0] * 4}, protocol=2)
    with refused(tmp_path, "data_batch_3", "dtype 'V1'"):
        load(python_folder(tmp_path, sample, batch))


def test_column_major_data_is_read(tmp_path, sample):
    def write(images, labels):
        data = np.asfortranarray(images.reshape(len(images), -1))
        return pickle.dumps({b"data": data, b"labels": labels.tolist()}, protocol=2)

    check_sample(load(write_folder(tmp_path, batches(sample, "py", write))), sample)


def test_malformed_python_batches(tmp_path, sample):
    good = py2_batch(sample["images"][:4], sample["labels"][:4])
    data = sample["images"][:4].reshape(4, -1)

    def batch(**items):
        content = {b"data": data, b"labels": [0] * 4}
        return pickle.dumps({**content, **{k.encode(): v for k, v in items.items()}}, protocol=2)

    cases = {
        b"": "EOFError",
        b"hello\nworld": "pickle",
        good[:-1]: "pickle",
        good[:5000]: "pickle",
        good.replace(py2_string(b"u1"), py2_string(b"i8")): "data",
        pickle.dumps([1], protocol=2): "dictionary",
        pickle.dumps({"data": 0, "labels": 0}, protocol=2): "b'data'",
        pickle.dumps({b"data": 0}, protocol=2): "b'labels'",
        batch(data=data[:, :3071]): "(4, 3071)",
        batch(data=data.astype(np.int64)): "int64",
        batch(data=[1, 2]): "list",
        batch(labels=[0] * 3): "(4,)",
        batch(labels=[0, 1, 2, 3.5]): "float64",
        batch(labels=[[0], [1], [2], [3, 4]]): "sequence",
        batch(labels=[0, 1, 2, "x"]): "integer labels",
        batch(labels=[0, 1, 2, 10**30]): "integer labels",
        batch(labels=None): "(4,)",
        batch(labels=[0, 1, 2, -1]): "-1 in sample 3",
    }
    for content, word in cases.items():
        with refused(tmp_path, "data_batch_3", word):
            load(python_folder(tmp_path, sample, content))


# Archives


@pytest.mark.parametrize(
    "extra",
    [
        member("../outside", b"x"),
        member("cifar-10-batches-bin/../../outside", b"x"),
        member("..", kind=tarfile.DIRTYPE),
        member("/etc/outside", b"x"),
        member("C:\\outside", b"x"),
        member("a\\..\\..\\outside", b"x"),
        member("link", kind=tarfile.SYMTYPE, link="../outside"),
        member("link", kind=tarfile.SYMTYPE, link="/etc/passwd"),
        member("a/b/link", kind=tarfile.SYMTYPE, link="../../../outside"),
        member("link", kind=tarfile.LNKTYPE, link="../outside"),
        member("link", kind=tarfile.LNKTYPE, link="/etc/passwd"),
        member("device", kind=tarfile.CHRTYPE),
        member("pipe", kind=tarfile.FIFOTYPE),
    ],
)
def test_unsafe_archive_is_refused(tmp_path, sample, extra):
    path = write_archive(tmp_path / "some.tar.gz", batches(sample, "bin"), [extra])
    with refused(path, repr(extra[0].name)):
        load(path)
    assert [p.name for p in tmp_path.iterdir()] == ["some.tar.gz"]


def test_links_inside_are_allowed_but_not_as_batches(tmp_path, sample):
    files = batches(sample, "bin")
    inside = [
        member("cifar-10-batches-bin/sub/link", kind=tarfile.SYMTYPE, link="../batches.meta.txt"),
        member("hard", kind=tarfile.LNKTYPE, link="cifar-10-batches-bin/batches.meta.txt"),
    ]
    check_sample(load(write_archive(tmp_path / "some.tar.gz", files, inside)), sample)
    del files["data_batch_5.bin"]
    link = member("data_batch_5.bin", kind=tarfile.SYMTYPE, link="cifar-10-batches-bin/x")
    path = write_archive(tmp_path / "some.tar.gz", files, [link])
    with refused(path, "data_batch_5.bin", "plain file"):
        load(path)


def test_batch_twice_is_refused(tmp_path, sample):
    again = member("elsewhere/data_batch_1.bin", bytes(3073))
    path = write_archive(tmp_path / "some.tar.gz", batches(sample, "bin"), [again])
    with refused(path, "data_batch_1.bin once", "elsewhere"):
        load(path)


def test_truncated_archive(tmp_path, archive):
    content = archive.read_bytes()
    path = tmp_path / "cut.tar.gz"
    size = len(content)
    for length in [0, 1, 5, 12, *range(20, size, 9001), size - 9, size - 1]:
        path.write_bytes(content[:length])
        with refused(path, "truncated or tampered"):
            load(path)


def test_truncated_plain_archive(tmp_path, sample):
    content = tar_bytes(batches(sample, "bin"))
    path = tmp_path / "cut.tar"
    end = len(content.rstrip(b"\0"))
    boundary = content.index(b"cifar-10-batches-bin/batches.meta.txt")
    for length in (300, 1000, 20_000, boundary, boundary + 100, end - 5):
        path.write_bytes(content[:length])
        with refused(path, "truncated or tampered"):
            load(path)


def test_tampered_archive(tmp_path, sample, archive):
    content = archive.read_bytes()
    path = tmp_path / "changed.tar.gz"
    for at in [*range(20, len(content), 7001), len(content) - 8, len(content) - 2]:
        path.write_bytes(content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :])
        with refused(path, "truncated or tampered"):
            load(path)
    plain = bytearray(tar_bytes(batches(sample, "bin")))
    plain[plain.index(b"cifar-10-batches-bin/data_batch_4")] ^= 1
    path.write_bytes(gzip.compress(plain))
    with refused(path, "truncated or tampered"):
        load(path)


def test_file_that_is_no_archive(tmp_path):
    path = tmp_path / "some.tar.gz"
    for content in (b"<html>\nnot found\n</html>", bytes(range(256)) * 20, gzip.compress(b"text")):
        path.write_bytes(content)
        with refused(path, "tar archive"):
            load(path)


# Where data are found


def test_load_falls_back_to_the_bundled_images():
    assert datasets.find_cifar10() is None
    assert load().name == datasets.bundled().name
    with refused(datasets.cache_folder(), "CIFAR-10", error=FileNotFoundError):
        load_cifar10()


def test_cache_folder(tmp_path, monkeypatch):
    assert datasets.cache_folder() == tmp_path / "cache" / "tinyspur"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert datasets.cache_folder() == Path.home() / ".cache" / "tinyspur"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert datasets.cache_folder() == Path.home() / ".cache" / "tinyspur"


def test_empty_cache_folder(tmp_path):
    datasets.cache_folder().mkdir(parents=True)
    (datasets.cache_folder() / f"{ARCHIVE}.part").write_bytes(b"begun")
    assert datasets.find_cifar10() is None


def test_cache_folder_then_variable_then_path(tmp_path, sample, monkeypatch):
    files = batches(sample, "bin")
    cached = write_archive(datasets.cache_folder() / ARCHIVE, files)
    assert datasets.find_cifar10() == cached
    check_sample(load(), sample)
    check_sample(load_cifar10(), sample)
    folder = write_folder(tmp_path / "named" / "cifar-10-batches-py", batches(sample, "py"))
    monkeypatch.setenv("TINYSPUR_DATA", str(folder.parent))
    assert datasets.find_cifar10() == folder
    check_sample(load(), sample)
    given = write_archive(tmp_path / "given.tar.gz", files)
    assert datasets.find_cifar10(given) == given
    monkeypatch.setenv("TINYSPUR_DATA", "")
    assert datasets.find_cifar10() == cached


def test_variable_may_name_an_npz_file(tmp_path, monkeypatch):
    monkeypatch.setenv("TINYSPUR_DATA", str(npz(tmp_path / "own.npz")))
    assert load().name == "own"
    with refused("TINYSPUR_DATA=", "own.npz", "another file"):
        datasets.find_cifar10()


def test_nothing_where_the_user_points(tmp_path, monkeypatch):
    (tmp_path / "some.txt").write_text("text")
    (tmp_path / "empty").mkdir()
    for name, error in (
        ("none", FileNotFoundError),
        ("none.tar.gz", FileNotFoundError),
        ("none.npz", FileNotFoundError),
        ("some.txt", ValueError),
        ("empty", ValueError),
    ):
        path = tmp_path / name
        monkeypatch.delenv("TINYSPUR_DATA", raising=False)
        with refused(path, error=error):
            load(path)
        monkeypatch.setenv("TINYSPUR_DATA", str(path))
        with refused(path, error=error):
            load()
        if name == "none.npz":
            got = f"TINYSPUR_DATA={path}: expected an NPZ file, got a path that does not exist"
            with refused(got, error=FileNotFoundError):
                load()
        else:
            with refused(f"TINYSPUR_DATA={path}", "cifar-10-batches-bin", error=error):
                datasets.find_cifar10()


# Downloads


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
