"""Other tools that find faults in a training, over as many of its first steps as the check records.

Each tool is a function from a training to alarms. None of them asks a question of its own, so that any place that a
planted fault may be found at counts.
"""

from __future__ import annotations

import contextlib
import io
import math
import re
import warnings
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks.fault_zoo.judging import Alarm
from depthgauge import Training

STEPS = 60

Tool = Callable[[Training], tuple[Alarm, ...]]


def anomaly_mode(training: Training) -> tuple[Alarm, ...]:
    """`torch.autograd.detect_anomaly`: the first backward pass that makes a NaN raises; it names an operation."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the mode warns that it is slow, and shows the forward call's traceback
        try:
            with torch.autograd.detect_anomaly():
                for _ in _steps(training):
                    pass
        except RuntimeError as error:
            return (Alarm("", "anomaly", "broken", (), str(error)[:200]),)
    return ()


def underflow_overflow(training: Training) -> tuple[Alarm, ...]:
    """Hugging Face's `DebugUnderflowOverflow`: the first module with an infinity or a NaN in what goes in or out."""
    from transformers.debug_utils import DebugUnderflowOverflow  # noqa: PLC0415 - may be missing

    DebugUnderflowOverflow(training.model)
    shown = io.StringIO()
    try:
        with contextlib.redirect_stdout(shown):
            for _ in _steps(training):
                pass
    except ValueError as error:
        if "DebugUnderflowOverflow" not in str(error):
            raise
        named = re.findall(r"^ {18}(\S+) \w+$", shown.getvalue(), re.MULTILINE)
        return (Alarm("", "overflow", "broken", tuple(named[-1:]), str(error)[:200]),)
    return ()


VANISHING = 1e-7  # mean absolute gradient: VanishingGradient's default in Amazon SageMaker Debugger
EXPLODING = 1e3  # norm of a parameter's gradient, a limit that callbacks often have


def gradient_thresholds(training: Training) -> tuple[Alarm, ...]:
    """Gradients of each parameter in each step: mean below 1e-7, norm above 1000, or not finite."""
    met: dict[tuple[str, str], None] = {}
    for _ in _steps(training):
        for name, parameter in training.model.named_parameters():
            if parameter.grad is None:
                continue
            rule = _broken_rule(parameter.grad.to_dense())
            if rule:
                met[rule, name] = None
    rules = dict.fromkeys(rule for rule, _ in met)
    return tuple(Alarm("", rule, "broken", tuple(name for each, name in met if each == rule)) for rule in rules)


def _broken_rule(gradient: Tensor) -> str:
    norm = gradient.double().norm().item()
    if not math.isfinite(norm):
        return "not finite"
    if norm > EXPLODING:
        return "exploding"
    return "vanishing" if gradient.abs().mean().item() < VANISHING else ""


def _steps(training: Training) -> Iterator[None]:
    """The first steps, each after its backward pass and before its update."""
    stream = training.stream()
    for _ in range(STEPS):
        if training.optimizer is not None:
            training.optimizer.zero_grad()
        training.value(next(stream)).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        yield
        if training.optimizer is not None:
            training.optimizer.step()
    stream.close()


TOOLS: dict[str, Tool] = {
    "torch anomaly mode": anomaly_mode,
    "Hugging Face DebugUnderflowOverflow": underflow_overflow,
    "gradient thresholds": gradient_thresholds,
}
