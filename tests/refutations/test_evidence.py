"""Evidence has the numbers of the Hessian and the gradient, and never passes for a proof."""

import dataclasses
import functools
import json

import numpy as np
import pytest
from shared import in_turn, random_point, twin_gradient, twin_hessian, twin_of

from tinyspur.constructions.relays import rescale
from tinyspur.datasets.samples import TrainingSet
from tinyspur.engine.activations import GELU, ReLU, Sine, Tanh
from tinyspur.engine.losses import CrossEntropy, SquaredLoss, softmax
from tinyspur.engine.network import Network
from tinyspur.engine.parameters import Parameters
from tinyspur.layers import AveragePool, Conv, Dense, MaxPool, Pooling
from tinyspur.refutations import evidence
from tinyspur.refutations.evidence import (
    RitzValue,
    _lanczos,
    gather_evidence,
    hessian,
    rescaling_tangents,
)

NETWORKS = {
    "2-D": Network((1, 4, 4), [Conv(2), AveragePool(2), Dense(3), Dense(2)]),
    "2-D, leaky": Network((2, 2, 4), [Conv(2), AveragePool(2), Conv(3, 1), Dense(2)], ReLU(0.1)),
    "1-D, leaky": Network((1, 6), [AveragePool(2), Conv(2), Conv(2, 1), Dense(2)], ReLU(0.3)),
    "pooling last": Network((1, 6), [Conv(3), Conv(2), AveragePool(6)]),
    "max pooling": Network((1, 4, 4), [Conv(2), MaxPool(2), Dense(3), Dense(2)]),
    "max pooling, leaky": Network(
        (2, 12), [MaxPool(2), Conv(2), AveragePool(3), MaxPool(2), Dense(2)], ReLU(0.2)
    ),
    "max pooling last": Network((1, 6), [Conv(3), Conv(2), MaxPool(2), MaxPool(3)]),
    "one layer": Network((1, 3), [Dense(2)]),
}
SMOOTH = {
    "2-D, tanh": Network((1, 4, 4), [Conv(2), AveragePool(2), Dense(3), Dense(2)], Tanh()),
    "1-D, gelu": Network((1, 6), [Conv(2), Conv(2, 1), Dense(2)], GELU()),
    "dense, sine": Network((1, 3), [Dense(4), Dense(3), Dense(2)], Sine()),
}


@functools.cache
def near_a_teacher(net, loss, seed, kill=None, samples=60):
    """Return a stationary point near the teacher of slightly disturbed targets, and the data.

    Newton's method; with `kill` that unit of layer 1 is dead.
    """
    rng = np.random.default_rng(seed)
    theta = Parameters(net, rng.normal(size=net.size))
    if kill is not None:
        theta.b[1][kill] = -100
    x = rng.normal(size=(samples, *net.input_shape))
    o = net.forward(theta, x)
    if loss.name == "squared":
        y = o + 1e-3 * rng.normal(size=o.shape)
    else:
        y = 0.999 * softmax(o.T).T + 0.001 * rng.dirichlet(np.ones(o.shape[1]), samples)
    data, steps = TrainingSet(x, y), 0
    while np.linalg.norm(g := twin_gradient(theta, data, loss)) > 1e-15 and steps < 12:
        H, steps = twin_hessian(theta, data, loss), steps + 1
        theta = Parameters(net, theta.vector - np.linalg.pinv(H, rcond=1e-7) @ g)
    assert np.linalg.norm(g) < 1e-13
    return theta, data


@functools.cache
def with_the_hessian(name, loss):
    """Return a random point, data, and what PyTorch finds."""
    theta, data = random_point((NETWORKS | SMOOTH)[name], loss, 7)
    return theta, data, twin_hessian(theta, data, loss)


def both_ways(theta, data, loss, **options):
    """Return the evidence of the whole Hessian and that of Lanczos' method."""
    return [gather_evidence(theta, data, loss, dense_up_to=n, **options) for n in (10**6, 0)]


# The spectrum


@in_turn(
    pytest.mark.parametrize("loss", [SquaredLoss(), CrossEntropy()], ids=repr),
    pytest.mark.parametrize("name", NETWORKS | SMOOTH),
)
def test_the_hessian_is_that_of_pytorch(name, loss):
    theta, data, expected = with_the_hessian(name, loss)
    H = hessian(theta, data, loss)
    assert np.array_equal(H, H.T)
    np.testing.assert_allclose(H, expected, atol=1e-12 * abs(expected).max())


