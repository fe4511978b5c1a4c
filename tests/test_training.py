from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch

from depthgauge import data, models, replicas, stats, training
from depthgauge.study import Case


def curve(*values: float) -> np.ndarray:
    return np.array(values, dtype=float)[:, None]


def test_steps_to_is_the_first_full_window_at_the_target() -> None:
    taken, reached = training.steps_to(curve(1, 0, 0.5, 1.0, 1.0, 0), target=0.75, window=2)
    assert (taken.tolist(), reached.tolist()) == ([4], [True])  # (0.5 + 1.0) / 2


def test_a_run_that_never_arrives_is_censored_at_its_budget() -> None:
    taken, reached = training.steps_to(curve(0.1, 0.2, 0.3), target=0.5, window=2)
    assert (taken.tolist(), reached.tolist()) == ([3], [False])


def test_fewer_steps_than_the_window_reach_nothing() -> None:
    taken, reached = training.steps_to(curve(1.0, 1.0), target=0.5, window=3)
    assert (taken.tolist(), reached.tolist()) == ([2], [False])


def test_a_window_with_nan_does_not_reach_and_the_next_one_can() -> None:
    taken, reached = training.steps_to(curve(float("nan"), 1, 1, 1), target=1.0, window=2)
    assert (taken.tolist(), reached.tolist()) == ([3], [True])


def test_shares_whose_sum_is_not_exact_reach_their_own_mean() -> None:
    taken, reached = training.steps_to(curve(*[0.7] * 20), target=0.7, window=20)
    assert (taken.tolist(), reached.tolist()) == ([20], [True])


def runs(scores: dict[float, list[float]], first: int = 0, **columns: object) -> pd.DataFrame:
    """Validation scores: learning rate -> one a seed, from `first` on; test accuracy tells which run it was."""
    return pd.DataFrame(
        [
            {"lr": lr, "seed": seed, "validation_accuracy": score, "test_accuracy": 100 * lr + seed, **columns}
            for lr, line in scores.items()
            for seed, score in enumerate(line, first)
        ]
    )


def test_selection_runs_choose_and_all_others_are_reported_at_their_rate() -> None:
    # Seeds 0 to 3 do better at 0.1, but have no say.
    frame = runs({0.1: [0.5, 0.5, 0.9, 0.9, 0.9, 0.9], 0.3: [0.6, 0.6, 0.1, 0.1, 0.1, 0.1]}, first=-2, scheme="he")
    best = training.tuned(frame, ["scheme"])
    assert best["seed"].tolist() == [0, 1, 2, 3]
    assert best["lr"].tolist() == [0.3] * 4
    assert best["test_accuracy"].tolist() == [30, 31, 32, 33]


@pytest.mark.parametrize(
    ("seeds", "choose"), [(2, 1), (3, 2), (4, 2), (5, 2), (8, 3), (12, 5), (16, 6), (20, 8), (50, 19)]
)
def test_of_an_unmarked_frame_the_first_three_eighths_choose(seeds: int, choose: int) -> None:
    scores = {0.1: [0.0] * choose + [1.0] * (seeds - choose), 0.3: [0.1] * choose + [0.0] * (seeds - choose)}
    frame = runs(scores, scheme="he").sample(frac=1, random_state=1)
    best = training.tuned(frame, ["scheme"])
    assert best["seed"].tolist() == list(range(choose, seeds))
    assert set(best["lr"]) == {0.3}


@pytest.mark.parametrize("first", [-3, 0])
def test_the_choice_does_not_see_what_is_reported(first: int) -> None:
    frame = runs({0.1: [0.5] * 8, 0.3: [0.6] * 8, 1.0: [0.4] * 8}, first, scheme="he")
    reported = training.tuned(frame, ["scheme"])["seed"]
    assert len(reported) == 5
    hidden = frame.assign(validation_accuracy=frame["validation_accuracy"].where(~frame["seed"].isin(reported)))
    pd.testing.assert_frame_equal(training.choices(hidden, ["scheme"]), training.choices(frame, ["scheme"]))


