"""Other points of the family of a minimum: they compute the same, and are certified anew.

A symmetry of `certificates.generators` is followed exactly. But for scalings its field doesn't
change along itself, as what it adds to some weights depends on others: theta + t xi(theta) has the
same outputs; linear ways beside an identity are followed only so far that it has them. A scaling
multiplies what goes into a unit and divides what goes out of it. Numbers are rounded on the way, so
that a point of the family is next to what is stored: the certificate there says how near.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..certificates.boxes import Box, members_of
from ..certificates.certificate import in_float64
from ..certificates.enclosures import exact
from ..certificates.families import Symmetry
from ..certificates.fixed_sums import fixed_sum
from ..certificates.free import Coordinates, choose_coordinates, fields
from ..certificates.strict import StrictCertificate, certify_strict
from ..certificates.submersions import Submersion
from ..datasets.samples import TrainingSet
from ..engine.backend import namespace
from ..engine.held import Held, HeldKink
from ..engine.held_steps import steps
from ..engine.losses import CrossEntropy, Loss
from ..engine.network import check_at
from ..engine.parameters import Parameters
from ..engine.plain import real, whole_number
from ..errors import AssumptionError
from ..layers import SelectionMatrix
from ..shown import Shown
from .settle import Settled

BENT = "parallel", "few values"  # kinds whose fields change along themselves
HALVINGS = 40  # of the distance, and of the length of a way


@dataclass(frozen=True, repr=False)
class Member(Shown):
    """Another point of the family of a minimum, with its own certificate.

    `theta` is `moved` away from the given point in max norm. `change` is the largest change of an
    output at a sample, which is rounding; of a softmax without what all outputs have in common. The
    `certificate` holds, with units held at the same `kinks`.
    """

    theta: Parameters
    certificate: StrictCertificate
    kinks: tuple[HeldKink, ...]
    moved: float
    change: float

    def __str__(self) -> str:
        first = f"moved by {self.moved:.3g}, outputs change by up to {self.change:.1e}"
        return f"{first}\n{self.certificate}"


def move_along(
    found: Settled | Member,
    data: TrainingSet,
    loss: Loss,
    distance: float = 1.0,
    seed: int = 0,
    kinds: Collection[str] | None = None,
) -> Member:
    """Return another point of the family of a minimum that is proved, with its certificate.

    In turn it follows all symmetries, or those of some `kinds` as in `found.certificate.family`,
    in random directions, scalings last: so far that parameters move by up to `distance`, in max
    norm, and units keep their patterns with at least half of their margin. Where the point that it
    comes to is not certified, or its risk isn't that of the minimum, it starts again with half of
    the distance; `moved` says how far it came. The numbers of a point are rounded, so each gets a
    certificate of its own, which holds. Raises ValueError where `found` is not proved or its family
    has no symmetry of these kinds, AssumptionError where no other point is certified.

    >>> from tinyspur import Network, SquaredLoss, settle
    >>> from tinyspur.layers import Dense
    >>> net = Network((1, 1), [Dense(1), Dense(1)])
    >>> data = TrainingSet([[-2], [-1], [0], [1], [2]], [0, 0, -1, 1, 2])
    >>> found = settle(Parameters(net, [1.0, 0.1, 1.0, 0.0]), data, SquaredLoss())
    >>> print(found.family)
    family of dimension 1: scalings of 1 unit (1)
    >>> other = move_along(found, data, SquaredLoss(), distance=5)
    >>> other.certificate.holds, other.moved > 1, other.change < 1e-14
    (True, True, True)
    """
    if not isinstance(found, (Settled, Member)):
        raise ValueError(f"move_along: expected what settle returns, got {type(found).__name__}")
    theta = found.theta
    check_at(theta, data, loss)
    seed = whole_number("seed", seed, 0)
    if not 0 < real(distance) < np.inf:
        raise ValueError(f"move_along: expected a distance > 0, got {distance!r}")
    before = found.certificate
    if before is None or not before.holds:
        raise ValueError(
            "move_along: expected a minimum that is proved, got one "
            + ("without a certificate" if before is None else f"that is {before.words}")
        )
    known = list(before.family.kinds)
    if not known:
        raise ValueError(f"move_along: expected a minimum in a family, got {before.family}")
    kinds = known if kinds is None else [kinds] if isinstance(kinds, str) else list(kinds)
    if not kinds or not set(kinds) <= set(known):
        raise ValueError(f"kinds: expected some of {known}, got {kinds}")
    start = in_float64(theta, np)
    fewer, outputs = fixed_sum(start, data, loss), _outputs(start, data, loss)
    first, *problem = (start, data, loss) if fewer is None else fewer[:3]
    held = Held(first.net, *problem, found.kinks)
    for n in range(HALVINGS):
        point = _moved(held, first, 0.5**n * distance, np.random.default_rng(seed), set(kinds))
        point = point if fewer is None else fewer.lifted(point)
        after = certify_strict(point, data, loss, found.kinks)
        moved = float(abs(point.vector - start.vector).max())
        if moved and after.holds and _meet(before.risk, after.risk):
            return Member(
                point.to(namespace(theta.vector)),
                after,
                found.kinks,
                moved,
                float(abs(_outputs(point, data, loss) - outputs).max()),
            )
    raise AssumptionError(f"move_along: no other point is certified, the last one {after.words}")


def _outputs(theta: Parameters, data: TrainingSet, loss: Loss) -> np.ndarray:
    """Return the outputs (N, d_y), without their means where only differences count."""
    o = theta.net.forward(theta, data.x)
    return o - o.mean(axis=1, keepdims=True) if type(loss) is CrossEntropy else o


def _meet(a: tuple[float, float], b: tuple[float, float]) -> bool:
    """Return whether two intervals have a point in common."""
    return max(a[0], b[0]) <= min(a[1], b[1])


def _moved(
    held: Held, start: Parameters, distance: float, rng: np.random.Generator, kinds: set[str]
) -> Parameters:
    """Return where the symmetries of some kinds lead to, one after another, scalings last."""
    coordinates, units = choose_coordinates(held, start, held.data), _Units.of(held, start)
    symmetries = dict.fromkeys(coordinates.family.symmetries.values())
    now = start
    for symmetry in sorted(symmetries, key=lambda one: one.kind == "scaling"):
        if symmetry.kind not in kinds:
            continue
        scales = symmetry.kind == "scaling"
        along = _scaled if scales else _translated
        for point in along(held, coordinates, symmetry, now, distance, rng):
            near = abs(point.vector - start.vector).max() <= distance
            if symmetry.kind in BENT:
                near = near and _same_outputs(held, now, point)
            if near and (scales or units.kept(_Units.of(held, point))):
                now = point
                break
    return now


def _same_outputs(held: Held, a: Parameters, b: Parameters) -> bool:
    """Return whether two points have the same outputs, up to rounding."""
    first, second = (held.net.forward(theta, held.data.x) for theta in (a, b))
    return bool(abs(first - second).max() <= 1e-12 * (1 + abs(first).max()))


def _translated(
    held: Held,
    coordinates: Coordinates,
    symmetry: Symmetry,
    theta: Parameters,
    distance: float,
    rng: np.random.Generator,
) -> Iterator[Parameters]:
    """Yield points along a symmetry, on both sides, nearer and nearer ones."""
    reasons, size = coordinates.family.symmetries, theta.net.size
    own = [n for n in coordinates.idle.tolist() if reasons[n] == symmetry]
    d = np.zeros(size)
    d[own] = rng.normal(size=len(own))
    parts = [
        [one for one in of if one.symmetry == symmetry]
        for of in (coordinates.generators, coordinates.interpolations)
    ]
    box = Box(theta, theta.net.zeros(), exact(np.zeros(len(held.kinks))))
    rows = fields(*parts, held, box)
    if rows is not None:
        d += rng.normal(size=len(rows.middle)) @ rows.middle
    largest = float(abs(d).max())
    for n in range(HALVINGS if largest else 0):
        for sign in (1, -1):
            point = Parameters(theta.net, theta.vector + sign * distance * 0.5**n * (d / largest))
            for one in parts[1]:
                if isinstance(one, Submersion):
                    point = one.restored(held, theta, point)
            yield point


def _scaled(
    held: Held,
    coordinates: Coordinates,
    symmetry: Symmetry,
    theta: Parameters,
    distance: float,
    rng: np.random.Generator,
) -> Iterator[Parameters]:
    """Yield theta with what goes into a unit times s, and what goes out of it divided by s."""
    one = next(one for one in coordinates.generators if one.symmetry == symmetry)
    power = np.log1p(distance / abs(theta.vector[one.at]).max())
    power *= rng.choice([-1, 1]) * rng.uniform(0.5, 1)
    for n in range(HALVINGS):
        point = theta.copy()
        point.vector[one.at] *= np.exp(one.factor * power * 0.5**n)
        yield point


class _Units(NamedTuple):
    """What units of piecewise linear layers that are not held are, and how far from 0.

    `slopes` and `sizes` of all of them; `choices` are the matrices of max poolings.
    """

    slopes: np.ndarray
    sizes: np.ndarray
    choices: list[np.ndarray]

    @classmethod
    def of(cls, held: Held, theta: Parameters) -> _Units:
        x = held.data.x.reshape(len(held.data), -1).astype(np.float64)
        members = members_of(held, slice(None))
        slopes, sizes, choices = [np.zeros(0)], [np.zeros(0)], []
        for step in steps(theta, np.ascontiguousarray(x.T), members):
            if isinstance(step.W.inner, SelectionMatrix):
                choices.append(step.W.inner.choice)
            if step.activation is not None and step.activation.piecewise_linear:
                z, some = abs(step.z), members.get(step.layer)
                z[step.W.rows :] = np.inf  # what a residual block keeps
                if some is not None:
                    z[some.units, some.columns] = np.inf
                slopes.append(step.slopes.ravel())
                sizes.append(z.ravel())
        return cls(np.concatenate(slopes), np.concatenate(sizes), choices)

    def kept(self, others: _Units) -> bool:
        """Return whether others have the same pattern, and half of the distance from 0 at least."""
        pairs = zip(self.choices, others.choices, strict=True)
        return (
            np.array_equal(self.slopes, others.slopes)
            and bool((others.sizes >= self.sizes / 2).all())
            and all(np.array_equal(a, b) for a, b in pairs)
        )
