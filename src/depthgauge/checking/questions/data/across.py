"""A number an example that is broadcast along another dimension, which is as long as the batch by chance.

With one example less both lengths part, and the operation raises: what was as long as the batch is now one shorter, and
the dimension that it was held against is not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from depthgauge import nested
from depthgauge.checking.answers import Finding, Kind, Status
from depthgauge.checking.questions.data.within import Within
from depthgauge.checking.subject import Subject

FEWEST = 5  # examples, from which on a dimension that is as long is no matter of a few channels or heads

KINDS = {
    "along_another_axis": Kind(
        "fault",
        "with one example less than a batch an operation raises: it gets a tensor of as many numbers as there are"
        " examples, and lays it along another dimension of one that has the examples first; with the batch as it is"
        " both are as long by chance",
    ),
}


class _Watch(TorchFunctionMode):
    """Note the first operation that raises, by what it got."""

    def __init__(self, within: Within, count: int) -> None:
        super().__init__()
        self._within, self._count, self._raised = within, count, False
        self.found: tuple[str, tuple[int, ...], tuple[int, ...]] | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        try:
            return func(*args, **(kwargs or {}))
        except RuntimeError:
            if not self._raised:
                self._raised = True
                shapes = [tuple(each.shape) for each in args[:2] if isinstance(each, Tensor)]
                small, large = sorted(shapes, key=len) if len(shapes) == 2 else ((), ())
                if _meet(small, large, self._count):
                    self.found = self._within.place("loss"), small, large
            raise


def findings(subject: Subject) -> Iterator[Finding]:
    """Yield the finding where one example less tells two dimensions apart that a batch has alike."""
    training, batch = subject.training, subject.seen.batch
    count = nested.rows(batch)
    if count is None or count < FEWEST or isinstance(training.model, torch.jit.ScriptModule):
        return
    if not subject.fits(2, "numbers of examples that meet another dimension"):
        return
    with training.untouched(), Within(training.model) as within:
        watch = _Watch(within, count - 1)
        with suppress(Exception), watch:
            training.value(nested.first(batch, count - 1))
    if watch.found is None:
        return
    where, small, large = watch.found
    one, other = (" x ".join(str(count if size == count - 1 else size) for size in shape) for shape in (small, large))
    place = "the loss" if where == "loss" else f"`{where}`"
    yield Finding(
        "along_another_axis", Status.BROKEN,
        f"{place} lays {one} numbers, of which each example has its own, along another dimension of {other}, which is"
        f" as long by chance: with {count - 1} examples it raises",
        "give the smaller tensor a dimension of 1 for each that it lacks (x[:, None], unsqueeze(-1))",
        "each example gets its own number", tuple(dict.fromkeys((where, "loss"))),
    )  # fmt: skip


def _meet(small: tuple[int, ...], large: tuple[int, ...], count: int) -> bool:
    """Tell whether both have the examples first, and the smaller one's meet a dimension that is one longer."""
    if not small or len(small) >= len(large) or small[0] != count or large[0] != count:
        return False
    return large[len(large) - len(small)] == count + 1
