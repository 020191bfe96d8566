"""What several test files use: oracles in PyTorch, random points and data, checks, programs."""

import copy
import functools
import importlib.util
import json
import math
import os
import pickle
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch_twin

from tinyspur.datasets.samples import TrainingSet
from tinyspur.engine.activations import (
    ELU,
    GELU,
    Arctan,
    Sigmoid,
    SiLU,
    Sine,
    Softplus,
    Swish,
    Tanh,
)
from tinyspur.engine.losses import SquaredLoss, one_hot
from tinyspur.engine.parameters import Parameters
from tinyspur.engine.user_activations import SmoothActivation

ROOT = Path(__file__).resolve().parent.parent
CIFAR10_SAMPLE = Path(__file__).parent / "cifar10_sample_20.npz"
SQUARED = SquaredLoss()
SMOOTH = [Sigmoid(), Tanh(), Softplus(), SiLU(), GELU(), ELU(), Sine(), Arctan(), Swish(1.7)]


# Functions as a user writes them


def log_cosh(z):
    return np.logaddexp(z, -z) - math.log(2)


def log_cosh_bend(z):
    return 1 - np.tanh(z) ** 2


LOG_COSH = SmoothActivation("log cosh", log_cosh, np.tanh, log_cosh_bend, (1.0, 0.7699))
UNBOUNDED_LOG_COSH = SmoothActivation("log cosh", log_cosh, np.tanh)


class LogCosh:
    """A loss without a base class."""

    name = "log-cosh"

    def value(self, o, y):
        return (np.logaddexp(o - y, y - o) - np.log(2)).sum(axis=0)

    def gradient(self, o, y):
        return np.tanh(o - y)

    def curvature(self, o, y, d):
        return d * (1 - np.tanh(o - y) ** 2)

    def check_targets(self, y):
        if (y < -100).any():
            raise ValueError("log-cosh: expected targets above -100")


def proved(certificate):
    """Return whether P1 is proved, or for a loss of a user's, as `LogCosh` is, P2."""
    return certificate.holds or (certificate.assumes and certificate.proves == "P2")


# The same in PyTorch


def torch_log_cosh(z):
    return torch.logaddexp(z, -z) - math.log(2)


def twin_of(theta):
    """Return the network in PyTorch, described by JSON; it knows the activation log cosh."""
    return _new_twin(json.dumps(theta.net.spec)).load(theta.arrays())


def _new_twin(description):
    spec = json.loads(description)
    own = spec["activation"]["name"] == LOG_COSH.name
    if own:
        spec["activation"] = {"name": "tanh"}
    twin = torch_twin.Twin(spec)
    if own:
        twin.activation = torch_log_cosh
    return twin


_the_twin = functools.lru_cache(maxsize=100)(_new_twin)


def _loaded_twin(theta):
    """Return the one twin of all points of a network, with these numbers until it has others."""
    return _the_twin(json.dumps(theta.net.spec)).load(theta.arrays())


def outputs_of(theta, x):
    """Return the outputs of the twin; networks that are alike are built once."""
    return _loaded_twin(theta)(x).detach().numpy()


def torch_risk(outputs, y, loss):
    """Return the risk as a tensor; it knows the loss log-cosh."""
    if loss.name == LogCosh.name:
        return torch_log_cosh(torch.as_tensor(outputs) - torch.as_tensor(y)).sum(1).mean()
    return torch_twin.risk(outputs, y, loss.name, getattr(loss, "delta", 1.0))


def twin_risk(theta, data, loss=SQUARED):
    return torch_risk(outputs_of(theta, data.x), data.y, loss).item()


def twin_gradient(theta, data, loss=SQUARED):
    """Return the gradient of the risk, in the order of the vector of all parameters."""
    twin = _loaded_twin(theta)
    risk = torch_risk(twin(data.x), data.y, loss)
    parts = torch.autograd.grad(risk, list(twin.arrays().values()))
    return torch.cat([part.flatten() for part in parts]).numpy()


def twin_hessian(theta, data, loss=SQUARED):
    """Return the Hessian of the risk by double backward, in the order of the vector."""
    twin = _loaded_twin(theta)
    parameters = list(twin.arrays().values())
    risk = torch_risk(twin(data.x), data.y, loss)
    first = torch.autograd.grad(risk, parameters, create_graph=True)
    rows = []
    for entry in torch.cat([g.flatten() for g in first]):
        row = torch.autograd.grad(entry, parameters, retain_graph=True, materialize_grads=True)
        rows.append(torch.cat([part.flatten() for part in row]).numpy())
    return np.array(rows)


# Random points and data


def random_theta(net, seed=0, scale=1.0):
    """Return normal parameters."""
    return Parameters(net, scale * np.random.default_rng(seed).normal(size=net.size))


