"""The card as a picture, as a terminal shows it: SVG with its text as text, for a README or a pull request."""

from __future__ import annotations

import re
from collections.abc import Iterator

from markupsafe import Markup

from depthgauge.checking.card import text
from depthgauge.checking.found import Found

COLUMNS = 96
_SIZE, _WIDE, _HIGH, _PAD = 14, 8.43, 20, 18  # of a letter in pixels, of a line, and around all of it
_PAPER, _INK = "#16191d", "#e4e6e3"
_COLOURS = {"1;31": "#ff8f7f", "1;33": "#f2c063", "1;36": "#9dc1ee", "32": "#74d6ae", "2": "#a2abb4", "1": "#ffffff"}
_PAINT = re.compile(r"\x1b\[([0-9;]*)m")


def svg(found: Found) -> str:
    """The card in a frame; every line is as wide as its letters, whatever fixed-width font the reader has."""
    lines = text(found, COLUMNS, colour=True).split("\n")
    width, height = 2 * _PAD + COLUMNS * _WIDE, 2 * _PAD + len(lines) * _HIGH
    head = Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {0:.0f} {1:.0f}" width="{0:.0f}" height="{1:.0f}"'
        ' role="img" aria-label="{2}">\n<rect width="100%" height="100%" rx="8" fill="{3}"/>\n<g fill="{4}"'
        ' font-family="ui-monospace, Menlo, Consolas, DejaVu Sans Mono, monospace" font-size="{5}">\n'
    ).format(width, height, f"depthgauge check: {_PAINT.sub('', lines[0])}", _PAPER, _INK, _SIZE)
    return str(head + Markup("").join(_lines(lines)) + Markup("</g>\n</svg>\n"))


def _lines(lines: list[str]) -> Iterator[Markup]:
    paint = ""
    for place, line in enumerate(lines):
        parts = _PAINT.split(line)
        spans = []
        for index, part in enumerate(parts):
            if index % 2:
                paint = _COLOURS.get(part, "")
            elif part:
                fill = Markup(' fill="{}"').format(paint) if paint else Markup("")
                spans.append(Markup("<tspan{}>{}</tspan>").format(fill, part))
        length = len("".join(parts[::2]))
        if length:
            yield Markup('<text x="{}" y="{}" textLength="{:.0f}" xml:space="preserve">{}</text>\n').format(
                _PAD, _PAD + (place + 1) * _HIGH - 5, length * _WIDE, Markup("").join(spans)
            )
