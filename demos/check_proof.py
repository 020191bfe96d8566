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

CLAIMS = ["local-minimum", "spurious-local-minimum", "not-a-local-minimum", "equal-risk"]
LARGEST, DEPTH = 5_000_000, 40  # products that a network may take for a sample, and its layers
getattr(sys, "set_int_max_str_digits", int)(100_000)  # numbers may be long


def require(holds, words):
    if not holds:
        raise ValueError(words)


def numbers(value, shape):  # as fractions, row by row: nested lists of strings "p" or "p/q"
    if shape and isinstance(value, list) and len(value) == shape[0]:
        return [v for part in value for v in numbers(part, shape[1:])]
    fits = not shape and re.fullmatch(r"-?[0-9]+(/0*[1-9][0-9]*)?", value)
    require(fits, f'expected "p" or "p/q", in lists of lengths {shape}, got {str(value)[:40]}')
    return [Fraction(value)]


def short(v):
    return str(v) if max(abs(v.numerator), v.denominator) < 10**12 else f"about {float(v):.9g}"


class Network:
    """Layers (kind, rows): biases of units and what they read, (parameter, entry below). `maps` has
    for parameters (layer, "W" or "b", *index) the map (layer, number) they read, or else their own.
    """

    def __init__(self, spec):
        relu, shape, self.layers, self.boxes = spec["activation"], spec["input"], [], {}
        self.slope, self.maps, last, products = Fraction(relu.get("slope", 0) + 0.0), {}, 0, 0
        fits = relu["name"] == ("leaky_relu" if "slope" in relu else "relu") and self.slope >= 0
        require(fits and len(spec["layers"]) <= DEPTH, "network: expected (leaky) ReLU, few layers")
        for n, layer in enumerate(spec["layers"], 1):
            low, fits, positions, rest, pooling = 0, len(shape) > 1, 1, True, "size" in layer
            match layer:
                case {"type": "conv" as kind, "maps": count, "kernel": k, **rest}:
                    stride, low, fits = rest.pop("stride", 1), k // 2, fits and k % 2
                case {"type": "dense" as kind, "width": count, **rest}:  # maps of one entry each
                    positions, shape, k, stride, fits = prod(shape[1:]), [prod(shape)], 1, 1, True
                case {"type": "average_pool" | "max_pool" as kind, "size": k, **rest}:
                    count, stride, fits = shape[0], k, fits and not any(m % k for m in shape[1:])
            (maps, *grid), sizes = shape, [*shape, count, k, stride]
            fits = fits and not rest and all(type(v) is int and 0 < v <= LARGEST for v in sizes)
            box = [count, 1 if pooling else maps, *[k] * len(grid)]
            after = [-(-m // stride) for m in grid]
            products += prod(box) * prod(after)
            require(fits and products + prod(shape) <= LARGEST, f"layer {n}: got {layer}")
            entry = {at: j for j, at in enumerate(product(*map(range, shape)))}
            corners = product(*(range(-low, m - low, stride) for m in grid))
            taps, start, rows = list(product(*map(range, box[1:]))), len(self.maps), []
            for t, at in product(range(count), corners):
                reads = enumerate(entry.get((c + t * pooling, *map(add, at, d))) for c, *d in taps)
                reads = [(start + t * len(taps) + tap, j) for tap, j in reads if j is not None]
                rows.append([j for _, j in reads] if pooling else (start + prod(box) + t, reads))
            self.layers, shape = [*self.layers, (kind, rows)], [count, *after]
            if not pooling:
                self.boxes |= {f"W{n}": box, f"b{n}": [count]}
                for t, c, *d in product(*map(range, box)):
                    self.maps[(n, "W", t, c, *d)] = (last, c // positions) if last else (n, t)
                self.maps |= {(n, "b", t): (n, t) for t in range(count)}
                self.upper, last = set(range(start, start + prod(box))), n
        self.first, self.last, self.outputs = min(self.maps)[0], last, prod(shape)

    def point(self, arrays):
        require(set(arrays) == set(self.boxes), f"points: expected {', '.join(self.boxes)}")
        return [v for name, box in self.boxes.items() for v in numbers(arrays[name], box)]


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


def order(v):  # what decides how v compares for t -> 0+: the coefficients of 1, t, t^2, ...
    return [v.get(("t",) * k, 0) for k in range(DEPTH + 1)] if isinstance(v, Poly) else [v]


def forward(net, theta, x, kinks=None):
    """Return (z, o, sides) of x and all layers, of numbers or polynomials in t -> 0+ or in theta.
    Sides are signs of z, or which entries maxima select, from 1, or 0 if it may be others nearby.
    All is empty up to a dead layer. With `kinks` the outputs of units at kinks are variables.
    """
    trace, o, depth = [([], x, [])], x, len(net.layers)
    for n, (kind, rows) in enumerate(net.layers, 1):
        sides = []
        if kind == "max_pool":
            best = [max(order(o[j]) for j in row) for row in rows]
            tied = [[j for j in row if order(o[j]) == v] for row, v in zip(rows, best, strict=True)]
            sides = [0 if t[1:] and (net.slope or any(o[j] for j in t)) else t[0] + 1 for t in tied]
            z = o = [o[t[0]] for t in tied]
        elif kind == "average_pool":
            z = o = [sum(o[j] for j in row) * Fraction(1, len(row)) for row in rows]
        else:
            z = o = [sum((o[j] * theta[p] for p, j in row if o[j]), theta[b]) for b, row in rows]
            sides = [next((1 if c > 0 else -1 for c in order(v) if c), 0) for v in z if n < depth]
            o = [v if s > 0 else v * net.slope for v, s in zip(z, sides, strict=False)] or z
            for h in (h for h, s in enumerate(sides) if s == 0 and kinks is not None):
                name = frozenset(z[h].items()) if n == net.first else (n, h, *x)
                o[h] = kinks.setdefault(name, Poly({(len(theta) + len(kinks),): Fraction(1)}))
        trace.append((z, o, sides if n >= net.first else []))
        if set(sides) == {-1} and net.slope == 0:
            trace = [([], [], [])] * len(trace)
    return trace


def risk(o, y):
    u = [a + -b for rows in zip(o, y, strict=True) for a, b in zip(*rows, strict=True)]
    return sum(v * v for v in u) * Fraction(1, 2 * len(y))


def check_cell(net, y, traces):
    """Check that G_s = (1/N) sum_{i in s} g_i (x_i, 1)^T is 0 for every class s of patterns.
    Nearby its outputs are F_s (x, 1), and R - R(theta) >= sum_s <G_s, F_s - F_s(theta)>.
    """
    classes = {}
    for i, (trace, target) in enumerate(zip(traces, y, strict=True)):
        pattern = tuple(tuple(sides) for *_, sides in trace)
        require(all(0 not in s for s in pattern), f"sample {i}: at a kink that is not listed")
        g = [a - b for a, b in zip(trace[-1][1], target, strict=True)]
        row = [a * v for a in g for v in [*trace[net.first - 1][1], 1]]
        classes.setdefault(pattern, []).append(row)
    zero = not any(any(map(sum, zip(*rows, strict=True))) for rows in classes.values())
    require(zero, "G_s is not 0 for a class s of activation patterns")
    print(f"no unit is at its kink; G_s = 0 for the {len(classes)} class(es) of patterns")


def check_kinks(net, theta, x, y, kinks, multipliers, frozen):
    """Check a local minimum. Kinks k have inputs v_k and outputs s_k, those that are equal one. Of
    L = R + sum_k lambda_k v_k at s = 0 the gradient is 0 in what is not frozen, and C_k = dL/ds_k
    has slope C_k < lambda_k < C_k. R is convex in o: that is enough where o and v are linear in it
    and in s, of two layers with the upper weights frozen. Else the Hessian of L + c |v|^2 is
    positive. What is frozen moves nothing nearby, or scaling a map gives it back, one for each.
    """
    names, at, v = {}, {}, {}
    jets = [Poly({(): value, (p,): Fraction(1)}) for p, value in enumerate(theta)]
    traces = [forward(net, jets, sample, names) for sample in x]
    layers = [(i, n, *t[n]) for i, t in enumerate(traces) for n in range(net.first, len(t))]
    for i, n, z, o, sides in layers:
        for h in (h for h, side in enumerate(sides) if side == 0):
            require("pool" not in net.layers[n - 1][0], f"layer {n}: two entries are the largest")
            [[k]] = o[h]
            at[i, n, h], v[k] = k, z[h]
    values = numbers(multipliers, [len(kinks)])
    given = {at.get(tuple(kink)): value for kink, value in zip(kinks, values, strict=True)}
    require(given.keys() == v.keys(), f"kinks: expected {len(v)} with z = 0, equal ones only once")
    o = [a for trace in traces for a in trace[-1][1]]
    u = [a.get((), 0) - b for a, b in zip(o, (b for row in y for b in row), strict=True)]
    L = sum((a * (b / len(y)) for a, b in zip(o, u, strict=True)), Poly())
    L = sum((v[k] * value for k, value in given.items()), L)
    for k, value in given.items():
        low, C = net.slope * L.get((k,), 0), L.get((k,), 0)
        require(C > 0 and low < value < C, f"multiplier not strictly between {low} and {C}")
    held = {list(net.maps).index(tuple(name)) for name in frozen}
    held = net.upper if (linear := len(net.boxes) == 4 and net.upper <= held) else held
    free = [p for p in range(len(theta)) if p not in held]
    require(not any(L.get((p,), 0) for p in free), "the gradient with these multipliers is not 0")
    squares = [] if linear else [*o, *(jet * 10**9 for jet in v.values())]
    L += risk([squares], [[a.get((), 0) for a in squares]]) * Fraction(1, len(y))
    H = [[L.get((p, q), 0) + L.get((q, p), 0) for q in free] for p in free if not linear]
    while H:  # L D L^T
        (pivot, *top), *rows = H
        require(pivot > 0, "the Hessian is not positive definite where all kinks stay")
        H = [[a - c / pivot * b for a, b in zip(row, top, strict=True)] for c, *row in rows]
    left = held & {p for *_, o, _ in [*layers, (v.values(), 0)] for a in o for m in a for p in m}
    maps = [m for p, m in enumerate(net.maps.values()) if p in left]
    fits = len({*maps}) == len(maps) and all(theta[p] for p in left) and net.last not in dict(maps)
    require(fits, f"frozen: {len(left)} coordinates that scaling does not give back")
    print(f"the gradient is 0 with the multipliers of {len(given)} kink(s), strictly within bounds")
    how = "R is convex" if linear else "its Hessian is positive"
    print(f"{len(held)} of {len(theta)} coordinates are frozen, and may be; in the others {how}")


def check(proof):
    claim, net, data = proof["claim"], Network(proof["network"]), proof["data"]
    fits = proof["format"] == "tinyspur-proof-1" and proof["loss"] == "squared" and claim in CLAIMS
    require(fits, f"expected tinyspur-proof-1, the squared loss, and of claims {CLAIMS}")
    x = [numbers(sample, proof["network"]["input"]) for sample in data["x"]]
    y = [numbers(target, [net.outputs]) for target in data["y"]]
    points = {name: net.point(arrays) for name, arrays in proof["points"].items()}
    seen = {name: [forward(net, point, v) for v in x] for name, point in points.items()}
    o = {name: [trace[-1][1] for trace in traces] for name, traces in seen.items()}
    R, theta = {name: risk(rows, y) for name, rows in o.items()}, points["theta"]
    print(f"{claim}: {len(x)} sample(s), {len(theta)} parameters, squared loss")
    print(", ".join(f"R({name}) = {short(value)}" for name, value in R.items()))
    for name, rows in o.items() if len(y) * net.outputs <= 16 else ():
        print(f"o({name}) =", "; ".join(", ".join(map(short, row)) for row in rows))
    for name, text in proof.get("risks", {}).items():
        require([R[name]] == numbers(text, []), f"risks: R({name}) is another number")
    if claim == "equal-risk":
        require(o["theta"] == o["theta_prime"], "the outputs differ")
        print("all outputs are equal")
    elif claim == "not-a-local-minimum":
        d, [c] = net.point(proof["direction"]), numbers(proof["coefficient"], [])
        moved = [Poly({(): a, ("t",): b}) for a, b in zip(theta, d, strict=True)]
        along = risk([forward(net, moved, sample)[-1][1] for sample in x], y)
        terms = sorted((len(m), v) for m, v in along.items() if m and v) or [(0, 0)]
        said = [f"({short(v)}) t^{k}".removesuffix("^1") for k, v in terms]
        print(f"R(theta + t direction) - R(theta) = {' + '.join(said)} for small t > 0")
        require(terms[0] == (proof["order"], c) and c < 0, f"the first term is {said[0]}")
    elif R["theta"] == 0:
        print("R is 0, which is the least that it can be")
    elif "kinks" in proof:
        check_kinks(net, theta, x, y, proof["kinks"], proof["multipliers"], proof["frozen"])
    else:
        check_cell(net, y, seen["theta"])
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
            words = str(error) if isinstance(error, ValueError | OSError) else repr(error)
            sys.exit(f"{name}: not proved: {' '.join(words.split())[:400]}")
        print("proved")


if __name__ == "__main__":
    main(sys.argv[1:] or sys.exit(__doc__))
