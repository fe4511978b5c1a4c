"""Updates and weight-decay steps that leave a weight as it was, by number format, and what makes them arrive."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from depthgauge import drawing, formats, stats, theory
from depthgauge.frames import groups, only, params_of
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import Question, agrees, enumerated
from depthgauge.seeding import Purpose, generator
from depthgauge.studies.precision.steps import REMEDIES, Held, expected, training
from depthgauge.study import Case, Context, Grid, Rows
from depthgauge.verdict import Claim, Sentence

STAIRCASE = Claim(
    "precision/staircase",
    "the share of weights that an update, or a weight-decay step, leaves unchanged is the exact staircase",
)
DECAY = Claim("precision/decay", "AdamW's default weight decay moves most weights")
REAL = Claim(
    "precision/real_updates",
    "sizes of weights and updates alone predict how many weights real steps of SGD and Adam leave unchanged",
)
ARRIVAL = Claim("precision/arrival", "rounded to nearest, the updates of many steps arrive as a whole")
REMEDY = Claim(
    "precision/remedies", "stochastic rounding, Kahan summation and float32 master weights make the whole update arrive"
)

FORMATS = ("float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2")
KINDS = {"update": "an update of this size, over the weights' std", "decay": "learning rate x weight decay"}
DEFAULT = 0.01 * 0.001  # what AdamW takes off a weight by default, in PyTorch: weight decay times learning rate
STD = 0.05  # of the drawn weights
EXACT = 0.01  # of the weights: a drawn share within it is theory's
NEAR = 0.05  # of the weights: a share of real updates within it is predicted
WHOLE = 0.1  # of the movement: what is within it of 1 has arrived as a whole
CONFIDENCE = 0.99  # of the family of comparisons with theory
EVERY = 10  # steps of which the unchanged weights are counted
RATES = {"sgd": (0.001, 0.01, 0.1), "adam": (1e-5, 1e-4, 1e-3)}
SIZES = sizes(
    "weights octaves width steps seeds",
    quick=(12288, 1.0, 16, 60, 12), standard=(16384, 0.5, 32, 300, 16), full=(65536, 0.25, 64, 1000, 24),
    tiny=(512, 16.0, 4, 4, 5),
)  # fmt: skip


def grids(weights: int, octaves: float, width: int, steps: int, seeds: int) -> Iterator[Grid]:
    """Drawn weights, the steps so many octaves apart, and trainings on real digits."""
    drawn_steps = (*(2.0**-place for place in np.arange(1, 34, octaves).tolist()), DEFAULT)
    drawn: dict[str, tuple[Any, ...]] = {"format": FORMATS, "kind": tuple(KINDS), "size": drawn_steps}
    yield Grid(drawn, {"weights": weights}, min(seeds, 8), ("size", "seed"), 400)
    for optimizer, rates in RATES.items():
        varied: dict[str, Any] = {"optimizer": (optimizer,), "lr": rates, "format": FORMATS, "remedy": REMEDIES}
        together = ("format", "remedy", "seed")
        yield Grid(varied, {"width": width, "steps": steps, "batch": 32}, seeds, together, 1000)


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """Shares of unchanged weights and, of a training, how much of its movement has arrived."""
    if cases[0].get("optimizer") is not None:
        yield from trained(cases, context)
        return
    for case in cases:
        fmt, size = case.text("format"), case.number("size")
        draws = generator(case.random_seed("seed"), Purpose.WEIGHTS)
        w = torch.randn(case.integer("weights"), generator=draws, dtype=torch.float64) * STD
        w = formats.round(w, fmt)
        moved = w * (1 - size) if case.text("kind") == "decay" else w + size * STD
        yield case.rows("unchanged", float((formats.round(moved, fmt) == w).double().mean()))


def trained(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """One float64 training a seed; its steps are then added to the weights in every format, by every remedy."""
    seeds = {case.integer("seed"): case.random_seed("seed") for case in cases}
    wanted = list(dict.fromkeys((case.text("format"), case.text("remedy")) for case in cases))
    whole = torch.zeros((), dtype=torch.float64)
    held: dict[tuple[str, str], Held] = {}
    shares: dict[str, list[Tensor]] = {}
    for step, (weights, update) in enumerate(training(cases[0], list(seeds.values()), context)):
        if not step:
            held = {(fmt, remedy): Held.of(weights, fmt, remedy, list(seeds.values())) for fmt, remedy in wanted}
            begun = dict(held)
        whole = whole + update
        for key, one in held.items():
            held[key] = one.plus(update)
            if key[1] == "none" and step % EVERY == 0:
                moves = update != 0  # a pixel that is always blank has no gradient
                stays = [
                    moves & (held[key].weights == one.weights),
                    expected(key[0], update, cases[0].integer("width")) * moves,
                ]
                share = torch.stack([which.sum(1) / moves.sum(1) for which in stays])
                shares.setdefault(key[0], []).append(share)
    for case in cases:
        fmt, remedy, i = case.text("format"), case.text("remedy"), list(seeds).index(case.integer("seed"))
        one, first, exact = held[fmt, remedy], begun[fmt, remedy], whole[i]
        kept, seen = (one.kept - first.kept)[i], (one.weights - first.weights)[i]
        yield case.rows("arrived", float(kept @ exact / (exact @ exact)))
        yield case.rows("seen", float(seen @ exact / (exact @ exact)))
        yield case.rows("error", float((kept - exact).norm() / exact.norm()))
        if remedy == "none":
            lost, predicted = torch.stack(shares[fmt]).mean(0)[:, i].tolist()
            yield case.rows("unchanged", lost)
            yield case.rows("expected", predicted)


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """Shares of unchanged weights against the staircase, and shares of the movement that arrive against all of it."""
    drawn = rows["optimizer"].isna() if "optimizer" in rows else pd.Series(True, rows.index)
    if drawn.any():
        yield from stairs(rows[drawn])
    if not drawn.all():
        yield from arrivals(rows[~drawn])


def stairs(rows: pd.DataFrame) -> Iterator[Answer]:
    """Drawn weights, by format and size of the step."""
    params = params_of(rows, "format", "kind", "size", "weights").assign(unchanged=only(rows, "unchanged"))
    asked, decays = {}, {}
    for (kind, fmt, size, count), own in groups(params, ["kind", "format", "size", "weights"]):
        law = theory.lost_decay_fraction if kind == "decay" else theory.lost_update_fraction
        predicted = law(fmt, STD, size if kind == "decay" else size * STD)
        sd = max(math.sqrt(predicted * (1 - predicted) / count), 1 / count)  # binomial; of a sure share a weight
        share = own["unchanged"].to_numpy()
        asked[kind, fmt, size] = stats.against(share, predicted, sd=sd, margin=EXACT, confidence=CONFIDENCE)
        if kind == "decay" and size == DEFAULT:
            decays[fmt,] = stats.against(share, 0.5, sd=sd)
    label = "{kind} of {size:.3g} in {format}"
    question = Question.of("staircase", ("kind", "format", "size"), asked, label=label, counted="draws")
    yield question.table()
    yield question.prediction(STAIRCASE, "shares", within=f"{EXACT:g}", unit="share of weights")
    if decays:
        decay = Question.of("decay", ("format",), decays, label="{format}", reference="half of them", counted="draws")
        yield decay.table()
        moved = decay.read(lambda comparison: True if comparison.below else False if comparison.above else None)
        stuck = enumerated((name for name, moves in moved.items() if moves is False), 5)
        yield decay.verdict(
            DECAY, moved, unit="share of weights",
            why=f"a decay step of {DEFAULT:g} (weight decay 0.01, learning rate 0.001) leaves most weights unchanged "
            f"in {stuck or 'no format'}; a format of m mantissa bits drops all below 2^-(m + 2)",
            method=f"w - {DEFAULT:g} w for weights of N(0, {STD:g}^2), rounded once; normal law of a binomial share",
        )  # fmt: skip


def arrivals(rows: pd.DataFrame) -> Iterator[Answer]:
    """Trainings, by optimizer, learning rate, format and remedy."""
    keys = ["optimizer", "lr", "format", "remedy"]
    params = params_of(rows, *keys, "steps")
    for name in ("unchanged", "expected", "arrived", "seen", "error"):
        params[name] = only(rows, name)
    real, arrived, shares, further = {}, {}, {}, {}
    for key, own in groups(params, keys):
        arrived[key] = stats.against(own["arrived"], 1.0, margin=WHOLE)
        further[key] = {"seen": own["seen"].mean(), "error": own["error"].mean(), "unchanged": own["unchanged"].mean()}
        if key[-1] == "none":
            real[key[:-1]] = stats.paired(own["unchanged"], own["expected"], margin=NEAR)
            shares[key[:-1]] = {name: own[name].mean() for name in ("unchanged", "expected")}
    label = "{optimizer} at {lr:g} in {format}"
    if real:
        question = Question.of("real_updates", keys[:-1], real, label=label, reference="no difference")
        yield question.table(shares)
        yield question.prediction(REAL, "shares", within=f"{NEAR:g}", unit="share of weights, measured less predicted")
    question = Question.of(
        "arrival", keys, arrived, label=label + ", {remedy}", family=lambda **at: at["remedy"] == "none",
        reference="whole",
    )  # fmt: skip
    yield question.table(further)
    yield from _told(question.table(further)[1])
    steps = int(params["steps"].iloc[0])
    for claim, chosen in ((ARRIVAL, REMEDIES[:1]), (REMEDY, REMEDIES[1:])):
        if part := question.where(remedy=chosen):
            said = list(part.read(agrees).values())
            yield part.verdict(
                claim, agrees, unit="share of the movement",
                why=f"after {steps} steps the movement is whole within {WHOLE:g} in {said.count(True)} of {len(said)} "
                f"combinations{part.listed(agrees, {False: '; it is not for'}, 6)}",
                method=f"projection on the movement of the same {steps} steps in float64, real digits",
            )  # fmt: skip


def _told(table: pd.DataFrame) -> Iterator[Sentence]:
    """What becomes of Adam's updates in bfloat16."""
    for (lr, fmt), own in groups(table[(table["optimizer"] == "adam")], ["lr", "format"]):
        if fmt == "bfloat16" and lr == RATES["adam"][1]:
            shares = own.set_index("remedy")["value"]
            arrived = f"{shares.get('none', math.nan):.0%} of the movement arrives"
            remedied = f", with stochastic rounding {shares['stochastic']:.0%}" if "stochastic" in shares else ""
            yield Sentence(
                f"A step of Adam at learning rate {lr:g} leaves {own['unchanged'].max():.0%} of {fmt} weights as they "
                f"were, and {arrived}{remedied}.",
                "real_updates", (ARRIVAL.id, REMEDY.id),
            )  # fmt: skip


