"""Costs of studies: what is known of parts, scaled to what is asked."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from depthgauge import costs, runfile, running, store
from depthgauge.costs import Part
from depthgauge.discovery import discover
from depthgauge.folder import Folder
from depthgauge.progress import Progress
from depthgauge.runfile import StoreError
from depthgauge.study import Grid, Study
from depthgauge.verdict import Findings
from depthgauge.version import SCHEMA


def _study(**presets: tuple[Grid, ...]) -> Study:
    return Study(
        "mine", "Does it?", presets, run=lambda *_: (), analyse=lambda _: Findings(verdicts=()), plot=lambda _: ()
    )


STUDY = _study(
    quick=(Grid({"width": (1, 2)}, {"part": "a"}, seeds=5), Grid({"side": (1,)}, {"part": "b"})),
    standard=(Grid({"width": (1, 2)}, {"part": "a"}, seeds=50), Grid({"side": (1,)}, {"part": "b"})),
)
TABLE = {"mine": {"quick": {"a": Part(cases=10, seconds=8.0, second=4.0), "b": Part(cases=1, alone=3.0)}}}


def test_estimate_of_what_was_measured() -> None:
    found = costs.estimate(STUDY, "quick", workers=2, table=TABLE)
    assert found == costs.Estimate((8 + 4) / 2 + 3)
    assert costs.estimate(STUDY, "quick", workers=2, table=TABLE, speed=3.0) == costs.Estimate(3.0)


def test_estimate_scales_with_seeds_where_they_repeat() -> None:
    found = costs.estimate(STUDY, "quick", seeds=20, workers=1, table=TABLE)
    assert found == costs.Estimate(4 * (8 + 4) + 3)  # the part without seeds stays


def test_a_larger_preset_that_was_never_measured_gives_a_bound() -> None:
    found = costs.estimate(STUDY, "standard", workers=1, table=TABLE)
    assert found == costs.Estimate(10 * (8 + 4) + 3, least=True)
    assert costs.estimate(STUDY, "standard", table={}) is None


def test_the_first_table_that_knows_a_preset_counts() -> None:
    other = {"mine": {"quick": {"a": Part(1, 1.0)}, "standard": {"a": Part(1, 2.0)}}}
    both = costs.joined(TABLE, other)
    assert both["mine"]["quick"] == TABLE["mine"]["quick"]
    assert both["mine"]["standard"] == other["mine"]["standard"]
    assert costs.read(costs.told(both)) == both


def test_published_costs_know_every_study_and_part_at_quick_and_standard() -> None:
    for found in discover():
        known, study = costs.published()[found.name], found.load()
        for preset in ("quick", "standard"):
            assert known[preset].keys() == costs.cases(study.presets[preset]).keys(), (found.name, preset)
        budgets = costs.estimate(study, "quick"), costs.estimate(study, "standard")
        assert all(budget and not budget.least and budget.seconds > 1 for budget in budgets)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "about 1 s"), (7.4, "about 7 s"), (38, "about 40 s"), (140, "about 2 min"), (750, "about 12 min"),
        (2000, "about 35 min"), (5400, "about 1 h 30 min"), (7300, "about 2 h"), (60_000, "about 17 h"),
    ],
)  # fmt: skip
def test_words_are_as_exact_as_an_estimate(seconds: float, words: str) -> None:
    assert costs.words(seconds) == words


def test_speed_is_a_positive_number_found_once() -> None:
    assert 0.01 < costs.speed() < 100
    assert costs.speed() is costs.speed()


def test_a_run_notes_what_it_cost_and_the_next_one_knows(tmp_path: Path) -> None:
    sources = [str(Path(__file__).parent / "engine_studies" / "refine.py")]
    run = partial(running.run, "refine", workers=0, sources=sources)
    outcome = run(out=tmp_path / "first")
    (cost,) = runfile.known_costs(tmp_path / "second", "cpu")["refine"]["quick"].values()
    assert cost.cases == 12  # those of the first stage
    assert cost.seconds > 0
    noted = outcome.stored.run["costs"]
    (part,) = noted["refine"]["quick"].values()
    assert {"cases", "seconds", "second"} <= set(part)  # a short stage may round to 0 s
    again = run(out=tmp_path / "first")
    assert again.stored.run["costs"] == noted  # nothing was measured
    seen: list[float | None] = []
    run(out=tmp_path / "second", observe=lambda progress: seen.append(progress.left))
    assert seen[0] is not None  # before the first chunk


def test_a_second_stage_is_scaled_by_the_whole_first_one_however_little_of_it_was_measured() -> None:
    part = Part(cases=2, seconds=1.0, second=30.0, whole=100)
    assert costs.expected("mine", "quick", {"": 100}, {"mine": {"quick": {"": part}}}) == (
        {"": Part(cases=100, seconds=50.0, second=30.0)},
        False,
    )
    foreign = costs.of_studies(["mine"], "quick", {"mine": {"quick": {"": part}}}, 2)
    assert foreign == pytest.approx((50 + 30) / 2 / costs.speed())
    other = {"": 50, "more": 50}  # a part that was never measured is taken for like the rest
    (parts, least) = costs.expected("mine", "quick", other, {"mine": {"quick": {"": part}}}) or ({}, False)
    assert least
    assert sum(cost.second for cost in parts.values()) == pytest.approx(30.0)


def test_a_second_stage_alone_tells_nothing() -> None:
    alone = {"mine": {"quick": {"": Part(second=30.0, whole=100)}}}
    assert costs.expected("mine", "quick", {"": 100}, alone) is None
    assert costs.joined(alone, TABLE)["mine"]["quick"] == TABLE["mine"]["quick"]


def test_costs_add_up_over_the_runs_of_one_request_alone() -> None:
    first, then = {"": Part(cases=3, seconds=1.0, whole=10)}, {"": Part(cases=7, seconds=2.0, second=4.0, whole=10)}
    assert costs.resumed(first, then) == {"": Part(cases=10, seconds=3.0, second=4.0, whole=10)}
    more = {"": Part(cases=10, seconds=5.0, whole=20)}
    assert costs.resumed(first, more) == more
    assert costs.resumed({}, first) == first


def test_what_a_run_spent_that_was_stopped_adds_to_what_it_costs_in_the_end(tmp_path: Path) -> None:
    sources = [str(Path(__file__).parent / "engine_studies" / "refine.py")]
    run = partial(running.run, "refine", out=tmp_path, workers=0, sources=sources)
    spent: list[Part] = []
    for stop in (3, 8):  # of 6 chunks of the first stage, then of 6 of the second

        def observe(progress: Progress, stop: int = stop) -> None:
            if progress.done == stop:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(observe=observe)
        stored = store.read(tmp_path).run
        assert "costs" not in stored  # which tell whole studies
        spent += costs.read(stored["spent"])["refine"]["quick"].values()
    noted = run().stored.run
    (cost,) = costs.read(noted["costs"])["refine"]["quick"].values()
    assert [part.cases for part in (*spent, cost)] == [6, 12, 12]
    assert cost.whole == 12
    assert cost.seconds == spent[1].seconds >= spent[0].seconds
    assert cost.second >= spent[1].second
    assert noted["spent"] == {}


def test_a_directory_tells_whether_a_study_was_begun_in_it(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(
        f'{{"schema": {SCHEMA}, "request": {{"a": {{}}}}, "fingerprint": {{}}, "chunks": {{}}}}'
    )
    assert runfile.begun(tmp_path, ["b", "a"])
    assert not runfile.begun(tmp_path, ["b"])
    assert not runfile.begun(tmp_path / "nowhere", ["a"])


def test_costs_that_somebody_edited_are_refused(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(
        '{"schema": 1, "request": {}, "fingerprint": {"device": "cpu"}, "chunks": {},'
        ' "costs": {"a": {"quick": {"": {"seconds": -1}}}}}'
    )
    assert "a" not in runfile.known_costs(tmp_path, "cpu")
    with Folder.open(tmp_path) as folder, pytest.raises(StoreError, match="'costs' is not what depthgauge writes"):
        runfile.load(folder)


def test_a_run_of_few_cases_is_no_whole_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "speed", lambda: 1.0)
    (name, presets), *_ = costs.published().items()
    twentieth = {part: cost * 0.05 for part, cost in presets["quick"].items()}
    whole = costs.of_studies([name], "quick", costs.published(), 2)
    assert costs.of_studies([name], "quick", {name: {"quick": twentieth}}, 2) == pytest.approx(whole)
