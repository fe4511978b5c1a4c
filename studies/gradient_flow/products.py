"""Products of random Gaussian matrices: their Lyapunov exponent, and where number formats stop following them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from depthgauge import drawing, formats, replicas, stats, theory
from depthgauge.conditions import tallied
from depthgauge.frames import by_case, groups, params_of
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import Question, agrees
from depthgauge.studies.gradient_flow.scalars import FORMATS
from depthgauge.study import Case, Context, Grid, Rows
from depthgauge.verdict import Claim

PRODUCTS = Claim(
    "gradient_flow/products",
    "products of random Gaussian matrices grow at their largest Lyapunov exponent, with the exact spread",
)
MARGIN = 0.05  # ln a factor: growths nearer to each other than this are called the same
FACTOR = 2.0  # variances within this factor of each other are called the same
CONFIDENCE = 0.99  # of the family of comparisons with theory
VARIANCE = "variance over the law's"
FIGURED = ("float16", "float32")
RATIOS = (1 / 3, 0.5, 0.7, 0.9, 1.0, 1.1, 1.5, 2.0, 3.0)
FEW = (1 / 3, 0.7, 1.0, 1.5, 3.0)
SIZES = sizes(
    "seeds ratios factors",
    quick=(60, FEW, 100), standard=(200, RATIOS, 100), full=(1000, RATIOS, 100), tiny=(5, (0.7, 1.5), 30),
)  # fmt: skip


def grids(seeds: int, ratios: tuple[float, ...], factors: int) -> Iterator[Grid]:
    """Square matrices of several sizes, around the sigma at which their products neither grow nor shrink."""
    varied = {"n": (2, 4, 16, 64), "sigma_ratio": ratios}
    yield Grid(varied, {"factors": factors}, seeds, ("sigma_ratio", "seed"), 250)


def run(cases: Sequence[Case], _: Context) -> Iterator[Rows]:
    """|W_k ... W_1 x| for square Gaussian matrices, in float64 and rounded to each format after every factor."""
    n, factors = cases[0].integer("n"), cases[0].integer("factors")
    sigmas = [case.number("sigma_ratio") * theory.critical_sigma(n) for case in cases]
    products = replicas.products(n, sigmas, [case.random_seed() for case in cases], factors=factors, formats=FORMATS)
    recorded = np.array([k for k in range(1, factors + 1) if k <= 10 or k % 5 == 0])
    for i, case in enumerate(cases):
        yield case.rows("log_norm", products.log_norm[i][recorded - 1], layer_index=recorded)
        for name in FORMATS:
            for metric, exits in (("exit_over", products.overflowed), ("exit_zero", products.vanished)):
                yield case.rows(metric, float(exits[name][i]), layer=name)


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """Growth rates of matrix products against Newman's exponents and their exact spread; exits from formats."""
    log_norm = by_case(rows, "log_norm")
    steps = log_norm.columns.to_numpy(int)
    scores: dict[int, list[np.ndarray]] = {}
    asked, tracks, exits = {}, [], []
    for (size, ratio), cases in groups(params_of(rows, "n", "sigma_ratio"), ["n", "sigma_ratio"]):
        n, lines = int(size), log_norm.loc[cases.index].to_numpy()
        law = theory.log_norm_growth(n, ratio * theory.critical_sigma(n))
        rate, sd = lines[:, -1] / steps[-1], math.sqrt(law.variance / steps[-1])
        scores.setdefault(n, []).append((rate - law.mean) / sd)
        mean = stats.against(rate, law.mean, sd=sd, margin=MARGIN, confidence=CONFIDENCE)
        asked["mean growth", n, f"{ratio:.3g}"] = mean
        at = {"n": n, "sigma_over_critical": ratio}
        tracks.append(pd.DataFrame({**at, "factors": steps, **stats.band(lines, 0.95), "predicted": law.mean * steps}))
        own = rows[rows["case"].isin(cases.index) & rows["layer"].notna()]
        for (name, metric), left in groups(own, ["layer", "metric"]):
            exits.append({**at, "format": name, **_exits(left["value"].to_numpy(), law.mean, name, metric)})
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
        PRODUCTS, agrees, shown=means.furthest,
        unit={key: "times the law's variance" if key[0] == VARIANCE else "ln a factor" for key in asked},
        says=tallied(question.read(agrees), "mean growths and variances"),
        why=f"{inside['mean growth']} of {len(means)} mean growths are Newman's within {MARGIN:g} a factor, and "
        f"{inside[VARIANCE]} of {len(scores)} variances the exact law's within a factor of {FACTOR:g}"
        + question.listed(agrees, {False: "beyond the margin:", None: "undecided:"}, lead="; "),
        method="mean growth by size and sigma (normal, its spread known), variance by size (chi-square)",
    )  # fmt: skip


def _exits(factors: np.ndarray, drift: float, name: str, metric: str) -> dict[str, Any]:
    """After how many factors products leave a format: quartiles, and where their growth alone puts it."""
    way = metric.removeprefix("exit_")
    bound = math.log(formats.get(name).max if way == "over" else formats.get(name).smallest_subnormal / 2)
    low, median, high = (float(end[0]) for end in stats.band(factors[:, None], 0.5).values())
    counts = {"left": int(np.isfinite(factors).sum()), "products": len(factors)}
    quartiles = {"median": median, "quartile_low": low, "quartile_high": high}
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


METHOD = """
**Products.** ln(|W_k ... W_1 x| / |x|) has independent increments (1/2) ln(sigma² chi²_n), whose mean is the largest
Lyapunov exponent (Newman 1986). sigma_c is the sigma at which it is zero.
"""
PART = Part("products", (PRODUCTS,), SIZES, grids, run, analyse, (tracks,), METHOD)
