"""Memory of a step against its batch size: the line that it follows, and the largest batch that fits."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch

from depthgauge import drawing, timing
from depthgauge.drawing.palette import INK
from depthgauge.frames import groups, only, records
from depthgauge.parts import Answer
from depthgauge.questions import judged
from depthgauge.study import Case, Rows
from depthgauge.verdict import Claim, Status, Verdict

LINEAR = 1.05
FITS = 1.25
FITTED = (16, 4)  # the line goes through the largest batch over these
SHARE = 0.1  # of a CUDA device's memory, in which the largest batch is looked for
MOST = 1 << 24
NEVER = "a CPU does not refuse memory, so that its largest batch cannot be found without ending the process"


def search(case: Case, device: str, step: timing.Step) -> Iterator[Rows]:
    """The largest batch that fits into a share of the device's memory; NaN where it cannot be looked for."""
    found = timing.largest_batch(step, case.integer("most"), device, memory=SHARE, ratio=1.02)
    yield case.rows("largest", math.nan if found.batch is None else float(found.batch))
    if found.batch is not None:
        yield case.rows("limit_bytes", SHARE * torch.cuda.get_device_properties(device).total_memory)
        yield case.rows("refused", math.nan if found.above is None else float(found.above))


def lines(claim: Claim, rows: pd.DataFrame, cases: pd.DataFrame) -> Any:
    """Bytes of a step's tensors at their height, beside a line through two batches; returns the lines by model."""
    peaks = cases.assign(peak_bytes=only(rows, "peak_bytes")).dropna().sort_values("batch")
    table, answers, found = [], {}, {}
    for model, own in groups(peaks, "model"):
        at = own.set_index("batch")["peak_bytes"]
        largest = int(at.index.max())
        small, middle = (next((int(b) for b in at.index if b >= largest / part), largest) for part in FITTED)
        if middle <= small or middle == largest:
            continue
        slope = (at[middle] - at[small]) / (middle - small)
        found[model] = float(at[small] - slope * small), float(slope)
        for batch, peak in at.items():
            value = float(peak / (found[model][0] + slope * float(str(batch))))
            inside = 1 / LINEAR <= value <= LINEAR
            table.append({
                "model": model, "batch": batch, "mib": peak / 2**20, "line_mib": peak / value / 2**20, "value": value,
                "answer": "fitted" if batch in {small, middle} else "on the line" if inside else "off the line",
            })  # fmt: skip
        answers[model] = 1 / LINEAR <= table[-1]["value"] <= LINEAR
    if not table:
        return found
    frame = pd.DataFrame(table)
    yield "memory", frame
    last = frame.groupby("model", sort=False).tail(1)
    shown = last.loc[(np.log(last["value"])).abs().idxmax()]
    off = frame[frame["answer"] == "off the line"]
    why = "; ".join(
        f"{row['model']}: {row['value']:.3f} times the line at {row['batch']:g}, "
        f"{found[str(row['model'])][1] / 1024:.1f} KiB an example" for _, row in last.iterrows()
    )  # fmt: skip
    if len(off):
        why += f"; off the line: {', '.join(_listed(off))}"
    yield judged(
        claim, answers, why, observed=float(shown["value"]), n=len(frame), counted="batch sizes",
        table="memory", answer=str(shown["answer"]), condition=f"{shown['model']} at {shown['batch']:g}",
        unit="times what the line predicts",
        method="bytes of the tensors that a step makes, counted at their height, each once; weights and data apart",
    )  # fmt: skip
    return found


def _listed(rows: pd.DataFrame) -> list[str]:
    return [f"{row['model']} at {row['batch']:g}" for _, row in rows.iterrows()]


def fitting(
    claim: Claim, rows: pd.DataFrame, params: pd.DataFrame, lines: dict[str, tuple[float, float]]
) -> Iterator[Answer]:
    """The largest batch that fits against that which the line of the memory predicts."""
    found = params.assign(**{name: only(rows, name) for name in ("largest", "limit_bytes")})
    found = found[found["largest"].notna() & found["model"].isin(list(lines))]
    if found.empty:
        yield Verdict(claim.id, claim.text, Status.NOT_APPLICABLE, why=NEVER)
        return
    found["predicted"] = [(own.limit_bytes - lines[own.model][0]) / lines[own.model][1] for own in records(found)]
    found["value"] = found["largest"] / found["predicted"]
    found["answer"] = np.where(found["value"].between(1 / FITS, FITS), "predicted", "other")
    yield "largest", found.drop(columns="batch").reset_index(drop=True)
    far = found.loc[np.log(found["value"]).abs().idxmax()]
    yield judged(
        claim, list(found["answer"] == "predicted"),
        "; ".join(f"{own.model}: {own.largest:,.0f} of {own.predicted:,.0f} predicted" for own in records(found)),
        observed=float(far["value"]), n=len(found), counted="models", table="largest", answer=str(far["answer"]),
        unit="times the predicted batch", condition=str(far["model"]),
        method=f"bisection within {SHARE:.0%} of the device's memory, out-of-memory errors caught; margin {FITS:g}",
    )  # fmt: skip


@drawing.figure(
    "memory", "Memory of a step against the batch size, beside a line through two large batches",
    f"Points: bytes of the tensors that a step makes, at their height, weights apart; dashed: the line through the "
    f"largest batch over {FITTED[0]} and over {FITTED[1]}.",
)  # fmt: skip
def draw_memory(memory: pd.DataFrame) -> Any:
    """Memory by batch, beside its line, one colour a model."""
    import matplotlib.pyplot as plt  # noqa: PLC0415 -- a study is loaded by who draws nothing

    canvas, axis = plt.subplots(figsize=(6.8, 5.2))
    looks = drawing.looks("model", memory["model"])
    for model, own in groups(memory, "model"):
        look = looks[model]
        axis.plot(own["batch"], own["mib"], look.marker, color=look.colour, label=model)
        axis.plot(own["batch"], own["line_mib"].where(own["line_mib"] > 0), "--", lw=1.2, color=look.colour)
    axis.plot([], [], "--", lw=1.2, color=INK, label="line through two batches")
    axis.set(xscale="log", yscale="log", xlabel="batch size", ylabel="memory of a step, MiB")
    return canvas
