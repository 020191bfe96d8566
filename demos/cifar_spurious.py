"""Build a spurious local minimum of a convolutional network on real images, and prove it.

Writes report.json, one NPZ for each point and figure.png to the folder --out. With CIFAR-10 at
hand (--data, --download, the variable TINYSPUR_DATA or the cache folder) it is used, otherwise
the bundled Fashion-MNIST images are.
"""

from __future__ import annotations

import argparse
import os
import sys
from functools import partial
from pathlib import Path

# The matrix products are small: a second BLAS thread gains little, and loses much on busy cores.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
from tqdm import tqdm

from tinyspur import backend, datasets
from tinyspur.constructions.convolutional import (
    SpuriousMinimum,
    find_spurious_minimum,
    revive,
    risk_along_bias,
)
from tinyspur.constructions.data_split import SPLITS
from tinyspur.constructions.embedding import VARIANTS, embed, linear_subnetwork, subnetwork
from tinyspur.constructions.nontrivial import nontrivial_minimum
from tinyspur.losses import CrossEntropy, SquaredLoss, loss_named, one_hot
from tinyspur.network import Conv, Dense, Network, TrainingSet
from tinyspur.plotting import draw_spurious_minimum
from tinyspur.reports import Stages, check_writable, save_point, write_json
from tinyspur.training import descend

DEFAULT_SAMPLES = 4000


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.error = lambda message: parser.exit(2, f"error: {message}\n")
    option = parser.add_argument
    option("--data", metavar="PATH", help="CIFAR-10 folder or archive, or an .npz")
    option("--download", action="store_true", help="fetch CIFAR-10 into the cache folder first")
    option(
        "--samples",
        type=int,
        metavar="N",
        default=argparse.SUPPRESS,
        help=f"samples to use (default: all, but {DEFAULT_SAMPLES} at most)",
    )
    option(
        "--loss",
        choices=[SquaredLoss.name, CrossEntropy.name],
        default=SquaredLoss.name,
        help="of a sample",
    )
    option("--label-smoothing", type=float, default=0.0, metavar="S", help="0 <= S < 1")
    option("--maps", type=int, nargs="+", default=[4, 6, 6], help="maps of the convolutions")
    option("--theta", choices=["linear", "nontrivial"], default="linear", help="the subnetwork")
    option("--isolated", type=int, default=1, metavar="M", help="samples, of the nontrivial theta")
    option("--variant", choices=VARIANTS, default="repaired", help="of the construction")
    option("--split", choices=SPLITS, default="steepest", help="rule of the data split")
    option("--output-unit", type=int, metavar="K", help="output of the split; any, if not given")
    option("--dtype", choices=["float64", "float32"], default="float64", help="of theta")
    option("--backend", choices=["auto", "numpy", "cupy"], default="auto", help="arrays")
    option("--seed", type=int, default=0, help="of all random choices")
    option("--descend", type=int, default=12, metavar="STEPS", help="of L-BFGS; 0 for none")
    option("--out", type=Path, default=Path("out"), metavar="FOLDER", help="for files")
    return parser.parse_args(arguments)


def load(options: argparse.Namespace) -> datasets.Dataset:
    """Return the images that the options ask for, and say which they are."""
    if options.download:
        datasets.download_cifar10()
    dataset = datasets.load(options.data)
    if dataset.name == datasets.BUNDLED_NAME:
        print("No CIFAR-10 found: using the bundled Fashion-MNIST images (see --data, --download).")
    samples = getattr(options, "samples", min(DEFAULT_SAMPLES, len(dataset)))
    return dataset.subset(samples, options.seed)


def report(options, dataset, found: SpuriousMinimum, training_set, loss, descended) -> dict:
    """Return what goes to report.json."""
    net = found.theta.net
    gradient = net.gradient(found.theta, training_set, loss).vector
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
            "risk": found.lower.risk,
            "decrease": found.lower.decrease,
            "layer": found.lower.layer,
            "map": found.lower.map,
            "step": found.lower.step,
            "file": "lower.npz",
        },
    }
    if descended is not None:
        points["descended"] = {
            "risk": net.risk(descended, training_set, loss),
            "file": "descended.npz",
        }
    if found.escape is not None:
        points["escape"] = {
            "kind": found.escape.kind,
            "risk": found.escape.risk,
            "decrease": found.escape.decrease,
            "step": found.escape.step,
            "distance": found.escape.distance,
            "file": "escape.npz",
        }
    return {
        "dataset": {
            "name": dataset.name,
            "samples": len(dataset),
            "input_shape": list(dataset.input_shape),
            "classes": dataset.classes,
        },
        "network": net.spec,
        "loss": loss.name,
        "label_smoothing": options.label_smoothing,
        "seed": options.seed,
        "backend": options.backend,
        "dtype": options.dtype,
        "variant": options.variant,
        "points": points,
        "split": found.split.as_dict(),
        "verdict": found.verdict,
    }


