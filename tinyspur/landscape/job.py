"""What a scan evaluates, and how: the risks at some points, with what they share done once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..certificates.rounding import risk_rounding
from ..datasets.samples import TrainingSet
from ..engine.backend import Array, all_to_numpy, namespace, to_numpy
from ..engine.losses import Loss
from ..engine.passes import neurons
from .directions import RandomDirections
from .planes import Lines, Plane

TOGETHER = (
    4  # how many points share the product of their first layers; a worker gets as many at a time
)


class Block(NamedTuple):
    """Points that are evaluated together: where their risks are kept, and their numbers."""

    place: slice
    numbers: np.ndarray


class Job(NamedTuple):
    """What a worker needs: where, of what, and the first layer that differs between points."""

    where: Plane | Lines
    data: TrainingSet
    loss: Loss
    first: int

    def __call__(self, numbers: Sequence[int]) -> np.ndarray:
        return self.risks(numbers)

    def risks(self, numbers: Sequence[int]) -> np.ndarray:
        """Return the risks at some points; what the first layer reads is the same for them."""
        points = list(self.where.points(numbers))
        theta, net, first, loss = self.where.theta, self.where.theta.net, self.first, self.loss
        y, xp = net.targets(theta, self.data, loss), namespace(theta.vector)
        own = theta.W[first].trained
        W = own.with_weights(xp.concatenate([p.W[first].weights for p in points]))
        plain = own is theta.W[first]  # no part of a residual block

        def chunk(rows: slice, columns: Array) -> list[Array]:
            below, losses = net.layer_output(theta, columns, first - 1), []
            if plain:
                z = (W @ below).reshape(len(points), -1, below.shape[1])
            for k, point in enumerate(points):
                products = z[k] if plain else point.W[first] @ below
                _, o = neurons(point, first, products, overwrite=True)
                losses.append(
                    loss.value(net.layer_output(point, o, net.depth, above=first), y[:, rows])
                )
            return xp.stack(losses)

        losses = xp.concatenate(list(net.over(theta, self.data.x, chunk)), axis=1)
        return to_numpy(losses).mean(axis=1).astype(np.float64)

    def centre(self) -> float:
        """Return R(theta)."""
        return self.where.theta.net.risk(self.where.theta, self.data, self.loss)

    def rounding(self, risks: np.ndarray) -> float:
        """Return up to what difference to R(theta) rounding errors may explain, see `Landscape`."""
        numbers = [self.where.farthest]
        if np.isfinite(risks).any():
            numbers.append(int(np.nanargmin(risks)))
        errors = [
            risk_rounding(point, self.data, self.loss)
            for point in (self.where.theta, *self.where.points(numbers))
        ]
        total = errors[0] + max(errors[1:])
        return total if np.isfinite(total) else np.inf  # after overflow nothing counts as lower

    def key(self) -> str:
        """Return a digest of all that the risks depend on but functions of the user's own."""
        where, digest = self.where, hashlib.sha256()
        if isinstance(where.directions, RandomDirections):
            d = where.directions
            directions = [d.theta.vector]
            words = [d.seed, d.count, d.normalization, d.biases]
        else:
            directions, words = [d.vector for d in where.directions], []
        net = where.theta.net
        settings = getattr(self.loss, "__dict__", {}).items()
        settings = {name: value for name, value in settings if not callable(value)}
        words += [type(where).__name__, TOGETHER, net.spec, type(self.loss).__qualname__, settings]
        digest.update(json.dumps(words, default=repr).encode())
        vectors = all_to_numpy([where.theta.vector, *directions])
        ticks = [where.alpha] if where.beta is None else [where.alpha, where.beta]
        for array in (*vectors, *ticks, self.data.x, self.data.y):
            digest.update(f"{array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array))
        return digest.hexdigest()


def first_moved(where: Plane | Lines) -> int:
    """Return the lowest layer that some direction moves; random directions may move all layers."""
    directions, net = where.directions, where.theta.net
    if isinstance(directions, RandomDirections):
        return min(net.slots)
    moved = np.any([v != 0 for v in all_to_numpy([d.vector for d in directions])], axis=0)
    return min(layer for layer, slot in net.slots.items() if moved[slot.all].any())
