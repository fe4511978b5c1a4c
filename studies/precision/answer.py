"""The choice for each network: accuracy, time and memory of every recipe, and a rule that was set before."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from depthgauge import drawing, stats, timing
from depthgauge.drawing.palette import FAINT, GREY
from depthgauge.frames import groups, only, params_of, records
from depthgauge.parts import Answer
from depthgauge.questions import Question, below, ends, enumerated, judged, listed, spelled
from depthgauge.stats import Comparison
from depthgauge.studies.precision.nets import LABELS
from depthgauge.studies.precision.recipes import RECIPES, REFERENCE
from depthgauge.studies.precision.runs import forward_backward, prepared
from depthgauge.study import Case, Context, Rows
from depthgauge.timing.clocks import Work
from depthgauge.verdict import Claim, Sentence

SAME_TIME = 1.05  # steps whose times differ by up to 5 % take the same
NEARLY_HALF = 0.6  # of float32's bytes
CONFIDENCE = 0.99  # of durations
_SAYS = {True: f"at most {NEARLY_HALF:g}", False: "more"}
ANSWER = {True: "yes", False: "no", None: "undecided"}


def as_good(comparison: Comparison) -> bool | None:
    """Tell whether a recipe is inside the margin or better, or worse by more than the margin."""
    return True if comparison.inside or comparison.above else False if comparison.below else None


def timed(case: Case, context: Context) -> Iterator[Rows]:
    """A step in a recipe, in turns with one in float32; the bytes that it holds, and on CUDA its measured peak."""
    clock = timing.clock(context.device)
    (step, held), (reference, _) = (_step(case, name, context) for name in (case.text("recipe"), REFERENCE))
    yield from timing.rows_of(case, timing.in_turns(clock, step, reference, case.integer("blocks")), "step")
    yield case.rows("bytes", float(held))
    if context.device != "cpu" and (peak := timing.peak_memory(step, context.device)) is not None:
        yield case.rows("peak", float(peak))


def _step(case: Case, recipe: str, context: Context) -> tuple[Work, int]:
    """A training step on one batch, and the bytes that it holds."""
    trainer, digits = prepared(case, recipe, context)
    x, y = (each.clone() for each in digits.train[: case.integer("batch")])  # what is held of it is the batch alone

    def step() -> None:
        forward_backward(trainer, x, y)
        trainer.update()

    for _ in range(40):  # the first steps may be the scaler's to skip
        step()
        if trainer.optimizer.state:
            break
    scale = x.to(trainer.recipe.weights)
    return step, trainer.bytes_held(lambda model: nn.functional.cross_entropy(model(scale), y))


def answers(rows: pd.DataFrame, same: Question, first: pd.DataFrame, claims: tuple[Claim, Claim]) -> Iterator[Answer]:
    """Time and memory of a step by network and recipe, whether float16 balances them, and the recommendations."""
    cases = params_of(rows[rows["metric"] == "bytes"], "net", "recipe").assign(bytes=only(rows, "bytes"))
    asked, memory = {}, {}
    for net, own in groups(cases, "net"):
        if REFERENCE not in set(own["recipe"]):
            continue
        base = own[own["recipe"] == REFERENCE]
        blur = stats.resolution(*timing.durations(rows, str(base.index[0]), "step"))
        for row in records(own[own["recipe"] != REFERENCE]):
            a, b = timing.durations(rows, row.Index, "step")
            asked[net, row.recipe] = stats.time_ratio(a, b, resolution=blur, margin=SAME_TIME, confidence=CONFIDENCE)
            memory[net, row.recipe] = {
                "step_ms": 1e3 * float(np.median(a)), "resolution": blur, "memory": row.bytes / base["bytes"].iloc[0],
            }  # fmt: skip
    time = Question.of(
        "step_times", ("net", "recipe"), asked, label="{recipe} with {net}", reference=REFERENCE, counted="blocks",
        family=lambda net, **_: net,
    )  # fmt: skip
    if not time:
        return
    yield time.table(memory)
    balance, nearly_half = claims
    yield from _memory(memory, nearly_half)
    costs = pd.DataFrame([
        {"net": net, "recipe": recipe, "format": RECIPES[recipe].format, "accuracy": c.effect.value,
         "as_good": ANSWER[as_good(c)], **spelled("time", time.members[net, recipe].effect, CONFIDENCE),
         "faster": ANSWER[below(time.members[net, recipe])], "memory": memory[net, recipe]["memory"]}
        for (net, recipe), c in same.members.items() if (net, recipe) in time.members
    ])  # fmt: skip
    if costs.empty:
        return
    yield "costs", costs
    yield _balance(time, costs, balance)
    chosen = pd.DataFrame([recommended(net, own, scales(rows, net), first, rows) for net, own in groups(costs, "net")])
    yield "recommended", chosen
    quicker = chosen[chosen["recipe"] != REFERENCE].sort_values("time")
    best = "".join(
        f": {LABELS[row.net]} in {row.recipe} takes {row.time:.2f} of the time" for row in records(quicker.head(1))
    )
    yield Sentence(
        f"In {len(quicker)} of {len(chosen)} small networks a recipe in a narrower format is shown to be as accurate "
        f"as float32 and faster on this device{best}.",
        claims=(balance.id, nearly_half.id),
    )


def _memory(memory: Mapping[tuple[str, str], Mapping[str, float]], claim: Claim) -> Iterator[Answer]:
    """Is what autocast holds at most NEARLY_HALF of float32's, in every network? Counted, not sampled."""
    table = pd.DataFrame([
        {"net": net, "recipe": recipe, "value": row["memory"], "answer": _SAYS[row["memory"] <= NEARLY_HALF]}
        for (net, recipe), row in memory.items()
    ])  # fmt: skip
    yield "memory", table
    autocast = table[table["recipe"].isin(["bfloat16_autocast", "float16_scaled"])]
    if autocast.empty:
        return
    worst, least = autocast.sort_values("value").iloc[-1], table.sort_values("value").iloc[0]
    yield judged(
        claim, list(autocast["value"] <= NEARLY_HALF),
        f"under autocast a step holds {autocast['value'].min():.2f} to {worst['value']:.2f} of float32's bytes: "
        "weights, their gradients and the optimizer's state stay in float32, and casts of the weights come on top. "
        f"The least of all recipes is {least['recipe']} with {least['net']}, {least['value']:.2f}",
        observed=float(worst["value"]), n=1, counted="counts", unit="times float32's bytes", table="memory",
        condition=f"{worst['recipe']} with {worst['net']}", answer=worst["answer"],
        method="weights, gradients, optimizer's state, what a remedy keeps and what autograd saves, counted; nearly a "
        f"half is up to {NEARLY_HALF:g}; the figure is the largest",
    )  # fmt: skip


