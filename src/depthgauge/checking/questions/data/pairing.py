"""Is each output held against the target of its own example, and of another place than it sees?

An example's input is changed, and its outputs move; its target is changed, and the gradient of the outputs moves that
are held against it. Both are to be the same outputs.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from depthgauge import nested
from depthgauge.checking.answers import Finding, Kind, Measure, Status
from depthgauge.checking.questions.data.batches import targeted
from depthgauge.checking.questions.data.outputs import scored
from depthgauge.checking.questions.data.seeing import changed
from depthgauge.checking.subject import Subject
from depthgauge.checking.terms import Term
from depthgauge.checking.words import percent

EXAMPLES, ASKED = 16, 6  # of the first batch, and of them those that are changed
OWN = 0.2  # of the largest move of a gradient with an example's target, that one of its own outputs' makes: another
# number of counted places moves those of all others, but less
MOVED = 1e-5  # of the largest value: what rounding does not move

KINDS = {
    "held_against_others": Kind(
        "fault",
        "where an example's target is changed, the gradient of the outputs that move with its inputs moves by"
        f" {percent(OWN)} or less of what that of others' does, in most examples",
    ),
    "shifted_twice": Kind(
        "fault",
        "a model of sequences that sees a place and those before it is held against the token two places on",
    ),
    "unshifted_targets": Kind(
        "fault",
        "a model of sequences that sees a place and those before it is held against the very token that stands there",
    ),
}


def findings(subject: Subject) -> Iterator[Finding]:
    """Yield what is found about outputs and the targets that they are held against."""
    training, whole = subject.training, subject.seen.batch
    if isinstance(training.model, torch.jit.ScriptModule) or subject.clock.left < 12 * subject.seen.seconds:
        return  # whose calls cannot be hooked
    with training.untouched():
        training.model.eval()
        try:
            yield from list(_unshifted(subject)) or _shifted_twice(subject)
            own = _own(subject, nested.first(whole, EXAMPLES))
        except Exception:  # noqa: BLE001 - the user's code may raise anything of other numbers
            return
    if own is not None and own <= OWN:
        yield Finding(
            "held_against_others", Status.BROKEN,
            "the outputs that are held against an example's target are those of other examples: outputs and targets are"
            " in different orders",
            "put inputs and targets into the same order: shuffle, sort and reshape both alike",
            "each output is held against its own target", ("loss", "batches", "model"),
            Measure("move of the gradient of an example's own outputs, of the largest", own),
        )  # fmt: skip


def _own(subject: Subject, batch: Any) -> float | None:
    """The move of its own outputs' gradients with an example's target, of the largest; None where none shows."""
    parts, terms = dict(nested.tensors(batch)), subject.seen.graph.terms
    count = nested.rows(batch)
    targets = {place for place in parts if targeted(place, parts, terms, subject.seen.batch)}
    if not targets and subject.seen.batch is not batch:
        whole = dict(nested.tensors(subject.seen.batch))
        targets = {place for place in parts if targeted(place, whole, terms, subject.seen.batch)}
    if count is None or count < 2 * ASKED or not targets or len(targets) == len(parts):
        return None
    base = scored(subject.training, batch)
    if base is None:
        return None
    shares: list[float] = []
    for example in range(ASKED):
        inputs = scored(subject.training, _other(batch, set(parts) - targets, example))
        labels = scored(subject.training, _other(batch, targets, example))
        if inputs is None or labels is None or _moved(base[0], labels[0]).any():  # targets that the module is given
            return None
        mine, held = _moved(base[0], inputs[0]), (base[1] - labels[1]).abs()
        if mine.any() and _moved(base[1], labels[1]).any():
            shares.append((held[mine].max() / held.max()).item())
    return statistics.median(shares) if len(shares) > ASKED // 2 else None


def _moved(one: Tensor, two: Tensor) -> Tensor:
    return (one - two).abs() > MOVED * one.abs().max().clamp_min(1e-30)


def _other(batch: Any, places: set[str | None], example: int) -> Any:
    """The batch with one example's tensors replaced by those of the first that has others."""

    def replace(tensor: Tensor) -> Tensor:
        differ = (tensor != tensor[example]).reshape(len(tensor), -1).any(1).nonzero()[:, 0]
        if not len(differ):
            return tensor
        again = tensor.clone()
        again[example] = tensor[differ[0]]
        return again

    return changed(batch, places, replace)


