"""Depth against width at equal size: is the deeper network easier to train, and does it end better?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from depthgauge import data, models, replicas, stats, theory, training
from depthgauge.frames import groups, records
from depthgauge.parts import Answer, verdict_on
from depthgauge.studies.activation.extremes import highest, lowest
from depthgauge.studies.activation.functions import label, make, phi
from depthgauge.studies.activation.trained import at_gain, tuned_runs
from depthgauge.study import Case, Context, Rows
from depthgauge.verdict import Figure, Status, Verdict

MARGIN = 0.02  # test accuracy


def width_for(parameters: int, depth: int, inputs: int, classes: int) -> int:
    """The width at which `depth` hidden layers come closest to that many parameters, biases included."""
    # (inputs + 1) w + (depth - 1) (w^2 + w) + (w + 1) classes = parameters
    square, linear, constant = depth - 1, inputs + depth + classes, classes - parameters
    if square == 0:
        return max(1, round(-constant / linear))
    return max(1, round((-linear + math.sqrt(linear**2 - 4 * square * constant)) / (2 * square)))


def run_shape(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """SGD with momentum on real digits; replicas differ in learning rate and seed."""
    shared = cases[0]
    spec = shared.text("activation")
    dataset = data.load(shared.text("data")).to(context.device)
    template = models.build(
        "mlp", depth=shared.integer("depth"), width=shared.integer("width"), activation=make(spec),
        input_shape=dataset.input_shape, classes=dataset.classes,
    )  # fmt: skip
    optimizer = replicas.SGD([case.number("lr") for case in cases], momentum=shared.number("momentum"))
    recipe = training.Recipe(optimizer, shared.integer("steps"), shared.integer("batch"), shared.number("target"))
    draw = training.Draw([case.random_seed("seed") for case in cases], at_gain(theory.gain(phi(spec)).forward))
    yield from training.outcomes(cases, template, dataset, recipe, draw)
    size = sum(parameter.numel() for parameter in template.parameters())
    for case in cases:
        yield case.rows("size", size)


def analyse_shape(rows: pd.DataFrame) -> Answer:
    """Every depth against one hidden layer, seed by seed: steps to the target, and accuracy at the end."""
    keys = ["activation", "depth"]
    runs = training.table(rows, *keys, "lr", "seed", "width", "steps", "target", metrics=(*training.METRICS, "size"))
    runs = runs.assign(activation=runs["activation"].map(label)).astype({"depth": int, "seed": int, "width": int})
    tuned = tuned_runs(runs, keys)
    accuracy, pace, names = [], [], []
    for activation, own in groups(tuned, "activation"):
        by_depth = {int(depth): line.set_index("seed") for depth, line in groups(own, "depth")}
        shallow = by_depth.pop(min(by_depth))
        for depth, deep in by_depth.items():
            both = shallow.index.intersection(deep.index)
            a, b = deep.loc[both], shallow.loc[both]
            names.append((activation, depth))
            accuracy.append(stats.paired(a["test_accuracy"], b["test_accuracy"], margin=MARGIN, test="t"))
            # a run that never arrived has taken the whole budget: means within it, as in `stats.restricted_mean`
            pace.append(stats.paired(b["steps_to_target"], a["steps_to_target"], test="t", unit="steps"))
    if not names:
        return Answer({})
    better, sooner = stats.together(accuracy), stats.together(pace)
    table = pd.DataFrame(_cell(dict(zip(keys, key, strict=True)), own) for key, own in groups(tuned, keys))
    compared = pd.DataFrame(
        {
            "activation": activation, "depth": depth, "accuracy_gain": b.effect.value, "low": b.effect.low,
            "high": b.effect.high, "accuracy": _word(b, "better", "worse"), "steps_saved": s.effect.value,
            "pace": _word(s, "easier", "harder"), "seeds": b.effect.n,
        }
        for (activation, depth), b, s in zip(names, better, sooner, strict=True)
    )  # fmt: skip
    return Answer(
        {"shape": table, "depth_against_width": compared}, (_verdict(compared),), tuple(_sentences(compared, table))
    )


def _word(comparison: stats.Comparison, above: str, below: str) -> str:
    if comparison.inside:
        return "same"
    return above if comparison.above else below if comparison.below else "open"


def _cell(key: Mapping[str, object], own: pd.DataFrame) -> dict[str, object]:
    accuracy = stats.mean(own["test_accuracy"].to_numpy())
    steps = stats.median(own["steps_to_target"].where(own["reached"] > 0, math.inf).to_numpy(), unit="steps")
    return {
        **key, "width": int(own["width"].iloc[0]), "parameters": int(own["size"].iloc[0]), "seeds": len(own),
        "accuracy": accuracy.value, "low": accuracy.low, "high": accuracy.high, "reached": int(own["reached"].sum()),
        "median_steps": steps.value, "steps_low": steps.low, "steps_high": steps.high, "lr": own["lr"].median(),
        "budget": int(own["steps"].max()),
    }  # fmt: skip


def _verdict(compared: pd.DataFrame) -> Verdict:
    """N15 says two things: easier, and better. It holds where both do, and fails where one is refuted."""
    conditions: list[bool | None] = []
    for row in records(compared):
        if row.accuracy in {"worse", "same"} or row.pace == "harder":
            conditions.append(False)
        else:
            conditions.append(True if (row.accuracy, row.pace) == ("better", "easier") else None)
    told = "; ".join(
        f"{activation}: " + ", ".join(f"depth {row.depth} {_pair(row.accuracy, row.pace)}" for row in records(own))
        for activation, own in groups(compared, "activation")
    )
    worst = lowest(compared, "accuracy_gain")
    return verdict_on(
        "N15",
        Status(stats.combine(conditions)),
        f"against one hidden layer of as many parameters: {told}",
        observed=float(worst["accuracy_gain"]), low=float(worst["low"]), high=float(worst["high"]),
        unit="test accuracy gained over one hidden layer", n=int(worst["seeds"]),
        method=f"paired t of accuracy (margin {MARGIN:g}) and of steps to the target within the budget, Holm over "
        f"{len(compared)} each; own gain, tuned rate; refuted where no better or harder; the figure is "
        f"the lowest, {worst['activation']} at depth {worst['depth']}",
    )  # fmt: skip


def _pair(accuracy: str, pace: str) -> str:
    ends = {"same": "ends the same", "open": "ends undecided"}.get(accuracy, f"ends {accuracy}")
    return f"is {pace} and {ends}" if pace in {"easier", "harder"} else f"is undecided in pace and {ends}"


def _sentences(compared: pd.DataFrame, table: pd.DataFrame) -> Iterator[str]:
    if compared.empty:
        return
    best = highest(table, "accuracy")
    counts = compared["accuracy"].value_counts()
    yield (
        f"At {int(table['parameters'].median()):,} parameters, {counts.get('better', 0)} of {len(compared)} deeper "
        f"networks end better than one hidden layer, {counts.get('same', 0)} the same within {MARGIN:.0%}, "
        f"{counts.get('worse', 0)} worse; the highest mean accuracy is that of {best['activation']} at depth "
        f"{best['depth']} (width {best['width']}), {best['accuracy']:.1%}."
    )


def plot_shape(tables: Mapping[str, pd.DataFrame]) -> Iterator[Figure]:
    """Accuracy and steps to the target against depth at equal size."""
    if "shape" not in tables:
        return
    table = tables["shape"]
    canvas, axes = plt.subplots(1, 2, figsize=(9.4, 4.1))
    depths = sorted(table["depth"].unique())
    budget = float(table["budget"].max())
    names = list(dict.fromkeys(table["activation"]))
    for i, name in enumerate(names):
        line = table[table["activation"] == name].sort_values("depth")
        x = line["depth"] * 1.04 ** (i - (len(names) - 1) / 2)
        bars = np.abs(np.stack([line["accuracy"] - line["low"], line["high"] - line["accuracy"]]))
        axes[0].errorbar(x, line["accuracy"], yerr=bars, marker="o", color=f"C{i}", label=name)
        there = np.isfinite(line["median_steps"])
        axes[1].plot(x[there], line["median_steps"][there], marker="o", color=f"C{i}", label=name)
        never = np.full(int((~there).sum()), budget)
        axes[1].plot(x[~there], never, "^", ms=8, mfc="white", mec=f"C{i}", mew=1.4)
    for axis in axes:
        axis.set(xscale="log", xlabel="hidden layers (width falls to keep the size)")
        axis.set_xticks(depths, [f"{depth}" for depth in depths])
        axis.minorticks_off()
    axes[0].set(ylabel="test accuracy", title="ends better?")
    axes[1].set(ylabel="median steps to target", title="easier to train?", ylim=(0, budget * 1.08))
    axes[1].axhline(budget, color="0.6", lw=0.8, ls=":")
    axes[0].legend(loc="lower left")
    seeds = int(table["seeds"].min())
    yield Figure(
        "shape",
        canvas,
        "Depth against width, with the same number of parameters",
        f"Networks of about {int(table['parameters'].median()):,} parameters; own gain and tuned learning rate; mean "
        f"over {seeds} seeds with 95 % intervals, and medians. Hollow: fewer than half of the seeds had reached the "
        "target when the steps (dotted) were spent.",
    )
