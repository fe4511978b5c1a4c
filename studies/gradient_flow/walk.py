"""ReLU nets at their critical point: the random walk that finite width makes of the log-norm."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from depthgauge import stats, theory
from depthgauge.frames import by_case, groups, logs, params_of
from depthgauge.parts import Answer, verdict_on
from depthgauge.studies.gradient_flow.answers import COLOURS, CONFIDENCE
from depthgauge.verdict import Figure, Status


def analyse_walk(rows: pd.DataFrame) -> Answer:
    """Is the log-norm of a critical ReLU net the random walk that the exact law of its width says it is?"""
    params = params_of(rows, "width", "sigma_w")
    walks, coverage, means, spreads = [], [], [], []
    for direction in ("forward", "backward"):
        lines = logs(by_case(rows, "second_moment", direction))
        for (width, sigma_w), configuration in groups(params, ["width", "sigma_w"]):
            every = lines.loc[configuration.index].to_numpy()
            own = every[np.isfinite(every).all(axis=1)]  # the law is that of the living; the dead are counted below
            gain = own - own[:, :1] if direction == "forward" else (own - own[:, -1:])[:, ::-1]
            layers = lines.columns.to_numpy(int)
            steps = layers - 1 if direction == "forward" else (layers[-1] - layers)[::-1]
            law = theory.relu_log_gain(int(width), sigma_w**2)
            centre, half = law.mean * steps, 1.96 * np.sqrt(law.variance * steps)
            centre_5n, half_5n = -2.5 / width * steps, 1.96 * np.sqrt(5 / width * steps)
            low, high = _quantiles(gain)
            dead = stats.rate(len(every) - len(own), len(every))
            walks.append(
                pd.DataFrame(
                    {
                        "width": int(width),
                        "direction": direction,
                        "layers": steps,
                        "mean": gain.mean(axis=0) if len(gain) else np.nan,
                        "low": low,
                        "high": high,
                        "predicted": centre,
                        "band_low": centre - half,
                        "band_high": centre + half,
                        "asymptotic_low": centre_5n - half_5n,
                        "asymptotic_high": centre_5n + half_5n,
                    }
                )
            )
            last, variance = gain[:, -1], float(law.variance * steps[-1])
            inside = int((np.abs(last - centre[-1]) <= half[-1]).sum())
            share = stats.coverage(inside, len(last), 0.95, confidence=CONFIDENCE).effect
            means.append(stats.against(last, centre[-1], sd=math.sqrt(variance), confidence=CONFIDENCE))
            spreads.append(stats.variance_ratio(last, variance, predicted_mean=centre[-1], confidence=CONFIDENCE))
            coverage.append(
                {
                    "width": int(width),
                    "direction": direction,
                    "layers": int(steps[-1]),
                    "n": len(last),
                    "inside": inside,
                    "dead": len(every) - len(own),
                    "dead_share": dead.value,
                    "dead_low": dead.low,
                    "dead_high": dead.high,
                    "dead_predicted": theory.relu_dying_probability(int(width), int(steps[-1])),
                    "share": share.value,
                    "low": share.low,
                    "high": share.high,
                    "mean": last.mean() if len(last) else np.nan,
                    "predicted_mean": centre[-1],
                    "mean_5_over_n": centre_5n[-1],
                    "variance": last.var(ddof=1) if len(last) > 1 else np.nan,
                    "predicted_variance": variance,
                    "variance_5_over_n": 5 / width * steps[-1],
                }
            )
    table = pd.DataFrame(coverage)
    family = stats.together([*means, *spreads])
    wrong = sum(member.differs for member in family)
    back = table[table["direction"] == "backward"]
    pooled = stats.coverage(int(back["inside"].sum()), int(back["n"].sum()), 0.95, margin=0.05, confidence=CONFIDENCE)
    covers = {stats.Answer.EQUIVALENT: True, stats.Answer.DIFFERENT: False}.get(pooled.answer)
    status = Status(stats.combine([covers, *([False] if wrong else [])]))
    narrowest = table.sort_values("width").iloc[0]
    verdict = verdict_on(
        "gradient_flow/walk",
        status,
        f"{int(back['inside'].sum())} of {int(back['n'].sum())} living networks end inside the 95 % band of the exact "
        f"law, and {wrong} of {len(family)} tests of its mean and variance reject it; at width {narrowest['width']} "
        f"the usual 5/n says a variance of {narrowest['variance_5_over_n']:.3g}, the exact law "
        f"{narrowest['predicted_variance']:.3g}, and {narrowest['variance']:.3g} was measured; of all networks of that "
        f"width {narrowest['dead_share']:.1%} died (a layer without an active unit), where "
        f"{narrowest['dead_predicted']:.1%} were to be expected",
        observed=pooled.effect.value,
        low=pooled.effect.low,
        high=pooled.effect.high,
        predicted=0.95,
        unit="share inside",
        n=pooled.effect.n,
        method=f"exact binomial interval (backward, all widths) inside 0.95 +- 0.05; normal and chi-square tests of "
        f"mean and variance by width and direction, Holm over {len(family)} at {CONFIDENCE:.0%}",
    )
    return Answer({"walk": pd.concat(walks, ignore_index=True), "walk_coverage": table}, (verdict,))


def _quantiles(gain: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if not len(gain):
        return np.full(gain.shape[1], np.nan), np.full(gain.shape[1], np.nan)
    low, high = np.quantile(gain, (0.025, 0.975), axis=0)
    return low, high


def plot_walk(tables: Mapping[str, pd.DataFrame]) -> Iterator[Figure]:
    """The random walk of a ReLU net's log-norm at its critical point, by width."""
    if "walk" not in tables:
        return
    walk, coverage = tables["walk"], tables["walk_coverage"]
    own = walk[walk["direction"] == "backward"]
    widths = sorted(own["width"].unique())
    canvas, axes = plt.subplots(1, len(widths), figsize=(4.0 * len(widths), 4.2), sharey=True, squeeze=False)
    relu = COLOURS["relu"]
    for axis, width in zip(axes[0], widths, strict=True):
        line = own[own["width"] == width].sort_values("layers")
        axis.fill_between(line["layers"], line["band_low"], line["band_high"], color="0.85", label="exact law, 95 %")
        axis.plot(line["layers"], line["predicted"], color="black", lw=1.2, label="exact law, mean")
        for side in ("asymptotic_low", "asymptotic_high"):
            axis.plot(
                line["layers"],
                line[side],
                color="black",
                lw=1.8,
                ls=":",
                label="5/n, 95 %" if side.endswith("low") else None,
            )
        axis.plot(line["layers"], line["mean"], color=relu, lw=1.6, label="seeds, mean")
        axis.fill_between(
            line["layers"], line["low"], line["high"], color=relu, alpha=0.3, lw=0, label="seeds, middle 95 %"
        )
        row = coverage[(coverage["width"] == width) & (coverage["direction"] == "backward")].iloc[0]
        axis.set(title=f"width {width}: {row['inside']:.0f} of {row['n']:.0f} seeds inside", xlabel="layers passed")
    axes[0, 0].set_ylabel("ln of the squared gradient norm")
    axes[0, 0].legend(frameon=False, fontsize="small", loc="lower left")
    yield Figure(
        "relu_walk",
        canvas,
        "At its critical point a ReLU net still drifts downwards: finite width makes its log-norm a random walk",
        "ReLU at sigma_w = sqrt(2), where infinite-width theory says that nothing changes. Grey: the exact law of the "
        "log-norm at that width; dotted: the usual 5/n approximation; colour: measured.",
    )
