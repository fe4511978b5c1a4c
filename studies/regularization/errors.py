"""Tables and curves of the errors of fits by their number of parameters: what `capacity` and `size` judge and draw."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from depthgauge import drawing, stats, theory, training
from depthgauge.drawing.palette import INK
from depthgauge.frames import groups
from depthgauge.studies.regularization import fits

LINEAR, RELU, NETWORK = "linear model", "random ReLU features", "trained networks"
KINDS = {"linear": LINEAR, "features": RELU, "network": NETWORK}
BEST = "new data, best penalty"
ENDED = 0.05  # of the squared error: what a rate beyond the grid would have to gain to matter
EDGES = ("at_edge", "open_ended")
FLOOR = 1e-12  # below it lies rounding: the examples are fitted


def runs_of(rows: pd.DataFrame) -> pd.DataFrame:
    """A row a fit: kind, ratio, n, seed and errors; the rate of networks; `score` is high where it fits best."""
    names = ("kind", "ratio", "n", "seed", "lr", "run")
    rows = rows.assign(run=rows["case"]).reindex(columns=[*rows, *{"lr", "run"} - set(rows)])
    runs = training.table(rows, *names, metrics=("train", "test", "variance", "wrong"))
    return runs.assign(
        seed=runs["seed"].astype(int),
        ratio=runs["ratio"].astype(float),
        lr=runs["lr"].fillna(0.0),
        score=-runs["train"],
    )


def at_one_rate(runs: pd.DataFrame) -> pd.DataFrame:
    """Fits of every seed at the learning rate of the reported ones."""
    return runs.merge(runs.loc[runs["seed"] >= 0, ["kind", "ratio", "lr"]].drop_duplicates())


def edged(runs: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Runs with `at_edge` where their group's rate ends the grid, `open_ended` where a better one may follow."""
    chosen = training.choices(runs, by, score="score", reported=False)
    chosen = chosen.assign(open_ended=training.open_ended(chosen, ENDED))
    return runs.merge(chosen[[*by, *EDGES]], "left", on=by)


def edges(runs: pd.DataFrame, by: list[str]) -> dict[Any, dict[str, Any]]:
    """Each group's rate, and whether it ends the grid."""
    return {key: {name: own[name].iloc[0] for name in ("lr", *EDGES)} for key, own in groups(runs, by)}


def penalized(rows: pd.DataFrame) -> pd.DataFrame:
    """Errors with a penalty, one row a fit: each ratio's penalty is chosen by other seeds, on examples held out."""
    own = rows[rows["metric"].isin(["penalized", "validation"])].astype({"seed": int, "ratio": float})
    chosen = own[(own["metric"] == "validation") & (own["seed"] < 0)]
    means = chosen.groupby(["kind", "ratio", "layer_index"])["value"].mean().unstack()  # noqa: PD010 - of a series
    best = means.idxmin(axis=1).rename("best").reset_index()
    found = own[own["metric"] == "penalized"].merge(best, "left", on=["kind", "ratio"])
    found = found[(found["layer_index"] == found["best"].fillna(0))]  # the linear model has its best alone
    return found.rename(columns={"value": "test"})[["kind", "ratio", "seed", "test"]]


def lowest(runs: pd.DataFrame) -> float:
    """The ratio below 1 at which the error on new data is lowest, by the seeds that are not reported."""
    chosen = runs[(runs["seed"] < 0) & (runs["ratio"] < 1)]
    return float(str(chosen.groupby("ratio")["test"].mean().idxmin()))


def wide(runs: pd.DataFrame, metric: str) -> pd.DataFrame:
    """An error of the reported fits: a row a seed, a column a ratio; that of a fit which diverged is infinite."""
    told = runs[runs["seed"] >= 0]
    return told.assign(error=told[metric].fillna(np.inf)).pivot_table(index="seed", columns="ratio", values="error")


def over(errors: pd.DataFrame, at: float, other: float, margin: float) -> stats.Comparison:
    """The error at one ratio over that at another, seed by seed."""
    one, two = (errors.loc[errors[[at, other]].notna().all(axis=1), ratio].clip(lower=FLOOR) for ratio in (at, other))
    return stats.paired(one, two, log=True, margin=margin, test="t")


def bump(errors: pd.DataFrame, at: float, sides: tuple[float, float], margin: float) -> stats.Comparison:
    """The error at one ratio over the geometric mean of those on both sides, seed by seed."""
    three = errors[[at, *sides]].dropna()
    around = np.sqrt(three[sides[0]] * three[sides[1]])
    return stats.paired(three[at], around, log=True, margin=margin, test="t")


