"""The best learning rate against the width, and the coordinate check that tells in advance whether it will move."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from depthgauge import coordinates, data, drawing, replicas, seeding, stats, training
from depthgauge.frames import groups
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import Question, agrees, below, listed, side
from depthgauge.seeding import Purpose
from depthgauge.studies.learning_rate.parametrization import EXPONENTS, LAYERS, Net
from depthgauge.study import Case, Context, Grid, Rows
from depthgauge.verdict import Claim
from depthgauge.workload import Training

DRIFT = Claim("learning_rate/width_drift", "in the standard parametrization the best learning rate falls with the width")
STAYS = Claim(
    "learning_rate/width_transfer",
    "in the maximal update parametrization the best learning rate does not move with the width",
)
COST = Claim(
    "learning_rate/width_cost",
    "in the maximal update parametrization, and not in the standard one, a rate tuned on a narrow network is as good as "
    "a wide network's own",
)
CHECK = Claim(
    "learning_rate/coordinates",
    "after a few steps the change of each layer's output is the predicted power of the width: none in the maximal "
    "update parametrization",
)
MARGIN = 0.15  # of an exponent in the width: over a factor of 8 in width less than a factor of 1.4
DEARER = 1.25  # a training loss up to so many times another is as good
BY = ("method", "parametrization", "width")
SETTING = ["method", "parametrization"]
GENTLE = {"SGD": 2e-4, "Adam": 3e-5}  # rates of the coordinate check: small enough for the powers to be those of a step
RATES = {
    "SGD": tuple(2.0**k for k in range(-6, 4)), "Adam": tuple(2.0**k for k in range(-12, -2))
}  # fmt: skip
SIZES = sizes(
    "methods widths wide steps seeds", quick=(("SGD",), (16, 32, 64), (64, 128, 256), 40, 5),
    standard=(("SGD", "Adam"), (32, 64, 128, 256), (64, 128, 256, 512, 1024), 100, 8),
    full=(("SGD", "Adam"), (32, 64, 128, 256, 512, 1024), (64, 128, 256, 512, 1024, 2048), 400, 12),
    tiny=(("SGD",), (4, 6, 8), (4, 6, 8), 3, 5),
)  # fmt: skip
CHECKED, UPDATES = 64, 3  # examples and updates of the coordinate check


def grids(
    methods: tuple[str, ...], widths: tuple[int, ...], wide: tuple[int, ...], steps: int, seeds: int
) -> Iterator[Grid]:
    """Both parametrizations at every width and rate; then the coordinate check at larger widths."""
    both = ("standard", "mu")
    for method in methods:
        fixed = {"method": method, "base": widths[0], "dataset": "digits", "batch": 64, "steps": steps}
        rates = RATES[method][::2] if len(widths) < 4 else RATES[method]
        yield Grid(
            {"parametrization": both, "width": widths, "lr": rates}, fixed, seeds, ("lr", "seed"), 200, selection=3,
            claims=(DRIFT.id, STAYS.id, COST.id),
        )  # fmt: skip
    yield Grid(
        {"method": methods, "parametrization": both, "width": wide},
        {"base": wide[0], "dataset": "digits", "updates": UPDATES}, seeds, BY + ("seed",), 400, claims=(CHECK.id,),
    )  # fmt: skip


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """Train replicas that differ in rate and seed; or take the coordinates of one network after another."""
    digits = data.load(cases[0].text("dataset"))
    if cases[0].get("updates"):
        for case in cases:
            yield from _checked(case, digits)
        return
    net, fit = _net(cases[0], digits), digits.to(context.device).train
    rates = [case.number("lr") for case in cases]
    seeds = [case.random_seed("seed") for case in cases]
    stack = replicas.stack(net.template(), seeds, net.draw, device=str(fit.x.device))
    optimizer = replicas.SGD(rates) if net.method == "SGD" else replicas.Adam(rates, eps=1e-12)
    loop = replicas.Loop(batch=cases[0].integer("batch"), steps=cases[0].integer("steps"), loss=net.loss)
    ended = replicas.train(stack, fit.x, fit.y, optimizer, loop).stack
    loss = replicas.evaluate(ended, fit.x, fit.y, loss=net.loss).loss
    for case, value in zip(cases, loss, strict=True):
        yield case.rows("score", float(-np.log(value)))


def _net(case: Case, dataset: data.Dataset) -> Net:
    inputs = int(np.prod(dataset.input_shape))
    named = {"parametrization": case.text("parametrization"), "method": case.text("method")}
    return Net(inputs, case.integer("width"), dataset.classes, case.integer("base"), **named)  # type: ignore[arg-type]  # a case's texts


def _checked(case: Case, dataset: data.Dataset) -> Iterator[Rows]:
    """Change of each layer's output."""
    net, seed = _net(case, dataset), case.random_seed("seed")
    batch = (dataset.train.x[:CHECKED], dataset.train.y[:CHECKED])

    def make(_width: int) -> Training:
        module = net.module()
        net.draw(module, seeding.generator(seed, Purpose.WEIGHTS))
        method = torch.optim.SGD if net.method == "SGD" else torch.optim.Adam
        return Training(module, [batch], optimizer=method(module.parameters(), lr=GENTLE[net.method]))

    changes = coordinates.changes(make, net.width, seed, case.integer("updates"))
    yield case.rows("change", list(changes.values()), layer=list(changes), layer_index=range(len(changes)))


