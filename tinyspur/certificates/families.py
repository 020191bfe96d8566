"""The family of a minimum: which symmetries move it without any change, and what each of them is.

Near a point that the strict certificate proves, the points that are no higher are those that follow
from the `frozen` coordinates, see `free`, and from the ones without influence: one for each choice
of them. So as many as these are is the dimension of the family, neither more nor less.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

from ..shown import Shown

WORDS = {  # of a kind: all of it, and what it does to one coordinate
    "scaling": ("scalings of {units}", "scaling of {where}"),
    "mixing": ("mixings of {units} of one pattern", "mixing of {where}"),
    "shift": ("shifts of {units} of one slope", "shift of {where}, of one slope"),
    "few samples": (
        "weights of {units} with fewer samples than weights",
        "fewer samples than weights, {where}",
    ),
    "few values": (
        "weights around {units} that few values depend on",
        "few values depend on it, around {where}",
    ),
    "exchange": ("exchanges between {units}", "exchange between {where}"),
    "dependent inputs": ("dependent inputs of {units}", "inputs that are dependent, {where}"),
    "parallel": ("linear ways of {units} beside shortcuts", "beside a shortcut, {where}"),
    "outputs": ("shifts of all outputs", "shift of all outputs"),
    "dead": ("incoming weights of {dead}", "incoming weight of a dead unit, {where}"),
    "unread": ("weights of {units} that no output depends on", "no output depends on {where}"),
    "reads nothing": ("weights that read only inactive units or zeros", "reads nothing but 0"),
}
KINDS = tuple(WORDS)
IDLE = "dead", "unread", "reads nothing"  # those of coordinates without influence


class Symmetry(NamedTuple):
    """What moves points without any change: its kind, and the layer and the maps that it moves."""

    kind: str
    layer: int
    maps: tuple[int, ...] = ()

    def __str__(self) -> str:
        where = f"unit {self.maps[0]}" if len(self.maps) == 1 else f"units {_listed(self.maps)}"
        return WORDS[self.kind][1].format(where=f"{where} of layer {self.layer}")


@dataclass(frozen=True, repr=False)
class Family(Shown):
    """The family of points around a minimum that compute the same: its `dimension`, and why.

    `symmetries` has one for each frozen coordinate and each without influence, by its number: a
    frozen one is moved by its symmetry, and all of them together are independent. Where the strict
    certificate holds, no other point near is as low, so the dimension is exact; elsewhere it is the
    rank of the symmetries that are known. Permutations of units are not counted.
    """

    symmetries: dict[int, Symmetry]

    @property
    def dimension(self) -> int:
        """Return how many coordinates can be chosen freely."""
        return len(self.symmetries)

    def of_kinds(self, *kinds: str) -> set[int]:
        """Return the coordinates that symmetries of some kinds move."""
        return {n for n, one in self.symmetries.items() if one.kind in kinds}

    @property
    def kinds(self) -> dict[str, int]:
        """Return how many dimensions each kind of symmetry gives."""
        counts = Counter(one.kind for one in self.symmetries.values())
        return {kind: counts[kind] for kind in KINDS if counts[kind]}

    @property
    def reasons(self) -> dict[int, str]:
        """Return in words why each coordinate is frozen or without influence, by its number."""
        return {n: str(one) for n, one in self.symmetries.items()}

    def words(self, kind: str) -> str:
        """Return a kind of symmetry in words, with how many units it moves."""
        moved = {(s.layer, t) for s in self.symmetries.values() if s.kind == kind for t in s.maps}
        plural = "s" * (len(moved) != 1)
        units, dead = (f"{len(moved)} {what}{plural}" for what in ("unit", "dead unit"))
        return WORDS[kind][0].format(units=units, dead=dead)

    def __str__(self) -> str:
        if not self.dimension:
            return "family of dimension 0: no symmetry moves the point"
        parts = [f"{self.words(kind)} ({count})" for kind, count in self.kinds.items()]
        return f"family of dimension {self.dimension}: {', '.join(parts)}"


def _listed(maps: tuple[int, ...]) -> str:
    return " and ".join(map(str, maps))
