"""Descent lowers the risk, never ends above its start, and leaves its arguments alone."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_twin import Twin, risk

from tinyspur.constructions.embedding import linear_minimum
from tinyspur.fitting import fit_affine
from tinyspur.losses import CrossEntropy, SquaredLoss, one_hot
from tinyspur.network import AveragePool, Conv, Dense, Network, ReLU, TrainingSet
from tinyspur.training import Adam, descend, kaiming_start, train

NETWORKS = {
    "convolutions": Network((1, 4, 4), [Conv(3), Conv(4), Dense(3)]),
    "pooling": Network((2, 4, 4), [Conv(3), AveragePool(2), Dense(3)]),
    "leaky": Network((1, 3, 3), [Dense(6), Dense(3)], ReLU(0.1)),
    "one-dimensional": Network((1, 6), [Conv(2), Dense(3)]),
}
LOSSES = [SquaredLoss(), CrossEntropy()]
SMOOTHING = 0.1


def training_set(shape, samples=50, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=samples)
    return TrainingSet(rng.random((samples, *shape)), one_hot(labels, classes, SMOOTHING))


def start(net, seed=0, scale=0.5, dtype=np.float64):
    theta = net.zeros(dtype=dtype)
    theta.vector[:] = scale * np.random.default_rng(seed).standard_normal(net.size)
    return theta


@settings(max_examples=40, deadline=None)
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
    theta = start(net, seed, scale, dtype)
    reached = descend(theta, data, loss, iterations)
    assert reached.vector.dtype == dtype
    assert np.isfinite(reached.vector).all()
    assert net.risk(reached, data, loss) <= net.risk(theta, data, loss)


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
@pytest.mark.parametrize("net", NETWORKS.values(), ids=NETWORKS)
def test_the_risk_falls_where_the_gradient_is_not_zero(net, loss):
    data, theta = training_set(net.input_shape), start(net)
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
    data, theta, risks = training_set(net.input_shape), start(net), []
    reached = descend(theta, data, loss, 15, risks.append)
    assert 5 <= len(risks) <= 15
    assert all(isinstance(risk, float) for risk in risks)
    assert net.risk(theta, data, loss) > risks[0]
    assert (np.diff(risks) < 0).all()
    assert risks[-1] == pytest.approx(net.risk(reached, data, loss), rel=1e-14)


def test_one_iteration_reports_once():
    net, risks = NETWORKS["leaky"], []
    descend(start(net), training_set(net.input_shape), SquaredLoss(), 1, risks.append)
    assert len(risks) == 1


def test_progress_does_not_change_the_result():
    net = NETWORKS["convolutions"]
    data, theta = training_set(net.input_shape), start(net)
    quiet, loud = (descend(theta, data, SquaredLoss(), 8, show) for show in (None, lambda _: None))
    assert quiet.vector.tobytes() == loud.vector.tobytes()


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
@pytest.mark.parametrize("shape", [(1, 3, 3), (2, 4), (3, 2, 2)], ids=str)
def test_a_dense_layer_reaches_the_optimal_affine_fit(loss, shape):
    data = training_set(shape, samples=80)
    net = Network(shape, [Dense(3)])
    best = fit_affine(data.x.reshape(len(data), -1), data.y, loss)
    reached = descend(start(net, scale=1.0), data, loss, 400)
    risk = net.risk(reached, data, loss)
    assert net.risk(start(net, scale=1.0), data, loss) > 1.1 * best.risk
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
    with pytest.raises(ValueError, match=f"at least one iteration, got {iterations}"):
        descend(start(net), training_set(net.input_shape), SquaredLoss(), iterations)


def test_data_of_another_shape_are_refused():
    net = NETWORKS["leaky"]
    with pytest.raises(ValueError, match="inputs"):
        descend(start(net), training_set((1, 4, 4)), SquaredLoss(), 1)
    with pytest.raises(ValueError, match="targets"):
        descend(start(net), training_set((1, 3, 3), classes=4), SquaredLoss(), 1)


def test_targets_that_are_no_distributions_are_refused():
    net, data = NETWORKS["leaky"], training_set((1, 3, 3))
    with pytest.raises(ValueError, match="sum to 1"):
        descend(start(net), TrainingSet(data.x, 2 * data.y), CrossEntropy(), 1)


@pytest.mark.parametrize("scale", [0.5, 0.0])
def test_arguments_are_left_as_they_were(scale):
    net = NETWORKS["convolutions"]
    data, theta = training_set(net.input_shape), start(net, scale=scale)
    before = [a.tobytes() for a in (theta.vector, data.x, data.y)]
    reached = descend(theta, data, SquaredLoss(), 5)
    reached.vector[:] = 7
    assert [a.tobytes() for a in (theta.vector, data.x, data.y)] == before


def test_the_same_start_gives_the_same_bytes():
    net = NETWORKS["convolutions"]
    data = training_set(net.input_shape)
    first, second = (descend(start(net), data, SquaredLoss(), 6) for _ in range(2))
    assert first.vector.tobytes() == second.vector.tobytes()


# Training: Kaiming start, Adam, checkpoints


def training_problem(samples=50, seed=0):
    rng = np.random.default_rng(seed)
    net = Network((2, 6, 6), [Conv(3), AveragePool(2), Conv(4), Dense(5), Dense(3)])
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


@pytest.mark.parametrize("loss", [SquaredLoss(), CrossEntropy()], ids=lambda loss: loss.name)
@pytest.mark.parametrize("weight_decay", [0.0, 5e-2])
def test_every_step_of_adam_is_that_of_pytorch(loss, weight_decay):
    net, data = training_problem()
    theta = kaiming_start(net)
    twin = Twin(net.spec).load(theta.arrays())
    parameters = list(twin.parameters())
    adam = Adam(learning_rate=3e-3, weight_decay=weight_decay)
    theirs = torch.optim.Adam(parameters, lr=3e-3, weight_decay=weight_decay)
    memory = [np.zeros_like(theta.vector), np.zeros_like(theta.vector)]
    x, y = torch.as_tensor(data.x), torch.as_tensor(data.y)
    for number in range(1, 31):
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


class Killed(BaseException):
    pass


@pytest.mark.parametrize("last", [1, 3])
def test_a_killed_run_resumes_to_the_same_bytes(last, tmp_path):
    net, data = training_problem()
    start, settings = kaiming_start(net), {"batch_size": 16, "seed": 3}
    whole = train(start, data, SquaredLoss(), 5, **settings)

    def kill(epoch, risk):
        if epoch == last:
            raise Killed

    checkpoint = tmp_path / "checkpoint.npz"
    with pytest.raises(Killed):
        train(start, data, SquaredLoss(), 5, **settings, checkpoint=checkpoint, progress=kill)
    seen = []
    resumed = train(
        start,
        data,
        SquaredLoss(),
        5,
        **settings,
        checkpoint=checkpoint,
        resume=True,
        progress=lambda epoch, risk: seen.append(epoch),
    )
    assert (resumed.vector == whole.vector).all()
    assert seen == list(range(last + 1, 6))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.npz"]


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
        ({"epochs": 0}, ValueError, "expected epochs"),
        ({"epochs": 1, "batch_size": 0}, ValueError, "batch size"),
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
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"checkpoint\.npz: expected an NPZ"):
        train(start, data, SquaredLoss(), 2, checkpoint=checkpoint, resume=True)
