"""[CNN] Theorem 1: theta is a local minimum, by a certificate, and a lower point shows it spurious.

theta comes from `embedding`, the threshold eta from `data_split`, theta' from `equal_risk` and the
lower point from `witnesses`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass

import numpy as np

from ..certificates import CellCertificate, RelayCertificate, certify_cell, certify_relays
from ..certificates.rounding import enclosed_outputs, risk_of_outputs, rounded_risk
from ..console import silent
from ..datasets.duplicates import Duplicates
from ..datasets.samples import TrainingSet
from ..engine.backend import Array, all_to_numpy, namespace, to_numpy
from ..engine.live import Live, is_plain, live_part
from ..engine.losses import Loss
from ..engine.network import check_at
from ..engine.parameters import Parameters
from ..engine.passes import neurons
from ..engine.plain import real, whole_number
from ..errors import AssumptionError
from ..refutations.escapes import Escape, kink_escape
from ..shown import Shown
from .data_split import SPLITS, DataSplit, check_rule, split_data
from .embedding import identical_features
from .equal_risk import equal_risk_point
from .perturbed_split import perturb_read_weights
from .relayed_pair import RelayedPair, check_relays, check_variant
from .witnesses import LowerPoint, lower_point, perturbed_biases


@dataclass(frozen=True, repr=False)
class SpuriousMinimum(Shown):
    """theta with its certificate, theta', the lower point, and the escape from theta if any.

    `duplicates` counts the samples whose features at the upper convolution of the pair are equal.
    Rounding errors may explain up to `risk_rounding` of the `risk` of theta.
    """

    theta: Parameters
    pair: RelayedPair
    risk: float
    risk_rounding: float
    certificate: CellCertificate | RelayCertificate
    split: DataSplit
    theta_prime: Parameters
    theta_prime_risk: float
    lower: LowerPoint
    duplicates: Duplicates
    escape: Escape | None = None

    @property
    def escapes(self) -> bool:
        """Return whether the risk falls along an escape from theta beyond rounding."""
        return self.escape is not None and self.escape.decrease > self.escape.rounding

    @property
    def verdict(self) -> str:
        """Return what was proved: a certificate and a lower point make a spurious minimum."""
        if self.escapes:
            assumes = f", if {self.escape.assumes}" if self.escape.assumes else ""
            return (
                "refuted: not a local minimum, the risk falls along an escape that starts at theta "
                f"(lower by {self.escape.decrease:.3g} at distance {self.escape.distance:.3g})"
                f"{assumes}"
            )
        return self.certificate.verdict(self.lower.decrease, self.lower.rounding)

    def __str__(self) -> str:
        difference, equal = self.theta_prime_risk - self.risk, self.duplicates
        lines = [
            *([f"features at layer {self.pair.upper}: {equal}"] if equal.samples else []),
            f"R(theta)  = {self.risk:.12g}",
            str(self.certificate),
            str(self.split),
            f"R(theta') = {self.theta_prime_risk:.12g}, difference {difference:.1e}",
            str(self.lower),
            *([str(self.escape)] if self.escape else []),
            f"verdict: {self.verdict}",
        ]
        return "\n".join(lines)


def find_spurious_minimum(
    theta: Parameters,
    pair: RelayedPair,
    data: TrainingSet,
    loss: Loss,
    variant: str = "repaired",
    rule: str = "steepest",
    output: int | None = None,
    seed: int = 0,
    stage: Callable[[str, str], AbstractContextManager] = silent,
) -> SpuriousMinimum:
    """Certify theta, split the data, and build theta' and the lower point ([CNN] Theorem 1).

    Where the cell certificate of theta proves nothing, the relay certificate is tried. `theta` and
    `pair` are what `embed` or `linear_minimum` returned for `variant`; `rule` and `output` go to
    `split_data`. Where the split of one rule gives no decrease beyond rounding, that of the other
    is tried; then, or where S(eta) vanishes throughout, W^L is perturbed first (Lemma 11), so that
    R(theta') is a little higher than R(theta), and the lower point is lower than theta. Samples
    with equal features lie on the same side of every threshold and count as one with the sum of
    their u. Literal: the escape from the kink, if any, is evaluated as well. `stage` is entered
    around each part with its name and a text. Raises ValueError for a variant, a rule or an output
    that does not exist, and for a theta whose layers don't relay as the pair says, AssumptionError
    where no split does.
    """
    check_at(theta, data, loss)
    check_relays(pair, theta)
    check_variant(variant)
    check_rule(rule)
    with stage("certificate", "certifying theta"):
        duplicates = Duplicates.of(identical_features(theta, data.x, pair.upper), data.y)
        outputs = enclosed_outputs(theta.to(namespace(theta.vector), np.float64), data.x)
        if theta.vector.dtype == np.float64:
            before = risk_of_outputs(*outputs, data.y, loss)
        else:
            before = rounded_risk(theta, data, loss)
        certificate = certify_cell(theta, data, loss)
        if not certificate.proves and variant == "repaired":  # then what the subnetwork hands on
            certificate = certify_relays(theta, data, loss, pair.lower, seed)
    with stage("split", "splitting the data, building theta' and the lower point"):
        best, most = None, -np.inf
        try:
            for start, split in _splits(theta, pair, data, loss, rule, output, outputs):
                prime = equal_risk_point(start, pair, split, variant)
                lower = lower_point(start, prime, pair, split, data, loss, before)
                sure = lower.decrease - lower.rounding
                if best is None or sure > most:
                    best, most = (split, prime, lower), sure
                if sure > 0:
                    break
        except AssumptionError:
            if best is None:
                raise
        split, prime, lower = best
        point = live_part(prime).point
        prime_risk = point.net.risk(point, data, loss)
    escape = None
    if variant == "literal":
        unless_none = suppress(AssumptionError)  # then no map at the kink lowers the risk
        with stage("escape", "escaping from the kink"), unless_none:
            escape = kink_escape(theta, data, loss, seed=seed)
    return SpuriousMinimum(
        theta, pair, *before, certificate, split, prime, prime_risk, lower, duplicates, escape
    )


def _splits(
    theta, pair, data, loss, rule, output, outputs
) -> Iterator[tuple[Parameters, DataSplit]]:
    """Yield theta with its split by `rule` and by the other one, and perturbed points with theirs.

    A loss with kinks need not fall at the rate S(eta), so that one split may fail.
    """
    for each in sorted(SPLITS, key=lambda name: name != rule):
        try:
            split = split_data(theta, pair, data, loss, each, None, output, outputs)
        except AssumptionError:
            continue
        yield theta, split
    yield from perturb_read_weights(theta, pair, data, loss, rule, output)


def risk_along_bias(
    found: SpuriousMinimum,
    data: TrainingSet,
    loss: Loss,
    points: int = 33,
    width: float = 3.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Return steps of the perturbed bias and the network's risk at each, starting from theta'.

    The steps, zero among them for odd `points`, reach `width` > 0 times as far as the lower point.
    """
    if not isinstance(found, SpuriousMinimum):
        got = type(found).__name__
        raise ValueError(f"found: expected what find_spurious_minimum returns, got a {got}")
    points = whole_number("points", points)
    if not 0 < real(width) < np.inf:
        raise ValueError(f"width: expected a finite number > 0, got {width!r}")
    reach = width * (abs(found.lower.step) or (found.split.gap[1] - found.split.gap[0]) / 2)
    check_at(found.theta, data, loss)
    steps = np.linspace(-reach, reach, points)
    layer, maps = perturbed_biases(found.theta, found.pair, found.split)
    live = live_part(found.theta_prime)
    point, y = live.point, found.theta.net.targets(found.theta, data, loss)
    net, dense, rest = point.net, found.pair.dense, point.copy()
    maps = np.searchsorted(live.kept[layer], maps)
    track, moved = _reached(point, layer, maps, dense), []
    for m in track.kept[dense - 1]:
        rest.W[dense].outgoing(int(m))[...] = 0
    own = np.isin(track.kept[layer], maps)
    for step in steps:
        moved.append(track.point.copy())
        biases = moved[-1].b[layer]
        biases += namespace(biases).asarray(own * step, dtype=biases.dtype)

    def chunk(rows: slice, columns: Array) -> np.ndarray:
        below = net.layer_output(point, columns, layer - 1)  # is the same for all steps
        same = rest.W[dense] @ net.layer_output(rest, below, dense - 1, layer - 1)
        read, losses = track.point.W[layer] @ below, []
        for each in moved:
            _, o = neurons(each, layer, read.copy())
            o = each.net.layer_output(each, o, dense - 1, layer)
            _, o = neurons(rest, dense, same + each.W[dense] @ o)
            losses.append(loss.value(net.layer_output(rest, o, net.depth, dense), y[:, rows]))
        return np.stack(all_to_numpy(losses))

    losses = np.concatenate(list(net.over(point, data.x, chunk)), axis=1)
    return steps, losses.mean(axis=1)


def _reached(theta: Parameters, layer: int, maps: np.ndarray, last: int) -> Live:
    """Return theta with, from `layer` to below `last`, only maps that those of `layer` reach.

    With all maps where one of these reads others too.
    """
    net = theta.net
    kept = [np.arange(shape[0]) for shape in net.shapes]
    kept[layer] = maps
    if not all(is_plain(net, n) for n in range(1, net.depth + 1)):
        return Live.all(theta)
    for n in range(layer + 1, last):
        kept[n] = kept[n - 1]
        if n in net.slots:
            used = to_numpy(theta.W[n].weights)
            used = used.reshape(*used.shape[:2], -1).any(axis=2)
            kept[n] = np.flatnonzero(used[:, kept[n - 1]].any(axis=1))
            if not kept[n].size or np.delete(used, kept[n - 1], axis=1)[kept[n]].any():
                return Live.all(theta)
    return Live.of(theta, kept)
