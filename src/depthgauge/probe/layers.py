"""Which modules are looked at, and what is known of each."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable

from torch import nn

Layers = str | type[nn.Module] | Iterable[str | type[nn.Module]]


def chosen_from(module: nn.Module, layers: Layers | None) -> dict[str, nn.Module]:
    """The modules to look at by name; each module once, under its first name."""
    every = dict(module.named_modules())
    if layers is None:
        return every
    chosen: set[str] = set()
    for selector in [layers] if isinstance(layers, str | type) else layers:
        if isinstance(selector, str):
            found = {name for name in every if fnmatch.fnmatchcase(name, selector)}
        else:
            found = {name for name, part in every.items() if isinstance(part, selector)}
        if not found:
            near = difflib.get_close_matches(str(selector), every, n=3, cutoff=0.0)
            raise ValueError(f"no layer matches {selector!r}; the nearest names are {', '.join(map(repr, near))}")
        chosen |= found
    return {name: part for name, part in every.items() if name in chosen}


def compiled_blocks(module: nn.Module) -> dict[str, nn.Module]:
    """The blocks inside of the model that torch.compile has compiled already, by name.

    Raises:
        ValueError: it is the model itself.
    """
    fused = {name: part for name, part in module.named_modules() if _is_compiled(part)}
    if "" in fused:
        raise ValueError(
            f"torch.compile fuses the activations inside of {type(module).__name__!r} away: track the module "
            "that was not compiled, or pass directions=('weight', 'weight_gradient', 'update')"
        )
    return fused


def _is_compiled(part: nn.Module) -> bool:
    return "_orig_mod" in part._modules or getattr(part, "_compiled_call_impl", None) is not None


def is_inside(name: str, block: str) -> bool:
    """Whether a module is that block, or inside of it, by their qualified names."""
    return name == block or name.startswith(f"{block}.")


class Layer:
    """A module under observation: its calls in this step by mode, and the slots of its outputs by their place.

    Attributes:
        silent: whether only its being called counts, as nothing of it is to be recorded.
        holds_weights: whether it has parameters of its own and a forward that may use them.
    """

    __slots__ = ("again", "calls", "container", "holds_weights", "name", "ran", "silent", "slots")

    def __init__(self, name: str, module: nn.Module, *, silent: bool = False) -> None:
        self.name = name
        self.silent = silent
        self.ran = False
        self.calls = [0, 0]
        self.again: dict[tuple[int, bool], int] = {}
        self.container = any(True for _ in module.children())
        own = any(True for _ in module.parameters(recurse=False))
        self.holds_weights = own and type(module).forward is not nn.Module.forward
        self.slots: dict[str | None, tuple[int, int]] = {}

    def next_call(self, training: bool) -> int:
        """The number of this call."""
        call = self.calls[training]
        self.calls[training] = call + 1
        return call

    def repeated_call(self, training: bool, task: int) -> int:
        """The number of the call that a checkpoint computes again in a backward pass, the latest first."""
        again = self.again.get((task, training), 0) + 1
        self.again[task, training] = again
        return self.calls[training] - again

    def restart(self) -> None:
        """A step begins."""
        self.calls[:] = 0, 0
        self.again.clear()
