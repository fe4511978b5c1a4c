"""The order of a report: its headlines, then question by question what was found and what became of every claim.

    outline = Outline.of(sections)
    outline.headlines; outline.topics[0].question; outline.topics[0].notes[0].says

Pages in HTML and in markdown are two forms of it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from depthgauge.reports.content import Drawing, Section
from depthgauge.reports.escaping import slug
from depthgauge.reports.headlines import Headline, by_topic, figure_of, headlines
from depthgauge.topics import TOPICS
from depthgauge.verdict import DECIDED, Sentence, Status, Verdict

_NOTE = re.compile(r"N\d\d")
_RANKS = {
    **dict.fromkeys(DECIDED, 0), Status.INCONCLUSIVE: 1, Status.NOT_MEASURED: 2, Status.NOT_APPLICABLE: 3
}  # fmt: skip
_FEW = 3  # claims that hold and stand open; more of them are folded
_UNASKED = frozenset({Status.NOT_APPLICABLE, Status.NOT_MEASURED})


@dataclass(frozen=True)
class Row:
    """A claim and the answers to it: one from each study that asked it.

    Attributes:
        id: the claim's id.
        anchor: where a page has it.
        claim: the claim's text.
        status: that of its answers; `depends` where decided ones differ, and `inconclusive` where the decided ones
            agree and another is undecided, as between a study's own conditions (`stats.combine`).
        answers: (study, verdict), those that say something first.
    """

    id: str
    anchor: str
    claim: str
    status: Status
    answers: tuple[tuple[Section, Verdict], ...]

    @property
    def note(self) -> bool:
        """Tell whether the course notes make this claim."""
        return bool(_NOTE.fullmatch(self.id))

    @property
    def says(self) -> str:
        """The status in words; several studies' words after their names where they differ."""
        said = {section.name: verdict.says for section, verdict in self.answers if verdict.says}
        if len(set(said.values())) <= 1:
            return next(iter(said.values()), "")
        return "; ".join(f"{name}: {words}" for name, words in said.items())


@dataclass(frozen=True)
class Exhibit:
    """A figure that stands open, and the findings that it shows.

    Attributes:
        section: the study that it is from.
        drawing: the figure.
        sentences: the findings, in the study's order.
    """

    section: Section
    drawing: Drawing
    sentences: tuple[Sentence, ...]


@dataclass(frozen=True)
class Chapter:
    """One question of a report.

    Attributes:
        name: the topic's name, or `study-<slug>` of a study without topic; a page's anchor is `topic-<name>`.
        question: as a reader asks it.
        sections: the studies that say something on it.
        exhibits: the figures that stand open, with their findings.
        remarks: (study, finding) without a figure of its own.
        notes: the claims of the course notes that were asked.
        others: the other claims that were asked.
        unasked: claims that were not measured or do not apply.
    """

    name: str
    question: str
    sections: tuple[Section, ...]
    exhibits: tuple[Exhibit, ...]
    remarks: tuple[tuple[Section, Sentence], ...]
    notes: tuple[Row, ...]
    others: tuple[Row, ...]
    unasked: tuple[Row, ...]

    @property
    def held(self) -> tuple[Row, ...]:
        """The other claims that hold, where they are many: a page folds them, as what went as expected."""
        held = tuple(row for row in self.others if row.status is Status.HOLDS)
        return held if len(held) > _FEW else ()

    @property
    def told(self) -> tuple[Row, ...]:
        """The other claims that stand open."""
        return tuple(row for row in self.others if row not in self.held)

    @property
    def rows(self) -> tuple[Row, ...]:
        """Every claim under this question."""
        return (*self.notes, *self.others, *self.unasked)


