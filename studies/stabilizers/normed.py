"""Networks with batch normalization and those that they are held against, pair by pair and batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from depthgauge.frames import groups
from depthgauge.models.mlp import Order
from depthgauge.models.slots import Norm, batch_statistics

KEYS = ["variant", "batch"]
NEAR = 1.25  # a network's best rate is the middle of those that take at most this many times its least steps


@dataclass(frozen=True)
class Variant:
    """A network's normalization and shortcuts, and how it is drawn."""

    norm: Norm = "none"
    residual: bool = False
    order: Order = "post"
    scheme: str = "he"


VARIANTS = {
    "plain": Variant(), "batch_norm": Variant(batch_statistics),
    "scaled_skips": Variant(residual=True, order="pre", scheme="depth_scaled"),
    "skips_and_batch_norm": Variant(batch_statistics, residual=True, order="pre"),
}  # fmt: skip
PAIRS = {"without skips": ("batch norm", "plain"), "with skips": ("skips and batch norm", "scaled skips")}
BEST, OWN, GAIN = "best rates", "steps at their own rates", "steps at its own rate over those at the other's"


def best_rates(reported: pd.DataFrame) -> pd.DataFrame:
    """By variant, batch and seed: `best`, the middle of the rates that take at most NEAR of a network's least steps.

    NaN for a network that arrives at no rate.
    """
    steps = reported["steps_to_target"].where(reported["reached"] > 0)
    least = steps.groupby([reported[name] for name in (*KEYS, "seed")]).transform("min")
    near = np.log(reported["lr"]).where(steps <= NEAR * least)
    best = near.groupby([reported[name] for name in (*KEYS, "seed")]).mean()
    found: pd.DataFrame = np.exp(best).rename("best").reset_index()
    return found


@dataclass(frozen=True)
class Compared:
    """Two sets of runs of the same seeds, indexed by seed, and whether a rate is the first or last that was tried."""

    what: str
    pair: str
    batch: int
    runs: pd.DataFrame
    others: pd.DataFrame
    at_edge: bool


def comparisons(reported: pd.DataFrame, tuned: pd.DataFrame) -> Iterator[Compared]:
    """Best rates and steps, with batch normalization and without, of every pair at every batch size.

    Args:
        reported: one row a (variant, batch, lr, seed).
        tuned: those at the chosen rates, with `at_edge`.
    """
    tuned = tuned.merge(best_rates(reported), on=[*KEYS, "seed"])
    for batch, lines in groups(tuned, "batch"):
        by_variant = {name: own.set_index("seed") for name, own in groups(lines, "variant")}
        for pair, (normed, bare) in PAIRS.items():
            if not {normed, bare} <= set(by_variant):
                continue
            one, other = by_variant[normed], by_variant[bare]
            here = reported[(reported["batch"] == batch) & (reported["variant"] == normed)]
            same = here[here["lr"] == other["lr"].iloc[0]].set_index("seed")
            both = one.index.intersection(other.index).intersection(same.index)
            edge = bool(one["at_edge"].any() or other["at_edge"].any())
            for what, first, second in ((BEST, one, other), (OWN, one, other), (GAIN, one, same)) if len(both) else ():
                yield Compared(what, pair, batch, first.loc[both], second.loc[both], edge)
