"""The parts that a loss adds up: how each goes with the batch's size, and whether one keeps the others from falling."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from depthgauge import nested
from depthgauge.checking.answers import Finding, Kind, Measure, Status, Tried
from depthgauge.checking.questions.data.outputs import caught
from depthgauge.checking.questions.data.seeing import loss_of
from depthgauge.checking.steps import step
from depthgauge.checking.subject import Subject
from depthgauge.checking.terms import short
from depthgauge.restoring import random_states_kept
from depthgauge.updating import takes_closure
from depthgauge.workload import Training

MOST = 512  # parts that are looked at: a penalty of each parameter is one
ROUND = 0.15  # of a power of the batch's size: noise of the loss's own moves it by less
OUTWEIGHS = 3.0  # times the gradient of the others, from which on a part is left out for a trial
FAR_OUTWEIGHS = 100.0  # where the heavy part is a fit to the data itself, as of two tasks
FALLS = 0.1  # of the others' value, that they fall by in as many steps without it
HELD_UP = 0.2  # of that fall, which they do not reach with it
ALL_ALIKE = (
    0.02  # of the others, by which outputs of other examples are worse, with it: nothing of an example is learnt
)
OF_ITS_OWN = 0.2  # without it
STEPS = 60
SECONDS = 0.35  # of either trial
_THROUGH = frozenset(
    {"Add", "Sub", "Rsub", "Mul", "Div", "Neg", "View", "Squeeze", "Sum", "Mean", "Stack", "Alias", "Clone", "ToCopy"}
)

KINDS = {
    "outweighed": Kind(
        "fault",
        f"a part of the loss has {OUTWEIGHS:g} times the gradient of the others, which fall by {FALLS:.0%} in"
        f" {STEPS} steps"
        f" without it, for each example its own; with it by less than {HELD_UP:g} of that, or to where"
        " outputs of other examples are as good",
    ),
    "unlike_sums": Kind(
        "fault", "of two parts of the loss that depend on the batch, one is a sum over examples and the other a mean"
    ),
    "part_divided_twice": Kind(
        "fault", "a part of the loss halves with twice the examples: a mean is divided by their number"
    ),
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Part:
    """A part of a loss.

    Attributes:
        value: what it adds.
        gradient: (numbers,) by the parameters, of what it adds.
        name: of the function that made it.
    """

    value: float
    gradient: Tensor
    name: str


class _Scalars(TorchFunctionMode):
    """Keep all single numbers with a gradient, by the function in the graph that made them."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[Any, Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        value = func(*args, **(kwargs or {}))
        if isinstance(value, Tensor) and value.numel() == 1 and value.grad_fn is not None:
            self.made[value.grad_fn] = value
        return value


def added(training: Training, batch: Any) -> tuple[Tensor, list[tuple[Tensor, float]]]:
    """The loss, and what it adds up: numbers with a graph, and the factor of each."""
    with random_states_kept(), _Scalars() as scalars:
        loss = training.value(batch)
    nodes = list(_ends(loss.grad_fn, scalars.made))[:MOST]
    values = [scalars.made[node] for node in nodes]
    if len(values) < 2:
        return loss, [(loss, 1.0)]
    factors: tuple[Tensor | None, ...] = torch.autograd.grad(loss, values, retain_graph=True, allow_unused=True)
    return loss, [(value, 0.0 if by is None else by.item()) for value, by in zip(values, factors, strict=True)]


def _ends(node: Any, made: dict[Any, Tensor]) -> Iterator[Any]:
    """The nodes of single numbers at which sums end."""
    waiting, met = [node], set()
    while waiting:
        one = waiting.pop()
        if one in met:
            continue
        met.add(one)
        below = [each for each, _ in one.next_functions if each is not None]
        stack = short(one) == "Stack"
        sums = short(one) in _THROUGH and (short(one) != "Mul" or len(below) == 1) and (one in made or stack)
        if sums and below and all(_single(each, made) for each in below):
            waiting.extend(reversed(below))
            continue
        if one in made:
            yield one


def _single(node: Any, made: dict[Any, Tensor]) -> bool:
    return node in made or (short(node) == "Stack" and all(each in made for each, _ in node.next_functions))


