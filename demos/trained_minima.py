"""Train small networks from many random starts, and prove which local minima training ends in.

Each training is followed to the strict local minimum that it is heading for, often with units
exactly at their kinks, and interval arithmetic proves that it is one. It is spurious where a lower
point is proved to be lower, too. Every finished training is kept in the folder --out: after Ctrl-C
or a kill the same command goes on from there. Writes trained_minima.json, trained_minima.png, and a
folder for each problem, to the folder --out.
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

from tinyspur.console import Help, Stages, exit_status
from tinyspur.figures.studies import draw_trained_minima
from tinyspur.files import check_outputs, write_json
from tinyspur.studies.processes import processes
from tinyspur.studies.trained_minima import train_and_prove
from tinyspur.studies.trained_problems import PROBLEMS
from tinyspur.studies.trained_proof import trained_proof

HERE = Path(__file__).resolve().parent


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    parser.error = lambda message: parser.exit(2, f"error: {message}\n")
    option = parser.add_argument
    names = list(PROBLEMS)
    text = f"some of {', '.join(names)} (default: all)"
    option("--problems", choices=names, nargs="+", default=names, metavar="P", help=text)
    option("--runs", type=int, default=16, metavar="N", help="trainings of each problem")
    option("--workers", type=int, default=os.cpu_count(), metavar="W", help="processes")
    option("--seed", type=int, default=0, help="of the samples; starts have the seeds 0, 1, ...")
    option("--out", type=Path, default=Path("out"), metavar="FOLDER", help="for files")
    option(
        "--proof",
        type=Path,
        nargs="?",
        const=HERE / "trained_minimum.json",
        metavar="FILE",
        help="write a small proof file alone, to demos/trained_minimum.json or this file",
    )
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> None:
    """Train, prove, print and write."""
    for name, least in {"runs": 1, "workers": 1, "seed": 0}.items():
        if getattr(options, name) < least:
            raise ValueError(f"--{name}: expected {least} or more, got {getattr(options, name)}")
    if options.proof is not None:
        points = trained_proof()
        points.save(options.proof)
        print(f"{points}\n{options.proof}")
        return
    check_outputs(options.out, {"trained_minima.json": ["problems"], "trained_minima.png": []})
    started = time.perf_counter()
    problems = [PROBLEMS[name](options.seed) for name in dict.fromkeys(options.problems)]
    with processes(options.workers) as executor:
        found = train_and_prove(problems, options.runs, options.out, executor, Stages())
    print(*found, sep="\n\n")
    settings = {"runs": options.runs, "seed": options.seed}
    report = {**settings, "problems": [minima.as_dict() for minima in found]}
    write_json(options.out / "trained_minima.json", report)
    draw_trained_minima(options.out / "trained_minima.png", found)
    seconds = time.perf_counter() - started
    print(f"{seconds:.0f} s; trained_minima.json, trained_minima.png in {options.out}")


def kept(options: argparse.Namespace) -> str:
    """Return what there is to say after Ctrl-C."""
    done = sum(len(list((options.out / name).glob("*.json"))) for name in set(options.problems))
    return f"{done} finished trainings are in {options.out}, the same command goes on" * bool(done)


def main(arguments: list[str] | None = None) -> int:
    """Run the program; return 0, 2 after a one-line error, or 130 after Ctrl-C."""
    options = parse(arguments)
    return exit_status(lambda: run(options), lambda: kept(options))


if __name__ == "__main__":
    sys.exit(main())
