"""A batch of real digits, forward and backward through a deep network at initialization, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from depthgauge import data, drawing, replicas, stats, theory
from depthgauge.conditions import tallied, undecided
from depthgauge.frames import by_case, groups, layers_to_name, params_of
from depthgauge.initialization import draw, gains, sigmas
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import Question, agreed, agrees, enumerated, every, listed
from depthgauge.seeding import Purpose, generator
from depthgauge.studies.initialization import reached
from depthgauge.study import Case, Context, Grid, Rows, StudyError, Value
from depthgauge.verdict import Claim, Sentence

SIGNAL = Claim(
    "initialization/signal",
    "theory predicts the rate at which signal and gradient grow a layer, for every initialization scheme",
)
STEADY = Claim("N11", "constraining mean and variance layer by layer stabilizes the signal")

BATCH = 64  # examples
LAYERS = 4  # the first sees pixels, the last makes outputs: neither is judged, and a rate takes two
MARGIN = 0.05  # ln a layer: rates closer to each other than this, a factor of 4 over 30 layers, are called the same
CALM = 0.1  # ln a layer: a signal that changes by less, a factor of 20 over 30 layers, is called stable
LOWEST = -25.0  # log10 down to which the fan is drawn; N(0, 0.01^2) leaves it within a dozen layers
CONFIDENCE = 0.99  # of a family of comparisons with theory
SHAPE = ("depth", "norm", "activation")
BY = ["model", "norm", "activation", "scheme", "units"]
NAME = "{scheme} ({norm} norm, {activation}, {direction})"
RELU = {"relu": ("default", "xavier", "he", "orthogonal", "lsuv", "normal")}
BOTH = {**RELU, "tanh": ("default", "xavier", "preserving", "lsuv")}
SIZES = sizes(
    "seeds units depth schemes", quick=(20, 128, 30, RELU), standard=(40, 128, 30, BOTH), full=(60, 256, 30, BOTH),
    tiny=(5, 8, 4, BOTH),
)  # fmt: skip


def grids(seeds: int, units: int, depth: int, schemes: Mapping[str, tuple[str, ...]]) -> Iterator[Grid]:
    """Every scheme by activation without normalization, and He's under layer norm and batch norm."""
    plain = [("none", activation, names) for activation, names in schemes.items()]
    for norm, activation, names in (*plain, ("layer", "relu", ("he",)), ("batch", "relu", ("he",))):
        shape: dict[str, Value] = {"depth": depth, "norm": norm, "activation": activation}
        yield Grid(
            {"scheme": names}, {"model": "mlp", "units": units, "sweep": f"{activation} {norm}", **shape}, seeds,
            ("scheme", "seed"), chunk=64, architecture=SHAPE,
        )  # fmt: skip


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """Mean over the batch of ln second moment, of every layer's pre-activations and of the gradients in them.

    The loss is a random linear functional of the outputs, the same for every scheme of a seed; float64 throughout.
    """
    shared = cases[0]
    inputs = data.load("digits").train.x[:BATCH].double()
    template = reached.model(shared, inputs, SHAPE).double()
    reach = reached.reached(cases, template)
    yield from reach
    if any(row.value == 0 for row in reach):  # every scheme and seed would be one network
        return
    seeds = [case.random_seed("seed") for case in cases]  # common to all schemes: paired
    stack = replicas.stack(
        template, seeds, draw, device=context.device,
        scheme=[case.text("scheme") for case in cases],
        activation=[case["activation"] or "relu" for case in cases],
        batch=[inputs] * len(cases),
    )  # fmt: skip
    cotangents = [
        torch.randn(BATCH, 10, generator=generator(seed, Purpose.COTANGENT), dtype=torch.float64) for seed in seeds
    ]
    signals = replicas.signals(stack, inputs, torch.stack(cotangents), overlap=False)
    if len(signals.layers) < LAYERS:
        raise StudyError(
            f"a rate a layer is that between the first weight layer and the last, which takes {LAYERS} weight layers;"
            f" {shared.text('model')} has {len(signals.layers)}"
        )
    places, names = np.arange(1, len(signals.layers) + 1), list(signals.layers)
    for direction, moments in (("forward", signals.forward), ("backward", signals.backward)):
        with np.errstate(divide="ignore"):
            logs = np.log(moments).mean(-1)  # (L, R); what has died out is -infinity
        for i, case in enumerate(cases):
            yield case.rows("log_moment", logs[:, i], layer=names, layer_index=places, direction=direction)


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """Rates by scheme and direction, against theory and against standing still, and the profiles of the fan."""
    yield from reached.answers(rows, (SIGNAL, STEADY))
    rows = reached.drawn(rows)
    if not (rows["metric"] == "log_moment").any():
        return
    params = params_of(rows, *BY, "seed").assign(norm=lambda cases: cases["norm"].fillna("none").replace("none", "no"))
    params = params.astype(object).fillna("").drop_duplicates([*BY, "seed"])  # asked for twice of what has no norm
    lines = {direction: by_case(rows, "log_moment", direction) for direction in ("forward", "backward")}
    starts = lines["forward"].iloc[:, 1]
    against_theory, against_rest, profiles = {}, {}, []
    for key, networks in groups(params, BY):
        named = dict(zip(BY, key, strict=True))
        for direction, tracks in lines.items():
            # Without the first layer, which sees pixels, and without the outputs.
            hidden = tracks.loc[networks.index].dropna(axis=1, how="all").to_numpy()[:, 1:-1]
            law = _law(named, direction, float(starts.loc[networks.index].mean()), hidden.shape[1])
            along = (1 if direction == "forward" else -1) * (hidden.shape[1] - 1)
            with np.errstate(invalid="ignore"):  # a signal that died has no rate
                rate, predicted = (hidden[:, -1] - hidden[:, 0]) / along, (law[-1] - law[0]) / along
            if math.isfinite(predicted):
                against_theory[*key, direction] = stats.against(rate, predicted, margin=MARGIN, confidence=CONFIDENCE)
            against_rest[*key, direction] = stats.against(rate, 0.0, margin=CALM)
            profiles.append(_profile(hidden, named, direction, law))
    prediction = Question.of("signal_rates", (*BY, "direction"), against_theory, label=NAME)
    steadiness = Question.of(
        "steadiness", (*BY, "direction"), against_rest, label=NAME, reference="standing still",
        family=lambda norm, scheme, **_: _constrained(norm, scheme),
    )  # fmt: skip
    names = rows.loc[rows["metric"] == "log_moment", ["model", "layer_index", "layer"]]
    names = names.drop_duplicates(["model", "layer_index"])
    yield prediction.table()
    yield steadiness.table()
    yield "signal", (signal := pd.concat(profiles, ignore_index=True).merge(names, "left"))
    yield "gains", gains()
    if prediction:
        yield prediction.prediction(SIGNAL, "rates", within=f"{MARGIN:g} a layer", unit="ln a layer")
    yield from _kept(signal, steadiness.table()[1])
    yield from _stabilized(steadiness)


