"""Which taps the relays of a map read, so that what its copies hand on determines the map.

Filters, windows and strides are products over the directions of a map, and so are the copies: in
each direction a few are chosen, and a track holds all combinations of them.
"""

from __future__ import annotations

import itertools

import numpy as np

from ..engine.network import Network
from ..errors import AssumptionError
from ..layers import AveragePool, AveragePoolingMatrix, Conv
from .paths import Path, instead, kind_of

Reads = list[tuple[int, tuple[int, ...]]]  # by copy: the copy below that it reads, and the tap
Line = list[tuple[int, int]]  # the same in one direction


def taps_of(net: Network, path: Path, spread: bool) -> dict[int, Reads]:
    """Return, for each layer that has filters or a bias for each map, what each copy reads.

    With `spread` there are as few copies as determine all entries that the first of them can read;
    where the middle tap alone does, it is taken. Without it there is one copy, of middle taps.
    Raises AssumptionError where no copies determine the map.
    """
    axes = range(len(net.input_shape) - 1)
    lines = [_line(net, path, axis, spread) for axis in axes]
    found: dict[int, Reads] = {}
    below = [(0,) * len(axes)]
    for layer in lines[0]:
        found[layer], here = [], []
        for copy, places in enumerate(below):
            options = (
                [(n, tap) for n, (source, tap) in enumerate(line[layer]) if source == place]
                for line, place in zip(lines, places, strict=True)
            )
            for chosen in itertools.product(*options):
                here.append(tuple(n for n, _ in chosen))
                found[layer].append((copy, tuple(tap for _, tap in chosen)))
        below = here
    return found


def reads_padding(net: Network, layer: int, reads: Reads) -> bool:
    """Return whether a copy reads zeros beyond the border somewhere."""
    if not isinstance(kind_of(net, layer), Conv):
        return False
    axes = range(len(net.input_shape) - 1)
    matrices = [_tap_matrices(net, layer, axis) for axis in axes]
    return any(not matrices[a][tap[a]].any(axis=1).all() for _, tap in reads for a in axes)


def is_usual(kind: object) -> bool:
    """Return whether a layer is a convolution as [CNN] has it: odd filters, maps keep their size.

    >>> is_usual(Conv(4, 5)), is_usual(Conv(4, 3, padding="valid"))
    (True, False)
    """
    odd = isinstance(kind, Conv) and type(kind.kernel) is int and kind.kernel % 2 == 1
    return odd and kind == Conv(kind.maps, kind.kernel)


def _line(net: Network, path: Path, axis: int, spread: bool) -> dict[int, Line]:
    """Return the copies in one direction: for each layer the copy below and the tap of each."""
    layers = [n for n in path.layers if _reads(net, path, n)]
    copies, found, wanted = [np.eye(1)], {}, None
    for number, layer in enumerate(layers):
        taps = _tap_matrices(net, layer, axis)
        until = path.layers.index(layers[number + 1]) if layer != layers[-1] else None
        above = path.layers[path.layers.index(layer) + 1 : until]
        pools = [_pool_matrix(net, n, axis) for n in above if _is_pool(net, n)]
        if not found:
            copies = [np.eye(taps[0].shape[1])]
        middle = (len(taps) - 1) // 2
        line = [(source, middle) for source in range(len(copies))]
        if wanted is None:
            wanted = int(np.any(taps, axis=(0, 1)).sum())
        same = np.array_equal(taps[middle], np.eye(taps[middle].shape[1]))
        if spread and (pools or not same):
            branches = {
                (source, k): _through([*pools[::-1], tap, copy])
                for source, copy in enumerate(copies)
                for k, tap in enumerate(taps)
            }
            line = _fewest(branches, len(copies), len(taps), wanted)
            if line is None:
                reached = _rank(branches.values())
                last = above[-1] if above else layer
                raise AssumptionError(_too_small(net, layer, last, wanted, reached))
        found[layer] = line
        copies = [_through([*pools[::-1], taps[k], copies[source]]) for source, k in line]
    return found


