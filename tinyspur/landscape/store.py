"""The risks that a scan has found so far, and the file from which it goes on."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from ..files import as_path, naming, read_arrays
from .job import TOGETHER, Block, Job
from .risks import Landscape

SAVE_SECONDS = 1.0  # between two writings of what is finished


class Store:
    """The risks found so far, and the file that holds them.

    `values` and `done` are of theta, then of the points that are not theta: `numbers` has the
    numbers of these, and `places` where each point's risk is.
    """

    def __init__(self, path: str | Path | None, job: Job):
        self.where, self.path = job.where, None if path is None else as_path(path)
        moves = job.where.moves().any(axis=1)
        self.numbers = np.flatnonzero(moves)
        self.places = np.where(moves, np.cumsum(moves), 0)
        self.values = np.full(len(self.numbers) + 1, np.nan)
        self.done = np.zeros(len(self.values), bool)
        self.rounding, self.changed, self.written = np.nan, False, time.monotonic()
        self.unit_ball = job.where.within(1.0)
        self.key = "" if path is None else job.key()
        if self.path is not None and self.path.exists():
            self._read(job)

    def _read(self, job: Job) -> None:
        arrays = read_arrays(self.path)
        with naming(f"{self.path}:"):
            same = str(arrays.get("key")) == self.key
            if (
                same and arrays["done"].any()
            ):  # the key does not cover functions of the user's own, but R(theta) does
                eps = float(np.finfo(job.where.theta.vector.dtype).eps)
                same = np.isclose(arrays["centre"], job.centre(), eps**0.5, 0, equal_nan=True)
            if not same:
                raise ValueError(
                    "expected no file, or that of the same scan, got another one: remove it first"
                )
            if arrays["done"].shape != self.done.shape:
                raise ValueError(f"expected {self.done.size} risks, got {arrays['done'].size}")
            self.done, self.rounding = arrays["done"], float(arrays["rounding"])
            self.values[self.places] = arrays["risks"].ravel()
            self.values[0] = arrays["centre"]

    def missing(self) -> list[Block]:
        """Return the blocks of points that are not theta and not all done."""
        found = []
        for start in range(0, len(self.numbers), TOGETHER):
            numbers = self.numbers[start : start + TOGETHER]
            place = slice(start + 1, start + 1 + len(numbers))
            if not self.done[place].all():
                found.append(Block(place, numbers))
        return found

    @property
    def risks(self) -> np.ndarray:
        """Return the risks in the shape of the plane or of the lines, NaN where none is known."""
        return self.values[self.places].reshape(self.where.shape)

    def landscape(self) -> Landscape:
        """Return what was found."""
        where, numbers = self.where, (float(self.values[0]), float(self.rounding))
        return Landscape(where.alpha, where.beta, self.risks, *numbers, self.unit_ball)

    def kept(self) -> str:
        """Return words that say what is in the file, for the end of an error message."""
        if self.path is None:
            return ""
        found = f"{self.done.sum()} of {self.done.size} risks are in {self.path}"
        return f"; {found}, from which the same call goes on"

    def put(self, place: slice, risks: np.ndarray | float) -> None:
        """Take risks that were found; they are written at once if the last time is long ago."""
        self.values[place], self.done[place], self.changed = risks, True, True
        if time.monotonic() - self.written > SAVE_SECONDS:
            self.write()

    def put_rounding(self, rounding: float) -> None:
        """Take the rounding error, with which the scan is finished."""
        self.rounding, self.changed = rounding, True

    def write(self) -> None:
        """Write what was found since the last time, if anything."""
        if self.path is not None and self.changed:
            self.landscape().save(self.path, key=np.array(self.key), done=self.done)
        self.changed, self.written = False, time.monotonic()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *error: object) -> None:
        self.write()