def _balance(time: Question, costs: pd.DataFrame, claim: Claim) -> Answer:
    """N27: is some float16 recipe as accurate as float32 and faster, network by network?"""
    half = costs[costs["format"] == "float16"]
    said = {}
    for net, own in groups(half, "net"):
        both = own[["as_good", "faster"]]
        some, none = (both == "yes").all(axis=1).any(), (both == "no").any(axis=1).all()
        said[net] = True if some else False if none else None
    fast = half.loc[half.groupby("net")["time"].idxmin()] if len(half) else half
    times = enumerated((f"{row.net} {row.time:.2f} ({row.recipe})" for row in records(fast)), 9)
    words = {
        True: "some float16 recipe is as accurate and faster for",
        False: "no float16 recipe is as accurate and faster for",
        None: "undecided for",
    }
    asked = time.select(lambda net, recipe: RECIPES[recipe].format == "float16" and net in said)
    if not asked:
        return "Nothing in float16 was both trained and timed."
    open_ones = asked.select(lambda net, **_: said[net] is None) if True not in said.values() else None
    timed = (open_ones or asked).members  # where it is undecided, what is
    if open_ones:
        timed = {key: c for key, c in timed.items() if below(c) is None} or timed
    fastest = min(timed, key=lambda key: timed[key].effect.value)
    return asked.verdict(
        claim, said, unit="times a step in float32", shown=fastest,
        why=f"{listed(said, words, 9)}. The fastest float16 step takes, in multiples of float32's: {times}",
        method=f"on this device; faster: a step takes less than float32's by more than {SAME_TIME - 1:.0%} and beyond "
        "the resolution, A B B A, median of paired log-ratios; as accurate: inside the margin of accuracy",
    )  # fmt: skip


def scales(rows: pd.DataFrame, net: str) -> tuple[float, float]:
    """Powers of two: the loss scales that keep all gradients of every float32 run inside float16, before and after."""
    own = rows[rows["net"] == net]
    least, greatest = (own.loc[own["metric"] == name, "value"] for name in ("least", "greatest"))
    if least.isna().any() or not len(least) or least.max() > greatest.min():
        return math.nan, math.nan
    return float(least.max()), float(greatest.min())


