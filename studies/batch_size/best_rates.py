"""The best learning rate against batch size: its exponent, and eps(B) = eps_max / (1 + B_noise / B)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from depthgauge import drawing, frames, stats, training
from depthgauge.frames import groups
from depthgauge.parts import Answer
from depthgauge.questions import Question, agrees
from depthgauge.studies.batch_size.hyperbola import GROUP, KEYS, REFERENCE, Curve, Curves
from depthgauge.studies.batch_size.noise_scales import ESTIMATES, Predictions
from depthgauge.studies.batch_size.trained import ADAPTIVE, STEP
from depthgauge.verdict import Claim

EXPONENTS = Claim(
    "batch_size/exponents",
    "below the critical batch size the best learning rate grows as the batch for SGD, and as its root for Adam",
)
SATURATES = Claim(
    "batch_size/saturates",
    "the best learning rate of SGD is eps_max / (1 + B_noise / B), the noise scale measured along training, within a "
    "factor of 2",
)
NEAR = 0.2  # exponent: nearer to the predicted one than this is it
WITHIN = 2.0  # factor: rates nearer than this are the same
FEWEST = 5  # seeds that choose: of fewer the best rate has no interval
RULES = ("saturating", "linear", "root")


def bests(runs: pd.DataFrame) -> pd.DataFrame:
    """The best rate of every group, by all seeds that choose and without each of them.

    One row a group and seed left out: network, optimizer, batch, `left` (NaN: none), `best` (ln of the rate).
    """
    choosing = runs[pd.to_numeric(runs["seed"]) < 0]
    rows = []
    for key, own in groups(choosing, list(GROUP)):
        logs = frames.logs(own.pivot_table(index="seed", columns="lr", values="steps_to_target", dropna=False))
        late = own.pivot_table(index="seed", columns="lr", values="reached", dropna=False) < 1
        logs = logs.mask(late, np.inf).fillna(np.inf)
        seeds = sorted(logs.index)
        for left in (math.nan, *(seeds if len(seeds) > 1 else ())):
            means = logs.drop(index=left, errors="ignore").mean()
            lowest = vertex(np.log(means.index.to_numpy(float)), means.to_numpy(float))
            rows.append({**dict(zip(GROUP, key, strict=True)), "left": left, "best": lowest})
    return pd.DataFrame(rows, columns=[*GROUP, "left", "best"])


def vertex(rates: NDArray[np.float64], scores: NDArray[np.float64]) -> float:
    """Logarithm of the rate at which a parabola through the finite scores near the lowest is lowest.

    Near: within one step of the coarse grid. At the lowest itself where they do not bend upward or lie to one side, and
    never beyond its neighbours.

    Args:
        rates: (k,) logarithms of the rates, ascending.
        scores: (k,) to be low; infinite where not all runs arrived. NaN where none is finite.
    """
    if not np.isfinite(scores).any():
        return math.nan
    low = int(scores.argmin())
    near = (abs(rates - rates[low]) <= math.log(STEP) * 1.01) & np.isfinite(scores)
    if near.sum() < 3 or not (near[:low].any() and near[low + 1 :].any()):
        return float(rates[low])
    bend, slope, _ = np.polyfit(rates[near] - rates[low], scores[near], 2)
    if bend <= 0:
        return float(rates[low])
    return float(np.clip(rates[low] - slope / (2 * bend), rates[low - 1], rates[low + 1]))


def pseudo_values(best: pd.DataFrame) -> dict[tuple[str, str], pd.DataFrame]:
    """(network, optimizer) -> jackknife pseudo-values of ln best rate, one row a seed, one column a batch size."""
    found = {}
    for key, own in groups(best, list(KEYS)):
        table = own.pivot_table(index="left", columns="batch", values="best", dropna=False)
        table = table.loc[table.index.notna()]
        whole = own[own["left"].isna()].set_index("batch")["best"]
        n = len(table)
        if n > 1:
            found[key] = n * whole[table.columns] - (n - 1) * table
    return found


def answers(runs: pd.DataFrame, predicted: Predictions, fits: Curves) -> Iterator[Answer]:
    """Best rates and rules; exponents below and above the critical batch; is it eps(B)?"""
    best = bests(runs)
    pseudo = pseudo_values(best)
    yield "best_rates", table(best, pseudo, predicted)
    yield from exponents(pseudo, fits)
    yield from saturating(pseudo, predicted, fits)


def settled(comparison: stats.Comparison, curve: Curve | None, sizes: Iterable[float]) -> stats.Comparison:
    """The comparison, concluding nothing where the best rate at one of these batch sizes may lie beyond those tried."""
    ends = {} if curve is None else dict(zip(curve.batch, curve.edge, strict=True))
    return training.unsettled(comparison, any(ends.get(int(size), False) for size in sizes))


def noise_of(predicted: Predictions, net: str) -> float:
    """The noise scale of a network's training, from all gradients at the smallest batch size that was looked at."""
    sizes = [batch for name, batch, estimate in predicted if name == net and estimate == ESTIMATES[0]]
    return math.exp(predicted[net, min(sizes), ESTIMATES[0]].whole) if sizes else math.nan


