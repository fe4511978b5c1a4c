"""Errors of fits of every size: the fits against fits by hand, and verdicts on made-up rows both ways."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from depthgauge import data
from depthgauge.seeding import Purpose, generator
from depthgauge.studies.regularization import capacity, errors, fits
from depthgauge.study import Case, Context, Rows
from depthgauge.verdict import Status


@pytest.mark.parametrize("features", [3, 11])
def test_the_linear_model_is_fitted_by_least_squares_and_at_its_best_penalty(features: int) -> None:
    ends = fits.linear(6, features, 2, seed=4)
    source, b = generator(4, Purpose.INPUTS), fits.weights(48)
    signal, noise = fits.effective(6, features)
    assert signal + noise == pytest.approx(1.2)
    found, train, ridge = [], 0.0, 0.0
    for _ in range(2):
        x = torch.randn(6, 48, generator=source, dtype=torch.float64).numpy()
        y = x @ b + math.sqrt(0.2) * torch.randn(6, generator=source, dtype=torch.float64).numpy()
        seen = x[:, :features]
        fit = np.linalg.lstsq(seen, y, rcond=None)[0]
        train += ((seen @ fit - y) ** 2).mean() / 2
        shrunk = np.linalg.solve(seen.T @ seen + noise / signal * features * np.eye(features), seen.T @ y)
        ridge += ((shrunk - b[:features]) ** 2).sum() / 2 + noise / 2
        found.append(fit)
    assert ends.train == pytest.approx(train, abs=1e-12)
    assert list(ends.penalized) == [pytest.approx(ridge)]
    assert ends.test == pytest.approx(np.mean([((fit - b[:features]) ** 2).sum() for fit in found]) + noise)
    assert ends.variance == pytest.approx(((found[0] - found[1]) ** 2).sum() / 2)


@pytest.mark.parametrize("features", [5, 30])
def test_random_features_are_fitted_by_the_least_squares_of_least_norm(features: int) -> None:
    ends = fits.random_features(12, features, seed=2)
    digits = data.load("mnist5k")
    train, test = fits._inputs(digits.train.x), fits._inputs(digits.test.x)
    order = torch.randperm(len(train), generator=generator(2, Purpose.SAMPLE))
    source, wrong = generator(2, Purpose.WEIGHTS), 0.0
    for part in (order[:12], order[12:24]):
        drawn = torch.randn(784, features, generator=source) / 28
        phi, new = (torch.relu(x @ drawn).double() for x in (train[part], test))
        out = new @ torch.linalg.pinv(phi) @ torch.nn.functional.one_hot(digits.train.y[part], 10).double()
        wrong += float((out.argmax(1) != digits.test.y).double().mean()) / 2
    assert ends.wrong == pytest.approx(wrong, abs=0.002)
    assert (ends.train < 1e-12) == (features >= 12)
    assert len(ends.penalized) == len(ends.validation) == len(fits.PENALTIES)


def made_up(kind: str, curve: Callable[[float], float], train: Callable[[float], float]) -> Iterator[Rows]:
    """Rows of twelve seeds and three that choose; a penalty leaves the error of half as many parameters."""
    for seed in range(-3, 12):
        for ratio in capacity.RATIOS:
            case = Case.of({"part": "capacity", "kind": kind, "n": 60, "ratio": ratio, "seed": seed})
            jitter = math.exp(0.01 * math.sin(seed + 10 * ratio))
            yield case.rows("train", train(ratio) * jitter)
            for metric, share in (("test", 1.0), ("variance", 0.5), ("wrong", 0.1)):
                yield case.rows(metric, share * curve(ratio) * jitter)
            for metric in ("penalized", "validation"):
                yield case.rows(metric, jitter * np.array([curve(ratio), 0.3]), layer_index=[0, 1])


def test_a_curve_of_two_descents_depends_and_one_that_keeps_rising_holds(analysed) -> None:  # type: ignore[no-untyped-def]  # a fixture
    def double(ratio: float) -> float:
        return 0.3 + 0.1 / ratio + 30 * math.exp(-abs(math.log(ratio)) * 5)

    answers = analysed(capacity.PART, made_up("features", double, lambda ratio: 1.2 - min(ratio, 1)))
    assert answers.statuses == {"N38": Status.DEPENDS, "peak": Status.HOLDS, "ridge": Status.HOLDS}
    (text,) = answers.sentences  # of squared errors, which the figure shows
    error = answers.tables["capacity"].query("curve == 'new data'").set_index("ratio")["value"]
    assert f"squared error on new digits, to {error[:0.9].min():.2g}, then raise it to {error[1.0]:.3g}" in text

    def single(ratio: float) -> float:
        return 0.3 * max(ratio / 0.3, 0.3 / ratio)

    answers = analysed(capacity.PART, made_up("features", single, lambda ratio: 1 / ratio))
    assert answers.statuses == {"N38": Status.HOLDS, "peak": Status.FAILS, "ridge": Status.INCONCLUSIVE}
    assert not answers.sentences


def networks(gain: float) -> Iterator[Rows]:
    """Networks whose error is largest at a ratio of 2 or 4 by seed; at 0.75 the lowest rate is best, by this much."""
    for seed, ratio, lr in ((s, r, lr) for s in range(-2, 10) for r in capacity.RATIOS[1:] for lr in capacity.RATES):
        best = capacity.RATES[0] if ratio == 0.75 else capacity.RATES[1]
        if seed >= 0 and lr != best:
            continue
        jitter = math.exp(0.01 * math.sin(seed + 10 * ratio))
        peak = 2.0 if seed % 2 else 4.0
        case = Case.of({"part": "capacity", "kind": "network", "n": 60, "ratio": ratio, "lr": lr, "seed": seed})
        yield case.rows("train", (0.1 / ratio + gain * (lr != best)) * jitter)
        for metric in ("test", "variance", "wrong"):
            yield case.rows(metric, (1 + 0.5 * (ratio == peak)) * jitter)


@pytest.mark.parametrize("gain", [0.01, 0.2])
def test_where_networks_err_most_is_told_by_the_ratios_that_were_run(gain: float, analysed) -> None:  # type: ignore[no-untyped-def]  # a fixture
    answers = analysed(capacity.PART, networks(gain))
    why = answers.verdicts["peak"].why
    assert why.startswith("the error is largest at 2 in 5, 4 in 5 of 10 seeds (trained networks)")
    ends = answers.tables["capacity"].query("curve == 'new data'").set_index("ratio")[["at_edge", "open_ended"]]
    assert list(ends.index[ends["at_edge"]]) == [0.75]
    assert ends["open_ended"].any() == (gain > errors.ENDED)
    told = "may be better beyond it" if gain > errors.ENDED else "gains next to nothing"
    assert "at the end of the grid at 0.75" in answers.verdicts["N38"].why
    assert told in answers.verdicts["N38"].why
    assert answers.statuses["peak"] is (Status.INCONCLUSIVE if gain > errors.ENDED else Status.FAILS)
    assert any("largest with 2 to 4 times as many" in text for text in answers.sentences) == (gain < errors.ENDED)


def test_theory_is_drawn_over_the_errors_and_networks_on_a_linear_scale(analysed) -> None:  # type: ignore[no-untyped-def]  # a fixture
    def law(ratio: float) -> float:
        return min(errors.law(60, ratio)["new data"], 1e4)

    rows = [*made_up("linear", law, lambda ratio: 1 / ratio), *networks(0.01)]
    tables = analysed(capacity.PART, rows).tables
    (figure,) = capacity.draw_capacity(tables)
    linear, trained = figure.canvas.axes
    assert (linear.get_yscale(), trained.get_yscale()) == ("log", "linear")
    dashed = [line for line in linear.lines if line.get_label() == "theory"]
    assert len(dashed) == 2
    assert min(line.get_zorder() for line in dashed) > max(line.get_zorder() for line in set(linear.lines) - {*dashed})


def test_the_linear_model_is_held_against_theory(analysed) -> None:  # type: ignore[no-untyped-def]  # a fixture
    def law(ratio: float) -> float:
        return min(errors.law(60, ratio)["new data"], 1e4)

    answers = analysed(capacity.PART, made_up("linear", law, lambda ratio: 1 / ratio))
    table = answers.tables["ridgeless"].set_index(["fit", "ratio"])["value"]
    assert table["least squares"].to_numpy() == pytest.approx(np.ones(len(table["least squares"])), abs=0.01)
    assert answers.statuses["ridgeless"] is Status.DEPENDS  # the made-up penalty is not theory's
    assert math.isinf(errors.law(60, 1.0)["new data"])


def test_networks_choose_their_rate_by_the_training_error_of_other_seeds() -> None:
    import pandas as pd

    def case(seed: int, rate: float) -> Case:
        return Case.of(
            {"part": "capacity", "kind": "network", "n": 6, "steps": 3, "ratio": 1.0, "lr": rate, "seed": seed}
        )

    rows = [row for rate in (0.001, 0.03) for row in capacity.run([case(-1, rate), case(-2, rate)], Context())]
    frame = pd.DataFrame([
        {"case": row.case.id, **dict(row.case.params), "metric": row.metric, "value": row.value, "status": "ok"}
        for row in rows
    ])  # fmt: skip
    train = frame[frame["metric"] == "train"].groupby("lr")["value"].mean()
    (grid,) = capacity.second(frame, seeds=10)
    assert grid.varied == {"lr": (train.idxmin(),)}
    assert (grid.seeds, grid.selection) == (5, 0)


def peaked(ratio: float) -> float:
    return 0.3 + 0.1 / ratio + 30 * math.exp(-abs(math.log(ratio)) * 5)


def test_a_fit_that_diverged_has_the_largest_error_and_one_that_was_not_run_has_none(analysed) -> None:  # type: ignore[no-untyped-def]  # a fixture
    whole = list(made_up("features", peaked, lambda ratio: 1.2 - min(ratio, 1)))

    def at(row: Rows) -> bool:
        return (row.case["ratio"], row.case["seed"]) == (8.0, 3)

    rows = [replace(row, value=math.nan) if at(row) and row.metric == "test" else row for row in whole]
    lost = analysed(capacity.PART, rows)
    shape = lost.tables["capacity_shape"].set_index("what")
    assert (shape.loc["beyond", "n"], shape.loc["beyond", "answer"]) == (12, "inconclusive")
    assert "largest at 1 in 11, 8 in 1 of 12 seeds" in lost.verdicts["peak"].why
    cut = analysed(capacity.PART, [row for row in whole if not at(row)])  # as in a run that was cut short
    assert "largest at 1 in 11 of 11 seeds" in cut.verdicts["peak"].why


def test_the_lowest_error_told_is_that_of_the_ratio_which_other_seeds_choose(analysed) -> None:  # type: ignore[no-untyped-def]  # a fixture
    rows = [
        replace(row, value=0.8 * row.value)
        if (row.metric, row.case["ratio"]) == ("test", 0.2) and row.case.integer("seed") >= 0 else row
        for row in made_up("features", peaked, lambda ratio: 1.2 - min(ratio, 1))
    ]  # fmt: skip
    (told,) = analysed(capacity.PART, rows).sentences
    assert f"first lower the squared error on new digits, to {peaked(0.3):.2g}, then" in told  # 0.2 has 0.65
