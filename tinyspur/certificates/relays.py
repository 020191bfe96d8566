"""The relay certificate: layers that only relay hand the minimum of a subnetwork on."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from ..datasets.samples import TrainingSet
from ..engine import plain
from ..engine.backend import Array, all_to_numpy, namespace, to_numpy
from ..engine.floats import QUIET
from ..engine.losses import Loss
from ..engine.network import Network, check_at
from ..engine.parameters import Parameters, check_points
from ..engine.passes import margins as margins_of
from ..engine.passes import patterns as patterns_of
from ..engine.passes import steps
from ..layers import Dense, quiet
from ..refutations.evidence import Evidence, gather_evidence
from .cell import CellCertificate, certify_cell, check_relu
from .certificate import Certificate, in_float64
from .kinks import Kink, KinkCounter, at_kink, kink_lines
from .rounding import enclosed_outputs, preactivation_rounding

SAME = 1e-6  # share of the largest output that rounding may put the subnetwork off by


@dataclass(frozen=True, repr=False)
class RelayCertificate(Certificate):
    """What theta inherits from its `subnetwork` if the layers from `lower` on are one affine map.

    The structure: on every sample each unit of these layers is strictly active or strictly
    inactive, the same for all samples. Then nearby o = V' f' + c' with f = o^{lower-1} and (V', c')
    continuous in the parameters, so R(theta') is the risk of the layers below with a free dense
    layer (V', c'), and where those are at a local minimum so is theta. This covers reserved and
    spare maps (dead), shifted copies below poolings, and maps that nothing reads: their V is 0, and
    free.

    `holds` where the structure does and both the subnetwork and theta have a cell certificate: a
    proof, as V and c are not known exactly; likewise what it `proves`. Otherwise `evidence` about
    the subnetwork is all there is (`evidence_only`): of `point`, whose V and c are rounded. Its
    outputs are `apart` from theta's by up to that share of the largest; where that is much, as
    where products underflow, it is another network, and evidence about it says nothing. Or the
    structure is broken: `mixed` counts units of the relaying layers that are active for some
    samples only, and `kinks` lists those at the kink. `active` and `dead` (strictly inactive) count
    the others, `margin` is their least |z|. `unread` are maps of layer lower - 1 that are not dead
    and that no output reads. `radius`, `delta` and `distance` are those of the cell certificate of
    theta where the relay certificate holds. For a loss with kinks no evidence is gathered, nor
    where its numbers are too large.
    """

    holds: bool
    lower: int
    active: int
    dead: int
    mixed: int
    unread: tuple[int, ...]
    margin: float
    radius: float
    delta: float
    distance: float
    kinks: tuple[Kink, ...]
    apart: float
    subnetwork: CellCertificate
    point: Parameters
    evidence: Evidence | None

    kind = "relay"

    @classmethod
    def require(cls, theta: Parameters, loss: Loss) -> None:
        """Raise ValueError unless the activation is piecewise linear."""
        check_points(None, theta)
        check_relu(theta, "relay certificate")

    @property
    def structure(self) -> bool:
        """Return whether all layers from `lower` on are affine on the samples, and stay so."""
        return not self.kinks and not self.mixed

    @property
    def evidence_only(self) -> bool:
        """Return whether the relays are proved, and of the subnetwork there is evidence."""
        return self.structure and not self.proves and self.apart <= SAME

    @property
    def assumes(self) -> str:
        """Return what is taken from a user's loss without proof."""
        return self.subnetwork.assumes

    @property
    def classes(self) -> int:
        """Return the number of activation patterns of the subnetwork."""
        return self.subnetwork.classes

    @property
    def stationarity(self) -> float:
        """Return that of the subnetwork: its G_s where proved, else its relative gradient."""
        if self.evidence is None:
            return self.subnetwork.stationarity
        return self.evidence.relative_gradient

    @property
    def words(self) -> str:
        """Return what was found in half a line."""
        if self.holds:
            return f"certified local minimum, relays from layer {self.lower} on"
        if self.structure:
            found = "evidence only of those below" if self.evidence_only else self._obstacle
            return f"not certified, relays from layer {self.lower} on, {found}"
        return f"not certified, no relays from layer {self.lower} on"

    @property
    def _obstacle(self) -> str:
        if self.proves:
            return self.subnetwork.obstacle
        return f"rounding puts the outputs of those below off by a share of {self.apart:.2g}"

    def as_dict(self) -> dict:
        """Return what a report holds; None stands for an infinite number: nothing has a kink."""
        evidence = {} if self.evidence is None else {"evidence": self.evidence.as_dict()}
        return super().as_dict() | evidence

    def lines(self) -> list[str]:
        """Return the structure, and what is known of the subnetwork."""
        lines = [
            f"from layer {self.lower} on {self.active} units strictly active, {self.dead} strictly "
            f"inactive, {self.mixed} active for some samples only, margin {self.margin:.3g}",
            *kink_lines(self.kinks),
        ]
        lines += self.bound_lines()
        if self.unread:
            maps = ", ".join(map(str, self.unread))
            lines.append(f"not read, and not dead: maps {maps} of layer {self.lower - 1}")
        if self.evidence_only:
            lines += [
                "proved: theta is a local minimum if its subnetwork is at one",
                f"of the subnetwork V and c are rounded: the outputs are off by {self.apart:.2g}",
            ]
        lines += ["subnetwork:", *(f"  {line}" for line in str(self.subnetwork).split("\n"))]
        if self.evidence is not None:
            lines += [f"  {line}" for line in str(self.evidence).split("\n")]
        return lines


@np.errstate(**QUIET)
def certify_relays(
    theta: Parameters, data: TrainingSet, loss: Loss, lower: int, seed: int = 0
) -> RelayCertificate:
    """Check what theta inherits from the layers below `lower`; see `RelayCertificate`.

    The subnetwork is layers 1 to lower - 1 and a dense layer with the V and c that theta has. Where
    it is not certified, `seed` goes to `gather_evidence`. Raises ValueError for a layer that does
    not exist or is inside a residual block, where parameters or outputs are not finite, and for a
    smooth activation.
    """
    check_at(theta, data, loss)
    RelayCertificate.require(theta, loss)
    net, xp = theta.net, namespace(theta.vector)
    if plain.whole(lower) not in range(1, net.depth + 1):
        raise ValueError(f"relays: expected a layer in 1..{net.depth}, got {lower!r}")
    if any(layer.selects for layer in net.chain[lower - 1 : net.leading_poolings]):
        raise ValueError(f"relays: expected a layer above the poolings of the input, got {lower}")
    if len(net.states[lower - 1]) > 1:
        raise ValueError(f"relays: expected a layer that is not inside a block, got {lower}")
    theta = in_float64(theta)
    relaying = [layer for layer in net.pattern_layers if layer >= lower]
    counter = KinkCounter(net)
    ever: dict[int, np.ndarray] = {}  # the largest pattern of each unit over the samples
    always: dict[int, np.ndarray] = {}  # the least
    live = False  # neurons of the layer below that are not 0 for some sample
    magnitudes = abs(theta)

    def chunk(_: slice, columns: Array) -> tuple:
        trace = list(steps(theta, columns))
        rounding = preactivation_rounding(magnitudes, trace, np.float64)
        margins, patterns = margins_of(trace), patterns_of(trace)
        kinks = at_kink({layer: margins[layer] for layer in relaying}, rounding)
        relayed = all_to_numpy(patterns[layer] for layer in relaying)
        ends = [(pattern.max(axis=1), pattern.min(axis=1)) for pattern in relayed]
        return kinks, ends, to_numpy((trace[lower - 1].below != 0).any(axis=1))

    for kinks, ends, here in net.over(theta, data.x, chunk):
        counter.add(*kinks)
        for layer, (high, low) in zip(relaying, ends, strict=True):
            ever[layer] = np.maximum(ever.get(layer, high), high)
            always[layer] = np.minimum(always.get(layer, low), low)
        live = live | here
    rows = to_numpy(net.affine_map(theta, data.x[0], lower - 1))
    below = list(net.chain[: lower - 1])
    if below and net.chain[lower - 1].precedes_activation:  # not of the layer right below
        below[-1] = quiet(below[-1])
    layers = (*below, Dense(len(rows)))
    sub = Network(net.input_shape, layers, net.activation, net.memory_budget)
    phi = sub.zeros(like=theta.vector)
    for layer, slot in net.slots.items():
        if layer < lower:  # in the same place
            phi.vector[slot.all] = theta.vector[slot.all]
    phi.W[lower].weights[...] = xp.asarray(rows[:, :-1])
    phi.b[lower][...] = xp.asarray(rows[:, -1])
    maps = net.shapes[lower - 1][0]
    read = (rows[:, :-1] != 0).any(axis=0).reshape(maps, -1).any(axis=1)
    unread = np.flatnonzero(live.reshape(maps, -1).any(axis=1) & ~read)
    mixed = sum(int((ever[layer] != always[layer]).sum()) for layer in relaying)
    units = [layer for layer in relaying if net.is_active(layer)]
    kinks = counter.found()
    cell = certify_cell(phi, data, loss)
    structure, whole = not kinks and not mixed, cell
    apart = _apart(enclosed_outputs(theta, data.x), enclosed_outputs(phi, data.x))
    if structure and cell.proves:  # of phi, whose V and c are rounded
        whole = certify_cell(theta, data, loss)
    proves = structure and bool(whole.proves)
    evidence = None
    if structure and not proves and apart <= SAME and not hasattr(loss, "subgradients"):
        with suppress(ValueError):  # numbers that are too large
            evidence = gather_evidence(phi, data, loss, seed)
    return RelayCertificate(
        holds=structure and whole.holds,
        lower=lower,
        active=sum(int(always[layer].sum()) for layer in units),
        dead=sum(int((~ever[layer]).sum()) for layer in units),
        mixed=mixed,
        unread=tuple(map(int, unread)),
        margin=counter.margin,
        radius=whole.radius if proves else 0.0,
        delta=whole.delta if proves else np.inf,
        distance=whole.distance if proves else np.inf,
        kinks=kinks,
        apart=apart,
        subnetwork=cell,
        point=phi,
        evidence=evidence,
    )


def _apart(exact: tuple[np.ndarray, ...], other: tuple[np.ndarray, ...]) -> float:
    """Return by which share of the largest output two enclosures of outputs differ at most."""
    (o, off), (p, off_p) = exact, other
    most, largest = float((abs(o - p) + off + off_p).max()), float(abs(o).max())
    return most / largest if largest else math.inf if most else 0.0
