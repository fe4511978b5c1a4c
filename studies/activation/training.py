"""Every activation at several depths, each at its own gain and its own tuned learning rate: accuracy, steps, lost units."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from depthgauge import data, drawing, models, replicas, stats, theory, training
from depthgauge.frames import groups, records
from depthgauge.parts import Answer, Part
from depthgauge.questions import Question, above, agrees, enumerated, listed, spelled
from depthgauge.studies.activation import functions, tuning
from depthgauge.studies.activation.functions import handed, phi
from depthgauge.study import Case, Context, Grid, Rows
from depthgauge.verdict import Claim

STABLE = Claim("N09", "sensible initial weights and activations keep training stable")
SAME = Claim(
    "activation/same", "with its own gain and its own tuned learning rate every activation ends at the same accuracy"
)
DYING = Claim("activation/dying", "ReLU units die in training")

TRAINED = 0.5  # test accuracy from which a network counts as trained; chance is 0.1
MARGIN = 0.02  # test accuracy: activations closer than this are called the same
DEAD = 0.01  # share of units: a change of up to this is none
WATCHED = 200  # examples on which a unit's slopes are taken
CHECKPOINTS = (0.0, 1 / 32, 1 / 8)  # shares of the steps at which units are looked at, besides the end
NAMED = ("relu", "tanh", "sigmoid")  # the activations of N09; drawn by nn.Linear's default, too
KEYS = ["activation", "init", "depth"]
FEW = ("identity", "relu", "leaky_relu", "tanh", "sigmoid", "gelu", "silu", "selu")
SIZES = {
    "quick": {
        "activations": FEW, "dataset": "digits", "depths": (3, 10), "width": 32, "steps": 150, "seeds": 8,
        "rates": (0.003, 0.01, 0.03, 0.1),
    },
    "standard": {
        "activations": functions.names(), "dataset": "mnist5k", "depths": (3, 10, 30), "width": 64, "steps": 250,
        "seeds": 8, "rates": (0.001, 0.003, 0.01, 0.03, 0.1),
    },
    "full": {
        "activations": functions.names(), "dataset": "mnist5k", "depths": (3, 10, 30, 60), "width": 128, "steps": 1500,
        "seeds": 12, "rates": (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3),
    },
    "tiny": {
        "activations": ("relu", "tanh", "elu", "celu"), "dataset": "digits", "depths": (1, 2), "width": 8, "steps": 25,
        "seeds": 5, "rates": (0.03, 0.1),
    },
}  # fmt: skip


def grids(
    activations: tuple[str, ...], dataset: str, depths: tuple[int, ...], width: int, steps: int, seeds: int,
    rates: tuple[float, ...],
) -> Iterator[Grid]:  # fmt: skip
    """Every activation at its gain and every depth; those that N09 names at nn.Linear's default and the greatest."""
    named = tuple(name for name in NAMED if name in activations)
    for init, names, depth in (*(("gain", activations, depth) for depth in depths), ("default", named, depths[-1])):
        if names:
            yield Grid(
                {"activation": names, "lr": rates},
                {**tuning.sgd(dataset, steps), "model": "mlp", "init": init, "depth": depth, "width": width}, seeds,
                tuning.TOGETHER, tuning.most_replicas, architecture=("activation", "depth", "width"),
                selection=tuning.SELECTION,
            )  # fmt: skip


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """Train on real digits; replicas differ in learning rate and seed.

    Seeds are common to all activations and learning rates: the same draws of the weights, times the gain, and the same
    mini-batches.
    """
    shared = cases[0]
    spec = shared.text("activation")
    dataset = data.load(shared.text("data")).to(context.device)
    template = models.build(
        shared.text("model"), preset="small", activation=handed(spec), input_shape=dataset.input_shape,
        classes=dataset.classes, **shared.given("depth", "width"),
    )  # fmt: skip
    initialize = None if shared.text("init") == "default" else tuning.at_gain(theory.gain(phi(spec)).forward)
    draw = training.Draw([case.random_seed("seed", "width", "depth") for case in cases], initialize)
    recipe = tuning.recipe(cases)
    fit, _ = data.hold_out(dataset.train, training.HELD_OUT)

    def look(stack: replicas.Stack) -> Mapping[str, Sequence[float]]:
        units = replicas.units(stack, fit.x[:WATCHED], phi(spec))
        return {} if units is None else {"dead": units.dead.tolist(), "saturated": units.saturated.tolist()}

    yield from training.outcomes(cases, template, dataset, recipe, draw, inspect=look)
    if not look(replicas.stack(template, draw.seeds[:1])):
        return  # not the layers of a multilayer perceptron
    for share in CHECKPOINTS:
        # the first steps of the training above, once more: the order of the data does not depend on their number
        early = round(share * recipe.steps)
        trained = replace(recipe, steps=early).train(draw.replicas(template, context.device), fit)
        for metric, values in look(trained.stack).items():
            for case, value in zip(cases, values, strict=True):
                yield case.rows(metric, float(value), step=early)