def parts(training: Training, batch: Any) -> list[Part]:
    """The parts, with their gradients."""
    loss, found = added(training, batch)
    weights = [each for each in training.model.parameters() if each.requires_grad]
    made = []
    for value, factor in found:
        given: tuple[Tensor | None, ...] = torch.autograd.grad(value, weights, retain_graph=True, allow_unused=True)
        flat = [torch.zeros_like(w) if g is None else g.to_dense() for g, w in zip(given, weights, strict=True)]
        name = "" if value.grad_fn is None else short(value.grad_fn)
        made.append(Part(value.item() * factor, factor * torch.cat([each.detach().reshape(-1) for each in flat]), name))
    rest = loss.item() - sum(each.value for each in made)
    return made if abs(rest) <= 1e-3 * abs(loss.item()) + 1e-6 or len(made) > 1 else []


def findings(subject: Subject) -> Iterator[Finding]:
    """Yield what is found of a loss of two parts or more."""
    training, batch = subject.training, subject.seen.batch
    if not math.isfinite(subject.seen.loss) or not subject.fits(12, "parts of the loss", copies=4):
        return
    with training.untouched():
        _, found = added(training, batch)
        count = len(found)
        if not 2 <= count <= MOST or not subject.fits(2 * count, "parts of the loss"):
            return
        del found
        whole = parts(training, batch)
    if len(whole) != count or not all(bool(each.gradient.isfinite().all()) for each in whole):
        return
    with training.untouched():
        bare = _independent(training, subject, whole)
    yield from _powers(subject, bare)
    yield from _outweighing(subject, whole, bare)


