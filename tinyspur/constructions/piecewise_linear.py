"""[PWL] Local minima from continuous piecewise linear fits: groups of samples, a fit for each.

Groups are separated along a direction; inside each an affine map is optimal. Gates switch from one
map to the next between the groups: every unit is strictly active or strictly inactive
on a whole group, so that the cell certificate holds with one class for each group.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.optimize
from numpy.typing import ArrayLike

from ..certificates import CellCertificate, certify_cell
from ..certificates.rounding import risk_rounding
from ..datasets.samples import TrainingSet, check_data, flattened
from ..engine.activations import check_piecewise_linear
from ..engine.backend import to_numpy
from ..engine.floats import QUIET
from ..engine.losses import Loss, check_loss
from ..engine.network import Network, check_problem
from ..engine.parameters import Parameters
from ..engine.plain import plain_on_host, whole, whole_number
from ..errors import AssumptionError
from ..fitting.affine import AffineFit, fit_affine
from ..layers import Dense
from ..shown import Shown
from .embedding import carry_outputs, first_features
from .isolated import constant_minimum, isolating_point
from .relayed_pair import first_dense
from .towers import MARGIN, Tower

SAME = 8  # units in the last place of |p| . |x| that places along p may differ by to be the same
ORDERS = 6  # for so many groups or fewer every order along a direction is tried


@dataclass(frozen=True, repr=False)
class Groups(Shown):
    """Samples in K groups, separated along a direction p by thresholds m_1 < ... < m_{K-1}.

    `direction` has the shape of the flattened input (d_x,), `labels` (N,) counts the groups from 0
    upwards along it: p . x lies between m_k and m_{k+1} for every sample of group k. Raises
    ValueError for a sample on a threshold or an empty group.
    """

    direction: np.ndarray
    thresholds: np.ndarray
    labels: np.ndarray

    @classmethod
    def at(cls, x: ArrayLike, direction: ArrayLike, thresholds: ArrayLike) -> Groups:
        """Return the groups of inputs x (N, ...) between the given thresholds."""
        along = _along(x, direction)
        thresholds = np.sort(plain_on_host("thresholds", thresholds).astype(np.float64).ravel())
        hit = np.isin(along, thresholds)
        if hit.any():
            place = f"sample {hit.argmax()} is at {along[hit.argmax()]:g}"
            raise ValueError(f"groups: expected no sample on a threshold, {place}")
        labels = np.searchsorted(thresholds, along)
        sizes = np.bincount(labels, minlength=len(thresholds) + 1)
        if not sizes.all():
            raise ValueError(
                f"groups: expected samples in each of {len(sizes)}, group {sizes.argmin()} has none"
            )
        return cls(_numbers(direction), thresholds, labels)

    @classmethod
    def equal(cls, x: ArrayLike, direction: ArrayLike, groups: int) -> Groups:
        """Return groups of equal size, up to one sample, split where neighbours differ."""
        along = np.sort(_along(x, direction))
        groups = whole_number("groups", groups, 1, len(along))
        cuts = [round(k * len(along) / groups) for k in range(1, groups)]
        return cls.at(x, direction, _between(along, cuts))

    @classmethod
    def gaps(cls, x: ArrayLike, direction: ArrayLike, groups: int) -> Groups:
        """Return the groups on both sides of the largest gaps between neighbours."""
        along = np.sort(_along(x, direction))
        groups = whole_number("groups", groups, 1, len(along))
        cuts = np.sort(np.argsort(-np.diff(along), kind="stable")[: groups - 1] + 1)
        return cls.at(x, direction, _between(along, cuts))

    @classmethod
    def labelled(cls, x: ArrayLike, labels: ArrayLike) -> Groups:
        """Return groups with the user's labels, along a direction that a linear program finds.

        Up to 6 groups may follow each other along it in any order, more groups have to do so in the
        order of their labels. Raises AssumptionError where no direction separates them.
        """
        x, (names, numbers) = flattened(x), np.unique(labels, return_inverse=True)
        if len(numbers) != len(x):
            raise ValueError(f"groups: expected labels ({len(x)},), got {np.shape(labels)}")
        K = len(names)
        if K == 1:
            return cls.at(x, np.eye(x.shape[1])[0], [])
        orders = [()] if K <= ORDERS else [tuple(range(K))]
        while orders:  # a direction for all groups is also one for the first few of them
            order = orders.pop()
            some = np.isin(numbers, order)
            places = np.argsort(order)[np.searchsorted(np.sort(order), numbers[some])]
            found = _separate(x[some], places, len(order)) if len(order) > 1 else True
            if found and len(order) == K:
                return cls.at(x, *found)
            if found:
                orders += [(*order, k) for k in reversed(range(K)) if k not in order]
        raise AssumptionError(
            f"groups: no direction separates the {K} groups {names.tolist()} from each other, "
            f"{'in any order' if K <= ORDERS else 'in the order of their labels'}"
        )

    def __len__(self) -> int:
        return len(self.thresholds) + 1

    def __str__(self) -> str:
        sizes = np.bincount(self.labels, minlength=len(self))
        groups = f"{len(self)} group{'s' * (len(self) > 1)}"
        return f"{groups} along a direction, of {', '.join(map(str, sizes))} samples"

    def refine(self, x: np.ndarray, sample: int) -> Groups:
        """Return finer groups, where the sample is alone between two thresholds ([PWL] 6.1.6).

        Raises AssumptionError where another sample has the same place along the direction.
        """
        along = _along(x, self.direction)
        if whole(sample) not in range(len(along)):
            raise ValueError(f"groups: expected a sample in 0..{len(along) - 1}, got {sample!r}")
        values = np.unique(along)
        n = int(np.searchsorted(values, along[sample]))
        if (along == along[sample]).sum() > 1:
            raise AssumptionError(
                f"groups: sample {sample} can't be alone, others lie at {along[sample]:g} too"
            )
        both = (values[n + side : n + side + 2].mean() for side in (-1, 0) if n + side >= 0)
        fresh = [m for m in both if values[0] < m < values[-1]]
        taken = np.searchsorted(values, fresh)
        kept = self.thresholds[~np.isin(np.searchsorted(values, self.thresholds), taken)]
        return Groups.at(x, self.direction, [*kept, *fresh])


@dataclass(frozen=True, repr=False)
class PiecewiseFit(Shown):
    """The optimal affine map of each group, o = F_k (x, 1), and the risk of all together."""

    groups: Groups
    fits: tuple[AffineFit, ...]
    risk: float

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Return the outputs (N, d_y) for the inputs whose groups these are."""
        x = flattened(x)
        outputs = np.zeros((len(x), len(self.fits[0].bias)))
        for k, fit in enumerate(self.fits):
            inside = self.groups.labels == k
            outputs[inside] = x[inside] @ fit.weights.T + fit.bias
        return outputs

    def __str__(self) -> str:
        return f"piecewise linear fit: {self.groups}, risk {self.risk:.9g}"


