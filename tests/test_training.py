from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from depthgauge import data, models, replicas, training
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


def runs(scores: dict[float, list[float]], **columns: object) -> pd.DataFrame:
    """Validation scores: learning rate -> one a seed; test accuracy tells which run it was."""
    return pd.DataFrame(
        [
            {"lr": lr, "seed": seed, "validation_accuracy": score, "test_accuracy": 100 * lr + seed, **columns}
            for lr, own in scores.items()
            for seed, score in enumerate(own)
        ]
    )


def test_a_seed_has_no_say_in_its_own_rate() -> None:
    # Seed 0 alone does wonders at 0.3; the others choose 0.1 for it, and its wonder counts for them.
    frame = runs({0.1: [0.5, 0.6, 0.6], 0.3: [1.0, 0.5, 0.5]}, scheme="he")
    best = training.tuned(frame, ["scheme"]).set_index("seed")
    assert best.loc[0, "lr"] == 0.1
    assert best.loc[1, "lr"] == best.loc[2, "lr"] == 0.3
    assert best.loc[0, "test_accuracy"] == pytest.approx(10.0)
    assert best["at_edge"].all()


def test_a_diverged_rate_is_never_chosen_while_another_is_finite() -> None:
    frame = runs({0.1: [0.2, 0.2], 1.0: [float("nan"), 0.9], 3.0: [0.1, 0.1]}, scheme="he")
    assert set(training.tuned(frame, ["scheme"])["lr"]) == {0.1, 1.0}  # seed 0 never sees its own NaN
    assert training.tuned(frame, ["scheme"]).set_index("seed").loc[1, "lr"] == 0.1


def test_equal_scores_take_the_smallest_rate_and_groups_are_tuned_apart() -> None:
    frame = pd.concat(
        [
            runs({0.1: [0.5, 0.5], 0.3: [0.5, 0.5]}, scheme="he"),
            runs({0.1: [0.1, 0.1], 0.3: [0.9, 0.9]}, scheme="xavier"),
        ]
    )
    best = training.tuned(frame, ["scheme"]).groupby("scheme")["lr"].unique()
    assert best["he"].tolist() == [0.1]
    assert best["xavier"].tolist() == [0.3]


def test_choosing_by_oneself_would_be_biased_and_leaving_out_is_not() -> None:
    """Pure noise of mean 0: the best of ten rates by all seeds is above 0, the rate that the others choose is not."""
    studies, rates, seeds = 300, 10, 6
    noise = np.random.default_rng(0).standard_normal((studies, rates, seeds))
    study, lr, seed = (axis.ravel() for axis in np.indices(noise.shape))
    frame = pd.DataFrame({"study": study, "lr": lr, "seed": seed, "validation_accuracy": noise.ravel()})
    means = training.tuned(frame, ["study"]).groupby("study")["validation_accuracy"].mean()
    assert abs(means.mean()) < 4 * means.std() / np.sqrt(studies)
    assert noise.mean(2).max(1).mean() > 10 * means.std() / np.sqrt(studies)  # 1.54 / sqrt(seeds)


def test_one_seed_cannot_choose_for_itself() -> None:
    with pytest.raises(ValueError, match="two seeds or more"):
        training.tuned(runs({0.1: [0.5]}, scheme="he"), ["scheme"])


def test_tolerance_is_the_run_of_rates_around_the_best() -> None:
    frame = runs({0.01: [0.89], 0.03: [0.5], 0.1: [0.88], 0.3: [0.9], 1.0: [0.87], 3.0: [float("nan")]})
    found = training.tolerance(frame, 0.05)
    assert (found.low, found.best, found.high) == (0.1, 0.3, 1.0)
    assert found.factor == pytest.approx(10)
    assert training.tolerance(frame, 0.001).factor == 1


def cases(**varied: list[float]) -> list[Case]:
    return [Case.of(dict(zip(varied, values, strict=True))) for values in zip(*varied.values(), strict=True)]


def test_outcomes_are_those_of_the_replicas_themselves() -> None:
    digits = data.load("digits")
    model = models.build("mlp", depth=2, width=16, input_shape=(1, 8, 8), activation="tanh")
    own = cases(lr=[0.1, 0.1, 1e38], seed=[0, 1, 0])
    seeds = [case.random_seed("seed") for case in own]
    sgd = replicas.SGD(lr=[case.number("lr") for case in own], momentum=0.9)
    rows = list(
        training.outcomes(own, model, digits, seeds=seeds, optimizer=sgd, steps=60, batch=32, target=0.7, watch=(0, 59))
    )
    frame = pd.DataFrame(
        [
            {"case": r.case.id, **dict(r.case.params), "metric": r.metric, "value": r.value, "status": "ok"}
            for r in rows
            if r.step is None
        ]
    )
    found = training.table(frame, "lr", "seed")
    fit, validation = data.hold_out(digits.train)
    assert len(fit) + len(validation) == len(digits.train)
    run = replicas.train(replicas.stack(model, seeds), fit.x, fit.y, sgd, batch=32, steps=60)
    expected = replicas.evaluate(run.stack, digits.test.x, digits.test.y)
    np.testing.assert_array_equal(found["test_accuracy"], expected.accuracy)
    assert found["diverged"].tolist() == [0, 0, 1]
    assert found["reached"].tolist() == [1, 1, 0]
    assert found["steps_to_target"].iloc[2] == 60
    assert (found["steps_to_target"].iloc[:2] < 60).all()
    signals = [r for r in rows if r.metric == "signal"]
    assert len(signals) == 3 * 2 * 2  # cases, watched steps, directions
    assert all(len(np.atleast_1d(r.value)) == 3 for r in signals)


def test_an_inspection_sees_the_trained_replicas_and_its_figures_are_those_of_the_last_step() -> None:
    model = models.build("mlp", depth=1, width=4, input_shape=(1, 8, 8))
    own = cases(lr=[0.1, 0.2], seed=[0, 1])
    seen: list[replicas.Stack] = []

    def inspect(stack: replicas.Stack) -> dict[str, list[float]]:
        seen.append(stack)
        return {"biggest": [float(weight.abs().max()) for weight in stack.parameters["output.weight"]]}

    sgd = replicas.SGD(lr=[0.1, 0.2])
    digits = data.load("digits")
    rows = list(
        training.outcomes(
            own, model, digits, seeds=[0, 1], optimizer=sgd, steps=3, batch=8, target=0.9, inspect=inspect
        )
    )
    fit, _ = data.hold_out(digits.train)
    run = replicas.train(replicas.stack(model, [0, 1]), fit.x, fit.y, sgd, batch=8, steps=3)
    torch.testing.assert_close(seen[0].parameters["output.weight"], run.stack.parameters["output.weight"])
    found = [(row.case, row.step, row.value) for row in rows if row.metric == "biggest"]
    expected = [float(weight.abs().max()) for weight in run.stack.parameters["output.weight"]]
    assert found == [(case, 3, value) for case, value in zip(own, expected, strict=True)]


def test_batch_normalization_is_trained_in_train_mode_and_tested_in_eval_mode() -> None:
    digits = data.load("digits")
    model = models.build("mlp", depth=2, width=16, input_shape=(1, 8, 8), norm="batch")
    own = cases(lr=[0.1], seed=[0])
    rows = training.outcomes(
        own, model, digits, seeds=[0], optimizer=replicas.SGD([0.1]), steps=40, batch=32, target=0.7
    )
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
