"""What several tests of landscapes watch or start from."""

import numpy as np
import pytest
from landscape_problems import LOSS

from tinyspur import linear_minimum
from tinyspur.certificates import certify_cell
from tinyspur.datasets.samples import TrainingSet
from tinyspur.engine import passes
from tinyspur.engine.network import Network
from tinyspur.landscape import job
from tinyspur.layers import Conv, ConvolutionMatrix, Dense, WeightMatrix


@pytest.fixture(scope="module")
def certified():
    """Return a certified minimum, its pair, its data and the radius, small enough for scans."""
    net = Network((1, 3, 3), [Conv(3), Conv(5), Conv(6), Dense(2)])
    rng = np.random.default_rng(0)
    data = TrainingSet(rng.normal(size=(40, 1, 3, 3)), rng.normal(size=(40, 2)))
    theta, pair = linear_minimum(net, data, LOSS)
    certificate = certify_cell(theta, data, LOSS)
    assert certificate.holds
    return theta, pair, data, certificate.radius


@pytest.fixture
def work(monkeypatch):
    """Record the layer and the point of each pass through a layer, and count the products."""
    seen, products = [], []
    neurons = passes.neurons

    def passing(theta, layer, *args, **options):
        seen.append((layer, theta.vector.tobytes()))
        return neurons(theta, layer, *args, **options)

    def count(kind, name):
        product = getattr(kind, name)

        def multiplying(W, *args):
            products.append(W)
            return product(W, *args)

        monkeypatch.setattr(kind, name, multiplying)

    for module in (passes, job):
        monkeypatch.setattr(module, "neurons", passing)
    count(WeightMatrix, "__matmul__")
    count(WeightMatrix, "brief_product")
    count(ConvolutionMatrix, "brief_product")
    monkeypatch.setattr(job, "risk_rounding", lambda *_: 0.0)
    return seen, products
