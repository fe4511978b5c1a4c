"""A learning rate for a training, by a range test that knows its uncertainty.

    found = learning_rate.find(Training(model, loader, optimizer=adam))
    print(found)                        # learning rate 0.011 [0.0022, 0.055]: ...
    found.value, found.low, found.high, found.undecided
    found.to_frame()                    # the curve: one row a rate

The rate rises by a constant factor a step (Smith 2017, "Cyclical learning rates for training neural networks", section
3.3), several times from the same weights, each time over the batches in another order. What is looked at is the change
of each batch's own loss since the start, so that differences between batches are no part of it. The training is left as
it was.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray

from depthgauge import stats
from depthgauge.formats.arguments import real, whole
from depthgauge.seeding import Purpose, generator, seed_torch
from depthgauge.stats import laws
from depthgauge.workload import Training, WorkloadError, check_training, sentences

Floats = NDArray[np.float64]

FACTOR = 1.2  # between a rate and the next: 12.6 steps a decade; the fraction below belongs to this pace
FRACTION = 1 / 3  # of the rate at which the loss is lowest
SPREAD = 0.62  # standard deviation of ln(tuned rate / suggestion) over conditions, see docs/learning-rate.md
CONDITIONS = 26  # that the two figures above were taken from
WINDOW = 5  # steps over which a change of the loss is averaged, its own in the middle
DISAGREE = 10.0  # largest ratio between repetitions that is no disagreement
LEAST_FALL = 0.01  # share of the loss at the start: a curve that falls less does not fall
FEWEST = 5  # different batches, and repetitions, from which there is an interval


@dataclass(frozen=True, eq=False)
class Found:
    """The outcome of a range test.

    Attributes:
        value: the rate, that of the parameter group with the largest one; NaN where undecided.
        low: lower end of the 95 % interval for the rate that tuning would choose; NaN where undecided.
        high: upper end.
        undecided: the reason why there is no answer, a sentence; empty where there is one.
        suggestions: one rate a repetition; NaN where its curve has none.
        rates: (k,) rates that were tried.
        change: (repetitions, k) change of each batch's loss since the start, before the step at that rate; NaN after a
            repetition ended.
        start: mean loss at the start.
        batches: different batches that were used.
    """

    value: float
    low: float
    high: float
    undecided: str
    suggestions: tuple[float, ...]
    rates: Floats
    change: Floats
    start: float
    batches: int

    def to_frame(self) -> pd.DataFrame:
        """The curve, one row a rate.

        `loss` is the smoothed loss, mean over the repetitions that got so far, `sd` its standard deviation over these,
        `n` their number.
        """
        smooth = np.stack([smoothed(change) for change in self.change])
        n = np.isfinite(smooth).sum(0)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = np.nansum(smooth, axis=0) / n
            spread = np.sqrt(np.nansum((smooth - mean) ** 2, axis=0) / (n - 1))
        table = {"rate": self.rates, "loss": self.start + mean, "sd": np.where(n > 1, spread, np.nan), "n": n}
        kept: pd.DataFrame = pd.DataFrame(table).loc[n > 0]
        return kept

    def __str__(self) -> str:
        if self.undecided:
            return f"learning rate undecided: {self.undecided}"
        return (
            f"learning rate {self.value:.2g} [{self.low:.2g}, {self.high:.2g}]: a third of the rate at which the loss"
            f" is lowest, {len(self.suggestions)} repetitions over {self.batches} batches"
        )


def rates_between(low: float, high: float) -> Floats:
    """Learning rates of one sweep, each `FACTOR` times the last.

    Raises:
        ValueError: the two do not span a decade, or are not positive.
    """
    first, last = real(low), real(high)
    if not (first > 0 and 10 * first <= last < math.inf):
        raise ValueError(
            f"a range test runs from a rate above 0 to one ten times as large or more; got {low!r}, {high!r}"
        )
    steps = math.ceil((math.log(last) - math.log(first)) / math.log(FACTOR))
    with np.errstate(over="ignore"):  # the last may lie beyond the numbers that there are
        rates: Floats = first * np.power(FACTOR, np.arange(steps + 1, dtype=np.float64))
    return rates


def smoothed(change: ArrayLike) -> Floats:
    """Mean of the `WINDOW` values around each, of fewer at the ends; values that are not finite stay so, alone."""
    values = np.asarray(change, dtype=np.float64)
    finite = np.isfinite(values)
    kernel = np.ones(WINDOW)
    total = np.convolve(np.where(finite, values, 0.0), kernel, "same")
    count = np.convolve(finite.astype(np.float64), kernel, "same")
    means: Floats = np.where(finite, total / np.maximum(count, 1.0), np.nan).astype(np.float64)
    return means


def far(losses: ArrayLike, start: Floats) -> NDArray[np.bool_]:
    """Tell where a sweep is over: the loss is not finite, or above twice the largest size at the start and its spread.

    However far it falls, below zero too, is no end of it: only minus infinity is, from which no gradient leads on.
    """
    limit, values = 2 * float(np.abs(start).max()) + float(np.std(start)), np.asarray(losses, dtype=np.float64)
    return ~(np.isfinite(values) & (values <= limit))


@dataclass(frozen=True)
class Curve:
    """Marks of one repetition's curve.

    Attributes:
        lowest: rate at which the smoothed change of the loss is lowest.
        steepest: rate at which it falls fastest by step, up to the lowest.
        risen: rate from which on half of the fall is lost again, or the repetition ended; NaN where neither.
        fall: size of the fall.
        falls: whether the fall is one.
    """

    lowest: float
    steepest: float
    risen: float
    fall: float
    falls: bool

    @property
    def rises(self) -> bool:
        """Tell whether the loss rises again."""
        return math.isfinite(self.risen)


def marks(rates: Floats, change: Floats, start: float) -> Curve:
    """Read one repetition's curve.

    Args:
        rates: (k,), ascending.
        change: (k,) changes of the loss; infinite or NaN from where the repetition ended.
        start: mean loss at the start; a fall of less than `LEAST_FALL` of it is none, nor is one of less than twice
            the standard deviation of the first tenth of the changes.
    """
    finite = np.isfinite(change)
    end = len(change) if finite.all() else int(finite.argmin())
    if end < WINDOW:
        return Curve(math.nan, math.nan, math.nan, 0.0, falls=False)
    smooth = smoothed(change[:end])
    lowest = int(smooth.argmin())
    fall = -float(smooth[lowest])
    jitter = float(np.std(change[: max(2, min(end, len(change) // 10))]))
    steepest = int(np.gradient(smooth)[: lowest + 1].argmin())
    lost = np.flatnonzero(smooth[lowest:] >= -fall / 2)
    over = lowest + int(lost[0]) if len(lost) else end
    risen = float(rates[over]) if over < len(change) else math.nan
    falls = fall > max(LEAST_FALL * abs(start), 2 * jitter)
    return Curve(float(rates[lowest]), float(rates[steepest]), risen, fall, falls)


def judged(rates: Floats, change: Floats, start: float, batches: int) -> Found:
    """The answer of sweeps that were made.

    Args:
        rates: (k,), as of `rates_between`.
        change: (repetitions, k) changes of the loss since the start, not finite from where a repetition ended.
        start: mean loss at the start.
        batches: different batches that were used.
    """
    curves = [marks(rates, row, start) for row in change]
    suggestions = tuple(FRACTION * curve.lowest if curve.falls and curve.rises else math.nan for curve in curves)
    reason = _undecided(curves, rates, batches)
    if reason:
        value = low = high = math.nan
    else:
        estimate = stats.mean(suggestions, log=True)
        ratio = estimate.high / estimate.value if math.isfinite(estimate.high) else 1.0  # equal ones have no spread
        another = SPREAD * math.sqrt(1 + 1 / CONDITIONS)  # a further condition, about a mean of as many
        reach = math.hypot(math.log(ratio), laws.student_quantile(0.975, CONDITIONS - 1) * another)
        value, low, high = estimate.value, estimate.value * math.exp(-reach), estimate.value * math.exp(reach)
    return Found(
        value, low, high, reason, suggestions, rates, np.where(np.isfinite(change), change, np.nan), start, batches
    )


def _undecided(curves: list[Curve], rates: Floats, batches: int) -> str:
    """The reason why sweeps do not decide, empty where they do."""
    count = len(curves)
    if batches < FEWEST:
        return f"{batches} {'batch is' if batches == 1 else 'batches are'} too few; it takes {FEWEST} different ones"
    if silent := sum(not curve.falls for curve in curves):
        return (
            f"in {silent} of {count} repetitions the loss falls at no rate from {rates[0]:.2g} to {rates[-1]:.2g} by"
            f" {LEAST_FALL:.0%} of its start and clear of its noise"
        )
    if open_ended := sum(not curve.rises for curve in curves):
        return (
            f"in {open_ended} of {count} repetitions the loss has not risen again at {rates[-1]:.2g};"
            " give a higher `high`"
        )
    lowest = [curve.lowest for curve in curves]
    if max(lowest) > DISAGREE * min(lowest):
        return (
            f"the rate at which the loss is lowest differs by a factor of {max(lowest) / min(lowest):.0f} between"
            f" {count} repetitions, from {min(lowest):.2g} to {max(lowest):.2g}"
        )
    return ""


def find(
    training: Training,
    *,
    low: float = 1e-6,
    high: float = 100.0,
    repetitions: int = 5,
    seed: int = 0,
    progress: Callable[[int, int], object] | None = None,
) -> Found:
    """Find a learning rate for a training, which is left as it was.

    Each repetition begins with the weights and the optimizer's state that are there, and makes one step of the user's
    own optimizer at each rate, until the loss is not finite or has risen by its own size. Parameter groups keep the
    ratios of their rates; schedulers are not asked. It holds as many batches as a sweep has steps, 103 from 1e-6 to
    100, or all there are, and takes at most repetitions x steps steps, beside a forward pass of each batch.

    Args:
        training: model, batches, loss and optimizer; without an optimizer SGD. The model stays in the mode that it is
            in. Gradient scaling and autocast are the loss's own affair.
        low: first rate.
        high: last rate; a sweep that diverges does not get there.
        repetitions: at least 5, for an interval.
        seed: of the orders of the batches, and of dropout.
        progress: called as `progress(repetition, repetitions)` when one is done.

    Raises:
        WorkloadError: the training has no parameter, no batch, or a loss that is not finite before the first step; or
            its optimizer wants a closure.
        ValueError: fewer repetitions, or rates that span no decade.
    """
    rates = rates_between(low, high)
    repetitions = whole("repetitions", repetitions, FEWEST)
    check_training(training)
    optimizer = _optimizer(training)
    batches = training.first(len(rates))
    with training.untouched(), sentences():
        start = np.array([_start(training, batch) for batch in batches])
    rows = []
    for repetition in range(repetitions):
        order = _order(len(batches), len(rates), seed, repetition)
        with training.untouched(), sentences():
            seed_torch(seed, Purpose.DROPOUT, repetition, device=_device(training))
            losses = np.fromiter(_sweep(training, optimizer, rates, [batches[i] for i in order], start), np.float64)
        row = np.full(len(rates), math.nan)
        row[: len(losses)] = losses - start[order[: len(losses)]]
        rows.append(row)
        if progress is not None:
            progress(repetition + 1, repetitions)
    return judged(rates, np.stack(rows), float(start.mean()), len(batches))


def _optimizer(training: Training) -> torch.optim.Optimizer:
    """The user's optimizer, or SGD.

    Raises:
        WorkloadError: nothing trains, or the optimizer cannot be stepped with gradients alone.
    """
    owned = [parameter for parameter in training.model.parameters() if parameter.requires_grad]
    if training.optimizer is None:
        if not owned:
            raise WorkloadError("no parameter of the model trains, so that no learning rate can be found")
        return torch.optim.SGD(owned, lr=1.0)
    if isinstance(training.optimizer, torch.optim.LBFGS):
        raise WorkloadError("LBFGS takes a closure and several passes a step: a range test needs another optimizer")
    if not any(each.requires_grad for group in training.optimizer.param_groups for each in group["params"]):
        raise WorkloadError("the optimizer has no parameter that trains, so that no learning rate can be found")
    if not any(float(group["lr"]) > 0 for group in training.optimizer.param_groups):
        raise WorkloadError("every rate of the optimizer is 0, so that the ratios of its groups' rates are not known")
    return training.optimizer


def _start(training: Training, batch: Any) -> float:
    """The loss of a batch before the first step.

    Raises:
        WorkloadError: it is not finite.
    """
    loss = float(training.value(batch).detach())
    if not math.isfinite(loss):
        raise WorkloadError(f"the loss is {loss} before the first step, so that no learning rate can be found")
    return loss


def _sweep(
    training: Training, optimizer: torch.optim.Optimizer, rates: Floats, batches: list[Any], start: Floats
) -> Iterator[float]:
    """Step once at each rate; the losses before the steps, until one is not finite or far above the start."""
    groups = optimizer.param_groups
    largest = max(float(group["lr"]) for group in groups)
    shares = [float(group["lr"]) / largest for group in groups]
    for rate, batch in zip(rates, batches, strict=True):
        optimizer.zero_grad()
        loss = training.value(batch)
        value = float(loss.detach())
        if far(value, start):
            return
        yield value
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        for group, share in zip(groups, shares, strict=True):
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(share * float(rate))
            else:
                group["lr"] = share * float(rate)
        optimizer.step()


def _order(batches: int, steps: int, seed: int, repetition: int) -> NDArray[np.int64]:
    """Places (steps,) of batches: permutations one after another, others in each repetition."""
    draws = generator(seed, Purpose.ORDER, repetition)
    rounds = [torch.randperm(batches, generator=draws).numpy() for _ in range(-(-steps // batches))]
    return np.concatenate(rounds)[:steps]


def _device(training: Training) -> torch.device:
    """The device of the parameters."""
    return next((parameter.device for parameter in training.model.parameters()), torch.device("cpu"))
