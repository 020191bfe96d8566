"""Descent lowers the risk, never ends above its start, and leaves its arguments alone."""

import os
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.optimize
import strict_device
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shared import in_turn, random_theta, twin_gradient, twin_of
from torch_twin import risk

from tinyspur import datasets
from tinyspur.constructions.embedding import linear_minimum
from tinyspur.datasets.samples import TrainingSet
from tinyspur.engine.activations import GELU, ReLU, Tanh
from tinyspur.engine.losses import CrossEntropy, SquaredLoss, one_hot
from tinyspur.engine.network import Network
from tinyspur.engine.user_activations import SmoothActivation
from tinyspur.fitting.affine import fit_affine
from tinyspur.fitting.training import (
    Adam,
    descend,
    finished_epochs,
    kaiming_start,
    polish,
    train,
)
from tinyspur.layers import AveragePool, Conv, Dense, MaxPool

NETWORKS = {
    "convolutions": Network((1, 4, 4), [Conv(3), Conv(4), Dense(3)]),
    "pooling": Network((2, 4, 4), [Conv(3), AveragePool(2), Dense(3)]),
    "max pooling": Network((1, 4, 8), [Conv(3), MaxPool(2), Conv(2), MaxPool(2), Dense(3)]),
    "leaky": Network((1, 3, 3), [Dense(6), Dense(3)], ReLU(0.1)),
    "one-dimensional": Network((1, 6), [Conv(2), Dense(3)]),
}
LOSSES = [SquaredLoss(), CrossEntropy()]
SMOOTHING = 0.1


def training_set(shape, samples=50, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=samples)
    return TrainingSet(rng.random((samples, *shape)), one_hot(labels, classes, SMOOTHING))


@settings(max_examples=20, deadline=None)
@given(
    name=st.sampled_from(list(NETWORKS)),
    loss=st.sampled_from(LOSSES),
    seed=st.integers(0, 1000),
    scale=st.sampled_from([0.0, 1e-6, 0.1, 1.0, 30.0]),
    dtype=st.sampled_from([np.float64, np.float32]),
    iterations=st.integers(1, 6),
)
def test_the_risk_never_ends_above_its_start(name, loss, seed, scale, dtype, iterations):
    net = NETWORKS[name]
    data = training_set(net.input_shape, seed=seed)
    theta = random_theta(net, seed, scale).to(np, dtype)
    reached = descend(theta, data, loss, iterations)
    assert reached.vector.dtype == dtype
    assert np.isfinite(reached.vector).all()
    assert net.risk(reached, data, loss) <= net.risk(theta, data, loss)


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
@pytest.mark.parametrize("net", NETWORKS.values(), ids=NETWORKS)
def test_the_risk_falls_where_the_gradient_is_not_zero(net, loss):
    data, theta = training_set(net.input_shape), random_theta(net, scale=0.5)
    before, gradient = net.risk_and_gradient(theta, data, loss)
    assert abs(gradient.vector).max() > 1e-3
    one = net.risk(descend(theta, data, loss, 1), data, loss)
    many = net.risk(descend(theta, data, loss, 30), data, loss)
    assert many < one < before


def test_the_risk_stays_at_a_minimum():
    net = Network((1, 4, 4), [Conv(3), Conv(4), Conv(4), Dense(3)])
    data, loss = training_set((1, 4, 4)), SquaredLoss()
    theta, _ = linear_minimum(net, data, loss)
    before = net.risk(theta, data, loss)
    after = net.risk(descend(theta, data, loss, 5), data, loss)
    assert before - 1e-12 <= after <= before


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_progress_gets_falling_risks_that_end_at_the_result(loss):
    net = NETWORKS["convolutions"]
    data, theta, risks = training_set(net.input_shape), random_theta(net, scale=0.5), []
    reached = descend(theta, data, loss, 15, risks.append)
    assert 5 <= len(risks) <= 15
    assert all(isinstance(risk, float) for risk in risks)
    assert net.risk(theta, data, loss) > risks[0]
    assert (np.diff(risks) < 0).all()
    assert risks[-1] == pytest.approx(net.risk(reached, data, loss), rel=1e-14)