def _constrained(norm: str, scheme: str) -> bool:
    return norm != "no" or scheme == "lsuv"


def _law(named: Mapping[str, Any], direction: str, log_start: float, layers: int) -> np.ndarray:
    """Predicted ln second moment at each layer of an MLP, up to a constant; NaN where there is no law.

    `log_start` is that of the signal at the first of the layers; what it is there is not predicted.
    """
    steps = np.arange(layers) if direction == "forward" else np.arange(layers)[::-1]
    activation, norm, scheme = str(named["activation"]), named["norm"], str(named["scheme"])
    if named["model"] != "mlp" or not math.isfinite(log_start):
        return np.full(layers, math.nan)
    if norm == "batch":
        return steps * (0.0 if direction == "forward" else math.log(theory.batch_norm_growth(activation, BATCH)))
    drawn_as = sigmas(scheme, activation, int(named["units"]))
    if norm == "layer" or drawn_as is None:
        return np.zeros(layers) if direction == "forward" else np.full(layers, math.nan)
    # Of ReLU the mean of the logarithm is known at every width: what it lies below the logarithm of the mean.
    width = int(named["units"]) if activation == "relu" and scheme != "orthogonal" else math.inf
    law = theory.plain_signal(activation, *drawn_as, width, np.arange(1, layers + 1), q_1=math.exp(log_start))
    return law.forward if direction == "forward" else law.backward


def _profile(hidden: np.ndarray, named: Mapping[str, Any], direction: str, law: np.ndarray) -> pd.DataFrame:
    """Median and middle 90 % over seeds by layer, as log10, relative to where the signal comes from."""
    start = 0 if direction == "forward" else -1
    with np.errstate(invalid="ignore"):  # where it died
        lines = (hidden if direction == "forward" else hidden - hidden[:, -1:]) / math.log(10)
    band = stats.band(lines)
    predicted = band["median"][start] + (law - law[start]) / math.log(10)
    columns = {"layer_index": np.arange(2, hidden.shape[1] + 2), **band, "predicted": predicted}
    return pd.DataFrame({**named, "direction": direction, **columns})


