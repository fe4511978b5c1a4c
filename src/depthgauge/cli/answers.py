"""Exit codes, options and printed figures that comparisons of durations share.

Comparisons end with 0 where nothing is slower, 3 where something is, 4 where an answer is missing, 5 where nothing was
measured; 1 and 2 stay what they are everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import click

from depthgauge.cli.numbers import PERCENT

SLOWER, INCONCLUSIVE, NOTHING = 3, 4, 5


class NothingMeasuredError(click.ClickException):
    """Error of a comparison that measured nothing, with its own exit code."""

    exit_code = NOTHING


margin_option = click.option(
    "--margin",
    type=PERCENT,
    default=5.0,
    show_default=True,
    metavar="PERCENT",
    help="Largest difference that counts as the same.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="For programs.")


def exit_code(paces: Iterable[str]) -> int:
    """Return the exit code of the gravest answer: slower before inconclusive."""
    answers = set(map(str, paces))
    return SLOWER if "slower" in answers else INCONCLUSIVE if "inconclusive" in answers else 0


def as_factor(percent: float) -> float:
    """The factor that so many percent more are."""
    return 1 + percent / 100


def percent(factor: float) -> str:
    """The excess of a factor over 1, in percent."""
    excess = 100 * (factor - 1)
    return f"{excess:,.0f} %" if abs(excess) >= 99.5 else f"{excess:.2g} %"  # two digits, and no power of ten


def spelled(seconds: float) -> str:
    """A duration of three digits with the unit in which they are below 1,000; more seconds are whole."""
    if seconds >= 999.5:
        return f"{seconds:,.0f} s"
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if float(f"{seconds:.3g}") >= size:  # as it is printed
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


def finite(value: float) -> float | None:
    """The number, or None where it is none or infinite."""
    return value if math.isfinite(value) else None
