"""Convex losses l(o, y): value, gradient and curvature in the output o.

Outputs and targets are columns: `o` and `y` have shape (d_y, N), one column for each sample.
"""

from __future__ import annotations

import textwrap
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike

from .backend import Array, namespace, special
from .floats import QUIET
from .plain import is_array, plain_on_host, real, whole_number

NUMBERED = "number them by labels = np.unique(labels, return_inverse=True)[1]"


class SquaredLoss:
    """l(o, y) = 1/2 |o - y|^2."""

    name = "squared"

    def value(self, o: Array, y: Array) -> Array:
        """Return the loss of each sample, shape (N,)."""
        return 0.5 * ((o - y) ** 2).sum(axis=0)

    def gradient(self, o: Array, y: Array) -> Array:
        """Return g_i = o_i - y_i, shape (d_y, N)."""
        return o - y

    def curvature(self, o: Array, y: Array, d: Array) -> Array:
        """Return the product of the Hessian in o with `d`, shape (d_y, N): here `d` itself."""
        return d.copy()

    def check_targets(self, y: Array) -> None:
        """Accept every target."""

    def __repr__(self) -> str:
        return "SquaredLoss()"


class FixedSumLoss(SquaredLoss):
    """The squared loss of outputs and of one more, that makes both outputs and targets sum to S.

    Its residual is minus the sum of the others: l(o, y) = 1/2 (|r|^2 + (sum r)^2) with r = o - y,
    o and y without that output.
    """

    name = "squared, one more output fixed by the sum"

    def value(self, o: Array, y: Array) -> Array:
        """Return the loss of each sample, shape (N,)."""
        return super().value(o, y) + 0.5 * (o - y).sum(axis=0) ** 2

    def gradient(self, o: Array, y: Array) -> Array:
        """Return r_i + sum_k r_ik, shape (d_y, N)."""
        r = o - y
        return r + r.sum(axis=0)

    def curvature(self, o: Array, y: Array, d: Array) -> Array:
        """Return (1 + 1 1^T) d for each sample, shape (d_y, N)."""
        return d + d.sum(axis=0)

    def __repr__(self) -> str:
        return "FixedSumLoss()"


class CrossEntropy:
    """l(o, y) = -sum_k y_k log softmax(o)_k with hard (one-hot) or soft targets.

    [CNN] (69) and (70) print exp(-o), with which (70) is not the derivative of (69); this is the
    usual softmax, with exp(+o).
    """

    name = "cross-entropy"

    def value(self, o: Array, y: Array) -> Array:
        """Return the loss of each sample, shape (N,)."""
        xp = namespace(o)
        shifted = o - o.max(axis=0)  # as accurate as log_softmax, in three quarters of its time
        return xp.log(xp.exp(shifted).sum(axis=0)) - (y * shifted).sum(axis=0)

    def gradient(self, o: Array, y: Array) -> Array:
        """Return g_i = softmax(o_i) - y_i, shape (d_y, N)."""
        return softmax(o) - y

    def curvature(self, o: Array, y: Array, d: Array) -> Array:
        """Return (diag(p) - p p^T) d with p = softmax(o) for each sample, shape (d_y, N)."""
        p = softmax(o)
        weighted = p * d
        return weighted - p * weighted.sum(axis=0)

    def check_targets(self, y: Array) -> None:
        """Raise ValueError unless every column of `y` is a probability distribution."""
        xp = namespace(y)
        wrong = xp.flatnonzero((abs(y.sum(axis=0) - 1) > 1e-6) | (y < 0).any(axis=0))
        if wrong.size:
            hint = "one_hot(labels, classes) makes such targets"
            if len(y) == 1:
                hint = "two classes are two outputs, their targets one_hot(labels)"
            raise ValueError(
                "cross-entropy: expected targets >= 0 that sum to 1, "
                f"sample {int(wrong[0])} has {y[:, int(wrong[0])].tolist()}; {hint}"
            )

    def __repr__(self) -> str:
        return "CrossEntropy()"


