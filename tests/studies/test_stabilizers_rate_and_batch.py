"""Batch normalization by batch size: a run against torch by hand, best rates, and verdicts on made-up rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional

from depthgauge import data, models, replicas, training
from depthgauge.initialization import scheme
from depthgauge.studies.stabilizers import normed, rate_and_batch
from depthgauge.study import Case, Context, Rows
from depthgauge.verdict import Status


def case(**more: Any) -> Case:
    at: dict[str, Any] = {"part": "rate_and_batch", "variant": "skips_and_batch_norm", "lr": 0.5, "batch": 16}
    return Case.of({**at, "width": 8, "depth": 3, "steps": 6, "seed": 1, **more})


def test_a_run_is_that_of_torch() -> None:
    one = case()
    measured = {row.metric: row.value for row in rate_and_batch.PART.run([one], Context())}
    digits = data.load("digits")
    fit, _ = data.hold_out(digits.train, training.HELD_OUT)
    variant = normed.VARIANTS["skips_and_batch_norm"]
    template = models.build(
        "mlp", input_shape=(1, 8, 8), classes=10, norm=variant.norm, residual=True, order="pre", depth=3, width=8
    )
    seed = one.random_seed("seed", "width", "depth")
    model = replicas.stack(template, [seed], scheme("he")).module(0)
    sgd = torch.optim.SGD(model.parameters(), lr=0.5)
    for indices in replicas.order(seed, len(fit.x), 16, 6):
        sgd.zero_grad()
        functional.cross_entropy(model(fit.x[indices]), fit.y[indices]).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        sgd.step()
    right = replicas.evaluate(replicas.stack(model, [0], lambda *_: None), digits.test.x, digits.test.y).accuracy
    assert measured["accuracy"] == pytest.approx(right[0], abs=1e-6)
    assert (measured["steps_to_target"], measured["reached"]) == (6, 0)


def test_a_best_rate_is_the_middle_of_those_that_are_near_the_least_steps() -> None:
    runs = pd.DataFrame({
        "variant": "plain", "batch": 8, "seed": 0, "lr": [0.1, 0.2, 0.4, 0.8],
        "steps_to_target": [200.0, 100.0, 120.0, 50.0], "reached": [1, 1, 1, 0],
    })  # fmt: skip
    assert normed.best_rates(runs)["best"].item() == pytest.approx(math.sqrt(0.2 * 0.4))
    assert np.isnan(normed.best_rates(runs.assign(reached=0))["best"].item())


def rows(larger: dict[int, float], slowed: float = 1.0) -> Iterator[Rows]:
    """Steps over the rate are least at 1/8 without, and at `larger` times that with batch normalization."""
    for batch, factor in larger.items():
        for variant in normed.VARIANTS:
            best = 0.125 * (factor if "batch_norm" in variant else 1.0)
            for lr in rate_and_batch.RATES[2:9]:
                for seed in range(-3, 10):
                    off = abs(math.log2(lr / best) + 0.3 * math.sin(2 * seed + len(variant)))
                    steps = 100 * 0.125 / best * 2**off * (slowed if "batch_norm" in variant else 1.0)
                    one = case(variant=variant, batch=batch, lr=lr, seed=seed)
                    yield one.rows("steps_to_target", steps)
                    yield one.rows("reached", 1.0)
                    yield one.rows("accuracy", 0.9)


def test_a_gain_at_large_batches_alone(analysed: Callable[..., Any]) -> None:
    answers = analysed(rate_and_batch.PART, rows({8: 1.0, 256: 4.0}))
    assert answers.statuses["N24"] is Status.DEPENDS
    assert answers.statuses["large_batches"] is answers.statuses["rate_gain"] is Status.HOLDS
    assert "saves more at batch 256 than at batch 8" in answers.sentences[0]
    shares = answers.tables["rate_and_batch"].query("what == @normed.GAIN and pair == 'without skips'")["value"]
    assert f"it takes {shares.iloc[1]:.2g} at batch 256 and {shares.iloc[0]:.2g} at batch 8." in answers.sentences[0]


def test_a_gain_at_every_batch_is_none_at_large_ones_alone(analysed: Callable[..., Any]) -> None:
    answers = analysed(rate_and_batch.PART, rows({8: 4.0, 256: 4.0}))
    assert answers.statuses["N24"] is Status.HOLDS
    assert answers.statuses["large_batches"] is answers.statuses["rate_gain"] is Status.FAILS


def test_a_larger_rate_that_saves_nothing_against_the_other_network_is_no_gain(analysed: Callable[..., Any]) -> None:
    assert analysed(rate_and_batch.PART, rows({8: 4.0, 256: 4.0}, slowed=10.0)).statuses["N24"] is Status.FAILS