def test_one_iteration_reports_once():
    net, risks = NETWORKS["leaky"], []
    descend(
        random_theta(net, scale=0.5), training_set(net.input_shape), SquaredLoss(), 1, risks.append
    )
    assert len(risks) == 1


def test_progress_does_not_change_the_result():
    net = NETWORKS["convolutions"]
    data, theta = training_set(net.input_shape), random_theta(net, scale=0.5)
    quiet, loud = (descend(theta, data, SquaredLoss(), 8, show) for show in (None, lambda _: None))
    assert quiet.vector.tobytes() == loud.vector.tobytes()


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
@pytest.mark.parametrize("shape", [(1, 3, 3), (2, 4), (3, 2, 2)], ids=str)
def test_a_dense_layer_reaches_the_optimal_affine_fit(loss, shape):
    data = training_set(shape, samples=80)
    net = Network(shape, [Dense(3)])
    best = fit_affine(data.x.reshape(len(data), -1), data.y, loss)
    reached = descend(random_theta(net, scale=1.0), data, loss, 400)
    risk = net.risk(reached, data, loss)
    assert net.risk(random_theta(net, scale=1.0), data, loss) > 1.1 * best.risk
    assert risk == pytest.approx(best.risk, rel=1e-8)
    assert risk >= best.risk * (1 - 1e-12)


def test_the_least_squares_weights_are_those_of_numpy():
    data = training_set((1, 2, 2), samples=80)
    features = np.hstack([data.x.reshape(80, -1), np.ones((80, 1))])
    expected = np.linalg.lstsq(features, data.y, rcond=None)[0]
    reached = descend(Network((1, 2, 2), [Dense(3)]).zeros(), data, SquaredLoss(), 400)
    np.testing.assert_allclose(reached.W[1].weights, expected[:-1].T, atol=1e-5)
    np.testing.assert_allclose(reached.b[1], expected[-1], atol=1e-5)


@pytest.mark.parametrize("iterations", [0, -1, -12])
def test_fewer_than_one_iteration_is_refused(iterations):
    net = NETWORKS["leaky"]
    with pytest.raises(ValueError, match=f"iterations: .* 1 or more, got {iterations}"):
        descend(
            random_theta(net, scale=0.5), training_set(net.input_shape), SquaredLoss(), iterations
        )


def test_data_of_another_shape_are_refused():
    net = NETWORKS["leaky"]
    with pytest.raises(ValueError, match="inputs"):
        descend(random_theta(net, scale=0.5), training_set((1, 4, 4)), SquaredLoss(), 1)
    with pytest.raises(ValueError, match="targets"):
        descend(random_theta(net, scale=0.5), training_set((1, 3, 3), classes=4), SquaredLoss(), 1)


def test_targets_that_are_no_distributions_are_refused():
    net, data = NETWORKS["leaky"], training_set((1, 3, 3))
    with pytest.raises(ValueError, match="sum to 1"):
        descend(random_theta(net, scale=0.5), TrainingSet(data.x, 2 * data.y), CrossEntropy(), 1)


@pytest.mark.parametrize("scale", [0.5, 0.0])
def test_arguments_are_left_as_they_were(scale):
    net = NETWORKS["convolutions"]
    data, theta = training_set(net.input_shape), random_theta(net, scale=scale)
    before = [a.tobytes() for a in (theta.vector, data.x, data.y)]
    reached = descend(theta, data, SquaredLoss(), 5)
    reached.vector[:] = 7
    assert [a.tobytes() for a in (theta.vector, data.x, data.y)] == before


def test_the_same_start_gives_the_same_bytes():
    net = NETWORKS["convolutions"]
    data = training_set(net.input_shape)
    first, second = (
        descend(random_theta(net, scale=0.5), data, SquaredLoss(), 6) for _ in range(2)
    )
    assert first.vector.tobytes() == second.vector.tobytes()


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_the_descent_stops_where_the_gradient_reaches_its_goal(loss, dtype):
    net = NETWORKS["convolutions"]
    data, theta, steps = (
        training_set(net.input_shape),
        random_theta(net, scale=0.5).to(np, dtype),
        [],
    )
    largest = abs(net.gradient(theta, data, loss).vector).max()
    goal = 0.05 * float(largest)
    reached = descend(theta, data, loss, 200, steps.append, goal)
    assert abs(net.gradient(reached, data, loss).vector).max() <= goal < largest
    before = descend(theta, data, loss, len(steps) - 1)
    assert abs(net.gradient(before, data, loss).vector).max() > goal
    assert len(steps) < 100
    assert net.risk(reached, data, loss) < net.risk(theta, data, loss)
    assert reached.vector.dtype == dtype


