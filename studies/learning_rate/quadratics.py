"""Too large a rate and too small a one: exactly on quadratics with torch's own optimizers, then on a network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from depthgauge import drawing, stats
from depthgauge.frames import groups, only, params_of, records
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import Question, above, agrees, below, judged
from depthgauge.studies.learning_rate.descents import CLEAR, SIDES, WINDOW, descend, windows_of
from depthgauge.studies.learning_rate.regimes import (
    DIVERGENT,
    MONOTONE,
    OSCILLATING,
    law,
    limit,
    measured,
    trajectories,
)
from depthgauge.study import Case, Context, Grid, Rows, Value
from depthgauge.verdict import Claim, Sentence

NOTES = Claim("N22", "a learning rate too large oscillates, one too small makes no progress")
REGIMES = Claim(
    "learning_rate/regimes",
    "the roots of the characteristic polynomial say at which rates gradient descent, heavy ball, Nesterov's momentum "
    "and Adam with a frozen second moment approach the minimum of a quadratic from one side, oscillate or diverge",
)
SPEED = Claim(
    "learning_rate/speed",
    "on a quadratic a step of gradient descent, heavy ball, Nesterov's momentum or Adam with a frozen second moment "
    "changes the weight, in the end, by the larger root of the characteristic polynomial as a factor",
)
RISES = Claim(
    "learning_rate/rises",
    "under gradient descent the loss of a network rises only where rate times sharpness exceeds 2",
)

EXACT = 0.002  # of ln |w| a step: slopes of a finite, oscillating trajectory are not known better
SILENT = 0.02  # share of steps with a rising loss: up to this is none
SHOWN = 6.0  # rate times sharpness: windows up to there are drawn
STALLED = 0.1  # share of the best rate's fall of the loss: less is no progress
KINDS = (("gradient descent", 0.0), ("heavy ball", 0.5), ("heavy ball", 0.9), ("Nesterov", 0.5), ("Nesterov", 0.9),
         ("frozen Adam", 0.9))  # fmt: skip
SHARES = (1e-4, 3e-4, 0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.35, 0.45, 0.55, 0.7, 0.9, 0.97, 1.03, 1.1, 1.3)
FEW = (0.001, 1.7, 2.6, 3.5)
MANY = (0.001, 0.01, 0.1, 0.3, 0.6, 0.9, 1.2, 1.5, 1.8, 2.2, 2.6, 3.0, 3.5)
SIZES = sizes(
    "kinds shares steps products width examples updates seeds",
    quick=((*KINDS[:1], *KINDS[2:6:3]), SHARES, 400, FEW, 32, 100, 40, 8),
    standard=(KINDS, SHARES, 1000, MANY, 32, 200, 100, 8), full=(KINDS, SHARES, 3000, MANY, 64, 500, 300, 12),
    tiny=(KINDS[:2], (0.03, 0.45, 0.9, 1.1), 200, (0.001, 1.7, 3.5), 16, 50, 30, 6),
)  # fmt: skip


def grids(  # noqa: PLR0917 - a size names them all
    kinds: tuple[tuple[str, float], ...], shares: tuple[float, ...], steps: int, products: tuple[float, ...],
    width: int, examples: int, updates: int, seeds: int,
) -> Iterator[Grid]:  # fmt: skip
    """Every optimizer at shares of its own limit; then a network at products of rate and sharpness at the start."""
    for optimizer, momentum in kinds:
        fixed: dict[str, Value] = {"optimizer": optimizer, "momentum": momentum, "steps": steps}
        yield Grid({"share": shares}, fixed, 0, ("share",), 100, claims=(REGIMES.id, SPEED.id))
    sized = {"width": width, "examples": examples, "steps": updates}
    yield Grid({"product": products}, sized, seeds, ("product", "seed"), 200, claims=(NOTES.id, RISES.id))


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """Run torch's optimizer on quadratics, or descend on a network."""
    yield from (_quadratics(cases) if "share" in cases[0] else descend(cases, context))


def _quadratics(cases: Sequence[Case]) -> Iterator[Rows]:
    optimizer, momentum = cases[0].text("optimizer"), cases[0].number("momentum")
    products = np.array([case.number("share") for case in cases]) * limit(optimizer, momentum)
    paths = trajectories(optimizer, momentum, products, cases[0].integer("steps"))
    for case, product, path in zip(cases, products, paths.T, strict=True):
        predicted, (regime, rate) = law(optimizer, momentum, float(product)), measured(path)
        yield case.rows("rate", rate)
        yield case.rows("predicted_rate", predicted.rate)
        yield case.rows("regime", float((MONOTONE, OSCILLATING, DIVERGENT).index(regime)))
        yield case.rows("predicted_regime", float((MONOTONE, OSCILLATING, DIVERGENT).index(predicted.regime)))


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """Regimes and speeds on quadratics against the roots; then what a network does on either side of 1 and 2."""
    if "share" in rows and len(exact := rows[rows["share"].notna()]):
        yield from _regimes(exact)
    if "product" in rows and len(nets := rows[rows["product"].notna()]):
        yield from _network(nets)


