"""What a question has found stands, whatever comes after it; what it did not get to is told."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

import depthgauge
from depthgauge import Training
from depthgauge.checking import Answer, Question, Status, asking, observing, questions
from depthgauge.checking.answers import Finding
from depthgauge.checking.questions.signal import passed_by, watching
from depthgauge.checking.subject import Clock, Subject

BATCHES = [(torch.ones(4, 2), torch.zeros(4, dtype=torch.long))] * 2
FOUND = Finding("no_gradient", Status.BROKEN, "a layer is cut off", where=("0",))


def _training(**given: object) -> Training:
    return Training(nn.Linear(2, 2), BATCHES, **given)  # type: ignore[arg-type]


def _failing(subject: Subject) -> Answer:
    subject.found.append(FOUND)
    raise KeyError("later")


def test_what_was_found_stands_where_the_question_fails_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "named", lambda _: (Question("signal", "?", _failing, 1),))
    found = depthgauge.check(_training())
    answer = found.answers["signal"]
    assert (found.exit_code, answer.status, answer.says) == (3, "broken", FOUND.text)
    assert [each.kind for each in answer.findings] == ["no_gradient", "not_measured"]
    assert "'later'" in answer.findings[1].text


@pytest.mark.parametrize("question", questions.QUESTIONS, ids=lambda each: each.id)
def test_no_question_loses_what_it_found(question: Question, monkeypatch: pytest.MonkeyPatch) -> None:
    def filled(subject: Subject) -> Answer:
        subject.found.append(FOUND)
        return question.ask(subject)

    monkeypatch.setattr(asking, "named", lambda _: (dataclasses.replace(question, ask=filled),))
    training = _training()
    training = dataclasses.replace(training, optimizer=torch.optim.SGD(training.model.parameters(), lr=0.1))
    assert FOUND in depthgauge.check(training, budget=0.1).answers[question.id].findings


def _raising(*_: Any, **__: Any) -> Any:
    raise ValueError("a hook of the user's")


class _Spare(nn.Linear):
    def __init__(self) -> None:
        super().__init__(2, 2)
        self.spare = nn.Linear(2, 2)


def _cut_off() -> Training:
    model = _Spare()
    return Training(model, BATCHES, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))


def test_a_fault_stands_beside_a_passage_that_there_was_no_time_for(monkeypatch: pytest.MonkeyPatch) -> None:
    short = Finding("not_measured", Status.UNDECIDED, "there was time for 2 of 30 steps")
    monkeypatch.setattr(passed_by, "of_depth", lambda *_: iter([short]))
    found = depthgauge.check(_cut_off(), only=["signal"])
    assert found.exit_code == 3
    assert {"no_gradient", "not_measured"} <= {each.kind for each in found.answers["signal"].findings}


def test_a_part_that_raises_is_told_and_costs_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "watch", _raising)
    answer = depthgauge.check(_cut_off(), only=["signal"]).answers["signal"]
    assert answer.status == "broken"
    (missed,) = (each for each in answer.findings if each.kind == "not_measured")
    assert "attention, softmax" in missed.text
    assert "a hook of the user's" in missed.text


@pytest.mark.parametrize(
    ("place", "left_out"),
    [(0, ("the first steps", "attention, softmax")), (4, ("what drops or normalizes", "parts of the loss"))],
)
def test_what_there_was_no_time_for_is_named(place: int, left_out: tuple[str, str]) -> None:
    training = _training()
    training = dataclasses.replace(training, optimizer=torch.optim.SGD(training.model.parameters(), lr=0.1))
    slow = dataclasses.replace(observing.look(training), seconds=100.0)
    answer = asking._asked(questions.QUESTIONS[place], Subject(training, slow, Clock(90.0)))
    assert answer.status == "undecided"
    (missed,) = (each for each in answer.findings if each.text.startswith("not measured: for want of time"))
    assert all(each in missed.text for each in left_out)
    assert "larger budget" in missed.advice
