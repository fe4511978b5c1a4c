"""The loss functions that a loss calls, with what they are given, held to what they take."""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from depthgauge import nested
from depthgauge.checking.answers import Finding, Kind, Measure, Status
from depthgauge.checking.questions.data.batches import binary, flags
from depthgauge.checking.questions.data.outputs import maker
from depthgauge.checking.subject import Subject
from depthgauge.checking.words import percent
from depthgauge.restoring import random_states_kept

SMOOTH = 0.8  # of a label's weight, that goes to all classes: beyond, the label is a fifth of what is learnt
SUM = 0.05  # |ln of the sum of probabilities|, as of nll_loss
SEVERAL = 0.1  # of the rows with several labels, from which on rows are not class probabilities
TOO_SHORT = 0.1  # of the sequences: so many that cannot be aligned are no chance
_OF_PAIRS = ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss")
_STEPS = frozenset({"Round", "Floor", "Ceil", "Trunc", "Sign"})
_OF_SIGNS = ("soft_margin_loss", "hinge_embedding_loss", "margin_ranking_loss", "cosine_embedding_loss")
_ABOVE_ZERO = frozenset({"Exp", "Softplus"})
_NAMES = frozenset(
    {"kl_div", "cross_entropy", "binary_cross_entropy_with_logits", "nll_loss", "ctc_loss", "poisson_nll_loss"}
    | {*_OF_PAIRS, *_OF_SIGNS}
)

