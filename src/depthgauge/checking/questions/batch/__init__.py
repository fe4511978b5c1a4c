"""Is the batch size right?

The gradient noise scale says from how many examples on a larger batch hardly saves steps. Beside it stands what the
batches themselves show: whether they differ, whether they are shuffled, and whether they are enough for batch
normalization.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from depthgauge import nested
from depthgauge.checking.answers import Answer, Finding, Kind, Measure, Status
from depthgauge.checking.question import Question
from depthgauge.checking.questions.batch import loader, norms
from depthgauge.checking.questions.batch.figure import draw
from depthgauge.checking.questions.batch.scaling import Scales, scales
from depthgauge.checking.subject import Subject
from depthgauge.checking.words import percent
from depthgauge.noise import NoiseScale
from depthgauge.planning.along import relative_steps

LOOKED_AT = 16  # batches
LARGE = 10.0  # times the upper end of the noise scale: half the batch then takes a tenth more steps
POWERS = range(-2, 5)  # of two: batch sizes that are planned, around the present one
_LINEAR = (torch.optim.SGD, torch.optim.ASGD)
_ROOT = (
    torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam, torch.optim.RAdam, torch.optim.Adamax, torch.optim.RMSprop,
    torch.optim.Adagrad,
)  # fmt: skip

KINDS = {
    **loader.KINDS,
    **norms.KINDS,
    "large_batch": Kind(
        "opportunity",
        f"the batch is more than {LARGE:.0f} times the upper end of the noise scale's interval, so that half of"
        f" it takes a"
        " tenth more steps at most (McCandlish et al. 2018, arXiv:1812.06162); told, and the question fine, as"
        " the scale grows while a training goes on",
    ),
}


def ask(subject: Subject) -> Answer:
    """Answer it."""
    training = subject.training
    batches = subject.batches(LOOKED_AT)
    findings = subject.found
    findings += loader.read(batches, training.batches)
    if len(batches) == LOOKED_AT and not findings and _one_class(batches):
        findings.extend(loader.read(subject.batches(103), training.batches))
    if any(finding.status is Status.BROKEN for finding in findings):  # such batches show no draw of the data
        return _answer(subject, findings, Scales(why="such batches do not show it"))
    normed = list(norms.read(training, subject.seen.batch, training.batches))
    findings.extend(normed)
    present = subject.seen.examples
    if present is None:
        why = f"the batch ({nested.describe(batches[0])}) has no dimension of examples, so that its size means nothing"
        return _answer(subject, findings, Scales(why=why))
    if not math.isfinite(subject.seen.loss):
        return _answer(
            subject, findings, Scales(why=f"the loss is {subject.seen.loss}: there is no gradient to be judged")
        )
    found = scales(
        training,
        batches,
        subject.seen.seconds,
        subject.step,
        lambda: subject.clock.left,
        mixed=bool(norms.normalizes(training)),
    )
    if found.last is not None and not normed:  # which asks for more examples, not for fewer
        findings.extend(_large(found.last, found.steps, present))
    return _answer(subject, findings, found)


def _one_class(batches: list[Any]) -> bool:
    columns = [labels for batch in batches if (labels := loader.labels_of(batch)) is not None]
    return bool(columns) and len(torch.unique(torch.cat(columns))) == 1


def _large(scale: NoiseScale, steps: int, present: int) -> list[Finding]:
    if not 0 < scale.high < present / LARGE:
        return []
    more = relative_steps(present // 2, present, scale.high) - 1
    return [
        Finding(
            "large_batch", Status.FINE,  # for the scale of the first steps is the smallest

            f"a batch of {present} examples is {present / scale.high:.0f} times the gradient noise scale or more,"
            f" {scale.value:.3g} examples ({scale.low:.3g} to {scale.high:.3g}) {_when(steps)}: most of it is"
            f" spent on what"
            " fewer examples show",
            f"halve the batch to {present // 2} until the noise scale has"
            f" grown", f"half of the examples a step, and up to"
            f" {percent(more)} more steps", ("batches",), _measure(scale, steps),
        )
    ]  # fmt: skip


def _when(steps: int) -> str:
    return f"after {steps} steps" if steps else "at the weights as they are"


def _measure(scale: NoiseScale, steps: int) -> Measure:
    return Measure(
        "gradient noise scale", _seen(scale), scale.low, scale.high, "examples", f"{scale.method}; {_when(steps)}"
    )


def _seen(scale: NoiseScale) -> float:
    """The scale, infinite where no signal was found."""
    return scale.value if scale.value >= 0 else math.inf


def _power(optimizer: Any) -> float | None:
    """By which the rate follows the steps' worth: 1 for SGD, 1/2 for Adam and its kin; None where it is not known."""
    if optimizer is None or isinstance(optimizer, _LINEAR):
        return 1.0
    return 0.5 if isinstance(optimizer, _ROOT) else None


