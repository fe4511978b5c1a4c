"""Plain networks at initialization, layer by layer: what the parts `signal` and `walk` both measure and draw."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from depthgauge.replicas import plain
from depthgauge.study import Case, Context, Rows

CONFIDENCE = 0.99  # of a family of comparisons with theory
DENSE, STRIDE = 20, 5  # every layer is recorded up to the first, every fifth beyond


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """Second moments, layer by layer, of pre-activations z_1 .. z_L and of the gradients with respect to them.

    One draw of weights for each seed serves every activation and every sigma: common random numbers, so that
    differences between configurations carry no sampling noise of the weights. All in float64, which holds what a
    hundred layers do to a gradient. The loss is a random linear functional of z_L.
    """
    width, depth, init = cases[0].integer("width"), cases[0].integer("depth"), cases[0].text("init")
    drawn = {case.integer("seed"): case.random_seed("width", "seed", "init") for case in cases}
    seeds = sorted(drawn)
    networks = plain.Networks.draw(width, depth, init, [drawn[seed] for seed in seeds]).to(context.device)
    recorded = np.array([layer for layer in range(1, depth + 1) if layer <= DENSE or layer % STRIDE == 0])
    for activation in dict.fromkeys(case.text("activation") for case in cases):
        group = [(_sigmas(case), case) for case in cases if case["activation"] == activation]
        sigmas = list(dict.fromkeys(pair for pair, _ in group))
        signals = plain.propagate(networks, activation, sigmas)
        for pair, case in sorted(group, key=lambda one: sigmas.index(one[0])):
            for (metric, direction), values in signals.items():
                value = values[sigmas.index(pair), seeds.index(case.integer("seed"))][recorded - 1]
                yield case.rows(metric, value, layer_index=recorded, direction=direction)


def _sigmas(case: Case) -> tuple[float, float]:
    return (1.0, 1.0) if case["init"] == "torch" else (case.number("sigma_w"), case.number("sigma_b"))


def middle(lines: np.ndarray, share: float) -> dict[str, np.ndarray]:
    """Median over seeds, shape (seeds, layers), and the ends of the middle share of them; infinities are results."""
    if not len(lines):
        return dict.fromkeys(("low", "median", "high"), np.full(lines.shape[1], math.nan))
    tails = ((1 - share) / 2, 0.5, (1 + share) / 2)
    low, median, high = np.quantile(lines, tails, axis=0, method="inverted_cdf")
    return {"low": low, "median": median, "high": high}
