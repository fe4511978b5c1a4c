"""Smoothness along training: gradients against torch by hand, and verdicts on made-up rows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from depthgauge import models, replicas
from depthgauge.studies.stabilizers import smoothness
from depthgauge.study import Case, Context, Rows
from depthgauge.verdict import Status


def test_gradient_norms_are_those_of_each_network_alone() -> None:
    stack = replicas.stack(models.build("mlp", input_shape=(6,), classes=3, depth=2, width=5), [1, 2])
    x, y = torch.randn(9, 6), torch.randint(3, (9,))
    found = smoothness.gradient_norms(stack, x, y)
    for replica in range(2):
        alone = stack.module(replica)
        loss = torch.nn.functional.cross_entropy(alone(x), y)
        slopes = torch.autograd.grad(loss, list(alone.parameters()))
        assert float(found[replica]) == pytest.approx(float(torch.nn.utils.get_total_norm(slopes)), rel=1e-5)


def test_each_step_has_a_gradient_and_a_sharpness() -> None:
    parameters = {"part": "smoothness", "network": "mlp", "lr": 0.03, "steps": 3, "examples": 10}
    rows = list(smoothness.run([Case.of({**parameters, "seed": seed}) for seed in (0, 1)], Context()))
    assert {(row.metric, row.step) for row in rows} >= {("gradient", 0), ("sharpness", 0), ("gradient", 3)}


def made_up(power: float) -> Iterator[Rows]:
    for network, rates in smoothness.RATES.items():
        for lr in rates:
            for seed in range(8):
                case = Case.of({
                    "part": "smoothness", "network": network, "lr": lr, "steps": 9, "examples": 9, "seed": seed
                })  # fmt: skip
                for step in range(6):
                    gradient = 2.0 - 0.3 * step
                    yield case.rows("gradient", gradient, step=step)
                    yield case.rows("sharpness", 3 * gradient ** (power + 0.01 * seed), step=step)


@pytest.mark.parametrize(("power", "status"), [(1.0, Status.HOLDS), (0.0, Status.FAILS), (-1.0, Status.FAILS)])
def test_the_power_decides(power: float, status: Status, analysed) -> None:  # type: ignore[no-untyped-def]  # a fixture
    assert analysed(smoothness.PART, made_up(power)).statuses["smoothness"] is status


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_training_that_diverged_is_counted_and_leaves_its_condition_undecided(value: float, analysed) -> None:  # type: ignore[no-untyped-def]  # a fixture
    def lost(row: Rows) -> bool:
        return (row.case["network"], row.case["lr"], row.case["seed"]) == ("lstm", 1.0, 3) and row.step > 3

    answers = analysed(smoothness.PART, [replace(row, value=value) if lost(row) else row for row in made_up(1.0)])
    table = answers.tables["smoothness"].set_index(["network", "lr"])
    assert set(table["n"]) == {8}
    assert table.loc[("lstm", 1.0), "answer"] == "inconclusive"
    assert answers.statuses["smoothness"] is Status.INCONCLUSIVE
    (told,) = answers.sentences
    assert "lstm at rate 0.1" in told
    assert "lstm at rate 1)" not in told
    assert len(list(smoothness.draw_paths(answers.tables))) == 1
