"""The part `model` on made-up durations: what it finds, what it refutes, and what it extrapolates."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from depthgauge.parallel import Link, StepModel
from depthgauge.planning.along import relative_steps
from depthgauge.stats import Estimate
from depthgauge.studies.data_parallel import extrapolation, model, model_ranks
from depthgauge.studies.data_parallel.model import NOISE, STEP
from depthgauge.studies.data_parallel.model_fit import Fitted, role
from depthgauge.study import Case, Rows
from depthgauge.verdict import Status

LINK = Link.parse("5e-5,1e-9")
SIZE, ROUNDS = 4 * 2**19, 12  # four buckets
FIXED, EXAMPLE, HANDLING, OVERLAP = 2e-3, 1e-4, 1e-3, 0.4
BATCHES = (1, 4, 16, 64, 256)
CRITICAL = {"value": 500.0, "low": 300.0, "high": 900.0}


def truth(ranks: int, batch: int, reduction: str, crowd: float = 1.0) -> float:
    compute, buckets = crowd * (FIXED + EXAMPLE * batch), model_ranks.buckets(SIZE)
    exchange = buckets * LINK.allreduce(SIZE / buckets, ranks).value
    if reduction == "none":
        return compute
    hidden = min(OVERLAP * compute, exchange * (1 - 1 / buckets)) if reduction == "overlapped" else 0.0
    return compute + crowd * HANDLING + exchange - hidden


def rows(*, slower: float = 1.0, crowd: float = 2.0, far: float = 1.0, noise: bool = True) -> Iterator[Rows]:
    """Two ranks and four on two cores; held-out batches `slower` than the model, large messages `far` off the line."""
    draws = np.random.default_rng(0)

    def around(seconds: float) -> Any:
        return seconds * np.exp(0.02 * draws.normal(size=ROUNDS))

    for ranks in (2, 4):
        case = Case.of({"part": "model", "work": STEP, "ranks": ranks})
        for batch in BATCHES:
            held = role(batch, BATCHES) == "held out"
            for reduction in ("overlapped",) if held or ranks > 2 else ("none", "waited", "overlapped"):
                seconds = truth(ranks, batch, reduction, crowd if ranks > 2 else 1.0)
                seconds *= slower if held and ranks == 2 else 1.0
                yield case.rows("seconds", around(seconds), layer_index=batch, direction=reduction)
        yield case.rows("gradient_bytes", float(SIZE))
        yield case.rows("room", 2.0)
    case = Case.of({"part": "model", "work": "all_reduce", "ranks": 2})
    sizes = [4**power for power in range(1, 12)]
    for size in sizes:
        seconds = LINK.allreduce(size, 2).value * (far if size == sizes[-1] else 1.0)
        yield case.rows("seconds", around(seconds), layer_index=size)
    if noise:
        for end, value in CRITICAL.items():
            yield Case.of({"part": "model", "work": NOISE}).rows("critical", value, direction=end)


def test_what_the_model_was_made_of_is_found_and_what_was_held_out_is_predicted(
    analysed: Callable[..., Any],
) -> None:
    answers = analysed(model.PART, list(rows()))
    assert set(answers.statuses.values()) == {Status.HOLDS}
    figures = answers.tables["fitted_model"].set_index("figure")["value"]
    assert figures["computing, fixed"] == pytest.approx(FIXED, rel=0.1)
    assert figures["computing, an example"] == pytest.approx(EXAMPLE, rel=0.1)
    assert figures["overlap"] == pytest.approx(OVERLAP, abs=0.15)
    assert figures["misfit"] < 0.03
    link = answers.tables["links"].iloc[0]
    assert (link["alpha"], link["beta"]) == pytest.approx((5e-5, 1e-9), rel=0.1)
    assert answers.tables["batches_held_out"]["inside"].all()
    assert set(answers.tables["steps"].query("role == 'held out' and ranks == 2")["batch"]) == {1, 256}


def test_what_is_not_as_predicted_is_refuted(analysed: Callable[..., Any]) -> None:
    answers = analysed(model.PART, list(rows(slower=1.6, crowd=4.0, far=3.0)))
    assert answers.statuses["model_batches"] is Status.FAILS
    assert answers.statuses["model_ranks"] is Status.FAILS
    assert answers.statuses["link_sizes"] is Status.DEPENDS  # the smallest size is as predicted
    assert "all_reduce of 4,194,304 bytes" in answers.verdicts["link_sizes"].why


def test_more_ranks_than_cores_are_marked(analysed: Callable[..., Any]) -> None:
    answers = analysed(model.PART, list(rows()))
    steps = answers.tables["steps"]
    assert set(steps.query("ranks == 4")["placed"]) == {"4 ranks on 2 cores (oversubscribed)"}
    assert set(steps.query("ranks == 2")["placed"]) == {"2 ranks"}
    assert answers.tables["ranks_held_out"]["oversubscribed"].all()
    assert "computing is taken to last 2 times as long" in answers.verdicts["model_ranks"].method
    assert "steps on more ranks, 4 ranks on 2 cores (oversubscribed), that" in answers.verdicts["model_ranks"].why
    assert "oversubscribed" not in answers.verdicts["model_batches"].why


def test_of_two_ranks_alone_nothing_is_said_of_more(analysed: Callable[..., Any]) -> None:
    answers = analysed(model.PART, [row for row in rows(noise=False) if row.case.get("ranks") == 2])
    assert answers.statuses["model_ranks"] is Status.NOT_MEASURED
    assert answers.statuses["model_batches"] is Status.HOLDS
    assert "time_and_cost" not in answers.tables
    assert answers.tables["efficiency"]["critical"].isna().all()


def test_time_and_cost_of_devices_that_are_not_there(analysed: Callable[..., Any]) -> None:
    answers = analysed(model.PART, list(rows()))
    table = answers.tables["time_and_cost"].set_index(["link", "devices"])
    assert table["extrapolated"].tolist() == [devices > 1 for _, devices in table.index]
    row = table.loc[("this machine", 64)]
    batch = extrapolation.PRESENT
    steps = 1000 * relative_steps(64 * batch, batch, 500.0)
    assert row["steps"] == pytest.approx(steps)
    assert row["hours"] == pytest.approx(steps * truth(64, batch, "overlapped") / 3600, rel=0.1)
    assert row["device_hours"] == pytest.approx(64 * row["hours"])
    for name in ("steps", "hours", "device_hours"):
        assert (table[f"{name}_low_95"] <= table[name]).all()
        assert (table[name] <= table[f"{name}_high_95"]).all()
    (told,) = (text for text in answers.sentences if text.startswith("Extrapolated to 16 examples a device,"))
    assert "one flat link joins all devices" in told
    critical = answers.tables["efficiency"]["critical"]
    assert set(critical) == {500.0 / extrapolation.PRESENT}  # devices of the critical batch


def test_what_more_devices_buy_has_the_ends_of_steps_and_seconds() -> None:
    exact = [Estimate(value, value, value, 0, "given") for value in (FIXED, EXAMPLE, HANDLING, OVERLAP)]
    made = StepModel(*exact, SIZE, model_ranks.buckets(SIZE), LINK, misfit=0.0, freedom=5)
    found = extrapolation.bought(made, Estimate(500.0, 300.0, 900.0, 0, ""), 8, 64)
    step = truth(64, 16, "overlapped") / truth(8, 16, "overlapped")
    fewer = [(1 + critical / 1024) / (1 + critical / 128) for critical in (500, 900, 300)]
    assert (found.value, found.low, found.high) == pytest.approx([step * each for each in fewer])
    loose = extrapolation.bought(replace(made, misfit=0.1), Estimate(500.0, 500.0, 500.0, 0, ""), 8, 64)
    assert loose.high / loose.value == pytest.approx(np.exp(2 * 2.5706 * 0.1), rel=1e-3)


def test_a_link_of_a_users_device_has_its_crossover(analysed: Callable[..., Any]) -> None:
    table = analysed(model.PART, list(rows())).tables["crossover"]
    assert set(table["link"]) == {"this machine", "nvlink", "pcie", "100gbe"}
    assert (table["bytes"] > 0).all()


def test_the_method_tells_the_network_of_every_preset() -> None:
    for preset in ("quick", "standard", "full"):
        size = model.SIZES[preset]
        assert f"{size['depth']} layers" in model.METHOD
        assert f"of {size['width']}" in model.METHOD.replace("\n", " ")


def test_without_steps_nothing_is_said(analysed: Callable[..., Any]) -> None:
    assert not analysed(model.PART, [row for row in rows() if row.case.text("work") != STEP]).verdicts
    assert not analysed(model.PART, [row for row in rows() if row.case.text("work") == STEP]).verdicts
    many = [row for row in rows() if row.case.get("ranks") == 4 or row.case.text("work") != STEP]
    assert not analysed(model.PART, many).verdicts  # the ranks that it is fitted to failed


@pytest.mark.parametrize(("ranks", "room", "crowd"), [(2, 2, 1.0), (4, 2, 2.0), (4, 1, 2.0), (4, 8, 1.0), (8, 4, 2.0)])
def test_ranks_that_share_cores_compute_longer(ranks: int, room: int, crowd: float) -> None:
    made: Any = Fitted(None, {}, 2, room, {}, {})  # type: ignore[arg-type]  # its model has no part in this
    assert made.crowd(ranks) == crowd
    assert ("oversubscribed" in made.placed(ranks)) == (ranks > room)


def test_the_critical_batch_of_the_network_is_between_its_ends() -> None:
    value, low, high = model_ranks.critical_batch(8, 1, 64)
    assert 0 < low < value < high
    assert pd.notna(value)
