"""Evidence, never a proof, that a point where the risk is smooth is a local minimum.

The size of the gradient, the ends of the Hessian's spectrum, and how many of its flat directions
rescaling explains. Proofs are in `certificates`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import scipy.linalg
import scipy.sparse

from ..certificates.assumptions import check_at_point
from ..datasets.samples import TrainingSet
from ..engine.activations import ReLU
from ..engine.backend import Array, namespace, to_numpy
from ..engine.floats import EPSILON, QUIET
from ..engine.losses import Loss
from ..engine.network import check_at
from ..engine.parameters import Parameters
from ..engine.passes import margins, steps
from ..engine.plain import generator, whole_number
from ..engine.threads import in_order, one_thread
from ..errors import within_floats
from ..shown import Shown
from .expansion import expand_risk

DENSE_UP_TO = 1500  # parameters up to which the whole Hessian is computed
LANCZOS_PRODUCTS = 90  # Hessian products that the two ends of the spectrum get otherwise
RESCALINGS_CHECKED = 8  # tangents t whose H t is computed beside them
SIGN_DRAWS = 8  # backward passes that estimate the scale of the gradient
NULL_SHARE = 1e-9  # an eigenvalue counts as zero up to this share of the largest in size
DEPENDENT = 1e-6  # singular values of the unit tangents up to this share of the largest are zero


@dataclass(frozen=True)
class RitzValue:
    """A number `value` = u.Hu with |u| = 1, and the `residual` |Hu - value u|.

    An eigenvalue lies within `residual` of `value`; a residual of 0 means that it is known up to
    rounding.
    """

    value: float
    residual: float


@dataclass(frozen=True, repr=False)
class Evidence(Shown):
    """What speaks for a local minimum at a point where the risk is smooth: evidence, no proof.

    `margin` is the least |z|, or half gap of a max pooling, and infinite without kinks; at 0 the
    risk isn't smooth, and the Hessian says little.
    `gradient_scale` is the root mean square over the samples of |grad l_i|, estimated within about
    a quarter, `relative_gradient` the norm of the gradient divided by it.

    With ReLU or leaky ReLU no output changes if a map is multiplied by a number and what reads it
    is divided by it. The tangent t of this motion has H t = 0 at a stationary point. There are
    `rescalings` such maps with `independent` tangents, and `checked` of them have |H t| <=
    `rescaling_defect` |t| times the largest eigenvalue. `largest` and `smallest` are the ends of
    the spectrum of the Hessian orthogonal to all tangents. Before it has converged the value for
    the smallest one can only be too high: even if it is positive there may be negative curvature.
    Up to `curvature_rounding` of it may be rounding errors of the outputs and of the loss.
    `nullity` counts the eigenvalues of the whole Hessian up to 1e-9 of the largest, `explained`
    those of them that rescaling explains; both are None where only `products` Hessian products were
    taken, instead of the whole matrix. Where the gradient g is not 0, |H t| / |t| may be as large
    as |g| / |t|: flat directions show only where that is small.
    """

    parameters: int
    margin: float
    gradient_norm: float
    gradient_scale: float
    largest: RitzValue
    smallest: RitzValue
    rescalings: int
    independent: int
    checked: int
    rescaling_defect: float
    nullity: int | None
    explained: int | None
    products: int
    curvature_rounding: float = 0.0
    kind: str = "second order"
    evidence_only: bool = True

    @property
    def relative_gradient(self) -> float:
        """Return the norm of the gradient divided by the scale of the samples' gradients."""
        return _ratio(self.gradient_norm, self.gradient_scale)

    def as_dict(self) -> dict:
        """Return what the report of a run holds: None for what is not finite.

        That is `margin` where there are no kinks, and what overflows.
        """
        whole = {**asdict(self), "relative_gradient": self.relative_gradient}
        for part in (whole, whole["largest"], whole["smallest"]):
            floats = {key: value for key, value in part.items() if isinstance(value, float)}
            part.update({key: None for key, v in floats.items() if not math.isfinite(v)})
        return whole

    def __str__(self) -> str:
        largest, smallest = self.largest, self.smallest
        margin = f"margin {self.margin:.2g}" if math.isfinite(self.margin) else "no kinks"
        apart, explained, rescaling = "", "", []
        if self.rescalings:
            apart = ", apart from rescaling"
            explained = f", of which {self.explained} explained by rescaling"
            rescaling.append(
                f"  rescaling: {self.rescalings} maps, {self.independent} directions; |H t| at "
                f"most {self.rescaling_defect:.1e} |t| times the largest, {self.checked} checked"
            )
        if self.nullity is None:
            spectrum = [
                f"largest eigenvalue at least {largest.value:.4g}, residual {largest.residual:.1g}",
                f"smallest at most {smallest.value:.3g}, residual {smallest.residual:.1g}",
            ]
        else:
            spectrum = [
                f"largest eigenvalue {largest.value:.4g}, smallest {smallest.value:.3g}",
                f"nullity {self.nullity}{explained}",
            ]
        lines = [
            "second order: evidence, no proof, of whether this is a local minimum",
            f"  gradient {self.gradient_norm:.2g}, {self.relative_gradient:.1e} of the samples' "
            f"gradients (root mean square about {self.gradient_scale:.2g})",
            f"  Hessian of {self.parameters} parameters, {self.products} products{apart}:",
            *(f"    {line}" for line in spectrum),
            *rescaling,
            f"  {margin}"
            + ": the risk is not smooth, the Hessian says little" * (self.margin == 0),
        ]
        beyond = NULL_SHARE * max(abs(largest.value), abs(smallest.value))
        if smallest.value < -beyond:
            known = smallest.value < -self.curvature_rounding
            lines.append(
                "  negative curvature: evidence against a local minimum"
                if known
                else "  the smallest eigenvalue is no larger than its rounding error, "
                f"{self.curvature_rounding:.1g}"
            )
        return "\n".join(lines)


