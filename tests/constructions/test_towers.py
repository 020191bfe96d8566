"""Towers: what relays and their shifted copies hand on, and what their biases add up to."""

import numpy as np
import pytest
import torch
from pairs_anywhere import NEGATIVE, SQUARED, P, over_cases, over_variants, random_problem, run
from shared import close, in_turn

from tinyspur import Conv, Dense, Network
from tinyspur.constructions.towers import Tower


def neurons(net, layer, maps):
    """Return the numbers of the neurons of a slice of maps."""
    n = net.positions(layer)
    return np.arange(maps.start * n, maps.stop * n)


def track_matrices(theta, tower, track, source):
    """Yield the explicit matrices of the layers, restricted to a track that relays map `source`."""
    net, columns = theta.net, neurons(theta.net, tower.first - 1, slice(source, source + 1))
    for layer in range(tower.first, tower.last + 1):
        rows = neurons(net, layer, tower.maps(layer, track))
        whole = theta.W[layer].tocsr()[rows]
        restricted = whole[:, columns]
        assert restricted.nnz == whole.nnz  # a track reads nothing else
        yield layer, restricted
        columns = rows


@in_turn(over_cases, over_variants)
def test_a_towers_matrix_is_the_product_of_explicit_matrices(name, variant):
    theta, pair, _, _ = random_problem(name, variant=variant)
    tower, net = pair.tower, theta.net
    for m in pair.relayed[:2]:
        track = pair.relay_of(m)
        product = np.eye(net.positions(pair.below))
        for _, matrix in track_matrices(theta, tower, track, m):
            product = matrix @ product
        close(tower.matrix, product, 1e-14)
        columns = tower.columns(track)
        rows = neurons(net, tower.last, tower.maps(tower.last, track))
        assert np.array_equal(np.arange(columns.start, columns.stop), rows)


@over_cases
def test_what_shifted_copies_hand_on_determines_the_map(name):
    theta, pair, _, _ = random_problem(name)
    tower, n = pair.tower, theta.net.positions(pair.below)
    assert tower.matrix.shape == (n, n)
    assert np.linalg.matrix_rank(tower.matrix) == n
    assert tower.pooled == any(isinstance(a, P) for a in theta.net.layers[pair.upper : tower.last])
    weights = np.random.default_rng(0).normal(size=(2, 3, n))
    close(tower.seen(weights), weights @ tower.matrix, 1e-14)
    close(tower.seen(tower.unseen(weights)), weights, 1e-11)
    close(tower.unseen(tower.seen(weights)), weights, 1e-11)


@over_cases
def test_the_constants_are_what_an_input_of_zeros_leaves_behind(name):
    theta, pair, data, _ = random_problem(name, SQUARED, NEGATIVE)
    zeros = torch.zeros(1, *theta.net.shapes[pair.below], dtype=torch.float64)
    top = run(theta, zeros, pair.lower, pair.tower.last).detach().numpy().ravel()
    expected = pair.constants(pair.kappa_lower, pair.kappa_upper)
    for m in pair.relayed:
        close(top[pair.tower.columns(pair.relay_of(m))], expected, 1e-14)
    reads = min(0.0, data.x.min()) if pair.below <= theta.net.leading_poolings else 0.0
    assert pair.kappa_lower == 1 - reads


@in_turn(over_cases, pytest.mark.parametrize("spread", [True, False]))
def test_the_dense_layer_reads_an_affine_function_of_the_maps_below(name, spread):
    """In whatever tracks they go up, with values of both signs; without copies, of their means."""
    _, pair, _, _ = random_problem(name, variant="repaired" if spread else "literal")
    tower, net, rng = pair.tower, pair.tower.net, np.random.default_rng(0)
    maps = rng.uniform(NEGATIVE, 1, (7, *net.shapes[pair.below]))
    count = min(maps.shape[1], tower.room)
    sources = rng.permutation(maps.shape[1])[:count].tolist()
    tracks = dict(zip(sources, rng.permutation(tower.room)[:count].tolist(), strict=True))
    d_y = net.shapes[pair.dense][0] - 1 or 1
    weights, offset = rng.normal(size=(d_y, count, len(tower.matrix))), rng.normal(size=d_y)
    theta = net.zeros()
    tower.read(theta, weights, offset, tower.biases(maps.min()), -1.0, tracks)
    o = run(theta, torch.as_tensor(maps), pair.lower, tower.last).detach().numpy()
    W, b = theta.W[pair.dense].weights, theta.b[pair.dense]
    values = maps[:, sources].reshape(7, count, -1)
    values = values if spread else values @ tower.matrix.T
    expected = np.einsum("kcp,ncp->nk", weights, values) + offset
    close(o.reshape(7, -1) @ W[:d_y].T + b[:d_y], expected, 1e-11)
    assert not W[d_y:].any() and not b[d_y:].any()
    for layer in tower.taps:  # every other map is dead
        used = np.zeros(net.shapes[layer][0], bool)
        for track in tracks.values():
            used[tower.maps(layer, track)] = True
        assert (theta.b[layer][~used] == -1).all() and not theta.W[layer].weights[~used].any()


