"""What would settle a claim: seeds where they count, a preset where it has them, and nothing where nothing does."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import pandas as pd
import pytest

from depthgauge import costs
from depthgauge.reports.settling import Asked, Settling, outlook, settle, settling
from depthgauge.study import Case, Context, Grid, Rows, Study
from depthgauge.verdict import Claim, Figure, Findings, Status, Verdict

ASKED = Asked("settled", "quick")
UNDECIDED = Verdict("a", "it is so", Status.INCONCLUSIVE, 1.1, 0.9, 1.3, 1.0, n=8, method="t")


def _run(cases: Sequence[Case], context: Context) -> Iterable[Rows]:
    raise NotImplementedError


def _analyse(frame: pd.DataFrame) -> Findings:
    raise NotImplementedError


def _plot(findings: Findings) -> Iterable[Figure]:
    raise NotImplementedError


def _study(**seeds: tuple[int, int]) -> Study:
    """Presets by the seeds that they ask claim `a` and claim `b` with; 0 leaves a claim out."""
    presets = {
        preset: tuple(
            Grid({"depth": (1, 2)}, {"of": claim}, count, claims=(claim,))
            for claim, count in zip("ab", counts, strict=True)
            if count
        )
        for preset, counts in seeds.items()
    }
    claims = Claim("a", "it is so"), Claim("b", "that is so")
    return Study("settled", "Is it so?", presets, _run, _analyse, _plot, claims=claims)


STUDY = _study(quick=(8, 0), standard=(16, 300), full=(40, 1_000))


@pytest.mark.parametrize(
    ("needed", "preset", "words"),
    [(12, "standard", "About 12 seeds"), (17, "full", "full has 40"), (0, "standard", "16 seeds in place of 8")],
)
def test_the_smallest_preset_with_as_many_seeds_settles_it(needed: int, preset: str, words: str) -> None:
    settled = settle(replace(UNDECIDED, needed=needed), STUDY, ASKED)
    assert words in settled.text
    assert settled.command == f"depthgauge run settled --preset {preset}"


def test_seeds_are_asked_for_by_number_where_no_preset_has_them() -> None:
    settled = settle(replace(UNDECIDED, needed=55), STUDY, replace(ASKED, preset="full", seeds=8))
    assert settled.command == "depthgauge run settled --preset full --seeds 55"
    assert "the study's other questions get 55, too" in settled.text  # and not their 1,000
    unknown = settle(UNDECIDED, STUDY, replace(ASKED, preset="full", seeds=8))
    assert unknown.command.endswith("--seeds 32")
    assert "four times as many" in unknown.text


def test_a_rate_at_the_end_of_its_grid_takes_a_wider_grid_and_no_seeds() -> None:
    def preset(*rates: float) -> tuple[Grid, ...]:
        return (Grid({"lr": rates}, {}, 8, claims=("a",)),)

    study = replace(STUDY, presets={"quick": preset(0.1, 0.3), "standard": preset(0.1, 0.3), "full": preset(0.01, 0.3)})
    settled = settle(replace(UNDECIDED, at_edge="batch 8"), study, ASKED)
    assert "wider grid of learning rates, not more seeds" in settled.text
    assert "batch 8. The preset full has 0.01 to 0.3" in settled.text
    assert settled.command == "depthgauge run settled --preset full"
    last = settle(replace(UNDECIDED, at_edge="batch 8"), study, replace(ASKED, preset="full"))
    assert (last.command, "seeds in place" in last.text) == ("", False)


def test_needed_counts_what_n_counts() -> None:
    """24 networks of 8 seeds: 48 of them are 16 seeds."""
    settled = settle(replace(UNDECIDED, n=24, counted="networks", needed=48), STUDY, ASKED)
    assert "About 16 seeds in place of 8" in settled.text
    assert settled.command.endswith("standard")


@pytest.mark.parametrize(("n", "needed"), [(2, 0), (8, 3), (8, -1)])
def test_what_is_proposed_is_more_than_was_run(n: int, needed: int) -> None:
    """Two pairs of 8 seeds: 20 seeds give five of them. A projection below what there is says nothing."""
    settled = settle(replace(UNDECIDED, n=n, needed=needed), _study(quick=(8, 0)), ASKED)
    assert settled.seeds == (20 if n == 2 else 32)
    assert "About" not in settle(replace(UNDECIDED, needed=needed, counted="rounds"), STUDY, ASKED).text


@pytest.mark.parametrize("counted", ["seeds", "rounds"])
def test_an_effect_too_near_its_margin_gets_no_command(counted: str) -> None:
    settled = settle(replace(UNDECIDED, needed=8_000, counted=counted), STUDY, ASKED)
    assert settled.text.startswith(f"About 8,000 {counted} would")
    assert settled == Settling(settled.text)
    assert "1,000 times as many" in settled.text


@pytest.mark.parametrize("counted", ["rounds", "architectures", "seeds that choose"])
def test_no_seeds_are_asked_for_where_they_do_not_count(counted: str) -> None:
    verdict = replace(UNDECIDED, counted=counted, needed=30)
    assert settle(verdict, STUDY, ASKED).command.endswith("--preset standard")
    assert not settle(verdict, STUDY, replace(ASKED, preset="full")).command


def test_what_a_preset_leaves_out_a_larger_one_measures() -> None:
    verdict = Verdict("b", "that is so", Status.NOT_MEASURED, why="no case was run for it")
    assert settle(verdict, STUDY, ASKED) == Settling(
        "The preset standard asks it.", "depthgauge run settled --preset standard", "settled"
    )
    assert not settle(verdict, STUDY, replace(ASKED, preset="full")).command
    assert "Cases failed" in settle(verdict, STUDY, replace(ASKED, preset="full", failed=3)).text


def test_the_command_keeps_model_and_device() -> None:
    asked = replace(ASKED, entry={"model": "pkg.nets:make", "origin": "/home/me/settled.py"}, device="cuda:1")
    assert settle(replace(UNDECIDED, needed=12), STUDY, asked).command == (
        "depthgauge run settled --preset standard --model pkg.nets:make --device cuda:1 --studies /home/me/settled.py"
    )


def test_a_run_tells_what_it_asked_and_on_which_device() -> None:
    entry = {"preset": "quick", "seeds": 6}
    command = "depthgauge run other --preset full && depthgauge run settled more --device cuda:1 --out x"
    run = {"request": {"settled": entry}, "command": command, "fingerprint": {"device": "NVIDIA H100 80GB HBM3"}}
    assert Asked.of("settled", run, failed=3) == Asked("settled", "quick", 6, entry, "cuda:1", failed=3)
    assert Asked.of("other", run) == Asked("other", "")


def test_first_what_is_unfinished_or_broken() -> None:
    verdict = replace(UNDECIDED, needed=12)
    assert "goes on" in settle(verdict, STUDY, replace(ASKED, unfinished=True)).text
    assert "--studies" in settle(verdict, None, ASKED).text
    broken = Verdict("a", "it is so", Status.INCONCLUSIVE, why="its analysis failed")
    assert "render the report again" in settle(broken, STUDY, replace(ASKED, problem=True)).text


def test_seeds_do_not_settle_what_has_no_finite_figure() -> None:
    settled = settle(replace(UNDECIDED, observed=math.nan, low=math.nan, high=math.nan), STUDY, ASKED)
    assert settled.text == "Not every run has a finite figure, and more seeds leave those that have none."
    assert settled.command == ""


def test_only_undecided_claims_are_settled() -> None:
    decided = replace(UNDECIDED, id="b", status=Status.HOLDS)
    assert list(settling([UNDECIDED, decided], STUDY, ASKED)) == ["a"]


def test_one_command_serves_as_many_claims_as_it_can() -> None:
    one, other, further = (
        settle(replace(UNDECIDED, needed=needed), study, replace(ASKED, name=study.name, preset=preset))
        for needed, study, preset in (
            (12, STUDY, "quick"),
            (12, replace(STUDY, name="other"), "quick"),
            (80, STUDY, "full"),
        )
    )
    more = replace(further, command=further.command.replace(str(further.seeds), "700"), seeds=700)
    assert [(each.text, each.command) for each in outlook([one, other, one, further, more, Settling("no")])] == [
        ("3 undecided claims", "depthgauge run settled other --preset standard"),
        ("2 undecided claims", "depthgauge run settled --preset full --seeds 700"),
    ]


def test_it_says_how_long_that_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"settled": {"standard": {"": costs.Part(cases=32 + 600, seconds=2 * 730.0)}}}
    monkeypatch.setattr(costs, "published", lambda: known)
    settled = settle(replace(UNDECIDED, needed=12), STUDY, ASKED)
    assert settled.text.endswith("the preset standard has 16 (about 12 min on two cores).")