def _stabilized(steadiness: Question) -> Iterator[Answer]:
    """N11: is the signal steady, both ways, where mean and variance are held layer by layer?"""
    held = steadiness.select(lambda norm, scheme, **_: _constrained(norm, scheme))
    if not held:
        return
    free = steadiness.where(norm="no", scheme="default").members.items()
    instead = ", ".join(f"{steadiness.words(key)} changes by {c.effect.value:+.2f} a layer" for key, c in free)
    yield held.verdict(
        STEADY, agrees, unit="ln of the second moment a layer",
        says=tallied(held.read(agrees), "signals and gradients"),
        why=listed(held.read(agrees), {True: "steady:", False: "not steady:", None: "undecided:"}, most=8)
        + (f"; unconstrained, {instead}" if instead else ""),
        method=f"rate over seeds within {CALM:g} of 0, a factor of 20 over 30 layers",
    )  # fmt: skip
    for (_, _, activation, *_), batch_norm in held.where(norm="batch", direction="backward").members.items():
        yield Sentence(
            "Under batch norm a layer multiplies the squared gradient, toward the input, by "
            f"{math.exp(batch_norm.effect.value):.2f} at initialization "
            f"(theory: {theory.batch_norm_growth(str(activation), BATCH):.2f}).",
            claims=(STEADY.id,),
        )


def _keepers(steadiness: pd.DataFrame) -> dict[str, bool | None]:
    """The schemes tried without normalization, and whether their rates are steady in both directions."""
    plain = steadiness[(steadiness["norm"] == "no") & (steadiness["activation"] == steadiness["activation"].iloc[0])]
    return {scheme: every(map(agreed, own["answer"])) for scheme, own in groups(plain, "scheme")}


def _told(kept: Mapping[str, bool | None], said: bool | None) -> list[str]:
    return [scheme for scheme, answer in kept.items() if answer is said]


def _kept(signal: pd.DataFrame, steadiness: pd.DataFrame) -> Iterator[Sentence]:
    kept, first = _keepers(steadiness), signal.iloc[0]
    what = f"{first['activation']} MLP" if first["model"] == "mlp" else str(first["model"])
    if kept:
        steady = _told(kept, True)
        yield Sentence(
            f"Through a deep {what} signal and gradient keep their size from {len(steady)} of {len(kept)} "
            f"initializations: {enumerated(steady) or 'none'}{undecided(kept.values())}.",
            "signal_fan",
            (STEADY.id,),
        )


def _title(_signal: pd.DataFrame, steadiness: pd.DataFrame) -> str:
    kept = _keepers(steadiness)
    left = f" (undecided: {enumerated(open_ones, 9)})" if (open_ones := _told(kept, None)) else ""
    return f"Signal and gradient are steady from: {enumerated(_told(kept, True), 9) or 'none of these'}{left}"


def _networks(signal: pd.DataFrame, _steadiness: pd.DataFrame) -> str:
    first = signal.iloc[0]
    what = first["model"] if first["model"] != "mlp" else f"{first['activation']} MLPs of width {first['units']:.0f}"
    return (
        f"{what} on {BATCH} digits, at initialization, from the second layer on, backward relative to the last. Lines: "
        "median over seeds of the mean ln second moment; bands: the middle 90 %; dashed: predicted, where a law is "
        "known."
    )


@drawing.figure("signal_fan", _title, _networks)
def plot_fan(signal: pd.DataFrame, steadiness: pd.DataFrame) -> Any:  # noqa: ARG001 - its title and caption ask for it
    """Log second moment by layer, one panel a direction, one colour a scheme."""
    shown = signal[(signal["norm"] == "no") & (signal["activation"] == signal["activation"].iloc[0])]
    axes = {"ylim": (LOWEST, 3), "xlabel": "layer", "ylabel": r"$\log_{10}$ second moment"}
    canvas = drawing.panels(shown, "direction", drawing.profile, x="layer_index", by="scheme", axes=axes)
    if shown["model"].iloc[0] != "mlp":  # of whose layers the names are numbers
        named = layers_to_name(shown)
        for axis in canvas.axes:
            axis.set_xticks(named["layer_index"], named["layer"], rotation=90, fontsize="small")
    return canvas


METHOD = """
**At initialization.** The *rate* is the change of ln second moment a layer, meaned over 64 digits; the loss is a random
linear functional of the outputs. Predicted: `theory.plain_signal`, at this width for ReLU; under batch norm 0 forward
and `theory.batch_norm_growth` backward (Yang et al. 2019).
"""
PART = Part("signal", (SIGNAL, STEADY), SIZES, grids, run, analyse, (plot_fan,), METHOD)
