"""Findings about how signal and gradient pass: depth, units that are dead or saturated, values that are not finite."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from depthgauge.checking.answers import Finding, Measure, Status, Tried
from depthgauge.checking.questions.signal import remedies, skips
from depthgauge.checking.questions.signal.depth import Passage, culprits
from depthgauge.checking.questions.signal.remedies import Trial
from depthgauge.checking.questions.signal.units import Units
from depthgauge.checking.words import MOST_WHERE, listed
from depthgauge.workload import Training

SUSPECT = 1.5  # decades between first and last gradient from which remedies are tried
VANISHED = -math.log10(torch.finfo(torch.float32).eps)  # decades: an update that suits the last layer's weights is
# below the rounding of weights as large at the first
FADED = 5.0  # decades, where it fades or grows by degrees and still does after steps
SHARE = 0.5  # of the loss after the same steps, where signal and gradient fade alike from the start
COLLAPSED = 1e-8  # of the second moment: float32 leaves four digits to tell examples apart, bfloat16 none
SUSPECT_COLLAPSE = 1e-4  # of the second moment, from which remedies are tried
MODERATE = 3.0  # decades, up to which a training that is held back may only begin slowly
GROWN = 2.0  # decades of a signal's size along the layers from which remedies are tried
GAIN_APART = 4.0  # times the other layers' median gain, or He's, from which remedies are tried
DEAD = 0.9  # of a layer's units: chance kills half of a narrow layer at most (theory.relu_dying_probability)
SATURATED = 0.9  # of a layer's values
# Of the values of so many activations with two ends: a hundredth of a gradient's paths is left behind them.
CLIPPED, CHAIN = 0.8, 3


@dataclass(frozen=True, eq=False)
class Depth:
    """Passage of signals through the training, and what was tried on it.

    Attributes:
        passage: at the weights as they are.
        plain: the first steps from the weights as they are; None where nothing was suspected, or there was no time.
        tried: remedies, in order; the first a way around the blocks, where there are any.
        blocks: that have none.
        rows: embeddings with numbers far larger than N(0, 1).
        longer: four times the steps from the weights as they are; None where they were not made.
        short: whether there was no time for all that was to be tried.
    """

    passage: Passage
    plain: Trial | None
    tried: tuple[Trial, ...]
    blocks: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()
    longer: Trial | None = None
    short: bool = False

    @property
    def best(self) -> Trial | None:
        """The first remedy that gets further than the weights as they are and about as far as any; None where none."""
        if self.plain is None:
            return None
        plain = self.plain
        good = [each for each in self.tried if remedies.better(each, plain)]
        lowest = min((each.ended for each in good), default=math.nan)
        near = (each for each in good if remedies.start_of(each, plain) - each.ended >= 0.7 * (
            remedies.start_of(each, plain) - lowest))  # fmt: skip
        return next(near, None)

    @property
    def held(self) -> bool:
        """Tell whether the weights as they are keep the training from what a remedy lets it do."""
        if self.best is None or self.plain is None:
            return False
        if self.longer is not None and remedies.way(self.best, self.longer) >= remedies.CAUGHT_UP:
            return False
        even = self.best.name == remedies.EVEN and self.longer is not None
        return even or remedies.way(self.best, self.plain) < remedies.HELD

    @property
    def stuck(self) -> bool:
        """Tell whether nothing is known against it that the training does not get on."""
        return self.plain is None or not remedies.progresses(self.plain)


def suspicious(passage: Passage) -> bool:
    """Tell whether remedies are worth their time."""
    table = passage.table.drop_duplicates("layer")
    gains = table["gain"][table["gain"] > 0]
    apart = len(gains) > 2 and bool((gains / gains.median()).max() > GAIN_APART)
    large = len(gains) > 0 and float(gains.max()) > GAIN_APART * math.sqrt(2)
    return (
        apart
        or large
        or _grows(passage)
        or abs(passage.decades) > max(SUSPECT, passage.allowed)
        or (passage.variation < SUSPECT_COLLAPSE and passage.of_inputs > 100 * passage.variation)
    )


def _grows(passage: Passage) -> bool:
    """Tell whether a signal's size grows a hundredfold on its way."""
    decades = passage.table["forward_decades"].to_numpy(float)
    decades = decades[np.isfinite(decades)]
    return len(decades) > 1 and bool((np.maximum.accumulate(decades[::-1])[::-1] - decades).max() > GROWN)


