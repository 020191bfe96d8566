"""Conditions of a local minimum, decided in fractions."""

from fractions import Fraction
from itertools import product
from math import gcd, lcm
from operator import mul

from .network import Jet, forward, number, require, whole

# Linear algebra in whole numbers: rows are multiplied by their denominators


def whole_rows(rows):
    scale = lcm(*(Fraction(v).denominator for row in rows for v in row))
    return [[int(v * scale) for v in row] for row in rows]


def echelon(rows):
    """Return a reduced row echelon form as {pivot column: row}."""
    rows, done = whole_rows(rows), {}
    for c in range(len(rows[0]) if rows else 0):
        at = next((k for k, row in enumerate(rows) if row[c]), None)
        if at is not None:
            pivot = rows.pop(at)
            rows = [_cleared(row, pivot, c) for row in rows]
            done = {k: _cleared(row, pivot, c) for k, row in done.items()} | {c: pivot}
    return done


def _cleared(row, pivot, c):
    if not row[c]:
        return row
    row = [pivot[c] * a - row[c] * b for a, b in zip(row, pivot, strict=True)]
    divisor = gcd(*row) or 1
    return [v // divisor for v in row]


def spanned(rows, inside, others):
    """Return which columns of `others` lie in the span of those `inside`, and its dimension."""
    done = echelon([[row.get(p, 0) for p in [*inside, *others]] for row in rows])
    beyond = [row[len(inside) :] for c, row in done.items() if c >= len(inside)]
    found = {p for k, p in enumerate(others) if not any(row[k] for row in beyond)}
    return found, len(done) - len(beyond)


def kernel(rows, size):
    """Return a basis of {d : row . d = 0 for all rows}, each d as {place: number}."""
    done, basis = echelon(rows), []
    for c in sorted(set(range(size)) - set(done)):
        moved = {pivot: Fraction(-row[c], row[pivot]) for pivot, row in done.items() if row[c]}
        basis.append({c: Fraction(1)} | moved)
    return basis


def is_positive_definite(H):
    """Return whether the pivots of H = L D L^T are positive, through its leading minors."""
    H, before = whole_rows(H), 1
    for k, row in enumerate(H):
        if row[k] <= 0:
            return False
        for i in range(k + 1, len(H)):
            factor = H[i][k]
            H[i] = [(v * row[k] - factor * w) // before for v, w in zip(H[i], row, strict=True)]
        before = row[k]
    return True


# What the samples are at theta


def look(net, theta, x, known):
    """Return the trace, which function of theta each entry is, the first layer that counts, and x.

    Functions made in the same way of the same things get equal numbers, and what is 0 for all
    parameters nearby gets 0. Where all units of a layer are strictly inactive, neither they nor
    what is below them counts.
    """
    trace, start, tie, below = forward(net, theta, x), 0, "", x
    names = [known("input", v) if v else 0 for v in x]
    functions = [names]
    for n, (kind, rows, biases, active) in enumerate(net.layers):
        z, o, chosen = trace[n]
        if kind == "max_pool":
            for row, j in zip(rows, chosen, strict=True):
                if any(below[k] == below[j] and names[k] != names[j] for k in row):
                    tie = tie or f"layer {n + 1}: two entries of a window are the largest"
            names = [names[j] for j in chosen]
        elif kind == "average_pool":
            parts = [sorted(names[j] for j in row) for row in rows]
            names = [known("mean", *part) if any(part) else 0 for part in parts]
        else:
            parts = [[(p, names[j]) for p, j in row if names[j]] for row in rows]
            names = [known("row", b, *part) for b, part in zip(biases, parts, strict=True)]
            if active and net.slope == 0:
                names = [name if v >= 0 else 0 for name, v in zip(names, z, strict=True)]
                if not any(names):
                    start, tie = n + 1, ""
        functions.append(names)
        below = o
    require(not tie, tie)
    return trace, functions, start, x


def look_at_all(net, theta, x):
    """Return `look` for every sample."""
    numbers = {}
    return [look(net, theta, v, lambda *key: numbers.setdefault(key, len(numbers) + 1)) for v in x]


def kinks_of(net, seen):
    """Return where z = 0 among what counts: (sample, layer, unit)."""
    found = []
    for i, (trace, _, start, _) in enumerate(seen):
        for n in (n for n in net.trained if n >= start and net.layers[n][3]):
            found += [(i, n, h) for h, v in enumerate(trace[n][0]) if v == 0]
    return found


def check_cell(net, y, seen):
    """Check that G_s = (1/N) sum_{i in s} g_i (x_i, 1)^T is 0 for every class s of patterns."""
    for i, n, h in kinks_of(net, seen):
        require(False, f"sample {i}, layer {n + 1}, unit {h}: at the kink, and no kinks are listed")
    classes, first = {}, net.trained[0]
    for (trace, _, start, x), target in zip(seen, y, strict=True):
        features = [] if start else trace[first - 1][1] if first else x
        pattern = start, *(tuple(chosen or ()) for _, _, chosen in trace[max(start, first) :])
        g = [a - b for a, b in zip(trace[-1][1], target, strict=True)]
        classes.setdefault(pattern, []).append([a * v for a in g for v in [*features, 1]])
    for rows in classes.values():
        zero = not any(map(sum, zip(*rows, strict=True)))
        require(zero, "G_s is not 0 for a class s of activation patterns")
    print(f"no unit is at its kink; G_s = 0 for the {len(classes)} class(es) of patterns")


def pulled_back(net, theta, n, delta, chosen, size):
    """Return the derivative in the entries below layer n, `delta` that in its z."""
    kind, rows, _, _ = net.layers[n]
    found = [Fraction(0)] * size
    for h, row in enumerate(rows):
        if kind == "max_pool":
            terms = [(chosen[h], 1)]
        elif kind == "average_pool":
            terms = [(j, Fraction(1, len(row))) for j in row]
        else:
            terms = [(j, theta[p]) for p, j in row]
        for j, weight in terms if delta[h] else ():
            found[j] += delta[h] * weight
    return found


def slopes_at_kinks(net, theta, y, seen, kinks, multipliers):
    """Return the slopes of all units, those at kinks being multiplier / C; check that they fit.

    C is the derivative that backpropagation brings to the output of the unit. Kinks that are the
    same function of theta count as one: one is listed, and their C are added.
    """
    found = [[list(chosen or ()) for _, _, chosen in trace] for trace, *_ in seen]
    at, given, C = kinks_of(net, seen), {}, {}
    for (sample, layer, unit), text in zip(kinks, multipliers, strict=True):
        place = whole(sample, 0), whole(layer) - 1, whole(unit, 0)
        require(
            place in at, f"kink {[sample, layer, unit]}: expected z = 0, and a unit that counts"
        )
        name = seen[sample][1][layer][unit]
        require(name not in given, f"kink {[sample, layer, unit]}: expected equal ones only once")
        given[name] = number(text, "multipliers")
    deltas = []
    for (trace, *_), target in zip(seen, y, strict=True):
        deltas.append([(a - b) / len(y) for a, b in zip(trace[-1][1], target, strict=True)])
    for n in reversed(range(len(net.layers))):
        here = [(i, h, seen[i][1][n + 1][h]) for i, m, h in at if m == n]
        for i, h, name in here:
            C[name] = C.get(name, 0) + deltas[i][h]
        for i, h, name in here:
            where = f"sample {i}, layer {n + 1}, unit {h}, at the kink:"
            require(name in given, f"{where} expected to be listed")
            bounds = net.slope * C[name], C[name]
            fits = C[name] > 0 and bounds[0] < given[name] < bounds[1]
            require(fits, f"{where} multiplier not strictly between {bounds[0]} and {bounds[1]}")
            found[i][n][h] = given[name] / C[name]
        for i, delta in enumerate(deltas):
            if net.layers[n][2]:
                delta = [d * slope for d, slope in zip(delta, found[i][n], strict=True)]
            deltas[i] = pulled_back(net, theta, n, delta, found[i][n], len(seen[i][1][n]))
    return found


def check_kinks(net, theta, y, seen, kinks, multipliers, frozen):
    """Check the conditions of a strict local minimum over the coordinates that are not frozen.

    R_t has the slopes t at the kinks: grad R_t = 0, each t is strictly between the slopes of the
    activation, C > 0, and the Hessian of R_t is positive definite where all z_k stay 0.
    """
    slopes = slopes_at_kinks(net, theta, y, seen, kinks, multipliers)
    frozen, listed = {net.coordinate(*place) for place in frozen}, len(frozen)
    require(len(frozen) == listed, "frozen: expected every coordinate only once")
    start, stop = (net.arrays[f"{array}{net.trained[-1] + 1}"][0] for array in "Wb")
    top = set(range(start, stop))
    affine = len(net.trained) == 2 and top <= frozen  # outputs, in all other coordinates
    free = [p for p in range(len(theta)) if p not in frozen]
    jets = list(theta)
    for p in set(range(len(theta))) - (top if affine else frozen):
        jets[p] = Jet({(): theta[p], (p,): Fraction(1)})
    where = {p: k for k, p in enumerate(free)}
    gradient, H = [Fraction(0)] * len(free), [[Fraction(0)] * len(free) for _ in free]
    first = {seen[i][1][n + 1][h]: (i, n, h) for i, n, h in kinks_of(net, seen)}.values()
    Z, J = [], []
    for i, ((*_, x), target) in enumerate(zip(seen, y, strict=True)):
        trace = forward(net, jets, x, slopes[i])
        Z += [_linear(trace[n][0][h]) for m, n, h in first if m == i]
        for o, v in zip(trace[-1][1], target, strict=True):
            o = Jet() + o
            g = o.get((), 0) - v
            J.append(_linear(o))
            for m, a in o.items():
                places = [where[p] for p in m if p in where]
                if len(m) == len(places) == 1:
                    gradient[places[0]] += g * a
                if len(m) == len(places) == 2:
                    H[places[0]][places[1]] += g * a
                    H[places[1]][places[0]] += g * a
    require(not any(gradient), "the gradient with these multipliers is not 0")
    scale = lcm(*(a.denominator for row in J for a in row.values()))
    columns = [[int(row.get(p, 0) * scale) for row in J] for p in free]
    for k, m in product(range(len(free)), repeat=2):
        H[k][m] += Fraction(sum(map(mul, columns[k], columns[m])), scale**2)
    tangent = kernel([[row.get(p, 0) for p in free] for row in Z], len(free))
    images = [[sum(row[k] * a for k, a in d.items()) for row in H] for d in tangent]
    on_tangent = [[sum(v[k] * a for k, a in d.items()) for v in images] for d in tangent]
    words = "the Hessian is not positive definite where all kinks stay"
    require(is_positive_definite(on_tangent), words)
    check_frozen(net, theta, seen, frozen, top, J + Z if affine else None)
    print(
        f"{len(frozen)} of {len(theta)} coordinates are frozen, and may be; the gradient in the "
        f"others is 0 with the multipliers of {len(kinks)} kink(s), each strictly within its "
        f"bounds; the Hessian is positive definite on the {len(tangent)} directions that keep them"
    )


def _linear(v):
    """Return {parameter: derivative} of a number that may depend on parameters."""
    return {m[0]: a for m, a in (Jet() + v).items() if len(m) == 1}


def check_frozen(net, theta, seen, frozen, top, rows):
    """Check that near theta every point has one with the same outputs that keeps what is frozen.

    First maps are scaled, so that frozen coordinates get their values back: those are nonzero, and
    independent as they depend on the logarithms of the factors. Then, from below, each unit's other
    frozen coordinates get theirs back and its free ones undo it on the samples and positions where
    it is not strictly inactive: because the frozen one multiplies what is 0 nearby, or because the
    columns of the free ones span its column. Above the first layer columns move, so that they must
    span everything. With `rows` outputs and kinks are affine in all coordinates but those of the
    last layer's weights, and the free ones undo it together.
    """
    left, first = set(), net.trained[0]
    for n in net.trained:
        _, units, biases, active = net.layers[n]
        for b in sorted(set(biases)):
            read = {}
            for trace, functions, start, x in seen:
                below = trace[n - 1][1] if n else x
                for h, row in enumerate(units):
                    off = active and net.slope == 0 and trace[n][0][h] < 0
                    if biases[h] == b and n >= start and not off:
                        values = {p: below[j] for p, j in row if functions[n][j]}
                        read[functions[n + 1][h]] = values | {b: Fraction(1)}
            columns = set().union(*read.values())
            found, rank = spanned(read.values(), sorted(columns - frozen), sorted(columns & frozen))
            if n == first or rank < len(read):
                left |= (columns & frozen) - (found if n == first else set())
    if rows is not None:
        free = sorted(set(range(len(theta))) - frozen)
        left -= spanned(rows, free, sorted(left - top))[0]
    scales = [net.scales[p] for p in sorted(left)]
    units = sorted(set().union(*scales))
    independent = echelon([[scale.get(unit, 0) for unit in units] for scale in scales])
    fits = all(theta[p] for p in left) and len(independent) == len(left)
    require(fits, f"frozen: {len(left)} coordinates that neither scaling nor others can give back")
