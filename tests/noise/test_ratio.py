"""The ratio and its interval, from products of gradients alone."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from depthgauge import noise
from depthgauge.noise.ratio import NoiseError, of_products
from depthgauge.seeding import Purpose, numpy_generator


def products(gradients: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n, d) gradients -> |g_i|^2 and g_i . sum_j g_j."""
    return (gradients**2).sum(1), gradients @ gradients.sum(0)


def draw(seed: int, n: int, d: int, scale: float, kind: str = "normal") -> np.ndarray:
    """(n, d) gradients whose noise scale is known; per-example sizes that vary by a factor of e with `skewed`."""
    generator = numpy_generator(seed, Purpose.DATA, kind, n, d)
    rows = generator.standard_normal((n, d))
    if kind == "heavy":
        rows = generator.standard_t(5, (n, d)) / math.sqrt(5 / 3)
    if kind == "skewed":
        rows *= np.exp(generator.standard_normal((n, 1)) - 1)  # E of its square is 1
    mean = 0.0 if math.isinf(scale) else math.sqrt(1 / scale)
    return rows + mean


def test_estimates_are_those_of_the_gradients() -> None:
    gradients = draw(0, 40, 7, 3.0)
    found = of_products(*products(gradients))
    variance = gradients.var(0, ddof=1).sum()
    assert found.noise == pytest.approx(variance, rel=1e-12)
    assert found.signal == pytest.approx((gradients.mean(0) ** 2).sum() - variance / 40, rel=1e-12)
    assert found.value == pytest.approx(found.noise / found.signal, rel=1e-12)
    assert found.low < found.value < found.high
    assert found.n == 40


def test_both_estimates_are_unbiased() -> None:
    """Over 1,500 samples of 6 gradients: within 4 standard errors of tr(Sigma) = 3 and |G|^2 = 3 / 2."""
    found = [of_products(*products(draw(seed, 6, 3, 2.0, "skewed"))) for seed in range(1500)]
    for values, truth in (([each.noise for each in found], 3.0), ([each.signal for each in found], 1.5)):
        assert abs(np.mean(values) - truth) < 4 * np.std(values) / math.sqrt(len(values))


def test_one_end_of_the_interval_is_a_rejected_neighbour() -> None:
    """The ends move with the confidence, and hold one another."""
    gradients = products(draw(1, 60, 5, 2.0))
    narrow, wide = (of_products(*gradients, confidence=confidence) for confidence in (0.8, 0.99))
    assert wide.low < narrow.low < narrow.value < narrow.high < wide.high


def test_no_noise_no_signal_and_neither() -> None:
    alike = of_products(*products(np.full((10, 3), 0.7)))
    assert abs(alike.value) < 1e-12
    assert (alike.low, alike.high) == (0.0, pytest.approx(0.0, abs=1e-12))
    nothing = of_products(*products(np.zeros((10, 3))))
    assert math.isnan(nothing.value)
    assert (nothing.low, nothing.high) == (0.0, math.inf)
    cancelled = of_products(*products(np.vstack([np.eye(8), -np.eye(8)])))  # the mean is 0
    assert cancelled.value == pytest.approx(-16.0)
    assert cancelled.signal == pytest.approx(-cancelled.noise / 16)
    assert cancelled.high == math.inf
    assert 0.5 < cancelled.low < 16  # with a mean of exactly 0 nothing tells in how many directions the noise lies


def test_a_mean_much_shorter_than_chance_rejects_every_finite_scale() -> None:
    fitted = draw(2, 400, 60, math.inf)
    found = of_products(*products(fitted - 0.9 * fitted.mean(0)))  # as of weights fitted to these examples
    assert (found.low, found.high) == (math.inf, math.inf)
    assert found.value < -400
    assert "every finite scale is rejected" in str(found)


def test_two_to_four_gradients_reject_nothing() -> None:
    for n in (2, 3, 4):
        found = of_products(*products(draw(3, n, 5, 0.01)))
        assert (found.low, found.high) == (0.0, math.inf)
        assert math.isfinite(found.value)
        assert "reject no scale" in found.method
    with pytest.raises(NoiseError, match="at least two gradients; got 1"):
        of_products(np.ones(1), np.ones(1))


def test_gradients_that_are_not_finite_are_a_result() -> None:
    gradients = draw(4, 10, 3, 1.0)
    gradients[2, 1] = math.nan
    found = of_products(*products(gradients))
    assert all(map(math.isnan, (found.value, found.low, found.high, found.noise, found.signal)))
    assert "not finite" in str(found)
    assert "1 of them not finite" in found.method


