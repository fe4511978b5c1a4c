"""The way in which the loss pushes the outputs: to their targets, away from them, or without bound."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from depthgauge import nested
from depthgauge.checking.answers import Finding, Kind, Measure, Status
from depthgauge.checking.questions.data import held
from depthgauge.checking.questions.data.batches import binary
from depthgauge.checking.questions.data.held import Held
from depthgauge.checking.questions.data.outputs import Outputs, caught, normal_like
from depthgauge.checking.subject import Subject
from depthgauge.seeding import Purpose, generator

AWAY = 0.95  # of the cases
TOWARD = 0.25  # of them: as many that go to their targets, and these are what outputs are held against
LEAST = 16  # cases, of which that is a share
SAME = 1e-5  # of a gradient: rounding
SCALES = (1.0, 3.0, 9.0)
FASTER = 5.0  # times as far in the second as in the first: by the outputs' size it is 3 times, by its square 9
FEW = 4  # numbers of an output, each of which is tried
FAR = (10.0, 20.0, 40.0)  # of the targets' spread
VANISHES = 0.001  # of the loss, that is left with one output far off, where it is a factor of all errors

KINDS = {
    "pushed_away": Kind(
        "fault",
        f"with outputs of its own, permuted and drawn, steps take {AWAY:.0%} of the outputs away from their targets",
    ),
    "targets_idle": Kind(
        "fault", "targets of other examples change the loss and not its gradient, at outputs of three kinds"
    ),
    "moved_labels": Kind(
        "fault", "steps raise, for every example, the score of the class that is so many behind its label's"
    ),
    "no_floor": Kind(
        "fault",
        f"the loss falls by the square of the outputs' size or faster, and {AWAY:.0%} of the examples push theirs on",
    ),
    "shrunk_away": Kind(
        "fault",
        "of a regression, one output far off brings the loss to next to nothing, whatever others and targets are",
    ),
    "one_sided": Kind("fault", "of two labels' examples those of the one have no gradient, whatever the outputs are"),
    "left_out_examples": Kind(
        "fault", "the same quarter of each batch's places or more has no gradient, whatever the outputs are"
    ),
}  # fmt: skip


def findings(subject: Subject, outputs: Outputs, pairs: Sequence[Held]) -> Iterator[Finding]:
    """Yield what the gradient of the loss by the outputs says."""
    drawn = _draws(outputs, pairs)
    yield from _targets(outputs, pairs, drawn)
    yield from list(_growing(outputs)) or list(_endless(outputs, pairs))
    yield from _without(subject, outputs, pairs, drawn)


def _draws(outputs: Outputs, pairs: Sequence[Held]) -> list[tuple[Tensor, ...]]:
    """Outputs as they are, those of other examples, and drawn ones, that have a finite loss."""
    draws = generator(0, Purpose.OPERANDS)
    others = tuple(each[torch.randperm(len(each), generator=draws)] if each.dim() else each for each in outputs.free)
    places = {pair.leaf: pair for pair in pairs if pair.classes is None and not binary(pair.targets)}
    normal = tuple(_normal(each, places.get(place), draws) for place, each in enumerate(outputs.free))
    return [each for each in (outputs.free, others, normal) if math.isfinite(outputs.loss(each))]


def _normal(output: Tensor, pair: Held | None, draws: torch.Generator) -> Tensor:
    """N(0, 1) of the outputs' size, or of their targets' mean and spread."""
    drawn = normal_like(output, draws)
    if pair is not None and len(pair.targets) > 1:
        return pair.targets.mean() + pair.targets.std() * drawn
    return drawn * output.square().mean().sqrt().clamp(min=1e-3)


def _targets(outputs: Outputs, pairs: Sequence[Held], drawn: Sequence[tuple[Tensor, ...]]) -> Iterator[Finding]:
    given = [outputs.gradient(each)[1] for each in drawn]
    told = [pair for pair in pairs if not pair.given]
    found = list(_shifted(told, drawn, given)) or list(_pushed(outputs, told, drawn, given))
    yield from found[:1] or list(_idle(outputs, told, drawn, given))


def _pushed(
    outputs: Outputs, pairs: Sequence[Held], drawn: Sequence[tuple[Tensor, ...]], given: Sequence[tuple[Tensor, ...]]
) -> Iterator[Finding]:
    """Yield the finding where outputs go away from a target, in one way to hold them at least, and to it in none."""
    if not drawn:
        return
    weights = _weights(outputs, pairs)
    for pair in pairs:
        every = [pair.signs(one[pair.leaf], grad[pair.leaf]) for one, grad in zip(drawn, given, strict=True)]
        ways = [[draw[way] for draw in every] for way in range(len(every[0]))]
        if weights and pair.classes is not None:
            ways = [[_times(signs, weight) for signs in way] for way in ways for weight in weights]
        if any(_share(signs, 1) > TOWARD for way in ways for signs in way):
            yield from _of_one_label(pair, ways)
            return
        share = max((min(_share(signs, -1) for signs in way) for way in ways), default=0.0)
        if share >= AWAY and not _least_wins(outputs, pair):
            yield Finding(
                "pushed_away", Status.BROKEN,
                f"the loss falls as outputs go away from their targets, for {share:.0%} of the examples: it"
                " has the wrong"
                " sign",
                "turn the sign of the loss round, or of the term that holds outputs against targets",
                "steps take outputs to their targets", ("loss",), Measure("share pushed away", share),
            )  # fmt: skip
            return


def _least_wins(outputs: Outputs, pair: Held) -> bool:
    """Whether the loss comes to an end as all numbers but each label's rise, and not as one does: the least answers.

    So it is of distances, and of energies.
    """
    if (classes := pair.classes) is None:
        return False
    output = outputs.free[pair.leaf].movedim(classes, -1)
    count, size = output.shape[-1], max(1.0, output.std().item())
    labels = pair.targets.to(output.device).reshape(output.shape[:-1]).clamp(0, count - 1)
    others = 1 - functional.one_hot(labels, count)
    one = functional.one_hot((labels + 1) % count, count)

    def loss(raised: Tensor) -> float:
        moved = (output + size * raised).movedim(-1, classes)
        return outputs.loss([moved if leaf == pair.leaf else each for leaf, each in enumerate(outputs.free)])

    start, (near, far, farther) = loss(0 * others), (loss(distance * others) for distance in FAR)
    ends = start > near and abs(far - farther) <= VANISHES * (start - farther)
    return ends and (count == 2 or loss(FAR[-1] * one) > (start + farther) / 2)


def _of_one_label(pair: Held, ways: Sequence[Sequence[Tensor]]) -> Iterator[Finding]:
    """Yield the finding where one label's outputs go to it, and the other's away."""
    labels = pair.targets.reshape(-1)
    if not binary(labels) or any(len(signs) != len(labels) for way in ways for signs in way):
        return
    for which in (0, 1):
        of, rest = labels == which, labels != which
        if min(int(of.sum()), int(rest.sum())) < LEAST / 2:
            return
        if any(all(_share(s[of], -1, 4) >= AWAY and _share(s[rest], 1, 4) >= AWAY for s in way) for way in ways):
            yield Finding(
                "pushed_away", Status.BROKEN,
                f"the loss falls as outputs of label {which} go away from it, and as those of the other go to"
                " theirs: one of its"
                " two terms has the wrong sign",
                f"turn the sign of the term of label {which} round", "steps take outputs to their targets", ("loss",),
                Measure("share pushed away", of.float().mean().item()),
            )  # fmt: skip
            return


def _share(signs: Tensor, sign: int, least: int = LEAST) -> float:
    return (signs == sign).float().mean().item() if len(signs) >= least else 0.0


def _times(signs: Tensor, weight: Tensor) -> Tensor:
    """Signs as they would be of a weight above 0."""
    return signs * weight.sign() if len(signs) == len(weight) else signs[:0]


def _weights(outputs: Outputs, pairs: Sequence[Held]) -> list[Tensor]:
    """Numbers of examples' own besides their targets (rewards), as they are and less their mean."""
    places = {pair.place for pair in pairs if pair.classes is not None}
    count = nested.rows(outputs.batch)
    found = [
        tensor.reshape(-1)
        for place, tensor in nested.tensors(outputs.batch)
        if places and place not in places and tensor.is_floating_point() and tensor.numel() == count
    ]
    return [each for tensor in found for each in (tensor, tensor - tensor.mean())]