def moved(theta, *moves):
    """Return theta plus each number times its direction; `moves` are pairs of the two."""
    vector = theta.vector
    for step, direction in moves:
        vector = vector + float(step) * direction.vector
    return Parameters(theta.net, vector)


def random_direction(shape, seed=0):
    return np.random.default_rng([seed, 1]).normal(size=math.prod(shape))


def random_set(shape, samples=40, outputs=2, loss=SQUARED, seed=0):
    """Return normal inputs and normal targets, for the cross-entropy distributions."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(samples, *shape))
    if loss.name == "cross-entropy":
        return TrainingSet(x, rng.dirichlet(np.ones(outputs), samples))
    return TrainingSet(x, rng.normal(size=(samples, outputs)))


def targets_for(loss, rng, samples, outputs):
    """Return normal targets, for the cross-entropy smoothed labels."""
    if loss.name == "cross-entropy":
        return one_hot(rng.integers(0, outputs, samples), outputs, smoothing=0.2)
    return rng.normal(size=(samples, outputs))


def random_point(net, loss=SQUARED, samples=6, seed=0):
    """Return normal parameters and a normal training set."""
    rng = np.random.default_rng(seed)
    theta = Parameters(net, rng.normal(size=net.size))
    x = rng.normal(size=(samples, *net.input_shape))
    return theta, TrainingSet(x, targets_for(loss, rng, samples, math.prod(net.shapes[-1])))


def random_pixels(net, loss, samples, seed=0, low=0.0):
    """Return pixels from `low` to 1 and targets that no affine map fits."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(low, 1, (samples, *net.input_shape))
    return TrainingSet(x, targets_for(loss, rng, samples, net.shapes[-1][0]))


# Parameters of tests


def in_turn(*marks, draws=1):
    """Run a test on every value of these parametrisations, but not on every combination.

    So many for each value of the longest one; those of the others come in random order, the same
    each time, all about equally often.
    """
    columns = sorted(map(labelled, marks), key=lambda column: -len(column[1]))
    places = [np.arange(len(columns[0][1])).repeat(draws)]
    for number, (_, values) in enumerate(columns[1:]):
        rng = np.random.default_rng(number)
        rounds = [rng.permutation(len(values)) for _ in range(-(-len(places[0]) // len(values)))]
        places.append(np.concatenate(rounds)[: len(places[0])])
    drawn = dict.fromkeys(zip(*(column.tolist() for column in places), strict=True))
    return pytest.mark.parametrize(
        [name for names, _ in columns for name in names],
        [
            pytest.param(
                *(part for one in found for part in one.values),
                id="-".join(one.id for one in found),
                marks=[mark for one in found for mark in one.marks],
            )
            for places in drawn
            for found in [[values[n] for (_, values), n in zip(columns, places, strict=True)]]
        ],
    )


def labelled(mark):
    """Return the names of a parametrisation, and its values, each with an id."""
    (names, values), ids = mark.args, mark.kwargs.get("ids", str)
    names = names.replace(",", " ").split() if isinstance(names, str) else list(names)
    labels, found = None if callable(ids) else list(ids), []
    for n, value in enumerate(values):
        if not isinstance(value, type(pytest.param())):
            value = pytest.param(*(value if len(names) > 1 else [value]))
        label = labels[n] if labels else "-".join(str(ids(part)) for part in value.values)
        found.append(pytest.param(*value.values, id=value.id or str(label), marks=value.marks))
    return names, found


# Comparisons


def close(found, expected, tolerance=1e-12, rounding=0.0):
    """Check that two arrays agree relative to the largest entry, up to `rounding` besides.

    A zero array agrees with a zero array alone, but for `rounding`.
    """
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    largest = abs(expected).max(initial=0)
    assert abs(found - expected).max(initial=0) <= tolerance * largest + rounding


def refuses(error, message):
    """Expect an error whose message is one line that contains `message`."""
    return pytest.raises(error, match=rf"^[^\n]*{re.escape(message)}[^\n]*$")


# Programs


def run_python(*arguments):
    """Run Python on this package; return what it printed and its exit status."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"},
    )


def run_here(path, capsys, *arguments):
    """Run a program in this process; return what it printed and its exit status."""
    capsys.readouterr()
    try:
        status = load_program(path).main([*map(str, arguments)])
    except SystemExit as end:
        status = end.code
    return SimpleNamespace(returncode=status, **capsys.readouterr()._asdict())


class Pickling(ThreadPoolExecutor):
    """Threads in place of a program's processes: they get copies, as processes do."""

    def submit(self, *task):
        """Return the future of a copy of a function and of its arguments."""
        return super().submit(*pickle.loads(pickle.dumps(task)))


def load_program(path):
    """Return a program as a module."""
    spec = importlib.util.spec_from_file_location(f"program_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def replaced(found, path, value):
    """Return a copy of nested dictionaries and lists with one value replaced."""
    found = copy.deepcopy(found)
    part = found
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    return found
