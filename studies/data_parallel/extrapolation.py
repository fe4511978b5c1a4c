"""The fitted step on up to thousands of devices, by link: efficiency, time, cost, and the better algorithm."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from depthgauge import drawing
from depthgauge.drawing.palette import GREY, INK, PALETTE
from depthgauge.parallel import Link, StepModel
from depthgauge.parallel.prediction import crossover
from depthgauge.parts import Answer
from depthgauge.planning.along import relative_steps
from depthgauge.questions import spelled
from depthgauge.stats import Estimate
from depthgauge.studies.data_parallel.model_fit import Fitted, sentences
from depthgauge.theory.communication import ALGORITHMS
from depthgauge.verdict import Sentence

PRESENT = 16  # examples on a device
STEPS = 1000  # of the training on one device whose time and cost are planned
DEVICES = tuple(2**power for power in range(13))
COUNTS = (1, 8, 64, 512, 4096)
NAMED = ("nvlink", "pcie", "100gbe")
FLAT = "one flat link joins all devices"


def answers(fitted: Fitted, critical: Mapping[str, float]) -> Iterator[Answer]:
    """Tables and sentences of what no device was there for."""
    links = (fitted.model.link, *map(Link.parse, NAMED))
    value, low, high = (critical.get(end, math.nan) for end in ("value", "low", "high"))
    known = Estimate(value, low, high, 0, "noise scale", "examples")
    yield "efficiency", efficiency(fitted, links, known)
    yield (
        "crossover",
        pd.DataFrame(
            {"link": link.name, "devices": devices, **spelled("bytes", crossover(link, devices))}
            for link in links
            for devices in DEVICES[2:]
        ),
    )
    yield from sentences(fitted)
    if math.isfinite(known.value):
        yield "time_and_cost", time_and_cost(fitted, links, known)
        yield _told(fitted, links, known)


def efficiency(fitted: Fitted, links: tuple[Link, ...], critical: Estimate) -> pd.DataFrame:
    """Share of a step that computes, by link, algorithm and devices; `critical`: devices of the critical batch."""
    rows = []
    for link in links:
        for algorithm in ALGORITHMS:
            model = fitted.model.over(link, algorithm)
            for devices in DEVICES:
                found = model.efficiency(devices, devices * PRESENT)
                rows.append({
                    "link": link.name, "algorithm": algorithm, "devices": devices, "batch": devices * PRESENT,
                    "median": found.value, "low_95": found.low, "high_95": found.high, "extrapolated": devices > 1,
                    **spelled("critical", critical.times(1 / PRESENT)),
                })  # fmt: skip
    return pd.DataFrame(rows)


def time_and_cost(fitted: Fitted, links: tuple[Link, ...], critical: Estimate) -> pd.DataFrame:
    """Hours and device-hours to where 1,000 steps on one device lead; ends of steps times ends of a step's seconds."""
    rows = []
    for link in links:
        model = fitted.model.over(link)
        for devices in COUNTS:
            batch, step = devices * PRESENT, model.step(devices, devices * PRESENT)
            ends = sorted(relative_steps(batch, PRESENT, end) for end in (critical.low, critical.high))
            steps = Estimate(relative_steps(batch, PRESENT, critical.value), ends[0], ends[1], 0, "", "")
            value, low, high = (STEPS * a * b / 3600 for a, b in zip(steps.ends, step.ends, strict=True))
            hours = Estimate(value, low, high, step.n, "", "h")
            rows.append({
                "link": link.name, "devices": devices, "batch": batch, **spelled("steps", steps.times(STEPS)),
                **spelled("hours", hours), **spelled("device_hours", hours.times(devices)),
                "extrapolated": devices > 1,
            })  # fmt: skip
    return pd.DataFrame(rows)


def bought(model: StepModel, critical: Estimate, few: int, many: int) -> Estimate:
    """Time of a training on many devices over that on few: ends of the critical batch and of both steps together."""
    before, after = (model.step(devices, devices * PRESENT) for devices in (few, many))
    steps = [relative_steps(many * PRESENT, few * PRESENT, end) for end in critical.ends]
    value = steps[0] * after.value / before.value
    return Estimate(
        value, min(steps) * after.low / before.high, max(steps) * after.high / before.low, before.n,
        "ends of critical batch and seconds together, 95 %",
    )  # fmt: skip


