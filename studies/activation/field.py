"""The theory table: gains, growth at the gain, critical sigma_w and the default's depth scale, predicted and met."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from depthgauge import models, replicas, stats, theory
from depthgauge.frames import by_case, groups, logs, only, params_of, records
from depthgauge.initialization import gaussian
from depthgauge.parts import Answer, agree, verdict_on
from depthgauge.seeding import Purpose, generator
from depthgauge.studies.activation.extremes import highest
from depthgauge.studies.activation.functions import label, make, phi
from depthgauge.study import Case, Context, Rows
from depthgauge.verdict import Figure, Status, Verdict

MARGIN = 0.1  # ln: a factor within 10 % of the predicted one is the same
CONFIDENCE = 0.99  # of the family of all comparisons with theory
UNSTABLE = 0.01  # by which a deviation of the variance must grow in a layer to be told
FLOOR = -5.0  # ln a layer: where the figure ends
BATCHES = (8, 32, math.inf)  # those of the table
WHERE = {"gain": "at its own forward gain", "critical": "at its critical sigma_w", "default": "at nn.Linear's default"}


def run_field(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """Deep MLPs at initialization in float64: second moments of the gradient at every layer, and of the first units.

    The input is scaled so that the first layer's pre-activations have variance 1 (at the default initialization the
    input has second moment 1). Over orthogonal inputs of that size they are independent and exactly Gaussian: what the
    first layer makes of them gives E[phi(z)^2] and E[phi'(z)^2].
    """
    shared = cases[0]
    spec, width, depth = shared.text("activation"), shared.integer("width"), shared.integer("depth")
    try:
        sigma_w, _ = sigmas(spec, shared.text("init"), width)
    except ValueError:  # there is none, or phi varies too fast for one to be found
        for case in cases:
            yield case.rows("critical", math.nan)
        return
    template = models.build(
        "mlp", depth=depth, width=width, activation=make(spec), input_shape=(width,), classes=width
    ).double()
    drawn = None if shared.text("init") == "default" else gaussian(sigma_w)
    stack = replicas.stack(
        template, [case.random_seed("seed", "width", "depth", "init") for case in cases], drawn, device=context.device
    )
    inputs, cotangent = (
        torch.randn(1, width, generator=generator(shared.random_seed("width"), purpose), dtype=torch.float64)
        for purpose in (Purpose.INPUTS, Purpose.COTANGENT)
    )
    inputs *= math.sqrt(width) / inputs.norm()
    if drawn is not None:
        inputs /= sigma_w
    seen = replicas.signals(stack, inputs, cotangent, overlap=False)
    layers = np.arange(1, len(seen.backward) + 1)
    first = None if shared.text("init") != "gain" else _first_layer(stack, math.sqrt(width) / sigma_w, spec)
    for i, case in enumerate(cases):
        yield case.rows("second_moment", seen.backward[:, i, 0], layer_index=layers, direction="backward")
        if first is not None:
            yield case.rows("value2", first[0][i])
            yield case.rows("slope2", first[1][i])


def sigmas(spec: str, init: str, width: int) -> tuple[float, float]:
    """(sigma_w, sigma_b) of an initialization.

    Raises:
        NoFixedPoint: the activation has no critical sigma_w.
    """
    if init == "default":
        return theory.default_linear(width)
    return (theory.gain(phi(spec)).forward if init == "gain" else theory.critical_sigma_w(phi(spec), 0.0)), 0.0


def _first_layer(stack: replicas.Stack, size: float, spec: str) -> tuple[np.ndarray, np.ndarray]:
    """Means of phi^2 and phi'^2 over the first layer's units and orthogonal inputs of norm `size`: shape (R,) each."""
    weight = next(iter(stack.parameters.values()))
    basis, _ = torch.linalg.qr(torch.randn(weight.shape[-1], weight.shape[-1], generator=generator(0, Purpose.INPUTS)))
    value, slope = phi(spec).both((weight @ (size * basis.to(weight))).cpu().numpy())
    return np.square(value).mean((1, 2)), np.square(slope).mean((1, 2))


def analyse_field(rows: pd.DataFrame) -> Answer:
    """The table, one row an activation, and every figure's deviation from its prediction."""
    params = params_of(rows, "activation", "init", "width", "depth").astype({"width": int, "depth": int})
    gradient = logs(by_case(rows, "second_moment", "backward"))
    found: dict[tuple[str, str], stats.Comparison] = {}
    for (spec, init), own in groups(params, ["activation", "init"]):
        lines = gradient.reindex(own.index).dropna(how="all").to_numpy()
        if len(lines):
            width, depth = int(own["width"].iloc[0]), int(own["depth"].iloc[0])
            with np.errstate(invalid="ignore"):  # a gradient that died on the way: no rate
                rate = (lines[:, 0] - lines[:, -1]) / depth
            predicted = predicted_rate(spec, init, width, depth)
            if math.isfinite(predicted):  # else the gradient is gone in theory too
                found[spec, init] = stats.against(rate, predicted, margin=MARGIN, confidence=CONFIDENCE)
    for metric in ("value2", "slope2"):
        measured = only(rows, metric)
        for spec, own in groups(params[params["init"] == "gain"], "activation"):
            predicted = getattr(theory.layer_moments(phi(spec), 1.0), metric)
            # a factor on the second moment is half of it on the gain
            found[spec, metric] = stats.against(
                measured.reindex(own.index).dropna().to_numpy(), predicted, log=True, margin=math.exp(MARGIN),
                confidence=CONFIDENCE,
            )  # fmt: skip
    status, family = agree(found.values())
    found = dict(zip(found, family, strict=True))
    deviations = pd.DataFrame(_deviation(*key, comparison) for key, comparison in found.items())
    specs = list(dict.fromkeys(params["activation"]))
    table = pd.DataFrame(_row(spec, int(params["width"].max()), found) for spec in specs)
    verdicts = [_theory_verdict(status, deviations)]
    if "sigmoid" in specs:
        verdicts.append(_sigmoid_verdict(deviations[deviations["activation"] == "sigmoid"]))
    return Answer({"theory": table, "deviations": deviations}, tuple(verdicts), tuple(_sentences(table, deviations)))


def predicted_rate(spec: str, init: str, width: int, depth: int) -> float:
    """Logarithm of the growth of the squared gradient a layer: mean field, and the first order in 1/width.

    For ReLU and the identity the law at finite width is exact.
    """
    sigma_w, sigma_b = sigmas(spec, init, width)
    q_1 = 1.0 if sigma_b == 0 else sigma_w**2 + sigma_b**2
    ends = [1, depth + 1]
    law = theory.plain_signal(phi(spec), sigma_w, sigma_b, width, ends, q_1=q_1, largest=MARGIN)
    return float(law.backward[0]) / depth


def _deviation(spec: str, quantity: str, comparison: stats.Comparison) -> dict[str, object]:
    effect = comparison.effect
    return {
        "activation": label(spec), "quantity": quantity, "predicted": comparison.reference, "measured": effect.value,
        "low": effect.low, "high": effect.high, "deviation_se": comparison.z, "answer": str(comparison.answer),
        "networks": effect.n,
    }  # fmt: skip


def _row(spec: str, width: int, found: Mapping[tuple[str, str], stats.Comparison]) -> dict[str, object]:
    """What theory says of one activation, and what was measured beside it."""
    gain = theory.gain(phi(spec))

    def met(quantity: str) -> float:
        return found[spec, quantity].effect.value if (spec, quantity) in found else math.nan

    try:
        critical = theory.critical_sigma_w(phi(spec), 0.0)
    except ValueError:  # as above
        critical = math.nan
    default = theory.mean_field(phi(spec), *theory.default_linear(width)).chi_1
    growth = found[spec, "default"].reference if (spec, "default") in found else math.nan
    return {
        "activation": label(spec),
        "forward_gain": gain.forward, "forward_gain_measured": met("value2") ** -0.5,
        "backward_gain": gain.backward, "backward_gain_measured": met("slope2") ** -0.5,
        "chi_at_gain": (gain.forward / gain.backward) ** 2, "growth_at_gain_measured": math.exp(met("gain")),
        "variance_slope_at_gain": gain.forward**2 * theory.layer_moments(phi(spec), 1.0).value2_rate,
        "critical_sigma_w": critical, "growth_at_critical_measured": math.exp(met("critical")),
        "default_depth_scale_far_in": _depth_scale(math.log(default) if default > 0 else -math.inf),
        "default_depth_scale": _depth_scale(growth),
        "default_depth_scale_measured": _depth_scale(met("default")),
        **{f"batch_norm_{batch:g}": theory.batch_norm_growth(phi(spec), batch) for batch in BATCHES},
    }  # fmt: skip


def _depth_scale(rate: float) -> float:
    """Layers over which the squared gradient changes by a factor e."""
    return math.inf if rate == 0 else 1 / abs(rate)


def _theory_verdict(status: Status, deviations: pd.DataFrame) -> Verdict:
    off = deviations.assign(off=_log_off(deviations, "measured"))
    off = off.assign(size=off["off"].abs(), off_low=_log_off(deviations, "low"), off_high=_log_off(deviations, "high"))
    gone = off[off["measured"] == -np.inf]
    worst = highest(off[np.isfinite(off["size"])] if np.isfinite(off["size"]).any() else off, "size")
    different = [f"{row.activation} ({row.quantity})" for row in records(off) if row.answer == "different"]
    undecided = int((off["answer"] == "inconclusive").sum())
    return verdict_on(
        "activation/theory",
        status,
        f"{int((off['answer'] == 'equivalent').sum())} of {len(off)} figures of {off['activation'].nunique()} "
        f"activations agree with their prediction within {MARGIN:.0%}"
        + (f"; different: {', '.join(different[:6])}" if different else "")
        + (f"; {undecided} undecided" if undecided else "")
        + (f"; exactly 0 is a network's gradient with {_named(gone)}" if len(gone) else "")
        + f"; the figure is the largest deviation, {worst['activation']} "
        + WHERE.get(worst["quantity"], "in one layer"),
        observed=float(worst["off"]), low=float(worst["off_low"]), high=float(worst["off_high"]), predicted=0.0,
        unit="ln of measured over predicted", n=int(worst["networks"]),
        method=f"equivalence with theory (t over networks, margin {MARGIN:g} in ln; growth is that a layer), Holm over "
        f"{len(off)} at {CONFIDENCE:.0%}",
    )  # fmt: skip


def _named(deviations: pd.DataFrame) -> str:
    return ", ".join(f"{row.activation} {WHERE[row.quantity]}" for row in records(deviations))


def _log_off(deviations: pd.DataFrame, column: str) -> pd.Series[float]:
    """Logarithm of measured over predicted: growth is a logarithm already, moments are not."""
    moment = deviations["quantity"].isin(["value2", "slope2"])
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.log((deviations[column] / deviations["predicted"]).to_numpy())
    return pd.Series(np.where(moment, ratio, deviations[column] - deviations["predicted"]), deviations.index)


def _sigmoid_verdict(own: pd.DataFrame) -> Verdict:
    """N05 at three initializations of sigmoid."""
    rates = own[own["quantity"].isin(list(WHERE))]
    vanishes = [
        True if row.high < -MARGIN else False if row.low > -MARGIN else None for row in records(rates)
    ]  # NaN intervals decide nothing
    told = ", ".join(f"{math.exp(row.measured):.3g} {WHERE[row.quantity]}" for row in records(rates))
    first = rates[rates["quantity"] == "gain"] if (rates["quantity"] == "gain").any() else rates
    row = first.iloc[0]
    return verdict_on(
        "N05",
        Status(stats.combine(vanishes)),
        f"a sigmoid layer multiplies the squared gradient by {told}. Its slope is at most 1/4: no gain keeps signal "
        "and gradient at once",
        observed=float(row["measured"]), low=float(row["low"]), high=float(row["high"]),
        predicted=float(row["predicted"]), unit="ln a layer", n=int(row["networks"]),
        method=f"95 % t intervals over networks, beyond -{MARGIN:g}; the figure is that "
        f"{WHERE[str(row['quantity'])]}; at initialization",
    )  # fmt: skip


def _sentences(table: pd.DataFrame, deviations: pd.DataFrame) -> Iterator[str]:
    own = table.sort_values("chi_at_gain")
    kept = [row.activation for row in records(own) if abs(math.log(row.chi_at_gain)) < 0.01]
    low, high = own.iloc[0], own.iloc[-1]
    known = int((deviations["answer"] == "equivalent").sum())
    yield (
        f"The gain that keeps the signal does not keep the gradient: at its exact forward gain a layer multiplies the "
        f"squared gradient by {low['chi_at_gain']:.2g} ({low['activation']}) to {high['chi_at_gain']:.2g} "
        f"({high['activation']}); it keeps it for {', '.join(kept) or 'none'}. Theory knew {known} of "
        f"{len(deviations)} measured figures within {MARGIN:.0%}."
    )
    unstable = own[own["variance_slope_at_gain"] > 1 + UNSTABLE]
    if len(unstable):
        yield (
            "A gain that is exact is not always stable: a deviation of the variance from 1 grows by "
            + ", ".join(f"{row.variance_slope_at_gain:.2f} ({row.activation})" for row in records(unstable))
            + " a layer, so that a network of finite width leaves it, and its signal dies or explodes."
        )


def plot_theory(tables: Mapping[str, pd.DataFrame]) -> Iterator[Figure]:
    """Growth a layer of every activation at three initializations: predicted as lines, measured as points."""
    if "deviations" not in tables:
        return
    found = tables["deviations"]
    rates = found[found["quantity"].isin(list(WHERE))]
    order = list(tables["theory"].sort_values("chi_at_gain")["activation"])
    places = {name: i for i, name in enumerate(order)}
    canvas, axes = plt.subplots(1, 3, figsize=(10.5, 0.27 * len(order) + 1.6), sharey=True)
    for axis, (quantity, where) in zip(axes, WHERE.items(), strict=True):
        own = rates[rates["quantity"] == quantity]
        y = own["activation"].map(places).to_numpy(float)
        axis.vlines(own["predicted"].clip(lower=FLOOR), y - 0.38, y + 0.38, color="0.25", lw=2.2, label="predicted")
        bars = np.nan_to_num(np.abs(np.stack([own["measured"] - own["low"], own["high"] - own["measured"]])))
        inside = (own["measured"] > FLOOR).to_numpy()
        axis.errorbar(
            own["measured"][inside], y[inside], xerr=bars[:, inside], fmt="o", ms=4.5, color="C1", label="measured"
        )
        axis.plot(np.full(int((~inside).sum()), FLOOR), y[~inside], "<", ms=7, mfc="white", mec="C1", mew=1.4)
        axis.axvline(0, color="0.6", lw=0.8)
        axis.set(title=where.replace("at its own", "at the").replace("at its", "at the"), xlabel="ln growth a layer")
    axes[0].set_yticks(range(len(order)), order)
    canvas.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    networks = int(rates["networks"].min())
    yield Figure(
        "theory",
        canvas,
        "How a gradient grows or shrinks in a layer is known for every activation before the first step",
        "ln of the factor by which a layer multiplies the squared gradient, from the last layer to the first; mean "
        f"over {networks} networks with 95 % intervals (mostly smaller than the point). Below 0 gradients vanish, "
        "above they explode."
        + (f" Arrow: {FLOOR:g} or less." if (rates["measured"] <= FLOOR).any() else "")
        + (" Without a point: no critical sigma_w exists." if len(rates) < len(WHERE) * len(order) else ""),
    )