def _unshifted(subject: Subject) -> Iterator[Finding]:
    """Whether a causal model is to say the tokens that it sees."""
    batch, terms = subject.seen.batch, subject.seen.graph.terms
    term = terms[0] if len(terms) == 1 and terms[0].form == "classes" else None
    tokens = {
        place: each
        for place, each in nested.tensors(batch)
        if each.dim() == 2 and not each.is_floating_point() and each.shape[1] > 2 and each.dtype is not torch.bool
    }
    if term is None or not tokens:
        return
    same = [
        each.detach().reshape(-1).cpu()
        for each in tokens.values()
        if each.numel() == len(term.targets)
    ]  # fmt: skip
    counted = term.counted.cpu()
    if not same or not counted.any() or any((each != term.targets.cpu())[counted].any() for each in same):
        return
    base = scored(subject.training, batch)
    last = changed(batch, set(tokens), lambda each: torch.cat([each[:, :-1], each[:, -1:].roll(1, 0)], 1))
    other = scored(subject.training, last)
    count, places = next(iter(tokens.values())).shape
    if base is None or other is None or base[0].shape[:2] != (count, places) or len(torch.unique(term.targets)) < 3:
        return
    moved = _moved(base[0], other[0]).reshape(count, places, -1).any(2)
    if moved[:, -1].any() and not moved[:, :-1].any():
        yield Finding(
            "unshifted_targets", Status.BROKEN,
            "the model sees each token and those before it, and is held against that same token: it learns to copy",
            "hold scores[:, :-1] against tokens[:, 1:]", "the model learns what comes next", ("loss", "batches"),
        )  # fmt: skip


def _shifted_twice(subject: Subject) -> Iterator[Finding]:
    """Whether a causal model is to say the token after the next one."""
    batch, terms = subject.seen.batch, subject.seen.graph.terms
    if len(terms) != 1 or terms[0].form != "classes":
        return
    for place, tokens in nested.tensors(batch):
        if tokens.dim() != 2 or tokens.is_floating_point() or tokens.shape[1] < 4 or not _two_on(tokens, terms[0]):
            continue
        base = scored(subject.training, batch)
        last = changed(batch, {place}, lambda each: torch.cat([each[:, :-1], each[:, -1:].roll(1, 0)], 1))
        other = scored(subject.training, last)
        if base is None or other is None or base[0].shape[:2] != tokens.shape:
            return
        moved = _moved(base[0], other[0]).reshape(*tokens.shape, -1).any(2)
        if moved[:, -1].any() and not moved[:, :-1].any():
            yield Finding(
                "shifted_twice", Status.BROKEN,
                "the model sees each token and those before it, and is held against the token after the next one: the"
                " labels are shifted twice",
                "hand over the tokens themselves as labels where the model shifts them", "the model learns what comes"
                " next", ("loss", "batches"),
            )  # fmt: skip
        return


def _two_on(tokens: Tensor, term: Term) -> bool:
    """Tell whether targets are the tokens two places on, and not those one place on."""
    rows, length = tokens.shape
    width = len(term.targets) // rows
    if width * rows != len(term.targets) or width not in {length, length - 1, length - 2}:
        return False
    held = term.targets.cpu().reshape(rows, width)[:, : length - 2]
    counted = held != term.ignored
    one, two = (((tokens.cpu()[:, by : by + length - 2] == held) | ~counted).all() for by in (1, 2))
    return bool(counted.any()) and bool(two) and not bool(one)
