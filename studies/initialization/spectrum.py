"""Singular values of the input-output Jacobian, for Gaussian and orthogonal weights, against theory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from depthgauge import drawing, stats, theory
from depthgauge.conditions import tallied, undecided
from depthgauge.frames import groups, params_of
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import Question, above, agreed, below
from depthgauge.replicas import plain
from depthgauge.study import Case, Context, Grid, Rows
from depthgauge.verdict import Claim, Sentence, Verdict

SPECTRUM = Claim(
    "initialization/spectrum",
    "theory predicts mean and variance of the squared singular values of a deep network's input-output Jacobian",
)
ISOMETRY = Claim(
    "initialization/isometry",
    "orthogonal weights keep the singular values of deep linear networks together, and of tanh networks with small "
    "signals, but no weights those of ReLU networks",
)

DEPTHS = (1, 2, 4, 8, 16, 32)
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
Q_STAR = 0.01  # pre-activation variance of the tanh networks, which are critical: small, so that they are nearly linear
MARGIN = 0.25  # relative: means and variances closer to theory than this are called the same
JUDGED = 8  # deepest network held against theory: beyond, infinite-width theory is off by depth / width
CONFIDENCE = 0.99
ISOMETRIC = 2.0  # factor that the middle 90 % of singular values span, up to which a Jacobian is called an isometry
KEPT = (("identity", "orthogonal"), ("tanh", "orthogonal"))  # what the claim calls isometries
NAMES = {"identity": "linear"}
SIZES = sizes("seeds width", quick=(20, 128), standard=(40, 200), full=(60, 400), tiny=(8, 8))


def grids(seeds: int, width: int) -> Iterator[Grid]:
    """Every activation with both kinds of weights."""
    yield Grid(
        {"activation": ("identity", "relu", "tanh"), "weights": ("gaussian", "orthogonal")}, {"width": width}, seeds,
        together=("activation", "weights", "seed"), chunk=30,
    )  # fmt: skip


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """Moments and quantiles of the squared singular values, by depth, of square networks at their critical point."""
    for case in cases:
        activation, q = case.text("activation"), _variance(case.text("activation"))
        network = plain.Member(case.random_seed("seed", "width"), activation, *theory.critical_sigmas(activation, q))
        kind: theory.Weights = "orthogonal" if case["weights"] == "orthogonal" else "gaussian"
        spectra = plain.squared_singular_values(case.integer("width"), DEPTHS, kind, network, q, device=context.device)
        for depth, squares in zip(DEPTHS, spectra, strict=True):
            yield case.rows("squared_mean", float(squares.mean()), layer_index=depth)
            yield case.rows("squared_variance", float(squares.var()), layer_index=depth)
            for share in QUANTILES:
                singular = float(np.sqrt(np.quantile(squares, share)))
                yield case.rows("singular_value", singular, layer_index=depth, layer=f"{share:g}")


def _variance(activation: str) -> float:
    """Of the pre-activations of every layer; linear and ReLU networks are critical at any."""
    return Q_STAR if activation == "tanh" else 1.0


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """Mean and variance against their predictions, and the span of the singular values."""
    params = params_of(rows, "activation", "weights", "width").astype({"width": int})
    named = rows.assign(name=rows["layer"].where(rows["metric"] == "singular_value", rows["metric"]))
    figures = named.pivot_table(index=["case", "layer_index"], columns="name", values="value")
    ratios: dict[tuple[Any, ...], stats.Comparison] = {}
    spans: dict[tuple[Any, ...], stats.Comparison] = {}
    lines = []
    for (activation, weights, width), networks in groups(params, ["activation", "weights", "width"]):
        for depth in DEPTHS:
            measured = figures.reindex([(case, depth) for case in networks.index])
            if depth <= JUDGED:
                law = predicted(activation, weights, width, depth)
                for name, ratio in _over_theory(measured, law).items():
                    compared = stats.against(ratio.to_numpy(), 1.0, margin=MARGIN, confidence=CONFIDENCE)
                    ratios[activation, weights, depth, name] = compared
            low, middle, high = measured[["0.05", "0.5", "0.95"]].median()
            lines.append(
                {"activation": NAMES.get(activation, activation), "weights": weights, "width": width, "depth": depth}
                | {"n": len(networks), "low": low, "median": middle, "high": high}
            )
        span = measured["0.95"] / measured["0.05"].clip(1e-300)
        spans[activation, weights] = stats.against(span.to_numpy(), ISOMETRIC, test="median")
    moment = Question.of(
        "spectrum", ("activation", "weights", "depth", "moment"), ratios,
        label="{moment}, {activation}, {weights} weights, {depth} layers", counted="networks",
    )  # fmt: skip
    isometry = Question.of(
        "isometry", ("activation", "weights"), spans, label="{activation}, {weights} weights",
        reference="the most of an isometry", counted="networks",
    )  # fmt: skip
    yield moment.table()
    yield isometry.table()
    yield "singular_values", pd.DataFrame(lines)
    yield moment.prediction(SPECTRUM, "means and variances", within=f"{MARGIN:.0%}", unit="measured over predicted")
    if {*KEPT, ("relu", "orthogonal")} <= set(isometry.members):
        yield _isometry(isometry)
        held, lost = (_factor(isometry.members["tanh", kind].effect.value) for kind in ("orthogonal", "gaussian"))
        yield Sentence(
            f"Over {max(DEPTHS)} tanh layers orthogonal weights keep the middle 90 % of singular values within a "
            f"factor of {held}; Gaussian ones spread them over {lost}.",
            claims=(ISOMETRY.id,),
        )


def predicted(activation: str, weights: str, width: int, depth: int) -> theory.Spectrum:
    """Theory's mean and variance: exact at this width where known, else of infinite width."""
    q = _variance(activation)
    sigma_w, _ = theory.critical_sigmas(activation, q)
    exact = activation != "tanh" and (weights == "gaussian" or activation == "identity")
    kind: theory.Weights = "orthogonal" if weights == "orthogonal" else "gaussian"
    return theory.jacobian_spectrum(activation, sigma_w, q, depth, weights=kind, width=width if exact else None)


