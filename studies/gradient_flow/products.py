"""Products of random Gaussian matrices: their Lyapunov exponent, and where number formats stop following them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from depthgauge import drawing, formats, stats, theory
from depthgauge.frames import by_case, groups, params_of
from depthgauge.parts import Answer, Part
from depthgauge.questions import Question, agrees
from depthgauge.seeding import Purpose, generator
from depthgauge.studies.gradient_flow.networks import CONFIDENCE, middle
from depthgauge.studies.gradient_flow.scalars import FORMATS, first
from depthgauge.study import Case, Context, Grid, Rows
from depthgauge.verdict import Claim

PRODUCTS = Claim(
    "gradient_flow/products",
    "products of random Gaussian matrices grow at their largest Lyapunov exponent, with the exact spread",
)
MARGIN = 0.05  # ln a factor: growths nearer to each other than this are called the same
VARIANCE = "variance over the law's"
FIGURED = ("float16", "float32")
FACTOR = 2.0  # variances within this factor of each other are called the same
RATIOS = (1 / 3, 0.5, 0.7, 0.9, 1.0, 1.1, 1.5, 2.0, 3.0)
SIZES = {
    "quick": {"seeds": 60, "ratios": (1 / 3, 0.7, 1.0, 1.5, 3.0)},
    "standard": {"seeds": 200, "ratios": RATIOS},
    "full": {"seeds": 1000, "ratios": RATIOS},
    "tiny": {"seeds": 5, "ratios": (0.7, 1.5), "factors": 30},
}


def grids(seeds: int, ratios: tuple[float, ...], factors: int = 100) -> Iterator[Grid]:
    """Square matrices of several sizes, around the sigma at which their products neither grow nor shrink."""
    varied = {"n": (2, 4, 16, 64), "sigma_ratio": ratios}
    yield Grid(varied, {"factors": factors}, seeds, ("sigma_ratio", "seed"), 250)


def run(cases: Sequence[Case], _: Context) -> Iterator[Rows]:
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
    left = {(name, way): np.zeros((len(cases), factors), bool) for name in FORMATS for way in ("over", "zero")}
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
            left[name, "over"][:, k] = (~torch.isfinite(vector)).any(dim=(1, 2)).numpy()
            left[name, "zero"][:, k] = (vector == 0).all(dim=(1, 2)).numpy()
    recorded = np.array([k for k in range(1, factors + 1) if k <= 10 or k % 5 == 0])
    for i, case in enumerate(cases):
        yield case.rows("log_norm", log_norm[i][recorded - 1], layer_index=recorded)
        for (name, way), when in left.items():
            yield case.rows(f"exit_{way}", first(when[i]), layer=name)


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """Growth rates of matrix products against Newman's exponents and their exact spread; exits from formats."""
    params = params_of(rows, "n", "sigma_ratio")
    log_norm = by_case(rows, "log_norm")
    steps = log_norm.columns.to_numpy(int)
    scores: dict[int, list[np.ndarray]] = {}
    asked, tracks, exits = {}, [], []
    for (n, ratio), cases in groups(params, ["n", "sigma_ratio"]):
        law = theory.log_norm_growth(int(n), ratio * theory.critical_sigma(int(n)))
        lines = log_norm.loc[cases.index].to_numpy()
        rate, deviation = lines[:, -1] / steps[-1], math.sqrt(law.variance / steps[-1])
        scores.setdefault(int(n), []).append((rate - law.mean) / deviation)
        asked["mean growth", int(n), f"{ratio:.3g}"] = stats.against(
            rate, law.mean, sd=deviation, margin=MARGIN, confidence=CONFIDENCE
        )
        at = {"n": int(n), "sigma_over_critical": ratio}
        tracks.append(pd.DataFrame({**at, "factors": steps, **middle(lines, 0.95), "predicted": law.mean * steps}))
        for (name, way), own in groups(
            rows[rows["case"].isin(cases.index) & rows["layer"].notna()], ["layer", "metric"]
        ):
            exits.append({**at, "format": name, **_exits(own["value"].to_numpy(), law.mean, name, way)})
    for n, z in scores.items():  # the spread does not depend on sigma: products of every sigma tell of it
        spread = stats.variance_ratio(np.concatenate(z), 1.0, predicted_mean=0.0, margin=FACTOR, confidence=CONFIDENCE)
        asked[VARIANCE, n, "all"] = spread
    label = "{quantity} of {size} x {size} matrices, sigma / sigma_c {sigma_ratio}"
    question = Question.of("products", ("quantity", "size", "sigma_ratio"), asked, label=label, counted="products")
    yield question.table()
    yield "product_tracks", pd.concat(tracks, ignore_index=True)
    yield "product_exits", pd.DataFrame(exits)
    means = question.where(quantity="mean growth")
    inside = Counter(key[0] for key, comparison in question.members.items() if comparison.inside)
    yield question.verdict(
        PRODUCTS, agrees, shown=means.furthest, unit="ln a factor",
        why=f"{inside['mean growth']} of {len(means)} mean growths are Newman's within {MARGIN:g} a factor, and "
        f"{inside[VARIANCE]} of {len(scores)} variances are the exact law's within a factor of {FACTOR:g}"
        + question.listed(agrees, {False: "; beyond the margin:", None: "; undecided:"}),
        method="mean against theory's (normal, its spread known), by size and sigma; variance over the exact law's "
        "(chi-square), by size",
    )  # fmt: skip


def _exits(first_left: np.ndarray, drift: float, name: str, metric: str) -> dict[str, Any]:
    """After how many factors products leave a format: quartiles, and where their growth alone puts it."""
    way = metric.removeprefix("exit_")
    low, half, high = np.quantile(first_left, (0.25, 0.5, 0.75), method="inverted_cdf")
    bound = math.log(formats.get(name).max if way == "over" else formats.get(name).smallest_subnormal / 2)
    counts = {"left": int(np.isfinite(first_left).sum()), "products": len(first_left)}
    quartiles = {"median": half, "quartile_low": low, "quartile_high": high}
    return {"leaves": way, **counts, **quartiles, "predicted": bound / drift if drift * bound > 0 else math.inf}


def _with_formats(axis: Any, rows: pd.DataFrame, **options: Any) -> None:
    drawing.profile(axis, rows, **options)
    for name in FIGURED:
        for end in (formats.get(name).max, formats.get(name).smallest_subnormal):
            axis.axhline(math.log(end), color="0.5", lw=0.9, ls=":", label=f"ends of {' and '.join(FIGURED)}")


@drawing.figure(
    "products", "Products of random matrices grow or shrink exponentially, at their Lyapunov exponent",
    "ln(|W_k ... W_1 x| / |x|) by sigma over its critical value. Median; dashed: Lyapunov exponent times k; "
    "dotted: where float16 (inner) and float32 (outer) end.",
)  # fmt: skip
def tracks(product_tracks: pd.DataFrame) -> Any:
    """Log-norm of matrix products against their Lyapunov exponents."""
    by, axes = "sigma_over_critical", {"ylabel": "ln of the product's gain"}
    return drawing.panels(product_tracks, "n", _with_formats, by=by, x="factors", band="middle 95 %", axes=axes)


PART = Part(
    "products", (PRODUCTS,), SIZES, grids, run, analyse, (tracks,), """
**Products.** ln(|W_k ... W_1 x| / |x|) has independent increments (1/2) ln(sigma² chi²_n), whose mean is the largest
Lyapunov exponent (Newman 1986). sigma_c is the sigma at which it is zero.
""",
)  # fmt: skip
