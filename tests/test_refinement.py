"""Two stages of learning rates: what the second adds, and that it chooses as a full grid would."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from depthgauge import refinement, training
from depthgauge.study import Case, Grid

COARSE = (0.01, 0.02, 0.04, 0.08)


def first(best: float, *, late: tuple[float, ...] = (), batch: int = 64) -> pd.DataFrame:
    """Runs of the coarse grid whose score is a parabola about a best rate."""
    rows = []
    for lr in COARSE:
        for seed in (-1, -2, -3):
            case = Case.of({"batch": batch, "lr": lr, "seed": seed, "net": "n"})
            score = -math.inf if lr in late else -(math.log(lr / best) ** 2)
            rows.append({"run": case.id, "batch": batch, "lr": lr, "seed": seed, "score": score})
    return pd.DataFrame(rows)


def test_a_best_within_its_grid_gets_half_steps() -> None:
    assert refinement.refined(first(0.04), ["batch"], score="score") == {(64,): (0.04, 0.0283, 0.0566)}


@pytest.mark.parametrize(("best", "outward"), [(1.0, (0.16, 0.32)), (0.001, (0.005, 0.0025))])
def test_a_best_at_the_edge_is_followed_outward(best: float, outward: tuple[float, ...]) -> None:
    (rates,) = refinement.refined(first(best), ["batch"], score="score").values()
    assert rates[3:] == outward
    edge = max(COARSE) if best > 0.1 else min(COARSE)
    np.testing.assert_allclose(rates[:3], (edge, edge / 2**0.5, edge * 2**0.5), rtol=5e-3)


def test_a_rate_at_which_a_run_never_arrived_is_not_the_best() -> None:
    (rates,) = refinement.refined(first(0.04, late=(0.04,)), ["batch"], score="score").values()
    assert rates[0] in {0.02, 0.08}


def test_a_group_in_which_nothing_arrived_is_left_out() -> None:
    runs = pd.concat([first(0.04, late=COARSE, batch=1), first(0.04, batch=4)])
    assert list(refinement.refined(runs, ["batch"], score="score")) == [(4,)]
    assert refinement.refined(runs.iloc[:0], ["batch"], score="score") == {}


def test_one_seed_that_never_arrived_rules_a_rate_out() -> None:
    runs = first(0.04)
    runs.loc[(runs["lr"] == 0.04) & (runs["seed"] == -2), "score"] = -math.inf
    (rates,) = refinement.refined(runs, ["batch"], score="score").values()
    assert rates[0] != 0.04


def test_the_second_stage_reports_at_every_rate_that_can_still_be_chosen() -> None:
    runs = first(0.04)
    grids = list(refinement.grids(runs, ["batch"], seeds=5, score="score"))
    assert repr(grids) == repr(list(refinement.grids(runs.iloc[::-1], ["batch"], seeds=5, score="score")))
    choosing, reported = grids
    assert choosing == Grid({"lr": (0.0283, 0.0566)}, {"batch": 64, "net": "n"}, 0, ("lr", "seed"), 500, selection=3)
    assert reported == Grid({"lr": (0.04, 0.0283, 0.0566)}, {"batch": 64, "net": "n"}, 5, ("lr", "seed"), 500)
    cases = [case for grid in grids for case in grid.cases()]
    assert not {case.id for case in cases} & set(runs["run"])

    def score(case: Case) -> float:
        return -(math.log(case.number("lr") / 0.055) ** 2)

    further = pd.DataFrame(
        [{"run": c.id, "batch": 64, "lr": c.number("lr"), "seed": c.integer("seed"), "score": score(c)} for c in cases]
    )
    every = pd.concat([first(0.055), further])
    tuned = training.tuned(every, ["batch"], score="score")
    assert sorted(tuned["seed"]) == [0, 1, 2, 3, 4]  # all were run at the rate that is chosen
    assert set(tuned["lr"]) == {0.0566}


def test_a_factor_that_does_not_refine_is_refused() -> None:
    with pytest.raises(ValueError, match=r"factor of at least 1\.1"):
        refinement.refined(first(0.04), ["batch"], factor=1.0, score="score")
