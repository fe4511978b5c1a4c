"""Warm-up: where it helps, predicted before training from the learning rate times the sharpness at the start."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from depthgauge import curvature, data, drawing, models, replicas, stats, training
from depthgauge.drawing.palette import GREY
from depthgauge.frames import groups
from depthgauge.initialization import gaussian
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import Question, above, agrees
from depthgauge.study import Case, Context, Grid, Rows
from depthgauge.verdict import Claim, Sentence

PREDICTED = Claim(
    "learning_rate/warmup",
    "whether warm-up helps follows, before training, from the learning rate times the sharpness at the start",
)
THRESHOLD = Claim(
    "learning_rate/warmup_threshold",
    "warm-up begins to help at the optimizer's threshold, 2 (1 + momentum) over the sharpness at the start",
)
KEYS = ["network", "momentum", "ratio"]
METRICS = ("loss_at_start", "loss", "sharpness")
HELP = 0.1  # nats of training loss: warm-up that saves less does not help
FACTOR = 2.0  # thresholds within this factor are the predicted one
RATIOS = tuple(float(f"{2 ** (k / 2):.3g}") for k in range(-7, 8, 2))  # rate over the threshold, never 1
SIZES = sizes(
    "nets momenta seeds steps examples", quick=((), (), 0, 0, 0),
    standard=(("wide", "deep", "large_gain", "small_gain", "layer_norm", "tanh", "softmax"), (0.0, 0.9), 24, 80, 100),
    full=(("wide", "deep", "large_gain", "small_gain", "layer_norm", "tanh", "softmax"), (0.0, 0.9), 40, 400, 500),
    tiny=(("wide", "layer_norm"), (0.0,), 5, 6, 20),
)  # fmt: skip


@dataclass(frozen=True)
class Net:
    """A fully connected network of `depth` hidden layers, weights from N(0, sigma_w^2 / fan-in)."""

    depth: int
    width: int = 32
    activation: str = "relu"
    norm: str = "none"
    sigma_w: float = 2**0.5


NETS = {
    "wide": Net(2, 64), "deep": Net(8), "large_gain": Net(3, sigma_w=2.5), "small_gain": Net(3, sigma_w=0.7),
    "layer_norm": Net(4, norm="layer"), "tanh": Net(4, activation="tanh", sigma_w=1.0), "softmax": Net(0),
}  # fmt: skip


def grids(
    *, nets: tuple[str, ...], momenta: tuple[float, ...], seeds: int, steps: int, examples: int
) -> Iterator[Grid]:  # fmt: skip
    """Every network with each momentum, at rates below and above the threshold, with and without warm-up."""
    if nets:
        yield Grid(
            {"network": nets, "momentum": momenta, "ratio": RATIOS, "warmup": (0, steps // 2)},
            {"steps": steps, "examples": examples}, seeds, ("ratio", "warmup", "seed"), 1000,
        )  # fmt: skip


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """Gradient descent on a few digits; each network's rate is its ratio times its own threshold at the start."""
    shared, digits = cases[0], data.load("digits").to(context.device)
    net, momentum, steps = NETS[shared.text("network")], shared.number("momentum"), shared.integer("steps")
    x, y = digits.train.x[: shared.integer("examples")], digits.train.y[: shared.integer("examples")]
    template = models.build(
        "mlp", input_shape=digits.input_shape, classes=digits.classes, activation=net.activation, norm=net.norm,
        depth=net.depth, width=net.width,
    )  # fmt: skip

    def drawn(some: Sequence[int]) -> replicas.Stack:
        return replicas.stack(template, some, gaussian(net.sigma_w), device=context.device)

    seeds = [case.random_seed("network", "steps", "seed") for case in cases]
    found = curvature.of_replicas(drawn(every := sorted(set(seeds))), x, y, tolerance=0.01)
    sharpness = {seed: each.value for seed, each in zip(every, found, strict=True)}
    for warmup in sorted({case.integer("warmup") for case in cases}):
        own = [(case, seed) for case, seed in zip(cases, seeds, strict=True) if case.integer("warmup") == warmup]
        stack = drawn([seed for _, seed in own])
        rates = [2 * (1 + momentum) * case.number("ratio") / sharpness[seed] for case, seed in own]
        loop = replicas.Loop(batch=len(x), steps=steps, schedule=lambda step, n=warmup: min(1.0, (step + 1) / (n + 1)))  # type: ignore[misc]
        ended = replicas.train(stack, x, y, replicas.SGD(rates, momentum=momentum), loop).stack
        start, end = (replicas.evaluate(each, x, y).loss for each in (stack, ended))
        for (case, seed), *values in zip(own, start, end, strict=True):
            for metric, value in zip(METRICS, (*values, sharpness[seed]), strict=True):
                yield case.rows(metric, float(value))


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """The loss that warm-up saves at each rate, the predictions that were right, and where it begins to help."""
    runs = training.table(rows, *KEYS, "warmup", "seed", metrics=METRICS)
    if runs.empty:
        return
    runs["network"] = runs["network"].str.replace("_", " ")
    runs["ends"] = np.fmin(runs["loss"], runs["loss_at_start"])
    runs["kind"] = np.where(runs["warmup"] > 0, "warm", "cold")
    pairs = runs.pivot_table(index=[*KEYS, "seed"], columns="kind", values="ends", sort=False).dropna()
    if set(pairs) != {"warm", "cold"}:
        return
    pairs = pairs.assign(saved=pairs["cold"] - pairs["warm"]).reset_index()
    sharp = runs.drop_duplicates(["network", "seed"]).groupby("network", sort=False)["sharpness"].median()
    question = helped(pairs)
    share = Question.share("predictions", *_right(question), counted="conditions")
    further = {
        key: {"predicted_to_help": key[2] > 1, "helps": above(c), "sharpness": sharp[key[0]],
              **{name: own[name].median() for name in ("cold", "warm")}}
        for (key, own), c in zip(groups(pairs, KEYS), question.members.values(), strict=True)
    }  # fmt: skip
    yield question.table(further)
    yield from predictions(question, share)
    yield from thresholds(pairs)


