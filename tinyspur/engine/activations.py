"""Activations sigma, applied to each entry of z, with their first two derivatives.

ReLU and leaky ReLU are piecewise linear, the others smooth; `user_activations` has those of users.
All of them keep the shape, the type and the namespace of z. For any z whose square is finite none
overflows, and errors are a few units in the last place of the largest term.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields

import numpy as np

from .backend import Array, namespace, special
from .floats import irrational

SAMPLED = np.linspace(-1, 1, 65)[:, None]  # where an activation without bounds is looked at


class Activation:
    """What every activation has: sigma(z), `derivative(z)`, `second_derivative(z)`, a name.

    `piecewise_linear` says that there are pieces with kinks between them, hence activation
    patterns; the second derivative is 0 then.
    """

    name: str
    derivative: Callable[[Array], Array]
    second_derivative: Callable[[Array], Array]
    piecewise_linear = False
    bounds: tuple[float, float] | None  # of the second and the third derivative

    @property
    def alone(self) -> Activation:
        """Return the activation itself, of one that acts on some of the rows of z."""
        return self

    def in_place(self, z: Array) -> Array:
        """Return sigma(z); it may overwrite z to save memory."""
        return self(z)

    def changes(self, z: np.ndarray, r: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return how far sigma' and sigma'' may be from those at z, at most `r` away from it.

        Bounds follow from `bounds` and the mean value theorem; without `bounds` it is the largest
        change at a few samples.
        """
        if self.bounds is not None:
            return self.bounds[0] * r, self.bounds[1] * r
        near = z + r * SAMPLED
        return tuple(
            abs(f(near) - f(z)).max(axis=0) for f in (self.derivative, self.second_derivative)
        )

    @property
    def spec(self) -> dict:
        """Return the JSON description."""
        return {"name": self.name, **asdict(self)}


@dataclass(frozen=True)
class ReLU(Activation):
    """sigma(z) = z for z > 0 and `slope` * z elsewhere; slope 0 is ReLU, slope > 0 leaky ReLU.

    Raises ValueError for a slope that is negative or not finite.
    """

    slope: float = 0.0
    piecewise_linear = True

    def __post_init__(self):
        if not (isinstance(self.slope, float | int) and 0 <= self.slope < math.inf):
            raise ValueError(f"activation: expected a finite slope >= 0, got {self.slope!r}")

    def __call__(self, z: Array) -> Array:
        """Return sigma(z)."""
        xp = namespace(z)
        return xp.maximum(z, 0) if self.slope == 0 else xp.where(z > 0, z, self.slope * z)

    def in_place(self, z: Array) -> Array:
        """Return sigma(z), in the memory of z for ReLU itself; z is lost."""
        if type(self) is not ReLU or self.slope:
            return self(z)
        return namespace(z).maximum(z, 0, out=z)

    def derivative(self, z: Array) -> Array:
        """Return sigma'(z); at the kink z = 0 that of the left side, as PyTorch."""
        slopes = (z > 0).astype(z.dtype)
        return slopes if self.slope == 0 else slopes + self.slope * (1 - slopes)

    def second_derivative(self, z: Array) -> Array:
        """Return 0, as PyTorch at the kink too."""
        return namespace(z).zeros_like(z)

    @property
    def spec(self) -> dict:
        """Return the JSON description."""
        return {"name": "leaky_relu", "slope": self.slope} if self.slope else {"name": "relu"}


@dataclass(frozen=True)
class Sigmoid(Activation):
    """sigma(z) = 1 / (1 + exp(-z))."""

    name = "sigmoid"
    bounds = (0.0963, 0.125)

    def __call__(self, z: Array) -> Array:
        """Return sigma(z)."""
        return special(z).expit(z)

    def derivative(self, z: Array) -> Array:
        """Return sigma'(z) = sigma(z) sigma(-z)."""
        decay = namespace(z).exp(-abs(z))  # twice as fast as two calls of expit, and as accurate
        return decay / (1 + decay) ** 2

    def second_derivative(self, z: Array) -> Array:
        """Return sigma''(z) = -sigma'(z) tanh(z / 2)."""
        return -self.derivative(z) * namespace(z).tanh(z / 2)


LOGISTIC = Sigmoid()


