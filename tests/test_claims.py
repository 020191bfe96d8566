"""What the READMEs say in numbers is so, where it can be counted; what is timed has no test."""

import configparser
import json
import math
import re
from fractions import Fraction

import numpy as np
import pytest
from shared import ROOT, load_program
from test_readme import spans, tables

import tinyspur as ts
from tinyspur.fitting.cost import GPU_RATE, training_flops
from tinyspur.studies.audit import ROWS
from tinyspur.studies.trained_problems import PROBLEMS

TOP = (ROOT / "README.md").read_text("utf-8")
DEMOS = (ROOT / "demos" / "README.md").read_text("utf-8")
ORDER = (
    "Two commands",
    "Three minima of one network",
    "Your own data",
    "From PyTorch and back",
    "What is proved",
    "What training finds",
    "Landscapes",
    "Which function",
    "More",
)
SAID = {  # an option's default in the table, where it isn't the number or word itself
    "any": None,
    "see below": None,
    "at most 4,000; all with `paper`": None,
    "12; 3 with over 10,000 images": None,
    "one for each core": None,
    "all": None,
}


def prose(text):
    return " ".join(text.split())


def program(name):
    return load_program(ROOT / "demos" / name)


def counted(pattern, text=TOP):
    """Return the numbers of the one sentence that has this form."""
    [found] = re.findall(pattern, prose(text))
    found = (found,) if isinstance(found, str) else found
    return [int(number.replace(",", "")) for number in found]


def test_the_top_readme_is_short_and_in_its_order():
    assert len(TOP.encode()) <= 16_000
    assert tuple(re.findall(r"^## (.*)$", TOP, re.MULTILINE)) == ORDER
    assert len(re.findall(r"^- \*\*", TOP.split("## ")[0], re.MULTILINE)) == 5


def test_the_versions_are_those_of_the_setup():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert setup["options"]["python_requires"] == ">=" + re.search(r"Python (\S+) or newer", TOP)[1]
    torch = re.search(r"torch==(\d+\.\d+)", setup["options.extras_require"]["test"])[1]
    assert re.search(r"than PyTorch (\S+) the", prose(DEMOS))[1] == torch


def test_the_bundled_images_and_those_of_the_tests_are_as_many():
    each, kinds = ts.datasets.bundled(), range(10)
    counts = [int((each.labels == kind).sum()) for kind in kinds]
    assert counts == counted(r"the first (\d+) training images of each class") * 10
    assert sum(counts) == counted(r"takes the ([\d,]+) Fashion-MNIST images", DEMOS)[0]
    with np.load(ROOT / "tests" / "cifar10_sample_20.npz") as sample:
        assert [len(sample["images"])] == counted(r"The (\d+) CIFAR-10 images of the", DEMOS)
    gray, colour = counted(r"fits up to ([\d,]+) of these .* up to ([\d,]+) colour images", DEMOS)
    assert gray == each.images[0].size + 1
    assert colour == 3 * 32 * 32 + 1


def test_the_errors_are_those_of_the_table_and_each_has_its_example():
    first, last = counted(r"the errors E(\d+) to E(\d+)")
    page = (ROOT / "tests" / "README.md").read_text("utf-8")
    rows = re.findall(r"^\| (E\d+)\b", page, re.MULTILINE)
    assert {*rows} == {f"E{n}" for n in range(first, last + 1)}
    assert len(ROWS) == last + 1  # E6 has two parts
    assert "twelve statements" in DEMOS and "Twelve statements" in DEMOS and len(ROWS) == 12


def test_the_200_trainings_are_the_rows_of_their_table():
    [rows] = [rows for _, header, rows in tables(DEMOS) if header[0] == "`--problems`"]
    assert [spans(row[0])[0] for row in rows] == list(PROBLEMS)
    number = [[int(re.match(r"\d+", cell)[0]) for cell in row[2:6]] for row in rows]
    proved, spurious, zero, _ = map(sum, zip(*number, strict=True))
    assert all(p + z + other == 40 and s <= p for p, s, z, other in number)
    found = counted(r"of (\d+) trainings finds (\d+) in proved minima, (\d+) of .* (\d+) at R = 0")
    assert found == [40 * len(rows), proved, spurious, zero]
    teachers = [row for row in number if row[2]]
    assert counted(r"these (\d+) minima are all different", DEMOS) == [sum(t[0] for t in teachers)]
    assert all(t[3] == 0 for t in teachers)


def test_the_minimum_to_be_read_is_that_of_its_file():
    file = json.loads((ROOT / "demos" / "trained_minimum.json").read_text())
    assert "two units, eight samples of small integers, three of them at kinks" in prose(DEMOS)
    assert file["network"]["layers"][0] == {"type": "dense", "width": 2}
    assert (len(file["data"]["x"]), len({sample for sample, *_ in file["kinks"]})) == (8, 3)
    digits = re.findall(r"\d+", json.dumps([file["points"], file["multipliers"], file["risks"]]))
    assert max(map(len, digits)) == 4 and "fractions of up to four digits" in prose(DEMOS)
    assert (
        re.search(r"R is (\S+), and that of the teacher is 0", prose(DEMOS))[1]
        == (file["risks"]["theta"])
    )
    assert Fraction(file["risks"]["theta"]) > Fraction(file["risks"]["lower"]) == 0


