"""Clipped and normalized gradients: whether more learning rates work, at which loss, and what share of steps is cut."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from depthgauge import data, drawing, models, replicas, stats, training
from depthgauge.conditions import WORDS, enumerated
from depthgauge.frames import groups
from depthgauge.initialization.schemes import at_gain
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import Question, above, spelled
from depthgauge.studies.stabilizers import clipped
from depthgauge.studies.stabilizers.clipped import Clipping
from depthgauge.study import Case, Context, Grid, Rows
from depthgauge.verdict import Claim, Sentence

STABLER = Claim("N07", "normalizing or clipping gradients makes training more stable")
NETWORKS = {"explosive": (10, 2.0), "tame": (3, math.sqrt(2))}  # depth, gain of ReLU layers; sqrt(2) keeps the signal
WAYS = {
    each.label: each
    for each in (
        Clipping("none"), Clipping("norm", 10.0), Clipping("norm", 1.0), Clipping("norm", 0.1),
        Clipping("value", 1.0), Clipping("value", 0.1), Clipping("value", 0.01),
        Clipping("adaptive", 0.16), Clipping("adaptive", 0.04), Clipping("adaptive", 0.01), Clipping("normalized"),
    )
}  # fmt: skip
LEARNED = 0.5  # of the loss of chance: a run that ends below it has learned
CHANCE = math.log(10)
OCTAVE = 1.0  # margin: a window of rates that is one factor of two wider or narrower is the same
BETTER = 1.1  # margin of the loss at the best rate
RATES = tuple(2.0**k for k in range(-14, 7))
KEYS = ["network", "way"]
METRICS = ("loss", "clipped", "kept")
SIZES = sizes(
    "ways seeds steps width rates", quick=((), 0, 0, 0, ()), standard=(tuple(WAYS), 16, 150, 32, RATES),
    full=(tuple(WAYS), 20, 400, 64, RATES), tiny=(("none", "norm 1", "normalized"), 6, 4, 8, RATES[4::8]),
)  # fmt: skip


def grids(ways: tuple[str, ...], seeds: int, steps: int, width: int, rates: tuple[float, ...]) -> Iterator[Grid]:
    """Both networks, every way and rate; at quick there are none."""
    if ways:
        yield Grid(
            {"network": tuple(NETWORKS), "way": ways, "lr": rates}, {"width": width, "steps": steps, "batch": 32},
            seeds, ("lr", "seed"), 150, selection=3,
        )  # fmt: skip


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """SGD on 8 x 8 digits: the loss of the training examples at the end, and how much of the gradients was cut."""
    shared, digits = cases[0], data.load("digits").to(context.device)
    depth, gain = NETWORKS[shared.text("network")]
    fit, _ = data.hold_out(digits.train, training.HELD_OUT)
    template = models.build(
        "mlp", input_shape=digits.input_shape, classes=digits.classes, depth=depth, width=shared.integer("width")
    )
    seeds = [case.random_seed("seed", "width", "network") for case in cases]  # of all ways and rates: paired
    rates = torch.tensor([case.number("lr") for case in cases], device=context.device)
    trained, cut, kept = clipped.train(
        replicas.stack(template, seeds, at_gain(gain), device=context.device), fit, rates, WAYS[shared.text("way")],
        batch=shared.integer("batch"), steps=shared.integer("steps"),
    )  # fmt: skip
    loss = replicas.evaluate(trained, fit.x, fit.y).loss
    columns: tuple[Any, ...] = (loss, cut, kept)
    for metric, values in zip(METRICS, columns, strict=True):
        yield from (case.rows(metric, float(value)) for case, value in zip(cases, values, strict=True))


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """Windows of rates against those without clipping, the best losses, and the loss by rate."""
    runs = training.table(rows, *KEYS, "lr", "seed", metrics=METRICS).astype({"seed": int})
    runs = runs.assign(capped=np.fmin(runs["loss"].fillna(np.inf), CHANCE)).assign(score=lambda t: -t["capped"])
    runs = training.tunable(runs, KEYS)
    if runs.empty:
        return
    reported = runs[runs["seed"] >= 0]
    yield "clip_losses", pd.DataFrame(_losses(reported))
    tuned = training.tuned(runs, KEYS, score="score")
    every = _windows(runs)
    windows = every[every["seed"] >= 0]
    wider = Question.of(
        "clip_windows", KEYS, _compared(windows, "octaves", margin=OCTAVE), label="{way}, {network} network",
        reference="no clipping",
    )  # fmt: skip
    if not wider:
        return
    better = Question.of(
        "clip_best", KEYS, _compared(tuned, "loss", margin=BETTER, log=True), label="{way}, {network} network",
        reference="no clipping",
    )  # fmt: skip
    yield wider.table()
    yield better.table()
    yield "clip_shares", pd.DataFrame(_shares(windows, tuned))
    yield from _verdict(wider, better)
    yield from _sentences(every, tuned)


def _losses(reported: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Median loss at each rate, that of chance where it is higher, with the middle 90 % of the seeds."""
    for (network, way, lr), own in groups(reported, [*KEYS, "lr"]):
        band = {name: float(value[0]) for name, value in stats.band(own["capped"].to_numpy()[:, None]).items()}
        yield {"network": network, "way": way, "lr": lr, "n": len(own), **band}


