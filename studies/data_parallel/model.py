"""A model of the step on many devices: fitted, checked on what was held out, extrapolated. It reads a clock."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from depthgauge import drawing, parallel
from depthgauge.parallel.collectives import moved
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import Question, agrees
from depthgauge.studies.data_parallel import extrapolation, model_ranks
from depthgauge.studies.data_parallel.launches import launched
from depthgauge.studies.data_parallel.model_fit import MARGIN, Fitted, role
from depthgauge.studies.data_parallel.model_ranks import Asked
from depthgauge.study import Case, Context, Grid, Rows, Value
from depthgauge.verdict import Claim, Status, Verdict

SIZES_OF = "alpha + bytes beta, fitted to collectives of middle sizes, predicts smaller and larger ones within 25 %"
LINK = Claim("data_parallel/link_sizes", SIZES_OF)
BATCHES = Claim(
    "data_parallel/model_batches",
    "a step model fitted at middle batch sizes predicts the step at a smaller and a larger one within 25 %",
)
RANKS = Claim(
    "data_parallel/model_ranks", "the model fitted on two ranks predicts the step on more of them within 25 %"
)
STEP, NOISE = "step", "noise"
COLLECTIVES = ("all_reduce", "reduce_scatter", "all_gather")
FITTED = 2  # ranks
SIZES = sizes(
    "ranks works batches most rounds width depth",
    quick=((2,), ("all_reduce", STEP), 5, 4**9, 6, 128, 8),
    standard=((2, 4), (*COLLECTIVES, STEP), 6, 4**12, 21, 256, 8),
    full=((2, 4, 8), (*COLLECTIVES, STEP), 7, 4**13, 41, 256, 8),
    tiny=((2, 4), ("all_reduce", STEP), 4, 4**7, 8, 8, 1),
)


def grids(
    ranks: tuple[int, ...], works: tuple[str, ...], *, batches: int, most: int, rounds: int, width: int, depth: int
) -> Iterator[Grid]:
    """One launch for each number of ranks, and the critical batch of the network; nothing runs beside."""
    for count in ranks:
        fixed: dict[str, Value] = {"ranks": count, "batches": batches, "most": most, "rounds": rounds}
        asked = (STEP,) if count > FITTED else works
        yield Grid(
            {"work": asked}, {**fixed, "width": width, "depth": depth}, together=("work",), chunk=100, exclusive=True,
            claims=(RANKS.id,) if count > FITTED else (LINK.id, BATCHES.id),
        )  # fmt: skip
    if len(ranks) > 1:
        yield Grid({"work": (NOISE,)}, {"width": width, "depth": depth}, claims=(BATCHES.id,))


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """Seconds of collectives and of steps, all in turns in one launch; or the critical batch."""
    case = cases[0]
    if case.text("work") == NOISE:
        critical = model_ranks.critical_batch(case.integer("width"), case.integer("depth"), extrapolation.PRESENT)
        for name, value in zip(("value", "low", "high"), critical, strict=True):
            yield case.rows("critical", value, direction=name)
        return
    ranks, batches = case.integer("ranks"), [4**power for power in range(case.integer("batches"))]
    layouts = [(batch, way) for batch in batches for way in _reductions(ranks, batch, batches)]
    largest, width, depth = (case.integer(name) for name in ("most", "width", "depth"))
    moves = tuple(
        (name, moved(name, 4**power, ranks))
        for name in (each.text("work") for each in cases)
        for power in range(1, 15)
        if name != STEP and 4**power <= largest
    )
    device = parallel.device_for(ranks, context.device)
    asked = Asked(moves, tuple(layouts), width, depth, case.integer("rounds"))
    timed = launched(model_ranks.work, asked, ranks=ranks, device=device, context=context)[0]
    named = {each.text("work"): each for each in cases}
    for (name, size), column in zip(moves, timed.moves.T, strict=True):
        yield named[name].rows("seconds", column, layer_index=size, step=np.arange(len(column)))
    if STEP in named:
        yield from _steps(named[STEP], layouts, timed.steps, parallel.room(device))


def _reductions(ranks: int, batch: int, batches: Sequence[int]) -> tuple[str, ...]:
    """What is timed: all ways where the model is fitted, DDP as it is where it is only checked."""
    held = ranks > FITTED or role(batch, batches) != "fitted"
    return ("overlapped",) if held else ("none", "waited", "overlapped")


def _steps(case: Case, layouts: Sequence[tuple[int, str]], seconds: Any, room: int) -> Iterator[Rows]:
    for (batch, reduction), column in zip(layouts, seconds.T, strict=True):
        yield case.rows("seconds", column, layer_index=batch, direction=reduction, step=np.arange(len(column)))
    size = model_ranks.gradient_bytes(case.integer("width"), case.integer("depth"))
    yield case.rows("gradient_bytes", float(size))
    yield case.rows("room", float(room))


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """The fit, what it predicts of what was held out, and what of many more devices."""
    timed = rows[rows["metric"] == "seconds"].drop(columns=["size", "reduction"], errors="ignore")  # other parts' own
    timed = timed.rename(columns={"layer_index": "size", "direction": "reduction"})
    figures = rows[rows["metric"].isin(["gradient_bytes", "room"])].groupby("metric")["value"].first()
    if len(figures) < 2:  # no step was timed
        return
    fitted = Fitted.of(timed, figures["gradient_bytes"], int(figures["room"]))
    if fitted is None:
        return
    scale = rows[rows["metric"] == "critical"]
    critical = dict(zip(scale["direction"].tolist(), scale["value"].tolist(), strict=True))
    yield "links", fitted.links_table()
    yield "fitted_model", fitted.figures_table()
    yield "collectives", fitted.collectives_table()
    yield from _checked(
        fitted.collectives_held_out(), LINK, "durations of collectives", "alpha and beta from the middle sizes"
    )
    yield "steps", fitted.steps_table()
    yield "model_speedup", fitted.speedup_table()
    for beyond, claim, what in ((False, BATCHES, "at batch sizes"), (True, RANKS, "on more ranks")):
        question = fitted.steps_held_out(beyond=beyond)
        if question:
            yield from _checked(
                question, claim, f"steps {what}{fitted.crowded(question)}", fitted.told(beyond=beyond),
                fitted.intervals(question),
            )  # fmt: skip
        elif beyond:
            why = "more ranks than two were not run"
            yield Verdict(RANKS.id, RANKS.text, Status.NOT_MEASURED, why=why)
    yield from extrapolation.answers(fitted, critical)


def _checked(
    question: Question, claim: Claim, what: str, how: str, further: dict[Any, dict[str, Any]] | None = None
) -> Iterator[Answer]:
    """The table and verdict of what was held out."""
    yield question.table(further)
    words = {False: "beyond it:", None: "undecided:"}
    answers = question.read(agrees)
    held = [place["inside"] for place in (further or {}).values()]
    also = f"; its 95 % interval holds {sum(held)} of {len(held)}" if held else ""
    yield question.verdict(
        claim, agrees, unit="seconds",
        why=f"{sum(map(bool, answers.values()))} of {len(question)} {what} that were held out are within 25 % of the "
        f"prediction{question.listed(agrees, words, 4, lead='; ')}{also}",
        method=f"geometric mean of rounds against the prediction, {how}, margin a factor of {MARGIN:g}",
    )  # fmt: skip


def _banded(axis: Any, own: pd.DataFrame, x: str) -> None:
    """Draw measured points by their part in the fit over the predicted line and its band."""
    line = own.sort_values(x)
    axis.fill_between(
        line[x],
        line["predicted_low_95"],
        line["predicted_high_95"],
        color="C0",
        alpha=0.2,
        lw=0,
        label="predicted, 95 %",
    )
    axis.plot(line[x], line["predicted"], color="C0", lw=1, ls="--", label="predicted")
    drawing.estimates(axis, own.drop(columns="predicted"), x, "role")


@drawing.figure(
    "model_steps", "Seconds of a step, measured and by the model, at fitted and at held-out batch sizes",
    "Means of rounds of DDP steps, 95 % intervals; dashed: the model, with the interval of its prediction.",
)  # fmt: skip
def draw_steps(steps: pd.DataFrame) -> Any:
    """Measured and predicted seconds by batch size, a panel a number of ranks."""
    shown = steps[steps["reduction"] == "overlapped"]
    axes = {"xscale": "log", "yscale": "log", "xlabel": "examples a rank", "ylabel": "seconds a step"}
    return drawing.panels(shown, "placed", _banded, x="batch", axes=axes)


@drawing.figure(
    "model_collectives", "Seconds of a collective by its size, and the line alpha + bytes beta",
    "Means of rounds, 95 % intervals, on two ranks; dashed: the line through the fitted sizes, with the interval of "
    "its prediction.",
)  # fmt: skip
def draw_collectives(collectives: pd.DataFrame) -> Any:
    """Measured and predicted seconds by size, a panel a collective."""
    axes = {"xscale": "log", "yscale": "log", "xlabel": "bytes", "ylabel": "seconds"}
    return drawing.panels(collectives, "collective", _banded, x="bytes", axes=axes)


METHOD = f"""**The model.** A residual perceptron ({SIZES["standard"]["depth"]} layers of {SIZES["standard"]["width"]}
units, at `quick` of {SIZES["quick"]["width"]}) trains on drawn images by DDP in buckets of {model_ranks.BUCKET_MIB:g}
MiB, all configurations in turns; the slowest rank counts. A duration is the mean of a stretch of calls, as means add up
to a step where single calls stall; a configuration's is the geometric mean of its rounds. Collectives give alpha and
beta (`parallel.links.fit`), the smallest and the largest size held out.
`parallel.prediction.fit` has the seconds of computing, fixed and an example, DDP's own handling, and the share of the
computing that hides exchange, from plain steps on all ranks at once, DDP whose backward pass waits for each bucket, and
DDP as it is. The smallest and largest batches are held out, and so is every number of ranks beyond two. On more ranks
than cores computing is taken to last ranks / cores times as long; that is measured, and is no scaling. The interval of
a prediction is Student's t on the misfit of the fitted configurations, widened by the errors of the figures and of
the link. Efficiency on many devices is that of {extrapolation.PRESENT} examples a device, over as many devices that
exchange nothing: an extrapolation, of this network on such cores, with links as given. There {extrapolation.FLAT}: of
several machines the slowest link is the one to read. Libraries join many devices by trees as well, in 2 log2 p messages
that send no more than a ring: of thousands the ring is the worst case. The critical batch is the noise scale along 100
steps on digits. Rounds are of one launch: what changes from launch to launch is not in the intervals."""
PART = Part(
    "model", (LINK, BATCHES, RANKS), SIZES, grids, run, analyse,
    (
        draw_steps, extrapolation.draw_scaling, draw_collectives, extrapolation.draw_efficiency,
        extrapolation.draw_crossover,
    ), METHOD,
    shown=("fitted_model", "time_and_cost"),
)  # fmt: skip
