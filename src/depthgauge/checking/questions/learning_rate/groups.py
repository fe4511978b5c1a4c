"""Reading of an optimizer's parameter groups: rates, schedules, momentum, weight decay."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from depthgauge.checking.answers import Finding, Measure, Status
from depthgauge.checking.observing import Gradient
from depthgauge.checking.parameters import format_of, names_of
from depthgauge.checking.questions.learning_rate import kinds
from depthgauge.checking.words import percent
from depthgauge.workload import Training

IDLE_MOMENTUM = 0.3  # below it averages over fewer than 1.5 gradients


@dataclass(frozen=True)
class Rates:
    """The rates of an optimizer's parameter groups.

    Attributes:
        present: of each group, as they stand.
        peak: of each group, the largest that its schedule is known to reach; the present ones without a schedule.
        scheduled: whether a scheduler holds the optimizer.
    """

    present: tuple[float, ...]
    peak: tuple[float, ...]
    scheduled: bool

    @staticmethod
    def of(optimizer: Any) -> Rates:
        """Read them. `initial_lr` and `max_lr` are what torch's schedulers leave in a group."""
        groups = optimizer.param_groups
        present = tuple(float(group["lr"]) for group in groups)
        peak = tuple(
            max(float(group[name]) for name in ("lr", "initial_lr", "max_lr") if group.get(name) is not None)
            for group in groups
        )
        return Rates(present, peak, any("initial_lr" in group for group in groups))

    @property
    def largest(self) -> float:
        """The largest peak."""
        return max(self.peak)

    def times(self, factor: float) -> tuple[float, ...]:
        """So many times the peak, of each group."""
        return tuple(factor * rate for rate in self.peak)

    def __str__(self) -> str:
        """`0.001`, `0.001 and 0.01`."""
        return " and ".join(f"{rate:.3g}" for rate in sorted(set(self.peak)))


def read(training: Training, rates: Rates, gradients: Mapping[str, Gradient | None]) -> Iterator[Finding]:
    """Find what is wrong with the groups' settings, before any step is made."""
    assert training.optimizer is not None
    names = names_of(training.model)
    settings = inspect.signature(type(training.optimizer)).parameters
    default = settings["weight_decay"].default if "weight_decay" in settings else 0.0
    for place, group in enumerate(training.optimizer.param_groups):
        which = "the optimizer" if len(rates.peak) == 1 else f"parameter group {place} of the optimizer"
        where: tuple[str, ...] = ("optimizer",)
        if len(rates.peak) > 1:
            where = (*where, *[names[id(each)] for each in group["params"] if id(each) in names][:5])
        yield from _momentum(group, which, where)
        yield from _decay(group, rates.peak[place], which, where, default)
        if rates.peak[place] == 0 < rates.largest and any(each.requires_grad for each in group["params"]):
            yield Finding(
                "group_at_zero", Status.LOOK, f"{which} has the rate 0, so that its weights never move",
                "set its rate above 0, or freeze its parameters (requires_grad_(False)), which saves their gradients",
                "its weights train", where, Measure("learning rate", 0.0),
            )  # fmt: skip
    yield from _drowned(training, gradients)


def _momentum(group: Mapping[str, Any], which: str, where: tuple[str, ...]) -> Iterator[Finding]:
    betas = group.get("betas")
    m = float(betas[0]) if betas else float(group.get("momentum") or 0.0)
    name = "beta1" if betas else "momentum"
    steps = 1 / (1 - m) if m < 1 else math.inf
    measure = Measure(f"steps that {name} averages over", steps, unit="steps")
    if betas and len(betas) > 1 and m >= math.sqrt(float(betas[1])) and m > 0:
        yield Finding(
            "betas", Status.BROKEN,
            f"{which} has betas ({m:g}, {float(betas[1]):g}): beta1 has to lie below the root of beta2,"
            f" {math.sqrt(float(betas[1])):.3g}, for Adam to converge; were they swapped?",
            "set betas to (0.9, 0.999)", "steps follow the gradients of the last ten steps", where, measure,
        )  # fmt: skip
    elif m >= 1:
        yield Finding(
            "momentum", Status.BROKEN, f"{which} has {name} {m:g}: old gradients never fade, and the steps grow",
            f"set {name} to 0.9", "steps are bounded by ten times the gradient", where, measure,
        )  # fmt: skip
    elif steps > kinds.LONG_MEMORY:
        yield Finding(
            "momentum", Status.LOOK, f"{which} has {name} {m:g}, which averages gradients over {steps:.0f} steps",
            f"set {name} to 0.9, and the rate of SGD {steps / 10:.3g} times as high" if not betas else
            f"set {name} to 0.9", "the steps answer to the present gradients", where, measure,
        )  # fmt: skip
    elif 0 < m < IDLE_MOMENTUM:
        yield Finding(
            "idle_momentum", Status.LOOK,
            f"{which} has {name} {m:g}, which averages over {steps:.2g} gradients and changes next to nothing",
            f"set {name} to 0.9 if that was meant, or to 0", "fewer steps, where gradients are noisy", where, measure,
        )  # fmt: skip


