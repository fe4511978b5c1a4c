"""The gradient of one batch, held against that of its shards on all ranks, inside of the ranks.

    result = compare(group, training, accumulate=2)      # in each rank, with a training built alike

The answer is that of real DDP. Rounding is told from the rest by the training itself: the error of its own gradient,
found by repeating it in float64. Where the two part by more than `WIDTH` times that, both are run in float64, where
rounding is a billionth of what it was: what is still there is no rounding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from depthgauge.parallel import differences, passes, saying
from depthgauge.parallel.diagnosis import diagnosed
from depthgauge.parallel.differences import Judged
from depthgauge.parallel.group import Group
from depthgauge.parallel.naming import ParallelError
from depthgauge.parallel.passes import Found, Held
from depthgauge.parallel.places import Ranks
from depthgauge.parallel.sameness import Compared, Same
from depthgauge.parallel.shards import Chosen, Split, chosen, examples, permuted, shards
from depthgauge.seeding import Purpose, generator
from depthgauge.workload import Training, WorkloadError, check_training

ORDERS = 3  # orders of the examples that rounding is estimated from, where float64 is of no use
FINE = 1e-4  # a wider band may hide a difference, which is looked for in float64
FACTOR, CLIPPED = 1.37, 0.02  # of a loss; a share that it changes a gradient by where that is none of the loss alone
ORDERED = {8: 1e-9, 4: 1e-3, 2: 0.1}  # by bytes a number: beyond it another order is another gradient, and no rounding


def compare(
    group: Group, training: Training, accumulate: int = 1, *, batches: int = 2, split: Split | None = None
) -> Same:
    """Compare a training on these ranks with the same on one; every rank calls it, and gets the answer.

    Args:
        group: the rank, in torch's default process group.
        training: built alike in every rank; batches and weights are those of rank 0.
        accumulate: backward passes a step.
        batches: how many batches from the first on are compared, beside one of every other size.
        split: `split(batch, parts)`; None: along dimension 0 of every tensor.

    Raises:
        WorkloadError: the training cannot be run.
        ParallelError: a batch cannot be split.
    """
    check_training(training)
    ranks = _ranks(group, training, accumulate, split)
    found, looked = ranks.told(ranks.agreed(lambda: chosen(training, batches, ranks.examples)))
    passes.materialized(ranks.step, passes.on(found[0].batch, group))
    _check_alike(ranks)
    passes.synchronize(ranks.step)
    done = [_compared(ranks, each) for each in found]
    notes = saying.notes(training.batches, looked, unused=any(each.unused for each in done))
    answer = Same(group.ranks, accumulate, tuple(done), tuple(notes))
    told: Same = ranks.told(answer)
    return told


def _ranks(group: Group, training: Training, accumulate: int, split: Split | None) -> Ranks:
    step = passes.placed(training, group)
    if wrapped := next((part for part in step.modules() if isinstance(part, DistributedDataParallel)), None):
        raise ParallelError(
            f"a setup returns the bare module, and not one in {type(wrapped).__name__}, as same wraps it"
        )
    shared = any(hasattr(part, "process_group") for part in step.modules())
    groups = [distributed.new_group([rank]) for rank in range(group.ranks)] if shared else []
    return Ranks(group, step, accumulate, split or shards, groups[group.rank] if groups else None)


def _check_alike(ranks: Ranks) -> None:
    """Check that all ranks have built the same model.

    Raises:
        ParallelError: they have not.
    """
    named = (*ranks.step.named(), *ranks.step.kept())
    own = [f"{name} of {tuple(each.shape)}, {each.dtype}, {each.requires_grad}" for name, each in named]
    first, *others = ranks.gathered(own)
    for rank, other in enumerate(others, 1):
        if other != first:
            what = next(iter(sorted(set(first) ^ set(other))), "the order of its parameters").split(" of ")[0]
            raise ParallelError(f"rank {rank} builds another model than rank 0, as is seen at `{what}`")


def _compared(ranks: Ranks, taken: Chosen) -> Compared:
    """One batch; what rank 0 returns counts."""
    said = saying.Saying(taken, ranks.group.ranks, ranks.accumulate)
    pieces = ranks.pieces(taken.batch)
    sizes = ranks.sizes(taken.batch, pieces)
    result = Compared(taken.place, sizes, None, "")
    if min(sizes) == 0:
        same = False if taken.place else None
        return replace(result, same=same, cause="empty", why=said.empty(sizes))
    judged = _judged(ranks, passes.on(taken.batch, ranks.group))
    if judged.problem:
        return replace(result, why=said.nothing(judged.problem))
    if judged.raised:
        return replace(result, same=False, cause="raises", why=said.raises(*judged.raised, sizes))
    result = replace(result, unused=judged.unused)
    if judged.difference is not None:
        result = judged.difference.compared(result)
    if not judged.parts:
        return replace(result, same=True, why=said.agreeing(result, judged.cleared, judged.exact))
    cause, why, weights = diagnosed(ranks, passes.on(taken.batch, ranks.group), sizes, judged, said)
    return replace(result, same=False, cause=cause, why=f"{said.parting(result)}: {why}", weights=weights)


# -- one batch ---------------------------------------------------------------------------------------------------------


def _judged(ranks: Ranks, batch: Any) -> Judged:
    one: Found | None = ranks.agreed(lambda: passes.whole(ranks.step, batch, ranks.alone))
    problem, draws = ranks.told((differences.problem(one), one.draws) if one is not None else None)
    if problem:
        return Judged(problem)
    own = ranks.own(batch)
    unused, raised = _tried(ranks, own)
    if raised:
        return Judged(raised=raised)
    many = passes.reduced(ranks.step, own, unused=unused)
    difference, parts, exact = None, False, False
    if one is not None:
        errors, exact = _errors(ranks, batch, one)
        difference = differences.between(one, many, differences.bands(one, errors, capped=exact), ranks.accumulate == 1)
        parts = difference.beyond
    beyond, exact, coarse = ranks.told((parts, exact, difference is not None and difference.band > FINE))
    if exact and (beyond or coarse):
        many = passes.reduced(ranks.step, own, unused=unused, double=True)
        if difference is not None:
            precise = passes.whole(ranks.step, batch, ranks.alone, double=True)
            difference = difference.confirmed(precise, many)
            if coarse and not difference.of_gradients and _throughout(ranks, batch, precise):
                difference = difference.revealed(precise, many)
        parts = ranks.told(difference.beyond if difference is not None else False)
    else:
        parts = beyond
    cleared = beyond and not parts
    return Judged("", None, parts, cleared, draws, exact, unused, difference, one)


def _errors_of_scale(ranks: Ranks, batch: Any, held: Held, like: Found) -> dict[str, float]:
    """What a factor of the loss, divided out of the gradient, changes; nothing where it is no mere rounding.

    It draws every rounding of the backward pass anew, in whatever formats the training computes inside.
    """
    other = passes.whole(ranks.step, batch, ranks.alone, held, factor=FACTOR)
    return dict(differences.distances(like, other)) if differences.relative(like, other) <= CLIPPED else {}


def _throughout(ranks: Ranks, batch: Any, precise: Found, held: Held = passes.NOTHING) -> bool:
    """Tell whether a gradient is one of float64 throughout: the training does not compute in another format inside."""
    other = passes.whole(ranks.step, batch, ranks.alone, held, double=True, factor=FACTOR)
    return differences.relative(precise, other) <= ORDERED[8]


def _tried(ranks: Ranks, own: list[Any]) -> tuple[bool, tuple[int, str] | None]:
    """Whether a rank has a piece that leaves a parameter unused; the first rank that raised, and what."""
    unused, said = False, ""
    try:
        for found in passes.alone(ranks.step, own):
            unused = unused or any(gradient is None for gradient in found.gradients.values())
    except WorkloadError as error:
        said = str(error)
    every = ranks.gathered((unused, said))
    raised = next(((rank, text) for rank, (_, text) in enumerate(every) if text), None)
    return any(flag for flag, _ in every), raised


def _errors(ranks: Ranks, batch: Any, one: Found) -> tuple[Mapping[str, float] | None, bool]:
    """Rounding error of the whole batch's gradient, by parameter and buffer; whether it is known from float64.

    Where the training draws random numbers it is that of the training without dropout. None where it cannot be known.
    """
    held = Held(random=True) if one.draws else passes.NOTHING
    like = passes.whole(ranks.step, batch, ranks.alone, held) if one.draws else one
    if like.draws:
        return None, _in_float64(ranks, batch, held) is not None
    errors = _errors_of_scale(ranks, batch, held, like)
    precise = _in_float64(ranks, batch, held)
    throughout = precise is not None and _throughout(ranks, batch, precise, held)
    known = throughout or (precise is not None and differences.relative(like, precise) <= CLIPPED)
    if precise is not None and known:
        _widen(errors, differences.distances(like, precise))
    if throughout:
        return errors, True
    try:
        length = examples(batch)
    except ValueError:
        return errors if known else None, False
    limit = ORDERED[min(parameter.element_size() for _, parameter in ranks.step.named())]
    for number in range(ORDERS):
        order = torch.randperm(length, generator=generator(number, Purpose.ORDER))
        other = passes.whole(ranks.step, permuted(batch, order), ranks.alone, held)
        if not differences.relative(like, other) <= limit:
            return errors if known else None, False
        _widen(errors, differences.distances(like, other))
    return errors, False


def _widen(errors: dict[str, float], others: Mapping[str, float]) -> None:
    """Keep the larger error of each."""
    for name, distance in others.items():
        errors[name] = max(distance, errors.get(name, 0.0))


def _in_float64(ranks: Ranks, batch: Any, held: Held) -> Found | None:
    """The gradient in float64; None where it cannot be had, or is the training's own."""
    if all(parameter.dtype in {torch.float64, torch.complex128} for _, parameter in ranks.step.named()):
        return None
    try:
        found = passes.whole(ranks.step, batch, ranks.alone, held, double=True)
    except WorkloadError:
        return None
    return found if math.isfinite(differences.length(found)) else None
