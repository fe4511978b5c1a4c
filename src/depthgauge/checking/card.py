"""The card as text: for a terminal, the worst first, and as markdown."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from html import unescape

from depthgauge.checking import upstream
from depthgauge.checking.against import Changes
from depthgauge.checking.amounts import figure
from depthgauge.checking.answers import WORST_FIRST, Answer, Finding, Status, Tried
from depthgauge.checking.found import Found
from depthgauge.reports.escaping import Markdown, clean, code, markdown
from depthgauge.reports.numbers import number

MARKS = {Status.BROKEN: "✗", Status.LOOK: "!", Status.UNDECIDED: "?", Status.FINE: "✓"}
WORDS = {Status.BROKEN: "broken", Status.LOOK: "to look at", Status.UNDECIDED: "undecided", Status.FINE: "fine"}
NARROWEST, WIDEST = 60, 200  # columns
_COLOURS = {Status.BROKEN: "1;31", Status.LOOK: "1;33", Status.UNDECIDED: "1;36", Status.FINE: "32"}
_FAINT, _BOLD = "2", "1"
_SHOWN = 3  # findings of a question; the page has all
_ASCII = str.maketrans({"✗": "x", "✓": "+", "→": ">", "·": "-", "–": "-", "−": "-", "×": "x", "∞": "inf", "…": "..."})
_TICKED, _ESCAPED = re.compile(r"\\`(.+?)\\`"), re.compile(r"\\(.)")  # in markdown that is escaped already
_PARTS = {"loss", "optimizer", "batches", "model"}  # places that the sentence names anyhow


def label(answer: Answer) -> str:
    """Return a question's id in words: `learning rate`."""
    return answer.id.replace("_", " ")


def worst_first(answers: Sequence[Answer]) -> list[Answer]:
    """Sort answers by status, in the order of the card where that is equal."""
    return sorted(answers, key=lambda answer: WORST_FIRST.index(answer.status))


def sentence(text: str) -> str:
    """The text with a capital at its beginning, where that is a plain word and no name: `float16`, `loss(model, x)`."""
    first = text.partition(" ")[0].rstrip(",:;")
    return text[:1].upper() + text[1:] if first.isalpha() and first.islower() else text


def trial(tried: Tried) -> str:
    """`tried He initialization: gradient ratio 0.001 before, 0.8 after`."""
    return f"tried {tried.what}: {tried.measure} {number(tried.before)} before, {number(tried.after)} after"


def grouped(answers: Sequence[Answer]) -> list[list[Answer]]:
    """Group undecided answers that give the same reason; every other stands alone."""
    groups: list[list[Answer]] = []
    for answer in answers:
        alone = answer.status is not Status.UNDECIDED
        same = (
            [] if alone else [each for each in groups if (each[0].status, each[0].says) == (answer.status, answer.says)]
        )
        if same:
            same[0].append(answer)
        else:
            groups.append([answer])
    return groups


def tally(checked: Found) -> str:
    """`1 broken, 2 to look at, 4 fine`."""
    counts = [(status, sum(answer.status is status for answer in checked.asked)) for status in WORST_FIRST]
    return ", ".join(f"{count} {WORDS[status]}" for status, count in counts if count)


def notes(checked: Found) -> tuple[str, ...]:
    """Sentences that belong to the whole card: what is said of its data, and that faults come first."""
    told = [f"{checked.about.note}."] if checked.about.note else []
    first = upstream.causes(checked.asked)
    if first and any(answer.advice for answer in checked.asked if answer.id not in upstream.CAUSES):
        told.append(f"Mend {' and '.join(first)} first, and check again: the rest is said of the training as it is.")
    return tuple(told)


# -- for a terminal ----------------------------------------------------------------------------------------------------


def text(
    checked: Found, width: int = 80, *, colour: bool = False, plain: bool = False, changes: Changes | None = None
) -> str:
    """The card for a terminal.

    Args:
        checked: what was found.
        width: columns, taken for 60 where it is less, and for 200 where it is more.
        colour: whether the terminal shows colours.
        plain: ASCII in place of marks and arrows.
        changes: what changed since an earlier check.
    """
    blocks = [list(_head(checked)), *(list(_block(group)) for group in grouped(worst_first(checked.asked)))]
    if changes is not None:
        blocks.append(list(_changes(changes)))
    columns = min(max(width, NARROWEST), WIDEST)
    lines: list[str] = []
    for place, block in enumerate(blocks):
        if place == 1 or len(block) > 1 or len(blocks[place - 1]) > 1:
            lines.append("")
        lines += [_set(line, columns, colour=colour, plain=plain) for line in block]
    return "\n".join(lines[1:])


Line = tuple[str, str, str]  # what stands in front, what is wrapped below it, and its colour


def _head(checked: Found) -> Iterator[Line]:
    yield ("", f"{checked.about.name or 'check'}: {tally(checked)}", _BOLD)
    if checked.about.model:
        yield ("", " · ".join(checked.about.facts), _FAINT)
    yield from (("", note, "") for note in notes(checked))


