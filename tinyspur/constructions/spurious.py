"""[CNN] Theorem 1: theta is a local minimum, by a certificate, and a lower point shows it spurious.

theta comes from `embedding`, the threshold eta from `data_split`, theta' from `equal_risk` and the
lower point from `witnesses`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass

import numpy as np

from ..certificates import CellCertificate, RelayCertificate, certify_cell, certify_relays
from ..certificates.rounding import rounded_risk
from ..datasets.duplicates import Duplicates
from ..datasets.samples import TrainingSet
from ..engine.backend import Array, to_numpy
from ..engine.live import live_part
from ..engine.losses import Loss
from ..engine.network import check_at
from ..engine.parameters import Parameters
from ..errors import AssumptionError
from ..refutations.escapes import Escape, kink_escape
from ..shown import Shown
from .data_split import SPLITS, DataSplit, split_data
from .embedding import identical_features
from .equal_risk import equal_risk_point
from .perturbed_split import perturb_read_weights
from .relayed_pair import RelayedPair, check_pair
from .witnesses import LowerPoint, lower_point, perturbed_biases


@dataclass(frozen=True, repr=False)
class SpuriousMinimum(Shown):
    """theta with its certificate, theta', the lower point, and the escape from theta if any.

    `duplicates` counts the samples whose features at the upper convolution of the pair are equal.
    """

    theta: Parameters
    pair: RelayedPair
    risk: float
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
    stage: Callable[[str, str], AbstractContextManager] = lambda name, text: nullcontext(),
) -> SpuriousMinimum:
    """Certify theta, split the data, and build theta' and the lower point (Theorem 1).

    Where the cell certificate of theta proves nothing, the relay certificate is tried. `theta` and
    `pair` are what `embed` or `linear_minimum` returned for `variant`; `rule` and `output` go to
    `split_data`. Where the split of one rule gives no decrease beyond rounding, that of the other
    is tried; then, or where S(eta) vanishes throughout, W^L is perturbed first (Lemma 11), so that
    R(theta') is a little higher than R(theta), and the lower point is lower than theta. Samples
    with equal features lie on the same side of every threshold and count as one with the sum of
    their u. Literal: the escape from the kink, if any, is evaluated as well. `stage` is entered
    around each part with its name and a text. Raises AssumptionError where no split exists.
    """
    check_at(theta, data, loss)
    check_pair(pair, theta)
    with stage("certificate", "certifying theta"):
        duplicates = Duplicates.of(identical_features(theta, data.x, pair.upper), data.y)
        before = rounded_risk(theta, data, loss)
        certificate = certify_cell(theta, data, loss)
        if not certificate.proves and variant == "repaired":  # then what the subnetwork hands on
            certificate = certify_relays(theta, data, loss, pair.lower, seed)
    with stage("split", "splitting the data, building theta' and the lower point"):
        best, most = None, -np.inf
        try:
            for start, split in _splits(theta, pair, data, loss, rule, output):
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
        theta, pair, before[0], certificate, split, prime, prime_risk, lower, duplicates, escape
    )


def _splits(theta, pair, data, loss, rule, output) -> Iterator[tuple[Parameters, DataSplit]]:
    """Yield theta with its split by `rule` and by the other one, and perturbed points with theirs.

    A loss with kinks need not fall at the rate S(eta), so that one split may fail.
    """
    for each in sorted(SPLITS, key=lambda name: name != rule):
        try:
            split = split_data(theta, pair, data, loss, each, output=output)
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

    The steps, zero among them for odd `points`, reach `width` times as far as the lower point.
    """
    reach = width * (abs(found.lower.step) or (found.split.gap[1] - found.split.gap[0]) / 2)
    check_at(found.theta, data, loss)
    steps = np.linspace(-reach, reach, points)
    layer, maps = perturbed_biases(found.theta, found.pair, found.split)
    live = live_part(found.theta_prime)
    net, y = live.point.net, found.theta.net.targets(found.theta, data, loss)
    own, moved = np.searchsorted(live.kept[layer], maps).tolist(), []
    for step in steps:
        moved.append(live.point.copy())
        moved[-1].b[layer][own] += float(step)

    def chunk(rows: slice, columns: Array) -> np.ndarray:
        below = net.layer_output(live.point, columns, layer - 1)  # is the same for all steps
        outputs = (net.layer_output(point, below, net.depth, layer - 1) for point in moved)
        return np.stack([to_numpy(loss.value(o, y[:, rows])) for o in outputs])

    losses = np.concatenate(list(net.over(live.point, data.x, chunk)), axis=1)
    return steps, losses.mean(axis=1)