@in_turn(
    pytest.mark.parametrize("loss", [SquaredLoss(), CrossEntropy()], ids=repr),
    pytest.mark.parametrize("name", NETWORKS | SMOOTH),
)
def test_the_ends_are_those_of_pytorchs_hessian_without_the_rescalings(name, loss):
    theta, data, H = with_the_hessian(name, loss)
    tangents = finite_tangents(theta)
    q, _ = np.linalg.qr(np.concatenate([tangents, np.eye(theta.net.size)]).T)
    rest = q[:, len(tangents) :]
    values = np.linalg.eigvalsh(rest.T @ H @ rest)
    size = abs(values).max()
    dense, lanczos = both_ways(theta, data, loss)
    for found in (dense, lanczos):
        assert found.largest.value == pytest.approx(values[-1], abs=1e-8 * size)
        assert found.smallest.value == pytest.approx(values[0], abs=1e-8 * size)
    sizes = abs(np.linalg.eigvalsh(H))
    assert dense.nullity == (sizes <= 1e-9 * sizes.max()).sum()
    assert (lanczos.nullity, lanczos.explained) == (None, None)
    assert dense.explained <= dense.nullity


# (network, loss, seed, dead unit, maps, nullity): beyond the rescalings, softmax is blind to
# a shift of all outputs, by their biases or along a unit that feeds them; a dead unit has no use
# for its 3 weights, its bias and its 2 outgoing weights, one direction of which is a rescaling.
STATIONARY = {
    "dense": (Network((1, 3), [Dense(3), Dense(2)]), SquaredLoss(), 3, None, 3, 3),
    "softmax": (Network((1, 3), [Dense(3), Dense(2)]), CrossEntropy(), 3, None, 3, 3 + 4),
    "dead": (Network((1, 3), [Dense(3), Dense(2)]), SquaredLoss(), 3, 1, 3, 2 + 6),
    "pooling": (
        Network((1, 4, 4), [Conv(2), AveragePool(2), Dense(3), Dense(2)], ReLU(0.3)),
        SquaredLoss(),
        2,
        None,
        5,
        5,
    ),
    "1-D": (
        Network((1, 6), [Conv(2), Conv(2, 1), Dense(2)], ReLU(0.3)),
        SquaredLoss(),
        2,
        None,
        4,
        4,
    ),
}


@pytest.mark.parametrize("name", STATIONARY)
def test_at_a_stationary_point_rescaling_explains_as_many_flat_directions_as_there_are_maps(name):
    net, loss, seed, kill, maps, nullity = STATIONARY[name]
    theta, data = near_a_teacher(net, loss, seed, kill)
    H, tangents = twin_hessian(theta, data, loss), rescaling_tangents(theta).toarray()
    values = np.linalg.eigvalsh(H)
    assert (abs(values) <= 1e-12 * values[-1]).sum() == nullity
    assert len(tangents) == maps
    assert abs(tangents @ H).max() < 1e-12 * values[-1]
    dense, lanczos = both_ways(theta, data, loss)
    assert (dense.nullity, dense.explained) == (nullity, maps)
    assert f"nullity {nullity}, of which {maps} explained by rescaling" in str(dense)
    for found in (dense, lanczos):
        assert (found.rescalings, found.independent) == (maps, maps)
        assert found.rescaling_defect < 1e-12
        assert found.relative_gradient < 1e-10
        assert found.largest.value == pytest.approx(values[-1])
        assert "negative curvature" not in str(found)
        beyond_rescaling = values[abs(values) > 1e-12 * values[-1]][0] if nullity == maps else 0
        assert found.smallest.value == pytest.approx(beyond_rescaling, abs=1e-9 * values[-1])


def saddle(samples=9):
    """Return a stationary point that isn't a minimum, the data and the least eigenvalue.

    Two units that ignore the input and are ignored: the residuals e have mean 0, the only curvature
    beside that of the constant fit is c = (1/N) sum_i e_i x_i between incoming and outgoing weights
    of a unit, with eigenvalues +|c| and -|c|.
    """
    net = Network((1, 3), [Dense(2), Dense(1)])
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(samples, 1, 3)), rng.normal(size=(samples, 1))
    theta = net.zeros()
    theta.b[1][:] = 1
    theta.b[2][:] = y.mean()
    c = (y.mean() - y[:, 0]) @ x[:, 0] / samples
    return theta, TrainingSet(x, y), -np.linalg.norm(c)


