"""Networks as PyTorch models and back: the same numbers, the same outputs.

Import it by name, `from tinyspur import interop`: it needs PyTorch, the package does not.
"""

from __future__ import annotations

import contextlib
import copy
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict

import numpy as np

from ..engine import activations
from ..engine.activations import Activation
from ..engine.parameters import Parameters, check_points
from ..engine.plain import whole
from ..files import naming
from ..layers import Dense, Layer, Residual, chain_of, is_positive

try:
    import torch
    from torch import nn
    from torch.overrides import handle_torch_function, has_torch_function_unary

    from .reading import Reading, check_module, parameters
    from .watching import Watch
except ImportError as error:
    raise ImportError(f"tinyspur.interop needs PyTorch (pip install torch): {error}") from error


class Sine(nn.Module):
    """sin z, entry by entry."""

    forward = staticmethod(torch.sin)


class Arctan(nn.Module):
    """arctan z, entry by entry."""

    forward = staticmethod(torch.arctan)


class Swish(nn.Module):
    """z / (1 + exp(-beta z)), entry by entry."""

    def __init__(self, beta: float = 1.0):
        super().__init__()
        self.beta = beta

    def extra_repr(self) -> str:
        """Return what stands between the parentheses of its repr."""
        return f"beta={self.beta}"

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Return sigma(z)."""
        return swish(z, self.beta)


def swish(z: torch.Tensor, beta: float) -> torch.Tensor:
    """Return z / (1 + exp(-beta z)), entry by entry: one function to whoever watches."""
    if has_torch_function_unary(z):
        return handle_torch_function(swish, (z,), z, beta)
    return z * torch.sigmoid(beta * z)


ACTIVATIONS = {
    activations.Sigmoid: nn.Sigmoid,
    activations.Tanh: nn.Tanh,
    activations.SiLU: nn.SiLU,
    activations.GELU: nn.GELU,
    activations.Sine: Sine,
    activations.Arctan: Arctan,
    activations.ELU: nn.ELU,
    activations.Swish: Swish,
    activations.ReLU: nn.LeakyReLU,  # with slope 0 nn.ReLU
    activations.Softplus: nn.Softplus,
    activations.Identity: nn.Identity,
}
LINE = 40.0  # threshold of nn.Softplus, a line beyond it: here log(1 + exp z) is z to the last bit
SAMPLES = 3  # of a run
CHECKS = (
    (3, 1.0),
    (5, 30.0),
    (2, 0.03),
)  # random inputs, how many and how large, on which to agree
AGREE = {torch.float64: 1e-7, torch.float32: 1e-3}  # up to this share of the largest output


def to_torch(theta: Parameters) -> nn.Sequential:
    """Return the network at theta as a model on the CPU, of its dtype, that shares no memory.

    The model takes (N, *input_shape) and returns (N, n_L) as `Network.forward` does: maps are
    flattened before the first dense layer or at the end. All modules are PyTorch's own, except
    those for residual blocks, sine, arctangent and swish. Raises ValueError for an activation of
    the user's own.
    """
    check_points(None, theta)
    net = theta.net
    with torch.device("cpu"):
        modules = _Writing(theta.to(np)).modules(net.layers)
    return nn.Sequential(*modules, *([nn.Flatten()] if len(net.shapes[-1]) > 1 else []))


class Block(nn.Module):
    """A residual block: block(x) + shortcut(x)."""

    def __init__(self, block: nn.Module, shortcut: nn.Module):
        super().__init__()
        self.block, self.shortcut = block, shortcut

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the sum."""
        return self.block(x) + self.shortcut(x)


class _Writing:
    """The modules of layers, taken in the order of their numbers."""

    def __init__(self, theta: Parameters):
        self.theta, self.number = theta, 0

    def modules(self, layers: Sequence[Layer]) -> list[nn.Module]:
        """Return the modules of layers, one after the other."""
        return [module for layer in layers for module in self._of(layer)]

    def _of(self, layer: Layer) -> Iterator[nn.Module]:
        net = self.theta.net
        if isinstance(layer, Residual):
            block, shortcut = (self.modules(part) for part in (layer.layers, layer.shortcut))
            yield Block(nn.Sequential(*block), nn.Sequential(*shortcut))
            self.number += 1  # the sum
        else:
            for part in chain_of([layer]):
                self.number += 1
                read = net.read_shape(self.number)
                yield from [nn.Flatten()] if len(read) > 1 and isinstance(part, Dense) else []
                yield self._with_numbers(part.to_torch(read))
                yield from self._activation()
            return
        yield from self._activation()

    def _activation(self) -> list[nn.Module]:
        sigma = self.theta.net.activation_of(self.number)
        return [] if sigma is None else [_module(sigma)]

    def _with_numbers(self, made: nn.Module) -> nn.Module:
        theta, number = self.theta, self.number
        if number in theta.net.slots:
            *_, module = made.modules()
            module.weight = nn.Parameter(torch.tensor(theta.W[number].weights))
            if number in theta.b:
                module.bias = nn.Parameter(torch.tensor(theta.b[number]))
            made.to(module.weight.dtype)  # the running statistics of a scale too
        return made


