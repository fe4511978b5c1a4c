"""A training step in three formats side by side, operator by operator and kernel by kernel. A clock is read here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import torch

from depthgauge import drawing, models, profiling
from depthgauge.factories import Input
from depthgauge.frames import groups, params_of
from depthgauge.parts import Answer, Part, sizes
from depthgauge.roofline import Ceilings
from depthgauge.study import Case, Context, Grid, Rows
from depthgauge.verdict import Sentence
from depthgauge.workload import Training, moved

FORMATS = ("float32", "bfloat16", "float16")
BATCH = 64
MOST = 8  # operators of a figure's panel
SIZES = sizes("models seconds", quick=((), 1), standard=(("mlp", "lenet5", "transformer"), 2),
              full=(("mlp", "lenet5", "transformer", "lstm", "resnet18"), 10), tiny=(("mlp",), 0))  # fmt: skip


def grids(models: tuple[str, ...], seconds: int) -> Iterator[Grid]:
    """A step of each model in each format; nothing runs beside. At quick there is none."""
    if models:
        varied: dict[str, Any] = {"model": models, "dtype": FORMATS}
        alone: dict[str, Any] = {"chunk": 100, "exclusive": True, "any_input": True}
        yield Grid(varied, {"batch": BATCH, "seconds": seconds}, together=("dtype",), **alone)


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """Seconds of a step by operator and, on a device that has them, by kernel; and of the step without the profiler."""
    unasked = Ceilings(context.device, 1, dict.fromkeys((*FORMATS, "float64", "tf32"), 1.0), 1.0, 1.0)  # no roofline
    for case in cases:
        setting: dict[str, Any] = {"model": case.text("model"), "dtype": case.text("dtype")}
        with TemporaryDirectory(dir=context.scratch) as name:
            folder, training = Path(name), _training(case, context.device)
            captured = profiling.capture(
                training, label="step", folder=folder, ceilings=unasked, setting=setting,
                seconds=float(case.integer("seconds")),
            )  # fmt: skip
            profile = profiling.analyse(captured, profiling.read(folder / captured.trace))
        yield case.rows("step", profile.seconds.value)
        for direction, key in (("operator", ["name"]), ("kernel", ["operator", "name"])):
            frame = profile.operators if direction == "operator" else profile.kernels
            if len(frame):
                own = frame.groupby(key)["seconds"].sum().sort_values(ascending=False, kind="stable")
                names = [name if isinstance(name, str) else ": ".join(name) for name in own.index]
                yield case.rows("seconds", own.to_numpy(float), layer=names, direction=direction)


def _training(case: Case, device: str) -> Training:
    asked, numbers = case.get("input"), getattr(torch, case.text("dtype"))
    made = models.training(
        case.text("model"), preset="small", device=device, batch=case.integer("batch"),
        asked=None if asked is None else Input.parse(str(asked)),
    )  # fmt: skip
    batch = moved(made.first()[0], device, numbers)
    return Training(made.model.to(numbers), [batch], made.loss, made.optimizer)


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """Seconds side by side, a row an operator or a kernel, and what takes longest in float16."""
    params = params_of(rows, "model", "dtype")
    measured = rows[rows["metric"] == "seconds"]
    for direction, own in groups(measured, "direction"):
        yield f"{direction}s", _side_by_side(own, str(direction))
    steps = params.assign(step=rows[rows["metric"] == "step"].set_index("case")["value"]).dropna()
    ratios: dict[str, float] = {}
    for model, own in groups(steps, "model"):
        told = []
        for case, (dtype, seconds) in own[["dtype", "step"]].iterrows():
            longest = measured[(measured["case"] == case) & (measured["direction"] == "operator")].nlargest(1, "value")
            most = f" ({longest['layer'].iloc[0]} {1e3 * longest['value'].iloc[0]:.3g} ms)" if len(longest) else ""
            told.append(f"{1e3 * seconds:.3g} ms in {dtype}{most}")
        text = f"A step of {model} takes {', '.join(told)}; in brackets the longest operator."
        ratios[text] = float(own["step"].max() / own["step"].min())
    if ratios:
        yield Sentence(max(ratios, key=ratios.__getitem__))


def _side_by_side(measured: pd.DataFrame, what: str) -> pd.DataFrame:
    """Microseconds of a step, a column a format, and ratios to float32; what a format does not call is missing."""
    wide = 1e6 * measured.pivot_table(index=["model", "layer"], columns="dtype", values="value", sort=False)
    wide = wide.reindex(columns=[name for name in FORMATS if name in wide])
    order = wide.max(axis=1).rename("most").reset_index().sort_values(["model", "most"], ascending=[True, False])
    table = wide.loc[pd.MultiIndex.from_frame(order[["model", "layer"]])].add_suffix("_us")
    for name in wide.columns[1:] if "float32" in wide else ():
        table[f"{name}_ratio"] = table[f"{name}_us"] / table["float32_us"]
    return table.rename_axis(columns=None).reset_index().rename(columns={"layer": what})


@drawing.figure(
    "operators", "Where a step spends its time in each format",
    f"Microseconds of a training step, batch of {BATCH}, of the operators that take longest in any format, as the "
    "profiler traced them. An operator that a format does not call has no mark.",
)  # fmt: skip
def draw_operators(operators: pd.DataFrame) -> Any:
    """Microseconds, a row an operator, a panel a model."""
    largest = operators.groupby("model", sort=False).head(MOST)
    parts = [largest.assign(dtype=name, value=largest[f"{name}_us"]) for name in FORMATS if f"{name}_us" in operators]
    axes: dict[str, Any] = {"xscale": "log", "xlabel": "µs a step"}
    return drawing.panels(pd.concat(parts), "model", _dots, by="dtype", shared="", axes=axes, size=(4.3, 3.4))


def _dots(axis: Any, rows: pd.DataFrame, by: str, looks: Any) -> None:
    names = list(dict.fromkeys(rows["operator"]))
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.4, -0.6)
    for value, look in looks.items():
        own = rows[rows[by] == value]
        where = own["operator"].map(names.index)
        axis.plot(own["value"], where, look.marker, color=look.colour, label=str(value))


METHOD = f"""
**Operators.** A training step (SGD with momentum, batch of {BATCH}) of models' small presets, weights and batch in each
format, as `depthgauge profile` traces it: an operator is what autograd hands to the device, with all that it calls;
kernels are those that it launches, where the device has any. The profiler lengthens short operators. `depthgauge
profile MODEL --dtype FORMAT`, once a format and into one `--out`, has the roofline, phases and memory besides. `quick`
traces nothing.
"""
PART = Part(
    "operators", (), SIZES, grids, run, analyse, (draw_operators,), METHOD, shown=("operators", "kernels"), topic="cost"
)
