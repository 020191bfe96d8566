"""Map more than 10,000 certified local minima of one small network on one small data set.

Each partition of the samples along a direction gives one. Draws their risks, how many there are for
a network of a given width, and where training from random starts ends among them: each is followed
to the minimum that it is heading for, which is proved where it can be. Writes atlas.npz and
atlas.png to the folder --out, and each result when it is found to atlas.results: after Ctrl-C or a
kill the same command goes on from there.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from dataclasses import fields
from pathlib import Path

# Ctrl-C ends it in one line while the rest is imported, too.
if __name__ == "__main__" and callable(signal.getsignal(signal.SIGINT)):
    signal.signal(signal.SIGINT, lambda *_: os._exit(os.write(2, b"interrupted\n") and 130))

# The matrix products are small: a second BLAS thread gains little, and loses much on busy cores.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

from tinyspur.console import Help, Stages, exit_status
from tinyspur.datasets.samples import TrainingSet
from tinyspur.engine.losses import SquaredLoss
from tinyspur.engine.network import Network
from tinyspur.figures.studies import draw_atlas
from tinyspur.files import check_outputs
from tinyspur.layers import Dense
from tinyspur.records import kept_in
from tinyspur.studies.atlas import Atlas, map_minima, partitions
from tinyspur.studies.processes import processes

RESULTS = "atlas.results"  # what is done, from which the same command goes on


def surface(samples: int, seed: int) -> TrainingSet:
    """Return random points of [-1, 1]^2 and the targets sin(3 x_1) cos(2 x_2)."""
    x = np.random.default_rng(seed).uniform(-1, 1, (samples, 1, 2))
    return TrainingSet(x, np.sin(3 * x[:, 0, :1]) * np.cos(2 * x[:, 0, 1:]))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    parser.error = lambda message: parser.exit(2, f"error: {message}\n")
    option = parser.add_argument
    option("--samples", type=int, default=30, metavar="N", help="of the surface")
    option("--groups", type=int, default=6, metavar="K", help="at most")
    option("--directions", type=int, default=24, metavar="D", help="along which groups lie")
    option("--minima", type=int, default=12000, metavar="M", help="partitions to draw")
    option("--starts", type=int, default=40, metavar="S", help="of training")
    option("--workers", type=int, default=os.cpu_count(), metavar="W", help="processes")
    option("--seed", type=int, default=0, help="of all random choices")
    option("--out", type=Path, default=Path("out"), metavar="FOLDER", help="for files")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> None:
    """Build, certify, train, print and write."""
    bounds = {"samples": 4, "groups": 2, "directions": 1, "minima": 1}
    for name, least in (bounds | {"starts": 0, "workers": 1, "seed": 0}).items():
        if getattr(options, name) < least:
            raise ValueError(f"--{name}: expected {least} or more, got {getattr(options, name)}")
    arrays = [field.name for field in fields(Atlas)]
    check_outputs(options.out, {"atlas.npz": arrays, "atlas.png": []})
    started = time.perf_counter()
    data = surface(options.samples, options.seed)
    net = Network((1, 2), [Dense(2 * options.groups - 1), Dense(1)])
    angles = np.linspace(0, np.pi, options.directions, endpoint=False)
    directions = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    found = partitions(data.x, directions, options.groups, options.minima, options.seed)
    print(f"network: {net}, {options.samples} samples, {len(found)} different partitions")
    with processes(options.workers) as executor:
        atlas = map_minima(
            net,
            data,
            SquaredLoss(),
            found,
            options.starts,
            seed=options.seed,
            executor=executor,
            path=options.out / RESULTS,
            stage=Stages(),
        )
    print(atlas)
    atlas.save(options.out / "atlas.npz")
    draw_atlas(options.out / "atlas.png", atlas)
    print(f"{time.perf_counter() - started:.0f} s; atlas.npz, atlas.png in {options.out}")


def main(arguments: list[str] | None = None) -> int:
    """Run the program; return 0, 2 after a one-line error, or 130 after Ctrl-C."""
    options = parse(arguments)
    return exit_status(lambda: run(options), lambda: kept_in(options.out / RESULTS))


if __name__ == "__main__":
    sys.exit(main())
