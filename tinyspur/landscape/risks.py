"""The risks found on a plane or on lines, and their file."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..files import naming, read_arrays, whole_file
from ..shown import Shown, landscape_html


@dataclass(frozen=True, repr=False)
class Landscape(Shown):
    """Risks on a plane (A, B), for `alpha` (A,) and `beta` (B,), or on K lines (K, A).

    `centre` is R(theta). A risk counts as lower if it is lower by more than `rounding`: the
    bound of the rounding error at theta, plus that of the lowest point or of the point farthest
    from theta, whichever is larger. `unit_ball` is where max-norm distance 1 from theta ends, as
    `Plane.within` and `Lines.within` return it; None in files that don't have it.
    """

    alpha: np.ndarray
    beta: np.ndarray | None
    risks: np.ndarray
    centre: float
    rounding: float
    unit_ball: np.ndarray | None = None

    @property
    def lower(self) -> np.ndarray:
        """Return where the risk is finite and lower than at theta, shaped as `risks`."""
        return np.isfinite(self.risks) & (self.risks < self.centre - self.rounding)

    @property
    def not_finite(self) -> int:
        """Return how many of the risks are NaN or infinite, as after overflow."""
        return int((~np.isfinite(self.risks)).sum())

    @property
    def lower_lines(self) -> int:
        """Return on how many of the lines a lower risk was found."""
        if self.beta is not None:
            raise ValueError("lower lines: expected lines, got a plane")
        return int(self.lower.any(axis=1).sum())

    def __str__(self) -> str:
        if self.beta is None:
            found = f"{self.lower_lines} of {len(self.risks)} lines reach a lower risk"
        else:
            found = f"{self.lower.sum()} of {self.risks.size} points are lower"
        if self.lower.any():
            found += f", by {self.centre - self.risks[self.lower].min():.3g} at most"
        if self.not_finite:
            found += f"; {self.not_finite} of {self.risks.size} risks are not finite"
        if not np.isfinite(self.rounding):
            found += "; none counts as lower, since rounding errors after overflow have no bound"
        return f"R = {self.centre:.9g} at the centre; {found}"

    def _repr_html_(self) -> str:
        return landscape_html(self)

    def save(self, path: str | Path, **more: np.ndarray) -> None:
        """Write `alpha`, `beta` (of a plane), `risks`, `centre`, `rounding` and `more` as NPZ.

        And `unit_ball`, where it is known; for a plane with as many alpha as beta `loss` and
        `coordinates` too, which are the risks as the package landscaper reads them.
        """
        axes = {"alpha": self.alpha} | ({} if self.beta is None else {"beta": self.beta})
        more = more if self.unit_ball is None else {**more, "unit_ball": self.unit_ball}
        if self.beta is not None and len(self.alpha) == len(self.beta):
            more |= {"loss": self.risks.T, "coordinates": np.stack([self.alpha, self.beta])}
        numbers = {"centre": np.array(self.centre), "rounding": np.array(self.rounding)}
        with whole_file(path) as file:
            np.savez(file, **axes, risks=self.risks, **numbers, **more)

    def save_vtk(self, path: str | Path) -> None:
        """Write the risks of a plane for ParaView: `risk` at the points (alpha, beta, 0), in a VTU.

        Needs the package meshio (the extra `vtk`). Raises ValueError for lines, and for another
        suffix than .vtu.
        """
        if self.beta is None:
            raise ValueError("save_vtk: expected a plane, got lines")
        if Path(path).suffix != ".vtu":
            raise ValueError(f"save_vtk: expected a name with .vtu, got '{path}'")
        from meshio import Mesh, vtu  # an extra

        grid = np.meshgrid(self.alpha, self.beta, indexing="ij")
        points = np.stack([*map(np.ravel, grid), np.zeros(self.risks.size)], axis=1)
        n = np.arange(self.risks.size).reshape(self.risks.shape)
        corners = np.stack([n[:-1, :-1], n[1:, :-1], n[1:, 1:], n[:-1, 1:]], axis=-1).reshape(-1, 4)
        mesh = Mesh(points, [("quad", corners)], {"risk": self.risks.ravel()})
        with tempfile.TemporaryDirectory() as folder, whole_file(path) as file:
            vtu.write(written := Path(folder) / "plane.vtu", mesh)
            file.write(written.read_bytes())

    @classmethod
    def load(cls, path: str | Path) -> Landscape:
        """Return the landscape that `save` or a finished `scan` wrote to `path`.

        Raises ValueError for another file and for that of a scan that isn't finished.
        """
        arrays = read_arrays(path)
        with naming(f"{path}:"):
            missing = {"alpha", "risks", "centre", "rounding"} - set(arrays)
            if missing:
                raise ValueError(f"expected arrays {sorted(missing)}, got {sorted(arrays)}")
            done = arrays.get("done", np.ones(1, bool))
            if not done.all() or np.isnan(arrays["rounding"]):
                raise ValueError(
                    f"expected a finished scan, got {done.sum()} of {done.size} risks"
                    + " without their rounding" * bool(done.all())
                )
            alpha, beta, risks = arrays["alpha"], arrays.get("beta"), arrays["risks"]
            lines = risks.shape[:1] + alpha.shape
            expected = lines if beta is None else alpha.shape + beta.shape
            if risks.shape != expected:
                raise ValueError(f"expected risks {expected}, got {risks.shape}")
            numbers = float(arrays["centre"]), float(arrays["rounding"])
            return cls(alpha, beta, risks, *numbers, arrays.get("unit_ball"))
