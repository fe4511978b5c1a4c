"""Writes the table of what a check can find into docs/check.md, from its questions: `python docs/site/kinds.py`."""

from __future__ import annotations

from pathlib import Path

from depthgauge.checking import QUESTIONS, Question
from depthgauge.reports.escaping import code, markdown

PAGE = Path(__file__).parents[1] / "check.md"
BEGIN, END = "<!-- kinds: python docs/site/kinds.py writes what follows -->\n", "<!-- end of kinds -->\n"
ORDER = ("fault", "property", "opportunity")


def page() -> str:
    """The page, whole: what stands around the tables is its own."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    return before + BEGIN + "".join(map(table, QUESTIONS)) + END + after


def table(question: Question) -> str:
    """A question's kinds: faults first."""
    kinds = sorted(question.all_kinds.items(), key=lambda item: ORDER.index(item[1].nature))
    rows = "".join(f"| {code(name)} | {kind.nature} | {markdown(kind.meaning)} |\n" for name, kind in kinds)
    title = question.id.replace("_", " ").capitalize()
    return f"### {title}\n\n| kind | nature | what it is, and when it is said |\n|---|---|---|\n{rows}\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
