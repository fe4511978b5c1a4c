"""Weights that are all the same: whether training ever tells the units of a layer apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd

from depthgauge import data, models, replicas, stats
from depthgauge.frames import groups, params_of
from depthgauge.parts import Answer, verdict_on
from depthgauge.studies.initialization.schemes import draw
from depthgauge.study import Case, Context, Rows
from depthgauge.verdict import Status

SAME = 1e-3  # spread of a layer's units, relative to their size, up to which they are called one unit
SYMMETRIC = ("zeros", "constant")


def run_symmetry(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
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
    run = replicas.train(stack, digits.train.x, digits.train.y, optimizer, batch=32, steps=shared.integer("steps"))
    accuracy = replicas.evaluate(run.stack, digits.test.x, digits.test.y).accuracy
    names = [name for name, _ in models.layers(template)][:-1]
    for i, case in enumerate(cases):
        yield case.rows("test_accuracy", float(accuracy[i]))
        for number, name in enumerate(names, start=1):
            weight = run.stack.parameters[f"{name}.weight"][i].double()  # (units, inputs)
            size = float(weight.square().mean().sqrt())
            apart = float(weight.var(dim=0, correction=0).mean().sqrt())
            yield case.rows("apart", apart / size if size else 0.0, layer=name, layer_index=number)


def analyse_symmetry(rows: pd.DataFrame) -> Answer:
    """The layer whose units are furthest apart, by seed."""
    params = params_of(rows, "scheme", "seed", "steps", "width", "depth")
    params["apart"] = rows[rows["metric"] == "apart"].groupby("case")["value"].max()
    params["accuracy"] = rows[rows["metric"] == "test_accuracy"].set_index("case")["value"]
    found, answers = [], []
    for scheme, own in groups(params, "scheme"):
        accuracy = stats.mean(own["accuracy"].to_numpy())
        found.append(
            {
                "scheme": scheme, "n": len(own), "furthest_apart": own["apart"].max(),
                "least_apart": own["apart"].min(),
                "accuracy": accuracy.value, "low": accuracy.low, "high": accuracy.high,
            }
        )  # fmt: skip
        if scheme in SYMMETRIC:
            enough = len(own) >= stats.seeds_needed()
            answers.append(bool((own["apart"] <= SAME).all()) if enough else None)
    table = pd.DataFrame(found)
    symmetric = params[params["scheme"].isin(SYMMETRIC)]
    told = ", ".join(f"{row['scheme']} {row['furthest_apart']:.1g}" for _, row in table.iterrows())
    same = int((symmetric["apart"] <= SAME).sum())
    share = stats.rate(same, len(symmetric))
    verdict = verdict_on(
        "initialization/symmetry", Status(stats.combine(answers)),
        f"after {int(params['steps'].max())} steps the units of a layer are at most this far apart, relative to their "
        f"weights: {told}",
        observed=share.value, low=share.low, high=share.high, predicted=1.0, unit="share of runs still symmetric",
        n=share.n,
        method=f"units of every hidden layer within {SAME:g} of each other, in every run; Wilson interval of the share",
    )  # fmt: skip
    best = table.set_index("scheme")["accuracy"]
    sentence = ""
    if {"constant", "zeros"} <= set(best.index):
        sentence = (
            f"From constant weights a network of {int(params['width'].max())} units a layer ends at "
            f"{best['constant']:.0%} of the digits, from zeros at {best['zeros']:.0%} (chance is 10 %), from "
            f"He's at {best['he']:.0%}."
        )
    return Answer({"symmetry": table}, (verdict,), (sentence,) if sentence else ())
