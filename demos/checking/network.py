"""Networks of fractions: how they are read from a proof file, and what they compute."""

import re
from decimal import Decimal
from fractions import Fraction
from itertools import product
from math import prod

OPTIONS = {"conv": {"maps", "kernel", "stride"}, "dense": {"width"}}
OPTIONS |= {"average_pool": {"size"}, "max_pool": {"size"}}
LARGEST = 5_000_000  # products that a layer may take for one sample
DEPTH = 40  # layers


class Unproved(Exception):
    """The first thing that fails."""


def require(holds, words):
    if not holds:
        raise Unproved(words)


def number(text, where):
    """Return the fraction that a string "p" or "p/q" is, of any length."""
    fits = isinstance(text, str) and re.fullmatch(r"-?[0-9]+(/0*[1-9][0-9]*)?", text)
    require(fits, f'{where}: expected a number as "p" or "p/q", got {str(text)[:40]!r}')
    return Fraction(*(int(Decimal(part)) for part in text.split("/")))


def flat(value, shape, where):
    """Return the numbers of a nested list of this shape, row by row."""
    if not shape:
        return [number(value, where)]
    fits = isinstance(value, list) and len(value) == shape[0]
    require(fits, f"{where}: expected lists of lengths {shape}")
    return [v for part in value for v in flat(part, shape[1:], where)]


def whole(n, least=1):
    fits = type(n) is int and least <= n <= LARGEST
    require(fits, f"expected a whole number of {least} or more, got {str(n)[:40]!r}")
    return n


def place(shape, index):
    """Return the number of an entry, counted row by row, or None outside."""
    n = 0
    for size, i in zip(shape, index, strict=True):
        if not 0 <= i < size:
            return None
        n = n * size + i
    return n


def windows(grid, stride, offsets):
    """Return for each position of a coarser grid which entries of a map it reads."""
    positions = product(*(range(0, size, stride) for size in grid))
    moved = ([[a + b for a, b in zip(p, q, strict=True)] for q in offsets] for p in positions)
    return [[place(grid, index) for index in window] for window in moved]


