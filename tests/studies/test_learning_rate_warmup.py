"""Warm-up: rates that are multiples of a network's own threshold, and verdicts on made-up rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.nn import functional

from depthgauge import curvature, data, models, replicas
from depthgauge.initialization import gaussian
from depthgauge.studies.learning_rate import warmup
from depthgauge.study import Case, Context, Rows
from depthgauge.verdict import Status


def case(**more: Any) -> Case:
    at: dict[str, Any] = {
        "part": "warmup",
        "network": "softmax",
        "momentum": 0.9,
        "ratio": 0.5,
        "warmup": 2,
        "steps": 4,
        "examples": 30,
    }
    return Case.of({**at, "seed": 1, **more})


def test_a_run_is_that_of_torch_at_half_the_threshold_with_a_rate_that_grows() -> None:
    rows = {row.metric: row.value for row in warmup.PART.run([case()], Context())}
    digits = data.load("digits")
    x, y = digits.train.x[:30], digits.train.y[:30]
    template = models.build("mlp", depth=0, input_shape=digits.input_shape, classes=10)
    stack = replicas.stack(template, [case().random_seed("network", "steps", "seed")], gaussian(2**0.5))
    model = stack.module(0)
    sharpness = curvature.sharpness(model, lambda m, x, y: functional.cross_entropy(m(x), y), x, y).value
    assert rows["sharpness"] == pytest.approx(sharpness, rel=0.02)
    sgd = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
    for step in range(4):
        sgd.param_groups[0]["lr"] = 0.5 * 2 * 1.9 / float(rows["sharpness"]) * min(1.0, (step + 1) / 3)  # type: ignore[arg-type]
        sgd.zero_grad()
        functional.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        sgd.step()
    assert rows["loss"] == pytest.approx(functional.cross_entropy(model(x), y).item(), rel=1e-4)


def rows(begins: float) -> Iterator[Rows]:
    """Warm-up saves half a nat at rates above `begins` times the threshold."""
    for net in ("wide", "deep", "tanh"):
        for ratio in warmup.RATIOS:
            for seed in range(12):
                for steps in (0, 40):
                    one = case(network=net, ratio=ratio, seed=seed, warmup=steps)
                    saved = 0.5 * (steps > 0 and ratio > begins) + 0.001 * math.sin(seed)
                    yield one.rows("loss", 1.0 - saved)
                    yield one.rows("loss_at_start", 2.3)
                    yield one.rows("sharpness", 10.0 + seed)


@pytest.mark.parametrize(
    ("begins", "predicted", "threshold"),
    [
        (1.0, Status.HOLDS, Status.HOLDS), (8.0, Status.INCONCLUSIVE, Status.FAILS),
        (0.1, Status.INCONCLUSIVE, Status.FAILS),
    ],
)  # fmt: skip
def test_verdicts_on_where_it_begins_to_help(
    analysed: Callable[..., Any], begins: float, predicted: Status, threshold: Status
) -> None:
    said = analysed(warmup.PART, rows(begins)).statuses
    assert (said["warmup"], said["warmup_threshold"]) == (predicted, threshold)
