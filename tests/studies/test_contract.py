"""The contract of a study of parts, tested once for all: every part at its tiny size, run, analysed and drawn."""

from __future__ import annotations

import inspect
import itertools
import math
import pickle
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.figure
import numpy as np
import pandas as pd
import pytest
import torch

from depthgauge import running, store
from depthgauge.discovery import discover
from depthgauge.parts import TINY, Analysis, Part
from depthgauge.reports import style
from depthgauge.study import Case, Context, Grid, Rows, Study
from depthgauge.verdict import Findings, Sentence, Status, Verdict

Tidy = Callable[..., pd.DataFrame]

HERE = Context()
LONGEST = 260  # lines of a part's file
PANELS = 6
STUDIES: Mapping[str, Study] = {found.name: found.load() for found in discover()}
PARTS: Mapping[tuple[str, str], Part] = {
    (name, part.name): part for name, study in STUDIES.items() for part in study.parts if isinstance(part, Part)
}

every_study = pytest.mark.parametrize("name", STUDIES)
every_part = pytest.mark.parametrize(("name", "part"), PARTS)


@dataclass(frozen=True)
class Tried:
    """A part that was run at its tiny size."""

    grids: tuple[Grid, ...]
    rows: tuple[Rows, ...]

    @property
    def cases(self) -> tuple[Case, ...]:
        """Every case, in order."""
        return tuple(case for grid in self.grids for case in grid.cases())


def run(name: str, grids: Iterable[Grid]) -> tuple[Rows, ...]:
    chunks = [chunk for grid in grids for chunk in grid.chunks(name)]
    return tuple(row for chunk in chunks for row in STUDIES[name].run(chunk.cases, HERE))


@cache
def tried(name: str, part: str) -> Tried:
    """Run once in this process, whoever asks."""
    grids = PARTS[name, part].at(TINY)
    return Tried(grids, run(name, grids))


def parts_of(name: str) -> list[str]:
    return [part for study, part in PARTS if study == name]


@cache
def frames(name: str, tidy: Tidy) -> pd.DataFrame:
    return tidy([row for part in parts_of(name) for row in tried(name, part).rows])


@cache
def findings(name: str, tidy: Tidy) -> Findings:
    return STUDIES[name].analyse(frames(name, tidy))


def drawn(name: str, of: Findings) -> list[str]:
    """Names of the figures; each is drawn to its file's bytes, warnings as errors."""
    names = []
    with style.drawing(), mpl.rc_context({"savefig.dpi": 50}):  # a ninth of the pixels: all has its place before
        for figure in STUDIES[name].plot(of):
            canvas = figure.canvas
            assert isinstance(canvas, matplotlib.figure.Figure)
            assert style.png(canvas).startswith(b"\x89PNG")
            assert figure.title
            assert figure.caption
            names.append(figure.name)
    return names


def place(row: Rows) -> tuple[str, ...]:
    """What tells a measured column from every other of its chunk."""
    return tuple(map(str, (row.case.id, row.metric, row.layer, row.layer_index, row.direction, row.step)))


def by_place(rows: Iterable[Rows]) -> dict[tuple[str, ...], Any]:
    """Measured columns by their `place`."""
    return {place(row): row.value for row in rows}


# -- declarations ------------------------------------------------------------------------------------------------------


@every_part
def test_a_part_is_one_file_of_its_own_in_four_sizes(name: str, part: str) -> None:
    declared = PARTS[name, part]
    assert set(declared.sizes) == {"quick", "standard", "full", TINY}
    assert declared.method.strip()
    files = {inspect.getsourcefile(inspect.unwrap(function)) for function in (declared.grids, declared.analyse)}
    assert len(files) == 1
    (file,) = files
    assert file is not None
    assert len(Path(file).read_text(encoding="utf-8").splitlines()) <= LONGEST
    assert sum(sys.modules[declared.analyse.__module__].__dict__.get("PART") is p for p in PARTS.values()) <= 1


@every_part
def test_every_grid_of_a_part_is_tried_at_its_tiny_size(name: str, part: str) -> None:
    """As many kinds of cases, by the names of their parameters, as at the other sizes."""

    def kinds(size: str) -> set[frozenset[str]]:
        return {frozenset({*grid.varied, *grid.fixed}) for grid in PARTS[name, part].at(size)}

    assert kinds(TINY) == kinds("standard")
    assert all(grid.seeds == 0 or grid.seeds >= 5 for grid in PARTS[name, part].at(TINY))


@every_study
def test_a_listing_reads_every_claim_from_the_source(name: str) -> None:
    (found,) = (each for each in discover() if each.name == name)
    assert [claim.id for claim in found.claims] == [claim.id for claim in STUDIES[name].claims]


# -- measuring ---------------------------------------------------------------------------------------------------------