def run(options: argparse.Namespace) -> None:
    """Build, certify, descend, print and write."""
    for name in ("seed", "descend"):
        if getattr(options, name) < 0:
            raise ValueError(f"--{name}: expected 0 or more, got {getattr(options, name)}")
    check_writable(options.out)
    chosen = backend.select(options.backend)
    options.backend = chosen.name
    loss, stages = loss_named(options.loss), Stages()
    dataset = load(options)
    training_set = TrainingSet(
        dataset.pixels(), one_hot(dataset.labels, dataset.classes, options.label_smoothing)
    )
    if options.output_unit not in (None, *range(dataset.classes)):
        raise ValueError(
            f"output unit: expected 0..{dataset.classes - 1}, got {options.output_unit}"
        )
    layers = [*map(Conv, options.maps), Dense(dataset.classes)]
    net = Network(dataset.input_shape, layers)
    print(f"data:    {dataset}\nnetwork: {net}")
    print(f"loss:    {loss.name}, label smoothing {options.label_smoothing:g}")
    print(f"backend: {chosen.reason}; {options.dtype}", flush=True)

    with stages("theta", f"building theta: the {options.theta} subnetwork"):
        if options.theta == "linear":
            phi = linear_subnetwork(subnetwork(net), training_set, loss, options.variant)
        elif options.variant == "literal":
            raise ValueError("--theta nontrivial: expected --variant repaired, got literal")
        else:
            phi = nontrivial_minimum(
                subnetwork(net), training_set, loss, options.isolated, options.seed
            )
        theta, pair = embed(net, phi, training_set.x, options.variant)
        theta = theta.to(chosen.xp, options.dtype)
    found = find_spurious_minimum(
        theta,
        pair,
        training_set,
        loss,
        options.variant,
        options.split,
        options.output_unit,
        options.seed,
        stages,
    )
    print(f"\n{found}")
    if options.variant == "repaired":
        with stages("witness", "reviving a dead map"):
            witness = revive(theta, training_set, loss, pair.upper, pair.reserved[0], options.seed)
        if witness.decrease > witness.rounding:
            print(f"shorter witness that theta is not global, {witness}")
    bar = partial(tqdm, desc="risk along the bias", leave=False)
    with stages("curve", "", own_line=True):
        steps, risks = risk_along_bias(found, training_set, loss, progress=bar)
    descended = None
    if options.descend:
        with (
            stages("descent", "", own_line=True),
            tqdm(total=options.descend, desc="L-BFGS from the lower point", leave=False) as bar,
        ):

            def show(risk: float) -> None:
                bar.set_postfix(risk=f"{risk:.6g}")
                bar.update()

            descended = descend(found.lower.theta, training_set, loss, options.descend, show)

    with stages("files", f"writing to {options.out}"):
        summary = report(options, dataset, found, training_set, loss, descended)
        points = {
            "theta": found.theta,
            "theta_prime": found.theta_prime,
            "lower": found.lower.theta,
            "descended": descended,
            "escape": found.escape and found.escape.theta,
        }
        for name, point in points.items():
            if point is not None:
                save_point(options.out / f"{name}.npz", point)
        draw_spurious_minimum(options.out / "figure.png", found, np.array(steps), risks)
    write_json(options.out / "report.json", {**summary, "seconds": stages.seconds})
    if descended is not None:
        risk = summary["points"]["descended"]["risk"]
        print(
            f"descent: R = {risk:.9g} after at most {options.descend} L-BFGS steps from the lower "
            f"point, lower than theta by {found.risk - risk:.3g}"
        )
    print(f"verdict: {found.verdict}")


def main(arguments: list[str] | None = None) -> int:
    """Run the program; return 0, or 2 after a one-line error."""
    options = parse(arguments)
    try:
        run(options)
    except (ValueError, RuntimeError, OSError, MemoryError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
