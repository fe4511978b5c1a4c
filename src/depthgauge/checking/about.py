"""A training in words: what a check was asked about, when and where."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import torch

from depthgauge import nested
from depthgauge.foreign import contained
from depthgauge.workload import Training

_DESCRIBED = 160  # characters of a batch or an optimizer


@dataclass(frozen=True)
class About:
    """A training as a reader of its card knows it again.

    Attributes:
        name: how it was named, `my_project.train:setup`; else its model's class.
        model: the model's class.
        parameters: numbers in its parameters.
        trained: those of them that train.
        optimizer: its class and its rates; empty without one.
        batch: the first batch; empty where there is none.
        device: of its first parameter, as torch spells it.
        threads: intra-op threads of the CPU.
        started: the moment, in UTC.
        seconds: what the check took.
        note: what a reader has to know of the training: that its batches are drawn at random, what is left changed.
    """

    name: str = ""
    model: str = ""
    parameters: int = 0
    trained: int = 0
    optimizer: str = ""
    batch: str = ""
    device: str = "cpu"
    threads: int = 1
    started: str = ""
    seconds: float = 0.0
    note: str = ""

    @property
    def facts(self) -> tuple[str, ...]:
        """All that is told in a line: `MLP, 12,810 parameters`, `SGD, rate 0.1`, `batch of int64 16 x 40`, ..."""
        frozen = f", {self.trained:,} of them train" if self.trained != self.parameters else ""
        where = self.device if self.device != "cpu" else f"cpu, {self.threads} thread{'s' * (self.threads != 1)}"
        parts = (
            f"{self.model}, {self.parameters:,} parameters{frozen}" if self.model else "",
            self.optimizer or "no optimizer",
            f"batch {self.batch}" if self.batch else "",
            where,
            f"{self.seconds:.1f} s" if self.seconds else "",
        )
        return tuple(filter(None, parts))


def about(training: Training, began: float) -> About:
    """Describe a training; what cannot be read of it is left out.

    Args:
        training: any.
        began: `time.perf_counter()` when the check began.
    """
    parameters = list(training.model.parameters())
    kind = type(training.model).__name__
    seconds = time.perf_counter() - began
    return About(
        kind,
        kind,
        sum(map(_count, parameters)),
        sum(_count(each) for each in parameters if each.requires_grad),
        _optimizer(training.optimizer),
        _batch(training),
        str(parameters[0].device) if parameters else "cpu",
        torch.get_num_threads(),
        datetime.fromtimestamp(time.time() - seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        seconds,
    )


def _count(parameter: torch.Tensor) -> int:
    return 0 if torch.nn.parameter.is_lazy(parameter) else parameter.numel()


def _optimizer(optimizer: torch.optim.Optimizer | None) -> str:
    if optimizer is None:
        return ""
    rates = {float(rate) for group in optimizer.param_groups if isinstance(rate := _rate(group), int | float)}
    told = " and ".join(f"{rate:g}" for rate in sorted(rates)[:3])
    return f"{type(optimizer).__name__}{f', rate {told}' if told else ''}"


def _rate(group: Mapping[str, object]) -> object:
    rate = group.get("lr")
    return rate.item() if isinstance(rate, torch.Tensor) and rate.numel() == 1 else rate


def _batch(training: Training) -> str:
    try:
        with contained():
            told = nested.describe(training.first()[0])
    except Exception:  # noqa: BLE001 - a line of the card's head, which it can do without
        return ""
    return told if len(told) <= _DESCRIBED else f"{told[: _DESCRIBED - 1]}…"
