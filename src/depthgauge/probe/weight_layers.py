"""Signals at each weight layer of any module in one pass, forward and backward."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from depthgauge import architecture, nested
from depthgauge.probe.record import ACTIVATION, ACTIVATION_GRADIENT
from depthgauge.probe.tracking import track

if TYPE_CHECKING:
    import pandas as pd

WORDS = {ACTIVATION: "forward", ACTIVATION_GRADIENT: "backward"}


def weight_layers(
    model: torch.nn.Module, batch: Any, loss: Callable[[torch.nn.Module, Any], torch.Tensor]
) -> pd.DataFrame:
    """Signal and gradient at the output of every weight layer (`architecture.layers`), from one pass of a batch.

    Of a `Training`: `weight_layers(training.model, batch, lambda _, batch: training.value(batch))`.

    Args:
        model: any module; gradients are added to what its parameters' `.grad` hold.
        batch: whatever `loss` takes.
        loss: (model, batch) -> the scalar from which the backward pass starts.

    Returns:
        One row a call and direction (`forward`, `backward`), in the order of execution. `layer`: a repeated call is
        `name:1`, `name:2`, ...; `layer_index`: the call's place, from 1; `second_moment`: of the output, or of the
        gradient with respect to it, infinite or NaN where a value is; `elements`: of one example's output. Of a layer
        that returns several tensors the first counts.
    """
    layers = dict(architecture.layers(model))
    with track(model, directions=tuple(WORDS), layers={type(layer) for layer in layers.values()}) as record:
        loss(model, batch).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    frame = record.to_frame()
    frame = _calls(frame[frame["layer"].isin(layers)])
    frame["elements"] = frame["count"] / nested.examples(batch)
    return frame[["layer", "layer_index", "direction", "second_moment", "elements"]]


def _calls(frame: pd.DataFrame) -> pd.DataFrame:
    """One row for each call of a layer and direction, under names and places of calls."""
    import pandas as pd  # noqa: PLC0415 # half a second, needed only here

    frame = frame.sort_values(["layer_index", "call"], kind="stable")
    frame = frame.drop_duplicates(["layer", "call", "direction"]).copy()
    call = frame["call"].astype(int)
    frame["layer"] = frame["layer"].where(call == 0, frame["layer"] + ":" + call.astype(str))
    frame["layer_index"] = pd.factorize(frame["layer"])[0] + 1
    frame["direction"] = frame["direction"].map(WORDS)
    infinite = frame["positive_infinities"] + frame["negative_infinities"] > 0
    moments = frame["second_moment"].mask(infinite, math.inf)  # the probe's is that of the finite values
    frame["second_moment"] = moments.mask(frame["nans"] > 0, math.nan)
    return frame