def _decay(
    group: Mapping[str, Any], rate: float, which: str, where: tuple[str, ...], default: Any
) -> Iterator[Finding]:
    """Decay a step: rate times weight decay, decoupled from the gradient or part of it. Nobody asked for a default."""
    decay = float(group.get("weight_decay") or 0.0)
    step = rate * decay
    trained = [each for each in group["params"] if each.requires_grad and each.is_floating_point()]
    if not step or not trained:
        return
    adaptive = "betas" in group
    decoupled = adaptive and bool(group.get("decoupled_weight_decay"))
    spacing = max(torch.finfo(each.dtype).eps for each in trained)
    measure = Measure("rate times weight decay", step)
    if (
        decoupled and decay != default and step < spacing / 4
    ):  # numbers just below 1 lie eps / 2 apart, and half of that rounds to 1
        dtype = format_of(max(trained, key=lambda each: torch.finfo(each.dtype).eps))
        yield Finding(
            "decay_lost", Status.LOOK,
            f"weight decay {decay:g} of {which} does nothing: a step multiplies a weight by 1 - {step:.2g}, which"
            f" {dtype} rounds to 1",
            f"keep the weights in float32, or set weight_decay to {spacing / rate:.2g} or more, or to 0",
            "weights decay as they were meant to", where, measure,
        )  # fmt: skip
    elif step >= kinds.STRONG_DECAY and (decoupled or not adaptive):
        turned = step >= kinds.FLIPPED_DECAY
        gone = "nothing that was learnt stays" if turned else f"what was learnt is gone after {3 / step:.0f} steps"
        yield Finding(
            "decay_dominates", Status.BROKEN if turned else Status.LOOK,
            f"weight decay {decay:g} of {which} at the rate {rate:.3g} takes {percent(min(step, 1))} of every weight in"
            f" every step: {gone}",
            f"set weight_decay to {_rounded(1e-4 / rate)} or less", "weights keep what they learn", where, measure,
        )  # fmt: skip


def _drowned(training: Training, gradients: Mapping[str, Gradient | None]) -> Iterator[Finding]:
    """Decay that is part of the gradient, and larger than all of the rest."""
    assert training.optimizer is not None
    names = names_of(training.model)
    loss = decay = 0.0
    for group in training.optimizer.param_groups:
        if group.get("decoupled_weight_decay"):
            continue
        for each in group["params"]:
            if (seen := gradients.get(names.get(id(each), ""))) is not None and math.isfinite(seen.rms):
                loss += seen.rms**2 * each.numel()
                decay += (float(group.get("weight_decay") or 0.0) * _norm(each)) ** 2
    if decay and loss and (ratio := math.sqrt(decay / loss)) > kinds.DROWNED:
        yield Finding(
            "decay_dominates", Status.BROKEN,
            f"the weight decay's part of the gradient is {ratio:.3g} times that of the loss: the steps shrink the"
            f" weights"
            " and learn next to nothing",
            f"divide weight_decay by {_rounded(10 * ratio)}, or use AdamW, whose decay is no part of the gradient",
            "steps follow the loss", ("optimizer",), Measure("decay's gradient over that of the loss", ratio),
        )  # fmt: skip


def _norm(weight: Tensor) -> float:
    values = weight.detach()
    return float(torch.linalg.vector_norm(values if values.is_complex() else values.float()))


def _rounded(value: float) -> str:
    """One digit, so that nobody takes it for a measurement."""
    return f"{value:.0e}" if value < 0.01 or value >= 1e4 else f"{value:.1g}"
