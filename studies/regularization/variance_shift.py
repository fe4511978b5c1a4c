"""Dropout in front of batch normalization: how the variance shifts between training and evaluation, and its price."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from depthgauge import data, drawing, stats, theory, training
from depthgauge.frames import groups
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import Question, above, agrees, not_above, spelled
from depthgauge.studies.regularization import masked, points
from depthgauge.study import Case, Context, Grid, Rows
from depthgauge.verdict import Claim, Sentence

COMBINED = Claim("N25", "batch normalization does not change the final accuracy, and need not be combined with dropout")
SHIFTED = Claim(
    "regularization/variance_shift", "batch normalization behind dropout meets, in evaluation, the share v / (v + p / "
    "(1 - p) times the sum of squared weights and inputs) of its variance v with dropout",
)  # fmt: skip
MARGIN = 0.01  # of test accuracy: closer ones are the same
WITHIN = 1.1  # variances within this factor of the predicted ones are those
KEYS = ["network", "p"]
ALONE = "batch norm"
NORMED = "norm", "act"
LAYERS: dict[str, tuple[str, ...]] = {
    "plain": ("act",), "dropout": ("act", "drop"), ALONE: NORMED, "dropout after norm": (*NORMED, "drop"),
    "dropout before norm": ("drop", *NORMED), "dropout after the last": NORMED,
}  # fmt: skip
DROPPED_BEFORE = ("dropout after norm", "dropout before norm")  # dropout stands in front of a normalization
OUTCOMES = ("validation_accuracy", "test_accuracy", "recomputed_accuracy")
PASSES = 8  # over all examples, with fresh masks, of which a variance with dropout is the mean
SIZES = sizes(
    "networks shares lrs depth width examples steps seeds", quick=((), (), (), 0, 0, 0, 0, 0),
    standard=(tuple(LAYERS), (0.2, 0.5), (0.003, 0.01, 0.03, 0.1, 0.3), 3, 64, 400, 400, 24),
    full=(tuple(LAYERS), (0.1, 0.2, 0.5), (0.001, 0.003, 0.01, 0.03, 0.1, 0.3), 3, 64, 1000, 800, 32),
    tiny=(tuple(LAYERS), (0.5,), (0.01,), 2, 4, 20, 3, 5),
)  # fmt: skip


def grids(
    *, networks: tuple[str, ...], shares: tuple[float, ...], lrs: tuple[float, ...], depth: int, width: int,
    examples: int, steps: int, seeds: int,
) -> Iterator[Grid]:  # fmt: skip
    """Every network at every rate, and at every share dropped where it drops; at quick there are none."""
    fixed = {"depth": depth, "width": width, "examples": examples, "steps": steps}
    for network in networks:
        each = shares if "dropout" in network else (0.0,)
        yield Grid(
            {"network": (network,), "p": each, "lr": lrs}, fixed, seeds, ("p", "lr", "seed"), 60, selection=3,
            claims=(COMBINED.id, SHIFTED.id) if network in DROPPED_BEFORE else (COMBINED.id,),
        )  # fmt: skip


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """Accuracies, also with the normalization's statistics recomputed without dropout; and variances by layer."""
    shared, digits = cases[0], data.load("digits").to(context.device)
    fit, validation = data.hold_out(digits.train, training.HELD_OUT)
    fit = data.Examples(*fit[: shared.integer("examples")])
    network, depth = shared.text("network"), shared.integer("depth")
    layers = [LAYERS[network]] * depth
    if network == "dropout after the last":
        layers[-1] = (*NORMED, "drop")
    seeds = [case.random_seed("seed", "depth", "width") for case in cases]  # of all networks: paired
    p = [case.number("p") for case in cases]
    nets = masked.Nets.draw(masked.Net(tuple(layers), shared.integer("width")), seeds, p, context.device)
    recipe = masked.Recipe([case.number("lr") for case in cases], [0.0] * len(cases), shared.integer("steps"))
    masked.train(nets, fit, recipe, seeds)
    ends = {f"{name}_accuracy": masked.scores(nets(part.x[None]), part.y)[0]
            for name, part in (("validation", validation), ("test", digits.test))}  # fmt: skip
    shifts = variances(nets, fit.x[None], seeds) if network in DROPPED_BEFORE else {}
    masked.recompute(nets, fit.x[None])
    ends["recomputed_accuracy"] = masked.scores(nets(digits.test.x[None]), digits.test.y)[0]
    for i, case in enumerate(cases):
        yield from (case.rows(metric, float(values[i])) for metric, values in ends.items())
        for layer, both in shifts.items():
            for metric, values in zip(("measured", "predicted"), both, strict=True):
                yield case.rows(metric, float(values[i]), layer=f"layer {layer + 1}", layer_index=layer + 1)


