"""A scan goes on after any interruption, and only from a file of its own."""

import re
import signal
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from landscape_problems import (
    LOSS,
    NET,
    PAIRS,
    forkserver,
    point,
    problem,
    program,
    same_bits,
    samples,
)

from tinyspur.datasets.samples import TrainingSet
from tinyspur.engine.activations import ReLU
from tinyspur.engine.losses import CrossEntropy, HuberLoss, SquaredLoss
from tinyspur.engine.network import Network
from tinyspur.engine.parameters import Parameters
from tinyspur.landscape import job
from tinyspur.landscape.directions import RandomDirections
from tinyspur.landscape.planes import Lines, Plane
from tinyspur.landscape.risks import Landscape
from tinyspur.landscape.scan import scan
from tinyspur.layers import Dense


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
        reached.set()
        time.sleep(600)
    return value(loss, o, y)
SquaredLoss.value, store.SAVE_SECONDS = stuck, -1
scan(where, data, SquaredLoss(), path=path)
"""
    path, reached = tmp_path / "scan.npz", forkserver().Event()
    process = program(text, where=where, data=data, path=path, reached=reached)
    try:
        assert reached.wait(120)
    finally:
        process.kill()
        process.join()
    assert process.exitcode == -signal.SIGKILL
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
    """A loss that raises in its third call for outputs."""

    calls = 0

    def value(self, o, y):
        self.calls += o is not y  # as where it is looked at what it returns
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


# The format of the files


def exact_plane():
    """Return a plane whose risks have no rounding errors, and its data."""
    net = Network((1, 2), [Dense(2), Dense(1)])
    theta, d1, d2 = (
        Parameters(net, c)
        for c in (np.arange(-4.0, 5.0) / 4, np.arange(9.0) / 2, np.arange(9.0)[::-1] / 4)
    )
    x, y = np.arange(-3.0, 5.0).reshape(4, 1, 2) / 2, np.arange(4.0).reshape(4, 1)
    return Plane(theta, (d1, d2), [-1.0, 0.0, 0.5], [-0.5, 0.0, 2.0]), TrainingSet(x, y)


def drawn_lines():
    """Return two random lines and their data; the risks have rounding errors."""
    plane, data = exact_plane()
    directions = RandomDirections(plane.theta, 2, 7, "filter", biases=False)
    return Lines(plane.theta, directions, [-1.0, 0.0, 1.0]), data


# what the first version wrote for them
PLANE_FILE = {
    "alpha": np.array([-1.0, 0.0, 0.5]),
    "beta": np.array([-0.5, 0.0, 2.0]),
    "risks": np.array(
        [
            [55.720001220703125, 21.35595703125, 108.20751953125],
            [2.334259033203125, 1.84619140625, 129.78369140625],
            [46.01007080078125, 35.484375, 1100.875],
        ]
    ),
    "centre": np.array(1.84619140625),
    "rounding": np.array(3.395433077497262e-13),
    "key": np.array("18814725da37ae24de55396ba56f5e867d3c212c17b9f7dc662048cf42689618"),
    "done": np.ones(9, bool),
}
LINES_FILE = {
    "alpha": np.array([-1.0, 0.0, 1.0]),
    "risks": np.array(
        [
            [1.4741217967551488, 1.84619140625, 3.8006518173010804],
            [1.7090991611362114, 1.84619140625, 1.1120787532640135],
        ]
    ),
    "centre": np.array(1.84619140625),
    "rounding": np.array(1.1245317104365187e-14),
    "key": np.array("23c56bdc9c16889db53f996f55925d087b492f0599d32aaefd548312b8f68349"),
    "done": np.ones(5, bool),
}


def test_a_scan_writes_the_arrays_of_the_first_version(tmp_path):
    where, data = exact_plane()
    scan(where, data, LOSS, path=tmp_path / "scan.npz")
    with np.load(tmp_path / "scan.npz", allow_pickle=False) as arrays:
        assert arrays.files == [*PLANE_FILE, "unit_ball", "loss", "coordinates"]  # later
        for name, expected in PLANE_FILE.items():
            assert arrays[name].dtype == expected.dtype
            assert arrays[name].shape == expected.shape
            assert name == "rounding" or np.array_equal(arrays[name], expected)
        assert arrays["rounding"] == pytest.approx(PLANE_FILE["rounding"], rel=1e-3)


@pytest.mark.parametrize(
    ("problem", "arrays"), [(exact_plane, PLANE_FILE), (drawn_lines, LINES_FILE)]
)
def test_a_finished_file_of_the_first_version_is_read(problem, arrays, tmp_path, evaluated):
    where, data = problem()
    path = tmp_path / "scan.npz"
    np.savez(path, **arrays)
    before = path.read_bytes()
    for found in (scan(where, data, LOSS, path=path), Landscape.load(path)):
        assert np.array_equal(found.risks, arrays["risks"])
        assert (found.centre, found.rounding) == (arrays["centre"], arrays["rounding"])
    assert evaluated == []
    assert path.read_bytes() == before


def test_an_unfinished_file_of_the_first_version_goes_on(tmp_path, evaluated):
    where, data = exact_plane()
    path, numbers = tmp_path / "scan.npz", np.arange(9).reshape(3, 3)
    unfinished = {
        "risks": np.where(numbers > 4, np.nan, PLANE_FILE["risks"]),  # 4 is theta
        "rounding": np.array(np.nan),
        "done": np.arange(9) < 5,  # theta and the first four others
    }
    np.savez(path, **PLANE_FILE | unfinished)
    found = scan(where, data, LOSS, path=path)
    assert evaluated == [5, 6, 7, 8]
    assert np.array_equal(found.risks, PLANE_FILE["risks"])
    with np.load(path) as arrays:
        assert arrays["done"].all()
        assert arrays["key"] == PLANE_FILE["key"]
