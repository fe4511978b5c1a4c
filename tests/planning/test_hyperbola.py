"""The fitted hyperbola against curves and laws that are known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from depthgauge import planning, stats
from depthgauge.planning import hyperbola

BATCH = (1, 4, 16, 64, 256, 1024)
LEAST, CRITICAL = 40.0, 60.0


def curve(batch: object = BATCH) -> np.ndarray:
    return LEAST * (1 + CRITICAL / np.asarray(batch, dtype=float))


def drawn(rng: np.random.Generator, deviation: float, seeds: int = 8) -> np.ndarray:
    return curve() * np.exp(deviation * rng.standard_normal((seeds, len(BATCH))))


def test_a_hyperbola_is_found_again() -> None:
    found = planning.fit(BATCH, np.tile(curve(), (8, 1)))
    assert found.least_steps.value == pytest.approx(LEAST, rel=1e-6)
    assert found.critical_batch.value == pytest.approx(CRITICAL, rel=1e-6)
    assert found.least_examples.value == pytest.approx(LEAST * CRITICAL, rel=1e-6)
    assert found.steps(1024) == pytest.approx(curve(1024), rel=1e-6)
    assert found.scatter == pytest.approx(0, abs=1e-6)
    # (S / Smin - 1)(E / Emin - 1) = 1
    steps, least, examples = found.steps(BATCH), found.least_steps.value, found.least_examples.value
    product = (steps / least - 1) * (np.array(BATCH) * steps / examples - 1)
    np.testing.assert_allclose(product, 1, rtol=1e-5)


def test_regimes_end_where_a_quarter_more_than_the_least_is_taken() -> None:
    found = planning.fit(BATCH, np.tile(curve(), (8, 1)))
    examples = found.perfect_until * found.steps(found.perfect_until)
    assert examples / found.least_examples.value == pytest.approx(1.25)
    assert found.steps(found.maximal_from) / found.least_steps.value == pytest.approx(1.25)
    names = [found.regime(batch) for batch in BATCH]
    assert names == ["perfect scaling"] * 2 + ["diminishing returns"] * 2 + ["maximal data parallelism"] * 2


@pytest.mark.parametrize(("steps", "critical"), [(curve() * 0 + 7, 0.0), (1e4 / np.array(BATCH), math.inf)])
def test_a_curve_without_a_bend_has_no_critical_batch_and_no_interval(steps: np.ndarray, critical: float) -> None:
    found = planning.fit(BATCH, np.tile(steps, (8, 1)))
    assert found.critical_batch.value == critical
    assert not found.critical_batch.has_interval
    np.testing.assert_allclose(found.steps(BATCH), steps, rtol=2e-3)


def test_censored_runs_count_as_later_than_their_budget() -> None:
    """Half of the runs at the smallest batch end at the budget: left at it, the curve is too low, and bends earlier."""
    runs = drawn(np.random.default_rng(1), 0.1, seeds=400)
    budget = float(curve(1))
    late = runs > budget
    assert 0.4 < late[:, 0].mean() < 0.6
    stopped = np.minimum(runs, budget)
    naive, found = planning.fit(BATCH, stopped), planning.fit(BATCH, stopped, late)
    # sd of ln Bc of 400 seeds at 0.1 is below 0.01; a censored half is low by 0.1 sqrt(2 / pi) / 2 = 0.04 in ln S
    assert abs(math.log(found.critical_batch.value / CRITICAL)) < 0.03
    assert abs(math.log(found.steps(1) / budget)) < abs(math.log(naive.steps(1) / budget)) / 2
    assert found.censored == late.sum()


def test_censored_runs_stray_as_far_as_others() -> None:
    """Three in ten end at the budget of their batch size: the variance of what is seen is 0.57 of that of the runs."""
    runs = drawn(np.random.default_rng(2), 0.1, seeds=400)
    budget = curve() * math.exp(0.05244)
    _, _, spread = hyperbola._fit(np.array(BATCH), np.log(np.minimum(runs, budget)), runs > budget)
    assert spread == pytest.approx(0.01, rel=0.15)
    assert np.log(np.minimum(runs, budget)).var(0).mean() < 0.007


def test_a_run_that_never_arrives_moves_the_curve_up() -> None:
    runs = np.tile(curve(), (8, 1)) * np.exp(np.linspace(-0.05, 0.05, 8))[:, None]
    late = np.zeros(runs.shape, dtype=bool)
    late[0, 0] = True
    assert planning.fit(BATCH, runs, late).steps(1) > planning.fit(BATCH, runs).steps(1)


@pytest.mark.parametrize(
    ("batch", "steps"),
    [
        ((1, 4), [[1.0, 2.0, 3.0]]), ((4, 1), [[1.0, 2.0]]), ((1, 4), [[1.0, np.inf]]), ((1, 4), [[0.0, 1.0]]),
        ((1,), [[1.0]]), ((1, 4), np.empty((0, 2))),
    ],
)  # fmt: skip
def test_what_cannot_be_fitted_is_one_sentence(batch: tuple[int, ...], steps: object) -> None:
    with pytest.raises(ValueError, match=r"^(steps|batch sizes)"):
        planning.fit(batch, steps)


def covered(deviation: float, repeats: int, *, left: float = 0.0) -> tuple[int, int, int]:
    """How often the intervals of ln Bc and ln Smin, and the prediction of a batch size left out, hold the truth.

    Args:
        deviation: of ln steps, from seed to seed.
        repeats: number of samples of 8 seeds.
        left: standard deviation of a further term of each batch size, common to its seeds: a curve that is none.
    """
    rng, hits = np.random.default_rng(5), np.zeros(3, dtype=int)
    for _ in range(repeats):
        runs = drawn(rng, deviation) * np.exp(left * rng.standard_normal(len(BATCH)))
        found = planning.fit(BATCH, runs)
        ahead = planning.fit(BATCH[:-1], runs[:, :-1]).predicted(BATCH[-1])
        measured = float(np.exp(np.log(runs[:, -1]).mean()))
        hits += found.critical_batch.contains(CRITICAL), found.least_steps.contains(LEAST), ahead.contains(measured)
    return tuple(hits.tolist())


def consistent(hits: int, of: int, level: float = 0.95) -> bool:
    """Whether an exact binomial interval of the share, at 1 - 1e-4, holds the level."""
    return bool(stats.coverage(hits, of, level, confidence=1 - 1e-4).effect.contains(level))


@pytest.mark.slow
@pytest.mark.parametrize("deviation", [0.05, 0.2])
def test_intervals_cover_what_they_say(deviation: float) -> None:
    """Of hyperbolas, 95 % intervals of 8 seeds hold the truth in 95 % of samples."""
    critical, least, ahead = covered(deviation, 400)
    assert consistent(critical, 400), critical
    assert consistent(least, 400), least
    assert ahead > 0.92 * 400  # at least what they say: the wider of two intervals is shown


@pytest.mark.slow
def test_a_prediction_allows_for_a_curve_that_is_none_and_the_jackknife_does_not() -> None:
    critical, _, ahead = covered(0.02, 400, left=0.2)
    assert ahead > 0.92 * 400
    assert critical < 0.6 * 400
