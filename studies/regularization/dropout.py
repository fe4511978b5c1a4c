"""Dropout in use: against weight decay with equal numbers of trials, and what predicts after it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from numpy.typing import ArrayLike

from depthgauge import data, drawing, stats, training
from depthgauge.frames import groups
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import Question, above, below, not_above, not_below, spelled
from depthgauge.seeding import Purpose, generator
from depthgauge.stats import Comparison
from depthgauge.studies.regularization import masked, points, searches
from depthgauge.study import Case, Context, Grid, Rows
from depthgauge.verdict import Claim, Sentence

WELL = Claim(
    "N36", "dropout may work better than weight decay, and is easier to tune; it is hardly used in convolutions"
)  # fmt: skip
THINNED = Claim("N46", "after dropout the best of the thinned networks is used for prediction")
MARGIN = 0.01  # of test accuracy: closer ones are the same
FEW = 2  # trials of someone in a hurry
KEYS = ["network", "examples", "method"]
PREDICTORS = {"scaled weights": "test", "mean over masks": "mean", "best thinned": "best", "average thinned": "thinned"}
OUTCOMES = ("validation_accuracy", *(f"{name}_{what}" for name in PREDICTORS.values() for what in ("accuracy", "loss")))
SIZES = sizes(
    "networks examples trials seeds steps width channels masks", quick=((), (), 0, 0, 0, 0, 0, 0),
    standard=(("dense", "convolutional"), (100, 1000), 8, 24, 400, 64, 8, 20),
    full=(("dense", "convolutional"), (100, 300, 1000), 12, 24, 600, 64, 8, 20),
    tiny=(("dense", "convolutional"), (20,), 2, 10, 2, 4, 2, 2),
)  # fmt: skip


def grids(
    *, networks: tuple[str, ...], examples: tuple[int, ...], trials: int, seeds: int, steps: int, width: int,
    channels: int, masks: int,
) -> Iterator[Grid]:  # fmt: skip
    """Equally many trials for every method, half the seeds for convolutions, which take long; none at quick."""
    for network in networks:
        yield Grid(
            {"network": (network,), "examples": examples, "method": ("none", "decay", "dropout"),
             "trial": tuple(range(trials))},
            {"steps": steps, "masks": masks, "width": width if network == "dense" else channels},
            seeds if network == "dense" else seeds // 2, ("method", "trial", "seed"), 60,
            claims=(WELL.id, THINNED.id) if network == "dense" else (WELL.id,),
        )  # fmt: skip


def trial(case: Case) -> dict[str, float]:
    """Settings of a trial: its rate is the same for every method, its strength the same quantile of the range."""
    rate, strength = torch.rand(2, generator=generator(case.random_seed("seed", "trial"), Purpose.SAMPLE)).tolist()
    method = case.text("method")
    return {
        "lr": 10 ** (-2.5 + 1.5 * rate),
        "decay": 10 ** (-5 + 4 * strength) if method == "decay" else 0.0,
        "p": 0.1 + 0.7 * strength if method == "dropout" else 0.0,
    }


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """Accuracies of every trial; with dropout those of thinned networks too."""
    shared, digits = cases[0], data.load("digits").to(context.device)
    fit, validation = data.hold_out(digits.train, training.HELD_OUT)
    count, convolutional = shared.integer("examples"), shared.text("network") == "convolutional"
    net = masked.Net((("act", "drop"),) * 2, shared.integer("width"), convolutional)
    seeds = [case.random_seed("seed", "trial", "network", "examples") for case in cases]  # of all methods: paired
    tried = pd.DataFrame([trial(case) for case in cases])
    nets = masked.Nets.draw(net, seeds, tried["p"].tolist(), context.device)
    recipe = masked.Recipe(tried["lr"].tolist(), tried["decay"].tolist(), shared.integer("steps"))
    masked.train(nets, data.Examples(fit.x[:count], fit.y[:count]), recipe, seeds)
    ends = dict(
        zip(("test_accuracy", "test_loss"), masked.scores(nets(digits.test.x[None]), digits.test.y), strict=True)
    )
    ends["validation_accuracy"] = masked.scores(nets(validation.x[None]), validation.y)[0]
    dropped = tried["p"].to_numpy() > 0
    if dropped.any() and not convolutional:
        ends |= searches.thinned(nets, (validation, digits.test), shared.integer("masks"), seeds)
    for i, case in enumerate(cases):
        yield from (case.rows(name, float(tried[name][i])) for name in ("lr", "decay", "p"))
        for metric, values in ends.items():
            if metric in OUTCOMES[:3] or dropped[i]:
                yield case.rows(metric, float(values[i]))


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """Tuning curves by method, and what predicts best after dropout."""
    runs = training.table(rows, *KEYS, "trial", "seed", metrics=(*OUTCOMES, "p")).astype({"examples": int})
    curves = {key: _searches(cases) for key, cases in groups(runs.sort_values(["seed", "trial"]), KEYS)}
    yield "tuning", pd.DataFrame(_points(curves))
    yield from tuned(curves)
    after = runs[(runs["method"] == "dropout") & (runs["network"] == "dense")].sort_values(["seed", "trial"])
    if len(after):
        best = after.loc[after.groupby(["examples", "seed"])["validation_accuracy"].idxmax()]
        yield from thinned(best)


def _searches(cases: pd.DataFrame) -> pd.DataFrame:
    """A row a seed whose search is whole, a column a number of trials: expected test accuracy of the best."""
    trials = cases["trial"].nunique()
    return pd.DataFrame.from_dict({
        seed: searches.expected_best(own["validation_accuracy"], own["test_accuracy"])
        for seed, own in groups(cases, "seed") if len(own) == trials
    }, orient="index")  # fmt: skip


def _points(curves: Mapping[Any, pd.DataFrame]) -> Iterator[dict[str, Any]]:
    for key, curve in curves.items():
        for k, values in enumerate(curve.to_numpy().T, 1):
            yield {**dict(zip(KEYS, key, strict=True)), "trials": k, "n": len(values),
                   **spelled("value", stats.mean(values))}  # fmt: skip


BETTER, EASIER, CONVOLVED = "best of all trials", f"loss with {FEW} trials", "gain over none"
READINGS = {BETTER: above, EASIER: below, CONVOLVED: not_above}


def tuned(curves: Mapping[Any, pd.DataFrame]) -> Iterator[Answer]:
    """N36: dropout against weight decay in dense networks, and against nothing in convolutional ones."""
    asked: dict[tuple[str, str, int], Comparison] = {}
    for network, count in dict.fromkeys(key[:2] for key in curves):
        pair = [curves.get((network, count, of)) for of in ("dropout", "decay" if network == "dense" else "none")]
        searched = [each.to_numpy() for each in _of_the_same_seeds(pair)]
        if not searched:  # of a run that was cut short
            continue
        asked[BETTER if network == "dense" else CONVOLVED, network, count] = _paired(
            *(each[:, -1] for each in searched)
        )
        if network == "dense":
            lost = [each[:, -1] - each[:, min(FEW, each.shape[1]) - 1] for each in searched]
            asked[EASIER, network, count] = _paired(*lost)
    question = Question.of(
        "dropout_decay", ("what", "network", "examples"), asked, label="{what}, {network}, {examples} examples",
        reference="no difference",
    )  # fmt: skip
    if not question:
        return
    yield question.table()
    answers = {key: READINGS[key[0]](c) for key, c in question.members.items()}
    told = "; ".join(f"{question.words(key)}: {c.effect.value:+.3f}" for key, c in question.members.items())
    yield question.verdict(
        WELL, answers, unit="difference of test accuracy", why=told,
        method="equal numbers of random trials, the same learning rates for all methods; test accuracy of the trial "
        "best in validation, expected over choices of trials. Holds where in dense networks dropout's best is over "
        f"{MARGIN:g} above weight decay's, where it loses less with {FEW} trials in place of all, and where in "
        f"convolutional networks it gains no more than {MARGIN:g} over neither; who uses it cannot be measured; "
        f"paired t by seed, margin {MARGIN:g}",
    )  # fmt: skip
    trials = max(curve.shape[1] for curve in curves.values())
    for (what, network, count), c in question.members.items():
        if text := _said(what, network, c, trials):
            yield Sentence(f"With {count} examples {text}.", figure="tuning", claims=(WELL.id,))


def _of_the_same_seeds(curves: Sequence[pd.DataFrame | None]) -> list[pd.DataFrame]:
    """The searches of those seeds that every method has, with as many trials; none where a method has none."""
    given = [each for each in curves if each is not None and len(each)]
    if len(given) < len(curves):
        return []
    seeds = set.intersection(*(set(each.index) for each in given))
    trials = min(each.shape[1] for each in given)
    return [each.loc[sorted(seeds)].iloc[:, :trials] for each in given] if seeds else []


def _said(what: str, network: str, c: Comparison, trials: int) -> str:
    """The sentence on a comparison that is decided, behind the number of examples; empty for one that is open."""
    by, tried = points.spanned(c.effect), f"{trials} trials each"
    if what == EASIER:
        lost = f"dropout loses in a {network} network minus what weight decay loses is {by}"
        return f"and {FEW} trials in place of {trials}, what {lost}" if c.beyond else ""
    other = "weight decay" if what == BETTER else "no regularizer"
    if c.inside:
        margin = f"less than {100 * MARGIN:g} point of test accuracy"
        return f"a {network} network with dropout and one with {other}, {tried}, differ by {margin}"
    if c.beyond:
        return f"the test accuracy of a {network} network with dropout differs from that with {other} by {by}, {tried}"
    if what == CONVOLVED and not_above(c):
        short = f"does not raise the test accuracy of a {network} network by more than {100 * MARGIN:g} point"
        return f"dropout {short}: it changes by {by}, {tried}"
    return ""


def _paired(one: ArrayLike, other: ArrayLike) -> Comparison:
    return stats.paired(one, other, margin=MARGIN, test="t")


def thinned(best: pd.DataFrame) -> Iterator[Answer]:
    """N46: the best thinned network in validation, and the mean over masks, against scaled weights."""
    yield "predictors", pd.DataFrame([
        {"examples": count, "predictor": name, "n": len(own), "p": own["p"].median(),
         **spelled("accuracy", stats.mean(own[f"{metric}_accuracy"].to_numpy())),
         **spelled("loss", stats.mean(own[f"{metric}_loss"].to_numpy()))}
        for count, own in groups(best, "examples") for name, metric in PREDICTORS.items()
    ])  # fmt: skip
    asked = {
        (name, count): _paired(own[f"{PREDICTORS[name]}_accuracy"].to_numpy(), own["test_accuracy"].to_numpy())
        for name in ("best thinned", "mean over masks") for count, own in groups(best, "examples")
    }  # fmt: skip
    both = Question.of(
        "thinned", ("predictor", "examples"), asked, label="{predictor}, {examples} examples",
        reference="scaled weights",
    )  # fmt: skip
    yield both.table()
    question = both.where(predictor="best thinned")
    told = "; ".join(f"{both.words(key)}: {c.effect.value:+.3f}" for key, c in both.members.items())
    yield question.verdict(
        THINNED, not_below, unit="difference of test accuracy",
        why=f"against scaled weights, which PyTorch predicts by: {told}",
        method="would it do: holds where the best thinned network in validation, of those drawn, is no more than "
        f"{MARGIN:g} worse in test accuracy than the whole network with its weights scaled; the trial of dropout best "
        "in validation of every seed; paired t by seed",
    )  # fmt: skip
    (_, count), worst = min(question.members.items(), key=lambda item: item[1].effect.value)
    if worst.below:
        yield Sentence(
            f"The best thinned network differs in test accuracy from the whole one with scaled weights, by which one "
            f"predicts after dropout, by {points.spanned(worst.effect)} ({count} examples).",
            figure="predictors", claims=(THINNED.id,),
        )  # fmt: skip


@drawing.figure(
    "tuning", "What a number of trials buys with dropout, weight decay or neither",
    lambda tuning: f"Expected test accuracy of the trial best in validation; mean of at least "
    f"{tuning['n'].min()} searches, intervals of 95 %.",
)  # fmt: skip
def draw_tuning(tuning: pd.DataFrame) -> Any:
    """Tuning curves, a panel a network and number of examples."""
    shown = tuning.assign(trained=tuning["network"] + ", " + tuning["examples"].astype(str) + " examples")
    return drawing.panels(
        shown, "trained", drawing.estimates, at="trials", by="method", joined=True, shared="x",
        axes={"xlabel": "trials", "ylabel": "test accuracy"},
    )  # fmt: skip


@drawing.figure(
    "predictors", "What predicts after dropout",
    lambda predictors: f"Mean of {predictors['n'].min()} searches, intervals of 95 %; dense networks.",
)  # fmt: skip
def draw_predictors(predictors: pd.DataFrame) -> Any:
    """Test accuracy, a row a predictor."""
    shown = predictors.rename(columns=lambda name: name.replace("accuracy", "value"))
    shown = shown.assign(trained=shown["examples"].astype(str) + " examples")
    return drawing.panels(
        shown, "trained", drawing.estimates, at="predictor", axes={"xlabel": "test accuracy"}, shared="both"
    )


METHOD = """**Dropout in use.** ReLU networks of two hidden layers on 8 x 8 digits: dense, or 3 x 3 convolutions each
followed by pooling; dropout behind every hidden layer. SGD with momentum 0.9, batches of 32. A trial draws a learning
rate (logarithmic, 0.003 to 0.1), and a weight decay of the weight matrices (logarithmic, 1e-5 to 0.1) or a share
dropped (0.1 to 0.8); the ranges were set before any run. Every seed is a search with trials of its own; validation
examples choose, test examples are reported. A thinned network is one mask for all examples."""
PART = Part("dropout", (WELL, THINNED), SIZES, grids, run, analyse, (draw_tuning, draw_predictors), METHOD)
