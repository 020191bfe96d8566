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
from ..layers import Conv, Dense, Layer, Residual, Same, Scale
from .functions import (
    ACTIVATIONS,
    LAYERS,
    NORM,
    SAME,
    SHAPES,
    SOFTMAX,
    WHOLE,
    activation_of,
    as_tuple,
    check_picked,
    given_of,
    padding_of,
    whole_windows,
    zeros_around,
)
from .watching import Call, Watch


@dataclass(eq=False)
class Item:
    """A layer that was read, and its weights and biases, in the order of the network's numbers."""

    layer: Layer
    numbers: list[np.ndarray] = field(default_factory=list)


class Value(NamedTuple):
    """What a call made: the items behind it, and the zeros that are to be put around it.

    `made` is the shape of what the last item makes, `shape` the one in which it is read. `alone`
    says whether nothing else reads what the last item makes.
    """

    trail: tuple[Item, ...]
    made: tuple[int, ...]
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
        self.values = {0: Value((), shape, shape, alone=True)}

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
            raise ValueError(
                f"expected one tensor with a row for each sample, got what {name} returns"
            )
        if first.pad is not None and not name.startswith(("conv", "pad")):
            raise ValueError(f"expected a convolution after the padding with zeros, got {name}")
        if name == "add":
            return self._added(call, alone) if len(call.reads) == 1 else self._sum(call, alone)
        if len(call.reads) > 1:
            raise ValueError(f"expected one tensor that depends on the input, got {name} of more")
        if name == "pad":
            _check_maps(first)
            sides = zip(padding_of(call), first.pad or ((0, 0),) * len(call.shape), strict=False)
            pad = tuple((a + c, b + d) for (a, b), (c, d) in sides)
            return Value(first.trail, call.shape, call.shape, alone, pad)
        if name == "__getitem__":
            check_picked(call, first.shape)
        if name in SAME or name in SHAPES or name == "__getitem__":
            return first._replace(shape=call.shape, alone=alone and first.alone)
        if name in ACTIVATIONS:
            return _activated(first, activation_of(call), alone)
        made = call.shape
        if name in WHOLE:
            layer, made = whole_windows(call, first.made, first.shape)
            numbers = []
        elif name == "batch_norm":
            layer, numbers = self._scale(first, call)
        elif name in LAYERS:
            layer, numbers = self._layer(first, call)
        else:
            if name in SOFTMAX:
                raise ValueError(
                    f"expected a model that ends below {name}: leave it out, CrossEntropy has it"
                )
            raise ValueError(
                "expected a convolution, pooling, linear layer, batch normalisation, sum, new "
                f"shape or activation ({', '.join(sorted(ACTIVATIONS))}), got {name}"
            )
        return Value((*first.trail, Item(layer, numbers)), made, call.shape, alone)

    def _layer(self, first: Value, call: Call) -> tuple[Layer, list[np.ndarray]]:
        """Return the layer that a function is, and its numbers."""
        kind, usual = LAYERS[call.name]
        given = SimpleNamespace(**given_of(call, usual))
        if kind is not Dense:
            _check_maps(first)
        if not hasattr(given, "weight"):
            for name in ("output_size",) if hasattr(given, "output_size") else ("kernel_size",):
                setattr(given, name, as_tuple(getattr(given, name)))
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
                given.padding = zeros_around(given, first.pad)
        elif math.prod(first.shape[:-1]) != 1:
            raise ValueError(f"expected nn.Flatten() before it, got maps {first.shape}")
        return kind.from_torch(given, first.shape), numbers

    def _scale(self, first: Value, call: Call) -> tuple[Layer, list[np.ndarray]]:
        """Return the scale that a batch normalisation is, running statistics and all."""
        given = SimpleNamespace(**given_of(call, NORM))
        if not first.trail and len(first.shape) == 1:
            raise ValueError(
                f"expected nn.Linear below it, got the inputs ({first.shape[0]},): normalise the "
                "data instead, or fold it into the linear layer above"
            )
        if first.shape[:1] != first.made[:1] and first.trail:
            raise ValueError(f"expected maps {first.made} as they were made, got {first.shape}")
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
            raise ValueError(
                "expected a sum of two tensors that depend on the input, got one and a constant"
            )
        return self.values[call.reads[0]]._replace(alone=alone)

    def _sum(self, call: Call, alone: bool) -> Value:
        """Return the value of a block and its shortcut."""
        if call.kwargs.get("alpha", 1) != 1 or len(call.reads) != 2:
            raise ValueError("expected a sum of two tensors that depend on the input")
        one, two = (self.values[number] for number in call.reads)
        if one.shape != two.shape or one.made != two.made:
            shapes = (one.shape, two.shape) if one.shape != two.shape else (one.made, two.made)
            raise ValueError(f"expected a sum of equal shapes, got {shapes[0]} and {shapes[1]}")
        pairs = zip(one.trail, two.trail, strict=False)
        common = next((n for n, (a, b) in enumerate(pairs) if a is not b), None)
        common = min(len(one.trail), len(two.trail)) if common is None else common
        rests = sorted((one.trail[common:], two.trail[common:]), key=len, reverse=True)
        block, shortcut = rests
        if not block:
            raise ValueError("expected a layer in one of the summands, got the same tensor twice")
        numbers = [part for item in (*block, *shortcut) for part in item.numbers]
        made = Residual(_layers(block), _layers(shortcut))
        return Value((*one.trail[:common], Item(made, numbers)), one.made, call.shape, alone)


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


def _check_maps(first: Value) -> None:
    """Raise ValueError for maps that are read in another shape than they were made."""
    if [n for n in first.made if n != 1] != [n for n in first.shape if n != 1]:
        raise ValueError(f"expected maps {first.made} as they were made, got {first.shape}")


def _activated(first: Value, sigma: Activation, alone: bool) -> Value:
    """Return the value after an activation: one of its last layer, if nothing else reads that."""
    *before, last = first.trail or (None,)
    if last is None or not first.alone or last.layer.activation is not None:
        item = Item(Same(activation=sigma))
        return Value((*first.trail, item), first.made, first.shape, alone)
    item = Item(replace(last.layer, activation=sigma), last.numbers)
    return Value((*before, item), first.made, first.shape, alone)


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
    norm = isinstance(module, nn.modules.batchnorm._NormBase)
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_var is None:
        raise ValueError("expected running statistics, got track_running_stats=False")
    dropout = isinstance(module, nn.modules.dropout._DropoutNd) and module.p
    if module.training and (dropout or norm):
        raise ValueError("expected evaluation mode: call .eval() on the model first")
