"""The question asked: passes in three formats, the first steps, the optimizer's own step, timings."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from depthgauge import nested, precision, stats
from depthgauge.checking.answers import Answer, Finding, Measure, Status, Tried, most_severe
from depthgauge.checking.questions.precision import coarse, numbers, passes, ranges, scaling, speed, updates
from depthgauge.checking.questions.precision.operators import watched
from depthgauge.checking.subject import Subject
from depthgauge.checking.words import percent
from depthgauge.foreign import describe_error
from depthgauge.precision.passage import compiled
from depthgauge.stats import Comparison, Estimate
from depthgauge.updating import takes_closure

if TYPE_CHECKING:
    import pandas as pd

ID, TEXT = "precision", "Which number format can it bear?"
WATCHING = 2.0  # passes that one with all operators looked at takes, where a pass is long enough to matter
BISECTION = 60.0  # passes that a bisection takes at most, on small networks
MOST_FOR_LAYERS = 0.6  # seconds, as it is evidence and decides nothing
WORST = 3  # layers that are named
BATCHES = 6  # over which a gradient's error is taken: from 5 on there is an interval
NUMBERS = 200_000_000  # of all these gradients together, which are held at once
SHORT = " are left"  # ends what is said where time was short
DECIDING = (
    "operators",
    "the optimizer's step",
    "updates",
    "the pass in float32",
)  # without which nothing is called fine
FOR_SPEED = 0.6  # of the time that is left when all else is done


@dataclass(eq=False)
class _Asked:
    """What is known so far.

    Attributes:
        fmt: the 16-bit format that the training computes in; `bfloat16`, tried on it, where it computes in none.
        present: whether it computes in it now.
        missed: what was not measured, and why.
    """

    subject: Subject
    findings: list[Finding]
    missed: list[str] = field(default_factory=list)
    fmt: str = "bfloat16"
    present: bool = False
    numbers: numbers.Numbers | None = None
    ranges: ranges.Ranges | None = None
    errors: Estimate | None = None
    step: scaling.Step | None = None
    noise: float = math.nan
    compared: Comparison | None = None
    still: pd.DataFrame | None = None
    layers: pd.DataFrame | None = None

    def attempt(self, what: str, passed: float, work: Callable[[], None]) -> None:
        """Do a piece of work that takes so many passes, or say why it was not done."""
        seen = self.subject.seen
        seconds = passed * (seen.seconds + seen.copies)  # each is put back by itself
        if self.subject.clock.left < seconds:
            self.missed.append(f"{what}: it takes {seconds:.2g} s, and {self.subject.clock.left:.2g}{SHORT}")
            return
        try:
            work()
        except Exception as error:  # noqa: BLE001 - a pass in another format is the user's code, and may raise anything
            self.missed.append(f"{what}: {describe_error(error)}")


def ask(subject: Subject) -> Answer:
    """Answer it."""
    asked = _Asked(subject, subject.found)
    with passes.quiet(), passes.eager():
        asked.attempt("operators", WATCHING, lambda: _operators(asked))
        asked.attempt("ranges", 2, lambda: _ranges(asked))
        asked.attempt("numbers of the data", 1, lambda: asked.findings.extend(coarse.findings(subject)))
        _numbers(asked)
        if subject.training.optimizer is not None:
            asked.attempt("the optimizer's step", 2, lambda: _step(asked))
            asked.attempt("updates", 0, lambda: _updates(asked))
        asked.attempt("the gradient's error", 4, lambda: _errors(asked))
        asked.attempt("the layers' own errors", 0, lambda: _layers(asked))
        asked.attempt("speed", 4 * speed.LEAST, lambda: _speed(asked))
    return _answer(asked)


def _ranges(asked: _Asked) -> None:
    asked.ranges = ranges.ranges(asked.subject)


def _operators(asked: _Asked) -> None:
    training, batch = asked.subject.training, asked.subject.seen.batch
    with training.untouched(), watched(training.model) as seen:
        present = passes.run(training, batch)
    halves = (*seen.narrow, *(each for each in numbers.dtypes(asked.subject) if each in updates.NARROW))
    exact = None
    if halves:
        asked.fmt, asked.present = halves[0], True
        try:
            exact = passes.in_float32(training, batch)
        except Exception as error:  # noqa: BLE001 - the user's code, which may insist on its format
            asked.missed.append(f"the pass in float32: {describe_error(error)}")
    asked.numbers = numbers.Numbers(present, seen, exact)


def _numbers(asked: _Asked) -> None:
    if asked.numbers is not None:
        asked.findings += numbers.findings(asked.subject, asked.numbers, asked.ranges)


def _step(asked: _Asked) -> None:
    optimizer = asked.subject.training.optimizer
    assert optimizer is not None
    if not takes_closure(optimizer) and (asked.numbers is None or asked.numbers.present.finite):
        asked.step = scaling.step_of(asked.subject.training, asked.subject.seen.batch)
        asked.findings += scaling.clipping(asked.step)


def _updates(asked: _Asked) -> None:
    subject, training = asked.subject, asked.subject.training
    sizes = {name: each.rms for name, each in subject.seen.gradients.items() if each is not None and each.rms > 0}
    compensated = asked.step is None or asked.step.compensated  # 16-bit weights are accused of nothing untried
    asked.findings += updates.epsilon(training, sizes, asked.step.broken if asked.step else ())
    if not compensated:
        asked.findings += updates.lost_decay(training) + updates.stalled_average(training)
    if subject.begun is None:
        asked.missed.append(f"updates: its first steps take longer than the {subject.clock.left:.2g} s that{SHORT}")
    elif subject.begun.steps:
        asked.still = updates.unchanged(training, subject.begun)
        lost = updates.lost_updates(training, asked.still, compensated)
        asked.findings += [_in_float32(asked, each) for each in lost]
        asked.findings += _overflows_later(asked)


def _overflows_later(asked: _Asked) -> list[Finding]:
    """A finding where float16 makes the loss of a later step infinite or NaN, and float32 does not."""
    begun, seen = asked.subject.begun, asked.numbers
    if begun is None or seen is None or "float16" not in seen.operators.made or not seen.present.finite:
        return []
    if not begun.steps or all(map(math.isfinite, (*begun.losses, *begun.after))):
        return []
    wide = _fall_in_float32(asked, begun.steps)
    return numbers.later(seen, begun, wide) if math.isfinite(wide) else []


def _fall_in_float32(asked: _Asked, steps: int) -> float:
    """The loss's fall in so many own steps with float32 weights; NaN without time for them or for their batches."""
    batches = asked.subject.batches(steps)
    if len(batches) < steps and not asked.subject.ended:
        return math.nan
    clock = asked.subject.clock.part(0.5)
    return passes.fall_in_float32(asked.subject.training, batches, steps, lambda: clock.left > 0)


