"""The atlas: different partitions of the samples, each with a certified minimum of one network."""

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from math import comb

import numpy as np
import pytest
from matplotlib.image import imread
from shared import ROOT, SQUARED, Pickling, load_program, random_set, run_here, twin_risk

from tinyspur.certificates import certify_strict
from tinyspur.console import silent
from tinyspur.engine.network import Network
from tinyspur.fitting.settle import settle
from tinyspur.fitting.training import descend, kaiming_start
from tinyspur.layers import Dense
from tinyspur.studies.atlas import Atlas, map_minima, partitions

MOST = 4  # groups
PROGRAM = ROOT / "demos" / "atlas.py"
NET = Network((1, 2), [Dense(2 * MOST - 1), Dense(1)])


def turned(directions):
    angles = np.linspace(0.1, 3.1, directions)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def labels_of(found, x):
    """Return for each partition the group of each sample, by counting thresholds below it."""
    flat = x.reshape(len(x), -1)
    return [((flat @ p)[:, None] > thresholds).sum(axis=1) for p, thresholds in found]


def group_risk(data, labels):
    """Return the risk of least squares in each group, without the package."""
    hats = np.c_[data.x.reshape(len(data.x), -1), np.ones(len(data.x))]
    total = 0.0
    for k in np.unique(labels):
        x, y = hats[labels == k], data.y[labels == k]
        total += ((y - x @ np.linalg.lstsq(x, y)[0]) ** 2).sum() / 2
    return total / len(labels)


# Partitions


@pytest.mark.parametrize("seed", range(3))
def test_partitions_are_different_also_in_reverse(seed):
    x = random_set((1, 2), 20, 1, seed=seed).x
    found = partitions(x, np.vstack([turned(5), -turned(5)]), MOST, 300, seed)
    assert len(found) == 300
    seen = set()
    for labels in labels_of(found, x):
        K = labels.max() + 1
        assert 2 <= K <= MOST
        assert (np.bincount(labels) > 0).all()
        assert tuple(labels) not in seen
        seen |= {tuple(labels), tuple(K - 1 - labels)}
    assert {labels.max() + 1 for labels in labels_of(found, x)} == {2, 3, 4}


def test_thresholds_lie_midway_between_neighbours():
    x = random_set((1, 2), 20, 1).x
    for p, thresholds in partitions(x, turned(6), 6, 200):
        along = np.sort(x[:, 0] @ p)
        for threshold in thresholds:
            n = np.searchsorted(along, threshold)
            assert along[n - 1] < threshold < along[n]
            assert threshold == pytest.approx((along[n - 1] + along[n]) / 2, rel=1e-12, abs=1e-14)
        assert (np.diff(thresholds) > 0).all()


def test_seeds_reproduce_partitions():
    x = random_set((1, 2), 20, 1).x
    first, again, other = (partitions(x, turned(6), MOST, 50, seed) for seed in (3, 3, 4))
    for (p, thresholds), (q, others) in zip(first, again, strict=True):
        assert np.array_equal(p, q)
        assert np.array_equal(thresholds, others)
    differ = [tuple(labels) for labels in labels_of(first, x)]
    assert differ != [tuple(labels) for labels in labels_of(other, x)]


def test_one_direction_has_as_many_partitions_as_choices_of_thresholds():
    x = random_set((1, 2), 7, 1).x
    found = partitions(x, turned(1), 4, 200)
    counts = np.bincount([labels.max() + 1 for labels in labels_of(found, x)])
    assert counts.tolist() == [0, 0, comb(6, 1), comb(6, 2), comb(6, 3)]


# The map


@pytest.fixture(scope="module")
def mapped():
    data = random_set((1, 2), 20, 1)
    found = partitions(data.x, turned(6), MOST, 30, seed=1)
    return data, found, map_minima(NET, data, SQUARED, found, 2, 40, seed=5)


def test_every_minimum_has_the_risk_of_its_group_fits_and_is_certified(mapped):
    data, found, atlas = mapped
    for n, labels in enumerate(labels_of(found, data.x)):
        assert np.array_equal(atlas.labels[n], labels)
        assert atlas.groups[n] == labels.max() + 1
        assert atlas.risks[n] == pytest.approx(group_risk(data, labels), rel=1e-8, abs=1e-12)
    assert atlas.certified.dtype == bool
    assert atlas.certified.all()
    assert (atlas.margins > 0).all()
    assert atlas.linear == pytest.approx(group_risk(data, np.zeros(20, int)), rel=1e-9)
    assert (atlas.risks < atlas.linear).all()


def test_finer_partitions_are_lower(mapped):
    data, _, _ = mapped
    p = turned(1)[0]
    along = np.sort(data.x[:, 0] @ p)
    cuts = [(along[n - 1] + along[n]) / 2 for n in (5, 10, 15)]
    found = [(p, np.array(cuts[:n])) for n in (1, 2, 3)]
    atlas = map_minima(NET, data, SQUARED, found, starts=0)
    assert all(coarse > fine for coarse, fine in pairwise([atlas.linear, *atlas.risks]))
    assert atlas.certified.all()
    assert len(atlas.trained) == len(atlas.settled) == len(atlas.proved) == 0
    assert "trainings" not in str(atlas)


@pytest.mark.parametrize("outputs", [1, 2])
def test_widths_are_the_neurons_that_a_minimum_needs(outputs):
    data = random_set((1, 2), 20, outputs)
    found = partitions(data.x, turned(4), 3, 12)
    needed = {1: {2: 3, 3: 5}, 2: {2: 5, 3: 8}}[outputs]
    wide = Network((1, 2), [Dense(needed[3]), Dense(outputs)])
    atlas = map_minima(wide, data, SQUARED, found, starts=0)
    assert atlas.certified.all()
    assert [needed[K] for K in atlas.groups] == atlas.widths.tolist()
    narrow = Network((1, 2), [Dense(needed[3] - 1), Dense(outputs)])
    with pytest.raises(ValueError, match="too few neurons"):
        map_minima(narrow, data, SQUARED, found, starts=0)


