"""What holds for all questions: the time, and batches that cannot be read or have no lengths."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import depthgauge
from depthgauge import Training, nested


def classify(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1])


def training(batches: Any, loss: Any = classify) -> Training:
    model = nn.Linear(4, 3)
    return Training(model, batches, loss, torch.optim.SGD(model.parameters(), lr=0.1))


def drawn(count: int) -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(8, 4), torch.randint(3, (8,))) for _ in range(count)]


def test_slow_steps_end_within_the_budget_and_a_pass() -> None:
    made = 0

    def slow(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        nonlocal made
        made += 1
        time.sleep(0.1)
        return classify(model, batch)

    found = depthgauge.check(training(drawn(4), slow), budget=0.5)
    assert made <= 9  # five fit; a machine at work fits fewer
    assert found.answers["learning_rate"].status == "undecided"
    assert "larger budget" in found.answers["learning_rate"].says


def test_what_the_user_s_code_warns_of_is_let_through_in_the_first_passes_alone() -> None:
    def warned(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        warnings.warn("of another size", UserWarning, stacklevel=1)
        return classify(model, batch)

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        depthgauge.check(training(drawn(4), warned), only=["data"], budget=10)
    assert 0 < len([each for each in seen if "of another size" in str(each.message)]) <= 8


def test_a_loader_that_raises_after_some_batches_is_broken() -> None:
    class Loader:
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            yield from drawn(6)
            raise OSError("the disk is gone")

    answer = depthgauge.check(training(Loader()), only=["data"]).answers["data"]
    assert answer.status == "broken"
    assert "the disk is gone" in answer.findings[0].text
    assert answer.where == ("batches",)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_ragged_batches_share_no_first_dimension() -> None:
    assert nested.rows(torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(4, 3)])) is None
