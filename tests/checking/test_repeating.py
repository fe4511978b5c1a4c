"""Batches that hold one example over and over, or come several times in a row, and outputs held against several."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim
from torch.nn import functional

import depthgauge
from depthgauge import Training


class Loader:
    """Batches of 16 drawn from a table; `of` makes the batches that come of one."""

    def __init__(self, of: Callable[[Tensor], list[Tensor]]) -> None:
        self.x = torch.randn(512, 8)
        self.y = (self.x @ torch.randn(8, 4)).argmax(1)
        self.of = of

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for drawn in torch.randperm(512).split(16):
            for rows in self.of(drawn):
                yield self.x[rows], self.y[rows]


def kinds(batches: Any, loss: Any = None, net: nn.Module | None = None) -> set[str]:
    net = net or nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 4))
    training = Training(net, batches, loss, optim.Adam(net.parameters(), 3e-3))
    return {each.kind for each in depthgauge.check(training, only=["data"]).answers["data"].findings}


@pytest.mark.parametrize(
    ("of", "told"),
    [
        (lambda rows: [rows], set()),
        (lambda rows: [rows[:1].expand(16)], {"copies_in_batch"}),
        (lambda rows: [rows[:8].repeat(2)], set()),
        (lambda rows: [rows, rows], {"batches_in_a_row"}),
        (lambda rows: [rows] * 4, {"batches_in_a_row"}),
        (lambda rows: [rows, rows.flip(0)], set()),
    ],
)
def test_what_batches_hold_more_than_once(of: Callable[[Tensor], list[Tensor]], told: set[str]) -> None:
    assert kinds(Loader(of)) & {"copies_in_batch", "batches_in_a_row"} == told


def test_one_batch_over_and_over_is_no_fault_of_workers() -> None:
    one = next(iter(Loader(lambda rows: [rows])))
    assert not kinds([one] * 12) & {"copies_in_batch", "batches_in_a_row"}


@pytest.mark.parametrize("summed", [True, False])
@pytest.mark.filterwarnings("ignore:Using a target size")
def test_an_output_that_is_held_against_several_targets(summed: bool) -> None:
    x, y = torch.randn(256, 8), torch.randn(256, 4)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return functional.mse_loss(model(batch[0]), batch[1].sum(1, keepdim=True) if summed else batch[1])

    found = kinds(list(zip(x.split(32), y.split(32), strict=True)), loss, nn.Linear(8, 1))
    assert ("targets_of_another_size" in found) != summed


@pytest.mark.parametrize("std", [1.0, 0.1])
def test_weights_of_unit_normals(std: float) -> None:
    net = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))
    for each in net.parameters():
        nn.init.normal_(each, std=std)
    assert ("unit_weights" in kinds(Loader(lambda rows: [rows]), net=net)) == (std == 1)
