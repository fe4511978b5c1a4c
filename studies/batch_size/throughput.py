"""Examples a second and memory against the batch size: where time stops falling. A clock is read here."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch

from depthgauge import drawing, models, stats, timing
from depthgauge.drawing.palette import GREY
from depthgauge.factories import Input
from depthgauge.frames import groups, params_of
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import Question, above
from depthgauge.studies.batch_size import memory
from depthgauge.study import Case, Context, Grid, Rows, Value
from depthgauge.timing.clocks import Work
from depthgauge.verdict import Claim, Sentence

SATURATION = Claim(
    "batch_size/saturation", "from a batch within the sweep on, doubling it gains less than 10 % of examples a second"
)
OVERHEAD = Claim(
    "batch_size/overhead", "at the smallest batches doubling the batch raises examples a second by more than half"
)
MEMORY = Claim(
    "batch_size/memory",
    "the memory of a step grows linearly: the line through two smaller batches predicts that of the largest within 5 %",
)
LARGEST = Claim(
    "batch_size/largest",
    "the largest batch that fits on a CUDA device is the one that smaller ones predict within 25 %",
)
GAIN = 1.1  # a doubling that raises examples a second by less has stopped paying
PAYS = 1.5  # one that raises them by more is mostly free
KEYS = ("model", "pass", "batch")
BATCHES = tuple(2**k for k in range(13))
SIZES = sizes(
    "models batches rounds", quick=(("mlp",), BATCHES[::2], 20), standard=(("mlp", "lenet5"), BATCHES[:11], 20),
    full=(("mlp", "lenet5", "resnet18", "transformer"), BATCHES, 31), tiny=(("mlp",), (1, 4, 16), 6),
)  # fmt: skip


def grids(models: tuple[str, ...], batches: tuple[int, ...], rounds: int) -> Iterator[Grid]:
    """Steps of models by batch, and the search for the largest batch; nothing runs beside."""
    alone: dict[str, Any] = {"chunk": 100, "exclusive": True, "any_input": True}
    timed: dict[str, tuple[Value, ...]] = {"model": models, "batch": batches}
    yield Grid(timed, {"rounds": rounds}, together=("batch",), claims=(SATURATION.id, OVERHEAD.id, MEMORY.id), **alone)
    yield Grid({"model": models}, {"most": memory.MOST}, claims=(LARGEST.id,), **alone)


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """Seconds of a forward pass and of a step, all batches in turns; bytes; or the largest batch that fits."""
    if cases[0].get("most"):
        for case in cases:
            yield from memory.search(case, context.device, partial(_step, case, context.device))
        return
    device = timing.Device.named(context.device)
    passes = [_passes(case, case.integer("batch"), context.device) for case in cases]
    works = [work for each in passes for work in each.values()]
    for work in works:
        work()
    seconds = timing.rounds_in_turns(timing.clock(device), works, cases[0].integer("rounds"))
    columns = iter(seconds.T)
    for case, each in zip(cases, passes, strict=True):
        for name in each:
            yield case.rows("seconds", next(columns), direction=name, step=np.arange(len(seconds)))
        yield case.rows("peak_bytes", float(timing.peak_tensors(each["step"], device)))


def _step(case: Case, device: str, batch: int) -> Work:
    return _passes(case, batch, device)["step"]


def _passes(case: Case, batch: int, device: str) -> dict[str, Work]:
    """Name -> a pass on so many examples: the loss alone, or a step of SGD with momentum at a learning rate of 0."""
    asked = case.get("input")
    made = models.training(
        case.text("model"), preset="small", device=device, batch=batch,
        asked=None if asked is None else Input.parse(str(asked)),
    )  # fmt: skip
    data = made.first()[0]
    optimizer = torch.optim.SGD(made.model.parameters(), lr=0.0, momentum=0.9)

    def step() -> None:
        made.value(data).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.step()
        optimizer.zero_grad()  # last: gradients that were there before would not count as memory of the step

    return {"forward": torch.no_grad()(partial(made.value, data)), "step": step}


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """Examples a second and where they stop growing; memory and the line through it; the largest batch."""
    params = params_of(rows, "model", "batch")
    params["batch"] = pd.to_numeric(params["batch"])
    yield from rates(rows, params.dropna())
    lines = yield from memory.lines(MEMORY, rows, params.dropna())
    if (rows["metric"] == "largest").any():
        yield from memory.fitting(LARGEST, rows, params, lines)


# -- examples a second -------------------------------------------------------------------------------------------------


def rates(rows: pd.DataFrame, cases: pd.DataFrame) -> Iterator[Answer]:
    """Examples a second by batch, what each doubling gains, and the batch from which it gains little."""
    timed = rows[rows["metric"] == "seconds"]
    table, asked, swept = [], {}, {}
    for (model, name), own in groups(timed, ["model", "direction"]):
        by_batch = {
            int(cases.loc[case, "batch"]): part.sort_values("step")["value"].to_numpy()
            for case, part in groups(own, "case")
        }
        swept[model] = sizes = sorted(by_batch)
        for size in sizes:
            middle = stats.median(size / by_batch[size])
            table.append({
                "model": model, "pass": name, "batch": size, "n": middle.n, "value": middle.value,
                "low_95": middle.low, "high_95": middle.high, "milliseconds": 1e3 * float(np.median(by_batch[size])),
            })  # fmt: skip
        for before, size in itertools.pairwise(sizes):
            power = 1 / math.log2(size / before)  # a doubling's part
            pair = (size / by_batch[size]) ** power, (before / by_batch[before]) ** power
            asked[model, name, size] = stats.paired(*pair, log=True, margin=GAIN, test="median")
    if table:
        yield "throughput", pd.DataFrame(table)
    question = Question.of(
        "gains", KEYS, asked, label="{pass} of {model} at {batch}", reference="no gain", counted="rounds",
        family=lambda **of: (of["model"], of["pass"]),
    )  # fmt: skip
    if question:
        yield question.table()
        yield from stopping(question.where(**{"pass": "step"}), swept)


def stopping(steps: Question, sizes: dict[str, list[int]]) -> Iterator[Answer]:
    """The batch from which a step's examples a second grow by less than the margin a doubling, with its interval."""
    answers, first, found, said = {}, {}, [], []
    for model in dict.fromkeys(key[0] for key in steps.members):
        own = steps.where(model=model).members
        ends = stop(sizes[model], [above(comparison) for comparison in own.values()])
        answers[model] = True if ends[1] < math.inf else False if math.isinf(ends[0]) else None
        least = next(iter(own.values())).effect
        first[model] = True if least.low > PAYS else False if least.high < PAYS else None
        found.append({"model": model, "batch": ends[0], "up to": ends[1]})
        last = sizes[model][-1]
        said.append(
            f"{model} still gains at {last}" if math.isinf(ends[0])
            else f"{model} gains little from {ends[0]:g} on at the earliest, and may still gain at {last}"
            if math.isinf(ends[1])
            else f"{model} gains little from {' to '.join(f'{end:g}' for end in dict.fromkeys(ends))} on"
        )  # fmt: skip
    yield "stops", pd.DataFrame(found)
    why = f"a step of {'; '.join(said)}"
    turns = "all batches in turns, on one thread, growth of examples a second a doubling, order statistics"
    yield steps.verdict(
        SATURATION,
        answers,
        unit="times the examples a second, by a doubling",
        why=why,
        method=f"{turns}, margin {GAIN:g}",
        shown=list(steps.members)[-1],
    )
    each = [f"{model} by a factor of {_first(steps, model).effect.value:.2f}" for model in first]
    yield steps.verdict(
        OVERHEAD, first, unit="times the examples a second, by a doubling", shown=next(iter(steps.members)),
        why=f"the first doubling raises the examples a second of {', '.join(each)}",
        method=f"{turns}, against {PAYS:g}",
    )  # fmt: skip
    yield Sentence(f"In examples a second, a step of {said[0]} (batch size, on this device).", claims=(SATURATION.id,))


