"""Losses of users: subclasses count for what they return, and what returns no arrays is refused."""

import numpy as np
import pytest

import tinyspur as ts

RNG = np.random.default_rng(0)
X = RNG.uniform(size=(30, 1, 2, 2))
Y = RNG.dirichlet(np.ones(2), 30)
DATA = ts.TrainingSet(X, Y)
NET = ts.Network((1, 2, 2), [ts.Conv(4), ts.Conv(4), ts.Dense(12), ts.Dense(2)])
THETA = ts.linear_minimum(NET, DATA, ts.SquaredLoss())[0]
GROUPS = ts.Groups.equal(X, np.ones(4), 2)


class Weighted(ts.SquaredLoss):
    """Samples count more whose first target is larger."""

    name = "weighted"

    def value(self, o, y):
        return (1 + 9 * y[0]) * super().value(o, y)

    def gradient(self, o, y):
        return (1 + 9 * y[0]) * (o - y)

    def curvature(self, o, y, d):
        return (1 + 9 * y[0]) * d


class Pinned(ts.CrossEntropy):
    """The sum of outputs counts, too."""

    name = "pinned"

    def value(self, o, y):
        return super().value(o, y) + (o.sum(axis=0) - 1) ** 2 / 2

    def gradient(self, o, y):
        return super().gradient(o, y) + o.sum(axis=0) - 1

    def curvature(self, o, y, d):
        return super().curvature(o, y, d) + d.sum(axis=0)


class Steeper(ts.HuberLoss):
    """Three times the Huber loss."""

    name = "steeper"

    def value(self, o, y):
        return 3 * super().value(o, y)

    def gradient(self, o, y):
        return 3 * super().gradient(o, y)

    def curvature(self, o, y, d):
        return 3 * super().curvature(o, y, d)


@pytest.mark.parametrize("loss", [Weighted(), Pinned(), Steeper(0.1)], ids=lambda loss: loss.name)
def test_a_subclass_is_fitted_by_its_own_gradient(loss):
    x = X.reshape(30, 4)
    fit = ts.fit_affine(x, Y, loss)
    g = loss.gradient(fit.weights @ x.T + fit.bias[:, None], Y.T)
    assert abs(g).max() > 1e-2
    assert abs(g @ np.column_stack([x, np.ones(30)])).max() < 1e-9
    theta = ts.linear_minimum(NET, DATA, loss)[0]
    found = ts.certify(theta, DATA, loss)
    assert found.proves == "P2"
    assert repr(loss) in found.assumes
    assert found.assumes in found.words


class Pinball(ts.AbsoluteLoss):
    """What is too high counts three times as much."""

    name = "pinball"

    def value(self, o, y):
        return np.where(o > y, 3 * (o - y), y - o).sum(axis=0)


def test_a_loss_with_kinks_that_no_linear_program_is_known_for_is_not_fitted():
    with pytest.raises(ts.AssumptionError, match=r"^fit: expected AbsoluteLoss\(\) or"):
        ts.fit_affine(X.reshape(30, 4), Y, Pinball())


def test_the_nontrivial_minimum_is_for_the_squared_loss_itself():
    with pytest.raises(ts.AssumptionError, match="expected the squared loss"):
        ts.nontrivial_minimum(NET, DATA, Weighted())


class Shifted(ts.SquaredLoss):
    """Half the squared distance, less 10."""

    name = "shifted"

    def value(self, o, y):
        return super().value(o, y) - 10


def test_a_negative_risk_is_no_sign_of_a_global_minimum():
    net = ts.Network((1, 2, 2), [ts.Dense(2), ts.Dense(2)])
    found = ts.settle(ts.kaiming_start(net, 0), DATA, Shifted(), 5)
    assert found.risk < 0
    assert "global" not in found.reason


def wrong(name, change):
    """Return a loss one of whose functions returns something else."""

    def changed(self, *arguments):
        return change(getattr(ts.SquaredLoss, name)(self, *arguments))

    return type("Wrong", (ts.SquaredLoss,), {"name": "wrong", name: changed})()


CALLS = {
    "fit_affine": lambda loss: ts.fit_affine(X.reshape(30, 4), Y, loss),
    "linear_minimum": lambda loss: ts.linear_minimum(NET, DATA, loss),
    "gated_minimum": lambda loss: ts.gated_minimum(NET, DATA, loss, GROUPS),
    "certify": lambda loss: ts.certify(THETA, DATA, loss),
    "find_escape": lambda loss: ts.find_escape(THETA, DATA, loss, 0.1, 1, 1),
    "find_descent_direction": lambda loss: ts.find_descent_direction(THETA, DATA, loss),
    "gather_evidence": lambda loss: ts.gather_evidence(THETA, DATA, loss),
    "settle": lambda loss: ts.settle(THETA, DATA, loss, 1),
    "train": lambda loss: ts.train(THETA, DATA, loss, 1),
}
RETURNED = {
    "list": (lambda found: found.tolist(), "a list"),
    "number": (lambda found: float(found.sum()), "a float"),
    "None": (lambda found: None, "a NoneType"),
    "fewer": (lambda found: found[..., :1], r"\((2, )?1,?\)"),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("returned", RETURNED.values(), ids=RETURNED)
@pytest.mark.parametrize("name", ["value", "gradient", "curvature"])
def test_what_returns_no_array_of_the_shape_is_refused_in_one_sentence(name, returned, call):
    change, got = returned
    shape = r"\(8,\)" if name == "value" else r"\(2, 8\)"  # of a few samples
    said = rf"^loss: expected {name}\(o, y(, d)?\) to return an array {shape}, got {got}$"
    with pytest.raises(ValueError, match=said):
        call(wrong(name, change))


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_loss_without_a_curvature_is_refused_in_one_sentence(call):
    class Half:
        name = "half"
        value, gradient = ts.SquaredLoss.value, ts.SquaredLoss.gradient
        check_targets = ts.SquaredLoss.check_targets

        def __repr__(self):
            return "Half()"

    said = "^loss: expected name, value, gradient, curvature, got Half.. without curvature$"
    with pytest.raises(ValueError, match=said):
        call(Half())
