"""The evidence of an answer as pages show it: its figure and its tables."""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image

from depthgauge.checking.answers import Answer
from depthgauge.checking.questions import QUESTIONS
from depthgauge.foreign import contained, describe_error
from depthgauge.reports import images, style
from depthgauge.reports.escaping import slug
from depthgauge.reports.tables import Table


@dataclass(frozen=True)
class Picture:
    """A question's figure; PNG, and SVG with its text as outlines."""

    png: bytes
    svg: bytes

    @property
    def source(self) -> str:
        """The smaller of both as a data address."""
        kind, content = images.smallest(self.png, self.svg)
        return f"data:{kind};base64,{b64encode(content).decode()}"

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        with Image.open(io.BytesIO(self.png)) as image:
            return image.size


def drawn(answer: Answer) -> Picture | str:
    """The question's figure; in its place the reason why it could not be drawn, empty where it has none."""
    draw = next((question.draw for question in QUESTIONS if question.id == answer.id), None)
    if draw is None or not answer.tables:
        return ""
    try:
        with contained(), style.drawing():
            figure = draw(answer)
            if figure is None:
                return ""
            picture = Picture(*style.files(figure, "png", "svg"))
    except Exception as error:  # noqa: BLE001 - a figure is not worth the card
        return f"its figure could not be drawn: {describe_error(error)}"
    return picture


def tables(answer: Answer) -> Iterator[Table]:
    """The tables of an answer, their first rows formatted."""
    for name, frame in answer.tables.items():
        yield Table.of(name.replace("_", " "), f"{answer.id}.{slug(name)}", frame, shown=True)
