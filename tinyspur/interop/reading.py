"""From the calls of a run to a network: layers in their order, and their numbers.

What made a tensor is a trail of items, one for each layer. A sum of two tensors is a residual
block: their trails part after what came before it, and the rests are the block and its shortcut.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrize

from ..engine import activations
from ..engine.activations import Activation, Identity
from ..engine.network import Network
from ..engine.parameters import Parameters
from ..files import naming
from ..layers import AveragePool, Conv, Dense, Layer, MaxPool, Residual, Same, Scale
from ..layers.layer import each
from .watching import Call, Watch

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
LINES = (20, 80)  # thresholds of softplus that pass; float32 overflows above
SHAPES = ("flatten", "view", "reshape", "squeeze", "unsqueeze", "view_as")
DROPOUTS = ("dropout", "dropout1d", "dropout2d", "feature_dropout")
SAME = (*DROPOUTS, "contiguous", "clone", "detach", "to", "type_as", "cpu", "requires_grad")


@dataclass(eq=False)
class Item:
    """A layer that was read, and its weights and biases, in the order of the network's numbers."""

    layer: Layer
    numbers: list[np.ndarray] = field(default_factory=list)


class Value(NamedTuple):
    """What a call made: the items behind it, and the zeros that are to be put around it.

    `alone` says whether nothing else reads what the last item makes.
    """

    trail: tuple[Item, ...]
    shape: tuple[int, ...]
    alone: bool
    pad: tuple[tuple[int, int], ...] | None = None


PLAIN = (
    "(torch.nn.utils.parametrize.remove_parametrizations, remove_weight_norm, "
    "remove_spectral_norm and prune.remove make them plain)"
)


