"""The decision, in simulated time: machines that are quiet, drift, have a neighbour, or lay out memory by luck."""

from __future__ import annotations

import collections
import contextlib
import math

import numpy as np
import pytest

from depthgauge import stats, timing
from depthgauge.stats import Pace
from depthgauge.timing.interleaving import FEWEST, MOST_BLOCKS


class Machine:
    """Times work in its own seconds.

    Every slot has log-normal noise and the odd interruption; `drift` slows the machine down steadily, `burst` (mean
    seconds busy, mean seconds idle, factor) is a neighbour, `layout` the spread of what a set-up does to a variant,
    `wander` (correlation of neighbouring slots, spread) an AR(1) of the whole machine's pace.
    """

    def __init__(
        self,
        seed,
        *,
        noise=0.01,
        drift=0.0,
        burst=None,
        layout=0.005,
        slot=0.02,
        setup=0.06,
        interruptions=0.03,
        wander=(0.0, 0.0),
    ):
        self.draw = np.random.default_rng(seed)
        self.interruptions = interruptions
        self.noise, self.drift, self.burst, self.layout = noise, drift, burst, layout
        self.slot, self.setup = slot, setup
        self.time, self.change, self.busy = 0.0, 0.0, False
        self.wander, self.pace = wander, 0.0
        self.sittings = []

    def now(self):
        return self.time

    def take(self, cost):
        while self.burst and self.time >= self.change:
            self.busy = not self.busy
            self.change += self.draw.exponential(self.burst[0 if self.busy else 1])
        factor = (1 + self.drift * self.time) * (self.burst[2] if self.busy else 1)
        odd = self.draw.exponential(0.3) if self.draw.random() < self.interruptions else 0.0
        rho, spread = self.wander
        if spread:
            self.pace = rho * self.pace + spread * math.sqrt(1 - rho * rho) * self.draw.standard_normal()
        seconds = self.slot * cost * factor * math.exp(self.noise * self.draw.standard_normal() + odd + self.pace)
        self.time += seconds
        return seconds

    def sitting(self, *costs):
        @contextlib.contextmanager
        def fresh(number):
            self.sittings.append(number)
            self.time += self.setup
            placed = [cost * math.exp(self.layout * self.draw.standard_normal()) for cost in (costs[0], *costs)]
            yield [lambda cost=cost: self.take(cost) for cost in placed]

        return fresh


def answers(pairs, cost, **machine):
    found = collections.Counter()
    for seed in range(pairs):
        here = Machine(seed, **machine)
        found[timing.interleave(here.sitting(1.0, cost), now=here.now).judgements[0].pace] += 1
    return found


QUIET = {"quiet": {}, "drifting": {"drift": 0.02}}
BURSTY = {
    "bursty": {"burst": (0.4, 0.6, 1.6)},
    "heavy": {"burst": (0.15, 0.3, 2.0), "noise": 0.03},
    "slow bursts": {"burst": (3.0, 3.0, 1.5)},
    "laid out by luck": {"layout": 0.03},
    "wandering": {"wander": (0.9, 0.05)},
    "wandering slowly": {"wander": (0.995, 0.1)},
}


@pytest.mark.parametrize("machine", [*QUIET.values(), *BURSTY.values()], ids=[*QUIET, *BURSTY])
def test_equal_code_gives_no_false_alarm(machine):
    found = answers(60, 1.0, **machine)
    assert not {Pace.SLOWER, Pace.FASTER} & set(found)


@pytest.mark.parametrize("machine", QUIET.values(), ids=QUIET)
def test_a_tenth_is_found_on_a_quiet_machine(machine):
    assert answers(30, 1.1, **machine)[Pace.SLOWER] >= 29
    assert answers(30, 1 / 1.1, **machine)[Pace.FASTER] >= 29


@pytest.mark.parametrize("machine", BURSTY.values(), ids=BURSTY)
def test_a_tenth_is_never_called_faster_or_the_same(machine):
    assert set(answers(30, 1.1, **machine)) <= {Pace.SLOWER, Pace.INCONCLUSIVE}


