"""The best learning rate against the width, and the coordinate check that tells in advance whether it will move."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from depthgauge import data, drawing, replicas, stats, training
from depthgauge.frames import groups
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import Question, agrees, below, ends
from depthgauge.studies.learning_rate import checking
from depthgauge.studies.learning_rate.checking import MARGIN, SETTING, UPDATES, draw_changes, net_of
from depthgauge.study import Case, Context, Grid, Rows, Value
from depthgauge.verdict import Claim, Sentence, Status, Verdict

DRIFT = Claim(
    "learning_rate/width_drift", "in the standard parametrization the best learning rate falls with the width"
)
STAYS = Claim(
    "learning_rate/width_transfer",
    "in the maximal update parametrization the best learning rate does not move with the width",
)
COST = Claim(
    "learning_rate/width_cost",
    "in the maximal update parametrization, and not in the standard one, a rate tuned on a narrow network is as good "
    "as a wide network's own",
)
CHECK = Claim(
    "learning_rate/coordinates",
    "in the coordinate check every layer's change is flat in the width in the maximal update parametrization, and in "
    "the standard one it grows or shrinks in the layers that theory names",
)
FLAT = 0.05  # ln of the loss: where the last step to an end of the grid won less, a further one would not matter
DEARER = 1.25  # a training loss up to so many times another is as good
BY = ("method", "parametrization", "width")
NOTHING = -float(np.log(np.log(10)))  # score of a run that learned nothing; one that diverged counts as such
RATES = {
    "SGD": tuple(float(f"{2 ** (k / 2):.3g}") for k in range(-6, 3)), "Adam": tuple(2.0**k for k in range(-10, -2)),
}  # fmt: skip
SIZES = sizes(
    "methods widths steps seeds wide repeats", quick=(("SGD",), (), 0, 0, (192, 384, 768), 16),
    standard=(("SGD", "Adam"), (32, 64, 128, 256, 512), 100, 8, (256, 512, 1024), 16),
    full=(("SGD", "Adam"), (32, 64, 128, 256, 512, 1024), 400, 12, (256, 512, 1024, 2048), 24),
    tiny=(("SGD",), (4, 6, 8), 3, 5, (4, 6, 8), 5),
)  # fmt: skip


def grids(  # noqa: PLR0917 - a size names them all
    methods: tuple[str, ...], widths: tuple[int, ...], steps: int, seeds: int, wide: tuple[int, ...], repeats: int
) -> Iterator[Grid]:
    """Both parametrizations at every width and rate; then the coordinate check at larger widths."""
    both = ("standard", "mu")
    for method in methods if widths else ():
        sized: dict[str, Value] = {"method": method, "base": widths[0], "dataset": "digits"}
        yield Grid(
            {"parametrization": both, "width": widths, "lr": RATES[method]}, {**sized, "batch": 64, "steps": steps},
            seeds, ("lr", "seed"), 200, selection=3, claims=(DRIFT.id, STAYS.id, COST.id),
        )  # fmt: skip
    yield Grid(
        {"method": methods, "parametrization": both, "width": wide},
        {"base": wide[0], "dataset": "digits", "updates": UPDATES}, repeats, (*BY, "seed"), 400, claims=(CHECK.id,),
    )  # fmt: skip


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """Train replicas that differ in rate and seed; or take the coordinates of one network after another."""
    digits = data.load(cases[0].text("dataset"))
    if cases[0].get("updates"):
        for case in cases:
            yield from checking.check(case, digits)
        return
    net, fit = net_of(cases[0], digits), digits.to(context.device).train
    rates = [case.number("lr") for case in cases]
    seeds = [case.random_seed("seed") for case in cases]
    stack = replicas.stack(net.template(), seeds, net.draw, device=str(fit.x.device))
    optimizer = replicas.SGD(rates) if net.method == "SGD" else replicas.Adam(rates, eps=1e-12)
    loop = replicas.Loop(batch=cases[0].integer("batch"), steps=cases[0].integer("steps"), loss=net.loss)
    ended = replicas.train(stack, fit.x, fit.y, optimizer, loop).stack
    loss = replicas.evaluate(ended, fit.x, fit.y, loss=net.loss).loss
    for case, value in zip(cases, loss, strict=True):
        yield case.rows("score", float(-np.log(value)))


# -- analysis ----------------------------------------------------------------------------------------------------------


def best(rates: NDArray[np.float64], scores: NDArray[np.float64]) -> float:
    """Logarithm of the best rate: vertex of the parabola through the best score and its neighbours.

    The rate itself at an end of the grid.
    """
    at, k = np.log(rates), int(np.argmax(scores))
    if k in {0, len(at) - 1}:
        return float(at[k])
    curvature, slope, _ = np.polyfit(at[k - 1 : k + 2] - at[k], scores[k - 1 : k + 2], 2)
    return float(at[k] if curvature >= 0 else np.clip(at[k] - slope / (2 * curvature), at[k - 1], at[k + 1]))


def between(rate: float, rates: NDArray[np.float64], scores: NDArray[np.float64]) -> float:
    """Score at a rate, linear between those that were tried; NaN outside of them."""
    return float(np.interp(rate, rates, scores, left=np.nan, right=np.nan))


def _bests(runs: pd.DataFrame) -> pd.Series[float]:
    """Logarithm of the best rate at each width, by the mean score over seeds."""
    means = runs.groupby(["width", "lr"])["score"].mean()
    return means.groupby("width").apply(lambda s: best(s.index.get_level_values("lr").to_numpy(float), s.to_numpy()))


def _pseudo(runs: pd.DataFrame) -> pd.DataFrame:
    """Jackknife pseudo-values of the logarithm of the best rate, one row a seed, one column a width."""
    seeds = runs["seed"].unique()
    without = pd.DataFrame([_bests(runs[runs["seed"] != seed]) for seed in seeds], index=seeds)
    return len(seeds) * _bests(runs) - (len(seeds) - 1) * without


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """Drift of the best rate, the price of a borrowed one, and the coordinate check."""
    runs = training.table(rows, *BY, "lr", "seed", metrics=("score",)).dropna(subset=["lr"])
    if len(runs):
        runs = runs.assign(score=np.fmax(runs["score"], NOTHING))
        yield from _moves(runs)
        yield from _borrowed(runs)
    else:
        yield "best_rates", pd.DataFrame()
        for claim in (DRIFT, STAYS, COST):
            why = "no network was trained to its end; `quick` leaves it to `standard`"
            yield Verdict(claim.id, claim.text, Status.NOT_MEASURED, why=why)
    checks = rows[rows["metric"] == "change"]
    if len(checks):
        yield from checking.answers(checks, CHECK)


def _moves(runs: pd.DataFrame) -> Iterator[Answer]:
    """Exponent of the best rate in the width."""
    asked, curve = {}, []
    for setting, own in groups(runs, SETTING):
        if own["width"].nunique() < 3 or own["seed"].nunique() < 2:
            continue
        pseudo, at = _pseudo(own), _bests(own)
        slope = stats.slopes(np.log(at.index.to_numpy(float)), pseudo).slope
        asked[setting] = training.unsettled(stats.against(slope, 0.0, margin=MARGIN), _open_ended(own))
        for width, value in at.items():
            moved = stats.mean((pseudo[width] - pseudo[at.index[0]]).to_numpy())
            ratio = np.exp([moved.value, moved.low, moved.high]) if width != at.index[0] else (1.0, 1.0, 1.0)
            named = {"width": width, "n": moved.n, "best_rate": np.exp(value)}
            columns = (*SETTING, "value", *ends(0.95))
            curve.append({**dict(zip(columns, (*setting, *ratio), strict=True)), **named})
    yield "best_rates", pd.DataFrame(curve)
    label = "{method} {parametrization}"
    question = Question.of("drift", SETTING, asked, label=label, reference="unmoved")
    if not question:
        return
    yield question.table()
    yield from _moved(pd.DataFrame(curve))
    method = f"exponent of the best rate in the width, jackknife over all seeds, margin {MARGIN:g}"
    for claim, parametrization, reading in ((DRIFT, "standard", below), (STAYS, "mu", agrees)):
        if part := question.where(parametrization=parametrization):
            why = f"the best rate grows with this power of the width: {_powers(part)}"
            yield part.verdict(claim, reading, unit="power of the width", why=why, method=method)


def _moved(curve: pd.DataFrame) -> Iterator[Sentence]:
    """How far the best rate of each optimizer moves from the narrowest network to the widest."""
    last = curve[curve["width"] == curve["width"].max()].set_index(SETTING)[["value", *ends(0.95)]]
    names = {"standard": "the standard parametrization", "mu": "the maximal update one"}
    for method in dict.fromkeys(name for name, _ in last.index):
        told = [
            "{:.2g} [{:.2g}, {:.2g}]".format(*last.loc[(method, p)].astype(float)) + f" in {text}"
            for p, text in names.items()
            if (method, p) in last.index
        ]
        yield Sentence(
            f"A network {curve['width'].max() / curve['width'].min():.0f} times as wide multiplies {method}'s best "
            f"learning rate by {', by '.join(told)}.",
            "best_rates", (DRIFT.id, STAYS.id),
        )  # fmt: skip


def _powers(drift: Question) -> str:
    members = drift.read(lambda c: c.effect).items()
    return "; ".join(f"{key} {e.told('.2f')}" for key, e in members)


def _open_ended(runs: pd.DataFrame) -> bool:
    """Whether a width's best rate may lie outside the rates that were tried."""
    by = ["width"]
    return bool(training.open_ended(training.choices(training.tunable(runs, by), by, score="score"), FLAT).any())


