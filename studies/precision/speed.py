"""Time and memory by format: matrix products, sums that only move bytes, training steps. A clock is read here."""

from __future__ import annotations

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
from depthgauge.frames import groups, only, params_of, records
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import Question, below
from depthgauge.seeding import Purpose, generator
from depthgauge.studies.precision.recipes import RECIPES, REFERENCE, Trainer
from depthgauge.study import Case, Context, Grid, Rows, Value
from depthgauge.timing.clocks import Work
from depthgauge.verdict import Claim, Sentence
from depthgauge.workload import moved

PRODUCTS = Claim("precision/products", "a matrix product is faster in 16 bits than in float32")
STEPS = Claim("precision/steps", "a training step is faster in 16 bits than in float32")

FORMATS = ("float32", "bfloat16", "float16")
TIMED = (REFERENCE, "bfloat16_autocast", "bfloat16", "float16_scaled", "float16")
BYTES = {"product": math.nan, "sum": 0.5}  # of float32's time, where the bytes that have to move decide
LARGEST = 4096  # side of a sum
MARGIN = 1.05  # up to 5 % is the same
CONFIDENCE = 0.99
SLOW = (  # without a unit for float16 a step of these takes seconds
    *(Case.of({"batch": 256, "recipe": recipe}) for recipe in TIMED[3:]),
    *(Case.of({"model": "resnet18", "batch": 64, "recipe": recipe}) for recipe in TIMED[3:]),
    *(Case.of({"model": "resnet50", "recipe": recipe}) for recipe in TIMED[3:]),
    *(Case.of({"model": model, "batch": 256}) for model in ("transformer", "lstm", "resnet18", "resnet50")),
)
SIZES = sizes(
    "sides models batches recipes blocks", quick=((128,), ("mlp",), (8, 256), TIMED, 15),
    standard=((32, 64, 128, 256, 512), ("mlp", "lenet5", "transformer", "resnet18"), (8, 64, 256), TIMED, 15),
    full=(
        (32, 64, 128, 256, 512, 1024), ("mlp", "lenet5", "transformer", "lstm", "resnet18", "resnet50"), (8, 64, 256),
        TIMED, 31,
    ),
    tiny=((4, 8), ("mlp",), (2,), TIMED[::2], 8),
)  # fmt: skip


def grids(
    sides: tuple[int, ...], models: tuple[str, ...], batches: tuple[int, ...], recipes: tuple[str, ...], blocks: int
) -> Iterator[Grid]:
    """Operations by format and size, and steps of models by recipe and batch; nothing runs beside."""
    alone: dict[str, Any] = {"chunk": 100, "exclusive": True}
    fixed: dict[str, Value] = {"blocks": blocks}
    for operation, of in (("product", sides), ("sum", tuple(sorted({min(8 * side, LARGEST) for side in sides})))):
        operations: dict[str, tuple[Value, ...]] = {"operation": (operation,), "side": of, "format": FORMATS}
        yield Grid(operations, fixed, together=("format",), claims=(PRODUCTS.id,), **alone)
    steps: dict[str, tuple[Value, ...]] = {"model": models, "batch": batches, "recipe": recipes}
    yield Grid(steps, fixed, together=("recipe",), claims=(STEPS.id,), any_input=True, without=SLOW, **alone)


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """Each in turns with the same in float32; of a step also the bytes that it holds, counted and measured."""
    clock = timing.clock(context.device)
    for case in cases:
        if case.get("operation"):
            work, reference = (_operation(case, fmt, context.device) for fmt in (case.text("format"), FORMATS[0]))
        else:
            (work, trainer, loss), (reference, _, _) = (
                _step(case, recipe, context.device) for recipe in (case.text("recipe"), REFERENCE)
            )
        yield from timing.rows_of(case, timing.in_turns(clock, work, reference, case.integer("blocks")), "call")
        if not case.get("operation"):
            yield case.rows("bytes", float(trainer.bytes_held(loss)))
            if (peak := timing.peak_memory(work, context.device)) is not None:
                yield case.rows("peak", float(peak))