def test_a_machine_too_restless_for_an_answer_gives_none():
    assert set(answers(10, 1.1, noise=0.5)) == {Pace.INCONCLUSIVE}


def test_equal_code_on_a_quiet_machine_is_the_same_and_stops_early():
    here = Machine(0)
    done = timing.interleave(here.sitting(1.0, 1.0), now=here.now)
    assert done.judgements[0].pace is Pace.SAME
    assert FEWEST <= done.sittings < 60
    assert not done.spent
    assert done.resolvable <= 1.05


def test_the_smallest_difference_that_it_tells_is_told():
    """At `resolvable`, all but the odd run find the difference; that it says is the promise."""
    found = 0
    for seed in range(20):
        here = Machine(seed)
        size = timing.interleave(here.sitting(1.0, 1.0), now=here.now).resolvable
        again = Machine(1000 + seed)
        found += timing.interleave(again.sitting(1.0, size), now=again.now).judgements[0].pace is Pace.SLOWER
    assert found >= 17  # binomial(20, 0.99) is below 17 with probability 4e-5


def test_several_candidates_share_the_confidence():
    here = Machine(1)
    done = timing.interleave(here.sitting(1.0, 1.1, 1.0, 1 / 1.1), now=here.now)
    assert [judgement.pace for judgement in done.judgements] == [Pace.SLOWER, Pace.SAME, Pace.FASTER]
    assert done.seconds.shape[3] == 5
    assert len(done.medians) == 4
    assert "99.6667 %" in done.judgements[0].ratio.effect.method


def test_the_first_sitting_warms_up_and_says_how_many_blocks():
    here = Machine(2, setup=0.6)  # a block of three variants, there and back, takes 0.12 s
    done = timing.interleave(here.sitting(1.0, 1.0), now=here.now)
    assert here.sittings == list(range(done.sittings + 1))
    assert done.seconds.shape[1:] == (5, 2, 3)
    slow = Machine(2, setup=50.0)
    assert timing.interleave(slow.sitting(1.0, 1.0), now=slow.now, budget=1e4).seconds.shape[1] == MOST_BLOCKS


def test_a_budget_ends_it():
    here = Machine(3)
    done = timing.interleave(here.sitting(1.0, 1.1), now=here.now, budget=1.0)
    assert done.spent
    assert done.elapsed <= 1.1
    assert 0 < done.sittings < FEWEST
    assert done.judgements[0].pace is Pace.INCONCLUSIVE
    assert math.isinf(done.resolvable)
    none = timing.interleave((here := Machine(3)).sitting(1.0, 1.1), now=here.now, budget=0.1)
    assert (none.sittings, none.medians, none.judgements) == (0, (), ())


def test_a_steady_drift_cancels_within_a_block():
    here = Machine(0, noise=0.0, layout=0.0, drift=0.05, interruptions=0.0)
    done = timing.interleave(here.sitting(1.0, 1.1), now=here.now)
    # What is left of the drift is of second order: (0.05 a second x 0.13 s a block)^2.
    assert done.judgements[0].ratio.effect.value == pytest.approx(1.1, rel=1e-4)


def test_variants_are_timed_there_and_back_each_block_beginning_with_another():
    order = []

    @contextlib.contextmanager
    def sitting(_number):
        yield [lambda which=which: order.append(which) or 1.0 for which in range(3)]

    clock = iter(np.arange(0.0, 1e4, 1.0))
    timing.interleave(sitting, now=lambda: float(next(clock)), budget=8.0)
    assert order[:12] == [0, 1, 2, 2, 1, 0, 1, 2, 0, 0, 2, 1]


# -- the rule ----------------------------------------------------------------------------------------------------------


def spread(centre, width, n=20):
    return centre * np.exp(np.linspace(-width, width, n))


