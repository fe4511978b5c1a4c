"""Numbers that options take, each with its valid range."""

from __future__ import annotations

import math
import os
import re
from typing import Any, ClassVar

import click


class Whole(click.IntRange):
    """A whole number in a range."""

    name = "whole number"


class Finite(click.FloatRange):
    """A number in a range; NaN, which is neither below nor above any, is in none."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number.

        Raises:
            click.BadParameter: it is none, or not in the range.
        """
        number = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value} is not in the range {self._describe_range()}.", param, ctx)
        return number


class Duration(Finite):
    """A time in seconds: `30`, `30s`, `2m`, `500ms`."""

    name = "time"
    _UNITS: ClassVar = {"ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The seconds.

        Raises:
            click.BadParameter: it is no time, or not in the range.
        """
        found = re.fullmatch(r"([0-9.]+(?:e-?[0-9]+)?) *(ms|s|m|min|h)", str(value).strip())
        if found is None and not _is_number(value):
            self.fail(f"{value!r} is no time: write 45s, 2m or 500ms", param, ctx)
        if found is None:
            return super().convert(value, param, ctx)
        return super().convert(float(super().convert(found[1], param, ctx)) * self._UNITS[found[2]], param, ctx)


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True


class Several(click.ParamType[tuple[int, ...]]):
    """Whole numbers from 1 on, with commas between: `16,64,256`."""

    name = "whole numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """The numbers, each once, ascending.

        Raises:
            click.BadParameter: one is none, or out of range, or there are too many.
        """
        if isinstance(value, tuple):
            return value
        parts = str(value).split(",")
        if not all(part.isascii() and part.isdigit() and len(part) < 13 and int(part) > 0 for part in parts):
            self.fail(f"{value!r:.60} is not a list of whole numbers from 1 on, such as 16,64,256", param, ctx)
        if len(parts) > 64:
            self.fail(f"there are {len(parts)} numbers, where 64 are the most", param, ctx)
        return tuple(sorted(set(map(int, parts))))


_MANY = max(64, 4 * (os.cpu_count() or 1))  # processes or threads: more than this is a slip of the finger

SECONDS = Finite(min=0.001, max=365 * 24 * 3600)
BUDGET = Duration(min=0.001, max=24 * 3600)
PERCENT = Finite(min=0, max=1000)
SEEDS = Whole(min=1, max=10**9)  # how many cases that makes is the study's matter
BATCH = Whole(min=1, max=10**12)  # what fits into memory is the model's
WORKERS = Whole(min=0, max=_MANY)
THREADS = Whole(min=1, max=_MANY)
TOKENS = Whole(min=1, max=2**31 - 1)
PORT = Whole(min=0, max=65535)
SEVERAL = Several()
STEPS = Whole(min=1, max=10**12)
WARM = Whole(min=0, max=10**6)
EXAMPLES = Whole(min=2, max=10**7)
POSITIVE = Finite(min=0, max=1e30, min_open=True)
