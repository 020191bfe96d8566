"""The checker of proof files accepts what is true and proved, and nothing else."""

import ast
import json
import shutil
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from shared import ROOT, load_program, replaced

import tinyspur as ts
from tinyspur.certificates.proofs import as_parameters, proof, save_proof

PROGRAM = ROOT / "demos" / "check_proof.py"
LOSS = ts.SquaredLoss()
F = Fraction


@pytest.fixture(scope="module")
def checker():
    return load_program(PROGRAM)


def passes(checker, found):
    """Return whether the checker accepts a proof; what it refuses it refuses in words."""
    try:
        checker.check(json.loads(json.dumps(found)))
    except Exception as error:
        assert str(error)
        return False
    return True


# Proofs, each with the numbers that may change without making the claim false


def linear():
    net = ts.Network((1, 1), [ts.Dense(1)])
    theta = {"W1": [[0]], "b1": [F(1, 3)]}
    return proof("local-minimum", net, [[[0]], [[1]], [[2]]], [[0], [1], [0]], {"theta": theta})


def convolution():
    """Two pixels, a dead map, average pooling of the other one, which is always active."""
    net = ts.Network((1, 2), [ts.Conv(2), ts.AveragePool(2), ts.Dense(1)])
    x, y = [[[0, 0]], [[1, 0]], [[0, 1]], [[1, 1]]], [[0], [1], [1], [0]]
    W1 = [[[0, 1, 0]], [[0, 1, 0]]]
    theta = {"W1": W1, "b1": [1, -2], "W3": [[0, 5]], "b3": [F(1, 2)]}
    return proof("local-minimum", net, x, y, {"theta": theta}, risks={"theta": F(1, 8)})


def one_kink():
    """One hidden unit, at the kink for x = 2."""
    net = ts.Network((1, 1), [ts.Dense(1), ts.Dense(1)])
    theta = {"W1": [[F(-3, 11)]], "b1": [F(6, 11)], "W2": [[-1]], "b2": [F(-17, 11)]}
    x, y = [[[0]], [[1]], [[2]], [[3]]], [[-2], [-2], [-1], [-2]]
    return proof(
        "local-minimum",
        net,
        x,
        y,
        {"theta": theta},
        kinks=[(2, 1, 0)],
        multipliers=[F(1, 44)],
        frozen=[(2, "W", 0, 0)],
    )


def two_kinks():
    """Two units at kinks and a dead one."""
    net = ts.Network((1, 1), [ts.Dense(3), ts.Dense(1)])
    x, y = [-4, -3, -2, -1, 0, 1], [1, 3, -2, 3, -2, 2]
    theta = {
        "W1": [[F(-20, 19)], [F(15, 38)], [1]],
        "b1": [F(-40, 19), F(15, 19), -2],
        "W2": [[1, 1, 7]],
        "b2": [F(-5, 57)],
    }
    return proof(
        "local-minimum",
        net,
        np.reshape(x, (6, 1, 1)),
        np.reshape(y, (6, 1)),
        {"theta": theta},
        kinks=[(2, 1, 0), (2, 1, 1)],
        multipliers=[F(29, 171), F(17, 114)],
        frozen=[(2, "W", 0, u) for u in range(3)] + [(1, "W", 2, 0), (1, "b", 2)],
    )


def deep():
    """Two hidden layers of one unit, a kink in each; the lower one feeds an active unit."""
    net = ts.Network((1, 1), [ts.Dense(1), ts.Dense(1), ts.Dense(1)])
    theta = {"W1": [[F(-60, 101)]], "b1": [F(180, 101)], "W2": [[-1]], "b2": [F(240, 101)]}
    x, y = [[[v]] for v in (-3, -1, 1, 2, 3, 4)], [[-1], [-2], [2], [-2], [3], [0]]
    return proof(
        "local-minimum",
        net,
        x,
        y,
        {"theta": theta | {"W3": [[1]], "b3": [F(-130, 101)]}},
        kinks=[(4, 1, 0), (1, 2, 0)],
        multipliers=[F(83, 606), F(43, 606)],
        frozen=[(2, "W", 0, 0), (3, "W", 0, 0)],
    )


def saddle():
    """Two units at zero: the gradient is 0, the risk falls in the second order."""
    net = ts.Network((1, 1), [ts.Dense(1), ts.Dense(1)])
    theta = {"W1": [[0]], "b1": [0], "W2": [[0]], "b2": [F(1, 3)]}
    along = {"W1": [[1]], "b1": [-1], "W2": [[-1]], "b2": [0]}
    parts = {"direction": along, "order": 2, "coefficient": F(-1, 9)}
    x, y = [[[0]], [[1]], [[2]]], [[0], [1], [0]]
    return proof("not-a-local-minimum", net, x, y, {"theta": theta}, **parts)


