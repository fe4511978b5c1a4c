"""Limits of the formats: constants and thresholds by definition, and as torch has them on this device."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from depthgauge import drawing, formats
from depthgauge.formats import Format
from depthgauge.frames import groups, records
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import enumerated, judged
from depthgauge.seeding import Purpose, generator
from depthgauge.studies.precision.thresholds import LIMITS, cast, native, source, zero_defined
from depthgauge.study import Case, Context, Grid, Rows
from depthgauge.verdict import Claim, Sentence

CASTS = Claim("precision/casts", "torch's casts on this device follow the definition of every format, bit for bit")
EXACT = Claim(
    "precision/limits",
    "values vanish, overflow and stop a sum of ones exactly where a format's definition has it: a value rounds to zero "
    "up to half the smallest one",
)
SUBNORMAL = Claim(
    "precision/subnormal_numbers", "this device computes with subnormal numbers, and flushes none to zero"
)

FORMATS = (
    "float32", "tf32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2", "mxfp8_e4m3", "mxfp8_e5m2", "nvfp4",
)  # fmt: skip
ORDINARY, FLUSHED = "as found", "set_flush_denormal"
SIZES = sizes("patterns", quick=(2**18,), standard=(2**21,), full=(2**22,), tiny=(2**10,))


def grids(patterns: int) -> Iterator[Grid]:
    """Every format; nothing is random but the bit patterns that are cast."""
    yield Grid({"format": FORMATS}, {"patterns": patterns}, 0, ("format",), len(FORMATS))


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """Thresholds by bisection, casts of bit patterns, and what becomes of subnormal numbers."""
    for case in cases:
        fmt, device = formats.get(case.text("format")), context.device
        for name, (measure, _) in LIMITS.items():
            if not math.isnan(value := measure(fmt, device)):
                yield case.rows("threshold", value, layer=name)
        if native(fmt):
            x = patterns(fmt, case.integer("patterns"))
            ours, theirs = formats.round(x, fmt), cast(x.to(device), fmt).cpu()
            same = (ours == theirs) | (ours.isnan() & theirs.isnan())
            yield case.rows("patterns", len(x))
            yield case.rows("different", int((~same).sum()))
            yield case.rows("beyond", int((~same & (x.abs() > fmt.max)).sum()))
            for mode, kept in subnormals(fmt, device):
                yield case.rows("kept", list(kept.values()), layer=list(kept), direction=mode)


def patterns(fmt: Format, count: int) -> Tensor:
    """Numbers that are cast: random bit patterns, and the midpoints of neighbouring values with their own neighbours.

    All midpoints of a format of 16 bits or less, else those of random values.
    """
    dtype, own, draws = source(fmt), getattr(torch, fmt.dtype), generator(count, Purpose.INPUTS, fmt.name)
    bits = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

    def drawn(of: torch.dtype) -> Tensor:
        high = 2 ** (8 * of.itemsize - 1) - 1
        return torch.randint(-high, high, (count,), generator=draws).to(bits[of.itemsize]).view(of)

    every = torch.arange(2 ** min(16, 8 * own.itemsize)).to(bits[own.itemsize]).view(own)
    values = (drawn(own) if own.itemsize > 2 else every).to(dtype)
    values = values[values.abs() <= fmt.max]
    middle = values.abs() + fmt.spacing(values).to(dtype) / 2
    infinity = torch.full_like(middle, math.inf)
    return torch.cat([drawn(dtype), middle, -middle, middle.nextafter(infinity), middle.nextafter(-infinity)])


def subnormals(fmt: Format, device: str) -> Iterator[tuple[str, dict[str, bool]]]:
    """Subnormal numbers that outlive a cast, a product and a sum, with torch's mode as it is and set to flush."""
    dtype, tiny = getattr(torch, fmt.dtype), fmt.smallest_normal
    flushed = not float(torch.tensor(torch.finfo(torch.float32).tiny) / 2)  # the mode as it is
    try:
        for mode in (ORDINARY, FLUSHED):
            if mode == FLUSHED and not torch.set_flush_denormal(True):
                return
            wide = torch.full((64,), tiny / 2, dtype=source(fmt), device=device)
            kept = {"cast": bool((wide.to(dtype).to(torch.float64) > 0).all())}
            if dtype.itemsize > 1:  # torch computes in no narrower format
                x = torch.full((64,), tiny, dtype=dtype, device=device)
                kept |= {"product": bool((x * 0.5 > 0).all()), "sum": bool((x * 1.5 - x > 0).all())}
            yield mode, kept
    finally:
        torch.set_flush_denormal(flushed)


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """Constants by definition; thresholds, casts and subnormal numbers as measured."""
    shown = [formats.get(name) for name in dict.fromkeys(rows["format"])]
    names = ("exponent_bits", "mantissa_bits", "max", "smallest_normal", "smallest_subnormal", "epsilon")
    yield (
        "formats",
        pd.DataFrame([{"format": fmt.name, **{name: getattr(fmt, name) for name in names}} for fmt in shown]),
    )
    yield "windows", pd.concat([window(fmt) for fmt in shown], ignore_index=True)
    yield from thresholds(rows[rows["metric"] == "threshold"])
    counts = rows[rows["metric"].isin(["patterns", "different", "beyond"])]
    yield from casts(counts.pivot_table("value", "format", "metric", sort=False))
    yield from subnormal(rows[rows["metric"] == "kept"])


