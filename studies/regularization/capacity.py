"""Capacity: errors of fits of any size, from far fewer parameters than there is to fit to many more."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from depthgauge import drawing, stats, training
from depthgauge.frames import groups
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import Question, above, agrees, below, every, not_above
from depthgauge.studies.regularization import errors, fits
from depthgauge.studies.regularization.errors import NETWORK, RELU
from depthgauge.study import Case, Context, Grid, Rows, Value
from depthgauge.verdict import Claim, Sentence

CURVE = Claim("N38", "more capacity lowers the training error; the error on new data falls and then rises")
PEAK = Claim(
    "regularization/peak",
    "the error on new data is largest where the parameters are as many as the numbers to be fitted",
)
RIDGE = Claim(
    "regularization/ridge", "with the best ridge penalty the error on new data has no peak there"
)  # fmt: skip
RIDGELESS = Claim(
    "regularization/ridgeless",
    "theory predicts the error of least squares and of the best ridge regression on new data",
)
RATIOS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.33, 2.0, 4.0, 8.0)  # parameters over the numbers to be fitted
RISING = 0.3  # a peak is looked for from this ratio on: at the smallest a model does not fit yet
MARGIN = 1.05  # errors within 5 % are the same
PLACE = 1.25  # a peak closer than this factor to the predicted place is there: less than a step of the ratios about 1
CLOSE = 1.1  # a mean error within 10 % of theory is the predicted one
SIDES = (0.5, 2.0)  # a peak is higher than the geometric mean of these ratios' errors
TOLD = 0.01  # of the variance: less bias cannot be told from none
SHOWN = 1e-6  # less is rounding, and in no figure
SELECTION = 3
RATES = (0.003, 0.01, 0.03)
SIZES = sizes(
    "linear features network draws seeds steps rates",
    quick=(40, 100, 0, 40, 10, 0, ()), standard=(60, 500, 100, 40, 20, 5000, RATES),
    full=(100, 1000, 200, 80, 20, 5000, RATES), tiny=(10, 12, 6, 4, 5, 3, RATES),
)  # fmt: skip


def grids(  # noqa: PLR0917 - a size names them all
    linear: int, features: int, network: int, draws: int, seeds: int, steps: int, rates: tuple[float, ...]
) -> Iterator[Grid]:  # fmt: skip
    """Every ratio for each kind of model; networks, which quick leaves out, first with the seeds that choose a rate."""
    varied, both = {"ratio": RATIOS}, ("ratio", "seed")
    fixed: dict[str, Value] = {"kind": "linear", "n": linear, "draws": draws}
    yield Grid(varied, fixed, seeds, both, 50, selection=SELECTION)
    yield Grid(varied, {"kind": "features", "n": features}, seeds, both, 20, selection=SELECTION)
    if network:
        fixed = {"kind": "network", "n": network, "steps": steps}
        yield Grid({"ratio": RATIOS[1:], "lr": rates}, fixed, 0, ("seed",), 20, selection=SELECTION - 1)


def second(rows: pd.DataFrame, seeds: int, **_: Any) -> Iterator[Grid]:
    """Networks of the reported seeds, at the rate with the lowest training error over the seeds that choose."""
    runs = errors.runs_of(rows[rows["kind"] == "network"]).sort_values("run")
    if runs.empty:
        return
    for row in training.choices(runs, ["ratio"], score="score", reported=False).to_dict("records"):
        case = Case.read(runs.loc[runs["ratio"] == row["ratio"], "run"].iloc[0])
        fixed = {name: value for name, value in case.params if name not in ("lr", "seed")}
        yield Grid({"lr": (row["lr"],)}, fixed, seeds // 2, ("seed",), 20)


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:  # noqa: ARG001 - all of it on the CPU, in float64
    """Errors on both sides, with and without penalties."""
    n, kind = cases[0].integer("n"), cases[0].text("kind")
    if kind == "network":
        width = fits.width_of(cases[0].number("ratio") * n * fits.CLASSES, depth=1)
        plan = fits.Plan(width, 1, cases[0].integer("steps"), cases[0].number("lr"))
        found = fits.networks(n, plan, [case.random_seed("seed", "n") for case in cases])
    for i, case in enumerate(cases):
        features, seed = max(1, round(case.number("ratio") * n)), case.random_seed("seed", "kind", "n")
        if kind == "linear":
            ends = fits.linear(n, features, case.integer("draws"), seed)
        else:
            ends = fits.random_features(n, features, seed) if kind == "features" else found[i]
        for metric in ("train", "test", "variance", "wrong"):
            yield case.rows(metric, getattr(ends, metric))
        for metric in ("penalized", "validation"):
            if len(values := getattr(ends, metric)):
                yield case.rows(metric, values, layer_index=np.arange(len(values)))


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """Errors by ratio and kind; whether they fall, rise and fall; what theory predicts."""
    tried, ridge = errors.edged(errors.runs_of(rows), ["kind", "ratio"]), errors.penalized(rows)
    runs = errors.at_one_rate(tried)
    lines, members, peaks, removed, places = [], {}, {}, {}, {}
    for kind, own in groups(runs, "kind"):
        name, with_penalty = errors.KINDS[kind], ridge[ridge["kind"] == kind]
        lines += list(errors.lines(name, int(own["n"].iloc[0]), own, with_penalty))
        test, train = errors.wide(own, "test"), errors.wide(own, "train")
        first, low, last = min(RATIOS) if kind != "network" else RATIOS[1], errors.lowest(own), max(RATIOS)
        if not {first, *SIDES, 1.0, low, last} <= set(test):
            continue
        for what, table, at, other in (
            ("training", train, 1.0, first), ("falls", test, low, first), ("rises", test, 1.0, low),
            ("beyond", test, last, 1.0),
        ):  # fmt: skip
            ended = own.loc[own["ratio"].isin([at, other]), "open_ended"].any()
            members[name, what] = training.unsettled(errors.over(table, at, other, MARGIN), ended)
        rising = [ratio for ratio in RATIOS if ratio >= RISING and ratio in test]
        place = np.array(rising)[test[rising].dropna().to_numpy().argmax(axis=1)]
        ended = own.loc[own["ratio"].isin(rising), "open_ended"].any()
        peaks[name,] = training.unsettled(stats.against(place, 1.0, log=True, margin=PLACE), ended)
        places[name] = sorted(place)
        if len(with_penalty):
            for curve, table in (("no penalty", test), ("the best penalty", errors.wide(with_penalty, "test"))):
                removed[name, curve] = errors.bump(table, 1.0, SIDES, MARGIN)
    capacity = pd.DataFrame(lines)
    yield "capacity", capacity
    parts = capacity[capacity["curve"] == "new data"]
    yield "spread", pd.concat(parts.assign(term=term, value=parts[term]) for term in ("bias", "variance"))
    relu = runs[runs["kind"] == "features"]
    at = errors.lowest(relu) if len(relu) else np.nan
    yield from _curve(members, parts[parts["kind"] == RELU].set_index("ratio")["value"], at, errors.ends(capacity))
    yield from _peaks(peaks, places)
    yield from _removed(removed)
    yield from _theory(runs, ridge)


def _curve(
    members: Mapping[Any, stats.Comparison], error: pd.Series[float], at: float, ends: str
) -> Iterator[Answer]:  # fmt: skip
    question = Question.of("capacity_shape", ("kind", "what"), members, label="{kind}: {what}", reference="as large")
    if not question:
        return
    yield question.table()
    answers: dict[str, bool | None] = {}
    for kind in dict.fromkeys(kind for kind, _ in members):
        own = {what: question.members[kind, what] for what in ("training", "falls", "rises", "beyond")}
        three = below(own["training"]), below(own["falls"]), above(own["rises"])
        answers[f"{kind} up to the threshold"] = every(three)
        answers[f"{kind} beyond it"] = above(own["beyond"])
    told = [f"{kind} {c.effect.value:.3g}" for (kind, what), c in question.members.items() if what == "beyond"]
    yield question.verdict(
        CURVE, answers, unit="times the error",
        why=f"with {max(RATIOS):g} times as many parameters as numbers to fit, the error on new data is this multiple "
        f"of that with as many: {', '.join(told)}{ends}",
        method="squared errors; up to the threshold, as many parameters as numbers to fit: training error lower there "
        "than at the smallest ratio, error on new data lower at the best below 1 (by other seeds) than there, higher "
        f"at the threshold; beyond: higher at the largest ratio. Paired t of log ratios, margin {MARGIN:g}",
    )  # fmt: skip
    falls, rises, beyond = (question.members.get((RELU, what)) for what in ("falls", "rises", "beyond"))
    if falls and rises and beyond and falls.below and rises.above and beyond.below:
        low, peak, last = (float(error[ratio]) for ratio in (at, 1.0, max(RATIOS)))
        yield Sentence(
            f"More random ReLU features first lower the squared error on new digits, to {low:.2g}, then raise it to "
            f"{peak:.3g} where they are as many as the examples, and from there lower it again, to {last:.2g} with "
            f"{max(RATIOS):g} times as many.",
            figure="capacity", claims=(CURVE.id, PEAK.id),
        )  # fmt: skip


def _peaks(peaks: Mapping[Any, stats.Comparison], places: Mapping[str, Sequence[float]]) -> Iterator[Answer]:
    place = Question.of("peak", ("kind",), peaks, label="{kind}", reference="threshold")
    if place:
        yield place.table()
        found = "; ".join(f"{errors.counted(places[kind])} ({kind})" for (kind,) in place.members)
        yield place.verdict(
            PEAK, agrees, unit="times as many parameters as numbers to fit", why=f"the error is largest at {found}",
            method=f"geometric mean over seeds of the ratio, from {RISING:g} on, at which a seed's error on new data "
            f"is largest; within a factor of {PLACE:g} of 1; numbers to fit: examples, for networks times classes; t",
        )  # fmt: skip
        if NETWORK in (kind for (kind,) in place.members) and place.members[NETWORK,].above and places[NETWORK][0] > 1:
            low, high = places[NETWORK][0], places[NETWORK][-1]
            where = f"{low:g}" if low == high else f"{low:g} to {high:g}"
            yield Sentence(
                f"The squared error of trained networks on new digits is largest with {where} times as many parameters "
                "as numbers to fit, not with as many.",
                figure="capacity", claims=(PEAK.id,),
            )  # fmt: skip


def _removed(removed: Mapping[Any, stats.Comparison]) -> Iterator[Answer]:
    bump = Question.of("peak_height", ("kind", "penalty"), removed, label="{kind} with {penalty}", reference="none")
    if bump:
        yield bump.table()
        ridge = bump.where(penalty="the best penalty")
        peaked = {kind for (kind, penalty), c in bump.members.items() if penalty == "no penalty" and c.above}
        gone = {kind: not_above(c) if kind in peaked else None for (kind, _), c in ridge.members.items()}
        left = ", ".join(
            f"{c.effect.value:.2f} in place of {bump.members[kind, 'no penalty'].effect.value:.3g} ({kind})"
            for (kind, _), c in ridge.members.items()
        )
        yield ridge.verdict(
            RIDGE, gone, unit="times the error on both sides",
            why=f"with the best penalty the error at the threshold is {left} times that on both sides of it",
            method=f"error at the threshold over the geometric mean of those at {SIDES[0]:g} and {SIDES[1]:g} times as "
            f"many parameters: above by more than {MARGIN - 1:.0%} without a penalty, and not with the best. Penalties "
            "by other seeds and examples held out, the linear model's by theory; t of logarithms",
        )  # fmt: skip


def _theory(runs: pd.DataFrame, ridge: pd.DataFrame) -> Iterator[Answer]:
    asked, n = {}, runs.loc[runs["kind"] == "linear", "n"]
    for curve, table in (("new data", runs), (errors.BEST, ridge)):
        for ratio, values in errors.wide(table[table["kind"] == "linear"], "test").items():
            law = errors.law(int(n.iloc[0]), float(str(ratio)))[curve]
            if np.isfinite(law):
                fit = {"new data": "least squares"}.get(curve, "ridge")
                measured = (values / law).to_numpy()
                asked[fit, ratio] = stats.against(measured, 1.0, log=True, margin=CLOSE, confidence=0.99)
    question = Question.of("ridgeless", ("fit", "ratio"), asked, label="{fit} at {ratio:g} times the examples")
    if question:
        yield question.table()
        yield question.prediction(RIDGELESS, "errors", within=f"{CLOSE - 1:.0%}", unit="measured over predicted")


@drawing.figure(
    "capacity", "Errors through the point where parameters are as many as numbers to fit",
    lambda capacity: f"Squared error, geometric mean of {capacity['n'].min()} seeds or more with 95 % intervals, by "
    "parameters over numbers to fit: examples, for networks times the ten classes. Dashed: theory, infinite at 1. Not "
    f"shown: errors below {SHOWN:g}, those of training examples that are fitted. Networks: linear scale.",
)  # fmt: skip
def draw_capacity(capacity: pd.DataFrame) -> Any:
    """Errors by ratio, a panel a kind of model; errors that are rounding alone are left out, but on a linear scale."""
    shown = capacity[capacity["value"] > SHOWN].replace(np.inf, np.nan)
    axes = {"xscale": "log", "yscale": "log", "xlabel": "parameters / numbers to fit", "ylabel": "squared error"}
    return drawing.panels(shown, "kind", errors.curves, at="ratio", by="curve", axes=axes, shared="")


@drawing.figure(
    "spread", "Bias and variance of the error on new data",
    "Mean over seeds of the parts of the squared error on new data, from two training sets a seed or more. Bias: its "
    f"square, with the noise that no fit can know; not drawn where it is less than {TOLD:.0%} of the variance.",
)  # fmt: skip
def draw_spread(spread: pd.DataFrame) -> Any:
    """Bias and variance by ratio, a panel a kind of model."""
    axes = {"xscale": "log", "yscale": "log", "xlabel": "parameters / numbers to fit", "ylabel": "part of the error"}
    form: dict[str, Any] = {"x": "ratio", "y": "value", "by": "term", "axes": axes}
    shown = spread[spread["value"] > np.maximum(SHOWN, TOLD * spread["variance"])]
    return drawing.panels(shown, "kind", drawing.lines, shared="", **form)


METHOD = f"""**Capacity.** Least squares of least norm on a growing number of features, and networks of growing width,
each fit to its own training set. *Linear model*: the first p of {fits.FEATURES} n independent normal inputs, weights
in proportion to 1 / j, noise {fits.NOISE:g}; what is left out is noise, so that theory of least squares is exact
(Belkin, Hsu and Xu 2020, "Two models of double descent for weak features"); that of the best penalty is the limit of
many features (Hastie et al. 2022, `theory.ridge_risk`). *Random ReLU features* of MNIST digits, one-hot targets.
*Networks*: one hidden ReLU layer on 8 x 8 digits of which {fits.NOISE:.0%} have a wrong label, squared error, Adam on
all examples, learning rate falling to 0 as a cosine, its start with the lowest training error over other seeds. Belkin
et al. (2019, "Reconciling modern machine-learning practice and the classical bias-variance trade-off") expect the peak
where parameters are as many as examples times outputs. Variance: of the prediction over training sets (and draws of
features and weights)."""
PART = Part(
    "capacity", (CURVE, PEAK, RIDGE, RIDGELESS), SIZES, grids, run, analyse, (draw_capacity, draw_spread), METHOD,
    second, shown=("capacity_shape",),
)  # fmt: skip
