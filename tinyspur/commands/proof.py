"""The proof file of the command certify."""

from __future__ import annotations

from decimal import ROUND_CEILING
from pathlib import Path

from ..constructions.exact_points import exact
from ..datasets.samples import TrainingSet
from ..engine.losses import Loss
from ..engine.parameters import Parameters
from ..fitting.rational import digits


def write_proof(path: Path, theta: Parameters, data: TrainingSet, loss: Loss) -> bool:
    """Write a proof file for the exact local minimum next to theta, and say how far that is.

    Return whether there is one; if not, say why.
    """
    try:
        points = exact(theta, data, loss)
    except ValueError as error:  # AssumptionError is one
        print(f"proof:   not written: {error}")
        return False
    points.save(path)
    held = "the stored point, which is exactly a local minimum"
    if points.distance:
        distance = digits(points.distance, 2, ROUND_CEILING)
        held = f"an exact local minimum, within {distance} of the stored point"
    print(f"proof:   {path} holds {held}, in fractions of up to {points.bits:,} bits")
    return True
