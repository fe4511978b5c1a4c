"""Deep plain networks at initialization, layer by layer, forward and backward, against mean-field theory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from depthgauge import formats, replicas, stats, theory
from depthgauge.conditions import tallied, undecided
from depthgauge.frames import by_case, groups, logs, params_of
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import Question, Reading, above, agrees, below, listed, side, spelled
from depthgauge.replicas import plain
from depthgauge.studies.gradient_flow import signal_figures
from depthgauge.study import Case, Context, Grid, Rows, Value
from depthgauge.verdict import Claim, Sentence

RATE = Claim(
    "gradient_flow/rate",
    "mean-field theory predicts the rate at which the gradient grows or shrinks a layer, for every activation",
)
RELU = Claim(
    "N04", "with ReLU the gradient passes unchanged, so the product of the weights explodes after several layers"
)
SIGMOID = Claim("N05", "with sigmoid and many layers the gradient vanishes")
DEFAULT = Claim(
    "gradient_flow/default",
    "with PyTorch's default initialization of nn.Linear the gradient vanishes with depth, whatever the activation",
)
CONFIDENCE = 0.99  # of a family of comparisons with theory
DENSE, STRIDE = 20, 5  # every layer is recorded up to the first, every fifth beyond
MARGIN = 0.02  # ln a layer: rates closer to each other than this are called the same
CONFIGURATION = ["activation", "init", "width", "sigma_w", "sigma_b"]
LABEL = "{activation} at sigma_w = {sigma_w:.3g}, sigma_b = {sigma_b:.2g}"
TRAVEL = {"forward": 1, "backward": -1}
TOGETHER = ("activation", "sigma_w", "sigma_b", "seed")
LN10 = math.log(10)
# From deep in the ordered phase to deep in the chaotic one; each activation has its own critical value.
SIGMAS: Mapping[str, tuple[float, ...]] = {
    "linear": (0.5, 0.8, 1.0, 1.25, 2.0), "relu": (0.7, 1.0, 2**0.5, 1.8, 2.5), "tanh": (0.5, 0.8, 1.0, 1.5, 2.5),
    "sigmoid": (1.0, 2.0, 4.0, 8.0, 16.0), "gelu": (0.7, 1.0, 1.25, 1.4, 2.0),
}  # fmt: skip
SIZES = sizes(
    "width depth seeds sigma_b", quick=(128, 100, 30, (0.0, 0.3)), standard=(256, 100, 40, (0.0, 0.1, 0.3)),
    full=(512, 100, 60, (0.0, 0.1, 0.3)), tiny=(12, 30, 5, (0.0, 0.2)),
)  # fmt: skip


def grids(width: int, depth: int, seeds: int, sigma_b: tuple[float, ...]) -> Iterator[Grid]:
    """Every activation around its critical sigma_w, and as nn.Linear draws it."""
    shape: dict[str, Value] = {"width": width, "depth": depth}
    block = min(10, replicas.most_members(depth * width**2, each=8))
    for activation, sigma_w in SIGMAS.items():
        fixed, most = {**shape, "init": "gaussian", "activation": activation}, block * len(sigma_w) * len(sigma_b)
        yield Grid({"sigma_w": sigma_w, "sigma_b": sigma_b}, fixed, seeds, TOGETHER, most)
    yield Grid({"activation": tuple(SIGMAS)}, {**shape, "init": "torch"}, seeds, TOGETHER, block * len(SIGMAS))


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """Signal and gradient, layer by layer, in float64, which holds what a hundred layers do to them."""
    width, depth, init = cases[0].integer("width"), cases[0].integer("depth"), cases[0].text("init")
    recorded = np.array([layer for layer in range(1, depth + 1) if layer <= DENSE or layer % STRIDE == 0])
    members = []
    for case in cases:
        sigmas = (1.0, 1.0) if init == "torch" else (case.number("sigma_w"), case.number("sigma_b"))
        members.append(plain.Member(case.random_seed("width", "seed", "init"), case.text("activation"), *sigmas))
    for case, seen in zip(cases, plain.measure(width, depth, init, members, context.device), strict=True):
        for (metric, direction), values in seen.items():
            yield case.rows(metric, values[recorded - 1], layer_index=recorded, direction=direction)


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """Rates, fixed points and profiles of every configuration, measured and predicted."""
    params = params_of(rows, *CONFIGURATION)
    for width, default in groups(params[params["init"] == "torch"], "width"):
        params.loc[default.index, ["sigma_w", "sigma_b"]] = theory.default_linear(int(width))
    moments = {direction: logs(by_case(rows, "second_moment", direction)) for direction in TRAVEL}
    correlation, ratio = by_case(rows, "correlation"), by_case(rows, "log_ratio_scaled")
    layers = moments["forward"].columns.to_numpy(int)
    sampled: dict[tuple[Any, ...], tuple[np.ndarray, float]] = {}
    profiles, fixed = [], []
    for key, own in groups(params, CONFIGURATION):
        activation, _, width, sigma_w, sigma_b = key
        at = dict(zip(CONFIGURATION, key, strict=True))
        law = theory.plain_signal(activation, sigma_w, sigma_b, int(width), layers)
        for (direction, way), predicted in zip(TRAVEL.items(), law, strict=True):
            lines, passed = moments[direction].loc[own.index].to_numpy(), way * (layers[-1] - layers[0])
            sampled[*key, direction] = (lines[:, -1] - lines[:, 0]) / passed, (predicted[-1] - predicted[0]) / passed
            columns = {"layer_index": layers, **stats.band(lines / LN10), "predicted": predicted / LN10}
            profiles.append(pd.DataFrame({**at, "direction": direction, **columns}))
        signal = (each.loc[own.index].to_numpy() for each in (moments["forward"], correlation, ratio))
        fixed.append({**at, **fixed_point(key, layers, *signal)})
    rates = Question.of(
        "rates", (*CONFIGURATION, "direction"),
        {key: stats.against(x, to, margin=MARGIN, confidence=CONFIDENCE) for key, (x, to) in sampled.items()},
        label=LABEL, family=lambda init, direction, **_: (init, direction),
    )  # fmt: skip
    yield rates.table()
    yield "fixed_points", pd.DataFrame(fixed)
    yield "profiles", pd.concat(profiles, ignore_index=True)
    yield "correlations", correlations(params, correlation)
    yield from sentences(rates)
    if drawn := rates.where(init="gaussian", direction="backward"):
        yield drawn.prediction(RATE, "rates", within=f"{MARGIN:g} a layer", unit="ln a layer")
    yield from growths({key[:-1]: x for key, (x, _) in sampled.items() if key[-1] == "backward"})


def fixed_point(
    key: tuple[Any, ...], layers: np.ndarray, log_q: np.ndarray, c: np.ndarray, ratio: np.ndarray
) -> dict[str, float]:
    """q*, c* and both depth scales of a configuration, predicted and measured."""
    activation, _, _, sigma_w, sigma_b = key
    try:
        field = theory.mean_field(activation, sigma_w, sigma_b)
    except theory.NoFixedPoint:
        return {"q_star": math.inf}
    measured = plain.settled(layers, np.exp(log_q), c, ratio, field.c_star)
    return asdict(field) | {k: v for name, estimate in measured.items() for k, v in spelled(name, estimate).items()}


def correlations(params: pd.DataFrame, correlation: pd.DataFrame) -> pd.DataFrame:
    """The correlation of two inputs by layer, of tanh at the largest sigma_b, beside the mean-field map."""
    own = params[(params["activation"] == "tanh") & (params["init"] == "gaussian")]
    layers, tables = correlation.columns.to_numpy(int), [pd.DataFrame()]
    for (sigma_w, sigma_b), cases in groups(own[own["sigma_b"] == own["sigma_b"].max()], ["sigma_w", "sigma_b"]):
        q, start = sigma_w**2 + sigma_b**2, sigma_w**2 * plain.INPUT_OVERLAP + sigma_b**2
        path = theory.correlation_trajectory("tanh", sigma_w, sigma_b, start / q, int(layers[-1]) - 1, q_0=q)
        at = {"sigma_w": sigma_w, "sigma_b": sigma_b, "layer_index": layers, "predicted": path[layers - 1]}
        tables.append(pd.DataFrame({**at, **stats.band(correlation.loc[cases.index])}))
    return pd.concat(tables, ignore_index=True)


def growths(rates: Mapping[tuple[Any, ...], np.ndarray]) -> Iterator[Answer]:
    """Does the gradient grow with ReLU, shrink with sigmoid, and by default? Against 0, one family a claim."""
    critical = theory.critical_sigma_w("sigmoid", 0.0)
    asked = {
        RELU: ("activation", "relu", above, "a layer multiplies the squared gradient by sigma_w^2 / 2"),
        SIGMOID: ("activation", "sigmoid", below, f"only above sigma_w = {critical:.3g} is the gradient to grow"),
        DEFAULT: ("init", "torch", below, "nn.Linear's default is sigma_w = 0.577, below every critical value"),
    }
    members = {
        (claim.id, *key): stats.against(rate, 0.0, margin=MARGIN)
        for claim, (column, value, *_) in asked.items() for key, rate in rates.items()
        if key[CONFIGURATION.index(column)] == value
    }  # fmt: skip
    by, family = ("claim", *CONFIGURATION), lambda claim, **_: claim
    growth = Question.of("growth", by, members, label=LABEL, family=family, reference="unchanged")
    if growth:
        yield growth.table()
    for claim, (_, _, reading, reason) in asked.items():
        if own := growth.where(claim=claim.id):
            yield own.verdict(
                claim, reading, shown=next(iter((own.where(init="torch") or own).members)), unit="ln a layer",
                says=_activations(own, reading) if claim is DEFAULT else "",
                why=f"{reason}. Measured, the squared gradient {grouped(own)}",
                method=f"growth a layer by seed, against +-{MARGIN:g}",
            )  # fmt: skip


def _activations(growth: Question, reading: Reading) -> str:
    return tallied({key[1]: reading(member) for key, member in growth.members.items()}, "activations")


def grouped(growth: Question) -> str:
    """Direction of the gradient, by activation and sigma_w; sigma_b is named where it decides."""
    ways: dict[str, dict[str, int | None]] = {}
    for (_, activation, init, _, sigma_w, sigma_b), member in growth.members.items():
        place = "nn.Linear's default" if init == "torch" else f"sigma_w = {sigma_w:.3g}"
        ways.setdefault(f"{activation} at {place}", {})[f", sigma_b = {sigma_b:.2g}"] = side(member)
    signs = {
        place if len(set(by.values())) == 1 else place + sigma_b: sign
        for place, by in ways.items() for sigma_b, sign in by.items()
    }  # fmt: skip
    return listed(signs, {1: "grows for", -1: "shrinks for", 0: "does neither for", None: "is undecided for"}, most=8)


def sentences(rates: Question) -> Iterator[Sentence]:
    """Say what PyTorch's default leaves of a gradient until float16 holds none of it."""
    default = {key[0]: m.effect for key, m in rates.where(init="torch", direction="backward").members.items()}
    if "relu" in default and default["relu"].high < 0:
        rate, end = default["relu"].value, 2 * math.log(formats.get("float16").smallest_subnormal)  # of a square
        yield Sentence(
            f"At PyTorch's default initialization a ReLU layer leaves {math.exp(rate):.0%} of the squared gradient: "
            f"after {math.ceil(end / rate)} layers one of size 1 is below float16's smallest number.",
            "pytorch_default",
            (DEFAULT.id,),
        )
    every = list(rates.where(init="gaussian", direction="backward").read(agrees).values())
    if every:
        yield Sentence(
            f"Theory knew {every.count(True)} of {len(every)} growth rates of the gradient before the first step, "
            f"within {MARGIN:.0%} a layer{undecided(every)}.",
            "phases",
            (RATE.id,),
        )


METHOD = """
**At initialization.** Weights are drawn from N(0, sigma_w² / fan-in), biases from N(0, sigma_b²); inputs have second
moment 1, the loss is a random linear functional of the last layer. The *rate* is ln of the factor by which a layer
multiplies the second moment of gradient or signal. Prediction: mean-field theory (Poole et al. 2016; Schoenholz et al.
2017), corrected for finite width (`theory.plain_signal`).
"""
FIGURES = (signal_figures.phases, signal_figures.rates, signal_figures.profiles, signal_figures.default)
PART = Part("signal", (RATE, RELU, SIGMOID, DEFAULT), SIZES, grids, run, analyse, FIGURES, METHOD)
