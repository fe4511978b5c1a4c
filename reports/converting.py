"""Findings in plain types: an analysis is foreign code, and hands over NumPy's scalars and texts of its own classes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from depthgauge.verdict import Sentence, Status, Verdict


def plain_sentence(sentence: Sentence | str) -> Sentence:
    """Return the sentence in plain types; a text is one without a figure."""
    if not isinstance(sentence, Sentence):
        return Sentence(str(sentence))
    return Sentence(str(sentence.text), str(sentence.figure), tuple(map(str, sentence.claims)))


def plain_verdict(verdict: Verdict) -> Verdict:
    """Return the verdict in plain types, without an analysis's NumPy scalars."""
    numbers = ("observed", "low", "high", "predicted", "margin")
    texts = ("id", "claim", "unit", "counted", "table", "condition", "answer", "reference", "says", "method", "why")
    plainly: dict[str, Any] = {name: _float(getattr(verdict, name)) for name in numbers}
    plainly |= {name: str(getattr(verdict, name)) for name in texts}
    plainly |= {"n": int(verdict.n), "needed": int(verdict.needed), "log": bool(verdict.log)}
    return replace(verdict, status=Status(verdict.status), **plainly)


def _float(value: float | None) -> float | None:
    return None if value is None else float(value)