def equal():
    """A max pooling; the points differ by the scale of a unit."""
    net = ts.Network((1, 2), [ts.Conv(1), ts.MaxPool(2), ts.Dense(1)], ts.ReLU(0.5))
    theta = {"W1": [[[0, 1, 0]]], "b1": [-1], "W3": [[2]], "b3": [3]}
    prime = {"W1": [[[0, 2, 0]]], "b1": [-2], "W3": [[1]], "b3": [3]}
    points = {"theta": theta, "theta_prime": prime}
    return proof("equal-risk", net, [[[0, 2]], [[-3, -1]]], [[0], [1]], points)


PROOFS = {  # with the numbers that may change: of maps and units without weight or dead
    linear: [],
    convolution: ["points theta W1", "points theta b1", "points theta W3 0 1"],
    one_kink: ["data x 3"],
    two_kinks: ["points theta W1 2", "points theta b1 2", "points theta W2 0 2"],
    deep: ["data x 0", "data x 5"],
    saddle: ["data x 0", "data x 1", "data y 0", "data y 1", "direction W1"],
    equal: ["data", "points theta W1 0 0 2", "points theta_prime W1 0 0 2"],
}


@pytest.mark.parametrize("make", PROOFS)
def test_what_is_true_is_proved(checker, make):
    assert passes(checker, make())


