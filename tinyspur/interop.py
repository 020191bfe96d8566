"""Networks as PyTorch models and back: the same numbers, the same outputs.

Import it by name, `from tinyspur import interop`: it needs PyTorch, the package does not.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, replace

import numpy as np

from .engine import activations
from .engine.activations import Activation
from .engine.network import Network
from .engine.parameters import Parameters, check_points
from .files import naming
from .layers import KINDS, Conv, Dense, Layer, Scale
from .layers.layer import expect, expect_options

try:
    import torch
    from torch import nn
    from torch.nn.modules import module as all_modules
    from torch.nn.utils import parametrize
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
        return z * torch.sigmoid(self.beta * z)


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
}
PARAMETER = {nn.ELU: "alpha", Swish: "beta", nn.LeakyReLU: "negative_slope"}
GLOBAL_HOOKS = (all_modules._global_forward_hooks, all_modules._global_forward_pre_hooks)
LINE = 40.0  # threshold of nn.Softplus, a line beyond it: here log(1 + exp z) is z to the last bit
LINES = (20, 80)  # thresholds that pass; float32 overflows above


def to_torch(theta: Parameters) -> nn.Sequential:
    """Return the network at theta as a model on the CPU, of its dtype, that shares no memory.

    The model takes (N, *input_shape) and returns (N, n_L) as `Network.forward` does: maps are
    flattened before the first dense layer or at the end. All modules are PyTorch's own, except
    those for sine, arctangent and swish. Raises ValueError for an activation of the user's own.
    """
    check_points(None, theta)
    net, theta, modules = theta.net, theta.to(np), []
    for number, layer in enumerate(net.layers, start=1):
        below = net.shapes[number - 1]
        modules += [nn.Flatten()] if len(below) > 1 and not layer.spatial else []
        modules.append(layer.to_torch(below))
        if number in net.slots:
            *_, module = modules[-1].modules()
            module.weight = nn.Parameter(torch.tensor(theta.W[number].weights))
            if number in theta.b:
                module.bias = nn.Parameter(torch.tensor(theta.b[number]))
            modules[-1].to(module.weight.dtype)  # the running statistics too
        modules += [_module(net.activation)] if net.is_active(number) else []
    return nn.Sequential(*modules, *([nn.Flatten()] if len(net.shapes[-1]) > 1 else []))


def from_torch(model: nn.Module, input_shape: tuple[int, ...]) -> Parameters:
    """Return the parameters of a plain CNN, copied to the host; the network is their `net`.

    `model` is an nn.Sequential, nested or not, of convolutions, padded with zeros if at all (also
    by nn.ZeroPad2d before them), poolings, adaptive ones where their sizes divide the maps,
    nn.Flatten and nn.Linear, and one and the same activation after each convolution and nn.Linear
    except the last layer. Batch normalisation in evaluation mode, before the activation, becomes a
    `Scale` with the running statistics in its numbers. nn.Identity is passed over, and so is
    dropout in evaluation mode. `input_shape` is (C, H, W) or (C, W), without the samples. The
    network has the outputs of the model, so a model that ends with maps must flatten them.
    nn.Softplus() is read as log(1 + exp z); PyTorch replaces that by a line for large z, which
    differs by up to 2.1e-9. Where no activation follows a layer the network's is ReLU. Raises
    ValueError that names the module for any other model, and for weights that are shared, not
    finite, or not all float32 or all float64, and for hooks that run in a forward pass, also those
    that are registered for all modules.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"model: expected a torch.nn.Sequential, got {type(model).__name__}")
    if not isinstance(input_shape, Sequence):
        raise ValueError(f"input_shape: expected (C, H, W) or (C, W), got {input_shape!r}")
    if any(GLOBAL_HOOKS):
        raise ValueError(
            "model: expected no hooks on all modules (torch.nn.modules.module.register_module_"
            "forward_hook and its like): they may change outputs; remove them by their handles"
        )
    found = _Reading(tuple(input_shape))
    for place, module in model.named_modules(remove_duplicate=False):
        found.name = f"module '{place}'" if place else "model"
        with naming(f"{found.name} ({textwrap.shorten(repr(module), 90)}):"):
            found.read(module)
    with naming("model:"):
        return found.parameters()


