"""One step of a training, watched: binades, safe loss scales, and a real float16 pass beside it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from depthgauge import formats, probe
from depthgauge.architecture import own_parameters
from depthgauge.formats import ExponentHistogram
from depthgauge.frames import groups, records
from depthgauge.probe.record import ACTIVATION_GRADIENT, GRADIENTS, WEIGHT_GRADIENT
from depthgauge.study import Case, Rows

NETWORKS: Mapping[str, Mapping[str, Any]] = {
    "mlp": {"name": "mlp", "depth": 20, "width": 64, "activation": "relu"},
    "sigmoid_mlp": {"name": "mlp", "depth": 20, "width": 64, "activation": "sigmoid"},
    "lenet5": {"name": "lenet5", "preset": "small"},
    "transformer": {"name": "transformer", "preset": "small", "depth": 2},
    "resnet18": {"name": "resnet18", "preset": "small"},
    "lstm": {"name": "lstm", "preset": "small"},
}
LOST = 0.01  # of a tensor's nonzero values: the share that may be rounded to zero
VALUES = 2  # of a tensor: what a real pass may lose besides, as a value is a large share of a small tensor
FORMATS = ("float16", "bfloat16", "float8_e5m2", "float8_e4m3fn")
MAPPED = ("float16", "float8_e5m2")  # formats for gradients, of the range that takes a loss scale
SHARES = ("under", "subnormal", "over")
STATES = ("exp_avg", "exp_avg_sq")  # Adam's first and second moment
WATCHED = ("weight", "activation", ACTIVATION_GRADIENT, WEIGHT_GRADIENT, "update")
KINDS = (*WATCHED, *STATES)
PLACES = {"half the least": 0.5, "least": 1.0, "greatest": 1.0, "twice the greatest": 2.0}
ANSWERS = ("fits float16", "needs scaling", "needs bfloat16", "needs float32", "needs float64", "not finite")
TENSOR = ["direction", "layer", "call", "parameter", "output"]


def backward(model: nn.Module, x: Tensor, y: Tensor, scale: float = 1.0) -> None:
    """The backward pass of the cross-entropy, which is computed in float32, times a loss scale."""
    (nn.functional.cross_entropy(model(x).float(), y) * scale).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped


def owners(model: nn.Module) -> Mapping[str, nn.Module]:
    """The modules that hold parameters of their own, by name."""
    return {name: module for name, module in model.named_modules() if own_parameters(module)}


def scales(case: Case, step: int, record: probe.Record) -> Iterator[Rows]:
    """log2 of the safe scales with the gradients that set them, and how many powers of two lie between float16's."""
    for fmt in FORMATS:
        found = record.loss_scale(fmt, lost=LOST)
        if fmt == "float16":
            table = found.by_scale()
            least, greatest = (table.loc[table[bad] == 0, "loss_scale"] for bad in ("losing", "overflowing"))
            yield case.rows("headroom", math.log2(greatest.max() / least.min()), step=step)
        for end in ("least", "greatest"):
            limit = getattr(found.limits, end)
            at: dict[str, Any] = {}
            if limit:
                parts = filter(None, (limit.layer, limit.parameter))
                at = {"layer": ".".join(parts), "direction": limit.direction}
            yield case.rows(f"{fmt} {end}", math.log2(getattr(found, end)), step=step, **at)


def answers(case: Case, step: int, record: probe.Record, layers: Sequence[str]) -> Iterator[Rows]:
    """The narrowest format for each layer and kind of value, as its place in `ANSWERS`."""
    table = record.fits(lost=LOST)
    for kind, own in groups(table[table["layer"].isin(layers)], "direction"):
        at: dict[str, Any] = {"layer": own["layer"].tolist(), "layer_index": own["layer"].map(layers.index).to_numpy()}
        yield case.rows("answer", own["answer"].map(ANSWERS.index).to_numpy(), step=step, direction=kind, **at)


def chart(case: Case, record: probe.Record, layers: Sequence[str]) -> Iterator[Rows]:
    """The loss-scale map: the largest shares that a gradient of a layer loses, output or parameter."""
    for fmt in MAPPED:
        table = record.loss_scale(fmt, lost=LOST).to_frame()
        table = table[table["layer"].isin(layers)].groupby(["loss_scale", "layer"], as_index=False)[[*SHARES]].max()
        for scale, own in groups(table, "loss_scale"):
            places = own["layer"].map(layers.index).to_numpy()
            at: dict[str, Any] = {"layer": own["layer"].tolist(), "layer_index": places, "step": 0}
            for share in SHARES:
                yield case.rows(f"{fmt} {share} at {math.log2(scale):.0f}", own[share].to_numpy(), **at)


