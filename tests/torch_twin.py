"""The networks of the engine once more, in PyTorch, to check the engine against.

A network is described by a dictionary, or the same as JSON::

    {"input": [3, 8, 8],
     "activation": {"name": "relu"},
     "layers": [{"type": "conv", "maps": 6, "kernel": 3},
                {"type": "average_pool", "size": 2},
                {"type": "dense", "width": 10}]}

Layers count from 1.  The parameters of layer ``l`` are ``W<l>`` and ``b<l>``,
in the shapes of PyTorch.  The activation follows each convolution and each
dense layer but the last layer of the network.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch import nn

_CONVOLUTIONS = {2: nn.Conv1d, 3: nn.Conv2d}
_POOLINGS = {
    ("average_pool", 2): nn.AvgPool1d,
    ("average_pool", 3): nn.AvgPool2d,
    ("max_pool", 2): nn.MaxPool1d,
    ("max_pool", 3): nn.MaxPool2d,
}


# Of softplus PyTorch's own is a line beyond 20; the logarithm of the sigmoid is exact throughout.
_ACTIVATIONS = {
    "relu": ((), torch.relu),
    "leaky_relu": (("slope",), lambda z, slope: nn.functional.leaky_relu(z, slope)),
    "sigmoid": ((), torch.sigmoid),
    "tanh": ((), torch.tanh),
    "softplus": ((), lambda z: -nn.functional.logsigmoid(-z)),
    "silu": ((), nn.functional.silu),
    "gelu": ((), nn.functional.gelu),
    "elu": (("alpha",), lambda z, alpha: nn.functional.elu(z, alpha)),
    "sine": ((), torch.sin),
    "arctan": ((), torch.arctan),
    "swish": (("beta",), lambda z, beta: z * torch.sigmoid(beta * z)),
}


def activation(name: str, **parameters: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the activation of a description, elementwise."""
    takes, function = _ACTIVATIONS.get(name, ((), None))
    if function is None or set(takes) != parameters.keys():
        raise ValueError(f"unknown activation {name!r} with {parameters}")
    return functools.partial(function, **parameters)