def test_a_score_that_is_nan_or_absent_is_the_lowest() -> None:
    nan = float("nan")
    frame = runs({0.1: [0.2, 0.2, 0.2], 1.0: [nan, 0.9, 0.9], 3.0: [0.1, 0.1, 0.9]}, first=-2, scheme="he")
    assert training.tuned(frame, ["scheme"])["lr"].tolist() == [0.1]
    absent = frame[(frame["lr"] != 1.0) | (frame["seed"] != -2)]
    assert training.tuned(absent, ["scheme"])["lr"].tolist() == [0.1]
    nothing = runs({0.1: [nan, 0.2], 0.3: [nan, 0.9]}, first=-1, scheme="he")
    assert training.tuned(nothing, ["scheme"])["lr"].tolist() == [0.1]


def test_equal_scores_take_the_smallest_rate_and_groups_are_tuned_apart() -> None:
    frame = pd.concat(
        [
            runs({0.3: [0.1, 0.2, 0.3], 0.1: [0.3, 0.2, 0.1]}, scheme="xavier"),  # sums 0.6000000000000001 and 0.6
            runs({0.3: [0.9] * 3, 0.1: [0.1] * 3}, scheme="he"),
            runs({0.3: [0.1] * 3, 0.1: [0.9] * 3}, scheme=None),
            *(runs({0.3: [0.0] * 5, 0.1: [0.0] * 5}, first=3, scheme=scheme) for scheme in ("xavier", "he", None)),
        ]
    )
    for first in (0, -3):
        moved = frame.assign(seed=frame["seed"] + first)
        choices = training.choices(moved, ["scheme"])
        assert choices["scheme"].tolist()[:2] == ["xavier", "he"]
        assert choices["lr"].tolist() == [0.1, 0.3, 0.1]
        assert training.tuned(moved, ["scheme"]).groupby("scheme", dropna=False).ngroups == 3


def test_a_choice_at_the_end_of_the_grid_says_which_end_and_what_the_last_step_gained() -> None:
    frame = pd.concat(
        [
            runs({0.1: [0.9, 0], 0.3: [0.7, 0], 1.0: [0.8, 0]}, first=-1, scheme="low"),
            runs({0.1: [0.1, 0], 0.3: [0.7, 0], 1.0: [0.2, 0]}, first=-1, scheme="inside"),
            runs({0.1: [0.1, 0], 0.3: [0.7, 0], 1.0: [0.75, 0]}, first=-1, scheme="high"),
            runs({0.1: [0.1, 0]}, first=-1, scheme="alone"),
        ]
    )
    choices = training.choices(frame, ["scheme"]).set_index("scheme")
    assert choices["outward"].to_dict() == {"low": -1, "inside": 0, "high": 1, "alone": 0}
    assert choices["at_edge"].to_dict() == {"low": True, "inside": False, "high": True, "alone": False}
    np.testing.assert_allclose(choices["edge_gain"], [0.2, np.nan, 0.05, np.nan])
    best = training.tuned(frame, ["scheme"])
    assert best["at_edge"].tolist() == choices["at_edge"].tolist()
    assert training.extended(frame, ["scheme"]) == {("low",): 0.0333, ("high",): 3.0}
    assert training.extended(frame, ["scheme"], factor=10) == {("low",): 0.01, ("high",): 10.0}
    with pytest.raises(ValueError, match=r"factor of at least 1\.1; got 1"):
        training.extended(frame, ["scheme"], factor=1)


