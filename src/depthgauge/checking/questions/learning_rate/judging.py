"""Judgement of a ladder of rates: what it says about the user's own."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from depthgauge import learning_rate as range_test
from depthgauge.checking.answers import Finding, Measure, Status, Tried
from depthgauge.checking.beginning import Begun
from depthgauge.checking.questions.learning_rate import branches, kinds
from depthgauge.checking.questions.learning_rate.branches import Branches
from depthgauge.checking.questions.learning_rate.ladder import STEPS, Ladder, Rung, digits, least
from depthgauge.checking.questions.learning_rate.longer import Longer
from depthgauge.checking.questions.learning_rate.rates import Rates

WHERE = ("optimizer",)


@dataclass(frozen=True, eq=False)
class Evidence:
    """All that was measured.

    Attributes:
        rates: of the optimizer.
        ladder: rungs from the same weights.
        begun: the first own steps on the training's own stream; None where they were not made.
        learnt: how one sees that the model has learnt already; empty where it has not.
        suggested: the rate of a range test, or of the ladder.
        longer: several times as many steps at the present rate; None where nobody asked.
        game: whether the loss passes through weights that train in another optimizer, as a generator's does.
        grown: hundreds of steps on batches as they come, at the present rate and at smaller ones; None without time.
    """

    rates: Rates
    ladder: Ladder
    begun: Begun | None
    learnt: str
    suggested: Measure
    longer: Longer | None = None
    game: bool = False
    grown: Branches | None = None


def judged(seen: Evidence) -> Iterator[Finding]:
    """The findings, one at most: each explains the others away."""
    ladder = seen.ladder
    if not math.isfinite(ladder.start):
        return
    if diverged(seen):
        yield _diverges(seen)
    elif no_gauge(ladder):
        return
    elif nothing(ladder):
        if not seen.learnt:
            yield _no_progress(seen) if ladder.whole else _unfinished(seen)
    elif _too_large(seen):
        yield _large(seen) if seen.grown is None or _soon(seen) else _late(seen, seen.grown)
    elif low(ladder) and not seen.learnt:
        yield _small(seen)


def low(ladder: Ladder) -> bool:
    """Tell whether far larger rates let the loss fall much further."""
    return ladder.best.factor >= kinds.SMALL_FACTOR and ladder.share < kinds.LOW_SHARE


def diverged(seen: Evidence) -> bool:
    """Tell whether the user's rates end in a loss that is not finite."""
    own = seen.begun.losses if seen.begun is not None and not seen.rates.scheduled else ()
    warmed = branches.warming(seen.rates) and branches.recovers(seen.grown)
    return (math.isinf(seen.ladder.here.fall) and not warmed) or bool(own and not math.isfinite(own[-1]))


def nothing(ladder: Ladder) -> bool:
    """Tell whether no rate lets the loss fall."""
    return ladder.best.fall < least(ladder.before)


def no_gauge(ladder: Ladder) -> bool:
    """Tell whether the loss lies about zero, as one does that gains weigh (a policy's): it tells no progress."""
    low, high = min(ladder.before), max(ladder.before)
    return low < 0 and (high > 0 or abs(ladder.start) < kinds.ABOUT_ZERO * float(np.std(ladder.before)))


def tiny(ladder: Ladder) -> bool:
    """Tell whether the present rate moves so little that it is worth making more steps at it.

    Of fewer steps than the thresholds were set for nothing follows.
    """
    return low(ladder) and ladder.steps >= STEPS and ladder.share < kinds.SMALL_SHARE


def _too_large(seen: Evidence) -> bool:
    """Ask the ladder, whose few batches the steps go round; branches on batches as they come may say otherwise."""
    return branches.too_large(seen.grown) or (_soon(seen) and not branches.recovers(seen.grown))


def _soon(seen: Evidence) -> bool:
    """Tell whether the ladder, or the first own steps, show a rate that is too large."""
    ladder = seen.ladder
    smaller = ladder.best.factor <= kinds.LARGE_FACTOR
    far = bool(range_test.far(ladder.here.losses, np.array(ladder.before)).any())
    lost = ladder.best.fall - ladder.here.fall >= kinds.HARM * abs(ladder.start) or not ladder.share > 0
    behind = ladder.share < kinds.LARGE_SHARE and lost
    return (smaller and (behind or far)) or (ladder.best.factor <= 1 and rises(seen))


def rises(seen: Evidence) -> bool:
    """Tell whether the first own steps, up to 60, raised the loss of the same batches."""
    begun = seen.begun
    if begun is None or not begun.after or len(begun.after) < 2 or seen.rates.scheduled:
        return False
    change = np.array(begun.after) - np.array(begun.before)
    error = float(np.std(change, ddof=1)) / math.sqrt(len(change))
    return float(change.mean()) > max(kinds.RISE * abs(float(np.mean(begun.before))), kinds.SPREADS * error)