def _told(fitted: Fitted, links: tuple[Link, ...], critical: Estimate) -> Sentence:
    """Sixty-four devices in place of eight, over this machine's link and the fastest that has a name."""
    times = {link.name: bought(fitted.model.over(link), critical, 8, 64) for link in links[:2]}
    told = " and ".join(f"over {name} {t.told('.2g')} times" for name, t in times.items())
    return Sentence(
        f"Extrapolated to {PRESENT} examples a device, 64 devices take {told} as long for a training as 8; {FLAT}."
    )


# -- figures -----------------------------------------------------------------------------------------------------------


@drawing.figure(
    "model_scaling", "Speed-up by DDP at a fixed batch a rank: measured, ideal and by the model",
    "Examples a second of DDP over those of plain steps with as many examples a rank; 95 % intervals, ends of both "
    "steps together. Dashed: the ideal; dotted with its interval: the model, fitted to the fewest ranks. Grey: more "
    "ranks than cores, which is no scaling.",
)  # fmt: skip
def draw_scaling(model_speedup: pd.DataFrame) -> Any:
    """Speed-up by ranks, a panel a batch."""
    axes = {"xscale": "log", "yscale": "log", "xlabel": "ranks", "ylabel": "speed-up"}
    named = model_speedup.assign(title=[f"{batch} examples a rank" for batch in model_speedup["batch"]])
    return drawing.panels(named, "title", _scaling, axes=axes)


def _scaling(axis: Any, own: pd.DataFrame, **_: Any) -> None:
    drawing.estimates(axis, own.drop(columns="predicted"), "ranks")
    ranks = np.array([1, *sorted(own["ranks"])])
    axis.plot(ranks, ranks, color=INK, lw=1.2, ls="--", zorder=1, label="ideal")
    line = own.sort_values("ranks")
    value, low, high = ([1.0, *line[name]] for name in ("predicted", "predicted_low_95", "predicted_high_95"))
    axis.plot(ranks, value, color=PALETTE[1], lw=1.2, ls=":", label="model")
    axis.fill_between(ranks, low, high, color=PALETTE[1], alpha=0.2, lw=0, label="model, 95 %")
    axis.set_xticks(ranks, [str(each) for each in ranks])
    axis.minorticks_off()
    shared = own.loc[own["oversubscribed"], "ranks"]
    if len(shared):
        apart = max(own.loc[~own["oversubscribed"], "ranks"].max(), 1.0)
        axis.axvspan(np.sqrt(apart * shared.min()), ranks.max() * 1.15, color=GREY, alpha=0.25, lw=0, zorder=0,
                     label="ranks share cores: no scaling")  # fmt: skip


@drawing.figure(
    "model_efficiency", "Extrapolated: efficiency of more devices than there are, by their link",
    "Examples a second over those of as many devices that exchange nothing, with the interval of the prediction, for "
    "devices that compute, and handle gradients, as fast as a core of this machine, at "
    f"{PRESENT} examples a device; one flat link joins all devices; dotted, where the critical batch was measured: "
    "devices that make it up, with its interval; beyond them more devices save few steps.",
)  # fmt: skip
def draw_efficiency(efficiency: pd.DataFrame) -> Any:
    """Efficiency by devices, a panel an algorithm."""
    axes = {"xscale": "log", "xlabel": "devices", "ylabel": "efficiency, extrapolated", "ylim": (0, 1.05)}

    def form(axis: Any, own: pd.DataFrame, **options: Any) -> None:
        drawing.profile(axis, own, "devices", band="95 % interval", **options)
        value, low, high = own[["critical", "critical_low_95", "critical_high_95"]].iloc[0]
        if math.isfinite(value):
            axis.axvspan(max(low, 1.0), min(high, max(DEVICES)), color=GREY, alpha=0.15, lw=0, zorder=0)
            axis.axvline(value, color=INK, ls=":", lw=1.2, label="critical batch")

    return drawing.panels(efficiency, "algorithm", form, by="link", axes=axes)


@drawing.figure(
    "model_crossover", "By formula: size up to which an all-reduce by recursive doubling beats a ring",
    "Bytes of an all-reduce by devices, from alpha and beta of each link; below a line doubling takes less time, above "
    "it the ring. Bars: 95 % intervals, of a link that was fitted; links by name have none.",
)  # fmt: skip
def draw_crossover(crossover: pd.DataFrame) -> Any:
    """Bytes of the crossover by devices and link."""
    axes = {"xscale": "log", "yscale": "log", "xlabel": "devices", "ylabel": "bytes"}
    return drawing.panels(
        crossover, "", drawing.estimates, at="devices", value="bytes", by="link", joined=True, axes=axes
    )
