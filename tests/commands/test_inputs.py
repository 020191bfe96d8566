"""The point and the data of a command are those that its arguments name."""

import json

import numpy as np
import pytest
from command_line import POINT, QUICK, SQUARED, data_of, is_refused_in_one_line, over_bad_input

import tinyspur as ts
from tinyspur import datasets


def test_images_with_labels(run):
    done = run(
        *("certify", "classes.npz", "--data", "images.npz", "--samples", 60, "--seed", 5),
        *("--loss", "cross-entropy", "--label-smoothing", "0.2", *QUICK),
        report=True,
    )
    assert done.status == 0
    dataset = {"name": "images", "samples": 60, "input_shape": [1, 3, 3], "classes": 3}
    assert done.report["dataset"] == dataset
    assert done.report["label_smoothing"] == 0.2
    for other in (["--seed", 6], ["--seed", 5, "--label-smoothing", "0.1"]):
        options = ["--samples", 60, "--loss", "cross-entropy", "--label-smoothing", "0.2", *other]
        assert run("certify", "classes.npz", "--data", "images.npz", *options, *QUICK).status == 1


def test_images_without_channels_and_labels_from_1_are_read_and_it_is_said(run):
    options = ["--samples", 60, "--seed", 5, *QUICK]
    expected = run("certify", "classes.npz", "--data", "images.npz", *options, report=True)
    done = run("certify", "classes.npz", "--data", "as_elsewhere.npz", *options, report=True)
    assert done.report["risk"] == expected.report["risk"]
    assert done.lines[:2] == [
        "data:    as_elsewhere: images (90, 3, 3) are read as (N, H, W), of one channel",
        "data:    as_elsewhere: labels 1..3, 3 of them, are classes 0..2 with these names",
    ]


def test_samples_are_drawn_as_those_of_images(run):
    options = ["--samples", 9, "--seed", 4, *QUICK]
    done = run("certify", "random.npz", "--data", "certified_data.npz", *options, report=True)
    data, labels = data_of("certified_data"), np.zeros(40, int)
    drawn = datasets.Dataset("", data.x, labels, ("a",)).subset(9, 4).images
    rows = [int((data.x == image).all(axis=(1, 2, 3)).argmax()) for image in drawn]
    some = ts.TrainingSet(data.x[rows], data.y[rows])
    theta = ts.load_point("random.npz")
    assert done.report["risk"] == pytest.approx(theta.net.risk(theta, some, SQUARED), rel=1e-12)
    assert done.report["dataset"]["samples"] == 9


def test_without_data_the_bundled_images_are_taken(run):
    done = run("certify", "bundled.npz", "--samples", 20, *QUICK, report=True)
    assert done.status == 1
    assert done.report["dataset"]["name"] == datasets.BUNDLED_NAME
    some = datasets.bundled().subset(20, 0)
    data = ts.TrainingSet(some.pixels(), ts.one_hot(some.labels, 10))
    theta = ts.load_point("bundled.npz")
    assert done.report["risk"] == pytest.approx(theta.net.risk(theta, data, SQUARED), rel=1e-12)


BAD = [
    (
        ["certify", "missing.npz"],
        "point: missing.npz: expected an NPZ file, got a path that does not exist$",
    ),
    (["certify", "text.npz/point.npz"], "point: text.npz/point.npz: .* a path that does not exist"),
    (["certify", "."], "point: .: expected an NPZ file, got a folder$"),
    (["certify", "text.npz"], "text.npz: expected an NPZ"),
    (["certify", "certified_data.npz"], "expected an array 'spec'"),
    (["certify", "nan_point.npz"], "b1 has NaN or infinite values"),
    (["certify", "int_point.npz"], "expected arrays all float64 or all float32"),
    (
        ["certify", "certified.npz", "--data", "missing.npz"],
        "--data: missing.npz: expected an NPZ file, got a path that does not exist$",
    ),
    (["certify", "certified.npz", "--data", "missing"], "--data: missing: .* does not exist$"),
    (["certify", "certified.npz", "--data", "folder.npz"], "--data: folder.npz: .* got a folder$"),
    (["certify", "certified.npz", "--data", "text.npz"], "text.npz: expected an NPZ"),
    (["certify", "certified.npz", "--data", "nan.npz"], "x has NaN or infinite values"),
    (["certify", "certified.npz", "--data", "wide.npz"], "wide: the .* width 2, got 4$"),
    (
        ["certify", "certified.npz", "--data", "larger.npz"],
        r"larger: the network expects samples x of shape \(1, 3, 3\), got \(1, 4, 4\)$",
    ),
    (
        ["certify", "certified.npz", "--data", "flat_x.npz"],
        r"flat_x: the .* 3, 3\), got \(1, 9\)$",
    ),
    (["certify", "certified.npz", "--data", "integers.npz"], "floats 'x', got uint8"),
    (["certify", "certified.npz", "--data", "fewer.npz"], "with the same N"),
    (["certify", "certified.npz", "--data", "only_x.npz"], "x and y, or images and labels, got x$"),
    (["certify", "certified.npz", "--data", "both.npz"], "x and y, or images and labels, got im"),
    (
        ["certify", "certified.npz", "--data", "pickle.npz"],
        "pickle.npz: expected an NPZ of plain arrays",
    ),
    (["certify", "classes.npz", "--data", "negative_label.npz"], "labels from 0 to 1, got -1"),
    (["certify", "classes.npz", "--data", "two_classes.npz"], "expects classes, .* 3, got 2"),
    (["certify", "certified.npz", "--data", "images.npz"], "expects classes, .* 2, got 3"),
    (["certify", "classes.npz", "--data", "big_images.npz"], r"expects images .* got \(1, 4, 4\)"),
    (["certify", "certified.npz"], r"expects images of shape \(1, 3, 3\), got \(1, 28, 28\)"),
    ([*POINT, "--label-smoothing", "0.1"], "--label-smoothing: expected labels, got targets y"),
    ([*POINT, "--label-smoothing", "nan"], "--label-smoothing: expected labels, got targets y"),
    (["certify", "classes.npz", "--data", "images.npz", "--label-smoothing", "1"], "0 <= s < 1"),
    ([*POINT, "--samples", "41"], "certified_data: expected 1 to 40 samples, got 41"),
    ([*POINT, "--samples", "0"], "certified_data: expected 1 to 40 samples, got 0"),
    (["certify", "classes.npz", "--data", "images.npz", "--samples", "91"], "images: expected 1 "),
    (["inspect", "missing.npz"], "point: missing.npz: expected .*, got a path that does not exist"),
    (["inspect", "text.npz"], "text.npz: expected an NPZ"),
]