def helped(pairs: pd.DataFrame) -> Question:
    """Loss without warm-up minus loss with it, by network, momentum and rate; a momentum is a family."""
    asked = {
        key: stats.paired(own["cold"], own["warm"], margin=HELP, test="median") for key, own in groups(pairs, KEYS)
    }
    label = "{network} with momentum {momentum:g} at {ratio:g} of the threshold"
    return Question.of(
        "warmup", KEYS, asked, label=label, reference="nothing saved", family=lambda momentum, **_: momentum
    )


def _right(question: Question) -> tuple[int, int]:
    """How many of the decided cells were predicted rightly, and of how many."""
    decided = [(key[2] > 1) == answer for key, c in question.members.items() if (answer := above(c)) is not None]
    return sum(decided), len(decided)


def predictions(question: Question, share: Question) -> Iterator[Answer]:
    """The share of right predictions against a half, and beside that of predicting that it never helps."""
    yield share.table()
    right, decided = _right(question)
    networks = len({network for network, *_ in question.members})
    helps = {key: answer for key, c in question.members.items() if (answer := above(c)) is not None}
    below, beyond = ([answer for key, answer in helps.items() if (key[2] > 1) == which] for which in (False, True))
    counts = (
        f"{sum(beyond)} of {len(beyond)} conditions (network, momentum and rate) above the threshold, and in "
        f"{sum(below)} of {len(below)} below"
    )
    yield Sentence(
        f"Warm-up lowers the loss by more than {HELP:g} nats in {sum(helps.values())} of {decided} combinations of "
        f"network, momentum and learning rate; {len(question) - decided} more are undecided.",
        claims=(PREDICTED.id,),
    )
    yield share.verdict(
        PREDICTED, above, unit="share of predictions",
        why=f"right in {right} of {decided}: warm-up helps in {counts} ({len(question) - decided} more are undecided); "
        f"to predict that it never helps would be right in {decided - sum(helps.values())}",
        method=f"predicted to help where the rate is above 2 (1 + momentum) over the sharpness at the start; helps: "
        f"saves more than {HELP:g} nats, median of pairs, corrected by momentum; exact binomial over conditions, of "
        f"which those of one of the {networks} networks are no independent draws",
    )  # fmt: skip


