"""Padding: which places of sequences are filled up, and whether the loss scores them or the model sees them."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from depthgauge import nested
from depthgauge.checking.answers import Finding, Kind, Measure, Status
from depthgauge.checking.questions.data import reading
from depthgauge.checking.questions.data.batches import flags, targeted
from depthgauge.checking.questions.data.outputs import scored
from depthgauge.checking.questions.data.seeing import EQUAL, changed, loss_of
from depthgauge.checking.subject import Subject
from depthgauge.checking.words import percent
from depthgauge.seeding import Purpose, generator
from depthgauge.workload import Training

LEAST_PLACES = 4  # of a sequence
ROWS = 0.3  # of sequences, that end in padding, of three lengths or more: what ends all of them is no padding
ELSEWHERE = 0.01  # of the other places, that may hold the number which pads
KNOWN = 2  # places that end a sequence, as a rule, with a token that is padding for sure
SCORED = 0.2  # of the scored places, that are padding within padding
BEFORE = 5  # tokens that padding follows, and a quarter of all
HARDLY = 0.02  # of the places of sequences themselves, that are scored where padding alone is

KINDS = {
    **reading.KINDS,
    "padding_scored": Kind(
        "fault",
        f"{percent(SCORED)} or more of the places that the loss scores are padding after padding: the model learns to"
        " say padding",
    ),
    "only_padding_scored": Kind("fault", "the loss scores padding, and hardly a place of the sequences themselves"),
    "mask_turned": Kind(
        "fault",
        "other numbers in padding change the loss, and others in the sequences themselves do not, or a mask beside them"
        " changes nothing",
    ),
}


@dataclass(frozen=True, eq=False)
class Padded:
    """Sequences of unequal lengths in one tensor.

    Attributes:
        place: of the tensor in the batch.
        padding: (examples, places), true where there is none of the sequence.
    """

    place: str | None
    padding: Tensor

    @property
    def within(self) -> Tensor:
        """Padding whose neighbours on both sides are padding, or the end: what a shift by one place does not move."""
        return _within(self.padding)


def _within(places: Tensor) -> Tensor:
    before = nn.functional.pad(places[:, :-1], (1, 0), value=True)
    after = nn.functional.pad(places[:, 1:], (0, 1), value=True)
    return places & before & after


def findings(subject: Subject) -> Iterator[Finding]:
    """Yield what is found about padding in the first batch."""
    batch = subject.seen.batch
    known = fillers(subject.training.model)
    parts, terms = dict(nested.tensors(batch)), subject.seen.graph.terms
    found = [each for place, tensor in parts.items() if (each := padded(place, tensor, known)) is not None]
    found.sort(key=lambda each: not targeted(each.place, parts, terms, batch))  # of two sides the one that is scored
    if not found or not subject.fits(8, "padding"):
        return
    with subject.training.untouched():
        subject.training.model.eval()
        counted = _scored(subject.training, batch, found[0])
        yield from () if counted is None else _told(found[0], counted)
        inputs = [each for each in found if not targeted(each.place, parts, terms, batch)]
        if inputs and any(targeted(place, parts, terms, batch) for place in parts):  # else tokens are targets, too
            mistaken = list(_seen(subject.training, batch, inputs))
            yield from mistaken or reading.findings(subject, inputs[0].place, inputs[0].padding)


def fillers(model: nn.Module) -> frozenset[int]:
    """The tokens that a model itself names as padding: its configuration's, an embedding's `padding_idx`."""
    named = [getattr(getattr(model, "config", None), "pad_token_id", None)]
    named += [getattr(each, "padding_idx", None) for each in model.modules()]
    return frozenset(each for each in named if isinstance(each, int) and each >= 0)


def padded(place: str | None, tensor: Tensor, known: Collection[int] = ()) -> Padded | None:
    """The padding at the end of sequences, or at their beginning: tokens, rows of zeros; None where there is none.

    Args:
        place: of the tensor in the batch.
        tensor: (examples, places), or (examples, places, numbers).
        known: tokens that are padding for sure, also where all sequences are as long.
    """
    if tensor.layout is not torch.strided or tensor.is_nested or tensor.dim() not in {2, 3} or tensor.is_complex():
        return None
    if tensor.dim() == 2 and (tensor.is_floating_point() or flags(tensor)):
        return None
    if min(tensor.shape) < 1 or tensor.shape[1] < LEAST_PLACES or len(tensor) < LEAST_PLACES:
        return None
    rows = tensor.detach().cpu()
    for turned in (rows, rows.flip(1)):
        filler = turned[:, -1].mode(0).values if rows.dim() == 2 else torch.zeros_like(turned[0, 0])
        is_filler = turned == filler if rows.dim() == 2 else (turned == filler).all(-1)
        run = is_filler.flip(1).long().cumprod(1).flip(1).bool()
        lengths = run.sum(1)
        others = (is_filler & ~run).sum().item() / max(1, int((~run).sum()))
        sure = rows.dim() == 2 and int(filler) in known and int(lengths.float().median()) >= KNOWN
        varied = len(torch.unique(lengths)) >= 3 or (sure and not bool((lengths == rows.shape[1]).all()))
        found = (lengths > 0).float().mean() >= ROWS and varied and others <= ELSEWHERE
        if found and (sure or rows.dim() == 3 or _fills(turned, run)):
            return Padded(place, run if turned is rows else run.flip(1))
    return None


def _fills(tokens: Tensor, run: Tensor) -> bool:
    """Whether a token at the end is one that fills up: the least or largest, after any other or always the same.

    A token that follows few others and then stays is one of the language.
    """
    filler = tokens[run][0]
    before = torch.unique(tokens[:, :-1][run[:, 1:] & ~run[:, :-1]])
    ends = bool(filler == tokens.min()) or bool(filler == tokens.max())
    return ends and (len(before) == 1 or len(before) >= max(BEFORE, len(torch.unique(tokens)) / 4))


def _scored(training: Training, batch: Any, found: Padded) -> Tensor | None:
    """(examples, places): where the model's output has a gradient; None where it has no place for each of them."""
    if isinstance(training.model, torch.jit.ScriptModule):  # whose calls cannot be hooked
        return None
    try:
        outputs = scored(training, batch)
    except Exception:  # noqa: BLE001 - an output that is no tensor of scores, or a pass that asks for training mode
        return None
    if outputs is None:
        return None
    count, places = found.padding.shape
    moved = outputs[1].abs().cpu()
    if moved.dim() == 3 and moved.shape[1] not in {places, places - 1} and moved.shape[2] in {places, places - 1}:
        moved = moved.transpose(1, 2)
    if moved.dim() < 2 or len(moved) != count or moved.shape[1] not in {places, places - 1}:
        return None
    has = moved.reshape(count, moved.shape[1], -1).sum(2) > 0
    return nn.functional.pad(has, (0, places - has.shape[1]))


