"""Singular values of the input-output Jacobian, for Gaussian and orthogonal weights, against theory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.lines import Line2D

from depthgauge import seeding, stats, theory
from depthgauge.frames import groups, params_of
from depthgauge.parts import Answer, Tables, verdict_on
from depthgauge.seeding import Purpose
from depthgauge.study import Case, Context, Rows
from depthgauge.verdict import Figure, Status, Verdict

DEPTHS = (1, 2, 4, 8, 16, 32)
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
Q_STAR = 0.01  # pre-activation variance of the tanh networks, which are critical: small, so that they are nearly linear
MARGIN = 0.25  # relative: means and variances closer to theory than this are called the same
JUDGED = 8  # deepest network held against theory: beyond, infinite-width theory is off by depth / width
CONFIDENCE = 0.99
ISOMETRIC = 2.0  # largest over smallest singular value, the middle 90 %, up to which a Jacobian is called an isometry


def critical(activation: str) -> tuple[float, float, float]:
    """(sigma_w, sigma_b, q): each layer keeps the variance q, and the mean squared singular value is 1."""
    if activation != "tanh":
        return theory.gain(activation).backward, 0.0, 1.0
    moments = theory.layer_moments(activation, Q_STAR)
    sigma_w = float(moments.slope2) ** -0.5
    return sigma_w, math.sqrt(Q_STAR - sigma_w**2 * float(moments.value2)), Q_STAR


def run_spectrum(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """The Jacobian D_L W_L ... D_1 W_1 of square networks at one input, in float64, by one product a layer."""
    for case in cases:
        activation, weights, n = case.text("activation"), case.text("weights"), case.integer("width")
        sigma_w, sigma_b, q = critical(activation)
        seed = case.random_seed("seed", "width")
        h = torch.randn(n, dtype=torch.float64, generator=seeding.generator(seed, Purpose.INPUTS))
        generator = seeding.generator(seed, Purpose.WEIGHTS)

        def drawn(*shape: int, generator: torch.Generator = generator) -> torch.Tensor:
            return torch.randn(*shape, dtype=torch.float64, generator=generator)

        # An input of exactly the second moment that gives the first layer its fixed variance.
        h = (h * math.sqrt((q - sigma_b**2) / sigma_w**2) * math.sqrt(n) / h.norm()).to(context.device)
        jacobian = torch.eye(n, dtype=torch.float64, device=context.device)
        phi = theory.activation(activation)
        for layer in range(1, max(DEPTHS) + 1):
            matrix, bias = drawn(n, n) / math.sqrt(n), drawn(n)
            if weights == "orthogonal":
                matrix, triangle = torch.linalg.qr(matrix)
                matrix = matrix * triangle.diagonal().sign()
            matrix = (sigma_w * matrix).to(context.device)
            z = matrix @ h + sigma_b * bias.to(context.device)
            value, slope = phi.both(z.cpu().numpy())
            h = torch.from_numpy(value).to(context.device)
            jacobian = torch.from_numpy(slope).to(context.device)[:, None] * (matrix @ jacobian)
            if layer in DEPTHS:
                squares = torch.linalg.svdvals(jacobian).square().cpu().numpy()
                yield case.rows("squared_mean", float(squares.mean()), layer_index=layer)
                yield case.rows("squared_variance", float(squares.var()), layer_index=layer)
                for share in QUANTILES:
                    singular = float(np.sqrt(np.quantile(squares, share)))
                    yield case.rows("singular_value", singular, layer_index=layer, layer=f"{share:g}")


def analyse_spectrum(rows: pd.DataFrame) -> Answer:
    """Mean, variance and quantiles by depth, against the predicted mean and variance."""
    params = params_of(rows, "activation", "weights", "width")
    wide = rows[rows["metric"].isin(["squared_mean", "squared_variance"])].pivot_table(
        index=["case", "layer_index"], columns="metric", values="value"
    )
    quantiles = rows[rows["metric"] == "singular_value"].pivot_table(
        index=["case", "layer_index"], columns="layer", values="value"
    )
    found: list[dict[str, object]] = []
    comparisons: list[stats.Comparison] = []
    for (activation, weights, width), own in groups(params, ["activation", "weights", "width"]):
        for depth in sorted(set(rows["layer_index"].dropna().astype(int))):
            at = [(case, depth) for case in own.index]
            moments, shares = wide.reindex(at), quantiles.reindex(at)
            law = predicted(activation, weights, int(width), depth)
            mean, variance = stats.mean(moments["squared_mean"]), stats.mean(moments["squared_variance"])
            found.append(
                {
                    "activation": activation, "weights": weights, "width": int(width), "depth": depth, "n": mean.n,
                    "mean": mean.value, "mean_low": mean.low, "mean_high": mean.high, "predicted_mean": law.mean,
                    "variance": variance.value, "variance_low": variance.low, "variance_high": variance.high,
                    "predicted_variance": law.variance,
                    **{f"singular_{name}": float(shares[name].median()) for name in shares},
                }
            )  # fmt: skip
            if depth <= JUDGED:
                comparisons += _held(moments, law)
    table = pd.DataFrame(found)
    family = stats.together(comparisons)
    return Answer({"spectrum": table}, (_agreement(table, family), *_isometry(table)), tuple(_sentences(table)))


def predicted(activation: str, weights: str, width: int, depth: int) -> theory.Spectrum:
    """Theory's mean and variance: exact at this width where known, else of infinite width."""
    sigma_w, _, q = critical(activation)
    exact = activation != "tanh" and (weights == "gaussian" or activation == "identity")
    kind: Literal["gaussian", "orthogonal"] = "orthogonal" if weights == "orthogonal" else "gaussian"
    return theory.jacobian_spectrum(activation, sigma_w, q, depth, weights=kind, width=width if exact else None)


