"""The order of questions, and the time that each has."""

import pytest
import torch
from torch import nn

import depthgauge
from depthgauge.checking import Answer, Question, asking
from depthgauge.checking.answers import undecided
from depthgauge.checking.subject import Subject

TRAINING = depthgauge.Training(nn.Linear(2, 2), [(torch.zeros(4, 2), torch.zeros(4, dtype=torch.long))])


def question(name: str, share: float, needs: float, had: list[float]) -> Question:
    """A question that takes no time, and is decided where it is given `needs` seconds."""

    def ask(subject: Subject) -> Answer:
        had.append(subject.clock.left)
        if subject.clock.left < needs:
            return undecided(name, "?", "there was no time")
        return Answer(name, "?", "it is as it should be")

    return Question(name, "?", ask, share)


def test_time_that_others_leave_goes_to_what_had_too_little(monkeypatch: pytest.MonkeyPatch) -> None:
    first: list[float] = []
    last: list[float] = []
    asked = (question("first", 1, 500, first), question("last", 3, 0, last))
    monkeypatch.setattr(asking, "named", lambda _: asked)
    found = depthgauge.check(TRAINING, budget=1000)
    assert found.answers["first"].status == "fine"
    assert 200 < first[0] <= 250
    assert first[1] > 900
    assert len(last) == 1


def test_a_question_that_had_all_the_time_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    had: list[float] = []
    monkeypatch.setattr(asking, "named", lambda _: (question("only", 1, 5000, had),))
    assert depthgauge.check(TRAINING, budget=1000).answers["only"].status == "undecided"
    assert len(had) == 1