# -- analysis ----------------------------------------------------------------------------------------------------------


def best(rates: NDArray[np.float64], scores: NDArray[np.float64]) -> float:
    """ln of the best rate: vertex of the parabola through the best score and its neighbours, over ln of the rate.

    The rate itself at an end of the grid, or beside a run that diverged.
    """
    at = np.log(rates)
    k = int(np.argmax(np.where(np.isfinite(scores), scores, -np.inf)))
    if k in {0, len(at) - 1} or not np.isfinite(scores[k - 1 : k + 2]).all():
        return float(at[k])
    curvature, slope, _ = np.polyfit(at[k - 1 : k + 2] - at[k], scores[k - 1 : k + 2], 2)
    return float(at[k] if curvature >= 0 else np.clip(at[k] - slope / (2 * curvature), at[k - 1], at[k + 1]))


def _bests(runs: pd.DataFrame) -> pd.Series[float]:
    """ln of the best rate at each width, by the mean score over seeds; a rate where a seed diverged has none."""
    means = runs.assign(score=runs["score"].fillna(-np.inf)).groupby(["width", "lr"])["score"].mean()
    return means.groupby("width").apply(lambda s: best(s.index.get_level_values("lr").to_numpy(float), s.to_numpy()))


def _drift(runs: pd.DataFrame) -> tuple[NDArray[np.float64], pd.Series[float]]:
    """Jackknife pseudo-values of the exponent of the best rate in the width, one a seed; and ln of the best rates."""

    def exponent(rows: pd.DataFrame) -> float:
        at = _bests(rows)
        return float(np.polyfit(np.log(at.index.to_numpy(float)), at.to_numpy(), 1)[0])

    seeds = runs["seed"].unique()
    whole = exponent(runs)
    without = np.array([exponent(runs[runs["seed"] != seed]) for seed in seeds])
    return len(seeds) * whole - (len(seeds) - 1) * without, _bests(runs)


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """Drift of the best rate, the price of a borrowed one, and the coordinate check."""
    runs = training.table(rows, *BY, "lr", "seed", metrics=("score",)).dropna(subset=["lr"])
    if len(runs):
        yield from _moves(runs)
        yield from _borrowed(runs)
    checks = rows[rows["metric"] == "change"]
    if len(checks):
        yield from _coordinates(checks)


def _moves(runs: pd.DataFrame) -> Iterator[Answer]:
    asked, curve = {}, []
    for setting, own in groups(runs, SETTING):
        if own["width"].nunique() < 2 or own["seed"].nunique() < 2:
            continue
        pseudo, at = _drift(own)
        asked[setting] = stats.against(pseudo, 0.0, margin=MARGIN)
        tried = own["lr"].min(), own["lr"].max()
        curve += [
            {**dict(zip(SETTING, setting, strict=True)), "width": width, "best_rate": np.exp(value),
             "at_edge": not tried[0] < np.exp(value) < tried[1]} for width, value in at.items()
        ]  # fmt: skip
    yield "best_rates", pd.DataFrame(curve)
    label = "{method}, {parametrization}"
    question = Question.of("drift", SETTING, asked, label=label, reference="none")
    if not question:
        return
    yield question.table()
    method = f"exponent of the best rate in the width, jackknife over seeds, margin {MARGIN:g}"
    for claim, name, reading in ((DRIFT, "standard", below), (STAYS, "mu", agrees)):
        if part := question.where(parametrization=name):
            moved = "; ".join(f"{key}: width^{c.effect.value:.2f}" for key, c in part.read(lambda c: c).items())
            yield part.verdict(claim, reading, unit="exponent", why=f"the best rate goes as {moved}", method=method)