def lines(name: str, n: int, runs: pd.DataFrame, ridge: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Mean errors of the reported seeds, a row a curve and ratio."""
    fits_ = {"training examples": (runs, "train"), "new data": (runs, "test"), BEST: (ridge, "test")}
    for curve, (table, metric) in fits_.items():
        for ratio, values in wide(table, metric).items() if len(table) else ():
            mean = stats.mean(values.to_numpy(), log=True)
            at = {"kind": name, "curve": curve, "ratio": ratio, "n": len(values), "value": mean.value}
            own = runs[(runs["ratio"] == ratio) & (runs["seed"] >= 0)]
            test, variance = own["test"].mean(), own["variance"].mean()
            ends = {name: bool(own[name].any()) for name in EDGES}
            more = {"wrong": own["wrong"].mean(), "lr": own["lr"].max(), "variance": variance, "bias": test - variance}
            told = law(n, float(str(ratio))).get(curve, np.nan) if name == LINEAR else np.nan
            yield {**at, "low_95": mean.low, "high_95": mean.high, "predicted": told, **more, **ends}


def law(n: int, ratio: float) -> dict[str, float]:
    """Predicted errors of the linear model on new data."""
    signal, noise = fits.effective(n, features := max(1, round(ratio * n)))
    ridge = theory.ridge_risk(features / n, signal=signal, noise=noise)
    plain = theory.ridgeless_risk(n, features, signal=signal, noise=noise)
    return {"new data": noise + plain, BEST: noise + ridge}


def path(runs: pd.DataFrame, names: Mapping[float, str]) -> Iterator[dict[str, Any]]:
    """Errors on both sides by the norm at which training ends, a row a limit, size and penalty."""
    told = edges(runs, ["ratio", "penalty"])
    for (ratio, penalty), own in groups(runs, ["ratio", "penalty"]):
        for limit, start in (("penalty", ""), ("bound", "bounded_")):
            mean = stats.mean(own[f"{start}test"].to_numpy(), log=True)
            at = {"parameters": names[ratio], "penalty": penalty, "limit": limit, "n": len(own)}
            ends = {"value": mean.value, "low_95": mean.low, "high_95": mean.high, "train": own[f"{start}train"].mean()}
            yield {**at, **ends, **told[ratio, penalty], "norm": own["norm"].mean(), "gap": own["gap"].mean()}


def less(one: pd.Series[float], other: pd.Series[float], margin: float) -> stats.Comparison:
    """One figure less another, seed by seed."""
    both = pd.concat([one, other], axis=1, keys=["one", "other"], join="inner")
    return stats.paired(both["one"], both["other"], margin=margin, test="t")


def ranks(runs: pd.DataFrame) -> str:
    """Rank correlation of the gap with the norm and with the number of parameters, a seed's networks together."""
    if runs.empty:
        return ""
    found = [own[["gap", "norm", "ratio"]].corr("spearman")["gap"] for _, own in groups(runs, "seed")]
    norm, count = (stats.mean([each[name] for each in found]).value for name in ("norm", "ratio"))
    return (
        f"over sizes and penalties the gap's rank correlation is {norm:.2f} with the norm, {count:.2f} with the number"
    )


def ends(capacity: pd.DataFrame) -> str:
    """Ratios whose networks chose a rate at the end of the grid, and whether that may matter, in words."""
    edge = capacity[(capacity["curve"] == "new data") & capacity["at_edge"]]
    at = ", ".join(f"{ratio:g}" for ratio in edge["ratio"])
    if not at:
        return ""
    matters = "and may be better beyond it" if edge["open_ended"].any() else "where the last step gains next to nothing"
    return f"; the networks' rate is at the end of the grid at {at} parameters a number to fit, {matters}"


def counted(places: Sequence[float]) -> str:
    """Numbers of seeds by the ratio of their largest error: `2 in 5, 4 in 5 of 10 seeds`."""
    found = [f"{value:g} in {places.count(value)}" for value in dict.fromkeys(places)]
    return f"{', '.join(found)} of {len(places)} seeds"


def curves(axis: Any, rows: pd.DataFrame, at: str, by: str, **options: Any) -> None:
    """Draw errors by ratio with theory over them; networks, whose errors are of one size, on a linear scale."""
    if (rows["kind"] == NETWORK).all():
        axis.set_yscale("linear")
    drawing.estimates(axis, rows.drop(columns="predicted"), at, by, joined=True, **options)
    for _, own in groups(rows.dropna(subset="predicted"), by):
        line = own.set_index(at)["predicted"].reindex(sorted(rows[at].unique()))  # a gap where theory has none
        axis.plot(line.index, line, color=INK, lw=1.4, ls="--", zorder=5, label="theory")