def charts(rows: pd.DataFrame) -> pd.DataFrame:
    """Loss-scale maps of seed 0 at initialization: a row a network, format, layer and power of two."""
    parts = rows["metric"].str.extract(r"^(?P<format>\S+) (?P<share>\S+) at (?P<log2_scale>-?\d+)$").dropna()
    keys = ["network", "format", "layer", "layer_index", "log2_scale"]
    charts = rows.loc[parts.index, ["network", "layer", "layer_index", "value"]].join(parts).astype({"log2_scale": int})
    charts = charts.pivot_table(index=keys, columns="share", values="value", sort=False).round(6).reset_index()
    first = rows[(rows["seed"] == 0) & (rows["step"] == 0)].set_index(["network", "metric"])["value"]
    for end in ("least", "greatest"):
        charts[end] = [first.get((row.network, f"{row.format} {end}"), math.nan) for row in records(charts)]
    return charts


def losses(case: Case, step: int, record: probe.Record, optimizer: torch.optim.Optimizer) -> Iterator[Rows]:
    """Shares of each kind of value that every format loses, all layers together, unscaled."""
    for kind in KINDS:
        whole = record.histogram(kind) if kind in WATCHED else moments(optimizer.state.values(), kind)
        for fmt in FORMATS:
            shares = formats.fractions(whole, fmt)
            for share in SHARES:
                yield case.rows(f"{fmt} {share}", getattr(shares, share), direction=kind, step=step)


def moments(states: Iterable[Mapping[str, Tensor]], kind: str) -> ExponentHistogram:
    """One of Adam's moments, of several parameters together."""
    return ExponentHistogram.of(torch.cat([state[kind].flatten() for state in states]).cpu().numpy())


def by_layer(
    case: Case, step: int, record: probe.Record, layers: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer
) -> Iterator[Rows]:
    """The share of each layer's nonzero values in each binade, its format, and, of the first step, float16's map."""
    for index, (name, module) in enumerate(layers.items()):
        states = [optimizer.state[parameter] for parameter in own_parameters(module).values()]
        for kind in KINDS:
            one = record.histogram(kind, name) if kind in WATCHED else moments(states, kind)
            at: dict[str, Any] = {"layer": name, "layer_index": index, "direction": kind, "step": step}
            for place, count in zip(*one.by_exponent(), strict=True):
                if count:
                    yield case.rows(f"binade {place}", count / one.nonzero, **at)
    yield from answers(case, step, record, list(layers))
    if not step:
        yield from chart(case, record, list(layers))


def real(case: Case, record: probe.Record, model: nn.Module, x: Tensor, y: Tensor) -> Iterator[Rows]:
    """The recorded pass once more in float16, at the ends of the safe interval and beyond, against what is predicted.

    `excess` is the largest share of a tensor's values that is lost beyond the prediction, `VALUES` of them left out.
    """
    found, model, exact = record.loss_scale("float16", lost=LOST), model.half(), record.to_frame()
    for (place, factor), end in zip(PLACES.items(), ("least", "least", "greatest", "greatest"), strict=True):
        scale = factor * getattr(found, end)
        if math.isnan(scale):
            continue
        model.zero_grad(set_to_none=True)
        with probe.track(model, directions=GRADIENTS) as halved:
            backward(model, x.half(), y, scale)
        told = record.fractions("float16", scale)[["under", "over", "n"]]
        both = pd.concat([exact, told], axis=1).merge(halved.to_frame(), on=TENSOR, suffixes=("", "_real"))
        broken = both[[f"{name}_real" for name in ("nans", "positive_infinities", "negative_infinities")]]
        overflows, lost = bool(broken.to_numpy().any()), (both["zeros_real"] - both["zeros"] - VALUES) / both["n"]
        at: dict[str, Any] = {"layer": place, "step": 0}
        yield case.rows("overflows", float(overflows), **at)
        yield case.rows("as_predicted", float(overflows == (both["over"] > 0).any()), **at)
        yield case.rows("excess", float((lost - both["under"]).max()), **at)
