"""Copies where one tensor was meant."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from depthgauge.checking.answers import Finding, Measure, Status
from depthgauge.checking.questions.signal.drawn import is_drawn
from depthgauge.checking.questions.signal.wiring import Wiring
from depthgauge.checking.words import plural

ALIKE = 1e-6  # relative difference of numbers that are one multiple of others
FEWEST_ROWS = 0.9  # of the longer matrix, that the shorter one is a copy of


@dataclass(frozen=True, eq=False)
class _Matrix:
    """A matrix that trains: its name, its numbers, and the module that holds it."""

    name: str
    values: Tensor
    holder: nn.Module


def findings(wiring: Wiring) -> Iterator[Finding]:
    """Embeddings and output layers of equal bits in two tensors, tables that are copies, all of which train."""
    alive = wiring.passed.alive
    modules = dict(wiring.training.model.named_modules())
    matrices = [
        _Matrix(name, each.detach(), modules[name.rpartition(".")[0]])
        for name, each in wiring.parameters.items()
        if name in alive and each.dim() == 2 and min(each.shape) > 1
    ]
    for place, first in enumerate(matrices):
        for second in matrices[place + 1 :]:
            if first.values.data_ptr() == second.values.data_ptr():
                continue  # one memory under two names: they stay tied
            how = _copied(first, second)
            if not how or _in_copied_blocks(modules, first.name, second.name):
                continue
            name, other = first.name, second.name
            text = f"`{name}` and `{other}` begin with {how} in two tensors: they are not tied"
            advice = f"share one tensor, `{other}` = `{name}`, or draw one of them anew"
            where = tuple(dict.fromkeys((name, other, *(each.rpartition(".")[0] or "model" for each in (name, other)))))
            size = float(min(first.values.numel(), second.values.numel()))
            fewer = f"{plural(int(size), 'parameter')} fewer to train"
            yield Finding(
                "tied_by_copy", Status.LOOK, text, advice, fewer, where,
                Measure("parameters that are copies", size, unit="parameters"),
            )  # fmt: skip


def _copied(first: _Matrix, second: _Matrix) -> str:
    """What two matrices have in common, in words; empty where that is no copy that was to be one tensor."""
    one, other = first.values, second.values
    if one.dtype != other.dtype or one.device != other.device:
        return ""
    table = any(isinstance(each.holder, nn.Embedding) for each in (first, second))
    if type(first.holder) is not type(second.holder):
        if one.shape != other.shape and not table:
            return ""  # a decoder that begins as its encoder's transpose, and is to part from it
        turned = other if one.shape == other.shape else other.T
        if one.shape == turned.shape and torch.equal(one, turned) and bool((one != one.flatten()[0]).any()):
            return "the same values"
    elif not table and first.holder is not second.holder:
        return ""  # layers of one kind that were made by a copy, as torch's transformers are
    elif one.shape == other.shape and torch.equal(one, other):
        return "the same new values" if is_drawn(one) else ""
    return _part(one, other) if table else ""


def _part(one: Tensor, other: Tensor) -> str:
    """The same of rows of which the one has a few more, and of multiples; both of new numbers."""
    for turned in (other, other.T):
        rows = min(len(one), len(turned))
        if one.shape[1] != turned.shape[1] or rows < FEWEST_ROWS * max(len(one), len(turned)) or rows < 2:
            continue
        for a, b in ((one[:rows], turned[:rows]), (one[-rows:], turned[-rows:]), (one[:rows], turned[-rows:]),
                     (one[-rows:], turned[:rows])):  # fmt: skip
            if _multiple(a, b) and is_drawn(a):
                return "the same new values, up to a factor," if len(one) == len(turned) else "the same new rows"
    return ""


def _multiple(one: Tensor, other: Tensor) -> bool:
    size = one.abs().max()
    place = one.abs().argmax()
    factor = other.flatten()[place] / one.flatten()[place]
    if not bool(size > 0) or not bool(factor != 0):
        return False
    limit = max(ALIKE, 4 * torch.finfo(one.dtype).eps) * size * factor.abs()
    return bool((other - factor * one).abs().max() <= limit)


def _in_copied_blocks(modules: dict[str, nn.Module], name: str, other: str) -> bool:
    """Tell whether two parameters lie in blocks that are copies, other matrices and all."""
    a, b = name.split("."), other.split(".")
    shared = next((place for place, pair in enumerate(zip(a, b, strict=False)) if pair[0] != pair[1]), 0)
    one, two = (modules.get(".".join(path[: shared + 1])) for path in (a, b))
    if one is None or two is None or type(one) is not type(two):
        return False
    mine, its = dict(one.named_parameters()), dict(two.named_parameters())
    inner = [".".join(path[shared + 1 :]) for path in (a, b)]
    return any(
        own not in inner
        and own in its
        and each.dim() > 1
        and each.shape == its[own].shape
        and torch.equal(each, its[own])
        for own, each in mine.items()
    )
