"""CIFAR-10 in both official formats, as folder and archive, whole, damaged and malicious."""

import gzip
import os
import pickle
import pickletools
import tarfile

import numpy as np
import pytest
from data_files import (
    batches,
    binary_batch,
    check_sample,
    member,
    py2_array,
    py2_batch,
    py2_dict,
    py2_string,
    py3_batch,
    refused,
    tar_bytes,
    write_archive,
    write_folder,
)

from tinyspur import datasets
from tinyspur.datasets import cifar10, load


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


@pytest.mark.parametrize("kind", ["bin", "py"])
@pytest.mark.parametrize("last", [0, 4])
def test_a_batch_cut_at_a_whole_image_is_named(tmp_path, sample, kind, last):
    files = batches(sample, kind)
    name = [n for n in sorted(files) if n.startswith("data_batch")][last]
    write = binary_batch if kind == "bin" else py2_batch
    where = slice(4 * last, 4 * last + 3)
    files[name] = write(sample["images"][where], sample["labels"][where])
    why = "as in another batch" if kind == "bin" else "as batches.meta says"
    for path in (
        write_folder(tmp_path / "folder", files),
        write_archive(tmp_path / "some.tar.gz", files),
    ):
        with refused(path, f"{name}: expected 4 images, {why}, got 3"):
            load(path)


def test_a_batch_with_too_many_images_is_named(tmp_path, sample):
    files = batches(sample, "py")
    files["data_batch_4"] = py2_batch(sample["images"][:5], sample["labels"][:5])
    with refused(tmp_path, "data_batch_4: expected 4 images, as batches.meta says, got 5"):
        load(write_folder(tmp_path, files))
    (tmp_path / "batches.meta").unlink()
    with refused(tmp_path, "data_batch_1: expected 5 images, as in another batch, got 4"):
        load(tmp_path)


@pytest.mark.parametrize("kind", ["bin", "py"])
def test_all_batches_of_another_length_than_the_meta_file_says_are_named(tmp_path, sample, kind):
    def three(images, labels):
        return (binary_batch if kind == "bin" else py2_batch)(images[:3], labels[:3])

    folder = write_folder(tmp_path, batches(sample, kind, three))
    if kind == "bin":  # its text has the names of the classes only
        assert len(load(folder)) == 15
        return
    with refused(folder, "data_batch_1: expected 4 images, as batches.meta says, got 3"):
        load(folder)


def cifar100(sample, kind):
    """Return the files of CIFAR-100, with 20 images for training."""
    coarse = sample["labels"] * 2
    flat = sample["images"].reshape(20, -1)
    if kind == "bin":
        records = np.hstack([coarse[:, None], sample["labels"][:, None], flat]).astype(np.uint8)
        names = {"fine_label_names.txt": b"apple\n", "coarse_label_names.txt": b"fruit\n"}
        return {"train.bin": records.tobytes(), "test.bin": records[:4].tobytes(), **names}
    train = {b"data": flat, b"fine_labels": [0] * 20, b"coarse_labels": [0] * 20}
    meta = {b"fine_label_names": [b"apple"], b"coarse_label_names": [b"fruit"]}
    return {"train": pickle.dumps(train, 2), "test": b"", "meta": pickle.dumps(meta, 2)}


@pytest.mark.parametrize("kind", ["bin", "py"])
def test_cifar100_is_named(tmp_path, sample, kind):
    files = cifar100(sample, kind)
    name = f"cifar-100-{'binary' if kind == 'bin' else 'python'}"
    folder = write_folder(tmp_path / "a" / name, files)
    other = write_folder(tmp_path / "b" / "renamed", files)
    train = folder / ("train.bin" if kind == "bin" else "train")
    for path in (folder, folder.parent, other, train):
        with refused(path, "expected a CIFAR-10 archive", "got CIFAR-100"):
            load(path)
    members = [member(f"{name}/{n}", content) for n, content in files.items()]
    (tmp_path / "renamed.tar.gz").write_bytes(gzip.compress(tar_bytes({}, members)))
    with refused(tmp_path / "renamed.tar.gz", "expected CIFAR-10, got CIFAR-100"):
        load(tmp_path / "renamed.tar.gz")
    batch = batches(sample, kind)
    batch["data_batch_2" + ".bin" * (kind == "bin")] = train.read_bytes()
    with refused(tmp_path, "data_batch_2", "expected CIFAR-10, got", "CIFAR-100"):
        load(write_folder(tmp_path / "c", batch))


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


LABELS = {
    "list": list,
    "int": lambda labels: [int(n) for n in labels],
    "uint8": lambda labels: list(labels.astype(np.uint8)),
    "array": np.array,
    "big-endian array": lambda labels: labels.astype(">i4"),
    "tuple": tuple,
}


@pytest.mark.parametrize("key", [str, str.encode], ids=["str", "bytes"])
@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
@pytest.mark.parametrize("protocol", range(6))
def test_batches_that_were_pickled_again_are_read(tmp_path, sample, protocol, labels, key):
    def write(images, numbers):
        data = images.reshape(len(images), -1)
        batch = {key("data"): data, key("labels"): labels(numbers.astype(np.int64))}
        return pickle.dumps(batch | {key("batch_label"): key("some")}, protocol=protocol)

    files = batches(sample, "py", write)
    names = [key(name) for name in sample["class_names"].tolist()]
    meta = {key("label_names"): names, key("num_cases_per_batch"): np.int64(4)}
    files["batches.meta"] = pickle.dumps(meta, protocol=protocol)
    check_sample(load(write_folder(tmp_path, files)), sample)


def test_names_of_numpy_1_are_read(tmp_path, sample):
    def write(images, labels):
        batch = {b"data": images.reshape(len(images), -1), b"labels": list(labels.astype(np.int64))}
        new = pickle.dumps(batch, protocol=2)
        assert b"numpy._core.multiarray" in new
        return new.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")

    check_sample(load(write_folder(tmp_path, batches(sample, "py", write))), sample)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("numeric\n_frombuffer", b"(]cnumpy\ndtype\nU\x02u1\x85R)U\x01CtR."),
        ("numeric\n_frombuffer", b"(U\x01aU\x02u1)U\x01CtR."),
        ("multiarray\nscalar", b"(cnumpy\ndtype\nU\x02O8\x85RU\x08aaaaaaaatR."),
        ("multiarray\nscalar", b"(cnumpy\ndtype\nU\x02i8\x85RNtR."),
        ("multiarray\nscalar", b"(cnumpy\ndtype\nU\x02i8\x85RU\x04aaaatR."),
    ],
)
def test_arrays_and_numbers_of_anything_but_plain_bytes_are_refused(
    tmp_path, sample, name, arguments
):
    batch = b"\x80\x02cnumpy.core." + name.encode() + b"\n" + arguments
    with refused(tmp_path, "data_batch_3", "expected a pickle of numeric arrays and plain"):
        load(python_folder(tmp_path, sample, batch))


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
        pickle.dumps({"data": 0, "labels": 0}, protocol=2): "data",
        pickle.dumps({b"data": 0}, protocol=2): "'labels'",
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
