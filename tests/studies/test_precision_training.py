"""Recipes against what they promise, first overflows where they were put, and choices of made-up costs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from depthgauge import timing
from depthgauge.studies.precision import answer, runs, training
from depthgauge.studies.precision.nets import NETS
from depthgauge.studies.precision.recipes import RECIPES, Trainer
from depthgauge.study import Case, Context, Rows
from depthgauge.verdict import Status

HERE = Context()


def weight(value: float) -> nn.Linear:
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, value)
    return layer


def moved(recipe: str, steps: int, lr: float, seed: int = 0) -> float:
    """A weight of 1 after steps of -lr, without momentum."""
    trainer = Trainer(weight(1.0), RECIPES[recipe], "sgd", lr, seed)
    trainer.optimizer.param_groups[0]["momentum"] = 0.0
    for _ in range(steps):
        trainer.backward(lambda model: model(torch.ones(1, 1, dtype=trainer.recipe.weights)).sum())
        trainer.update()
    return float(trainer.weights[0].detach())


def test_small_updates_are_lost_in_16_bits_and_arrive_with_each_remedy() -> None:
    lr, steps = 2.0**-10, 128  # a quarter of bfloat16's spacing below 1, an eighth in all
    assert moved("bfloat16", steps, lr) == 1.0
    assert moved("float32", steps, lr) == moved("bfloat16_master", steps, lr) == 0.875
    assert moved("bfloat16_kahan", steps, lr) == pytest.approx(0.875, abs=2**-8)
    drawn = [moved("bfloat16_stochastic", steps, lr, seed) for seed in range(4)]
    assert np.mean(drawn) == pytest.approx(0.875, abs=4 * 2**-8 * math.sqrt(steps * 3 / 16 / 4))
    assert len(set(drawn)) > 1
    assert moved("bfloat16_stochastic", steps, lr, 3) == drawn[3]


def test_a_step_in_float32_is_torchs_own() -> None:
    x, twin = torch.randn(4, 1, generator=torch.Generator().manual_seed(0)), weight(0.5)
    trainer = Trainer(weight(0.5), RECIPES["float32"], "adam", 0.1)
    optimizer = torch.optim.Adam(twin.parameters(), 0.1)
    for _ in range(3):
        trainer.backward(lambda model: model(x).square().mean())
        trainer.update()
        optimizer.zero_grad()
        twin(x).square().mean().backward()
        optimizer.step()
    assert torch.equal(trainer.weights[0], twin.weight)


@pytest.mark.parametrize(
    ("recipe", "size"),
    # weights, gradients, momentum of 3 x 5; the layer's input, its scores, the target's class; what recipes add
    [("float32", 3 * 60 + 24 + 40), ("bfloat16", 3 * 30 + 12 + 20), ("bfloat16_kahan", 4 * 30 + 12 + 20),
     ("bfloat16_master", 2 * 30 + 2 * 60 + 12 + 20)],
)  # fmt: skip
def test_bytes_that_a_step_holds(recipe: str, size: int) -> None:
    trainer = Trainer(nn.Linear(3, 5, bias=False), RECIPES[recipe], "sgd", 0.1)
    x = torch.randn(2, 3).to(trainer.recipe.weights)

    def loss(model: nn.Module) -> torch.Tensor:
        return model(x).square().sum()

    trainer.backward(loss)
    trainer.update()
    assert trainer.bytes_held(loss) == size


def test_a_scaler_leaves_out_a_step_that_overflows() -> None:
    trainer = Trainer(weight(1.0), RECIPES["float16_scaled"], "sgd", 0.1)
    trainer.backward(lambda model: model(torch.full((1, 1), 4.0)).sum())  # 4 x 65536 is beyond float16
    assert trainer.overflowed
    trainer.update()
    assert float(trainer.weights[0].detach()) == 1.0
    assert trainer.scaler.get_scale() == 2.0**15


def train(net: str, recipe: str, steps: int, **more: Any) -> list[Rows]:
    case = Case.of({**NETS[net], "net": net, "recipe": recipe, "seed": 0, "steps": steps, "target": 0.6, **more})
    return list(runs.train(case, HERE))


def measured(rows: list[Rows], metric: str) -> Rows:
    (row,) = (row for row in rows if row.metric == metric)
    return row


def test_a_power_of_two_changes_nothing_in_float32_and_overflows_float16() -> None:
    plain, shifted = (train("high activations", "float32", 4, log2_shift=shift) for shift in (0, 14))
    assert measured(plain, "train_loss").value == measured(shifted, "train_loss").value > 0
    assert measured(plain, "test_accuracy").value == measured(shifted, "test_accuracy").value
    first = measured(train("high activations", "float16", 2, log2_shift=17), "nonfinite")
    assert (first.layer, first.direction, first.step) == ("hidden.1", "activation", 0)


def test_adam_in_float16_divides_by_zero_in_its_first_step() -> None:
    rows = train("Adam", "float16", 3)
    first = measured(rows, "nonfinite")
    assert (first.direction, first.step) == ("weight", 1)
    assert measured(rows, "diverged").value == 1.0


def test_an_exploding_gradient_overflows_before_a_bounded_activation() -> None:
    assert measured(train("exploding tanh", "float16", 1), "nonfinite").direction == "activation_gradient"
    assert measured(train("exploding ReLU", "float16", 1), "nonfinite").direction == "activation"


def made_up(accuracies: dict[str, float], net: str = "Adam") -> list[Rows]:
    """Runs of recipes at a mean accuracy, eight seeds each, and float32's at 0.9."""
    rows = []
    for recipe, mean in {"float32": 0.9, **accuracies}.items():
        for seed in range(8):
            case = Case.of({"net": net, "recipe": recipe, "seed": seed, "steps": 10})
            ends = (mean + 0.01 * (seed % 4) + 0.001 * (seed % 3) * len(recipe), 0.1, 5.0, 1.0, 0.0, 0.0, 1.0)
            rows += [case.rows(metric, end) for metric, end in zip(runs.METRICS, ends, strict=True)]
    return rows


