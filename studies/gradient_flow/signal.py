"""Deep MLPs at initialization, layer by layer, forward and backward, against mean-field theory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.ticker import NullFormatter, ScalarFormatter
from scipy.special import stdtrit

from depthgauge import formats, seeding, stats, theory
from depthgauge.frames import by_case, groups, logs, params_of, records
from depthgauge.parts import Answer, agree, verdict_on
from depthgauge.seeding import Purpose
from depthgauge.studies.gradient_flow.answers import COLOURS, CONFIDENCE, MARGIN, coinciding, shades
from depthgauge.study import Case, Context, Rows
from depthgauge.verdict import Figure, Status, Verdict

INPUT_OVERLAP = 0.5  # correlation of the first two inputs of every network
INPUT_SCALE = 1.5  # the third input is the first, with its second moment multiplied by this
DENSE, STRIDE = 20, 5  # every layer is recorded up to the first, every fifth beyond
MEMORY = 2**28  # bytes of weights a chunk
SEEN = 0.5  # decades of the root mean square: curves nearer to each other than this look like one
FLAT = 1e-6  # a slope of ln a layer that is no decay but rounding
CONFIGURATION = ["activation", "init", "width", "sigma_w", "sigma_b"]


def most_seeds(width: int, depth: int) -> int:
    """Seeds a chunk, so that their weights take at most MEMORY bytes."""
    return max(1, min(10, MEMORY // (8 * depth * width**2)))


def run_signal(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """Second moments, layer by layer, of pre-activations z_1 .. z_L and of the gradients with respect to them.

    One draw of weights for each seed serves every activation and every sigma: common random numbers, so that
    differences between configurations carry no sampling noise of the weights. All in float64, which holds what a
    hundred layers do to a gradient. The loss is a random linear functional of z_L.

    Not by `replicas.signals`, whose members own their weights and share their inputs: here many sigmas share a draw of
    weights, and each draw has inputs of its own. `benchmarks/test_gradient_flow.py` prints how many times as long it
    would take; a test holds `propagate` to the shared model and autograd.
    """
    by_shape: dict[tuple[int, int, str], list[Case]] = {}
    for case in cases:
        by_shape.setdefault((case.integer("width"), case.integer("depth"), case.text("init")), []).append(case)
    for (width, depth, init), group in by_shape.items():
        seeds = sorted({case.integer("seed") for case in group})
        networks = Networks.draw(width, depth, init, seeds).to(context.device)
        by_activation: dict[str, dict[tuple[float, float], dict[int, Case]]] = {}
        for case in group:
            sigmas = (1.0, 1.0) if init == "torch" else (case.number("sigma_w"), case.number("sigma_b"))
            own = by_activation.setdefault(case.text("activation"), {})
            own.setdefault(sigmas, {})[case.integer("seed")] = case
        for activation, configurations in by_activation.items():
            columns = propagate(networks, activation, tuple(configurations))
            recorded = np.array([layer for layer in range(1, depth + 1) if layer <= DENSE or layer % STRIDE == 0])
            for i, by_seed in enumerate(configurations.values()):
                for seed, case in by_seed.items():
                    for (metric, direction), values in columns.items():
                        value = values[i, seeds.index(seed)][recorded - 1]
                        yield case.rows(metric, value, layer_index=recorded, direction=direction)


@dataclass(frozen=True)
class Networks:
    """Weights of S networks, to be multiplied by sigma_w, and what goes in at either end; float64.

    Attributes:
        weights: one tensor of shape (S, width, width) a layer, variance 1/width.
        biases: one tensor of shape (S, 1, width) a layer, variance 1, to be multiplied by sigma_b.
        inputs: shape (S, 3, width): a and b of second moment exactly 1 and overlap INPUT_OVERLAP, and a copy scaled.
        cotangent: shape (S, 1, width): the gradient with respect to z_L.
    """

    weights: tuple[torch.Tensor, ...]
    biases: tuple[torch.Tensor, ...]
    inputs: torch.Tensor
    cotangent: torch.Tensor

    @staticmethod
    def draw(width: int, depth: int, init: str, seeds: Sequence[int]) -> Networks:
        """Networks for these seeds; each depends on its own seed, the width and `init` alone."""
        drawn = []
        for seed in seeds:
            own = Case.of({"width": width, "seed": seed, "init": init}).random_seed()
            inputs = _inputs(width, seeding.generator(own, Purpose.INPUTS))
            start = seeding.generator(own, Purpose.COTANGENT)
            cotangent = torch.randn(1, width, generator=start, dtype=torch.float64)
            draws = seeding.generator(own, Purpose.WEIGHTS)
            layers = [LAYERS[init](width, draws) for _ in range(depth)]
            drawn.append((inputs, cotangent, *zip(*layers, strict=True)))
        every_input, every_cotangent, weights, biases = zip(*drawn, strict=True)
        return Networks(
            tuple(torch.stack(layer).double() for layer in zip(*weights, strict=True)),
            tuple(torch.stack(layer).double()[:, None] for layer in zip(*biases, strict=True)),
            torch.stack(every_input),
            torch.stack(every_cotangent),
        )

    def to(self, device: str) -> Networks:
        """The same on another device."""
        return Networks(
            tuple(w.to(device) for w in self.weights),
            tuple(b.to(device) for b in self.biases),
            self.inputs.to(device),
            self.cotangent.to(device),
        )


def _gaussian(width: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    weight = torch.randn(width, width, generator=generator) / math.sqrt(width)
    return weight, torch.randn(width, generator=generator)


def _uniform(width: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """What `torch.nn.Linear` draws: weights and biases uniform in +-1/sqrt(fan_in)."""
    bound = 1 / math.sqrt(width)
    weight = (torch.rand(width, width, generator=generator) * 2 - 1) * bound
    return weight, (torch.rand(width, generator=generator) * 2 - 1) * bound


LAYERS = {"gaussian": _gaussian, "torch": _uniform}


def _inputs(width: int, generator: torch.Generator) -> torch.Tensor:
    basis, _ = torch.linalg.qr(torch.randn(width, 2, generator=generator, dtype=torch.float64))
    a, orthogonal = basis.T * math.sqrt(width)
    b = INPUT_OVERLAP * a + math.sqrt(1 - INPUT_OVERLAP**2) * orthogonal
    return torch.stack([a, b, a * math.sqrt(INPUT_SCALE)])


def propagate(
    networks: Networks, activation: str, sigmas: Sequence[tuple[float, float]]
) -> dict[tuple[str, str], np.ndarray]:
    """Forward and backward through all networks at once, for C pairs (sigma_w, sigma_b).

    Returns:
        (metric, direction) -> shape (C, S, L), layer 1 first.
    """
    phi = theory.activation(activation).module().double().to(networks.inputs.device)
    device, seeds, count = networks.inputs.device, len(networks.inputs), len(sigmas)
    sigma_w, sigma_b = torch.tensor(sigmas, dtype=torch.float64, device=device).T[:, None, :, None, None]
    h = networks.inputs[:, None].expand(-1, count, -1, -1)  # (S, C, 3, width)
    q, correlation, log_ratio, slopes = [], [], [], []
    for weight, bias in zip(networks.weights, networks.biases, strict=True):
        wx = torch.bmm(h.reshape(seeds, -1, h.shape[-1]), weight.mT).view(seeds, count, -1, h.shape[-1])
        z = (sigma_w * wx + sigma_b * bias[:, None]).requires_grad_()
        h = phi(z)
        (slope,) = torch.autograd.grad(h[:, :, 0].sum(), z)
        h, z = h.detach(), z.detach()
        slopes.append(slope[:, :, 0].clone())  # a view would keep all three inputs
        square = z.square().mean(dim=3)
        q.append(square[..., 0])
        correlation.append((z[:, :, 0] * z[:, :, 1]).mean(dim=2) / (square[..., 0] * square[..., 1]).sqrt())
        log_ratio.append((square[..., 2] / square[..., 0]).log())
    gradient = networks.cotangent.expand(-1, count, -1)  # (S, C, width)
    g = [gradient.square().mean(dim=2)]
    for weight, slope in zip(networks.weights[:0:-1], slopes[-2::-1], strict=True):
        gradient = sigma_w[:, :, 0] * torch.bmm(gradient, weight) * slope
        g.append(gradient.square().mean(dim=2))
    by_layer = {
        ("second_moment", "forward"): q,
        ("second_moment", "backward"): g[::-1],
        ("correlation", "forward"): correlation,
        ("log_ratio_scaled", "forward"): log_ratio,
    }
    return {key: torch.stack(values).permute(2, 1, 0).cpu().numpy() for key, values in by_layer.items()}


def _configurations(rows: pd.DataFrame) -> pd.DataFrame:
    """Parameters by case, with the sigmas that nn.Linear's own initialization amounts to filled in."""
    params = params_of(rows, *CONFIGURATION)
    default = params["init"] == "torch"
    for width in params.loc[default, "width"].unique():
        params.loc[default & (params["width"] == width), ["sigma_w", "sigma_b"]] = theory.default_linear(int(width))
    return params


