"""Masks of ones and zeros that are added to an attention's scores, where they hide nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from depthgauge.checking.answers import Finding, Kind, Measure, Status
from depthgauge.checking.questions.data.batches import binary
from depthgauge.checking.questions.data.within import Within

KINDS = {
    "added_ones": Kind(
        "fault",
        "an attention gets a floating-point mask of nothing but ones and zeros, which it adds to its scores: a one is"
        " no more than a factor of 2.7 in a weight, and nothing is hidden",
    ),
}
_TAKEN = {
    "multi_head_attention_forward": {"key_padding_mask": 14, "attn_mask": 16},
    "scaled_dot_product_attention": {"attn_mask": 3},
}
"""Where functions take masks that are added, by name and by place."""


class Masks(TorchFunctionMode):
    """Notes the first attention that gets such a mask.

    Attributes:
        found: the module in whose call it is, and the mask's share of ones; None where there is none.
    """

    def __init__(self, within: Within) -> None:
        super().__init__()
        self._within = within
        self.found: tuple[str, float] | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        for name, place in _TAKEN.get(getattr(func, "__name__", ""), {}).items() if self.found is None else ():
            mask = given.get(name, args[place] if len(args) > place else None)
            if isinstance(mask, Tensor) and _is_constant(mask) and binary(mask):
                self.found = self._within.place("loss"), mask.detach().float().mean().item()
        return func(*args, **given)


def findings(mask: tuple[str, float] | None) -> Iterator[Finding]:
    """Yield the finding where a mask is added that was to be multiplied by, or to be True and False.

    Args:
        mask: what `Masks` found.
    """
    if mask is None:
        return
    where, share = mask
    yield Finding(
        "added_ones", Status.BROKEN,
        f"`{where}` adds a mask of ones and zeros to its scores: it hides no place, and makes some weights 2.7 times as"
        " large before they are normalized",
        "give the mask as True and False (mask.bool(), in the sense that the attention asks for), or as 0 and -inf",
        "what is masked has no weight", tuple(dict.fromkeys((where, "model"))), Measure("share of ones", share),
    )  # fmt: skip


def _is_constant(mask: Tensor) -> bool:
    return mask.is_floating_point() and not mask.requires_grad
