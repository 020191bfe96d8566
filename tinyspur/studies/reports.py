"""The report of a run of the main program: its settings, and what it found."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from ..constructions.spurious import SpuriousMinimum
from ..datasets.duplicates import Duplicates
from ..datasets.images import Dataset
from ..datasets.samples import TrainingSet
from ..engine.live import live_part
from ..engine.losses import Loss
from ..engine.network import Network
from ..engine.parameters import Parameters

POINTS = ("theta", "theta_prime", "lower", "descended", "escape")
DRAWN = ("figure2", "figure3", "surfaces")  # of the landscapes


def outputs(report: str, numbers: str, figures: bool, replot: bool) -> dict[str, list[str]]:
    """Return the names of the files that a run writes, each with what tells one of ours.

    With `figures` those of the landscapes too, with `replot` nothing else; `numbers` is the file of
    their numbers.
    """
    drawn = {f"{name}.{kind}": [] for name in DRAWN for kind in ("png", "pdf")}
    if replot:
        return drawn
    files = {report: ["points", "verdict"], "figure.png": []}
    files |= {f"{name}.npz": ["spec"] for name in POINTS}
    return files | drawn | {numbers: ["level_sets", "lines"]} if figures else files


def settings_of(
    dataset: Dataset,
    duplicates: Duplicates,
    net: Network,
    loss: Loss,
    label_smoothing: float,
    seed: int,
    backend: str,
    dtype: str,
    variant: str,
) -> dict:
    """Return what a report says of the settings of a run."""
    return {
        "dataset": {
            "name": dataset.name,
            "samples": len(dataset),
            "input_shape": list(dataset.input_shape),
            "classes": dataset.classes,
            **({"duplicates": asdict(duplicates)} if duplicates.samples else {}),
        },
        "network": net.spec,
        "loss": loss.name,
        "label_smoothing": label_smoothing,
        "seed": seed,
        "backend": backend,
        "dtype": dtype,
        "variant": variant,
    }


def other_settings(path: str | Path, settings: dict, trained: bool) -> list[str]:
    """Return the names of the settings in which the report at `path`, if there is one, differs.

    A report of a run that trained or did not, other than this one, differs in its theta.
    """
    if not Path(path).exists():
        return []
    with open(path, encoding="utf-8") as file:
        earlier = json.load(file)
    settings = json.loads(json.dumps(settings))
    other = [name for name, value in settings.items() if earlier.get(name) != value]
    return other + ["theta"] * (("training" in earlier) != trained)


def findings_of(
    found: SpuriousMinimum, descended: Parameters | None, data: TrainingSet, loss: Loss
) -> dict:
    """Return what a report says of the points that were found, of their split and the verdict."""
    lower = found.lower
    point = live_part(found.theta).point  # the gradient is 0 elsewhere
    gradient = point.net.gradient(point, data, loss).vector
    points = {
        "theta": {
            "risk": found.risk,
            "gradient_norm": float((gradient**2).sum()) ** 0.5,
            "certificate": found.certificate.as_dict(),
            "file": "theta.npz",
        },
        "theta_prime": {
            "risk": found.theta_prime_risk,
            "risk_difference": found.theta_prime_risk - found.risk,
            "file": "theta_prime.npz",
        },
        "lower": {
            "risk": lower.risk,
            "decrease": lower.decrease,
            "layer": lower.layer,
            "map": lower.map,
            "step": lower.step,
            "file": "lower.npz",
        },
    }
    if descended is not None:
        point = live_part(descended).point
        risk = point.net.risk(point, data, loss)
        points["descended"] = {"risk": risk, "file": "descended.npz"}
    if found.escape is not None:
        points["escape"] = {
            "kind": found.escape.kind,
            "risk": found.escape.risk,
            "decrease": found.escape.decrease,
            "step": found.escape.step,
            "distance": found.escape.distance,
            "file": "escape.npz",
        }
    return {"points": points, "split": found.split.as_dict(), "verdict": found.verdict}
