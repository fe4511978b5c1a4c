"""Sum against mean of a batch's losses, and the last incomplete batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from depthgauge import drawing, stats
from depthgauge.conditions import explained
from depthgauge.frames import groups, only, params_of
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import Question, agrees, every, listed, spelled
from depthgauge.studies.batch_size import last_batches, reductions
from depthgauge.studies.batch_size.last_batches import FIXED, ORDERS, POLICIES, SHUFFLED, TOP_UP, Epochs
from depthgauge.studies.batch_size.reductions import (
    ADAM,
    CHANGES,
    HALF,
    LARGE_EPS,
    MEAN,
    RATE_ONLY,
    SETTINGS,
    UNCHANGED,
    UNDONE,
)
from depthgauge.study import Case, Context, Grid, Rows
from depthgauge.verdict import Claim, Sentence

N20 = Claim("N20", "whether the loss is averaged or summed does not matter: it only divides the learning rate by N")
SCALED = Claim(
    "batch_size/sum_undone",
    "the sum is undone by N where the gradient is seen: rate, Adam's eps, clipping, L2 decay, loss scale",
)
EPS = Claim("batch_size/adam_sum", "for Adam the sum changes eps alone: the learning rate stays as it is")
N21 = Claim("N21", "the last incomplete batch can be kept, dropped, or topped up from other data")
WEIGHT = Claim(
    "batch_size/short_batch_weight", "in a fixed order an example in a short batch weighs B/b, one that pads twice"
)
LIMIT = Claim(
    "batch_size/short_batch_limit", "linear regression converges to the weighted least squares that these weights say"
)

TRAVELLED = "share of the distance that the weights travel"
NEAR = 1e-5  # of the way of the weights: within it the trainings are one
CLOSE = 0.01  # of the way: eps alone makes no more difference
WEIGHT_MARGIN = 0.1  # of the weight of an example in a full batch
SHIFT_MARGIN = 0.1  # standard errors of least squares
BATCH, POWER = 24, 32  # examples; a loss scale is divided exactly by a power of two alone
ALREADY = (ADAM, LARGE_EPS, "clipping")  # for which it is worth a try to change nothing
LAST = 16  # B of the last batches
SIZES = sizes(
    "steps seeds examples epochs trained",
    quick=(12, 12, (100,), 25, 60), standard=(60, 16, (98, 100, 104, 108), 200, 300),
    full=(200, 24, (98, 100, 104, 108, 111), 400, 600), tiny=(3, 5, (20,), 2, 4),
)  # fmt: skip


def grids(steps: int, seeds: int, examples: tuple[int, ...], epochs: int, trained: int) -> Iterator[Grid]:
    """Pairs of trainings, and policies for the last batch."""
    together = ("change", "seed")
    own = tuple(name for name in SETTINGS if name != HALF)
    apart = tuple(Case.of({"setting": s, "change": UNCHANGED}) for s in SETTINGS if s not in ALREADY)
    for names, batch in ((own, BATCH), ((HALF,), POWER)):
        yield Grid(
            {"setting": names, "change": CHANGES}, {"batch": batch, "steps": steps}, seeds, together, 1000,
            claims=(N20.id, SCALED.id, EPS.id), without=apart,
        )  # fmt: skip
    yield Grid(
        {"policy": POLICIES, "order": ORDERS, "examples": examples},
        {"batch": LAST, "epochs": epochs, "trained": trained}, seeds, chunk=1000,
        claims=(N21.id, WEIGHT.id, LIMIT.id),
    )  # fmt: skip


def run(cases: Sequence[Case], _: Context) -> Iterator[Rows]:
    """The rows of one setting, or of one policy in one order."""
    yield from (_pairs if cases[0].get("setting") is not None else _policies)(cases)


def _pairs(cases: Sequence[Case]) -> Iterator[Rows]:
    """A training by the mean, and one by the sum, from the same weights over the same batches."""
    setting, n, steps = cases[0].text("setting"), cases[0].integer("batch"), cases[0].integer("steps")
    means: dict[int, reductions.Trained] = {}
    for case in cases:
        drawn, recipe = case.random_seed("seed"), reductions.summed(setting, case.text("change"), n)
        if drawn not in means:
            means[drawn] = reductions.trained(MEAN[setting], n, steps, drawn, reduction="mean")
        other = reductions.trained(recipe, n, steps, drawn, reduction="sum")
        yield case.rows("distance", reductions.distance(other, means[drawn]))
        yield case.rows("skipped", float(other.skipped - means[drawn].skipped))


def _policies(cases: Sequence[Case]) -> Iterator[Rows]:
    """Weight of the examples that a policy treats unlike the others, and where a regression converges."""
    policy, order = cases[0].text("policy"), cases[0].text("order")
    n, batch = cases[0].integer("examples"), cases[0].integer("batch")
    seeds = [case.random_seed("seed") for case in cases]
    every = [[Epochs(policy, order, n, batch, seed) for seed in seeds] for _ in range(2)]
    count = cases[0].integer("epochs") if order == SHUFFLED or policy == TOP_UP else 1  # else one is as the other
    shifts = last_batches.regressions(every[0], seeds, cases[0].integer("trained"))
    for case, epochs, (shift, predicted) in zip(cases, every[1], shifts, strict=True):
        weight = last_batches.weights(epochs, count)
        yield case.rows("weight", last_batches.relative(weight, last_batches.odd(policy, n, batch)))
        yield case.rows("shift", shift)
        yield case.rows("predicted", predicted)


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """Distances of trainings, and weights and shifts of policies."""
    for parameter, answer in (("setting", reduced), ("policy", last)):
        if parameter in rows and len(own := rows[rows[parameter].notna()]):
            yield from answer(own)


def reduced(rows: pd.DataFrame) -> Iterator[Answer]:
    """Distances of the weights that sum and mean lead to."""
    params = params_of(rows, "setting", "change", "batch", "steps")
    params["distance"], params["skipped"] = only(rows, "distance"), only(rows, "skipped")
    asked, further = {}, {}
    for key, own in groups(params, ["setting", "change"]):
        asked[key] = stats.against(own["distance"], 0.0, margin=NEAR)
        further[key] = {**spelled("distance", stats.median(own["distance"])), "skipped": own["skipped"].mean()}
    question = Question.of("reduction", ("setting", "change"), asked, label="{setting} ({change})", reference="same")
    yield question.table(further)
    words = {True: "the same weights for", False: "other weights for", None: "either for"}
    method = f"distance of the weights over their way by the mean, margin {NEAR:g}, torch.optim"
    for claim, change in ((N20, RATE_ONLY), (SCALED, UNDONE)):
        if part := question.where(change=change):
            told = listed({key[0]: agrees(member) for key, member in part.members.items()}, words, 8)
            why = f"with {'the rate over N' if change == RATE_ONLY else 'all of it scaled'} the sum leads to {told}"
            yield part.verdict(claim, agrees, unit=TRAVELLED, why=why, method=method)
    yield from eps_alone(question.where(setting=(ADAM, LARGE_EPS)), params[params["setting"] == ADAM])
    if (ADAM, RATE_ONLY) in asked:
        apart = question.members[ADAM, RATE_ONLY].effect.value
        yield Sentence(
            "A summed loss is no mean with the learning rate divided by the batch size: Adam's weights then end "
            f"apart by {apart:.0%} of the distance they travel.",
            claims=(N20.id,),
        )


def eps_alone(question: Question, params: pd.DataFrame) -> Iterator[Answer]:
    """Adam with the rate as it is: with eps times N exactly the same, with eps as it is nearly."""
    undone, same = question.where(change=UNDONE), params[params["change"] == UNCHANGED]
    if not undone or same.empty:
        return
    near = stats.against(same["distance"], 0.0, margin=CLOSE)
    kept = Question.of("adam", ("eps",), {(MEAN[ADAM].eps,): near}, label="eps {eps:g}", reference="same")
    yield kept.table()
    large = question.where(setting=LARGE_EPS, change=UNCHANGED).members.values()
    also = "".join(f", of {MEAN[LARGE_EPS].eps:g} {member.effect.value:.2g}" for member in large)
    yield kept.verdict(
        EPS, {"eps as it is": agrees(near), "eps times N": every(map(agrees, undone.members.values()))},
        unit=TRAVELLED,
        why="at the same rate the weights end apart by this share of the distance they travel: "
        f"{max(m.effect.value for m in undone.members.values()):.2g} with eps x N, with an unchanged eps "
        f"of {MEAN[ADAM].eps:g} {near.effect.value:.2g}{also}",
        method=f"with eps x N within {NEAR:g}, with torch's default eps unchanged within {CLOSE:g}",
    )  # fmt: skip


def last(rows: pd.DataFrame) -> Iterator[Answer]:
    """Weights of examples, and limits of a regression."""
    keys = ["policy", "order", "examples"]
    params = params_of(rows, *keys, "batch").astype({"examples": int, "batch": int})
    for metric in ("weight", "shift", "predicted"):
        params[metric] = only(rows, metric)
    weights, limits, harms, further = {}, {}, {}, {}
    for (policy, order, size), own in groups(params, keys):
        predicted = last_batches.odd_weight(policy, order, size, own["batch"].iloc[0])
        key = (policy.replace(", ", " as "), order, size)  # no comma in a list of policies
        weights[key] = stats.against(own["weight"], predicted, margin=WEIGHT_MARGIN)
        limits[key] = stats.paired(own["shift"], own["predicted"], margin=SHIFT_MARGIN)
        harms[key] = stats.against(own["shift"], 0.0, margin=SHIFT_MARGIN)
        further[key] = {"predicted": own["predicted"].mean()}
    label = "{policy} in {order} order with {examples} examples"
    weighed = Question.of("short_batch_weight", keys, weights, label=label)
    yield weighed.table()
    yield weighed.prediction(WEIGHT, "weights", within=f"{WEIGHT_MARGIN:g}", unit="weight over that of the others")
    limited = Question.of("short_batch_limit", keys, limits, label=label, reference="no difference")
    yield limited.table()
    yield limited.prediction(
        LIMIT, "limits", within=f"{SHIFT_MARGIN:g}", unit="standard errors, measured less predicted"
    )
    harmed = Question.of("last_batch", keys, harms, label=label, reference="least squares")
    yield harmed.table(further)
    named = harmed.where(policy=("keep", "drop", "top up"))  # the note's three
    pooled = {
        f"{policy} in {order} order": every(map(agrees, harmed.where(policy=policy, order=order).members.values()))
        for policy, order, _ in harms
    }
    noted = {(name,): pooled[name] for name in dict.fromkeys(f"{p} in {o} order" for p, o, _ in named.members)}
    words = {False: "moved by more with", True: "not with", None: "undecided with"}
    yield named.verdict(
        N21, agrees, unit="standard errors of least squares", says=explained(("policy",), noted),
        why=f"against a margin of {SHIFT_MARGIN:g} standard errors the limit is {listed(pooled, words, 12)}",
        method=f"limit of a linear regression trained with batches of {LAST}, against least squares on all examples",
    )  # fmt: skip
    n = min((size for *_, size in harms), key=lambda size: size % LAST)
    if (key := ("keep", FIXED, n)) in harms:
        yield Sentence(
            f"In a fixed order each example of a last batch of {n % LAST} weighs {weights[key].effect.value:.1f} times "
            f"one of a batch of {LAST}; shuffled anew each epoch all weigh alike.",
            claims=(WEIGHT.id, N21.id),
        )


@drawing.figure(
    "reduction", "What the sum of the losses changes, and what undoes it",
    "Distance of the weights from those of the mean, over their way; median and interval. Leftmost: the same bits.",
)  # fmt: skip
def draw_reduction(reduction: pd.DataFrame) -> Any:
    """Distance by setting and change."""
    columns = [name for name in reduction if str(name).startswith("distance")]
    shown = reduction.assign(**{str(name): reduction[name].clip(lower=1e-17) for name in columns})
    axes = {"xscale": "log", "xlabel": "distance of the weights, over their way"}
    return drawing.panels(shown, "", drawing.estimates, at="setting", by="change", value="distance", axes=axes)


@drawing.figure(
    "short_batch_weight", "How much an example of the last batch weighs",
    f"Weight of the examples that a policy treats unlike the others, over that of the others; batches of {LAST}; "
    "ticks: prediction.",
)  # fmt: skip
def draw_weight(short_batch_weight: pd.DataFrame) -> Any:
    """Weight by policy and order."""
    shown = short_batch_weight.assign(data=short_batch_weight["examples"].astype(str) + " examples")
    axes = {"xlabel": "weight"}
    return drawing.panels(shown, "data", drawing.estimates, at="policy", by="order", axes=axes, shared="both")


@drawing.figure(
    "last_batch", "How far the last batch moves the limit of training",
    f"Linear regression, batches of {LAST}: shift from least squares on all examples; ticks: prediction.",
)  # fmt: skip
def draw_last(last_batch: pd.DataFrame) -> Any:
    """Shift by policy and order."""
    shown = last_batch.assign(data=last_batch["examples"].astype(str) + " examples")
    axes = {"xlabel": "shift, standard errors"}
    return drawing.panels(shown, "data", drawing.estimates, at="policy", by="order", axes=axes, shared="both")


METHOD = f"""**Sum against mean.** Two trainings of a 64-{reductions.WIDTH}-10 network on 8 x 8 digits, in float64, with
equal weights and batches of {BATCH}, by torch.optim; with a loss scale in float16 (autocast), batches of {POWER}.
Rate/N: that alone is changed. Undone: weight decay, clipping threshold and eps times N, the loss scale and, but for
Adam, the rate over N. Unchanged: nothing.

**Last batch.** Indices by torch's samplers: BatchSampler, with and without `drop_last`; topped up by other examples
drawn at random; DistributedSampler of {LAST} replicas, an example each, which repeats the first examples. Weights: the
gradient of a linear layer at one-hot inputs, over epochs of DataLoader. Limits: linear regression in
{last_batches.DIMENSIONS} dimensions at rate {last_batches.RATE:g}, mean of the second half of the epochs, along the
shift that weighted least squares predicts for a fixed order. Sum / B: the sum of a batch's losses over the size of a
full one.
"""
PART = Part(
    "reduction", (N20, SCALED, EPS, N21, WEIGHT, LIMIT), SIZES, grids, run, analyse,
    (draw_reduction, draw_weight, draw_last), METHOD, shown=("reduction",),
)  # fmt: skip
