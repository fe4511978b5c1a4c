"""Gradient descent on a network, with its sharpness beside the steps in which its loss rises."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import torch

from depthgauge import curvature, data, models, replicas
from depthgauge.study import Case, Context, Rows

WINDOW = 5  # steps between two measurements of the sharpness
CLEAR = 0.05  # windows whose product of rate and sharpness comes closer to 1 or 2, by this share, are of no side
SIDES = "below 1", "1 to 2", "above 2"


def descend(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """Full-batch gradient descent on the squared loss of digits, each case at its product over its own sharpness."""
    digits = data.load("digits").train.to(context.device)
    x, steps = digits.x[: cases[0].integer("examples")], cases[0].integer("steps")
    y = torch.nn.functional.one_hot(digits.y[: len(x)], 10).to(x.dtype)
    model = models.build(
        "mlp", depth=2, width=cases[0].integer("width"), activation="tanh", input_shape=tuple(x.shape[1:]), classes=10
    )
    stack = replicas.stack(model, [case.random_seed("seed") for case in cases], device=context.device)
    places = range(0, steps + 1, WINDOW)
    sharpness = np.full((len(places), len(cases)), np.nan)

    def inspect(step: int, rows: slice, part: replicas.Stack) -> None:
        found = curvature.of_replicas(part, x, y, "mse", tolerance=0.02)
        sharpness[step // WINDOW, rows] = [each.value for each in found]

    inspect(0, slice(0, len(stack)), stack)
    rates = np.array([case.number("product") for case in cases]) / sharpness[0]
    run = replicas.train(
        stack, x, y, replicas.SGD(rates.tolist()), batch=len(x), steps=steps, loss="mse", checkpoints=tuple(places),
        inspect=inspect,
    )  # fmt: skip
    rises = (np.diff(run.loss, axis=0) > 0).astype(float)
    for i, case in enumerate(cases):
        yield case.rows("reached", rates[i] * sharpness[:, i], step=np.array(places))
        shares = [rises[start : start + WINDOW, i].mean() for start in places[:-1]]
        yield case.rows("rises", np.array(shares), step=np.array(places[:-1]))
        yield case.rows("fall", run.loss[0, i] - run.loss[-1, i])


def windows_of(rows: pd.DataFrame) -> pd.DataFrame:
    """One row a window: rate times sharpness at both ends, the share of rising steps, and the side of 1 and 2."""
    columns = ["product", "seed", "step"]
    at = {name: rows[rows["metric"] == name].set_index(columns)["value"] for name in ("reached", "rises")}
    table = at["rises"].rename("rises").reset_index()
    for name, step in (("first", 0), ("last", WINDOW)):
        key = pd.MultiIndex.from_frame(table.assign(step=table["step"] + step)[columns])
        table[name] = at["reached"].reindex(key).to_numpy()
    ends = table[["first", "last"]]
    low, high = ends.min(axis=1, skipna=False), ends.max(axis=1, skipna=False)
    bounds = ((0.0, 1 - CLEAR), (1 + CLEAR, 2 - 2 * CLEAR), (2 + 2 * CLEAR, math.inf))
    side = pd.Series("", index=table.index)
    for name, (least, most) in zip(SIDES, bounds, strict=True):
        side[(low >= least) & (high <= most)] = name
    return table.assign(mean=(table["first"] + table["last"]) / 2, side=side)
