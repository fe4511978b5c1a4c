"""Hooks around an optimizer's step: weights and gradients are read before it, updates after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Protocol

import torch

from depthgauge.probe.hooks import Hook
from depthgauge.probe.optimizers import is_nested, is_stepping, parameters_in
from depthgauge.probe.parameters import ParameterReader, StepParameters
from depthgauge.probe.record import Record
from depthgauge.probe.steps import Steps

Members = Sequence[Sequence[torch.optim.Optimizer]]
"""The optimizers that make up a step, each with those inside of it."""


class Block(Protocol):
    """The watching block, as its hooks use it."""

    @property
    def active(self) -> bool:
        """Tell whether this step is recorded."""

    def mode(self) -> int:
        """MOMENT of the model's mode."""

    def next_step(self) -> None:
        """End the step."""


class Updates:
    """The hooks of the optimizers that make up a step.

    Attributes:
        stepping: the outermost optimizer that is in its `step()` now.
        calls: number of their steps in this step.
    """

    def __init__(self, record: Record, members: Members, reader: ParameterReader, steps: Steps, block: Block) -> None:
        self.stepping: torch.optim.Optimizer | None = None
        self.calls = 0
        self._record = record
        self._members = members
        self._last = {id(each) for each in members[-1]} if members else set()
        self._reader = reader
        self._steps = steps
        self._block = block
        self._selected = StepParameters(set())

    def attach(self, undo: ExitStack) -> None:
        """Register the hooks; `undo` removes them."""
        for member in self._members:
            for optimizer in member:
                undo.callback(optimizer.register_step_pre_hook(Hook(self._before)).remove)
                undo.callback(optimizer.register_step_post_hook(Hook(self._after)).remove)

    def _before(self, optimizer: torch.optim.Optimizer, arguments: Any, keywords: Any) -> None:
        outer = self.stepping  # it steps, and this one inside of it, or it has raised
        if outer is not None and (is_nested(optimizer) if outer is optimizer else is_stepping(outer)):
            return
        self.stepping = optimizer
        if self._block.active:
            word, self._selected = self._steps.attempt.word, self._parameters_of(optimizer)
            if (scale := getattr(optimizer, "grad_scale", None)) is not None:  # a fused optimizer unscales by itself
                self._record._scales[word, 0, True] = float(scale)
            gradients = not _closure(arguments, keywords)
            self._reader.read_before(word, self._block.mode() | self.calls, self._selected, gradients=gradients)

    def _after(self, optimizer: torch.optim.Optimizer, arguments: Any, keywords: Any) -> None:
        if optimizer is not self.stepping or is_nested(optimizer):
            return
        self.stepping = None
        if self._block.active:
            # With a closure, gradients do not exist before the step; what remains after it is its last evaluation's.
            word, gradients = self._steps.attempt.word, _closure(arguments, keywords)
            self._reader.read_after(word, self._block.mode() | self.calls, self._selected, gradients=gradients)
        if (overflow := getattr(optimizer, "found_inf", None)) is not None and float(overflow) > 0:
            self._record._skipped.add(self._steps.number)
        self.calls += 1
        if id(optimizer) in self._last:
            self._block.next_step()
        else:
            self._steps.stepped()

    def _parameters_of(self, optimizer: torch.optim.Optimizer) -> StepParameters:
        updated = parameters_in(optimizer)
        if len(self._members) == 1:
            return StepParameters(updated)
        if id(optimizer) not in self._last:
            return StepParameters(updated, updated)
        others: set[int] = set().union(*(parameters_in(member[0]) for member in self._members[:-1]))
        return StepParameters(updated, self._reader.ids() - (others - updated))


def _closure(arguments: Sequence[Any], keywords: Mapping[str, Any]) -> bool:
    """Tell whether `step(...)` was given a closure; the first argument is the optimizer."""
    return (len(arguments) > 1 and callable(arguments[1])) or keywords.get("closure") is not None