def variances(nets: masked.Nets, x: Tensor, seeds: Sequence[int]) -> dict[int, tuple[Tensor, Tensor]]:
    """Variance in evaluation over that with dropout, geometric mean of the units (R,): measured and predicted.

    Of every normalization that stands right behind dropout, or has only weights between: layer -> both.
    """
    inside: dict[tuple[str, int], Tensor] = {}

    def keep(step: str, layer: int, entering: Tensor) -> None:
        inside[step, layer] = entering

    kept, after = list(nets.running), not nets.net.layers[0].index("norm")
    nets(x, watch=keep)
    still = dict(inside)
    with_dropout = [torch.zeros(())] * len(nets.net.layers)
    masks = masked.Masks(seeds, "variances")
    for _ in range(PASSES):
        nets(x, masks, watch=keep)
        with_dropout = [
            total + inside["norm", layer].double().var(1, correction=0) / PASSES
            for layer, total in enumerate(with_dropout)
        ]
    nets.running = kept
    found = {}
    for layer in range(1 if after else 0, len(with_dropout)):
        variance = still["norm", layer].double().var(1, correction=0)
        squares = still["drop", layer - 1 if after else layer].double().square().mean(1)
        if after:
            squares = torch.einsum("ri,rio->ro", squares, nets.weights[layer].double().square())
        predicted = torch.stack([
            torch.from_numpy(np.asarray(theory.variance_shift(v.cpu(), s.cpu(), float(p))))
            for v, s, p in zip(variance, squares, nets.p, strict=True)
        ])  # fmt: skip
        found[layer] = (variance / with_dropout[layer]).log().mean(1).exp(), predicted.log().mean(1).exp()
    return found


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """Accuracies at rates chosen by other seeds, and variances at these rates."""
    runs = training.table(rows.assign(run=rows["case"]), "run", *KEYS, "lr", "seed", metrics=OUTCOMES)
    runs = training.tunable(runs.astype({"seed": int}), KEYS)
    if runs.empty:
        return
    tuned = training.tuned(runs, KEYS)
    tuned = tuned.assign(at_edge=training.open_ended(tuned, MARGIN))
    yield "norm_dropout", pd.DataFrame(_accuracies(tuned))
    yield from combined(tuned)
    yield from shifted(rows[rows["case"].isin(tuned["run"])], tuned)


def _accuracies(tuned: pd.DataFrame) -> Iterator[dict[str, Any]]:
    for (network, p), own in groups(tuned, KEYS):
        for statistics, metric in (("as trained", "test_accuracy"), ("without dropout", "recomputed_accuracy")):
            if statistics == "as trained" or "norm" in network or "last" in network:
                name = f"{network}, p = {p:g}" if p else network
                yield {"network": name, "statistics": statistics, "n": len(own), "lr": own["lr"].iloc[0],
                       **spelled("value", stats.mean(own[metric].to_numpy()))}  # fmt: skip


def combined(tuned: pd.DataFrame) -> Iterator[Answer]:
    """N25, its second half: batch normalization with dropout against batch normalization alone, and against dropout."""
    by_network = {key: own.set_index("seed") for key, own in groups(tuned, KEYS)}
    if (alone := by_network.get((ALONE, 0.0))) is None:
        return
    asked, prices = {}, {}
    for (network, p), own in by_network.items():
        if not p or network == "dropout":
            continue
        both = own.index.intersection(alone.index)
        pair = own.loc[both], alone.loc[both]
        difference = stats.paired(*(each["test_accuracy"] for each in pair), margin=MARGIN, test="t")
        asked[network, p] = training.unsettled(difference, any(each["at_edge"].any() for each in pair))
        prices[network, p] = stats.paired(own["recomputed_accuracy"], own["test_accuracy"], margin=MARGIN, test="t")
    question = Question.of("combined", KEYS, asked, label="{network}, p = {p:g}", reference="batch norm alone")
    price = Question.of("shift_price", KEYS, prices, label="{network}, p = {p:g}", reference="no price")
    if not question:
        return
    yield question.table()
    yield price.table()
    told = "; ".join(f"{question.words(key)}: {c.effect.value:+.3f}" for key, c in question.members.items())
    yield question.verdict(
        COMBINED, not_above, unit="difference of test accuracy", why=f"against batch normalization alone: {told}",
        method="the second half of the claim alone, whose first half the study stabilizers asks; holds where dropout "
        f"added to batch normalization does not raise test accuracy by more than {MARGIN:g}, at rates of their own, "
        "chosen by other seeds; paired t by seed",
    )  # fmt: skip
    key, most = max(question.members.items(), key=lambda item: item[1].effect.value)
    effect = most.effect
    yield Sentence(
        f"Beside batch normalization alone, dropout changes test accuracy by {points.spanned(effect)} where it does "
        f"best ({question.words(key)}).", figure="norm_dropout", claims=(COMBINED.id,),
    )  # fmt: skip
    key, most = max(price.members.items(), key=lambda item: item[1].effect.value)
    shown = f"; whether by more than {100 * MARGIN:g} point is open" if above(most) is None else ""
    yield Sentence(
        f"Recomputed without dropout, batch normalization's statistics change test accuracy most for the better with "
        f"{price.words(key)}, by {points.spanned(most.effect)}{shown}.", "norm_dropout", (SHIFTED.id,),
    )  # fmt: skip