@np.errstate(**QUIET)
@within_floats("evidence: ")
def gather_evidence(
    theta: Parameters,
    data: TrainingSet,
    loss: Loss,
    seed: int = 0,
    dense_up_to: int = DENSE_UP_TO,
    lanczos_products: int = LANCZOS_PRODUCTS,
) -> Evidence:
    """Return evidence on whether theta is a local minimum; see `Evidence` for what it can't tell.

    The whole Hessian for at most `dense_up_to` parameters, one product each; `lanczos_products`
    products and a few more otherwise. A float32 theta is taken for the numbers that it holds, in
    float64. `seed` draws signs, the start of the Lanczos method and the tangents to check. Raises
    ValueError for less than one product, for a network without parameters, and where parameters
    or outputs are not finite, and AssumptionError for a loss or an activation of a user's whose
    derivatives are seen to be wrong.
    """
    check_at(theta, data, loss)
    net, xp = theta.net, namespace(theta.vector)
    if hasattr(loss, "subgradients"):
        raise ValueError(f"evidence: expected a differentiable loss, got {loss!r}")
    lanczos_products = whole_number("lanczos_products", lanczos_products)
    dense_up_to = whole_number("dense_up_to", dense_up_to, 0)
    if not net.size:
        raise ValueError(f"evidence: expected at least one parameter, got {net}")
    theta = theta.to(xp, np.float64)
    risk, gradient = net.risk_and_gradient(theta, data, loss)
    if not (math.isfinite(risk) and bool(xp.isfinite(theta.vector).all())):
        raise ValueError("evidence: expected finite parameters and risk, got NaN or infinite ones")
    check_at_point(theta, data, loss)
    rng = generator(seed)
    scale = _gradient_scale(theta, data, loss, rng)
    tangents = rescaling_tangents(theta)
    nullity = explained = None
    if net.size <= dense_up_to:
        H, t = hessian(theta, data, loss), tangents.toarray()
        checked, products, images = len(t), net.size, t @ H
        _, sizes, axes = np.linalg.svd(t)
        independent = int((sizes > DEPENDENT * sizes.max(initial=0)).sum())
        span, rest = axes[:independent], axes[independent:]
        ends, vectors = np.linalg.eigh(rest @ H @ rest.T)
        smallest, largest = (RitzValue(float(value), 0.0) for value in ends[[0, -1]])
        lowest = rest.T @ vectors[:, 0]
        sizes = abs(np.linalg.eigvalsh(H))
        zero = NULL_SHARE * sizes.max()
        nullity = int((sizes <= zero).sum())
        explained = int((np.linalg.svd(span @ H, compute_uv=False) <= zero).sum())
    else:
        product = _hessian_operator(theta, data, loss)
        project, independent = _projection(tangents)
        start = project(rng.standard_normal(net.size))
        steps = min(lanczos_products, net.size - independent)
        smallest, largest, lowest, taken = _lanczos(lambda v: project(product(v)), start, steps)
        checked = min(RESCALINGS_CHECKED, tangents.shape[0])
        chosen = np.sort(rng.choice(tangents.shape[0], checked, replace=False))
        images = [product(tangents[[i]].toarray()[0]) for i in chosen]
        products = taken + checked
    along = Parameters(net, xp.asarray(lowest))
    inexact = 2 * expand_risk(theta, along, data, loss).second_rounding
    defect = max((float(np.linalg.norm(image)) for image in images), default=0.0)
    return Evidence(
        parameters=net.size,
        margin=_margin(theta, data),
        gradient_norm=float(np.linalg.norm(to_numpy(gradient.vector))),
        gradient_scale=scale,
        largest=largest,
        smallest=smallest,
        rescalings=tangents.shape[0],
        independent=independent,
        checked=checked,
        rescaling_defect=_ratio(defect, max(abs(largest.value), abs(smallest.value))),
        nullity=nullity,
        explained=explained,
        products=products,
        curvature_rounding=inexact,
    )