def _idle(
    outputs: Outputs, pairs: Sequence[Held], drawn: Sequence[tuple[Tensor, ...]], given: Sequence[tuple[Tensor, ...]]
) -> Iterator[Finding]:
    if len(drawn) < 2:
        return
    places = dict.fromkeys(pair.place for pair in pairs)
    idle = {place: _same_steps(outputs, place, drawn, given) for place in places}
    # An output may have the shape of more than its targets: a critic's that of returns and of advantages.
    if any(all(idle[pair.place] for pair in pairs if pair.leaf == leaf) for leaf in {pair.leaf for pair in pairs}):
        yield Finding(
            "targets_idle", Status.BROKEN,
            "the targets move the loss and not its gradient: steps are the same whatever the targets are",
            "look for a branch that is missing, or an output that is detached, where outputs meet their targets",
            "steps depend on the targets", ("loss",),
        )  # fmt: skip


def _same_steps(
    outputs: Outputs, place: str | None, drawn: Sequence[tuple[Tensor, ...]], given: Sequence[tuple[Tensor, ...]]
) -> bool:
    """Tell whether what lies there in the batch can be another example's, and every output's gradient stays."""
    other = held.rolled(outputs.batch, place)
    moved = [outputs.gradient(each, other)[1] for each in drawn]
    return all(_equal(*each) for each in zip(given, moved, strict=True))


