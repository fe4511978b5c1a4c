"""The page of a run grows: it is there after the first study, and in the end it is that of `depthgauge report`."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from depthgauge.cli import ending, main
from depthgauge.cli.growing import growing, grows
from depthgauge.progress import Progress

STUDIES = Path(__file__).parent / "engine_studies"
SOURCES = [word for name in ("walk", "refine") for word in ("--studies", str(STUDIES / f"{name}.py"))]


@pytest.mark.slow
def test_the_page_is_there_after_the_first_study_and_is_in_the_end_as_if_written_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first: list[str] = []
    monkeypatch.setattr(ending, "show", lambda page: first.append(page.read_text("utf-8")))
    words = ["run", "refine", "walk", *SOURCES, "--workers", "1", "--out", "x", "--open"]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    told = result.stderr.splitlines()
    assert told[0].startswith("2 studies at preset quick")
    assert "refine (1 of 2): " in result.stderr
    assert "walk (2 of 2): How far does a random walk get?" in told
    assert len(first) == 1
    assert "study-refine" in first[0]
    page = tmp_path / "x/report/index.html"
    grown = {path: path.read_bytes() for path in sorted(page.parent.rglob("*")) if path.is_file()}
    assert "study-walk" in page.read_text("utf-8")
    assert "still to come" not in page.read_text("utf-8")
    again = CliRunner().invoke(main, ["report", "x", *SOURCES])
    assert again.stdout == result.stdout
    assert grown == {path: path.read_bytes() for path in sorted(page.parent.rglob("*")) if path.is_file()}


def test_one_study_or_this_process_alone_lets_nothing_grow(tmp_path: Path) -> None:
    for names, workers in ((["one"], 2), (["one", "other"], 0)):
        with growing(tmp_path, names, workers) as (follow, sections):
            follow(Progress(names[0], 1, 1, 0, ended=names[0]))
            assert sections() == {}
            assert not grows(names, workers)
