"""What is known of a training's parameters, and words for them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor, nn

from depthgauge.checking.questions.signal.passing import Passed
from depthgauge.workload import Training

MOST_NAMED = 3  # in a sentence; `where` has all
MOST_WHERE = 12


@dataclass(frozen=True, eq=False)
class Wiring:
    """What is known of a training's parameters.

    Attributes:
        training: the user's.
        passed: the passes at the weights as they are, and where all-zero parameters were opened.
        later: the pass after the first steps; None where none was made.
        others: unregistered tensors that train, by name.
    """

    training: Training
    passed: Passed
    later: Passed | None
    others: dict[str, Tensor]

    @cached_property
    def parameters(self) -> dict[str, nn.Parameter]:
        """By name."""
        return dict(self.training.model.named_parameters())

    @cached_property
    def held(self) -> set[int]:
        """Ids of what the optimizer holds; empty without one."""
        optimizer = self.training.optimizer
        return (
            set() if optimizer is None else {id(each) for group in optimizer.param_groups for each in group["params"]}
        )


def by_part(model: nn.Module, names: set[str], trained: set[str]) -> Iterator[tuple[str, list[str]]]:
    """Parameters by the largest module all of whose trained ones are among them, or by themselves."""
    left = dict.fromkeys(name for name, _ in model.named_parameters() if name in names)
    for prefix, _ in model.named_modules():
        inside = [name for name in trained if not prefix or name.startswith(f"{prefix}.")]
        if prefix and inside and all(name in left for name in inside):
            own = [name for name in left if name.startswith(f"{prefix}.")]
            yield prefix, own
            for name in own:
                del left[name]
    for name in left:
        yield name, [name]


def is_new(layer: nn.Module) -> bool:
    """Whether a layer has weights of a new one: in torch's bound, 1 / sqrt(fan-in), and filling it; or a bias of 0."""
    weight, bias = getattr(layer, "weight", None), getattr(layer, "bias", None)
    if not isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d) or not isinstance(weight, Tensor):
        return False
    if isinstance(bias, Tensor) and not bool(bias.any()) and bool(weight.any()):
        return True  # which no step leaves
    bound, largest = 1 / math.sqrt(weight[0].numel()), weight.detach().abs().max().item()
    return weight.numel() >= 30 and 0.85 * bound < largest <= bound * (1 + 1e-6)  # of 30 all below 0.85: 0.8 %


def count(size: int) -> str:
    """`12 parameters`."""
    return f"{size:,} parameter{'s' if size != 1 else ''}"


def plural(count: int, thing: str) -> str:
    """`2 tensors`."""
    return f"{count} {thing}{'s' if count != 1 else ''}"


def batches(count: int) -> str:
    """`4 batches`."""
    return plural(count, "batch").replace("batchs", "batches")


def listed(names: Iterable[str]) -> str:
    """Names, the first three of many."""
    every = [f"`{name}`" if name else "the model" for name in names]
    listed = ", ".join(every[:MOST_NAMED])
    return listed + (f" and {len(every) - MOST_NAMED} more" if len(every) > MOST_NAMED else "")