def _held(moments: pd.DataFrame, law: theory.Spectrum) -> Iterator[stats.Comparison]:
    """Mean and variance over their prediction, against 1; a variance predicted to be 0, against the squared mean."""
    mean, variance = moments["squared_mean"].to_numpy(), moments["squared_variance"].to_numpy()
    yield stats.against(mean / law.mean, 1.0, margin=MARGIN, confidence=CONFIDENCE)
    ratio = variance / law.variance if law.variance else 1 + variance
    yield stats.against(ratio, 1.0, margin=MARGIN, confidence=CONFIDENCE)


def _agreement(table: pd.DataFrame, family: Sequence[stats.Comparison]) -> Verdict:
    answers = [{"equivalent": True, "different": False}.get(str(member.answer)) for member in family]
    right, wrong = answers.count(True), answers.count(False)
    # Against infinite-width theory alone a difference is to be expected; it counts only where it leaves the margin.
    status = Status(stats.combine(answers))
    worst = max(family, key=lambda member: abs(member.effect.value - 1) if member.effect.has_interval else -1.0)
    return verdict_on(
        "initialization/spectrum", status,
        f"{right} of {len(family)} means and variances lie within {MARGIN:.0%} of theory, {wrong} outside it, the rest "
        f"undecided, for networks of up to {JUDGED} layers of width {table['width'].max()}",
        observed=worst.effect.value, low=worst.effect.low, high=worst.effect.high, predicted=1.0,
        unit="measured over predicted", n=worst.effect.n,
        method=f"t test of the ratio over seeds, equivalence margin {MARGIN:.0%}, Holm over {len(family)} at "
        f"{CONFIDENCE:.0%}; the figure is the furthest from 1",
    )  # fmt: skip


def _isometry(table: pd.DataFrame) -> Iterator[Verdict]:
    """Are orthogonal linear and tanh networks isometries at the greatest depth, and ReLU networks none?"""
    deepest = table[table["depth"] == table["depth"].max()]
    spread = {
        (row["activation"], row["weights"]): row["singular_0.95"] / max(row["singular_0.05"], 1e-300)
        for _, row in deepest.iterrows()
    }
    if not {("identity", "orthogonal"), ("tanh", "orthogonal"), ("relu", "orthogonal")} <= set(spread):
        return
    keeps = [spread["identity", "orthogonal"] < ISOMETRIC, spread["tanh", "orthogonal"] < ISOMETRIC]
    loses = [spread[pair] > ISOMETRIC for pair in spread if pair[0] == "relu" or pair[1] == "gaussian"]
    n = int(deepest["n"].min())
    tanh = deepest[(deepest["activation"] == "tanh") & (deepest["weights"] == "orthogonal")].iloc[0]
    yield verdict_on(
        "initialization/isometry",
        Status.INCONCLUSIVE if n < 5 else Status(stats.combine([*keeps, *loses])),
        f"over {int(deepest['depth'].iloc[0])} layers the middle 90 % of singular values span a factor of "
        + ", ".join(f"{_told(value)} ({activation}, {weights})" for (activation, weights), value in spread.items()),
        observed=float(tanh["variance"]), low=float(tanh["variance_low"]), high=float(tanh["variance_high"]),
        predicted=float(tanh["predicted_variance"]), unit="variance of squared singular values (tanh, orthogonal)", n=n,
        method=f"median over seeds of the 95 % over the 5 % quantile, against {ISOMETRIC:g}; 95 % t interval of the "
        "variance over seeds",
    )  # fmt: skip


