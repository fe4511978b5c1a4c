"""Images as small as they get without a loss that anybody sees: PNG with a palette, SVG with short numbers."""

from __future__ import annotations

import re
from functools import lru_cache
from io import BytesIO

from PIL import Image

COLOURS = 256  # a pixel of a PNG is one byte
_DECIMALS = re.compile(rb"-?\d+\.\d{3,}")
_BOOKKEEPING = re.compile(rb"<!DOCTYPE[^>]*>\s*|<metadata>.*?</metadata>", re.DOTALL)
_STYLE = re.compile(rb'style="[^"]*"')


def with_palette(png: bytes) -> bytes:
    """Return an opaque PNG with a palette of its own colours.

    Each pixel keeps its colour where the picture has at most 256 of them, and gets the nearest of the palette else: no
    dots of other colours, so that a plain area stays plain.
    """
    with Image.open(BytesIO(png)) as image:
        paletted = image.convert("RGB").quantize(COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    buffer = BytesIO()
    paletted.save(buffer, "png", compress_level=8)
    return buffer.getvalue()


def with_short_numbers(svg: bytes) -> bytes:
    """Return matplotlib's SVG with hundredths of a point, without its bookkeeping, indentation and groups' numbers."""
    svg = _DECIMALS.sub(lambda found: _short(found[0]), _BOOKKEEPING.sub(b"", svg))
    svg = re.sub(rb'<g id="[a-z0-9_.]+_\d+">', b"<g>", svg)
    svg = re.sub(rb" ?\n\s*", b"\n", svg)
    svg = re.sub(rb'(?<=[\d"zZ])\n(?=[MLQCz"])', b"", svg)
    svg = re.sub(rb"(?<=[MLQC]) (?=[-\d])", b"", svg)
    return _STYLE.sub(lambda found: found[0].replace(b": ", b":").replace(b"; ", b";"), svg)


@lru_cache(maxsize=1 << 16)  # letters are outlines, whose numbers come again in every figure
def _short(number: bytes) -> bytes:
    """Two decimals, or four digits of what is below 1: a factor of a transform is one."""
    value = float(number)
    text = f"{value:.2f}" if abs(value) >= 1 else f"{value:.4g}"
    text = text.rstrip("0").rstrip(".") if "." in text and "e" not in text else text
    return b"0" if text in {"-0", ""} else text.encode()


def smallest(png: bytes, svg: bytes) -> tuple[str, bytes]:
    """Return media type and bytes of the smaller of a picture's two files; PNG where there is no SVG."""
    return ("image/svg+xml", svg) if svg and len(svg) <= len(png) else ("image/png", png)
