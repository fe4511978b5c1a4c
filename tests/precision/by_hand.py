"""What a bisection gives, read and computed without it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

ERRORS = ["own", "inherited", "total"]


def error(low: Tensor, reference: Tensor) -> float:
    return float((low.double() - reference.double()).norm() / reference.double().norm())


def rows(frame: Any, direction: str = "forward") -> Any:
    return frame[frame["direction"] == direction].set_index("layer")
