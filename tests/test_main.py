"""The program: its help, its version, its exit status, and no input breaks it."""

import os
import re
from importlib.metadata import PackageNotFoundError

import pytest
from command_line import POINT, QUICK, is_refused_in_one_line, over_bad_input
from shared import run_python

import tinyspur as ts
from tinyspur import __main__ as command
from tinyspur.commands import certify


def test_without_a_command_it_prints_help(run):
    done, asked = run(), run("--help")
    assert (done.status, asked.status) == (2, 0)
    assert done.text == asked.text
    assert "python -m tinyspur certify" in done.text and "python -m tinyspur inspect" in done.text
    assert not done.errors


@pytest.mark.parametrize("name", ["certify", "inspect"])
def test_help_has_examples_that_parse(run, name):
    done = run(name, "--help")
    assert done.status == 0
    examples = re.findall(rf"^  python -m tinyspur ({name} .*)$", done.text, re.M)
    assert len(examples) > 2
    for example in examples:
        assert command.parser().parse_args(example.split()).command == name


def test_examples_certify_with_the_loss_and_the_data_that_made_the_point(run):
    lines = [line.split() for line in run("certify", "--help").text.splitlines()]
    made = {}
    for line in lines:
        if line[:2] == ["python", "demos/cifar_spurious.py"]:
            made[line[-1]] = line[2:-2]
        elif line[:3] == ["python", "-m", "tinyspur"] and line[4].startswith("out"):
            given = made[os.path.dirname(line[4])]
            assert line[5 : 5 + len(given)] == given
    assert len(made) > 2


def test_help_says_what_the_seed_draws_and_which_folder_is_made(run):
    text = " ".join(run("certify", "--help").text.split())
    assert "of all random choices, also of the samples that are drawn (default: 0)" in text
    assert "a folder that does not exist is made" in text


BAD = [
    (["certify", ""], "argument point: expected a path, got an empty one$"),
    (["certify", "certified.npz", "--data", ""], "argument --data: expected a path, got an empty"),
    ([*POINT, "--loss", "hinge"], "argument --loss: invalid choice: 'hinge'"),
    ([*POINT, "--samples", "many"], "argument --samples: invalid int value: 'many'"),
    ([*POINT, "--json", ""], "argument --json: expected a path, got an empty one"),
    ([*POINT, "--colour"], "unrecognized arguments: --colour"),
    (["certify"], "the following arguments are required: point"),
    (["prove", "certified.npz"], "invalid choice: 'prove'"),
    (["inspect"], "the following arguments are required: point"),
    (["inspect", ""], "argument point: expected a path, got an empty one"),
    (["inspect", "mixed.npz", "--layer", "3", "--block", "0"], "--block: expected 2 arguments"),
]


@over_bad_input(BAD)
def test_bad_input_is_one_line(run, options, message):
    is_refused_in_one_line(run(*options), message)


def test_ctrl_c(run, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(certify, "find_certificate", interrupt)
    done = run(*POINT)
    assert done.status == 130
    assert done.errors.endswith("\ninterrupted\n")


def test_version(run, monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", lambda name: f"1.2.3 of {name}")
    assert run("--version").lines == [f"tinyspur {ts.__version__}"]


def test_version_where_nothing_is_installed(run, monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", missing)
    done = run("--version")
    assert (done.status, done.lines) == (0, [f"tinyspur {ts.__version__}"])


def test_the_module_runs(run):
    options = ["certify", "random.npz", *POINT[2:], *QUICK]
    done = run_python("-m", "tinyspur", *options)
    assert done.returncode == 1, done.stderr
    assert done.stdout == run(*options).text