def at(depth: int) -> str:
    """`at depth 10`."""
    return f"at depth {depth}" if depth else "at the model's own depth"


# -- analysis ----------------------------------------------------------------------------------------------------------


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """Reported runs at their tuned rates, who is as good as the best at each depth, and what became of the units."""
    every = training.tunable(tuning.runs(rows, "init", "depth", "width", "steps", "target"), KEYS)
    if every.empty:
        return
    reported = training.tuned(every, KEYS)
    edges = tuning.at_edge(reported, KEYS)
    cells = pd.DataFrame(_cell(dict(zip(KEYS, key, strict=True)), runs) for key, runs in groups(reported, KEYS))
    yield from _same(reported, _picked(every, reported), edges)
    yield "training", cells
    yield "tuned_runs", reported
    yield from _stable(reported, edges)
    yield from _dying(rows, reported)
    yield from _steps(cells[cells["init"] == "gain"])
    if edges:
        ends = enumerated((f"{name} {at(depth)}" for name, init, depth in sorted(edges) if init == "gain"), 8)
        yield f"The chosen learning rate still ends its grid, so that a better one may lie outside, for {ends}."


def _cell(key: Mapping[str, object], runs: pd.DataFrame) -> dict[str, object]:
    steps = runs["steps_to_target"].where(runs["reached"] > 0, math.inf)
    return {
        **key, "n": len(runs), **spelled("median_accuracy", stats.median(runs["test_accuracy"].to_numpy())),
        "trained": int(_trained(runs).sum()), "reached": int(runs["reached"].sum()),
        **spelled("median_steps", stats.median(steps.to_numpy())), "diverged": int(runs["diverged"].sum()),
        "lr": runs["lr"].iloc[0], "at_edge": bool(runs["at_edge"].iloc[0]),
    }  # fmt: skip


def _trained(runs: pd.DataFrame) -> pd.Series[bool]:
    return (runs["test_accuracy"] >= TRAINED) & (runs["diverged"] == 0)


def _picked(every: pd.DataFrame, reported: pd.DataFrame) -> dict[int, str]:
    """The best activation at each depth, by validation in the runs that chose the learning rates."""
    chosen = every.merge(training.choices(every, KEYS)[[*KEYS, "lr"]], on=[*KEYS, "lr"])
    choosing = chosen[(chosen["init"] == "gain") & ~chosen["seed"].isin(reported["seed"])]
    scores = choosing.groupby(["depth", "activation"], sort=False)["validation_accuracy"].mean()
    return {int(depth): str(own.idxmax()[1]) for depth, own in groups(scores.to_frame("score")["score"], "depth")}


def _same(reported: pd.DataFrame, picked: Mapping[int, str], edges: set[Any]) -> Iterator[Answer]:
    """Is every activation as good as the best, at every depth?"""
    asked, further = {}, {}
    for depth, runs in groups(reported[reported["init"] == "gain"], "depth"):
        # an activation with a seed missing (an unfinished run) has no place in pairs
        test = runs.pivot_table(index="seed", columns="activation", values="test_accuracy", sort=False).dropna(axis=1)
        best = picked[depth]
        for name in (name for name in test if best in test and name != best):
            asked[depth, name] = stats.paired(test[best], test[name], margin=MARGIN, test="t", unit="test accuracy")
            at_edge = any((side, "gain", depth) in edges for side in (name, best))
            further[depth, name] = {"accuracy": test[name].mean(), "picked": best, "at_edge": at_edge}
    question = Question.of(
        "answers", ("depth", "activation"), asked, label="{activation} at depth {depth}", reference="none"
    )  # fmt: skip
    if not question:
        return
    yield question.table(further)
    ends = {key for key, columns in further.items() if columns["at_edge"]}
    said = tuning.answers(question, agrees, ends)
    counts = []
    for depth in dict.fromkeys(depth for depth, _ in said):
        names = {
            answer: [n for (d, n), a in said.items() if d == depth and a is answer] for answer in (True, False, None)
        }
        counts.append(f"{at(depth)} {len(names[True])} are as good, {len(names[False])} are not")
        yield (
            f"{at(depth).capitalize()} other runs pick {picked[depth]}. As good within {MARGIN:.0%} of test accuracy: "
            f"{enumerated(names[True], 30) or 'none that could be shown'}; different by more: "
            f"{enumerated(names[False], 30) or 'none'}; undecided: {enumerated(names[None], 30) or 'none'}."
        )
    yield tuning.verdict(
        question, SAME, agrees, ends, unit="test accuracy behind the best",
        why=f"of the activations beside the best, {'; '.join(counts)}; the rest is undecided",
        method=f"paired t by seed against the activation that other runs find best, margin {MARGIN:g}",
    )  # fmt: skip


