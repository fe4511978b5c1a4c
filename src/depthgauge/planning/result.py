"""A plan: what each batch size takes, and what it asks of the learning rate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from depthgauge.digits import three
from depthgauge.questions import spelled
from depthgauge.stats import Estimate

Rule = Literal["linear", "square root"]
"""What the rate is in proportion to at small batches; both level off beyond the critical batch size."""

NAMED: dict[Rule, str] = {"linear": "in proportion", "square root": "by the square root"}


@dataclass(frozen=True)
class Point:
    """The gradient noise scale at one point of the training.

    Attributes:
        step: updates done before it was measured.
        scale: in examples; infinite or below zero where no signal was seen.
        low: lower end of its interval.
        high: upper end; infinite where the data leave open whether there is a signal.
        examples: examples whose gradients were used.
        gradients: independent gradients that the interval is from, each of a group of these examples.
    """

    step: int
    scale: float
    low: float
    high: float
    examples: int
    gradients: int

    @property
    def told(self) -> str:
        """The scale, or its lower end where the data leave open whether there is a signal."""
        return three(self.scale) if 0 < self.scale < math.inf else f"{three(self.low)} or more"


@dataclass(frozen=True)
class Row:
    """One batch size on one number of devices, with 95 % intervals.

    Attributes:
        batch: examples a step, over all devices.
        devices: number of devices.
        steps: number of steps to where the training's own steps lead.
        step_seconds: seconds of a step, the exchange of gradients included where a link was given.
        factor: of the learning rate, against the present one.
        rate: learning rate; NaN without an optimizer.
        memory: bytes of the tensors that a step makes on a device, at its height; NaN where it was not measured.
    """

    batch: int
    devices: int
    steps: Estimate
    step_seconds: Estimate
    factor: Estimate
    rate: Estimate
    memory: float

    @property
    def examples(self) -> Estimate:
        """Examples that the steps take."""
        return self.steps.times(self.batch, "examples")

    @property
    def seconds(self) -> Estimate:
        """Seconds of all steps; each end is the product of both ends, n that of the factor of fewer repetitions.

        Those of the steps are gradients, those of a step's seconds are rounds.
        """
        a, b = self.steps, self.step_seconds
        method = "ends of steps times ends of a step's seconds"
        return Estimate(a.value * b.value, a.low * b.low, a.high * b.high, min(a.n, b.n), method, "s")

    @property
    def device_hours(self) -> Estimate:
        """Hours of all devices together: what the training costs."""
        return self.seconds.times(self.devices / 3600, "h")

    @property
    def extrapolated(self) -> bool:
        """Tell whether its seconds are those of devices that were not there."""
        return self.devices > 1


@dataclass(frozen=True)
class Plan:
    """Steps, seconds and learning rate by batch size and number of devices.

    Attributes:
        present: batch size of the training as it is.
        steps: its number of steps.
        rate: its learning rate; NaN without an optimizer.
        rule: of the learning rate; None where the optimizer has none that is known.
        critical: critical batch size, the mean gradient noise scale along the training.
        points: the noise scale at each point.
        rows: by batch size, then devices.
        notes: what the figures leave out, in sentences.
    """

    present: int
    steps: int
    rate: float
    rule: Rule | None
    critical: Estimate
    points: tuple[Point, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]

    def to_frame(self) -> pd.DataFrame:
        """One row a batch size and number of devices; each figure with the ends of its 95 % interval."""
        return pd.DataFrame(
            {
                "batch": row.batch, "devices": row.devices, **spelled("steps", row.steps),
                **spelled("examples", row.examples), **spelled("step_seconds", row.step_seconds),
                **spelled("seconds", row.seconds), **spelled("device_hours", row.device_hours),
                **spelled("learning_rate", row.rate), **spelled("rate_factor", row.factor),
                "memory_bytes": row.memory, "extrapolated": row.extrapolated,
            }
            for row in self.rows
        )  # fmt: skip

    def noise_frame(self) -> pd.DataFrame:
        """The gradient noise scale along the training, one row a point: step, value, low_95, high_95, examples."""
        return pd.DataFrame(
            {"step": p.step, "value": p.scale, "low_95": p.low, "high_95": p.high, "examples": p.examples}
            for p in self.points
        )

    @property
    def decided(self) -> bool:
        """Tell whether the data bound the noise scale from above."""
        return math.isfinite(self.critical.high)

    def advice(self, batch: int) -> str:
        """Advice on the learning rate at one of the plan's batch sizes, with its reason, in one sentence.

        Its seconds are those on the most devices that share the batch.

        Raises:
            ValueError: the plan has no such batch size.
        """
        row = max((row for row in self.rows if row.batch == batch), key=lambda row: row.devices, default=None)
        if row is None:
            there = ", ".join(str(size) for size in dict.fromkeys(row.batch for row in self.rows))
            raise ValueError(f"the plan has no batch size {batch}; it has {there}")
        lead, ratio = f"From batch {self.present:,} to {batch:,}", batch / self.present
        if ratio == 1:
            return f"Batch {batch:,} is the present one: steps and learning rate stay"
        if self.rule is None:
            return f"{lead}: no rule for the learning rate of this optimizer is known; {self._why(row)}"
        linear = ratio if self.rule == "linear" else math.sqrt(ratio)
        if not self.decided:
            used = max(point.examples for point in self.points)
            return (
                f"{lead}: undecided, multiply the learning rate by a factor between {three(row.factor.low)} and "
                f"{three(row.factor.high)}; the gradient noise scale is {three(self.critical.low)} examples or more, "
                f"with no upper end, and a measurement from more examples than {used:,} would decide it"
            )
        bounds = f"{three(row.factor.value)} [{three(row.factor.low)}, {three(row.factor.high)}]"
        near = abs(math.log(row.factor.value / linear)) < 0.05 * abs(math.log(linear))
        against = f", nearly {NAMED[self.rule]}," if near else f", not by {three(linear)},"
        given = "" if math.isnan(self.rate) else f" if {three(self.rate)} is the best rate at batch {self.present:,},"
        return f"{lead}, multiply the learning rate by {bounds}{against}{given} as {self._why(row)}"

    def _why(self, row: Row) -> str:
        scale = f"{three(self.critical.value)} [{three(self.critical.low)}, {three(self.critical.high)}]"
        first, last = self.points[0], self.points[-1]
        way = f" ({first.told} at first, {last.told} after {last.step:,} steps)" if last.step else ""
        steps = f"{row.steps.value:,.0f} [{row.steps.low:,.0f}, {row.steps.high:,.0f}]"
        now = next((each for each in self.rows if (each.batch, each.devices) == (self.present, 1)), None)
        seconds = row.seconds
        took = ""
        if now is not None and math.isfinite(seconds.value + now.seconds.value):
            there = f" on {row.devices:,} devices" if row.devices > 1 else ""
            took = f" and {three(seconds.value)} [{three(seconds.low)}, {three(seconds.high)}] s{there}"
            took += f" in place of {three(now.seconds.value)} s{' on one' if there else ''}"
        return (
            f"the gradient noise scale along the training is {scale} examples{way}: {steps} steps in place of "
            f"{self.steps:,} ({self.steps * self.present / row.batch:,.0f} in proportion){took}"
        )

    @property
    def fastest(self) -> tuple[Row, ...]:
        """The row of least seconds for each number of devices; none where no seconds were measured."""
        timed = [row for row in self.rows if math.isfinite(row.seconds.value)]
        counts = dict.fromkeys(sorted(row.devices for row in timed))
        return tuple(
            min((row for row in timed if row.devices == count), key=lambda row: row.seconds.value) for count in counts
        )

    @property
    def bought(self) -> str:
        """Time and cost of the fastest row on each number of devices, in one sentence; empty for one number.

        `Fastest on 8 devices: batch 256 in 3.2 [2.9, 4.1] s, 0.0071 [...] device-hours; on 64 devices: ...`
        """
        rows = self.fastest
        if len(rows) < 2:
            return ""
        each = [
            f"on {row.devices:,} device{'s' * (row.devices > 1)} batch {row.batch:,} in {_ends(row.seconds)} s for "
            f"{_ends(row.device_hours)} device-hours" + " (extrapolated)" * row.extrapolated
            for row in rows
        ]
        return f"Fastest {'; '.join(each)}"

    @property
    def line(self) -> str:
        """The advice for as many devices as were asked for, or for the largest batch.

        `From batch 32 to 256, multiply the learning rate by 3.1 [2.2, 4.6], not by 8, if 0.1 is the best rate ...`
        """
        widest = max(row.devices for row in self.rows)
        scaled = [row.batch for row in self.rows if row.batch == widest * self.present and widest > 1]
        return self.advice(scaled[0] if scaled else max(row.batch for row in self.rows))

    def __str__(self) -> str:
        """The line, and what the figures take for granted and leave out, a sentence a line."""
        return "\n".join((f"{self.line}.", *(f"{self.bought}." for _ in self.fastest[1:2]), *self.notes))


def _ends(estimate: Estimate) -> str:
    return f"{three(estimate.value)} [{three(estimate.low)}, {three(estimate.high)}]"
