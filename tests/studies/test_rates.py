"""Rates at initialization, measured and predicted: every activation that torch names, width 512, depth 40.

Where the numbers here come from:

*Seeds.* A rate is the log-gain of 39 layers, divided by 39. For a ReLU layer the log-gain has variance v / n with v = 5
(2 for a linear one), so that S networks give the rate to a standard error of sqrt(v / (39 n S)). Two rates closer than
`MARGIN` are called the same by the study; S is the fewest seeds at which four standard errors are at most that margin.

*Theory.* `theory.signal_law` is good to first order in 1/width. A correction of C nats over the whole net leaves terms
of order C^2 / 2 behind (those of a logarithm). A configuration is compared where this is below one standard error: the
tolerance is then sampling, not theory. What this turns away is named in a test.

*Tolerance.* Four standard errors of the mean, each standard error from theory; that the spread is theory's is tested
beside it, at the same level. P(|z| > 4) = 6.3e-5 for each of some 450 comparisons (means with two predictions, spreads
with one): the chance of any false alarm, over the draw of seeds, is below 3 % under any dependence (Bonferroni).
Networks share weights between configurations, so that they err together. Where theory's neglected term comes to a
whole standard error the single chance rises to 1.4e-3.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import scipy.stats

from depthgauge import theory
from depthgauge.replicas.plain import Networks, propagate
from depthgauge.studies.gradient_flow.signal import MARGIN

WIDTH, DEPTH = 512, 40
STEPS = DEPTH - 1
RELU_V = 5.0
SEEDS = math.ceil(16 * RELU_V / (WIDTH * STEPS * MARGIN**2))
ERRORS = 4.0
TAIL = 2 * scipy.stats.norm.sf(ERRORS)

RATIOS = ((0.7, 0.0), (1.0, 0.1), (1.4, 0.0))  # of sigma_w to its critical value, with sigma_b


@dataclass(frozen=True)
class Side:
    """One direction of one configuration, over the whole net, in nats: measured, and by the two predictions."""

    measured: np.ndarray
    mean: float
    std: float
    mean_field: float
    study: float

    @property
    def error(self) -> float:
        return self.std / math.sqrt(self.measured.size)

    @property
    def comparable(self) -> bool:
        neglected = (self.mean - self.mean_field) ** 2 / 2
        return bool(np.isfinite([self.mean, self.std]).all() and 0 < neglected <= self.error)


@pytest.fixture(scope="module")
def networks() -> Networks:
    return Networks.draw(WIDTH, DEPTH, "gaussian", range(SEEDS))


def scale(name: str) -> float:
    """The critical sigma_w, or, where an activation has none, the sigma_w that keeps a gradient at variance 1."""
    try:
        return theory.critical_sigma_w(name, 0.0)
    except theory.NoFixedPoint:
        return theory.gain(name).backward


def sides(networks: Networks, name: str, init: str, sigmas: list[tuple[float, float]]) -> list[dict[str, Side]]:
    """(forward, backward) of each configuration."""
    columns = propagate(networks, name, [(1.0, 1.0)] * len(sigmas) if init == "torch" else sigmas)
    layers = np.arange(1, DEPTH + 1)
    found = []
    with np.errstate(divide="ignore", invalid="ignore"):  # nets that die: log(0), and no law for them
        log = {direction: np.log(columns["second_moment", direction]) for direction in ("forward", "backward")}
        for i, (sigma_w, sigma_b) in enumerate(sigmas):
            q_1 = sigma_w**2 + sigma_b**2
            law = theory.signal_law(name, sigma_w, sigma_b, q_1, STEPS, width=WIDTH)
            field, study = (theory.plain_signal(name, sigma_w, sigma_b, width, layers) for width in (math.inf, WIDTH))
            forward = Side(
                log["forward"][i, :, -1] - math.log(q_1),
                law.forward_mean[-1] - math.log(q_1),
                law.forward_std[-1],
                field.forward[-1] - field.forward[0],
                study.forward[-1] - study.forward[0],
            )
            backward = Side(
                log["backward"][i, :, 0] - log["backward"][i, :, -1],
                law.backward_mean[0],
                law.backward_std[0],
                field.backward[0],
                study.backward[0],
            )
            found.append({"forward": forward, "backward": backward})
    return found


@pytest.fixture(scope="module")
def measured(networks: Networks) -> Callable[[str], list[dict[str, Side]]]:
    """An activation at 0.7, 1 and 1.4 times its critical sigma_w; the same weights for all."""

    @functools.cache
    def measure(name: str) -> list[dict[str, Side]]:
        return sides(networks, name, "gaussian", [(ratio * scale(name), sigma_b) for ratio, sigma_b in RATIOS])

    return measure


def mean_agrees(side: Side) -> None:
    assert abs(side.measured.mean() - side.mean) <= ERRORS * side.error
    assert abs(side.measured.mean() - side.study) <= ERRORS * side.error


def spread_agrees(side: Side) -> None:
    # The standard error that this rests on: chi-square, at the level of four standard errors.
    degrees = side.measured.size - 1
    ratio = degrees * side.measured.var(ddof=1) / side.std**2
    low, high = scipy.stats.chi2.ppf([TAIL / 2, 1 - TAIL / 2], degrees)
    assert low <= ratio <= high


@pytest.mark.slow
@pytest.mark.parametrize("name", theory.activation_names())
def test_predicted_and_measured_rates_agree(measured: Callable[[str], list[dict[str, Side]]], name: str) -> None:
    compared = [side for configuration in measured(name) for side in configuration.values() if side.comparable]
    for side in compared:
        mean_agrees(side)
        spread_agrees(side)
    assert compared, f"nothing was comparable for {name}"


@pytest.mark.slow
def test_what_first_order_theory_is_not_asked(measured: Callable[[str], list[dict[str, Side]]]) -> None:
    """Gradients: signals that shrink into a dead zone, and the softplus pair, whose corrections grow with depth."""
    left_out = {
        (name, ratio)
        for name in theory.activation_names()
        for (ratio, _), configuration in zip(RATIOS, measured(name), strict=True)
        if not configuration["backward"].comparable
    }
    dead = {("hardshrink", 0.7), ("softshrink", 0.7), ("softshrink", 1.0), ("tanhshrink", 0.7)}
    assert left_out == dead | {("logsigmoid", 0.7), ("softplus", 0.7)}


@pytest.mark.slow
def test_rates_of_pytorchs_own_initialization_agree() -> None:
    """Forward for every activation, backward for all whose gradients do not die outright.

    Weights and biases are uniform there. That leaves mean rates where they are and narrows the forward spread, so that
    theory's standard error, which is a Gaussian's, is wide enough.
    """
    networks = Networks.draw(WIDTH, DEPTH, "torch", range(SEEDS))
    died = set()
    for name in theory.activation_names():
        (configuration,) = sides(networks, name, "torch", [theory.default_linear(WIDTH)])
        mean_agrees(configuration["forward"])
        if configuration["backward"].comparable:
            mean_agrees(configuration["backward"])
        else:
            died.add(name)
    assert died == {"hardshrink", "softshrink", "tanhshrink"}


def test_seeds_resolve_the_margin_of_the_study() -> None:
    law = theory.relu_log_gain(WIDTH, 2.0)
    error = math.sqrt(law.variance / (STEPS * SEEDS))
    assert ERRORS * error <= MARGIN * 1.01  # v / n is the leading order of the exact variance
    assert ERRORS * error * math.sqrt(SEEDS / (SEEDS - 1)) > MARGIN