KINDS = {
    "divergence_of_others": Kind(
        "fault", f"kl_div gets no (log-)probabilities: |ln of their sum| is above {SUM}"
    ),
    "smoothed_away": Kind("fault", f"label_smoothing is above {SMOOTH}: hardly anything of the labels is left"),
    "labels_as_probabilities": Kind(
        "fault", f"cross-entropy gets rows with several ones as probabilities, {SEVERAL:.0%} of them or more"
    ),
    "numbers_for_classes": Kind(
        "fault", "a square error holds the scores of all classes against one class number, repeated"
    ),
    "one_answer_for_all": Kind(
        "fault",
        f"{', '.join(_OF_PAIRS)} holds one row of outputs, repeated, against each of the batch's targets, and the model"
        " was given as many examples as there are targets: its rows were put into one",
    ),
    "too_few_frames": Kind(
        "fault",
        f"ctc_loss gets {TOO_SHORT:.0%} or more of its sequences with fewer frames than their symbols take (one each,"
        " and one between two equal ones): their loss is infinite, and 0 with zero_infinity",
    ),
    "blank_as_symbol": Kind("fault", "symbols that ctc_loss is to align are the number of its blank"),
    "labels_without_sign": Kind(
        "fault", f"a loss that takes labels of -1 and 1 ({', '.join(_OF_SIGNS)}) gets 0 and 1: those of 0 hardly count"
    ),
    "exponential_twice": Kind(
        "fault", "poisson_nll_loss takes logarithms of rates (log_input) and gets numbers that were made to be above 0"
    ),
    "cut_off_term": Kind(
        "fault", "a loss function's value is part of the loss and has no gradient: its input is detached, or rounded"
    ),
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Called:
    """One call of a loss function.

    Attributes:
        name: of torch.nn.functional.
        given: its arguments by name.
        value: what it returned.
        tracked: whether gradients were enabled.
    """

    name: str
    given: dict[str, Any]
    value: Tensor
    tracked: bool


class _Watch(TorchFunctionMode):
    """Keep the calls of loss functions, and add to the value of one of them."""

    def __init__(self, moved: int = -1, by: float = 0.0) -> None:
        super().__init__()
        self.calls: list[Called] = []
        self._moved, self._by = moved, by

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        value = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        own: Any = getattr(functional, name, None)
        if name in _NAMES and func is own and isinstance(value, Tensor):
            with suppress(TypeError):
                given = inspect.signature(own).bind(*args, **(kwargs or {}))
                given.apply_defaults()
                self.calls.append(Called(name, dict(given.arguments), value, torch.is_grad_enabled()))
                if len(self.calls) - 1 == self._moved:
                    return value + self._by
        return value


def watched(subject: Subject, moved: int = -1, by: float = 0.0) -> tuple[list[Called], float]:
    """The calls within the loss of the first batch, and the loss."""
    with random_states_kept(), _Watch(moved, by) as watch:
        loss = subject.training.value(subject.seen.batch).item()
    return watch.calls, loss


def findings(subject: Subject) -> Iterator[Finding]:
    """Yield what loss functions get that they do not take."""
    if not subject.fits(4, "what loss functions get"):
        return
    with subject.training.untouched():
        calls, loss = watched(subject)
        for place, call in enumerate(calls):
            found = list(_wrong(subject, call)) or list(_cut_off(subject, calls, place, loss))
            if found:
                yield found[0]
                return


def _wrong(subject: Subject, call: Called) -> Iterator[Finding]:
    if call.name == "ctc_loss":
        yield from _unaligned(call)
        yield from _blank(call)
        return
    if call.name in _OF_SIGNS:
        yield from _signs(call)
        return
    scores, targets = call.given["input"].detach(), call.given["target"].detach()
    if not call.value.requires_grad:
        return
    if (how := maker(call.given["input"])) in _STEPS:
        yield Finding(
            "cut_off_term", Status.BROKEN,
            f"{call.name} gets numbers that were rounded ({how.lower()}), which has no gradient: nothing"
            " learns from it",
            "hand over the numbers before they are rounded", "the term moves the model", ("loss",),
        )  # fmt: skip
    if call.name == "poisson_nll_loss":
        yield from _rates(call)
    elif call.name == "kl_div":
        yield from _divergence(scores, targets, log=bool(call.given["log_target"]))
    elif call.name == "cross_entropy":
        yield from _smoothed(call)
        if targets.is_floating_point():
            yield from _several(subject, scores, targets)
    elif call.name in _OF_PAIRS:
        yield from _numbers(subject, scores, targets)
        yield from _one_for_all(subject, scores, targets)


def _signs(call: Called) -> Iterator[Finding]:
    """Labels of 0 and 1 for a loss whose labels are signs."""
    labels = call.given["target"].detach()
    if binary(labels):
        share = (labels == 0).float().mean().item()
        yield Finding(
            "labels_without_sign", Status.BROKEN,
            f"{call.name} takes labels of -1 and 1, and gets 0 and 1: the {percent(share)} of 0 are not told apart"
            " from anything",
            "hand over 2 * labels - 1", "both labels count", ("loss", "batches"),
            Measure("share of labels of 0", share),
        )  # fmt: skip


def _rates(call: Called) -> Iterator[Finding]:
    """Rates where their logarithms are asked for."""
    made = maker(call.given["input"])
    if call.given["log_input"] and made in _ABOVE_ZERO and bool((call.given["input"].detach() >= 0).all()):
        yield Finding(
            "exponential_twice", Status.BROKEN,
            f"poisson_nll_loss takes the logarithm of a rate, and gets the output of {made.lower()}, which is never"
            " below 0: the rate that it makes of it, its exponential, is never below 1",
            "hand over the numbers before that, or set log_input=False", "rates can be what the targets are",
            ("loss", "model"),
        )  # fmt: skip


def _divergence(scores: Tensor, targets: Tensor, *, log: bool) -> Iterator[Finding]:
    own, other = _off(scores), _off(targets if log else targets.clamp(min=0).log())
    off = own if own > SUM else other
    if not off > SUM:
        return
    takes = "log-probabilities first" if own > SUM else f"{'log-' if log else ''}probabilities second"
    wrong = scores if own > SUM else targets
    yield Finding(
        "divergence_of_others", Status.BROKEN,
        f"kl_div takes {takes} and gets numbers from {wrong.min().item():.3g} to {wrong.max().item():.3g}, whose"
        f" probabilities add up to something off by {off:.3g} in ln: what it returns is no divergence",
        "hand over torch.log_softmax(scores, -1) first, and a softmax second (log_target=True: its logarithm)",
        "the loss is 0 where both distributions agree, and nowhere below", ("loss",),
        Measure("ln of the sum of probabilities", off),
    )  # fmt: skip


def _off(logs: Tensor) -> float:
    """|ln of the sum of probabilities| along the dimensions, of the examples' others, along which it is least."""
    if logs.dim() < 2:
        return abs(torch.logsumexp(logs.double(), 0).item()) if logs.dim() else 0.0
    rest = range(1, logs.dim())
    ways = (way for count in rest for way in itertools.combinations(rest, count))
    return min(torch.logsumexp(logs.double(), way).abs().nan_to_num(posinf=9.0).median().item() for way in ways)


def _smoothed(call: Called) -> Iterator[Finding]:
    share = call.given.get("label_smoothing", 0.0)
    if share > SMOOTH:
        yield Finding(
            "smoothed_away", Status.BROKEN,
            f"label_smoothing={share:g} gives {share:.0%} of each label to all classes alike: hardly anything"
            " is left of it",
            "set label_smoothing to 0.1 or"
            " less", "scores tell the labels", ("loss",), Measure("label smoothing", share),
        )  # fmt: skip


def _several(subject: Subject, scores: Tensor, targets: Tensor) -> Iterator[Finding]:
    if targets.dim() != 2 or targets.shape[0] == targets.shape[1] or not _is_given(subject, targets):
        return
    share = ((targets == 1).sum(1) > 1).float().mean().item()
    if flags(targets) and share >= SEVERAL:
        yield Finding(
            "labels_as_probabilities", Status.LOOK,
            f"cross-entropy lets the {scores.shape[1]} classes compete for each example, and {share:.0%} of"
            " the examples have"
            " several labels, which are no probabilities",
            "use binary_cross_entropy_with_logits, a yes or no for each"
            " label", "several labels can be told at once", ("loss",),
            Measure("share of examples with several labels", share),
        )  # fmt: skip


def _is_given(subject: Subject, targets: Tensor) -> bool:
    return any(
        each.numel() == targets.numel() and bool((each.reshape(-1) == targets.reshape(-1)).all())
        for _, each in nested.tensors(subject.seen.batch)
    )


def _symbols(call: Called) -> list[Tensor]:
    """Symbols of each sequence, without what fills it up."""
    targets, counts = call.given["targets"].detach(), torch.as_tensor(call.given["target_lengths"]).reshape(-1).tolist()
    rows = targets if targets.dim() == 2 else targets.split(counts)
    return [row[:count] for row, count in zip(rows, counts, strict=True)]


def _blank(call: Called) -> Iterator[Finding]:
    """Symbols that are the blank, which no path tells from a pause."""
    blank, symbols = call.given["blank"], torch.cat(_symbols(call))
    share = (symbols == blank).float().mean().item() if len(symbols) else 0.0
    if share > 0:
        yield Finding(
            "blank_as_symbol", Status.BROKEN,
            f"{percent(share)} of the symbols that ctc_loss is to align are {blank}, which is its blank: they are never"
            " read out",
            "count symbols from 1, or give the blank another number (blank=) and the model an output for it",
            "every symbol can be told from a pause", ("loss", "batches"),
            Measure("share of symbols that are the blank", share),
        )  # fmt: skip


def _unaligned(call: Called) -> Iterator[Finding]:
    """Sequences that are shorter than what is to be aligned with them."""
    frames = torch.as_tensor(call.given["input_lengths"]).reshape(-1).cpu()
    needed = torch.tensor([len(row) + int((row.diff() == 0).sum()) for row in _symbols(call)])
    share = (frames < needed).float().mean().item()
    if share >= TOO_SHORT:
        yield Finding(
            "too_few_frames", Status.BROKEN if share > 0.5 else Status.LOOK,
            f"{share:.0%} of the sequences have fewer frames than ctc_loss needs to align their symbols (up to"
            f" {int(frames.max())} frames, {int(needed.max())} needed): nothing is learnt from them",
            "let the model keep more frames (smaller strides, less pooling), or leave out sequences that are too short",
            "every sequence has a finite loss", ("loss", "model", "batches"),
            Measure("share of sequences that cannot be aligned", share),
        )  # fmt: skip


def _numbers(subject: Subject, scores: Tensor, targets: Tensor) -> Iterator[Finding]:
    if scores.dim() != 2 or targets.dim() != 2 or scores.shape[1] < 3:
        return
    repeated = targets.shape[1] == 1 or targets.stride(1) == 0
    whole = bool((targets == targets.round()).all()) and targets.min() >= 0 and targets.max() < scores.shape[1]
    if not repeated or not whole or not len(set(targets[:, 0].tolist())) > 2:
        return
    integers = [each for _, each in nested.tensors(subject.seen.batch) if not each.is_floating_point()]
    if any(each.numel() == len(targets) and bool((each.reshape(-1) == targets[:, 0]).all()) for each in integers):
        yield Finding(
            "numbers_for_classes", Status.BROKEN,
            f"all {scores.shape[1]} outputs of an example are held against its class number itself, as if it"
            " were measured",
            "use cross_entropy(scores, labels), or one-hot rows", "each class has a score of its own", ("loss",),
        )  # fmt: skip


def _one_for_all(subject: Subject, scores: Tensor, targets: Tensor) -> Iterator[Finding]:
    """A row of outputs that all targets of a batch are held against."""
    count = nested.rows(subject.seen.batch) or 0
    if scores.shape[:1] != (1,) or targets.shape[:1] != (count,) or count < 2 or scores.shape[1:] != targets.shape[1:]:
        return
    if not _is_given(subject, targets):
        return
    yield Finding(
        "one_answer_for_all", Status.BROKEN,
        f"one row of outputs is held against the targets of all {count} examples: what the model was given as"
        f" {count} rows, it has put into one",
        "let reshapes keep the first dimension: x.flatten(1), or x.view(len(x), -1)",
        "each example has an answer of its own", ("loss", "model"), Measure("rows of outputs", 1.0),
    )  # fmt: skip


def _cut_off(subject: Subject, calls: list[Called], place: int, loss: float) -> Iterator[Finding]:
    """A term that is part of the loss, and has no gradient."""
    call = calls[place]
    if call.value.requires_grad or not call.tracked or call.value.numel() != 1 or not math.isfinite(loss):
        return
    moves = []
    for by in (1.0, 2.0):
        again, value = watched(subject, place, by)
        if len(again) != len(calls):
            return
        moves.append(value - loss)
    if abs(moves[0]) > 1e-3 and math.isclose(moves[1], 2 * moves[0], rel_tol=1e-3):
        yield Finding(
            "cut_off_term", Status.BROKEN,
            f"the value of {call.name}, {call.value.item():.3g}, is added to the loss and has no gradient:"
            " nothing learns from it",
            "leave out what cuts its input off (.detach(), .data, torch.no_grad(), a rounding, an argmax)",
            "the term moves the model", ("loss",), Measure("value of the term", call.value.item()),
        )  # fmt: skip
