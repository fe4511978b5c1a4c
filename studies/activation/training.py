"""Every activation at several depths, each at its own gain and tuned learning rate: accuracy, steps, lost units."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from depthgauge import data, drawing, replicas, stats, training
from depthgauge.conditions import undecided
from depthgauge.frames import groups
from depthgauge.models.activations import FEW, names, phi
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import Question, above, agrees, enumerated
from depthgauge.studies.activation import tuning
from depthgauge.study import Case, Context, Grid, Rows, Value
from depthgauge.verdict import Claim, Sentence

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
NAMED = ("relu", "tanh", "sigmoid")  # what N09 is asked of, where given; drawn by nn.Linear's default, too
KEYS = ["activation", "init", "depth"]
SIZES = sizes(
    "activations depths width dataset steps seeds rates", quick=(FEW, (3, 10), 32, *tuning.QUICK),
    standard=(names(), (3, 10, 30), 64, *tuning.STANDARD),
    full=(names(), (3, 10, 30, 60), 128, *tuning.FULL), tiny=(("relu", "tanh"), (1, 2), 8, *tuning.TINY),
)  # fmt: skip


def grids(  # noqa: PLR0917 - a size names them all
    activations: tuple[str, ...], depths: tuple[int, ...], width: int, dataset: str, steps: int, seeds: int,
    rates: tuple[float, ...],
) -> Iterator[Grid]:  # fmt: skip
    """Every activation at its gain and every depth; those that N09 names at nn.Linear's default and the greatest."""
    named = tuple(name for name in NAMED if name in activations)
    for init, specs, depth in (*(("gain", activations, depth) for depth in depths), ("default", named, depths[-1])):
        if specs:
            size: dict[str, Value] = {"model": "mlp", "init": init, "depth": depth, "width": width}
            yield Grid(
                {"activation": specs, "lr": rates}, {**tuning.sgd(dataset, steps), **size}, seeds, tuning.TOGETHER,
                tuning.most_replicas, architecture=("activation", "depth", "width"), selection=tuning.SELECTION,
            )  # fmt: skip


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """Train on real digits; seeds, weights but for their gain, and mini-batches are common to all activations."""
    made, law = tuning.prepared(cases, context, "seed", "width", "depth"), phi(cases[0].text("activation"))

    def lost(stack: replicas.Stack, fit: data.Examples) -> Mapping[str, Sequence[float]]:
        units = replicas.units(stack, fit.x[:WATCHED], law)  # None: not the layers of a multilayer perceptron
        return {} if units is None else {"dead": units.dead.tolist(), "saturated": units.saturated.tolist()}

    earlier = [round(share * cases[0].integer("steps")) for share in CHECKPOINTS]
    yield from training.outcomes(cases, *made, inspect=lost, earlier=earlier)


def _at(depth: int) -> str:
    return f"at depth {depth}" if depth else "at the model's own depth"


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """Reported runs at their tuned rates, who is as good as the best at each depth, and what became of the units."""
    every = training.tunable(tuning.runs_of(rows, "init", "depth", "width", "steps", "target"), KEYS)
    if every.empty:
        return
    reported = tuning.tuned(every, KEYS)
    reported = reported.assign(trained=(reported["test_accuracy"] >= TRAINED) & (reported["diverged"] == 0))
    yield from _same(reported[reported["init"] == "gain"], _picked(every, reported))
    yield "training", tuning.cells(reported, KEYS, stats.median)
    yield "tuned_runs", reported
    yield from _stable(reported[reported["depth"] == reported["depth"].max()])
    yield from _dying(rows, reported)


def _picked(every: pd.DataFrame, reported: pd.DataFrame) -> dict[int, tuple[int, str]]:
    """Depth -> (depth, the best activation there), by validation in the runs that chose the learning rates."""
    chosen = every.merge(training.choices(every, KEYS)[[*KEYS, "lr"]], on=[*KEYS, "lr"])
    choosing = chosen[(chosen["init"] == "gain") & ~chosen["seed"].isin(reported["seed"])]
    scores = choosing.groupby(["depth", "activation"], sort=False)["validation_accuracy"].mean().fillna(0.0)
    return dict(scores.groupby("depth").idxmax())


