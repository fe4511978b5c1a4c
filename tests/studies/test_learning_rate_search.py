"""Random and grid searches over a lattice against enumeration."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from depthgauge.studies.learning_rate import search


def scores(seed: int, side: int) -> tuple[search.Scores, search.Scores]:
    draw = np.random.default_rng(seed)
    return draw.standard_normal((side, side)), draw.standard_normal((side, side))


@pytest.mark.parametrize("trials", [1, 2, 3])
def test_random_search_is_the_mean_over_all_draws(trials: int) -> None:
    validation, test = scores(0, 3)
    wanted = np.mean([
        test.flat[max(draw, key=lambda point: validation.flat[point])]
        for draw in itertools.product(range(9), repeat=trials)
    ])  # fmt: skip
    assert search.by_random(validation, test, trials) == pytest.approx(wanted, rel=1e-12)


def test_grid_search_is_the_mean_over_all_places() -> None:
    validation, test = scores(1, 4)
    found = []
    for i, j in itertools.product(range(2), repeat=2):
        points = list(itertools.product((i, i + 2), (j, j + 2)))
        found.append(test[max(points, key=lambda point: validation[point])])
    assert search.by_grid(validation, test, 2) == pytest.approx(np.mean(found))


def test_where_one_hyperparameter_does_nothing_random_search_is_better() -> None:
    """A grid of n trials has sqrt(n) values of the one that counts, random search has n."""
    line = -np.abs(np.arange(12) - 5.0)
    lattice = np.repeat(line[:, None], 12, 1)
    assert search.share_of_rate(lattice) == pytest.approx(1.0)
    assert search.by_random(lattice, lattice, 9) > search.by_grid(lattice, lattice, 3)
    assert search.share_of_rate(lattice.T) == 0.0


def test_a_single_trial_is_a_draw_of_the_lattice() -> None:
    validation, test = scores(2, 4)
    assert search.by_random(validation, test, 1) == pytest.approx(test.mean())
    assert search.by_grid(validation, test, 1) == pytest.approx(test.mean())
