"""Angles by which a step turns each unit's weights, seen while replicas train."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from depthgauge import data, replicas


@dataclass
class Watch:
    """Squared angles of each layer's weights by replica, and what steps have on their own line, at each look.

    Attributes:
        count: of the replicas; a block of them is looked at at a time.
        shrunk: factor of a weight in a step without a gradient.
        test: examples of the errors.
    """

    count: int
    shrunk: float
    test: data.Examples
    seen: dict[str, Tensor] = field(default_factory=dict)
    squares: dict[str, list[Tensor]] = field(default_factory=dict)
    outward: dict[str, list[Tensor]] = field(default_factory=dict)
    errors: list[Tensor] = field(default_factory=list)

    def before(self, rows: slice, part: replicas.Stack) -> None:
        """Keep the weights."""
        for name, weight in part.parameters.items():
            whole = self.seen.setdefault(name, weight.new_zeros(self.count, *weight.shape[1:], dtype=torch.float64))
            whole[rows] = weight.double()

    def look(self, rows: slice, part: replicas.Stack) -> None:
        """Measure test errors."""
        self._put(self.errors, rows, torch.as_tensor(1 - replicas.evaluate(part, self.test.x, self.test.y).accuracy))

    def after(self, rows: slice, part: replicas.Stack) -> None:
        """Measure the step since the weights were kept."""
        for name, weight in part.parameters.items():
            was, now = self.seen[name][rows], weight.double()
            cosine = torch.nn.functional.cosine_similarity(was, now, dim=-1)
            along = ((now - self.shrunk * was) * was).sum(-1) / was.square().sum(-1)
            self._put(self.squares.setdefault(name, []), rows, (2 * (1 - cosine)).mean(-1))
            self._put(self.outward.setdefault(name, []), rows, along.mean(-1))

    def _put(self, into: list[Tensor], rows: slice, values: Tensor) -> None:
        line = values.new_zeros(self.count)
        line[rows] = values  # of a block of replicas: the others' lines have 0
        into.append(line)
