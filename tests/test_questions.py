"""One question, one answer: table, verdict and words come from the same comparisons."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from depthgauge import questions, stats, training
from depthgauge.questions import Question, above, agreed, agrees, below, not_above, not_below, side
from depthgauge.verdict import Claim, Status

CLAIM = Claim("study/claim", "it is so")


def sample(centre: float, spread: float = 0.1, n: int = 12) -> np.ndarray:
    """n values with exactly this mean and standard deviation."""
    steps = np.arange(n) - (n - 1) / 2
    return centre + spread * steps / steps.std(ddof=1)


def asked(**centres: float) -> Question:
    return Question.of(
        "rates",
        ("name", "sigma"),
        {(name, 1.5): stats.against(sample(centre), 0.0, margin=0.5) for name, centre in centres.items()},
        label="{name} at {sigma:g}",
    )


def test_readings_are_the_four_answers() -> None:
    question = asked(far=2.0, near=0.0, small=0.2, edge=0.45, under=-2.0)
    assert question.read(agrees) == {
        "far at 1.5": False, "near at 1.5": True, "small at 1.5": True, "edge at 1.5": None, "under at 1.5": False,
    }  # fmt: skip
    assert list(question.read(side).values()) == [1, 0, 0, None, -1]
    assert list(question.read(above).values()) == [True, False, False, None, False]
    assert list(question.read(below).values()) == [False, False, False, False, True]  # edge is over the lower end
    _, table = question.table()
    assert list(table["answer"]) == [
        "beyond the margin", "equivalent", "different, inside the margin", "inconclusive", "beyond the margin",
    ]  # fmt: skip


@pytest.mark.parametrize("log", [False, True])
def test_a_one_sided_reading_is_decided_by_one_end_of_the_interval(log: bool) -> None:
    """Undecided on the side that does not matter: [-1.3, -0.1] is no more than 0.5 above 0, and may be 0.5 below."""
    values = sample(-0.7, spread=0.75)
    low = stats.against(np.exp(values) if log else values, float(log), margin=np.exp(0.5) if log else 0.5, log=log)
    high = stats.against(1 / np.exp(values) if log else -values, float(log), margin=low.margin, log=log)
    assert (agrees(low), above(low), not_above(low), below(low), not_below(low)) == (None, False, True, None, None)
    assert (below(high), not_below(high), not_above(high)) == (False, True, None)
    assert above(training.unsettled(low, at_edge=True)) is None  # not its interval keeps it open


@pytest.mark.parametrize(("at", "says"), [(0.0, "the predicted one: a"), (2.0, "not the predicted one: a")])
def test_one_figure_alone_is_not_counted(at: float, says: str) -> None:
    question = Question.of("q", ("name",), {("a",): stats.against(sample(at), 0.0, margin=0.5)}, label="{name}")
    verdict = question.prediction(CLAIM, "gaps", within="half", unit="")
    assert (verdict.why, verdict.says) == (f"{says}, within half", "false" if at else "true")


def test_an_answer_of_a_table_is_read_as_its_comparison_is() -> None:
    question = asked(a=0.0, b=0.1, c=3.0, d=0.5)
    assert [agreed(answer) for answer in question.table()[1]["answer"]] == [*question.read(agrees).values()]
    assert [*question.read(agrees).values()] == [True, True, False, None]


def test_a_verdict_names_what_a_wider_grid_would_decide() -> None:
    members = {(name,): stats.against(sample(2.0), 0.0, margin=0.5) for name in "abc"}
    members["b",] = training.unsettled(members["b",], at_edge=True)
    members["c",] = training.unsettled(members["c",], at_edge=False, censored=True)
    question = Question.of("q", ("name",), members, label="{name}")
    verdict = question.verdict(CLAIM, above, why="so", method="t")
    assert (verdict.status, verdict.at_edge, verdict.needed) == (Status.INCONCLUSIVE, "b", 0)
    assert verdict.why.startswith("so; a learning rate at the end of its grid")
    assert question.verdict(CLAIM, {"all of them": None}, why="so", method="t").at_edge == "b"
    decided = question.where(name=("a", "c")).verdict(CLAIM, above, why="so", method="t")
    assert (decided.at_edge, decided.why) == ("", "so")


def test_the_figure_of_a_verdict_is_a_row_of_the_table() -> None:
    question = asked(a=0.1, b=-0.3, c=0.2)
    verdict = question.verdict(CLAIM, agrees, why="so", method="t")
    name, table = question.table()
    row = table.set_index("name").loc["b"]
    assert (verdict.table, verdict.condition) == (name, "b at 1.5")
    assert (verdict.observed, verdict.low, verdict.high) == (row["value"], row["low_95"], row["high_95"])
    assert (verdict.answer, verdict.predicted, verdict.n) == (row["answer"], row["predicted"], row["n"])
    assert verdict.status is Status.HOLDS
    assert question.verdict(CLAIM, agrees, why="so", method="t", shown=("a", 1.5)).condition == "a at 1.5"


def test_an_undecided_verdict_shows_a_figure_that_is_undecided() -> None:
    question = asked(a=0.1, b=5.0, c=0.2)
    answers = {"a at 1.5": None, "b at 1.5": True, "c at 1.5": True}
    for given in (answers, {("a", 1.5): None, ("b", 1.5): True, ("c", 1.5): True}):
        verdict = question.verdict(CLAIM, given, why="so", method="t", shown=("b", 1.5))
        assert (verdict.status, verdict.condition) == (Status.INCONCLUSIVE, "a at 1.5")
    assert question.verdict(CLAIM, answers, why="so", method="t").condition == "a at 1.5"


def test_a_decided_verdict_shows_a_figure_that_has_an_interval() -> None:
    members = {
        ("near",): stats.against(sample(0.0), 0.0, margin=0.5), ("far",): stats.against(sample(2.0), 0.0, margin=0.5),
        ("nan",): stats.against([*sample(0.0)[:-1], math.nan], 0.0, margin=0.5),
        ("few",): stats.coverage(0, 3, 0.5),
    }  # fmt: skip
    question = Question.of("q", ("name",), members, label="{name}")
    answers = {"near": True, "far": False, "nan": None, "few": None}
    for shown in (("nan",), ("few",), None):
        verdict = question.verdict(CLAIM, answers, why="so", method="t", shown=shown)
        assert (verdict.status, verdict.condition, verdict.why) == (Status.DEPENDS, "far", "so")
    assert question.verdict(CLAIM, answers, why="so", method="t", shown=("near",)).condition == "near"
    none = question.where(name=("nan", "few")).verdict(CLAIM, {"near": True}, why="so", method="t")
    assert none.status is Status.INCONCLUSIVE


def test_ratios_and_differences_have_units_of_their_own() -> None:
    members = {
        ("loss",): stats.against(sample(-1.0), 0.0, margin=0.5),
        ("norm",): stats.against(np.exp(sample(-0.5)), 1.0, log=True, margin=1.1),
    }
    question = Question.of("q", ("what",), members, label="{what}")
    units = {("loss",): "nats", ("norm",): "times"}
    for shown in members:
        verdict = question.verdict(CLAIM, not_above, why="so", method="t", shown=shown, unit=units)
        assert (verdict.condition, verdict.unit) == (*shown, units[shown])
    answers = {"loss": True, "norm": None}
    assert question.verdict(CLAIM, answers, why="so", method="t", shown=("loss",), unit=units).unit == "times"
    with pytest.raises(ValueError, match="'q' has ratios and differences: give each condition its unit"):
        question.verdict(CLAIM, not_above, why="so", method="t", unit="nats")


def test_a_family_is_corrected_once_and_apart_from_others() -> None:
    alone = stats.against(sample(0.1), 0.0)
    question = Question.of(
        "q", ("group", "i"), {(f, i): alone for f in "ab" for i in range(1 if f == "a" else 5)}, label="{group}{i}",
        family=lambda group, i: group,  # noqa: ARG005 - it is given all columns
    )  # fmt: skip
    first, others = question.members["a", 0], question.where(group="b")
    assert first.effect == alone.effect
    assert {c.family for c in others.members.values()} == {5}
    assert others.members["b", 0].effect.low == pytest.approx(alone.at(0.99).low)  # type: ignore[misc]  # it has one
    assert len(others.where(i=(1, 2))) == 2


def test_the_furthest_is_measured_from_its_reference_and_is_finite() -> None:
    question = Question.of(
        "q", ("i",),
        {
            (1,): stats.against(sample(5.0), 5.1),
            (2,): stats.against(sample(1.0), 0.0),
            (3,): stats.against([math.inf] * 6, 0.0),
        },
        label="{i}",
    )  # fmt: skip
    assert question.furthest == (2,)


def test_status_depends_where_conditions_differ() -> None:
    assert asked(a=2.0, b=0.0).verdict(CLAIM, agrees, why="", method="").status is Status.DEPENDS
    assert asked(a=0.45, b=0.0).verdict(CLAIM, agrees, why="", method="").status is Status.INCONCLUSIVE


def test_words_of_conditions() -> None:
    question = asked(a=2.0, b=0.0, c=0.0)
    assert question.listed(agrees, {False: "not", True: "yes for"}) == "not a at 1.5; yes for b at 1.5, c at 1.5"
    assert question.listed(agrees, {False: "not", None: "undecided"}, lead="; ") == "; not a at 1.5"
    assert question.listed(agrees, {None: "undecided"}, lead="; ") == ""
    assert questions.enumerated("abcdef", 4) == "a, b, c, d and 2 more"
    assert questions.ends(0.99, "rate") == ("rate_low_99", "rate_high_99")


def test_columns_name_their_level() -> None:
    at = {(0,): stats.against(sample(0.0), 0.0, confidence=0.99)}
    _, table = Question.of("q", ("i",), at, label="{i}").table({(0,): {"dead": 3}})
    assert {"low_99", "high_99", "dead"} <= set(table)
    mixed = {**at, (1,): stats.against(sample(0.0), 0.0)}
    with pytest.raises(ValueError, match="several confidences"):
        Question.of("q", ("i",), mixed, label="{i}")
    with pytest.raises(ValueError, match="cannot be named 'n'"):
        Question.of("q", ("n",), at, label="{n}")


def test_a_claim_of_several_things_is_false_where_one_of_them_is() -> None:
    assert questions.every([True, None, False]) is False
    assert questions.every([True, None]) is None
    assert questions.every([True, True]) is True


def test_a_share_is_measured_against_one_half() -> None:
    share = Question.share("trained", 20, 20, counted="runs")
    ((name, table), words) = share.table(), share.words(("runs",))
    assert (name, words) == ("trained", "all runs")
    assert table[["n", "value", "half of them", "answer"]].to_numpy().tolist() == [[20, 1.0, 0.5, "different"]]
    assert table["low_95"].item() == pytest.approx(0.025 ** (1 / 20))  # Clopper and Pearson, all of 20


def test_nothing_asked_is_no_verdict() -> None:
    question = asked()
    assert not question
    assert isinstance(question.table()[1], pd.DataFrame)
    with pytest.raises(ValueError, match="no condition"):
        question.verdict(CLAIM, agrees, why="", method="")
