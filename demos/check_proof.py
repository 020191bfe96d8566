"""Check proof files (tinyspur-proof-1) in fractions, with Python's standard library alone.

The program says what it checked and exits with 0, or names what fails first and exits with 1.
"""

import json
import re
import sys
from decimal import Decimal
from fractions import Fraction
from itertools import product
from math import gcd, lcm, prod
from operator import add, mul

CLAIMS = {"local-minimum": {"theta"}, "spurious-local-minimum": {"theta", "lower"}}
CLAIMS |= {"not-a-local-minimum": {"theta"}, "equal-risk": {"theta", "theta_prime"}}
SIZES = {"conv": {"maps", "kernel", "stride"}, "dense": {"width"}}
SIZES |= {"average_pool": {"size"}, "max_pool": {"size"}}
LARGEST, DEPTH = 5_000_000, 40  # products that a network may take for a sample, and its layers


class Unproved(Exception):
    """The first thing that fails."""


def require(holds, words):
    if not holds:
        raise Unproved(words)


def numbers(value, shape, where):
    """Return the fractions of nested lists of strings "p" or "p/q" of any length, row by row."""
    if shape:
        fits = isinstance(value, list) and len(value) == shape[0]
        require(fits, f"{where}: expected lists of lengths {shape}")
        return [v for part in value for v in numbers(part, shape[1:], where)]
    fits = isinstance(value, str) and re.fullmatch(r"-?[0-9]+(/0*[1-9][0-9]*)?", value)
    require(fits, f'{where}: expected a number as "p" or "p/q", got {str(value)[:40]!r}')
    return [Fraction(*(int(Decimal(part)) for part in value.split("/")))]


def short(value):
    """Return a fraction, or where it is long its value to some digits."""
    p, q = value.as_integer_ratio()
    return str(value) if max(abs(p), q) < 10**12 else f"about {Decimal(p) / Decimal(q):.9g}"


