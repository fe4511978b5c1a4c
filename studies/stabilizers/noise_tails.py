"""Tails of the noise of gradients: how heavy they are, at the start and after training."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from depthgauge import data, drawing, models, replicas, stats
from depthgauge.frames import groups
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import Question, above, spelled
from depthgauge.seeding import Purpose, generator
from depthgauge.studies.stabilizers.noises import gradients, linear, lognormal_index, noise
from depthgauge.study import Case, Context, Grid, Rows
from depthgauge.verdict import Claim, Sentence

SHARE = 0.05  # of the norms that are the tail
FINITE = Claim(
    "stabilizers/noise_tails", "the largest 5 % of the noise of single gradients fall off faster than a power "
    "law of index 2, which has infinite variance",
)  # fmt: skip
KNOWN = Claim(
    "stabilizers/tail_index", "the tail index of gradients is that of the noise in the targets, where that is known"
)
MARGIN = 1.1  # factor of the index: closer to 2 than this is 2
CLOSE = 1.2  # factor of the index: closer to the known one than this is the known one
BATCHES = {"examples": 1, "batches of 16": 16}
JUDGED = "examples"  # of batches of infinite variance half and more read above 2: their largest share is no tail yet
LAWS = {"Pareto 1.5": 1.5, "Pareto 3": 3.0}
NETWORKS = ("classifier of digits", "language model")
LEVELS = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005)
TAIL = (0.05, 0.02, 0.005)  # shares between which a power law has one power
SIZES = sizes(
    "examples steps seeds", quick=(300, 40, 5), standard=(1000, 400, 10), full=(1400, 3000, 20), tiny=(120, 2, 5)
)


def grids(examples: int, steps: int, seeds: int) -> Iterator[Grid]:
    """Linear models under known laws, and both networks."""
    fixed = {"examples": examples, "steps": steps}
    yield Grid({"law": tuple(LAWS)}, {**fixed, "network": "linear"}, seeds, ("law", "seed"), 100, claims=(KNOWN.id,))
    for network in NETWORKS:
        yield Grid({}, {**fixed, "network": network}, seeds, ("seed",), 10, claims=(FINITE.id,))


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """Tail index and quantiles of the norms of the noise, of examples and of batches, before and after training."""
    shared = cases[0]
    network, steps, count = shared.text("network"), shared.integer("steps"), shared.integer("examples")
    if network == "linear":
        for case in cases:
            draws = generator(case.random_seed("seed", "law", "examples"), Purpose.DATA)
            norms = linear(LAWS[case.text("law")], 10 * count, draws)
            yield case.rows("index examples", stats.tail_index(norms, SHARE).value, step=0)
        return
    template, given, optimizer = _network(network, len(cases))
    stack = replicas.stack(template, [case.random_seed("seed", "network") for case in cases], device=context.device)
    x, y = given.x.to(context.device), given.y.to(context.device)
    trained = replicas.train(stack, x, y, optimizer, replicas.Loop(batch=32, steps=steps)).stack
    for i, case in enumerate(cases):
        draws = generator(case.random_seed("seed", "network", "examples"), Purpose.DATA)
        chosen = torch.randperm(len(x), generator=draws)[:count].to(x.device)
        for step, part in ((0, stack), (steps, trained)):
            each = gradients(part.module(i), x[chosen], y[chosen])
            for name, batch in BATCHES.items():
                norms = noise(each, batch, draws)
                yield case.rows(f"index {name}", stats.tail_index(norms, SHARE).value, step=step)
                for level in LEVELS:
                    yield case.rows(f"above {level} {name}", float(np.quantile(norms, 1 - level)), step=step)


def _network(name: str, count: int) -> tuple[nn.Module, data.Examples, Any]:
    """A template, examples, and the optimizer of `count` replicas."""
    if name == NETWORKS[0]:
        digits = data.load("digits")
        template = models.build("mlp", input_shape=digits.input_shape, classes=digits.classes, depth=3, width=32)
        return template, digits.train, replicas.SGD([0.1] * count)
    plays = data.load("shakespeare", context=32)
    template = models.build(
        "transformer", input_shape=plays.input_shape, vocabulary=plays.vocabulary, classes=plays.classes,
        each_step=True, depth=2, width=32, heads=2, fused=False,
    )  # fmt: skip
    return template, data.Examples(plays.train.x[:4000], plays.train.y[:4000]), replicas.Adam([3e-3] * count)


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """Indices against the known ones, and against 2; quantiles of the norms."""
    indices = rows[rows["metric"].str.startswith("index ")].assign(of=lambda t: t["metric"].str[len("index ") :])
    known = indices[indices["network"] == "linear"]
    if len(known):
        yield from _known(known)
    found = indices[indices["network"] != "linear"]
    if len(found):
        quantiles = pd.DataFrame(_quantiles(rows[rows["metric"].str.startswith("above ")]))
        yield "noise_quantiles", quantiles
        yield from _found(found.assign(when=_when(found)), quantiles)


def _when(table: pd.DataFrame) -> pd.Series[Any]:
    return table["step"].eq(0).map({True: "at the start", False: "after training"})


def _known(known: pd.DataFrame) -> Iterator[Answer]:
    asked = {
        (law,): stats.against(own["value"].to_numpy(), LAWS[str(law)], log=True, margin=CLOSE)
        for law, own in groups(known, "law")
    }
    question = Question.of("tail_index", ("law",), asked, label="{law}")
    yield question.table({key: {"known": LAWS[str(key[0])]} for key in asked})
    yield question.prediction(KNOWN, "tail indices", within=f"a factor of {CLOSE:g}", unit="tail index")


def _found(found: pd.DataFrame, quantiles: pd.DataFrame) -> Iterator[Answer]:
    asked, lines = {}, []
    for (network, of, when), own in groups(found, ["network", "of", "when"]):
        values = own["value"].to_numpy()
        if of == JUDGED:
            asked[network, when] = stats.against(values, 2.0, log=True, margin=MARGIN)
        lines.append({
            "network": network, "of": of, "when": when, "n": len(own), "judged": of == JUDGED,
            **spelled("index", stats.mean(values, log=True)), "steps": int(own["steps"].iloc[0]),
        })  # fmt: skip
    question = Question.of(
        "noise_tail", ("network", "when"), asked, label="{network} {when}", counted="networks",
        reference="2, of infinite variance",
    )  # fmt: skip
    yield question.table()
    yield "noise_indices", (table := pd.DataFrame(lines))
    words = {True: "above 2 for", False: "not above 2 for", None: "undecided for"}
    yield question.verdict(
        FINITE, above, unit="tail index", why=f"the tail index of single examples is {question.listed(above, words)}",
        method=f"Hill's estimate over the largest {SHARE:.0%} of the norms of the noise of single examples, t on the "
        f"logarithm over networks, margin {MARGIN:g}; batches are not judged, as half of them or more read above 2 "
        "where the examples' index is 1.5",
    )  # fmt: skip
    for network, own in groups(table, "network"):
        if np.isfinite(own["index"]).all():  # none diverged
            yield _told(network, own, quantiles[quantiles["network"] == network])


def _told(network: str, indices: pd.DataFrame, quantiles: pd.DataFrame) -> Sentence:
    """Tell the tail indices of one network's noise, and whether the tail is straight, as that of a power law."""
    told = indices.set_index(["of", "when"])["index"]
    reach = quantiles.set_index(["noise", "share"])["times"]
    powers = [
        math.log(more / less)
        / math.log(reach[f"{JUDGED} after training", less] / reach[f"{JUDGED} after training", more])
        for more, less in pairwise(TAIL)
    ]
    first, middle, last = TAIL
    batches = next(name for name in BATCHES if name != JUDGED)
    return Sentence(
        f"Over its largest {SHARE:.0%} the gradient noise of the {network} has a tail index of "
        f"{told[JUDGED, 'at the start']:.1f} at the start and of {told[JUDGED, 'after training']:.1f} after "
        f"{indices['steps'].iloc[0]} steps for single examples, and of {told[batches, 'at the start']:.1f} and "
        f"{told[batches, 'after training']:.1f} for {batches}, which are not judged (geometric means). After training "
        f"the share of examples above a norm falls with its power {powers[0]:.1f} from {first:.0%} to {middle:.0%} and "
        f"{powers[1]:.1f} from {middle:.0%} to {last:.1%}, where a power law has one power.",
        figure="noise_quantiles", claims=(FINITE.id,),
    )  # fmt: skip


