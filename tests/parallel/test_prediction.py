"""The step model: closed forms, figures found again, and intervals that hold what was held out."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from depthgauge import theory
from depthgauge.parallel import Link, StepModel
from depthgauge.parallel.links import fit as fit_link
from depthgauge.parallel.prediction import REDUCTIONS, crossover, exposed_seconds, fit
from depthgauge.stats import Estimate

LINK = Link.parse("5e-5,1e-9")
SIZE, BUCKETS = 4e6, 4
FIGURES = (2e-3, 1e-4, 1e-3, 0.4)  # fixed, example, handling, overlap


def exact(value: float) -> Estimate:
    return Estimate(value, value, value, 0, "given")


def model(link: Link = LINK, figures: tuple[float, float, float, float] = FIGURES) -> StepModel:
    return StepModel(*map(exact, figures), SIZE, BUCKETS, link, misfit=0.0, freedom=5)


def truth(devices: int, batch: int, reduction: str = "overlapped") -> float:
    """Seconds with `batch` examples on each device."""
    fixed, example, handling, overlap = FIGURES
    compute = fixed + example * batch
    if devices == 1 or reduction == "none":
        return compute
    exchange = BUCKETS * theory.allreduce_time(SIZE / BUCKETS, devices, 5e-5, 1e-9)
    hidden = min(overlap * compute, exchange * (1 - 1 / BUCKETS)) if reduction == "overlapped" else 0.0
    return compute + handling + exchange - hidden


def steps(
    batches: tuple[int, ...] = (8, 16, 32, 64), noise: Any = None, departure: float = 0.0, rounds: int = 5
) -> pd.DataFrame:
    """Durations on two devices; each configuration departs from the model by a factor, each round by 3 %."""
    rows = []
    for batch in batches:
        for way in REDUCTIONS:
            off = math.exp(departure * noise.normal()) if noise else 1.0
            for _ in range(rounds):
                seconds = truth(2, batch, way) * off * (math.exp(0.03 * noise.normal()) if noise else 1.0)
                rows.append((2, 2 * batch, way, seconds))
    return pd.DataFrame(rows, columns=["devices", "batch", "reduction", "seconds"])


def fitted(frame: pd.DataFrame, link: Link = LINK) -> StepModel:
    return fit(frame, gradient_bytes=SIZE, buckets=BUCKETS, link=link)


def test_the_last_bucket_is_never_hidden() -> None:
    assert exposed_seconds(10.0, 8.0, 1.0, 2.0) == 2.0
    assert exposed_seconds(10.0, 8.0, 0.1, 2.0) == 7.0
    assert exposed_seconds(10.0, 8.0, 1.0, 8.0) == 8.0


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_step_has_its_closed_form(reduction: str) -> None:
    for devices, batch in ((1, 32), (2, 32), (8, 1), (1024, 300)):
        found = model().step(devices, devices * batch, reduction)
        assert found.value == pytest.approx(truth(devices, batch, reduction), rel=1e-12)
        assert found.low == pytest.approx(found.high)  # nothing is uncertain
    assert model().step(8, 15).value == model().step(8, 16).value  # the device with the most examples decides


def test_efficiency_is_the_share_of_a_step_that_computes() -> None:
    every = [model().efficiency(devices, 32 * devices).value for devices in (1, 2, 64, 4096)]
    assert every == pytest.approx([truth(1, 32) / truth(devices, 32) for devices in (1, 2, 64, 4096)])
    assert every == sorted(every, reverse=True)
    wide = fitted(steps(noise=np.random.default_rng(0), departure=0.3))
    for devices in (1, 2, 64):
        found = wide.efficiency(devices, 32 * devices)
        assert 0 < found.low <= found.value <= found.high <= 1


def test_efficiency_holds_the_misfit_of_both_steps_that_it_compares() -> None:
    """Student's t of 5 degrees of freedom, 97.5 %, is 2.5706."""
    loose = replace(model(), misfit=0.1)
    step, efficiency = loose.step(64, 64 * 32), loose.efficiency(64, 64 * 32)
    assert math.log(step.high / step.low) == pytest.approx(2 * 2.5706 * 0.1, rel=1e-4)
    assert math.log(efficiency.value / efficiency.low) == pytest.approx(math.sqrt(2) * 2.5706 * 0.1, rel=1e-4)
    assert loose.efficiency(1, 32).low == 1


def test_slower_devices_compute_longer_and_exchange_as_before() -> None:
    slow = model().paced(3.0)
    assert slow.step(1, 32).value == pytest.approx(3 * truth(1, 32))
    exchange = model().exchange(2).value
    assert slow.exchange(2) == model().exchange(2)
    waited = 3 * (truth(2, 32, "waited") - exchange) + exchange
    assert slow.step(2, 64, "waited").value == pytest.approx(waited)


def test_a_fit_finds_the_figures_again() -> None:
    found = fitted(steps())
    values = [each.value for each in (found.fixed, found.example, found.handling, found.overlap)]
    assert values == pytest.approx(FIGURES, rel=1e-4)
    assert found.misfit < 1e-5
    assert found.step(64, 64 * 32).value == pytest.approx(truth(64, 32), rel=1e-3)


