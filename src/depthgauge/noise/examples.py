"""Examples of a batch, one by one, whatever structure they come in."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from depthgauge import nested
from depthgauge.noise.ratio import NoiseError
from depthgauge.seeding import Purpose, generator


@dataclass(frozen=True)
class Examples:
    """Inputs and targets of n examples, as units of `batch` examples.

    Attributes:
        inputs: tensors of a common first dimension in any structure, or a list of one object an example.
        targets: likewise.
        batch: examples a unit.
        order: (units, batch) which examples are a unit.
    """

    inputs: Any
    targets: Any
    batch: int
    order: Tensor

    @staticmethod
    def of(inputs: Any, targets: Any, batch: int) -> Examples:
        """Units of examples: in their order where a unit is one example, else at random.

        Raises:
            NoiseError: they have no number of examples in common, or make fewer than two units.
        """
        count = _count(inputs, targets)
        units = count // batch if batch > 0 else 0
        if units < 2:
            raise NoiseError(f"a variance takes at least two gradients; {count} examples make {units} of {batch}")
        order = torch.arange(count)
        if batch > 1:
            order = torch.randperm(count, generator=generator(0, Purpose.ORDER))
        return Examples(inputs, targets, batch, order[: units * batch].view(units, batch))

    def __len__(self) -> int:
        return len(self.order)

    def take(self, rows: Sequence[int]) -> tuple[Any, Any]:
        """Inputs and targets of some units, together."""
        indices = self.order[list(rows)].flatten()
        return _taken(self.inputs, indices), _taken(self.targets, indices)

    def stackable(self) -> bool:
        """Tell whether units are made of tensors alone."""
        return not _objects(self.inputs) and not _objects(self.targets)

    def stacked(self, rows: Sequence[int]) -> tuple[Any, list[Tensor]]:
        """The structure of a unit, and its tensors (k, batch, ...) of k units."""
        structure = self.take(rows)
        tensors = [each for each in _walk(structure) if each.dim()]
        return structure, [each.view(len(rows), self.batch, *each.shape[1:]) for each in tensors]

    @staticmethod
    def filled(structure: Any, tensors: Sequence[Tensor]) -> tuple[Any, Any]:
        """The structure with other tensors in place of those that have a first dimension."""
        given = iter(tensors)
        filled: tuple[Any, Any] = _mapped(structure, lambda each: next(given) if each.dim() else each)
        return filled


def _count(inputs: Any, targets: Any) -> int:
    """The number of examples."""
    for part in (inputs, targets):
        if hasattr(part, "__array__") and not isinstance(part, Tensor):
            raise NoiseError(f"examples are tensors, not a {type(part).__name__}: torch.as_tensor makes one of it")
    lengths = {len(each) for each in (inputs, targets) if _objects(each)}
    lengths |= {len(each) for part in (inputs, targets) if not _objects(part) for each in _walk(part) if each.dim()}
    if len(lengths) != 1:
        found = ", ".join(map(str, sorted(lengths))) or "none"
        raise NoiseError(
            "inputs and targets have no number of examples in common: the first dimensions of their tensors are"
            f" {found}"
        )
    return lengths.pop()


def _objects(value: Any) -> bool:
    """Tell whether it is a list of objects, one an example, that are no tensors and hold none that can be cut."""
    return isinstance(value, list) and bool(value) and not any(True for _ in nested.tensors(value))


def _taken(value: Any, indices: Tensor) -> Any:
    if _objects(value):
        return [value[index] for index in indices.tolist()]
    return _mapped(value, lambda each: each[indices.to(each.device)] if each.dim() else each)


def _mapped(value: Any, function: Any) -> Any:
    """The same structure with a function applied to every tensor, in the order of `nested.tensors`."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):  # such as `workload.Inputs`
        names = [field.name for field in dataclasses.fields(value) if field.init]
        return dataclasses.replace(value, **{name: _mapped(getattr(value, name), function) for name in names})
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return tuple(_mapped(each, function) for each in value)
    return nested.mapped(value, function)


def _walk(value: Any) -> list[Tensor]:
    return [tensor for _, tensor in nested.tensors(value)]