def _told(factor: float) -> str:
    return f"{factor:.3g}" if factor < 1e12 else "more than 1e12"


def _sentences(table: pd.DataFrame) -> Iterator[str]:
    deepest = table[table["depth"] == table["depth"].max()].set_index(["activation", "weights"])
    pairs = [("relu", "orthogonal"), ("identity", "gaussian"), ("tanh", "orthogonal")]
    if all(pair in deepest.index for pair in pairs):
        relu, linear, tanh = (deepest.loc[pair] for pair in pairs)
        yield (
            f"Orthogonal weights do not make a ReLU network an isometry: over {int(relu['depth'])} layers its squared "
            f"singular values have variance {relu['variance']:.3g}, where tanh at small signals has "
            f"{tanh['variance']:.2g} and a linear network of Gaussian weights {linear['variance']:.3g}."
        )


def plot_spectrum(tables: Tables) -> Iterator[Figure]:
    """Spread of the singular values over depth, and their variance against theory."""
    if "spectrum" not in tables:
        return
    table = tables["spectrum"]
    activations = list(dict.fromkeys(table["activation"]))
    canvas, axes = plt.subplots(2, len(activations), figsize=(9.6, 6.4), sharex=True, sharey="row", squeeze=False)
    shades = {"gaussian": "C1", "orthogonal": "C0"}
    for column, activation in enumerate(activations):
        top, bottom = axes[:, column]
        for weights, shade in shades.items():
            own = table[(table["activation"] == activation) & (table["weights"] == weights)]
            top.fill_between(own["depth"], own["singular_0.05"], own["singular_0.95"], color=shade, alpha=0.25, lw=0)
            top.plot(own["depth"], own["singular_0.5"], color=shade, marker="o", ms=4)
            top.plot(own["depth"], own["singular_1"], color=shade, lw=1, ls=":")
            error = np.abs(own[["variance_low", "variance_high"]].to_numpy().T - own["variance"].to_numpy())
            bottom.errorbar(own["depth"], own["variance"], error, color=shade, fmt="o", ms=4, lw=1.2)
            bottom.plot(own["depth"], own["predicted_variance"], color=shade, lw=1.4)
        top.set(xscale="log", yscale="log", ylim=(1e-4, 30), title={"identity": "linear"}.get(activation, activation))
        bottom.set(xscale="log", yscale="log", ylim=(1e-4, 1e3), xlabel="depth (layers)")
        bottom.set_xticks(list(DEPTHS), [str(depth) for depth in DEPTHS])
        bottom.minorticks_off()
    axes[0, 0].set_ylabel("singular values of the Jacobian")
    axes[1, 0].set_ylabel("variance of their squares")
    handles = [
        Line2D([], [], color=shade, marker="o", ms=5, label=f"{weights.capitalize()} weights")
        for weights, shade in shades.items()
    ]
    canvas.legend(handles=handles, loc="outside lower center", ncols=2)
    width, n = int(table["width"].max()), int(table["n"].min())
    yield Figure(
        "jacobian_spectrum", canvas,
        "What depth does to the singular values of the Jacobian, and what theory says of it",
        f"Networks of width {width} at their critical point (tanh: q* = {Q_STAR:g}), {n} seeds. Top: median, middle "
        "90 % (band) and largest (dotted) singular value; what leaves below is zero, or nearly. "
        "Bottom: variance of the squared ones with 95 % intervals; lines: theory (at this width for linear networks "
        "and for ReLU with Gaussian weights, else at infinite width). Orthogonal linear networks have none.",
    )  # fmt: skip
