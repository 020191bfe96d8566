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

from .certificates import certify_cell
from .constructions.convolutional import SpuriousMinimum
from .landscape import Landscape, Lines, Plane, RandomDirections, random_direction, scan
from .losses import Loss
from .parameters import Parameters
from .reports import naming, write_json
from .samples import TrainingSet

AFAR = 1.5  # how far planes reach that are seen from afar, in units of the certified reach
NEARBY = 2.5  # and from nearby, in units of how far the risk falls from theta'
ESCAPE = 2.5  # how far an escape is followed, in units of its length
SAMPLED = 8  # directions that tell how far the risk falls
STEPS = 9  # points on a line
NUMBERS = "figures.json"
ALONG = "distance along {}"


class Point(NamedTuple):
    """A point to look around, what it is, and its certificate's radius, 0 without one."""

    name: str
    title: str
    theta: Parameters
    radius: float = 0.0


@dataclass(frozen=True)
class Panel:
    """A part of a figure: the landscape around a point and what is known of it.

    `certified` is where the radius of a certificate ends: corners (n, 2) of a plane, or one alpha
    for each line; None without one. `escape` is where in a plane an escape ends, or on lines that
    the last of them is one.
    """

    title: str
    landscape: Landscape
    axes: tuple[str, str]
    certified: np.ndarray | None = None
    escape: tuple[float, float] | bool | None = None


class Figures(NamedTuple):
    """The panels of [CNN] Figure 2 and of Figure 3, row by row."""

    level_sets: list[list[Panel]]
    lines: list[list[Panel]]


def falling_distance(theta: Parameters, data: TrainingSet, loss: Loss, seed: int = 0) -> float:
    """Return how far the risk falls along random directions of length 1, in the median of some.

    That is |g . d| / (d . H d), the minimum of the parabola with the slope and the curvature that
    the risk has at theta; 0 where no curvature is positive.
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
    points = []
    certificates = [(r"\theta", "theta", found.theta, found.certificate)]
    if theta_1 is not None:
        certificate = certify_cell(theta_1, data, loss)
        certificates.append((r"\theta_1", "theta_1", theta_1, certificate))
    for symbol, name, theta, certificate in certificates:
        if certificate.holds and not certificate.evidence_only:
            title = f"${symbol}$: certified local minimum"
            points.append(Point(name, title, theta, certificate.radius))
        else:
            escaped = name == "theta" and found.escape is not None
            title = "not a local minimum" if escaped else "not certified"
            points.append(Point(name, f"${symbol}$: {title}", theta))
    points.insert(
        1, Point("theta_prime", r"$\theta'$: same outputs as $\theta$", found.theta_prime)
    )
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

    Planes of `grid` x `grid` points in two random directions of length 1, from afar (beyond the
    certified radius) and from nearby (as far as the risk falls from theta'), and `directions`
    random lines through each point, from nearby. If `found` has an escape from theta, that is a
    direction of another plane, and one more line. Every scan has an NPZ in `folder`, with which one
    that was killed goes on; ``figures.json`` comes last. Raises ValueError for a file of another
    scan.
    """
    folder, points = Path(folder), points_of(found, theta_1, data, loss)
    nearby = NEARBY * falling_distance(found.theta_prime, data, loss, seed)
    nearby = nearby or abs(found.lower.step)
    ticks = np.linspace(-1, 1, grid)
    evaluate = partial(scan, data=data, loss=loss, executor=executor)

    def panel(point: Point, name: str, where: Plane | Lines, axes: tuple, escape=None) -> dict:
        file = f"{point.name}_{name}.npz"
        evaluate(where, path=folder / file, progress=progress and file)
        certified = where.within(point.radius).tolist() if point.radius else None
        title = {"title": point.title, "file": file, "axes": axes}
        return {**title, "certified": certified, "escape": escape}

    def plane(point: Point, name: str, extent: float) -> dict:
        where = Plane.random(point.theta, seed, extent=extent, steps=grid)
        return panel(point, name, where, (ALONG.format("$d_1$"), ALONG.format("$d_2$")))

    def lines(point: Point, extent: float, escape: Parameters | None = None) -> dict:
        around = RandomDirections(point.theta, directions, seed)
        around = around if escape is None else [*around, escape]
        where = Lines(point.theta, around, extent * np.linspace(-1, 1, STEPS))
        return panel(
            point, "lines", where, (ALONG.format("$d_k$"), r"$R - R(\theta)$"), escape is not None
        )

    def afar(point: Point) -> float:
        radius = point.radius or points[0].radius
        corners = Plane.random(point.theta, seed).within(radius) if radius else [[100 * nearby]]
        return AFAR * float(np.abs(corners).max())

    if found.escape is None:
        level_sets = [[plane(p, "afar", afar(p)) for p in points]]
        level_sets += [[plane(p, "nearby", nearby) for p in points]]
        rays = [[lines(p, nearby) for p in points]]
    else:
        theta, prime, *_ = points
        length, random = found.escape.length, random_direction(found.theta, (seed, 0))
        move = (found.escape.theta.vector - found.theta.vector) / length
        escape = Parameters(found.theta.net, move)
        bend = found.theta.net.hessian_product(found.theta, random, data, loss).vector
        rise = math.sqrt(4 * found.escape.decrease / float(random.vector @ bend))
        where = Plane(found.theta, (escape, random), ESCAPE * length * ticks, ESCAPE * rise * ticks)
        axes, end = (ALONG.format("the escape"), ALONG.format("$d_1$")), (length, 0.0)
        level_sets = [
            [
                plane(theta, "random", ESCAPE * length),
                panel(theta, "escape", where, axes, end),
                plane(prime, "nearby", nearby),
            ]
        ]
        rays = [[lines(theta, ESCAPE * length, escape), lines(prime, nearby)]]
    write_json(folder / NUMBERS, {"level_sets": level_sets, "lines": rays})
    return read_figures(folder)


def read_figures(folder: str | Path) -> Figures:
    """Return the panels that `scan_figures` wrote to `folder`; ValueError if they are damaged."""
    path = Path(folder) / NUMBERS
    if not path.exists():
        raise ValueError(f"figures: expected the numbers of an earlier run, there is no {path}")
    with naming(f"{path}:"):
        try:
            rows = Figures(**json.loads(path.read_text()))
            return Figures(*([list(map(partial(_panel, path), row)) for row in f] for f in rows))
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(f"{type(error).__name__} {error}") from error


def _panel(path: Path, entry: dict) -> Panel:
    landscape = Landscape.load(path.parent / entry.pop("file"))
    certified, escape = entry.pop("certified"), entry.pop("escape")
    return Panel(
        landscape=landscape,
        certified=None if certified is None else np.array(certified),
        escape=tuple(escape) if isinstance(escape, list) else escape,
        **entry,
    )
