"""Which local minima training ends in: many trainings, each settled and proved.

L-BFGS from random starts, then `settle`, which proves where it can that an exact strict local
minimum is next to the point. A minimum is *spurious* here where a bound below its risk is above the
risk of a known point, or of another end of the same study.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager, closing
from dataclasses import asdict, dataclass, fields
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from ..certificates.rounding import risk_rounding
from ..console import Bar, silent
from ..engine.executors import Task, answers
from ..engine.losses import SquaredLoss
from ..engine.parameters import Parameters
from ..engine.points import save_point
from ..engine.threads import one_thread
from ..files import check_outputs, naming, whole_file, write_json
from ..fitting.settle import settle
from ..fitting.training import descend, kaiming_start
from ..shown import Shown
from .trained_problems import Problem

LOSS = SquaredLoss()
TRAINING, GRADIENT_GOAL = 1000, 1e-9  # L-BFGS steps, and the gradient at which they end
SETTLING = 500  # Newton steps
ROWS = 8  # different minima that are printed of a problem


@dataclass(frozen=True)
class End:
    """Where one training ended: the risk there, and what was settled and proved next to it.

    `trained` is the risk where L-BFGS ended, `risk` that of the settled point, `highest` what its
    exact value can't be above; `moved` is the largest change of a parameter between the two. Where
    an exact strict local minimum is proved, `bounds` enclose its risk; it is within `distance`, no
    point within `radius` is lower, and it has `kinks` different kinks. `reason` says why not.
    """

    seed: int
    trained: float
    risk: float
    highest: float
    moved: float
    kinks: int
    zero: bool
    bounds: tuple[float, float] | None
    distance: float | None
    radius: float | None
    reason: str

    @property
    def proved(self) -> bool:
        """Return whether an exact strict local minimum is proved."""
        return self.bounds is not None


@dataclass(frozen=True)
class Minimum:
    """Ends whose proved minima have risks in the same interval."""

    bounds: tuple[float, float]
    ends: tuple[End, ...]
    spurious: bool

    @property
    def kinks(self) -> tuple[int, int]:
        """Return the fewest and the most kinks."""
        kinks = [end.kinks for end in self.ends]
        return min(kinks), max(kinks)

    def as_dict(self) -> dict:
        """Return what a report says of it."""
        return {
            "risk": list(self.bounds),
            "trainings": len(self.ends),
            "seeds": [end.seed for end in self.ends],
            "kinks": list(self.kinks),
            "radius": max(end.radius for end in self.ends),
            "verdict": _words(self.spurious),
        }


@dataclass(frozen=True, repr=False)
class TrainedMinima(Shown):
    """What the trainings of one problem ended in, by their seeds."""

    problem: Problem
    ends: tuple[End, ...]

    @cached_property
    def lowest(self) -> float:
        """Return a number that the risk of some known point or end is not above."""
        known = [] if self.problem.known is None else [_highest(self.problem.known, self.problem)]
        proved = [end.bounds[1] for end in self.ends if end.proved]
        return min(known + proved + [end.highest for end in self.ends])

    def spurious(self, end: End) -> bool:
        """Return whether a strict local minimum and a lower point are proved."""
        return end.proved and end.bounds[0] > self.lowest

    @cached_property
    def minima(self) -> list[Minimum]:
        """Return the different minima, lowest first: those whose intervals overlap are one."""
        found: list[tuple[list, list]] = []
        for end in sorted((e for e in self.ends if e.proved), key=lambda e: e.bounds):
            low, high = end.bounds
            if found and low <= found[-1][0][1]:
                found[-1][0][1] = max(found[-1][0][1], high)
                found[-1][1].append(end)
            else:
                found.append(([low, high], [end]))
        return [Minimum((low, high), tuple(ends), low > self.lowest) for (low, high), ends in found]

    @property
    def counts(self) -> dict[str, int]:
        """Return how many trainings ended in what."""
        proved = sum(end.proved for end in self.ends)
        return {
            "trainings": len(self.ends),
            "proved": proved,
            "spurious": sum(map(self.spurious, self.ends)),
            "zero": sum(end.zero for end in self.ends),
            "not_proved": sum(not end.proved and not end.zero for end in self.ends),
        }

    @property
    def words(self) -> str:
        """Return how many trainings ended in what, in a line."""
        n = self.counts
        proved = f"{n['proved']} in proved minima, {n['spurious']} of them spurious"
        zero = f"{n['zero']} at R = 0 up to rounding" * bool(n["zero"])
        rest = f"{n['not_proved']} not proved" * bool(n["not_proved"])
        return f"{n['trainings']} trainings: {'; '.join(filter(None, (proved, zero, rest)))}"

    def as_dict(self) -> dict:
        """Return what a report says of it."""
        return {
            "name": self.problem.name,
            "title": self.problem.title,
            "network": self.problem.net.spec,
            "samples": len(self.problem.data),
            **self.counts,
            "lowest": self.lowest,
            "minima": [minimum.as_dict() for minimum in self.minima],
            "ends": [asdict(end) for end in self.ends],
        }

    def __str__(self) -> str:
        lines = [f"{self.problem.name}: {self.problem.title}", f"  {self.problem.net}"]
        lines.append(f"  {self.words}")
        for minimum in self.minima[:ROWS]:
            few, many = minimum.kinks
            kinks = str(few) if few == many else f"{few} to {many}"
            times = len(minimum.ends)
            lines.append(
                f"    R = {minimum.bounds[0]:.12f}  {times:3} training{'s' if times > 1 else ' '}  "
                f"{kinks:>8} kink{'s' * (kinks != '1')}  {_words(minimum.spurious)}"
            )
        rest = self.minima[ROWS:]
        if rest:
            lines.append(f"    and {len(rest)} more, up to R = {rest[-1].bounds[1]:.6g}")
        reasons = Counter(end.reason for end in self.ends if not (end.proved or end.zero))
        lines += [f"    not proved, {count}: {why}" for why, count in reasons.most_common()]
        return "\n".join(lines)


def train_and_prove(
    problems: Sequence[Problem],
    runs: int,
    folder: str | Path,
    executor: Executor | None = None,
    stage: Callable[..., AbstractContextManager[Bar]] = silent,
) -> list[TrainedMinima]:
    """Return where the trainings with the seeds 0, ..., runs - 1 of each problem end.

    Every finished training is written to `folder` at once, below the name of its problem: SEED.npz,
    the settled point, and SEED.json, what was found; data.npz has the samples, known.npz the point
    that is known to be good, if there is one. A training that is there is read and not repeated.
    Trainings go to `executor`, as in `run_each`, and are done in this process without one. `stage`,
    such as `console.Stages`, is entered with the name "trainings", a text, the number of trainings,
    and how many are there. Raises ValueError for fewer than one training, for problems of the same
    name, and for files of another study; RuntimeError as `run_each`; OSError for files that are in
    the way or can't be written.
    """
    if runs < 1:
        raise ValueError(f"trainings: expected 1 or more, got {runs}")
    names = [problem.name for problem in problems]
    if len(set(names)) < len(names):
        raise ValueError(f"trainings: expected problems of different names, got {', '.join(names)}")
    stores = [_Store(problem, Path(folder) / problem.name) for problem in problems]
    ends = [store.read(runs) for store in stores]
    missing = [
        (n, seed) for seed in range(runs) for n, found in enumerate(ends) if seed not in found
    ]
    total, job = runs * len(problems), partial(_train_one, problems)
    text = f"training {total} networks, each settled and proved"

    def kept() -> str:
        done = sum(map(len, ends))
        return f"; {done} of {total} are in {folder}, from which the same call goes on"

    def name(place: tuple[int, int]) -> str:
        return f"{names[place[0]]} {place[1]}"

    tasks = [Task(place, place) for place in missing]
    with (
        stage("trainings", text, total, total - len(missing)) as bar,
        closing(answers("trainings", job, tasks, executor, kept, name)) as found,
    ):
        for (n, seed), (end, theta) in found:
            stores[n].write(end, theta)
            ends[n][seed] = end
            bar.advance()
    return [
        TrainedMinima(problem, tuple(found[seed] for seed in range(runs)))
        for problem, found in zip(problems, ends, strict=True)
    ]


def _train_one(problems: Sequence[Problem], place: tuple[int, int]) -> tuple[End, Parameters]:
    n, seed = place
    return train_one(problems[n], seed)


def train_one(problem: Problem, seed: int) -> tuple[End, Parameters]:
    """Train, settle and prove from one random start; return what was found, and the point."""
    net, data = problem.net, problem.data
    with one_thread():
        trained = descend(
            kaiming_start(net, seed), data, LOSS, TRAINING, gradient_goal=GRADIENT_GOAL
        )
        found = settle(trained, data, LOSS, SETTLING)
        highest = _highest(found.theta, problem)
    certificate = found.certificate
    end = End(
        seed=seed,
        trained=net.risk(trained, data, LOSS),
        risk=found.risk,
        highest=highest,
        moved=found.moved,
        kinks=len(found.kinks),
        zero=not found.holds and 2 * found.risk <= highest,
        bounds=tuple(map(float, found.risk_interval)) if found.holds else None,
        distance=float(found.distance) if found.holds else None,
        radius=float(found.radius) if found.holds else None,
        reason=found.reason if certificate is None else certificate.obstacle,
    )
    return end, found.theta


def _highest(theta: Parameters, problem: Problem) -> float:
    """Return a number that R(theta) in real numbers is not above."""
    risk = theta.net.risk(theta, problem.data, LOSS)
    return math.nextafter(risk + risk_rounding(theta, problem.data, LOSS), math.inf)


def _words(spurious: bool) -> str:
    return "spurious local minimum" if spurious else "local minimum, none lower found"


class _Store:
    """The finished trainings of one problem in a folder."""

    def __init__(self, problem: Problem, folder: Path):
        self.problem, self.folder = problem, folder
        digest = hashlib.sha256()
        settings = [problem.net.spec, TRAINING, GRADIENT_GOAL, SETTLING]
        digest.update(json.dumps(settings).encode())
        for array in (problem.data.x, problem.data.y):
            digest.update(f"{array.dtype} {array.shape}".encode() + array.tobytes())
        self.key = digest.hexdigest()

    def read(self, runs: int) -> dict[int, End]:
        """Return the trainings that are there by their seeds, and make sure of the other files."""
        found, ours = {}, {"data.npz": ["x", "y"], "known.npz": ["spec"]}
        for seed in range(runs):
            path = self.folder / f"{seed}.json"
            if path.exists():
                found[seed] = self._end(path, seed)
            else:
                ours[f"{seed}.npz"] = ["spec"]
        check_outputs(self.folder, ours)
        return found

    def _end(self, path: Path, seed: int) -> End:
        with naming(f"{path}: expected a training of this study, got a file of another kind:"):
            stored = json.loads(path.read_bytes())
            key, end = stored["key"], stored["end"]
            names = {field.name for field in fields(End)}
            if set(end) != names or end["seed"] != seed:
                raise ValueError(f"the keys {', '.join(end)}")
            bounds = end["bounds"] and tuple(end["bounds"])
        if key != self.key:
            raise ValueError(
                f"{path}: expected a training of this study, got one of other samples or settings: "
                "move its folder away, or choose another one"
            )
        return End(**end | {"bounds": bounds})

    def write(self, end: End, theta: Parameters) -> None:
        """Write the point, and then what was found, with which the training is finished."""
        samples = self.folder / "data.npz"
        if not (samples.exists() and any(self.folder.glob("*.json"))):  # there may be older ones
            with whole_file(samples) as file:
                np.savez(file, x=self.problem.data.x, y=self.problem.data.y)
            if self.problem.known is not None:
                save_point(self.folder / "known.npz", self.problem.known)
        save_point(self.folder / f"{end.seed}.npz", theta)
        write_json(self.folder / f"{end.seed}.json", {"key": self.key, "end": asdict(end)})
