"""Inspect prints every layer of a point, and entries of one matrix as NumPy prints them."""

import re
import tracemalloc

import numpy as np
import pytest
from command_line import is_refused_in_one_line, over_bad_input

import tinyspur as ts


def test_inspect_prints_every_layer(run):
    done, theta = run("inspect", "mixed.npz"), ts.load_point("mixed.npz")
    assert done.status == 0
    assert done.lines[0] == f"{theta.net}, {theta.net.activation}, float64"
    start = next(n for n, line in enumerate(done.lines) if line.startswith("layer"))
    rows = [re.split("  +", line) for line in done.lines[start : start + 6]]
    head = ["layer", "kind", "output", "matrix", "filters", "nonzeros", "weights", "biases"]
    assert rows[0] == head
    kinds = ["conv", "max_pool", "conv", "average_pool", "dense"]
    outputs = ["2x4x4", "2x2x2", "3x2x2", "3x1x1", "5"]
    filters = ["2x1x3x3", "-", "3x2x1x1", "-", "-"]
    arrays = dict(np.load("mixed.npz"))
    for layer, row in enumerate(rows[1:], start=1):
        W = theta.W[layer]
        if layer == 2:
            W = W.at(np.zeros(W.shape[1]))
        matrix = W.toarray()
        expected = {
            "layer": str(layer),
            "kind": kinds[layer - 1],
            "output": outputs[layer - 1],
            "matrix": f"{matrix.shape[0]} x {matrix.shape[1]}",
            "filters": filters[layer - 1],
            "nonzeros": str(np.count_nonzero(matrix)),
            "weights": "-",
            "biases": "-",
        }
        for name, key in (("weights", f"W{layer}"), ("biases", f"b{layer}")):
            if key in arrays:
                expected[name] = f"{arrays[key].min():.4g} .. {arrays[key].max():.4g}"
        assert dict(zip(head, row, strict=True)) == expected
        assert f"theta.W[{layer}]  {theta.W[layer]!r}" in done.lines
    assert rows[1][-1] == "-0.5 .. 1.25"
    total = sum(array.size for key, array in arrays.items() if key != "spec")
    assert done.lines[-1] == f"{total} parameters"


def printed(matrix):
    """Return what NumPy prints of a whole matrix on lines as long as they need."""
    with np.printoptions(threshold=10**9, linewidth=10**9):
        return str(matrix)


@pytest.mark.parametrize("layer", [1, 3, 4, 5])
@pytest.mark.parametrize("size", [None, 1, 7, 40])
def test_a_corner_is_that_of_the_dense_picture(run, layer, size):
    options = [] if size is None else ["--size", size]
    done = run("inspect", "mixed.npz", "--layer", layer, *options)
    W, n = ts.load_point("mixed.npz").W[layer], size or 10
    rows, columns = (min(n, length) for length in W.shape)
    head = f"theta.W[{layer}]  {W}\nrows 0..{rows - 1}, columns 0..{columns - 1}\n"
    assert done.text == head + printed(W.toarray()[:n, :n]) + "\n"


@pytest.mark.parametrize(
    ("layer", "t", "c", "where"),
    [(3, 2, 1, "8..10, columns 4..6"), (4, 2, 2, "2..2, columns 8..10")],
)
def test_a_block_is_that_of_the_matrix(run, layer, t, c, where):
    done = run("inspect", "mixed.npz", "--layer", layer, "--block", t, c, "--size", 3)
    W = ts.load_point("mixed.npz").W[layer]
    assert done.text == (
        f"theta.W[{layer}]  {W}\nrows {where} of the block from channel {c} to map {t}\n"
        f"{printed(W.block(t, c)[:3, :3])}\n"
    )
    assert W.block(t, c).any()


def test_layers_of_residual_blocks_have_lines_and_blocks_of_their_own(run, tmp_path):
    block = ts.Residual([ts.Conv(2), ts.Conv(2)], [ts.Conv(2, 1)])
    theta = ts.kaiming_start(ts.Network((1, 3, 3), [ts.Conv(2), block, ts.Dense(2)]))
    ts.save_point(tmp_path / "block.npz", theta)
    lines = run("inspect", tmp_path / "block.npz").lines
    kinds = [line.split()[1] for line in lines if line[:1].isdigit()][:6]
    assert kinds == ["conv", "conv", "conv", "conv", "sum", "dense"]
    done = run("inspect", tmp_path / "block.npz", "--layer", 4, "--block", 1, 0, "--size", 3)
    W = theta.W[4]
    assert W.read.start == 18 and "rows 9..11, columns 18..20 of the block" in done.text
    assert done.text.endswith(f"{printed(W.block(1, 0)[:3, :3])}\n")


def test_a_large_corner_is_printed_in_full(run):
    done = run("inspect", "bundled.npz", "--layer", 1, "--size", 200)
    entries = ts.load_point("bundled.npz").W[1].toarray()[:, :200]
    assert done.text.endswith(f"\n{printed(entries)}\n")


def test_no_array_of_the_size_of_a_matrix_is_built(run, tmp_path):
    large = ts.Network((3, 160, 160), [ts.Conv(16), ts.Conv(16), ts.Dense(2)])
    ts.save_point(tmp_path / "large.npz", ts.kaiming_start(large, 0))
    tracemalloc.start()
    try:
        for options in ([], ["--layer", 2], ["--layer", 2, "--block", 15, 15]):
            assert run("inspect", tmp_path / "large.npz", *options).status == 0
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 100e6  # a block has 5.2e9 bytes, the nonzeros of W[2] 9.4e8


BAD = [
    (["inspect", "mixed.npz", "--layer", "0"], r"--layer: expected 1\.\.5, got 0"),
    (["inspect", "mixed.npz", "--layer", "6"], r"--layer: expected 1\.\.5, got 6"),
    (["inspect", "mixed.npz", "--layer", "2"], "MaxPoolingMatrix.* only for a given input"),
    (["inspect", "mixed.npz", "--layer", "3", "--size", "0"], r"--size: expected 1\.\.1000"),
    (["inspect", "mixed.npz", "--layer", "3", "--size", "1001"], r"--size: expected 1\.\.1000"),
    (["inspect", "mixed.npz", "--layer", "3", "--block", "3", "0"], r"map in 0\.\.2, got 3"),
    (["inspect", "mixed.npz", "--layer", "3", "--block", "0", "-1"], r"channel in 0\.\.1, got -1"),
    (["inspect", "mixed.npz", "--block", "0", "0"], "--block: expected --layer too"),
    (["inspect", "mixed.npz", "--size", "3"], "--size: expected --layer too"),
]


@over_bad_input(BAD)
def test_bad_input_is_one_line(run, options, message):
    is_refused_in_one_line(run(*options), message)
