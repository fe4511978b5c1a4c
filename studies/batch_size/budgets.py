"""Small against large batches with equal epochs, equal steps, and an equal ratio of learning rate to batch size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from depthgauge import frames, replicas, stats, training
from depthgauge.frames import groups
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import Question, above, listed, spelled
from depthgauge.studies.batch_size import perceptrons
from depthgauge.studies.batch_size.budget_figures import TUNED, draw_accuracy, draw_loss
from depthgauge.study import Case, Context, Grid, Rows, Value
from depthgauge.verdict import Claim, Sentence

BETTER = Claim("N17", "small batches converge better: their noise helps")
LOW = Claim("N19", "a batch too small ends at a low accuracy")
GAP = Claim(
    "batch_size/gap", "with as many steps and its own learning rate, a large batch ends at the accuracy of a small one"
)
NOISE = Claim(
    "batch_size/noise",
    "with as many steps and rates of their own, a small batch ends at a lower test loss than a large one",
)

MARGIN = 0.02  # test accuracy: batch sizes closer than this are called the same
SAME_LOSS = 1.1  # factor of the test loss: likewise
FLAT = 0.005  # validation accuracy: where the last step to an end of the grid won less, a further one would not matter
KEYS = ["budget", "batch"]
BUDGETS = {"epochs": "equal epochs", "steps": "equal steps"}
ONE, RATIO = "one rate for all", "rates in proportion"
ARMS = (("epochs", ONE), ("epochs", TUNED), ("epochs", RATIO), ("steps", ONE), ("steps", TUNED))
CHOSEN = {
    "test_accuracy": "validation_accuracy",
    "test_loss": "validation_score",
}  # -ln of a loss: what chooses the rate for what
RATES = tuple(2.0**power for power in range(-8, 3))
SIZES = sizes(
    "dataset width reference batches steps seeds rates", quick=("digits", 32, 16, (2, 16, 128), 256, 10, RATES[2:9]),
    standard=("digits", 32, 16, (1, 4, 16, 64, 256), 720, 16, RATES),
    full=("mnist5k", 64, 16, (1, 4, 16, 64, 256, 1024), 2000, 16, (*RATES, 8.0, 16.0)),
    tiny=("digits", 8, 16, (4, 16, 64), 32, 5, (0.03, 0.12)),
)  # fmt: skip


def grids(  # noqa: PLR0917 - a size names them all
    dataset: str, width: int, reference: int, batches: tuple[int, ...], steps: int, seeds: int, rates: tuple[float, ...]
) -> Iterator[Grid]:
    """Every batch size with the examples, and with the steps, that the reference gets; at every rate."""
    for batch in batches:
        for count in dict.fromkeys((steps * reference // batch, steps)):
            size: dict[str, Value] = {"data": dataset, "width": width, "depth": 2, "reference": reference}
            yield Grid(
                {"lr": rates}, {**perceptrons.MODEL, **size, "batch": batch, "steps": count}, seeds,
                perceptrons.TOGETHER, perceptrons.most_replicas, selection=perceptrons.SELECTION,
            )  # fmt: skip


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """Train by plain SGD; seeds, weights and the order of the examples are common to all batch sizes and rates."""
    task, shared = perceptrons.task(cases[0], context), cases[0]
    sgd = replicas.SGD([case.number("lr") for case in cases])
    batch, steps = shared.integer("batch"), shared.integer("steps")
    stack = replicas.train(task.drawn(cases), task.fit.x, task.fit.y, sgd, batch=batch, steps=steps).stack
    for metric, values in task.ends(stack).items():
        yield from (case.rows(metric, float(value)) for case, value in zip(cases, values, strict=True))


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """Ends of every batch size under every budget and rule of the rate, against the reference's."""
    runs = by_budget(rows)
    if runs.empty or (runs := training.tunable(runs, KEYS)).empty:
        return
    reference = int(float(rows["reference"].iloc[0]))
    ends = {metric: dict(arms(runs, reference, metric)) for metric in CHOSEN}
    if not all(ends.values()):
        return
    yield "budget_runs", pd.concat([own.assign(tuned_for=m) for m, arm in ends.items() for own in arm.values()])
    yield "budget_ends", pd.concat([summary(own, metric) for metric, own in ends.items()], ignore_index=True)
    yield from accuracy(ends["test_accuracy"], reference)
    yield from loss(ends["test_loss"], reference)