def _operation(case: Case, fmt: str, device: str) -> Work:
    """A product of two square matrices, or the sum of two tensors of as many elements."""
    shape, draws = (case.integer("side"),) * 2, generator(0, Purpose.OPERANDS)
    a, b = (torch.randn(shape, generator=draws).to(device, getattr(torch, fmt)) for _ in range(2))
    return partial(torch.mm if case.text("operation") == "product" else torch.add, a, b, out=torch.empty_like(a))


def _step(case: Case, recipe: str, device: str) -> tuple[Work, Trainer, Any]:
    """A training step of a model, what trains it, and its loss."""
    asked = case.get("input")
    made = models.training(
        case.text("model"), preset="small", device=device, batch=case.integer("batch"),
        asked=None if asked is None else Input.parse(str(asked)),
    )  # fmt: skip
    trainer = Trainer(made.model, RECIPES[recipe], "sgd", 1e-4)
    batch = moved(made.first()[0], device, trainer.recipe.weights)
    loss = partial(made.value, batch)

    def step() -> None:
        trainer.backward(loss)
        trainer.update()

    step()
    return step, trainer, loss


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """Times of operations and steps in multiples of float32's; rates, bytes, and where float16 is how much slower."""
    params = params_of(rows, "operation", "side", "format", "model", "batch", "recipe")
    for name, answer in (("operation", operations), ("recipe", steps)):
        if params[name].notna().any():
            yield from answer(rows, params[params[name].notna()])


def compared(rows: pd.DataFrame, cases: pd.DataFrame, by: list[str], column: str) -> dict[tuple[Any, ...], Any]:
    """Condition -> (comparison with float32, seconds of a call, resolution), for all that is not float32."""
    found = {}
    for key, own in groups(cases, by):
        itself = own.index[own[column] == REFERENCE]
        if not len(itself):
            continue
        blur = stats.resolution(*timing.durations(rows, str(itself[0]), "call"))
        for case, kind in own.loc[own[column] != REFERENCE, column].items():
            a, b = timing.durations(rows, str(case), "call")
            if len(a):
                ratio = stats.time_ratio(a, b, resolution=blur, margin=MARGIN, confidence=CONFIDENCE)
                found[(*key, kind)] = ratio, float(np.median(a)), blur
    return found


def operations(rows: pd.DataFrame, cases: pd.DataFrame) -> Iterator[Answer]:
    """Matrix products and sums: is a product faster in 16 bits?"""
    found = compared(rows, cases.astype({"side": int}), ["operation", "side"], "format")
    if not found:
        return
    question = Question.of(
        "operations", ("operation", "side", "format"), {key: c for key, (c, _, _) in found.items()},
        label="a {operation} of side {side} in {format}", reference=REFERENCE, counted="blocks",
        family=lambda operation, **_: operation,
    )  # fmt: skip
    work = {"product": lambda side: 2 * side**3, "sum": lambda side: side**2}
    yield question.table({
        (operation, side, fmt): {
            "microseconds": 1e6 * seconds, "gigaflops": work[operation](side) / seconds / 1e9,
            "predicted": BYTES[operation], "resolution": blur,
        }
        for (operation, side, fmt), (_, seconds, blur) in found.items()
    })  # fmt: skip
    if products := question.where(operation="product"):
        words = {True: "faster than in float32 is", False: "not faster is", None: "undecided is"}
        yield products.verdict(
            PRODUCTS,
            below,
            unit="times the time in float32",
            why=products.listed(below, words, 9),
            method=_method("a product"),
        )
        half = products.where(format="float16")
        slowest = max(half.members, key=lambda key: half.members[key].effect.value, default=None)
        if slowest is not None and half.members[slowest].above:
            times = half.members[slowest].effect.value
            yield Sentence(
                f"On this device {half.words(slowest)} takes {times:.1f} times as long as in float32.",
                "operations", (PRODUCTS.id,),
            )  # fmt: skip
    if sums := question.where(operation="sum"):
        largest = max(side for _, side, _ in sums.members)
        each = [f"{c.effect.value:.2f} in {fmt}" for (_, side, fmt), c in sums.members.items() if side == largest]
        yield Sentence(
            f"The sum of a matrix of side {largest:,} takes {', '.join(each)}, times float32's; where bytes decide, "
            f"{BYTES['sum']:g}.",
            "operations",
        )


