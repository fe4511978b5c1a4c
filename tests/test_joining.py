"""Runs that were made apart are one report, each study from one of them."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner, Result

from depthgauge.cli import main
from depthgauge.joining import join
from depthgauge.runfile import StoreError
from depthgauge.store import Stored


class Run(Stored):
    """A stored run without files."""

    def missing(self, study: str) -> int:
        return len(study)

    def frame(self, study: str, chunks: object = None) -> pd.DataFrame:  # noqa: ARG002 - as in Stored
        return pd.DataFrame({"of": [f"{self.directory.name} {study}"]})


def run(name: str, *studies: str, started: str = "2026-11-26T01:00:00+00:00", **fingerprint: object) -> Run:
    return Run(
        Path(name),
        {
            "request": {study: {"preset": "quick"} for study in studies},
            "chunks": {study: [f"{study}-0"] for study in studies},
            "command": f"depthgauge run {' '.join(studies)}",
            "started": started,
            "fingerprint": {"torch": "2.13.0", **fingerprint},
        },
    )


def test_each_study_is_read_from_the_run_that_holds_it(tmp_path: Path) -> None:
    joined = join([run("a", "walk", "talk"), run("b", "jump")], tmp_path)
    assert joined.studies == ("jump", "talk", "walk")
    assert {study: joined.frame(study)["of"].item() for study in joined.studies} == {
        "jump": "b jump", "talk": "a talk", "walk": "a walk",
    }  # fmt: skip
    assert joined.missing("jump") == 4
    assert joined.chunks("walk") == ("walk-0",)
    assert joined.directory == tmp_path
    assert joined.run["command"] == "depthgauge run walk talk\ndepthgauge run jump"


def test_what_differs_between_environments_is_told_of_the_studies(tmp_path: Path) -> None:
    here = run("a", "walk", "talk", device="cpu", cores=2, commit="1f3")
    there = run("b", "jump", device="cuda", cores=2, started="2026-11-27T15:30:00+00:00")
    told = join([here, there], tmp_path).run
    assert told["fingerprint"] == {
        "torch": "2.13.0", "device": "cpu (talk, walk), cuda (jump)", "cores": 2, "commit": "1f3 (talk, walk)",
    }  # fmt: skip
    assert told["common"] == {"torch": "2.13.0", "cores": 2}
    assert told["apart"]["jump"] == {"device": "cuda"}
    assert told["apart"]["walk"] == {"device": "cpu", "commit": "1f3"}
    assert told["started"] == "2026-11-26 01:00 to 2026-11-27 15:30 UTC"


def test_one_run_elsewhere_is_told_as_it_is(tmp_path: Path) -> None:
    alone = run("a", "walk", device="cpu")
    told = join([alone], tmp_path).run
    assert {name: told[name] for name in alone.run} == alone.run
    assert told["apart"] == {"walk": {}}


def test_a_study_of_two_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"^a and b both hold walk; a report has each study once$"):
        join([run("a", "walk"), run("b", "jump", "walk")], tmp_path)


def test_a_run_without_a_request_adds_nothing(tmp_path: Path) -> None:
    empty = run("c", started="2026-11-27T15:30:00+00:00", device="cuda")
    with pytest.raises(StoreError, match=r"^no study has been asked for in c or c$"):
        join([empty, empty], tmp_path)
    assert join([empty, run("a", "walk")], tmp_path).run == join([run("a", "walk")], tmp_path).run


@pytest.mark.parametrize("there", ["run.json", "report/mine.txt"])
def test_a_report_takes_the_place_of_nothing_else(tmp_path: Path, there: str) -> None:
    (tmp_path / there).parent.mkdir(exist_ok=True)
    (tmp_path / there).write_text("mine")
    with pytest.raises(StoreError, match="name another place by --out"):
        join([run("a", "walk")], tmp_path)
    (tmp_path / there).unlink()
    (tmp_path / "report").mkdir(exist_ok=True)
    (tmp_path / "report" / "findings.json").write_text("{}")
    join([run("a", "walk")], tmp_path)


STUDY = """
from depthgauge.study import Grid, Study
from depthgauge.verdict import Findings

STUDY = Study(
    "NAME", "Is it?", {"quick": (Grid({"x": (1, 2)}),)},
    lambda cases, context: (case.rows("y", 1.0) for case in cases),
    lambda frame: Findings((), answers=(f"NAME has {len(frame)} rows.",)),
    lambda findings: (),
)
"""


def test_the_command_renders_a_report_on_several_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> Result:
        return CliRunner().invoke(main, words, prog_name="depthgauge")

    for name in ("walk", "jump"):
        Path(f"{name}.py").write_text(STUDY.replace("NAME", name))
        done = call("run", name, "--workers", "0", "--studies", f"{name}.py", "--out", name)
        assert done.exit_code == 0, done.output
    before = {path: path.read_bytes() for path in Path("walk").rglob("*") if path.is_file()}
    done = call("report", "walk", "jump", "--out", "both")
    assert done.exit_code == 0, done.output
    text = Path("both/report/report.md").read_text("utf-8")
    assert "walk has 2 rows." in text
    assert "jump has 2 rows." in text
    assert "depthgauge run walk" in text
    assert "depthgauge run jump" in text
    assert "(jump)" not in Path("both/report/walk.md").read_text("utf-8")
    assert (Path("both/report/walk.md").exists(), Path("both/report/index.html").exists()) == (True, True)
    assert {path: path.read_bytes() for path in before} == before
    assert call("report", "walk", "jump", "--out", "both").exit_code == 0  # a report gives way to a report
    for words, told in (
        (("walk", "jump"), "name its directory by --out"),
        (("walk", "walk", "--out", "both"), "walk is named twice; name each run once"),
        (("walk", "--out", "jump"), "jump is a run directory"),
    ):
        refused = call("report", *words)
        assert refused.exit_code in {1, 2}
        assert told in refused.output
