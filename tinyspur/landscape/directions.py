"""Random directions through parameter space, normalised to a point (Li et al. 2018)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..engine.backend import namespace
from ..engine.parameters import Parameters, check_points
from ..engine.plain import generator, whole
from ..layers import is_positive

NORMALIZATIONS = (None, "filter", "layer")


def random_direction(
    theta: Parameters,
    seed: int | Sequence[int] = 0,
    normalization: str | None = None,
    biases: bool = True,
) -> Parameters:
    """Return a Gaussian direction, normalised, in the type and on the device of theta.

    Without `normalization` its Euclidean length is 1. With ``"filter"`` each filter (of a dense
    layer: each neuron's row) has the length of the same filter of theta, with ``"layer"`` each
    layer that of theta's layer ([Li et al. 2018], Section 4). A bias belongs to its filter, as the
    papers absorb it into the weights; if `biases` are ignored those of the direction are 0, and
    lengths are those of the weights alone. A normalised direction is 0 where theta is 0: the dead
    filters of the constructions move only along their biases. Raises ValueError for another
    normalization, and where nothing would move.
    """
    same_network(theta)
    if normalization not in NORMALIZATIONS:
        raise ValueError(
            f"normalization: expected None, 'filter' or 'layer', got {normalization!r}"
        )
    net, rng = theta.net, generator(seed)
    start = theta.to(np, np.float64)
    d = Parameters(net, rng.standard_normal(net.size))
    for layer in net.slots:
        w = d.W[layer].weights
        none = np.zeros((len(w), 0))
        if layer in d.b and not biases:
            d.b[layer][...] = 0
        if normalization is not None:
            own, wanted = (
                np.c_[p.W[layer].weights.reshape(len(w), -1), biases * p.b.get(layer, none)]
                for p in (d, start)
            )
            axis = 1 if normalization == "filter" else None
            scale = np.linalg.norm(wanted, axis=axis) / np.linalg.norm(own, axis=axis)
            scale = np.broadcast_to(scale, len(w))
            w *= scale.reshape(-1, *(1,) * (w.ndim - 1))
            if layer in d.b:
                d.b[layer] = d.b[layer] * scale
    if normalization is None:
        d.vector /= np.linalg.norm(d.vector)
    elif not d.vector.any():
        raise ValueError(f"normalization {normalization!r}: expected a theta that is not 0")
    return d.to(namespace(theta.vector), theta.vector.dtype)


class RandomDirections(Sequence):
    """`count` random directions around theta; each is made from the seed and its number when it is
    needed.
    """

    def __init__(
        self,
        theta: Parameters,
        count: int,
        seed: int = 0,
        normalization: str | None = None,
        biases: bool = True,
    ):
        self.theta, self.count = theta, whole(count) or count
        self.seed = whole(seed) or seed
        self.normalization, self.biases = normalization, biases
        if not is_positive(count):
            raise ValueError(f"random directions: expected one or more, got {count!r}")
        self[0]  # raises an error now for a theta that is no point or can't be normalised

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, k: int) -> Parameters:
        if not -self.count <= k < self.count:
            raise IndexError(f"direction: expected 0..{self.count - 1}, got {k}")
        seed = (self.seed, k % self.count)
        return random_direction(self.theta, seed, self.normalization, self.biases)


def same_network(first: Parameters, *others: Parameters) -> None:
    """Raise ValueError for what is no point or direction, or of another network, type or device."""
    check_points(getattr(first, "net", None), first, *others)
    for other in others:
        kinds = [f"{namespace(p.vector).__name__} {p.vector.dtype}" for p in (first, other)]
        if kinds[0] != kinds[1]:
            raise ValueError(f"expected points and directions of {kinds[0]}, got {kinds[1]}")
