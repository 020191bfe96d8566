"""A certified minimum of a network with a stride, valid padding, a scale and residual blocks."""

import functools

import numpy as np

import tinyspur as ts

LAYERS = [
    ts.Conv(9, 3, stride=2, padding="valid", bias=False),
    ts.Scale(),
    ts.Residual([ts.Conv(9), ts.Conv(9, 1)]),
    ts.Residual([ts.Conv(9, 1)], [ts.Conv(9)]),
    ts.MaxPool(1),
    ts.Dense(2),
]
LOSS = ts.SquaredLoss()


@functools.cache
def minimum():
    """Return a point whose features are strictly active and determine the image, and its data."""
    net, rng = ts.Network((1, 5, 5), LAYERS), np.random.default_rng(1)
    theta = net.zeros()
    theta.vector[:] = 0.3 * rng.normal(size=net.size)
    for layer, b in theta.b.items():
        theta.W[layer].weights[...] = abs(theta.W[layer].weights)
        b[...] = 6.0
    x = np.round(rng.normal(size=(80, 1, 5, 5)) * 16) / 16
    y = np.round(rng.normal(size=(80, 2)) * 16) / 16
    ((_, columns),) = net.chunks(theta, x)
    read = net.layer_output(theta, columns, net.depth - 1).T
    features = np.hstack([read, np.ones((80, 1))])
    assert read.min() > 0 and np.linalg.matrix_rank(features) == 26
    theta.vector[net.slots[net.depth].all] = 0
    for _ in range(3):  # the second and third fit what rounding leaves
        left = y - net.forward(theta, x)
        fit = np.linalg.lstsq(features, left)[0]
        theta.W[net.depth].weights += fit[:-1].T
        theta.b[net.depth] += fit[-1]
    return theta, ts.TrainingSet(x, y)


def risk_of_the_fit(data):
    """Return the risk of the best affine function of the images."""
    hats = np.hstack([data.x.reshape(80, -1), np.ones((80, 1))])
    left = data.y - hats @ np.linalg.lstsq(hats, data.y)[0]
    return (left**2).sum() / 160


def test_it_is_an_affine_fit_and_certified():
    theta, data = minimum()
    certificate = ts.certify_cell(theta, data, LOSS)
    assert certificate.holds and certificate.proves == "P1" and certificate.classes == 1
    assert abs(theta.net.risk(theta, data, LOSS) - risk_of_the_fit(data)) < 1e-11


def test_no_attack_within_the_radius_finds_a_lower_point():
    theta, data = minimum()
    certificate, rng = ts.certify_cell(theta, data, LOSS), np.random.default_rng(2)
    net, risk = theta.net, theta.net.risk(theta, data, LOSS)
    gradient = net.gradient(theta, data, LOSS).vector
    for trial in range(300):
        signs = rng.choice([-1.0, 1.0], net.size)
        move = (signs, -np.sign(gradient), signs * rng.random(net.size))[trial % 3]
        share = 10 ** rng.uniform(-4, 0)
        near = ts.Parameters(net, theta.vector + share * certificate.radius * move)
        assert net.risk(near, data, LOSS) > risk - certificate.delta - 1e-13


def test_it_is_proved_in_fractions_too():
    theta, data = minimum()
    exact = ts.exact(theta, data, LOSS)
    assert exact.verdict == "local minimum"
    assert abs(float(exact.risk) - risk_of_the_fit(data)) < 1e-11


def test_it_comes_back_from_pytorch():
    from tinyspur import interop

    theta, data = minimum()
    model = interop.to_torch(theta)
    again = interop.from_torch(model, (1, 5, 5))
    assert np.array_equal(again.net.forward(again, data.x), theta.net.forward(theta, data.x))
    assert ts.certify_cell(again, data, LOSS).holds
