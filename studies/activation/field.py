"""The theory table: gains, growth, critical sigma_w and the default's depth scale, predicted and measured."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from depthgauge import drawing, models, replicas, stats, theory
from depthgauge.conditions import undecided
from depthgauge.frames import by_case, groups, logs, only, params_of, records
from depthgauge.initialization import gaussian
from depthgauge.models.activations import FEW, make, names, once, phi
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import Question, agrees, below
from depthgauge.seeding import Purpose, generator
from depthgauge.study import Case, Context, Grid, Rows
from depthgauge.verdict import Claim, Sentence

SIGMOID = Claim("N05", "with sigmoid and many layers the gradient vanishes")
THEORY = Claim("activation/theory", "theory knows gains, growth and depth scale of every activation before it is run")

MARGIN = 0.1  # ln: a factor within 10 % of the predicted one is the same
CONFIDENCE = 0.99  # of the family of all comparisons with theory
UNSTABLE = 0.01  # by which a deviation of the variance must grow in a layer to be told
FLOOR = -5.0  # ln a layer: where the figure ends
BATCHES = (8, 32, math.inf)  # those of the table
INITS = {"gain": "its forward gain", "critical": "its critical sigma_w", "default": "nn.Linear's default"}
RATES = {init: f"growth at {where}" for init, where in INITS.items()}
MOMENTS = {"value2": "E[phi(z)^2]", "slope2": "E[phi'(z)^2]"}
SIZES = sizes(
    "activations width networks", quick=(FEW, 128, 26), standard=(names(), 256, 30),
    full=(names(), 512, 40), tiny=(("relu", "sigmoid", "softplus"), 16, 6),
)  # fmt: skip


def grids(activations: tuple[str, ...], width: int, networks: int) -> Iterator[Grid]:
    """Every activation at three initializations."""
    yield Grid({"activation": activations, "init": tuple(INITS)}, {"width": width, "depth": 10}, networks, chunk=64)


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """Deep MLPs at initialization in float64: second moments of the gradient at every layer, and of the first units.

    The input is scaled so that the first layer's pre-activations have variance 1; at the default, to second moment 1.
    """
    shared = cases[0]
    spec, init, width = shared.text("activation"), shared.text("init"), shared.integer("width")
    try:
        sigma_w, _ = sigmas(spec, init, width)
    except ValueError:  # there is none, or phi varies too fast for one to be found
        for case in cases:
            yield case.rows("critical", math.nan)
        return
    template = models.build(
        "mlp", depth=shared.integer("depth"), width=width, activation=make(spec), input_shape=(width,), classes=width
    ).double()
    drawn = None if init == "default" else gaussian(sigma_w)
    seeds = [case.random_seed("seed", "width", "depth", "init") for case in cases]
    stack = replicas.stack(template, seeds, drawn, device=context.device)
    inputs, cotangent = draws(shared.random_seed("width"), 1, width)
    inputs *= math.sqrt(width) / inputs.norm()
    yield from gradients(cases, stack, inputs if drawn is None else inputs / sigma_w, cotangent)
    moments = replicas.first_layer_moments(stack, math.sqrt(width) / sigma_w, phi(spec)) if init == "gain" else {}
    for metric, values in moments.items():
        yield from (case.rows(metric, value) for case, value in zip(cases, values, strict=True))


def draws(seed: int, batch: int, width: int, dtype: torch.dtype = torch.float64) -> Iterator[Tensor]:
    """Standard normal inputs, and gradients with respect to the outputs, (batch, width) each."""
    for purpose in (Purpose.INPUTS, Purpose.COTANGENT):
        yield torch.randn(batch, width, generator=generator(seed, purpose), dtype=dtype)


def gradients(cases: Sequence[Case], stack: replicas.Stack, inputs: Tensor, cotangent: Tensor) -> Iterator[Rows]:
    """Second moment of the gradient at every layer, mean over the inputs."""
    backward = replicas.signals(stack, inputs, cotangent, overlap=False).backward.mean(-1)
    for case, moments in zip(cases, backward.T, strict=True):
        yield case.rows("second_moment", moments, layer_index=np.arange(1, len(moments) + 1), direction="backward")


def growths(rows: pd.DataFrame) -> pd.Series[float]:
    """Growth of each case's squared gradient, ln a layer, from the last layer to the second: the first has inputs."""
    layers = logs(by_case(rows, "second_moment", "backward"))
    with np.errstate(invalid="ignore"):  # a gradient that died on the way: no rate
        return (layers.iloc[:, 1] - layers.iloc[:, -1]) / (layers.shape[1] - 2)


