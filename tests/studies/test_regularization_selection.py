"""Model selection: cross-validation by hand, the exact optimism by enumeration, and verdicts on what was measured."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from depthgauge import theory
from depthgauge.studies.regularization import linear, selection
from depthgauge.study import Case, Context, Rows
from depthgauge.verdict import Status


def _case(**params: str | int) -> Case:
    return Case.of({"part": "selection", "sets": 200, "seed": 0, **params})


def test_optimism_of_independent_models_by_enumeration() -> None:
    p, n = (0.9, 0.5, 0.7), 3
    expected = 0.0
    for counts in itertools.product(range(n + 1), repeat=len(p)):
        chance = math.prod(math.comb(n, c) * q**c * (1 - q) ** (n - c) for c, q in zip(counts, p, strict=True))
        best = int(np.argmax(counts))  # the first of equals
        expected += chance * (counts[best] / n - p[best])
    assert theory.selection_optimism(p, n) == pytest.approx(expected, rel=1e-12)
    assert theory.selection_optimism([p, p], n) == pytest.approx([expected, expected])
    assert theory.selection_optimism([0.3], 7) == pytest.approx(0.0, abs=1e-15)
    with pytest.raises(ValueError, match="between 0 and 1"):
        theory.selection_optimism([1.5], 3)


def test_least_squares_error_by_simulation_and_its_infinite_mean() -> None:
    x, y, weights = linear.problem(4000, 30, 5, torch.Generator().manual_seed(1))
    errors = 1 + (linear.fit(x, y) - weights).square().sum(1)
    spread = float(errors.std()) / len(errors) ** 0.5
    assert abs(float(errors.mean()) - theory.least_squares_error(30, 5)) < 4 * spread
    assert theory.least_squares_error(6, 5) == math.inf


def test_folds_are_those_of_a_loop_over_data_sets() -> None:
    case = _case(asked="folds", sets=3, examples=40, folds=5)
    draws = selection.generator(case.random_seed("seed", "examples", "sets"), selection.Purpose.DATA, "folds")
    x, y, _ = linear.problem(3, 40, 10, draws)
    estimates = []
    for inputs, targets in zip(x.numpy(), y.numpy(), strict=True):
        held = [range(start, start + 8) for start in range(0, 40, 8)]
        fits = [np.linalg.lstsq(np.delete(inputs, h, 0), np.delete(targets, h), rcond=None)[0] for h in held]
        estimates.append(np.mean([(inputs[h] @ w - targets[h]) ** 2 for h, w in zip(held, fits, strict=True)]))
    found = selection._folds(case, "cpu")
    assert found["estimate"] == pytest.approx(np.mean(estimates))
    assert found["variance"] == pytest.approx(np.var(estimates, ddof=1))


def test_true_accuracy_is_what_many_examples_show_and_guesses_are_independent() -> None:
    draws = torch.Generator().manual_seed(2)
    x, y, weights = linear.problem(2, linear.TRAINED, 40, draws)
    fitted = linear.models(x, y, "subsets", 3, draws)
    exact = linear.accuracies(fitted, weights).numpy()
    assert np.abs(linear.right(fitted, 20_000, 40, draws) - exact).max() < 5 * 0.5 / 20_000**0.5
    guesses = linear.models(x, y, "guesses", 3, draws)
    assert torch.allclose(guesses.mT @ guesses, torch.eye(3, dtype=torch.float64).expand(2, 3, 3))
    assert float((weights @ guesses).abs().max()) < 1e-12


def _made_up(covered: int, optimism: float) -> list[Rows]:
    rows = []
    for seed in range(8):
        case = _case(seed=seed, asked="folds", sets=2500, examples=40, folds=10)
        values = {"estimate": 1.384, "claimed_variance": 0.04, "variance": 0.09}
        values |= {"covers_expected": covered, "covers_conditional": covered}
        rows += [case.rows(name, value * (1 + 1e-4 * seed * (name == "estimate"))) for name, value in values.items()]
        case = _case(seed=seed, asked="reuse", kind="guesses", validation=50, models=8)
        values = {"optimism": optimism + 1e-4 * seed, "predicted": 0.1, "fresh": 1e-4 * (seed - 4), "gain": 0.0}
        rows += [case.rows(name, value) for name, value in values.items()]
    return rows


def test_verdicts_go_both_ways(analysed) -> None:  # type: ignore[no-untyped-def]  # a fixture
    good = analysed(selection.PART, _made_up(covered=2375, optimism=0.1))
    assert set(good.statuses.values()) == {Status.HOLDS}
    bad = analysed(selection.PART, _made_up(covered=2100, optimism=0.05))
    assert (bad.statuses["k_fold"], bad.statuses["reuse"]) == (Status.FAILS, Status.FAILS)
    assert "84.0%" in " ".join(bad.sentences)
    assert bad.tables["k_fold"]["claimed_over_true_standard_error"].tolist() == pytest.approx([2 / 3, 2 / 3])


def test_a_case_measures_what_theory_says() -> None:
    case = _case(asked="reuse", kind="guesses", validation=20, models=8)
    found = {row.metric: row.value for row in selection.run([case], Context())}
    assert found["predicted"] == pytest.approx(theory.selection_optimism([0.5] * 8, 20))
    assert found["optimism"] == pytest.approx(found["predicted"], rel=0.15)  # 200 data sets of spread 0.07


def test_excess_and_prediction_of_the_same_data_sets_are_one_ratio(analysed) -> None:  # type: ignore[no-untyped-def]  # a fixture
    scattered = {"optimism", "predicted"}
    rows = [
        replace(row, value=row.value * (1 + 0.3 * math.sin(row.case.integer("seed"))))
        if row.metric in scattered
        else row
        for row in _made_up(covered=2375, optimism=0.1)
    ]
    assert analysed(selection.PART, rows).statuses["reuse"] is Status.HOLDS
