"""check_proof.py FILE ... checks proof files (tinyspur-proof-1) in fractions, with Python alone.
It exits with 0 and says what it checked, with 1 and what fails, or with 2 without a JSON file.
"""

import json
import re
import sys
from decimal import Context
from fractions import Fraction
from itertools import product
from math import prod
from types import SimpleNamespace

CLAIMS = ["local-minimum", "spurious-local-minimum", "not-a-local-minimum", "equal-risk"]
LARGEST, DEPTH = 5_000_000, 100  # products that a network may take for a sample, and its layers
NONE, TRAINED = {"activation": {"name": "identity"}}, ("conv", "dense", "scale")
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
    whole = max(abs(v.numerator), v.denominator) < 10**12
    return str(v) if whole else f"about {Context(9).divide(v.numerator, v.denominator):.9g}"


def windows(n, size, stride, padding, dilation, ceil):
    """Return what each window reads on a line of the entries 0..n-1 with zeros before and after it.
    With `ceil` a last window may reach out of these, without reading, if it begins before they do.
    """
    span, whole = dilation * (size - 1), [size, stride, dilation]
    low, high = padding if isinstance(padding, list) else [padding] * 2
    low, high = [span // 2, span - span // 2] if padding == "same" else [low, high]
    fits = {*map(type, [n, low, high, *whole])} == {int} and min(low, high) >= 0 < min(whole)
    fits = fits and span < n + low + high and size * (n + low + high) <= LARGEST
    require(fits, f"expected windows that fit on {n} entries, got {[low, high, *whole]}")
    count, left = divmod(n + low + high - span - 1, stride)
    count += 1 + (ceil and left > 0 and (count + 1) * stride < n + low)
    starts = [p * stride - low for p in range(count)]
    return [[v for v in range(i, i + span + 1, dilation) if v < n + high] for i in starts]


class Network:
    """Layers of a `kind`, with a `slope` below 0 and `rows`: what units read. Entries of the input
    and of all layers are numbered on. Rows are (bias or None, [(weight, entry)]), by the numbers of
    parameters, or where there are none (share, entries). Parameters have `names`, (layer, "W" or
    "b", *index), and `reads` are the maps (layer, number) that they read, or else their own.
    """

    def __init__(self, spec):
        self.layers, self.boxes, self.reads, low = [], {}, {}, LARGEST
        self.maps = [None] * prod(spec["input"])  # of all entries: the map with weights
        self.products = len(self.maps)
        top = self.build(spec["layers"], SimpleNamespace(shape=spec["input"], start=0))
        boxes = [(int(name[1:]), name[0], [*map(range, box)]) for name, box in self.boxes.items()]
        self.names = [(n, kind, *at) for n, kind, box in boxes for at in product(*box)]
        self.first, self.last, self.outputs = boxes[0][0], boxes[-1][0], prod(top.shape)
        for n, layer in reversed([*enumerate(self.layers, 1)]):
            above = [layer.kind for layer in self.layers[n : n + 1]]
            usual = above and above != ["scale"] and "pool" not in layer.kind
            sigma = layer.sigma or (spec if usual else NONE)["activation"]
            slopes = {"relu": 0, "leaky_relu": sigma.get("slope"), "identity": 1}
            layer.slope = Fraction(slopes.get(sigma["name"], -1) + 0.0)
            require(layer.slope >= 0, f"network: expected (leaky) ReLU or none, got {sigma}")
            layer.kinked = sigma["name"] != "identity"
            layer.alone = above and low >= layer.start  # what is above reads nothing below it
            low = min(low, layer.low)
            features = self.layers[n - 2].start if n > 1 else 0  # what layer n - 1 made
            fits = n != self.first or low == layer.low == features
            require(fits, "network: expected weights below the first residual block")

    def build(self, layers, below):
        """Add layers above `below`, and return the last; of a block that is the sum."""
        for spec in layers:
            kind, sigma, low = spec["type"], spec.get("activation"), below.start
            rest = {key: value for key, value in spec.items() if key not in ("type", *NONE)}
            if kind == "max_pool" and sigma not in (None, NONE["activation"]):  # two patterns
                below = self.build([spec | NONE, {"type": "same", "activation": sigma}], below)
                continue
            if kind == "residual":
                *inner, last = rest.pop("layers")
                one = self.build([*inner, NONE | last], below)
                two = self.build([NONE | part for part in rest.pop("shortcut", [])], below)
                require(one.shape == two.shape, "expected a sum of equal shapes")
                rows = [(1, [one.start + j, two.start + j]) for j in range(prod(one.shape))]
                low, shape = min(one.start, two.start), one.shape
                self.maps += [None] * len(rows)
            else:
                rows, shape = self.layer(kind, rest.pop, below)
            require(not rest and len(self.layers) < DEPTH, f"network: got {spec}, or too many")
            below = SimpleNamespace(kind=kind, sigma=sigma, rows=rows, shape=shape, low=low)
            below.start = len(self.maps) - len(rows)
            self.layers.append(below)
        return below

    def layer(self, kind, option, below):
        """Return the rows and the shape of a layer that reads windows of all maps of its group."""
        (maps, *grid), n = below.shape, len(self.layers) + 1
        conv, dense, trained = kind == "conv", kind == "dense", kind in TRAINED
        require(trained or kind in ("average_pool", "max_pool", "same"), f"layer {n}: got {kind}")
        if dense:  # it reads maps of one entry each
            maps, grid = prod(below.shape), []
        count = option("maps") if conv else option("width") if dense else maps
        groups = option("groups", 1) if conv else 1 if dense else maps
        size = option("kernel") if conv else option("size") if "pool" in kind else 1
        stride = option("stride", 1 if conv else size)
        options = size, stride, option("padding", "same" if conv else 0), option("dilation", 1)
        ceil, padded = option("ceil_mode", False), option("count_include_pad", True)
        bias = option("bias", True) if trained else False
        fits = [*map(type, (bias, ceil, padded, count, groups))] == [bool] * 3 + [int] * 2
        fits = fits and min(count, groups) > 0 and maps % groups == count % groups == 0
        require(fits, f"layer {n}: expected whole numbers, groups that divide maps, true or false")
        options = (v if isinstance(v, list) else [v] * len(grid) for v in options)
        lines = [windows(*line, ceil) for line in zip(grid, *options, strict=True)]
        box = [count, maps // groups, *(len(reads[0]) for reads in lines)]
        shape, taps, rows = [count, *map(len, lines)], prod(box[1:]), []
        start = sum(map(prod, self.boxes.values()))
        self.products += prod(shape) * taps
        require(self.products <= LARGEST, f"layer {n}: more than {LARGEST} products")
        entry = {at: j for j, at in enumerate(product(range(maps), *map(range, grid)), below.start)}
        for t, at in product(range(count), product(*lines)):
            group = range(maps)[t * groups // count * box[1] :][: box[1]]
            reads = enumerate(map(entry.get, product(group, *at)), start + t * taps)
            reads = [(weight, j) for weight, j in reads if j is not None]
            b, share = start + count * taps + t, prod(map(len, at)) if padded else len(reads)
            if trained:
                rows.append((b if bias else None, reads))
                self.reads |= {b: (n, t)} | {p: self.maps[j] or (n, t) for p, j in reads}
            else:
                rows.append((Fraction(1, share), [j for _, j in reads]))
            self.maps.append((n, t) if trained else self.maps[reads[0][1]])
        self.boxes |= {f"W{n}": box[:1] if kind == "scale" else box} if trained else {}
        self.boxes |= {f"b{n}": [count]} if bias else {}
        return rows, shape

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


def forward(net, theta, x, known=None, kinks=None):
    """Return (z, o, sides) of x and all layers, of numbers or polynomials in t -> 0+ or in theta.
    Sides are signs of z, or which entries maxima select, from 1, or 0 if it may be others nearby.
    All is empty up to a dead layer. With `kinks` the outputs of units at kinks are variables.
    Entries with the same mark of `known` are equal for all theta nearby, and 0 without a mark.
    """
    o, trace, known = [*x], [([], x, [])], {} if known is None else known
    marks = [v and known.setdefault(v, object()) for v in x]

    def mark(bias, share, parts):
        key, some = (bias, share, *filter(None, parts)), share and any(parts)
        return known.setdefault(key, object()) if bias or some else 0

    for n, layer in enumerate(net.layers, 1):
        units = []
        for b, row in layer.rows:
            side = None
            if layer.kind == "max_pool":
                best = max(order(o[j]) for j in row)
                tied = [j for j in row if order(o[j]) == best]
                z, m = o[tied[0]], marks[tied[0]]
                side = tied[0] + 1 if len({marks[j] for j in tied}) == 1 else 0
            elif layer.kind in TRAINED:
                z = theta[b] if b else 0 * theta[0]
                z = sum((o[j] * theta[p] for p, j in row if o[j]), z)
                m = mark(b, 1, [marks[j] and (p, marks[j]) for p, j in row])
            else:
                z, m = sum(o[j] for j in row) * b, mark(None, b, [marks[j] for j in row])
            new = z
            if layer.kinked:
                side = next((1 if c > 0 else -1 for c in order(z) if c), 0 if m else -1)
                new = z if side > 0 else z * layer.slope
                if side == 0 and kinks is not None:
                    new = kinks.setdefault(m, Poly({(len(theta) + len(kinks),): Fraction(1)}))
                m = m if side > 0 else mark(None if side else "kink", layer.slope, [m])
            units.append((z, new, side, m))
        z, new, sides, added = map(list, zip(*units, strict=True))
        sides = [s for s in sides if s is not None and n >= net.first]
        if n < net.first:  # of numbers alone
            added = [v and known.setdefault(v, object()) for v in new]
        o, marks, trace = o + new, marks + added, [*trace, (z, new, sides)]
        if layer.slope == 0 and set(sides) == {-1} and layer.alone:
            trace = [([], [], [])] * len(trace)
    return trace


def risk(o, y):
    u = [a + -b for rows in zip(o, y, strict=True) for a, b in zip(*rows, strict=True)]
    return sum(v * v for v in u) * Fraction(1, 2 * len(y))


def check_cell(net, y, traces):
    """Check that G_s = (1/N) sum_{i in s} g_i (x_i, 1)^T is 0 for every class s of patterns.
    Nearby outputs are F_s (x, 1), or F_s x, and R - R(theta) >= sum_s <G_s, F_s - F_s(theta)>.
    """
    classes = {}
    for i, (trace, target) in enumerate(zip(traces, y, strict=True)):
        pattern = tuple(tuple(sides) for *_, sides in trace)
        dead = net.layers[-1].slope == 0 and {*pattern[-1]} == {-1}  # then o is 0 nearby
        require(dead or all(map(all, pattern)), f"sample {i}: at a kink that is not listed")
        g = [a - b for a, b in zip(trace[-1][1], target, strict=True)]
        hat = [*trace[net.first - 1][1], *[1] * any("b" in name for name in net.boxes)]
        classes.setdefault(pattern, []).append([a * v for a in g for v in hat if not dead])
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
    known, names, at, v, slopes = {}, {}, {}, {}, {}
    jets = [Poly({(): value, (p,): Fraction(1)}) for p, value in enumerate(theta)]
    traces = [forward(net, jets, sample, known, names) for sample in x]
    layers = [(i, n, *t[n]) for i, t in enumerate(traces) for n in range(net.first, len(t))]
    for i, n, z, o, sides in layers:
        for h in (h for h, side in enumerate(sides) if side == 0):
            require(net.layers[n - 1].kind != "max_pool", f"layer {n}: two entries are the largest")
            [[k]] = o[h]
            at[i, n, h], v[k], slopes[k] = k, z[h], net.layers[n - 1].slope
    values = numbers(multipliers, [len(kinks)])
    given = {at.get(tuple(kink)): value for kink, value in zip(kinks, values, strict=True)}
    require(given.keys() == v.keys(), f"kinks: expected {len(v)} with z = 0, equal ones only once")
    o = [a for trace in traces for a in trace[-1][1]]
    u = [a.get((), 0) - b for a, b in zip(o, (b for row in y for b in row), strict=True)]
    L = sum((a * (b / len(y)) for a, b in zip(o, u, strict=True)), Poly())
    L = sum((v[k] * value for k, value in given.items()), L)
    for k, value in given.items():
        low, C = slopes[k] * L.get((k,), 0), L.get((k,), 0)
        require(C > 0 and low < value < C, f"multiplier not strictly between {low} and {C}")
    held = {net.names.index(tuple(name)) for name in frozen}
    upper = {p for p, name in enumerate(net.names) if name[:2] == (net.last, "W")}
    linear = len({n for n, *_ in net.names}) == 2 and upper <= held
    held = upper if linear else held
    free = [p for p in range(len(theta)) if p not in held]
    require(not any(L.get((p,), 0) for p in free), "the gradient with these multipliers is not 0")
    squares = [] if linear else [*o, *(jet * 10**9 for jet in v.values())]
    L += risk([squares], [[a.get((), 0) for a in squares]]) * Fraction(1, len(y))
    H = [[L.get((p, q), 0) + L.get((q, p), 0) for q in free] for p in free if not linear]
    while H:  # L D L^T
        (pivot, *top), *rows = H
        require(pivot > 0, "the Hessian is not positive definite where all kinks stay")
        H = [[a - c / pivot * b for a, b in zip(row, top, strict=True)] for c, *row in rows]
    polys = [a for *_, o, _ in [*layers, (v.values(), 0)] for a in o if isinstance(a, Poly)]
    left = held & {p for a in polys for m in a for p in m}
    maps = [net.reads[p] for p in left]
    blocks = "residual" in [layer.kind for layer in net.layers]
    fits = len({*maps}) == len(maps) and all(theta[p] for p in left)
    fits = fits and net.last not in dict(maps) and not (left and blocks)
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
        status, words = 2, "no proof file"
        try:
            with open(name, encoding="utf-8") as file:
                proof = json.load(file)
            status, words = 1, "not proved"
            check(proof)
        except (Exception, KeyboardInterrupt) as error:
            said = str(error) if isinstance(error, ValueError | OSError) else repr(error)
            print(f"{name}: {words}: {' '.join(said.split())[:400]}", file=sys.stderr)
            sys.exit(status)
        print("proved")


if __name__ == "__main__":
    given, asked = sys.argv[1:], {"-h", "--help"} & {*sys.argv}
    main(given) if given and not asked else sys.exit(sys.stderr.write(__doc__) and 2 * (not asked))