def _stable(reported: pd.DataFrame, edges: set[Any]) -> Iterator[Answer]:
    """N09: do the deepest networks train, with sensible weights and activations?"""
    deepest = int(reported["depth"].max())
    deep = reported[reported["depth"] == deepest]
    classic = set(deep.loc[deep["spec"].isin(NAMED), "activation"])
    events = {key: (int(_trained(runs).sum()), len(runs)) for key, runs in groups(deep, ["activation", "init"])}
    question = Question.of(
        "trained", ("activation", "init"), {key: stats.coverage(*counts, 0.5) for key, counts in events.items()},
        label="{activation}, init {init}", reference="half", family=lambda activation, init: (init, activation in classic),
        counted="runs",
    )  # fmt: skip
    yield question.table({key: {"depth": deepest, "trained": trained} for key, (trained, _) in events.items()})
    gain = question.where(init="gain")
    asked = gain.where(activation=tuple(classic)) or gain
    if not asked:
        return
    told = {
        init: ", ".join(f"{name} in {k} of {n}" for (name, drawn), (k, n) in events.items() if drawn == init and (
            name in classic or not classic))
        for init in ("gain", "default")
    }  # fmt: skip
    others = [(k, n) for (name, init), (k, n) in events.items() if init == "gain" and (name, init) not in asked.members]
    yield tuning.verdict(
        asked, STABLE, above, {(name, init) for name, init, depth in edges if depth == deepest}, unit="share of runs",
        why=f"{at(deepest)} and its exact gain a network trained with {told['gain']} runs"
        + (f"; at nn.Linear's default with {told['default']}" if told["default"] else "")
        + f". Of {len(others)} other activations {sum(k == n for k, n in others)} trained in every run and "
        f"{sum(k == 0 for k, _ in others)} in none" * bool(others),
        method=f"a run trained that ends at a test accuracy of {TRAINED:g} or more without divergence; share of runs "
        "against 1/2, exact binomial",
    )  # fmt: skip


def _dying(rows: pd.DataFrame, reported: pd.DataFrame) -> Iterator[Answer]:
    """Shares of dead and saturated units through training; do more of ReLU's units end dead than began so?"""
    shares = rows.loc[rows["metric"].isin(["dead", "saturated"]), ["case", "metric", "step", "value"]]
    shares = shares.merge(reported[["run", "spec", *KEYS, "seed"]], left_on="case", right_on="run")
    units = [
        {**dict(zip(columns, key, strict=True)), "n": len(part), **_median(part["value"])}
        for columns in [[*KEYS, "metric", "step"]]
        for key, part in groups(shares, columns)
    ]
    if units:
        yield "units", pd.DataFrame(units)
    relu = shares[(shares["spec"] == "relu") & (shares["init"] == "gain") & (shares["metric"] == "dead")]
    asked = {}
    for depth, part in groups(relu, "depth"):
        by_step = part.pivot_table(index="seed", columns="step", values="value").dropna()
        if by_step.shape[1] > 1:
            asked[(depth,)] = stats.paired(by_step.iloc[:, -1], by_step.iloc[:, 0], margin=DEAD, test="median")
    question = Question.of("dying", ("depth",), asked, label="ReLU at depth {depth}", reference="no change")
    if not question:
        return
    yield question.table()
    last = shares[(shares["step"] == shares["step"].max()) & (shares["metric"] == "dead") & (shares["init"] == "gain")]
    last = last[last["depth"] == last["depth"].max()]
    most = last.groupby("activation")["value"].median().sort_values(ascending=False)
    dead = [f"{name} {value:.1%}" for name, value in most.items() if value > DEAD]
    yield question.verdict(
        DYING, above, unit="share of units",
        why=question.listed(above, {True: "more units are dead at the end than at the start with",
                                    False: "no more are with", None: "undecided with"})
        + f". Dead at the end, {at(int(last['depth'].max()))}, in the median run: {enumerated(dead) or 'none above 1 %'}",
        method=f"dead on all of {WATCHED} training examples, end minus start, same network; median over runs, order "
        f"statistics, margin {DEAD:g}",
    )  # fmt: skip