def window(fmt: Format) -> pd.DataFrame:
    """The smallest, the smallest normal and the largest value, and the spacing there in units of the binade.

    Those of a block format are of a block whose largest value is 1.
    """
    element = fmt.element if isinstance(fmt, formats.BlockFormat) else fmt
    x = np.array([element.smallest_subnormal, element.smallest_normal, element.max])
    spacing = element.spacing(x) / 2.0 ** np.floor(np.log2(x))
    return pd.DataFrame(
        {"format": fmt.name, "magnitude": x * zero_defined(fmt) / element.zero_below, "spacing": spacing}
    )


def thresholds(rows: pd.DataFrame) -> Iterator[Answer]:
    """Thresholds beside their definition; the claim is about what torch does."""
    table = rows.rename(columns={"layer": "threshold"})[["format", "threshold", "value"]].reset_index(drop=True)
    table["predicted"] = [LIMITS[row.threshold][1](formats.get(row.format)) for row in records(table)]
    table["by"] = ["torch" if native(formats.get(name)) else "depthgauge" for name in table["format"]]
    exact = np.where(table["by"] == "torch", 0.0, 1e-6)  # the scale of an NVFP4 block is rounded itself
    equal = (table["value"] == table["predicted"]) | (abs(table["value"] / table["predicted"] - 1) < exact)
    table["answer"] = np.where(equal, "equal", "other")
    yield "limits", table
    own = table[table["by"] == "torch"]
    if not len(own):
        return
    other = own[own["answer"] == "other"]
    shown = (other if len(other) else own).iloc[0]
    named = enumerated(f"{r.format} {r.threshold} {r.predicted:.9g}, here {r.value:.9g}" for r in records(other))
    yield judged(
        EXACT, {str(name): set(rows["answer"]) == {"equal"} for name, rows in groups(own, "format")},
        f"{len(own) - len(other)} of {len(own)} thresholds are the definition's" + f"; {named}" * bool(len(other)),
        observed=float(shown["value"]), predicted=float(shown["predicted"]), n=1, counted="devices", table="limits",
        answer=str(shown["answer"]), condition=f"{shown['threshold']}, {shown['format']}",
        method="bisection over all values that are cast, float32 (float64 to float32); equality of numbers, by format",
    )  # fmt: skip
    stops = own[own["threshold"] == "a sum of ones stops at"].set_index("format")["value"]
    told = [f"at {stops[name]:,.8g} in {name}" for name in ("bfloat16", "float16", "float32") if name in stops]
    if told:
        yield Sentence(f"A sum of ones, added one by one, stops {enumerated(told)}.", claims=(EXACT.id,))


