"""Activations sigma, applied to each entry of z, with their derivatives."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .backend import Array, namespace


@dataclass(frozen=True)
class ReLU:
    """sigma(z) = z for z > 0 and `slope` * z elsewhere; slope 0 is ReLU, slope > 0 leaky ReLU.

    Raises ValueError for a slope that is negative or not finite.
    """

    slope: float = 0.0

    def __post_init__(self):
        if not (isinstance(self.slope, float | int) and 0 <= self.slope < math.inf):
            raise ValueError(f"activation: expected a finite slope >= 0, got {self.slope!r}")

    def __call__(self, z: Array) -> Array:
        """Return sigma(z)."""
        xp = namespace(z)
        return xp.maximum(z, 0) if self.slope == 0 else xp.where(z > 0, z, self.slope * z)

    def derivative(self, z: Array) -> Array:
        """Return sigma'(z); at the kink z = 0 that of the left side, as PyTorch."""
        slopes = (z > 0).astype(z.dtype)
        return slopes if self.slope == 0 else slopes + self.slope * (1 - slopes)

    @property
    def spec(self) -> dict:
        """Return the JSON description."""
        return {"name": "leaky_relu", "slope": self.slope} if self.slope else {"name": "relu"}
