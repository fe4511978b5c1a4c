"""A study of parts: declared once, marked, and its answers put together."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest

from depthgauge import drawing
from depthgauge.parts import Answer, Part, sizes, study
from depthgauge.study import Case, Context, Grid, Rows, StudyError
from depthgauge.verdict import Claim, Status, Verdict

SIZES = {"quick": {"widths": (1, 2)}, "standard": {"widths": (1, 2, 3)}, "tiny": {"widths": (1,)}}
A, B = Claim("s/a", "a"), Claim("s/b", "b")


def grids(widths: tuple[int, ...]) -> Iterator[Grid]:
    yield Grid({"width": widths}, seeds=5)


def run(cases: Sequence[Case], _: Context) -> Iterator[Rows]:
    for case in cases:
        yield case.rows("loss", float(case.integer("width")))


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    yield "A sentence."
    yield "sums", pd.DataFrame({"value": [rows["value"].sum()]})
    yield Verdict(A.id, A.text, Status.HOLDS)


def part(name: str, claims: tuple[Claim, ...] = (A,), **more: Any) -> Part:
    return Part(name, claims, SIZES, grids, run, analyse, **more)


def frame_of(cases: Sequence[Case]) -> pd.DataFrame:
    return pd.DataFrame(
        {**dict(case.params), "case": case.id, "metric": "loss", "value": 1.0, "status": "ok"} for case in cases
    )


def test_cases_carry_their_part_and_grids_its_claims() -> None:
    whole = study("s", "Is it?", (part("one"), part("two", (B,))))
    assert list(whole.presets) == ["quick", "standard"]  # `tiny` is for tests
    assert {case["part"] for chunk in whole.chunks("quick") for case in chunk.cases} == {"one", "two"}
    assert [grid.claims for grid in whole.presets["quick"]] == [("s/a",), ("s/b",)]
    assert [claim.id for claim in whole.claims] == ["s/a", "s/b"]
    cases = whole.chunks("quick")[0].cases
    assert [row.value for row in whole.run(cases, Context())] == [1.0]


def test_what_was_not_measured_says_so() -> None:
    whole = study("s", "Is it?", (part("one"), part("two", (B,))))
    cases = [case for chunk in whole.chunks("quick") for case in chunk.cases if case["part"] == "one"]
    findings = whole.analyse(frame_of(cases))
    assert [verdict.status for verdict in findings.verdicts] == [Status.HOLDS, Status.NOT_MEASURED]
    assert findings.tables["sums"]["value"].item() == len(cases)
    assert findings.answers == ("A sentence.",)
    nothing = whole.analyse(frame_of(cases).drop(columns="part").iloc[:0])
    assert {verdict.status for verdict in nothing.verdicts} == {Status.NOT_MEASURED}


def test_a_second_stage_is_of_the_parts_own_rows_and_size() -> None:
    def second(rows: pd.DataFrame, widths: tuple[int, ...]) -> Iterator[Grid]:
        yield Grid({"width": (10 * len(rows) + len(widths),)}, seeds=5)

    whole = study("s", "Is it?", (part("one", second=second), part("two", (B,))))
    assert whole.second is not None
    cases = [case for chunk in whole.chunks("quick") for case in chunk.cases]
    (grid,) = whole.second("quick", frame_of(cases))
    assert grid.varied == {"width": (102,)}
    assert grid.fixed == {"part": "one"}
    assert grid.claims == ("s/a",)
    assert tuple(whole.second("quick", frame_of(cases[-1:]))) == ()
    assert study("s", "Is it?", (part("one"),)).second is None


def test_a_series_is_a_parameter_of_every_case_of_both_stages() -> None:
    whole = study("s", "Is it?", (part("one", second=lambda _rows, **_: [Grid({"width": (9,)}, seeds=5)]),), series=2)
    cases = [case for chunk in whole.chunks("quick") for case in chunk.cases]
    assert whole.second is not None
    later = [case for grid in whole.second("quick", frame_of(cases)) for case in grid.cases()]
    assert {case["series"] for case in [*cases, *later]} == {2}
    plain = study("s", "Is it?", (part("one"),)).chunks("quick")[0].cases[0]
    assert plain.random_seed("seed") != cases[0].random_seed("seed")


def test_parts_differ_in_name_and_share_their_sizes() -> None:
    with pytest.raises(StudyError, match="two of its parts have one name"):
        study("s", "Is it?", (part("one"), part("one")))
    with pytest.raises(StudyError, match="one Part or more"):
        study("s", "Is it?", ())
    other = Part("two", (), {"quick": {"widths": (1,)}}, grids, run, analyse)
    with pytest.raises(StudyError, match="different sizes"):
        study("s", "Is it?", (part("one"), other))


def test_a_part_whose_analysis_raises_costs_its_own_answers_alone() -> None:
    def broken(rows: pd.DataFrame) -> Iterator[Answer]:
        yield "Said before it broke."
        raise ZeroDivisionError(rows.columns[0])

    whole = study("s", "Is it?", (part("one"), Part("two", (B,), SIZES, grids, run, broken)))
    cases = [case for chunk in whole.chunks("quick") for case in chunk.cases]
    findings = whole.analyse(frame_of(cases))
    assert [verdict.status for verdict in findings.verdicts] == [Status.HOLDS, Status.INCONCLUSIVE]
    assert findings.verdicts[1].why == "the analysis of the part two failed: ZeroDivisionError: part"
    assert findings.answers == ("A sentence.", "Said before it broke.")
    assert [type(error) for error in findings.errors] == [ZeroDivisionError]


@pytest.mark.parametrize(
    ("answers", "problem", "why"),
    [
        ([Verdict("s/bb", "b", Status.HOLDS)], "verdict on 's/bb' is none.*; did you mean 's/b'", "failed: StudyError"),
        (None, "its analyse returned a NoneType, where answers belong", "failed: StudyError: part 'two'"),
        ([7], "a int is neither a verdict, a .name, table., nor a sentence", "failed: StudyError: part 'two'"),
        ([], "", "the analysis of the part two gave no verdict on it"),
    ],
)
def test_an_analysis_that_gives_no_verdict_says_why(answers: Any, problem: str, why: str) -> None:
    whole = study("s", "Is it?", (part("one"), Part("two", (B,), SIZES, grids, run, lambda _: answers)))
    findings = whole.analyse(frame_of([case for chunk in whole.chunks("quick") for case in chunk.cases]))
    assert findings.verdicts[0].status is Status.HOLDS
    assert why in findings.verdicts[1].why
    problems = [str(error) for error in findings.errors]
    assert len(problems) == bool(problem)
    assert all(re.search(problem, line) for line in problems)


def test_a_figure_whose_table_no_analysis_yields_is_told() -> None:
    @drawing.figure("wrong", "Sums", "")
    def wrong(sum: pd.DataFrame) -> None: ...  # noqa: A002 - a table's name

    @drawing.figure("sums", "Sums", "")
    def right(sums: pd.DataFrame) -> None: ...

    whole = study("s", "Is it?", (part("one", figures=(wrong, right)),))
    cases = [case for chunk in whole.chunks("quick") for case in chunk.cases]
    (figure,) = whole.plot(whole.analyse(frame_of(cases)))
    assert figure.canvas is None
    assert figure.title == "figure 'wrong' is of a table 'sum' that no analysis yields; did you mean 'sums'?"
    some = frame_of(cases).assign(status=["ok"] * 9 + ["error"])
    assert not list(whole.plot(whole.analyse(some)))  # it may be the table of what failed


def test_two_tables_of_one_name_are_told_and_the_first_is_kept() -> None:
    first, second = pd.DataFrame({"x": [1]}), pd.DataFrame({"x": [2]})
    parts = (Part("one", (A,), SIZES, grids, run, lambda _: [("sums", first)]),
             Part("two", (B,), SIZES, grids, run, lambda _: [("sums", second)]))  # fmt: skip
    whole = study("s", "Is it?", parts)
    findings = whole.analyse(frame_of([case for chunk in whole.chunks("quick") for case in chunk.cases]))
    assert findings.tables["sums"] is first
    assert [str(error) for error in findings.errors] == ["two tables are named 'sums', of which the second is left out"]


def test_figures_that_cannot_be_drawn_cost_no_other() -> None:
    @drawing.figure("broken", "Sums", "")
    def broken(sums: pd.DataFrame) -> None:
        raise KeyError("sigma_w")

    @drawing.figure("drawn", "Sums", "")
    def drawn(sums: pd.DataFrame) -> object:
        return drawing.panels(sums.assign(x=range(len(sums))), "", lambda axis, own, **_: axis.plot(own["x"]))

    whole = study("s", "Is it?", (part("one", figures=(broken, drawn, broken)), part("two", figures=(drawn,))))
    cases = [case for chunk in whole.chunks("quick") for case in chunk.cases]
    figures = whole.plot(whole.analyse(frame_of(cases)))
    assert [next(figures).name, next(figures).name] == ["drawn", "drawn"]
    with pytest.raises(ExceptionGroup) as raised:
        next(figures)
    assert [type(error) for error in raised.value.exceptions] == [KeyError, KeyError]


def test_a_claim_that_is_named_for_a_misspelt_study_is_refused() -> None:
    with pytest.raises(StudyError, match="its claim is 'nois/a'; did you mean 'noise/a'"):
        study("noise", "Is it?", (part("one", (Claim("nois/a", "a"),)),))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"name": 3}, "no lower-case identifier"),
        ({"run": None}, "its run is a NoneType, which cannot be called"),
        ({"second": 3}, "its second is a int"),
        ({"claims": A}, "its claims are no tuple of Claims"),
        ({"figures": analyse}, "its figures are no tuple"),
        ({"shown": "sums"}, "its shown are no tuple of texts"),
        ({"method": None}, "its method is text"),
        ({"grids": lambda depths: []}, "size 'quick': grids.depths. cannot be called with widths: missing a"),  # noqa: ARG005
        ({"second": lambda rows: []}, "second.rows. cannot be called with widths: got an unexp"),  # noqa: ARG005
        ({"grids": lambda widths: None}, "its grids returned a NoneType, where Grids belong"),  # noqa: ARG005
        ({"grids": lambda widths: "x"}, "its grids returned a str"),  # noqa: ARG005
    ],
)
def test_a_declaration_that_cannot_be_is_refused_in_a_sentence(change: dict[str, Any], why: str) -> None:
    with pytest.raises(StudyError, match=why):
        study("s", "Is it?", (replace(part("one"), **change),))


def test_a_size_is_a_tuple_of_as_many_values_as_names() -> None:
    with pytest.raises(StudyError, match="has 1 values for 2 names"):
        sizes("a b", quick=(1,))
    with pytest.raises(StudyError, match="is a int, where a tuple of 1 belongs"):
        sizes("a", quick=5)  # type: ignore[arg-type]  # as a user may write it