@pytest.mark.parametrize("first", [-1, 0])
def test_a_group_without_seeds_of_both_kinds_cannot_be_tuned(first: int) -> None:
    whole = runs({0.1: [0.5, 0.5]}, first, scheme="he", depth=3)
    lone = runs({0.1: [0.5]}, scheme="xavier", depth=3)
    frame = pd.concat([whole, lone])
    with pytest.raises(ValueError, match=r"scheme=xavier, depth=3 lacks one of the two$"):
        training.tuned(frame, ["scheme", "depth"])
    pd.testing.assert_frame_equal(training.tunable(frame, ["scheme", "depth"]), whole)
    assert training.tuned(frame[:0], ["scheme"]).columns.tolist()[-3:] == ["outward", "at_edge", "edge_gain"]
    assert training.extended(frame[:0], ["scheme"]) == {}


def test_tolerance_is_the_run_of_rates_around_the_best() -> None:
    scores = {0.01: 0.89, 0.03: 0.5, 0.1: 0.88, 0.3: 0.9, 1.0: 0.87, 3.0: float("nan")}
    frame = runs({lr: [score, score] for lr, score in scores.items()}, first=-1)
    tolerance = training.tolerance(frame, 0.05)
    assert (tolerance.low, tolerance.best, tolerance.high) == (0.1, 0.3, 1.0)
    assert tolerance.factor == pytest.approx(10)
    assert training.tolerance(frame, 0.001).factor == 1
    flattered = runs({0.1: [0.8, 0.8], 0.3: [0.9, 0.7], 1.0: [0.6, 0.6]}, first=-1)
    assert training.tolerance(flattered, 0.05).factor == pytest.approx(3)  # the reported 0.8 is above 0.7
    unreported = flattered[(flattered["lr"] != 0.3) | (flattered["seed"] < 0)]
    assert np.isnan(training.tolerance(unreported, 0.05).factor)


# -- what tuning does to intervals -------------------------------------------------------------------------------------

REPEATS = 4000
Sample = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]


def tuned_samples(sample: Sample, rates: int, seeds: int, selection: int) -> tuple[np.ndarray, np.ndarray]:
    """Reported scores of two groups tuned apart, (repeats, n) each; every rate and group is equally good."""
    shape = (REPEATS, 2, rates, selection + seeds)
    repeat, group, lr, seed = (axis.ravel() for axis in np.indices(shape))
    scores = sample(np.random.default_rng(seeds * rates), shape).ravel()
    frame = pd.DataFrame({"repeat": repeat, "group": group, "lr": lr, "seed": seed - selection, "score": scores})
    best = training.tuned(frame, ["repeat", "group"], score="score").sort_values(["group", "repeat", "seed"])
    first, second = best["score"].to_numpy().reshape(2, REPEATS, -1)
    return first, second


def t_covers(x: np.ndarray, mean: float) -> float:
    """How often the 95 % t interval of a row contains the mean."""
    n = x.shape[1]
    reach = scipy.stats.t.ppf(0.975, n - 1) * x.std(1, ddof=1) / np.sqrt(n)
    return float((np.abs(x.mean(1) - mean) <= reach).mean())


def sign_flip_differs(x: np.ndarray) -> float:
    """How often the exact sign-flip test of a row finds a mean other than 0, at 5 %; at most 10 columns."""
    signs = np.array(list(itertools.product([-1, 1], repeat=x.shape[1])))
    as_extreme = np.abs(x @ signs.T) >= np.abs(x.sum(1, keepdims=True)) - 1e-9
    return float((as_extreme.mean(1) <= 0.05).mean())


def intervals_of_a_share(n: int) -> dict[str, np.ndarray]:
    """The 95 % interval for each number of successes, (n + 1, 2): `stats.rate`, and Clopper and Pearson's exact one."""
    k = np.arange(n + 1)
    low = np.where(k > 0, scipy.stats.beta.ppf(0.025, np.maximum(k, 1), n - k + 1), 0.0)
    high = np.where(k < n, scipy.stats.beta.ppf(0.975, k + 1, np.maximum(n - k, 1)), 1.0)
    wilson = [stats.rate(int(successes), n) for successes in k]
    return {"wilson": np.array([[rate.low, rate.high] for rate in wilson]), "exact": np.column_stack([low, high])}


