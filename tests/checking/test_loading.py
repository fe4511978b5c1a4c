"""The time of a loader: batches are read as far as it goes, and what could not be read is told."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import depthgauge
from depthgauge import Training
from depthgauge.checking import asking, observing, questions
from depthgauge.checking.loading import Reading
from depthgauge.checking.subject import Clock, Subject


class Loader:
    """Batches that take `each` seconds of a time of its own, the first one `lead` more."""

    def __init__(self, count: int = 200, each: float = 1.0, lead: float = 0.0) -> None:
        self.count, self.each, self.lead = count, each, lead
        self.now = 0.0
        self.made = 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.now += self.lead
        for place in range(self.count):
            self.now += self.each
            self.made += 1
            yield torch.full((4, 2), float(place)), torch.arange(4) % 2


def _of(batches: Any) -> Training:
    model = nn.Linear(2, 2)
    return Training(model, batches, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))


def _places(batches: list[Any]) -> list[int]:
    return [int(inputs[0, 0]) for inputs, _ in batches]


def test_reading_ends_with_its_time_and_begins_anew_only_where_that_gets_further() -> None:
    loader = Loader(lead=2.0)
    reading = Reading(_of(loader), lambda: loader.now)
    assert _places(reading.batches(4, 4.5)) == [0, 1, 2]  # the third comes after 5 s
    assert (reading.known, reading.lead, reading.each) == (3, 3.0, 1.0)
    assert len(reading.batches(24, 5.5)) == 3  # which would read the same ones
    assert loader.made == 3
    assert _places(reading.batches(24, 8.5)) == [0, 1, 2, 3, 4, 5]
    assert loader.made == 3 + 6
    assert len(reading.batches(5, 0.0)) == 5
    assert loader.made == 9


def test_an_iterator_goes_on_where_it_is() -> None:
    loader = Loader()
    reading = Reading(_of(iter(loader)), lambda: loader.now)
    assert len(reading.batches(4, 100.0)) == 4
    assert _places(reading.batches(24, 3.5)) == list(range(7))
    assert (loader.made, reading.ended) == (7, False)


@pytest.mark.parametrize("begun", [lambda loader: loader, iter])
def test_a_loader_that_has_ended_is_not_read_again(begun: Callable[[Loader], Any]) -> None:
    loader = Loader(count=3)
    reading = Reading(_of(begun(loader)), lambda: loader.now)
    assert [len(reading.batches(16)) for _ in range(3)] == [3, 3, 3]
    assert (loader.made, reading.ended) == (3, True)


def test_a_first_batch_is_read_whatever_it_takes() -> None:
    loader = Loader(each=50.0)
    assert len(Reading(_of(loader), lambda: loader.now).batches(4, 1.0)) == 1
    with pytest.raises(depthgauge.workload.WorkloadError, match="empty"):
        Reading(_of([])).batches(4, 1.0)


def test_a_slow_loader_is_named_where_time_is_short() -> None:
    loader = Loader(each=2.0)
    training = _of(loader)
    seen = observing.look(training, lambda: 30.0)
    seen.reading.each = 2.0
    subject = Subject(training, seen, Clock(5.0))
    made = loader.made
    assert len(subject.batches(24)) == 4
    assert loader.made == made
    assert 2.0 < subject.step < 3.0
    assert asking._asked(questions.QUESTIONS[-1], subject).says.startswith("a pass takes")
    assert loader.made == made
    signal = asking._asked(questions.QUESTIONS[0], subject)
    assert any("the first steps" in each.text and "the loader 2 s" in each.text for each in signal.findings)
    assert loader.made == made


def test_a_copy_of_a_large_state_counts_once_for_all_passes_within_it() -> None:
    training = _of([(torch.ones(4, 2), torch.arange(4) % 2)])
    seen = dataclasses.replace(observing.look(training), seconds=1.0, copies=6.0)
    subject = Subject(training, seen, Clock(20.0, itertools.repeat(0.0).__next__))
    assert (subject.count(1.0, 100), subject.count(1.0, 100, copies=3), subject.count(1.0, 100, 0.2)) == (14, 2, 0)
    assert [subject.fits(passes, "it") for passes in (14, 15)] == [True, False]
    assert not subject.fits(3, "it", copies=3)
    assert subject.short == ["it", "it"]
    assert subject.pace == "a pass takes 1 s and a copy of all that it changes 6 s"
    told = asking._asked(questions.QUESTIONS[5], subject)
    assert "two equal runs" in next(each.text for each in told.findings if each.status == "undecided")


def test_what_putting_back_takes_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    time = itertools.count()  # a second passes from each look to the next
    monkeypatch.setattr(observing.time, "perf_counter", lambda: float(next(time)))
    seen = observing.look(_of([(torch.ones(4, 2), torch.arange(4) % 2)]))
    assert (seen.seconds, seen.copies) == (1.0, 2.0)