def test_the_studies_have_the_sizes_that_are_named():
    atlas = program("atlas.py").parse([])
    minima, parameters, trainings, proved, again = counted(
        r"maps ([\d,]+) certified minima of one network with (\d+) parameters, and follows (\d+) "
        r"trainings .* for (\d+) of the (\d+) it is proved",
        DEMOS,
    )
    units = 2 * atlas.groups - 1
    assert (minima, trainings, again) == (atlas.minima, atlas.starts, atlas.starts)
    assert parameters == ts.Network((1, 2), [ts.Dense(units), ts.Dense(1)]).size
    assert 0 < proved < trainings
    smooth = program("smooth_activations.py")
    options = smooth.parse([])
    assert len(smooth.ACTIVATIONS) == 9 and "minima of nine activations" in DEMOS
    widest, samples = counted(r"up to ([\d,]+) units on (\d+) samples", DEMOS)
    assert (widest, samples) == (max(options.widths), options.samples)


def test_the_checker_is_as_short_as_it_is_said_to_be():
    [most] = counted(r"one file of less than (\d+) lines", DEMOS)
    lines = (ROOT / "demos" / "check_proof.py").read_text().count("\n")
    assert most - 50 < lines < most


def test_the_papers_network_costs_what_is_said():
    main = program("cifar_spurious.py")
    maps, epochs = main.ARCHITECTURES["paper"]
    small, paper = re.search(
        r"have ([\d ]+) maps, the paper's seven ([\d ]+)\.", prose(DEMOS)
    ).groups()
    assert [*map(int, small.split())] == main.ARCHITECTURES["small"][0]
    assert [*map(int, paper.split())] == maps
    net = ts.Network((3, 32, 32), [*map(ts.Conv, maps[:-2]), ts.Dense(10)])  # below the pair
    flops = training_flops(net, 50_000, epochs)
    said, minutes = re.search(
        r"CIFAR-10 (\S+) operations \((\d+) minutes at", prose(DEMOS)
    ).groups()
    assert f"{flops:.1e}".replace("e+", "e") == said
    assert round(flops / GPU_RATE / 60) == int(minutes)


def test_the_layers_that_are_timed_are_those_of_the_benchmark():
    [rows] = [rows for _, header, rows in tables(DEMOS) if header[0] == "layer"]
    benchmark = program("benchmark.py")
    names = [
        f"{kind} pooling, size {size}, stride {stride}, of {maps} maps of {side} × {side}"
        for kind, maps, side, size, stride, _ in benchmark.POOLINGS
    ]
    first, *wide = ((C, T, benchmark.SIDE, 3, 1, 1) for C, T in benchmark.WIDE)
    names += [
        f"convolution {below}-{maps}, {size} × {size} of {side} × {side}"
        + f", stride {stride}" * (stride > 1)
        for below, maps, side, size, stride, _ in (
            *(first, *benchmark.LENET, *benchmark.RESNET),
            *wide,
        )
    ]
    assert [row[0] for row in rows] == names
    for _, *ratios, milliseconds, product, copy, forward, both in rows:
        assert all(0.1 < float(ratio) < 100 for ratio in (*ratios, forward, both))
        assert 0.1 < float(milliseconds) < 10_000
        assert all(0 <= int(share.removesuffix(" %")) <= 100 for share in (product, copy))


@pytest.mark.parametrize(
    ("name", "anchor"), [("cifar_spurious.py", "--data"), ("trained_minima.py", "--runs")]
)
def test_the_defaults_of_a_table_of_options_are_those_of_the_program(name, anchor):
    found = [
        rows for _, header, rows in tables(DEMOS) if header == ["option", "meaning", "default"]
    ]
    [rows] = [rows for rows in found if spans(rows[0][0])[0].startswith(anchor)]
    options = program(name).parse([])
    for cell, _, said in rows:
        flags = re.findall(r"--([a-z-]+)", cell)
        words = re.split(r"[,;] (?=[\d`])", said.split(";")[0]) if said not in SAID else [said]
        words = words if len(words) == len(flags) else [said.split(";")[0]] * len(flags)
        for flag, word in zip(flags, words, strict=True):
            default = getattr(options, flag.replace("-", "_"), None)
            word = word.strip().strip("`")
            if said in SAID or not word:
                assert default in (None, False) or said in ("one for each core", "all")
            elif isinstance(default, list):
                assert " ".join(map(str, default)) == word, flag
            elif isinstance(default, int | float) and not isinstance(default, bool):
                assert math.isclose(float(word), default), flag
            else:
                assert str(default) == word, flag
