"""Deep MLPs at initialization, layer by layer, forward and backward, against mean-field theory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.ticker import NullFormatter, ScalarFormatter

from depthgauge import formats, replicas, stats, theory
from depthgauge.frames import by_case, groups, logs, params_of, records
from depthgauge.parts import Answer, agree, verdict_on
from depthgauge.replicas import plain
from depthgauge.studies.gradient_flow.answers import COLOURS, CONFIDENCE, MARGIN, coinciding, shades
from depthgauge.study import Case, Context, Rows
from depthgauge.verdict import Figure, Status, Verdict

DENSE, STRIDE = 20, 5  # every layer is recorded up to the first, every fifth beyond
SEEN = 0.5  # decades of the root mean square: curves nearer to each other than this look like one
CONFIGURATION = ["activation", "init", "width", "sigma_w", "sigma_b"]


def most_seeds(width: int, depth: int) -> int:
    """Seeds a chunk: as many as their weights, in float64, leave room for."""
    return min(10, replicas.most_members(depth * width**2, each=8))


def run_signal(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """Second moments, layer by layer, of pre-activations z_1 .. z_L and of the gradients with respect to them.

    One draw of weights for each seed serves every activation and every sigma: common random numbers, so that
    differences between configurations carry no sampling noise of the weights. All in float64, which holds what a
    hundred layers do to a gradient. The loss is a random linear functional of z_L.

    `benchmarks/test_gradient_flow.py` prints how many times as long `replicas.signals` would take.
    """
    by_shape: dict[tuple[int, int, str], list[Case]] = {}
    for case in cases:
        by_shape.setdefault((case.integer("width"), case.integer("depth"), case.text("init")), []).append(case)
    for (width, depth, init), group in by_shape.items():
        drawn = {case.integer("seed"): case.random_seed("width", "seed", "init") for case in group}
        seeds = sorted(drawn)
        networks = plain.Networks.draw(width, depth, init, [drawn[seed] for seed in seeds]).to(context.device)
        by_activation: dict[str, dict[tuple[float, float], dict[int, Case]]] = {}
        for case in group:
            sigmas = (1.0, 1.0) if init == "torch" else (case.number("sigma_w"), case.number("sigma_b"))
            own = by_activation.setdefault(case.text("activation"), {})
            own.setdefault(sigmas, {})[case.integer("seed")] = case
        for activation, configurations in by_activation.items():
            columns = plain.propagate(networks, activation, tuple(configurations))
            recorded = np.array([layer for layer in range(1, depth + 1) if layer <= DENSE or layer % STRIDE == 0])
            for i, by_seed in enumerate(configurations.values()):
                for seed, case in by_seed.items():
                    for (metric, direction), values in columns.items():
                        value = values[i, seeds.index(seed)][recorded - 1]
                        yield case.rows(metric, value, layer_index=recorded, direction=direction)


def _configurations(rows: pd.DataFrame) -> pd.DataFrame:
    """Parameters by case, with the sigmas that nn.Linear's own initialization amounts to filled in."""
    params = params_of(rows, *CONFIGURATION)
    default = params["init"] == "torch"
    for width in params.loc[default, "width"].unique():
        params.loc[default & (params["width"] == width), ["sigma_w", "sigma_b"]] = theory.default_linear(int(width))
    return params


