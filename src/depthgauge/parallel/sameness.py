"""The result of a comparison: several ranks, or accumulation steps, held against one device."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from depthgauge.parallel.causes import Cause

COLUMNS = (
    "batch", "examples", "kind", "name", "norm", "factor", "distance", "band", "ulps", "beyond",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One parameter's gradient, or one buffer.

    Attributes:
        name: as the model names it.
        kind: `parameter` or `buffer`.
        norm: |g_1|, of the whole batch on one device.
        factor: <g_k, g_1> / |g_1|^2; NaN where g_1 is zero.
        distance: |g_k - g_1| / |g_1|; infinite where g_1 alone is zero, NaN where g_k is not finite.
        band: largest distance that rounding explains.
        ulps: the distance in units of the spacing of numbers at 1 in the parameter's format.
        beyond: whether the distance is beyond the band, and is so in float64, too, where that can be told.
    """

    name: str
    kind: Literal["parameter", "buffer"]
    norm: float
    factor: float
    distance: float
    band: float
    ulps: float
    beyond: bool = False


@dataclass(frozen=True)
class Compared:
    """One batch.

    Attributes:
        place: in the order of the loader, from 0.
        sizes: examples of each shard, or of each piece of it.
        same: None where it could not be compared.
        factor: <g_k, g_1> / |g_1|^2 over all parameters.
        distance: |g_k - g_1| / |g_1|.
        band: largest distance that rounding explains.
        ulps: the distance in units of the spacing of numbers at 1.
        cause: why it parts; empty where it does not.
        why: a sentence.
        unused: whether some shard leaves a parameter without a gradient.
        weights: of the shards' gradients in that of the whole batch, where they were fitted.
        rows: by parameter and buffer.
    """

    place: int
    sizes: tuple[int, ...]
    same: bool | None
    why: str
    cause: Cause = ""
    factor: float = math.nan
    distance: float = math.nan
    band: float = math.nan
    ulps: float = math.nan
    unused: bool = False
    weights: tuple[float, ...] = ()
    rows: tuple[Row, ...] = ()

    @property
    def where(self) -> str:
        """The first parameter or buffer beyond the band; empty where there is none."""
        return next((row.name for row in self.rows if row.beyond), "")


@dataclass(frozen=True)
class Same:
    """The answer whether a training on several ranks, or with accumulation, is that on one device.

    Attributes:
        ranks: number of ranks.
        accumulate: backward passes a step.
        batches: what was compared; the fields below are those of the first that parts, or else of the first.
        notes: what the answer takes for granted.
    """

    ranks: int
    accumulate: int
    batches: tuple[Compared, ...]
    notes: tuple[str, ...] = ()

    @property
    def decisive(self) -> Compared:
        """The first batch that parts; the first that was compared, where none does."""
        for wanted in (False, True):
            for batch in self.batches:
                if batch.same is wanted:
                    return batch
        return self.batches[0]

    @property
    def same(self) -> bool | None:
        """True, False; None where nothing could be compared."""
        return self.decisive.same

    @property
    def factor(self) -> float:
        """<g_k, g_1> / |g_1|^2: 1 where the gradients are the same, 1/k of a summed loss on k ranks."""
        return self.decisive.factor

    @property
    def distance(self) -> float:
        """|g_k - g_1| / |g_1|."""
        return self.decisive.distance

    @property
    def band(self) -> float:
        """Largest distance that rounding explains."""
        return self.decisive.band

    @property
    def ulps(self) -> float:
        """The distance in units of the spacing of numbers at 1 in the format of the gradients."""
        return self.decisive.ulps

    @property
    def where(self) -> str:
        """The first parameter or buffer beyond the band; empty where there is none."""
        return self.decisive.where

    @property
    def cause(self) -> Cause:
        """A word for why they part; empty where they do not."""
        return self.decisive.cause

    @property
    def why(self) -> str:
        """A sentence."""
        return self.decisive.why

    def __bool__(self) -> bool:
        """True where they are the same, so that `assert same(...)` says something."""
        return self.same is True

    def __str__(self) -> str:
        """The sentence, and the notes."""
        return "\n".join((self.why, *self.notes))

    def to_frame(self) -> pd.DataFrame:
        """One row a batch and parameter or buffer: batch (from 0), examples, and the fields of `Row`."""
        rows = [
            (batch.place, sum(batch.sizes), row.kind, row.name, row.norm, row.factor, row.distance, row.band, row.ulps,
             row.beyond)
            for batch in self.batches
            for row in batch.rows
        ]  # fmt: skip
        return pd.DataFrame(rows, columns=list(COLUMNS))
