"""Knowledge of a training's parameters."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from depthgauge.checking.parameters import held_by, is_normal
from depthgauge.checking.questions.signal.passing import Passed
from depthgauge.workload import Training


@dataclass(frozen=True, eq=False)
class Wiring:
    """Knowledge of a training's parameters.

    Attributes:
        training: the user's.
        passed: the passes at the weights as they are, and where all-zero parameters were opened.
        later: the pass after the first steps; None where none was made.
        others: unregistered tensors that train, by name.
        batch: one of its own.
    """

    training: Training
    passed: Passed
    later: Passed | None
    others: dict[str, Tensor]
    batch: Any

    @cached_property
    def parameters(self) -> dict[str, nn.Parameter]:
        """By name."""
        return dict(self.training.model.named_parameters())

    @cached_property
    def held(self) -> set[int]:
        """Ids of what the optimizer holds; empty without one."""
        return set(map(id, held_by(self.training.optimizer)))

    @cached_property
    def stepped(self) -> set[int]:
        """Ids of what it or another optimizer holds that the training reaches, as that of a GAN's other half."""
        others = self.training.reached.steppers
        return self.held | {id(tensor) for each in others if hasattr(each, "param_groups") for tensor in held_by(each)}


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
    """Tell whether a layer's weights are new: in torch's bound, and filling it, or N(0, 1) rows; or a bias of 0."""
    if isinstance(layer, nn.RNNBase):
        return _fills(layer.get_parameter("weight_hh_l0"), 1 / math.sqrt(layer.hidden_size))
    if isinstance(layer, nn.Embedding):
        return is_normal(layer.weight.detach())
    weight, bias = getattr(layer, "weight", None), getattr(layer, "bias", None)
    if not isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d) or not isinstance(weight, Tensor):
        return False
    if isinstance(bias, Tensor) and not bool(bias.any()) and bool(weight.any()):
        return True  # which no step leaves
    return _fills(weight, 1 / math.sqrt(weight[0].numel()))


def _fills(weight: Tensor, bound: float) -> bool:
    largest = weight.detach().abs().max().item()
    return weight.numel() >= 30 and 0.85 * bound < largest <= bound * (1 + 1e-6)  # of 30 all below 0.85: 0.8 %