def from_torch(model: nn.Module, input_shape: tuple[int, ...]) -> Parameters:
    """Return the parameters of a model in evaluation mode, on the host; the network is their `net`.

    The model is run once on a copy, and what it computes is read: convolutions, poolings, linear
    layers, batch normalisations and activations, as modules or as functions, in any order that a
    network here can have, sums of a block and its shortcut, and what only changes shapes: flatten,
    view, reshape, squeeze. Dropout in evaluation mode and nn.Identity are passed over.
    `input_shape` is the shape of one sample: (C, H, W), (C, W), or (d,) for vectors, inputs (1, d)
    here. Where nothing else follows a layer the network's activation is ReLU. Then network and
    model are run on random inputs, and have to agree; what the model computes may not depend on
    the values of its inputs but through these layers. nn.Softplus() is read as log(1 + exp z);
    PyTorch replaces that by a line for large z, which differs by up to 2.1e-9.

    Raises ValueError that names the module, or the line of the forward pass, for what no network
    here computes, and for weights that are shared, even in part, not finite, computed by others, or
    not all float32 or all float64.
    """
    if not isinstance(model, nn.Module):
        hint = ": load a state dict into its model first" * isinstance(model, dict)
        raise ValueError(f"model: expected a torch.nn.Module, got a {type(model).__name__}{hint}")
    for place, module in model.named_modules():
        where = f"module '{place}'" if place else "model"
        with naming(f"{where} ({textwrap.shorten(repr(module), 90)}):"):
            check_module(module)
    with torch.no_grad(), torch.random.fork_rng(devices=[]), torch.device("cpu"):
        return _read(_copied(model), model, _shape_of(input_shape))


def _shape_of(input_shape: object) -> tuple[int, ...]:
    """Return the shape of one sample, or raise ValueError."""
    sizes = tuple(map(whole, input_shape)) if isinstance(input_shape, Iterable) else ()
    if not 1 <= len(sizes) <= 3 or not all(map(is_positive, sizes)):
        raise ValueError(
            "input_shape: expected (C, H, W), (C, W) or (d,) of one sample, got "
            + textwrap.shorten(repr(input_shape), 90)
        )
    return sizes


def _copied(model: nn.Module) -> nn.Module:
    """Return a copy on the CPU."""
    try:
        return copy.deepcopy(model).cpu()
    except Exception as error:
        said = textwrap.shorten(f"{type(error).__name__} {error}", 200)
        raise ValueError(
            f"model: expected one that can be copied to the CPU, got {said}"
        ) from error


def _read(model: nn.Module, given: nn.Module, shape: tuple[int, ...]) -> Parameters:
    """Return the parameters of a model that may be run and changed, a copy of `given`."""
    numbers = [*model.parameters(), *model.buffers()]
    types = [t.dtype for t in numbers if t.is_floating_point()]
    dtype = types[0] if types else torch.float32
    if dtype not in AGREE:
        raise ValueError(
            f"model: expected weights of float32 or float64, as after .double(), got {dtype}"
        )
    run, x = Watch(model), torch.randn(SAMPLES, *shape, dtype=dtype)
    run.begin(x)
    with _running(x), run:
        out = model(x)
    with naming("model:"):
        last = run.number_of(out) if isinstance(out, torch.Tensor) else None
    if last is None:
        got = "one that does not, or that was made unseen, as by TorchScript or vmap"
        got = got if isinstance(out, torch.Tensor) else f"a {type(out).__name__}"
        raise ValueError(
            f"model: expected one tensor of outputs that depend on the inputs, got {got}"
        )
    layers, weights = Reading(model, given, run, shape, dtype).network(last)
    with naming("model:"):
        if len(out.shape) > 2 and out[0].numel() > len(out[0]):
            maps = tuple(out.shape[1:])
            raise ValueError(f"expected nn.Flatten() at the end, after maps {maps}")
        own = (1, *shape) if len(shape) == 1 else shape
        theta = parameters(own, layers, weights, str(dtype).removeprefix("torch."))
    _check_agreement(model, theta, shape, dtype)
    return theta


@contextlib.contextmanager
def _running(x: torch.Tensor) -> Iterator[None]:
    """Turn what a model raises into a ValueError of one line."""
    try:
        yield
    except Exception as error:
        if isinstance(error, ValueError) and ": expected " in str(error):
            raise
        said = textwrap.shorten(f"{type(error).__name__} {error}", 200)
        raise ValueError(
            f"model: expected one that runs on {len(x)} inputs {tuple(x.shape[1:])}, got {said}"
        ) from error


def _check_agreement(
    model: nn.Module, theta: Parameters, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    """Raise ValueError unless network and model have the same outputs on random inputs."""
    for samples, scale in CHECKS:
        x = scale * torch.randn(samples, *shape, dtype=dtype)
        given = x.numpy().reshape(samples, *theta.net.input_shape).copy()
        with _running(x):
            expected = model(x).reshape(samples, -1).numpy()
        if not np.isfinite(expected).all():
            raise ValueError(
                f"model: expected finite outputs for random inputs of size {scale:g}, got NaN or "
                "infinity"
            )
        found = theta.net.forward(theta, given)
        off = AGREE[dtype] * abs(expected).max()
        if found.shape != expected.shape or not abs(found - expected).max() <= off:
            raise ValueError(
                "model: expected layers whose outputs are the model's, got others: something in "
                "its forward pass was not seen, or depends on more than the input"
            )


def _module(sigma: Activation) -> nn.Module:
    """Return the module of an activation."""
    kind = type(sigma)
    if kind not in ACTIVATIONS:
        raise ValueError(f"activation: expected one that PyTorch or tinyspur has, got {sigma}")
    if sigma == activations.ReLU():
        return nn.ReLU()
    if kind is activations.Softplus:
        return nn.Softplus(threshold=LINE)
    return ACTIVATIONS[kind](*asdict(sigma).values())
