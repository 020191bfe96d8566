"""Every activation, and one as a user writes it."""

from tinyspur.engine.activations import (
    ELU,
    GELU,
    Arctan,
    ReLU,
    Sigmoid,
    SiLU,
    Sine,
    Softplus,
    Swish,
    Tanh,
)
from tinyspur.engine.backend import namespace

ALL = [
    *(ReLU(), ReLU(0.2), Sigmoid(), Tanh(), Softplus(), SiLU(), GELU(), ELU(), ELU(0.5)),
    *(Sine(), Arctan(), Swish(), Swish(2.5)),
]
BOUNDED = [sigma for sigma in ALL[2:] if not isinstance(sigma, ELU)]


def mish(z):
    xp = namespace(z)
    return z * xp.tanh(Softplus()(z))


def mish_slope(z):
    t, s = namespace(z).tanh(Softplus()(z)), Sigmoid()(z)
    return t + z * s * (1 - t * t)


def mish_bend(z):
    t, s = namespace(z).tanh(Softplus()(z)), Sigmoid()(z)
    return (1 - t * t) * s * (2 + z * (1 - s) - 2 * z * t * s)
