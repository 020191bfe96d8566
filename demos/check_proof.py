"""Check proof files (tinyspur-proof-1) in fractions, with Python's standard library alone.

The program says what it checked and exits with 0, or names what fails first and exits with 1.
"""

import json
import re
import sys
from fractions import Fraction
from itertools import product
from math import gcd, lcm, prod
from operator import add, mul

POINTS = {"local-minimum": {"theta"}, "spurious-local-minimum": {"theta", "lower"}}
POINTS |= {"not-a-local-minimum": {"theta"}, "equal-risk": {"theta", "theta_prime"}}
LARGEST, DEPTH = 5_000_000, 40  # products that a network may take for a sample, and its layers
getattr(sys, "set_int_max_str_digits", int)(0)  # numbers may have any length


def require(holds, words):
    if not holds:
        raise ValueError(words)


def numbers(value, shape, where):
    """Return the fractions of nested lists of strings "p" or "p/q", row by row."""
    if shape:
        fits = isinstance(value, list) and len(value) == shape[0]
        require(fits, f"{where}: expected lists of lengths {shape}")
        return [v for part in value for v in numbers(part, shape[1:], where)]
    fits = isinstance(value, str) and re.fullmatch(r"-?[0-9]+(/0*[1-9][0-9]*)?", value)
    require(fits, f'{where}: expected a number as "p" or "p/q", got {str(value)[:40]!r}')
    return [Fraction(value)]


def short(v):
    return str(v) if len(str(v)) < 25 else f"about {float(v):.9g}"