def sigmas(spec: str, init: str, width: int) -> tuple[float, float]:
    """(sigma_w, sigma_b) of an initialization; a ValueError where the activation has no critical sigma_w."""
    if init == "default":
        return theory.default_linear(width)
    return (theory.gain(phi(spec)).forward if init == "gain" else theory.critical_sigma_w(phi(spec), 0.0)), 0.0


def predicted_rate(spec: str, init: str, width: int, depth: int) -> float:
    """Predicted ln growth of the squared gradient a layer; mean field where the order 1/width is no correction."""
    sigma_w, sigma_b = sigmas(spec, init, width)
    q_1 = 1.0 if sigma_b == 0 else None
    law = theory.plain_signal(phi(spec), sigma_w, sigma_b, width, [2, depth + 1], q_1=q_1, largest=MARGIN)
    return float(law.backward[0]) / (depth - 1)


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """Every figure against its prediction, the table of one row an activation, and what sigmoid does."""
    params = params_of(once(rows), "activation", "spec", "init", "width", "depth")
    params = params.astype({"width": int, "depth": int})
    measured = growths(rows)
    asked, vanishing = {}, {}
    for (name, spec, init, width, depth), nets in groups(params, [*map(str, params)]):
        rates = measured[nets.index.intersection(measured.index)]
        predicted = predicted_rate(spec, init, width, depth) if len(rates) else math.nan
        if math.isfinite(predicted):  # else there is no such network, or its gradient is gone in theory too
            asked[name, RATES[init]] = stats.against(rates, predicted, margin=MARGIN, confidence=CONFIDENCE)
        if spec == "sigmoid":
            vanishing[(INITS[init],)] = stats.against(rates, 0.0, margin=MARGIN)
        for metric, quantity in MOMENTS.items() if init == "gain" else ():
            every = only(rows, metric)
            moments = logs(every[nets.index.intersection(every.index)].to_frame()).to_numpy()[:, 0]
            predicted = math.log(getattr(theory.layer_moments(phi(spec), 1.0), metric))
            asked[name, quantity] = stats.against(moments, predicted, margin=MARGIN, confidence=CONFIDENCE)
    label, specs = "{quantity}, {activation}", dict(zip(params["activation"], params["spec"], strict=True))
    question = Question.of("deviations", ("activation", "quantity"), asked, label=label, counted="networks")
    yield "theory", (table := pd.DataFrame(_row(name, spec, question) for name, spec in specs.items()))
    yield question.table()
    if question:
        yield question.prediction(THEORY, "figures", within=f"{MARGIN:.0%} (ln)", unit="ln of the factor")
    yield from _vanishing(vanishing)
    yield from _sentences(table, question)


def _row(name: str, spec: str, question: Question) -> dict[str, object]:
    """What theory says of one activation, and what was measured beside it."""
    law = phi(spec)
    gain, moments, members = theory.gain(law), theory.layer_moments(law, 1.0), question.where(activation=name).members
    measured = dict.fromkeys((*RATES.values(), *MOMENTS.values()), math.nan)
    measured |= {quantity: member.effect.value for (_, quantity), member in members.items()}
    default = members.get((name, RATES["default"]))
    critical = math.nan
    with suppress(ValueError):  # as above
        critical = theory.critical_sigma_w(law, 0.0)
    return {
        "activation": name, "forward_gain": gain.forward, "backward_gain": gain.backward,
        "forward_gain_measured": math.exp(-measured[MOMENTS["value2"]] / 2),
        "backward_gain_measured": math.exp(-measured[MOMENTS["slope2"]] / 2),
        "chi_at_gain": (gain.forward / gain.backward) ** 2, "critical_sigma_w": critical,
        "growth_at_gain_measured": math.exp(measured[RATES["gain"]]),
        "variance_slope_at_gain": gain.forward**2 * moments.value2_rate,
        "growth_at_critical_measured": math.exp(measured[RATES["critical"]]),
        # layers over which the squared gradient falls by a factor e
        "default_depth_scale": -1 / default.reference if default else math.nan,
        "default_depth_scale_measured": -1 / measured[RATES["default"]],
        **{f"batch_norm_{batch:g}": theory.batch_norm_growth(law, batch) for batch in BATCHES},
    }  # fmt: skip