def _windows(runs: pd.DataFrame) -> pd.DataFrame:
    """Rates at which each network learns: their number, which is octaves of a grid in factors of two; the largest."""
    learned = runs.assign(ok=runs["capped"] < LEARNED * CHANCE)
    learned["rate"] = learned["lr"].where(learned["ok"])
    lines = learned.groupby([*KEYS, "seed"], sort=False)
    return lines.agg(octaves=("ok", "sum"), largest=("rate", "max"), smallest=("rate", "min")).reset_index()


def _compared(table: pd.DataFrame, what: str, **margin: Any) -> dict[tuple[str, str], stats.Comparison]:
    """What each way has against no clipping, seed by seed."""
    asked = {}
    for network, lines in groups(table, "network"):
        ways = {way: own.set_index("seed")[what].astype(float) for way, own in groups(lines, "way")}
        plain = ways.pop("none", pd.Series(dtype=float))
        for way, own in ways.items() if len(plain) else ():
            both = own.index.intersection(plain.index)
            asked[network, way] = stats.paired(own[both], plain[both], test="t", **margin)
    return asked


def _shares(windows: pd.DataFrame, tuned: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Each way at its tuned rate: share of steps clipped, norm kept, loss; its window of rates and its ends.

    A run that diverged has an infinite loss; the window of a seed that learns at no rate ends at 0 and at infinity.
    """
    for key, own in groups(tuned, KEYS):
        window = windows[(windows[KEYS] == list(key)).all(axis=1)]
        yield {
            **dict(zip(KEYS, key, strict=True)), "n": len(own), "lr": own["lr"].iloc[0],
            **spelled("clipped", stats.mean(own["clipped"].to_numpy())), "kept": own["kept"].mean(),
            "loss": own["loss"].fillna(np.inf).median(),
            **spelled("octaves", stats.mean(window["octaves"].to_numpy(float))),
            "largest": window["largest"].fillna(0.0).median(), "smallest": window["smallest"].fillna(np.inf).median(),
            "at_edge": bool(own["at_edge"].iloc[0]),
        }  # fmt: skip


def _tallied(question: Question) -> tuple[str, str]:
    """How many ways have each answer, network by network; and what the undecided ones change."""
    tallies, open_ones = [], []
    for network in dict.fromkeys(network for network, _ in question.members):
        own = question.where(network=network)
        answers = list(own.read(above).values())
        counts = [(WORDS[each], answers.count(each)) for each in (True, False, None) if each in answers]
        tallies.append(
            f"{enumerated([f'{word} for {count}' for word, count in counts], 3)} of {len(answers)} ways in the "
            f"{network} network"
        )
        changes = [c.effect.value for c in own.members.values() if above(c) is None]
        if changes:
            open_ones.append(f"{min(changes):+.1f} to {max(changes):+.1f} in the {network} network")
    return "; ".join(tallies), "; ".join(open_ones)


def _verdict(wider: Question, better: Question) -> Iterator[Answer]:
    words = {True: "wider with", False: "not with", None: "undecided:"}
    lost = better.listed(above, {True: "Clipping costs loss at the best rate with"}, 4)
    says, open_ones = _tallied(wider)
    yield wider.verdict(
        STABLER, above, unit="factors of two more that learn", says=says,
        why=f"the window of learning rates at which a network learns is {wider.listed(above, words, 12)}"
        + (f"; the undecided change it by {open_ones}" if open_ones else "")
        + (f"; {lost[0].lower()}{lost[1:]}" if lost else ""),
        method=f"number of rates, in factors of two, at which the loss ends below {LEARNED:g} of chance's, less that "
        f"without clipping; paired t by seed, margin {OCTAVE:g}. A window does not change with the unit of the rate, "
        "which clipping changes; the largest rate does",
    )  # fmt: skip


def _sentences(windows: pd.DataFrame, tuned: pd.DataFrame) -> Iterator[Answer]:
    """The window without clipping and with the way that seeds which are not reported have widest."""
    for network, own in groups(windows, "network"):
        means = own.groupby([own["seed"] >= 0, "way"], sort=False)["octaves"].mean()
        choosing, middle = means.get(False, pd.Series(dtype=float)), means.get(True, pd.Series(dtype=float))
        ways = [way for way in choosing.index.intersection(middle.index) if way != "none"]
        if "none" not in middle or not ways:
            continue
        widest = str(choosing[ways].idxmax())
        cut = float(tuned[(tuned["network"] == network) & (tuned["way"] == widest)]["clipped"].mean())
        yield Sentence(
            f"An {network} network ({_words(network)}) learns over {middle['none']:.1f} factors of two in the learning "
            f"rate without clipping and over {middle[widest]:.1f} with {_named(widest)}, which other seeds had as the "
            f"widest of {len(ways)} ways and which cuts {cut:.0%} of the steps at its best rate.".replace(
                "An tame", "A tame"
            ),
            figure="clip_windows", claims=(STABLER.id,),
        )  # fmt: skip


def _words(network: str) -> str:
    depth, gain = NETWORKS[network]
    return f"{depth} layers, weights {gain / math.sqrt(2):.2g} times He's"


def _named(way: str) -> str:
    kind, _, level = way.partition(" ")
    how = {"norm": "norm", "value": "value", "adaptive": "adaptive", "normalized": ""}[kind]
    return f"{how} clipping at {level}" if how else "normalized gradients"


@drawing.figure(
    "clip_windows", "How many factors of two in the learning rate work, with clipping and without",
    lambda clip_shares: f"Mean number of rates at which the loss ends below {LEARNED:g} of chance's, of a grid in "
    f"factors of two, {clip_shares['n'].min()} seeds, 95 % intervals.",
)  # fmt: skip
def draw_windows(clip_shares: pd.DataFrame) -> Any:
    """Widths of windows, a row a way, a panel a network."""
    shown = clip_shares.rename(columns=lambda name: name.replace("octaves", "width"))
    axes = {"xlabel": "factors of two", "ylabel": ""}
    return drawing.panels(shown, "network", drawing.estimates, at="way", value="width", axes=axes, shared="both")


@drawing.figure(
    "clip_shares", "The share of steps that clipping cuts, at the best rate of each way",
    lambda clip_shares: f"Mean share of steps at which the gradient loses more than {1 - clipped.CHANGED:.0%} of its "
    f"norm; {clip_shares['n'].min()} seeds, 95 % intervals. At 100 % the bound is a step length, no safeguard.",
)  # fmt: skip
def draw_shares(clip_shares: pd.DataFrame) -> Any:
    """Shares of steps, a row a way, a panel a network."""
    axes = {"xlabel": "share of steps cut", "ylabel": "", "xlim": (-0.05, 1.05)}
    return drawing.panels(
        clip_shares, "network", drawing.estimates, at="way", value="clipped", axes=axes, shared="both"
    )


@drawing.figure(
    "clip_losses", "The loss against the learning rate, with clipping and without",
    lambda clip_losses: f"Loss of the training examples at the end, median of {clip_losses['n'].min()} seeds, chance's "
    "where it is higher or not finite. One level of each way.",
)  # fmt: skip
def draw_losses(clip_losses: pd.DataFrame) -> Any:
    """Loss by rate, a panel a network, a line a way."""
    shown = clip_losses[clip_losses["way"].isin(["none", "norm 1", "value 0.1", "adaptive 0.04", "normalized"])].rename(
        columns={"way": "clipping"}
    )
    axes = {"xscale": "log", "yscale": "log", "ylabel": "loss"}
    return drawing.panels(shown, "network", drawing.lines, x="lr", y="median", by="clipping", axes=axes, shared="both")


METHOD = f"""**Clipping.** ReLU networks on 8 x 8 digits, SGD with batches of 32, at every rate of a grid in factors of
two: one that explodes ({_words("explosive")}) and one that does not ({_words("tame")}). Gradients are bounded by their
global norm; by the value of each element; adaptively, each unit's by a multiple of the norm of its weights, at least
{clipped.FLOOR:g} (Brock et al. 2021, arXiv:2102.06171, who name multiples near 0.01; the output layer is bounded here
as well, and all biases of a layer are one unit); or divided by their norm. A step counts as cut where the gradient
keeps less than {clipped.CHANGED:.0%} of its norm. The best rate is chosen by seeds that are not reported. Levels:
{enumerated(list(WAYS), 20)}."""
PART = Part(
    "clipping", (STABLER,), SIZES, grids, run, analyse, (draw_windows, draw_shares, draw_losses), METHOD,
)  # fmt: skip
