"""The optimizer's step as a black box, on gradients that are made up: what moves, how long a gradient is remembered.

A few steps on the training's own batches show which parameters move. Then the same made-up gradient G is given for n
steps, and -G for n more. Whatever averages gradients with a memory of less than some 2000 steps turns round before the
second half ends; what adds up all gradients that ever came turns round at its very end. From equal states a step with G
and one with -G are held against each other: each optimizer goes as far one way as the other.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from depthgauge.checking.answers import Finding, Measure, Status
from depthgauge.checking.attributes import attributes_kept
from depthgauge.checking.parameters import held_by, names_of
from depthgauge.checking.questions.learning_rate.rates import Rates
from depthgauge.checking.steps import set_rates, step
from depthgauge.checking.words import listed, percent
from depthgauge.seeding import Purpose, generator
from depthgauge.updating import clear, update
from depthgauge.workload import Training

OWN = 3  # steps on the training's own batches
MOST, FEWEST = 48, 24  # steps one way, and as many back
EARLY = 2  # steps before the end of the way back: a momentum of 0.99 turns after 32 of 48, of 0.999 after 47
UNEVEN = 0.5  # of what two opposite steps do together over what they do apart: 0 where they are opposite, 0.7 where one
# of them does nothing, 1 where both do the same
WARM = 3  # steps, after which a state is held against the last step
SAME = 0.01  # of a step, by which a state that is that step itself differs: float32's rounding of the weights
FORGOTTEN = 0.05  # of the last step, below which the next one, without a gradient, goes on as of no momentum
WEAK = 1e-3  # of the largest gradient, below which a made-up one is not: a gradient may have vanished
STRONG = 1e3  # times the largest one, for what has not moved yet
_AVERAGES = ("avg", "average", "momentum", "moment")  # in the name of a state
WIDE = (torch.float32, torch.float64)


@dataclass(eq=False)
class Walked:
    """Effects of made-up gradients.

    Attributes:
        steps: of the optimizer that were made; 0 where there was no time.
        still: parameters with a gradient and a rate that no step moves.
        held: how many parameters were looked at.
        endless: whether all gradients that ever came are added up.
        left: parameters whose gradients `zero_grad` leaves as they are, each time, and that still have them when the
            next backward pass adds its own.
        uneven: see `UNEVEN`; NaN where nothing moves.
        carried: of a state that is the last step itself, how much of that step the next one repeats without a gradient;
            NaN where there is no such state.
        rates: after the steps.
        cleared: whether, after each step, every parameter has averages of its gradients, and all of them are 0.
    """

    steps: int = 0
    still: tuple[str, ...] = ()
    held: int = 0
    endless: bool = False
    left: tuple[str, ...] = ()
    uneven: float = math.nan
    rates: tuple[float, ...] = ()
    carried: float = math.nan
    cleared: bool = False


@dataclass(eq=False)
class _Probe:
    """Held parameters and the gradient that is made up for them."""

    training: Training
    rates: Rates
    given: list[Tensor]
    made_up: list[Tensor] = field(default_factory=list)
    steps: int = 0
    cleared: bool = False

    def go(self, gradients: Sequence[Tensor]) -> list[bool]:
        """Make a step; return of which parameters `zero_grad` has left the gradient as it was."""
        optimizer = self.training.optimizer
        assert optimizer is not None
        before = [None if each.grad is None else each.grad.detach().clone() for each in self.given]
        clear(optimizer)
        left = [_left(each.grad, old) for each, old in zip(self.given, before, strict=True)]
        for each, gradient in zip(self.given, gradients, strict=True):
            each.grad = gradient.clone() if each.grad is None else each.grad + gradient
        optimizer.step()
        self.steps += 1
        return left

    def apart(self, sign: float) -> list[Tensor]:
        """What one step from the present state does, whose gradient is so many times the made-up one; no decay."""
        with attributes_kept(self.training), self.training.untouched():
            assert self.training.optimizer is not None
            for group in self.training.optimizer.param_groups:
                if "weight_decay" in group:
                    group["weight_decay"] = 0.0
            before = [each.detach().clone() for each in self.given]
            self.go([sign * each for each in self.made_up])
            return [each.detach() - old for each, old in zip(self.given, before, strict=True)]

    def idle(self) -> list[Tensor]:
        """What a step without a gradient does; nothing where it fails, as a hook of the user's may on a norm of 0."""
        try:
            return self.apart(0.0)
        except Exception:  # noqa: BLE001 - the user's code, which no training hands such a gradient
            return [torch.zeros_like(each) for each in self.given]


