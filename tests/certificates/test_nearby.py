"""Near a certified point there is an exact local minimum, no farther than the bound."""

from fractions import Fraction

import numpy as np
import pytest
from certificate_problems import ENTROPY, SQUARED, gate, two_groups
from exact_fits import exact_fit, fractions_of, solve
from shared import in_turn

from tinyspur.certificates import certify_cell
from tinyspur.certificates.enclosures import Enclosure, exact
from tinyspur.certificates.nearby import _downwards, _stored_map, _upwards, through_inverse
from tinyspur.constructions.embedding import linear_minimum
from tinyspur.constructions.nontrivial import nontrivial_minimum
from tinyspur.constructions.piecewise_linear import Groups, spurious_pair
from tinyspur.datasets.samples import TrainingSet
from tinyspur.engine.activations import ReLU
from tinyspur.engine.losses import AbsoluteLoss, HuberLoss
from tinyspur.engine.network import Network
from tinyspur.engine.parameters import Parameters
from tinyspur.engine.passes import steps
from tinyspur.fitting.affine import fit_affine
from tinyspur.layers import AveragePool, Conv, Dense, MaxPool, Residual

LOSSES = [SQUARED, ENTROPY, AbsoluteLoss(), HuberLoss(0.2)]
over_losses = pytest.mark.parametrize("loss", LOSSES, ids=repr)


def soft(rng, shape, samples=60, outputs=3):
    """Return uniform inputs with random distributions as targets."""
    y = rng.dirichlet(np.ones(outputs), samples)
    return TrainingSet(rng.uniform(size=(samples, *shape)), y)


@pytest.mark.parametrize(("factor", "start"), [(1.8, 32), (3, 0)], ids=["Fahrenheit", "thirds"])
def test_features_that_depend_on_each_other_up_to_rounding_have_no_minimum_nearby(factor, start):
    """Degrees Celsius and Fahrenheit: the exact optimum has weights of 1e14."""
    rng = np.random.default_rng(0)
    celsius = rng.uniform(-10, 30, 40)
    x, y = np.column_stack([celsius, factor * celsius + start]), rng.normal(size=(40, 1))
    fit = fit_affine(x, y, SQUARED)
    theta = Parameters(Network((1, 1, 2), [Dense(1)]), np.append(fit.weights, fit.bias))
    certificate = certify_cell(theta, TrainingSet(x.reshape(40, 1, 1, 2), y), SQUARED)
    assert certificate.distance == np.inf
    assert certificate.bounds()["distance"] is None
    assert max(abs(float(row[0])) for row in exact_fit(x, y)) > 1e10


@over_losses
@pytest.mark.parametrize("depth", [2, 4])
def test_gates_are_near_an_exact_minimum(depth, loss):
    data = two_groups(np.random.default_rng(depth), loss)
    certificate = certify_cell(gate(data, loss, depth)[0], data, loss)
    assert certificate.classes == 2
    assert certificate.distance < 1e-10


@in_turn(
    over_losses,
    pytest.mark.parametrize(
        "layers",
        [
            [Conv(4), Conv(4), Conv(4), Dense(4), Dense(3)],
            [Conv(8), AveragePool(2), Conv(8), Conv(8), Dense(3)],
            [AveragePool(2), Conv(4), Conv(4), Conv(4), Dense(3)],
            [MaxPool(2), Conv(4), Conv(4), Conv(4), Dense(3)],
        ],
        ids=str,
    ),
)
def test_linear_minima_are_near_an_exact_one(layers, loss):
    data = soft(np.random.default_rng(0), (1, 4, 4))
    theta, _ = linear_minimum(Network((1, 4, 4), layers), data, loss)
    certificate = certify_cell(theta, data, loss)
    assert certificate.holds
    assert certificate.distance < min(1e-9, certificate.radius / 2)


@in_turn(over_losses, pytest.mark.parametrize("slope", [0, 0.1]))
def test_spurious_pairs_are_near_exact_minima(slope, loss):
    """The finer one has a class of a single sample, whose target is met."""
    rng = np.random.default_rng(1)
    data = soft(rng, (1, 1, 4))
    net = Network((1, 1, 4), [Dense(16), Dense(4), Dense(3)], ReLU(slope))
    groups = Groups.equal(data.x, rng.normal(size=4), 2)
    pair = spurious_pair(net, data, loss, groups)
    assert pair.certificates[1].classes > 2
    assert max(certificate.distance for certificate in pair.certificates) < 1e-8


@pytest.mark.parametrize("top", [[Dense(3)], [Dense(5), Dense(3)]], ids=str)
def test_a_nontrivial_minimum_is_near_an_exact_one_whichever_dense_layer_reads_it(top):
    data = soft(np.random.default_rng(2), (1, 3, 3))
    theta = nontrivial_minimum(Network((1, 3, 3), [Conv(3), Conv(3), *top]), data, SQUARED, 3)
    certificate = certify_cell(theta, data, SQUARED)
    assert certificate.classes == 4
    assert certificate.distance < certificate.radius / 1000


