"""Calls of a model's modules within a loss: what each was given and returned, in the order in which it was seen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from depthgauge import nested
from depthgauge.probe.tensors import EXACT, in_transform

Read = Callable[[Tensor], Any]


@dataclass(frozen=True, eq=False)
class Event:
    """A call's beginning or end.

    Attributes:
        layer: the module's name; `model` is the root.
        edge: `in` at the beginning.
        within: the module in which it was called; empty for what the loss calls.
        read: what was read of each tensor, by its place.
    """

    layer: str
    edge: Literal["in", "out"]
    within: str
    read: tuple[tuple[str, Any], ...]

    @property
    def outermost(self) -> bool:
        """Tell whether the loss itself has made the call."""
        return not self.within


@contextmanager
def recorded(model: nn.Module, read: Read, wanted: Callable[[bool], bool] = lambda _: True) -> Iterator[list[Event]]:
    """Record the calls of a model's modules within the block; the list grows.

    Modules that are compiled or scripted are seen from outside alone.

    Args:
        model: the root.
        read: what is kept of a tensor; it is called at once.
        wanted: from whether a call is outermost to whether it is kept.
    """
    events: list[Event] = []
    stack: list[str] = []

    def note(layer: str, edge: Literal["in", "out"], value: object) -> None:
        within = stack[-1] if stack else ""
        if wanted(not within) and not in_transform():
            read_of = ((place or "", read(each)) for place, each in nested.tensors(value) if type(each) in EXACT)
            events.append(Event(layer, edge, within, tuple(read_of)))

    def entered(layer: str) -> Callable[..., None]:
        def hook(_module: nn.Module, args: Any, kwargs: Any) -> None:
            note(layer, "in", (args, kwargs))
            stack.append(layer)

        return hook

    def left(layer: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, _kwargs: Any, output: Any) -> None:
            while stack and stack.pop() != layer:  # calls that have raised
                pass
            note(layer, "out", output)

        return hook

    with ExitStack() as hooks:
        for name, part in _open(model, "model"):
            first = part.register_forward_pre_hook(entered(name), with_kwargs=True)
            last = part.register_forward_hook(left(name), with_kwargs=True)
            hooks.callback(first.remove)
            hooks.callback(last.remove)
        yield events


def _open(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    """The modules whose hooks run, each once."""
    met: set[int] = set()

    def walk(part: nn.Module, place: str) -> Iterator[tuple[str, nn.Module]]:
        if id(part) in met or getattr(part, "_compiled_call_impl", None) is not None:
            return
        met.add(id(part))
        if isinstance(part, torch.jit.ScriptModule):
            return
        yield place, part
        if type(part).__name__ == "OptimizedModule":
            return
        for child, below in part.named_children():
            yield from walk(below, child if place == name and part is module else f"{place}.{child}")

    return walk(module, name)
