"""Files of data in the official formats, written from 20 images of CIFAR-10."""

import contextlib
import gzip
import io
import pickle
import struct
import tarfile

import numpy as np
import pytest

ARCHIVE = "cifar-10-binary.tar.gz"
ALONE = """
import importlib.machinery, importlib.util, sys
spec = importlib.machinery.PathFinder.find_spec("tinyspur")
sys.modules["tinyspur"] = importlib.util.module_from_spec(spec)
"""  # the start of a program in which the package itself imports nothing


@contextlib.contextmanager
def refused(*words, error=ValueError):
    """Expect an error whose message is one line that contains `words`."""
    with pytest.raises(error) as caught:
        yield caught
    message = str(caught.value)
    assert len(message.splitlines()) == 1, message
    for word in words:
        assert str(word) in message


def check_sample(dataset, sample):
    assert dataset.name == "CIFAR-10"
    assert dataset.images.dtype == np.uint8
    assert dataset.labels.dtype == np.int64
    np.testing.assert_array_equal(dataset.images, sample["images"])
    np.testing.assert_array_equal(dataset.labels, sample["labels"])
    assert dataset.class_names == tuple(sample["class_names"].tolist())


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
