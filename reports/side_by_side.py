"""Profiles that differ in their number format alone, operator by operator and kernel by kernel."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import pandas as pd

from depthgauge.profiling import Profile
from depthgauge.reports.escaping import slug
from depthgauge.reports.numbers import NOTHING, number, quantity
from depthgauge.reports.tables import Column, Table, csv_text

_SHOWN = 15  # rows of a table that are printed
_ORDER = ("float32", "tf32", "bfloat16", "float16")


def by_format(profiles: Sequence[Profile]) -> tuple[Table, ...]:
    """The tables of every setting that was profiled in two formats or more; none where there is no such setting."""
    settings: dict[tuple[tuple[str, str], ...], dict[str, Profile]] = {}
    for profile in profiles:
        setting = {name: str(value) for name, value in profile.capture.setting.items()}
        dtype = setting.pop("dtype", "")
        settings.setdefault(tuple(sorted(setting.items())), {})[dtype] = profile
    return tuple(
        table
        for setting, found in settings.items()
        if len(found) > 1
        for table in _tables({dtype: found[dtype] for dtype in sorted(found, key=_place)})
    )


def _place(dtype: str) -> tuple[int, str]:
    return (_ORDER.index(dtype) if dtype in _ORDER else len(_ORDER)), dtype


def _tables(found: dict[str, Profile]) -> Iterator[Table]:
    """Seconds a step of operators, then, on a device, of kernels: a column a format, and ratios to the first."""
    label = next(iter(found.values())).capture.label
    for what, key in (("operators", ["name"]), ("kernels", ["operator", "name"])):
        frames = {dtype: getattr(profile, what) for dtype, profile in found.items()}
        if any(frame.empty for frame in frames.values()):
            continue
        seconds = pd.DataFrame({dtype: frame.groupby(key)["seconds"].sum() for dtype, frame in frames.items()})
        seconds = seconds.loc[seconds.max(axis=1).sort_values(ascending=False, kind="stable").index]
        yield _table(f"{what.capitalize()} of {label} by number format", f"{slug(label)}.{what}-by-format", seconds)


def _table(name: str, stem: str, seconds: pd.DataFrame) -> Table:
    """A row an operator or a kernel; what a format does not call is missing there."""
    first = seconds.columns[0]
    ratios = {f"{dtype} / {first}": seconds[dtype] / seconds[first] for dtype in seconds.columns[1:]}
    frame = pd.concat([seconds.add_suffix(" (s)"), pd.DataFrame(ratios)], axis=1).reset_index()
    some, names = frame.head(_SHOWN), seconds.index.names
    columns = (
        *(Column(str(word), False, tuple(str(value)[:60] for value in some[word])) for word in names),
        *(Column(dtype, True, tuple(_cell(value) for value in some[f"{dtype} (s)"])) for dtype in seconds.columns),
        *(Column(ratio, True, tuple(_cell(value, ratio) for value in some[ratio])) for ratio in ratios),
    )
    return Table(name, stem, csv_text(frame), columns, len(frame), shown=True)


def _cell(value: float, ratio: str = "") -> str:
    if math.isnan(value):
        return NOTHING
    return number(value, 3) if ratio else quantity(value, "s")