def test_a_lower_point_on_the_way_does_not_replace_the_one_that_reaches_the_goal(monkeypatch):
    net, loss = NETWORKS["convolutions"], SquaredLoss()
    data, theta = training_set(net.input_shape), random_theta(net, scale=0.5)
    lower = descend(theta, data, loss, 50)
    last = descend(theta, data, loss, 3)

    def minimize(fun, x, **_):
        fun(lower.vector)
        return SimpleNamespace(x=last.vector, jac=fun(last.vector)[1])

    monkeypatch.setattr(scipy.optimize, "minimize", minimize)
    goal = float(abs(net.gradient(last, data, loss).vector).max())
    for factor, expected in ((1, last), (0.9, lower)):
        reached = descend(theta, data, loss, 50, None, factor * goal)
        assert reached.vector.tobytes() == expected.vector.tobytes()


def test_a_goal_that_holds_at_the_start_leaves_the_point():
    net, loss = NETWORKS["convolutions"], SquaredLoss()
    data, theta, steps = training_set(net.input_shape), random_theta(net, scale=0.5), []
    goal = 1.01 * float(abs(net.gradient(theta, data, loss).vector).max())
    reached = descend(theta, data, loss, 9, steps.append, goal)
    assert reached.vector.tobytes() == theta.vector.tobytes()
    assert steps == []


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")
@pytest.mark.parametrize("number", [1e200, np.nan])
def test_a_start_without_a_finite_risk_is_refused(number):
    net, loss = NETWORKS["convolutions"], SquaredLoss()
    data, theta = training_set(net.input_shape), net.zeros()
    theta.vector[...] = number
    with pytest.raises(ValueError, match="descent: expected a finite risk at theta, got "):
        descend(theta, data, loss, 2)
    with pytest.raises(ValueError, match="polish: expected finite risk and gradient, got "):
        polish(theta, data, loss, 2)


@pytest.mark.parametrize("goal", [-1e-3, np.nan])
def test_a_goal_below_zero_is_refused(goal):
    net = NETWORKS["leaky"]
    with pytest.raises(ValueError, match="expected a gradient goal >= 0"):
        descend(
            random_theta(net, scale=0.5),
            training_set(net.input_shape),
            SquaredLoss(),
            1,
            None,
            goal,
        )


def test_the_polish_says_what_it_reached_and_why_it_stopped():
    data, loss = training_set((1, 3, 3), samples=80), SquaredLoss()
    net = Network((1, 3, 3), [Dense(3)])
    theta, steps = random_theta(net, scale=1.0), []
    largest = abs(net.gradient(theta, data, loss).vector).max()
    for iterations, stopped in ((400, "reached"), (3, "not reached in so many steps")):
        steps.clear()
        result = polish(theta, data, loss, iterations, 1e-6, steps.append)
        found = net.gradient(result.theta, data, loss).vector
        assert result.stopped == stopped
        assert result.gradient == abs(found).max()
        assert (result.gradient <= result.goal) == (stopped == "reached")
        assert result.goal == pytest.approx(1e-6 * largest)
        assert result.iterations == len(steps) <= iterations
        assert result.risk_before == net.risk(theta, data, loss) > result.risk
        assert result.risk == net.risk(result.theta, data, loss)
        assert f"{result.risk:.9g} after {len(steps)} L-BFGS steps" in str(result)
        assert f"{result.gradient:.3g}, goal {result.goal:.3g}: {stopped}" in str(result)
    none = polish(theta, data, loss, 0)
    assert none.theta.vector.tobytes() == theta.vector.tobytes()
    assert (none.iterations, none.risk, none.gradient) == (0, none.risk_before, largest)


