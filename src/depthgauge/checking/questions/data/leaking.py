"""A feature that is the target, or tells it: what the model will not have when it is used."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from depthgauge.checking.answers import Finding, Kind, Status
from depthgauge.checking.questions.data.batches import Batches, Column
from depthgauge.checking.words import percent

ENOUGH = 32  # examples below which a constant feature is chance
MOSTLY, EXACT = 0.4, 1e-6  # of examples, in which a feature is the target, to rounding
LEAKING, GOALS = 4096, 16  # numbers of inputs and of targets at most, for a leak
ORDERED = 64  # examples that a feature puts into the order of the target: by chance with 1 / 64!
ALL_APART = 0.9  # of the examples' targets, and of a feature's values, that are no other's
RELATED = 0.99999  # correlation of a feature with a target, above which rounding alone parts them

KINDS = {
    "leak": Kind(
        "fault",
        f"a feature equals the target in {ENOUGH} examples or more that are not all alike, is a multiple of it"
        f" (correlation above {RELATED:g}), rises or falls with it from each of {ORDERED} examples or more to the next,"
        f" is one number for each class, or equals it, to rounding, in {MOSTLY:.0%} of {ORDERED} examples or more whose"
        " targets all differ; of several targets, more than half of them",
    ),
}


def findings(column: Column, batches: Batches) -> Iterator[Finding]:
    """Yield the feature that is the target."""
    values = column.flat
    if not 1 < values.shape[1] <= LEAKING or len(values) < ENOUGH:
        return
    for target in batches.targets:
        goal = target.flat
        if len(goal) != len(values) or goal.shape[1] > GOALS or bool((goal == goal[:1]).all()):
            continue
        told = [found for place in range(goal.shape[1]) if (found := _tells(values, goal[:, place], target))]
        if told and 2 * len(told) > goal.shape[1]:  # of a sequence's first step alone: how it begins; of a state one
            yield _leak(told[0][0], f"{told[0][1]} in all {len(values)} examples")  # is another's derivative
        elif goal.shape[1] == 1 and target.numbers.is_floating_point() and (most := _mostly(values, goal[:, 0])):
            yield _leak(most[0], f"equals the target, to rounding, in {percent(most[1])} of {len(values)} examples")


def _leak(feature: int, what: str) -> Finding:
    return Finding(
        "leak", Status.LOOK, f"feature {feature} of the inputs {what}",
        f"leave feature {feature} out, or make it of other examples' targets alone",
        "the model learns from what it will have when it is used", ("batches",),
    )  # fmt: skip


def _tells(values: Tensor, goal: Tensor, target: Column) -> tuple[int, str] | None:
    """A feature that is the target, a multiple of it, or one number for each class; None where there is none."""
    equal = (values == goal[:, None]).all(0).nonzero()[:, 0].tolist()
    if bool((goal == goal[0]).all()):
        return None
    if equal:
        return equal[0], "equals the target"
    classes, codes = torch.unique(goal, return_inverse=True)
    if len(classes) <= len(goal) // 8:
        return _by_class(values, codes, len(classes))
    if not target.numbers.is_floating_point():
        return None
    centred, aim = values.double() - values.double().mean(0), goal.double() - goal.double().mean()
    sizes = centred.norm(dim=0) * aim.norm()
    related = torch.where(sizes > 0, (centred * aim[:, None]).sum(0).abs() / sizes.clamp_min(1e-300), 0.0)
    best = int(related.argmax())
    if related[best] > RELATED:
        return best, "is a multiple of the target"
    return _in_order(values, goal)


def _mostly(values: Tensor, goal: Tensor) -> tuple[int, float] | None:
    """A feature that is the very target in most examples, whose targets all differ, and the share of these."""
    if len(goal) < ORDERED or len(torch.unique(goal)) < ALL_APART * len(goal):
        return None
    share = ((values - goal[:, None]).abs() <= EXACT * goal.abs()[:, None]).float().mean(0)
    best = int(share.argmax())
    return (best, share[best].item()) if share[best] >= MOSTLY else None


def _in_order(values: Tensor, goal: Tensor) -> tuple[int, str] | None:
    """A feature, of three or more, that rises or falls with the target from each example to the next."""
    if values.shape[1] < 3 or len(goal) < ORDERED or len(torch.unique(goal)) < ALL_APART * len(goal):
        return None
    sorted_ = values[goal.argsort()]
    steps = sorted_[1:] - sorted_[:-1]
    varied = (steps != 0).float().mean(0) >= ALL_APART
    told = (((steps >= 0).all(0) | (steps <= 0).all(0)) & varied).nonzero()[:, 0]
    return (int(told[0]), "rises with the target, or falls with it,") if len(told) else None


def _by_class(values: Tensor, codes: Tensor, classes: int) -> tuple[int, str] | None:
    """A feature that has one number for each class, and not the same for all; each class that it tells has two."""
    if torch.bincount(codes).min() < 2:
        return None
    highest = torch.full((classes, values.shape[1]), -math.inf).scatter_reduce_(
        0, codes[:, None].expand_as(values), values, "amax"
    )
    lowest = torch.full((classes, values.shape[1]), math.inf).scatter_reduce_(
        0, codes[:, None].expand_as(values), values, "amin"
    )
    tells = (highest == lowest).all(0) & (highest != highest[:1]).any(0)
    return (int(tells.nonzero()[0, 0]), "is one number for each class") if tells.any() else None