def _independent(training: Training, subject: Subject, whole: Sequence[Part]) -> list[bool]:
    """Of each part, whether it is the same for another batch."""
    batches = subject.batches(2)
    other = batches[1] if len(batches) > 1 else nested.first(batches[0], max(1, (nested.rows(batches[0]) or 2) // 2))
    _, found = added(training, other)
    if len(found) != len(whole):
        return [False] * len(whole)
    pairs = zip(found, whole, strict=True)
    return [abs(value.item() * by - part.value) <= 1e-6 * abs(part.value) for (value, by), part in pairs]


def _powers(subject: Subject, bare: Sequence[bool]) -> Iterator[Finding]:
    training, batch = subject.training, subject.seen.batch
    count = nested.rows(batch)
    if not count or count < 4:
        return
    values = []
    with training.untouched():
        training.model.eval()
        for times in (1, 2, 3):
            try:
                _, found = added(training, nested.mapped(batch, partial(_repeated, times)))
            except Exception:  # noqa: BLE001 - rows that are no examples, as of a graph
                return
            values.append([value.item() * by for value, by in found])
    if len({len(each) for each in values}) > 1 or len(values[0]) != len(bare):
        return
    powers = [_power(each) for each, same in zip(zip(*values, strict=True), bare, strict=True) if not same]
    told = [each for each in powers if each is not None]
    if -1 in told and told.count(-1) < len(bare):
        yield Finding(
            "part_divided_twice", Status.LOOK,
            f"a part of the loss halves with twice the examples ({count} now): it is a mean that is divided"
            " by their number"
            " once more, beside parts that are not",
            "divide that part once", "its gradient does not shrink as a batch grows", ("loss",),
            Measure("parts of the loss that halve", told.count(-1)),
        )  # fmt: skip
    elif 1 in told and 0 in told:
        yield Finding(
            "unlike_sums", Status.LOOK,
            f"the loss adds a sum over the {count} examples to a mean over them: the one weighs {count} times"
            " what it says"
            " against the other",
            "average both over the examples, or sum both (and divide by the batch's size)",
            "the parts of the loss are balanced, whatever the batch's size", ("loss",),
            Measure("parts of the loss that double with the batch", told.count(1), unit=f"of {len(told)}"),
        )  # fmt: skip


def _repeated(times: int, tensor: Tensor) -> Tensor:
    return torch.cat([tensor] * times)


def _power(values: Sequence[float]) -> int | None:
    """-1, 0 or 1: the power of the batch's size that a part goes by."""
    if not values[0] or any(each / values[0] <= 0 for each in values):
        return None
    powers = [math.log(value / values[0]) / math.log(times) for value, times in zip(values[1:], (2, 3), strict=True)]
    whole = round(powers[0])
    return whole if all(abs(each - whole) < ROUND for each in powers) and abs(whole) <= 1 else None


def _outweighing(subject: Subject, whole: Sequence[Part], bare: Sequence[bool]) -> Iterator[Finding]:
    """Leave the heaviest part out for some steps; all that the batch does not move is one part."""
    training = subject.training
    if training.optimizer is None or takes_closure(training.optimizer):
        return
    groups = [[place] for place, same in enumerate(bare) if not same]
    if any(bare):
        groups.append([place for place, same in enumerate(bare) if same])
    if len(groups) < 2:
        return
    every = [torch.stack([whole[place].gradient for place in group]).sum(0) for group in groups]
    sizes = [each.norm().item() for each in every]
    heavy = max(range(len(groups)), key=sizes.__getitem__)
    others = (torch.stack(every).sum(0) - every[heavy]).norm().item()
    if not 0 < others * OUTWEIGHS < sizes[heavy]:
        return
    kept = [place for place in range(len(whole)) if place not in groups[heavy]]
    start = sum(whole[place].value for place in kept)
    rest, alone = _some(training, kept), _some(training, groups[heavy])
    before, own_with, of_heavy = _reached(subject, training, (rest, alone))
    after, own_without, _ = _reached(subject, rest, (rest,))
    if not math.isfinite(after) or not start - after > FALLS * abs(start) or not own_without > OF_ITS_OWN:
        return
    if of_heavy > OF_ITS_OWN and others * FAR_OUTWEIGHS > sizes[heavy]:
        return  # the heavy part is a fit itself, and the others stand beside it
    if math.isfinite(before) and start - before > HELD_UP * (start - after) and not own_with < ALL_ALIKE:
        return
    what = (
        "a part of the loss that the batch does not move (a penalty on weights)"
        if all(bare[place] for place in groups[heavy])
        else "a part of the loss"
    )
    yield Finding(
        "outweighed", Status.BROKEN if math.isfinite(before) else Status.LOOK,
        f"{what} has {sizes[heavy] / others:.3g} times the gradient of all others, which go from {start:.4g}"
        f" to {before:.4g} in"
        f" its first steps, and to {after:.4g} without it",
        f"divide that part by {sizes[heavy] / others:.2g} or more, or look at how each part is summed",
        "what the others measure is learnt, too", ("loss",),
        Measure("gradient of the heaviest part over that of the others", sizes[heavy] / others),
        Tried("the loss without its heaviest part", "the other parts after the same steps", before, after),
    )  # fmt: skip


def _some(training: Training, kept: Sequence[int]) -> Training:
    """The training with these parts of its loss alone."""

    def loss(_: Any, batch: Any) -> Tensor:
        _, found = added(training, batch)
        return torch.stack([found[place][0] * found[place][1] for place in kept]).sum()

    return dataclasses.replace(training, loss=loss)


def _reached(subject: Subject, trained: Training, judged: Sequence[Training]) -> tuple[float, float, float]:
    """What the first of the judged comes to after own steps, and which share of each is an example's own.

    That is the share by which they are larger with the outputs of other examples; NaN where it is not known.
    """
    batches = subject.batches(4)
    start, limit = time.perf_counter(), min(SECONDS, 0.2 * subject.clock.left)
    with subject.training.untouched():
        try:
            for place in range(STEPS):
                if not math.isfinite(step(trained, batches[place % len(batches)])):
                    return math.nan, math.nan, math.nan
                if time.perf_counter() - start > limit:
                    break
            owns = [_own(each, batches[0]) for each in judged]
            return loss_of(judged[0], batches[0]), owns[0], owns[-1]
        except Exception:  # noqa: BLE001 - a batch may have other parts than the first
            return math.nan, math.nan, math.nan


def _own(training: Training, batch: Any) -> float:
    outputs = caught(training, batch)
    if outputs is None:
        return math.nan
    loss, other = (
        outputs.loss(outputs.free),
        outputs.loss([each.roll(1, 0) if each.dim() else each for each in outputs.free]),
    )
    return (other - loss) / abs(loss) if loss else math.nan
