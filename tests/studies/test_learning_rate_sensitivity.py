"""Windows of learning rates and sensitivities of made-up curves, and verdicts on them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest
import torch

from depthgauge import models, theory
from depthgauge.studies.learning_rate import normalization, sensitivity, windows
from depthgauge.study import Case, Rows
from depthgauge.verdict import Status

RATES = [2.0**k for k in range(-12, 4)]
START = 2.4


def curve(learns: Callable[[float], bool], seed: int = 0) -> list[float]:
    return [0.5 + 0.01 * math.sin(seed) if learns(lr) else math.nan for lr in RATES]


def runs(losses: list[float]) -> pd.DataFrame:
    return pd.DataFrame({"seed": 0, "lr": RATES, "loss": losses})


def test_a_window_ends_between_the_last_rate_that_learns_and_the_next() -> None:
    found = windows.windows(runs(curve(lambda lr: 2**-6 <= lr <= 0.5)), ["seed"]).iloc[0]
    assert 0.5 <= found["largest"] <= 1
    assert 2**-7 <= found["smallest"] <= 2**-6
    assert found["decades"] == pytest.approx(math.log10(found["largest"] / found["smallest"]))
    assert not found["censored"]


def test_the_largest_rate_is_looked_for_from_above() -> None:
    """A hole in the window does not end it."""
    found = windows.windows(runs(curve(lambda lr: lr in {2**-8, 0.5})), ["seed"]).iloc[0]
    assert 0.5 <= found["largest"] <= 1
    assert found["smallest"] <= 2**-8


def test_a_window_that_the_grid_cuts_is_censored_and_none_is_no_number() -> None:
    assert windows.windows(runs(curve(lambda lr: lr > 0.1)), ["seed"])["censored"].item()
    none = windows.windows(runs(curve(lambda _: False)), ["seed"]).iloc[0]
    assert math.isnan(none["largest"])
    assert none["decades"] == 0


def test_a_network_that_learns_at_no_rate_counts_in_the_middle_of_all() -> None:
    assert windows.up_to(pd.Series([0.1, math.nan, 0.3])) == "up to a rate of 0.1"
    assert windows.up_to(pd.Series([0.1, math.nan, math.nan])) == "at none of the rates tried"


def test_sensitivity_of_a_step() -> None:
    """A quarter of the rates end at 0.4, the others at the start: the mean lost is 3/4 of what can be gained."""
    table = pd.DataFrame({"seed": 0, "capped": [0.4] * 4 + [START] * 12, "loss_at_start": START})
    found = windows.sensitivities(table, ["seed"]).iloc[0]
    assert found["sensitivity"] == pytest.approx(0.75 * (START - 0.4))
    assert found["share"] == pytest.approx(0.75)


def test_growth_is_depth_times_ln_chi_1() -> None:
    table = pd.DataFrame({"activation": ["tanh", "relu", "relu"], "depth": 8, "sigma_w": [2.0, 1.0, 1.9]})
    found = windows.growths(table)["growth"]
    assert found[0] == pytest.approx(8 * math.log(theory.mean_field("tanh", 2.0, 0.0).chi_1))
    assert found[1] == pytest.approx(8 * math.log(1 / 2))
    assert found[2] == pytest.approx(8 * math.log(1.9**2 / 2))


def test_scores_start_alike_whatever_the_hidden_layers_draw() -> None:
    model = models.build("mlp", depth=2, width=400, input_shape=(400,), classes=400, activation="tanh")
    sensitivity.draw(model, torch.Generator().manual_seed(0), 3.0)
    spreads = [float(p.detach().std()) * 20 for name, p in model.named_parameters() if name.endswith("weight")]
    assert spreads == pytest.approx([3.0, 3.0, 1.0], rel=0.02)


def rows(largest: Callable[[float], float], floor: float = 2**-8) -> Iterator[Rows]:
    """Networks that learn from `floor` to `largest` of depth ln chi_1."""
    for sigma_w in (1.0, 1.6, 2.0, 2.5):
        growth = 8 / theory.depth_scales("tanh", sigma_w, 0.0)[1]
        for seed in range(8):
            at: dict[str, Any] = {
                "part": "sensitivity",
                "activation": "tanh",
                "depth": 8,
                "sigma_w": sigma_w,
                "seed": seed,
            }
            for lr, loss in zip(RATES, curve(lambda lr, g=growth: floor <= lr <= largest(g), seed), strict=True):  # type: ignore[misc]
                case = Case.of({**at, "lr": lr})
                yield case.rows("loss", loss * (1 + 0.02 * math.sin(3 * seed + lr)))
                yield case.rows("loss_at_start", START)


@pytest.mark.parametrize(
    ("largest", "expected"),
    [
        (lambda growth: math.exp(-growth), {"N23": Status.HOLDS, "window": Status.HOLDS, "largest_rate": Status.HOLDS}),
        (lambda _: 1.0, {"N23": Status.FAILS, "window": Status.FAILS, "largest_rate": Status.FAILS}),
    ],
)
def test_verdicts_follow_the_window(
    analysed: Callable[..., Any], largest: Callable[[float], float], expected: dict[str, Status]
) -> None:
    assert analysed(sensitivity.PART, rows(largest)).statuses == expected


def normalized(
    larger: Callable[[str], float], pace: Callable[[str, float], float]
) -> Iterator[Rows]:  # fmt: skip
    for variant in normalization.VARIANTS:
        for seed in (-3, -2, -1, *range(8)):
            for lr in RATES:
                at = {"part": "normalization", "variant": variant, "depth": 3, "lr": lr, "seed": seed}
                case, fine = Case.of(at), 2**-9 <= lr <= larger(variant)
                steps = pace(variant, lr) * (1 + 0.03 * math.sin(seed)) if fine else 200.0
                yield case.rows("loss", 0.5 + 0.01 * math.sin(seed) if fine else math.nan)
                yield case.rows("steps_to_target", steps)
                yield case.rows("reached", float(fine))


@pytest.mark.parametrize(
    ("larger", "pace", "raised", "faster"),
    [
        # faster through the rate alone; at twice the speed with the same rates; as fast, though larger rates train
        (lambda name: 0.1 if name == "plain" else 2, lambda _, lr: 3 / lr, Status.HOLDS, Status.HOLDS),
        (lambda _: 0.1, lambda name, lr: (6 if name == "plain" else 3) / lr, Status.FAILS, Status.FAILS),
        (
            lambda name: 0.1 if name == "plain" else 2, lambda _, lr: 50 + abs(math.log(lr / 0.03)), Status.HOLDS,
            Status.FAILS,
        ),
    ],
)  # fmt: skip
def test_batch_normalization_is_faster_through_the_rate_or_not(
    analysed: Callable[..., Any], larger: Callable[[str], float], pace: Callable[[str, float], float],
    raised: Status, faster: Status,
) -> None:  # fmt: skip
    said = analysed(normalization.PART, normalized(larger, pace)).statuses
    assert (said["raised"], said["N24"]) == (raised, faster)


def test_a_run_that_never_arrives_bounds_the_ratio_of_steps(analysed: Callable[..., Any]) -> None:
    """All take about 190 steps; one plain network does not arrive in 200, and may take ten times as many."""

    def rows(late: bool) -> Iterator[Rows]:
        for row in normalized(lambda _: 0.1, lambda _, lr: 190 + abs(math.log(lr / 0.03))):
            gone = late and row.case["variant"] == "plain" and row.case["seed"] == 0 and row.metric != "loss"
            yield replace(row, value=200.0 if row.metric == "steps_to_target" else 0.0) if gone else row

    for late, answer in ((False, "equivalent"), (True, "inconclusive")):
        table = analysed(normalization.PART, rows(late)).tables["batch_norm"].set_index("what")
        assert table.loc[normalization.OWN, "answer"] == answer
        assert table.loc[normalization.GAIN, "answer"] == "equivalent"
