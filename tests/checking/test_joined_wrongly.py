"""What is laid along another dimension, kept of the first batch, or added as a mask; sound ones beside them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from depthgauge import Training
from depthgauge.checking import observing
from depthgauge.checking.attributes import attributes_kept
from depthgauge.checking.questions.data import across, added, kept, passing, rows, squares
from depthgauge.checking.subject import Clock, Subject

COUNT, WIDE, LONG = 8, 6, 9


class Through(nn.Module):
    """A linear layer, and a function of it and of what it is given."""

    def __init__(self, function: Callable[..., Tensor], *shape: int) -> None:
        super().__init__()
        self.linear, self.function = nn.Linear(WIDE, COUNT), function
        self.own = nn.Parameter(torch.randn(shape))
        self.cache: Tensor | None = None

    def forward(self, *given: Tensor) -> Tensor:
        return self.function(self, *given)


def found(module: Any, net: nn.Module, *columns: Tensor, loss: Any = None) -> dict[str, tuple[str, ...]]:
    batches = DataLoader(TensorDataset(*columns), COUNT, shuffle=True, generator=torch.Generator().manual_seed(0))
    training = Training(net, batches, loss or (lambda model, batch: model(*batch).square().mean()))
    subject = Subject(training, observing.look(training), Clock(30))
    with attributes_kept(training):
        passed = passing.make(training, subject.seen.batch)
        asked = {added: (passed.mask,), squares: (subject, passed.square)}.get(module, (subject,))
        return {each.kind: each.where for each in module.findings(*asked)}


@pytest.mark.parametrize("lost", [True, False])
def test_brightness_along_the_columns_of_images(lost: bool) -> None:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        bright = 0.5 + torch.rand(len(batch[0]))
        image = batch[0] * (bright if lost else bright[:, None, None, None])
        return functional.mse_loss(model(image), batch[0])

    told = found(across, nn.Conv2d(1, 1, 3, padding=1), torch.randn(4 * COUNT, 1, 5, COUNT), loss=loss)
    assert told == ({"along_another_axis": ("loss",)} if lost else {})


@pytest.mark.parametrize("lost", [True, False])
def test_gate_of_an_example_along_its_units(lost: bool) -> None:
    def gated(net: Through, x: Tensor) -> Tensor:
        h = net.linear(x)
        return h * h.mean(1).sigmoid() if lost else h * h.mean(1, keepdim=True).sigmoid() * net.own

    told = found(across, Through(gated, COUNT), torch.randn(4 * COUNT, WIDE))
    assert told == ({"along_another_axis": ("model", "loss")} if lost else {})


def same_noise(net: Any, x: Tensor) -> Tensor:
    noise = torch.randn(len(x), 1, 1, generator=torch.Generator().manual_seed(0))
    return net.linear(x) + noise


@pytest.mark.parametrize(
    ("function", "shape", "faulty"),
    [
        (lambda net, x: net.linear(x) + net.own[: len(x)], (COUNT, 1, 1), True),
        (lambda net, x: net.linear(x) * net.own[: len(x), None], (COUNT, 1), True),
        (lambda net, x: net.linear(x) + net.own, (LONG, COUNT), False),
        (lambda net, x: net.linear(x) + torch.randn(len(x), 1, 1), (1,), False),
        (same_noise, (1,), False),
        (lambda net, x: net.linear(x) + x.mean((0, 2))[:, None], (1,), False),
        (lambda net, x: net.linear(x) * net.own[torch.arange(len(x)) * 2 // len(x)], (2, 1, 1), False),  # two members
    ],
)
def test_outputs_that_depend_on_their_row(function: Any, shape: tuple[int, ...], faulty: bool) -> None:
    told = found(rows, Through(function, *shape), torch.randn(4 * COUNT, LONG, WIDE))
    assert told == ({"row_in_batch": ("model",)} if faulty else {})


def first_kept(net: Any, x: Tensor, mask: Tensor) -> Tensor:
    net.cache = mask if net.cache is None else net.cache
    return net.linear(x * net.cache)


def scaled_by_the_first(net: Any, x: Tensor, mask: Tensor) -> Tensor:
    net.cache = x.std(0) if net.cache is None else net.cache
    return net.linear(x * mask / net.cache)


def last_kept(net: Any, x: Tensor, mask: Tensor) -> Tensor:
    net.cache = mask
    return net.linear(x * net.cache)


@pytest.mark.parametrize("function", [first_kept, scaled_by_the_first, last_kept])
def test_a_mask_of_the_first_batch(function: Any) -> None:
    x = torch.randn(4 * COUNT, WIDE)
    told = found(kept, Through(function, 1), x, (torch.rand(4 * COUNT, WIDE) < 0.5).float())
    assert told == ({"first_kept": ("model",)} if function is first_kept else {})


class Heads(nn.Module):
    def __init__(self, mask: Tensor, padding: Tensor | None = None, by_hand: bool = False) -> None:
        super().__init__()
        self.attention, self.mask, self.padding, self.by_hand = nn.MultiheadAttention(WIDE, 2), mask, padding, by_hand

    def forward(self, x: Tensor) -> Tensor:
        if self.by_hand:
            queries = x @ self.attention.out_proj.weight
            return functional.scaled_dot_product_attention(queries, x, x, attn_mask=self.mask)
        x = x.transpose(0, 1)
        return self.attention(x, x, x, attn_mask=self.mask, key_padding_mask=self.padding)[0]


LOWER = torch.ones(LONG, LONG).tril()
ENDS = (torch.arange(LONG) > 4).float().expand(COUNT, LONG)


@pytest.mark.parametrize(
    ("net", "where"),
    [
        (lambda: Heads(LOWER), ("attention", "model")),
        (lambda: Heads(LOWER.log(), ENDS), ("attention", "model")),
        (lambda: Heads(LOWER, by_hand=True), ("model",)),
        (lambda: Heads(LOWER.bool(), by_hand=True), ()),
        (lambda: Heads(LOWER.log(), (ENDS > 0).float() * -1e9), ()),
        (lambda: Heads(LOWER == 0, ENDS > 0), ()),
    ],
)
def test_a_mask_that_is_added(net: Any, where: tuple[str, ...]) -> None:
    told = found(added, net(), torch.randn(4 * COUNT, LONG, WIDE))
    assert told == ({"added_ones": where} if where else {})


def weighed(net: Any, x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    return functional.mse_loss(net(x), y, reduction="none").mean(1) * weight


def returned(net: Any, x: Tensor, reward: Tensor) -> Tensor:
    with torch.no_grad():
        aim = reward + 0.9 * net(x + 1).amax(1, keepdim=True)
    return (net(x).gather(1, torch.zeros(len(x), 1, dtype=torch.int64)) - aim).square()


def kernel(net: Any, x: Tensor, y: Tensor) -> Tensor:
    own = net(x)
    return torch.exp(2 * own @ y.T - own.square().sum(1, keepdim=True) - y.square().sum(1))


def ranked(net: Any, x: Tensor, y: Tensor) -> Tensor:
    scores = net(x)[:, :1]
    return functional.softplus((scores - scores.squeeze(1)) * (y - y.T).sign())


@pytest.mark.parametrize(
    ("of", "columns", "faulty"),
    [
        (weighed, ((COUNT,), (1,)), True),
        (weighed, ((COUNT,), ()), False),
        (returned, ((),), True),
        (returned, ((1,),), False),
        (kernel, ((COUNT,),), False),
        (ranked, ((1,),), False),
    ],
)
def test_squares_of_examples(of: Any, columns: tuple[tuple[int, ...], ...], faulty: bool) -> None:
    rest = [torch.randn(4 * COUNT, *shape) for shape in columns]
    told = found(
        squares, nn.Linear(WIDE, COUNT), torch.randn(4 * COUNT, WIDE), *rest,
        loss=lambda model, batch: of(model, *batch).mean(),
    )  # fmt: skip
    assert told == ({"square_of_examples": ("loss", "batches")} if faulty else {})
