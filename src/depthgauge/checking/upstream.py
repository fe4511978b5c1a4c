"""Faults upstream: where signal or data are at fault, no rate and no batch size is advised until they are mended."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from depthgauge.checking.answers import Answer, Finding, Kind, Status
from depthgauge.checking.questions import QUESTIONS

CAUSES = ("signal", "data")  # whose faults change what rates, batches and formats a training bears
_HELD = {"diverges", "rate_too_large", "rate_too_small", "rate_low", "warm_up", "large_batch"}
_WISHES = {"initialization", "way_around"}  # which a fault of the loss may be the reason of
_OF_RATES = {"nonfinite", "dead_units", "saturated_units"}  # what steps at too large a rate may bring about
_OF_BATCHES = {"same_batch", "sorted"}  # which both questions look for
_FAR = {"diverges", "rate_too_large"}
_KINDS: dict[str, Kind] = {
    kind: told for question in QUESTIONS if question.id in CAUSES for kind, told in question.all_kinds.items()
}


def once(answers: Sequence[Answer]) -> tuple[Answer, ...]:
    """Return the answers with what `batch` and `data` both found told by `data` alone."""
    told = {each.kind for answer in answers if answer.id == "data" for each in answer.findings} & _OF_BATCHES
    return tuple(_less(answer, told) if answer.id == "batch" else answer for answer in answers)


def _less(answer: Answer, told: set[str]) -> Answer:
    double = [each for each in answer.findings if each.kind in told]
    if not double:
        return answer
    rest = tuple(each for each in answer.findings if each not in double)
    says = "the batches themselves are at fault: see data" if answer.says == double[0].text else answer.says
    return dataclasses.replace(answer, findings=rest, says=says)


def causes(answers: Sequence[Answer]) -> list[str]:
    """Return the questions, `signal` or `data`, whose faults come before all other answers."""
    too_large = any(finding.kind in _FAR for answer in answers for finding in answer.findings)
    return [
        answer.id
        for answer in answers
        if answer.id in CAUSES and any(_is_cause(finding, too_large=too_large) for finding in answer.findings)
    ]


def _is_cause(finding: Finding, *, too_large: bool) -> bool:
    if too_large and finding.kind in _OF_RATES:
        return False
    told = _KINDS.get(finding.kind)
    return finding.status is Status.BROKEN or (told is not None and told.nature == "fault")


def held(answers: Sequence[Answer]) -> tuple[Answer, ...]:
    """Return the answers with advice on rates and batch sizes held back where there is a cause upstream."""
    first = causes(answers)
    if not first:
        return tuple(answers)
    advice = f"mend {' and '.join(first)}, then check again: the advice that holds now may not hold then"
    return tuple(
        dataclasses.replace(answer, findings=tuple(_without_advice(finding, advice) for finding in answer.findings))
        for answer in answers
    )


def _without_advice(finding: Finding, advice: str) -> Finding:
    if finding.kind in _WISHES:
        return dataclasses.replace(finding, status=Status.FINE, advice=advice, expected="", tried=None)
    if finding.kind not in _HELD:
        return finding
    return dataclasses.replace(finding, advice=advice, expected="", tried=None)
