"""Dropout that the user's own code does: of numbers, of branches, of layers; nearly all of it, or by a wrong factor."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import torch

from depthgauge.checking.answers import Finding, Kind, Measure, Status
from depthgauge.checking.questions.data.drawn_masks import Calls, Drawn, Mask, left_out
from depthgauge.checking.questions.data.within import Within
from depthgauge.checking.subject import Subject
from depthgauge.checking.words import listed
from depthgauge.workload import Training

DROPPED = 0.85  # of a mask's numbers, or of a module's calls; a stochastic depth turned round drops 0.9 or so
SCALED = 4.0  # times, at least, by which numbers that are kept are multiplied, where they are masked one by one
DRAWS = 256  # of one mask, over all passes: a share of 0.85 is known to 0.022
PASSES = 32  # for them, at most
FIRST = 8  # passes, or numbers of a mask, after which what is dropped half of the time or less is let be
EMPTY = 0.25  # of the passes, at least, that call none of the modules beside each other: no one of them is drawn
NEAR = 0.2  # relative difference of a factor from 1 over the dropped share, or from the kept one
APART = 2.0  # times, or half, that what is kept weighs in training of what it weighs without a mask

KINDS = {
    "nearly_all_dropped": Kind(
        "fault",
        f"code of the user's own sets {DROPPED:.0%} or more to 0 by a random mask: of numbers, where it multiplies the"
        f" rest by {SCALED:g} or more, or of examples as a whole; or modules that evaluation calls are left out of as"
        " many passes in training mode",
    ),
    "factor_of_the_dropped": Kind(
        "fault",
        "what a random mask of the user's own leaves is divided by the share that is dropped, or multiplied by the one"
        f" that is kept, so that it weighs {APART:g} times, or half, of what it weighs without the mask",
    ),
}


def findings(subject: Subject) -> Iterator[Finding]:
    """Yield what is dropped."""
    training = subject.training
    passes = subject.count(subject.seen.seconds, PASSES + 2, 0.25)
    if isinstance(training.model, torch.jit.ScriptModule) or not subject.fits(2, "masks by hand", 0.25):
        return
    evaluated = _evaluated(subject)
    with training.untouched(), Within(training.model) as within, Calls(training.model) as calls:
        drawn = Drawn(within)
        for batch in _cycled(subject, passes):
            drawn.begin()
            calls.passes.append(set())
            with drawn:
                training.value(batch)
            if not (any(map(_is_looked_at, drawn.masks.values())) or _are_rare(evaluated, calls.passes)):
                return
    yield from _masked(drawn.masks.values())
    if len(calls.passes) == PASSES or len(calls.passes) >= passes - 2 > 8:
        yield from _left_out(training, evaluated, calls.passes)


def _cycled(subject: Subject, passes: int) -> Iterable[object]:
    batches = subject.batches(4)
    return (batches[place % len(batches)] for place in range(min(PASSES, passes)))


def _evaluated(subject: Subject) -> set[str]:
    """Names of the modules that a pass in evaluation mode calls; none where that raises."""
    training = subject.training
    with training.untouched(), Calls(training.model) as calls:
        calls.passes.append(set())
        training.model.eval()
        try:
            training.value(subject.seen.batch)
        except Exception:  # noqa: BLE001 - a loss may insist on training mode
            return set()
    return calls.passes[0]


def _is_looked_at(mask: Mask) -> bool:
    """Tell whether more passes are worth it."""
    open_ = mask.total < FIRST or (mask.total < DRAWS and mask.share > 0.5)
    return open_ or _is_heavy(mask) or bool(_wrong(mask))


def _are_rare(evaluated: set[str], passes: list[set[str]]) -> bool:
    """Tell whether modules that evaluation calls may be left out of most passes, and not of all."""
    counts = [sum(name in each for each in passes) for name in evaluated]
    if len(passes) < FIRST:
        return any(count < len(passes) for count in counts)
    rare = [count for count in counts if 2 * count < len(passes)]
    return bool(rare) and (len(passes) < 2 * FIRST or any(rare))


def _is_heavy(mask: Mask) -> bool:
    amplified = mask.factor >= SCALED or (math.isnan(mask.factor) and not mask.total > mask.zeros)
    return mask.share >= DROPPED and (amplified or mask.of_rows)


def _wrong(mask: Mask) -> str:
    """What the factor of a mask is in place of one over the kept share; empty where it may be meant."""
    kept, factor = 1 - mask.share, mask.factor
    if not 0 < mask.zeros < mask.total or not math.isfinite(factor):
        return ""
    if abs(factor * mask.share - 1) < NEAR and factor * kept >= APART:
        return f"divided by the share that is dropped (1 / {1 / factor:.2g})"
    if abs(factor / kept - 1) < NEAR / 2 and factor * kept <= 1 / APART / APART * 2:
        return f"multiplied by the share that is kept ({factor:.2g})"
    return ""


def _masked(masks: Iterable[Mask]) -> Iterator[Finding]:
    known = [each for each in masks if each.total >= min(DRAWS, PASSES)]
    heavy = [each for each in known if _is_heavy(each)]
    if heavy:
        share = sum(each.zeros for each in heavy) / sum(each.total for each in heavy)
        factor = max((each.factor for each in heavy if math.isfinite(each.factor)), default=1.0)
        places = list(dict.fromkeys(each.place for each in heavy))
        yield _heavy(places, share, f" and multiplies the rest by {factor:.3g}" if factor > 1 else "")
    for each in known:
        if each not in heavy and each.total >= DRAWS and (how := _wrong(each)):
            yield Finding(
                "factor_of_the_dropped", Status.LOOK,
                f"a random mask in `{each.place}` drops {100 * each.share:.3g} %, and what is left is {how}: on average"
                f" it is {each.factor * (1 - each.share):.2g} times what it is without the mask",
                "divide by the share that is kept", "training and evaluation mode agree on average",
                tuple(dict.fromkeys((each.place, "model"))),
                Measure("mean weight of what is masked", each.factor * (1 - each.share)),
            )  # fmt: skip
            return


def _left_out(training: Training, evaluated: set[str], passes: list[set[str]]) -> Iterator[Finding]:
    shares = dict(left_out(evaluated, passes, 1 - DROPPED, EMPTY))
    owned = [name for name in shares if any(True for _ in training.model.get_submodule(name).parameters())]
    if owned:
        yield _heavy(owned, sum(shares[name] for name in owned) / len(owned), "")


def _heavy(places: list[str], share: float, rest: str) -> Finding:
    return Finding(
        "nearly_all_dropped", Status.BROKEN,
        f"at {listed(places)} {100 * share:.3g} % is left out at random in training mode{rest}",
        f"keep more: was {1 - share:.2g} to be dropped, and {share:.2g} kept?",
        "what is dropped now learns in most steps", tuple(dict.fromkeys((*places[:11], "model"))),
        Measure("share that is dropped", share),
    )  # fmt: skip
