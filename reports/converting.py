"""Findings in plain types: an analysis is foreign code, and hands over NumPy's scalars and texts of its own classes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from depthgauge.verdict import Sentence, Status, Verdict


def plain_sentences(answers: Iterable[Sentence | str]) -> tuple[Sentence, ...]:
    """Return the sentences in plain types, those without a word left out; a text is one without a figure.

    Raises:
        TypeError: one is neither.
    """
    every = [answers] if isinstance(answers, str) else answers
    return tuple(sentence for sentence in map(_sentence, every) if sentence.text.strip())


def _sentence(answer: object) -> Sentence:
    text: object = answer.text if isinstance(answer, Sentence) else answer
    if not isinstance(text, str):
        raise TypeError(f"an answer is {type(text).__name__}, where a sentence was expected")
    if not isinstance(answer, Sentence):
        return Sentence(str(text))
    return Sentence(str(text), str(answer.figure or ""), tuple(map(str, answer.claims)))


def plain_verdict(verdict: Verdict) -> Verdict:
    """Return the verdict in plain types, without an analysis's NumPy scalars."""
    numbers = ("observed", "low", "high", "predicted", "margin")
    texts = ("id", "claim", "unit", "counted", "table", "condition", "answer", "reference", "says", "method", "why",
             "at_edge")  # fmt: skip
    plainly: dict[str, Any] = {name: _float(getattr(verdict, name)) for name in numbers}
    plainly |= {name: str(getattr(verdict, name)) for name in texts}
    plainly |= {"n": int(verdict.n), "needed": int(verdict.needed), "log": bool(verdict.log)}
    return replace(verdict, status=Status(verdict.status), **plainly)


def _float(value: float | None) -> float | None:
    return None if value is None else float(value)
