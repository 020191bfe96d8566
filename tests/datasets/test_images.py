"""Images of a data set: validation, NPZ files, and where data are found."""

import io
import pickle
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from data_files import (
    ALONE,
    ARCHIVE,
    batches,
    check_sample,
    refused,
    write_archive,
    write_folder,
)
from shared import CIFAR10_SAMPLE

from tinyspur import datasets
from tinyspur.datasets import Dataset, load, load_cifar10, load_npz


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


def test_tensors_with_gradients_are_images_and_masked_arrays_are_not():
    images, labels = torch.rand(5, 1, 4, 4, requires_grad=True), torch.arange(5)
    found = Dataset("rows", images, labels, "abcde")
    assert np.array_equal(found.images, images.detach().numpy())
    masked = np.ma.masked_array(found.images, found.images > 0.5)
    with pytest.raises(
        ValueError, match=r"^images: expected plain real numbers, got a masked array"
    ):
        Dataset("rows", masked, labels, "abcde")
    with pytest.raises(
        ValueError, match=r"^labels: expected plain real numbers, got a masked array"
    ):
        Dataset("rows", images, np.ma.masked_array(labels, labels > 2), "abcde")


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


@pytest.mark.parametrize("dimensions", [0, -1, 25, 2.0, "2", None, True])
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
    dataset = load_npz(CIFAR10_SAMPLE)
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
        ({"images": np.zeros((3, 4))}, ["(3, 4)"]),
        ({"labels": np.zeros((3, 2), int)}, ["(3,)", "(3, 2)"]),
        ({"labels": np.array([1, 2, 4]), "class_names": np.array(["a", "b"])}, ["0 to 1"]),
        ({"images": np.zeros((3, 1, 2, 2), np.int64)}, ["int64"]),
        ({"images": np.array([None, 1, 2])}, ["plain arrays", "pickled objects"]),
        ({"labels": np.array([0, 1, None])}, ["plain arrays", "pickled objects"]),
        ({"labels": np.array([0, -2, 1])}, ["-2 in sample 1"]),
        ({"labels": np.array([-1, -2, -1])}, ["-1 in sample 0"]),
        ({"labels": np.array([0, 1])}, ["(3,)", "(2,)"]),
        ({"labels": np.array([0.0, 1, 2.5])}, ["integer labels", "float64"]),
        ({"labels": np.array([0.0, 1, np.nan])}, ["integer labels", "float64"]),
        ({"labels": np.array(["0", "1"] * 2)}, ["(3,)", "(4,)"]),
        ({"labels": np.array(["a", "b", "a"]), "class_names": np.array(["b", "a"])}, ["<U1"]),
        ({"labels": np.array([0, 10**12, 1])}, [10**12, "sample 1"]),
        ({"class_names": np.array(["a", "b"])}, ["0 to 1", "2 in sample 1"]),
        ({"class_names": np.array([1, 2, 3])}, ["class_names", "int64"]),
        ({"class_names": np.array("abc")}, ["class_names", "()"]),
        ({"class_names": np.array(["a", None])}, ["plain arrays", "pickled objects"]),
    ],
)
def test_load_npz_refuses(tmp_path, arrays, words):
    path = npz(tmp_path / "own.npz", **arrays)
    with refused(path, *words):
        load_npz(path)


@pytest.mark.parametrize("kind", [np.int64, np.float16, np.float32, bool])
def test_samples_of_any_real_type_are_read_as_they_are(kind, tmp_path):
    x, y = np.arange(12).reshape(4, 1, 3).astype(kind), np.arange(4).astype(kind)
    np.savez(tmp_path / "samples.npz", x=x, y=y)
    found = datasets.images.load_samples(tmp_path / "samples.npz")
    assert (found.x.dtype, found.y.dtype) == (np.float64, np.float64)
    assert np.array_equal(found.x, x) and np.array_equal(found.y[:, 0], y)


PICTURES = np.random.default_rng(0).integers(0, 256, (3, 3, 6, 7), dtype=np.uint8)


@pytest.mark.parametrize(
    ("stored", "note"),
    [
        (PICTURES, None),
        (PICTURES.transpose(0, 2, 3, 1), r"\(3, 6, 7, 3\) .*\(N, H, W, C\), channels last"),
        (np.repeat(PICTURES, 2, 1)[:, :4].transpose(0, 2, 3, 1), r"\(3, 6, 7, 4\) .*channels last"),
        (PICTURES[:, :1, :, :6].transpose(0, 2, 3, 1), r"\(3, 6, 6, 1\) .*channels last"),
        (PICTURES[:, 0], r"\(3, 6, 7\) .*\(N, H, W\), of one channel"),
        (PICTURES[:, :, :, :3], None),  # (N, 3, 6, 3) may be both
        (PICTURES[:, :, :4, :4].repeat(5, 1), None),  # (N, 15, 4, 4): many maps of few positions
        (PICTURES[:, :, :, :1].repeat(5, 1), None),  # (N, 15, 6, 1): signals
    ],
    ids=["first", "last", "four", "grey, last", "none", "both", "maps", "signals"],
)
def test_channels_are_found_where_only_one_order_can_be_meant(stored, note, tmp_path):
    found = load_npz(npz(tmp_path / "own.npz", images=stored))
    if note is None:
        assert found.notes == () and np.array_equal(found.images, stored)
        return
    assert len(found.notes) == 1 and re.search(note, found.notes[0])
    expected = stored[:, None] if stored.ndim == 3 else np.moveaxis(stored, 3, 1)
    assert np.array_equal(found.images, expected)
    assert found.subset(2, 0).notes == found.notes


