"""The paper of a question's figure."""

# ruff: noqa: PLC0415 - matplotlib is a second, needed only where something is drawn

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZE = (7.0, 3.5)  # inches


def empty() -> tuple[Figure, Axes]:
    """A figure that pyplot does not know of, so that it is gone with its last reader; and its axes."""
    from matplotlib.figure import Figure

    figure = Figure(SIZE, layout="constrained")
    return figure, figure.subplots()
