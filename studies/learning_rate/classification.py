"""Classification with cross-entropy, with squared loss on one-hot targets and with a hinge, each at its own rate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from depthgauge import data, drawing, models, replicas, stats, training
from depthgauge.conditions import undecided
from depthgauge.frames import groups
from depthgauge.initialization import Scheme, scheme
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import Question, below, spelled
from depthgauge.replicas.objective import Loss
from depthgauge.study import Case, Context, Grid, Rows
from depthgauge.verdict import Claim, Sentence

NEEDED = Claim("N49", "every classification needs cross-entropy as its loss")
MARGIN = 0.02  # test accuracies nearer to each other than this are the same
FLAT = 0.01  # validation accuracy: where the last step to an end of the grid won less, a further one does not matter
KEYS = ("data", "depth", "init", "loss")
REFERENCE = "cross_entropy"
ENTROPY = "cross-entropy"  # in words
RATES = tuple(2.0**k for k in range(-8, 3))
SIZES = sizes(
    "tasks seeds steps width rates", quick=((), 0, 0, 0, ()),
    standard=((("digits", 0), ("digits", 2), ("digits", 6)), 8, 600, 32, RATES),
    full=((("digits", 0), ("digits", 2), ("digits", 6), ("mnist5k", 2), ("fashion5k", 2)), 16, 3000, 128, RATES),
    tiny=((("digits", 1),), 5, 5, 8, (0.1, 0.5)),
)  # fmt: skip


def squared(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean over examples of half the squared distance of the scores from one-hot targets."""
    classes = torch.arange(outputs.shape[-1], device=outputs.device)
    return (outputs - (targets.unsqueeze(-1) == classes).to(outputs)).square().sum(-1).mean() / 2