def test_a_saddle_has_negative_curvature():
    theta, data, expected = saddle()
    assert expected < -0.05
    for found in both_ways(theta, data, SquaredLoss()):
        assert found.relative_gradient < 1e-14
        assert found.smallest.value == pytest.approx(expected, rel=1e-9)
        assert "negative curvature: evidence against a local minimum" in str(found)
        assert found.rescaling_defect < 1e-14
    assert both_ways(theta, data, SquaredLoss())[1].smallest.residual < 1e-9


def test_few_products_give_a_bound_with_a_residual():
    theta, data = random_point(NETWORKS["2-D"], SquaredLoss(), 30)
    dense = gather_evidence(theta, data, SquaredLoss())
    size, last = dense.largest.value, np.inf
    for products in (1, 2, 5, 10):
        found = gather_evidence(
            theta, data, SquaredLoss(), dense_up_to=0, lanczos_products=products
        )
        assert found.products == products + found.checked
        assert dense.smallest.value < found.smallest.value < last
        assert found.largest.value <= size * (1 + 1e-12)
        assert found.smallest.residual > 1e-6 * size
        last = found.smallest.value


def test_lanczos_gives_the_ritz_values_of_the_krylov_space():
    start, diagonal = np.random.default_rng(0).normal(size=9), np.arange(9.0) ** 2 - 5
    for steps in (1, 2, 4):
        krylov = np.array([diagonal**n * start for n in range(steps)]).T
        q, _ = np.linalg.qr(krylov)
        values, vectors = np.linalg.eigh(q.T @ (diagonal[:, None] * q))
        low, high, vector, taken = _lanczos(lambda v: diagonal * v, start, steps)
        assert taken == steps
        assert abs(vector @ (q @ vectors[:, 0])) == pytest.approx(1)
        for end, i in ((low, 0), (high, -1)):
            u = q @ vectors[:, i]
            assert end.value == pytest.approx(values[i])
            assert end.residual == pytest.approx(np.linalg.norm(diagonal * u - values[i] * u))


@pytest.mark.parametrize(
    "diagonal",
    [[0.0] * 5, [2.0] * 5, [-1.0, 0, 0, 0, 3], [-3.0, -2, -1, -0.5, -0.1], [1.0], list(range(40))],
    ids=len,
)
def test_lanczos_finds_the_ends_and_stops_where_there_is_no_more(diagonal):
    start = np.random.default_rng(0).normal(size=len(diagonal))
    low, high, _, taken = _lanczos(lambda v: np.array(diagonal) * v, start, len(diagonal))
    assert taken <= len(set(diagonal)) + 1
    for end, expected in ((low, min(diagonal)), (high, max(diagonal))):
        assert end.value == pytest.approx(expected, abs=1e-12)
        assert end.residual <= 1e-12


def test_big_networks_get_about_a_hundred_products_and_few_backward_passes(monkeypatch):
    net = Network((1, 6, 6), [Conv(4), Dense(12), Dense(2)])
    assert net.size > evidence.DENSE_UP_TO
    theta, data = random_point(net, SquaredLoss(), 7)
    calls = {"hessian_product": 0, "gradient": 0, "risk_and_gradient": 0}

    def counting(name):
        original = getattr(Network, name)

        def counted(*args):
            calls[name] += 1
            return original(*args)

        monkeypatch.setattr(Network, name, counted)

    for name in calls:
        counting(name)
    found = gather_evidence(theta, data, SquaredLoss())
    assert found.products == calls["hessian_product"] <= 100
    assert calls["risk_and_gradient"] <= 17  # sixteen of them over half of the samples
    assert (found.rescalings, found.checked) == (16, 8)


# The rescalings


def finite_tangents(theta):
    """Return the unit tangents by central differences of `rescale`, as rows."""
    net, step, rows = theta.net, 1e-5, [np.zeros((0, theta.net.size))]
    for layer in net.kinked_layers:
        if all(isinstance(above, Pooling) for above in net.layers[layer:]):
            continue
        for t in range(net.shapes[layer][0]):
            ends = [rescale(theta, layer, 1 + s * step, t).vector for s in (1, -1)]
            tangent = (ends[0] - ends[1])[None] / (2 * step)
            rows.append(tangent / np.linalg.norm(tangent))
    return np.concatenate(rows)


