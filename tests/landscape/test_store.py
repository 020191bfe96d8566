"""A scan goes on after any interruption, and only from a file of its own."""

import re
import signal
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from landscape_problems import LOSS, NET, PAIRS, point, problem, same_bits, samples, script

from tinyspur.activations import ReLU
from tinyspur.landscape import job
from tinyspur.landscape.directions import RandomDirections
from tinyspur.landscape.planes import Lines, Plane
from tinyspur.landscape.risks import Landscape
from tinyspur.landscape.scan import scan
from tinyspur.losses import CrossEntropy, HuberLoss, SquaredLoss
from tinyspur.network import Network
from tinyspur.parameters import Parameters
from tinyspur.samples import TrainingSet


@pytest.fixture
def evaluated(monkeypatch):
    """Record the numbers of the points that are evaluated."""
    numbers, risks = [], job.Job.risks

    def recording(job, points):
        numbers.extend(map(int, points))
        return risks(job, points)

    monkeypatch.setattr(job.Job, "risks", recording)
    return numbers


def test_a_scan_that_was_killed_goes_on(tmp_path, evaluated):
    where, data, expected = problem()
    text = """
value, calls = SquaredLoss.value, []
def stuck(loss, o, y):
    calls.append(1)
    if len(calls) == 60:
        print("stuck", flush=True)
        time.sleep(600)
    return value(loss, o, y)
SquaredLoss.value, store.SAVE_SECONDS = stuck, -1
scan(where, data, SquaredLoss(), path=folder + "/scan.npz")
"""
    path = tmp_path / "scan.npz"
    with script(tmp_path, where, data, text) as program:
        try:
            assert program.stdout.readline() == "stuck\n"
        finally:
            program.kill()
        assert program.wait() == -signal.SIGKILL
    with pytest.raises(
        ValueError, match=r"scan\.npz: expected a finished scan, got 57 of 225 risks"
    ):
        Landscape.load(path)
    evaluated.clear()
    same_bits(scan(where, data, LOSS, path=path), expected)
    assert len(evaluated) == len(set(evaluated)) == 225 - 57
    same_bits(Landscape.load(path), expected)


def test_an_interrupted_scan_is_saved_and_goes_on(tmp_path, evaluated, monkeypatch):
    where, data, expected = problem()
    path, risks = tmp_path / "new" / "scan.npz", job.Job.risks
    evaluated.clear()

    def interrupted(job, points):
        if len(evaluated) == 20:
            raise KeyboardInterrupt
        return risks(job, points)

    with monkeypatch.context() as patch:
        patch.setattr(job.Job, "risks", interrupted)
        with pytest.raises(KeyboardInterrupt):
            scan(where, data, LOSS, path=path)
    assert evaluated == list(range(20))
    with pytest.raises(ValueError, match="expected a finished scan, got 21 of 225 risks"):
        Landscape.load(path)
    same_bits(scan(where, data, LOSS, path=path), expected)
    assert evaluated == [n for n in range(225) if n != 112]
    assert list(path.parent.iterdir()) == [path]


class RaisingLoss(SquaredLoss):
    """A loss that raises in its third call."""

    calls = 0

    def value(self, o, y):
        self.calls += 1
        if self.calls == 3:
            raise ArithmeticError("third call")
        return super().value(o, y)


def test_errors_pass_unchanged_without_an_executor(tmp_path):
    where, data, _ = problem(5)
    path = tmp_path / "scan.npz"
    with pytest.raises(ArithmeticError, match=r"^third call$"):
        scan(where, data, RaisingLoss(), path=path)
    with pytest.raises(ValueError, match="expected a finished scan, got 1 of 25 risks"):
        Landscape.load(path)


def test_a_finished_scan_is_read(tmp_path, work):
    where, data, _ = problem(5)
    passes, products = work
    first = scan(where, data, LOSS, path=str(tmp_path / "scan.npz"))
    before = (tmp_path / "scan.npz").read_bytes()
    again, again_data, _ = problem(5)  # equal, not the same
    passes.clear()
    products.clear()
    with ThreadPoolExecutor(1) as executor:
        for pool in (None, executor):
            same_bits(scan(again, again_data, LOSS, pool, tmp_path / "scan.npz"), first)
    # R(theta) tells that it is the same scan, nothing else is evaluated
    layers = [1, 2, 3]
    assert passes == 2 * [(layer, where.theta.vector.tobytes()) for layer in layers]
    assert len(products) == 2 * len(layers)
    assert (tmp_path / "scan.npz").read_bytes() == before


def test_a_file_without_a_rounding_error_is_not_finished(tmp_path, monkeypatch):
    where, data, expected = problem(5)

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(job, "risk_rounding", stop)
        scan(where, data, LOSS, path=tmp_path / "scan.npz")
    with pytest.raises(ValueError, match="expected a finished scan"):
        Landscape.load(tmp_path / "scan.npz")
    same_bits(scan(where, data, LOSS, path=tmp_path / "scan.npz"), expected)