class Network:
    """Layers (kind, rows, biases): what each unit reads, (parameter, entry below), and its bias.

    Parameters are (layer, "W" or "b", *index). Rows of poolings list entries below.
    """

    def __init__(self, spec):
        self.input, relu, layers, shape = (
            spec["input"],
            spec["activation"],
            spec["layers"],
            spec["input"],
        )
        require(relu["name"] == ("leaky_relu" if "slope" in relu else "relu"), "expected a ReLU")
        self.slope, products, last = Fraction(relu.get("slope", 0) + 0.0), prod(shape), None
        sizes = [*shape, *(v for layer in layers for key, v in layer.items() if key != "type")]
        fits = all(type(v) is int and 0 < v <= LARGEST for v in sizes) and self.slope >= 0
        require(fits and len(shape) in (2, 3) and len(layers) <= DEPTH, "network: expected sizes")
        self.layers, self.boxes, self.below = [], {}, {}
        for n, layer in enumerate(layers, 1):
            kind, pooling, positions = layer["type"], "size" in layer, prod(shape[1:])
            maps, *grid = [prod(shape)] if kind == "dense" else shape  # dense: maps of one entry
            count = layer.get("maps", layer.get("width", maps))
            k = layer.get("kernel", layer.get("size", 1))
            low, stride = (0, k) if pooling else (k // 2, layer.get("stride", 1))
            after = [-(-m // stride) for m in grid]
            products += count * maps * k ** len(grid) * prod(after)
            fits = SIZES[kind] - {"stride"} <= set(layer) - {"type"} <= SIZES[kind]
            fits = fits and (not any(m % k for m in grid) if pooling else k % 2)
            fits = fits and (grid or kind == "dense") and products <= LARGEST
            require(fits, f"layer {n}: expected one that fits, got {layer}")
            entry = {at: j for j, at in enumerate(product(*map(range, [maps, *grid])))}
            corners = list(product(*(range(-low, m - low, stride) for m in grid)))
            taps, box = list(product(range(k), repeat=len(grid))), [count, maps, *[k for _ in grid]]
            rows, biases, shape = [], [], [count, *after]
            for t, at in product(range(count), corners):
                reads = [(c, d) for c in ([t] if pooling else range(maps)) for d in taps]
                found = [((n, "W", t, c, *d), entry.get((c, *map(add, at, d)))) for c, d in reads]
                rows.append([(p, j) for p, j in found if j is not None])
                biases.append((n, "b", t))
            if pooling:
                rows, biases = [[j for _, j in row] for row in rows], []
            else:
                self.boxes |= {f"W{n}": box, f"b{n}": [count]}
                self.below[n], last = (last, positions if kind == "dense" else 1), n
            self.layers.append((kind, rows, biases))
        self.first, self.outputs = min(self.below) - 1, prod(shape)

    def point(self, arrays, where):
        """Return {parameter: number}."""
        require(set(arrays) == set(self.boxes), f"{where}: expected {', '.join(self.boxes)}")
        point = {}
        for name, box in self.boxes.items():
            keys = ((int(name[1:]), name[0], *index) for index in product(*map(range, box)))
            point |= zip(keys, numbers(arrays[name], box, f"{where} {name}"), strict=True)
        return point


class Poly(dict):
    """A polynomial, up to the degree `limit`: coefficients by sorted tuples of variables."""

    limit = 2 * DEPTH

    def __add__(self, other):
        other = other if isinstance(other, Poly) else {(): other}
        return type(self)({m: self.get(m, 0) + other.get(m, 0) for m in {**self, **other}})

    def __mul__(self, other):
        total, terms = type(self)(), other if isinstance(other, Poly) else {(): other}
        for (m, v), (n, w) in product(self.items(), terms.items()):
            if w and len(m) + len(n) <= self.limit:
                key = tuple(sorted(m + n))
                total[key] = total.get(key, 0) + v * w
        return total

    __radd__, __rmul__ = __add__, __mul__


class Jet(Poly):
    limit = 2  # for changes of parameters


def order(v):
    """Return what decides how v compares for t -> 0+: the coefficients of 1, t, t^2, ..."""
    return [v.get(("t",) * k, 0) for k in range(v.limit)] if isinstance(v, Poly) else [v]


def forward(net, theta, x, at_kink=lambda n, h, z, x: z * 0):
    """Return (z, o, sides) of all layers, and where those begin that are not below a dead one.

    In numbers, polynomials in t -> 0+ or jets. Sides are signs of z, or which entries maxima
    select, from 1; 0 where that may change nearby, unless equal entries are strictly inactive.
    """
    trace, o, start = [], x, net.first
    for n, (kind, rows, biases) in enumerate(net.layers):
        sides = []
        if kind == "max_pool":
            best = [max(order(o[j]) for j in row) for row in rows]
            tied = [[j for j in row if order(o[j]) == v] for row, v in zip(rows, best, strict=True)]
            fixed = [len(t) == 1 or (net.slope == 0 and not any(o[j] for j in t)) for t in tied]
            sides = [t[0] + 1 if is_fixed else 0 for t, is_fixed in zip(tied, fixed, strict=True)]
            z = o = [o[t[0]] for t in tied]
        elif kind == "average_pool":
            z = o = [sum(o[j] for j in row) * Fraction(1, len(row)) for row in rows]
        else:
            pairs = zip(rows, biases, strict=True)
            z = o = [sum((o[j] * theta[p] for p, j in row if o[j]), theta[b]) for row, b in pairs]
            if n + 1 < len(net.layers):
                sides = [next(((c > 0) - (c < 0) for c in order(v) if c), 0) for v in z]
                pieces = {1: lambda n, h, z, x: z, -1: lambda n, h, z, x: z * net.slope, 0: at_kink}
                o = [pieces[s](n, h, z[h], x) for h, s in enumerate(sides)]
                start = n + 1 if net.slope == 0 and set(sides) == {-1} else start
        trace.append((z, o, sides))
    return trace, start


def risk(net, theta, x, y):
    """Return R = sum_i |o_i - y_i|^2 / 2N."""
    o = [forward(net, theta, sample)[0][-1][1] for sample in x]
    u = [a + -b for rows in zip(o, y, strict=True) for a, b in zip(*rows, strict=True)]
    return sum((v * v for v in u), Fraction(0)) * Fraction(1, 2 * len(y))


def check_descent(net, theta, x, y, proof):
    """Check the first term of R along a direction."""
    d, degree = net.point(proof["direction"], "direction"), proof["order"]
    [coefficient] = numbers(proof["coefficient"], [], "coefficient")
    R = risk(net, {p: Poly({(): v, ("t",): d[p]}) for p, v in theta.items()}, x, y)
    terms = sorted((len(m), v) for m, v in R.items() if m and v)
    said = [f"({short(v)}) t^{k}" if k > 1 else f"({short(v)}) t" for k, v in terms]
    print(f"R(theta + t direction) - R(theta) = {' + '.join(said) or 0} for small t > 0")
    words = f"the first term is {' '.join(said[:1])}, not ({short(coefficient)}) t^{degree}"
    require(terms[:1] == [(degree, coefficient)] and coefficient < 0, words + ", or R rises")


def check_cell(net, x, y, seen):
    """Check that G_s = (1/N) sum_{i in s} g_i (x_i, 1)^T is 0 for every class s of patterns.

    Nearby its outputs are F_s (x, 1), and R - R(theta) >= sum_s <G_s, F_s - F_s(theta)>.
    """
    classes = {}
    for i, (trace, start) in enumerate(seen):
        pattern = tuple(tuple(sides) for *_, sides in trace[start:])
        for n, sides in enumerate(pattern, start + 1):
            require(0 not in sides, f"sample {i}, layer {n}: at a kink, and no kinks are listed")
        below = [] if start > net.first else trace[net.first - 1][1] if net.first else x[i]
        g = [a - b for a, b in zip(trace[-1][1], y[i], strict=True)]
        classes.setdefault((start, pattern), []).append([a * v for a in g for v in [*below, 1]])
    zero = not any(any(map(sum, zip(*rows, strict=True))) for rows in classes.values())
    require(zero, "G_s is not 0 for a class s of activation patterns")
    print(f"no unit is at its kink; G_s = 0 for the {len(classes)} class(es) of patterns")


def eliminate(rows, k):
    """Return what is left of rows without the first k entries, and the pivots, those of H = LDL^T.

    All rows are whole numbers, and pivots have factors > 0. Without a pivot another row is used.
    """

    def whole(row):
        scale = lcm(*(v.denominator for v in row))
        divisor = gcd(*(row := [int(v * scale) for v in row])) or 1
        return [v // divisor for v in row]

    rows, pivots = [whole(row) for row in rows], []
    for c in range(k):
        pivots.append(rows[0][c] if rows else 0)
        if pivot := next((row for row in rows if row[c]), None):
            rest = [row for row in rows if row is not pivot]
            rows = [
                whole([pivot[c] * a - row[c] * b for a, b in zip(row, pivot, strict=True)])
                for row in rest
            ]
    return [row[k:] for row in rows], pivots


def check_kinks(net, theta, x, y, kinks, multipliers, frozen):
    """Check that theta is a strict local minimum over the coordinates that are not frozen.

    Let units at kinks have the outputs s_k and the inputs v_k, L = R + sum_k lambda_k v_k at s = 0,
    and C_k = dL/ds_k. Then grad L = 0, slope C_k < lambda_k < C_k, and the Hessian of L is positive
    definite on the directions that keep all v_k. Equal kinks have one s_k.
    """
    names, v, at, o, live, L, moving = {}, {}, {}, [], [], Jet(), set()
    jets = {p: Jet({(): value, (p,): Fraction(1)}) for p, value in theta.items()}

    def at_kink(n, h, z, x):
        name = frozenset(z.items()) if n == net.first else (n, h, *x)
        return Jet({((0, names.setdefault(name, len(names))),): Fraction(1)})

    for i, (sample, target) in enumerate(zip(x, y, strict=True)):
        trace, start = forward(net, jets, sample, at_kink)
        for n, (z, outputs, sides) in enumerate(trace[start:], start):
            moving |= {p for entry in outputs for m in entry for p in m}
            live += [v for v, entry in zip(z, outputs, strict=True) if entry and n == net.first]
            for h in (h for h, side in enumerate(sides) if side == 0):
                require(net.layers[n][2], f"layer {n + 1}: two entries of a window are the largest")
                [[k]] = outputs[h]
                at[i, n + 1, h], v[k] = k, z[h]
        o += outputs
        for a, b in zip(outputs, target, strict=True):
            L += a * ((a.get((), 0) - b) / len(y))
    given = {}
    for place, text in zip(kinks, multipliers, strict=True):
        fits = tuple(place) in at and at[tuple(place)] not in given
        require(fits, f"kink {place}: expected z = 0, and equal ones only once")
        [given[at[tuple(place)]]] = numbers(text, [], "multipliers")
    for k, multiplier in given.items():
        L += v[k] * multiplier
    for (i, n, h), k in at.items():
        C, words = L.get((k,), Fraction(0)), f"sample {i}, layer {n}, unit {h}, at the kink: "
        words += f"expected a multiplier strictly between {short(net.slope * C)} and {short(C)}"
        require(k in given and C > 0 and net.slope * C < given[k] < C, words)
    frozen, listed = {tuple(place) for place in frozen}, len(frozen)
    require(frozen <= set(theta) and len(frozen) == listed, "frozen: expected coordinates, once")
    free = [p for p in theta if p not in frozen]
    require(not any(L.get((p,), 0) for p in free), "the gradient with these multipliers is not 0")
    scale = lcm(*(a.denominator for jet in o for a in jet.values()))
    J = [[int(jet.get((p,), 0) * scale) for jet in o] for p in free]
    H = [[Fraction(sum(map(mul, a, b)), len(y) * scale**2) for b in J] for a in J]
    for (k, p), (m, q) in product(enumerate(free), repeat=2):
        H[k][m] += L.get((p, q), 0) + L.get((q, p), 0)
    Z = [[*(jet.get((p,), 0) for jet in v.values()), *(int(p == q) for q in free)] for p in free]
    D, _ = eliminate(Z, len(v))  # a basis of the directions that keep all v_k
    HD = [[sum(map(mul, row, d)) for row in H] for d in D]
    _, pivots = eliminate([[sum(map(mul, row, d)) for d in D] for row in HD], len(D))
    words = "the Hessian is not positive definite where all kinks stay"
    require(all(pivot > 0 for pivot in pivots), words)
    check_frozen(net, theta, frozen, moving, [*o, *v.values()], live)
    print(
        f"{len(frozen)} of {len(theta)} coordinates are frozen, and may be; the gradient in the "
        f"others is 0 with the multipliers of {len(given)} kink(s), each strictly within its "
        f"bounds; the Hessian is positive definite on the {len(D)} directions that keep them"
    )


def check_frozen(net, theta, frozen, moving, seen, live):
    """Check that near theta every point has one with the same outputs that keeps what is frozen.

    Coordinates that move nothing may be frozen. Of others, one for each map: a factor for the map
    gives it its value back, a weight that reads it or, below, one of its own. The rest is undone
    by free coordinates whose columns span theirs: in the first layer, on what is not strictly
    inactive, or, where the weights of the last of two layers are frozen, in all outputs and kinks.
    """
    free, (first, *upper) = [p for p in theta if p not in frozen], net.below
    weights = {p for p in theta if p[:2] == (max(net.below), "W")}
    joint = len(upper) == 1 and weights <= frozen
    left, rows = frozen & moving, seen if joint else live
    others = sorted(left - weights if joint else {p for p in left if p[0] == first})
    matrix = {tuple(jet.get((p,), 0) for p in [*free, *others]) for jet in rows}
    rest, _ = eliminate(matrix, len(free))
    left -= {p for k, p in enumerate(others) if not any(row[k] for row in rest)}
    maps = set()
    for n, kind, t, *tap in left:
        below, positions = net.below[n]
        read = kind == "W" and n != first
        maps.add((below, tap[0] // positions) if read else (n, t))
    fits = all(theta[p] for p in left) and len(maps) == len(left)
    fits = fits and all(n != max(net.below) for n, _ in maps)
    require(fits, f"frozen: {len(left)} coordinates that neither scaling nor others can give back")


def check(proof):
    """Check a proof, or raise Unproved; what has not the form of one raises other errors."""
    fits = proof["format"] == "tinyspur-proof-1" and proof["loss"] == "squared"
    require(fits, "expected tinyspur-proof-1, and the squared loss")
    claim, net, data = proof["claim"], Network(proof["network"]), proof["data"]
    require(set(proof["points"]) == CLAIMS[claim], f"points: expected {sorted(CLAIMS[claim])}")
    x = [numbers(sample, net.input, "x") for sample in data["x"]]
    y = [numbers(target, [net.outputs], "y") for target in data["y"]]
    require(len(x) == len(y) > 0, "data: expected as many x as y")
    points = {name: net.point(arrays, name) for name, arrays in proof["points"].items()}
    seen = {name: [forward(net, point, v) for v in x] for name, point in points.items()}
    o = {name: [trace[-1][1] for trace, _ in traces] for name, traces in seen.items()}
    R = {name: risk(net, point, x, y) for name, point in points.items()}
    print(f"{claim}: {len(x)} sample(s), {len(points['theta'])} parameters, squared loss")
    print(", ".join(f"R({name}) = {short(value)}" for name, value in R.items()))
    for name, rows in o.items() if len(y) * net.outputs <= 16 else ():
        print(f"o({name}) =", "; ".join(", ".join(map(short, row)) for row in rows))
    for name, text in proof.get("risks", {}).items():
        require([R[name]] == numbers(text, [], "risks"), f"risks: R({name}) is another number")
    if claim == "equal-risk":
        require(o["theta"] == o["theta_prime"], "the outputs differ")
        print("all outputs are equal")
    elif claim == "not-a-local-minimum":
        check_descent(net, points["theta"], x, y, proof)
    elif R["theta"] == 0:
        print("R is 0, which is the least that it can be")
    elif {"kinks", "multipliers", "frozen"} & set(proof):
        parts = [proof.get(key, []) for key in ("kinks", "multipliers", "frozen")]
        check_kinks(net, points["theta"], x, y, *parts)
    else:
        check_cell(net, x, y, seen["theta"])
    if claim == "spurious-local-minimum":
        require(R["lower"] < R["theta"], "R(lower) is not below R(theta)")
        print("R(lower) is below R(theta)")


def main(files):
    for name in files:
        print(f"{name}:")
        try:
            with open(name, encoding="utf-8") as file:
                check(json.load(file))
        except (Exception, KeyboardInterrupt) as error:
            said = error if isinstance(error, Unproved | OSError) else f"malformed, {error!r}"
            print(f"{name}: not proved: {' '.join(str(said).split())[:400]}", file=sys.stderr)
            return 1
        print("proved")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]) if sys.argv[1:] else __doc__)
