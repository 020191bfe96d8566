"""The command line in a folder of points and data: what the tests of its commands share."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest

import tinyspur as ts
from tinyspur import __main__ as command
from tinyspur import datasets

SQUARED = ts.SquaredLoss()
NET = ts.Network((1, 3, 3), [ts.Conv(1), ts.Conv(3), ts.Conv(3), ts.Dense(2)])
QUICK = ["--no-evidence", "--no-search"]
POINT = ["certify", "certified.npz", "--data", "certified_data.npz"]


def draw_data(samples=40, seed=0):
    rng = np.random.default_rng(seed)
    return ts.TrainingSet(rng.random((samples, 1, 3, 3)), rng.standard_normal((samples, 2)))


def odd_targets(linear):
    """Inputs in pairs x, -x, and targets of mean 0: uncorrelated with x unless `linear`."""
    x = np.random.default_rng(1).standard_normal((15, 1, 2))
    x = np.concatenate([x, -x])
    flat = np.hstack([x.reshape(30, 2), np.ones((30, 1))])
    y = flat[:, :1] ** 3
    return ts.TrainingSet(x, y if linear else y - flat @ np.linalg.lstsq(flat, y)[0])


def write_files(folder):
    """Write points, data sets and files that are neither."""
    data = draw_data()

    def save(name, theta, data=None):
        ts.save_point(folder / f"{name}.npz", theta)
        if data is not None:
            np.savez(folder / f"{name}_data.npz", x=data.x, y=data.y)

    certified, _ = ts.linear_minimum(NET, data, SQUARED)
    save("certified", certified, data)
    save("single", certified.to(np, np.float32))
    save("literal", ts.linear_minimum(NET, data, SQUARED, variant="literal")[0])
    save("random", ts.kaiming_start(NET, 0))
    huber = ts.linear_minimum(NET, data, ts.HuberLoss(0.3))[0]
    save("huber", huber)
    save("absolute", ts.linear_minimum(NET, data, ts.AbsoluteLoss())[0])
    wide = ts.Network((1, 2), [ts.Dense(4), ts.Dense(1)], ts.Tanh())
    found = ts.smooth_minimum(wide, np.random.default_rng(0).standard_normal((40, 1, 2)))
    save("smooth", found.theta, found.data)
    save("saddle", wide.zeros(), odd_targets(linear=True))
    save("flat", wide.zeros(), odd_targets(linear=False))
    save("convolution", ts.Network((1, 2), [ts.Conv(2), ts.Dense(1)], ts.Tanh()).zeros())
    save("pools", ts.Network((1, 4, 4), [ts.AveragePool(2), ts.MaxPool(2)]).zeros())
    rng = np.random.default_rng(2)
    mixed = [ts.Conv(2), ts.MaxPool(2), ts.Conv(3, 1), ts.AveragePool(2), ts.Dense(5)]
    mixed = ts.kaiming_start(ts.Network((1, 4, 4), mixed), 3)
    mixed.b[1][...] = -0.5, 1.25
    mixed.W[3].weights[1] = 0
    save("mixed", mixed)

    labels = rng.integers(3, size=90)
    images = rng.integers(256, size=(90, 1, 3, 3)).astype(np.uint8)
    np.savez(folder / "images.npz", images=images, labels=labels)
    dataset = datasets.load(folder / "images.npz").subset(60, 5)
    soft = ts.TrainingSet(dataset.pixels(), ts.one_hot(dataset.labels, 3, 0.2))
    net = ts.Network((1, 3, 3), [ts.Conv(1), ts.Conv(3), ts.Conv(3), ts.Dense(3)])
    save("classes", ts.linear_minimum(net, soft, ts.CrossEntropy())[0])
    save("bundled", ts.kaiming_start(ts.Network((1, 28, 28), [ts.Dense(10)]), 0))

    x, y = data.x, data.y
    bad = np.where(np.arange(x.size).reshape(x.shape) == 30, np.nan, x)
    for name, arrays in {
        "nan": {"x": bad, "y": y},
        "wide": {"x": x, "y": np.hstack([y, y])},
        "larger": {"x": np.zeros((5, 1, 4, 4)), "y": y[:5]},
        "flat_x": {"x": x.reshape(40, 9), "y": y},
        "integers": {"x": images[:40], "y": y},
        "fewer": {"x": x, "y": y[:5]},
        "only_x": {"x": x},
        "both": {"x": x, "y": y, "images": images, "labels": labels},
        "huge": {"x": x, "y": 1e200 * y},
        "huge_x": {"x": 1e300 * x, "y": y},
        "pickle": {"x": np.array([None]), "y": y},
        "negative_label": {"images": images, "labels": labels - 1},
        "two_classes": {"images": images, "labels": labels % 2},
        "as_elsewhere": {"images": images[:, 0], "labels": labels[:, None] + 1},
        "big_images": {"images": np.zeros((3, 1, 4, 4)), "labels": np.arange(3)},
    }.items():
        np.savez(folder / f"{name}.npz", **arrays)
    arrays = dict(np.load(folder / "certified.npz"))
    np.savez(folder / "nan_point.npz", **{**arrays, "b1": np.array([np.nan])})
    np.savez(folder / "int_point.npz", **{**arrays, "b1": np.array([1])})
    (folder / "text.npz").write_text("no archive")
    (folder / "folder.npz").mkdir()


def called(capsys, path, *options, report=False):
    """Call the program; what it returns has its `status`, `lines`, `errors`, and the `report`."""
    try:
        status = command.main([*map(str, options), *(["--json", str(path)] if report else [])])
    except SystemExit as end:
        status = end.code
    out, errors = capsys.readouterr()
    assert "Traceback" not in errors
    content = json.loads(path.read_text()) if report else None
    return SimpleNamespace(
        status=status, text=out, lines=out.splitlines(), errors=errors, report=content
    )


def same(found, expected):
    """Return whether `found`, read from JSON, is what `expected` becomes there."""
    return found == json.loads(json.dumps(expected))


def data_of(name):
    return datasets.load_samples(f"{name}.npz")


def over_bad_input(cases):
    """Run a test on each case of options and the message that they lead to; warnings are errors."""

    def over(test):
        ids = [" ".join(options) for options, _ in cases]
        test = pytest.mark.parametrize(("options", "message"), cases, ids=ids)(test)
        return pytest.mark.filterwarnings("error")(test)

    return over


def is_refused_in_one_line(done, message):
    assert done.status == 2
    (line,) = done.errors.splitlines()
    assert line.startswith("error: ")
    assert re.search(message, line)
    assert "verdict" not in done.text
