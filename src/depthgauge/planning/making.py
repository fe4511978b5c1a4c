"""Making of a plan: noise scales along the training, the cost of a step, and what follows for each batch size."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch

from depthgauge import noise
from depthgauge.formats.arguments import whole
from depthgauge.parallel.links import Link
from depthgauge.planning import along, costs, sharing
from depthgauge.planning.along import relative_steps
from depthgauge.planning.result import Plan, Point, Row, Rule
from depthgauge.stats import Estimate
from depthgauge.workload import Training, WorkloadError, check_training, default_loss, sentences

WARM = 100  # steps taken before the last measurement, where the user says nothing
POINTS = 8  # evenly spaced over these steps, at which the noise scale is measured
UNITS = 128  # gradients that a noise scale is estimated from, each of a group of examples
CONFIDENCE = 0.95
POWERS = range(-2, 5)  # of two: batch sizes around the present one

_LINEAR = (torch.optim.SGD, torch.optim.ASGD)
_NORMALIZED = (
    torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam, torch.optim.RAdam, torch.optim.Adamax, torch.optim.RMSprop,
    torch.optim.Adagrad,
)  # fmt: skip


def plan(
    training: Training,
    *,
    batches: Iterable[int] | None = None,
    devices: Iterable[int] = (1,),
    steps: int = 1000,
    warm: int | None = None,
    examples: int = 1024,
    link: Link | str | None = None,
    progress: Callable[[str], object] | None = None,
) -> Plan:
    """Plan a training at other batch sizes: steps, seconds and learning rate, each with a 95 % interval.

    The training is left as it was. Its batches say what the present batch size is; its optimizer, the present rate.

    Args:
        training: the user's.
        batches: batch sizes, over all devices together; None: powers of two times the present one, from a quarter to
            sixteen times, and the present one on every device.
        devices: numbers of devices that share a batch evenly.
        steps: steps that the training takes at its present batch size.
        warm: own steps to take, along which the noise scale is measured at up to eight points; None: 100, or `steps`
            where that is fewer; without an optimizer none can be taken.
        examples: examples that each measurement of the noise scale uses.
        link: between the devices, or its name or figures as `Link.parse` takes them; without it only computing counts.
        progress: is told in words what is done next.

    Raises:
        WorkloadError: the training cannot be run, or an argument is out of range; the message is one sentence.
    """
    check_training(training)
    between = sharing.link_of(link)
    tell = progress or (lambda _: None)
    with training.untouched():
        first = training.first()[0]
        present = costs.examples_of(first)
        wanted = _sizes(batches, devices, present)
        warm = _checked(training, steps, warm, examples)
        with sentences():
            training.value(first).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        points = tuple(_points(training, warm, examples, present, tell))
    with training.untouched(), sentences():
        each = {batch // count for batch, count in wanted}
        measured = costs.curve(training, each, CONFIDENCE, tell)
    shares = along.weights([point.step for point in points], steps).tolist()
    critical = _critical(points, shares, present)
    rate, rule = _rate(training.optimizer)
    sizes = sharing.buckets(each.numel() * each.element_size() for each in costs.trained(training))

    def exchange(alone: Estimate, devices: int) -> Estimate:
        return sharing.shared(alone, between, sizes, devices)

    rows = tuple(
        _row((batch, count), Now(present, steps, rate, rule), critical, measured[batch // count], exchange)
        for batch, count in wanted
    )
    notes = (*_assumed(training, points, steps), *_missing(measured.values()), *sharing.told(rows, between))
    return Plan(present, steps, rate, rule, critical, points, rows, notes)


class Now(NamedTuple):
    """The training as it is: batch size, steps, learning rate, and the rate's rule."""

    present: int
    steps: int
    rate: float
    rule: Rule | None


# -- what was asked ----------------------------------------------------------------------------------------------------