class AbsoluteLoss:
    """l(o, y) = sum_k |o_k - y_k|, not differentiable where an output meets its target."""

    name = "absolute"

    def value(self, o: Array, y: Array) -> Array:
        """Return the loss of each sample, shape (N,)."""
        return abs(o - y).sum(axis=0)

    def gradient(self, o: Array, y: Array) -> Array:
        """Return the signs of o - y, shape (d_y, N): the subgradient that is 0 at the kink."""
        return namespace(o).sign(o - y)

    def subgradients(self, o: Array, y: Array, errors: Array) -> tuple[Array, Array]:
        """Return the least and the greatest subgradient, (d_y, N) each.

        They differ, -1 and 1, where o meets y up to `errors` of the output.
        """
        signs, met = self.gradient(o, y), abs(o - y) <= errors
        xp = namespace(o)
        return xp.where(met, -1.0, signs), xp.where(met, 1.0, signs)

    def curvature(self, o: Array, y: Array, d: Array) -> Array:
        """Return zeros (d_y, N): away from its kinks the loss is linear."""
        return namespace(d).zeros_like(d)

    def check_targets(self, y: Array) -> None:
        """Accept every target."""

    def __repr__(self) -> str:
        return "AbsoluteLoss()"


class HuberLoss:
    """l(o, y) = sum_k h(o_k - y_k), h(r) = r^2 / 2 up to |r| = `delta` and delta |r| - delta^2 / 2
    beyond, as PyTorch's. Raises ValueError for a delta that is not positive and finite.
    """

    name = "huber"

    def __init__(self, delta: float = 1.0):
        self.delta = real(delta)
        if not 0 < self.delta < float("inf"):
            raise ValueError(f"Huber loss: expected a finite delta > 0, got {delta!r}")

    def value(self, o: Array, y: Array) -> Array:
        """Return the loss of each sample, shape (N,)."""
        size = abs(o - y)
        inside = namespace(o).minimum(size, self.delta)
        return (inside * (size - inside / 2)).sum(axis=0)

    def gradient(self, o: Array, y: Array) -> Array:
        """Return o - y, cut to [-delta, delta], shape (d_y, N)."""
        return namespace(o).clip(o - y, -self.delta, self.delta)

    def curvature(self, o: Array, y: Array, d: Array) -> Array:
        """Return `d` where |o - y| < delta and 0 elsewhere, shape (d_y, N)."""
        return d * (abs(o - y) < self.delta)

    def check_targets(self, y: Array) -> None:
        """Accept every target."""

    def __repr__(self) -> str:
        return f"HuberLoss({self.delta:g})"


NAMED = (SquaredLoss, CrossEntropy, AbsoluteLoss, HuberLoss)
PARTS = "name", "value", "gradient", "curvature"
FEW = 8  # samples at which it is looked at what a loss of a user's returns
LEAST_SQUARES = SquaredLoss, FixedSumLoss  # whose best fits are those of least squares
KNOWN = (*NAMED, FixedSumLoss)  # whose derivatives certificates enclose


class Loss(Protocol):
    """A convex loss l(o, y): what an object must have to serve as a loss.

    Certificates assume of a loss of yours that it is convex, with these derivatives. They check it
    at the outputs that they see, and say that they rest on it.

    Outputs `o`, targets `y` and directions `d` are columns (d_y, N); `value` is (N,), `gradient` a
    subgradient in o and `curvature` the product of the Hessian in o with `d`, both (d_y, N).
    `check_targets` raises ValueError for targets that the loss is not defined for. A loss with
    kinks has also ``subgradients(o, y, errors)``, as `AbsoluteLoss` has.
    """

    name: str

    def value(self, o: Array, y: Array) -> Array: ...
    def gradient(self, o: Array, y: Array) -> Array: ...
    def curvature(self, o: Array, y: Array, d: Array) -> Array: ...
    def check_targets(self, y: Array) -> None: ...


def check_loss(loss: object, y: Array | None = None) -> None:
    """Raise ValueError for what is no loss, a class of losses included.

    With targets y, (d_y, N), also where it refuses them, or is one of a user's that does not return
    arrays of the right shape.
    """
    if isinstance(loss, type) or not hasattr(loss, "check_targets"):
        got = textwrap.shorten(repr(loss), 80)
        raise ValueError(f"loss: expected one as SquaredLoss(), got {got}")
    missing = [name for name in PARTS if not hasattr(loss, name)]
    if missing:
        got = textwrap.shorten(repr(loss), 80)
        raise ValueError(f"loss: expected {', '.join(PARTS)}, got {got} without {missing[0]}")
    if y is None:
        return
    loss.check_targets(y)
    if type(loss) not in KNOWN:
        few = y[:, :FEW]
        with np.errstate(**QUIET):  # whatever the values are
            values_at(loss, few, few)
            gradient_at(loss, few, few)
            _of_shape("curvature", loss.curvature(few, few, few), few.shape)


