"""Findings: two points are put to the same test, each fails in its own way, a table shows both."""

import pytest

from tinyspur.refutations.escapes import REACH
from tinyspur.studies.findings import table

COMPARED = ["E1", "E2", "E3", "E6b", "E7", "E8", "E10", "E11"]


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