def walk(training: Training, rates: Rates, batches: Sequence[Any], left: Callable[[], float]) -> Walked:
    """Make the steps, and leave the training as it was.

    Args:
        training: with an optimizer that takes no closure.
        rates: its rates; steps are made at their peaks, the last ones for `rates` at the present ones.
        batches: of it.
        left: seconds that there are.
    """
    with attributes_kept(training), training.untouched():
        given, still = _own(training, rates, batches)
        sizes = [each.grad.detach().double().square().mean().sqrt().item() for each in given if each.grad is not None]
    if not given or not all(map(math.isfinite, sizes)):
        return Walked()
    draws, least = generator(0, Purpose.DIRECTIONS), WEAK * max(sizes)
    made_up = [
        torch.randn(each.shape, generator=draws).to(each) * max(size, least)
        for each, size in zip(given, sizes, strict=True)
    ]
    probe = _Probe(training, rates, given, made_up)
    began = time.perf_counter()
    up, down = (probe.apart(sign) for sign in (1.0, -1.0))
    second = (time.perf_counter() - began) / 2
    uneven = min(_unevenness(up, down, idle) for idle in (probe.idle(), [torch.zeros_like(each) for each in up]))
    carried = _carried(probe)
    count = min(MOST, int(left() / max(second, 1e-9)) // 2)
    if count < FEWEST:
        return Walked()
    with attributes_kept(training), training.untouched():
        endless, kept, after = _there_and_back(probe, count)
        still = [each for each in still if _stays(probe, each, count)]
    if kept and not _adding(training, kept, batches):
        kept = []
    names = names_of(training.model)
    unmoved, left_ = (tuple(names[id(each)] for each in those if id(each) in names) for those in (still, kept))
    return Walked(probe.steps, unmoved, len(given), endless, left_, uneven, after, carried, probe.cleared)


def _left(gradient: Tensor | None, before: Tensor | None) -> bool:
    """Tell whether a gradient is what it was, and not 0: one that is scaled down each time is a momentum."""
    return gradient is not None and before is not None and bool(before.any()) and torch.equal(gradient, before)


def _adding(training: Training, those: Sequence[Tensor], batches: Sequence[Any]) -> bool:
    """Tell whether gradients are left until the backward pass, and whole.

    The loss itself may clear them, and a step that scales them down uses them as its momentum.
    """
    optimizer = training.optimizer
    assert optimizer is not None

    def sizes() -> list[float]:
        return [0.0 if each.grad is None else float(each.grad.norm()) for each in those]

    with attributes_kept(training), training.untouched():
        for place in range(OWN):
            clear(optimizer)
            loss = training.value(batches[place % len(batches)])
            if place and not all(sizes()):
                return False
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            before = sizes()
            update(optimizer, lambda: training.value(batches[0]))
            if any(size < (1 - SAME) * old for size, old in zip(sizes(), before, strict=True)):
                return False
    return True


def _carried(probe: _Probe) -> float:
    """How much of a step the next one repeats without a gradient, where a state of each parameter is that step."""
    optimizer = probe.training.optimizer
    assert optimizer is not None
    with attributes_kept(probe.training), probe.training.untouched():
        try:
            cleared = []
            for _ in range(WARM):
                before = [each.detach().clone() for each in probe.given]
                probe.go(probe.made_up)
                cleared.append(_cleared(optimizer, probe.given))
            probe.cleared = all(cleared)
            step = [each.detach() - old for each, old in zip(probe.given, before, strict=True)]
            states = [list(_states(optimizer, each)) for each in probe.given]
            told = [_told(moved, old) for moved, old in zip(step, before, strict=True)]
            same = [any(_is(held, moved) for held in of) for of, moved in zip(states, step, strict=True)]
            if not any(told) or not all(each for each, seen in zip(same, told, strict=True) if seen):
                return math.nan
            before = [each.detach().clone() for each in probe.given]
            probe.go([torch.zeros_like(each) for each in probe.given])
        except Exception:  # noqa: BLE001 - the user's code, which no training hands such a gradient
            return math.nan
        again = [each.detach() - old for each, old in zip(probe.given, before, strict=True)]
        return _size(again) / _size(step)


def _states(optimizer: Any, parameter: Tensor) -> Iterator[Tensor]:
    state = optimizer.state.get(parameter, {})
    for each in state.values() if isinstance(state, dict) else ():
        if isinstance(each, Tensor) and each.shape == parameter.shape and each.is_floating_point():
            yield each.detach()


def _cleared(optimizer: Any, parameters: Sequence[Tensor]) -> bool:
    """Tell whether each parameter has averages of gradients, by name, and nothing is in them."""
    states = [optimizer.state.get(each) for each in parameters]
    averages = [
        [each for name, each in of.items() if any(part in str(name) for part in _AVERAGES) and isinstance(each, Tensor)]
        for of in states
        if isinstance(of, dict)
    ]
    return bool(averages) and all(of and not any(bool(each.any()) for each in of) for of in averages)


def _told(moved: Tensor, weight: Tensor) -> bool:
    """Tell whether a weight's rounding leaves of a step what tells it from another."""
    return float(moved.norm()) * SAME > 2 * torch.finfo(weight.dtype).eps * float(weight.norm())


def _is(held: Tensor, moved: Tensor) -> bool:
    """Tell whether a state is a step, or its opposite."""
    size = float(moved.norm())
    return size > 0 and min(float((held - moved).norm()), float((held + moved).norm())) < SAME * size


def _size(parts: Sequence[Tensor]) -> float:
    return math.sqrt(sum(float(each.double().square().sum()) for each in parts))


def _own(training: Training, rates: Rates, batches: Sequence[Any]) -> tuple[list[Tensor], list[Tensor]]:
    """Parameters with a gradient and a rate, and those of them that no own step moves; gradients are left."""
    optimizer = training.optimizer
    assert optimizer is not None
    group_of = {id(each): place for place, group in enumerate(optimizer.param_groups) for each in group["params"]}
    held = [each for each in held_by(optimizer) if each.dtype in WIDE and each.layout is torch.strided]
    before = [each.detach().clone() for each in held]
    for place in range(OWN):
        set_rates(optimizer, rates.peak)
        if not math.isfinite(step(training, batches[place % len(batches)])):
            return [], []
    given = [
        (each, old)
        for each, old in zip(held, before, strict=True)
        if rates.peak[group_of[id(each)]] > 0
        and each.grad is not None
        and each.grad.layout is torch.strided
        and bool(each.grad.any())
    ]
    return [each for each, _ in given], [each for each, old in given if torch.equal(each, old)]


def _there_and_back(probe: _Probe, count: int) -> tuple[bool, list[Tensor], tuple[float, ...]]:
    """Whether steps turn round at the very end alone, whose gradients are left each time, and the rates after."""
    optimizer = probe.training.optimizer
    assert optimizer is not None
    way: list[float] = []
    kept = [0] * len(probe.given)
    for turn in (1.0, -1.0):
        for _ in range(count):
            before = [each.detach().clone() for each in probe.given]
            left = probe.go([turn * each for each in probe.made_up])
            kept = [times + each for times, each in zip(kept, left, strict=True)]
            way.append(
                sum(
                    float(((each.detach() - old) * gradient).sum())
                    for each, old, gradient in zip(probe.given, before, probe.made_up, strict=True)
                )
            )
    there, back = way[:count], way[count:-EARLY]
    moved = [each for each in back if each]
    endless = sum(there) < 0 and len(moved) >= count // 8 and all(each < 0 for each in moved)
    always = [each for each, times in zip(probe.given, kept, strict=True) if times >= 2 * count - 2]  # a sum may be 0
    return endless, always, tuple(float(group["lr"]) for group in optimizer.param_groups)


def _stays(probe: _Probe, one: Tensor, count: int) -> bool:
    """Tell whether a large gradient of its own does not move it either."""
    rates = Rates.of(probe.training.optimizer)
    with attributes_kept(probe.training), probe.training.untouched():
        set_rates(probe.training.optimizer, [max(each) for each in zip(rates.present, probe.rates.peak, strict=True)])
        before = one.detach().clone()
        largest = STRONG * max(float(each.abs().max()) for each in probe.made_up)
        large = [largest * torch.ones_like(each) if each is one else torch.zeros_like(each) for each in probe.given]
        for _ in range(count):
            probe.go(large)
            if not torch.equal(one.detach(), before):
                return False
    return True


def _unevenness(up: list[Tensor], down: list[Tensor], none: list[Tensor]) -> float:
    """What two opposite steps do together, over what they do apart, beside what a step without a gradient does."""
    together = apart = 0.0
    for one, other, idle in zip(up, down, none, strict=True):
        a, b = (one - idle).double(), (other - idle).double()
        together += (a + b).square().sum().item()
        apart += 2 * (a.square().sum().item() + b.square().sum().item())
    return math.sqrt(together / apart) if apart > 0 else math.nan


def findings(walked: Walked) -> Iterator[Finding]:
    """Yield what is wrong with the step."""
    if not walked.steps:
        return
    whole = len(walked.still) == walked.held
    if walked.still:
        what = (
            f"no step of the optimizer moves a weight: {walked.steps} were tried" if whole
            else f"no step moves {listed(walked.still)}: the optimizer holds them, they get a gradient, and their rate"
            " is not 0"
        )  # fmt: skip
        yield Finding(
            "never_moved", Status.BROKEN, what,
            "look into the optimizer's step for what leaves them out: a condition that is never met, a second optimizer"
            " that is not stepped",
            "the weights train", ("optimizer", *walked.still[:11]),
            Measure("parameters that no step moves", len(walked.still), unit=f"of {walked.held}"),
        )  # fmt: skip
    if walked.endless or walked.left:
        cause = "zero_grad() leaves them in place" if walked.left else "the optimizer's step never clears its sums"
        some = f" of {listed(walked.left)}" if 0 < len(walked.left) < walked.held else ""
        turned = ": when the gradient turns round, the steps go on as before" if walked.endless else ""
        yield Finding(
            "endless_sum", Status.BROKEN, f"gradients{some} of all steps add up, for {cause}{turned}",
            "clear the gradients in zero_grad(), or the sums after each step that uses them",
            "steps follow the present gradient", ("optimizer", *(walked.left[:5] if some else ())),
            Measure("steps that a gradient is remembered", math.inf, unit="steps", method="steps on made-up gradients"),
        )  # fmt: skip
    if 0 < walked.carried < FORGOTTEN:  # 0 is a last step that is kept for other ends
        yield Finding(
            "momentum_wiped", Status.BROKEN,
            f"the optimizer's momentum is its last step itself, and of that the next step repeats"
            f" {percent(walked.carried)}: what the rate multiplies in place is the momentum, not a copy",
            "multiply a copy of the momentum by the rate (update = exp_avg * lr), or pass the rate as alpha",
            "steps average the last gradients", ("optimizer",),
            Measure("share of a step that goes on without a gradient", walked.carried),
        )  # fmt: skip
    if walked.cleared:
        yield Finding(
            "moments_cleared", Status.BROKEN,
            "after steps the optimizer's averages of the gradients are 0: each step begins anew, as the first one does,"
            " and follows one batch alone",
            "keep one optimizer for the whole training, and update its state in place, not in a copy",
            "steps average the last gradients", ("optimizer",),
        )  # fmt: skip
    if walked.uneven >= UNEVEN:
        yield Finding(
            "uneven_step", Status.BROKEN,
            f"opposite gradients do not make opposite steps: together they move the weights by {percent(walked.uneven)}"
            " of what they do apart",
            "look into the optimizer's step, and into hooks of the gradients, for what loses the sign: a clamp at 0, an"
            " absolute value, a ReLU",
            "weights can go both ways", ("optimizer",),
            Measure("opposite steps together, over those apart", walked.uneven, method="steps on made-up gradients"),
        )  # fmt: skip
