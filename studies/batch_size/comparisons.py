"""Momentum and Adam against SGD in steps by batch size, and the savings of a larger batch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from depthgauge import stats, training
from depthgauge.parts import Answer
from depthgauge.questions import Key, Question, above, agrees, not_below
from depthgauge.stats import Comparison
from depthgauge.studies.batch_size.hyperbola import KEYS, REFERENCE, Curves
from depthgauge.verdict import Claim, Sentence

LENGTHEN = Claim("batch_size/lengthen", "momentum and Adam scale further than SGD: their critical batch size is larger")
SMALL = Claim(
    "batch_size/small_batch",
    "at the smallest batch momentum and Adam take as many steps as SGD, within a factor of 1.25",
)
COMPUTATION = Claim("N18", "a batch too large saves no computation")
STOPPED = Claim("batch_size/stopped", "from the last batch size but one to the largest the steps no longer fall")
CLAIMS = (LENGTHEN, SMALL, COMPUTATION, STOPPED)

LONGER = 1.1  # factor: critical batch sizes nearer than this are the same
SAME = 1.25  # factor: steps at the smallest batch nearer than this are the same
SAVED = 1.1  # factor: a batch that saves no more steps, or examples, saves none


def answers(found: Curves) -> Iterator[Answer]:
    """The other optimizers against SGD, and the largest batch size against the last but one."""
    yield from against_sgd(found)
    yield from saved(found)


def against_sgd(found: Curves) -> Iterator[Answer]:
    """Critical batch size, and steps at the smallest batch, of the other optimizers over those of SGD."""
    longer, small = {}, {}
    for (net, name), curve in found.items():
        plain = found.get((net, REFERENCE))
        if name == REFERENCE or plain is None or plain.batch != curve.batch or plain.seeds != curve.seeds:
            continue
        critical = (np.exp(each.fit.pseudo[:, 1]) for each in (curve, plain))
        longer[net, name] = plain.settled(curve.settled(stats.paired(*critical, log=True, margin=LONGER, test="t")))
        steps = stats.paired(curve.at(0), plain.at(0), log=True, margin=SAME, test="t")
        small[net, name] = plain.settled(curve.settled(steps, 0), 0)
    momentum = ("momentum", "adam", "adamw")
    for name, asked, claim, reading, words, unit in (
        ("critical_ratios", longer, LENGTHEN, above, "critical batch size", "times the critical batch of SGD"),
        ("small_ratios", small, SMALL, agrees, "steps at the smallest batch", "times the steps of SGD"),
    ):
        question = Question.of(
            name, KEYS, asked, label="{optimizer} with {net}", reference="SGD",
            family=lambda optimizer, **_: optimizer in momentum,
        )  # fmt: skip
        if question:
            yield question.table()
        if some := question.where(optimizer=momentum):
            margin = LONGER if claim is LENGTHEN else SAME
            ratios = "; ".join(f"{k} {c.effect.value:.2f}" for k, c in some.read(lambda c: c).items())
            yield some.verdict(
                claim, reading, unit=unit,
                why=f"{words} over that of SGD: {ratios}"
                + some.listed(reading, {False: "not so:", None: "undecided:"}, 8, lead="; "),
                method=f"ratio by seed, paired t on logarithms, margin {margin:g}"
                + (", jackknife pseudo-values of the fits" if claim is LENGTHEN else ""),
            )  # fmt: skip


def saved(found: Curves) -> Iterator[Answer]:
    """Examples and steps at the largest batch over those at the last size but one."""
    examples: dict[Key, Comparison] = {}
    steps: dict[Key, Comparison] = {}
    for (net, name), curve in found.items():
        ratio = curve.batch[-1] / curve.batch[-2]
        key, last, before = (net, name, curve.batch[-2], curve.batch[-1]), curve.at(-1), curve.at(-2)
        more = stats.paired(ratio * last, before, log=True, margin=SAVED, test="t")
        edge, late = curve.edge, np.asarray(curve.late.any(0))
        # a run that did not arrive takes more than is counted, a rate at an edge may take less: a bound to one side
        bound = training.one_sided(more, least=late[-1] or edge[-2], most=late[-2] or edge[-1])
        examples[key] = training.unsettled(more, bound and (edge[-1] or edge[-2]), censored=bound)
        fewer = stats.paired(last, before, log=True, margin=SAVED, test="t")
        steps[key] = curve.settled(fewer, len(curve.batch) - 2, len(curve.batch) - 1)
    by, label = (*KEYS, "smaller", "larger"), "{net} with {optimizer}"
    for name, asked, claim, reading, what in (
        ("examples_saved", examples, COMPUTATION, not_below, "examples"),
        ("steps_saved", steps, STOPPED, not_below, "steps"),
    ):
        question = Question.of(name, by, asked, label=label, reference="no saving")
        if not question:
            return
        values = [c.effect.value for c in question.members.values()]
        yield question.table()
        if claim is COMPUTATION:
            all_waste = all(map(reading, question.members.values()))
            ends = " to ".join(dict.fromkeys(f"{end:.1f}" for end in (min(values), max(values))))
            yield Sentence(
                f"The largest batches {'waste' if all(c.above for c in question.members.values()) else 'save no'} "
                f"computation: to the same loss they take {ends} times "
                "the examples that the next smaller ones take."
                if all_waste
                else "Not every largest batch size is shown to save no computation.",
                "steps_by_batch", (COMPUTATION.id, STOPPED.id),
            )  # fmt: skip
        yield question.verdict(
            claim, reading, unit=f"times the {what}",
            why=f"from the last batch size but one to the largest the {what} to the target change by factors of "
            f"{min(values):.2f} to {max(values):.2f}"
            + question.listed(reading, {False: "not so for", None: "undecided for"}, 8, lead="; "),
            method=f"ratio by seed at the tuned rates, paired t on logarithms, margin {SAVED:g}",
        )  # fmt: skip
