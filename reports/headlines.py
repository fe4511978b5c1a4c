"""The few findings that open a report: the same in its pages and at the end of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from depthgauge.reports.content import Drawing, Section
from depthgauge.topics import place
from depthgauge.verdict import Sentence, Status

MOST = 7


@dataclass(frozen=True)
class Headline:
    """A finding that opens the report: its sentence, the study it is from, and the figure that shows it, if any."""

    sentence: Sentence
    section: Section
    drawing: Drawing | None


def by_topic(sections: Sequence[Section]) -> tuple[Section, ...]:
    """The studies in the order of a report's questions; what has no answer, and then no topic, comes after them."""
    return tuple(sorted(sections, key=lambda section: (not section.measured, place(section.topic))))


def headlines(sections: Sequence[Section], most: int = MOST) -> tuple[Headline, ...]:
    """Choose at most `most` findings, by turns over the studies in the order of a report's questions.

    The first of each study comes first, then the second of each, and so on. Of one study, those on what was decided go
    before those on what was not, and those with a figure before those without, each in its own order.
    """
    queues = [_of_study(section) for section in by_topic(sections)]
    turns = max(map(len, queues), default=0)
    taken = [queue[turn] for turn in range(turns) for queue in queues if turn < len(queue)]
    return tuple(taken[:most])


def figure_of(sentence: Sentence, section: Section) -> Drawing | None:
    """The study's figure that the sentence names; None where it names none, or one that was not drawn."""
    named = (drawing for drawing in section.drawings if drawing.name == sentence.figure)
    return next(named, None) if sentence.figure else None


def _of_study(section: Section) -> list[Headline]:
    every = [Headline(sentence, section, figure_of(sentence, section)) for sentence in section.answers]
    return sorted(every, key=lambda one: (_open(one.sentence, section), one.drawing is None))


def _open(sentence: Sentence, section: Section) -> bool:
    """Whether each claim that carries the sentence is undecided."""
    statuses = {verdict.id: verdict.status for verdict in section.verdicts}
    return bool(sentence.claims) and all(statuses.get(one) is Status.INCONCLUSIVE for one in sentence.claims)
