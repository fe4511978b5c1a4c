"""Numbers that a batch shares, probabilities as scores, labels beside their places, shares of the wrong end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Categorical
from torch.nn import functional

from depthgauge import Training
from depthgauge.checking import observing
from depthgauge.checking.questions.data import batches, edges, leaking, padding, passing, probable, scaled, sight
from depthgauge.checking.questions.reproducibility import mixing, shared
from depthgauge.checking.subject import Clock, Subject

ROWS, WIDE = 16, 6


def subject(model: nn.Module, taken: list[Any], loss: Callable[[nn.Module, Any], Tensor]) -> Subject:
    training = Training(model, taken, loss, torch.optim.Adam(model.parameters(), 5e-3))
    return Subject(training, observing.look(training), Clock(60))


def scores(model: nn.Module, batch: Any) -> Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1])


def raised(told: Tensor) -> Tensor:
    return told - told.exp().sum(1, keepdim=True).log()


@pytest.mark.parametrize(
    ("logs", "again"),
    [
        (lambda told: Categorical(logits=told.softmax(1)).logits, True),
        (lambda told: raised(told.softmax(1)), True),
        (lambda told: functional.gumbel_softmax(told.softmax(1)).log(), True),
        (lambda told: Categorical(probs=told.softmax(1)).logits, False),
        (lambda told: Categorical(logits=told).logits, False),
        (raised, False),
        (lambda told: (told.sigmoid() / 2).log_softmax(1), False),
    ],
)
def test_probabilities_are_no_scores(logs: Callable[[Tensor], Tensor], again: bool) -> None:
    batch = torch.randn(ROWS, WIDE), torch.randint(4, (ROWS,))
    asked = subject(nn.Linear(WIDE, 4), [batch], lambda m, b: functional.nll_loss(logs(m(b[0])), b[1]))
    passed = passing.make(asked.training, asked.seen.batch)
    assert [each.kind for each in probable.findings(passed.again)] == ["double_softmax"] * again


class Scaled(nn.Module):
    def __init__(self, scale: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.scale, self.layer = scale, nn.Linear(WIDE, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.scale(x))


@pytest.mark.parametrize(
    ("scale", "meets"),
    [
        (lambda x: x / x.max(), True),
        (lambda x: (x - x.mean(0)) / (x.std(0) + 1e-3), True),
        (lambda x: torch.maximum(x, x.max() - 0.3), True),
        (lambda x: functional.layer_norm(x, x.shape), True),
        (lambda x: x / x.amax(1, keepdim=True), False),
        (lambda x: (x - x.max()).softmax(1), False),
        (lambda x: (x / x.max() * 127).round(), False),
        (lambda x: x / 3 + x.mean(1, keepdim=True), False),
    ],
)
def test_a_number_that_a_batch_shares(scale: Callable[[Tensor], Tensor], meets: bool) -> None:
    batch = torch.rand(ROWS, WIDE) * torch.rand(ROWS, 1) + 0.1, torch.randint(4, (ROWS,))
    model = Scaled(scale)
    training = Training(model, [batch], scores, torch.optim.SGD(model.parameters(), 0.1))
    found = shared.shared(training, mixing.bearable(training, batch))
    assert (found is not None) == meets


@pytest.mark.parametrize(
    ("prepare", "told"),
    [
        (lambda x: x / x.abs().max(), True),
        (lambda x: x / x.norm(), True),
        (lambda x: (x - x.mean(0)) / x.std(0), True),
        (lambda x: x, False),
        (lambda x: x / x.norm(dim=1, keepdim=True), False),
        (lambda x: x.clamp(max=0.5), False),
    ],
)
def test_batches_scaled_by_their_own(prepare: Callable[[Tensor], Tensor], told: bool) -> None:
    drawn = [torch.rand(ROWS, WIDE) * torch.rand(ROWS, 1) for _ in range(8)]
    asked = subject(nn.Linear(WIDE, 4), [(prepare(each), torch.randint(4, (ROWS,))) for each in drawn], scores)
    assert [each.kind for each in scaled.findings(asked, batches.read(asked))] == ["scaled_by_batch"] * told


class Edges(nn.Module):
    def __init__(self, over: int) -> None:
        super().__init__()
        self.over, self.score, self.out = over, nn.Linear(WIDE, 1), nn.Linear(WIDE, 4)

    def forward(self, x: Tensor, ends: Tensor) -> Tensor:
        loud = self.score(x)[ends[0]].exp()
        whole = torch.zeros(len(x), 1).index_add(0, ends[self.over], loud)[ends[self.over]]
        return self.out(torch.zeros_like(x).index_add(0, ends[1], loud / whole * x[ends[0]]))


@pytest.mark.parametrize("over", [0, 1])
def test_attention_is_shared_out_among_what_a_node_hears(over: int) -> None:
    batch = torch.randn(ROWS, WIDE), torch.randint(ROWS, (2, 64)), torch.randint(4, (ROWS,))
    asked = subject(Edges(over), [batch], lambda m, b: functional.cross_entropy(m(b[0], b[1]), b[2]))
    assert [each.kind for each in edges.findings(asked)] == ["softmax_over_receivers"] * (over == 0)


class Tagger(nn.Module):
    """Tags of places, each from a window of three."""

    def __init__(self, recurrent: bool) -> None:
        super().__init__()
        self.word, self.recurrent = nn.Embedding(20, 8), recurrent
        self.near, self.past = nn.Conv1d(8, 8, 3, padding=1), nn.GRU(8, 8, batch_first=True)
        self.out = nn.Linear(8, 4)

    def forward(self, ids: Tensor) -> Tensor:
        h = self.word(ids)
        return self.out(self.past(h)[0] if self.recurrent else self.near(h.mT).mT)


@pytest.mark.parametrize(
    ("by", "recurrent", "told"),
    [(-2, False, True), (3, False, True), (0, False, False), (1, False, False), (-1, True, False), (2, True, False)],
)
def test_labels_beside_their_places(by: int, recurrent: bool, told: bool) -> None:
    """A window of one place does not see what is two away; a recurrence sees what was, and is to say what comes."""
    words = torch.randint(20, (256, 12))
    tags = torch.randint(4, (20,))[words].roll(by, 1)
    taken = [*zip(words.split(64), tags.split(64), strict=True)]
    asked = subject(Tagger(recurrent), taken, lambda m, b: functional.cross_entropy(m(b[0]).mT, b[1]))
    assert [each.kind for each in sight.findings(asked)] == ["labels_out_of_sight"] * told


def test_a_token_that_the_model_names_as_padding() -> None:
    """Three tokens a line, and then padding: no lengths tell it, and the table's `padding_idx` does."""
    labels = torch.full((ROWS, 12), 1)
    labels[:, :3] = torch.randint(2, 20, (ROWS, 3))
    for named, told in ((1, ["padding_scored"]), (None, [])):
        model = nn.Sequential(nn.Embedding(20, 8, padding_idx=named), nn.Linear(8, 20))
        batch = torch.randint(2, 20, (ROWS, 12)), labels
        asked = subject(model, [batch], lambda m, b: functional.cross_entropy(m(b[0]).mT, b[1]))
        assert [each.kind for each in padding.findings(asked)] == told


@pytest.mark.parametrize(("share", "told"), [(0.8, True), (0.2, False)])
def test_a_mean_of_the_target_by_groups_of_one(share: float, told: bool) -> None:
    target = torch.randn(256, 1)
    group = torch.where(torch.rand(256, 1) < share, target, torch.randn(256, 1))
    taken = [*zip(torch.cat([torch.randn(256, 5), group], 1).split(64), target.split(64), strict=True)]
    asked = subject(nn.Linear(WIDE, 1), taken, lambda m, b: functional.mse_loss(m(b[0]), b[1]))
    read = batches.read(asked)
    assert [each.kind for each in leaking.findings(read.inputs[0], read)] == ["leak"] * told
