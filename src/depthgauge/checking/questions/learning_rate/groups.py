"""Reading of an optimizer's parameter groups: momentum, dampening, weight decay."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from depthgauge.checking.answers import Finding, Measure, Status
from depthgauge.checking.observing import Gradient, Seen
from depthgauge.checking.parameters import format_of, names_of
from depthgauge.checking.questions.learning_rate import gains, kinds, still
from depthgauge.checking.questions.learning_rate.rates import Rates
from depthgauge.checking.words import percent
from depthgauge.workload import Training

IDLE_MOMENTUM = 0.3  # below it averages over fewer than 1.5 gradients


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
        yield from _entering(group, which, where)
        yield from _decay(group, rates.peak[place], which, where, default)
    yield from still.groups(training, rates)
    yield from gains.findings(training)
    yield from _drowned(training, gradients)


def maximizes(training: Training, seen: Seen) -> Iterator[Finding]:
    """A finding where steps go up a loss that is to go down: the mean of one of torch's loss functions."""
    assert training.optimizer is not None
    up = any(group.get("maximize") for group in training.optimizer.param_groups)
    term = next((each for each in seen.graph.terms if each.is_all_of(seen.loss)), None)
    if up and term is not None:
        yield Finding(
            "maximizes", Status.BROKEN,
            f"the optimizer has maximize=True, and the loss is {term.name}, which is to fall: each step raises it",
            "leave maximize out", "the loss falls", ("optimizer",),
        )  # fmt: skip


def _entering(group: Mapping[str, Any], which: str, where: tuple[str, ...]) -> Iterator[Finding]:
    """Dampening that keeps every gradient but the first out of the momentum."""
    dampening = float(group.get("dampening") or 0.0)
    if float(group.get("momentum") or 0.0) > 0 and dampening >= 1:
        yield Finding(
            "dampened", Status.BROKEN,
            f"{which} has dampening {dampening:g}: of each gradient {1 - dampening:g} times enters the momentum, so"
            " that steps repeat the first one",
            "set dampening to 0", "steps follow the gradients", where, Measure("dampening", dampening),
        )  # fmt: skip


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
    kept = float(group.get("momentum") or 0.0) if "betas" not in group else 0.0
    # A decay that is part of the gradient enters the momentum, too: it adds up to 1 / (1 - m) times as much a step.
    step = rate * decay / (1 - kept) if 0 <= kept < 1 else rate * decay
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
        turned = rate * decay >= kinds.FLIPPED_DECAY
        gone = "nothing that was learnt stays" if turned else f"what was learnt is gone after {3 / step:.0f} steps"
        yield Finding(
            "decay_dominates", Status.BROKEN if turned else Status.LOOK,
            f"weight decay {decay:g} of {which} at the rate {rate:.3g} takes {percent(min(step, 1))} of every weight in"
            f" every step: {gone}",
            f"set weight_decay to {_rounded(1e-4 * decay / step)} or less", "weights keep what they learn", where,
            measure,
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