@over_cases
def test_relays_with_the_biases_of_a_tower_are_strictly_active_and_just_so(name):
    _, pair, _, _ = random_problem(name)
    tower, net, rng = pair.tower, pair.tower.net, np.random.default_rng(0)
    maps = rng.uniform(NEGATIVE, 1, (7, *net.shapes[pair.below]))
    maps[0, 0].flat[0] = NEGATIVE
    theta = net.zeros()
    tower.read(theta, np.zeros((1, 1, len(tower.matrix))), np.zeros(1), tower.biases(NEGATIVE))
    for layer in tower.taps:
        o = run(theta, torch.as_tensor(maps), pair.lower, layer).detach().numpy()
        least = o[:, tower.maps(layer, 0)].min()
        assert least == 1 if layer == pair.lower else least >= 1


@pytest.mark.parametrize("spread", [True, False])
@pytest.mark.parametrize("offset", [0, 1, 3])
def test_a_tower_holds_its_tracks_from_an_offset_on(spread, offset):
    net = Network((2, 4, 4), [Conv(5), Conv(20, 5), P(2), Conv(80), P(2), Dense(2)])
    tower, rng = Tower(net, 1, 5, spread, offset), np.random.default_rng(0)
    theta = net.zeros()
    biases = {layer: float(rng.normal()) for layer in tower.taps}
    for layer in tower.taps:
        for c in range(2):
            tower.relay(theta, layer, c, c, biases[layer])
    assert tower.copies == (
        {0: 1, 1: 1, 2: 4, 3: 4, 4: 16, 5: 16} if spread else dict.fromkeys(range(6), 1)
    )
    assert tower.room == 5 - offset
    used = {layer: set() for layer in tower.taps}
    for c in range(2):
        product, constants = np.eye(16), np.zeros(16)
        for layer, matrix in track_matrices(theta, tower, c, c):
            product, constants = matrix @ product, matrix @ constants
            if layer in biases:
                maps = tower.maps(layer, c)
                constants = constants + np.repeat(theta.b[layer][maps], net.positions(layer))
                assert not used[layer] & set(range(maps.start, maps.stop))
                used[layer] |= set(range(maps.start, maps.stop))
        close(tower.matrix, product, 1e-14)
        close(tower.constants(biases), constants, 1e-14)
    for layer, maps in used.items():
        assert min(maps) == offset
        assert (theta.b[layer] != 0).sum() == len(maps) == 2 * tower.copies[layer]


@pytest.mark.parametrize(
    ("shape", "size", "kernel", "start"),
    [
        ((8, 8), 2, 3, 0),
        ((8, 8), 2, 5, 0),
        ((9,), 3, 3, -1),
        ((9,), 3, 5, 0),
        ((12,), 4, 5, -1),
        ((4, 8), 4, 7, 0),
        ((12,), 6, 7, -2),
    ],
)
def test_pooled_shifted_copies_are_all_the_box_sums(shape, size, kernel, start):
    net = Network((1, *shape), [Conv(size ** len(shape), kernel), P(size), Dense(1)])
    tower = Tower(net, 1, 2)
    image = np.random.default_rng(0).normal(size=shape)
    padded = np.pad(image, size)
    expected = []
    for shift in np.ndindex((size,) * len(shape)):
        for window in np.ndindex(*(n // size for n in shape)):
            first = [size + size * i + s + start for i, s in zip(window, shift, strict=True)]
            expected.append(padded[tuple(slice(f, f + size) for f in first)].mean())
    close(tower.matrix @ image.ravel(), expected, 1e-14)


def test_the_box_sums_of_8x8_have_rank_64_and_condition_113():
    net = Network((1, 8, 8), [Conv(4), P(2), Dense(1)])
    matrix = Tower(net, 1, 2).matrix
    assert np.linalg.matrix_rank(matrix) == 64
    assert 113 < np.linalg.cond(matrix) < 114
    centred = Tower(net, 1, 2, spread=False).matrix
    assert centred.shape == (16, 64)


@pytest.mark.parametrize("size", range(2, 9))
def test_box_sums_determine_the_map_for_every_filter_that_holds_them(size):
    for kernel in range(size + 1 - size % 2, 2 * size + 2, 2):
        for windows in (1, 2, 3, 5):
            n = size * windows
            net = Network((1, n), [Conv(size, kernel), P(size), Dense(1)])
            assert np.linalg.matrix_rank(Tower(net, 1, 2).matrix) == n
