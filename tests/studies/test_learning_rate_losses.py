"""Steps of regression against closed forms, Huber's jump, classification's losses, and verdicts on made-up rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from depthgauge.studies.learning_rate import classification, losses, regression
from depthgauge.study import Case, Context, Rows
from depthgauge.verdict import Status


@pytest.mark.parametrize("loss", list(regression.LOSSES))
@pytest.mark.parametrize("distance", [0.01, 1.0, 30.0])
def test_the_predicted_length_is_the_mean_slope_over_normal_inputs(loss: str, distance: float) -> None:
    """E[psi(r) u] for r = distance u + noise, by quadrature over a grid of u and of the noise."""
    u, dx = np.linspace(-9, 9, 6001, retstep=True)
    noise, dn = np.linspace(-0.09, 0.09, 601, retstep=True)
    weight = np.exp(-(u[:, None] ** 2) / 2 - noise**2 / 2e-4) / (2 * math.pi * 0.01) * dx * dn
    r = distance * u[:, None] + noise
    slope = {"squared": r, "absolute": np.sign(r), "huber": np.clip(r, -1, 1)}[loss]
    assert regression.predicted_length(loss, distance, 0.01) == pytest.approx(
        (slope * u[:, None] * weight).sum(), rel=1e-3
    )


def test_the_predicted_cycle_is_where_a_step_goes_twice_the_distance() -> None:
    for lr in (0.03, 0.1, 1.0):
        distance = regression.predicted_cycle(lr, 0.01)
        assert lr * regression.predicted_length("absolute", distance, 0.01) == pytest.approx(2 * distance)
    assert regression.predicted_cycle(0.02, 0.01) == 0


@pytest.mark.parametrize("delta", [0.1, 1.0, 7.3])
def test_only_the_printed_form_jumps(delta: float) -> None:
    found = regression.jumps(delta)
    assert found["printed"] == pytest.approx(delta**2 / 2)
    assert max(abs(found["huber"]), abs(found["smooth_l1"])) < 1e-14 * delta**2


def test_a_descent_is_that_of_torch_s_optimizer() -> None:
    at: dict[str, Any] = {
        "part": "losses",
        "loss": "huber",
        "lr": 0.3,
        "seed": 2,
        "rows": 50,
        "inputs": 3,
        "noise": 0.1,
        "steps": 7,
    }
    case = Case.of(at)
    (line,) = (row.value for row in regression.descend([case], Context()) if row.metric == "distance_left")
    x, y, truth, direction = regression.regression(case)
    w = torch.nn.Parameter(truth + regression.START * direction)
    sgd = torch.optim.SGD([w], lr=0.3)
    for _ in range(7):
        sgd.zero_grad()
        functional.huber_loss(x @ w, y).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        sgd.step()
    assert np.asarray(line)[-1] == pytest.approx(float((w - truth).norm().detach()), rel=1e-10)


def test_outliers_are_a_tenth_of_the_targets() -> None:
    at: dict[str, Any] = {"part": "losses", "seed": 0, "rows": 200, "inputs": 2, "noise": 0.01}
    _, clean, _, _ = regression.regression(Case.of(at))
    _, off, _, _ = regression.regression(Case.of({**at, **losses.OFF}))
    assert sorted((off - clean).round().tolist()) == [0.0] * 180 + [20.0] * 20


def stepped(exponent: Callable[[str, float], float], jump: float = 0.5) -> Iterator[Rows]:
    for loss in regression.LOSSES:
        for distance in (0.03, 0.1, 0.3, 10.0, 30.0, 100.0):
            for seed in range(8):
                at: dict[str, Any] = {"loss": loss, "distance": distance, "seed": seed, "noise": 0.01}
                value = distance ** exponent(loss, distance) * (1 + 0.001 * math.sin(seed * distance))
                yield Case.of({"part": "losses", **at}).rows("length", value)
    for form, value in (("printed", jump), ("huber", 0.0), ("smooth_l1", 0.0)):
        yield Case.of({"part": "losses", "delta": 1.0}).rows(form, value)


def notes(loss: str, distance: float) -> float:
    return losses.EXPONENTS[loss]["near" if distance < 1 else "far"]


@pytest.mark.parametrize(
    ("exponent", "jump", "expected"),
    [
        (notes, 0.5, Status.HOLDS),
        (notes, 0.0, Status.DEPENDS),
        (lambda loss, distance: notes(loss, distance) + (loss == "absolute"), 0.5, Status.DEPENDS),
    ],
)
def test_verdict_on_steps(
    analysed: Callable[..., Any], exponent: Callable[[str, float], float], jump: float, expected: Status
) -> None:
    assert analysed(losses.PART, stepped(exponent, jump)).statuses["N39"] is expected


def ended(value: Callable[[str, bool], float]) -> Iterator[Rows]:
    for loss in regression.LOSSES:
        for seed in (-3, -2, -1, *range(8)):
            at: dict[str, Any] = {"part": "losses", "loss": loss, "lr": 0.1, "seed": seed, "noise": 0.01}
            for off in (True, False) if seed >= 0 else (True,):
                case = Case.of({**at, "outliers": 0.1} if off else at)
                yield case.rows("end", value(loss, off) * (1 + 0.01 * math.sin(seed)))


def test_verdicts_on_ends(analysed: Callable[..., Any]) -> None:
    cycle = regression.predicted_cycle(0.1, 0.01)
    said = analysed(losses.PART, ended(lambda loss, off: 0.3 if off and loss == "squared" else cycle)).statuses
    assert said == {"oscillation": Status.HOLDS, "outliers": Status.HOLDS}
    said = analysed(losses.PART, ended(lambda _, off: 0.3 if off else 2 * cycle)).statuses
    assert said == {"oscillation": Status.FAILS, "outliers": Status.FAILS}


def test_losses_of_classification_are_torch_s() -> None:
    outputs = torch.randn(20, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    targets = torch.arange(20) % 10
    hot = functional.one_hot(targets, 10).double()
    torch.testing.assert_close(classification.squared(outputs, targets), functional.mse_loss(outputs, hot) * 5)
    torch.testing.assert_close(
        classification.hinge(outputs, targets), functional.multi_margin_loss(outputs, targets) * 10
    )


def classified(gain: Callable[[str, str], float]) -> Iterator[Rows]:
    for init in classification.INITIALIZE:
        for loss in classification.LOSSES:
            for seed in (-3, -2, -1, *range(8)):
                for lr in (0.1, 0.3, 1.0):
                    accuracy = 0.9 + gain(init, loss) + 0.002 * math.sin(seed) - 0.1 * abs(math.log(lr / 0.3))
                    at = {"data": "digits", "depth": 2, "init": init, "loss": loss, "lr": lr, "seed": seed}
                    case = Case.of({"part": "classification", **at})
                    for metric in ("validation_accuracy", "test_accuracy"):
                        yield case.rows(metric, accuracy)
                    yield case.rows("diverged", 0.0)


@pytest.mark.parametrize(
    ("gain", "expected"),
    [
        (lambda *_: 0.0, Status.FAILS),
        (lambda _, loss: -0.1 * (loss != "cross_entropy"), Status.HOLDS),
        (lambda init, loss: -0.1 * (init == "he" and loss == "squared"), Status.DEPENDS),
    ],
)
def test_verdict_on_cross_entropy(
    analysed: Callable[..., Any], gain: Callable[[str, str], float], expected: Status
) -> None:
    assert analysed(classification.PART, classified(gain)).statuses == {"N49": expected}
