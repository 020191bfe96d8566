"""A network and a point of it that several files look at."""

import numpy as np
import pytest

from tinyspur.engine.network import Network
from tinyspur.engine.parameters import Parameters
from tinyspur.layers import AveragePool, Conv, Dense


@pytest.fixture
def net():
    return Network((2, 4, 4), [Conv(3), AveragePool(2), Conv(2, 1), Dense(5), Dense(2)])


@pytest.fixture
def theta(net):
    return Parameters(net, np.arange(float(net.size)))
