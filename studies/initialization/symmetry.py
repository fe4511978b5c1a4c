"""Weights that are all the same: whether training ever tells the units of a layer apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from depthgauge import data, models, replicas, stats
from depthgauge.frames import groups, only, params_of
from depthgauge.initialization import draw
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import Question, agrees
from depthgauge.study import Case, Context, Grid, Rows
from depthgauge.verdict import Claim, Sentence

SYMMETRY = Claim(
    "initialization/symmetry", "weights that are all the same never come apart: a hidden layer stays one unit wide"
)

SAME = 1e-3  # spread of a layer's units, relative to their size, up to which they are called one unit
SYMMETRIC = ("zeros", "constant")
ALIKE = "all the same"
SIZES = sizes("seeds steps", quick=(6, 150), standard=(6, 150), full=(6, 150), tiny=(6, 2))


def grids(seeds: int, steps: int) -> Iterator[Grid]:
    """Both symmetric schemes, and He's weights beside them."""
    yield Grid(
        {"scheme": (*SYMMETRIC, "he")}, {"depth": 3, "width": 32, "steps": steps, "lr": 0.03}, seeds,
        together=("scheme", "seed"), chunk=64,
    )  # fmt: skip


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """Train, and measure how far the incoming weights of a layer's units are apart, relative to their size."""
    shared = cases[0]
    digits = data.load("digits").to(context.device)
    template = models.build("mlp", input_shape=(1, 8, 8), depth=shared.integer("depth"), width=shared.integer("width"))
    stack = replicas.stack(
        template, [case.random_seed("seed") for case in cases], draw, device=context.device,
        scheme=[case.text("scheme") for case in cases],
        activation=["relu"] * len(cases), batch=[digits.train.x[:1]] * len(cases),
    )  # fmt: skip
    optimizer = replicas.SGD(shared.number("lr"), momentum=0.9)
    trained = replicas.train(stack, digits.train.x, digits.train.y, optimizer, batch=32, steps=shared.integer("steps"))
    accuracy = replicas.evaluate(trained.stack, digits.test.x, digits.test.y).accuracy
    names = [name for name, _ in models.layers(template)][:-1]
    for i, case in enumerate(cases):
        yield case.rows("test_accuracy", float(accuracy[i]))
        for number, name in enumerate(names, start=1):
            weight = trained.stack.parameters[f"{name}.weight"][i].double()  # (units, inputs)
            size = float(weight.square().mean().sqrt())
            apart = float(weight.var(dim=0, correction=0).mean().sqrt())
            yield case.rows("apart", apart / size if size else 0.0, layer=name, layer_index=number)


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """Distance between the units of each run's least symmetric layer are, from weights all alike and from He's."""
    params = params_of(rows, "scheme", "steps", "width")
    params["apart"] = rows[rows["metric"] == "apart"].groupby("case")["value"].max()
    params["accuracy"] = only(rows, "test_accuracy")
    params["weights"] = np.where(params["scheme"].isin(SYMMETRIC), ALIKE, "all different")
    question = Question.of(
        "symmetry", ("weights",), family=lambda weights: weights, label="weights that are {weights}", counted="runs",
        reference="no difference",
        asked={
            (weights,): stats.against(runs["apart"].to_numpy(), 0.0, margin=SAME)
            for weights, runs in groups(params, "weights")
        },
    )  # fmt: skip
    yield question.table()
    of_scheme = params.groupby("scheme", sort=False)
    schemes = of_scheme.agg(runs=("apart", "size"), furthest_apart=("apart", "max"), accuracy=("accuracy", "mean"))
    yield "schemes", schemes.reset_index()
    furthest, accuracy = schemes["furthest_apart"], schemes["accuracy"]
    if alike := question.where(weights=ALIKE):
        yield alike.verdict(
            SYMMETRY, agrees, unit="spread of a layer's units over their size",
            why=f"after {int(params['steps'].max())} steps the units of a layer are this far apart at most, "
            f"as a share of their weights: {', '.join(f'{far:.1g} from {scheme}' for scheme, far in furthest.items())}",
            method=f"mean over runs from {' and '.join(SYMMETRIC)} of the layer furthest apart, within {SAME:g} of 0",
        )  # fmt: skip
    yield Sentence(
        f"Networks of {int(params['width'].max())} units a layer end at a test accuracy of "
        f"{', '.join(f'{end:.0%} from {scheme}' for scheme, end in accuracy.items())}; chance is 10%.",
        claims=(SYMMETRY.id,),
    )


METHOD = (
    f"**Symmetry.** A layer is one unit wide while weights into its units differ by at most {SAME:g} of their size."
)
PART = Part("symmetry", (SYMMETRY,), SIZES, grids, run, analyse, method=METHOD)
