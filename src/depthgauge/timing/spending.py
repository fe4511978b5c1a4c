"""The parts of variants' time: they lead from "B is slower" to why.

with sitting(0) as slots:
    parts = differences([slot.why() for slot in (slots[0], *slots[2:])])
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Spent:
    """One call of a variant, part by part, under a profiler, which lengthens short parts.

    Attributes:
        label: the variant's name.
        by: `operator` or `function`.
        parts: name -> calls and own seconds in one call of the variant; seconds add up to the call.
    """

    label: str
    by: str
    parts: Mapping[str, tuple[float, float]]

    @classmethod
    def of(cls, label: str, by: str, parts: Iterable[tuple[str, float, float]]) -> Spent:
        """Make it of a list of name, calls and seconds; parts of one name are added up."""
        held: dict[str, tuple[float, float]] = {}
        for name, calls, seconds in parts:
            before = held.get(name, (0.0, 0.0))
            held[name] = before[0] + calls, before[1] + seconds
        return cls(label, by, held)

    @property
    def seconds(self) -> float:
        """Seconds of one call under the profiler."""
        return sum(seconds for _, seconds in self.parts.values())


@dataclass(frozen=True)
class Part:
    """One part in all variants: seconds and calls of each, the baseline first; 0 where a variant lacks it."""

    name: str
    seconds: tuple[float, ...]
    calls: tuple[float, ...]

    @property
    def largest(self) -> float:
        """The largest difference of any variant from the baseline."""
        return max((abs(each - self.seconds[0]) for each in self.seconds[1:]), default=0.0)


def differences(spent: Sequence[Spent]) -> tuple[Part, ...]:
    """The parts of all variants, those first that differ most from the baseline."""
    names = dict.fromkeys(name for each in spent for name in each.parts)
    held = {name: [each.parts.get(name, (0.0, 0.0)) for each in spent] for name in names}
    parts = [
        Part(name, tuple(seconds for _, seconds in each), tuple(calls for calls, _ in each))
        for name, each in held.items()
    ]
    return tuple(sorted(parts, key=lambda part: -part.largest))