def _borrowed(runs: pd.DataFrame) -> Iterator[Answer]:
    """Loss of the widest network at the best rate of the narrowest, over that at its own, both found by other seeds."""
    asked, further = {}, {}
    for setting, own in groups(runs, SETTING):
        at = _bests(own[own["seed"] < 0])
        reported = own[(own["seed"] >= 0) & (own["width"] == own["width"].max())]
        if len(at) < 2 or reported.empty:
            continue
        wide = reported.pivot_table(index="seed", columns="lr", values="score", dropna=False)
        lines = wide.to_numpy()
        narrow, best_there = (
            np.array([between(rate, np.log(wide.columns.to_numpy(float)), line) for line in lines])
            for rate in (at.iloc[0], at.iloc[-1])
        )
        dearer = stats.paired(np.exp(-narrow), np.exp(-best_there), log=True, margin=DEARER, test="t")
        asked[setting] = training.unsettled(dearer, _open_ended(own))
        further[setting] = {"narrow_rate": np.exp(at.iloc[0]), "own_rate": np.exp(at.iloc[-1])}
    question = Question.of("borrowed", SETTING, asked, label="{method} {parametrization}", reference="its own rate")
    if not question:
        return
    yield question.table(further)
    good, bad = question.where(parametrization="mu"), question.where(parametrization="standard")
    answers = {**good.read(agrees), **{key: None if v is None else not v for key, v in bad.read(agrees).items()}}
    spelled = "; ".join(f"{key} {e.value:.3g}" for key, e in question.read(lambda c: c.effect).items())
    yield question.verdict(
        COST, answers, unit="times its own training loss",
        why=f"at the narrowest network's rate the widest ends at so many times its own loss: {spelled}",
        method="final training loss, linear in ln of the rate between those trained, paired by seed, rates chosen by "
        f"other seeds, margin a factor of {DEARER:g}",
    )  # fmt: skip