def test_the_rule():
    still = spread(1.0, 0.002)
    assert stats.judge(spread(1.02, 0.002), still).pace is Pace.SLOWER
    assert stats.judge(spread(0.98, 0.002), still).pace is Pace.FASTER
    assert stats.judge(spread(1.001, 0.002), still).pace is Pace.SAME
    restless = spread(1.0, 0.06)  # A differs from itself by 4.2 %
    assert stats.judge(spread(1.02, 0.002), restless).pace is Pace.SAME
    assert stats.judge(spread(1.02, 0.002), restless, margin=1.04).pace is Pace.INCONCLUSIVE
    assert stats.judge(spread(1.0, 0.2), still).pace is Pace.INCONCLUSIVE
    assert stats.judge(spread(1.001, 0.002), still, margin=1.001).pace is Pace.INCONCLUSIVE


def test_what_the_rule_says_of_itself():
    told = stats.judge(spread(1.02, 0.002), spread(1.0, 0.004))
    assert told.resolution == pytest.approx(max(told.itself.high, 1 / told.itself.low))
    assert told.resolvable == pytest.approx(told.resolution * told.ratio.effect.high / told.ratio.effect.low)


def test_too_few_blocks_conclude_nothing():
    for n in (1, 4, 5, FEWEST - 1):
        told = stats.judge(np.full(n, 2.0), np.ones(n))
        assert told.pace is Pace.INCONCLUSIVE
        assert math.isinf(told.resolvable)
    assert stats.judge(np.full(FEWEST, 2.0), np.ones(FEWEST)).pace is Pace.SLOWER


def test_the_rules_false_alarms_are_far_below_its_intervals_level():
    """Ratios to one baseline, normal and independent: of 500 comparisons 5 intervals may miss 1; alarms are none."""
    draw = np.random.default_rng(0)
    logs = draw.normal(size=(500, 3, 15))
    alarms = [
        stats.judge(np.exp(0.01 * (b - a)), np.exp(0.01 * (again - a))).pace in {Pace.SLOWER, Pace.FASTER}
        for a, again, b in logs
    ]
    assert sum(alarms) == 0


def wandering(draw, rho, shape):
    """Standard normal AR(1) along the last axis, from its stationary law on."""
    x = draw.standard_normal(shape)
    for place in range(1, shape[-1]):
        x[..., place] = rho * x[..., place - 1] + math.sqrt(1 - rho * rho) * x[..., place]
    return x


def alarms(ratios, again):
    """Whether `judge` raises one, for many comparisons at once: logarithms of shape (comparisons, blocks)."""
    rank = int(stats.median(np.arange(ratios.shape[1]), 0.99).low)
    low, high = (np.sort(ratios)[:, end] for end in (rank, -1 - rank))
    blur = np.maximum(np.sort(again)[:, -1 - rank], -np.sort(again)[:, rank])
    return (low > blur) | (high < -blur)


def test_the_simulated_rule_is_the_rule():
    draw = np.random.default_rng(1)
    ratios, again = wandering(draw, 0.95, (2, 300, 12))
    told = [
        stats.judge(np.exp(0.01 * one), np.exp(0.01 * other)).pace in {Pace.SLOWER, Pace.FASTER}
        for one, other in zip(ratios, again, strict=True)
    ]
    assert alarms(ratios, again).tolist() == told
    assert any(told)


@pytest.mark.parametrize("blocks", [8, 20, 60])
@pytest.mark.parametrize(("rho", "stated"), [(0.0, 1e-5), (0.5, 3e-4), (0.7, 3e-3), (0.9, 5e-2)])
def test_false_alarms_where_blocks_wander_are_as_stated(rho, stated, blocks):
    """`judge` states these rates, the worst over the number of blocks; independent blocks keep far below 1e-2."""
    draw = np.random.default_rng(2)
    n = 40_000
    seen = alarms(*wandering(draw, rho, (2, n, blocks))).sum()
    assert seen <= n * stated + 4 * math.sqrt(n * stated) + 1
    if stated >= 1e-3:
        assert seen >= n * stated / 4  # more blocks do not help


def test_what_a_user_can_get_wrong():
    with pytest.raises(ValueError, match="one ratio for each block, twice"):
        stats.judge([1.0, 1.0], [1.0])
    with pytest.raises(ValueError, match="a margin is a factor of at least 1"):
        stats.judge([1.0], [1.0], margin=0.95)
