"""Check proof files (tinyspur-proof-1) in fractions, with Python's standard library alone.

The program says what it checked and exits with 0, or names what fails first and exits with 1.
"""

import json
import re
import sys
from fractions import Fraction
from itertools import product
from math import prod
from operator import add

LARGEST, DEPTH = 5_000_000, 40  # products that a network may take for a sample, and its layers
getattr(sys, "set_int_max_str_digits", int)(0)  # numbers may have any length


def require(holds, words):
    if not holds:
        raise ValueError(words)


def numbers(value, shape, where):
    """Return the fractions of nested lists of strings "p" or "p/q", row by row."""
    if shape and isinstance(value, list) and len(value) == shape[0]:
        return [v for part in value for v in numbers(part, shape[1:], where)]
    fits = not shape and re.fullmatch(r"-?[0-9]+(/0*[1-9][0-9]*)?", value)
    require(fits, f'{where}: expected "p" or "p/q" in lists of lengths {shape}')
    return [Fraction(value)]


def short(v):
    return str(v) if len(str(v)) < 25 else f"about {float(v):.9g}"


class Network:
    """Layers (kind, rows) with the bias of each unit and what it reads, (parameter, entry below).
    Of poolings rows list entries below. `names` are the parameters, (layer, "W" or "b", *index).
    """

    def __init__(self, spec):
        relu, shape, self.layers, self.names = spec["activation"], spec["input"], [], []
        self.boxes, self.below, last, products = {}, {}, None, prod(shape)
        self.slope = Fraction(relu.get("slope", 0) + 0.0)
        fits = relu["name"] == ("leaky_relu" if "slope" in relu else "relu") and self.slope >= 0
        fits = fits and len(shape) in (2, 3) and len(spec["layers"]) <= DEPTH
        require(fits, f"network: expected maps, (leaky) ReLU and up to {DEPTH} layers")
        for n, layer in enumerate(spec["layers"], 1):
            low, fits, positions, rest = 0, len(shape) > 1, 1, layer
            match layer:
                case {"type": "conv" as kind, "maps": count, "kernel": k, **rest}:
                    stride, low, fits = rest.pop("stride", 1), k // 2, fits and k % 2
                case {"type": "dense" as kind, "width": count, **rest}:  # maps of one entry each
                    positions, shape, k, stride, fits = prod(shape[1:]), [prod(shape)], 1, 1, True
                case {"type": "average_pool" | "max_pool" as kind, "size": k, **rest}:
                    count, stride, fits = shape[0], k, fits and not any(m % k for m in shape[1:])
            (maps, *grid), sizes = shape, [*shape, count, k, stride]
            fits = fits and not rest and all(type(v) is int and 0 < v <= LARGEST for v in sizes)
            box, after = [count, maps, *[k] * len(grid)], [-(-m // stride) for m in grid]
            products += prod(box) * prod(after)
            require(fits and products <= LARGEST, f"layer {n}: expected one that fits, got {layer}")
            entry = {at: j for j, at in enumerate(product(*map(range, shape)))}
            corners = product(*(range(-low, m - low, stride) for m in grid))
            taps, start = list(product(*map(range, box[1:]))), len(self.names)
            reads = [[entry.get((c, *map(add, at, d))) for c, *d in taps] for at in corners]
            units, shape = list(product(range(count), reads)), [count, *after]
            if "size" in layer:
                size = len(taps) // maps
                rows = [read[t * size : (t + 1) * size] for t, read in units]
            else:
                pairs = [(t, enumerate(read, start + t * len(taps))) for t, read in units]
                rows = [
                    (start + prod(box) + t, [(p, j) for p, j in r if j is not None])
                    for t, r in pairs
                ]
                self.names += [(n, "W", *at) for at in product(*map(range, box))]
                self.names += [(n, "b", t) for t in range(count)]
                self.boxes |= {f"W{n}": box, f"b{n}": [count]}
                self.below[n], last = (last, positions), n
            self.layers.append((kind, rows))
        self.first, self.last, self.outputs = min(self.below), last, prod(shape)

    def point(self, arrays):
        require(set(arrays) == set(self.boxes), f"points: expected {', '.join(self.boxes)}")
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
    for n, (kind, rows) in enumerate(net.layers, 1):
        sides = []
        if kind in ("conv", "dense"):
            z = o = [sum((o[j] * theta[p] for p, j in row if o[j]), theta[b]) for b, row in rows]
        elif kind == "average_pool":
            z = o = [sum(o[j] for j in row) * Fraction(1, len(row)) for row in rows]
        else:
            tied = [[j for j in r if order(o[j]) == max(order(o[i]) for i in r)] for r in rows]
            unsure = [t[1:] and (net.slope or any(o[j] for j in t)) for t in tied]
            sides = [0 if maybe else t[0] + 1 for t, maybe in zip(tied, unsure, strict=True)]
            z = o = [o[t[0]] for t in tied]
        if kind in ("conv", "dense") and n < len(net.layers):
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
    [c] = numbers(coefficient, [], "coefficient")
    require(terms[0] == (degree, c) and c < 0, f"the first term is not ({c}) t^{degree} < 0")


def check_cell(net, x, y, seen):
    """Check that G_s = (1/N) sum_{i in s} g_i (x_i, 1)^T is 0 for every class s of patterns.
    Nearby its outputs are F_s (x, 1), and R - R(theta) >= sum_s <G_s, F_s - F_s(theta)>.
    """
    classes = {}
    for i, (trace, start) in enumerate(seen):
        pattern = start, *(tuple(sides) for *_, sides in trace[start:])
        undecided = any(0 in sides for sides in pattern[1:])
        require(not undecided, f"sample {i}: at a kink, and no kinks are listed")
        below = [] if start >= net.first else [(0, x[i]), *trace][net.first - 1][1]
        g = [a - b for a, b in zip(trace[-1][1], y[i], strict=True)]
        classes.setdefault(pattern, []).append([a * v for a in g for v in [*below, 1]])
    zero = not any(any(map(sum, zip(*rows, strict=True))) for rows in classes.values())
    require(zero, "G_s is not 0 for a class s of activation patterns")
    print(f"no unit is at its kink; G_s = 0 for the {len(classes)} class(es) of patterns")


def check_kinks(net, theta, x, y, kinks, multipliers, frozen):
    """Check that theta is a local minimum, where units at kinks have outputs s_k and inputs v_k.
    L = R + sum_k lambda_k v_k at s = 0 has gradient 0 in what is not frozen, and slope C_k <
    lambda_k < C_k, C_k = dL/ds_k. That is enough if o and v are linear in it and s, as R is convex
    in o: if of two layers the upper weights are frozen. Otherwise the Hessian of L is positive
    definite where v stays, hence that of L + c |v|^2 for some c. Equal kinks have one s_k.
    """
    names, at, v = {}, {}, {}
    jets = [Poly({(): value, (p,): Fraction(1)}) for p, value in enumerate(theta)]

    def at_kink(n, h, z, x):
        name = frozenset(z.items()) if n == net.first else (n, h, *x)
        return Poly({(names.setdefault(name, len(theta) + len(names)),): Fraction(1)})

    traces = [forward(net, jets, sample, at_kink) for sample in x]
    seen = [(i, n, *t[n]) for i, (t, start) in enumerate(traces) for n in range(start, len(t))]
    for i, n, z, o, sides in seen:
        for h in (h for h, side in enumerate(sides) if side == 0):
            require("pool" not in net.layers[n][0], f"layer {n + 1}: two entries are the largest")
            [[k]] = o[h]
            at[i, n + 1, h], v[k] = k, z[h]
    values = numbers(multipliers, [len(kinks)], "multipliers")
    given = {at.get(tuple(kink)): value for kink, value in zip(kinks, values, strict=True)}
    fits = given.keys() == v.keys() and len(given) == len(kinks)
    require(fits, f"kinks: expected {len(v)}, each with z = 0, and equal ones only once")
    L, o = Poly(), [trace[-1][1] for trace, _ in traces]
    here = [[a.get((), Fraction(0)) for a in row] for row in o]
    for row, values, target in zip(o, here, y, strict=True):
        L = sum((a * ((b - c) / len(y)) for a, b, c in zip(row, values, target, strict=True)), L)
    L = sum((v[k] * value for k, value in given.items()), L)
    for k, value in given.items():
        C = L.get((k,), Fraction(0))
        words = f"multiplier {value}: expected one strictly between {net.slope * C} and {C}"
        require(C > 0 and net.slope * C < value < C, words)
    held = {net.names.index(tuple(place)) for place in frozen}
    upper = {p for p, name in enumerate(net.names) if name[:2] == (net.last, "W")}
    linear = len(net.below) == 2 and upper <= held
    held = upper if linear else held
    free = [p for p in range(len(theta)) if p not in held]
    require(not any(L.get((p,), 0) for p in free), "the gradient with these multipliers is not 0")
    L = L if linear else L + risk(o, here) + sum(jet * jet * 10**9 for jet in v.values())
    H = [[L.get((p, q), 0) + L.get((q, p), 0) for q in free] for p in free if not linear]
    while H:  # L D L^T
        (pivot, *top), *rows = H
        require(pivot > 0, "the Hessian is not positive definite where all kinks stay")
        H = [[a - c / pivot * b for a, b in zip(row, top, strict=True)] for c, *row in rows]
    # A frozen coordinate moves nothing nearby, or a factor for a map gives it its value back: one
    # for each map, of those that read it or, of its own, the bias or a weight of the first layer.
    left = held & {p for *_, o, _ in seen for entry in o for m in entry for p in m}
    maps = set()
    for n, kind, t, *tap in (net.names[p] for p in left):
        below, positions = net.below[n]
        maps.add((below, tap[0] // positions) if kind == "W" and n != net.first else (n, t))
    fits = len(maps) == len(left) and all(theta[p] for p in left) and net.last not in dict(maps)
    require(fits, f"frozen: {len(left)} coordinates that scaling does not give back")
    words = "R is convex in the others" if linear else "the Hessian is positive definite"
    print(f"{len(held)} of {len(theta)} coordinates are frozen, and may be; the gradient is 0 with")
    print(f"multipliers of {len(given)} kink(s), each strictly within its bounds; {words}")


def check(proof):
    """Check a proof, or raise ValueError; what has not the form of one raises other errors."""
    fits = proof["format"] == "tinyspur-proof-1" and proof["loss"] == "squared"
    require(fits, "expected tinyspur-proof-1, and the squared loss")
    claim, net, data = proof["claim"], Network(proof["network"]), proof["data"]
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