@pytest.mark.parametrize("name", NETWORKS)
def test_tangents_are_the_derivatives_of_rescaling(name):
    theta, data = random_point(NETWORKS[name], SquaredLoss(), 7)
    tangents = rescaling_tangents(theta)
    expected = finite_tangents(theta)
    assert tangents.shape == expected.shape
    np.testing.assert_allclose(tangents.toarray(), expected, atol=1e-9)
    maps = {"2-D": 5, "pooling last": 3, "max pooling": 5, "max pooling last": 3, "one layer": 0}
    assert tangents.shape[0] == maps.get(name, len(expected))
    for tangent in tangents.toarray():
        ends = [Parameters(theta.net, theta.vector + s * 1e-4 * tangent) for s in (1, -1)]
        o, there = (theta.net.forward(point, data.x) for point in ends)
        assert abs(o - there).max() < 1e-9


def test_maps_without_weights_have_no_tangent_and_dependent_ones_count_once():
    net = Network((1, 3), [Dense(3), Dense(3), Dense(2)])
    theta, data = random_point(net, SquaredLoss(), 7)
    # Unit 0 of layer 1 takes in nothing and feeds unit 0 of layer 2 alone, which leads nowhere.
    theta.W[1].weights[0] = theta.W[2].weights[0] = theta.W[2].weights[:, 0] = 0
    theta.W[3].weights[:, 0] = theta.b[1][0] = theta.b[2][0] = 0
    for found in both_ways(theta, data, SquaredLoss()):
        assert (found.rescalings, found.independent) == (4, 4)
    theta.W[2].weights[0, 0] = 1
    assert np.linalg.matrix_rank(rescaling_tangents(theta).toarray()) == 5
    for found in both_ways(theta, data, SquaredLoss()):
        assert (found.rescalings, found.independent) == (6, 5)


def test_the_defect_is_that_of_the_tangents():
    theta, data = random_point(NETWORKS["2-D"], SquaredLoss(), 7)
    H, tangents = twin_hessian(theta, data, SquaredLoss()), rescaling_tangents(theta).toarray()
    for found in both_ways(theta, data, SquaredLoss()):
        size = max(abs(found.largest.value), abs(found.smallest.value))
        expected = max(np.linalg.norm(H @ t) for t in tangents) / size
        assert found.checked == 5
        assert found.rescaling_defect == pytest.approx(expected)


# The gradient


@pytest.mark.parametrize("loss", [SquaredLoss(), CrossEntropy()], ids=repr)
def test_the_gradient_is_measured_by_those_of_the_samples(loss):
    theta, data = random_point(Network((1, 3), [Dense(3), Dense(2)]), loss, 20)
    samples = [twin_gradient(theta, TrainingSet(data.x[[i]], data.y[[i]]), loss) for i in range(20)]
    rms = np.sqrt(np.mean([(g**2).sum() for g in samples]))
    quick = {"dense_up_to": 0, "lanczos_products": 1}
    found = [gather_evidence(theta, data, loss, seed=seed, **quick) for seed in range(20)]
    scales = np.array([one.gradient_scale for one in found])
    assert np.sqrt((scales**2).mean()) == pytest.approx(rms, rel=0.12)
    assert abs(scales / rms - 1).mean() < 0.25
    norm = np.linalg.norm(twin_gradient(theta, data, loss))
    assert found[0].gradient_norm == pytest.approx(norm)
    assert found[0].relative_gradient == pytest.approx(norm / scales[0])


def test_one_sample_measures_itself_and_a_perfect_fit_has_no_gradient():
    theta, data = random_point(NETWORKS["2-D"], SquaredLoss(), 1)
    assert gather_evidence(theta, data, SquaredLoss()).relative_gradient == pytest.approx(1)
    data = TrainingSet(data.x, theta.net.forward(theta, data.x))
    assert gather_evidence(theta, data, SquaredLoss()).relative_gradient == 0


def test_chunks_and_repetition_change_nothing():
    net = NETWORKS["2-D"]
    theta, data = random_point(net, CrossEntropy(), 3)
    before = theta.vector.copy()
    small = Parameters(Network(net.input_shape, net.layers, memory_budget=1), theta.vector)
    for dense_up_to in (0, 1000):
        first, again, chunked = (
            gather_evidence(point, data, CrossEntropy(), 3, dense_up_to, lanczos_products=9)
            for point in (theta, theta, small)
        )
        assert first == again
        agree(chunked, first)
        other = gather_evidence(theta, data, CrossEntropy(), 4, dense_up_to, lanczos_products=9)
        assert other != first
    assert np.array_equal(theta.vector, before)


