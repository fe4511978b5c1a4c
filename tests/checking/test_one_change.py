"""Trials in which one thing is changed, and what drops numbers: each fault beside the same training without it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from depthgauge import Training
from depthgauge.checking import observing
from depthgauge.checking.answers import Finding
from depthgauge.checking.questions.data import modes, passing
from depthgauge.checking.questions.learning_rate import decaying, schedules
from depthgauge.checking.questions.learning_rate.rates import Rates
from depthgauge.checking.questions.reproducibility import saying
from depthgauge.checking.questions.reproducibility.mixing import Mixed
from depthgauge.checking.questions.signal import cutting, frozen, one_change, skips
from depthgauge.checking.questions.signal import passing as passes
from depthgauge.checking.questions.signal.wiring import Wiring
from depthgauge.checking.subject import Clock, Subject

WIDTH, ROWS, CLASSES = 16, 32, 4


def _found(model: nn.Module, batches: list[Any], rate: float = 1e-2) -> dict[str, Finding]:
    training = Training(model, batches, None, torch.optim.Adam(model.parameters(), rate))
    subject = Subject(training, observing.look(training), Clock(60.0, itertools.repeat(0.0).__next__))
    return {finding.kind: finding for finding in one_change.findings(subject)}


class _Memory(nn.Module):
    """A recurrence by hand: the class stands in the first of six places, and `cut` is made of each state."""

    def __init__(self, cut: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.cut = cut
        self.enter, self.keep, self.head = nn.Linear(CLASSES, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)
        nn.init.orthogonal_(self.keep.weight)
        nn.init.normal_(self.enter.weight, std=0.003)  # what came first is to be made larger

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(len(x), WIDTH)
        for place in range(x.shape[1]):
            state = torch.tanh(self.enter(x[:, place]) + self.keep(self.cut(state)))
        return self.head(state)


def _sequences() -> list[tuple[Tensor, Tensor]]:
    labels = torch.randint(CLASSES, (12, ROWS))
    batches = []
    for each in labels:
        x = 0.1 * torch.randn(ROWS, 6, CLASSES)
        x[:, 0] += 2 * functional.one_hot(each, CLASSES)
        batches.append((x, each))
    return batches


@pytest.mark.parametrize(("cut", "row"), [(torch.detach, 5), (lambda x: x.data, 5), (lambda x: x, 0)])
def test_states_cut_in_a_row_are_counted(cut: Callable[[Tensor], Tensor], row: int) -> None:
    """By either way to cut; the first state is no result of any."""
    training = Training(_Memory(cut), _sequences())
    assert cutting.chain(training, training.first()[0])[0] == row


def test_a_state_that_is_cut_by_hand_is_let_through_and_tried() -> None:
    found = _found(_Memory(torch.detach), _sequences())
    assert {"enter", "keep"} <= set(found["cut_state"].where)
    assert not _found(_Memory(lambda x: x), _sequences())


def test_what_is_stopped_for_good_is_no_fault() -> None:
    """Positions that are refined in steps without their gradient, and learn as well with it."""

    class Refined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.steps = nn.ModuleList(nn.Linear(CLASSES + WIDTH, CLASSES) for _ in range(5))
            self.net = nn.Linear(CLASSES, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            at, features = x.new_zeros(len(x), CLASSES), self.net(x[:, 0]).relu()
            for each in self.steps:
                at = at.detach() + each(torch.cat([at.detach(), features], 1))
            return at

    assert not _found(Refined(), _sequences())


def _points() -> list[tuple[Tensor, Tensor]]:
    centres = 2 * torch.randn(CLASSES, WIDTH)
    labels = torch.randint(CLASSES, (12, ROWS))
    return [(centres[each] + torch.randn(ROWS, WIDTH), each) for each in labels]


def test_blocks_that_add_what_came_in_twice_are_told_and_hand_it_on_once() -> None:
    """By their outputs, that hold twice what came in, and some of what the layer makes of it."""

    class Block(nn.Module):
        def __init__(self, times: int) -> None:
            super().__init__()
            self.norm, self.layer, self.times = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), times

        def forward(self, x: Tensor) -> Tensor:
            return self.times * x + 0.1 * self.layer(self.norm(x))

    twice, once = (nn.Sequential(*(Block(times) for _ in range(8))) for times in (2, 1))
    batches = _points()
    factors = skips.multiplying(Training(twice, batches), batches[0])
    assert list(factors) == [str(place) for place in range(8)]
    assert min(factors.values()) > 1.9
    assert max(factors.values()) < 2.1
    assert not skips.multiplying(Training(once, batches), batches[0])
    once.load_state_dict(twice.state_dict())
    skips.laid_once(twice, dict.fromkeys(factors, 2.0))
    torch.testing.assert_close(twice(batches[0][0]), once(batches[0][0]))


def test_scores_that_begin_far_too_large_are_tried_at_unit_size() -> None:
    """Products of unit normal vectors, 64 wide, and of short ones."""

    class Products(nn.Module):
        def __init__(self, size: float) -> None:
            super().__init__()
            self.rows, self.others = nn.Embedding(40, 256), nn.Embedding(CLASSES, 256)
            for each in (self.rows, self.others):
                nn.init.normal_(each.weight, std=size)

        def forward(self, index: Tensor) -> Tensor:
            return self.rows(index) @ self.others.weight.T

    words = torch.randint(40, (12, ROWS))
    batches = [(each, each % CLASSES) for each in words]
    assert "scale" in _found(Products(1.0), batches, 1e-3)
    assert not _found(Products(0.1), batches, 1e-3)


class _Drops(nn.Module):
    """Dropout by a function, or by hand."""

    def __init__(self, rate: float, *, by_hand: bool) -> None:
        super().__init__()
        self.rate, self.by_hand = rate, by_hand

    def forward(self, x: Tensor) -> Tensor:
        if not self.by_hand:
            return functional.dropout(x, self.rate, training=self.training)
        return x * (torch.rand_like(x) > self.rate) / (1 - self.rate)


@pytest.mark.parametrize("by_hand", [False, True])
@pytest.mark.parametrize("rate", [0.97, 0.5])
def test_dropout_that_is_no_layer_is_seen(rate: float, *, by_hand: bool) -> None:
    net = nn.Sequential(nn.Linear(WIDTH, WIDTH), _Drops(rate, by_hand=by_hand), nn.Linear(WIDTH, CLASSES))
    training = Training(net, _points())
    found = {each.kind: each.where for each in modes.findings(training, passing.make(training, training.first()[0]))}
    assert found == ({"heavy_dropout": ("1",)} if rate > 0.9 else {})
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


@pytest.mark.parametrize(
    ("make", "asked"),
    [
        (lambda p: torch.optim.RMSprop(p, 1e-3, weight_decay=0.1), True),
        (lambda p: torch.optim.Adagrad(p, 1e-2, weight_decay=0.1), True),
        (lambda p: torch.optim.AdamW(p, 1e-3, weight_decay=0.1), False),
        (lambda p: torch.optim.SGD(p, 1e-2, weight_decay=1e-2), False),
    ],
)
def test_a_penalty_that_adaptive_steps_divide_is_tried(make: Callable[[Any], Any], *, asked: bool) -> None:
    """SGD's and AdamW's are multiplied by the rate."""
    net = nn.Linear(WIDTH, CLASSES)
    training = Training(net, _points(), None, make(net.parameters()))
    assert decaying.asked(training, Rates.of(training.optimizer)) is asked


@pytest.mark.parametrize(("kept", "told"), [(0.8, True), (0.999, False)])
def test_a_schedule_that_ends_at_once_is_tried_at_its_peak(kept: float, *, told: bool) -> None:
    """An exponential decay a step where one an epoch was meant."""
    net = nn.Linear(WIDTH, CLASSES)
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, kept)
    optimizer.register_step_post_hook(lambda *_: scheduler.step())
    training = Training(net, _points(), None, optimizer)
    found = [each.kind for each in schedules.ended(training, Rates.of(optimizer), training.first(4))]
    assert found == (["short_schedule"] if told else [])


@pytest.mark.parametrize("along", ["softmax", ""])
def test_experts_share_places_and_not_their_weights(along: str) -> None:
    found = Mixed(culprit="model", moved=0.5, band=0.0, along=along, meant="experts may share a capacity")
    finding = saying.mixed(found, surely=True)
    assert finding is not None
    assert (finding.kind == "mixes_examples") is bool(along)


def test_several_frozen_new_heads_are_found() -> None:
    """Where the layers below train, and not where they are frozen, too."""

    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(WIDTH, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU())
            self.heads = nn.ModuleDict({"first": nn.Linear(24, 2), "second": nn.Linear(24, 3)})

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([each(self.body(x)) for each in self.heads.values()], 1)

    def kinds(part: str) -> dict[str, tuple[str, ...]]:
        net = Heads()
        net.get_submodule(part).requires_grad_(False)
        training = Training(net, _points(), lambda m, b: m(b[0]).square().mean())
        seen = passes.Passed()
        with training.untouched():
            passes.go(training, training.first()[:1], seen, others={})
        wiring = Wiring(training, seen, None, {}, training.first()[0])
        return {each.kind: each.where for each in frozen.findings(wiring)}

    assert kinds("heads")["frozen_layer"] == ("heads.first", "heads.second")
    assert "frozen_layer" not in kinds("body")
