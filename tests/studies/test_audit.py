"""The audit: every statement fails as printed and is mended, and the numbers say so.

Two points are put to the same test, each fails in its own way, and a table shows both.
"""

import contextlib
import functools
import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.image import imread
from shared import ROOT, Pickling, load_program, run_here

from tinyspur.refutations import escapes
from tinyspur.refutations.escapes import REACH
from tinyspur.studies import findings as compared
from tinyspur.studies.findings import table

PROGRAM = ROOT / "demos" / "audit.py"
COMPARED = ["E1", "E2", "E3", "E6b", "E7", "E8", "E10", "E11"]


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    """The program, run once on few images with a short search: what it found, said and wrote."""
    program, out = load_program(PROGRAM), tmp_path_factory.mktemp("audit")
    audit, found = program.audit, []

    def kept(*options):
        found.extend(audit(*options))
        return found

    search = functools.partial(compared.find_escape, starts=2, iterations=10)
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as said:
        patch.setattr(program, "audit", kept)
        patch.setattr(program, "processes", Pickling)
        patch.setattr(compared, "find_escape", search)
        patch.setattr(escapes, "TRIALS", 1)
        status = program.main(
            ["--samples", "200", "--seed", "1", "--workers", "2", "--out", str(out)]
        )
    return SimpleNamespace(status=status, findings=found, printed=said.getvalue(), out=out)


@pytest.fixture(scope="module")
def findings(audited):
    return {finding.name: finding for finding in audited.findings}


def test_there_is_a_row_for_each_error(findings):
    names = "E1 E2 E3 E4 E5 E6 E6b E7 E8 E9 E10 E11"
    assert list(findings) == names.split()


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
    share, fall = findings["E5"].curves["literal"]
    rise = -fall
    assert np.allclose(rise, rise[-1] * share**2, rtol=1e-6, atol=1e-14)


def test_the_printed_theta_prime_moves_other_outputs_only(findings):
    moved = -findings["E6"].curves["literal"][1]
    assert moved.min() < 1e-12
    assert np.sort(moved)[1] > 1e-3
    assert abs(findings["E6"].literal.values["change"]) > 1e-6
    assert findings["E6"].repaired.values["outputs"] < 1e-12
    assert abs(findings["E6"].repaired.values["change"]) < 1e-12


def test_the_cross_entropy_of_an_isolated_sample_has_no_minimiser(findings):
    scales, losses = findings["E9"].curves["literal"]
    assert (np.diff(losses) < 0).all()
    assert losses[scales == 1] == 0
    assert findings["E9"].curves["repaired"][1].min() == 0
    assert findings["E9"].literal.values["falling"] is True
    assert findings["E9"].repaired.verdict == "refused"


def test_the_program_writes_table_json_and_figure(audited):
    assert audited.status == 0
    report = json.loads((audited.out / "audit.json").read_text())
    assert (report["samples"], report["seed"]) == (200, 1)
    assert [row["name"] for row in report["rows"]][:2] == ["E1", "E2"]
    for row, finding in zip(report["rows"], audited.findings, strict=True):
        assert row == json.loads(json.dumps(finding.as_dict()))
        assert row["literal"]["text"].split()[0] in audited.printed
    assert {path.name for path in audited.out.iterdir()} == {
        "audit.json",
        "audit.png",
        "audit.results",
    }
    picture = imread(audited.out / "audit.png")
    assert picture.shape[1] > 1000
    assert picture[..., :3].std() > 0.05


@pytest.mark.parametrize("options", [["--samples", "0"], ["--samples", "5000"], ["--rows", "3"]])
def test_bad_options_end_in_one_line(options, tmp_path, capsys):
    ran = run_here(PROGRAM, capsys, "--out", tmp_path, *options)
    assert ran.returncode == 2
    assert ran.err.strip().splitlines()[-1].startswith("error: ")
    assert not list(tmp_path.iterdir())


def test_what_is_below_zero_failed_and_what_is_repaired_is_not(findings):
    for finding in findings.values():
        (_, printed), (_, repaired) = finding.curves["literal"], finding.curves["repaired"]
        assert printed.min() < -1e-9
        assert repaired.min() >= -2e-3 * abs(printed).max()  # (8) is of first order


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


def test_the_table_has_both_sides_of_every_row(findings):
    text = table(list(findings.values()))
    assert text.count("as printed") == text.count("repaired  ") == len(findings)
    for finding in findings.values():
        assert finding.statement in text
        assert finding.literal.verdict in text
    assert max(map(len, text.splitlines())) <= 140