@dataclass(frozen=True)
class Tanh(Activation):
    """sigma(z) = tanh z."""

    name = "tanh"
    bounds = (0.7699, 2.0)

    def __call__(self, z: Array) -> Array:
        """Return sigma(z)."""
        return namespace(z).tanh(z)

    def derivative(self, z: Array) -> Array:
        """Return sigma'(z) = 1 / cosh^2 z."""
        return 4 * LOGISTIC.derivative(2 * z)

    def second_derivative(self, z: Array) -> Array:
        """Return sigma''(z) = -2 tanh(z) / cosh^2 z."""
        return -2 * self(z) * self.derivative(z)


@dataclass(frozen=True)
class Softplus(Activation):
    """sigma(z) = log(1 + exp z)."""

    name = "softplus"
    bounds = (0.25, 0.0963)

    def __call__(self, z: Array) -> Array:
        """Return sigma(z)."""
        xp = namespace(z)  # 1.5 times as fast as logaddexp and log_expit, and as accurate
        return xp.maximum(z, 0) + xp.log1p(xp.exp(-abs(z)))

    def derivative(self, z: Array) -> Array:
        """Return sigma'(z), the sigmoid."""
        return LOGISTIC(z)

    def second_derivative(self, z: Array) -> Array:
        """Return sigma''(z)."""
        return LOGISTIC.derivative(z)


@dataclass(frozen=True)
class SiLU(Activation):
    """sigma(z) = z / (1 + exp(-z))."""

    name = "silu"
    bounds = (0.5, 0.3082)

    def __call__(self, z: Array) -> Array:
        """Return sigma(z)."""
        return z * LOGISTIC(z)

    def derivative(self, z: Array) -> Array:
        """Return sigma'(z), s + z s' with the sigmoid s."""
        return LOGISTIC(z) + z * LOGISTIC.derivative(z)

    def second_derivative(self, z: Array) -> Array:
        """Return sigma''(z) = (2 - z tanh(z / 2)) s'."""
        return (2 - z * namespace(z).tanh(z / 2)) * LOGISTIC.derivative(z)


SILU = SiLU()


@dataclass(frozen=True)
class Swish(Activation):
    """sigma(z) = z / (1 + exp(-beta z)); beta 1 is SiLU. ValueError unless beta > 0 is finite."""

    beta: float = 1.0
    name = "swish"

    def __post_init__(self):
        _check_positive("beta", self.beta)

    def __call__(self, z: Array) -> Array:
        """Return sigma(z)."""
        return z * LOGISTIC(self.beta * z)

    def derivative(self, z: Array) -> Array:
        """Return sigma'(z)."""
        return SILU.derivative(self.beta * z)

    def second_derivative(self, z: Array) -> Array:
        """Return sigma''(z)."""
        return self.beta * SILU.second_derivative(self.beta * z)

    @property
    def bounds(self) -> tuple[float, float]:
        """Return the bounds of the second and the third derivative."""
        return self.beta * SILU.bounds[0], self.beta**2 * SILU.bounds[1]


@dataclass(frozen=True)
class GELU(Activation):
    """sigma(z) = z Phi(z) with the normal distribution Phi; not the approximation by tanh."""

    name = "gelu"
    bounds = (0.7979, 0.7788)

    def __call__(self, z: Array) -> Array:
        """Return sigma(z)."""
        return z * special(z).ndtr(z)

    def derivative(self, z: Array) -> Array:
        """Return sigma'(z) = Phi(z) + z Phi'(z)."""
        return special(z).ndtr(z) + z * self._density(z)

    def second_derivative(self, z: Array) -> Array:
        """Return sigma''(z) = (2 - z^2) Phi'(z)."""
        return (2 - z * z) * self._density(z)

    def _density(self, z: Array) -> Array:
        return namespace(z).exp(-z * z / 2) / irrational(math.sqrt(2 * math.pi), z)