def test_a_network_that_can_fit_the_images_is_polished_to_a_gradient_of_almost_nothing():
    found = datasets.bundled().subset(8, 0)
    x = found.pixels().reshape(8, 1, 7, 4, 7, 4).mean(axis=(3, 5))
    data, loss = TrainingSet(x, one_hot(found.labels, 10)), SquaredLoss()
    net = Network((1, 7, 7), [Conv(4), Conv(6), Dense(10)])
    trained = train(kaiming_start(net, 0), data, loss, 20, 5)
    result = polish(trained, data, loss, 1000)
    assert result.stopped == "reached"
    ends = [abs(twin_gradient(point, data)).max() for point in (trained, result.theta)]
    assert ends[1] <= 1e-6 * ends[0]
    assert result.risk < 1e-9 * result.risk_before


@pytest.mark.parametrize("seed", [2, 5])
def test_the_polish_says_that_no_lower_point_was_found_at_a_kink(seed):
    net, rng = Network((1, 2), [Dense(2), Dense(1)]), np.random.default_rng(seed)
    data = TrainingSet(rng.standard_normal((20, 1, 2)), rng.standard_normal((20, 1)))
    result = polish(kaiming_start(net, seed), data, SquaredLoss(), 3000)
    assert result.stopped == "not reached, no lower point was found, as at a kink"
    assert result.iterations < 3000
    assert result.gradient > 1e3 * result.goal
    z = data.x[:, 0] @ result.theta.W[1].weights.T + result.theta.b[1]
    assert abs(z).min() < 1e-12


# Training: Kaiming start, Adam, checkpoints


def training_problem(samples=50, seed=0, pooling=AveragePool):
    rng = np.random.default_rng(seed)
    net = Network((2, 6, 6), [Conv(3), pooling(2), Conv(4), Dense(5), Dense(3)])
    x = rng.standard_normal((samples, 2, 6, 6))
    return net, TrainingSet(x, one_hot(rng.integers(3, size=samples), 3))


def test_the_kaiming_start_has_the_variance_of_pytorch():
    net = Network((8, 4, 4), [Conv(64, 5), Dense(400), Dense(10)], ReLU(0.2))
    theta = kaiming_start(net, seed=1)
    for layer in theta.b:
        weights = theta.W[layer].weights
        twin = torch.empty(weights.shape, dtype=torch.float64)
        torch.nn.init.kaiming_normal_(
            twin, a=0.2, nonlinearity="leaky_relu", generator=torch.Generator().manual_seed(0)
        )
        assert weights.std() == pytest.approx(float(twin.std()), rel=0.05)
        assert abs(weights.mean()) < 5 * weights.std() / weights.size**0.5
        assert not theta.b[layer].any()
    assert (kaiming_start(net, seed=1).vector == theta.vector).all()
    assert (kaiming_start(net, seed=2).vector != theta.vector).any()
    plain, smooth = (Network(net.input_shape, net.layers, sigma) for sigma in (ReLU(), Tanh()))
    assert (kaiming_start(smooth).vector == kaiming_start(plain).vector).all()


@in_turn(
    pytest.mark.parametrize("loss", [SquaredLoss(), CrossEntropy()], ids=lambda loss: loss.name),
    pytest.mark.parametrize("weight_decay", [0.0, 5e-2]),
    pytest.mark.parametrize("pooling", [AveragePool, MaxPool]),
    draws=2,
)
def test_every_step_of_adam_is_that_of_pytorch(loss, weight_decay, pooling):
    net, data = training_problem(pooling=pooling)
    theta = kaiming_start(net)
    twin = twin_of(theta)
    parameters = list(twin.parameters())
    adam = Adam(learning_rate=3e-3, weight_decay=weight_decay)
    theirs = torch.optim.Adam(parameters, lr=3e-3, weight_decay=weight_decay)
    memory = [np.zeros_like(theta.vector), np.zeros_like(theta.vector)]
    x, y = torch.as_tensor(data.x), torch.as_tensor(data.y)
    for number in range(1, 13):
        rows = slice((number % 5) * 10, (number % 5) * 10 + 10)
        batch = TrainingSet(data.x[rows], data.y[rows])
        adam.step(theta, net.gradient(theta, batch, loss), memory, number)
        theirs.zero_grad()
        risk(twin(x[rows]), y[rows], loss.name).backward()
        theirs.step()
        for key, parameter in twin.arrays().items():
            values = parameter.detach().numpy()
            assert abs(values - theta.arrays()[key]).max() <= 1e-9 * abs(values).max(), number