def agree(found, expected):
    """Check that two pieces of evidence have the same numbers up to rounding."""
    size = max(abs(expected.largest.value), abs(expected.smallest.value))
    for name, value in expected.as_dict().items():
        other = found.as_dict()[name]
        if isinstance(value, dict):
            assert other["value"] == pytest.approx(value["value"], abs=1e-9 * size)
        elif isinstance(value, float):
            assert other == pytest.approx(value, rel=1e-9, abs=1e-12)
        else:
            assert other == value


# Where it says little


def test_the_margin_is_the_least_preactivation():
    for name in ("2-D", "1-D, leaky"):
        theta, data = random_point(NETWORKS[name], SquaredLoss(), 7)
        before = twin_of(theta).preactivations(data.x)
        least = min(float(abs(z.detach()).min()) for z in before.values())
        found = gather_evidence(theta, data, SquaredLoss())
        assert found.margin == pytest.approx(least, rel=1e-9)
        assert "not smooth" not in str(found)
    theta.W[3].weights[1] = theta.b[3][1] = 0
    found = gather_evidence(theta, data, SquaredLoss())
    assert found.margin == 0
    assert "  margin 0: the risk is not smooth" in str(found)
    theta, data = random_point(NETWORKS["one layer"], SquaredLoss(), 7)
    found = gather_evidence(theta, data, SquaredLoss())
    assert (found.margin, found.as_dict()["margin"]) == (np.inf, None)
    assert str(found).endswith("\n  no kinks")


@pytest.mark.parametrize("name", SMOOTH)
def test_evidence_without_kinks_speaks_of_none(name):
    theta, data = random_point(SMOOTH[name], SquaredLoss(), 7)
    assert rescaling_tangents(theta).shape == (0, theta.net.size)
    for found in both_ways(theta, data, SquaredLoss()):
        assert (found.rescalings, found.independent, found.checked) == (0, 0, 0)
        assert (found.margin, found.as_dict()["margin"]) == (np.inf, None)
        assert "no kinks" in str(found)
        for word in ("|z|", "rescaling", "inf", "not smooth"):
            assert word not in str(found)
    theta, data = random_point(
        Network((1, 4), [Conv(3), MaxPool(2), Dense(1)], Tanh()), SquaredLoss(), 7
    )
    o = np.tanh(twin_of(theta).preactivations(data.x)[1].detach().numpy()).reshape(-1, 2)
    least = float(abs(o[:, 0] - o[:, 1]).min()) / 2
    assert gather_evidence(theta, data, SquaredLoss()).margin == pytest.approx(least, rel=1e-9)


def test_the_margin_is_half_the_least_gap_of_max_poolings():
    net = Network((1, 4), [Conv(1, 1), MaxPool(2), Dense(1)])
    theta = Parameters(net, np.array([1.0, 4.0, 1.0, 1.0, 0.0]))
    x = np.array([[[1.0, 1.5, -9.0, -9.5]], [[3.0, 1.0, -7.0, 4.0]]])
    data = TrainingSet(x, np.zeros((2, 1)))
    assert gather_evidence(theta, data, SquaredLoss()).margin == 0.25  # two inactive have no gap
    data.x[0, 0, 0] = 1.5
    found = gather_evidence(theta, data, SquaredLoss())
    assert found.margin == 0
    assert "the risk is not smooth" in str(found)
    theta.W[1].weights[...] = theta.b[1][...] = -1  # all but two are inactive, in one window each
    assert gather_evidence(theta, data, SquaredLoss()).margin == 0.25


def test_evidence_never_passes_for_a_proof():
    theta, data, _ = saddle()
    minimum, targets = near_a_teacher(*STATIONARY["dense"][:4])
    shown = [
        *both_ways(theta, data, SquaredLoss()),
        *both_ways(minimum, targets, SquaredLoss()),
        gather_evidence(*random_point(NETWORKS["one layer"], CrossEntropy(), 7), CrossEntropy()),
    ]
    for found in shown:
        assert found.evidence_only
        assert "evidence, no proof" in str(found).splitlines()[0]
        for line in str(found).splitlines():
            assert "local minimum" not in line or "evidence" in line
            assert len(line) <= 100
        whole = json.loads(json.dumps(found.as_dict(), allow_nan=False))
        assert whole == found.as_dict()
        assert whole["evidence_only"] is True
        fields = {field.name for field in dataclasses.fields(found)}
        assert whole.keys() == fields | {"relative_gradient"}
    assert "smallest at most" in str(shown[1])
    assert "largest eigenvalue at least" in str(shown[1])
    assert "at most 1e-05, residual" in str(
        dataclasses.replace(shown[1], smallest=RitzValue(1e-5, 1e-2))
    )


