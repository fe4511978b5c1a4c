"""A record in few lines: its worst tensor of each layer, and what it holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from depthgauge.formats import Format
from depthgauge.probe.nonfinite import NonFinite
from depthgauge.probe.unread import Unread

if TYPE_CHECKING:
    import pandas as pd

_PLACE = ("direction", "parameter", "output", "step")
_FEW = 0.001  # a share of subnormal values that is not worth a word


def by_layer(frame: pd.DataFrame, shares: pd.DataFrame, fmt: Format) -> pd.DataFrame:
    """The table of `Record.summary`.

    Args:
        frame: that of `Record.to_frame`, with a column `fault`, whether the tensor is not finite where it should be.
        shares: that of `Record.fractions`, row for row.
        fmt: the format of the shares.
    """
    worst = ["over", "under", "subnormal"]
    tensors = frame[["layer", "layer_index", *_PLACE, "fault"]].join(shares[worst].fillna(0.0))
    tensors["size"] = frame[["min", "max"]].abs().max(axis=1)
    stored = tensors["direction"] != "update"
    tensors = tensors[stored] if stored.any() else tensors
    layers = tensors.groupby(["layer", "layer_index"], sort=False)
    summed = layers.agg(not_finite=("fault", "sum"), largest=("size", "max"), tensors=("fault", "size"))
    # an infinity before an overflow, that before a loss; the first step and layer of several that are alike
    order = ["fault", *worst, "layer_index", "step"]
    ranked = tensors.sort_values(order, ascending=[False] * 4 + [True] * 2, kind="stable")
    table = ranked.drop_duplicates(["layer", "layer_index"]).merge(summed.reset_index(), on=["layer", "layer_index"])
    says = [_fate(row, fmt) for row in table.to_dict("records")]
    table.insert(2, "says", np.array(says, object))
    named = ["layer", "layer_index", "says", *_PLACE, *worst, "not_finite", "largest", "tensors"]
    return table[named].reset_index(drop=True)


def _fate(row: dict[object, object], fmt: Format) -> str:
    """What becomes of a tensor, in words."""
    what = f"the {str(row['direction']).replace('_', ' ')}"
    place = f"{what} in step {row['step']}"
    over, under, subnormal = (float(str(row[name])) for name in ("over", "under", "subnormal"))
    if row["fault"]:
        return f"not finite: {place}"
    if over:
        lost = f", and {_share(under)} becomes zero" if under else ""
        return f"{_share(over)} of {place} overflows{lost}"
    if under:
        return f"{_share(under)} of {place} becomes zero"
    if subnormal >= _FEW:
        return f"fits {fmt.name}, {_share(subnormal)} of {place} with fewer digits"
    return f"fits {fmt.name}"


def _share(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.995 else f"{100 * share:.4g} %"


def told(where: pd.DataFrame, first: NonFinite | None, unread: Sequence[Unread]) -> str:
    """A record in a few lines: tensors, steps, layers and directions, and whether all was finite."""
    if where.empty:
        return f"Record without rows{_unseen(unread)}"
    steps = where["step"].unique()
    between = f"{len(steps)} steps ({steps.min()} to {steps.max()})" if len(steps) > 1 else f"step {steps[0]}"
    directions = ", ".join(name.replace("_", " ") for name in where["direction"].unique())
    lines = [f"Record of {len(where):,} tensors in {between} of {where['layer'].nunique():,} layers: {directions}"]
    if first is None:
        lines.append("every value is finite (masks are not counted)")
    else:
        place = ".".join(part for part in (first.layer or "(module)", first.parameter, first.output) if part)
        what = first.direction.replace("_", " ")
        lines.append(f"first value that is not finite: {what} of {place!r} in step {first.step} ({first.kind})")
    lines.append('record.summary("float16"): a row a layer, the worst first; record.plot("float16"): a picture')
    return "\n  ".join(lines) + _unseen(unread)


def _unseen(unread: Sequence[Unread]) -> str:
    return f"\n  {len(unread)} kinds of tensors or layers were not seen: record.unread" if unread else ""
