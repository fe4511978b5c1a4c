"""Search for the place in which a model of next tokens sees the tokens that it is to tell."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from depthgauge import nested
from depthgauge.checking.attributes import attributes_kept
from depthgauge.checking.graphs import nodes
from depthgauge.checking.questions.reproducibility.calls import Event, recorded
from depthgauge.checking.questions.reproducibility.mixing import distance, outputs
from depthgauge.workload import Training

LEAST = 4  # tokens of a sequence, of which one is changed


@dataclass(frozen=True)
class Future:
    """Effect of changing the last token on earlier outputs.

    Attributes:
        moved: largest change of an earlier output, over the output's root mean square; NaN where it is no model of
            next tokens, or was not tried.
        band: what rounding may change: half the digits of the output's format.
        culprit: module in whose call it begins.
    """

    moved: float = math.nan
    band: float = 0.0
    culprit: str = ""

    @property
    def seen(self) -> bool:
        """Tell whether an output depends on a later token."""
        return self.moved > self.band


def future(training: Training, part: Any) -> Future:
    """Change the last token that the model is given, where the loss's targets are the tokens one place on.

    Args:
        training: the user's.
        part: a few examples of a batch.
    """
    tokens = next((each for _, each in nested.tensors(part) if _is_tokens(each)), None)
    if tokens is None or not _tells_next(training, part, tokens):
        return Future()
    base = outputs(training, part)
    length = next(
        (each.shape[1] for event in base for _, each in event.read if event.edge == "in" and _is_tokens(each)), 0
    )
    if length < LEAST:
        return Future()
    changed = _changed(part, tokens, length - 1)
    moved, band = _first(base, outputs(training, changed), length)[:2]
    if not moved > band:
        return Future(moved, band)
    one, other = (outputs(training, each, deep=True) for each in (part, changed))
    return Future(moved, band, _first(one, other, length, stop=True)[2])


def _is_tokens(tensor: Tensor) -> bool:
    whole = not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype is torch.bool)
    return whole and tensor.dim() == 2 and tensor.shape[1] >= LEAST and int(tensor.max()) > 1


def _tells_next(training: Training, batch: Any, tokens: Tensor) -> bool:
    """Tell whether the targets of the loss's cross-entropy are the tokens, moved by one place."""
    with attributes_kept(training), training.untouched(), recorded(training.model, lambda _: None, lambda _: False):
        for node in nodes(training.value(batch)):
            if node.name().startswith("NllLoss"):
                target, ignored = node._saved_target.reshape(-1).to(tokens.device), node._saved_ignore_index
                if _matches(target, tokens, ignored - 2**64 if ignored >= 2**63 else ignored):
                    return True
    return False


def _matches(target: Tensor, tokens: Tensor, ignored: int) -> bool:
    rows, length = tokens.shape
    following = tokens[:, 1:]
    if target.numel() == following.numel():
        held = target.reshape(following.shape)
    elif target.numel() == tokens.numel():
        held = target.reshape(rows, length)[:, :-1]
    else:
        return False
    counted = held != ignored
    constant = bool((following == following[:1, :1]).all())
    return bool(counted.any()) and not constant and bool((held == following)[counted].all())


def _changed(batch: Any, tokens: Tensor, place: int) -> Any:
    """The batch with another token at a place of every sequence."""
    others: Tensor = torch.unique(tokens)
    new = others[(torch.searchsorted(others, tokens[:, place].contiguous()) + 1) % len(others)]

    def change(tensor: Tensor) -> Tensor:
        if tensor.shape != tokens.shape or not torch.equal(tensor, tokens):
            return tensor
        tensor = tensor.clone()
        tensor[:, place] = new
        return tensor

    return nested.mapped(batch, change)


def _first(one: list[Event], other: list[Event], length: int, *, stop: bool = False) -> tuple[float, float, str]:
    """Largest change at places before the last, its band, and in which module; the first one where `stop`."""
    largest, band, where = 0.0, 0.0, ""
    for first, second in zip(one, other, strict=False):
        for (_, a), (_, b) in zip(first.read, second.read, strict=False):
            if first.edge == "in" or not a.is_floating_point() or a.dim() < 3 or a.shape[1] != length:
                continue
            moved = distance(a[:, : length - 1], b[:, : length - 1], a) if a.shape == b.shape else math.nan
            band = math.sqrt(torch.finfo(a.dtype).eps)
            if moved > max(largest, band):
                largest, where = moved, where or first.layer
        if where and stop:
            break
    return largest, band, where