@every_part
def test_every_row_belongs_to_its_case(name: str, part: str) -> None:
    rows, cases = tried(name, part).rows, tried(name, part).cases
    assert {row.case for row in rows} == set(cases)
    for row in rows:
        if row.layer_index is not None and np.ndim(row.layer_index):
            assert np.size(row.layer_index) == np.size(row.value)
    pickle.dumps(rows)


def still(name: str, part: str) -> tuple[tuple[Grid, ...], set[Case]]:
    """The grids of a part that read no clock, and their cases."""
    grids = tuple(grid for grid in PARTS[name, part].at(TINY) if not grid.exclusive)
    return grids, {case for grid in grids for case in grid.cases()}


@pytest.mark.slow
@every_part
def test_running_twice_gives_the_same_rows(name: str, part: str) -> None:
    quiet = [grid for grid in PARTS[name, part].at(TINY) if not grid.exclusive]
    if not quiet:
        pytest.skip("a clock is read")
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002 - the global state that a run must not look at
    first = by_place(tried(name, part).rows)
    for grid in quiet:
        chunk = next(iter(grid.chunks(name)))
        for row in STUDIES[name].run(chunk.cases, HERE):
            np.testing.assert_array_equal(row.value, first[place(row)])


@pytest.mark.slow
@every_part
def test_a_case_does_not_depend_on_its_neighbours(name: str, part: str) -> None:
    """Alone it is what it was among others, up to the order in which a batched product sums."""
    quiet = [case for grid in PARTS[name, part].at(TINY) if not grid.exclusive for case in grid.cases()]
    if not quiet:
        pytest.skip("a clock is read")
    beside = by_place(tried(name, part).rows)
    for case in quiet[::11][:3]:
        for row in STUDIES[name].run((case,), HERE):
            np.testing.assert_allclose(row.value, beside[place(row)], rtol=2e-3, atol=1e-3)  # of figures about 1


@every_study
def test_a_frame_of_these_tests_is_what_the_store_gives_back(name: str, tidy: Tidy, tmp_path: Path) -> None:
    grids, cases = next(found for found in map(partial(still, name), parts_of(name)) if 0 < len(found[1]) < 200)
    part = next(iter(cases)).text("part")
    study = replace(STUDIES[name], presets={"quick": grids}, second=None)
    running.run(study, out=tmp_path, workers=0)
    stored = store.read(tmp_path).frame(name)
    rows = [row for row in tried(name, part).rows if row.case in cases]
    ours = tidy(rows).fillna(np.nan)  # a coordinate that no row names is a column of NaN
    pd.testing.assert_frame_equal(ours, stored, check_dtype=False, check_column_type=False)
    assert repr(study.analyse(stored).verdicts) == repr(study.analyse(ours).verdicts)


@dataclass(frozen=True)
class Apart:
    """Rows that are had part by part, as from the files of a run: a part's have its own parameters alone."""

    name: str
    tidy: Tidy
    whole: bool = True

    def asked(self, part: str) -> bool:
        return bool(tried(self.name, part).rows)

    def measured(self, part: str, *, by_case: bool = False) -> pd.DataFrame:
        rows = self.tidy(tried(self.name, part).rows)
        return rows.sort_values("case", kind="stable") if by_case else rows


@every_study
def test_parts_had_one_by_one_find_what_they_find_beside_the_others(name: str, tidy: Tidy) -> None:
    study, together = STUDIES[name], findings(name, tidy)
    assert isinstance(study.analyse, Analysis)
    apart = study.analyse.of(Apart(name, tidy))
    assert not apart.errors
    assert repr(apart.verdicts) == repr(together.verdicts)
    assert list(apart.tables) == list(together.tables)


# -- answering ---------------------------------------------------------------------------------------------------------


@every_study
def test_every_claim_gets_one_verdict_in_order(name: str, tidy: Tidy) -> None:
    claims = STUDIES[name].claims
    assert [(verdict.id, verdict.claim) for verdict in findings(name, tidy).verdicts] == [
        (c.id, c.text) for c in claims
    ]
    for verdict in findings(name, tidy).verdicts:
        assert verdict.why
        if verdict.status in {Status.HOLDS, Status.FAILS, Status.DEPENDS}:
            assert verdict.method, verdict.id
            assert verdict.observed is not None, verdict.id
            assert verdict.n >= 1
    assert not findings(name, tidy).errors  # a part that only fails beside the others' columns
    assert set(findings(name, tidy).shown) <= set(findings(name, tidy).tables)
    assert len(set(findings(name, tidy).answers)) == len(findings(name, tidy).answers) > 0


