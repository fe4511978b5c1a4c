"""The modules that a probe watches, and the facts known of each."""

from __future__ import annotations

import difflib
import fnmatch
from collections import deque
from collections.abc import Iterable

from torch import nn

from depthgauge.architecture import own_parameters
from depthgauge.probe.rows import EVALUATION
from depthgauge.probe.steps import Attempt

CHECKPOINTS = 64  # calls of one layer that a backward pass may still compute again

Call = tuple[Attempt, int]
"""A step, and MOMENT in it."""

Layers = str | type[nn.Module] | Iterable[str | type[nn.Module]]


def chosen_from(module: nn.Module, layers: Layers | None) -> dict[str, nn.Module]:
    """The modules to look at by name; each module once, under its first name."""
    every = dict(module.named_modules())
    if layers is None:
        return every
    chosen: set[str] = set()
    for selector in [layers] if isinstance(layers, str | type) else layers:
        if isinstance(selector, str):
            names = {name for name in every if fnmatch.fnmatchcase(name, selector)}
        else:
            names = {name for name, part in every.items() if isinstance(part, selector)}
        if not names:
            near = difflib.get_close_matches(str(selector), every, n=3, cutoff=0.0)
            raise ValueError(f"no layer matches {selector!r}; the nearest names are {', '.join(map(repr, near))}")
        chosen |= names
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
    """Tell by qualified names whether a module is that block or lies inside it."""
    return name == block or name.startswith(f"{block}.")


class Layer:
    """A module under observation, and what it has done in this step.

    Attributes:
        module: the module, which keeps its id as long as it is watched.
        root: whether it is the model itself.
        silent: whether only its being called counts, as nothing of it is to be recorded.
        holds_weights: whether it has parameters of its own and a forward that may use them.
        step: the step, of those that the block has seen, whose calls are counted.
        trained, evaluated: number of runs in that step, in training mode and in evaluation mode.
        waiting: the latest calls, which a checkpoint may compute again.
        whole: numbers for the output and its gradient where it is a tensor; None before the first.
        slots: numbers for its outputs and their gradients, by place.
    """

    __slots__ = (
        "container",
        "evaluated",
        "holds_weights",
        "module",
        "name",
        "ran",
        "root",
        "silent",
        "slots",
        "step",
        "trained",
        "waiting",
        "whole",
    )

    def __init__(self, name: str, module: nn.Module, *, root: bool, silent: bool = False) -> None:
        self.name = name
        self.module = module
        self.root = root
        self.silent = silent
        self.ran = False
        self.step = -1
        self.trained = self.evaluated = 0
        self.waiting: deque[Call] = deque(maxlen=CHECKPOINTS)
        self.container = any(True for _ in module.children())
        has_parameters = bool(own_parameters(module))
        self.holds_weights = has_parameters and getattr(type(module), "forward", None) is not nn.Module.forward
        self.whole: tuple[int, int] | None = None
        self.slots: dict[str | None, tuple[int, int]] = {}

    def begin(self, step: int, *, forget: bool) -> None:
        """Count from 0, in another step; `forget` the calls of the one before."""
        self.step = step
        self.trained = self.evaluated = 0
        if forget and self.waiting:
            self.waiting.clear()

    def count(self, training: bool) -> int:
        """MOMENT of another run."""
        if training:
            self.trained += 1
            return self.trained - 1
        self.evaluated += 1
        return self.evaluated - 1 | EVALUATION

    def repeated_call(self, training: bool) -> Call | None:
        """The call that a checkpoint computes again in a backward pass: the latest in that mode."""
        for at in range(len(self.waiting) - 1, -1, -1):
            if (self.waiting[at][1] < EVALUATION) == training:
                call = self.waiting[at]
                del self.waiting[at]
                return call
        return None
