"""The exact counterexamples: the files, the page, and what the package says of them in float64."""

from fractions import Fraction

import numpy as np
import pytest
from shared import ROOT

import tinyspur as ts
from tinyspur.certificates.proofs import as_parameters, load_proof, save_proof
from tinyspur.constructions.convolutional_lattices import convolutional_lattice, patch_sums
from tinyspur.constructions.lattices import Lattice, lattice_network
from tinyspur.constructions.piecewise_linear import Groups
from tinyspur.studies.counterexamples import ROWS, e1, e7, e8, e10, e11
from tinyspur.studies.errata import checked, write_errata

ERRATA, CHECKER = ROOT / "demos" / "errata", ROOT / "demos" / "check_proof.py"
LOSS = ts.SquaredLoss()


def numbers(values):
    return np.vectorize(lambda text: float(Fraction(text)))(values)


def problem(proof):
    """Return the network, the data and the points of a proof in float64."""
    net = ts.Network.from_spec(proof["network"])
    data = ts.TrainingSet(numbers(proof["data"]["x"]), numbers(proof["data"]["y"]))
    return net, data, {name: as_parameters(net, p) for name, p in proof["points"].items()}


def test_the_files_beside_the_programs_are_those_that_are_made_and_checked(tmp_path):
    names = write_errata(tmp_path, CHECKER)
    assert {path.name for path in ERRATA.iterdir()} == set(names)
    for name in names:
        assert (tmp_path / name).read_bytes() == (ERRATA / name).read_bytes(), name


def test_a_proof_that_fails_is_told_in_the_words_of_the_checker(tmp_path):
    proof = e1().proofs["E1"] | {"coefficient": "-1/8"}
    save_proof(tmp_path / "p.json", proof)
    with pytest.raises(RuntimeError, match=r"the first term is \(-1/9\) t\^2"):
        checked(tmp_path / "p.json", CHECKER)


def test_a_page_of_somebody_else_is_not_replaced(tmp_path):
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(OSError, match=r"README\.md"):
        write_errata(tmp_path, CHECKER)
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


@pytest.mark.parametrize("path", sorted(ERRATA.glob("*.json")), ids=lambda path: path.stem)
def test_risks_and_the_fall_along_directions_are_those_of_the_engine(path):
    proof = load_proof(path)
    net, data, points = problem(proof)
    for name, text in proof.get("risks", {}).items():
        assert net.risk(points[name], data, LOSS) == pytest.approx(float(Fraction(text)))
    if "direction" in proof:
        d, theta, t = as_parameters(net, proof["direction"]), points["theta"], 1e-4
        moved = net.risk(ts.Parameters(net, theta.vector + t * d.vector), data, LOSS)
        change = (moved - net.risk(theta, data, LOSS)) / t ** proof["order"]
        assert change == pytest.approx(float(Fraction(proof["coefficient"])), rel=1e-2)


def test_every_statement_of_the_audit_has_its_row():
    names = [row().name for row in ROWS]
    audited = {f"E{n}" for n in range(1, 12)} | {"E6b"}
    assert audited < set(names) and len(names) == len(set(names)) == 14


def test_the_package_builds_the_printed_theta_of_e1():
    net, data, points = problem(e1().proofs["E1"])
    theta, pair = ts.linear_minimum(net, data, LOSS, "literal")
    assert net.risk(theta, data, LOSS) == pytest.approx(net.risk(points["theta"], data, LOSS))
    for layer in (pair.lower, pair.upper):
        assert not theta.b[layer].any()
    assert ts.find_descent_direction(points["theta"], data, LOSS) is not None


def test_the_package_builds_the_printed_points_of_e7_and_e8():
    for erratum, name, isolated in ((e7(), "E7", 1), (e8(), "E8", 2)):
        net, data, points = problem(erratum.proofs[name])
        theta = ts.nontrivial_minimum(net, data, LOSS, isolated, variant="literal")
        risks = [net.risk(point, data, LOSS) for point in (theta, points["theta"])]
        assert risks[0] == pytest.approx(risks[1])


def test_the_package_builds_the_lattice_of_e10_and_it_is_not_stationary():
    _, data, points = problem(e10().proofs["E10"])
    lattice = Lattice(np.array([[0.0, 0], [-2, 7], [4, -4]]), ((0, 1), (1, 2)))
    theta = lattice_network((1, 1), [lattice], data.x)
    outputs = [p.net.forward(p, data.x) for p in (theta, points["theta"])]
    assert np.allclose(*outputs)
    assert abs(theta.net.gradient(theta, data, LOSS).vector).max() > 0.01


def test_the_package_builds_the_filter_of_e11_and_what_is_above_is_not_stationary():
    _, data, points = problem(e11().proofs["E11"])
    groups = Groups.at(patch_sums([1], data.x), np.ones(1), [])
    theta = convolutional_lattice([1], data, LOSS, groups).theta
    outputs = [p.net.forward(p, data.x) for p in (theta, points["theta"])]
    assert np.allclose(*outputs)
    assert abs(theta.net.gradient(theta, data, LOSS).vector).max() > 0.1