@dataclass(frozen=True)
class Prediction:
    """Mean-field trajectories of one configuration; layer 1 sees inputs of second moment 1.

    Attributes:
        q: second moment of the pre-activations, shape (layers,).
        log_g: ln of the gradient's second moment, 0 at the last layer, shape (layers,).
        forward_drift: what finite width adds to ln q a layer, on average over the net: exact for ReLU and linear
            layers without bias, of order 1/width for other activations, 0 where it is not known.
        backward_drift: the same of ln g, from the last layer to the first.
    """

    q: np.ndarray
    log_g: np.ndarray
    forward_drift: float
    backward_drift: float

    @staticmethod
    def of(activation: str, sigma_w: float, sigma_b: float, width: int, layers: np.ndarray) -> Prediction:
        """Predict a network before it is built."""
        q_1 = sigma_w**2 + sigma_b**2
        depth = int(layers[-1]) - 1
        q = theory.variance_trajectory(activation, sigma_w, sigma_b, q_1, depth)
        with np.errstate(divide="ignore"):
            log_g = np.log(theory.gradient_trajectory(activation, sigma_w, sigma_b, q_1, depth))
        at = layers - 1
        exact = {"relu": theory.relu_log_gain, "linear": theory.linear_log_gain}.get(activation)
        if exact is not None:
            # backward the law holds with biases too: units are active with probability 1/2 all the same
            drift = exact(width, sigma_w**2).mean - math.log(theory.chi(activation, sigma_w, 1.0))
            return Prediction(q[at], log_g[at], drift if sigma_b == 0 else 0.0, drift)
        law = theory.signal_law(activation, sigma_w, sigma_b, q_1, depth, width=width)
        with np.errstate(divide="ignore", invalid="ignore"):  # a signal that died: log(0), and no law for it
            forward = (law.forward_mean[-1] - np.log(q[-1])) / depth
            backward = (law.backward_mean[0] - log_g[0]) / depth
        return Prediction(q[at], log_g[at], *(float(d) if math.isfinite(d) else 0.0 for d in (forward, backward)))


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
        expected = Prediction.of(activation, sigma_w, sigma_b, int(width), layers)
        q, g, c = (lines.loc[own.index].to_numpy() for lines in (forward, backward, correlation))
        for direction, lines, log_moment, drift in (
            ("forward", q, np.log(expected.q), expected.forward_drift),
            ("backward", g, expected.log_g, expected.backward_drift),
        ):
            sign = 1 if direction == "forward" else -1
            along = sign * (layers[-1] - layers[0])  # steps, in the direction of travel
            rate = (lines[:, -1] - lines[:, 0]) / along
            predicted = (log_moment[-1] - log_moment[0]) / along + drift
            comparisons[(*key, direction)] = stats.against(rate, predicted, margin=MARGIN, confidence=CONFIDENCE)
            rates.append({**configuration, "direction": direction, **_rate(rate, comparisons[(*key, direction)])})
            passed = layers - 1 if direction == "forward" else layers[-1] - layers
            expected_log10 = (log_moment + passed * drift) / math.log(10)
            profiles.append(_band(lines / math.log(10), configuration, direction, layers, expected_log10))
        if activation == "tanh" and configuration["init"] == "gaussian" and sigma_b == widest:
            c_1 = (sigma_w**2 * INPUT_OVERLAP + sigma_b**2) / (sigma_w**2 + sigma_b**2)
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
        fit, low, high = _decay(layers, lines)
        found |= {name: predicted, f"{name}_fit": fit, f"{name}_low": low, f"{name}_high": high}
    return found


