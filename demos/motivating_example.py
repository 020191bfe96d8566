"""Redraw Figures 1 to 3 of [PWL] from networks that compute them, each with its certificate.

Samples of a curve in groups, a line segment fitted to each group; the maximum of minima of affine
pieces; the gadgets that take minima and maxima. Writes motivating_example.png to the folder --out.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

# Ctrl-C ends it in one line while the rest is imported, too.
if __name__ == "__main__" and callable(signal.getsignal(signal.SIGINT)):
    signal.signal(signal.SIGINT, lambda *_: os._exit(os.write(2, b"interrupted\n") and 130))

# The matrix products are small: a second BLAS thread gains little, and loses much on busy cores.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

from tinyspur.certificates import certify_cell
from tinyspur.console import Help, exit_status
from tinyspur.constructions.lattices import Lattice, connected_pieces, lattice_network
from tinyspur.constructions.piecewise_linear import Groups, fit_groups, gated_minimum
from tinyspur.datasets.samples import TrainingSet
from tinyspur.engine.losses import SquaredLoss
from tinyspur.engine.network import Network
from tinyspur.figures.motivating_example import CurveFit, draw_motivating_example
from tinyspur.files import check_outputs
from tinyspur.layers import Dense


def curve(samples: int) -> TrainingSet:
    """Return samples evenly spaced in [-1, 1] and the targets x^2 + sin(3 x) / 4."""
    x = np.linspace(-1, 1, samples)
    return TrainingSet(x[:, None, None], (x**2 + np.sin(3 * x) / 4)[:, None])


def meeting(data: TrainingSet, loss) -> Groups:
    """Return two groups whose line segments meet between them, or two equal ones."""
    x = np.sort(data.x.ravel())
    for threshold in (x[2:-1] + x[1:-2]) / 2:
        parts = Groups.at(data.x, [1.0], [threshold])
        if len(connected_pieces(fit_groups(data, parts, loss), data.x)[0]) == 2:
            return parts
    return Groups.equal(data.x, [1.0], 2)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    parser.error = lambda message: parser.exit(2, f"error: {message}\n")
    parser.add_argument("--samples", type=int, default=24, metavar="N", help="of the curve")
    parser.add_argument("--out", type=Path, default=Path("out"), metavar="FOLDER", help="for files")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> None:
    """Build, certify, print and draw."""
    if options.samples < 8:
        raise ValueError(f"--samples: expected 8 or more, got {options.samples}")
    check_outputs(options.out, {"motivating_example.png": []})
    data, loss = curve(options.samples), SquaredLoss()
    net = Network((1, 1), [Dense(9), Dense(1)])  # wide enough for five groups
    fits = []
    for letter, groups in zip("abc", (2, 3, 4), strict=True):
        parts = meeting(data, loss) if groups == 2 else Groups.equal(data.x, [1.0], groups)
        fit = fit_groups(data, parts, loss)
        pieces, regions = connected_pieces(fit, data.x)
        printed = lattice_network((1, 1), [Lattice.of(pieces, regions)], data.x)
        repaired = gated_minimum(net, data, loss, parts)
        certificates = [certify_cell(theta, data, loss) for theta in (printed, repaired)]
        fits.append(CurveFit(data, fit, pieces, regions, printed, repaired, *certificates))
        auxiliary = len(pieces) - groups
        print(
            f"Figure 1({letter}): {groups} groups, {auxiliary or 'no'} auxiliary "
            f"piece{'s' * (auxiliary != 1)}, "
            f"R = {net.risk(repaired, data, loss):.6g}\n"
            f"  max-min as printed: {certificates[0].words}\n"
            f"  gates:              {certificates[1].words}"
        )
    draw_motivating_example(options.out / "motivating_example.png", fits)
    print(f"written: {options.out / 'motivating_example.png'}")


def main(arguments: list[str] | None = None) -> int:
    """Run the program; return 0, 2 after a one-line error, or 130 after Ctrl-C."""
    options = parse(arguments)
    return exit_status(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