def _quantiles(table: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Median over seeds of the norms exceeded by each share, over the median norm."""
    parts = table["metric"].str.extract(r"above (?P<share>\S+) (?P<of>.+)")
    table = table.assign(share=parts["share"].astype(float), of=parts["of"], when=_when(table))
    middle = table["value"].where(table["share"] == 0.5).groupby([table[name] for name in ("case", "step", "of")])
    table = table.assign(ratio=table["value"] / middle.transform("max"))
    for (network, of, when, share), own in groups(table, ["network", "of", "when", "share"]):
        yield {
            "network": network,
            "noise": f"{of} {when}",
            "share": share,
            "times": own["ratio"].median(skipna=False),
            "n": len(own),
        }


@drawing.figure(
    "noise_quantiles", "How far the norm of gradient noise reaches",
    lambda noise_quantiles: "Share of the gradients whose noise is larger than so many times the median norm; median "
    f"of {noise_quantiles['n'].min()} networks. A power law is a straight line.",
)  # fmt: skip
def draw_quantiles(noise_quantiles: pd.DataFrame) -> Any:
    """Share above by size, a panel a network, a line for examples and batches, before and after training."""
    axes = {"xscale": "log", "yscale": "log", "xlabel": "norm over the median norm", "ylabel": "share above"}
    return drawing.panels(
        noise_quantiles, "network", drawing.lines, x="times", y="share", by="noise", axes=axes, shared="y"
    )


@drawing.figure(
    "noise_indices", "The tail index of gradient noise",
    lambda noise_indices: f"Hill's estimate over the largest {SHARE:.0%} of the norms; geometric mean of "
    f"{noise_indices['n'].min()} networks with 95 % intervals. Below 2 a power law has infinite variance; batches are "
    "not judged.",
)  # fmt: skip
def draw_indices(noise_indices: pd.DataFrame) -> Any:
    """Indices, a row for examples and batches, before and after training, a panel a network."""
    shown = noise_indices.assign(noise=noise_indices["of"] + " " + noise_indices["when"])
    axes = {"xscale": "log", "xlabel": "tail index", "ylabel": ""}
    return drawing.panels(shown, "network", drawing.estimates, at="noise", value="index", axes=axes, shared="both")


METHOD = f"""**Noise tails.** Gradients of single examples, less their mean, and of batches of 16 drawn from them; a
ReLU network of three layers on 8 x 8 digits (SGD) and a transformer of two layers that reads plays by character (Adam),
before and after training. The tail index of their norms is Hill's (1975, Ann. Stat. 3, 1163) over the largest
{SHARE:.0%}. It says how fast the tail falls there, not which moments exist: data are finite, and so is their variance;
a lognormal law of sigma 1.5, of which all moments are finite, reads {lognormal_index(1.5, SHARE):.1f}. An index below 2
says that, as far out as the data reach, rare gradients carry most of the variance. Zhang et al. (2020,
arXiv:1912.03194) say that heavy-tailed noise is one cause of what adaptive and clipped steps gain with attention.
Batches are shown, not judged: the largest {SHARE:.0%} of them are no tail yet, and where the examples' index is 1.5
half of the draws or more read above 2. Known laws: a linear model at its minimum, whose targets have symmetric Pareto
noise, over single examples, ten times as many as the networks have."""
PART = Part(
    "noise_tails", (FINITE, KNOWN), SIZES, grids, run, analyse, (draw_quantiles, draw_indices), METHOD
)  # fmt: skip