WORST = pytest.mark.parametrize(("seeds", "rates"), [(8, 3), (8, 5), (16, 4)])
FORMS = pytest.mark.parametrize("selection", [3, 0], ids=["marked", "unmarked"])


@pytest.mark.slow
@WORST
@FORMS
def test_tuning_costs_a_t_interval_no_coverage(seeds: int, rates: int, selection: int) -> None:
    """Where all rates are equally good, normal scores: coverage of the mean, and a false difference of two groups.

    4,000 repeats have a standard error of 0.34 points. When each seed was reported at the rate that the other seeds
    chose, the interval covered 85 % (8 seeds, 3 rates), 81 % (8, 5) and 77 % (16, 4), and 16 %, 19 % and 24 % of the
    paired comparisons were "different".
    """
    first, second = tuned_samples(np.random.Generator.standard_normal, rates, seeds, selection)
    assert first.shape[1] == (seeds if selection else {8: 5, 16: 10}[seeds])
    assert t_covers(first, 0.0) >= 0.93
    assert t_covers(second, 0.0) >= 0.93
    assert 1 - t_covers(first - second, 0.0) <= 0.06
    if first.shape[1] <= 10:
        assert sign_flip_differs(first - second) <= 0.06


@pytest.mark.slow
@WORST
@FORMS
@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
def test_tuning_costs_the_interval_of_a_share_no_coverage(seeds: int, rates: int, selection: int, share: float) -> None:
    """Where all rates are equally good, runs that succeed or fail.

    The exact interval covers 93 % at least. Wilson's covers, within noise, what it covers without any tuning: 92.97 %
    of 8 runs at one half, 92.4 % of 10 at 0.3, so that 93 % cannot be asked of it. When each seed was reported at the
    rate that the other seeds chose, Wilson's covered 67 to 75 % at one half and the exact one 83 to 94 %.
    """
    solved, _ = tuned_samples(lambda rng, shape: (rng.random(shape) < share).astype(float), rates, seeds, selection)
    n = solved.shape[1]
    for name, ends in intervals_of_a_share(n).items():
        contains = (ends[:, 0] <= share) & (share <= ends[:, 1])
        covered = float(contains[solved.sum(1).astype(int)].mean())
        untuned = float(scipy.stats.binom.pmf(np.arange(n + 1), n, share)[contains].sum())
        assert covered >= untuned - 4 * np.sqrt(untuned * (1 - untuned) / REPEATS) - 1e-9
        assert name == "wilson" or covered >= 0.93


def cases(**varied: list[float]) -> list[Case]:
    return [Case.of(dict(zip(varied, values, strict=True))) for values in zip(*varied.values(), strict=True)]


def test_outcomes_are_those_of_the_replicas_themselves() -> None:
    digits = data.load("digits")
    model = models.build("mlp", depth=2, width=16, input_shape=(1, 8, 8), activation="tanh")
    grid = cases(lr=[0.1, 0.1, 1e38], seed=[0, 1, 0])
    seeds = [case.random_seed("seed") for case in grid]
    sgd = replicas.SGD(lr=[case.number("lr") for case in grid], momentum=0.9)
    rows = list(
        training.outcomes(
            grid, model, digits, training.Recipe(sgd, 60, 32, target=0.7), training.Draw(seeds), watch=(0, 59)
        )
    )
    frame = pd.DataFrame(
        [
            {"case": r.case.id, **dict(r.case.params), "metric": r.metric, "value": r.value, "status": "ok"}
            for r in rows
            if r.step is None
        ]
    )
    table = training.table(frame, "lr", "seed")
    fit, validation = data.hold_out(digits.train)
    assert len(fit) + len(validation) == len(digits.train)
    run = replicas.train(replicas.stack(model, seeds), fit.x, fit.y, sgd, batch=32, steps=60)
    expected = replicas.evaluate(run.stack, digits.test.x, digits.test.y)
    np.testing.assert_array_equal(table["test_accuracy"], expected.accuracy)
    assert table["diverged"].tolist() == [0, 0, 1]
    assert table["reached"].tolist() == [1, 1, 0]
    assert table["steps_to_target"].iloc[2] == 60
    assert (table["steps_to_target"].iloc[:2] < 60).all()
    signals = [r for r in rows if r.metric == "signal"]
    assert len(signals) == 3 * 2 * 2  # cases, watched steps, directions
    assert all(len(np.atleast_1d(r.value)) == 3 for r in signals)