def _tried(seen: Evidence, rung: Rung) -> Tried:
    ladder = seen.ladder
    after = [ladder.start - each.fall for each in (ladder.here, rung)]
    measure = f"loss of {len(ladder.before)} batches after {ladder.steps} steps on them"
    return Tried(f"a rate of {rung.factor * seen.rates.largest:.2g}", measure, *after)


def _to(seen: Evidence) -> str:
    """The rate that is advised, with its interval."""
    suggested, best = seen.suggested, seen.ladder.best.factor * seen.rates.largest
    value = suggested.value if math.isfinite(suggested.value) else best
    text = f"set the learning rate to {value:.2g}"
    if math.isfinite(suggested.low):
        text += f" (95 % interval {suggested.low:.2g} to {suggested.high:.2g})"
    groups = ", and the other groups' in proportion" if len(set(seen.rates.peak)) > 1 else ""
    return text + groups


def _start(ladder: Ladder) -> str:
    """The loss before, with as many digits as tell it from that after the user's own steps."""
    return f"{ladder.start:.{digits(ladder.start, ladder.here.fall)}g}"


def _times(factor: float) -> str:
    """Two digits, without an exponent: 630, 16, 2.5."""
    rounded = float(f"{factor:.2g}")
    return f"{rounded:,.0f}" if rounded >= 10 else f"{rounded:g}"


def _expected(seen: Evidence) -> str:
    ladder, best = seen.ladder, seen.ladder.best
    return (
        f"in {ladder.steps} steps the loss falls from {_start(ladder)} to {ladder.after(best)} at"
        f" {best.factor * seen.rates.largest:.2g}, and to {ladder.after(ladder.here)} at the present rate"
    )


def _factor(seen: Evidence) -> Measure:
    best = seen.ladder.best.factor
    scale = seen.rates.largest
    low, high = seen.suggested.low / scale, seen.suggested.high / scale
    value = seen.suggested.value / scale if math.isfinite(seen.suggested.low) else best
    return Measure("suggested over present rate", value, low, high, method=seen.suggested.method)


def _diverges(seen: Evidence) -> Finding:
    ladder, begun = seen.ladder, seen.begun
    own = begun.losses if begun is not None and not seen.rates.scheduled else ()
    losses = own if own and not math.isfinite(own[-1]) else ladder.here.losses
    at = f"in step {len(losses) - 1}" if not math.isfinite(losses[-1]) else f"after {len(losses)} steps"
    text = f"the training diverges: at the rate {seen.rates} its loss is {ladder.start:.3g} first and not finite {at}"
    if nothing(ladder):
        return Finding(
            "diverges", Status.BROKEN, f"{text}, and no smaller rate mends it",
            "look for the first layer whose values are not finite (see signal and precision)", "", ("model", *WHERE),
            Measure("steps until the loss is not finite", len(losses) - 1, unit="steps"),
        )  # fmt: skip
    return Finding(
        "diverges", Status.BROKEN, text, _to(seen), _expected(seen), WHERE, _factor(seen), _tried(seen, ladder.best)
    )


def _no_progress(seen: Evidence) -> Finding:
    ladder = seen.ladder
    low, high = (ladder.rungs[end].factor * seen.rates.largest for end in (0, -1))
    return Finding(
        "no_progress", Status.BROKEN,
        f"the loss of {len(ladder.before)} batches does not fall at any rate from {low:.1g} to {high:.1g}: it is"
        f" {ladder.start:.4g} at the start, and {ladder.after(ladder.best)} at best after {ladder.steps} steps on these"
        " batches",
        "look first at what signal and data say: a loss that no rate lowers is cut off from the weights or from"
        " the data",
        "", ("loss", "model"), Measure("largest fall over the start", ladder.best.fall / abs(ladder.start or 1)),
    )  # fmt: skip


def _unfinished(seen: Evidence) -> Finding:
    """No rate lets the loss fall, of the few that there was time for: nothing follows."""
    ladder = seen.ladder
    low, high = (ladder.rungs[end].factor * seen.rates.largest for end in (0, -1))
    return Finding(
        "not_measured", Status.UNDECIDED,
        f"the loss of {len(ladder.before)} batches falls at none of {len(ladder.rungs)} rates from {low:.1g} to"
        f" {high:.1g} in {ladder.steps} steps, and there was no time for others",
        "give the check a larger budget",
    )  # fmt: skip