def values_at(loss: Loss, o: Array, y: Array) -> Array:
    """Return l(o, y), shape (N,); ValueError where a loss of a user's returns something else."""
    return _of_shape("value", loss.value(o, y), y.shape[1:])


def gradient_at(loss: Loss, o: Array, y: Array) -> Array:
    """Return the gradient in o, shape (d_y, N); ValueError as `values_at`."""
    return _of_shape("gradient", loss.gradient(o, y), y.shape)


def _of_shape(name: str, found: object, shape: tuple[int, ...]) -> Array:
    if not is_array(found) or found.shape != shape:
        got = found.shape if is_array(found) else f"a {type(found).__name__}"
        given = "o, y, d" if name == "curvature" else "o, y"
        raise ValueError(f"loss: expected {name}({given}) to return an array {shape}, got {got}")
    return found


def loss_named(name: str) -> Loss:
    """Return the loss called ``squared``, ``cross-entropy``, ``absolute`` or ``huber``.

    Raises ValueError for another name.
    """
    losses = {loss.name: loss for loss in NAMED}
    if name not in losses:
        raise ValueError(f"loss: expected one of {', '.join(losses)}, got {name!r}")
    return losses[name]()


def softmax(o: Array) -> Array:
    """Return exp(o_k) / sum_j exp(o_j) for each column of `o`."""
    return special(o).softmax(o, axis=0)


def one_hot(labels: ArrayLike, classes: int | None = None, smoothing: float = 0.0) -> np.ndarray:
    """Return targets (N, classes): 1 for the label, smoothed towards 1 / classes.

    `labels` are whole numbers from 0 on, (N,) or (N, 1), also as bool or as floats, in an array, a
    list, a tensor or a Series. Without `classes` there are as many as differ in the labels. With
    `smoothing` s the targets are 1 - s + s / classes for the label and s / classes elsewhere
    (s = 0.1 and ten classes: 0.91 and 0.01). Raises ValueError for s outside [0, 1), a label
    outside 0..classes - 1, and, without `classes`, a class below the largest label that has none.

    >>> one_hot([1, 0, 2])
    array([[0., 1., 0.],
           [1., 0., 0.],
           [0., 0., 1.]])
    >>> one_hot([1], 2, smoothing=0.2)
    array([[0.1, 0.9]])
    """
    s = real(smoothing)
    if not 0 <= s < 1:
        raise ValueError(f"label smoothing: expected 0 <= s < 1, got {smoothing!r}")
    numbers = _labels(labels)
    names = np.unique(numbers)
    found = whole_number("classes", len(names) if classes is None else classes)
    if names.size and not 0 <= names[0] <= names[-1] < found:
        hint = NUMBERED
        if classes is None and names[0] >= 0:
            hint = f"give classes={names[-1] + 1}, or {hint}"
        got = f"{names[0]}..{names[-1]}"
        raise ValueError(f"labels: expected 0..{found - 1}, got {got}; {hint}")
    targets = np.full((len(numbers), found), s / found)
    targets[np.arange(len(numbers)), numbers] = 1 - s + s / found
    return targets


def _labels(labels: object) -> np.ndarray:
    """Return labels (N,) or (N, 1) as int64 (N,)."""
    try:
        numbers = plain_on_host("labels", labels)
    except ValueError as error:  # names of classes, as a rule
        raise ValueError(f"{error}; {NUMBERED}") from error
    if numbers.shape[1:] not in ((), (1,)) or numbers.ndim == 0:
        raise ValueError(f"labels: expected whole numbers (N,), got {numbers.shape}")
    whole = np.isfinite(numbers) & (numbers == np.floor(numbers)) & (abs(numbers) < 2**53)
    if not whole.all():
        wrong = numbers[~whole][0]
        raise ValueError(f"labels: expected whole numbers (N,), got {wrong}")
    return numbers.ravel().astype(np.int64)