@dataclass(frozen=True)
class Outline:
    """A report's order.

    Attributes:
        sections: the studies, in the order of their questions.
        headlines: the findings that open it.
        topics: its questions, those that have neither finding nor claim left out.
    """

    sections: tuple[Section, ...]
    headlines: tuple[Headline, ...]
    topics: tuple[Chapter, ...]

    @classmethod
    def of(cls, sections: Sequence[Section]) -> Outline:
        """Bring examined studies into a report's order."""
        ordered = by_topic(sections)
        found = [one for section in ordered for one in _found(section)]
        rows = _rows(ordered)
        names = {topic.name: topic.question for topic in TOPICS}
        names |= {_own(section): section.question or section.name for section in ordered if not section.topic}
        chapters = (
            _chapter(
                name,
                question,
                [one for one in found if one.topic == name],
                [row for topic, row in rows if topic == name],
            )
            for name, question in names.items()
        )
        return cls(ordered, headlines(ordered), tuple(one for one in chapters if one.sections))

    @property
    def rows(self) -> tuple[Row, ...]:
        """Every claim, once."""
        return tuple(row for topic in self.topics for row in topic.rows)

    @property
    def tally(self) -> tuple[tuple[Status, int], ...]:
        """Count the claims of each status, in the order of `Status`; a status without a claim is left out."""
        counts = Counter(row.status for row in self.rows)
        return tuple((status, counts[status]) for status in Status if counts[status])

    @property
    def open(self) -> frozenset[str]:
        """The stems of the figures that stand open."""
        return frozenset(exhibit.drawing.stem for topic in self.topics for exhibit in topic.exhibits)


def _own(section: Section) -> str:
    return section.topic or f"study-{section.slug}"


def _topic_of(sentence: Sentence, section: Section) -> str:
    """The question that a finding belongs to: that of the first claim that carries it, or else the study's."""
    topics = section.topics
    return next((topics[name] for name in sentence.claims if topics.get(name)), _own(section))


@dataclass(frozen=True)
class _Found:
    """Findings that stand together: those that one figure shows, or those without one."""

    section: Section
    topic: str
    drawing: Drawing | None
    sentences: tuple[Sentence, ...]


def _found(section: Section) -> tuple[_Found, ...]:
    """A study's findings, those of one figure together, under the question of the first of them."""
    found: dict[str, _Found] = {}
    for sentence in section.answers:
        drawing, topic = figure_of(sentence, section), _topic_of(sentence, section)
        key = drawing.stem if drawing else f" {topic}"
        known = found.get(key, _Found(section, topic, drawing, ()))
        found[key] = replace(known, sentences=(*known.sentences, sentence))
    return tuple(found.values())


def _chapter(name: str, question: str, found: Sequence[_Found], rows: Sequence[Row]) -> Chapter:
    asked = [row for row in rows if row.status not in _UNASKED]
    speaking = {one.section.name: one.section for one in found}
    speaking |= {section.name: section for row in rows for section, _ in row.answers}
    return Chapter(
        name,
        question,
        sections=by_topic(tuple(speaking.values())),
        exhibits=tuple(Exhibit(one.section, one.drawing, one.sentences) for one in found if one.drawing),
        remarks=tuple((one.section, sentence) for one in found if not one.drawing for sentence in one.sentences),
        notes=tuple(sorted((row for row in asked if row.note), key=lambda row: row.id)),
        others=tuple(row for row in asked if not row.note),
        unasked=tuple(row for row in rows if row.status in _UNASKED),
    )


def _rows(sections: Iterable[Section]) -> list[tuple[str, Row]]:
    """(question, claim) in the order of the studies; a claim of two studies stands where the first one has it."""
    answers: dict[str, list[tuple[Section, Verdict]]] = {}
    for section in sections:
        for verdict in section.verdicts:
            answers.setdefault(verdict.id, []).append((section, verdict))
    return [_row(each) for each in answers.values()]


def _row(answers: Sequence[tuple[Section, Verdict]]) -> tuple[str, Row]:
    """One claim under its question, the answers that say something first."""
    section, verdict = answers[0]
    told = tuple(sorted(answers, key=lambda answer: _RANKS[answer[1].status]))
    topic = section.topics.get(verdict.id) or _own(section)
    return topic, Row(verdict.id, slug(verdict.id), verdict.claim, _joint([one.status for _, one in told]), told)


def _joint(statuses: Sequence[Status]) -> Status:
    """One status of several answers, of which those that say something come first."""
    decided = DECIDED & set(statuses)
    if len(decided) > 1 or Status.DEPENDS in decided:
        return Status.DEPENDS
    return Status.INCONCLUSIVE if Status.INCONCLUSIVE in statuses else statuses[0]
