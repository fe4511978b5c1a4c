"""Averages of weights that the training keeps itself: target networks, teachers; whether they follow the weights.

In a few own steps every operator that writes into the tensors of such a part is looked at. One that is written to by
arithmetic in each step, and is the same bits all the time, follows nothing; one that is the weights themselves after
each step averages nothing. A plain copy of the weights, every step or now and then, is meant, as is a part that is
never written to.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from depthgauge.checking.answers import Finding, Kind, Measure, Status
from depthgauge.checking.attributes import attributes_kept
from depthgauge.checking.parameters import held_by
from depthgauge.checking.questions.signal.holders import within
from depthgauge.checking.steps import step
from depthgauge.workload import Training

STEPS = 4
FAR = 1.5  # times the weights that are followed, from which an average takes a share of half a weight
REACHED = 0.2  # of the weights of an average in a 16-bit format, that then change at least
CLOSE = 1e-6  # of the largest weight: bits that arithmetic leaves between 1 * w and w

KINDS = {
    "still_average": Kind(
        "fault",
        "weights that follow others by an average (a target network, a teacher) are written to in each step, and never"
        f" change: the share that is taken over is 0; or of its 16-bit weights less than {REACHED:.0%} change were the"
        f" weights {FAR:g} times as large, tried: it rounds away",
    ),
    "no_average": Kind(
        "fault",
        "weights that follow others by an average are those themselves after each step: the share that is kept is 0",
    ),
}


@dataclass(eq=False)
class _Follower:
    """A part whose tensors the optimizer does not hold, and the one with the same shapes that it holds."""

    name: str
    own: list[Tensor]
    led: list[Tensor]
    computed: int = 0
    changed: bool = False
    apart: bool = False
    moved: bool = False
    written: set[int] = field(default_factory=set)
    reached: float = math.nan

    @property
    def is_coarse(self) -> bool:
        """Whether it is kept in a 16-bit format."""
        return all(torch.finfo(each.dtype).bits == 16 for each in self.own)


def findings(training: Training) -> Iterator[Finding]:
    """Make a few steps and look; the training is left as it was."""
    if training.optimizer is None:
        return
    modules = [each for _, each in within(training.loss) if isinstance(each, nn.Module)]
    followers = _followers(training, modules)
    if not followers:
        return
    with attributes_kept(training), training.untouched():
        for place, batch in enumerate(training.known(STEPS)):
            if not _stepped(training, batch, followers, first=not place):
                return
        coarse = [each for each in followers if each.is_coarse]
        if coarse:
            _far_off(training, coarse)
    for each in followers:
        if each.computed < STEPS - 1 or not each.moved:
            continue
        if each.is_coarse and each.reached < REACHED:
            what = f"hardly change, were those even {FAR:g} times as large: in {each.own[0].dtype} what is added"
            yield _told("still_average", each, f"{what} rounds away", "takes over")
        elif not each.changed:
            yield _told("still_average", each, "never change: the share that is taken over of them is 0", "takes over")
        elif not each.apart:
            yield _told("no_average", each, "are those after each step: the share that is kept is 0", "keeps")


def may_follow(training: Training) -> bool:
    """Tell whether the training has weights that may follow others by an average."""
    modules = [each for _, each in within(training.loss) if isinstance(each, nn.Module)]
    return training.optimizer is not None and bool(_followers(training, modules))


def _told(kind: str, follower: _Follower, what: str, share: str) -> Finding:
    return Finding(
        kind, Status.BROKEN,
        f"`{follower.name}` is to follow the weights by an average, which is computed in each step, and its weights"
        f" {what}",
        f"look at the factors of the average: it is usual that `{follower.name}` takes over 0.001 to 0.05 a step",
        f"the average {share} a share of what it should", (follower.name, "model", "loss"),
        Measure("steps that were looked at", STEPS, unit="steps"),
    )  # fmt: skip


def _followers(training: Training, others: Sequence[nn.Module]) -> list[_Follower]:
    held = {id(each) for each in held_by(training.optimizer)}
    led: dict[tuple[Any, ...], list[Tensor]] = {}
    free: list[tuple[str, tuple[Any, ...], list[Tensor]]] = []
    roots = [("", training.model), *((f"loss.{place}.", each) for place, each in enumerate(others))]
    for prefix, root in roots:
        for name, module in root.named_modules():
            named = list(module.named_parameters())
            shape = tuple((inner, tuple(each.shape)) for inner, each in named)
            tensors = [each for _, each in named]
            if not tensors or any(not each.is_floating_point() for each in tensors):
                continue
            inside = sum(id(each) in held for each in tensors)
            if inside == len(tensors):
                led.setdefault(shape, tensors)
            elif not inside and not any(each.requires_grad for each in tensors):
                free.append((f"{prefix}{name}".rstrip("."), shape, tensors))
    found: list[_Follower] = []
    met: set[int] = set()
    for name, shape, tensors in free:  # the largest come first
        if shape in led and not any(id(each) in met for each in tensors):
            met.update(map(id, tensors))
            found.append(_Follower(name or "model", tensors, led[shape]))
    return found


def _stepped(training: Training, batch: Any, followers: Sequence[_Follower], *, first: bool) -> bool:
    before = [([_copy(each) for each in part.own], [_copy(each) for each in part.led]) for part in followers]
    writes = _Writes(followers)
    with writes:
        value = step(training, batch)
    if not math.isfinite(value):
        return False
    for part, (own, led) in zip(followers, before, strict=True):
        part.computed += writes.computed[part.name]
        part.moved |= any(not torch.equal(new, old) for new, old in zip(part.led, led, strict=True))
        if first:
            continue  # a follower begins as a copy, and takes over no change yet
        part.changed |= any(not torch.equal(new, old) for new, old in zip(part.own, own, strict=True))
        part.apart |= not (_same(part.own, led) or _same(part.own, part.led))
    return True


def _far_off(training: Training, followers: Sequence[_Follower]) -> None:
    """Make a step with the weights that are followed far off, and see which share of the average's weights moves."""
    with torch.no_grad():
        for part in followers:
            for one, led in zip(part.own, part.led, strict=True):
                led.copy_(FAR * one)
    before = [[_copy(each) for each in part.own] for part in followers]
    if not math.isfinite(step(training, training.first(1)[0])):
        return
    for part, own in zip(followers, before, strict=True):
        moved = sum(int((new != old).sum()) for new, old in zip(part.own, own, strict=True))
        part.reached = moved / max(1, sum(int((each != 0).sum()) for each in own))


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().clone()