def test_the_report_of_evidence_that_overflows_has_no_number_there():
    theta, data, _ = saddle()
    found = gather_evidence(theta, data, SquaredLoss())
    lost = RitzValue(-np.inf, np.nan)
    found = dataclasses.replace(found, smallest=lost, curvature_rounding=np.inf)
    whole = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert whole["smallest"] == {"value": None, "residual": None}
    assert whole["curvature_rounding"] is None
    assert whole["largest"]["value"] == found.largest.value


# Types and devices


@in_turn(
    pytest.mark.parametrize("name", [name for name in NETWORKS if name != "one layer"]),
    pytest.mark.parametrize("loss", [SquaredLoss(), CrossEntropy()], ids=repr),
    pytest.mark.parametrize("dense_up_to", [0, 1000]),  # without and with all of the Hessian
)
def test_evidence_on_a_device_is_that_of_numpy(name, loss, dense_up_to, device):
    theta, data = random_point(NETWORKS[name], loss, 4)
    options = {"dense_up_to": dense_up_to, "lanczos_products": 9}
    expected = gather_evidence(theta, data, loss, **options)
    agree(gather_evidence(theta.to(device), data, loss, **options), expected)


def test_single_precision_is_taken_for_the_numbers_that_it_holds():
    theta, data = random_point(NETWORKS["2-D"], SquaredLoss(), 7)
    single = theta.to(np, np.float32)
    expected = gather_evidence(single.to(np, np.float64), data, SquaredLoss())
    assert gather_evidence(single, data, SquaredLoss()) == expected
    assert gather_evidence(theta, data, SquaredLoss()) != expected


# What is refused


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_parameters_that_are_not_finite_are_refused(value):
    theta, data = random_point(NETWORKS["2-D"], SquaredLoss(), 7)
    theta.b[1][0] = value
    with pytest.raises(ValueError, match="evidence: expected finite"), np.errstate(all="ignore"):
        gather_evidence(theta, data, SquaredLoss())


def test_less_than_one_product_is_refused():
    theta, data = random_point(NETWORKS["2-D"], SquaredLoss(), 7)
    with pytest.raises(ValueError, match=r"lanczos_products: .*1 or more, got 0"):
        gather_evidence(theta, data, SquaredLoss(), lanczos_products=0)


def test_a_network_without_parameters_is_refused():
    net = Network((1, 4), [AveragePool(2)])
    data = TrainingSet(np.zeros((2, 1, 4)), np.zeros((2, 2)))
    with pytest.raises(ValueError, match="at least one parameter, got Network"):
        gather_evidence(net.zeros(), data, SquaredLoss())


def test_the_sign_of_a_curvature_is_only_told_beyond_its_rounding():
    """Softmax regression is convex; at separable data its Hessian cancels to nothing."""
    rng = np.random.default_rng(0)
    net = Network((1, 1, 2), [Dense(2)])
    x = rng.normal(size=(40, 1, 1, 2))
    y = np.eye(2)[(x[:, 0, 0, 0] > 0).astype(int)]
    theta, negative = net.zeros(), 0
    for height in (10.0, 20, 40, 100, 500, 3000):
        theta.W[1].weights[...] = np.outer([-height, height], [1, 0])
        found = gather_evidence(theta, TrainingSet(x, y), CrossEntropy())
        negative += found.smallest.value < 0
        assert "negative curvature" not in str(found)
        assert found.smallest.value >= -found.curvature_rounding
    assert negative  # seen without the rounding


def test_a_negative_curvature_is_still_called_one():
    theta, data = random_point(Network((1, 1, 3), [Dense(4), Dense(2)], Tanh()), samples=20, seed=0)
    found = gather_evidence(theta, data, SquaredLoss())
    assert found.smallest.value < 0
    assert found.curvature_rounding < 1e-10 * abs(found.smallest.value)
    assert "negative curvature: evidence against" in str(found)
