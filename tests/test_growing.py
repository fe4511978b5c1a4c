"""The page of a run grows: it is there after the first study, and in the end it is that of `depthgauge report`."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from depthgauge import environment, places, running
from depthgauge.cli import ending, main
from depthgauge.cli.growing import growing, grows, side_by_side
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


class Beside(ThreadPoolExecutor):
    """Threads in the place of processes."""

    _processes = None


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two studies in this process."""
    out = tmp_path_factory.mktemp("measured")
    running.run("refine", "walk", out=out, workers=0, sources=SOURCES[1::2])
    return out


@pytest.fixture
def stored(measured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that run, where threads stand for processes."""
    monkeypatch.setattr(places, "beside", Beside)
    monkeypatch.setattr(environment, "cores", lambda: 2)
    return shutil.copytree(measured, tmp_path / "x")


def test_studies_are_examined_side_by_side_and_one_that_cannot_be_is_left_out(
    stored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = side_by_side(stored, ("refine", "walk"))
    assert {name: section.name for name, section in found.items()} == {"refine": "refine", "walk": "walk"}
    monkeypatch.setattr(
        importlib.import_module("depthgauge.cli.growing"), "is_todays", lambda _, study: study.name == "walk"
    )
    assert list(side_by_side(stored, ("refine", "walk"))) == ["walk"]


def test_what_cannot_be_examined_beside_the_run_is_told(
    stored: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = importlib.import_module("depthgauge.cli.growing")

    def examined(directory: Path, name: str, do: Callable[..., Any] = module.examined) -> Any:
        if name == "walk":
            raise TypeError("cannot pickle\nwhat it holds")
        return do(directory, name)

    monkeypatch.setattr(module, "examined", examined)
    assert list(side_by_side(stored, ("refine", "walk"))) == ["refine"]
    told = (
        "walk: examining it beside the run failed (TypeError: cannot pickle what it holds); it is examined once more\n"
    )
    assert capsys.readouterr().err == told


def test_processes_that_are_lost_are_told(
    stored: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def lost(*_: object) -> Future[Any]:
        raise BrokenExecutor("a process ended")

    monkeypatch.setattr(Beside, "submit", lost)
    assert side_by_side(stored, ("refine", "walk")) == {}
    told = "examining it beside the run failed (BrokenExecutor: a process ended); it is examined once more"
    assert capsys.readouterr().err.splitlines() == [f"refine: {told}", f"walk: {told}"]


def test_pages_that_cannot_be_written_while_the_run_goes_on_are_told(
    stored: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError("no space")

    monkeypatch.setattr(importlib.import_module("depthgauge.cli.growing"), "_write", full)
    with growing(stored, ("refine", "walk"), 2, lambda _: None) as (follow, sections):
        follow(Progress("walk", 2, 2, 0, ended="walk"))
        assert list(sections()) == ["walk"]
    assert "the page did not grow to its end (OSError: no space); it is written once more" in capsys.readouterr().err


def test_pages_have_what_is_examined_and_name_what_is_not(stored: Path) -> None:
    shown: list[str] = []
    with growing(stored, ("refine", "walk"), 2, lambda page: shown.append(page.read_text("utf-8"))) as (
        follow,
        sections,
    ):
        follow(Progress("walk", 1, 2, 0, ended="refine"))
        follow(Progress("walk", 1, 2, 0, alone=True))  # after which nothing runs beside the chunk
        assert len(shown) == 1
        assert "study-refine" in shown[0]
        assert "study-walk" not in shown[0]
        assert "still to come" in shown[0]
        follow(Progress("walk", 2, 2, 0, ended="walk"))
        assert list(sections()) == ["refine", "walk"]
    assert len(shown) == 1


def test_a_page_of_a_run_that_ends_at_once_is_shown(stored: Path) -> None:
    shown: list[Path] = []
    with growing(stored, ("refine", "walk"), 2, shown.append) as (follow, sections):
        follow(Progress("walk", 2, 2, 0, ended="walk"))
        assert list(sections()) == ["walk"]
    assert shown == [stored / "report" / "index.html"]


def test_a_large_run_is_reported_side_by_side_and_comes_out_the_same(
    stored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = []
    for worth_while, side in ((10**9, 0), (1, 2)):
        asked: list[Future[Any]] = []
        submit = Beside.submit
        monkeypatch.setattr(Beside, "submit", lambda self, *a, to=asked, do=submit: to.append(do(self, *a)) or to[-1])
        monkeypatch.setattr(importlib.import_module("depthgauge.cli.report"), "_WORTH_WHILE", worth_while)
        assert CliRunner().invoke(main, ["report", str(stored)]).exit_code == 0
        monkeypatch.setattr(Beside, "submit", submit)
        assert len(asked) == side
        pages.append({path: path.read_bytes() for path in (stored / "report").rglob("*") if path.is_file()})
    assert pages[0] == pages[1]