def test_a_whole_population_is_known_exactly() -> None:
    gradients = draw(5, 30, 4, 5.0)
    found = of_products(*products(gradients), population=30)
    assert found.noise == pytest.approx(gradients.var(0).sum(), rel=1e-12)
    assert found.signal == pytest.approx((gradients.mean(0) ** 2).sum(), rel=1e-12)
    assert found.low == found.high == found.value
    few = of_products(*products(gradients[:3]), population=3)
    assert few.low == few.high == few.value
    with pytest.raises(NoiseError, match="30 examples cannot be drawn without replacement from 29"):
        of_products(*products(gradients), population=29)


def test_a_sample_without_replacement_is_unbiased_for_its_population() -> None:
    """Over 1,000 samples of 20 from 30, within 4 standard errors; the uncorrected signal is not."""
    whole = draw(6, 30, 4, 5.0)
    truth = of_products(*products(whole), population=30)
    generator = numpy_generator(0, Purpose.SAMPLE)
    samples = [whole[generator.permutation(30)[:20]] for _ in range(1000)]
    corrected = [of_products(*products(sample), population=30) for sample in samples]
    plain = [of_products(*products(sample)) for sample in samples]
    for name in ("noise", "signal"):
        values = np.array([getattr(each, name) for each in corrected])
        assert abs(values.mean() - getattr(truth, name)) < 4 * values.std() / math.sqrt(1000)
    uncorrected = np.array([each.signal for each in plain])
    assert abs(uncorrected.mean() - truth.signal) > 10 * uncorrected.std() / math.sqrt(1000)
    assert np.mean([each.low <= truth.value <= each.high for each in corrected]) > 0.9


@pytest.mark.parametrize("units", [18, 20])
def test_batches_out_of_a_finite_set_keep_the_error_of_their_partition(units: int) -> None:
    """Of 40 sets of 200 in batches of 10: the share that was not drawn shrinks not all of the variance to a point."""
    held = 0
    for seed in range(40):
        whole = draw(seed, 200, 20, 1.0)
        truth = of_products(*products(whole), population=200).value
        order = numpy_generator(seed, Purpose.SAMPLE, units).permutation(200)[: 10 * units]
        found = of_products(*products(whole[order].reshape(units, 10, 20).mean(1)), batch=10, population=200)
        assert found.low < found.value < found.high
        held += found.low <= truth <= found.high
    assert held >= 34  # 33 or fewer of 40 have a chance of 0.3 % at 95 %
    few = of_products(*products(whole[:40].reshape(4, 10, 20).mean(1)), batch=10, population=40)
    assert (few.low, few.high) == (0.0, math.inf)


def test_a_sentence_says_what_was_found() -> None:
    assert str(of_products(*products(draw(7, 200, 20, 4.0)))).startswith("noise scale 4.")
    noisy = draw(1, 30, 2, math.inf)
    lost = of_products(*products(noisy - 0.9 * noisy.mean(0)))
    assert lost.signal < 0
    assert "no signal was found in the noise" in str(lost)


@pytest.mark.parametrize("confidence", [95, "a", None])
def test_a_confidence_is_checked(confidence: Any) -> None:
    with pytest.raises(ValueError, match="a confidence lies between 0 and 1"):
        of_products(np.ones(5), np.ones(5), confidence=confidence)


# -- two batch sizes ---------------------------------------------------------------------------------------------------