def test_training_is_adam_over_the_batches_of_each_epoch():
    net, data = training_problem()
    start = kaiming_start(net)
    before = start.vector.copy()
    trained = train(start, data, CrossEntropy(), epochs=2, batch_size=16, seed=7)
    assert (start.vector == before).all()
    by_hand = start.copy()
    memory = [np.zeros_like(before), np.zeros_like(before)]
    number = 0
    for epoch in range(2):
        order = np.random.default_rng([7, epoch]).permutation(50)
        assert sorted(order) == list(range(50))
        for rows in np.split(order, [16, 32, 48]):
            rows.sort()
            number += 1
            batch = TrainingSet(data.x[rows], data.y[rows])
            Adam().step(by_hand, net.gradient(by_hand, batch, CrossEntropy()), memory, number)
    assert (trained.vector == by_hand.vector).all()
    assert net.risk(trained, data, CrossEntropy()) < net.risk(start, data, CrossEntropy())


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_a_whole_training_is_that_of_pytorch(loss):
    net, data = training_problem()
    start = kaiming_start(net)
    trained = train(start, data, loss, 6, 16, Adam(2e-3, 1e-2), seed=4)
    twin = twin_of(start)
    theirs = torch.optim.Adam(twin.parameters(), lr=2e-3, weight_decay=1e-2)
    x, y = torch.as_tensor(data.x), torch.as_tensor(data.y)
    for epoch in range(6):
        order = np.random.default_rng([4, epoch]).permutation(50)
        for rows in torch.as_tensor(order).split(16):
            theirs.zero_grad()
            risk(twin(x[rows]), y[rows], loss.name).backward()
            theirs.step()
    for key, parameter in twin.arrays().items():
        values = parameter.detach().numpy()
        assert abs(values - trained.arrays()[key]).max() <= 1e-9 * abs(values).max(), key
    assert abs(trained.vector - start.vector).max() > 0.01


def test_progress_of_a_training_counts_images_and_averages_their_losses():
    net, data = training_problem()
    calls = []
    shown = train(
        kaiming_start(net), data, SquaredLoss(), 2, 16, seed=7, progress=lambda *c: calls.append(c)
    )
    quiet = train(kaiming_start(net), data, SquaredLoss(), 2, 16, seed=7)
    assert (shown.vector == quiet.vector).all()
    assert [call[:2] for call in calls] == [(e, n) for e in (1, 2) for n in (16, 32, 48, 50)]
    first = np.random.default_rng([7, 0]).permutation(50)[:16]
    batch = TrainingSet(data.x[first], data.y[first])
    assert calls[0][2] == pytest.approx(net.risk(kaiming_start(net), batch, SquaredLoss()))
    calls.clear()
    adam = Adam(learning_rate=1e-300)  # the parameters stay, so that the mean is the risk
    train(kaiming_start(net), data, SquaredLoss(), 1, 16, adam, progress=lambda *c: calls.append(c))
    assert calls[-1][2] == pytest.approx(net.risk(kaiming_start(net), data, SquaredLoss()))


def test_a_training_on_a_device_is_that_of_numpy(tmp_path):
    net, data = training_problem()
    adam, loss = Adam(weight_decay=1e-2), CrossEntropy()
    here = kaiming_start(net)
    there = here.to(strict_device)
    expected = train(here, data, loss, 3, 16, adam)
    train(there, data, loss, 1, 16, adam, checkpoint=tmp_path / "checkpoint.npz")
    settings = {"checkpoint": tmp_path / "checkpoint.npz", "resume": True}
    found = train(there, data, loss, 3, 16, adam, **settings)
    assert isinstance(found.vector, strict_device.ndarray)
    np.testing.assert_allclose(found.vector.get(), expected.vector, rtol=1e-9, atol=1e-12)
    expected, found = (polish(theta, data, loss, 5) for theta in (expected, found))
    assert isinstance(found.theta.vector, strict_device.ndarray)
    assert found.risk == pytest.approx(expected.risk, rel=1e-9)


