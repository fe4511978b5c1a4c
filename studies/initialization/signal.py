"""A batch of real digits, forward and backward through a deep network at initialization, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.lines import Line2D

from depthgauge import data, models, replicas, stats, theory
from depthgauge.frames import by_case, groups, layers_to_name, params_of, records
from depthgauge.parts import Answer, Tables, verdict_on
from depthgauge.seeding import Purpose, generator
from depthgauge.studies.initialization.reached import nothing, reached
from depthgauge.studies.initialization.schemes import colour, draw, sigmas
from depthgauge.study import Case, Context, Rows, StudyError
from depthgauge.verdict import Figure, Status, Verdict

BATCH = 64  # examples
LAYERS = 4  # the first sees pixels, the last makes outputs: neither is judged, and a rate takes two
MARGIN = 0.05  # ln a layer: rates closer to each other than this, a factor of 4 over 30 layers, are called the same
STEADY = 0.1  # ln a layer: a signal that changes by less, a factor of 20 over 30 layers, is called stable
LOWEST = -25.0  # log10 down to which the fan is drawn; N(0, 0.01^2) leaves it within a dozen layers
CONFIDENCE = 0.99  # of a family of comparisons with theory
BY = ["model", "norm", "activation", "scheme", "units"]


def run_signal(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """Mean over the batch of ln second moment, of every layer's pre-activations and of the gradients in them.

    The loss is a random linear functional of the outputs, the same for every scheme of a seed; float64 throughout.
    """
    shared = cases[0]
    inputs = data.load("digits").train.x[:BATCH].double()
    shape: dict[str, Any] = shared.given("depth", "norm", "activation")
    if shared["model"] == "mlp":
        shape["width"] = shared.integer("units")
    template = models.build(
        shared.text("model"), preset="small", input_shape=tuple(inputs.shape[1:]), classes=10,
        **shape,
    ).double()  # fmt: skip
    told = reached(cases, template)
    yield from told
    if nothing(told):
        return
    seeds = [case.random_seed("seed") for case in cases]  # common to all schemes: paired
    stack = replicas.stack(
        template, seeds, draw, device=context.device,
        scheme=[case.text("scheme") for case in cases],
        activation=[case["activation"] or "relu" for case in cases],
        batch=[inputs] * len(cases),
    )  # fmt: skip
    cotangent = torch.stack([_functional(seed) for seed in seeds])
    seen = replicas.signals(stack, inputs, cotangent, overlap=False)
    if len(seen.layers) < LAYERS:
        raise StudyError(
            f"a rate a layer is that between the first weight layer and the last, which takes {LAYERS} weight layers;"
            f" {shared.text('model')} has {len(seen.layers)}"
        )
    for direction, moments in (("forward", seen.forward), ("backward", seen.backward)):
        with np.errstate(divide="ignore"):
            logs = np.log(moments).mean(-1)  # (L, R); what has died out is -infinity
        for i, case in enumerate(cases):
            places, names = np.arange(1, len(logs) + 1), list(seen.layers)
            yield case.rows("log_moment", logs[:, i], layer=names, layer_index=places, direction=direction)


def _functional(seed: int) -> torch.Tensor:
    """(BATCH, 10) gradient with respect to the outputs."""
    return torch.randn(BATCH, 10, generator=generator(seed, Purpose.COTANGENT), dtype=torch.float64)


def analyse_signal(rows: pd.DataFrame) -> Answer:
    """Rates by scheme and direction, measured and predicted, and the profiles that the fan draws."""
    params = params_of(rows, *BY, "seed").assign(norm=lambda own: own["norm"].fillna("none")).astype(object).fillna("")
    params = params.drop_duplicates([*BY, "seed"])  # what a model without norm was asked for more than once
    lines = {direction: by_case(rows, "log_moment", direction) for direction in ("forward", "backward")}
    starts = lines["forward"].iloc[:, 1]
    rates, profiles, comparisons = [], [], []
    for key, own in groups(params, BY):
        named = dict(zip(BY, key, strict=True))
        for direction, every in lines.items():
            # Without the first layer, which sees pixels, and without the outputs.
            hidden = every.loc[own.index].dropna(axis=1, how="all").to_numpy()[:, 1:-1]
            law = _law(named, direction, float(starts.loc[own.index].mean()), hidden.shape[1])
            sign = 1 if direction == "forward" else -1
            along = sign * (hidden.shape[1] - 1)
            rate, predicted = (hidden[:, -1] - hidden[:, 0]) / along, (law[-1] - law[0]) / along
            known = math.isfinite(predicted)
            if known:
                comparisons.append(stats.against(rate, predicted, margin=MARGIN, confidence=CONFIDENCE))
            estimate = stats.mean(rate)
            rates.append(
                {
                    **named, "direction": direction, "layers": hidden.shape[1], "n": estimate.n,
                    "rate": estimate.value, "low": estimate.low, "high": estimate.high, "predicted": predicted,
                    "answer": str(comparisons[-1].answer) if known else "",
                }
            )  # fmt: skip
            profiles.append(_profile(hidden, named, direction, law))
    table = pd.DataFrame(rates)
    moments = rows[rows["metric"] == "log_moment"]
    names = moments[["model", "layer_index", "layer"]].drop_duplicates(["model", "layer_index"])
    signal = pd.concat(profiles, ignore_index=True).merge(names, "left")
    return Answer(
        {"signal_rates": table, "signal": signal, "gains": _gains()},
        (*_prediction(table, comparisons), _constrained(table)),
        tuple(_sentences(table)),
    )


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
    found = sigmas(scheme, activation, int(named["units"]))
    if norm == "layer" or found is None:
        return np.zeros(layers) if direction == "forward" else np.full(layers, math.nan)
    sigma_w, sigma_b = found
    # Of ReLU the mean of the logarithm is known at every width: what it lies below the logarithm of the mean.
    width = int(named["units"]) if activation == "relu" and scheme != "orthogonal" else math.inf
    q_1, numbers = math.exp(log_start), np.arange(1, layers + 1)
    law = theory.plain_signal(activation, sigma_w, sigma_b, width, numbers, q_1=q_1)
    return law.forward if direction == "forward" else law.backward


def _profile(hidden: np.ndarray, named: Mapping[str, Any], direction: str, law: np.ndarray) -> pd.DataFrame:
    """Median and middle 90 % over seeds by layer, as log10, relative to where the signal comes from."""
    start = 0 if direction == "forward" else -1
    lines = (hidden if direction == "forward" else hidden - hidden[:, -1:]) / math.log(10)
    low, middle, high = np.quantile(lines, (0.05, 0.5, 0.95), axis=0, method="inverted_cdf")
    columns = {
        "layer_index": np.arange(2, hidden.shape[1] + 2), "low": low, "median": middle, "high": high,
        "predicted": middle[start] + (law - law[start]) / math.log(10),
    }  # fmt: skip
    return pd.DataFrame({**named, "direction": direction, **columns})


def _gains() -> pd.DataFrame:
    """What `torch.nn.init.calculate_gain` says of each activation, and what keeps its second moment."""
    from torch.nn.init import calculate_gain  # noqa: PLC0415 - beside its only use

    rows = []
    for name in ("identity", "relu", "leaky_relu", "tanh", "sigmoid", "selu", "gelu", "silu"):
        gain = theory.gain(name)
        try:
            torchs = calculate_gain(cast("Any", {"identity": "linear"}.get(name, name)))
        except ValueError:  # torch has none
            torchs = math.nan
        rows.append(
            {
                "activation": name, "calculate_gain": torchs, "forward": gain.forward, "backward": gain.backward,
                "kept_a_layer_with_torchs": (torchs / gain.forward) ** 2,
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def _prediction(rates: pd.DataFrame, comparisons: Sequence[stats.Comparison]) -> Iterator[Verdict]:
    if not comparisons:
        return
    family = stats.together(comparisons)
    known = rates[np.isfinite(rates["predicted"])]
    answers = [{"equivalent": True, "different": False}.get(str(member.answer)) for member in family]
    gap = (known["rate"] - known["predicted"]).abs()
    worst = known.iloc[int(gap.to_numpy().argmax())]
    right = sum(answer is True for answer in answers)
    yield verdict_on(
        "initialization/signal", Status(stats.combine(answers)),
        f"{right} of {len(family)} rates lie within {MARGIN:g} of the prediction; furthest from it is {worst['scheme']}"
        f"{'' if worst['norm'] == 'none' else ' under ' + worst['norm'] + ' norm'} {worst['direction']}, "
        f"{worst['rate']:.3f} where {worst['predicted']:.3f} was predicted",
        observed=float(worst["rate"]), low=float(worst["low"]), high=float(worst["high"]),
        predicted=float(worst["predicted"]), unit="ln of the second moment a layer", n=int(worst["n"]),
        method=f"t test of the rate over seeds against the prediction, equivalence margin {MARGIN:g}, Holm over "
        f"{len(family)} at {CONFIDENCE:.0%}; the figure is the worst of them",
    )  # fmt: skip


def _constrained(rates: pd.DataFrame) -> Verdict:
    """N11: is the signal steady, both ways, where mean and variance are held layer by layer?"""
    held = rates[(rates["norm"] != "none") | (rates["scheme"] == "lsuv")]
    answers = {}
    for row in records(held):
        name = f"{'LSUV' if row.norm == 'none' else row.norm + ' norm'} {row.direction}"
        inside = True if row.low > -STEADY and row.high < STEADY else None
        answers[name] = False if row.low > STEADY or row.high < -STEADY else inside
    if not answers:
        return verdict_on("N11", Status.INCONCLUSIVE, "nothing that constrains mean and variance was measured")
    steady = [name for name, answer in answers.items() if answer]
    moving = [name for name, answer in answers.items() if answer is False]
    worst = held.iloc[int(held["rate"].abs().to_numpy().argmax())]
    free = rates[(rates["scheme"] == "default") & (rates["norm"] == "none")]
    instead = f"; PyTorch's default, unconstrained, changes by {free['rate'].mean():+.2f} a layer" if len(free) else ""
    return verdict_on(
        "N11", Status(stats.combine(answers.values())),
        f"steady: {', '.join(steady) or 'none'}; not steady: {', '.join(moving) or 'none'}{instead}",
        observed=float(worst["rate"]), low=float(worst["low"]), high=float(worst["high"]),
        predicted=None if math.isnan(worst["predicted"]) else float(worst["predicted"]),
        unit="ln of the second moment a layer", n=int(worst["n"]),
        method=f"95 % t interval of the rate over seeds inside +-{STEADY:g} (a factor of 20 over 30 layers); the "
        f"figure is the furthest from 0: {worst['norm']} norm, {worst['scheme']}, {worst['direction']}",
    )  # fmt: skip


def _sentences(rates: pd.DataFrame) -> Iterator[str]:
    batch = rates[(rates["norm"] == "batch") & (rates["direction"] == "backward")]
    for row in records(batch.head(1)):
        yield (
            f"Batch norm holds the signal and lets the gradient explode: at initialization its square grows by "
            f"{math.exp(row.rate):.2f} a layer backward ({math.exp(row.predicted):.2f} predicted), a factor of "
            f"{math.exp(row.rate * row.layers):.2g} over {row.layers} layers."
        )


def _keepers(tables: Tables) -> str:
    """The schemes without normalization whose rates are steady in both directions."""
    rates = tables["signal_rates"]
    plain = rates[(rates["norm"] == "none") & (rates["activation"] == rates["activation"].iloc[0])]
    fastest = plain.groupby("scheme", sort=False)["rate"].agg(lambda own: own.abs().max())
    return ", ".join(fastest[fastest < STEADY].index) or "none of these schemes"


def _networks(own: pd.DataFrame) -> str:
    """What was measured, in words."""
    first = own.iloc[0]
    return (
        str(first["model"]) if first["model"] != "mlp" else f"{first['activation']} MLPs of width {first['units']:.0f}"
    )


def plot_signal(tables: Tables) -> Iterator[Figure]:
    """The fan: log second moment by layer, one panel a direction, one colour a scheme."""
    if "signal" not in tables:
        return
    every = tables["signal"]
    own = every[(every["norm"] == "none") & (every["activation"] == every["activation"].iloc[0])]
    ours = own["model"].iloc[0] == "mlp"  # of whose layers the names are numbers
    named = own.iloc[:0] if ours else layers_to_name(own)
    canvas, axes = plt.subplots(1, 2, figsize=(9.6, 4.9 + 0.08 * max(map(len, named["layer"]), default=0)))
    schemes = list(dict.fromkeys(own["scheme"]))
    for axis, direction in zip(axes, ("forward", "backward"), strict=True):
        for scheme in schemes:
            line = own[(own["scheme"] == scheme) & (own["direction"] == direction)]
            shade = colour(scheme)
            axis.fill_between(line["layer_index"], line["low"], line["high"], color=shade, alpha=0.25, lw=0)
            axis.plot(line["layer_index"], line["median"], color=shade, marker="o", ms=3.2, lw=0)
            axis.plot(line["layer_index"], line["predicted"], color=shade, lw=1.3)
        if not ours:
            axis.set_xticks(named["layer_index"], named["layer"], rotation=90, fontsize="small")
        axis.set(xlabel="layer", title=f"{'activations' if direction == 'forward' else 'gradients'}, {direction}")
        axis.set_ylim(LOWEST, 3)
    axes[0].set_ylabel("log10 of the second moment")
    axes[1].set_ylabel("log10, relative to the last layer")
    handles = [Line2D([], [], color=colour(scheme), marker="o", ms=5, lw=1.3, label=scheme) for scheme in schemes]
    canvas.legend(handles=handles, loc="outside lower center", ncols=4)
    yield Figure(
        "signal_fan", canvas,
        f"Through {int(own['layer_index'].max())} layers {_keepers(tables)} keep both signal and gradient",
        f"{_networks(own)} on {BATCH} digits, at initialization, from the second layer on. Points: median over seeds "
        "of the mean ln second moment; bands: middle 90 % of seeds; lines: predicted, where a law is known.",
    )  # fmt: skip
