"""Growth of the gradient under batch normalization, by activation and batch size."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from depthgauge import models, replicas, stats, theory
from depthgauge.frames import by_case, groups, logs, params_of, records
from depthgauge.parts import Answer, agree, verdict_on
from depthgauge.seeding import Purpose, generator
from depthgauge.studies.activation.functions import label, make, phi
from depthgauge.study import Case, Context, Rows
from depthgauge.verdict import Figure, Status, Verdict

MARGIN = 0.1  # ln a layer
CONFIDENCE = 0.99  # of the family of all comparisons with theory


def run_normalized(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """Second moment of the gradient, layer by layer, in MLPs with batch normalization before the activation.

    One batch of random inputs of one length, all alike to the network. Weights are PyTorch's own: their size does not
    matter.
    """
    shared = cases[0]
    width, batch = shared.integer("width"), shared.integer("batch")
    template = models.build(
        "mlp", depth=shared.integer("depth"), width=width, activation=make(shared.text("activation")), norm="batch",
        input_shape=(width,), classes=width,
    )  # fmt: skip
    stack = replicas.stack(
        template, [case.random_seed("seed", "width", "depth") for case in cases], device=context.device
    )
    inputs, cotangent = (
        torch.randn(batch, width, generator=generator(shared.random_seed("width", "batch"), purpose))
        for purpose in (Purpose.INPUTS, Purpose.COTANGENT)
    )
    seen = replicas.signals(stack, inputs, cotangent, overlap=False)
    layers = np.arange(1, len(seen.backward) + 1)
    for i, case in enumerate(cases):
        yield case.rows("second_moment", seen.backward[:, i].mean(-1), layer_index=layers, direction="backward")


def analyse_normalized(rows: pd.DataFrame) -> Answer:
    """Growth a layer against theory, at every batch size."""
    params = params_of(rows, "activation", "batch").astype({"batch": int})
    gradient = logs(by_case(rows, "second_moment", "backward"))
    found = {}
    for (spec, batch), own in groups(params, ["activation", "batch"]):
        layers = gradient.reindex(own.index).to_numpy()
        # from the last layer to the second: what the first is fed has not passed an activation
        with np.errstate(invalid="ignore"):  # a gradient that died on the way: no rate
            rate = (layers[:, 1] - layers[:, -1]) / (layers.shape[1] - 2)
        predicted = math.log(theory.batch_norm_growth(phi(spec), int(batch)))
        found[spec, int(batch)] = stats.against(rate, predicted, margin=MARGIN, confidence=CONFIDENCE)
    status, family = agree(found.values())
    table = pd.DataFrame(
        {
            "activation": label(spec), "batch": batch, "growth": math.exp(member.effect.value),
            "low": math.exp(member.effect.low), "high": math.exp(member.effect.high),
            "predicted": math.exp(member.reference), "deviation_se": member.z, "answer": str(member.answer),
            "networks": member.effect.n,
        }
        for (spec, batch), member in zip(found, family, strict=True)
    )  # fmt: skip
    lines = pd.DataFrame(
        {"activation": label(spec), "batch": batch, "predicted": theory.batch_norm_growth(phi(spec), batch)}
        for spec in dict.fromkeys(params["activation"])
        for batch in (4, 5, 6, 8, 11, 16, 23, 32, 64, 128, 256)
    )
    return Answer(
        {"batch_norm": table, "batch_norm_lines": lines}, (_verdict(status, family, table),), _sentences(table)
    )


def _verdict(status: Status, family: Sequence[stats.Comparison], table: pd.DataFrame) -> Verdict:
    off = [member.effect.value - member.reference for member in family]
    worst = int(np.abs(off).argmax())
    row, member = table.iloc[worst], family[worst]
    different = [f"{r.activation} at {r.batch}" for r in records(table) if r.answer == "different"]
    return verdict_on(
        "activation/batch_norm", status,
        f"in {sum(member.inside for member in family)} of {len(family)} combinations of activation and batch size the "
        f"growth is the predicted one within {MARGIN:.0%}"
        + (f"; different: {', '.join(different)}" if different else "")
        + f"; the figure is the largest deviation, {row['activation']} at batch {row['batch']}",
        observed=off[worst], low=member.effect.low - member.reference, high=member.effect.high - member.reference,
        predicted=0.0, unit="ln a layer", n=member.effect.n,
        method=f"equivalence with theory (t over networks, margin {MARGIN:g}), Holm over {len(family)} at "
        f"{CONFIDENCE:.0%}",
    )  # fmt: skip


def _sentences(table: pd.DataFrame) -> tuple[str, ...]:
    small, large = table["batch"].min(), table["batch"].max()
    growth = table.pivot_table(index="activation", columns="batch", values="growth")
    if small == large or growth.empty:
        return ()
    if not ((growth[large] > 1).all() and (growth[small] > growth[large]).all()):
        return ()
    low, high = (growth[large].idxmin(), growth[large].idxmax())
    told = ", ".join(
        f"{growth.loc[low, batch]:.2f} ({low}) to {growth.loc[high, batch]:.2f} ({high}) at batch {batch}"
        for batch in (small, large)
    )
    sentence = (
        "Under batch normalization every layer enlarges the squared gradient, the more the smaller the batch: by "
        f"{told}."
    )
    return (sentence,)


def plot_normalized(tables: Mapping[str, pd.DataFrame]) -> Iterator[Figure]:
    """Growth a layer against batch size."""
    if "batch_norm" not in tables:
        return
    points, lines = tables["batch_norm"], tables["batch_norm_lines"]
    canvas, axis = plt.subplots(figsize=(7.2, 4.4))
    shown = list(dict.fromkeys(lines["activation"]))[:7]
    for i, name in enumerate(shown):
        line, own = lines[lines["activation"] == name], points[points["activation"] == name]
        axis.plot(line["batch"], line["predicted"] - 1, color=f"C{i}", lw=1.6)
        bars = np.stack([own["growth"] - own["low"], own["high"] - own["growth"]])
        axis.errorbar(own["batch"], own["growth"] - 1, yerr=bars, fmt="o", color=f"C{i}", label=name)
    axis.set(xscale="log", yscale="log", xlabel="batch size", ylabel="growth a layer, minus 1")
    ticks = [4, 8, 16, 32, 64, 128, 256]
    axis.set_xticks(ticks, [f"{tick}" for tick in ticks])
    axis.minorticks_off()
    axis.legend(ncols=2)
    yield Figure(
        "batch_norm",
        canvas,
        "Batch normalization makes gradients explode with depth, and the smaller the batch, the faster",
        f"Factor by which a layer of Linear, BatchNorm and activation multiplies the squared gradient on its way back, "
        f"minus 1. Lines: theory at infinite width; points: mean over {int(points['networks'].min())} networks with "
        "95 % intervals. A line ends at batch 4: at 3 the mean is infinite.",
    )