class _Reading:
    """The layers and numbers of the modules so far."""

    def __init__(self, input_shape: tuple[int, ...]):
        if len(input_shape) == 1:
            raise ValueError(
                f"input_shape: expected (C, H, W) or (C, W), got {input_shape}; for vectors give "
                f"(1, {input_shape[0]}) and let the model begin with nn.Flatten()"
            )
        self.shape = self.input_shape = Network(input_shape, [Dense(1)]).input_shape
        self.layers: list[Layer] = []
        self.numbers: list[np.ndarray] = []  # W, b, W, b, ...
        self.sigma: Activation | None = None
        self.name = self.latest = ""  # names of this module and of the latest one that is a layer
        self.waits = (
            False  # whether that layer still waits for its activation, unless it is the last one
        )
        self.flat = False
        self.around: tuple[int, ...] | None = None  # zeros that the next convolution reads too
        self.dtypes: tuple[torch.dtype, ...] = (torch.float64, torch.float32)
        self.owners: dict[int, str] = {}  # of the numbers, by address

    def read(self, module: nn.Module) -> None:
        """Take up one module; ValueError if no network has it at this place."""
        kind, d = type(module), len(self.input_shape) - 1
        if isinstance(module, nn.modules.lazy.LazyModuleMixin):
            raise ValueError("expected an initialised module: run the model on one batch first")
        if parametrize.is_parametrized(module):
            named = ", ".join(module.parametrizations)
            raise ValueError(
                f"expected plain numbers, got a parametrization of {named}: "
                "torch.nn.utils.parametrize.remove_parametrizations makes them plain"
            )
        own = not {"forward", "_conv_forward", "_call_impl"}.isdisjoint(vars(module))
        own = own or kind.__call__ is not nn.Module.__call__
        if module._forward_hooks or module._forward_pre_hooks or own:
            raise ValueError(
                "expected no hooks and no forward of its own: they may change outputs (torch.nn."
                "utils.remove_weight_norm, remove_spectral_norm and prune.remove take theirs away)"
            )
        if kind in (nn.Dropout, nn.Dropout1d, nn.Dropout2d):
            if module.training and module.p:
                raise ValueError("expected evaluation mode: call .eval() on the model first")
        elif kind is nn.Flatten:
            expect_options(module, start_dim=1, end_dim=-1)
            self.flat = True
        elif (known := _kind(kind, d)) is not None:
            if known is Scale:
                self._expect_place_of_scale()
            else:
                self._expect_place(known)
            layer = known.from_torch(module, self.shape)
            if self.around is not None:
                layer, self.around = _padded(layer, self.around, self.shape), None
            below = self._add(layer)
            if layer.trainable:
                inputs = "in_channels" if layer.spatial else "in_features"
                inputs = "num_features" if known is Scale else inputs
                expect(
                    inputs, getattr(module, inputs), below[0] if layer.spatial else math.prod(below)
                )
                if known is Scale:
                    self._take_scale(layer, module)
                else:
                    self._take(module)
        elif kind in (nn.ZeroPad1d, nn.ZeroPad2d):
            self._expect_place(Conv)
            self.around = module.padding
        elif _kind(kind, 3 - d) is not None:
            two, three = "two numbers (C, W)", "three numbers (C, H, W)"
            expected, got = (three, two) if d == 1 else (two, three)
            raise ValueError(f"expected input_shape of {expected}, got {got}: {self.input_shape}")
        elif kind is not nn.Identity and kind.forward is not nn.Sequential.forward:
            sigma = _sigma(module, d)
            if not self.waits:
                raise ValueError("expected an activation only after a convolution or nn.Linear")
            if self.sigma not in (None, sigma):
                raise ValueError(f"expected {self.sigma}, as after layers before, got {sigma}")
            self.sigma, self.waits = sigma, False

    def parameters(self) -> Parameters:
        """Return what was read; ValueError for an end that no network has."""
        net = Network(self.input_shape, self.layers, self.sigma)
        if not self.waits and self.layers[-1].trainable:
            raise ValueError(f"expected no activation after the last layer, {self.latest}")
        if not self.flat:
            raise ValueError(f"expected nn.Flatten() at the end, after maps {self.shape}")
        theta = net.zeros(dtype=str(self.dtypes[0]).removeprefix("torch."))
        theta.vector[:] = np.concatenate([*map(np.ravel, self.numbers), theta.vector[:0]])
        return theta

    def _normalisation(self) -> str:
        """Return where a batch normalisation can be folded into a layer without other outputs."""
        return (
            "expected batch normalisation before the activation, not after it; in evaluation mode "
            "it can be folded into the layer after it, if that is nn.Linear or a convolution "
            "without padding: with s = weight / sqrt(running_var + eps) that layer's weights are "
            "multiplied by s, input by input, and its bias grows by its old weights times bias - s "
            "running_mean (a padded convolution reads zeros that were not normalised: no other one "
            "has its outputs)"
        )

    def _add(self, layer: Layer) -> tuple[int, ...]:
        """Add a layer; return the shape below it."""
        if self.waits and not layer.precedes_activation:
            if self.layers[-1].precedes_activation:
                raise ValueError(f"{self.latest}: {self._normalisation()}")
            order = "; a monotone one, then MaxPool, is the same function as MaxPool, then it"
            raise ValueError(
                f"expected the activation between {self.latest} and this"
                f"{order if layer.selects else ''}"
            )
        self.layers.append(layer)
        self.latest, self.waits = self.name, layer.trainable
        *_, below, self.shape = Network(self.input_shape, self.layers).shapes
        return below

    def _expect_place(self, kind: type[Layer]) -> None:
        """Raise ValueError unless a layer of this kind can come here: above maps, or not."""
        if self.flat and kind.spatial:
            raise ValueError("expected maps before it, got them flattened")
        if not (self.flat or kind.spatial):
            raise ValueError(f"expected nn.Flatten() before it, got maps {self.shape}")

    def _expect_place_of_scale(self) -> None:
        """Raise ValueError unless a batch normalisation can come here."""
        if self.layers and self.layers[-1].trainable and not self.waits:
            raise ValueError(self._normalisation())
        if self.flat and math.prod(self.shape[1:]) > 1:
            raise ValueError(self._normalisation())

    def _take_scale(self, layer: Scale, module: nn.Module) -> None:
        """Take the factors and shifts of a batch normalisation."""
        dtype = module.running_var.dtype
        if dtype not in self.dtypes:
            expected = " or ".join(map(str, self.dtypes))
            raise ValueError(f"expected running statistics of {expected}, got {dtype}")
        self.dtypes = (dtype,)
        numbers = Scale.numbers_of(module)[: 1 + layer.bias]
        if not all(np.isfinite(part).all() for part in numbers):
            raise ValueError("expected finite numbers, got NaN or infinity")
        self.numbers += numbers

    def _take(self, module: nn.Module) -> None:
        """Take the weights and biases of a layer."""
        width = len(module.weight)
        for name in ("weight", "bias"):
            tensor = getattr(module, name)
            if tensor is None and name == "bias":
                return
            if tensor.dtype not in self.dtypes:
                expected = " or ".join(map(str, self.dtypes))
                raise ValueError(f"expected a {name} of {expected}, got {tensor.dtype}")
            self.dtypes = (tensor.dtype,)
            owner = self.owners.setdefault(tensor.data_ptr(), self.name)
            if owner != self.name:
                raise ValueError(f"expected a {name} of its own, got that of {owner}")
            self.numbers.append(tensor.detach().cpu().numpy())
            if not np.isfinite(self.numbers[-1]).all():
                raise ValueError(f"expected finite numbers in its {name}, got NaN or infinity")
        expect("bias of shape", tuple(module.bias.shape), (width,))


