"""Training in every recipe against float32: where it ends, how fast it gets there, and where it overflows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from depthgauge import drawing, formats, stats, training
from depthgauge.drawing.palette import GREY, INK
from depthgauge.frames import groups, records
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import Question, above
from depthgauge.studies.precision import answer
from depthgauge.studies.precision.answer import as_good
from depthgauge.studies.precision.nets import EXPLODE, LABELS, NETS
from depthgauge.studies.precision.recipes import RECIPES, REFERENCE
from depthgauge.studies.precision.runs import METRICS, train
from depthgauge.study import Case, Context, Grid, Rows
from depthgauge.verdict import Claim

EXPLODING = Claim("N28", "exploding gradients overflow float16")
AUTOCAST = Claim(
    "precision/autocast", "under autocast, with a GradScaler in float16, a network ends as accurate as in float32"
)
PURE = Claim("precision/pure", "with weights and optimizer in 16 bits, too, a network ends as accurate as in float32")
MENDED = Claim(
    "precision/remedies",
    "float32 weights beside, Kahan summation and stochastic rounding each make a network with bfloat16 weights end as "
    "accurate as in float32",
)

ASKED = tuple(claim.id for claim in (AUTOCAST, PURE, MENDED))
MARGIN = 0.02  # test accuracy: recipes closer than this are called the same
PACE = 1.1  # steps to the target: up to 10 % more are none
UNSCALED = ("float16", "float16_autocast")  # no loss scale enlarges their gradients
HALF = (*UNSCALED, "float16_scaled")
FEW = (REFERENCE, "bfloat16", *HALF)
TOP = 1e9  # of magnitudes in a figure
QUICK = (
    ("Adam", tuple(name for name in RECIPES if name != "float16_master"), 80), ("high activations", FEW, 60),
    *((net, FEW[:4], 5) for net in EXPLODE),
)  # fmt: skip
STANDARD = (
    *((net, tuple(RECIPES), 300) for net in ("SGD", "Adam", "slow SGD", "depth 10", "width 128")),
    *((net, FEW, 200) for net in ("high activations", "low activations")), *((net, FEW, 20) for net in EXPLODE),
    ("LeNet-5", (*(name for name in RECIPES if RECIPES[name].format != "float16"), "float16_scaled"), 200),
)  # fmt: skip
TINY = (
    ("Adam", (REFERENCE, "tf32", "bfloat16", "bfloat16_kahan", "float16_scaled"), 3),
    ("high activations", (REFERENCE, "float16"), 2), ("exploding tanh", UNSCALED, 1),
)  # fmt: skip
SIZES = sizes(
    "plan target seeds blocks", quick=(QUICK, 0.6, 8, 15), standard=(STANDARD, 0.85, 8, 15),
    full=(tuple((net, tuple(RECIPES), 1000) for net in NETS), 0.9, 16, 31), tiny=(TINY, 0.2, 5, 8),
)  # fmt: skip


Plan = tuple[tuple[str, tuple[str, ...], int], ...]  # network, recipes, steps


def grids(plan: Plan, target: float, seeds: int, blocks: int) -> Iterator[Grid]:
    """Every network in its recipes; then a step of each in turns with one in float32."""
    for net, recipes, steps in plan:
        trained = {**NETS[net], "net": net, "steps": steps, "target": target}
        yield Grid(
            {"recipe": recipes}, trained, seeds, chunk=seeds, claims=(EXPLODING.id,) if net in EXPLODE else ASKED
        )
    for net, recipes, _ in plan:
        if net not in EXPLODE:
            timed = {**NETS[net], "net": net, "blocks": blocks}
            yield Grid(
                {"recipe": recipes}, timed, together=("recipe",), chunk=100, exclusive=True, claims=answer.CLAIMS
            )


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """Train one network a case, or time a step of it; what a device cannot do is told."""
    for case in cases:
        if not RECIPES[case.text("recipe")].runs_on(context.device):
            yield case.rows("absent", 1.0)
        else:
            yield from answer.timed(case, context) if case.get("blocks") else train(case, context)


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """Accuracy and steps against float32 by network and recipe; overflows; what to choose."""
    if absent := sorted(set(rows.loc[rows["metric"] == "absent", "recipe"])):
        yield f"Not made, as this device lacks their arithmetic: {', '.join(absent)}."
    runs = training.table(rows.assign(run=rows["case"]), "run", "net", "recipe", "seed", "steps", metrics=METRICS)
    if runs.empty:
        return
    runs["seed"] = pd.to_numeric(runs["seed"])
    first = first_overflows(rows)
    yield "training_runs", runs.drop(columns="run")
    yield from overflows(runs, first)
    yield from exploding(runs, first)
    yield "chains", chains(rows)
    same = yield from accuracy(runs)
    yield from answer.answers(rows, same, first)


def first_overflows(rows: pd.DataFrame) -> pd.DataFrame:
    """The first tensor of each run that is not finite, one row a run that has one."""
    first = rows[rows["metric"] == "nonfinite"].rename(columns={"case": "run", "step": "first_step"})
    return first[["run", "layer", "direction", "first_step"]]


def overflows(runs: pd.DataFrame, first: pd.DataFrame) -> Iterator[Answer]:
    """In how many runs of each network and recipe something overflows, where it starts, and what the scaler does."""
    table = []
    for (net, recipe), own in groups(runs.merge(first, on="run", how="left"), ["net", "recipe"]):
        started = own.dropna(subset="first_step")
        most = started.groupby(["direction", "layer"], as_index=False).size().sort_values("size").tail(1)
        table.append({
            "net": net, "recipe": recipe, "n": len(own), "overflowed": len(started),
            **{name: "".join(most[name]) for name in ("direction", "layer")},
            "first_step": started["first_step"].median(), "diverged": int(own["diverged"].sum()),
            **{name: own[name].median() if RECIPES[recipe].scaled else math.nan for name in ("skipped", "loss_scale")},
        })  # fmt: skip
    yield "overflows", pd.DataFrame(table)
    for row in records(pd.DataFrame(table)):
        if row.recipe == "float16_scaled" and row.direction == "activation" and 2 * row.overflowed > row.n:
            steps = runs.loc[runs["net"] == row.net, "steps"].max()
            yield (
                f"A GradScaler does not help where an activation overflows ({LABELS[row.net]}): it skips "
                f"{row.skipped:.0f} steps of {steps:.0f} in the median run, and halves a loss scale that is not to "
                f"blame, down to {row.loss_scale:.2g}."
            )


def exploding(runs: pd.DataFrame, first: pd.DataFrame) -> Iterator[Answer]:
    """N28: is the first number that float16 cannot hold a gradient, in more than half of the runs?"""
    own = runs[runs["net"].isin(EXPLODE)].merge(first, on="run", how="left")
    wide = (
        own[own["recipe"] == REFERENCE].groupby("net")["direction"].count().reindex(own["net"].unique(), fill_value=0)
    )
    asked, further = {}, {}
    for (net, recipe), lines in groups(own[own["recipe"].isin(UNSCALED)], ["net", "recipe"]):
        starts = lines["direction"].fillna("none").str.endswith("gradient")
        asked[net, recipe] = stats.coverage(int(starts.sum()), len(lines), 0.5)
        counts = {"overflowed": lines["direction"].notna(), "in_activations": lines["direction"] == "activation"}
        further[net, recipe] = {**{name: int(each.sum()) for name, each in counts.items()}, "in_float32": wide[net]}
    question = Question.of(
        "first_overflow", ("net", "recipe"), asked, label="{recipe} with {net}", reference="half", counted="runs"
    )
    if not question:
        return
    yield question.table(further)
    words = {True: "a gradient in", False: "an activation or nothing in", None: "undecided in"}
    yield question.verdict(
        EXPLODING, above, unit="share of runs",
        why=f"where gradients explode, the first number that is not finite is {question.listed(above, words, 9)}. In "
        f"float32 {', '.join(f'{count} runs of {net}' for net, count in wide.items())} overflow",
        method="share of runs whose first tensor that is not finite, in the order of execution, is a gradient, against "
        "1/2; exact binomial; no loss scale",
    )  # fmt: skip


def accuracy(runs: pd.DataFrame) -> Any:
    """Accuracy and steps of every recipe against float32, seed by seed, in networks that do not explode."""
    asked, paces, further = {}, {}, {}
    for net, lines in groups(runs[~runs["net"].isin(EXPLODE)], "net"):
        by_recipe = {recipe: own.set_index("seed") for recipe, own in groups(lines, "recipe")}
        reference = by_recipe.pop(REFERENCE, lines.iloc[:0])
        for recipe, own in by_recipe.items():
            both = own.index.intersection(reference.index)
            a, b = own.loc[both], reference.loc[both]
            asked[net, recipe] = stats.paired(a["test_accuracy"], b["test_accuracy"], margin=MARGIN, test="t")
            if b["reached"].all():
                steps = a["steps_to_target"].where(a["reached"] > 0, math.inf), b["steps_to_target"]
                paces[net, recipe] = stats.paired(*steps, log=True, margin=PACE, test="t")
            further[net, recipe] = {
                "accuracy": a["test_accuracy"].mean(), "diverged": int(a["diverged"].sum()),
                "reached": int(a["reached"].sum()), "steps": a["steps_to_target"].median(),
            }  # fmt: skip
    label: dict[str, Any] = {"label": "{recipe} with {net}", "counted": "training runs"}
    same = Question.of("accuracy", ("net", "recipe"), asked, reference=REFERENCE, **label)
    if not same:
        return same
    yield same.table(further)
    yield Question.of("pace", ("net", "recipe"), paces, reference=REFERENCE, **label).table(further)
    words = {True: "as accurate:", False: f"worse by more than {MARGIN:g}:", None: "undecided:"}
    for claim, recipes in (
        (AUTOCAST, ("bfloat16_autocast", "float16_scaled")), (PURE, ("bfloat16", "float16")),
        (MENDED, tuple(name for name in RECIPES if name.startswith("bfloat16_") and RECIPES[name].remedy)),
    ):  # fmt: skip
        if some := same.where(recipe=recipes):
            yield some.verdict(
                claim,
                as_good,
                unit="test accuracy above float32",
                why=some.listed(as_good, words, 30),
                method=f"paired t by seed, margin {MARGIN:g}; runs that diverged are among them",
            )
    return same


def chains(rows: pd.DataFrame) -> pd.DataFrame:
    """The largest magnitude of every tensor in the order of execution: median over runs, at the first overflow."""
    largest = rows[rows["metric"] == "largest"].sort_values("step", kind="stable")
    starts = largest.groupby("case")["step"].transform("min")
    by = ["net", "recipe", "layer_index", "layer", "direction"]
    table = largest[largest["step"] == starts].groupby(by, sort=False)["value"]
    return table.agg(largest="median", n="size").reset_index()


@drawing.figure(
    "accuracy", "What each recipe ends at, against float32",
    lambda accuracy: f"Difference of test accuracy, mean of {accuracy['n'].min()} pairs of one seed, intervals that "
    f"hold at once; grey: the margin of {MARGIN:g}, linear inside it and logarithmic outside.",
)  # fmt: skip
def draw_accuracy(accuracy: pd.DataFrame) -> Any:
    """Differences from float32, a panel a network."""
    shown = accuracy.assign(net=accuracy["net"].map(LABELS))
    axes = {"xscale": "symlog", "xlabel": "test accuracy above float32"}
    return drawing.panels(shown, "net", drawing.forest, at="recipe", by="answer", margin=MARGIN, axes=axes, most=9)


@drawing.figure(
    "chains", "Where numbers leave float16: a pass, tensor by tensor",
    "Largest magnitude in each layer's output, forward, and then in its gradient, backward: median of the runs, at the "
    "first overflow, or of float32 at the first step; equal lines lie on each other. Top: larger, or not finite.",
)  # fmt: skip
def draw_chains(chains: pd.DataFrame) -> Any:
    """Magnitudes along a pass, for the networks in which something overflows."""
    tensors = chains[chains["direction"].isin(["activation", "activation_gradient"])]
    broken = tensors.loc[np.isinf(tensors["largest"]), "net"].unique()
    shown = tensors[tensors["net"].isin(broken) & tensors["recipe"].isin([REFERENCE, *HALF])]
    shown = shown.assign(largest=shown["largest"].clip(1 / TOP, TOP), net=shown["net"].map(LABELS))

    def chain(axis: Any, rows: pd.DataFrame, **options: Any) -> None:
        drawing.lines(axis, rows, "place", "largest", marks=False, **options)
        axis.axhline(formats.get("float16").max, color=INK, ls="--", lw=0.9, label="largest of float16")
        back = rows.loc[rows["direction"] == "activation_gradient", "place"].min()
        axis.axvline(back - 0.5, color=GREY, ls=":", lw=0.9, label="back from here")

    axes = {"yscale": "log", "xlabel": "tensor, in the order of execution", "ylabel": "largest magnitude"}
    shown["place"] = shown.groupby(["net", "recipe"])["layer_index"].rank()
    return None if shown.empty else drawing.panels(shown, "net", chain, by="recipe", axes=axes)


METHOD = f"""**Training.** Every recipe trains the same networks from the same weights (float32's, rounded) on the same
batches of real digits, at one learning rate with which float32 trains well. So the question is what another format does
to a training that works, not which rate would suit it. The arithmetic is the device's own. `autocast` is torch.autocast
over float32 weights; `scaled` adds torch.amp.GradScaler with its defaults; `float16` and `bfloat16` have weights,
gradients, optimizer and loss in 16 bits; beside them `master` steps float32 weights, `kahan` keeps what each update
lost, `stochastic` rounds up or down by chance, the latter two with the optimizer's state in 16 bits. Without a scaler a
run ends at its first overflow, and counts with the accuracy of its last weights. Micikevicius et al. (2018, "Mixed
Precision Training", arXiv:1710.03740) recommend float32 weights beside and loss scaling for float16. The networks that
overflow were placed with other seeds than these. The first tensor that is not finite is found by repeating that step's
pass under the probe. Steps to a target (a share of mini-batches right, mean of {training.WINDOW}) are ratios to
float32's, margin {PACE - 1:.0%}; a run that never arrives leaves no ratio."""
PART = Part(
    "training", (EXPLODING, AUTOCAST, PURE, MENDED, *answer.ASKED), SIZES, grids, run, analyse,
    (draw_accuracy, draw_chains, answer.draw_costs), METHOD + answer.METHOD, shown=("answer", "overflows"),
)  # fmt: skip