class _Scale(nn.Module):
    """A factor and a shift for each map."""

    def __init__(self, maps: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(maps))
        self.register_parameter("bias", nn.Parameter(torch.zeros(maps)) if bias else None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return weight * x + bias, map by map."""
        shape = (-1, *(1,) * (x.ndim - 2))
        scaled = self.weight.reshape(shape) * x
        return scaled if self.bias is None else scaled + self.bias.reshape(shape)


def _tuples(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options with tuples instead of lists, as PyTorch takes them."""
    return {name: tuple(v) if isinstance(v, list) else v for name, v in options.items()}


def _each(option: Any, shape: Any) -> Any:
    """Return an option for each direction of maps."""
    return option if isinstance(option, list | tuple) else (option,) * (len(shape) - 1)


def _layer(shape: torch.Size, type: str, **options: int) -> nn.Module:
    """Return the module of one layer for inputs of `shape`, without the sample axis."""
    conv = type == "conv" and len(shape) in _CONVOLUTIONS
    if conv and {"maps", "kernel"} <= options.keys():
        options = {"padding": "same"} | options
        kernel, dilation = (_each(options.get(n, 1), shape) for n in ("kernel", "dilation"))
        if (padding := options.pop("padding")) == "same":
            around = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
            padding = [(n // 2, n - n // 2) for n in around]
        sides = [_each(p, (0, 1, 1)) for p in _each(padding, shape)]
        zeros = nn.ConstantPad2d if len(shape) == 3 else nn.ConstantPad1d
        maps, kernel = options.pop("maps"), options.pop("kernel")
        own = _CONVOLUTIONS[len(shape)](shape[0], maps, kernel, **options)
        return nn.Sequential(zeros([n for side in sides[::-1] for n in side], 0.0), own)
    if "size" in options and (type, len(shape)) in _POOLINGS:
        return _POOLINGS[type, len(shape)](options.pop("size"), **options)
    if type == "scale":
        return _Scale(shape[0], **options)
    if type == "dense" and options.keys() - {"bias"} == {"width"}:
        return nn.Sequential(nn.Flatten(), nn.Linear(shape.numel(), *options.values()))
    raise ValueError(f"no layer {type!r} with {options} for inputs of shape {tuple(shape)}")


class Twin(nn.Module):
    """A network in double precision.

    Parameters
    ----------
    spec : dict or str
        Description of the network, see the module; a string is read as JSON.
    """

    def __init__(self, spec: dict[str, Any] | str) -> None:
        super().__init__()
        self.spec = json.loads(spec) if isinstance(spec, str) else spec
        self.activation = activation(**self.spec["activation"])
        self.layers = nn.ModuleList()
        x = torch.zeros(1, *self.spec["input"], dtype=torch.float64)
        for options in self.spec["layers"]:
            self.layers.append(_layer(x.shape[1:], **_tuples(options)).double())
            x = self.layers[-1](x)

    def arrays(self) -> dict[str, nn.Parameter]:
        """Return the parameters under their names ``W1``, ``b1`` and so on."""
        named = {}
        for number, layer in enumerate(self.layers, start=1):
            for name, parameter in layer.named_parameters():
                named[f"{'W' if name.endswith('weight') else 'b'}{number}"] = parameter
        return named

    def load(self, arrays: Mapping[str, np.ndarray]) -> Twin:
        """Set all parameters and return the network.

        Parameters
        ----------
        arrays : mapping of str to array_like
            ``W<l>`` and ``b<l>`` of every layer with parameters and of no other.
            Keys that are no names of parameters do not matter.

        Raises
        ------
        ValueError
            If a parameter is missing, one too many, or of the wrong shape.
        """
        parameters = self.arrays()
        given = {key for key in arrays if re.fullmatch(r"[Wb]\d+", key)}
        if given != parameters.keys():
            raise ValueError(
                f"missing parameters {sorted(parameters.keys() - given)}, "
                f"surplus parameters {sorted(given - parameters.keys())}"
            )
        values = {key: np.asarray(arrays[key]) for key in parameters}
        for key, parameter in parameters.items():
            if values[key].shape != tuple(parameter.shape):
                raise ValueError(
                    f"{key} has shape {values[key].shape}, not {tuple(parameter.shape)}"
                )
        with torch.no_grad():
            for key, parameter in parameters.items():
                parameter.copy_(torch.tensor(values[key], dtype=torch.float64))
        return self

    def forward(self, x: torch.Tensor | np.ndarray) -> torch.Tensor:
        """Return the outputs (N, d_y) for the samples `x` (N, C, H, W) or (N, C, W)."""
        return self._run(x)[0]

    def preactivations(self, x: torch.Tensor | np.ndarray) -> dict[int, torch.Tensor]:
        """Return what enters each activation.

        Parameters
        ----------
        x : array_like
            Samples (N, C, H, W) or (N, C, W).

        Returns
        -------
        dict of int to torch.Tensor
            Values (N, n_l) in row-major order, by the number of the layer.
        """
        return self._run(x)[1]

    def _run(self, x: torch.Tensor | np.ndarray) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
        x = torch.as_tensor(x, dtype=torch.float64)
        if list(x.shape[1:]) != list(self.spec["input"]):
            raise ValueError(f"samples have shape {tuple(x.shape[1:])}, not {self.spec['input']}")
        before = {}
        for number, (layer, options) in enumerate(
            zip(self.layers, self.spec["layers"], strict=True), start=1
        ):
            x = layer(x)
            kinds = [options["type"], *(part["type"] for part in self.spec["layers"][number:][:1])]
            last = number == len(self.layers) or kinds[1] == "scale"
            if not options["type"].endswith("pool") and not last:
                before[number] = x.flatten(1)
                x = self.activation(x)
        return x.flatten(1), before


def risk(
    outputs: torch.Tensor | np.ndarray,
    targets: torch.Tensor | np.ndarray,
    loss: str,
    delta: float = 1.0,
) -> torch.Tensor:
    """Return the mean loss over the samples.

    Parameters
    ----------
    outputs, targets : array_like
        Outputs of the network and what they should be, (N, d_y); for
        cross-entropy the targets are the weights of the classes.
    loss : {"squared", "cross-entropy", "absolute", "huber"}
        Half the squared distance, the cross-entropy of the softmax, or the sum over the outputs of
        the absolute differences or of PyTorch's Huber losses.
    delta : float, optional
        Where the Huber loss goes over into a line.
    """
    outputs = torch.as_tensor(outputs, dtype=torch.float64)
    targets = torch.as_tensor(targets, dtype=torch.float64)
    if outputs.shape != targets.shape:
        raise ValueError(f"{tuple(outputs.shape)} outputs for {tuple(targets.shape)} targets")
    if loss == "squared":
        return (0.5 * (outputs - targets) ** 2).sum(1).mean()
    if loss == "cross-entropy":
        return -(targets * torch.log_softmax(outputs, 1)).sum(1).mean()
    if loss == "absolute":
        return nn.functional.l1_loss(outputs, targets, reduction="none").sum(1).mean()
    if loss == "huber":
        losses = nn.functional.huber_loss(outputs, targets, reduction="none", delta=delta)
        return losses.sum(1).mean()
    raise ValueError(f"unknown loss {loss!r}")


def gradients(
    twin: Twin, x: torch.Tensor | np.ndarray, targets: torch.Tensor | np.ndarray, loss: str
) -> dict[str, np.ndarray]:
    """Return the gradient of the risk by each parameter, under the parameter's name.

    Parameters
    ----------
    twin : Twin
        The network.
    x, targets : array_like
        Samples and their targets.
    loss : {"squared", "cross-entropy"}
        As for :func:`risk`.
    """
    parameters = twin.arrays()
    found = torch.autograd.grad(risk(twin(x), targets, loss), list(parameters.values()))
    return {key: value.numpy() for key, value in zip(parameters, found, strict=True)}


def from_npz(path: str | PathLike[str]) -> Twin:
    """Return the network of an ``.npz`` file with its description under the key ``spec``."""
    with np.load(path, allow_pickle=False) as file:
        return Twin(file["spec"].item()).load(file)
