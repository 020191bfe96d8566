"""Directions along which the risk falls: one is enough to refute a local minimum."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..certificates.assumptions import check_at_point, estimated
from ..certificates.certificate import round_down
from ..datasets.samples import TrainingSet
from ..engine.backend import Array
from ..engine.floats import QUIET
from ..engine.losses import Loss
from ..engine.network import check_at
from ..engine.parameters import Parameters, check_points
from ..shown import Shown
from .escapes import Escape, first_order_directions, second_order_directions
from .expansion import expand_risk, in_float64


@dataclass(frozen=True, repr=False)
class DescentDirection(Shown):
    """R(theta + t d) = R(theta) - `rate` t^order + O(t^(order + 1)), t -> 0+, for d = `direction`.

    Its largest entry is 1 in size. The rate is exact at kinks too, and positive beyond rounding:
    theta is not a local minimum. That is so where `beyond` is 0; where rounding can't tell which
    units are at the kink the rate is then `at_least` what it says. Otherwise units count as at the
    kink, or a first term as 0, that may be next to it: the risk falls from a distance of about
    `beyond` on, and theta may still be a local minimum. `assumes` says what is taken from a loss or
    an activation of a user's: of these rounding errors are estimated, and nothing is proved.
    """

    name: str
    order: int
    rate: float
    direction: Parameters
    beyond: float = 0.0
    assumes: str = ""
    at_least: bool = False

    def __str__(self) -> str:
        power = "t" if self.order == 1 else f"t^{self.order}"
        where = f"from {self.beyond:.1g} on" if self.beyond else "-> 0"
        rate = f"at least {round_down(self.rate)}" if self.at_least else f"{self.rate:.3g}"
        fall = f"by {rate} {power} at max-norm distances t {where}"
        assumes = f", if {self.assumes}" if self.assumes else ""
        return f"the risk falls along {self.name}, {fall}{assumes}"


@np.errstate(**QUIET)
def find_descent_direction(
    theta: Parameters, data: TrainingSet, loss: Loss, escape: Escape | None = None, seed: int = 0
) -> DescentDirection | None:
    """Return the first direction found along which the risk falls, or None, which proves nothing.

    It tries minus the gradient, one direction of first and one of second order from the kinks, and
    the direction that leads to an `escape`. One along which it is proved to fall from distance 0 on
    comes before all others. Raises AssumptionError for a loss or an activation of a user's whose
    derivatives are seen to be wrong.
    """
    check_at(theta, data, loss)
    theta, found = in_float64(theta), None
    assumes = estimated(loss, theta.net.activations)
    check_at_point(theta, data, loss)
    if escape is not None:
        if not hasattr(escape, "theta"):
            got = type(escape).__name__
            raise ValueError(f"escape: expected what find_escape returns, got a {got}")
        check_points(theta.net, escape.theta)
    for name, vector in _directions(theta, data, loss, escape, seed):
        size = float(abs(vector).max())
        if not math.isfinite(size):
            raise ValueError(f"descent direction: expected finite numbers, got others in {name}")
        if not size:
            continue
        direction = Parameters(theta.net, vector / size)
        rate = expand_risk(theta, direction, data, loss)
        if rate.order:
            term, off = rate.first, rate.first_unsure
            if rate.order == 2:
                term, off = rate.second, rate.second_unsure
            bound = rate.unsure > 0 and not rate.beyond
            fall = -term - off if bound else -term
            downhill = DescentDirection(
                name, rate.order, fall, direction, rate.beyond, assumes, at_least=bound
            )
            if not downhill.beyond:
                return downhill
            found = found or downhill
    return found


def _directions(
    theta: Parameters, data: TrainingSet, loss: Loss, escape: Escape | None, seed: int
) -> Iterator[tuple[str, Array]]:
    yield "minus the gradient", -theta.net.gradient(theta, data, loss).vector
    for search in (first_order_directions, second_order_directions):
        for direction, _ in itertools.islice(search(theta, data, loss, seed), 1):
            yield "a direction from the kink", direction.vector
    if escape is not None:
        yield "the line to the lower point", escape.theta.vector - theta.vector