class Reading:
    """The values of a run, and the network that makes the last one of them.

    The run was that of `model`, a copy of `given`, whose weights may share memory.
    """

    def __init__(
        self,
        model: nn.Module,
        given: nn.Module,
        run: Watch,
        shape: tuple[int, ...],
        dtype: torch.dtype,
    ):
        self.run, self.dtype, self.given = run, dtype, dict(_tensors_of(given))
        self.names: dict[int, str] = {}
        for name, tensor in _tensors_of(model):
            self.names.setdefault(id(tensor), name)
        self.owners: list[tuple[int, int, str]] = []  # of the memory of numbers
        self.readers: Counter[int] = Counter()
        self.values = {0: Value((), shape, alone=True)}

    def network(self, last: int) -> tuple[list[Layer], list[np.ndarray]]:
        """Return the layers and numbers behind the call number `last`."""
        needed, queue = set(), [last]
        self.readers[last] += 1
        while queue:
            number = queue.pop()
            if number and number not in needed:
                needed.add(number)
                reads = self.run.calls[number - 1].reads
                self.readers.update(reads)
                queue += reads
        for number in sorted(needed):
            call = self.run.calls[number - 1]
            with naming(f"{call.where}:"):
                self.values[number] = self._value(call, self.readers[number] == 1)
        trail = self.values[last].trail
        return _layers(trail), [numbers for item in trail for numbers in item.numbers]

    def _value(self, call: Call, alone: bool) -> Value:
        first, name = self.values[call.reads[0]], call.name
        if call.shape is None:
            raise ValueError(f"expected a layer for each sample by itself, got {name}")
        if first.pad is not None and not name.startswith("conv"):
            raise ValueError(f"expected a convolution after the padding with zeros, got {name}")
        if name == "add":
            return self._added(call, alone) if len(call.reads) == 1 else self._sum(call, alone)
        if len(call.reads) > 1:
            raise ValueError(f"expected one tensor that depends on the input, got {name} of more")
        if name == "pad":
            return first._replace(shape=call.shape, alone=alone, pad=_padding(call))
        if name in SAME or name in SHAPES:
            return self._reshaped(first, call, alone and first.alone)
        if name in ACTIVATIONS:
            return _activated(first, _activation(call), alone)
        if name == "mean":
            layer, numbers = _mean(first, call), []
        elif name == "batch_norm":
            layer, numbers = self._scale(call)
        elif name in LAYERS:
            layer, numbers = self._layer(first, call)
        else:
            known = ", ".join(
                sorted({*LAYERS, *ACTIVATIONS, *SHAPES, "add", "batch_norm", "mean", "pad"})
            )
            raise ValueError(f"expected one of {known}, got {name}")
        return Value((*first.trail, Item(layer, numbers)), call.shape, alone)

    def _layer(self, first: Value, call: Call) -> tuple[Layer, list[np.ndarray]]:
        """Return the layer that a function is, and its numbers."""
        kind, usual = LAYERS[call.name]
        given = SimpleNamespace(**_given(call, usual))
        if not hasattr(given, "weight"):
            for name in ("output_size",) if hasattr(given, "output_size") else ("kernel_size",):
                setattr(given, name, _tuple(getattr(given, name)))
            if getattr(given, "stride", 0) is None or getattr(given, "stride", 0) == []:
                given.stride = given.kernel_size
            return kind.from_torch(given, first.shape), []
        numbers = [self._numbers("weight", given.weight)]
        if given.bias is not None:
            if given.bias.shape != given.weight.shape[:1]:
                expected, got = tuple(given.weight.shape[:1]), tuple(given.bias.shape)
                raise ValueError(f"expected a bias of shape {expected}, got {got}")
            numbers.append(self._numbers("bias", given.bias))
        if kind is Conv:
            given.out_channels, given.kernel_size = len(given.weight), tuple(given.weight.shape[2:])
            if first.pad is not None:
                given.padding = _around(given, first.pad)
        elif math.prod(first.shape[:-1]) != 1:
            raise ValueError(f"expected nn.Flatten() before it, got maps {first.shape}")
        return kind.from_torch(given, first.shape), numbers

    def _scale(self, call: Call) -> tuple[Layer, list[np.ndarray]]:
        """Return the scale that a batch normalisation is, running statistics and all."""
        given = SimpleNamespace(**_given(call, NORM))
        if given.running_var is None:
            raise ValueError("expected running statistics, got track_running_stats=False")
        for name in ("running_mean", "running_var", "weight", "bias"):
            if getattr(given, name) is not None:
                self._numbers(name, getattr(given, name))
        factor, shift = Scale.numbers_of(given)
        layer = Scale(bias=bool(given.bias is not None or shift.any()))
        return layer, [factor, shift] if layer.bias else [factor]

    def _numbers(self, name: str, tensor: torch.Tensor) -> np.ndarray:
        """Return a weight or a bias, checked, on the host."""
        own = self.names.get(id(tensor))
        if own is None:
            raise ValueError(f"expected plain numbers, got a {name} that is computed {PLAIN}")
        if tensor.dtype != self.dtype:
            raise ValueError(f"expected a {name} of {self.dtype}, got {tensor.dtype}")
        given = self.given[own]
        steps = [(n, step) for n, step in zip(given.shape, given.stride(), strict=True) if n > 1]
        start, size = given.data_ptr(), given.element_size()
        stop = start + size * (1 + sum((n - 1) * step for n, step in steps))
        if any(step == 0 for _, step in steps):
            raise ValueError(f"expected a {name} whose entries are its own, got repeated ones")
        for low, high, other in self.owners:
            if start < high and low < stop:
                got = "that of an earlier layer" if own == other else f"memory of '{other}' in it"
                raise ValueError(f"expected a {name} of its own, got {got}, '{own}'")
        self.owners.append((start, stop, own))
        numbers = tensor.detach().numpy()
        if not np.isfinite(numbers).all():
            raise ValueError(f"expected finite numbers in its {name}, got NaN or infinity")
        return numbers

    def _added(self, call: Call, alone: bool) -> Value:
        """Return the value itself where 0 is added to it, as `sum` of a list begins."""
        if call.kwargs or not any(type(part) is int and part == 0 for part in call.args):
            raise ValueError("expected a sum of two tensors that depend on the input")
        return self.values[call.reads[0]]._replace(alone=alone)

    def _sum(self, call: Call, alone: bool) -> Value:
        """Return the value of a block and its shortcut."""
        if call.kwargs.get("alpha", 1) != 1 or len(call.reads) != 2:
            raise ValueError("expected a sum of two tensors that depend on the input")
        one, two = (self.values[number] for number in call.reads)
        if one.shape != two.shape:
            raise ValueError(f"expected a sum of equal shapes, got {one.shape} and {two.shape}")
        pairs = zip(one.trail, two.trail, strict=False)
        common = next((n for n, (a, b) in enumerate(pairs) if a is not b), None)
        common = min(len(one.trail), len(two.trail)) if common is None else common
        rests = sorted((one.trail[common:], two.trail[common:]), key=len, reverse=True)
        block, shortcut = rests
        if not block:
            raise ValueError("expected a layer in one of the summands, got the same tensor twice")
        numbers = [part for item in (*block, *shortcut) for part in item.numbers]
        made = Residual(_layers(block), _layers(shortcut))
        return Value((*one.trail[:common], Item(made, numbers)), call.shape, alone)

    def _reshaped(self, first: Value, call: Call, alone: bool) -> Value:
        """Return the same value with another shape, in the same order."""
        old, new = ([n for n in shape if n != 1] for shape in (first.shape, call.shape))
        if old != new and len(call.shape) != 1:
            raise ValueError(f"expected nn.Flatten(), got {first.shape} as {call.shape}")
        return first._replace(shape=call.shape, alone=alone)


