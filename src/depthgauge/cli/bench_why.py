"""The parts of a call in which the variants of `depthgauge bench ab` differ, as a table and for programs."""

# ruff: noqa: PLC0415 - a command imports what it needs when it is called, so that help answers at once

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from depthgauge.cli import output
from depthgauge.cli.answers import spelled
from depthgauge.digits import three

if TYPE_CHECKING:
    from depthgauge.timing.spending import Part, Spent

_SHOWN = 12


def print_why(spent: Sequence[Spent]) -> None:
    """Print the parts of a call, those first that differ most, and the sentence that sums them up."""
    from rich.table import Table
    from rich.text import Text

    from depthgauge.timing.spending import differences

    parts = differences(spent)
    letters = [chr(ord("A") + place) for place in range(len(spent))]
    table = Table("", *letters, *(f"{letter} - A" for letter in letters[1:]), "calls", box=None, pad_edge=False)
    for part in parts[:_SHOWN]:
        table.add_row(Text(output.plain(part.name)), *_cells(part))
    rest = parts[_SHOWN:]
    if rest:
        sums = [sum(part.seconds[place] for part in rest) for place in range(len(spent))]
        table.add_row(f"{len(rest)} others", *map(_duration, sums), *(_signed(each - sums[0]) for each in sums[1:]))
    table.add_row("a call", *_total(spent))
    output.tell("")
    output.tell(f"Why, by {spent[0].by}: own time in one call, under a profiler, which lengthens short ones.")
    output.tell_table(table)
    output.tell(_most(spent, parts))


def _cells(part: Part) -> list[str]:
    first = part.seconds[0]
    spelt = [three(calls) for calls in part.calls]
    calls = spelt[0] if len(set(spelt)) == 1 else ", ".join(spelt)
    return [*map(_duration, part.seconds), *(_signed(each - first) for each in part.seconds[1:]), calls]


def _total(spent: Sequence[Spent]) -> list[str]:
    first = spent[0].seconds
    return [*(_duration(each.seconds) for each in spent), *(_signed(each.seconds - first) for each in spent[1:]), ""]


def _most(spent: Sequence[Spent], parts: Sequence[Part]) -> str:
    """Name the part that makes most of the difference of the variant that differs most."""
    place = max(range(1, len(spent)), key=lambda one: abs(spent[one].seconds - spent[0].seconds))
    whole = spent[place].seconds - spent[0].seconds
    part = max(parts, key=lambda one: (one.seconds[place] - one.seconds[0]) * (1 if whole > 0 else -1))
    change, letter = part.seconds[place] - part.seconds[0], chr(ord("A") + place)
    return f"Most of what {letter} differs by from A, {_signed(whole)}: {output.plain(part.name)}, {_signed(change)}."


def _duration(seconds: float) -> str:
    return spelled(seconds) if seconds else "-"


def _signed(seconds: float) -> str:
    return f"{'+' if seconds > 0 else '-'}{spelled(abs(seconds))}" if seconds else "-"


def why_json(spent: Sequence[Spent]) -> list[dict[str, Any]]:
    """The same for a program: seconds and calls of one call of each variant."""
    return [
        {
            "variant": each.label,
            "by": each.by,
            "seconds": each.seconds,
            "parts": [
                {"name": name, "calls": calls, "seconds": seconds} for name, (calls, seconds) in each.parts.items()
            ],
        }
        for each in spent
    ]