def _equal(one: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> bool:
    """Tell whether every output's gradient is the same: a large one would hide what a small one does."""
    sizes = [a.square().sum() for a in one]
    apart = [(a - b).square().sum() for a, b in zip(one, other, strict=True)]
    return any(size > 0 for size in sizes) and all(d <= SAME**2 * size for d, size in zip(apart, sizes, strict=True))


def _shifted(
    pairs: Sequence[Held], drawn: Sequence[tuple[Tensor, ...]], given: Sequence[tuple[Tensor, ...]]
) -> Iterator[Finding]:
    for pair in pairs:
        if pair.classes is None or pair.targets.dim() != 1 or len(pair.targets) < 2 * LEAST:
            continue
        count = drawn[0][pair.leaf].shape[pair.classes]
        labels = pair.targets
        if count < 3 or labels.min() or len(set(labels.tolist())) < max(3, 0.5 * count):
            continue
        by = [(-each[pair.leaf]).argmax(pair.classes).sub(labels).remainder(count) for each in given]
        first = int(by[0].mode().values)
        if first and all((each == first).float().mean() > AWAY for each in by):
            yield Finding(
                "moved_labels", Status.BROKEN,
                f"steps raise the score of class (label {first if 2 * first <= count else first - count:+d}) for every"
                " example, not that of its label",
                "look at where labels become class numbers or one-hot rows", "scores tell the labels themselves",
                ("loss", "batches"),
            )  # fmt: skip
            return


def _growing(outputs: Outputs) -> Iterator[Finding]:
    for place, output in enumerate(outputs.free):
        if output.dim() < 2 or len(output) < 8:
            continue
        way = normal_like(output, generator(1, Purpose.OPERANDS))
        values = list(outputs.free)
        losses: list[float] = []
        for scale in SCALES:
            values[place] = scale * way
            loss, given = outputs.gradient(values)
            losses.append(loss)
        if not all(map(math.isfinite, losses)) or not losses[0] > losses[1] > losses[2]:
            continue
        first, second = losses[0] - losses[1], losses[1] - losses[2]
        on = ((given[place] * way).flatten(1).sum(1) < 0).float().mean().item()
        if second > FASTER * first and on >= AWAY and losses[2] < -abs(outputs.loss(outputs.free)):
            yield Finding(
                "no_floor", Status.BROKEN,
                f"the loss falls without end as an output grows: {losses[1]:.3g} at a size of {SCALES[1]:g},"
                f" {losses[2]:.3g} at"
                f" {SCALES[2]:g}",
                "turn round the sign of the term that falls: a penalty or a divergence that is subtracted",
                "the loss has a least value", ("loss",), Measure("loss of the grown output", losses[2]),
            )  # fmt: skip
            return


def _endless(outputs: Outputs, pairs: Sequence[Held]) -> Iterator[Finding]:
    """Yield the finding where one number of all outputs lowers the loss the further it goes, of a regression's few."""
    count = nested.rows(outputs.batch) or 0
    free = [tensor for place, tensor in nested.tensors(outputs.batch) if not _entered(outputs, tensor)]
    if len(free) != 1 or not any(pair.classes is None and not pair.given for pair in pairs) or binary(free[0]):
        return
    size = max(1.0, free[0].float().std().item())
    for leaf, output in enumerate(outputs.free):
        if not output.dim() or len(output) != count or output.numel() > FEW * count:
            continue
        for column, sign in itertools.product(range(output.numel() // count), (1, -1)):
            losses = [outputs.loss(_set(outputs.free, leaf, column, sign * far * size)) for far in FAR]
            start = outputs.loss(outputs.free)
            if not all(map(math.isfinite, losses)) or not start > losses[0] > losses[1] > losses[2]:
                continue
            way = "rise" if sign > 0 else "fall"
            if 0.7 < (losses[1] - losses[2]) / (2 * (losses[0] - losses[1])) < 1.4:
                yield Finding(
                    "no_floor", Status.BROKEN,
                    f"the loss falls without end as outputs {way}: {losses[0]:.3g} at"
                    f" {sign * FAR[0] * size:.3g}, {losses[2]:.3g} at {sign * FAR[2] * size:.3g},"
                    " whatever the targets are",
                    "look for a branch of the loss that is missing, or a sign, on that side of the targets",
                    "the loss has a least value", ("loss",), Measure("loss of far outputs", losses[2]),
                )  # fmt: skip
                return
            if 0 <= losses[2] <= losses[1] < VANISHES * start and _vanishes(
                outputs, leaf, column, sign * FAR[1] * size
            ):
                yield Finding(
                    "shrunk_away", Status.BROKEN,
                    f"the loss goes from {start:.3g} to {losses[1]:.3g} as output {column} of each example {way}s to"
                    f" {sign * FAR[1] * size:.3g}, whatever the others and the targets are: nothing holds it back",
                    "look for the term that is missing: a likelihood's logarithm of its width, a penalty of a weight",
                    "the loss falls only where outputs are right", ("loss",), Measure("loss of far outputs", losses[1]),
                )  # fmt: skip
                return


def _vanishes(outputs: Outputs, leaf: int, column: int, number: float) -> bool:
    """Tell whether the loss is next to nothing, too, with the other outputs drawn of twice their size."""
    draws = generator(2, Purpose.OPERANDS)
    drawn = [2 * each.square().mean().sqrt() * normal_like(each, draws) for each in outputs.free]
    return abs(outputs.loss(_set(drawn, leaf, column, number))) < VANISHES * abs(outputs.loss(drawn))


def _entered(outputs: Outputs, tensor: Tensor) -> bool:
    """Whether the model gets a tensor of the batch."""
    return any(
        tensor.shape == each.shape and bool((tensor == each).all()) for call in outputs.calls for each in call.given
    )


def _set(values: Sequence[Tensor], leaf: int, column: int, number: float) -> list[Tensor]:
    """The outputs with one number of each example's put in place."""
    changed = values[leaf].clone()
    changed.reshape(len(changed), -1)[:, column] = number
    return [changed if place == leaf else each for place, each in enumerate(values)]


def _without(
    subject: Subject, outputs: Outputs, pairs: Sequence[Held], drawn: Sequence[tuple[Tensor, ...]]
) -> Iterator[Finding]:
    """Examples that never have a gradient."""
    count = nested.rows(outputs.batch)
    if count is None or count < LEAST or len(drawn) < 2:
        return
    has = _reached(outputs, drawn, count)
    if has is None or has.all() or not has.any():
        return
    for pair in pairs:
        if pair.targets.numel() != count or pair.given or not binary(pair.targets):
            continue
        yes = pair.targets.reshape(-1).bool().to(has.device)
        for which in (True, False):
            if not has[yes == which].any() and has[yes != which].float().mean() > AWAY:
                yield Finding(
                    "one_sided", Status.BROKEN,
                    f"examples of label {int(which)} have no gradient, whatever the outputs are: only the others count",
                    "add the term of the other label, or map labels to what the loss takes (0 and 1, or -1 and 1)",
                    "both labels' examples move the"
                    " model", ("loss",), Measure("share without", 1 - has.float().mean().item()),
                )  # fmt: skip
                return
    yield from _places(subject, outputs, has)


def _reached(outputs: Outputs, drawn: Sequence[tuple[Tensor, ...]], count: int) -> Tensor | None:
    """(examples,) whether one has a gradient for some outputs; None where outputs are not of examples."""
    given = [outputs.gradient(each)[1] for each in drawn]
    has = None
    for leaf, output in enumerate(outputs.free):
        if not any(bool(each[leaf].any()) for each in given):
            continue
        if not output.dim() or len(output) != count:
            return None
        one = torch.stack([each[leaf].reshape(count, -1).any(1) for each in given]).any(0)
        has = one if has is None else has | one
    return has


def _places(subject: Subject, outputs: Outputs, has: Tensor) -> Iterator[Finding]:
    """Yield the finding where each batch's examples at these places have none, and nothing in the batch says so."""
    tensors = [tensor for _, tensor in nested.tensors(outputs.batch)]
    marks = any(each.dtype is torch.bool or (not each.is_floating_point() and (each < 0).any()) for each in tensors)
    others = [each for each in subject.batches(3)[1:] if nested.rows(each) == len(has)]
    if marks or len(others) < 2 or has.float().mean() > 0.75:
        return
    for batch in others:
        again = caught(subject.training, batch)
        first = next(iter(nested.tensors(batch)))[1]
        if again is None or (first.shape == tensors[0].shape and bool((first == tensors[0]).all())):
            return
        one = _reached(again, _draws(again, ()), len(has))
        if one is None or not bool((one == has).all()):
            return
    share = 1 - has.float().mean().item()
    yield Finding(
        "left_out_examples", Status.BROKEN,
        f"{share:.0%} of the examples of each batch, at the same places, have no gradient: the loss leaves them out",
        "let the loss add up all examples (a sum that is overwritten in a loop keeps the last one)",
        "all examples move the model", ("loss",), Measure("share of examples left out", share),
    )  # fmt: skip
