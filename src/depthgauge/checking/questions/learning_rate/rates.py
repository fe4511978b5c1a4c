"""Rates of an optimizer's parameter groups, and where their schedule takes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Rates:
    """The rates of an optimizer's parameter groups.

    Attributes:
        present: of each group, as they stand.
        peak: of each group, the largest that its schedule is known to reach; the present ones without a schedule.
        scheduled: whether a scheduler holds the optimizer.
    """

    present: tuple[float, ...]
    peak: tuple[float, ...]
    scheduled: bool

    @staticmethod
    def of(optimizer: Any) -> Rates:
        """Read them. `initial_lr` and `max_lr` are what torch's schedulers leave in a group."""
        groups = optimizer.param_groups
        present = tuple(float(group["lr"]) for group in groups)
        peak = tuple(
            max(float(group[name]) for name in ("lr", "initial_lr", "max_lr") if group.get(name) is not None)
            for group in groups
        )
        return Rates(present, peak, any("initial_lr" in group for group in groups))

    @property
    def largest(self) -> float:
        """The largest peak."""
        return max(self.peak)

    def times(self, factor: float) -> tuple[float, ...]:
        """So many times the peak, of each group."""
        return tuple(factor * rate for rate in self.peak)

    def __str__(self) -> str:
        """`0.001`, `0.001 and 0.01`."""
        return " and ".join(f"{rate:.3g}" for rate in sorted(set(self.peak)))
