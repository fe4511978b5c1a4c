"""Weight decay: what it does to a weight in a step, where it helps, and whether its strength is rate x lambda."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from depthgauge import data, drawing, replicas, stats, training
from depthgauge.frames import groups, only, params_of
from depthgauge.initialization import scheme
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import Question, above, enumerated, judged, listed
from depthgauge.studies.regularization import decays, product
from depthgauge.studies.regularization.decays import OPTIMIZERS, OVERFITTING, TASKS, USUAL
from depthgauge.study import Case, Context, Grid, Rows
from depthgauge.verdict import Claim, Sentence

HELPS = Claim(
    "N37", "weight decay shrinks the weight before each step by (1 - lr * lambda); about 0.001 is usual; it helps when "
    "overfitting",
)  # fmt: skip
BETTER = 0.01  # test accuracy: a gain of less than a point is none
EXACT = 1e-9  # of decay's whole effect: the shrinkage is the formula's, up to rounding
METRICS = ("validation_accuracy", "test_accuracy", "train_accuracy")
KEYS = ["optimizer", "net", "task"]
OPEN = ("open_ended", "none_open_ended")
SIZES = sizes(
    "tasks steps width seeds thin", quick=((), 0, 0, 6, 1), standard=(tuple(TASKS), 400, 64, 10, 1),
    full=(tuple(TASKS), 600, 64, 20, 1), tiny=(("few", "noisy"), 6, 8, 5, 2),
)  # fmt: skip


def grids(tasks: tuple[str, ...], steps: int, width: int, seeds: int, thin: int) -> Iterator[Grid]:
    """The shrinkage of every optimizer; every rate and decay on every task, with normalization on the noisy one."""
    yield Grid({"optimizer": tuple(OPTIMIZERS)}, {"stage": "shrinkage"}, seeds, ("optimizer", "seed"), 1000)
    for net, task in (
        *(("plain", task) for task in tasks),
        *(("normalized", task) for task in tasks if task == "noisy"),
    ):
        for name, optimizer in OPTIMIZERS.items():
            if optimizer.rates and (net == "plain" or name == "AdamW"):
                yield Grid(
                    {"lr": optimizer.rates[::thin], "decay": optimizer.decays},
                    {"stage": "training", "optimizer": name, "net": net, "task": task, "steps": steps, "width": width,
                     "batch": 32},
                    seeds, ("lr", "decay", "seed"), 1000, selection=3,
                )  # fmt: skip


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """The difference of PyTorch's steps from the formula, or accuracies at the end of training."""
    if cases[0].text("stage") == "shrinkage":
        for case in cases:
            yield case.rows("off", decays.off(case.text("optimizer"), case.random_seed("seed")))
        return
    shared = cases[0]
    digits = data.load("digits").to(context.device)
    fit, validation = data.hold_out(digits.train, training.HELD_OUT)
    given = decays.examples(fit, shared.text("task"))
    seeds = [case.random_seed("seed", "width") for case in cases]  # of all rates, decays and optimizers: paired
    stack = replicas.stack(decays.network(shared), seeds, scheme("he"), device=context.device)
    optimizer = OPTIMIZERS[shared.text("optimizer")].stacked(
        lr=[case.number("lr") for case in cases], weight_decay=[case.number("decay") for case in cases]
    )
    loop = replicas.Loop(batch=shared.integer("batch"), steps=shared.integer("steps"))
    trained = replicas.train(stack, given.x, given.y, optimizer, loop).stack
    for metric, held in zip(METRICS, (validation, digits.test, given), strict=True):
        accuracy = replicas.evaluate(trained, held.x, held.y).accuracy
        yield from (case.rows(metric, float(value)) for case, value in zip(cases, accuracy, strict=True))


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """Shrinkage against the formula, the gain by decay, and the map's spread along equal products."""
    shrinking = rows[rows["metric"] == "off"]
    if shrinking.empty:
        return
    by = params_of(shrinking, "optimizer").join(only(shrinking, "off"))
    worst = by.groupby("optimizer", sort=False)["value"].agg(value="max", draws="size").reset_index()
    yield "shrinkage", worst.assign(exact=worst["value"] < EXACT)
    exact = {
        f"shrinking with {name}": bool(most < EXACT)
        for name, most in zip(worst["optimizer"], worst["value"], strict=True)
    }
    runs = training.table(rows[rows["metric"] != "off"], *KEYS, "lr", "decay", "steps", "seed", metrics=METRICS)
    runs = training.tunable(runs.astype({"seed": int}), KEYS) if len(runs) else runs
    yield from helps(runs, exact, worst)
    if runs.empty:  # at quick
        yield from ((name, runs) for name in ("decay_gains", "decay_map", "decay_spreads"))
    else:
        yield from product.answers(runs[runs["task"] == "noisy"])


