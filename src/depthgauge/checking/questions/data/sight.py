"""Labels that tell of another place than the one at which they stand, and that the model does not see from there.

What a label tells of is asked of the data alone: labels are said by the input some places on, counted on one half of
the examples and held to the other. What the model sees is asked of its gradient.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from depthgauge import nested
from depthgauge.checking.answers import Finding, Kind, Measure, Status
from depthgauge.checking.questions.data.batches import targeted
from depthgauge.checking.questions.data.outputs import scored
from depthgauge.checking.questions.data.seeing import changed
from depthgauge.checking.subject import Subject
from depthgauge.checking.words import percent

FAR = 4  # places, that labels are moved by, either way
PLACES = 5  # of a sequence, at least
COUNTED = 512  # labels that are counted, at least, and as many that are told by them
MORE = 0.1  # of the labels, that another place tells beyond the most frequent one, and beyond any place that is seen
TIMES = 3.0  # times as many as any place that is seen

KINDS = {
    "labels_out_of_sight": Kind(
        "fault",
        f"of the labels of a sequence's places, {percent(MORE)} more than the most frequent one are told by the token"
        f" up to {FAR} places away, counted on other examples, {TIMES:g} times as many as by any that the model's"
        " output there depends on, and it does not depend on that one; or on one that is the same in all examples",
    ),
}


def findings(subject: Subject) -> Iterator[Finding]:
    """Yield the finding where labels stand beside what they tell of."""
    training = subject.training
    if isinstance(training.model, torch.jit.ScriptModule) or not subject.fits(10, "labels out of the model's sight"):
        return
    found = _sequences(subject)
    if found is None:
        return
    place, tokens, labels = found
    counted = labels >= 0
    if (
        (labels == tokens).float().mean() > 0.2
        or int(counted.sum()) < 2 * COUNTED
        or torch.unique(labels[counted]).numel() < 2
    ):
        return
    told = {by: gain(tokens, labels, counted, by) for by in range(-FAR, FAR + 1)}
    best = max(told, key=lambda by: told[by])
    if not best or told[best] < MORE or _is_next(tokens, labels, counted):
        return
    seen = _seen(subject, place)
    if seen is None or _of_what_comes(seen, best):
        return
    level = max([0.0, *(told[by] for by in told if seen[by] and by != best)])
    marked = best > 0 and _marks(tokens, labels, best) and told[best] >= TIMES * max(told[0], 0.0)
    if (seen[best] or told[best] < max(TIMES * level, level + MORE)) and not marked:
        return
    yield _told(best, told, seen_there=seen[best])


def _told(by: int, told: dict[int, float], *, seen_there: bool) -> Finding:
    where = f"{abs(by)} place{'s' * (abs(by) > 1)} {'on' if by > 0 else 'before'}"
    blind = "" if seen_there else ", which its output there does not depend on"
    return Finding(
        "labels_out_of_sight", Status.BROKEN if not seen_there else Status.LOOK,
        f"labels tell of the token {where}{blind}: it tells {percent(told[by])} of them more than the most"
        f" frequent label, and the token at their own place {percent(max(told[0], 0.0))}",
        f"move the labels by {abs(by)}, as marks (a class token, a pad) that are put in front move the inputs",
        "each place is held against its own label", ("batches", "loss", "labels"),
        Measure("labels told by that token, beyond the most frequent", told[by]),
    )  # fmt: skip


def _sequences(subject: Subject) -> tuple[str | None, Tensor, Tensor] | None:
    """Place of the tokens in the batch, tokens and labels (examples, places) of the first batches."""
    batch, terms = subject.seen.batch, subject.seen.graph.terms
    parts = dict(nested.tensors(batch))
    whole = {
        place: each for place, each in parts.items() if each.dim() == 2 and each.dtype in {torch.int64, torch.int32}
    }
    targets = [place for place in whole if targeted(place, parts, terms, batch)]
    if len(targets) != 1:
        return None
    shape = whole[targets[0]].shape
    inputs = [
        p for p, each in whole.items() if p not in targets and each.shape == shape and torch.unique(each).numel() > 2
    ]
    if len(inputs) != 1 or shape[1] < PLACES:
        return None
    several = [dict(nested.tensors(each)) for each in subject.batches(16)]
    alike = [p for p in several if all(q in p and p[q].shape[1:] == shape[1:] for q in (inputs[0], targets[0]))]
    tokens, labels = (torch.cat([p[q].detach().cpu() for p in alike]).long() for q in (inputs[0], targets[0]))
    return inputs[0], tokens, labels


def gain(tokens: Tensor, labels: Tensor, counted: Tensor, by: int) -> float:
    """Share of labels that the token so many places on tells, beyond the most frequent label, on held-out examples."""
    width = tokens.shape[1]
    own, other = slice(max(0, -by), width - max(0, by)), slice(max(0, by), width - max(0, -by))
    there, said, which = tokens[:, other], labels[:, own], counted[:, own]
    half = len(tokens) // 2
    rows, answers = there[:half][which[:half]], said[:half][which[:half]]
    asked, right = there[half:][which[half:]], said[half:][which[half:]]
    if len(answers) < COUNTED // 2 or len(right) < COUNTED // 2 or int(tokens.min()) < 0:
        return 0.0
    counts = torch.zeros(int(tokens.max()) + 1, int(labels.max()) + 1)
    if counts.numel() > 10_000_000:
        return 0.0
    counts.index_put_((rows, answers), torch.ones(len(rows)), accumulate=True)
    frequent = int(counts.sum(0).argmax())
    guess = torch.where(counts.sum(1) > 0, counts.argmax(1), frequent)
    return ((guess[asked] == right).float().mean() - (right == frequent).float().mean()).item()


def _is_next(tokens: Tensor, labels: Tensor, counted: Tensor) -> bool:
    """Tell whether labels are tokens of another place: what comes next, or what came before."""
    for by in range(-FAR, FAR + 1):
        same = (tokens.roll(-by, 1) == labels) & counted
        if same.sum() > 0.5 * counted.sum():
            return True
    return False


def _of_what_comes(seen: dict[int, bool], best: int) -> bool:
    """Tell whether a model that sees nothing of what comes is to tell it: of one that sees its own place, the next."""
    ahead, behind = (any(seen[sign * by] for by in range(1, FAR + 1)) for sign in (1, -1))
    return best > 0 and not ahead and (behind or best == 1)


def _marks(tokens: Tensor, labels: Tensor, by: int) -> bool:
    """Tell whether the first places hold the same in all examples, and labels that differ; and the last have none."""
    first, last = tokens[:, :by], tokens[:, -by:]
    same = bool((first == first[:1]).all()) and not bool((last == last[:1]).all())
    return (
        same
        and torch.unique(labels[:, 0]).numel() > 1
        and bool((labels[:, 0] >= 0).all())
        and _ends_without(labels, by)
    )


def _ends_without(labels: Tensor, by: int) -> bool:
    return bool((labels[:, -by:] < 0).all())


def _seen(subject: Subject, place: str | None) -> dict[int, bool] | None:
    """Whether outputs of a place depend on the token so many places on, in eval mode; None where it is not told."""
    training, batch = subject.training, subject.seen.batch
    with training.untouched():
        training.model.eval()
        base = scored(training, batch)
        tokens = dict(nested.tensors(batch))[place]
        places = tokens.shape[1]
        middle = places // 2
        other = changed(batch, {place}, lambda each: _replaced(each, middle))
        moved = scored(training, other)
    if base is None or moved is None or base[0].shape != moved[0].shape:
        return None
    scores: Sequence[Any] = (base[0], moved[0])
    axes = [axis for axis, size in enumerate(base[0].shape) if size == places and axis > 0]
    if len(axes) != 1 or len(base[0]) != len(tokens):
        return None
    apart = (scores[0] - scores[1]).abs().movedim(axes[0], 0).reshape(places, -1).amax(1)
    least = 1e-5 * base[0].abs().max()
    return {by: bool(apart[middle - by] > least) if 0 <= middle - by < places else True for by in range(-FAR, FAR + 1)}


def _replaced(tokens: Tensor, middle: int) -> Tensor:
    again = tokens.clone()
    again[:, middle] = tokens[:, middle].roll(1, 0)
    return again
