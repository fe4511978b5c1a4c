"""What models there are, as plain data: nothing here, and nothing that lists them, imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType


@dataclass(frozen=True)
class Entry:
    """One model.

    Attributes:
        name: what `build` knows it by.
        factory: `module:function`; the function's keyword arguments are the model's parameters.
        source: where the architecture comes from.
        fixed: arguments that make this model of its family.
        presets: name -> arguments; `published` (the shape of the source) needs none, `small` trains in seconds.
    """

    name: str
    factory: str
    source: str
    fixed: Mapping[str, object] = field(default_factory=dict)
    presets: Mapping[str, Mapping[str, object]] = field(default_factory=dict)


ENTRIES: Mapping[str, Entry] = MappingProxyType(
    {
        entry.name: entry
        for entry in (
            Entry(
                "mlp",
                "depthgauge.models.mlp:mlp",
                "Rumelhart, Hinton and Williams 1986; one hidden layer of 256 as in the course",
                presets={"small": {"depth": 3, "width": 100}},
            ),
        )
    }
)