def recommended(
    net: str, own: pd.DataFrame, scale: tuple[float, float], first: pd.DataFrame, rows: pd.DataFrame
) -> dict[str, Any]:
    """The rule: of the recipes shown as accurate and faster than float32 the fastest, float32 where there is none.

    Of those within SAME_TIME of the fastest, the one with the fewest bytes. `smallest`: as accurate, with the fewest
    bytes, whatever its time.
    """
    start: dict[str, Any] = {"recipe": REFERENCE, "accuracy": 0.0, "time": 1.0, "memory": 1.0}
    good = own[own["as_good"] == "yes"]
    fast = good[good["faster"] == "yes"]
    near = fast[fast["time"] <= SAME_TIME * fast["time"].min()].sort_values("memory")
    pick = start if near.empty else near.iloc[0].to_dict()
    options = [start, *({**start, **dict(each)} for each in good.to_dict("records"))]
    small = min(options, key=lambda each: (each["memory"], each["time"]))
    named = set(rows.loc[(rows["net"] == net) & (rows["recipe"] == "float16_autocast"), "case"])
    kept = first[first["run"].isin(named) & (first["direction"] == "activation")]
    exceptions = enumerated(kept["layer"])
    picked = {name: pick[name] for name in ("recipe", "accuracy", "time", "memory")}
    smallest = {"smallest": small["recipe"], "smallest_time": small["time"], "smallest_memory": small["memory"]}
    return {
        "net": net, **picked, **smallest, "log2_scale_least": scale[0], "log2_scale_greatest": scale[1],
        "in_float32": exceptions,
    }  # fmt: skip


@drawing.figure(
    "costs", "What each recipe costs in time and memory, and whether it is as accurate",
    "Time of a step, with 99 % intervals that hold at once, and bytes that it holds, in multiples of float32's. "
    "Filled: ends as accurate as float32 within the margin; hollow: worse, or undecided.",
)  # fmt: skip
def draw_costs(costs: pd.DataFrame) -> Any:
    """Time beside memory, a row a recipe, a mark a network."""
    low, high = ends(CONFIDENCE, "time")
    own = costs.assign(net=costs["net"].map(LABELS))
    bytes_held = own.assign(cost="bytes held", **dict.fromkeys(("value", "low", "high"), own["memory"]))
    took = own.assign(cost="time of a step", value=own["time"], low=own[low], high=own[high])
    axes = {"xscale": "log", "xlabel": "times float32's"}
    size = (5.2, 1.2 + 0.055 * (own["net"].nunique() + 3) * own["recipe"].nunique())
    return drawing.panels(pd.concat([took, bytes_held]), "cost", _by_recipe, by="net", axes=axes, size=size)


def _by_recipe(axis: Any, rows: pd.DataFrame, by: str, looks: Any) -> None:
    names = [name for name in RECIPES if name in set(rows["recipe"])]
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.grid(visible=False, axis="y")
    for place, (net, look) in enumerate(looks.items()):
        own = rows[rows[by] == net]
        where = own["recipe"].map(names.index) + (place - (len(looks) - 1) / 2) * 0.75 / len(looks)
        axis.hlines(where, own["low"], own["high"], color=look.colour, lw=1)
        fills = np.where(own["as_good"] == "yes", look.colour, "white")
        axis.scatter(own["value"], where, s=26, marker=look.marker, c=fills, edgecolors=look.colour, zorder=3)
        axis.plot([], [], look.marker, color=look.colour, label=net)
    axis.plot([], [], "o", mec=GREY, mfc="white", label="worse, or undecided")
    axis.axvline(1, color=GREY, lw=0.8, zorder=0)
    for place in range(len(names) - 1):
        axis.axhline(place + 0.5, color=FAINT, lw=0.8, zorder=0)


METHOD = """
**Choice.** Steps are timed in turns with float32's, A B B A, with nothing beside them. Bytes are counted: weights,
gradients, optimizer's state, what a remedy keeps, what autograd saves. Recommended is the fastest recipe that is shown
to be as accurate as float32, and faster by more than 5 %; of those within 5 % of it the one with the fewest bytes; and
float32 where there is none. Rule and margins were set before these runs."""
