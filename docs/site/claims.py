"""Writes docs/claims.md from the studies' claims and their published verdicts: `python docs/site/claims.py`."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from depthgauge.discovery import discover
from depthgauge.reports.escaping import Markdown, markdown
from depthgauge.topics import BY_NAME, place
from depthgauge.verdict import Claim

CHECKOUT = Path(__file__).parents[2]
PAGE = CHECKOUT / "docs" / "claims.md"
PUBLISHED = CHECKOUT / "reports" / "published"
TESTS = CHECKOUT / "tests" / "models" / "test_claims.py"  # its SETTLED: claims that no study asks
BEGIN = """# The claims, and what became of them

Every claim that a study tests, with its verdict in the published `standard` run: what is true, under which
conditions, and where it is shown. `holds` and `fails` are true and false under all conditions that were asked;
`depends` is true under some and false under others; `inconclusive` has too few repetitions for its margin under one at
least. Two studies may answer one claim ([how it is decided](method.md),
[how a report is read](reading-a-report.md#a-claim-and-what-became-of-it)).

"""
NOTES = """## The course notes

Forty-nine statements, paraphrased from five sets of public study notes on a deep-learning course.

"""
HEAD = "| | claim | verdict | conditions |\n|---|---|---|---|\n"


def page() -> str:
    """The page, whole."""
    claims = [(study.name, claim) for study in discover() for claim in study.claims]
    published = _published()
    notes: dict[str, list[str]] = {
        claim_id: [_row(claim_id, text, f"[{status}]({link})", says)]
        for claim_id, (text, status, says, link) in settled().items()
    }
    for study, claim in claims:
        if "/" not in claim.id:
            notes.setdefault(claim.id, []).append(_told(study, claim, published))
    found = BEGIN + NOTES + HEAD + "".join(row for claim_id in sorted(notes) for row in notes[claim_id])
    own = sorted((each for each in claims if "/" in each[1].id), key=lambda each: place(each[1].topic))
    for topic, group in groupby(own, key=lambda each: each[1].topic):
        rows = (_told(study, claim, published) for study, claim in group)
        found += f"\n## {BY_NAME[topic].question}\n\nWhat practice and theory say.\n\n{HEAD}{''.join(rows)}"
    return found


def settled() -> Mapping[str, tuple[str, str, str, str]]:
    """Claim -> its text, verdict, conditions and the file that settles it: those that no study asks."""
    for statement in ast.parse(TESTS.read_text("utf-8")).body:
        match statement:
            case ast.AnnAssign(target=ast.Name(id="SETTLED"), value=ast.expr() as value):
                found: dict[str, tuple[str, str, str, str]] = ast.literal_eval(value)
                return found
    raise LookupError(f"{TESTS} has no SETTLED")


def _told(study: str, claim: Claim, published: Mapping[tuple[str, str], tuple[str, Mapping[str, Any]]]) -> str:
    """A claim's row, or one for each of the studies that answer it."""
    if (study, claim.id) not in published:
        tells = Markdown(f"`depthgauge run {study} --preset standard` tells")
        return _row(claim.id, claim.text, "not published", tells)
    link, verdict = published[study, claim.id]
    status = verdict["status"].replace("_", " ")
    return _row(claim.id, claim.text, f"[{status}]({link})", verdict["says"] or verdict["why"])


def _row(claim_id: str, text: str, verdict: str, says: str) -> str:
    name = claim_id if "/" not in claim_id else f"`{claim_id}`"
    return f"| {name} | {markdown(text)} | {verdict} | {markdown(says)} |\n"


def _published() -> dict[tuple[str, str], tuple[str, Mapping[str, Any]]]:
    """(study, claim) -> the study's page and the verdict, of the reports that the repository holds."""
    return {
        (study, verdict["id"]): (f"../{path.parent.relative_to(CHECKOUT).as_posix()}/{study}.md", verdict)
        for path in sorted(PUBLISHED.glob("*/*/findings.json"))
        for study, verdict in _verdicts(path)
    }


def _verdicts(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    studies: dict[str, Any] = json.loads(path.read_bytes()).get("studies", {})
    return ((study, verdict) for study, entry in studies.items() for verdict in entry["verdicts"])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
