"""Findings about how signal and gradient pass: depth, units that are dead or saturated, values that are not finite."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from depthgauge.checking.answers import Finding, Measure, Status, Tried
from depthgauge.checking.questions.signal import remedies
from depthgauge.checking.questions.signal.depth import Passage, culprits
from depthgauge.checking.questions.signal.remedies import Trial
from depthgauge.checking.questions.signal.units import Units
from depthgauge.workload import Training

SUSPECT = 1.5  # decades between first and last gradient from which remedies are tried
VANISHED = 5.0  # decades: with a rate that suits the last layer, 60 steps move the first by less than a thousandth
COLLAPSED = 1e-8  # of the second moment: float32 leaves four digits to tell examples apart, bfloat16 none
SUSPECT_COLLAPSE = 1e-4  # of the second moment, from which remedies are tried
GAIN_APART = 4.0  # times the other layers' median gain, from which remedies are tried
DEAD = 0.9  # of a layer's units: chance kills half of a narrow layer at most (theory.relu_dying_probability)
SATURATED = 0.9  # of a layer's values
MOST_WHERE = 12


@dataclass(frozen=True, eq=False)
class Depth:
    """How the training passes signals, and what was tried on it.

    Attributes:
        passage: at the weights as they are.
        plain: the first steps from the weights as they are; None where nothing was suspected, or there was no time.
        tried: remedies, in order.
    """

    passage: Passage
    plain: Trial | None
    tried: tuple[Trial, ...]

    @property
    def best(self) -> Trial | None:
        """The remedy that gets further than the weights as they are, to the lowest loss; None where none does."""
        good = [each for each in self.tried if self.plain is not None and remedies.better(each, self.plain)]
        return min(good, key=lambda each: each.ended, default=None)


def suspicious(passage: Passage) -> bool:
    """Whether remedies are worth their time."""
    table = passage.table.drop_duplicates("layer")
    gains = table["gain"][table["gain"] > 0]
    apart = len(gains) > 2 and bool((gains / gains.median()).max() > GAIN_APART)
    large = len(gains) > 1 and float(gains.median()) > GAIN_APART * math.sqrt(2)
    return (
        apart
        or large
        or abs(passage.decades) > max(SUSPECT, passage.allowed)
        or (passage.variation < SUSPECT_COLLAPSE and passage.of_inputs > 100 * passage.variation)
    )


def examine(
    training: Training, passage: Passage, batches: Sequence[Any], steps: int, *, others: dict[str, Tensor],
    going: Callable[[], bool],
) -> Depth:  # fmt: skip
    """Try remedies on a training whose passage is suspicious, as many as there is time for."""
    if training.optimizer is None or steps < remedies.LEAST:
        return Depth(passage, None, ())
    plain = remedies.trial(training, batches, steps, None, others=others, going=lambda: True)
    wrong = culprits(passage, growing=passage.decades > 0)
    tried: list[Trial] = []
    for name, says, lay in remedies.remedies(training, batches[0], wrong):
        if not going():
            break
        tried.append(
            remedies.trial(training, batches, steps, lay, name=name, says=says, others=others, going=lambda: True)
        )
    return Depth(passage, plain, tuple(tried))


def of_depth(depth: Depth) -> Iterator[Finding]:
    """What the passage shows, and the remedy for it."""
    passage, best = depth.passage, depth.best
    low, high = (10**end for end in passage.interval)
    measure = Measure("gradient at the first layers over that at the last", 10**passage.decades, low, high,
                      method=f"{len(passage.reach)} batches, Student's t on its logarithm")  # fmt: skip
    shape = f"the gradient at the first weight layers is {10**passage.decades:.2g} times that at the last"
    growing = passage.decades > 0
    where = tuple(dict.fromkeys(culprits(passage, growing=growing)))[:MOST_WHERE]
    advice, expected, tried = "", "", None
    if best is not None and depth.plain is not None:
        advice, expected = best.says, (
            f"a loss of {best.ended:.3g} after {best.steps} steps in place of {depth.plain.ended:.3g}, and a gradient at"
            f" the first layers {10**best.decades:.2g} times that at the last"
        )  # fmt: skip
        tried = Tried(best.name, f"loss after {best.steps} steps", depth.plain.ended, best.ended)
    status = Status.BROKEN if best is not None else Status.LOOK
    if _collapsed(passage, COLLAPSED if best is None else SUSPECT_COLLAPSE):
        text = f"what the last layer gets differs between examples by {math.sqrt(passage.variation):.1g} of its size"
        text += f" (what the first gets, by {math.sqrt(passage.of_inputs):.1g})"
        share = Measure("relative difference between examples", math.sqrt(passage.variation))
        advice = advice or "give the layers a way around (x + f(x)) or a normalization, or take fewer layers"
        yield Finding("collapse", Status.BROKEN, text, advice, expected, where or ("model",), share, tried)
    elif passage.decades < -max(SUSPECT if best else VANISHED, passage.allowed):
        advice = advice or "give the layers a way around (x + f(x)), a normalization, or another activation than sigmoid"
        yield Finding("vanishing", status, shape, advice, expected, where or ("model",), measure, tried)
    elif passage.decades > max(SUSPECT if best else VANISHED, passage.allowed):
        advice = advice or "give the layers a normalization, or smaller weights"
        yield Finding("exploding", status, shape, advice, expected, where or ("model",), measure, tried)
    elif best is not None:
        gains = passage.table.set_index("layer")["gain"]
        listed = ", ".join(f"`{name}` {gains.get(name, math.nan):.2g}" for name in where[:3])
        text = f"weights of this size hold the training back: gain {listed or 'unknown'}; {shape}"
        yield Finding("scale", status, text, advice, expected, where or ("model",), measure, tried)
    elif abs(passage.decades) > max(2 * SUSPECT, passage.allowed):
        says = "; no initialization that was tried gets further" if depth.tried else ""
        yield Finding("uneven", Status.FINE, shape + says, where=where, measure=measure)


def _collapsed(passage: Passage, limit: float) -> bool:
    return passage.variation < limit and passage.of_inputs > 100 * passage.variation


def of_units(now: Units, later: Units | None) -> Iterator[Finding]:
    """Dead and saturated layers, at the weights as they are, or after the first steps."""
    for when, units in (("", now), (" after the first steps", later)):
        if units is None:
            continue
        found = list(_dead(units, when)) + list(_saturated(units, when))
        yield from found
        if found:
            return


def _dead(units: Units, when: str) -> Iterator[Finding]:
    dead = [each for each in units.layers.values() if each.dead_share >= DEAD]
    if not dead:
        return
    worst = max(dead, key=lambda each: each.dead_share)
    where = tuple(dict.fromkeys(each.layer for each in dead))
    text = f"{100 * worst.dead_share:.3g} % of the {len(worst.dead)} units after `{worst.layer}` are zero for all examples"
    whole = worst.dead_share == 1
    advice = f"initialize `{worst.layer}` anew with bias 0" if not when else "take a smaller rate, or warm it up"
    measure = Measure("dead units", worst.dead_share, method="zero in every example of every batch looked at")
    yield Finding("dead_units", Status.BROKEN if whole else Status.LOOK, f"{text}{when}",
                  f"{advice}, or use leaky_relu or GELU there", "its units and all below them begin to train",
                  where[:MOST_WHERE], measure)  # fmt: skip


def _saturated(units: Units, when: str) -> Iterator[Finding]:
    flat = [each for each in units.layers.values() if each.flat_share >= SATURATED]
    if not flat:
        return
    worst = max(flat, key=lambda each: each.flat_share)
    where = tuple(dict.fromkeys(each.layer for each in flat))
    text = (
        f"{100 * worst.flat_share:.3g} % of the values after `{worst.layer}` lie where {worst.kind.lower()} is flat: its"
        f" derivative is below a hundredth of its largest{when}"
    )
    advice = f"initialize `{worst.layer}` with smaller weights (gain 1) and bias 0, or normalize what it gets"
    measure = Measure("saturated values", worst.flat_share, method="derivative below 0.01 of the activation's largest")
    yield Finding("saturated_units", Status.LOOK, text, advice, "the layers below it train", where[:MOST_WHERE], measure)