def leaves(value, path=()):
    """Yield where each number of a proof is, and the number."""
    if isinstance(value, dict | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(part, (*path, key))
    elif isinstance(value, int) or (isinstance(value, str) and value.lstrip("-")[:1].isdigit()):
        yield path, value


def is_still_true(found):
    """Judge a claim in float64: risks all around, along the direction, or outputs of both."""
    net = ts.Network.from_spec(found["network"])
    data = ts.TrainingSet(*([np.vectorize(lambda v: float(F(v)))(found["data"][k]) for k in "xy"]))
    points = {name: as_parameters(net, point) for name, point in found["points"].items()}
    theta, rng = points["theta"], np.random.default_rng(0)
    R = net.risk(theta, data, LOSS)
    if found["claim"] == "equal-risk":
        return np.allclose(*(net.forward(point, data.x) for point in points.values()))
    if found["claim"] == "not-a-local-minimum":
        d = as_parameters(net, found["direction"]).vector
        steps = np.array([1e-4, 2e-4])
        falls = [net.risk(ts.Parameters(net, theta.vector + t * d), data, LOSS) - R for t in steps]
        return np.allclose(falls, float(F(found["coefficient"])) * steps ** found["order"], 1e-2, 0)
    near = rng.uniform(-1, 1, (40, net.size)) * 10.0 ** rng.uniform(-5, -2, (40, 1))
    risks = [net.risk(ts.Parameters(net, theta.vector + d), data, LOSS) for d in near]
    return min(risks) >= R - 1e-13


@pytest.mark.parametrize("make", PROOFS)
def test_with_any_number_changed_a_proof_fails_or_its_claim_is_still_true(checker, make):
    found, kept = make(), set()
    for path, value in leaves(found):
        for step in [1] if isinstance(value, int) else [1, F(1, 7), F(-1, 3)]:
            other = value + step if isinstance(value, int) else str(F(value) + step)
            changed = replaced(found, path, other)
            if passes(checker, changed):
                assert is_still_true(changed), (path, other)
                where = " ".join(map(str, path))
                named = {name for name in PROOFS[make] if where.startswith(name)}
                assert named, (path, other)
                kept |= named
    assert kept == set(PROOFS[make])


def test_a_multiplier_below_its_bounds_fails_where_the_risk_falls_on_that_side(checker):
    found = one_kink()
    found["data"]["y"] = [["-2"], ["-1"], ["-1"], ["-2"]]
    theta = {"W1": [["2/11"]], "b1": ["-2/11"], "W2": [["-1"]], "b2": ["-15/11"]}
    found |= {"points": {"theta": theta}, "kinks": [[1, 1, 0]], "multipliers": ["-3/44"]}
    assert not passes(checker, found)
    assert not is_still_true(found)


def hinge(residual=2):
    """One unit x^+ with residuals 1 - r, 0, r, -2, 1: lambda = 1/5, and C = r/5 at x = 0."""
    net = ts.Network((1, 1), [ts.Dense(1), ts.Dense(1)])
    theta = {"W1": [[1]], "b1": [0], "W2": [[1]], "b2": [0]}
    x, y = [[[v]] for v in range(-2, 3)], [[residual - 1], [0], [-residual], [3], [1]]
    parts = {"kinks": [(2, 1, 0)], "multipliers": [F(1, 5)], "frozen": [(2, "W", 0, 0)]}
    return proof("local-minimum", net, x, y, {"theta": theta}, **parts)


def test_a_multiplier_above_its_bounds_fails_where_the_risk_falls_on_that_side(checker):
    assert passes(checker, hinge())
    found = hinge(residual=F(1, 2))
    assert not passes(checker, found) and not is_still_true(found)


def test_the_hessian_needs_to_be_positive_only_where_kinks_stay(checker):
    """Residuals -4, 8, -8, 4 of x^+ with W1 frozen: it is indefinite in b1, W2 and b2."""
    found = hinge()
    found["data"] = {"x": [[["-1"]], [["0"]], [["1"]], [["2"]]]}
    found["data"]["y"] = [["4"], ["-8"], ["9"], ["-2"]]
    found |= {"kinks": [[1, 1, 0]], "multipliers": ["1"], "frozen": [[1, "W", 0, 0]]}
    assert passes(checker, found) and is_still_true(found)


def test_a_direction_along_which_the_risk_rises_proves_nothing(checker):
    found = saddle()
    found |= {"coefficient": "1/9"}
    found["direction"]["W2"] = [["1"]]
    assert not passes(checker, found)


def test_equal_kinks_of_two_pixels_count_as_one(checker):
    one = hinge()
    net = ts.Network((1, 2), [ts.Conv(1, 1), ts.AveragePool(2), ts.Dense(1)])
    theta = {"W1": [[[1]]], "b1": [0], "W3": [[1]], "b3": [0]}
    x = [[[v, v]] for v in range(-2, 3)]
    parts = {"kinks": [(2, 1, 1)], "multipliers": [F(1, 5)], "frozen": [(3, "W", 0, 0)]}
    assert passes(
        checker, proof("local-minimum", net, x, one["data"]["y"], {"theta": theta}, **parts)
    )


def test_a_leaky_layer_is_never_dead(checker):
    net = ts.Network((1, 1), [ts.Dense(1), ts.Dense(1)], ts.ReLU(0.5))
    theta = {"W1": [[1]], "b1": [-9], "W2": [[1]], "b2": [F(13, 3)]}
    found = proof("local-minimum", net, [[[0]], [[1]], [[2]]], [[0], [1], [0]], {"theta": theta})
    assert not passes(checker, found) and not is_still_true(found)


def test_leaky_entries_that_are_both_0_are_not_the_same(checker):
    """The means of 1 and -2/2, and of 2 and -4/2, are 0: which is larger depends on the bias."""
    net = ts.Network(
        (1, 4), [ts.Conv(1, 1), ts.AveragePool(2), ts.MaxPool(2), ts.Dense(1)], ts.ReLU(0.5)
    )
    theta = {"W1": [[[1]]], "b1": [0], "W4": [[1]], "b4": [F(1, 3)]}
    y = [[0], [1], [0]]
    found = proof("local-minimum", net, [[[1, -2, 2, -4]]] * 3, y, {"theta": theta})
    assert not passes(checker, found)
    assert passes(checker, replaced(found, ("data", "x"), [[["1", "-2", "2", "-5"]]] * 3))


def test_equal_kinks_count_as_one(checker):
    found = one_kink()
    for key in "xy":
        found["data"][key] *= 2  # each sample twice: R is the same, and so are the sums of C
    assert passes(checker, found)
    twice = found | {"kinks": [[2, 1, 0], [6, 1, 0]], "multipliers": ["1/88", "1/88"]}
    assert not passes(checker, twice)


@pytest.mark.parametrize(
    "make, frozen",
    [
        (one_kink, []),  # scaling the unit does not change R
        (one_kink, [(1, "b", 0), (1, "W", 0, 0)]),  # scaled twice
        (one_kink, [(1, "b", 0), (2, "b", 0)]),  # no factor gives an output's bias back
        (one_kink, [(3, "W", 0, 0)]),
        (one_kink, [(2, "W", 1, 0)]),
        (two_kinks, [(2, "W", 0, 0), (2, "W", 0, 2)]),
        (deep, [(2, "W", 0, 0)]),
        (deep, [(2, "W", 0, 0), (3, "W", 0, 0), (1, "W", 0, 0)]),
        (deep, [(2, "W", 0, 0), (3, "W", 0, 0), (2, "b", 0)]),
        (deep, [(2, "W", 0, 0), (3, "W", 0, 0), (3, "b", 0)]),
    ],
)
def test_no_more_may_be_frozen_than_can_be_given_back(checker, make, frozen):
    assert not passes(checker, make() | {"frozen": [list(place) for place in frozen]})


def test_a_frozen_weight_of_0_is_not_given_back_by_scaling(checker):
    """The unit is active for x = 2 alone; its weight should grow."""
    net = ts.Network((1, 1), [ts.Dense(1), ts.Dense(1)])
    theta = {"W1": [[1]], "b1": [F(-3, 2)], "W2": [[0]], "b2": [F(1, 3)]}
    x, y = [[[0]], [[1]], [[2]]], [[0], [0], [1]]
    parts = {"kinks": [], "multipliers": [], "frozen": [(2, "W", 0, 0)]}
    found = proof("local-minimum", net, x, y, {"theta": theta}, **parts)
    assert not passes(checker, found) and not is_still_true(found)


def test_a_factor_gives_back_only_one_of_two_weights_that_read_a_map(checker):
    """The outputs x and x of the targets 2x and 0: one weight should grow, the other fall."""
    net = ts.Network((1, 1), [ts.Dense(1), ts.Dense(2)])
    theta = {"W1": [[1]], "b1": [2], "W2": [[1], [1]], "b2": [-2, -2]}
    x, y = [[[-1]], [[0]], [[1]]], [[-2, 0], [0, 0], [2, 0]]
    parts = {"kinks": [], "multipliers": [], "frozen": [(2, "W", 0, 0), (2, "W", 1, 0)]}
    found = proof("local-minimum", net, x, y, {"theta": theta}, **parts)
    assert not passes(checker, found) and not is_still_true(found)


def test_a_stationary_point_with_an_indefinite_hessian_is_refused(checker):
    net = ts.Network((1, 1), [ts.Dense(1), ts.Dense(1)])
    theta = {"W1": [[0]], "b1": [1], "W2": [[0]], "b2": [F(1, 3)]}
    x, y = [[[0]], [[1]], [[2]]], [[0], [0], [1]]
    parts = {"kinks": [], "multipliers": [], "frozen": [(1, "b", 0)]}
    found = proof("local-minimum", net, x, y, {"theta": theta}, **parts)
    assert not passes(checker, found) and not is_still_true(found)


@pytest.mark.parametrize("make", [one_kink, two_kinks, deep])
def test_all_kinks_have_to_be_listed_with_their_multipliers(checker, make):
    found = make()
    fewer = {key: found[key][1:] for key in ("kinks", "multipliers")}
    assert not passes(checker, found | fewer)
    moved = [[i, n, h + 1] for i, n, h in found["kinks"]]
    assert not passes(checker, found | {"kinks": moved})
    assert not passes(checker, {key: v for key, v in found.items() if key != "kinks"})


def test_a_dead_layer_hides_what_is_below(checker):
    """The first unit is at its kink for x = 1, the second is dead, and the mean is met."""
    net = ts.Network((1, 1), [ts.Dense(1), ts.Dense(1), ts.Dense(1)])
    theta = {"W1": [[1]], "b1": [-1], "W2": [[1]], "b2": [-9], "W3": [[1]], "b3": [F(1, 3)]}
    x, y = [[[0]], [[1]], [[2]]], [[0], [0], [1]]
    found = proof("local-minimum", net, x, y, {"theta": theta})
    assert passes(checker, found) and is_still_true(found)
    found["points"]["theta"]["b2"] = ["0"]
    assert not passes(checker, found)


def test_of_a_window_one_entry_is_the_largest_or_all_are_strictly_inactive(checker):
    """Two maps, x + 1 and the dead x - 9, and at equal samples the mean of the targets."""
    net = ts.Network((1, 2), [ts.Conv(2, 1), ts.MaxPool(2), ts.Dense(1)])
    theta = {"W1": [[[1]], [[1]]], "b1": [1, -9], "W3": [[0, 5]], "b3": [F(1, 3)]}
    found = proof("local-minimum", net, [[[1, 0]]] * 3, [[0], [1], [0]], {"theta": theta})
    assert passes(checker, found) and is_still_true(found)
    tied = replaced(found, ("points", "theta", "W1", 0), [["0"]])  # 1 and 1, whatever they read
    assert not passes(checker, tied)
    equal = replaced(found, ("data", "x"), [[["0", "0"]]] * 3)  # of equal entries: always equal
    assert passes(checker, equal) and is_still_true(equal)
    kinked = replaced(found, ("points", "theta", "b1", 1), "-1")
    assert not passes(checker, kinked)


def test_another_weight_of_the_same_unit_may_be_frozen_in_place_of_one(checker):
    assert passes(checker, one_kink() | {"frozen": [[1, "b", 0]]})


def test_where_the_outputs_are_the_targets_kinks_do_not_matter(checker):
    net = ts.Network((1, 1), [ts.Dense(2), ts.Dense(1)])
    theta = {"W1": [[1], [-1]], "b1": [0, 0], "W2": [[1, 1]], "b2": [0]}
    x, y = [[[-1]], [[0]], [[1]]], [[1], [0], [1]]
    assert passes(checker, proof("local-minimum", net, x, y, {"theta": theta}))
    assert not passes(checker, proof("local-minimum", net, x, [[1], [1], [1]], {"theta": theta}))


def test_a_lower_point_makes_a_minimum_spurious_and_a_higher_one_does_not(checker):
    found = convolution()
    found["claim"], found["risks"] = "spurious-local-minimum", {"theta": "1/8"}
    theta = found["points"]["theta"]
    found["points"]["lower"] = theta
    assert not passes(checker, found)
    relu = {"W1": [[["1", "1", "1"]], [["1", "1", "1"]]], "b1": ["0", "-1"]}
    found["points"]["lower"] = relu | {"W3": [["1", "-2"]], "b3": ["0"]}
    assert passes(checker, found)


def run(*files, program=PROGRAM):
    return subprocess.run(
        [sys.executable, "-E", "-S", "-I", program, *files],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=program.parent,
    )


def test_the_program_is_one_short_file_that_imports_the_standard_library_alone(tmp_path):
    text = PROGRAM.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 350
    nodes = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Import | ast.ImportFrom)]
    names = {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}
    names |= {n.module for n in nodes if isinstance(n, ast.ImportFrom) and not n.level}
    assert not any(n.level for n in nodes if isinstance(n, ast.ImportFrom))
    assert {name.partition(".")[0] for name in names} <= set(sys.stdlib_module_names)
    assert "__import__" not in text and "importlib" not in names
    program = tmp_path / "alone" / "check.py"
    program.parent.mkdir()
    shutil.copy(PROGRAM, program)
    for make in PROOFS:
        save_proof(tmp_path / f"{make.__name__}.json", make())
    done = run(*sorted(tmp_path.glob("*.json")), program=program)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\nproved\n") == len(PROOFS)
    assert run(program=program).returncode == 2  # without a file nothing is checked
    asked = run("-h", program=program)
    assert (asked.returncode, asked.stdout) == (0, "") and "check_proof.py FILE ..." in asked.stderr


