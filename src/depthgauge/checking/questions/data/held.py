"""The tensors of a batch that outputs are held against, and the way each example's output is pushed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from depthgauge import nested
from depthgauge.checking.questions.data.batches import binary
from depthgauge.checking.questions.data.outputs import Outputs

COLUMNS = 16  # of an output, among which a target's is looked for
MOVES = 1e-5  # of the loss, that targets of other examples move it by where they count


@dataclass(frozen=True, eq=False)
class Held:
    """A tensor of the batch, and an output of its shape.

    Attributes:
        place: of the tensor in the batch.
        targets: the tensor; class numbers are int64, all others float.
        leaf: place of the output among the free ones.
        classes: the dimension of the output that is the classes'; None of a regression or of several labels.
        given: whether the model gets the tensor, too.
    """

    place: str | None
    targets: Tensor
    leaf: int
    classes: int | None
    given: bool

    def signs(self, output: Tensor, gradient: Tensor) -> list[Tensor]:
        """(cases,) 1 where a step takes an output to its target, -1 where away from it; of all ways to hold them.

        A case without a gradient is left out. Scores go to their label where its rises most, and away where it falls
        most; labels may be those of the next place, and a number one of an output's few.
        """
        if self.classes is None:
            return [_real(*each) for each in self._columns(output, gradient)]
        steps = -gradient.movedim(self.classes, -1).reshape(-1, gradient.shape[self.classes])
        return [_class(steps, each.reshape(-1)) for each in self._shifts()]

    def _shifts(self) -> Iterator[Tensor]:
        """The labels, and those of the next place."""
        yield self.targets
        if self.targets.dim() > 1 and self.targets.shape[1] > 1:
            for by in (-1, 1):
                yield self.targets.roll(by, 1)

    def _columns(self, output: Tensor, gradient: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        count = len(self.targets)
        if output.numel() == self.targets.numel():
            yield (each.reshape(count, -1) for each in (output, gradient, self.targets))  # type: ignore[misc]
            return
        for place in range(output.shape[1]):
            yield output[:, place, None], gradient[:, place, None], self.targets.reshape(count, 1)


def _class(steps: Tensor, labels: Tensor) -> Tensor:
    told = (labels >= 0) & (labels < steps.shape[1]) & (steps != 0).any(1)
    steps, labels = steps[told], labels[told]
    own = steps.gather(1, labels[:, None])[:, 0]
    return (own == steps.amax(1)).float() - (own == steps.amin(1)).float()


def _real(output: Tensor, gradient: Tensor, targets: Tensor) -> Tensor:
    """(examples,)."""
    way = 2 * targets - 1 if binary(targets) else targets - output
    return (-(gradient * way).sum(1))[(gradient != 0).any(1)].sign()


def against(outputs: Outputs) -> tuple[Held, ...]:
    """The tensors of a batch that outputs may be held against, and on which the loss depends."""
    count = nested.rows(outputs.batch)
    if count is None or count < 8:
        return ()
    found = []
    for place, tensor in nested.tensors(outputs.batch):
        if tensor.is_complex() or not counts(outputs, place):
            continue
        given = any(tensor.shape == each.shape and bool((tensor == each).all()) for each in _inputs(outputs))
        for leaf, output in enumerate(outputs.free):
            if not output.dim() or len(output) != count:
                continue
            found += [Held(place, tensor.long(), leaf, dim, given) for dim in _classes(tensor, output)]
            if _alike(tensor, output):
                found.append(Held(place, tensor.to(output), leaf, None, given))
    return tuple(found)


def counts(outputs: Outputs, place: str | None) -> bool:
    """Tell whether the loss of the outputs depends on which example has which of these."""
    loss = outputs.loss(outputs.free)
    other = outputs.loss(outputs.free, rolled(outputs.batch, place))
    return abs(loss - other) > MOVES * abs(loss)


def rolled(batch: Any, place: str | None) -> Any:
    """The batch with the numbers of other examples at a place, some of them twice, so that no mean stays."""
    order = iter([each for each, _ in nested.tensors(batch)])

    def others(tensor: Tensor) -> Tensor:
        return tensor[(torch.arange(len(tensor), device=tensor.device) // 2).flip(0)]

    return nested.mapped(batch, lambda tensor: others(tensor) if next(order) == place else tensor)


def _inputs(outputs: Outputs) -> Iterator[Tensor]:
    return (each for call in outputs.calls for each in call.given)


def _classes(labels: Tensor, output: Tensor) -> Iterator[int]:
    """The dimensions of an output that may be those of classes."""
    if labels.is_floating_point() or labels.dtype is torch.bool or output.dim() < 2:
        return
    for dim in {1, output.dim() - 1}:
        rest = (*output.shape[:dim], *output.shape[dim + 1 :])
        alike = rest == tuple(labels.shape) or (tuple(labels.shape) == (*rest, 1) and len(rest) == 1)
        if alike and output.shape[dim] > max(1, int(labels.max())):
            yield dim


def _alike(targets: Tensor, output: Tensor) -> bool:
    if not targets.is_floating_point() and not binary(targets):
        return False
    if targets.numel() == output.numel():
        return True
    single = targets.numel() == len(targets) and output.dim() == 2 and output.shape[1] <= COLUMNS
    return bool(single and (targets.is_floating_point()))