def _sizes(batches: Iterable[int] | None, devices: Iterable[int], present: int) -> list[tuple[int, int]]:
    """(batch, devices) that are planned: those that divide evenly."""
    counts = _numbers("devices", devices)
    if batches is None:
        scaled = {present * 2**power for power in POWERS if power >= 0} | {present * count for count in counts}
        sizes = sorted(scaled | {present // 2**-power for power in POWERS if power < 0 and present % 2**-power == 0})
    else:
        sizes = _numbers("batches", batches)
    if pairs := [(batch, count) for batch in sizes for count in counts if batch % count == 0]:
        return pairs
    raise WorkloadError(f"no batch of {sizes} divides evenly among {counts} devices")


def _numbers(name: str, values: Iterable[int]) -> list[int]:
    shown: object = values
    try:
        shown = values = list(values)
        given = sorted({whole(name, value) for value in values})
    except (TypeError, ValueError):
        given = []
    if not given:
        raise WorkloadError(f"{name} are whole numbers from 1 on, such as (16, 64), not {shown!r:.60}")
    return given


def _checked(training: Training, steps: int, warm: int | None, examples: int) -> int:
    """Own steps to take."""
    costs.trained(training)
    for name, value, least in (("steps", steps, 1), ("warm", warm, 0), ("examples", examples, 2)):
        if value is not None and (type(value) is not int or value < least):
            raise WorkloadError(f"{name} is a whole number from {least} on, not {value!r:.60}")
    if training.optimizer is None:
        if warm:
            raise WorkloadError("without an optimizer no step can be taken: give the Training one, or leave warm out")
        return 0
    return min(steps, WARM if warm is None else warm)


# -- the noise scale along the training --------------------------------------------------------------------------------


def _points(
    training: Training, warm: int, examples: int, present: int, tell: Callable[[str], object]
) -> Iterator[Point]:
    """Train for so many steps, and measure the noise scale on the way."""
    places = sorted({round(warm * (k + 1) / POINTS) for k in range(POINTS)})
    there = sum(map(costs.examples_of, training.first(-(-examples // present))))
    if there < 2:
        raise WorkloadError("its batches hold one example: a noise scale takes two, and is known well from hundreds")
    stream = training.stream()
    for done in range(warm + 1):
        if done in places:
            tell(f"noise scale after {done:,} of {warm:,} steps")
            yield _point(training, done, min(examples, there), present)
        if done < warm:
            assert training.optimizer is not None
            with sentences():
                costs.step_of(training, next(stream), training.optimizer)()


def _point(training: Training, done: int, examples: int, present: int) -> Point:
    """The noise scale at the present weights, from examples of which none comes twice."""
    loss, sample = training.loss or default_loss, costs.joined(training.stream(), examples)
    group = min(present, examples // 5) if _normalizes(training) else examples // UNITS
    try:
        found = noise.scale(
            training.model, lambda model, batch, _: loss(model, batch), sample, None,
            confidence=CONFIDENCE, batch=max(1, group),
        )  # fmt: skip
    except noise.NoiseError as error:
        raise WorkloadError(f"no noise scale can be had of this training: {error.what}") from error
    if math.isnan(found.signal):
        raise WorkloadError(f"gradients are not finite after {done:,} steps: there is no plan for such a training")
    return Point(done, found.value, found.low, found.high, examples, found.n)


def _normalizes(training: Training) -> bool:
    """Tell whether an example's gradient depends on its batch: then groups are as large as the user's batches."""
    norms = torch.nn.modules.batchnorm._BatchNorm
    return any(isinstance(each, norms) and each.training for part in training.modules for each in part.modules())


def _critical(points: Sequence[Point], shares: Sequence[float], present: int) -> Estimate:
    """The critical batch size; n counts the gradients of the point that has the fewest."""
    columns = zip(*((_seen(p.scale), p.low, p.high) for p in points), strict=True)
    value, low, high = (along.critical_batch(column, shares, present) for column in columns)
    method = f"gradient noise scale at {len(points)} points of the training, {100 * CONFIDENCE:g} %"
    return Estimate(value, low, high, min(point.gradients for point in points), method, "examples")


def _seen(scale: float) -> float:
    """The scale, infinite where the estimate of the signal is not above zero."""
    return scale if scale >= 0 else math.inf


# -- what follows ------------------------------------------------------------------------------------------------------


def _rate(optimizer: torch.optim.Optimizer | None) -> tuple[float, Rule | None]:
    if optimizer is None:
        return math.nan, "linear"
    rate = float(optimizer.param_groups[0]["lr"])
    if isinstance(optimizer, _LINEAR):
        return rate, "linear"
    return rate, "square root" if isinstance(optimizer, _NORMALIZED) else None


def _row(
    size: tuple[int, int], now: Now, critical: Estimate, cost: costs.Cost, exchange: Callable[[Estimate, int], Estimate]
) -> Row:
    batch, devices = size
    relative = _transformed(partial(relative_steps, batch, now.present), critical)
    power = {"linear": -1.0, "square root": -0.5, None: math.nan}[now.rule]
    factor = _transformed(lambda ratio: ratio**power, relative)
    step = exchange(cost.seconds, devices)
    return Row(batch, devices, relative.times(now.steps, "steps"), step, factor, factor.times(now.rate), cost.memory)


def _transformed(function: Callable[[float], float], estimate: Estimate) -> Estimate:
    """The estimate of a monotone function of what was estimated."""
    low, high = sorted((function(estimate.low), function(estimate.high)))
    return Estimate(function(estimate.value), low, high, estimate.n, estimate.method)


def _assumed(training: Training, points: Sequence[Point], steps: int) -> Iterator[str]:
    """What the noise scale and the rates take for granted."""
    last, optimizer = points[-1].step, training.optimizer
    if optimizer is None:
        yield (
            "Without an optimizer the noise scale is that of the weights as they are, the factors are those of SGD, "
            "and there is no rate."
        )
    elif last < steps:
        yield (
            f"The noise scale was measured up to step {last:,} and is taken to stay as it was there up to {steps:,}; "
            "where it rises on, larger batches save more steps than planned: measure along more of the training (warm)."
        )
    if optimizer is not None:
        yield (
            "The present learning rate is taken to be the best one at the present batch size; where it is lower, the "
            "rate limits the steps, not the noise, and a larger batch bears a larger factor. See learning_rate.find."
        )
    if optimizer is not None and len({float(group["lr"]) for group in optimizer.param_groups}) > 1:
        yield "The optimizer has several rates: the first is shown, and the factor is for all."


def _missing(measured: Iterable[costs.Cost]) -> Iterator[str]:
    """What the seconds leave out."""
    yield f"Seconds are those of this machine, with {torch.get_num_threads()} of its threads for work on the processor."
    yield from dict.fromkeys(f"{cost.why[0].upper()}{cost.why[1:]}." for cost in measured if cost.why)
