"""Costs of studies: what is known of parts, scaled to what is asked."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from depthgauge import costs, runfile, running
from depthgauge.costs import Part
from depthgauge.discovery import discover
from depthgauge.folder import Folder
from depthgauge.runfile import StoreError
from depthgauge.study import Grid, Study
from depthgauge.verdict import Findings


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
