"""Search for the place in which a model of next tokens, or numbers, sees those that it is to tell."""

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
from depthgauge.checking.terms import short, signed
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
    """Change the last place that the model is given, where the loss's targets are what stands one place on.

    Args:
        training: the user's.
        part: a few examples of a batch.
    """
    every = [each for _, each in nested.tensors(part) if _is_sequence(each)]
    if not every:
        return Future()
    held = _held(training, part)
    tokens = next((each for each in every if any(_matches(*one, each) for one in held)), None)
    if tokens is None:
        return Future()
    base = outputs(training, part)
    given = [each for event in base if event.edge == "in" for _, each in event.read]
    length = next((each.shape[1] for each in given if _begins(each, tokens)), 0)
    if length < LEAST:
        return Future()
    changed = _changed(part, tokens, length - 1)
    moved, band = _first(base, outputs(training, changed), length)[:2]
    if not moved > band:
        return Future(moved, band)
    one, other = (outputs(training, each, deep=True) for each in (part, changed))
    return Future(moved, band, _first(one, other, length, stop=True)[2])


def _is_sequence(tensor: Tensor) -> bool:
    """Whether it may be tokens (examples, places), or numbers (examples, places, width)."""
    if tensor.is_complex() or tensor.dtype is torch.bool or tensor.dim() < 2 or tensor.shape[1] < LEAST:
        return False
    return tensor.dim() == 3 if tensor.is_floating_point() else tensor.dim() == 2 and int(tensor.max()) > 1


def _begins(given: Tensor, tokens: Tensor) -> bool:
    """Whether what the model gets are the sequences, or all but their ends."""
    alike = given.dim() == tokens.dim() and given.dtype is tokens.dtype and len(given) == len(tokens)
    if not alike or not LEAST <= given.shape[1] <= tokens.shape[1]:
        return False
    return torch.equal(given, tokens[:, : given.shape[1]].to(given.device))


def _held(training: Training, batch: Any) -> list[tuple[Tensor, int | None]]:
    """Targets of the loss's cross-entropies and squares, flat, and the class number that does not count."""
    found: list[tuple[Tensor, int | None]] = []
    with attributes_kept(training), training.untouched(), recorded(training.model, lambda _: None, lambda _: False):
        for node in nodes(training.value(batch)):
            name = short(node)
            if name.startswith("NllLoss"):
                found.append((node._saved_target.reshape(-1), signed(node._saved_ignore_index)))
            elif name in {"MseLoss", "SmoothL1Loss", "HuberLoss"}:
                found.append((node._saved_target.reshape(-1), None))
    return found


def _matches(target: Tensor, ignored: int | None, tokens: Tensor) -> bool:
    rows, length = tokens.shape[:2]
    following, target = tokens[:, 1:], target.to(tokens.device)
    if tokens.is_floating_point() is not (ignored is None):
        return False
    if target.numel() == following.numel():
        held = target.reshape(following.shape)
    elif target.numel() == tokens.numel():
        held = target.reshape(rows, length, *tokens.shape[2:])[:, :-1]
    else:
        return False
    counted = held != ignored if ignored is not None else torch.ones_like(held, dtype=torch.bool)
    constant = bool((following == following[:1, :1]).all())
    return bool(counted.any()) and not constant and bool((held == following)[counted].all())


def _changed(batch: Any, tokens: Tensor, place: int) -> Any:
    """The batch with another token at a place of every sequence."""
    if tokens.is_floating_point():
        new = tokens[:, place].roll(1, 0)
    else:
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