def by_budget(rows: pd.DataFrame) -> pd.DataFrame:
    """One row a run and budget that it fits: a reference's run has both the epochs and the steps of all others."""
    runs = perceptrons.runs_of(rows, "reference", "batch", "steps")
    runs["validation_score"] = -frames.logs(runs[["validation_loss"]])["validation_loss"]
    steps = runs.loc[runs["batch"] == pd.to_numeric(runs["reference"]), "steps"].min()
    examples = pd.to_numeric(runs["reference"]) * steps
    fits = {"epochs": runs["steps"] == examples // runs["batch"], "steps": runs["steps"] == steps}
    both: pd.DataFrame = pd.concat([runs[which].assign(budget=budget) for budget, which in fits.items()])
    return both.reset_index(drop=True)


def arms(runs: pd.DataFrame, reference: int, metric: str) -> Iterator[tuple[tuple[str, str, int], pd.DataFrame]]:
    """(budget, rule of the rate, batch), and its reported runs, which have `at_edge`."""
    tuned = training.tuned(runs, KEYS, score=CHOSEN[metric])
    margin = FLAT if metric == "test_accuracy" else np.log(SAME_LOSS) / 2
    tuned = tuned.assign(at_edge=training.open_ended(tuned, margin))
    base, edge = (tuned.loc[tuned["batch"] == reference, name] for name in ("lr", "at_edge"))
    if base.empty:
        return
    for (budget, batch), own in groups(runs[runs["seed"] >= 0], KEYS):
        rates = {ONE: base.iloc[0], RATIO: base.iloc[0] * batch / reference}
        for rule in (rule for of, rule in ARMS if of == budget):
            found = own[own["lr"] == rates[rule]].assign(at_edge=edge.any()) if rule in rates else tuned
            found = found[(found["budget"] == budget) & (found["batch"] == batch)]
            if len(found):
                yield (budget, rule, batch), found.assign(rates=rule)


def summary(ends: Mapping[tuple[str, str, int], pd.DataFrame], metric: str) -> pd.DataFrame:
    """One row a condition: the mean of a metric, the rate, the training loss, and runs that diverged."""
    return pd.DataFrame([
        {
            "metric": metric, "budget": BUDGETS[budget], "rates": rule, "batch": batch, "n": len(own),
            "lr": own["lr"].iloc[0], "at_edge": own["at_edge"].any(), "diverged": int(own["diverged"].sum()),
            **spelled("value", stats.mean(own[metric].to_numpy())),
            "train_loss": own["train_loss"].mask(own["diverged"] > 0, np.inf).median(),
        }
        for (budget, rule, batch), own in ends.items()
    ]).rename(columns={"value_low_95": "low_95", "value_high_95": "high_95"})  # fmt: skip


def asked(
    ends: Mapping[tuple[str, str, int], pd.DataFrame], reference: int, metric: str, **how: Any
) -> dict[tuple[str, str, int], stats.Comparison]:
    """The lead of the reference's runs over those of every other batch size, seed by seed."""
    found = {}
    for (budget, rule, batch), own in ends.items():
        if batch != reference and (budget, rule, reference) in ends:
            ours, theirs = ends[budget, rule, reference].set_index("seed"), own.set_index("seed")
            pair = [each.loc[ours.index.intersection(theirs.index), metric] for each in (ours, theirs)]
            better = stats.paired(*(reversed(pair) if metric == "test_loss" else pair), test="t", **how)
            found[budget, rule, batch] = training.unsettled(better, own["at_edge"].any() or ours["at_edge"].any())
    return found


def accuracy(ends: Mapping[tuple[str, str, int], pd.DataFrame], reference: int) -> Iterator[Answer]:
    """N17 of larger batches, N19 of smaller ones, and the gap where steps are equal."""
    question = Question.of(
        "budget_accuracy", ("budget", "rates", "batch"), asked(ends, reference, "test_accuracy", margin=MARGIN),
        label="batch {batch} at equal {budget} with {rates}", reference="no difference",
        family=lambda batch, **_: batch > reference,
    )  # fmt: skip
    if not question:
        return
    yield question.table()
    method = f"test accuracy at batch {reference} minus that of the other, paired t by seed, margin {MARGIN:g}"
    unit = f"test accuracy of batch {reference} above the other's"
    larger, smaller = (question.select(lambda batch, s=s, **_: (batch - reference) * s > 0) for s in (1, -1))
    ends_at = f"batch {reference} ends at"
    words = (f"{ends_at} a higher test accuracy than batch", f"{ends_at} no higher test accuracy than batch")
    for claim, some in ((BETTER, larger), (LOW, smaller)):
        if some:
            where = true_and_false(some, *words)
            why = "; ".join(where) + "; that noise is why is asked in batch_size/noise" * (claim is BETTER)
            yield some.verdict(claim, above, unit=unit, method=method, why=why)
    if tuned := larger.where(rates=TUNED):
        yield from gap(tuned, reference, unit, method)
    if alone := smaller.where(budget="epochs", rates=ONE).members:
        (*_, batch), lead = min(alone.items(), key=lambda pair: pair[0][2])
        yield Sentence(
            f"After as many epochs at one learning rate batch {batch} ends {_points(lead, reference)}.",
            "budgets", (LOW.id,),
        )  # fmt: skip


def gap(tuned: Question, reference: int, unit: str, method: str) -> Iterator[Answer]:
    """The lead of the reference over larger batches at rates of their own, by budget."""
    most = max(batch for _, _, batch in tuned.members)
    for budget in ("steps", "epochs"):
        if (key := (budget, TUNED, most)) in tuned.members:
            yield Sentence(
                f"Given as many {budget} and a learning rate of its own, batch {most} ends "
                f"{_points(tuned.members[key], reference)}.",
                "budgets", (GAP.id, BETTER.id) if budget == "steps" else (BETTER.id,),
            )  # fmt: skip
    if equal := tuned.where(budget="steps"):
        ended = f"in test accuracy, against batch {reference},"
        words = {True: f"{ended} no lower than the margin is", False: "lower is", None: "undecided is"}
        answers = {
            f"batch {key[2]}": None if (more := above(c)) is None else not more for key, c in equal.members.items()
        }
        yield equal.verdict(GAP, answers, unit=unit, method=method, why=listed(answers, words))


def _points(lead: stats.Comparison, reference: int) -> str:
    if lead.inside:
        return f"as high as batch {reference}, within {100 * MARGIN:g} points of test accuracy"
    points = 100 * lead.effect.value
    side, sign = ("lower", 1) if points > 0 else ("higher", -1)
    ends = sorted(100 * sign * end for end in (lead.effect.low, lead.effect.high))
    told = "" if lead.beyond else f" [{ends[0]:.1f}, {ends[1]:.1f}]".replace("-", "−")
    return f"{abs(points):.1f}{told} points of test accuracy {side} than batch {reference}"


def true_and_false(question: Question, more: str, less: str) -> list[str]:
    """One sentence of where the reference ends above the others, and one of where it does not."""
    where: dict[bool | None, list[str]] = {}
    for budget, rule in ARMS:
        for answer in (True, False, None):
            some = question.where(budget=budget, rates=rule).members.items()
            if batches := [str(key[2]) for key, c in some if above(c) is answer]:
                place = f"{' and '.join(batches)} at {BUDGETS[budget]} with {rule}"
                where.setdefault(answer, []).append(place)
    words = {True: f"true where {more}", False: f"false where {less}", None: "undecided against batch"}
    return [f"{text} {', '.join(where[answer])}" for answer, text in words.items() if answer in where]


def loss(ends: Mapping[tuple[str, str, int], pd.DataFrame], reference: int) -> Iterator[Answer]:
    """Test loss of tuned batches: does noise help where steps are equal?"""
    tuned = {key: own for key, own in ends.items() if key[1] == TUNED}
    question = Question.of(
        "budget_loss", ("budget", "rates", "batch"), asked(tuned, reference, "test_loss", margin=SAME_LOSS, log=True),
        label="batch {batch} at equal {budget}", reference="equal",
    )  # fmt: skip
    if not question:
        return
    yield question.table()
    if equal := question.select(lambda budget, batch, **_: budget == "steps" and batch > reference):
        ours = f"batch {reference} ends"
        words = {
            True: f"{ours} lower than batch",
            False: f"{ours} no lower than batch",
            None: "undecided against batch",
        }
        yield equal.verdict(
            NOISE, above, unit=f"test loss over that of batch {reference}",
            why=listed({str(key[2]): above(c) for key, c in equal.members.items()}, words),
            method=f"geometric mean of paired ratios of the test loss at the end, t by seed, margin {SAME_LOSS:g}; "
            "rates chosen for the loss by other seeds",
        )  # fmt: skip


METHOD = f"""**Budgets.** A multilayer perceptron learns digits by plain SGD. Equal epochs: every batch size sees as
many examples; equal steps: it makes as many updates; the reference batch has both. Learning rates are those of a grid
in factors of two: the best for the batch, chosen by the validation accuracy of other seeds (for the test loss, by the
mean ln of their validation loss); one rate for all, the best of the reference; and that rate in proportion to the
batch, where the grid has it. N17 asks of the
larger batches, N19 of the smaller. Nothing is concluded where a better rate may lie outside the grid. Keskar et al.
(2016, arXiv:1609.04836) describe the gap of large batches, Hoffer et al. (2017, arXiv:1705.08741) more steps as its
remedy. Margins: {MARGIN:g} of test accuracy, and a factor of {SAME_LOSS:g} of the test loss."""
FIGURES, SHOWN = (draw_accuracy, draw_loss), ("budget_accuracy",)
PART = Part("budgets", (BETTER, LOW, GAP, NOISE), SIZES, grids, run, analyse, FIGURES, METHOD, shown=SHOWN)
