"""Time of an activation by itself, against a copy of its tensor, by number format. A clock is read here."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch

from depthgauge import drawing, stats, timing
from depthgauge.frames import groups, only, params_of, records
from depthgauge.models.activations import FEW, make, names, once
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import Question
from depthgauge.seeding import Purpose, generator
from depthgauge.study import Case, Context, Grid, Rows
from depthgauge.verdict import Sentence

FORMATS = ("float32", "bfloat16", "float16")
# Elements that must move an element: forward reads x and writes y; backward reads the gradient and one saved tensor,
# and writes the other gradient; a copy reads and writes.
TRAFFIC = {"forward": 2, "backward": 3}
COPY = 2
CONFIDENCE = 0.99
SIZES = sizes(
    "activations log2_elements blocks", quick=(FEW, 18, 13), standard=(names(), 21, 15),
    full=(names(), 24, 31), tiny=(("relu", "tanh"), 8, 8),
)  # fmt: skip


def grids(activations: tuple[str, ...], log2_elements: int, blocks: int) -> Iterator[Grid]:
    """Every activation, and a copy, in every format; nothing runs beside."""
    timed = ("copy", *(name for name in activations if name != "identity"))
    yield Grid(
        {"activation": timed, "format": FORMATS}, {"log2_elements": log2_elements, "blocks": blocks},
        together=("activation", "format"), chunk=1000, exclusive=True,
    )  # fmt: skip


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """Forward and backward of a large tensor, each in turns with a copy of it; and a copy in turns with itself."""
    clock = timing.clock(context.device)
    for case in cases:
        dtype, size = getattr(torch, case.text("format")), 2 ** case.integer("log2_elements")
        x = torch.randn(size, generator=generator(0, Purpose.INPUTS)).to(context.device, dtype)
        copy, blocks = partial(torch.empty_like(x).copy_, x), case.integer("blocks")
        if case.text("activation") == "copy":
            yield from timing.rows_of(case, timing.in_turns(clock, copy, copy, blocks), "copy")
            continue
        module, inputs = make(case.text("activation")).to(context.device, dtype), (x.clone().requires_grad_(),)
        y = module(*inputs)
        backward = partial(torch.autograd.grad, y, inputs, torch.ones_like(y), retain_graph=True)
        for name, call in (("forward", torch.no_grad()(partial(module, x))), ("backward", backward)):
            yield from timing.rows_of(case, timing.in_turns(clock, call, copy, blocks), name)
        yield case.rows("saved_bytes", timing.saved_bytes(module, x) / size)


def resolution(rows: pd.DataFrame, cases: pd.Index, direction: str) -> float:
    """The factor that the first of these cases, one thing against itself, resolves; infinite without one."""
    return stats.resolution(*timing.durations(rows, str(cases[0]), direction)) if len(cases) else np.inf


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """Each activation's time in multiples of a copy of its tensor, by format."""
    every = params_of(rows, "activation", "format", "log2_elements")
    copies = every[every["activation"] == "copy"]
    timed = once(every[every["activation"] != "copy"].reset_index(), timed=True)
    saved = only(rows, "saved_bytes")
    asked, further = {}, {}
    for (fmt, size), cases in groups(timed, ["format", "log2_elements"]):
        blur = resolution(rows, copies.index[copies["format"] == fmt], "copy")
        for row, (name, traffic) in itertools.product(records(cases), TRAFFIC.items()):
            seconds, copied = timing.durations(rows, row.case, name)
            key = (row.activation, fmt, name)
            asked[key] = ratio = stats.time_ratio(seconds, copied, resolution=blur, confidence=CONFIDENCE)
            further[key] = {
                "nanoseconds": 1e9 * float(np.median(seconds)) / 2 ** int(size), "predicted": traffic / COPY,
                "bandwidth": traffic / COPY / ratio.effect.value,  # as a share of what a copy attains
                "saved_bytes": saved.get(row.case, np.nan), "log2_elements": int(size), "resolution": blur,
            }  # fmt: skip
    question = Question.of(
        "elementwise", ("activation", "format", "pass"), asked, label="{activation} in {format}, {pass}",
        reference="a copy of the tensor", counted="blocks", family=lambda **key: (key["format"], key["pass"]),
    )  # fmt: skip
    yield question.table(further)
    if slowest := max(further, key=lambda key: further[key]["nanoseconds"], default=None):
        times = question.members[slowest].effect.value
        yield Sentence(
            f"The slowest activation by itself is {question.words(slowest)}: it takes {times:.0f} times as long as a "
            "copy of its tensor."
        )


@drawing.figure(
    "elementwise", "What an activation costs by itself, against moving its bytes",
    lambda elementwise: f"Time of a tensor of 2^{elementwise['log2_elements'].max()} elements in multiples of the time "
    f"of copying it; medians, {100 * CONFIDENCE:g} % intervals that hold at once in a panel and format. Theory: "
    "what the bytes that have to move would take at copy bandwidth; beyond it arithmetic decides.",
)  # fmt: skip
def draw_elementwise(elementwise: pd.DataFrame) -> Any:
    """Multiples of a copy, by format."""
    order = elementwise.groupby("activation")["value"].median().sort_values().index
    shown = elementwise.assign(activation=pd.Categorical(elementwise["activation"], order))
    axes = {"xscale": "log", "xlabel": "times a copy of the tensor"}
    return drawing.panels(shown, "pass", drawing.estimates, at="activation", by="format", axes=axes)


METHOD = """**Time.** Medians of paired log-ratios in turns A B B A; a difference counts only beyond the resolution,
that of one thing against itself. Nothing runs beside. These rows alone differ when they are measured again."""
PART = Part("elementwise", (), SIZES, grids, run, analyse, (draw_elementwise,), METHOD, topic="cost")