@dataclass(frozen=True)
class ELU(Activation):
    """sigma(z) = z for z > 0 and `alpha` * (exp z - 1) elsewhere.

    Smooth away from its kink at z = 0: there sigma'' jumps, and with alpha != 1 sigma' does. At 0
    the derivatives are those of the left side; the engine does not check how close to 0 z is.
    Raises ValueError unless alpha > 0 is finite.
    """

    alpha: float = 1.0
    name = "elu"
    bounds = (math.inf, math.inf)

    def __post_init__(self):
        _check_positive("alpha", self.alpha)

    def __call__(self, z: Array) -> Array:
        """Return sigma(z)."""
        xp = namespace(z)
        return xp.where(z > 0, z, self.alpha * xp.expm1(xp.minimum(z, 0)))

    def derivative(self, z: Array) -> Array:
        """Return sigma'(z)."""
        return namespace(z).where(z > 0, 1, self._decay(z))

    def second_derivative(self, z: Array) -> Array:
        """Return sigma''(z)."""
        return namespace(z).where(z > 0, 0, self._decay(z))

    def changes(self, z: np.ndarray, r: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return how far sigma' and sigma'' may be from those at z; infinite beyond the kink."""
        near = np.minimum(r, abs(z))
        moved = np.where(z > 0, 0, -self._decay(z + near) * np.expm1(-near))
        moved = np.where(r < abs(z), moved, np.inf)
        return moved, moved

    def _decay(self, z: Array) -> Array:
        return self.alpha * namespace(z).exp(namespace(z).minimum(z, 0))


@dataclass(frozen=True)
class Sine(Activation):
    """sigma(z) = sin z."""

    name = "sine"
    bounds = (1.0, 1.0)

    def __call__(self, z: Array) -> Array:
        """Return sigma(z)."""
        return namespace(z).sin(z)

    def derivative(self, z: Array) -> Array:
        """Return sigma'(z)."""
        return namespace(z).cos(z)

    def second_derivative(self, z: Array) -> Array:
        """Return sigma''(z)."""
        return -namespace(z).sin(z)


@dataclass(frozen=True)
class Arctan(Activation):
    """sigma(z) = arctan z."""

    name = "arctan"
    bounds = (0.6496, 2.0)

    def __call__(self, z: Array) -> Array:
        """Return sigma(z)."""
        return namespace(z).arctan(z)

    def derivative(self, z: Array) -> Array:
        """Return sigma'(z) = 1 / (1 + z^2)."""
        return 1 / (1 + z * z)

    def second_derivative(self, z: Array) -> Array:
        """Return sigma''(z) = -2 z / (1 + z^2)^2."""
        return -2 * z * self.derivative(z) ** 2


@dataclass(frozen=True)
class Identity(Activation):
    """sigma(z) = z: a layer with it has no activation."""

    name = "identity"
    bounds = (0.0, 0.0)

    def __call__(self, z: Array) -> Array:
        """Return z."""
        return z

    def derivative(self, z: Array) -> Array:
        """Return 1."""
        return namespace(z).ones_like(z)

    def second_derivative(self, z: Array) -> Array:
        """Return 0."""
        return namespace(z).zeros_like(z)


SMOOTH = (Sigmoid, Tanh, Softplus, SiLU, GELU, ELU, Sine, Arctan, Swish)
KNOWN = {
    "relu": ReLU,
    "leaky_relu": ReLU,
    **{kind.name: kind for kind in SMOOTH},
    "identity": Identity,
}


def activation_named(spec: dict) -> Activation:
    """Return the activation whose `spec` is this, such as {"name": "elu", "alpha": 1.0}.

    Raises ValueError for unknown names, for parameters that are missing, surplus or out of range,
    and for the names of users' activations.
    """
    name = spec.get("name") if isinstance(spec, dict) else None
    if isinstance(name, str) and name in KNOWN:
        parameters = {key: value for key, value in spec.items() if key != "name"}
        if parameters.keys() <= {parameter.name for parameter in fields(KNOWN[name])}:
            found = KNOWN[name](**parameters)
            if found.spec == spec:
                return found
    takes = {"leaky_relu": " (slope)", "elu": " (alpha)", "swish": " (beta)"}
    known = ", ".join(name + takes.get(name, "") for name in KNOWN)
    raise ValueError(f"activation: expected one of {known}, got {spec}")


def check_piecewise_linear(activations: Iterable[Activation], purpose: str) -> None:
    """Raise ValueError unless the activations of a network are piecewise linear."""
    for activation in activations:
        if not activation.piecewise_linear:
            raise ValueError(
                f"{purpose}: expected a piecewise linear activation, ReLU or leaky ReLU, "
                f"got {activation}"
            )


def _check_positive(name: str, value: object) -> None:
    if not (isinstance(value, float | int) and 0 < value < math.inf):
        raise ValueError(f"activation: expected a finite {name} > 0, got {value!r}")
