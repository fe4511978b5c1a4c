"""Sum against mean of a batch's losses, and the last incomplete batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from depthgauge import drawing, stats
from depthgauge.frames import groups, only, params_of
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import Question, agrees, spelled
from depthgauge.studies.batch_size import last_batches, reductions
from depthgauge.studies.batch_size.last_batches import FIXED, ORDERS, POLICIES, SHUFFLED, TOP_UP, Epochs
from depthgauge.studies.batch_size.reductions import HALF, KEPT, MEAN, RATE_ONLY, RECIPES, SETTINGS, UNDONE
from depthgauge.study import Case, Context, Grid, Rows
from depthgauge.verdict import Claim

N20 = Claim("N20", "whether the loss is averaged or summed does not matter: it only divides the learning rate by N")
SCALED = Claim(
    "batch_size/sum_undone",
    "the sum is undone by N where the gradient is seen: rate, Adam's eps, clipping, L2 decay, loss scale",
)
ADAM = Claim("batch_size/adam_sum", "for Adam the sum changes eps alone: the learning rate stays as it is")
N21 = Claim("N21", "the last incomplete batch can be kept, dropped, or topped up from other data")
WEIGHT = Claim(
    "batch_size/short_batch_weight", "in a fixed order an example in a short batch weighs B/b, one that pads twice"
)
LIMIT = Claim(
    "batch_size/short_batch_limit", "linear regression converges to the weighted least squares that these weights say"
)

NEAR = 1e-5  # of the way of the weights: within it the trainings are one
CLOSE = 0.01  # of the way: eps alone makes no more difference
WEIGHT_MARGIN = 0.1  # of the weight of an example in a full batch
SHIFT_MARGIN = 0.1  # standard errors of least squares
BATCH, POWER = 24, 32  # examples; a loss scale is divided exactly by a power of two alone
LAST = 16  # B of the last batches
SIZES = sizes(
    "steps seeds examples epochs trained",
    quick=(20, 12, (100,), 30, 80), standard=(60, 16, (97, 100, 104, 108), 100, 300),
    full=(200, 24, (97, 98, 100, 104, 108, 111), 200, 600), tiny=(3, 5, (20,), 2, 4),
)  # fmt: skip


def grids(steps: int, seeds: int, examples: tuple[int, ...], epochs: int, trained: int) -> Iterator[Grid]:
    """Pairs of trainings, and policies for the last batch."""
    together = ("recipe", "seed")
    own = tuple(name for name in SETTINGS if name != HALF)
    apart = tuple(Case.of({"setting": s, "recipe": KEPT}) for s in SETTINGS if s not in {"Adam", "clipping"})
    for names, batch in ((own, BATCH), ((HALF,), POWER)):
        yield Grid(
            {"setting": names, "recipe": RECIPES}, {"batch": batch, "steps": steps}, seeds, together, 1000,
            claims=(N20.id, SCALED.id, ADAM.id), without=apart,
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
    for case in cases:
        setting, n, steps, seed = (
            case.text("setting"),
            case.integer("batch"),
            case.integer("steps"),
            case.integer("seed"),
        )
        drawn = case.random_seed("seed")
        mean = reductions.trained(MEAN[setting], n, steps, drawn, reduction="mean")
        recipe = reductions.summed(setting, case.text("recipe"), n)
        other = reductions.trained(recipe, n, steps, drawn, reduction="sum")
        yield case.rows("distance", reductions.distance(other, mean))
        yield case.rows("skipped", float(other.skipped - mean.skipped))


def _policies(cases: Sequence[Case]) -> Iterator[Rows]:
    """Weight of the examples that a policy treats unlike the others, and where a regression converges."""
    policy, order, n, batch = (cases[0][name] for name in ("policy", "order", "examples", "batch"))
    given: tuple[Any, ...] = (policy, order, n, batch)
    drawn = [case.random_seed("seed") for case in cases]
    count = cases[0].integer("epochs") if order == SHUFFLED or policy == TOP_UP else 1  # else one is as the other
    shifts = last_batches.regressions([Epochs(*given, seed) for seed in drawn], drawn, cases[0].integer("trained"))
    for case, seed, (shift, predicted) in zip(cases, drawn, shifts, strict=True):
        weight = last_batches.weights(Epochs(*given, seed), count)
        yield case.rows("weight", last_batches.relative(weight, last_batches.odd(*given[::2], batch)))
        yield case.rows("shift", shift)
        yield case.rows("predicted", predicted)


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """Distances of trainings, and weights and shifts of policies."""
    for parameter, answer in (("setting", reduced), ("policy", last)):
        if parameter in rows and len(own := rows[rows[parameter].notna()]):
            yield from answer(own)


def reduced(rows: pd.DataFrame) -> Iterator[Answer]:
    """Distances of the weights that sum and mean lead to."""
    params = params_of(rows, "setting", "recipe", "batch", "steps")
    params["distance"], params["skipped"] = only(rows, "distance"), only(rows, "skipped")
    asked, adam, further = {}, {}, {}
    for key, own in groups(params, ["setting", "recipe"]):
        asked[key] = stats.against(own["distance"], 0.0, margin=NEAR)
        further[key] = {**spelled("distance", stats.median(own["distance"])), "skipped": own["skipped"].mean()}
        if key == ("Adam", KEPT):
            adam[key] = stats.against(own["distance"], 0.0, margin=CLOSE)
    question = Question.of("reduction", ("setting", "recipe"), asked, label="{setting}, {recipe}", reference="same")
    yield question.table(further)
    words = {True: "within it for", False: "beyond it for", None: "undecided for"}
    method = f"distance of the weights over the way by the mean, margin {NEAR:g}, torch.optim"
    for claim, recipe, what in ((N20, RATE_ONLY, "with rate / N alone"), (SCALED, UNDONE, "with all of it scaled")):
        if part := question.where(recipe=recipe):
            yield part.verdict(
                claim, agrees, unit="of the way of the weights", method=method,
                why=f"{what} the weights are {part.listed(agrees, words, 6)}",
            )  # fmt: skip
    if adam and (undone := question.where(setting="Adam", recipe=UNDONE)):
        kept = Question.of("adam", ("setting", "recipe"), adam, label="{setting}, {recipe}", reference="same")
        yield kept.table()
        (exact,), (near,) = undone.members.values(), adam.values()
        yield kept.verdict(
            ADAM, {"kept": agrees(near), "undone": agrees(exact)}, unit="of the way of the weights",
            why=f"with rate and eps kept the weights are {near.effect.value:.2g} of their way apart, with eps x N "
            f"{exact.effect.value:.2g}",
            method=f"rate kept: within {CLOSE:g}; eps x N: within {NEAR:g}",
        )  # fmt: skip
    if (HALF, RATE_ONLY) in further:
        yield (
            f"With a loss scale of {MEAN[HALF].scale:g} in float16 the sum of {POWER} losses overflows: "
            f"{further[HALF, RATE_ONLY]['skipped']:.1f} steps more are skipped than with the mean."
        )


def last(rows: pd.DataFrame) -> Iterator[Answer]:
    """Weights of examples, and limits of a regression."""
    keys = ["policy", "order", "examples"]
    params = params_of(rows, *keys, "batch").astype({"examples": int, "batch": int})
    for metric in ("weight", "shift", "predicted"):
        params[metric] = only(rows, metric)
    weights, limits, harms, further = {}, {}, {}, {}
    for key, own in groups(params, keys):
        predicted = last_batches.odd_weight(*key, own["batch"].iloc[0])
        weights[key] = stats.against(own["weight"], predicted, margin=WEIGHT_MARGIN)
        limits[key] = stats.paired(own["shift"], own["predicted"], margin=SHIFT_MARGIN)
        harms[key] = stats.against(own["shift"], 0.0, margin=SHIFT_MARGIN)
        further[key] = {"predicted": own["predicted"].mean()}
    label = "{policy}, {order} order, {examples} examples"
    weighed = Question.of("short_batch_weight", keys, weights, label=label)
    yield weighed.table()
    yield weighed.prediction(WEIGHT, "weights", within=f"{WEIGHT_MARGIN:g}", unit="weight over that of the others")
    limited = Question.of("short_batch_limit", keys, limits, label=label, reference="no_difference")
    yield limited.table()
    yield limited.prediction(
        LIMIT, "limits", within=f"{SHIFT_MARGIN:g}", unit="standard errors, measured less predicted"
    )
    harmed = Question.of("last_batch", keys, harms, label=label, reference="least_squares")
    yield harmed.table(further)
    by_policy = {
        f"{policy}, {order} order": _all(harmed.where(policy=policy, order=order)) for policy, order, _ in harms
    }
    bad = [name for name, answer in by_policy.items() if answer is False]
    good = [name for name, answer in by_policy.items() if answer]
    # The note's three: kept with the mean of what is left, dropped, topped up.
    named = harmed.where(policy=("keep", "drop", "top up"))
    yield named.verdict(
        N21, agrees, unit="standard errors of least squares",
        why=f"the limit is moved by more than {SHIFT_MARGIN:g} standard errors by {'; '.join(bad) or 'none'}, by less by "
        f"{'; '.join(good) or 'none'}",
        method=f"limit of a linear regression trained with batches of {LAST}, against least squares on all examples",
    )  # fmt: skip


def _all(question: Question) -> bool | None:
    """One answer of several sizes of the data: false where one is."""
    answers = {agrees(member) for member in question.members.values()}
    return False if False in answers else None if None in answers else True


@drawing.figure(
    "reduction", "What the sum of the losses changes, and what undoes it",
    "Distance of the weights from those of the mean, over their way; median and interval. Leftmost: the same bits.",
)  # fmt: skip
def draw_reduction(reduction: pd.DataFrame) -> Any:
    """Distance by setting and recipe."""
    columns = [name for name in reduction if str(name).startswith("distance")]
    shown = reduction.assign(**{str(name): reduction[name].clip(lower=1e-17) for name in columns})
    axes = {"xscale": "log", "xlabel": "distance of the weights"}
    return drawing.panels(shown, "", drawing.estimates, at="setting", by="recipe", value="distance", axes=axes)


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


METHOD = f"""
**Sum against mean.** Two trainings of a 64-{reductions.WIDTH}-10 network on 8 x 8 digits in float64 with the same weights and
batches of {BATCH}, torch.optim; with a loss scale in float16 (autocast, GradScaler) and batches of {POWER}. Rate / N: that
alone is changed; undone: weight decay, clipping threshold and eps times N, loss scale and, but for Adam, rate over N.

**Last batch.** Indices by torch's samplers: BatchSampler, with and without `drop_last`; topped up by other examples drawn
at random; DistributedSampler of {LAST} replicas, an example each, which repeats the first examples. Weights: gradient of a
linear layer at one-hot inputs, over an epoch of DataLoader. Limits: linear regression in {last_batches.DIMENSIONS} dimensions, rate
{last_batches.RATE:g}, mean of the second half of the epochs, along the shift that weighted least squares predicts for a fixed
order. `sum / B`: the sum of a batch's losses over the size of a full one.
"""
PART = Part(
    "reduction", (N20, SCALED, ADAM, N21, WEIGHT, LIMIT), SIZES, grids, run, analyse,
    (draw_reduction, draw_weight, draw_last), METHOD, shown=("reduction",),
)  # fmt: skip
