"""Batch size and learning rate: what the analyses say of rows whose answer is known, and of limits known to theory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from depthgauge import questions, stats
from depthgauge.parts import Part
from depthgauge.studies.batch_size import budgets, curves, growing, hyperbola, perceptrons, rules, width
from depthgauge.study import Case, Context, Grid, Rows
from depthgauge.verdict import Status

Analysed = Callable[..., Any]
Tidy = Callable[..., Any]


def noise(case: Case, size: float) -> float:
    """A case's own small number."""
    return size * (case.random_seed() / 2**63 - 0.5)


def cases_of(part: Part, size: str = "tiny") -> list[Case]:
    return [case for grid in part.at(size) for case in grid.cases()]


# -- budgets -----------------------------------------------------------------------------------------------------------


def budget_rows(accuracy: Callable[[int, int, float], float], size: str = "tiny") -> Iterator[Rows]:
    """Rows of an accuracy that is a function of batch, steps and rate; losses fall as accuracies rise."""
    for case in cases_of(budgets.PART, size):
        at = accuracy(case.integer("batch"), case.integer("steps"), case.number("lr")) + noise(case, 0.002)
        values = {name: at if name.endswith("accuracy") else 1.5 - at for name in perceptrons.METRICS} | {
            "diverged": 0.0
        }
        yield from (case.rows(metric, value) for metric, value in values.items())


def test_a_gap_that_steps_close_is_told_from_one_that_stays(analysed: Analysed) -> None:
    closes = analysed(budgets.PART, budget_rows(lambda b, steps, _: 0.7 if b == 64 and steps < 32 else 0.9))
    assert closes.statuses == {"N17": Status.DEPENDS, "N19": Status.FAILS, "gap": Status.HOLDS, "noise": Status.FAILS}
    stays = analysed(budgets.PART, budget_rows(lambda b, *_: 0.7 if b == 64 else 0.9))
    assert stays.statuses == {"N17": Status.HOLDS, "N19": Status.FAILS, "gap": Status.FAILS, "noise": Status.HOLDS}
    where = "true where batch 16 ends at a higher test accuracy than batch 64 at equal epochs with one rate"
    assert where in closes.verdicts["N17"].why
    told = "Given as many {} and a learning rate of its own, batch 64 ends {} points of test accuracy {} than batch 16."
    assert told.format("epochs", "20.0", "lower") in closes.sentences
    assert closes.verdicts["gap"].says == "true"


def test_one_rate_for_all_is_the_reference_batch_s_best(analysed: Analysed) -> None:
    """The small batch is bad at that rate alone: N19 is then true untuned, and false tuned."""

    def accuracy(batch: int, steps: int, lr: float) -> float:
        return 0.9 - 0.3 * (lr != (2**-5 if batch == 2 else 2**-3))

    found = analysed(budgets.PART, budget_rows(accuracy, "quick"))
    table = found.tables["budget_accuracy"].set_index(["rates", "batch"])
    assert (table.loc[(budgets.ONE, 2), "value"] - 0.3).abs().max() < 0.01
    assert table.loc[(budgets.TUNED, 2), "value"].abs().max() < 0.01
    assert found.statuses["N19"] is Status.DEPENDS


