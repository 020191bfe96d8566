"""Points on the bundled images, which several files look at."""

import pytest
from certificate_problems import SQUARED

from tinyspur import datasets
from tinyspur.certificates import certify_cell
from tinyspur.constructions.embedding import linear_minimum
from tinyspur.datasets.samples import TrainingSet
from tinyspur.engine.losses import one_hot
from tinyspur.engine.network import Network
from tinyspur.layers import Conv, Dense


@pytest.fixture(scope="package")
def images():
    """Return the bundled images in half the size."""
    dataset = datasets.bundled().subset(400, 0)
    pixels = dataset.pixels().reshape(400, 1, 14, 2, 14, 2).mean(axis=(3, 5))
    return TrainingSet(pixels, one_hot(dataset.labels, dataset.classes))


@pytest.fixture(scope="package")
def image_net():
    return Network((1, 14, 14), [Conv(4), Conv(6), Conv(6), Dense(10)])


@pytest.fixture(scope="package")
def image_minimum(images, image_net):
    """Return the repaired theta on the bundled images and its certificate."""
    theta, _ = linear_minimum(image_net, images, SQUARED)
    return theta, certify_cell(theta, images, SQUARED)


@pytest.fixture(scope="package")
def image_literal(images, image_net):
    return linear_minimum(image_net, images, SQUARED, "literal")