def _same(reported: pd.DataFrame, picked: Mapping[int, tuple[int, str]]) -> Iterator[Answer]:
    """Is every activation as good as the best, at every depth?"""
    asked, further = {}, {}
    for depth, runs in groups(reported, "depth"):
        lines, best = dict(groups(runs, "activation")), picked[depth][1]
        for name in (name for name in lines if best in lines and name != best):
            asked[depth, name] = tuning.paired(lines[best], lines[name], margin=MARGIN)
            ends = {"accuracy": lines[name]["test_accuracy"].mean(), "at_edge": lines[name]["at_edge"].any()}
            further[depth, name] = {"picked": best, **ends}
    label = "{activation} at depth {depth}"
    question = Question.of("answers", ("depth", "activation"), asked, label=label, reference="no difference")
    if not question:
        return
    yield question.table(further)
    counts = []
    for depth in dict.fromkeys(depth for depth, _ in asked):
        each = [*question.where(depth=depth).read(agrees).values()]
        counts.append(f"{_at(depth)} for {each.count(True)} of {len(each)}")
    yield from _ends(question, reported, picked)
    said = [*question.read(agrees).values()]
    counted = (("false", said.count(False)), ("undecided", said.count(None)))
    others = "".join(f"; {word} for {n}" for word, n in counted if n)
    yield question.verdict(
        SAME, agrees, unit="test accuracy behind the best",
        says=f"true {', '.join(counts)}{others}",
        why=f"activations end as well as the best {', '.join(counts)}"
        f"{question.listed(agrees, {False: '; different by more:'})}",
        method=f"paired t by seed against the activation that other runs find best, margin {MARGIN:g}; {tuning.METHOD}",
    )  # fmt: skip


def _ends(question: Question, reported: pd.DataFrame, picked: Mapping[int, tuple[int, str]]) -> Iterator[Sentence]:
    """Where the deepest networks end, and how many activations are established to end behind the best."""
    by_depth = {depth: question.where(depth=depth).members for depth in sorted({key[0] for key in question.members})}
    behind = {depth: [name for (_, name), c in asked.items() if c.above] for depth, asked in by_depth.items()}
    accuracy = reported.groupby(["depth", "activation"])["test_accuracy"].mean()
    deepest = max(by_depth)
    best = picked[deepest][1]
    if others := behind[deepest]:
        worst = max(others, key=lambda name: by_depth[deepest][deepest, name].effect.value)
        other = "relu" if "relu" in others else worst
        yield Sentence(
            f"{_at(deepest).capitalize()} a {best} network ends at {accuracy[deepest, best]:.0%} test accuracy, one "
            f"with {other} at {accuracy[deepest, other]:.0%}, each at its exact gain and own learning rate.",
            "answers", (SAME.id,),
        )  # fmt: skip
    told = ", ".join(f"{len(names)} {_at(depth)}" for depth, names in behind.items())
    yield Sentence(
        f"Of {len(by_depth[deepest])} other activations {told} end more than {100 * MARGIN:g} points of test accuracy "
        f"behind the best{undecided(question.read(above).values(), 'comparisons')}.", "answers", (SAME.id,),
    )  # fmt: skip


def _stable(deep: pd.DataFrame) -> Iterator[Answer]:
    """N09: do the deepest networks train, with sensible weights and activations?"""
    named = set(deep.loc[deep["spec"].isin(NAMED), "activation"]) or set(deep["activation"])
    counts = {key: (int(runs["trained"].sum()), len(runs)) for key, runs in groups(deep, ["activation", "init"])}
    edge = deep.groupby(["activation", "init"])["at_edge"].any()
    question = Question.of(
        "trained", ("activation", "init"),
        {key: training.unsettled(stats.coverage(k, n, 0.5), edge[key] and 2 * k < n) for key, (k, n) in counts.items()},
        label="{activation} at its {init}", reference="half of them", counted="runs",
        family=lambda activation, init: (init, activation in named),
    )  # fmt: skip
    yield question.table({key: {"trained": k, "at_edge": edge[key]} for key, (k, _) in counts.items()})
    gain, default, others = (
        ", ".join(f"{name} in {k} of {n}" for (name, init), (k, n) in counts.items() if (init, name in named) == which)
        for which in (("gain", True), ("default", True), ("gain", False))
    )
    if asked := question.where(init="gain", activation=tuple(named)):
        yield asked.verdict(
            STABLE, above, unit="share of runs",
            why=f"{_at(deep['depth'].max())} and its exact gain a network trained with {gain} runs"
            + (f"; at nn.Linear's default with {default}" * bool(default)) + (f". Others: {others}" * bool(others)),
            method=f"a run trained that ends at a test accuracy of {TRAINED:g} or more without divergence; share of "
            f"runs against 1/2, exact binomial; {tuning.METHOD}",
        )  # fmt: skip
    if default:
        trained, runs = (sum(counts[key][i] for key in counts if key[1] == "default") for i in (0, 1))
        yield Sentence(
            f"{_at(deep['depth'].max()).capitalize()} {trained or 'none'} of {runs} networks train from PyTorch's "
            f"default initialization ({', '.join(name for name, init in counts if init == 'default')}).",
            claims=(STABLE.id,),
        )