def casts(counts: pd.DataFrame) -> Iterator[Answer]:
    """Bit patterns that torch casts otherwise than the definition."""
    if not len(counts):
        return
    table = counts.reset_index().rename(columns={"different": "value"})
    table["answer"] = np.where(table["value"] == 0, "equal", "other")
    yield "casts", table
    worst = table.sort_values("value").iloc[-1]
    named = ", ".join(
        f"{r.value:.0f} of {r.patterns:.0f} in {r.format} ({r.beyond:.0f} of them beyond its largest value)"
        for r in records(table[table["value"] > 0])
    )
    if "float8_e4m3fn" in set(table.loc[(table["value"] > 0) & (table["value"] == table["beyond"]), "format"]):
        yield Sentence(
            "Beyond 448 torch's cast to float8_e4m3fn saturates on this device, where the definition has NaN.",
            claims=(CASTS.id,),
        )
    yield judged(
        CASTS, {str(row.format): bool(row.value == 0) for row in records(table)},
        f"cast otherwise than by the definition: {named or 'none'}",
        observed=float(worst["value"]), predicted=0.0, n=int(worst["patterns"]), counted="bit patterns", table="casts",
        answer=str(worst["answer"]), condition=str(worst["format"]), unit="bit patterns",
        method="random bit patterns, and the midpoints of values with their neighbours, against exact rounding to "
        "nearest even; by format",
    )  # fmt: skip


def subnormal(rows: pd.DataFrame) -> Iterator[Answer]:
    """Subnormal numbers that outlive an operation, as torch is found and when it is told to flush them."""
    if not len(rows):
        return
    table = rows[["format", "layer", "direction", "value"]].reset_index(drop=True)
    table.columns = pd.Index(["format", "operation", "mode", "value"])
    table["answer"] = np.where(table["value"] == 1, "kept", "flushed")
    yield "subnormals", table
    found = table[table["mode"] == ORDINARY]
    shown = found.sort_values("value").iloc[0]
    named = enumerated(f"{r.format} ({r.operation})" for r in records(found[found["value"] == 0]))
    yield judged(
        SUBNORMAL, list(found["value"] == 1), f"subnormal numbers that are flushed to zero: {named or 'none'}",
        observed=float(shown["value"]), predicted=1.0, n=1, counted="devices", table="subnormals",
        unit="share of values kept", answer=str(shown["answer"]),
        condition=f"{shown['operation']} in {shown['format']}",
        method="half the smallest normal value, from a cast, a product and a difference, of 64 numbers at once",
    )  # fmt: skip


@drawing.figure(
    "formats", "What each format holds, and how finely",
    "Distance between neighbouring values, in units of the power of two below, at the smallest, the smallest normal "
    "and the largest value. Block formats: one block, whose largest value is 1.",
)  # fmt: skip
def draw_windows(windows: pd.DataFrame) -> Any:
    """Spacing by magnitude, formats of 16 bits and more and narrower ones apart."""
    wide = windows["format"].isin([name for name in FORMATS if formats.get(name).mantissa_bits > 3])
    own = windows.assign(width=np.where(wide, "16 bits and more", "8 bits and less"))
    axes = {"xscale": "log", "yscale": "log", "ylabel": "spacing / binade"}
    form = drawing.lines
    return drawing.panels(own, "width", form, by="format", shared="", axes=axes, x="magnitude", y="spacing")


METHOD = """
**Limits.** Constants are those of IEEE 754, OCP 8-bit floating point and MX v1.0, and NVIDIA's NVFP4
(`depthgauge.formats`). Thresholds are found by bisection over the values that are cast, with 64 numbers at once; those
of tf32 and the block formats, for which torch has no dtype, are those of `depthgauge.formats.round`, and no part of the
claims. Casts from float64 to 16 bits go through float32 in torch, and round twice.
"""
PART = Part(
    "limits",
    (EXACT, CASTS, SUBNORMAL),
    SIZES,
    grids,
    run,
    analyse,
    (draw_windows,),
    METHOD,
    shown=("formats", "limits"),
)
