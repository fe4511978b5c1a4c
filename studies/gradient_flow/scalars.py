"""One number, multiplied again and again: what becomes of it, and of each number format that holds it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from depthgauge.frames import groups, only, params_of, records
from depthgauge.parts import Answer, Part
from depthgauge.questions import judged
from depthgauge.study import Case, Context, Grid, Rows
from depthgauge.verdict import Claim

GROWS = Claim("N01", "a factor of 1.5 a layer over 100 layers gives about 4e14")
SHRINKS = Claim("N02", "a factor of 0.8 a layer over 100 layers gives about 2e-10")
SAID = {1.5: (GROWS, 4e14), 0.8: (SHRINKS, 2e-10)}  # what the notes say that 100 factors come to
FORMATS = ("float16", "bfloat16", "float32")
EXITS = ("exit_over", "exit_subnormal", "exit_zero", "exit_stuck")
SIZES: dict[str, dict[str, Any]] = {"quick": {}, "standard": {}, "full": {}, "tiny": {}}


def grids() -> Iterator[Grid]:
    """Both factors of the notes in every format."""
    yield Grid({"factor": tuple(SAID), "format": FORMATS}, {"factors": 100}, together=("factor", "format"), chunk=64)


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """One factor, multiplied again and again in a format: the factor after which the product is no longer normal."""
    for case in cases:
        dtype = getattr(torch, case.text("format"))
        factor = torch.tensor(case.number("factor"), dtype=dtype, device=context.device)
        product, track = torch.ones((), dtype=dtype, device=context.device), []
        for _ in range(case.integer("factors")):
            product = product * factor
            track.append(float(product))
        size = np.abs(np.array(track))
        yield case.rows("product", size, layer_index=np.arange(1, size.size + 1))
        yield case.rows("exact_log", case.integer("factors") * math.log(case.number("factor")))
        stuck = np.isfinite(size) & (size == np.concatenate([[1.0], size[:-1]]))
        for name, left in zip(EXITS, (np.isinf(size), size < torch.finfo(dtype).tiny, size == 0, stuck), strict=True):
            yield case.rows(name, first(left))


def first(condition: np.ndarray) -> float:
    """How many factors it takes until the condition first holds; infinity where it never does."""
    return float(np.argmax(condition)) + 1 if condition.any() else math.inf


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """N01 and N02: exact products, and where each number format stops following them."""
    table = params_of(rows, "factor", "factors", "format")
    table = table.assign(**{name: only(rows, name) for name in EXITS}, value=np.exp(only(rows, "exact_log")))
    said = table["factor"].map({factor: figure for factor, (_, figure) in SAID.items()})
    table = table.assign(notes=said, answer="exact").sort_values(["factor", "format"]).reset_index(drop=True)
    yield "scalars", table
    for factor, own in groups(table, "factor"):
        (claim, figure), exact, factors = SAID[factor], float(own["value"].iloc[0]), int(own["factors"].iloc[0])
        same = f"{exact:.0e}" == f"{figure:.0e}"
        yield judged(
            claim, [same],
            f"{factor:g}^{factors} is {exact:.3g}, {exact / figure:,.4g} times what the notes print",
            observed=exact, predicted=figure, n=1, counted="products", table="scalars", answer="exact",
            condition=f"{factor:g}^{factors}",
            method="arithmetic, no sampling; 'about' means equal to one significant digit",
        )  # fmt: skip
        for half in records(own[own["format"] == "float16"]):
            yield f"A factor of {factor:g} a layer becomes {exact:.2g} over {factors} layers; {_in_float16(half)}."


def _in_float16(row: Any) -> str:
    if math.isfinite(row.exit_over):
        return f"float16 is infinite after {row.exit_over:.0f}"
    if math.isfinite(row.exit_zero):
        return f"float16 is zero after {row.exit_zero:.0f}"
    if math.isinf(row.exit_subnormal):
        return "float16 holds all of it"
    stuck = f" and stops shrinking at factor {row.exit_stuck:.0f}, because rounding to nearest undoes it"
    subnormal = f"float16 holds it as a subnormal number from factor {row.exit_subnormal:.0f} on"
    return subnormal + (stuck if math.isfinite(row.exit_stuck) else "")


PART = Part(
    "scalars", (GROWS, SHRINKS), SIZES, grids, run, analyse, (), """
**Scalars.** One factor, multiplied 100 times in each format with rounding to nearest. 'About' means equal to one
significant digit.
""",
)  # fmt: skip