def analyse_signal(rows: pd.DataFrame) -> Answer:
    """Rates, fixed points and profiles of every configuration, measured and predicted."""
    params = _configurations(rows)
    forward = logs(by_case(rows, "second_moment", "forward"))
    backward = logs(by_case(rows, "second_moment", "backward"))
    correlation, log_ratio = by_case(rows, "correlation"), by_case(rows, "log_ratio_scaled")
    layers = forward.columns.to_numpy(int)
    widest = params.loc[params["init"] == "gaussian", "sigma_b"].max()
    rates, points, profiles, correlations, comparisons = [], [], [], [], {}
    for key, own in groups(params, CONFIGURATION):
        configuration = dict(zip(CONFIGURATION, key, strict=True))
        activation, _, width, sigma_w, sigma_b = key
        law = theory.plain_signal(activation, sigma_w, sigma_b, int(width), layers)
        q, g, c = (lines.loc[own.index].to_numpy() for lines in (forward, backward, correlation))
        for direction, lines, expected in (("forward", q, law.forward), ("backward", g, law.backward)):
            sign = 1 if direction == "forward" else -1
            along = sign * (layers[-1] - layers[0])  # steps, in the direction of travel
            rate = (lines[:, -1] - lines[:, 0]) / along
            predicted = (expected[-1] - expected[0]) / along
            comparisons[(*key, direction)] = stats.against(rate, predicted, margin=MARGIN, confidence=CONFIDENCE)
            rates.append({**configuration, "direction": direction, **_rate(rate, comparisons[(*key, direction)])})
            profiles.append(_band(lines / math.log(10), configuration, direction, layers, expected / math.log(10)))
        if activation == "tanh" and configuration["init"] == "gaussian" and sigma_b == widest:
            c_1 = (sigma_w**2 * plain.INPUT_OVERLAP + sigma_b**2) / (sigma_w**2 + sigma_b**2)
            c_map = theory.correlation_trajectory(
                activation, sigma_w, sigma_b, c_1, int(layers[-1]) - 1, q_0=sigma_w**2 + sigma_b**2
            )
            correlations.append(_band(c, configuration, "forward", layers, c_map[layers - 1]))
        points.append({**configuration, **_fixed_points(key, layers, q, c, log_ratio.loc[own.index].to_numpy())})
    table = pd.DataFrame(rates)
    return Answer(
        {
            "rates": table,
            "predicted_rates": _predicted_rates(table),
            "fixed_points": pd.DataFrame(points),
            "profiles": pd.concat(profiles, ignore_index=True),
            **({"correlations": pd.concat(correlations, ignore_index=True)} if correlations else {}),
        },
        tuple(_signal_verdicts(table, comparisons)),
        _signal_sentences(table),
    )


def _rate(measured: np.ndarray, comparison: stats.Comparison) -> dict[str, object]:
    estimate = stats.mean(measured)
    return {
        "seeds": estimate.n,
        "rate": estimate.value,
        "low": estimate.low,
        "high": estimate.high,
        "predicted": comparison.reference,
        "deviation_se": comparison.z,
        "answer": str(comparison.answer),
    }


def _band(
    lines: np.ndarray, configuration: Mapping[str, Any], direction: str, layers: np.ndarray, predicted: np.ndarray
) -> pd.DataFrame:
    """Median and middle 90 % over seeds, by layer."""
    low, middle, high = np.quantile(lines, (0.05, 0.5, 0.95), axis=0, method="inverted_cdf")  # infinities are results
    columns = {"layer_index": layers, "low": low, "median": middle, "high": high, "predicted": predicted}
    return pd.DataFrame({**configuration, "direction": direction, **columns})


def _fixed_points(
    key: tuple[Any, ...], layers: np.ndarray, log_q: np.ndarray, c: np.ndarray, log_ratio: np.ndarray
) -> dict[str, float]:
    """q*, c* and the two depth scales: measured over the deeper half of the net, or fitted on the way there."""
    activation, _, _, sigma_w, sigma_b = key
    try:
        field = theory.mean_field(activation, sigma_w, sigma_b)
    except theory.NoFixedPoint:
        return {"q_star": math.inf}
    deep = layers > layers[-1] / 2
    q, settled = stats.mean(np.exp(log_q[:, deep]).mean(axis=1)), stats.mean(c[:, deep].mean(axis=1))
    found = {
        "chi_1": field.chi_1,
        "q_star": field.q_star,
        "q": q.value,
        "q_low": q.low,
        "q_high": q.high,
        "c_star": field.c_star,
        "c": settled.value,
        "c_low": settled.low,
        "c_high": settled.high,
    }
    for name, lines, predicted in (("xi_q", log_ratio, field.xi_q), ("xi_c", c - field.c_star, field.xi_c)):
        fit = stats.decay_length(layers, lines)
        found |= {name: predicted, f"{name}_fit": fit.value, f"{name}_low": fit.low, f"{name}_high": fit.high}
    return found


