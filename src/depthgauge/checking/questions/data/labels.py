"""Labels: their range, classes without any, and whether they belong to their inputs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from depthgauge.checking.answers import Finding, Kind, Measure, Status
from depthgauge.checking.questions.data import dependence
from depthgauge.checking.questions.data.batches import Batches, Column
from depthgauge.checking.terms import Term
from depthgauge.checking.words import percent

BOUND = 1.25  # of targets: real examples of adversarial networks are smoothed to 0.7 to 1.2 by design
EACH = 10  # labels of the rarest class that was seen: another as frequent is missed with probability exp(-10)
ALIKE = 20  # labels, below which all of one class are chance: 0.5 ** 19 with two classes
FAVOUR = 3.0  # ratio of counts, and of weights, from which on weights and frequencies are held against each other
RISING = 0.8  # correlation of their logarithms
SEEN, ENOUGH = 2, 32  # labels of a class in the first batch, and targets of a binary one
FEW = 5  # classes, from which on labels of two are no oversight of the last layer's
CLASSES = 100  # more are a vocabulary, of which some words are never seen
NEIGHBOURS = 512  # examples whose nearest neighbour is looked for
NUMBERS = 4096  # of an example at most, for that
BY_CHANCE = 3.0  # standard errors below which neighbours agree by chance
CLEAR = 6.0  # standard errors above which labels of other examples agree: 1e-9, for the four shifts that are tried
SHIFTS = (-2, -1, 1, 2)

KINDS = {
    "labels_out_of_range": Kind("fault", f"targets of binary cross-entropy are below 0 or above {BOUND}"),
    "all_ignored": Kind("fault", "all labels of the first batch are the number that does not count"),
    "constant_targets": Kind("fault", f"all labels of {ALIKE} examples or more are the same"),
    "weights_favour_frequent": Kind(
        "fault",
        f"weights of classes rise with their frequencies, both by a factor of {FAVOUR:g} or more and with a correlation"
        f" of {RISING:g}; a pos_weight of 1/{FAVOUR:g} or less where positives are as rare, or the reverse",
    ),
    "ignored_class": Kind(
        "fault",
        "the class that does not count is one of the model's, of one label an example, as frequent as half of the"
        " others' mean, and its inputs are others than theirs",
    ),
    "class_left_out": Kind(
        "fault",
        "labels that do not count are half as frequent as those of a class, or more, the model has one class more than"
        " labels name, and the inputs of what does not count are others than theirs: labels were moved down by one",
    ),
    "first_class_missing": Kind(
        "fault",
        f"no label is 0, and every other class has {EACH} labels or more: classes are counted from 1",
    ),
    "two_of_many_classes": Kind(
        "fault", f"labels are 0 or 1, each of {EACH} or more, and the model has scores for {FEW} classes or more"
    ),
    "classes_too_many": Kind(
        "opportunity", f"the last classes have no label, and every other one has {EACH} or more"
    ),
    "misaligned": Kind(
        "fault",
        f"nearest neighbours agree in the labels of other examples (by {CLEAR:g} standard errors) and not in their own"
        f" (below {BY_CHANCE:g})",
    ),
    "conflicting_labels": Kind("opportunity", "equal inputs have different labels, which no model can fit"),
}  # fmt: skip


@dataclass(frozen=True)
class Agreement:
    """Shares of examples whose nearest neighbour has the same label.

    Attributes:
        share: of the examples.
        expected: of labels that do not depend on the inputs.
        errors: standard errors between the two.
    """

    share: float
    expected: float
    errors: float


def findings(batches: Batches, terms: tuple[Term, ...]) -> Iterator[Finding]:
    """Yield what is found about labels."""
    for each in terms:
        yield from _range(each)
        yield from _weights(each)
    for column in batches.targets:
        labels = _labels(column)
        if labels is None:
            continue
        ignored = {term.ignored for term in terms if term.form == "classes"}
        counted = labels[labels != next(iter(ignored))] if column.sure and len(ignored) == 1 else labels
        yield from _alike(counted, batches, column)
        of_classes = {term.classes: term for term in terms if term.form == "classes"}
        term = (
            next(iter(of_classes.values())) if len(of_classes) == 1 else None
        )  # of two it is not known whose these are
        if column.sure and term is not None and term.ignored < 0:  # a class that does not count is not missed
            yield from _unseen(labels[labels != term.ignored], term.classes)
        if column.sure and term is not None:
            yield from _moved_down(labels, term, batches, column)
        if column.sure and term is not None and len(labels) == len(column.numbers):
            yield from _ignored(labels, term, batches)
        if len(labels) == len(column.numbers):
            yield from _belonging(labels, batches)


def conflicts(inputs: Tensor, labels: Tensor) -> int:
    """Count the examples that have equal inputs and another label than the first of these."""
    known: dict[bytes, int] = {}
    pairs = zip(inputs.contiguous().numpy(), labels.tolist(), strict=True)
    return sum(known.setdefault(row.tobytes(), label) != label for row, label in pairs)


def agreement(inputs: Tensor, labels: Tensor, shift: int = 0) -> Agreement | None:
    """Hold each example's label against its nearest neighbour's; of a shift, those of the examples so far behind.

    Args:
        inputs: (examples, numbers).
        labels: (examples,).
        shift: added to the place of both.
    """
    low, high = max(0, -shift), len(labels) - max(0, shift)
    if high - low < ALIKE:
        return None
    distances = torch.cdist(inputs[low:high], inputs[low:high])
    distances.fill_diagonal_(math.inf)
    moved = labels[low + shift : high + shift]
    equal = (moved[distances.argmin(1)] == moved).double()
    shares = torch.bincount(moved - moved.min()).double() / len(moved)
    expected = shares.square().sum().item()
    error = math.sqrt(2 * expected * (1 - expected) / len(moved))  # twice: neighbours are neighbours of each other
    return Agreement(equal.mean().item(), expected, (equal.mean().item() - expected) / error if error else 0.0)


def _labels(column: Column) -> Tensor | None:
    """All class numbers of a column, flat; None where it holds none."""
    if column.numbers.is_floating_point() or column.numbers.dtype is torch.bool:
        return None
    return column.numbers.reshape(-1).long()


def _range(term: Term) -> Iterator[Finding]:
    if term.form in {"binary", "binary_logits"} and len(term.targets):
        low, high = term.targets.min().item(), term.targets.max().item()
        if low < 0 or high > BOUND:
            advice = "map -1 to 0" if (low, high) == (-1, 1) else "map them to 0 and 1"
            yield Finding(
                "labels_out_of_range", Status.BROKEN,
                f"binary cross-entropy takes targets from 0 to 1, and gets {low:g} to {high:g}: the loss has no lower"
                " bound",
                advice, "the loss is at least 0", ("batches", "loss"), Measure("largest target", high),
            )  # fmt: skip
    if term.form == "classes" and len(term.targets) and not term.counted.any():
        yield Finding(
            "all_ignored", Status.BROKEN,
            f"all {len(term.targets)} labels of the first batch are {term.ignored}, which does not count",
            "look at how labels are masked, or set ignore_index", "there is something to be learned",
            ("batches", "loss"),
        )  # fmt: skip


def _weights(term: Term) -> Iterator[Finding]:
    """Weights of classes that favour those that are frequent already."""
    weight = term.weight
    if weight is None or not len(term.targets):
        return
    if term.form == "binary_logits":
        share = (term.targets.double() > 0.5).double().mean().item()
        rare = share < 1 / FAVOUR and bool(weight.max() <= 1 / FAVOUR)
        turned = rare or (share > 1 - 1 / FAVOUR and bool(weight.min() >= FAVOUR))
        if turned and 0 < share < 1 and len(term.targets) >= ENOUGH:
            yield _favours(
                f"pos_weight is {weight.mean().item():.3g} where {percent(share)} of the targets are positive",
                "use negatives over positives as pos_weight, not positives over negatives",
            )
    elif term.form == "classes":
        counts = torch.bincount(term.targets[term.counted].cpu(), minlength=len(weight))[: len(weight)].double()
        seen = counts >= SEEN
        if seen.sum() < 2 or counts[seen].max() < FAVOUR * counts[seen].min():
            return
        logs, gains = counts[seen].log(), weight.cpu().double()[seen].clamp_min(1e-12).log()
        if gains.max() - gains.min() < math.log(FAVOUR) or not _related(logs, gains):
            return
        least, often = (int(seen.nonzero()[place, 0]) for place in (int(logs.argmin()), int(logs.argmax())))
        yield _favours(
            f"class {often}, with {int(counts[often])} labels in the first batch, has the weight"
            f" {weight[often].item():.3g}, and class {least}, with {int(counts[least])}, {weight[least].item():.3g}",
            "use one over a class's frequency as its weight, not the frequency",
        )


def _related(logs: Tensor, gains: Tensor) -> bool:
    """Whether weights rise with counts: by a correlation of 0.8, and the largest count has more than the smallest."""
    one, two = logs - logs.mean(), gains - gains.mean()
    size = (one.norm() * two.norm()).item()
    return size > 0 and (one @ two).item() / size >= RISING and bool(gains[logs.argmax()] > gains[logs.argmin()])


def _favours(text: str, advice: str) -> Finding:
    return Finding(
        "weights_favour_frequent", Status.LOOK, f"{text}: the weights favour what is frequent already", advice,
        "rare classes count as much as frequent ones", ("loss", "batches"),
    )  # fmt: skip


def _alike(labels: Tensor, batches: Batches, column: Column) -> Iterator[Finding]:
    if len(labels) >= ALIKE and bool((labels == labels[0]).all()) and (column.sure or len(batches.columns) == 2):
        yield Finding(
            "constant_targets", Status.BROKEN,
            f"all {len(labels)} labels of the first {batches.count} batches are {labels[0].item()}",
            "shuffle the examples, or look at how labels are made", "there is something to be told apart", ("batches",),
            Measure("classes with labels", 1, 1, 1),
        )  # fmt: skip


def _unseen(labels: Tensor, classes: int) -> Iterator[Finding]:
    if not 1 < classes <= CLASSES or not len(labels) or labels.min() < 0 or labels.max() >= classes:
        return
    counts = torch.bincount(labels, minlength=classes)
    seen = counts[counts > 0]
    if seen.min() < EACH or len(seen) < 2:
        return
    if not counts[0] and bool((counts[1:] > 0).all()):
        yield Finding(
            "first_class_missing", Status.LOOK,
            f"none of {len(labels)} labels is 0, and each of the classes 1 to {classes - 1} has {int(seen.min())} or"
            " more: classes are counted from 1",
            f"subtract 1 from the labels, and give the model {classes - 1} classes",
            "no score for a class that never comes", ("batches",), Measure("labels of class 0", 0),
        )  # fmt: skip
    top = int(labels.max())
    if top == 1 and classes >= FEW and counts[0]:
        yield Finding(
            "two_of_many_classes", Status.LOOK,
            f"the model has scores for {classes} classes, and all {len(labels)} labels are 0 or 1",
            "look at how labels are made: were they compared, clamped or cast to bool?",
            "the classes can be told apart", ("batches", "model"), Measure("classes with labels", 2),
        )  # fmt: skip
    elif top < classes - 1 and bool((counts[: top + 1] > 0).all()):
        yield Finding(
            "classes_too_many", Status.LOOK,
            f"the model has scores for {classes} classes, and the {len(labels)} labels are 0 to {top}",
            f"give the last layer {top + 1} outputs, or look for the labels that are missing",
            "no score for a class that never comes", ("model", "batches"),
            Measure("classes without labels", classes - 1 - top),
        )  # fmt: skip


def _ignored(labels: Tensor, term: Term, batches: Batches) -> Iterator[Finding]:
    """A class that is left out because its number is the one that does not count; padding has no inputs of its own."""
    if not 0 <= term.ignored < term.classes <= CLASSES or len(labels) < ALIKE:
        return
    counts = torch.bincount(labels.clamp(min=0), minlength=term.classes)
    others = torch.cat([counts[: term.ignored], counts[term.ignored + 1 :]])
    others = others[others > 0]
    if not len(others) or counts[term.ignored] < 0.5 * others.double().mean():
        return
    left_out = labels == term.ignored
    rows = [each.numbers for each in batches.inputs if len(each.numbers) == len(labels)]
    varied = any(bool((each[left_out] != each[left_out][:1]).any()) for each in rows)
    if varied and dependence.chance(rows, left_out.float()) == 0:
        yield Finding(
            "ignored_class", Status.LOOK,
            f"class {term.ignored}, of {int(counts[term.ignored])} of {len(labels)} labels, is the ignore_index of the"
            " loss: none of its examples counts",
            "set ignore_index to a number that is no class, such as -100", "all classes are learnt",
            ("loss", "batches"), Measure("share of ignored labels", int(counts[term.ignored]) / len(labels)),
        )  # fmt: skip


def _moved_down(labels: Tensor, term: Term, batches: Batches, column: Column) -> Iterator[Finding]:
    """A class that became the number that does not count, as where 1 is subtracted from all labels."""
    counted = labels[labels != term.ignored]
    if 0 <= term.ignored < term.classes or not 2 < term.classes <= CLASSES or not len(counted):
        return
    if counted.min() < 0 or int(counted.max()) != term.classes - 2:
        return
    counts = torch.bincount(counted, minlength=term.classes - 1)
    left_out = labels == term.ignored
    if counts.min() < EACH or left_out.sum() < 0.5 * counts.double().mean():
        return
    rows = [found for each in batches.inputs if (found := _by_label(each, column)) is not None]
    few = torch.linspace(0, len(labels) - 1, min(len(labels), dependence.EXAMPLES)).long()
    if not rows or not all(bool((each[left_out] != each[left_out][:1]).any()) for each in rows):
        return
    if dependence.chance([each[few] for each in rows], left_out[few].float()) == 0:
        yield Finding(
            "class_left_out", Status.LOOK,
            f"{percent(left_out.double().mean().item())} of the labels are {term.ignored}, which does not count, and"
            f" the model has {term.classes} classes, of which the last has no label: a class was made one that does"
            " not count",
            "leave labels as they are where 0 is a class (no reduce_zero_label)", "all classes are learnt",
            ("loss", "batches"), Measure("share of ignored labels", left_out.double().mean().item()),
        )  # fmt: skip


def _by_label(inputs: Column, targets: Column) -> Tensor | None:
    """(labels, numbers): the measured inputs at each label's place; None where there are none."""
    numbers, shape = inputs.numbers, tuple(targets.numbers.shape)
    if not inputs.continuous or len(numbers) != shape[0]:
        return None
    if len(shape) == 1:
        return numbers.reshape(len(numbers), -1).float()
    if tuple(numbers.shape[:1] + numbers.shape[2:]) == shape:
        return numbers.movedim(1, -1).reshape(-1, numbers.shape[1]).float()
    return numbers.reshape(-1, numbers.shape[-1]).float() if tuple(numbers.shape[:-1]) == shape else None