def _block(group: Sequence[Answer]) -> Iterator[Line]:
    answer = group[0]
    status = answer.status
    names = ", ".join(map(label, group))
    yield (f"{MARKS[status]} {status.value:<9} ", f"{names}: {answer.says}", _COLOURS[status])
    if status is Status.FINE:
        return
    if (told := figure(answer.measure)) and told not in answer.says:
        yield ("  ", told, _FAINT)
    first = answer.findings[0] if answer.findings else None
    for finding in answer.findings[:_SHOWN]:
        yield from _finding(finding, "" if finding is first and finding.text == answer.says else finding.text, answer)
    if rest := len(answer.findings) - _SHOWN:
        yield from [("  ", f"and {rest} more", _FAINT)] * (rest > 0)


def _finding(finding: Finding, told: str, answer: Answer) -> Iterator[Line]:
    if told:
        yield (f"  {MARKS[finding.status]} ", told, "")
    shown = figure(finding.measure)
    if shown and shown != figure(answer.measure) and shown not in told:
        yield ("    ", shown, _FAINT)
    if not all(name in _PARTS or name in f"{told} {answer.says}" for name in finding.where):
        yield ("    ", f"at {several(finding.where)}", _FAINT)
    if finding.advice:
        yield ("  → ", finding.advice, _BOLD)
    if finding.expected:
        yield ("    ", f"expected: {finding.expected}", "")
    if finding.tried:
        yield ("    ", trial(finding.tried), "")


def several(names: Sequence[str], most: int = 4) -> str:
    """The first names, and how many more there are."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def _changes(changes: Changes) -> Iterator[Line]:
    yield ("", f"Against {changes.earlier}: {changes.tally}", _BOLD)
    for row in changes.rows:
        yield (f"  {row.change.value:<13} ", f"{row.id.replace('_', ' ')}: {row.says}", "")
    for note in changes.notes:
        yield ("  ", note, _FAINT)


def _set(line: Line, width: int, *, colour: bool, plain: bool) -> str:
    front, told, paint = line
    if plain:
        front, told = front.translate(_ASCII), told.translate(_ASCII)
    wrapped = textwrap.wrap(
        clean(told), width, initial_indent=front, subsequent_indent=" " * len(front) if len(front) < 8 else "  ",
        break_on_hyphens=False,
    )  # fmt: skip
    whole = "\n".join(wrapped)
    if not colour or not paint or not whole:
        return whole
    body = len(front) if front.strip() and paint in _COLOURS.values() else len(whole)
    return f"\x1b[{paint}m{whole[:body]}\x1b[0m{whole[body:]}"


# -- as markdown -------------------------------------------------------------------------------------------------------


def page(checked: Found, changes: Changes | None = None, figures: Sequence[str] = ()) -> str:
    """The card as markdown: a line a question, and below it what was found.

    Args:
        checked: what was found.
        changes: what changed since an earlier check.
        figures: ids of the questions whose figure lies in `figures/`.
    """
    lines = [f"# {markdown(checked.about.name or 'check')}: {tally(checked)}", ""]
    if checked.about.model:
        lines += [markdown(" · ".join(checked.about.facts)), ""]
    for note in notes(checked):
        lines += [markdown(note), ""]
    lines += ["| | question | answer | what to do |", "|---|---|---|---|"]
    ordered = worst_first(checked.asked)
    for answer in ordered:
        cells = (f"{MARKS[answer.status]} {answer.status.value}", label(answer), answer.says, answer.advice)
        lines.append(f"| {' | '.join(map(ticked, cells))} |")
    for answer in ordered:
        lines += ["", f"## {markdown(answer.question)}", "", *_section(answer)]
        if answer.id in figures:
            lines += ["", f"![{markdown(answer.says)}](figures/{answer.id}.png)"]
    if changes is not None:
        lines += ["", f"## Against {markdown(changes.earlier)}", "", f"{changes.tally}.", ""]
        lines += [f"- **{row.change.value}**, {row.id.replace('_', ' ')}: {ticked(row.says)}" for row in changes.rows]
        lines += [f"- {markdown(note)}" for note in changes.notes]
    return "\n".join(lines) + "\n"


def _section(answer: Answer) -> Iterator[str]:
    yield f"**{MARKS[answer.status]} {answer.status.value}**: {ticked(sentence(answer.says))}"
    told = figure(answer.measure)
    shown = ": ".join(filter(None, ["" if told in answer.says else told, answer.measure.method]))
    if shown:
        yield f"\n*{markdown(shown)}*"
    if answer.findings:
        yield ""
    for finding in answer.findings:
        yield f"- {MARKS[finding.status]} {ticked(sentence(finding.text))}{_where(finding)}"
        parts = {
            "do": finding.advice, "expected": finding.expected, "figure": figure(finding.measure),
            "method": finding.measure.method, "tried": trial(finding.tried)[6:] if finding.tried else "",
        }  # fmt: skip
        yield from (f"  - {name}: {ticked(part)}" for name, part in parts.items() if part)


def ticked(text: str) -> Markdown:
    """Plain text as markdown, what stands between backticks as code."""
    return Markdown(_TICKED.sub(lambda found: code(unescape(_ESCAPED.sub(r"\1", found[1]))), markdown(text)))


def _where(finding: Finding) -> Markdown:
    return Markdown(f" ({', '.join(map(code, finding.where))})" if finding.where else "")
