"""How often a rounded pre-activation is exactly on a kink: torch's own layer, and verdicts on made-up rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from depthgauge import data
from depthgauge.seeding import Purpose, generator
from depthgauge.studies.precision import kinks
from depthgauge.study import Case, Context, Rows
from depthgauge.verdict import Status


def case(fmt: str, seed: int, **more: Any) -> Case:
    return Case.of({"part": "kinks", "format": fmt, "seed": seed, "width": 64, "examples": 100, **more})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_layer_is_torch_s_own_where_torch_has_the_format(dtype: torch.dtype) -> None:
    """Hits agree but for sums in another order, which move a result at most to its neighbour."""
    one = case(str(dtype).removeprefix("torch."), 3, width=256)
    x = data.load("mnist5k").train.x.flatten(1)[:100]
    draws = generator(one.random_seed("seed"), Purpose.WEIGHTS)
    w = torch.randn(256, 784, generator=draws) / 28
    z = torch.nn.functional.linear(x.to(dtype), w.to(dtype)).double()
    rows = {row.metric: row for row in kinks.PART.run([one], Context("cpu"))}
    for point, share in zip(rows["landed"].layer, rows["landed"].value, strict=True):
        assert share * z.numel() == pytest.approx(float((z == float(point)).sum()), abs=2 + 0.2 * share * z.numel())


def rows(landed: Callable[[str], float], expected: float = 0.04) -> Iterator[Rows]:
    for fmt in ("float32", "float8_e5m2"):
        for seed in range(8):
            share = landed(fmt) * (1 + 0.02 * math.sin(seed))
            yield case(fmt, seed).rows("landed", [share], layer=["1"])
            yield case(fmt, seed).rows("expected", [expected], layer=["1"])
            yield case(fmt, seed).rows("outputs", 100_000)


@pytest.mark.parametrize(
    ("landed", "tiny", "predicted"),
    [
        (lambda _: 0.0, Status.HOLDS, Status.FAILS),
        (lambda _: 0.04, Status.FAILS, Status.HOLDS),
        (lambda fmt: 0.04 * (fmt != "float32"), Status.DEPENDS, Status.DEPENDS),
    ],
)
def test_verdicts_on_shares(
    analysed: Callable[..., Any], landed: Callable[[str], float], tiny: Status, predicted: Status
) -> None:
    said = analysed(kinks.PART, rows(landed)).statuses
    assert (said["N14"], said["landing"]) == (tiny, predicted)


def test_of_rare_hits_no_prediction_is_asked(analysed: Callable[..., Any]) -> None:
    assert "landing" not in analysed(kinks.PART, rows(lambda _: 0.0, expected=1e-6)).statuses