@pytest.mark.parametrize("sigma", [GELU(), SmoothActivation("own", np.sin, np.cos)], ids=repr)
def test_a_smooth_network_is_trained_resumed_and_polished(sigma, tmp_path):
    net, data = training_problem()
    start = kaiming_start(Network(net.input_shape, net.layers, sigma))
    loss, checkpoint = SquaredLoss(), tmp_path / "checkpoint.npz"
    whole = train(start, data, loss, 3, 16)
    train(start, data, loss, 2, 16, checkpoint=checkpoint)
    resumed = train(start, data, loss, 3, 16, checkpoint=checkpoint, resume=True)
    assert np.array_equal(resumed.vector, whole.vector)
    result = polish(whole, data, loss, 20)
    assert result.risk < result.risk_before < start.net.risk(start, data, loss)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_training_keeps_the_type_of_its_start(dtype):
    net, data = training_problem()
    theta = kaiming_start(net).to(np, dtype)
    trained = train(theta, data, SquaredLoss(), 2)
    assert trained.vector.dtype == polish(trained, data, SquaredLoss(), 2).theta.vector.dtype
    assert trained.vector.dtype == dtype
    exact = train(kaiming_start(net), data, SquaredLoss(), 2)
    np.testing.assert_allclose(trained.vector, exact.vector, atol=1e-4)


@pytest.mark.parametrize("name", [".", "pipe"])
def test_a_checkpoint_that_cannot_be_written_is_refused_before_the_first_epoch(name, tmp_path):
    net, data = training_problem()
    os.mkfifo(tmp_path / "pipe")
    seen = []
    settings = {"checkpoint": tmp_path / name, "progress": lambda *done: seen.append(done)}
    with pytest.raises(OSError, match=r": expected a checkpoint, got a (folder|device or a pipe)$"):
        train(kaiming_start(net), data, SquaredLoss(), 2, 16, **settings)
    assert not seen and (tmp_path / "pipe").is_fifo()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_training_that_diverges_says_so_and_keeps_its_checkpoint(tmp_path):
    net, data = training_problem()
    checkpoint = tmp_path / "checkpoint.npz"
    with pytest.raises(RuntimeError, match=r"diverged: the risk of epoch 1.*smaller learning rate"):
        train(kaiming_start(net), data, SquaredLoss(), 9, 16, Adam(1e80), checkpoint=checkpoint)
    assert not checkpoint.exists()


@pytest.mark.parametrize(
    "settings",
    [{"learning_rate": rate} for rate in (0, -1e-3, np.nan, np.inf)]
    + [{"weight_decay": decay} for decay in (-1e-9, np.nan, np.inf)],
    ids=str,
)
def test_settings_of_adam_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match="expected a learning rate > 0 and a weight decay >= 0"):
        Adam(**settings)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("last", [1, 3])
def test_a_killed_run_resumes_to_the_same_bytes(last, tmp_path):
    net, data = training_problem()
    start, settings = kaiming_start(net), {"batch_size": 16, "seed": 3}
    whole = train(start, data, SquaredLoss(), 5, **settings)

    def kill(epoch, images, risk):
        if epoch == last + 1 and images > 16:
            raise Killed

    checkpoint = tmp_path / "checkpoint.npz"
    with pytest.raises(Killed):
        train(start, data, SquaredLoss(), 5, **settings, checkpoint=checkpoint, progress=kill)
    assert finished_epochs(checkpoint) == last
    seen = []
    resumed = train(
        start,
        data,
        SquaredLoss(),
        5,
        **settings,
        checkpoint=checkpoint,
        resume=True,
        progress=lambda epoch, images, risk: seen.append(epoch),
    )
    assert (resumed.vector == whole.vector).all()
    assert seen == [epoch for epoch in range(last + 1, 6) for _ in range(4)]
    assert finished_epochs(checkpoint) == 5
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.npz"]


