"""Faults upstream: a rate is not advised where signal or data are at fault, unless the rate is the cause."""

from __future__ import annotations

from depthgauge.checking import Answer, Finding, Status, upstream
from depthgauge.checking.questions import QUESTIONS


def answer(id: str, kind: str, status: Status = Status.LOOK) -> Answer:  # noqa: A002 - the name that answers have
    return Answer(id, "?", "said", (Finding(kind, status, "found", f"mend {kind}", "better"),))


LOW = answer("learning_rate", "rate_low")


def test_advice_on_rates_and_batches_waits_for_a_fault_upstream() -> None:
    batch = answer("batch", "large_batch", Status.FINE)
    held = upstream.held([answer("data", "unscaled_targets"), LOW, batch, answer("cost", "threads")])

    assert [each.advice.partition(",")[0] for each in held] == [
        "mend unscaled_targets", "mend data", "mend data", "mend threads",
    ]  # fmt: skip
    assert [each.status for each in held] == [Status.LOOK, Status.LOOK, Status.FINE, Status.LOOK]
    assert held[1].where == LOW.where


def test_a_wish_or_a_property_holds_nothing_back() -> None:
    asked = [answer("signal", "initialization"), answer("data", "frozen_norm"), LOW]
    assert upstream.held(asked) == tuple(asked)


def test_units_that_a_large_rate_killed_do_not_hold_its_advice_back() -> None:
    dead, large = answer("signal", "dead_units"), answer("learning_rate", "rate_too_large")

    assert upstream.causes([dead, large]) == []
    assert upstream.causes([dead, LOW]) == ["signal"]


def test_all_held_kinds_exist() -> None:
    kinds = {kind for question in QUESTIONS for kind in question.kinds}
    assert kinds >= upstream._HELD | upstream._OF_RATES | upstream._FAR