def shifted(rows: pd.DataFrame, tuned: pd.DataFrame) -> Iterator[Answer]:
    """Measured over predicted shares of the variance, by layer."""
    found = rows[rows["metric"].isin(["measured", "predicted"])]
    if found.empty:
        return
    whole = found.assign(value=found["value"].fillna(np.inf))  # a pivot would leave out what is no number
    wide = whole.pivot_table(index=["case", "layer_index"], columns="metric", values="value").reset_index()
    wide = wide.merge(tuned[["run", *KEYS]], left_on="case", right_on="run").astype({"layer_index": int})
    asked, shares = {}, []
    for (network, p, layer), own in groups(wide, [*KEYS, "layer_index"]):
        ratio = (own["measured"] / own["predicted"]).to_numpy()
        asked[network, p, layer] = stats.against(ratio, 1.0, margin=WITHIN, log=True, test="t")
        shares.append({"network": network, "p": p, "layer": layer, "n": len(own), "predicted": own["predicted"].mean(),
                       **spelled("value", stats.mean(own["measured"].to_numpy()))})  # fmt: skip
    question = Question.of("variance_shift", (*KEYS, "layer"), asked, label="{network}, p = {p:g}, layer {layer}")
    yield question.table()
    yield "variance_shares", pd.DataFrame(shares)
    yield question.verdict(
        SHIFTED, agrees, unit="measured over predicted",
        why=question.listed(agrees, {True: "as predicted:", False: "not as predicted:", None: "undecided:"}, 12),
        method=f"variance in evaluation, geometric mean over units, over that with dropout, mean of {PASSES} passes "
        f"over the training examples; predicted from a layer's own inputs in evaluation; within a factor of {WITHIN:g}",
    )  # fmt: skip
    if np.isfinite([row["value"] for row in shares]).all():  # else what every layer keeps cannot be told
        yield from _left(question, shares)


def _left(question: Question, shares: Sequence[dict[str, Any]]) -> Iterator[Answer]:
    """The sentence on the share that is left: in the first normalization behind dropout, and in later ones."""
    first = min(shares, key=lambda row: (row["layer"], row["value"]))
    least = min(shares, key=lambda row: row["value"])
    start = {name: min(layer for other, _, layer in question.members if other == name) for name, *_ in question.members}
    ratios: dict[bool, list[float]] = {True: [], False: []}
    for (name, _, layer), c in question.members.items():
        ratios[layer == start[name]].append(c.effect.value)
    ends = {front: dict.fromkeys(f"{end:.2f}" for end in (min(own), max(own))) for front, own in ratios.items() if own}
    told = {front: " to ".join(each) for front, each in ends.items()}
    later = f", in later ones {told[False]} times it" if ratios[False] else ""
    yield Sentence(
        f"Dropout of {first['p']:g} leaves batch normalization {first['value']:.0%} of its variance in evaluation, "
        f"where {first['predicted']:.0%} are predicted ({first['network']}, layer {first['layer']}), and at least "
        f"{least['value']:.0%} in every layer; in the first normalization behind dropout it is {told[True]} times the "
        f"predicted share{later}.", figure="variance_shares", claims=(SHIFTED.id,),
    )  # fmt: skip


@drawing.figure(
    "variance_shares", "Dropout takes variance from the batch normalization behind it",
    lambda variance_shares: "Variance in evaluation over that with dropout, by layer; mean of "
    f"{variance_shares['n'].min()} trained networks, intervals of 95 %; strokes: predicted from its own inputs.",
)  # fmt: skip
def draw_shares(variance_shares: pd.DataFrame) -> Any:
    """Shares by layer, a panel an order, a colour a rate."""
    axes = {"xlabel": "share of the variance"}
    shown = variance_shares.sort_values("layer").assign(layer=lambda own: "layer " + own["layer"].astype(str))
    return drawing.panels(shown, "network", drawing.estimates, at="layer", by="p", axes=axes, shared="both")


@drawing.figure(
    "norm_dropout", "Batch normalization and dropout, alone and together",
    lambda norm_dropout: f"Test accuracy; mean of {norm_dropout['n'].min()} seeds, intervals of 95 %; statistics of "
    "the normalization as trained, and recomputed without dropout.",
)  # fmt: skip
def draw_accuracies(norm_dropout: pd.DataFrame) -> Any:
    """Test accuracy, a row a network, a colour the statistics."""
    axes = {"xlabel": "test accuracy"}
    return drawing.panels(norm_dropout, "", drawing.estimates, at="network", by="statistics", axes=axes)


METHOD = f"""**Dropout and batch normalization.** Dense ReLU networks on 8 x 8 digits, SGD with momentum 0.9, batches of
32: plain; with dropout behind every ReLU; with batch normalization in front of every ReLU; and with both, dropout
behind every ReLU, in front of every normalization, or behind the last ReLU alone (Li et al. 2019). Normalization keeps
running statistics as PyTorch does. Those recomputed without dropout (Hendrycks and Gimpel 2017) are of all training
examples. The variance with dropout is that of whole passes over these, {PASSES} with fresh masks; at rates chosen by
other seeds."""
PART = Part("variance_shift", (COMBINED, SHIFTED), SIZES, grids, run, analyse, (draw_shares, draw_accuracies), METHOD)