class Network:
    """Layers (kind, rows, biases, active): what each unit reads, its bias, whether ReLU follows.

    They count from 0 here. A row lists (parameter, entry below) or, of a pooling, entries below.
    Parameters count in the order W1, b1, W2, ...; for each, `scales` has the maps that can be
    scaled by c, as (layer, map), with 1 if that multiplies it by c and -1 if it divides it.
    """

    def __init__(self, spec):
        self.input = shape = tuple(map(whole, spec["input"]))
        relu, specs = spec["activation"], spec["layers"]
        known = relu in ({"name": "relu"}, {"name": "leaky_relu", "slope": relu.get("slope", "")})
        require(known, "activation: expected relu, or leaky_relu with a slope")
        slope = relu.get("slope", "0")
        self.slope = number(slope, "slope") if isinstance(slope, str) else Fraction(slope)
        require(self.slope >= 0, "slope: expected 0 or more")
        require(2 <= len(shape) <= 3 and prod(shape) <= LARGEST, "input: expected a small one")
        require(0 < len(specs) <= DEPTH, f"layers: expected 1 to {DEPTH}")
        self.layers, self.arrays, self.scales, self.trained = [], {}, [], []
        for n, layer in enumerate(specs):
            words = f"layer {n + 1}: expected one that fits, got {layer}"
            kind, (maps, *grid) = layer["type"], shape
            require(set(layer) <= OPTIONS[kind] | {"type"}, words)
            if kind in ("average_pool", "max_pool"):
                size = whole(layer["size"])
                require(grid and not any(m % size for m in grid), words)
                offsets = list(product(range(size), repeat=len(grid)))
                reads, P = windows(grid, size, offsets), prod(grid)
                rows = [[c * P + j for j in read] for c in range(maps) for read in reads]
                self.layers.append((kind, rows, None, False))
                shape = (maps, *(m // size for m in grid))
                continue
            if kind == "dense":
                reads, shape = [range(prod(grid))], (whole(layer["width"]),)
                box = shape[0], maps * prod(grid)
            else:
                k, stride = whole(layer["kernel"]), whole(layer.get("stride", 1))
                box = whole(layer["maps"]), maps, *[k] * len(grid)
                require(grid and k % 2 and prod(box) * prod(grid) <= LARGEST, words)
                offsets = list(product(range(-(k // 2), k // 2 + 1), repeat=len(grid)))
                reads = windows(grid, stride, offsets)
                shape = (box[0], *(-(-m // stride) for m in grid))
            require(prod(box) * len(reads) <= LARGEST, words)
            self._add(n, n + 1 < len(specs), kind, maps, prod(grid), reads, box)
        require(self.trained, "layers: expected a convolution or a dense layer")
        self.outputs = prod(shape)
        for scales in self.scales:  # no layer above the last one undoes its scaling
            for unit in [unit for unit in scales if unit[0] in (None, self.trained[-1])]:
                del scales[unit]

    def _add(self, n, active, kind, maps, P, reads, box):
        """Add a convolution or dense layer on `maps` maps of P positions."""
        start, taps, units = len(self.scales), len(reads[0]), range(box[0])
        rows = []
        for t, read in product(units, reads):
            seen = [(c, k, j) for c in range(maps) for k, j in enumerate(read) if j is not None]
            rows.append([(start + (t * maps + c) * taps + k, c * P + j) for c, k, j in seen])
        biases = [start + prod(box) + t for t in units for _ in reads]
        self.layers.append((kind, rows, biases, active))
        below = self.trained[-1] if self.trained else None
        for t, c, _ in product(units, range(maps), range(taps)):
            self.scales.append({(n, t): 1, (below, c): -1})
        self.scales += [{(n, t): 1} for t in units]
        self.arrays |= {f"W{n + 1}": (start, box), f"b{n + 1}": (start + prod(box), box[:1])}
        self.trained.append(n)

    def point(self, arrays, where):
        """Return the parameters of a point in their order."""
        require(set(arrays) == set(self.arrays), f"{where}: expected {', '.join(self.arrays)}")
        boxes = {key: box for key, (_, box) in self.arrays.items()}
        return [v for key, box in boxes.items() for v in flat(arrays[key], box, f"{where} {key}")]

    def coordinate(self, layer, kind, *index):
        """Return the number of a parameter that is named as under "frozen"."""
        start, box = self.arrays[f"{kind}{whole(layer)}"]
        found = place(box, [whole(i, 0) for i in index])
        require(found is not None, f"frozen: expected an index within {box}, got {index}")
        return start + found


class Poly(dict):
    """A polynomial, up to the degree `limit`: coefficients by sorted tuples of variables."""

    limit = 2 * DEPTH

    def __add__(self, other):
        total = type(self)(self)
        for m, v in other.items() if isinstance(other, Poly) else [((), other)]:
            total[m] = total.get(m, 0) + v
        return total

    def __mul__(self, other):
        total = type(self)()
        for n, w in other.items() if isinstance(other, Poly) else [((), other)]:
            for m, v in self.items() if w else ():
                if len(m) + len(n) <= self.limit:
                    key = tuple(sorted(m + n))
                    total[key] = total.get(key, 0) + v * w
        return total

    __radd__, __rmul__ = __add__, __mul__


class Jet(Poly):
    """A polynomial in changes of parameters, up to the second order."""

    limit = 2


def order(v):
    """Return what decides how v compares for t -> 0+: the coefficients of 1, t, t^2, ..."""
    return [v.get(("t",) * k, 0) for k in range(Poly.limit)] if isinstance(v, Poly) else v


def forward(net, theta, x, given=None):
    """Return for each layer z, o, and the slopes of units or the entries that maxima select.

    In numbers or polynomials in t, which decide slopes and selections unless they are `given`.
    """
    trace, o = [], x
    for n, (kind, rows, biases, active) in enumerate(net.layers):
        chosen = given and given[n]
        if kind == "max_pool":
            chosen = chosen or [max(row, key=[*map(order, o)].__getitem__) for row in rows]
            z = o = [o[j] for j in chosen]
        elif kind == "average_pool":
            z = o = [sum(o[j] for j in row) * Fraction(1, len(row)) for row in rows]
        else:
            pairs = zip(rows, biases, strict=True)
            z = [sum((o[j] * theta[p] for p, j in row), theta[b]) for row, b in pairs]
            low = net.slope if active else Fraction(1)
            chosen = chosen or [Fraction(1) if order(v) > order(v * 0) else low for v in z]
            o = [v * slope for v, slope in zip(z, chosen, strict=True)]
        trace.append((z, o, chosen))
    return trace
