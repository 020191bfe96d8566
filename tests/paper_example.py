"""The README's network and points on images of 7 x 7 pixels, around which the tests look."""

import functools
from types import SimpleNamespace

import numpy as np

from tinyspur import (
    Conv,
    Dense,
    Network,
    SquaredLoss,
    TrainingSet,
    datasets,
    embed,
    find_spurious_minimum,
    linear_minimum,
    nontrivial_minimum,
    one_hot,
    subnetwork,
)

LOSS = SquaredLoss()


def build(net, data, variant, dtype=np.float64):
    theta, pair = linear_minimum(net, data, LOSS, variant=variant)
    return find_spurious_minimum(theta.to(np, dtype), pair, data, LOSS, variant=variant)


@functools.cache
def readme_example():
    """Return the network, the data, theta_1 and the points of both variants."""
    images = datasets.bundled().subset(200, seed=0)
    x = images.pixels().reshape(200, 1, 7, 4, 7, 4).mean(axis=(3, 5))
    data = TrainingSet(x, one_hot(images.labels, images.classes))
    net = Network((1, 7, 7), [Conv(4), Conv(6), Conv(6), Dense(10)])
    theta_1 = embed(net, nontrivial_minimum(subnetwork(net), data, LOSS, 1, 0), data.x)[0]
    found = {variant: build(net, data, variant) for variant in ("repaired", "literal")}
    return SimpleNamespace(net=net, data=data, theta_1=theta_1, **found)