def _predicted_rates(rates: pd.DataFrame) -> pd.DataFrame:
    """Ln chi_1 at infinite width on a fine grid of sigma_w, sigma_b = 0: the lines of the figure."""
    lines = []
    own = rates[rates["init"] == "gaussian"]
    for activation, group in groups(own, "activation"):
        for sigma_w in np.geomspace(group["sigma_w"].min(), group["sigma_w"].max(), 17):
            try:
                chi = theory.mean_field(activation, sigma_w, 0.0).chi_1
            except theory.NoFixedPoint:
                chi = theory.chi(activation, sigma_w, 1e6)  # q grows without bound: chi at large q
            lines.append({"activation": activation, "sigma_w": sigma_w, "rate": math.log(chi)})
    return pd.DataFrame(lines)


def _signal_verdicts(rates: pd.DataFrame, comparisons: Mapping[tuple[Any, ...], stats.Comparison]) -> Iterator[Verdict]:
    backward = rates[rates["direction"] == "backward"]
    drawn = {key: c for key, c in comparisons.items() if key[-1] == "backward" and key[1] == "gaussian"}
    if drawn:
        yield _rate_verdict(drawn)
    relu, sigmoid = (backward[backward["activation"] == name] for name in ("relu", "sigmoid"))
    default = backward[backward["init"] == "torch"]
    if len(relu):
        yield _sign_verdict(
            "N04",
            relu,
            +1,
            "the derivative of ReLU is 0 for half of the units: a layer multiplies the squared gradient by "
            "sigma_w^2 / 2",
        )
    if len(sigmoid):
        yield _sign_verdict("N05", sigmoid, -1, _sigmoid_reason())
    if len(default):
        yield _sign_verdict(
            "gradient_flow/default",
            default,
            -1,
            "nn.Linear draws weights of variance 1/(3 fan-in): sigma_w^2 = 1/3, below every activation's critical "
            "value",
        )