def _layers(trail: tuple[Item, ...]) -> tuple[Layer, ...]:
    """Return the layers of a trail; where no activation followed they say so."""
    layers = (item.layer for item in trail)
    return tuple(replace(part, activation=part.activation or Identity()) for part in layers)


def usual_layers(
    layers: tuple[Layer, ...], sigma: Activation, top: bool = False, quiet: bool = False
) -> tuple[Layer, ...]:
    """Return layers that name their activation only where it is another one than by default.

    `sigma` is the network's, `top` says whether they are all layers, `quiet` whether a shortcut.
    """
    found = []
    for number, layer in enumerate(layers, start=1):
        above = layers[number : number + 1]
        silent = quiet or not above or not layer.activated or above[0].precedes_activation
        default = Identity() if silent else sigma
        if isinstance(layer, Residual):
            block = usual_layers(layer.layers, sigma)
            shortcut = usual_layers(layer.shortcut, sigma, quiet=True)
            layer = replace(layer, layers=block, shortcut=shortcut)
        found.append(replace(layer, activation=None) if layer.activation == default else layer)
    return tuple(found)


def parameters(
    input_shape: tuple[int, ...], layers: tuple[Layer, ...], numbers: list[np.ndarray], dtype: str
) -> Parameters:
    """Return the network of these layers, described as it is usual, at these numbers."""
    named = [layer.activation for layer in _flat(layers) if layer.activation != Identity()]
    sigma = named[0] if named else activations.ReLU()
    net = Network(input_shape, usual_layers(layers, sigma, top=True), sigma)
    theta = net.zeros(dtype=dtype)
    if sum(map(np.size, numbers)) != net.size:
        raise ValueError("expected maps to be flattened right below nn.Linear alone")
    theta.vector[:] = np.concatenate([*map(np.ravel, numbers), theta.vector[:0]])
    return theta


def _flat(layers: tuple[Layer, ...]) -> list[Layer]:
    """Return all layers of a list, first those that a network's activation usually follows."""
    found = []
    for layer in layers:
        if isinstance(layer, Residual):
            found += _flat((*layer.layers, *layer.shortcut))
        found.append(layer)
    return sorted(found, key=lambda layer: not layer.activated)


# Functions


def _given(call: Call, usual: dict) -> dict:
    """Return the arguments of a function after its first, by name."""
    named = dict(zip(usual, call.args[1:], strict=False))
    return usual | named | {key: call.kwargs[key] for key in usual.keys() & call.kwargs.keys()}


