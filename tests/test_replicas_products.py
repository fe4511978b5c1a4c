"""Products of random matrices, against the same products in numpy."""

from __future__ import annotations

import math

import numpy as np
import torch

from depthgauge import replicas
from depthgauge.seeding import Purpose, generator


def test_a_product_is_the_product_of_its_matrices() -> None:
    """From the same draws, all factors multiplied before the vector: |W_k ... W_1 1| / |1|."""
    found = replicas.products(3, [0.5, 0.7], [4, 9], factors=25)
    for i, (sigma, seed) in enumerate(((0.5, 4), (0.7, 9))):
        draws, product, expected = generator(seed, Purpose.WEIGHTS), np.eye(3), []
        for _ in range(25):
            product = torch.randn(3, 3, generator=draws).double().numpy() * sigma @ product
            expected.append(math.log(np.linalg.norm(product @ np.ones(3)) / math.sqrt(3)))
        np.testing.assert_allclose(found.log_norm[i], expected, atol=1e-12)


def test_products_leave_a_format_where_their_growth_puts_them() -> None:
    """Entries grow by about e a factor: float16 ends at e^11.1 and at e^-17.3, float32 holds thirty factors."""
    size = 64
    found = replicas.products(
        size, [math.e / 8, 1 / math.e / 8], [1, 2], factors=30, formats=("float16", "float32")
    )  # the growth of 64 x 64 matrices is sigma times 8, the root of 64, up to 1 / 128
    assert abs(found.overflowed["float16"][0] - 11) <= 2
    assert abs(found.vanished["float16"][1] - 18) <= 3
    assert found.vanished["float16"][0] == found.overflowed["float16"][1] == math.inf
    assert set(found.overflowed["float32"]) == set(found.vanished["float32"]) == {math.inf}


def test_factors_are_counted_from_one() -> None:
    conditions = [[False, True, True], [True, False, False], [False, False, False]]
    assert replicas.first_factor(conditions).tolist() == [2, 1, math.inf]
    assert float(replicas.first_factor([False, True])) == 2