def _told(found: Padded, scored: Tensor) -> Iterator[Finding]:
    within, own = found.within, _within(~found.padding)
    all_scored = int(scored.sum())
    if not all_scored:
        return
    share = int((scored & within).sum()) / all_scored
    measure = Measure("share of scored places that are padding", share, method="gradient of the outputs, first batch")
    if (scored & found.padding).any() and (scored & own).sum() < HARDLY * own.sum():
        yield Finding(
            "only_padding_scored", Status.BROKEN,
            f"the loss scores {int((scored & found.padding).sum())} places of padding in the first batch and"
            f" {int((scored & own).sum())} of {int(own.sum())} within sequences: is the mask the wrong way round?",
            "score the places that are no padding: labels of -100, or a mask of 0, where padding is",
            "the model learns what follows what", ("batches", "loss"), measure,
        )  # fmt: skip
    elif share >= SCORED and (scored & own).any():
        yield Finding(
            "padding_scored", Status.LOOK,
            f"{percent(share)} of the places that the loss scores are padding: the model learns to say padding after"
            " padding",
            "give the loss the number that pads as ignore_index, or labels of -100 where padding is",
            "the loss is that of the sequences", ("batches", "loss"), measure,
        )  # fmt: skip


def _seen(training: Training, batch: Any, found: Sequence[Padded]) -> Iterator[Finding]:
    """Whether a mask does what it is for: padding makes no difference, and sequences do."""
    masks = {
        place
        for place, tensor in nested.tensors(batch)
        if any(_masks(tensor, each.padding) for each in found)
    }  # fmt: skip
    if not masks:
        return
    paddings = {each.place: each.padding for each in found}
    try:
        loss = loss_of(training, batch)
        padding = loss_of(training, _exchanged(batch, paddings))
        own = loss_of(training, _exchanged(batch, {place: ~each for place, each in paddings.items()}))
        whole = loss_of(training, changed(batch, masks, torch.ones_like))
    except Exception:  # noqa: BLE001 - the user's code may raise of other numbers
        return
    if not math.isfinite(loss + padding + own + whole) or _same(padding, loss):
        return
    if _same(own, loss) or _same(whole, loss):
        which = sorted(f"`{each}`" if not str(each).isdecimal() else f"batch[{each}]" for each in masks)
        nothing = "other tokens in the sequences themselves do not" if _same(own, loss) else "the mask changes nothing"
        yield Finding(
            "mask_turned", Status.BROKEN if _same(own, loss) else Status.LOOK,
            f"other numbers where there is padding change the loss, and {nothing}: {', '.join(which)} is not used, or"
            " the wrong way round",
            "hand the mask on to the attention or the average; torch's key_padding_mask is true where padding is",
            "the model sees the sequences, and not what fills them up", ("batches", "model", "loss"),
        )  # fmt: skip


def _masks(tensor: Tensor, padding: Tensor) -> bool:
    """Whether a tensor is flags that say where padding is, or where it is not."""
    if tensor.shape != padding.shape or not flags(tensor):
        return False
    said = tensor.detach().cpu().bool()
    return torch.equal(said, padding) or torch.equal(said, ~padding)


def _exchanged(batch: Any, where: dict[str | None, Tensor]) -> Any:
    """The batch with other numbers of its own at these places."""
    order = iter([place for place, _ in nested.tensors(batch)])

    def exchange(tensor: Tensor) -> Tensor:
        places = where.get(next(order))
        if places is None:
            return tensor
        kept, there = tensor.detach().clone(), places.to(tensor.device)
        pool = tensor.reshape(-1, *tensor.shape[2:])
        drawn = torch.randint(len(pool), (int(there.sum()),), generator=generator(0, Purpose.OPERANDS))
        kept[there] = pool[drawn.to(tensor.device)]
        return kept

    return nested.mapped(batch, exchange)


def _same(one: float, two: float) -> bool:
    return abs(one - two) <= EQUAL * max(abs(two), 1e-12)
