"""Place networks with smooth activations at local minima that are not global, and prove it.

For each activation the certified minimum, its surroundings and what training finds elsewhere; then
one activation in networks far wider than there are samples. The targets are built for the inputs.
An exact local minimum is proved next to each point, for targets that differ from the stored ones by
rounding at most: both distances are printed.
Writes smooth_activations.json, smooth_activations.png and smooth_widths.png to the folder --out,
and each result when it is found to smooth_activations.results: after Ctrl-C or a kill the same
command goes on from there.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from pathlib import Path

# Ctrl-C ends it in one line while the rest is imported, too.
if __name__ == "__main__" and callable(signal.getsignal(signal.SIGINT)):
    signal.signal(signal.SIGINT, lambda *_: os._exit(os.write(2, b"interrupted\n") and 130))

# The matrix products are small: a second BLAS thread gains little, and loses much on busy cores.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

from tinyspur import datasets
from tinyspur.certificates.certificate import round_up
from tinyspur.console import Help, Stages, exit_status
from tinyspur.engine.activations import (
    ELU,
    GELU,
    Activation,
    Arctan,
    Sigmoid,
    SiLU,
    Sine,
    Softplus,
    Swish,
    Tanh,
)
from tinyspur.figures.studies import draw_activations, draw_widths
from tinyspur.files import check_outputs, write_json
from tinyspur.records import kept_in
from tinyspur.studies.processes import processes
from tinyspur.studies.smooth_survey import SmoothRow, survey

ACTIVATIONS: tuple[tuple[str, Activation], ...] = (
    ("sigmoid", Sigmoid()),
    ("tanh", Tanh()),
    ("softplus", Softplus()),
    ("SiLU", SiLU()),
    ("GELU", GELU()),
    ("ELU", ELU()),
    ("sine", Sine()),
    ("arctan", Arctan()),
    ("swish, beta=2", Swish(2.0)),
)
RESULTS = "smooth_activations.results"  # what is done, from which the same command goes on
WIDTHS = (1, 3, 10, 30, 100, 300, 1000)


def inputs(options: argparse.Namespace) -> np.ndarray:
    """Return the inputs (N, 1, d): random ones, or principal components of the bundled images."""
    if options.data == "random":
        rng = np.random.default_rng(options.seed)
        return rng.standard_normal((options.samples, 1, options.dimensions))
    images = datasets.bundled().subset(options.samples, options.seed)
    return images.principal_components(options.dimensions)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    parser.error = lambda message: parser.exit(2, f"error: {message}\n")
    option = parser.add_argument
    option("--data", choices=("images", "random"), default="images", help="the inputs")
    option("--samples", type=int, default=100, metavar="N", help="of the inputs")
    option("--dimensions", type=int, default=5, metavar="d", help="of the inputs")
    option("--hidden", type=int, nargs="+", default=[7, 5, 4], metavar="n", help="hidden widths")
    option(
        "--widths",
        type=int,
        nargs="+",
        default=list(WIDTHS),
        metavar="n",
        help="of smooth_widths.png",
    )
    option("--directions", type=int, default=40, metavar="D", help="random lines from each minimum")
    option("--starts", type=int, default=3, metavar="S", help="of training")
    option("--iterations", type=int, default=500, metavar="K", help="of L-BFGS from each start")
    option("--workers", type=int, default=os.cpu_count(), metavar="W", help="processes")
    option("--seed", type=int, default=0, help="of all random choices")
    option("--out", type=Path, default=Path("out"), metavar="FOLDER", help="for files")
    return parser.parse_args(arguments)


def print_distances(rows: list[SmoothRow]) -> None:
    """Print how far, at most, exact minima are from the points, and their targets from y."""
    certificates = [row.found.certificate for row in rows if row.found.certificate.holds]
    if certificates:
        theta = round_up(max(c.distance for c in certificates))
        y = round_up(max(c.targets for c in certificates))
        print(f"each certified point is within {theta} of an exact local minimum,")
        print(f"for targets within {y} of the stored ones")


def run(options: argparse.Namespace) -> None:
    """Build, certify, train, print and write."""
    least = {"samples": 2, "dimensions": 1, "directions": 1, "starts": 1, "iterations": 1}
    for name, bound in (least | {"workers": 1, "seed": 0}).items():
        if getattr(options, name) < bound:
            raise ValueError(f"--{name}: expected {bound} or more, got {getattr(options, name)}")
    for name in ("hidden", "widths"):
        if min(getattr(options, name)) < 1:
            raise ValueError(f"--{name}: expected 1 or more, got {min(getattr(options, name))}")
    figures = {"smooth_activations.png": [], "smooth_widths.png": []}
    check_outputs(options.out, {"smooth_activations.json": ["activations", "widths"], **figures})
    started, x = time.perf_counter(), inputs(options)
    settings = (options.directions, options.starts, options.iterations, options.seed)
    networks = [(name, sigma, options.hidden) for name, sigma in ACTIVATIONS]
    networks += [(f"width {n}", Tanh(), [n]) for n in options.widths]
    print(f"{len(x)} inputs of dimension {options.dimensions}, hidden layers {options.hidden}")
    with processes(options.workers) as executor:
        found = survey(x, networks, *settings, executor, options.out / RESULTS, Stages())
    rows, wide = found[: len(ACTIVATIONS)], found[len(ACTIVATIONS) :]
    print(*rows, "one hidden layer, tanh", *wide, sep="\n")
    write_json(
        options.out / "smooth_activations.json",
        {"activations": [r.as_dict() for r in rows], "widths": [r.as_dict() for r in wide]},
    )
    draw_activations(options.out / "smooth_activations.png", rows)
    draw_widths(options.out / "smooth_widths.png", wide)
    print_distances(rows + wide)
    seconds = time.perf_counter() - started
    print(f"{seconds:.0f} s; smooth_activations.json and two figures in {options.out}")


def main(arguments: list[str] | None = None) -> int:
    """Run the program; return 0, 2 after a one-line error, or 130 after Ctrl-C."""
    options = parse(arguments)
    return exit_status(lambda: run(options), lambda: kept_in(options.out / RESULTS))


if __name__ == "__main__":
    sys.exit(main())
