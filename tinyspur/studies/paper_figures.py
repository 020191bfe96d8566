"""The experiments of [CNN] Section 5: the risk around the points of a proof, on planes and lines.

`scan_figures` evaluates what Figures 2 and 3 of the paper show and keeps the numbers in a folder,
from which `read_figures` returns them without evaluating anything.
"""

from __future__ import annotations

import json
import math
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..certificates import certify
from ..constructions.spurious import SpuriousMinimum
from ..datasets.samples import TrainingSet
from ..engine.losses import Loss
from ..engine.parameters import Parameters
from ..files import naming, write_json
from ..landscape.directions import RandomDirections, random_direction
from ..landscape.planes import Lines, Plane
from ..landscape.risks import Landscape
from ..landscape.scan import scan

AFAR = 1.5  # reach of planes seen from afar, in units of the certified reach
NEARBY = 2.5  # reach of those seen from nearby, in units of how far the risk falls from theta'
ESCAPE = 2.0  # how far an escape is followed, in units of its length
SAMPLED = 8  # directions that tell how far the risk falls
STEPS, FINE = 13, 21  # points on a line, and on one beside an escape
NUMBERS = "figures.json"


class Point(NamedTuple):
    """A point whose surroundings are drawn, what it is, and its certified radius, or 0."""

    name: str
    symbol: str
    words: str
    theta: Parameters
    radius: float = 0.0


@dataclass(frozen=True)
class Panel:
    """A part of a figure: the landscape around the point `symbol`, and what is known of it.

    `axes` are the directions, what is drawn `along` them a distance where their length is 1, or a
    coefficient. `certified` is where the radius of a certificate ends: corners (n, 2)
    in a plane, or one alpha for each line; None without a certificate. `escape` is the place in a
    plane where an escape ends, or the line along it.
    """

    symbol: str
    words: str
    landscape: Landscape
    axes: tuple[str, ...]
    certified: np.ndarray | None = None
    escape: tuple[float, float] | Landscape | None = None
    along: str = "distance along"


class Figures(NamedTuple):
    """The panels of [CNN] Figure 2 and of Figure 3, row by row."""

    level_sets: list[list[Panel]]
    lines: list[list[Panel]]


def falling_distance(theta: Parameters, data: TrainingSet, loss: Loss, seed: int = 0) -> float:
    """Return how far the risk falls along a random direction d of length 1: the median of a few.

    That is |g . d| / (d . H d), where the parabola with the slope and the curvature of the risk at
    theta has its minimum; 0 where no curvature is positive.
    """
    net, found = theta.net, []
    gradient = net.gradient(theta, data, loss).vector
    for d in RandomDirections(theta, SAMPLED, seed):
        curvature = float(d.vector @ net.hessian_product(theta, d, data, loss).vector)
        if curvature > 0:
            found.append(abs(float(d.vector @ gradient)) / curvature)
    return float(np.median(found)) if found else 0.0


def points_of(
    found: SpuriousMinimum, theta_1: Parameters | None, data: TrainingSet, loss: Loss
) -> list[Point]:
    """Return theta, theta' and, if given, theta_1 ([CNN] Theorem 2), with what is proved."""
    certificates = [("theta", r"$\theta$", found.theta, found.certificate)]
    if theta_1 is not None:
        certificates.append(("theta_1", r"$\theta_1$", theta_1, certify(theta_1, data, loss)))
    points = []
    for name, symbol, theta, certificate in certificates:
        if certificate.holds and not certificate.evidence_only:
            words = "certified local minimum"
            points.append(Point(name, symbol, words, theta, certificate.radius))
        else:
            escaped = theta is found.theta and found.escapes
            words = "not a local minimum" if escaped else "not certified"
            points.append(Point(name, symbol, words, theta))
    outputs = r"same outputs as $\theta$"
    points.insert(1, Point("theta_prime", r"$\theta'$", outputs, found.theta_prime))
    return points