def examine(
    training: Training,
    passage: Passage,
    batches: Sequence[Any],
    steps: int,
    *,
    going: Callable[[], bool],
) -> Depth:
    """Try remedies where something is suspicious, until one mends it or the time is over."""
    blocks = [] if training.optimizer is None or steps < remedies.LEAST else skips.without(training, batches[0])
    wanted = [remedies.way_around(blocks)] if blocks else []
    rows = remedies.far_rows(training.model)
    if suspicious(passage) or rows:
        wrong = culprits(passage, growing=_is_growing(passage))
        wanted += remedies.remedies(training, batches[0], wrong)
        far = abs(passage.decades) > max(MODERATE, passage.allowed)
        wanted += [even] if far and (even := remedies.evened(passage)) else []
    short = training.optimizer is not None and bool(wanted) and steps < remedies.STEPS
    depth = Depth(passage, None, (), tuple(blocks), tuple(rows), short=short)
    if training.optimizer is None or steps < remedies.LEAST or not wanted:
        return depth
    plain = remedies.trial(training, batches, steps, None)
    for name, says, lay in wanted:
        if depth.held:
            break
        if not going():
            return replace(depth, short=True)
        trial = remedies.trial(training, batches, steps, lay, name=name, says=says)
        depth = replace(depth, plain=plain, tried=(*depth.tried, trial))
    evened = depth.best is not None and depth.best.name == remedies.EVEN  # held to more steps, not to HELD
    if going() and (evened or (depth.held and SUSPECT < abs(passage.decades) < MODERATE)):
        depth = replace(depth, longer=remedies.trial(training, batches, remedies.LONGER * steps, None))
    return depth


def _persists(passage: Passage, later: Passage | None) -> bool:
    """Tell whether examples are alike, or the gradient fades or grows layer by layer, at the start and after steps."""
    if later is None:
        return False
    if is_collapsed(passage) and is_collapsed(later):
        return True
    back = passage.table["backward_decades"].to_numpy(float)[passage.with_gradient]
    side = math.copysign(1.0, passage.decades)
    if side * passage.decades < FADED or side * later.decades < FADED / 2 or passage.allowed > FADED or len(back) < 2:
        return False
    return float((-side * np.diff(back)).max()) < FADED / 2  # in one step, a layer that begins closed is the reason


def _shrinks(depth: Depth) -> bool:
    """Tell whether signal and gradient fade alike, layer by layer, and a remedy leaves a fraction of the loss."""
    table, plain = depth.passage.table, depth.plain
    if plain is None or depth.passage.allowed > FADED or -depth.passage.decades < FADED:
        return False
    for name in ("forward_decades", "backward_decades"):
        decades = table[name].to_numpy(float)[:-1]  # the last layer's output may be its bias
        decades = decades[np.isfinite(decades)]
        if len(decades) < 2 or np.abs(np.diff(decades)).max() >= FADED / 2 or np.ptp(decades) < FADED:
            return False
    return any(math.isfinite(each.ended) and 0 <= each.ended < SHARE * plain.ended for each in depth.tried)


def of_depth(depth: Depth, later: Passage | None = None) -> Iterator[Finding]:
    """Yield what the passage shows, and the remedy for it; `later` is the passage after the first steps."""
    passage, best, plain = depth.passage, depth.best, depth.plain
    kind, text, measure = _described(passage)
    where = tuple(dict.fromkeys(culprits(passage, growing=_is_growing(passage))))
    advice, expected, tried = _OTHERWISE[kind], "", None
    if best is not None and plain is not None:
        advice, expected = best.says, (
            f"a loss of {best.ended:.3g} after {best.steps} steps in place of {plain.ended:.3g}, and a gradient at the"
            f" first layers {10**best.decades:.2g} times that at the last"
        )  # fmt: skip
        tried = _tried(best, plain)
        if best is depth.tried[0] and depth.blocks:
            kind, where = "missing_skip", (*depth.blocks, *where)
            text = f"{len(depth.blocks)} blocks in a row hand on nothing of what they get; {text}"
        if best.name.startswith(remedies.OF_ROWS):
            kind, where = "scale", depth.rows
            text = f"the numbers of {listed(depth.rows)} are far larger than those of N(0, 1)"
        text += _gained(best, plain)
    where = where[:MOST_WHERE] or ("model",)
    if depth.held:
        yield Finding(kind, Status.BROKEN, text, advice, expected, where, measure, tried)
    elif _extreme(passage) and depth.stuck:
        status = Status.BROKEN if plain else Status.LOOK
        yield Finding(kind, status, text, advice, expected, where, measure, tried)
    elif _persists(passage, later) or _shrinks(depth):
        yield Finding(kind, Status.LOOK, text, advice, expected, where, measure, tried)
    elif best is not None:
        kind = "initialization" if kind != "missing_skip" else "way_around"
        yield Finding(kind, Status.LOOK, text, advice, expected, where, measure, tried)
    elif depth.short and abs(passage.decades) > max(MODERATE, passage.allowed):
        steps = plain.steps if plain is not None else 0
        says = f"{text}; whether another initialization gets further was not measured: there was time for {steps} of"
        says += f" {remedies.STEPS} steps"
        yield Finding("not_measured", Status.UNDECIDED, says, "give the check a larger budget", where=where)
    elif abs(passage.decades) > max(SUSPECT, passage.allowed):
        says = "; no remedy that was tried gets further" if depth.tried else ""
        yield Finding("uneven", Status.FINE, text + says, where=where, measure=measure)


