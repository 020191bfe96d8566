"""Measure what the papers' statements say as printed, and as repaired: one table, E1 to E11.

Prints the table and writes audit.json and audit.png to the folder --out, and each row when it is
found to audit.results: after Ctrl-C or a kill the same command goes on from there. With --exact it
makes the counterexamples in small integers instead, each checked in fractions by check_proof.py.
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

from tinyspur.console import Help, Stages, exit_status
from tinyspur.figures.studies import draw_audit
from tinyspur.files import check_outputs, write_json
from tinyspur.records import kept_in
from tinyspur.studies.audit import audit
from tinyspur.studies.errata import write_errata
from tinyspur.studies.findings import table
from tinyspur.studies.processes import processes

HERE = Path(__file__).resolve().parent
RESULTS = "audit.results"  # what is done, from which the same command goes on


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    parser.error = lambda message: parser.exit(2, f"error: {message}\n")
    parser.add_argument("--samples", type=int, default=300, metavar="N", help="images to use")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count(), metavar="W", help="processes"
    )
    parser.add_argument("--seed", type=int, default=0, help="of all random choices")
    parser.add_argument("--out", type=Path, default=Path("out"), metavar="FOLDER", help="for files")
    parser.add_argument(
        "--exact",
        type=Path,
        nargs="?",
        const=HERE / "errata",
        metavar="FOLDER",
        help="write the exact counterexamples alone, to demos/errata or this folder",
    )
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> None:
    """Measure, print and write."""
    if options.exact is not None:
        for name in write_errata(options.exact, HERE / "check_proof.py"):
            print(options.exact / name)
        return
    if options.workers < 1:
        raise ValueError(f"--workers: expected 1 or more, got {options.workers}")
    check_outputs(options.out, {"audit.json": ["rows", "seconds"], "audit.png": []})
    stages = Stages()
    with processes(options.workers) as executor:
        where = executor, options.out / RESULTS
        findings = audit(options.samples, options.seed, *where, stages)
    print(table(findings))
    draw_audit(options.out / "audit.png", findings)
    rows = [finding.as_dict() for finding in findings]
    settings = {"samples": options.samples, "seed": options.seed}
    write_json(options.out / "audit.json", {**settings, "rows": rows, "seconds": stages.seconds})


def main(arguments: list[str] | None = None) -> int:
    """Run the program; return 0, 2 after a one-line error, or 130 after Ctrl-C."""
    options = parse(arguments)
    return exit_status(lambda: run(options), lambda: kept_in(options.out / RESULTS))


if __name__ == "__main__":
    sys.exit(main())
