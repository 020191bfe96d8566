"""The layers that relays lead through, and those of residual blocks that they pass by."""

from __future__ import annotations

from dataclasses import dataclass

from ..engine.activations import ReLU, check_piecewise_linear
from ..engine.network import Network
from ..layers import AveragePool, Conv, Dense, Layer, Link, Same, Scale

CARRIES = Conv, AveragePool, Scale, Same


def kind_of(net: Network, layer: int) -> Layer:
    """Return a layer itself, also where it is one of a residual block."""
    found = net.chain[layer - 1]
    return found.layer if isinstance(found, Link) else found


@dataclass(frozen=True)
class Path:
    """The `layers` that carry maps, in order, and the others between them.

    Past a block with an identity as its shortcut the maps go along this: ``past`` has the layers of
    the block by the number of its sum. Through any other block they go along its layers. The layers
    that are not taken are `quiet`: their weights are 0.
    """

    layers: tuple[int, ...]
    quiet: tuple[int, ...]
    past: dict[int, range]

    @classmethod
    def of(cls, net: Network, first: int, last: int) -> Path:
        """Return the path from layer `first` to `last`, or raise ValueError for what carries none.

        A block is part of it as a whole. Its shortcut has to be an identity or to have weights.
        """
        check_piecewise_linear(net.activations, "construction")
        layers, quiet, past, n = [], [], {}, first
        while n <= last:
            link = net.chain[n - 1]
            if not isinstance(link, Link):
                layers.append(n)
                n += 1
                continue
            ends = (m for m in range(n, last + 1) if getattr(net.chain[m - 1], "joins", False))
            end = next(ends, last + 1)
            inner = range(n + 1, min(end, last) + 1)
            nested = link.forks > 1 or any(getattr(net.chain[m - 1], "forks", 0) for m in inner)
            if end > last or link.forks < 1 or nested:
                raise ValueError(
                    "construction: expected whole residual blocks, and none inside of another, "
                    f"got layer {n}, {link.layer}, in one{instead(net)}"
                )
            swap = next((m for m in inner if net.chain[m - 1].swaps), end)
            block, shortcut = range(n, swap), range(swap, end)
            if not shortcut:
                quiet += block
                past[end] = block
            elif any(net.chain[m - 1].trainable for m in shortcut):
                layers += block
                quiet += shortcut
            else:
                raise ValueError(
                    "construction: expected shortcuts that are the identity or have weights, got "
                    f"{kind_of(net, swap)} as layer {swap}{instead(net)}"
                )
            layers.append(end)
            n = end + 1
        for layer in layers:
            kind = kind_of(net, layer)
            if not isinstance(kind, CARRIES):
                raise ValueError(
                    f"construction: expected layers that can relay a map, got {kind} as layer "
                    f"{layer}{instead(net)}"
                )
        return cls(tuple(layers), tuple(quiet), past)


def instead(net: Network) -> str:
    """Return which other construction a network has, as the end of an error message; "" for none.

    >>> instead(Network((1, 4), [Dense(3), Dense(1)]))
    '; spurious_pair(net, data, loss) needs no relays'
    """
    return "; spurious_pair(net, data, loss) needs no relays" if can_be_dead(net) else ""


def can_be_dead(net: Network) -> bool:
    """Return whether all units can be dead: under ReLU, with biases, and no residual blocks.

    The last layer has to be dense, with biases.
    """
    active = [n for n in net.active_layers if n < net.depth]
    plain = not any(isinstance(link, Link) for link in net.chain)
    relu = all(net.activation_of(n) == ReLU() and net.chain[n - 1].bias for n in active)
    above = isinstance(net.chain[-1], Dense) and net.chain[-1].bias
    first = isinstance(net.chain[net.leading_poolings], Conv | Dense)
    return bool(active) and plain and relu and above and first and not net.is_active(net.depth)
