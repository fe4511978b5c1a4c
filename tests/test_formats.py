import math

import numpy as np
import pytest
import torch

from depthgauge import formats


@pytest.mark.parametrize("fmt", [fmt for fmt in formats.FORMATS if fmt.name != "tf32"], ids=lambda fmt: fmt.name)
def test_limits_are_those_of_the_dtype(fmt):
    info = torch.finfo(getattr(torch, fmt.dtype))
    assert fmt.max == info.max
    assert fmt.smallest_normal == info.smallest_normal
    assert fmt.smallest_subnormal == info.smallest_normal * info.eps
