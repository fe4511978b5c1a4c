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
from depthgauge.checking.questions.data.seeing import changed, handed
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
        "a model of sequences that sees a place and those before it is held against what stands there itself",
    ),
}


def findings(subject: Subject) -> Iterator[Finding]:
    """Yield what is found about outputs and the targets that they are held against."""
    training, whole = subject.training, subject.seen.batch
    if isinstance(training.model, torch.jit.ScriptModule) or not subject.fits(
        12, "outputs and the targets that they are held against"
    ):
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
    """Whether a causal model is to say the tokens, or numbers, that it sees."""
    batch, terms = subject.seen.batch, subject.seen.graph.terms
    term = terms[0] if len(terms) == 1 and terms[0].form in {"classes", "regression"} else None
    if term is None or (term.form == "regression" and not term.is_all_of(subject.seen.loss)):
        return
    same = [place for place, each in nested.tensors(batch) if _is_held(each, term)]
    shapes = {tuple(each.shape[:2]) for place, each in nested.tensors(batch) if place in same}
    if not same or len(shapes) > 1:
        return
    if term.form == "regression":
        given = handed(subject.training, batch)
        held = [each for place, each in nested.tensors(batch) if place in same]
        if not any(each.shape == other.shape and bool((each == other).all()) for each in given for other in held):
            return  # numbers that noise is added to
    base = scored(subject.training, batch)
    moved = [_last_moves(subject, base, place) for place in same]
    if any(moved):
        what = "token" if term.form == "classes" else "step of a sequence"
        yield Finding(
            "unshifted_targets", Status.BROKEN,
            f"the model sees each {what} and those before it, and is held against that same {what}: it learns to copy",
            "hold outputs[:, :-1] against sequences[:, 1:]", "the model learns what comes next", ("loss", "batches"),
        )  # fmt: skip


def _is_held(tensor: Tensor, term: Term) -> bool:
    """Whether sequences, with something to tell in each, are the targets of all places that count."""
    numbers = term.form == "regression"
    if tensor.dim() != 2 + numbers or tensor.shape[1] < 3 or tensor.dtype is torch.bool:
        return False
    if tensor.is_floating_point() is not numbers or tensor.numel() != len(term.targets):
        return False
    counted = torch.ones(len(term.targets), dtype=torch.bool) if numbers else term.counted.cpu()
    alike = bool((tensor.detach().reshape(-1).cpu() == term.targets.cpu())[counted].all())
    return bool(counted.any()) and alike and len(torch.unique(term.targets)) >= 3


def _last_moves(subject: Subject, base: tuple[Tensor, Tensor] | None, place: str | None) -> bool:
    """Whether another example's last place, and none before it, moves the outputs of the last place and no others."""
    batch = subject.seen.batch
    tokens = dict(nested.tensors(batch))[place]
    last = changed(batch, {place}, lambda each: torch.cat([each[:, :-1], each[:, -1:].roll(1, 0)], 1))
    other = scored(subject.training, last)
    count, places = tokens.shape[:2]
    if base is None or other is None or base[0].shape[:2] != (count, places):
        return False
    moved = _moved(base[0], other[0]).reshape(count, places, -1).any(2)
    if not moved[:, -1].any() or moved[:, :-1].any():
        return False
    if not tokens.is_floating_point():
        return True
    first = changed(batch, {place}, lambda each: torch.cat([each[:, :1].roll(1, 0), each[:, 1:]], 1))
    early = scored(subject.training, first)  # of numbers also those before it: else it is a code of each place alone
    return early is not None and bool(_moved(base[0], early[0]).reshape(count, places, -1).any(2)[:, 1:].any())


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
