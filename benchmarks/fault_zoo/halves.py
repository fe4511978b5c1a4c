"""The zoo's two halves: thresholds are set on one, and scored on the other; and a third set, by another hand."""

from __future__ import annotations

import importlib
import importlib.util
from importlib import metadata
from typing import Literal

from benchmarks.fault_zoo.entry import Planted, Sound

Half = Literal["set", "score", "third"]

_FAULTS = {
    "set": ("planted_set", "planted_set_numbers"),
    "score": ("planted_score", "planted_score_data", "planted_score_numbers"),
    "third": ("planted_third", "planted_third_numbers"),
}
_SOUNDS = {
    "set": ("sound_set", "sound_set_public"),
    "score": ("sound_score", "sound_score_public"),
    "third": ("sound_third", "sound_third_losses"),
}


def faults(half: Half) -> tuple[Planted, ...]:
    """Its planted faults that can be built here."""
    return tuple(each for name in _FAULTS[half] for each in _module(name, "FAULTS") if _installed(each.needs))


def sounds(half: Half) -> tuple[Sound, ...]:
    """Its sound trainings that can be built here."""
    return tuple(each for name in _SOUNDS[half] for each in _module(name, "SOUNDS") if _installed(each.needs))


def _module(name: str, collected: str) -> list:  # type: ignore[type-arg] # of Planted or of Sound
    path = f"benchmarks.fault_zoo.{name}"
    return getattr(importlib.import_module(path), collected).all if importlib.util.find_spec(path) else []


def _installed(needs: tuple[str, ...]) -> bool:
    try:
        return all(metadata.version(name) for name in needs)
    except metadata.PackageNotFoundError:
        return False
