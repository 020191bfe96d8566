"""Trained minima: what is proved and spurious, what is kept, the small proof file."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from shared import ROOT, SQUARED, load_program, twin_gradient, twin_risk

import tinyspur as ts
from tinyspur.datasets.samples import TrainingSet
from tinyspur.studies import trained_minima
from tinyspur.studies.trained_minima import End, TrainedMinima, train_and_prove, train_one
from tinyspur.studies.trained_problems import PROBLEMS, teacher
from tinyspur.studies.trained_proof import trained_proof

SMALL = teacher(2, 40, seed=0)
RUNS = 4
PROGRAMS = "trained_minima", "check_proof"
END = End(
    seed=0,
    trained=0.3,
    risk=0.2,
    highest=0.2,
    moved=0.1,
    kinks=2,
    zero=False,
    bounds=(0.19, 0.21),
    distance=1e-12,
    radius=1e-3,
    reason="",
)
OPEN = {"bounds": None, "distance": None, "radius": None, "reason": "not decided"}


def ending(seed, low, high, **parts):
    return replace(END, **{"seed": seed, "bounds": (low, high), "highest": high} | parts)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trainings")
    [found] = train_and_prove([SMALL], RUNS, folder)
    return found, folder / SMALL.name


# What is claimed


def test_a_minimum_is_spurious_only_where_its_risk_is_proved_to_be_above_another():
    apart = TrainedMinima(replace(SMALL, known=None), (ending(0, 0.1, 0.12), ending(1, 0.2, 0.22)))
    assert [apart.spurious(end) for end in apart.ends] == [False, True]
    assert [minimum.spurious for minimum in apart.minima] == [False, True]
    known = replace(apart, problem=SMALL)  # the teacher has R = 0
    assert [known.spurious(end) for end in known.ends] == [True, True]
    touching = replace(apart, ends=(ending(0, 0.1, 0.2), ending(1, 0.2, 0.22)))
    assert not any(map(touching.spurious, touching.ends))
    lower = ending(1, 0, 0, **OPEN | {"risk": 0.05, "highest": 0.06})
    beside = replace(apart, ends=(ending(0, 0.1, 0.12), lower))
    assert [beside.spurious(end) for end in beside.ends] == [True, False]
    assert beside.counts == {
        "trainings": 2,
        "proved": 1,
        "spurious": 1,
        "zero": 0,
        "not_proved": 1,
    }


def test_intervals_that_overlap_are_one_minimum():
    bounds = [(0.3, 0.4), (0.1, 0.2), (0.15, 0.3), (0.5, 0.6)]
    ends = tuple(ending(n, *b, kinks=n) for n, b in enumerate(bounds))
    found = TrainedMinima(replace(SMALL, known=None), (*ends, replace(END, seed=9, **OPEN)))
    assert [minimum.bounds for minimum in found.minima] == [(0.1, 0.4), (0.5, 0.6)]
    assert [[end.seed for end in m.ends] for m in found.minima] == [[1, 2, 0], [3]]
    assert [m.kinks for m in found.minima] == [(0, 2), (3, 3)]
    assert [m.spurious for m in found.minima] == [False, True]


def test_what_is_proved_is_a_stationary_point_of_that_risk_up_to_its_distance(stored):
    found, folder = stored
    assert [end.seed for end in found.ends] == list(range(RUNS))
    assert found.counts["proved"] >= 2 and any(end.kinks for end in found.ends if end.proved)
    for end in found.ends:
        theta = ts.load_point(folder / f"{end.seed}.npz")
        assert twin_risk(theta, SMALL.data) == pytest.approx(end.risk, rel=1e-12, abs=1e-16)
        assert end.risk <= end.trained and end.risk <= end.highest <= end.risk + 1e-14
        if end.proved:
            low, high = end.bounds
            assert low <= end.risk + 1e-15 and end.risk - 1e-15 <= high < low + 1e-12
            assert end.distance < end.radius
            assert end.kinks or abs(twin_gradient(theta, SMALL.data)).max() < 1e-10
            x, y = (np.load(folder / "data.npz")[name] for name in "xy")
            assert ts.certify_strict(theta, TrainingSet(x, y), SQUARED).holds
        else:
            assert end.zero == (end.risk < 1e-25)
    known = ts.load_point(folder / "known.npz")
    assert twin_risk(known, SMALL.data) == 0


def test_the_teacher_has_no_risk_and_its_targets_are_not_rounded():
    for name in ("teacher-6", "teacher-8"):
        made = PROBLEMS[name](3)
        assert made.net.risk(made.known, made.data, SQUARED) == 0
        for x, y in zip(made.data.x[:50, 0], made.data.y[:50, 0], strict=True):
            assert sum(max(Fraction(float(v)), 0) for v in x) == Fraction(float(y))


def test_images_are_of_two_classes_and_averaged():
    images = ts.datasets.bundled()
    pixels = images.images[np.isin(images.labels, (0, 6))] / 255
    for name, size in (("shirts-4", 4), ("shirts-7", 7), ("convolution", 4)):
        data = PROBLEMS[name](1).data
        assert set(data.y[:, 0]) == {0, 1} and data.x.shape[1:] == (1, size, size)
        means = data.x.mean(axis=(1, 2, 3))
        assert (abs(means[:, None] - pixels.mean(axis=(1, 2, 3))).min(axis=1) < 1e-12).all()


# What is kept


def same(found, other):
    return found.ends == other.ends and str(found) == str(other)


def test_a_second_call_trains_only_what_is_missing(stored, tmp_path, monkeypatch):
    found, _ = stored
    trained = []

    def counted(problem, seed):
        trained.append(seed)
        if len(trained) == 3:
            raise KeyboardInterrupt
        return train_one(problem, seed)

    monkeypatch.setattr(trained_minima, "train_one", counted)
    with pytest.raises(KeyboardInterrupt):
        train_and_prove([SMALL], RUNS, tmp_path)
    names = sorted(path.name for path in (tmp_path / SMALL.name).iterdir())
    assert names == ["0.json", "0.npz", "1.json", "1.npz", "data.npz", "known.npz"]
    (tmp_path / SMALL.name / "0.json").unlink()
    [again] = train_and_prove([SMALL], RUNS, tmp_path)
    assert trained == [0, 1, 2, 0, 2, 3]
    assert same(found, again)
    trained.clear()
    assert same(found, train_and_prove([SMALL], RUNS, tmp_path)[0]) and not trained
    [fewer] = train_and_prove([SMALL], 2, tmp_path)
    assert fewer.ends == found.ends[:2] and not trained


def test_an_executor_finds_the_same(stored, tmp_path):
    found, _ = stored
    with ThreadPoolExecutor(2) as executor:
        assert same(found, train_and_prove([SMALL], RUNS, tmp_path, executor)[0])


def test_samples_that_a_killed_run_left_without_a_training_are_replaced(tmp_path):
    path = tmp_path / SMALL.name / "data.npz"
    path.parent.mkdir()
    np.savez(path, x=np.zeros(1), y=np.zeros(1))
    train_and_prove([SMALL], 1, tmp_path)
    assert np.array_equal(np.load(path)["x"], SMALL.data.x)


def test_trainings_of_other_samples_are_refused_and_left(stored):
    _, folder = stored
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ValueError, match=r"0\.json: expected a training of this study, got one of"):
        train_and_prove([teacher(2, 40, seed=1)], RUNS, folder.parent)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("text", ["{", "[]", '{"key": "", "end": {"seed": 0}}'])
def test_files_of_another_kind_are_refused(text, tmp_path):
    path = tmp_path / SMALL.name / "0.json"
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(ValueError, match=r"0\.json: expected a training of this study, got a file"):
        train_and_prove([SMALL], 1, tmp_path)
    path.unlink()
    path.with_name("0.npz").write_text("mine")
    with pytest.raises(OSError, match=r"0\.npz: expected no file, or one of an earlier run"):
        train_and_prove([SMALL], 1, tmp_path)
    with pytest.raises(ValueError, match="trainings: expected 1 or more, got 0"):
        train_and_prove([SMALL], 0, tmp_path)
    with pytest.raises(ValueError, match="different names, got teacher-2, teacher-2"):
        train_and_prove([SMALL, SMALL], 1, tmp_path)


def test_reports_say_what_was_found(stored):
    found, _ = stored
    report = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    counts = found.counts
    assert {name: report[name] for name in counts} == counts
    assert counts["proved"] + counts["zero"] + counts["not_proved"] == counts["trainings"] == RUNS
    assert sum(minimum["trainings"] for minimum in report["minima"]) == counts["proved"]
    assert [end["seed"] for end in report["ends"]] == list(range(RUNS))
    assert f"{RUNS} trainings: {counts['proved']} in proved minima" in str(found)
    assert str(found).count("  R = ") == len(found.minima)


# The small proof file


def test_the_proof_file_is_what_the_program_writes_and_the_checker_accepts_it(tmp_path, capsys):
    program, checker = (load_program(ROOT / "demos" / f"{name}.py") for name in PROGRAMS)
    path = tmp_path / "proof.json"
    assert program.main(["--proof", str(path)]) == 0
    assert "spurious local minimum, proved in fractions" in capsys.readouterr().out
    ours = ROOT / "demos" / "trained_minimum.json"
    assert path.read_bytes() == ours.read_bytes()
    checker.main([str(ours)])
    printed = capsys.readouterr().out
    assert "spurious-local-minimum: 8 sample(s), 9 parameters" in printed
    assert "multipliers of 3 kink(s), strictly within bounds" in printed
    assert printed.endswith("R(lower) is below R(theta)\nproved\n")
    found = json.loads(path.read_text())
    found["multipliers"][0] = "1"
    with pytest.raises(ValueError, match="multiplier not strictly between"):
        checker.check(found)


def test_its_risk_is_that_of_its_fractions():
    points = trained_proof()
    (W, b, a, c), x = points.points["theta"].values(), points.data.x[:, 0]
    total = Fraction(0)
    for sample in x:
        z = [h + sum(row * sample.astype(int)) for row, h in zip(W, b, strict=True)]
        o = sum(v * max(h, 0) for v, h in zip(a[0], z, strict=True)) + c[0]
        total += (o - sum(max(int(v), 0) for v in sample)) ** 2
    assert points.risk == total / (2 * len(x)) == Fraction(19, 1188)
    assert points.risks["lower"] == 0 and len(points.kinks) == 3
