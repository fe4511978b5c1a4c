"""The optimizer's own step as a black box: what it divides gradients by, where it clips, what it keeps besides weights.

One backward pass is made. The step then gets its gradients as they are, and times 2^-30, from the same state. What
enters the update is read from the optimizer's first moments, or from the change of weights (from 0 for the small one).
Let S be what the small gradient is divided by, and r the share of the whole one that gets through. A clipping after
unscaling leaves r near 1 (the threshold over the true gradient); one before it leaves r near 1/S. The border is
half-way between in the logarithm, r = S^(-1/2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from depthgauge import nested
from depthgauge.checking.answers import Finding, Measure, Status
from depthgauge.checking.parameters import held_by, names_of
from depthgauge.checking.questions.precision.operators import HALVES
from depthgauge.checking.words import percent
from depthgauge.restoring import random_states_kept
from depthgauge.seeding import Purpose, seed_globals
from depthgauge.updating import clear
from depthgauge.workload import Training

SMALL = 2.0**-30  # below every clipping threshold, and far above float32's smallest number
LEAST_SCALE = 16.0  # a divisor below may be a number of micro-batches or of devices
KEEPING = ("master", "comp", "kahan", "shift", "residual")  # names of what compensated optimizers keep


@dataclass(frozen=True)
class Step:
    """Effects of an optimizer's step on gradients and 16-bit weights.

    Attributes:
        divisor: what it divides a small gradient by; 1 where it takes it as it is, NaN where that cannot be told.
        passed: the share of the present gradient that gets through its clipping, 1 where all of it does.
        gradient: norm of the present gradient, as the backward pass leaves it.
        compensated: whether 16-bit weights have wider copies, compensation, or stochastic rounding.
        broken: 16-bit parameters that one step leaves infinite or NaN.
    """

    divisor: float
    passed: float
    gradient: float
    compensated: bool
    broken: tuple[str, ...] = ()


def step_of(training: Training, batch: Any) -> Step:
    """Try the step; the training is left as it was."""
    optimizer = training.optimizer
    assert optimizer is not None
    with training.untouched():
        clear(optimizer)
        training.value(batch).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        held = [each for each in held_by(optimizer) if each.grad is not None]
        held = [each for each in held if each.grad.layout is torch.strided]
        grads = [each.grad.detach().clone() for each in held]
        norm = _norm(grads)
        halves = any(each.dtype in HALVES for each in held)
        compensated, broken = _compensated(training, held, grads) if halves else (False, ())
        if not held or not 0 < norm < math.inf or any(each.dtype in HALVES for each in grads):
            return Step(math.nan, math.nan, norm, compensated, broken)
        small = _entering(training, held, [SMALL * each for each in grads], emptied=True)
        whole = _entering(training, held, grads)
    if not (small > 0 and whole > 0 and math.isfinite(whole)):
        return Step(math.nan, math.nan, norm, compensated, broken)
    divisor, passed = SMALL * norm / small, whole * SMALL / small
    if divisor >= LEAST_SCALE:  # hooks may clip before the step does
        passed *= _hooked(training, batch, norm)
    return Step(divisor, passed, norm, compensated, broken)


def _hooked(training: Training, batch: Any, norm: float) -> float:
    """The share of the gradient that hooks of the backward pass let through; 1 where they clip nothing."""
    with training.untouched():
        assert training.optimizer is not None
        clear(training.optimizer)
        (SMALL * training.value(batch)).backward()  # type: ignore[no-untyped-call]  # as above
        held = [each.grad for each in held_by(training.optimizer)]
        free = _norm([each for each in held if each is not None and each.layout is torch.strided])
    return min(1.0, SMALL * norm / free) if free > 0 else 1.0


def clipping(step: Step) -> list[Finding]:
    """A finding where gradients are clipped while they hold the loss scale."""
    scale, passed = step.divisor, step.passed
    if not (scale >= LEAST_SCALE and passed <= scale**-0.5):
        return []
    return [
        Finding(
            "clipped_scaled",
            Status.BROKEN,
            f"gradients are clipped while they still hold the loss scale of {scale:.4g}: of a gradient of norm"
            f" {step.gradient / scale:.2g} the update gets {percent(passed)}",
            advice=f"divide the gradients by {scale:.4g} (GradScaler.unscale_) before they are clipped",
            expected=f"updates up to {1 / passed:.2g} times as large, clipped at the true gradient's norm",
            where=("optimizer",),
            measure=Measure(
                "share of the gradient that the update gets",
                passed,
                method="the step on this gradient, and on 2^-30 of it",
            ),
        )
    ]


def _entering(training: Training, held: list[Any], grads: list[torch.Tensor], *, emptied: bool = False) -> float:
    """The norm of what enters the update, in units of a gradient.

    `emptied`: from weights of 0, whose change no rounding hides. Weights as they are where a clipping may go by them.
    """
    optimizer = training.optimizer
    assert optimizer is not None
    with training.untouched():
        optimizer.state.clear()
        for group in optimizer.param_groups:
            if "weight_decay" in group:
                group["weight_decay"] = 0.0
        for each, gradient in zip(held, grads, strict=True):
            if emptied:
                each.data.zero_()
            each.grad = gradient.clone()
        before = [[each.detach().clone() for each in group["params"]] for group in optimizer.param_groups]
        optimizer.step()
        total = 0.0
        for group, olds in zip(optimizer.param_groups, before, strict=True):
            for each, old in zip(group["params"], olds, strict=True):
                total += _entered(each, old, optimizer.state.get(each, {}), group) ** 2
    return math.sqrt(total)


def _entered(weight: torch.Tensor, before: torch.Tensor, state: Any, group: dict[str, Any]) -> float:
    if isinstance(state.get("exp_avg"), torch.Tensor) and "betas" in group:
        return _norm([state["exp_avg"]]) / max(1 - float(group["betas"][0]), 1e-12)
    if isinstance(state.get("momentum_buffer"), torch.Tensor):
        return _norm([state["momentum_buffer"]])
    rate = float(group.get("lr", 0.0))
    return _norm([weight.detach() - before]) / rate if rate > 0 else 0.0


def _norm(tensors: list[torch.Tensor]) -> float:
    return math.sqrt(sum(nested.real(each).double().square().sum().item() for each in tensors))


def _compensated(training: Training, held: list[Any], grads: list[torch.Tensor]) -> tuple[bool, tuple[str, ...]]:
    """Whether the step keeps what rounding takes from 16-bit weights, or rounds at random; and which it breaks."""
    names = names_of(training.model)
    broken: tuple[str, ...] = ()
    after: list[list[torch.Tensor]] = []
    for seed in (1, 2):
        with random_states_kept(), training.untouched():
            seed_globals(seed, Purpose.DROPOUT)
            for each, gradient in zip(held, grads, strict=True):
                each.grad = gradient.clone()
            assert training.optimizer is not None
            training.optimizer.step()
            if any(_keeps(training.optimizer, each) for each in held if each.dtype in HALVES):
                return True, ()
            after.append([each.detach().clone() for each in held])
            broken = tuple(names.get(id(each), "optimizer") for each in held if not each.isfinite().all())
    return not broken and not all(torch.equal(one, other) for one, other in zip(*after, strict=True)), broken


def _keeps(optimizer: torch.optim.Optimizer, weight: torch.Tensor) -> bool:
    """Whether some state holds the weight in more digits, or is named as a compensation is."""
    state = optimizer.state.get(weight, {})
    if any(word in str(name).lower() for name in state for word in KEEPING):
        return True
    wide = weight.detach().float()
    if not wide.any():
        return False
    return any(
        each.shape == wide.shape and each.device == wide.device and torch.allclose(each, wide, rtol=2.0**-6, atol=1e-6)
        for each in _float32([state, vars(optimizer)], 0)
    )


def _float32(value: Any, depth: int) -> list[torch.Tensor]:
    """The float32 tensors in nested containers."""
    if isinstance(value, torch.Tensor):
        return [value.detach()] if value.dtype is torch.float32 else []
    if isinstance(value, dict | list | tuple) and depth < 5:
        inner = value.values() if isinstance(value, dict) else value
        return [found for each in inner for found in _float32(each, depth + 1)]
    return []