@drawing.figure(
    "staircase", "Small updates and weight decay do nothing: each format has its staircase",
    f"Share of weights, N(0, {STD:g}²), that a step leaves exactly as they were; dashed: theory.",
)  # fmt: skip
def draw_stairs(staircase: pd.DataFrame) -> Any:
    """Share of unchanged weights by size of the step, measured and predicted."""
    axes = {"xscale": "log", "ylabel": "share of unchanged weights", "xlabel": "size of the step"}
    shown = staircase.assign(step=staircase["kind"].map(KINDS))
    return drawing.panels(shown, "step", drawing.estimates, at="size", by="format", axes=axes)


def _beside_theory(axis: Any, rows: pd.DataFrame, **options: Any) -> None:
    drawing.lines(axis, rows, **options)
    for _, own in groups(rows, "format"):
        axis.plot("lr", "expected", data=own, color="0.2", lw=0.9, ls="--", label="predicted by sizes alone")


@drawing.figure(
    "real_updates", "How many weights a step of SGD or Adam leaves exactly as they were",
    "Of the weights that have a gradient; mean over the steps of a training on 8 x 8 digits.",
)  # fmt: skip
def draw_real(real_updates: pd.DataFrame) -> Any:
    """Share of unchanged weights by learning rate, measured and predicted."""
    axes = {"xscale": "log", "ylabel": "share of unchanged weights"}
    return drawing.panels(real_updates, "optimizer", _beside_theory, x="lr", y="unchanged", by="format", axes=axes)