def test_an_interval_holds_the_misfit() -> None:
    found = fitted(steps(noise=np.random.default_rng(1), departure=0.2))
    for devices, batch in ((2, 32), (64, 32), (4096, 1)):
        step = found.step(devices, devices * batch)
        assert math.log(step.high / step.value) > 1.96 * found.misfit > 0.1
    assert found.fixed.low < found.fixed.value < found.fixed.high


def test_what_the_links_error_does_to_a_step_is_made_up_for_by_the_other_figures() -> None:
    """Not so over another link that is as uncertain."""
    unsure = Link("unsure", Estimate(5e-5, 4e-5, 6e-5, 9, "fit"), Estimate(1e-9, 8.5e-10, 1.15e-9, 9, "fit"), 0.0)
    other = Link("other", unsure.alpha, unsure.beta, 0.0)
    found = fitted(steps(noise=np.random.default_rng(2), departure=0.001, rounds=50), unsure)

    def width(made: StepModel) -> float:
        step = made.step(2, 2 * 16, "waited")
        return math.log(step.high / step.low)

    exchange = found.exchange(2)
    assert exchange.high / exchange.low > 1.3
    assert width(found) < 0.3 * width(found.over(other))
    assert width(found.over(unsure)) == width(found)


def test_over_a_link_of_unknown_error_a_step_has_no_interval() -> None:
    """Four sizes give points alone; a step that exchanges nothing does not depend on them."""
    sizes = np.array([64.0, 4096.0, 2.0**18, 2.0**24])
    points = fit_link(sizes, [theory.allreduce_time(size, 2, 5e-5, 1e-9) for size in sizes], 2)
    made = fitted(steps(noise=np.random.default_rng(3), departure=0.05), points)
    for found in (made.step(64, 64 * 32), made.efficiency(2, 64)):
        assert not found.has_interval
        assert math.isnan(found.high)
        assert "no interval, as the link" in found.method
    assert made.step(2, 64, "none").has_interval
    assert made.step(1, 32).has_interval
    assert made.over(LINK).step(64, 64 * 32).has_interval


def test_ring_and_doubling_take_the_same_time_at_the_crossover() -> None:
    for devices in (4, 7, 64, 4096):
        size = crossover(LINK, devices).value

        def ratio(bytes: float, devices: int = devices) -> float:  # noqa: A002 - as theory has it
            return LINK.allreduce(bytes, devices, "doubling").value / LINK.allreduce(bytes, devices).value

        assert ratio(size) == pytest.approx(1.0)
        assert ratio(size / 2) < 1 < ratio(size * 2)
    assert crossover(LINK, 2).value == math.inf
    assert crossover(Link.parse("0,1e-9"), 8).value == 0


def test_the_crossover_is_as_uncertain_as_alpha_and_beta() -> None:
    """(14 - 3) alpha / (3 - 7/4) beta at eight devices: the least alpha over the largest beta, and the reverse."""
    unsure = Link("unsure", Estimate(5e-5, 4e-5, 6e-5, 9, "fit"), Estimate(1e-9, 8e-10, 2e-9, 9, "fit"), 0.1)
    found = crossover(unsure, 8)
    assert (found.value, found.low, found.high) == pytest.approx((8.8 * 5e4, 8.8 * 2e4, 8.8 * 7.5e4))
    assert crossover(LINK, 8).low == crossover(LINK, 8).high == pytest.approx(8.8 * 5e4)
    assert not crossover(Link("points", Estimate(5e-5, math.nan, math.nan, 4, ""), LINK.beta), 8).has_interval
    flat = Link("flat", unsure.alpha, Estimate(1e-9, 0.0, 2e-9, 9, "fit"), 0.1)
    assert crossover(flat, 8).high == math.inf


@pytest.mark.parametrize(
    ("frame", "told"),
    [
        (steps((8,)), "a fit takes two batch sizes or more, and steps with none, waited, overlapped"),
        (steps().query("reduction != 'waited'"), "a fit takes two batch sizes"),
        (steps().assign(seconds=0.0), "a step takes a positive number of seconds"),
        (steps().assign(seconds=math.nan), "a step takes a positive number of seconds"),
    ],
)
def test_too_few_steps_are_told_in_a_sentence(frame: pd.DataFrame, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        fitted(frame)


def test_what_a_caller_can_get_wrong_is_told() -> None:
    with pytest.raises(ValueError, match="a reduction is none, waited, overlapped, not 'later'"):
        model().step(2, 4, "later")
    with pytest.raises(ValueError, match="devices is 0"):
        model().step(0, 4)
    with pytest.raises(ValueError, match="batch is 0"):
        model().efficiency(2, 0)


@pytest.mark.slow
@pytest.mark.parametrize("departure", [0.05, 0.15])
def test_intervals_hold_what_was_held_out(departure: float) -> None:
    """Smaller and larger batches, and many more devices, each off by its own departure; 100 fits."""
    noise, held = np.random.default_rng(3), dict.fromkeys(((2, 2), (2, 512), (64, 2), (1024, 32)), 0)
    for _ in range(100):
        found = fitted(steps(noise=noise, departure=departure))
        for devices, batch in held:
            seconds = truth(devices, batch) * math.exp(departure * noise.normal())
            held[devices, batch] += found.step(devices, devices * batch).contains(seconds)
    for place, count in held.items():
        assert count >= 88, (place, count)  # 95 % less three standard errors
    assert sum(held.values()) < 400  # an interval that always holds says nothing
