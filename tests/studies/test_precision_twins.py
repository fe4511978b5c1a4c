"""Two runs that should be one: what `twins` and `band` say of made-up rows, and of what they measure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pytest

from depthgauge.parts import Part
from depthgauge.studies.precision import band, twins
from depthgauge.study import Case, Context, Grid, Rows
from depthgauge.verdict import Status

Analysed = Callable[[Part, Iterable[Rows]], Any]
STEPS = np.arange(0, 101, 10)


def trainings(gap: float, excess: float, again: float = 0.0, lr: float = 0.1) -> Iterator[Rows]:
    """Pairs whose accuracies differ by `gap`, and whose distance grows by `excess` more than roundings add up to."""
    for case in Grid({"depth": (4,), "lr": (lr,)}, {"steps": 100}, 10).cases():
        noise = 1e-3 * case.integer("seed")
        ends = {"accuracy": 0.9 + noise, "twin": 0.9 + noise + gap * (1 + noise), "again": again, "final": 1e-7 + gap,
                "exponent": 0.02 + excess * (1 + noise), "proportional": 0.02}  # fmt: skip
        yield case.rows("distance", 1e-8 * np.exp(0.1 * STEPS), step=STEPS)
        for metric, value in ends.items():
            yield case.rows(metric, value)


@pytest.mark.parametrize(
    ("gap", "again", "expected"),
    [(0.0, 0.0, Status.FAILS), (0.05, 0.0, Status.HOLDS), (0.0, 1e-9, Status.HOLDS)],
)
def test_training_is_repeatable_where_one_ulp_leaves_the_accuracy_alone(
    gap: float, again: float, expected: Status, analysed: Analysed
) -> None:
    assert analysed(twins.PART, trainings(gap, 0.1, again)).statuses["N48"] == expected


def test_it_depends_where_conditions_differ(analysed: Analysed) -> None:
    answers = analysed(twins.PART, [*trainings(0.0, 0.0, lr=0.01), *trainings(0.05, 0.1)])
    assert answers.statuses == {"N48": Status.DEPENDS, "parting": Status.DEPENDS}
    table = answers.tables["parting"].set_index("lr")
    assert table["value"].to_dict() == pytest.approx({0.01: 1.0, 0.1: 6.0}, rel=0.01)
    assert table["exponent"].to_dict() == pytest.approx({0.01: 0.02, 0.1: 0.12}, abs=1e-3)
    assert (
        "by more than 1 point in 1 of 2 combinations of depth and learning rate; by 5.0 at depth 4, learning rate 0.1"
        in answers.sentences[0]
    )


def test_a_pair_that_diverges_costs_no_other_its_line(analysed: Analysed) -> None:
    rows = list(trainings(0.0, 0.1))
    lost = next(row for row in rows if row.metric == "distance")
    rows[rows.index(lost)] = lost.case.rows("distance", STEPS * np.nan, step=STEPS)
    tracks = analysed(twins.PART, rows).tables["tracks"]
    assert (tracks[["low", "median", "high"]] > 0).all(axis=None)


def batches(*broken: int) -> Iterator[Rows]:
    every = {"subject": ("mlp", "lenet5", "product"), "dtype": ("float32", "bfloat16")}
    for case in Grid(every, {"batch": 8}, 5).cases():
        k = np.array([1, 2, 4, 8])
        off = np.isin(k, broken) & (case.integer("seed") == 3)  # one draw is enough
        yield case.rows("largest_ulp", 7.0 * off, layer_index=k)
        yield case.rows("equal", 1.0 - off, layer_index=k)


def test_one_other_bit_refutes_batch_invariance(analysed: Analysed) -> None:
    assert analysed(twins.PART, batches()).statuses == {"batch_invariance": Status.HOLDS}
    answers = analysed(twins.PART, batches(2))
    assert answers.statuses == {"batch_invariance": Status.FAILS}
    assert "at sizes 2" in answers.verdicts["batch_invariance"].why
    assert answers.tables["invariance"].query("k == 2")[["equal", "largest_ulp"]].values.tolist() == [[False, 7.0]] * 6


def modules(count: int, alarms: int) -> Iterator[Rows]:
    for case in Grid({"kind": ("order", "fault")}, {"ulps": 8}, count).cases():
        order, seed = case.text("kind") == "order", case.integer("seed")
        ends = {"beyond": not order or seed < alarms, "found": not order, "results_found": not order and seed % 4 == 0,
                "size": 0.5, "terms": 20.0}  # fmt: skip
        for metric, value in ends.items():
            yield case.rows(metric, float(value))


@pytest.mark.parametrize(
    ("count", "alarms", "expected"), [(400, 0, Status.HOLDS), (400, 20, Status.FAILS), (50, 0, Status.INCONCLUSIVE)]
)
def test_false_alarms_are_held_against_one_in_a_hundred(
    count: int, alarms: int, expected: Status, analysed: Analysed
) -> None:
    answers = analysed(band.PART, modules(count, alarms))
    assert answers.statuses == {"false_alarms": expected}
    table = answers.tables["band"].set_index("what")["value"]
    assert table["false alarm"] == alarms / count
    assert table["fault found"] == 1
    assert table["found by results alone, 0 to 32 terms"] == pytest.approx(0.25, abs=0.02)


def test_the_same_seed_gives_the_same_bits_and_one_ulp_does_not() -> None:
    """Of a small training, with what the part itself measures."""
    (case,) = Grid({"depth": (2,), "lr": (0.1,)}, {"steps": 12}, 1).cases()
    rows = {row.metric: np.asarray(row.value) for row in twins.run([case], Context())}
    assert rows["again"] == 0
    assert (rows["distance"] > 0).all()
    assert rows["distance"][0] < 1e-8
    assert 0 < rows["accuracy"] <= 1


def test_a_product_of_its_own_batch_alone_is_that_of_all(analysed: Analysed) -> None:
    """With all examples the two are one computation, whatever the kernel."""
    cases: list[Case] = list(Grid({"subject": ("matrix product",), "dtype": ("float32",)}, {"batch": 5}, 5).cases())
    table = analysed(twins.PART, twins.run(cases, Context())).tables["invariance"]
    assert table["k"].tolist() == [1, 2, 3, 4, 5]
    assert table.query("k == 5")["equal"].item()