def test_accuracy_is_told_better_worse_and_the_same(analysed: Callable[..., Any]) -> None:
    rows = made_up({"bfloat16_autocast": 0.9, "float16_scaled": 0.5, "bfloat16": 0.9, "float16": 0.9})
    answers = analysed(training.PART, rows)
    assert answers.statuses["autocast"] is Status.DEPENDS
    assert answers.statuses["pure"] is Status.HOLDS
    assert set(answers.tables["accuracy"]["recipe"]) == {"bfloat16_autocast", "float16_scaled", "bfloat16", "float16"}


def arrivals(of: dict[str, tuple[float, int]]) -> list[Rows]:
    """Steps to the target of recipes, and how many of eight runs arrive; float32 takes about 5 of 10."""
    rows = []
    for row in made_up(dict.fromkeys(of, 0.9)):
        steps, arrive = of.get(row.case.text("recipe"), (5.0, 8))
        late = row.case.integer("seed") >= arrive
        ends = {
            "steps_to_target": 10.0 if late else steps + 0.01 * row.case.integer("seed"),
            "reached": float(not late),
        }
        rows.append(row.case.rows(row.metric, ends.get(row.metric, row.value)))
    return rows


@pytest.mark.parametrize(
    ("of", "status"),
    [
        ({"bfloat16_autocast": (5.0, 8), "float16_scaled": (5.0, 8)}, Status.HOLDS),
        ({"bfloat16_autocast": (5.0, 8), "float16_scaled": (5.0, 0)}, Status.DEPENDS),  # 10 steps are not enough
        ({"bfloat16_autocast": (5.0, 8), "float16_scaled": (5.0, 7)}, Status.INCONCLUSIVE),
        ({"float16_scaled": (5.0, 0)}, Status.FAILS),
        ({"bfloat16_autocast": (5.0, 8), "float32": (5.0, 7)}, Status.INCONCLUSIVE),
    ],
)
def test_a_run_that_does_not_arrive_takes_more_steps_than_it_had(
    analysed: Callable[..., Any], of: dict[str, tuple[float, int]], status: Status
) -> None:
    found = analysed(training.PART, arrivals(of))
    assert found.statuses["pace"] is status
    late = {recipe for recipe, (_, arrive) in of.items() if arrive < 8}
    if "float32" not in late:
        table = found.tables["pace"].set_index("recipe")
        assert table["arrived"].to_dict() == {recipe: arrive for recipe, (_, arrive) in of.items()}
        assert not set(table.loc[list(late), "answer"]) & {"equivalent", "different, inside the margin"}
    if "float32" in late:
        assert found.verdicts["pace"].why.endswith(
            "does not always arrive at the target beside bfloat16_autocast with Adam"
        )
    if status is Status.FAILS:
        assert found.verdicts["pace"].unit.endswith("at the least")


