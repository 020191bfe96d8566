"""All certificates share one shape, and `certify` finds the one that is for a point."""

import json
import math
from dataclasses import fields, is_dataclass

import numpy as np
import pytest
from shared import LOG_COSH

import tinyspur as ts
from tinyspur.certificates import CERTIFICATES, Certificate, certify
from tinyspur.certificates.certificate import round_down, round_up
from tinyspur.layers import AveragePool, Conv, Dense

RNG = np.random.default_rng(0)
DATA = ts.TrainingSet(RNG.uniform(size=(30, 1, 3, 3)), RNG.normal(size=(30, 2)))
FLAT = ts.TrainingSet(RNG.normal(size=(30, 1, 2)), RNG.normal(size=(30, 1)))
RELU, LEAKY = ts.ReLU(), ts.ReLU(0.1)
SMOOTH = ts.Network((1, 2), [Dense(3), Dense(1)], ts.Tanh())


def minimum():
    net = ts.Network((1, 3, 3), [Conv(3), Conv(4), Conv(4), Dense(2)])
    return *ts.linear_minimum(net, DATA, ts.SquaredLoss()), DATA


def certificates():
    """Return certificates of every kind, that hold and that don't."""
    loss = ts.SquaredLoss()
    theta, pair, data = minimum()
    other = ts.kaiming_start(theta.net, 0)
    smooth = ts.smooth_minimum(SMOOTH, FLAT.x)
    bare = ts.Network((1, 3, 3), [Dense(2)])
    return {
        "cell": ts.certify_cell(theta, data, loss),
        "cell without hidden units": ts.certify_cell(bare.zeros(), data, loss),
        "no cell": ts.certify_cell(other, data, loss),
        "relay": ts.certify_relays(theta, data, loss, pair.lower),
        "relay without activations above": ts.certify_relays(theta, data, loss, theta.net.depth),
        "no relay": ts.certify_relays(other, data, loss, pair.lower),
        "curvature": smooth.certificate,
        "no curvature": ts.certify_curvature(ts.kaiming_start(SMOOTH, 0), FLAT, loss),
    }


FOUND = certificates()
over_certificates = pytest.mark.parametrize("name", FOUND)


@over_certificates
def test_a_certificate_has_the_shape_of_all(name):
    found = FOUND[name]
    assert isinstance(found, Certificate)
    assert is_dataclass(found)
    assert isinstance(found.holds, bool)
    assert isinstance(found.evidence_only, bool)
    assert found.radius >= 0
    assert found.holds == (not name.startswith("no ") and found.radius > 0) or "hidden" in name
    assert found.words.startswith("certified local minimum" if found.holds else "not certified")


@over_certificates
def test_it_prints_its_kind_and_whether_it_holds_first(name):
    found = FOUND[name]
    first, *others = str(found).split("\n")
    holds = "holds, a local minimum" if found.holds else "does not hold"
    assert first == f"{found.kind} certificate: {holds}"
    assert others == [f"  {line}" for line in found.lines()]


@over_certificates
def test_what_a_report_holds_is_plain_json(name):
    report = FOUND[name].as_dict()
    keys = ["kind", "holds", "classes", "margin", "radius", "stationarity", "evidence_only"]
    assert list(report)[:7] == keys
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    for key in keys:
        value = getattr(FOUND[name], key)
        assert report[key] == (None if value == math.inf else value)


def test_every_kind_is_listed_once_and_can_not_be_changed():
    kinds = [kind for kind, _ in CERTIFICATES]
    assert len({kind.kind for kind in kinds}) == len(kinds)
    for found in FOUND.values():
        with pytest.raises(AttributeError):
            setattr(found, fields(found)[0].name, True)


@pytest.mark.parametrize("sigma", [RELU, LEAKY, ts.Tanh(), ts.GELU()], ids=str)
@pytest.mark.parametrize("loss", [ts.SquaredLoss(), ts.AbsoluteLoss()], ids=lambda loss: loss.name)
@pytest.mark.parametrize("layers", [[Dense(3), Dense(1)], [AveragePool(2), Dense(1)]], ids=str)
def test_a_kind_applies_exactly_where_it_does_not_refuse(sigma, loss, layers):
    net = ts.Network((1, 2), layers, sigma)
    theta = ts.kaiming_start(net, 0)
    for kind, check in CERTIFICATES:
        if kind.applies(theta, loss):
            assert check(theta, FLAT, loss).kind == kind.kind
        else:
            with pytest.raises(ValueError, match="expected"):
                check(theta, FLAT, loss)


def test_certify_takes_the_kind_that_is_for_the_point():
    theta, _, data = minimum()
    loss = ts.SquaredLoss()
    assert certify(theta, data, loss) == FOUND["cell"]
    assert not certify(ts.kaiming_start(theta.net, 0), data, loss).holds
    smooth = ts.smooth_minimum(SMOOTH, FLAT.x)
    assert certify(smooth.theta, smooth.data, loss) == smooth.certificate
    assert not certify(ts.kaiming_start(SMOOTH, 0), FLAT, loss).holds


def test_where_no_kind_applies_the_error_says_why_for_each():
    words = "no certificate: cell .*piecewise linear .*; curvature .*squared.*; strict .*package"
    net = ts.Network(SMOOTH.input_shape, SMOOTH.layers, LOG_COSH)
    with pytest.raises(ts.AssumptionError, match=words):
        certify(ts.kaiming_start(net, 0), FLAT, ts.HuberLoss())


@pytest.mark.parametrize("value", [0.0, 1e-300, 0.0123456, 0.999999, 1.0, 123456.0, math.inf])
def test_a_radius_is_never_printed_larger_than_it_is(value):
    assert 0.99 * value <= float(round_down(value)) <= value or value == 1e-300


@pytest.mark.parametrize(
    "value", [0.0, 5e-324, 3.612e-24, 0.00048828125, 1.0, 9.91, 1234.5, math.inf]
)
def test_a_distance_is_never_printed_smaller_than_it_is(value):
    assert value <= float(round_up(value)) <= 1.1 * value


def test_small_distances_are_printed_with_an_exponent_and_others_without():
    printed = [round_up(value) for value in (0.0, 1.44e-8, 1.44e-6, 1.44e-5, 0.00144, 14.4)]
    assert printed == ["0", "1.5e-8", "1.5e-6", "1.5e-5", "0.0015", "15"]
