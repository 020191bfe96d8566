"""Products in parts are products."""

import numpy as np
import pytest
from matrix_problems import whole

from tinyspur.layers import wide_products


@pytest.mark.parametrize("columns", [1, 255, 256, 1024, 2999, 3000, 4096, 6 * 1024 + 1, 9991])
@pytest.mark.parametrize("shape", [(1, 1), (4, 9), (6, 54), (60, 60), (100, 200)], ids=str)
def test_products_in_parts_are_products(shape, columns):
    rng = np.random.default_rng(0)
    A, B = whole(rng, *shape), whole(rng, shape[1], 2 * columns)[:, ::2]
    wide = whole(rng, shape[0], columns)
    out = np.full((shape[0], columns), np.nan)
    wide_products.product(A, B, out)
    assert np.array_equal(out, A @ B)
    assert np.array_equal(wide_products.outer(wide, B), wide @ B.T)
