"""Names, counts and shares in sentences of findings."""

from __future__ import annotations

import math
from collections.abc import Iterable

MOST_NAMED = 3  # in a sentence
MOST_WHERE = 12  # in `where`


def listed(names: Iterable[str]) -> str:
    """Names, the first three of many."""
    every = [f"`{name}`" if name else "the model" for name in names]
    more = len(every) - MOST_NAMED
    return ", ".join(every[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def plural(count: int, thing: str) -> str:
    """`1 tensor`, `2 tensors`, `4 batches`, `12,000 parameters`."""
    return f"{count:,} {thing}{'' if count == 1 else 'es' if thing.endswith('ch') else 's'}"


def percent(share: float) -> str:
    """`1.2 %`, `140 %`; what is below 0.001 % as `4e-07 of it`."""
    if not math.isfinite(share):
        return "an infinite share"
    if share and abs(share) < 1e-5:
        return f"{share:.1g} of it"
    return f"{100 * share:.2g} %" if abs(share) < 0.995 else f"{100 * share:,.0f} %"
