"""Additions in place of products: the gradient's reach through gates and shortcuts, and what training makes of it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from depthgauge import stats, training
from depthgauge.frames import groups, params_of
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import Question, below
from depthgauge.seeding import Purpose, generator
from depthgauge.studies.stabilizers import gating_figures as figures
from depthgauge.studies.stabilizers import gating_laws as laws
from depthgauge.studies.stabilizers import recurrent
from depthgauge.studies.stabilizers.recurrent import BASELINES, FEATURES, KINDS, OUTPUTS
from depthgauge.study import Case, Context, Grid, Rows
from depthgauge.verdict import Claim

STABLER = Claim("N06", "multiplication turned into addition is more stable (residual networks, LSTM)")
REACH = Claim(
    "stabilizers/reach", "the product of the forget gates predicts how many steps back the gradient of an LSTM's cell "
    "reaches at initialization",
)  # fmt: skip
OFF = Claim(
    "stabilizers/off_critical", "theory predicts how the gradient grows with depth where weights are 10 % off those "
    "that are critical without shortcuts, in stacks with them and without",
)  # fmt: skip
PRODUCTS = ("RNN", "orthogonal RNN", "identity RNN")  # what comes back is multiplied by their state weights
GAINS = (0.9, 1.1)  # of weights, over He's, which are critical for a plain stack
BACK = 100  # steps back at which recurrent gradients are compared
NEAR = 1.25  # margin of the distances of two gradients from size 1
ENDED = 0.05  # of the loss of that answer: what a rate beyond the grid would have to gain to matter
LEARNED = 0.5  # of the loss of the best answer that knows no input
BATCH = 4
RATES = (1e-3, 3e-3, 1e-2, 3e-2, 0.1)
SIZES = sizes(
    "seeds length width stack trained",
    quick=(8, 200, 32, (32, 96), ()),
    standard=(20, 500, 64, (64, 256), (("adding", "copying"), 6, 100, 500)),
    full=(40, 500, 64, (64, 384), (("adding", "copying"), 12, 100, 2000)),
    tiny=(6, 12, 8, (3, 12), (("adding",), 5, 8, 2)),
)  # fmt: skip


def grids(seeds: int, length: int, width: int, stack: tuple[int, int], trained: tuple[Any, ...]) -> Iterator[Grid]:
    """Every recurrent network and every stack at initialization; at quick no training."""
    yield Grid(
        {"kind": KINDS}, {"stage": "reach", "length": length, "width": width}, seeds, ("seed",), 100,
        claims=(STABLER.id, REACH.id),
    )  # fmt: skip
    yield Grid(
        {"kind": laws.STACKS, "gain": GAINS}, {"stage": "stack", "depth": stack[0], "width": stack[1]}, seeds,
        ("seed",), 100, claims=(STABLER.id, OFF.id),
    )  # fmt: skip
    if trained:
        tasks, runs, steps_back, steps = trained
        yield Grid(
            {"task": tasks, "kind": KINDS, "lr": RATES},
            {"stage": "train", "length": steps_back, "width": min(width, 24), "steps": steps}, runs, ("lr", "seed"),
            100, selection=2, claims=(STABLER.id,),
        )  # fmt: skip


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """Squared gradients at initialization by distance, or the loss after training over that of no knowledge."""
    stage, kind = cases[0].text("stage"), cases[0].text("kind")
    if stage == "train":
        yield from _trained(cases, context)
    elif stage == "reach":
        squares = _reached(kind, cases).to(torch.float64)
        for case, line in zip(cases, squares, strict=True):
            yield case.rows("square", line.numpy(), layer_index=np.arange(len(line)))
    else:
        for case in cases:
            yield case.rows("growth", math.log(_passed(case, kind)))


def _networks(kind: str, cases: Sequence[Case], task: str, dtype: torch.dtype) -> dict[str, Tensor]:
    width, length = cases[0].integer("width"), cases[0].integer("length")
    drawn = (generator(case.random_seed("seed", "width", "stage"), Purpose.WEIGHTS) for case in cases)
    return recurrent.stacked(
        [recurrent.draw(kind, (width, FEATURES[task], OUTPUTS[task][1]), length, each) for each in drawn], dtype
    )


def _reached(kind: str, cases: Sequence[Case]) -> Tensor:
    """Mean squares (R, length) of the gradient by steps back, inputs those of the adding task."""
    length, width = cases[0].integer("length"), cases[0].integer("width")
    x, v = [], []
    for case in cases:
        x.append(recurrent.sequences("adding", BATCH, length, generator(case.random_seed("seed"), Purpose.INPUTS))[0])
        draws = generator(case.random_seed("seed"), Purpose.COTANGENT)
        v.append(torch.randn(BATCH, width, generator=draws, dtype=torch.float64))
    with torch.enable_grad():
        weights = _networks(kind, cases, "adding", torch.float64)
        return recurrent.gradients(kind, weights, torch.stack(x).double(), torch.stack(v)).detach()


def _passed(case: Case, kind: str) -> float:
    """Squared norm of the gradient at the input of a ReLU stack over that at its output, at initialization."""
    draws, given = (generator(case.random_seed("seed", "width"), each) for each in (Purpose.WEIGHTS, Purpose.INPUTS))
    width, depth, gain = case.integer("width"), case.integer("depth"), case.number("gain")
    shortcut, scale = float(kind != "plain"), depth**-0.5 if kind == "scaled residual" else 1.0
    x = torch.randn(BATCH, width, generator=given, dtype=torch.float64)
    maps, masks = [], []
    for _ in range(depth):
        maps.append(torch.randn(width, width, generator=draws).double() * (scale * gain * math.sqrt(2 / width)))
        masks.append(x > 0)
        x = shortcut * x + x.relu() @ maps[-1].T
    v = torch.randn(BATCH, width, generator=generator(case.random_seed("seed"), Purpose.COTANGENT), dtype=torch.float64)
    start = float(v.square().sum())
    for weight, mask in zip(reversed(maps), reversed(masks), strict=True):
        v = shortcut * v + (v @ weight) * mask
    return float(v.square().sum()) / start


def _trained(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    shared = cases[0]
    task, kind = shared.text("task"), shared.text("kind")
    draws = generator(shared.random_seed("task", "length"), Purpose.DATA)
    given = recurrent.sequences(task, 4000, shared.integer("length"), draws)
    moved = given[0].to(context.device), given[1].to(context.device)
    weights = {name: each.to(context.device) for name, each in _networks(kind, cases, task, torch.float32).items()}
    loss = recurrent.train(
        task, kind, weights, moved, rates=[case.number("lr") for case in cases],
        seeds=[case.random_seed("seed", "task") for case in cases], batch=20, steps=shared.integer("steps"),
    )  # fmt: skip
    yield from (case.rows("loss", float(value)) for case, value in zip(cases, loss, strict=True))


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """Reaches and growths against theory, products against sums, and what was learned."""
    params = params_of(rows, "stage", "kind", "gain", "depth", "length", "seed", "task", "lr")
    asked: dict[tuple[str, str], stats.Comparison] = {}
    reached = params[params["stage"] == "reach"]
    if len(reached):
        wide = rows[rows["metric"] == "square"].pivot_table(index="case", columns="layer_index", values="value")
        yield from laws.reaches(reached, wide, (REACH, STABLER))
        far = reached.assign(ln=np.log(wide[min(BACK, int(wide.columns[-1]))]))
        for product in PRODUCTS:
            asked |= _against(far, product, "LSTM")
    stacks = params[params["stage"] == "stack"].join(rows[rows["metric"] == "growth"].set_index("case")["value"])
    if len(stacks):
        yield from laws.growths(stacks, (OFF, STABLER))
        for gain, own in groups(stacks.assign(ln=stacks["value"]), "gain"):
            asked |= {
                (f"{one}, weights x {gain:g}", other): c
                for (one, other), c in _against(own, "plain", "residual").items()
            }
    trained = params[params["stage"] == "train"].join(rows[rows["metric"] == "loss"].set_index("case")["value"])
    learned: dict[Any, bool | None] = {}
    tuned = pd.DataFrame()
    if len(trained):
        runs = training.tunable(trained.assign(seed=trained["seed"].astype(int)), ["task", "kind"])
        if len(runs):
            runs = runs.assign(value=runs["value"].fillna(np.inf))  # of one that diverged
            tuned = training.tuned(runs.assign(score=-runs["value"]), ["task", "kind"], score="score")
            tuned = tuned.assign(open_ended=training.open_ended(tuned, ENDED))
            learned = _learned(tuned)
    yield "gate_losses", pd.DataFrame(_losses(tuned) if len(tuned) else [])
    question = Question.of("additive", ("sum", "product"), asked, label="{sum} against {product}", reference="as near")
    if question:
        yield question.table()
        yield from _answers(question, learned)


def _against(lines: pd.DataFrame, product: str, sums: str) -> dict[tuple[str, str], stats.Comparison]:
    """Distance of ln of the squared gradient from 0, of each kind of sum over that of a product, seed by seed."""
    kinds = {kind: own.set_index("seed")["ln"].abs() for kind, own in groups(lines, "kind")}
    found = {}
    for kind, own in kinds.items():
        if sums in kind and product in kinds:
            both = own.index.intersection(kinds[product].index)
            found[kind, product] = stats.paired(own[both], kinds[product][both], log=True, margin=NEAR, test="t")
    return found


def _losses(tuned: pd.DataFrame) -> Iterator[dict[str, Any]]:
    for (task, kind), own in groups(tuned, ["task", "kind"]):
        middle = stats.median(own["value"].to_numpy())
        ends = {"loss": middle.value, "loss_low_95": middle.low, "loss_high_95": middle.high}
        yield {
            "task": task, "network": kind, "n": len(own), "lr": own["lr"].iloc[0], **ends,
            "learned": int((own["value"] < LEARNED).sum()), "open_ended": bool(own["open_ended"].any()),
        }  # fmt: skip


def _learned(tuned: pd.DataFrame) -> dict[Any, bool | None]:
    """Whether an LSTM with forget biases learns in more seeds than the plain RNN.

    None where their shares may be equal, and where a rate beyond the grid may help the one that learns in fewer.
    """
    answers: dict[Any, bool | None] = {}
    for task, lines in groups(tuned, "task"):
        open_ended = lines.groupby("kind")["open_ended"].any()
        share = {kind: stats.rate(int((own["value"] < LEARNED).sum()), len(own)) for kind, own in groups(lines, "kind")}
        for kind in ("LSTM, bias 1", "chrono LSTM"):
            if {kind, "RNN"} <= set(share):
                apart = share[kind].low > share["RNN"].high or share[kind].high < share["RNN"].low
                more = bool(share[kind].value > share["RNN"].value)
                settled = apart and not open_ended["RNN" if more else kind]
                answers[f"{kind} trained on {task}"] = more if settled else None
    return answers


def _answers(question: Question, learned: dict[Any, bool | None]) -> Iterator[Answer]:
    words = {True: "nearer to size 1 with", False: "not with", None: "undecided:"}
    trained = [name for name, answer in learned.items() if answer]
    yield question.verdict(
        STABLER, {**question.read(below), **learned}, unit="times as far from size 1",
        why=f"the gradient stays {question.listed(below, words, 12)}"
        + (f"; more seeds learn with {', '.join(trained)} than with an RNN" if trained else ""),
        method=f"|ln of the squared gradient| over {BACK} steps or the whole stack, of the network that adds over that "
        f"of the one that multiplies, paired t by seed, margin a factor of {NEAR:g}; trained networks by the share of "
        f"seeds that end below {LEARNED:g} of the loss without knowledge, 95 % intervals apart, "
        "undecided where a rate beyond the grid may help the one with fewer",
    )  # fmt: skip


METHOD = f"""**Gates and shortcuts.** Recurrent networks of one layer, weights uniform in ±1/√width, without biases;
orthogonal or identity state weights (the latter with ReLU: Le et al. 2015, arXiv:1504.00941); LSTMs with forget
biases 0, 1, or chrono biases (Tallec and Ollivier 2018, arXiv:1804.11188: ln u, u uniform in 1 .. T - 1, and their
negative for the input gate). All three RNNs count as products: of their state weights, at the start 1 in the identity
RNN. The gradient of a random direction of the last state (of an LSTM the cell), by steps
back; its reach is where the root mean square falls below 1/e. Predicted: `theory.gate_decay`. Stacks: ReLU layers W
relu(x), residual x + W relu(x), and x + W relu(x) / √depth, whose squared gradients grow by g², 1 + g² and 1 + g² /
depth a layer at g times He's weights. Trained: adding two marked numbers and copying {recurrent.KEPT} symbols of
{recurrent.SYMBOLS} kinds (baselines {BASELINES["adding"]:.3g}, {BASELINES["copying"]:.3g}) over 100 steps, Adam,
gradients clipped at norm {recurrent.LARGEST:g}, the rate chosen by seeds that are not reported."""
PART = Part(
    "gating", (STABLER, REACH, OFF), SIZES, grids, run, analyse,
    (figures.draw_reach, figures.draw_growth, figures.draw_losses), METHOD,
)  # fmt: skip
