"""A factory's training on a device that `--device` names: its batches go on as they did, and say what they said."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from depthgauge import Training
from depthgauge.checking.attributes import attributes_kept
from depthgauge.cli.trainings import _on


def _counted() -> Iterator[Tensor]:
    yield from (torch.full((4,), float(place)) for place in range(40))


def test_an_iterator_goes_on_where_it_is() -> None:
    training = Training(nn.Linear(1, 1), _on(_counted(), "cpu"))
    assert [len(training.first(count)) for count in (1, 4, 16, 103)] == [1, 4, 16, 40]
    assert [int(each[0]) for each in training.first(40)] == list(range(40))


def test_a_loader_says_on_a_device_what_it_says_itself() -> None:
    loader = DataLoader(TensorDataset(torch.arange(65.0)[:, None]), batch_size=16)
    moved = _on(loader, "cpu")
    for name in ("batch_size", "sampler", "dataset", "num_workers", "drop_last", "generator"):
        assert getattr(moved, name) is getattr(loader, name)
    assert len(moved) == len(copy.copy(moved)) == 5
    assert [len(batch[0]) for batch in moved] == [16, 16, 16, 16, 1]
    with pytest.raises(AttributeError):
        _ = moved.collate
    with pytest.raises(TypeError):
        len(_on(_Endless(), "cpu"))


class _Endless:
    def __init__(self) -> None:
        self.rounds = 0

    def __iter__(self) -> Iterator[Tensor]:
        self.rounds += 1
        return iter([torch.ones(2)])


def test_what_a_loader_of_the_user_s_counts_is_put_back() -> None:
    loader = _Endless()
    training = Training(nn.Linear(1, 1), _on(loader, "cpu"))
    with attributes_kept(training):
        training.first()
    assert loader.rounds == 0


def test_batches_are_moved() -> None:
    assert next(iter(_on([(torch.ones(2),)], "meta")))[0].is_meta
