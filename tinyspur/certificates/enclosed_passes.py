"""Passes on enclosures: what each layer gives for stored parameters, or for all in a box."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from ..engine.activations import Activation
from ..engine.backend import Array
from ..engine.parameters import Parameters
from ..layers import WeightMatrix
from .enclosed_functions import activated
from .enclosures import Enclosure, concatenate, exact, product


class EnclosedStep(NamedTuple):
    """One layer of a pass: enclosures of z = W below + b and o = sigma(z), columns (n, N).

    `radii` is None, or the matrix of the radii of the weights. The other fields are those of
    `passes.Step`.
    """

    layer: int
    W: WeightMatrix
    radii: WeightMatrix | None
    b: Enclosure | None
    below: Enclosure
    z: Enclosure
    o: Enclosure
    activation: Activation | None

    @property
    def slopes(self) -> Enclosure:
        """Return an enclosure of sigma'(z)."""
        return activated(self.activation, self.z, 1)

    @property
    def bends(self) -> Enclosure:
        """Return an enclosure of sigma''(z)."""
        return activated(self.activation, self.z, 2)


def enclosed_steps(
    theta: Parameters, columns: Array | Enclosure, radii: Parameters | None = None
) -> Iterator[EnclosedStep]:
    """Yield the steps of a pass in exact arithmetic, enclosed, for l = 1..L.

    `columns` (n_0, N) are the inputs. With `radii` >= 0, parameters of the same network, for all
    parameters no further from theta than these, one by one. Both are float64.
    """
    o = columns if isinstance(columns, Enclosure) else exact(columns)
    for layer, W in theta.W.items():
        below, b, reach = o, None, None
        if radii is not None and W.weights is not None:
            reach = radii.W[layer].trained
        z = product(W, below, reach)
        if layer in theta.b:
            b = exact(theta.b[layer]) if radii is None else _box(theta.b[layer], radii.b[layer])
            z = with_biases(W, z, b[:, None])
        sigma = theta.net.activation_at(layer)
        o = z if sigma is None else activated(sigma, z)
        yield EnclosedStep(layer, W, reach, b, below, z, o, sigma)


def with_biases(W: WeightMatrix, z: Enclosure, b: Enclosure) -> Enclosure:
    """Return W o + b, (n, N), for z = W o and biases (maps, 1)."""
    own, *_ = found = [z[: W.rows], z[W.rows :]]
    found[0] = (own.reshape(len(b), -1) + b).reshape(*own.shape)
    return concatenate(found) if W.rows < W.shape[0] else found[0]


def _box(middle: Array, radius: Array) -> Enclosure:
    return Enclosure(middle, radius)