def test_examples_or_steps_are_equal_and_the_reference_has_both() -> None:
    grids = {(g.fixed["batch"], g.fixed["steps"]) for g in budgets.PART.at("standard")}
    steps = {count for batch, count in grids if batch == 16}
    assert len(steps) == 1
    for batch in {batch for batch, _ in grids}:
        assert {count for b, count in grids if b == batch} == steps | {16 * max(steps) // batch}
        assert 16 * max(steps) % batch == 0


def test_a_best_rate_at_the_edge_is_one_by_the_factor_of_the_loss(analysed: Analysed) -> None:
    """At the larger of both rates a loss of 0.1 in place of 0.13 is a gain beyond the margin, though 0.03 nats."""

    def rows(gain: float) -> Iterator[Rows]:
        for case in cases_of(budgets.PART):
            loss = 0.1 * (gain if case.number("lr") < 0.1 else 1.0) * (1 + noise(case, 0.01))
            ends = {name: loss if name.endswith("loss") else 0.9 for name in perceptrons.METRICS} | {"diverged": 0.0}
            yield from (case.rows(metric, value) for metric, value in ends.items())

    assert analysed(budgets.PART, rows(1.3)).statuses["noise"] is Status.INCONCLUSIVE
    assert analysed(budgets.PART, rows(1.02)).statuses["noise"] is Status.FAILS


def test_one_rate_for_all_is_open_where_the_reference_s_best_is(analysed: Analysed) -> None:
    found = analysed(budgets.PART, budget_rows(lambda *case: 0.9 - 0.1 * (case[2] < 0.1)))
    assert set(found.tables["budget_accuracy"]["answer"]) == {"inconclusive"}
    assert found.tables["budget_ends"]["at_edge"].all()


def test_diverged_runs_stay_in_the_median_of_the_training_loss(analysed: Analysed) -> None:
    def rows() -> Iterator[Rows]:
        for row in budget_rows(lambda *_: 0.9):
            gone = row.case.integer("batch") == 64 and row.case.integer("seed") in {0, 1, 2}
            ends = {"train_loss": math.nan, "diverged": 1.0}
            yield replace(row, value=ends[row.metric]) if gone and row.metric in ends else row

    lost = analysed(budgets.PART, rows()).tables["budget_ends"].set_index("batch")["train_loss"]
    assert (lost[64] == math.inf).all()
    assert (lost[16] < 1).all()


@pytest.mark.parametrize(("centre", "said"), [(0.1, True), (-0.1, False), (0.0, False), (0.02, None)])
def test_no_better_is_what_does_not_reach_above_the_margin(centre: float, said: bool | None) -> None:
    sample = centre + np.linspace(-0.01, 0.01, 8)
    assert questions.above(stats.against(sample, 0.0, margin=0.02)) is said
    assert questions.above(stats.against(np.exp(sample), 1.0, margin=math.exp(0.02), log=True)) is said


# -- rules -------------------------------------------------------------------------------------------------------------


def rule_rows(ratio: Callable[[Case], float], tidy: Tidy) -> Iterator[Rows]:
    """Curves that fall as the examples go; those of the second stage by a ratio to the base's."""
    first = cases_of(rules.PART, "quick")

    def rows_of(case: Case) -> Iterator[Rows]:
        shape = 1.0 if case.text("rule") == "none" else ratio(case)
        rate = case.number("lr") * case.number("share")
        loss = shape * np.exp(-np.arange(1, curves.POINTS + 1) / 8 + noise(case, 0.02)) / rate
        yield case.rows("loss", loss, step=np.arange(1, curves.POINTS + 1))
        yield case.rows("score", -abs(math.log2(case.number("lr")) + 5))
        yield case.rows("rate", rate * curves.SCALES[case.text("rule")](case.number("factor")))

    rows = [row for case in first for row in rows_of(case)]
    grids = rules.PART.after("quick", tidy(rows))
    yield from rows
    yield from (row for grid in grids for case in grid.cases() for row in rows_of(case))


def test_the_reach_of_a_rule_is_the_factor_before_it_breaks(analysed: Analysed, tidy: Tidy) -> None:
    found = analysed(rules.PART, rule_rows(lambda case: 2.0 if case.integer("factor") > 8 else 1.1, tidy))
    reach = found.tables["rule_reach"]
    assert (reach["kept_to"] == 8).all()
    assert (reach["broken_from"] == 32).all()
    assert (reach["loss_there"] == "higher").all()
    at = reach.set_index(["rule", "share", "warmup"])["rate_there"]
    assert at["linear", 0.25, "none"] == 2.0**-5 / 4 * 32
    assert found.statuses["linear_rule"] is Status.DEPENDS
    assert found.statuses["rule_warmup"] is Status.FAILS


def test_a_curve_between_kept_and_broken_keeps_nothing_above_it(analysed: Analysed, tidy: Tidy) -> None:
    def ratio(case: Case) -> float:
        undecided = case.integer("factor") == 8
        return math.exp(noise(case, 2.0)) if undecided else 1.0

    reach = analysed(rules.PART, rule_rows(ratio, tidy)).tables["rule_reach"]
    assert (reach["kept_to"] == 2).all()
    assert reach["broken_from"].isna().all()


def test_at_rates_near_zero_the_linear_rule_keeps_the_curve_and_the_root_does_not() -> None:
    """SGD at a small rate follows the gradient flow, whose time is the sum of the rates, whatever the batch."""
    base = next(c for c in cases_of(rules.PART) if c.text("optimizer") == "SGD" and c.integer("seed") == 0)
    base = base.but(lr=2.0**-9, steps=256, width=16)

    def last(rule: str, factor: int) -> float:
        case = base.but(rule=rule, factor=factor, batch=4 * factor, steps=256 // factor)
        (curve,) = (row.value for row in rules.PART.run([case], Context()) if row.metric == "loss")
        return float(np.asarray(curve)[-1])

    start, linear, root = last("none", 1), last("linear", 4), last("square root", 4)
    fallen = math.log(10) - start  # the loss begins near that of equal shares
    assert abs(linear - start) < 0.05 * abs(fallen)
    assert root - start > 0.2 * abs(fallen)


def test_betas_move_in_proportion_and_a_warm_up_ends_at_the_full_rate() -> None:
    adam = curves.optimizer("Adam", [1.0], 4.0)
    assert getattr(adam, "betas") == pytest.approx((0.6, 0.996))  # noqa: B009 - SGD has none
    assert getattr(curves.optimizer("Adam", [1.0], 16.0), "betas")[0] == 0.0  # noqa: B009
    rise = [curves.ramp(64)(step) for step in range(64)]
    assert rise[:8] == [k / 8 for k in range(1, 9)]
    assert set(rise[8:]) == {1.0}


# -- growing -----------------------------------------------------------------------------------------------------------


def test_a_grown_batch_that_ends_elsewhere_refutes_the_claim(analysed: Analysed) -> None:
    def rows(times: float, neither: float) -> Iterator[Rows]:
        for case in cases_of(growing.PART):
            ratio = {"rate decays": 1.0, "batch grows": times, "neither": neither}[case.text("arm")]
            for phase in (1, 2, 3):
                value = (1.0 if phase == 1 else ratio) * math.exp(noise(case, 0.01))
                ends = {"training_loss": value, "test_loss": value, "test_accuracy": 0.9, "curve": value}
                yield from (case.rows(metric, end, step=phase) for metric, end in ends.items())

    assert analysed(growing.PART, rows(1.0, 0.5)).statuses == {"growing": Status.HOLDS}
    assert analysed(growing.PART, rows(1.3, 0.5)).statuses == {"growing": Status.FAILS}
    assert analysed(growing.PART, rows(1.0, 1.0)).statuses == {"growing": Status.INCONCLUSIVE}  # it could not tell


def test_the_first_phase_is_the_same_for_all_and_no_phase_sees_another_s_order() -> None:
    found: dict[tuple[str, int], float] = {}
    for grid in growing.PART.at("tiny"):
        for row in growing.PART.run(list(grid.cases())[:1], Context()):
            if row.metric == "training_loss":
                found[row.case.text("arm"), int(np.asarray(row.step))] = float(np.asarray(row.value))
    assert len({found[arm, 1] for arm in growing.ARMS}) == 1
    assert len({found[arm, 3] for arm in growing.ARMS}) == 3


# -- width -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ratio", "status"), [(1.0, Status.HOLDS), (6.0, Status.FAILS)])
def test_critical_batches_are_those_of_the_hyperbola(analysed: Analysed, ratio: float, status: Status) -> None:
    def rows() -> Iterator[Rows]:
        for case in cases_of(width.PART):
            critical = 64 * (ratio if case.integer("width") == 16 else 1.0)
            steps = 10 * (1 + critical / case.integer("batch")) * math.exp(noise(case, 0.05))
            grid: Grid = next(g for g in width.PART.at("tiny") if case in set(g.cases()))
            middle = grid.varied["lr"][1]
            steps *= 1.0 if case["lr"] == middle else 2.0  # the best rate is inside of the grid
            yield from (case.rows(m, v) for m, v in (("steps", steps), ("reached", 1.0), ("score", -math.log(steps))))

    found = analysed(width.PART, rows())
    assert found.statuses == {"width": status}
    steps = found.tables["width_steps"]
    assert hyperbola.averaged(steps) == "geometric mean"
    assert hyperbola.averaged(steps.assign(reached=0)) == "geometric mean, or median where not all arrived,"
    fits = found.tables["width_fits"].set_index("width")
    assert fits.loc[8, "critical_batch"] == pytest.approx(64, rel=0.1)
    assert fits.loc[16, "critical_batch"] == pytest.approx(64 * ratio, rel=0.1)
    assert found.tables["width"]["value"].iloc[0] == pytest.approx(ratio, rel=0.15)
