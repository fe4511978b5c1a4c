"""Size: a bound on the weights' norm beside a penalty, their number beside their range, depth beside width."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from depthgauge import drawing, stats, training
from depthgauge.frames import groups
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import Question, above, agrees, below, every, not_above
from depthgauge.studies.regularization import balls, errors, fits
from depthgauge.study import Case, Context, Grid, Rows, Value
from depthgauge.verdict import Claim, Sentence

LIMITS = Claim(
    "N42", "a hard bound on the weights' norm and a soft penalty limit capacity alike; capacity follows from the "
    "number of parameters and from the range of their values",
)  # fmt: skip
BALL = Claim("regularization/ball", "for linear regression the bound and the penalty have the same solution")
DEPTH = Claim("N44", "a wide network overfits where a deep one of the same size does not")
EXACT = 1e-6  # distance of two solutions over their length: the same, as far as descent converges
MARGIN = 1.05  # errors and gaps within 5 % are the same
GAP = 0.05  # of examples classified wrongly, or squared error: errors on new data and those fitted as close are one
CLOSE = 0.02  # gaps that differ by less are the same
PENALTIES = (0.0, 1e-4, 1e-3, 1e-2)  # times the squared norm of all weights
LINEAR = (0.01, 0.1, 1.0, 10.0)  # times the number of examples
FEW, MANY = 1.0, 8.0  # parameters over numbers to be fitted
DEPTHS = (1, 2, 4)
RATES = (0.003, 0.01, 0.03)
SIZES = sizes(
    "examples features seeds network steps rates",
    quick=(60, 30, 10, 0, 0, ()), standard=(60, 30, 10, 100, 2500, RATES),
    full=(60, 30, 20, 100, 5000, RATES), tiny=(12, 4, 6, 6, 3, RATES),
)  # fmt: skip
NAMES = {FEW: f"{FEW:g} parameter a number to fit", MANY: f"{MANY:g} parameters a number to fit"}
KEYS = ["kind", "ratio", "depth", "penalty"]
METRICS = ("train", "test", "wrong", "train_wrong", "norm", "bounded_train", "bounded_test")


def grids(  # noqa: PLR0917 - a size names them all
    examples: int, features: int, seeds: int, network: int, steps: int, rates: tuple[float, ...]
) -> Iterator[Grid]:
    """Ridge regression at every penalty; networks, which quick leaves out, first with the seeds that choose a rate."""
    fixed: dict[str, Value] = {"kind": "linear", "n": examples, "features": features}
    yield Grid({"penalty": LINEAR}, fixed, seeds, ("penalty", "seed"), 100, claims=(BALL.id, LIMITS.id))
    for kind, varied, claim in (("penalty", {"penalty": PENALTIES}, LIMITS), ("depth", {"depth": DEPTHS}, DEPTH)):
        at: dict[str, Value] = {"kind": kind, "n": network, "steps": steps}
        at |= {"depth": 1} if kind == "penalty" else {"penalty": 0.0}
        if network:
            yield Grid(
                {"ratio": (FEW, MANY), **varied, "lr": rates}, at, 0, ("seed",), 20, (), claims=(claim.id,), selection=2
            )


def second(rows: pd.DataFrame, seeds: int, **_: Any) -> Iterator[Grid]:
    """Networks of the reported seeds, at the rate with the lowest objective over the seeds that choose."""
    runs = runs_of(rows[rows["kind"] != "linear"]).sort_values("run")
    if runs.empty:
        return
    chosen = training.choices(runs, KEYS, score="score", reported=False)
    for row in runs.merge(chosen, on=[*KEYS, "lr"]).drop_duplicates(KEYS).sort_values(KEYS).to_dict("records"):
        fixed = {name: value for name, value in Case.read(row["run"]).params if name not in ("lr", "seed")}
        claim = LIMITS if row["kind"] == "penalty" else DEPTH
        yield Grid({"lr": (row["lr"],)}, fixed, seeds, ("seed",), 20, claims=(claim.id,))


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:  # noqa: ARG001 - all of it on the CPU
    """Ridge regression against its twin in a ball; networks with a penalty, and with the norm it ended at as bound."""
    n, penalty = cases[0].integer("n"), cases[0].number("penalty")
    if cases[0].text("kind") == "linear":
        for case in cases:
            x, y = balls.regression(n, case.integer("features"), case.random_seed("seed", "n", "features"))
            yield case.rows("distance", balls.apart(x, y, case.number("penalty") * n))
        return
    depth, rate = cases[0].integer("depth"), cases[0].number("lr")
    width = fits.width_of(cases[0].number("ratio") * n * fits.CLASSES, depth)
    plan = fits.Plan(width, depth, cases[0].integer("steps"), rate, penalty)
    free = fits.networks(n, plan, [case.random_seed("seed", "n") for case in cases])
    for case, ends in zip(cases, free, strict=True):
        found = (ends.train, ends.test, ends.wrong, ends.train_wrong, float(np.mean(ends.norms)))
        yield from (case.rows(metric, value) for metric, value in zip(METRICS, found, strict=False))
    told = [(case, ends) for case, ends in zip(cases, free, strict=True) if penalty and case.integer("seed") >= 0]
    bounds = [norm for _, ends in told for norm in ends.norms]
    again = fits.networks(n, plan, [case.random_seed("seed", "n") for case, _ in told], bounds) if told else []
    for (case, _), ends in zip(told, again, strict=True):
        yield case.rows("bounded_train", ends.train)
        yield case.rows("bounded_test", ends.test)


def runs_of(rows: pd.DataFrame) -> pd.DataFrame:
    """One row a network: its size, depth, penalty, rate and seed, errors and norm; a high `score` fits best."""
    runs = training.table(rows.assign(run=rows["case"]), *KEYS, "lr", "seed", "run", metrics=METRICS)
    runs = runs.astype({"ratio": float, "depth": int, "penalty": float, "lr": float, "seed": int})
    return runs.assign(
        score=-runs["train"] - runs["penalty"] * runs["norm"] ** 2, gap=runs["test"] - runs["train"],
        wrong_gap=runs["wrong"] - runs["train_wrong"],
    )  # fmt: skip


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """Bounds against penalties; the gap between new data and those fitted by count, norm and depth."""
    linear, network = rows[rows["kind"] == "linear"], rows[rows["kind"] != "linear"]
    asked = {
        (float(penalty),): stats.against(own["value"].to_numpy(), 0.0, margin=EXACT)
        for penalty, own in groups(linear.sort_values("penalty"), "penalty")
    }
    if question := Question.of("ball", ("penalty",), asked, label="penalty {penalty:g}", reference="none"):
        yield question.table()
        yield question.verdict(
            BALL, agrees, unit="of the solution's length",
            why=question.listed(agrees, {True: "the same at", False: "another at", None: "undecided:"}),
            method=f"distance of the ball's solution from ridge regression of that norm, over its length; {EXACT:g}",
        )  # fmt: skip
    if network.empty:  # as at quick
        yield from (("limits_path", network), ("overfitting", network))
    else:
        runs = errors.edged(runs_of(network), KEYS).query("seed >= 0")
        path = pd.DataFrame(errors.path(own := runs[runs["kind"] == "penalty"], NAMES))
        yield "limits_path", path
        yield from _limits(own, path, every(question.read(agrees).values()))
        yield from _depth(runs[runs["kind"] == "depth"])


def _compared(runs: pd.DataFrame) -> Iterator[tuple[tuple[str, str, float], stats.Comparison]]:
    """Errors with a bound over those with a penalty; gaps of many parameters less few, without penalty less with."""
    wide = {key: own.set_index("seed") for key, own in groups(runs, ["ratio", "penalty"])}
    ended = {key for key, own in wide.items() if own["open_ended"].any()}
    for (ratio, penalty), own in wide.items():
        if penalty:
            bounded = stats.paired(own["bounded_test"], own["test"], log=True, margin=MARGIN, test="t")
            yield (NAMES[ratio], "bound", penalty), training.unsettled(bounded, (ratio, penalty) in ended)
        if penalty and (ratio, 0.0) in wide:
            some = errors.less(wide[ratio, 0.0]["gap"], own["gap"], GAP)
            yield (NAMES[ratio], "range", penalty), training.unsettled(some, ended & {(ratio, penalty), (ratio, 0.0)})
    if {(FEW, 0.0), (MANY, 0.0)} <= set(wide):
        more = errors.less(wide[MANY, 0.0]["gap"], wide[FEW, 0.0]["gap"], GAP)
        yield (NAMES[MANY], "count", 0.0), training.unsettled(more, ended & {(FEW, 0.0), (MANY, 0.0)})


def _limits(runs: pd.DataFrame, path: pd.DataFrame, linear: bool | None) -> Iterator[Answer]:
    by, words, asked = ("model", "what", "penalty"), "{model}, {what} at penalty {penalty:g}", dict(_compared(runs))
    limits = Question.of("limits", by, {key: c for key, c in asked.items() if c.log}, label=words, reference="as large")
    absolute = {key: c for key, c in asked.items() if not c.log}
    gaps = Question.of("size_gaps", by, absolute, label=words, reference="as large")
    if not limits or not gaps or len(limits) < 2 * (len(PENALTIES) - 1):
        return
    yield limits.table()
    yield gaps.table()
    answers: dict[str, bool | None] = {"bound and penalty alike: linear regression": linear}
    for model in NAMES.values():
        some = limits.where(model=model)
        answers[f"bound and penalty alike: {model}"] = every(agrees(c) for c in some.members.values())
    for what, name in (("count", "the gap grows with the number"), ("range", "the gap grows with the range")):
        answers[name] = every(map(above, gaps.where(what=what).members.values()))
    told = ", ".join(f"{c.effect.value:.2f} ({gaps.words(key)})" for key, c in gaps.members.items())
    edge = [f"{model} (penalty {p:g})" for (model, p), _ in groups(path[path["open_ended"]], ["parameters", "penalty"])]
    told += f"; a rate beyond the grid may fit better, so that nothing is concluded, for {', '.join(edge)}" * bool(edge)
    ranks = errors.ranks(runs)
    alike = {True: "a bound is as a penalty for", False: "another for", None: "undecided:"}
    yield limits.verdict(
        LIMITS, answers, unit="times the error with a penalty",
        why=f"{limits.listed(agrees, alike, 8)}; gaps of new data and those fitted differ by {told}; {ranks}",
        method=f"linear regression as in {BALL.id}; networks of {FEW:g} and {MANY:g} times as many parameters as "
        "numbers to fit: squared error on new data with all weights in the ball of the norm that the penalty ended at, "
        f"over that with it, paired t of logarithms, margin {MARGIN:g}; gap of errors on new data and those fitted, of "
        f"many parameters less few (count), without less with penalty (range), margin {GAP:g}; rates by other seeds",
    )  # fmt: skip
    strong, weak = (limits.members[NAMES[MANY], "bound", penalty] for penalty in (PENALTIES[-1], PENALTIES[1]))
    fits_ = path[(path["parameters"] == NAMES[MANY]) & (path["penalty"] == PENALTIES[1])].set_index("limit")["train"]
    end = "; its learning rate ends the grid, and one beyond it may fit better" if weak.at_edge else ""
    if strong.inside and weak.effect.low > MARGIN and fits_["bound"] < fits_["penalty"]:
        yield Sentence(
            "In the ball of the norm at which a penalty ends a network errs as it does with the penalty where both are "
            f"strong. Where they are weak (penalty {PENALTIES[1]:g}{end}) it errs {weak.effect.value:.2f} times as "
            f"much on new digits: its training error is {fits_['bound']:.1g}, at no larger norm, where descent with "
            f"the penalty ends at {fits_['penalty']:.1g}.",
            figure="limits_path", claims=(LIMITS.id,),
        )  # fmt: skip


def _depth(runs: pd.DataFrame) -> Iterator[Answer]:
    asked, own = {}, {key: each.set_index("seed")["wrong_gap"] for key, each in groups(runs, ["ratio", "depth"])}
    edges = errors.edges(runs, ["ratio", "depth"])
    ended = {key for key, at in edges.items() if at["open_ended"]}
    for (ratio, depth), each in own.items():
        gap = stats.against(each.to_numpy(), 0.0, margin=GAP)
        asked[NAMES[ratio], depth, "gap"] = training.unsettled(gap, (ratio, depth) in ended)
        if depth > 1 and (ratio, 1) in own:
            less = errors.less(each, own[ratio, 1], CLOSE)
            asked[NAMES[ratio], depth, "less"] = training.unsettled(less, {(ratio, depth), (ratio, 1)} & ended)
    by = ("model", "depth", "what")
    question = Question.of("overfitting", by, asked, label="{model}, depth {depth}: {what}", reference="none")
    if not question:  # those alone that choose a rate
        yield "overfitting", runs
        return
    yield question.table({(NAMES[r], d, what): edges[r, d] for r, d in own for what in ("gap", "less")})
    answers, told = {}, []
    for model, depth, _ in question.where(what="less").members:
        gap, less, wide = (question.members[model, d, w] for d, w in ((depth, "gap"), (depth, "less"), (1, "gap")))
        answers[f"{model}, depth {depth}"] = every([above(wide), below(less), not_above(gap)])
        told.append(f"{model}: {gap.effect.value:.0%} at depth {depth}, {wide.effect.value:.0%} at depth 1")
    if not answers:
        return
    yield question.verdict(
        DEPTH, answers, unit="of the examples", why=f"the gap is, for {'; '.join(told)}",
        method="share of new examples classified wrongly less that of the noisy ones fitted; holds where the network "
        f"of one hidden layer has a gap above {GAP:g}, and the deep one of as many parameters one within {GAP:g}, less "
        f"by more than {CLOSE:g}; t over seeds, paired; rates by other seeds, at the lowest training error",
    )  # fmt: skip
    deepest = max(depth for _, depth, _ in asked)
    gaps = [question.members[NAMES[MANY], depth, "gap"] for depth in (1, deepest)]
    if all(gap.above for gap in gaps):
        yield Sentence(
            f"Deep networks overfit, too: of {MANY:g} times as many parameters as numbers to fit, with {deepest} "
            f"hidden layers the share wrong is {100 * gaps[1].effect.value:.0f} points higher on new digits than on "
            f"those fitted; with one, {100 * gaps[0].effect.value:.0f}.",
            figure="overfitting", claims=(DEPTH.id,),
        )  # fmt: skip


@drawing.figure(
    "limits_path", "A bound on the norm and a penalty: error on new data by the norm",
    lambda limits_path: f"Squared error on new digits, geometric mean of {limits_path['n'].min()} seeds, 95 % "
    "intervals; the penalty grows to the left. The bound is the norm at which the penalty ended.",
)  # fmt: skip
def draw_path(limits_path: pd.DataFrame) -> Any:
    """Errors by norm, a panel a size."""
    axes = {"xscale": "log", "yscale": "log", "xlabel": "norm of all weights", "ylabel": "squared error on new data"}
    form: dict[str, Any] = {"at": "norm", "by": "limit", "joined": True, "axes": axes, "shared": "y"}
    return drawing.panels(limits_path, "parameters", drawing.estimates, **form)


@drawing.figure(
    "overfitting", "Gap between new data and those fitted, by depth at one number of parameters",
    lambda overfitting: "Share classified wrongly, new digits less those fitted; mean of "
    f"{overfitting['n'].min()} seeds, intervals of 95 % at once.",
)  # fmt: skip
def draw_overfitting(overfitting: pd.DataFrame) -> Any:
    """Gaps by depth, a colour a size."""
    gaps = overfitting[overfitting["what"] == "gap"]
    axes = {"xticks": DEPTHS, "xlabel": "hidden layers", "ylabel": "gap of the shares wrong"}
    return drawing.panels(gaps, "", drawing.estimates, at="depth", by="model", joined=True, axes=axes)


METHOD = """**Size.** *Bound and penalty*: for a convex loss the least error in a ball is that at the penalty whose
solution has the ball's radius (Lagrange duality; Goodfellow, Bengio and Courville 2016, section 7.2); the ball's is
found by projected descent, which knows no penalty. *Networks* are those of the part on capacity; beyond the bound all
weights are scaled back to it. Deep and wide networks have as many parameters to within a unit of width."""
PART = Part(
    "size", (LIMITS, BALL, DEPTH), SIZES, grids, run, analyse, (draw_path, draw_overfitting), METHOD, second,
    shown=("limits", "overfitting"),
)  # fmt: skip