def _median(values: pd.Series[float]) -> dict[str, float]:
    estimate = stats.median(values.to_numpy())
    return {"value": estimate.value, "low_95": estimate.low, "high_95": estimate.high}


def _steps(cells: pd.DataFrame) -> Iterator[Answer]:
    for depth, own in groups(cells, "depth"):
        arrived = own[own["median_steps"] < math.inf].sort_values("median_steps", kind="stable")
        if arrived.empty:
            yield f"{at(depth).capitalize()} no activation reaches the target in half of its runs."
            continue
        steps = [f"{row.median_steps:.0f} steps with {row.activation}" for row in records(arrived)]
        never = enumerated((row.activation for row in records(own) if row.reached == 0), 30)
        yield (
            f"{at(depth).capitalize()} the median run reaches the target after "
            + " to ".join(dict.fromkeys((steps[0], steps[-1])))
            + (f"; no run does with {never}." if never else ".")
        )


# -- figures -----------------------------------------------------------------------------------------------------------


@drawing.figure(
    "answers", "Which activations end as well as the best, and which do not",
    lambda answers: "Test accuracy behind the activation that other runs pick: mean of paired differences over "
    f"{answers['n'].min()} runs, intervals that hold at once. Grey: the margin within which nothing matters; the axis "
    "is linear inside it and logarithmic outside.",
)  # fmt: skip
def draw_answers(answers: pd.DataFrame) -> Any:
    """How far behind the best each activation ends, and what may be said of it."""
    axes = {"xscale": "symlog", "xlabel": "test accuracy behind the pick"}
    return drawing.panels(answers, "depth", drawing.forest, at="activation", margin=MARGIN, by="answer", axes=axes)


@drawing.figure(
    "ladder", "How many steps each activation takes to the target, by depth",
    lambda tuned_runs: f"Steps until the mean mini-batch accuracy of {training.WINDOW} steps is "
    f"{tuned_runs['target'].iloc[0]:.0%}; every activation at its own gain and tuned rate, "
    f"{tuned_runs.groupby(KEYS).size().min()} runs each. Runs at the dotted line had not got there when the steps were "
    "spent; they are censored, not slow.",
)  # fmt: skip
def draw_ladder(tuned_runs: pd.DataFrame) -> Any:
    """Steps to the target, a row an activation."""
    runs = tuned_runs[tuned_runs["init"] == "gain"]
    return drawing.panels(runs, "depth", drawing.ladder, at="activation") if len(runs) else None


@drawing.figure(
    "units", "Units that no example moves, from the first step to the last",
    lambda units: f"{at(units['depth'].max()).capitalize()}, at the tuned learning rate; median of {units['n'].min()} "
    f"runs with 95 % intervals; activations of which more than {DEAD:.0%} of the units are lost, seven at most. Dead: "
    f"slope exactly 0 on all of {WATCHED} training examples. Saturated: root-mean-square slope below a tenth of what "
    "it is at unit variance.",
)  # fmt: skip
def draw_units(units: pd.DataFrame) -> Any:
    """Dead and saturated units through training, at the greatest depth."""
    deep = units[(units["init"] == "gain") & (units["depth"] == units["depth"].max())]
    most = deep.groupby("activation")["value"].max().sort_values(ascending=False)
    deep = deep[deep["activation"].isin(most[most > DEAD].index[:7])]
    axes = {"xlabel": "step", "ylabel": "share of hidden units"}
    return (
        drawing.panels(deep, "metric", drawing.estimates, at="step", by="activation", axes=axes) if len(deep) else None
    )


PART = Part(
    "training",
    claims=(STABLE, SAME, DYING),
    sizes=SIZES,
    grids=grids,
    run=run,
    analyse=analyse,
    figures=(draw_answers, draw_ladder, draw_units),
    second=tuning.further_rates(*KEYS),
    preflight=lambda case: case.but(steps=1, seed=0),
    method="""**Training.** Every activation starts at its own exact forward gain, E[phi(z)²]^(-1/2) (the first layer,
which sees standardized inputs, at gain 1), and is trained with every learning rate of the grid. Runs that are not
reported choose each rate, and the best activation of a depth, by their validation examples; a rate that ends its grid
extends it by one. Every other activation is compared with the best seed by seed. Steps to the target: the first step at
which the mean mini-batch accuracy of 20 steps reaches it; a run that never does is censored. Activations that are one
function, such as CELU and ELU at their defaults, are found numerically and count once, as `celu = elu`.""",
)