OTHERS = {
    "theta": lambda p, t, x: (Lines(point(NET, 5), p, t), x, LOSS),
    "direction": lambda p, t, x: (Lines(point(NET), (p[0], point(NET, 5)), t), x, LOSS),
    "order": lambda p, t, x: (Lines(point(NET), p[::-1], t), x, LOSS),
    "ticks": lambda p, t, x: (Lines(point(NET), p, [*t[:-1], 0.75]), x, LOSS),
    "fewer ticks": lambda p, t, x: (Lines(point(NET), p, t[:-1]), x, LOSS),
    "plane": lambda p, t, x: (Plane(point(NET), p, t, t), x, LOSS),
    "x": lambda p, t, x: (Lines(point(NET), p, t), TrainingSet(x.x + 1, x.y), LOSS),
    "y": lambda p, t, x: (Lines(point(NET), p, t), TrainingSet(x.x, x.y[::-1]), LOSS),
    "samples": lambda p, t, x: (Lines(point(NET), p, t), TrainingSet(x.x[1:], x.y[1:]), LOSS),
    "loss": lambda p, t, x: (Lines(point(NET), p, t), x, CrossEntropy()),
    "delta": lambda p, t, x: (Lines(point(NET), p, t), x, HuberLoss(0.5)),
    "activation": lambda p, t, x: (Lines(*leaky(point(NET), *p), t), x, LOSS),
    "random": lambda p, t, x: (Lines(point(NET), RandomDirections(point(NET), 2), t), x, LOSS),
}


def leaky(theta, *directions):
    net = Network(NET.input_shape, NET.layers, ReLU(0.1))
    first, *others = (Parameters(net, p.vector) for p in (theta, *directions))
    return first, others


@pytest.mark.parametrize("other", OTHERS)
def test_the_file_of_another_scan_is_refused(other, tmp_path):
    directions, ticks, data = (point(NET, 1), point(NET, 2)), [0.0, 0.5, 1.0], samples(NET)
    path = tmp_path / "scan.npz"
    loss = HuberLoss(0.7) if other == "delta" else LOSS
    scan(Lines(point(NET), directions, ticks), data, loss, path=path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"scan\.npz: expected no file, or that of the same scan"):
        scan(*OTHERS[other](directions, ticks, data), path=path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"normalization": "layer"},
        {"biases": False},
        {"theta": point(NET, 1)},
        {"count": 3},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_file_of_other_random_directions_is_refused(change, tmp_path):
    drawn = {"theta": point(NET), "count": 2, "seed": 0, "normalization": "filter", "biases": True}
    path, data = tmp_path / "scan.npz", samples(NET)
    scan(Lines(point(NET), RandomDirections(**drawn), [0.5]), data, LOSS, path=path)
    with pytest.raises(ValueError, match=r"scan\.npz: expected no file, or that of the same scan"):
        scan(Lines(point(NET), RandomDirections(**drawn | change), [0.5]), data, LOSS, path=path)
    scan(Lines(point(NET), RandomDirections(**drawn), [0.5]), data, LOSS, path=path)


@pytest.mark.parametrize("pair", PAIRS)
def test_other_losses_and_activations_are_told_apart_in_a_file(pair, tmp_path):
    (where, loss), (other, other_loss) = PAIRS[pair]()
    scan(where, samples(NET), loss, path=tmp_path / "scan.npz")
    with pytest.raises(ValueError, match="that of the same scan"):
        scan(other, samples(NET), other_loss, path=tmp_path / "scan.npz")


def test_the_key_of_an_own_loss_has_no_address(tmp_path):
    where, data, path = Plane.random(point(NET), steps=3), samples(NET), tmp_path / "scan.npz"

    class Own(SquaredLoss):  # the same in another process, or made once more
        __repr__ = object.__repr__

    kept = Own()
    scan(where, data, kept, path=path)
    scan(where, data, Own(), path=path)


def test_a_file_that_is_damaged_or_no_scan_is_refused_and_kept(tmp_path):
    where, data, found = problem(3)
    path = tmp_path / "scan.npz"
    scan(where, data, LOSS, path=path)
    whole = path.read_bytes()
    found.save(tmp_path / "saved.npz")
    saved = (tmp_path / "saved.npz").read_bytes()
    with np.load(path) as arrays:
        arrays = dict(arrays)
    np.savez(tmp_path / "less.npz", **{k: v for k, v in arrays.items() if k != "centre"})
    np.savez(tmp_path / "short.npz", **arrays | {"risks": arrays["risks"][1:]})
    less, short = ((tmp_path / f"{name}.npz").read_bytes() for name in ("less", "short"))
    for content in (whole[:-30], whole[:100], b"", b"no zip", saved, less, short):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=re.escape(f"{path}: ")):
            scan(where, data, LOSS, path=path)
        assert path.read_bytes() == content


def test_errors_name_the_path_once(tmp_path):
    path = tmp_path / "scan.npz"
    path.write_bytes(b"no zip")
    for read in (
        Landscape.load,
        lambda p: scan(Plane.random(point(NET), steps=2), samples(NET), LOSS, path=p),
    ):
        with pytest.raises(ValueError) as raised:
            read(path)
        assert str(raised.value).count(str(path)) == 1
    with pytest.raises(FileNotFoundError):
        Landscape.load(tmp_path / "none.npz")
