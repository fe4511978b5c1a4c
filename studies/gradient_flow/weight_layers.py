"""What reaches each weight layer of a model at initialization, forward and backward: measured, and by seed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch

from depthgauge import data, models, nested, probe, stats
from depthgauge.factories import Input, is_factory
from depthgauge.models.forms import OWN, Form
from depthgauge.seeding import Purpose, generator
from depthgauge.study import Case, Context, Rows, StudyError
from depthgauge.workload import Inputs, Training, WorkloadError, moved

TWICE_LN10 = 2 * math.log(10)  # ln of a square to decades
KEYS = ["model", "norm", "residual"]


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """One forward pass of real digits, and a backward pass from a random linear functional of the outputs.

    A user's model that says what it takes is fed that, a user's training its first batch, from whose loss the backward
    pass starts. Of each call of a weight layer: see `probe.weight_layers`.
    """
    for case in cases:
        training = _training(case, context.device)
        batch = moved(training.first()[0], context.device)
        source = batch.source if isinstance(batch, Inputs) else "the first batch of its own training"
        yield case.rows("fed", nested.examples(batch), layer=f"{source} ({nested.describe(batch)})")
        frame = probe.weight_layers(training.model, batch, partial(_loss, training, case.text("model")))
        for metric, direction in (("second_moment", "forward"), ("second_moment", "backward"), ("elements", None)):
            own = frame[frame["direction"] == (direction or "forward")]
            at: dict[str, Any] = {"layer": own["layer"].tolist(), "layer_index": own["layer_index"].to_numpy()}
            yield case.rows(metric, own[metric].to_numpy(), **at, direction=direction)


def _loss(training: Training, spec: str, _: torch.nn.Module, batch: Any) -> torch.Tensor:
    try:
        return training.value(batch)
    except WorkloadError as error:  # a sentence already, and not one about the input
        raise StudyError(f"{spec}, fed {nested.describe(batch)}: {error}") from error
    except Exception as error:
        raise StudyError(
            f"{spec} does not take {nested.describe(batch)} ({type(error).__name__}: {error}); give its factory a"
            " parameter input_shape, the module an example_input_array, or the command an --input-shape"
        ) from error


def _training(case: Case, device: str) -> Training:
    """Models of ours as their small preset has them; a user's own, fit for digits as far as its factory allows."""
    spec, batch, asked = case.text("model"), case.integer("batch"), case.get("input")
    sample, cotangent = (generator(case.random_seed("seed"), use) for use in (Purpose.SAMPLE, Purpose.COTANGENT))
    digits = data.load("mnist5k").train
    x, _ = digits[torch.randperm(len(digits), generator=sample)[:batch]]

    def functional(model: torch.nn.Module, fed: Inputs) -> torch.Tensor:
        scores = nested.scores(fed.call(model))
        return (scores * torch.randn(scores.shape, generator=cotangent).to(scores)).sum()

    fit: dict[str, Any] = {"input_shape": tuple(x.shape[1:])} if is_factory(spec) and asked is None else {}
    return models.training(
        spec, preset="small", batch=batch, device=device, data=Inputs((x,), {}, "real digits"), loss=functional,
        seed=case.random_seed("model", "seed"),  # the same with and without what is compared
        asked=None if asked is None else Input.parse(str(asked)), **fit, **case.given("norm", "residual"),
    )  # fmt: skip


def forms(params: pd.DataFrame) -> Mapping[Form, pd.DataFrame]:
    """Every form of every model with its cases, the simplest models first."""
    cases, known = {}, models.names()
    key: Any
    for key, own in params.groupby(KEYS, sort=False, dropna=False):
        model, norm, residual = (None if pd.isna(value) else value for value in key)
        cases[Form.of(str(model), norm, residual)] = own
    # What a user's factory decides by itself is shown once: as it is, or in all the forms that it can take.
    full = {network.model for network in cases if OWN not in (network.norm, network.skips)}
    shown = (n for n in cases if (n.norm == OWN) == (n.skips == OWN) or n.model not in full)
    return {n: cases[n] for n in sorted(shown, key=lambda n: known.index(n.model) if n.model in known else len(known))}


def tracks(rows: pd.DataFrame) -> pd.DataFrame:
    """One row a case, direction and call: ln of the signal.

    Forward it is the second moment an element; backward the squared norm of one example's gradient, over that of the
    last layer: with weights scaled by fan-in these are what a layer multiplies by a factor that knows no shapes.
    """
    at = ["case", "layer"]
    elements = rows[rows["metric"] == "elements"].set_index(at)["value"].rename("elements")
    moments = rows.loc[rows["metric"] == "second_moment", [*at, "seed", "layer_index", "direction", "value"]]
    table = moments.merge(elements, left_on=at, right_index=True)
    back = table["direction"] == "backward"
    with np.errstate(divide="ignore"):
        table["log"] = np.log(table.pop("value") * table.pop("elements").where(back, 1.0))
    last = table[back].sort_values("layer_index").drop_duplicates("case", keep="last").set_index("case")["log"]
    table.loc[back, "log"] -= table.loc[back, "case"].map(last)
    return table


def by_seed(tracks: pd.DataFrame, direction: str) -> pd.DataFrame:
    """One network's ln of the signal in a direction: one row a seed, one column a call."""
    own = tracks[tracks["direction"] == direction]
    names = own.drop_duplicates("layer_index").set_index("layer_index")["layer"].to_dict()
    return own.pivot_table(index="seed", columns="layer_index", values="log", dropna=False).rename(columns=names)


def growth(lines: pd.DataFrame) -> np.ndarray:
    """Slope of ln a layer toward the output, one a seed; NaN for fewer than three layers."""
    layers = np.arange(lines.shape[1])
    return stats.slopes(layers, lines.to_numpy()).slope if len(layers) > 2 else np.full(len(lines), math.nan)


def furthest(backward: pd.DataFrame) -> pd.DataFrame:
    """By seed, the `layer` whose gradient norm is furthest from the output's, and by how many `decades`."""
    logs = backward.to_numpy()
    place = np.abs(logs).argmax(axis=1)
    decades = logs[np.arange(len(place)), place] / TWICE_LN10
    return pd.DataFrame({"layer": backward.columns[place], "decades": decades}, backward.index)


def spread(backward: pd.DataFrame, other: pd.DataFrame) -> pd.Series:
    """By seed, decades between the largest and the smallest gradient norm of the layers that both networks have."""
    common = backward.loc[:, backward.columns.isin(other.columns)]
    return pd.Series(np.ptp(common.to_numpy(), axis=1) / TWICE_LN10, common.index)


def profile(tracks: pd.DataFrame) -> pd.DataFrame:
    """Median and range over seeds, call by call, in decades of the root mean square and of the gradient's norm."""
    decades = tracks.assign(value=tracks["log"] / TWICE_LN10)
    values = decades.groupby(["direction", "layer_index", "layer"], sort=False)["value"]
    table = values.agg(median="median", low="min", high="max", n="size").reset_index()
    return table.assign(depth=(table["layer_index"] - 1) / max(table["layer_index"].max() - 1, 1))
