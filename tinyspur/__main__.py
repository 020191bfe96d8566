"""Certify, settle and inspect points from the command line: tinyspur, or python -m tinyspur."""

from __future__ import annotations

import argparse
import math
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from . import __version__, datasets
from .commands.certify import certify
from .commands.inspect import inspect
from .commands.settle import settle
from .console import exit_status
from .refutations.escapes import REACH

EXAMPLES = """examples:
  python -m tinyspur certify out/theta.npz
  python -m tinyspur inspect out/theta.npz"""
CERTIFY_EXAMPLES = """exit status:
  0 a local minimum (P1), 1 none, or undecided, 2 an error in the input

examples:
  python demos/cifar_spurious.py --out out
  python -m tinyspur certify out/theta.npz --lower out/lower.npz --no-evidence --no-search

  python demos/cifar_spurious.py --loss cross-entropy --label-smoothing 0.1 --out out/ce
  python -m tinyspur certify out/ce/theta.npz --loss cross-entropy --label-smoothing 0.1

  python demos/cifar_spurious.py --data cifar-10-batches-bin --out out/cifar
  python -m tinyspur certify out/cifar/theta.npz --data cifar-10-batches-bin --samples 4000

  python -m tinyspur certify point.npz --data regression.npz --loss huber --json report.json"""
SETTLE_EXAMPLES = """exit status:
  0 a local minimum is proved, 1 none, or undecided, 2 an error in the input

examples:
  python -m tinyspur settle point.npz --data regression.npz --out settled.npz
  python -m tinyspur certify settled.npz --data regression.npz"""
INSPECT_EXAMPLES = """examples:
  python -m tinyspur inspect out/theta.npz
  python -m tinyspur inspect out/theta.npz --layer 2 --size 6
  python -m tinyspur inspect out/theta.npz --layer 2 --block 2 0"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        self.exit(2, f"error: {message}\n")


def path(text: str) -> Path:
    """Return the path of an argument, which may not be empty."""
    if not text:
        raise argparse.ArgumentTypeError("expected a path, got an empty one")
    return Path(text)


def add_problem(option: Callable) -> None:
    """Add the arguments that name a point, the data and the loss."""
    option("point", type=path, help="an .npz as save_point writes it")
    data = (
        "a CIFAR-10 folder or archive, an .npz with images and labels, or one with float arrays "
        "x (N, C, H, W) or (N, C, W) and y (N, d_y), which are taken as they are (default: "
        f"${datasets.DATA_VARIABLE}, CIFAR-10 in the cache folder, or the bundled images)"
    )
    option("--data", type=path, metavar="PATH", help=data)
    option("--samples", type=int, metavar="N", help="samples, drawn with the seed (default: all)")
    losses = ["squared", "cross-entropy", "absolute", "huber"]
    option("--loss", choices=losses, default="squared", help="loss of a sample (default: squared)")
    option("--delta", type=float, help="where the Huber loss turns linear (default: 1)")
    option("--label-smoothing", type=float, default=0.0, metavar="S", help="0 <= S < 1")
    seed = "of all random choices, also of the samples that are drawn (default: 0)"
    option("--seed", type=int, default=0, metavar="N", help=seed)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    text = {"formatter_class": argparse.RawDescriptionHelpFormatter}
    name = "tinyspur" if Path(sys.argv[0]).stem == "tinyspur" else "python -m tinyspur"
    whole = _Parser(name, description=__doc__, epilog=EXAMPLES, **text)
    whole.add_argument("--version", action="store_true", help="print the version")
    commands = whole.add_subparsers(dest="command", metavar="COMMAND")
    about = "print certificate, evidence and lower points nearby, for any point"
    command = commands.add_parser(
        "certify", help=about, description=about, epilog=CERTIFY_EXAMPLES, **text
    )
    command.set_defaults(run=certify)
    option = command.add_argument
    add_problem(option)
    radius = f"largest change in the search (default: the certificate's radius, or {REACH:g})"
    option("--radius", type=float, metavar="R", help=radius)
    about = "a lower point of the same network, such as lower.npz, which shows it spurious"
    option("--lower", type=path, metavar="POINT", help=about)
    option("--backend", choices=["auto", "numpy", "cupy"], default="auto", help="array library")
    option("--no-evidence", action="store_true", help="skip evidence (as long as 300 gradients)")
    option("--no-search", action="store_true", help="skip the search (as long as 250 gradients)")
    about = "write a report to FILE; a folder that does not exist is made"
    option("--json", type=path, metavar="FILE", help=about)
    about = "write the exact local minimum next to the point, in fractions, to FILE (squared loss)"
    option("--proof", type=path, metavar="FILE", help=about)
    about = "move a point to the local minimum that it is heading for, and prove that it is one"
    command = commands.add_parser(
        "settle", help=about, description=about, epilog=SETTLE_EXAMPLES, **text
    )
    command.set_defaults(run=settle)
    option = command.add_argument
    add_problem(option)
    about = "where the point goes (default: settled.npz)"
    option("--out", type=path, default=Path("settled.npz"), metavar="FILE", help=about)
    option("--steps", type=int, default=1000, metavar="N", help="at most (default: 1000)")
    option("--seconds", type=float, default=math.inf, metavar="S", help="no new step after these")
    option("--json", type=path, metavar="FILE", help="write a report to FILE")
    about = "print the layers of a point, or a corner of one of its weight matrices"
    command = commands.add_parser(
        "inspect", help=about, description=about, epilog=INSPECT_EXAMPLES, **text
    )
    command.set_defaults(run=inspect)
    option = command.add_argument
    option("point", type=path, help="an .npz as save_point writes it")
    option("--layer", type=int, metavar="L", help="show entries of W[L]; layers count from 1")
    option("--block", type=int, nargs=2, metavar=("T", "C"), help="from channel C to map T only")
    option("--size", type=int, metavar="N", help="rows and columns to show (default: 10)")
    return whole


def main(arguments: list[str] | None = None) -> int:
    """Run a command; return its status, 2 without one or after an error, 130 after Ctrl-C."""
    program = parser()
    options = program.parse_args(arguments)
    if options.version:
        print(f"tinyspur {__version__}")
        return 0
    if options.command is None:
        program.print_help()
        return 2
    return exit_status(lambda: options.run(options))


def program() -> int:
    """Run the command of this process, which may end where a reader closes the pipe."""
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    return main()


if __name__ == "__main__":
    sys.exit(program())