def _regimes(rows: pd.DataFrame) -> Iterator[Answer]:
    words = (MONOTONE, OSCILLATING, DIVERGENT)
    found = {name: only(rows, name) for name in ("rate", "predicted_rate", "regime", "predicted_regime")}
    table = params_of(rows, "optimizer", "momentum", "share").assign(
        value=found["rate"], predicted=found["predicted_rate"],
        **{name: found[name].map(lambda number: words[int(number)]) for name in ("regime", "predicted_regime")},
    )  # fmt: skip
    off = (table["value"] - table["predicted"]).abs()
    table = table.assign(answer=np.where(off <= EXACT, "as predicted", "other")).reset_index(drop=True)
    table = table.sort_values(["optimizer", "momentum", "share"]).reset_index(drop=True)
    yield "regimes", table
    far = table.iloc[(table["value"] - table["predicted"]).abs().to_numpy().argmax()]
    shown = {
        "observed": float(far["value"]), "predicted": float(far["predicted"]), "unit": "ln |w| a step", "n": len(table),
        "counted": "rates", "table": "regimes", "answer": far["answer"],
        "condition": f"{far['optimizer']}, momentum {far['momentum']:g}, {far['share']:g} of its limit",
    }  # fmt: skip
    same = table["regime"] == table["predicted_regime"]
    yield judged(
        REGIMES, same.tolist(),
        f"{int(same.sum())} of {len(table)} rates show the predicted regime, of "
        f"{table['optimizer'].nunique()} optimizers",
        method="a trajectory that changes its sign oscillates, one that grows diverges; float64", **shown,
    )  # fmt: skip
    close = table["answer"] == "as predicted"
    yield judged(
        SPEED, close.tolist(),
        f"{int(close.sum())} of {len(table)} speeds are the predicted ones within {EXACT:g} a step",
        method=f"slope of ln |w| over the last three quarters of a trajectory, margin {EXACT:g}", **shown,
    )  # fmt: skip


def _network(rows: pd.DataFrame) -> Iterator[Answer]:
    windows = windows_of(rows)
    yield "windows", windows
    sided = windows[windows["side"] != ""]
    shares = sided.groupby(["side", "seed"])["rises"].mean()
    asked = {(side,): stats.against(shares[side], 0.0, margin=SILENT) for side in SIDES if side in set(sided["side"])}
    if not asked:
        return
    question = Question.of("rises", ("side",), asked, label="rate times sharpness {side}", reference="no step")
    counts = sided["side"].value_counts()
    yield question.table({key: {"windows": int(counts[key[0]])} for key in asked})
    said = {key: (above if key[0] == SIDES[2] else agrees)(c) for key, c in question.members.items()}
    figures = ", ".join(f"{c.effect.value:.1%} {key[0]}" for key, c in question.members.items())
    yield question.verdict(
        RISES, said, unit="share of steps", shown=[*asked][-1], says="true" * (set(said.values()) == {True}),
        why=f"share of steps in which the loss rises: {figures}",
        method=f"windows of {WINDOW} steps, by the sharpness at both ends, {CLEAR:.0%} clear of 1 and 2; mean over "
        f"seeds, t, margin {SILENT:g}",
    )  # fmt: skip
    if set(said.values()) == {True} and len(said) == len(SIDES):
        shown = {key[0]: c.effect.value for key, c in question.members.items()}
        yield Sentence(
            "The loss of a network rises only where learning rate times sharpness is above 2: there in "
            f"{shown[SIDES[2]]:.0%} of the steps, below in {max(shown[SIDES[0]], shown[SIDES[1]]):.1%}.",
            "rises", (RISES.id,),
        )  # fmt: skip
    yield from _notes(rows, shares)


