"""Dependence of an example's output on the other examples of its batch, in eval mode, and where it begins.

One example is replaced by another; outputs of the rest must not move. Where they do, the examples are put into another
order: what is meant to look at the whole batch (a batch's statistics, attention between examples) follows the order,
and what mixes examples by mistake (a reshape, a recurrence along the wrong dimension, a cumulative sum) does not.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from depthgauge import nested, seeding
from depthgauge.checking.attributes import attributes_kept
from depthgauge.checking.graphs import nodes, softmaxes
from depthgauge.checking.questions.reproducibility.calls import Event, recorded
from depthgauge.checking.terms import below, short, signed
from depthgauge.restoring import random_states_kept
from depthgauge.seeding import Purpose
from depthgauge.workload import Training

SIZES = (7, 5, 8, 6, 4)  # examples that are looked at; a size that is no other dimension's tells which is theirs

_EXPERTS = re.compile(
    r"expert|moe|router|switch|sparse_?mlp", re.IGNORECASE
)  # capacity is shared by the batch's tokens


@dataclass(frozen=True)
class Mixed:
    """Effect of replacing one example on the others' outputs.

    Attributes:
        moved: largest change of another example's output, over the output's root mean square; NaN where not tried.
        band: what rounding may change: half the digits of the output's format.
        ordered: whether outputs also depend on the examples' order.
        culprit: module in whose call it begins.
        kind: class of that module.
        before: module that is the first to be given mixed examples; empty where `culprit` has no child that is.
        meant: why examples are meant to share something; empty where nothing says so.
        along: what works along the examples' dimension: `softmax`, `normalization`; empty where nothing was found.
        why: why it was not tried.
        repeats: whether two calls from one state have the same outputs.
    """

    moved: float = math.nan
    band: float = 0.0
    ordered: bool = False
    culprit: str = ""
    kind: str = ""
    before: str = ""
    meant: str = ""
    along: str = ""
    why: str = ""
    repeats: bool = True

    @property
    def mixes(self) -> bool:
        """Tell whether others' outputs move beyond rounding."""
        return self.moved > self.band


def few(batch: Any) -> Iterator[Any]:
    """The batch's first examples, as many as is tried first, and then other numbers of them."""
    count = nested.rows(batch)
    if count is None or count < 2:
        return
    lengths = {size for _, tensor in nested.tensors(batch) for size in tensor.shape[1:]}
    fitting = [size for size in SIZES if size < count]
    for size in sorted(fitting, key=lambda size: (size in lengths, SIZES.index(size) if size in SIZES else 0)):
        yield nested.first(batch, size)


def bearable(training: Training, batch: Any) -> Any:
    """A few examples that the loss takes in eval mode; None where it takes no other number than the batch's."""
    for part in few(batch):
        try:
            outputs(training, part)
        except Exception:  # noqa: BLE001, S112 - a module may ask for a number of examples; others are tried
            continue
        return part
    return None


def mixed(training: Training, batch: Any, part: Any) -> Mixed:
    """Tell whether the model mixes the examples of a batch; `part` is what is `bearable` of it."""
    if nested.rows(batch) is None:
        return Mixed(why="the batch's tensors share no first dimension, that would be the examples'")
    if part is None:
        return Mixed(why="it takes no other number of examples than its batch's")
    return _judged(training, part, *(outputs(training, part) for _ in range(2)))


