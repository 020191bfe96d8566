"""Products in parts are products."""

import numpy as np
import pytest
from matrix_problems import whole

from tinyspur.layers import wide_products


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