def _notes(rows: pd.DataFrame, shares: pd.Series[float]) -> Iterator[Answer]:
    """N22: rises above 2, and what the smallest rate gets done."""
    falls = rows[rows["metric"] == "fall"].pivot_table(index="seed", columns="product", values="value")
    small, steps = float(falls.columns.min()), int(rows["steps"].iloc[0])
    parts = (falls[small] / falls.max(axis=1)).dropna()
    asked = {("progress", f"at {small:g} over the sharpness"): stats.against(parts, STALLED, margin=0.0)}
    if SIDES[2] in set(shares.index.get_level_values("side")):
        asked["rises", SIDES[2]] = stats.against(shares[SIDES[2]], SILENT, margin=0.0)
    question = Question.of(
        "too_large_too_small", ("figure", "where"), asked, label="{figure} {where}", reference="what counts"
    )
    yield question.table()
    said = {key: below(c) if key[0] == "progress" else above(c) for key, c in question.members.items()}
    values = {key[0]: c.effect.value for key, c in question.members.items()}
    large = (
        f"where rate times sharpness is above 2 the loss rises in {values['rises']:.0%} of steps; "
        if "rises" in values
        else ""
    )
    small_gets = (
        f"{large}in {steps} steps a rate of {small:g} over the sharpness at the start gets "
        f"{values['progress']:.2%} of the best rate's fall of the loss"
    )
    yield question.verdict(
        NOTES, said if large else {**said, "rises": None}, unit="share of steps", shown=[*asked][-1],
        says="true" * (bool(large) and set(said.values()) == {True}),
        why=small_gets,
        method=f"no progress is less than {STALLED:.0%} of that fall, oscillation a rise in more than {SILENT:.0%} of "
        "steps; mean over seeds, t",
    )  # fmt: skip


@drawing.figure(
    "regimes", "How fast each optimizer approaches or leaves the minimum of a quadratic",
    "Change of ln |w| a step, by the rate as a share of the optimizer's largest stable one: torch's optimizers, with "
    "their momentum or beta1; dashed: ln of the larger root of the characteristic polynomial.",
)  # fmt: skip
def draw_regimes(regimes: pd.DataFrame) -> Any:
    """Speed by rate, a panel an optimizer; the marks tell the measured regime."""
    shown = regimes.assign(
        kind=[f"{r.optimizer}{f' at {r.momentum:g}' if r.momentum else ''}" for r in records(regimes)]
    )
    axes = {
        "xscale": "log",
        "yscale": "symlog",
        "xlabel": "rate / largest stable rate",
        "ylabel": "change of ln |w| a step",
    }
    return drawing.panels(shown, "kind", _regime_panel, axes=axes)


def _regime_panel(axis: Any, rows: pd.DataFrame) -> None:
    axis.set_yscale("symlog", linthresh=1e-3)
    axis.plot(rows["share"], rows["predicted"], color="0.3", lw=0.9, ls="--", label="theory")
    for i, (name, own) in enumerate(groups(rows, "regime")):
        axis.plot(own["share"], own["value"], ls="none", marker="osD"[i], color=f"C{i}", ms=5, label=name)


@drawing.figure(
    "rises", "How often the loss of a network rises, by learning rate times sharpness",
    f"Each dot: {WINDOW} steps of gradient descent on one network, its loss rising in that share of them, by "
    f"the mean of rate times sharpness before and after, up to {SHOWN:g}.",
)  # fmt: skip
def draw_rises(windows: pd.DataFrame) -> Any:
    """Share of rising steps by rate times sharpness."""
    near = windows[windows["mean"] < SHOWN]
    axes = {"xlabel": "rate times sharpness", "ylabel": "share of steps in which the loss rises"}
    return drawing.panels(near, "", _rise_panel, axes=axes)


def _rise_panel(axis: Any, rows: pd.DataFrame) -> None:
    axis.axvline(2.0, color="0.3", lw=0.9, ls="--", label="theory: 2")
    axis.plot(rows["mean"], rows["rises"], ls="none", marker="o", ms=4, alpha=0.4, color="C0", label="window")


METHOD = f"""**Quadratics.** On 1/2 h w² each optimizer without noise is a recurrence, w(t + 2) = T w(t + 1) - D w(t).
With x = rate times curvature: gradient descent w(t + 1) = (1 - x) w(t); heavy ball T = 1 + m - x, D = m; torch's form
of Nesterov's momentum T = (1 + m)(1 - x), D = m (1 - x); Adam whose second moment stands still, x counted after
preconditioning, T = 1 + m - (1 - m) x, D = m. They diverge above 2, 2 (1 + m), (2 + 2 m) / (1 + 2 m) and
2 (1 + m) / (1 - m). The measured trajectories are those of torch.optim in float64. The network (tanh, squared loss,
digits, all examples in one batch) has its sharpness measured every {WINDOW} steps."""
PART = Part(
    "quadratics", (NOTES, REGIMES, SPEED, RISES), SIZES, grids, run, analyse, (draw_regimes, draw_rises), METHOD,
)  # fmt: skip