def check_groups(groups: object) -> None:
    """Raise ValueError for what are no groups, as their number."""
    if not isinstance(groups, Groups):
        raise ValueError(f"groups: expected Groups.equal(...), got a {type(groups).__name__}")


def fit_groups(data: TrainingSet, groups: Groups, loss: Loss) -> PiecewiseFit:
    """Return the optimal affine map of each group ([PWL] (11)).

    Raises AssumptionError, naming the group, where one has no minimiser.
    """
    check_data(data)
    check_loss(loss)
    check_groups(groups)
    if len(groups.labels) != len(data):
        raise ValueError(f"groups: expected those of {len(data)} samples, got {len(groups.labels)}")
    x, fits, risk = flattened(data.x), [], 0.0
    for k in range(len(groups)):
        inside = groups.labels == k
        try:
            fits.append(fit_affine(x[inside], data.y[inside], loss))
        except AssumptionError as error:
            raise AssumptionError(f"group {k} of {len(groups)}: {error}") from error
        risk += fits[-1].risk * inside.mean()
    return PiecewiseFit(groups, tuple(fits), float(risk))


@np.errstate(**QUIET)
def gated_minimum(net: Network, data: TrainingSet, loss: Loss, groups: Groups) -> Parameters:
    """Return the point whose network is the optimal affine map on every group, in float64.

    f(x) = F_1 x + sum_k sigma(V_k x + M_k (p.x - m_k)) - sigma(M_k (p.x - m_k)) with the changes
    V_k = F_{k+1} - F_k and with M_k so large that each unit has one sign on each group. With leaky
    ReLU of slope a, V_k / (1 - a) replaces V_k, and F_1 is less by what inactive gates let through.
    The first dense layer computes pieces and gates, d_y + (K - 1)(d_y + 1) units of it; the layers
    above relay, strictly active; convolutions below relay the image, in shifted copies before
    average poolings; all else is dead. Certified with K classes, for every convex loss whose fits
    exist, unless all fits are exact: gradients then can't be told from rounding errors.
    Raises AssumptionError for too few units or maps, and for a group without a fit; ValueError for
    a smooth activation.
    """
    check_problem(net, data, loss)
    check_groups(groups)
    dense = first_dense(net)
    if dense == net.depth:
        raise ValueError(f"gates: expected a hidden dense layer below the last, got {net}")
    check_piecewise_linear(net.activations, "gates")
    active = next(n for n in range(dense, net.depth + 1) if net.is_active(n) or n == net.depth)
    above = next(n for n in range(dense + 1, net.depth + 1) if type(net.chain[n - 1]) is Dense)
    sigma = net.activation_of(active)
    if active >= above or sigma is None or sigma.slope == 1:
        raise ValueError(
            f"gates: expected an activation with a kink, got {sigma or 'none'} after layer "
            f"{dense}, {net.chain[dense - 1]}"
        )
    slope = sigma.slope
    d_y, K, width = net.shapes[-1][0], len(groups), net.shapes[dense][0]
    needed = d_y + (K - 1) * (d_y + 1)
    if width < needed:
        raise AssumptionError(
            f"too few neurons: the dense layer {dense} has {width}, expected at least {needed} for "
            f"{K} groups and {d_y} outputs"
        )
    x = first_features(net, data.x)
    if groups.direction.shape != x.shape[1:]:
        raise ValueError(
            f"groups: expected a direction ({x.shape[1]},), got {groups.direction.shape}"
        )
    features = TrainingSet(x.reshape(len(x), 1, -1), data.y)
    fit = fit_groups(features, groups, loss)
    p, maps = groups.direction, [np.hstack([f.weights, f.bias[:, None]]) for f in fit.fits]
    if (np.searchsorted(groups.thresholds, _along(x, p)) != groups.labels).any():
        raise ValueError("groups: expected groups of these samples, got those of other ones")
    hats = np.hstack([x, np.ones((len(x), 1))])
    # An inactive gate hands on `slope` times V: what it adds when it becomes active is the rest.
    first = maps[0] - slope / (1 - slope) * (maps[-1] - maps[0])
    lift = MARGIN - min(0.0, float((hats @ first.T).min()))
    first[:, -1] += lift  # sigma(F_1 x + lift) = F_1 x + lift on the samples
    rows, sums = [first], [np.eye(d_y)]
    for k, m in enumerate(groups.thresholds):
        V, gate = (maps[k + 1] - maps[k]) / (1 - slope), np.append(p, -m)
        M = float(((abs(hats @ V.T).max(axis=1) + MARGIN) / abs(hats @ gate)).max())
        rows += [V + M * gate, M * gate[None]]
        sums.append(np.hstack([np.eye(d_y), -np.ones((d_y, 1))]))
    theta, rows, sums = net.zeros(), np.vstack(rows), np.hstack(sums)
    if not np.isfinite(rows).all():
        raise AssumptionError("gates: groups are too close along the direction for finite weights")
    tower, channels = Tower(net, net.leading_poolings + 1, dense - 1), net.input_shape[0]
    tower.check_room(channels, "one for each input channel that is relayed")
    weights = rows[:, :-1].reshape(len(rows), channels, -1)
    tower.read(theta, weights, rows[:, -1], tower.biases(float(x.min())))
    theta.b[dense][len(rows) :] = -MARGIN
    for layer in range(dense + 1, above):  # scales
        theta.W[layer].weights[...] = 1
    theta.W[above].weights[:d_y, : len(rows)] = sums
    theta.b[above][:d_y] = -lift
    if above < net.depth:
        carry_outputs(theta, above, fit.predict(features.x))
    return theta