def _rate_verdict(comparisons: Mapping[tuple[Any, ...], stats.Comparison]) -> Verdict:
    status, family = agree(comparisons.values())
    names = [f"{key[0]} at sigma_w = {key[3]:.3g}, sigma_b = {key[4]:.2g}" for key in comparisons]
    off = np.array([member.effect.value - member.reference for member in family])
    worst = int(np.abs(off).argmax())
    different = [name for name, member in zip(names, family, strict=True) if member.answer is stats.Answer.DIFFERENT]
    open_ = [name for name, member in zip(names, family, strict=True) if member.answer is stats.Answer.INCONCLUSIVE]
    return verdict_on(
        "gradient_flow/rate",
        status,
        f"{sum(member.inside for member in family)} of {len(family)} configurations agree within the margin"
        + (f"; different: {_some(different)}" if different else "")
        + (f"; undecided: {_some(open_)}" if open_ else "")
        + f"; the figure is the largest deviation, {names[worst]}",
        observed=float(off[worst]),
        low=family[worst].effect.low - family[worst].reference,
        high=family[worst].effect.high - family[worst].reference,
        predicted=0.0,
        unit="ln a layer",
        n=family[worst].effect.n,
        method=f"equivalence with theory (t, margin {MARGIN:g}) in each configuration, Holm over {len(family)} at "
        f"{CONFIDENCE:.0%}",
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _sigmoid_reason() -> str:
    critical = theory.critical_sigma_w("sigmoid", 0.0)
    return f"the slope of sigmoid is at most 1/4; only from sigma_w = {critical:.3g} on is its product with W above one"


def _sign_verdict(claim: str, rates: pd.DataFrame, sign: int, reason: str) -> Verdict:
    """Does the gradient grow (+1) or shrink (-1) in every one of these configurations?"""
    as_claimed = (rates["low"] > MARGIN) if sign > 0 else (rates["high"] < -MARGIN)
    opposite = (rates["high"] < -MARGIN) if sign > 0 else (rates["low"] > MARGIN)
    flat = (rates["low"] > -MARGIN) & (rates["high"] < MARGIN)
    refuted = opposite | flat
    status = Status(
        stats.combine(True if yes else False if no else None for yes, no in zip(as_claimed, refuted, strict=True))
    )
    default = rates[rates["init"] == "torch"]
    row = (default if len(default) else rates).iloc[0]
    place = "nn.Linear's default" if row["init"] == "torch" else f"sigma_w = {row['sigma_w']:.3g}"
    answers = (
        ("grows", rates[rates["low"] > MARGIN]),
        ("shrinks", rates[rates["high"] < -MARGIN]),
        ("does neither", rates[flat]),
    )
    told = "; ".join(f"{word} for {_listed(group)}" for word, group in answers if len(group))
    return verdict_on(
        claim, status, f"{reason}. Measured, the squared gradient {told}",
        observed=float(row["rate"]), low=float(row["low"]), high=float(row["high"]), predicted=float(row["predicted"]),
        unit="ln a layer", n=int(row["seeds"]),
        method=f"95 % t intervals over seeds of the growth a layer, beyond +-{MARGIN:g}; the figure is that of "
        f"{row['activation']} at {place}",
    )  # fmt: skip


def _listed(group: pd.DataFrame) -> str:
    """`tanh at sigma_w = 1, 1.5 and nn.Linear's default`; sigma_b is left out."""
    words = []
    for activation, own in groups(group, "activation"):
        sigmas = sorted(own.loc[own["init"] == "gaussian", "sigma_w"].unique())
        places = [f"sigma_w = {', '.join(f'{sigma:.3g}' for sigma in sigmas)}"] if sigmas else []
        places += ["nn.Linear's default"] if (own["init"] == "torch").any() else []
        words.append(f"{activation} at {' and '.join(places)}")
    return "; ".join(words)


def _signal_sentences(rates: pd.DataFrame) -> tuple[str, ...]:
    default = rates[(rates["init"] == "torch") & (rates["direction"] == "backward") & (rates["high"] < 0)]
    if default.empty:
        return ()

    def gone(name: str) -> str:
        log_tiny = 2 * math.log(formats.get(name).smallest_subnormal)
        return ", ".join(f"{log_tiny / row.rate:.0f}" for row in records(default))

    factors = ", ".join(
        f"{math.exp(row.rate):.2g} ({row.activation}; theory {math.exp(row.predicted):.2g})" for row in records(default)
    )
    factor = f"With PyTorch's default initialization each layer multiplies the squared gradient by {factors}."
    reach = (
        f"A gradient of size 1 is then below all that float16 can hold after {gone('float16')} layers, and below all "
        f"that float32 can hold after {gone('float32')}, in the same order."
    )
    return factor, reach


def plot_rates(tables: Mapping[str, pd.DataFrame]) -> Iterator[Figure]:
    """Measured growth of the gradient a layer against the prediction, all configurations at once."""
    if "rates" not in tables:
        return
    rates, predicted = tables["rates"], tables["predicted_rates"]
    own = rates[(rates["direction"] == "backward") & (rates["init"] == "gaussian")]
    if own.empty:
        return
    canvas, axes = plt.subplots(1, 2, figsize=(10.5, 4.4))
    for activation in dict.fromkeys(own["activation"]):
        colour = COLOURS[activation]
        points = own[(own["activation"] == activation) & (own["sigma_b"] == 0)]
        line = predicted[predicted["activation"] == activation]
        axes[0].plot(line["sigma_w"], line["rate"], color=colour, lw=1.5)
        axes[0].errorbar(
            points["sigma_w"],
            points["rate"],
            yerr=[points["rate"] - points["low"], points["high"] - points["rate"]],
            fmt="o",
            ms=4.5,
            color=colour,
            label=activation,
        )
        every = own[own["activation"] == activation]
        axes[1].scatter(every["predicted"], every["deviation_se"], s=22, color=colour)
    axes[0].axhline(0, color="0.4", lw=0.8)
    axes[0].set(
        xscale="log",
        xlabel=r"$\sigma_w$",
        ylabel="growth of the squared gradient a layer (ln)",
        title="measured (points) and predicted (lines)",
    )
    axes[0].xaxis.set_major_formatter(ScalarFormatter())
    axes[0].xaxis.set_minor_formatter(NullFormatter())
    axes[0].set_xticks([0.5, 1, 2, 4, 8, 16])
    axes[0].legend(frameon=False)
    axes[1].axhspan(-2, 2, color="0.9", zorder=0)
    axes[1].axhline(0, color="0.4", lw=0.8)
    axes[1].set(
        xlabel="predicted growth a layer (ln)",
        ylabel="measured - predicted (standard errors)",
        title="deviation from theory",
    )
    yield Figure(
        "rates",
        canvas,
        "The rate at which a gradient grows or shrinks is known before the first step",
        f"Left: per-layer growth of the gradient's second moment going back through the net, mean over "
        f"{int(own['seeds'].min())} seeds with 95 % intervals (sigma_b = 0); lines are mean-field theory at infinite "
        "width. Below zero gradients vanish, above zero they explode. Right: every configuration's deviation from its "
        "prediction (finite width included) in standard errors; the band is two. " + _outside(own),
    )


def _outside(own: pd.DataFrame) -> str:
    """How many points lie outside the band, whose they are, and how far off in units that matter."""
    outside = own[own["deviation_se"].abs() > 2]
    if outside.empty:
        return f"None of the {len(own)} points lies outside it."
    whose = ", ".join(f"{name} {count}" for name, count in outside["activation"].value_counts(sort=False).items())
    off = (outside["rate"] - outside["predicted"]).abs()
    near = off[off <= MARGIN]
    beyond = outside[~(off <= MARGIN)]  # NaN is not near
    least = f" (at most {near.max():.2g} off)" if len(near) else ""
    rest = ", ".join(f"{r.activation} at sigma_w = {r.sigma_w:.3g}, sigma_b = {r.sigma_b:.2g}" for r in records(beyond))
    return (
        f"Points outside it: {len(outside)} of {len(own)} ({whose}); of these inside the margin of {MARGIN:g} a layer, "
        f"within which a rate counts as predicted: {len(near)}{least}"
        + (f"; beyond it: {rest}" if rest else "")
        + ". Configurations share their draws of the weights, so that those of one activation deviate together."
    )


def plot_profiles(tables: Mapping[str, pd.DataFrame]) -> Iterator[Figure]:
    """Gradient second moment by layer, one panel an activation, sigma_w as colour, theory as line."""
    if "profiles" not in tables:
        return
    profiles = tables["profiles"]
    own = profiles[
        (profiles["direction"] == "backward") & (profiles["init"] == "gaussian") & (profiles["sigma_b"] == 0)
    ]
    activations = list(dict.fromkeys(own["activation"]))
    if not activations:
        return
    canvas, axes = plt.subplots(1, len(activations), figsize=(2.9 * len(activations), 4.0), sharey=True, squeeze=False)
    for axis, activation in zip(axes[0], activations, strict=True):
        panel = own[own["activation"] == activation]
        sigmas = sorted(panel["sigma_w"].unique())
        for sigma, colour in zip(sigmas, shades(len(sigmas)), strict=True):
            line = panel[panel["sigma_w"] == sigma].sort_values("layer_index")
            axis.fill_between(line["layer_index"], line["low"], line["high"], color=colour, alpha=0.25, lw=0)
            axis.plot(line["layer_index"], line["median"], color=colour, lw=1.6, label=f"{sigma:.3g}")
            axis.plot(line["layer_index"], line["predicted"], color="black", lw=0.8, ls="--")
        axis.set(title=activation, xlabel="layer")
        axis.legend(title=r"$\sigma_w$", frameon=False, fontsize="x-small", title_fontsize="x-small", loc="best")
    axes[0, 0].set_ylabel(r"$\log_{10}$ second moment of the gradient")
    yield Figure(
        "profiles",
        canvas,
        "The same loss gradient arrives at layer 1 enlarged or erased by many powers of ten",
        "Second moment of the gradient with respect to each layer's pre-activations; it enters at the last layer "
        "(right) with second moment 1. Lines: median over seeds; bands: the middle 90 % of seeds; dashed: theory.",
    )


def plot_default(tables: Mapping[str, pd.DataFrame]) -> Iterator[Figure]:
    """What nn.Linear's own initialization does to the gradient."""
    if "profiles" not in tables:
        return
    profiles = tables["profiles"]
    own = profiles[(profiles["direction"] == "backward") & (profiles["init"] == "torch")]
    if own.empty:
        return
    canvas, axis = plt.subplots(figsize=(7.2, 4.6))
    deepest = own["layer_index"].max()
    medians = own.pivot_table(index="layer_index", columns="activation", values="median", dropna=False) / 2
    groups_of_curves = coinciding(medians[list(dict.fromkeys(own["activation"]))], within=SEEN)
    above = {name: len(group) - 1 - place for group in groups_of_curves for place, name in enumerate(group)}
    for activation, panel in groups(own, "activation"):
        colour = COLOURS[activation]
        line = panel.sort_values("layer_index")
        depth = deepest - line["layer_index"] + 1
        axis.fill_between(depth, line["low"] / 2, line["high"] / 2, color=colour, alpha=0.25, lw=0)
        # the first of several that lie on each other is drawn widest, so that each shows
        axis.plot(depth, line["median"] / 2, color=colour, lw=1.8 + 2.2 * above[activation], label=activation)
        axis.plot(depth, line["predicted"] / 2, color="black", lw=0.8, ls="--")
    for name, x, side in (("float16", deepest, "right"), ("float32", 2, "left")):
        tiny = math.log10(formats.get(name).smallest_subnormal)
        axis.axhline(tiny, color="0.45", lw=0.9)
        axis.annotate(f"below: zero in {name}", (x, tiny), ha=side, va="bottom", fontsize="small", color="0.3")
    axis.set(
        xlabel="layers that the gradient has passed",
        ylabel=r"$\log_{10}$ root-mean-square gradient",
        xlim=(1, deepest),
    )
    axis.legend(loc="lower left", bbox_to_anchor=(0, 0))
    yield Figure(
        "pytorch_default",
        canvas,
        "Under PyTorch's default initialization the gradient of every deep plain network vanishes"
        if (own.loc[own["layer_index"] == 1, "high"] < -2).all()
        else "What PyTorch's default initialization does to the gradient of a deep plain network",
        "Root-mean-square gradient, relative to that at the last layer, of MLPs with nn.Linear's own initialization "
        "(weights and biases uniform in +-1/sqrt(fan-in), that is sigma_w^2 = 1/3). Lines: median over seeds with the "
        "middle 90 %; dashed: theory. Grey: below it the format holds nothing but zero."
        + "".join(f" The curves of {', '.join(g)} lie on each other." for g in groups_of_curves if len(g) > 1),
    )


def plot_correlation(tables: Mapping[str, pd.DataFrame]) -> Iterator[Figure]:
    """How the angle between two inputs travels."""
    if "correlations" not in tables:
        return
    correlations = tables["correlations"]
    own = correlations[correlations["activation"] == "tanh"]
    canvas, axis = plt.subplots(figsize=(7.2, 4.4))
    sigmas = sorted(own["sigma_w"].unique())
    for sigma, colour in zip(sigmas, shades(len(sigmas)), strict=True):
        line = own[own["sigma_w"] == sigma].sort_values("layer_index")
        axis.fill_between(line["layer_index"], line["low"], line["high"], color=colour, alpha=0.2, lw=0)
        axis.plot(line["layer_index"], line["median"], color=colour, lw=1.8, label=f"{sigma:.3g}")
        axis.plot(line["layer_index"], line["predicted"], color="black", lw=0.8, ls="--")
    axis.set(xlabel="layer", ylabel="correlation of two inputs", ylim=(-0.15, 1.05), xlim=(1, 40))
    axis.legend(title=r"tanh, $\sigma_w$", frameon=False)
    yield Figure(
        "correlation",
        canvas,
        "An ordered network makes all inputs alike, a chaotic one makes all of them strangers",
        f"Correlation of the pre-activations of two inputs that start at {plain.INPUT_OVERLAP:g} "
        f"(tanh, sigma_b = {own['sigma_b'].min():g}); line: median over seeds, band: the middle 90 %, dashed: theory.",
    )