def test_an_inspection_sees_the_trained_replicas_and_its_figures_are_those_of_the_last_step() -> None:
    model = models.build("mlp", depth=1, width=4, input_shape=(1, 8, 8))
    grid = cases(lr=[0.1, 0.2], seed=[0, 1])
    seen: list[replicas.Stack] = []

    def inspect(stack: replicas.Stack, _fit: data.Examples) -> dict[str, list[float]]:
        seen.append(stack)
        return {"biggest": [float(weight.abs().max()) for weight in stack.parameters["output.weight"]]}

    sgd = replicas.SGD(lr=[0.1, 0.2])
    digits = data.load("digits")
    rows = list(
        training.outcomes(
            grid, model, digits, training.Recipe(sgd, 3, 8, target=0.9), training.Draw([0, 1]), inspect=inspect
        )
    )
    fit, _ = data.hold_out(digits.train)
    run = replicas.train(replicas.stack(model, [0, 1]), fit.x, fit.y, sgd, batch=8, steps=3)
    torch.testing.assert_close(seen[0].parameters["output.weight"], run.stack.parameters["output.weight"])
    largest = [(row.case, row.step, row.value) for row in rows if row.metric == "biggest"]
    expected = [float(weight.abs().max()) for weight in run.stack.parameters["output.weight"]]
    assert largest == [(case, 3, value) for case, value in zip(grid, expected, strict=True)]


def test_a_recipe_minimizes_the_loss_that_it_names() -> None:
    """The mean square of the scores does not look at classes: it falls, and accuracy stays low."""
    digits, model = data.load("digits"), models.build("mlp", depth=0, input_shape=(1, 8, 8), classes=10)

    def shrink(outputs: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return outputs.square().mean()

    recipe = training.Recipe(replicas.SGD([0.1]), steps=60, batch=32, target=0.9, loss=shrink)
    rows = training.outcomes([Case.of({"seed": 0})], model, digits, recipe, training.Draw([0]))
    ends = {row.metric: float(np.asarray(row.value)) for row in rows}
    assert ends["train_loss"] < 0.1
    assert ends["test_accuracy"] < 0.4


def test_batch_normalization_is_trained_in_train_mode_and_tested_in_eval_mode() -> None:
    digits = data.load("digits")
    model = models.build("mlp", depth=2, width=16, input_shape=(1, 8, 8), norm="batch")
    grid = cases(lr=[0.1], seed=[0])
    recipe = training.Recipe(replicas.SGD([0.1]), steps=40, batch=32, target=0.7)
    rows = training.outcomes(grid, model, digits, recipe, training.Draw([0]))
    ends = {row.metric: row.value for row in rows}
    assert model.training
    # In train mode a batch of one example, normalized by itself, would be at chance.
    assert float(np.asarray(ends["test_accuracy"])) > 0.5
    stack = replicas.stack(model, [0])
    fit, _ = data.hold_out(digits.train)
    run = replicas.train(stack, fit.x, fit.y, replicas.SGD([0.1]), batch=32, steps=40)
    run.stack.template.eval()
    alone = run.stack.module(0).eval()
    with torch.no_grad():
        right = (alone(digits.test.x).argmax(1) == digits.test.y).double().mean()
    assert float(np.asarray(ends["test_accuracy"])) == pytest.approx(float(right), abs=1e-6)


def test_holding_out_everything_is_refused() -> None:
    with pytest.raises(ValueError, match="leaves one part empty"):
        data.hold_out(data.load("digits").train, share=1.0)