@dataclass(frozen=True, repr=False)
class SpuriousPair(Shown):
    """Two points of one network, `fine` for a refinement of the groups of `coarse`, a minimum."""

    coarse: Parameters
    fine: Parameters
    groups: tuple[Groups, Groups]
    certificates: tuple[CellCertificate, CellCertificate]
    risks: tuple[float, float]
    rounding: float

    @property
    def verdict(self) -> str:
        """Return what was proved of `coarse`."""
        return self.certificates[0].verdict(self.risks[0] - self.risks[1], self.rounding)

    def __str__(self) -> str:
        lines = [
            f"{groups}: R = {risk:.9g}, {certificate.words}"
            for groups, risk, certificate in zip(
                self.groups, self.risks, self.certificates, strict=True
            )
        ]
        return "\n".join([*lines, f"verdict: {self.verdict}"])


def spurious_pair(
    net: Network, data: TrainingSet, loss: Loss, groups: Groups | None = None
) -> SpuriousPair:
    """Return the minimum of `groups` and a lower one, with the worst fitted sample set apart.

    Both are points of `net`, and the coarser one has dead units to spare ([PWL] 6.1.6): setting a
    sample apart makes up to two groups more, with d_y + 1 units each. Of the samples that have a
    place along the direction for themselves, it is the one with the largest loss.

    Without groups no image is relayed, so that any layers will do, max poolings and strides too: in
    the coarse minimum all hidden units are dead, in the other one all but those that a single
    sample activates (see `isolating_point`). With the cross-entropy the finer point is a lower one,
    and no minimum. Raises as `gated_minimum` does, or as `constant_minimum`, and AssumptionError
    where no sample can be set apart.
    """
    if groups is None:
        coarse = constant_minimum(net, data, loss)
        fine, direction, threshold = isolating_point(net, data, loss)
        x = first_features(net, data.x)
        groups = Groups.at(x, direction, []), Groups.at(x, direction, [threshold])
        return _pair(coarse, fine, groups, data, loss)
    coarse = gated_minimum(net, data, loss, groups)
    x, losses = first_features(net, data.x), to_numpy(net.sample_losses(coarse, data, loss))
    for sample in np.argsort(-losses, kind="stable"):
        try:
            finer = groups.refine(x, int(sample))
        except AssumptionError:  # others lie at the same place
            continue
        break
    else:
        raise AssumptionError("spurious pair: no sample has a place of its own along the direction")
    return _pair(coarse, gated_minimum(net, data, loss, finer), (groups, finer), data, loss)