def scan_figures(
    found: SpuriousMinimum,
    theta_1: Parameters | None,
    data: TrainingSet,
    loss: Loss,
    folder: str | Path,
    grid: int = 21,
    directions: int = 200,
    seed: int = 0,
    executor: Executor | None = None,
    progress: bool = False,
) -> Figures:
    """Return the panels of [CNN] Figures 2 and 3 for these points, and write their numbers.

    Around each point there are planes of `grid` x `grid` points in two random directions of length
    1, from afar (beyond the certified radius) and from nearby (about as far as the risk falls from
    theta'), and `directions` random lines, from nearby. Where the risk falls along an escape from
    theta, the escape is a direction of another plane and one more line. Every scan has an NPZ in
    `folder`, from which the same call goes on after a kill; ``figures.json`` is written last.
    Raises ValueError for a grid of less than 2 x 2 and for a file of another scan.
    """
    if grid < 2:
        raise ValueError(f"figures: expected a grid of 2 x 2 or more, got {grid}")
    folder, points = Path(folder), points_of(found, theta_1, data, loss)
    nearby = NEARBY * falling_distance(found.theta_prime, data, loss, seed)
    nearby = nearby or abs(found.lower.step)
    ticks = np.linspace(-1, 1, grid)

    def evaluated(point: Point, name: str, where: Plane | Lines) -> str:
        file = f"{point.name}_{name}.npz"
        scan(where, data, loss, executor, folder / file, progress and file)
        return file

    def panel(point: Point, name: str, where: Plane | Lines, axes: list, escape=None) -> dict:
        return {
            "symbol": point.symbol,
            "words": point.words,
            "file": evaluated(point, name, where),
            "axes": axes,
            "certified": where.within(point.radius).tolist() if point.radius else None,
            "escape": escape,
        }

    def plane(point: Point, name: str, extent: float) -> dict:
        where = Plane.random(point.theta, seed, extent=extent, steps=grid)
        return panel(point, name, where, ["$d_1$", "$d_2$"])

    def lines(point: Point, extent: float, steps: int = STEPS, escape: str | None = None) -> dict:
        where = Lines.random(point.theta, directions, seed, extent=extent, steps=steps)
        return panel(point, "lines", where, ["$d_k$"], escape)

    def afar(point: Point) -> float:
        radius = point.radius or points[0].radius
        corners = Plane.random(point.theta, seed).within(radius) if radius else [[100 * nearby]]
        return AFAR * float(np.abs(corners).max())

    if not found.escapes:
        level_sets = [[plane(p, "afar", afar(p)) for p in points]]
        level_sets += [[plane(p, "nearby", nearby) for p in points]]
        rays = [[lines(p, nearby) for p in points]]
    else:
        theta, *others = points
        net, length, decrease = theta.theta.net, found.escape.length, found.escape.decrease
        escape = Parameters(net, (found.escape.theta.vector - theta.theta.vector) / length)
        random, far = random_direction(theta.theta, (seed, 0)), ESCAPE * length
        bend = float(random.vector @ net.hessian_product(theta.theta, random, data, loss).vector)
        wide = ESCAPE * math.sqrt(4 * decrease / bend) if bend > 0 else far  # rises as it falls
        across = Plane(theta.theta, (escape, random), far * ticks, wide * ticks)
        along = Lines(theta.theta, (escape,), far * np.linspace(-1, 1, FINE))
        level_sets = [
            [
                plane(theta, "random", far),
                panel(theta, "escape", across, ["the escape", "$d_1$"], [length, 0.0]),
                *(plane(p, "nearby", nearby) for p in others),
            ]
        ]
        beside = lines(theta, far, FINE, evaluated(theta, "escape_line", along))
        rays = [[beside, *(lines(p, nearby) for p in others)]]
    write_json(folder / NUMBERS, {"level_sets": level_sets, "lines": rays})
    return read_figures(folder)


def read_figures(folder: str | Path) -> Figures:
    """Return the panels that `scan_figures` wrote to `folder`; ValueError if they are damaged."""
    path = Path(folder) / NUMBERS
    if not path.exists():
        raise ValueError(f"figures: expected the numbers of an earlier run, there is no {path}")
    with naming(f"{path}:"):
        figures = json.loads(path.read_text(encoding="utf-8"))
        rows = [figures[name] for name in Figures._fields]
        if not all(rows) or not all(map(all, rows)):
            raise ValueError("expected rows of panels, got none")
        read = (partial(_panel, path.parent, dimensions) for dimensions in (2, 1))
        return Figures(
            *([[r(p) for p in row] for row in f] for f, r in zip(rows, read, strict=True))
        )


def _panel(folder: Path, dimensions: int, entry: dict) -> Panel:
    """Return the panel of a plane (2 dimensions) or of lines (1); ValueError if it is none."""
    file, axes, certified, escape = (entry[k] for k in ("file", "axes", "certified", "escape"))
    words = [entry["symbol"], entry["words"], *axes]
    landscape = _landscape(folder / file, dimensions)
    with naming(f"{file}:"):
        if len(axes) != dimensions or not all(isinstance(word, str) for word in words):
            raise ValueError(f"expected symbol, words and {dimensions} axes, got {words}")
        if certified is not None:
            certified = np.array(certified, dtype=np.float64)
            n = max((3, *certified.shape[:1]))
            expected = (n, 2) if dimensions == 2 else landscape.risks.shape[:1]
            if certified.shape != expected or not np.isfinite(certified).all():
                raise ValueError(f"expected finite certified {expected}, got {certified.shape}")
        if escape is not None and dimensions == 2:
            alpha, beta = map(float, escape)
            escape = alpha, beta
        elif escape is not None:
            escape = _landscape(folder / escape, 1)
            if len(escape.risks) != 1:
                raise ValueError(f"expected one line along the escape, got {len(escape.risks)}")
    return Panel(entry["symbol"], entry["words"], landscape, tuple(axes), certified, escape)


def _landscape(path: Path, dimensions: int) -> Landscape:
    landscape, names = Landscape.load(path), ("lines", "a plane")
    found = 1 if landscape.beta is None else 2
    if found != dimensions:
        raise ValueError(f"{path}: expected {names[dimensions - 1]}, got {names[found - 1]}")
    return landscape
