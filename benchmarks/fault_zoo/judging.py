"""Judgement of what a tool says of a training: is it the planted fault?"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from depthgauge.checking import QUESTIONS, Checked, Status

TOLD = (Status.BROKEN, Status.LOOK)


@dataclass(frozen=True)
class Alarm:
    """One thing that a tool says is wrong.

    Attributes:
        question: of the check's; empty for other tools, which ask none.
        kind: the finding's, or the tool's rule.
        status: broken or look.
        where: names of layers, parameters or parts.
        text: the finding's sentence.
    """

    question: str
    kind: str
    status: str
    where: tuple[str, ...]
    text: str = ""


def alarms(checked: Checked) -> tuple[Alarm, ...]:
    """Findings of a check that a sound training must not have: of nature fault, broken or to be looked at."""
    kinds = {question.id: question.all_kinds for question in QUESTIONS}
    return tuple(
        Alarm(answer.id, finding.kind, finding.status.value, finding.where, finding.text)
        for answer in checked.asked
        for finding in answer.findings
        # A kind that no question declares accuses: it is counted as a fault's.
        if finding.status in TOLD
        and (finding.kind not in kinds[answer.id] or kinds[answer.id][finding.kind].nature == "fault")
    )


def found(told: Iterable[Alarm], found_by: Sequence[tuple[str, str]]) -> bool:
    """Tell whether one of them names the planted fault's place."""
    return any(
        alarm.question in {"", question} and any(_matches(pattern, name) for name in alarm.where)
        for alarm in told
        for question, pattern in found_by
    )


def _matches(pattern: str, name: str) -> bool:
    """Tell whether the name matches, or that of the module which holds the parameter."""
    return any(re.fullmatch(pattern, each) for each in (name, name.rpartition(".")[0] or name))