def hinge(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean over examples of what the other classes' scores miss of a distance 1 below the right one's."""
    short = (1 + outputs - outputs.gather(-1, targets.unsqueeze(-1))).clamp_min(0)
    return short.sum(-1).mean() - 1  # the right class is short of itself by 1


# PyTorch's own draws, of scores that start small, and He's, of scores that start of order 1.
INITIALIZE: Mapping[str, Scheme | None] = {"default": None, "he": scheme("he")}
LOSSES: Mapping[str, Loss] = {REFERENCE: REFERENCE, "squared": squared, "hinge": hinge}
Tasks = tuple[tuple[str, int], ...]  # data, hidden layers


def grids(*, tasks: Tasks, seeds: int, steps: int, width: int, rates: tuple[float, ...]) -> Iterator[Grid]:
    """Every loss on every task, at every rate; at quick there are none."""
    for name, depth in tasks:
        yield Grid(
            {"init": tuple(INITIALIZE), "loss": tuple(LOSSES), "lr": rates},
            {"data": name, "depth": depth, "width": width, "steps": steps, "batch": 32, "target": 0.9}, seeds,
            ("lr", "seed"), 1000, selection=3,
        )  # fmt: skip


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """SGD of one loss; weights, and the order of the data, are those of the seed for every loss."""
    shared = cases[0]
    dataset = data.load(shared.text("data")).to(context.device)
    template = models.build(
        "mlp", input_shape=dataset.input_shape, classes=dataset.classes, depth=shared.integer("depth"),
        width=shared.integer("width"),
    )  # fmt: skip
    recipe = training.Recipe(
        replicas.SGD([case.number("lr") for case in cases]), shared.integer("steps"), shared.integer("batch"),
        shared.number("target"), loss=LOSSES[shared.text("loss")],
    )  # fmt: skip
    seeds = [case.random_seed("data", "depth", "width", "seed") for case in cases]
    yield from training.outcomes(
        cases, template, dataset, recipe, training.Draw(seeds, INITIALIZE[shared.text("init")])
    )


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """Test accuracy of each loss at its tuned rate, against cross-entropy's, seed by seed."""
    runs = training.table(rows.assign(run=rows["case"]), "run", *KEYS, "lr", "seed")
    runs = runs.assign(seed=pd.to_numeric(runs["seed"]), loss=runs["loss"].str.replace("_", "-"))
    runs = training.tunable(runs, KEYS)
    if runs.empty:
        return
    reported = training.tuned(runs, KEYS)
    reported["open"] = training.open_ended(reported, FLAT)
    yield "classifiers", pd.DataFrame(_cells(reported))
    yield "classified", _curves(runs[runs["seed"] >= 0])
    asked = {}
    for key, lines in groups(reported, list(KEYS[:-1])):
        by_loss = {loss: own.set_index("seed") for loss, own in groups(lines, "loss")}
        entropy = by_loss.pop(ENTROPY, lines.iloc[:0])
        for loss, own in by_loss.items():
            both = own.index.intersection(entropy.index)
            pair = own.loc[both, "test_accuracy"], entropy.loc[both, "test_accuracy"]
            edge = own["open"].any() or entropy["open"].any()
            asked[*key, loss] = training.unsettled(stats.paired(*pair, margin=MARGIN, test="t"), edge)
    label = "{loss} loss on {data} with {depth:.0f} hidden layers and {init} draws"
    question = Question.of("accuracy", KEYS, asked, label=label, reference="cross-entropy")
    if not question:
        return
    yield question.table()
    words = {
        True: "cross-entropy is better than",
        False: "cross-entropy is not better than",
        None: "undecided:",
    }
    yield question.verdict(
        NEEDED, below, unit="test accuracy above cross-entropy's", why=question.listed(below, words, 12),

        method=f"paired t by seed, each loss at the rate that other seeds choose for it, margin {MARGIN:g}",
    )  # fmt: skip
    for init in dict.fromkeys(reported["init"]):
        squared = question.where(init=init, loss="squared")
        if gains := [c.effect.value for c in squared.members.values()]:
            ends = " to ".join(f"{100 * end:+.1f}".replace("-", "−") for end in dict.fromkeys((min(gains), max(gains))))
            named = {"he": "He's", "default": "torch's default"}.get(str(init), str(init))
            yield Sentence(
                f"With {named} initialization squared loss ends {ends} points of test accuracy above cross-entropy, by "
                f"network{undecided(squared.read(below).values())}.",
                claims=(NEEDED.id,),
            )


def _cells(reported: pd.DataFrame) -> Iterator[dict[str, Any]]:
    for key, own in groups(reported, list(KEYS)):
        ends = {"lr": own["lr"].iloc[0], "open_ended": bool(own["open"].any()), "diverged": int(own["diverged"].sum())}
        yield {
            **dict(zip(KEYS, key, strict=True)), "n": len(own), **ends,
            **spelled("test_accuracy", stats.mean(own["test_accuracy"].to_numpy())),
        }  # fmt: skip


def _curves(runs: pd.DataFrame) -> pd.DataFrame:
    """Median and middle of the seeds' test accuracy at each rate."""
    lines = []
    for (name, depth, init, loss), own in groups(runs, list(KEYS)):
        by_rate = own.pivot_table(index="seed", columns="lr", values="test_accuracy", dropna=False)
        at = {"task": f"{name}, {depth:.0f} hidden layers, {init}", "loss": loss, "n": len(by_rate)}
        lines.append(pd.DataFrame({**at, "lr": by_rate.columns, **stats.band(by_rate.to_numpy())}))
    return pd.concat(lines, ignore_index=True)


@drawing.figure(
    "classified", "Test accuracy against the learning rate, by the loss that is minimized",
    lambda classified: f"Median and middle 90 % of {classified['n'].min()} seeds; hidden layers, and PyTorch's default "
    "or He's draws.",
)  # fmt: skip
def draw_curves(classified: pd.DataFrame) -> Any:
    """Accuracy by rate, a panel a task."""
    axes = {"xscale": "log", "ylabel": "test accuracy"}
    return drawing.panels(classified, "task", drawing.profile, by="loss", x="lr", axes=axes)


METHOD = """**Classification.** Fully connected ReLU networks (0 hidden layers: softmax regression) trained by SGD from
the same weights on the same batches with each loss: cross-entropy, half the squared distance of the scores from one-hot
targets, and the multi-class hinge of Weston and Watkins (1999). Each has the learning rate that seeds which are not
reported choose by validation. Weights are PyTorch's own draws, or He's, with which scores start further from a one-hot
target. Hui and Belkin (2021, "Evaluation of neural architectures trained with square loss vs cross-entropy in
classification tasks", arXiv:2006.07322) find squared loss as good, at other sizes. That the draws matter was seen in a
trial run with other seeds."""
PART = Part(
    "classification", (NEEDED,), SIZES, grids, run, analyse, (draw_curves,), METHOD,
    training.further_rates(*KEYS, margin=FLAT, chunk=1000),
)  # fmt: skip
