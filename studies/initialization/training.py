"""Networks trained on real digits from every scheme: how far they come, how fast, and whether at all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from depthgauge import data, drawing, replicas, stats, training
from depthgauge.frames import groups
from depthgauge.initialization import draw
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import Question, spelled
from depthgauge.studies.initialization import conditions, contrasts, outcomes, reached
from depthgauge.studies.initialization.conditions import SHAPE
from depthgauge.studies.initialization.outcomes import EACH, MARGIN, OUTSIDE, REFERENCE, TRAINED
from depthgauge.study import Case, Context, Grid, Rows
from depthgauge.verdict import Claim

STABLE = Claim("N09", "sensible initial weights and activations keep training stable")
SAME = Claim("N10", "initialization generally does not affect the final result, as long as it is a normal one")
CROSSOVER = Claim(
    "initialization/crossover",
    "a plain convolutional net of 22 layers trains from Xavier's and from He's weights, one of 30 layers from He's "
    "alone",
)
FIXUP = Claim(
    "initialization/fixup", "Fixup's weights train a residual network without normalization as well as batch norm does"
)

BATCH = 32
EXAMPLES = 64  # digits that LSUV looks at
TARGET = 0.9  # moving mean of mini-batch accuracy
PANELS = 6
CHOSEN = f"Shown are the {PANELS} architectures in which schemes differ most; the table has all."
SIZES = sizes(
    "networks", quick=(conditions.QUICK,), standard=(conditions.STANDARD,), full=(conditions.FULL,),
    tiny=(conditions.TINY,),
)  # fmt: skip


def grids(networks: tuple[Grid, ...]) -> Iterator[Grid]:
    """Every scheme of every architecture, at every learning rate."""
    yield from networks


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """SGD with momentum on the digits; replicas differ in scheme, learning rate and seed."""
    shared = cases[0]
    digits = data.load("digits").to(context.device)
    template = reached.model(shared, digits.train.x, SHAPE)
    reach = reached.reached(cases, template)
    yield from reach
    if any(row.value == 0 for row in reach):  # every scheme and seed would be one network
        return
    columns: dict[str, Sequence[Any]] = {
        "scheme": [case.text("scheme") for case in cases],
        "activation": ["gelu" if shared.text("model") == "transformer" else "relu"] * len(cases),
        "batch": [digits.train.x[:EXAMPLES].cpu()] * len(cases),
    }
    sgd = replicas.SGD([case.number("lr") for case in cases], momentum=0.9)
    # Tiny convolutions are bound by their dispatch: as grouped ones, many together, they train twice as fast.
    grouped = shared.get("norm") == "none" and shared["model"] in ("plain_cnn", "resnet18")
    recipe = training.Recipe(sgd, shared.integer("steps"), BATCH, TARGET, strategy="vmap" if grouped else None)
    draws = training.Draw([case.random_seed("seed") for case in cases], draw, columns)  # common to all: paired
    yield from training.outcomes(cases, template, digits, recipe, draws)


def smallest(case: Case) -> Case:
    """One step from He's weights, without what tells sweeps apart; a signal is one pass as it is."""
    return case.but(scheme=REFERENCE, lr=0.01, steps=1, seed=0, sweep="")


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """Every scheme at its own learning rate, by architecture and depth; what follows for the claims."""
    runs = training.table(reached.drawn(rows), "model", *SHAPE, "scheme", "lr", "seed", "steps", "sweep")
    runs = runs.assign(condition=[conditions.name_of(run) for run in runs.to_dict("records")])
    runs = training.tunable(runs.drop_duplicates([*EACH, "lr", "seed"]), EACH)
    if runs.empty:
        yield from reached.answers(rows, PART.claims)
        return
    best = training.tuned(runs, by=EACH)
    best["open_ended"] = training.open_ended(best, MARGIN)
    cells = dict(groups(best, EACH))
    trained = Question.of(
        "outcomes", EACH, {key: outcomes.share(ends) for key, ends in cells.items()}, label="{scheme} in a {condition}",
        family=lambda condition, scheme: (condition, scheme), reference="half of them", counted="runs",
    )  # fmt: skip
    yield trained.table({key: _outcome(ends, runs) for key, ends in cells.items()})
    yield "steps", best[[*EACH, "seed", "lr", "steps_to_target", "reached", "steps", "test_accuracy"]]
    rates = runs.groupby([*EACH, "lr"], sort=False)["test_accuracy"]
    yield "rates", rates.agg(["mean", "min", "max", "size"]).reset_index()
    yield from outcomes.same(best, SAME)
    yield from outcomes.stable(best, STABLE)
    yield from outcomes.crossover(best, CROSSOVER)
    yield from outcomes.without_norm(best, FIXUP)
    yield from contrasts.sentences(best, "steps_ladder", (STABLE.id, SAME.id))
    yield from reached.answers(rows, PART.claims)