def _large(seen: Evidence) -> Finding:
    ladder, begun = seen.ladder, seen.begun
    here, best = ladder.here, ladder.best
    worse = not here.fall > least(ladder.before) or rises(seen)
    if here.fall > 0 and rises(seen) and begun is not None:
        did = f"raises the loss from {np.mean(begun.before):.3g} to {np.mean(begun.after):.3g} in {begun.steps} steps"
    else:
        did = f"takes the loss from {_start(ladder)} to {ladder.after(here)} in {ladder.steps} steps"
        if (peak := max(here.losses)) > 2 * abs(ladder.start):
            did += f", by way of {peak:.3g}"
    against = (
        f", where {best.factor * seen.rates.largest:.2g} takes it to {ladder.after(best)}" if best is not here else ""
    )
    measure = _factor(seen)
    times = f"about {_times(1 / measure.value)} times too large" if measure.value < 1 else "too large"
    return Finding(
        "rate_too_large", Status.BROKEN if worse else Status.LOOK,
        f"the learning rate {seen.rates} is {times}: it {did}{against}", _to(seen), _expected(seen), WHERE, measure,
        _tried(seen, best) if best is not here else None,
    )  # fmt: skip


def _late(seen: Evidence, grown: Branches) -> Finding:
    """A rate that is seen to be too large over hundreds of steps alone."""
    rate = seen.rates.largest
    better = grown.best
    if seen.suggested.high < rate:
        better = seen.suggested.value / rate
    ends, own = grown.late(grown.best), grown.late(1.0)
    start = f"{grown.start:.3g}"
    reached = f"{own:.3g}" if math.isfinite(own) else "a value that is not finite"
    what = f"mean loss of the second half of {grown.steps} steps"
    lower = f"{grown.best * rate:.2g} takes it to {ends:.3g}"
    return Finding(
        "rate_too_large", Status.BROKEN if not own < grown.start else Status.LOOK,
        f"the learning rate {seen.rates} is about {_times(1 / better)} times too large: over {grown.steps} steps it"
        f" takes the loss from {start} to {reached}, where {lower}",
        _to(seen) if better != grown.best else f"set the learning rate to {better * rate:.2g}",
        f"over {grown.steps} steps the loss falls from {start} to {ends:.3g}, not to {reached}", WHERE,
        Measure("better over present rate", better, method=what),
        Tried(f"a rate of {grown.best * rate:.2g}", what, own, ends),
    )  # fmt: skip


def _open(seen: Evidence) -> bool:
    """Tell whether the fall of 24 steps says little: it has no floor, as a policy's, or steps still grow."""
    return _floorless(seen.ladder) or _moves(seen)


def _floorless(ladder: Ladder) -> bool:
    """Tell whether the loss falls far below 0, as a policy's."""
    return ladder.best.fall > kinds.NO_FLOOR * abs(ladder.start) and ladder.best.fall > ladder.start


def _moves(seen: Evidence) -> bool:
    """Tell whether more steps at the present rate do something, or larger ones gain nothing on new batches."""
    longer = seen.longer
    if longer is None:
        return False
    falls = longer.fall >= kinds.LOW_SHARE * seen.ladder.best.fall
    return _grows(longer, seen.ladder) or falls or longer.moved >= kinds.MOVED or not longer.gains


def _grows(longer: Longer, ladder: Ladder) -> bool:
    """Tell whether steps still grow, as of an optimizer that warms up by itself."""
    return longer.fall > kinds.GROWING * kinds.LONGER * max(ladder.here.fall, 0.0) > 0


def _small(seen: Evidence) -> Finding:
    ladder = seen.ladder
    measure, tried = _factor(seen), _tried(seen, ladder.best)
    did = (
        f"in {ladder.steps} steps it takes the loss from {_start(ladder)} to {ladder.after(ladder.here)}, where"
        f" {ladder.best.factor * seen.rates.largest:.2g} takes it to {ladder.after(ladder.best)}"
    )
    slow = seen.longer is not None and seen.longer.slow and not (_floorless(ladder) or _grows(seen.longer, ladder))
    if seen.game or not (slow or (tiny(ladder) and not _open(seen))):
        text = f"the learning rate {seen.rates} is low: {did}"
        return Finding("rate_low", Status.LOOK, text, _to(seen), _expected(seen), WHERE, measure, tried)
    still = ladder.here.fall < least(ladder.before)
    text = f"the learning rate {seen.rates} is about {_times(measure.value)} times too small: {did}"
    status = Status.BROKEN if still else Status.LOOK
    return Finding("rate_too_small", status, text, _to(seen), _expected(seen), WHERE, measure, tried)
