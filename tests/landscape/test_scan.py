"""Scans find the risks of PyTorch, and nothing lower where a certificate says that nothing is."""

import io
import re
import sys

import numpy as np
import pytest
from landscape_problems import (
    LOSS,
    NET,
    network,
    over_losses,
    over_networks,
    places,
    point,
    problem,
    risks_are_pytorchs,
    samples,
)
from shared import in_turn

from tinyspur import find_spurious_minimum
from tinyspur.datasets.samples import TrainingSet
from tinyspur.engine.losses import CrossEntropy, SquaredLoss
from tinyspur.landscape.planes import Lines, Plane
from tinyspur.landscape.scan import scan


@in_turn(over_losses, over_networks)
def test_risks_on_a_plane_are_pytorchs(name, loss):
    net = network(name)
    where = Plane(point(net), (point(net, 1), point(net, 2)), [-1.0, 0.0, 0.4], [0.0, 0.3, 2.0])
    risks_are_pytorchs(where, samples(net), loss)


@in_turn(over_losses, over_networks)
def test_risks_on_lines_are_pytorchs(name, loss):
    net = network(name)
    data = samples(net)
    risks_are_pytorchs(
        Lines(point(net), [point(net, s) for s in (1, 2, 3)], [-1, 0, 2]), data, loss
    )
    risks_are_pytorchs(Lines.random(point(net), 2, 4, "filter", True, 0.7, 5), data, loss)


@pytest.mark.parametrize("normalization", [None, "filter", "layer"])
def test_no_risk_is_lower_within_the_radius_of_a_certificate(certified, normalization):
    theta, _, data, radius = certified
    for seed in range(2):
        flat = Plane.random(theta, seed, normalization)
        extent = abs(flat.within(radius)).max()
        ticks = np.linspace(-extent, extent, 9)
        plane = Plane(theta, flat.directions, ticks, ticks)
        found = scan(plane, data, LOSS)
        inside = np.zeros(plane.shape, bool)
        for place, there in places(plane):
            inside[place] = abs(there.vector - theta.vector).max() <= radius
        assert 10 < inside.sum() < inside.size
        assert not found.lower[inside].any()
        assert (found.risks[inside] > found.centre + found.rounding).any()


def test_the_point_below_a_spurious_minimum_is_found_to_be_lower(certified):
    theta, pair, data, _ = certified
    found = find_spurious_minimum(theta, pair, data, LOSS)
    line = Lines.between(found.theta_prime, found.lower.theta, 7)
    assert scan(line, data, LOSS).lower_lines == 1
    ahead = scan(Lines.between(theta, found.theta_prime, 7), data, LOSS)
    assert not ahead.lower[0, [1, 5]].any()  # theta' has theta's risk


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p, d: scan(p, samples(NET), LOSS), "expected a Plane or Lines, got a Parameters"),
        (
            lambda p, d: scan(Lines(p, (d,), [1.0]), samples(NET), LOSS, executor=3),
            "expected an executor, got a int",
        ),
        (lambda p, d: scan(Lines(p, (d,), [1.0]), samples(NET).x, LOSS), "expected a TrainingSet"),
        (lambda p, d: scan(Lines(p, (d,), [1.0]), samples(NET), "squared"), "got 'squared'"),
        (lambda p, d: scan(Lines(p, (d,), [1.0]), samples(NET), SquaredLoss), "got <class"),
    ],
)
def test_what_is_no_scan_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make(point(NET), point(NET, 1))


def test_data_that_do_not_fit_are_refused():
    theta = point(NET)
    line, data = Lines.between(theta, point(NET, 1)), samples(NET)
    with pytest.raises(ValueError, match=r"inputs: expected \(N, 1, 5\), got \(7, 1, 4\)"):
        scan(line, TrainingSet(data.x[..., :4], data.y), LOSS)
    with pytest.raises(ValueError, match=r"targets: expected \(N, 3\), got \(7, 2\)"):
        scan(line, TrainingSet(data.x, data.y[:, :2]), LOSS)
    with pytest.raises(ValueError, match=r"cross-entropy: .* sample 0"):
        scan(line, TrainingSet(data.x, data.y + 1), CrossEntropy())


def test_the_progress_is_shown_if_asked_for(capsys):
    where, data, _ = problem(3)
    scan(where, data, LOSS)
    assert capsys.readouterr().err == ""
    scan(where, data, LOSS, progress=True)
    assert re.fullmatch(r"risks \.\.\. \d+\.\d s\n", capsys.readouterr().err)
    scan(where, data, LOSS, progress="the plane")
    assert re.fullmatch(r"the plane \.\.\. \d+\.\d s\n", capsys.readouterr().err)


def test_a_terminal_shows_how_many_risks_are_there(monkeypatch, tmp_path):
    where, data, _ = problem(3)
    for start in (0, 9):  # what is in the file is not done again
        stream = io.StringIO()
        stream.isatty = lambda: True
        monkeypatch.setattr(sys, "stderr", stream)
        scan(where, data, LOSS, path=tmp_path / "scan.npz", progress="the plane")
        assert "the plane: " in stream.getvalue()
        assert f" {start}/9 " in stream.getvalue()
        assert (" 0/9 " in stream.getvalue()) == (start == 0)
