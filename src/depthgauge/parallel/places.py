"""A rank's place in a comparison: its training, its pieces of a batch, and what the ranks tell each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import distributed

from depthgauge import nested
from depthgauge.parallel.group import Group
from depthgauge.parallel.naming import ParallelError
from depthgauge.parallel.passes import Step, on
from depthgauge.parallel.shards import Split, examples, shards
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
        """The number of examples; with a split of the user's, of the first tensor's rows."""
        if self.split is shards:
            return examples(batch)
        return nested.examples(batch)

    def pieces(self, batch: Any) -> list[Any]:
        """All pieces of a batch, those of rank 0 first; None for one without examples."""
        return [
            piece
            for shard in self.split(batch, self.group.ranks)
            for piece in ([None] * self.accumulate if shard is None else self.split(shard, self.accumulate))
        ]

    def own(self, batch: Any) -> list[Any]:
        """The pieces of this rank."""
        start = self.group.rank * self.accumulate
        return [on(piece, self.group) for piece in self.pieces(batch)[start : start + self.accumulate]]

    def told(self, value: Any) -> Any:
        """What rank 0 says, in every rank."""
        holder = [value]
        distributed.broadcast_object_list(holder, 0, device=self.group.device)
        return holder[0]

    def agreed(self, make: Callable[[], Any]) -> Any:
        """What rank 0 makes, in rank 0 alone, None elsewhere; what it raises about the training, in every rank.

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
        """What each rank says, in every rank."""
        values: list[Any] = [None] * self.group.ranks
        distributed.all_gather_object(values, value)
        return values
