"""The columns of a record's frames, from its rows."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from depthgauge import formats
from depthgauge.probe import rows as layout
from depthgauge.probe.rows import Rows

METRICS = (
    "count",
    "zeros",
    "nans",
    "positive_infinities",
    "negative_infinities",
    "mean",
    "second_moment",
    "min",
    "max",
    "log2_mean",
)


def histogram(rows: Rows) -> formats.ExponentHistogram:
    """The exponent histogram of rows together."""
    kinds = (layout.ZEROS, layout.NANS, layout.POSITIVE_INFINITIES, layout.NEGATIVE_INFINITIES)
    zeros, nans, positive, negative = (int(rows.words[:, word].sum()) for word in kinds)
    return formats.ExponentHistogram.from_cells(
        rows.keys, rows.counts, zeros=zeros, nans=nans, positive_infinities=positive, negative_infinities=negative
    )


def shares(rows: Rows, fmt: str | formats.Format, factors: NDArray[np.float64]) -> dict[str, NDArray[Any]]:
    """The columns of `fractions`; factors, one a row, are what values are multiplied by. NaN where one is no number."""
    n = rows.sums_by_row(rows.counts.astype(np.float64))
    columns = {name: np.full(len(factors), np.nan) for name in ("under", "subnormal", "normal", "over")}
    for factor in np.unique(factors[np.isfinite(factors) & (factors > 0)]):
        chosen = factors == factor
        part = rows.chosen(chosen)
        under, subnormal, over = formats.cell_shares(*formats.cell_of(part.keys), fmt, float(factor))
        shares = {"under": under, "subnormal": subnormal, "normal": 1 - under - subnormal - over, "over": over}
        for name, share in shares.items():
            columns[name][chosen] = part.sums_by_row(share * part.counts) / n[chosen]
    return {**columns, "n": n.astype(np.int64)}


def metrics(rows: Rows) -> dict[str, NDArray[np.int64] | NDArray[np.float64]]:
    """The metrics of `Record.to_frame`."""
    count, zeros, nans, positive, negative = (
        rows.words[:, word]
        for word in (
            layout.COUNT,
            layout.ZEROS,
            layout.NANS,
            layout.POSITIVE_INFINITIES,
            layout.NEGATIVE_INFINITIES,
        )
    )
    finite = count - nans - positive - negative
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        return {
            "count": count,
            "zeros": zeros,
            "nans": nans,
            "positive_infinities": positive,
            "negative_infinities": negative,
            "mean": np.clip(  # a sum's rounding takes no mean beyond its values, nor the largest to infinity
                np.ldexp(rows.number(layout.SUM) / finite, rows.words[:, layout.SUM_SHRUNK]),
                rows.number(layout.MIN),
                rows.number(layout.MAX),
            ),
            "second_moment": np.ldexp(
                rows.number(layout.SUM_OF_SQUARES) / finite, rows.words[:, layout.SQUARES_SHRUNK]
            ),
            "min": rows.number(layout.MIN),
            "max": rows.number(layout.MAX),
            "log2_mean": rows.number(layout.SUM_OF_LOG2) / (finite - zeros),
        }
