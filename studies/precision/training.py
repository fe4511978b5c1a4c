"""Training in every recipe against float32: where it ends, how fast it gets there, and where it overflows."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import pandas as pd

from depthgauge import drawing, stats, training
from depthgauge.frames import groups
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import Question, agrees, enumerated, judged, listed
from depthgauge.studies.precision import answer, overflow
from depthgauge.studies.precision.answer import as_good
from depthgauge.studies.precision.nets import EXPLODE, LABELS, NETS
from depthgauge.studies.precision.recipes import RECIPES, REFERENCE, REMEDIES, kind_of
from depthgauge.studies.precision.runs import METRICS, train
from depthgauge.study import Case, Context, Grid, Rows
from depthgauge.verdict import Claim, Sentence, Verdict

EXPLODING = Claim("N28", "exploding gradients overflow float16")
AUTOCAST = Claim(
    "precision/autocast", "under autocast, with a GradScaler in float16, a network ends as accurate as in float32"
)
PURE = Claim("precision/pure", "with weights and optimizer in 16 bits, too, a network ends as accurate as in float32")
MENDED = Claim(
    "precision/mended",
    "float32 weights beside, Kahan summation and stochastic rounding each make a network with bfloat16 weights end as "
    "accurate as in float32",
)

PACE = Claim(
    "precision/pace",
    "under autocast, with a GradScaler in float16, a network takes as many steps to a target as in float32",
)
BALANCE = Claim("N27", "float16 is chosen because it balances accuracy and speed")
MEMORY = Claim("precision/memory", "mixed precision lowers the memory that a training needs to nearly a half")

ASKED = tuple(claim.id for claim in (AUTOCAST, PURE, MENDED, PACE))
MARGIN = 0.02  # test accuracy: recipes closer than this are called the same
SAME_PACE = 1.1  # steps to the target: up to 10 % more are none
AUTOCASTS = ("bfloat16_autocast", "float16_scaled")
REMEDIED = tuple(f"bfloat16_{remedy}" for remedy in REMEDIES)
KEYS = ("net", "recipe")
FEW = (REFERENCE, "bfloat16", *overflow.HALF)
QUICK = (
    ("Adam", tuple(name for name in RECIPES if name != "float16_master"), 60), ("high activations", FEW, 40),
    *((net, FEW[:4], 5) for net in EXPLODE),
)  # fmt: skip
BRAIN = tuple(name for name in RECIPES if RECIPES[name].format != "float16")  # large products in float16 take minutes
STANDARD = (
    *((net, tuple(RECIPES), 300) for net in ("SGD", "Adam", "slow SGD", "depth 10")),
    ("width 128", (*BRAIN, *overflow.HALF), 300), ("width 512", BRAIN, 100),
    ("LeNet-5", (*BRAIN, "float16_scaled"), 200),
    *((net, FEW, 200) for net in ("high activations", "low activations")), *((net, FEW, 20) for net in EXPLODE),
)  # fmt: skip
FULL = tuple((net, BRAIN if net == "width 512" else tuple(RECIPES), 1000) for net in NETS)
TINY = (
    ("Adam", (REFERENCE, "tf32", "bfloat16", "bfloat16_kahan", "float16_scaled"), 3),
    ("high activations", (REFERENCE, "float16"), 2), ("exploding tanh", overflow.UNSCALED, 1),
)  # fmt: skip
SIZES = sizes(
    "plan target seeds blocks", quick=(QUICK, 0.5, 8, 15), standard=(STANDARD, 0.85, 8, 15),
    full=(FULL, 0.9, 16, 31), tiny=(TINY, 0.2, 5, 8),
)  # fmt: skip


Plan = tuple[tuple[str, tuple[str, ...], int], ...]  # network, recipes, steps


def grids(plan: Plan, target: float, seeds: int, blocks: int) -> Iterator[Grid]:
    """Every network in its recipes; then a step of each in turns with one in float32."""
    for net, recipes, steps in plan:
        trained = {**NETS[net], "net": net, "steps": steps, "target": target}
        yield Grid(
            {"recipe": recipes},
            trained,
            seeds,
            chunk=seeds,
            claims=(EXPLODING.id,) if net in EXPLODE else ASKED,
        )
    for net, recipes, _ in plan:
        if net not in EXPLODE:
            timed = {**NETS[net], "net": net, "blocks": blocks}
            yield Grid(
                {"recipe": recipes},
                timed,
                together=("recipe",),
                chunk=100,
                exclusive=True,
                claims=(BALANCE.id, MEMORY.id),
            )


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """Train one network a case, or time a step of it; what a device cannot do is told."""
    for case in cases:
        if not RECIPES[case.text("recipe")].runs_on(context.device):
            yield case.rows("absent", 1.0)
        else:
            yield from answer.timed(case, context) if case.get("blocks") else train(case, context)


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """Accuracy and steps against float32 by network and recipe; what to choose; overflows; what was not made."""
    yield from measured(rows)
    if absent := sorted(set(rows.loc[rows["metric"] == "absent", "recipe"])):
        yield Sentence(f"Without a measurement, as this device lacks the arithmetic: {', '.join(absent)}.")


def measured(rows: pd.DataFrame) -> Iterator[Answer]:
    """Answers of the runs that were made, the choice first."""
    runs = training.table(rows.assign(run=rows["case"]), "run", "net", "recipe", "seed", "steps", metrics=METRICS)
    if runs.empty:
        return
    runs["seed"] = pd.to_numeric(runs["seed"])
    first = overflow.first_overflows(rows)
    yield "training_runs", runs.drop(columns="run")
    same = yield from accuracy(runs)
    yield from answer.answers(rows, same, first, (BALANCE, MEMORY))
    yield from pace(runs)
    yield from overflow.overflows(runs, first)
    yield from overflow.exploding(runs, first, EXPLODING)
    yield "chains", overflow.chains(rows)


def against_float32(runs: pd.DataFrame) -> Iterator[tuple[tuple[str, str], pd.DataFrame, pd.DataFrame]]:
    """(network, recipe), its runs, and those of float32 with the same seeds; of networks that do not explode."""
    for net, lines in groups(runs[~runs["net"].isin(EXPLODE)], "net"):
        by_recipe = {recipe: own.set_index("seed") for recipe, own in groups(lines, "recipe")}
        reference = by_recipe.pop(REFERENCE, lines.iloc[:0])
        for recipe, own in by_recipe.items():
            both = own.index.intersection(reference.index)
            yield (net, recipe), own.loc[both], reference.loc[both]


def accuracy(runs: pd.DataFrame) -> Any:
    """Accuracy of every recipe against float32, seed by seed; returns the question."""
    asked, further = {}, {}
    for key, own, reference in against_float32(runs):
        asked[key] = stats.paired(own["test_accuracy"], reference["test_accuracy"], margin=MARGIN, test="t")
        further[key] = {"accuracy": own["test_accuracy"].mean(), "diverged": int(own["diverged"].sum())}
    question = Question.of(
        "accuracy", KEYS, asked, label="{recipe} with {net}", reference=REFERENCE, counted="training runs"
    )
    if question:
        yield question.table(further)
    words = {True: "as accurate as float32:", False: f"worse by more than {MARGIN:g}:", None: "undecided:"}
    method = f"paired t by seed, margin {MARGIN:g}; runs that diverged are among them"
    for claim, recipes in ((AUTOCAST, AUTOCASTS), (PURE, ("bfloat16", "float16")), (MENDED, REMEDIED)):
        if some := question.where(recipe=recipes):
            why = some.listed(as_good, words, 30)
            yield some.verdict(claim, as_good, unit="test accuracy above float32", why=why, method=method)
    return question


def pace(runs: pd.DataFrame) -> Iterator[Answer]:
    """Steps to the target against float32, seed by seed; one that does not arrive takes more than all its steps."""
    asked: dict[tuple[str, str], stats.Comparison] = {}
    further: dict[tuple[str, str], dict[str, Any]] = {}
    late: set[tuple[str, str]] = set()
    open_ones: set[tuple[str, str]] = set()
    for key, own, reference in against_float32(runs):
        if not (own["reached"].all() and reference["reached"].all()):
            if key[1] not in AUTOCASTS:
                continue
            if not reference["reached"].all():
                open_ones.add(key)
                continue
            late.add(key)
        steps, base = own["steps_to_target"], reference["steps_to_target"]
        asked[key] = stats.paired(steps, base, log=True, margin=SAME_PACE, test="t")
        taken = steps.where(own["reached"] > 0, math.inf).median()
        further[key] = {"steps": taken, "steps_in_float32": base.median(), "arrived": int(own["reached"].sum())}
    question = Question.of(
        "pace", KEYS, asked, label="{recipe} with {net}", reference=REFERENCE, counted="training runs",
        family=lambda recipe, **_: recipe in AUTOCASTS,
    )  # fmt: skip
    for key in late:  # of a lower bound an interval inside the margin says nothing
        further[key]["answer"] = str(stats.Answer.BEYOND if question.members[key].above else stats.Answer.INCONCLUSIVE)
    if question:
        yield question.table(further)
    if kept := question.where(recipe=AUTOCASTS):
        yield paced(kept, late, open_ones)
    elif open_ones:
        beside = enumerated(map(question.words, sorted(open_ones)), 9)
        yield judged(PACE, (), why=f"float32 itself does not always arrive at the target beside {beside}")


def paced(kept: Question, late: Collection[tuple[str, str]], open_ones: Collection[tuple[str, str]]) -> Verdict:
    """The verdict on the pace: as many steps as float32, or others.

    Of the `late`, whose ratio is a lower bound, more or undecided; undecided where float32 itself does not arrive.
    """
    words = {True: "as many steps as float32:", False: f"others by more than {SAME_PACE - 1:.0%}:", None: "undecided:"}
    said = {key: agrees(c) if key not in late else False if c.above else None for key, c in kept.members.items()}
    said.update((key, None) for key in sorted(open_ones))
    why = listed({kept.words(key): answer for key, answer in said.items()}, words, 30)
    bound, lost = (enumerated(map(kept.words, sorted(keys)), 9) for keys in (late, open_ones))
    unit = "times the steps in float32"
    return kept.verdict(
        PACE, said, unit={key: f"{unit}, at the least" if key in late else unit for key in kept.members},
        why=why + f"; not all runs arrive, so that the ratio is a lower bound, of {bound}" * bool(late)
        + f"; float32 itself does not always arrive beside {lost}" * bool(open_ones),
        method=f"steps to the target where float32 arrives, paired log-ratios by seed, t, margin {SAME_PACE:g}; a run "
        "that does not arrive counts with all its steps",
    )  # fmt: skip


@drawing.figure(
    "accuracy", "What each recipe ends at, against float32",
    lambda accuracy: f"Difference of test accuracy, mean of {accuracy['n'].min()} pairs of one seed, intervals that "
    f"hold at once; grey: the margin of {MARGIN:g}, linear inside it and logarithmic outside.",
)  # fmt: skip
def draw_accuracy(accuracy: pd.DataFrame) -> Any:
    """Differences from float32, a panel a kind of recipe, a row a network."""
    shown = accuracy.assign(net=accuracy["net"].map(LABELS), kind=accuracy["recipe"].map(kind_of))
    axes = {"xscale": "symlog", "xlabel": "test accuracy above float32"}
    options: dict[str, Any] = {"shared": "both", "size": (5.2, 1.6 + 0.4 * shown["net"].nunique())}
    return drawing.panels(shown, "kind", drawing.forest, at="net", by="recipe", margin=MARGIN, axes=axes, **options)


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
float32's where that arrives, margin {SAME_PACE - 1:.0%}; a run that does not counts with all its steps, by which its
ratio is a lower bound: more steps can be shown, as many cannot."""
PART = Part(
    "training", (EXPLODING, AUTOCAST, PACE, PURE, MENDED, BALANCE, MEMORY), SIZES, grids, run, analyse,
    (draw_accuracy, overflow.draw_chains, answer.draw_costs), METHOD + answer.METHOD,
    shown=("recommended", "overflows"),
)  # fmt: skip