def _gained(best: Trial, plain: Trial) -> str:
    return f"; with {best.name} the loss after {best.steps} steps is {best.ended:.3g} in place of {plain.ended:.3g}"


def _tried(best: Trial, plain: Trial) -> Tried:
    return Tried(best.name, f"loss after {best.steps} steps", plain.ended, best.ended)


_OTHERWISE = {
    "collapse": "give the layers a way around (x + f(x)) or a normalization, or take fewer layers",
    "vanishing": "give the layers a way around (x + f(x)), a normalization, or another activation than sigmoid",
    "exploding": "give the layers a normalization, or smaller weights",
    "scale": "initialize the layers anew (torch.nn.init.kaiming_normal_)",
}


def _described(passage: Passage) -> tuple[str, str, Measure]:
    """The kind, the sentence and the figure that fit a passage best."""
    ratio = 10**passage.decades
    low, high = (10**end for end in passage.interval)
    measure = Measure("gradient at the first layers over that at the last", ratio, low, high,
                      method=f"{len(passage.reach)} batches, Student's t on its logarithm")  # fmt: skip
    text = f"the gradient at the first weight layers is {ratio:.2g} times that at the last"
    if _collapsed(passage, COLLAPSED if abs(passage.decades) > SUSPECT else SUSPECT_COLLAPSE):
        share = math.sqrt(passage.variation)
        text = f"what the last layer gets differs between examples by {share:.1g} of its size (what the first gets, by"
        text += f" {math.sqrt(passage.of_inputs):.1g})"
        return "collapse", text, Measure("relative difference between examples", share)
    if abs(passage.decades) > max(SUSPECT, passage.allowed):
        return ("vanishing" if ratio < 1 else "exploding"), text, measure
    worst = _worst(passage)
    text = f"`{worst['layer']}` has a gain of {worst['gain']:.2g}, where 1 to 1.4 keeps a signal's size; {text}"
    return "scale", text, measure


def _worst(passage: Passage) -> Any:
    """The row of the layer whose gain is farthest from 1."""
    table = passage.table.drop_duplicates("layer")
    return table.iloc[int(np.abs(np.log(table["gain"].clip(lower=1e-30))).fillna(0).to_numpy().argmax())]


def _is_growing(passage: Passage) -> bool:
    """Tell whether gains are to blame for being too large: by the gradient where it says so, else by the worst."""
    if abs(passage.decades) > max(SUSPECT, passage.allowed):
        return passage.decades > 0
    return bool(_worst(passage)["gain"] > 1)


def is_collapsed(passage: Passage) -> bool:
    """Tell whether examples reach the last layer all alike."""
    return _collapsed(passage, COLLAPSED)


def _extreme(passage: Passage) -> bool:
    return is_collapsed(passage) or abs(passage.decades) > max(VANISHED, passage.allowed)


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
    dead = [each for each in units.layers.values() if each.hidden and each.dead_share >= DEAD]
    if not dead:
        return
    worst = max(dead, key=lambda each: each.dead_share)
    where = tuple(dict.fromkeys(each.layer for each in dead))
    text = (
        f"{100 * worst.dead_share:.3g} % of the {len(worst.dead)} units after `{worst.layer}` are zero for all examples"
    )
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
        f"{100 * worst.flat_share:.3g} % of the values after `{worst.layer}` lie where {worst.kind.lower()} is flat:"
        f" its derivative is below a hundredth of its largest{when}"
    )
    advice = f"initialize `{worst.layer}` with smaller weights (gain 1) and bias 0, or normalize what it gets"
    measure = Measure("saturated values", worst.flat_share, method="derivative below 0.01 of the activation's largest")
    yield Finding(
        "saturated_units", Status.LOOK, text, advice, "the layers below it train", where[:MOST_WHERE], measure
    )


def of_clipped(now: Units, later: Units | None, depth: Depth) -> Iterator[Finding]:
    """Several activations with two ends that are flat for most values, where another initialization gets further."""
    flat, best, plain = now.clipped(CLIPPED), depth.best, depth.plain
    stays = later is not None and len(later.clipped(CLIPPED)) >= CHAIN
    if len(flat) < CHAIN or not stays or best is None or plain is None:
        return
    where = tuple(dict.fromkeys(each.layer for each in flat))
    share = sum(each.flat for each in flat) / sum(each.values for each in flat)
    text = f"{100 * share:.3g} % of the values after {listed(where)} lie where {flat[0].kind.lower()} is flat, and"
    text += f" hardly a gradient passes{_gained(best, plain)}"
    measure = Measure("saturated values", share, method="at the ends of an activation")
    yield Finding("saturated_units", Status.LOOK, text, best.says, "the layers below train", where[:MOST_WHERE],
                  measure, _tried(best, plain))  # fmt: skip
