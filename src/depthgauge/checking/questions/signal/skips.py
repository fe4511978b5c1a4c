"""Blocks without a way around them, and the way around as a remedy."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from depthgauge.workload import Training

LEAST = 5  # blocks alike: fewer pass a gradient without a way around, as plain networks of the 1990s did
ALIKE = 0.3  # cosine of input and output: of x + f(x), f as large as x and unrelated, it is 0.7, of f(x) alone 0
TIMES = 1.5  # of what a block gets, in what it hands on: of x + f(x), f unrelated to x, it is 1
TOGETHER = 100.0  # times, over all of them


def without(training: Training, batch: Any) -> list[str]:
    """Names of blocks of one class, five or more, that keep the shape of what they get, and little of its direction."""
    classes, seen, _ = _passed(training, batch)
    for names in classes.values():
        found = [seen[name] for name in names if name in seen]
        if len(found) >= LEAST and max(found) < ALIKE:
            return [name for name in names if name in seen]
    return []


def multiplying(training: Training, batch: Any) -> dict[str, float]:
    """Such blocks that hand on a multiple of what they get, by name, each with its factor."""
    classes, _, times = _passed(training, batch)
    for names in classes.values():
        found = {name: times[name] for name in names if name in times}
        if len(found) >= LEAST and min(found.values()) > TIMES and math.prod(found.values()) > TOGETHER:
            return found
    return {}


def _passed(training: Training, batch: Any) -> tuple[dict[type, list[str]], dict[str, float], dict[str, float]]:
    """Blocks by class; by name the cosine of input and output, and how much of the input is in the output."""
    classes: dict[type, list[str]] = {}
    for name, module in training.model.named_modules():
        if name and next(module.children(), None) is not None and not isinstance(module, nn.ModuleList | nn.ModuleDict):
            classes.setdefault(type(module), []).append(name)
    repeated = {name for names in classes.values() if len(names) >= LEAST for name in names}
    several = {
        name: module
        for name, module in training.model.named_modules()
        if name in repeated and not any(name.startswith(f"{other}.") for other in repeated)
    }  # a branch inside a block has none by itself
    seen: dict[str, float] = {}
    times: dict[str, float] = {}
    if not several:
        return classes, seen, times
    handles = [module.register_forward_hook(_noting(seen, times, name)) for name, module in several.items()]
    try:
        with training.untouched():
            training.value(batch)
    finally:
        for handle in handles:
            handle.remove()
    return classes, seen, times


def _noting(seen: dict[str, float], times: dict[str, float], name: str) -> Callable[[nn.Module, Any, Any], None]:
    def hook(_module: nn.Module, inputs: Any, output: Any) -> None:
        first = inputs[0] if inputs else None
        if (
            isinstance(first, Tensor)
            and isinstance(output, Tensor)
            and first.shape == output.shape
            and first.numel() > 1
        ):
            one, other = (each.double().reshape(len(each), -1) for each in (first, output))
            seen[name] = nn.functional.cosine_similarity(one, other, dim=1).mean().item()
            times[name] = ((one * other).sum(1) / one.square().sum(1).clamp(min=1e-30)).median().item()

    return hook


def laid(model: nn.Module, names: list[str]) -> None:
    """Add to each block's output what it got; `untouched` takes it away again."""
    for name, module in model.named_modules():
        if name in names:
            module.register_forward_hook(_around)


def _around(_module: nn.Module, inputs: Any, output: Any) -> Any:
    return inputs[0] + output


def laid_once(model: nn.Module, factors: Mapping[str, float]) -> None:
    """Let each block hand on once what it gets in place of so many times; `untouched` takes it away again."""
    for name, factor in factors.items():
        model.get_submodule(name).register_forward_hook(
            lambda _module, inputs, output, more=factor - 1: output - more * inputs[0]
        )
