"""Derivatives that are part of a loss and have no gradient: `create_graph` is missing where they are taken."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from depthgauge.checking.answers import Finding, Kind, Status
from depthgauge.checking.questions.data.within import Within
from depthgauge.checking.subject import Subject
from depthgauge.restoring import random_states_kept

_ADDS = frozenset({"add", "sub", "rsub", "add_", "sub_", "mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss"})
_ADDS |= frozenset({"__add__", "__radd__", "__sub__", "__rsub__", "__iadd__", "__isub__"})
_PASSES_ON = frozenset({"linear", "matmul", "__matmul__", "bmm", "mm", "addmm", "baddbmm", "einsum", "embedding"})
_CUTS = frozenset({"detach", "__get__", "item", "tolist", "numpy", "detach_"})

KINDS = {
    "constant_derivative": Kind(
        "fault",
        "what torch.autograd.grad returned without create_graph is added to (or held against) what depends on the"
        " weights, reaches the loss, and goes through no layer on the way: a term without a gradient",
    ),
}


class _Watch(TorchFunctionMode):
    """Follow derivatives without a graph to the loss.

    Attributes:
        bare: tensors without a gradient that come of such derivatives.
        joined: tensors with a gradient that one was added to, and what comes of them.
        refused: what went through a layer, as updated weights or shifted inputs do, and what comes of it.
    """

    def __init__(self, within: Within) -> None:
        super().__init__()
        self._within = within
        self._at = 0
        self._bare: dict[int, Tensor] = {}
        self._joined: dict[int, Tensor] = {}
        self.refused = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        value = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if func is torch.autograd.grad:
            if not _has_graph(args, kwargs or {}):
                self._at = self._within.depth
                for each in _tensors(value):
                    self._bare[id(each)] = each
            return value
        if not self._bare:
            return value
        given = [*_tensors(args), *_tensors(tuple((kwargs or {}).values()))]
        bare = [each for each in given if id(each) in self._bare]
        joined = any(id(each) in self._joined for each in given)
        if (bare or joined) and (self._within.depth > self._at or name in _PASSES_ON or name.startswith("conv")):
            self.refused |= joined or any(not each.requires_grad for each in bare)
            return value
        self._follow(name, value, given, bare, joined=joined)
        return value

    def _follow(self, name: str, value: Any, given: list[Tensor], bare: list[Tensor], *, joined: bool) -> None:
        others = any(each.requires_grad and not each.is_leaf for each in given)
        for each in _tensors(value):
            if each.requires_grad and (joined or (bare and others and name in _ADDS)):
                self._joined[id(each)] = each
            elif bare and not each.requires_grad and name not in _CUTS:
                self._bare[id(each)] = each

    def reaches(self, loss: Tensor) -> bool:
        """Tell whether the loss is made of a sum of both kinds."""
        return not self.refused and id(loss) in self._joined


def findings(subject: Subject) -> Iterator[Finding]:
    """Yield that a derivative is a mere number."""
    training = subject.training
    if isinstance(training.model, torch.jit.ScriptModule) or not subject.fits(2, "derivatives that are mere numbers"):
        return
    with training.untouched(), random_states_kept(), Within(training.model) as within, _Watch(within) as watch:
        loss = training.value(subject.seen.batch)
    if watch.reaches(loss):
        yield Finding(
            "constant_derivative", Status.BROKEN,
            "a derivative that torch.autograd.grad took without create_graph=True is a term of the loss: it is a mere"
            " number there, and nothing learns from it",
            "set create_graph=True where a derivative is part of the loss", "the term moves the model", ("loss",),
        )  # fmt: skip


def _has_graph(args: Any, given: Any) -> bool:
    return bool(given.get("create_graph", args[4] if len(args) > 4 else False))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors(each)
