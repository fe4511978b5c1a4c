"""ReLU networks at their critical point: the random walk that finite width makes of the log-norm."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from depthgauge import drawing, stats, theory
from depthgauge.conditions import tallied
from depthgauge.frames import by_case, groups, logs, params_of
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import Question, agrees, spelled
from depthgauge.studies.gradient_flow.signal import CONFIDENCE, run
from depthgauge.study import Grid
from depthgauge.verdict import Claim, Sentence

WALK = Claim(
    "gradient_flow/walk",
    "at finite width the log-norm of a critical ReLU net is a random walk whose drift and variance are known exactly",
)
UNITS = {"mean": "of the law's deviations", "variance": "measured variance over the law's"}
# Within both, the law's band of 95 % still holds at least 87 % of the networks.
SHIFT = 1 / 3  # standard deviations of the law: means nearer to it than this are called the same
FACTOR = 1.5  # variances within this factor of the law's are called the same
WIDTHS = (8, 16, 64, 256)
SIZES = sizes("seeds widths", quick=(300, (16, 64)), standard=(400, WIDTHS), full=(1000, WIDTHS), tiny=(5, (12,)))


def grids(seeds: int, widths: tuple[int, ...]) -> Iterator[Grid]:
    """Critical ReLU networks of several widths."""
    fixed: dict[str, Any] = {"depth": 60, "activation": "relu", "init": "gaussian", "sigma_w": 2**0.5, "sigma_b": 0.0}
    yield Grid({"width": widths}, fixed, seeds, chunk=100)


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """Is the log-norm of a critical ReLU net the random walk that the exact law of its width says it is?"""
    lines = {direction: logs(by_case(rows, "second_moment", direction)) for direction in ("forward", "backward")}
    layers = lines["forward"].columns.to_numpy(int)
    passed = int(layers[-1] - layers[0])
    asked: dict[tuple[Any, ...], stats.Comparison] = {}
    bands, networks = [], []
    for (size, sigma_w), cases in groups(params_of(rows, "width", "sigma_w"), ["width", "sigma_w"]):
        width, law = int(size), theory.relu_log_gain(int(size), sigma_w**2)
        tracks = {direction: every.loc[cases.index].to_numpy() for direction, every in lines.items()}
        # forward and backward of one network are one draw: one that died is left out of both
        alive = np.logical_and(*(np.isfinite(track).all(axis=1) for track in tracks.values()))
        died, predicted = stats.rate(int((~alive).sum()), len(alive)), theory.relu_dying_probability(width, passed)
        counts = {"width": width, "networks": len(alive), "living": int(alive.sum())}
        networks.append({**counts, **spelled("died", died), "predicted": predicted})
        for direction, track in tracks.items():
            living = track[alive]
            gain = living - living[:, :1] if direction == "forward" else (living - living[:, -1:])[:, ::-1]
            steps = layers - layers[0] if direction == "forward" else (layers[-1] - layers)[::-1]
            bands.append(_band(width, direction, steps, gain, law))
            z = (gain[:, -1] - law.mean * passed) / math.sqrt(law.variance * passed)
            mean = stats.against(z, 0.0, sd=1.0, margin=SHIFT, confidence=CONFIDENCE)
            spread = stats.variance_ratio(z, 1.0, predicted_mean=0.0, margin=FACTOR, confidence=CONFIDENCE)
            asked |= {("mean", width, direction): mean, ("variance", width, direction): spread}
            networks[-1][f"inside_{direction}"] = int((np.abs(z) <= 1.96).sum())
    label = "the {quantity} at width {width}, {direction}"
    walk = Question.of("walk", ("quantity", "width", "direction"), asked, label=label, counted="networks")
    table, narrow = pd.DataFrame(networks), min(networks, key=lambda row: row["width"])
    yield walk.table()
    yield "walk_networks", table
    yield "walk_bands", pd.concat(bands, ignore_index=True)
    yield walk.verdict(
        WALK, agrees, shown=walk.where(quantity="variance").furthest,
        unit={key: UNITS[key[0]] for key in walk.members},
        says=tallied(walk.read(agrees), "means and variances"),
        why=f"{sum(c.inside for c in walk.members.values())} of {len(walk)} means and variances are the law's"
        + walk.listed(agrees, {False: "beyond the margin:", None: "undecided:"}, lead="; ")
        + f". {table['inside_backward'].sum()} of {table['living'].sum()} living networks end inside the law's band of "
        f"95 % (backward); at width {narrow['width']} {narrow['networks'] - narrow['living']} of {narrow['networks']} "
        f"networks died (a layer without an active unit), where {narrow['predicted']:.1%} were to be expected",
        method=f"mean, margin {SHIFT:.2g} of the law's standard deviations (normal, its spread known), and variance, "
        f"margin a factor of {FACTOR:g} (chi-square), by width and direction",
    )  # fmt: skip
    if dead := narrow["networks"] - narrow["living"]:
        yield Sentence(
            f"{dead} of {narrow['networks']} critical ReLU networks of width {narrow['width']} are dead within "
            f"{passed} layers: one layer without an active unit ends the signal ({narrow['predicted']:.0%} predicted).",
            claims=(WALK.id,),
        )


def _band(width: int, direction: str, steps: np.ndarray, gain: np.ndarray, law: Any) -> pd.DataFrame:
    """Median and middle 95 % of the living networks, and of the exact law, by layers passed."""
    at = {"width": width, "direction": direction, "layers_passed": steps}
    mean, half = law.mean * steps, 1.96 * np.sqrt(law.variance * steps)
    lines = {"predicted": mean, "law_low": mean - half, "law_high": mean + half, "five_over_n": -2.5 / width * steps}
    return pd.DataFrame({**at, **stats.band(gain, 0.95), **lines})


def _with_law(axis: Any, rows: pd.DataFrame, **options: Any) -> None:
    drawing.profile(axis, rows, **options)
    for end in ("law_low", "law_high"):
        axis.plot(rows["layers_passed"], rows[end], color="black", lw=1.2, ls=":", label="exact law, middle 95 %")
    axis.plot(rows["layers_passed"], rows["five_over_n"], color="0.5", lw=1.2, label="-5/(2n) a layer")


@drawing.figure(
    "relu_walk", "Finite width makes a random walk with a drift of the log-norm of a critical ReLU net",
    "ReLU at sigma_w = sqrt(2), where infinite-width theory says that nothing changes. Median of the living networks; "
    "dashed: mean of the exact law of the log-norm at that width; grey: its usual approximation.",
)  # fmt: skip
def bands(walk_bands: pd.DataFrame) -> Any:
    """The random walk of a ReLU net's log-norm at its critical point, by width."""
    own = walk_bands[walk_bands["direction"] == "backward"]
    axes = {"ylabel": "ln of the squared gradient norm"}
    return drawing.panels(own, "width", _with_law, x="layers_passed", band="middle 95 % of networks", axes=axes)


METHOD = """
**Random walk.** One ReLU layer multiplies a squared norm by sigma_w² chi²_m / n with m ~ Binomial(n, 1/2), forward and
backward (Hanin and Nica 2020), which gives mean and variance of its logarithm in networks that live.
"""
PART = Part("walk", (WALK,), SIZES, grids, run, analyse, (bands,), METHOD)
