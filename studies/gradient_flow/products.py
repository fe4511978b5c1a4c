"""Products of numbers and of random matrices: what repeated multiplication does, and to which number format."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.lines import Line2D

from depthgauge import formats, stats, theory
from depthgauge.frames import by_case, groups, only, params_of, records
from depthgauge.parts import Answer, agree, verdict_on
from depthgauge.seeding import Purpose, generator
from depthgauge.studies.gradient_flow.answers import CONFIDENCE
from depthgauge.study import Case, Context, Rows
from depthgauge.verdict import Figure, Status

FORMATS = ("float16", "bfloat16", "float32")
MARGIN = 0.05  # ln a factor
SAID = {"N01": (1.5, 4e14), "N02": (0.8, 2e-10)}  # the notes: a factor a layer, and what it comes to over 100 layers


def run_scalars(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """One factor, multiplied again and again in a format: the factor after which the product is no longer normal."""
    for case in cases:
        dtype = getattr(torch, case.text("format"))
        tiny = torch.finfo(dtype).tiny
        factor = torch.tensor(case.number("factor"), dtype=dtype, device=context.device)
        product, track = torch.ones((), dtype=dtype, device=context.device), []
        for _ in range(case.integer("factors")):
            product = product * factor
            track.append(float(product))
        size = np.abs(np.array(track))
        yield case.rows("product", size, layer_index=np.arange(1, size.size + 1))
        yield case.rows("exact_log", case.integer("factors") * math.log(case.number("factor")))
        yield case.rows("exit_over", _first(np.isinf(size)))
        yield case.rows("exit_subnormal", _first(size < tiny))
        yield case.rows("exit_zero", _first(size == 0))
        yield case.rows("exit_stuck", _first(np.isfinite(size) & (size == np.concatenate([[1.0], size[:-1]]))))


def run_products(cases: Sequence[Case], _: Context) -> Iterator[Rows]:
    """|W_k ... W_1 x| for square Gaussian matrices, in float64 and rounded to each format after every factor.

    Always on the CPU: other devices round sums of half-precision numbers elsewhere.
    """
    n, factors = cases[0].integer("n"), cases[0].integer("factors")
    ratio = torch.tensor([case.number("sigma_ratio") for case in cases], dtype=torch.float64)
    sigma = ratio * theory.critical_sigma(n)
    generators = [generator(case.random_seed(), Purpose.WEIGHTS) for case in cases]
    start = torch.full((len(cases), n, 1), 1.0, dtype=torch.float64)
    exact, log_norm = start / math.sqrt(n), np.empty((len(cases), factors))
    scale = torch.zeros(len(cases), dtype=torch.float64)
    rounded = {name: start.to(getattr(torch, name)) for name in FORMATS}
    over = {name: np.zeros((len(cases), factors), bool) for name in FORMATS}
    zero = {name: np.zeros((len(cases), factors), bool) for name in FORMATS}
    for k in range(factors):
        matrix = torch.stack([torch.randn(n, n, generator=g) for g in generators]).double()
        matrix *= sigma[:, None, None]
        exact = matrix @ exact
        norm = torch.linalg.vector_norm(exact, dim=(1, 2))
        scale += norm.log()
        exact /= norm[:, None, None]  # the norm is carried in `scale`, so float64 never overflows
        log_norm[:, k] = scale.numpy()
        for name in FORMATS:
            # summed in float64 and rounded once, as an accumulating matrix unit does
            vector = rounded[name] = (matrix @ rounded[name].double()).to(getattr(torch, name))
            over[name][:, k] = (~torch.isfinite(vector)).any(dim=(1, 2)).numpy()
            zero[name][:, k] = (vector == 0).all(dim=(1, 2)).numpy()
    recorded = np.array([k for k in range(1, factors + 1) if k <= 10 or k % 5 == 0])
    for i, case in enumerate(cases):
        yield case.rows("log_norm", log_norm[i][recorded - 1], layer_index=recorded)
        for name in FORMATS:
            yield case.rows("exit_over", _first(over[name][i]), layer=name)
            yield case.rows("exit_zero", _first(zero[name][i]), layer=name)


def _first(condition: np.ndarray) -> float:
    """How many factors it takes until the condition first holds; infinity where it never does."""
    return float(np.argmax(condition)) + 1 if condition.any() else math.inf


def analyse_scalars(rows: pd.DataFrame) -> Answer:
    """N01 and N02: exact products, and where each number format stops following them."""
    table = params_of(rows, "factor", "factors", "format")
    table["log10_product"] = only(rows, "exact_log") / math.log(10)
    for name in ("exit_over", "exit_subnormal", "exit_zero", "exit_stuck"):
        table[name] = only(rows, name)
    table = table.sort_values(["factor", "format"]).reset_index(drop=True)
    verdicts, sentences = [], []
    for claim, (factor, said) in SAID.items():
        own = table[table["factor"] == factor]
        if own.empty:
            continue
        exact = 10 ** float(own["log10_product"].iloc[0])
        same = f"{exact:.0e}" == f"{said:.0e}"
        verdicts.append(
            verdict_on(
                claim,
                Status.HOLDS if same else Status.FAILS,
                f"{factor:g}^{own['factors'].iloc[0]:.0f} is {exact:.3g}"
                + ("" if same else f", {exact / said:.0f} times what the notes print"),
                observed=exact,
                predicted=said,
                n=1,
                method="arithmetic, no sampling; 'about' means equal to one significant digit",
            )
        )
        size = f"A factor of {factor:g} a layer becomes {exact:.2g} over {own['factors'].iloc[0]:.0f} layers"
        sentences += [f"{size}; {_in_float16(half)}." for half in records(own[own["format"] == "float16"])]
    return Answer({"scalars": table}, tuple(verdicts), tuple(sentences))


def _in_float16(row: Any) -> str:
    if math.isfinite(row.exit_over):
        return f"float16 is infinite after {row.exit_over:.0f}"
    if math.isfinite(row.exit_zero):
        return f"float16 is zero after {row.exit_zero:.0f}"
    if math.isfinite(row.exit_subnormal):
        stuck = f" and stops shrinking at factor {row.exit_stuck:.0f}, because rounding to nearest undoes it"
        return f"float16 holds it as a subnormal number from factor {row.exit_subnormal:.0f} on" + (
            stuck if math.isfinite(row.exit_stuck) else ""
        )
    return "float16 holds all of it"


def analyse_products(rows: pd.DataFrame) -> Answer:
    """Growth rates of matrix products against Newman's exponents and their exact spread; exits from formats."""
    params = params_of(rows, "n", "sigma_ratio")
    log_norm = by_case(rows, "log_norm")
    steps = log_norm.columns.to_numpy(int)
    rates, tracks, exits, means, spreads, deviations = [], [], [], [], [], []
    for (n, ratio), configuration in groups(params, ["n", "sigma_ratio"]):
        law = theory.log_norm_growth(int(n), ratio * theory.critical_sigma(int(n)))
        lines = log_norm.loc[configuration.index].to_numpy()
        rate = lines[:, -1] / steps[-1]
        deviations.append(rate - law.mean)
        mean = stats.against(
            rate, law.mean, sd=math.sqrt(law.variance / steps[-1]), margin=MARGIN, confidence=CONFIDENCE
        )
        spread = stats.variance_ratio(rate, law.variance / steps[-1], predicted_mean=law.mean, confidence=CONFIDENCE)
        means.append(mean)
        spreads.append(spread)
        rates.append(
            {
                "n": int(n),
                "sigma_ratio": ratio,
                "seeds": len(lines),
                "rate": mean.effect.value,
                "low": mean.effect.low,
                "high": mean.effect.high,
                "predicted": law.mean,
                "deviation_se": mean.z,
                "variance_ratio": spread.effect.value,
                "ratio_low": spread.effect.low,
                "ratio_high": spread.effect.high,
            }
        )
        half = 1.96 * np.sqrt(law.variance * steps)
        tracks.append(
            pd.DataFrame(
                {
                    "n": int(n),
                    "sigma_ratio": ratio,
                    "factors": steps,
                    "mean": lines.mean(axis=0),
                    "predicted": law.mean * steps,
                    "band_low": law.mean * steps - half,
                    "band_high": law.mean * steps + half,
                }
            )
        )
        own = rows[rows["case"].isin(configuration.index)]
        for (name, metric), left in groups(own[own["layer"].notna()], ["layer", "metric"]):
            first = left["value"]
            low, middle, high = np.quantile(first, (0.25, 0.5, 0.75), method="inverted_cdf")
            leaves = metric.removeprefix("exit_")
            exits.append(
                {
                    "n": int(n),
                    "sigma_ratio": ratio,
                    "format": name,
                    "leaves": leaves,
                    "left": np.isfinite(first).sum(),
                    "seeds": len(first),
                    "median": middle,
                    "quartile_low": low,
                    "quartile_high": high,
                    "predicted": _exit(law.mean, name, leaves),
                }
            )
    status, family = agree(means)
    spread_family = stats.together(spreads)
    wrong = sum(member.differs for member in spread_family)
    pairs = list(zip(rates, family, spread_family, strict=True))
    off = [f"{row['n']} x {row['n']} at {row['sigma_ratio']:.3g}" for row, a, b in pairs if not a.inside or b.differs]
    if wrong and status is Status.HOLDS:
        status = Status.DEPENDS
    pooled = stats.mean(np.concatenate(deviations))
    verdict = verdict_on(
        "gradient_flow/products",
        status,
        f"in {sum(member.inside for member in family)} of {len(family)} combinations of size and sigma the mean growth "
        f"is Newman's within {MARGIN:g} a factor, and in {len(family) - wrong} of {len(family)} the spread is "
        "consistent with the exact law" + (f"; not so in (sigma / sigma_c): {', '.join(off)}" if off else ""),
        observed=pooled.value,
        low=pooled.low,
        high=pooled.high,
        predicted=0.0,
        unit="ln a factor",
        n=pooled.n,
        method=f"equivalence of the mean (normal law of known spread, margin {MARGIN:g}) and chi-square test of the "
        f"spread in each combination, Holm at {CONFIDENCE:.0%}; the figure is the mean deviation over all",
    )
    tables = {
        "products": pd.DataFrame(rates),
        "product_tracks": pd.concat(tracks, ignore_index=True),
        "product_exits": pd.DataFrame(exits),
    }
    return Answer(tables, (verdict,))


