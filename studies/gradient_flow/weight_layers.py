"""What reaches each weight layer of a model at initialization, forward and backward: measured, and by seed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from depthgauge import data, models, nested, probe, stats
from depthgauge.factories import Input, is_factory
from depthgauge.seeding import Purpose, generator
from depthgauge.study import Case, Context, Rows, StudyError
from depthgauge.workload import Inputs, Training, WorkloadError, moved

LN10 = math.log(10)
KEYS = ["model", "norm", "residual"]
OWN = "own"  # what a user's factory decides by itself
DIRECTIONS = {"activation": "forward", "activation_gradient": "backward"}


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """One forward pass of real digits, and a backward pass from a random linear functional of the outputs.

    A user's model that says what it takes is fed that, a user's training its first batch, from whose loss the backward
    pass starts. Of each call of a weight layer, in the order of execution: the second moment of its output and of the
    gradient with respect to that, and how many elements one example's output has.
    """
    for case in cases:
        training = _training(case, context.device)
        model, batch = training.model, moved(training.first()[0], context.device)
        yield case.rows("fed", nested.examples(batch), layer=_fed(batch))
        layers = dict(models.layers(model))
        with probe.track(model, directions=DIRECTIONS, layers={type(layer) for layer in layers.values()}) as record:
            _loss(training, batch, case.text("model")).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        frame = record.to_frame()
        frame = calls(frame[frame["layer"].isin(layers)])
        for direction, word in DIRECTIONS.items():
            own = frame[frame["direction"] == direction]
            at: dict[str, Any] = {"layer": own["name"].tolist(), "layer_index": own["place"].to_numpy()}
            yield case.rows("second_moment", own["second_moment"].to_numpy(), **at, direction=word)
        forward = frame[frame["direction"] == "activation"]
        at = {"layer": forward["name"].tolist(), "layer_index": forward["place"].to_numpy()}
        yield case.rows("elements", forward["count"].to_numpy() / nested.examples(batch), **at)


def smallest(case: Case) -> Case:
    """Two digits: what batch normalization needs."""
    return case.but(batch=2, seed=0)


def _training(case: Case, device: str) -> Training:
    """Models of ours as their small preset has them; a user's own, fit for digits as far as its factory allows."""
    spec, batch, asked = case.text("model"), case.integer("batch"), case.get("input")
    sample, cotangent = (
        generator(case.random_seed("seed"), purpose) for purpose in (Purpose.SAMPLE, Purpose.COTANGENT)
    )
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


def _fed(batch: Any) -> str:
    """What a model was really given, in words."""
    if not isinstance(batch, Inputs):
        return f"the first batch of its own training ({nested.describe(batch)})"
    return f"{batch.source} ({nested.describe(batch)})"


def _loss(training: Training, batch: Any, spec: str) -> torch.Tensor:
    try:
        return training.value(batch)
    except WorkloadError as error:  # a sentence already, and not one about the input
        raise StudyError(f"{spec}, fed {nested.describe(batch)}: {error}") from error
    except Exception as error:
        raise StudyError(
            f"{spec} does not take {nested.describe(batch)} ({type(error).__name__}: {error}); give its factory a"
            " parameter input_shape, the module an example_input_array, or the command an --input-shape"
        ) from error


def calls(frame: pd.DataFrame) -> pd.DataFrame:
    """One row for each call of a layer and direction; a repeated call is `name:1`, `name:2`, ...

    Of a layer that returns several tensors the first counts. A tensor that holds NaN or infinity has no other moment.
    """
    frame = frame.sort_values(["layer_index", "call"], kind="stable")
    frame = frame.drop_duplicates(["layer", "call", "direction"]).copy()
    repeated = frame["call"].astype(int)
    frame["name"] = frame["layer"].where(repeated == 0, frame["layer"] + ":" + repeated.astype(str))
    frame["place"] = pd.factorize(frame["name"])[0] + 1
    infinite = frame["positive_infinities"] + frame["negative_infinities"] > 0
    frame["second_moment"] = frame["second_moment"].mask(infinite, math.inf).mask(frame["nans"] > 0, math.nan)
    return frame