def _reads(net: Network, path: Path, layer: int) -> bool:
    """Return whether relays of a layer are maps of its own: not of a pooling, say."""
    if layer in path.past:
        return net.is_active(layer)
    return kind_of(net, layer).trainable and not follows(net, layer)


def _fewest(branches: dict, copies: int, taps: int, wanted: int) -> Line | None:
    """Return the fewest branches of full rank: consecutive taps of each copy, or others if fewer.

    None where all of them together have less.
    """
    middle = (taps - 1) // 2
    even, height = None, len(branches[0, 0])
    for count in range(1, taps + 1):
        starts = range(min(middle, taps - count), max(-1, middle - count), -1)
        for start in starts:
            line = [(s, k) for s in range(copies) for k in range(start, start + count)]
            if len(line) * height >= wanted and _rank(branches[one] for one in line) == wanted:
                even = line
                break
        if even:
            break
    if even is None and _rank(branches.values()) < wanted:
        return None
    if even and (len(even) - 1) * height < wanted:  # no fewer can do
        return even
    # Taps in the padding go first, then those in the middle: the ends of a map are read by few.
    kept = list(branches)
    for one in sorted(
        kept, key=lambda one: (branches[one].any(axis=1).sum(), abs(one[1] - middle))
    ):
        rest = [other for other in kept if other != one]
        if rest and _rank(branches[other] for other in rest) == wanted:
            kept = rest
    return even if even and len(even) <= len(kept) else kept


def _rank(matrices) -> int:
    return int(np.linalg.matrix_rank(np.concatenate(list(matrices))))


def _through(matrices: list[np.ndarray]) -> np.ndarray:
    product, *others = reversed(matrices)
    for matrix in others:
        product = matrix @ product
    return product


def _tap_matrices(net: Network, layer: int, axis: int) -> list[np.ndarray]:
    """Return what each tap of a filter reads in one direction, as matrices (n_out, n_in)."""
    kind, below = kind_of(net, layer), net.read_shape(layer)
    if not isinstance(kind, Conv):
        return [np.eye(below[1 + axis])]
    n, count, size, stride, before, _, dilation = (part[axis] for part in kind.grid(below))
    p = np.arange(count)[:, None] * stride - before
    return [(p + k * dilation == np.arange(n)).astype(float) for k in range(size)]


def _pool_matrix(net: Network, layer: int, axis: int) -> np.ndarray:
    """Return the means over windows in one direction, (n_out, n_in)."""
    pool, below = kind_of(net, layer), net.read_shape(layer)
    n, _, size, stride, before, *_ = (part[axis] for part in pool.grid(below))
    options = size, stride, before, pool.ceil_mode, pool.count_include_pad
    return AveragePoolingMatrix(1, (n,), *options).toarray()


def _is_pool(net: Network, layer: int) -> bool:
    return isinstance(kind_of(net, layer), AveragePool)


def follows(net: Network, layer: int) -> bool:
    """Return whether a layer is a scale right above another one, with no activation between."""
    scaled = kind_of(net, layer).type == "scale" and layer > 1
    return scaled and kind_of(net, layer - 1).trainable and not net.is_active(layer - 1)


def _too_small(net: Network, layer: int, last: int, wanted: int, reached: int) -> str:
    """Return in words that a layer, and the poolings up to `last`, keep too little of a map."""
    kind, pools = net.chain[layer - 1], net.chain[layer:last]
    if is_usual(kind) and all(isinstance(pool, AveragePool) for pool in pools):
        sizes = [n for pool in pools if pool == AveragePool(n := pool.size) and type(n) is int]
        size = int(np.prod(sizes))
        if pools and len(sizes) == len(pools):
            return (
                f"filters too small: layer {layer} has filters of size {kind.kernel}, expected at "
                f"least {size + 1 - size % 2}, to shift the map before it is pooled by {size}"
            )
    kind, above = kind_of(net, layer), f" below the layers up to {last}," * (last > layer)
    return (
        f"layer {layer}, {kind},{above} keeps too little: all its taps together hand on {reached} "
        f"of {wanted} entries in a direction of the map; expected larger filters, a smaller stride "
        f"or smaller windows{instead(net)}"
    )
