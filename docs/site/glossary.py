"""Writes docs/glossary.md from the terms that the reports explain: `python docs/site/glossary.py`."""

from __future__ import annotations

from pathlib import Path

from depthgauge.reports.glossary import TERMS, Term, typeset

PAGE = Path(__file__).parents[1] / "glossary.md"
BEGIN = """# Glossary

The terms that a report explains where they first stand. Formulas are in [theory](theory.md), rules of deciding in
[method](method.md), the statuses of a claim in [reading a report](reading-a-report.md#a-claim-and-what-became-of-it).

| term | what it is |
|---|---|
"""


def page() -> str:
    """The page, whole."""
    return BEGIN + "".join(f"| {row(term)} |\n" for term in sorted(TERMS, key=lambda term: term.name.lower()))


def row(term: Term) -> str:
    """A term with its other names, and what it is."""
    shown = typeset(term.name)
    other = ", ".join(form for form in (term.name, *term.forms) if form not in {shown, f"{shown}s"})
    return f"**{shown}**{f' ({other})' if other else ''} | {typeset(term.meaning)}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
