"""Images that are small: what a reader sees stays."""

from __future__ import annotations

import re
from collections import Counter
from io import BytesIO
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.figure import Figure as Canvas
from matplotlib.layout_engine import ConstrainedLayoutEngine
from PIL import Image

from depthgauge.reports import images, style
from depthgauge.reports.content import Drawing, Step

FORMATS = ("png", "svg")


@pytest.fixture(scope="module")
def pair():
    """A map of many colours beside lines, as matplotlib saves it and as a report does."""
    with style.drawing():
        canvas, (left, right) = plt.subplots(1, 2)
        left.imshow(np.add.outer(np.linspace(0, 1, 200), np.linspace(0, 1, 300)))
        for slope in range(6):
            right.plot(np.linspace(0, 3, 200), slope * np.sin(np.linspace(0, 1, 200)), label=f"{slope} of sigma_w")
        right.legend()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(style, "_COMPRESSED", dict.fromkeys(FORMATS, bytes))
            png, svg = style.files(canvas, *FORMATS)
    return {"png": (png, images.with_palette(png)), "svg": (svg, images.with_short_numbers(svg))}


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(png)).convert("RGB")).astype(int)


def test_png_has_a_palette_and_nearly_the_same_colours(pair):
    before, after = pair["png"]
    assert Image.open(BytesIO(after)).mode == "P"
    assert len(after) < len(before) / 2
    off = np.abs(pixels(after) - pixels(before)).max(axis=2)
    assert off.max() <= 16  # of 255
    assert off.mean() < 2
    assert (pixels(after)[0, 0] == 255).all()  # paper stays white


def numbers(svg: bytes) -> list[float]:
    """Every number of every attribute that places something, in order."""
    shown = re.sub(rb"<metadata>.*?</metadata>", b"", svg, flags=re.DOTALL)
    attributes = re.findall(rb'\s(?:d|x|y|width|height|transform|points|viewBox)="([^"]*)"', shown)
    return [float(number) for text in attributes for number in re.findall(rb"-?\d+(?:\.\d+)?(?:e-?\d+)?", text)]


def test_svg_says_the_same_in_fewer_characters(pair):
    before, after = pair["svg"]
    assert len(after) < 0.95 * len(before)  # most of it is the map
    was, now = numbers(before), numbers(after)
    assert len(was) == len(now) > 1000
    np.testing.assert_allclose(now, was, rtol=5e-4, atol=5e-3)
    shapes = [[element.tag for element in ElementTree.fromstring(svg).iter()] for svg in (before, after)]
    drawn = [[tag for tag in tags if tag.startswith("{http://www.w3.org/2000/svg}")] for tags in shapes]
    assert [tag for tag in drawn[0] if not tag.endswith("metadata")] == drawn[1]


@pytest.mark.parametrize(("value", "text"), [(-0.0001, b"-0.0001"), (0.015625, b"0.01562"), (12.3456, b"12.35")])
def test_factors_of_a_transform_keep_their_digits(value, text):
    assert images.with_short_numbers(f'<use x="{value:.6f}"/>'.encode()) == b'<use x="' + text + b'"/>'


def test_an_id_that_is_referred_to_stays():
    svg = b'<clipPath id="p1a2b"/><g id="line2d_1"><use href="#m3c"/></g>'
    assert images.with_short_numbers(svg) == b'<clipPath id="p1a2b"/><g><use href="#m3c"/></g>'


def test_a_page_shows_the_smaller_file():
    drawing = Drawing("a", "a", "", "", "", b"png", b"svg+", (Step("1", b"png+", b"svg"), Step("2", b"png", b"")))
    assert drawing.smallest == ("image/png", b"png")
    assert [step.smallest for step in drawing.steps] == [("image/svg+xml", b"svg"), ("image/png", b"png")]


def test_both_files_of_a_figure_come_from_one_layout(monkeypatch):
    counted = Counter()

    def counting(owner, name):
        method = getattr(owner, name)

        def call(*arguments, **options):
            counted[name] += 1
            return method(*arguments, **options)

        monkeypatch.setattr(owner, name, call)

    counting(ConstrainedLayoutEngine, "execute")
    counting(Canvas, "draw")
    with style.drawing():
        canvas, axes = plt.subplots()
        axes.plot([1, 2])
        style.files(canvas, *FORMATS)
    assert counted == {"execute": 1, "draw": len(FORMATS)}