def _exit(drift: float, name: str, word: str) -> float:
    """The number of factors after which a product that grows by `drift` has left a format; infinity for never."""
    bound = math.log(formats.get(name).max if word == "over" else formats.get(name).smallest_subnormal / 2)
    return bound / drift if drift * bound > 0 else math.inf


def plot_products(tables: Mapping[str, pd.DataFrame]) -> Iterator[Figure]:
    """Log-norm of matrix products against their Lyapunov exponents."""
    if "product_tracks" not in tables:
        return
    tracks = tables["product_tracks"]
    sizes = sorted(tracks["n"].unique())
    colours = _colours(sorted(tracks["sigma_ratio"].unique(), reverse=True))
    canvas, axes = plt.subplots(1, len(sizes), figsize=(3.1 * len(sizes), 4.0), sharey=True, squeeze=False)
    for axis, n in zip(axes[0], sizes, strict=True):
        panel = tracks[tracks["n"] == n]
        for ratio, colour in colours.items():
            line = panel[panel["sigma_ratio"] == ratio].sort_values("factors")
            axis.fill_between(line["factors"], line["band_low"], line["band_high"], color=colour, alpha=0.2, lw=0)
            axis.plot(line["factors"], line["predicted"], color="black", lw=0.9, ls=(0, (2, 7)), zorder=3)
            axis.plot(line["factors"], line["mean"], color=colour, lw=3.2 if ratio == 1 else 2.0)
        axis.set(title=f"{n} x {n}", xlabel="factors")
        for name in ("float16", "float32"):
            axis.axhline(math.log(formats.get(name).max), color="0.5", lw=0.8, ls=":")
            axis.axhline(math.log(formats.get(name).smallest_subnormal), color="0.5", lw=0.8, ls=":")
    axes[0, 0].set_ylabel("ln of the product's gain")
    handles = [
        Line2D(
            [], [], color=colour, lw=3.2 if ratio == 1 else 2.0, label="1: critical" if ratio == 1 else f"{ratio:.3g}"
        )
        for ratio, colour in colours.items()
    ]
    canvas.legend(handles=handles, loc="outside right center", title=r"$\sigma/\sigma_c$", frameon=False)
    yield Figure(
        "products",
        canvas,
        "Products of random matrices grow exponentially, at their Lyapunov exponent, unless sigma is exactly critical",
        "ln(|W_k ... W_1 x| / |x|); lines: mean over seeds; bands: the middle 95 % that the exact law predicts; "
        "dashed: the largest Lyapunov exponent times k; dotted: where float16 (inner) and float32 (outer) end. "
        "The legend is in the order of the curves.",
    )


def _colours(ratios: Sequence[float]) -> dict[float, Any]:
    """Blue below the critical sigma, orange above, the darker the further off; the critical one is neither."""
    import seaborn as sns  # noqa: PLC0415 - a second that workers, which draw nothing, need not spend

    above, below = (sorted(r for r in ratios if r > 1), sorted((r for r in ratios if r < 1), reverse=True))
    colours = {1.0: "#C2006B"}
    for side, name in ((above, "Oranges"), (below, "Blues")):
        shades = sns.color_palette(name, len(side) + 2)[2:]  # without the palest
        colours |= dict(zip(side, shades, strict=True))
    return {ratio: colours[ratio] for ratio in ratios}