@dataclass(frozen=True)
class Network:
    """An architecture in one of its forms.

    Attributes:
        model: its name, or spec.
        norm: its normalization: `none`, `batch`, ...; or `own`.
        skips: `with` or `without` skip connections, `none` where a model of ours has no place for them; or `own`.
        as_built: whether that is what the model is by default.
    """

    model: str
    norm: str
    skips: str
    as_built: bool

    @staticmethod
    def of(model: str, norm: str | None, residual: bool | float | None) -> Network:
        """The form that a case asks for; what it leaves open is the model's default."""
        preset = {} if is_factory(model) else models.arguments(model, "small")
        unknown = OWN if is_factory(model) else "none"
        asked = {"norm": norm, "residual": residual}
        made = {name: preset.get(name) if value is None else value for name, value in asked.items()}
        skips = unknown if made["residual"] is None else "with" if made["residual"] else "without"
        as_built = all(value is None or value == preset.get(name) for name, value in asked.items())
        return Network(model, unknown if made["norm"] is None else str(made["norm"]), skips, as_built)

    @property
    def form(self) -> str:
        """Normalization and skip connections in words, as a legend has them."""
        skips = {"with": "skip connections", OWN: "skips of its own"}.get(self.skips, "no skips")
        return f"{norm_in_words(self.norm)}, {skips}"


def norm_in_words(norm: str) -> str:
    """Such as `batch normalization`."""
    return {"none": "no normalization", OWN: "its own normalization"}.get(norm, f"{norm} normalization")


def forms(params: pd.DataFrame) -> Mapping[Network, pd.DataFrame]:
    """Every form of every model with its cases, the simplest models first."""
    cases, known = {}, models.names()
    key: Any
    for key, own in params.groupby(KEYS, sort=False, dropna=False):
        model, norm, residual = (None if pd.isna(value) else value for value in key)
        cases[Network.of(str(model), norm, residual)] = own
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
    moments = rows[rows["metric"] == "second_moment"]
    elements = rows[rows["metric"] == "elements"].set_index(at)["value"].rename("elements")
    table = moments[[*at, "layer_index", "direction", "value"]].merge(elements, left_on=at, right_index=True)
    back = table["direction"] == "backward"
    with np.errstate(divide="ignore"):
        table["log"] = np.log(table["value"] * table["elements"].where(back, 1.0))
    last = table[back].sort_values("layer_index").drop_duplicates("case", keep="last").set_index("case")["log"]
    table.loc[back, "log"] -= table.loc[back, "case"].map(last)
    return table.drop(columns=["value", "elements"])


def by_seed(tracks: pd.DataFrame, seeds: pd.Series) -> pd.DataFrame:
    """One row a seed: slopes toward the end that each signal runs to, and the layer whose gradient is furthest off."""
    columns = {}
    for direction, sign in (("forward", 1.0), ("backward", -1.0)):
        own = tracks[tracks["direction"] == direction]
        wide = own.pivot_table(index="case", columns="layer_index", values="log", sort=False, dropna=False)
        wide = wide.sort_index(axis="columns")
        y, index = wide.to_numpy(), wide.index.map(seeds.to_dict())
        slope = sign * stats.slopes(wide.columns, y).slope if y.shape[1] > 2 else math.nan
        columns[direction] = pd.Series(slope, index)
    far, names = np.abs(y).argmax(axis=1), own.drop_duplicates("layer_index").sort_values("layer_index")["layer"]
    columns["furthest"] = pd.Series(y[np.arange(len(y)), far] / LN10 / 2, index)
    columns["layers"], columns["where"] = pd.Series(y.shape[1], index), pd.Series(names.to_numpy()[far], index)
    columns["logs"] = pd.Series([dict(zip(names, line, strict=True)) for line in y], index)
    return pd.DataFrame(columns).sort_index()


def find(measured: Mapping[Network, pd.DataFrame], *made: str) -> pd.DataFrame | None:
    """What was measured of a model in one form, (model, norm, skips)."""
    return next((seeds for n, seeds in measured.items() if (n.model, n.norm, n.skips) == made), None)


def spread(seeds: pd.DataFrame, other: pd.DataFrame) -> pd.Series:
    """Decades of the norm between the largest and the smallest gradient, over the layers that the other has too."""
    common = [layer for layer in seeds["logs"].iloc[0] if layer in other["logs"].iloc[0]]
    values = [[line[layer] for layer in common] for line in seeds["logs"]]
    return pd.Series(np.ptp(values, axis=1) / LN10 / 2, seeds.index)


def profile(tracks: pd.DataFrame) -> pd.DataFrame:
    """Median and range over seeds, call by call, in decades of the root mean square and of the gradient's norm."""
    decades = tracks.assign(value=tracks["log"] / LN10 / 2)
    values = decades.groupby(["direction", "layer_index", "layer"], sort=False)["value"]
    table = values.agg(["median", "min", "max", "size"]).reset_index()
    table["depth"] = (table["layer_index"] - 1) / max(table["layer_index"].max() - 1, 1)
    return table.rename(columns={"min": "low", "max": "high", "size": "n"})


def power(decades: float) -> str:
    """Such as `1e-7`; `0` for -infinity."""
    return f"1e{decades:+.0f}" if math.isfinite(decades) else f"{10.0**decades:g}"