def _judged(training: Training, part: Any, base: list[Event], again: list[Event]) -> Mixed:
    count = nested.rows(part) or 0
    if not any(event.edge == "out" for event in base):
        return Mixed(why="no call of the model was seen")
    if changes(base, again, distance) > 0:
        return Mixed(why="its outputs are others in every call", repeats=False)
    found = Mixed(0.0, max((band(each) for event in base for _, each in event.read), default=0.0))
    for row in (0, count // 2):
        outside = partial(others, count=count, row=row)
        changed = replaced(part, row)
        if changed is None:
            return Mixed(why="its examples are all alike")
        other = outputs(training, changed)
        if changes(base, other, outside, "in") > found.band:
            return Mixed(why="the loss mixes the examples before the model sees them")
        moved = changes(base, other, outside, "out")
        if moved > max(found.band, found.moved):
            found = replace(_culprit(training, part, changed, row, found.band), moved=moved, band=found.band)
    if not found.mixes:
        return found
    order = torch.randperm(count, generator=seeding.generator(0, Purpose.SAMPLE))
    turned = nested.mapped(part, lambda tensor: tensor[order.to(tensor.device)])
    apart = changes(base, outputs(training, turned), lambda a, b: distance(_turned(a, order), b), "out")
    along = _along(training, part, count) or _normalized(training, part, count)
    return replace(found, ordered=apart > found.band, along=along, meant=_meant(training))


def outputs(training: Training, batch: Any, *, deep: bool = False) -> list[Event]:
    """Tensors that the loss hands to the model and gets from it, in eval mode; of every module where `deep`."""
    with attributes_kept(training), training.untouched():
        training.model.eval()
        with recorded(training.model, copied, lambda outer: outer or deep) as events:
            training.value(batch)
    return events


def copied(tensor: Tensor) -> Tensor:
    """The same numbers, by themselves."""
    return tensor.detach().clone()


def others(a: Tensor, b: Tensor, count: int, row: int) -> float:
    """Largest change outside of one example's rows, over the root mean square; NaN without an examples' dimension."""
    if a.shape != b.shape or not a.is_floating_point():
        return math.nan if a.shape == b.shape else math.inf
    axes = [axis for axis, size in enumerate(a.shape) if size == count]
    if axes:
        return distance(_without(a, axes, row), _without(b, axes, row), a)
    if not a.dim() or a.shape[0] % count:
        return math.nan
    by_example, side_by_side = (count, -1, *a.shape[1:]), (-1, count, *a.shape[1:])
    return min(
        distance(_without(a.reshape(shape), [axis], row), _without(b.reshape(shape), [axis], row), a)
        for shape, axis in ((by_example, 0), (side_by_side, 1))
    )


def _without(tensor: Tensor, axes: list[int], row: int) -> Tensor:
    for axis in axes:
        rest = [place for place in range(tensor.shape[axis]) if place != row]
        tensor = tensor.index_select(axis, torch.tensor(rest, device=tensor.device))
    return tensor


def distance(a: Tensor, b: Tensor, whole: Tensor | None = None) -> float:
    """Largest difference over the root mean square of the finite values; NaN where there is nothing to compare."""
    if a.shape != b.shape:
        return math.inf
    if not a.numel() or not a.is_floating_point():
        return math.nan
    difference = torch.where((a == b) | (a.isnan() & b.isnan()), 0.0, a.double() - b.double()).abs().max().item()
    values = (a if whole is None else whole).double()
    scale = values[values.isfinite()].square().mean().sqrt().item()
    return 0.0 if difference == 0 else math.inf if math.isnan(difference) else difference / (scale or 1.0)


def changes(
    one: list[Event], other: list[Event], measure: Callable[[Tensor, Tensor], float], edge: str = "out"
) -> float:
    """Largest of a measure over the outermost calls' tensors; infinite where the calls are not the same."""
    if [(event.layer, event.edge) for event in one] != [(event.layer, event.edge) for event in other]:
        return math.inf
    found = [
        measure(a, b)
        for first, second in zip(one, other, strict=True)
        if first.edge == edge and first.outermost
        for (_, a), (_, b) in zip(first.read, second.read, strict=False)
    ]
    return max((each for each in found if not math.isnan(each)), default=0.0)


def band(tensor: Tensor) -> float:
    """The change that rounding may make of it: half the digits of its format."""
    return math.sqrt(torch.finfo(tensor.dtype).eps) if tensor.is_floating_point() else 0.0


def replaced(batch: Any, row: int) -> Any:
    """The batch with one example replaced by another that differs from it; None where all are alike."""
    count = nested.rows(batch) or 0

    def swapped(source: int) -> Any:
        def swap(tensor: Tensor) -> Tensor:
            tensor = tensor.detach().clone()
            tensor[row] = tensor[source]
            return tensor

        return nested.mapped(batch, swap)

    for source in ((row + by) % count for by in range(1, count)):
        if any(not torch.equal(tensor[row], tensor[source]) for _, tensor in nested.tensors(batch) if tensor.dim() > 1):
            return swapped(source)
    return None


def _turned(tensor: Tensor, order: Tensor) -> Tensor:
    for axis, size in enumerate(tensor.shape):
        if size == len(order):
            tensor = tensor.index_select(axis, order.to(tensor.device))
    return tensor


def _culprit(training: Training, part: Any, changed: Any, row: int, least: float) -> Mixed:
    """The module in whose call others' numbers begin to move."""
    count = nested.rows(part) or 0
    one, other = (outputs(training, each, deep=True) for each in (part, changed))
    kinds = {name: type(each).__name__ for name, each in training.model.named_modules()}
    for first, second in zip(one, other, strict=False):
        pairs = zip(first.read, second.read, strict=False)
        if (first.layer, first.edge) != (second.layer, second.edge) or not any(
            others(a, b, count, row) > least for (_, a), (_, b) in pairs
        ):
            continue
        name, before = (first.layer, "") if first.edge == "out" else (first.within or "model", first.layer)
        return Mixed(culprit=name, before=before, kind=kinds.get("" if name == "model" else name, ""))
    return Mixed(culprit="model", kind=kinds[""])


def _along(training: Training, part: Any, count: int) -> str:
    """A softmax along the examples' dimension, in the loss's graph."""
    with attributes_kept(training), training.untouched():
        training.model.eval()
        made = softmaxes(nodes(training.value(part)))
        found = any(len(shape) > 1 and shape[along] == count and shape.count(count) == 1 for shape, along in made)
    return "softmax" if found else ""


def _normalized(training: Training, part: Any, count: int) -> str:
    """A division by a spread or a length along the examples' dimension, in the graph of the module's outputs."""
    if isinstance(training.model, torch.jit.ScriptModule):  # whose calls cannot be hooked
        return ""
    seen: list[Tensor] = []

    def keep(_: object, __: object, output: object) -> None:
        seen.extend(each for _, each in nested.tensors(output) if each.grad_fn is not None)

    with attributes_kept(training), training.untouched():
        training.model.eval()
        handle = training.model.register_forward_hook(keep)
        try:
            training.value(part)
        finally:
            handle.remove()
        divisions = (node for each in seen for node in nodes(each) if short(node) == "Div")
        return "normalization" if any(_spreads(node, count) for node in divisions) else ""


def _spreads(node: Any, count: int) -> bool:
    """Tell whether what a division divides by is taken along the first dimension, of so many examples."""
    if len(node.next_functions) < 2 or (lower := node.next_functions[1][0]) is None:
        return False
    for each in (lower, *itertools.islice(below(lower), 3)):
        if short(each) in {"Std", "Var", "LinalgVectorNorm"}:
            given, dims = each._saved_self, each._saved_dim
            first = dims is not None and [signed(dim) for dim in dims] in ([0], [-given.dim()])
            return bool(first and given.dim() > 1 and len(given) == count)
    return False


def _meant(training: Training) -> str:
    """Why examples may be meant to share something."""
    names = dict(training.model.named_modules())
    if any(isinstance(each, nn.modules.batchnorm._BatchNorm) and each.running_mean is None for each in names.values()):
        return "batch normalization without running statistics"
    parts = (text for name, each in names.items() for text in (name, type(each).__name__))
    return "experts may share a capacity" if any(map(_EXPERTS.search, parts)) else ""


def carries(training: Training, batch: Any) -> float:
    """Largest change of the model's outputs when it is called once more on the same batch, over their root mean square.

    Both calls are in eval mode and draw the same random numbers: what changes is what the model keeps.
    """
    runs = []
    with attributes_kept(training), training.untouched():
        training.model.eval()
        for _ in range(2):
            same_draws = (random_states_kept(), attributes_kept(training, draws=True))
            with same_draws[0], same_draws[1], recorded(training.model, copied, lambda outer: outer) as events:
                training.value(batch)
            runs.append(events)
    return changes(runs[0], runs[1], distance)


def by_example(training: Training, batch: Any) -> bool:
    """Tell whether the batch's first dimension is for sure that of examples, and not of time or of a graph's nodes.

    It is where a loader makes batches of as many, but for rows in their own order, which may be a sequence; else where
    several batches are as long, with one target each.
    """
    count = nested.rows(batch)
    shapes = [(tensor.dim(), tensor.is_floating_point()) for _, tensor in nested.tensors(batch)]
    structured = any(dims > 2 or (dims == 2 and not floating) for dims, floating in shapes)
    size = getattr(training.batches, "batch_size", None)
    if isinstance(size, int) and size > 1:
        ordered = isinstance(getattr(training.batches, "sampler", None), torch.utils.data.SequentialSampler)
        return size == count and (structured or not ordered)
    lengths = {nested.rows(each) for each in training.known(4)}
    one_each = any(dims == 1 for dims, _ in shapes)
    return len(training.known(4)) > 2 and lengths == {count} and one_each and structured