def norms(gradients: np.ndarray, batch: int) -> np.ndarray:
    means = gradients[: len(gradients) // batch * batch].reshape(-1, batch, gradients.shape[1]).mean(1)
    return (means**2).sum(1)


def test_two_batch_sizes_solve_for_both() -> None:
    small, big = [5.0, 7.0, 6.0, 5.5, 6.5, 6.0], [2.0, 1.0, 1.5, 1.2, 1.8, 1.5]
    found = noise.from_batches(4, small, 64, big)
    assert found.noise == pytest.approx((6.0 - 1.5) / (1 / 4 - 1 / 64))
    assert found.signal == pytest.approx((64 * 1.5 - 4 * 6.0) / 60)
    assert found.value == pytest.approx(found.noise / found.signal)
    assert found.low < found.value < found.high
    assert found.method.endswith("Fieller's set with Welch's t")
    assert noise.from_batches(4, small, 64, big, paired=True).method.endswith("with paired t")
    assert noise.from_batches(4, small, 64, big[:1], population=64).method.endswith("with Student's t")


def test_two_batch_sizes_are_a_ratio_of_means_and_unclamped() -> None:
    generator = numpy_generator(1, Purpose.DATA)
    big = generator.standard_normal((40, 5))
    found = noise.from_batches(2, (generator.standard_normal((40, 5)) ** 2).sum(1) / 2, 50, (big**2).sum(1) / 50)
    assert abs(found.signal) < 0.1
    assert found.high == math.inf
    negative = noise.from_batches(2, [2.0, 2.1, 1.9, 2.0, 2.05, 1.95], 4, [0.9, 0.8, 0.85, 0.9, 0.95, 0.85])
    assert negative.value < 0
    assert (negative.low, negative.high) == (math.inf, math.inf)


def test_two_batch_sizes_cover_and_pairs_are_sharper() -> None:
    """Of 400 samples, 95 % intervals hold the truth in at least 93 %, less three standard errors of a share."""
    truth, hits, widths = 10.0, 0, [[], []]
    for seed in range(400):
        gradients = draw(seed, 640, 12, truth)
        small, big = norms(gradients, 4).reshape(20, 8).mean(1), norms(gradients, 32)
        apart = noise.from_batches(4, norms(draw(seed + 10_000, 640, 12, truth), 4), 32, big)
        hits += apart.low <= truth <= apart.high
        for place, paired in enumerate((False, True)):
            found = noise.from_batches(4, small, 32, big, paired=paired)
            widths[place].append(math.log(found.high / found.low))
    assert hits / 400 > 0.93 - 3 * math.sqrt(0.05 * 0.95 / 400)
    assert np.median(widths[1]) < np.median(widths[0])


def test_two_batch_sizes_without_replacement() -> None:
    """The big batch is the whole set: its norm is |G|^2 itself, and one value of it is enough."""
    whole = draw(8, 64, 6, 5.0)
    generator = numpy_generator(2, Purpose.SAMPLE)
    small = [float((whole[generator.permutation(64)[:16]].mean(0) ** 2).sum()) for _ in range(2000)]
    exact = of_products(*products(whole), population=64)
    found = noise.from_batches(16, small, 64, [float((whole.mean(0) ** 2).sum())], population=64)
    assert found.signal == pytest.approx(exact.signal, rel=1e-12)
    error = np.std(small) / math.sqrt(2000) / ((64 - 16) / 63 / 16)
    assert abs(found.noise - exact.noise) < 4 * error
    assert found.low < exact.value < found.high
    uncorrected = noise.from_batches(16, small, 64, [float((whole.mean(0) ** 2).sum())])
    assert uncorrected.signal == pytest.approx(exact.signal - exact.noise / 64, abs=0.03)  # as of independent draws


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((64, [1.0], 64, [1.0]), "the small batch"),
        ((4, [-1.0], 64, [1.0]), "negative entry"),
        ((4, [], 64, [1.0]), "one number a batch"),
    ],
)
def test_two_batch_sizes_that_do_not_fit(arguments: tuple, message: str) -> None:
    with pytest.raises(NoiseError, match=message):
        noise.from_batches(*arguments)
    with pytest.raises(NoiseError, match="are no pairs"):
        noise.from_batches(4, [1.0, 2.0], 64, [1.0], paired=True)
    with pytest.raises(NoiseError, match="cannot be drawn without replacement"):
        noise.from_batches(4, [1.0], 64, [1.0], population=60)


# -- coverage ----------------------------------------------------------------------------------------------------------

RUNS = 200


@pytest.mark.slow
@pytest.mark.parametrize("n", [8, 20, 100, 500])
@pytest.mark.parametrize(("kind", "d"), [("normal", 1), ("normal", 20), ("heavy", 20)])
def test_intervals_hold_the_truth(kind: str, d: int, n: int) -> None:
    """95 % intervals: 92 % of runs or more, less three standard errors, from a signal that is plain to none."""
    for scale in (0.1, 1.0, 10.0, 100.0, math.inf):
        found = [of_products(*products(draw(seed, n, d, scale, kind))) for seed in range(RUNS)]
        covered = np.mean([each.low <= scale <= each.high for each in found])
        assert covered > 0.92 - 3 * math.sqrt(0.08 * 0.92 / RUNS), (scale, covered)


@pytest.mark.slow
@pytest.mark.parametrize(("n", "least"), [(8, 0.70), (100, 0.86), (500, 0.87)])
def test_intervals_of_very_unequal_examples(n: int, least: float) -> None:
    """Where a few examples carry most of the noise, small samples do not see it: the shares of docs/noise.md."""
    for scale in (1.0, 100.0):
        found = [of_products(*products(draw(seed, n, 20, scale, "skewed"))) for seed in range(RUNS)]
        covered = np.mean([each.low <= scale <= each.high for each in found])
        assert covered > least - 3 * math.sqrt(0.2 * 0.8 / RUNS), (scale, covered)
