"""The examples that a loss over embeddings draws together: those that are alike, or others.

Outputs are drawn at random, many times; the force on one that points to another, on average, tells the pairs that are
drawn together and pushed apart. Their inputs say whether these are alike.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from depthgauge import nested
from depthgauge.checking.answers import Finding, Kind, Measure, Status
from depthgauge.checking.questions.data import held
from depthgauge.checking.questions.data.outputs import Outputs, caught, normal_like
from depthgauge.checking.subject import Subject
from depthgauge.seeding import Purpose, generator

DRAWS = 24  # of outputs: the mean over them leaves a tenth of a force's size of noise at 4 numbers an output
SIGNS = 5.0  # standard deviations of all pairs' forces, and of chance, beyond which one is drawn or pushed
BATCHES = 4
ROWS = 512  # of all outputs, at most
WIDE = 4  # numbers of an output, at least
CLEAR = 6.0  # standard errors between the distances of two kinds of pairs
CHANCE = 3.0  # below which pairs are no nearer than any two
SECONDS = 0.4

KINDS = {
    "pulls_others": Kind(
        "fault",
        "inputs of outputs that are drawn together are as far apart as any two, and those that are pushed"
        " apart, or of the"
        f" same place in two calls, are nearer by {CLEAR:g} standard errors",
    ),
}


@dataclass(eq=False)
class Pairs:
    """Distances of inputs, by what the loss does with their outputs."""

    drawn: list[Tensor] = field(default_factory=list)
    pushed: list[Tensor] = field(default_factory=list)
    every: list[Tensor] = field(default_factory=list)
    placed: dict[str, list[Tensor]] = field(default_factory=dict)


def findings(subject: Subject) -> Iterator[Finding]:
    """Yield the finding where a loss draws together what is not alike."""
    training, pairs = subject.training, Pairs()
    if not subject.fits(3 * DRAWS, "outputs that the loss draws together", copies=BATCHES):
        return
    for place, batch in enumerate(subject.batches(BATCHES)):
        with training.untouched():
            outputs = caught(training, batch)
            if outputs is None or (not place and any(pair.classes is not None for pair in held.against(outputs))):
                return
            if not _add(outputs, pairs):
                return
    if not pairs.drawn:
        return
    drawn, every = torch.cat(pairs.drawn), torch.cat(pairs.every)
    if len(drawn) < 16 or _errors(drawn, every) > CHANCE:
        return
    nearer = {"those that it pushes apart": pairs.pushed, **pairs.placed}
    for what, found in nearer.items():
        others = torch.cat(found) if found else torch.zeros(0)
        if len(others) >= 16 and _errors(others, drawn) >= CLEAR and _errors(others, every) >= CLEAR / 2:
            yield Finding(
                "pulls_others", Status.BROKEN,
                f"the loss draws outputs together whose inputs are as far apart ({drawn.mean():.3g}) as those"
                " of any two"
                f" examples ({every.mean():.3g}); {what} are nearer ({others.mean():.3g})",
                "look at which pairs are the positives: the arguments' order, the labels' meaning, or the diagonal",
                "outputs of examples that are alike are drawn together", ("loss",),
                Measure("distance of inputs drawn together over that of any two", (drawn.mean() / every.mean()).item()),
            )  # fmt: skip
            return


def _errors(near: Tensor, far: Tensor) -> float:
    """Standard errors by which the first are nearer."""
    error = near.var() / len(near) + far.var() / len(far)
    return ((far.mean() - near.mean()) / error.sqrt()).item() if error > 0 else 0.0


def _add(outputs: Outputs, pairs: Pairs) -> bool:
    """Take in what one batch says; False where its outputs are no embeddings of inputs that can be compared."""
    free = outputs.free
    calls = [call for call in outputs.calls if isinstance(call.output, Tensor)]
    if len(calls) != len(outputs.calls) or not 1 <= len(calls) <= 4 or any(each.dim() != 2 for each in free):
        return False
    given = [call.given[0] for call in calls if call.given]
    made = {each.data_ptr() for call in calls for _, each in nested.tensors(call.output)}
    if any(each.data_ptr() in made for each in given):  # one call's outputs are the next one's inputs
        return False
    widths = {each[0].numel() for each in given if each.dim() > 1 and len(each)}
    rows = sum(map(len, free))
    alike = len({each.shape[1] for each in free}) == 1 and [len(each) for each in given] == [len(each) for each in free]
    if len(widths) != 1 or not alike or free[0].shape[1] < WIDE or not 8 <= rows <= ROWS:
        return False
    drawn = _forces(outputs)
    if drawn is None:
        return False
    forces, noise = drawn
    inputs = torch.cat([each.reshape(len(each), -1).float() for each in given])
    apart = torch.cdist(inputs, inputs)
    away = ~torch.eye(rows, dtype=torch.bool, device=apart.device)
    least = SIGNS * noise.clamp(min=(1.4826 * forces[away].abs().median()).item())
    upper = torch.triu(away) & (apart > 0)
    for found, told in ((pairs.drawn, forces > least), (pairs.pushed, forces < -least)):
        found.append(apart[told & upper])
    pairs.every.append(apart[upper][:: max(1, int(upper.sum()) // 2048)])
    _placed(apart, [len(each) for each in free], pairs)
    return True


def _placed(apart: Tensor, counts: Sequence[int], pairs: Pairs) -> None:
    """Distances of inputs of the same place in two calls, or in two halves of one."""
    rows = len(apart)
    if len(counts) == 1 and rows % 2 == 0:
        half = torch.arange(rows // 2)
        pairs.placed.setdefault("those of the same place in both halves", []).append(apart[half, half + rows // 2])
        pairs.placed.setdefault("those of neighbouring places", []).append(apart[2 * half, 2 * half + 1])
        return
    for one in range(len(counts)):
        for other in range(one):
            if counts[one] == counts[other]:
                places = torch.arange(counts[one])
                found = apart[sum(counts[:one]) + places, sum(counts[:other]) + places]
                what = f"those of the same place in calls {other + 1} and {one + 1}"
                pairs.placed.setdefault(what, []).append(found[found > 0])


def _forces(outputs: Outputs) -> tuple[Tensor, Tensor] | None:
    """(rows, rows) how far the loss's force on one output points to another, over draws; None where it has none.

    And the standard deviation of forces that have nothing to do with the other output: a unit vector's part along
    another of D numbers has the variance 1 / D, and an output that is cut off the graph has no force.
    """
    total: Tensor | None = None
    moved = torch.zeros(sum(map(len, outputs.free)), device=outputs.free[0].device)
    draws = generator(0, Purpose.OPERANDS)
    for _ in range(DRAWS):
        values = [normal_like(each, draws) * each.square().mean().sqrt().clamp(min=0.1) for each in outputs.free]
        loss, given = outputs.gradient(values)
        force, place = -torch.cat(given), torch.cat(values)
        if not math.isfinite(loss) or not bool(force.isfinite().all()):
            return None
        moved += (force != 0).any(1)
        force = force / force.norm(dim=1, keepdim=True).clamp(min=1e-30)
        towards = force @ (place / place.norm(dim=1, keepdim=True)).T
        total = towards + towards.T if total is None else total + towards + towards.T
    return None if total is None else (total, ((moved + moved[:, None]) / outputs.free[0].shape[1]).sqrt())