def _in_float32(asked: _Asked, finding: Finding) -> Finding:
    """The finding with float32 weights tried; a property where the loss falls as far without them."""
    begun = asked.subject.begun
    if finding.kind != "lost_updates" or begun is None:
        return finding
    harmless = dataclasses.replace(finding, kind="still_parameters", status=Status.LOOK)
    if not asked.present or not begun.after:
        return finding if updates.untried(finding) else harmless
    fell = (sum(begun.before) - sum(begun.after)) / len(begun.before)
    wide = _fall_in_float32(asked, begun.steps)
    if math.isnan(wide):
        return finding if updates.untried(finding) else harmless
    start = sum(begun.before) / len(begun.before)
    if updates.without_harm(fell, wide, 0.0 if updates.untried(finding) else updates.COARSE * abs(start)):
        return harmless
    measure = f"fall of the loss in {begun.steps} steps"
    return dataclasses.replace(finding, tried=Tried("float32 weights", measure, fell, wide))


def _errors(asked: _Asked) -> None:
    """The gradient's error in 16 bits over several batches, and its spread over them."""
    subject = asked.subject
    if asked.numbers is not None and not asked.numbers.present.finite:
        asked.missed.append("the gradient's error: the pass is not finite")
        return
    if not asked.present and _double(subject):
        return
    size = sum(each.numel() for each in subject.training.model.parameters())
    count = max(
        1, min(subject.count(2 * (subject.seen.seconds + subject.seen.copies), BATCHES, 0.5), NUMBERS // max(size, 1))
    )
    errors, exact = [], []
    for batch in subject.batches(count):
        wide, narrow = _both(asked, batch)
        errors.append(narrow.error(wide))
        exact.append(wide)
    kept = [error for error in errors if error > 0]
    if not kept:
        return
    asked.errors = stats.mean(kept, log=True)
    asked.noise = _spread(exact)


def _both(asked: _Asked, batch: Any) -> tuple[passes.Pass, passes.Pass]:
    """The pass in float32, and in 16 bits."""
    training = asked.subject.training
    if asked.present:
        exact = passes.in_float32(training, batch)
        with training.untouched():
            return exact, passes.run(training, batch)
    with training.untouched():
        exact = passes.run(training, batch)
    with training.untouched():
        return exact, passes.run(training, batch, passes.narrow(training, asked.fmt))


def _layers(asked: _Asked) -> None:
    """Each layer's own error in the 16-bit format; a finding where rounding rules the gradient."""
    training = asked.subject.training
    if asked.errors is None:
        return
    if BISECTION * asked.subject.seen.seconds + asked.subject.seen.copies < min(
        MOST_FOR_LAYERS, asked.subject.clock.left
    ):
        with training.untouched():
            asked.layers = precision.bisect(
                training.model,
                asked.subject.seen.batch,
                asked.fmt,
                loss=lambda model, batch: training.value(batch, model),
            )
    if asked.present:
        worst: tuple[str, ...] = ()
        if asked.layers is not None:
            named = asked.layers[asked.layers["own"] > 0].sort_values("own", ascending=False)["layer"].unique()
            worst = tuple(name or "model" for name in named[:WORST])
        asked.findings += numbers.rounding(asked.errors, asked.noise, asked.fmt, worst)


def _double(subject: Subject) -> bool:
    return "float64" in numbers.dtypes(subject)[:1]


def _spread(gradients: list[passes.Pass]) -> float:
    """The gradients' standard deviation over batches, over the norm of their mean; NaN of one."""
    if len(gradients) < 2:
        return math.nan
    size = off = 0.0
    for name in gradients[0].gradients:
        each = [nested.real(made.gradients[name]).double() for made in gradients if name in made.gradients]
        if len(each) == len(gradients):
            stack = torch.stack(each)
            mean = stack.mean(0)
            size += mean.square().sum().item()
            off += (stack - mean).square().sum().item() / (len(each) - 1)
    return math.sqrt(off / size) if size else math.nan


def _speed(asked: _Asked) -> None:
    subject = asked.subject
    if _double(subject):
        asked.missed.append("speed: autocast leaves float64 as it is")
        return
    if any(map(compiled, subject.training.model.modules())):
        asked.missed.append("speed: the model is compiled, and would be compiled anew for another format")
        return
    fmt = "" if asked.present else asked.fmt
    compared = speed.ratio(subject.training, subject.seen.batch, fmt, subject.clock.part(FOR_SPEED))
    if isinstance(compared, str):
        asked.missed.append(f"speed: {compared}")
        return
    asked.compared = compared
    error = asked.errors.value if asked.errors is not None else math.nan
    asked.findings += speed.judged(compared, asked.fmt, asked.present, error, asked.subject.seen.seconds)


def _answer(asked: _Asked) -> Answer:
    if missed := [each for each in asked.missed if each.startswith(DECIDING)]:
        advice = "give the check a larger budget" if any(each.endswith(SHORT) for each in missed) else ""
        text = f"not measured: {'; '.join(missed)}"
        asked.findings.append(Finding("not_measured", Status.UNDECIDED, text, advice))
    measure = Measure()
    if asked.errors is not None:
        found = asked.errors
        measure = Measure(f"relative error of the gradient in {asked.fmt}", found.value, found.low, found.high,
                          method=f"against float32, {found.method}")  # fmt: skip
    return Answer(ID, TEXT, _says(asked), tuple(asked.findings), measure, _tables(asked))


def _says(asked: _Asked) -> str:
    worst = most_severe(asked.findings)
    if worst is not None and worst.status is Status.BROKEN:
        return worst.text
    clauses = []
    if asked.numbers is not None:
        held = " and ".join(asked.numbers.operators.formats) or "no floating-point format"
        weights = " and ".join(numbers.dtypes(asked.subject))
        part = [name for name in asked.numbers.operators.narrow if name not in held]
        some = f", in part in {' and '.join(part)}" if part else ""
        clauses.append(
            f"it computes in {held}{some}" + (f" with {weights} weights" if weights not in ("", held) else "")
        )
    if asked.ranges is not None and asked.ranges.says:
        clauses.append(asked.ranges.says)
    if asked.errors is not None:
        does = "changes" if asked.present else "would change"
        noise = "" if math.isnan(asked.noise) else f", where batches differ by {percent(asked.noise)}"
        clauses.append(f"{asked.fmt} {does} the gradient by {percent(asked.errors.value)}{noise}")
    if asked.compared is not None:
        effect = asked.compared.effect
        times = f"{effect.value:.2g} times ({effect.low:.2g} to {effect.high:.2g})"
        clauses.append(f"in {asked.fmt} a pass takes {times} float32's time")
    if not clauses:
        return "not measured: " + ("; ".join(asked.missed) or "no pass holds a floating-point number")
    return "; ".join(clauses) + (f" (not measured: {'; '.join(asked.missed)})" if asked.missed else "")


def _tables(asked: _Asked) -> dict[str, pd.DataFrame]:
    import pandas as pd  # noqa: PLC0415 # half a second, needed only here

    tables: dict[str, pd.DataFrame] = {}
    if asked.ranges is not None:
        tables["formats"] = asked.ranges.fits
        tables["loss_scales"] = asked.ranges.scales
        tables["binades"] = _binades(asked.ranges.record)
    if asked.layers is not None:
        tables["layers"] = asked.layers
    if asked.still is not None and len(asked.still):
        tables["updates"] = asked.still
    if asked.numbers is not None:
        made = asked.numbers.operators.products
        tables["operators"] = pd.DataFrame({"format": list(made), "products": list(made.values())})
    return tables


def _binades(record: Any) -> pd.DataFrame:
    """A row a direction and binade: the share of its nonzero values."""
    import pandas as pd  # noqa: PLC0415 # half a second, needed only here

    parts = []
    for direction in ("activation", "activation_gradient", "weight", "weight_gradient", "update"):
        exponents, counts = record.histogram(direction=direction).by_exponent()
        parts += [
            (direction, int(exponent), float(count / counts.sum()))
            for exponent, count in zip(exponents, counts, strict=True)
            if count
        ]
    return pd.DataFrame(parts, columns=["direction", "exponent", "share"]) if parts else pd.DataFrame(
        {"direction": [], "exponent": np.zeros(0, int), "share": np.zeros(0)})  # fmt: skip
