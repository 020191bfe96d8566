"""Products in parts are products."""

import numpy as np
import pytest
from matrix_problems import whole

from tinyspur.layers import ConvolutionMatrix, wide_products


@pytest.mark.parametrize("kernels", ["Haswell", "SkylakeX"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("columns", [1, 255, 256, 1024, 2999, 3000, 4096, 6 * 1024 + 1, 9991])
@pytest.mark.parametrize("shape", [(1, 1), (2, 5), (4, 9), (7, 54), (60, 60), (100, 200)], ids=str)
def test_products_in_parts_are_products(shape, columns, dtype, kernels, monkeypatch):
    monkeypatch.setattr(wide_products, "blas", lambda: {"architecture": kernels})
    rng = np.random.default_rng(0)
    A, wide = whole(rng, *shape).astype(dtype), whole(rng, shape[0], columns).astype(dtype)
    B = whole(rng, shape[1], 2 * columns).astype(dtype)[:, ::2]
    out, total = np.full((shape[0], columns), np.nan, dtype), whole(rng, *shape).astype(dtype)
    wide_products.product(A, B, out)
    assert np.array_equal(out, A @ B)
    known = total + wide @ B.T
    wide_products.add_outer(wide, B, total)
    assert np.array_equal(total, known)


@pytest.mark.parametrize("kernels", ["Haswell", "SkylakeX"])
@pytest.mark.parametrize("rows", [1, 3, 6, 9])
def test_products_over_stacks_are_summed(rows, kernels, monkeypatch):
    monkeypatch.setattr(wide_products, "blas", lambda: {"architecture": kernels})
    rng = np.random.default_rng(0)
    A, wide = whole(rng, rows, 54), whole(rng, 5, rows, 3072)
    lines = whole(rng, 54 + 4 * 6, 3072)  # of which each of the stack has 54, six after the last's
    B = np.stack([lines[6 * n : 6 * n + 54] for n in range(5)])
    step, size = lines.strides
    overlapping = np.lib.stride_tricks.as_strided(lines, B.shape, (6 * step, step, size))
    out, total = np.full((5, rows, 3072), np.nan), np.zeros((rows, 54))
    wide_products.product(A, overlapping, out)
    wide_products.add_outer(wide, overlapping, total)
    assert np.array_equal(out, np.einsum("mk,skn->smn", A, B))
    assert np.array_equal(total, np.einsum("smn,skn->mk", wide, B))


@pytest.mark.parametrize("kernels", ["Haswell", "Zen", "SkylakeX"])
def test_rows_of_zeros_are_added_where_they_cost_nothing(kernels, monkeypatch):
    monkeypatch.setattr(wide_products, "blas", lambda: {"architecture": kernels})
    more = {3: 4, 6: 8, 7: 8, 11: 12, 14: 16, 15: 16, 19: 20, 22: 24, 23: 24}
    few = {rows: n for rows, n in more.items() if rows % 4 == 3}  # in float32
    for dtype, known in ((np.float64, more), (np.float32, few)):
        for rows in range(1, 25):
            A = whole(np.random.default_rng(rows), rows, 9).astype(dtype)
            found = wide_products.padded(A, A[0])
            assert len(found) == (rows if kernels == "SkylakeX" else known.get(rows, rows))
            assert np.array_equal(found[:rows], A) and not found[rows:].any()
            assert found.dtype == dtype


@pytest.mark.parametrize("maps", [3, 6, 7])
@pytest.mark.parametrize("kernels", ["Haswell", "SkylakeX"])
def test_added_rows_are_no_maps(maps, kernels, monkeypatch):
    monkeypatch.setattr(wide_products, "blas", lambda: {"architecture": kernels})
    rng = np.random.default_rng(maps)
    W = ConvolutionMatrix(whole(rng, maps, 2, 3, 3), (5, 4))
    o, delta = whole(rng, 40, 6), whole(rng, 20 * maps, 6)
    for found in (W @ o, W.brief_product(o, "these")):
        assert found.shape == delta.shape and found.flags.c_contiguous
        assert np.array_equal(found, W.tocsr() @ o)
    change, back = W.pullback(delta, o)
    assert np.array_equal(back, W.tocsr().T @ delta) and np.array_equal(
        change, W.gradient(delta, o)
    )