def _kind(module: type[nn.Module], directions: int) -> type[Layer] | None:
    """Return the kind of layer whose modules are of this class, or None."""
    return next((kind for kind in KINDS if module in kind.torch_classes(directions)), None)


def _padded(layer: Layer, around: tuple[int, ...], below: tuple[int, ...]) -> Layer:
    """Return a convolution that reads zeros around the maps too: (left, right, top, bottom)."""
    if not isinstance(layer, Conv):
        raise ValueError(f"expected a convolution after zero padding, got {layer}")
    more = list(zip(around[::2], around[1::2], strict=True))[::-1]
    maps, *lengths = below
    wider = (n + low + high for n, (low, high) in zip(lengths, more, strict=True))
    own = layer.grid((maps, *wider)).padding
    pairs = ((a + c, b + d) for (a, b), (c, d) in zip(own, more, strict=True))
    return replace(layer, padding=tuple(pairs))


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


def _sigma(module: nn.Module, directions: int) -> Activation:
    """Return the activation that a module is."""
    kind = type(module)
    if kind is nn.ReLU:
        return activations.ReLU()
    if kind is nn.GELU:
        expect_options(module, approximate="none")
    if kind is nn.Softplus:
        expect_options(module, beta=1)
        if not LINES[0] <= module.threshold <= LINES[1]:
            raise ValueError(f"expected a threshold within {LINES}, got {module.threshold}")
    for sigma, name in ACTIVATIONS.items():
        if kind is name:
            return sigma(*[getattr(module, PARAMETER[kind])] if kind in PARAMETER else [])
    layers = (kind.torch_classes(directions)[0] for kind in KINDS)
    kinds = (*layers, nn.Flatten, nn.ReLU, *ACTIVATIONS.values())
    names = ("interop." * (k.__module__ == __name__) + k.__name__ for k in kinds)
    raise ValueError(f"expected nn.Sequential of {', '.join(names)}, Identity or Dropout")
