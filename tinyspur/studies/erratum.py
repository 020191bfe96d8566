"""What a counterexample to a printed statement consists of, and how its numbers are written."""

from __future__ import annotations

from dataclasses import dataclass

from ..certificates.proofs import proof
from ..engine.network import Network


@dataclass(frozen=True)
class Erratum:
    """A statement, where it is printed, why it fails here, and the proof files by name."""

    name: str
    place: str
    statement: str
    text: str
    proofs: dict[str, dict]


def identity(maps: int, taps: int = 1) -> list:
    """Return filters that relay every map."""
    return [
        [[int(s == t and 2 * k + 1 == taps) for k in range(taps)] for s in range(maps)]
        for t in range(maps)
    ]


def pixels(*rows: int | tuple[int, int]) -> list:
    """Return images (N, 1, W) of one row."""
    return [[list(row) if isinstance(row, tuple) else [row]] for row in rows]


def column(*values: object) -> list:
    """Return targets (N, 1)."""
    return [[value] for value in values]


def zeros(point: dict) -> dict:
    """Return a direction that is 0 everywhere."""

    def zero(part: object) -> object:
        return [zero(inner) for inner in part] if isinstance(part, list | tuple) else 0

    return {name: zero(array) for name, array in point.items()}


def along(point: dict, changes: dict[tuple, int]) -> dict:
    """Return the direction with these entries, such as ("W4", 0, 2), and zeros elsewhere."""
    direction = zeros(point)
    for (name, *index, last), value in changes.items():
        part = direction[name]
        for i in index:
            part = part[i]
        part[last] = value
    return direction


def descent(
    net: Network,
    x: list,
    y: list,
    point: dict,
    changes: dict[tuple, int],
    order: int,
    coefficient: str,
    R: str,
) -> dict:
    """Return the proof that R falls along these changes."""
    return proof(
        "not-a-local-minimum",
        net,
        x,
        y,
        {"theta": point},
        direction=along(point, changes),
        order=order,
        coefficient=coefficient,
        risks={"theta": R},
    )


def minimum(net: Network, x: list, y: list, point: dict, R: str, **parts: list) -> dict:
    """Return the proof of a local minimum."""
    return proof("local-minimum", net, x, y, {"theta": point}, risks={"theta": R}, **parts)
