"""Learning rates in two stages: a coarse grid that only chooses, then half steps around its best, which are reported.

    def grids(...):
        yield Grid({"lr": coarse}, {"batch": 64, ...}, together=("lr", "seed"), chunk=500, selection=5)

    def second(rows, **_):
        runs = runs_of(rows)                                        # with a column `score`, high where good
        yield from refinement.grids(runs, ["batch"], seeds=8, score="score")

The first stage has selection seeds alone (`Grid(seeds=0, selection=5)`). The second tries further rates with these, and
runs the seeds that are reported at all rates that can still be chosen, and at no other: with 8 rates, 5 selection
and 8 reported seeds a group costs 74 runs where a full factorial costs 130. `training.tuned` then chooses as ever.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from depthgauge import training
from depthgauge.study import Case, Grid

FACTOR = 2.0  # between a rate of the coarse grid and the next
BEYOND = 2  # whole steps that a best at its grid's edge is followed by


def refined(
    runs: pd.DataFrame, by: Sequence[str], *, rate: str = "lr", factor: float = FACTOR, score: str, seed: str = "seed"
) -> dict[tuple[Any, ...], tuple[float, ...]]:
    """The best learning rate of each group, first, and further ones around it: group -> rates.

    Half a step to both sides of the best; where it is the smallest or the largest that was tried, `BEYOND` whole steps
    outward, too. Rates are rounded to three significant digits.

    Args:
        runs: as in `training.tuned`; runs to report are not needed.
        by: as in `training.tuned`; a group is the tuple of its values.
        rate: as in `training.tuned`.
        factor: between a rate and the next, at least 1.1.
        score: as in `training.tuned`; a group without a rate of finite ones alone is left out.
        seed: as in `training.tuned`.

    Raises:
        ValueError: the factor is below 1.1.
    """
    if factor < 1.1:
        raise ValueError(f"learning rates are refined by a factor of at least 1.1; got {factor!r}")
    if runs.empty:
        return {}
    finite = runs[score].gt(-float("inf")).groupby([runs[name] for name in (*by, rate)], sort=False).transform("all")
    some = finite.groupby([runs[name] for name in by], sort=False).transform("any")
    chosen = training.choices(runs[some], by, rate=rate, seed=seed, score=score, reported=False) if some.any() else None
    rates = {}
    for row in [] if chosen is None else chosen.to_dict("records"):
        powers = [-0.5, 0.5, *(row["outward"] * power for power in range(1, BEYOND + 1) if row["outward"])]
        further = [float(f"{row[rate] * factor**power:.3g}") for power in powers]
        rates[tuple(row[name] for name in by)] = (row[rate], *dict.fromkeys(further))
    return rates


def grids(
    runs: pd.DataFrame,
    by: Sequence[str],
    *,
    seeds: int,
    score: str,
    factor: float = FACTOR,
    chunk: int = 500,
) -> Iterator[Grid]:
    """The second stage: the seeds that choose at the further rates of `refined`, and those that are reported at all.

    Args:
        runs: one row a run of the first stage: its case's id in the column `run`, `by`, `lr`, `seed` and the score.
        by: as in `training.tuned`.
        seeds: number of seeds to report.
        score: as in `training.tuned`.
        factor: as in `refined`.
        chunk: as in `Grid`.
    """
    together = ("lr", "seed")
    rates = refined(runs, by, factor=factor, score=score)
    for group, own in runs.groupby([*by]):  # sorted: the order of the rows decides nothing
        key = tuple(group)
        if key not in rates:
            continue
        fixed = dict(pair for pair in Case.read(min(own["run"])).params if pair[0] not in together)
        tried, selection = set(own["lr"]), max(0, -int(pd.to_numeric(own["seed"]).min()))
        if further := tuple(lr for lr in rates[key] if lr not in tried):
            yield Grid({"lr": further}, fixed, 0, together, chunk, selection=selection)
        yield Grid({"lr": rates[key]}, fixed, seeds, together, chunk)