def _method(what: str) -> str:
    return (
        f"{what} in turns with float32's, A B B A, on one thread, median of paired log-ratios, order statistics, "
        f"beyond the resolution, which is that of float32 against itself; margin {MARGIN:g}"
    )


def steps(rows: pd.DataFrame, cases: pd.DataFrame) -> Iterator[Answer]:
    """Training steps: faster in 16 bits, by model, batch and recipe? And the bytes that they hold."""
    held, peak = (only(rows, metric).reindex(cases.index) for metric in ("bytes", "peak"))
    found = compared(rows, cases.astype({"batch": int}), ["model", "batch"], "recipe")
    if not found:
        return
    question = Question.of(
        "steps", ("model", "batch", "recipe"), {key: c for key, (c, _, _) in found.items()},
        label="{model} with {recipe}, batch {batch}", reference=REFERENCE, counted="blocks",
        family=lambda model, batch, **_: (model, batch),
    )  # fmt: skip
    place = {(row.model, int(row.batch), row.recipe): row.Index for row in records(cases)}
    yield question.table({
        key: {
            "milliseconds": 1e3 * seconds, "memory": held[place[key]] / held[place[(*key[:2], REFERENCE)]],
            "peak_mib": peak[place[key]] / 2**20, "resolution": blur,
        }
        for key, (_, seconds, blur) in found.items()
    })  # fmt: skip
    words = {True: "a step is faster than in float32 for", False: "not faster for", None: "undecided for"}
    yield question.verdict(
        STEPS, below, unit="times the time in float32", why=question.listed(below, words, 6), method=_method("a step")
    )


def _ratios(rows: pd.DataFrame, column: str, at: str, by: str) -> Any:
    axes = {"xscale": "log", "yscale": "log", "ylabel": "time, times float32's"}

    def form(axis: Any, own: pd.DataFrame, **options: Any) -> None:
        drawing.estimates(axis, own, at, joined=True, **options)
        axis.axhline(1, color=GREY, lw=0.8, zorder=0)

    return drawing.panels(rows, column, form, by=by, axes=axes)


@drawing.figure(
    "operations", "A narrow format is faster where the device has its arithmetic, or where bytes decide",
    "Time of a call in multiples of float32's, medians, 99 % intervals that hold at once; side: rows and columns of "
    "each matrix. Theory: half the bytes take half the time.",
)  # fmt: skip
def draw_operations(operations: pd.DataFrame) -> Any:
    """Ratios to float32 by size, a panel an operation."""
    return _ratios(operations, "operation", "side", "format")


@drawing.figure(
    "steps", "What a training step costs in each recipe",
    "Time of a step in multiples of float32's, medians, 99 % intervals that hold at once in a panel and batch.",
)  # fmt: skip
def draw_steps(steps: pd.DataFrame) -> Any:
    """Ratios to float32 by batch, a panel a model."""
    return _ratios(steps, "model", "batch", "recipe")


METHOD = """**Speed.** Operations, and training steps (SGD with momentum) of models' small presets, in turns with the
same in float32 and with nothing beside them; float32 against itself gives the resolution. A sum moves three numbers an
element and computes one, so that half the bytes would halve its time; a product computes with each number as often as
its matrices are wide. Bytes of a step are counted as for the choice; `peak_mib` is the resident memory that it added,
and says little below a few MiB."""
PART = Part(
    "speed", (PRODUCTS, STEPS), SIZES, grids, run, analyse, (draw_operations, draw_steps), METHOD,
    preflight=lambda case: case.but(blocks=1), topic="cost",
)  # fmt: skip
