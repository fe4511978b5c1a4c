"""Names, counts and shares in words."""

import math

import pytest

from depthgauge.checking.words import listed, percent, plural


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.0, "0 %"), (0.012, "1.2 %"), (0.997, "100 %"), (1.4, "140 %"), (15, "1,500 %"), (4e-7, "4e-07 of it"),
     (math.inf, "an infinite share")],
)  # fmt: skip
def test_a_share(share: float, text: str) -> None:
    assert percent(share) == text


def test_counts_and_names() -> None:
    assert [plural(1, "batch"), plural(4, "batch"), plural(12000, "parameter")] == [
        "1 batch", "4 batches", "12,000 parameters"
    ]  # fmt: skip
    assert listed(["a", ""]) == "`a`, the model"
    assert listed("abcde") == "`a`, `b`, `c` and 2 more"