def _same(some: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return all(
        bool((one.detach() - other.detach()).abs().max() <= CLOSE * other.detach().abs().max())
        for one, other in zip(some, others, strict=True)
        if one.numel()
    )


class _Writes(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Notes which followers are written to by arithmetic, in a step.

    Attributes:
        computed: by name, 1 where there was such a write.
    """

    def __init__(self, followers: Sequence[_Follower]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as above
        self.computed = {part.name: 0 for part in followers}
        self._place = {each.untyped_storage().data_ptr(): part.name for part in followers for each in part.own}
        self._led = {each.untyped_storage().data_ptr() for part in followers for each in part.led}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._schema.is_mutable:
            for place, taken in enumerate(func._schema.arguments):
                if taken.alias_info is None or not taken.alias_info.is_write:
                    continue
                value = args[place] if place < len(args) else kwargs.get(taken.name)
                for each in value if isinstance(value, list | tuple) else [value]:
                    name = self._place.get(each.untyped_storage().data_ptr()) if isinstance(each, Tensor) else None
                    if name is not None and not self._plain(func, args):
                        self.computed[name] = 1
        return func(*args, **kwargs)

    def _plain(self, func: Any, args: Any) -> bool:
        """Tell whether it copies the followed weights as they are."""
        if "copy_" not in func._schema.name or len(args) < 2:
            return False
        sources = args[1] if isinstance(args[1], list | tuple) else [args[1]]
        return all(isinstance(each, Tensor) and each.untyped_storage().data_ptr() in self._led for each in sources)