def test_a_scaler_helps_against_gradients_and_not_against_activations(analysed: Callable[..., Any]) -> None:
    rows = []
    for net, direction, kept in (
        ("low activations", "activation_gradient", 1.0),
        ("high activations", "activation", 0.0),
    ):
        for row in made_up({"float16_autocast": 0.1, "float16_scaled": 0.9}, net):
            diverged = row.case.text("recipe") == "float16_autocast" or not kept
            value = float(diverged) if row.metric == "diverged" and row.case.text("recipe") != "float32" else row.value
            rows.append(row.case.rows(row.metric, value))
            if row.metric == "diverged" and row.case.text("recipe") == "float16_autocast":
                rows.append(row.case.rows("nonfinite", 1.0, layer="hidden.1", direction=direction, step=3))
    sentences = analysed(training.PART, rows).sentences
    assert any(
        "helps where a gradient" in s and "8 of 8 runs stay finite with it, 0 of 8 without" in s for s in sentences
    )
    assert any("does not help where an activation" in s for s in sentences)


def test_a_scaler_that_skips_every_step_trains_nothing(analysed: Callable[..., Any]) -> None:
    rows = []
    for row in made_up({"float16_autocast": 0.1, "float16_scaled": 0.1}, "exploding tanh"):
        recipe, lost = row.case.text("recipe"), {"diverged": 1.0, "skipped": 0.0}
        ends = {"float16_autocast": lost, "float16_scaled": {"diverged": 0.0, "skipped": 10.0}}.get(recipe, {})
        rows.append(row.case.rows(row.metric, ends.get(row.metric, row.value)))
        if row.metric == "diverged" and recipe == "float16_autocast":
            rows.append(row.case.rows("nonfinite", 1.0, layer="hidden.1", direction="activation_gradient", step=3))
    (told,) = (each for each in analysed(training.PART, rows).sentences if each.startswith("A GradScaler"))
    assert told.startswith("A GradScaler trains nothing where a gradient overflows at every step")
    assert told.endswith(
        "8 of 8 runs stay finite with it, 0 of 8 without, but it skips 10 of 10 steps (16 x 32 tanh, sigma_w 16)."
    )


def test_what_a_device_cannot_do_is_told(analysed: Callable[..., Any]) -> None:
    case = Case.of({**NETS["Adam"], "net": "Adam", "recipe": "tf32", "seed": 0, "steps": 1, "target": 0.6})
    rows = list(training.run([case], HERE))
    assert [row.metric for row in rows] == ["absent"]
    assert analysed(training.PART, rows).sentences == [
        "Without a measurement, as this device lacks the arithmetic: tf32."
    ]


COSTS = pd.DataFrame(
    [("float16", 0.2, "no", 0.5), ("bfloat16_autocast", 0.52, "yes", 0.9), ("bfloat16", 0.5, "yes", 0.95)],
    columns=["recipe", "time", "as_good", "memory"],
).assign(accuracy=0.0, faster="yes")
NOTHING = pd.DataFrame(columns=["run", "layer", "direction", "first_step"])
NO_ROWS = pd.DataFrame({"net": ["Adam"], "recipe": ["float32"], "case": ["a"]})


def test_the_choice_is_accurate_then_fast_then_small() -> None:
    choice = answer.recommended("Adam", COSTS, (2.0, 9.0), NOTHING, NO_ROWS)
    assert choice["recipe"] == "bfloat16_autocast"  # within 5 % of the fastest accurate one, and smaller
    assert choice["smallest"] == "bfloat16_autocast"
    assert (choice["log2_scale_least"], choice["log2_scale_greatest"]) == (2.0, 9.0)
    slow = answer.recommended("Adam", COSTS.assign(faster="undecided"), (math.nan, math.nan), NOTHING, NO_ROWS)
    assert slow["recipe"] == "float32"
    assert math.isnan(slow["log2_scale_least"])


def test_a_format_of_nineteen_bits_is_not_told_as_one_of_sixteen(analysed: Callable[..., Any]) -> None:
    rows = made_up({"tf32": 0.9})
    for recipe, seconds in (("float32", 2.0), ("tf32", 1.0)):
        case = Case.of({"net": "Adam", "recipe": recipe, "blocks": 8})
        turns = np.array([[[seconds] * 2, [2.0] * 2]] * 8) * (1 + 0.001 * np.arange(32).reshape(8, 2, 2))
        rows += timing.rows_of(case, turns, "step")
        rows.append(case.rows("bytes", 100.0))
    (told,) = (each for each in analysed(training.PART, rows).sentences if "tf32" in each)
    assert told.startswith("In 1 of 1 small networks a recipe in a narrower format is shown")
