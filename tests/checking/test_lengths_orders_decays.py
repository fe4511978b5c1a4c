"""Padding that is read, shares taken along a batch, loaders without a seed, and what steps take too much of."""

from __future__ import annotations

import cProfile
import sys
from collections.abc import Callable, Iterator
from itertools import cycle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn, optim
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import depthgauge
from depthgauge import Training
from depthgauge.checking import observing
from depthgauge.checking.answers import Finding
from depthgauge.checking.questions.data import axes, called, padding
from depthgauge.checking.questions.learning_rate import gains, schedules
from depthgauge.checking.questions.learning_rate.rates import Rates
from depthgauge.checking.questions.precision import operators
from depthgauge.checking.questions.reproducibility import mixing, ordering
from depthgauge.checking.questions.signal import turned
from depthgauge.checking.subject import Clock, Subject

ROWS, WIDE = 16, 6


def subject(training: Training) -> Subject:
    return Subject(training, observing.look(training), Clock(60))


def kinds(found: Iterator[Finding]) -> list[str]:
    return [each.kind for each in found]


class Mixture(nn.Module):
    """Logarithms of shares of nine, at each of seven times; times come first."""

    def __init__(self, along: int) -> None:
        super().__init__()
        self.along, self.told = along, nn.Linear(WIDE, 9)

    def forward(self, x: Tensor) -> Tensor:
        return self.told(x).transpose(0, 1).log_softmax(self.along)


class Meeting(nn.Module):
    """Attention among the examples of a batch, which are meant to meet."""

    def __init__(self) -> None:
        super().__init__()
        self.told = nn.Linear(WIDE, 5)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1)
        return self.told((mean @ mean.T).softmax(1) @ mean)


@pytest.mark.parametrize(("model", "over"), [(Mixture(1), True), (Mixture(2), False), (Meeting(), False)])
def test_shares_are_an_examples_own(model: nn.Module, over: bool) -> None:
    x, y = torch.randn(64, 7, WIDE), torch.randn(64)
    rows = DataLoader(TensorDataset(x, y), batch_size=ROWS)
    training = Training(model, rows, lambda m, b: -m(b[0]).sum(-1).mean() * b[1].square().mean())
    asked = subject(training)
    assert kinds(axes._over_rows(asked)) == ["softmax_over_examples"] * over
    part = mixing.bearable(training, asked.seen.batch)
    assert bool(mixing._along(training, part, len(part[0]))) is over