def test_trainings_end_where_they_end_alone(mapped):
    data, _, atlas = mapped
    assert len(atlas.trained) == 2
    for n, risk in enumerate(atlas.trained):
        theta = descend(kaiming_start(NET, 5 + n), data, SQUARED, 40)
        assert risk == pytest.approx(twin_risk(theta, data))
    assert len(set(atlas.trained)) == 2


def test_trainings_are_followed_to_minima_that_are_proved(mapped):
    data, _, atlas = mapped
    assert (atlas.settled <= atlas.trained).all()
    assert atlas.proved.dtype == bool and atlas.proved.any()
    for n in np.flatnonzero(atlas.proved)[:1]:
        end = settle(descend(kaiming_start(NET, 5 + n), data, SQUARED, 40), data, SQUARED, 200)
        assert certify_strict(end.theta, data, SQUARED, end.kinks).holds
        assert atlas.settled[n] == pytest.approx(twin_risk(end.theta, data), rel=1e-9)
    risks = atlas.settled[atlas.proved]
    assert f"{len(risks)} of them lead to proved strict local minima" in str(atlas)


def test_an_executor_gives_the_same_and_a_second_call_reads_it(mapped, tmp_path, monkeypatch):
    data, found, atlas = mapped
    monkeypatch.setattr("tinyspur.studies.atlas.CHUNK", 20)
    steps = []

    def stage(name, text, total, done):
        steps.append((name, text, total, done))
        return silent()

    with ThreadPoolExecutor(3) as executor:
        for _ in range(2):
            where = {"executor": executor, "path": tmp_path / "atlas.results", "stage": stage}
            other = map_minima(NET, data, SQUARED, found, 1, 40, seed=5, **where)
            assert vars(other).keys() == vars(atlas).keys()
            for name, array in vars(atlas).items():
                expected = array[:1] if name in ("trained", "settled", "proved") else array
                assert np.array_equal(expected, vars(other)[name]), name
    texts = "certifying 30 minima", "training from 1 random starts"
    assert steps == [  # 30 partitions, up to 20 at once
        *(("certificates", texts[0], 2, 0), ("trainings", texts[1], 1, 0)),
        *(("certificates", texts[0], 2, 2), ("trainings", texts[1], 1, 1)),
    ]


def test_what_was_saved_can_be_read(mapped, tmp_path):
    _, _, atlas = mapped
    atlas.save(tmp_path / "atlas.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["atlas.npz"]
    with np.load(tmp_path / "atlas.npz", allow_pickle=False) as file:
        again = Atlas(**file)
    for name, array in vars(atlas).items():
        assert np.array_equal(array, vars(again)[name]), name
        assert np.asarray(array).dtype == vars(again)[name].dtype


def test_it_is_told_in_a_line_for_each_number_of_groups(mapped):
    _, _, atlas = mapped
    lines = str(atlas).splitlines()
    assert lines[0].startswith("30 certified local minima of 30 partitions")
    for K, line in zip((2, 3, 4), lines[1:4], strict=True):
        assert line.split()[:4] == [str(K), "groups,", str(2 * K - 1), "neurons:"]
        assert f" {(atlas.groups == K).sum()} certified" in line
    assert "2 trainings" in lines[4]


def test_no_partitions_are_refused():
    with pytest.raises(ValueError, match="expected partitions"):
        map_minima(NET, random_set((1, 2), 20, 1), SQUARED, [])


# The program


def test_the_program_writes_arrays_and_figure(tmp_path, capsys, monkeypatch):
    program = load_program(PROGRAM)
    monkeypatch.setattr(program, "processes", Pickling)
    options = ["--minima", 12, "--starts", 1, "--workers", 2, "--out", tmp_path]
    assert program.main([*map(str, options)]) == 0
    printed = capsys.readouterr().out
    assert "12 certified local minima of 12 partitions" in printed
    assert "1 trainings" in printed
    names = ["atlas.npz", "atlas.png", "atlas.results"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    data = program.surface(30, 0)
    with np.load(tmp_path / "atlas.npz", allow_pickle=False) as file:
        atlas = dict(file)
    assert atlas["labels"].shape == (12, 30)
    for n, labels in enumerate(atlas["labels"]):
        assert atlas["risks"][n] == pytest.approx(group_risk(data, labels), rel=1e-7, abs=1e-12)
    assert atlas["certified"].all()
    assert atlas["linear"] == pytest.approx(group_risk(data, np.zeros(30, int)))
    net = Network((1, 2), [Dense(11), Dense(1)])
    for n, risk in enumerate(atlas["trained"]):
        theta = descend(kaiming_start(net, n), data, SQUARED, 500)
        assert risk == pytest.approx(net.risk(theta, data, SQUARED), rel=1e-6)
    picture = imread(tmp_path / "atlas.png")
    assert picture.shape[1] > 1000
    assert picture[..., :3].std() > 0.05


@pytest.mark.parametrize(
    "options",
    [
        ["--samples", "3"],
        ["--groups", "1"],
        ["--minima", "0"],
        ["--workers", "0"],
        ["--starts", "-1"],
        ["--seed", "none"],
        ["--minimum", "1"],
    ],
)
def test_bad_options_end_in_one_line(options, tmp_path, capsys):
    ran = run_here(PROGRAM, capsys, *options, "--out", tmp_path)
    assert ran.returncode == 2
    assert ran.err.startswith("error: ")
    assert ran.err.count("\n") == 1
    assert not list(tmp_path.iterdir())
