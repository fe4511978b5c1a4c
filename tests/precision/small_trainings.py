"""Small trainings whose number formats are asked about."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import depthgauge
from depthgauge import Training
from depthgauge.checking import Answer
from depthgauge.checking.questions.precision import KINDS, QUESTION

FAULTS = {name for name, kind in KINDS.items() if kind.nature == "fault"}


def batches(dtype: torch.dtype = torch.float32, count: int = 4) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(5)
    rows = torch.randn(16 * count, 16, generator=generator)
    labels = rows[:, :4].argmax(1)
    return [(rows[i : i + 16].to(dtype), labels[i : i + 16]) for i in range(0, len(rows), 16)]


def network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))


def asked(training: Training, budget: float = 4) -> Answer:
    return depthgauge.check(training, only="precision", budget=budget).answers["precision"]


def faults(answer: Answer) -> dict[str, tuple[str, ...]]:
    assert all(finding.kind in QUESTION.all_kinds for finding in answer.findings)
    return {finding.kind: finding.where for finding in answer.findings if finding.kind in FAULTS}


def adam(model: nn.Module, **settings: Any) -> torch.optim.Adam:
    return torch.optim.Adam(model.parameters(), **{"lr": 1e-3, **settings})