def _open(chosen: pd.DataFrame) -> bool:
    return bool(training.open_ended(chosen, BETTER).any())


def _tried(own: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Reported runs at the best lambda and rate, and at the usual lambda; `open`: better may lie outside the grid."""
    decayed = own[own["decay"] > 0]
    settings = decayed.assign(setting=decayed.groupby(["decay", "lr"]).ngroup())
    best = training.tuned(settings, KEYS, rate="setting").set_index("seed")
    decay, lr = best["decay"].iloc[0], best["lr"].iloc[0]
    lines = (
        training.choices(decayed[decayed["decay"] == decay], KEYS),
        training.choices(decayed[decayed["lr"] == lr], KEYS, rate="decay"),
    )
    tried = {"the best": best.assign(open=any(map(_open, lines)))}
    if USUAL in set(own["decay"]):
        usual = training.tuned(own[own["decay"] == USUAL], KEYS).set_index("seed")
        tried["0.001"] = usual.assign(open=_open(usual))
    return tried


def _gains(runs: pd.DataFrame) -> tuple[dict[Any, stats.Comparison], dict[Any, dict[str, Any]]]:
    """Gains by decay, and what belongs to them in the table, by optimizer, examples and lambda."""
    asked, further = {}, {}
    for (name, _, task), own in groups(runs[runs["net"] == "plain"], KEYS):
        none = training.tuned(own[own["decay"] == 0], KEYS).set_index("seed")
        for what, one in _tried(own).items():
            pair = one["test_accuracy"], none["test_accuracy"].reindex(one.index)
            gain = stats.paired(*pair, margin=BETTER, test="t")
            ends = {"open_ended": bool(one["open"].any()), "none_open_ended": _open(none)}
            better = gain.effect.value > BETTER  # with another rate, the network without decay might be as good
            asked[name, TASKS[task], what] = training.unsettled(
                gain, ends["none_open_ended" if better else "open_ended"]
            )
            further[name, TASKS[task], what] = {
                "lambda": one["decay"].iloc[0], "lr": one["lr"].iloc[0], "none_lr": none["lr"].iloc[0],
                "with": pair[0].mean(), "without": pair[1].mean(), "without_train": none["train_accuracy"].mean(),
                **ends,
            }  # fmt: skip
    return asked, further


def helps(runs: pd.DataFrame, exact: dict[str, bool], worst: pd.DataFrame) -> Iterator[Answer]:
    """N37: test accuracy with the best decay and with the usual one against none, each at the rate tuned for it.

    Where a rate or lambda outside the grid may undo an answer, there is none.
    """
    asked, further = _gains(runs)
    words = {True: "exact:", False: "something else:", None: "undecided:"}
    if not asked:
        furthest = worst.sort_values("value", kind="stable").iloc[-1]
        yield judged(
            HELPS, exact, listed(exact, words), method=f"the shrinkage alone, as no network is trained; {STEPPED}",
            observed=float(furthest["value"]), predicted=0.0, reference="exact", n=int(furthest["draws"]),
            counted="draws", unit="of the effect of decay", table="shrinkage", condition=str(furthest["optimizer"]),
            answer="exact" if furthest["value"] < EXACT else "something else",
        )  # fmt: skip
        return
    question = Question.of(
        "decay_gains", ("optimizer", "examples", "decay"), asked, label="{optimizer}, {examples}, {decay} lambda",
        reference="none", family=lambda decay, **_: decay,
    )  # fmt: skip
    yield question.table(further)
    yield from _helped(question, further, exact)


def _helped(question: Question, further: dict[Any, dict[str, Any]], exact: dict[str, bool]) -> Iterator[Answer]:
    words = {True: "exact:", False: "something else:", None: "undecided:"}
    chosen = question.select(
        lambda optimizer, examples, decay: decay == "the best" and examples in {TASKS[task] for task in OVERFITTING}  # noqa: ARG005 - columns
    )
    usual = question.where(decay="0.001")
    told = {True: "more than a point by", False: "not by", None: "undecided:"}
    decided = {key for key, c in chosen.members.items() if above(c) is not None}
    settled = chosen.select(lambda **key: tuple(key.values()) in decided)
    ends = [question.words(key) for key in chosen.members if any(further[key][end] for end in OPEN)]
    edge = f"; a rate or lambda beyond the grid may do better, with decay or without, for {enumerated(ends, 6)}"
    yield chosen.verdict(
        HELPS, {**exact, **chosen.read(above)}, unit="test accuracy",
        why=f"{listed(exact, words)}; test accuracy gains {chosen.listed(above, told, 6)}; at lambda 0.001, "
        f"{usual.listed(above, told, 9)}{edge if ends else ''}",
        method=f"{STEPPED}; decay helps where the accuracy on test digits is more than {BETTER:g} above that without, "
        "lambda and rate chosen together by validation accuracy of other seeds, against the rate chosen without decay; "
        "paired t by seed; undecided where a rate at the end of the grid was chosen that gains more than that on the "
        "next one, and a better one would undo the answer. That 0.001 is "
        "usual is no matter of measurement: its gain is told; for AdamW, whose lambda is multiplied by a rate of that "
        "size, it is next to none and not asked",
        shown=settled.furthest if settled else None,
    )  # fmt: skip
    yield from _gain_sentence(chosen, further)


STEPPED = (
    f"shrinkage: {decays.STEPS} steps of torch.optim in float64 on random gradients, rate {decays.LR:g}, lambda "
    f"{decays.DECAY:g}, against multiplying the weight by 1 - lr * lambda before each step of the same optimizer "
    f"without decay; largest distance over the effect of decay below {EXACT:g}: exact"
)


def _gain_sentence(chosen: Question, further: dict[Any, dict[str, Any]]) -> Iterator[Answer]:
    gains = {key: c for key, c in chosen.members.items() if key[1] == TASKS["noisy"] and above(c)}
    if gains:
        key = max(gains, key=lambda each: gains[each].effect.value)
        at = further[key]
        yield Sentence(
            f"Where a fifth of 300 labels is wrong, weight decay lifts test accuracy from {at['without']:.1%} to "
            f"{at['with']:.1%} ({key[0]}, lambda {at['lambda']:.2g} and rate {at['lr']:.2g}, chosen by other "
            "seeds).",
            figure="decay_gains", claims=(HELPS.id,),
        )  # fmt: skip


@drawing.figure(
    "decay_gains", "What weight decay gains in test accuracy, by what is trained on",
    lambda decay_gains: f"Test accuracy minus that without decay, each at its own tuned rate; mean of "
    f"{decay_gains['n'].min()} seeds, intervals of 95 % at once.",
)  # fmt: skip
def draw_gains(decay_gains: pd.DataFrame) -> Any:
    """Gains, a row the examples, a colour the decay, a panel an optimizer."""
    axes = {"xlabel": "gain in test accuracy"}
    return drawing.panels(
        decay_gains, "optimizer", drawing.estimates, at="examples", by="decay", axes=axes, shared="both"
    )


@drawing.figure(
    "shrinkage", "SGD and AdamW shrink the weight first; with momentum or Adam's scaling L2 does something else",
    "Distance from shrinking by 1 - lr x lambda before each step, over the effect of decay, after 50 steps in float64; "
    "largest of the draws; at 1e-17 it is 0.",
)  # fmt: skip
def draw_shrinkage(shrinkage: pd.DataFrame) -> Any:
    """Distance from the formula, a row an optimizer."""
    axes = {"xscale": "log", "xlabel": "distance over decay's effect"}
    ends = dict.fromkeys(("value", "low_95", "high_95"), shrinkage["value"].clip(lower=1e-17))
    return drawing.panels(shrinkage.assign(**ends), "", drawing.estimates, at="optimizer", axes=axes)


METHOD = """**Weight decay.** Networks of two hidden layers on 8 x 8 digits: plain ReLU, or with every layer normalized,
without gain and bias, so that no weight's size matters. Rates and lambdas lie on a grid in factors of 4. PyTorch's
AdamW multiplies lambda by the learning rate; Loshchilov and Hutter (2019) multiply by the schedule alone, so that their
lambda is PyTorch's rate x lambda. Diverged runs stay in, at the accuracy that they end with."""
PART = Part(
    "weight_decay", (HELPS, product.PRODUCT), SIZES, grids, run, analyse,
    (draw_shrinkage, draw_gains, *product.FIGURES), METHOD,
)  # fmt: skip
