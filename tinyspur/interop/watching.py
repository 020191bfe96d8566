"""One run of a model, watched function by function.

Of every tensor that depends on the input it is known which call made it. Tensors that don't, such
as weights, are left alone: they are looked at where a call reads them.
"""

from __future__ import annotations

import linecache
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ..files import naming

HERE, TORCH = (str(Path(file).parent) for file in (__file__, torch.__file__))
SUMS = {"__add__": "add", "__radd__": "add", "__iadd__": "add"}
VALUES = ("item", "tolist", "numpy", "equal", "allclose", "is_nonzero", "__contains__", "__bool__")
VALUES += ("__float__", "__int__", "__index__", "__complex__", "__array__")


class Call(NamedTuple):
    """A function that was called: its name and arguments, and where that was.

    `reads` are the numbers of the calls that made the tensors among them, 0 for the input; `shape`
    is that of what it made, None if that is not one tensor with the samples first.
    """

    name: str
    args: tuple
    kwargs: dict
    reads: tuple[int, ...]
    shape: tuple[int, ...] | None
    where: str


class Watch(TorchFunctionMode):
    """Collects the `calls` of a run, number 1 first. The input is `begin`; see `number_of`."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.names = {id(module): name for name, module in model.named_modules()}
        self.calls: list[Call] = []
        self._made: dict[int, tuple[int, int | None]] = {}
        self._kept: list[torch.Tensor] = []  # so that no other tensor gets the same id

    def begin(self, x: torch.Tensor) -> None:
        """Take x for the input; its first axis is that of the samples."""
        self.samples, self.dtype = len(x), x.dtype
        self._take(x, 0)

    def number_of(self, tensor: torch.Tensor) -> int | None:
        """Return the number of the call that made a tensor, 0 for the input; None for others.

        Raises ValueError for one that was changed since then, in part or by a view of it.
        """
        number, version = self._made.get(id(tensor), (None, None))
        if number is not None and version != _version(tensor):
            raise ValueError(
                "expected a tensor as a layer made it, got one of which a part or a view was "
                "changed in place"
            )
        return number

    def _take(self, tensor: torch.Tensor, number: int) -> None:
        self._made[id(tensor)] = number, _version(tensor)
        self._kept.append(tensor)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        """Call the function, and note it if it reads what depends on the input."""
        kwargs = kwargs or {}
        where = self._where()
        with naming(f"{where}:"):
            found = map(self.number_of, _tensors((args, kwargs)))
            reads = tuple(number for number in found if number is not None)
        if not reads:
            return func(*args, **kwargs)
        name = getattr(func, "__name__", str(func))
        if name == "__get__":  # of an attribute
            name = func.__self__.__name__
        if name in VALUES:
            raise ValueError(f"{where}: expected no use of the values of a tensor, got {name}")
        if kwargs.get("training") and (name != "dropout" or kwargs.get("p", 0.5)):
            raise ValueError(f"{where}: expected evaluation mode: call .eval() on the model first")
        out = func(*args, **kwargs)
        name = SUMS.get(name, name if name.startswith("__") else name.rstrip("_"))
        made = list(_tensors(out))
        if other := [t.dtype for t in made if t.is_floating_point() and t.dtype != self.dtype]:
            raise ValueError(f"{where}: expected {self.dtype} throughout, got {other[0]} of {name}")
        one = isinstance(out, torch.Tensor) and out.ndim and len(out) == self.samples
        shape = tuple(out.shape[1:]) if one else None
        if made:
            self.calls.append(Call(name, args, kwargs, reads, shape, where))
        for tensor in made:
            self._take(tensor, len(self.calls))
        return out

    def _where(self) -> str:
        """Return the module of PyTorch's that is running, or else the line of the forward pass."""
        frame, line = sys._getframe(2), ""
        while frame is not None:
            file, module = frame.f_code.co_filename, frame.f_locals.get("self")
            inside = file.startswith((TORCH, HERE))
            name = self.names.get(id(module)) if isinstance(module, nn.Module) else None
            if name is not None and inside and not line:
                place = f"module '{name}'" if name else "model"
                return f"{place} ({textwrap.shorten(repr(module), 90)})"
            if not inside and not line:
                code = linecache.getline(file, frame.f_lineno).strip()
                line = f"line {frame.f_lineno} of {Path(file).name}, `{code}`"
            if name is not None:
                return f"{line}, in module '{name}'" if name else line
            frame = frame.f_back
        return line or "model"


def _version(tensor: torch.Tensor) -> int | None:
    """Return how often the memory of a tensor was changed, by it or by views of it, if known."""
    return None if tensor.is_inference() else tensor._version


def _tensors(parts: object) -> Iterator[torch.Tensor]:
    """Yield the tensors in nested arguments."""
    if isinstance(parts, torch.Tensor):
        yield parts
    elif isinstance(parts, dict):
        yield from _tensors(tuple(parts.values()))
    elif isinstance(parts, tuple | list):
        for part in parts:
            yield from _tensors(part)
