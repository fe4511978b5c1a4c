"""Blocks without a way around them, and the way around as a remedy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from depthgauge.workload import Training

LEAST = 5  # blocks alike: fewer pass a gradient without a way around, as plain networks of the 1990s did
ALIKE = 0.3  # cosine of input and output: of x + f(x), f as large as x and unrelated, it is 0.7, of f(x) alone 0


def without(training: Training, batch: Any) -> list[str]:
    """Names of blocks of one class, five or more, that keep the shape of what they get, and little of its direction."""
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
    if not several:
        return []
    seen: dict[str, float] = {}
    handles = [module.register_forward_hook(_noting(seen, name)) for name, module in several.items()]
    try:
        with training.untouched():
            training.value(batch)
    finally:
        for handle in handles:
            handle.remove()
    for names in classes.values():
        found = [seen[name] for name in names if name in seen]
        if len(found) >= LEAST and max(found) < ALIKE:
            return [name for name in names if name in seen]
    return []


def _noting(seen: dict[str, float], name: str) -> Callable[[nn.Module, Any, Any], None]:
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

    return hook


def laid(model: nn.Module, names: list[str]) -> None:
    """Add to each block's output what it got; `untouched` takes it away again."""
    for name, module in model.named_modules():
        if name in names:
            module.register_forward_hook(_around)


def _around(_module: nn.Module, inputs: Any, output: Any) -> Any:
    return inputs[0] + output
