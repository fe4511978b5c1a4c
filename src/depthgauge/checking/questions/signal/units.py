"""Units that are dead or saturated, read from the autograd graph of a loss before it goes backward."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from depthgauge.checking.graphs import nodes

SLOPE = 0.01  # of the largest derivative: a gradient that passes two such layers is a ten thousandth


def _logistic(output: Tensor) -> Tensor:
    return output * (1 - output) < SLOPE / 4


def _tanh(output: Tensor) -> Tensor:
    return 1 - output.square() < SLOPE


_Reading = tuple[str, Callable[[Tensor], Tensor]]

_ZERO: Mapping[str, _Reading] = {
    "ReluBackward": ("_saved_result", lambda output: output == 0),
    "ThresholdBackward": ("_saved_self", lambda x: x <= 0),
}
"""Activations with units that are zero: the saved tensor, and where it says so."""
_FLAT: Mapping[str, _Reading] = {
    "SigmoidBackward": ("_saved_result", _logistic),
    "TanhBackward": ("_saved_result", _tanh),
    "EluBackward": ("_saved_self_or_result", lambda x: x < -4.6),
    "GeluBackward": ("_saved_self", lambda x: x < -3.4),
    "SiluBackward": ("_saved_self", lambda x: x < -7.0),
    "HardsigmoidBackward": ("_saved_self", lambda x: x.abs() >= 3),
    "HardtanhBackward": ("_saved_self", lambda x: x.abs() >= 1),  # its usual ends; `_clipped` reads its own
}
"""Activations that saturate: the saved tensor, and where the derivative is below `SLOPE` of its largest."""
_CLIPS = ("HardtanhBackward", "HardsigmoidBackward", "TanhBackward", "SigmoidBackward")  # flat at two ends
_ENDS_LAST = ("AddmmBackward", "MmBackward", "LinearBackward", "BmmBackward")  # units are the last dimension


@dataclass(eq=False)
class Layer:
    """Observations of one activation.

    Attributes:
        layer: the weight layer before it.
        kind: of its graph node: `Relu`.
        hidden: whether a weight layer comes after it.
        dead: (units,) whether each was zero for all examples so far; empty for those that saturate.
        flat: values beyond where it saturates, and `values` all.
    """

    layer: str
    kind: str
    hidden: bool
    dead: NDArray[np.bool_]
    flat: int = 0
    values: int = 0

    @property
    def dead_share(self) -> float:
        """Share of the units that are dead; NaN where none can be."""
        return float(self.dead.mean()) if len(self.dead) else float("nan")

    @property
    def flat_share(self) -> float:
        """Share of the values that are flat; NaN where none can be."""
        return self.flat / self.values if self.values else float("nan")


@dataclass(eq=False)
class Units:
    """Activations between weight layers, of all passes together, by layer and their number after it."""

    layers: dict[tuple[str, int], Layer] = field(default_factory=dict)

    def note(self, value: Tensor, named: Mapping[str, Tensor]) -> None:
        """Read the graph of a loss that has not gone backward."""
        names = {id(each): name.rpartition(".")[0] for name, each in named.items() if each.dim() > 1}
        counted: dict[str, int] = {}
        hidden = _hidden(value, names)
        for node in reversed(list(nodes(value))):
            kind = node.name().rstrip("0123456789")
            reading = _ZERO.get(kind) or _FLAT.get(kind)
            if reading is None or not (kind in _ZERO or node in hidden):
                continue
            if (before := _layer_before(node, names)) is None:
                continue
            layer, ends_last = before
            number = counted[layer] = counted.get(layer, -1) + 1
            try:
                saved = getattr(node, reading[0]).detach()
                mask = _clipped(node, saved) if kind == "HardtanhBackward" else reading[1](saved)
            except (RuntimeError, AttributeError, TypeError):  # changed in place since, or freed
                continue
            if mask.dim() < 2 or not mask.numel():
                continue
            empty = Layer(layer, kind.removesuffix("Backward"), node in hidden, np.zeros(0, bool))
            self._add(self.layers.setdefault((layer, number), empty), mask, kind in _ZERO, ends_last)

    def clipped(self, least: float) -> list[Layer]:
        """Activations with two ends, at which at least that share of the values lies."""
        return [each for each in self.layers.values() if f"{each.kind}Backward" in _CLIPS and each.flat_share >= least]

    def _add(self, found: Layer, mask: Tensor, can_die: bool, ends_last: bool) -> None:
        if not can_die:
            found.flat += int(mask.sum())
            found.values += mask.numel()
            return
        by_unit = mask.movedim(-1 if ends_last else 1, 0).flatten(1)
        dead = by_unit.all(1).cpu().numpy()
        if not len(found.dead):
            found.dead = dead
        elif found.dead.shape == dead.shape:
            found.dead = found.dead & dead


def _clipped(node: Any, x: Tensor) -> Tensor:
    """Where a line between two ends is flat; of one that begins at 0 (ReLU6) the upper end alone, as half is below."""
    low, high = float(node._saved_min_val), float(node._saved_max_val)
    return x >= high if low == 0 else (x <= low) | (x >= high)


def _hidden(value: Tensor, names: Mapping[int, str]) -> set[Any]:
    """The nodes below a weight layer, from the loss on: an activation of the output itself is none of them."""
    start = [
        following
        for node in nodes(value)
        if _weights_of(node, names)
        for following, _ in node.next_functions
        if following is not None
    ]
    met = set(start)
    waiting = list(met)
    while waiting:
        node = waiting.pop()
        for following, _ in node.next_functions:
            if following is not None and following not in met:
                met.add(following)
                waiting.append(following)
    return met


def _weights_of(node: Any, names: Mapping[int, str]) -> str | None:
    """The layer whose weight a node takes, directly or transposed."""
    for following, _ in node.next_functions:
        inner = following
        if inner is not None and inner.name().startswith(("TBackward", "TransposeBackward", "PermuteBackward")):
            inner = inner.next_functions[0][0]
        variable = getattr(inner, "variable", None)
        if variable is not None and id(variable) in names:
            return names[id(variable)]
    return None


def _layer_before(node: Any, names: Mapping[int, str], most: int = 400) -> tuple[str, bool] | None:
    """The nearest weight layer below a node, and whether its units are the last dimension."""
    waiting, met = [node], {node}
    for current in waiting:
        if len(waiting) > most:
            return None
        if (name := _weights_of(current, names)) is not None and current is not node:
            return name, current.name().startswith(_ENDS_LAST)
        for following, _ in current.next_functions:
            if following is not None and following not in met:
                met.add(following)
                waiting.append(following)
    return None


def variation(hidden: Tensor) -> float:
    """Share of the second moment of (examples, ...) that differs between examples; NaN for fewer than two."""
    if hidden.dim() < 2 or len(hidden) < 2 or not torch.is_floating_point(hidden):
        return float("nan")
    values = hidden.detach().flatten(1).double()
    total = values.square().mean().item()
    return (values - values.mean(0)).square().mean().item() / total if total > 0 else float("nan")