def _activation(call: Call) -> Activation:
    kind, usual = ACTIVATIONS[call.name]
    if call.name == "gelu" and call.kwargs.get("approximate", "none") != "none":
        raise ValueError(f"expected approximate none, got {call.kwargs['approximate']}")
    if call.name == "softplus":
        given = _given(call, {"beta": 1, "threshold": 20})
        if given["beta"] != 1:
            raise ValueError(f"expected beta 1, got {given['beta']}")
        if not LINES[0] <= given["threshold"] <= LINES[1]:
            raise ValueError(f"expected a threshold within {LINES}, got {given['threshold']}")
    return kind(*_given(call, usual).values())


def _activated(first: Value, sigma: Activation, alone: bool) -> Value:
    """Return the value after an activation: one of its last layer, if nothing else reads that."""
    *before, last = first.trail or (None,)
    if last is None or not first.alone or last.layer.activation is not None:
        return Value((*first.trail, Item(Same(activation=sigma))), first.shape, alone)
    item = Item(replace(last.layer, activation=sigma), last.numbers)
    return Value((*before, item), first.shape, alone)


def _mean(first: Value, call: Call) -> Layer:
    """Return the pooling that a mean over all positions is."""
    given = _given(call, {"dim": None, "keepdim": False})
    axes = len(first.shape)  # of a sample, 0 that of the samples
    dim = given["dim"] if isinstance(given["dim"], tuple | list) else [given["dim"]]
    if None in dim or sorted(n % (axes + 1) for n in dim) != list(range(2, axes + 1)):
        raise ValueError(f"expected the mean over all positions of a map, got dim {given['dim']}")
    return AveragePool(first.shape[1:])


def _padding(call: Call) -> tuple[tuple[int, int], ...]:
    """Return how many zeros are put around maps, (before, after) in each direction."""
    given = _given(call, {"pad": (), "mode": "constant", "value": None})
    pad, directions = tuple(given["pad"]), len(call.shape) - 1
    if given["mode"] != "constant" or given["value"] or len(pad) > 2 * directions or min(pad) < 0:
        raise ValueError(f"expected padding with zeros, got {given}")
    pairs = [pad[n : n + 2] for n in range(0, len(pad), 2)][::-1]
    return ((0, 0),) * (directions - len(pairs)) + tuple(pairs)


def _around(given: SimpleNamespace, pad: tuple[tuple[int, int], ...]) -> tuple:
    """Return the padding of a convolution with further zeros around it."""

    def listed(option: object) -> tuple:
        return each("options", _tuple(option), len(pad))

    if given.padding == "same":
        sizes = zip(listed(given.kernel_size), listed(given.dilation), strict=True)
        total = [d * (k - 1) for k, d in sizes]
        own = [(n // 2, n - n // 2) for n in total]
    else:
        own = [(n, n) for n in listed(0 if given.padding == "valid" else given.padding)]
    return tuple((a + b, c + d) for (a, c), (b, d) in zip(own, pad, strict=True))


def _tuple(option: object) -> object:
    """Return an option as a number or a tuple of one for each direction."""
    if isinstance(option, tuple | list):
        return option[0] if len(option) == 1 else tuple(option)
    return option


def _tensors_of(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]


def check_module(module: nn.Module) -> None:
    """Raise ValueError for what can't be run as it is, or would change in a run."""
    if isinstance(module, torch.jit.ScriptModule):
        raise ValueError("expected a module of Python's, got one of TorchScript")
    if isinstance(module, nn.modules.lazy.LazyModuleMixin) and module.has_uninitialized_params():
        raise ValueError("expected an initialised module: run the model on one batch first")
    for name, value in vars(module).items():
        if isinstance(value, torch.Tensor) and not value.is_leaf:
            raise ValueError(f"expected plain numbers, got a computed tensor, '{name}' {PLAIN}")
    if parametrize.is_parametrized(module):
        named = ", ".join(module.parametrizations)
        raise ValueError(
            f"expected plain numbers, got a parametrization of {named}: "
            "torch.nn.utils.parametrize.remove_parametrizations makes them plain"
        )
    dropout = isinstance(module, nn.modules.dropout._DropoutNd) and module.p
    if module.training and (dropout or isinstance(module, nn.modules.batchnorm._NormBase)):
        raise ValueError("expected evaluation mode: call .eval() on the model first")
