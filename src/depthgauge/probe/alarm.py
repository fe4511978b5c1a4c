"""An alarm over many layers: which one left its range first, at a rate of false alarms that is bounded.

The figure of a layer is log2 of a tensor's root mean square. Each new one is held against the last 32 of the same
tensor: its distance from their median, in their own spread (median absolute deviation), has a two-sided p-value by
Student's law. An e-value follows from it: the mixture of k p^(k - 1) over k in (0, 1) (Vovk and Wang 2021, Ann.
Statist. 49, 1736), whose mean is 1 where p is uniform. The Shiryaev-Roberts statistic R <- (R + 1) e of every tensor
then sums the evidence for a change that began at any time; the alarm is raised when their mean over all tensors reaches
`MEAN_STEPS`. R minus the number of observations is a martingale where nothing changes, and so is the mean, however the
tensors depend on each other: the mean time to a false alarm is at least `MEAN_STEPS` observations (Shin, Ramdas and
Rinaldo 2024, NEJSDS 2, 229).

That holds for p-values that are uniform, or larger, given the past. Three rules keep it where a training is no white
noise: a figure within a factor of two of its median is no evidence; values that follow each other count for less, by
the power (1 - r) / (1 + r) where r is their correlation; and it takes three observations, as one outlying batch is no
change. docs/watching.md has the rates that were measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas as pd

Floats = NDArray[np.float64]

MEAN_STEPS = 100_000  # recorded steps between false alarms, on average at least: a run of a million with every=10
WINDOW = 32  # observations behind a median: it takes 16 of another level to move it
FREEDOM = 4.0  # of Student's law: a spread estimated from 32 values, and steps whose tails are heavier than normal
LEAST = 1.0  # binades: a layer within a factor of two of where it was has not left its range
SPREAD = 0.05  # binades: the least spread that a layer is taken to have, 3.5 %: constants have none
FEWEST = 3  # observations that it takes: one outlying batch is no change
NOTHING = -160.0  # log2 of a tensor of zeros: below any number that float32 holds
KEY = ("direction", "layer", "parameter", "output")
NORMAL_CONSISTENT = 1.4826  # median absolute deviation of a normal law, inverted


class AlarmWarning(UserWarning):
    """Warning that a layer has left its range."""


@dataclass(frozen=True)
class Alarm:
    """A layer that has left its range.

    Attributes:
        step: the recorded step that raised the alarm.
        since: the recorded step at which the layer left its range: the first of all layers that did.
        direction: `activation`, `activation_gradient`, `weight` or `weight_gradient`.
        layer: the module's qualified name, `""` for the module itself.
        parameter: name of the parameter; None for activations and their gradients.
        before: root mean square before it left, the median of the last 32 recorded steps.
        now: root mean square in the step of the alarm.
        layers: names of all layers that are out of their range by now, the first to leave first.
    """

    step: int
    since: int
    direction: str
    layer: str
    parameter: str | None
    before: float
    now: float
    layers: tuple[str, ...]

    def __str__(self) -> str:
        name = ".".join(filter(None, (self.layer or "the model", self.parameter)))
        more = len(self.layers) - 1
        also = f"; {more} more {'layer follows' if more == 1 else 'layers follow'}" if more else ""
        what = self.direction.replace("_", " ")
        return (
            f"step {self.step}: the {what} of {name} left its range first, in step {self.since}: its root mean square"
            f" was {self.before:.3g} and is {self.now:.3g}{also}"
        )


class Ranges:
    """The ranges of all tensors of a training, and the evidence that one was left.

    Args:
        mean_steps: recorded steps between false alarms, on average at least.
    """

    def __init__(self, mean_steps: float = MEAN_STEPS) -> None:
        self._least = mean_steps
        self._rows: dict[tuple[str, ...], int] = {}
        self._past = np.zeros((0, WINDOW))
        self._seen = np.zeros(0, np.int64)
        self._evidence = np.zeros(0)
        self._quiet = np.zeros(0, np.int64)  # observations since the last one that was evidence
        self._since = np.zeros(0, np.int64)
        self._before = np.zeros(0)

    def __len__(self) -> int:
        return len(self._rows)

    def observe(self, step: int, names: Sequence[tuple[str, ...]], log2_rms: Floats) -> Alarm | None:
        """Take the figures of one recorded step, and raise an alarm if it is due.

        Args:
            step: its number.
            names: (direction, layer, parameter, output) of each tensor, in the order of execution; none twice.
            log2_rms: of each tensor, in binades; -inf where all is zero, NaN where nothing was finite.
        """
        at = np.array([self._row(name) for name in names], np.intp)
        held = ~np.isnan(log2_rms)
        at, values = at[held], np.maximum(log2_rms[held], NOTHING)
        self._weigh(step, at, values)
        self._past[at, self._seen[at] % WINDOW] = values
        self._seen[at] += 1
        if self._evidence.sum() < len(self) * self._least or not len(self):
            return None
        alarm = self._alarm(step)
        self._seen[:] = 0  # ranges are learned anew: what has changed is told once
        self._evidence[:] = 0
        return alarm

    def _row(self, name: tuple[str, ...]) -> int:
        row = self._rows.setdefault(name, len(self._rows))
        if row == len(self._seen):
            more = max(16, row)
            self._past = np.pad(self._past, ((0, more), (0, 0)))
            for figure in ("_seen", "_quiet", "_since", "_evidence", "_before"):
                setattr(self, figure, np.pad(getattr(self, figure), (0, more)))
        return row

    def _weigh(self, step: int, at: NDArray[np.intp], values: Floats) -> None:
        """Add the evidence of one step to that of the tensors whose range is known."""
        known = self._seen[at] >= WINDOW
        at, values = at[known], values[known]
        order = (self._seen[at][:, None] + np.arange(WINDOW)) % WINDOW
        past = np.take_along_axis(self._past[at], order, axis=1)
        median = np.median(past, axis=1)
        around = past - median[:, None]
        spread = np.maximum(NORMAL_CONSISTENT * np.median(abs(around), axis=1), SPREAD)
        away = abs(values - median)
        weights = e_value(p_value(np.where(away < LEAST, 0.0, away / spread))) ** discount(around)
        cap = (len(self) * self._least) ** (1 / FEWEST)
        began = (self._quiet[at] >= FEWEST) & (weights > 1)
        self._quiet[at] = np.where(weights > 1, 0, self._quiet[at] + 1)
        self._since[at[began]], self._before[at[began]] = step, median[began]
        self._evidence[at] = (self._evidence[at] + 1) * np.minimum(weights, cap)

    def _alarm(self, step: int) -> Alarm:
        out = np.flatnonzero(self._evidence >= min(self._least, self._evidence.max()))
        out = out[np.lexsort((out, self._since[out]))]
        names = list(self._rows)
        first = int(out[0])
        direction, layer, parameter, _ = names[first]
        now = self._past[first, (self._seen[first] - 1) % WINDOW]
        layers = tuple(dict.fromkeys(names[row][1] for row in out))
        return Alarm(
            step, int(self._since[first]), direction, layer, parameter or None,
            _power(self._before[first]), _power(now), layers,
        )  # fmt: skip


def _power(log2: float) -> float:
    return 0.0 if log2 <= NOTHING else float(np.exp2(log2))


def figures(rows: pd.DataFrame) -> tuple[list[tuple[str, ...]], Floats]:
    """The tensors of one recorded step that have a range, and log2 of the root mean square of each.

    A layer's first call in training mode stands for it; updates, which follow the rate, have none.

    Args:
        rows: of one step, as `Watch` hands them on.
    """
    column = {name: rows[name].to_numpy() for name in ("call", "pass", "training", "skipped", "count", *KEY)}
    first = (column["call"] == 0) & (column["pass"] == 0) & column["training"] & ~column["skipped"]
    at = np.flatnonzero(first & (column["count"] > 0) & (column["direction"] != "update"))
    names = [
        tuple(name if isinstance(name, str) else "" for name in key)
        for key in zip(*(column[name][at] for name in KEY), strict=True)
    ]
    return names, rows["log2_rms"].to_numpy(np.float64)[at]


def p_value(distance: Floats) -> Floats:
    """Two-sided p-value by Student's law with `FREEDOM` = 4 degrees of freedom, in closed form.

    The tail beyond t is 1/2 - 3/4 s + 1/4 s^3 with s = t / sqrt(4 + t^2), that is (1 - s)^2 (2 + s) / 4.
    """
    assert FREEDOM == 4
    root = np.sqrt(4 + distance**2)
    short = 4 / (root * (root + distance))  # 1 - s, without cancellation
    tail = short**2 * (3 - short) / 4
    return np.clip(2 * tail, 1e-300, 1.0)


def discount(around: Floats) -> Floats:
    """The share of observations that are independent, (1 - r) / (1 + r), by which correlated evidence is weakened.

    r is the correlation of neighbours, from how often they lie on one side of the median: sin(pi / 2 tau), as of a
    normal law. An e-value to a power below 1 is one still, by Jensen's inequality.

    Args:
        around: (tensors, observations) distances from the median, in order.
    """
    sides = np.sign(around)
    r = np.clip(np.sin(np.pi / 2 * (sides[:, 1:] * sides[:, :-1]).mean(axis=1)), 0.0, 0.99)
    return np.asarray((1 - r) / (1 + r))


def e_value(p: Floats) -> Floats:
    """The mixture of k p^(k - 1) over k in (0, 1): (1 - p + p ln p) / (p ln^2 p); 1/2 at p = 1, mean 1 under it."""
    with np.errstate(divide="ignore", invalid="ignore"):
        log = np.log(p)
        value = (1 - p + p * log) / (p * log**2)
    return np.where(p > 1 - 1e-4, 0.5, value)  # its limit, where the quotient cancels; the error is below 1e-4