@drawing.figure(
    "best_rates", "The best learning rate against the width, in both parametrizations",
    "Best rate over that of the narrowest network; training loss after a fixed number of steps, vertex of the parabola "
    "through the best rate and its neighbours, 95 % intervals by jackknife over seeds.",
)  # fmt: skip
def draw_rates(best_rates: pd.DataFrame) -> Any:
    """Best rate against width, by parametrization."""
    axes = {"xscale": "log", "yscale": "log", "xlabel": "width", "ylabel": "best rate over the narrowest's"}
    return drawing.panels(
        best_rates, "method", drawing.estimates, at="width", by="parametrization", joined=True, axes=axes
    )


def second(rows: pd.DataFrame, **size: Any) -> Iterator[Grid]:
    """A rate more where the best ends its grid."""
    further = training.further_rates(*BY, margin=FLAT, score="score", together=("lr", "seed"), chunk=200)
    yield from further(rows, **size) if (rows["metric"] == "score").any() else ()


METHOD = """**Width.** Networks of three weight layers, ReLU, no biases, on 8 x 8 digits. A rate for each layer is a
multiplier of its weights. Both parametrizations are one at the narrowest width. The best rate is where a parabola
through the best of a grid and its neighbours is highest; a rate that ends its grid extends it by one. A run
that diverged counts as one that learned nothing."""
PART = Part(
    "width", (DRIFT, STAYS, COST, CHECK), SIZES, grids, run, analyse, (draw_rates, draw_changes), METHOD,
    second,
)  # fmt: skip