def hessian(theta: Parameters, data: TrainingSet, loss: Loss) -> np.ndarray:
    """Return the Hessian of the risk, shape (size, size), on the host: one product for each row."""
    check_at(theta, data, loss)
    product = _hessian_operator(theta, data, loss)

    def row(v: np.ndarray) -> np.ndarray:
        with one_thread():
            return product(v)

    rows = np.array(list(in_order(row, np.eye(theta.net.size), namespace(theta.vector))))
    return (rows + rows.T) / 2


def rescaling_tangents(theta: Parameters) -> scipy.sparse.csr_array:
    """Return the unit tangents of the rescalings as rows, shape (maps, size), on the host.

    Map t of a layer with a ReLU or leaky ReLU may be scaled by c > 0 together with its bias, and
    what reads it by 1/c ([CNN] Theorem 1): the tangent at c = 1 is (W_t, b_t) there and minus the
    outgoing weights, in the next layer that has weights. A map has no tangent if all of these
    numbers are zero; with other activations, here or between, there are none, and neither are there
    where a residual block reads the map twice or adds others to it.
    """
    net, host = theta.net, theta.to(np, np.float64)
    places = Parameters(
        net, np.arange(net.size, dtype=np.float64)
    )  # of each weight and bias in the vector
    values, columns, ends = [np.zeros(0)], [np.zeros(0, int)], [0]
    for layer in (n for n in net.active_layers if n in net.slots):
        above = _reader(host, layer)
        for t in range(net.shapes[layer][0] if above else 0):
            tangent = np.concatenate([part * s for part, s in _scaled(host, layer, above, t)])
            length = np.linalg.norm(tangent)
            if length:
                values.append(tangent / length)
                numbers = np.concatenate([p for p, _ in _scaled(places, layer, above, t)])
                columns.append(numbers.astype(np.int64))
                ends.append(ends[-1] + tangent.size)
    entries = (np.concatenate(values), np.concatenate(columns), ends)
    return scipy.sparse.csr_array(entries, shape=(len(ends) - 1, net.size))


def _reader(theta: Parameters, layer: int) -> int | None:
    """Return the layer that has to scale down where maps of `layer` are scaled up, if one can."""
    if not isinstance(theta.net.activation_of(layer), ReLU):
        return None
    try:
        return theta.reader(layer)
    except ValueError:
        return None


