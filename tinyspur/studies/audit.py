"""Statements of the papers that fail as printed, E1 to E11: each as printed and as repaired.

Every row builds both points on the same images and looks for a lower point near each; layers are
numbered as in [CNN].
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from .. import datasets
from ..certificates import certify
from ..certificates.rounding import output_rounding, rounded_risk
from ..console import Bar, silent
from ..constructions.convolutional_lattices import convolutional_lattice, patch_sums
from ..constructions.data_split import split_data
from ..constructions.embedding import embed, linear_minimum, subnetwork
from ..constructions.equal_risk import equal_risk_point
from ..constructions.lattices import Lattice, connected_pieces, lattice_network
from ..constructions.nontrivial import nontrivial_minimum
from ..constructions.ordered_groups import OrderedGroups, ordered_groups
from ..constructions.perturbed_split import perturb_read_weights
from ..constructions.piecewise_linear import Groups, fit_groups, gated_minimum
from ..constructions.split_terms import read_weights
from ..constructions.witnesses import lower_point
from ..datasets.samples import TrainingSet
from ..engine.losses import CrossEntropy, one_hot
from ..engine.network import Network
from ..engine.parameters import Parameters
from ..errors import AssumptionError
from ..fitting.training import kaiming_start, train
from ..layers import AveragePool, Conv, Dense
from ..tasks import run_tasks
from .findings import LOSS, POINTS, Finding, Side, compare

SIDE = 4  # images are averaged to SIDE x SIDE pixels


def images(samples: int, seed: int = 0) -> TrainingSet:
    """Return bundled images averaged to 4 x 4 pixels, with one-hot targets."""
    found = datasets.bundled().subset(samples, seed)
    side = found.images.shape[-1] // SIDE
    x = found.pixels().reshape(samples, 1, SIDE, side, SIDE, side).mean(axis=(3, 5))
    return TrainingSet(x, one_hot(found.labels, found.classes))


# The rows


def _saddle(data: TrainingSet, seed: int) -> Finding:
    net = _network(2, 4, 4)
    literal, _ = linear_minimum(net, data, LOSS, "literal")
    repaired, _ = linear_minimum(net, data, LOSS)
    return compare(
        "E1",
        "[CNN] Lemmas 1 and 6",
        "Relays and unused maps with bias zero: theta is a local minimum",
        literal,
        repaired,
        data,
        seed,
    )


def _kinks(data: TrainingSet, seed: int) -> Finding:
    net = _network(2, 4, 4)
    phi = nontrivial_minimum(subnetwork(net), data, LOSS, seed=seed)
    return compare(
        "E2",
        "[CNN] Lemma 6",
        "The same on a nonlinear subnetwork: theta is a local minimum if the subnetwork is at one",
        embed(net, phi, data.x, "literal")[0],
        embed(net, phi, data.x)[0],
        data,
        seed,
    )


def _unrelayed(data: TrainingSet, seed: int) -> Finding:
    repaired, pair = linear_minimum(_network(2, 3, 3), data, LOSS)
    literal = repaired.copy()
    spare = 1  # a map of layer L-3 that is not relayed: any filter will do, says the lemma
    rng = np.random.default_rng(seed)
    literal.W[pair.below].weights[spare] = rng.uniform(0, 1, (1, 3, 3))
    literal.b[pair.below][spare] = -1.0
    return compare(
        "E3",
        "[CNN] Lemma 6, (23)",
        "Maps of layer L-3 that are not relayed may have any weights",
        literal,
        repaired,
        data,
        seed,
    )


def _pooling(data: TrainingSet, seed: int) -> Finding:
    layers = [Conv(1), Conv(3), Conv(12), AveragePool(2), Dense(data.y.shape[1])]
    net = Network(data.x.shape[1:], layers)
    return compare(
        "E6b",
        "[CNN] Appendix D",
        "With average pooling above the relays: theta is a local minimum",
        linear_minimum(net, data, LOSS, "literal")[0],
        linear_minimum(net, data, LOSS)[0],
        data,
        seed,
    )


def _nontrivial(data: TrainingSet, seed: int) -> Finding:
    net = _network(2, 2)
    return compare(
        "E7",
        "[CNN] Theorem 3, one sample in I",
        "One map lets one pixel of one sample pass: theta_1 is a local minimum",
        nontrivial_minimum(net, data, LOSS, variant="literal"),
        nontrivial_minimum(net, data, LOSS, seed=seed),
        data,
        seed,
    )


def _two_samples(data: TrainingSet, seed: int) -> Finding:
    net = _network(2)
    x = data.x / 2
    x[:2, 0, 1, 1] = 0.8, 0.9  # one pixel of two images is brighter than all others
    data = TrainingSet(x, data.y)
    return compare(
        "E8",
        "[CNN] Theorem 3, (16), two samples in I",
        "The weights of the isolated samples are optimised alone: theta_1 is a local minimum",
        nontrivial_minimum(net, data, LOSS, 2, variant="literal"),
        nontrivial_minimum(net, data, LOSS, 2, seed),
        data,
        seed,
    )


def _threshold(data: TrainingSet, seed: int) -> Finding:
    # Whether the printed choice goes wrong is chance: draw half of the images until it does.
    rng, whole = np.random.default_rng(seed), data
    for _ in range(100):
        rows = np.sort(rng.permutation(len(whole))[: len(whole) // 2])
        data = TrainingSet(whole.x[rows], whole.y[rows])
        theta, pair = linear_minimum(_network(2, 4, 4), data, LOSS)
        groups = ordered_groups(theta, pair, data, LOSS, 0, 0)
        printed, h = max(
            ((v[n] + v[n + 1]) / 2, j)
            for j, (v, n) in enumerate(zip(groups.values, groups.first, strict=True))
            if n is not None and n + 1 < len(v)
        )
        if (abs(_sums_above(groups, printed)) > groups.vanishing).sum() > 1:
            break
    rule = split_data(theta, pair, data, LOSS, "largest", map=0, output=0)
    values = np.unique(np.concatenate(groups.values))
    w = read_weights(theta, pair, 0)[0]
    sides, curves = [], {}
    for variant, eta, location in (("literal", printed, h), ("repaired", rule.threshold, None)):
        above = _sums_above(groups, eta)
        location = int(abs(above).argmax()) if location is None else location
        others = np.delete(abs(above), location) > groups.vanishing
        gap = values[values < eta][-1], values[values > eta][0]
        promised, slope = w[location] * above[location] / len(data), w @ above / len(data)
        split = replace(rule, threshold=float(eta), gap=tuple(map(float, gap)))
        prime = equal_risk_point(theta, pair, split)
        steps = np.linspace(-0.9, 0.9, POINTS) * min(eta - gap[0], gap[1] - eta)
        point, risks = prime.copy(), []
        for step in steps:
            point.b[pair.lower][pair.reserved[1]] = prime.b[pair.lower][pair.reserved[1]] + step
            risks.append(point.net.risk(point, data, LOSS))
        missed = np.array(risks) - theta.net.risk(theta, data, LOSS) - promised * steps
        curves[variant] = steps, -abs(missed)
        found = {"eta": float(eta), "violations": int(others.sum()), "locations": len(w)}
        text = (
            f"sums of u above eta at {found['violations']} of {len(w) - 1} other locations: "
            f"slope {slope:.3g}, (8) promises {promised:.3g}"
        )
        verdict = "true" if not found["violations"] else "false"
        sides.append(
            Side(verdict, text, found | {"slope": float(slope), "promised": float(promised)})
        )
    return Finding(
        "E4",
        "[CNN] Lemma 2, (8)",
        "With the biggest midpoint threshold only location h has a sum of u above eta",
        *sides,
        ("change of the bias", "-|R - what is promised|"),
        curves,
    )


def _sums_above(groups: OrderedGroups, eta: float) -> np.ndarray:
    """Return for each location the sum of u over the samples with v > eta."""
    pairs = zip(groups.values, groups.sums, strict=True)
    return np.array([sums[values > eta].sum() for values, sums in pairs])


def _second_order_rise(data: TrainingSet, seed: int) -> Finding:
    # Each image comes with its negative: the best affine fit is then constant, and every S(eta)
    # vanishes. With few grey levels the gaps between values are wide enough to be seen.
    x = np.round(8 * data.x) / 8
    data = TrainingSet(np.concatenate([x, 1 - x]), np.concatenate([data.y, data.y]))
    theta, pair = linear_minimum(_network(2, 4, 4), data, LOSS)
    before = risk, _ = rounded_risk(theta, data, LOSS)
    for start, split in perturb_read_weights(theta, pair, data, LOSS):
        prime = equal_risk_point(start, pair, split)
        lower = lower_point(start, prime, pair, split, data, LOSS, before)
        if lower.decrease > lower.rounding:
            break
    move = start.vector - theta.vector
    shares = np.linspace(0, 1, POINTS)
    rises, ends = [0.0], [0.0]
    for share in shares[1:]:
        start = Parameters(theta.net, theta.vector + share * move)
        split = split_data(start, pair, data, LOSS, map=split.map, output=split.output)
        prime = equal_risk_point(start, pair, split)
        rises.append(start.net.risk(start, data, LOSS) - risk)
        ends.append(-lower_point(start, prime, pair, split, data, LOSS, before).decrease)
    t = float(np.linalg.norm(move))
    holds = certify(theta, data, LOSS).holds
    return Finding(
        "E5",
        "[CNN] Lemma 11, (64)",
        "Perturbing the read weights to split the data leaves R unchanged",
        Side(
            "R rises",
            f"by {rises[-1]:.3g} = {rises[-1] / t**2:.3g} t^2 at t = {t:.3g}",
            {"rise": rises[-1], "t": t, "rate": rises[-1] / t**2},
        ),
        Side(
            "and yet a lower point" if ends[-1] < 0 else "no lower point",
            f"t kept small against the gap: the lower point is lower than theta by {-ends[-1]:.3g}",
            {"decrease": -ends[-1]},
            holds,
        ),
        ("share of the perturbation", "R(theta) - R"),
        {"literal": (shares, -np.array(rises)), "repaired": (shares, -np.array(ends))},
    )


def _other_outputs(data: TrainingSet, seed: int) -> Finding:
    net = _network(2, 4, 4)
    sub = subnetwork(net, all_relayed=True)
    phi = train(kaiming_start(sub, seed), data, LOSS, epochs=20, batch_size=50, seed=seed)
    sides, curves, chosen = [], {}, None
    for variant in ("literal", "repaired"):
        theta, pair = embed(net, phi, data.x, variant)
        if chosen is None:
            splits = [
                split_data(theta, pair, data, LOSS, map=m, output=k)
                for m in pair.relayed
                for k in range(data.y.shape[1])
            ]
            biases = theta.b[pair.below]
            chosen = max(
                (s for s in splits if s.threshold >= -biases[s.map]),
                key=lambda s: -s.lowest - biases[s.map],
            )
        prime = equal_risk_point(theta, pair, chosen, variant)
        before, after = (theta.net.risk(point, data, LOSS) for point in (theta, prime))
        changes = abs(net.forward(prime, data.x) - net.forward(theta, data.x))
        rounding = sum(output_rounding(point, data.x).T for point in (theta, prime))
        moved = changes.max(axis=0)
        curves[variant] = np.arange(len(moved)), -moved
        text = f"outputs move by up to {moved.max():.2g}, R by {after - before:.2g}"
        verdict = "outputs kept" if (changes <= rounding).all() else "other outputs change"
        sides.append(Side(verdict, text, {"outputs": float(moved.max()), "change": after - before}))
    return Finding(
        "E6",
        "[CNN] Lemma 9, (25)",
        "theta' has the risk of theta, for any number of outputs",
        *sides,
        ("output", "-|change of an output|, the largest"),
        curves,
    )


def _cross_entropy(data: TrainingSet, seed: int) -> Finding:
    net, entropy = _network(2), CrossEntropy()
    theta = nontrivial_minimum(net, data, LOSS, seed=seed)
    fired = net.patterns(theta, data.x)[1][:, : net.positions(1)].any(axis=1)
    alone = TrainingSet(data.x[fired], data.y[fired])
    scales = np.append(np.geomspace(0.1, 1, POINTS // 2), np.geomspace(1, 30, POINTS // 2)[1:])
    point, P = theta.copy(), net.positions(1)
    passed = net.layer_output(theta, alone.x.reshape(1, -1).T, 1)[:P, 0]
    unit = np.outer(alone.y[0], passed) / (passed @ passed)  # raises the label's output by 1
    losses: dict[str, list[float]] = {"literal": [], "repaired": []}
    for scale in scales:
        point.W[net.depth].weights[:, :P] = scale * unit
        losses["literal"].append(net.risk(point, alone, entropy))
        point.W[net.depth].weights[:, :P] = scale * theta.W[net.depth].weights[:, :P]
        losses["repaired"].append(net.risk(point, alone, LOSS))
    at_one = np.argmin(abs(scales - 1))
    curves = {name: (scales, np.array(y) - y[at_one]) for name, y in losses.items()}
    try:
        nontrivial_minimum(net, data, entropy)
        refusal = ""
    except AssumptionError as error:
        refusal = str(error)
    first, last = losses["literal"][0], losses["literal"][-1]
    return Finding(
        "E9",
        "[CNN] Theorem 3 with the cross-entropy",
        "The weight lambda of the isolated sample minimises its loss",
        Side(
            "no minimiser",
            f"its loss falls as long as lambda grows, from {first:.2g} to {last:.1g}",
            {
                "first": first,
                "last": last,
                "falling": bool((np.diff(losses["literal"]) <= 0).all()),
            },
        ),
        Side("refused" if refusal else "accepted", refusal, {}, certify(theta, data, LOSS).holds),
        ("size of lambda (blue: 1 at the minimiser)", "loss of the sample, less that at 1"),
        curves,
    )


def _lattice(data: TrainingSet, seed: int) -> Finding:
    x = np.linspace(-1, 1, 40)
    data = TrainingSet(x[:, None, None], (3 * x**2 + np.sin(5 * x))[:, None])
    groups = Groups.equal(data.x, np.ones(1), 5)
    fit = fit_groups(data, groups, LOSS)
    pieces, regions = connected_pieces(fit, data.x)
    literal = lattice_network((1, 1), [Lattice.of(pieces, regions)], data.x)
    repaired = gated_minimum(Network((1, 1), [Dense(9), Dense(1)]), data, LOSS, groups)
    return compare(
        "E10",
        "[PWL] 6.1.5",
        "The maximum of minima of optimal pieces is a local minimum",
        literal,
        repaired,
        data,
        seed,
    )


def _convolutions(data: TrainingSet, seed: int) -> Finding:
    """Return the row of [PWL] 6.2: filters are optimised, all weights above them are ones."""
    data = TrainingSet(data.x, data.y[:, :3])
    phi, filters = patch_sums([3], data.x), np.ones(9)
    found = convolutional_lattice([3], data, LOSS, Groups.at(phi, filters, []))
    return compare(
        "E11",
        "[PWL] 6.2, (29)",
        "Optimal filters under layers of ones are a local minimum",
        found.theta,
        gated_minimum(found.theta.net, data, LOSS, Groups.at(data.x, np.ones(SIDE**2), [])),
        data,
        seed,
    )


ROWS: tuple[Callable[[TrainingSet, int], Finding], ...] = (
    _saddle,
    _kinks,
    _unrelayed,
    _threshold,
    _second_order_rise,
    _other_outputs,
    _pooling,
    _nontrivial,
    _two_samples,
    _cross_entropy,
    _lattice,
    _convolutions,
)


def _row(data: TrainingSet, seed: int, number: int) -> Finding:
    return ROWS[number](data, seed)


def _network(*maps: int) -> Network:
    return Network((1, SIDE, SIDE), [*map(Conv, maps), Dense(10)])


def audit(
    samples: int = 300,
    seed: int = 0,
    executor: Executor | None = None,
    path: str | Path | None = None,
    stage: Callable[[str, str, int, int], AbstractContextManager[Bar]] = silent,
) -> list[Finding]:
    """Return all rows, on so many bundled images; see `run_each` for `executor` and `path`.

    `stage` is entered with "audit", a text, the number of rows and how many of them are done.
    """
    shown, job = partial(stage, "audit", "measuring"), partial(_row, images(samples, seed), seed)
    findings = run_tasks("audit", job, range(len(ROWS)), executor, path, shown)
    return sorted(findings, key=lambda finding: (len(finding.name.rstrip("b")), finding.name))
