"""Parameter groups whose rate is 0, or far below all others."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import nn

from depthgauge import architecture
from depthgauge.checking.answers import Finding, Measure, Status
from depthgauge.checking.parameters import names_of
from depthgauge.checking.questions.learning_rate import kinds
from depthgauge.checking.questions.learning_rate.rates import Rates
from depthgauge.checking.questions.signal.wiring import is_new
from depthgauge.checking.words import listed
from depthgauge.workload import Training


def groups(training: Training, rates: Rates) -> Iterator[Finding]:
    """Findings about groups that hardly move where others do; new layers in them are a fault."""
    assert training.optimizer is not None
    names = names_of(training.model)
    for place, group in enumerate(training.optimizer.param_groups):
        held = [each for each in group["params"] if each.requires_grad]
        rate = rates.peak[place]
        if not held or rate >= kinds.SMALL_GROUP * rates.largest:
            continue
        own = {names[id(each)] for each in held if id(each) in names}
        fresh = _fresh(training.model, own, zero=rate == 0)
        which = f"parameter group {place} of the optimizer"
        if fresh:
            yield Finding(
                "still_group", Status.BROKEN,
                f"{which} has the rate {rate:.3g}, where others have {rates.largest:.3g}, and holds {listed(fresh)}"
                f" with the weights of a new layer, which {'hardly' if rate else 'never'} change",
                "give the group a rate like the others'", "its weights train", (*fresh[:5], "optimizer"),
                Measure("learning rate", rate),
            )  # fmt: skip
        elif rate == 0:
            yield Finding(
                "group_at_zero", Status.LOOK, f"{which} has the rate 0, so that its weights never move",
                "set its rate above 0, or freeze its parameters (requires_grad_(False)), which saves their gradients",
                "its weights train", ("optimizer", *sorted(own)[:5]), Measure("learning rate", 0.0),
            )  # fmt: skip


def _fresh(model: nn.Module, own: set[str], *, zero: bool) -> list[str]:
    """Layers of a group with the weights of new ones.

    A rate of 0 may be meant, as a freeze: then those alone count that have layers which train below them, or that are
    the only one of four or more.
    """
    layers = [(name, layer) for name, layer in architecture.layers(model) if any(True for _ in layer.parameters())]
    ours = [all(f"{name}.{each}".lstrip(".") in own for each, _ in layer.named_parameters()) for name, layer in layers]
    alone = sum(ours) == 1 and len(layers) >= 4
    return [
        name
        for place, (name, layer) in enumerate(layers)
        if ours[place] and _new(layer) and (not zero or alone or not all(ours[:place]))
    ]


def _new(layer: nn.Module) -> bool:
    """Tell whether its weights are new; those of a recurrent layer fill torch's bound, 1 / sqrt(width)."""
    if not isinstance(layer, nn.RNNBase):
        return is_new(layer)
    largest = max(each.detach().abs().max().item() for each in layer.parameters())
    bound = 1 / math.sqrt(layer.hidden_size)
    return 0.95 * bound < largest <= bound * (1 + 1e-6)