def _scaled(point: Parameters, layer: int, above: int, t: int) -> list[tuple[np.ndarray, int]]:
    """Return what is scaled up with map t of `layer`, with 1, and down, with -1."""
    incoming = np.append(point.W[layer].weights[t], point.b.get(layer, np.zeros(0))[t : t + 1])
    return [(incoming, 1), (point.W[above].outgoing(t).ravel(), -1)]


def _projection(tangents: scipy.sparse.csr_array) -> tuple[Callable, int]:
    """Return the map that takes the tangents out of a vector, and how many are independent."""
    values, vectors = np.linalg.eigh((tangents @ tangents.T).toarray())
    kept = values > DEPENDENT**2 * values.max(initial=0)
    inverse = (vectors[:, kept] / values[kept]) @ vectors[:, kept].T

    def project(v: np.ndarray) -> np.ndarray:
        return v - tangents.T @ (inverse @ (tangents @ v))

    return project, int(kept.sum())


def _hessian_operator(theta: Parameters, data: TrainingSet, loss: Loss) -> Callable:
    """Return the map from a vector v on the host to H v on the host."""
    net, xp = theta.net, namespace(theta.vector)

    def product(v: np.ndarray) -> np.ndarray:
        direction = Parameters(net, xp.asarray(v, dtype=theta.vector.dtype))
        return to_numpy(net.hessian_product(theta, direction, data, loss).vector)

    return product


def _lanczos(
    product: Callable, start: np.ndarray, steps: int
) -> tuple[RitzValue, RitzValue, np.ndarray, int]:
    """Return the smallest and the largest Ritz value after `steps` products, the Ritz vector of the
    smallest one, and the number of products.

    Lanczos' method with full reorthogonalisation. SciPy's `eigsh` returns nothing where it has not
    converged; here the number of products is fixed. Ends early in an invariant subspace.
    """
    basis, alpha, beta = np.empty((steps, start.size)), [], []
    v = start / np.linalg.norm(start)
    for n in range(steps):
        basis[n] = v
        w = product(v)
        alpha.append(float(v @ w))
        for _ in range(2):
            w = w - (basis[: n + 1] @ w) @ basis[: n + 1]
        beta.append(float(np.linalg.norm(w)))
        if beta[-1] <= 1e-13 * max(map(abs, alpha + beta)):
            break
        v = w / beta[-1]
    values, vectors = scipy.linalg.eigh_tridiagonal(alpha, beta[:-1])
    residuals = beta[-1] * abs(vectors[-1]) + EPSILON * abs(values).max()
    low, high = (RitzValue(float(values[i]), float(residuals[i])) for i in (0, -1))
    return low, high, vectors[:, 0] @ basis[: len(alpha)], len(alpha)


def _gradient_scale(theta: Parameters, data: TrainingSet, loss: Loss, rng) -> float:
    """Return an estimate of the root mean square of |grad l_i| over the samples.

    With random signs eps_i, E |(1/N) sum_i eps_i grad l_i|^2 = (1/N^2) sum_i |grad l_i|^2.
    """
    squares = []
    for _ in range(SIGN_DRAWS):
        negative, total = rng.random(len(data)) < 0.5, 0.0
        for part, sign in ((negative, -1), (~negative, 1)):
            if part.any():
                some = TrainingSet(data.x[part], data.y[part])
                total = total + sign * len(some) * theta.net.gradient(theta, some, loss).vector
        squares.append(float((total**2).sum()) / len(data))
    return math.sqrt(np.mean(squares))


def _margin(theta: Parameters, data: TrainingSet) -> float:
    """Return the least |z| or half gap (max pooling), infinite where there is no pattern."""

    def least(_: slice, columns: Array) -> float:
        found = margins(list(steps(theta, columns))).values()
        return min((float(m.min()) for m in found), default=math.inf)

    return min(theta.net.over(theta, data.x, least))


def _ratio(part: float, whole: float) -> float:
    """Return part / whole for sizes, 0 where both are 0 and infinity where `whole` alone is."""
    return part / whole if whole else math.inf if part else 0.0