def _over_theory(measured: pd.DataFrame, law: theory.Spectrum) -> Mapping[str, pd.Series[float]]:
    """Mean and variance over their prediction; of a variance predicted to be 0, 1 more than it is."""
    mean, variance = measured["squared_mean"], measured["squared_variance"]
    return {"mean": mean / law.mean, "variance": variance / law.variance if law.variance else 1 + variance}


def _isometry(spans: Question) -> Verdict:
    """Are orthogonal linear and tanh networks isometries at the greatest depth, and all others none?"""
    factors = (f"{_factor(c.effect.value)} ({spans.words(key)})" for key, c in spans.members.items())
    answers = {spans.words(key): (below if key in KEPT else above)(c) for key, c in spans.members.items()}
    return spans.verdict(
        ISOMETRY, answers,
        why=f"over {max(DEPTHS)} layers the middle 90 % of singular values span a factor of {', '.join(factors)}",
        method=f"median over networks of the 95 % over the 5 % quantile, against {ISOMETRIC:g}; order statistics",
        shown=KEPT[1], unit="factor between the 5 % and the 95 % quantile",
        says=tallied(answers, "kinds of network"),
    )  # fmt: skip


def _factor(value: float) -> str:
    return f"{value:.3g}" if value < 1e12 else "more than 1e12"


@drawing.figure(
    "jacobian_spectrum", "Depth spreads the singular values of the Jacobian, unless weights are orthogonal and layers "
    "nearly linear",
    lambda singular_values: f"Networks of width {singular_values['width'].max()} at their critical point (tanh: q* = "
    f"{Q_STAR:g}). Lines: median of the singular values; bands: the middle 90 % of them; median over "
    f"{singular_values['n'].min()} networks. What leaves the panel below is zero, or nearly.",
)  # fmt: skip
def plot_singular_values(singular_values: pd.DataFrame) -> Any:
    """Median and middle 90 % of the singular values over depth."""
    axes = {"xscale": "log", "yscale": "log", "ylim": (1e-4, 30), "ylabel": "singular values"}
    return drawing.panels(singular_values, "activation", drawing.profile, x="depth", by="weights", axes=axes)


@drawing.figure(
    "spectrum_prediction",
    lambda spectrum: _counted([agreed(answer) for answer in _variances(spectrum)["answer"]]),
    lambda spectrum: f"Measured over predicted, with 99 % intervals that hold at once, {spectrum['n'].min()} networks "
    "each; dashed: 1. Theory is that of this width for linear networks and for ReLU with Gaussian weights, else that "
    "of infinite width.",
)  # fmt: skip
def plot_prediction(spectrum: pd.DataFrame) -> Any:
    """Measured over predicted variance by depth."""
    variance = _variances(spectrum).replace({"activation": NAMES})
    variance["depth"] *= variance["weights"].map({"gaussian": 0.96, "orthogonal": 1.04})  # beside each other
    axes = {"xscale": "log", "ylabel": "measured over predicted"}
    return drawing.panels(variance, "activation", drawing.estimates, at="depth", by="weights", axes=axes)


def _counted(answers: Sequence[bool | None]) -> str:
    return (
        f"Of {len(answers)} variances of the Jacobian's squared singular values {answers.count(True)} are the "
        f"predicted ones within {MARGIN:.0%}{undecided(answers)}"
    )


def _variances(spectrum: pd.DataFrame) -> pd.DataFrame:
    return spectrum[spectrum["moment"] == "variance"]


METHOD = f"""
**Jacobian.** J = D_L W_L ... D_1 W_1 of square networks, one input. Predicted mean and variance of the squared singular
values: `theory.jacobian_spectrum` (Pennington, Schoenholz and Ganguli 2017); networks of up to {JUDGED} layers are held
against it. tanh networks are critical at q* = {Q_STAR:g}.
"""
PART = Part(
    "spectrum", (SPECTRUM, ISOMETRY), SIZES, grids, run, analyse, (plot_singular_values, plot_prediction), METHOD
)