def _answer(subject: Subject, findings: list[Finding], found: Scales) -> Answer:
    present, scale, optimizer = subject.seen.examples, found.last, subject.training.optimizer
    broken = next((finding for finding in findings if finding.status is Status.BROKEN), None)
    if scale is None or present is None or math.isnan(scale.signal):
        why = found.why or "the gradients are not finite: there is no noise scale"
        findings.append(Finding("not_measured", Status.UNDECIDED, f"the gradient noise scale was not measured: {why}"))
        return Answer(QUESTION.id, QUESTION.text, broken.text if broken else why, tuple(findings))
    interval = f"({scale.low:.3g} to {scale.high:.3g})" if math.isfinite(scale.high) else f"(at least {scale.low:.3g})"
    value = f"{scale.value:.3g} " if 0 <= scale.value < math.inf else ""
    says = f"the gradient noise scale is {value}{interval} examples {_when(found.steps)}, and a batch holds {present}"
    if math.isinf(scale.high) and scale.low < present:
        findings.append(
            Finding(
                "not_measured", Status.UNDECIDED,
                f"the gradient noise scale lies anywhere from {scale.low:.3g} examples on {_when(found.steps)}:"
                f" {scale.n}"
                f" gradients do not tell whether a batch of {present} is large; a larger budget would (depthgauge"
                f" plan)",
            )
        )  # fmt: skip
    else:
        says += f": {_asks(_seen(scale), present, _power(optimizer))}"
    tables = _tables(found, present, optimizer)
    told = broken.text if broken else says
    return Answer(QUESTION.id, QUESTION.text, told, tuple(findings), _measure(scale, found.steps), tables)


def _asks(scale: float, present: int, power: float | None) -> str:
    """What twice the batch, or twice the devices, saves and asks of the rate."""
    steps = relative_steps(2 * present, present, scale)
    text = f"twice the batch, or the devices, takes {steps:.2f} times the steps"
    return text if power is None else f"{text}, at {steps**-power:.2f} times the rate"


def _tables(found: Scales, present: int, optimizer: Any) -> dict[str, Any]:
    import pandas as pd  # noqa: PLC0415 - of the evidence alone

    measured = [(0, found.now), (found.steps, found.later)]
    points = pd.DataFrame(
        [
            {"step": step, "scale": each.value, "low_95": each.low, "high_95": each.high, "gradients": each.n}
            for step, each in measured
            if each is not None
        ]
    )
    assert found.last is not None
    power, scale = _power(optimizer), found.last
    rows = []
    for size in (int(present * 2.0**each) for each in POWERS):
        if size:
            low, value, high = (relative_steps(size, present, each) for each in (scale.low, _seen(scale), scale.high))
            factor = value**-power if power is not None else math.nan
            row = {"batch": size, "relative_steps": value, "low_95": min(low, high), "high_95": max(low, high)}
            rows.append({**row, "rate_factor": factor})
    return {"noise_scale": points, "batches": pd.DataFrame(rows)}


QUESTION = Question("batch", "Is the batch size right?", ask, share=1.5, kinds=KINDS, draw=draw)