@over_losses
def test_constant_and_equal_pixels_and_samples_are_no_obstacle(loss):
    rng = np.random.default_rng(1)
    x = rng.uniform(size=(50, 1, 3, 3))
    x[:, 0, 0, 0] = 0.25  # constant
    x[:, 0, 2, 2] = 0  # black
    x[:, 0, 1, 1] = x[:, 0, 0, 1]  # a copy
    y = rng.dirichlet(np.ones(2), 50)
    x[:10], y[:5] = x[10:20], y[10:15]  # with the same targets and with others
    net = Network((1, 3, 3), [Conv(3), Conv(3), Conv(3), Dense(2)])
    theta, _ = linear_minimum(net, TrainingSet(x, y), loss)
    assert certify_cell(theta, TrainingSet(x, y), loss).distance < 1e-9


def test_classes_of_fewer_samples_than_features_are_fitted_sample_by_sample():
    """Some samples occur twice, with other targets: then the best output is fitted."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(12, 6))
    x[:, 0] = np.repeat([-1, 1], 6) * (1 + abs(x[:, 0]))
    y = rng.normal(size=(15, 2))
    for twice in (np.concatenate([x, x[:3]]), np.concatenate([x[:3], x])):
        data = TrainingSet(twice.reshape(15, 1, 1, 6), y)
        for loss in (SQUARED, HuberLoss(5.0)):
            theta, _ = gate(data, loss, 2)
            assert certify_cell(theta, data, loss).distance < 1e-9


def test_layers_that_see_patterns_of_their_own_below_and_above_are_changed_together():
    """[1, sigma(x)] -> sigma -> output: both factors of U W H differ between the classes."""
    rng = np.random.default_rng(4)
    x = np.repeat([-1.0, 1.0], 20) * (1 + rng.uniform(size=40))
    net = Network((1, 1, 1), [Dense(2), Dense(3), Dense(1)])
    theta = net.zeros()
    theta.W[1].weights[...], theta.b[1][...] = [[1], [-1]], [0, 0]
    theta.W[2].weights[...], theta.b[2][...] = [[1, 0], [0, 1], [1, -1]], [1, 2, 0.5]
    theta.W[3].weights[...], theta.b[3][...] = [[1, -2, 0.7]], [0.3]
    residuals = rng.normal(size=40)
    for s in (x < 0, x > 0):
        hats = np.column_stack([x[s], np.ones(20)])
        residuals[s] -= hats @ np.linalg.lstsq(hats, residuals[s])[0]
    x = x.reshape(40, 1, 1, 1)
    data = TrainingSet(x, net.forward(theta, x) - residuals[:, None])
    certificate = certify_cell(theta, data, SQUARED)
    assert certificate.classes == 2
    assert certificate.distance < 1e-12


LAYERS = {
    "dense": [Dense(3), Dense(4), Dense(2)],
    "convolutions": [Conv(2), AveragePool(2), Conv(3), Dense(2)],
    "block": [AveragePool(2), Dense(3), Residual([Dense(2), Dense(3)]), Dense(2)],
    "sums of powers of two": [Dense(3), Dense(4), Dense(2)],
    "relays": [Dense(6), Dense(6), Dense(6)],
    "relays by powers of two": [Dense(6), Dense(6), Dense(6)],
}


@pytest.mark.parametrize("slope", [0.0, 0.3])
@pytest.mark.parametrize("kind", LAYERS)
def test_what_a_pattern_makes_of_the_layers_is_enclosed(kind, slope):
    rng, net = np.random.default_rng(3), Network((1, 6), LAYERS[kind], ReLU(slope))
    theta = Parameters(net, rng.normal(size=net.size) * 10.0 ** rng.integers(-3, 4, net.size))
    for layer in net.slots if "relays" in kind else ():  # single products, or exact ones
        scales = rng.normal(size=6) if kind == "relays" else 2.0 ** rng.integers(-3, 4, 6)
        theta.W[layer].weights[:] = np.diag(scales)[rng.permutation(6)]
    if "sums" in kind:
        theta.W[2].weights[:] = 2.0 ** rng.integers(-3, 4, (4, 3))
    trace, first = list(steps(theta, rng.normal(size=(6, 1)))), net.leading_poolings
    x = rng.normal(size=(3 if first else 6, 4))
    ones = np.array([[1.0, 0, 0.3, 1.0]])
    up, constants, matrices = [in_fractions(x)], [0 * in_fractions(x[:, :1])], []
    for step in trace[first:]:
        W, a = in_fractions(step.matrix.toarray()), 1
        b = 0 if step.b is None else in_fractions(step.W.spread(step.b)[:, None])
        if step.activation is not None:
            a = in_fractions(step.slopes)
        up.append(a * (W @ up[-1] + b * in_fractions(ones)))
        constants.append(a * (W @ constants[-1] + b))
        matrices.append((W, a * in_fractions(np.ones((len(W), 1)))))
    found = _stored_map(theta, trace)
    assert_encloses(found[:, -1:], constants[-1])
    U, below = in_fractions(np.eye(2 if net.shapes[-1][0] == 2 else 6)), len(matrices)
    for W, a in reversed(matrices):
        U, below = U * a.T, below - 1
        assert_encloses(_downwards(trace, first + below + 1), U)
        U = U @ W
    assert_encloses(found[:, :-1], U)
    basis = Enclosure(np.vstack([x, ones]), np.vstack([1e-18 * abs(x), 0 * ones]))
    for n in range(len(matrices)):
        assert_encloses(_upwards(theta, trace, basis, first + n + 1)[:-1], up[n])


in_fractions = np.vectorize(Fraction, otypes=[object])


def assert_encloses(found, values):
    off = abs(in_fractions(found.middle) - values)
    assert (off <= in_fractions(found.radius)).all()
    assert (found.radius <= 1e-12 * (1 + abs(found.middle).max())).all()


def test_a_bound_through_a_left_inverse_is_one():
    rng = np.random.default_rng(4)
    M, D = rng.normal(size=(7, 3)), rng.normal(size=(2, 3))
    M[2] = 0
    bound = through_inverse(exact(D), Enclosure(M, 1e-9 * abs(M)))
    assert bound.shape == (2, 7)
    for _ in range(20):
        near = M * (1 + 1e-9 * rng.uniform(-1, 1, M.shape))
        Q = np.linalg.pinv(M[[0, 1, 3, 4, 5, 6]])  # of the midpoint: as it is corrected
        change = D @ np.linalg.inv(Q @ near[[0, 1, 3, 4, 5, 6]]) @ Q
        assert (abs(change - bound.middle[:, [0, 1, 3, 4, 5, 6]]) <= bound.radius.max()).all()
    assert not bound.radius[:, 2].any()
    M[:, 2] = M[:, 1]
    assert through_inverse(exact(D), exact(M)) is None
    assert through_inverse(exact(D), exact(M[:2])) is None


@pytest.mark.parametrize("scale", [1.0, 2.0**-500, 2.0**500])
def test_a_bound_through_a_sparse_inverse_holds_for_all_nearby_matrices(scale):
    """In rationals, for a matrix of few entries as layers that only relay have it."""
    rng = np.random.default_rng(5)
    M = np.zeros((12, 10))
    M[rng.permutation(12)[:10], np.arange(10)] = scale * rng.uniform(1, 2, 10)
    used = M.any(axis=1)
    M[np.flatnonzero(used)[:3], 4] += scale / 8
    D, radius = rng.normal(size=(2, 10)), 1e-9 * abs(M)
    bound = through_inverse(exact(D), Enclosure(M, radius))
    rows = np.flatnonzero(used)
    for sign in (-1, 1):
        near = (M + sign * radius)[rows]  # square: the change is D times its inverse
        for n, change in enumerate(solve(fractions_of(near.T), fractions_of(D.T))):
            for k, exactly in enumerate(change):
                middle, off = bound.middle[k, rows[n]], bound.radius[k, rows[n]]
                assert abs(exactly - Fraction(middle)) <= Fraction(off)
    assert bound.radius.max() < 1e-6 * abs(bound.middle).max()
    assert not bound.middle[:, ~used].any()


def test_a_bound_through_an_inverse_holds_where_its_share_underflows():
    M = 100 * np.eye(6) + 1  # of entries enough that it is not taken to be sparse
    bound = through_inverse(exact(np.full((1, 6), 1e-323)), Enclosure(M, M / 16) * 2.0**-540)
    for near in (15 / 16 * M, 17 / 16 * M):
        change = 1e-323 * 2.0**540 * np.linalg.inv(near).sum(axis=0)
        assert (abs(change - bound.middle) <= bound.radius).all()


def test_a_bound_through_a_sparse_inverse_that_overflows_says_that_nothing_is_known():
    bound = through_inverse(exact(np.array([[1e300, 1.0]])), exact(np.diag([1e-300, 1.0])))
    assert (bound.middle == [0, 1]).all()
    assert bound.radius[0, 0] == np.inf > bound.radius[0, 1]


@pytest.mark.parametrize("slope", [0.25, 4.0])
def test_an_output_on_the_left_of_its_kink_needs_a_change_of_its_bias_by_its_slope(slope):
    """The outputs, slope b = -slope, are off their mean by 1e-6: b has to move by 1e-6 / slope."""
    net = Network((1, 1), [Dense(1), Dense(1, activation=ReLU(slope))])
    theta = Parameters(net, np.array([1.0, -9, 1, -1]))
    data = TrainingSet([[-1.0], [1]], [-1 - slope - 1e-6, 1 - slope - 1e-6])
    found = certify_cell(theta, data, SQUARED)
    assert 1e-6 / slope * (1 - 1e-9) < found.distance < 1e-6 / slope * (1 + 1e-6)
    lower = theta.copy()
    lower.b[2] -= 1e-6 / slope
    fall = net.risk(theta, data, SQUARED) - net.risk(lower, data, SQUARED)
    assert 0.4e-12 < fall <= found.delta