def _first(steps: Question, model: str) -> stats.Comparison:
    return next(iter(steps.where(model=model).members.values()))


def stop(sizes: Sequence[int], grows: Sequence[bool | None]) -> tuple[float, float]:
    """The least and the largest batch from which no doubling may, and surely does not, gain more than the margin.

    Args:
        sizes: batches, ascending.
        grows: whether examples a second grew from each to the next; None where the interval cannot tell.

    Returns:
        Both ends; infinite where the last one grew, or may have.
    """
    last = max((place for place, answer in enumerate(grows) if answer is True), default=-1) + 1
    unsure = max((place for place, answer in enumerate(grows) if answer is not False), default=-1) + 1
    low, high = (math.inf if at == len(grows) else float(sizes[at]) for at in (last, unsure))
    return low, high


@drawing.figure(
    "throughput", "Examples a second against the batch size",
    "Medians of rounds with all batches in turns, 95 % intervals, of a forward pass and of a step; grey: the batches "
    "from one of which on doubling it gains a step less than 10 %.",
)  # fmt: skip
def draw_throughput(throughput: pd.DataFrame, stops: pd.DataFrame) -> Any:
    """Examples a second by batch, a panel a model."""
    axes = {"xscale": "log", "yscale": "log", "xlabel": "batch size", "ylabel": "examples a second"}

    def form(axis: Any, own: pd.DataFrame, ends: pd.DataFrame, **options: Any) -> None:
        drawing.estimates(axis, own, "batch", joined=True, **options)
        low, high = ends["batch"].iloc[0], ends["up to"].iloc[0]
        if math.isfinite(high):
            axis.axvspan(low / 1.1, high * 1.1, color=GREY, alpha=0.25, lw=0, zorder=0, label="stops growing")

    return drawing.panels(throughput, "model", form, by="pass", ends=stops, axes=axes)


METHOD = f"""**Throughput and memory.** A forward pass (the loss without gradients) and a step of SGD with momentum of
small presets, at every batch size in turns, up in one round and down in the next, so that a drift of the machine meets
all alike; on one thread, with nothing beside. From one batch to the next the growth of examples a second is a paired
log-ratio by round, divided by the number of doublings between; intervals of a model's pass hold at once. It has stopped
paying at the batch from which no interval lies above {GAIN - 1:.0%} a doubling (the lower end) and from which all lie
below it (the upper end). Memory is that of the tensors that a step makes, counted at their height as operations make
them and drop them, weights, data and the buffers within an operation apart. On CUDA it is what torch's allocator handed
out, and the largest batch is looked for by doubling and bisection within {memory.SHARE:.0%} of the device's memory, the
out-of-memory errors caught and the memory handed back."""
PART = Part(
    "throughput", (SATURATION, OVERHEAD, MEMORY, LARGEST), SIZES, grids, run, analyse,
    (draw_throughput, memory.draw_memory), METHOD, shown=("stops", "memory"), topic="cost",
)  # fmt: skip