def thresholds(pairs: pd.DataFrame) -> Iterator[Answer]:
    """The rate, over the threshold, at which warm-up begins to save HELP, by network and momentum."""
    asked, further = {}, {}
    for key, lines in groups(pairs, ["network", "momentum"]):
        begins = []
        for _, own in groups(lines, "seed"):
            line = own.sort_values("ratio")
            at, side = stats.crossing(np.log(line["ratio"]), -line["saved"], -HELP)
            begins.append({0: np.exp(at), 1: np.inf, -1: 0.0}[side])
        asked[key] = stats.against(begins, 1.0, log=True, margin=FACTOR, test="median")
        further[key] = {"never": begins.count(np.inf), "always": begins.count(0.0)}
    question = Question.of("thresholds", ["network", "momentum"], asked, label="{network} with momentum {momentum:g}")
    yield question.table(further)
    words = {
        True: "warm-up begins to help at the threshold for",
        False: "elsewhere or nowhere for",
        None: "undecided for",
    }
    begins_at = question.read(lambda c: c.effect.value).items()
    values = ", ".join(f"{name} {value:.2g}" if np.isfinite(value) else f"{name} none" for name, value in begins_at)
    yield question.verdict(
        THRESHOLD, agrees, unit="times the threshold", why=f"{question.listed(agrees, words, 8)} (begins at: {values})",
        method=f"rate at which warm-up first saves {HELP:g} nats, over the threshold, interpolated over ln rate; "
        f"median over seeds, infinite where it helps at none that was tried, margin a factor of {FACTOR:g}",
    )  # fmt: skip


@drawing.figure(
    "warmup", "What warm-up saves, by learning rate over the threshold of the start",
    lambda warmup: f"Training loss without warm-up minus with it: median of {warmup['n'].min()} seeds, intervals that "
    "hold at once. A rate of 1 is 2 (1 + momentum) over the sharpness at the start; left of it no help is predicted.",
)  # fmt: skip
def draw_warmup(warmup: pd.DataFrame) -> Any:
    """Loss saved by ratio, a panel a momentum."""
    axes = {"xscale": "log", "xlabel": "learning rate over the threshold", "ylabel": "loss saved by warm-up, nats"}
    return drawing.panels(warmup, "momentum", _saved, by="network", axes=axes)


def _saved(axis: Any, rows: pd.DataFrame, **options: Any) -> None:
    drawing.estimates(axis, rows.drop(columns="predicted_to_help"), at="ratio", joined=True, **options)
    axis.axvline(1.0, color=GREY, ls="--", lw=1.2, label="predicted threshold")


METHOD = f"""**Warm-up.** Full-batch gradient descent on a few 8 x 8 digits, cross-entropy. Before training the
sharpness, the largest eigenvalue of the loss's Hessian, is measured of each network, and its rates are multiples of the
threshold 2 (1 + momentum) / sharpness beyond which descent on a quadratic is unstable. Each is trained with a constant
rate and with one that grows linearly over the first half of the steps. Kalra and Barkeshli (2024, "Why warmup the
learning rate?", arXiv:2406.09405) see warm-up help by letting the sharpness fall first. A loss counts as no more than
that at the start; {HELP:g} nats less is help. Runs end either way, so medians are compared, as was decided after
a trial run with other seeds."""
PART = Part("warmup", (PREDICTED, THRESHOLD), SIZES, grids, run, analyse, (draw_warmup,), METHOD, shown=("thresholds",))
