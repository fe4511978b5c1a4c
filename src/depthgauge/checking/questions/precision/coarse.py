"""Numbers of the data that a format has no room for: identities that fall together, and times that no longer differ."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from depthgauge import nested
from depthgauge.checking.answers import Finding, Measure, Status
from depthgauge.checking.parameters import spelled
from depthgauge.checking.subject import Subject

FEWEST = 8  # numbers of a row that rises, and numbers that are no index by chance
MERGED = 0.25  # of the neighbours in rising rows, that became equal
BEYOND = 0.5  # of the numbers, that a format holds no longer one by one


@dataclass(frozen=True)
class Lost:
    """A change of format that lost what tells numbers apart.

    Attributes:
        text: in words.
        share: of the numbers or neighbours.
    """

    text: str
    share: float


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Look at each change of format of numbers that no weight has a part in."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as above
        self.lost: list[Lost] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ == "_to_copy" and not result.requires_grad:
            found = _of_index(args[0], result) or _of_rising(args[0], result)
            self.lost += [found] if found else []
        return result


def findings(subject: Subject) -> Iterator[Finding]:
    """Yield where numbers of the data fall together for their format."""
    training, batch = subject.training, subject.seen.batch
    with training.untouched(), _Watch() as watch:
        training.value(batch)
    found = watch.lost or [each for _, tensor in nested.tensors(batch) if (each := _tied(tensor)) is not None]
    if found:
        yield Finding(
            "coarse_numbers", Status.BROKEN, found[0].text,
            "keep identities in int64, and large times or positions in float64 or int64; subtract their start before"
            " they are made a smaller format",
            "what differs in the data differs in the model", ("batches",),
            Measure("share of numbers that fall together", found[0].share),
        )  # fmt: skip


def _exact(dtype: torch.dtype) -> float:
    """The number up to which a format has every whole number."""
    return float(2 / torch.finfo(dtype).eps)


def _of_index(before: Tensor, after: Tensor) -> Lost | None:
    """Floating-point numbers, taken for whole ones, beyond those that their format has."""
    if not before.is_floating_point() or after.is_floating_point() or after.dtype in (torch.bool, torch.uint8):
        return None
    values = before.detach().reshape(-1)
    if values.numel() < FEWEST or not bool(values.isfinite().all()) or len(torch.unique(values)) < FEWEST:
        return None
    share = (values.abs() > _exact(before.dtype)).float().mean().item()
    if share < BEYOND or bool((values == values.abs().max()).all()):
        return None
    step = values.abs().max().item() * torch.finfo(before.dtype).eps
    return Lost(
        f"numbers up to {values.abs().max().item():.3g} in {spelled(before.dtype)} are taken for whole numbers: the"
        f" format has steps of up to {step:.3g} there, so that different identities are one",
        share,
    )


def _of_rising(before: Tensor, after: Tensor) -> Lost | None:
    """Rows that rise, such as times and positions, of which neighbours are equal in the new format."""
    if not after.is_floating_point() or before.dtype == after.dtype or not before.dim():
        return None
    if before.is_floating_point() and torch.finfo(before.dtype).eps >= torch.finfo(after.dtype).eps:
        return None
    share = _merged(before.detach(), after.detach())
    if share < MERGED:
        return None
    return Lost(
        f"in {spelled(after.dtype)} {share:.0%} of the neighbours in rows of rising numbers, up to"
        f" {before.detach().abs().max().item():.3g}, are equal that differ in {spelled(before.dtype)}",
        share,
    )


def _merged(before: Tensor, after: Tensor) -> float:
    """The share of neighbours along the last dimension that differ before and not after; 0 where rows do not rise."""
    if before.shape[-1] < FEWEST:
        return 0.0
    steps = before.diff(dim=-1)
    if not bool((steps > 0).all()):
        return 0.0
    return (after.diff(dim=-1) == 0).float().mean().item()


def _tied(values: Tensor) -> Lost | None:
    """Rows that do not fall, of which many neighbours are equal and the others apart by a format's single steps."""
    if not values.is_floating_point() or not values.dim() or values.shape[-1] < FEWEST or not values.isfinite().all():
        return None
    numbers = values.detach()
    steps = numbers.double().diff(dim=-1)
    spacing = numbers.double().abs()[..., 1:] * torch.finfo(values.dtype).eps
    least = steps[steps > 0]
    if not len(least) or bool((steps < 0).any()) or (steps == 0).double().mean() < MERGED:
        return None
    single = (steps <= spacing)[steps > 0].double().mean().item()
    if single < BEYOND:
        return None
    share = (steps == 0).double().mean().item()
    return Lost(
        f"{share:.0%} of the neighbours in rows of rising numbers, up to {numbers.abs().max().item():.3g}, are equal,"
        f" and most others are one step of {spelled(values.dtype)} apart: the format has no room for their differences",
        share,
    )