@pytest.mark.parametrize(
    ("labels", "names", "expected", "note"),
    [
        ([3, 5, 3], None, ("3", "5"), r"labels 3\.\.5, 2 of them, are classes 0\.\.1"),
        ([2, 1, 3], None, ("1", "2", "3"), r"labels 1\.\.3, 3 of them, are classes 0\.\.2"),
        ([2, 1, 3], ["a", "b", "c"], ("a", "b", "c"), "labels 1..3 count from 1"),
        ([1, 3, 3], ["a", "b", "c"], ("a", "b", "c"), "labels 1..3 count from 1"),
        ([1, 2, 2], ["a", "b", "c"], ("a", "b", "c"), None),
        ([0, 2, 2], None, ("0", "1", "2"), None),
        ([[0], [1], [0]], None, ("0", "1"), None),
        ([[7], [8], [7]], None, ("7", "8"), r"labels 7\.\.8, 2 of them, are classes 0\.\.1"),
        ([1, -1, 1], None, ("-1", "1"), r"labels -1\.\.1, 2 of them, are classes 0\.\.1"),
        (["cat", "ant", "cat"], None, ("ant", "cat"), r"labels ant\.\.cat, 2 of them, are classes"),
    ],
)
def test_labels_that_do_not_begin_with_0_are_numbered_and_keep_their_names(
    labels, names, expected, note, tmp_path
):
    arrays = {"labels": np.array(labels)} | (
        {} if names is None else {"class_names": np.array(names)}
    )
    found = load_npz(npz(tmp_path / "own.npz", **arrays))
    assert found.class_names == expected
    assert len(found.notes) == (note is not None) and re.search(note or "", " ".join(found.notes))
    if names is None:
        assert [expected[n] for n in found.labels] == [str(n) for n in np.ravel(labels)]
    else:
        assert found.labels.tolist() == [n - (note is not None) for n in labels]


@pytest.mark.parametrize("kind", [float, np.float16, bool, ">i4", np.uint64])
def test_whole_labels_of_any_type_are_the_same_labels(kind, tmp_path):
    labels = np.array([0, 1, 1])
    found = load_npz(npz(tmp_path / "own.npz", labels=labels.astype(kind)))
    assert found.labels.dtype == np.int64 and np.array_equal(found.labels, labels)
    assert found.class_names == ("0", "1") and found.notes == ()


def test_floats_of_8_bits_are_taken_as_they_are_and_the_notes_say_so(tmp_path):
    for pixels, note in (
        (PICTURES.astype(float), ("255 are taken as they are, not divided by 255",)),
        (PICTURES / 255, ()),
        (PICTURES - 100.0, ()),
        (PICTURES, ()),
    ):
        found = load_npz(npz(tmp_path / "own.npz", images=pixels))
        assert found.images.dtype == pixels.dtype and np.array_equal(found.images, pixels)
        assert tuple(said.split("up to ")[-1] for said in found.notes) == note


def test_objects_and_one_hot_labels_get_a_hint_that_helps(tmp_path):
    strings = np.array(["cat", "ant", "cat"], object)
    with pytest.raises(ValueError, match=r"got pickled objects as 'labels'; .* \.astype\(str\)$"):
        load_npz(npz(tmp_path / "own.npz", labels=strings))
    assert len(load_npz(npz(tmp_path / "own.npz", labels=strings.astype(str))).class_names) == 2
    labels = np.eye(3)[[0, 2, 1]]
    with pytest.raises(
        ValueError, match=r"\(3, 3\); if they are one-hot, labels\.argmax\(axis=1\)$"
    ):
        load_npz(npz(tmp_path / "own.npz", labels=labels))
    found = load_npz(npz(tmp_path / "own.npz", labels=labels.argmax(axis=1)))
    assert found.labels.tolist() == [0, 2, 1]


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
    content = CIFAR10_SAMPLE.read_bytes()
    path = tmp_path / "own.npz"
    spoilt = [content[:length] for length in range(1, len(content), 5003)]
    for at in (2000, 20000, 40000):
        spoilt.append(content[:at] + bytes([content[at] ^ 0x55]) + content[at + 1 :])
    for damaged in spoilt:
        path.write_bytes(damaged)
        with refused(path, "NPZ"):
            load_npz(path)


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
    (datasets.cache_folder() / f".{ARCHIVE}.abcd").write_bytes(b"begun")
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
    with refused("TINYSPUR_DATA=", "own.npz", "load reads an .npz"):
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


def test_readers_of_data_import_neither_networks_nor_anything_above_them():
    program = (
        f"{ALONE}import tinyspur.datasets\n"
        "print(len(tinyspur.datasets.bundled()))\n"
        "print(*sorted(name for name in sys.modules if name.startswith('tinyspur.')))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stderr == ""
    inside = [f"tinyspur.datasets{name}" for name in ("", ".cifar10", ".images", ".samples")]
    lowest = [f"tinyspur.engine{name}" for name in ("", ".backend", ".plain")]
    used = ["tinyspur.console", *inside, *lowest, "tinyspur.files"]
    assert done.stdout.split() == ["4000", *used]