def _borrowed(runs: pd.DataFrame) -> Iterator[Answer]:
    """Loss of the widest network at the best rate of the narrowest, over that at its own, both found by other seeds."""
    asked, further = {}, {}
    for setting, own in groups(runs, SETTING):
        at = _bests(own[own["seed"] < 0])
        reported = own[(own["seed"] >= 0) & (own["width"] == own["width"].max())]
        if len(at) < 2 or reported.empty:
            continue
        wide = reported.pivot_table(index="seed", columns="lr", values="score", dropna=False)
        lines = np.fmax(wide.to_numpy(), -np.log(np.log(10)))  # a run that diverged is one that learned nothing
        narrow, best_there = (
            np.array([np.interp(rate, np.log(wide.columns.to_numpy(float)), line) for line in lines])
            for rate in (at.iloc[0], at.iloc[-1])
        )
        asked[setting] = stats.paired(np.exp(-narrow), np.exp(-best_there), log=True, margin=DEARER, test="t")
        further[setting] = {"narrow_rate": np.exp(at.iloc[0]), "own_rate": np.exp(at.iloc[-1])}
    question = Question.of("borrowed", SETTING, asked, label="{method}, {parametrization}", reference="none")
    if not question:
        return
    yield question.table(further)
    good, bad = question.where(parametrization="mu"), question.where(parametrization="standard")
    answers = {**good.read(agrees), **{key: None if v is None else not v for key, v in bad.read(agrees).items()}}
    spelled = "; ".join(f"{key}: {c.effect.value:.3g} times" for key, c in question.read(lambda c: c).items())
    yield question.verdict(
        COST, answers, unit="training loss over its own", why=f"the narrowest network's rate costs the widest {spelled}",
        method="final training loss, linear in ln of the rate between those trained, paired by seed, rates chosen by other "
        f"seeds, margin a factor of {DEARER:g}",
    )  # fmt: skip


def _coordinates(checks: pd.DataFrame) -> Iterator[Answer]:
    asked, further, means = {}, {}, []
    for setting, own in groups(checks, SETTING):
        wide = own.pivot_table(index=["layer", "seed"], columns="width", values="value")
        change = np.stack([wide.loc[layer].to_numpy() for layer in LAYERS])
        slopes = stats.slopes(np.log(wide.columns.to_numpy(float)), np.log(change)).slope
        flat = coordinates.exponents(LAYERS, wide.columns.to_list(), change, MARGIN)
        for layer, row, predicted in zip(LAYERS, slopes, EXPONENTS[setting], strict=True):
            asked[*setting, layer] = stats.against(row, predicted, margin=MARGIN)
            further[*setting, layer] = {"verdict": coordinates.WORDS[side(flat[layer])]}
        for layer, each in zip(LAYERS, change, strict=True):
            means += [(*setting, layer, w, float(v)) for w, v in zip(wide.columns, np.exp(np.log(each).mean(0)), strict=True)]
    yield "changes", pd.DataFrame(means, columns=[*SETTING, "layer", "width", "change"])
    question = Question.of(
        "coordinates", (*SETTING, "layer"), asked, label="{method}, {parametrization}, {layer}", reference="predicted"
    )
    yield question.table(further)
    words = {question.words(key): row["verdict"] for key, row in further.items()}
    told = {word: f"{word}:" for word in dict.fromkeys(coordinates.WORDS.values())}
    yield f"Coordinate check: {listed(words, told, 12)}."
    yield question.prediction(CHECK, "exponents", within=f"{MARGIN:g}", unit="exponent")


@drawing.figure(
    "best_rates", "The best learning rate moves with the width in the standard parametrization",
    "Vertex of the parabola through the best rate and its neighbours, training loss after a fixed number of steps.",
)  # fmt: skip
def draw_rates(best_rates: pd.DataFrame) -> Any:
    """Best rate against width, by parametrization."""
    axes = {"xscale": "log", "yscale": "log", "xlabel": "width", "ylabel": "best learning rate"}
    return drawing.panels(
        best_rates, "method", drawing.lines, x="width", y="best_rate", by="parametrization", axes=axes, shared=""
    )


@drawing.figure(
    "changes", "The coordinate check: a layer whose change grows or shrinks with the width tells that rates will not "
    "transfer",
    f"Root mean square of the change of each layer's output after {UPDATES} steps, geometric mean over seeds.",
)  # fmt: skip
def draw_changes(changes: pd.DataFrame) -> Any:
    """Change of each layer against width."""
    changes = changes.assign(setting=changes["method"] + ", " + changes["parametrization"])
    axes = {"xscale": "log", "yscale": "log", "xlabel": "width", "ylabel": "change of the output"}
    return drawing.panels(changes, "setting", drawing.lines, x="width", y="change", by="layer", axes=axes)


METHOD = """**Width.** Networks of three weight layers, ReLU, no biases, on 8 x 8 digits. A rate for each layer is a
multiplier of its weights. Both parametrizations are one at the narrowest width. The best rate is where a parabola through
the best of a grid and its neighbours is highest; a rate that ends its grid extends it by one."""
PART = Part(
    "width", (DRIFT, STAYS, COST, CHECK), SIZES, grids, run, analyse, (draw_rates, draw_changes), METHOD,
    training.further_rates(*BY, margin=0.05, score="score", together=("lr", "seed"), chunk=200),
)  # fmt: skip