def test_the_program_says_what_it_checked_and_what_fails_first(tmp_path):
    save_proof(tmp_path / "true.json", two_kinks())
    save_proof(tmp_path / "false.json", replaced(two_kinks(), ("multipliers", 0), "1/3"))
    done = run(tmp_path / "true.json")
    assert (done.returncode, done.stderr) == (0, "")
    assert "2 kink(s)" in done.stdout and done.stdout.endswith("proved\n")
    done = run(tmp_path / "true.json", tmp_path / "false.json")
    assert done.returncode == 1
    assert done.stderr.startswith(f"{tmp_path / 'false.json'}: not proved: ")
    assert done.stderr.count("\n") == 1


def two_convolutions():
    """All is 0, and so are the targets."""
    net = ts.Network((1, 2), [ts.Conv(1, 1), ts.Conv(1, 1), ts.Dense(1)])
    theta = {"W1": [[[0]]], "b1": [0], "W2": [[[0]]], "b2": [0], "W3": [[0, 0]], "b3": [0]}
    return proof("local-minimum", net, [[[0, 1]]], [[0]], {"theta": theta})


NO_JSON = [b"", b"\xff", b"[" * 100_000, b"{", b"{'format': 1}", None]
MALFORMED = [
    b"[]",
    b"{}",
    json.dumps(replaced(equal(), ("network", "layers", 1), {})).encode(),
    *[
        json.dumps(replaced(two_convolutions(), ("network", "layers", 1), layer)).encode()
        for layer in ({}, {"type": "norm"}, {"type": "conv", "maps": 1, "kernel": 1, "bias": 1})
    ],
    *[
        json.dumps(replaced(two_convolutions(), ("points", "theta", "W1"), W)).encode()
        for W in ([["0"]], [[["0"]], [["0"]]], [[["0", "0"]]], [[0]])
    ],
    *[json.dumps(two_kinks() | {k: "another"}).encode() for k in ("loss", "claim", "format")],
    *[
        json.dumps(replaced(two_kinks(), path, value)).encode()
        for path, value in [
            (("points", "theta", "b2", 0), "0.5"),
            (("points", "theta", "b2", 0), 1),
            (("points", "theta", "b2"), []),
            (("points", "theta", "b2"), None),
            (("points", "theta", "W1"), [["1"]] * 4),
            (("points", "theta", "W4"), [["1"]]),
            (("points", "theta", "W1", 0), "11"),
            (("points", "theta"), {}),
            (("data", "x", 0), "1"),
            (("data", "y"), [["1"]]),
            *[(("network", "layers", k), {"type": "norm"}) for k in (0, 1)],
            *[(("network", "layers", k), {}) for k in (0, 1)],
            (("network", "layers", 1), {"type": "dense", "width": True}),
            (("network", "layers", 1), {"type": "dense", "width": 4_000_000}),
            (("network", "layers", 0), {"type": "dense", "width": 3, "bias": False}),
            (("network", "layers", 0), {"type": "dense", "width": 10**9}),
            (("network", "layers", 0), {"type": "conv", "maps": 3, "kernel": 2}),
            (("network", "layers", 0), {"type": "average_pool", "size": 0}),
            (("network", "layers"), []),
            (("network", "input"), [1, 10**30]),
            (("network", "activation"), {"name": "tanh"}),
            (("network", "activation"), {"name": "leaky_relu", "slope": 1e999}),
            (("kinks", 0), [0]),
            (("kinks", 0), [-1, 1, 0]),
            (("multipliers",), ["1"]),
            (("frozen", 0), [2, "V", 0, 0]),
            (("multipliers", 0), "1" * 200_000),  # numbers may have 100,000 digits
        ]
    ],
]


