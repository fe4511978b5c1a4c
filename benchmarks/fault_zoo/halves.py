"""The zoo's two halves, thresholds set on one and scored on the other, and seven later sets, by other hands."""

from __future__ import annotations

import importlib
from importlib import metadata
from pathlib import Path
from typing import Literal, get_args

from benchmarks.fault_zoo.entry import Planted, Sound

Half = Literal["set", "score", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth"]

HALVES: tuple[Half, ...] = get_args(Half)
_HERE = Path(__file__).parent


def faults(half: Half) -> tuple[Planted, ...]:
    """Its planted faults that can be built here."""
    return tuple(each for each in _collected(f"planted_{half}", "FAULTS") if _installed(each.needs))


def sounds(half: Half) -> tuple[Sound, ...]:
    """Its sound trainings that can be built here."""
    return tuple(each for each in _collected(f"sound_{half}", "SOUNDS") if _installed(each.needs))


def _collected(stem: str, name: str) -> list:  # type: ignore[type-arg] # of Planted or of Sound
    """What the modules `stem` and `stem_*` collect under that name, in the order of their names."""
    paths = (path for pattern in (f"{stem}.py", f"{stem}_*.py") for path in sorted(_HERE.glob(pattern)))
    modules = (importlib.import_module(f"benchmarks.fault_zoo.{path.stem}") for path in paths)
    return [each for module in modules for each in getattr(module, name).all]


def _installed(needs: tuple[str, ...]) -> bool:
    try:
        return all(metadata.version(name) for name in needs)
    except metadata.PackageNotFoundError:
        return False
