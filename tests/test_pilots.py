"""A grid whose first chunks all end in one error stops there; nothing else does."""

from __future__ import annotations

import textwrap

import pytest

from depthgauge import running
from depthgauge.encoding import Summary
from depthgauge.pilots import CASES, PILOTS, Pilots, named, plain
from depthgauge.study import Grid, Study
from depthgauge.verdict import Findings

GRID = Grid({"x": tuple(range(20)), "y": ("a", "b")}, seeds=4, chunk=4)


def study(run, *grids):
    return Study("some", "?", {"quick": grids or (GRID,)}, run=run, analyse=lambda _: Findings(()), plot=lambda _: ())


def failed(message, status="error", cases=2):
    return Summary(cases, 0, {status: cases}, (message,))


# -- which, and what they say ------------------------------------------------------------------------------------------


def test_pilots_follow_from_the_grid_and_differ_in_what_tells_its_chunks_apart():
    chunks = study(list).chunks("quick")
    pilots = Pilots.of(chunks)
    first = [chunk for chunk in chunks if pilots.first(chunk)]
    assert first == [chunk for chunk in chunks if Pilots.of(chunks).first(chunk)]
    assert len(first) == PILOTS
    assert first[0] == chunks[0]
    assert first[-1] == chunks[-1]
    assert all(first[0].cases[0][name] != first[-1].cases[0][name] for name in ("x", "y"))


def test_each_grid_has_its_own_and_a_small_one_is_all_pilots():
    chunks = study(list, Grid({"a": (1, 2)}), Grid({"b": (1,)}), Grid({"c": tuple(range(20))})).chunks("quick")
    pilots = Pilots.of(chunks)
    assert [pilots.first(chunk) for chunk in chunks[:3]] == [True] * 3
    assert sum(pilots.first(chunk) for chunk in chunks[3:]) == CASES
    assert not Pilots.of(()).chosen


@pytest.mark.parametrize(
    ("summaries", "told"),
    [
        ([failed("no 1"), failed("no 22"), failed("no 3e-5")], "no 1"),
        ([failed("at 0x7f01ab"), failed("at 0x7eff00"), failed("at 0x0")], "at 0x7f01ab"),
        ([failed("no"), failed("no"), failed("other")], ""),
        ([failed("no"), failed("no"), Summary(2, 1, {"error": 1}, ("no",))], ""),
        ([failed("no"), failed("no"), Summary(2, 2)], ""),
        ([failed("late", "timeout")] * 3, "late"),
        ([failed("no network", "machine")] * 3, ""),
        ([failed("no"), failed("no")], ""),
    ],
)
def test_one_error_in_every_case_of_every_pilot_or_none(summaries, told):
    chunks = study(list).chunks("quick")
    pilots = Pilots.of(chunks)
    finished = dict(zip((named(chunk) for chunk in chunks if pilots.first(chunk)), summaries, strict=False))
    assert pilots.verdict(chunks[1], finished) == told
    assert pilots.waits(chunks[1], finished) is (len(summaries) < PILOTS)
    assert not pilots.waits(chunks[0], finished)


def test_a_message_without_its_numbers():
    assert plain("a (2x3) at 0xFf, -1.5e-3 of 1,024") == plain("a (64x7) at 0x1, 7 of 3")
    assert plain("layer a") != plain("layer b")


# -- runs --------------------------------------------------------------------------------------------------------------


def test_the_rest_of_a_grid_is_not_run_and_that_is_told_once(tmp_path):
    def run(cases, context):
        for case in cases:
            if "fine" in case:
                yield case.rows("v", 1.0)
            else:
                raise ValueError(f"no luck with {case['x']}")

    notes: list[str] = []
    mixed = study(run, GRID, Grid({"fine": tuple(range(5))}))
    again = [
        running.run(mixed, out=tmp_path / "x", workers=0, observe=lambda progress: notes.append(progress.note))
        for _ in range(2)
    ]
    first, second = again
    assert (first.ran, first.rows, first.failed) == (PILOTS + 5, 5, {"error": 4 * PILOTS})
    assert (second.ran, second.reused, second.rows) == (0, first.ran, first.rows)
    [line] = first.stored.run["request"]["some"]["stopped"]
    assert line.startswith(
        "148 more cases are not run: all 12 cases that were run first, spread over a grid, ended with: "
    )
    assert "ValueError: no luck with 0 (in run, test_pilots.py:" in line
    assert notes.count(f"some: {line}") == 2  # once a run
    assert second.stored.run["request"] == first.stored.run["request"]
    assert first.stored.missing("some") == 0
    assert not first.unmeasured


@pytest.mark.slow
@pytest.mark.parametrize("fine", [0, 19, "half"])
def test_a_grid_in_which_something_is_measured_runs_to_its_end(tmp_path, fine):
    def run(cases, context):
        for case in cases:
            if (fine == "half" and case["seed"] == 1) or case["x"] == fine:
                yield case.rows("v", 1.0)
            else:
                raise ValueError("no luck")

    outcome = running.run(study(run), out=tmp_path / "x", workers=0)
    assert outcome.ran == len(study(run).chunks("quick"))
    assert "stopped" not in outcome.stored.run["request"]["some"]


def test_an_exclusive_grid_stops_too_and_a_study_without_a_result_is_named(tmp_path):
    def run(cases, context):
        raise ValueError("no luck")

    lonely = Grid({"x": tuple(range(20))}, exclusive=True)  # chunks of one case
    outcome = running.run(study(run, lonely), out=tmp_path / "x", workers=0)
    assert outcome.failed == {"error": CASES}
    assert outcome.unmeasured == ("some",)


@pytest.mark.slow
@pytest.mark.alone
def test_what_is_left_out_does_not_depend_on_workers(tmp_path):
    (tmp_path / "barren.py").write_text(
        textwrap.dedent("""
            import time
            from depthgauge.study import Grid, Study
            from depthgauge.verdict import Findings

            def run(cases, context):
                for case in cases:
                    time.sleep(0.2 if case.get("x") == 0 else 0.0)
                    if "x" in case:
                        raise ValueError("no luck")
                    yield case.rows("v", 1.0)

            STUDY = Study(
                name="barren", question="Is there anything?",
                presets={"quick": (Grid({"x": tuple(range(30))}), Grid({"z": tuple(range(6))}))},
                run=run, analyse=lambda frame: Findings(()), plot=lambda findings: (),
            )
        """)
    )
    outcomes = [
        running.run("barren", out=tmp_path / str(workers), workers=workers, sources=[str(tmp_path / "barren.py")])
        for workers in (0, 1, 3)
    ]
    assert [outcome.ran for outcome in outcomes] == [CASES + 6] * 3
    assert len({str(outcome.stored.run["chunks"]) for outcome in outcomes}) == 1
    assert len({str(outcome.stored.run["request"]["barren"]["stopped"]) for outcome in outcomes}) == 1