def _dying(rows: pd.DataFrame, reported: pd.DataFrame) -> Iterator[Answer]:
    """Shares of dead and saturated units through training; do more of ReLU's units end dead than began so?"""
    shares = rows.loc[rows["metric"].isin(["dead", "saturated"]), ["case", "metric", "step", "value"]]
    shares = shares.merge(reported[["run", "spec", *KEYS, "seed"]], left_on="case", right_on="run")
    columns = [*KEYS, "metric", "step"]
    medians = ((key, stats.median(part["value"].to_numpy())) for key, part in groups(shares, columns))
    units = [(*key, m.n, m.value, m.low, m.high) for key, m in medians]
    yield "units", pd.DataFrame(units, columns=[*columns, "n", "value", "low_95", "high_95"])
    asked = {}
    dead = shares[(shares["init"] == "gain") & (shares["metric"] == "dead")]
    for depth, part in groups(dead[dead["spec"] == "relu"], "depth"):
        by_step = part.pivot_table(index="seed", columns="step", values="value").dropna()
        asked[(depth,)] = stats.paired(by_step.iloc[:, -1], by_step.iloc[:, 0], margin=DEAD, test="median")
    question = Question.of("dying", ("depth",), asked, label="ReLU at depth {depth}", reference="no change")
    if not question:
        return
    yield question.table()
    last = dead[(dead["step"] == dead["step"].max()) & (dead["depth"] == dead["depth"].max())]
    most = last.groupby("activation")["value"].median().sort_values(ascending=False)
    lost = enumerated((f"{name} {value:.1%}" for name, value in most.items() if value > DEAD), 8)
    words = {True: "more at the end for", False: "no more for", None: "undecided for"}
    yield question.verdict(
        DYING, above, unit="share of units",
        why=f"units that are dead at the end, against those at first: {question.listed(above, words)}. Dead at the end "
        f"{_at(last['depth'].max())}, in the median run: {lost or 'none above 1 %'}",
        method=f"dead on all of {WATCHED} training examples, end minus start, same network; median over runs, order "
        f"statistics, margin {DEAD:g}",
    )  # fmt: skip
    deepest = question.members[max(question.members)]
    if "relu" in most and deepest.beyond:
        yield Sentence(
            f"{_at(last['depth'].max()).capitalize()} {most['relu']:.0%} of ReLU's units are dead after training, "
            f"{100 * abs(deepest.effect.value):.0f} points {'more' if deepest.above else 'fewer'} than before it.",
            claims=(DYING.id,),
        )


@drawing.figure(
    "answers", "Which activations end as well as the best, and which do not",
    lambda answers: "Test accuracy behind the activation that other runs pick: mean of paired differences over "
    f"{answers['n'].min()} runs, intervals that hold at once. Grey: the margin within which nothing matters; the axis "
    "is linear inside it and logarithmic outside. Inconclusive is all where a better rate may lie outside the grid.",
)  # fmt: skip
def draw_answers(answers: pd.DataFrame) -> Any:
    """Distance of each activation from the best, and what may be said of it."""
    axes = {"xscale": "symlog", "xlabel": "test accuracy behind the pick"}
    return drawing.panels(answers, "depth", drawing.forest, at="activation", margin=MARGIN, by="answer", axes=axes)


@drawing.figure(
    "ladder", "How many steps each activation takes to the target, by depth",
    lambda tuned_runs: f"Steps until the mean mini-batch accuracy of {training.WINDOW} steps is "
    f"{tuned_runs['target'].iloc[0]:.0%}, at own gain and tuned rate; {tuned_runs.groupby(KEYS).size().min()} runs "
    "each. Runs at the dotted line are censored: they had not got there when the steps were spent.",
)  # fmt: skip
def draw_ladder(tuned_runs: pd.DataFrame) -> Any:
    """Steps to the target, a row an activation."""
    return drawing.panels(tuned_runs[tuned_runs["init"] == "gain"], "depth", drawing.ladder, at="activation")


@drawing.figure(
    "units", "Units that no example moves, from the first step to the last",
    lambda units: f"{_at(units['depth'].max()).capitalize()}, at the tuned learning rate; median of {units['n'].min()} "
    f"runs, 95 % intervals; at most seven activations that lose more than {DEAD:.0%}. Dead: slope 0 on all {WATCHED} "
    "training examples. Saturated: root-mean-square slope below a tenth of that at unit variance.",
)  # fmt: skip
def draw_units(units: pd.DataFrame) -> Any:
    """Dead and saturated units through training, at the greatest depth."""
    deep = units[(units["init"] == "gain") & (units["depth"] == units["depth"].max())]
    most = deep.groupby("activation")["value"].max().sort_values(ascending=False)
    deep = deep[deep["activation"].isin(most[most > DEAD].index[:7])]
    axes = {"xlabel": "step", "ylabel": "share of hidden units"}
    return drawing.panels(deep, "metric", drawing.estimates, at="step", by="activation", joined=True, axes=axes)


METHOD = """**Training.** Weights have the activation's exact forward gain, E[phi(z)²]^(-1/2); those of the first layer,
which sees inputs, gain 1. Runs that are not reported choose each learning rate, and the best activation of a depth, by
validation; a rate that ends its grid extends it by one. Activations that are one function count once, `celu = elu`."""
PART = Part(
    "training", (STABLE, SAME, DYING), SIZES, grids, run, analyse, (draw_answers, draw_ladder, draw_units), METHOD,
    tuning.further_rates(*KEYS), lambda case: case.but(steps=1, seed=0),
)  # fmt: skip