def rule(name: str, batch: Any, scale: float) -> Any:
    """Logarithm of a rate at this batch size, up to a constant."""
    sizes = np.asarray(batch, dtype=np.float64)
    powers = {"linear": np.log(sizes), "root": np.log(sizes) / 2}
    return powers[name] if name in powers else -np.log1p(scale / sizes)


def table(best: pd.DataFrame, pseudo: dict[tuple[str, str], pd.DataFrame], predicted: Predictions) -> pd.DataFrame:
    """One row a group: the best rate with its interval, and that of each rule, its one constant fitted to the curve."""
    rows = []
    for (net, optimizer), own in groups(best[best["left"].isna()].dropna(subset="best"), list(KEYS)):
        scale, sizes, logs = noise_of(predicted, net), own["batch"].to_numpy(), own["best"].to_numpy()
        ruled = {name: rule(name, sizes, scale) for name in RULES}
        fits = {name: np.exp(values + (logs - values).mean()) for name, values in ruled.items()}
        for i, batch in enumerate(sizes):
            column = pseudo.get((net, optimizer))
            spread = stats.mean(np.exp(column[batch].to_numpy() if column is not None else [math.nan]), log=True)
            rows.append({
                "net": net, "optimizer": optimizer, "batch": int(batch), "rate": math.exp(logs[i]),
                "rate_low_95": spread.low, "rate_high_95": spread.high, "noise_scale": scale,
                **{name: values[i] for name, values in fits.items()},
            })  # fmt: skip
    return pd.DataFrame(rows)


def exponents(pseudo: dict[tuple[str, str], pd.DataFrame], fits: Curves) -> Iterator[Answer]:
    """Slope of ln best rate on ln B, over batch sizes up to the critical one and beyond."""
    asked, further = {}, {}
    for (net, optimizer), values in pseudo.items():
        curve = fits.get((net, REFERENCE))
        if curve is None or not curve.fit.critical_batch.has_interval:
            continue
        sizes, bend = np.array(values.columns, dtype=float), curve.fit.critical_batch.value
        expected = 0.5 if optimizer in ADAPTIVE else 1.0
        for name, chosen, power in (("below", sizes <= bend, expected), ("above", sizes > bend, 0.0)):
            if chosen.sum() > 1 and len(values) >= FEWEST:
                slopes = np.polyfit(np.log(sizes[chosen]), values.to_numpy()[:, chosen].T, 1)[0]
                compared = stats.against(slopes, power, margin=NEAR)
                asked[net, optimizer, name] = settled(compared, fits.get((net, optimizer)), sizes[chosen])
                further[net, optimizer, name] = {"from": sizes[chosen].min(), "to": sizes[chosen].max()}
    by, label = (*KEYS, "side"), "{optimizer} with {net} {side} the critical batch size"
    question = Question.of(
        "rate_exponents", by, asked, label=label, counted="seeds that choose", family=lambda side, **_: side
    )
    if not question:
        return
    yield question.table(further)
    if below := replace(question.where(side="below"), label="{optimizer} with {net}"):
        found = "; ".join(f"{k} {c.effect.value:.2f}" for k, c in below.read(lambda c: c).items())
        yield below.verdict(
            EXPONENTS, agrees, unit="power of the batch size",
            why=f"up to the critical batch size of SGD the exponent is: {found}"
            + below.listed(agrees, {False: "not the predicted one:", None: "undecided:"}, 10, lead="; "),
            method="slope of ln best rate on ln B, the best rate from a parabola through the steps near the lowest; "
            f"jackknife over the seeds that choose, t, margin {NEAR:g} of 1 for SGD and 1/2 for Adam",
        )  # fmt: skip


