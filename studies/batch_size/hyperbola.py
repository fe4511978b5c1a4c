"""Steps against batch size: the fitted hyperbola, its critical batch size and its regimes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from depthgauge import arrival, drawing, planning, stats, training
from depthgauge.frames import groups, records
from depthgauge.parts import Answer
from depthgauge.questions import Question, agrees, spelled
from depthgauge.stats import Comparison
from depthgauge.studies.batch_size.trained import NETS
from depthgauge.verdict import Claim, Sentence

HYPERBOLA = Claim(
    "batch_size/hyperbola",
    "steps to a target fall with the batch size B as Smin (1 + Bc / B), within a factor of 1.25 (root mean square)",
)
FITS = 1.25  # factor: steps nearer to the curve than this are on it
FLAT = math.log(1.05)  # of the score, -ln steps: an edge where the last step outward won less is none
REFERENCE = "sgd"
SHOWN = "mlp"  # the network of which a sentence tells, where it was measured
KEYS = ("net", "optimizer")
GROUP = (*KEYS, "batch")


@dataclass(frozen=True)
class Curve:
    """Steps to the target of one network and optimizer, at the tuned rate of every batch size.

    Attributes:
        batch: (k,) ascending.
        seeds: (n,) those that were run at all of them.
        steps: (n, k); the budget where a run did not arrive.
        late: (n, k) runs that did not.
        edge: (k,) whether a better rate may lie outside what was tried.
        rates: (k,) tuned learning rates.
    """

    batch: tuple[int, ...]
    seeds: tuple[int, ...]
    steps: NDArray[np.float64]
    late: NDArray[np.bool_]
    edge: NDArray[np.bool_]
    rates: NDArray[np.float64]

    @cached_property
    def fit(self) -> planning.Hyperbola:
        """The hyperbola of all batch sizes."""
        return planning.fit(self.batch, self.steps, self.late)

    def at(self, place: int) -> NDArray[np.float64]:
        """Steps (n,) at one of the batch sizes."""
        return np.asarray(self.steps[:, place])

    def settled(self, comparison: Comparison, *places: int) -> Comparison:
        """The comparison, concluding nothing where runs at these batch sizes, or any, are censored, or at an edge."""
        at = list(places) or slice(None)
        edge, late = (bool(ends[..., at].any()) for ends in (self.edge, self.late))
        return training.unsettled(comparison, edge, censored=late)

    def held(self, places: slice) -> Curve:
        """The curve of some of its batch sizes."""
        return Curve(
            self.batch[places], self.seeds, self.steps[:, places], self.late[:, places], self.edge[places],
            self.rates[places],
        )  # fmt: skip


Curves = Mapping[tuple[str, str], Curve]


def curves(best: pd.DataFrame) -> dict[tuple[str, str], Curve]:
    """(network, optimizer) -> its curve, where two batch sizes or more were measured with the same seeds."""
    found = {}
    for key, own in groups(best, list(KEYS)):
        steps, reached = (
            own.pivot_table(index="seed", columns="batch", values=name) for name in ("steps_to_target", "reached")
        )
        steps = steps.dropna()
        if steps.shape[1] < 2 or steps.empty:
            continue
        ends = own.groupby("batch")
        found[key] = Curve(
            tuple(map(int, steps.columns)), tuple(map(int, steps.index)), steps.to_numpy(float),
            reached.loc[steps.index].to_numpy(float) < 1, ends["open_ended"].any().to_numpy(bool),
            ends["lr"].first().to_numpy(float),
        )  # fmt: skip
    return found


def answers(best: pd.DataFrame, seconds: Mapping[tuple[str, int], float], found: Curves) -> Iterator[Answer]:
    """Tables of steps and of fits, and the verdicts on them."""
    yield "steps_by_batch", measured(best, seconds, found)
    yield "critical_batches", fitted(found)
    yield from described(found)


def measured(best: pd.DataFrame, seconds: Mapping[tuple[str, int], float], found: Curves) -> pd.DataFrame:
    """Steps, epochs, examples and seconds to the target: geometric mean, or the median where runs are censored."""
    rows = []
    for (net, optimizer, batch), own in groups(best, list(GROUP)):
        arrived = own["reached"].to_numpy(float) > 0
        steps = arrival.usual(own["steps_to_target"].to_numpy(float), arrived)
        curve = found.get((net, optimizer))
        fit = curve.fit if curve is not None else None
        rows.append({
            "net": net, "optimizer": optimizer, "batch": batch, "lr": own["lr"].iloc[0],
            "open_ended": bool(own["open_ended"].any()), "n": len(own), "reached": int(arrived.sum()),
            "diverged": int(own["diverged"].sum()), **spelled("steps", steps), "examples": steps.value * batch,
            "epochs": steps.value * batch / len(NETS[net].load("cpu")),
            "seconds": steps.value * seconds.get((net, batch), math.nan),
            "predicted": float(fit.steps(batch)) if fit else math.nan, "regime": fit.regime(batch) if fit else "",
        })  # fmt: skip
    return pd.DataFrame(rows)


def fitted(found: Curves) -> pd.DataFrame:
    """The critical batch size of every curve, its regimes, and the scatter about it."""
    rows = []
    for key, curve in found.items():
        fit = curve.fit
        rows.append({
            "net": key[0], "optimizer": key[1], "n": len(curve.seeds), **spelled("critical_batch", fit.critical_batch),
            **spelled("least_steps", fit.least_steps), **spelled("least_examples", fit.least_examples),
            "perfect_until": fit.perfect_until, "maximal_from": fit.maximal_from, "scatter": fit.scatter,
            "censored": fit.censored,
        })  # fmt: skip
    return pd.DataFrame(rows)


def described(found: Curves) -> Iterator[Answer]:
    """Is the hyperbola the curve?"""
    asked = {
        (*key, batch): curve.settled(stats.against(np.exp(curve.fit.deviations[:, i]), 1.0, log=True, margin=FITS), i)
        for key, curve in found.items() if len(curve.batch) > 2
        for i, batch in enumerate(curve.batch)
    }  # fmt: skip
    points = Question.of("fit", GROUP, asked, label="{net} with {optimizer} at {batch}", reference="fitted")
    if not points:
        return
    yield points.table()
    whole = {
        key: curve.settled(stats.against(np.exp(off(curve)), 1.0, log=True, margin=FITS))
        for key, curve in found.items() if len(curve.batch) > 2
    }  # fmt: skip
    question = Question.of("curve_fit", KEYS, whole, label="{net} with {optimizer}", reference="fitted")
    yield question.table()
    furthest = points.words(points.furthest), points.members[points.furthest].effect.value
    yield question.verdict(
        HYPERBOLA, agrees, unit="times the fitted steps",
        why=f"{sum(map(bool, question.read(agrees).values()))} of {len(question)} curves are within {FITS:g} times the "
        "fitted one"
        + question.listed(agrees, {False: "beyond it:", None: "undecided:"}, 12, lead="; ")
        + f"; the single point that is furthest off, {furthest[0]}, by a factor of {furthest[1]:.2f}",
        method="root mean square over batch sizes of ln steps about the fitted curve, jackknife over seeds, t, margin "
        f"{FITS:g}; undecided where runs are censored, or a better rate may lie outside what was tried",
    )  # fmt: skip
    yield from gains({net: c.fit for (net, name), c in found.items() if name == REFERENCE})


def gains(fits: Mapping[str, planning.Hyperbola]) -> Iterator[Answer]:
    """A sentence on what twice the batch buys on one network."""
    fits = {net: fit for net, fit in fits.items() if fit.critical_batch.has_interval}
    if not fits:
        return
    net = SHOWN if SHOWN in fits else next(iter(fits))
    yield Sentence(
        f"Doubling the batch nearly halves SGD's steps up to a batch of {fits[net].perfect_until:.0f}, and saves "
        f"few from {fits[net].maximal_from:.0f} on ({net} on digits).",
        "steps_by_batch", (HYPERBOLA.id,),
    )  # fmt: skip


def off(curve: Curve) -> NDArray[np.float64]:
    """Jackknife pseudo-values (n,) of the root mean square residual."""
    n, whole = len(curve.seeds), curve.fit.residuals
    without = (n * whole - curve.fit.deviations) / (n - 1) if n > 1 else np.full((n, len(whole)), np.nan)
    figures = [np.sqrt(np.square(each).mean(-1)) for each in (whole, without)]
    return np.asarray(n * figures[0] - (n - 1) * figures[1])


def averaged(steps: pd.DataFrame) -> str:
    """Spell what a figure shows of the steps of runs, of which some may not have arrived."""
    return "geometric mean" + ", or median where not all arrived," * bool((steps["reached"] < steps["n"]).any())


@drawing.figure(
    "steps_by_batch", "Steps to the target against the batch size, beside the fitted hyperbolas",
    lambda steps_by_batch, critical_batches: "Steps to the target loss at the learning rate tuned for each batch size: "
    f"{averaged(steps_by_batch)} of {steps_by_batch['n'].min()} runs or more, with 95 % intervals. Dashed: the "
    "hyperbolas fitted "
    f"to these {len(critical_batches)} curves. Grey: diminishing returns for SGD, from a quarter of its critical batch "
    "size (vertical line) to four times; perfect scaling lies left of it, maximal data parallelism right.",
)  # fmt: skip
def draw_steps(steps_by_batch: pd.DataFrame, critical_batches: pd.DataFrame) -> Any:
    """Steps against batch size, a panel a network."""
    low, high = drawing.interval(steps_by_batch, "steps")
    shown = steps_by_batch.rename(columns={low: "low_95", high: "high_95"})
    axes = {"xscale": "log", "yscale": "log", "xlabel": "batch size B", "ylabel": "steps to the target"}
    options: dict[str, Any] = {"at": "batch", "by": "optimizer", "value": "steps", "fits": critical_batches}
    return drawing.panels(shown, "net", _shaded_estimates, axes=axes, **options)


def _shaded_estimates(axis: Any, rows: pd.DataFrame, fits: pd.DataFrame, **options: Any) -> None:
    """Points with intervals over the fits, the regime of diminishing returns of SGD shaded."""
    at, theory = np.geomspace(rows["batch"].min(), rows["batch"].max(), 60), []
    for fit in records(fits):
        fitted = fit.least_steps * (1 + fit.critical_batch / at)
        theory.append(pd.DataFrame({"optimizer": fit.optimizer, "batch": at, "predicted": fitted}))
        if fit.optimizer == REFERENCE and np.isfinite(fit.critical_batch) and fit.critical_batch > 0:
            axis.axvspan(*np.clip((fit.perfect_until, fit.maximal_from), at[0], at[-1]), color="0.9", zorder=0)
            axis.axvline(fit.critical_batch, color="0.5", lw=0.9, label="critical batch size of SGD")
    axis.fill_between([], [], color="0.9", label="diminishing returns")
    drawing.estimates(axis, rows, theory=pd.concat(theory), **options)
