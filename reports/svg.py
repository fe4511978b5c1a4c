"""Small pictures as inline SVG for pages that stand alone: their colours are the page's, light or dark.

A picture scales with the page, and scrolls where it would be too small; every number in it stands in a table beside
it, too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from depthgauge.reports.escaping import clean, shorten

_ROOM, _VALUES = 400, 96  # widths of what is drawn, and of the numbers at its right
_LETTER, _LETTERS = 6.6, 48  # width of a letter of the names at its left, and how many are shown of a name
_LINE, _TOP, _TICK = 24, 28, 36  # height of a row, of the ticks, and the room that a tick's number takes


@dataclass(frozen=True)
class Bar:
    """A signed amount; `tone` is a class of the style sheet: worse, better or same."""

    label: str
    value: float
    text: str
    tone: str


@dataclass(frozen=True)
class Span:
    """A ratio with its interval; an interval without a finite end is drawn to the edge."""

    label: str
    value: float
    low: float
    high: float
    text: str
    tone: str


def bars(rows: Sequence[Bar], title: str) -> Markup:
    """Bars to both sides of zero, one a row, in the order given."""
    lowest = min((row.value for row in rows), default=0.0)
    highest = max((row.value for row in rows), default=0.0)
    scale = _ROOM / ((max(highest, 0.0) - min(lowest, 0.0)) or 1.0)
    begin = _begin(rows)
    zero = begin - min(lowest, 0.0) * scale
    parts = [_line(zero, _TOP - 8, zero, _TOP + _LINE * len(rows), "axis")]
    for place, row in enumerate(rows):
        y = _TOP + _LINE * place
        wide = abs(row.value) * scale
        start = zero if row.value >= 0 else zero - wide
        parts += [
            _label(row.label, begin, y),
            Markup('<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="14"/>').format(
                row.tone, start, y + 3, max(wide, 0.5)
            ),
            _text(begin + _ROOM + 8, y + 14, row.text),
        ]
    return _picture(parts, begin, _TOP + _LINE * len(rows) + 6, title)


def forest(rows: Sequence[Span], title: str, band: float = math.nan) -> Markup:
    """Ratios with their intervals on a logarithmic axis around 1; `band` is the factor that is noise."""
    ends = [end for row in rows for end in (row.value, row.low, row.high) if math.isfinite(end) and end > 0]
    factors = [*map(_factor, ends), band if math.isfinite(band) else 1.0, 1.05]
    most = min(max(factors) * 1.02, 20.0)
    begin = _begin(rows)

    def across(ratio: float) -> float:
        clipped = min(max(ratio, 1 / most), most) if ratio > 0 else 1 / most
        return begin + _ROOM * (0.5 + math.log(clipped) / (2 * math.log(most)))

    low = _TOP + _LINE * len(rows)
    parts: list[Markup] = []
    if math.isfinite(band):
        x = across(1 / band)
        parts.append(
            Markup('<rect class="band" x="{:.1f}" y="{}" width="{:.1f}" height="{}"/>').format(
                x, _TOP - 6, across(band) - x, low - _TOP + 6
            )
        )
    taken: list[float] = []
    for tick in _ticks(most):
        x = across(tick)
        parts.append(_line(x, _TOP - 6, x, low, "axis" if tick == 1 else "rule"))
        if all(abs(x - other) > _TICK for other in taken):
            parts.append(_text(x, _TOP - 12, f"{tick:g}", "middle"))
            taken.append(x)
    for place, row in enumerate(rows):
        y = _TOP + _LINE * place + 10
        parts += [_label(row.label, begin, y - 10), _text(begin + _ROOM + 8, y + 4, row.text)]
        if math.isfinite(row.value):
            wide = math.isfinite(row.high)
            start, end = (across(row.low), across(row.high)) if wide else (across(0.0), across(math.inf))
            parts += [
                _line(start, y, end, y, row.tone, dashed=not wide),
                Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="4.5"/>').format(row.tone, across(row.value), y),
            ]
    return _picture(parts, begin, low + 8, title)


def trend(values: Sequence[float], marked: Sequence[int], title: str) -> Markup:
    """A line of positive values in the order of time on a logarithmic axis, some of them marked; gaps where NaN."""
    wide, high, pad = 260, 40, 6
    known = [value for value in values if math.isfinite(value) and value > 0]
    low, top = math.log(min(known, default=1.0)), math.log(max(known, default=1.0))
    spread = max(top - low, math.log(1.05))
    middle = (top + low) / 2

    def at(place: int, value: float) -> tuple[float, float]:
        x = pad + (wide - 2 * pad) * (place / max(len(values) - 1, 1))
        return x, high / 2 - (math.log(value) - middle) / spread * (high - 2 * pad)

    points = [at(place, value) if math.isfinite(value) and value > 0 else None for place, value in enumerate(values)]
    parts = [_line(*a, *b, "axis") for a, b in pairwise(points) if a and b]
    parts += [
        Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="{}"/>').format(
            "worse" if place in marked else "same", *point, 4 if place in marked else 2
        )
        for place, point in enumerate(points)
        if point
    ]
    head = Markup('<svg viewBox="0 0 {} {}" style="width: {}px" role="img" aria-label="{}">')
    return head.format(wide, high, wide, clean(title)) + Markup("").join(parts) + Markup("</svg>")


def _factor(ratio: float) -> float:
    return max(ratio, 1 / ratio)


def _ticks(most: float) -> Iterator[float]:
    steps = [1.02, 1.05, 1.1, 1.2, 1.5, 2.0, 5.0, 10.0]
    chosen = [step for step in steps if step <= most][-3:]
    yield from (1.0, *chosen)
    yield from (float(f"{1 / step:.3g}") for step in chosen)


def _picture(parts: Sequence[Markup], begin: float, high: float, title: str) -> Markup:
    wide = begin + _ROOM + _VALUES
    head = Markup('<svg viewBox="0 0 {0:.0f} {1:.0f}" style="min-width: {2:.0f}px; max-width: {3:.0f}px" role="img" ')
    sized = head.format(wide, high, 0.85 * wide, 1.2 * wide) + Markup('aria-label="{}">').format(clean(title))
    return sized + Markup("").join(parts) + Markup("</svg>")


def _begin(rows: Sequence[Bar | Span]) -> float:
    """Where the names end."""
    return 14 + _LETTER * max((min(len(row.label), _LETTERS) for row in rows), default=0)


def _label(text: str, begin: float, y: float) -> Markup:
    whole = clean(text)
    # the end of a long name says more than its beginning: the folder of a benchmark, the namespace of an operator
    seen = whole if len(whole) <= _LETTERS else f"…{whole[1 - _LETTERS :]}"
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="end">{}<title>{}</title></text>').format(
        begin - 10, y + 14, seen, shorten(whole)
    )


def _text(x: float, y: float, text: str, anchor: str = "start") -> Markup:
    return Markup('<text class="soft" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(
        x, y, anchor, clean(text)
    )


def _line(x1: float, y1: float, x2: float, y2: float, tone: str, *, dashed: bool = False) -> Markup:
    dash = Markup(' stroke-dasharray="4 4"') if dashed else Markup("")
    return Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}" stroke-width="1.5"{}/>').format(
        tone, x1, y1, x2, y2, dash
    )
