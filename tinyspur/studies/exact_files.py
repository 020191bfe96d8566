"""What the main program writes of exact points: numbers of the report, and a proof file."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np

from ..constructions.exact_points import ExactPoints
from ..datasets.images import Dataset
from ..fitting.rational import check_work

PROOF, KEYS = "proof.json", ["format", "claim"]  # and what tells that it is one of ours
LARGEST_FILE = 50 * 10**6  # bytes of a proof file that is written


def short_pixels(dataset: Dataset) -> np.ndarray:
    """Return the images as floats (N, C, H, W), uint8 ones divided by 256, so that none is rounded.

    Those divided by 255 are fractions of 53 bits, and exact points then take hours. Raises
    AssumptionError for so many pixels that they would anyway.
    """
    if dataset.images.dtype != np.uint8:
        return dataset.pixels()
    check_work(math.prod(dataset.input_shape) + 1, len(dataset) * 255**2)
    return dataset.images / 256


def write_findings(folder: str | Path, points: ExactPoints | None) -> dict:
    """Write the proof file unless it gets too large, and return what a report says of the points.

    That is {"exact": ...}, with risks as fractions "p/q" and what was checked. Without points
    nothing; then, and without a file, that of an earlier run is removed.
    """
    path = Path(folder) / PROOF
    size = points.file_size() if points else 0
    written = 0 < size <= LARGEST_FILE
    if written:
        points.save(path)
    else:
        path.unlink(missing_ok=True)
    if not points:
        return {}
    found = {
        "risks": {name: text_of(risk) for name, risk in points.risks.items()},
        "bits": points.bits,
        "distance": float(points.distance),
        "checks": list(points.checks),
        "verdict": points.verdict,
        "file": PROOF if written else None,
        "file_size": path.stat().st_size if written else size,
    }
    return {"exact": found}


def words_of(found: dict) -> str:
    """Return what there is to say of the proof file, from what a report says of the points."""
    size = f"{found['file_size'] / 1e6:.3g} MB"
    if found["file"]:
        return f"{PROOF}: {size}, to be checked by demos/check_proof.py"
    return f"{PROOF}: not written, it would take {size}, more than {LARGEST_FILE / 1e6:.0f} MB"


def text_of(value: Fraction) -> str:
    """Return "p/q" or "p" for a fraction of any length."""
    p, q = (str(Decimal(part)) for part in (value.numerator, value.denominator))
    return p if q == "1" else f"{p}/{q}"
