"""The callbacks of Hugging Face and Lightning, driven as their Trainers do; tests/compatibility has the real ones."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn


def _loaded(monkeypatch: pytest.MonkeyPatch, name: str, package: str, base: str) -> Any:
    """A module of `depthgauge.integrations`, with a class of that name in the place of the package's."""
    place = ModuleType(package)
    setattr(place, base, type(base, (), {}))
    names = package.split(".")
    for length in range(1, len(names)):
        above = ".".join(names[:length])
        monkeypatch.setitem(sys.modules, above, ModuleType(above))
    monkeypatch.setitem(sys.modules, package, place)
    return importlib.import_module(f"depthgauge.integrations.{name}")


@pytest.fixture
def huggingface(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    yield _loaded(monkeypatch, "huggingface", "transformers", "TrainerCallback")
    del sys.modules["depthgauge.integrations.huggingface"]


@pytest.fixture
def lightning(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    yield _loaded(monkeypatch, "lightning", "lightning.pytorch.callbacks", "Callback")
    del sys.modules["depthgauge.integrations.lightning"]


class Logger:
    def __init__(self) -> None:
        self.steps: list[int] = []

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        assert metrics
        self.steps.append(step)


def _model() -> tuple[nn.Module, list[torch.optim.Optimizer]]:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    return model, [torch.optim.SGD(part.parameters(), lr=0.1) for part in (model[0], model[2])]


def _steps(model: nn.Module, optimizers: list[torch.optim.Optimizer], count: int) -> None:
    for _ in range(count):
        model(torch.ones(3, 4)).square().sum().backward()
        for each in optimizers:
            each.step()
            each.zero_grad()


@pytest.mark.parametrize("first", [True, False])
def test_hugging_face_hands_rows_on_from_one_process(huggingface: Any, tmp_path: Path, first: bool) -> None:
    model, _ = _model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    state = SimpleNamespace(global_step=7, is_world_process_zero=first)
    callback = huggingface.WatchCallback(every=1, to=tmp_path / "run.parquet")
    callback.on_train_begin(None, state, None, model=model, optimizer=optimizer)
    _steps(model, [optimizer], 2)
    callback.on_train_end(None, state, None, model=model, optimizer=optimizer)
    assert set(callback.watch.rows["step"]) <= {7, 8}
    assert (tmp_path / "run.parquet").exists() == first
    if first:
        assert set(pd.read_parquet(tmp_path / "run.parquet")["step"]) == {7, 8}


@pytest.mark.parametrize("first", [True, False])
def test_lightning_hands_rows_on_from_one_process_and_goes_on_counting(
    lightning: Any, tmp_path: Path, first: bool
) -> None:
    model, optimizers = _model()
    logger = Logger()
    trainer = SimpleNamespace(
        optimizers=optimizers, loggers=[logger], precision_plugin=SimpleNamespace(), is_global_zero=first,
        global_step=10,  # of two optimizers, five steps each
    )  # fmt: skip
    callback = lightning.WatchCallback(every=1, to=tmp_path / "run.parquet")
    callback.on_train_start(trainer, model)
    _steps(model, optimizers, 2)
    callback.on_train_end(trainer, model)
    assert set(callback.watch.rows["step"]) <= {5, 6}
    assert logger.steps == ([5, 6] if first else [])
    assert (tmp_path / "run.parquet").exists() == first