def _decay(layers: np.ndarray, lines: np.ndarray) -> tuple[float, float, float]:
    """Depth scale -1/slope of ln|mean over seeds| against layer, with a jackknife 95 % interval.

    Fitted from a third of the way to the last layer up to which the mean is above three of its standard errors: the
    early layers are not yet in the linear regime of the fixed point. NaN where that leaves fewer than four layers.
    """
    seeds = len(lines)
    if seeds < 5:
        return math.nan, math.nan, math.nan
    mean, error = lines.mean(axis=0), lines.std(axis=0, ddof=1) / math.sqrt(seeds)
    clear = (np.abs(mean) > 3 * error) & (np.abs(mean) > 1e-12)
    last = clear.size if clear.all() else int(np.argmin(clear))
    use = slice(last // 3, last)
    if last - last // 3 < 4:
        return math.nan, math.nan, math.nan
    left_out = (lines.sum(axis=0) - lines)[:, use] / (seeds - 1)
    slopes = np.polyfit(layers[use], np.log(np.abs(left_out)).T, 1)[0]
    slope = np.polyfit(layers[use], np.log(np.abs(mean[use])), 1)[0]
    half = stdtrit(seeds - 1, 0.975) * math.sqrt((seeds - 1) / seeds * ((slopes - slopes.mean()) ** 2).sum())
    scale, low, high = (-1 / s if s < -FLAT else math.inf for s in (slope, slope - half, slope + half))
    return scale, low, high


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
        f"Correlation of the pre-activations of two inputs that start at {INPUT_OVERLAP:g} "
        f"(tanh, sigma_b = {own['sigma_b'].min():g}); line: median over seeds, band: the middle 90 %, dashed: theory.",
    )
