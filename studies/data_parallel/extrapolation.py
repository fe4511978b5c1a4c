"""The fitted step on up to thousands of devices, by link: efficiency, time, cost, and the better algorithm."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from depthgauge import drawing
from depthgauge.drawing.palette import GREY, INK
from depthgauge.frames import groups
from depthgauge.parallel import Link
from depthgauge.parallel.prediction import crossover
from depthgauge.parts import Answer
from depthgauge.planning.along import relative_steps
from depthgauge.questions import spelled
from depthgauge.stats import Estimate
from depthgauge.studies.data_parallel.model_fit import Fitted, sentences
from depthgauge.theory.communication import ALGORITHMS

PRESENT = 16  # examples on a device
STEPS = 1000  # of the training on one device whose time and cost are planned
DEVICES = tuple(2**power for power in range(13))
COUNTS = (1, 8, 64, 512, 4096)
NAMED = ("nvlink", "pcie", "100gbe")


def answers(fitted: Fitted, critical: Mapping[str, float]) -> Iterator[Answer]:
    """Tables and sentences of what no device was there for."""
    links = (fitted.model.link, *map(Link.parse, NAMED))
    value, low, high = (critical.get(end, math.nan) for end in ("value", "low", "high"))
    known = Estimate(value, low, high, 0, "noise scale", "examples")
    yield "efficiency", efficiency(fitted, links, known)
    yield (
        "crossover",
        pd.DataFrame(
            {"link": link.name, "devices": devices, "bytes": crossover(link, devices)}
            for link in links
            for devices in DEVICES[2:]
        ),
    )
    yield from sentences(fitted)
    if math.isfinite(known.value):
        table = time_and_cost(fitted, links, known)
        yield "time_and_cost", table
        yield from _told(table, known)


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
                    **spelled("critical", _scaled(critical, 1 / PRESENT)),
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
            value, low, high = (STEPS * a * b / 3600 for a, b in zip(_ends(steps), _ends(step), strict=True))
            hours = Estimate(value, low, high, step.n, "", "h")
            rows.append({
                "link": link.name, "devices": devices, "batch": batch, **spelled("steps", _scaled(steps, STEPS)),
                **spelled("hours", hours), **spelled("device_hours", _scaled(hours, devices)),
                "extrapolated": devices > 1,
            })  # fmt: skip
    return pd.DataFrame(rows)


def _told(table: pd.DataFrame, critical: Estimate) -> Iterator[str]:
    """Sixty-four devices in place of eight, by link."""
    told = []
    for link, own in groups(table, "link"):
        few, many = (own[own["devices"] == devices].iloc[0] for devices in (8, 64))
        time, cost = many["hours"] / few["hours"], many["device_hours"] / few["device_hours"]
        told.append(f"over {link} {time:.2g} times the time for {cost:.2g} times the device-hours")
    yield (
        f"Extrapolated: with {PRESENT} examples a device and a critical batch of {critical.value:.0f} "
        f"[{critical.low:.0f}, {critical.high:.0f}] examples, 64 devices in place of 8 take {'; '.join(told)}."
    )


def _ends(estimate: Estimate) -> tuple[float, float, float]:
    return estimate.value, estimate.low, estimate.high


def _scaled(estimate: Estimate, factor: float) -> Estimate:
    value, low, high = (factor * end for end in _ends(estimate))
    return Estimate(value, low, high, estimate.n, estimate.method, estimate.unit)


# -- figures -----------------------------------------------------------------------------------------------------------


@drawing.figure(
    "model_efficiency", "Extrapolated: efficiency of more devices than there are, by their link",
    "Examples a second over those of as many devices that exchange nothing, with the interval of the prediction, for "
    "devices that compute, and handle gradients, as fast as a core of this machine, at "
    f"{PRESENT} examples a device; dotted, where the critical batch was measured: devices that make it up, with its "
    "interval; beyond them more devices save few steps.",
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
    "it the ring.",
)  # fmt: skip
def draw_crossover(crossover: pd.DataFrame) -> Any:
    """Bytes of the crossover by devices and link."""
    axes = {"xscale": "log", "yscale": "log", "xlabel": "devices", "ylabel": "bytes"}
    return drawing.panels(crossover, "", drawing.lines, x="devices", y="bytes", by="link", axes=axes)
