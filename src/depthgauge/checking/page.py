"""The card as one HTML page that opens without a network, and as what a notebook shows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from depthgauge.checking import card, evidence
from depthgauge.checking.against import Changes
from depthgauge.checking.amounts import figure
from depthgauge.checking.answers import Answer, Finding, Status, Tried
from depthgauge.checking.evidence import Picture
from depthgauge.checking.found import Found
from depthgauge.checking.questions import QUESTIONS
from depthgauge.reports.escaping import clean
from depthgauge.reports.numbers import number
from depthgauge.reports.pages import HTML, described
from depthgauge.reports.tables import Table

_TITLES = {
    Status.BROKEN: "Something is broken",
    Status.LOOK: "It works, and leaves something on the table",
    Status.UNDECIDED: "Nothing is broken, and not everything is decided",
    Status.FINE: "Nothing is broken",
}


@dataclass(frozen=True)
class _Finding:
    """A finding as the page has it."""

    finding: Finding
    figure: str
    trial: _Trial | None
    meaning: str


@dataclass(frozen=True)
class _Trial:
    """A remedy that was tried; widths are per cent of the longer bar, 0 where numbers have no lengths."""

    what: str
    measure: str
    before: str
    after: str
    widths: tuple[float, float]


@dataclass(frozen=True)
class _Asked:
    """A question as the page has it."""

    answer: Answer
    label: str
    figure: str
    findings: tuple[_Finding, ...]
    picture: Picture | None
    problem: str
    tables: tuple[Table, ...]


def page(checked: Found, drawn: Mapping[str, Picture | str] | None = None, changes: Changes | None = None) -> str:
    """The page, with everything in it.

    Args:
        checked: what was found.
        drawn: figures by the question's id, or why there is none; None draws them.
        changes: what changed since an earlier check.
    """
    pictures = {answer.id: evidence.drawn(answer) for answer in checked.asked} if drawn is None else drawn
    about = checked.about
    return HTML.get_template("check.html.j2").render(
        name=about.name or "training",
        title=_TITLES[checked.status],
        tally=card.tally(checked),
        facts=about.facts if about.model else (),
        started=about.started,
        notes=card.notes(checked),
        budget=checked.budget,
        asked=[_asked(answer, pictures.get(answer.id, "")) for answer in card.worst_first(checked.asked)],
        changes=changes,
        environment=described(checked.run),
        marks=card.MARKS,
        ticked=ticked,
        sentence=card.sentence,
    )


def _asked(answer: Answer, drawn: Picture | str) -> _Asked:
    kinds = next((question.all_kinds for question in QUESTIONS if question.id == answer.id), {})
    meanings = {name: kind.meaning for name, kind in kinds.items()}
    return _Asked(
        answer,
        card.label(answer),
        figure(answer.measure),
        tuple(_found(finding, meanings.get(finding.kind, "")) for finding in answer.findings),
        drawn if isinstance(drawn, Picture) else None,
        drawn if isinstance(drawn, str) else "",
        tuple(evidence.tables(answer)),
    )


def _found(finding: Finding, meaning: str) -> _Finding:
    return _Finding(finding, figure(finding.measure), _trial(finding.tried) if finding.tried else None, meaning)


def _trial(tried: Tried) -> _Trial:
    ends = (tried.before, tried.after)
    longest = max(ends) if all(math.isfinite(end) and end >= 0 for end in ends) else 0.0
    widths = tuple(100 * end / longest if longest else 0.0 for end in ends)
    return _Trial(tried.what, tried.measure, number(tried.before), number(tried.after), (widths[0], widths[1]))


def ticked(text: str) -> Markup:
    """Plain text as HTML, what stands between backticks as code."""
    parts = clean(text).split("`")
    if len(parts) % 2 == 0:
        return escape(clean(text))
    code = Markup("<code>{}</code>")
    return Markup("").join(code.format(part) if place % 2 else escape(part) for place, part in enumerate(parts))


# -- a notebook --------------------------------------------------------------------------------------------------------


def fragment(checked: Found) -> str:
    """HTML for a notebook: a row a question, the worst first."""
    rows = Markup("").join(_line(answer) for answer in card.worst_first(checked.asked))
    head = Markup("<p><b>{}</b>: {}<br><small>{}</small></p>").format(
        checked.about.name or "check", card.tally(checked), _line_of(checked.about.facts)
    )
    return str(head + Markup("<table><tbody>{}</tbody></table>").format(rows))


def _line_of(parts: Sequence[str]) -> str:
    return " · ".join(parts)


def _line(answer: Answer) -> Markup:
    parts = [ticked(answer.says)]
    for finding in answer.findings:
        told = Markup("") if finding.text == answer.says else Markup("<br>{}").format(ticked(finding.text))
        advice = Markup("<br><b>→ {}</b>").format(ticked(finding.advice)) if finding.advice else Markup("")
        expected = Markup("<br>expected: {}").format(ticked(finding.expected)) if finding.expected else Markup("")
        parts.append(told + advice + expected)
    cells = (f"{card.MARKS[answer.status]} {answer.status.value}", card.label(answer))
    left = Markup('<td style="text-align: left; vertical-align: top; white-space: nowrap">{}</td>')
    return Markup("<tr>{}{}<td style='text-align: left'>{}</td></tr>").format(
        left.format(cells[0]), left.format(cells[1]), Markup("").join(parts)
    )