@over_bad_input(BAD)
def test_bad_input_is_one_line(run, options, message):
    is_refused_in_one_line(run(*options), message)


@pytest.mark.parametrize("name", ["wide", "larger"])
def test_data_that_do_not_fit_are_refused_before_they_are_shown(run, name):
    assert run("certify", "certified.npz", "--data", f"{name}.npz").text == ""


# A report of the main program beside the point


SAID = {
    "dataset": {"name": "images", "samples": 60, "input_shape": [1, 3, 3], "classes": 3},
    "loss": "cross-entropy",
    "label_smoothing": 0.2,
    "seed": 5,
    "points": {"theta": {"risk": 1.0, "file": "theta.npz"}},
}
SAME = {"data": "images.npz", "samples": 60, "seed": 5, "loss": "cross-entropy"}
SAME |= {"label-smoothing": 0.2}
NOTE = "note:    the report.json beside this point is for {} (a certificate belongs to its data "


@pytest.fixture
def note(run, tmp_path, files):
    """Certify with a report.json of this text beside the point; return the note, if there is one.

    Options that are None are left out.
    """

    def call(text, name="theta.npz", **changes):
        (tmp_path / name).write_bytes((files / "classes.npz").read_bytes())
        (tmp_path / "report.json").write_bytes(text if isinstance(text, bytes) else text.encode())
        options = {**SAME, **{key.replace("_", "-"): value for key, value in changes.items()}}
        given = [(f"--{key}", value) for key, value in options.items() if value is not None]
        done = run("certify", tmp_path / name, *sum(given, ()), *QUICK)
        assert done.status == (1 if changes else 0), done.errors
        found = [line for line in done.lines if line.startswith("note")]
        assert len(found) <= 1
        return found[0] if found else None

    return call


def test_no_note_where_the_report_has_the_same_data(note):
    assert note(json.dumps(SAID)) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"samples": None}, "60 samples"),
        ({"samples": 59}, "60 samples"),
        ({"seed": 6}, "seed 5"),
        ({"loss": "squared"}, "the cross-entropy loss"),
        ({"label_smoothing": None}, "label smoothing 0.2"),
        ({"data": "others.npz"}, "the data set images"),
        (
            {"data": "others.npz", "samples": 30, "seed": 0, "loss": None, "label_smoothing": 0.1},
            "60 samples of images, the cross-entropy loss, label smoothing 0.2, seed 5",
        ),
        (
            {"data": "own.npz", "samples": 40, "label_smoothing": None, "loss": "squared"},
            "60 samples of images, the cross-entropy loss",
        ),
    ],
    ids=str,
)
def test_a_note_names_what_differs_from_the_report(note, files, changes, words):
    images = dict(np.load("images.npz"))
    np.savez(files / "others.npz", images=images["images"][::-1], labels=images["labels"])
    np.savez(files / "own.npz", x=images["images"] / 255, y=np.eye(3)[images["labels"]])
    assert note(json.dumps(SAID), **changes) == f"{NOTE.format(words)}and loss)"


def test_the_seed_does_not_matter_where_the_report_has_all_samples(note):
    said = {**SAID, "dataset": {**SAID["dataset"], "samples": 90}, "seed": 1}
    assert note(json.dumps(said), samples=None) is None
    assert note(json.dumps(said), samples=50) == f"{NOTE.format('90 samples')}and loss)"


def test_a_report_of_other_points_or_of_another_kind_is_passed_over(note):
    other = {**SAID, "seed": 6}
    assert note(json.dumps(other)) is not None
    assert note(json.dumps(other), name="lower.npz") is None
    for key in SAID:
        assert note(json.dumps({k: v for k, v in other.items() if k != key})) is None
    for change in (
        {"dataset": {"name": "images"}},
        {"dataset": "images"},
        {"points": ["theta.npz"]},
        {"points": {"theta": 3}},
        {"loss": {"name": "squared"}},
        {"label_smoothing": "0.1"},
        {"seed": None},
    ):
        assert note(json.dumps({**other, **change})) is None
    for text in ("", "{", "[]", "3", "null", "[" * 10**5, b"\xff\xfe"):
        assert note(text) is None


def test_a_folder_named_report_is_passed_over(run, tmp_path, files):
    (tmp_path / "certified.npz").write_bytes((files / "certified.npz").read_bytes())
    (tmp_path / "report.json").mkdir()
    done = run("certify", tmp_path / "certified.npz", *POINT[2:], *QUICK)
    assert (done.status, "note" in done.text) == (0, False)
