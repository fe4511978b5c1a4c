"""Errors of fits of every size: the fits against fits by hand, and verdicts on made-up rows both ways."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

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
    assert len(answers.sentences) == 1

    def single(ratio: float) -> float:
        return 0.3 * max(ratio / 0.3, 0.3 / ratio)

    answers = analysed(capacity.PART, made_up("features", single, lambda ratio: 1 / ratio))
    assert answers.statuses == {"N38": Status.HOLDS, "peak": Status.FAILS, "ridge": Status.INCONCLUSIVE}
    assert not answers.sentences


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