class Viewed(nn.Module):
    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows, self.told = rows, nn.Linear(rows * WIDE, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.told(x.view(-1, self.rows * WIDE))


@pytest.mark.parametrize(("rows", "held"), [(ROWS, True), (1, False)])
@pytest.mark.filterwarnings("ignore:Using a target size")
def test_an_answer_is_an_examples_own(rows: int, held: bool) -> None:
    batch = torch.randn(ROWS, WIDE), torch.randn(ROWS, 3)
    training = Training(Viewed(rows), [batch], lambda m, b: functional.mse_loss(m(b[0]), b[1]))
    assert kinds(called.findings(subject(training))) == ["one_answer_for_all"] * held


@pytest.mark.filterwarnings("ignore:Using a target size")
def test_a_learnt_target_for_all_is_none() -> None:
    batch = torch.randn(ROWS, WIDE), torch.randn(ROWS, 3)
    training = Training(
        Viewed(1), [batch], lambda m, b: functional.mse_loss(m(b[0]), b[1]) + functional.mse_loss(m(b[0]), m(b[0][:1]))
    )
    assert not kinds(called.findings(subject(training)))


class Reader(nn.Module):
    def __init__(self, masked: bool) -> None:
        super().__init__()
        self.masked, self.word, self.told = masked, nn.Embedding(20, WIDE), nn.Linear(WIDE, 3)

    def forward(self, ids: Tensor) -> Tensor:
        there = (ids != 0).unsqueeze(2) if self.masked else torch.ones_like(ids).unsqueeze(2)
        return self.told((self.word(ids) * there).sum(1) / there.sum(1))


class Tagger(Reader):
    """An answer at each place, of what stands there and before."""

    def forward(self, ids: Tensor) -> Tensor:
        return self.told(self.word(ids).cumsum(1))


def lines(widths: tuple[int, ...]) -> list[tuple[Tensor, Tensor]]:
    made = []
    for wide in widths:
        long = torch.randint(3, 7, (ROWS,))
        long[0] = wide
        ids = torch.randint(1, 20, (ROWS, wide)).masked_fill(torch.arange(wide) >= long[:, None], 0)
        made.append((ids, torch.randint(3, (ROWS,))))
    return made


def last(model: nn.Module, batch: Any) -> Tensor:
    told = model(batch[0])
    return functional.cross_entropy(told if told.dim() == 2 else told[:, 0], batch[1])


@pytest.mark.parametrize(
    ("model", "widths", "read"),
    [
        (Reader(masked=False), (18, 24, 20), True),
        (Reader(masked=True), (18, 24, 20), False),
        (Reader(masked=False), (20, 20, 20), False),
        (Tagger(masked=False), (18, 24, 20), False),
    ],
)
def test_padding_that_is_read(model: nn.Module, widths: tuple[int, ...], read: bool) -> None:
    training = Training(model, lines(widths), last, optim.Adam(model.parameters(), 1e-3))
    assert kinds(padding.findings(subject(training))) == ["padding_read"] * read


class Drawn:
    """Rows in an order of their own for each reading."""

    def __init__(self, order: Callable[[int], Any]) -> None:
        self.rows, self.order = torch.randn(64, WIDE), order

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for rows in torch.as_tensor(self.order(64)).split(ROWS):
            yield self.rows[rows], torch.zeros(len(rows), dtype=torch.int64)


def going_on() -> Callable[[int], Tensor]:
    """An order that goes on where it was, as a queue does; nothing is drawn."""
    first = cycle(range(7))
    return lambda count: torch.arange(count).roll(next(first) + 1)


@pytest.mark.parametrize(
    ("order", "unseeded"),
    [
        (lambda count: np.random.default_rng().permutation(count), True),
        (lambda count: torch.randperm(count, generator=anew()), True),
        (lambda count: np.random.default_rng(3).permutation(count), False),
        (torch.randperm, False),
        (np.random.permutation, False),
        (going_on(), False),
    ],
)
def test_a_loader_without_a_seed(order: Callable[[int], Any], unseeded: bool) -> None:
    training = Training(nn.Linear(WIDE, 3), Drawn(order))
    found = list(ordering.findings(subject(training)))
    assert kinds(iter(found)) == ["unseeded"] * unseeded
    assert all(each.where == ("batches",) for each in found)


def test_the_user_s_profile_goes_on() -> None:
    training = Training(nn.Linear(WIDE, 3), Drawn(lambda count: np.random.default_rng().permutation(count)))
    asked, profile = subject(training), cProfile.Profile()
    profile.enable()
    try:
        before = sys.getprofile()
        found = list(ordering.findings(asked))
        assert sys.getprofile() is before
    finally:
        profile.disable()
    handed_out = before is None or callable(before)  # from Python 3.12 on
    assert kinds(iter(found)) == ["unseeded"] * handed_out
    assert len(asked.missed) == (not handed_out)


def anew() -> torch.Generator:
    made = torch.Generator()
    made.seed()
    return made


@pytest.mark.parametrize(("rate", "too_much"), [(0.85, True), (0.15, False)])
def test_shares_that_are_dropped_and_were_to_be_kept(rate: float, too_much: bool) -> None:
    net = nn.Sequential()
    for into in (WIDE, 32, 32):
        net += nn.Sequential(nn.Linear(into, 32), nn.ReLU(), nn.Dropout(rate))
    net += nn.Sequential(nn.Linear(32, 4))
    x = torch.randn(256, WIDE)
    rows = DataLoader(TensorDataset(x, x[:, :4].argmax(1)), batch_size=32)
    asked = subject(Training(net, rows, None, optim.Adam(net.parameters(), 3e-3)))
    found = list(turned.findings(asked))
    assert kinds(iter(found)) == ["dropped_for_kept"] * too_much
    assert all(each.tried is not None and each.tried.after < each.tried.before for each in found)
    assert {each.p for each in net.modules() if isinstance(each, nn.Dropout)} == {rate}


@pytest.mark.parametrize(
    ("decay", "on_gains", "kind", "told"),
    [
        (1.0, 1.0, optim.AdamW, True),
        (1.0, 0.0, optim.AdamW, False),
        (0.1, 0.1, optim.AdamW, False),
        (1.0, 1.0, optim.SGD, False),
    ],
)
def test_decay_that_outruns_the_steps_of_gains(decay: float, on_gains: float, kind: Any, told: bool) -> None:
    net = nn.Sequential(nn.Linear(WIDE, 8), nn.LayerNorm(8), nn.Linear(8, 3))
    flat = [each for each in net.parameters() if each.dim() < 2]
    steep = [each for each in net.parameters() if each.dim() > 1]
    steps = kind([{"params": steep, "weight_decay": decay}, {"params": flat, "weight_decay": on_gains}], lr=1e-3)
    batch = torch.randn(ROWS, WIDE), torch.randint(3, (ROWS,))
    found = list(gains.findings(Training(net, [batch], None, steps)))
    assert [each.where for each in found] == [("optimizer", "1.weight")] * told


class Fading(optim.SGD):
    """A tenth of the rate after every seven steps, which were to be epochs."""

    count = 0

    def step(self, closure: Any = None) -> Any:  # type: ignore[override] # torch's own
        said = super().step(closure)
        self.count += 1
        for group in self.param_groups:
            group["lr"] *= 0.1 if self.count % 7 == 0 else 1.0
        return said


@pytest.mark.parametrize(("kind", "short"), [(Fading, True), (optim.SGD, False)])
def test_a_rate_that_the_optimizers_steps_take_away(kind: Any, short: bool) -> None:
    net = nn.Linear(WIDE, 4)
    x = torch.randn(128, WIDE)
    batches = list(zip(x.split(ROWS), x[:, :4].argmax(1).split(ROWS), strict=True))
    training = Training(net, batches, None, kind(net.parameters(), lr=0.05))
    answer = depthgauge.check(training, only=["learning_rate"]).answers["learning_rate"]
    assert ("short_schedule" in {each.kind for each in answer.findings}) is short
    found = schedules.ended(training, Rates.of(training.optimizer), batches)
    assert kinds(found) == ["short_schedule"] * short


@pytest.mark.parametrize(("guard", "lost"), [(1e-8, {"loss"}), (1e-6, set())])
def test_a_guard_that_is_lost_before_it_is_widened(guard: float, lost: set[str]) -> None:
    told = torch.rand(ROWS, 4).half().softmax(1)
    with operators.watched(nn.Linear(2, 2)) as seen:
        (told + guard).float().log()
    assert set(seen.lost) == lost
    assert {each.format for each in seen.lost.values()} <= {"float16"}