def test_a_training_from_the_start_keeps_the_checkpoint_of_an_earlier_one(tmp_path):
    (net, data), checkpoint = training_problem(), tmp_path / "checkpoint.npz"
    checkpoint.write_bytes(b"days of work")

    def kill(epoch, images, risk):
        if epoch == 2:
            raise Killed

    with pytest.raises(RuntimeError, match="diverged"), np.errstate(all="ignore"):
        train(kaiming_start(net), data, SquaredLoss(), 9, 16, Adam(1e80), checkpoint=checkpoint)
    assert checkpoint.read_bytes() == b"days of work"
    with pytest.raises(Killed):
        train(kaiming_start(net), data, SquaredLoss(), 5, checkpoint=checkpoint, progress=kill)
    assert finished_epochs(checkpoint) == 1
    train(kaiming_start(net), data, SquaredLoss(), 2, checkpoint=checkpoint, resume=True)
    train(kaiming_start(net), data, SquaredLoss(), 1, checkpoint=checkpoint)
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == ["checkpoint.npz", "earlier-1-checkpoint.npz", "earlier-2-checkpoint.npz"]
    assert (tmp_path / "earlier-1-checkpoint.npz").read_bytes() == b"days of work"
    assert finished_epochs(tmp_path / "earlier-2-checkpoint.npz") == 2


def test_a_kill_while_the_checkpoint_is_written_keeps_the_one_before(tmp_path, monkeypatch):
    net, data = training_problem()
    checkpoint, start = tmp_path / "checkpoint.npz", kaiming_start(net)
    train(start, data, SquaredLoss(), 2, checkpoint=checkpoint)
    kept = checkpoint.read_bytes()

    def half(file, **arrays):
        file.write(kept[: len(kept) // 2])
        raise Killed

    monkeypatch.setattr(np, "savez", half)
    with pytest.raises(Killed):
        train(start, data, SquaredLoss(), 4, checkpoint=checkpoint, resume=True)
    assert checkpoint.read_bytes() == kept
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("settings", "error", "cause"),
    [
        ({"epochs": 0}, ValueError, "epochs: expected a whole number, 1 or more, got 0"),
        ({"epochs": 1, "batch_size": 0}, ValueError, "batch size: expected .* 1 or more, got 0"),
        ({"epochs": 1, "optimiser": Adam}, ValueError, r"expected an optimiser as Adam\(\), got "),
        ({"epochs": 1, "seed": -1}, ValueError, "seed: expected a whole number, 0 or more, got -1"),
        ({"epochs": 1, "resume": True}, ValueError, "expected a checkpoint to resume from"),
    ],
)
def test_training_refuses_settings_out_of_range(settings, error, cause):
    net, data = training_problem()
    with pytest.raises(error, match=cause):
        train(kaiming_start(net), data, SquaredLoss(), **settings)


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    net, data = training_problem()
    checkpoint, start = tmp_path / "checkpoint.npz", kaiming_start(net)
    train(start, data, SquaredLoss(), 1, checkpoint=checkpoint)
    with pytest.raises(ValueError, match="expected a checkpoint of this run"):
        train(start, data, CrossEntropy(), 2, checkpoint=checkpoint, resume=True)
    other = training_problem(seed=1)[1]
    for a, b in ((start, other), (kaiming_start(net, seed=1), data)):
        with pytest.raises(ValueError, match="expected a checkpoint of this run"):
            train(a, b, SquaredLoss(), 2, checkpoint=checkpoint, resume=True)
    train(start, data, SquaredLoss(), 3, checkpoint=checkpoint, resume=True)
    with pytest.raises(ValueError, match="expected epochs >= 3"):
        train(start, data, SquaredLoss(), 2, checkpoint=checkpoint, resume=True)
    np.savez(tmp_path / "other.npz", theta=start.vector)
    with pytest.raises(ValueError, match=r"other\.npz: expected a checkpoint"):
        finished_epochs(tmp_path / "other.npz")
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"checkpoint\.npz: expected an NPZ"):
        finished_epochs(checkpoint)
    with pytest.raises(ValueError, match=r"checkpoint\.npz: expected an NPZ"):
        train(start, data, SquaredLoss(), 2, checkpoint=checkpoint, resume=True)
