"""A second stage follows from the rows of the first, whatever ran them, however often the run was stopped."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from depthgauge import models, running, store
from depthgauge.cli import main
from depthgauge.request import Request
from depthgauge.study import Case, Grid, Study, StudyError
from depthgauge.verdict import Claim, Findings

REFINE = str(Path(__file__).parent / "engine_studies" / "refine.py")


def run(out, workers=0, **options):
    return running.run("refine", out=out, workers=workers, sources=[REFINE], **options)


def bits(stored):
    frame = stored.frame("refine")
    return stored.chunks("refine"), frame["case"].tolist(), frame["value"].to_numpy().view(np.int64).tolist()


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return run(tmp_path_factory.mktemp("refine") / "x")


def test_the_second_stage_follows_from_the_rows_of_the_first(reference):
    frame = reference.stored.frame("refine")
    first = frame[frame["stage"] == "first"]
    best = first.groupby("rate")["value"].mean().idxmin() * (1 + first["value"].abs().min())
    rates = sorted(frame.loc[frame["stage"] == "second", "rate"].unique())
    assert len(first) == 12
    assert rates[1] == pytest.approx(best)
    assert len(reference.chunks["refine"]) == len(reference.stored.chunks("refine")) == reference.ran == 12
    assert "second_waits" not in reference.stored.run["request"]["refine"]
    assert reference.rows == len(frame) == 24


@pytest.mark.slow
def test_the_number_of_workers_changes_no_bit(tmp_path, reference):
    assert bits(run(tmp_path, 2).stored) == bits(reference.stored)


@pytest.mark.parametrize("stop", range(1, 12))
def test_a_run_that_stops_anywhere_goes_on_to_the_same_bits(tmp_path, reference, stop):
    def observe(progress):
        if progress.done == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, observe=observe)
    stopped = store.read(tmp_path)
    assert bool(stopped.run["request"]["refine"].get("second_waits")) == (stop <= 6)
    resumed = run(tmp_path)
    assert (resumed.ran, resumed.reused) == (12 - stop, stop)
    assert bits(resumed.stored) == bits(reference.stored)
    again = run(tmp_path)
    assert (again.ran, again.reused) == (0, 12)


@pytest.mark.parametrize(("seeds", "kept"), [(None, 12), (2, 3)])
def test_a_resumed_run_keeps_the_second_stage_in_its_record_until_it_is_asked_again(tmp_path, reference, seeds, kept):
    shutil.copytree(reference.stored.directory, tmp_path / "x")

    def observe(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "x", observe=observe, request=Request(seeds=seeds))
    stopped = store.read(tmp_path / "x")
    assert len(stopped.chunks("refine")) == kept
    assert bool(stopped.run["request"]["refine"].get("second_waits")) == (kept == 3)
    if kept == 12:
        assert bits(stopped) == bits(reference.stored)


def test_rows_do_not_come_in_the_order_of_the_chunks_but_of_the_cases(tmp_path):
    seen = []

    def second(preset, rows):
        seen.append((preset, rows["case"].tolist(), set(rows["status"])))
        return ()

    grids = (Grid({"part": (3, 1)}), Grid({"part": (2,)}))
    outcome = running.run(made(second, grids), out=tmp_path)
    assert seen == [("quick", ["part=1", "part=3"], {"ok"})]  # part=2 has failed, which is a row too
    assert outcome.failed == {"error": 1}


def test_progress_grows_by_what_the_second_stage_asks_for(tmp_path):
    seen = []
    run(tmp_path, observe=seen.append)
    assert [progress.total for progress in seen if not (progress.note or progress.ended)] == [6] * 7 + [12] * 7
    assert (seen[-1].done, seen[-1].left) == (12, 0.0)


def test_seeds_apply_to_both_stages(tmp_path):
    frame = run(tmp_path, request=Request(seeds=2)).stored.frame("refine")
    assert frame.groupby("stage")["seed"].nunique().to_dict() == {"first": 2, "second": 2}


# -- what a second stage does wrongly ----------------------------------------------------------------------------------


FIRST = (Grid({"part": (1, 3)}),)


def made(second, grids=FIRST, **declared):
    def measure(cases, context):
        for case in cases:
            if case["part"] == 2:
                raise ValueError("two")
            yield case.rows("x", 1.0)

    return Study("made_here", "?", {"quick": grids}, measure, lambda _: Findings(()), list, second=second, **declared)


def raises(preset, rows):
    return [Grid({"part": (rows["absent"],)})]


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (raises, r"its second stage raised KeyError: 'absent' \(in raises, test_second_stage\.py:\d+\); the rows of"),
        (lambda *_: [Grid({"part": (4, 3)})], "its second stage asks for a case of the first: part=3"),
        (lambda *_: [Grid({"part": (4, 4)})], "two cases have the id part=4; the rows of the first are kept"),
        (lambda *_: [Grid({"part": (np.arange(2),)})], "parameter 'part' is a ndarray; .*: mend `second` on a few --s"),
        (lambda *_: ["grid"], "its second stage returned a str, where a Grid belongs"),
        (
            lambda *_: [Grid({"part": (4,)}, claims=("none",))],
            "a grid answers what is not declared: 'none' is none of the study's claims",
        ),
        (lambda *_: None, "its second stage raised TypeError: 'NoneType' object is not iterable"),
    ],
)
def test_a_second_stage_that_is_wrong_costs_no_row_of_the_first(tmp_path, second, message):
    with pytest.raises(StudyError, match=f"study 'made_here': {message}"):
        running.run(made(second), out=tmp_path)
    assert len(store.read(tmp_path).frame("made_here")) == 2
    assert store.read(tmp_path).run["request"]["made_here"]["second_waits"] is True
    with pytest.raises(store.StoreError, match="rows of 'made_here' made by other code"):
        running.run(made(lambda *_: [Grid({"part": (4,)})]), out=tmp_path)


def test_values_from_a_frame_are_parameters(tmp_path):
    def second(_, rows):
        yield Grid({"part": tuple((rows["part"] + 1).unique())}, {"rate": np.float64(0.5), "on": np.bool_(True)})

    outcome = running.run(made(second, (Grid({"part": (3,)}),)), out=tmp_path)
    assert outcome.stored.frame("made_here")["case"].tolist() == ["part=3", "on=True,part=4,rate=0.5"]


def test_it_is_not_asked_where_nothing_was_measured(tmp_path):
    outcome = running.run(made(raises, (Grid({"part": (2,)}),)), out=tmp_path)
    assert outcome.unmeasured == ("made_here",)


def test_a_second_stage_that_cannot_be_called_is_refused():
    with pytest.raises(StudyError, match="its `second` is not a function"):
        made("later")


def test_the_command_says_it_in_a_sentence_and_the_report_that_it_is_not_finished(tmp_path, monkeypatch):
    command = ["run", "refine", "--studies", REFINE, "--workers", "0", "--out", str(tmp_path)]
    monkeypatch.setenv("DEPTHGAUGE_TEST_RAISE", "1")
    result = CliRunner().invoke(main, command, prog_name="depthgauge")
    assert result.exit_code == 1
    assert "study 'refine': its second stage raised ValueError: no best (in second, refine.py:" in result.stderr
    report = CliRunner().invoke(main, ["report", str(tmp_path), "--studies", REFINE], prog_name="depthgauge")
    assert report.exit_code == 0
    assert "Not finished: its second stage has not been run" in (tmp_path / "report/refine.md").read_text()
    monkeypatch.delenv("DEPTHGAUGE_TEST_RAISE")
    assert CliRunner().invoke(main, command, prog_name="depthgauge").exit_code == 0
    assert "Not finished" not in (tmp_path / "report/refine.md").read_text()


# -- on one model ------------------------------------------------------------------------------------------------------


def test_a_model_restricts_the_grids_of_both_stages(tmp_path):
    def measure(cases, context):
        return (case.rows("x", float(case["width"])) for case in cases)

    def second(preset, rows):
        width = int(rows["value"].max()) + 1
        yield Grid({"model": ("mlp", "lenet5")}, fixed={"width": width}, claims=("made_here/any",))
        yield Grid({"width": (9,)}, claims=("made_here/own",))

    claims = (Claim("made_here/any", "any model"), Claim("made_here/own", "a network of its own"))
    grids = (Grid({"model": ("mlp", "lenet5"), "width": (1, 2)}, claims=("made_here/any",)),)
    study = Study(
        "made_here", "?", {"quick": grids}, measure, lambda _: Findings(()), list, claims=claims, second=second
    )
    stored = running.run(study, out=tmp_path, request=Request(model=models.target("lenet5"))).stored
    cases = [Case.read(case) for case in stored.frame("made_here")["case"]]
    assert [(case["model"], case["width"]) for case in cases] == [("lenet5", 1), ("lenet5", 2), ("lenet5", 3)]
    request = stored.run["request"]["made_here"]
    assert list(request["not_applicable"]) == ["made_here/own"]
    assert len(request["left_out"]) == 1
