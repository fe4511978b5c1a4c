"""Rows read part by part are those of the whole: the same values, of the same types, in the same order."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from depthgauge import running, store
from depthgauge.parts import Analysis, Answer, Part, SecondStage, sizes, study
from depthgauge.request import Request
from depthgauge.study import Case, Context, Grid, Rows, Study, StudyError
from depthgauge.verdict import Findings

SIZES = sizes("n", quick=(2,))
ALIVE: list[weakref.ref[pd.DataFrame]] = []


def grids(n: int) -> Iterator[Grid]:
    yield Grid({"width": (8, 2)}, {"kind": "a,b"}, n, chunk=3)


def others(n: int) -> Iterator[Grid]:
    yield Grid({"width": (1.5, 4), "flag": (True, None), "only": (1, 2)}, seeds=n, chunk=3)


def run(cases: Sequence[Case], _: Context) -> Iterator[Rows]:
    for case in cases:
        if case.get("flag") and case["width"] == 4:
            raise ValueError("no such width")
        yield case.rows("diverged", float(case.get("only") == 2))
        yield case.rows("loss", [1.0, float("nan")], layer=["in", "out"], layer_index=[0, 1], step=range(2))


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    assert not [name for ref in ALIVE if (other := ref()) is not None for name in other["part"]]
    ALIVE.append(weakref.ref(rows))
    name = rows["part"].iloc[0]
    yield f"rows_{name}", pd.DataFrame(rows[["case", "metric", "width", "value"]])
    if name == "two":
        raise RuntimeError("a slip")


def second(rows: pd.DataFrame, n: int) -> Iterator[Grid]:
    assert rows["case"].is_monotonic_increasing
    assert set(rows["part"]) == {"one"}
    yield Grid({"width": (int(rows["width"].max()) * 2,)}, {"kind": "c"}, n)


def made(**more: object) -> Study:
    one = Part("one", (), SIZES, grids, run, analyse, second=second)
    parts = (one, Part("two", (), SIZES, others, run, analyse), Part("three", (), SIZES, lambda n: (), run, analyse))  # noqa: ARG005 - as `grids`
    return replace(study("split", "Is it?", parts), **more)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> store.Stored:
    return running.run(made(), out=tmp_path_factory.mktemp("run"), workers=0).stored


def test_a_part_has_the_rows_and_the_types_of_the_whole_and_its_own_parameters(stored: store.Stored) -> None:
    whole, rows = stored.frame("split"), stored.rows("split")
    for part, absent in (("one", {"flag", "only"}), ("two", {"kind"})):
        chosen = whole[(whole["part"] == part) & (whole["status"] == "ok")]
        own = rows.measured(part)
        pd.testing.assert_frame_equal(own, chosen[[n for n in whole if n not in absent]].reset_index(drop=True))
        assert {*whole} - {*own} == absent
    assert rows.measured("three").empty
    assert not rows.asked("three")
    everything = rows.frame()
    pd.testing.assert_frame_equal(everything, whole)
    in_order = rows.frame(by_case=True, ok=True)
    expected = whole[whole["status"] == "ok"].sort_values("case", kind="stable", ignore_index=True)
    pd.testing.assert_frame_equal(in_order, expected)


def test_what_the_files_hold_is_known_from_one_pass(stored: store.Stored) -> None:
    whole, rows = stored.frame("split"), stored.rows("split")
    assert rows.cases == whole["case"].nunique()
    broken = whole.loc[whole["status"] != "ok", ["case", "status", "message"]]
    assert len(broken) > 2
    assert not rows.whole
    pd.testing.assert_frame_equal(rows.broken, broken.reset_index(drop=True))
    assert rows.diverged == whole["case"][(whole["metric"] == "diverged") & (whole["value"] > 0)].nunique()
    assert rows.finite == {part: (len(own), True) for part, own in whole[whole["status"] == "ok"].groupby("part")}
    assert rows.measured_rows == (whole["status"] == "ok").sum()


def test_findings_are_those_of_one_frame_and_a_part_is_let_go_before_the_next(stored: store.Stored) -> None:
    analysis = made().analyse
    assert isinstance(analysis, Analysis)
    ALIVE.clear()
    parted = analysis.of(stored.rows("split"))
    assert len(ALIVE) == 2
    assert all(ref() is None for ref in ALIVE), "what an analysis raised holds its rows"
    ALIVE.clear()
    whole: Findings = analysis(stored.frame("split"))
    assert parted.whole == whole.whole is False
    assert list(map(str, parted.errors)) == list(map(str, whole.errors)) == ["a slip"]
    assert list(parted.tables) == list(whole.tables) == ["rows_one", "rows_two"]
    for name, table in parted.tables.items():
        pd.testing.assert_frame_equal(table, whole.tables[name].reset_index(drop=True))


def test_a_second_stage_asks_the_same_of_one_frame(stored: store.Stored) -> None:
    stage = made().second
    assert isinstance(stage, SecondStage)
    assert stage("quick", stored.frame("split")) == stage.of("quick", stored.rows("split"))
    assert [case["width"] for case in stage("quick", stored.frame("split"))[0].cases()] == [32, 32]
    assert "kind=c" in "".join(stored.chunks("split")), "the run has asked it, too"


def test_one_frame_is_read_for_what_is_no_study_of_parts(tmp_path: Path) -> None:
    def further(_: str, rows: pd.DataFrame) -> Iterator[Grid]:
        assert rows["case"].is_monotonic_increasing
        yield Grid({"width": (3,)}, {"part": "one"}, 2)

    with pytest.raises(StudyError, match="its second stage raised StudyError: mine"):
        running.run(made(second=_raising), out=tmp_path / "raises", workers=0, request=Request(seeds=1))
    done = running.run(made(second=further), out=tmp_path / "asks", workers=0, request=Request(seeds=1))
    assert 3 in set(done.stored.frame("split")["width"])


def _raising(_: str, __: pd.DataFrame) -> Iterator[Grid]:
    raise StudyError("mine")
