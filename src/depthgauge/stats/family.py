"""Families of comparisons: simultaneous intervals, and the fewest seeds that can show a difference."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from depthgauge.stats.comparison import Comparison
from depthgauge.stats.location import EXACT_UP_TO, FEWEST, Floats


@dataclass(frozen=True)
class Family:
    """p-values that were judged together.

    Attributes:
        adjusted: shape (size,), in the order given; NaN where there was no test.
        rejected: shape (size,); `adjusted` at most alpha.
        size: comparisons in the family, those without a test too: they were asked.
        alpha: chance of one false rejection or more among them.
    """

    adjusted: Floats
    rejected: np.ndarray
    size: int
    alpha: float


def holm(p: ArrayLike, alpha: float = 0.05) -> Family:
    """Holm's step-down correction (Holm 1979, Scand. J. Statist. 6, 65), valid under any dependence.

    A NaN (no test could be made) counts as a member that is never rejected.

    Raises:
        ValueError: not one-dimensional, or not p-values.
    """
    values = np.asarray(p, dtype=np.float64)
    if values.ndim != 1 or np.any((values < 0) | (values > 1)):
        raise ValueError("a family is a one-dimensional array of p-values between 0 and 1 (NaN where there is no test)")
    ranks = np.argsort(values, kind="stable")  # NaN last
    steps = values[ranks] * np.arange(len(values), 0, -1)
    adjusted = np.empty_like(values)
    adjusted[ranks] = np.minimum(1.0, np.maximum.accumulate(steps))
    return Family(adjusted, adjusted <= alpha, len(values), alpha)


def together(comparisons: Iterable[Comparison]) -> tuple[Comparison, ...]:
    """The same comparisons as one family, whose intervals all hold at once.

    Each interval is taken at 1 - alpha / m (Bonferroni; Dunn 1961, JASA 56, 52), and each p-value counts m times: the
    chance of one false "different", "beyond the margin" or "equivalent" among them is at most alpha each, and the
    answer is the one that the interval shows, also of a member that was picked for being the furthest of all. Holm's
    rule rejects a little more, but its answers have no intervals that agree with them.

    Raises:
        ValueError: they were made at different confidences.
    """
    members = tuple(comparisons)
    if len({member.alpha for member in members}) > 1:
        raise ValueError("a family has one confidence; these comparisons were made at several")
    return tuple(_of_family(member, len(members)) for member in members)


def _of_family(member: Comparison, size: int) -> Comparison:
    if size == 1 or member.at is None or not member.effect.has_interval:
        return replace(member, family=size)
    wide = member.at(1 - member.alpha / size)
    method = f"{member.effect.method}, for all {size} at once"
    effect = replace(member.effect, low=wide.low, high=wide.high, method=method)
    return replace(member, effect=effect, family=size)


def seeds_needed(family: int = 1, alpha: float = 0.05) -> int:
    """Fewest pairs with which an exact sign-flip test could show a difference in a family of that size.

    If all n differences have one sign, 2 of the 2^n flips are as extreme: p = 2^(1 - n), to be at most alpha / family.
    With fewer no data whatever can show a difference. Beyond 16 pairs `paired` is Student's test, whose p has no floor:
    17 always suffice.

    Raises:
        ValueError: an empty family; alpha not between 0 and 1.
    """
    if family < 1 or not 0 < alpha < 1:
        raise ValueError(f"a family has at least 1 member and alpha lies between 0 and 1; got {family}, {alpha!r}")
    n = FEWEST
    while n <= EXACT_UP_TO and family * 2.0 ** (1 - n) > alpha:
        n += 1
    return n


def too_few_seeds(seeds: int, family: int = 1, alpha: float = 0.05) -> str | None:
    """Warn before a run if its seeds could never settle one of the comparisons; else return None."""
    needed = seeds_needed(family, alpha)
    if seeds >= needed:
        return None
    among = f"among {family} comparisons" if family > 1 else "in a comparison"
    return (
        f"{seeds} seeds can never show a difference {among} (smallest p = {min(1.0, 2.0 ** (1 - seeds)):.2g}, "
        f"alpha = {alpha:g}): ask for at least {needed}"
    )