def saturating(
    pseudo: dict[tuple[str, str], pd.DataFrame], predicted: Predictions, fits: Curves
) -> Iterator[Answer]:  # fmt: skip
    """Best rates of SGD against eps(B), its constant fitted; deviations of all three rules."""
    asked, deviations = {}, []
    for (net, optimizer), values in pseudo.items():
        scale, sizes = noise_of(predicted, net), values.columns
        for name in RULES if math.isfinite(scale) and scale > 0 else RULES[1:]:
            off = values - rule(name, sizes, scale)
            off = off.sub(off.mean(axis=1), axis=0)
            far = off.mean().abs().to_numpy()
            deviations.append({
                "net": net, "optimizer": optimizer, "rule": name, "batch_sizes": len(sizes),
                "rms_factor": math.exp(math.sqrt(float(np.square(far).mean()))), "largest_factor": math.exp(far.max()),
            })  # fmt: skip
            if name == RULES[0] and optimizer == REFERENCE and len(values) >= FEWEST:
                for batch in sizes:
                    compared = stats.against(np.exp(off[batch].to_numpy()), 1.0, log=True, margin=WITHIN)
                    asked[net, batch] = settled(compared, fits.get((net, optimizer)), sizes.to_numpy(float))
    yield "rate_rules", pd.DataFrame(deviations)
    question = Question.of(
        "saturating_rates", ("net", "batch"), asked, label="{net} at {batch}", reference="rule",
        counted="seeds that choose",
    )  # fmt: skip
    if not question:
        return
    yield question.table()
    off = pd.DataFrame(deviations).query("optimizer == @REFERENCE").groupby("rule", sort=False)["rms_factor"].max()
    yield question.verdict(
        SATURATES, agrees, unit="times the rule's rate",
        why=f"{sum(map(bool, question.read(agrees).values()))} of {len(question)} best rates of SGD are within a "
        f"factor of {WITHIN:g}; root mean square deviation over all batch sizes, a factor of "
        + ", ".join(f"{value:.2f} from the {name} rule" for name, value in off.items())
        + question.listed(agrees, {False: "beyond the margin:", None: "undecided:"}, 8, lead="; "),
        method="best rate over eps(B), its one constant the mean over batch sizes; jackknife over the seeds that "
        f"choose, t on logarithms, margin {WITHIN:g}",
    )  # fmt: skip


@drawing.figure(
    "best_rates", "The best learning rate against the batch size, beside three rules",
    "Learning rate with the fewest steps to the target, by the seeds that choose, with 95 % jackknife intervals. "
    "Dashed: eps_max / (1 + B_noise / B), the noise scale measured along training with SGD; solid grey: in proportion "
    "to B; dotted: to its root. Each rule has one constant, fitted.",
)  # fmt: skip
def draw_rates(best_rates: pd.DataFrame) -> Any:
    """Best rates against batch size, a panel a network and optimizer."""
    curve = best_rates.groupby(list(KEYS))["batch"].transform("size") > 3
    shown = best_rates[curve & best_rates["optimizer"].isin((REFERENCE, "momentum", "adam"))]
    shown = shown.assign(panel=shown["optimizer"] + " with " + shown["net"])
    axes = {"xscale": "log", "yscale": "log", "xlabel": "batch size B", "ylabel": "best learning rate"}
    return drawing.panels(shown, "panel", _ruled, axes=axes, shared="none")


def _ruled(axis: Any, rows: pd.DataFrame) -> None:
    for name, style in (("saturating", "--"), ("linear", "-"), ("root", ":")):
        if rows[name].notna().all():
            axis.plot(rows["batch"], rows[name], style, color="0.2" if name == RULES[0] else "0.6", lw=1.1, label=name)
    drawing.estimates(axis, rows.assign(estimate="best rate"), at="batch", by="estimate", value="rate")