def test_the_file_of_which_malformed_ones_are_made_is_proved(checker):
    assert passes(checker, two_convolutions())


@pytest.mark.parametrize(
    "contents, status, said", [(MALFORMED, 1, "not proved"), (NO_JSON, 2, "no")]
)
def test_what_is_refused_is_so_in_one_line_and_what_is_no_file_of_json_by_another_status(
    checker, tmp_path, capsys, contents, status, said
):
    path = tmp_path / "proof.json"
    for content in contents:
        path.write_bytes(content) if content is not None else path.unlink()
        with pytest.raises(SystemExit) as ended:
            checker.main([str(path)])
        words = capsys.readouterr().err
        assert ended.value.code == status, content
        assert words.startswith(f"{path}: {said}") and words.count("\n") == 1, content
    path.write_bytes(b"{")
    done = run(path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


def test_what_moves_a_unit_at_its_kink_alone_is_no_frozen_coordinate_that_moves_nothing(checker):
    """With b1 = t and W1 = (1, -t) the unit stays at its kink, and R falls by t / 6."""
    net = ts.Network((1, 2), [ts.Dense(1), ts.Dense(1)])
    x = [[[-2, 0]], [[-1, 0]], [[0, 1]], [[1, 0]], [[2, 0]], [[3, 0]]]
    theta = {"W1": [[1, 0]], "b1": [0], "W2": [[1]], "b2": [0]}
    found = proof(
        "local-minimum",
        net,
        x,
        [[1], [0], [-2], [2], [3], [2]],
        {"theta": theta},
        kinks=[(2, 1, 0)],
        multipliers=[F(1, 6)],
        frozen=[(1, "W", 0, 0), (1, "W", 0, 1)],
    )
    assert not passes(checker, found)


def test_below_a_dead_output_nothing_counts_but_below_one_at_its_kink_it_does(checker):
    net = ts.Network((1, 1), [ts.Dense(1), ts.Dense(1, activation=ts.ReLU())])
    x, y = [[[1]], [[2]], [[4]]], [[2], [5], [3]]
    for last, holds in ((-1, True), (0, False), (1, False)):
        theta = {"W1": [[0]], "b1": [0], "W2": [[3]], "b2": [last]}
        found = proof("local-minimum", net, x, y, {"theta": theta})
        assert passes(checker, found) == holds
        assert is_still_true(found) == holds
