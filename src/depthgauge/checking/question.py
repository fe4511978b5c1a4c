"""The declaration of one question of the card."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from depthgauge.checking.answers import NOT_MEASURED, Answer, Kind
from depthgauge.checking.subject import Subject

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Question:
    """One question about a training.

    Attributes:
        id: `signal`, `learning_rate`, ...
        text: as a user asks it.
        ask: answers it; may raise, and is undecided then.
        share: of the time, against the other questions' shares.
        kinds: what it may find, by name, as the documentation lists it.
        draw: a figure of the evidence; None where there is nothing to be drawn.
    """

    id: str
    text: str
    ask: Callable[[Subject], Answer]
    share: float
    kinds: Mapping[str, Kind] = field(default_factory=dict)
    draw: Callable[[Answer], Figure | None] = lambda _: None

    @property
    def all_kinds(self) -> Mapping[str, Kind]:
        """`kinds`, and that it could not be measured."""
        return {**self.kinds, **NOT_MEASURED}