class Network:
    """Layers (kind, rows, biases): what each unit reads, (parameter, entry below), and its bias.

    Rows of poolings list entries below. `names` are the parameters, (layer, "W" or "b", *index).
    """

    def __init__(self, spec):
        self.layers, self.names, self.boxes, self.below, last = [], [], {}, {}, None
        relu, shape, products = spec["activation"], spec["input"], prod(spec["input"])
        self.slope = Fraction(relu.get("slope", 0) + 0.0)
        fits = relu["name"] == ("leaky_relu" if "slope" in relu else "relu") and self.slope >= 0
        require(fits and len(spec["layers"]) <= DEPTH, "network: expected (leaky) ReLU, few layers")
        for n, layer in enumerate(spec["layers"], 1):
            low, fits, positions = 0, len(shape) in (2, 3), 1
            match layer:
                case {"type": "dense" as kind, "width": count, **rest}:  # maps of one entry each
                    positions, shape, k, stride, fits = prod(shape[1:]), [prod(shape)], 1, 1, True
                case {"type": "conv" as kind, "maps": count, "kernel": k, **rest}:
                    stride, low, fits = rest.pop("stride", 1), k // 2, fits and k % 2
                case {"type": "average_pool" | "max_pool" as kind, "size": k, **rest}:
                    count, stride, fits = shape[0], k, fits and not any(m % k for m in shape[1:])
            (maps, *grid), sizes = shape, [*shape, count, k, stride]
            fits = fits and not rest and all(type(v) is int and 0 < v <= LARGEST for v in sizes)
            box, after = [count, maps, *[k] * len(grid)], [-(-m // stride) for m in grid]
            products += prod(box) * prod(after)
            require(fits and products <= LARGEST, f"layer {n}: expected one that fits, got {layer}")
            entry = {at: j for j, at in enumerate(product(*map(range, shape)))}
            corners = product(*(range(-low, m - low, stride) for m in grid))
            taps, start, biases = [*product(*map(range, box[1:]))], len(self.names), []
            reads = [[entry.get((c, *map(add, at, d))) for c, *d in taps] for at in corners]
            units, shape = [*product(range(count), reads)], [count, *after]
            if "size" in layer:
                rows = [
                    [j for (c, *_), j in zip(taps, read, strict=True) if c == t]
                    for t, read in units
                ]
            else:
                pairs = [enumerate(read, start + t * len(taps)) for t, read in units]
                rows = [[(p, j) for p, j in row if j is not None] for row in pairs]
                biases = [start + prod(box) + t for t, _ in units]
                self.names += [(n, "W", *at) for at in product(*map(range, box))]
                self.names += [(n, "b", t) for t in range(count)]
                self.boxes |= {f"W{n}": box, f"b{n}": [count]}
                self.below[n], last = (last, positions), n
            self.layers.append((kind, rows, biases))
        self.first, self.last, self.outputs = min(self.below), last, prod(shape)

    def point(self, arrays):
        """Return the numbers of all parameters."""
        require(set(arrays) == set(self.boxes), f"point: expected {', '.join(self.boxes)}")
        return [v for name, box in self.boxes.items() for v in numbers(arrays[name], box, name)]


class Poly(dict):
    """A polynomial: coefficients by sorted tuples of variables, up to two different ones."""

    def __add__(self, other):
        other = other if isinstance(other, Poly) else {(): other}
        return Poly({m: self.get(m, 0) + other.get(m, 0) for m in {**self, **other}})

    def __mul__(self, other):
        total, other = Poly(), other if isinstance(other, Poly) else {(): other}
        for (m, v), (n, w) in product(self.items(), other.items()):
            if w and len({*m, *n}) <= 2:
                key = tuple(sorted(m + n))
                total[key] = total.get(key, 0) + v * w
        return total

    __radd__, __rmul__ = __add__, __mul__


def order(v):
    """Return what decides how v compares for t -> 0+: the coefficients of 1, t, t^2, ..."""
    return [v.get(("t",) * k, 0) for k in range(DEPTH + 1)] if isinstance(v, Poly) else [v]


def forward(net, theta, x, at_kink=lambda n, h, z, x: z * 0):
    """Return (z, o, sides) of all layers, and where those begin that are not below a dead one.

    In numbers, or polynomials in t -> 0+ or in changes of parameters. Sides are the signs of z, or
    the entries that maxima select, from 1, or 0 unless all that are largest are strictly inactive.
    """
    trace, o, start = [], x, net.first - 1
    for n, (kind, rows, biases) in enumerate(net.layers, 1):
        sides = []
        if biases:
            pairs = zip(rows, biases, strict=True)
            z = o = [sum((o[j] * theta[p] for p, j in row if o[j]), theta[b]) for row, b in pairs]
        elif kind == "average_pool":
            z = o = [sum(o[j] for j in row) * Fraction(1, len(row)) for row in rows]
        else:
            tied = [[j for j in r if order(o[j]) == max(order(o[i]) for i in r)] for r in rows]
            stay = [len(t) == 1 or not (net.slope or any(o[j] for j in t)) for t in tied]
            sides = [t[0] + 1 if stays else 0 for t, stays in zip(tied, stay, strict=True)]
            z = o = [o[t[0]] for t in tied]
        if biases and n < len(net.layers):
            sides = [next((1 if c > 0 else -1 for c in order(v) if c), 0) for v in z]
            o = [v if s > 0 else v * net.slope for v, s in zip(z, sides, strict=True)]
            o = [v if sides[h] else at_kink(n, h, z[h], x) for h, v in enumerate(o)]
            start = n if set(sides) == {-1} and net.slope == 0 else start
        trace.append((z, o, sides))
    return trace, start


def risk(o, y):
    """Return R = sum_i |o_i - y_i|^2 / 2N."""
    u = [a + -b for rows in zip(o, y, strict=True) for a, b in zip(*rows, strict=True)]
    return sum(v * v for v in u) * Fraction(1, 2 * len(y))


def check_descent(net, theta, x, y, direction, degree, coefficient):
    moved = [Poly({(): v, ("t",): d}) for v, d in zip(theta, net.point(direction), strict=True)]
    R = risk([forward(net, moved, sample)[0][-1][1] for sample in x], y)
    terms = sorted((len(m), v) for m, v in R.items() if m and v) or [(0, 0)]
    said = " + ".join(f"({short(v)}) t^{k}" if k != 1 else f"({short(v)}) t" for k, v in terms)
    print(f"R(theta + t direction) - R(theta) = {said} for small t > 0")
    [c], (first, *_) = numbers(coefficient, [], "coefficient"), terms
    require(first == (degree, c) and c < 0, f"the first term is not ({short(c)}) t^{degree} < 0")


def check_cell(net, x, y, seen):
    """Check that G_s = (1/N) sum_{i in s} g_i (x_i, 1)^T is 0 for every class s of patterns.

    Nearby its outputs are F_s (x, 1), and R - R(theta) >= sum_s <G_s, F_s - F_s(theta)>.
    """
    classes = {}
    for i, (trace, start) in enumerate(seen):
        pattern = start, *(tuple(sides) for *_, sides in trace[start:])
        fits = not any(0 in sides for sides in pattern[1:])
        require(fits, f"sample {i}: at a kink, and no kinks are listed")
        below = [] if start >= net.first else [(0, x[i]), *trace][net.first - 1][1]
        g = [a - b for a, b in zip(trace[-1][1], y[i], strict=True)]
        classes.setdefault(pattern, []).append([a * v for a in g for v in [*below, 1]])
    zero = not any(any(map(sum, zip(*rows, strict=True))) for rows in classes.values())
    require(zero, "G_s is not 0 for a class s of activation patterns")
    print(f"no unit is at its kink; G_s = 0 for the {len(classes)} class(es) of patterns")


def eliminated(H, steps):
    """Return the rows that steps of H = L D L^T leave, up to factors > 0; pivots have to be > 0."""
    for _ in range(steps):
        H = [[int(v * d) for v in row] for row in H for d in [lcm(*(v.denominator for v in row))]]
        (pivot, *top), *H = H
        require(pivot > 0, "the Hessian is not positive definite where all kinks stay")
        H = [[pivot * a - c * b for a, b in zip(row, top, strict=True)] for c, *row in H]
        H = [[v // d for v in row] for row in H for d in [gcd(*row) or 1]]
    return H


def check_kinks(net, theta, x, y, kinks, multipliers, frozen):
    """Check that theta is a strict local minimum over the coordinates that are not frozen.

    Units at kinks have the outputs s_k and the inputs v_k, L = R + sum_k lambda_k v_k at s = 0, and
    C_k = dL/ds_k. Then grad L = 0, slope C_k < lambda_k < C_k, and the Hessian of L is positive
    definite where v stays: with a multiple of grad v grad v^T. Equal kinks have one s_k.
    """
    names, at, v = {}, {}, {}
    jets = [Poly({(): value, (p,): Fraction(1)}) for p, value in enumerate(theta)]

    def at_kink(n, h, z, x):
        name = frozenset(z.items()) if n == net.first else (n, h, *x)
        return Poly({(names.setdefault(name, len(theta) + len(names)),): Fraction(1)})

    traces = [forward(net, jets, sample, at_kink) for sample in x]
    counting = [(i, n, *t[n]) for i, (t, start) in enumerate(traces) for n in range(start, len(t))]
    for i, n, z, o, sides in counting:
        for h in (h for h, side in enumerate(sides) if side == 0):
            require(net.layers[n][2], f"layer {n + 1}: two entries of a window are the largest")
            [[k]] = o[h]
            at[i, n + 1, h], v[k] = k, z[h]
    values, o = numbers(multipliers, [len(kinks)], "multipliers"), []
    given = {at.get(tuple(kink)): value for kink, value in zip(kinks, values, strict=True)}
    fits = given.keys() == v.keys() and len(given) == len(kinks)
    require(fits, f"kinks: expected {len(v)}, each with z = 0, and equal ones only once")
    L = sum((v[k] * value for k, value in given.items()), Poly())
    for (trace, _), target in zip(traces, y, strict=True):
        o += trace[-1][1]
        for a, b in zip(trace[-1][1], target, strict=True):
            L += a * ((a.get((), 0) - b) / len(y))
    for kink, (k, value) in zip(kinks, given.items(), strict=True):
        C = L.get((k,), Fraction(0))
        words = f"multiplier not strictly between {short(net.slope * C)} and {short(C)}"
        require(C > 0 and net.slope * C < value < C, f"kink {kink}: {words}")
    held = {net.names.index(tuple(place)) for place in frozen}
    require(len(held) == len(frozen), "frozen: expected each coordinate once")
    free = [p for p in range(len(theta)) if p not in held]
    require(not any(L.get((p,), 0) for p in free), "the gradient with these multipliers is not 0")

    # Every point nearby has one with equal outputs that keeps what is frozen, if that moves nothing
    # (left out here), is spanned (two layers, upper weights frozen: o and v are linear in others),
    # or if a factor for a map gives it its value back: one for each, that it has or that reads it.
    left = held & {p for *_, o, _ in counting for entry in o for m in entry for p in m}
    upper = {p for p, name in enumerate(net.names) if name[:2] == (net.last, "W")}
    others = sorted(left - upper) if upper <= held and len(net.below) == 2 else []
    rows, columns = [*o, *(jet * 10**9 for jet in v.values())], [*free, *others]
    scale = lcm(*(a.denominator for jet in rows for a in jet.values()))
    J = [[int(jet.get((p,), 0) * scale) for jet in rows] for p in columns]
    H = [[Fraction(sum(map(mul, a, b)), len(y) * scale**2) for b in J] for a in J]
    for (k, p), (m, q) in product(enumerate(columns), repeat=2):
        H[k][m] += L.get((p, q), 0) + L.get((q, p), 0)
    rest = eliminated(H, len(free))
    left -= {p for p, row in zip(others, rest, strict=True) if not any(row)}
    maps = set()
    for n, kind, t, *tap in (net.names[p] for p in left):
        below, positions = net.below[n]
        maps.add((below, tap[0] // positions) if kind == "W" and n != net.first else (n, t))
    fits = len(maps) == len(left) and all(theta[p] for p in left)
    fits = fits and all(n != net.last for n, _ in maps)
    require(fits, f"frozen: {len(left)} coordinates that neither scaling nor others can give back")
    print(
        f"{len(held)} of {len(theta)} coordinates are frozen, and may be; the gradient in the "
        f"others is 0 with the multipliers of {len(given)} kink(s), each strictly within its "
        "bounds; the Hessian is positive definite on the directions that keep them"
    )


def check(proof):
    """Check a proof, or raise ValueError; what has not the form of one raises other errors."""
    fits = proof["format"] == "tinyspur-proof-1" and proof["loss"] == "squared"
    require(fits, "expected tinyspur-proof-1, and the squared loss")
    claim, net, data = proof["claim"], Network(proof["network"]), proof["data"]
    require(set(proof["points"]) == POINTS[claim], f"points: expected {sorted(POINTS[claim])}")
    x = [numbers(sample, proof["network"]["input"], "x") for sample in data["x"]]
    y = [numbers(target, [net.outputs], "y") for target in data["y"]]
    require(len(x) == len(y) > 0, "data: expected as many x as y")
    points = {name: net.point(arrays) for name, arrays in proof["points"].items()}
    seen = {name: [forward(net, point, v) for v in x] for name, point in points.items()}
    o = {name: [trace[-1][1] for trace, _ in traces] for name, traces in seen.items()}
    R, theta = {name: risk(rows, y) for name, rows in o.items()}, points["theta"]
    print(f"{claim}: {len(x)} sample(s), {len(theta)} parameters, squared loss")
    print(", ".join(f"R({name}) = {short(value)}" for name, value in R.items()))
    for name, rows in o.items() if len(y) * net.outputs <= 16 else ():
        print(f"o({name}) =", "; ".join(", ".join(map(short, row)) for row in rows))
    for name, text in proof.get("risks", {}).items():
        require([R[name]] == numbers(text, [], "risks"), f"risks: R({name}) is another number")
    if claim == "equal-risk":
        require(o["theta"] == o["theta_prime"], "the outputs differ")
        print("all outputs are equal")
    elif claim == "not-a-local-minimum":
        check_descent(net, theta, x, y, proof["direction"], proof["order"], proof["coefficient"])
    elif R["theta"] == 0:
        print("R is 0, which is the least that it can be")
    elif "kinks" in proof:
        check_kinks(net, theta, x, y, proof["kinks"], proof["multipliers"], proof["frozen"])
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
        except Exception as error:
            words = str(error) if isinstance(error, ValueError | OSError) else repr(error)
            print(f"{name}: not proved: {' '.join(words.split())[:400]}", file=sys.stderr)
            return 1
        print("proved")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]) if sys.argv[1:] else __doc__)
