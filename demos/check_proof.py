"""Check proof files (tinyspur-proof-1) with Python's standard library alone.

Every number is a fraction and nothing is rounded. The program says what it checked and exits with
0, or it names the first thing that fails and exits with 1.
"""

import argparse
import json
import sys
from fractions import Fraction
from pathlib import Path

if (HERE := str(Path(__file__).resolve().parent)) not in sys.path:  # its parts lie beside it
    sys.path.insert(0, HERE)

from checking.minima import check_cell, check_kinks, look_at_all
from checking.network import Network, Poly, Unproved, flat, forward, number, require, whole

POINTS = {
    "local-minimum": {"theta"},
    "spurious-local-minimum": {"theta", "lower"},
    "not-a-local-minimum": {"theta"},
    "equal-risk": {"theta", "theta_prime"},
}
PARTS = {"format", "claim", "network", "loss", "data", "points"}
KINKED, ALONG = {"kinks", "multipliers", "frozen"}, {"direction", "order", "coefficient"}
SHOWN = 16  # outputs that are printed


def outputs(net, theta, x):
    return [forward(net, theta, sample)[-1][1] for sample in x]


def risk(o, y):
    """Return R = sum_i |o_i - y_i|^2 / 2N."""
    pairs = [pair for rows in zip(o, y, strict=True) for pair in zip(*rows, strict=True)]
    return sum(((a + -b) * (a + -b) for a, b in pairs), Fraction(0)) * Fraction(1, 2 * len(y))


def check_local_minimum(net, theta, x, y, R, proof):
    if R == 0:
        print("R is 0, which is the least that it can be")
        return
    seen = look_at_all(net, theta, x)
    if KINKED & set(proof):
        kinks, multipliers, frozen = (
            proof.get(key, []) for key in ("kinks", "multipliers", "frozen")
        )
        check_kinks(net, theta, y, seen, kinks, multipliers, frozen)
    else:
        check_cell(net, y, seen)


def check_descent(net, theta, x, y, proof):
    direction, degree = net.point(proof["direction"], "direction"), whole(proof["order"])
    coefficient = number(proof["coefficient"], "coefficient")
    moved = [Poly({(): v, ("t",): d}) for v, d in zip(theta, direction, strict=True)]
    R = Poly() + risk(outputs(net, moved, x), y)
    change = {len(m): v for m, v in R.items() if m and v}
    lowest = min(change, default=0)
    said = (
        " + ".join(f"({v}) t^{k}" if k > 1 else f"({v}) t" for k, v in sorted(change.items()))
        or "0"
    )
    print(f"R(theta + t direction) - R(theta) = {said} for small t > 0")
    require(lowest, "R does not change along the direction")
    words = f"the first term is ({change[lowest]}) t^{lowest}, not ({coefficient}) t^{degree}"
    require((lowest, change[lowest]) == (degree, coefficient), words)
    require(coefficient < 0, "R rises along the direction")


def check(proof):
    """Check a proof, or raise Unproved; what has not the form of one raises other errors."""
    require(isinstance(proof, dict), "expected a JSON object")
    require(proof.get("format") == "tinyspur-proof-1", "format: expected tinyspur-proof-1")
    require(proof.get("loss") == "squared", "loss: expected squared")
    claim = proof["claim"]
    require(claim in POINTS, f"claim: expected one of {', '.join(POINTS)}")
    extra = ALONG if claim == "not-a-local-minimum" else KINKED if "minimum" in claim else set()
    needed = PARTS | (extra & ALONG)
    require(needed <= set(proof) <= PARTS | extra | {"risks"}, f"expected other keys for {claim}")
    require(set(proof["points"]) == POINTS[claim], f"points: expected {sorted(POINTS[claim])}")
    net, data = Network(proof["network"]), proof["data"]
    require(set(data) == {"x", "y"} and data["x"], "data: expected x and y of some samples")
    x = [flat(sample, net.input, "x") for sample in data["x"]]
    y = [flat(target, (net.outputs,), "y") for target in data["y"]]
    require(len(x) == len(y), "data: expected as many x as y")
    points = {name: net.point(arrays, name) for name, arrays in proof["points"].items()}
    found = {name: outputs(net, point, x) for name, point in points.items()}
    R = {name: risk(o, y) for name, o in found.items()}
    print(f"{claim}: {len(x)} sample(s), {len(net.scales)} parameters, squared loss")
    print(", ".join(f"R({name}) = {short(value)}" for name, value in R.items()))
    if len(y) * net.outputs <= SHOWN:
        for name, rows in found.items():
            print(f"o({name}) =", "; ".join(", ".join(map(short, row)) for row in rows))
    for name, text in proof.get("risks", {}).items():
        require(R[name] == number(text, "risks"), f"risks: R({name}) is another number")
    if claim == "equal-risk":
        require(found["theta"] == found["theta_prime"], "the outputs differ")
        print("all outputs are equal")
    elif claim == "not-a-local-minimum":
        check_descent(net, points["theta"], x, y, proof)
    else:
        check_local_minimum(net, points["theta"], x, y, R["theta"], proof)
    if claim == "spurious-local-minimum":
        require(R["lower"] < R["theta"], "R(lower) is not below R(theta)")
        print("R(lower) is below R(theta)")


def short(value):
    """Return a fraction, or where it is long its value to some digits."""
    small = max(abs(value.numerator), value.denominator) < 10**12
    return str(value) if small else f"about {float(value):.9g}"


def infinite(word):
    raise Unproved(f"expected numbers, got {word}")


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.error = lambda message: parser.exit(2, f"error: {message}\n")
    parser.add_argument("files", nargs="+", metavar="FILE", help="proof files (JSON)")
    return parser.parse_args(arguments)


def main(arguments=None):
    for name in parse(arguments).files:
        try:
            with open(name, encoding="utf-8") as file:
                proof = json.load(file, parse_constant=infinite)
            print(f"{name}:")
            check(proof)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130
        except Exception as error:
            said = str(error) if isinstance(error, Unproved | OSError) else f"malformed, {error!r}"
            print(f"{name}: not proved: {' '.join(said.split())[:400]}", file=sys.stderr)
            return 1
        print("proved")
    return 0


if __name__ == "__main__":
    sys.exit(main())
