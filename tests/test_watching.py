"""What a run shows: its intention, the study under way, what is left, and its end, at any width."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import pytest

from depthgauge.cli import ending, output
from depthgauge.cli.watching import intention, watching
from depthgauge.progress import Progress
from depthgauge.reports import pages
from depthgauge.reports.content import Section
from depthgauge.verdict import Sentence, Status, Verdict

QUESTIONS = {"one": "Does it?", "other": "Does the other?"}


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def _run() -> list[Progress]:
    return [
        Progress("one", 0, 4, 0, 200.0),
        Progress("one", 1, 4, 1, 190.0, 0.1),
        Progress("one", 2, 4, 1, 90.0, 0.5, note="one: mind the gap"),
        Progress("other", 2, 4, 1, 90.0, 0.5, ended="one"),
        Progress("other", 3, 4, 1, 30.0, 0.8),
        Progress("other", 4, 4, 1, 0.0, 1.0, ended="other"),
    ]


def test_the_intention_says_what_how_long_and_where() -> None:
    assert intention(QUESTIONS, "quick", 200.0, Path("x"), grows=True) == (
        "2 studies at preset quick, about 3 min; x/report/index.html is there after the first of them, and grows"
    )
    assert ", at most about 3 min; " in intention(QUESTIONS, "quick", 200.0, Path("x"), grows=True, begun=True)
    assert intention({"one": "?"}, "full", None, Path("x"), grows=False) == (
        "one at preset full; x/report/index.html is there at the end"
    )


def test_without_a_terminal_each_study_is_named_once_and_lines_come_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter(range(0, 1000, 6))
    monkeypatch.setattr("depthgauge.cli.watching.time.monotonic", lambda: float(next(clock)))
    with watching(QUESTIONS) as observe:
        for progress in _run():
            observe(progress)
    assert capsys.readouterr().err.splitlines() == [
        "one (1 of 2): Does it?",
        "one (1 of 2): 10 % done, about 3 min left, 1 case failed",
        "one: mind the gap",
        "other (2 of 2): Does the other?",
        "other (2 of 2): 80 % done, about 30 s left, 1 case failed",
    ]


@pytest.mark.parametrize("columns", [60, 200])
def test_a_bar_fits_the_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(output, "columns", lambda: columns)
    with watching(QUESTIONS) as observe:
        for progress in _run():
            observe(progress)
    text = terminal.getvalue()
    assert "chunk" not in text
    assert "other (2 of 2): Does the other?" in text
    lines = [line for piece in text.split("\n") for line in piece.split("\r")]
    assert max(len(_printed(line)) for line in lines) <= columns


def _printed(line: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", line)


@pytest.mark.parametrize("columns", [60, 200])
def test_the_end_fits_the_terminal_and_is_one_line_a_finding_elsewhere(
    columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = "Signals of tanh networks fade after 40 layers at a width of 256, and gradients after 60, in 30 of 30 seeds."
    verdict = Verdict("one/it", "it does", Status.INCONCLUSIVE, observed=1.0, low=0.5, high=2.0, n=8)
    sections = [Section("one", "one", cases=5, verdicts=(verdict,), answers=(Sentence(long),))]
    for stream in (Terminal(), io.StringIO()):
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(output, "columns", lambda: columns)
        ending.tell(Path("x/report/report.md"), sections)
        lines = list(map(_printed, stream.getvalue().splitlines()))
        assert lines[0] == "1 claim: 1 undecided"
        assert lines[-2:] == ["x/report/index.html", "x/report/report.md"]
        if stream.isatty():
            assert max(map(len, lines)) <= columns
            assert " ".join(" ".join(lines[1:-2]).split()) == f"- {long}"
        else:
            assert lines[1:-2] == [f"  - {long}"]


def test_a_page_that_grows_says_what_is_to_come() -> None:
    run = {"request": {}, "chunks": {}, "coming": ["walk", "drawn"]}
    assert "walk, drawn are still to come" in pages.index_page([Section("one", "one", question="?")], run)
    assert "still to come" not in pages.index_page([Section("one", "one", question="?")], {**run, "coming": []})
