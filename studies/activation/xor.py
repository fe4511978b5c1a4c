"""XOR: what a perceptron can reach, and how often a hidden layer finds the answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from torch import Tensor

from depthgauge import data, models, replicas, stats, theory
from depthgauge.frames import groups, only, params_of, records
from depthgauge.parts import Answer, verdict_on
from depthgauge.studies.activation.extremes import highest, lowest
from depthgauge.studies.activation.functions import label, make, phi
from depthgauge.studies.activation.trained import at_gain, tuned_runs
from depthgauge.study import Case, Context, Rows
from depthgauge.verdict import Figure, Status, Verdict

LINEAR_BEST = 0.75  # of the four corners a line gets three right at the best
CLEAR = 0.01  # by which a score must be on its side to be right: nearer the line its rounding decides


def run_xor(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """The four corners of a square; width 0 is a perceptron trained by its own rule, else one hidden layer."""
    shared = cases[0]
    width = shared.integer("width")
    corners = data.load("xor", n=4, n_test=4, noise=0.0).to(context.device).train
    seeds = [case.random_seed("seed") for case in cases]
    optimizer = replicas.SGD([case.number("lr") for case in cases], momentum=shared.number("momentum"))
    loss: Callable[[Tensor, Tensor], Tensor] | str = perceptron_loss
    if width == 0:
        template, gain, targets = models.build("perceptron"), 1.0, corners.y[:, None] * 2.0 - 1.0
    else:
        spec = shared.text("activation")
        template = models.build("mlp", depth=1, width=width, activation=make(spec), input_shape=(2,), classes=2)
        gain, targets, loss = theory.gain(phi(spec)).forward, corners.y, "cross_entropy"
    stack = replicas.stack(template, seeds, at_gain(gain), device=context.device)
    run = replicas.train(
        stack, corners.x, targets, optimizer, batch=4, steps=shared.integer("steps"), loss=loss,
    )  # fmt: skip
    for i, case in enumerate(cases):
        with torch.no_grad():
            outputs = run.stack.module(i)(corners.x.cpu())
        score = outputs[:, 0] if width == 0 else outputs[:, 1] - outputs[:, 0]
        right = score * (2.0 * corners.y.cpu() - 1.0) > CLEAR
        yield case.rows("accuracy", float(right.double().mean()))


def perceptron_loss(scores: Tensor, signs: Tensor) -> Tensor:
    """max(0, -y score), whose gradient is Rosenblatt's rule (1958)."""
    return torch.relu(-signs * scores).mean()


def analyse_xor(rows: pd.DataFrame) -> Answer:
    """How often each network ends with all four corners right, over all learning rates and at the best."""
    keys = ["activation", "width"]
    params = params_of(rows, *keys, "lr", "seed")
    params["accuracy"] = only(rows, "accuracy")
    params = params.assign(activation=params["activation"].map(label)).astype({"width": int, "seed": int})
    params["solved"] = (params["accuracy"] == 1.0).astype(float)
    found = []
    for key, tuned in groups(tuned_runs(params, keys, score="solved"), keys):
        own = params[(params[keys] == list(key)).all(axis=1)]
        rate = stats.rate(int(tuned["solved"].sum()), len(tuned))
        found.append(
            {
                **dict(zip(keys, key, strict=True)), "solved": int(tuned["solved"].sum()), "seeds": rate.n,
                "rate": rate.value, "low": rate.low, "high": rate.high, "highest": own["accuracy"].max(),
            }
        )  # fmt: skip
    if not found:
        return Answer({})
    table = pd.DataFrame(found)
    return Answer({"xor": table}, (_verdict(table),), tuple(_sentences(table)))


def _verdict(table: pd.DataFrame) -> Verdict:
    """Holds where nothing linear solves it, and every nonlinear hidden layer mostly does."""
    linear = table[(table["width"] == 0) | (table["activation"] == "identity")]
    hidden = table[(table["width"] > 0) & (table["activation"] != "identity")]
    cannot = bool((linear["highest"] <= LINEAR_BEST).all()) if len(linear) else None
    can = [True if row.low > 0.5 else False if row.high < 0.5 else None for row in records(hidden)]
    by_width = "; ".join(
        f"{width} units: " + ", ".join(f"{row.activation} {row.solved}/{row.seeds}" for row in records(own))
        for width, own in groups(hidden, "width")
    )
    if not can:
        return verdict_on("N16", Status.INCONCLUSIVE, "no hidden layer was tried")
    first = hidden.sort_values("width").iloc[0]
    return verdict_on(
        "N16",
        Status.FAILS if cannot is False else Status(stats.combine(can)) if cannot else Status.INCONCLUSIVE,
        f"what is linear got at most {linear['highest'].max():.0%} of the four corners right, whatever its rate and "
        f"seed; with a hidden layer all four are learned with {by_width}",
        observed=float(first["rate"]), low=float(first["low"]), high=float(first["high"]),
        unit="share of seeds that learn XOR", n=int(first["seeds"]),
        method=f"accuracy of 1 on the four corners at the learning rate that does best for the other seeds; a hidden "
        f"layer can where Wilson's interval lies above 1/2; the figure is that of {first['width']} "
        f"{first['activation']} units",
    )  # fmt: skip


def _sentences(table: pd.DataFrame) -> Iterator[str]:
    hidden = table[(table["width"] > 0) & (table["activation"] != "identity")]
    if hidden.empty:
        return
    narrow, wide = (hidden[hidden["width"] == width] for width in (hidden["width"].min(), hidden["width"].max()))
    low, high = lowest(narrow, "rate"), highest(narrow, "rate")
    least = wide["rate"].min()
    yield (
        f"XOR needs a hidden layer, and gradient descent a wide one: with {low['width']} units, which suffice, "
        f"{low['activation']} learns it in {low['rate']:.0%} of the seeds and {high['activation']} in "
        f"{high['rate']:.0%}; with {wide['width'].max()} every activation does"
        + (f" in {least:.0%} or more." if least < 1 else ", in every seed.")
    )


def plot_xor(tables: Mapping[str, pd.DataFrame]) -> Iterator[Figure]:
    """Share of seeds that learn XOR, by width and activation."""
    if "xor" not in tables:
        return
    table = tables["xor"]
    hidden = table[table["width"] > 0]
    widths = sorted(hidden["width"].unique())
    canvas, axis = plt.subplots(figsize=(7.2, 4.0))
    names = list(dict.fromkeys(hidden["activation"]))
    for i, name in enumerate(names):
        line = hidden[hidden["activation"] == name].sort_values("width")
        x = np.array([widths.index(width) for width in line["width"]]) + 0.09 * (i - (len(names) - 1) / 2)
        bars = np.abs(np.stack([line["rate"] - line["low"], line["high"] - line["rate"]]))
        axis.errorbar(x, line["rate"], yerr=bars, marker="o", color=f"C{i}", label=name)
    axis.set(xlabel="hidden units", ylabel="share of seeds that learn XOR", ylim=(-0.04, 1.04))
    axis.set_xticks(range(len(widths)), [f"{width}" for width in widths])
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    yield Figure(
        "xor",
        canvas,
        "Two hidden units can represent XOR; gradient descent finds it reliably only with more",
        f"Share of {int(hidden['seeds'].min())} seeds that learn all four corners, with Wilson's 95 % intervals; "
        "learning rate tuned for each. Identity: no activation.",
    )
