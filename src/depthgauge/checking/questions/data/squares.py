"""A number of each example that meets those of all others, or several targets: (N, 1) and (N,) or (N, K) in the loss.

Targets, weights and advantages are made by hand as often as they are handed over. What has one column as a model's
output, a choice among its columns or a batch's own tensor has it, and was not given it for the purpose, makes no square
by intent; where each example is held against its own number, tried, the loss is another.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from depthgauge import nested
from depthgauge.checking.answers import Finding, Kind, Measure, Status
from depthgauge.checking.questions.data.within import Within
from depthgauge.checking.subject import Subject
from depthgauge.restoring import random_states_kept

FEWEST = 3  # examples, from which on (N, N) is a square of them
SPACINGS = 64.0  # of the loss's format, by which it is another where each example meets its own number
_MEET = frozenset({"add", "sub", "mul", "div", "truediv", "true_divide", "subtract", "multiply", "minimum", "maximum"})
_ONE_COLUMN = frozenset(
    {"linear", "addmm", "mm", "matmul", "bilinear", "gather", "take_along_dim", "max", "amax", "chunk", "split"}
)
_SHAPED = frozenset({"unsqueeze", "view", "reshape", "expand", "sum", "mean", "norm", "getitem"})  # made for a purpose
_REPEATS = frozenset({"mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss"})  # and warn where sizes differ

KINDS = {
    "square_of_examples": Kind(
        "fault",
        "in the loss a number of each example, (N, 1) as a layer, a choice of columns or the batch has it, meets one of"
        f" each example, (N,), and makes (N, N); held each against its own, tried, the loss moves by {SPACINGS:.0f}"
        " spacings of its format or more. Not told where the loss makes pairs of examples otherwise, too",
    ),
    "targets_of_another_size": Kind(
        "fault",
        "a loss of torch's own is handed an output of one number where its targets have several: the one is held"
        " against each of them, and torch warns",
    ),
}  # fmt: skip


class Squares(TorchFunctionMode):
    """Notes squares of examples that the loss makes, and makes a column of each in their place where told to.

    Args:
        within: tells the loss from the model.
        batch: of which the loss is taken.
        mended: whether a column takes the place of a square.

    Attributes:
        sizes: shapes of the first output that a loss function repeats, and of its targets; empty where none is.
    """

    def __init__(self, within: Within, batch: Any, *, mended: bool = False) -> None:
        super().__init__()
        self._within, self._count, self._mended = within, nested.rows(batch) or 0, mended
        self._columns = {id(each): each for _, each in nested.tensors(batch) if each.shape == (self._count, 1)}
        self._names: list[str] = []
        self._meant = False
        self.sizes = ""

    @property
    def found(self) -> str:
        """The first operation that makes a square by mistake; empty where none does."""
        return "" if self._meant or not self._names else self._names[0]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "").strip("_")
        name = name[1:] if name.startswith("r") and name[1:] in _MEET else name
        pair = [each for each in args[:2] if isinstance(each, Tensor)]
        if name in _MEET and self._is_square(pair):
            self._names.append(name)
            if self._mended:
                args = tuple(
                    each.unsqueeze(1) if isinstance(each, Tensor) and each.dim() == 1 else each for each in args
                )
        if name in _REPEATS and len(pair) == 2 and not self.sizes:
            self.sizes = _several(*pair)
        value = func(*args, **(kwargs or {}))
        given = any(id(each) in self._columns for each in args if isinstance(each, Tensor))
        sliced = name == "getitem" and bool(pair) and pair[0].dim() > 1
        if (given and name not in _SHAPED) or name in _ONE_COLUMN or sliced:
            for _, each in nested.tensors(value):
                if each.shape == (self._count, 1):
                    self._columns[id(each)] = each
        self._look(value, pair)
        return value

    def _look(self, value: Any, pair: list[Tensor]) -> None:
        """Note pairs of examples that are meant: of another operation than one of a column and a row."""
        if not self._within.depth and isinstance(value, Tensor) and value.shape == (self._count, self._count):
            made = {each.shape for each in pair if each.dim() == 2}
            self._meant |= not any(each in {(self._count, 1), (self._count, self._count)} for each in made) or (
                (1, self._count) in made
            )

    def _is_square(self, pair: list[Tensor]) -> bool:
        if len(pair) < 2 or self._within.depth or self._count < FEWEST:
            return False
        column, row = sorted(pair, key=lambda each: -each.dim())
        alike = column.untyped_storage().data_ptr() == row.untyped_storage().data_ptr()  # differences of one's own
        return id(column) in self._columns and row.shape == (self._count,) and not alike


def _several(output: Tensor, targets: Tensor) -> str:
    """`(64, 1), (64, 4)` of an output that has one number where its targets have several, and a graph."""
    one, several = tuple(output.shape), tuple(targets.shape)
    if len(one) != len(several) or one == several or not output.requires_grad:
        return ""
    repeated = all(a == b or (a == 1 and place) for place, (a, b) in enumerate(zip(one, several, strict=True)))
    return f"{one}, {several}" if repeated else ""


def of_sizes(sizes: str) -> Iterator[Finding]:
    """Yield the finding of targets that are of another size than the output; `sizes` as `Squares` has them."""
    if sizes:
        yield Finding(
            "targets_of_another_size", Status.LOOK,
            f"an output and its targets are of shapes {sizes}: one number is held against each of several targets, and"
            " learns their mean",
            "look at a sum over a dimension that is missing in the targets, or give the model an output for each",
            "each output is held against its own target", ("loss",),
        )  # fmt: skip


def findings(subject: Subject, found: str) -> Iterator[Finding]:
    """Yield the finding, of the first batch.

    Args:
        subject: the training.
        found: what `Squares` found.
    """
    training, batch = subject.training, subject.seen.batch
    if (
        not found
        or isinstance(training.model, torch.jit.ScriptModule)
        or not subject.fits(3, "numbers of examples that meet all in all")
    ):
        return
    with training.untouched(), Within(training.model) as within:
        loss = _value(subject, nullcontext())
        own = _value(subject, Squares(within, batch, mended=True))
    count = nested.rows(batch)
    before, after = loss.item(), own.item()
    least = SPACINGS * torch.finfo(loss.dtype).eps * max(abs(before), abs(after))
    if not (math.isfinite(after) and abs(after - before) > least):
        return
    yield Finding(
        "square_of_examples", Status.BROKEN,
        f"the loss lays {count} x 1 numbers against {count} ({found}), which makes {count} x {count}: each"
        " example's number meets those of all others",
        "give both one shape before they meet: x.squeeze(-1), or y.unsqueeze(-1)",
        f"each example meets its own number; the loss is then {after:.3g}, not {before:.3g}", ("loss", "batches"),
        Measure("loss with each example's own number over the loss", after / before if before else math.nan),
    )  # fmt: skip


def _value(subject: Subject, watch: AbstractContextManager[Any]) -> Tensor:
    """The loss; NaN where it raises."""
    loss = torch.tensor(math.nan)
    with random_states_kept(), suppress(Exception), watch:
        loss = subject.training.value(subject.seen.batch).detach()
    return loss
