"""The study's networks: how they are drawn and trained, and how each finds its learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import pandas as pd
from torch import nn

from depthgauge import data, models, replicas, stats, theory, training
from depthgauge.frames import groups
from depthgauge.initialization import at_gain
from depthgauge.models.activations import handed, once, phi
from depthgauge.questions import spelled
from depthgauge.study import Case, Context, Value

# Dataset, steps, seeds and learning rates of a size.
QUICK = ("digits", 150, 8, (0.003, 0.01, 0.03, 0.1))
STANDARD = ("mnist5k", 250, 8, (0.001, 0.003, 0.01, 0.03, 0.1))
FULL = ("mnist5k", 1500, 12, (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3))
TINY = ("digits", 20, 5, (0.03, 0.1))
SELECTION = 3  # seeds that choose a learning rate, and are not reported
FLAT = 0.02  # accuracy: where the last step to an end of the grid won less, a further one would not matter
TOGETHER = ("lr", "seed")
METHOD = "learning rates chosen by other runs; nothing is concluded where a better one may lie outside its grid"


def sgd(data: str, steps: int) -> dict[str, Value]:
    """Parameters that every trained network shares."""
    return {"data": data, "batch": 32, "momentum": 0.9, "steps": steps, "target": 0.9}


def prepared(
    cases: Sequence[Case], context: Context, *seeded: str
) -> tuple[nn.Module, data.Dataset, training.Recipe, training.Draw]:
    """The arguments of `training.outcomes`: one replica a case, at its gain, drawn by the parameters in `seeded`."""
    shared, spec = cases[0], cases[0].text("activation")
    dataset = data.load(shared.text("data")).to(context.device)
    template = models.build(
        str(shared.get("model", "mlp")), preset="small", activation=handed(spec), input_shape=dataset.input_shape,
        classes=dataset.classes, **shared.given("depth", "width"),
    )  # fmt: skip
    initialize = None if shared.get("init") == "default" else at_gain(theory.gain(phi(spec)).forward)
    optimizer = replicas.SGD([case.number("lr") for case in cases], momentum=shared.number("momentum"))
    recipe = training.Recipe(optimizer, shared.integer("steps"), shared.integer("batch"), shared.number("target"))
    return template, dataset, recipe, training.Draw([case.random_seed(*seeded) for case in cases], initialize)


def most_replicas(case: Case) -> int:
    """Replicas a chunk, bounded by memory."""
    width, depth = case.get("width"), case.get("depth")
    if not isinstance(width, int) or not isinstance(depth, int):
        return 16  # a model that has its own
    return replicas.most_members(784 * width + depth * width**2 + 10 * width)


further_rates = partial(
    training.further_rates, margin=FLAT, chunk=most_replicas, architecture=("activation", "depth", "width")
)


def runs_of(rows: pd.DataFrame, *params: str, metrics: Sequence[str] = training.METRICS) -> pd.DataFrame:
    """One row a run, each function once: case, parameters and metrics; a depth that is the model's own is 0."""
    rows = once(rows.assign(run=rows["case"]))
    table = training.table(rows, "run", "activation", "spec", *params, *TOGETHER, metrics=metrics)
    whole = [name for name in ("depth", "width", "steps", "seed") if name in table]
    return table.assign(**{name: pd.to_numeric(table[name]).fillna(0).astype(int) for name in whole})


def tuned(every: pd.DataFrame, by: Sequence[str], score: str = "validation_accuracy") -> pd.DataFrame:
    """The reported runs at the rates that the others chose; `at_edge`: a better rate may lie outside the grid."""
    best = training.tuned(training.tunable(every, by), by, score=score)
    return best.assign(at_edge=training.open_ended(best, FLAT))


def paired(
    runs: pd.DataFrame, others: pd.DataFrame, quantity: str = "test_accuracy", margin: float | None = None
) -> stats.Comparison:
    """Runs minus others, seed by seed; nothing is concluded where a better rate may lie outside either's grid."""
    a, b = (each.set_index("seed")[quantity] for each in (runs, others))
    both = a.index.intersection(b.index)
    edge = runs["at_edge"].any() or others["at_edge"].any()
    return training.unsettled(stats.paired(a[both], b[both], margin=margin, test="t"), edge)


def cells(
    runs: pd.DataFrame, by: list[str], middle: Callable[[Sequence[float]], stats.Estimate], *common: str
) -> pd.DataFrame:
    """One row a group: what its runs have in common, how many arrived, their accuracy and median steps."""
    rows = []
    for _, own in groups(runs, by):
        steps = own["steps_to_target"].where(own["reached"] > 0, math.inf).tolist()
        rows.append({
            **own.iloc[0][[*by, *common, "lr", "at_edge"]], "n": len(own),
            **{name: int(own[name].sum()) for name in ("trained", "reached", "diverged") if name in own},
            **spelled(f"{middle.__name__}_accuracy", middle(own["test_accuracy"].tolist())),
            **spelled("median_steps", stats.median(steps)),
        })  # fmt: skip
    return pd.DataFrame(rows)