def stands_in_its_table(verdict: Verdict, tables: Mapping[str, pd.DataFrame]) -> bool:
    """Whether one row of the verdict's table has its figure, both ends of its interval, and its answer."""
    table = tables[verdict.table]
    row = (table["value"] == verdict.observed) & (table["answer"] == verdict.answer)
    for end in ("low", "high"):
        wanted = getattr(verdict, end)
        if wanted is not None:
            (column,) = (column for column in table if str(column).startswith(f"{end}_") and str(column)[-1].isdigit())
            row &= (table[column] == wanted) | (table[column].isna() & math.isnan(wanted))
    return bool(row.any())


@every_study
def test_the_figure_of_every_verdict_stands_in_a_table_of_the_report(name: str, tidy: Tidy) -> None:
    tables = findings(name, tidy).tables
    for verdict in findings(name, tidy).verdicts:
        if verdict.observed is not None and not math.isnan(verdict.observed):
            assert verdict.table in tables, f"{verdict.id} names the table {verdict.table!r}"
            assert stands_in_its_table(verdict, tables), f"{verdict.id} is no row of {verdict.table}"


@every_study
def test_an_interval_names_its_level(name: str, tidy: Tidy) -> None:
    for table_name, table in findings(name, tidy).tables.items():
        if "answer" in table:
            assert not {"low", "high"} & set(table), table_name


@every_study
def test_analysis_is_a_pure_function_of_its_frame(name: str, tidy: Tidy) -> None:
    before = frames(name, tidy).copy(deep=True)
    again = STUDIES[name].analyse(frames(name, tidy))
    pd.testing.assert_frame_equal(frames(name, tidy), before)
    assert repr(again.verdicts) == repr(findings(name, tidy).verdicts)  # by their spelling: NaN is not itself
    assert again.answers == findings(name, tidy).answers
    assert list(again.tables) == list(findings(name, tidy).tables)
    for table_name, table in findings(name, tidy).tables.items():
        pd.testing.assert_frame_equal(again.tables[table_name], table)


def test_of_nothing_nothing_is_said() -> None:
    columns = ("case", "layer", "layer_index", "direction", "step", "metric", "value", "status", "message")
    nothing = pd.DataFrame({name: pd.Series(dtype="float64" if name == "value" else "object") for name in columns})
    for name, study in STUDIES.items():
        answer = study.analyse(nothing)
        assert {verdict.status for verdict in answer.verdicts} == {Status.NOT_MEASURED}
        assert drawn(name, answer) == []


@pytest.mark.slow
@every_part
def test_cases_that_failed_spoil_no_other(name: str, part: str, tidy: Tidy) -> None:
    """The first case of the part failed, then the second half, then all."""
    rows, cases = tried(name, part).rows, tried(name, part).cases
    study = STUDIES[name]
    for gone in (cases[:1], cases[len(cases) // 2 :], cases):
        lost = set(gone)
        failed = dict(zip(gone, itertools.cycle(("error", "timeout", "lost")), strict=False))
        answer = study.analyse(tidy([row for row in rows if row.case not in lost], failed))
        assert len(answer.verdicts) == len(study.claims)
    assert {verdict.status for verdict in answer.verdicts} == {Status.NOT_MEASURED}


@pytest.mark.slow
@every_part
def test_a_second_stage_follows_from_the_first_and_can_be_run(name: str, part: str, tidy: Tidy) -> None:
    declared = PARTS[name, part]
    if declared.second is None:
        pytest.skip("it has none")
    rows = tidy(tried(name, part).rows)
    grids = declared.after(TINY, rows)
    assert repr(grids) == repr(declared.after(TINY, rows.iloc[::-1]))  # of the rows, not of their order
    first = {case.id for case in tried(name, part).cases}
    further = [case for grid in grids for case in grid.cases()]
    assert not first & {case.id for case in further}
    if further:
        found = STUDIES[name].analyse(tidy([*tried(name, part).rows, *run(name, grids)]))
        assert len(found.verdicts) == len(STUDIES[name].claims)
        assert not declared.figures or drawn(name, found)  # some wait for the second stage


# -- drawing -----------------------------------------------------------------------------------------------------------


@every_study
def test_every_figure_is_drawn_once(name: str, tidy: Tidy) -> None:
    names = drawn(name, findings(name, tidy))
    assert len(set(names)) == len(names) >= len(parts_of(name)) / 2


@every_study
def test_sentences_name_figures_and_claims_that_the_study_declares(name: str, tidy: Tidy) -> None:
    told = [answer for answer in findings(name, tidy).answers if isinstance(answer, Sentence)]
    declared = {getattr(draw, "__name__", "") for part in STUDIES[name].parts for draw in part.figures}
    assert {answer.figure for answer in told} - {""} <= declared
    assert {claim for answer in told for claim in answer.claims} <= {claim.id for claim in STUDIES[name].claims}
