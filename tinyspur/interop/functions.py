"""PyTorch's functions that are layers or activations here, their arguments, and what they mean."""

from __future__ import annotations

import math
from types import SimpleNamespace

from ..engine import activations
from ..engine.activations import Activation
from ..layers import AveragePool, Conv, Dense, Layer, MaxPool
from ..layers.layer import each
from .watching import Call

CONV = {"weight": None, "bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}
POOL = {"kernel_size": None, "stride": None, "padding": 0}
AVERAGE = POOL | {"ceil_mode": False, "count_include_pad": True, "divisor_override": None}
MAXIMUM = POOL | {"dilation": 1, "ceil_mode": False, "return_indices": False}
LAYERS: dict[str, tuple[type[Layer], dict]] = {
    "linear": (Dense, {"weight": None, "bias": None}),
    **{f"conv{d}d": (Conv, CONV) for d in (1, 2)},
    **{f"avg_pool{d}d": (AveragePool, AVERAGE) for d in (1, 2)},
    **{f"max_pool{d}d": (MaxPool, MAXIMUM) for d in (1, 2)},
    **{f"adaptive_avg_pool{d}d": (AveragePool, {"output_size": 1}) for d in (1, 2)},
    **{
        f"adaptive_max_pool{d}d": (MaxPool, {"output_size": 1, "return_indices": False})
        for d in (1, 2)
    },
}
"""The functions that are layers, and their arguments after the first with their usual values."""
NORM = {"running_mean": None, "running_var": None, "weight": None, "bias": None}
NORM |= {"training": False, "momentum": 0.1, "eps": 1e-5}
ACTIVATIONS: dict[str, tuple[type[Activation], dict]] = {
    "relu": (activations.ReLU, {}),
    "leaky_relu": (activations.ReLU, {"negative_slope": 0.01}),
    "sigmoid": (activations.Sigmoid, {}),
    "tanh": (activations.Tanh, {}),
    "silu": (activations.SiLU, {}),
    "gelu": (activations.GELU, {}),
    "elu": (activations.ELU, {"alpha": 1.0}),
    "softplus": (activations.Softplus, {}),
    "sin": (activations.Sine, {}),
    "arctan": (activations.Arctan, {}),
    "atan": (activations.Arctan, {}),
    "swish": (activations.Swish, {"beta": 1.0}),
}
SOFTMAX = ("softmax", "log_softmax", "softmin")
LINES = (20, 80)  # thresholds of softplus that pass; float32 overflows above
SHAPES = ("flatten", "unflatten", "view", "reshape", "squeeze", "unsqueeze", "view_as")
WHOLE = {"mean": AveragePool, "amax": MaxPool}
DROPOUTS = ("dropout", "dropout1d", "dropout2d", "feature_dropout")
SAME = (*DROPOUTS, "contiguous", "clone", "detach", "to", "type_as", "cpu", "requires_grad")


def given_of(call: Call, usual: dict) -> dict:
    """Return the arguments of a function after its first, by name."""
    named = dict(zip(usual, call.args[1:], strict=False))
    return usual | named | {key: call.kwargs[key] for key in usual.keys() & call.kwargs.keys()}


def activation_of(call: Call) -> Activation:
    kind, usual = ACTIVATIONS[call.name]
    if call.name == "gelu" and call.kwargs.get("approximate", "none") != "none":
        raise ValueError(f"expected approximate none, got {call.kwargs['approximate']}")
    if call.name == "softplus":
        given = given_of(call, {"beta": 1, "threshold": 20})
        if given["beta"] != 1:
            raise ValueError(f"expected beta 1, got {given['beta']}")
        if not LINES[0] <= given["threshold"] <= LINES[1]:
            raise ValueError(f"expected a threshold within {LINES}, got {given['threshold']}")
    return kind(*given_of(call, usual).values())


def padding_of(call: Call) -> tuple[tuple[int, int], ...]:
    """Return how many zeros are put around maps, (before, after) in each direction."""
    given = given_of(call, {"pad": (), "mode": "constant", "value": None})
    pad, directions = tuple(given["pad"]), len(call.shape) - 1
    if given["mode"] != "constant" or given["value"] or len(pad) > 2 * directions or min(pad) < 0:
        raise ValueError(f"expected padding with zeros, got {given}")
    pairs = [pad[n : n + 2] for n in range(0, len(pad), 2)][::-1]
    return ((0, 0),) * (directions - len(pairs)) + tuple(pairs)


def zeros_around(given: SimpleNamespace, pad: tuple[tuple[int, int], ...]) -> tuple:
    """Return the padding of a convolution with further zeros around it."""

    def listed(option: object) -> tuple:
        return each("options", as_tuple(option), len(pad))

    if given.padding == "same":
        sizes = zip(listed(given.kernel_size), listed(given.dilation), strict=True)
        total = [d * (k - 1) for k, d in sizes]
        own = [(n // 2, n - n // 2) for n in total]
    else:
        own = [(n, n) for n in listed(0 if given.padding == "valid" else given.padding)]
    return tuple((a + b, c + d) for (a, c), (b, d) in zip(own, pad, strict=True))


def as_tuple(option: object) -> object:
    """Return an option as a number or a tuple of one for each direction."""
    if isinstance(option, tuple | list):
        return option[0] if len(option) == 1 else tuple(option)
    return option


def axes_of(made: tuple[int, ...], shape: tuple[int, ...]) -> list[list[int]] | None:
    """Return which axes of `made` each axis of another `shape` of it runs over, None for others.

    >>> axes_of((4, 6, 6), (4, 36)), axes_of((4, 1, 6), (4, 6)), axes_of((4, 6), (3, 8))
    ([[0], [1, 2]], [[0], [2]], None)
    """
    left, found = [n for n in range(len(made)) if made[n] != 1], []
    for length in shape:
        found.append([])
        while length > 1:
            if not left or length % made[left[0]]:
                return None
            length //= made[left[0]]
            found[-1].append(left.pop(0))
    return None if left else found


def whole_windows(
    call: Call, made: tuple[int, ...], shape: tuple[int, ...]
) -> tuple[Layer, tuple[int, ...]]:
    """Return the pooling that a mean or maximum along axes is, and the shape that it makes.

    The axes are those of `shape`, in which what a layer `made` is read.
    """
    dim = given_of(call, {"dim": call.kwargs.get("axis")})["dim"]
    axes, listed = axes_of(made, shape), list(dim) if isinstance(dim, tuple | list) else [dim]
    places = [n % (len(shape) + 1) for n in listed if n is not None]
    fits = axes is not None and None not in listed and 0 not in places
    read = {axis for n in places for axis in axes[n - 1]} if fits else {0}
    if 0 in read:  # the samples, or the maps themselves
        raise ValueError(f"expected the {call.name} over positions of a map, got dim {dim}")
    size = tuple(n if axis in read else 1 for axis, n in enumerate(made[1:], start=1))
    after = tuple(1 if axis in read else n for axis, n in enumerate(made))
    return WHOLE[call.name](size), after


def check_picked(call: Call, shape: tuple[int, ...]) -> None:
    """Raise ValueError for an index that does not keep all entries, in their order."""
    index = call.args[1] if isinstance(call.args[1], tuple) else (call.args[1],)
    plain = all(part is None or part is ... or isinstance(part, slice | int) for part in index)
    if not plain or math.prod(call.shape) != math.prod(shape):
        raise ValueError(f"expected an index that keeps all entries, got {index} of {shape}")
