"""Towers that begin as copies of each other and train apart, over two inputs of one kind."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from depthgauge import architecture, nested
from depthgauge.checking.answers import Finding, Measure, Status
from depthgauge.checking.parameters import held_by
from depthgauge.checking.questions.signal.wiring import is_new
from depthgauge.checking.subject import Subject

FEWEST = 64  # numbers of a tower, so that equal ones are no chance


def findings(subject: Subject) -> Iterator[Finding]:
    """Yield pairs of copies, each of which gets a tensor of the batch of the same shape, with other numbers."""
    training = subject.training
    if training.optimizer is None or isinstance(training.model, torch.jit.ScriptModule):
        return
    held = set(map(id, held_by(training.optimizer)))
    pairs = [pair for pair in _pairs(training.model) if all(_is_fresh(each, held) for _, each in pair)]
    if not pairs:
        return
    given: dict[int, list[Tensor]] = {}
    with training.untouched(), ExitStack() as hooks:
        for _, module in itertools.chain(*pairs):
            hooks.callback(module.register_forward_pre_hook(_noted(given)).remove)
        training.value(subject.seen.batch)
    raw = [each for _, each in nested.tensors(subject.seen.batch)]
    for (one, first), (other, second) in pairs:
        a, b = given.get(id(first), []), given.get(id(second), [])
        if len(a) == len(b) == 1 and _alike(a[0], b[0]) and all(_is_of(each, raw) for each in (a[0], b[0])):
            size = sum(each.numel() for each in second.parameters())
            yield Finding(
                "copied_towers", Status.LOOK,
                f"`{one}` and `{other}` begin with the same new weights in two sets of tensors, get two inputs of one"
                " kind, and are trained apart: they do not share their weights",
                f"use `{one}` for both inputs; or draw the weights of `{other}` anew where they are to differ",
                f"{size:,} parameters fewer, and both inputs are seen alike", (one, other),
                Measure("parameters that are there twice", float(size), unit="parameters"),
            )  # fmt: skip


def _pairs(model: nn.Module) -> Iterator[tuple[tuple[str, nn.Module], tuple[str, nn.Module]]]:
    """Children of one module with equal parameters in tensors of their own."""
    for name, parent in model.named_modules():
        children = [(f"{name}.{own}".lstrip("."), child) for own, child in parent.named_children()]
        for one, other in itertools.combinations(children, 2):
            if one[1] is not other[1] and _equal(one[1], other[1]):
                yield one, other


def _equal(one: nn.Module, other: nn.Module) -> bool:
    a, b = dict(one.named_parameters()), dict(other.named_parameters())
    if type(one) is not type(other) or a.keys() != b.keys() or sum(each.numel() for each in a.values()) < FEWEST:
        return False
    return all(
        a[name] is not b[name] and a[name].shape == b[name].shape and torch.equal(a[name], b[name]) for name in a
    )


def _is_fresh(module: nn.Module, held: set[int]) -> bool:
    """Tell whether it trains, and has the weights of new layers: copies of a trained one may be meant to part."""
    layers = [layer for _, layer in architecture.layers(module)]
    return bool(layers) and all(map(is_new, layers)) and all(id(each) in held for each in module.parameters())


def _noted(given: dict[int, list[Tensor]]) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
        first = next((each for _, each in nested.tensors(args)), None)
        given.setdefault(id(module), []).extend([] if first is None else [first.detach()])

    return hook


def _alike(one: Tensor, other: Tensor) -> bool:
    """Tell whether two tensors are of one kind, and not the same."""
    return one.shape == other.shape and one.dtype == other.dtype and not torch.equal(one, other)


def _is_of(given: Tensor, batch: list[Tensor]) -> bool:
    return any(each.shape == given.shape and torch.equal(each, given) for each in batch)
