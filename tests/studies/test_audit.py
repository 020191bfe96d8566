"""The audit: every statement fails as printed and is mended, and the numbers say so."""

import json

import numpy as np
import pytest
from matplotlib.image import imread
from shared import ROOT, run_python

from tinyspur.refutations.escapes import REACH
from tinyspur.studies import audit
from tinyspur.studies.findings import table

PROGRAM = ROOT / "demos" / "audit.py"
COMPARED = ["E1", "E2", "E3", "E6b", "E7", "E8", "E10", "E11"]


@pytest.fixture(scope="module")
def findings():
    return {finding.name: finding for finding in audit.audit(samples=200, seed=1)}


def test_there_is_a_row_for_each_error(findings):
    names = "E1 E2 E3 E4 E5 E6 E6b E7 E8 E9 E10 E11"
    assert list(findings) == names.split()


@pytest.mark.parametrize("name", COMPARED)
def test_near_the_printed_point_there_is_a_lower_one_and_the_repaired_one_is_certified(
    findings, name
):
    literal, repaired = findings[name].literal, findings[name].repaired
    assert literal.verdict == "not a local minimum"
    assert not literal.holds
    assert literal.values["decrease"] > 0
    assert 0 < literal.values["distance"] <= REACH
    assert repaired.verdict == "certified local minimum"
    assert repaired.holds
    assert repaired.values["lower_point_found"] is False
    assert repaired.values["radius"] > 0
    x, y = findings[name].curves["literal"]
    assert y[0] == 0
    assert y[-1] < 0 < x[-1]
    x, y = findings[name].curves["repaired"]
    assert y[x <= repaired.values["radius"]].min() >= -1e-12


def test_each_point_fails_in_its_own_way(findings):
    values = {name: findings[name].literal.values for name in COMPARED}
    assert values["E1"]["gradient"] < 1e-10
    assert "one_sided_derivative" not in values["E1"]
    assert values["E1"]["second_order_rate"] < 0
    assert values["E2"]["gradient"] < 1e-8
    assert values["E2"]["one_sided_derivative"] < 0
    assert values["E3"]["gradient"] > 1e-3
    assert values["E6b"]["gradient"] > 1e-3
    assert values["E7"]["gradient"] > 1e-4
    assert values["E8"]["gradient"] > 1e-4
    assert values["E10"]["gradient"] > 1e-3
    assert values["E11"]["gradient"] > 1e-3
    classes = [findings[name].repaired.values["classes"] for name in COMPARED]
    assert classes == [1, 2, 1, 1, 2, 3, 5, 1]


def test_the_printed_threshold_leaves_sums_of_u_elsewhere(findings):
    literal, repaired = findings["E4"].literal, findings["E4"].repaired
    assert literal.values["violations"] > 0
    assert literal.values["slope"] != pytest.approx(literal.values["promised"], rel=1e-3)
    assert repaired.values["violations"] == 0
    assert repaired.values["slope"] == pytest.approx(repaired.values["promised"], rel=1e-9)


def test_the_perturbed_risk_rises_and_the_lower_point_is_lower_all_the_same(findings):
    literal, repaired = findings["E5"].literal, findings["E5"].repaired
    assert literal.values["rise"] > 0
    assert literal.values["rate"] == pytest.approx(
        literal.values["rise"] / literal.values["t"] ** 2
    )
    assert repaired.values["decrease"] > 0
    assert repaired.holds
    share, rise = findings["E5"].curves["literal"]
    assert np.allclose(rise, rise[-1] * share**2, rtol=1e-6, atol=1e-14)


def test_the_printed_theta_prime_moves_other_outputs_only(findings):
    _, moved = findings["E6"].curves["literal"]
    assert moved.min() < 1e-12
    assert np.sort(moved)[1] > 1e-3
    assert abs(findings["E6"].literal.values["change"]) > 1e-6
    assert findings["E6"].repaired.values["outputs"] < 1e-12
    assert abs(findings["E6"].repaired.values["change"]) < 1e-12


def test_the_cross_entropy_of_an_isolated_sample_has_no_minimiser(findings):
    _, losses = findings["E9"].curves["literal"]
    assert (np.diff(losses) < 0).all()
    assert losses[-1] > 0
    assert findings["E9"].literal.values["falling"] is True
    assert findings["E9"].repaired.verdict == "refused"


def test_the_table_has_both_sides_of_every_row(findings):
    text = table(list(findings.values()))
    assert text.count("as printed") == text.count("repaired  ") == len(findings)
    for finding in findings.values():
        assert finding.statement in text
        assert finding.literal.verdict in text
    assert max(map(len, text.splitlines())) <= 140


def test_the_program_writes_table_json_and_figure(tmp_path):
    ran = run_python(PROGRAM, "--samples", "120", "--out", tmp_path)
    assert ran.returncode == 0, ran.stderr
    report = json.loads((tmp_path / "audit.json").read_text())
    assert report["samples"] == 120
    assert [row["name"] for row in report["rows"]][:2] == ["E1", "E2"]
    for row in report["rows"]:
        assert row["literal"]["text"].split()[0] in ran.stdout
    picture = imread(tmp_path / "audit.png")
    assert picture.shape[1] > 1000
    assert picture[..., :3].std() > 0.05


@pytest.mark.parametrize("options", [["--samples", "0"], ["--samples", "5000"], ["--rows", "3"]])
def test_bad_options_end_in_one_line(options, tmp_path):
    ran = run_python(PROGRAM, "--out", tmp_path, *options)
    assert ran.returncode == 2
    assert ran.stderr.strip().splitlines()[-1].startswith("error: ")
    assert not list(tmp_path.iterdir())