def _vanishing(asked: Mapping[tuple[str], stats.Comparison]) -> Iterator[Answer]:
    """N05 at three initializations of sigmoid."""
    question = Question.of("vanishing", ("init",), asked, label="{init}", reference="unchanged", counted="networks")
    if not question:
        return
    yield question.table()
    factors = ", ".join(f"{math.exp(c.effect.value):.3g} at {init}" for (init,), c in question.members.items())
    yield question.verdict(
        SIGMOID, below, unit="ln a layer", shown=next(iter(question.members)),
        why=f"a sigmoid layer multiplies the squared gradient by {factors}. Its slope is at most 1/4: no gain keeps "
        "signal and gradient at once",
        method=f"at initialization, t over networks; it vanishes below -{MARGIN:g} a layer",
    )  # fmt: skip


def _sentences(table: pd.DataFrame, question: Question) -> Iterator[Sentence]:
    moving = table[table["growth_at_gain_measured"] > 0].sort_values("growth_at_gain_measured")
    if len(moving) > 1:
        low, high = (
            f"{row.growth_at_gain_measured:.2g} with {row.activation}" for row in records(moving.iloc[[0, -1]])
        )
        yield Sentence(
            "The gain that keeps the signal does not always keep the gradient: a layer multiplies its square by "
            f"{low}, by {high}.",
            "theory",
            (THEORY.id,),
        )
    if question:
        known = [*question.read(agrees).values()]
        yield Sentence(
            f"Theory knows {known.count(True)} of {len(question)} gains and growth rates of {len(table)} activations "
            f"within {MARGIN:.0%}, before a network is run{undecided(known)}.",
            "theory",
            (THEORY.id,),
        )
    unstable = table.iloc[table["variance_slope_at_gain"].argmax()]
    if unstable["variance_slope_at_gain"] > 1 + UNSTABLE:
        yield Sentence(
            f"At its exact gain a {unstable['activation']} network's signal may drift: errors of its variance grow by "
            f"a factor of {unstable['variance_slope_at_gain']:.2f} a layer.",
            claims=(THEORY.id,),
        )


@drawing.figure(
    "theory", "How a gradient grows or shrinks in a layer, predicted before the first step and measured",
    lambda deviations: "ln of the factor by which a layer multiplies the squared gradient, from the last layer to the "
    f"second; mean over {deviations['n'].min()} networks, {100 * CONFIDENCE:g} % intervals that hold at once. Below "
    f"0 gradients vanish, above they explode; {FLOOR:g} and less is not drawn. No point: no critical sigma_w.",
)  # fmt: skip
def draw_theory(deviations: pd.DataFrame) -> Any:
    """Growth a layer of every activation at three initializations, predicted and measured."""
    rates = deviations[deviations["quantity"].isin(list(RATES.values()))]
    order = rates.groupby("activation")["predicted"].max().sort_values().index
    rates = rates.assign(activation=pd.Categorical(rates["activation"], order))
    shown = rates[(rates[["value", "predicted"]] > FLOOR).all(axis=1)]
    return drawing.panels(shown, "quantity", drawing.estimates, at="activation", axes={"xlabel": "ln growth a layer"})


METHOD = "**Theory.** Infinite width, corrected to first order (`theory.plain_signal`); exact for ReLU and identity."
PART = Part("field", (SIGMOID, THEORY), SIZES, grids, run, analyse, (draw_theory,), METHOD)
