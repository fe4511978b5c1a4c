"""Answers about one training: findings, each with what to do, and the status that follows from them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import pandas as pd


class Status(StrEnum):
    """The status of a question, or of one finding about it; the worst first."""

    BROKEN = "broken"  # the training does not do what it says
    LOOK = "look"  # it works and leaves something on the table
    UNDECIDED = "undecided"  # it was not measured, or the data do not tell
    FINE = "fine"


WORST_FIRST = tuple(Status)
TRIFLE = 1e-3  # seconds of a step: a smaller saving leaves a question fine; it is 100 s in 100,000 steps

Nature = Literal["fault", "property", "opportunity"]
"""A fault is none of a sound training's; a property (batch normalization's dependence on the batch) may be, and an
opportunity (a faster format) is a wish. A fault found in a sound training is a false alarm."""


@dataclass(frozen=True)
class Kind:
    """A kind of finding, as the documentation lists it.

    Attributes:
        nature: whether a sound training may have it.
        meaning: what it is, and the threshold with its source, in a sentence.
    """

    nature: Nature
    meaning: str


@dataclass(frozen=True)
class Measure:
    """The figure that a question or a finding turns on.

    Attributes:
        name: what was measured: `largest stable rate`.
        value: NaN where nothing was measured.
        low: lower end of its interval; NaN without one.
        high: upper end.
        unit: empty for a pure number.
        method: how value and interval were made, in a line.
    """

    name: str = ""
    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    unit: str = ""
    method: str = ""


@dataclass(frozen=True)
class Tried:
    """A remedy that was tried on the training itself, and put back.

    Attributes:
        what: the remedy: `He initialization of the linear layers`.
        measure: what was measured: `gradient at the first layer over that at the last`.
        before: without it.
        after: with it.
    """

    what: str
    measure: str
    before: float
    after: float


@dataclass(frozen=True)
class Finding:
    """One thing that was found about a training.

    Attributes:
        kind: its name in the question's `kinds`: `no_gradient`, `double_softmax`, ...
        status: how much it matters.
        text: one sentence with the figure in it; who sees it alone understands it.
        advice: what to do, in the imperative; empty where there is nothing to be done.
        expected: what that is expected to change.
        where: names of layers, parameters or parts (`loss`, `optimizer`, `batches`) that are the culprits.
        measure: the figure that it rests on.
        tried: the advice, tried.
    """

    kind: str
    status: Status
    text: str
    advice: str = ""
    expected: str = ""
    where: tuple[str, ...] = ()
    measure: Measure = field(default_factory=Measure)
    tried: Tried | None = None


@dataclass(frozen=True)
class Answer:
    """Answer to one question of the card.

    Attributes:
        id: the question's.
        question: as a user asks it.
        says: the answer in one sentence, whatever its status: what was found fine is said with its figure.
        findings: what was found, the worst first.
        measure: the question's own figure, also where all is fine.
        tables: the evidence, by name.
        seconds: what the answer took.
    """

    id: str
    question: str
    says: str
    findings: tuple[Finding, ...] = ()
    measure: Measure = field(default_factory=Measure)
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    seconds: float = math.nan

    def __post_init__(self) -> None:
        ordered = sorted(self.findings, key=lambda finding: WORST_FIRST.index(finding.status))
        object.__setattr__(self, "findings", tuple(ordered))

    @property
    def status(self) -> Status:
        """The status of the worst finding; fine where there is none."""
        return worst(finding.status for finding in self.findings)

    @property
    def value(self) -> float:
        """The question's figure, or that of the worst finding."""
        return self.figure.value

    @property
    def low(self) -> float:
        """Lower end of its interval."""
        return self.figure.low

    @property
    def high(self) -> float:
        """Upper end of its interval."""
        return self.figure.high

    @property
    def unit(self) -> str:
        """Unit of the three."""
        return self.figure.unit

    @property
    def advice(self) -> str:
        """The first thing to do."""
        return next((finding.advice for finding in self.findings if finding.advice), "")

    @property
    def expected(self) -> str:
        """The change that is expected of it."""
        return next((finding.expected for finding in self.findings if finding.advice), "")

    @property
    def where(self) -> tuple[str, ...]:
        """The culprits of the findings that decide the status."""
        names = (name for finding in self.findings if finding.status is self.status for name in finding.where)
        return tuple(dict.fromkeys(names))

    @property
    def figure(self) -> Measure:
        """Its own measure, or that of the worst finding that has one."""
        own = (self.measure, *(finding.measure for finding in self.findings))
        return next((measure for measure in own if not math.isnan(measure.value)), self.measure)


def worst(statuses: Iterable[Status]) -> Status:
    """The worst of several; fine where there is none."""
    return min(statuses, key=WORST_FIRST.index, default=Status.FINE)


def most_severe(findings: Iterable[Finding]) -> Finding | None:
    """The first of the findings with the worst status; None where there is none."""
    return min(findings, key=lambda finding: WORST_FIRST.index(finding.status), default=None)


def undecided(id: str, question: str, why: str) -> Answer:  # noqa: A002 - the name that the answers have
    """An answer that was not had, and why."""
    return Answer(id, question, why, (Finding("not_measured", Status.UNDECIDED, why),))


NOT_MEASURED = {"not_measured": Kind("property", "it could not be measured, or not within the time; the text says why")}