@drawing.figure(
    "arrival", "What makes updates arrive",
    "Share of the movement of a float64 training that the weights keep; means over seeds with intervals that hold at "
    "once. With master weights or Kahan summation: of what the optimizer keeps.",
)  # fmt: skip
def draw_arrival(arrival: pd.DataFrame) -> Any:
    """Share of the movement that arrives, by learning rate and remedy."""
    shown = arrival[arrival["format"].isin(FORMATS[1:4])]
    shown = shown.assign(training=shown["optimizer"] + ", " + shown["format"])
    axes = {"xscale": "log", "ylabel": "share that arrives", "xlabel": "learning rate"}
    return drawing.panels(shown, "training", drawing.estimates, at="lr", by="remedy", joined=True, axes=axes)


METHOD = """
**Updates.** Sums are exact and rounded once to the format, by emulation. Drawn weights: N(0, 0.05²). Real updates:
those of a float64 training on 8 x 8 digits, added in every format to nearest (none), by stochastic rounding, with Kahan
summation in the format, and to float32 master weights. An update that is zero is not counted.
"""
PART = Part(
    "updates", (STAIRCASE, DECAY, REAL, ARRIVAL, REMEDY), SIZES, grids, run, analyse,
    (draw_stairs, draw_real, draw_arrival), METHOD, shown=("decay",),
)  # fmt: skip
