"""Attributes of modules that were empty before the first pass, and hold tensors after it: caches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from depthgauge import nested
from depthgauge.reaching import OWN

_ABSENT = object()


@dataclass(frozen=True, eq=False)
class Empty:
    """An attribute that holds nothing.

    Attributes:
        place: the module's name; `model` is the root.
        module: that has it.
        name: its own.
        value: None, or an empty dictionary; another object where there is no such attribute.
    """

    place: str
    module: nn.Module
    name: str
    value: object

    def empty(self) -> None:
        """Put it back as it was."""
        if self.value is _ABSENT:
            vars(self.module).pop(self.name, None)
        else:
            vars(self.module)[self.name] = {} if isinstance(self.value, dict) else None


@dataclass(frozen=True, eq=False)
class Before:
    """Modules with the attributes that they have, and those that hold nothing."""

    modules: Sequence[tuple[str, nn.Module, frozenset[str]]]
    empty: Sequence[Empty]

    @staticmethod
    def of(model: nn.Module) -> Before:
        """Note them."""
        named = [(place or "model", module) for place, module in model.named_modules()]
        return Before(
            [(place, module, frozenset(vars(module))) for place, module in named],
            [
                Empty(place, module, name, value)
                for place, module in named
                for name, value in vars(module).items()
                if name not in OWN and (value is None or (type(value) is dict and not value))
            ],
        )

    def filled(self) -> tuple[Empty, ...]:
        """Return those that hold tensors by now."""
        return tuple(each for each in (*self.empty, *self._new()) if _holds(vars(each.module).get(each.name)))

    def _new(self) -> Iterator[Empty]:
        for place, module, names in self.modules:
            for name in vars(module).keys() - names - OWN:
                yield Empty(place, module, name, _ABSENT)


def _holds(value: object) -> bool:
    return next(iter(nested.tensors(value)), None) is not None