def _belonging(labels: Tensor, batches: Batches) -> Iterator[Finding]:
    """Whether labels belong to their inputs."""
    inputs = [column for column in batches.inputs if len(column.numbers) == len(labels) and column.continuous]
    if len(inputs) != 1 or inputs[0].flat.shape[1] > NUMBERS or bool((labels == labels[0]).all()):
        return
    flat, few = inputs[0].flat[:NEIGHBOURS].nan_to_num(), labels[:NEIGHBOURS]
    if differing := conflicts(flat, few):
        yield Finding(
            "conflicting_labels", Status.LOOK,
            f"{differing} of {len(few)} examples have the inputs of another and a different label",
            "look at these examples: one of the labels is wrong, or the inputs lack something",
            "the loss can fall further", ("batches",), Measure("share of conflicting labels", differing / len(few)),
        )  # fmt: skip
    own = agreement(flat, few)
    if own is None or own.errors >= BY_CHANCE:
        return
    for shift in SHIFTS:
        other = agreement(flat, few, shift)
        if other is not None and other.errors >= CLEAR:
            yield Finding(
                "misaligned", Status.BROKEN,
                f"nearest neighbours have the same label in {100 * own.share:.3g} % of examples (by chance"
                f" {100 * own.expected:.3g} %), and in {100 * other.share:.3g} % where each has the label of the"
                f" example {abs(shift)} {'after' if shift > 0 else 'before'} it",
                f"move the labels by {-shift:+d} example, so that each has its own again",
                "labels can be learned from the inputs", ("batches",), Measure("agreement of neighbours", own.share),
            )  # fmt: skip
            return
