"""A rank's place in a comparison: its training, its pieces of a batch, and what the ranks tell each other."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import distributed

from depthgauge.foreign import describe_error
from depthgauge.parallel.group import Group
from depthgauge.parallel.naming import ParallelError
from depthgauge.parallel.passes import Step, on
from depthgauge.parallel.shards import Split, examples, shards, tensors
from depthgauge.workload import WorkloadError


@dataclass(frozen=True)
class Ranks:
    """A rank's place, its training, and how a batch becomes shards.

    Attributes:
        group: the rank.
        step: the training's.
        accumulate: pieces of each shard.
        split: of a batch.
        alone: a process group of this rank; None where the step needs none.
    """

    group: Group
    step: Step
    accumulate: int
    split: Split
    alone: Any

    @property
    def first(self) -> bool:
        """Tell whether this is rank 0."""
        return self.group.rank == 0

    def examples(self, batch: Any) -> int:
        """The number of examples; with a split of the user's, the length of the dimension that it splits."""
        if self.split is shards:
            return examples(batch)
        return self.sizes(batch, [batch])[0]

    def sizes(self, batch: Any, pieces: Sequence[Any]) -> tuple[int, ...]:
        """The number of examples of each piece of a batch."""
        if self.split is shards:
            return tuple(0 if piece is None else examples(piece) for piece in pieces)
        whole, part = (next(tensors(each), None) for each in (batch, self._split(batch, 2)[0]))
        if whole is None or part is None:
            return (1,) * len(pieces)
        split = (place for place, (a, b) in enumerate(zip(whole.shape, part.shape, strict=False)) if a != b)
        along = next(split, 0)
        return tuple(next(tensors(piece)).shape[along] for piece in pieces)

    def pieces(self, batch: Any) -> list[Any]:
        """All pieces of a batch, those of rank 0 first; None for graphs without one."""
        whole = self._split(batch, self.group.ranks)
        if self.accumulate == 1:
            return whole
        nothing = [None] * self.accumulate
        return [
            piece for shard in whole for piece in (nothing if shard is None else self._split(shard, self.accumulate))
        ]

    def _split(self, batch: Any, parts: int) -> list[Any]:
        """So many parts of a batch.

        Raises:
            ParallelError: it cannot be split, or the user's own function makes something else of it.
        """
        try:
            made = list(self.split(batch, parts))
        except ParallelError:
            raise
        except Exception as error:
            raise ParallelError(f"a batch cannot be split: {describe_error(error):.300}") from error
        if len(made) != parts:
            raise ParallelError(f"split(batch, {parts}) returns {len(made)} parts")
        return made

    def own(self, batch: Any) -> list[Any]:
        """The pieces of this rank."""
        start = self.group.rank * self.accumulate
        return [on(piece, self.group) for piece in self.pieces(batch)[start : start + self.accumulate]]

    def told(self, value: Any) -> Any:
        """Tell every rank the value that rank 0 has."""
        holder = [value]
        try:
            distributed.broadcast_object_list(holder, 0, device=self.group.device)
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            raise ParallelError(f"its batches cannot be handed to the other ranks: {describe_error(error)}") from error
        return holder[0]

    def agreed(self, make: Callable[[], Any]) -> Any:
        """Make something in rank 0 alone, None elsewhere; an error about the training is raised in every rank.

        Raises:
            WorkloadError: as rank 0.
            ParallelError: as rank 0.
        """
        made, failure = None, None
        if self.first:
            try:
                made = make()
            except (WorkloadError, ParallelError) as error:
                failure = error
        failure = self.told(failure)
        if failure is not None:
            raise failure
        return made

    def gathered(self, value: Any) -> list[Any]:
        """Tell every rank the values of all."""
        values: list[Any] = [None] * self.group.ranks
        distributed.all_gather_object(values, value)
        return values