def _pair(
    coarse: Parameters,
    fine: Parameters,
    groups: tuple[Groups, Groups],
    data: TrainingSet,
    loss: Loss,
) -> SpuriousPair:
    return SpuriousPair(
        coarse,
        fine,
        groups,
        (certify_cell(coarse, data, loss), certify_cell(fine, data, loss)),
        (coarse.net.risk(coarse, data, loss), fine.net.risk(fine, data, loss)),
        risk_rounding(coarse, data, loss) + risk_rounding(fine, data, loss),
    )


def _separate(x: np.ndarray, places: np.ndarray, K: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the direction and thresholds that put the groups at their places, or None.

    The linear program maximises the gap t under |p| <= 1, with p . x at most m_k - t for all
    groups below threshold k and at least m_k + t for those above.
    """
    d, mean, scale = x.shape[1], x.mean(axis=0), abs(x - x.mean(axis=0)).max() or 1.0
    z = (x - mean) / scale
    below = np.flatnonzero(places < K - 1)
    above = np.flatnonzero(places > 0)
    A = np.zeros((len(below) + len(above), d + K))  # p, m_1 .. m_{K-1}, t
    A[: len(below), :d], A[len(below) :, :d] = z[below], -z[above]
    A[np.arange(len(below)), d + places[below]] = -1
    A[len(below) + np.arange(len(above)), d + places[above] - 1] = 1
    A[:, -1] = 1
    costs = np.append(np.zeros(d + K - 1), -1.0)
    bounds = [(-1, 1)] * d + [(None, None)] * (K - 1) + [(None, 1)]
    found = scipy.optimize.linprog(costs, A, np.zeros(len(A)), bounds=bounds, method="highs")
    if found.status != 0 or found.x[-1] <= 1e-9:
        return None
    p = found.x[:d] / scale
    return p, found.x[d : d + K - 1] + p @ mean


def _along(x: ArrayLike, direction: ArrayLike) -> np.ndarray:
    """Return p . x for each sample; the same for samples that differ there by rounding only."""
    flat, p = flattened(x), _numbers(direction)
    if p.shape != flat.shape[1:] or not np.isfinite(p).all() or not p.any():
        found = "NaN or infinite ones" if p.any() else "zeros"
        raise ValueError(
            f"groups: expected a finite direction of {flat.shape[1]} numbers, not all 0, got "
            f"{found if p.shape == flat.shape[1:] else f'{len(p)} numbers'}"
        )
    along = flat @ p
    near = SAME * np.finfo(float).eps * float((abs(flat) @ abs(p)).max())
    order = np.argsort(along, kind="stable")
    starts = np.append(True, np.diff(along[order]) > near)
    along[order] = along[order][starts][np.cumsum(starts) - 1]
    return along


def _numbers(direction: object) -> np.ndarray:
    return plain_on_host("direction", direction).astype(np.float64).ravel()


def _between(along: np.ndarray, cuts) -> np.ndarray:
    """Return thresholds midway between sorted values, moved to the nearest place without a tie."""
    differ = np.flatnonzero(along[1:] > along[:-1]) + 1  # where a cut can be
    thresholds = []
    for cut in cuts:
        free = differ[~np.isin(differ, [c for c, _ in thresholds])]
        if free.size:
            nearest = int(free[abs(free - cut).argmin()])
            thresholds.append((nearest, (along[nearest - 1] + along[nearest]) / 2))
    thresholds = [m for _, m in thresholds]
    if len(set(thresholds)) < len(cuts):
        raise ValueError(
            f"groups: expected {len(cuts) + 1}, but too many samples lie at the same places"
        )
    return np.array(thresholds)
