"""What the arguments of a command name: the point, and the data that it is for."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from .. import datasets
from ..datasets.samples import TrainingSet
from ..engine.backend import namespace
from ..engine.losses import HuberLoss, Loss, loss_named, one_hot
from ..engine.network import Network
from ..engine.parameters import Parameters
from ..engine.points import load_point
from ..files import check_outputs, naming


@contextmanager
def argument(name: str) -> Iterator[None]:
    """Name the argument in the error for a file that can't be opened."""
    try:
        yield
    except OSError as error:
        raise type(error)(f"{name}: {error}") from error


def check_output_files(outputs: dict[str, tuple[Path | None, list[str]]]) -> None:
    """Raise an error unless each argument names another file, which may be written.

    Each has what `check_replaceable` knows an older one of its like by.
    """
    taken: dict[Path, str] = {}
    for name, (path, parts) in outputs.items():
        if path is None:
            continue
        with argument(name):
            check_outputs(path.parent, {path.name: parts})
        other = taken.setdefault(path.resolve(), name)
        if other != name:
            raise ValueError(f"{name}: expected another file than {other}, got {path} for both")


def read_point(options: argparse.Namespace) -> Parameters:
    """Return the point that the arguments name."""
    with argument("point"):
        return load_point(options.point)


def read_lower(path: Path, theta: Parameters) -> Parameters:
    """Return the point of a file that is said to be lower than theta, as theta is stored."""
    with argument("--lower"):
        lower = load_point(path)
    if lower.net != theta.net:
        raise ValueError(
            f"--lower: expected a point of {theta.net}, got one of {lower.net}: {path}"
        )
    return lower.to(namespace(theta.vector), np.float64)


def loss_of(options: argparse.Namespace) -> Loss:
    """Return the loss that the arguments name."""
    if options.delta is not None and options.loss != HuberLoss.name:
        raise ValueError(f"--delta: expected --loss huber, got --loss {options.loss}")
    return loss_named(options.loss) if options.delta is None else HuberLoss(options.delta)


def read_data(options: argparse.Namespace) -> TrainingSet | datasets.Dataset:
    """Return all samples x and y, or labelled images, that the arguments name."""
    if options.data is None:
        return datasets.load()
    with argument("--data"):
        return datasets.load_samples(options.data) or datasets.load(options.data)


def problem_words(options: argparse.Namespace) -> list[str]:
    """Return the options that name the data and the loss, as they are typed."""
    usual = {"data": None, "samples": None, "loss": "squared", "delta": None}
    usual |= {"label_smoothing": 0.0, "seed": 0}
    given = {name: getattr(options, name) for name in usual}
    return [
        word
        for name, value in given.items()
        if value != usual[name]
        for word in (f"--{name.replace('_', '-')}", str(value))
    ]


def check_fit(name: str, *parts: tuple[str, object, object]) -> None:
    """Raise ValueError unless the data fit the network; each part is (what, expected, found)."""
    for what, wanted, got in parts:
        if wanted != got:
            raise ValueError(f"{name}: the network expects {what} {wanted}, got {got}")


def load_data(options: argparse.Namespace, net: Network) -> tuple[dict, TrainingSet, int]:
    """Return what a report says of the data, the samples, and how many there were to draw from."""
    data, outputs = read_data(options), math.prod(net.shapes[-1])
    total = len(data)
    if isinstance(data, TrainingSet):
        if options.label_smoothing:
            raise ValueError(f"--label-smoothing: expected labels, got targets y: {options.data}")
        name, classes, notes = options.data.stem, None, ()
        check_fit(
            name,
            ("samples x of shape", net.input_shape, data.x.shape[1:]),
            ("targets y of width", outputs, data.y.shape[1]),
        )
        if options.samples is not None:
            with naming(f"{name}:"):
                data = data.subset(options.samples, options.seed)
    else:
        images, name, classes, notes = data, data.name, data.classes, data.notes
        check_fit(
            name,
            ("images of shape", net.input_shape, images.input_shape),
            ("classes, as many as outputs,", outputs, classes),
        )
        if options.samples is not None:
            images = images.subset(options.samples, options.seed)
        y = one_hot(images.labels, classes, options.label_smoothing)
        data = TrainingSet(images.pixels(), y)
    for note in notes:
        print(f"data:    {name}: {note}")
    print(f"data:    {name}: {len(data)} samples {data.x.shape[1:]}, targets {data.y.shape[1:]}")
    about = {"name": name, "samples": len(data), "input_shape": list(data.x.shape[1:])}
    return {**about, "classes": classes}, data, total


def report_beside(point: Path) -> dict | None:
    """Return what the report.json beside `point` says of its data; None if it says nothing.

    The keys are name, samples, loss, label_smoothing and seed.
    """
    file = point.with_name("report.json")
    try:
        report = json.loads(file.read_text("utf-8")) if file.is_file() else {}
        files = [about["file"] for about in report["points"].values()]
        said = {key: report["dataset"][key] for key in ("name", "samples")}
        said |= {key: report[key] for key in ("loss", "label_smoothing", "seed")}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    kinds = (str, int, str, int | float, int)
    sound = all(isinstance(value, kind) for value, kind in zip(said.values(), kinds, strict=True))
    return said if sound and point.name in files else None


def other_data(options: argparse.Namespace, about: dict, total: int) -> str:
    """Return how data and loss in the report beside the point differ from these, in words, or "".

    The seed matters only where samples were drawn from more, label smoothing only with labels.
    """
    said, words = report_beside(options.point), []
    if said is None:
        return ""
    name, samples = " ".join(said["name"].split()), said["samples"]
    other_name, other_number = said["name"] != about["name"], samples != about["samples"]
    if other_number:
        words.append(f"{samples} samples" + f" of {name}" * other_name)
    elif other_name:
        words.append(f"the data set {name}")
    if said["loss"] != options.loss:
        words.append(f"the {' '.join(said['loss'].split())} loss")
    smoothing = said["label_smoothing"]
    if about["classes"] is not None and smoothing != options.label_smoothing:
        words.append(f"label smoothing {smoothing:g}")
    if samples < total and said["seed"] != options.seed:
        words.append(f"seed {said['seed']}")
    return ", ".join(words)
