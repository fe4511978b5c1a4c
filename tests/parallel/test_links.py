"""Links: names, the fitted line, its intervals, and what they predict."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import optimize

from depthgauge import stats, theory
from depthgauge.parallel import Link, ParallelError
from depthgauge.parallel.line import fit_line
from depthgauge.parallel.links import PRESETS, fit
from depthgauge.stats import Estimate

ALPHA, BETA = 2e-5, 3e-10
SIZES = 4.0 ** np.arange(1, 13)
TIMES = {
    "all_reduce": theory.allreduce_time,
    "reduce_scatter": theory.reduce_scatter_time,
    "all_gather": theory.all_gather_time,
}


def seconds(sizes, devices=2, algorithm="ring", collective="all_reduce"):
    return np.array([TIMES[collective](size, devices, ALPHA, BETA, algorithm) for size in np.atleast_1d(sizes)])


@pytest.mark.parametrize("algorithm", ["ring", "doubling"])
@pytest.mark.parametrize("collective", TIMES)
def test_durations_of_the_formula_give_their_alpha_and_beta_back(collective, algorithm):
    devices = np.array([[2], [3], [8]])
    timed = np.array([seconds(SIZES, int(p), algorithm, collective) for p in devices.ravel()])
    found = fit(SIZES, timed, devices, algorithm, collective=collective)
    assert found.alpha.value == pytest.approx(ALPHA, rel=1e-6)
    assert found.beta.value == pytest.approx(BETA, rel=1e-6)
    assert found.misfit < 1e-6
    assert found.alpha.n == 36
    for size, p in ((1.0, 2), (3e9, 4096)):
        predicted = found.time(collective, size, p, algorithm)
        assert predicted.value == pytest.approx(seconds(size, p, algorithm, collective)[0], rel=1e-6)
        assert predicted.low == pytest.approx(predicted.high, rel=1e-4)


def test_ends_of_an_interval_are_where_the_sum_of_squares_reaches_the_limit():
    """The scan over ratios agrees with a search that holds alpha (beta) and moves the other."""
    rng = np.random.default_rng(3)
    messages, sent = np.full(8, 6.0), 1.5 * 8.0 ** np.arange(1, 9)
    logs = np.log(ALPHA * messages + BETA * sent) + 0.2 * rng.standard_normal(8)
    line = fit_line(messages, sent, logs, tolerance=0.9)

    def squares(alpha, beta):
        return float(np.square(logs - np.log(alpha * messages + beta * sent)).sum())

    assert squares(line.alpha[0], line.beta[0]) == pytest.approx(line.squares)
    for end in line.alpha[1:]:
        best = optimize.minimize_scalar(
            lambda b, end=end: squares(end, math.exp(b)), bounds=(-30, -15), method="bounded"
        )
        assert best.fun == pytest.approx(1.9 * line.squares, rel=1e-3)
    for end in line.beta[1:]:
        best = optimize.minimize_scalar(
            lambda a, end=end: squares(math.exp(a), end), bounds=(-20, -5), method="bounded"
        )
        assert best.fun == pytest.approx(1.9 * line.squares, rel=1e-3)


@pytest.mark.parametrize(("sizes", "unseen"), [(SIZES[:5], "beta"), (4.0 ** np.arange(14, 19), "alpha")])
def test_a_term_that_the_sizes_cannot_show_has_an_interval_from_zero(sizes, unseen):
    noise = np.exp(0.1 * np.random.default_rng(1).standard_normal(len(sizes)))
    found = fit(sizes, seconds(sizes) * noise, 2)
    bounded = {"alpha": found.alpha, "beta": found.beta}
    assert bounded.pop(unseen).low == 0
    (other,) = bounded.values()
    assert 0 < other.low < other.value < other.high < 2 * other.value


def test_durations_without_a_slope_have_no_beta_and_those_without_a_start_no_alpha():
    flat, straight = fit(SIZES, np.full(12, 4e-5), 2), fit(SIZES, 1e-9 * SIZES, 2)
    assert (flat.beta.value, flat.beta.low) == (0, 0)
    assert flat.alpha.value == pytest.approx(2e-5)
    assert (straight.alpha.value, straight.alpha.low) == (0, 0)
    assert straight.beta.value == pytest.approx(1e-9)
    assert flat.bandwidth.value == math.inf


def test_a_disturbed_round_moves_nothing():
    rounds = np.tile(seconds(SIZES), (5, 1))
    disturbed = rounds.copy()
    disturbed[2] *= 100
    assert fit(SIZES, disturbed, 2) == fit(SIZES, rounds, 2)


def test_fewer_than_five_sizes_give_points_alone():
    found = fit(SIZES[:4], seconds(SIZES[:4]), 2)
    assert found.alpha.value == pytest.approx(ALPHA)
    assert math.isnan(found.alpha.low)
    assert "points only: 4 of at least 5 sizes" in found.alpha.method
    predicted = found.allreduce(64, 2)
    assert predicted.value == pytest.approx(seconds(64)[0])
    assert not predicted.has_interval
    assert "[" not in str(found)


def test_a_prediction_holds_both_terms_and_the_misfit():
    alpha, beta = Estimate(1e-5, 5e-6, 2e-5, 12, "", "s"), Estimate(1e-9, 5e-10, 2e-9, 12, "", "s/B")
    exact, loose = Link("x", alpha, beta), Link("x", alpha, beta, misfit=0.1)
    found = exact.allreduce(1e6, 4)
    assert found.value == pytest.approx(theory.allreduce_time(1e6, 4, 1e-5, 1e-9))
    assert (found.low, found.high) == (pytest.approx(found.value / 2), pytest.approx(2 * found.value))
    scatter = 2.2281 * 0.1  # Student's t of 10 degrees of freedom, 97.5 %
    wider = loose.allreduce(1e6, 4)
    assert math.log(wider.high / wider.value) == pytest.approx(math.hypot(math.log(2), scatter), rel=1e-4)
    assert math.log(wider.value / wider.low) == pytest.approx(math.hypot(math.log(2), scatter), rel=1e-4)
    alone = loose.allreduce(1e6, 1)
    assert (alone.value, alone.low, alone.high) == (0, 0, 0)
    assert loose.reduce_scatter(1e6, 4).value + loose.all_gather(1e6, 4).value == pytest.approx(wider.value)


def test_links_by_name_say_where_they_are_from():
    nvlink, pcie, ethernet = (Link.parse(name) for name in ("nvlink", " PCIe", "100GbE"))
    assert [link.name for link in (nvlink, pcie, ethernet)] == list(PRESETS)
    assert nvlink.bandwidth.value == pytest.approx(370.8e9)
    assert ethernet.bandwidth.value == 12.5e9
    for link in (nvlink, pcie, ethernet):
        assert "NCCL" in link.alpha.method
        assert link.alpha.low == link.alpha.value == link.alpha.high
        assert link.misfit == 0
    own = Link.parse("5e-6, 1e-10")
    assert (own.alpha.value, own.beta.value, own.alpha.method) == (5e-6, 1e-10, "given")
    assert str(own) == "5e-6, 1e-10: 5 us a message, 0.1 ns a byte (10 GB/s)"


def test_a_link_whose_bytes_cost_nothing_that_is_seen_has_a_least_bandwidth():
    alpha, beta = Estimate(5e-4, 2e-4, 9e-4, 10, "", "s"), Estimate(0.0, 0.0, 8e-9, 10, "", "s/B")
    shown = str(Link("own", alpha, beta, 1.1))
    assert shown == (
        "own: 500 [200, 900] us a message, 0 [0, 8] ns a byte (at least 0.125 GB/s); misfit 110 % over 10 sizes"
    )


@pytest.mark.parametrize("text", ["infiniband", "1e-6", "1e-6,-1", "nan,1", "1,2,3", "", "1e-6,inf"])
def test_other_links_are_told_in_one_sentence(text):
    with pytest.raises(ParallelError, match="is no link: name one of nvlink, pcie, 100gbe, or give alpha,beta"):
        Link.parse(text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((SIZES, -SIZES, 2), "seconds are positive finite numbers"),
        ((SIZES, np.full(12, math.nan), 2), "seconds are positive finite numbers"),
        ((0 * SIZES, SIZES, 2), "sizes are positive finite numbers"),
        (([], [], 2), "sizes are positive finite numbers"),
        ((SIZES, SIZES, 1), "devices is 1"),
        ((SIZES, SIZES, 2.5), r"devices is 2\.5"),
        ((SIZES, SIZES[:5], 2), r"shapes \(12,\), \(5,\) and \(\)"),
        (([8, 8, 8], [1, 2, 3], 2), "durations of one size cannot tell"),
        ((SIZES, SIZES, 2, "tree"), "algorithm is 'tree'"),
    ],
)
def test_wrong_durations_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        fit(*arguments)


# -- coverage, by simulation: the table of docs/method.md --------------------------------------------------------------

HELD_OUT = 4.0 ** np.array([0.5, 7.5, 15.0])  # below, among and beyond the sizes of the fit


def disturbed(rng, shape, noise):
    """Logarithms of durations: normal, and one in ten is delayed."""
    return noise * rng.standard_normal(shape) + rng.exponential(1.0, shape) * (rng.random(shape) < 0.1)


def covered(samples, sizes, noise, departure, smooth=0.0):
    """Shares of samples whose 95 % intervals hold alpha, beta, and the median duration at each held-out size.

    A size departs from the line by a factor whose logarithm has the sd `departure`, and the correlation
    `smooth` with that of the size before; each of 12 durations has noise of the sd `noise`, whose median is 1.
    """
    rng = np.random.default_rng(14)
    centre = np.median(disturbed(rng, (400_000,), noise))
    both = np.sort(np.concatenate([sizes, HELD_OUT]))
    fitted = np.isin(both, sizes)
    inside = np.zeros((samples, 2 + len(HELD_OUT)), dtype=bool)
    for sample in range(samples):
        off = rng.standard_normal(len(both))
        for place in range(1, len(both)):
            off[place] = smooth * off[place - 1] + math.sqrt(1 - smooth**2) * off[place]
        logs = np.log(seconds(both)) + departure * off + disturbed(rng, (12, len(both)), noise) - centre
        link = fit(both[fitted], np.exp(logs[:, fitted]), 2)
        medians = np.exp(np.median(logs[:, ~fitted], axis=0))
        predicted = [link.allreduce(size, 2) for size in HELD_OUT]
        inside[sample] = [
            link.alpha.contains(ALPHA), link.beta.contains(BETA),
            *(each.contains(median) for each, median in zip(predicted, medians, strict=True)),
        ]  # fmt: skip
    return inside.mean(axis=0)


@pytest.mark.slow
@pytest.mark.parametrize(("count", "noise", "departure"), [(12, 0.1, 0.0), (12, 0.1, 0.3), (6, 0.05, 0.2)])
def test_intervals_hold_the_truth_as_often_as_they_say(count, noise, departure):
    samples = 600
    for share in covered(samples, SIZES[:: 12 // count], noise, departure):
        assert stats.coverage(round(share * samples), samples, 0.95, confidence=0.999).effect.contains(0.95)


@pytest.mark.slow
def test_departures_that_go_on_from_size_to_size_make_the_intervals_too_narrow():
    """The warning of docs/method.md: neighbouring sizes that depart alike count as if they were independent."""
    assert covered(300, SIZES, 0.1, 0.3, smooth=0.9)[:2].max() < 0.9
