"""Counting of steps and backward passes: the step of a pass, and the end of a step that no optimizer ended.

With an optimizer, a step ends with its `step()`. A loss scaler may not call that, as gradients have overflowed, and
tells nobody. Gradient accumulation does not call it either, and its next forward pass belongs to the same step. What
tells them apart, looked at when a forward pass follows a backward pass:

- the scaler, where it was given, has been updated in between; or
- gradients that the backward pass had left in `.grad` are gone (None), or have been written to and are all zero.

Nobody who accumulates gradients clears them in between. A loop that clears them between its forward and its backward
pass is seen when the next backward pass begins: the forward pass before it gets the number of an attempt in its rows,
which the record assigns to the step after, should gradients have been cleared. A pass that leaves nothing in `.grad`
(`torch.autograd.grad`) leaves nothing that could be cleared: it decides nothing, and what is cleared after it is what
an earlier pass or an earlier step had left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from depthgauge.probe.record import Record
from depthgauge.probe.rows import ATTEMPT_BITS
from depthgauge.probe.tensors import Unreadable, numbers_of, without_dispatch, without_torch_function

_engine: Any = torch.autograd.Variable._execution_engine  # as torch's own data parallelism


class Attempt:
    """One or more forward passes that surely belong to one step, and the backward passes through them.

    Attributes:
        word: the STEP of their rows.
        passes: the number of each backward pass, by autograd's own number of it.
        count: backward passes so far in the step.
    """

    __slots__ = ("count", "passes", "word")

    def __init__(self, word: int, before: Attempt | None = None) -> None:
        self.word = word
        self.count: int = 0 if before is None else before.count
        self.passes: dict[int, int] = {}

    def number_pass(self, task: int, outer: int) -> bool:
        """Number a backward pass that has no number yet; tell whether it is not part of an outer pass.

        Args:
            task: autograd's number of the pass.
            outer: that of the pass it runs inside of (reentrant checkpoints), or -1.
        """
        inside = self.passes.get(outer)
        self.passes[task] = self.count if inside is None else inside
        self.count += inside is None
        return inside is None


class Steps:
    """Counts steps.

    Args:
        record: is told of skipped steps and loss scales.
        parameters: parameters whose gradients the optimizer uses; empty without an optimizer.
        scaler: a GradScaler, anything with `get_scale()`, a number, or None.
        on_skip: called when a step has been skipped: with None where all that has run belongs to it, else with the
            attempts that belong to the new step.
    """

    def __init__(
        self,
        record: Record,
        parameters: Sequence[nn.Parameter] | None,
        scaler: Any,
        on_skip: Callable[[Sequence[Attempt] | None], None],
    ) -> None:
        self.number = 0 if parameters is not None else -1
        self.attempt = Attempt(max(self.number, 0))
        self.undecided = False  # whether a backward pass has run that no forward pass has followed
        self.pending = False  # whether a backward pass has run since the step began
        self._record = record
        self.parameters = parameters
        self._scaler = scaler
        self._on_skip = on_skip
        self._attempts = 0
        self._doubtful: list[Attempt] = []  # since the last backward pass that has left gradients
        self._scaler_was: Any = None
        self._witness: tuple[nn.Parameter, int] | None = None
        self._task = -1  # the latest backward pass
        self._before: dict[int, tuple[torch.Tensor, int]] = {}  # gradients there were when it began, by parameter

    def begin(self, number: int) -> None:
        """Begin a step; nothing of the one before is pending."""
        self.number = number
        self.attempt = Attempt(number)
        self._settle()

    def _settle(self) -> None:
        self.undecided = self.pending = False
        self._doubtful = []
        self._witness = None
        self._before = {}

    @property
    def waits(self) -> bool:
        """Tell whether gradients that a backward pass has left wait for the optimizer."""
        return self._witness is not None

    def stepped(self) -> None:
        """Note that one of several optimizers has used its gradients."""
        self._settle()

    def forward(self) -> None:
        """Begin a forward pass after a backward pass."""
        self.undecided = False
        self._before = {}
        if self.parameters is None:
            return
        if self._scaler_moved() or self._cleared():
            self._skip()
        else:
            self._attempts += 1
            self.attempt = Attempt(self.number | self._attempts << ATTEMPT_BITS, self.attempt)
            self._doubtful.append(self.attempt)

    def _skip(self) -> None:
        """End a step that has been skipped; forward passes whose step was not certain belong to the next one."""
        self._record._skipped.add(self.number)
        late = self._doubtful
        if not late:
            self._on_skip(None)
            return
        self.number += 1
        self._record._ended = self.number
        self._record._late.update(each.word >> ATTEMPT_BITS for each in late)
        self._settle()
        self._on_skip(late)

    def pass_of(self, attempt: Attempt, task: int, outer: int = -1) -> int:
        """The number of the backward pass that is running, in the step of an attempt."""
        if task not in attempt.passes and attempt.number_pass(task, outer):
            if self.parameters is not None:
                self._backward(task)
            if self._scaler is not None:
                self._note_scale(attempt.word, attempt.passes[task])
        return attempt.passes[task]

    def _note_scale(self, word: int, number: int) -> None:
        scale = scale_of(self._scaler)
        self._record._scales[word, number, False] = scale
        if self.parameters is None:  # else weight gradients are read when the optimizer steps
            self._record._scales[word, number, True] = scale

    def _backward(self, task: int) -> None:
        if task == self._task:  # it has come to another attempt
            return
        self._task = task
        if self._doubtful and self._cleared():
            self._skip()
        self.undecided = self.pending = True
        self._scaler_was = _state(self._scaler)
        with without_torch_function():
            there = [(each, gradient) for each in self.parameters or () if (gradient := each.grad) is not None]
            self._before = {id(each): (gradient, _version(gradient)) for each, gradient in there}
        _engine.queue_callback(self._backward_ended)

    def _backward_ended(self) -> None:
        if not self._find_witness():
            _engine.queue_callback(self._find_witness)  # after those of torch's data parallelism, which set gradients

    def _find_witness(self) -> bool:
        """Find a gradient that the pass has left, by which to see whether gradients are cleared."""
        with without_torch_function():
            for parameter in self.parameters or ():
                if (gradient := parameter.grad) is None:
                    continue
                before, version = self._before.get(id(parameter), (None, 0))
                if gradient is not before or _version(gradient) != version:
                    self._witness = parameter, _version(gradient)
                    self._doubtful = []
                    self._before = {}
                    return True
        return False

    def _scaler_moved(self) -> bool:
        return self.pending and self._scaler_was is not None and _state(self._scaler) != self._scaler_was

    def _cleared(self) -> bool:
        if self._witness is None:
            return False
        parameter, version = self._witness
        with without_torch_function():
            if parameter.grad is None:
                return True
            if _version(parameter.grad) == version:
                return False
            return all(_is_zero(each.grad) for each in self.parameters or () if each.grad is not None)


def scale_of(scaler: Any) -> float:
    """The loss scale that a scaler, or a number, stands for."""
    return float(scaler.get_scale()) if hasattr(scaler, "get_scale") else float(scaler)


def _state(scaler: Any) -> Any:
    """Return the part of a scaler's state that `update()` changes."""
    if hasattr(scaler, "state_dict"):
        return scaler.state_dict() or None
    return scale_of(scaler) if hasattr(scaler, "get_scale") else None


def _version(tensor: torch.Tensor) -> int:
    try:
        return tensor._version
    except RuntimeError:  # an inference tensor has none
        return 0


def _is_zero(gradient: torch.Tensor) -> bool:
    native = () if gradient.dtype.itemsize == 1 else (gradient.dtype,)  # of which not every torch has an `any`
    try:
        values = numbers_of(gradient, native)
        with without_dispatch():
            return values is not None and not values.any()
    except (Unreadable, RuntimeError):  # it runs within the user's forward pass, which goes on
        return False
