"""Numbers that are not finite, too large, too small or too coarse in the formats that a training computes in."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from depthgauge import formats, nested
from depthgauge.checking.answers import Finding, Measure, Status, Tried
from depthgauge.checking.beginning import Begun
from depthgauge.checking.parameters import format_of, spelled
from depthgauge.checking.questions.precision.operators import LOSS, Seen
from depthgauge.checking.questions.precision.passes import Pass
from depthgauge.checking.questions.precision.ranges import Ranges
from depthgauge.checking.subject import Subject
from depthgauge.checking.words import percent

LARGEST = formats.get("float16").max
CLOSE = 1 / 2  # of it: 1000 batches of 10^4 numbers reach 1.3 times as far as one (sqrt(2 ln n)), and weights grow
NEAR = 1 / 16  # of the largest number: four doublings are left, as many as a first epoch often takes
MOST = 0.5  # of the gradients become 0: most of the training is gone
WRONG = 0.5  # of the gradient's norm, by which it is off: half of it is another's; rounding alone made 0.001 to 0.17
FEW = 0.01  # as `Record.loss_scale` allows of one tensor


@dataclass(frozen=True, eq=False)
class Numbers:
    """The present pass, and the same in float32.

    Attributes:
        present: as the training makes it.
        operators: what it computed in.
        exact: in float32; None where the training computes in no 16-bit format, or cannot be turned.
    """

    present: Pass
    operators: Seen
    exact: Pass | None

    @property
    def mended(self) -> bool:
        """Tell whether float32 makes finite what is not."""
        return self.exact is not None and self.exact.finite and not self.present.finite

    def tried(self) -> Tried | None:
        """Float32 as a remedy, by the loss."""
        if self.exact is None:
            return None
        return Tried("the same pass in float32", "loss", self.present.loss, self.exact.loss)


def findings(subject: Subject, numbers: Numbers, found: Ranges | None) -> list[Finding]:
    """Yield what is wrong with the numbers of the pass, the first cause alone where they are not finite."""
    guards = _lost_guards(numbers)
    if not numbers.present.finite:
        if _searching(subject, numbers):
            return [*guards, _search(numbers)]
        if any(guard.status is Status.BROKEN for guard in guards):
            return guards
        return [*guards, _not_finite(subject, numbers, found)]
    return [*guards, *(_silent(numbers) or [*_underflow(numbers), *_headroom(numbers)])]


def _silent(numbers: Numbers) -> list[Finding]:
    """A finding where an overflow is swallowed, as by a division, and the gradient is another for it."""
    origin, exact = numbers.operators.origin, numbers.exact
    if origin is None or exact is None or not exact.finite or origin.format not in ("float16", "bfloat16"):
        return []
    error = numbers.present.error(exact)
    if not error >= WRONG:
        return []
    place = _place(origin.layer)
    return [
        Finding(
            "overflow",
            Status.BROKEN,
            f"a {origin.operator} in {place} leaves {origin.format}'s range; loss and gradient are finite all the same,"
            f" and the gradient is {percent(error)} off",
            advice=f"compute {place} in float32",
            expected=f"a loss of {exact.loss:.4g} in place of {numbers.present.loss:.4g}",
            where=(origin.layer,),
            measure=Measure("error of the gradient", error, method="against the same pass in float32"),
            tried=numbers.tried(),
        )
    ]


def _lost_guards(numbers: Numbers) -> list[Finding]:
    """A finding for each layer whose guard against 0 is itself 0."""
    made = []
    for layer, lost in numbers.operators.lost.items():
        least = formats.get(lost.format).smallest_normal
        broken = lost.zeros > 0 and not numbers.present.finite
        met = f"{lost.zeros} numbers are 0 there" if lost.zeros else "none of this batch's numbers is 0 there"
        made.append(
            Finding(
                "lost_epsilon",
                Status.BROKEN if broken else Status.LOOK,
                f"in {_place(layer)} a {lost.operator} is guarded by {lost.guard:.2g}, which is 0 in {lost.format};"
                f" {met}",
                advice=f"raise the epsilon in {_place(layer)} to {least:.1e} or more, or compute it in float32",
                expected="no division by zero",
                where=(layer,),
                measure=Measure("epsilon", lost.guard, method=f"against {lost.format}'s smallest number"),
                tried=numbers.tried() if broken else None,
            )
        )
    return made


def _not_finite(subject: Subject, numbers: Numbers, found: Ranges | None) -> Finding:
    what = f"the loss is {numbers.present.loss:g}"
    if math.isfinite(numbers.present.loss):
        bad = [name for name, each in numbers.present.gradients.items() if not each.isfinite().all()]
        what = f"the loss is finite and the gradient of {bad[0]} is not"
    seen = numbers.operators
    origin = seen.origin or (seen.infinite if not math.isfinite(numbers.present.loss) else None)
    if (place := _given(subject)) is not None:
        where, cause = place
        return _broken("nonfinite", f"{what}: {cause}", "remove or replace these values", where, numbers)
    if origin is not None and numbers.mended:
        cause = f"{_place(origin.layer)} leaves {origin.format}'s range in a {origin.operator}, and float32 does not"
        advice = f"compute {_place(origin.layer)} in float32, or scale its inputs down (attention by 1/sqrt(width))"
        return _broken("overflow", f"{what}: {cause}", advice, (origin.layer,), numbers)
    if origin is not None:
        cause = f"the first value that is not finite comes of a {origin.operator} in {_place(origin.layer)}"
        advice = f"keep the inputs of the {origin.operator} in {_place(origin.layer)} where it is finite"
        return _broken("nonfinite", f"{what}: {cause}", advice, (origin.layer,), numbers)
    first = found.record.first_nonfinite() if found is not None else None
    names = tuple(name for name, each in numbers.present.gradients.items() if not each.isfinite().all())
    where = names if first is None else (first.layer or "model", *names)
    kind = "overflow" if numbers.mended else "nonfinite"
    at = f", in a {seen.backward.operator}" if seen.backward else ""
    advice = (
        "lower the loss scale" if kind == "overflow"
        else f"look for a root, a norm or a division at 0 in {_place(where[0] if where else LOSS)}, and add an epsilon"
    )  # fmt: skip
    return _broken(kind, f"{what}: it begins in the backward pass of {_place(where[0] if where else LOSS)}{at}", advice,
                   where or (LOSS,), numbers)  # fmt: skip


def _broken(kind: str, text: str, advice: str, where: tuple[str, ...], numbers: Numbers) -> Finding:
    mended = numbers.mended and numbers.exact is not None
    expected = f"a finite loss: {numbers.exact.loss:.4g} in float32" if mended and numbers.exact else "a finite loss"
    bad = sum(not bool(each.isfinite().all()) for each in numbers.present.gradients.values())
    return Finding(
        kind, Status.BROKEN, text, advice, expected, where,
        Measure("parameters whose gradient is not finite", bad, method="one pass at the weights as they are"),
        numbers.tried() if mended else None,
    )  # fmt: skip


def _given(subject: Subject) -> tuple[tuple[str, ...], str] | None:
    """Where the inputs or the weights hold what is not finite, and that in words."""
    for _, each in nested.tensors(subject.seen.batch):
        if each.is_floating_point() and (each.isnan() | each.isposinf()).any():
            count = int((each.isnan() | each.isposinf()).sum())
            return ("batches",), f"{count} of {each.numel()} numbers of an input are NaN or infinite"
    named = [
        name for name, each in subject.training.model.named_parameters()
        if each.is_floating_point() and not each.isfinite().all()
    ]  # fmt: skip
    return (tuple(named), f"the weights of {named[0]} are not finite") if named else None


def _searching(subject: Subject, numbers: Numbers) -> bool:
    """Whether a loss scaler is looking for its scale: gradients overflow, and the steps go on with finite losses."""
    begun = subject.begun
    if begun is None or not math.isfinite(numbers.present.loss) or "float16" not in numbers.operators.made:
        return False
    return numbers.mended and begun.steps > 1 and all(map(math.isfinite, (*begun.losses, *begun.after)))


def _search(numbers: Numbers) -> Finding:
    return Finding(
        "scale_search",
        Status.LOOK,
        "gradients overflow float16 in the first step and later ones go on: a loss scaler lowers its scale",
        advice="start GradScaler with a lower init_scale",
        expected="no step that is skipped",
        where=("loss",),
        tried=numbers.tried(),
    )


def later(numbers: Numbers, begun: Begun, wide: float) -> list[Finding]:
    """The finding that a later step overflows.

    Args:
        numbers: of the first pass, which is finite.
        begun: steps of which one is not.
        wide: how far the loss falls in as many steps with all numbers in float32.
    """
    first = begun.record.first_nonfinite()
    largest = numbers.operators.largest
    layer = (first.layer if first else max(largest, key=largest.__getitem__, default="")) or "model"
    step = next((step for step, loss in enumerate(begun.losses) if not math.isfinite(loss)), begun.steps)
    text = (
        f"the loss is not finite after {step} steps in float16, and in float32 it is: {_place(layer)} leaves its range"
    )
    fell = f"a loss that changes by {-wide:.2g} in {begun.steps} steps, as in float32"
    return [Finding("overflow", Status.BROKEN, text, f"compute {_place(layer)} in float32 or bfloat16", fell, (layer,))]


def _underflow(numbers: Numbers) -> list[Finding]:
    if numbers.exact is None or "float16" not in (*numbers.operators.made, *_formats(numbers.present)):
        return []
    lost: dict[str, float] = {}
    zeros = total = 0
    for name, exact in numbers.exact.gradients.items():
        nonzero = exact != 0
        here = numbers.present.gradients.get(name)
        gone = int((nonzero if here is None else nonzero & (here == 0)).sum())
        zeros, total = zeros + gone, total + int(nonzero.sum())
        if gone > FEW * int(nonzero.sum()):
            lost[name] = gone / int(nonzero.sum())
    share = zeros / max(total, 1)
    if not lost or share < FEW:
        return []
    worst = max(lost, key=lost.__getitem__)
    return [
        Finding(
            "underflow" if share >= MOST else "small_gradients",
            Status.BROKEN if share >= MOST else Status.LOOK,
            f"{percent(share)} of the gradients become 0 in float16, {percent(lost[worst])} of those of {worst}",
            advice="scale the loss (torch.amp.GradScaler), or use bfloat16",
            expected="gradients as in float32",
            where=tuple(lost),
            measure=Measure("gradients that become 0", share, method="those that float32 holds in the same pass"),
        )
    ]


def _formats(made: Pass) -> set[str]:
    return {format_of(each) for each in made.gradients.values()}


def _headroom(numbers: Numbers) -> list[Finding]:
    largest = numbers.operators.largest
    near = {layer: top for layer, top in largest.items() if top > NEAR * LARGEST}
    if not near:
        return []
    worst = max(near, key=near.__getitem__)
    return [
        Finding(
            "near_overflow" if near[worst] > CLOSE * LARGEST else "headroom",
            Status.LOOK,
            f"float16 numbers in {_place(worst)} reach {near[worst]:.4g}, {percent(near[worst] / LARGEST)} of the"
            " largest that the format holds",
            advice=f"compute {_place(worst)} in float32 or bfloat16",
            expected="room for numbers that grow in training",
            where=tuple(near),
            measure=Measure("largest float16 number", near[worst], method="of all operators' results in one pass"),
        )
    ]


def rounding(errors: Any, noise: float, fmt: str, layers: tuple[str, ...]) -> list[Finding]:
    """A finding where rounding changes the gradient by more than the draw of the batch does.

    Args:
        errors: relative error of the gradient in the present format, an `Estimate`.
        noise: relative spread of the gradient over batches; NaN where there is one batch.
        fmt: the format.
        layers: those with the largest errors of their own, the worst first; none where that was not measured.
    """
    if not (errors.value > noise and errors.value > FEW):
        return []
    return [
        Finding(
            "rounding",
            Status.LOOK,
            f"{fmt} changes the gradient by {percent(errors.value)}, more than another batch does ({percent(noise)})",
            advice=f"keep {', '.join(map(_place, layers)) or 'the loss and what cancels in it'} in float32",
            expected="steps whose noise is that of the batch",
            where=layers or ("loss",),
            measure=Measure(
                f"error of the gradient in {fmt}", errors.value, errors.low, errors.high, method=errors.method
            ),
        )
    ]


def _place(layer: str) -> str:
    return {"loss": "the loss", "model": "the model"}.get(layer, f"`{layer}`")


def dtypes(subject: Subject) -> tuple[str, ...]:
    """Formats of the floating-point weights, the most numbers first."""
    count: dict[torch.dtype, int] = {}
    for each in subject.training.model.parameters():
        if each.is_floating_point():
            count[each.dtype] = count.get(each.dtype, 0) + each.numel()
    return tuple(spelled(each) for each in sorted(count, key=lambda each: -count[each]))