def _outcome(reported: pd.DataFrame, runs: pd.DataFrame) -> Mapping[str, Any]:
    """How one scheme ended in one condition, at the rate that its selection runs chose."""
    first = reported.iloc[0]
    tried = runs[(runs[EACH] == first[EACH]).all(axis=1)]
    curve = stats.survival(reported["steps_to_target"].to_numpy(), reported["reached"].to_numpy(bool))
    return {
        **spelled("accuracy", stats.mean(reported["test_accuracy"].to_numpy())),
        "reached": int(reported["reached"].sum()),
        **spelled("steps", curve.restricted_mean(min(float(first["steps"]), curve.last))),
        "budget": int(first["steps"]), "lr": float(first["lr"]), OUTSIDE: bool(first["open_ended"]),
        "rates_within_a_factor": training.tolerance(tried, 2 * MARGIN).factor,
        "diverged_at_any_rate": float(tried["diverged"].mean()),
    }  # fmt: skip


def _telling(table: pd.DataFrame, outcomes: pd.DataFrame) -> pd.DataFrame:
    """The rows of those conditions whose schemes differ most in accuracy."""
    accuracy = outcomes.groupby("condition", sort=False)["accuracy"]
    return table[table["condition"].isin((accuracy.max() - accuracy.min()).nlargest(PANELS).index)]


@drawing.figure(
    "steps_ladder", "How long each scheme takes to learn, and which runs never got there",
    f"A point a run, at the learning rate that selection runs chose: first step after which the last {training.WINDOW} "
    f"mini-batches have a mean accuracy of {TARGET:.0%}. Open triangles at the budget: never reached, with their "
    f"number. An empty row was not tried. {CHOSEN}",
)  # fmt: skip
def plot_ladder(steps: pd.DataFrame, outcomes: pd.DataFrame) -> Any:
    """Steps to the target, a row a scheme, a panel a condition."""
    return drawing.panels(_telling(steps, outcomes), "condition", drawing.ladder, at="scheme")


@drawing.figure(
    "learning_rates", "How much each scheme forgives a learning rate that misses its best",
    lambda rates, _outcomes: f"Mean test accuracy over {rates['size'].min()} seeds or more at every learning rate that "
    f"was tried; chance is 0.1. {CHOSEN}",
)  # fmt: skip
def plot_rates(rates: pd.DataFrame, outcomes: pd.DataFrame) -> Any:
    """Test accuracy over the learning rate, a line a scheme, a panel a condition."""
    axes = {"xscale": "log", "ylim": (0, 1.02), "ylabel": "test accuracy"}
    shown = _telling(rates, outcomes)
    return drawing.panels(shown, "condition", drawing.lines, x="lr", y="mean", by="scheme", axes=axes)


METHOD = f"""
**Training.** SGD with momentum 0.9, batch {BATCH}, on the 1,442 training digits less a fifth for validation.
{conditions.SELECTION} further seeds choose each scheme's learning rate by validation accuracy. Where they choose the
end of the grid, and gain more than {MARGIN:g} by its last step, one rate is added; where that is still so, nothing is
concluded from a difference. Trained: test accuracy of at least {TRAINED:g}.

**N10.** The margin is one percentage point. "Normal" leaves out zeros, constants and N(0, 0.01²).
"""
SECOND = training.further_rates(
    "sweep", "scheme", margin=MARGIN, together=("scheme", "lr", "seed"), chunk=conditions.most_replicas,
    architecture=conditions.SHAPE,
)  # fmt: skip
PART = Part(
    "training", (STABLE, SAME, CROSSOVER, FIXUP), SIZES, grids, run, analyse, (plot_ladder, plot_rates), METHOD,
    second=SECOND, preflight=smallest,
)  # fmt: skip
