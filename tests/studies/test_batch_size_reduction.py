"""Sum against mean, and the last batch: the policies by hand, their weights, and what verdicts follow."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from depthgauge.studies.batch_size import last_batches, reduction, reductions
from depthgauge.studies.batch_size.last_batches import (
    DROP,
    FIXED,
    KEEP,
    PAD,
    POLICIES,
    SHUFFLED,
    SUMMED,
    TOP_UP,
    Epochs,
)
from depthgauge.studies.batch_size.reductions import CHANGES, MEAN, RATE_ONLY, SETTINGS, UNCHANGED, UNDONE
from depthgauge.study import Case, Rows

N, B = 10, 4  # two full batches, and two examples


def test_policies_by_hand() -> None:
    full = [[0, 1, 2, 3], [4, 5, 6, 7]]
    by_hand = {KEEP: [*full, [8, 9]], SUMMED: [*full, [8, 9]], DROP: full, PAD: [*full, [8, 9, 0, 1]]}
    for policy, batches in by_hand.items():
        assert Epochs(policy, FIXED, N, B, 0).epoch(0) == batches
    *first, last = Epochs(TOP_UP, FIXED, N, B, 0).epoch(0)
    assert first == full
    assert last[:2] == [8, 9]
    assert len(set(last)) == B


@pytest.mark.parametrize("policy", POLICIES)
def test_a_new_order_has_the_same_sizes_and_is_another_every_epoch(policy: str) -> None:
    epochs, fixed = Epochs(policy, SHUFFLED, N, B, 3), Epochs(policy, FIXED, N, B, 3)
    one, two = epochs.epoch(0), epochs.epoch(1)
    assert [len(batch) for batch in one] == [len(batch) for batch in fixed.epoch(0)]
    assert one != two
    seen = sorted(index for batch in one for index in batch)
    assert len(set(seen)) == (8 if policy == DROP else N)


@pytest.mark.parametrize("policy", [KEEP, SUMMED, DROP, PAD])
def test_weights_of_an_epoch_in_a_fixed_order(policy: str) -> None:
    by_hand = {KEEP: [1] * 8 + [2, 2], SUMMED: [1] * N, DROP: [1] * 8 + [0, 0], PAD: [2, 2] + [1] * 8}
    measured = last_batches.weights(Epochs(policy, FIXED, N, B, 0), 2)
    np.testing.assert_allclose(measured, by_hand[policy], rtol=1e-6)
    np.testing.assert_array_equal(last_batches.predicted_weights(policy, N, B), by_hand[policy])


def test_what_tops_up_is_drawn_evenly_from_the_others() -> None:
    """1,000 epochs: each of the 8 others is drawn with chance 1/4."""
    measured = last_batches.weights(Epochs(TOP_UP, FIXED, N, B, 0), 1000).numpy()
    np.testing.assert_allclose(measured[8:], 1, rtol=1e-4)
    np.testing.assert_allclose(measured[:8], 1.25, atol=5 * math.sqrt(0.25 * 0.75 / 1000))
    np.testing.assert_allclose(last_batches.predicted_weights(TOP_UP, N, B), [1.25] * 8 + [1, 1])


@pytest.mark.parametrize("policy", [KEEP, DROP])
def test_a_regression_converges_to_the_weighted_least_squares(policy: str) -> None:
    seeds = list(range(6))
    shifts = np.array(list(last_batches.regressions([Epochs(policy, FIXED, 52, 16, s) for s in seeds], seeds, 200)))
    assert np.all(shifts[:, 1] > 0.1)
    np.testing.assert_allclose(shifts[:, 0], shifts[:, 1], atol=0.1)


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_sum_with_all_of_it_scaled_is_the_mean(setting: str) -> None:
    mean = reductions.trained(MEAN[setting], 32, 4, 1, reduction="mean")
    undone = reductions.trained(reductions.summed(setting, UNDONE, 32), 32, 4, 1, reduction="sum")
    assert reductions.distance(undone, mean) <= (1e-5 if setting == "clipping" else 0)  # 32 is a power of two
    other = reductions.trained(MEAN[setting], 32, 4, 2, reduction="mean")
    assert reductions.distance(other, mean) > 1


# -- verdicts ----------------------------------------------------------------------------------------------------------


def pairs(distance: Callable[[str, str], float]) -> Iterator[Rows]:
    for setting in ("SGD", "Adam"):
        for change in CHANGES:
            for seed in range(12):
                case = Case.of({"setting": setting, "change": change, "batch": 24, "steps": 9, "seed": seed})
                yield case.rows("distance", distance(setting, change) * (1 + 1e-2 * math.sin(seed)))
                yield case.rows("skipped", 0.0)


@pytest.mark.parametrize(
    ("distance", "statuses"),
    [
        (lambda *_: 1e-15, ("holds", "holds", "holds")),
        (
            lambda setting, change: 1e-15 if change != RATE_ONLY or setting == "SGD" else 0.9,
            ("depends", "holds", "holds"),
        ),
        (
            lambda setting, change: 0.5 if (setting, change) == ("Adam", UNCHANGED) else 1e-15,
            ("holds", "holds", "depends"),
        ),
        (lambda *_: 0.9, ("fails", "fails", "fails")),
    ],
)
def test_verdicts_on_sum_and_mean(
    analysed: Callable[..., Any], distance: Callable[[str, str], float], statuses: tuple[str, ...]
) -> None:
    said = analysed(reduction.PART, pairs(distance)).statuses
    assert tuple(map(str, (said["N20"], said["sum_undone"], said["adam_sum"]))) == statuses


def policies(shift: Callable[[str, str], float], weight: float = 0.0) -> Iterator[Rows]:
    for policy in POLICIES:
        for order in (FIXED, SHUFFLED):
            predicted = last_batches.odd_weight(policy, order, 100, 16)
            for seed in range(12):
                case = Case.of({"policy": policy, "order": order, "examples": 100, "batch": 16, "seed": seed})
                noise = 1e-3 * math.sin(seed)
                yield case.rows("weight", predicted + weight + noise)
                yield case.rows("shift", shift(policy, order) + noise)
                yield case.rows("predicted", 0.0)


@pytest.mark.parametrize(
    ("shift", "weight", "statuses"),
    [
        (lambda *_: 0.0, 0.0, ("holds", "holds", "holds")),
        (lambda policy, order: float((policy, order) == (KEEP, FIXED)), 0.0, ("depends", "holds", "depends")),
        (lambda policy, _: float(policy == PAD), 0.0, ("holds", "holds", "depends")),  # the note does not speak of it
        (lambda *_: 1.0, 0.5, ("fails", "fails", "fails")),
    ],
)
def test_verdicts_on_the_last_batch(
    analysed: Callable[..., Any], shift: Callable[[str, str], float], weight: float, statuses: tuple[str, ...]
) -> None:
    said = analysed(reduction.PART, policies(shift, weight)).statuses
    assert tuple(map(str, (said["N21"], said["short_batch_weight"], said["short_batch_limit"]))) == statuses
