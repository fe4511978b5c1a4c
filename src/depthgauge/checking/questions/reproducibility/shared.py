"""A number that all examples of a batch share, which divides each, or is subtracted, on its way through the model.

A reduction over the examples' dimension is followed until it meets the examples again, in one pass; then an example's
companions are all replaced, and what the model gets or says of it must not move.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from depthgauge import nested
from depthgauge.checking.attributes import attributes_kept
from depthgauge.checking.questions.data.within import Within
from depthgauge.checking.questions.reproducibility import mixing
from depthgauge.checking.questions.reproducibility.calls import Event
from depthgauge.workload import Training

_REDUCES = frozenset({"max", "min", "amax", "amin", "mean", "std", "var", "norm", "vector_norm", "sum", "median"})
_REDUCES |= frozenset({"std_mean", "var_mean", "aminmax", "quantile", "nanmean", "logsumexp"})
# What is added beside the examples is meant, as the spread of a batch for a discriminator, or the pool of a set.
_MEETS = frozenset({"div", "true_divide", "sub", "subtract", "rsub", "mul", "multiply", "divide"})
_MEETS |= frozenset({"maximum", "minimum", "clamp", "clamp_min", "clamp_max", "where"})
_MEETS |= frozenset({"__truediv__", "__sub__", "__rsub__", "__mul__", "__rmul__", "__itruediv__", "__isub__"})
_ROUNDS = frozenset({"round", "floor", "fake_quantize_per_tensor_affine"})  # one scale for all, of whole numbers


class _Watch(TorchFunctionMode):
    """Follow numbers of the whole batch until they meet its examples."""

    def __init__(self, within: Within, count: int) -> None:
        super().__init__()
        self._within, self._count = within, count
        self._shared: dict[int, Tensor] = {}  # kept, so that no other takes its place
        self.found = ""
        self.rounds = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        value = func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        name = name if name.startswith("__") else name.rstrip("_")
        self.rounds |= name in _ROUNDS
        tensors = [each for each in (*args, *kwargs.values()) if isinstance(each, Tensor)]
        made = [each for _, each in nested.tensors(value)]
        if self.found or not tensors or not made:
            return value
        if name in _REDUCES and self._has_examples(tensors[0]) and not any(map(self._may_have, made)):
            self._shared.update({id(each): each for each in made if each.is_floating_point()})
        elif any(id(each) in self._shared for each in tensors):
            self._follow(name, tensors, made)
        elif self._whole(name, tensors[0], args, kwargs):
            self.found = self._within.place("loss")
        return value

    def _follow(self, name: str, tensors: list[Tensor], made: list[Tensor]) -> None:
        if any(self._has_examples(each) for each in tensors):
            if name in _MEETS:
                self.found = self._within.place("loss")
        else:
            self._shared.update({id(each): each for each in made if each.is_floating_point()})

    def _whole(self, name: str, given: Tensor, args: Any, kwargs: Any) -> bool:
        """Tell whether a function normalizes along the examples."""
        if not self._has_examples(given):
            return False
        if name == "layer_norm":
            shape = kwargs.get("normalized_shape", args[1] if len(args) > 1 else ())
            return tuple(shape) == tuple(given.shape)
        if name == "normalize":
            dim = kwargs.get("dim", args[2] if len(args) > 2 else 1)
            return isinstance(dim, int) and dim % given.dim() == self._axis(given)
        return False

    def _axis(self, tensor: Tensor) -> int:
        axes = [axis for axis, size in enumerate(tensor.shape) if size == self._count]
        return axes[0] if len(axes) == 1 else -1

    def _has_examples(self, tensor: Tensor) -> bool:
        return tensor.dim() > 1 and self._axis(tensor) >= 0

    def _may_have(self, tensor: Tensor) -> bool:
        return any(size % self._count == 0 for size in tensor.shape)


def shared(training: Training, part: Any) -> tuple[str, float] | None:
    """Place where examples meet a number that they share, and by how much one's output moves; None where none do."""
    count = nested.rows(part) if part is not None else None
    if count is None or count < 4 or isinstance(training.model, torch.jit.ScriptModule):
        return None
    with attributes_kept(training), training.untouched(), Within(training.model) as within:
        training.model.eval()
        with _Watch(within, count) as watch:
            training.value(part)
    if not watch.found or watch.rounds:
        return None
    base = mixing.outputs(training, part)
    if mixing.changes(base, mixing.outputs(training, part), mixing.distance) > 0:
        return None
    least = max((mixing.band(each) for event in base for _, each in event.read), default=0.0)
    moved = max(_moved(base, mixing.outputs(training, others), row, count) for row, others in _companions(part, count))
    return (watch.found, moved) if moved > least else None


def _companions(part: Any, count: int) -> Iterator[tuple[int, Any]]:
    """One example, and the others all replaced by its neighbour, twice: the largest number is among them once."""
    for row in (0, count // 2):
        order = torch.full((count,), row + 1)
        order[row] = row
        yield row, nested.mapped(part, partial(_taken, order=order))


def _taken(tensor: Tensor, order: Tensor) -> Tensor:
    return tensor[order.to(tensor.device)]


def _moved(base: list[Event], other: list[Event], row: int, count: int) -> float:
    """Largest change of what the model says of one example."""

    def own(a: Tensor, b: Tensor) -> float:
        axes = [axis for axis, size in enumerate(a.shape) if size == count]
        if len(axes) != 1 or a.shape != b.shape:
            return 0.0
        return mixing.distance(a.select(axes[0], row), b.select(axes[0], row), a)

    return mixing.changes(base, other, own)
