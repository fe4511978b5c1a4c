"""Tensors and layers that a probe did not see."""

from __future__ import annotations

from dataclasses import dataclass

NEVER_RAN = "holds weights and never ran as a module"


@dataclass(frozen=True)
class Unread:
    """A tensor or layer that a probe did not see.

    Attributes:
        layer: the module's qualified name.
        reason: why, in a few words; or `NEVER_RAN`.
        tensors: number of such tensors; 0 for a layer that never ran.
    """

    layer: str
    reason: str
    tensors: int
