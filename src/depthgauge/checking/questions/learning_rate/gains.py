"""Decay on the gains of normalizations that outruns an optimizer whose steps have a bounded length."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from depthgauge.checking.answers import Finding, Measure, Status
from depthgauge.checking.parameters import names_of
from depthgauge.checking.questions.learning_rate import kinds
from depthgauge.checking.words import listed
from depthgauge.workload import Training


def findings(training: Training) -> Iterator[Finding]:
    """Yield one where a group's decoupled decay takes about as much of its gains as steps of Adam can put back."""
    assert training.optimizer is not None
    names, gains = names_of(training.model), _gains(training.model)
    for place, group in enumerate(training.optimizer.param_groups):
        decay = float(group.get("weight_decay") or 0.0)
        if "betas" not in group or not group.get("decoupled_weight_decay") or not float(group["lr"]):
            continue
        held = [each for each in group["params"] if id(each) in gains and each.requires_grad]
        taken = decay * _size(held)
        if taken < kinds.OUTRUN:
            continue
        told = sorted(names[id(each)] for each in held if id(each) in names)
        which = "the optimizer" if len(training.optimizer.param_groups) == 1 else f"parameter group {place}"
        yield Finding(
            "decay_on_gains", Status.LOOK,
            f"weight decay {decay:g} of {which} takes {taken:.2g} times the rate in each step from the gains of"
            f" {listed(told)}, and a step of Adam is at most about one rate long: they shrink, unless nearly all"
            " gradients agree that they should not",
            "give gains and biases a parameter group of their own, with weight_decay=0",
            "normalizations keep the scale that the loss asks for", ("optimizer", *told[:5]),
            Measure("decay of a gain over the rate, a step", taken),
        )  # fmt: skip
        return


def _gains(model: nn.Module) -> set[int]:
    """The weights, one a channel, of modules that are named after a normalization."""
    norms = (each for each in model.modules() if "norm" in type(each).__name__.lower())
    own = (getattr(each, "weight", None) for each in norms)
    return {id(each) for each in own if isinstance(each, nn.Parameter) and each.dim() == 1}


def _size(held: list[Tensor]) -> float:
    """Mean magnitude; 0 of none."""
    count = sum(each.numel() for each in held)
    return sum(each.detach().abs().sum().item() for each in held) / count if count else 0.0
