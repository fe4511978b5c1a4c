"""The end of `run` and `report`: what was found, in a few lines, and where all of it stands."""

from __future__ import annotations

import sys
import textwrap
import webbrowser
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from depthgauge.cli import output
from depthgauge.verdict import Status

if TYPE_CHECKING:
    from depthgauge.reports.content import Section

_SENTENCES = 3
_COMMANDS = 2
_ITEM = "  - "
_WORDS = {
    Status.HOLDS: "hold", Status.FAILS: "fail", Status.DEPENDS: "depend on conditions",
    Status.INCONCLUSIVE: "undecided", Status.NOT_MEASURED: "not measured",
    Status.NOT_APPLICABLE: "not applicable",
}  # fmt: skip


def tell(path: Path, sections: Sequence[Section]) -> None:
    """Print the tally of the claims, the findings that are most worth knowing, and the addresses of the pages.

    Args:
        path: the place of `report.md`.
        sections: the studies of the report.
    """
    for line in _found(sections):
        output.tell(_fitted(line))
    output.tell(output.plain(str(path.with_name("index.html"))))
    output.tell(output.plain(str(path)))


def show(page: Path) -> None:
    """Open a page in the user's browser."""
    if not webbrowser.open(page.absolute().as_uri()):
        output.say(f"no browser could be opened: {page}")


def tally(sections: Sequence[Section]) -> str:
    """Count the claims by what became of them, as the pages do; empty where there are none."""
    from depthgauge.reports.outline import Outline  # noqa: PLC0415 - figures are imported with it

    counts = dict(Outline.of(sections).tally)
    total = sum(counts.values())
    one = {"hold": "holds", "fail": "fails", "depend on conditions": "depends on conditions"}
    words = {status: one.get(word, word) if counts.get(status) == 1 else word for status, word in _WORDS.items()}
    parts = ", ".join(f"{counts[status]} {word}" for status, word in words.items() if status in counts)
    return f"{total} {'claim' if total == 1 else 'claims'}: {parts}" if total else ""


def _found(sections: Sequence[Section]) -> Iterator[str]:
    from depthgauge.reports.escaping import clean  # noqa: PLC0415 - as above
    from depthgauge.reports.headlines import headlines  # noqa: PLC0415 - likewise
    from depthgauge.reports.settling import outlook  # noqa: PLC0415 - likewise

    if counted := tally(sections):
        yield click.style(counted, bold=True)
    for headline in headlines(sections, most=_SENTENCES):
        yield f"{_ITEM}{clean(headline.sentence.text)}"
    commands = outlook(settled for section in sections for settled in section.settle.values())
    if commands:
        yield "Undecided claims, and what may settle them:"
    for settled in commands[:_COMMANDS]:
        yield f"{_ITEM}{clean(f'{settled.text}: {settled.command}')}"


def _fitted(line: str) -> str:
    """A line of an answer, wrapped where a terminal shows it."""
    if not sys.stdout.isatty():
        return line
    lead = " " * len(_ITEM) if line.startswith(_ITEM) else ""
    return textwrap.fill(line, output.columns(), subsequent_indent=lead, break_long_words=False, break_on_hyphens=False)
