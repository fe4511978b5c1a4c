"""Are data and loss what they should be?"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from depthgauge.checking.answers import Answer, Finding, Kind, Status, most_severe
from depthgauge.checking.question import Question
from depthgauge.checking.questions.data import (
    across,
    added,
    addends,
    batches,
    belonging,
    by_hand,
    called,
    derivatives,
    edges,
    evaluated,
    fitting,
    inputs,
    joined,
    kept,
    labels,
    losses,
    modes,
    of_outputs,
    order,
    padding,
    pairing,
    parts,
    passing,
    probable,
    pulling,
    repeating,
    rows,
    scaled,
    seeing,
    sight,
    smallest,
    squares,
    stored,
    summing,
    values,
)
from depthgauge.checking.questions.data.figure import draw
from depthgauge.checking.subject import Subject
from depthgauge.foreign import describe_error
from depthgauge.workload import WorkloadError

if TYPE_CHECKING:
    import pandas as pd

KINDS = {
    "refused": Kind("fault", "it is no training that can be run: the optimizer is over another model, or has no rate"),
    "raises": Kind("fault", "loader, module or loss raises, or the loss is no number with a gradient"),
    "refused_trials": Kind("property", "trials that change a batch's examples were left out, as the training raises"),
    **losses.KINDS, **inputs.KINDS, **labels.KINDS, **modes.KINDS, **fitting.KINDS, **seeing.KINDS,
    **summing.KINDS, **parts.KINDS, **called.KINDS, **of_outputs.KINDS, **addends.KINDS, **pulling.KINDS,
    **belonging.KINDS, **values.KINDS, **order.KINDS, **padding.KINDS, **pairing.KINDS,
    **derivatives.KINDS, **evaluated.KINDS, **joined.KINDS, **stored.KINDS,
    **across.KINDS, **added.KINDS, **kept.KINDS, **rows.KINDS, **squares.KINDS, **by_hand.KINDS,
    **scaled.KINDS, **edges.KINDS, **sight.KINDS, **repeating.KINDS,
}  # fmt: skip


_ONE_FACT = {"negated_loss": "pushed_away", "padding_scored": "padding_counts", "only_padding_scored": "padding_counts"}
"""Kinds that say more of a fact than those behind them, which are left out beside them."""


def ask(subject: Subject) -> Answer:
    """Answer it."""
    seen = subject.seen
    timely = subject.fits(1, "what reaches the first weights, and what drops or normalizes")
    passed = passing.make(subject.training, seen.batch) if timely else passing.Passed()
    read = batches.read(subject)
    terms = seen.graph.terms
    fitted = fitting.fit(subject)
    asked = [
        losses.findings(seen, passed, subject.training.model), modes.findings(subject.training, passed),
        inputs.findings(seen, read, passed, subject.training), labels.findings(read, terms),
        parts.findings(subject.training, passed, seen.batch) if timely else (),
        values.findings(read, subject.training), repeating.findings(read),
        order.findings(subject, read), padding.findings(subject),
        pairing.findings(subject), belonging.findings(subject, read),
        summing.findings(subject), called.findings(subject), of_outputs.findings(subject),
        derivatives.findings(subject), evaluated.findings(subject), joined.findings(subject),
        across.findings(subject), added.findings(passed.mask), kept.findings(subject), rows.findings(subject),
        squares.findings(subject, passed.square), squares.of_sizes(passed.sizes), by_hand.findings(subject),
        probable.findings(passed.again),
        scaled.findings(subject, read), edges.findings(subject), sight.findings(subject),
        stored.findings(subject), smallest.findings(subject), addends.findings(subject), pulling.findings(subject),
        fitting.findings(subject, fitted),
    ]  # fmt: skip
    _take(subject, asked)
    found = subject.found
    twice = [each for each in found if each.kind == "double_softmax"][1:]
    found = [each for each in found if each not in twice]
    less = {_ONE_FACT[each.kind] for each in found if each.kind in _ONE_FACT}
    found = [each for each in found if each.kind not in less]
    tables: dict[str, pd.DataFrame] = {"batches": inputs.table(read), "fit": fitted.table(_chance(subject))}
    return Answer(QUESTION.id, QUESTION.text, _says(subject, found, fitted), tuple(found), losses.start(seen), tables)


def _take(subject: Subject, asked: Iterable[Iterable[Finding]]) -> None:
    """Take in what trials find; where the user's code refuses what one gives it, that is told, and costs no other."""
    refused: list[str] = []
    for each in asked:
        try:
            subject.found.extend(each)
        except WorkloadError:
            raise
        except Exception as error:  # noqa: BLE001 - the user's code, of examples in another order or number
            refused.append(describe_error(error))
    if refused:
        text = f"trials that raised, given examples in another order or number, and tell nothing: {len(refused)}"
        text += f"; the first with {refused[0]}"
        subject.found.append(Finding("refused_trials", Status.FINE, text, where=("batches",)))


def _says(subject: Subject, found: list[Finding], fitted: fitting.Fit) -> str:
    worst = most_severe(found)
    if worst is not None and worst.status in {Status.BROKEN, Status.LOOK}:
        return worst.text
    return "; ".join((_level(subject), _fitted(fitted)))


def _level(subject: Subject) -> str:
    seen, term = subject.seen, losses.main_term(subject.seen)
    level = math.nan if term is None else losses.chance(term)
    if term is None or not level > 0:
        return f"the loss starts at {seen.loss:.4g} (what chance gives is not known of this loss)"
    what = "the variance of the targets is" if term.form == "regression" else "chance is"
    if term.is_all_of(seen.loss):
        return f"the loss starts at {seen.loss:.4g}, {what} {level:.4g}"
    return f"the loss starts at {seen.loss:.4g}, its cross-entropy at {term.value:.4g}, {what} {level:.4g}"


def _chance(subject: Subject) -> float:
    """The loss at chance, of a loss that is one term and nothing else."""
    term = losses.main_term(subject.seen)
    return losses.chance(term) if term is not None and term.is_all_of(subject.seen.loss) else math.nan


def _fitted(fitted: fitting.Fit) -> str:
    best = fitted.best
    if best is None:
        return "whether it can fit one batch was not measured"
    these = f"{fitted.examples} examples" if fitted.examples else "one batch"
    lowest = min(loss for loss in best.losses if math.isfinite(loss))
    steps = best.losses.index(lowest)
    by = f"from {best.losses[0]:.4g} to {lowest:.4g} in {steps} step{'s' * (steps != 1)} of {best.optimizer}"
    return f"it fits {these}, {by}" if best.fall >= fitting.FITTED else f"of {these} the loss goes {by}"


QUESTION = Question("data", "Are data and loss what they should be?", ask, share=1, kinds=KINDS, draw=draw)

__all__ = ["QUESTION"]
