"""What commands leave behind: threads as they were, files whole, and pages that are shown."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner, Result

from depthgauge import reports, store
from depthgauge.checking import written
from depthgauge.cli import ending, main, writing
from depthgauge.store import StoreError

rendering = importlib.import_module("depthgauge.cli.report")  # the package's `report` is the command of that name
Call = Callable[..., Result]

COUNTED = """
import torch


def make():
    if torch.get_num_threads() == {}:
        raise RuntimeError("made on as many threads as were asked for")
    return torch.nn.Linear(3, 3)
"""


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    monkeypatch.chdir(tmp_path)
    return lambda *words: CliRunner().invoke(main, words, prog_name="depthgauge")


def sentence(result: Result, code: int) -> str:
    assert result.exit_code == code, result.output
    return result.stderr.splitlines()[-1].removeprefix("depthgauge: ")


@pytest.mark.parametrize("command", ["check", "plan", "profile"])
def test_threads_are_as_before_when_a_command_has_ended(command: str, call: Call, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    (tmp_path / f"left_{command}.py").write_text(COUNTED.format(before + 1))
    assert "as many threads as were asked" in call(command, f"left_{command}:make", f"--threads={before + 1}").stderr
    assert torch.get_num_threads() == before


# -- pages that are shown ----------------------------------------------------------------------------------------------


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    pages: list[Path] = []
    monkeypatch.setattr(ending, "show", pages.append)
    return pages


def test_a_report_of_profiles_is_shown_too(
    call: Call, shown: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "p" / "profiles").mkdir(parents=True)
    monkeypatch.setattr(importlib.import_module("depthgauge.cli.profile"), "render_profiles", lambda _: None)
    assert call("report", "p").exit_code == 0
    assert shown == []
    assert call("report", "p", "--open").exit_code == 0
    assert shown == [Path("p", "report", "index.html")]
    assert "leave --studies out" in sentence(call("report", "p", "--studies", "mine.py"), 2)


def test_a_report_that_is_not_complete_is_shown_too(
    shown: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def incomplete(*_: object, **__: object) -> None:
        raise reports.IncompleteReportError(tmp_path / "report.md", {"mine": "Its analysis failed."}, {})

    monkeypatch.setattr(reports, "render", incomplete)
    with pytest.raises(click.ClickException, match="not complete: mine"):
        rendering.render(store.Stored(tmp_path, {}), {}, opened=True)
    assert shown == [tmp_path / "index.html"]


def test_a_file_in_place_of_a_run_is_told(call: Call, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    assert "it is a file; name the directory of the run" in sentence(call("report", "run.json"), 2)
    assert "there is no such directory" in sentence(call("report", "run.jso"), 2)


# -- files -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [writing.write_page, lambda path, text: written._put(path, text.encode())])
def test_a_page_that_cannot_be_written_leaves_the_earlier_one(
    write: Callable[[Path, str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "new" / "page.html"
    write(page, "first")

    def full(_: int) -> None:
        raise OSError("no room")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises((OSError, StoreError)):
        write(page, "second, and longer")
    assert [(path.name, path.read_text()) for path in page.parent.iterdir()] == [("page.html", "first")]
