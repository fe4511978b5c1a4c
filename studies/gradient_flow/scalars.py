"""One number, multiplied again and again: what becomes of it, and of each number format that holds it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from depthgauge.frames import groups, only, params_of, records
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import judged
from depthgauge.replicas import first_factor
from depthgauge.study import Case, Context, Grid, Rows
from depthgauge.verdict import Claim, Sentence

GROWS = Claim("N01", "a factor of 1.5 a layer over 100 layers gives about 4e14")
SHRINKS = Claim("N02", "a factor of 0.8 a layer over 100 layers gives about 2e-10")
SAID = {1.5: (GROWS, 4e14), 0.8: (SHRINKS, 2e-10)}  # what the notes say that 100 factors come to
FORMATS = ("float16", "bfloat16", "float32")
EXITS = ("exit_over", "exit_subnormal", "exit_zero", "exit_stuck")
SIZES = sizes("factors", quick=(100,), standard=(100,), full=(100,), tiny=(100,))


def grids(factors: int) -> Iterator[Grid]:
    """Both factors of the notes in every format."""
    yield Grid({"factor": tuple(SAID), "format": FORMATS}, {"factors": factors}, 0, ("factor", "format"), 64)


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """One factor, multiplied again and again in a format: the factor after which the product is no longer normal."""
    for case in cases:
        dtype, factors = getattr(torch, case.text("format")), case.integer("factors")
        factor = torch.tensor(case.number("factor"), dtype=dtype, device=context.device)
        product, track = torch.ones((), dtype=dtype, device=context.device), []
        for _ in range(factors):
            product = product * factor
            track.append(float(product))
        size = np.abs(np.array(track))
        yield case.rows("product", size, layer_index=np.arange(1, size.size + 1))
        yield case.rows("exact_log", factors * math.log(case.number("factor")))
        stuck = np.isfinite(size) & (size == np.concatenate([[1.0], size[:-1]]))
        for name, left in zip(EXITS, (np.isinf(size), size < torch.finfo(dtype).tiny, size == 0, stuck), strict=True):
            yield case.rows(name, float(first_factor(left)))


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """N01 and N02: exact products, and where each number format stops following them."""
    table = params_of(rows, "factor", "factors", "format")
    table = table.assign(**{name: only(rows, name) for name in EXITS}, value=np.exp(only(rows, "exact_log")))
    table["notes"] = table["factor"].map({factor: figure for factor, (_, figure) in SAID.items()})
    table = table.assign(answer="exact").sort_values(["factor", "format"]).reset_index(drop=True)
    yield "scalars", table
    for factor, own in groups(table, "factor"):
        (claim, figure), exact, factors = SAID[factor], float(own["value"].iloc[0]), int(own["factors"].iloc[0])
        about = f"{exact:.0e}" == f"{figure:.0e}"
        yield judged(
            claim, [about],
            f"{factor:g}^{factors} is {exact:.3g}, {exact / figure:,.4g} times what the notes print",
            says=f"{'true' if about else 'false'}: it is {exact:.2g}",
            observed=exact, predicted=figure, reference="the notes' figure", unit="times the first value", n=1,
            counted="products", table="scalars", answer="exact", condition=f"{factor:g}^{factors}",
            method="arithmetic; 'about' means equal to one significant digit",
        )  # fmt: skip
        for half in records(own[own["format"] == "float16"]):
            yield Sentence(
                f"A factor of {factor:g} a layer turns 1 into {exact:.2g} over {factors} layers; float16 "
                f"{_fate(half)}.",
                claims=(claim.id,),
            )


def _fate(row: Any) -> str:
    if math.isfinite(row.exit_over):
        return f"is infinite after {row.exit_over:.0f} of them"
    if math.isfinite(row.exit_zero):
        return f"is zero after {row.exit_zero:.0f} of them"
    if math.isinf(row.exit_subnormal):
        return "holds all of it"
    if math.isfinite(row.exit_stuck):
        return f"shrinks it {row.exit_stuck - 1:.0f} times, then rounds each product back to what it was"
    return f"holds it as a subnormal number from factor {row.exit_subnormal:.0f} on"


METHOD = "**Scalars.** One factor multiplied 100 times, exactly and in every number format."
PART = Part("scalars", (GROWS, SHRINKS), SIZES, grids, run, analyse, method=METHOD)
